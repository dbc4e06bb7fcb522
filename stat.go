package rcmgr

// Stat, as go-libp2p's own manager has it, and the reading that metrics are made from.

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Stat returns what every scope holds, all at the same instant. It holds all stripe locks
// while it copies the numbers of every peer, some milliseconds for 100,000 peers. It is safe
// for concurrent use.
func (m *Manager) Stat() ResourceManagerStat {
	peers := m.roomForPeers()
	c := m.newCut(peers, peers/16)
	m.inOneCut(func() {
		c.addFixed(m)
		m.dir.each(c.addPool)
		c.addAllPeers(m)
	})
	stat := ResourceManagerStat{
		Services:  make(map[string]network.ScopeStat),
		Protocols: make(map[protocol.ID]network.ScopeStat),
		Peers:     make(map[peer.ID]network.ScopeStat, len(c.peers)),
	}
	for i := range c.shared {
		s := &c.shared[i]
		use := s.use.stat()
		switch s.name.kind {
		case KindSystem:
			stat.System = use
		case KindTransient:
			stat.Transient = use
		case KindAllowlistedSystem:
			stat.AllowlistedSystem = use
		case KindAllowlistedTransient:
			stat.AllowlistedTransient = use
		case KindService:
			stat.Services[s.name.text] = use
		case KindProtocol:
			stat.Protocols[protocol.ID(s.name.text)] = use
		}
	}
	for i := range c.peers {
		use := c.peers[i].use.amounts()
		stat.Peers[c.peers[i].ps.id] = use.stat()
	}
	m.endCut(c)
	return stat
}

// addTo adds the stripe's numbers to a reading. The stripe's lock is held.
func (st *stripe) addTo(r *reading) {
	n := st.awakened
	if n == nil {
		return
	}
	for dir := range dim(2) {
		r.peerConns[dir].Add(&n.peerCounts[(dimConnsIn + dir).oneWay()])
		r.peerStreams[dir].Add(&n.peerCounts[(dimStreamsIn + dir).oneWay()])
	}
	r.peerMemory.Add(&n.peerMemory)
	r.connMemory.Add(&n.connMemory)
	r.peers += st.numPeers()
	st.addCounts(&r.counts.engineCounts)
	st.addWouldRefuse(&r.counts.would)
	if n.observed != nil {
		r.counts.wouldRationed.add(&n.observed.rationed)
	}
}

// read returns the reading that metrics show. It visits the shared scopes and the stripes,
// but not the peers and subnets, because the stripes keep their distributions up to date.
//
// The numbers belong to one instant, with two exceptions. The sum of the services and
// protocols that are not named is taken right before. The bugs of callers, the gates, the
// memory of the process and the host names of the allowlist are read right after.
func (m *Manager) read() reading { return m.readWith(m.busiest()) }

// readWith is read with the services and protocols that are named.
func (m *Manager) readWith(b *busiest) reading {
	r := reading{managers: 1, stripes: len(m.stripes)}
	m.inOneCut(func() {
		ever, recent := m.memberPeaks()
		r.memberPeaks, r.recentPeaks = ever.byKind(), recent.byKind()
		r.classes = m.limits.Load().byKind()
		read := func(p *pool) { r.scopes = append(r.scopes, p.reading()) }
		for _, p := range m.fixed {
			read(p)
		}
		b.each(m, read)
		r.refusable = m.refusable(r.scopes[:len(m.fixed)])
		for i := range m.stripes {
			m.stripes[i].addTo(&r)
		}
	})
	r.scopes = append(r.scopes, b.others...)
	r.counts.callerBugs = m.callerBugs.Load()
	if r.process = m.pressure.state(); r.process.Refusing {
		r.pressed = 1
	}
	if m.room != nil {
		now := m.room.State()
		r.rooms, r.kept = 1, now.Kept
		r.counts.room.addState(&now)
	}
	r.names.waiting, r.names.answered, r.names.failing, r.counts.failedLookUps = m.names.tally()
	r.subnets, r.rateBuckets = m.gate().inUse()
	m.gate().addRefusals(&r.counts.refusals, &r.counts.would)
	for _, k := range m.Observed() {
		r.observed[k]++
	}
	for _, k := range gateKinds { // each of their refusals blocked one connection
		for d, n := range r.counts.refusals[k] {
			r.counts.blocked[k][d] = int64(n)
		}
	}
	return r
}

// refusable returns what the manager may refuse, given the readings of the scopes that always
// exist. All stripe locks are held.
func (m *Manager) refusable(fixed []scopeReading) (may refusable) {
	may.limits = m.limits.Load().mayRefuse
	for i := range fixed {
		s := &fixed[i]
		if s.kind.allowlisted() && s.use == (amounts{}) && !m.allowlist.hasEntries() {
			continue // nothing is asked of it
		}
		limits := dimSetOf(func(d dim) bool { return s.kind.mayRefuse(d, s.limit[d]) })
		may.limits[s.kind] = limits
		if s.kind == KindTransient && m.newcomers && limits.has(dimStreams) {
			limits |= 1 << dimStreamsOut // they leave a part of the total to inbound ones
		}
		if m.earmarks != nil && s.kind <= KindTransient {
			may.marked[s.kind] = limits
		}
		switch {
		case m.fair.on(s.kind):
			may.shares[s.kind] = limits & dimSetOf(s.kind.hasShares)
		case m.newcomers:
			may.crowded |= limits & dimSetOf(s.kind.hasLastQuarter)
		}
	}
	for k := range may.limits {
		may.limits[k] |= dimSet(m.setByHand[k].Load())
	}
	may.rates = m.limits.Load().ratedDims()
	for k := range may.rates {
		may.rates[k] |= dimSet(m.setByHand[k].Load() >> rateBits)
	}
	for k, dims := range m.gate().refusable() {
		may.limits[k] |= dims
	}
	if m.pressure != nil {
		may.limits[KindProcess] = dimSetOf(KindProcess.canRunOutOf)
	}
	return may
}
