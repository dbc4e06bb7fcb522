package rcmgr

// What the gates keep of subnets: how many connections each has, and when its
// bucket of tokens will be full again. All records of an address, one on each
// level, are under one lock; everything is checked before anything is counted.
//
//	stripe 0    the records of many /48s, and of the /56s inside them (subnettable.go)
//	stripe 1    …
//	10.0.0.0/8  a named network has a stripe of its own

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// subnetStripe is a lock and the records under it, on cache lines of its own.
type subnetStripe struct {
	*partition
	named *subnet // a stripe for one named network alone; nil for one of the levels
	mu    struct {
		sync.Mutex
		own   subnetRecord // of the named network
		table subnetTable  // of the levels
		// latest is the latest time seen. Callers read the clock before they get
		// the lock: to one that was overtaken, tokens taken later would look as
		// if they were owed.
		latest int64

		busy, owing int // records with connections; with a bucket that may not be full
		*gateNotes
		// heir has taken over, see gateswap.go; nil while these are in force.
		heir *subnets
	}
	_ [40]byte
}

// gateNotes is what a stripe has refused. It is nil until something is.
type gateNotes struct {
	// What was refused, and what would have been, by gateKinds.
	refused, would gateRefusals
	// told is what was refused last, and at is where: it is told again to the next
	// that is refused there. times is how many of these are in no remark yet.
	told  *LimitError
	at    subnet
	times uint64
}

// notesLocked returns the stripe's notes, and makes them where there are none.
func (st *subnetStripe) notesLocked() *gateNotes {
	if st.mu.gateNotes == nil {
		st.mu.gateNotes = new(gateNotes)
	}
	return st.mu.gateNotes
}

// gateRefusals counts refusals by gateKinds, and has what the log will say of them.
type gateRefusals struct {
	counts  [2]dimCounts
	remarks [2]*remarks
}

// gateKinds are the kinds of refusals of the gates, in the order in which
// stripes keep them.
var gateKinds = [2]Kind{KindSubnet, KindRate}

// subnets keeps the records. Its methods are safe for concurrent use; its locks
// are never held together with those of the engine (I8), and those of named
// networks come before those of levels.
type subnets struct {
	partition
	// now gives the time as the buckets know it: in nanoseconds since they were
	// made. It is read only where there are tokens.
	now     func() int64
	secret  subnetHash                   // chooses the stripe
	stripes atomic.Pointer[levelStripes] // nil until somebody comes; see all
	named   []*subnetStripe
	// noting: what is refused is noted for the log. quiet: it is not even told.
	noting, quiet bool
	observed      *observedKinds // gates that refuse nothing, see observe.go; nil is none
}

func newSubnets(conns subnetConfig, rates rateConfig) (*subnets, error) {
	p, err := newPartition(conns, rates)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	s := &subnets{partition: *p, secret: subnetHash{rand.Uint64(), rand.Uint64()},
		now: func() int64 { return int64(time.Since(start)) }} // by the monotonic clock
	seen := make(map[*subnetStripe]bool)
	for _, n := range p.networks.All() {
		for _, st := range []*subnetStripe{n.conns, n.tokens} {
			if st != nil && !seen[st] {
				seen[st] = true
				s.named = append(s.named, st)
			}
		}
	}
	return s, nil
}

// levelStripes are the stripes of the levels.
type levelStripes [gateStripes]subnetStripe

// all returns the stripes of the levels, and makes them if there are none.
func (s *subnets) all() *levelStripes {
	if all := s.stripes.Load(); all != nil {
		return all
	}
	return s.makeStripes()
}

func (s *subnets) makeStripes() *levelStripes {
	fresh, empty := new(levelStripes), newSubnetTable(s.secret)
	for i := range fresh {
		fresh[i].partition, fresh[i].mu.table = &s.partition, empty
	}
	s.stripes.CompareAndSwap(nil, fresh)
	return s.stripes.Load()
}

// each calls f with every stripe that there is.
func (s *subnets) each(f func(*subnetStripe)) {
	if all := s.stripes.Load(); all != nil {
		for i := range all {
			f(&all[i])
		}
	}
	for _, st := range s.named {
		f(st)
	}
}

// stripeOf gives the stripe that has all records of an address in a subnet of the
// widest level. The secret keeps strangers from choosing addresses that all meet in
// one.
func (s *subnets) stripeOf(widest subnetKey) *subnetStripe {
	return &s.all()[s.secret.of(widest)>>32%gateStripes]
}

// gatePass is what an address was given. The zero value is nothing.
type gatePass struct {
	addr   netip.Addr
	key    subnetKey     // of the address, if it is valid
	conns  *subnetStripe // a connection is counted here, if it is not nil
	tokens *subnetStripe // a token was taken here, on every level
}

// enter gives a normalised address a place for a connection and a token, or
// neither: then it tells which subnet has none left, as an error unless the
// subnets are quiet or have retired. An invalid address is in no subnet and always
// fits. d is what will be refused: inbound connections, or outbound ones. What is
// given is written to p, which was empty.
func (s *subnets) enter(addr netip.Addr, d dim, p *gatePass) (why *LimitError, ok bool) {
	p.addr = addr
	if !addr.IsValid() {
		return nil, true
	}
	f, k := familyOf(addr), keyOf(addr)
	div := &s.families[f]
	var w passage // field by field: a literal would be made elsewhere, and copied
	w.d, w.key, w.counts, w.takes = d, k, div.counts, div.takes
	p.key = k
	if div.mayBeNamed(k.first(f)) {
		n, _ := s.networks.Lookup(p.addr)
		if n.free {
			return nil, true
		}
		w.conns, w.counts = n.conns, w.counts && !n.forConns
		w.tokens, w.takes = n.tokens, w.takes && !n.forTokens
	}
	if w.takes || w.tokens != nil {
		w.at = s.now()
	}
	if w.counts || w.takes {
		w.narrowest, w.in = div.narrowest, s.stripeOf(k.cut(div.widest))
	}
	switch {
	case w.conns != nil || w.tokens != nil:
		return s.enterNamed(&w, p)
	case w.in == nil:
		return nil, true
	}
	w.in.mu.Lock()
	why, ok = s.askLocked(&w, w.narrowest)
	w.in.mu.Unlock()
	if ok {
		w.give(p)
	}
	return why, ok
}

// enterNamed is enter for an address in a named network.
func (s *subnets) enterNamed(w *passage, p *gatePass) (why *LimitError, ok bool) {
	if st := w.conns; st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		if st.mu.own.full(st.named.level) {
			w.full = st.named.level
		}
	}
	if st := w.tokens; st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.reachedLocked(w.at)
		if st.mu.own.empty(st.named.level, st.mu.latest) {
			w.empty = st.named.level
		}
	}
	switch {
	case w.in != nil:
		w.in.mu.Lock()
		defer w.in.mu.Unlock()
		why, ok = s.askLocked(w, w.narrowest)
	case !w.retired():
		why, ok = s.decideLocked(w)
	}
	if !ok {
		return why, false
	}
	w.give(p)
	if st := w.conns; st != nil {
		p.conns = st
		st.countLocked(&st.mu.own, 1)
	}
	if st := w.tokens; st != nil {
		p.tokens = st
		st.takeLocked(&st.mu.own, st.named.level)
	}
	return nil, true
}

// askLocked asks a level and all wider ones for room and tokens, and then for the
// decision. On the way back it counts: so nothing is counted before all is decided.
func (s *subnets) askLocked(w *passage, l *level) (*LimitError, bool) {
	st, key := w.in, w.key.cut(l.host)
	if st.mu.heir != nil {
		return nil, false
	}
	st.reachedLocked(w.at)
	t := &st.mu.table
	rec, _ := t.find(key, l.id)
	if w.counts && w.full == nil && rec.full(l) {
		w.full = l
	}
	if w.takes && w.empty == nil && rec.empty(l, st.mu.latest) {
		w.empty = l
	}
	if l.wider != nil {
		if why, ok := s.askLocked(w, l.wider); !ok {
			return why, false
		}
		rec, _ = t.find(key, l.id) // others may have come or gone
	} else if w.lacks() {
		if why, ok := s.decideLocked(w); !ok {
			return why, false
		}
	}
	counts, takes := w.counts && l.conns != noConnLimit, w.takes && !l.tokens.unlimited()
	if !counts && !takes {
		return nil, true
	}
	fresh := !rec.used()
	if fresh {
		rec = t.add(rec, key, l.id)
	}
	if counts {
		st.countLocked(rec, 1)
	}
	if takes {
		st.takeLocked(rec, l)
	}
	if fresh && st.mu.owing > 0 { // what nobody needs any more is a bucket that was
		st.forgetLocked(looksForRecord)
	}
	return nil, true
}

// decideLocked refuses whoever lacks room, or a token, unless the gate that would is
// only observed: then that is counted, and no token is taken where there is none, for
// whoever is refused owes nothing.
func (s *subnets) decideLocked(w *passage) (*LimitError, bool) {
	observed := s.onlyObserved()
	switch {
	case w.full != nil && !observed.has(KindSubnet):
		return s.refuseLocked(w.bar(KindSubnet), w.d), false
	case w.empty != nil && !observed.has(KindRate):
		return s.refuseLocked(w.bar(KindRate), w.d), false
	case w.full != nil:
		s.letLocked(w.bar(KindSubnet), w.d)
	case w.empty != nil:
		s.letLocked(w.bar(KindRate), w.d)
	}
	if w.empty != nil {
		w.tokens, w.takes = nil, false
	}
	return nil, true
}

// passage is how one address goes through the gate: past a named network, or all
// levels of its family, for connections and for tokens each.
type passage struct {
	d             dim
	conns, tokens *subnetStripe // of named networks
	in            *subnetStripe // of the levels
	narrowest     *level        // of these
	key           subnetKey
	at            int64 // the time, where there are tokens
	// Whether connections and tokens are counted on the levels.
	counts, takes bool
	// The narrowest levels, or the named networks, that have no room, and no token.
	full, empty *level
}

func (w *passage) lacks() bool { return w.full != nil || w.empty != nil }

// give tells what the levels give.
func (w *passage) give(p *gatePass) {
	if w.counts {
		p.conns = w.in
	}
	if w.takes {
		p.tokens = w.in
	}
}

// bar is a subnet that has no room, or no token, and the gate that it is about.
type bar struct {
	st *subnetStripe // that keeps it
	subnet
	kind Kind
}

// bar gives what stands in the way at a gate.
func (w *passage) bar(k Kind) bar {
	st, l := w.conns, w.full
	if k == KindRate {
		st, l = w.tokens, w.empty
	}
	if st != nil {
		return bar{st, *st.named, k}
	}
	return bar{w.in, subnet{l, w.key.cut(l.host)}, k}
}

// looksForRecord is how many places of its table each new record pays for a look
// at: so records that say nothing any more are never many beside the others.
const looksForRecord = 16

// countLocked counts one connection more, or less.
func (st *subnetStripe) countLocked(rec *subnetRecord, one int32) {
	if rec.conns += one; rec.conns == max(one, 0) { // the first has come, or the last gone
		st.mu.busy += int(one)
	}
}

func (st *subnetStripe) takeLocked(rec *subnetRecord, l *level) {
	if rec.fullAt == 0 {
		st.mu.owing++
	}
	rec.fullAt, _ = l.tokens.take(rec.fullAt, st.mu.latest)
}

// fillLocked makes a bucket fuller by so many nanoseconds, and notes if it is full.
func (st *subnetStripe) fillLocked(rec *subnetRecord, by int64) {
	if rec.fullAt == 0 {
		return
	}
	if rec.fullAt -= by; rec.fullAt <= st.mu.latest {
		rec.fullAt = 0
		st.mu.owing--
	}
}

// leave ends a connection from an address that is counted in the stripe.
func (st *subnetStripe) leave(k subnetKey) {
	st.mu.Lock()
	if st.named != nil {
		st.countLocked(&st.mu.own, -1)
	} else {
		t := &st.mu.table
		for l := st.families[k.family()].narrowest; l != nil; l = l.wider {
			if l.conns == noConnLimit {
				continue
			}
			rec, at := t.find(k.cut(l.host), l.id)
			if !rec.used() {
				continue
			}
			if st.countLocked(rec, -1); rec.idle() {
				t.remove(at)
			}
		}
	}
	heir := st.mu.heir
	st.mu.Unlock()
	if heir != nil {
		heir.countInherited(st.placeOf(k), -1)
	}
}

// undo takes back what an address was given, because something else refused it. A
// token that comes back to a bucket that has become full is lost: there was no
// room for it.
func (p gatePass) undo() {
	if p.conns != nil {
		p.conns.leave(p.key)
	}
	if p.tokens != nil {
		p.tokens.giveBack(p.key)
	}
}

// giveBack returns a token that an address has taken.
func (st *subnetStripe) giveBack(k subnetKey) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.named != nil {
		st.fillLocked(&st.mu.own, st.named.level.tokens.interval)
		return
	}
	t := &st.mu.table
	for l := st.families[k.family()].narrowest; l != nil; l = l.wider {
		rec, at := t.find(k.cut(l.host), l.id)
		if !rec.used() {
			continue
		}
		if st.fillLocked(rec, l.tokens.interval); rec.idle() {
			t.remove(at)
		}
	}
}

func (st *subnetStripe) reachedLocked(at int64) { st.mu.latest = max(st.mu.latest, at) }

// forgetLocked looks at the next few places of the table, and forgets the records
// there that say nothing any more.
func (st *subnetStripe) forgetLocked(looks int) {
	t := &st.mu.table
	for ; looks > 0 && st.mu.owing > 0; looks-- {
		rec, at := t.next()
		if !rec.used() || rec.fullAt > st.mu.latest {
			continue
		}
		if st.fillLocked(rec, 0); rec.idle() {
			t.remove(at)
			t.hand-- // another one may be there now
		}
	}
}

// forget forgets the buckets that are full, a bounded number under each lock.
// enter does the same as it goes; this is for when nobody connects any more.
func (s *subnets) forget(at int64) {
	const batch = 256
	s.each(func(st *subnetStripe) {
		st.mu.Lock()
		st.reachedLocked(at)
		st.fillLocked(&st.mu.own, 0)
		left := 3 * len(st.mu.table.slots) // it may shrink, and its records move
		st.mu.Unlock()
		for ; left > 0; left -= batch {
			st.mu.Lock()
			st.forgetLocked(min(left, batch))
			st.mu.Unlock()
		}
	})
}

// refuse counts and tells a refusal by something else, of one address.
func (s *subnets) refuse(addr netip.Addr, k Kind, d dim) *LimitError {
	st := &s.all()[0]
	st.mu.Lock()
	defer st.mu.Unlock()
	return s.refuseLocked(bar{st, single(addr), k}, d)
}

// single is the subnet of one address.
func single(addr netip.Addr) subnet { return subnet{&level{bits: addr.BitLen()}, keyOf(addr)} }

// refuseLocked counts a refusal, and tells it.
func (s *subnets) refuseLocked(by bar, d dim) *LimitError {
	if s.quiet {
		return nil
	}
	notes := by.st.notesLocked()
	notes.refused.counts[by.kind-KindSubnet][d]++
	e := by.tellLocked(d, s.noting)
	notes.times++
	return e
}

// place returns the place of the limit in the configuration. A level without tokens has
// refused none: a program's own limiter did, see gate.askCaller.
func (b *bar) place() limitPlace {
	switch {
	case b.st.named != nil:
		return placeOfName
	case b.kind == KindRate && b.level.tokens.unlimited():
		return placeOfCaller
	}
	return placeOfAll
}

// gateError is a refusal with the name that it is about, which is made at once.
type gateError struct {
	LimitError
	name scopeName
}

// tellLocked returns a refusal as an error. What was last told of the subnet is told
// again: it has not changed, and a flood makes nothing new.
func (b *bar) tellLocked(d dim, noting bool) *LimitError {
	notes := b.st.notesLocked()
	if e := notes.told; e == nil || notes.at != b.subnet || e.why.scope.kind != b.kind || e.why.d != d {
		notes.remark(noting)
		g := &gateError{name: subnetName(b.kind, b.key, b.level.bits)}
		e = &g.LimitError
		e.asked = askedScope{name: &g.name, place: b.place()}
		e.why = refusal{scope: &g.name, d: d, cause: CauseRate, priority: network.ReservationPriorityAlways, asked: 1}
		if b.kind == KindSubnet {
			e.why.cause, e.why.current, e.why.limit = CauseSubnet, b.level.conns, b.level.conns
		}
		notes.told, notes.at = e, b.subnet
	}
	return notes.told
}

// remark keeps what the log will say about what has been told, if it is noting.
func (n *gateNotes) remark(noting bool) {
	if noting && n.times > 0 {
		n.refused.note(n.told, n.times)
	}
	n.times = 0
}

// note notes for the log what was told so many times.
func (g *gateRefusals) note(e *LimitError, times uint64) {
	of := &g.remarks[e.why.scope.kind-KindSubnet]
	if *of == nil {
		*of = new(remarks)
	}
	(*of)[e.why.d].note(&e.why, *e.why.scope, times)
}

// takeOver adds what others have counted and noted.
func (g *gateRefusals) takeOver(o *gateRefusals) {
	for i := range gateKinds {
		g.counts[i].add(&o.counts[i])
		if said := o.remarks[i]; said != nil {
			if g.remarks[i] == nil {
				g.remarks[i] = new(remarks)
			}
			g.remarks[i].add(said)
		}
	}
}

// give adds the counts to those of all kinds, and hands over what the log will say.
func (g *gateRefusals) give(to *unloggedRefusals) {
	for i, k := range gateKinds {
		to.counts[k].add(&g.counts[i])
		to.said[k].add(g.remarks[i])
		g.remarks[i] = nil
	}
}

// giveRemarks is stripe.giveRemarks for the gates.
func (s *subnets) giveRemarks(refused, would *unloggedRefusals) {
	s.each(func(st *subnetStripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if n := st.mu.gateNotes; n != nil {
			n.remark(s.noting)
			n.refused.give(refused)
			n.would.give(would)
		}
	})
}

// addRefusals adds what the gates have refused, and would have, to counts by kind.
func (s *subnets) addRefusals(refused, would *[numKinds]dimCounts) {
	s.each(func(st *subnetStripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		n := st.mu.gateNotes
		if n == nil {
			return
		}
		for i, k := range gateKinds {
			refused[k].add(&n.refused.counts[i])
			would[k].add(&n.would.counts[i])
		}
	})
}

// onlyObserved gives the gates that refuse nothing.
func (s *subnets) onlyObserved() kindSet {
	if s.observed == nil {
		return 0
	}
	return s.observed.load()
}

// letLocked counts a connection that a gate lets pass though it is full.
func (s *subnets) letLocked(by bar, d dim) {
	e := by.tellLocked(d, s.noting)
	by.st.mu.would.counts[by.kind-KindSubnet][d]++
	if s.noting {
		by.st.mu.would.note(e, 1)
	}
}

// lets is letLocked for a refusal by something else, of one address, if the gate is
// only observed.
func (s *subnets) lets(addr netip.Addr, k Kind, d dim) bool {
	if !s.onlyObserved().has(k) {
		return false
	}
	st := &s.all()[0]
	st.mu.Lock()
	defer st.mu.Unlock()
	s.letLocked(bar{st, single(addr), k}, d)
	return true
}
