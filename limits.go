package rcmgr

// Configurations of limits: what a configuration says about one scope (ResourceLimits),
// and about all scopes of a manager (PartialLimitConfig, ConcreteLimitConfig). What one
// scope may hold is in baselimit.go (Limit, BaseLimit).
//
// The configuration types name the same scopes, and the limit types name the same
// resources. Each of the two shapes is written once, as a generic struct that the
// exported types convert to: perScope for the scopes, quantities for the resources.
// Filling in defaults, scaling and copying are each one walk over such a shape, so that
// no field can be left out. If a type differs from its shape, the conversion does not
// compile.

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// ToResourceLimits returns the same limits as a configuration: zero becomes
// BlockAllLimit, and the greatest number becomes Unlimited.
func (l BaseLimit) ToResourceLimits() ResourceLimits {
	var out ResourceLimits
	numbers := (*scopeLimits[int, int64])(&l).counts()
	for i, val := range out.counts() {
		*val = limitVal(*numbers[i])
	}
	out.Memory, out.Rates = limitVal64(l.Memory), l.Rates
	return out
}

// ResourceLimits is what a configuration says about one scope. Its zero value leaves
// every limit to the defaults, and is left out of JSON.
type ResourceLimits struct {
	Streams         LimitVal   `json:",omitempty"`
	StreamsInbound  LimitVal   `json:",omitempty"`
	StreamsOutbound LimitVal   `json:",omitempty"`
	Conns           LimitVal   `json:",omitempty"`
	ConnsInbound    LimitVal   `json:",omitempty"`
	ConnsOutbound   LimitVal   `json:",omitempty"`
	FD              LimitVal   `json:",omitempty"`
	Memory          LimitVal64 `json:",omitempty"`
	// Rates limits how fast connections and streams come. go-libp2p's own configuration has
	// no such field, and ignores it in JSON.
	Rates Rates `json:",omitzero"`
}

func (l *ResourceLimits) counts() [7]*LimitVal {
	return (*scopeLimits[LimitVal, LimitVal64])(l).counts()
}

// IsDefault reports whether every limit is left to the defaults. It is true for nil.
func (l *ResourceLimits) IsDefault() bool {
	return l == nil || *l == ResourceLimits{}
}

// ToMaybeNilPtr returns l, or nil if every limit is left to the defaults.
func (l *ResourceLimits) ToMaybeNilPtr() *ResourceLimits {
	if l.IsDefault() {
		return nil
	}
	return l
}

// Apply sets each field of l that is DefaultLimit to its value in l2.
func (l *ResourceLimits) Apply(l2 ResourceLimits) {
	fillIn((*scopeLimits[LimitVal, LimitVal64])(l), (*scopeLimits[LimitVal, LimitVal64])(&l2))
}

// Build returns the limits that l stands for. Fields that are DefaultLimit are taken from
// defaults; if l is nil, all of them are.
func (l *ResourceLimits) Build(defaults Limit) BaseLimit {
	from, rates := limitsOf(defaults), ratesOf(defaults)
	out := from.baseLimit()
	if l == nil {
		out.Rates = rates.build(Rates{})
		return out
	}
	vals := l.counts()
	for i, n := range (*scopeLimits[int, int64])(&out).counts() {
		*n = vals[i].Build(*n)
	}
	out.Memory, out.Rates = l.Memory.Build(out.Memory), l.Rates.build(rates)
	return out
}

// perScope is the shape of a configuration: one V for each scope that is always there,
// one for all unnamed scopes of a kind, and a map for the named ones. Costs and gates
// have types of their own.
type perScope[V any] struct {
	System    V
	Transient V

	AllowlistedSystem    V
	AllowlistedTransient V

	ServiceDefault V
	Service        map[string]V

	ServicePeerDefault V
	ServicePeer        map[string]V

	ProtocolDefault V
	Protocol        map[protocol.ID]V

	ProtocolPeerDefault V
	ProtocolPeer        map[protocol.ID]V

	PeerDefault V
	Peer        map[peer.ID]V

	Conn   V
	Stream V

	// Costs and Gates are nil where everything is left to the defaults. In a
	// configuration that has been built they are never written to.
	Costs *Costs
	Gates *GateLimits
}

// single returns every V that is not in a map.
func (s *perScope[V]) single() [11]*V {
	return [...]*V{
		&s.System, &s.Transient, &s.AllowlistedSystem, &s.AllowlistedTransient,
		&s.ServiceDefault, &s.ServicePeerDefault,
		&s.ProtocolDefault, &s.ProtocolPeerDefault,
		&s.PeerDefault, &s.Conn, &s.Stream,
	}
}

// singleNames has the names of the values that single returns, in the same order.
var singleNames = [11]string{
	"System", "Transient", "AllowlistedSystem", "AllowlistedTransient",
	"ServiceDefault", "ServicePeerDefault",
	"ProtocolDefault", "ProtocolPeerDefault",
	"PeerDefault", "Conn", "Stream",
}

// each calls f with every V and its place in the configuration, "System" or
// `Service["x"]`. Named scopes follow in the order of their names.
func (s *perScope[V]) each(f func(place string, v V)) {
	for i, v := range s.single() {
		f(singleNames[i], *v)
	}
	eachNamed("Service", s.Service, f)
	eachNamed("ServicePeer", s.ServicePeer, f)
	eachNamed("Protocol", s.Protocol, f)
	eachNamed("ProtocolPeer", s.ProtocolPeer, f)
	eachNamed("Peer", s.Peer, f)
}

// unnamedOf returns the V of the unnamed scopes of a kind by the place of a named scope of that
// kind. It reports false for the place of any other scope.
func (s *perScope[V]) unnamedOf(place string) (v V, ok bool) {
	kind, _, named := strings.Cut(place, "[")
	if !named {
		return v, false
	}
	return *s.single()[slices.Index(singleNames[:], kind+"Default")], true
}

func eachNamed[K ~string, V any](place string, named map[K]V, f func(string, V)) {
	for _, name := range slices.Sorted(maps.Keys(named)) {
		f(fmt.Sprintf("%s[%q]", place, name), named[name])
	}
}

// overlay lays the upper configuration on the lower one by joining them scope by scope. A
// scope that only the upper one names is joined with the result for the unnamed scopes of
// its kind. Neither input is written to, and the maps of the result are new.
func overlay[A, B any](upper perScope[A], lower perScope[B], join func(A, B) B) perScope[B] {
	var out perScope[B]
	a, b := upper.single(), lower.single()
	for i, v := range out.single() {
		*v = join(*a[i], *b[i])
	}
	out.Service = overlayMap(upper.Service, lower.Service, out.ServiceDefault, join)
	out.ServicePeer = overlayMap(upper.ServicePeer, lower.ServicePeer, out.ServicePeerDefault, join)
	out.Protocol = overlayMap(upper.Protocol, lower.Protocol, out.ProtocolDefault, join)
	out.ProtocolPeer = overlayMap(upper.ProtocolPeer, lower.ProtocolPeer, out.ProtocolPeerDefault, join)
	out.Peer = overlayMap(upper.Peer, lower.Peer, out.PeerDefault, join)
	out.Costs = upper.Costs.over(lower.Costs)
	out.Gates = upper.Gates.over(lower.Gates)
	return out
}

// put stores a value under a name, and makes the map if it is nil.
func put[K comparable, V any](m *map[K]V, name K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[name] = v
}

// convert applies f to each value and returns the results in new maps.
func convert[A, B any](s perScope[A], f func(A) B) perScope[B] {
	return overlay(s, perScope[B]{}, func(a A, _ B) B { return f(a) })
}

// PartialLimitConfig says where limits differ from the defaults that it is built on. Its
// zero value changes nothing. It is not safe for concurrent modification.
//
// json.Unmarshal into it ignores unknown names, as it does for every struct; ReadLimits
// reports them as errors.
type PartialLimitConfig struct {
	System    ResourceLimits
	Transient ResourceLimits

	// The allowlisted scopes take connections from allowlisted addresses when the system
	// or transient scope has no room for them.
	AllowlistedSystem    ResourceLimits
	AllowlistedTransient ResourceLimits

	// Each …Default is the limit of the scopes of its kind that the map below it does not
	// name. ServicePeer and ProtocolPeer limit what any one peer may hold in the service
	// or protocol that is their key.
	ServiceDefault ResourceLimits
	Service        map[string]ResourceLimits `json:",omitempty"`

	ServicePeerDefault ResourceLimits
	ServicePeer        map[string]ResourceLimits `json:",omitempty"`

	ProtocolDefault ResourceLimits
	Protocol        map[protocol.ID]ResourceLimits `json:",omitempty"`

	ProtocolPeerDefault ResourceLimits
	ProtocolPeer        map[protocol.ID]ResourceLimits `json:",omitempty"`

	PeerDefault ResourceLimits
	Peer        map[peer.ID]ResourceLimits `json:",omitempty"`

	Conn   ResourceLimits
	Stream ResourceLimits

	// Costs is the memory that a connection and a stream take by themselves. Gates limits
	// how many connections may come from one subnet, and how fast. nil leaves them to the
	// defaults. go-libp2p's own configuration has no such fields, and ignores them in
	// JSON.
	Costs *Costs      `json:",omitempty"`
	Gates *GateLimits `json:",omitempty"`
}

// MarshalJSON writes everything that is not left to the defaults. Peer IDs are written in
// their usual text form.
func (cfg PartialLimitConfig) MarshalJSON() ([]byte, error) {
	// encoding/json writes the bytes of a map key that is a string, even if its type has
	// a text form of its own.
	peers := make(map[string]ResourceLimits, len(cfg.Peer))
	for p, l := range cfg.Peer {
		peers[p.String()] = l
	}
	// The order is go-libp2p's.
	return json.Marshal(struct {
		Service      map[string]ResourceLimits      `json:",omitempty"`
		ServicePeer  map[string]ResourceLimits      `json:",omitempty"`
		Protocol     map[protocol.ID]ResourceLimits `json:",omitempty"`
		ProtocolPeer map[protocol.ID]ResourceLimits `json:",omitempty"`
		Peer         map[string]ResourceLimits      `json:",omitempty"`

		System               ResourceLimits `json:",omitzero"`
		Transient            ResourceLimits `json:",omitzero"`
		AllowlistedSystem    ResourceLimits `json:",omitzero"`
		AllowlistedTransient ResourceLimits `json:",omitzero"`
		ServiceDefault       ResourceLimits `json:",omitzero"`
		ServicePeerDefault   ResourceLimits `json:",omitzero"`
		ProtocolDefault      ResourceLimits `json:",omitzero"`
		ProtocolPeerDefault  ResourceLimits `json:",omitzero"`
		PeerDefault          ResourceLimits `json:",omitzero"`
		Conn                 ResourceLimits `json:",omitzero"`
		Stream               ResourceLimits `json:",omitzero"`

		Costs *Costs      `json:",omitempty"`
		Gates *GateLimits `json:",omitempty"`
	}{
		cfg.Service, cfg.ServicePeer, cfg.Protocol, cfg.ProtocolPeer, peers,
		cfg.System, cfg.Transient, cfg.AllowlistedSystem, cfg.AllowlistedTransient,
		cfg.ServiceDefault, cfg.ServicePeerDefault,
		cfg.ProtocolDefault, cfg.ProtocolPeerDefault,
		cfg.PeerDefault, cfg.Conn, cfg.Stream,
		cfg.Costs, cfg.Gates,
	})
}

// IsDefault reports whether cfg leaves everything to the defaults that it is built on. Scopes that
// it names without setting a limit change nothing. An empty map of GateLimits is not a default,
// because it turns limits off.
func (cfg PartialLimitConfig) IsDefault() bool {
	all := perScope[ResourceLimits](cfg)
	same := cfg.Costs == nil || *cfg.Costs == Costs{}
	all.each(func(_ string, l ResourceLimits) { same = same && l.IsDefault() })
	return same && cfg.Gates.isDefault()
}

// Apply fills in from c everything that cfg leaves to the defaults. A scope that only cfg
// names is filled in from the …Default of its kind. The maps of cfg are replaced, not
// written to, so copies of cfg keep their values.
func (cfg *PartialLimitConfig) Apply(c PartialLimitConfig) {
	*cfg = PartialLimitConfig(overlay(
		perScope[ResourceLimits](*cfg), perScope[ResourceLimits](c),
		func(l, under ResourceLimits) ResourceLimits {
			l.Apply(under)
			return l
		},
	))
}

// Build returns the limits of all scopes: those that cfg sets, and otherwise those of
// defaults. A scope that only cfg names takes what cfg leaves open from the result for
// the …Default of its kind. InfiniteLimits have no gates, but a configuration built on
// them has the default gates unless cfg says otherwise.
func (cfg PartialLimitConfig) Build(defaults ConcreteLimitConfig) ConcreteLimitConfig {
	return cfg.build(defaults, OriginOverride)
}

// build is Build with the origin of the values that cfg sets.
func (cfg PartialLimitConfig) build(defaults ConcreteLimitConfig, from Origin) ConcreteLimitConfig {
	upper := perScope[ResourceLimits](cfg)
	return ConcreteLimitConfig{
		limits: overlay(upper, defaults.limits,
			func(l ResourceLimits, under BaseLimit) BaseLimit { return l.Build(under) }),
		origins: overlay(upper, defaults.origins,
			func(l ResourceLimits, under scopeOrigins) scopeOrigins { return l.originsOver(under, from) }),
		sizing:      defaults.sizing,
		gateOrigins: upper.Gates.originsOver(defaults.gateOrigins, from),
	}
}

// ConcreteLimitConfig has the limits of all scopes, with nothing left to the defaults. It
// is made by PartialLimitConfig.Build and ScalingLimitConfig.Scale. Its zero value admits
// nothing. Copies are independent of each other.
type ConcreteLimitConfig struct {
	limits  perScope[BaseLimit]    // its maps are never written to once they are made
	origins perScope[scopeOrigins] // of limits; its maps are never written to either
	sizing  Sizing
	ungated bool // InfiniteLimits: there are no gates at all
	// gateOrigins has the origins of gate settings that are not defaults, by place. If it
	// is nil, everything that limits.Gates sets has OriginOverride.
	gateOrigins map[string]Origin
	// passedOver is what is wrong in the text that the limits were read from, and was passed
	// over and logged.
	passedOver error
}

// ToPartialLimitConfig returns the same limits as a configuration that leaves nothing to
// the defaults, except for rates and gates that cfg does not set.
func (cfg ConcreteLimitConfig) ToPartialLimitConfig() PartialLimitConfig {
	return PartialLimitConfig(convert(cfg.limits, BaseLimit.ToResourceLimits))
}

// MarshalJSON writes the limits as ToPartialLimitConfig returns them.
func (cfg ConcreteLimitConfig) MarshalJSON() ([]byte, error) {
	return json.Marshal(cfg.ToPartialLimitConfig())
}

// fixedLimiter is a Limiter whose limits do not change. Each limit that it returns is a
// *BaseLimit of the caller's own. It is a defined type and does not embed the
// configuration, because it must not have its UnmarshalJSON.
type fixedLimiter ConcreteLimitConfig

var _ Limiter = (*fixedLimiter)(nil)

// NewFixedLimiter returns a Limiter with the limits of conf. Later changes of conf do not
// affect it.
func NewFixedLimiter(conf ConcreteLimitConfig) Limiter {
	l := fixedLimiter(conf)
	return &l
}

// ToPartialLimitConfig returns the limits as a partial configuration.
func (l *fixedLimiter) ToPartialLimitConfig() PartialLimitConfig {
	return ConcreteLimitConfig(*l).ToPartialLimitConfig()
}

// MarshalJSON writes the limits as a partial configuration.
func (l *fixedLimiter) MarshalJSON() ([]byte, error) {
	return ConcreteLimitConfig(*l).MarshalJSON()
}

// handOut returns a copy of a limit.
func handOut(l BaseLimit) Limit { return &l }

// handOutNamed returns a copy of the limit with a name, or of the limit of unnamed scopes
// if there is none.
func handOutNamed[K comparable](named map[K]BaseLimit, name K, unnamed BaseLimit) Limit {
	if l, ok := named[name]; ok {
		return &l
	}
	return &unnamed
}

func (l *fixedLimiter) GetSystemLimits() Limit    { return handOut(l.limits.System) }
func (l *fixedLimiter) GetTransientLimits() Limit { return handOut(l.limits.Transient) }
func (l *fixedLimiter) GetAllowlistedSystemLimits() Limit {
	return handOut(l.limits.AllowlistedSystem)
}
func (l *fixedLimiter) GetAllowlistedTransientLimits() Limit {
	return handOut(l.limits.AllowlistedTransient)
}
func (l *fixedLimiter) GetServiceLimits(svc string) Limit {
	return handOutNamed(l.limits.Service, svc, l.limits.ServiceDefault)
}
func (l *fixedLimiter) GetServicePeerLimits(svc string) Limit {
	return handOutNamed(l.limits.ServicePeer, svc, l.limits.ServicePeerDefault)
}
func (l *fixedLimiter) GetProtocolLimits(proto protocol.ID) Limit {
	return handOutNamed(l.limits.Protocol, proto, l.limits.ProtocolDefault)
}
func (l *fixedLimiter) GetProtocolPeerLimits(proto protocol.ID) Limit {
	return handOutNamed(l.limits.ProtocolPeer, proto, l.limits.ProtocolPeerDefault)
}
func (l *fixedLimiter) GetPeerLimits(p peer.ID) Limit {
	return handOutNamed(l.limits.Peer, p, l.limits.PeerDefault)
}
func (l *fixedLimiter) GetStreamLimits(peer.ID) Limit { return handOut(l.limits.Stream) }
func (l *fixedLimiter) GetConnLimits() Limit          { return handOut(l.limits.Conn) }

// originsOver returns the origins of limits laid on others: from for each limit that l
// sets, and the origin in under for the rest.
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
	for i, rate := range l.Rates.all() {
		if *rate != (Rate{}) {
			under.rates[i] = from
		}
	}
	return under
}

// originsOfGates returns the origins of gate settings that are not defaults, by place.
func (cfg *ConcreteLimitConfig) originsOfGates() map[string]Origin {
	if cfg.gateOrigins != nil {
		return cfg.gateOrigins
	}
	return cfg.limits.Gates.origins(OriginOverride)
}
