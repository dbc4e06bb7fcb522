package subnets

// How the gates divide the IP address space. Some networks are named, and have limits of their
// own. All other addresses are divided into subnets on every level of their family. A level is a
// prefix length, and its subnets are all networks of the family with that length.

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// numStripes is the number of locks that the subnets share. The widest subnet of an address
// chooses the lock, so the address's subnets on all levels are under the same one.
const numStripes = 64

// level is one prefix length, and the limits of every subnet that has it.
type level struct {
	id     uint16 // from 1, unique across both families
	bits   int    // the prefix length
	host   uint   // the number of bits that follow the prefix
	conns  int64  // connections at a time; NoLimit is any number
	tokens Bucket
	wider  *level // the next wider level, or nil
}

// NoLimit, as a limit on connections, allows any number of them.
const NoLimit = math.MaxInt64

// namedNet has the limits that hold for the addresses of a named network in place of those of
// the levels: for connections, for tokens, or for both.
type namedNet struct {
	forConns, forTokens bool    // which of the levels' limits are replaced
	conns, tokens       *Stripe // nil is no limit
	free                bool    // neither connections nor tokens are limited
}

// division is how the part of a family that is in no named network is divided.
type division struct {
	levels    []level // the narrowest subnets first
	narrowest *level  // the first of them, or nil
	widest    uint    // the number of bits that follow the shortest prefix
	// counts: some level limits connections at a time; takes: some level has buckets.
	counts, takes bool
	// begins has a bit for every first byte that an address in a named network may
	// have. Addresses with another first byte need not be looked up.
	begins [4]uint64
}

// partition has the named networks and the levels of both families. It is immutable once it is
// built.
type partition struct {
	networks *bart.Table[namedNet]
	families [ip.Families]division
	byID     []*level // the levels by id, from 1
}

// A Builder collects the limits of a Subnets. Its zero value has none. Its methods return an
// error for a prefix length that a family does not have, and for a network that is invalid or of
// another family; NAT64 networks and IPv4-mapped ones belong to both families. A Builder is not
// safe for concurrent use, and must not be used again after New.
type Builder struct {
	families        [ip.Families]division
	counts, buckets bart.Table[*Stripe] // networks with limits of their own, nil for no limit
}

// LimitConns limits the connections at a time of every subnet whose prefix length is bits. A
// limit of NoLimit is no limit. A connection has to fit all such limits of its family, unless
// its address is in a network for which LimitNetworkConns was called.
func (b *Builder) LimitConns(f ip.Family, bits int, conns int64) error {
	if err := CheckPrefixLength(f, bits); err != nil || conns == NoLimit {
		return err
	}
	at := b.families[f].level(f, bits)
	at.conns = min(at.conns, conns) // a connection has to fit all limits for one length
	b.families[f].counts = true
	return nil
}

// LimitNetworkConns limits the connections at a time of one network, which was listed for a
// family. Inside the network, this limit replaces those of LimitConns. An address counts only in
// the most specific network that contains it. If a network has two limits, the first one holds.
func (b *Builder) LimitNetworkConns(f ip.Family, network netip.Prefix, conns int64) error {
	return addNetwork(&b.counts, f, network, level{conns: conns})
}

// LimitRate sets the bucket of every subnet whose prefix length is bits. If it is called twice
// for a length, the last bucket that is a limit holds. A connection takes a token from the
// buckets of all lengths of its family, unless its address is in a network for which
// LimitNetworkRate was called.
func (b *Builder) LimitRate(f ip.Family, bits int, tokens Bucket) error {
	if err := CheckPrefixLength(f, bits); err != nil || tokens.Unlimited() {
		return err
	}
	b.families[f].level(f, bits).tokens = tokens
	b.families[f].takes = true
	return nil
}

// LimitNetworkRate sets the bucket of one network, by the rules of LimitNetworkConns.
func (b *Builder) LimitNetworkRate(f ip.Family, network netip.Prefix, tokens Bucket) error {
	return addNetwork(&b.buckets, f, network, level{conns: NoLimit, tokens: tokens})
}

// partition returns the division of the address space that the limits require.
func (b *Builder) partition() *partition {
	p := &partition{networks: new(bart.Table[namedNet]), families: b.families}
	for f := range p.families {
		p.order(&p.families[f])
	}
	// A network may be named for connections only, or for tokens only. For the other of the
	// two, the next wider named network holds, or the levels if there is none.
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

// order sorts the levels of a family, the narrowest first, and sets their ids.
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

// begin sets the bits in begins for the first bytes of the addresses in a named network.
func (div *division) begin(at netip.Prefix) {
	first := at.Addr().AsSlice()[0]
	for i := range 1 << max(0, 8-at.Bits()) {
		b := first + byte(i)
		div.begins[b/64] |= 1 << (b % 64)
	}
}

// mayBeNamed reports whether an address that begins with the byte first may be in a named
// network.
func (div *division) mayBeNamed(first byte) bool {
	return div.begins[first/64]>>(first%64)&1 != 0
}

// level returns the level with a prefix length, which CheckPrefixLength has accepted. It adds a
// level without limits if there is none.
func (div *division) level(f ip.Family, bits int) *level {
	at := slices.IndexFunc(div.levels, func(l level) bool { return l.bits == bits })
	if at < 0 {
		at = len(div.levels)
		div.levels = append(div.levels, level{bits: bits, host: uint(f.BitLen() - bits), conns: NoLimit})
	}
	return &div.levels[at]
}

// addNetwork adds a network that was listed for a family, with limits of its own. If a network
// is added twice, the first limits hold.
func addNetwork(to *bart.Table[*Stripe], f ip.Family, network netip.Prefix, l level) error {
	if err := CheckNetwork(f, network); err != nil {
		return err
	}
	plain := ip.NormalPrefix(network)
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

// CheckNetwork returns an error if a network is not one of a family. An IPv4 network may be written
// in IPv6.
func CheckNetwork(f ip.Family, network netip.Prefix) error {
	switch {
	case !network.IsValid():
		return fmt.Errorf("expected an %s prefix as Network, got none or an invalid one", f)
	case ip.FamilyOf(network.Addr()) != f && ip.FamilyOf(ip.NormalPrefix(network).Addr()) != f:
		return fmt.Errorf("expected an %s prefix as Network, got %s", f, network)
	}
	return nil
}

// CheckPrefixLength returns an error if a family has no prefixes of that length.
func CheckPrefixLength(f ip.Family, bits int) error {
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

// prefix returns the subnet as a netip.Prefix.
func (sub subnet) prefix() netip.Prefix { return sub.key.Prefix(sub.level.bits) }
