package rcmgr

import (
	"math"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	xrate "github.com/libp2p/go-libp2p/x/rate"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

func TestConnRateDefaults(t *testing.T) {
	synctest.Test(t, testConnRateDefaults) // time passes in sleep alone
}

func testConnRateDefaults(t *testing.T) {
	for _, c := range []struct {
		format, blocked string
		burst           int
		interval        time.Duration
	}{
		{"192.0.2.1", "192.0.2.1/32", 16, 5 * time.Second},
		{"2001:db8:1::#", "2001:db8:1::/56", 16, 5 * time.Second},
		{"2001:db8:2:#00::1", "2001:db8:2::/48", 80, 2 * time.Second},
	} {
		r := mustSubnets(t, subnetConfig{}, defaultRateConfig())
		taken := func() (n int) {
			for i := range 200 {
				_, blocked, _, ok := takePlace(r, nthAddr(c.format, i))
				if !ok {
					require.Equal(t, c.blocked, blocked.String())
					return n
				}
				n++
			}
			return n
		}
		require.Equal(t, c.burst, taken(), c.format)
		time.Sleep(c.interval - 1)
		require.Zero(t, taken(), c.format)
		time.Sleep(time.Nanosecond)
		require.Equal(t, 1, taken(), c.format)
	}
	r := mustSubnets(t, subnetConfig{}, defaultRateConfig())
	for _, loopback := range []string{"127.0.0.1", "127.8.9.10", "::1"} {
		for range 200 {
			addr := netip.MustParseAddr(loopback)
			p, _, _, ok := takePlace(r, addr)
			require.True(t, ok, loopback)
			require.Equal(t, subnets.Pass{Addr: addr, Key: ip.KeyOf(addr)}, p, "loopback has no bucket, and so no lock")
		}
	}
}

func TestNoAddressNeedsNoToken(t *testing.T) {
	none := rateLimit{perSecond: 1, burst: 0}
	r := mustSubnets(t, subnetConfig{}, rateConfig{perSubnet: [ip.Families][]subnetRate{{{0, none}}, {{0, none}}}})
	caller := callerRates{&xrate.Limiter{GlobalLimit: xrate.Limit{RPS: 0.001, Burst: 1}}}
	for range 10 {
		_, _, _, ok := takePlace(r, netip.Addr{})
		require.True(t, ok)
		require.True(t, caller.allows(netip.Addr{}))
	}
}

func TestACallersOwnLimiterIsUsed(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	caller := callerRates{&xrate.Limiter{NetworkPrefixLimits: []xrate.PrefixLimit{
		{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Limit: xrate.Limit{RPS: 0.001, Burst: 2}},
	}}}
	g, err := newGate(gateConfig{}, &caller, false, nil)
	require.NoError(t, err)
	for want := 2; want >= 0; want-- {
		var pass subnets.Pass
		why := withGates(g).enterGates(addr, dimConnsIn, &pass)
		require.Equal(t, want > 0, why == nil)
		if why != nil {
			require.Equal(t, "rate:192.0.2.1/32", why.Scope())
		}
		pass.Undo() // cannot give it back
	}
	g, err = newGate(gateConfig{rate: defaultRateConfig()}, &callerRates{}, false, nil)
	require.NoError(t, err)
	for range 100 {
		why := withGates(g).enterGates(addr, dimConnsIn, &subnets.Pass{})
		require.Nil(t, why, "no limiter limits nothing")
	}
}

func TestSourceRatesLetHalfASubnetBeginUnverified(t *testing.T) {
	synctest.Test(t, testSourceRates) // time passes in sleep alone
}

func testSourceRates(t *testing.T) {
	cfg := defaultSubnetConfig()
	cfg.networks[ip.V4] = append(cfg.networks[ip.V4][:1:1],
		NetworkPrefixLimit{netip.MustParsePrefix("10.0.0.0/8"), 20},
		NetworkPrefixLimit{netip.MustParsePrefix("10.1.0.0/16"), 1})
	cfg.perSubnet[ip.V4] = append(cfg.perSubnet[ip.V4], ConnLimitPerSubnet{32, 100}) // the least holds
	r := mustSubnets(t, subnetConfig{}, cfg.sourceRates())
	unverified := func(addr string) (n int) {
		for range 100 {
			if _, _, _, ok := takePlace(r, netip.MustParseAddr(addr)); ok {
				n++
			}
		}
		return n
	}
	for addr, want := range map[string]int{
		"192.0.2.1": 4, "2001:db8::1": 4, "10.2.0.1": 10, "10.1.0.1": 0, "127.0.0.1": 100, "::1": 100,
	} {
		require.Equal(t, want, unverified(addr), addr)
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	p, _, _, _ := takePlace(r, loopback)
	require.Equal(t, subnets.Pass{Addr: loopback, Key: ip.KeyOf(loopback)}, p, "half of no limit is no limit: no bucket, and so no lock")
	time.Sleep(10*time.Second - 1)
	require.Equal(t, 0, unverified("192.0.2.1"))
	time.Sleep(time.Nanosecond)
	require.Equal(t, 1, unverified("192.0.2.1"))
}

func TestBadRatesAreErrorsThatNameThem(t *testing.T) {
	perSubnet := func(bits int, perSecond float64, burst int) (cfg rateConfig) {
		cfg.perSubnet[ip.V6] = []subnetRate{{bits, rateLimit{perSecond, burst}}}
		return cfg
	}
	badNetwork := rateConfig{networks: [ip.Families][]networkRate{ip.V4: {{network: netip.MustParsePrefix("::/0")}}}}
	for want, cfg := range map[string]rateConfig{
		"connect rate: subnets: ipv6[0]: PrefixLength is 129, expected 0 to 128":                              perSubnet(129, 0, 1),
		"connect rate: subnets: ipv6[0]: rate is -1 tokens per second, expected a finite number, 0 or more":   perSubnet(1, -1, 1),
		"connect rate: subnets: ipv6[0]: rate is NaN tokens per second, expected a finite number, 0 or more":  perSubnet(1, math.NaN(), 1),
		"connect rate: subnets: ipv6[0]: rate is +Inf tokens per second, expected a finite number, 0 or more": perSubnet(1, math.Inf(1), 1),
		"connect rate: subnets: ipv6[0]: burst is -1 tokens, expected 0 or more":                              perSubnet(1, 1, -1),
		"connect rate: networks: ipv4[0]: expected an ipv4 prefix as Network, got ::/0":                       badNetwork,
	} {
		_, err := newSubnets(subnetConfig{}, cfg, subnets.Config{})
		require.EqualError(t, err, want)
	}
}

// A limiter of the program's that limits nothing is asked for nothing.
func TestALimiterWithoutLimitsIsNone(t *testing.T) {
	network := netip.MustParsePrefix("192.0.2.0/24")
	for _, c := range []struct {
		name    string
		limiter *xrate.Limiter
		set     bool
	}{
		{"nil", nil, false},
		{"empty", &xrate.Limiter{}, false},
		{"a burst without a rate", &xrate.Limiter{GlobalLimit: xrate.Limit{Burst: 8}}, false},
		{"a network without a rate", &xrate.Limiter{NetworkPrefixLimits: []xrate.PrefixLimit{{Prefix: network}}}, false},
		{"a rate in all", &xrate.Limiter{GlobalLimit: xrate.Limit{RPS: 1}}, true},
		{"a network's rate", &xrate.Limiter{NetworkPrefixLimits: []xrate.PrefixLimit{{Prefix: network}, {Prefix: network, Limit: xrate.Limit{RPS: 1}}}}, true},
		{"rates of IPv4 subnets", &xrate.Limiter{SubnetRateLimiter: xrate.SubnetLimiter{IPv4SubnetLimits: make([]xrate.SubnetLimit, 1)}}, true},
		{"rates of IPv6 subnets", &xrate.Limiter{SubnetRateLimiter: xrate.SubnetLimiter{IPv6SubnetLimits: make([]xrate.SubnetLimit, 1)}}, true},
	} {
		m := newManager(t, unlimitedConf(), WithConnRateLimiters(c.limiter))
		require.Equal(t, c.set, m.gate().asksCaller(), c.name)
	}
}
