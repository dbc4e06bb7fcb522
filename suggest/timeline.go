package suggest

// A trace as looks: it is cut into slices, and each slice has the most that every scope has
// held in it.

import (
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/replay"
)

// mostSlices is how many slices a trace has at most. When there are more, each two of them
// become one.
const mostSlices = 64

// timeline follows what is held while a trace is read.
type timeline struct {
	name   string
	from   time.Time
	width  time.Duration
	slice  int // the number of the slice that events are in
	scopes map[scope]*track
	// members has the members of each class: those of a service or protocol by its name, and
	// peers, connections and streams under no name.
	members map[scope]map[string]*member
}

// track is what a scope holds, or what the fullest member of a class holds.
type track struct {
	seenScope
	now    amounts // unused for a class of members
	slices []amounts
	looked amounts // the values for which the holders were counted
}

// member is a peer, its part of a service or protocol, or a connection or stream.
type member struct{ now, peak amounts }

func newTimeline(name string) *timeline {
	return &timeline{name: name, width: time.Second, scopes: make(map[scope]*track), members: make(map[scope]map[string]*member)}
}

func (t *timeline) take(e *replay.Event) {
	if t.from.IsZero() {
		t.from = e.Time
	}
	t.advance(e.Time)
	var kind rcmgr.Kind
	if e.Scope.Class == "" || e.OfSpan() || kind.UnmarshalText([]byte(e.Scope.Class)) != nil {
		return
	}
	s, m := t.place(kind, e)
	if s == (scope{kind: rcmgr.KindSubnet}) {
		return
	}
	tr := t.track(s)
	var held func(*amounts)
	switch e.Type {
	case rcmgr.TraceCreateScopeEvt:
		if tr.of[dimMemory].limit == 0 {
			for d, limit := range decodeLimit(e.Limit) {
				tr.of[d].limit = limit
			}
		}
		return
	case rcmgr.TraceDestroyScopeEvt:
		if m == nil {
			held = func(a *amounts) { *a = amounts{} }
			break
		}
		m.now = amounts{}
		if kind == rcmgr.KindConn || kind == rcmgr.KindStream {
			delete(t.members[scope{kind: kind}], e.Name)
		}
		return
	case rcmgr.TraceReserveMemoryEvt, rcmgr.TraceReleaseMemoryEvt:
		held = func(a *amounts) { a[dimMemory] = e.Memory }
	case rcmgr.TraceAddStreamEvt, rcmgr.TraceRemoveStreamEvt:
		held = func(a *amounts) {
			a[dimStreams], a[dimStreamsIn], a[dimStreamsOut] = e.StreamsIn+e.StreamsOut, e.StreamsIn, e.StreamsOut
		}
	case rcmgr.TraceAddConnEvt, rcmgr.TraceRemoveConnEvt:
		held = func(a *amounts) {
			a[dimConns], a[dimConnsIn], a[dimConnsOut], a[dimFD] = e.ConnsIn+e.ConnsOut, e.ConnsIn, e.ConnsOut, e.FD
		}
	case rcmgr.TraceBlockReserveMemoryEvt:
		tr.of[dimMemory].refused++
		return
	case rcmgr.TraceBlockAddStreamEvt:
		tr.of[direction(e, dimStreamsIn, dimStreamsOut)].refused++
		return
	case rcmgr.TraceBlockAddConnEvt:
		tr.of[direction(e, dimConnsIn, dimConnsOut)].refused++
		return
	default:
		return
	}
	if m != nil {
		held(&m.now)
		t.raise(s, tr, &m.now, e)
		for d := range numDims {
			m.peak[d] = max(m.peak[d], m.now[d])
		}
		return
	}
	held(&tr.now)
	t.raise(s, tr, &tr.now, e)
}

// direction returns the dimension of the direction that an event is about.
func direction(e *replay.Event, in, out dim) dim {
	if e.DeltaIn != 0 {
		return in
	}
	return out
}

// place returns the scope that an event counts for, and the member if that is a class.
func (t *timeline) place(kind rcmgr.Kind, e *replay.Event) (scope, *member) {
	group, name := scope{kind: kind}, e.Scope.Peer
	switch kind {
	case rcmgr.KindSystem, rcmgr.KindTransient, rcmgr.KindAllowlistedSystem, rcmgr.KindAllowlistedTransient:
		return group, nil
	case rcmgr.KindService:
		return scope{kind, e.Scope.Service}, nil
	case rcmgr.KindProtocol:
		return scope{kind, e.Scope.Protocol}, nil
	case rcmgr.KindServicePeer:
		group.name = e.Scope.Service
	case rcmgr.KindProtocolPeer:
		group.name = e.Scope.Protocol
	case rcmgr.KindConn, rcmgr.KindStream:
		name = e.Name
	case rcmgr.KindPeer:
	default:
		return scope{kind: rcmgr.KindSubnet}, nil // a gate
	}
	all := t.members[group]
	if all == nil {
		all = make(map[string]*member)
		t.members[group] = all
	}
	m := all[name]
	if m == nil {
		m = new(member)
		if e.Type != rcmgr.TraceDestroyScopeEvt {
			all[name] = m
		}
	}
	return scope{kind: kind}, m
}

func (t *timeline) track(s scope) *track {
	tr := t.scopes[s]
	if tr == nil {
		tr = new(track)
		tr.slices = make([]amounts, t.slice, mostSlices+1)
		t.scopes[s] = tr
		tr.slices = append(tr.slices, amounts{})
	}
	return tr
}

// advance begins the slice that a time is in. Each scope begins it with what it holds.
func (t *timeline) advance(at time.Time) {
	for {
		n := int(at.Sub(t.from) / t.width)
		if n <= t.slice {
			return // the events of one instant may be a little out of order
		}
		if n >= mostSlices {
			t.fold()
			continue
		}
		for s, tr := range t.scopes {
			holds := tr.now
			if s.kind >= rcmgr.KindService && s.name == "" {
				holds = t.fullest(s.kind)
			}
			for len(tr.slices) <= n {
				tr.slices = append(tr.slices, holds)
			}
		}
		t.slice = n
		return
	}
}

// fold joins every two slices into one.
func (t *timeline) fold() {
	t.width *= 2
	t.slice /= 2
	for _, tr := range t.scopes {
		for i := range tr.slices {
			if i%2 == 0 {
				tr.slices[i/2] = tr.slices[i]
				continue
			}
			for d := range numDims {
				tr.slices[i/2][d] = max(tr.slices[i/2][d], tr.slices[i][d])
			}
		}
		tr.slices = tr.slices[:(len(tr.slices)+1)/2]
	}
}

// fullest returns the most that any member of a class holds.
func (t *timeline) fullest(k rcmgr.Kind) (most amounts) {
	for group, all := range t.members {
		if group.kind != k {
			continue
		}
		for _, m := range all {
			for d := range numDims {
				most[d] = max(most[d], m.now[d])
			}
		}
	}
	return most
}

// raise records what a scope, or a member of a class, holds now.
func (t *timeline) raise(s scope, tr *track, now *amounts, e *replay.Event) {
	in := &tr.slices[t.slice]
	for d := range numDims {
		in[d] = max(in[d], now[d])
		if now[d] <= tr.of[d].peak {
			continue
		}
		of := &tr.of[d]
		of.peak, of.at = now[d], e.Time
		switch group := (scope{kind: rcmgr.KindPeer}); {
		case s.kind == rcmgr.KindService:
			t.count(tr, d, scope{rcmgr.KindServicePeer, s.name})
		case s.kind == rcmgr.KindProtocol:
			t.count(tr, d, scope{rcmgr.KindProtocolPeer, s.name})
		case s.kind == rcmgr.KindSystem:
			t.count(tr, d, group)
		case e.Scope.Peer != "": // a peer, or its part of a service or protocol
			of.top, of.topHeld = strings.TrimPrefix(e.Name, "peer:"), now[d]
			if s.kind == rcmgr.KindPeer {
				of.top = "peer:" + e.Scope.Peer
			}
		}
	}
}

// count counts the holders of what is held now. While a scope fills, it does so only each time
// the value has grown by a fiftieth.
func (t *timeline) count(tr *track, d dim, group scope) {
	of := &tr.of[d]
	if of.peak <= tr.looked[d]+tr.looked[d]/50 && of.holders > 0 {
		return
	}
	tr.looked[d] = of.peak
	of.holders, of.top, of.topHeld = 0, "", 0
	for name, m := range t.members[group] {
		if m.now[d] > 0 {
			of.holders++
		}
		if m.now[d] > of.topHeld || m.now[d] == of.topHeld && m.now[d] > 0 && name < of.top {
			of.top, of.topHeld = name, m.now[d]
		}
	}
	if of.top != "" {
		of.top = "peer:" + of.top
	}
}

// end completes the last slice, and counts the members that have held much.
func (t *timeline) end(until time.Time) {
	t.advance(until)
	for s, tr := range t.scopes {
		if s.kind != rcmgr.KindPeer && s.kind != rcmgr.KindServicePeer && s.kind != rcmgr.KindProtocolPeer {
			continue
		}
		for group, all := range t.members {
			if group.kind != s.kind {
				continue
			}
			for _, m := range all {
				for d := range numDims {
					if of := &tr.of[d]; of.peak > 0 && 2*m.peak[d] >= of.peak {
						of.holders++
					}
				}
			}
		}
	}
}
