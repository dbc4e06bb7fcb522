// Package fakehost is a host without a network, for tests and simulations: connections and
// streams that are only scopes of a resource manager, and that can be closed as those of a real
// host can.
package fakehost

import (
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
)

// Host has connections. All methods are safe for concurrent use.
type Host struct {
	RM  network.ResourceManager
	CM  connmgr.ConnManager // may be nil
	Now func() time.Time    // nil: time.Now
	// Letting, if it is not nil, takes the place of closing for every connection that the host lets
	// go and that has no Letting of its own. Set it before there are connections.
	Letting func(*Conn) error

	mu      sync.Mutex
	conns   []*Conn
	shaking []*Handshake
}

// Network returns the host's connections. No other method of the result may be called than Conns.
func (h *Host) Network() network.Network { return swarm{h: h} }

// ConnManager returns CM.
func (h *Host) ConnManager() connmgr.ConnManager { return h.CM }

type swarm struct {
	network.Network
	h *Host
}

// Conns returns all connections, in an order that depends only on what was done before.
func (s swarm) Conns() []network.Conn {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	list := make([]network.Conn, len(s.h.conns))
	for i, c := range s.h.conns {
		list[i] = c
	}
	return list
}

func (h *Host) now() time.Time {
	if h.Now == nil {
		return time.Now()
	}
	return h.Now()
}

// Connect opens a connection of a peer, and shakes hands at once.
func (h *Host) Connect(p peer.ID, dir network.Direction, from multiaddr.Multiaddr) (*Conn, error) {
	scope, err := h.RM.OpenConnection(dir, true, from)
	if err != nil {
		return nil, err
	}
	return h.Finish(scope, p, dir, from)
}

// Finish ends the handshake of a connection that has a scope, which it closes if that fails.
func (h *Host) Finish(scope network.ConnManagementScope, p peer.ID, dir network.Direction, from multiaddr.Multiaddr) (*Conn, error) {
	if err := scope.SetPeer(p); err != nil {
		scope.Done()
		return nil, err
	}
	c := &Conn{h: h, scope: scope, peer: p, from: from}
	c.stat.Direction, c.stat.Opened = dir, h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	c.at = len(h.conns)
	h.conns = append(h.conns, c)
	return c, nil
}

// Shake begins the handshake of an inbound connection, which goes on until End.
func (h *Host) Shake(from multiaddr.Multiaddr) (*Handshake, error) {
	scope, err := h.RM.OpenConnection(network.DirInbound, true, from)
	if err != nil {
		return nil, err
	}
	s := &Handshake{h: h, scope: scope, from: from, began: h.now()}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shaking = append(h.shaking, s)
	return s, nil
}

// Handshakes returns those that go on.
func (h *Host) Handshakes() []*Handshake {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.shaking)
}

// Handshake is a connection whose handshake goes on.
type Handshake struct {
	// Ended, if it is not nil, is called when the host ends the handshake.
	Ended func()
	// Letting, if it is not nil, takes the place of End when the host ends the handshake.
	Letting func() bool

	h     *Host
	scope network.ConnManagementScope
	from  multiaddr.Multiaddr
	began time.Time
}

func (s *Handshake) Scope() network.ConnManagementScope   { return s.scope }
func (s *Handshake) RemoteMultiaddr() multiaddr.Multiaddr { return s.from }
func (s *Handshake) Began() time.Time                     { return s.began }

// End closes the connection, as its host does.
func (s *Handshake) End() bool {
	if s.Letting != nil {
		return s.Letting()
	}
	if !s.over() {
		return false
	}
	s.scope.Done()
	if s.Ended != nil {
		s.Ended()
	}
	return true
}

// Finish makes it the connection of a peer. It returns network.ErrReset if the host has ended it.
func (s *Handshake) Finish(p peer.ID) (*Conn, error) {
	if !s.over() {
		return nil, network.ErrReset
	}
	return s.h.Finish(s.scope, p, network.DirInbound, s.from)
}

// Close closes the connection, as its peer does.
func (s *Handshake) Close() {
	if s.over() {
		s.scope.Done()
	}
}

// over removes it from those that go on, and reports whether it was one of them.
func (s *Handshake) over() bool {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	at := slices.Index(s.h.shaking, s)
	if at < 0 {
		return false
	}
	s.h.shaking = slices.Delete(s.h.shaking, at, at+1)
	return true
}

// Len returns how many connections there are.
func (h *Host) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

// Conn is a connection.
type Conn struct {
	network.Conn // nil: only the methods below may be called
	// Closed is called once, when the connection was closed. Set it before the connection can be
	// closed by others.
	Closed func(byHost bool)
	// Letting, if it is not nil, takes the place of closing when the host lets the connection go.
	Letting func() error

	h       *Host
	scope   network.ConnManagementScope
	peer    peer.ID
	from    multiaddr.Multiaddr
	stat    network.ConnStats // guarded by the host's lock, as all below
	at      int
	closed  bool
	streams []*Stream
}

func (c *Conn) Scope() network.ConnScope             { return c.scope }
func (c *Conn) RemotePeer() peer.ID                  { return c.peer }
func (c *Conn) RemoteMultiaddr() multiaddr.Multiaddr { return c.from }

func (c *Conn) Stat() network.ConnStats {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	s := c.stat
	s.NumStreams = len(c.streams)
	return s
}

func (c *Conn) IsClosed() bool {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	return c.closed
}

func (c *Conn) GetStreams() []network.Stream {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	list := make([]network.Stream, len(c.streams))
	for i, s := range c.streams {
		list[i] = s
	}
	return list
}

// Close closes the connection, as its peer does.
func (c *Conn) Close() error { c.close(false); return nil }

// CloseWithError closes the connection, as its host does.
func (c *Conn) CloseWithError(network.ConnErrorCode) error {
	if c.Letting != nil {
		return c.Letting()
	}
	if c.h.Letting != nil {
		return c.h.Letting(c)
	}
	c.close(true)
	return nil
}

func (c *Conn) close(byHost bool) {
	c.h.mu.Lock()
	was := c.closed
	streams := c.streams
	c.closed, c.streams = true, nil
	if !was {
		last := len(c.h.conns) - 1
		c.h.conns[c.at] = c.h.conns[last]
		c.h.conns[c.at].at = c.at
		c.h.conns = c.h.conns[:last]
	}
	c.h.mu.Unlock()
	if was {
		return
	}
	for _, s := range streams {
		s.end(byHost)
	}
	c.scope.Done()
	if c.Closed != nil {
		c.Closed(byHost)
	}
}

// Open opens a stream.
func (c *Conn) Open(dir network.Direction) (*Stream, error) {
	scope, err := c.h.RM.OpenStream(c.peer, dir)
	if err != nil {
		return nil, err
	}
	s := &Stream{c: c, scope: scope}
	s.stat.Direction, s.stat.Opened = dir, c.h.now()
	c.h.mu.Lock()
	closed := c.closed
	if !closed {
		c.streams = append(c.streams, s)
	}
	c.h.mu.Unlock()
	if closed {
		scope.Done()
		return nil, network.ErrReset
	}
	return s, nil
}

// Stream is a stream.
type Stream struct {
	network.Stream // nil: only the methods below may be called
	// Closed is as that of a Conn. It is also called when the connection was closed.
	Closed func(byHost bool)

	c     *Conn
	scope network.StreamManagementScope
	stat  network.Stats
	proto protocol.ID
	done  bool
}

func (s *Stream) Scope() network.StreamScope { return s.scope }
func (s *Stream) Stat() network.Stats        { return s.stat }
func (s *Stream) Conn() network.Conn         { return s.c }

func (s *Stream) Protocol() protocol.ID {
	s.c.h.mu.Lock()
	defer s.c.h.mu.Unlock()
	return s.proto
}

// SetProtocol ends the negotiation of the stream.
func (s *Stream) SetProtocol(p protocol.ID) error {
	if err := s.scope.SetProtocol(p); err != nil {
		return err
	}
	s.c.h.mu.Lock()
	defer s.c.h.mu.Unlock()
	s.proto = p
	return nil
}

// Reset ends the stream, as its peer does.
func (s *Stream) Reset() error { s.reset(false); return nil }

// ResetWithError ends the stream, as its host does.
func (s *Stream) ResetWithError(network.StreamErrorCode) error { s.reset(true); return nil }

func (s *Stream) reset(byHost bool) {
	h := s.c.h
	h.mu.Lock()
	for i, other := range s.c.streams {
		if other == s {
			s.c.streams = append(s.c.streams[:i:i], s.c.streams[i+1:]...)
			break
		}
	}
	h.mu.Unlock()
	s.end(byHost)
}

func (s *Stream) end(byHost bool) {
	h := s.c.h
	h.mu.Lock()
	was := s.done
	s.done = true
	h.mu.Unlock()
	if was {
		return
	}
	s.scope.Done()
	if s.Closed != nil {
		s.Closed(byHost)
	}
}

// ConnManager values and protects peers as its caller sets them.
type ConnManager struct {
	connmgr.NullConnMgr
	mu        sync.Mutex
	values    map[peer.ID]int
	protected map[peer.ID]bool
}

// Value sets the value of a peer.
func (m *ConnManager) Value(p peer.ID, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values == nil {
		m.values = make(map[peer.ID]int)
	}
	m.values[p] = n
}

// Protect protects a peer.
func (m *ConnManager) Protect(p peer.ID, _ string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.protected == nil {
		m.protected = make(map[peer.ID]bool)
	}
	m.protected[p] = true
}

// IsProtected reports whether a peer is protected.
func (m *ConnManager) IsProtected(p peer.ID, _ string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.protected[p]
}

// GetTagInfo returns the value of a peer.
func (m *ConnManager) GetTagInfo(p peer.ID) *connmgr.TagInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &connmgr.TagInfo{Value: m.values[p]}
}
