package rcmgr

// Which services and protocols a snapshot or a scrape shows by name. There may be very many,
// because remote peers can cause scopes to be made, but only a bounded number may be visited
// at once under all stripe locks. Therefore the busiest, and the sum of all others, are found
// beforehand, a few scopes at a time.

import (
	"cmp"
	"math"
	"slices"
)

const (
	// mostNamed bounds how many services, and how many protocols, are shown by name.
	mostNamed = 256
	// othersName is the name under which all others are shown together.
	othersName = "(others)"
	// namesAtOnce bounds how many services or protocols are visited at once under all
	// stripe locks.
	namesAtOnce = 64
)

// busiest is which services and protocols are shown by name.
type busiest struct {
	few    bool // there are so few that all are shown
	named  []*pool
	others []scopeReading // for each kind, the sum of those that are not named
}

// busiest finds the services and the protocols that hold the most streams; those with
// equally many streams are ordered by memory. All numbers of one scope belong to one instant,
// but those of different scopes may not.
func (m *Manager) busiest() *busiest {
	pools := m.dir.list()
	protocols := slices.IndexFunc(pools, func(p *pool) bool { return p.kind == KindProtocol })
	if protocols < 0 {
		protocols = len(pools)
	}
	b := &busiest{few: max(protocols, len(pools)-protocols) <= mostNamed}
	if !b.few {
		b.find(m, KindService, pools[:protocols])
		b.find(m, KindProtocol, pools[protocols:])
	}
	return b
}

// candidate is a service or protocol that may be one of the busiest.
type candidate struct {
	pool *pool
	seen scopeReading
}

// find finds the busiest of one kind.
func (b *busiest) find(m *Manager, k Kind, pools []*pool) {
	var first []candidate
	busier := func(a, b candidate) int { return compareBusy(&a.seen, &b.seen) }
	others := othersOf(k)
	for some := range slices.Chunk(pools, namesAtOnce) {
		m.inOneCut(func() {
			for _, p := range some {
				// first has room for one more than are named, and that one joins the others.
				if first = offer(first, candidate{p, p.reading()}, mostNamed+1, busier); len(first) > mostNamed {
					others.include(&first[mostNamed].seen)
					first = first[:mostNamed]
				}
			}
		})
	}
	for _, c := range first {
		b.named = append(b.named, c.pool)
	}
	if len(pools) > len(first) {
		b.others = append(b.others, others)
	}
}

// each calls f with the services and protocols that are shown by name, without those that have
// been collected since. All stripe locks are held.
func (b *busiest) each(m *Manager, f func(*pool)) {
	if b.few {
		m.dir.each(f)
		return
	}
	for _, p := range b.named {
		if m.dir.find(p.kind, p.name) == p {
			f(p)
		}
	}
}

// reading returns the numbers of a scope. All stripe locks are held.
func (p *pool) reading() scopeReading {
	use := p.used() // before peak is read, because used may raise it
	s := scopeReading{kind: p.kind, name: p.name, use: use, limit: p.limit, peak: p.peak}
	for d := range numDims {
		if p.kind.canRunOutOf(d) && p.tight(d) {
			s.tight++
		}
	}
	s.burst, s.left = p.tokens()
	return s
}

// compareBusy orders scopes by what they hold, the busiest first.
func compareBusy(a, b *scopeReading) int {
	return cmp.Or(
		cmp.Compare(b.use[dimStreams], a.use[dimStreams]),
		cmp.Compare(b.use[dimMemory], a.use[dimMemory]),
		cmp.Compare(a.name, b.name))
}

// othersOf returns an empty sum for many scopes of a kind. The sum has no limit, and no
// peak, because not all of the scopes were at their peak at the same time.
func othersOf(k Kind) scopeReading {
	s := scopeReading{kind: k, name: othersName}
	for d := range s.limit {
		s.limit[d] = math.MaxInt64
	}
	return s
}

// include adds what one scope holds to a sum made by othersOf.
func (s *scopeReading) include(o *scopeReading) {
	s.use.addCapped(&o.use)
	s.tight += o.tight
	s.burst.addCapped(&o.burst)
	s.left.addCapped(&o.left)
}

// scopeReading has the numbers of one shared scope.
type scopeReading struct {
	kind             Kind
	name             string // of a service or protocol; empty for the other scopes
	use, limit, peak amounts
	tight            int // how many of its limits are decided on the exact sum
	// burst and left are the tokens of its rates: of a full bucket, which is 0 without a rate,
	// and those that are in it.
	burst, left amounts
}

// counts are numbers that only grow while a manager lives.
type counts struct {
	engineCounts
	// would and wouldRationed count what limits that are only observed would have refused.
	would         [numKinds]dimCounts
	wouldRationed rationCounts

	callerBugs    uint64
	failedLookUps uint64 // of host names in the allowlist
	room          roomTotals
}

func (c *counts) add(o *counts) {
	c.engineCounts.add(&o.engineCounts)
	for k := range numKinds {
		c.would[k].add(&o.would[k])
	}
	c.wouldRationed.add(&o.wouldRationed)
	c.callerBugs += o.callerBugs
	c.failedLookUps += o.failedLookUps
	c.room.add(&o.room)
}

func (s *scopeReading) join(o *scopeReading) {
	s.use.addCapped(&o.use)
	s.limit.addCapped(&o.limit)
	s.peak.addCapped(&o.peak)
	s.tight += o.tight
}

func (a *amounts) raise(b *amounts) {
	for d := range a {
		a[d] = max(a[d], b[d])
	}
}
