package main

// A thin layer over the victim's manager that counts refusals in the same way for every
// manager, and keeps those to the friend. The friend itself sees only a reset stream or a
// closed connection, and cannot tell a refusal from a machine that is too slow. The layer
// also has the connections that the host has not closed in the end.

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/weir-p2p/rcmgr"
)

// A call is a call that a manager may refuse.
type call uint8

const (
	callConn call = iota
	callPeer
	callStream
	callProtocol
	callService
	callMemory
	numCalls
)

func (c call) String() string {
	return [numCalls]string{"open connection", "set peer", "open stream", "set protocol", "set service", "reserve memory"}[c]
}

// callCounts has how often each call was granted and refused.
type callCounts struct{ granted, refused [numCalls]uint64 }

func (c callCounts) totalRefused() (n uint64) {
	for _, refused := range c.refused {
		n += refused
	}
	return n
}

type observer struct {
	network.ResourceManager
	friends  []peer.ID // the friend, and its relay if there is one
	friendIP net.IP
	shared   bool // attackers have the friend's address too

	mu    sync.Mutex
	calls callCounts
	gates map[string]uint64 // refusals by gate, see gateOf
	notes []string
	open  map[network.ConnManagementScope]struct{} // connections that are not done
}

func newObserver(m network.ResourceManager, where places, friends ...peer.ID) *observer {
	return &observer{ResourceManager: m, friends: friends, friendIP: where.friend, shared: where.shared,
		gates: map[string]uint64{}, open: map[network.ConnManagementScope]struct{}{}}
}

// Unwrap returns the manager that is observed, for callers that need more than
// network.ResourceManager.
func (o *observer) Unwrap() network.ResourceManager { return o.ResourceManager }

// refusals returns the refusals to the friend, in order.
func (o *observer) refusals() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.notes...)
}

func (o *observer) isFriend(p peer.ID) bool { return slices.Contains(o.friends, p) }

// counts returns how often each call was granted and refused so far.
func (o *observer) counts() callCounts {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls
}

// count counts a call, and keeps err if it refuses something that the friend needs. A
// call on a scope that is closed because its connection has ended is not refused.
func (o *observer) count(c call, friend bool, detail any, err error) error {
	if errors.Is(err, network.ErrResourceScopeClosed) {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.calls.granted[c]++
		return nil
	}
	o.calls.refused[c]++
	if gate := gateOf(err); gate != "" {
		o.gates[gate]++
	}
	if friend {
		o.notes = append(o.notes, fmt.Sprintf("%v %v: %v", c, detail, err))
	}
	return err
}

// gateOf returns the gate that refused a connection, "" if none did: the scope
// "subnet:127.2.0.0/16" or "rate:127.3.0.0/16" of our manager, or only the kind for
// go-libp2p's, whose gates return a plain text.
func gateOf(err error) string {
	var refusal *rcmgr.LimitError
	switch {
	case errors.As(err, &refusal):
		if k := refusal.Kind(); k == rcmgr.KindSubnet || k == rcmgr.KindRate {
			return refusal.Scope()
		}
	case strings.Contains(err.Error(), "per ip limit"):
		return rcmgr.KindSubnet.String()
	case strings.Contains(err.Error(), "rate limit"):
		return rcmgr.KindRate.String()
	}
	return ""
}

// gateRefusals returns how often each gate has refused so far.
func (o *observer) gateRefusals() map[string]uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.gates)
}

func (o *observer) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	s, err := o.ResourceManager.OpenConnection(dir, usefd, endpoint)
	ip, ipErr := manet.ToIP(endpoint)
	fromFriend := ipErr == nil && ip.Equal(o.friendIP) && !o.shared
	if o.count(callConn, fromFriend, dir, err) != nil {
		return nil, err
	}
	o.mu.Lock()
	o.open[s] = struct{}{}
	o.mu.Unlock()
	return &observedConn{ConnManagementScope: s, o: o}, nil
}

// closeForgotten closes the connections that the host has not closed, and returns how
// many. go-libp2p v0.51.0 drops a connection that its peer closes right after the
// handshake without closing its scope; that is not the manager's mistake.
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
	if o.count(callStream, o.isFriend(p), dir, err) != nil {
		return nil, err
	}
	return &observedStream{StreamManagementScope: s, o: o, friend: o.isFriend(p)}, nil
}

// reserve keeps a refusal of memory only if the friend cannot do without that memory.
// Requests at lower priorities are for larger windows, and the friend goes on without
// them.
func (o *observer) reserve(s network.ResourceScope, friend bool, size int, prio uint8) error {
	return o.count(callMemory, friend && prio == network.ReservationPriorityAlways, size, s.ReserveMemory(size, prio))
}

func (o *observer) span(s network.ResourceScope, friend bool) (network.ResourceScopeSpan, error) {
	span, err := s.BeginSpan()
	if o.count(callMemory, friend, "in a span", err) != nil {
		return nil, err
	}
	return &observedSpan{ResourceScopeSpan: span, o: o, friend: friend}, nil
}

// observedConn is a connection. QUIC reserves its windows there.
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
	return c.o.count(callPeer, c.o.isFriend(p), p, c.ConnManagementScope.SetPeer(p))
}

func (c *observedConn) PeerScope() network.PeerScope {
	s := c.ConnManagementScope.PeerScope()
	if s == nil {
		return nil
	}
	return &observedPeer{PeerScope: s, o: c.o}
}

func (c *observedConn) ReserveMemory(size int, prio uint8) error {
	return c.o.reserve(c.ConnManagementScope, false, size, prio)
}

func (c *observedConn) BeginSpan() (network.ResourceScopeSpan, error) {
	return c.o.span(c.ConnManagementScope, false)
}

// observedPeer is a peer's own scope. Stream muxers reserve their windows there.
type observedPeer struct {
	network.PeerScope
	o *observer
}

func (p *observedPeer) friend() bool { return p.o.isFriend(p.Peer()) }

func (p *observedPeer) ReserveMemory(size int, prio uint8) error {
	return p.o.reserve(p.PeerScope, p.friend(), size, prio)
}

func (p *observedPeer) BeginSpan() (network.ResourceScopeSpan, error) {
	return p.o.span(p.PeerScope, p.friend())
}

type observedSpan struct {
	network.ResourceScopeSpan
	o      *observer
	friend bool
}

func (s *observedSpan) ReserveMemory(size int, prio uint8) error {
	return s.o.reserve(s.ResourceScopeSpan, s.friend, size, prio)
}

func (s *observedSpan) BeginSpan() (network.ResourceScopeSpan, error) {
	return s.o.span(s.ResourceScopeSpan, s.friend)
}

type observedStream struct {
	network.StreamManagementScope
	o      *observer
	friend bool
}

func (s *observedStream) SetProtocol(p protocol.ID) error {
	return s.o.count(callProtocol, s.friend, p, s.StreamManagementScope.SetProtocol(p))
}

func (s *observedStream) SetService(name string) error {
	return s.o.count(callService, s.friend, name, s.StreamManagementScope.SetService(name))
}

func (s *observedStream) ReserveMemory(size int, prio uint8) error {
	return s.o.reserve(s.StreamManagementScope, s.friend, size, prio)
}

func (s *observedStream) BeginSpan() (network.ResourceScopeSpan, error) {
	return s.o.span(s.StreamManagementScope, s.friend)
}
