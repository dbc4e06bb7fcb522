package rcmgr

// The log of refusals: what was refused in the last seconds, rolled up into one
// line for each kind of scope and limit, as Kubo's users know it. It is made from
// the counts that the stripes keep, so it misses nothing. What a line says
// besides, the last numbers and who stands out among the refused, is kept in the
// stripes, one name for each kind and limit: strangers can fill no map, and cause
// no line of their own.
//
// Nothing here runs unless something has been refused, but for one look at the
// counts in an interval.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// majority finds the name that has more than half of all votes, if there is
// one (Boyer and Moore's algorithm): votes is never more than the name has had.
type majority struct {
	name  scopeName
	votes uint64
}

func (m *majority) vote(name scopeName, n uint64) {
	switch {
	case m.name == name:
		m.votes += n
	case m.votes >= n:
		m.votes -= n
	default:
		m.name, m.votes = name, n-m.votes
	}
}

// remark is what the log says about refusals of one kind and limit.
type remark struct {
	told           bool
	current, limit int64 // of the last one
	cause          Cause
	worst          majority
}

// note notes a refusal that has happened a number of times.
func (r *remark) note(why *noted, times uint64) {
	r.told = true
	r.current, r.limit, r.cause = why.current, why.limit, why.cause
	r.worst.vote(why.concerned(), times)
}

// add takes in what another stripe has to say.
func (r *remark) add(o *remark) {
	if !o.told {
		return
	}
	r.told = true
	r.current, r.limit, r.cause = o.current, o.limit, o.cause
	r.worst.vote(o.worst.name, o.worst.votes)
}

// concerned returns the name that the log may have to name: that of the peer or subnet which
// holds too much, if one does; else, if the refusing scope is everybody's or a single
// connection or stream, that of the peer which asked; and otherwise that of the scope itself,
// not of a span of it.
func (why *noted) concerned() scopeName {
	if why.holder != nil {
		return *why.holder
	}
	if k := why.scope.kind; k <= KindAllowlistedTransient || k == KindConn || k == KindStream || k == KindProcess {
		return scopeName{kind: KindPeer, peer: why.asker}
	}
	name := *why.scope
	name.span, name.around = 0, ""
	return name
}

// remarks has what the log says of one kind, by what ran out.
type remarks [numDims]remark

// add takes in what others, which may be nil, have to say.
func (r *remarks) add(o *remarks) {
	if o != nil {
		for d := range o {
			r[d].add(&o[d])
		}
	}
}

// keepRemark keeps what the log will say about a refusal.
func keepRemark(to *[numKinds]*remarks, why *noted) {
	of := &to[why.scope.kind]
	if *of == nil {
		*of = new(remarks)
	}
	(*of)[why.d].note(why, 1)
}

// refusalLog writes the log of one manager.
type refusalLog struct {
	m     *Manager
	every time.Duration
	// What has been written already: of what was refused, and of what would have been.
	refused, would [numKinds]dimCounts
}

// saidRefusals is what the log has to say: how much in all, and what of the last.
type saidRefusals struct {
	counts [numKinds]dimCounts
	said   [numKinds]remarks
}

// take adds what has been counted, and takes over what was noted.
func (s *saidRefusals) take(counts *[numKinds]dimCounts, said *[numKinds]*remarks) {
	for k, of := range said {
		s.counts[k].add(&counts[k])
		s.said[k].add(of)
		said[k] = nil
	}
}

// write writes what was refused since the last time.
func (l *refusalLog) write() {
	var refused, would saidRefusals
	for i := range l.m.stripes {
		l.m.stripes[i].giveRemarks(&refused, &would)
	}
	l.m.gate().subnets.giveRemarks(&refused, &would)
	l.writeLines("Protected", &refused, &l.refused)
	l.writeLines("Would have protected", &would, &l.would)
}

func (l *refusalLog) writeLines(begin string, now *saidRefusals, logged *[numKinds]dimCounts) {
	for k := range now.counts {
		for d, n := range now.counts[k] {
			if times := n - logged[k][d]; times > 0 {
				l.writeLine(begin, Kind(k), dim(d), times, &now.said[k][d])
			}
		}
	}
	*logged = now.counts
}

// giveRemarks adds up what the stripe has counted, and hands over what it has
// kept for the log.
func (st *stripe) giveRemarks(refused, would *saidRefusals) {
	st.lock(false)
	defer st.unlock(false)
	if st.notes == nil {
		return
	}
	refused.take(&st.refusals, &st.remarks)
	if o := st.observed; o != nil {
		would.take(&o.counts, &o.remarks)
	}
}

func (l *refusalLog) writeLine(begin string, k Kind, d dim, times uint64, r *remark) {
	// Who has a tenth of all for certain is worth a name.
	worst, named := r.worst.name, r.worst.votes > 0 && r.worst.votes >= times/10
	if worst.kind == KindPeer && worst.peer == "" {
		named = false // nobody knows who asked
	}
	refuser := scopeName{kind: k}
	if named && r.worst.votes == times && (k == KindService || k == KindProtocol) {
		refuser = worst // all of them were its
	}
	e := LimitError{why: refusal{scope: &refuser, d: d}}
	var attrs []slog.Attr
	if k != KindRate {
		attrs = append(attrs, slog.Any("current", amountFor(k, d, r.current)), slog.Any("limit", amountFor(k, d, r.limit)))
	}
	if r.cause != CauseLimit {
		attrs = append(attrs, slog.String("cause", r.cause.String()))
	}
	if named {
		attrs = append(attrs, slog.String("worst", printable(worst.String())), slog.Uint64("worst_times", r.worst.votes))
	} else {
		worst = scopeName{kind: k}
	}
	attrs = append(attrs, slog.String("raise", limitKey(l.m.limits.Load(), l.m.gate(), k, d, &worst)))
	msg := fmt.Sprintf("%s from exceeding resource limits %d times: %q", begin, times, classOf(&refuser)+": "+e.what())
	log.LogAttrs(context.Background(), slog.LevelError, msg, attrs...)
}

// classOf gives a scope's name, or that of its kind where it has none of its own.
func classOf(n *scopeName) string {
	if n.text == "" {
		return n.kind.String()
	}
	return n.String()
}

// limitPlace says of a scope or gate which place of the configuration has its limit, as far
// as its name does not tell.
type limitPlace uint8

const (
	placeOfAll    limitPlace = iota // that of all peers, or subnets of one size, that are not named
	placeOfName                     // that of the peer or network by its name
	placeOfCaller                   // the program's own limiter of rates
)

// placeOf returns the place of the limit that refused, by the limits in force. Most peers
// that refuse have no name there, which a look at the limit tells. The stripe's lock is
// held.
func (st *stripe) placeOf(why *noted) limitPlace {
	if why.scope.kind != KindPeer || why.by != nil && why.by.ready == &st.engine.classes.peer {
		return placeOfAll
	}
	return st.engine.limits.Load().placeOfPeer(why.scope.peer)
}

func (b *limitBook) placeOfPeer(p peer.ID) limitPlace {
	if b.kinds[KindPeer].named[string(p)] != nil {
		return placeOfName
	}
	return placeOfAll
}

// placeOfSubnet is placeOfPeer for a subnet at a gate.
func (g *gate) placeOfSubnet(name *scopeName) limitPlace {
	named := false
	switch {
	case name.kind == KindSubnet:
		_, named = g.limits.Subnets.Networks[name.prefix()]
	case g.caller != nil:
		return placeOfCaller
	default:
		_, named = g.limits.Rate.Networks[name.prefix()]
	}
	if named {
		return placeOfName
	}
	return placeOfAll
}

// limitKey returns the place in the configuration of limits that says how much of d
// a scope may hold, by a book and gates; see configKey.
func limitKey(b *limitBook, g *gate, k Kind, d dim, which *scopeName) string {
	place := placeOfAll
	switch k {
	case KindPeer:
		place = b.placeOfPeer(which.peer)
	case KindSubnet, KindRate:
		place = g.placeOfSubnet(which)
	}
	return configKey(k, d, which, place)
}

// configKey returns the place in the configuration of limits that says how much of d
// a scope may hold: "System.ConnsInbound", "PeerDefault.Streams". Without more
// than a kind, it is the place for those that are not named.
func configKey(k Kind, d dim, which *scopeName, place limitPlace) string {
	named := func(scopes string) string {
		if which.text == "" {
			return scopes + "Default." + limitNames[d]
		}
		return scopes + "[" + strconv.Quote(which.text) + "]." + limitNames[d]
	}
	switch k {
	case KindService:
		return named("Service")
	case KindServicePeer:
		return named("ServicePeer")
	case KindProtocol:
		return named("Protocol")
	case KindProtocolPeer:
		return named("ProtocolPeer")
	case KindPeer:
		if place == placeOfName {
			return fmt.Sprintf("Peer[%q].%s", which.peer, limitNames[d])
		}
		return "PeerDefault." + limitNames[d]
	case KindSubnet:
		return gateKey("Gates.Subnets", which.prefix(), place)
	case KindRate:
		if place == placeOfCaller {
			return "WithConnRateLimiters"
		}
		return gateKey("Gates.Rate", which.prefix(), place)
	case KindProcess:
		return "WithMemoryPressure"
	}
	return [...]string{
		KindSystem: "System", KindTransient: "Transient",
		KindAllowlistedSystem: "AllowlistedSystem", KindAllowlistedTransient: "AllowlistedTransient",
		KindConn: "Conn", KindStream: "Stream",
	}[k] + "." + limitNames[d]
}

// gateKey returns the place of a prefix in what a configuration says about a gate:
// that of a network of its own, or that of all of its length.
func gateKey(path string, p netip.Prefix, place limitPlace) string {
	switch {
	case !p.IsValid():
		return path // nobody in particular
	case place == placeOfName:
		return fmt.Sprintf("%s.Networks[%q]", path, p)
	}
	return fmt.Sprintf("%s.%s[%q]", path, familyNames[familyOf(p.Addr())], strconv.Itoa(p.Bits()))
}

// tellRefusal logs one refusal with its numbers, for who debugs. It is called
// without locks, with what the caller gets.
func tellRefusal(err error) {
	ctx := context.Background()
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	var e *LimitError
	if !errors.As(err, &e) {
		return
	}
	log.LogAttrs(ctx, slog.LevelDebug, "refused", e.attrs()...)
}
