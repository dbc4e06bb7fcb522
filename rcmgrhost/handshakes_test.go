package rcmgrhost_test

import (
	"context"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	relaypb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	relayproto "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	relayutil "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"
	"go.uber.org/fx"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/rcmgrhost"
	"github.com/weir-p2p/rcmgr/rcmgrtest"
)

// transientConns is the limit that attackers fill.
const transientConns = 16

// newShaken returns a host with room for so many handshakes, where room is made.
func newShaken(t *testing.T, opts ...libp2p.Option) (host.Host, *rcmgr.Manager) {
	t.Helper()
	limits := rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{ConnsInbound: transientConns}}.Build(rcmgr.InfiniteLimits)
	opts = append(opts, libp2p.DisableMetrics(),
		rcmgrhost.Manager(rcmgr.NewFixedLimiter(limits), rcmgr.WithRoom(rcmgr.RoomConfig{})))
	h, err := libp2p.New(opts...)
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	return h, managerOf(t, h)
}

// attacker holds a connection to a host, and sends the first bytes of a handshake at most.
func attacker(t *testing.T, of host.Host, says string) net.Conn {
	t.Helper()
	_, addr, err := manet.DialArgs(of.Addrs()[0])
	require.NoError(t, err)
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, says)
	require.NoError(t, err)
	return c
}

func shakingNow(m *rcmgr.Manager) int { return m.Stat().Transient.NumConnsInbound }

// fillWithHandshakes takes all of a host's handshakes, or all but the reserve where room is made.
func fillWithHandshakes(t *testing.T, h host.Host, m *rcmgr.Manager, says string) {
	t.Helper()
	for i := range transientConns {
		attacker(t, h, says)
		require.Eventually(t, func() bool { return shakingNow(m) >= min(i+1, transientConns-1) }, patience, time.Millisecond)
	}
}

func endedHandshakes(m *rcmgr.Manager) (n int) {
	for _, c := range m.Snapshot().Room.LetGo {
		n += int(c.Count)
	}
	return n
}

func comes(t *testing.T, to host.Host) error {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return h.Connect(ctx, peer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()})
}

func TestNewcomersAreRefusedWhileHandshakesThatNeverEndFillTheHost(t *testing.T) {
	onHosts(t)
	h, m := newShaken(t, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	fillWithHandshakes(t, h, m, "")
	require.Eventually(t, func() bool { return shakingNow(m) == transientConns }, patience, time.Millisecond)
	require.Error(t, comes(t, h))
	require.Empty(t, m.Snapshot().Room.LetGo)
}

func TestHandshakesThatNeverEndMakeWayForNewcomers(t *testing.T) {
	for name, of := range map[string]struct {
		addr, says string
		option     libp2p.Option
	}{
		"TCP":                       {addr: "/ip4/127.0.0.1/tcp/0"},
		"TCP, a part is said":       {addr: "/ip4/127.0.0.1/tcp/0", says: "\x13/multistream/1.0.0\n\x07/nois"},
		"WebSocket":                 {addr: "/ip4/127.0.0.1/tcp/0/ws"},
		"WebSocket, a part is said": {addr: "/ip4/127.0.0.1/tcp/0/ws", says: "GET / HTTP/1.1\r\nHost: "},
		"TCP on a shared port":      {addr: "/ip4/127.0.0.1/tcp/0", option: libp2p.ShareTCPListener()},
		"WebSocket on a shared port, a part is said": {addr: "/ip4/127.0.0.1/tcp/0/ws", says: "GET / HTTP/1.1\r\n", option: libp2p.ShareTCPListener()},
	} {
		t.Run(name, func(t *testing.T) {
			onHosts(t)
			opts := []libp2p.Option{rcmgrhost.RoomForHandshakes(), libp2p.ListenAddrStrings(of.addr)}
			if of.option != nil {
				opts = append(opts, of.option)
			}
			h, m := newShaken(t, opts...)
			fillWithHandshakes(t, h, m, of.says)
			for i := range 8 {
				require.Eventually(t, func() bool {
					n := shakingNow(m) // and all attackers that have come have been seen
					return n < transientConns && n+endedHandshakes(m) == transientConns+i
				}, patience, time.Millisecond)
				require.NoError(t, comes(t, h), "at the first try")
				attacker(t, h, of.says)
			}
			require.Len(t, h.Network().Conns(), 8, "they stay")
			room := m.Snapshot().Room
			require.NotEmpty(t, room.LetGo)
			for _, c := range room.LetGo {
				require.Equal(t, []rcmgr.Kind{rcmgr.KindTransient, rcmgr.KindConn}, []rcmgr.Kind{c.Scope, c.What})
			}
			require.Empty(t, room.Faults)
			require.NoError(t, h.Close())
			rcmgrtest.RequireEmpty(t, m, patience)
		})
	}
}

// What was a handshake is not taken for one that goes on.
func TestConnectionsThatAreInUseAreNoHandshakes(t *testing.T) {
	onHosts(t)
	var s struct{ u transport.Upgrader }
	h, m := newShaken(t, rcmgrhost.RoomForHandshakes(), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.WithFxOption(fx.Invoke(func(u transport.Upgrader) { s.u = u })))
	require.NotNil(t, s.u)
	for range 3 {
		require.NoError(t, comes(t, h))
	}
	require.Eventually(t, func() bool { return len(h.Network().Conns()) == 3 }, patience, time.Millisecond)
	require.Zero(t, rcmgrhost.Shaking(s.u))
	attacker(t, h, "")
	require.Eventually(t, func() bool { return rcmgrhost.Shaking(s.u) == 1 }, patience, time.Millisecond)
	for _, c := range h.Network().Conns() {
		scope, ok := c.Scope().(interface{ Unwrap() network.ResourceScope })
		require.True(t, ok)
		require.Equal(t, c.Scope().Stat(), scope.Unwrap().Stat())
		require.NoError(t, (<-ping.Ping(t.Context(), h, c.RemotePeer())).Error)
		require.NoError(t, c.Close())
	}
	require.NoError(t, h.Close())
	require.Eventually(t, func() bool { return rcmgrhost.Shaking(s.u) == 0 }, patience, time.Millisecond)
	rcmgrtest.RequireEmpty(t, m, patience)
}

func TestHandshakesByWayOfARelayCanBeEnded(t *testing.T) {
	onHosts(t)
	relay, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(),
		libp2p.EnableRelayService(), libp2p.ForceReachabilityPublic(), libp2p.ResourceManager(&network.NullResourceManager{}))
	require.NoError(t, err)
	defer relay.Close()
	require.Eventually(t, func() bool { return slices.Contains(relay.Mux().Protocols(), relayproto.ProtoIDv2Hop) }, patience, time.Millisecond)
	h, m := newShaken(t, rcmgrhost.RoomForHandshakes(), libp2p.NoListenAddrs, libp2p.EnableRelay())
	at := peer.AddrInfo{ID: relay.ID(), Addrs: relay.Addrs()}
	require.NoError(t, h.Connect(t.Context(), at))
	_, err = circuit.Reserve(t.Context(), h, at)
	require.NoError(t, err)
	via := multiaddr.StringCast("/p2p/" + relay.ID().String() + "/p2p-circuit")
	require.NoError(t, h.Network().Listen(via))

	guest := newHost(t, libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	require.NoError(t, guest.Connect(t.Context(), at))
	ends := make([]network.Stream, transientConns+8)
	for i := range ends { // they connect, and shake no hands
		s, err := guest.NewStream(t.Context(), relay.ID(), relayproto.ProtoIDv2Hop)
		require.NoError(t, err)
		defer s.Reset()
		kind := relaypb.HopMessage_CONNECT
		require.NoError(t, relayutil.NewDelimitedWriter(s).WriteMsg(&relaypb.HopMessage{Type: &kind, Peer: &relaypb.Peer{Id: []byte(h.ID())}}))
		ends[i] = s
	}
	require.Eventually(t, func() bool { return endedHandshakes(m) > 0 }, patience, time.Millisecond)
	require.Empty(t, m.Snapshot().Room.Faults)
}

func TestRoomForHandshakesNeedsAManagerAndIsGivenOnce(t *testing.T) {
	onHosts(t)
	_, err := libp2p.New(rcmgrhost.RoomForHandshakes(), libp2p.NoListenAddrs, libp2p.DisableMetrics())
	require.ErrorContains(t, err, "rcmgrhost: RoomForHandshakes needs a manager of package rcmgr: give rcmgrhost.Manager to libp2p.New, too")
	_, err = libp2p.New(rcmgrhost.Manager(nil), rcmgrhost.RoomForHandshakes(), rcmgrhost.RoomForHandshakes(), libp2p.NoListenAddrs, libp2p.DisableMetrics())
	require.ErrorContains(t, err, "already decorated")

	host, err := libp2p.New(
		rcmgrhost.Manager(nil, rcmgr.WithRoom(rcmgr.RoomConfig{})),
		rcmgrhost.RoomForHandshakes(),
	)
	require.NoError(t, err, "all transports of a host can be made with it")
	require.NoError(t, host.Close())

	m, err := rcmgr.New(nil, rcmgr.WithRoom(rcmgr.RoomConfig{}))
	require.NoError(t, err)
	for _, on := range []bool{false, true} {
		manager := rcmgrhost.Manager(nil)
		if on {
			manager = libp2p.ResourceManager(m.NewHandle())
		}
		var u transport.Upgrader
		h, err := libp2p.New(rcmgrhost.RoomForHandshakes(), manager, libp2p.NoListenAddrs, libp2p.DisableMetrics(),
			libp2p.WithFxOption(fx.Invoke(func(got transport.Upgrader) { u = got })))
		require.NoError(t, err)
		require.Equal(t, on, rcmgrhost.Shaking(u) == 0, "without WithRoom the upgrader is that of go-libp2p itself")
		require.NoError(t, h.Close())
	}
	m.Close()
}
