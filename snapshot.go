package rcmgr

// One look at everything: what every scope holds, may hold, has held at most
// and has refused. The numbers are copied under all stripe locks, and so belong
// to one instant; names, order and text are made afterwards. Which peers are the
// fullest is found out before, a few peers at a time, so that a look at the
// fullest of a million peers keeps nobody waiting for long.

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Amounts is an amount of everything that is limited: counts, and bytes of memory.
type Amounts struct {
	Streams         int
	StreamsInbound  int
	StreamsOutbound int
	Conns           int
	ConnsInbound    int
	ConnsOutbound   int
	FD              int
	Memory          int64
}

// ScopeState is what one scope holds and what it may hold. In JSON, the numbers
// stand together by limit: Limits.ConnsInbound has Limit, Use, Percent, Peak,
// Refusals and Tight. Limit is a number, "unlimited" or "blockAll"; Percent is
// left out where there is none. It is read as it is written.
type ScopeState struct {
	// Name is the scope's name as it stands in errors: "system",
	// "protocol:/ipfs/ping/1.0.0", "peer:12D3Koo…".
	Name string
	Kind Kind
	// ID is the service's or protocol's name, or the peer's ID as text; empty
	// for the scopes that are always there.
	ID    string
	Use   network.ScopeStat
	Limit BaseLimit
	// Peak is the most that the scope has held of each, at one instant since it was
	// made. For peers, and above half of a limit, nothing is missed. Below, it is the
	// most that was seen when somebody looked: the manager does once a second, and so do
	// Snapshot, Stat and each scrape of the metrics.
	Peak Amounts
	// Refusals counts what this very scope has refused since it was made, and
	// WouldRefuse what it admitted because its limit is only observed.
	Refusals    Refusals
	WouldRefuse Refusals
	// Tight names the limits that are decided on the exact sum, because much of
	// them is taken: "ConnsInbound". Peers have none.
	Tight []string
}

// MemberPeak is the most that any one member of a class has held of each: Ever since the
// manager was made, Recent in the last one to two minutes. Each number was held at an
// instant, by whichever member.
type MemberPeak struct{ Ever, Recent Amounts }

// EngineState says how the engine works inside. It is for those who measure it: what it has
// may change with any version.
type EngineState struct {
	Stripes int // locks that the accounts are divided over
	// Draws and Returns count how often a stripe took credit from a shared
	// scope, and gave some back.
	Draws, Returns uint64
	// Settled counts decisions that needed all stripes.
	Settled uint64
}

// Snapshot is the state of a manager in one consistent cut: the numbers of all
// scopes belong to the same instant. It is a value like any other, and is read
// from JSON as it is written.
type Snapshot struct {
	Taken   time.Time
	Started time.Time // when the manager was made
	// Sizing is what the limits were computed for.
	Sizing Sizing `json:",omitzero"`
	// Scopes holds the system, transient and allowlisted scopes, then services,
	// protocols and peers, each sorted by name.
	Scopes []ScopeState
	// Peers, Services and Protocols are how many have a scope. Scopes holds all of
	// them, or those that SnapshotTop found.
	Peers, Services, Protocols int
	// MemberPeaks has what a limit on each peer, and on each peer in a service or
	// protocol, has to leave room for: see MemberPeak.
	MemberPeaks map[Kind]MemberPeak `json:",omitempty"`
	// Refusals counts, for each kind of scope and gate, what it refused since
	// the manager was made.
	Refusals map[Kind]Refusals
	// WouldRefuse counts likewise what was admitted beyond a limit that is only
	// observed, and Observed tells which are; see WithObserveOnly.
	WouldRefuse map[Kind]Refusals `json:",omitempty"`
	Observed    []Kind            `json:",omitempty"`
	// Recent has the number of all refusals as it was every ten seconds in the
	// last five minutes, the oldest first. It is empty in the first ten seconds.
	Recent []RefusalsAt `json:",omitempty"`
	// CallerBugs counts calls that broke the contract of a scope: more
	// released than reserved, a negative size, a limit that is none.
	CallerBugs uint64
	// LateReleases counts releases of memory at scopes that were done. They do
	// nothing: the end of the scope had released everything. go-libp2p's
	// identify does it routinely.
	LateReleases uint64
	Gates        GateState
	// Process is the memory of the whole process; empty without WithMemoryPressure.
	Process ProcessMemory `json:",omitzero"`
	// FairShare is what subnets hold; empty without WithFairShare. It is read a little
	// later than the scopes.
	FairShare FairShareState `json:",omitzero"`
	Engine    EngineState
	// Leaks has the oldest open scopes; empty without WithLeakFinder.
	Leaks LeakState `json:",omitzero"`
}

// Uptime is how old the manager was when the snapshot was taken.
func (s *Snapshot) Uptime() time.Duration { return s.Taken.Sub(s.Started) }

// Snapshot gives the state of the manager with all its peers. It takes all
// stripe locks for as long as it takes to copy the numbers of every peer: a host
// with very many of them is better served by SnapshotTop. It is safe for
// concurrent use, as SnapshotTop is.
func (m *Manager) Snapshot() Snapshot {
	return m.snapshot(fullestSubnets, func(c *cut) {
		c.addPools(m.dir.list())
		for i := range m.stripes {
			for _, ps := range m.stripes[i].peers {
				c.addPeer(ps)
			}
		}
	})
}

// SnapshotTop gives the state of the manager with its fullest peers: for each
// limit the given number of peers that hold the most, and as many that were
// refused the most; and with the 256 services and 256 protocols that hold the most
// streams, or memory where these are as many. Which these are is found out right before
// the cut, a few at a time. The time under all stripe locks, and the memory, depend on
// the number that is asked for, not on how many peers and names there are. 0 or less is
// no peer at all. As many subnets are given.
func (m *Manager) SnapshotTop(peers int) Snapshot {
	peers = max(0, peers)
	top, names := m.topPeers(peers), m.busiest()
	return m.snapshot(peers, func(c *cut) {
		c.addPools(names.present(m))
		for _, id := range top {
			if ps := m.stripeOf(id).peers[id]; ps != nil { // it may have gone since
				c.addPeer(ps)
			}
		}
	})
}

// fullestSubnets is how many subnets a Snapshot has.
const fullestSubnets = 20

// cut gathers numbers under all stripe locks.
type cut struct{ scopes []scopeCut }

type scopeCut struct {
	name             scopeName
	use, peak, limit amounts
	denied           denials
	tight            [numDims]bool
}

func (c *cut) addPools(pools []*pool) {
	for _, p := range pools {
		use := p.used() // before peak, which it may raise
		s := scopeCut{name: p.scope(), use: use, peak: p.peak, limit: p.limit, denied: p.denials()}
		for d := range numDims {
			s.tight[d] = p.tight(d)
		}
		c.scopes = append(c.scopes, s)
	}
}

func (c *cut) addPeer(ps *peerScope) {
	s := scopeCut{name: ps.name(), use: ps.use.amounts(), peak: ps.peak.amounts(), limit: *ps.limit()}
	s.denied.addOf(&ps.account)
	c.scopes = append(c.scopes, s)
}

// snapshot is a Snapshot with the services, protocols and peers that add adds.
func (m *Manager) snapshot(subnets int, add func(*cut)) Snapshot {
	s := Snapshot{Started: m.started, Recent: m.history.all(),
		Engine: EngineState{Stripes: len(m.stripes)}}
	var c cut
	var counted engineCounts
	var would [numKinds]dimCounts
	var ever, recent memberPeaks
	m.inOneCut(func() {
		s.Taken, s.Observed, s.Sizing = time.Now(), m.Observed(), m.limits.Load().sizing()
		c.addPools(m.fixed[:])
		add(&c)
		s.Services, s.Protocols = m.dir.sizes()
		ever, recent = m.memberPeaks()
		for i := range m.stripes {
			st := &m.stripes[i]
			s.Peers += len(st.peers)
			st.addCounts(&counted)
			st.addWouldRefuse(&would)
		}
	})
	s.MemberPeaks = make(map[Kind]MemberPeak)
	for slot, k := range memberKinds {
		most, lately := ever[slot].amounts(), recent[slot].amounts()
		s.MemberPeaks[k] = MemberPeak{Amounts(most.baseLimit()), Amounts(lately.baseLimit())}
	}
	s.CallerBugs, s.LateReleases = m.callerBugs.Load(), counted.lateReleases
	s.Engine.Draws, s.Engine.Returns, s.Engine.Settled = counted.draws, counted.returns, counted.settled
	s.Gates = m.gate().state(subnets)
	s.Process = m.pressure.state()
	s.FairShare = m.fair.state(subnets)
	s.Leaks = m.leaks.state()
	m.gate().addRefusals(&counted.refusals, &would)
	s.Scopes = make([]ScopeState, len(c.scopes))
	for i := range c.scopes {
		s.Scopes[i] = c.scopes[i].state()
	}
	slices.SortFunc(s.Scopes, compareScopes)
	s.Refusals = countsByKind(&counted.refusals)
	if would != ([numKinds]dimCounts{}) {
		s.WouldRefuse = countsByKind(&would)
	}
	return s
}

func countsByKind(counts *[numKinds]dimCounts) map[Kind]Refusals {
	byKind := make(map[Kind]Refusals)
	for k := range counts {
		if counts[k] != (dimCounts{}) {
			byKind[Kind(k)] = counts[k].refusals()
		}
	}
	return byKind
}

func compareScopes(a, b ScopeState) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

func (c *scopeCut) state() ScopeState {
	s := ScopeState{
		Name: c.name.String(), Kind: c.name.kind, ID: c.name.text,
		Use: c.use.stat(), Limit: c.limit.baseLimit(), Peak: Amounts(c.peak.baseLimit()),
		Refusals: c.denied.refused.refusals(), WouldRefuse: c.denied.would.refusals(),
	}
	if s.Kind == KindPeer {
		s.ID = c.name.peer.String()
	}
	for d, tight := range c.tight {
		if tight {
			s.Tight = append(s.Tight, limitNames[d])
		}
	}
	return s
}

// topPeers returns the peers that hold the most of anything, or were refused the
// most, n for each of these.
func (m *Manager) topPeers(n int) []peer.ID {
	var best [numDims + 1][]rankedPeer
	greatest := func(a, b rankedPeer) int { return cmp.Compare(b.value, a.value) }
	rank := func(d dim, id peer.ID, value uint64) {
		if value > 0 {
			best[d] = offer(best[d], rankedPeer{id, value}, n, greatest)
		}
	}
	for i := range m.stripes {
		m.stripes[i].eachPeer(func(ps *peerScope) {
			for d, held := range ps.use.amounts() {
				rank(dim(d), ps.id, uint64(held))
			}
			if ps.denied != nil {
				r := ps.denied.refused.refusals()
				rank(numDims, ps.id, r.Total())
			}
		})
	}
	var all []peer.ID
	for _, first := range best {
		for _, p := range first {
			all = append(all, p.id)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

type rankedPeer struct {
	id    peer.ID
	value uint64
}

func (s *Snapshot) totalRefusals() (n uint64) {
	for _, r := range s.Refusals {
		n += r.Total()
	}
	return n
}

// refusalRate is how many requests were refused each second until At, since the
// rate before it.
type refusalRate struct {
	At        time.Time
	PerSecond float64
}

// refusalRates gives the rates of refusals in the last minutes up to now, the
// oldest first.
func (s *Snapshot) refusalRates() (rates []refusalRate) {
	var known []RefusalsAt
	if s.Uptime() <= historyLength*historyInterval {
		known = append(known, RefusalsAt{At: s.Started}) // nothing had been refused
	}
	known = append(known, s.Recent...)
	if n := len(known); n > 1 && s.Taken.Sub(known[n-1].At) < historyInterval/2 {
		known = known[:n-1] // else the rate of the last moment is one of very few
	}
	known = append(known, RefusalsAt{s.Taken, s.totalRefusals()})
	for i, to := range known[1:] {
		from := known[i]
		if seconds := to.At.Sub(from.At).Seconds(); seconds > 0 && to.Refusals >= from.Refusals {
			rates = append(rates, refusalRate{to.At, float64(to.Refusals-from.Refusals) / seconds})
		}
	}
	return rates
}
