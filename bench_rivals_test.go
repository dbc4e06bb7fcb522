package rcmgr

// Who runs in the benchmarks: this manager and go-libp2p's, with their metrics on and off,
// and the plainest thing that could do, one mutex around the reference model.

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	xrate "github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// rival makes a manager with the given limits and no limit on rates. Both managers get the same
// options: go-libp2p's has no rate limits only with a limiter that is empty.
type rival struct {
	impl string
	make func(testing.TB, ConcreteLimitConfig) network.ResourceManager
}

var rivals = []rival{
	{"ours", func(t testing.TB, limits ConcreteLimitConfig) network.ResourceManager {
		rm, err := NewResourceManager(NewFixedLimiter(limits), WithConnRateLimiters(&xrate.Limiter{}))
		require.NoError(t, err)
		return rm
	}},
	{"ours-without-metrics", func(t testing.TB, limits ConcreteLimitConfig) network.ResourceManager {
		rm, err := NewResourceManager(NewFixedLimiter(limits), WithConnRateLimiters(&xrate.Limiter{}), WithMetricsDisabled())
		require.NoError(t, err)
		return rm
	}},
	{"upstream", func(t testing.TB, limits ConcreteLimitConfig) network.ResourceManager {
		return newUpstream(t, limits, upstream.WithConnRateLimiters(&xrate.Limiter{}))
	}},
	{"upstream-without-metrics", func(t testing.TB, limits ConcreteLimitConfig) network.ResourceManager {
		return newUpstream(t, limits, upstream.WithConnRateLimiters(&xrate.Limiter{}), upstream.WithMetricsDisabled())
	}},
	{"one-mutex", func(t testing.TB, limits ConcreteLimitConfig) network.ResourceManager {
		return &mutexManager{model: newModel(&limits.limits, AdmissionHalf, true)}
	}},
}

// oursWithStripes makes the first of the rivals, with as many stripes on any machine.
func oursWithStripes(t testing.TB, limits ConcreteLimitConfig, stripes int) *Manager {
	m, err := New(NewFixedLimiter(limits), WithConnRateLimiters(&xrate.Limiter{}), WithStripes(stripes))
	require.NoError(t, err)
	return m
}

// newUpstream makes go-libp2p's manager with our limits.
func newUpstream(t testing.TB, limits ConcreteLimitConfig, opts ...upstream.Option) network.ResourceManager {
	theirs := theirs(t, limits.ToPartialLimitConfig()).Build(upstream.InfiniteLimits)
	rm, err := upstream.NewResourceManager(upstream.NewFixedLimiter(theirs), opts...)
	require.NoError(t, err)
	return rm
}

// mutexManager is the reference model as a network.ResourceManager, as far as the
// benchmarks need it.
type mutexManager struct {
	network.NullResourceManager
	model *model
}

// err is the model's answer as an error.
func (a answer) err() error {
	if a.outcome == yes {
		return nil
	}
	return fmt.Errorf("%s: %s: %w", a.scope, a.resource, network.ErrResourceLimitExceeded)
}

func (m *mutexManager) OpenConnection(dir network.Direction, fd bool, _ multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	c, a := m.model.OpenConnection(dir, fd, modelFar{})
	return mutexConn{mutexScope{m.model, c}}, a.err()
}

func (m *mutexManager) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, a := m.model.OpenStream(p, dir)
	return mutexStream{mutexScope{m.model, s}}, a.err()
}

// mutexScope is any scope of the model.
type mutexScope struct {
	in *model
	s  *modelScope
}

func (x mutexScope) ReserveMemory(n int, priority uint8) error {
	return x.in.ReserveMemory(x.s, n, priority).err()
}
func (x mutexScope) ReleaseMemory(n int)     { x.in.ReleaseMemory(x.s, n) }
func (x mutexScope) Stat() network.ScopeStat { return x.in.Stat(x.s) }
func (x mutexScope) Done()                   { x.in.Done(x.s) }
func (x mutexScope) BeginSpan() (network.ResourceScopeSpan, error) {
	span, a := x.in.BeginSpan(x.s)
	return mutexScope{x.in, span}, a.err()
}

type mutexConn struct{ mutexScope }

func (c mutexConn) PeerScope() network.PeerScope { return nil }
func (c mutexConn) SetPeer(p peer.ID) error      { return c.in.SetPeer(c.s, p).err() }

type mutexStream struct{ mutexScope }

func (s mutexStream) PeerScope() network.PeerScope         { return nil }
func (s mutexStream) ProtocolScope() network.ProtocolScope { return nil }
func (s mutexStream) ServiceScope() network.ServiceScope   { return nil }
func (s mutexStream) SetProtocol(id protocol.ID) error {
	return s.in.SetProtocol(s.s, string(id)).err()
}
func (s mutexStream) SetService(svc string) error { return s.in.SetService(s.s, svc).err() }
