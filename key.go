package rcmgr

// Keys of 128 bits: addresses and subnets by their first bits, and what an ID of a peer ends
// with; and a hash of them with a secret, so that strangers cannot aim at a place.

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// subnetKey names an address, or the subnet that begins with it: as IPv6, in two
// plain words, which make a cheaper map key than a netip.Prefix.
type subnetKey struct{ hi, lo uint64 }

func keyOf(addr netip.Addr) subnetKey {
	if addr.Is4() { // as IPv6: mapped
		b := addr.As4()
		return subnetKey{0, 0xffff<<32 | uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := addr.As16()
	return subnetKey{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// first gives the first byte of an address.
func (k subnetKey) first(f family) byte {
	if f == ipv4 {
		return byte(k.lo >> 24)
	}
	return byte(k.hi >> 56)
}

// cut clears the last bits of an address.
func (k subnetKey) cut(host uint) subnetKey {
	if host < 64 {
		return subnetKey{k.hi, k.lo >> host << host}
	}
	return subnetKey{k.hi >> (host - 64) << (host - 64), 0} // a shift by 64 clears a word
}

// family gives the family of a normalised address.
func (k subnetKey) family() family {
	if k.hi == 0 && k.lo>>32 == 0xffff {
		return ipv4
	}
	return ipv6
}

// addr is the inverse of keyOf, for normalised addresses.
func (k subnetKey) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.hi)
	binary.BigEndian.PutUint64(b[8:], k.lo)
	return netip.AddrFrom16(b).Unmap()
}

// prefix gives the subnet that the key names, on a level of a prefix length.
// What is cut off an IPv4 address lies in its last 32 bits, so it stays mapped.
func (k subnetKey) prefix(bits int) netip.Prefix { return netip.PrefixFrom(k.addr(), bits) }

// subnetHash is a secret, without which nobody can choose subnets that meet in one
// place.
type subnetHash struct{ a, b uint64 }

func (h subnetHash) of(k subnetKey) uint64 {
	hi, lo := bits.Mul64(k.hi^h.a, k.lo^h.b)
	const spread = 0x9e3779b97f4a7c15 // 2⁶⁴ by the golden ratio: mixes the bits once more
	return (hi ^ lo) * spread
}
