package rcmgr

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

// stateOf finds a scope in a snapshot.
func (s *Snapshot) stateOf(t testing.TB, name string) ScopeState {
	t.Helper()
	for _, sc := range s.Scopes {
		if sc.Name == name {
			return sc
		}
	}
	require.Fail(t, "no such scope", name)
	return ScopeState{}
}

// exampleSnapshot has a scope of every class, and a name that a stranger chose.
func exampleSnapshot() Snapshot {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	limit := unlimitedBase
	limit.ConnsInbound, limit.Conns, limit.FD, limit.Memory = 64, 128, 0, 1<<30
	return Snapshot{
		Taken: at.Add(time.Hour), Started: at, Peers: 1, Services: 300, Protocols: 1,
		MemberPeaks: map[Kind]MemberPeak{KindPeer: {Ever: Amounts{Conns: 9, Memory: 1 << 20}, Recent: Amounts{Conns: 4}}},
		Scopes: []ScopeState{
			{Name: "system", Kind: KindSystem,
				Use:   network.ScopeStat{NumConnsInbound: 60, NumConnsOutbound: 4, NumStreamsInbound: 3, Memory: 1 << 20},
				Limit: limit, Peak: Amounts{Conns: 70, ConnsInbound: 64, ConnsOutbound: 6, Memory: 1 << 29},
				Refusals: Refusals{ConnsInbound: 5, FD: 2}, Tight: []string{"ConnsInbound", "Conns"}},
			{Name: "protocol:/evil\n\x1b[2J/1", Kind: KindProtocol, ID: "/evil\n\x1b[2J/1", Limit: unlimitedBase,
				Use: network.ScopeStat{NumStreamsInbound: 3}},
			{Name: "peer:" + testPeer.String(), Kind: KindPeer, ID: testPeer.String(), Limit: limit,
				Use: network.ScopeStat{NumConnsInbound: 64, NumFD: 1}},
		},
		Refusals: map[Kind]Refusals{KindSystem: {ConnsInbound: 5, FD: 2}, KindRate: {ConnsInbound: 9}},
		Recent:   []RefusalsAt{{At: at.Add(50 * time.Minute), Refusals: 3}, {At: at.Add(55 * time.Minute), Refusals: 10}},
		Gates: GateState{Subnets: 2, RateBuckets: 1,
			Fullest: []SubnetState{{netip.MustParsePrefix("192.0.2.0/24"), 7, 8}}},
		Engine: EngineState{Stripes: 8, Draws: 1, Returns: 2, Settled: 3},
	}
}

func TestASnapshotIsReadFromJSONAsItIsWritten(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.StreamsInbound = 3
	conf.PeerDefault.ConnsInbound = 0
	m := newManager(t, conf)
	for range 3 {
		mustOpenStream(t, m, testPeer, network.DirInbound)
	}
	_, err := m.OpenStream(testPeer, network.DirInbound)
	require.Error(t, err)

	for _, before := range []Snapshot{m.Snapshot(), m.SnapshotTop(0), {Refusals: map[Kind]Refusals{}}} {
		text, err := json.Marshal(before)
		require.NoError(t, err)
		var after Snapshot
		require.NoError(t, json.Unmarshal(text, &after))
		require.True(t, before.Taken.Equal(after.Taken)) // but for the reading of the monotonic clock
		after.Taken, after.Started = before.Taken, before.Started
		require.Equal(t, before, after)
	}
	for _, bad := range []string{`{"Scopes":[{"Kind":"sytem"}]}`, `{"Scopes":[{"Limits":{"FD":{"Limit":"lots"}}}]}`} {
		var s Snapshot
		require.Error(t, json.Unmarshal([]byte(bad), &s), bad)
	}
}

func TestJSONOfASnapshotStaysAsItIs(t *testing.T) {
	const golden = "testdata/snapshot.json"
	got, err := json.MarshalIndent(exampleSnapshot(), "", "  ")
	require.NoError(t, err)
	got = append(got, '\n')
	if *update {
		require.NoError(t, os.WriteFile(golden, got, 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestASnapshotIsOneCutUnderLoad(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				s, err := m.OpenStream(peer.ID(fmt.Sprint("peer", w, i%7)), network.DirInbound)
				if err == nil {
					s.ReserveMemory(i%5, network.ReservationPriorityAlways)
					s.SetProtocol(protocol.ID(fmt.Sprint("/p/", i%3)))
					s.ReserveMemory(i%3, network.ReservationPriorityAlways)
					s.Done()
				}
			}
		})
	}
	for range 300 {
		s := m.Snapshot()
		var sum [numKinds]amounts
		for _, sc := range s.Scopes {
			use, peak := amountsOf(sc.Use), sc.Peak.byDim()
			sum[sc.Kind].add(&use)
			for d := range numDims {
				require.GreaterOrEqual(t, peak[d], use[d], "%s: %s", sc.Name, limitNames[d])
			}
		}
		system := sum[KindSystem]
		require.Equal(t, system, sum[KindPeer])
		sum[KindProtocol].add(&sum[KindTransient])
		require.Equal(t, system, sum[KindProtocol])
	}
	close(stop)
	workers.Wait()
	assertEmpty(t, m)
}

// What is called a peak was held at some instant. Above half of a limit nothing is missed.
func TestPeaksWereHeldAtSomeInstant(t *testing.T) {
	const limit = 1000
	random := testRandom(t)
	conf := unlimitedConf()
	conf.System.StreamsInbound, conf.ProtocolDefault.StreamsInbound = limit, limit
	m := newManager(t, conf, WithStripes(4), WithNewcomersQuarter(false))
	const looks = 7
	seen := 0 // the most that a look has seen
	var open []network.StreamManagementScope
	highest, peers := 0, map[peer.ID]int{}
	held := map[peer.ID]int{}
	owner := map[network.StreamManagementScope]peer.ID{}
	for i, goal := range []int{60, 0, 300, 100, 700, 10, 900, 300} {
		for len(open) != goal {
			if n := len(open); goal < n {
				i := random.IntN(n)
				open[i].Done()
				held[owner[open[i]]]--
				open[i] = open[n-1]
				open = open[:n-1]
			} else {
				p := peer.ID(fmt.Sprint(random.IntN(20)))
				s := mustOpenStream(t, m, p, network.DirInbound)
				require.NoError(t, s.SetProtocol(testProto))
				owner[s] = p
				open = append(open, s)
				held[p]++
				peers[p] = max(peers[p], held[p])
			}
			if highest = max(highest, len(open)); len(open)%looks == 0 {
				m.followPeaks()
				seen = max(seen, len(open))
			}
		}
		if i%2 == 0 {
			continue // only followPeaks looks at the top
		}
		s := m.Snapshot()
		seen = max(seen, len(open))
		for scope, isTight := range map[string]bool{"system": highest > limit/2, "transient": false, "protocol:" + string(testProto): highest > limit/2} {
			peak := s.stateOf(t, scope).Peak.StreamsInbound
			require.LessOrEqual(t, peak, highest, scope)
			if isTight {
				require.Equal(t, highest, peak, scope)
			} else if scope == "system" {
				require.GreaterOrEqual(t, peak, seen, scope)
			} else if scope != "transient" { // it is looked at after it has drawn
				require.GreaterOrEqual(t, peak, seen-limit/8, scope)
			}
		}
		for p, n := range peers {
			require.Equal(t, n, s.stateOf(t, "peer:"+p.String()).Peak.StreamsInbound)
		}
	}
	for _, s := range open {
		s.Done()
	}
	assertEmpty(t, m)
}

func TestPeakOfAPeersMemoryIsExact(t *testing.T) {
	m := newManager(t, unlimitedConf())
	s := servedStream(t, m, testPeer)
	for _, n := range []int{100, 300, 200} {
		require.NoError(t, s.ReserveMemory(n, network.ReservationPriorityAlways))
		s.ReleaseMemory(n)
	}
	require.NoError(t, viewPeer(t, m, testPeer).ReserveMemory(250, 0))
	at := m.Snapshot()
	require.EqualValues(t, 300, at.stateOf(t, "peer:"+testPeer.String()).Peak.Memory)
}

func TestEveryScopeCountsWhatItRefusedItself(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Memory = 1000
	conf.PeerDefault.StreamsOutbound = 1
	conf.ProtocolDefault.StreamsInbound = 1
	conf.ServicePeerDefault.Memory = 10
	conf.Transient.ConnsInbound = 0
	m := newManager(t, conf, WithAllowlistedMultiaddrs(testAllowlist))
	counted := func(name string) Refusals {
		s := m.Snapshot()
		sc := s.stateOf(t, name)
		return sc.Refusals
	}
	name := "peer:" + testPeer.String()

	s := servedStream(t, m, testPeer)
	require.Error(t, s.ReserveMemory(11, network.ReservationPriorityAlways)) // by the pair
	require.Zero(t, counted(name))
	require.Zero(t, counted("service:"+testSvc))
	mustOpenStream(t, m, testPeer, network.DirOutbound)
	for range 2 {
		_, err := m.OpenStream(testPeer, network.DirOutbound)
		require.Error(t, err)
	}
	require.Equal(t, Refusals{StreamsOutbound: 2}, counted(name))
	other := mustOpenStream(t, m, "other", network.DirInbound)
	require.Error(t, other.SetProtocol(testProto))
	require.Equal(t, Refusals{StreamsInbound: 1}, counted("protocol:"+string(testProto)))
	require.Error(t, viewSystem(t, m).ReserveMemory(1001, network.ReservationPriorityAlways))
	require.Equal(t, Refusals{Memory: 1}, counted("system"))

	// What falls back on the allowlisted scopes is not refused.
	c, err := m.OpenConnection(network.DirInbound, true, testAllowlist[0])
	require.NoError(t, err)
	require.Zero(t, counted("transient"))
	c.Done()
	_, err = m.OpenConnection(network.DirInbound, true, nil)
	require.Error(t, err)
	require.Equal(t, Refusals{ConnsInbound: 1}, counted("transient"))
}

func TestRefusalsOfAScopeOutliveItsShares(t *testing.T) {
	conf := unlimitedConf()
	conf.ProtocolDefault.StreamsInbound = 0
	m := newManager(t, conf, WithStripes(16))
	viewProtocol(t, m, testProto).(protocolScope).SetLimit(conf.ProtocolDefault) // it stays
	for i := range 100 {
		s := mustOpenStream(t, m, peer.ID(fmt.Sprint(i)), network.DirInbound)
		require.Error(t, s.SetProtocol(testProto))
		s.Done()
	}
	m.reap()
	s := m.Snapshot()
	require.EqualValues(t, 100, s.stateOf(t, "protocol:"+string(testProto)).Refusals.StreamsInbound)
	assertEmpty(t, m)
}

// An error may live as long as its caller likes.
func TestARefusalHoldsNoAccount(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		require.NotEqual(t, reflect.TypeFor[account](), typ)
		if seen[typ] {
			return
		}
		seen[typ] = true
		switch typ.Kind() {
		case reflect.Struct:
			for i := range typ.NumField() {
				walk(typ.Field(i).Type)
			}
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			walk(typ.Elem())
		}
	}
	walk(reflect.TypeFor[LimitError]())
	require.Contains(t, seen, reflect.TypeFor[scopeName]())
}

// openCrowd makes peers, each with an inbound stream, and the given ones with more.
func openCrowd(t testing.TB, m *Manager, peers int) {
	for i := range peers {
		mustOpenStream(t, m, peer.ID(fmt.Sprint("peer", i)), network.DirInbound)
	}
	for i := range 3 {
		for range i + 1 {
			mustOpenStream(t, m, peer.ID(fmt.Sprint("peer", i)), network.DirInbound)
		}
	}
	big := mustOpenStream(t, m, "big", network.DirOutbound)
	require.NoError(t, big.ReserveMemory(1<<20, network.ReservationPriorityAlways))
	require.Error(t, mustOpenConn(t, m, network.DirInbound).SetPeer("asks"))
}

func crowdConf() perScope[BaseLimit] {
	conf := unlimitedConf()
	conf.PeerDefault.ConnsInbound = 0
	return conf
}

func TestASnapshotOfTheTopHasThePeersThatHoldTheMost(t *testing.T) {
	m := newManager(t, crowdConf(), WithStripes(4), WithNewcomersQuarter(false))
	openCrowd(t, m, 2000)
	s := m.SnapshotTop(2)
	require.Equal(t, 2002, s.Peers)
	listed := 0
	for _, sc := range s.Scopes {
		if sc.Kind == KindPeer {
			listed++
		}
	}
	require.LessOrEqual(t, listed, 2*int(numDims+1))
	for _, p := range []peer.ID{"peer2", "peer1", "big", "asks"} {
		s.stateOf(t, "peer:"+p.String())
	}
	require.EqualValues(t, 4, s.stateOf(t, "peer:"+peer.ID("peer2").String()).Use.NumStreamsInbound)

	all := m.Snapshot().Scopes
	require.Len(t, all, 4+2002)
	require.True(t, slices.IsSortedFunc(all, compareScopes))
	for _, none := range []int{0, -1} {
		require.Len(t, m.SnapshotTop(none).Scopes, 4)
	}
	require.Len(t, m.SnapshotTop(math.MaxInt).Scopes, 4+2002)
}

func TestAPeerThatHoldsOneMoreThanAllOthersIsInASnapshotOfTheTop(t *testing.T) {
	for what, hold := range map[string]func(m *Manager, p peer.ID, n int){
		"streams": func(m *Manager, p peer.ID, n int) {
			for range n {
				servedStream(t, m, p)
			}
		},
		"streams without a protocol": func(m *Manager, p peer.ID, n int) {
			for range n {
				mustOpenStream(t, m, p, network.DirInbound)
			}
		},
		"memory": func(m *Manager, p peer.ID, n int) {
			require.NoError(t, servedStream(t, m, p).ReserveMemory(n, network.ReservationPriorityAlways))
		},
	} {
		for _, least := range []int{1, 2} {
			for _, order := range []struct { // peers may be visited in any
				busyAt int
				down   bool
			}{{0, false}, {0, true}, {10, false}, {10, true}} {
				busyAt, down := order.busyAt, order.down
				m := newManager(t, unlimitedConf(), WithStripes(1), WithNewcomersQuarter(false))
				busy := func() { // the one that holds most of all else
					if what != "memory" {
						require.NoError(t, servedStream(t, m, "busy").ReserveMemory(1<<20, network.ReservationPriorityAlways))
					}
					for range 99 {
						if what != "streams" {
							servedStream(t, m, "busy")
						}
					}
				}
				for i := range 10 {
					n := i
					if down {
						n = 9 - i
					}
					if i == busyAt {
						busy()
					}
					hold(m, peerNamed(fmt.Sprint(n)), least+n)
				}
				if busyAt == 10 {
					busy()
				}
				s := m.SnapshotTop(1)
				name := scopeName{kind: KindPeer, peer: peerNamed("9")}
				require.True(t, slices.ContainsFunc(s.Scopes, func(sc ScopeState) bool { return sc.Name == name.String() }), "of %s", what)
			}
		}
	}
}

func TestASnapshotOfTheTopAllocatesForThoseThatAreAskedFor(t *testing.T) {
	bytes := func(peers int) uint64 {
		m := newManager(t, crowdConf(), WithStripes(4), WithNewcomersQuarter(false))
		openCrowd(t, m, peers)
		const looks = 20
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range looks {
			m.SnapshotTop(5)
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / looks
	}
	few, many := bytes(100), bytes(10_000)
	require.Less(t, many, few+few/2, "with 100 peers it allocates %d bytes", few)
}

func TestPeersComeAndGoWhileTheyAreVisited(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	for i := range 3 * peersAtOnce {
		mustOpenStream(t, m, peer.ID(fmt.Sprint("stays", i)), network.DirInbound)
	}
	stop := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			s, err := m.OpenStream(peer.ID(fmt.Sprint("goes", i%5000)), network.DirInbound)
			if err == nil {
				s.Done()
			}
			if i%1000 == 0 {
				m.reap()
			}
		}
	})
	for range 20 {
		seen := map[peer.ID]int{}
		m.stripes[0].eachPeer(func(ps *peerScope) { seen[ps.id]++ })
		for i := range 3 * peersAtOnce {
			require.Equal(t, 1, seen[peer.ID(fmt.Sprint("stays", i))])
		}
	}
	close(stop)
	churn.Wait()
}

// A lock that is let go and taken again at once is had by who waits only if that has been
// in vain for a millisecond.
func TestAVisitOfAllPeersLetsOthersHaveTheLock(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	for i := range 4 * peersAtOnce {
		mustOpenStream(t, m, peer.ID(fmt.Sprint(i)), network.DirInbound)
	}
	st := &m.stripes[0]
	visited, when := 0, -1
	var waits sync.WaitGroup
	var id string
	st.eachPeer(func(*peerScope) {
		switch {
		case visited == 0:
			started := make(chan string, 1)
			waits.Go(func() {
				started <- goroutineID()
				st.lock()
				defer st.unlock()
				when = visited
			})
			id = <-started
			waitUntilLocked(t, id)
			time.Sleep(2 * time.Millisecond) // so that it counts as waiting for long
		case visited%peersAtOnce == 0 && when < 0:
			waitUntilLocked(t, id) // it has found out
		}
		visited++
	})
	waits.Wait()
	require.Equal(t, 4*peersAtOnce, visited)
	require.Less(t, when, visited, "not before the last peer")
}

func TestASnapshotShowsWhatTheGatesKeep(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithLimitPerSubnet(
		[]ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 2}, {PrefixLength: 8, ConnCount: 100}},
		[]ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: 4}}),
		WithNetworkPrefixLimit([]NetworkPrefixLimit{{netip.MustParsePrefix("192.0.2.0/24"), 3}}, nil))
	for _, addr := range []string{"/ip4/198.51.100.1", "/ip4/198.51.100.1", "/ip4/198.51.100.2", "/ip4/192.0.2.9", "/ip6/2001:db8::1"} {
		_, err := m.OpenConnection(network.DirInbound, false, mustMA(t, addr))
		require.NoError(t, err)
	}
	want := []SubnetState{
		{netip.MustParsePrefix("198.51.100.1/32"), 2, 2},
		{netip.MustParsePrefix("198.51.100.2/32"), 1, 2},
		{netip.MustParsePrefix("192.0.2.0/24"), 1, 3},
		{netip.MustParsePrefix("2001:db8::/56"), 1, 4},
		{netip.MustParsePrefix("198.0.0.0/8"), 3, 100},
	}
	got := m.Snapshot().Gates
	require.Equal(t, want, got.Fullest)
	require.Equal(t, 5, got.Subnets)
	require.Positive(t, got.RateBuckets)
	require.Equal(t, want[:2], m.SnapshotTop(2).Gates.Fullest)
	require.Equal(t, 5, m.SnapshotTop(0).Gates.Subnets)
	require.Empty(t, m.SnapshotTop(0).Gates.Fullest)
}

// One connection that has come and gone is a peak of one, not of the credit that was drawn for
// it.
func TestThePeakOfOneConnectionIsOne(t *testing.T) {
	m := newFrom(t, DefaultLimits.Scale(8<<30, 4096))
	c, err := m.OpenConnection(network.DirInbound, true, nil)
	require.NoError(t, err)
	c.Done()
	s := m.Snapshot()
	for _, scope := range []string{"system", "transient"} {
		require.Equal(t, Amounts{Conns: 1, ConnsInbound: 1, FD: 1}, s.stateOf(t, scope).Peak, scope)
	}
}

// What is copied of all peers under all stripe locks has its room from before.
func TestACutOfAllPeersAllocatesNothingUnderTheLocks(t *testing.T) {
	m := newManager(t, unlimitedConf())
	const peers = 3000
	for _, p := range names(peers) {
		openPeer(t, m, p)
	}
	room := m.roomForPeers()
	require.GreaterOrEqual(t, room, peers)
	c := m.newCut(room, 0)
	require.Zero(t, testing.AllocsPerRun(10, func() {
		c.shared, c.peers = c.shared[:0], c.peers[:0]
		m.inOneCut(func() {
			c.addFixed(m)
			m.dir.each(c.addPool)
			c.addAllPeers(m)
		})
	}))
	require.Len(t, c.peers, peers)
	require.Len(t, m.Stat().Peers, peers)
	require.Equal(t, peers, m.Snapshot().Peers)
}

// Those that were refused most often have room for that, too.
func TestACutOfRefusedPeersAllocatesNothingUnderTheLocks(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.PeerDefault.StreamsInbound = 0 }))
	const peers = 64
	for _, p := range names(peers) {
		c, err := m.OpenConnection(network.DirInbound, false, nil)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(p))
		_, err = m.OpenStream(p, network.DirInbound)
		require.Error(t, err)
	}
	refused := 0
	c := m.newCut(peers, peers)
	require.Zero(t, testing.AllocsPerRun(10, func() {
		c.peers, c.denials = c.peers[:0], c.denials[:0]
		m.inOneCut(func() { c.addAllPeers(m) })
	}))
	for i := range c.peers {
		s := c.peers[i].state(c)
		refused += int(s.Refusals.StreamsInbound)
	}
	require.Equal(t, peers, refused)
}

// A node that has held 10,000 connections at once says so, and nothing else: credit that was
// handed out to stripes is not a peak, whatever the limit, however many stripes there are, and
// however the node came there.
func TestThePeakOfTenThousandConnectionsIsTenThousand(t *testing.T) {
	const held = 10_000
	for _, limit := range []int{held, 12_288, 15_000, 20_001, 65_536, 1 << 20, math.MaxInt} {
		for _, stripes := range []int{1, 4, 16} {
			conf := unlimitedConf()
			conf.System.ConnsInbound = limit
			m := newManager(t, conf, WithStripes(stripes))
			var open []network.ConnManagementScope
			peak := func() int {
				s := m.Snapshot()
				return s.stateOf(t, "system").Peak.ConnsInbound
			}
			grow := func(to int) {
				for len(open) < to {
					c := mustOpenConn(t, m, network.DirInbound)
					require.NoError(t, c.SetPeer(testPeers[len(open)%len(testPeers)]))
					open = append(open, c)
				}
			}
			shrink := func(to int) {
				for ; len(open) > to; open = open[:len(open)-1] {
					open[len(open)-1].Done()
				}
			}
			grow(held / 2)
			shrink(held / 10)
			grow(held)
			m.followPeaks() // the job of each second
			shrink(0)
			grow(held / 3)
			require.Equal(t, held, peak(), "limit %d, %d stripes", limit, stripes)
			page := bodyOf(t, ask(Handler(m), "GET", "/?format=json"))
			require.Contains(t, page, `"Peak": 10000`)
			series := seriesOf(t, registryOf(t, m), "scope_peak")
			require.EqualValues(t, held, series[" conns_inbound system"])
			shrink(0)
			require.Equal(t, held, peak())
			assertEmpty(t, m)
		}
	}
}

// A snapshot has the limits of the gates, and is a value that can be changed without harm.
func TestASnapshotHasTheLimitsOfTheGates(t *testing.T) {
	limits := PartialLimitConfig{Gates: &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 3}}}}
	m := newFrom(t, limits.Build(InfiniteLimits))
	s := m.Snapshot()
	require.Equal(t, map[int]LimitVal{32: 3}, s.Gates.Limits.Subnets.IPv4)
	require.Equal(t, map[int]LimitVal{56: 8, 48: 64}, s.Gates.Limits.Subnets.IPv6, "defaults are filled in")
	require.Equal(t, s.Gates.Limits, readBack(t, s).Gates.Limits)
	s.Gates.Limits.Subnets.IPv4[32] = 1
	clear(s.Gates.Limits.Rate.IPv4)
	again := m.Snapshot()
	require.Equal(t, map[int]LimitVal{32: 3}, again.Gates.Limits.Subnets.IPv4)
	require.NotEmpty(t, again.Gates.Limits.Rate.IPv4)
}

// A snapshot of many peers takes what it lists of them, and not as much again to find out what
// stands in the way.
func TestASnapshotAllocatesLittleForEachPeer(t *testing.T) {
	const peers = 4000
	m := newManager(t, unlimitedConf())
	for _, p := range names(peers) {
		for _, scope := range openPeer(t, m, p) {
			defer scope.Done()
		}
	}
	m.Snapshot() // makes the cut, which is used again
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := m.Snapshot()
	runtime.ReadMemStats(&after)
	require.Greater(t, len(s.Scopes), peers)
	each := (after.TotalAlloc - before.TotalAlloc) / peers
	t.Logf("%d bytes for each peer", each)
	require.Less(t, each, uint64(1000))
}
