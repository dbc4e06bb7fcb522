package rcmgr

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
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
		Rate:    RateLimits{IPv4: map[int]ConnRate{32: {PerSecond: 1e-6, Burst: 1}}},
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

	// All that can be refused has a series from the start.
	fresh := registryOf(t, newManager(t, unlimitedConf()))
	got, err := fresh.Gather()
	require.NoError(t, err)
	for _, f := range got {
		if f.GetName() == familyPrefix+"refusals_total" {
			require.Len(t, f.GetMetric(), 4*8+2+4*4+8+5+4+2*2+2, "the four that are always there, crowding in both directions, services and protocols, peer, conn, stream, gates")
			return
		}
	}
	require.Fail(t, "no refusals_total")
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
				st.peers[peerNamed(fmt.Sprint(i, n))] = nil
			}
		})
	}
	require.Equal(t, 20_000, m.read().peers)
	require.Equal(t, want, testing.AllocsPerRun(10, func() { m.read() }))
	m.inOneCut(func() {
		for i := range m.stripes {
			clear(m.stripes[i].peers)
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

// The README's table has every family, and no other.
func TestTheREADMEListsTheFamilies(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, section, _ := strings.Cut(string(readme), "\n## Prometheus\n")
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
