package rcmgr

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// gatesInForce returns the limits of subnets that a manager goes by.
func gatesInForce(m *Manager) SubnetLimits { return m.Limits().ToPartialLimitConfig().Gates.Subnets }

// An option means what it was given when it was made, and a manager what it was made
// with: what a caller does to its own slices later comes into force nowhere.
func TestWhatAnOptionWasGivenIsTheCallersToChange(t *testing.T) {
	network := netip.MustParsePrefix("10.0.0.0/8")
	perSubnet4 := []ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 5}}
	perSubnet6 := []ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: 6}}
	networks4 := []NetworkPrefixLimit{{Network: network, ConnCount: 7}}
	networks6 := []NetworkPrefixLimit{{Network: netip.MustParsePrefix("2001:db8::/32"), ConnCount: 8}}
	addrs := []multiaddr.Multiaddr{mustMA(t, "/ip4/192.0.2.1")}
	texts := []string{"/ip4/192.0.2.2"}
	observed, fair := []Kind{KindProcess}, []Kind{KindSystem}
	opts := []Option{
		WithLimitPerSubnet(perSubnet4, perSubnet6), WithNetworkPrefixLimit(networks4, networks6),
		WithAllowlistedMultiaddrs(addrs), WithAllowlistStrings(texts, false),
		WithObserveOnly(observed...), WithFairShare(fair...),
	}
	want := SubnetLimits{
		IPv4:     map[int]LimitVal{32: 5},
		IPv6:     map[int]LimitVal{64: 6},
		Networks: map[netip.Prefix]LimitVal{network: 7, netip.MustParsePrefix("2001:db8::/32"): 8},
	}
	first := newManager(t, unlimitedConf(), opts...)

	perSubnet4[0].ConnCount, perSubnet6[0].PrefixLength = 50, 48
	networks4[0].ConnCount, networks6[0].Network = 70, netip.MustParsePrefix("2001:db8::/48")
	addrs[0], texts[0] = mustMA(t, "/ip4/198.51.100.1"), "not an address"
	observed[0], fair[0] = KindSystem, KindConn
	require.NoError(t, first.Refresh())
	for _, m := range []*Manager{first, newManager(t, unlimitedConf(), opts...)} {
		require.Equal(t, want, gatesInForce(m))
		require.True(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/192.0.2.1")))
		require.True(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/192.0.2.2")))
		require.False(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/198.51.100.1")))
		require.Equal(t, []Kind{KindProcess}, m.Observed())
		require.Equal(t, []Kind{KindSystem}, m.Snapshot().FairShare.Scopes)
	}
}

// The default networks are read when a manager is made, and never again.
func TestTheDefaultNetworksAreReadWhenAManagerIsMade(t *testing.T) {
	was4, was6 := DefaultNetworkPrefixLimitV4, DefaultNetworkPrefixLimitV6
	defer func() { DefaultNetworkPrefixLimitV4, DefaultNetworkPrefixLimitV6 = was4, was6 }()
	DefaultNetworkPrefixLimitV4, DefaultNetworkPrefixLimitV6 = slices.Clone(was4), slices.Clone(was6)

	far := mustMA(t, "/ip4/127.0.0.1/tcp/1")
	conf := unlimitedConf()
	named := netip.MustParsePrefix("192.0.2.0/24")
	conf.Gates = &GateLimits{Subnets: SubnetLimits{Networks: map[netip.Prefix]LimitVal{named: 3}}}
	configured, plain := newManager(t, conf), newManager(t, unlimitedConf())
	before := gatesInForce(plain)
	require.Equal(t, Unlimited, before.Networks[netip.MustParsePrefix("127.0.0.0/8")])

	DefaultNetworkPrefixLimitV4[0].ConnCount = 0
	DefaultNetworkPrefixLimitV6 = nil
	for _, m := range []*Manager{plain, configured} {
		require.NoError(t, m.Refresh())
		_, err := m.OpenConnection(network.DirInbound, false, far)
		require.NoError(t, err)
	}
	require.Equal(t, before, gatesInForce(plain))
	require.EqualValues(t, 3, gatesInForce(configured).Networks[named])

	_, err := newManager(t, unlimitedConf()).OpenConnection(network.DirInbound, false, far)
	require.ErrorContains(t, err, "subnet:127.0.0.0/8", "a manager that is made now has the networks of now")
	require.Equal(t, math.MaxInt, was4[0].ConnCount)
}
