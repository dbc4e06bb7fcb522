package rcmgr

// Snapshots: what every scope holds, its limits, its peaks and its refusals. The
// numbers are copied under all stripe locks, so they belong to one instant. Names,
// order and text are made after the locks are released. The fullest peers are found
// before the locks are taken, a few peers at a time, so that a snapshot of the fullest
// of a million peers blocks no other goroutine for long.

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/text"
)

// Amounts holds one number for everything that has a limit. Memory is in bytes, the
// other fields are counts.
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

// named returns the amounts by name.
func (a *amounts) named() Amounts {
	return Amounts(quantitiesOf(func(d dim) int { return int(a[d]) }, a[dimMemory]))
}

// byDim is the inverse of amounts.named.
func (a *Amounts) byDim() (out amounts) {
	numbers := (*quantities[int, int64])(a)
	out[dimMemory] = numbers.Memory
	for i, n := range numbers.counts() {
		out[limitOrder[i]] = int64(*n)
	}
	return out
}

// ScopeState is what one scope holds and what it may hold. In JSON the numbers are
// grouped by limit: Limits.ConnsInbound has Limit, Use, Percent, Peak, Refusals,
// WouldRefuse and Tight. Rates is a list beside them. Limit is a number, "unlimited" or "blockAll". Percent is
// omitted if the limit is unlimited or 0. UnmarshalJSON reads what MarshalJSON writes.
type ScopeState struct {
	// Name is the scope's name as in errors, such as "system",
	// "protocol:/ipfs/ping/1.0.0" or "peer:12D3Koo…".
	Name string
	Kind Kind
	// ID is the name of the service or protocol, or the peer's ID as text. It is empty
	// for the four scopes that always exist.
	ID    string
	Use   network.ScopeStat
	Limit BaseLimit // without its rates, which are in Rates
	// Peak is the most that the scope has held of each at any time since it was made.
	// It is exact for peers, and for other scopes above half of a limit. Below half it is
	// the most that was seen by the manager, which looks once a second, and by each
	// Snapshot, Stat and scrape of the metrics.
	Peak Amounts
	// Refusals counts the requests that this scope has refused since it was made.
	// WouldRefuse counts those that it admitted because its limit is only observed.
	Refusals    Refusals
	WouldRefuse Refusals
	// Tight lists the limits, such as "ConnsInbound", that are so full that each request
	// is decided on the exact sum over all stripes. Peers have none.
	Tight []string
	// TransientStreamsInbound and TransientStreamsOutbound are how many of a peer's streams
	// count in the transient scope, because they have no protocol yet. Other scopes have none.
	TransientStreamsInbound, TransientStreamsOutbound int
	// Rates are the rates of the scope, and how many tokens each has left. It is empty if the
	// scope has none.
	Rates []RateState
}

// MemberPeak is the most that any single member of a class of scopes has held of each
// resource: Ever since the manager was made, and Recent in the last one to two minutes.
// The numbers may come from different members, and from different times.
type MemberPeak struct{ Ever, Recent Amounts }

// LimitUse is one limit of one scope, and how much of it is used. Memory is in bytes,
// everything else is a count.
type LimitUse struct {
	Scope string // the scope's name
	Kind  Kind
	Name  string // the limit's name in configurations, such as "ConnsInbound" or "Rates.Streams"
	Limit int64  // math.MaxInt64 if unlimited; of a rate, the tokens of a full bucket
	Use   int64  // of a rate, the tokens that are taken
	Peak  int64  // see ScopeState.Peak
	// Refusals counts the requests that this limit refused, and WouldRefuse those that it
	// admitted because it is only observed.
	Refusals    uint64
	WouldRefuse uint64
	Tight       bool // see ScopeState.Tight
}

// LimitUses is a list of limits, each with how much of it is used.
type LimitUses []LimitUse

// LimitHolder is the peer that holds most of a limit of a scope.
type LimitHolder struct {
	Scope, Name string // the names of the scope and of the limit
	Holder      string // the peer's ID as text
	Held        int64
}

// EngineState describes the inner workings of the manager, for measurements. Its fields
// may change with any version.
type EngineState struct {
	Stripes int // the number of locks over which the accounts are divided
	// Draws counts how often a stripe took credit from a shared scope, and Returns how
	// often it gave some back.
	Draws, Returns uint64
	// Settled counts the decisions that needed the locks of all stripes.
	Settled uint64
}

// Snapshot is the state of a manager. The numbers of all its scopes belong to the same
// instant; Largest, FullestParts, Gates, Process, FairShare, Earmarks, Room, Allowlist and Leaks are
// read a little later. A Snapshot is a plain value that does not change. It can be written to JSON and read back.
type Snapshot struct {
	Taken   time.Time
	Started time.Time // when the manager was made
	// Sizing is the memory and descriptors for which the limits were computed.
	Sizing Sizing `json:",omitzero"`
	// Scopes lists the system, transient and allowlisted scopes, then services,
	// protocols and peers, each sorted by name. SnapshotTop lists only some of the
	// services, protocols and peers.
	Scopes []ScopeState
	// Peers, Services and Protocols are the numbers of those that have a scope, whether
	// listed in Scopes or not.
	Peers, Services, Protocols int
	// MemberPeaks has the most that any one peer has held, in all (KindPeer), in one
	// service (KindServicePeer) and in one protocol (KindProtocolPeer). A limit on each
	// peer that is lower would have refused requests.
	MemberPeaks map[Kind]MemberPeak `json:",omitempty"`
	// Largest is the peer that holds most of the limit that Bottleneck returns, if that is one of
	// a service or protocol. Of other limits, Scopes and FairShare have it.
	Largest LimitHolder `json:",omitzero"`
	// FullestParts has the fullest part of a peer in a service or protocol for each limit on such
	// parts that has refused something, while requests are refused, or would be by limits that are
	// only observed: KindServicePeer and KindProtocolPeer, with the refusals of all parts together.
	FullestParts LimitUses `json:",omitempty"`
	// Refusals counts, for each kind of scope and gate, the requests that it has refused
	// since the manager was made.
	Refusals map[Kind]Refusals
	// WouldRefuse counts the requests that were admitted only because a limit is
	// observed and not enforced (see WithObserveOnly). Observed lists the kinds whose
	// limits are observed now.
	WouldRefuse map[Kind]Refusals `json:",omitempty"`
	Observed    []Kind            `json:",omitempty"`
	// Recent has the total numbers of refusals at every tenth second of the last five
	// minutes, the oldest first. It is empty until the manager is ten seconds old.
	Recent []RefusalsAt `json:",omitempty"`
	// CallerBugs counts calls that broke the contract of a scope, such as releasing
	// more than was reserved, reserving a negative size, or setting an invalid limit.
	CallerBugs uint64
	// LateReleases counts releases of memory at scopes that were already done. They do
	// nothing, because a scope releases everything when it is done. go-libp2p's identify
	// service makes such calls routinely.
	LateReleases uint64
	Gates        GateState
	// Process is the memory of the whole process. It is zero without WithMemoryPressure.
	Process ProcessMemory `json:",omitzero"`
	// FairShare is what subnets hold. It is zero without WithFairShare.
	FairShare FairShareState `json:",omitzero"`
	// Earmarks are the parts of limits that are kept. It is empty without WithEarmarks.
	Earmarks []EarmarkState `json:",omitempty"`
	// Room is what was let go to make room. It is zero without WithRoom.
	Room   RoomState `json:",omitzero"`
	Engine EngineState
	// Allowlist is the state of the host names in the allowlist. It is zero if there are none.
	Allowlist AllowlistState `json:",omitzero"`
	// Leaks has the oldest open scopes. It is zero without WithLeakFinder.
	Leaks LeakState `json:",omitzero"`
}

// Uptime returns how old the manager was when the snapshot was taken.
func (s *Snapshot) Uptime() time.Duration { return s.Taken.Sub(s.Started) }

// takeAll takes a snapshot of everything.
func (m *Manager) takeAll() Snapshot {
	peers := m.roomForPeers()
	c := m.newCut(peers, peers/16)
	return m.snapshot(fullestSubnets, c, func() {
		m.dir.each(c.addPool)
		c.addAllPeers(m)
	})
}

// takeTop takes a snapshot with the fullest peers, services and protocols.
func (m *Manager) takeTop(peers int) Snapshot {
	peers = max(0, peers)
	top, names := m.topPeers(peers), m.busiest()
	c := m.newCut(len(top), len(top)) // it looks for those that were refused most often
	return m.snapshot(peers, c, func() {
		names.each(m, c.addPool)
		c.addPeers(m, top)
	})
}

// fullestSubnets is how many subnets a Snapshot lists.
const fullestSubnets = 20

// cut collects numbers. All stripe locks are held while it does, so it copies no more than
// what may change afterwards, and has the room for that from before: an allocation may have to
// wait for the garbage collector.
type cut struct {
	shared  []scopeCut
	peers   []peerCut
	denials []denials   // of peers
	buckets []bucketCut // of peers
	now     int64       // the time of the buckets
	classes classLimits
}

type scopeCut struct {
	name             scopeName
	use, peak, limit amounts
	denied           denials
	tight            [numDims]bool
	buckets          bucketCut
}

// peerCut is what changes of a peer. It has few pointers: while the garbage collector runs, each
// one that is written costs more than all the rest.
type peerCut struct {
	ps        *peerScope
	use, peak held
	transient [2]int32 // streams in the transient scope: inbound, outbound
	limit     *amounts // nil: that of its class
	denied    int      // the place in denials, from 1; 0 for most peers, which have refused nothing
	rated     int      // the place in buckets, from 1; 0 for peers without rates
}

// newCut returns a cut with room for so many peers, for what so many of them have refused, and
// for all shared scopes. If more peers have refused something, the first cut grows. No memory of it
// is touched for the first time under the locks. The room of a cut that is over is used again:
// large allocations right before the locks are taken would often start a garbage collection,
// which then delays every goroutine that waits for one. The caller calls endCut.
func (m *Manager) newCut(peers, refused int) *cut {
	c, ok := m.cuts.Get().(*cut)
	if !ok {
		c = new(cut)
	}
	services, protocols := m.dir.sizes()
	shared := len(m.fixed) + services + protocols
	c.shared = emptied(c.shared, shared+shared/16)
	c.peers = emptied(c.peers, peers)
	c.denials = emptied(c.denials, refused)
	c.buckets = emptied(c.buckets, m.ratedPeers(peers))
	return c
}

// endCut gives back a cut that nothing points to any more.
func (m *Manager) endCut(c *cut) {
	clear(c.shared)
	clear(c.peers)
	clear(c.buckets)
	m.cuts.Put(c)
}

// emptied returns an empty slice with room for n values, which has been written to: that of
// old, or another one.
func emptied[T any](old []T, n int) []T {
	if cap(old) < n {
		old = make([]T, n)
		clear(old)
	}
	return old[:0]
}

// roomForPeers returns how many peers a cut of all of them may find, those included that come
// meanwhile. It takes the locks of the stripes one by one.
func (e *engine) roomForPeers() (n int) {
	for i := range e.stripes {
		st := &e.stripes[i]
		st.lock()
		n += st.numPeers()
		st.unlock()
	}
	return n + n/16
}

func (c *cut) addPool(p *pool) {
	use := p.used() // before peak is read, because used may raise it
	s := scopeCut{name: p.scope(), use: use, peak: p.peak, limit: p.limit, denied: p.denials(),
		buckets: p.bucketCut()}
	for d := range numDims {
		s.tight[d] = p.tight(d)
	}
	c.shared = append(c.shared, s)
}

func (c *cut) addFixed(m *Manager) {
	for _, p := range m.fixed {
		c.addPool(p)
	}
}

func (c *cut) addPeer(ps *peerScope) {
	p := peerCut{ps: ps, use: ps.use, peak: ps.peak, transient: ps.transientStreams}
	if l := ps.limit(); l != &ps.st.engine.classes.peer {
		p.limit = l
	}
	if d := ps.denied(); d != nil {
		c.denials = append(c.denials, d.denials)
		p.denied = len(c.denials)
	}
	if b := ps.bucketCut(); b.rates != nil {
		c.buckets = append(c.buckets, b)
		p.rated = len(c.buckets)
	}
	c.peers = append(c.peers, p)
}

// addPeers adds the peers that have not been collected meanwhile.
func (c *cut) addPeers(m *Manager, ids []peer.ID) {
	for _, id := range ids {
		if ps := m.stripeOf(id).known(id); ps != nil {
			c.addPeer(ps)
		}
	}
}

func (c *cut) addAllPeers(m *Manager) {
	for i := range m.stripes {
		for ps := range m.stripes[i].allPeers {
			c.addPeer(ps)
		}
	}
}

// snapshot returns a Snapshot with the services, protocols and peers that add adds to the cut
// under all stripe locks.
func (m *Manager) snapshot(subnets int, c *cut, add func()) Snapshot {
	s := Snapshot{Started: m.started, Recent: m.history.all(),
		Engine: EngineState{Stripes: len(m.stripes)}}
	var counted engineCounts
	var would [numKinds]dimCounts
	var ever, recent memberPeaks
	var observed kindSet
	m.inOneCut(func() {
		s.Taken, s.Sizing, observed = time.Now(), m.limits.Load().sizing(), m.observed.load()
		c.classes, c.now = m.classes, m.latestTime()
		c.addFixed(m)
		add()
		s.Services, s.Protocols = m.dir.sizes()
		ever, recent = m.memberPeaks()
		for i := range m.stripes {
			st := &m.stripes[i]
			s.Peers += st.numPeers()
			st.addCounts(&counted)
			st.addWouldRefuse(&would)
		}
	})
	s.Observed = observed.list()
	s.MemberPeaks = make(map[Kind]MemberPeak)
	for slot, k := range memberKinds {
		most, lately := ever[slot].amounts(), recent[slot].amounts()
		s.MemberPeaks[k] = MemberPeak{most.named(), lately.named()}
	}
	s.CallerBugs, s.LateReleases = m.callerBugs.Load(), counted.lateReleases
	s.Engine.Draws, s.Engine.Returns, s.Engine.Settled = counted.draws, counted.returns, counted.settled
	s.Gates = m.gate().state(subnets)
	s.Process = m.pressure.state()
	s.FairShare = m.fair.state(subnets)
	s.Earmarks = m.earmarks.state()
	s.Room = roomState(m.room)
	s.Allowlist = m.names.state()
	s.Leaks = m.leaks.state()
	m.gate().addRefusals(&counted.refusals, &would)
	s.Scopes = make([]ScopeState, 0, len(c.shared)+len(c.peers))
	for i := range c.shared {
		s.Scopes = append(s.Scopes, c.shared[i].state(c.now))
	}
	for i := range c.peers {
		s.Scopes = append(s.Scopes, c.peers[i].state(c))
	}
	m.endCut(c)
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

func (c *scopeCut) state(now int64) ScopeState {
	s := ScopeState{
		Name: c.name.String(), Kind: c.name.kind, ID: c.name.text,
		Use: c.use.stat(), Limit: c.limit.baseLimit(), Peak: c.peak.named(),
		Refusals: c.denied.refused.refusals(), WouldRefuse: c.denied.would.refusals(),
		Rates: c.buckets.states(now),
	}
	for d, tight := range c.tight {
		if tight {
			s.Tight = append(s.Tight, limitNames[d])
		}
	}
	return s
}

// state returns the state of a peer at the time of a cut.
func (p *peerCut) state(c *cut) ScopeState {
	limit := p.limit
	if limit == nil {
		limit = &c.classes.peer
	}
	name := scopeName{kind: KindPeer, peer: p.ps.id}
	text := name.String()
	use, peak := p.use.amounts(), p.peak.amounts()
	s := ScopeState{
		Name: text, Kind: KindPeer, ID: strings.TrimPrefix(text, "peer:"),
		Use: use.stat(), Limit: limit.baseLimit(), Peak: peak.named(),
		TransientStreamsInbound: int(p.transient[0]), TransientStreamsOutbound: int(p.transient[1]),
	}
	if p.denied > 0 {
		d := &c.denials[p.denied-1]
		s.Refusals, s.WouldRefuse = d.refused.refusals(), d.would.refusals()
	}
	if p.rated > 0 {
		s.Rates = c.buckets[p.rated-1].states(c.now)
	}
	return s
}

// topPeers returns, for each dimension, the n peers that hold the most, those that hold the
// most streams of each direction in the transient scope, and the n peers that were refused most
// often.
func (m *Manager) topPeers(n int) []peer.ID {
	const refused, transient = numDims, numDims + 1
	var best [transient + 2][]rankedPeer
	// least has what a peer has to exceed in something in order to be one of the n. Most of very
	// many peers do not, and are passed over.
	var least leastPeer
	greatest := func(a, b rankedPeer) int { return cmp.Compare(b.value, a.value) }
	// rank offers a value of a peer, and returns the least that a peer must exceed from now on.
	rank := func(d dim, ps *peerScope, value int64) int64 {
		if value > 0 {
			best[d] = offer(best[d], rankedPeer{ps.id, uint64(value)}, n, greatest)
		}
		if len(best[d]) == n && n > 0 {
			return int64(best[d][n-1].value)
		}
		return 0
	}
	look := func(peers []*peerScope) {
		for _, ps := range peers {
			if !least.isExceeded(ps) {
				continue
			}
			least.use.memory = rank(dimMemory, ps, ps.use.memory)
			for d, held := range ps.use.counts {
				if dim(d) != dimMemory {
					least.use.counts[d] = int32(rank(dim(d), ps, int64(held)))
				}
			}
			for i, streams := range ps.transientStreams {
				least.transient[i] = int32(rank(transient+dim(i), ps, int64(streams)))
			}
			if d := ps.denied(); d != nil {
				r := d.refused.refusals()
				rank(refused, ps, int64(min(r.Total(), math.MaxInt64)))
			}
		}
	}
	for i := range m.stripes {
		m.stripes[i].peersInRows(look)
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

// leastPeer is what a peer has to exceed in something in order to be one of the fullest.
type leastPeer struct {
	use       held
	transient [2]int32
}

// isExceeded reports whether the peer holds more of anything, or was refused anything.
func (l *leastPeer) isExceeded(ps *peerScope) bool {
	more := ps.denied() != nil || ps.use.memory > l.use.memory
	for d := range l.use.counts {
		more = more || ps.use.counts[d] > l.use.counts[d]
	}
	return more || ps.transientStreams[0] > l.transient[0] || ps.transientStreams[1] > l.transient[1]
}

type rankedPeer struct {
	id    peer.ID
	value uint64
}

// found is a service, protocol or peer whose name contains a text.
type found struct {
	kind     Kind
	pool     *pool   // nil for a peer
	peer     peer.ID // empty for a service or protocol
	fullness float64 // of its fullest limit
	streams  int64
	memory   int64
}

func (f *found) name() string {
	if f.pool != nil {
		name := f.pool.scope()
		return name.String()
	}
	name := scopeName{kind: KindPeer, peer: f.peer}
	return name.String()
}

// compareFound orders by kind, the fullest first. No two are equal, so that none is listed twice
// when one hundred after the other is asked for.
func compareFound(a, b found) int {
	name := func(f found) string {
		if f.pool != nil {
			return f.pool.name
		}
		return string(f.peer)
	}
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(b.fullness, a.fullness),
		cmp.Compare(b.streams, a.streams), cmp.Compare(b.memory, a.memory), cmp.Compare(name(a), name(b)))
}

// contains reports whether a name contains a text, in upper or lower case. An empty text is in
// every name.
func contains(name, text string) bool {
	return strings.Contains(strings.ToLower(name), strings.ToLower(text))
}

// find returns a snapshot with those services, protocols and peers whose names contain a text,
// without the first so many of them and with at most n, and the number of all of them. The
// fullest of each kind come first.
func (m *Manager) find(text string, from, n int) (s Snapshot, all int) {
	var list []found
	add := func(f found, use, limit amounts) {
		f.fullness, f.streams, f.memory = fullest(&use, &limit), use[dimStreams], use[dimMemory]
		list = append(list, f)
	}
	for some := range slices.Chunk(m.dir.list(), namesAtOnce) {
		m.inOneCut(func() {
			for _, p := range some {
				add(found{kind: p.kind, pool: p}, p.used(), p.limit)
			}
		})
	}
	for i := range m.stripes {
		m.stripes[i].eachPeer(func(ps *peerScope) {
			add(found{kind: KindPeer, peer: ps.id}, ps.use.amounts(), *ps.limit())
		})
	}
	// Names of peers are made here, without any lock.
	list = slices.DeleteFunc(list, func(f found) bool {
		return !(f.kind == KindPeer && contains("peer:", text)) && !contains(f.name(), text)
	})
	slices.SortFunc(list, compareFound)
	all = len(list)
	list = list[min(max(0, from), all):]
	return m.snapshotOf(list[:min(n, len(list))]), all
}

// findScope returns a snapshot with the service, protocol or peer of this name, and reports
// whether the manager has it. The four scopes that always exist are in every snapshot.
func (m *Manager) findScope(name string) (s Snapshot, ok bool) {
	var list []found
	if kind, id, named := strings.Cut(name, ":"); named {
		switch kind {
		case "peer":
			if p, err := peer.Decode(id); err == nil {
				list = append(list, found{kind: KindPeer, peer: p})
			}
		case "service", "protocol":
			k := KindService
			if kind == "protocol" {
				k = KindProtocol
			}
			if p := m.dir.find(k, id); p != nil {
				list = append(list, found{kind: k, pool: p})
			}
		}
	}
	s = m.snapshotOf(list)
	return s, slices.ContainsFunc(s.Scopes, func(sc ScopeState) bool { return sc.Name == name })
}

// snapshotOf returns a snapshot with these services, protocols and peers, without those that
// have been collected meanwhile.
func (m *Manager) snapshotOf(list []found) Snapshot {
	b, peers := busiest{}, []peer.ID(nil)
	for _, f := range list {
		if f.pool != nil {
			b.named = append(b.named, f.pool)
		} else {
			peers = append(peers, f.peer)
		}
	}
	c := m.newCut(len(peers), len(peers))
	return m.snapshot(fullestSubnets, c, func() {
		b.each(m, c.addPool)
		c.addPeers(m, peers)
	})
}

func (s *Snapshot) totalRefusals() uint64 { return totalOf(s.Refusals) }

func totalOf(byKind map[Kind]Refusals) (n uint64) {
	for _, r := range byKind {
		n += r.Total()
	}
	return n
}

// refusalRate is how many requests a second were refused between the rate before this
// one and At.
type refusalRate struct {
	At        time.Time
	PerSecond float64
}

// refusalRates returns the rates of refusals in the minutes before the snapshot, the
// oldest first.
func (s *Snapshot) refusalRates() []refusalRate {
	return s.ratesOf(func(at RefusalsAt) uint64 { return at.Refusals })
}

// hasRefusedLately reports whether anything was refused in the last five minutes, or would have
// been.
func (s *Snapshot) hasRefusedLately() bool {
	all := s.ratesOf(func(at RefusalsAt) uint64 { return at.Refusals + at.WouldRefuse })
	return slices.ContainsFunc(all, func(r refusalRate) bool { return r.PerSecond > 0 })
}

// ratesOf returns the rates at which a count has grown in the minutes before the snapshot, the
// oldest first.
func (s *Snapshot) ratesOf(count func(RefusalsAt) uint64) (rates []refusalRate) {
	var known []RefusalsAt
	if s.Uptime() <= historyLength*historyInterval {
		known = append(known, RefusalsAt{At: s.Started}) // nothing had been refused
	}
	known = append(known, s.Recent...)
	if n := len(known); n > 1 && s.Taken.Sub(known[n-1].At) < historyInterval/2 {
		known = known[:n-1] // the last interval would be too short for a meaningful rate
	}
	known = append(known, RefusalsAt{s.Taken, s.totalRefusals(), totalOf(s.WouldRefuse)})
	for i, to := range known[1:] {
		from := known[i]
		if seconds := to.At.Sub(from.At).Seconds(); seconds > 0 && count(to) >= count(from) {
			rates = append(rates, refusalRate{to.At, float64(count(to)-count(from)) / seconds})
		}
	}
	return rates
}

// mostAdmits is how many addresses of a host name a table shows.
const mostAdmits = 8

// nameRow is a row of the table of host names in the allowlist.
type nameRow struct {
	Entry, Admits, Answered, Problem string
	Failing                          bool
}

// nameRows returns the host names in the allowlist, those that fail first.
func (s *Snapshot) nameRows() []nameRow {
	var failing, others []nameRow
	for i := range s.Allowlist.Names {
		n := &s.Allowlist.Names[i]
		row := nameRow{Entry: n.Entry, Admits: "none", Answered: "never", Problem: "-", Failing: n.Err != ""}
		if len(n.Admits) > 0 {
			row.Admits = strings.Join(n.Admits[:min(len(n.Admits), mostAdmits)], " ")
		}
		if more := len(n.Admits) - mostAdmits; more > 0 {
			row.Admits += fmt.Sprintf(" and %d more", more)
		}
		if !n.Answered.IsZero() {
			row.Answered = max(0, s.Taken.Sub(n.Answered)).Round(time.Second).String() + " ago"
		}
		switch {
		case row.Failing:
			row.Problem = fmt.Sprintf("failed %s: %s", text.Plural(n.Failed, "time"), n.Err)
			failing = append(failing, row)
			continue
		case n.LeftOut > 0:
			row.Problem = fmt.Sprintf("%d left out: %s", n.LeftOut, n.WhyLeftOut)
		}
		others = append(others, row)
	}
	return append(failing, others...)
}
