package rcmgr

// Limits on the connections that one subnet may have at a time. A connection counts in the
// subnets of its remote address on all configured levels. If the address is in a named network,
// the connection counts in the most specific one only.

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// ConnLimitPerSubnet limits the connections of every subnet of one size. It does not apply to
// addresses in a network that has a NetworkPrefixLimit.
type ConnLimitPerSubnet struct {
	// PrefixLength is the size of the subnets in bits: 0 to 32 for IPv4, 0 to
	// 128 for IPv6. All addresses that share their first PrefixLength bits are
	// one subnet.
	PrefixLength int
	// ConnCount is how many connections each of the subnets may hold at a time.
	// 0 admits none, math.MaxInt does not limit them.
	ConnCount int
}

// NetworkPrefixLimit limits the connections of one network, in place of every ConnLimitPerSubnet.
// If several such networks contain an address, it counts in the most specific one only.
type NetworkPrefixLimit struct {
	// Network is the network, as a prefix of any of its addresses. An IPv4-mapped network, or
	// one of NAT64, is taken as the IPv4 network.
	Network netip.Prefix
	// ConnCount is how many connections all of the network may hold at a time.
	// 0 admits none, math.MaxInt does not limit it.
	ConnCount int
}

// DefaultNetworkPrefixLimitV4 and DefaultNetworkPrefixLimitV6 hold the networks
// that have a limit of their own by default. It is loopback, whose connections are not limited.
// The variables are read when a manager is made; later changes do not affect that manager.
var (
	DefaultNetworkPrefixLimitV4 = []NetworkPrefixLimit{
		{Network: netip.MustParsePrefix("127.0.0.0/8"), ConnCount: math.MaxInt},
	}
	DefaultNetworkPrefixLimitV6 = []NetworkPrefixLimit{
		{Network: netip.MustParsePrefix("::1/128"), ConnCount: math.MaxInt},
	}
)

// connsPerHost is the number of connections that a host makes to another host at a time, which is
// the swarm's number of concurrent dials to one peer.
const connsPerHost = 8

// subnetConfig has the limits on connections per subnet, by family.
type subnetConfig struct {
	perSubnet [ip.Families][]ConnLimitPerSubnet
	networks  [ip.Families][]NetworkPrefixLimit
	replaced  replacedLists
}

// replacedLists says for which families an option has replaced the limits on connections.
type replacedLists struct{ perSubnet, networks [ip.Families]bool }

// defaultSubnetConfig returns default limits. Every IPv4 address, and every IPv6 /56, which is
// what a provider assigns to a household, may have the connections of one host. Every /48, which
// is what a provider assigns to a site, may have those of eight hosts.
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

// each calls perSubnet or network with every entry of the two lists. Its error names the place of
// the entry.
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

// repair brings limits that cannot be into the form of limits with the effect that they have in
// go-libp2p's manager, and returns what was wrong with them. The lists are not written to.
// networksPlace is the place of the lists of networks.
func (cfg *subnetConfig) repair(networksPlace string) (faults []fault) {
	wrong := func(place string, err error, then string) {
		faults = append(faults, fault{fmt.Errorf("%s: %w", place, err), then})
	}
	for f := range ip.Families {
		perSubnet := slices.Clone(cfg.perSubnet[f])
		for i := range perSubnet {
			l, place := &perSubnet[i], fmt.Sprintf("WithLimitPerSubnet: %s[%d]", f, i)
			if err := subnets.CheckPrefixLength(f, l.PrefixLength); err != nil {
				wrong(place, err, fmt.Sprintf("it refuses every connection from %s outside of named networks", f))
				*l = ConnLimitPerSubnet{}
			} else if err := checkConnCount(l.ConnCount); err != nil {
				wrong(place, err, fmt.Sprintf("it refuses every connection from %s outside of named networks", f))
				l.ConnCount = 0
			}
		}
		var networks []NetworkPrefixLimit
		for i, l := range cfg.networks[f] {
			place := fmt.Sprintf("%s: %s[%d]", networksPlace, f, i)
			if err := subnets.CheckNetwork(f, l.Network); err != nil {
				wrong(place, err, "it has no effect")
				continue
			}
			if err := checkConnCount(l.ConnCount); err != nil {
				wrong(place, err, "it refuses every connection from the network")
				l.ConnCount = 0
			}
			networks = append(networks, l)
		}
		if cfg.perSubnet[f] != nil {
			cfg.perSubnet[f] = perSubnet
		}
		if cfg.networks[f] != nil {
			cfg.networks[f] = append([]NetworkPrefixLimit{}, networks...)
		}
	}
	return faults
}

// describe returns the limits as short texts, such as "ipv4/32: 8".
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

// connLimit returns a ConnCount as package subnets takes it: math.MaxInt becomes NoLimit.
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
