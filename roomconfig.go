package rcmgr

// How room is made: what WithRoom takes.

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
)

// RoomHost is what a manager needs of a host to make room on it. A host.Host is a RoomHost.
type RoomHost interface {
	Network() network.Network
	// ConnManager returns the host's connection manager, nil if it has none. Peers that it
	// protects are kept, and a part of those that it values.
	ConnManager() connmgr.ConnManager
}

// Handshake is an inbound connection whose handshake is under way, so that its host has no
// network.Conn for it yet. See Manager.AttachHandshakes. Its methods may be called by any goroutine.
type Handshake interface {
	// Scope returns the scope of the connection, as the manager has returned it.
	Scope() network.ConnManagementScope
	// RemoteMultiaddr returns the address of the far end.
	RemoteMultiaddr() multiaddr.Multiaddr
	// Began returns the time at which the connection was accepted.
	Began() time.Time
	// End closes the connection, and reports whether its handshake was still going on. If it was
	// not, End does nothing.
	End() bool
}

// RoomConfig says how WithRoom makes room. Its zero value is ready for use.
type RoomConfig struct {
	// Protocols are protocols whose users the host wants to keep: up to an eighth of the
	// connections is kept for peers that have a stream of one of them.
	Protocols []protocol.ID
	// PerSecond is the most connections and streams that are closed in a second. 0 means 1000.
	PerSecond int
	// ObserveOnly only counts what would be let go, and closes nothing.
	ObserveOnly bool

	// ByHand, Now and Seed are for simulations. With ByHand, room is made only while MakeRoom is
	// called. Now returns the time, in place of time.Now. Seed chooses the secret numbers that
	// decide where nothing else does, so that they are the same again; 0 means random ones.
	ByHand bool
	Now    func() time.Time
	Seed   uint64
}

// checked returns the configuration with its defaults, as a copy.
func (c RoomConfig) checked() (RoomConfig, error) {
	if c.PerSecond < 0 {
		return c, fmt.Errorf("PerSecond is %d, it must not be negative", c.PerSecond)
	}
	if c.PerSecond == 0 {
		c.PerSecond = 1000
	}
	c.Protocols = slices.Clone(c.Protocols)
	if slices.Contains(c.Protocols, "") {
		return c, errors.New("a name in Protocols is empty")
	}
	return c, nil
}
