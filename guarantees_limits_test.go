package rcmgr

// Guarantees about limits and the Limiters that have them.

import (
	"fmt"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

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

func TestGetConnLimitFollowsTheSystemsLimit(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 17 }))
	require.Equal(t, 17, m.GetConnLimit())
	viewSystem(t, m).(ResourceScopeLimiter).SetLimit(&BaseLimit{Conns: 4, ConnsInbound: 2})
	require.Equal(t, 4, m.GetConnLimit())
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
				m, err := New(&wrongLimiter{right, kind, limit}, WithStrictConfig())
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
