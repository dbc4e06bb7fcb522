package rcmgr

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

func TestWhatStandsInTheWayIsNamedWithWhoHoldsIt(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.StreamsInbound = 8
	m := newManager(t, conf, WithNewcomersQuarter(false))
	s := m.SnapshotTop(3)
	require.Nil(t, s.Bottleneck())
	require.Equal(t, "no limit is nearly full", s.InTheWay())
	for i := range 8 {
		s := mustOpenStream(t, m, testPeers[i/6], network.DirInbound) // six and two
		t.Cleanup(s.Done)
	}
	settled := mustOpenStream(t, m, testPeers[2], network.DirOutbound) // the most outside of the transient scope
	t.Cleanup(settled.Done)
	require.NoError(t, settled.SetProtocol("/p"))
	for _, s := range []Snapshot{m.Snapshot(), m.SnapshotTop(1), readBack(t, m.SnapshotTop(1))} {
		require.Equal(t, "transient inbound streams are full (8 of 8); "+testPeers[0].String()+" holds 75 %; raise Transient.StreamsInbound",
			s.InTheWay())
	}
}

// readBack returns a snapshot as it is read from its own JSON.
func readBack(t *testing.T, s Snapshot) (back Snapshot) {
	text, err := json.Marshal(&s)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &back))
	return back
}

// Of a service or protocol, the peer that holds most of it is named, too, even if it is not among
// the fullest peers, and wherever the snapshot is read.
func TestTheHolderOfAFullProtocolIsNamed(t *testing.T) {
	conf := unlimitedConf()

	conf.ProtocolDefault.StreamsInbound, conf.ServiceDefault.Memory = 8, 1<<20
	m := newManager(t, conf)
	open := func(p peer.ID, n int) (all []network.StreamManagementScope) {
		for range n {
			s := mustOpenStream(t, m, p, network.DirInbound)
			t.Cleanup(s.Done)
			require.NoError(t, s.SetProtocol("/p:1"))
			all = append(all, s)
		}
		return all
	}
	open(testPeers[1], 2)
	first := open(testPeers[0], 6)[0]
	for range 20 { // it holds more, elsewhere
		s := mustOpenStream(t, m, testPeers[2], network.DirInbound)
		t.Cleanup(s.Done)
	}
	want := "protocol:/p:1 inbound streams are full (8 of 8); " + testPeers[0].String() + ` holds 75 %; raise Protocol["/p:1"].StreamsInbound`
	for _, s := range []Snapshot{m.Snapshot(), m.SnapshotTop(1), readBack(t, m.SnapshotTop(1))} {
		require.Equal(t, want, s.InTheWay())
		require.Equal(t, LimitHolder{"protocol:/p:1", "StreamsInbound", testPeers[0].String(), 6}, s.Largest)
	}
	require.Contains(t, bodyOf(t, ask(Handler(m), "GET", "/?format=html")), `<a class="id" href="?scope=peer:`+testPeers[0].String()+`">`)
	s := m.SnapshotTop(1)
	s.Largest.Held = 100 // it was read later
	require.Contains(t, s.InTheWay(), "holds 100 %")

	require.NoError(t, m.SetLimits(NewFixedLimiter(InfiniteLimits)))
	s = m.SnapshotTop(1)
	require.Zero(t, s.Largest, "nothing is in the way")
	conf.ProtocolDefault.StreamsInbound = 100
	require.NoError(t, m.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: conf})))
	require.NoError(t, first.SetService("srv"))
	require.NoError(t, first.ReserveMemory(1<<20, network.ReservationPriorityAlways))
	s = m.SnapshotTop(1)
	require.Equal(t, "service:srv memory is full (1.0 MiB of 1.0 MiB); "+testPeers[0].String()+` holds 100 %; raise Service["srv"].Memory`, s.InTheWay())
}

// Where no limit of a scope that all peers share is full, but the part that each peer may have in
// a service or protocol refuses something, the fullest part is named, and with it the peer.
func TestAPeersPartThatIsFullStandsInTheWay(t *testing.T) {
	conf := unlimitedConf()

	conf.ProtocolPeerDefault.StreamsInbound = 4
	m := newManager(t, conf)
	attach := func(p peer.ID, of protocol.ID) (network.StreamManagementScope, error) {
		s := mustOpenStream(t, m, p, network.DirInbound)
		t.Cleanup(s.Done)
		return s, s.SetProtocol(of)
	}
	var last network.StreamManagementScope
	for i := range 4 {
		for _, of := range []protocol.ID{"/a", "/b"} {
			for _, p := range testPeers[:3] {
				if p == testPeers[1] && of == "/b" || i < 2 { // the only full one
					s, err := attach(p, of)
					require.NoError(t, err)
					last = s
				}
			}
		}
	}
	s := m.SnapshotTop(1)
	require.Empty(t, s.FullestParts, "nothing was refused")
	require.Equal(t, "no limit is nearly full", s.InTheWay())
	_, err := attach(testPeers[1], "/b")
	require.Error(t, err)
	lately := func() Snapshot {
		s := m.SnapshotTop(1)
		s.Started = s.Taken.Add(-time.Minute)
		return s
	}
	name := "protocol:/b.peer:" + testPeers[1].String()
	want := name + ` inbound streams are full (4 of 4); raise ProtocolPeer["/b"].StreamsInbound`
	for _, s := range []Snapshot{lately(), readBack(t, lately())} {
		require.Equal(t, want, s.InTheWay())
		require.Equal(t, LimitUses{{Scope: name, Kind: KindProtocolPeer, Name: "StreamsInbound", Limit: 4, Use: 4, Peak: 4, Refusals: 1}}, s.FullestParts)
	}
	require.Contains(t, bodyOf(t, ask(Handler(m), "GET", "/?format=html")), `<a href="?scope=peer%3a`+testPeers[1].String()+`">`)

	shared := lately()
	shared.Scopes[0].Use.NumFD, shared.Scopes[0].Limit.FD = 95, 100
	require.Equal(t, "system file descriptors are 95 % full (95 of 100); raise System.FD", shared.InTheWay(), "that is in the way of all peers")

	last.Done()
	require.Equal(t, name, lately().FullestParts[0].Scope, "three of four")
	for i := range 20 { // many parts of one peer are kept in another way
		_, err := attach(testPeers[2], protocol.ID(fmt.Sprint("/many/", i)))
		require.NoError(t, err)
	}
	for range 3 {
		_, err := attach(testPeers[2], "/many/9")
		require.NoError(t, err)
	}
	require.Equal(t, "protocol:/many/9.peer:"+testPeers[2].String(), lately().FullestParts[0].Scope)
	low := lately()
	low.FullestParts[0].Use = 1
	require.Contains(t, low.InTheWay(), "inbound streams were full at times (4 of 4 at most) and have refused 1; raise ProtocolPeer")
	long := m.SnapshotTop(1) // when nothing was refused lately, no peer is asked
	long.Started, long.Recent = long.Taken.Add(-time.Hour), []RefusalsAt{{At: long.Taken.Add(-time.Minute), Refusals: 1}}
	require.Empty(t, m.partsInTheWay(&long))
	require.NoError(t, m.SetLimits(NewFixedLimiter(InfiniteLimits)))
	s = lately()
	require.EqualValues(t, int64(math.MaxInt64), s.FullestParts[0].Limit)
	require.Contains(t, s.InTheWay(), "no limit is nearly full; of 1 request refused so far")
}

// An operator who only observes wants to know which limit would stand in the way.
func TestAPeersPartThatWouldRefuseStandsInTheWay(t *testing.T) {
	conf := unlimitedConf()
	conf.ProtocolPeerDefault.StreamsInbound = 4
	conf.ServicePeerDefault.Memory = 1000
	m := newManager(t, conf, WithObserveOnly())
	var last network.StreamManagementScope
	for range 6 {
		last = mustOpenStream(t, m, testPeer, network.DirInbound)
		t.Cleanup(last.Done)
		require.NoError(t, last.SetProtocol("/a"))
	}
	require.NoError(t, last.SetService("s"))
	require.NoError(t, last.ReserveMemory(1500, network.ReservationPriorityAlways))
	lately := func() Snapshot {
		s := m.SnapshotTop(1)
		s.Started = s.Taken.Add(-time.Minute)
		return s
	}
	protocol, service := "protocol:/a.peer:"+testPeer.String(), "service:s.peer:"+testPeer.String()
	for _, s := range []Snapshot{lately(), readBack(t, lately())} {
		require.Equal(t, LimitUses{
			{Scope: service, Kind: KindServicePeer, Name: "Memory", Limit: 1000, Use: 1500, Peak: 1500, WouldRefuse: 1},
			{Scope: protocol, Kind: KindProtocolPeer, Name: "StreamsInbound", Limit: 4, Use: 6, Peak: 6, WouldRefuse: 2},
		}, s.FullestParts)
		require.Equal(t, protocol+` inbound streams are full (6 of 4), which is only observed; raise ProtocolPeer["/a"].StreamsInbound`, s.InTheWay())
	}
	require.Contains(t, bodyOf(t, ask(Handler(m), "GET", "/?format=text")), "(6 of 4), which is only observed")
	low := lately()
	low.FullestParts = low.FullestParts[1:]
	low.FullestParts[0].Use = 1
	require.Contains(t, low.InTheWay(), "inbound streams were full at times (6 of 4 at most) and would have refused 2, which is only observed; raise ProtocolPeer")

	long := m.SnapshotTop(1)
	long.Started = long.Taken.Add(-time.Hour)
	long.Recent = []RefusalsAt{{At: long.Taken.Add(-time.Minute), WouldRefuse: 3}}
	require.Empty(t, m.partsInTheWay(&long), "that was long ago")
	long.Recent[0].WouldRefuse = 2
	require.Len(t, m.partsInTheWay(&long), 2)
	require.EqualValues(t, 3, m.refusedByNow().WouldRefuse)
	require.Zero(t, m.refusedByNow().Refusals)
}

// By default, the last quarter is for newcomers, so a limit that is three quarters full refuses
// the peer that fills it.
func TestALimitWhoseLastQuarterIsKeptStandsInTheWay(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.StreamsInbound = 8
	m := newManager(t, conf)
	for range 6 {
		s := mustOpenStream(t, m, testPeers[0], network.DirInbound)
		t.Cleanup(s.Done)
	}
	s := m.SnapshotTop(1)
	require.Nil(t, s.Bottleneck(), "it has refused nothing")
	_, err := m.OpenStream(testPeers[0], network.DirInbound)
	require.Error(t, err)
	s = m.SnapshotTop(1)
	require.Equal(t, "transient inbound streams are 75 % full (6 of 8); "+testPeers[0].String()+" holds 100 %; raise Transient.StreamsInbound",
		s.InTheWay())
}

func TestTheLimitThatMattersMostIsTheOneNamed(t *testing.T) {
	scope := func(k Kind, name string, use, limit int, refused uint64) ScopeState {
		s := ScopeState{Kind: k, Name: name, Limit: InfiniteLimits.limits.System, Refusals: Refusals{StreamsInbound: refused}}
		s.Use.NumStreamsInbound, s.Limit.StreamsInbound = use, limit
		return s
	}
	system, transient := scope(KindSystem, "system", 95, 100, 0), scope(KindTransient, "transient", 92, 100, 0)
	protocol, ofPeer := scope(KindProtocol, "protocol:/a", 10, 10, 1), scope(KindPeer, "peer:x", 10, 10, 9000)
	ofPeer.ID = "x"
	for _, c := range []struct {
		scopes   []ScopeState
		observed []Kind
		want     string
	}{
		{[]ScopeState{system, transient}, nil, "system inbound streams are 95 % full (95 of 100); raise System.StreamsInbound"},
		{[]ScopeState{system, scope(KindTransient, "transient", 75, 100, 5)}, nil, "transient inbound streams are 75 % full (75 of 100); raise Transient.StreamsInbound"},
		{[]ScopeState{system, protocol, ofPeer}, nil, `protocol:/a inbound streams are full (10 of 10); raise Protocol["/a"].StreamsInbound`},
		{[]ScopeState{ofPeer}, nil, "peer:x inbound streams are full (10 of 10); raise PeerDefault.StreamsInbound"},
		{[]ScopeState{protocol, ofPeer}, []Kind{KindProtocol}, "peer:x inbound streams are full (10 of 10); raise PeerDefault.StreamsInbound"},
		{[]ScopeState{protocol}, []Kind{KindProtocol}, `protocol:/a inbound streams are full (10 of 10), which is only observed; raise Protocol["/a"].StreamsInbound`},
		{[]ScopeState{scope(KindSystem, "system", 49, 100, 5)}, nil, "no limit is nearly full"},
	} {
		s := Snapshot{Scopes: c.scopes, Observed: c.observed}
		require.Equal(t, c.want, s.InTheWay())
	}

	// The numbers are those of the tables.
	nearly := scope(KindTransient, "transient", 61, 64, 1)
	of := Snapshot{Scopes: []ScopeState{nearly}, Largest: LimitHolder{"transient", "StreamsInbound", "10.0.0.0/8", 40}}
	require.Equal(t, "transient inbound streams are 95.3 % full (61 of 64); 10.0.0.0/8 holds 65.6 %; raise Transient.StreamsInbound", of.InTheWay())
	uses := nearly.limitUses()
	require.Equal(t, "95.3%", uses[dimStreamsIn].percentText())

	// Between two bursts of an attack, nothing is full.
	burst := scope(KindTransient, "transient", 8, 100, 5)
	burst.Peak.StreamsInbound = 100
	now := time.Now()
	lately := Snapshot{Scopes: []ScopeState{system, burst}, Started: now.Add(-time.Minute), Taken: now,
		Refusals: map[Kind]Refusals{KindTransient: {StreamsInbound: 5}}}
	lately.Scopes[0].Use.NumStreamsInbound = 5
	require.Equal(t, "transient inbound streams were full at times (100 of 100 at most) and have refused 5; raise Transient.StreamsInbound",
		lately.InTheWay())
	lately.Scopes[1].Limit.StreamsInbound = 1000
	require.Equal(t, "no limit is nearly full; of 5 requests refused so far, 5 were refused by the transient scope (StreamsInbound 5)",
		lately.InTheWay(), "the limit was raised since")
	lately.Scopes[1].Limit.StreamsInbound = 100
	lately.Started = now.Add(-time.Hour)
	lately.Recent = []RefusalsAt{{At: now.Add(-time.Minute), Refusals: 5}}
	require.Equal(t, "no limit is nearly full; of 5 requests refused so far, 5 were refused by the transient scope (StreamsInbound 5)",
		lately.InTheWay(), "they were long ago")

	full := ScopeState{Kind: KindTransient, Name: "transient", Limit: InfiniteLimits.limits.System}
	full.Use.NumConnsInbound, full.Limit.ConnsInbound = 4, 4
	s := Snapshot{Scopes: []ScopeState{full}, FairShare: FairShareState{Largest: []SubnetShare{
		{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Transient: SubnetUse{ConnsInbound: 3}}}}}
	require.Equal(t, "transient inbound connections are full (4 of 4); 192.0.2.0/24 holds 75 %; raise Transient.ConnsInbound", s.InTheWay())

	s = Snapshot{Refusals: map[Kind]Refusals{KindRate: {ConnsInbound: 7}, KindPeer: {StreamsInbound: 2}}}
	require.Equal(t, "no limit is nearly full; of 9 requests refused so far, 7 were refused by the connect rate (ConnsInbound 7)", s.InTheWay())
	s.Process = ProcessMemory{Limit: 2 << 30, InUse: 2 << 30, Refusing: true}
	require.Equal(t, "the process has 2.0 GiB of 2.0 GiB of memory in use, and refuses inbound connections and streams of strangers", s.InTheWay())
}

// A rate that has no token left is named like a limit that is full. It is not held by anyone.
func TestARateStandsInTheWay(t *testing.T) {
	limits := PartialLimitConfig{System: ResourceLimits{Rates: Rates{StreamsOutbound: Rate{PerSecond: 0.001, Burst: 2}}}}
	m := newFrom(t, limits.Build(InfiniteLimits))
	for range 2 {
		s, err := m.OpenStream(testPeer, network.DirOutbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/p"))
	}
	s := m.Snapshot()
	require.Equal(t, "system rate of outbound streams is full (2 of 2); raise System.Rates.StreamsOutbound", s.InTheWay())
	require.Equal(t, "System.Rates.StreamsOutbound", s.Bottleneck().ConfigKey)
	require.NotPanics(t, func() { pageOf(t, m) })
}

func TestALimitThatWasRaisedSinceItRefusedIsNotInTheWay(t *testing.T) {
	limits := func(streams int) perScope[BaseLimit] {
		return limitedConf(func(c *perScope[BaseLimit]) { c.System.StreamsInbound = streams })
	}
	m := newManager(t, limits(4))
	for range 4 {
		mustOpenStream(t, m, testPeer, network.DirInbound).Done()
		mustOpenStream(t, m, testPeer, network.DirInbound)
	}
	require.Error(t, openAndClose(m, testPeer, network.DirInbound))
	const none = "no limit is nearly full"
	s := m.Snapshot()
	require.NotContains(t, s.InTheWay(), none)
	require.NoError(t, m.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: limits(100)})))
	s = m.Snapshot()
	require.Contains(t, s.InTheWay(), none)
}
