package rcmgr

// What the gates keep of subnets: a record for each that has connections or has
// lately taken tokens, on every level, linked to the wider one around it. All
// records of an address are under one lock; everything is checked before
// anything is counted.
//
//	subnet /56 ──up──▶ subnet /48        a stripe has the records of many /48s
//	subnet /56 ──up───────┘              a named network has a stripe of its own

import (
	"maps"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// subnet is what is kept of one subnet or named network. It is guarded by the
// lock of its stripe. A record that has gone from its stripe is used again for
// another subnet; who took a token there and nothing else may still hold on to it,
// and knows by life that it has gone.
type subnet struct {
	in    *subnetStripe
	level *level
	key   subnetKey
	up    *subnet // the wider one around it, or nil

	conns  int64 // connections that count here, if any level limits them
	inner  int   // records whose up is this one
	fullAt int64 // when its bucket will be full, see bucketLimit
	life   uint32
	queued bool // it stands in the queue of buckets to look at

	// told is what was last refused here, for the next that is refused.
	told *LimitError
	// heir counts the same connections at the gates that took over, see gateswap.go.
	heir *subnet
}

// prefix gives the subnet as people know it.
func (sub *subnet) prefix() netip.Prefix { return sub.key.prefix(sub.level.bits) }

// subnetStripe has the records under one lock, on a cache line of its own.
type subnetStripe struct {
	mu struct {
		sync.Mutex
		levels []subnetLevel // by id
		// latest is the latest time seen. Callers read the clock before they get
		// the lock: to one that was overtaken, tokens taken later would look as
		// if they were owed.
		latest int64

		spare []*subnet // records that have gone, for the next subnets

		busy, owing int // records with connections that are limited; that are queued
		refusals    [2]dimCounts
		remarks     [2]*remarks // what the log will say; see gateKinds
	}
	_ [56]byte
}

// gateKinds are the kinds of refusals of the gates, in the order in which
// stripes keep them.
var gateKinds = [2]Kind{KindSubnet, KindRate}

// subnetLevel has the records of one level, those of one stripe.
type subnetLevel struct {
	records map[subnetKey]*subnet
	peak    int // the most records since the map was made
	// due holds every record whose bucket may not be full once, with the time at
	// which to look if it is. That is always one interval after it was put there,
	// so the queue is in order without sorting; and as every token taken delays
	// a bucket by one interval, there is at most one look for every token.
	due dueQueue
}

// subnets keeps the records. Its methods are safe for concurrent use; its locks
// are never held together with others (I8), and those of named networks come
// before those of levels.
type subnets struct {
	*partition
	// now gives the time as the buckets know it: in nanoseconds since they were
	// made. It is read only where there are tokens.
	now     func() int64
	a, b    uint64 // secret: they choose the stripe
	stripes [gateStripes]subnetStripe
	named   []*subnet // networks with a limit, each in a stripe of its own
	// retired: others have taken over (gateswap.go). It is written under all locks.
	retired bool
	// noting: what is refused is noted for the log. quiet: it is not even told.
	noting, quiet bool
}

func newSubnets(conns subnetConfig, rates rateConfig) (*subnets, error) {
	p, err := newPartition(conns, rates)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	s := &subnets{partition: p, a: rand.Uint64(), b: rand.Uint64(),
		now: func() int64 { return int64(time.Since(start)) }} // by the monotonic clock
	for i := range s.stripes {
		s.stripes[i].mu.levels = make([]subnetLevel, len(p.levels[ipv4])+len(p.levels[ipv6]))
	}
	seen := make(map[*subnet]bool)
	for _, n := range p.networks.All() {
		for _, sub := range []*subnet{n.conns, n.tokens} {
			if sub != nil && !seen[sub] {
				seen[sub] = true
				s.named = append(s.named, sub)
			}
		}
	}
	return s, nil
}

// each calls f with every stripe.
func (s *subnets) each(f func(*subnetStripe)) {
	for i := range s.stripes {
		f(&s.stripes[i])
	}
	for _, sub := range s.named {
		f(sub.in)
	}
}

// stripeOf gives the stripe that has all records of an address: that of its
// widest subnet. The secret keeps strangers from choosing addresses that all
// meet in one.
func (s *subnets) stripeOf(k subnetKey, levels []level) *subnetStripe {
	widest := k.cut(levels[len(levels)-1].host)
	hi, lo := bits.Mul64(widest.hi^s.a, widest.lo^s.b)
	const spread = 0x9e3779b97f4a7c15 // 2⁶⁴ by the golden ratio: mixes the bits once more
	return &s.stripes[(hi^lo)*spread>>32%gateStripes]
}

// gatePass is what an address was given. The zero value is nothing.
type gatePass struct {
	conns  *subnet // the connection counts here and in all around it
	tokens *subnet // a token was taken here and from all around it
	life   uint32  // that tokens had then
}

// enter gives a normalised address a place for a connection and a token, or
// neither: then it tells which subnet has none left, as an error unless the
// subnets are quiet or have retired. An invalid address is in no subnet and always fits. d is
// what will be refused: inbound connections, or outbound ones.
func (s *subnets) enter(addr netip.Addr, d dim) (p gatePass, why *LimitError, ok bool) {
	if !addr.IsValid() {
		return gatePass{}, nil, true
	}
	n, _ := s.networks.Lookup(addr)
	if n.free {
		return gatePass{}, nil, true
	}
	f := familyOf(addr)
	w := passage{namedNet: n, levels: s.levels[f], key: keyOf(addr),
		counts: !n.forConns && s.counted[f], takes: !n.forTokens && s.taken[f]}
	at := int64(0)
	if w.takes || w.tokens != nil {
		at = s.now()
	}
	if w.conns != nil {
		w.conns.in.mu.Lock()
		defer w.conns.in.mu.Unlock()
	}
	if w.tokens != nil {
		w.tokens.in.mu.Lock()
		defer w.tokens.in.mu.Unlock()
		w.tokens.in.reachedLocked(at)
	}
	if w.counts || w.takes {
		st := s.stripeOf(w.key, w.levels)
		st.mu.Lock()
		defer st.mu.Unlock()
		w.beginLocked(st, at)
	}
	if s.retired {
		return gatePass{}, nil, false
	}
	if full, k := w.fullLocked(); full != nil {
		return gatePass{}, s.refuseLocked(full, k, d), false
	}
	return w.takeLocked(), nil, true
}

// passage is how one address goes through the gate.
type passage struct {
	namedNet         // the network that it is in, if any
	levels   []level // the narrowest first
	key      subnetKey
	// Whether connections and tokens are counted on the levels.
	counts, takes bool

	in    *subnetStripe // of the levels
	known *subnet       // the record of the narrowest subnet that has one
	fresh []level       // those without a record, all narrower
}

// beginLocked finds what is known.
func (w *passage) beginLocked(st *subnetStripe, at int64) {
	if w.takes {
		st.reachedLocked(at)
		// Two looks for each token keep ahead of the one that each will need.
		st.forgetLocked(2)
	}
	w.in, w.fresh = st, w.levels
	for i := range w.levels {
		l := &w.levels[i]
		if known := st.mu.levels[l.id].records[w.key.cut(l.host)]; known != nil {
			w.known, w.fresh = known, w.levels[:i]
			return
		}
	}
}

// fullLocked gives the first that has no room, or no token, and the gate that it
// is about: connections before tokens, and narrow subnets before wide ones.
func (w *passage) fullLocked() (*subnet, Kind) {
	if w.conns != nil && w.conns.fullLocked() {
		return w.conns, KindSubnet
	}
	if w.counts {
		if full := w.firstLocked((*subnet).fullLocked); full != nil {
			return full, KindSubnet
		}
	}
	if w.tokens != nil && w.tokens.emptyLocked() {
		return w.tokens, KindRate
	}
	if w.takes {
		if empty := w.firstLocked((*subnet).emptyLocked); empty != nil {
			return empty, KindRate
		}
	}
	return nil, 0
}

// firstLocked gives the first subnet on the levels that something is true of. One
// without a record is as a new one would be.
func (w *passage) firstLocked(is func(*subnet) bool) *subnet {
	for i := range w.fresh {
		l := &w.fresh[i]
		if l.conns > 0 && l.tokens.capacity >= l.tokens.interval {
			continue // room for one at least
		}
		if sub := (&subnet{in: w.in, level: l, key: w.key.cut(l.host)}); is(sub) {
			return sub
		}
	}
	for sub := w.known; sub != nil; sub = sub.up {
		if is(sub) {
			return sub
		}
	}
	return nil
}

func (sub *subnet) fullLocked() bool { return sub.conns >= sub.level.conns }

func (sub *subnet) emptyLocked() bool {
	_, ok := sub.level.tokens.take(sub.fullAt, sub.in.mu.latest)
	return !ok
}

// takeLocked takes a place and a token everywhere; there is one.
func (w *passage) takeLocked() (p gatePass) {
	if w.conns != nil {
		w.conns.countLocked(1)
		p.conns = w.conns
	}
	if w.tokens != nil {
		w.tokens.fullAt, _ = w.tokens.level.tokens.take(w.tokens.fullAt, w.tokens.in.mu.latest)
		p.tokens, p.life = w.tokens, w.tokens.life
	}
	for i := range w.fresh {
		l := &w.fresh[len(w.fresh)-1-i]
		w.known = w.in.addLocked(l, w.key.cut(l.host), w.known)
	}
	if w.counts {
		p.conns = w.known
	}
	for sub := w.known; sub != nil; sub = sub.up {
		if w.counts {
			sub.countLocked(1)
		}
		if w.takes && !sub.level.tokens.unlimited() {
			sub.takeLocked()
			if p.tokens == nil {
				p.tokens, p.life = sub, sub.life
			}
		}
	}
	w.known.dropLocked() // where nothing was counted or taken
	return p
}

func (sub *subnet) countLocked(n int64) {
	before := sub.conns
	sub.conns += n
	if sub.level.conns != noConnLimit && (before == 0) != (sub.conns == 0) {
		sub.in.mu.busy += int(n)
	}
}

func (sub *subnet) takeLocked() {
	l, mu := sub.level, &sub.in.mu
	sub.fullAt, _ = l.tokens.take(sub.fullAt, mu.latest)
	if !sub.queued {
		sub.queued = true
		mu.owing++
		mu.levels[l.id].due.push(dueSubnet{sub, mu.latest + l.tokens.interval})
	}
}

// leave ends a connection that counts here.
func (sub *subnet) leave() {
	sub.in.mu.Lock()
	heir := sub.heir
	for at := sub; at != nil; at = at.up {
		at.countLocked(-1)
	}
	sub.dropLocked()
	sub.in.mu.Unlock()
	if heir != nil {
		heir.leave()
	}
}

// undo takes back what an address was given, because something else refused it. A
// token that comes back to a bucket that is gone, and so has been full, is lost, and
// with it what was taken around it: there was no room for it.
func (p gatePass) undo() {
	if p.conns != nil {
		p.conns.leave()
	}
	if p.tokens == nil {
		return
	}
	p.tokens.in.mu.Lock()
	defer p.tokens.in.mu.Unlock()
	if p.tokens.life != p.life {
		return
	}
	for at := p.tokens; at != nil; at = at.up {
		at.fullAt -= at.level.tokens.interval
	}
}

// addLocked makes a record, of a subnet inside up.
func (st *subnetStripe) addLocked(l *level, k subnetKey, up *subnet) *subnet {
	at := &st.mu.levels[l.id]
	if at.records == nil {
		at.records = make(map[subnetKey]*subnet)
	}
	sub := st.newLocked()
	sub.in, sub.level, sub.key, sub.up = st, l, k, up
	at.records[k] = sub
	at.peak = max(at.peak, len(at.records))
	if up != nil {
		up.inner++
	}
	return sub
}

// spareSubnets bounds the records that a stripe keeps for the next subnets: those
// who come and go make nothing new, and a crowd leaves nothing behind.
const spareSubnets = 32

func (st *subnetStripe) newLocked() *subnet {
	last := len(st.mu.spare) - 1
	if last < 0 {
		return new(subnet)
	}
	sub := st.mu.spare[last]
	st.mu.spare = st.mu.spare[:last]
	return sub
}

// dropLocked forgets the record if nothing is kept in it, and then those around
// it. Named networks stay.
func (sub *subnet) dropLocked() {
	for sub != nil && sub.conns == 0 && sub.inner == 0 && !sub.queued && sub.in.mu.levels != nil {
		st, up := sub.in, sub.up
		st.mu.levels[sub.level.id].drop(sub.key)
		if *sub = (subnet{in: st, life: sub.life + 1}); len(st.mu.spare) < spareSubnets {
			st.mu.spare = append(st.mu.spare, sub)
		}
		if sub = up; sub != nil {
			sub.inner--
		}
	}
}

// drop moves the rest to a smaller map once seven eighths of it are gone: a Go map
// keeps the room of its best days for ever. Each record then pays for at most a
// part of a move.
func (l *subnetLevel) drop(k subnetKey) {
	delete(l.records, k)
	if l.peak < 128 || len(l.records) > l.peak/8 {
		return
	}
	kept := make(map[subnetKey]*subnet, len(l.records))
	maps.Copy(kept, l.records)
	l.records, l.peak = kept, len(kept)
}

func (st *subnetStripe) reachedLocked(at int64) { st.mu.latest = max(st.mu.latest, at) }

// forgetLocked looks at no more than a number of buckets on each level, and
// forgets those that are full. It tells if there may be more to look at.
func (st *subnetStripe) forgetLocked(most int) (more bool) {
	at := st.mu.latest
	for i := range st.mu.levels {
		l := &st.mu.levels[i]
		looked := 0
		for ; looked < most; looked++ {
			sub := l.due.popUntil(at)
			if sub == nil {
				break
			}
			if sub.fullAt > at {
				l.due.push(dueSubnet{sub, at + sub.level.tokens.interval})
				continue
			}
			sub.queued = false
			st.mu.owing--
			sub.dropLocked()
		}
		more = more || looked == most
	}
	return more
}

// forget forgets the buckets that are full, a bounded number under each lock.
// enter does the same as it goes; this is for when nobody connects any more.
func (s *subnets) forget(at int64) {
	const batch = 256
	for i := range s.stripes {
		st := &s.stripes[i]
		for more := true; more; {
			st.mu.Lock()
			st.reachedLocked(at)
			more = st.forgetLocked(batch)
			st.mu.Unlock()
		}
	}
}

// refuse counts and tells a refusal by something else, of one address.
func (s *subnets) refuse(addr netip.Addr, k Kind, d dim) *LimitError {
	sub := subnet{in: &s.stripes[0], level: &level{bits: addr.BitLen()}, key: keyOf(addr)}
	sub.in.mu.Lock()
	defer sub.in.mu.Unlock()
	return s.refuseLocked(&sub, k, d)
}

// refuseLocked counts a refusal, and tells it. What was last told of the subnet is
// told again: it has not changed, and a flood makes nothing new.
func (s *subnets) refuseLocked(sub *subnet, k Kind, d dim) *LimitError {
	if s.quiet {
		return nil
	}
	e := sub.told
	if e == nil || e.why.scope.kind != k || e.why.d != d {
		e = &LimitError{priority: network.ReservationPriorityAlways}
		e.why = refusal{scope: scopeName{kind: k, text: sub.prefix().String()}, d: d, asked: 1, cause: CauseRate}
		if k == KindSubnet {
			e.why.cause, e.why.current, e.why.limit = CauseSubnet, sub.level.conns, sub.level.conns
		}
		e.asked = e.why.scope
		sub.told = e
	}
	mu := &sub.in.mu
	gate := k - KindSubnet
	mu.refusals[gate][d]++
	if s.noting {
		if mu.remarks[gate] == nil {
			mu.remarks[gate] = new(remarks)
		}
		mu.remarks[gate][d].note(&noted{refusal: e.why})
	}
	return e
}

// giveRemarks is stripe.giveRemarks for the gates.
func (s *subnets) giveRemarks(count *[numKinds]dimCounts, said *[numKinds]remarks) {
	s.each(func(st *subnetStripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		for i, k := range gateKinds {
			count[k].add(&st.mu.refusals[i])
			said[k].add(st.mu.remarks[i])
			st.mu.remarks[i] = nil
		}
	})
}

// addRefusals adds what the gates have refused to counts by kind.
func (s *subnets) addRefusals(to *[numKinds]dimCounts) {
	s.each(func(st *subnetStripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		for i, k := range gateKinds {
			to[k].add(&st.mu.refusals[i])
		}
	})
}

// dueQueue is a first-in-first-out queue of subnets and the times at which they
// are due. It is a list of blocks, so that nothing is ever moved and the memory
// of a flood goes with the flood.
type dueQueue struct {
	head, tail *dueBlock
}

type dueBlock struct {
	items    [31]dueSubnet
	from, to int // those in use
	next     *dueBlock
}

type dueSubnet struct {
	*subnet
	at int64
}

func (q *dueQueue) push(d dueSubnet) {
	switch {
	case q.tail == nil:
		q.tail = new(dueBlock)
		q.head = q.tail
	case q.tail.to == len(q.tail.items):
		q.tail.next = new(dueBlock)
		q.tail = q.tail.next
	}
	q.tail.items[q.tail.to] = d
	q.tail.to++
}

// popUntil takes the first subnet, if it is due by a time.
func (q *dueQueue) popUntil(at int64) *subnet {
	b := q.head
	if b == nil || b.items[b.from].at > at {
		return nil
	}
	sub := b.items[b.from].subnet
	b.items[b.from] = dueSubnet{}
	b.from++
	if b.from == b.to {
		q.head = b.next
		if q.head == nil {
			q.tail = nil
		}
	}
	return sub
}
