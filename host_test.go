package rcmgr_test

// Real go-libp2p hosts on loopback, with the manager behind them: every
// transport, a relay, Prometheus, several hosts on one manager, and hosts that
// are closed in the middle of everything. Whatever happens, nothing may be held
// in the end.

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// work connects h to another host, identifies and pings it, and opens a stream
// with it.
func work(t *testing.T, ctx context.Context, h host.Host, to peer.AddrInfo) network.Stream {
	t.Helper()
	ctx = network.WithAllowLimitedConn(ctx, "test")
	require.NoError(t, h.Connect(ctx, to))
	// What it serves since a moment ago may come with identify's push.
	eventually(t, func() bool {
		known, err := h.Peerstore().SupportsProtocols(to.ID, ping.ID, echoProtocol)
		return err == nil && len(known) == 2
	}, "the other side is not identified")
	require.NoError(t, pingOnce(ctx, h, to.ID))
	s, err := openEcho(ctx, h, to.ID, echoProtocol, echoMemory)
	require.NoError(t, err)
	return s
}

// requireClosed checks that a manager refuses everything.
func requireClosed(t *testing.T, m network.ResourceManager) {
	t.Helper()
	require.ErrorIs(t, tryOpen(m), network.ErrResourceScopeClosed)
	_, err := m.OpenStream("somebody", network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceScopeClosed)
}

// tryOpen opens a connection and closes it at once.
func tryOpen(m network.ResourceManager) error {
	c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.1/tcp/1"))
	if err == nil {
		c.Done()
	}
	return err
}

func TestHostsHoldWhatTheyUseAndGiveItBack(t *testing.T) {
	overEveryRoad(t, func(t *testing.T, r road) {
		ctx := onHosts(t)
		serverHas, clientHas := newManager(t, nil), newManager(t, nil)
		server, client := newServer(t, serverHas, r), newHost(t, clientHas)
		work(t, ctx, client, *host.InfoFromHost(server))

		stream := network.ScopeStat{NumStreamsInbound: 1, Memory: echoMemory}
		eventually(t, func() bool {
			now := serverHas.Stat()
			of := now.Peers[client.ID()]
			return now.Services[echoService] == stream && now.Protocols[echoProtocol] == stream &&
				of.NumConnsInbound == 1 && of.NumFD == r.fd && of.Memory >= echoMemory &&
				now.System == of && now.Transient == network.ScopeStat{} &&
				of.NumStreamsInbound+of.NumStreamsOutbound == 1
		}, "the server does not account for one connection with one stream", serverHas)
		eventually(t, func() bool {
			now := clientHas.Stat()
			of := now.Peers[server.ID()]
			return now.Protocols[echoProtocol] == network.ScopeStat{NumStreamsOutbound: 1} &&
				of.NumConnsOutbound == 1 && of.NumFD == r.fd &&
				now.System == of && now.Transient == network.ScopeStat{} &&
				of.NumStreamsInbound+of.NumStreamsOutbound == 1
		}, "the client does not account for one connection with one stream", clientHas)

		require.NoError(t, client.Network().ClosePeer(server.ID()))
		requireNothingHeld(t, serverHas, clientHas)

		work(t, ctx, client, *host.InfoFromHost(server))
		require.NoError(t, server.Close())
		requireNothingHeld(t, serverHas, clientHas)
		requireClosed(t, serverHas)
		require.NoError(t, tryOpen(clientHas))
		require.NoError(t, client.Close())
		requireClosed(t, clientHas)
	})
}

func TestHostsBehindARelayHoldNoDescriptorForIt(t *testing.T) {
	ctx := onHosts(t)
	relayHas, serverHas, clientHas := newManager(t, nil), newManager(t, nil), newManager(t, nil)
	relay, server, client := newRelay(t, relayHas), newHost(t, serverHas), newHost(t, clientHas)
	serveEcho(server)
	addr := throughRelay(t, ctx, relay, server)
	require.NoError(t, client.Connect(ctx, *host.InfoFromHost(relay)))
	work(t, ctx, client, addr)

	// Each has one descriptor: for its own connection to the relay.
	eventually(t, func() bool {
		of, all := serverHas.Stat().Peers[client.ID()], serverHas.Stat().System
		return of.NumConnsInbound == 1 && of.NumFD == 0 && all.NumConnsOutbound == 1 && all.NumFD == 1
	}, "the server does not account for one relayed connection", serverHas)
	eventually(t, func() bool {
		of, all := clientHas.Stat().Peers[server.ID()], clientHas.Stat().System
		return of.NumConnsOutbound == 1 && of.NumFD == 0 && all.NumConnsOutbound == 2 && all.NumFD == 1
	}, "the client does not account for one relayed connection", clientHas)
	eventually(t, func() bool {
		now := relayHas.Stat()
		circuit := now.Services["libp2p.relay/v2"]
		return now.System.NumConnsInbound == 2 && now.System.NumFD == 2 &&
			circuit.NumStreamsInbound == 1 && circuit.NumStreamsOutbound == 1 && circuit.Memory > 0
	}, "the relay does not account for one circuit", relayHas)

	require.NoError(t, client.Network().ClosePeer(server.ID()))
	eventually(t, func() bool {
		return relayHas.Stat().Services["libp2p.relay/v2"] == network.ScopeStat{} &&
			serverHas.Stat().Peers[client.ID()] == network.ScopeStat{}
	}, "the circuit is still held", relayHas, serverHas)
	for _, h := range []host.Host{client, server, relay} {
		require.NoError(t, h.Close())
	}
	requireNothingHeld(t, relayHas, serverHas, clientHas)
	requireClosed(t, relayHas)
}

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

// TestHostsInASubnetFullOfAttackersServeWhomTheAllowlistNames: of a network that
// has all the connections it may, nobody gets in but the friend, wherever in it
// the attackers are. All of IPv6 loopback is one address, and so one subnet.
func TestHostsInASubnetFullOfAttackersServeWhomTheAllowlistNames(t *testing.T) {
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

// series gives the value of a series, or what none has: 0.
func series(t *testing.T, reg prometheus.Gatherer, name string, labels map[string]string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != "libp2p_rcmgr_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			got := map[string]string{}
			for _, l := range m.GetLabel() {
				got[l.GetName()] = l.GetValue()
			}
			if maps.Equal(got, labels) {
				if h := m.GetHistogram(); h != nil {
					return float64(h.GetSampleCount())
				}
				return m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func TestHostsWithPrometheusShowTheManagerInEitherOrder(t *testing.T) {
	registries := map[string]func() *prometheus.Registry{
		"pedantic": prometheus.NewPedanticRegistry,
		"default":  prometheus.NewRegistry,
	}
	type registration struct {
		name          string
		before, after func(*testing.T, *rcmgr.Manager, *prometheus.Registry)
	}
	none := func(*testing.T, *rcmgr.Manager, *prometheus.Registry) {}
	must := func(_ *testing.T, _ *rcmgr.Manager, reg *prometheus.Registry) { rcmgr.MustRegisterWith(reg) }
	own := func(t *testing.T, m *rcmgr.Manager, reg *prometheus.Registry) {
		require.NoError(t, m.RegisterWith(reg))
	}
	for _, r := range []registration{
		{"MustRegisterWith before libp2p.New", must, none},
		{"MustRegisterWith after libp2p.New", none, must},
		{"RegisterWith before libp2p.New", own, none},
		{"RegisterWith after libp2p.New", none, own},
	} {
		for kind, newRegistry := range registries {
			t.Run(r.name+", "+kind, func(t *testing.T) {
				ctx := onHosts(t)
				reg := newRegistry()
				for range 2 { // the second time, on the registry of the first
					m := newManager(t, nil)
					r.before(t, m, reg)
					h := newServer(t, m, roads[0], libp2p.PrometheusRegisterer(reg))
					r.after(t, m, reg)
					requireConnectionShows(t, ctx, h, reg)
					require.NoError(t, h.Close())
					_, err := reg.Gather()
					require.NoError(t, err)
				}
			})
		}
	}
}

// requireConnectionShows connects to a host, and checks that its metrics follow.
func requireConnectionShows(t *testing.T, ctx context.Context, h host.Host, reg *prometheus.Registry) {
	t.Helper()
	// What one connection with one stream adds to what was there before.
	adds := []struct {
		family string
		labels map[string]string
		add    float64
	}{
		{"connections", map[string]string{"dir": "inbound", "scope": "system"}, 1},
		{"connections", map[string]string{"dir": "outbound", "scope": "system"}, 0},
		{"connections", map[string]string{"dir": "inbound", "scope": "transient"}, 0},
		{"streams", map[string]string{"dir": "inbound", "scope": "system", "protocol": ""}, 1},
		{"streams", map[string]string{"dir": "outbound", "scope": "system", "protocol": ""}, 0},
		{"streams", map[string]string{"dir": "inbound", "scope": "protocol", "protocol": string(echoProtocol)}, 1},
		{"memory", map[string]string{"scope": "protocol", "protocol": string(echoProtocol)}, echoMemory},
		{"fds", map[string]string{"scope": "system"}, 1},
		{"peer_connections", map[string]string{"dir": "inbound"}, 1},
		{"peer_streams", map[string]string{"dir": "inbound"}, 1},
		{"previous_peer_connections", map[string]string{"dir": "inbound"}, 0},
	}
	before := make([]float64, len(adds))
	for i, a := range adds {
		before[i] = series(t, reg, a.family, a.labels)
	}
	shows := func(times float64) func() bool {
		return func() bool {
			for i, a := range adds {
				if series(t, reg, a.family, a.labels) != before[i]+times*a.add {
					return false
				}
			}
			return true
		}
	}
	client := newHost(t, unmanaged())
	work(t, ctx, client, *host.InfoFromHost(h))
	eventually(t, shows(1), "a live connection is not in the metrics")
	require.Positive(t, series(t, reg, "limit", map[string]string{"scope": "system", "resource": "conns"}))
	require.NoError(t, client.Close())
	eventually(t, shows(0), "a closed connection is still in the metrics")
}

func TestHostsThatShareAManagerCloseItTogether(t *testing.T) {
	ctx := onHosts(t)
	m := newManager(t, nil)
	var handles []*rcmgr.SharedManager
	var hosts []host.Host
	for range 3 {
		handles = append(handles, m.Share())
		hosts = append(hosts, newServer(t, handles[len(handles)-1], roads[0]))
	}
	meet := func(a, b host.Host) { work(t, ctx, a, *host.InfoFromHost(b)) }
	meet(hosts[0], hosts[1])
	meet(hosts[2], hosts[1])

	require.NoError(t, hosts[2].Close())
	requireClosed(t, handles[2])
	require.NoError(t, tryOpen(handles[0]))
	require.NoError(t, pingOnce(ctx, hosts[0], hosts[1].ID()))
	require.NoError(t, hosts[0].Network().ClosePeer(hosts[1].ID()))
	requireNothingHeld(t, m)
	meet(hosts[1], hosts[0])

	require.NoError(t, hosts[1].Close())
	requireClosed(t, handles[1])
	require.NoError(t, tryOpen(m))
	require.NoError(t, hosts[0].Close())
	requireClosed(t, m)
	requireNothingHeld(t, m)
}

func TestHostsThatFailToStartCloseTheirOwnHandleOnly(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { taken.Close() })
	takenAddr := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", taken.Addr().(*net.TCPAddr).Port)
	cases := map[string]struct {
		options []libp2p.Option
		closes  bool // go-libp2p closes the handle; where not, its owner must
	}{
		"contradictory options": {[]libp2p.Option{libp2p.EnableAutoRelayWithStaticRelays(nil), libp2p.DisableRelay()}, true},
		"an option fails":       {[]libp2p.Option{libp2p.ListenAddrStrings("nowhere")}, false},
		"the port is taken":     {[]libp2p.Option{libp2p.ListenAddrStrings(takenAddr)}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ctx := onHosts(t)
			m := newManager(t, nil)
			server := newServer(t, m.Share(), roads[0])
			handle := m.Share()
			_, err := libp2p.New(append(c.options, libp2p.ResourceManager(handle), libp2p.DisableMetrics())...)
			require.Error(t, err)
			if c.closes {
				requireClosed(t, handle)
			} else {
				require.NoError(t, tryOpen(handle))
			}
			require.NoError(t, handle.Close())
			requireClosed(t, handle)

			client := newHost(t, unmanaged())
			work(t, ctx, client, *host.InfoFromHost(server))
			require.NoError(t, server.Close())
			requireClosed(t, m)
			requireNothingHeld(t, m)
		})
	}
}

func TestHostsThatAreFullServeWhomTheAllowlistNames(t *testing.T) {
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

// fill takes connections and streams until the manager gives no more, and gives
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

// silence is an address, like another one, at which nobody answers until it is
// closed.
func silence(t *testing.T, r road, like multiaddr.Multiaddr) (peer.AddrInfo, io.Closer) {
	t.Helper()
	var port int
	var hangUp io.Closer
	if r.fd > 0 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		port, hangUp = l.Addr().(*net.TCPAddr).Port, l
	} else {
		l, err := net.ListenPacket("udp4", "127.0.0.1:0")
		require.NoError(t, err)
		port, hangUp = l.LocalAddr().(*net.UDPAddr).Port, l
	}
	t.Cleanup(func() { hangUp.Close() })
	return peer.AddrInfo{ID: newIdentity(t).id, Addrs: []multiaddr.Multiaddr{withPort(like, port)}}, hangUp
}

// withPort gives an address with another port.
func withPort(a multiaddr.Multiaddr, port int) multiaddr.Multiaddr {
	out := slices.Clone(a)
	for i, c := range out {
		if p := c.Protocol(); p.Code == multiaddr.P_TCP || p.Code == multiaddr.P_UDP {
			other, err := multiaddr.NewComponent(p.Name, fmt.Sprint(port))
			if err != nil {
				panic(err)
			}
			out[i] = *other
		}
	}
	return out
}

func TestHostsClosedInTheMiddleOfEverythingHoldNothing(t *testing.T) {
	overEveryRoad(t, func(t *testing.T, r road) {
		ctx := onHosts(t)
		w := newWitness(newManager(t, nil))
		victim := newServer(t, w, r)
		to := *host.InfoFromHost(victim)
		busy, stop := context.WithCancel(ctx)
		var all sync.WaitGroup
		for range 2 {
			client := newHost(t, unmanaged())
			require.NoError(t, client.Connect(ctx, to))
			all.Go(func() { // streams that are never closed
				for busy.Err() == nil {
					if _, err := openEcho(network.WithNoDial(busy, "test"), client, to.ID, echoProtocol, 1); err != nil {
						return
					}
				}
			})
			all.Go(func() { // connections of which each second one is closed at once
				for i := 0; busy.Err() == nil; i++ {
					c, err := dialRaw(busy, client, to)
					if err == nil && i%2 == 0 {
						c.Close()
					}
				}
			})
		}
		// The victim's own dials get no answer. One is cut short by its context,
		// the other by the host's end; go-libp2p's WebSocket heeds neither, and
		// waits until the far end hangs up. A host that is closed while its swarm
		// gathers addresses crashes in go-libp2p v0.51.0, so it dials raw.
		nobody, hangUp := silence(t, r, to.Addrs[0])
		short, cut := context.WithCancel(busy)
		for _, ctx := range []context.Context{short, busy} {
			all.Go(func() {
				_, err := dialRaw(ctx, victim, nobody)
				assert.Error(t, err)
			})
		}
		eventually(t, func() bool {
			return w.hasOpened(network.DirOutbound) == 2 && w.hasOpened(network.DirInbound) >= 10 &&
				w.Stat().System.NumStreamsInbound >= 10
		}, "the host does not get busy", w.Manager)

		cut()
		require.NoError(t, victim.Close())
		requireClosed(t, w)
		require.NoError(t, hangUp.Close())
		stop()
		all.Wait()
		if !within(time.Second, func() bool { return len(held(w.Manager)) == 0 }) {
			t.Logf("go-libp2p forgot %d connections", w.finishForgotten(t))
		}
		requireNothingHeld(t, w.Manager)
	})
}

func TestHostsLeaveNoGoroutineOfTheirManager(t *testing.T) {
	onHosts(t) // checks the end
	before := managersGoroutines()
	h := newServer(t, newManager(t, nil), roads[0])
	eventually(t, func() bool { return managersGoroutines() > before }, "a manager's goroutines are not seen")
	require.NoError(t, h.Close())
	eventually(t, func() bool { return managersGoroutines() == before }, "goroutines of a manager are left")
}
