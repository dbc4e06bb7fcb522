package main

// The addresses of all peers. Attackers have 10.0.0.0/8 and half of 2001:db8::/32, honest
// peers have 100.64.0.0/10 and the other half.

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// hostsOfIPv4 is how many addresses of a /24 are used.
const hostsOfIPv4 = 254

func onTCP(addr netip.Addr) multiaddr.Multiaddr {
	a, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 4001)))
	if err != nil {
		panic(err) // cannot fail for an IP address and a port
	}
	return a
}

func attackersIn24(subnet, host int) multiaddr.Multiaddr { return in24(attackersIPv4, subnet, host) }
func attackersIn56(subnet, host int) multiaddr.Multiaddr { return in56(attackersIPv6, subnet, host) }

// behindRelays returns an address that says nothing of the peer behind the relay.
func behindRelays(int, int) multiaddr.Multiaddr { return multiaddr.StringCast("/p2p-circuit") }

// in24 returns the address of a host in the n-th /24 after first.
func in24(first netip.Addr, n, host int) multiaddr.Multiaddr {
	b := first.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n)<<8+uint32(1+host%hostsOfIPv4))
	return onTCP(netip.AddrFrom4(b))
}

// in56 returns the address of a host in the first /56 of the n-th /48 after first.
func in56(first netip.Addr, n, host int) multiaddr.Multiaddr {
	b := first.As16()
	binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])+uint64(n)<<16)
	binary.BigEndian.PutUint64(b[8:], uint64(1+host))
	return onTCP(netip.AddrFrom16(b))
}

var (
	attackersIPv4 = netip.MustParseAddr("10.0.0.0")
	attackersIPv6 = netip.MustParseAddr("2001:db8::")
	honestIPv4    = netip.MustParseAddr("100.64.0.0")
	honestIPv6    = netip.MustParseAddr("2001:db8:8000::")

	// sharedByHonest is the /24 of honest peers that share one.
	sharedByHonest = netip.PrefixFrom(honestIPv4, 24)
)

// attackersEverywhere returns the address of a host in the n-th /24, which is far away from the
// others: no two of 4096 share a /16.
func attackersEverywhere(subnet, host int) multiaddr.Multiaddr {
	const networks = 23000 // from 1.0.0.0 to 9.255.0.0 and from 11.0.0.0 to 90.255.0.0
	n := subnet * 5 % networks
	first := 1 + n/256
	if first >= 10 {
		first++
	}
	return in24(netip.AddrFrom4([4]byte{byte(first), byte(n % 256), byte(subnet * 7), 0}), 0, host)
}

// ownerOf returns the owner of an address: one of eight clouds that the attackers rent from, or
// the provider of a /16 of honest peers.
func ownerOf(addr netip.Addr) string {
	if !addr.Is4() {
		b := addr.As16()
		return fmt.Sprint("provider ", b[4]>>4)
	}
	a := addr.As4()
	if a[0] == 100 {
		return fmt.Sprint("provider ", a[1])
	}
	return fmt.Sprint("cloud ", (int(a[0])*256+int(a[1])+int(a[2]))%8)
}

// anywhere returns a random address of an honest peer: three of four are IPv4.
func anywhere(r *rand.Rand) multiaddr.Multiaddr {
	if r.IntN(4) == 0 {
		return in56(honestIPv6, r.IntN(1<<15), r.IntN(1<<8))
	}
	return in24(honestIPv4, 1+r.IntN(1<<14-1), r.IntN(hostsOfIPv4))
}

// oneSubnet returns a random address in the /24 of honest peers that share one: a city
// behind the addresses of its provider, a cloud, a cluster.
func oneSubnet(r *rand.Rand) multiaddr.Multiaddr {
	return in24(honestIPv4, 0, r.IntN(hostsOfIPv4))
}

// nearAttackers returns a random address in the /16 of the first attackers, and in a /24 of it in
// which there are none if they have no more than 64.
func nearAttackers(r *rand.Rand) multiaddr.Multiaddr {
	return in24(attackersIPv4, 64+r.IntN(192), r.IntN(hostsOfIPv4))
}

// firstAttackers returns a random address in the /24 of the first attackers, for honest
// peers that share it.
func firstAttackers(r *rand.Rand) multiaddr.Multiaddr {
	return in24(attackersIPv4, 0, r.IntN(hostsOfIPv4))
}
