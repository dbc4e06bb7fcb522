package main

// A thin layer over the victim's manager that notes what it refuses to the
// friend. The friend itself only sees a reset stream or a closed connection,
// and cannot tell a refusal from a machine that is short of breath. It also
// knows which connections the host has not closed in the end.

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// observer hands the streams of everybody else through untouched.
type observer struct {
	network.ResourceManager
	friend   peer.ID
	friendIP net.IP
	shared   bool // attackers have the friend's address too

	mu    sync.Mutex
	notes []string
	open  map[network.ConnManagementScope]struct{} // connections that are not done
}

func newObserver(m network.ResourceManager, where places, friend peer.ID) *observer {
	return &observer{ResourceManager: m, friend: friend, friendIP: where.friend, shared: where.shared,
		open: map[network.ConnManagementScope]struct{}{}}
}

// Unwrap gives the manager that is observed, for those who look for more than
// network.ResourceManager in it.
func (o *observer) Unwrap() network.ResourceManager { return o.ResourceManager }

// refusals gives what was refused to the friend, in order.
func (o *observer) refusals() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.notes...)
}

// note keeps err if it refuses something: a scope that is closed because its
// connection has gone meanwhile refuses nobody.
func (o *observer) note(what string, err error) error {
	if err != nil && !errors.Is(err, network.ErrResourceScopeClosed) {
		o.mu.Lock()
		o.notes = append(o.notes, fmt.Sprintf("%s: %v", what, err))
		o.mu.Unlock()
	}
	return err
}

func (o *observer) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	s, err := o.ResourceManager.OpenConnection(dir, usefd, endpoint)
	ip, ipErr := manet.ToIP(endpoint)
	fromFriend := ipErr == nil && ip.Equal(o.friendIP)
	if err != nil {
		if fromFriend && !o.shared {
			o.note("open connection", err)
		}
		return nil, err
	}
	o.mu.Lock()
	o.open[s] = struct{}{}
	o.mu.Unlock()
	return &observedConn{ConnManagementScope: s, o: o}, nil
}

// closeForgotten closes the connections that the host has not, and tells how
// many. go-libp2p v0.51.0 drops a connection that its peer closes right after
// the handshake without closing its scope; that must not be taken for a
// mistake of the manager.
func (o *observer) closeForgotten() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.open)
	for s := range o.open {
		s.Done()
	}
	clear(o.open)
	return n
}

func (o *observer) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := o.ResourceManager.OpenStream(p, dir)
	if p != o.friend {
		return s, err
	}
	if err != nil {
		return nil, o.note(fmt.Sprintf("open %v stream", dir), err)
	}
	return &observedStream{StreamManagementScope: s, o: o}, nil
}

// reserve notes a refusal of memory that the friend cannot do without. Lower
// priorities ask for larger windows, and go on without.
func (o *observer) reserve(s network.ResourceScope, size int, prio uint8) error {
	err := s.ReserveMemory(size, prio)
	if prio == network.ReservationPriorityAlways {
		o.note(fmt.Sprintf("reserve %d bytes", size), err)
	}
	return err
}

func (o *observer) span(s network.ResourceScope) (network.ResourceScopeSpan, error) {
	span, err := s.BeginSpan()
	if err != nil {
		return nil, o.note("begin span", err)
	}
	return &observedSpan{ResourceScopeSpan: span, o: o}, nil
}

// observedConn is a connection, which may prove to be the friend's.
type observedConn struct {
	network.ConnManagementScope
	o *observer
}

func (c *observedConn) Done() {
	c.ConnManagementScope.Done()
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	delete(c.o.open, c.ConnManagementScope)
}

func (c *observedConn) SetPeer(p peer.ID) error {
	err := c.ConnManagementScope.SetPeer(p)
	if p == c.o.friend {
		c.o.note("set peer", err)
	}
	return err
}

func (c *observedConn) PeerScope() network.PeerScope {
	s := c.ConnManagementScope.PeerScope()
	if s == nil || s.Peer() != c.o.friend {
		return s
	}
	return &observedPeer{PeerScope: s, o: c.o}
}

// observedPeer is the friend's own scope: stream muxers take their windows
// from it.
type observedPeer struct {
	network.PeerScope
	o *observer
}

func (p *observedPeer) ReserveMemory(size int, prio uint8) error {
	return p.o.reserve(p.PeerScope, size, prio)
}

func (p *observedPeer) BeginSpan() (network.ResourceScopeSpan, error) { return p.o.span(p.PeerScope) }

type observedSpan struct {
	network.ResourceScopeSpan
	o *observer
}

func (s *observedSpan) ReserveMemory(size int, prio uint8) error {
	return s.o.reserve(s.ResourceScopeSpan, size, prio)
}

func (s *observedSpan) BeginSpan() (network.ResourceScopeSpan, error) {
	return s.o.span(s.ResourceScopeSpan)
}

// observedStream is a stream of the friend.
type observedStream struct {
	network.StreamManagementScope
	o *observer
}

func (s *observedStream) SetProtocol(p protocol.ID) error {
	return s.o.note("set protocol "+string(p), s.StreamManagementScope.SetProtocol(p))
}

func (s *observedStream) SetService(name string) error {
	return s.o.note("set service "+name, s.StreamManagementScope.SetService(name))
}

func (s *observedStream) ReserveMemory(size int, prio uint8) error {
	return s.o.reserve(s.StreamManagementScope, size, prio)
}

func (s *observedStream) BeginSpan() (network.ResourceScopeSpan, error) {
	return s.o.span(s.StreamManagementScope)
}
