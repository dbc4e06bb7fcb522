// Package subnets counts by address, before anything else is asked: how many connections each
// subnet has, and how fast they come. It knows nothing of scopes: a refusal is a
// value, of which its user makes an error.
//
// All records of an address, one on each level, are under one lock; everything is checked
// before anything is counted.
//
//	stripe 0    the records of many /48s, and of the /56s inside them (table.go)
//	stripe 1    …
//	10.0.0.0/8  a named network has a stripe of its own
package subnets

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// A Stripe is a lock and the records under it, on cache lines of its own.
type Stripe struct {
	*partition
	named *subnet // a stripe for one named network alone; nil for one of the levels
	mu    struct {
		sync.Mutex
		own   record // of the named network
		table table  // of the levels
		// latest is the latest time seen. Callers read the clock before they get
		// the lock: to one that was overtaken, tokens taken later would look as
		// if they were owed.
		latest int64

		busy, owing int    // records with connections; with a bucket that may not be full
		notes       *notes // nil until something is refused
		// heir has taken over, see TakeOver; nil while these are in force.
		heir *Subnets
	}
	_ [40]byte
}

// Config is what a Subnets is made with, beside limits.
type Config struct {
	// Error makes the error of a refusal. It is called under a lock of a Subnets, and must
	// not call it. What it made is returned again while the same refusal follows. nil is for
	// what need not be told or counted: then a refusal comes without an error.
	Error func(Refusal) error
	// Noting: refusals are noted for TakeNotes.
	Noting bool
	// Observed reports whether a gate refuses nothing, and only counts what it would have
	// refused. It is asked when it would refuse, under a lock as Error is. nil is never.
	Observed func(Gate) bool
}

// A Subnets keeps the records. Its methods are safe for concurrent use. Under its locks it
// takes no others, and calls nothing but what says so; the locks of named networks come before
// those of levels.
type Subnets struct {
	partition
	// now returns the time as the buckets know it: in nanoseconds since they were
	// made. It is read only where there are tokens.
	now     func() int64
	secret  ip.Hash                      // chooses the stripe
	stripes atomic.Pointer[levelStripes] // nil until a connection comes; see all
	named   []*Stripe
	config  Config
}

// New returns a Subnets in which there is nothing, with the limits that the builder was told.
func (b *Builder) New(cfg Config) *Subnets {
	start := time.Now()
	s := &Subnets{partition: *b.partition(), secret: ip.Hash{A: rand.Uint64(), B: rand.Uint64()},
		now: func() int64 { return int64(time.Since(start)) }, config: cfg} // by the monotonic clock
	seen := make(map[*Stripe]bool)
	for _, n := range s.networks.All() {
		for _, st := range []*Stripe{n.conns, n.tokens} {
			if st != nil && !seen[st] {
				seen[st] = true
				s.named = append(s.named, st)
			}
		}
	}
	return s
}

// levelStripes are the stripes of the levels.
type levelStripes [numStripes]Stripe

// all returns the stripes of the levels, and makes them if there are none.
func (s *Subnets) all() *levelStripes {
	if all := s.stripes.Load(); all != nil {
		return all
	}
	return s.makeStripes()
}

func (s *Subnets) makeStripes() *levelStripes {
	fresh, empty := new(levelStripes), newTable(s.secret)
	for i := range fresh {
		fresh[i].partition, fresh[i].mu.table = &s.partition, empty
	}
	s.stripes.CompareAndSwap(nil, fresh)
	return s.stripes.Load()
}

// each calls f with every stripe that there is.
func (s *Subnets) each(f func(*Stripe)) {
	if all := s.stripes.Load(); all != nil {
		for i := range all {
			f(&all[i])
		}
	}
	for _, st := range s.named {
		f(st)
	}
}

// stripeOf returns the stripe that has all records of an address in a subnet of the
// widest level. The secret keeps strangers from choosing addresses that all meet in
// one.
func (s *Subnets) stripeOf(widest ip.Key) *Stripe {
	return &s.all()[s.secret.Of(widest)>>32%numStripes]
}

// A Pass is what an address was given. The zero value is nothing.
type Pass struct {
	Addr   netip.Addr // that entered
	Key    ip.Key     // of the address, if it is valid
	Conns  *Stripe    // a connection is counted here, if it is not nil
	tokens *Stripe    // a token was taken here, on every level
}

// Enter gives a normal address a place for a connection and a token, or
// neither: then it returns the error of the subnet that has none left, or nil if there is
// no Config.Error, or if another Subnets has taken over, which is to be asked in its place.
// An invalid address is in no subnet and always fits. What is given is written to p, which
// was empty.
func (s *Subnets) Enter(addr netip.Addr, way Way, p *Pass) (why error, ok bool) {
	p.Addr = addr
	if !addr.IsValid() {
		return nil, true
	}
	f, k := ip.FamilyOf(addr), ip.KeyOf(addr)
	div := &s.families[f]
	var w passage // field by field: a literal would be made elsewhere, and copied
	w.way, w.key, w.counts, w.takes = way, k, div.counts, div.takes
	p.Key = k
	if div.mayBeNamed(k.First(f)) {
		n, _ := s.networks.Lookup(p.Addr)
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
		w.narrowest, w.in = div.narrowest, s.stripeOf(k.Cut(div.widest))
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

// enterNamed is Enter for an address in a named network.
func (s *Subnets) enterNamed(w *passage, p *Pass) (why error, ok bool) {
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
		p.Conns = st
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
func (s *Subnets) askLocked(w *passage, l *level) (error, bool) {
	st, key := w.in, w.key.Cut(l.host)
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
	counts, takes := w.counts && l.conns != NoLimit, w.takes && !l.tokens.Unlimited()
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
	if fresh && st.mu.owing > 0 { // what is not needed any more is a bucket that was
		st.forgetLocked(looksForRecord)
	}
	return nil, true
}

// decideLocked refuses what lacks room, or a token, unless the gate that would is
// only observed: then that is counted, and no token is taken where there is none, for
// what is refused owes nothing.
func (s *Subnets) decideLocked(w *passage) (error, bool) {
	switch {
	case w.full != nil && !s.observes(Conns):
		return s.refuseLocked(w.bar(Conns), w.way), false
	case w.empty != nil && !s.observes(Rate):
		return s.refuseLocked(w.bar(Rate), w.way), false
	case w.full != nil:
		s.letLocked(w.bar(Conns), w.way)
	case w.empty != nil:
		s.letLocked(w.bar(Rate), w.way)
	}
	if w.empty != nil {
		w.tokens, w.takes = nil, false
	}
	return nil, true
}

// passage is how one address goes through the gate: past a named network, or all
// levels of its family, for connections and for tokens each.
type passage struct {
	way           Way
	conns, tokens *Stripe // of named networks
	in            *Stripe // of the levels
	narrowest     *level  // of these
	key           ip.Key
	at            int64 // the time, where there are tokens
	// Whether connections and tokens are counted on the levels.
	counts, takes bool
	// The narrowest levels, or the named networks, that have no room, and no token.
	full, empty *level
}

func (w *passage) lacks() bool { return w.full != nil || w.empty != nil }

// give writes down what the levels give.
func (w *passage) give(p *Pass) {
	if w.counts {
		p.Conns = w.in
	}
	if w.takes {
		p.tokens = w.in
	}
}

// bar returns what stands in the way at a gate.
func (w *passage) bar(g Gate) bar {
	st, l := w.conns, w.full
	if g == Rate {
		st, l = w.tokens, w.empty
	}
	if st != nil {
		return bar{st, *st.named, g}
	}
	return bar{w.in, subnet{l, w.key.Cut(l.host)}, g}
}

// looksForRecord is how many places of its table each new record pays for a look
// at: so records that say nothing any more are never many beside the others.
const looksForRecord = 16

// countLocked counts one connection more, or less.
func (st *Stripe) countLocked(rec *record, one int32) {
	if rec.conns += one; rec.conns == max(one, 0) { // the first has come, or the last gone
		st.mu.busy += int(one)
	}
}

func (st *Stripe) takeLocked(rec *record, l *level) {
	if rec.fullAt == 0 {
		st.mu.owing++
	}
	rec.fullAt, _ = l.tokens.take(rec.fullAt, st.mu.latest)
}

// fillLocked makes a bucket fuller by so many nanoseconds, and notes if it is full.
func (st *Stripe) fillLocked(rec *record, by int64) {
	if rec.fullAt == 0 {
		return
	}
	if rec.fullAt -= by; rec.fullAt <= st.mu.latest {
		rec.fullAt = 0
		st.mu.owing--
	}
}

// Leave ends a connection that is counted in the stripe, from the address with this key. It is
// safe for concurrent use.
func (st *Stripe) Leave(k ip.Key) {
	st.mu.Lock()
	if st.named != nil {
		st.countLocked(&st.mu.own, -1)
	} else {
		t := &st.mu.table
		for l := st.families[k.Family()].narrowest; l != nil; l = l.wider {
			if l.conns == NoLimit {
				continue
			}
			rec, at := t.find(k.Cut(l.host), l.id)
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

// Undo takes back what an address was given, because something else refused it. A
// token that comes back to a bucket that has become full is lost: there was no
// room for it.
func (p Pass) Undo() {
	if p.Conns != nil {
		p.Conns.Leave(p.Key)
	}
	if p.tokens != nil {
		p.tokens.giveBack(p.Key)
	}
}

// giveBack returns a token that an address has taken.
func (st *Stripe) giveBack(k ip.Key) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.named != nil {
		st.fillLocked(&st.mu.own, st.named.level.tokens.interval)
		return
	}
	t := &st.mu.table
	for l := st.families[k.Family()].narrowest; l != nil; l = l.wider {
		rec, at := t.find(k.Cut(l.host), l.id)
		if !rec.used() {
			continue
		}
		if st.fillLocked(rec, l.tokens.interval); rec.idle() {
			t.remove(at)
		}
	}
}

func (st *Stripe) reachedLocked(at int64) { st.mu.latest = max(st.mu.latest, at) }

// forgetLocked looks at the next few places of the table, and forgets the records
// there that say nothing any more.
func (st *Stripe) forgetLocked(looks int) {
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

// Forget forgets the buckets that are full, or will be this much later, a bounded number under
// each lock. Enter does the same as it goes; this is for when no connections come any more.
func (s *Subnets) Forget(later time.Duration) { s.forget(s.now() + int64(later)) }

func (s *Subnets) forget(at int64) {
	const batch = 256
	s.each(func(st *Stripe) {
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
