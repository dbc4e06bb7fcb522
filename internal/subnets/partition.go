package subnets

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

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// numStripes is how many locks the subnets share out. They are chosen by the
// widest subnet of an address, so that its subnets on all levels are under one.
const numStripes = 64

// level is one prefix length, and what every subnet of it may have.
type level struct {
	id     uint16 // from 1, through both families
	bits   int    // the prefix length
	host   uint   // how many bits follow it
	conns  int64  // connections at a time; NoLimit is any number
	tokens Bucket
	wider  *level // the next one; nil is none
}

// NoLimit, as a number of connections, is any number.
const NoLimit = math.MaxInt64

// namedNet is what stands in place of the levels for a named network, or one
// inside it.
type namedNet struct {
	forConns, forTokens bool    // for which of the two it does
	conns, tokens       *Stripe // nil is no limit
	free                bool    // neither is limited
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
	families [ip.Families]division
	byID     []*level // the levels by id, from 1
}

// A Builder takes the limits that a Subnets is made with. Its zero value has none. Its
// methods return errors for prefix lengths that a family does not have, and for networks that
// are invalid or of another family; those of NAT64 and IPv4-mapped ones are of both. It is
// not safe for concurrent use, and is used up by New.
type Builder struct {
	families        [ip.Families]division
	counts, buckets bart.Table[*Stripe] // networks with limits of their own, nil for no limit
}

// LimitConns limits the connections at a time of every subnet that has a prefix length of so
// many bits; NoLimit does not. A connection has to fit all such limits of its family, but for
// those in a network that LimitNetworkConns was told of.
func (b *Builder) LimitConns(f ip.Family, bits int, conns int64) error {
	if err := checkPrefixLength(f, bits); err != nil || conns == NoLimit {
		return err
	}
	at := b.families[f].level(f, bits)
	at.conns = min(at.conns, conns) // a connection has to fit all entries
	b.families[f].counts = true
	return nil
}

// LimitNetworkConns limits the connections at a time of one network, which was listed for a
// family, in place of what LimitConns says. An address counts in the most specific network.
// Of two limits for one network the first holds.
func (b *Builder) LimitNetworkConns(f ip.Family, network netip.Prefix, conns int64) error {
	return addNetwork(&b.counts, f, network, level{conns: conns})
}

// LimitRate gives a bucket to every subnet that has a prefix length of so many bits. There is
// one for a length. A connection takes a token from the buckets of all lengths of its family,
// but for those in a network that LimitNetworkRate was told of.
func (b *Builder) LimitRate(f ip.Family, bits int, tokens Bucket) error {
	if err := checkPrefixLength(f, bits); err != nil || tokens.Unlimited() {
		return err
	}
	b.families[f].level(f, bits).tokens = tokens
	b.families[f].takes = true
	return nil
}

// LimitNetworkRate is LimitNetworkConns for a bucket.
func (b *Builder) LimitNetworkRate(f ip.Family, network netip.Prefix, tokens Bucket) error {
	return addNetwork(&b.buckets, f, network, level{conns: NoLimit, tokens: tokens})
}

// partition returns how the limits cut up the address space.
func (b *Builder) partition() *partition {
	p := &partition{networks: new(bart.Table[namedNet]), families: b.families}
	for f := range p.families {
		p.order(&p.families[f])
	}
	// What is named for one of the two only is for the other as the network
	// around it, or not named.
	for _, named := range []*bart.Table[*Stripe]{&b.counts, &b.buckets} {
		for at := range named.All() {
			var n namedNet
			n.conns, n.forConns = b.counts.LookupPrefix(at)
			n.tokens, n.forTokens = b.buckets.LookupPrefix(at)
			div := &p.families[ip.FamilyOf(at.Addr())]
			n.free = n.conns == nil && n.tokens == nil && (n.forConns || !div.counts) && (n.forTokens || !div.takes)
			p.networks.Insert(at, n)
			div.begin(at)
		}
	}
	return p
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

// mayBeNamed reports whether an address that begins with this byte may be in a named
// network.
func (div *division) mayBeNamed(first byte) bool {
	return div.begins[first/64]>>(first%64)&1 != 0
}

// level finds a level, or adds one without limits.
func (div *division) level(f ip.Family, bits int) *level {
	at := slices.IndexFunc(div.levels, func(l level) bool { return l.bits == bits })
	if at < 0 {
		at = len(div.levels)
		div.levels = append(div.levels, level{bits: bits, host: uint(f.BitLen() - bits), conns: NoLimit})
	}
	return &div.levels[at]
}

// addNetwork adds a network that was listed for a family, with limits of its own.
// Of two entries for one network the first holds.
func addNetwork(to *bart.Table[*Stripe], f ip.Family, network netip.Prefix, l level) error {
	plain := ip.NormalPrefix(network)
	switch {
	case !network.IsValid():
		return fmt.Errorf("expected an %s prefix as Network, got none or an invalid one", f)
	case ip.FamilyOf(network.Addr()) != f && ip.FamilyOf(plain.Addr()) != f:
		return fmt.Errorf("expected an %s prefix as Network, got %s", f, network)
	}
	if _, ok := to.Get(plain); ok {
		return nil
	}
	var st *Stripe
	if l.conns != NoLimit || !l.tokens.Unlimited() {
		l.bits = plain.Bits()
		st = &Stripe{named: &subnet{level: &l, key: ip.KeyOf(plain.Addr())}}
	}
	to.Insert(plain, st)
	return nil
}

// checkPrefixLength must be asked before level.
func checkPrefixLength(f ip.Family, bits int) error {
	if bits < 0 || bits > f.BitLen() {
		return fmt.Errorf("PrefixLength is %d, expected 0 to %d", bits, f.BitLen())
	}
	return nil
}

// subnet is one part of the address space.
type subnet struct {
	level *level
	key   ip.Key
}

// prefix returns the subnet as people know it.
func (sub subnet) prefix() netip.Prefix { return sub.key.Prefix(sub.level.bits) }
