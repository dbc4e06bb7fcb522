package rcmgr

// One manager for several hosts. Each host owns a handle, and closes only that.

import (
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// NewHandle returns a handle on the manager, for one of several hosts that share it.
// A go-libp2p host closes its resource manager when it closes; one that was given a
// handle closes only the handle. Closing the last open handle closes the manager. If
// libp2p.New fails, close the handle: go-libp2p does so only in some cases, and
// closing a handle twice does no harm.
func (m *Manager) NewHandle() *Handle {
	m.handles.Add(1)
	return &Handle{manager: m}
}

// Handle is one of several handles on a Manager. A closed handle opens no connections
// and no streams, but scopes that were opened or viewed through it go on working until
// the manager is closed. Use NewHandle to make one; the zero value is of no use.
// All methods are safe for concurrent use.
type Handle struct {
	*manager
	closed atomic.Bool
}

// manager is Manager under an unexported name. Embedded under this name, the manager is
// not a field that callers can reach by accident and close while handles are open.
type manager = Manager

// Unwrap returns the Manager that the handle belongs to.
func (h *Handle) Unwrap() network.ResourceManager { return h.manager }

// OpenConnection is Manager.OpenConnection while the handle is open. On a closed handle
// it returns an error that matches network.ErrResourceScopeClosed.
func (h *Handle) OpenConnection(
	dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr,
) (network.ConnManagementScope, error) {
	if h.closed.Load() {
		return nil, errClosed
	}
	return h.manager.OpenConnection(dir, usefd, endpoint)
}

// OpenStream is Manager.OpenStream while the handle is open. On a closed handle it
// returns an error that matches network.ErrResourceScopeClosed.
func (h *Handle) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if h.closed.Load() {
		return nil, errClosed
	}
	return h.manager.OpenStream(p, dir)
}

// Close closes the handle, and the manager with it if no other handle is open. Closing
// a handle again does nothing. Close always returns nil.
func (h *Handle) Close() error {
	if h.closed.CompareAndSwap(false, true) && h.handles.Add(-1) == 0 {
		return h.manager.Close()
	}
	return nil
}
