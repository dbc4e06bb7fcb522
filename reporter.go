package rcmgr

// What programs that were written for go-libp2p's own resource manager hand in
// to hear of what happens.

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// MetricsReporter is told of every decision, if it is given to WithMetrics. It
// is called by whoever asked for the decision, from many goroutines at once,
// after the decision and without any lock of the manager; the one who asked
// waits for it. One that panics is logged and not called again: the decision
// stands, and whoever asked gets it. For Prometheus there is no need of one: see
// MustRegisterWith.
type MetricsReporter interface {
	// AllowConn tells of a connection that was opened, and whether it has a
	// file descriptor.
	AllowConn(dir network.Direction, usefd bool)
	// BlockConn tells of a connection that was refused.
	BlockConn(dir network.Direction, usefd bool)

	// AllowStream tells of a stream that was opened with a peer.
	AllowStream(p peer.ID, dir network.Direction)
	// BlockStream tells of a stream that was refused.
	BlockStream(p peer.ID, dir network.Direction)

	// AllowPeer tells of a connection that got its peer.
	AllowPeer(p peer.ID)
	// BlockPeer tells of a connection that was refused when it got its peer: by
	// the peer's scope or, if the allowlist had meant somebody else, by a gate or
	// the standard scopes.
	BlockPeer(p peer.ID)

	// AllowProtocol tells of a stream that got its protocol.
	AllowProtocol(proto protocol.ID)
	// BlockProtocol tells of a stream that the protocol's scope had no room for.
	BlockProtocol(proto protocol.ID)
	// BlockProtocolPeer tells of a stream that the peer's part of the protocol
	// had no room for.
	BlockProtocolPeer(proto protocol.ID, p peer.ID)

	// AllowService tells of a stream that got its service.
	AllowService(svc string)
	// BlockService tells of a stream that the service's scope had no room for.
	BlockService(svc string)
	// BlockServicePeer tells of a stream that the peer's part of the service
	// had no room for.
	BlockServicePeer(svc string, p peer.ID)

	// AllowMemory tells of size bytes that were reserved.
	AllowMemory(size int)
	// BlockMemory tells of size bytes that were refused.
	BlockMemory(size int)
}

// guardedReporter keeps the panics of a reporter from those who asked for a
// decision: they would not get what was opened for them, and could never give
// it back.
type guardedReporter struct {
	reporter MetricsReporter
	guard
}

// guarded guards a reporter, if there is one.
func guarded(r MetricsReporter) MetricsReporter {
	if r == nil {
		return nil
	}
	return &guardedReporter{reporter: r, guard: guard{callback: callbackOf("WithMetrics", r)}}
}

func (g *guardedReporter) tell(f func(MetricsReporter)) { g.call(func() { f(g.reporter) }) }

func (g *guardedReporter) AllowConn(dir network.Direction, usefd bool) {
	g.tell(func(r MetricsReporter) { r.AllowConn(dir, usefd) })
}
func (g *guardedReporter) BlockConn(dir network.Direction, usefd bool) {
	g.tell(func(r MetricsReporter) { r.BlockConn(dir, usefd) })
}
func (g *guardedReporter) AllowStream(p peer.ID, dir network.Direction) {
	g.tell(func(r MetricsReporter) { r.AllowStream(p, dir) })
}
func (g *guardedReporter) BlockStream(p peer.ID, dir network.Direction) {
	g.tell(func(r MetricsReporter) { r.BlockStream(p, dir) })
}
func (g *guardedReporter) AllowPeer(p peer.ID) {
	g.tell(func(r MetricsReporter) { r.AllowPeer(p) })
}
func (g *guardedReporter) BlockPeer(p peer.ID) {
	g.tell(func(r MetricsReporter) { r.BlockPeer(p) })
}
func (g *guardedReporter) AllowProtocol(proto protocol.ID) {
	g.tell(func(r MetricsReporter) { r.AllowProtocol(proto) })
}
func (g *guardedReporter) BlockProtocol(proto protocol.ID) {
	g.tell(func(r MetricsReporter) { r.BlockProtocol(proto) })
}
func (g *guardedReporter) BlockProtocolPeer(proto protocol.ID, p peer.ID) {
	g.tell(func(r MetricsReporter) { r.BlockProtocolPeer(proto, p) })
}
func (g *guardedReporter) AllowService(svc string) {
	g.tell(func(r MetricsReporter) { r.AllowService(svc) })
}
func (g *guardedReporter) BlockService(svc string) {
	g.tell(func(r MetricsReporter) { r.BlockService(svc) })
}
func (g *guardedReporter) BlockServicePeer(svc string, p peer.ID) {
	g.tell(func(r MetricsReporter) { r.BlockServicePeer(svc, p) })
}
func (g *guardedReporter) AllowMemory(size int) {
	g.tell(func(r MetricsReporter) { r.AllowMemory(size) })
}
func (g *guardedReporter) BlockMemory(size int) {
	g.tell(func(r MetricsReporter) { r.BlockMemory(size) })
}

// decisionOf returns what a MetricsReporter hears of a call that returned err: that it was
// admitted, or else the kind of the scope or gate whose limit refused it. Neither is so if the
// scope was closed, or the call was wrong.
func decisionOf(err error) (admitted bool, by Kind, refused bool) {
	var e *LimitError
	if err == nil {
		return true, 0, false
	}
	if e, refused = err.(*LimitError); refused {
		by = e.Kind()
	}
	return false, by, refused
}
