package rcmgr

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/fakehost"
)

// roomOfConns returns a manager with room for so many connections of the system, and a host.
func roomOfConns(t testing.TB, conns int, c RoomConfig, opts ...Option) (*Manager, *fakehost.Host) {
	t.Helper()
	conf := limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = conns })
	return roomOn(t, conf, c, opts...)
}

func roomOn(t testing.TB, conf perScope[BaseLimit], c RoomConfig, opts ...Option) (*Manager, *fakehost.Host) {
	t.Helper()
	m := newManager(t, conf, append(append(openGates(), WithRoom(c)), opts...)...)
	h := &fakehost.Host{RM: m, CM: &fakehost.ConnManager{}}
	m.AttachHost(h)
	return m, h
}

// in16 returns the address of a host in a /24 of the n-th /16 of 10.0.0.0/8.
func in16(t testing.TB, n, subnet, host int) multiaddr.Multiaddr {
	return mustMA(t, fmt.Sprintf("/ip4/10.%d.%d.%d/tcp/1", n, subnet, host+1))
}

func connectIn16(t testing.TB, h *fakehost.Host, p string, n, subnet, host int) *fakehost.Conn {
	t.Helper()
	c, err := h.Connect(peerNamed(p), network.DirInbound, in16(t, n, subnet, host))
	require.NoError(t, err)
	return c
}

func letGo(m *Manager) (n uint64) {
	for _, c := range m.Snapshot().Room.LetGo {
		n += c.Count
	}
	return n
}

func TestAFullHostLetsGoOfACrowdAndNewcomersGetInAtTheFirstTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 128, RoomConfig{})
		for i := range 128 { // one network, many subnets
			connectIn16(t, h, fmt.Sprint("crowd", i), 0, i, 0)
			synctest.Wait()
		}
		time.Sleep(time.Second)
		for i := range 60 {
			connectIn16(t, h, fmt.Sprint("newcomer", i), 1+i, 0, 0)
			time.Sleep(10 * time.Millisecond)
		}
		require.LessOrEqual(t, m.Stat().System.NumConnsInbound, 126)
		newcomers := 0
		for _, c := range h.Network().Conns() {
			if c.RemoteMultiaddr().String()[:8] != "/ip4/10." || c.RemoteMultiaddr().String()[:10] != "/ip4/10.0." {
				newcomers++
			}
		}
		require.Equal(t, 60, newcomers, "none of them was let go")
		require.NotZero(t, letGo(m))
		checkInvariants(t, m, false)
		m.Close()
	})
}

// The host needs 15 ms to close a connection, and attackers come faster.
func TestAReserveThatIsUsedUpIsWidenedUntilItIsNotAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 64, RoomConfig{})
		h.Letting = func(c *fakehost.Conn) error {
			time.Sleep(15 * time.Millisecond)
			return c.Close()
		}
		comes := func(i int) (refused int) {
			_, err := h.Connect(peerNamed(fmt.Sprint("crowd", i)), network.DirInbound, in16(t, 0, i%256, 0))
			if err != nil {
				require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
				return 1
			}
			return 0
		}
		refused := 0
		for i := range 200 { // three at a time
			for j := range 3 {
				refused += comes(3*i + j)
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Log("refused", refused)
		require.NotZero(t, refused)
		require.LessOrEqual(t, refused, 4, "once for each time that it is widened, or twice")
		time.Sleep(time.Second)
		require.GreaterOrEqual(t, h.Len(), 64-8, "an eighth is free, and no more")
		for i := range 3 { // nothing is refused for some minutes
			time.Sleep(wideFor)
			for range 6 {
				comes(1000 + i)
				time.Sleep(time.Second)
			}
		}
		require.GreaterOrEqual(t, h.Len(), 64-2, "the reserve is what it was")
		time.Sleep(time.Second)
		m.Close()
	})
}

func TestNothingIsLetGoWhileTheReserveIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 128, RoomConfig{})
		for i := range 126 { // 4 are kept free, and 2 of them may be used
			connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
		}
		time.Sleep(time.Minute)
		require.Zero(t, letGo(m))
		require.Equal(t, 126, h.Len())
		connectIn16(t, h, "one more", 0, 200, 0)
		time.Sleep(time.Minute)
		require.EqualValues(t, 3, letGo(m), "until the reserve is free again, and no more")
		require.Equal(t, 124, h.Len())
		m.Close()
	})
}

func TestWithoutRoomOrWithoutAHostNothingIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 16 })
		off := newManager(t, conf, openGates()...)
		lonely := newManager(t, conf, append(openGates(), WithRoom(RoomConfig{}))...)
		for _, m := range []*Manager{off, lonely} {
			h := &fakehost.Host{RM: m}
			detach := m.AttachHost(h)
			detach()
			for i := range 16 {
				connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
			}
			time.Sleep(time.Minute)
			_, err := h.Connect(testPeers[0], network.DirInbound, in16(t, 0, 99, 0))
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			require.Zero(t, letGo(m))
			require.Zero(t, m.MakeRoom())
			require.Equal(t, 16, h.Len())
			m.Close()
		}
	})
}

func TestWhatTheHostHasDecidedToKeepIsKeptAndNewcomersAreRefusedThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		friend := mustMA(t, "/ip4/10.7.0.0/ipcidr/24")
		m, h := roomOfConns(t, 30, RoomConfig{}, WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{friend}))
		cm := h.CM.(*fakehost.ConnManager)
		for i := range 10 {
			_, err := h.Connect(peerNamed(fmt.Sprint("dialed", i)), network.DirOutbound, in16(t, 1, 0, i))
			require.NoError(t, err)
			cm.Protect(peerNamed(fmt.Sprint("protected", i)), "")
			connectIn16(t, h, fmt.Sprint("protected", i), 2, 0, i)
			if i < 10 {
				connectIn16(t, h, fmt.Sprint("allowed", i), 7, 0, i)
			}
		}
		time.Sleep(time.Minute)
		require.Equal(t, 30, h.Len())
		require.Zero(t, letGo(m))
		_, err := h.Connect(testPeers[0], network.DirInbound, in16(t, 9, 0, 0))
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		synctest.Wait() // for the look at all connections
		s := m.Snapshot().Room
		require.Equal(t, map[string]int{"outbound": 10, "protected": 10, "allowlisted": 10}, s.Kept)
		require.NotZero(t, s.OnlyKept[KindSystem])
		m.Close()
	})
}

func TestStreamsThatSayNothingAreResetTheLongestWaitingFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := limitedConf(func(c *perScope[BaseLimit]) { c.Transient.StreamsInbound = 64 })
		m, h := roomOn(t, conf, RoomConfig{}, WithNewcomersQuarter(false))
		var mu sync.Mutex // those that go in one pass end at the same time
		type end struct {
			at time.Time
			i  int
		}
		var ended []end
		for i := range 80 {
			c := connectIn16(t, h, fmt.Sprint("crowd", i), 0, i, 0)
			s, err := c.Open(network.DirInbound)
			require.NoError(t, err, i)
			s.Closed = func(byHost bool) {
				mu.Lock()
				defer mu.Unlock()
				assert.True(t, byHost)
				ended = append(ended, end{time.Now(), i})
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		require.Equal(t, 80, h.Len(), "the connections stay")
		require.NotEmpty(t, ended)
		slices.SortFunc(ended, func(a, b end) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.i, b.i)) })
		order := make([]int, len(ended))
		for n := range ended {
			order[n] = ended[n].i
		}
		require.IsIncreasing(t, order)
		// A quarter of 64 is kept as the longest-standing, and of the others a sixteenth of 64, of
		// networks of its own. All else goes in the order in which it came.
		require.LessOrEqual(t, order[0], 64/4+64/16+1)
		require.LessOrEqual(t, order[len(order)-1]-order[0]+1-len(order), 64/16)
		served := connectIn16(t, h, "newcomer", 1, 0, 0)
		s, err := served.Open(network.DirInbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/here"))
		time.Sleep(time.Second)
		require.Equal(t, 1, m.Stat().Protocols["/here"].NumStreamsInbound)
		checkInvariants(t, m, false)
		m.Close()
	})
}

func TestServicesAndProtocolsAndMemoryHaveRoomToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := limitedConf(func(c *perScope[BaseLimit]) {
			c.ProtocolDefault.StreamsInbound = 40
			c.System.Memory = 64 << 20
		})
		m, h := roomOn(t, conf, RoomConfig{})
		for i := range 60 {
			c := connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
			s, err := c.Open(network.DirInbound)
			require.NoError(t, err)
			require.NoError(t, s.SetProtocol("/full"), i)
			time.Sleep(10 * time.Millisecond)
		}
		require.LessOrEqual(t, m.Stat().Protocols["/full"].NumStreamsInbound, 39)
		for i := range 80 {
			c := connectIn16(t, h, fmt.Sprint("eater", i), 1, i, 0)
			require.NoError(t, c.Scope().ReserveMemory(1<<20, network.ReservationPriorityAlways), i)
			time.Sleep(10 * time.Millisecond)
		}
		require.LessOrEqual(t, m.Stat().System.Memory, int64(63<<20))
		byScope := map[Kind]bool{}
		for _, c := range m.Snapshot().Room.LetGo {
			byScope[c.Scope] = true
		}
		require.Equal(t, map[Kind]bool{KindProtocol: true, KindSystem: true}, byScope)
		checkInvariants(t, m, false)
		m.Close()
	})
}

// A peer that never answers, to which the host opens stream after stream, costs other peers
// nothing.
func TestStreamsToAPeerThatHangsMakeWayForThoseToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := limitedConf(func(c *perScope[BaseLimit]) { c.Transient.StreamsOutbound = 32 })
		m, h := roomOn(t, conf, RoomConfig{}, WithNewcomersQuarter(false))
		hung, err := h.Connect(testPeers[0], network.DirOutbound, in16(t, 0, 0, 0))
		require.NoError(t, err)
		for range 200 {
			if _, err := hung.Open(network.DirOutbound); err != nil {
				require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			}
			time.Sleep(200 * time.Millisecond)
		}
		for i := range 20 {
			c, err := h.Connect(peerNamed(fmt.Sprint(i)), network.DirOutbound, in16(t, 1+i, 0, 0))
			require.NoError(t, err)
			s, err := c.Open(network.DirOutbound)
			require.NoError(t, err)
			time.Sleep(200 * time.Millisecond)
			require.NoError(t, s.SetProtocol("/answers"))
		}
		require.Equal(t, 20, m.Stat().Protocols["/answers"].NumStreamsOutbound)
		require.NotZero(t, letGo(m))
		m.Close()
	})
}

func TestAStreamThatTheHostHasJustOpenedIsNotReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := limitedConf(func(c *perScope[BaseLimit]) { c.Transient.StreamsOutbound = 32 })
		m, h := roomOn(t, conf, RoomConfig{}, WithNewcomersQuarter(false))
		c, err := h.Connect(testPeers[0], network.DirOutbound, in16(t, 0, 0, 0))
		require.NoError(t, err)
		for range 32 {
			_, err := c.Open(network.DirOutbound)
			require.NoError(t, err)
		}
		for range 29 { // its peer may answer within three seconds
			time.Sleep(100 * time.Millisecond)
			_, err := c.Open(network.DirOutbound)
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			require.Zero(t, letGo(m))
		}
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			_, _ = c.Open(network.DirOutbound)
		}
		require.NotZero(t, letGo(m))
		m.Close()
	})
}

func TestRoomThatIsOnlyObservedCountsEachOnceAndClosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 64, RoomConfig{ObserveOnly: true})
		for i := range 64 {
			connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
		}
		for range 20 {
			_, err := h.Connect(testPeers[0], network.DirInbound, in16(t, 0, 99, 0))
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			time.Sleep(time.Minute)
		}
		s := m.Snapshot().Room
		require.Empty(t, s.LetGo)
		require.Equal(t, []RoomCount{{Scope: KindSystem, What: KindConn, Reason: "group", Count: 2}}, s.WouldLetGo)
		require.Equal(t, 64, h.Len())
		m.Close()
	})
}

func TestALimitThatIsOnlyObservedLetsNothingGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 64, RoomConfig{}, WithObserveOnly(KindSystem))
		for i := range 100 {
			connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
			time.Sleep(time.Second)
		}
		s := m.Snapshot().Room
		require.Empty(t, s.LetGo)
		require.Equal(t, 100, h.Len())
		require.Len(t, s.WouldLetGo, 1)
		require.LessOrEqual(t, s.WouldLetGo[0].Count, uint64(40), "each is counted once")
		m.Close()
	})
}

// Faults of hosts. In all of them, newcomers are refused as they were without room, and other
// connections are let go in place of those that cannot be.
func TestClosersThatFailAreCountedAndDoNoHarm(t *testing.T) {
	for name, c := range map[string]struct {
		close func() error
		fault string
		n     uint64 // at least
	}{
		"one that closes nothing": {func() error { return nil }, "stays-open", 1},
		"one that fails":          {func() error { return errors.New("no") }, "stays-open", 1},
		"one that panics":         {func() error { panic("no") }, "panicked", 1},
		"one that hangs":          {func() error { time.Sleep(time.Hour); return nil }, "stays-open", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logged := captureLog(t)
				m, h := roomOfConns(t, 64, RoomConfig{})
				for i := range 62 {
					connectIn16(t, h, fmt.Sprint(i), 0, i, 0).Letting = c.close
				}
				for i := range 200 { // all whose closer fails are tried, and then the others
					if conn, err := h.Connect(peerNamed(fmt.Sprint("new", i)), network.DirInbound, in16(t, 1, i, 0)); err == nil {
						_ = conn
					} else {
						require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
						var why *LimitError
						require.ErrorAs(t, err, &why)
						require.EqualValues(t, 64, why.Current(), "what would have fitted without the option is admitted")
					}
					time.Sleep(2 * time.Second)
				}
				s := m.Snapshot().Room
				require.GreaterOrEqual(t, s.Faults[c.fault], c.n)
				require.NotEmpty(t, s.LetGo, "others were let go in their place")
				for _, conn := range h.Network().Conns() {
					if conn.(*fakehost.Conn).Letting != nil {
						require.False(t, conn.IsClosed())
					}
				}
				checkInvariants(t, m, false)
				m.Close()
				synctest.Wait()
				if c.fault == "panicked" {
					require.Contains(t, logged.String(), "a callback has failed")
				}
				time.Sleep(2 * time.Hour) // those that hang return
			})
		})
	}
}

func TestACloserThatClosesAnotherConnectionCountsAsOneThatClosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 64, RoomConfig{})
		var mu sync.Mutex          // several are closed at the same time
		var wrong []*fakehost.Conn // those that are closed in place of others
		chosen := make(map[*fakehost.Conn]bool)
		for i := range 62 {
			c := connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
			c.Letting = func() error {
				mu.Lock()
				defer mu.Unlock()
				chosen[c] = true
				for _, other := range h.Network().Conns() {
					if o := other.(*fakehost.Conn); !chosen[o] {
						wrong = append(wrong, o)
						o.Close()
						break
					}
				}
				return nil
			}
		}
		for i := range 20 {
			_, err := h.Connect(peerNamed(fmt.Sprint("new", i)), network.DirInbound, in16(t, 1+i, 0, 0))
			require.NoError(t, err, "there is room, whoever made it")
			time.Sleep(2 * time.Second)
			synctest.Wait()
			require.Equal(t, 62+i+1-len(wrong), m.Stat().System.NumConnsInbound, "what was closed is counted, and nothing else")
			checkInvariants(t, m, false)
		}
		require.Equal(t, 62+20-len(wrong), h.Len())
		require.LessOrEqual(t, len(wrong), 20+2, "nothing is let go without need")
		s := m.Snapshot().Room
		require.EqualValues(t, len(chosen), s.Faults["stays-open"])
		require.Empty(t, s.LetGo, "no connection that was chosen has gone")
		require.Equal(t, len(chosen), s.StayOpen)
		for c := range chosen {
			require.False(t, c.IsClosed())
		}
		m.Close()
	})
}

func TestAVictimThatItsPeerClosesBeforeTheHostDoesIsNotCounted(t *testing.T) {
	m, h := roomOfConns(t, 64, RoomConfig{ByHand: true})
	calls := 0
	for i := range 64 { // 2 are to go in one pass
		c := connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
		c.Letting = func() error {
			calls++
			for _, other := range h.Network().Conns() { // the other one of the pass among them
				if other != network.Conn(c) {
					other.Close()
				}
			}
			return c.Close()
		}
	}
	m.MakeRoom()
	require.Equal(t, 1, calls, "what has gone is not closed again")
	require.EqualValues(t, 1, letGo(m))
	s := m.Snapshot().Room
	require.Empty(t, s.Faults)
	require.Zero(t, s.Closing)
	require.Zero(t, m.Stat().System.NumConnsInbound)
	require.Zero(t, m.MakeRoom(), "nothing is short any more")
	assertEmpty(t, m)
}

func TestWhileAllClosersHangNoMoreAreCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 4096, RoomConfig{})
		var running, most atomic.Int64
		for i := range 4096 {
			c, err := h.Connect(peerNamed(fmt.Sprint(i)), network.DirInbound, in16(t, i/256, i%256, 0))
			if err != nil {
				continue
			}
			c.Letting = func() error {
				most.Store(max(most.Load(), running.Add(1)))
				defer running.Add(-1)
				time.Sleep(time.Hour)
				return nil
			}
		}
		time.Sleep(900 * time.Millisecond)
		require.Zero(t, m.Snapshot().Room.Faults["hung"], "a closer may take a moment")
		time.Sleep(time.Minute)
		require.EqualValues(t, 64, most.Load())
		require.NotZero(t, m.Snapshot().Room.Faults["hung"])
		m.Close()
		time.Sleep(2 * time.Hour)
	})
}

// brokenHost panics, has no network or no connection manager, or has scopes of others.
type brokenHost struct {
	network func() network.Network
	cm      func() connmgr.ConnManager
}

func (h brokenHost) Network() network.Network         { return h.network() }
func (h brokenHost) ConnManager() connmgr.ConnManager { return h.cm() }

type brokenManager struct{ connmgr.NullConnMgr }

func (brokenManager) IsProtected(peer.ID, string) bool { panic("no") }

func TestAHostThatFailsLosesNothingAndOthersAreLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		collectLog(t, 0)
		m, h := roomOfConns(t, 32, RoomConfig{})
		other := newManager(t, unlimitedConf())
		elsewhere := &fakehost.Host{RM: other}
		noCM := func() connmgr.ConnManager { return nil }
		m.AttachHost(nil)
		m.AttachHost(brokenHost{func() network.Network { panic("no") }, noCM})
		m.AttachHost(brokenHost{func() network.Network { return nil }, noCM})
		m.AttachHost((*fakehost.Host)(nil))
		m.AttachHost(elsewhere)
		bad := &fakehost.Host{RM: m, CM: brokenManager{}}
		m.AttachHost(bad)
		none := &fakehost.Host{RM: m}
		m.AttachHost(none)
		for i := range 8 {
			connectIn16(t, elsewhere, fmt.Sprint("elsewhere", i), 0, i, 0)
			connectIn16(t, bad, fmt.Sprint("bad", i), 0, i, 0)
			connectIn16(t, none, fmt.Sprint("none", i), 0, i, 0)
		}
		for i := range 40 {
			connectIn16(t, h, fmt.Sprint("new", i), 0, i, 0)
			time.Sleep(20 * time.Millisecond)
		}
		require.Equal(t, 8, elsewhere.Len(), "they belong to another manager")
		require.Equal(t, 8, bad.Len(), "nobody knows which of them are protected")
		require.NotZero(t, letGo(m))
		s := m.Snapshot().Room
		require.NotZero(t, s.Faults["walk"])
		require.Equal(t, 7, s.Hosts)
		checkInvariants(t, m, false)
		m.Close()
	})
}

func TestAGroupThatIsKnownCompetesWithItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := func(a netip.Addr) string {
			if a.As4()[1] < 100 {
				return "one cloud"
			}
			return ""
		}
		m, h := roomOfConns(t, 128, RoomConfig{}, WithOwners(owner))
		for i := range 100 { // each in a network of its own, but of one owner
			connectIn16(t, h, fmt.Sprint("cloud", i), i, 0, 0)
			time.Sleep(10 * time.Millisecond)
		}
		for i := range 90 {
			connectIn16(t, h, fmt.Sprint("new", i), 100+i, 0, 0)
			time.Sleep(10 * time.Millisecond)
		}
		for _, v := range m.Snapshot().Room.Last {
			require.Equal(t, "one cloud", v.Group)
			require.Equal(t, "group", v.Reason)
		}
		require.GreaterOrEqual(t, m.Stat().System.NumConnsInbound, 120)
		m.Close()
	})
}

func TestOfALargeGroupTheConnectionsOfTheLastSecondStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 64, RoomConfig{})
		var closed atomic.Int32 // closings are made by several goroutines
		for i := range 200 {
			conn, opened := connectIn16(t, h, fmt.Sprint(i), 0, i, 0), time.Now()
			conn.Closed = func(byHost bool) {
				if byHost {
					closed.Add(1)
					if age := time.Since(opened); age < time.Second {
						t.Errorf("connection %d was closed after %v", i, age)
					}
				}
			}
			_, err := conn.Open(network.DirInbound) // it is not idle
			require.NoError(t, err)
			time.Sleep(100 * time.Millisecond)
		}
		require.Greater(t, closed.Load(), int32(100))
		m.Close()
	})
}

func TestAGroupThatPanicsOrHasAMillionNamesDoesNoHarm(t *testing.T) {
	for name, group := range map[string]func(netip.Addr) string{
		"panics": func(netip.Addr) string { panic("no") },
		"many":   func(netip.Addr) string { return fmt.Sprint(time.Now().UnixNano(), new(int)) },
		"long":   func(netip.Addr) string { return string(make([]byte, 1<<10)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				collectLog(t, 0)
				m, h := roomOfConns(t, 64, RoomConfig{}, WithOwners(group))
				for i := range 100 {
					connectIn16(t, h, fmt.Sprint(i), i, 0, 0)
					time.Sleep(10 * time.Millisecond)
				}
				require.NotZero(t, letGo(m))
				require.LessOrEqual(t, h.Len(), 63)
				m.Close()
			})
		})
	}
}

func TestPeersBehindARelayAreOfTheRelaysGroup(t *testing.T) {
	relay := "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
	a := placeOfAddr(mustMA(t, "/ip4/192.0.2.7/tcp/1/p2p/"+relay+"/p2p-circuit"))
	require.Equal(t, netip.MustParseAddr("192.0.2.7"), a.Addr)
	require.Equal(t, relay, a.Relay)
	b := placeOfAddr(mustMA(t, "/p2p/"+relay+"/p2p-circuit"))
	require.False(t, b.Addr.IsValid())
	require.Equal(t, relay, b.Relay)
	require.Equal(t, "unknown", placeOfAddr(mustMA(t, "/p2p-circuit")).Relay)
	require.True(t, placeOfAddr(mustMA(t, "/ip4/127.0.0.1/tcp/1")).Local)
	require.Empty(t, placeOfAddr(nil))
}

func TestPeersWithANamedProtocolKeepTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 64, RoomConfig{Protocols: []protocol.ID{"/wanted"}})
		for i := range 80 {
			c := connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
			if i < 6 {
				s, err := c.Open(network.DirInbound)
				require.NoError(t, err)
				require.NoError(t, s.SetProtocol("/wanted"))
				s.Closed = func(bool) { t.Error("it is kept") }
			}
			time.Sleep(10 * time.Millisecond)
		}
		require.Equal(t, 6, m.Snapshot().Room.Kept["protocol"])
		h.Network()
		m.Close()
	})
}

func TestClosingsASecondAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 512, RoomConfig{PerSecond: 20})
		for i := range 512 {
			connectIn16(t, h, fmt.Sprint(i), i/256, i%256, 0)
		}
		for range 100 {
			h.Connect(testPeers[0], network.DirInbound, in16(t, 9, 0, 0))
			time.Sleep(10 * time.Millisecond)
		}
		require.LessOrEqual(t, letGo(m), uint64(5+20+1), "a quarter of a second's at once, and then as many as come free")
		m.Close()
	})
}

func TestInvalidRoomIsAnError(t *testing.T) {
	_, err := New(nil, WithRoom(RoomConfig{PerSecond: -1}))
	require.EqualError(t, err, "rcmgr: WithRoom: PerSecond is -1, it must not be negative")
	_, err = New(nil, WithRoom(RoomConfig{Protocols: []protocol.ID{""}}))
	require.EqualError(t, err, "rcmgr: WithRoom: a name in Protocols is empty")
}

func TestWhatIsLetGoIsSeenEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logged := captureLog(t)
		var events atomic.Int64
		m, h := roomOfConns(t, 64, RoomConfig{}, WithRefusalLog(10*time.Second), WithTraceReporter(reporterFunc(func(e TraceEvt) {
			if e.Type == TraceLetGoEvt && IsConnScope(e.Name) {
				events.Add(1)
			}
		})))
		reg := registryOf(t, m)
		for i := range 62 {
			connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
			time.Sleep(time.Millisecond)
		}
		q := ExplainRequest{Kind: KindConn, Direction: network.DirInbound, Endpoint: in16(t, 1, 0, 0), UseFD: true}
		e, err := m.Explain(q)
		require.NoError(t, err)
		require.Empty(t, e.WouldLetGo, "there is room for one more")
		connectIn16(t, h, "one more", 0, 99, 0)
		e, err = m.Explain(q)
		require.NoError(t, err)
		require.True(t, e.Admitted)
		require.NotEmpty(t, e.WouldLetGo)
		first := e.WouldLetGo[0]
		require.Equal(t, "10.0.0.0/16", first.Group)
		connectIn16(t, h, "another", 1, 0, 0)
		time.Sleep(time.Minute)

		s := m.Snapshot().Room
		require.Equal(t, []RoomCount{{KindSystem, KindConn, "group", 2}}, s.LetGo)
		require.Contains(t, []string{s.Last[0].Name, s.Last[1].Name}, first.Name, "the one that was named went")
		require.Equal(t, "system", s.Last[0].Scope)
		require.NoError(t, m.FlushTrace(t.Context()))
		require.EqualValues(t, 2, events.Load())
		require.Equal(t, 2.0, seriesOf(t, reg, "room_let_go_total")["group system conn"])
		for _, format := range []string{"html", "text", "json"} {
			body := bodyOf(t, ask(Handler(m), "GET", "/?format="+format))
			require.Contains(t, body, s.Last[0].Name, format)
		}
		m.Close()
		require.Equal(t, 1, strings.Count(logged.String(), "were let go to make room"), "the log repeats nothing")
	})
}

// Peers come and go at random while room is made. What is kept is never let go, and the accounts
// are as they must be at every step.
func TestRandomPeersOnAFullHostKeepTheInvariants(t *testing.T) { randomPeersOnAFullHost(t, false) }

func TestRandomPeersOnAFullHostWhoseClosersFailKeepTheInvariants(t *testing.T) {
	randomPeersOnAFullHost(t, true)
}

// randomPeersOnAFullHost lets peers come and go. With faults, some closers panic, close nothing or
// close another connection.
func randomPeersOnAFullHost(t *testing.T, faults bool) {
	seed := testSeed(t)
	synctest.Test(t, func(t *testing.T) {
		collectLog(t, 0)
		r := randomFrom(seed, 0)
		conf := limitedConf(func(c *perScope[BaseLimit]) {
			c.System.Conns, c.System.FD, c.System.Memory = 96, 90, 8<<20
			c.Transient.StreamsInbound, c.ProtocolDefault.Streams, c.ServiceDefault.StreamsInbound = 24, 40, 5
		})
		m, h := roomOn(t, conf, RoomConfig{Protocols: []protocol.ID{"/named"}}, WithStripes(4))
		cm := h.CM.(*fakehost.ConnManager)
		h.Letting = func(c *fakehost.Conn) error {
			if c.Stat().Direction == network.DirOutbound || cm.IsProtected(c.RemotePeer(), "") {
				t.Errorf("%v was kept and is let go", c.RemotePeer())
			}
			if faults {
				switch id := c.RemotePeer(); id[len(id)-1] % 12 {
				case 0:
					panic("no")
				case 1:
					return h.Network().Conns()[0].Close()
				case 2:
					return nil
				}
			}
			return c.Close()
		}
		var conns []*fakehost.Conn
		steps := 1500
		if testing.Short() {
			steps = 1000
		}
		for i := range steps {
			switch {
			case len(conns) < 4 || r.IntN(3) == 0:
				p := peerNamed(fmt.Sprint("peer", r.IntN(400)))
				dir := network.DirInbound
				if r.IntN(6) == 0 {
					dir = network.DirOutbound
				}
				if r.IntN(12) == 0 {
					cm.Protect(p, "")
				}
				cm.Value(p, r.IntN(3))
				c, err := h.Connect(p, dir, in16(t, r.IntN(6), r.IntN(20), r.IntN(20)))
				if err != nil {
					require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
					break
				}
				conns = append(conns, c)
			case r.IntN(4) == 0:
				at := r.IntN(len(conns))
				conns[at].Close()
				conns[at] = conns[len(conns)-1]
				conns = conns[:len(conns)-1]
			default:
				c := pick(r, conns)
				if c.IsClosed() {
					break
				}
				s, err := c.Open(network.DirInbound)
				if err != nil || r.IntN(3) == 0 {
					break
				}
				if s.SetProtocol(pick(r, []protocol.ID{"/a", "/named"})) == nil && r.IntN(2) == 0 {
					_ = s.Scope().ReserveMemory(r.IntN(1<<18), network.ReservationPriorityAlways)
				}
			}
			if i%3 == 0 {
				time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
			}
			checkInvariants(t, m, false)
		}
		require.NotZero(t, letGo(m))
		for _, c := range h.Network().Conns() {
			c.(*fakehost.Conn).Close()
		}
		m.Close()
		assertEmpty(t, m)
	})
}

func TestManyGoroutinesOnAFullHost(t *testing.T) {
	m, h := roomOfConns(t, 200, RoomConfig{})
	together(t, 8, func(id int, r *rand.Rand) {
		for i := range stressSteps() / 50 {
			c, err := h.Connect(peerNamed(fmt.Sprint(id, "-", i)), network.DirInbound, in16(t, r.IntN(30), r.IntN(50), r.IntN(50)))
			if err != nil {
				continue
			}
			if s, err := c.Open(network.DirInbound); err == nil {
				_ = s.SetProtocol("/p")
			}
			if r.IntN(3) == 0 {
				c.Close()
			}
			if i%64 == 0 {
				_, _ = m.Explain(ExplainRequest{Kind: KindConn, Direction: network.DirInbound})
				_ = m.Snapshot()
			}
		}
	})
	checkInvariants(t, m, false)
	for _, c := range h.Network().Conns() {
		c.(*fakehost.Conn).Close()
	}
	m.Close()
	assertEmpty(t, m)
}

// attachHandshakes lets a manager end the handshakes of a host.
func attachHandshakes(t testing.TB, m *Manager, h *fakehost.Host) (detach func()) {
	t.Helper()
	detach, on := m.AttachHandshakes(func(yield func(Handshake) bool) {
		for _, s := range h.Handshakes() {
			if !yield(s) {
				return
			}
		}
	})
	require.True(t, on)
	return detach
}

// roomForHandshakes returns a manager that admits so many handshakes, and a host.
func roomForHandshakes(t testing.TB, n int, opts ...Option) (*Manager, *fakehost.Host) {
	t.Helper()
	conf := limitedConf(func(c *perScope[BaseLimit]) { c.Transient.Conns = n })
	m, h := roomOn(t, conf, RoomConfig{}, opts...)
	attachHandshakes(t, m, h)
	return m, h
}

func shakeIn16(t testing.TB, h *fakehost.Host, n, subnet, host int) *fakehost.Handshake {
	t.Helper()
	s, err := h.Shake(in16(t, n, subnet, host))
	require.NoError(t, err)
	return s
}

func TestHandshakesThatNeverEndMakeWayForThoseThatDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomForHandshakes(t, 64)
		m.AttachHost(brokenHost{func() network.Network { panic("connections need not be looked at") }, func() connmgr.ConnManager { return nil }})
		var mu sync.Mutex
		ended := map[int]time.Time{}
		for i := range 200 { // from one network
			s := shakeIn16(t, h, 0, i, 0)
			s.Ended = func() {
				mu.Lock()
				defer mu.Unlock()
				ended[i] = time.Now()
			}
			time.Sleep(100 * time.Millisecond)
			newcomer := shakeIn16(t, h, 1+i, 0, 0)
			newcomer.Ended = func() { t.Error("an honest handshake of half a second is left alone") }
			time.Sleep(500 * time.Millisecond)
			conn, err := newcomer.Finish(peerNamed(fmt.Sprint(i)))
			require.NoError(t, err)
			conn.Close()
		}
		synctest.Wait()
		require.Greater(t, len(ended), 130)
		for i := range len(ended) { // some go in one pass, at the same time
			require.Contains(t, ended, i, "the oldest go first, the very first among them")
			require.False(t, i > 0 && ended[i].Before(ended[i-1]), "%d went before %d", i, i-1)
		}
		s := m.Snapshot().Room
		require.Equal(t, []RoomCount{{KindTransient, KindConn, "group", uint64(len(ended))}}, s.LetGo)
		require.Equal(t, "10.0.0.0/16", s.Last[0].Group)
		require.Empty(t, s.Faults)
		checkInvariants(t, m, false)
		m.Close()
	})
}

func TestWhereHandshakesCannotBeEndedNoneIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := limitedConf(func(c *perScope[BaseLimit]) { c.Transient.Conns = 16 })
		m, h := roomOn(t, conf, RoomConfig{})
		off := newManager(t, conf, openGates()...)
		_, on := off.AttachHandshakes(func(func(Handshake) bool) { t.Error("it makes no room") })
		require.False(t, on)
		for i := range 16 {
			shakeIn16(t, h, 0, i, 0)
		}
		_, err := h.Shake(in16(t, 1, 0, 0))
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		time.Sleep(time.Minute)
		require.Zero(t, letGo(m))
		require.Empty(t, m.Snapshot().Room.OnlyKept, "it is not short of what nobody can give back")
		detach := attachHandshakes(t, m, h)
		_, err = h.Shake(in16(t, 1, 0, 0))
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		time.Sleep(time.Second)
		require.EqualValues(t, 2, letGo(m), "room is made after the first refusal, as much as the reserve is now")
		detach()
		shakeIn16(t, h, 1, 0, 0)
		shakeIn16(t, h, 1, 0, 1)
		_, err = h.Shake(in16(t, 1, 0, 2))
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		time.Sleep(time.Minute)
		require.EqualValues(t, 2, letGo(m))
		collectLog(t, 0)
		_, on = m.AttachHandshakes(nil)
		require.False(t, on)
		m.Close()
		off.Close()
	})
}

// Some may have a peer, and be without a muxer only. What the host protects is kept even then.
func TestTheSystemIsShortOfConnectionsHandshakesAmongThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		friend := mustMA(t, "/ip4/10.7.0.0/ipcidr/24")
		m, h := roomOfConns(t, 40, RoomConfig{}, WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{friend}))
		attachHandshakes(t, m, h)
		cm := h.CM.(*fakehost.ConnManager)
		for i := range 10 {
			shakeIn16(t, h, 7, 0, i).Ended = func() { t.Error("it is on the allowlist") }
			p := peerNamed(fmt.Sprint("protected", i))
			cm.Protect(p, "")
			s := shakeIn16(t, h, 2, 0, i)
			s.Ended = func() { t.Error("its peer is protected") }
			require.NoError(t, s.Scope().SetPeer(p))
		}
		ended := 0
		var mu sync.Mutex
		for i := range 40 {
			s := shakeIn16(t, h, 3, i, 0)
			s.Ended = func() {
				mu.Lock()
				defer mu.Unlock()
				ended++
			}
			if i%2 == 0 {
				require.NoError(t, s.Scope().SetPeer(peerNamed(fmt.Sprint("slow", i))))
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		require.EqualValues(t, 60-39, ended)
		require.EqualValues(t, ended, letGo(m))
		require.Empty(t, m.Snapshot().Room.Faults)
		m.Close()
	})
}

// A host may be late to note that a handshake is over.
func TestAHandshakeOfAConnectionThatTheHostHasIsNotEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 32, RoomConfig{})
		attachHandshakes(t, m, h)
		for i := range 40 {
			s := shakeIn16(t, h, 0, i, 0)
			s.Ended = func() { t.Error("it is a connection, and closed as one") }
			_, err := h.Finish(s.Scope(), peerNamed(fmt.Sprint(i)), network.DirInbound, s.RemoteMultiaddr())
			require.NoError(t, err)
			time.Sleep(time.Second)
		}
		require.EqualValues(t, 40-31, letGo(m))
		require.Equal(t, 31, h.Len())
		m.Close()
	})
}

func TestAHandshakeThatIsDoneBeforeItIsEndedIsAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomForHandshakes(t, 32)
		for i := range 31 { // one subnet, which holds more than its share
			s := shakeIn16(t, h, 0, 0, i)
			s.Letting = func() bool {
				s.Letting = nil
				_, err := s.Finish(peerNamed(fmt.Sprint(i)))
				assert.NoError(t, err)
				return s.End()
			}
		}
		for i := range 20 {
			shakeIn16(t, h, 1+i, 0, 0)
			time.Sleep(2 * time.Second)
		}
		s := m.Snapshot().Room
		require.Zero(t, letGo(m))
		require.Empty(t, s.Faults, "it is still open, but nothing was closed")
		require.Zero(t, s.Closing)
		require.Equal(t, 51-31, h.Len(), "and so there is room")
		m.Close()
	})
}

// wrappedScope is a connection's scope as a program may hand it to its host.
type wrappedScope struct{ network.ConnManagementScope }

func (w wrappedScope) Unwrap() network.ResourceScope { return w.ConnManagementScope }

func TestConnectionsAreFoundBehindWrappersOfTheirScopes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 32, RoomConfig{})
		for i := range 60 {
			scope, err := m.OpenConnection(network.DirInbound, true, in16(t, 0, i, 0))
			require.NoError(t, err)
			_, err = h.Finish(wrappedScope{wrappedScope{scope}}, peerNamed(fmt.Sprint(i)), network.DirInbound, in16(t, 0, i, 0))
			require.NoError(t, err)
			time.Sleep(20 * time.Millisecond)
		}
		require.EqualValues(t, 60-31, letGo(m))
		m.Close()
	})
}

func TestOnlyOpenConnectionsAndStreamsOfAManagerAreKnownToIt(t *testing.T) {
	friend := mustMA(t, "/ip4/10.7.0.0/ipcidr/24")
	m := newManager(t, unlimitedConf(), append(openGates(), WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{friend}))...)
	other := newManager(t, unlimitedConf(), openGates()...)
	h := &fakehost.Host{RM: m}
	known := func(m *Manager, s network.ResourceScope) bool { _, ok := m.factsOf(s); return ok }
	c := connectIn16(t, h, "peer", 0, 0, 0)
	trusted := connectIn16(t, h, "friend", 7, 0, 0)
	for conn, allowed := range map[*fakehost.Conn]bool{c: false, trusted: true} {
		s, err := conn.Open(network.DirInbound)
		require.NoError(t, err)
		for _, scope := range []network.ResourceScope{conn.Scope(), s.Scope()} {
			require.True(t, known(m, scope))
			require.False(t, known(other, scope), "it is of another manager")
			f, _ := m.factsOf(scope)
			require.Equal(t, allowed, f.Allowlisted, "%T", scope)
			require.Equal(t, scope == network.ResourceScope(s.Scope()), f.Waiting, "a stream waits for its protocol")
		}
		require.NoError(t, s.SetProtocol("/p"))
		f, _ := m.factsOf(s.Scope())
		require.False(t, f.Waiting)
		conn.Close()
		require.False(t, known(m, conn.Scope()), "it is done")
		require.False(t, known(m, s.Scope()), "it is done")
	}
	for _, scope := range []network.ResourceScope{nil, (*connScope)(nil), (*streamScope)(nil)} {
		require.False(t, known(m, scope))
	}
	assertEmpty(t, m)
}

func TestAConnectionMakesAPartOfWhatItsPeerHoldsFree(t *testing.T) {
	m := newManager(t, unlimitedConf(), openGates()...)
	h := &fakehost.Host{RM: m}
	one, two := connectIn16(t, h, "peer", 0, 0, 0), connectIn16(t, h, "peer", 0, 0, 0)
	require.NoError(t, one.Scope().ReserveMemory(700, network.ReservationPriorityAlways))
	require.NoError(t, m.ViewPeer(one.RemotePeer(), func(s network.PeerScope) error {
		return s.ReserveMemory(300, network.ReservationPriorityAlways)
	}))
	f, _ := m.factsOf(one.Scope())
	require.EqualValues(t, 700, f.Memory)
	f, _ = m.factsOf(two.Scope())
	require.EqualValues(t, (700+300)/2, f.Memory)
	for streams := range 3 {
		f, _ = m.factsOf(two.Scope())
		require.EqualValues(t, (streams+1)/2, f.Streams, "of %d of the peer", streams)
		_, err := one.Open(network.DirInbound)
		require.NoError(t, err)
	}
}

func TestRoomByHandIsMadeUntilThereIsEnough(t *testing.T) {
	const conns = 8192
	m, h := roomOfConns(t, conns, RoomConfig{ByHand: true, PerSecond: 1e6})
	wide := &wideReserves{}
	wide.by[dimConns], wide.at[dimConns] = mostSteps, time.Now()
	m.fixed[KindSystem].wide = wide
	for i := range conns {
		connectIn16(t, h, fmt.Sprint(i), i/256, i%256, 0)
	}
	require.Equal(t, conns/8/2, m.MakeRoom(), "half of the reserve, in two passes")
	require.Equal(t, conns-conns/8/2, h.Len())
}

func TestWhereAllIsKeptConnectionsAreLookedAtOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 16, RoomConfig{})
		var looks atomic.Int64
		m.AttachHost(brokenHost{func() network.Network { looks.Add(1); return nil }, func() connmgr.ConnManager { return nil }})
		for i := range 16 {
			_, err := h.Connect(peerNamed(fmt.Sprint(i)), network.DirOutbound, in16(t, 0, i, 0))
			require.NoError(t, err)
		}
		for range 2000 {
			_, err := h.Connect("another", network.DirInbound, in16(t, 1, 0, 0))
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			time.Sleep(10 * time.Millisecond)
		}
		require.Less(t, looks.Load(), int64(20+10))
		require.Greater(t, looks.Load(), int64(20-3))
		m.Close()
	})
}

func TestRoomByHandGoesOnWithWhatTheLastCallLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := roomOfConns(t, 64, RoomConfig{ByHand: true})
		h.Letting = func(c *fakehost.Conn) error {
			time.AfterFunc(10*time.Millisecond, func() { c.Close() })
			return nil
		}
		refused := 0
		for i := range 1000 {
			if _, err := h.Connect(peerNamed(fmt.Sprint(i)), network.DirInbound, in16(t, 0, i%256, 0)); err != nil {
				refused++
			}
			time.Sleep(7 * time.Millisecond)
			m.MakeRoom()
		}
		require.Less(t, refused, 10, "until the reserve is as wide as it has to be")
		time.Sleep(time.Second)
		m.Close()
	})
}
