package rcmgr

// What a configuration says about the gates, beside the limits of the scopes.
// SubnetLimits and RateLimits have one shape, gateLists, that both convert to:
// laying one configuration on another, and reading it, is one walk for both.

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weir-p2p/rcmgr/internal/ip"
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

func (l *gateLists[V]) perSubnet(f ip.Family) *map[int]V {
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

// normalNetworks returns the map with each network under the one name by which the
// gates know it, see ip.NormalPrefix. What is none, and the second of two names for one
// network, stays as it is, to be an error of whatever is made of it.
func normalNetworks[V any](networks map[netip.Prefix]V) map[netip.Prefix]V {
	if networks == nil {
		return nil
	}
	out := make(map[netip.Prefix]V, len(networks))
	for _, n := range slices.SortedFunc(maps.Keys(networks), netip.Prefix.Compare) {
		plain := ip.NormalPrefix(n)
		if _, taken := out[plain]; taken || !n.IsValid() {
			plain = n
		}
		out[plain] = networks[n]
	}
	return out
}

// originsOver is that of ResourceLimits for gates: nil stays nil.
func (g *GateLimits) originsOver(under map[string]Origin, from Origin) map[string]Origin {
	if under == nil {
		return nil
	}
	over := maps.Clone(under)
	maps.Copy(over, g.origins(from))
	return over
}

// allRates is the place of everything about how fast connections may come.
const allRates = "Gates.Rate"

// origins gives one origin to everything that is said, by place.
func (g *GateLimits) origins(from Origin) map[string]Origin {
	origins := make(map[string]Origin)
	if g != nil {
		for _, s := range g.settings() {
			origins[s.Place] = from
		}
	}
	return origins
}

// settings gives what is said about the gates.
func (g *GateLimits) settings() (all []ConfigSetting) {
	add := func(place, value string) { all = append(all, ConfigSetting{Place: place, Value: value}) }
	subnets := gateLists[LimitVal](g.Subnets)
	rates := gateLists[ConnRate](g.Rate)
	eachGate("Gates.Subnets", &subnets, func(place string, v LimitVal) { add(place, valueText(dimConns, int64(v.Build(0)))) })
	eachGate("Gates.Rate", &rates, func(place string, r ConnRate) { add(place, r.text()) })
	if g.Outbound != nil {
		add("Gates.Outbound", strconv.FormatBool(*g.Outbound))
	}
	return all
}

// eachGate calls f with everything that is said about one gate, and its place.
func eachGate[V comparable](path string, said *gateLists[V], f func(place string, v V)) {
	for at := range ip.Families {
		levels := *said.perSubnet(at)
		for _, bits := range slices.Sorted(maps.Keys(levels)) {
			f(levelPlace(path, at, bits), levels[bits])
		}
	}
	eachNetwork(path, said.Networks, f)
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
	for _, n := range slices.SortedFunc(maps.Keys(networks), netip.Prefix.Compare) {
		f(networkPlace(path, ip.NormalPrefix(n)), networks[n])
	}
}

// levelPlace returns the place of what is said about all subnets of one size.
func levelPlace(path string, f ip.Family, bits int) string {
	return fmt.Sprintf("%s.%s[%q]", path, familyNames[f], strconv.Itoa(bits))
}

// networkPlace returns the place of what is said about one network.
func networkPlace(path string, n netip.Prefix) string {
	return fmt.Sprintf("%s.Networks[%q]", path, n)
}
