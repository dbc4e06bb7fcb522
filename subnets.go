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
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// subnet is one part of the address space.
type subnet struct {
	level *level
	key   subnetKey
}

// prefix gives the subnet as people know it.
func (sub subnet) prefix() netip.Prefix { return sub.key.prefix(sub.level.bits) }

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
		// What was refused, and what would have been, by gateKinds.
		refused, would gateRefusals
		// told is what was refused last, and at is where: it is told again to the next
		// that is refused there. times is how many of these are in no remark yet.
		told  *LimitError
		at    subnet
		times uint64
		// heir has taken over, see gateswap.go; nil while these are in force.
		heir *subnets
	}
	_ [40]byte
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
// are never held together with those of stripes and pools (I8), and those of named
// networks come before those of levels.
type subnets struct {
	*partition
	// now gives the time as the buckets know it: in nanoseconds since they were
	// made. It is read only where there are tokens.
	now     func() int64
	secret  subnetHash // chooses the stripe
	stripes [gateStripes]subnetStripe
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
	s := &subnets{partition: p, secret: subnetHash{rand.Uint64(), rand.Uint64()},
		now: func() int64 { return int64(time.Since(start)) }} // by the monotonic clock
	for i := range s.stripes {
		s.stripes[i].partition = p
		s.stripes[i].mu.table.hash = s.secret
	}
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

// each calls f with every stripe.
func (s *subnets) each(f func(*subnetStripe)) {
	for i := range s.stripes {
		f(&s.stripes[i])
	}
	for _, st := range s.named {
		f(st)
	}
}

// stripeOf gives the stripe that has all records of an address: that of its
// widest subnet. The secret keeps strangers from choosing addresses that all
// meet in one.
func (s *subnets) stripeOf(k subnetKey, levels []level) *subnetStripe {
	widest := k.cut(levels[len(levels)-1].host)
	return &s.stripes[s.secret.of(widest)>>32%gateStripes]
}

// gatePass is what an address was given. The zero value is nothing.
type gatePass struct {
	addr   netip.Addr
	conns  *subnetStripe // a connection is counted here, if it is not nil
	tokens *subnetStripe // a token was taken here, on every level
}

// enter gives a normalised address a place for a connection and a token, or
// neither: then it tells which subnet has none left, as an error unless the
// subnets are quiet or have retired. An invalid address is in no subnet and always
// fits. d is what will be refused: inbound connections, or outbound ones. What is
// given is written to p, which was empty.
func (s *subnets) enter(addr netip.Addr, d dim, p *gatePass) (why *LimitError, ok bool) {
	if !addr.IsValid() {
		return nil, true
	}
	f, k := familyOf(addr), keyOf(addr)
	var n namedNet
	if s.mayBeNamed(f, k) {
		if n, _ = s.networks.Lookup(addr); n.free {
			return nil, true
		}
	}
	w := passage{conns: n.conns, tokens: n.tokens, levels: s.levels[f], key: k,
		counts: !n.forConns && s.counted[f], takes: !n.forTokens && s.taken[f]}
	at := int64(0)
	if w.takes || w.tokens != nil {
		at = s.now()
	}
	if w.counts || w.takes {
		w.in = s.stripeOf(w.key, w.levels)
	}
	switch {
	case w.conns != nil || w.tokens != nil:
		why, ok = s.enterNamed(&w, at, d, p)
	case w.in != nil:
		w.in.mu.Lock()
		why, ok = s.decideLocked(&w, at, d, p)
		w.in.mu.Unlock()
	default:
		return nil, true
	}
	if ok {
		p.addr = addr
	}
	return why, ok
}

// enterNamed is enter for an address in a named network.
func (s *subnets) enterNamed(w *passage, at int64, d dim, p *gatePass) (*LimitError, bool) {
	if w.conns != nil {
		w.conns.mu.Lock()
		defer w.conns.mu.Unlock()
	}
	if w.tokens != nil {
		w.tokens.mu.Lock()
		defer w.tokens.mu.Unlock()
		w.tokens.reachedLocked(at)
	}
	if w.in != nil {
		w.in.mu.Lock()
		defer w.in.mu.Unlock()
	}
	return s.decideLocked(w, at, d, p)
}

// decideLocked decides what is asked of all subnets that an address is in.
func (s *subnets) decideLocked(w *passage, at int64, d dim, p *gatePass) (*LimitError, bool) {
	if w.in != nil {
		w.in.reachedLocked(at)
	}
	if w.retired() {
		return nil, false
	}
	if full := w.fullLocked(0); full.st != nil {
		if observed := s.onlyObserved(); observed != 0 {
			passed := full
			if full = w.fullLocked(observed); full.st == nil {
				s.letLocked(passed, d)
				w.withoutTokenLocked()
			}
		}
		if full.st != nil {
			return s.refuseLocked(full, d), false
		}
	}
	w.takeLocked(p)
	return nil, true
}

// passage is how one address goes through the gate: past a named network, or all
// levels of its family, for connections and for tokens each.
type passage struct {
	conns, tokens *subnetStripe // of named networks
	in            *subnetStripe // of the levels
	levels        []level       // the narrowest first
	key           subnetKey
	// Whether connections and tokens are counted on the levels.
	counts, takes bool
}

// bar is a subnet that has no room, or no token, and the gate that it is about.
type bar struct {
	st *subnetStripe // that keeps it; nil: nothing stands in the way
	subnet
	kind Kind
}

// fullLocked gives the first subnet that has no room, or no token: connections
// before tokens, and narrow subnets before wide ones. It does not ask the gates
// that are left out.
func (w *passage) fullLocked(without kindSet) bar {
	var full, empty *level
	if w.in != nil {
		full, empty = w.onLevelsLocked()
	}
	if !without.has(KindSubnet) {
		switch {
		case w.conns != nil && w.conns.mu.own.full(w.conns.named.level):
			return bar{w.conns, *w.conns.named, KindSubnet}
		case full != nil:
			return bar{w.in, subnet{full, w.key.cut(full.host)}, KindSubnet}
		}
	}
	if !without.has(KindRate) {
		switch {
		case w.tokens != nil && w.tokens.mu.own.empty(w.tokens.named.level, w.tokens.mu.latest):
			return bar{w.tokens, *w.tokens.named, KindRate}
		case empty != nil:
			return bar{w.in, subnet{empty, w.key.cut(empty.host)}, KindRate}
		}
	}
	return bar{}
}

// onLevelsLocked finds the narrowest levels that have no room, and no token.
func (w *passage) onLevelsLocked() (full, empty *level) {
	var none subnetRecord // what is not known is as new
	for i := range w.levels {
		l := &w.levels[i]
		rec := w.in.mu.table.find(w.key.cut(l.host), l.id)
		if rec == nil {
			rec = &none
		}
		if full == nil && w.counts && rec.full(l) {
			full = l
		}
		if empty == nil && w.takes && rec.empty(l, w.in.mu.latest) {
			empty = l
		}
	}
	return full, empty
}

// takeLocked takes a place and a token everywhere; there is one.
func (w *passage) takeLocked(p *gatePass) {
	p.conns, p.tokens = w.conns, w.tokens
	if w.conns != nil {
		w.conns.countLocked(&w.conns.mu.own, 1)
	}
	if w.tokens != nil {
		w.tokens.takeLocked(&w.tokens.mu.own, w.tokens.named.level)
	}
	if w.counts {
		p.conns = w.in
	}
	if w.takes {
		p.tokens = w.in
	}
	for i := range w.levels {
		l := &w.levels[i]
		counts, takes := w.counts && l.conns != noConnLimit, w.takes && !l.tokens.unlimited()
		if !counts && !takes {
			continue
		}
		rec := w.in.recordLocked(w.key.cut(l.host), l.id)
		if counts {
			w.in.countLocked(rec, 1)
		}
		if takes {
			w.in.takeLocked(rec, l)
		}
	}
}

// looksForRecord is how many places of its table each new record pays for a look
// at: so records that say nothing any more are never many beside the others.
const looksForRecord = 16

// recordLocked gives the record of a subnet, and makes it where there is none.
func (st *subnetStripe) recordLocked(k subnetKey, id uint16) *subnetRecord {
	if rec := st.mu.table.find(k, id); rec != nil {
		return rec
	}
	st.forgetLocked(looksForRecord)
	return st.mu.table.add(k, id)
}

func (st *subnetStripe) countLocked(rec *subnetRecord, n int32) {
	before := rec.conns
	rec.conns += n
	if (before == 0) != (rec.conns == 0) {
		st.mu.busy += int(n)
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

// dropLocked forgets a record in which nothing is kept, and tells whether it did.
func (st *subnetStripe) dropLocked(rec *subnetRecord) bool {
	if rec.conns != 0 || rec.fullAt != 0 || rec == &st.mu.own {
		return false
	}
	st.mu.table.remove(rec)
	return true
}

// leave ends a connection from an address that is counted in the stripe.
func (st *subnetStripe) leave(addr netip.Addr) {
	if heir := st.letGo(addr); heir != nil {
		heir.countInherited(st.placeOf(addr), -1)
	}
}

// letGo is leave for these subnets alone. It gives those that have taken over.
func (st *subnetStripe) letGo(addr netip.Addr) (heir *subnets) {
	st.mu.Lock()
	st.eachOfLocked(addr, func(rec *subnetRecord, l *level) {
		if l.conns != noConnLimit {
			st.countLocked(rec, -1)
			st.dropLocked(rec)
		}
	})
	heir = st.mu.heir
	st.mu.Unlock()
	return heir
}

// eachOfLocked calls f with every record of an address. f may drop it.
func (st *subnetStripe) eachOfLocked(addr netip.Addr, f func(*subnetRecord, *level)) {
	if st.named != nil {
		f(&st.mu.own, st.named.level)
		return
	}
	k, levels := keyOf(addr), st.levels[familyOf(addr)]
	for i := range levels {
		if rec := st.mu.table.find(k.cut(levels[i].host), levels[i].id); rec != nil {
			f(rec, &levels[i])
		}
	}
}

// undo takes back what an address was given, because something else refused it. A
// token that comes back to a bucket that has become full is lost: there was no
// room for it.
func (p gatePass) undo() {
	if p.conns != nil {
		p.conns.leave(p.addr)
	}
	if p.tokens != nil {
		p.tokens.giveBack(p.addr)
	}
}

// giveBack returns a token that an address has taken.
func (st *subnetStripe) giveBack(addr netip.Addr) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.eachOfLocked(addr, func(rec *subnetRecord, l *level) {
		st.fillLocked(rec, l.tokens.interval)
		st.dropLocked(rec)
	})
}

func (st *subnetStripe) reachedLocked(at int64) { st.mu.latest = max(st.mu.latest, at) }

// forgetLocked looks at the next few places of the table, and forgets the records
// there that say nothing any more.
func (st *subnetStripe) forgetLocked(looks int) {
	t := &st.mu.table
	for ; looks > 0 && t.n > 0; looks-- {
		rec := t.next()
		if !rec.used() || rec.fullAt > st.mu.latest {
			continue
		}
		if st.fillLocked(rec, 0); st.dropLocked(rec) {
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
	st := &s.stripes[0]
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
	mu := &by.st.mu
	mu.refused.counts[by.kind-KindSubnet][d]++
	e := by.tellLocked(d, s.noting)
	mu.times++
	return e
}

// tellLocked gives a refusal as an error. What was last told of the subnet is told
// again: it has not changed, and a flood makes nothing new.
func (b *bar) tellLocked(d dim, noting bool) *LimitError {
	mu := &b.st.mu
	if e := mu.told; e == nil || mu.at != b.subnet || e.why.scope.kind != b.kind || e.why.d != d {
		b.st.remarkLocked(noting)
		e = &LimitError{priority: network.ReservationPriorityAlways}
		e.asked = scopeName{kind: b.kind, text: b.prefix().String()}
		e.why = refusal{scope: &e.asked, d: d, asked: 1, cause: CauseRate}
		if b.kind == KindSubnet {
			e.why.cause, e.why.current, e.why.limit = CauseSubnet, b.level.conns, b.level.conns
		}
		mu.told, mu.at = e, b.subnet
	}
	return mu.told
}

// remarkLocked keeps what the log will say about what has been told, if it is noting.
func (st *subnetStripe) remarkLocked(noting bool) {
	mu := &st.mu
	if noting && mu.times > 0 {
		mu.refused.note(mu.told, mu.times)
	}
	mu.times = 0
}

// note notes for the log what was told so many times.
func (g *gateRefusals) note(e *LimitError, times uint64) {
	of := &g.remarks[e.why.scope.kind-KindSubnet]
	if *of == nil {
		*of = new(remarks)
	}
	(*of)[e.why.d].note(&noted{refusal: e.why}, times)
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
func (g *gateRefusals) give(to *saidRefusals) {
	for i, k := range gateKinds {
		to.counts[k].add(&g.counts[i])
		to.said[k].add(g.remarks[i])
		g.remarks[i] = nil
	}
}

// giveRemarks is stripe.giveRemarks for the gates.
func (s *subnets) giveRemarks(refused, would *saidRefusals) {
	s.each(func(st *subnetStripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.remarkLocked(s.noting)
		st.mu.refused.give(refused)
		st.mu.would.give(would)
	})
}

// addRefusals adds what the gates have refused, and would have, to counts by kind.
func (s *subnets) addRefusals(refused, would *[numKinds]dimCounts) {
	s.each(func(st *subnetStripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		for i, k := range gateKinds {
			refused[k].add(&st.mu.refused.counts[i])
			would[k].add(&st.mu.would.counts[i])
		}
	})
}
