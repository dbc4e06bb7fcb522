package rcmgr

// What the gates know of the far end of a connection: its own IP address, or
// that it has none. The allowlist, the subnet counts and the connect rate all
// take their addresses from here, so that one host is one address to all of
// them, however the address was written.

import (
	"net/netip"

	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// endpoint is the far end of a connection.
type endpoint struct {
	// addr is normal (see ip.Normal), and invalid if the far end has no
	// IP address of its own: no IP gate applies to it then.
	addr netip.Addr
	// relayed tells that the far end is reached through a relay. An IP address
	// that the multiaddr begins with is the relay's, and says nothing about
	// the far end.
	relayed bool
}

// endpointOf reads an endpoint from a multiaddr of any kind, nil included.
func endpointOf(ma multiaddr.Multiaddr) (e endpoint) {
	for i, known := 0, false; i < len(ma); i++ {
		switch code := ma[i].Code(); {
		case code == multiaddr.P_CIRCUIT:
			return endpoint{relayed: true}
		case known || code == multiaddr.P_IP6ZONE:
		case code == multiaddr.P_IP4 || code == multiaddr.P_IP6:
			addr, _ := netip.AddrFromSlice(ma[i].RawValue())
			e.addr, known = ip.Normal(addr), true
		default:
			known = true // an IP address behind a transport is not the far end's
		}
	}
	return e
}

// familyNames are the names of families in configurations.
var familyNames = [ip.Families]string{"IPv4", "IPv6"}
