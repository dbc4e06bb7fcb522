package rcmgr

// The origin of each value of a configuration.

// Origin is where a value of a configuration comes from.
type Origin uint8

const (
	OriginDefault    Origin = iota // default limits
	OriginNodeLimits               // computed from what NodeLimits says
	OriginOverride                 // a PartialLimitConfig, which may be a file
	OriginCode                     // SetLimit, an option, or a Limiter of the program's own
)

var originNames = [...]string{"default", "node", "override", "code"}

// String returns the origin's name: "default", "node", "override" or "code".
func (o Origin) String() string { return nameOf(o, originNames[:]) }

// scopeOrigins are the origins of the limits of one scope, and of its rates in the order of
// Rates.all.
type scopeOrigins struct {
	quantities[Origin, Origin]
	rates [numRates]Origin
}

// MarshalText returns String's text, for JSON and logs.
func (o Origin) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads what MarshalText writes. An error says what was expected.
func (o *Origin) UnmarshalText(text []byte) error {
	return unmarshalName(o, text, originNames[:], "origin of a value")
}

// ConfigSetting is one value of a configuration.
type ConfigSetting struct {
	// Place is where it stands: "System.Conns", `Protocol["/x"].Streams`,
	// `Gates.Subnets.IPv4["32"]`.
	Place string
	// Value is as in JSON, without quotes: "128", "unlimited", "blockAll"; a rate
	// is "0.2/s, burst 16".
	Value  string
	Origin Origin
}
