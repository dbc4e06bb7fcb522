package rcmgr

// How many connections one subnet may hold at a time. A connection counts in
// the subnets of its far end on all configured levels, or in the one named
// network that its far end is in.

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
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
	// Network is the network, named by any of its addresses. An IPv4-mapped one, or
	// one of NAT64, is taken as IPv4.
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
	perSubnet [ip.Families][]ConnLimitPerSubnet
	networks  [ip.Families][]NetworkPrefixLimit
}

// defaultSubnetConfig returns one host's connections to every IPv4 address and
// every IPv6 /56, which is what a household gets, and to eight of those in a
// /48, which is what a site gets.
func defaultSubnetConfig() subnetConfig {
	return subnetConfig{
		perSubnet: [ip.Families][]ConnLimitPerSubnet{
			ip.V4: {{PrefixLength: 32, ConnCount: connsPerHost}},
			ip.V6: {
				{PrefixLength: 56, ConnCount: connsPerHost},
				{PrefixLength: 48, ConnCount: 8 * connsPerHost},
			},
		},
		networks: [ip.Families][]NetworkPrefixLimit{
			ip.V4: slices.Clone(DefaultNetworkPrefixLimitV4),
			ip.V6: slices.Clone(DefaultNetworkPrefixLimitV6),
		},
	}
}

// each hands every entry to the function of its list, and says in an error
// which entry it is about.
func (cfg *subnetConfig) each(
	perSubnet func(ip.Family, ConnLimitPerSubnet) error,
	network func(ip.Family, NetworkPrefixLimit) error,
) error {
	for f := range ip.Families {
		for i, l := range cfg.perSubnet[f] {
			err := checkConnCount(l.ConnCount)
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
	for f := range ip.Families {
		for _, l := range cfg.perSubnet[f] {
			all = append(all, fmt.Sprintf("%s/%d: %s", f, l.PrefixLength, limitText(int64(l.ConnCount))))
		}
		for _, l := range cfg.networks[f] {
			all = append(all, fmt.Sprintf("%s: %s", l.Network, limitText(int64(l.ConnCount))))
		}
	}
	return all
}

// connLimit returns how the gates know a ConnCount.
func connLimit(n int) int64 {
	if n == math.MaxInt {
		return subnets.NoLimit
	}
	return int64(n)
}

func checkConnCount(n int) error {
	if n < 0 {
		return fmt.Errorf("ConnCount is %d, expected 0 or more", n)
	}
	return nil
}
