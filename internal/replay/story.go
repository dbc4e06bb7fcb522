package replay

// From events to requests. An event says what one scope holds, but not for whom: when a
// connection gets its peer, only the peer has an event. But the end of a connection or
// stream comes right after events of the scopes that it leaves, so its peer, protocol and
// service are known once the story has been read to its end.

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// deed is one kind of request.
type deed uint8

const (
	openConn deed = iota
	openStream
	openSpan // a span of a shared scope
	setPeer
	setProtocol
	setService
	reserve
	release
	done
)

// step is one request of a trace.
type step struct {
	at       time.Time
	do       deed
	it       *item  // nil if the step is to be dropped
	name     string // of the peer, protocol or service; of the scope that refused memory
	bytes    int64
	priority uint8
	refused  bool // by the manager that wrote the trace
}

// item is a connection, a stream, or a span of a shared scope.
type item struct {
	class       string // "conn", "stream" or "span"
	dir         network.Direction
	fd          bool
	allowlisted bool
	scope       Class // the scope of a span
	peer        string
	protocol    string
	service     string // peer, protocol and service are those at its end, as far as known

	open     bool
	from     time.Time
	placed   time.Time // when it got its peer or protocol
	until    time.Time
	end      int  // the number of the step that ends it
	attached bool // has its peer or protocol
	served   bool // has its service
}

// Story has all requests of a trace, in order.
type Story struct {
	steps       []*step
	from, until time.Time
	events      int
	dropped     int64 // events that the writer of the trace left out
	cut         bool  // the trace ends in the middle of an event
	unclear     int   // steps whose item is unknown
	gated       int   // connections that gates refused

	items map[string]*item // items that are not closed, by name
	// Events of scopes above an item that is not known yet.
	joined  waiting // streams that peers got
	left    waiting // connections and streams that a peer, protocol or service lost
	blocked waiting // connections and streams that were refused
	// The last connection that was refused. go-libp2p's manager tries it again in the
	// allowlisted scopes, under the next number.
	lastRefused *step
	lastNumber  int
}

// Read reads a trace, which may be compressed. An error names the line.
func Read(r io.Reader) (*Story, error) { return ReadEach(r, func(*Event) {}) }

// ReadEach is Read, and calls f with each event.
func ReadEach(r io.Reader, f func(*Event)) (*Story, error) {
	s := &Story{items: make(map[string]*item)}
	cut, err := readEvents(r, func(e *Event) {
		s.take(e)
		f(e)
	})
	if err != nil {
		return nil, err
	}
	s.cut = cut
	s.items, s.joined, s.left, s.blocked = nil, nil, nil, nil
	s.resolve()
	return s, nil
}

// waiting has events whose meaning depends on later ones.
type waiting []*Event

// mostWaiting is the most events in waiting. Older ones are dropped, because no item
// claims them.
const mostWaiting = 1024

func (w *waiting) push(e *Event) {
	if len(*w) >= mostWaiting {
		*w = slices.Delete(*w, 0, 1)
	}
	*w = append(*w, e)
}

// pull removes and returns the oldest event that meant accepts, or returns nil.
func (w *waiting) pull(meant func(*Event) bool) *Event {
	i := slices.IndexFunc(*w, meant)
	if i < 0 {
		return nil
	}
	e := (*w)[i]
	*w = slices.Delete(*w, i, i+1)
	return e
}

func (s *Story) add(e *Event, st step) *step {
	st.at = e.Time
	s.steps = append(s.steps, &st)
	return &st
}

func (s *Story) take(e *Event) {
	s.events++
	s.until = e.Time
	if s.from.IsZero() {
		s.from = e.Time
	}
	switch deep := e.depth(); {
	case e.Type == rcmgr.TraceDroppedEvt:
		s.dropped += e.Delta
	case deep > 1, deep == 1 && isLeaf(&e.Scope):
		// Its owner has an event of its own for everything except a refusal.
		if e.Type == rcmgr.TraceBlockReserveMemoryEvt {
			s.takeMemory(e, s.items[e.owner()])
		}
	case deep == 1:
		s.takeSpan(e)
	case isLeaf(&e.Scope):
		s.takeLeaf(e)
	default:
		s.takeShared(e)
	}
}

func isLeaf(c *Class) bool { return c.Class == "conn" || c.Class == "stream" }

func (s *Story) takeSpan(e *Event) {
	it := s.items[e.Name]
	switch {
	case e.Type == rcmgr.TraceCreateScopeEvt:
		it = &item{class: "span", scope: e.Scope, open: true, from: e.Time}
		it.scope.trim()
		s.items[e.Name] = it
		s.add(e, step{do: openSpan, it: it})
	case it == nil:
	case e.Type == rcmgr.TraceDestroyScopeEvt:
		s.end(e, it)
	default:
		s.takeMemory(e, it)
	}
}

// trim removes the numbers of a span from the name of its scope, where go-libp2p's traces
// have them.
func (c *Class) trim() {
	for _, name := range [...]*string{&c.Class, &c.Peer, &c.Service, &c.Protocol} {
		*name = strings.TrimSuffix(*name, spanEnd.FindString(*name))
	}
}

func (s *Story) takeLeaf(e *Event) {
	it := s.items[e.Name]
	switch e.Type {
	case rcmgr.TraceCreateScopeEvt:
		s.items[e.Name] = &item{class: e.Scope.Class, from: e.Time}
	case rcmgr.TraceAddConnEvt, rcmgr.TraceAddStreamEvt:
		if it != nil && !it.open {
			s.opened(e, it)
		}
	case rcmgr.TraceBlockAddConnEvt, rcmgr.TraceBlockAddStreamEvt:
		s.blocked.push(e)
	case rcmgr.TraceDestroyScopeEvt:
		switch {
		case it == nil:
		case it.open:
			s.end(e, it)
		default:
			s.notOpened(e, it)
		}
	default:
		s.takeMemory(e, it)
	}
}

// opened takes the event of a connection or stream that was opened. It comes after the
// events of the scopes above.
func (s *Story) opened(e *Event, it *item) {
	it.open, it.dir, it.fd = true, e.dir(), e.Delta != 0
	if it.class == "conn" {
		number, _ := strconv.Atoi(e.Scope.Conn)
		it.allowlisted = s.pullJoined("allowlistedTransient", it.dir) != nil
		if it.allowlisted && s.lastRefused != nil && s.lastNumber == number-1 {
			s.lastRefused.it = nil // this is its second attempt
		}
		s.add(e, step{do: openConn, it: it})
		return
	}
	if above := s.pullJoined("peer", it.dir); above != nil {
		it.peer = above.Scope.Peer
	}
	s.add(e, step{do: openStream, it: it})
}

func (s *Story) pullJoined(class string, dir network.Direction) *Event {
	return s.joined.pull(func(j *Event) bool { return j.Scope.Class == class && j.dir() == dir })
}

// notOpened takes the end of a connection or stream that was not opened. The event of the
// refusal may come earlier or later than its creation, but always before its end.
func (s *Story) notOpened(e *Event, it *item) {
	delete(s.items, e.Name)
	what := rcmgr.TraceBlockAddConnEvt
	if it.class == "stream" {
		what = rcmgr.TraceBlockAddStreamEvt
	}
	why := s.blocked.pull(func(b *Event) bool { return b.Type == what })
	if why == nil {
		return // it was not refused by a limit
	}
	if k := why.Scope.Class; k == "subnet" || k == "rate" || k == "process" {
		s.gated++
		return
	}
	it.dir, it.fd = why.dir(), why.Delta != 0
	if it.class == "conn" {
		s.lastRefused = s.add(e, step{do: openConn, it: it, refused: true})
		s.lastNumber, _ = strconv.Atoi(e.Scope.Conn)
		return
	}
	it.peer = why.Scope.Peer
	if above := s.pullJoined("peer", it.dir); above != nil {
		it.peer = above.Scope.Peer
	}
	s.add(e, step{do: openStream, it: it, refused: true})
}

func (s *Story) takeMemory(e *Event, it *item) {
	if it == nil || !it.open {
		return // its own cost, which the other limits define anew
	}
	switch e.Type {
	case rcmgr.TraceReserveMemoryEvt:
		s.add(e, step{do: reserve, it: it, bytes: e.Delta, priority: e.Priority})
	case rcmgr.TraceReleaseMemoryEvt:
		s.add(e, step{do: release, it: it, bytes: -e.Delta})
	case rcmgr.TraceBlockReserveMemoryEvt:
		s.add(e, step{do: reserve, it: it, bytes: e.Delta, priority: e.Priority, refused: true})
	}
}

// end takes the end of an item. It comes after the events of the scopes that it leaves.
func (s *Story) end(e *Event, it *item) {
	delete(s.items, e.Name)
	it.until = e.Time
	switch it.class {
	case "conn":
		if l := s.left.pull(func(l *Event) bool {
			return l.Scope.Class == "peer" && l.dir() == it.dir && (l.Delta != 0) == it.fd
		}); l != nil {
			it.peer = l.Scope.Peer
		}
	case "stream":
		of := func(class string) *Event {
			return s.left.pull(func(l *Event) bool {
				return l.Scope.Class == class && l.Scope.Peer == it.peer && l.dir() == it.dir
			})
		}
		if l := of("protocol-peer"); l != nil {
			it.protocol = l.Scope.Protocol
		}
		if l := of("service-peer"); l != nil {
			it.service = l.Scope.Service
		}
	}
	s.add(e, step{do: done, it: it})
}

// takeShared takes the event of a shared scope.
func (s *Story) takeShared(e *Event) {
	c := e.Scope.Class
	switch e.Type {
	case rcmgr.TraceAddConnEvt:
		switch c {
		case "peer":
			s.add(e, step{do: setPeer, it: e.like("conn"), name: e.Scope.Peer})
		case "allowlistedTransient":
			s.joined.push(e)
		}
	case rcmgr.TraceAddStreamEvt:
		switch c {
		case "peer":
			s.joined.push(e)
		case "protocol-peer":
			s.add(e, step{do: setProtocol, it: e.like("stream"), name: e.Scope.Protocol})
		case "service-peer":
			s.add(e, step{do: setService, it: e.like("stream"), name: e.Scope.Service})
		}
	case rcmgr.TraceRemoveConnEvt:
		if c == "peer" {
			s.left.push(e)
		}
	case rcmgr.TraceRemoveStreamEvt:
		if c == "protocol-peer" || c == "service-peer" {
			s.left.push(e)
		}
	case rcmgr.TraceBlockAddConnEvt:
		if c == "peer" {
			s.add(e, step{do: setPeer, it: e.like("conn"), name: e.Scope.Peer, refused: true})
		} else {
			s.blocked.push(e)
		}
	case rcmgr.TraceBlockAddStreamEvt:
		switch c {
		case "protocol", "protocol-peer":
			s.add(e, step{do: setProtocol, it: e.like("stream"), name: e.Scope.Protocol, refused: true})
		case "service", "service-peer":
			s.add(e, step{do: setService, it: e.like("stream"), name: e.Scope.Service, refused: true})
		default:
			s.blocked.push(e)
		}
	case rcmgr.TraceBlockReserveMemoryEvt:
		s.add(e, step{do: reserve, it: &item{class: "scope", scope: e.Scope}, bytes: e.Delta, priority: e.Priority, refused: true})
	}
}

// like returns what is known of the item that an event above is about, until resolve
// finds it.
func (e *Event) like(class string) *item {
	return &item{class: class, dir: e.dir(), fd: e.Delta != 0, peer: e.Scope.Peer}
}

// kin describes the items that an event above may be about. Which of them it is makes no
// difference to any limits.
type kin struct {
	do   deed
	dir  network.Direction
	fd   bool
	peer string
	name string // of the peer, protocol or service; "" if it is unknown
}

// resolver finds the items of steps.
type resolver struct {
	free    map[kin][]*item // items that have not moved yet, in the order of their ends
	refused []*step         // moves whose item ends next
}

// resolve sets the item of each move, and drops steps without one.
func (s *Story) resolve() {
	for i, st := range s.steps {
		if st.it != nil {
			st.it.end = math.MaxInt
			if st.do == done {
				st.it.end = i
			}
		}
	}
	r := resolver{free: make(map[kin][]*item)}
	for i, st := range s.steps {
		switch st.do {
		case openConn:
			if st.it != nil && !st.refused {
				r.offer(kin{do: setPeer, dir: st.it.dir, fd: st.it.fd, name: st.it.peer}, st.it)
			}
		case openStream:
			if !st.refused {
				r.offer(kin{do: setProtocol, dir: st.it.dir, peer: st.it.peer, name: st.it.protocol}, st.it)
			}
		case setPeer, setProtocol, setService:
			if st.refused {
				r.refused = append(r.refused, st)
				continue
			}
			r.move(st, i)
		case done:
			r.ended(st)
		}
	}
	s.steps = slices.DeleteFunc(s.steps, func(st *step) bool {
		switch {
		case st.it == nil:
			return true
		case st.do >= setPeer && st.do <= setService && !st.it.open:
			s.unclear++
			return true
		}
		return false
	})
}

func (r *resolver) offer(k kin, it *item) {
	if k.name == "" && it.end < math.MaxInt {
		return // it never moved
	}
	list := r.free[k]
	at, _ := slices.BinarySearchFunc(list, it.end, func(other *item, end int) int { return cmp.Compare(other.end, end+1) })
	r.free[k] = slices.Insert(list, at, it)
}

// move finds the item of a move, which is step i.
func (r *resolver) move(st *step, i int) {
	like := st.it
	k := kin{do: st.do, dir: like.dir, name: st.name}
	if st.do == setPeer {
		k.fd = like.fd
	} else {
		k.peer = like.peer
	}
	it := r.pull(k, i)
	if it == nil {
		k.name = "" // try an item that is still open at the end
		it = r.pull(k, i)
	}
	if it == nil {
		return
	}
	st.it = it
	if st.do == setService {
		it.served = true
		return
	}
	it.attached, it.placed = true, st.at
	if st.do == setPeer {
		it.peer = st.name
		return
	}
	it.protocol = st.name
	r.offer(kin{do: setService, dir: it.dir, peer: it.peer, name: it.service}, it)
}

// pull removes and returns the item that ends first after step i. Of items that do not
// end, it takes the one that came last, because one that has not moved for long never
// will.
func (r *resolver) pull(k kin, i int) *item {
	list := r.free[k]
	for len(list) > 0 && list[0].end < i {
		list = list[1:]
	}
	if len(list) == 0 {
		delete(r.free, k)
		return nil
	}
	at := 0
	if list[0].end == math.MaxInt {
		at = len(list) - 1
	}
	it := list[at]
	r.free[k] = slices.Delete(list, at, at+1)
	return it
}

// ended gives an item that was never placed to a move that was refused, because an item
// is closed right after its move is refused.
func (r *resolver) ended(st *step) {
	it := st.it
	i := slices.IndexFunc(r.refused, func(m *step) bool {
		like := m.it
		switch {
		case like.class != it.class || like.dir != it.dir || like.peer != "" && m.do != setPeer && like.peer != it.peer:
			return false
		case m.do == setService:
			return it.attached && !it.served
		}
		return !it.attached && like.fd == it.fd
	})
	if i >= 0 {
		r.refused[i].it = it
		r.refused = slices.Delete(r.refused, i, i+1)
	}
}

// Describe writes a summary of the trace.
func (s *Story) Describe(out io.Writer) {
	fmt.Fprintf(out, "%s in %s, %s\n", text.Plural(s.events, "event"), s.until.Sub(s.from).Round(time.Millisecond), text.Plural(len(s.steps), "request"))
	for _, gap := range s.Gaps() {
		fmt.Fprintln(out, gap)
	}
}

// Time returns the times of the first and the last event.
func (s *Story) Time() (from, until time.Time) { return s.from, s.until }

// Requests returns the number of requests.
func (s *Story) Requests() int { return len(s.steps) }

// Gaps describes what is missing from the trace, one sentence for each reason.
func (s *Story) Gaps() (gaps []string) {
	if s.dropped > 0 {
		gaps = append(gaps, fmt.Sprintf("%s missing: the writer of the trace was too slow. What follows is not exact.", text.Plural(s.dropped, "event is", "events are")))
	}
	if s.cut {
		gaps = append(gaps, "The trace ends in the middle of an event; everything before was read.")
	}
	if s.gated > 0 {
		gaps = append(gaps, fmt.Sprintf("%s refused by gates, and left out.", text.Plural(s.gated, "connection was", "connections were")))
	}
	if s.unclear > 0 {
		gaps = append(gaps, fmt.Sprintf("%s could not be assigned to a connection or stream, and %s left out.",
			text.Plural(s.unclear, "request"), text.Noun(s.unclear, "was", "were")))
	}
	return gaps
}

// typical has the median times of items of one kind and direction.
type typical struct{ wait, life time.Duration }

// typicals returns the medians of a class by direction. If none of that kind has ended,
// its life is the length of the trace.
func (s *Story) typicals(class string) map[network.Direction]typical {
	waits, lives := make(map[network.Direction][]time.Duration), make(map[network.Direction][]time.Duration)
	for _, st := range s.steps {
		if it := st.it; st.do == done && it.class == class {
			lives[it.dir] = append(lives[it.dir], it.until.Sub(it.from))
			if it.attached {
				waits[it.dir] = append(waits[it.dir], it.placed.Sub(it.from))
			}
		}
	}
	all := make(map[network.Direction]typical)
	for _, dir := range [...]network.Direction{network.DirInbound, network.DirOutbound} {
		all[dir] = typical{median(waits[dir], 0), median(lives[dir], s.until.Sub(s.from))}
	}
	return all
}

func median[T cmp.Ordered](list []T, none T) T {
	if len(list) == 0 {
		return none
	}
	slices.Sort(list)
	return list[len(list)/2]
}
