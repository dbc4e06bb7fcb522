package rcmgr

// The files guarantees_*_test.go have what is guaranteed where go-libp2p's own manager is
// known to go wrong, one test each, named by what must be true. These are about
// admission: exactly what fits is admitted, in whatever order it is asked for, and a
// request that is refused takes nothing.

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// peersInStripes returns n peers that lie in stripes of their own.
func peersInStripes(m *Manager, n int) (peers []peer.ID) {
	seen := make(map[*stripe]bool)
	for i := 0; len(peers) < n; i++ {
		p := peerNamed(fmt.Sprint(i))
		if st := m.stripeOf(p); !seen[st] {
			seen[st] = true
			peers = append(peers, p)
		}
	}
	return peers
}

func TestARequestThatIsRefusedTakesNothingFromOthers(t *testing.T) {
	conf := limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Memory, c.ProtocolDefault.Memory, c.PeerDefault.Memory = 1000, 600, 600
	})
	for _, spread := range []string{"one peer", "two stripes"} {
		t.Run(spread, func(t *testing.T) {
			m := newManager(t, conf, WithStripes(8))
			peers := peersInStripes(m, 2)
			if spread == "one peer" {
				peers[1] = peers[0]
			}
			greedy, modest := servedStream(t, m, peers[0]), servedStream(t, m, peers[1])
			require.NoError(t, viewSystem(t, m).ReserveMemory(500, 255))
			// Alone: what the protocol and the peer had room for is not taken.
			before := books(m)
			require.Error(t, greedy.ReserveMemory(600, 255))
			require.Equal(t, before, books(m))
			require.EqualValues(t, 0, m.dir.find(KindProtocol, string(testProto)).tally(dimMemory).handed)
			// At the same time: 600 pass the peer and the protocol, and never
			// the system; 500 always fit.
			var wg sync.WaitGroup
			stop := make(chan struct{})
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						if greedy.ReserveMemory(600, 255) == nil {
							t.Error("600 of 500 were admitted")
							return
						}
					}
				}
			})
			for range 2000 {
				if err := modest.ReserveMemory(500, 255); err != nil {
					t.Errorf("what fits was refused: %v", err)
					break
				}
				modest.ReleaseMemory(500)
			}
			close(stop)
			wg.Wait()
		})
	}
}

func TestNothingIsLeftOfWhatIsRefused(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Streams, c.System.Conns = 1, 1
		c.ProtocolDefault.Streams, c.Service = 0, map[string]BaseLimit{}
	}), append(openGates(), WithStripes(8))...)
	c, s := mustOpenConn(t, m, network.DirInbound), mustOpenStream(t, m, testPeer, network.DirInbound)
	far := multiaddr.StringCast("/ip4/198.51.100.7/tcp/1")
	for i := range 200 {
		_, err := m.OpenConnection(network.DirInbound, true, far)
		require.Error(t, err)
		_, err = m.OpenStream(peerNamed(fmt.Sprint(i)), network.DirOutbound)
		require.Error(t, err)
		require.Error(t, s.SetProtocol(protocol.ID(fmt.Sprint(i))))
	}
	m.reap()
	require.Equal(t, []string{kindNamesHere[KindPeer]}, listed(m))
	for i := range m.stripes {
		for ps := range m.stripes[i].allPeers {
			require.Empty(t, ps.allPairs())
		}
	}
	c.Done()
	s.Done()
	assertEmpty(t, m)
}

// TestThresholdsAreExact: every priority at limits around everything that
// could go wrong, against numbers of any size.
func TestThresholdsAreExact(t *testing.T) {
	limits := []int64{0, 1, 2, 3, 127, 128, 129, 255, 256, 257, 1000, 1 << 20, 1<<31 - 1, 1 << 32, 1<<55 - 1, 1 << 55, 1<<55 + 1,
		math.MaxInt64/256 - 1, math.MaxInt64 / 256, math.MaxInt64/256 + 1, math.MaxInt64/2 + 1}
	for i := range int64(300) {
		limits = append(limits, math.MaxInt64-i)
	}
	for _, limit := range limits {
		for p := range 256 {
			for a, weight := range map[Admission]int64{
				AdmissionHalf: 2 * min(256, 128+int64(p)), AdmissionLinear: 2 * (1 + int64(p)), AdmissionGraded: 257 + int64(p),
			} {
				want := new(big.Int).Mul(big.NewInt(limit), big.NewInt(weight))
				want.Rsh(want, 9)
				if a == AdmissionLinear && limit == math.MaxInt64 {
					want.SetInt64(limit) // unlimited is unlimited at every priority
				}
				if got := a.threshold(limit, a.weight(uint8(p))); got != want.Int64() {
					t.Fatalf("admission %d: priority %d may fill %d of %d instead of %v", a, p, got, limit, want)
				}
			}
		}
	}
}

// TestEveryPriorityIsAdmittedToItsThreshold: the same through a manager.
func TestEveryPriorityIsAdmittedToItsThreshold(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		for _, a := range []Admission{AdmissionHalf, AdmissionLinear, AdmissionGraded} {
			for _, limit := range []int64{0, 1, 255, 1000, 1 << 30, math.MaxInt64 - 1, math.MaxInt64} {
				limit := min(limit, math.MaxInt) // what can be asked for at once
				m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = limit }), WithStripes(stripes), WithAdmission(a))
				s := viewPeer(t, m, testPeer)
				// A byte that is held, with credit lying idle beside it.
				held := int(min(limit, 1))
				require.NoError(t, s.ReserveMemory(held, 255))
				for p := range 256 {
					most := int(a.threshold(limit, a.weight(uint8(p)))) - held
					if most >= 0 {
						require.NoError(t, s.ReserveMemory(most, uint8(p)))
					}
					var e *LimitError
					require.ErrorAs(t, s.ReserveMemory(1, uint8(p)), &e, "priority %d, %d of %d", p, most, limit)
					require.EqualValues(t, p, e.Priority())
					s.ReleaseMemory(max(0, most))
					if most < math.MaxInt {
						require.Error(t, s.ReserveMemory(most+1, uint8(p)))
					}
				}
				s.ReleaseMemory(held)
				assertEmpty(t, m)
			}
		}
	}
}

// The windows of bulk streams grow as yamux grows them: by doubling, at priority 128, until the
// manager refuses. Whether a new stream then gets its first window, which is 256 KiB and must
// not be refused for the sake of larger ones, is a matter of the rule.
func TestRulesLeaveRoomForNewStreamsBesideGrowingWindows(t *testing.T) {
	const first, grows, always = 256 << 10, 128, network.ReservationPriorityAlways
	for _, c := range []struct {
		rule  Admission
		taken int64 // by windows that have grown as far as they may, of 64 MiB
		fits  bool
	}{
		{AdmissionHalf, 64 << 20, false},
		{AdmissionLinear, 129 << 18, true},
		{AdmissionGraded, 385 << 17, true},
	} {
		for _, stripes := range []int{1, 8} {
			m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = 64 << 20 }),
				WithStripes(stripes), WithAdmission(c.rule))
			var windows []int
			var open []network.StreamManagementScope
			for i := range 6 {
				s, err := m.OpenStream(peer.ID(fmt.Sprintf("bulk %d", i)), network.DirInbound)
				require.NoError(t, err)
				require.NoError(t, s.ReserveMemory(first, always))
				open, windows = append(open, s), append(windows, first)
			}
			for grown := true; grown; {
				grown = false
				for i, s := range open {
					if s.ReserveMemory(windows[i], grows) == nil {
						windows[i] *= 2
						grown = true
					}
				}
			}
			// A last one takes what is left for its priority, a little at a time.
			for open[0].ReserveMemory(64<<10, grows) == nil {
			}
			require.LessOrEqual(t, viewSystem(t, m).Stat().Memory, c.taken, c.rule)
			require.Greater(t, viewSystem(t, m).Stat().Memory, c.taken-(64<<10), c.rule)
			s, err := m.OpenStream("newcomer", network.DirInbound)
			require.NoError(t, err)
			require.Equal(t, c.fits, s.ReserveMemory(first, always) == nil, c.rule)
			for _, s := range append(open, s) {
				s.Done()
			}
			assertEmpty(t, m)
		}
	}
}

// The parts that are promised in the documents, at the priorities that go-libp2p has names for.
func TestPartsOfALimitByPriority(t *testing.T) {
	const limit = 1 << 20
	for _, c := range []struct {
		priority             uint8
		half, linear, graded float64 // percent
	}{
		{0, 50, .4, 50},
		{network.ReservationPriorityLow, 89.5, 39.8, 69.9},
		{128, 100, 50.4, 75.2},
		{network.ReservationPriorityMedium, 100, 59.8, 79.9},
		{network.ReservationPriorityHigh, 100, 79.7, 89.8},
		{network.ReservationPriorityAlways, 100, 100, 100},
	} {
		for a, want := range map[Admission]float64{AdmissionHalf: c.half, AdmissionLinear: c.linear, AdmissionGraded: c.graded} {
			got := 100 * float64(a.threshold(limit, a.weight(c.priority))) / limit
			require.InDelta(t, want, got, .25, "%v at priority %d", a, c.priority)
		}
	}
}

func TestSumsThatOverflowAreRefused(t *testing.T) {
	if math.MaxInt < math.MaxInt64 {
		t.Skip("no two ints have a sum that overflows")
	}
	for _, stripes := range []int{1, 8} {
		for _, a := range []Admission{AdmissionHalf, AdmissionLinear, AdmissionGraded} {
			m := newManager(t, unlimitedConf(), WithStripes(stripes), WithAdmission(a))
			peers := []peer.ID{"one", "two"}
			if stripes > 1 {
				peers = peersInStripes(m, 2)
			}
			s := []network.ResourceScope{viewPeer(t, m, peers[0]), viewPeer(t, m, peers[1]), viewSystem(t, m),
				mustBeginSpan(t, viewTransient(t, m)), servedStream(t, m, peers[1])}
			for i, first := range s {
				for _, n := range []int{math.MaxInt, math.MaxInt - 1} {
					require.NoError(t, first.ReserveMemory(n, 255))
					for _, second := range s {
						for _, priority := range []uint8{255, 128, 0} {
							require.ErrorIs(t, second.ReserveMemory(math.MaxInt, priority), network.ErrResourceLimitExceeded, "after %d", i)
							require.Error(t, second.ReserveMemory(2, priority))
						}
					}
					require.EqualValues(t, n, viewSystem(t, m).Stat().Memory)
					checkInvariants(t, m, false)
					first.ReleaseMemory(n)
				}
			}
		}
	}
}

func TestTheLastQuarterOfTransientIsForNewcomers(t *testing.T) {
	conf := limitedConf(func(c *perScope[BaseLimit]) { c.Transient.StreamsInbound, c.Transient.StreamsOutbound = 128, 8 })
	for _, stripes := range []int{1, 8} {
		m := newManager(t, conf, WithStripes(stripes))
		open := func(p peer.ID) error { _, err := m.OpenStream(p, network.DirInbound); return err }
		var first network.StreamManagementScope
		for i := range 96 { // a lone peer gets three quarters
			s := mustOpenStream(t, m, testPeer, network.DirInbound)
			if i == 0 {
				first = s
			}
		}
		before := books(m)
		err := open(testPeer)
		var e *LimitError
		require.ErrorAs(t, err, &e)
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		require.Equal(t, KindTransient, e.Kind())
		require.Equal(t, CauseCrowding, e.Cause())
		require.EqualValues(t, 96, e.Current())
		require.EqualValues(t, 128, e.Limit())
		require.Equal(t, before, books(m))
		// What has a protocol makes room, and does not count against the peer.
		require.NoError(t, first.SetProtocol(testProto))
		require.NoError(t, open(testPeer))
		require.Error(t, open(testPeer))
		for i := range 31 { // newcomers get the rest
			require.NoError(t, open(peerNamed(fmt.Sprint(i))))
		}
		// Less than a quarter is 31.
		require.NoError(t, open("\x00\x01x"))
		err = open("\x00\x01y")
		require.ErrorAs(t, err, &e)
		require.Equal(t, CauseLimit, e.Cause(), "all of it is taken")
	}
	// A peer is a newcomer as long as it holds less than a quarter.
	m := newManager(t, conf)
	for _, p := range manyPeers(65) {
		mustOpenStream(t, m, p, network.DirInbound)
	}
	for range 32 {
		mustOpenStream(t, m, testPeer, network.DirInbound)
	}
	_, err := m.OpenStream(testPeer, network.DirInbound)
	require.ErrorContains(t, err, "transient")
	mustOpenStream(t, m, "new", network.DirInbound)
	// Switched off, one peer may take everything.
	m = newManager(t, conf, WithNewcomersQuarter(false))
	for range 128 {
		mustOpenStream(t, m, testPeer, network.DirInbound)
	}
}

// A peer that hangs keeps the streams that this host opens to it in transient. They leave room
// for those to other peers, and for inbound ones.
func TestAPeerThatHangsDoesNotTakeAllOfTransientsOutboundStreams(t *testing.T) {
	limits := DefaultLimits.Scale(1<<30, 4096).ToPartialLimitConfig()
	transient := limits.Transient
	require.Equal(t, []LimitVal{512, 256, 512}, []LimitVal{transient.Streams, transient.StreamsInbound, transient.StreamsOutbound})
	const most = 512 - 512/4 // inbound streams keep a quarter of the total
	openTo := func(m *Manager, p peer.ID, dir network.Direction) (opened int, refusal *LimitError) {
		for range 600 {
			_, err := m.OpenStream(p, dir)
			if err != nil {
				require.ErrorAs(t, err, &refusal)
				return opened, refusal
			}
			opened++
		}
		return opened, nil
	}
	for _, stripes := range []int{1, 8} {
		m := newFrom(t, limits.Build(InfiniteLimits), WithStripes(stripes))
		opened, refusal := openTo(m, testPeer, network.DirOutbound)
		require.Equal(t, most*3/4, opened)
		require.Equal(t, []any{KindTransient, CauseCrowding, int64(opened), int64(512)},
			[]any{refusal.Kind(), refusal.Cause(), refusal.Current(), refusal.Limit()})
		e, err := m.Explain(ExplainRequest{Kind: KindStream, Direction: network.DirOutbound, Peer: testPeer})
		require.NoError(t, err)
		require.Equal(t, []any{"transient", "StreamsOutbound", "crowding", int64(512), int64(opened)},
			[]any{e.By.Scope, e.By.Name, e.By.Cause, e.By.Limit, e.By.Threshold})
		hanging := "peer:" + testPeer.String()
		require.Equal(t, []string{hanging, hanging}, []string{refusal.Holder(), e.By.Holder})
		require.Contains(t, e.String(), "(crowding by "+hanging+")")
		asJSON, err := json.Marshal(refusal)
		require.NoError(t, err)
		require.Contains(t, string(asJSON), fmt.Sprintf(`"Holder":%q`, hanging))
		require.Contains(t, refusal.LogValue().String(), "holder="+hanging)

		opened = 0
		for _, p := range manyPeers(most) {
			n, why := openTo(m, p, network.DirOutbound)
			if opened += n; n == 0 {
				refusal = why
				break
			}
		}
		require.Equal(t, most/4, opened, "others have a quarter at least")
		require.Equal(t, []any{CauseCrowding, int64(most), int64(512)}, []any{refusal.Cause(), refusal.Current(), refusal.Limit()})
		require.Empty(t, refusal.Holder(), "it is all outbound streams that have their part")
		for i := range 512 / 4 {
			mustOpenStream(t, m, peerNamed(fmt.Sprint(i)), network.DirInbound)
		}

		off := newFrom(t, limits.Build(InfiniteLimits), WithStripes(stripes), WithNewcomersQuarter(false))
		opened, refusal = openTo(off, testPeer, network.DirOutbound)
		require.Equal(t, 512, opened)
		require.Equal(t, CauseLimit, refusal.Cause())

		fair := newFrom(t, limits.Build(InfiniteLimits), WithStripes(stripes), WithFairShare(KindTransient))
		for _, p := range manyPeers(most / 2) {
			mustOpenStream(t, fair, p, network.DirOutbound)
		}
		opened, refusal = openTo(fair, testPeer, network.DirOutbound)
		require.Equal(t, most/4, opened)
		require.Equal(t, CauseFairShare, refusal.Cause())
	}
}

// Where outbound streams have no limit of their own, they leave inbound ones a quarter of the
// total as well.
func TestInboundStreamsKeepTheirPartOfTransientsTotal(t *testing.T) {
	for _, c := range []struct{ in, out, total, outboundGets int }{
		{in: 100, out: math.MaxInt, total: 100, outboundGets: 75},
		{in: 10, out: math.MaxInt, total: 100, outboundGets: 90},
		{in: 0, out: math.MaxInt, total: 100, outboundGets: 100},
		{in: 100, out: 60, total: 100, outboundGets: 60},
		{in: math.MaxInt, out: 80, total: math.MaxInt, outboundGets: 80},
	} {
		m := newManager(t, limitedConf(func(l *perScope[BaseLimit]) {
			l.Transient.StreamsInbound, l.Transient.StreamsOutbound, l.Transient.Streams = c.in, c.out, c.total
		}))
		opened := 0
		for _, p := range manyPeers(120) {
			if _, err := m.OpenStream(p, network.DirOutbound); err == nil {
				opened++
			}
		}
		require.Equal(t, c.outboundGets, opened, "%+v", c)
		got := viewTransient(t, m).(ResourceScopeLimiter).Limit().GetStreamLimit(network.DirOutbound)
		require.Equal(t, c.out, got, "the limit reads as it was set")
	}
}

func TestAFailedMoveLeavesAnAllowlistedConnectionWhereItWas(t *testing.T) {
	for _, kind := range []Kind{KindSystem, KindTransient, KindPeer} {
		for _, stripes := range []int{1, 8} {
			t.Run(fmt.Sprintf("%v/stripes=%d", kind, stripes), func(t *testing.T) {
				m := newManager(t, unlimitedConf(), append(openGates(), WithStripes(stripes), WithAllowlistedMultiaddrs(testAllowlist))...)
				system := viewSystem(t, m).(ResourceScopeLimiter)
				system.SetLimit(&BaseLimit{})
				named := testFars[3] // the allowlist means testPeers[0] there
				c, err := m.OpenConnection(network.DirInbound, true, named.addr)
				require.NoError(t, err)
				require.NoError(t, c.ReserveMemory(100, 255))
				require.NoError(t, mustBeginSpan(t, c).ReserveMemory(10, 255))
				if kind != KindSystem {
					system.SetLimit(&unlimitedBase)
				}
				switch kind {
				case KindTransient:
					viewTransient(t, m).(ResourceScopeLimiter).SetLimit(&BaseLimit{})
				case KindPeer:
					viewPeer(t, m, testPeer).(ResourceScopeLimiter).SetLimit(&BaseLimit{})
				}
				before, stat := books(m), c.Stat()
				for range 3 { // a retry passes no limit
					var e *LimitError
					require.ErrorAs(t, c.SetPeer(testPeer), &e)
					require.Equal(t, kind, e.Kind())
					require.Nil(t, c.PeerScope())
					require.Equal(t, before, books(m))
					require.Equal(t, stat, c.Stat())
				}
				// The right peer is still welcome.
				require.NoError(t, c.SetPeer(testPeers[0]))
				require.Equal(t, stat, m.fixed[KindAllowlistedSystem].Stat())
				checkInvariants(t, m, true)
				c.Done()
				assertEmpty(t, m)
			})
		}
	}
}

type wrapped struct{ network.ResourceManager }

func (w wrapped) Unwrap() network.ResourceManager { return w.ResourceManager }

func TestManagerAndAllowlistAreFoundThroughWrappers(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithAllowlistedMultiaddrs(testAllowlist[:1]), WithAllowlistedMultiaddrs(testAllowlist[1:]))
	for _, rm := range []network.ResourceManager{m, m.NewHandle(), wrapped{m}, wrapped{wrapped{m.NewHandle()}}} {
		require.Same(t, m.allowlist, GetAllowlist(rm))
		found, ok := ManagerOf(rm)
		require.True(t, ok)
		require.Same(t, m, found)
	}
	for _, rm := range []network.ResourceManager{nil, &network.NullResourceManager{}, wrapped{}, wrapped{&network.NullResourceManager{}}} {
		require.Nil(t, GetAllowlist(rm))
		found, ok := ManagerOf(rm)
		require.False(t, ok)
		require.Nil(t, found)
	}
	for _, far := range testFars[2:] {
		require.True(t, m.GetAllowlist().Allowed(far.addr), "lists add up")
	}
}
