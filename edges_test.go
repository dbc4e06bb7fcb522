package rcmgr

// Edges that are easy to miss: what comes first when several things are wrong,
// and senseless input.

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

const listedPeer = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"

func allowing(t *testing.T, s string) Option {
	return WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{mustMA(t, s)})
}

// Outbound connections never pass the inbound gates.
func TestOutboundConnectionsToAllowlistedAddressesPassNoGate(t *testing.T) {
	m := newManager(t, unlimitedConf(), allowing(t, "/ip4/9.9.9.9/p2p/"+listedPeer))
	far := mustMA(t, "/ip4/9.9.9.9/tcp/1")
	for i := range 20 {
		c, err := m.OpenConnection(network.DirOutbound, true, far)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(peerNamed(fmt.Sprint("x", i))), "connection %d", i)
	}
}

func TestAClosedManagerMakesNoScopes(t *testing.T) {
	m := newManager(t, unlimitedConf())
	m.Close()
	for i := range 1000 {
		_, err := m.OpenStream(peerNamed(fmt.Sprint("p", i)), network.DirInbound)
		require.Error(t, err)
	}
	require.Empty(t, m.ListPeers())
}

func TestAllowlistingAPeerIDTakesEffectForItsStreamsAtOnce(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Streams, conf.System.StreamsInbound = 0, 0
	p, err := peer.Decode(listedPeer)
	require.NoError(t, err)
	m := newManager(t, conf)
	c, err := m.OpenConnection(network.DirInbound, true, mustMA(t, "/ip4/9.9.9.9/tcp/1"))
	require.NoError(t, err)
	require.NoError(t, c.SetPeer(p))
	entry := mustMA(t, "/p2p/"+listedPeer)
	require.NoError(t, m.GetAllowlist().Add(entry))
	_, err = m.OpenStream(p, network.DirInbound)
	require.NoError(t, err)
}

func TestAnUnwrappedRefusalKeepsItsType(t *testing.T) {
	m := newManager(t, perScope[BaseLimit]{Conn: unlimitedBase})
	_, err := m.OpenConnection(network.DirOutbound, true, nil)
	var theirs *ErrStreamOrConnLimitExceeded
	require.ErrorAs(t, err, &theirs)
	require.ErrorAs(t, errors.Unwrap(err), &theirs)
	require.ErrorAs(t, fmt.Errorf("x: %w", errors.Unwrap(err)), &theirs)
}

func TestAFullScopeIsNotReportedAsCrowded(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.StreamsInbound = 8
	m := newManager(t, conf)
	a := peerNamed("a")
	for range 6 {
		mustOpenStream(t, m, a, network.DirInbound)
	}
	mustOpenStream(t, m, peerNamed("b"), network.DirInbound)
	mustOpenStream(t, m, peerNamed("c"), network.DirInbound)
	_, err := m.OpenStream(a, network.DirInbound)
	var e *LimitError
	require.ErrorAs(t, err, &e)
	require.Equal(t, CauseLimit, e.Cause(), "8 of 8 are held: it is simply full")
}

type connReporter struct {
	MetricsReporter
	fd bool
}

func (r *connReporter) AllowConn(_ network.Direction, fd bool) { r.fd = fd }

func TestAReporterHearsOfNoDescriptorBehindARelay(t *testing.T) {
	r := &connReporter{}
	m := newManager(t, unlimitedConf(), WithMetrics(r))
	c, err := m.OpenConnection(network.DirInbound, true, mustMA(t, "/ip4/9.9.9.9/tcp/1/p2p/"+listedPeer+"/p2p-circuit"))
	require.NoError(t, err)
	require.Zero(t, c.Stat().NumFD)
	require.False(t, r.fd)
}

func TestOddInputDoesNotPanic(t *testing.T) {
	m := newManager(t, unlimitedConf())
	t.Run("nil address", func(t *testing.T) {
		require.NotPanics(t, func() { m.VerifySourceAddress(nil) })
		var udp *net.UDPAddr
		require.NotPanics(t, func() { m.VerifySourceAddress(udp) })
	})
	t.Run("strings", func(t *testing.T) {
		for _, none := range []fmt.Stringer{Kind(99), Resource(9), Cause(9), Origin(9), Admission(9)} {
			require.Equal(t, "unknown", none.String(), "%T", none)
		}
	})
	t.Run("nil option", func(t *testing.T) {
		require.NotPanics(t, func() { _, _ = New(nil, nil) })
	})
}

// Both full: upstream names system.
func TestAMoveFromTheAllowlistedScopesNamesWhatUpstreamNames(t *testing.T) {
	entry, far := mustMA(t, "/ip4/9.9.9.9/p2p/"+listedPeer), mustMA(t, "/ip4/9.9.9.9/tcp/1")
	one := func(b *BaseLimit) { b.Conns, b.ConnsInbound = 0, 0 }
	conf := unlimitedConf()
	one(&conf.System)
	one(&conf.Transient)
	m := newManager(t, conf, WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{entry}))
	var up upstream.ConcreteLimitConfig
	text, err := ConcreteLimitConfig{limits: conf}.MarshalJSON()
	require.NoError(t, err)
	var partial upstream.PartialLimitConfig
	require.NoError(t, json.Unmarshal(text, &partial))
	up = partial.Build(upstream.InfiniteLimits)
	u, err := upstream.NewResourceManager(upstream.NewFixedLimiter(up),
		upstream.WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{entry}))
	require.NoError(t, err)
	defer u.Close()
	var said []string
	for _, rm := range []network.ResourceManager{u, m} {
		c, err := rm.OpenConnection(network.DirInbound, true, far)
		require.NoError(t, err)
		said = append(said, fmt.Sprint(c.SetPeer(peerNamed("b"))))
	}
	require.Contains(t, said[0], "system:")
	require.Contains(t, said[1], "system:")
}

func TestSpansOfAHandleThatWasCollectedHaveNamesOfTheirOwn(t *testing.T) {
	m := newManager(t, unlimitedConf())
	var old network.ServiceScope
	require.NoError(t, m.ViewService("x", func(s network.ServiceScope) error { old = s; return nil }))
	m.reap()
	require.NoError(t, m.ViewService("x", func(s network.ServiceScope) error {
		a, err := s.BeginSpan()
		require.NoError(t, err)
		b, err := old.BeginSpan()
		require.NoError(t, err)
		require.NotEqual(t, a.(*rootSpan).name(), b.(*rootSpan).name())
		return nil
	}))
}

func TestASnapshotNamesKindsInJSON(t *testing.T) {
	m := newManager(t, perScope[BaseLimit]{Conn: unlimitedBase})
	_, err := m.OpenConnection(network.DirOutbound, true, nil)
	require.Error(t, err)
	text, err := json.Marshal(m.Snapshot())
	require.NoError(t, err)
	require.Contains(t, string(text), `"transient"`)
	require.NotContains(t, string(text), `"Kind":1`)
	require.NotContains(t, string(text), `"Refusals":{"1"`)
}

// A caller's mistake at a peer's scope is named while the same scope refuses others.
// It is for the race detector to see.
func TestAPeerIsNamedWhileItRefuses(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.PeerDefault.Memory = 100 }))
	for i := range 50 {
		require.NoError(t, m.ViewPeer(peer.ID(fmt.Sprint("peer", i)), func(ps network.PeerScope) error {
			done := make(chan struct{})
			go func() {
				for range 20 {
					ps.ReleaseMemory(1)
				}
				close(done)
			}()
			for range i {
				runtime.Gosched()
			}
			require.Error(t, ps.ReserveMemory(101, 255))
			<-done
			require.ErrorContains(t, ps.ReserveMemory(-1, 255), "peer:")
			return nil
		}))
	}
}

func TestAPeerOfManyProtocolsHasEachOnce(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	var streams []network.StreamManagementScope
	for i := range 4 * manyPairs {
		for range 2 {
			s := mustOpenStream(t, m, testPeer, network.DirInbound)
			require.NoError(t, s.SetProtocol(protocol.ID(fmt.Sprint("/x/", i))))
			streams = append(streams, s)
		}
	}
	ps := m.stripes[0].known(testPeer)
	require.Nil(t, ps.pairs)
	require.Len(t, ps.byShare(), 4*manyPairs)
	for i, s := range streams {
		if i%3 != 0 {
			s.Done()
		}
	}
	m.reap()
	require.Len(t, ps.byShare(), 43, "two of three still have streams")
	for sh, pr := range ps.byShare() {
		require.Same(t, sh, pr.share)
		require.Nil(t, pr.next, "it would keep others from being collected")
		require.Same(t, pr, ps.pair(sh))
	}
	for _, s := range streams {
		s.Done()
	}
	assertEmpty(t, m)
}

// A connection that leaves the allowlisted scopes with more than half of what
// the system may hold is decided on the exact sum, like any other request.
func TestAMoveOfMoreThanHalfOfALimitIsDecidedOnTheExactSum(t *testing.T) {
	const most, large = 1 << 20, 700 << 10
	for _, free := range []int64{large, large - 1} {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory, c.System.Conns = most, 1 }),
			append(openGates(), WithStripes(8), WithAllowlistedMultiaddrs(testAllowlist))...)
		first := mustOpenConn(t, m, network.DirInbound)
		c, err := m.OpenConnection(network.DirInbound, false, testFars[3].addr)
		require.NoError(t, err)
		require.NoError(t, c.ReserveMemory(large, 255))
		require.Zero(t, viewSystem(t, m).Stat().Memory, "it stands in the allowlisted scopes")
		first.Done()
		require.NoError(t, viewSystem(t, m).ReserveMemory(int(most-free), 255))
		require.Equal(t, free == large, c.SetPeer(testPeers[1]) == nil)
		checkInvariants(t, m, false)
		c.Done()
		viewSystem(t, m).ReleaseMemory(int(most - free))
		assertEmpty(t, m)
	}
}

// I8: of two stripes, the lower one is locked first.
func TestTwoStripesAreLockedInTheirOrder(t *testing.T) {
	for _, turned := range []bool{false, true} {
		m := newManager(t, unlimitedConf(), WithStripes(2))
		low, high := &m.stripes[0], &m.stripes[1]
		a, b := low, high
		if turned {
			a, b = high, low
		}
		tree := &root{}
		tree.at.Store(a)
		high.mu.Lock()
		both := make(chan struct{})
		go func() {
			tree.lockWith(b, oneStripe)
			close(both)
		}()
		taken := false
		for end := time.Now().Add(10 * time.Second); !taken && time.Now().Before(end); runtime.Gosched() {
			if taken = !low.mu.TryLock(); !taken {
				low.mu.Unlock()
			}
		}
		high.mu.Unlock()
		<-both
		unlockBoth(a, b, oneStripe)
		require.True(t, taken, "the upper one is waited for before the lower one is taken")
	}
}

// What only the exact sum can decide is decided so before anything falls back: the
// allowlisted scopes are for what the standard ones refuse.
func TestAllowlistedScopesAreUsedOnlyAfterTheStandardOnesRefuse(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		most := 32 * stripes // with room for batches, and loose up to half
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = most }),
			append(openGates(), WithStripes(stripes), WithAllowlistedMultiaddrs(testAllowlist))...)
		open := func() {
			_, err := m.OpenConnection(network.DirInbound, false, testFars[2].addr)
			require.NoError(t, err)
		}
		for range most {
			open()
		}
		require.Equal(t, network.ScopeStat{NumConnsInbound: most}, m.fixed[KindSystem].Stat())
		open()
		require.Equal(t, network.ScopeStat{NumConnsInbound: 1}, m.fixed[KindAllowlistedSystem].Stat())
	}
}
