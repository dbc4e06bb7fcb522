package rcmgr

// Oracle: go-libp2p's own resource manager, under the name upstream. Random
// configurations go through both, and differ only where DIFFERENCES.md says so.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

const (
	peerText1 = "12D3KooWPFH2Bx2tPfw6RLxN8k2wh47GRXgkt9yrAHU37zFwHWzS"
	peerText2 = "QmVvtzcZgCkMnSFf2dnrBPXrWuNFWNM9J3MpZQCvWPuVZf"
)

// randomly fills a value of any of the configuration types.
func randomly(tb testing.TB, rng *rand.Rand, v reflect.Value) {
	if v.Type() == reflect.TypeFor[Rates]() {
		return // upstream's limits have none; rates_test.go fills them
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			randomly(tb, rng, v.Field(i))
		}
	case reflect.Map:
		size := rng.IntN(4) - 1 // -1: nil
		if size < 0 {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for range size {
			key := []string{"a", "/b/1.0.0", "c d", `"<&>`}[rng.IntN(4)]
			if v.Type().Key() == reflect.TypeFor[peer.ID]() {
				key = string(mustPeer(tb, []string{peerText1, peerText2}[rng.IntN(2)]))
			}
			elem := reflect.New(v.Type().Elem()).Elem()
			randomly(tb, rng, elem)
			v.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), elem)
		}
	case reflect.Int, reflect.Int64:
		n := []int64{0, 0, 1, 16, 1 << 20, rng.Int64N(1 << 31)}[rng.IntN(6)]
		if isVal := v.Type() == reflect.TypeFor[LimitVal]() || v.Type() == reflect.TypeFor[LimitVal64](); isVal && rng.IntN(3) == 0 {
			n = -rng.Int64N(3)
		}
		v.SetInt(n)
	case reflect.Float64:
		v.SetFloat(rng.Float64() * float64(rng.IntN(2)))
	case reflect.Pointer:
		// GateLimits, which upstream's configuration does not have.
	default:
		tb.Fatalf("what is a %s to be filled with?", v.Type())
	}
}

// theirLimit returns one of our limits without rates as upstream's: a BaseLimit, or its increase.
func theirLimit[U, L any](tb testing.TB, l L) (up U) {
	tb.Helper()
	from, to := reflect.ValueOf(l), reflect.ValueOf(&up).Elem()
	require.True(tb, from.FieldByName("Rates").IsZero())
	require.Equal(tb, to.NumField()+1, from.NumField())
	for i := range to.NumField() {
		to.Field(i).Set(from.FieldByName(to.Type().Field(i).Name))
	}
	return up
}

// theirBase and theirIncrease are theirLimit for the two types.
func theirBase(tb testing.TB, l BaseLimit) upstream.BaseLimit {
	tb.Helper()
	return theirLimit[upstream.BaseLimit](tb, l)
}

func theirIncrease(tb testing.TB, l BaseLimitIncrease) upstream.BaseLimitIncrease {
	tb.Helper()
	return theirLimit[upstream.BaseLimitIncrease](tb, l)
}

func randomPartial(tb testing.TB, rng *rand.Rand) (cfg PartialLimitConfig) {
	randomly(tb, rng, reflect.ValueOf(&cfg).Elem())
	return cfg
}

// theirs returns upstream's own value for one of our configurations.
func theirs(tb testing.TB, cfg PartialLimitConfig) (out upstream.PartialLimitConfig) {
	tb.Helper()
	require.NoError(tb, json.Unmarshal([]byte(toJSON(tb, cfg)), &out))
	return out
}

// forRandom does a test 200 times, each with other random numbers.
func forRandom(t *testing.T, f func(t *testing.T, rng *rand.Rand)) {
	seed := testSeed(t)
	for i := range uint64(200) {
		f(t, randomFrom(seed, i))
		if t.Failed() {
			t.Fatalf("in turn %d", i)
		}
	}
}

func TestPartialConfigHasUpstreamsJSON(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand) {
		cfg := randomPartial(t, rng)
		text := toJSON(t, cfg)
		require.Equal(t, text, toJSON(t, &cfg), "by pointer as by value")
		up := theirs(t, cfg)
		require.Equal(t, toJSON(t, &up), text)

		var back PartialLimitConfig
		require.NoError(t, json.Unmarshal([]byte(text), &back))
		require.Equal(t, text, toJSON(t, back))
		read, _, err := parseLimits(strings.NewReader(text), nil)
		require.NoError(t, err)
		require.Equal(t, back, read)
	})
}

func TestPeerIDsAreReadableByValueToo(t *testing.T) {
	cfg := PartialLimitConfig{
		System: ResourceLimits{StreamsOutbound: Unlimited},
		Peer:   map[peer.ID]ResourceLimits{mustPeer(t, peerText2): {Conns: BlockAllLimit, Memory: 1 << 40}},
	}
	want := `{"Peer":{"` + peerText2 + `":{"Conns":"blockAll","Memory":"1099511627776"}},"System":{"StreamsOutbound":"unlimited"}}`
	require.Equal(t, want, toJSON(t, cfg))
	require.Equal(t, want, toJSON(t, &cfg))
	require.Equal(t, `{"In":`+want+`}`, toJSON(t, struct{ In PartialLimitConfig }{cfg}))
	require.Equal(t, "{}", toJSON(t, PartialLimitConfig{}))
	require.Equal(t, "null", toJSON(t, (*PartialLimitConfig)(nil)))
}

// outcome is a limit value, or what Unmarshal said instead.
func outcome[T any](text string) string {
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return "an error"
	}
	return fmt.Sprint(reflect.ValueOf(v).Int())
}

func TestUnmarshalOfTheTypesIsAsLenientAsUpstreams(t *testing.T) {
	for _, text := range []string{
		`0`, `1`, `-1`, `-2`, `-3`, `"0"`, `"12"`, `"-1"`, `"-7"`, `"+5"`, `" 5"`, `""`, `null`, `true`, `[]`, `{}`,
		`1.5`, `1e3`, `"1e3"`, `"default"`, `"unlimited"`, `"blockAll"`, `"blockall"`, `"\u0064efault"`,
		`2147483648`, `9223372036854775807`, `9223372036854775808`, `"9223372036854775807"`, `"9223372036854775808"`,
	} {
		require.Equal(t, outcome[upstream.LimitVal](text), outcome[LimitVal](text), "count %s", text)
		require.Equal(t, outcome[upstream.LimitVal64](text), outcome[LimitVal64](text), "bytes %s", text)
	}

	text := `{"system":{"Conns":-1,"Conns":7,"Unknown":[1]},"More":true,"Peer":{"` + peerText1 + `":{"FD":3,"Memory":"-2"}}} `
	var ours PartialLimitConfig
	var up upstream.PartialLimitConfig
	require.NoError(t, json.Unmarshal([]byte(text), &ours))
	require.NoError(t, json.Unmarshal([]byte(text), &up))
	require.Equal(t, toJSON(t, &up), toJSON(t, ours))
}

func TestFailedUnmarshalLeavesTheLimitAsItWas(t *testing.T) {
	count, bytes := LimitVal(5), LimitVal64(6)
	require.Error(t, count.UnmarshalJSON([]byte(`"x"`)))
	require.Error(t, bytes.UnmarshalJSON([]byte(`"x"`)))
	require.Equal(t, LimitVal(5), count)
	require.Equal(t, LimitVal64(6), bytes)
}

func TestApplyAndBuildAreUpstreams(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand) {
		ours, more, base := randomPartial(t, rng), randomPartial(t, rng), randomPartial(t, rng)
		up, upMore := theirs(t, ours), theirs(t, more)
		concrete := base.Build(InfiniteLimits)
		upConcrete := theirs(t, base).Build(upstream.InfiniteLimits)
		requireSameConcrete(t, upConcrete, concrete)
		requireSameConcrete(t, up.Build(upConcrete), ours.Build(concrete))

		ours.Apply(more)
		up.Apply(upMore)
		require.Equal(t, toJSON(t, &up), toJSON(t, ours))
	})
}

func requireSameConcrete(t *testing.T, want upstream.ConcreteLimitConfig, got ConcreteLimitConfig) {
	t.Helper()
	up := want.ToPartialLimitConfig()
	require.Equal(t, toJSON(t, &up), toJSON(t, got.ToPartialLimitConfig()))
}

func TestBaseLimitsApplyAndConvertAsUpstreams(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand) {
		var l, l2 BaseLimit
		var inc, inc2 BaseLimitIncrease
		for _, v := range []any{&l, &l2, &inc, &inc2} {
			randomly(t, rng, reflect.ValueOf(v).Elem())
		}
		require.Equal(t, toJSON(t, theirBase(t, l)), toJSON(t, l))
		require.Equal(t, toJSON(t, theirIncrease(t, inc)), toJSON(t, inc))
		require.Equal(t, toJSON(t, theirBase(t, l).ToResourceLimits()), toJSON(t, l.ToResourceLimits()))

		up, upInc := theirBase(t, l), theirIncrease(t, inc)
		up.Apply(theirBase(t, l2))
		upInc.Apply(theirIncrease(t, inc2))
		l.Apply(l2)
		inc.Apply(inc2)
		require.Equal(t, up, theirBase(t, l))
		require.Equal(t, upInc, theirIncrease(t, inc))
		for _, dir := range []network.Direction{network.DirInbound, network.DirOutbound, network.DirUnknown} {
			require.Equal(t, up.GetStreamLimit(dir), l.GetStreamLimit(dir))
			require.Equal(t, up.GetConnLimit(dir), l.GetConnLimit(dir))
		}
	})
}

func TestResourceLimitsKnowWhenTheyAreDefault(t *testing.T) {
	var none *ResourceLimits
	require.True(t, none.IsDefault())
	require.Nil(t, none.ToMaybeNilPtr())
	require.Nil(t, (&ResourceLimits{}).ToMaybeNilPtr())
	require.Equal(t, BaseLimit{FD: 3, Memory: 4}, none.Build(&BaseLimit{FD: 3, Memory: 4}))

	all := reflect.TypeFor[ResourceLimits]()
	for i := range all.NumField() {
		var l ResourceLimits
		if field := reflect.ValueOf(&l).Elem().Field(i); field.Kind() == reflect.Struct { // Rates
			field.Field(i % numRates).FieldByName("Burst").SetInt(-1)
		} else {
			field.SetInt(-2)
		}
		require.False(t, l.IsDefault(), all.Field(i).Name)
		require.Same(t, &l, l.ToMaybeNilPtr())
	}
}

// jsonLeaf is one number of one scope: a field of PartialLimitConfig, the name in
// it if that is a map, and a field of ResourceLimits.
type jsonLeaf struct {
	scope, name, field string
	key                reflect.Value
}

func leaves(tb testing.TB) (out []jsonLeaf) {
	for _, scope := range reflect.VisibleFields(reflect.TypeFor[PartialLimitConfig]()) {
		if scope.Name == "Gates" || scope.Name == "Costs" { // which are no scopes: see gatelimits_test.go, costs_test.go
			continue
		}
		for _, field := range reflect.VisibleFields(reflect.TypeFor[ResourceLimits]()) {
			if field.Name == "Rates" { // see rates_test.go
				continue
			}
			l := jsonLeaf{scope: scope.Name, field: field.Name}
			if scope.Type.Kind() == reflect.Map {
				l.name = "/x"
				l.key = reflect.ValueOf(l.name).Convert(scope.Type.Key())
				if scope.Type.Key() == reflect.TypeFor[peer.ID]() {
					l.name = peerText1
					l.key = reflect.ValueOf(mustPeer(tb, peerText1))
				}
			}
			out = append(out, l)
		}
	}
	return out
}

// set puts a number at its place, and get reads it.
func (l jsonLeaf) set(cfg *PartialLimitConfig, n int64) {
	scope := reflect.ValueOf(cfg).Elem().FieldByName(l.scope)
	limits := reflect.New(reflect.TypeFor[ResourceLimits]()).Elem()
	if l.name == "" {
		scope.FieldByName(l.field).SetInt(n)
		return
	}
	limits.FieldByName(l.field).SetInt(n)
	scope.Set(reflect.MakeMap(scope.Type()))
	scope.SetMapIndex(l.key, limits)
}

func (l jsonLeaf) get(cfg PartialLimitConfig) int64 {
	scope := reflect.ValueOf(cfg).FieldByName(l.scope)
	if l.name != "" {
		scope = scope.MapIndex(l.key)
	}
	return scope.FieldByName(l.field).Int()
}

func (l jsonLeaf) json(n int) string {
	value := fmt.Sprint(n)
	if l.field == "Memory" {
		value = `"` + value + `"`
	}
	value = `{"` + l.field + `":` + value + `}`
	if l.name != "" {
		value = `{"` + l.name + `":` + value + `}`
	}
	return `{"` + l.scope + `":` + value + `}`
}

// scaling has a base of 100 and an increase of 1000 a GiB at this jsonLeaf, or, for
// file descriptors, a fraction of a quarter.
func (l jsonLeaf) scaling() *ScalingLimitConfig {
	var limit baseLimitConfig
	reflect.ValueOf(&limit.BaseLimit).Elem().FieldByName(l.field).SetInt(100)
	if l.field == "FD" {
		limit.BaseLimitIncrease.FDFraction = 0.25
	} else {
		reflect.ValueOf(&limit.BaseLimitIncrease).Elem().FieldByName(l.field).SetInt(1000)
	}
	cfg := new(ScalingLimitConfig)
	if l.name == "" {
		scope := strings.TrimSuffix(l.scope, "Default")
		all := reflect.ValueOf(cfg).Elem()
		all.FieldByName(scope + "BaseLimit").Set(reflect.ValueOf(limit.BaseLimit))
		all.FieldByName(scope + "LimitIncrease").Set(reflect.ValueOf(limit.BaseLimitIncrease))
		return cfg
	}
	reflect.ValueOf(cfg).MethodByName("Add" + l.scope + "Limit").Call([]reflect.Value{
		l.key, reflect.ValueOf(limit.BaseLimit), reflect.ValueOf(limit.BaseLimitIncrease),
	})
	return cfg
}

func TestEveryFieldOfEveryScopeGoesAllTheWay(t *testing.T) {
	all := leaves(t)
	require.Len(t, all, 16*8)
	for _, l := range all {
		t.Run(l.scope+"/"+l.field, func(t *testing.T) {
			var cfg PartialLimitConfig
			l.set(&cfg, 7777)
			require.Equal(t, l.json(7777), toJSON(t, cfg), "JSON")
			read, err := ReadLimits(strings.NewReader(l.json(7777)))
			require.NoError(t, err)
			require.Equal(t, cfg, read, "strict reader")

			var applied PartialLimitConfig
			applied.Apply(cfg)
			require.Equal(t, cfg, applied, "apply")

			built := cfg.Build(InfiniteLimits).ToPartialLimitConfig()
			require.EqualValues(t, 7777, l.get(built), "build")
			l.set(&built, int64(Unlimited))
			var unlimited PartialLimitConfig
			l.set(&unlimited, int64(Unlimited))
			require.Equal(t, unlimited.Build(InfiniteLimits).ToPartialLimitConfig(), allUnlimited(t, built), "build: the others")

			want := int64(100 + 2000)
			if l.field == "FD" {
				want = 1024 / 4
			}
			scaled := l.scaling().Scale(2<<30, 1024).ToPartialLimitConfig()
			require.Equal(t, want, l.get(scaled), "scale")
			require.Equal(t, 1, strings.Count(toJSON(t, scaled), fmt.Sprint(want)), "scale: the others")
		})
	}
}

// allUnlimited replaces the limits of a named scope, which set has cut down to
// one field, by what Build makes of them.
func allUnlimited(t *testing.T, cfg PartialLimitConfig) PartialLimitConfig {
	t.Helper()
	return cfg.Build(InfiniteLimits).ToPartialLimitConfig()
}

func TestConcreteConfigRoundTrips(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand) {
		partial := randomPartial(t, rng)
		cfg := partial.Build(DefaultLimits.Scale(1<<30, 1024))
		text := toJSON(t, cfg)
		require.Equal(t, toJSON(t, cfg.ToPartialLimitConfig()), text)
		require.Equal(t, text, toJSON(t, &cfg))
		require.Equal(t, text, toJSON(t, NewFixedLimiter(cfg)))

		back := InfiniteLimits
		require.NoError(t, json.Unmarshal([]byte(text), &back))
		require.Equal(t, text, toJSON(t, back))
		require.Equal(t, text, toJSON(t, partial.Build(cfg)), "saying it twice changes nothing")
	})
}

func TestConcreteConfigReadsChanges(t *testing.T) {
	cfg := InfiniteLimits
	require.NoError(t, json.Unmarshal([]byte(`{"System":{"Conns":5}}`), &cfg))
	require.Equal(t, 5, cfg.limits.System.Conns)
	require.Equal(t, math.MaxInt, cfg.limits.System.Streams)
	before := toJSON(t, cfg)
	require.Error(t, json.Unmarshal([]byte(`{"System":{"Conns":6},"Conn":7}`), &cfg))
	require.Equal(t, before, toJSON(t, cfg))
	require.Equal(t, math.MaxInt, InfiniteLimits.limits.System.Conns)
}

// asked is what a limiter says about everything that a test configuration names.
func asked(tb testing.TB, l Limiter) string {
	var out []Limit
	for _, name := range []string{"a", "new"} {
		out = append(out, l.GetServiceLimits(name), l.GetServicePeerLimits(name),
			l.GetProtocolLimits(protocol.ID(name)), l.GetProtocolPeerLimits(protocol.ID(name)))
	}
	p := mustPeer(tb, peerText1)
	return toJSON(tb, append(out, l.GetPeerLimits(p), l.GetPeerLimits(""), l.GetStreamLimits(p), l.GetConnLimits(),
		l.GetSystemLimits(), l.GetTransientLimits(), l.GetAllowlistedSystemLimits(), l.GetAllowlistedTransientLimits()))
}

// distinct has another number of connections in each scope.
func distinct(tb testing.TB) PartialLimitConfig {
	var cfg PartialLimitConfig
	n := LimitVal(0)
	next := func() ResourceLimits { n++; return ResourceLimits{Conns: n} }
	for _, l := range (*perScope[ResourceLimits])(&cfg).single() {
		*l = next()
	}
	cfg.Service = map[string]ResourceLimits{"a": next()}
	cfg.ServicePeer = map[string]ResourceLimits{"a": next()}
	cfg.Protocol = map[protocol.ID]ResourceLimits{"a": next()}
	cfg.ProtocolPeer = map[protocol.ID]ResourceLimits{"a": next()}
	cfg.Peer = map[peer.ID]ResourceLimits{mustPeer(tb, peerText1): next()}
	return cfg
}

func TestFixedLimiterAnswersAsUpstreams(t *testing.T) {
	cfg := distinct(t)
	ours := NewFixedLimiter(cfg.Build(ConcreteLimitConfig{}))
	up := upstream.NewFixedLimiter(theirs(t, cfg).Build(upstream.ConcreteLimitConfig{}))
	p := mustPeer(t, peerText1)
	type pair struct {
		want upstream.Limit
		got  Limit
	}
	pairs := map[string]pair{
		"system":                {up.GetSystemLimits(), ours.GetSystemLimits()},
		"transient":             {up.GetTransientLimits(), ours.GetTransientLimits()},
		"allowlisted system":    {up.GetAllowlistedSystemLimits(), ours.GetAllowlistedSystemLimits()},
		"allowlisted transient": {up.GetAllowlistedTransientLimits(), ours.GetAllowlistedTransientLimits()},
		"peer":                  {up.GetPeerLimits(p), ours.GetPeerLimits(p)},
		"other peer":            {up.GetPeerLimits("x"), ours.GetPeerLimits("x")},
		"stream":                {up.GetStreamLimits(p), ours.GetStreamLimits(p)},
		"conn":                  {up.GetConnLimits(), ours.GetConnLimits()},
	}
	for _, name := range []string{"a", "other"} {
		proto := protocol.ID(name)
		pairs["service "+name] = pair{up.GetServiceLimits(name), ours.GetServiceLimits(name)}
		pairs["service peer "+name] = pair{up.GetServicePeerLimits(name), ours.GetServicePeerLimits(name)}
		pairs["protocol "+name] = pair{up.GetProtocolLimits(proto), ours.GetProtocolLimits(proto)}
		pairs["protocol peer "+name] = pair{up.GetProtocolPeerLimits(proto), ours.GetProtocolPeerLimits(proto)}
	}
	for name, p := range pairs {
		require.NotZero(t, p.want.GetConnTotalLimit(), name)
		require.Equal(t, toJSON(t, p.want), toJSON(t, p.got), name)
		require.IsType(t, &BaseLimit{}, p.got, name)
	}
}

func TestAFixedLimiterCannotBeEdited(t *testing.T) {
	partial := distinct(t)
	cfg := partial.Build(ConcreteLimitConfig{})
	l := NewFixedLimiter(cfg)
	before := asked(t, l)

	// what it hands out
	for _, limit := range []Limit{
		l.GetSystemLimits(), l.GetTransientLimits(), l.GetAllowlistedSystemLimits(), l.GetAllowlistedTransientLimits(),
		l.GetServiceLimits("a"), l.GetServiceLimits("b"), l.GetServicePeerLimits("a"), l.GetServicePeerLimits("b"),
		l.GetProtocolLimits("a"), l.GetProtocolLimits("b"), l.GetProtocolPeerLimits("a"), l.GetProtocolPeerLimits("b"),
		l.GetPeerLimits(mustPeer(t, peerText1)), l.GetPeerLimits(""), l.GetStreamLimits(""), l.GetConnLimits(),
	} {
		limit.(*BaseLimit).Conns = 99
	}
	require.Equal(t, before, asked(t, l))

	// what it was made from
	changes := []byte(`{"System":{"Conns":98},"Service":{"a":{"Conns":98},"new":{"Conns":98}},"Peer":{"` + peerText1 + `":{"Conns":98}}}`)
	require.NoError(t, json.Unmarshal(changes, &cfg))
	partial.Service["a"], partial.Service["new"] = ResourceLimits{Conns: 97}, ResourceLimits{Conns: 97}
	out := l.(*fixedLimiter).ToPartialLimitConfig()
	out.Service["a"], out.Peer[mustPeer(t, peerText1)] = ResourceLimits{Conns: 96}, ResourceLimits{Conns: 96}
	require.Equal(t, before, asked(t, l))

	// the limiter itself
	_, readable := l.(json.Unmarshaler)
	require.False(t, readable)
}

func TestAConfigurationIsDefaultIfItChangesNothing(t *testing.T) {
	id := mustPeer(t, peerText1)
	network := netip.MustParsePrefix("10.0.0.0/8")
	for _, cfg := range []PartialLimitConfig{
		{}, {Service: map[string]ResourceLimits{}}, {Service: map[string]ResourceLimits{"a": {}}, Peer: map[peer.ID]ResourceLimits{id: {}}},
		{Costs: &Costs{}, Gates: &GateLimits{}}, {Gates: &GateLimits{Subnets: SubnetLimits{Networks: map[netip.Prefix]LimitVal{network: DefaultLimit}}}},
	} {
		require.True(t, cfg.IsDefault(), "%s", toJSON(t, cfg))
		for _, defaults := range []ConcreteLimitConfig{DefaultLimits.Scale(1<<30, 100), distinct(t).Build(DefaultLimits.Scale(1<<30, 100))} {
			m, same := newFrom(t, cfg.Build(defaults)), newFrom(t, defaults)
			require.Equal(t, toJSON(t, same.gate().limits), toJSON(t, m.gate().limits))
		}
	}
	for _, cfg := range []PartialLimitConfig{
		{System: ResourceLimits{Conns: 1}}, {Stream: ResourceLimits{Memory: BlockAllLimit64}}, {Service: map[string]ResourceLimits{"a": {FD: 1}}},
		{ServicePeer: map[string]ResourceLimits{"a": {}, "b": {FD: 1}}}, {Protocol: map[protocol.ID]ResourceLimits{"/a": {Memory: Unlimited64}}},
		{ProtocolPeer: map[protocol.ID]ResourceLimits{"/a": {Streams: 2}}}, {Peer: map[peer.ID]ResourceLimits{id: {Conns: BlockAllLimit}}},
		{Costs: &Costs{Stream: NoCost}}, {Costs: &Costs{Conn: 5}}, {Gates: &GateLimits{Outbound: pointerTo(false)}},
		{Gates: &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{}}}}, {Gates: &GateLimits{Rate: RateLimits{IPv6: map[int]ConnRate{}}}},
		{Gates: &GateLimits{Subnets: SubnetLimits{Networks: map[netip.Prefix]LimitVal{network: 5}}}},
		{Gates: &GateLimits{Rate: RateLimits{Networks: map[netip.Prefix]ConnRate{network: {Burst: Unlimited}}}}},
	} {
		require.False(t, cfg.IsDefault(), "%s", toJSON(t, cfg))
	}
}

func TestApplyLeavesCopiesAlone(t *testing.T) {
	cfg := distinct(t)
	cfg.Service["a"] = ResourceLimits{}
	copied, before := cfg, toJSON(t, cfg)
	cfg.Apply(PartialLimitConfig{Service: map[string]ResourceLimits{"a": {FD: 1}, "b": {FD: 1}}})
	require.NotEqual(t, before, toJSON(t, cfg))
	require.Equal(t, before, toJSON(t, copied))
}

func TestReadersTakeUpstreamsExampleFiles(t *testing.T) {
	// Kept here as they are published beside upstream's own tests.
	for _, text := range []string{
		`{"System":{"Memory":65536,"Conns":16,"ConnsInbound":8,"ConnsOutbound":16,"FD":16},
		 "ServiceDefault":{"Memory":8765},"Service":{"A":{"Memory":8192},"B":{}},
		 "ServicePeerDefault":{"Memory":2048},"ServicePeer":{"A":{"Memory":4096}},
		 "ProtocolDefault":{"Memory":2048},"ProtocolPeerDefault":{"Memory":1024},
		 "Protocol":{"/A":{"Memory":8192}},"PeerDefault":{"Memory":4096},
		 "Peer":{"` + peerText1 + `":{"Memory":4097}}}`,
		`{"System":{"StreamsOutbound":"unlimited"},"Peer":{"` + peerText2 + `":{"StreamsInbound":"blockAll","StreamsOutbound":"unlimited","Conns":"default"}}}`,
		`{"system":{"memory":"65536","STREAMS":0}}`,
		`{}`, " {} \n",
	} {
		ours, err := NewLimiterFromJSON(strings.NewReader(text), InfiniteLimits)
		require.NoError(t, err)
		up, err := upstream.NewLimiterFromJSON(strings.NewReader(text), upstream.InfiniteLimits)
		require.NoError(t, err)
		upPartial := up.(interface {
			ToPartialLimitConfig() upstream.PartialLimitConfig
		}).ToPartialLimitConfig()
		require.Equal(t, toJSON(t, &upPartial), toJSON(t, ours))
	}
}

func TestDefaultReaderFallsBackOnDefaultLimits(t *testing.T) {
	l, err := NewDefaultLimiterFromJSON(strings.NewReader(`{"System":{"Conns":3}}`))
	require.NoError(t, err)
	want := DefaultLimits.AutoScale()
	want.limits.System.Conns = 3
	require.Equal(t, toJSON(t, want), toJSON(t, l))

	_, err = strictly(NewDefaultLimiterFromJSON(strings.NewReader(`{"Sytem":{}}`)))
	require.ErrorContains(t, err, "did you mean System?")
}

func TestErrorsOfTheReaderNameThePlaceAndTheMistake(t *testing.T) {
	const scopes = "System, Transient, AllowlistedSystem, AllowlistedTransient, ServiceDefault, Service, ServicePeerDefault, ServicePeer, ProtocolDefault, Protocol, ProtocolPeerDefault, ProtocolPeer, PeerDefault, Peer, Conn, Stream, Costs, Gates"
	const fields = "Streams, StreamsInbound, StreamsOutbound, Conns, ConnsInbound, ConnsOutbound, FD, Memory"
	const count = `expected a whole number from 0 to 9223372036854775807, "unlimited", "blockAll" or "default", found `
	const size = `expected a whole number of bytes or a size such as "64MiB" from 0 to 9223372036854775807, "unlimited", "blockAll" or "default", found `
	const negative = ` is negative: write "unlimited" for no limit, "blockAll" to admit nothing`
	if math.MaxInt < math.MaxInt64 {
		t.Skip("texts for 64 bits")
	}
	for text, want := range map[string]string{
		``:                   "line 1, column 1: top level: unexpected end of JSON input",
		"\n \n":              "line 2, column 2: top level: unexpected end of JSON input",
		`[]`:                 "line 1, column 1: top level: expected an object in braces, found a list",
		`null`:               "line 1, column 1: top level: expected an object in braces, found null",
		`1e999`:              "line 1, column 1: top level: expected an object in braces, found 1e999",
		`{"System":{}} x`:    "line 1, column 15: top level: invalid character 'x' after top-level value",
		"{}\n{}":             "line 2, column 1: top level: invalid character '{' after top-level value",
		"{\n  \"System\": {": "line 2, column 13: top level: unexpected end of JSON input",
		"{\"System\":{},\n}": "line 2, column 1: top level: invalid character '}' looking for beginning of object key string",

		`{"Sytem":{}}`: "line 1, column 2: Sytem: unknown name, did you mean System? Known here are " + scopes,
		"{\n  \"Service\": {\n    \"é\": {\"Streams\": 1, \"StreamInbound\": 2}\n  }\n}": `line 3, column 25: Service["é"].StreamInbound: unknown name, did you mean StreamsInbound? Known here are ` + fields,
		`{"Conn":{"Memry":1}}`:                "line 1, column 10: Conn.Memry: unknown name, did you mean Memory? Known here are " + fields,
		`{"Conn":{"":1}}`:                     "line 1, column 10: Conn.: unknown name, did you mean FD? Known here are " + fields,
		`{"PeerDefault":{"FD":{"System":1}}}`: "line 1, column 22: PeerDefault.FD: " + count + "an object",
		`{"System":5}`:                        "line 1, column 11: System: expected an object in braces, found 5",
		`{"System":null}`:                     "line 1, column 11: System: expected an object in braces, found null",
		`{"Service":[1]}`:                     "line 1, column 12: Service: expected an object in braces, found a list",
		`{"Service":{"x":"y"}}`:               `line 1, column 17: Service["x"]: expected an object in braces, found "y"`,

		`{"System":{"Conns":1,"Conns":2}}`: "line 1, column 22: System.Conns: is given twice",
		`{"System":{"Conns":1,"conns":2}}`: "line 1, column 22: System.Conns: is given twice",
		`{"System":{},"System":{}}`:        "line 1, column 14: System: is given twice",
		`{"Protocol":{"/a":{},"\/a":{}}}`:  `line 1, column 22: Protocol["/a"]: is given twice`,
		`{"Service":{"":{}}}`:              `line 1, column 13: Service[""]: expected a name: it is empty`,
		`{"ProtocolPeer":{"":{}}}`:         `line 1, column 18: ProtocolPeer[""]: expected a name: it is empty`,
		`{"Peer":{"":{}}}`:                 `line 1, column 10: Peer[""]: expected a peer ID: `,
		`{"Peer":{"Qm":{}}}`:               `line 1, column 10: Peer["Qm"]: expected a peer ID: `,

		`{"System":{"Conns":-1}}`:                   "line 1, column 20: System.Conns: -1" + negative,
		`{"System":{"Memory":"-2"}}`:                `line 1, column 21: System.Memory: "-2"` + negative,
		`{"System":{"FD":-99999999999999999999}}`:   "line 1, column 17: System.FD: -99999999999999999999" + negative,
		`{"System":{"Conns":"unlimitd"}}`:           "line 1, column 20: System.Conns: " + count + `"unlimitd"`,
		`{"System":{"Conns":"5 "}}`:                 "line 1, column 20: System.Conns: " + count + `"5 "`,
		`{"System":{"Conns":"5kB"}}`:                "line 1, column 20: System.Conns: " + count + `"5kB"`,
		`{"System":{"Conns":1.5}}`:                  "line 1, column 20: System.Conns: " + count + "1.5",
		`{"System":{"Conns": true}}`:                "line 1, column 21: System.Conns: " + count + "true",
		`{"System":{"Conns": null}}`:                "line 1, column 21: System.Conns: " + count + "null",
		`{"System":{"Conns": 9223372036854775808}}`: "line 1, column 21: System.Conns: " + count + "9223372036854775808",
		`{"System":{"Memory":"64 MiBs"}}`:           "line 1, column 21: System.Memory: " + size + `"64 MiBs"`,
		`{"System":{"Memory":"MiB"}}`:               "line 1, column 21: System.Memory: " + size + `"MiB"`,
		`{"System":{"Memory":"8EiB"}}`:              "line 1, column 21: System.Memory: " + size + `"8EiB"`,
		`{"System":{"Memory":"1,5GiB"}}`:            "line 1, column 21: System.Memory: " + size + `"1,5GiB"`,
		`{"System":{"Memory":"1,500 MB"}}`:          "line 1, column 21: System.Memory: " + size + `"1,500 MB"`,
		`{"System":{"Memory":"0.0009 kB"}}`:         "line 1, column 21: System.Memory: " + size + `"0.0009 kB"`,
		`{"System":{"Memory":"0.5B"}}`:              "line 1, column 21: System.Memory: " + size + `"0.5B"`,
		`{"System":{"Memory":"1.5"}}`:               "line 1, column 21: System.Memory: " + size + `"1.5"`,
		`{"System":{"Memory":64MiB}}`:               "line 1, column 23: top level: invalid character 'M' after object key:value pair",
		`{"System":{"Memory":null}}`:                "line 1, column 21: System.Memory: " + size + "null",
	} {
		for name, read := range readers() {
			_, err := read(text)
			require.ErrorContains(t, err, want, "%s: %s", name, text)
			require.ErrorContains(t, err, "limits: line ", "%s: %s", name, text)
		}
	}
}

func TestAPeerGivenInTwoSpellingsIsAnError(t *testing.T) {
	p := mustPeer(t, peerText1)
	text := `{"Peer":{"` + p.String() + `":{},"` + peer.ToCid(p).String() + `":{}}}`
	_, err := ReadLimits(strings.NewReader(text))
	require.ErrorContains(t, err, `Peer["`+peer.ToCid(p).String()+`"]: is given twice`)
}

func TestReaderPassesOnWhatReadingSays(t *testing.T) {
	_, err := NewLimiterFromJSON(iotest.ErrReader(io.ErrClosedPipe), InfiniteLimits)
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

func TestReaderIsNotStoppedByLongNames(t *testing.T) {
	text := `{"` + strings.Repeat("x", 1<<20) + `":{}}`
	_, err := strictly(NewLimiterFromJSON(strings.NewReader(text), InfiniteLimits))
	require.ErrorContains(t, err, "unknown name")
}

func TestCheckLimitNamesScopeAndField(t *testing.T) {
	require.NoError(t, checkLimit("system", BaseLimit{}))
	require.NoError(t, checkLimit("system", InfiniteLimits.limits.Conn))
	require.EqualError(t, checkLimit("system", nil), "system: no limit given, the Limit is nil")
	require.EqualError(t, checkLimit("system", (*BaseLimit)(nil)), "system: no limit given, the Limit is nil")
	for _, field := range reflect.VisibleFields(reflect.TypeFor[BaseLimit]()) {
		if field.Name == "Rates" {
			continue
		}
		l := new(BaseLimit)
		reflect.ValueOf(l).Elem().FieldByIndex(field.Index).SetInt(-3)
		require.EqualError(t, checkLimit("peer:x", l), "peer:x: the limit "+field.Name+" is -3, it must not be negative")
	}
	fast := &BaseLimit{Rates: Rates{ConnsInbound: Rate{PerSecond: -1}}}
	require.EqualError(t, checkLimit("peer:x", fast), "peer:x: the rate ConnsInbound: PerSecond is -1, expected a number above 0")
	require.EqualError(t, checkLimit("conn-1", &BaseLimit{Rates: Rates{Streams: Rate{PerSecond: 1, Burst: BlockAllLimit}}}),
		"conn-1: the rate Streams: Burst is 0, expected at least 1: to admit nothing, set the limit beside the rate to 0")
}

// FuzzLimitsJSON holds the strict reader against upstream's: what both take, they
// make the same of, and what ours takes beyond that (sizes, numbers in quotes) it
// writes so that upstream's takes it. What ours refuses, it refuses with a place.
func FuzzLimitsJSON(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"System":{"Conns":1,"Memory":"2"}}`, `{"system":{"memory":3,"FD":"blockAll"}}`,
		`{"Peer":{"` + peerText1 + `":{"Streams":"unlimited"}}}`, `{"Protocol":{"/a":{"FD":"default"},"\u00e9":{}}}`,
		`{"Gates":{"Subnets":{"IPv4":{"24":8,"32":"default"},"Networks":{"10.0.0.0/8":"unlimited"}},"Rate":{"IPv6":{"56":{"PerSecond":0.5,"Burst":9}}},"Outbound":true}}`,
		`{"System":{"Conns":-1}}`, `{"Service":{"":{"Memory":"+7"}}}`, `{"x":[{"y":null}]}`, `{"System":{"Conns":0,"Memory":-0}} x`,
		`{"System":{"Memory":"64MiB","Conns":"7"},"Stream":{"Memory":"1.5 kB"}}`, `{"Costs":{"Conn":"64KiB","Stream":"none"}}`,
		`{"System":{"Memory":1},"Transient":{"Memory":2}}`, `{"System":{"Memory":"\u0036\u0034kib"}}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ours, err := ReadLimits(bytes.NewReader(text))
		if err != nil {
			require.ErrorContains(t, err, "limits: line ")
			return
		}
		written := toJSON(t, ours)
		again, err := ReadLimits(strings.NewReader(written))
		require.NoError(t, err)
		require.Equal(t, written, toJSON(t, again))

		ours.Gates, ours.Costs = nil, nil // of which upstream knows nothing
		_, err = upstream.NewLimiterFromJSON(strings.NewReader(written), upstream.InfiniteLimits)
		require.NoError(t, err)
		texts := []string{written}
		if _, err := upstream.NewLimiterFromJSON(bytes.NewReader(text), upstream.InfiniteLimits); err == nil {
			texts = append(texts, string(text))
		}
		for _, text := range texts {
			var up upstream.PartialLimitConfig
			require.NoError(t, json.Unmarshal([]byte(text), &up))
			require.Equal(t, toJSON(t, &up), toJSON(t, ours))
		}
	})
}

func TestReaderTakesNumbersInQuotesAndSizes(t *testing.T) {
	for text, want := range map[string]ResourceLimits{
		`{"Memory":"64MiB"}`:       {Memory: 64 << 20},
		`{"Memory":"64 mib"}`:      {Memory: 64 << 20},
		`{"Memory":"64MB"}`:        {Memory: 64e6},
		`{"Memory":"1.5GiB"}`:      {Memory: 3 << 29},
		`{"Memory":"0 B"}`:         {Memory: BlockAllLimit64},
		`{"Memory":"0.0kB"}`:       {Memory: BlockAllLimit64},
		`{"Memory":"0.001 kB"}`:    {Memory: 1},
		`{"Memory":"123"}`:         {Memory: 123},
		`{"Conns":"123","FD":"0"}`: {Conns: 123, FD: BlockAllLimit},
		`{"Memory":"9223372036854775807","Streams":"unlimited"}`: {Memory: math.MaxInt64, Streams: Unlimited},
	} {
		got, err := ReadLimits(strings.NewReader(`{"System":` + text + `}`))
		require.NoError(t, err)
		require.Equal(t, PartialLimitConfig{System: want}, got)
	}
}

func TestReaderRefusesTransientLimitsAboveTheSystems(t *testing.T) {
	const above = ", which is 5: everything transient counts there, too"
	defaults := PartialLimitConfig{System: ResourceLimits{Conns: 5, FD: 5}, Transient: ResourceLimits{Conns: 9}}.Build(InfiniteLimits)
	for text, want := range map[string]string{
		`{"System":{"Conns":5},"Transient":{"Conns":6}}`:              "line 1, column 44: Transient.Conns: is 6, above System.Conns" + above,
		"{\"Transient\":\n {\"Memory\":6},\"System\":{\"Memory\":5}}": "line 2, column 12: Transient.Memory: is 6, above System.Memory" + above,
		`{"System":{"Conns":5},"Transient":{"Conns":5}}`:              "",
		`{"System":{"Conns":5},"Transient":{"Conns":"unlimited"}}`:    "",
		`{"System":{"Conns":0},"Transient":{"Conns":6}}`:              "",
		`{"Transient":{"Conns":6}}`:                                   "",
	} {
		_, err := ReadLimits(strings.NewReader(text))
		if want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
	_, err := strictly(NewLimiterFromJSON(strings.NewReader(`{"Transient":{"FD":6}}`), defaults))
	require.ErrorContains(t, err, "line 1, column 20: Transient.FD: is 6, above System.FD"+above)
	_, err = strictly(NewLimiterFromJSON(strings.NewReader(`{"Transient":{"Streams":6}}`), defaults))
	require.NoError(t, err, "what the file does not say is not its slip")
}

func TestReaderNamesTheFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "limits.json")
	require.NoError(t, os.WriteFile(name, []byte("{\n \"Sytem\": {}\n}"), 0o600))
	_, err := ReadLimitsFile(name)
	require.ErrorContains(t, err, "limits: "+name+": line 2, column 2: Sytem: unknown name, did you mean System?")
	file, err := os.Open(name)
	require.NoError(t, err)
	defer file.Close()
	_, err = strictly(NewDefaultLimiterFromJSON(file))
	require.ErrorContains(t, err, name+": line 2")

	require.NoError(t, os.WriteFile(name, []byte(`{"System":{"Conns":5}}`), 0o600))
	cfg, err := ReadLimitsFile(name)
	require.NoError(t, err)
	require.Equal(t, PartialLimitConfig{System: ResourceLimits{Conns: 5}}, cfg)
	_, err = ReadLimitsFile(name + "x")
	require.ErrorIs(t, err, fs.ErrNotExist)
}
