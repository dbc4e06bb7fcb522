// Package ip has the normal form of IP addresses and networks, which is the same however they
// were written, and keys of 128 bits for them. The hash of the keys has a secret, so that
// strangers cannot choose addresses that collide. All types are values without shared state, and
// safe for concurrent use.
package ip

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Family is IPv4 or IPv6.
type Family uint8

const (
	V4 Family = iota
	V6
	Families // the number of families
)

// FamilyOf returns the family of an address that Normal has returned. For an IPv4-mapped address,
// which Normal never returns, it returns V6.
func FamilyOf(addr netip.Addr) Family {
	if addr.Is4() {
		return V4
	}
	return V6
}

// String returns "ipv4" or "ipv6".
func (f Family) String() string { return [...]string{"ipv4", "ipv6"}[f] }

// BitLen returns the length of the family's addresses in bits: 32 or 128.
func (f Family) BitLen() int { return [...]int{32, 128}[f] }

// nat64 is the well-known prefix (RFC 6052) of the IPv6 addresses that a NAT64 gateway gives to
// IPv4 hosts. The last 32 bits of such an address are the host's IPv4 address.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// Normal returns the normal form of an address, without zone. An IPv6 address that stands for an
// IPv4 host, because it is IPv4-mapped or translated by NAT64, becomes the host's IPv4 address;
// otherwise all such hosts would be in one IPv6 subnet. An invalid address stays invalid.
func Normal(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return addr
	}
	return normal6(addr)
}

// normal6 is Normal for addresses that are not Is4.
func normal6(addr netip.Addr) netip.Addr {
	addr = addr.WithZone("").Unmap()
	if addr.Is6() && nat64.Contains(addr) {
		b := addr.As16()
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr
}

// NormalPrefix returns the normal form of a network: masked, and as IPv4 if all its addresses
// stand for IPv4 hosts. A wider network stays IPv6, and has no IPv4 host in it. An invalid
// network stays invalid.
func NormalPrefix(network netip.Prefix) netip.Prefix {
	const ipv4InIPv6 = 96
	addr := network.Addr()
	if plain := Normal(addr); addr.Is6() && plain.Is4() && network.Bits() >= ipv4InIPv6 {
		return netip.PrefixFrom(plain, network.Bits()-ipv4InIPv6).Masked()
	}
	return network.Masked()
}

// ComparePrefixes orders networks by family, first address and prefix length, and names of one
// network, which differ in the bits behind its prefix, by their addresses. Invalid networks come
// first. It does not depend on netip.Prefix.Compare, which is newer than the oldest Go that rcmgr
// supports.
func ComparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(
		a.Masked().Addr().Compare(b.Masked().Addr()),
		cmp.Compare(a.Bits(), b.Bits()),
		a.Addr().Compare(b.Addr()),
	)
}

// A Key is an address, or the first address of a subnet, as the 128 bits of an IPv6 address in
// two words. It is a cheaper map key than a netip.Prefix. Other values of 128 bits may be kept in
// a Key as well, for its hash.
type Key struct{ Hi, Lo uint64 }

// KeyOf returns the key of a valid address.
func KeyOf(addr netip.Addr) Key {
	if addr.Is4() { // as an IPv4-mapped IPv6 address
		b := addr.As4()
		return Key{0, 0xffff<<32 | uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := addr.As16()
	return Key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// First returns the first byte of the key's address, which is of the family f.
func (k Key) First(f Family) byte {
	if f == V4 {
		return byte(k.Lo >> 24)
	}
	return byte(k.Hi >> 56)
}

// Cut returns the key with its last host bits cleared, at most 128: the key of the subnet that
// has so many bits after its prefix.
func (k Key) Cut(host uint) Key {
	if host < 64 {
		return Key{k.Hi, k.Lo >> host << host}
	}
	return Key{k.Hi >> (host - 64) << (host - 64), 0} // a shift by 64 clears a word
}

// Family returns the family of the key's address, which is one that Normal has returned.
func (k Key) Family() Family {
	if k.Hi == 0 && k.Lo>>32 == 0xffff {
		return V4
	}
	return V6
}

// Addr returns the key's address. It is the inverse of KeyOf for addresses that Normal has
// returned.
func (k Key) Addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.Hi)
	binary.BigEndian.PutUint64(b[8:], k.Lo)
	return netip.AddrFrom16(b).Unmap()
}

// Prefix returns the subnet of the key with a prefix length in bits. The key is one that Cut has
// returned for that length. Cut clears at most the last 32 bits of an IPv4 address's key, so the
// key still is that of an IPv4 address.
func (k Key) Prefix(bits int) netip.Prefix { return netip.PrefixFrom(k.Addr(), bits) }

// A Hash is the secret of a hash function for keys. Without it, strangers cannot choose keys that
// collide.
type Hash struct{ A, B uint64 }

// Of returns the hash of a key. Each of its 64 bits depends on all bits of the key.
func (h Hash) Of(k Key) uint64 {
	hi, lo := bits.Mul64(k.Hi^h.A, k.Lo^h.B)
	const spread = 0x9e3779b97f4a7c15 // 2⁶⁴ divided by the golden ratio; mixes the bits again
	return (hi ^ lo) * spread
}
