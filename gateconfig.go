package rcmgr

// The limits of the gates in the form that the gates use, made from the configuration,
// options and defaults.

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/pace"
)

// gateConfig is what the gates of a manager are made from.
type gateConfig struct {
	subnets  subnetConfig
	rate     rateConfig
	dials    *rateConfig // of outbound connections alone; nil if they have none
	streams  *rateConfig // of streams; nil if they have none
	outbound bool
}

func defaultGateConfig() gateConfig {
	return gateConfig{subnets: defaultSubnetConfig(), rate: defaultRateConfig()}
}

// gateConfigOf returns the limits of the gates that a Limiter carries, on top of defaults.
// Only Limiters of NewFixedLimiter, and those read from JSON, carry any.
func gateConfigOf(l Limiter, defaults gateConfig) (gateConfig, error) {
	own, ok := l.(*fixedLimiter)
	if !ok {
		return defaults, nil
	}
	return (*ConcreteLimitConfig)(own).gateConfig(defaults)
}

func (cfg *ConcreteLimitConfig) gateConfig(defaults gateConfig) (gateConfig, error) {
	if cfg.ungated {
		// The limits of networks stay, so that loopback is unlimited if an option adds
		// limits per subnet.
		c := defaults
		c.subnets.perSubnet, c.rate.perSubnet = [ip.Families][]ConnLimitPerSubnet{}, [ip.Families][]subnetRate{}
		return c, nil
	}
	return cfg.limits.Gates.config(defaults)
}

// config returns defaults with what g sets, or an error that has everything that is wrong
// with g. The lists in defaults are not written to.
func (g *GateLimits) config(defaults gateConfig) (gateConfig, error) {
	c := defaults
	if g == nil {
		return c, nil
	}
	if g.Outbound != nil {
		c.outbound = *g.Outbound
	}
	var errs configErrors
	perSubnet, networks := c.subnets.perSubnet, [ip.Families][]NetworkPrefixLimit{}
	visit(&errs, "Gates.Subnets", gateLists[LimitVal](g.Subnets),
		func(f ip.Family) { c.subnets.perSubnet[f] = nil },
		func(f ip.Family, bits int, v LimitVal) (string, error) {
			var under LimitVal
			if i := slices.IndexFunc(perSubnet[f], func(l ConnLimitPerSubnet) bool { return l.PrefixLength == bits }); i >= 0 {
				under = limitVal(perSubnet[f][i].ConnCount)
			}
			n, err := countOf(cmp.Or(v, under))
			c.subnets.perSubnet[f] = append(c.subnets.perSubnet[f], ConnLimitPerSubnet{bits, n})
			return "", err
		},
		func(f ip.Family, network netip.Prefix, v LimitVal) (string, error) {
			n, err := countOf(v)
			networks[f] = append(networks[f], NetworkPrefixLimit{network, n})
			return "", err
		})
	for f := range ip.Families { // of two entries for one network the first holds
		c.subnets.networks[f] = slices.Concat(networks[f], c.subnets.networks[f])
	}

	c.rate = g.Rate.config(&errs, "Gates.Rate", c.rate)
	c.dials = g.DialRate.extend(&errs, dialRates, c.dials)
	c.streams = g.StreamRate.extend(&errs, streamRates, c.streams)
	if err := errs.err(); err != nil {
		return gateConfig{}, err
	}
	return c, nil
}

// config returns defaults with what r sets, and adds what is wrong with r to errs. The lists in
// defaults are not written to.
func (r RateLimits) config(errs *configErrors, path string, defaults rateConfig) rateConfig {
	c := defaults
	networks := [ip.Families][]networkRate{}
	visit(errs, path, gateLists[ConnRate](r),
		func(f ip.Family) { c.perSubnet[f] = nil },
		func(f ip.Family, bits int, v ConnRate) (string, error) {
			under := defaults.perSubnet[f]
			if i := slices.IndexFunc(under, func(l subnetRate) bool { return l.prefixLength == bits }); i >= 0 {
				v = v.fillIn(ConnRate{under[i].perSecond, limitVal(under[i].burst)})
			}
			l, field, err := v.rateLimit()
			c.perSubnet[f] = append(c.perSubnet[f], subnetRate{bits, l})
			return field, err
		},
		func(f ip.Family, network netip.Prefix, v ConnRate) (string, error) {
			l, field, err := v.rateLimit()
			networks[f] = append(networks[f], networkRate{network, l})
			return field, err
		})
	for f := range ip.Families { // of two entries for one network the first holds
		c.networks[f] = slices.Concat(networks[f], c.networks[f])
	}
	return c
}

// extend is config for rates that are not there without a limit. nil stands for none.
func (r RateLimits) extend(errs *configErrors, path string, defaults *rateConfig) *rateConfig {
	if reflect.ValueOf(r).IsZero() {
		return defaults
	}
	var under rateConfig
	if defaults != nil {
		under = *defaults
	}
	c := r.config(errs, path, under)
	return &c
}

// visit walks over the settings of one gate. For each family that has a map it calls begin,
// and then level for each entry of the map, the longest prefix first. Then it calls network
// for each entry of Networks that is not left to the defaults. The callbacks return an error
// together with the field that it is about.
func visit[V comparable](errs *configErrors, path string, lists gateLists[V], begin func(ip.Family),
	level func(ip.Family, int, V) (string, error), network func(ip.Family, netip.Prefix, V) (string, error)) {
	for f := range ip.Families {
		levels := *lists.perSubnet(f)
		if levels == nil {
			continue
		}
		begin(f)
		for _, bits := range slices.Backward(slices.Sorted(maps.Keys(levels))) {
			at := levelPlace(path, f, bits)
			if bits < 0 || bits > f.BitLen() {
				errs.addf(at, "expected a prefix length from 0 to %d", f.BitLen())
			} else if field, err := level(f, bits, levels[bits]); err != nil {
				errs.add(&ConfigError{Path: at + field, Err: err})
			}
		}
	}
	var none V
	seen := make(map[netip.Prefix]bool)
	for _, n := range slices.SortedFunc(maps.Keys(lists.Networks), ip.ComparePrefixes) {
		at := networkPlace(path, n)
		plain := ip.NormalPrefix(n)
		switch {
		case !n.IsValid():
			errs.addf(at, "expected a network such as 192.0.2.0/24")
		case seen[plain]:
			errs.addf(at, "the network %s is given twice", plain)
		case lists.Networks[n] != none:
			if field, err := network(ip.FamilyOf(plain.Addr()), n, lists.Networks[n]); err != nil {
				errs.add(&ConfigError{Path: at + field, Err: err})
			}
		}
		seen[plain] = true
	}
}

// countOf returns the number that a limit stands for.
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

// rateLimit returns the rate in the form that buckets use. An error comes with the field
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
		return rateLimit{perSecond: 1, burst: burst}, "", nil // the rate does not matter
	}
	if r.PerSecond == 0 {
		return rateLimit{}, ".PerSecond", errors.New("there is no default here: expected a number per second, more than 0")
	}
	var fault *pace.Fault
	if _, err := pace.New(r.PerSecond, int64(burst)); errors.As(err, &fault) {
		return rateLimit{}, "." + fault.Field, errors.New(fault.What)
	}
	return rateLimit{r.PerSecond, burst}, "", nil
}

// gateLimits returns the same limits as a configuration that leaves nothing to the
// defaults. If several limits have the same prefix length, only the lowest is in the result,
// because a connection must satisfy all of them.
func (c *gateConfig) gateLimits() GateLimits {
	g := GateLimits{Subnets: SubnetLimits{Networks: make(map[netip.Prefix]LimitVal)}, Rate: c.rate.rateLimits()}
	outbound := c.outbound // a copy, which may be changed
	g.Outbound = &outbound
	subnets := (*gateLists[LimitVal])(&g.Subnets)
	for f := range ip.Families {
		*subnets.perSubnet(f) = make(map[int]LimitVal)
		for _, l := range c.subnets.perSubnet[f] {
			levels := *subnets.perSubnet(f)
			if said, ok := levels[l.PrefixLength]; !ok || l.ConnCount < said.Build(0) {
				levels[l.PrefixLength] = limitVal(l.ConnCount)
			}
		}
		for _, l := range c.subnets.networks[f] {
			setFirst(g.Subnets.Networks, ip.NormalPrefix(l.Network), limitVal(l.ConnCount))
		}
	}
	if c.dials != nil {
		g.DialRate = c.dials.rateLimits()
	}
	if c.streams != nil {
		g.StreamRate = c.streams.rateLimits()
	}
	return g
}

// rateLimits is the inverse of RateLimits.config.
func (cfg *rateConfig) rateLimits() RateLimits {
	r := RateLimits{Networks: make(map[netip.Prefix]ConnRate)}
	lists := (*gateLists[ConnRate])(&r)
	for f := range ip.Families {
		*lists.perSubnet(f) = make(map[int]ConnRate)
		for _, l := range cfg.perSubnet[f] {
			(*lists.perSubnet(f))[l.prefixLength] = l.connRate()
		}
		for _, l := range cfg.networks[f] {
			setFirst(r.Networks, ip.NormalPrefix(l.network), l.connRate())
		}
	}
	return r
}

// setFirst sets the value of a network unless it has one: of two entries for one network
// the first holds.
func setFirst[V any](m map[netip.Prefix]V, network netip.Prefix, v V) {
	if _, ok := m[network]; !ok {
		m[network] = v
	}
}

// connRate is the inverse of ConnRate.rateLimit.
func (l rateLimit) connRate() ConnRate {
	switch {
	case l.perSecond == 0 || l.burst == math.MaxInt:
		return ConnRate{Burst: Unlimited}
	case l.burst == 0:
		return ConnRate{Burst: BlockAllLimit}
	}
	return ConnRate{PerSecond: l.perSecond, Burst: limitVal(l.burst)}
}

// attrs returns the limits of the gates for a log. If the program brought a limiter of its own,
// that has the place of the rates.
func (c *gateConfig) attrs(caller *callerRates) []any {
	rates := c.rate.describe()
	if caller != nil {
		rates = []string{"as WithConnRateLimiters says"}
		if caller.limiter == nil {
			rates = []string{"off"}
		}
	}
	attrs := []any{"connections_per_subnet", c.subnets.describe(), "connect_rates", rates, "outbound_gates", c.outbound, "dial_rates", c.dials.describe(),
		"stream_rates", c.streams.describe()}
	if gone := c.defaultsReplaced(caller != nil); len(gone) > 0 {
		attrs = append(attrs, "default_limits_replaced", gone)
	}
	return attrs
}

// defaultsReplaced returns the default limits, such as "connections ipv4/32: 8", that are not in
// force because a list of other prefix lengths replaces the default one. An empty list is
// deliberate and not reported.
func (c *gateConfig) defaultsReplaced(callerRates bool) (gone []string) {
	usual := defaultGateConfig()
	var without gateConfig
	for f := range ip.Families {
		has := make(map[int]bool)
		for _, l := range c.subnets.perSubnet[f] {
			has[l.PrefixLength] = true
		}
		for _, l := range usual.subnets.perSubnet[f] {
			if len(has) > 0 && !has[l.PrefixLength] {
				without.subnets.perSubnet[f] = append(without.subnets.perSubnet[f], l)
			}
		}
		has = make(map[int]bool)
		for _, l := range c.rate.perSubnet[f] {
			has[l.prefixLength] = true
		}
		for _, l := range usual.rate.perSubnet[f] {
			if len(has) > 0 && !has[l.prefixLength] && !callerRates {
				without.rate.perSubnet[f] = append(without.rate.perSubnet[f], l)
			}
		}
	}
	for _, text := range without.subnets.describe() {
		gone = append(gone, "connections "+text)
	}
	for _, text := range without.rate.describe() {
		gone = append(gone, "connect rate "+text)
	}
	return gone
}
