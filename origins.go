package rcmgr

// Where each value of a configuration comes from.

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// Origin tells where a value of a configuration comes from.
type Origin uint8

const (
	OriginDefault  Origin = iota // default limits
	OriginKnob                   // computed from what NodeLimits says
	OriginOverride               // a PartialLimitConfig, which may be a file
	OriginCode                   // SetLimit, an option, or a Limiter of the program's own
)

var originNames = [...]string{"default", "knob", "override", "code"}

// String returns the origin's name: "default", "knob", "override" or "code".
func (o Origin) String() string { return nameOf(o, originNames[:]) }

// scopeOrigins are the origins of the limits of one scope.
type scopeOrigins = quantities[Origin, Origin]

// byDim returns the origins in the order of amounts.
func byDim(o scopeOrigins) (out [numDims]Origin) {
	for i, from := range o.counts() {
		out[limitOrder[i]] = *from
	}
	out[dimMemory] = o.Memory
	return out
}

// originsOver gives the origins of limits that lie on others: what l leaves to
// the defaults comes from where it comes from below.
func (l *ResourceLimits) originsOver(under scopeOrigins, from Origin) scopeOrigins {
	vals := l.counts()
	for i, o := range under.counts() {
		if *vals[i] != DefaultLimit {
			*o = from
		}
	}
	if l.Memory != DefaultLimit64 {
		under.Memory = from
	}
	return under
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

// originsOfGates returns the origins of the gates that are not the default, by the
// place of their settings.
func (cfg *ConcreteLimitConfig) originsOfGates() map[string]Origin {
	if cfg.gateOrigins != nil {
		return cfg.gateOrigins
	}
	return cfg.limits.Gates.origins(OriginOverride)
}

// MarshalText returns String's text, for JSON and logs.
func (o Origin) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads what MarshalText writes. An error says what was expected.
func (o *Origin) UnmarshalText(text []byte) error {
	return unmarshalName(o, text, originNames[:], "origin of a value")
}

// Setting is one value of a configuration.
type Setting struct {
	// Place is where it stands: "System.Conns", `Protocol["/x"].Streams`,
	// `Gates.Subnets.IPv4["32"]`.
	Place string
	// Value is as in JSON, without quotes: "128", "unlimited", "blockAll"; a rate
	// is "0.2/s, burst 16".
	Value  string
	Origin Origin
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
func (g *GateLimits) settings() (all []Setting) {
	add := func(place, value string) { all = append(all, Setting{Place: place, Value: value}) }
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
	for at := range numFamilies {
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
		f(networkPlace(path, normalPrefix(n)), networks[n])
	}
}

// levelPlace returns the place of what is said about all subnets of one size.
func levelPlace(path string, f family, bits int) string {
	return fmt.Sprintf("%s.%s[%q]", path, familyNames[f], strconv.Itoa(bits))
}

// networkPlace returns the place of what is said about one network.
func networkPlace(path string, n netip.Prefix) string {
	return fmt.Sprintf("%s.Networks[%q]", path, n)
}
