package rcmgr

// One manager for several hosts: each owns a handle, and closes that.

import (
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// NewHandle returns a handle that a host may own: go-libp2p closes its manager when
// the host closes. The manager is closed when the last of its handles is. If
// libp2p.New fails, close the handle: go-libp2p does so in some cases only, and
// closing it again does nothing.
func (m *Manager) NewHandle() *Handle {
	m.handles.Add(1)
	return &Handle{manager: m}
}

// Handle is one of several handles on a Manager. After its own Close it
// opens no connection and no stream; the scopes that it has opened, and those
// that it shows, go on working until the manager is closed. It is made by NewHandle;
// the zero value is of no use. All methods are safe for concurrent use.
type Handle struct {
	*manager
	closed atomic.Bool
}

// manager is Manager under a name that others cannot use: nobody closes it past its handles.
type manager = Manager

// Unwrap returns the manager behind the handle.
func (h *Handle) Unwrap() network.ResourceManager { return h.manager }

// OpenConnection is Manager.OpenConnection while the handle is open.
func (h *Handle) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	if h.closed.Load() {
		return nil, errClosed
	}
	return h.manager.OpenConnection(dir, usefd, endpoint)
}

// OpenStream is Manager.OpenStream while the handle is open.
func (h *Handle) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if h.closed.Load() {
		return nil, errClosed
	}
	return h.manager.OpenStream(p, dir)
}

// Close closes the handle, and the manager if it was the last one. Again, it
// does nothing. It always returns nil.
func (h *Handle) Close() error {
	if h.closed.CompareAndSwap(false, true) && h.handles.Add(-1) == 0 {
		return h.manager.Close()
	}
	return nil
}
