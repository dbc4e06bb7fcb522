package rcmgr

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/groups"
)

// A map keeps the room of its best days, so it is made anew.
func TestACrowdOfPeersLeavesNoMemoryBehind(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	crowd := func(n int) {
		for i := range n {
			mustOpenStream(t, m, peer.ID(fmt.Sprint("a peer of many ", i)), network.DirInbound).Done()
		}
	}
	crowd(1)
	m.reap()
	before := heapNow()
	crowd(50_000)
	m.reap()
	require.Empty(t, m.ListPeers())
	require.Less(t, heapNow()-before, int64(200<<10), "the room of 50,000 peers in a map is 2 MB")
}

func TestACrowdOfSubnetsLeavesNoMemoryBehind(t *testing.T) {
	f := newFairShare(1<<KindSystem, nil)
	before := heapNow()
	var crowd []*groups.Seat
	for i := range uint32(50_000) {
		addr := netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 1})
		crowd = append(crowd, f.enter(endpoint{addr: addr}, dimConnsIn, nil))
	}
	require.Equal(t, 50_000, f.state(0).Subnets)
	for _, n := range crowd {
		f.leave(n)
	}
	crowd = nil
	require.Zero(t, f.state(0).Subnets)
	require.Less(t, heapNow()-before, int64(200<<10))
	runtime.KeepAlive(f)
}

func TestACrowdOfOpenScopesLeavesNoRecordsBehind(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithLeakFinder(LeakFinderConfig{}), WithStripes(1))
	before := heapNow()
	var crowd []network.StreamManagementScope
	for range 50_000 {
		crowd = append(crowd, mustOpenStream(t, m, "one", network.DirInbound))
	}
	for _, s := range crowd {
		s.Done()
	}
	crowd = nil
	// The runtime lets go of a record with the cleanup of its scope, some time after a collection.
	require.Eventually(t, func() bool { return heapNow()-before < 200<<10 }, 20*time.Second, time.Millisecond)
	require.Equal(t, LeakState{}, m.Snapshot().Leaks)
}

// requireNoScopes fails unless there are the four scopes that are always there, and no other.
func requireNoScopes(t *testing.T, m *Manager) {
	t.Helper()
	m.inOneCut(func() {
		for i := range m.stripes {
			st := &m.stripes[i]
			if !st.woken.Load() {
				continue
			}
			require.Zero(t, st.numPeers())
			require.Empty(t, st.services)
			require.Empty(t, st.protocols)
			require.Empty(t, st.queue)
		}
	})
	require.Empty(t, m.dir.list())
}

// useScope does everything that can be done with a scope of a closed manager.
func useScope(s network.ResourceScope) error {
	if err := s.ReserveMemory(1, 255); err == nil {
		return fmt.Errorf("%v: memory was reserved", s)
	}
	if span, err := s.BeginSpan(); err == nil {
		return fmt.Errorf("%v: a span was begun: %v", s, span)
	}
	if stat := s.Stat(); stat != (network.ScopeStat{}) {
		return fmt.Errorf("%v: it holds %v", s, stat)
	}
	s.ReleaseMemory(1)
	l := s.(interface {
		ResourceScopeLimiter
		LimitResetter
	})
	l.SetLimit(&BaseLimit{})
	l.ResetLimit()
	return nil
}

// A closed manager still lets everybody look, and keeps nothing of what they have looked at:
// nothing would collect it.
func TestViewsOfAClosedManagerLeaveNoScopeBehind(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	view := func() {
		viewPeer(t, m, "idle")
		viewProtocol(t, m, "/idle")
		viewService(t, m, "idle")
	}
	view()
	require.NoError(t, m.Close())
	requireNoScopes(t, m)
	view()
	requireNoScopes(t, m)

	var workers sync.WaitGroup
	for range 4 { // all at the same names, so that scopes of one name are made again and again
		workers.Go(func() {
			var kept []network.ResourceScope
			use := func(s network.ResourceScope) error {
				kept = append(kept, s)
				return useScope(s)
			}
			for i := range 100 {
				name := fmt.Sprint(i)
				for _, err := range []error{
					m.ViewPeer(peer.ID(name), func(s network.PeerScope) error { return use(s) }),
					m.ViewService(name, func(s network.ServiceScope) error { return use(s) }),
					m.ViewProtocol(protocol.ID(name), func(s network.ProtocolScope) error { return use(s) }),
				} {
					if err != nil {
						t.Error(err)
						return
					}
				}
			}
			for _, s := range kept {
				if err := useScope(s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	requireNoScopes(t, m)
	assertEmpty(t, m)
}

// What was open when the manager was closed goes with the last that it holds.
func TestAClosedManagerDropsItsScopesWhenTheLastIsDone(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	c := mustOpenConn(t, m, network.DirInbound)
	require.NoError(t, c.SetPeer("a"))
	transient := mustOpenConn(t, m, network.DirInbound)
	s := servedStream(t, m, "b")
	undecided := mustOpenStream(t, m, "c", network.DirInbound)
	span, err := viewPeer(t, m, "d").BeginSpan()
	require.NoError(t, err)
	direct := viewService(t, m, "direct")
	require.NoError(t, direct.ReserveMemory(1, 255))
	inView := make(chan struct{})
	viewed := make(chan error)
	leave := make(chan struct{})
	go func() {
		viewed <- m.ViewPeer("viewed", func(network.PeerScope) error {
			close(inView)
			<-leave
			return nil
		})
	}()
	<-inView
	require.NoError(t, m.Close())
	require.Equal(t, []peer.ID{"a", "b", "c", "d", "viewed"}, m.ListPeers())
	for _, x := range []struct {
		peer peer.ID
		s    interface{ Done() }
	}{{"a", c}, {"b", s}, {"c", undecided}, {"d", span}, {"", transient}} {
		x.s.Done()
		require.NotContains(t, m.ListPeers(), x.peer)
	}
	require.Equal(t, []peer.ID{"viewed"}, m.ListPeers())
	require.Equal(t, []string{"direct"}, m.ListServices())
	direct.ReleaseMemory(1)
	close(leave)
	require.NoError(t, <-viewed)
	requireNoScopes(t, m)
	assertEmpty(t, m)
}

// Pairs are made several at once. One that is still there keeps the memory of the others, but
// nothing that these referred to.
func TestAPairThatIsGoneKeepsNoPeer(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	open := func(p peer.ID, proto protocol.ID) network.StreamManagementScope {
		s := mustOpenStream(t, m, p, network.DirInbound)
		require.NoError(t, s.SetProtocol(proto))
		return s
	}
	open("stays", "/a")
	first, last := open("goes", "/a"), open("goes", "/b")
	was, pr := weak.Make(last.(*streamScope).peer), last.(*streamScope).peer.pairs
	require.NotNil(t, pr.next)
	last.Done()
	m.reap()
	require.Equal(t, pair{account: account{kind: pr.kind, gone: true}}, *pr)
	first.Done()
	first, last = nil, nil
	m.reap()
	runtime.GC()
	require.Nil(t, was.Value())
	require.Equal(t, []peer.ID{"stays"}, m.ListPeers())
}
