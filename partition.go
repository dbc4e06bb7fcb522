package rcmgr

// How the IP gates divide the address space. An address belongs to the most
// specific of the networks that are named, if it is in any of them; otherwise
// it belongs to one subnet on each level of its family: a level being a prefix
// length, and its subnets what that length cuts the family into. The subnet
// counts and the rate buckets differ only in what they keep for a network and
// for a level.

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"

	"github.com/gaissmai/bart"
)

// gateStripes is how many locks the subnets share out. They are chosen by the
// widest subnet of an address, so that its subnets on all levels are under one.
const gateStripes = 64

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
func (f family) bitLen() int    { return [...]int{32, 128}[f] }

// partition holds an N for every named network, and an L for every level. It
// does not change once it is built.
type partition[N, L any] struct {
	networks  *bart.Table[N]
	families  [numFamilies][]level[L]
	widest    [numFamilies]int // the shortest prefix length of each family
	numLevels int              // of both families
	seed      maphash.Seed
}

// level is one prefix length.
type level[L any] struct {
	id    int // from 0, through both families
	bits  int // the prefix length
	limit L
}

// subnetKey names one subnet of a level: its first address as IPv6, in two plain
// words, which make a cheaper map key than a netip.Prefix.
type subnetKey struct{ hi, lo uint64 }

func newPartition[N, L any]() partition[N, L] {
	return partition[N, L]{networks: new(bart.Table[N]), seed: maphash.MakeSeed()}
}

// checkPrefixLength must be asked before addLevel.
func (f family) checkPrefixLength(bits int) error {
	if bits < 0 || bits > f.bitLen() {
		return fmt.Errorf("PrefixLength is %d, expected 0 to %d", bits, f.bitLen())
	}
	return nil
}

// addLevel adds a level to a family. Several levels may have one length.
func (p *partition[N, L]) addLevel(f family, bits int, limit L) {
	if len(p.families[f]) == 0 || bits < p.widest[f] {
		p.widest[f] = bits
	}
	p.families[f] = append(p.families[f], level[L]{id: p.numLevels, bits: bits, limit: limit})
	p.numLevels++
}

// addNetwork adds a network that was listed for a family. Of two entries for
// one network the first holds.
func (p *partition[N, L]) addNetwork(f family, network netip.Prefix, n N) error {
	plain := normalPrefix(network)
	switch {
	case !network.IsValid():
		return fmt.Errorf("expected an %s prefix as Network, got none or an invalid one", f)
	case familyOf(network.Addr()) != f && familyOf(plain.Addr()) != f:
		return fmt.Errorf("expected an %s prefix as Network, got %s", f, network)
	}
	if _, ok := p.networks.Get(plain); !ok {
		p.networks.Insert(plain, n)
	}
	return nil
}

// levelsOf gives the levels that an address without a named network is on.
func (p *partition[N, L]) levelsOf(addr netip.Addr) []level[L] {
	return p.families[familyOf(addr)]
}

// stripeOf gives the index of the stripe that has all subnets of an address.
// The seed keeps strangers from choosing addresses that all meet in one.
func (p *partition[N, L]) stripeOf(addr netip.Addr) int {
	widest := keyOf(addr, p.widest[familyOf(addr)])
	return int(maphash.Comparable(p.seed, widest) % gateStripes)
}

// key names the subnet of an address on a level.
func (l *level[L]) key(addr netip.Addr) subnetKey { return keyOf(addr, l.bits) }

// subnet gives what key names as people know it.
func (l *level[L]) subnet(addr netip.Addr) netip.Prefix {
	return netip.PrefixFrom(addr, l.bits).Masked()
}

func keyOf(addr netip.Addr, bits int) subnetKey {
	b := addr.As16()
	k := subnetKey{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
	host := addr.BitLen() - bits // bits to clear; a shift by 64 clears a word
	if host < 64 {
		k.lo = k.lo >> host << host
		return k
	}
	k.lo = 0
	k.hi = k.hi >> (host - 64) << (host - 64)
	return k
}

// subnetInts holds a number for each subnet of a level that has one, and gives
// its memory back: a Go map keeps the room of its best days for ever.
type subnetInts struct {
	m    map[subnetKey]int64
	peak int // the most entries since m was made
}

// subnetInt is one entry of a subnetInts.
type subnetInt struct {
	key   subnetKey
	value int64
}

// inlineLevels is how many levels of a family an operation remembers what it
// found on without allocating.
const inlineLevels = 8

func (s *subnetInts) get(k subnetKey) (value int64, ok bool) {
	value, ok = s.m[k]
	return value, ok
}

func (s *subnetInts) set(e subnetInt) {
	if s.m == nil {
		s.m = make(map[subnetKey]int64)
	}
	s.m[e.key] = e.value
	s.peak = max(s.peak, len(s.m))
}

// delete moves the rest to a smaller map once seven eighths of it are gone:
// each entry then pays for at most a part of a move.
func (s *subnetInts) delete(k subnetKey) {
	delete(s.m, k)
	if s.peak < 128 || len(s.m) > s.peak/8 {
		return
	}
	kept := make(map[subnetKey]int64, len(s.m))
	maps.Copy(kept, s.m)
	s.m, s.peak = kept, len(kept)
}
