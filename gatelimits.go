package rcmgr

// What a configuration says about the gates, beside the limits of the scopes.
// SubnetLimits and RateLimits have one shape, gateLists, that both convert to:
// laying one configuration on another, and reading it, is one walk for both.

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
)

// GateLimits says how many connections may come from one part of the IP
// address space, and how fast. Its zero value leaves both as they are by
// default. Connections without an IP address of their own pass no gate, and
// neither do those of the allowlist.
type GateLimits struct {
	Subnets SubnetLimits `json:",omitzero"`
	Rate    RateLimits   `json:",omitzero"`
	// Outbound tells whether outbound connections pass the gates, too. nil is
	// the default: only inbound ones do.
	Outbound *bool `json:",omitempty"`
}

// SubnetLimits says how many connections a subnet may have at a time. The
// limits are numbers of connections; Unlimited and BlockAllLimit are understood.
type SubnetLimits struct {
	// IPv4 and IPv6 have the limits of every subnet, by its prefix length in
	// bits. A connection has to fit all of its family. nil is the default: 8
	// for an IPv4 address; 8 for an IPv6 /56 and 64 for a /48. A map that is
	// given replaces the default one as a whole, so an empty one is no limit;
	// DefaultLimit in it is the default for the same prefix length.
	IPv4 map[int]LimitVal `json:",omitzero"`
	IPv6 map[int]LimitVal `json:",omitzero"`
	// Networks has the limits of single networks, in place of those above. The
	// most specific network of an address counts. Those that are not named
	// here, or have DefaultLimit, are as by default: loopback is unlimited. A network
	// may be named by any of its addresses, and an IPv4 one also as IPv4-mapped or
	// NAT64; readers of files take it by its first address alone.
	Networks map[netip.Prefix]LimitVal `json:",omitempty"`
}

// RateLimits says how fast connections may come from a subnet. Its fields are
// to each other as those of SubnetLimits. By default an IPv4 address and an
// IPv6 /56 have a burst of 16 and then one connection in 5 seconds, a /48 has
// a burst of 80 and one in 2 seconds, and loopback is unlimited.
type RateLimits struct {
	IPv4     map[int]ConnRate          `json:",omitzero"`
	IPv6     map[int]ConnRate          `json:",omitzero"`
	Networks map[netip.Prefix]ConnRate `json:",omitempty"`
}

// ConnRate is how fast connections may come: Burst at once, and then PerSecond
// new ones each second, which must be more than 0. What is zero is as by
// default. With Unlimited or BlockAllLimit as Burst, PerSecond has no meaning.
type ConnRate struct {
	PerSecond float64  `json:",omitempty"`
	Burst     LimitVal `json:",omitempty"`
}

// fillIn gives r with what is zero in it as it is in under.
func (r ConnRate) fillIn(under ConnRate) ConnRate {
	return ConnRate{cmp.Or(r.PerSecond, under.PerSecond), cmp.Or(r.Burst, under.Burst)}
}

// gateLists is the shape of SubnetLimits and RateLimits.
type gateLists[V comparable] struct {
	IPv4, IPv6 map[int]V
	Networks   map[netip.Prefix]V
}

// familyNames are the names of families in configurations.
var familyNames = [numFamilies]string{"IPv4", "IPv6"}

func (l *gateLists[V]) perSubnet(f family) *map[int]V {
	return [...]*map[int]V{&l.IPv4, &l.IPv6}[f]
}

// over gives upper with what is left to the defaults as it is in lower. Neither
// is written to, and the outcome shares nothing with them.
func (upper *GateLimits) over(lower *GateLimits) *GateLimits {
	if upper == nil && lower == nil {
		return nil
	}
	var a, b GateLimits
	if upper != nil {
		a = *upper
	}
	if lower != nil {
		b = *lower
	}
	out := &GateLimits{
		Subnets: SubnetLimits(overLists(gateLists[LimitVal](a.Subnets), gateLists[LimitVal](b.Subnets),
			func(v, under LimitVal) LimitVal { return cmp.Or(v, under) })),
		Rate: RateLimits(overLists(gateLists[ConnRate](a.Rate), gateLists[ConnRate](b.Rate), ConnRate.fillIn)),
	}
	if say := cmp.Or(a.Outbound, b.Outbound); say != nil {
		out.Outbound = new(*say)
	}
	return out
}

func overLists[V comparable](upper, lower gateLists[V], join func(V, V) V) (out gateLists[V]) {
	for f := range numFamilies {
		a, b := *upper.perSubnet(f), *lower.perSubnet(f)
		if a == nil {
			*out.perSubnet(f) = maps.Clone(b)
			continue
		}
		levels := make(map[int]V, len(a))
		for bits, v := range a {
			levels[bits] = join(v, b[bits])
		}
		*out.perSubnet(f) = levels
	}
	var unnamed V
	out.Networks = overlayMap(normalNetworks(upper.Networks), normalNetworks(lower.Networks), unnamed, join)
	return out
}

// normalNetworks returns the map with each network under the one name by which the
// gates know it, see normalPrefix. What is none, and the second of two names for one
// network, stays as it is, to be an error of whatever is made of it.
func normalNetworks[V any](networks map[netip.Prefix]V) map[netip.Prefix]V {
	if networks == nil {
		return nil
	}
	out := make(map[netip.Prefix]V, len(networks))
	for _, n := range slices.SortedFunc(maps.Keys(networks), netip.Prefix.Compare) {
		plain := normalPrefix(n)
		if _, taken := out[plain]; taken || !n.IsValid() {
			plain = n
		}
		out[plain] = networks[n]
	}
	return out
}

// gateConfig is what the gates of a manager are made from.
type gateConfig struct {
	subnets  subnetConfig
	rate     rateConfig
	outbound bool
}

func defaultGateConfig() gateConfig {
	return gateConfig{subnets: defaultSubnetConfig(), rate: defaultRateConfig()}
}

// gateConfigOf returns what a limiter says about the gates, on top of the default
// ones. One that is not of this package has no word for it.
func gateConfigOf(l Limiter, defaults gateConfig) (gateConfig, error) {
	own, ok := l.(*fixedLimiter)
	if !ok {
		return defaults, nil
	}
	return (*ConcreteLimitConfig)(own).gateConfig(defaults)
}

func (cfg *ConcreteLimitConfig) gateConfig(defaults gateConfig) (gateConfig, error) {
	if cfg.ungated {
		// Loopback keeps its name, for an option that adds limits per subnet.
		c := defaults
		c.subnets.perSubnet, c.rate.perSubnet = [numFamilies][]ConnLimitPerSubnet{}, [numFamilies][]subnetRate{}
		return c, nil
	}
	return cfg.limits.Gates.config(defaults)
}

// config returns the default gates but for what g says, or everything that is wrong
// with that. The lists of defaults are not written to.
func (g *GateLimits) config(defaults gateConfig) (gateConfig, error) {
	c := defaults
	if g == nil {
		return c, nil
	}
	if g.Outbound != nil {
		c.outbound = *g.Outbound
	}
	var errs configErrors
	perSubnet, networks := c.subnets.perSubnet, [numFamilies][]NetworkPrefixLimit{}
	visit(&errs, "Gates.Subnets", gateLists[LimitVal](g.Subnets),
		func(f family) { c.subnets.perSubnet[f] = nil },
		func(f family, bits int, v LimitVal) (string, error) {
			var under LimitVal
			if i := slices.IndexFunc(perSubnet[f], func(l ConnLimitPerSubnet) bool { return l.PrefixLength == bits }); i >= 0 {
				under = limitVal(perSubnet[f][i].ConnCount)
			}
			n, err := countOf(cmp.Or(v, under))
			c.subnets.perSubnet[f] = append(c.subnets.perSubnet[f], ConnLimitPerSubnet{bits, n})
			return "", err
		},
		func(f family, network netip.Prefix, v LimitVal) (string, error) {
			n, err := countOf(v)
			networks[f] = append(networks[f], NetworkPrefixLimit{network, n})
			return "", err
		})
	for f := range numFamilies { // of two entries for one network the first holds
		c.subnets.networks[f] = slices.Concat(networks[f], c.subnets.networks[f])
	}

	rates, rateNetworks := c.rate.perSubnet, [numFamilies][]networkRate{}
	visit(&errs, "Gates.Rate", gateLists[ConnRate](g.Rate),
		func(f family) { c.rate.perSubnet[f] = nil },
		func(f family, bits int, v ConnRate) (string, error) {
			if i := slices.IndexFunc(rates[f], func(l subnetRate) bool { return l.prefixLength == bits }); i >= 0 {
				v = v.fillIn(ConnRate{rates[f][i].perSecond, limitVal(rates[f][i].burst)})
			}
			l, field, err := v.rateLimit()
			c.rate.perSubnet[f] = append(c.rate.perSubnet[f], subnetRate{bits, l})
			return field, err
		},
		func(f family, network netip.Prefix, v ConnRate) (string, error) {
			l, field, err := v.rateLimit()
			rateNetworks[f] = append(rateNetworks[f], networkRate{network, l})
			return field, err
		})
	if err := errs.err(); err != nil {
		return gateConfig{}, err
	}
	for f := range numFamilies {
		c.rate.networks[f] = slices.Concat(rateNetworks[f], c.rate.networks[f])
	}
	return c, nil
}

// visit walks over what is said about one gate: over the subnets of each family
// that is given, begin first and then the smallest subnets first, and over the
// networks that are not left to the defaults. An error of the callbacks is
// about the field that they name.
func visit[V comparable](errs *configErrors, path string, said gateLists[V], begin func(family),
	level func(family, int, V) (string, error), network func(family, netip.Prefix, V) (string, error)) {
	for f := range numFamilies {
		levels := *said.perSubnet(f)
		if levels == nil {
			continue
		}
		begin(f)
		for _, bits := range slices.Backward(slices.Sorted(maps.Keys(levels))) {
			at := levelPlace(path, f, bits)
			if bits < 0 || bits > f.bitLen() {
				errs.addf(at, "expected a prefix length from 0 to %d", f.bitLen())
			} else if field, err := level(f, bits, levels[bits]); err != nil {
				errs.add(&ConfigError{Path: at + field, Err: err})
			}
		}
	}
	var none V
	seen := make(map[netip.Prefix]bool)
	for _, n := range slices.SortedFunc(maps.Keys(said.Networks), netip.Prefix.Compare) {
		at := networkPlace(path, n)
		plain := normalPrefix(n)
		switch {
		case !n.IsValid():
			errs.addf(at, "expected a network such as 192.0.2.0/24")
		case seen[plain]:
			errs.addf(at, "the network %s is given twice", plain)
		case said.Networks[n] != none:
			if field, err := network(familyOf(plain.Addr()), n, said.Networks[n]); err != nil {
				errs.add(&ConfigError{Path: at + field, Err: err})
			}
		}
		seen[plain] = true
	}
}

// countOf gives the number that a limit stands for.
func countOf(v LimitVal) (int, error) {
	n := v.Build(0)
	switch {
	case v == DefaultLimit:
		return 0, errors.New(`there is no default here: expected a whole number, "unlimited" or "blockAll"`)
	case n < 0:
		return 0, fmt.Errorf("is %d, it must not be negative", n)
	}
	return n, nil
}

// rateLimit gives the rate as buckets know it. An error comes with the field
// that it is about.
func (r ConnRate) rateLimit() (l rateLimit, field string, err error) {
	burst, err := countOf(r.Burst)
	if err != nil {
		return rateLimit{}, ".Burst", err
	}
	if r.PerSecond != 0 && !(r.PerSecond > 0) || math.IsInf(r.PerSecond, 1) {
		return rateLimit{}, ".PerSecond", fmt.Errorf("is %v, expected a finite number, more than 0", r.PerSecond)
	}
	if r.Burst == Unlimited || r.Burst == BlockAllLimit {
		return rateLimit{perSecond: 1, burst: burst}, "", nil // at whatever rate
	}
	if r.PerSecond == 0 {
		return rateLimit{}, ".PerSecond", errors.New("there is no default here: expected a number of connections per second, more than 0")
	}
	return rateLimit{r.PerSecond, burst}, "", nil
}
