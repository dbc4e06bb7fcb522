package rcmgr

// Limits: what one scope may hold (Limit, BaseLimit), what a configuration
// says about it (ResourceLimits), and both for all scopes of a manager
// (ConcreteLimitConfig, PartialLimitConfig).
//
// The three configuration types name the same scopes, and the limit types name
// the same resources. Each of the two shapes is written down once, as a generic
// struct that the exported types convert to: perScope for the scopes,
// quantities for the resources. Whatever is done to all of them (fill in
// defaults, scale, copy) is one walk over such a shape, so that no field can be
// left out; if a type and its shape differ, the conversion does not compile.

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Limit is what one scope may hold at most. Zero admits nothing, math.MaxInt
// (math.MaxInt64 for memory) everything; a negative limit is an error wherever
// a limit is taken. A Limit must give the same answers to concurrent callers.
type Limit interface {
	// GetMemoryLimit gives the limit of memory, in bytes.
	GetMemoryLimit() int64
	// GetStreamLimit gives the limit of streams in one direction.
	GetStreamLimit(network.Direction) int
	// GetStreamTotalLimit gives the limit of streams in both directions together.
	GetStreamTotalLimit() int
	// GetConnLimit gives the limit of connections in one direction.
	GetConnLimit(network.Direction) int
	// GetConnTotalLimit gives the limit of connections in both directions together.
	GetConnTotalLimit() int
	// GetFDLimit gives the limit of file descriptors.
	GetFDLimit() int
}

// Limiter tells a manager the limits of its scopes. The manager asks when it
// makes a scope, and when SetLimits or Refresh says so, from many goroutines at
// once and never under a lock of its own. A limit that is nil or below zero is an
// error of whatever needed it, and so is a panic; that is logged, too, the first time.
type Limiter interface {
	// GetSystemLimits gives the limits of everything together.
	GetSystemLimits() Limit
	// GetTransientLimits gives the limits of all connections and streams whose
	// peer or protocol is not known yet.
	GetTransientLimits() Limit
	// GetAllowlistedSystemLimits gives the limits of everything allowlisted
	// that the system scope had no room for.
	GetAllowlistedSystemLimits() Limit
	// GetAllowlistedTransientLimits gives the limits of everything allowlisted
	// that the transient scope had no room for.
	GetAllowlistedTransientLimits() Limit
	// GetServiceLimits gives the limits of one service.
	GetServiceLimits(svc string) Limit
	// GetServicePeerLimits gives the limits of any one peer in one service.
	GetServicePeerLimits(svc string) Limit
	// GetProtocolLimits gives the limits of one protocol.
	GetProtocolLimits(proto protocol.ID) Limit
	// GetProtocolPeerLimits gives the limits of any one peer in one protocol.
	GetProtocolPeerLimits(proto protocol.ID) Limit
	// GetPeerLimits gives the limits of one peer.
	GetPeerLimits(p peer.ID) Limit
	// GetStreamLimits gives the limits of any one stream of a peer.
	GetStreamLimits(p peer.ID) Limit
	// GetConnLimits gives the limits of any one connection.
	GetConnLimits() Limit
}

// BaseLimit is a Limit made of plain numbers: counts, and bytes of memory.
// Its zero value admits nothing. As part of a ScalingLimitConfig it is the
// limit of the smallest node.
type BaseLimit struct {
	Streams         int   `json:",omitempty"`
	StreamsInbound  int   `json:",omitempty"`
	StreamsOutbound int   `json:",omitempty"`
	Conns           int   `json:",omitempty"`
	ConnsInbound    int   `json:",omitempty"`
	ConnsOutbound   int   `json:",omitempty"`
	FD              int   `json:",omitempty"`
	Memory          int64 `json:",omitempty"`
}

var _ Limit = BaseLimit{}

// GetMemoryLimit implements Limit.
func (l BaseLimit) GetMemoryLimit() int64 { return l.Memory }

// GetStreamLimit implements Limit. What is not inbound is outbound.
func (l BaseLimit) GetStreamLimit(dir network.Direction) int {
	if dir == network.DirInbound {
		return l.StreamsInbound
	}
	return l.StreamsOutbound
}

// GetStreamTotalLimit implements Limit.
func (l BaseLimit) GetStreamTotalLimit() int { return l.Streams }

// GetConnLimit implements Limit. What is not inbound is outbound.
func (l BaseLimit) GetConnLimit(dir network.Direction) int {
	if dir == network.DirInbound {
		return l.ConnsInbound
	}
	return l.ConnsOutbound
}

// GetConnTotalLimit implements Limit.
func (l BaseLimit) GetConnTotalLimit() int { return l.Conns }

// GetFDLimit implements Limit.
func (l BaseLimit) GetFDLimit() int { return l.FD }

// Apply fills in each field that is zero from l2.
func (l *BaseLimit) Apply(l2 BaseLimit) {
	fillIn((*quantities[int, int64])(l), (*quantities[int, int64])(&l2))
}

// ToResourceLimits says the same limits as a configuration: zero is
// BlockAllLimit, the greatest number is Unlimited.
func (l BaseLimit) ToResourceLimits() ResourceLimits {
	var out ResourceLimits
	numbers := (*quantities[int, int64])(&l).counts()
	for i, val := range out.counts() {
		*val = limitVal(*numbers[i])
	}
	out.Memory = limitVal64(l.Memory)
	return out
}

// BaseLimitIncrease is what a limit grows by for each GiB (1<<30 bytes) of
// memory: counts, and bytes of memory. Its zero value is no growth.
type BaseLimitIncrease struct {
	Streams         int   `json:",omitempty"`
	StreamsInbound  int   `json:",omitempty"`
	StreamsOutbound int   `json:",omitempty"`
	Conns           int   `json:",omitempty"`
	ConnsInbound    int   `json:",omitempty"`
	ConnsOutbound   int   `json:",omitempty"`
	Memory          int64 `json:",omitempty"`
	// FDFraction is the part of all file descriptors, from 0 to 1, that the
	// scope may hold if that is more than its base limit. It does not depend
	// on memory.
	FDFraction float64 `json:",omitempty"`
}

// Apply fills in each field that is zero from l2.
func (l *BaseLimitIncrease) Apply(l2 BaseLimitIncrease) {
	from := l2.counts()
	for i, n := range l.counts() {
		*n = cmp.Or(*n, *from[i])
	}
	l.Memory = cmp.Or(l.Memory, l2.Memory)
	l.FDFraction = cmp.Or(l.FDFraction, l2.FDFraction)
}

// counts gives all that is counted, in the order of quantities.counts.
func (l *BaseLimitIncrease) counts() [6]*int {
	return [...]*int{
		&l.Streams, &l.StreamsInbound, &l.StreamsOutbound,
		&l.Conns, &l.ConnsInbound, &l.ConnsOutbound,
	}
}

// quantities is the shape of BaseLimit and ResourceLimits.
type quantities[Count, Bytes comparable] struct {
	Streams         Count
	StreamsInbound  Count
	StreamsOutbound Count
	Conns           Count
	ConnsInbound    Count
	ConnsOutbound   Count
	FD              Count
	Memory          Bytes
}

// counts gives all but memory. File descriptors come last, because they do not
// grow with memory as all others do.
func (q *quantities[Count, Bytes]) counts() [7]*Count {
	return [...]*Count{
		&q.Streams, &q.StreamsInbound, &q.StreamsOutbound,
		&q.Conns, &q.ConnsInbound, &q.ConnsOutbound,
		&q.FD,
	}
}

// fillIn sets what is zero in to as it is in from.
func fillIn[Count, Bytes comparable](to, from *quantities[Count, Bytes]) {
	source := from.counts()
	for i, n := range to.counts() {
		*n = cmp.Or(*n, *source[i])
	}
	to.Memory = cmp.Or(to.Memory, from.Memory)
}

// LimitVal is one number in a configuration: a count, or one of the three
// constants. Its zero value is DefaultLimit. In JSON it is a number, or
// "default", "unlimited" or "blockAll"; the number 0 is read as "blockAll".
type LimitVal int

const (
	// DefaultLimit leaves the limit to the defaults that the configuration is
	// built on.
	DefaultLimit LimitVal = 0
	// Unlimited is no limit.
	Unlimited LimitVal = -1
	// BlockAllLimit admits nothing.
	BlockAllLimit LimitVal = -2
)

// LimitVal64 is LimitVal for bytes of memory. In JSON it is written as a
// string of digits, because many readers of JSON round large numbers; it is
// read with or without quotes.
type LimitVal64 int64

const (
	// DefaultLimit64 leaves the limit to the defaults that the configuration
	// is built on.
	DefaultLimit64 LimitVal64 = 0
	// Unlimited64 is no limit.
	Unlimited64 LimitVal64 = -1
	// BlockAllLimit64 admits nothing.
	BlockAllLimit64 LimitVal64 = -2
)

// limitWords are the constants as they stand in JSON.
var limitWords = map[int64]string{
	int64(DefaultLimit):  `"default"`,
	int64(Unlimited):     `"unlimited"`,
	int64(BlockAllLimit): `"blockAll"`,
}

// parseLimit reads one of the words, or else a number by the given function.
func parseLimit(b []byte, number func([]byte) (int64, error)) (int64, error) {
	for val, word := range limitWords {
		if string(b) == word {
			return val, nil
		}
	}
	n, err := number(b)
	if err != nil {
		return 0, fmt.Errorf("not a limit: %w", err)
	}
	// An explicit 0 means none, not the default, which has its own word.
	return cmp.Or(n, int64(BlockAllLimit)), nil
}

func parseCount(b []byte) (n int64, err error) {
	var count int // as wide as LimitVal
	err = json.Unmarshal(b, &count)
	return int64(count), err
}

func parseBytes(b []byte) (n int64, err error) {
	var digits string
	if json.Unmarshal(b, &digits) == nil {
		return strconv.ParseInt(digits, 10, 64)
	}
	err = json.Unmarshal(b, &n)
	return n, err
}

// MarshalJSON writes a number or a word.
func (l LimitVal) MarshalJSON() ([]byte, error) {
	if word, ok := limitWords[int64(l)]; ok {
		return []byte(word), nil
	}
	return strconv.AppendInt(nil, int64(l), 10), nil
}

// UnmarshalJSON reads a number or a word. On an error l is as before.
func (l *LimitVal) UnmarshalJSON(b []byte) error {
	n, err := parseLimit(b, parseCount)
	if err == nil {
		*l = LimitVal(n)
	}
	return err
}

// Build gives the limit itself: defaultVal for DefaultLimit, math.MaxInt for
// Unlimited, 0 for BlockAllLimit.
func (l LimitVal) Build(defaultVal int) int {
	switch l {
	case DefaultLimit:
		return defaultVal
	case Unlimited:
		return math.MaxInt
	case BlockAllLimit:
		return 0
	}
	return int(l)
}

// limitVal is the inverse of LimitVal.Build.
func limitVal(n int) LimitVal {
	switch n {
	case 0:
		return BlockAllLimit
	case math.MaxInt:
		return Unlimited
	}
	return LimitVal(n)
}

// MarshalJSON writes digits in quotes or a word.
func (l LimitVal64) MarshalJSON() ([]byte, error) {
	if word, ok := limitWords[int64(l)]; ok {
		return []byte(word), nil
	}
	return strconv.AppendQuote(nil, strconv.FormatInt(int64(l), 10)), nil
}

// UnmarshalJSON reads a number, digits in quotes or a word. On an error l is as
// before.
func (l *LimitVal64) UnmarshalJSON(b []byte) error {
	n, err := parseLimit(b, parseBytes)
	if err == nil {
		*l = LimitVal64(n)
	}
	return err
}

// Build gives the limit itself, in bytes: defaultVal for DefaultLimit64,
// math.MaxInt64 for Unlimited64, 0 for BlockAllLimit64.
func (l LimitVal64) Build(defaultVal int64) int64 {
	switch l {
	case DefaultLimit64:
		return defaultVal
	case Unlimited64:
		return math.MaxInt64
	case BlockAllLimit64:
		return 0
	}
	return int64(l)
}

// limitVal64 is the inverse of LimitVal64.Build.
func limitVal64(n int64) LimitVal64 {
	switch n {
	case 0:
		return BlockAllLimit64
	case math.MaxInt64:
		return Unlimited64
	}
	return LimitVal64(n)
}

// ResourceLimits is what a configuration says about one scope. Its zero value
// leaves everything to the defaults, and is left out of JSON.
type ResourceLimits struct {
	Streams         LimitVal   `json:",omitempty"`
	StreamsInbound  LimitVal   `json:",omitempty"`
	StreamsOutbound LimitVal   `json:",omitempty"`
	Conns           LimitVal   `json:",omitempty"`
	ConnsInbound    LimitVal   `json:",omitempty"`
	ConnsOutbound   LimitVal   `json:",omitempty"`
	FD              LimitVal   `json:",omitempty"`
	Memory          LimitVal64 `json:",omitempty"`
}

func (l *ResourceLimits) counts() [7]*LimitVal {
	return (*quantities[LimitVal, LimitVal64])(l).counts()
}

// IsDefault tells whether everything is left to the defaults, as it is by nil.
func (l *ResourceLimits) IsDefault() bool {
	return l == nil || *l == ResourceLimits{}
}

// ToMaybeNilPtr gives nil if everything is left to the defaults, or else l.
func (l *ResourceLimits) ToMaybeNilPtr() *ResourceLimits {
	if l.IsDefault() {
		return nil
	}
	return l
}

// Apply fills in each field that is DefaultLimit from l2.
func (l *ResourceLimits) Apply(l2 ResourceLimits) {
	fillIn((*quantities[LimitVal, LimitVal64])(l), (*quantities[LimitVal, LimitVal64])(&l2))
}

// Build gives the limits themselves, those of defaults for each field that is
// DefaultLimit, and for all of them if l is nil.
func (l *ResourceLimits) Build(defaults Limit) BaseLimit {
	from := limitsOf(defaults)
	out := from.baseLimit()
	if l == nil {
		return out
	}
	vals := l.counts()
	for i, n := range (*quantities[int, int64])(&out).counts() {
		*n = vals[i].Build(*n)
	}
	out.Memory = l.Memory.Build(out.Memory)
	return out
}

// perScope is the shape of a configuration: one V for each scope that is
// always there, one for the scopes of a kind that are not named, and a map for
// those that are. Costs and gates are no V.
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

	// Costs and Gates are nil where all is left to the defaults. They are never
	// written to once they are in a configuration that has been built.
	Costs *Costs
	Gates *GateLimits
}

// single gives all that is there once and is a V.
func (s *perScope[V]) single() [11]*V {
	return [...]*V{
		&s.System, &s.Transient, &s.AllowlistedSystem, &s.AllowlistedTransient,
		&s.ServiceDefault, &s.ServicePeerDefault,
		&s.ProtocolDefault, &s.ProtocolPeerDefault,
		&s.PeerDefault, &s.Conn, &s.Stream,
	}
}

// singleNames are the names of what single gives.
var singleNames = [11]string{
	"System", "Transient", "AllowlistedSystem", "AllowlistedTransient",
	"ServiceDefault", "ServicePeerDefault",
	"ProtocolDefault", "ProtocolPeerDefault",
	"PeerDefault", "Conn", "Stream",
}

// each calls f with every V and its place in the configuration: "System" or
// `Service["x"]`, the named ones in order of their names.
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

func eachNamed[K ~string, V any](place string, named map[K]V, f func(string, V)) {
	for _, name := range slices.Sorted(maps.Keys(named)) {
		f(fmt.Sprintf("%s[%q]", place, name), named[name])
	}
}

// overlay puts one configuration on top of another by way of join, scope by
// scope. A scope that only the upper one names lies on the outcome for the
// unnamed scopes of its kind. Neither input is written to, and the maps of the
// outcome are new.
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

func overlayMap[K comparable, A, B any](upper map[K]A, lower map[K]B, unnamed B, join func(A, B) B) map[K]B {
	if upper == nil && lower == nil {
		return nil
	}
	out := make(map[K]B, max(len(upper), len(lower)))
	for k, b := range lower {
		out[k] = join(upper[k], b) // if k is not in upper, its zero value changes nothing
	}
	for k, a := range upper {
		if _, ok := lower[k]; !ok {
			out[k] = join(a, unnamed)
		}
	}
	return out
}

// put sets a value under its name, in a map that is made where there is none.
func put[K comparable, V any](m *map[K]V, name K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[name] = v
}

// convert puts each value through f, into new maps.
func convert[A, B any](s perScope[A], f func(A) B) perScope[B] {
	return overlay(s, perScope[B]{}, func(a A, _ B) B { return f(a) })
}

// PartialLimitConfig says what is to differ from some default limits. Its zero
// value changes nothing. It is not safe for concurrent changes.
//
// json.Unmarshal into it passes over names that it does not know, as it does
// for every struct; ReadLimits does not.
type PartialLimitConfig struct {
	System    ResourceLimits
	Transient ResourceLimits

	// The allowlisted scopes take connections from allowlisted addresses that
	// the system and transient scopes have no room for.
	AllowlistedSystem    ResourceLimits
	AllowlistedTransient ResourceLimits

	// Each …Default is for the scopes of its kind that the map below it does
	// not name. ServicePeer and ProtocolPeer are what any one peer may hold in
	// the service or protocol that they name.
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

	// Costs says what a connection and a stream take in memory by themselves,
	// Gates how many connections may come from one subnet, and how fast. nil
	// leaves that to the defaults. go-libp2p's own configuration has no such
	// fields, and passes over them in JSON.
	Costs *Costs      `json:",omitempty"`
	Gates *GateLimits `json:",omitempty"`
}

// MarshalJSON writes what is not left to the defaults. Peer IDs are written in
// their usual text form.
func (cfg PartialLimitConfig) MarshalJSON() ([]byte, error) {
	// encoding/json writes a map key that is a string by its bytes, even if it
	// has a text form of its own.
	peers := make(map[string]ResourceLimits, len(cfg.Peer))
	for p, l := range cfg.Peer {
		peers[p.String()] = l
	}
	// The order is that in which go-libp2p writes them.
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

// Apply fills in everything that is left to the defaults from c. A scope that
// only cfg names is filled in from the …Default of its kind. The maps of cfg
// are replaced, not written to, so that copies of cfg stay as they are.
func (cfg *PartialLimitConfig) Apply(c PartialLimitConfig) {
	*cfg = PartialLimitConfig(overlay(
		perScope[ResourceLimits](*cfg), perScope[ResourceLimits](c),
		func(l, under ResourceLimits) ResourceLimits {
			l.Apply(under)
			return l
		},
	))
}

// Build gives the limits of all scopes, those of defaults where cfg says
// nothing else. A scope that only cfg names gets what it does not say from the
// outcome for the …Default of its kind. That InfiniteLimits have no gates is not
// passed on: what is built on them has the default gates, but for what cfg says.
func (cfg PartialLimitConfig) Build(defaults ConcreteLimitConfig) ConcreteLimitConfig {
	return cfg.build(defaults, OriginOverride)
}

// build is Build for what comes from somewhere else.
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

// ConcreteLimitConfig has the limits of all scopes, with nothing left to a
// default. It is made by PartialLimitConfig.Build and ScalingLimitConfig.Scale.
// Its zero value admits nothing. Copies are independent of each other.
type ConcreteLimitConfig struct {
	limits  perScope[BaseLimit]    // its maps are never written to once they are made
	origins perScope[scopeOrigins] // of limits, likewise
	sizing  Sizing
	ungated bool // InfiniteLimits: there are no gates at all
	// gateOrigins has the origins of gates that are not the default, by the place of
	// their settings. nil: of those that limits has, OriginOverride.
	gateOrigins map[string]Origin
}

// ToPartialLimitConfig says the same limits as a configuration that leaves
// nothing to the defaults, but for gates of which cfg says nothing itself.
func (cfg ConcreteLimitConfig) ToPartialLimitConfig() PartialLimitConfig {
	return PartialLimitConfig(convert(cfg.limits, BaseLimit.ToResourceLimits))
}

// MarshalJSON writes the limits as ToPartialLimitConfig gives them.
func (cfg ConcreteLimitConfig) MarshalJSON() ([]byte, error) {
	return json.Marshal(cfg.ToPartialLimitConfig())
}

// UnmarshalJSON reads what a PartialLimitConfig reads, and leaves limits that
// the JSON does not mention as they are. On an error cfg is as before.
func (cfg *ConcreteLimitConfig) UnmarshalJSON(b []byte) error {
	var changes PartialLimitConfig
	if err := json.Unmarshal(b, &changes); err != nil {
		return err
	}
	*cfg = changes.Build(*cfg)
	return nil
}

// fixedLimiter is a Limiter whose limits do not change. Each limit that it
// gives is a copy in the caller's hands, a *BaseLimit. It is a type of its own,
// and does not embed the configuration, to be without its UnmarshalJSON.
type fixedLimiter ConcreteLimitConfig

var _ Limiter = (*fixedLimiter)(nil)

// NewFixedLimiter makes a Limiter that always gives the limits of conf. What
// the caller does to conf later does not change it.
func NewFixedLimiter(conf ConcreteLimitConfig) Limiter {
	l := fixedLimiter(conf)
	return &l
}

// ToPartialLimitConfig is that of the configuration.
func (l *fixedLimiter) ToPartialLimitConfig() PartialLimitConfig {
	return ConcreteLimitConfig(*l).ToPartialLimitConfig()
}

// MarshalJSON is that of the configuration.
func (l *fixedLimiter) MarshalJSON() ([]byte, error) {
	return ConcreteLimitConfig(*l).MarshalJSON()
}

// NewLimiterFromJSON makes a Limiter from a PartialLimitConfig in JSON, on top
// of the given defaults. It is as strict as ReadLimits.
func NewLimiterFromJSON(in io.Reader, defaults ConcreteLimitConfig) (Limiter, error) {
	cfg, f, err := parseLimits(in)
	if err == nil {
		cfg, err = f.fitting(cfg, defaults)
	}
	if err != nil {
		return nil, err
	}
	return NewFixedLimiter(cfg.Build(defaults)), nil
}

// NewDefaultLimiterFromJSON is NewLimiterFromJSON on top of
// DefaultLimits.AutoScale().
func NewDefaultLimiterFromJSON(in io.Reader) (Limiter, error) {
	return NewLimiterFromJSON(in, DefaultLimits.AutoScale())
}

// handOut gives a copy of a limit.
func handOut(l BaseLimit) Limit { return &l }

// handOutNamed gives a copy of the limit under a name, or of that for all that
// are not named.
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

// isNoLimit reports whether a Limit is nil, or a nil pointer.
func isNoLimit(l Limit) bool {
	v := reflect.ValueOf(l)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// checkLimit returns what is wrong with a limit that a manager was given for the
// scope where: there is none, or a number in it is negative.
func checkLimit(where string, l Limit) error {
	if isNoLimit(l) {
		return fmt.Errorf("%s: no limit given, the Limit is nil", where)
	}
	if said, ok := l.(*saidLimit); ok && said.err != nil {
		return fmt.Errorf("%s: the Limiter %w", where, said.err)
	}
	a := limitsOf(l)
	for _, d := range limitOrder {
		if a[d] < 0 {
			return fmt.Errorf("%s: the limit %s is %d, it must not be negative", where, limitNames[d], a[d])
		}
	}
	return nil
}

// limitsOf reads a Limit into amounts.
func limitsOf(l Limit) amounts {
	return amounts{
		dimMemory:     l.GetMemoryLimit(),
		dimStreamsIn:  int64(l.GetStreamLimit(network.DirInbound)),
		dimStreamsOut: int64(l.GetStreamLimit(network.DirOutbound)),
		dimStreams:    int64(l.GetStreamTotalLimit()),
		dimConnsIn:    int64(l.GetConnLimit(network.DirInbound)),
		dimConnsOut:   int64(l.GetConnLimit(network.DirOutbound)),
		dimConns:      int64(l.GetConnTotalLimit()),
		dimFD:         int64(l.GetFDLimit()),
	}
}

// baseLimit is the inverse of limitsOf.
func (a *amounts) baseLimit() BaseLimit {
	return BaseLimit{
		Memory:          a[dimMemory],
		StreamsInbound:  int(a[dimStreamsIn]),
		StreamsOutbound: int(a[dimStreamsOut]),
		Streams:         int(a[dimStreams]),
		ConnsInbound:    int(a[dimConnsIn]),
		ConnsOutbound:   int(a[dimConnsOut]),
		Conns:           int(a[dimConns]),
		FD:              int(a[dimFD]),
	}
}

// LimitResetter is implemented by every scope that this package hands out, as
// ResourceScopeLimiter is. Both are safe for concurrent use.
type LimitResetter interface {
	// ResetLimit takes back what SetLimit has set: the scope has the limit that
	// the manager's limits give it, and follows SetLimits again. Where nothing was
	// set, it does nothing. If a Limiter that is not of this package gives no valid
	// limit for the scope, that is counted and logged as a caller's bug, and the
	// limit stays as it was.
	ResetLimit()
}

// ResourceScopeLimiter is implemented by every scope that this package hands
// out: type-assert a network.ResourceScope to read or replace its limit.
type ResourceScopeLimiter interface {
	// Limit returns a copy of the limit in force.
	Limit() Limit
	// SetLimit replaces the limit of this one scope. What is held stays; a
	// scope that holds more than its new limit admits nothing more until it
	// has drained. A nil limit or one below zero is a caller's bug: it is
	// counted and logged, and the limit stays as it was.
	SetLimit(Limit)
}

// saidLimit is a Limit that has been read, once; err says why it could not be.
type saidLimit struct {
	amounts
	err error
}

func (l *saidLimit) GetMemoryLimit() int64 { return l.baseLimit().GetMemoryLimit() }

func (l *saidLimit) GetStreamLimit(dir network.Direction) int {
	return l.baseLimit().GetStreamLimit(dir)
}

func (l *saidLimit) GetStreamTotalLimit() int { return l.baseLimit().GetStreamTotalLimit() }

func (l *saidLimit) GetConnLimit(dir network.Direction) int { return l.baseLimit().GetConnLimit(dir) }

func (l *saidLimit) GetConnTotalLimit() int { return l.baseLimit().GetConnTotalLimit() }

func (l *saidLimit) GetFDLimit() int { return l.baseLimit().GetFDLimit() }
