package rcmgr

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

func mustSubnets(t testing.TB, conns subnetConfig, rates rateConfig) *subnets.Subnets {
	t.Helper()
	s, err := newSubnets(conns, rates, subnets.Config{Error: gateRefusal})
	require.NoError(t, err)
	return s
}

// takePlace asks for a place and a token, and returns what is full and its limit if there
// are none.
func takePlace(s *subnets.Subnets, addr netip.Addr) (p subnets.Pass, blocked netip.Prefix, limit int, ok bool) {
	why, ok := s.Enter(addr, subnets.Inbound, &p)
	if !ok {
		e := why.(*LimitError)
		blocked, limit = e.why.scope.prefix(), int(e.Limit())
	}
	return p, blocked, limit, ok
}

// nthAddr parses an address in which # stands for a hexadecimal number.
func nthAddr(format string, i int) netip.Addr {
	return netip.MustParseAddr(strings.ReplaceAll(format, "#", fmt.Sprintf("%x", i)))
}

func TestSubnetDefaults(t *testing.T) {
	s := mustSubnets(t, defaultSubnetConfig(), rateConfig{})
	fill := func(format string, n int) (blocked netip.Prefix, limit, admitted int) {
		for i := range n {
			_, b, l, ok := takePlace(s, nthAddr(format, i))
			if !ok {
				return b, l, i
			}
		}
		return blocked, limit, n
	}
	for _, c := range []struct {
		format, blocked string
		limit           int
	}{
		{"192.0.2.1", "192.0.2.1/32", 8},
		{"2001:db8:1::#", "2001:db8:1::/56", 8},
		{"2001:db8:2:#00::1", "2001:db8:2::/48", 64},
	} {
		blocked, limit, admitted := fill(c.format, 200)
		require.Equal(t, []any{c.blocked, c.limit, c.limit}, []any{blocked.String(), limit, admitted})
	}
	for _, loopback := range []string{"127.0.0.1", "127.8.9.10", "::1"} {
		_, _, admitted := fill(loopback, 200)
		require.Equal(t, 200, admitted, loopback)
		p, _, _, _ := takePlace(s, netip.MustParseAddr(loopback))
		require.Nil(t, p.Conns, "what is not limited is not counted")
	}
}

func TestBadSubnetLimitsAreErrorsThatNameThem(t *testing.T) {
	perSubnet := func(f ip.Family, l ConnLimitPerSubnet) (cfg subnetConfig) {
		cfg.perSubnet[f] = []ConnLimitPerSubnet{{8, 1}, l}
		return cfg
	}
	network := func(f ip.Family, n netip.Prefix, count int) (cfg subnetConfig) {
		cfg.networks[f] = []NetworkPrefixLimit{{n, count}}
		return cfg
	}
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")
	for want, cfg := range map[string]subnetConfig{
		"WithLimitPerSubnet: ipv4[1]: PrefixLength is 33, expected 0 to 32":                               perSubnet(ip.V4, ConnLimitPerSubnet{33, 1}),
		"WithLimitPerSubnet: ipv6[1]: PrefixLength is 129, expected 0 to 128":                             perSubnet(ip.V6, ConnLimitPerSubnet{129, math.MaxInt}),
		"WithLimitPerSubnet: ipv6[1]: PrefixLength is -1, expected 0 to 128":                              perSubnet(ip.V6, ConnLimitPerSubnet{-1, 1}),
		"WithLimitPerSubnet: ipv4[1]: ConnCount is -1, expected 0 or more":                                perSubnet(ip.V4, ConnLimitPerSubnet{32, -1}),
		"WithNetworkPrefixLimit: ipv4[0]: expected an ipv4 prefix as Network, got 2001:db8::/32":          network(ip.V4, v6, 1),
		"WithNetworkPrefixLimit: ipv6[0]: expected an ipv6 prefix as Network, got 10.0.0.0/8":             network(ip.V6, v4, 1),
		"WithNetworkPrefixLimit: ipv6[0]: expected an ipv6 prefix as Network, got none or an invalid one": network(ip.V6, netip.Prefix{}, 1),
		"WithNetworkPrefixLimit: ipv4[0]: ConnCount is -5, expected 0 or more":                            network(ip.V4, v4, -5),
	} {
		_, err := newSubnets(cfg, rateConfig{}, subnets.Config{})
		require.EqualError(t, err, want)
	}
}

func TestSubnetLimitsAreCopied(t *testing.T) {
	networks := []NetworkPrefixLimit{{netip.MustParsePrefix("10.0.0.0/8"), 1}, {netip.MustParsePrefix("10.1.0.0/16"), 1}}
	levels := []ConnLimitPerSubnet{{16, 1}, {32, 1}}
	cfg := subnetConfig{
		perSubnet: [ip.Families][]ConnLimitPerSubnet{ip.V4: slices.Clone(levels)},
		networks:  [ip.Families][]NetworkPrefixLimit{ip.V4: slices.Clone(networks)},
	}
	s := mustSubnets(t, cfg, rateConfig{})
	require.Equal(t, levels, cfg.perSubnet[ip.V4])
	require.Equal(t, networks, cfg.networks[ip.V4])
	cfg.perSubnet[ip.V4][0].ConnCount, cfg.networks[ip.V4][1].ConnCount = 9, 9
	for _, addr := range []string{"10.1.0.1", "192.0.2.1"} {
		_, _, _, first := takePlace(s, netip.MustParseAddr(addr))
		_, _, _, second := takePlace(s, netip.MustParseAddr(addr))
		require.Equal(t, []bool{true, false}, []bool{first, second}, addr)
	}
}
