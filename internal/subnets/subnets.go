// Package subnets limits connections by IP address, before anything else decides on them: how
// many connections each subnet has at a time, and how fast they come. It knows nothing of
// scopes. A refusal is a value, from which the user of the package makes an error.
//
// The records of an address, one on each level, are all under one lock. All limits are checked
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

// A Stripe is a lock and the records under it, on cache lines of its own. What every connection
// writes is on one line with the lock, so that little comes over from the processor that used the
// stripe last. An array of stripes begins with a line or 8 bytes after one, where the allocator
// has put a header: hence 56 bytes for that line, and none at the end that are written.
type Stripe struct {
	mu struct {
		sync.Mutex
		// latest is the latest time that any caller has read. Callers read the clock before
		// they take the lock, so a caller with a later time may come first. At its own,
		// earlier time, the next caller would find fewer tokens than the bucket has.
		latest int64
		busy   int32 // the number of records with connections
		owing  int32 // the number of records with a bucket that may not be full
		table  table // of the levels

		// heir is the Subnets that has taken over, see TakeOver; nil until then.
		heir  *Subnets
		notes *notes // nil until something is refused
		own   record // of the named network
	}
	*partition
	named *subnet // the one named network that the stripe is for; nil in a stripe of the levels
	_     [48]byte
}

// Config has the settings of a Subnets other than its limits.
type Config struct {
	// Error returns the error of a refusal. It is called under a lock of the Subnets, and must
	// not call its methods. While the same refusal repeats, the same error is returned. If
	// Error is nil, refusals have no error and are not counted.
	Error func(Refusal) error
	// Noting reports whether refusals are noted for TakeNotes.
	Noting bool
	// Observed reports whether a gate is only observed: it refuses nothing, and counts the
	// connections that it would have refused. Observed is called when a gate would refuse,
	// under a lock, as Error is. If it is nil, no gate is only observed.
	Observed func(Gate) bool
}

// A Subnets has the records of all subnets. Its methods are safe for concurrent use. While it
// holds a lock, it takes no lock of anything else itself, and calls only those functions of its caller
// whose comments say so. The locks of named networks are taken before those of the levels.
type Subnets struct {
	partition
	// now returns the time of the buckets, in nanoseconds since the Subnets was made. It is
	// called only for addresses with buckets.
	now     func() int64
	secret  ip.Hash                      // chooses the stripe of an address
	stripes atomic.Pointer[levelStripes] // nil until first needed; see all
	named   []*Stripe
	config  Config
}

// New returns a Subnets without connections that has the builder's limits.
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

// each calls f with every stripe. It does not make the stripes of the levels.
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

// stripeOf returns the stripe that has all records of the addresses in a subnet of the widest
// level. The secret keeps strangers from choosing addresses that all meet in one stripe.
func (s *Subnets) stripeOf(widest ip.Key) *Stripe {
	return &s.all()[s.secret.Of(widest)>>32%numStripes]
}

// A Pass has what Enter counted and took for an address. The zero value has nothing.
type Pass struct {
	Addr   netip.Addr // the address that entered
	Key    ip.Key     // of the address, if the address is valid
	Conns  *Stripe    // the stripe that counts the connection; nil if none does
	tokens *Stripe    // the stripe from whose buckets tokens were taken, or nil if there is none
	also   *Stripe    // the stripe of another Subnets, likewise
}

// AlsoUndo makes Undo give back the tokens of another pass, too, which has counted no connection.
func (p *Pass) AlsoUndo(other *Pass) { p.also = other.tokens }

// Enter counts a connection from or to addr and takes its tokens, or does neither. The address
// is one that ip.Normal has returned. p must be the zero Pass; Enter writes to it what it has
// counted and taken. If a subnet has no room or no token, ok is false and why is the subnet's
// error, or nil if there is no Config.Error. If another Subnets has taken over, ok is false and
// why is nil; the caller has to enter that other one. An invalid address is in no subnet and is
// always admitted.
func (s *Subnets) Enter(addr netip.Addr, way Way, p *Pass) (why error, ok bool) {
	p.Addr = addr
	if !addr.IsValid() {
		return nil, true
	}
	f, k := ip.FamilyOf(addr), ip.KeyOf(addr)
	div := &s.families[f]
	var w passage // set field by field: a literal would be built in a temporary and copied
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

// askLocked looks for room and tokens on a level and, by recursion, on all wider ones. After the
// widest level comes the decision. Connections and tokens are counted on the way back, so nothing
// is counted before the decision. The locks of the passage's stripes are held.
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
		rec, _ = t.find(key, l.id) // records on wider levels may have been added or removed
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
	if fresh && st.mu.owing > 0 { // only a record with a bucket becomes idle by itself
		st.forgetLocked(looksForRecord)
	}
	return nil, true
}

// decideLocked refuses a passage that lacks room or a token, unless the gate that would refuse
// it is only observed. In that case it counts the refusal that would have been. If a token is
// lacking, the passage takes no tokens at all, as if it had been refused. The locks of the
// passage's stripes are held.
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

// passage is the way of one address through the gates. For connections and for tokens alike, it
// leads through a named network or through all levels of the address's family.
type passage struct {
	way           Way
	conns, tokens *Stripe // of named networks; nil if none limits the address
	in            *Stripe // of the levels; nil if none limits the address
	narrowest     *level  // of the address's family
	key           ip.Key
	at            int64 // the time, if tokens are limited
	// counts and takes report whether the levels count the connection, and take tokens.
	counts, takes bool
	// full and empty are the narrowest levels, or those of the named networks, that have no
	// room and no token.
	full, empty *level
}

// lacks reports whether there is no room or no token.
func (w *passage) lacks() bool { return w.full != nil || w.empty != nil }

// give writes to p the stripe of the levels, for the connection and for the tokens.
func (w *passage) give(p *Pass) {
	if w.counts {
		p.Conns = w.in
	}
	if w.takes {
		p.tokens = w.in
	}
}

// bar returns the subnet that has no room, or no token, at a gate.
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

// looksForRecord is the number of places of a table at which forgetLocked looks for each new
// record. It is large enough that idle records stay few in comparison with the others.
const looksForRecord = 16

// countLocked adds one, which is 1 or -1, to the connections of a record. The stripe's lock is
// held.
func (st *Stripe) countLocked(rec *record, one int32) {
	if rec.conns += one; rec.conns == max(one, 0) { // the first has come, or the last gone
		st.mu.busy += one
	}
}

// takeLocked takes a token of the level's bucket, whether or not there is one. The stripe's lock
// is held.
func (st *Stripe) takeLocked(rec *record, l *level) {
	if rec.fullAt == 0 {
		st.mu.owing++
	}
	rec.fullAt, _ = l.tokens.take(rec.fullAt, st.mu.latest)
}

// fillLocked makes the time at which a bucket will be full earlier by so many nanoseconds, and
// counts the bucket as owing no longer if it is full. The stripe's lock is held.
func (st *Stripe) fillLocked(rec *record, by int64) {
	if rec.fullAt == 0 {
		return
	}
	if rec.fullAt -= by; rec.fullAt <= st.mu.latest {
		rec.fullAt = 0
		st.mu.owing--
	}
}

// Leave uncounts a connection that is counted in the stripe, under the key of its address. It is
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

// Undo uncounts the connection and gives its tokens back. It is for a connection that was refused
// after it had entered. A bucket that has become full since then does not hold the token.
func (p Pass) Undo() {
	if p.Conns != nil {
		p.Conns.Leave(p.Key)
	}
	if p.tokens != nil {
		p.tokens.giveBack(p.Key)
	}
	if p.also != nil {
		p.also.giveBack(p.Key)
	}
}

// giveBack gives back the tokens that the address with this key has taken.
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

// reachedLocked sets the stripe's latest time to at, unless that is earlier. The stripe's lock is
// held.
func (st *Stripe) reachedLocked(at int64) { st.mu.latest = max(st.mu.latest, at) }

// forgetLocked looks at the next places of the table, at most as many as looks says, and removes
// the records there that have become idle. The stripe's lock is held.
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

// Forget removes the buckets that are full now or will be full later from now. It holds each
// lock only for a bounded number of them at a time. Enter removes full buckets, too, but only
// while new connections come.
func (s *Subnets) Forget(later time.Duration) { s.forget(s.now() + int64(later)) }

func (s *Subnets) forget(at int64) {
	const batch = 256
	s.each(func(st *Stripe) {
		st.mu.Lock()
		st.reachedLocked(at)
		st.fillLocked(&st.mu.own, 0)
		left := 3 * len(st.mu.table.slots) // more than one round, as records move if it shrinks
		st.mu.Unlock()
		for ; left > 0; left -= batch {
			st.mu.Lock()
			st.forgetLocked(min(left, batch))
			st.mu.Unlock()
		}
	})
}
