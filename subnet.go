package rcmgr

// How many connections one subnet may hold at a time. A connection counts in
// the subnets of its far end on all configured levels, or in the one named
// network that its far end is in. Everything is checked before anything is
// counted, under the one lock that has all subnets of the address.

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
)

// ConnLimitPerSubnet limits the connections of every subnet of one size. An
// address in a network that has a NetworkPrefixLimit is not concerned.
type ConnLimitPerSubnet struct {
	// PrefixLength is the size of the subnets in bits: 0 to 32 for IPv4, 0 to
	// 128 for IPv6. All addresses that share their first PrefixLength bits are
	// one subnet.
	PrefixLength int
	// ConnCount is how many connections each of the subnets may hold at a time.
	// 0 admits none, math.MaxInt does not limit them.
	ConnCount int
}

// NetworkPrefixLimit limits the connections of one network, in place of every
// ConnLimitPerSubnet. Where networks contain each other, an address counts in
// the most specific one only.
type NetworkPrefixLimit struct {
	// Network is the network. An IPv4-mapped one is taken as IPv4.
	Network netip.Prefix
	// ConnCount is how many connections all of the network may hold at a time.
	// 0 admits none, math.MaxInt does not limit it.
	ConnCount int
}

// DefaultNetworkPrefixLimitV4 and DefaultNetworkPrefixLimitV6 hold the networks
// that have a limit of their own by default: loopback, which is not limited.
// They are read when a manager is made; a change afterwards does not affect it.
var (
	DefaultNetworkPrefixLimitV4 = []NetworkPrefixLimit{
		{Network: netip.MustParsePrefix("127.0.0.0/8"), ConnCount: math.MaxInt},
	}
	DefaultNetworkPrefixLimitV6 = []NetworkPrefixLimit{
		{Network: netip.MustParsePrefix("::1/128"), ConnCount: math.MaxInt},
	}
)

// connsPerHost is how many connections a host makes to another at a time: the
// swarm's number of concurrent dials to one peer.
const connsPerHost = 8

// subnetConfig is what the subnet counts are made from, by family.
type subnetConfig struct {
	perSubnet [numFamilies][]ConnLimitPerSubnet
	networks  [numFamilies][]NetworkPrefixLimit
}

// defaultSubnetConfig gives one host's connections to every IPv4 address and
// every IPv6 /56, which is what a household gets, and to eight of those in a
// /48, which is what a site gets.
func defaultSubnetConfig() subnetConfig {
	return subnetConfig{
		perSubnet: [numFamilies][]ConnLimitPerSubnet{
			ipv4: {{PrefixLength: 32, ConnCount: connsPerHost}},
			ipv6: {
				{PrefixLength: 56, ConnCount: connsPerHost},
				{PrefixLength: 48, ConnCount: 8 * connsPerHost},
			},
		},
		networks: [numFamilies][]NetworkPrefixLimit{
			ipv4: DefaultNetworkPrefixLimitV4,
			ipv6: DefaultNetworkPrefixLimitV6,
		},
	}
}

// subnets counts connections. Its methods are safe for concurrent use. The
// locks are never held together with others.
type subnets struct {
	in      partition[*networkConns, int]
	stripes [gateStripes]subnetStripe
}

// subnetStripe has the subnets under one lock, on a cache line of its own.
type subnetStripe struct {
	mu struct {
		sync.Mutex
		held []subnetInts // connections, by level; a subnet without any has no entry
	}
	_ [32]byte
}

// networkConns counts the connections of a named network. The network is known
// beforehand and may be large, so it has an atomic rather than a stripe.
type networkConns struct {
	network netip.Prefix
	limit   int64
	held    atomic.Int64 // only ever moved to a number from 0 to limit
}

// newSubnets copies what it needs of cfg. An error names the option and the
// place in its lists.
func newSubnets(cfg subnetConfig) (*subnets, error) {
	s := &subnets{in: newPartition[*networkConns, int]()}
	err := cfg.each(
		func(f family, l ConnLimitPerSubnet) error {
			if l.ConnCount != math.MaxInt {
				s.in.addLevel(f, l.PrefixLength, l.ConnCount)
			}
			return nil
		},
		func(f family, l NetworkPrefixLimit) error {
			return s.in.addNetwork(f, l.Network, &networkConns{network: normalPrefix(l.Network), limit: int64(l.ConnCount)})
		})
	if err != nil {
		return nil, err
	}
	for i := range s.stripes {
		s.stripes[i].mu.held = make([]subnetInts, s.in.numLevels)
	}
	return s, nil
}

// each hands every entry to the function of its list, and says in an error
// which entry it is about.
func (cfg *subnetConfig) each(
	perSubnet func(family, ConnLimitPerSubnet) error,
	network func(family, NetworkPrefixLimit) error,
) error {
	for f := range numFamilies {
		for i, l := range cfg.perSubnet[f] {
			err := cmp.Or(checkConnCount(l.ConnCount), f.checkPrefixLength(l.PrefixLength))
			if err == nil {
				err = perSubnet(f, l)
			}
			if err != nil {
				return fmt.Errorf("WithLimitPerSubnet: %s[%d]: %w", f, i, err)
			}
		}
		for i, l := range cfg.networks[f] {
			err := checkConnCount(l.ConnCount)
			if err == nil {
				err = network(f, l)
			}
			if err != nil {
				return fmt.Errorf("WithNetworkPrefixLimit: %s[%d]: %w", f, i, err)
			}
		}
	}
	return nil
}

// describe says the limits in short, as "ipv4/32: 8".
func (cfg *subnetConfig) describe() (all []string) {
	for f := range numFamilies {
		for _, l := range cfg.perSubnet[f] {
			all = append(all, fmt.Sprintf("%s/%d: %s", f, l.PrefixLength, countText(l.ConnCount)))
		}
		for _, l := range cfg.networks[f] {
			all = append(all, fmt.Sprintf("%s: %s", l.Network, countText(l.ConnCount)))
		}
	}
	return all
}

func countText(n int) string {
	if n == math.MaxInt {
		return "unlimited"
	}
	return strconv.Itoa(n)
}

func checkConnCount(n int) error {
	if n < 0 {
		return fmt.Errorf("ConnCount is %d, expected 0 or more", n)
	}
	return nil
}

// add counts a connection from a normalised address, unless that would take
// one of the address's subnets past its limit: then nothing has changed, and
// the first subnet that is full is given with its limit. An invalid address is
// in no subnet and always fits.
func (s *subnets) add(addr netip.Addr) (blocked netip.Prefix, limit int, ok bool) {
	if !addr.IsValid() {
		return netip.Prefix{}, 0, true
	}
	if n, named := s.in.networks.Lookup(addr); named {
		if !n.move(1) {
			return n.network, int(n.limit), false
		}
		return netip.Prefix{}, 0, true
	}
	levels := s.in.levelsOf(addr)
	if len(levels) == 0 {
		return netip.Prefix{}, 0, true
	}
	st := &s.stripes[s.in.stripeOf(addr)]
	st.mu.Lock()
	defer st.mu.Unlock()
	held := make([]subnetInt, 0, inlineLevels)
	for i := range levels {
		l := &levels[i]
		k := l.key(addr)
		n, _ := st.mu.held[l.id].get(k)
		if n >= int64(l.limit) {
			return l.subnet(addr), l.limit, false
		}
		held = append(held, subnetInt{k, n + 1})
	}
	for i, h := range held {
		st.mu.held[levels[i].id].set(h)
	}
	return netip.Prefix{}, 0, true
}

// remove takes back one add of the same address. It is false, and nothing has
// changed, if the address cannot have been added: a bug of the caller. (What
// is not limited is not counted, so nothing can be missed there.)
func (s *subnets) remove(addr netip.Addr) bool {
	if !addr.IsValid() {
		return true
	}
	if n, named := s.in.networks.Lookup(addr); named {
		return n.move(-1)
	}
	levels := s.in.levelsOf(addr)
	if len(levels) == 0 {
		return true
	}
	st := &s.stripes[s.in.stripeOf(addr)]
	st.mu.Lock()
	defer st.mu.Unlock()
	held := make([]subnetInt, 0, inlineLevels)
	for i := range levels {
		l := &levels[i]
		k := l.key(addr)
		n, ok := st.mu.held[l.id].get(k)
		if !ok {
			return false
		}
		held = append(held, subnetInt{k, n - 1})
	}
	for i, h := range held {
		if at := &st.mu.held[levels[i].id]; h.value == 0 {
			at.delete(h.key)
		} else {
			at.set(h)
		}
	}
	return true
}

// move changes the count by 1 or -1, or not at all if it would leave the range
// from 0 to the limit. Checking and changing are one step: a connection that is
// refused is never seen by another. A network without a limit does not count,
// which keeps loopback from fighting over one cache line.
func (n *networkConns) move(delta int64) bool {
	if n.limit == math.MaxInt {
		return true
	}
	for {
		held := n.held.Load()
		next := held + delta
		if next < 0 || next > n.limit {
			return false
		}
		if n.held.CompareAndSwap(held, next) {
			return true
		}
	}
}
