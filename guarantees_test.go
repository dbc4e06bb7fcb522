package rcmgr

// What is guaranteed where go-libp2p's own manager is known to go wrong, one
// test each, named by what must be true.

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// peersInStripes gives n peers that lie in stripes of their own.
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

// viewEach gives a handle on a scope of every kind that can be viewed.
func viewEach(t *testing.T, m *Manager) map[string]network.ResourceScope {
	return map[string]network.ResourceScope{
		"system":                    viewSystem(t, m),
		"transient":                 viewTransient(t, m),
		kindNamesHere[KindPeer]:     viewPeer(t, m, testPeer),
		kindNamesHere[KindProtocol]: viewProtocol(t, m, testProto),
		kindNamesHere[KindService]:  viewService(t, m, testSvc),
	}
}

// listed gives the names of all scopes that are listed.
func listed(m *Manager) (names []string) {
	for _, p := range m.ListPeers() {
		names = append(names, "peer:"+p.String())
	}
	for _, p := range m.ListProtocols() {
		names = append(names, "protocol:"+string(p))
	}
	for _, s := range m.ListServices() {
		names = append(names, "service:"+s)
	}
	return names
}

func TestMemoryCountsAsUse(t *testing.T) {
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

func TestAReleaseTakesOnlyWhatWasReservedThere(t *testing.T) {
	// Each scope holds 100 bytes of its own; others hold 1000 below it.
	for name, make := range map[string]func(t *testing.T, m *Manager) network.ResourceScope{
		"conn": func(t *testing.T, m *Manager) network.ResourceScope {
			c := mustOpenConn(t, m, network.DirInbound)
			require.NoError(t, mustBeginSpan(t, c).ReserveMemory(1000, 255))
			return c
		},
		"stream.span": func(t *testing.T, m *Manager) network.ResourceScope {
			s := mustBeginSpan(t, servedStream(t, m, testPeer))
			require.NoError(t, mustBeginSpan(t, s).ReserveMemory(1000, 255))
			return s
		},
		kindNamesHere[KindPeer]: func(t *testing.T, m *Manager) network.ResourceScope {
			require.NoError(t, servedStream(t, m, testPeer).ReserveMemory(1000, 255))
			return viewPeer(t, m, testPeer)
		},
		kindNamesHere[KindProtocol]: func(t *testing.T, m *Manager) network.ResourceScope {
			require.NoError(t, servedStream(t, m, testPeer).ReserveMemory(1000, 255))
			return viewProtocol(t, m, testProto)
		},
		kindNamesHere[KindService]: func(t *testing.T, m *Manager) network.ResourceScope {
			require.NoError(t, servedStream(t, m, testPeer).ReserveMemory(1000, 255))
			return viewService(t, m, testSvc)
		},
		"system": func(t *testing.T, m *Manager) network.ResourceScope {
			require.NoError(t, servedStream(t, m, testPeer).ReserveMemory(1000, 255))
			return viewSystem(t, m)
		},
		"transient.span": func(t *testing.T, m *Manager) network.ResourceScope {
			s := mustBeginSpan(t, viewTransient(t, m))
			require.NoError(t, mustBeginSpan(t, s).ReserveMemory(1000, 255))
			return s
		},
	} {
		for _, tt := range []struct{ release, left int }{{300, 0}, {-300, 100}, {math.MaxInt, 0}, {math.MinInt, 100}} {
			t.Run(fmt.Sprintf("%s/%d", name, tt.release), func(t *testing.T) {
				out := captureLog(t)
				m := newManager(t, unlimitedConf(), WithStripes(1))
				s := make(t, m)
				require.NoError(t, s.ReserveMemory(100, 255))
				s.ReleaseMemory(tt.release)
				require.EqualValues(t, 1000+tt.left, s.Stat().Memory)
				require.EqualValues(t, 1000+tt.left, viewSystem(t, m).Stat().Memory)
				checkInvariants(t, m, false)
				require.EqualValues(t, 1, m.Snapshot().CallerBugs)
				require.Equal(t, 1, strings.Count(out.String(), "\n"), "one line: %s", out)
				require.Contains(t, numbers.ReplaceAllString(out.String(), "$1"), "scope="+name+" ")
				if tt.release == 300 {
					require.Contains(t, out.String(), "excess=200")
				}
				s.ReleaseMemory(1)
				s.ReleaseMemory(0) // is no bug
				require.EqualValues(t, 2-min(1, tt.left), m.Snapshot().CallerBugs)
			})
		}
	}
}

func TestANegativeReservationIsRefusedAndCounted(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	scopes := viewEach(t, m)
	scopes["conn"] = mustOpenConn(t, m, network.DirInbound)
	scopes["stream"] = servedStream(t, m, testPeer)
	scopes["span"] = mustBeginSpan(t, scopes["stream"])
	scopes["span of system"] = mustBeginSpan(t, scopes["system"])
	before, bugs := books(m), uint64(0)
	for name, s := range scopes {
		for _, n := range []int{-1, math.MinInt} {
			err := s.ReserveMemory(n, 255)
			require.ErrorContains(t, err, "negative", name)
			require.NotErrorIs(t, err, network.ErrResourceLimitExceeded)
			bugs++
		}
	}
	require.Equal(t, before, books(m))
	require.Equal(t, bugs, m.Snapshot().CallerBugs)
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

// What a scope was kept in serves another one, and whoever still has the first sees
// nothing of that, and does nothing to it.
func TestAScopeThatIsDoneTellsNothing(t *testing.T) {
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

func TestSpansFollowTheirOwnersLimit(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	scopes := viewEach(t, m)
	scopes["conn"] = mustOpenConn(t, m, network.DirInbound)
	scopes["stream"] = servedStream(t, m, testPeer)
	for name, s := range scopes {
		span := mustBeginSpan(t, s)
		inner := mustBeginSpan(t, span)
		own := mustBeginSpan(t, span)
		ownLimit := unlimitedBase
		ownLimit.Memory = 7
		own.(ResourceScopeLimiter).SetLimit(&ownLimit)
		limit := unlimitedBase
		for _, memory := range []int64{10, 3, 20} {
			limit.Memory = memory
			s.(ResourceScopeLimiter).SetLimit(&limit)
			for _, x := range []network.ResourceScopeSpan{span, inner} {
				require.Equal(t, memory, x.(ResourceScopeLimiter).Limit().GetMemoryLimit(), name)
				require.Error(t, x.ReserveMemory(int(memory)+1, 255), name)
				require.NoError(t, x.ReserveMemory(int(memory), 255), name)
				x.ReleaseMemory(int(memory))
			}
			require.EqualValues(t, 7, own.(ResourceScopeLimiter).Limit().GetMemoryLimit(), name)
			require.Error(t, own.ReserveMemory(8, 255), name)
		}
		span.Done()
		s.(ResourceScopeLimiter).SetLimit(&unlimitedBase)
	}
}

func TestSumsThatOverflowAreRefused(t *testing.T) {
	if math.MaxInt < math.MaxInt64 {
		t.Skip("no two ints have a sum that overflows")
	}
	for _, stripes := range []int{1, 8} {
		for _, a := range []Admission{AdmissionHalf, AdmissionLinear} {
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

func TestLimitsAreCopies(t *testing.T) {
	m := newManager(t, unlimitedConf())
	scopes := viewEach(t, m)
	scopes["conn"] = mustOpenConn(t, m, network.DirInbound)
	scopes["stream"] = servedStream(t, m, testPeer)
	scopes["span"] = mustBeginSpan(t, scopes["stream"])
	scopes["another peer"] = viewPeer(t, m, "another")
	for name, s := range scopes {
		l, ok := s.(ResourceScopeLimiter).Limit().(*BaseLimit)
		require.True(t, ok, name)
		*l = BaseLimit{}
		for other, s := range scopes {
			require.Equal(t, &unlimitedBase, s.(ResourceScopeLimiter).Limit(), "%s after a change of what %s gave", other, name)
		}
	}
	for name, s := range scopes {
		l := unlimitedBase
		s.(ResourceScopeLimiter).SetLimit(&l)
		l = BaseLimit{}
		require.Equal(t, &unlimitedBase, s.(ResourceScopeLimiter).Limit(), "what %s was given is the caller's", name)
	}
}

func TestALimitThatIsNoneIsACallersBug(t *testing.T) {
	m := newManager(t, unlimitedConf())
	scopes := viewEach(t, m)
	scopes["conn"] = mustOpenConn(t, m, network.DirInbound)
	scopes["span"] = mustBeginSpan(t, scopes["conn"])
	bugs := uint64(0)
	for name, s := range scopes {
		for _, l := range []Limit{nil, (*BaseLimit)(nil), &BaseLimit{Memory: -1}, &BaseLimit{FD: math.MinInt}} {
			s.(ResourceScopeLimiter).SetLimit(l)
			bugs++
			require.Equal(t, &unlimitedBase, s.(ResourceScopeLimiter).Limit(), name)
		}
	}
	require.Equal(t, bugs, m.Snapshot().CallerBugs)
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
			// Whoever kept a handle can go on, whether or not somebody else
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

func TestAViewThatPanicsLeavesNoReference(t *testing.T) {
	m := newManager(t, unlimitedConf())
	boom := errors.New("boom")
	for _, view := range []func(){
		func() { m.ViewSystem(func(network.ResourceScope) error { panic(boom) }) },
		func() { m.ViewTransient(func(network.ResourceScope) error { panic(boom) }) },
		func() { m.ViewPeer(testPeer, func(network.PeerScope) error { panic(boom) }) },
		func() { m.ViewProtocol(testProto, func(network.ProtocolScope) error { panic(boom) }) },
		func() { m.ViewService(testSvc, func(network.ServiceScope) error { panic(boom) }) },
	} {
		require.PanicsWithError(t, "boom", view)
	}
	assertEmpty(t, m)
	require.Empty(t, listed(m))
	require.ErrorIs(t, m.ViewPeer(testPeer, func(network.PeerScope) error { return boom }), boom)
}

func TestCallbacksRunWithoutLocks(t *testing.T) {
	var m *Manager
	look := func() {
		if m != nil {
			m.Stat()
			m.Snapshot()
			m.ListPeers()
			m.ListServices()
			m.ListProtocols()
			m.reap()
		}
	}
	m, err := New(&askedLimiter{Limiter: NewFixedLimiter(ConcreteLimitConfig{limits: unlimitedConf()}), asked: look}, WithStripes(1))
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	viewEach(t, m)
	mustOpenConn(t, m, network.DirInbound).Done()
	servedStream(t, m, "another").Done()
	for _, view := range []func() error{
		func() error { return m.ViewSystem(func(network.ResourceScope) error { look(); return nil }) },
		func() error { return m.ViewPeer(testPeer, func(network.PeerScope) error { look(); return nil }) },
		func() error {
			return m.ViewProtocol(testProto, func(network.ProtocolScope) error { look(); return nil })
		},
		func() error { return m.ViewService(testSvc, func(network.ServiceScope) error { look(); return nil }) },
	} {
		require.NoError(t, view())
	}
	c := mustOpenConn(t, m, network.DirInbound)
	c.(ResourceScopeLimiter).SetLimit(askedLimit{&unlimitedBase, look})
	viewPeer(t, m, testPeer).(ResourceScopeLimiter).SetLimit(askedLimit{&unlimitedBase, look})
	viewSystem(t, m).(ResourceScopeLimiter).SetLimit(askedLimit{&unlimitedBase, look})
	c.Done()
	assertEmpty(t, m)
}

// askedLimiter is a Limiter of another make. asked is called whenever it is.
type askedLimiter struct {
	Limiter
	asked func()
}

func (l *askedLimiter) GetServiceLimits(s string) Limit {
	l.asked()
	return l.Limiter.GetServiceLimits(s)
}
func (l *askedLimiter) GetServicePeerLimits(s string) Limit {
	l.asked()
	return l.Limiter.GetServicePeerLimits(s)
}
func (l *askedLimiter) GetProtocolLimits(p protocol.ID) Limit {
	l.asked()
	return l.Limiter.GetProtocolLimits(p)
}
func (l *askedLimiter) GetProtocolPeerLimits(p protocol.ID) Limit {
	l.asked()
	return l.Limiter.GetProtocolPeerLimits(p)
}
func (l *askedLimiter) GetPeerLimits(p peer.ID) Limit { l.asked(); return l.Limiter.GetPeerLimits(p) }
func (l *askedLimiter) GetStreamLimits(p peer.ID) Limit {
	l.asked()
	return l.Limiter.GetStreamLimits(p)
}
func (l *askedLimiter) GetConnLimits() Limit { l.asked(); return l.Limiter.GetConnLimits() }

// askedLimit is a Limit of another make. asked is called whenever it is.
type askedLimit struct {
	*BaseLimit
	asked func()
}

func (l askedLimit) GetMemoryLimit() int64 { l.asked(); return l.BaseLimit.GetMemoryLimit() }

// wrongLimiter gives something that is no limit for one kind of scope.
type wrongLimiter struct {
	Limiter
	kind Kind
	give Limit
}

func (l *wrongLimiter) or(k Kind, right Limit) Limit {
	if k == l.kind {
		return l.give
	}
	return right
}

func (l *wrongLimiter) GetSystemLimits() Limit { return l.or(KindSystem, l.Limiter.GetSystemLimits()) }
func (l *wrongLimiter) GetTransientLimits() Limit {
	return l.or(KindTransient, l.Limiter.GetTransientLimits())
}
func (l *wrongLimiter) GetAllowlistedSystemLimits() Limit {
	return l.or(KindAllowlistedSystem, l.Limiter.GetAllowlistedSystemLimits())
}
func (l *wrongLimiter) GetAllowlistedTransientLimits() Limit {
	return l.or(KindAllowlistedTransient, l.Limiter.GetAllowlistedTransientLimits())
}
func (l *wrongLimiter) GetServiceLimits(s string) Limit {
	return l.or(KindService, l.Limiter.GetServiceLimits(s))
}
func (l *wrongLimiter) GetServicePeerLimits(s string) Limit {
	return l.or(KindServicePeer, l.Limiter.GetServicePeerLimits(s))
}
func (l *wrongLimiter) GetProtocolLimits(p protocol.ID) Limit {
	return l.or(KindProtocol, l.Limiter.GetProtocolLimits(p))
}
func (l *wrongLimiter) GetProtocolPeerLimits(p protocol.ID) Limit {
	return l.or(KindProtocolPeer, l.Limiter.GetProtocolPeerLimits(p))
}
func (l *wrongLimiter) GetPeerLimits(p peer.ID) Limit {
	return l.or(KindPeer, l.Limiter.GetPeerLimits(p))
}
func (l *wrongLimiter) GetStreamLimits(p peer.ID) Limit {
	return l.or(KindStream, l.Limiter.GetStreamLimits(p))
}
func (l *wrongLimiter) GetConnLimits() Limit { return l.or(KindConn, l.Limiter.GetConnLimits()) }

func TestALimiterThatGivesNoLimitGetsAClearError(t *testing.T) {
	for kind, calls := range map[Kind]func(m *Manager) []error{
		// What is asked for once, when the manager is made.
		KindSystem: nil, KindTransient: nil, KindAllowlistedSystem: nil, KindAllowlistedTransient: nil, KindConn: nil,
		KindStream: func(m *Manager) []error {
			_, err := m.OpenStream(testPeer, network.DirInbound)
			return []error{err}
		},
		KindPeer: func(m *Manager) []error {
			_, err := m.OpenStream(testPeer, network.DirInbound)
			c := mustOpenConn(t, m, network.DirInbound)
			defer c.Done()
			return []error{err, c.SetPeer(testPeer), m.ViewPeer(testPeer, nil)}
		},
		KindProtocol: func(m *Manager) []error {
			s := mustOpenStream(t, m, testPeer, network.DirInbound)
			defer s.Done()
			return []error{s.SetProtocol(testProto), m.ViewProtocol(testProto, nil)}
		},
		KindProtocolPeer: func(m *Manager) []error {
			s := mustOpenStream(t, m, testPeer, network.DirInbound)
			defer s.Done()
			return []error{s.SetProtocol(testProto), m.ViewProtocol(testProto, nil)}
		},
		KindService: func(m *Manager) []error {
			s := mustOpenStream(t, m, testPeer, network.DirInbound)
			defer s.Done()
			require.NoError(t, s.SetProtocol(testProto))
			return []error{s.SetService(testSvc), m.ViewService(testSvc, nil)}
		},
		KindServicePeer: func(m *Manager) []error {
			s := mustOpenStream(t, m, testPeer, network.DirInbound)
			defer s.Done()
			require.NoError(t, s.SetProtocol(testProto))
			return []error{s.SetService(testSvc), m.ViewService(testSvc, nil)}
		},
	} {
		for what, limit := range map[string]Limit{"nil": nil, "typed nil": (*BaseLimit)(nil), "negative": &BaseLimit{Streams: -3}} {
			t.Run(fmt.Sprintf("%v/%s", kind, what), func(t *testing.T) {
				right := NewFixedLimiter(ConcreteLimitConfig{limits: unlimitedConf()})
				m, err := New(&wrongLimiter{right, kind, limit})
				if calls == nil {
					require.ErrorContains(t, err, kind.String())
					return
				}
				require.NoError(t, err)
				defer m.Close()
				for _, err := range calls(m) {
					require.ErrorContains(t, err, strings.TrimSuffix(kind.String(), "-peer"))
					require.NotErrorIs(t, err, network.ErrResourceLimitExceeded)
					if what == "negative" {
						require.ErrorContains(t, err, "-3")
					}
				}
				assertEmpty(t, m)
			})
		}
	}
}

func TestNamesMustNotBeEmpty(t *testing.T) {
	m := newManager(t, unlimitedConf())
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	before := books(m)
	require.Error(t, s.SetProtocol(""))
	require.Nil(t, s.ProtocolScope())
	require.Equal(t, before, books(m))
	require.NoError(t, s.SetProtocol(testProto))
	before = books(m)
	require.Error(t, s.SetService(""))
	require.Nil(t, s.ServiceScope())
	require.Equal(t, before, books(m))
	require.Error(t, m.ViewProtocol("", nil))
	require.Error(t, m.ViewService("", nil))
	s.Done()
	assertEmpty(t, m)
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
			for a, weight := range map[Admission]int64{AdmissionHalf: min(256, 128+int64(p)), AdmissionLinear: 1 + int64(p)} {
				want := new(big.Int).Mul(big.NewInt(limit), big.NewInt(weight))
				want.Rsh(want, 8)
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
		for _, a := range []Admission{AdmissionHalf, AdmissionLinear} {
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

func TestGetConnLimitFollowsTheSystemsLimit(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 17 }))
	require.Equal(t, 17, m.GetConnLimit())
	viewSystem(t, m).(ResourceScopeLimiter).SetLimit(&BaseLimit{Conns: 4, ConnsInbound: 2})
	require.Equal(t, 4, m.GetConnLimit())
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

func TestALimitBelowUseAdmitsNothingUntilItHasDrained(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		m := newManager(t, unlimitedConf(), WithStripes(stripes))
		for name, s := range viewEach(t, m) {
			other := mustBeginSpan(t, s)
			require.NoError(t, s.ReserveMemory(600, 255))
			require.NoError(t, other.ReserveMemory(400, 255))
			limit := unlimitedBase
			limit.Memory = 700
			s.(ResourceScopeLimiter).SetLimit(&limit)
			require.EqualValues(t, 1000, s.Stat().Memory, "what is held stays")
			for _, n := range []int{0, 1, 500} {
				require.Error(t, s.ReserveMemory(n, 255), "%s: %d", name, n)
			}
			s.ReleaseMemory(300)
			require.NoError(t, s.ReserveMemory(0, 255))
			require.Error(t, s.ReserveMemory(1, 255))
			s.ReleaseMemory(1)
			require.NoError(t, s.ReserveMemory(1, 255))
			s.ReleaseMemory(300)
			other.Done()
			s.(ResourceScopeLimiter).SetLimit(&unlimitedBase)
			checkInvariants(t, m, false)
		}
		assertEmpty(t, m)
	}
}

func TestAfterCloseNothingIsAdmittedAndEverythingCanBeReleased(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("full=%v", full), func(t *testing.T) {
			m := newManager(t, unlimitedConf(), WithStripes(8))
			c, unset := mustOpenConn(t, m, network.DirInbound), mustOpenConn(t, m, network.DirInbound)
			require.NoError(t, c.SetPeer(testPeer))
			s, bare := servedStream(t, m, testPeer), mustOpenStream(t, m, testPeer, network.DirInbound)
			half := mustOpenStream(t, m, testPeer, network.DirInbound)
			require.NoError(t, half.SetProtocol(testProto))
			span := mustBeginSpan(t, c)
			scopes := viewEach(t, m)
			scopes["conn"], scopes["stream"], scopes["span"] = c, s, span
			for _, s := range scopes {
				require.NoError(t, s.ReserveMemory(10, 255))
			}
			if full { // a refusal must not hide that it is closed
				viewTransient(t, m).(ResourceScopeLimiter).SetLimit(&BaseLimit{})
			}
			require.NoError(t, m.Close())
			require.NoError(t, m.Close())
			before := books(m)
			calls := map[string]func() error{
				"OpenConnection in":  func() error { _, err := m.OpenConnection(network.DirInbound, true, testFars[1].addr); return err },
				"OpenConnection out": func() error { _, err := m.OpenConnection(network.DirOutbound, true, nil); return err },
				"OpenStream":         func() error { _, err := m.OpenStream(testPeer, network.DirInbound); return err },
				"SetPeer":            func() error { return unset.SetPeer(testPeer) },
				"SetProtocol":        func() error { return bare.SetProtocol(testProto) },
				"SetService":         func() error { return half.SetService(testSvc) },
			}
			for name, s := range scopes {
				calls[name+".ReserveMemory"] = func() error { return s.ReserveMemory(1, 255) }
				calls[name+".BeginSpan"] = func() error { _, err := s.BeginSpan(); return err }
			}
			for name, call := range calls {
				err := call()
				require.ErrorIs(t, err, network.ErrResourceScopeClosed, name)
				require.ErrorContains(t, err, "resource manager closed", name)
			}
			require.Equal(t, before, books(m))
			for name, s := range scopes {
				s.ReleaseMemory(10)
				require.NotNil(t, s.Stat(), name)
			}
			for _, d := range []interface{ Done() }{span, c, unset, s, bare, half} {
				d.Done()
			}
			if !full {
				assertEmpty(t, m)
			}
		})
	}
}

// TestAClosedManagerSaysSoBeforeItsGatesDo: a full subnet or rate does not hide
// that the manager is closed.
func TestAClosedManagerSaysSoBeforeItsGatesDo(t *testing.T) {
	m := newManager(t, unlimitedConf())
	open := func() error {
		_, err := m.OpenConnection(network.DirInbound, false, testFars[1].addr)
		return err
	}
	for range connsPerHost {
		require.NoError(t, open())
	}
	require.ErrorIs(t, open(), network.ErrResourceLimitExceeded)
	require.NoError(t, m.Close())
	require.ErrorIs(t, open(), network.ErrResourceScopeClosed)
}

// TestADoneConnectionSaysSoBeforeTheGatesDo: of a connection that was let past
// the gates for somebody else.
func TestADoneConnectionSaysSoBeforeTheGatesDo(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithAllowlistedMultiaddrs(testAllowlist))
	named := testFars[3].addr
	var last network.ConnManagementScope
	for range connsPerHost + 1 {
		c, err := m.OpenConnection(network.DirInbound, false, named)
		require.NoError(t, err)
		if last != nil {
			require.NoError(t, last.SetPeer(testPeer)) // a stranger: the gates count it
		}
		last = c
	}
	require.ErrorIs(t, last.SetPeer(testPeer), network.ErrResourceLimitExceeded)
	last.Done()
	require.ErrorIs(t, last.SetPeer(testPeer), network.ErrResourceScopeClosed)
}

func TestASharedManagerClosesWithItsLastHandle(t *testing.T) {
	m := newManager(t, unlimitedConf())
	a, b := m.Share(), m.Share()
	var _ network.ResourceManager = a
	stream := func(rm network.ResourceManager) error {
		s, err := rm.OpenStream(testPeer, network.DirInbound)
		if err == nil {
			s.Done()
		}
		return err
	}
	conn := func(rm network.ResourceManager) error {
		c, err := rm.OpenConnection(network.DirInbound, false, nil)
		if err == nil {
			c.Done()
		}
		return err
	}
	require.NoError(t, stream(a))
	require.NoError(t, a.Close())
	require.NoError(t, a.Close(), "again it does nothing")
	require.ErrorIs(t, stream(a), network.ErrResourceScopeClosed)
	require.ErrorIs(t, conn(a), network.ErrResourceScopeClosed)
	require.NoError(t, stream(b), "the other host goes on")
	require.NoError(t, conn(b))
	c := m.Share() // a third one, later
	require.NoError(t, b.Close())
	require.NoError(t, conn(c))
	require.NoError(t, c.Close())
	require.ErrorIs(t, stream(m), network.ErrResourceScopeClosed)
	assertEmpty(t, m)
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

type wrapped struct{ network.ResourceManager }

func (w wrapped) Unwrap() network.ResourceManager { return w.ResourceManager }

func TestTheAllowlistIsFoundThroughWrappers(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithAllowlistedMultiaddrs(testAllowlist[:1]), WithAllowlistedMultiaddrs(testAllowlist[1:]))
	for _, rm := range []network.ResourceManager{m, m.Share(), wrapped{m}, wrapped{wrapped{m.Share()}}} {
		require.Same(t, m.allowlist, GetAllowlist(rm))
	}
	for _, rm := range []network.ResourceManager{nil, &network.NullResourceManager{}, wrapped{}, wrapped{&network.NullResourceManager{}}} {
		require.Nil(t, GetAllowlist(rm))
	}
	for _, far := range testFars[2:] {
		require.True(t, m.GetAllowlist().Allowed(far.addr), "lists add up")
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
		for _, ps := range m.stripes[i].peers {
			require.Empty(t, ps.allPairs())
		}
	}
	c.Done()
	s.Done()
	assertEmpty(t, m)
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
		e, err := m.Explain(Question{Kind: KindStream, Direction: network.DirOutbound, Peer: testPeer})
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
