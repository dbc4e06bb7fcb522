package rcmgr

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	xrate "github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/spread"
)

// What moves brings its memory along: unless it is memory that the new place lacks, that
// was not asked for.
func TestARefusedMoveCountsBlockedMemoryOnlyIfMemoryIsLacking(t *testing.T) {
	conf := unlimitedConf()
	conf.PeerDefault.ConnsOutbound, conf.PeerDefault.Memory = 1, 250
	conf.ProtocolDefault.StreamsOutbound, conf.ProtocolDefault.Memory = 1, 250
	m := newManager(t, conf)
	holding := func(s network.ResourceScope, size int) { require.NoError(t, s.ReserveMemory(size, 255)) }
	refuse := func(err error) { require.ErrorIs(t, err, network.ErrResourceLimitExceeded) }

	in, out := network.DirInbound, network.DirOutbound
	var conns []network.ConnManagementScope
	for i, dir := range []network.Direction{out, out, in} {
		c := mustOpenConn(t, m, dir)
		holding(c, 100+i)
		conns = append(conns, c)
	}
	require.NoError(t, conns[0].SetPeer(testPeers[0]))
	refuse(conns[1].SetPeer(testPeers[0]))
	holding(conns[2], 100)
	refuse(conns[2].SetPeer(testPeers[0])) // for its memory
	var streams []network.StreamManagementScope
	for i, dir := range []network.Direction{out, out, in} {
		s := mustOpenStream(t, m, testPeers[i+1], dir)
		holding(s, 100+i)
		streams = append(streams, s)
	}
	require.NoError(t, streams[0].SetProtocol(testProto))
	refuse(streams[1].SetProtocol(testProto))
	holding(streams[2], 100)
	refuse(streams[2].SetProtocol(testProto)) // for its memory
	require.Equal(t, map[string]float64{
		"inbound connection peer": 1, "outbound connection peer": 1, " memory peer": 202,
		"inbound stream protocol": 1, "outbound stream protocol": 1, " memory protocol": 202,
	}, seriesOf(t, registryOf(t, m), "blocked_resources"))
}

func TestMetricsCountEveryRefusalByItsCause(t *testing.T) {
	conf := unlimitedConf()
	conf.System.FD = 1
	conf.Transient.StreamsInbound = 8
	conf.PeerDefault.Streams = 7
	conf.ServicePeerDefault.Memory = 100
	conf.ProtocolDefault.StreamsOutbound = 0
	conf.Conn.Memory = 10
	conf.Gates = &GateLimits{
		Subnets: SubnetLimits{IPv4: map[int]LimitVal{24: 2}},
		Rate:    RateLimits{IPv4: map[int]ConnRate{32: {PerSecond: 0.001, Burst: 1}}},
	}
	m := newManager(t, conf)
	reg := registryOf(t, m)
	require.Empty(t, seriesOf(t, reg, "refusals_total"))

	open := func(addr string, fd bool) error {
		_, err := m.OpenConnection(network.DirInbound, fd, multiaddr.StringCast(addr))
		return err
	}
	conn, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.NoError(t, err)
	require.Error(t, conn.ReserveMemory(11, 255)) // conn: memory
	require.NoError(t, conn.ReserveMemory(10, 255))
	require.Error(t, open("/ip4/192.0.2.2/tcp/1", true))  // system: fd
	require.Error(t, open("/ip4/192.0.2.1/tcp/1", false)) // rate
	require.NoError(t, open("/ip4/192.0.2.3/tcp/1", false))
	require.Error(t, open("/ip4/192.0.2.4/tcp/1", false)) // subnet
	require.Error(t, open("/ip4/192.0.2.5/tcp/1", false)) // subnet
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	for range 5 {
		mustOpenStream(t, m, testPeer, network.DirInbound)
	}
	_, err = m.OpenStream(testPeer, network.DirInbound) // transient: crowding
	require.Error(t, err)
	out := mustOpenStream(t, m, testPeer, network.DirOutbound)
	require.Error(t, out.SetProtocol(testProto))         // protocol: streams outbound
	_, err = m.OpenStream(testPeer, network.DirOutbound) // peer: streams
	require.Error(t, err)
	require.NoError(t, s.SetProtocol("/in"))
	require.NoError(t, s.SetService("svc"))
	require.Error(t, s.ReserveMemory(101, 255)) // service-peer: memory
	span, err := s.BeginSpan()
	require.NoError(t, err)
	require.Error(t, span.ReserveMemory(101, 255)) // service-peer: memory

	require.Equal(t, map[string]float64{ // cause, dir, resource, scope
		"limit  memory conn":                1,
		"limit  fd system":                  1,
		"rate inbound connection rate":      1,
		"subnet inbound connection subnet":  2,
		"crowding inbound stream transient": 1,
		"limit outbound stream protocol":    1,
		"limit  stream peer":                1,
		"limit  memory service-peer":        2,
	}, seriesOf(t, reg, "refusals_total"))
	require.Equal(t, m.Snapshot().Refusals[KindTransient].StreamsInbound, uint64(1))
}

// refusalsShown returns the series of refusals that the metrics show of managers, also those
// that are zero: cause, direction, resource, scope.
func refusalsShown(t *testing.T, managers ...*Manager) map[string]float64 {
	t.Helper()
	var l liveManagers
	for _, m := range managers {
		l.add(m)
	}
	reg := prometheus.NewPedanticRegistry()
	for i, f := range metricsFamilies {
		if f.name == "refusals_total" {
			reg.MustRegister(&collector{view: &metricsView{live: &l}, family: i, desc: f.desc()})
		}
	}
	all, err := reg.Gather()
	require.NoError(t, err)
	shown := make(map[string]float64)
	for _, f := range all {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, label := range m.GetLabel() {
				labels = append(labels, label.GetValue())
			}
			shown[strings.Join(labels, " ")] = m.GetCounter().GetValue()
		}
	}
	return shown
}

func TestRefusalsHaveZerosOnlyForWhatCanBeRefused(t *testing.T) {
	conf := func(set func(*perScope[BaseLimit])) Limiter {
		return NewFixedLimiter(ConcreteLimitConfig{limits: limitedConf(set)})
	}
	unlimited, gates := conf(func(*perScope[BaseLimit]) {}), openGates()
	allowlist := WithAllowlistedMultiaddrs(testAllowlist)
	transientIn := conf(func(c *perScope[BaseLimit]) { c.Transient.StreamsInbound = 8 })
	transientAll := conf(func(c *perScope[BaseLimit]) { c.Transient.Streams = 8 })
	allowlisted := conf(func(c *perScope[BaseLimit]) { c.AllowlistedSystem.Conns = 3 })
	threeDescriptors := unlimitedBase
	threeDescriptors.FD = 3
	outbound, oneSubnet := true, netip.MustParsePrefix("192.0.2.0/24")
	none := GateLimits{
		Subnets: SubnetLimits{IPv4: map[int]LimitVal{}, IPv6: map[int]LimitVal{}},
		Rate:    RateLimits{IPv4: map[int]ConnRate{}, IPv6: map[int]ConnRate{}},
	}
	oneNetwork := none
	oneNetwork.Subnets.Networks, oneNetwork.Outbound = map[netip.Prefix]LimitVal{oneSubnet: 5}, &outbound

	for name, c := range map[string]struct {
		limits Limiter
		opts   []Option
		want   []string
	}{
		"no limits":            {NewFixedLimiter(InfiniteLimits), nil, nil},
		"no limits of scopes":  {unlimited, nil, []string{"rate inbound connection rate", "subnet inbound connection subnet"}},
		"gates without limits": {unlimited, []Option{WithGates(none)}, nil},
		"gates of both directions": {unlimited, []Option{WithGates(GateLimits{Outbound: &outbound})}, []string{
			"rate inbound connection rate", "subnet inbound connection subnet",
			"rate outbound connection rate", "subnet outbound connection subnet",
		}},
		"a gate of one network": {unlimited, []Option{WithGates(oneNetwork)}, []string{
			"subnet inbound connection subnet", "subnet outbound connection subnet",
		}},
		"a rate limiter of the program": {
			unlimited, append(gates, WithConnRateLimiters(&xrate.Limiter{GlobalLimit: xrate.Limit{RPS: 1, Burst: 1}})),
			[]string{"rate inbound connection rate"}},
		"a rate limiter of the program that limits nothing": {
			unlimited, append(gates, WithConnRateLimiters(&xrate.Limiter{})), nil},
		"memory of the system": {
			conf(func(c *perScope[BaseLimit]) { c.System.Memory = 5 }), gates, []string{"limit  memory system"}},
		"streams of transient": {
			transientIn, gates, []string{"limit inbound stream transient", "crowding inbound stream transient"}},
		"streams of transient without the newcomers' quarter": {
			transientIn, append(gates, WithNewcomersQuarter(false)), []string{"limit inbound stream transient"}},
		"streams of transient in both directions": {
			transientAll, gates, []string{"limit  stream transient", "crowding outbound stream transient"}},
		"streams of transient with fair shares": {
			transientIn, append(gates, WithFairShare(KindTransient)), []string{"limit inbound stream transient", "fair-share inbound stream transient"}},
		"fair shares of another scope": {
			transientIn, append(gates, WithFairShare(KindSystem)), []string{"limit inbound stream transient", "crowding inbound stream transient"}},
		"allowlisted scopes without an allowlist": {allowlisted, gates, nil},
		"allowlisted scopes":                      {allowlisted, append(gates, allowlist), []string{"limit  connection allowlistedSystem"}},
		"a single peer": {
			conf(func(c *perScope[BaseLimit]) { c.Peer = map[peer.ID]BaseLimit{testPeer: threeDescriptors} }), gates,
			[]string{"limit  fd peer"}},
		"a connection that may have itself": {
			conf(func(c *perScope[BaseLimit]) {
				c.Conn = BaseLimit{Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1, Memory: 100}
			}), gates, []string{"limit  memory conn"}},
		"a connection that may have no descriptor": {
			conf(func(c *perScope[BaseLimit]) { c.Conn.FD = 0 }), gates, []string{"limit  fd conn"}},
		"outbound streams": {
			conf(func(c *perScope[BaseLimit]) { c.Stream.StreamsOutbound = 0 }), gates, []string{"limit outbound stream stream"}},
		"a service that has connections": {
			conf(func(c *perScope[BaseLimit]) { c.ServicePeerDefault.Conns = 1; c.ServicePeerDefault.Streams = 1 }), gates,
			[]string{"limit  stream service-peer"}},
		"the memory of the process": {
			unlimited, append(gates, WithMemoryPressure(MemoryPressureConfig{Limit: 1 << 40})),
			[]string{"memory-pressure inbound connection process", "memory-pressure inbound stream process"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := New(c.limits, slices.Clone(c.opts)...)
			require.NoError(t, err)
			defer m.Close()
			shown := refusalsShown(t, m)
			require.ElementsMatch(t, c.want, slices.Collect(maps.Keys(shown)))
			for series, n := range shown {
				require.Zero(t, n, series)
			}
		})
	}
}

// Two nodes of one process with default limits: no series stands for both directions of a
// gate, the descriptors of a connection, an allowlist or a memory bound that they do not have.
func TestTwoNodesWithDefaultLimitsHaveASeriesForEachRefusalThatCanOccur(t *testing.T) {
	var nodes []*Manager
	for range 2 {
		m, err := New(nil)
		require.NoError(t, err)
		defer m.Close()
		nodes = append(nodes, m)
	}
	const resources, ofStreams = int(numDims), 4 // memory and streams: in, out, both
	always := 2 * resources                      // system, transient
	crowding := 2
	servicesAndProtocols := 4 * ofStreams // of all peers, of one
	onePeer := resources
	memoryOfOneConnectionOrStream := 2
	gates := 2 // of inbound connections
	require.Len(t, refusalsShown(t, nodes...),
		always+crowding+servicesAndProtocols+onePeer+memoryOfOneConnectionOrStream+gates)
}

func TestLimitsThatComeLaterHaveTheirZerosOfRefusals(t *testing.T) {
	conf := unlimitedConf()
	conf.AllowlistedSystem.Conns = 3
	m := newManager(t, conf, openGates()...)
	shows := func(want ...string) {
		t.Helper()
		require.ElementsMatch(t, want, slices.Collect(maps.Keys(refusalsShown(t, m))))
	}
	shows()

	// An entry of the allowlist that goes again.
	const allowlisted = "limit  connection allowlistedSystem"
	entry := multiaddr.StringCast("/ip4/192.0.2.0/ipcidr/24")
	require.NoError(t, m.GetAllowlist().Add(entry))
	shows(allowlisted)
	none := amounts{}.base()
	viewSystem(t, m).(ResourceScopeLimiter).SetLimit(&none)
	c, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.NoError(t, err)
	viewSystem(t, m).(ResourceScopeLimiter).SetLimit(&unlimitedBase)
	require.NoError(t, m.GetAllowlist().Remove(entry))
	all := refusalsShown(t, m)
	require.Contains(t, all, allowlisted, "a connection is open there")
	c.Done()
	require.NotContains(t, refusalsShown(t, m), allowlisted)

	// A limit of one scope, and other limits for all.
	limit := unlimitedBase
	limit.Streams = 5
	viewPeer(t, m, testPeer).(ResourceScopeLimiter).SetLimit(&limit)
	require.Contains(t, refusalsShown(t, m), "limit  stream peer")
	require.NotContains(t, refusalsShown(t, m), "limit  memory stream")
	conf.Stream.Memory = 100
	require.NoError(t, m.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: conf})))
	require.Contains(t, refusalsShown(t, m), "limit  memory stream")
}

func TestALimiterOfTheProgramMayRefuseWhateverAScopeOfItsKindHolds(t *testing.T) {
	m, err := New(otherLimiter{NewFixedLimiter(InfiniteLimits)}, openGates()...)
	require.NoError(t, err)
	defer m.Close()
	shown := refusalsShown(t, m)
	require.Contains(t, shown, "limit inbound stream protocol-peer")
	require.Contains(t, shown, "limit  fd peer")
	require.Contains(t, shown, "limit  memory stream")
	for series := range shown {
		require.False(t, strings.HasSuffix(series, " system") || strings.HasSuffix(series, " conn"), "%s: its limit is known", series)
	}
}

// Whatever the limits and options: a series that is there from the start lets a rate see the
// first refusal, too.
func TestNoRefusalStartsASeries(t *testing.T) {
	seed := testSeed(t)
	steps := stressSteps() / 3
	follow := func(t *testing.T, m *Manager, step func()) {
		before := refusalsShown(t, m)
		for range steps {
			step()
			now := refusalsShown(t, m)
			for series, n := range now {
				if _, was := before[series]; n > 0 && !was {
					t.Fatalf("%s: began with %v", series, n)
				}
			}
			before = now
		}
	}
	cell := uint64(0)
	for _, g := range append(slices.Clone(regimes), mixed) {
		for _, newcomers := range []bool{true, false} {
			for _, stripes := range []int{1, 8} {
				cell++
				t.Run(fmt.Sprintf("%s/newcomers=%v/stripes=%d", g.name, newcomers, stripes), func(t *testing.T) {
					d := newDuel(t, randomFrom(seed, cell), stripes, g, AdmissionHalf, newcomers)
					d.largest = 1 << 50 // a sum that no number holds is refused without a limit
					follow(t, d.eng, func() {
						if d.r.IntN(20) == 0 {
							d.observe()
						}
						d.step()
					})
				})
			}
		}
	}
	for _, kinds := range [][]Kind{{KindTransient}, {KindSystem}, {KindTransient, KindSystem}} {
		cell++
		t.Run(fmt.Sprint("fair shares of ", kinds), func(t *testing.T) {
			p := newFairPlay(t, randomFrom(seed, cell), 8, kinds...)
			follow(t, p.m, p.step)
		})
	}
}

func TestMetricsShowUseLimitAndPeakOfSharedScopes(t *testing.T) {
	conf := unlimitedConf()
	conf.System.ConnsInbound, conf.System.Memory = 4, 1<<20
	conf.AllowlistedSystem.ConnsInbound = 9
	conf.ServiceDefault.Streams, conf.ServiceDefault.Conns = 5, 6 // connections have no service
	conf.PeerDefault.FD = 3
	m := newManager(t, conf, WithStripes(2))
	reg := registryOf(t, m)
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, s.SetProtocol(testProto))
	require.NoError(t, s.SetService("svc"))
	require.NoError(t, s.ReserveMemory(1000, 255))
	for range 3 {
		c, err := m.OpenConnection(network.DirInbound, false, nil)
		require.NoError(t, err)
		defer c.Done()
	}
	require.NoError(t, s.ReserveMemory(1<<19, 255))
	small := map[string]float64{"system": 1, "allowlistedSystem": 1, "service": 1} // too small for batches
	more := maps.Clone(small)
	more["system"]++ // memory is above half
	require.Equal(t, more, seriesOf(t, reg, "tight_limits"))
	s.ReleaseMemory(1 << 19)
	require.Equal(t, small, seriesOf(t, reg, "tight_limits"))

	p := string(testProto)
	require.Equal(t, map[string]float64{ // name, resource, scope
		" memory system": 1000, " streams_inbound system": 1, " streams system": 1,
		" conns_inbound system": 3, " conns system": 3,
		" conns_inbound transient": 3, " conns transient": 3,
		"svc memory service": 1000, "svc streams_inbound service": 1, "svc streams service": 1,
		p + " memory protocol": 1000, p + " streams_inbound protocol": 1, p + " streams protocol": 1,
	}, seriesOf(t, reg, "scope_use"))
	require.Equal(t, map[string]float64{
		" conns_inbound system": 4, " memory system": 1 << 20, " conns_inbound allowlistedSystem": 9,
		"svc streams service": 5,
	}, seriesOf(t, reg, "scope_limit"))
	require.Equal(t, map[string]float64{"streams service": 5, "fd peer": 3}, seriesOf(t, reg, "class_limit"))
	peaks := seriesOf(t, reg, "scope_peak")
	require.Equal(t, 1000.0+1<<19, peaks[" memory system"], "above half of the limit it is exact")
	require.Equal(t, 3.0, peaks[" conns_inbound system"])
	require.Equal(t, 1.0, peaks["svc streams service"])
	require.Equal(t, map[string]float64{"": 1}, seriesOf(t, reg, "peers"))
	require.Equal(t, map[string]float64{"": 2}, seriesOf(t, reg, "stripes"))
	require.Equal(t, map[string]float64{"": 1}, seriesOf(t, reg, "managers"))
	require.Positive(t, seriesOf(t, reg, "credit_draws_total")[""])

	// Series vanish with their scopes.
	s.Done()
	m.reap()
	m.reap()
	for _, family := range []string{"scope_use", "scope_limit", "scope_peak", "streams", "memory"} {
		for labels := range seriesOf(t, reg, family) {
			require.NotContains(t, labels, "svc", family)
			require.NotContains(t, labels, p, family)
		}
	}
	require.Empty(t, seriesOf(t, reg, "peers"))
}

func TestProtocolsThatLookLikeSpansOrPeersAreMeasured(t *testing.T) {
	m := newManager(t, unlimitedConf())
	reg := registryOf(t, m)
	for i, name := range []protocol.ID{"/my.span-app", "peer:12D3KooW", "service:x.peer:y", "/a.span-1.span-2"} {
		s := mustOpenStream(t, m, testPeer, network.DirInbound)
		require.NoError(t, s.SetProtocol(name))
		require.NoError(t, s.ReserveMemory(i+1, 255))
		require.Equal(t, 1.0, seriesOf(t, reg, "streams")["inbound "+string(name)+" protocol"])
		require.Equal(t, float64(i+1), seriesOf(t, reg, "memory")[string(name)+" protocol"])
	}
}

func TestMetricsShowGatesAndHealth(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4),
		WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 24, ConnCount: 8}, {PrefixLength: 16, ConnCount: 8}}, nil))
	reg := registryOf(t, m)
	var conns []network.ConnManagementScope
	for i := range 3 {
		c, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(fmt.Sprintf("/ip4/198.51.%d.1/tcp/1", i)))
		require.NoError(t, err)
		conns = append(conns, c)
	}
	require.Equal(t, map[string]float64{"": 3 + 1}, seriesOf(t, reg, "subnets"))
	require.Equal(t, map[string]float64{"": 3}, seriesOf(t, reg, "rate_buckets"))
	conns[0].ReleaseMemory(5)
	conns[0].Done()
	conns[0].ReleaseMemory(5)
	require.Equal(t, map[string]float64{"": 1}, seriesOf(t, reg, "caller_bugs_total"))
	require.Equal(t, map[string]float64{"": 1}, seriesOf(t, reg, "late_releases_total"))
	require.Equal(t, map[string]float64{"": 2 + 1}, seriesOf(t, reg, "subnets"))
	limit := unlimitedBase
	limit.Memory = 1 << 30
	viewSystem(t, m).(ResourceScopeLimiter).SetLimit(&limit)
	require.NoError(t, conns[1].ReserveMemory(1<<30, 255)) // more than half
	require.Equal(t, map[string]float64{"": 1}, seriesOf(t, reg, "all_lock_decisions_total"))
	conns[1].ReleaseMemory(1 << 30)
	require.Positive(t, seriesOf(t, reg, "credit_returns_total")[""])
}

// A scrape sees how many peers and subnets there are, and none of them: here it
// would crash if it looked at one.
func TestAScrapeVisitsNoPeer(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	want := testing.AllocsPerRun(10, func() { m.read() })
	for i := range m.stripes {
		st := m.stripes[i].awake()
		m.inOneCut(func() {
			for n := range 5000 {
				st.peers.add(&peerScope{id: peerNamed(fmt.Sprint(i, n))})
			}
			hidePeers(st.peers)
		})
	}
	require.Equal(t, 20_000, m.read().peers)
	require.Equal(t, want, testing.AllocsPerRun(10, func() { m.read() }))
	m.inOneCut(func() {
		for i := range m.stripes {
			m.stripes[i].peers = newPeerTable(m.hashOf)
		}
	})
}

func TestNamesInMetricsAreBounded(t *testing.T) {
	m := newManager(t, unlimitedConf())
	reg := registryOf(t, m)
	const n = 3 * mostNamed
	for i := range n {
		s := mustOpenStream(t, m, testPeer, network.DirInbound)
		defer s.Done()
		name := fmt.Sprintf("/%d/%s", i, strings.Repeat("ü", 4*longestName))
		require.NoError(t, s.SetProtocol(protocol.ID(name)))
		require.NoError(t, s.SetService(name))
		if i%100 == 7 {
			require.NoError(t, s.ReserveMemory(i, 255)) // busier than others
		}
	}
	for family, names := range map[string]int{"scope_use": mostNamed + 1, "scope_peak": mostNamed} {
		got, err := reg.Gather()
		require.NoError(t, err)
		for _, f := range got {
			if f.GetName() == familyPrefix+family {
				require.Len(t, f.GetMetric(), 4*8+2*names*4, family)
			}
			for _, metric := range f.GetMetric() {
				for _, l := range metric.GetLabel() {
					require.True(t, utf8.ValidString(l.GetValue()))
					require.LessOrEqual(t, len(l.GetValue()), longestName+len("…"))
				}
			}
		}
	}
	use := seriesOf(t, reg, "scope_use")
	require.Equal(t, float64(n-mostNamed), use[othersName+" streams protocol"], "nothing is left out")
	require.Equal(t, float64(n-mostNamed), use[othersName+" streams service"])
	require.NotContains(t, use, othersName+" memory protocol", "the busiest are named")
	shown := seriesOf(t, reg, "streams")
	require.Equal(t, float64(n-mostNamed), shown["inbound "+othersName+" protocol"])
	var sum float64
	for labels, v := range shown {
		if strings.HasSuffix(labels, " protocol") {
			sum += v
		}
	}
	require.EqualValues(t, n, sum)
}

// What stands for many scopes has no limit of its own: a sum of limits is none that
// anything is refused by.
func TestTheSeriesOfAllOtherScopesHasNoLimit(t *testing.T) {
	conf := unlimitedConf()
	conf.ProtocolDefault.Streams, conf.ProtocolDefault.Memory = 5, 1<<20
	conf.ServiceDefault.StreamsInbound = 6
	m := newManager(t, conf)
	for i := range mostNamed + 2 {
		s := mustOpenStream(t, m, testPeer, network.DirInbound)
		defer s.Done()
		require.NoError(t, s.SetProtocol(protocol.ID(fmt.Sprint("/", i))))
		require.NoError(t, s.SetService(fmt.Sprint(i)))
	}
	reg := registryOf(t, m)
	use, limits := seriesOf(t, reg, "scope_use"), seriesOf(t, reg, "scope_limit")
	require.Equal(t, 2.0, use[othersName+" streams protocol"])
	require.Equal(t, 2.0, use[othersName+" streams service"])
	require.Len(t, limits, mostNamed*(2+1))
	for _, scope := range []string{"protocol", "service"} {
		for _, resource := range limitLabels {
			limit, found := shownValue(t, reg, "scope_limit", othersName, resource, scope)
			require.False(t, found, "%s of %s: %v", resource, scope, limit)
		}
	}
}

// Totals of several managers stop at what a number holds, as their limits do.
func TestSumsOverManagersDoNotWrap(t *testing.T) {
	const most = int64(math.MaxInt64)
	var l liveManagers
	for range 3 {
		r := systemOnly(amounts{dimMemory: most - 1})
		r.scopes[0].limit, r.scopes[0].peak = amounts{dimMemory: most}, amounts{dimMemory: most - 1}
		r.peerMemory.MoveMemory(0, most-1)
		r.connMemory.MoveMemory(0, most-1)
		r.peerStreams[1].MoveCount(0, most-1)
		r.counts.blocked[KindPeer][dimMemory] = most - 1
		l.add(&fakeManager{says: r})
	}
	sum := l.read(nil)
	require.Equal(t, []int64{most, most, most}, []int64{
		sum.scopes[0].use[dimMemory], sum.scopes[0].limit[dimMemory], sum.scopes[0].peak[dimMemory]})
	require.EqualValues(t, most, sum.counts.blocked[KindPeer][dimMemory])
	for name, s := range map[string]*spread.Spread{"peer memory": &sum.peerMemory, "conn memory": &sum.connMemory, "peer streams": &sum.peerStreams[1]} {
		require.EqualValues(t, most, s.Sum, name)
	}
}

func TestCountsOfClosedManagersStayInTheSum(t *testing.T) {
	var l liveManagers
	one := &fakeManager{says: systemOnly(amounts{})}
	c := &one.says.counts
	c.refusals[KindPeer][dimFD], c.refusals[KindTransient][dimStreamsIn], c.rationed.crowded[dimStreamsIn] = 1, 5, 2
	c.callerBugs, c.lateReleases, c.draws, c.returns, c.settled = 3, 4, 5, 6, 7
	one.says.peers, one.says.stripes = 8, 9
	l.add(one)
	reg := registerInOrder(t, &l, nil, registerOrders["ours first"])
	families := []string{"refusals_total", "caller_bugs_total", "late_releases_total",
		"credit_draws_total", "credit_returns_total", "all_lock_decisions_total"}
	before := make(map[string]map[string]float64)
	for _, f := range families {
		before[f] = seriesOf(t, reg, f)
		require.NotEmpty(t, before[f])
	}
	require.Equal(t, map[string]float64{
		"limit  fd peer": 1, "limit inbound stream transient": 3, "crowding inbound stream transient": 2,
	}, before["refusals_total"])
	l.remove(one)
	for _, f := range families {
		require.Equal(t, before[f], seriesOf(t, reg, f))
	}
	for _, f := range []string{"peers", "stripes", "managers", "class_limit"} {
		require.Empty(t, seriesOf(t, reg, f))
	}
	l.add(one) // the next manager counts from there
	require.Equal(t, 2.0, seriesOf(t, reg, "refusals_total")["limit  fd peer"])
}

func TestLimitsAndPeaksOfClassesInSeveralManagersAreTheGreatest(t *testing.T) {
	var l liveManagers
	for _, fd := range []int64{3, 7, 5} {
		m := &fakeManager{says: systemOnly(amounts{})}
		m.says.classes[KindPeer][dimFD] = fd
		m.says.memberPeaks[KindPeer][dimFD], m.says.recentPeaks[KindServicePeer][dimMemory] = fd-1, fd-2
		l.add(m)
	}
	reg := registerInOrder(t, &l, nil, registerOrders["ours first"])
	require.Equal(t, map[string]float64{"fd peer": 7}, seriesOf(t, reg, "class_limit"))
	require.Equal(t, map[string]float64{"fd peer": 6}, seriesOf(t, reg, "member_peak"))
	require.Equal(t, map[string]float64{"memory service-peer": 5}, seriesOf(t, reg, "member_recent_peak"))
	require.Equal(t, map[string]float64{"": 3}, seriesOf(t, reg, "managers"))
}

// A limiter of other people's may know no limit for a name that is empty.
func TestAScrapeSurvivesALimiterThatKnowsNoDefaults(t *testing.T) {
	m, err := New(namedOnly{NewFixedLimiter(InfiniteLimits)})
	require.NoError(t, err)
	defer m.Close()
	classes := m.read().classes
	require.Equal(t, amounts{}, classes[KindService])
	require.False(t, slices.Contains(classes[KindPeer][:], 0))
}

type namedOnly struct{ Limiter }

func (l namedOnly) GetServiceLimits(name string) Limit {
	if name == "" {
		return nil
	}
	return l.Limiter.GetServiceLimits(name)
}

// The table in docs/metrics.md has every family, and no other.
func TestTheDocumentsListTheFamilies(t *testing.T) {
	chapter, err := os.ReadFile("docs/metrics.md")
	require.NoError(t, err)
	_, section, _ := strings.Cut(string(chapter), "\n## The families\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var listed, made []string
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) == 5 && strings.Contains(cells[1], "`") {
			for _, name := range strings.Split(cells[1], ",") {
				listed = append(listed, strings.Trim(strings.TrimSpace(name), "`")+strings.TrimRight(" "+strings.TrimSpace(cells[2]), " "))
			}
		}
	}
	for _, f := range metricsFamilies {
		if f.help != "" {
			made = append(made, strings.TrimRight(f.name+" "+strings.Join(f.labels, ", "), " "))
		}
	}
	slices.Sort(listed)
	slices.Sort(made)
	require.Equal(t, made, listed)
}
