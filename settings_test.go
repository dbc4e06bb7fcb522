package rcmgr

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

// settingsOf returns settings by place.
func settingsOf(t *testing.T, cfg ConcreteLimitConfig) map[string]ConfigSetting {
	t.Helper()
	all := make(map[string]ConfigSetting)
	for _, s := range cfg.Settings() {
		if _, twice := all[s.Place]; twice {
			t.Fatalf("%s is there twice", s.Place)
		}
		all[s.Place] = s
	}
	return all
}

func TestEverySettingHasItsOrigin(t *testing.T) {
	cfg, err := NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100, Overrides: PartialLimitConfig{
		Transient: ResourceLimits{FD: 7},
		Service:   map[string]ResourceLimits{"mine": {Streams: 3}},
		Costs:     &Costs{Stream: 5},
		Gates:     &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{24: 9}}},
	}}.Build()
	require.NoError(t, err)
	m, err := New(NewFixedLimiter(cfg), WithGates(GateLimits{Outbound: pointerTo(true)}),
		WithNetworkPrefixLimit(nil, []NetworkPrefixLimit{{netip.MustParsePrefix("2001:db8::/32"), 4}}))
	require.NoError(t, err)
	defer m.Close()
	viewProtocol(t, m, "/a").(ResourceScopeLimiter).SetLimit(&BaseLimit{Streams: 11})
	viewPeer(t, m, testPeer).(ResourceScopeLimiter).SetLimit(&BaseLimit{Conns: 12})
	viewPeer(t, m, "unnamed")

	all := settingsOf(t, m.Limits())
	peerPlace := `Peer["` + testPeer.String() + `"]`
	for _, want := range []ConfigSetting{
		{"System.Memory", "1073741824", OriginNodeLimits},
		{"System.Conns", "unlimited", OriginNodeLimits},
		{"Transient.FD", "7", OriginOverride},
		{"Transient.Memory", "268435456", OriginNodeLimits},
		{"PeerDefault.ConnsInbound", "8", OriginDefault},
		{"PeerDefault.Conns", "unlimited", OriginNodeLimits},
		{`Service["mine"].Streams`, "3", OriginOverride},
		{`Service["mine"].Memory`, "unlimited", OriginNodeLimits},
		{`Service["libp2p.ping"].Streams`, "128", OriginDefault},
		{`Protocol["/a"].Streams`, "11", OriginCode},
		{`Protocol["/a"].Memory`, "blockAll", OriginCode},
		{peerPlace + ".Conns", "12", OriginCode},
		{"Costs.Conn", "none", OriginDefault},
		{"Costs.Stream", "5", OriginOverride},
		{`Gates.Subnets.IPv4["24"]`, "9", OriginOverride},
		{`Gates.Subnets.IPv6["56"]`, "8", OriginDefault},
		{`Gates.Subnets.Networks["127.0.0.0/8"]`, "unlimited", OriginDefault},
		{`Gates.Subnets.Networks["2001:db8::/32"]`, "4", OriginCode},
		{`Gates.Rate.IPv4["32"]`, "0.2/s, burst 16", OriginDefault},
		{"Gates.Outbound", "true", OriginCode},
	} {
		require.Equal(t, want, all[want.Place])
	}
	require.NotContains(t, all, `Gates.Subnets.IPv4["32"]`)
	require.NotContains(t, all, `Peer["`+peer.ID("unnamed").String()+`"].Conns`)

	// What is laid on the limits in force keeps the origins of the rest.
	more := settingsOf(t, PartialLimitConfig{
		System: ResourceLimits{Conns: 5},
		Gates:  &GateLimits{Subnets: SubnetLimits{IPv6: map[int]LimitVal{56: 3}}},
	}.Build(m.Limits()))
	require.Equal(t, OriginOverride, more["System.Conns"].Origin)
	require.Equal(t, OriginOverride, more[`Gates.Subnets.IPv6["56"]`].Origin)
	require.Equal(t, OriginCode, more["Gates.Outbound"].Origin)
	require.Equal(t, OriginCode, more[`Protocol["/a"].Streams`].Origin)
}

func TestEverySettingOfAnotherLimiterComesFromCode(t *testing.T) {
	m, err := New(otherLimiter{NewFixedLimiter(InfiniteLimits)}, WithConnRateLimiters(nil))
	require.NoError(t, err)
	defer m.Close()
	for _, s := range m.Limits().Settings() {
		switch {
		case s.Place == "Gates.Rate":
			require.Equal(t, ConfigSetting{"Gates.Rate", "as WithConnRateLimiters says", OriginCode}, s)
		case strings.HasPrefix(s.Place, "Gates.") || strings.HasPrefix(s.Place, "Costs."):
			require.Equal(t, OriginDefault, s.Origin, s.Place)
			require.NotContains(t, s.Place, "Rate")
		default:
			require.Equal(t, OriginCode, s.Origin, s.Place)
		}
	}
}

// Also those that differ from the unnamed ones, which are found when their scopes are made,
// and those that admit nothing at all.
func TestNamedSettingsOfAnotherLimiterComeFromCode(t *testing.T) {
	conf := unlimitedConf()
	conf.Service = map[string]BaseLimit{"a": {Streams: 5}, "none": {}}
	conf.ServicePeer = map[string]BaseLimit{"a": {Streams: 2}}
	conf.Protocol = map[protocol.ID]BaseLimit{"/a": {Streams: 6}, "/none": {}}
	conf.ProtocolPeer = map[protocol.ID]BaseLimit{"/a": {Streams: 3}}
	conf.Peer = map[peer.ID]BaseLimit{testPeers[0]: {Conns: 9}, testPeers[1]: {}}
	m, err := New(otherLimiter{NewFixedLimiter(ConcreteLimitConfig{limits: conf})})
	require.NoError(t, err)
	defer m.Close()
	for _, name := range []string{"a", "none"} {
		viewService(t, m, name)
		viewProtocol(t, m, protocol.ID("/"+name))
	}
	viewPeer(t, m, testPeers[0])
	viewPeer(t, m, testPeers[1])
	all := settingsOf(t, m.Limits())
	for _, want := range []ConfigSetting{
		{`Service["a"].Streams`, "5", OriginCode}, {`ServicePeer["a"].Streams`, "2", OriginCode},
		{`Protocol["/a"].Streams`, "6", OriginCode}, {`ProtocolPeer["/a"].Streams`, "3", OriginCode},
		{`Service["none"].Streams`, "blockAll", OriginCode}, {`Protocol["/none"].Streams`, "blockAll", OriginCode},
		{`Peer["` + testPeers[0].String() + `"].Conns`, "9", OriginCode},
		{`Peer["` + testPeers[1].String() + `"].Conns`, "blockAll", OriginCode},
	} {
		require.Equal(t, want, all[want.Place])
	}
}

func TestEveryFieldOfEveryScopeIsASetting(t *testing.T) {
	for _, l := range leaves(t) {
		var cfg PartialLimitConfig
		l.set(&cfg, 7777)
		changed := 0
		for _, s := range cfg.Build(InfiniteLimits).Settings() {
			if s.Value != "7777" {
				require.Equal(t, OriginDefault, s.Origin, s.Place)
				continue
			}
			changed++
			require.Equal(t, OriginOverride, s.Origin, s.Place)
			require.True(t, strings.HasPrefix(s.Place, l.scope) && strings.HasSuffix(s.Place, "."+l.field), "%s is %v", s.Place, l)
			require.Equal(t, l.name != "", strings.Contains(s.Place, l.name+`"]`) && l.name != "")
		}
		require.Equal(t, 1, changed, "%v", l)
	}
}

func TestSettingsAsTableAndJSON(t *testing.T) {
	settings := ConfigSettings{{"System.Conns", "128", OriginNodeLimits}, {"Service[\"\\x1b[2J\"].Streams\n", "unlimited", OriginDefault}, {"System.Memory", "1610612736", OriginOverride}}
	var out bytes.Buffer
	require.NoError(t, settings.WriteTable(&out))
	require.Equal(t, "Setting                            Value      Origin\n"+
		"System.Conns                       128        node\n"+
		`"Service[\"\\x1b[2J\"].Streams\n"  unlimited  default`+"\n"+
		"System.Memory                      1.5 GiB    override\n", out.String())
	text := toJSON(t, settings[:1])
	require.Equal(t, `[{"Place":"System.Conns","Value":"128","Origin":"node"}]`, text)
	var back ConfigSettings
	require.NoError(t, json.Unmarshal([]byte(text), &back))
	require.Equal(t, settings[:1], back)
	require.Error(t, json.Unmarshal([]byte(`[{"Origin":"nowhere"}]`), &back))
}

// randomConcrete names things that others do not, and may have gates.
func randomConcrete(t *testing.T, rng *rand.Rand) ConcreteLimitConfig {
	partial := randomPartial(t, rng)
	if rng.IntN(2) == 0 {
		partial.Costs = &Costs{Conn: Cost(rng.IntN(3) - 1), Stream: Cost(rng.IntN(3) - 1)}
	}
	if rng.IntN(2) == 0 {
		say := rng.IntN(2) == 0
		partial.Gates = &GateLimits{
			Subnets:  SubnetLimits{IPv4: map[int]LimitVal{24 + rng.IntN(2)*8: 5}, Networks: map[netip.Prefix]LimitVal{netip.MustParsePrefix("10.0.0.0/8"): LimitVal(1 + rng.IntN(2))}},
			Rate:     RateLimits{IPv6: map[int]ConnRate{56: {PerSecond: 1, Burst: LimitVal(1 + rng.IntN(2))}}},
			Outbound: &say,
		}
	}
	return partial.Build([]ConcreteLimitConfig{{}, InfiniteLimits, DefaultLimits.Scale(1<<30, 1024)}[rng.IntN(3)])
}

func TestBuildingTheDifferenceOnOtherLimitsGivesTheConfigurationBack(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand) {
		cfg, others := randomConcrete(t, rng), randomConcrete(t, rng)
		beyond := cfg.Diff(others)
		got := beyond.Build(others)
		require.Equal(t, asked(t, NewFixedLimiter(cfg)), asked(t, NewFixedLimiter(got)))
		want, have := settingsOf(t, cfg), settingsOf(t, got)
		for place, s := range have {
			network := strings.Contains(place, ".Networks[") // cannot be left out
			if w, ok := want[place]; ok {
				require.Equal(t, w.Value, s.Value, place)
			} else if !network {
				scope, field, _ := strings.Cut(place, `["`)
				field = field[strings.LastIndex(field, "]")+1:]
				require.Equal(t, want[scope+"Default"+field].Value, s.Value, place)
			}
		}
		for place := range want {
			if scope, _, named := strings.Cut(place, `["`); !named || strings.HasPrefix(scope, "Gates") {
				if _, ok := have[place]; !ok {
					t.Fatalf("%s is missing", place)
				}
			}
		}
		require.Equal(t, PartialLimitConfig{}, cfg.Diff(cfg), "nothing is beyond itself")
		again, _, err := parseLimits(strings.NewReader(toJSON(t, beyond)), nil)
		require.NoError(t, err)
		require.Equal(t, toJSON(t, beyond), toJSON(t, again), "it goes to a file and back")
	})
}

func TestOnlyWhatDiffersIsWritten(t *testing.T) {
	defaults := DefaultLimits.Scale(1<<30, 1024)
	text := `{"Service":{"a":{"Streams":5}},"System":{"Conns":7,"Memory":"unlimited"},"Costs":{"Conn":9},"Gates":{"Outbound":true}}`
	read, err := ReadLimits(strings.NewReader(text))
	require.NoError(t, err)
	require.Equal(t, text, toJSON(t, read.Build(defaults).Diff(defaults)))
	require.Equal(t, "{}", toJSON(t, defaults.Diff(defaults)))
	require.Equal(t, `{"Costs":{"Conn":"none"}}`, toJSON(t, defaults.Diff(costly(defaults))))
}

func costly(cfg ConcreteLimitConfig) ConcreteLimitConfig {
	return PartialLimitConfig{Costs: &Costs{Conn: 5}}.Build(cfg)
}

// Every limit goes to the table of a snapshot, and to its JSON, under its name.
func TestEveryFieldOfALimitIsInTableAndJSON(t *testing.T) {
	for _, field := range reflect.VisibleFields(reflect.TypeFor[BaseLimit]()) {
		if field.Name == "Rates" { // see rates_test.go
			continue
		}
		l := InfiniteLimits.limits.System
		reflect.ValueOf(&l).Elem().FieldByIndex(field.Index).SetInt(7777)
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System = l }))
		s := m.Snapshot()
		found := 0
		for _, u := range s.LimitUses() {
			if u.Limit == 7777 {
				found++
				require.Equal(t, []string{"system", field.Name}, []string{u.Scope, u.Name})
			} else {
				require.EqualValues(t, int64(math.MaxInt64), u.Limit)
			}
		}
		require.Equal(t, 1, found)
		var back Snapshot
		require.NoError(t, json.Unmarshal([]byte(toJSON(t, s)), &back))
		require.Equal(t, l, back.Scopes[0].Limit)
		require.Equal(t, 1, strings.Count(toJSON(t, s), `"`+field.Name+`":{"Limit":7777,`))
	}
}
