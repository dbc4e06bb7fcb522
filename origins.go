package rcmgr

// Where each value of a configuration comes from.

import "maps"

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
