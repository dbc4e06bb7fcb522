package rcmgr

// The far end of a connection, as the gates see it: its own IP address, or no address. The
// allowlist, the subnet counts and the rate limits all take their addresses from here, so
// that all of them see a host under the same address, however it was written.

import (
	"net/netip"

	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// endpoint is the far end of a connection.
type endpoint struct {
	// addr is normalised (see ip.Normal). It is invalid if the far end has no IP address
	// of its own; no gate on addresses then applies to it.
	addr netip.Addr
	// relayed means that the far end is reached through a relay. If the multiaddr begins
	// with an IP address, that is the relay's and not the far end's.
	relayed bool
	// via is the relay's address if it is known, normalised. No gate goes by it, only entries
	// of the allowlist that go through the relay.
	via netip.Addr
}

// endpointOf reads an endpoint from a multiaddr of any kind, nil included.
func endpointOf(ma multiaddr.Multiaddr) (e endpoint) {
	for i, known := 0, false; i < len(ma); i++ {
		switch code := ma[i].Code(); {
		case code == multiaddr.P_CIRCUIT:
			return endpoint{relayed: true, via: e.addr}
		case known || code == multiaddr.P_IP6ZONE:
		case code == multiaddr.P_IP4 || code == multiaddr.P_IP6:
			addr, _ := netip.AddrFromSlice(ma[i].RawValue())
			e.addr, known = ip.Normal(addr), true
		default:
			known = true // an IP address after a transport is not the far end's
		}
	}
	return e
}

// localhost4 and localhost6 are the machine's own addresses, which say nothing of the far end.
var localhost4, localhost6 = netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()

// familyNames are the names of families in configurations.
var familyNames = [ip.Families]string{"IPv4", "IPv6"}
