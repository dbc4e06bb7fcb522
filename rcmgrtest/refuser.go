package rcmgrtest

import (
	"math"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/weir-p2p/rcmgr"
)

// Refuser is a manager without limits that refuses on command, to test how a program
// handles refusals. It is a real manager: a scope refuses, with the usual error, metrics
// and log, and what is open stays open. A command holds until the next one for the same
// scope; Admit ends all commands for the system scope. All methods are safe for
// concurrent use.
type Refuser struct{ *rcmgr.Manager }

// NewRefuser returns a Refuser that admits everything. It is closed when the test ends,
// if it has not been closed before.
func NewRefuser(t TB, opts ...rcmgr.Option) *Refuser {
	t.Helper()
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), opts...)
	if err != nil {
		t.Errorf("NewRefuser: %v", err)
		m, _ = rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	}
	t.Cleanup(func() { m.Close() })
	return &Refuser{m}
}

// Leave makes the system scope refuse a resource after n more of it: n more connections
// or streams in a direction, n more file descriptors (dir does not matter), or n more
// bytes of memory (at priorities that may fill a limit). With n 0 it refuses the next
// one. Other resources are not affected.
func (r *Refuser) Leave(n int64, what rcmgr.Resource, dir network.Direction) {
	r.ViewSystem(func(s network.ResourceScope) error {
		limited := s.(rcmgr.ResourceScopeLimiter)
		l, use := *limited.Limit().(*rcmgr.BaseLimit), s.Stat()
		inbound := dir == network.DirInbound
		switch {
		case what == rcmgr.ResourceMemory:
			l.Memory = use.Memory + n
		case what == rcmgr.ResourceFD:
			l.FD = use.NumFD + int(n)
		case what == rcmgr.ResourceConnection && inbound:
			l.ConnsInbound = use.NumConnsInbound + int(n)
		case what == rcmgr.ResourceConnection:
			l.ConnsOutbound = use.NumConnsOutbound + int(n)
		case inbound:
			l.StreamsInbound = use.NumStreamsInbound + int(n)
		default:
			l.StreamsOutbound = use.NumStreamsOutbound + int(n)
		}
		limited.SetLimit(&l)
		return nil
	})
}

// Admit ends all commands that Leave has given.
func (r *Refuser) Admit() {
	r.ViewSystem(func(s network.ResourceScope) error { return set(s, everything) })
}

// RefusePeer refuses connections to and from a peer, and streams with it.
func (r *Refuser) RefusePeer(p peer.ID) {
	r.ViewPeer(p, func(s network.PeerScope) error { return set(s, rcmgr.BaseLimit{}) })
}

// AdmitPeer ends RefusePeer.
func (r *Refuser) AdmitPeer(p peer.ID) {
	r.ViewPeer(p, func(s network.PeerScope) error { return set(s, everything) })
}

// RefuseProtocol refuses to attach streams to a protocol.
func (r *Refuser) RefuseProtocol(id protocol.ID) {
	r.ViewProtocol(id, func(s network.ProtocolScope) error { return set(s, rcmgr.BaseLimit{}) })
}

// AdmitProtocol ends RefuseProtocol.
func (r *Refuser) AdmitProtocol(id protocol.ID) {
	r.ViewProtocol(id, func(s network.ProtocolScope) error { return set(s, everything) })
}

// RefuseService refuses to attach streams to a service.
func (r *Refuser) RefuseService(name string) {
	r.ViewService(name, func(s network.ServiceScope) error { return set(s, rcmgr.BaseLimit{}) })
}

// AdmitService ends RefuseService.
func (r *Refuser) AdmitService(name string) {
	r.ViewService(name, func(s network.ServiceScope) error { return set(s, everything) })
}

var everything = rcmgr.BaseLimit{
	Streams: math.MaxInt, StreamsInbound: math.MaxInt, StreamsOutbound: math.MaxInt,
	Conns: math.MaxInt, ConnsInbound: math.MaxInt, ConnsOutbound: math.MaxInt,
	FD: math.MaxInt, Memory: math.MaxInt64,
}

func set(s network.ResourceScope, l rcmgr.BaseLimit) error {
	s.(rcmgr.ResourceScopeLimiter).SetLimit(&l)
	return nil
}
