package rcmgr_test

// Real hosts at the gates, on the allowlist and behind relays: which connections meet
// limits on their addresses, and the peers that are served when all others are refused.

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// TestHostsBehindOneRelayAllConnect: none of them has the relay's address, of
// which the gates would let in eight.
func TestHostsBehindOneRelayAllConnect(t *testing.T) {
	ctx := onHosts(t)
	// The relay is at a loopback address, which is free by default.
	limits, err := rcmgr.NewDefaultLimiterFromJSON(strings.NewReader(`{"Gates":{
		"Subnets": {"Networks": {"127.0.0.0/8": 8}},
		"Rate": {"Networks": {"127.0.0.0/8": {"PerSecond": 0.001, "Burst": 8}}}}}`))
	require.NoError(t, err)
	relayHas, serverHas := newManager(t, nil), newManager(t, limits)
	relay, server := newRelay(t, relayHas), newHost(t, serverHas)
	serveEcho(server)
	addr := throughRelay(t, ctx, relay, server)
	for range 14 {
		client := newHost(t, unmanaged())
		require.NoError(t, client.Connect(ctx, addr))
		_, err := openEcho(ctx, client, server.ID(), echoProtocol, 1)
		require.NoError(t, err)
	}
	require.Equal(t, 14, serverHas.Stat().System.NumConnsInbound)
	require.Zero(t, serverHas.Snapshot().Refusals[rcmgr.KindSubnet].Total()+serverHas.Snapshot().Refusals[rcmgr.KindRate].Total())
	require.NoError(t, server.Close())
	requireNothingHeld(t, serverHas)
}

// TestHostsServeAnAllowlistedPeerFromASubnetFullOfAttackers: of a network that
// has all the connections it may, only the friend gets in, wherever in it
// the attackers are. All of IPv6 loopback is one address, and so one subnet.
func TestHostsServeAnAllowlistedPeerFromASubnetFullOfAttackers(t *testing.T) {
	for _, c := range []struct{ listen, network, at string }{
		{"/ip6/::1/tcp/0", "::1/128", "/ip6/::1"},
		{"/ip6/::1/udp/0/quic-v1", "::1/128", "/ip6/::1"},
		{"/ip4/127.0.0.1/tcp/0", "127.0.0.0/8", "/ip4/127.0.0.1"},
	} {
		t.Run(c.listen, func(t *testing.T) {
			ctx := onHosts(t)
			if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
				l.Close()
			} else if strings.HasPrefix(c.at, "/ip6") {
				t.Skip("no IPv6 on this machine")
			}
			limits, err := rcmgr.NewDefaultLimiterFromJSON(strings.NewReader(`{"Gates":{"Subnets":{"Networks":{"` + c.network + `": 8}}}}`))
			require.NoError(t, err)
			m := newManager(t, limits)
			server := newServer(t, m, road{listen: c.listen})
			friend, stranger := newHost(t, unmanaged()), newHost(t, unmanaged())
			for range 8 {
				require.NoError(t, newHost(t, unmanaged()).Connect(ctx, *host.InfoFromHost(server)))
			}
			eventually(t, func() bool { return m.Stat().System.NumConnsInbound == 8 }, "the attackers are not all there", m)
			requireTurnedAway(t, ctx, stranger, server)
			requireTurnedAway(t, ctx, friend, server)
			refused := m.Snapshot().Refusals[rcmgr.KindSubnet].ConnsInbound
			require.Positive(t, refused, "it was not the gate that refused")

			require.NoError(t, m.GetAllowlist().Add(multiaddr.StringCast(c.at+"/p2p/"+friend.ID().String())))
			work(t, ctx, friend, *host.InfoFromHost(server))
			require.Equal(t, refused, m.Snapshot().Refusals[rcmgr.KindSubnet].ConnsInbound)
			requireTurnedAway(t, ctx, stranger, server)
			require.Greater(t, m.Snapshot().Refusals[rcmgr.KindSubnet].ConnsInbound, refused, "it was not the gate that refused")
			require.NoError(t, pingOnce(ctx, friend, server.ID()), "the friend is served all the while")
			require.Equal(t, []rcmgr.SubnetState{{Prefix: netip.MustParsePrefix(c.network), Conns: 8, Limit: 8}}, m.Snapshot().Gates.Fullest)
			require.NoError(t, server.Close())
			requireNothingHeld(t, m)
			eventually(t, func() bool { return m.Snapshot().Gates.Subnets == 0 }, "connections count at the gate", m)
		})
	}
}

// TestHostsDialOneNetworkAHundredTimes: what a host dials itself passes no gate,
// however few connections and however slow a rate the network may have.
func TestHostsDialOneNetworkAHundredTimes(t *testing.T) {
	ctx := onHosts(t)
	m := newManager(t, limited(rcmgr.PartialLimitConfig{Gates: &rcmgr.GateLimits{
		Subnets: rcmgr.SubnetLimits{Networks: map[netip.Prefix]rcmgr.LimitVal{netip.MustParsePrefix("127.0.0.0/24"): 8}},
		Rate:    rcmgr.RateLimits{Networks: map[netip.Prefix]rcmgr.ConnRate{netip.MustParsePrefix("127.0.0.0/24"): {PerSecond: 0.001, Burst: 8}}},
	}}))
	server, client := newServer(t, unmanaged(), roads[0]), newHost(t, m)
	var all []io.Closer
	for range 100 {
		c, err := dialRaw(ctx, client, *host.InfoFromHost(server))
		require.NoError(t, err)
		all = append(all, c)
	}
	require.Equal(t, 100, m.Stat().System.NumConnsOutbound)
	require.Zero(t, m.Snapshot().Gates.Subnets)
	for _, c := range all {
		require.NoError(t, c.Close())
	}
	requireNothingHeld(t, m)
}

func TestHostsThatAreFullServeAllowlistedPeers(t *testing.T) {
	overEveryRoad(t, func(t *testing.T, r road) {
		ctx := onHosts(t)
		m := newManager(t, limited(rcmgr.PartialLimitConfig{
			System: rcmgr.ResourceLimits{Conns: 4, Streams: 4},
		}))
		release := fill(t, m)
		friend, stranger := newHost(t, unmanaged()), newHost(t, unmanaged())
		require.NoError(t, m.GetAllowlist().Add(multiaddr.StringCast("/ip4/127.0.0.1/p2p/"+friend.ID().String())))
		full := newServer(t, m, r)

		stream := work(t, ctx, friend, *host.InfoFromHost(full))
		eventually(t, func() bool {
			for _, s := range m.Snapshot().Scopes {
				if s.Kind == rcmgr.KindAllowlistedSystem {
					return s.Use.NumConnsInbound == 1 && s.Use.NumStreamsInbound == 1 && s.Use.NumStreamsOutbound == 0
				}
			}
			return false
		}, "the friend's connection and stream are not in the allowlisted system scope", m)

		refusals := m.Snapshot().Refusals[rcmgr.KindSystem].Conns
		requireTurnedAway(t, ctx, stranger, full)
		require.Greater(t, m.Snapshot().Refusals[rcmgr.KindSystem].Conns, refusals, "it was not the manager that refused")
		require.NoError(t, pingOnce(ctx, friend, full.ID()), "the friend is served all the while")
		require.NoError(t, stream.Close())
		require.NoError(t, friend.Network().ClosePeer(full.ID()))
		release()
		requireNothingHeld(t, m)
		work(t, ctx, stranger, *host.InfoFromHost(full))
		require.NoError(t, full.Close())
		requireNothingHeld(t, m)
	})
}

// fill takes connections and streams until the manager admits no more, and returns
// a function that ends them all.
func fill(t *testing.T, m *rcmgr.Manager) (release func()) {
	t.Helper()
	var all []network.ResourceScopeSpan
	var err error
	for err == nil {
		var c network.ConnManagementScope
		if c, err = m.OpenConnection(network.DirOutbound, false, nil); err == nil {
			all = append(all, c)
		}
	}
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	for err = nil; err == nil; {
		var s network.StreamManagementScope
		if s, err = m.OpenStream("crowd", network.DirOutbound); err == nil {
			all = append(all, s)
		}
	}
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	return func() {
		for _, s := range all {
			s.Done()
		}
	}
}

// requireTurnedAway checks that a host gets nowhere with another one, and that
// its network tells it so. The far end refuses it when the handshake shows who
// it is; some transports have told the near end by then that it is connected.
func requireTurnedAway(t *testing.T, ctx context.Context, h, from host.Host) {
	t.Helper()
	err := h.Connect(ctx, *host.InfoFromHost(from))
	if err == nil {
		_, err = openEcho(network.WithNoDial(ctx, "test"), h, from.ID(), echoProtocol, 0)
	}
	require.Error(t, err)
	require.NoError(t, ctx.Err(), "no answer is not a refusal")
	require.NotErrorIs(t, err, errDenied)
	eventually(t, func() bool { return h.Network().Connectedness(from.ID()) == network.NotConnected },
		"a stranger stays connected")
	h.Network().(*swarm.Swarm).Backoff().Clear(from.ID())
}
