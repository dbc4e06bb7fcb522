package rcmgrhost

import (
	"github.com/libp2p/go-libp2p/core/transport"

	"github.com/weir-p2p/rcmgr"
)

// Shaking returns how many handshakes an upgrader knows to go on, or -1 if it does not know any.
func Shaking(u transport.Upgrader) (n int) {
	own, ok := u.(*upgrader)
	if !ok {
		return -1
	}
	own.of.each(func(rcmgr.Handshake) bool { n++; return true })
	return n
}
