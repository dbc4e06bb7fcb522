package rcmgr

import (
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

func namedConf() PartialLimitConfig {
	outbound := true
	return PartialLimitConfig{
		System:       ResourceLimits{Conns: 500, Memory: Unlimited64},
		Service:      map[string]ResourceLimits{"a": {Streams: 5}},
		ServicePeer:  map[string]ResourceLimits{"a": {Streams: 2}},
		Protocol:     map[protocol.ID]ResourceLimits{"/a": {Streams: 6}},
		ProtocolPeer: map[protocol.ID]ResourceLimits{"/a": {Streams: BlockAllLimit}},
		Peer:         map[peer.ID]ResourceLimits{testPeer: {Conns: 9}},
		Stream:       ResourceLimits{Memory: 77},
		Gates: &GateLimits{
			Subnets:  SubnetLimits{IPv4: map[int]LimitVal{24: 10, 32: 3}, Networks: map[netip.Prefix]LimitVal{netip.MustParsePrefix("10.0.0.0/8"): Unlimited}},
			Rate:     RateLimits{IPv6: map[int]ConnRate{64: {PerSecond: 0.5, Burst: 7}, 48: {Burst: Unlimited}, 32: {Burst: BlockAllLimit}}},
			Outbound: &outbound,
		},
	}
}

// asJSON shows all of a configuration.
func asJSON(t *testing.T, cfg any) string {
	t.Helper()
	text, err := json.MarshalIndent(cfg, "", " ")
	require.NoError(t, err)
	return string(text)
}

func TestLimitsInForceAreThoseThatWereGiven(t *testing.T) {
	for name, cfg := range map[string]ConcreteLimitConfig{
		"named":    namedConf().Build(DefaultLimits.Scale(1<<30, 1000)),
		"default":  DefaultLimits.Scale(1<<30, 1000),
		"infinite": InfiniteLimits,
		"nothing":  {},
	} {
		t.Run(name, func(t *testing.T) {
			m := newFrom(t, cfg)
			got := m.Limits().ToPartialLimitConfig()
			want := cfg.ToPartialLimitConfig()
			if want.Gates != nil {
				require.Subset(t, got.Gates.Subnets.Networks, want.Gates.Subnets.Networks)
				require.Equal(t, want.Gates.Subnets.IPv4, got.Gates.Subnets.IPv4)
				require.Equal(t, want.Gates.Rate.IPv6, got.Gates.Rate.IPv6)
				require.Equal(t, want.Gates.Outbound, got.Gates.Outbound)
			}
			again := newFrom(t, m.Limits()).Limits()
			require.Equal(t, asJSON(t, m.Limits()), asJSON(t, again), "what is read back makes the same manager")
			read, err := NewLimiterFromJSON(strings.NewReader(asJSON(t, m.Limits())), ConcreteLimitConfig{})
			require.NoError(t, err)
			require.Equal(t, asJSON(t, m.Limits()), asJSON(t, read), "it is JSON for the strict reader")
			got.Gates, want.Gates = nil, nil
			require.Equal(t, asJSON(t, want), asJSON(t, got))
		})
	}
	require.Equal(t, LimitVal(connsPerHost), newFrom(t, ConcreteLimitConfig{}).Limits().ToPartialLimitConfig().Gates.Subnets.IPv4[32])
	require.Empty(t, newFrom(t, InfiniteLimits).Limits().ToPartialLimitConfig().Gates.Subnets.IPv4)
}

func TestLimitsInForceIncludeThoseThatWereSet(t *testing.T) {
	given := namedConf().Build(DefaultLimits.Scale(1<<30, 1000))
	before := asJSON(t, given)
	m := newFrom(t, given)
	set := func(s network.ResourceScope, streams int) {
		l := *s.(ResourceScopeLimiter).Limit().(*BaseLimit)
		l.Streams = streams
		s.(ResourceScopeLimiter).SetLimit(&l)
	}
	set(viewSystem(t, m), 1001)
	set(viewTransient(t, m), 1002)
	for i, p := range []peer.ID{testPeer, "another"} {
		set(viewPeer(t, m, p), 1010+i)
	}
	for i, p := range []protocol.ID{"/a", "/b"} {
		require.NoError(t, m.ViewProtocol(p, func(s network.ProtocolScope) error { set(s, 1020+i); return nil }))
	}
	for i, name := range []string{"a", "b"} {
		require.NoError(t, m.ViewService(name, func(s network.ServiceScope) error { set(s, 1030+i); return nil }))
	}
	viewPeer(t, m, "nobody")
	viewProtocol(t, m, "/nothing")
	m.reap()

	got := m.Limits().ToPartialLimitConfig()
	require.EqualValues(t, 1001, got.System.Streams)
	require.EqualValues(t, 500, got.System.Conns)
	require.EqualValues(t, 1002, got.Transient.Streams)
	require.Len(t, got.Peer, 2)
	require.EqualValues(t, 1010, got.Peer[testPeer].Streams)
	require.EqualValues(t, 9, got.Peer[testPeer].Conns)
	require.EqualValues(t, 1011, got.Peer["another"].Streams)
	require.Len(t, got.Protocol, 2)
	require.EqualValues(t, 1020, got.Protocol["/a"].Streams)
	require.EqualValues(t, 1021, got.Protocol["/b"].Streams)
	require.Len(t, got.ProtocolPeer, 1)
	require.EqualValues(t, 1030, got.Service["a"].Streams)
	require.EqualValues(t, 1031, got.Service["b"].Streams)
	require.Equal(t, before, asJSON(t, given), "the configuration that was given is as it was")
}

func TestLimitsInForceOfAnotherLimiter(t *testing.T) {
	m, err := New(otherLimiter{NewFixedLimiter(namedConf().Build(DefaultLimits.Scale(1<<30, 1000)))})
	require.NoError(t, err)
	defer m.Close()
	got := m.Limits().ToPartialLimitConfig()
	require.EqualValues(t, 500, got.System.Conns)
	require.EqualValues(t, 77, got.Stream.Memory)
	require.Empty(t, got.Peer)
	viewPeer(t, m, testPeer)
	viewPeer(t, m, "another")
	viewProtocol(t, m, "/a")
	viewProtocol(t, m, "/b")
	got = m.Limits().ToPartialLimitConfig()
	require.EqualValues(t, 9, got.Peer[testPeer].Conns)
	require.Len(t, got.Peer, 1)
	require.EqualValues(t, 6, got.Protocol["/a"].Streams)
	require.Equal(t, BlockAllLimit, got.ProtocolPeer["/a"].Streams)
	require.Len(t, got.Protocol, 1)
}

func TestLimitsInForceOfGatesSetByOptions(t *testing.T) {
	level := func(bits, n int) ConnLimitPerSubnet { return ConnLimitPerSubnet{PrefixLength: bits, ConnCount: n} }
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	v4 := []ConnLimitPerSubnet{level(24, 9), level(24, 5), level(24, 7), level(16, math.MaxInt)}
	m, err := New(nil, WithLimitPerSubnet(v4, nil), WithGates(GateLimits{Outbound: pointerTo(true)}), WithNetworkPrefixLimit([]NetworkPrefixLimit{{loopback, 7}, {loopback, 8}}, nil))
	require.NoError(t, err)
	defer m.Close()
	v4[1].ConnCount = 99
	g := m.Limits().ToPartialLimitConfig().Gates
	require.Equal(t, map[int]LimitVal{24: 5, 16: Unlimited}, g.Subnets.IPv4)
	require.True(t, *g.Outbound)
	require.EqualValues(t, 7, g.Subnets.Networks[loopback], "the first holds")
	require.Equal(t, Unlimited, g.Subnets.Networks[netip.MustParsePrefix("::1/128")])
}
