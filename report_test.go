package rcmgr

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
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

	// Between two bursts of an attack, nothing is full.
	burst := scope(KindTransient, "transient", 8, 100, 5)
	burst.Peak.StreamsInbound = 100
	now := time.Now()
	lately := Snapshot{Scopes: []ScopeState{system, burst}, Started: now.Add(-time.Minute), Taken: now,
		Refusals: map[Kind]Refusals{KindTransient: {StreamsInbound: 5}}}
	lately.Scopes[0].Use.NumStreamsInbound = 5
	require.Equal(t, "transient inbound streams were full at times (100 of 100 at most) and have refused 5; raise Transient.StreamsInbound",
		lately.InTheWay())
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
