package rcmgr

// How the gates cut up the IP address space: into networks that were named, and
// everything else into subnets, on every level of its family: a level being a
// prefix length, and its subnets what that length cuts the family into.

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// gateStripes is how many locks the subnets share out. They are chosen by the
// widest subnet of an address, so that its subnets on all levels are under one.
const gateStripes = 64

// level is one prefix length, and what every subnet of it may have.
type level struct {
	id     uint16 // from 1, through both families
	bits   int    // the prefix length
	host   uint   // how many bits follow it
	conns  int64  // connections at a time; noConnLimit is any number
	tokens bucketLimit
	wider  *level // the next one; nil is none
}

const noConnLimit = math.MaxInt64

func connLimit(n int) int64 {
	if n == math.MaxInt {
		return noConnLimit
	}
	return int64(n)
}

// namedNet is what stands in place of the levels for a named network, or one
// inside it.
type namedNet struct {
	forConns, forTokens bool          // for which of the two it does
	conns, tokens       *subnetStripe // nil is no limit
	free                bool          // neither is limited
}

// division is how a family is cut up where nothing is named.
type division struct {
	levels        []level // the narrowest subnets first
	narrowest     *level  // the first of them; nil is none
	widest        uint    // how many bits follow the shortest prefix length
	counts, takes bool    // some level limits connections; how fast they come
	// begins has a bit for every first byte that an address in a named network may
	// have: others need not be looked up.
	begins [4]uint64
}

// partition does not change once it is built.
type partition struct {
	networks *bart.Table[namedNet]
	families [numFamilies]division
	byID     []*level // the levels by id, from 1
}

// newPartition checks what it is made from. An error names the option, or the
// gate, and the place in its lists.
func newPartition(conns subnetConfig, rates rateConfig) (*partition, error) {
	p := &partition{networks: new(bart.Table[namedNet])}
	counts, buckets := new(bart.Table[*subnetStripe]), new(bart.Table[*subnetStripe])
	err := conns.each(
		func(f family, l ConnLimitPerSubnet) error {
			if l.ConnCount != math.MaxInt {
				at := p.families[f].level(f, l.PrefixLength)
				at.conns = min(at.conns, int64(l.ConnCount)) // a connection has to fit all entries
				p.families[f].counts = true
			}
			return nil
		},
		func(f family, l NetworkPrefixLimit) error {
			return addNetwork(counts, f, l.Network, level{conns: connLimit(l.ConnCount)})
		})
	if err != nil {
		return nil, err
	}
	err = rates.each(
		func(f family, bits int, b bucketLimit) error {
			if !b.unlimited() {
				p.families[f].level(f, bits).tokens = b // there is one entry for a length
				p.families[f].takes = true
			}
			return nil
		},
		func(f family, n netip.Prefix, b bucketLimit) error {
			return addNetwork(buckets, f, n, level{conns: noConnLimit, tokens: b})
		})
	if err != nil {
		return nil, err
	}
	for f := range p.families {
		p.order(&p.families[f])
	}
	// What is named for one of the two only is for the other as the network
	// around it, or not named.
	for _, named := range []*bart.Table[*subnetStripe]{counts, buckets} {
		for at := range named.All() {
			var n namedNet
			n.conns, n.forConns = counts.LookupPrefix(at)
			n.tokens, n.forTokens = buckets.LookupPrefix(at)
			div := &p.families[familyOf(at.Addr())]
			n.free = n.conns == nil && n.tokens == nil && (n.forConns || !div.counts) && (n.forTokens || !div.takes)
			p.networks.Insert(at, n)
			div.begin(at)
		}
	}
	return p, nil
}

// order puts the levels of a family in order, and gives them their numbers.
func (p *partition) order(div *division) {
	slices.SortFunc(div.levels, func(a, b level) int { return cmp.Compare(b.bits, a.bits) })
	for i := range div.levels {
		l := &div.levels[i]
		p.byID = append(p.byID, l)
		l.id = uint16(len(p.byID))
		if i == 0 {
			div.narrowest = l
		} else {
			div.levels[i-1].wider = l
		}
		div.widest = l.host
	}
}

// begin notes the first bytes of the addresses in a named network.
func (div *division) begin(at netip.Prefix) {
	first := at.Addr().AsSlice()[0]
	for i := range 1 << max(0, 8-at.Bits()) {
		b := first + byte(i)
		div.begins[b/64] |= 1 << (b % 64)
	}
}

// mayBeNamed tells whether an address that begins with this byte may be in a named
// network.
func (div *division) mayBeNamed(first byte) bool {
	return div.begins[first/64]>>(first%64)&1 != 0
}

// level finds a level, or adds one without limits.
func (div *division) level(f family, bits int) *level {
	at := slices.IndexFunc(div.levels, func(l level) bool { return l.bits == bits })
	if at < 0 {
		at = len(div.levels)
		div.levels = append(div.levels, level{bits: bits, host: uint(f.bitLen() - bits), conns: noConnLimit})
	}
	return &div.levels[at]
}

// addNetwork adds a network that was listed for a family, with limits of its own.
// Of two entries for one network the first holds.
func addNetwork(to *bart.Table[*subnetStripe], f family, network netip.Prefix, l level) error {
	plain := normalPrefix(network)
	switch {
	case !network.IsValid():
		return fmt.Errorf("expected an %s prefix as Network, got none or an invalid one", f)
	case familyOf(network.Addr()) != f && familyOf(plain.Addr()) != f:
		return fmt.Errorf("expected an %s prefix as Network, got %s", f, network)
	}
	if _, ok := to.Get(plain); ok {
		return nil
	}
	var st *subnetStripe
	if l.conns != noConnLimit || !l.tokens.unlimited() {
		l.bits = plain.Bits()
		st = &subnetStripe{named: &subnet{level: &l, key: keyOf(plain.Addr())}}
	}
	to.Insert(plain, st)
	return nil
}

// checkPrefixLength must be asked before level.
func (f family) checkPrefixLength(bits int) error {
	if bits < 0 || bits > f.bitLen() {
		return fmt.Errorf("PrefixLength is %d, expected 0 to %d", bits, f.bitLen())
	}
	return nil
}

// subnet is one part of the address space.
type subnet struct {
	level *level
	key   subnetKey
}

// prefix gives the subnet as people know it.
func (sub subnet) prefix() netip.Prefix { return sub.key.prefix(sub.level.bits) }
