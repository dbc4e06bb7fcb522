package rcmgr

// Guarantees about the life of scopes: what they hold until they are done, what is left
// of them afterwards, and which of those without a use are collected.

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

func TestAScopeThatHoldsOnlyMemoryIsInUse(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		m := newManager(t, unlimitedConf(), WithStripes(stripes))
		for name, s := range viewEach(t, m) {
			require.NoError(t, s.ReserveMemory(1<<20, 255))
			m.reap()
			if strings.Contains(name, ":") {
				require.Equal(t, []string{name}, listed(m), "nothing but what holds memory stays")
			}
			require.EqualValues(t, 1<<20, s.Stat().Memory, name)
			require.EqualValues(t, 1<<20, viewSystem(t, m).Stat().Memory)
			s.ReleaseMemory(1 << 20)
			require.Zero(t, viewSystem(t, m).Stat(), "what was released was not somebody else's")
			m.reap()
			require.Empty(t, listed(m))
		}
		require.Zero(t, m.Snapshot().CallerBugs)
		assertEmpty(t, m)
	}
}

func TestScopesAreNilBeforeTheyAreSet(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.Peer = map[peer.ID]BaseLimit{"nobody": {}}
		c.Protocol = map[protocol.ID]BaseLimit{"/none": {}}
		c.Service = map[string]BaseLimit{"none": {}}
	}))
	c := mustOpenConn(t, m, network.DirInbound)
	// A nil pointer in an interface would not be nil.
	require.True(t, c.PeerScope() == nil)
	require.Error(t, c.SetPeer("nobody"))
	require.True(t, c.PeerScope() == nil)
	require.NoError(t, c.SetPeer(testPeer))
	require.Equal(t, testPeer, c.PeerScope().Peer())
	require.Error(t, c.SetPeer(testPeer), "already attached")

	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	require.Equal(t, testPeer, s.PeerScope().Peer())
	require.True(t, s.ProtocolScope() == nil)
	require.True(t, s.ServiceScope() == nil)
	require.Error(t, s.SetService(testSvc), "a stream without a protocol")
	require.Error(t, s.SetProtocol("/none"))
	require.True(t, s.ProtocolScope() == nil)
	require.NoError(t, s.SetProtocol(testProto))
	require.Error(t, s.SetProtocol("/again"), "already attached")
	require.Equal(t, testProto, s.ProtocolScope().Protocol())
	require.Error(t, s.SetService("none"))
	require.True(t, s.ServiceScope() == nil)
	require.NoError(t, s.SetService(testSvc))
	require.Error(t, s.SetService("again"), "already attached")
	require.Equal(t, testSvc, s.ServiceScope().Name())

	// What they give is the scope itself.
	require.NoError(t, s.ReserveMemory(9, 255))
	for _, scope := range []network.ResourceScope{c.PeerScope(), s.PeerScope(), s.ProtocolScope(), s.ServiceScope()} {
		require.EqualValues(t, 9, scope.Stat().Memory)
		require.NoError(t, scope.ReserveMemory(1, 255))
		scope.ReleaseMemory(1)
	}
	c.Done()
	s.Done()
	assertEmpty(t, m)
}

// TestEverythingMayEndInAnyOrder: owner, span and inner span each hold memory,
// and each releases it and ends, in every order.
func TestEverythingMayEndInAnyOrder(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, m *Manager) (s network.ResourceScope, done func()){
		"conn": func(t *testing.T, m *Manager) (network.ResourceScope, func()) {
			c := mustOpenConn(t, m, network.DirOutbound)
			return c, c.Done
		},
		"stream": func(t *testing.T, m *Manager) (network.ResourceScope, func()) {
			s := servedStream(t, m, testPeer)
			return s, s.Done
		},
		"span of a peer": func(t *testing.T, m *Manager) (network.ResourceScope, func()) {
			s := mustBeginSpan(t, viewPeer(t, m, testPeer))
			return s, s.Done
		},
		"span of a protocol": func(t *testing.T, m *Manager) (network.ResourceScope, func()) {
			s := mustBeginSpan(t, viewProtocol(t, m, testProto))
			return s, s.Done
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, unlimitedConf(), WithStripes(2))
			system := viewSystem(t, m)
			permute(6, func(order []int) {
				owner, done := open(t, m)
				span := mustBeginSpan(t, owner)
				inner := mustBeginSpan(t, span)
				scopes := []network.ResourceScope{owner, span, inner}
				held := []int64{1, 10, 100} // by each scope itself
				ends := []func(){done, span.Done, inner.Done}
				for i, s := range scopes {
					require.NoError(t, s.ReserveMemory(int(held[i]), 255))
				}
				for step, what := range order {
					if i := what % 3; what < 3 {
						scopes[i].ReleaseMemory([]int{1, 10, 100}[i])
						held[i] = 0
					} else { // ends what is below as well
						ends[i]()
						clear(held[i:])
					}
					if got, want := system.Stat().Memory, held[0]+held[1]+held[2]; got != want {
						t.Fatalf("%d held instead of %d after step %d of %v", got, want, step, order)
					}
				}
				for _, s := range scopes {
					require.Zero(t, s.Stat())
				}
			})
			require.Zero(t, m.Snapshot().CallerBugs)
			assertEmpty(t, m)
		})
	}
}

// permute calls f with every order of the numbers below n.
func permute(n int, f func([]int)) {
	var order []int
	var next func()
	next = func() {
		if len(order) == n {
			f(order)
			return
		}
		for i := range n {
			if !slices.Contains(order, i) {
				order = append(order, i)
				next()
				order = order[:len(order)-1]
			}
		}
	}
	next()
}

func TestDoneCountsOnce(t *testing.T) {
	m := newManager(t, unlimitedConf(), append(openGates(), WithStripes(8), WithAllowlistedMultiaddrs(testAllowlist))...)
	stay := servedStream(t, m, testPeer) // whose books a second Done would spoil
	require.NoError(t, stay.ReserveMemory(1, 255))
	friend, err := m.OpenConnection(network.DirInbound, true, testFars[2].addr)
	require.NoError(t, err)
	require.NoError(t, friend.SetPeer(testPeer))
	before := books(m)
	for range 50 {
		c, err := m.OpenConnection(network.DirInbound, true, testFars[2].addr)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(testPeer))
		s := servedStream(t, m, testPeer)
		scopes := []network.ResourceScopeSpan{c, s, mustBeginSpan(t, c), mustBeginSpan(t, viewService(t, m, testSvc))}
		for _, s := range scopes {
			require.NoError(t, s.ReserveMemory(3, 255))
		}
		together(t, 4, func(_ int, r *rand.Rand) {
			for _, i := range r.Perm(len(scopes)) {
				scopes[i].Done()
				scopes[i].Done()
			}
		})
		require.Equal(t, before, books(m))
		checkInvariants(t, m, false)
	}
	stay.Done()
	friend.Done()
	assertEmpty(t, m)
}

func TestAScopeThatIsDoneTakesNothing(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	c, s, s2 := mustOpenConn(t, m, network.DirInbound), mustOpenStream(t, m, testPeer, network.DirInbound), mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, s2.SetProtocol("/other"))
	span, rootSpan := mustBeginSpan(t, c), mustBeginSpan(t, viewPeer(t, m, testPeer))
	orphan := mustBeginSpan(t, s)
	for _, d := range []interface{ Done() }{span, c, s, s2, rootSpan} {
		d.Done()
	}
	for name, call := range map[string]func() error{
		"SetPeer":                  func() error { return c.SetPeer(testPeer) },
		"SetProtocol":              func() error { return s.SetProtocol(testProto) },
		"SetService":               func() error { return s2.SetService(testSvc) },
		"conn.ReserveMemory":       func() error { return c.ReserveMemory(1, 255) },
		"conn.ReserveMemory(0)":    func() error { return c.ReserveMemory(0, 255) },
		"stream.ReserveMemory":     func() error { return s.ReserveMemory(1, 1) },
		"span.ReserveMemory":       func() error { return span.ReserveMemory(1, 255) },
		"span of a done owner":     func() error { return orphan.ReserveMemory(1, 255) },
		"span of a peer":           func() error { return rootSpan.ReserveMemory(1, 255) },
		"conn.BeginSpan":           func() error { _, err := c.BeginSpan(); return err },
		"span.BeginSpan":           func() error { _, err := span.BeginSpan(); return err },
		"span of a peer.BeginSpan": func() error { _, err := rootSpan.BeginSpan(); return err },
	} {
		require.ErrorIs(t, call(), network.ErrResourceScopeClosed, name)
	}
	for _, s := range []network.ResourceScope{c, s, span, rootSpan} {
		require.Zero(t, s.Stat())
		s.ReleaseMemory(1) // releases nothing, and is no bug: see LateReleases
	}
	require.EqualValues(t, 0, m.Snapshot().CallerBugs)
	require.EqualValues(t, 4, m.Snapshot().LateReleases)
	assertEmpty(t, m) // no reference was taken
}

// What a scope was kept in serves another one, and a caller that still has the first sees
// nothing of that, and does nothing to it.
func TestAScopeThatIsDoneShowsNothingOfTheNextUserOfItsHolder(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	var (
		c, c2        network.ConnManagementScope
		s            network.StreamManagementScope
		span, orphan network.ResourceScopeSpan
		names        []scopeName
	)
	for c == nil || c2.(*connScope).h != c.(*connScope).h { // garbage collection may take the holder
		if c != nil {
			c2.Done()
		}
		c, s = mustOpenConn(t, m, network.DirInbound), mustOpenStream(t, m, testPeer, network.DirInbound)
		span, orphan = mustBeginSpan(t, s), mustBeginSpan(t, mustBeginSpan(t, s))
		require.NoError(t, c.SetPeer(testPeer))
		require.NoError(t, s.SetProtocol(testProto))
		require.NoError(t, s.SetService(testSvc))
		for _, held := range []network.ResourceScope{c, s, span, orphan} {
			require.NoError(t, held.ReserveMemory(100, 255))
		}
		names = []scopeName{c.(*connScope).name(), s.(*streamScope).name(), span.(*spanScope).name(), orphan.(*spanScope).name()}
		c.Done()
		s.Done()
		c2 = mustOpenConn(t, m, network.DirOutbound)
	}

	s2 := mustOpenStream(t, m, testPeers[1], network.DirOutbound)
	require.NoError(t, c2.SetPeer(testPeers[1]))
	require.NoError(t, s2.SetProtocol("/other"))
	require.NoError(t, s2.SetService("other"))
	require.Same(t, s.(*streamScope).h, s2.(*streamScope).h)
	require.NoError(t, c2.ReserveMemory(7, 255))
	require.NoError(t, s2.ReserveMemory(9, 255))
	held := books(m)

	require.Equal(t, testPeer, c.PeerScope().Peer())
	require.Equal(t, testPeer, s.PeerScope().Peer())
	require.Nil(t, s.ProtocolScope())
	require.Nil(t, s.ServiceScope())
	for i, old := range []network.ResourceScope{c, s, span, orphan} {
		l := old.(ResourceScopeLimiter)
		require.Equal(t, &BaseLimit{}, l.Limit())
		old.(LimitResetter).ResetLimit()
		err := old.ReserveMemory(1, 255)
		require.ErrorIs(t, err, network.ErrResourceScopeClosed)
		require.True(t, strings.HasPrefix(err.Error(), names[i].String()+": "), err)
		if i < 2 { // a span has its own, and may go on giving back
			l.SetLimit(&BaseLimit{})
			require.Zero(t, old.Stat())
			old.ReleaseMemory(1)
		}
	}
	require.ErrorIs(t, c.SetPeer("another"), network.ErrResourceScopeClosed)
	require.ErrorIs(t, s.SetProtocol("/another"), network.ErrResourceScopeClosed)
	orphan.ReleaseMemory(60)
	orphan.Done()
	span.ReleaseMemory(60)
	span.Done()
	c.Done()
	s.Done()
	require.Equal(t, held, books(m))
	require.EqualValues(t, 7, c2.Stat().Memory)
	require.EqualValues(t, 9, s2.Stat().Memory)
	require.NoError(t, c2.ReserveMemory(1, 255))
	require.Zero(t, m.Snapshot().CallerBugs)
	require.EqualValues(t, 2, m.Snapshot().LateReleases)
	c2.Done()
	s2.Done()
	assertEmpty(t, m)
}

func TestIdleScopesOfEveryKindGoAndComeBack(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		m := newManager(t, unlimitedConf(), WithStripes(stripes))
		peers := manyPeers(20)
		kept := viewEach(t, m)
		delete(kept, "system")
		delete(kept, "transient")
		for range 3 {
			for _, p := range append(peers, testPeer) {
				servedStream(t, m, p).Done()
				mustBeginSpan(t, viewPeer(t, m, p)).Done()
			}
			for _, s := range kept {
				mustBeginSpan(t, s).Done()
			}
			require.Len(t, listed(m), 23)
			assertEmpty(t, m)
			require.Empty(t, listed(m))
			// A caller that kept a handle can go on, whether or not another one
			// has used the name meanwhile: it is one account (I7).
			for name, s := range kept {
				for _, first := range []bool{true, false} {
					var other network.ResourceScope
					if !first {
						other = viewEach(t, m)[name]
					}
					require.NoError(t, s.ReserveMemory(5, 255))
					if first {
						other = viewEach(t, m)[name]
					}
					require.NoError(t, other.ReserveMemory(6, 255))
					require.EqualValues(t, 11, s.Stat().Memory, name)
					require.EqualValues(t, 11, other.Stat().Memory, name)
					require.Len(t, listed(m), 3)
					checkInvariants(t, m, false)
					m.reap()
					require.Equal(t, []string{name}, listed(m))
					s.ReleaseMemory(11) // either handle is the scope
					require.Zero(t, other.Stat().Memory)
					m.reap()
					require.Empty(t, listed(m))
				}
			}
			require.Zero(t, m.Snapshot().CallerBugs)
		}
	}
}

func TestIdleScopesGoWithinTwoMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(NewFixedLimiter(ConcreteLimitConfig{limits: unlimitedConf()}))
		require.NoError(t, err)
		time.Sleep(90 * time.Second) // somewhere between two collections
		kept := viewEach(t, m)
		s := servedStream(t, m, testPeer)
		c := mustOpenConn(t, m, network.DirInbound)
		require.NoError(t, c.SetPeer("another"))
		require.Len(t, listed(m), 4)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Len(t, listed(m), 4, "they are in use")
		s.Done()
		c.Done()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Empty(t, listed(m))
		require.Empty(t, m.Stat().Peers)
		require.NoError(t, kept[kindNamesHere[KindService]].ReserveMemory(1, 255))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, []string{kindNamesHere[KindService]}, listed(m))
		require.NoError(t, m.Close())
		// The bubble ends only when every goroutine in it has.
	})
}

func TestAScopeThatSomeoneUsesStays(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	var all []string
	for name := range viewEach(t, m) {
		if strings.Contains(name, ":") {
			all = append(all, name)
		}
	}
	for name, use := range map[string]func(inside func()) []string{
		"a connection": func(inside func()) []string {
			c := mustOpenConn(t, m, network.DirInbound)
			require.NoError(t, c.SetPeer(testPeer))
			inside()
			c.Done()
			return []string{kindNamesHere[KindPeer]}
		},
		"a stream": func(inside func()) []string {
			s := servedStream(t, m, testPeer)
			inside()
			s.Done()
			return all
		},
		"empty spans": func(inside func()) []string {
			var spans []network.ResourceScopeSpan
			for _, s := range viewEach(t, m) {
				spans = append(spans, mustBeginSpan(t, s))
			}
			inside()
			for _, s := range spans {
				s.Done()
			}
			return all
		},
		"a view": func(inside func()) []string {
			m.ViewService(testSvc, func(network.ServiceScope) error { inside(); return nil })
			return []string{kindNamesHere[KindService]}
		},
	} {
		var stayed []string
		want := use(func() { m.reap(); m.reap(); stayed = listed(m) })
		require.ElementsMatch(t, want, stayed, name)
		assertEmpty(t, m)
		require.Empty(t, listed(m), name)
	}
}

func TestALimitThatWasSetSurvivesIdleness(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		m := newManager(t, unlimitedConf(), WithStripes(stripes))
		limit := unlimitedBase
		limit.Memory = 5
		for _, s := range viewEach(t, m) {
			s.(ResourceScopeLimiter).SetLimit(&limit)
			require.NoError(t, s.ReserveMemory(1, 255))
			s.ReleaseMemory(1)
		}
		for range 3 {
			servedStream(t, m, testPeer).Done()
			assertEmpty(t, m)
			for name, s := range viewEach(t, m) {
				require.Equal(t, &limit, s.(ResourceScopeLimiter).Limit(), name)
				require.Error(t, s.ReserveMemory(6, 255), name)
			}
		}
	}
}

func TestCollectionIsBoundedUnderALock(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	for _, p := range manyPeers(3*reapChunk + 1) {
		viewPeer(t, m, p)
	}
	st := &m.stripes[0]
	for left := 3*reapChunk + 1; left > 0; {
		n := st.reapSome(left)
		require.Equal(t, min(left, reapChunk), n)
		left -= n
		require.Len(t, m.ListPeers(), left)
	}
	assertEmpty(t, m)
}
