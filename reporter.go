package rcmgr

// MetricsReporter, which go-libp2p's own resource manager has, too: a caller's code that is
// called after every decision.

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// MetricsReporter is called after every decision, if it is given to WithMetrics. The goroutine
// that asked for the decision makes the call, without any lock of the manager, and waits for
// it to return; calls may be concurrent. If the reporter panics, the panic is logged and the
// reporter is not called again. The decision is not affected. Prometheus needs no
// MetricsReporter (see MustRegisterWith).
type MetricsReporter interface {
	// AllowConn reports that a connection was opened. usefd says whether it takes a file
	// descriptor.
	AllowConn(dir network.Direction, usefd bool)
	// BlockConn reports that a connection was refused.
	BlockConn(dir network.Direction, usefd bool)

	// AllowStream reports that a stream to or from a peer was opened.
	AllowStream(p peer.ID, dir network.Direction)
	// BlockStream reports that a stream was refused.
	BlockStream(p peer.ID, dir network.Direction)

	// AllowPeer reports that a connection was attached to its peer.
	AllowPeer(p peer.ID)
	// BlockPeer reports that a connection was refused when its peer became known. It was
	// refused by the peer's scope or, if it had been admitted for an allowlisted peer but
	// is from another one, by a gate or by the standard scopes.
	BlockPeer(p peer.ID)

	// AllowProtocol reports that a stream was attached to its protocol.
	AllowProtocol(proto protocol.ID)
	// BlockProtocol reports that the protocol's scope refused a stream.
	BlockProtocol(proto protocol.ID)
	// BlockProtocolPeer reports that the peer's part of the protocol refused a stream.
	BlockProtocolPeer(proto protocol.ID, p peer.ID)

	// AllowService reports that a stream was attached to its service.
	AllowService(svc string)
	// BlockService reports that the service's scope refused a stream.
	BlockService(svc string)
	// BlockServicePeer reports that the peer's part of the service refused a stream.
	BlockServicePeer(svc string, p peer.ID)

	// AllowMemory reports that size bytes were reserved.
	AllowMemory(size int)
	// BlockMemory reports that a reservation of size bytes was refused.
	BlockMemory(size int)
}

// guardedReporter keeps panics of a reporter from the caller that asked for a decision. With
// a panic, the caller would not get the scope that was opened for it, and could never release
// it.
type guardedReporter struct {
	reporter MetricsReporter
	guard
}

// guarded returns a reporter that calls r, or nil if r is nil.
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

// decisionOf returns the decision that the error of a call stands for, and the kind of the
// scope or gate that refused. Any error but a refusal is neither: the scope was closed, or the
// call was wrong.
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
