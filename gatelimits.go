package rcmgr

// What a configuration says about the gates. SubnetLimits and RateLimits have one shape,
// gateLists, that both convert to, so that laying one configuration on another (overLists)
// and reading one (visit) are each written once.

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// GateLimits limits how many connections may come from one part of the IP address space,
// and how fast. Its zero value leaves both to the defaults. The gates do not check
// connections that have no IP address of their own, nor allowlisted ones.
type GateLimits struct {
	Subnets SubnetLimits `json:",omitzero"`
	Rate    RateLimits   `json:",omitzero"`
	// Outbound says whether the gates also check outbound connections. nil leaves it to
	// the defaults, under which they check only inbound ones.
	Outbound *bool `json:",omitempty"`
	// DialRate limits how fast this host connects to a subnet, whatever Rate and Outbound say
	// of connections. Its fields work like those of Rate. By default there is no limit. How
	// fast the host connects in all is System.Rates.ConnsOutbound.
	DialRate RateLimits `json:",omitzero"`
	// StreamRate limits how fast streams may come from a subnet: the inbound streams of all
	// peers there, and, with Outbound, also those that this host opens to them. A peer is where
	// the first of its connections comes from or goes to. Its fields work like those of Rate. By
	// default there is no limit. How fast one peer may open streams is among its Rates.
	StreamRate RateLimits `json:",omitzero"`
}

// SubnetLimits limits how many connections a subnet may hold at a time. Its numbers count
// connections; Unlimited and BlockAllLimit are understood.
type SubnetLimits struct {
	// IPv4 and IPv6 have the limits of every subnet, by prefix length in bits. A
	// connection must fit within all limits of its family. nil is the default: 8 for an
	// IPv4 address; 8 for an IPv6 /56 and 64 for a /48. A map replaces the default one as
	// a whole, so an empty map means no limits. DefaultLimit in it is the default for the
	// same prefix length.
	IPv4 map[int]LimitVal `json:",omitzero"`
	IPv6 map[int]LimitVal `json:",omitzero"`
	// Networks has limits of single networks, which replace those of IPv4 and IPv6. For
	// an address that is in several networks, the most specific one counts. Networks that
	// are not named here, or have DefaultLimit, have the default: loopback is unlimited.
	// A network may be named by any of its addresses, and an IPv4 network also as
	// IPv4-mapped or NAT64; files of limits must name it by its first address.
	Networks map[netip.Prefix]LimitVal `json:",omitempty"`
}

// RateLimits limits how fast connections or streams may come from a subnet. Its fields work like
// those of SubnetLimits. In GateLimits.Rate, by default an IPv4 address and an IPv6 /56 have a burst of 16
// and then one connection in 5 seconds, a /48 has a burst of 80 and then one in 2
// seconds, and loopback is unlimited.
type RateLimits struct {
	IPv4     map[int]ConnRate          `json:",omitzero"`
	IPv6     map[int]ConnRate          `json:",omitzero"`
	Networks map[netip.Prefix]ConnRate `json:",omitempty"`
}

// ConnRate is how fast connections may come: Burst at once, and then PerSecond new ones
// each second. A field that is zero takes the default for the same prefix length. If there
// is none, as for every entry of Networks, both have to be set. The bounds are those of a Rate:
// PerSecond is more than 0 and at most 1,000,000, and an empty bucket is full again after 24
// hours at most. With Unlimited or BlockAllLimit as Burst, PerSecond has no meaning.
type ConnRate struct {
	PerSecond float64  `json:",omitempty"`
	Burst     LimitVal `json:",omitempty"`
}

// fillIn returns r with each field that is zero set to its value in under.
func (r ConnRate) fillIn(under ConnRate) ConnRate {
	return ConnRate{cmp.Or(r.PerSecond, under.PerSecond), cmp.Or(r.Burst, under.Burst)}
}

// gateLists is the shape of SubnetLimits and RateLimits.
type gateLists[V comparable] struct {
	IPv4, IPv6 map[int]V
	Networks   map[netip.Prefix]V
}

func (l *gateLists[V]) perSubnet(f ip.Family) *map[int]V {
	return [...]*map[int]V{&l.IPv4, &l.IPv6}[f]
}

// isDefault reports whether g leaves everything to the defaults. It is true for nil.
func (g *GateLimits) isDefault() bool {
	if g == nil {
		return true
	}
	subnets, rates := gateLists[LimitVal](g.Subnets), gateLists[ConnRate](g.Rate)
	dials, streams := gateLists[ConnRate](g.DialRate), gateLists[ConnRate](g.StreamRate)
	return g.Outbound == nil && subnets.isDefault() && rates.isDefault() && dials.isDefault() && streams.isDefault()
}

func (l *gateLists[V]) isDefault() bool {
	var none V
	for _, v := range l.Networks {
		if v != none {
			return false
		}
	}
	return l.IPv4 == nil && l.IPv6 == nil
}

// over returns upper with everything that it leaves to the defaults taken from lower.
// Neither is written to, and the result shares nothing with them.
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
		Rate:       a.Rate.over(b.Rate),
		DialRate:   a.DialRate.over(b.DialRate),
		StreamRate: a.StreamRate.over(b.StreamRate),
	}
	if say := cmp.Or(a.Outbound, b.Outbound); say != nil {
		outbound := *say
		out.Outbound = &outbound
	}
	return out
}

func (upper RateLimits) over(lower RateLimits) RateLimits {
	return RateLimits(overLists(gateLists[ConnRate](upper), gateLists[ConnRate](lower), ConnRate.fillIn))
}

func overLists[V comparable](upper, lower gateLists[V], join func(V, V) V) (out gateLists[V]) {
	for f := range ip.Families {
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

// normalNetworks returns the map with each network under the name that the gates use for
// it, see ip.NormalPrefix. An invalid network, and the second of two names for one network,
// stay as they are, so that reading the result reports them as errors.
func normalNetworks[V any](networks map[netip.Prefix]V) map[netip.Prefix]V {
	if networks == nil {
		return nil
	}
	out := make(map[netip.Prefix]V, len(networks))
	for _, n := range slices.SortedFunc(maps.Keys(networks), ip.ComparePrefixes) {
		plain := ip.NormalPrefix(n)
		if _, taken := out[plain]; taken || !n.IsValid() {
			plain = n
		}
		out[plain] = networks[n]
	}
	return out
}

// originsOver is ResourceLimits.originsOver for gates. If under is nil, it returns nil.
func (g *GateLimits) originsOver(under map[string]Origin, from Origin) map[string]Origin {
	if under == nil {
		return nil
	}
	over := maps.Clone(under)
	maps.Copy(over, g.origins(from))
	return over
}

// allRates stands for all rates at once, where WithConnRateLimiters has replaced them.
const allRates = "Gates.Rate"

// origins returns the origin of each setting of g by its place. All have the given one.
func (g *GateLimits) origins(from Origin) map[string]Origin {
	origins := make(map[string]Origin)
	if g != nil {
		for _, s := range g.settings() {
			origins[s.Place] = from
		}
	}
	return origins
}

// settings returns everything that g sets. A value that is "default" sets nothing.
func (g *GateLimits) settings() (all []ConfigSetting) {
	add := func(place, value string) { all = append(all, ConfigSetting{Place: place, Value: value}) }
	subnets := gateLists[LimitVal](g.Subnets)
	addRates := func(path string, r RateLimits) {
		eachGate(path, (*gateLists[ConnRate])(&r), func(place string, r ConnRate) {
			if r != (ConnRate{}) {
				add(place, r.text())
			}
		})
	}
	eachGate("Gates.Subnets", &subnets, func(place string, v LimitVal) {
		if v != DefaultLimit {
			add(place, valueText(dimConns, int64(v.Build(0))))
		}
	})
	addRates("Gates.Rate", g.Rate)
	if g.Outbound != nil {
		add("Gates.Outbound", strconv.FormatBool(*g.Outbound))
	}
	addRates(dialRates, g.DialRate)
	addRates(streamRates, g.StreamRate)
	return all
}

// eachGate calls f with each setting of one gate and its place.
func eachGate[V comparable](path string, lists *gateLists[V], f func(place string, v V)) {
	for at := range ip.Families {
		levels := *lists.perSubnet(at)
		for _, bits := range slices.Sorted(maps.Keys(levels)) {
			f(levelPlace(path, at, bits), levels[bits])
		}
	}
	eachNetwork(path, lists.Networks, f)
}

func (r ConnRate) text() string {
	switch r.Burst {
	case Unlimited:
		return "unlimited"
	case BlockAllLimit:
		return "blockAll"
	}
	return fmt.Sprintf("%g/s, burst %d", r.PerSecond, r.Burst)
}

// eachNetwork is eachGate for the networks that are named.
func eachNetwork[V any](path string, networks map[netip.Prefix]V, f func(place string, v V)) {
	for _, n := range slices.SortedFunc(maps.Keys(networks), ip.ComparePrefixes) {
		f(networkPlace(path, ip.NormalPrefix(n)), networks[n])
	}
}

// levelPlace returns the place of the setting for all subnets with one prefix length.
func levelPlace(path string, f ip.Family, bits int) string {
	return fmt.Sprintf("%s.%s[%q]", path, familyNames[f], strconv.Itoa(bits))
}

// networkPlace returns the place of the setting for one network.
func networkPlace(path string, n netip.Prefix) string {
	return fmt.Sprintf("%s.Networks[%q]", path, n)
}
