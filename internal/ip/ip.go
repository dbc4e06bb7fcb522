// Package ip has the one form in which the gates know addresses and networks, however they
// were written, and keys of 128 bits for them: with a hash that has a secret, so that
// strangers cannot aim at a place. Everything here is a value, and safe for concurrent use.
package ip

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Family is IPv4 or IPv6.
type Family uint8

const (
	V4 Family = iota
	V6
	Families // how many there are
)

// FamilyOf returns the family of an address that Normal has returned: a mapped one would be
// IPv6.
func FamilyOf(addr netip.Addr) Family {
	if addr.Is4() {
		return V4
	}
	return V6
}

// String returns "ipv4" or "ipv6".
func (f Family) String() string { return [...]string{"ipv4", "ipv6"}[f] }

// BitLen returns the length of an address in bits: 32 or 128.
func (f Family) BitLen() int { return [...]int{32, 128}[f] }

// nat64 is the well-known prefix (RFC 6052) under which a NAT64 gateway shows
// IPv4 hosts: the last 32 bits are the host's IPv4 address.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// Normal returns the one form in which the gates know an address: without
// zone, and as IPv4 if it is an IPv4 host's address in IPv6 clothes (mapped, or
// translated by NAT64). Otherwise all of IPv4 would fall into one IPv6 subnet.
// An invalid address stays invalid.
func Normal(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return addr
	}
	return normal6(addr)
}

// normal6 is Normal for what is written as IPv6.
func normal6(addr netip.Addr) netip.Addr {
	addr = addr.WithZone("").Unmap()
	if addr.Is6() && nat64.Contains(addr) {
		b := addr.As16()
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr
}

// NormalPrefix is Normal for networks. A network that is wider than the
// IPv4 part of IPv6 stays IPv6, and covers no IPv4 host.
func NormalPrefix(network netip.Prefix) netip.Prefix {
	const ipv4InIPv6 = 96
	addr := network.Addr()
	if plain := Normal(addr); addr.Is6() && plain.Is4() && network.Bits() >= ipv4InIPv6 {
		return netip.PrefixFrom(plain, network.Bits()-ipv4InIPv6).Masked()
	}
	return network.Masked()
}

// A Key names an address, or the subnet that begins with it: as IPv6, in two
// plain words, which make a cheaper map key than a netip.Prefix. Anything else of 128 bits
// may be a key as well, for its hash.
type Key struct{ Hi, Lo uint64 }

// KeyOf returns the key of a valid address.
func KeyOf(addr netip.Addr) Key {
	if addr.Is4() { // as IPv6: mapped
		b := addr.As4()
		return Key{0, 0xffff<<32 | uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := addr.As16()
	return Key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// First returns the first byte of an address of a family.
func (k Key) First(f Family) byte {
	if f == V4 {
		return byte(k.Lo >> 24)
	}
	return byte(k.Hi >> 56)
}

// Cut returns the key with so many of its last bits cleared: that of the subnet.
func (k Key) Cut(host uint) Key {
	if host < 64 {
		return Key{k.Hi, k.Lo >> host << host}
	}
	return Key{k.Hi >> (host - 64) << (host - 64), 0} // a shift by 64 clears a word
}

// Family returns the family of a normal address.
func (k Key) Family() Family {
	if k.Hi == 0 && k.Lo>>32 == 0xffff {
		return V4
	}
	return V6
}

// Addr is the inverse of KeyOf, for normal addresses.
func (k Key) Addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.Hi)
	binary.BigEndian.PutUint64(b[8:], k.Lo)
	return netip.AddrFrom16(b).Unmap()
}

// Prefix returns the subnet that the key names, with a prefix length in bits.
// What is cut off an IPv4 address lies in its last 32 bits, so it stays mapped.
func (k Key) Prefix(bits int) netip.Prefix { return netip.PrefixFrom(k.Addr(), bits) }

// A Hash is a secret, without which strangers cannot choose keys that meet in one place.
type Hash struct{ A, B uint64 }

// Of returns 64 bits of which each depends on all of the key.
func (h Hash) Of(k Key) uint64 {
	hi, lo := bits.Mul64(k.Hi^h.A, k.Lo^h.B)
	const spread = 0x9e3779b97f4a7c15 // 2⁶⁴ by the golden ratio: mixes the bits once more
	return (hi ^ lo) * spread
}
