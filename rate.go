package rcmgr

// Limits on how fast connections come from one subnet: token buckets, over the same division of
// the address space as the limits on connections per subnet. Buckets of the same kind decide
// when the source addresses of a subnet must be verified.

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	xrate "github.com/libp2p/go-libp2p/x/rate"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/pace"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// callerRates is a limiter of go-libp2p's x/rate that the program brings. The limiter has a clock
// of its own, and does not report which of its buckets was empty. A token that was taken from it
// cannot be given back. The zero value limits nothing.
type callerRates struct{ limiter *xrate.Limiter }

// newCallerRates returns a program's limiter. One without limits is left out, because it costs
// each connection a clock and two locks.
func newCallerRates(l *xrate.Limiter) *callerRates {
	if l == nil {
		return &callerRates{}
	}
	l.Limit(nil) // makes the limiter ready, so that its fields may be read beside other uses of it
	unlimited := l.GlobalLimit.RPS == 0 &&
		len(l.SubnetRateLimiter.IPv4SubnetLimits)+len(l.SubnetRateLimiter.IPv6SubnetLimits) == 0 &&
		!slices.ContainsFunc(l.NetworkPrefixLimits, func(n xrate.PrefixLimit) bool { return n.RPS != 0 })
	if unlimited {
		return &callerRates{}
	}
	return &callerRates{l}
}

// set reports whether there is any limit. c may be nil.
func (c *callerRates) set() bool { return c != nil && c.limiter != nil }

// allows takes a token for an address, and reports whether there was one. It reports true if
// there is no limit, or the address is invalid.
func (c *callerRates) allows(addr netip.Addr) bool {
	return !c.set() || !addr.IsValid() || c.limiter.Allow(addr)
}

// faults returns what is wrong with the limits of the limiter. go-libp2p's manager uses a limiter
// whatever its limits are.
func (c *callerRates) faults() (faults []fault) {
	if !c.set() {
		return nil
	}
	check := func(place string, err error, l xrate.Limit) {
		switch {
		case err != nil:
		case !(l.RPS >= 0) || math.IsInf(l.RPS, 1):
			err = &pace.Fault{Field: "RPS", What: fmt.Sprintf("is %v, expected a finite number, 0 or more", l.RPS)}
		case l.Burst < 0:
			err = &pace.Fault{Field: "Burst", What: fmt.Sprintf("is %d, expected 0 or more", l.Burst)}
		default:
			return
		}
		faults = append(faults, fault{fmt.Errorf("WithConnRateLimiters: %s: %w", place, err), "the limiter is used as it is"})
	}
	check("GlobalLimit", nil, c.limiter.GlobalLimit)
	for _, l := range c.limiter.NetworkPrefixLimits {
		check(fmt.Sprintf("NetworkPrefixLimits: %s", l.Prefix), nil, l.Limit)
	}
	s := &c.limiter.SubnetRateLimiter
	s.Allow(netip.Addr{}, time.Time{}) // puts the lists in order, so that they may be read beside other uses
	for f, list := range [ip.Families][]xrate.SubnetLimit{s.IPv4SubnetLimits, s.IPv6SubnetLimits} {
		for _, l := range list {
			check(fmt.Sprintf("SubnetRateLimiter: %s/%d", ip.Family(f), l.PrefixLength), subnets.CheckPrefixLength(ip.Family(f), l.PrefixLength), l.Limit)
		}
	}
	return faults
}

// rateLimit describes a bucket that starts full, with burst tokens, and gets perSecond new ones a
// second. If perSecond is 0 or burst is math.MaxInt, there is no limit; otherwise a burst of 0 admits
// nothing.
type rateLimit struct {
	perSecond float64
	burst     int
}

// subnetRate is the limit of every subnet of one size.
type subnetRate struct {
	prefixLength int
	rateLimit
}

// networkRate is the limit of one network, in place of every subnetRate.
type networkRate struct {
	network netip.Prefix
	rateLimit
}

// rateConfig has the limits that buckets are made from, by family.
type rateConfig struct {
	perSubnet [ip.Families][]subnetRate
	networks  [ip.Families][]networkRate
}

// defaultRateConfig returns default limits. A host, which is an IPv4 address or an IPv6 /56, may
// make 16 connections at once, twice what it may hold, and then one in five seconds. A site, which
// is an IPv6 /48, may make 80, and then one in two seconds. Loopback is not limited.
func defaultRateConfig() rateConfig {
	host := rateLimit{perSecond: 0.2, burst: 2 * connsPerHost}
	site := rateLimit{perSecond: 0.5, burst: 10 * connsPerHost}
	return rateConfig{
		perSubnet: [ip.Families][]subnetRate{
			ip.V4: {{32, host}},
			ip.V6: {{56, host}, {48, site}},
		},
		networks: [ip.Families][]networkRate{
			ip.V4: {{network: netip.MustParsePrefix("127.0.0.0/8")}},
			ip.V6: {{network: netip.MustParsePrefix("::1/128")}},
		},
	}
}

// describe returns the limits as short texts, such as "ipv4/32: 0.2/s, burst 16". nil has none.
func (cfg *rateConfig) describe() (all []string) {
	if cfg == nil {
		return nil
	}
	for f := range ip.Families {
		for _, l := range cfg.perSubnet[f] {
			all = append(all, fmt.Sprintf("%s/%d: %s", f, l.prefixLength, l.rateLimit))
		}
		for _, l := range cfg.networks[f] {
			all = append(all, fmt.Sprintf("%s: %s", l.network, l.rateLimit))
		}
	}
	return all
}

// String returns the limit as "unlimited", or as rate and burst, such as "0.2/s, burst 16".
func (l rateLimit) String() string {
	if b, err := l.bucket(); err == nil && b.Unlimited() {
		return "unlimited"
	}
	return fmt.Sprintf("%g/s, burst %d", l.perSecond, l.burst)
}

// each calls perSubnet or network with every entry of the two lists. Its error names the place of
// the entry.
func (cfg *rateConfig) each(
	perSubnet func(ip.Family, int, subnets.Bucket) error,
	network func(ip.Family, netip.Prefix, subnets.Bucket) error,
) error {
	for f := range ip.Families {
		for i, l := range cfg.perSubnet[f] {
			b, err := l.bucket()
			if err == nil {
				err = perSubnet(f, l.prefixLength, b)
			}
			if err != nil {
				return fmt.Errorf("connect rate: subnets: %s[%d]: %w", f, i, err)
			}
		}
		for i, l := range cfg.networks[f] {
			b, err := l.bucket()
			if err == nil {
				err = network(f, l.network, b)
			}
			if err != nil {
				return fmt.Errorf("connect rate: networks: %s[%d]: %w", f, i, err)
			}
		}
	}
	return nil
}

// verifyEvery is the time between two unverified handshakes of a subnet that has used up its
// burst. A handshake with a spoofed source takes up a connection for about 5 seconds, so at this
// rate spoofed handshakes take up half a connection on average.
const verifyEvery = 10 * time.Second

// sourceRates returns limits for the buckets of source verification: while a subnet's bucket is
// empty, its source addresses must be verified. The burst is half of the connections that the
// subnet may have, so that connections with spoofed addresses cannot fill the subnet.
func (cfg *subnetConfig) sourceRates() (rates rateConfig) {
	half := func(connCount int) rateLimit {
		burst := connCount
		if connCount != math.MaxInt { // half of no limit is no limit
			burst /= 2
		}
		return rateLimit{perSecond: 1 / verifyEvery.Seconds(), burst: burst}
	}
	for f := range ip.Families {
		least := make(map[int]int)
		for _, l := range cfg.perSubnet[f] {
			if n, ok := least[l.PrefixLength]; !ok || l.ConnCount < n {
				least[l.PrefixLength] = l.ConnCount
			}
		}
		for bits, n := range least {
			rates.perSubnet[f] = append(rates.perSubnet[f], subnetRate{bits, half(n)})
		}
		for _, l := range cfg.networks[f] {
			rates.networks[f] = append(rates.networks[f], networkRate{l.Network, half(l.ConnCount)})
		}
	}
	return rates
}

// bucket returns the bucket of a limit, or an error if the limit is invalid.
func (l rateLimit) bucket() (subnets.Bucket, error) { return subnets.NewBucket(l.perSecond, l.burst) }
