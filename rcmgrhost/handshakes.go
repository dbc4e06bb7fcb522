package rcmgrhost

// Ending handshakes. go-libp2p hands each raw connection, with its scope, from a gated listener to
// the upgrader, and the upgraded connection from there to the swarm. A wrapper around the
// upgrader sees both ends, and knows which connections are between them.

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/fx"

	"github.com/weir-p2p/rcmgr"
)

// RoomForHandshakes returns an option that lets a host's manager end handshakes, too, to make room
// for newcomers. Without it, rcmgr.WithRoom makes no room in the transient scope's limits on
// connections and descriptors, because a handshake has no network.Conn that could be closed.
//
//	host, err := libp2p.New(
//		rcmgrhost.Manager(nil, rcmgr.WithRoom(rcmgr.RoomConfig{})),
//		rcmgrhost.RoomForHandshakes(),
//	)
//
// It serves inbound connections of all transports that use the host's transport.Upgrader: TCP,
// WebSocket, both on a shared port, and connections by way of a relay. QUIC, WebTransport and
// WebRTC shake hands inside of their transports, where nothing can be ended from outside.
//
// The option may stand anywhere among the options of libp2p.New, and serves any number of hosts.
// It needs a manager of package rcmgr, from an option of this package or from
// libp2p.ResourceManager, and does nothing if that has no rcmgr.WithRoom. It decorates
// transport.Upgrader, which a host allows once: libp2p.New returns an error if the option is
// given twice. The scope of each inbound connection is wrapped, and its method
// Unwrap() network.ResourceScope returns the scope of the manager.
func RoomForHandshakes() libp2p.Option { return libp2p.WithFxOption(fx.Decorate(watched)) }

// watched returns an upgrader by which the host's manager can end handshakes.
func watched(u transport.Upgrader, rm network.ResourceManager, host fx.Lifecycle) (transport.Upgrader, error) {
	m, ok := rcmgr.ManagerOf(rm)
	if !ok {
		return nil, errors.New("rcmgrhost: RoomForHandshakes needs a manager of package rcmgr: " +
			"give rcmgrhost.Manager to libp2p.New, too")
	}
	var s shaking
	detach, on := m.AttachHandshakes(s.each)
	if !on {
		return u, nil
	}
	host.Append(fx.StopHook(detach))
	return &upgrader{u, &s}, nil
}

// shaking is the connections that are being upgraded. There are no more of them than open scopes
// of connections.
type shaking struct {
	mu          sync.Mutex
	first, last *handshake // from the oldest to the youngest
}

// handshake is the scope of a connection that is being upgraded, or that has been.
type handshake struct {
	network.ConnManagementScope
	of    *shaking
	from  multiaddr.Multiaddr
	began time.Time

	// The lock of shaking guards these. Once the handshake is over, raw is nil, and so are the
	// others.
	raw            manet.Conn
	before, behind *handshake
}

// begin adds a connection that is to be upgraded.
func (s *shaking) begin(raw manet.Conn, scope network.ConnManagementScope) *handshake {
	h := &handshake{ConnManagementScope: scope, of: s, from: raw.RemoteMultiaddr(), began: time.Now(), raw: raw}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.before = s.last; s.last == nil {
		s.first = h
	} else {
		s.last.behind = h
	}
	s.last = h
	return h
}

// over removes a handshake that is over, and returns its connection, or nil if it was over before.
func (h *handshake) over() (raw manet.Conn) {
	s := h.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if raw = h.raw; raw == nil {
		return nil
	}
	if h.before == nil {
		s.first = h.behind
	} else {
		h.before.behind = h.behind
	}
	if h.behind == nil {
		s.last = h.before
	} else {
		h.behind.before = h.before
	}
	h.raw, h.before, h.behind = nil, nil, nil
	return raw
}

// each calls yield with the handshakes that go on, the oldest first, until it returns false. No
// lock is held then.
func (s *shaking) each(yield func(rcmgr.Handshake) bool) {
	var list []*handshake
	s.mu.Lock()
	for h := s.first; h != nil; h = h.behind {
		list = append(list, h)
	}
	s.mu.Unlock()
	for _, h := range list {
		if !yield(h) {
			return
		}
	}
}

// Done ends the scope, and with it the handshake.
func (h *handshake) Done() {
	h.over()
	h.ConnManagementScope.Done()
}

// Unwrap returns the scope of the manager.
func (h *handshake) Unwrap() network.ResourceScope { return h.ConnManagementScope }

// Scope, RemoteMultiaddr, Began and End are those of rcmgr.Handshake.
func (h *handshake) Scope() network.ConnManagementScope   { return h.ConnManagementScope }
func (h *handshake) RemoteMultiaddr() multiaddr.Multiaddr { return h.from }
func (h *handshake) Began() time.Time                     { return h.began }

func (h *handshake) End() bool {
	raw := h.over()
	if raw == nil {
		return false
	}
	_ = raw.Close()
	// The upgrader does so, too, unless the connection is upgraded and waits to be accepted.
	h.ConnManagementScope.Done()
	return true
}

// upgrader is an upgrader that knows the handshakes that go on.
type upgrader struct {
	transport.Upgrader
	of *shaking
}

func (u *upgrader) GateMaListener(l manet.Listener) transport.GatedMaListener {
	return &gated{u.Upgrader.GateMaListener(l), u.of}
}

func (u *upgrader) UpgradeListener(t transport.Transport, l manet.Listener) transport.Listener {
	return u.UpgradeGatedMaListener(t, u.GateMaListener(l))
}

func (u *upgrader) UpgradeGatedMaListener(t transport.Transport, l transport.GatedMaListener) transport.Listener {
	return &upgraded{u.Upgrader.UpgradeGatedMaListener(t, l)}
}

func (u *upgrader) Upgrade(ctx context.Context, t transport.Transport, raw manet.Conn, dir network.Direction, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	c, err := u.Upgrader.Upgrade(ctx, t, raw, dir, p, scope)
	if err == nil {
		isOver(scope)
	}
	return c, err
}

// isOver notes that a connection is upgraded, if it had a handshake.
func isOver(scope network.ConnScope) {
	if h, ok := scope.(*handshake); ok {
		h.over()
	}
}

// gated is a listener for raw connections.
type gated struct {
	transport.GatedMaListener
	of *shaking
}

func (l *gated) Accept() (manet.Conn, network.ConnManagementScope, error) {
	raw, scope, err := l.GatedMaListener.Accept()
	if err != nil || raw == nil || scope == nil {
		return raw, scope, err
	}
	return raw, l.of.begin(raw, scope), nil
}

// upgraded is a listener for upgraded connections.
type upgraded struct{ transport.Listener }

func (l *upgraded) Accept() (transport.CapableConn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		isOver(c.Scope())
	}
	return c, err
}
