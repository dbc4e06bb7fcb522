package rcmgr

// What the gates know of the far end of a connection: its own IP address, or
// that it has none. The allowlist, the subnet counts and the connect rate all
// take their addresses from here, so that one host is one address to all of
// them, however the address was written.

import (
	"net/netip"

	"github.com/multiformats/go-multiaddr"
)

// endpoint is the far end of a connection.
type endpoint struct {
	// addr is normalised (see normalAddr), and invalid if the far end has no
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
			e.addr, known = normalAddr(addr), true
		default:
			known = true // an IP address behind a transport is not the far end's
		}
	}
	return e
}

// nat64 is the well-known prefix (RFC 6052) under which a NAT64 gateway shows
// IPv4 hosts: the last 32 bits are the host's IPv4 address.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// normalAddr gives the one form in which the gates know an address: without
// zone, and as IPv4 if it is an IPv4 host's address in IPv6 clothes (mapped, or
// translated by NAT64). Otherwise all of IPv4 would fall into one IPv6 subnet.
func normalAddr(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return addr
	}
	return normalIPv6(addr)
}

// normalIPv6 is normalAddr for what is written as IPv6.
func normalIPv6(addr netip.Addr) netip.Addr {
	addr = addr.WithZone("").Unmap()
	if addr.Is6() && nat64.Contains(addr) {
		b := addr.As16()
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr
}

// normalPrefix is normalAddr for networks. A network that is wider than the
// IPv4 part of IPv6 stays IPv6, and covers no IPv4 host.
func normalPrefix(network netip.Prefix) netip.Prefix {
	const ipv4InIPv6 = 96
	addr := network.Addr()
	if plain := normalAddr(addr); addr.Is6() && plain.Is4() && network.Bits() >= ipv4InIPv6 {
		return netip.PrefixFrom(plain, network.Bits()-ipv4InIPv6).Masked()
	}
	return network.Masked()
}

// family is IPv4 or IPv6.
type family uint8

const (
	ipv4 family = iota
	ipv6
	numFamilies
)

// familyOf takes normalised addresses only: a mapped one would be IPv6.
func familyOf(addr netip.Addr) family {
	if addr.Is4() {
		return ipv4
	}
	return ipv6
}

func (f family) String() string { return [...]string{"ipv4", "ipv6"}[f] }

func (f family) bitLen() int { return [...]int{32, 128}[f] }

// familyNames are the names of families in configurations.
var familyNames = [numFamilies]string{"IPv4", "IPv6"}
