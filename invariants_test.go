package rcmgr

// What must hold of a manager at every instant (the invariants of doc.go), what
// must be left when everything is done, and the books of all its accounts.

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/spread"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// checkInvariants checks I1, I4 and the books that are kept along the way.
// With lowered, limits may have been set below what was in use.
func checkInvariants(t testing.TB, m *Manager, lowered bool) {
	t.Helper()
	var err error
	m.inOneCut(func() { err = brokenInvariant(m, lowered) })
	require.NoError(t, err)
}

// brokenInvariant returns the first invariant that does not hold. All stripe
// locks are held.
func brokenInvariant(m *Manager, lowered bool) error {
	named := m.dir.list()
	for _, p := range m.fixed {
		if err := brokenPool(p, lowered); err != nil {
			return err
		}
	}
	for _, p := range named {
		if err := brokenPool(p, lowered); err != nil {
			return err
		}
		members := 0
		for i, sh := range p.shares {
			var known *share
			if st := &m.stripes[i]; st.awakened != nil {
				known = st.named(p.kind)[p.name]
			}
			if sh != known {
				return fmt.Errorf("I7: stripe %d knows another %v than the directory", i, p.scope())
			}
			if sh != nil {
				members++
			}
		}
		if members != p.members || members == 0 && !p.sticky {
			return fmt.Errorf("I7: %v has %d shares, counted are %d", p.scope(), members, p.members)
		}
	}
	var every, transient, protocols, peers amounts // I4: over both systems
	for i := range m.stripes {
		st := &m.stripes[i]
		if err := brokenStripe(st, lowered); err != nil {
			return fmt.Errorf("stripe %d: %w", i, err)
		}
		if !st.woken.Load() {
			continue
		}
		every.addHeld(&st.fixed[KindSystem].use)
		every.addHeld(&st.fixed[KindAllowlistedSystem].use)
		transient.addHeld(&st.fixed[KindTransient].use)
		transient.addHeld(&st.fixed[KindAllowlistedTransient].use)
		for _, sh := range st.protocols {
			protocols.addHeld(&sh.use)
			if len(named) == 0 || m.dir.find(sh.kind, sh.pool.name) != sh.pool {
				return fmt.Errorf("I7: %v is not in the directory", sh.name())
			}
		}
		for _, sh := range st.services {
			if m.dir.find(sh.kind, sh.pool.name) != sh.pool {
				return fmt.Errorf("I7: %v is not in the directory", sh.name())
			}
		}
		for ps := range st.allPeers {
			peers.addHeld(&ps.use)
		}
	}
	for d := dimStreamsIn; d < numDims; d++ {
		// Every stream has a peer, and is in transient or in one protocol.
		// Every connection is in transient or has a peer.
		want := transient[d] + peers[d]
		if d <= dimStreams {
			want = transient[d] + protocols[d]
			if peers[d] != every[d] {
				return fmt.Errorf("I4: peers hold %d of dimension %d, the systems %d", peers[d], d, every[d])
			}
		}
		if want != every[d] {
			return fmt.Errorf("I4: parts hold %d of dimension %d, the systems %d", want, d, every[d])
		}
	}
	// Two systems without limits may hold more bytes together than an int64.
	if peers, every := uint64(peers[dimMemory]), uint64(every[dimMemory]); peers > every {
		return fmt.Errorf("I4: peers hold %d bytes, the systems %d", peers, every)
	}
	return nil
}

func brokenPool(p *pool, lowered bool) error {
	for d := range numDims {
		l := p.tally(d)
		var use, credit, idle int64
		for _, sh := range p.shares {
			if sh == nil {
				continue
			}
			if sh.pool != p || sh.limit() != &p.limit || sh.ready != &sh.credit {
				return fmt.Errorf("%v: a share points elsewhere", p.scope())
			}
			if sh.use.of(d) > sh.credit[d] {
				return fmt.Errorf("I1: %v: a share uses %d of dimension %d on a credit of %d", p.scope(), sh.use.of(d), d, sh.credit[d])
			}
			if sh.credit[d]-sh.use.of(d) > 2*l.batch {
				return fmt.Errorf("I1: %v: a share keeps %d of dimension %d idle, a batch is %d", p.scope(), sh.credit[d]-sh.use.of(d), d, l.batch)
			}
			use, credit = use+sh.use.of(d), credit+sh.credit[d]
		}
		idle = credit - use
		switch {
		case credit != l.handed:
			return fmt.Errorf("I1: %v: shares hold credit %d of dimension %d, handed out are %d", p.scope(), credit, d, l.handed)
		case l.handed > l.limit && !lowered:
			return fmt.Errorf("I2: %v: %d of dimension %d handed out, the limit is %d", p.scope(), l.handed, d, l.limit)
		case l.tight && idle != 0:
			return fmt.Errorf("I1: %v: tight in dimension %d, but %d lies idle", p.scope(), d, idle)
		case !l.tight && (idle > l.limit/8 || l.handed > l.limit/2 || l.batch == 0):
			return fmt.Errorf("I1: %v: loose in dimension %d: limit %d, batch %d, handed %d, idle %d", p.scope(), d, l.limit, l.batch, l.handed, idle)
		case l.tight && l.batch > 0 && l.handed < l.limit/4:
			return fmt.Errorf("%v: tight in dimension %d, though only %d of %d is in use", p.scope(), d, l.handed, l.limit)
		case l.batch != l.limit/int64(16*len(p.shares)):
			return fmt.Errorf("%v: dimension %d: a batch of %d for a limit of %d", p.scope(), d, l.batch, l.limit)
		case l.tight && p.peak[d] < use:
			return fmt.Errorf("%v: dimension %d: the peak is %d, and %d are used", p.scope(), d, p.peak[d], use)
		}
	}
	return nil
}

// brokenStripe checks what can be seen in one stripe alone.
func brokenStripe(st *stripe, lowered bool) error {
	if !st.woken.Load() {
		if st.awakened != nil || st.fixed != [len(st.fixed)]*share{} || st.spare != nil {
			return errors.New("a stripe that nobody uses has something")
		}
		return nil
	}
	queued := make(map[*account]bool, len(st.queue))
	for _, a := range st.queue {
		queued[a] = true
	}
	check := func(a *account) error {
		u := a.use.amounts()
		switch {
		case slices.Min(u[:]) < 0 || ownOf(a) < 0 || ownOf(a) > u[dimMemory]:
			return fmt.Errorf("%v uses %v, %d bytes of its own", a.name(), u, ownOf(a))
		case u[dimStreams] != u[dimStreamsIn]+u[dimStreamsOut] || u[dimConns] != u[dimConnsIn]+u[dimConnsOut]:
			return fmt.Errorf("%v: a total is not the sum of its directions: %v", a.name(), u)
		case a.ps != nil && !a.sticky && !lowered && exceeds(&u, a.limit()):
			return fmt.Errorf("I2: %v uses %v of %v", a.name(), u, *a.limit())
		case a.refs < 0 || a.gone || a.queued != queued[a]:
			return fmt.Errorf("I7: %v: %d references, gone %v, queued %v", a.name(), a.refs, a.gone, a.queued)
		case !a.lasting() && a.unused() && !a.queued:
			return fmt.Errorf("I7: %v is unused, but nobody will collect it", a.name())
		}
		return nil
	}
	parts := make(map[*share]*amounts) // what the pairs of a share hold
	for _, group := range []map[string]*share{st.services, st.protocols} {
		for _, sh := range group {
			if err := check(&sh.account); err != nil {
				return err
			}
			parts[sh] = new(amounts)
		}
	}
	for _, sh := range st.fixed {
		if err := check(&sh.account); err != nil {
			return err
		}
	}
	idle := st.idle
	if st.spare != nil {
		idle = append(slices.Clone(idle), st.spare)
	}
	for _, h := range idle {
		if h.tree.at.Load() != st || !h.done || h.use != 0 || h.own != 0 {
			return fmt.Errorf("a holder that waits for the next lies elsewhere, or holds %d bytes", h.use)
		}
	}
	var conns, streams [2]int64
	var memory int64
	var inTransient [2]int64
	for ps := range st.allPeers {
		if err := check(&ps.account); err != nil {
			return err
		}
		for d, n := range ps.use.amounts() {
			if ps.peak.of(dim(d)) < n {
				return fmt.Errorf("%v: dimension %d: the peak is %d, and %d are used", ps.name(), d, ps.peak.of(dim(d)), n)
			}
		}
		listed := 0
		for pr := ps.pairs; pr != nil; pr = pr.next {
			listed++
		}
		if listed > manyPairs || ps.byShare() != nil && listed > 0 {
			return fmt.Errorf("%v: %d pairs in the list, and %d in the map", ps.name(), listed, len(ps.byShare()))
		}
		for _, pr := range ps.allPairs() {
			if err := check(&pr.account); err != nil {
				return err
			}
			if parts[pr.share] == nil {
				return fmt.Errorf("I7: %v stands on a share that is gone", pr.name())
			}
			parts[pr.share].addHeld(&pr.use)
			for d, n := range pr.use.amounts() {
				if n > ps.use.of(dim(d)) {
					return fmt.Errorf("I4: %v holds more than its peer", pr.name())
				}
			}
		}
		if ps.trusted < 0 || ps.transientStreams[0] < 0 || ps.transientStreams[1] < 0 {
			return fmt.Errorf("%v: %d trusted connections, %d streams in transient", ps.name(), ps.trusted, ps.transientStreams)
		}
		conns[0], conns[1] = conns[0]+ps.use.of(dimConnsIn), conns[1]+ps.use.of(dimConnsOut)
		streams[0], streams[1] = streams[0]+ps.use.of(dimStreamsIn), streams[1]+ps.use.of(dimStreamsOut)
		memory += ps.use.of(dimMemory)
		for i, n := range ps.transientStreams {
			inTransient[i] += int64(n)
		}
	}
	for sh, part := range parts {
		for d, n := range part {
			if use := sh.use.of(dim(d)); n != use && dim(d) != dimMemory || n > use {
				return fmt.Errorf("I4: %v: holds %v, the peers' parts of it %v", sh.name(), sh.use, *part)
			}
		}
	}
	for i, d := range []dim{dimStreamsIn, dimStreamsOut} {
		if n := st.fixed[KindTransient].use.of(d); n != inTransient[i] {
			return fmt.Errorf("I4: peers hold %d %s in transient, which has %d", inTransient[i], limitNames[d], n)
		}
	}
	for i := range conns {
		connsNow, streamsNow := st.peerCounts[(dimConnsIn+dim(i)).oneWay()], st.peerCounts[(dimStreamsIn+dim(i)).oneWay()]
		if connsNow.Sum != conns[i] || streamsNow.Sum != streams[i] || st.peerMemory.Sum != memory {
			return errors.New("a distribution is not that of the peers")
		}
	}
	return nil
}

func (a *amounts) add(b *amounts) {
	for d := range a {
		a[d] += b[d]
	}
}

func exceeds(use, limit *amounts) bool {
	for d := range use {
		if use[d] > limit[d] {
			return true
		}
	}
	return false
}

// assertEmpty checks that nothing is held, and that nothing that is idle stays
// behind except limits that were set by hand.
func assertEmpty(t testing.TB, m *Manager) {
	t.Helper()
	checkInvariants(t, m, false)
	check := func(a *account) {
		if a.use != (held{}) || ownOf(a) != 0 {
			t.Errorf("%v still holds %v, %d bytes of its own", a.name(), a.use, ownOf(a))
		}
	}
	m.inOneCut(func() {
		for i := range m.stripes {
			st := &m.stripes[i]
			if !st.woken.Load() {
				continue
			}
			for _, sh := range st.fixed {
				check(&sh.account)
			}
			for _, group := range []map[string]*share{st.services, st.protocols} {
				for _, sh := range group {
					check(&sh.account)
				}
			}
			for ps := range st.allPeers {
				check(&ps.account)
				for _, pr := range ps.allPairs() {
					check(&pr.account)
				}
			}
			for _, s := range append(st.peerCounts[:], st.peerMemory, st.connMemory) {
				if s != (spread.Spread{}) {
					t.Errorf("a distribution is not empty: %v", s)
				}
			}
		}
	})
	m.reap()
	m.inOneCut(func() {
		for i := range m.stripes {
			st := &m.stripes[i]
			if !st.woken.Load() {
				continue
			}
			if len(st.services)+len(st.protocols)+len(st.queue) != 0 {
				t.Errorf("stripe %d: services %v, protocols %v, %d in the queue", i, st.services, st.protocols, len(st.queue))
			}
			for ps := range st.allPeers {
				if !ps.sticky || ps.refs != 0 || len(ps.allPairs()) != 0 {
					t.Errorf("%v stays: %d references, %d pairs", ps.name(), ps.refs, len(ps.allPairs()))
				}
			}
		}
		for _, p := range m.dir.list() {
			if !p.sticky || p.members != 0 {
				t.Errorf("%v stays with %d members", p.scope(), p.members)
			}
			for d := range numDims {
				if l := p.tally(d); l.handed != 0 {
					t.Errorf("%v: %d of dimension %d are handed out to nobody", p.scope(), l.handed, d)
				}
			}
		}
	})
	checkInvariants(t, m, false)
}

// requireGatesEmpty checks that the gates count no connection, and keep no
// bucket once all are full again.
func requireGatesEmpty(t testing.TB, m *Manager) {
	t.Helper()
	require.Zero(t, countEntries(t, m.gate().subnets))
	for _, s := range []*subnets.Subnets{m.gate().subnets, m.gate().sources} {
		s.Forget(time.Hour)
		require.Zero(t, bucketEntries(t, s))
		require.Zero(t, countEntries(t, s))
	}
}

// countEntries counts the subnets that have connections, on all levels, and checks
// that the records hang together. No goroutine may be using s.
func countEntries(t testing.TB, s *subnets.Subnets) int {
	t.Helper()
	require.NoError(t, s.Check())
	n, _ := s.InUse()
	return n
}

// bucketEntries is countEntries for the buckets that are kept.
func bucketEntries(t testing.TB, s *subnets.Subnets) int {
	t.Helper()
	require.NoError(t, s.Check())
	_, n := s.InUse()
	return n
}

// holding is what one account holds; the zero value is nothing.
type holding struct {
	use  amounts
	own  int64
	refs int32
}

// allPairs returns the peer's parts of services and protocols.
func (ps *peerScope) allPairs() (all []*pair) {
	for pr := ps.pairs; pr != nil; pr = pr.next {
		all = append(all, pr)
	}
	return slices.AppendSeq(all, maps.Values(ps.byShare()))
}

// ownOf returns the memory that was reserved at the account's scope itself.
func ownOf(a *account) int64 {
	if at := a.asDirect(); at != nil {
		return at.own
	}
	return 0
}

// books is what every account holds in one cut, by name. How much credit lies
// idle where is not part of it, nor are accounts that hold nothing.
func books(m *Manager) map[string]holding {
	b := make(map[string]holding)
	note := func(a *account, pairs int) {
		name := a.name()
		h := b[name.String()]
		h.use.addHeld(&a.use)
		h.own += ownOf(a)
		if a.ps != nil {
			h.refs = a.refs - int32(pairs) // shares and peers are also referred to by those
		}
		if h != (holding{}) {
			b[name.String()] = h
		}
	}
	m.inOneCut(func() {
		for i := range m.stripes {
			st := &m.stripes[i]
			if !st.woken.Load() {
				continue
			}
			for _, sh := range st.fixed {
				note(&sh.account, 0)
			}
			for _, group := range []map[string]*share{st.services, st.protocols} {
				for _, sh := range group {
					note(&sh.account, 0)
				}
			}
			for ps := range st.allPeers {
				pairs := ps.allPairs()
				note(&ps.account, len(pairs))
				for _, pr := range pairs {
					note(&pr.account, 0)
				}
			}
		}
	})
	return b
}
