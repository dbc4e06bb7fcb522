package rcmgr

// Which services and protocols a look names, where there are many of them: strangers may
// have brought them about. Under all stripe locks, a look visits a bounded number of scopes.
// Which are the busiest is found out before, a few at a time, and so is what all others hold
// together.

import (
	"cmp"
	"math"
	"slices"
)

const (
	// mostNamed bounds how many services, and how many protocols, are shown
	// each by its name.
	mostNamed = 256
	// othersName stands for all others together.
	othersName = "(others)"
	// namesAtOnce bounds the services and protocols that are looked at under all stripe
	// locks to find the busiest.
	namesAtOnce = 64
)

// busiest is what a look knows of services and protocols before its cut.
type busiest struct {
	few    bool // there are so few that all are shown
	named  []*pool
	others []scopeReading // what those of a kind hold that are not named
}

// busiest finds the services and the protocols that hold the most streams, or of those that
// hold as many, memory. Each of them is seen at one instant, but not all at the same one.
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
				// One more than are named, and that one joins the others.
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

// present returns the services and protocols that are to be shown by name, but for those
// that have gone since. All stripe locks are held.
func (b *busiest) present(m *Manager) []*pool {
	if b.few {
		return m.dir.list()
	}
	return slices.DeleteFunc(slices.Clone(b.named), func(p *pool) bool { return m.dir.find(p.kind, p.name) != p })
}

// reading returns what a scope says. All stripe locks are held.
func (p *pool) reading() scopeReading {
	use := p.used() // before peak, which it may raise
	s := scopeReading{kind: p.kind, name: p.name, use: use, limit: p.limit, peak: p.peak}
	for d := range numDims {
		if p.kind.canRunOutOf(d) && p.tight(d) {
			s.tight++
		}
	}
	return s
}

// compareBusy orders scopes by what they hold, the busiest first.
func compareBusy(a, b *scopeReading) int {
	return cmp.Or(
		cmp.Compare(b.use[dimStreams], a.use[dimStreams]),
		cmp.Compare(b.use[dimMemory], a.use[dimMemory]),
		cmp.Compare(a.name, b.name))
}

// othersOf returns what stands for many scopes of a kind: it has no limit, and, as all of
// them never were at their peak together, no peak.
func othersOf(k Kind) scopeReading {
	s := scopeReading{kind: k, name: othersName}
	for d := range s.limit {
		s.limit[d] = math.MaxInt64
	}
	return s
}

// include adds what one of them holds.
func (s *scopeReading) include(o *scopeReading) {
	s.use.addCapped(&o.use)
	s.tight += o.tight
}

// scopeReading is what one scope that all peers share says.
type scopeReading struct {
	kind             Kind
	name             string // of the service or protocol; empty for others
	use, limit, peak amounts
	tight            int // how many of its limits are decided on the exact sum
}

// counts is what only grows while a manager lives.
type counts struct {
	engineCounts
	// The same for what would have been refused by limits that are only observed.
	would         [numKinds]dimCounts
	wouldRationed rationCounts

	callerBugs uint64
}

func (c *counts) add(o *counts) {
	c.engineCounts.add(&o.engineCounts)
	for k := range numKinds {
		c.would[k].add(&o.would[k])
	}
	c.wouldRationed.add(&o.wouldRationed)
	c.callerBugs += o.callerBugs
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
