package rcmgr

// One manager for several hosts: each owns a handle, and closes that.

import (
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// Share gives a handle that a host may own: go-libp2p closes its manager when
// the host closes. The manager is closed when the last of its handles is. If
// libp2p.New fails, close the handle: go-libp2p does so in some cases only, and
// closing it again does nothing.
func (m *Manager) Share() *SharedManager {
	m.handles.Add(1)
	return &SharedManager{Manager: m}
}

// SharedManager is one of several handles on a Manager. After its own Close it
// opens no connection and no stream; the scopes that it has opened, and those
// that it shows, go on working until the manager is closed. It is made by Share;
// the zero value is of no use. All methods are safe for concurrent use.
type SharedManager struct {
	*Manager
	closed atomic.Bool
}

// Unwrap gives the manager behind the handle.
func (s *SharedManager) Unwrap() network.ResourceManager { return s.Manager }

// OpenConnection is Manager.OpenConnection while the handle is open.
func (s *SharedManager) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	if s.closed.Load() {
		return nil, errClosed
	}
	return s.Manager.OpenConnection(dir, usefd, endpoint)
}

// OpenStream is Manager.OpenStream while the handle is open.
func (s *SharedManager) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if s.closed.Load() {
		return nil, errClosed
	}
	return s.Manager.OpenStream(p, dir)
}

// Close closes the handle, and the manager if it was the last one. Again, it
// does nothing. It always returns nil.
func (s *SharedManager) Close() error {
	if s.closed.CompareAndSwap(false, true) && s.handles.Add(-1) == 0 {
		return s.Manager.Close()
	}
	return nil
}
