package rcmgr

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// readGates returns what the strict reader makes of a configuration of the gates.
func readGates(t testing.TB, gates string) PartialLimitConfig {
	t.Helper()
	cfg, err := ReadLimits(strings.NewReader(`{"Gates":` + gates + `}`))
	require.NoError(t, err)
	return cfg
}

// passing opens 100 connections from an address, so many of them at a time, and
// returns how many were admitted.
func passing(t testing.TB, m *Manager, dir network.Direction, addr string, atATime int) (n int) {
	t.Helper()
	proto := "/ip4/"
	if strings.Contains(addr, ":") {
		proto = "/ip6/"
	}
	far := mustMA(t, proto+addr+"/tcp/1")
	var open []network.ConnManagementScope
	for range 100 {
		c, err := m.OpenConnection(dir, false, far)
		if err != nil {
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			continue
		}
		n++
		if open = append(open, c); len(open) == atATime {
			open[0].Done()
			open = open[1:]
		}
	}
	for _, c := range open {
		c.Done()
	}
	return n
}

// gated makes a manager whose only limits are its gates.
func gated(t testing.TB, l Limiter, opts ...Option) *Manager {
	t.Helper()
	m, err := New(l, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

func TestGateLimitsGoAllTheWay(t *testing.T) {
	const all = 1000 // at a time
	for gates, want := range map[string]struct {
		addr    string
		atATime int
		admits  int
	}{
		`{"Subnets":{"IPv4":{"24":3}}}`:                                               {"192.0.2.1", all, 3},
		`{"Subnets":{"IPv4":{"24":"default","32":"default"}}}`:                        {},
		`{"Subnets":{"IPv4":{"24":9,"32":"default"}}}`:                                {"192.0.2.1", all, 8},
		`{"Subnets":{"IPv4":{"0":"blockAll"}}}`:                                       {"192.0.2.1", all, 0},
		`{"Subnets":{"IPv4":{}}}`:                                                     {"192.0.2.1", all, 16},
		`{"Subnets":{"IPv4":{"32":"unlimited"}}}`:                                     {"192.0.2.1", all, 16},
		`{"Subnets":{"IPv6":{"64":5}}}`:                                               {"2001:db8::1", all, 5},
		`{"Subnets":{"IPv4":{"24":3}},"Outbound":true}`:                               {"2001:db8::1", all, 8},
		`{"Subnets":{"Networks":{"192.0.0.0/8":4}}}`:                                  {"192.0.2.1", all, 4},
		`{"Subnets":{"Networks":{"2001:db8::/32":6}}}`:                                {"2001:db8::1", all, 6},
		`{"Subnets":{"Networks":{"::ffff:192.0.0.0/104":4}}}`:                         {"192.0.2.1", all, 4},
		`{"Subnets":{"Networks":{"10.0.0.0/8":4,"127.0.0.0/8":"default"}}}`:           {"127.0.0.1", all, 100},
		`{"Subnets":{"Networks":{"127.0.0.0/8":2}}}`:                                  {"127.0.0.1", all, 2},
		`{"Rate":{"IPv4":{"24":{"PerSecond":0.001,"Burst":20}}}}`:                     {"192.0.2.1", 1, 20},
		`{"Rate":{"IPv4":{"32":{"Burst":21}}}}`:                                       {"192.0.2.1", 1, 21},
		`{"Rate":{"IPv4":{"32":{"PerSecond":0.001}}}}`:                                {"192.0.2.1", 1, 16},
		`{"Rate":{"IPv4":{"32":{"Burst":"unlimited"}}}}`:                              {"192.0.2.1", 1, 100},
		`{"Rate":{"IPv4":{}}}`:                                                        {"192.0.2.1", 1, 100},
		`{"Rate":{"IPv6":{"128":{"Burst":"blockAll"}}}}`:                              {"2001:db8::1", 1, 0},
		`{"Rate":{"IPv6":{"56":{}}}}`:                                                 {"2001:db8::1", 1, 16},
		`{"Rate":{"Networks":{"192.0.2.0/24":{"PerSecond":0.001,"Burst":30}}}}`:       {"192.0.2.1", 1, 30},
		`{"Rate":{"Networks":{"192.0.2.0/24":{},"127.0.0.0/8":{}}}}`:                  {"192.0.2.1", 1, 16},
		`{"Rate":{"Networks":{"127.0.0.0/8":{"PerSecond":0.001,"Burst":2}}}}`:         {"127.0.0.1", 1, 2},
		`{"Rate":{"Networks":{"10.0.0.0/8":{"PerSecond":0.001,"Burst":2}}}}`:          {"127.0.0.1", 1, 100},
		`{"Subnets":{"IPv4":{"32":"unlimited"}},"Rate":{"IPv4":{}},"Outbound":false}`: {"192.0.2.1", all, 100},
	} {
		t.Run(gates, func(t *testing.T) {
			if want.addr == "" {
				_, err := NewLimiterFromJSON(strings.NewReader(`{"Gates":`+gates+`}`), InfiniteLimits)
				require.ErrorContains(t, err, "there is no default here")
				return
			}
			cfg := readGates(t, gates)
			require.JSONEq(t, `{"Gates":`+gates+`}`, toJSON(t, cfg), "JSON")
			var lenient PartialLimitConfig
			require.NoError(t, json.Unmarshal([]byte(toJSON(t, cfg)), &lenient))
			require.Equal(t, cfg, lenient)

			// Applied, built, and read back from what is in force.
			var applied PartialLimitConfig
			applied.Apply(cfg)
			cfg.Gates = cfg.Gates.over(nil) // networks by the names that the gates know
			require.Equal(t, cfg, applied)
			l := NewFixedLimiter(applied.Build(InfiniteLimits))
			again, err := NewLimiterFromJSON(strings.NewReader(toJSON(t, l)), ConcreteLimitConfig{})
			require.NoError(t, err)
			require.Equal(t, cfg.Gates, again.(*fixedLimiter).ToPartialLimitConfig().Gates)
			require.Equal(t, want.admits, passing(t, gated(t, again), network.DirInbound, want.addr, want.atATime))
		})
	}
}

func TestANetworkWithHostBitsIsRefusedByReadersWithWhatWasMeant(t *testing.T) {
	for network, meant := range map[string]string{
		"10.0.0.1/8":            "10.0.0.0/8 or 10.0.0.1/32",
		"192.0.2.255/31":        "192.0.2.254/31 or 192.0.2.255/32",
		"0.0.0.1/0":             "0.0.0.0/0 or 0.0.0.1/32",
		"2001:DB8::1/32":        "2001:db8::/32 or 2001:db8::1/128",
		"::ffff:10.0.0.1/104":   "10.0.0.0/8 or 10.0.0.1/32",
		"::ffff:10.0.0.0/90":    "::ffc0:0:0/90 or 10.0.0.0/32",
		"64:ff9b::a00:1/104":    "10.0.0.0/8 or 10.0.0.1/32",
		"::ffff:10.0.0.128/120": "10.0.0.0/24 or 10.0.0.128/32",
	} {
		for _, at := range []string{`{"Subnets":{"Networks":{"` + network + `":1}}}`, `{"Rate":{"Networks":{"` + network + `":{"Burst":1,"PerSecond":1}}}}`} {
			_, err := ReadLimits(strings.NewReader(`{"Gates":` + at + `}`))
			require.ErrorContains(t, err, `Networks["`+network+`"]: has host bits, did you mean `+meant+"?")
		}
	}
	for _, network := range []string{"10.0.0.0/8", "10.0.0.1/32", "::/0", "::ffff:10.0.0.0/104", "64:ff9b::/96", "::ffff:10.0.0.1/128"} {
		readGates(t, `{"Subnets":{"Networks":{"`+network+`":1}}}`)
	}
}

func TestANetworkOfAProgramWithHostBitsIsThatNetworkAndKeepsItsOrigin(t *testing.T) {
	inForce := newFrom(t, DefaultLimits.Scale(1<<30, 1024)).Limits()
	counts := func(networks map[string]LimitVal) *GateLimits {
		g := &GateLimits{Subnets: SubnetLimits{Networks: make(map[netip.Prefix]LimitVal)}}
		for n, v := range networks {
			g.Subnets.Networks[netip.MustParsePrefix(n)] = v
		}
		return g
	}
	for spelt, place := range map[string]string{
		"10.0.0.1/8": "10.0.0.0/8", "10.0.0.0/8": "10.0.0.0/8", "::ffff:10.1.1.1/104": "10.0.0.0/8", "64:ff9b::a00:1/104": "10.0.0.0/8",
		"2001:db8::1/32": "2001:db8::/32",
	} {
		lower := PartialLimitConfig{Gates: counts(map[string]LimitVal{place: 9})}.Build(DefaultLimits.Scale(1<<30, 1024))
		partial := PartialLimitConfig{Gates: counts(map[string]LimitVal{spelt: 5})}
		partial.Gates.Rate.Networks = map[netip.Prefix]ConnRate{netip.MustParsePrefix(spelt): {PerSecond: 2, Burst: 3}}
		cfg := partial.Build(lower)
		m := newFrom(t, cfg)
		for _, in := range []ConcreteLimitConfig{cfg, m.Limits(), partial.Build(inForce)} {
			all := settingsOf(t, in)
			place := `Gates.Subnets.Networks["` + place + `"]`
			require.Equal(t, ConfigSetting{place, "5", OriginOverride}, all[place], spelt)
			place = strings.Replace(place, "Subnets", "Rate", 1)
			require.Equal(t, ConfigSetting{place, "2/s, burst 3", OriginOverride}, all[place], spelt)
		}
		read, err := NewLimiterFromJSON(strings.NewReader(toJSON(t, cfg)), InfiniteLimits)
		require.NoError(t, err, "what is written can be read")
		require.Equal(t, toJSON(t, cfg.ToPartialLimitConfig().Gates), toJSON(t, read.(*fixedLimiter).ToPartialLimitConfig().Gates))
		require.Equal(t, LimitVal(5), cfg.Diff(lower).Gates.Subnets.Networks[netip.MustParsePrefix(place)])

		var applied PartialLimitConfig
		applied.Apply(partial)
		applied.Apply(lower.ToPartialLimitConfig())
		require.Equal(t, 5, int(applied.Build(InfiniteLimits).limits.Gates.Subnets.Networks[netip.MustParsePrefix(place)]))
		require.Len(t, applied.Gates.Subnets.Networks, 1)

		network := NetworkPrefixLimit{netip.MustParsePrefix(spelt), 4}
		lists := [ip.Families][]NetworkPrefixLimit{}
		lists[ip.FamilyOf(netip.MustParsePrefix(place).Addr())] = []NetworkPrefixLimit{network}
		opted, err := New(nil, WithNetworkPrefixLimit(lists[ip.V4], lists[ip.V6]))
		require.NoError(t, err)
		t.Cleanup(func() { opted.Close() })
		at := `Gates.Subnets.Networks["` + place + `"]`
		require.Equal(t, ConfigSetting{at, "4", OriginCode}, settingsOf(t, opted.Limits())[at], spelt)
	}
	_, err := New(NewFixedLimiter(PartialLimitConfig{Gates: counts(map[string]LimitVal{"10.0.0.1/8": 1, "10.0.0.0/8": 2})}.Build(InfiniteLimits)))
	require.ErrorContains(t, err, `Gates.Subnets.Networks["10.0.0.1/8"]: the network 10.0.0.0/8 is given twice`)
	m := newFrom(t, PartialLimitConfig{Gates: counts(map[string]LimitVal{"203.0.113.9/24": 2})}.Build(InfiniteLimits))
	require.Equal(t, 2, passing(t, m, network.DirInbound, "203.0.113.77", 100))
}

func TestUpstreamReadsAConfigurationWithGates(t *testing.T) {
	text := toJSON(t, PartialLimitConfig{
		System: ResourceLimits{Conns: 7},
		Gates:  &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{24: 1}}},
	})
	require.Equal(t, `{"System":{"Conns":7},"Gates":{"Subnets":{"IPv4":{"24":1}}}}`, text)
	l, err := upstream.NewLimiterFromJSON(strings.NewReader(text), upstream.InfiniteLimits)
	require.NoError(t, err)
	require.Equal(t, 7, l.GetSystemLimits().GetConnTotalLimit())
}

func TestLimitsWithoutGatesHaveTheDefaultGates(t *testing.T) {
	infinite := NewFixedLimiter(InfiniteLimits)
	roundTrip := InfiniteLimits
	require.NoError(t, json.Unmarshal([]byte(toJSON(t, InfiniteLimits)), &roundTrip))
	ungated := InfiniteLimits
	require.NoError(t, json.Unmarshal([]byte(`{"Gates":{"Subnets":{"IPv4":{}},"Rate":{"IPv4":{}}}}`), &ungated))
	for name, c := range map[string]struct {
		limits Limiter
		want   int
	}{
		"InfiniteLimits":               {infinite, 100},
		"built on InfiniteLimits":      {NewFixedLimiter(PartialLimitConfig{}.Build(InfiniteLimits)), 8},
		"read into InfiniteLimits":     {NewFixedLimiter(roundTrip), 8},
		"says that there are none":     {NewFixedLimiter(ungated), 100},
		"built on one that says so":    {NewFixedLimiter(PartialLimitConfig{}.Build(ungated)), 100},
		"DefaultLimits":                {NewFixedLimiter(DefaultLimits.Scale(1<<40, 1<<20)), 8},
		"none":                         {nil, 8},
		"another package's":            {LimiterFrom(upstream.NewFixedLimiter(upstream.InfiniteLimits)), 8},
		"another package's around one": {struct{ Limiter }{infinite}, 8},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, passing(t, gated(t, c.limits), network.DirInbound, "192.0.2.1", 200))
		})
	}
	text := toJSON(t, InfiniteLimits)
	require.NotContains(t, text, "Gates", "go-libp2p's JSON")
}

func TestOptionsOverrideTheConfiguredGates(t *testing.T) {
	configured := NewFixedLimiter(readGates(t, `{"Subnets":{"IPv4":{"32":3},"IPv6":{"64":4},"Networks":{"10.0.0.0/8":5}},
		"Rate":{"IPv4":{"32":{"PerSecond":0.001,"Burst":7}}}}`).Build(InfiniteLimits))
	infinite := NewFixedLimiter(InfiniteLimits)
	v4 := []ConnLimitPerSubnet{{PrefixLength: 24, ConnCount: 2}}
	network4 := []NetworkPrefixLimit{{Network: netip.MustParsePrefix("192.0.2.0/24"), ConnCount: 6}}
	for _, c := range []struct {
		limits  Limiter
		opts    []Option
		atATime int
		want    [4]int // of each address
	}{
		{configured, nil, 200, [4]int{3, 4, 5, 100}},
		{configured, nil, 1, [4]int{7, 16, 7, 100}},
		{configured, []Option{WithLimitPerSubnet(v4, nil)}, 200, [4]int{2, 4, 5, 100}},
		{configured, []Option{WithNetworkPrefixLimit(network4, nil)}, 200, [4]int{6, 4, 3, 3}},
		{configured, []Option{WithConnRateLimiters(nil)}, 1, [4]int{100, 100, 100, 100}},
		{infinite, []Option{WithLimitPerSubnet(v4, nil)}, 200, [4]int{2, 100, 2, 100}},
		{infinite, []Option{WithNetworkPrefixLimit(network4, nil)}, 200, [4]int{6, 100, 100, 100}},
	} {
		for i, addr := range []string{"192.0.2.1", "2001:db8::1", "10.1.2.3", "127.0.0.1"} {
			m := gated(t, c.limits, c.opts...)
			require.Equal(t, c.want[i], passing(t, m, network.DirInbound, addr, c.atATime), addr)
		}
	}
}

// Where an option has replaced the limits of a family, the configuration has no effect there, so the
// error, Explain and the log name the option.
func TestARefusalNamesTheOptionThatSetTheLimit(t *testing.T) {
	limits := NewFixedLimiter(readGates(t, `{"Subnets": {"IPv4": {"32": 1}, "IPv6": {"56": 1}, "Networks": {"10.0.0.0/8": 1}}}`).Build(InfiniteLimits))
	perSubnet := WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 2}}, nil)
	networks := WithNetworkPrefixLimit([]NetworkPrefixLimit{{netip.MustParsePrefix("10.0.0.0/8"), 2}}, nil)
	for _, c := range []struct {
		opts []Option
		addr string
		key  string
	}{
		{nil, "/ip4/192.0.2.1", `Gates.Subnets.IPv4["32"]`},
		{nil, "/ip4/10.0.0.1", `Gates.Subnets.Networks["10.0.0.0/8"]`},
		{[]Option{perSubnet}, "/ip4/192.0.2.1", "WithLimitPerSubnet"},
		{[]Option{perSubnet}, "/ip6/2001:db8::1", `Gates.Subnets.IPv6["56"]`},
		{[]Option{perSubnet}, "/ip4/10.0.0.1", `Gates.Subnets.Networks["10.0.0.0/8"]`},
		{[]Option{networks}, "/ip4/192.0.2.1", `Gates.Subnets.IPv4["32"]`},
		{[]Option{networks}, "/ip4/10.0.0.1", "WithNetworkPrefixLimit"},
	} {
		lines := collectLog(t, slog.LevelError)
		m := gated(t, limits, c.opts...)
		addr := multiaddr.StringCast(c.addr + "/tcp/1")
		var refused *LimitError
		for range 3 {
			_, err := m.OpenConnection(network.DirInbound, false, addr)
			errors.As(err, &refused)
		}
		require.NotNil(t, refused)
		require.Equal(t, c.key, refused.ConfigKey())
		e, err := m.Explain(ExplainRequest{Kind: KindConn, Direction: network.DirInbound, Endpoint: addr})
		require.NoError(t, err)
		require.Equal(t, c.key, e.By.ConfigKey)
		m.logRefusals()
		logged := lines.take()
		require.Len(t, logged, 1)
		require.Regexp(t, `raise="?`+regexp.QuoteMeta(c.key)+`"?( |\n|$)`, strings.ReplaceAll(logged[0], `\"`, `"`))
	}
}

func TestGatesAreForOutboundConnectionsByChoice(t *testing.T) {
	says := func(gates string) Limiter { return NewFixedLimiter(readGates(t, gates).Build(InfiniteLimits)) }
	for _, c := range []struct {
		limits Limiter
		opts   []Option
		want   int
	}{
		{says(`{}`), nil, 100},
		{says(`{"Outbound":false}`), nil, 100},
		{says(`{"Outbound":true}`), nil, 8},
		{says(`{"Outbound":true}`), []Option{WithGates(GateLimits{Outbound: pointerTo(false)})}, 100},
		{says(`{}`), []Option{WithGates(GateLimits{Outbound: pointerTo(true)})}, 8},
		{NewFixedLimiter(InfiniteLimits), []Option{WithGates(GateLimits{Outbound: pointerTo(true)})}, 100},
	} {
		m := gated(t, c.limits, c.opts...)
		require.Equal(t, c.want, passing(t, m, network.DirOutbound, "192.0.2.1", 200))
		require.EqualValues(t, 100-c.want, m.Snapshot().Refusals[KindSubnet].ConnsOutbound)
		require.Zero(t, m.Snapshot().Refusals[KindSubnet].ConnsInbound)
		assertEmpty(t, m)
	}
}

// An entry of the allowlist that means one peer at the address must not bring
// the gates into an outbound connection to another peer there.
func TestADialPastAnAllowlistedAddressMeetsNoGate(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithAllowlistedMultiaddrs(testAllowlist))
	for range 3 * connsPerHost {
		c, err := m.OpenConnection(network.DirOutbound, true, testFars[3].addr)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(testPeer))
	}
}

func TestGateLimitsOfAConfigurationOverrideThoseBelow(t *testing.T) {
	for _, c := range []struct{ upper, lower, want string }{
		{`{}`, `{"Subnets":{"IPv4":{"24":1}},"Outbound":true}`, `{"Subnets":{"IPv4":{"24":1}},"Outbound":true}`},
		{`{"Outbound":false}`, `{"Outbound":true}`, `{"Outbound":false}`},
		{`{"Subnets":{"IPv4":{"32":2}}}`, `{"Subnets":{"IPv4":{"24":1}}}`, `{"Subnets":{"IPv4":{"32":2}}}`},
		{`{"Subnets":{"IPv4":{}}}`, `{"Subnets":{"IPv4":{"24":1},"IPv6":{"64":1}}}`, `{"Subnets":{"IPv4":{},"IPv6":{"64":1}}}`},
		{`{"Subnets":{"IPv4":{"32":2,"24":"default"}}}`, `{"Subnets":{"IPv4":{"24":1}}}`, `{"Subnets":{"IPv4":{"24":1,"32":2}}}`},
		{`{"Subnets":{"Networks":{"10.0.0.0/8":1,"11.0.0.0/8":"default"}}}`, `{"Subnets":{"Networks":{"10.0.0.0/8":2,"11.0.0.0/8":3,"::/0":4}}}`,
			`{"Subnets":{"Networks":{"10.0.0.0/8":1,"11.0.0.0/8":3,"::/0":4}}}`},
		{`{"Rate":{"IPv4":{"32":{"Burst":5}}}}`, `{"Rate":{"IPv4":{"32":{"Burst":6,"PerSecond":7}}}}`, `{"Rate":{"IPv4":{"32":{"PerSecond":7,"Burst":5}}}}`},
		{`{"Rate":{"Networks":{"10.0.0.0/8":{"Burst":"unlimited"}}}}`, `{"Rate":{"Networks":{"::/0":{"Burst":"blockAll"}}}}`,
			`{"Rate":{"Networks":{"10.0.0.0/8":{"Burst":"unlimited"},"::/0":{"Burst":"blockAll"}}}}`},
	} {
		var upper, lower PartialLimitConfig // some is valid only on top of other
		require.NoError(t, json.Unmarshal([]byte(`{"Gates":`+c.upper+`}`), &upper))
		require.NoError(t, json.Unmarshal([]byte(`{"Gates":`+c.lower+`}`), &lower))
		built := upper.Build(lower.Build(InfiniteLimits))
		require.JSONEq(t, c.want, toJSON(t, built.ToPartialLimitConfig().Gates), "build")
		upper.Apply(lower)
		require.JSONEq(t, c.want, toJSON(t, upper.Gates), "apply")
	}
}

func TestBuiltGatesCannotBeEdited(t *testing.T) {
	const text = `{"Subnets":{"IPv4":{"24":1},"IPv6":{"64":2},"Networks":{"10.0.0.0/8":3}},"Rate":{"IPv4":{"24":{"PerSecond":4,"Burst":5}}},"Outbound":true}`
	cfg := readGates(t, text)
	built := cfg.Build(InfiniteLimits)
	edit := func(g *GateLimits) {
		g.Subnets.IPv4[24], g.Subnets.IPv6[64], *g.Outbound = 9, 9, false
		g.Subnets.Networks[netip.MustParsePrefix("10.0.0.0/8")] = 9
		g.Rate.IPv4[24] = ConnRate{Burst: 9}
	}
	var applied PartialLimitConfig
	applied.Apply(cfg)
	edit(cfg.Gates)
	require.JSONEq(t, text, toJSON(t, applied.Gates))
	require.JSONEq(t, text, toJSON(t, built.ToPartialLimitConfig().Gates))
	edit(built.ToPartialLimitConfig().Gates)
	require.JSONEq(t, text, toJSON(t, built.ToPartialLimitConfig().Gates))
	copied := built
	require.NoError(t, json.Unmarshal([]byte(`{"Gates":{"Subnets":{"IPv4":{"24":8}}}}`), &copied))
	require.JSONEq(t, text, toJSON(t, built.ToPartialLimitConfig().Gates))
}

func TestErrorsOfTheReaderNameThePlaceAndTheMistakeInGates(t *testing.T) {
	for gates, want := range map[string]string{
		`5`:                     `line 1, column 10: Gates: expected an object in braces, found 5`,
		`null`:                  `line 1, column 10: Gates: expected an object in braces, found null`,
		`{"Subnet":{}}`:         `line 1, column 11: Gates.Subnet: unknown name, did you mean Subnets? Known here are Subnets, Rate, Outbound`,
		`{"Outbound":1}`:        `line 1, column 22: Gates.Outbound: expected true or false, found 1`,
		`{"Subnets":[]}`:        `line 1, column 21: Gates.Subnets: expected an object in braces, found a list`,
		`{"Rate":{},"rate":{}}`: `line 1, column 21: Gates.Rate: is given twice`,

		"{\n \"Subnets\": {\n  \"IPv4\": {\"33\": 1}}}":                            `line 3, column 18: Gates.Subnets.IPv4["33"]: expected a prefix length from 0 to 32`,
		`{"Subnets":{"IPv6":{"129":1}}}`:                                           `line 1, column 36: Gates.Subnets.IPv6["129"]: expected a prefix length from 0 to 128`,
		`{"Subnets":{"IPv4":{"/8":1}}}`:                                            `line 1, column 30: Gates.Subnets.IPv4["/8"]: expected a prefix length: `,
		`{"Subnets":{"IPv4":{"8":1,"+8":1}}}`:                                      `line 1, column 36: Gates.Subnets.IPv4["+8"]: is given twice`,
		`{"Subnets":{"IPv4":{"8":-1}}}`:                                            `line 1, column 34: Gates.Subnets.IPv4["8"]: -1 is negative`,
		`{"Subnets":{"IPv4":{"8":"x"}}}`:                                           `line 1, column 34: Gates.Subnets.IPv4["8"]: expected a whole number from 0 to `,
		`{"Subnets":{"IPv4":{"8":"default"}}}`:                                     `line 1, column 34: Gates.Subnets.IPv4["8"]: there is no default here: `,
		`{"Subnets":{"Networks":{"10.0.0.0":1}}}`:                                  `line 1, column 34: Gates.Subnets.Networks["10.0.0.0"]: expected a network such as 192.0.2.0/24: `,
		`{"Subnets":{"Networks":{"":1}}}`:                                          `line 1, column 34: Gates.Subnets.Networks[""]: expected a network such as 192.0.2.0/24: it is empty`,
		`{"Subnets":{"Networks":{"10.0.0.0/8":1,"::ffff:10.0.0.0/104":1}}}`:        `line 1, column 49: Gates.Subnets.Networks["::ffff:10.0.0.0/104"]: is given twice`,
		`{"Subnets":{"Networks":{"2001:DB8::/32":1,"2001:db8:0::/32":1}}}`:         `line 1, column 52: Gates.Subnets.Networks["2001:db8:0::/32"]: is given twice`,
		`{"Rate":{"Networks":{"2001:DB8::/32":{"Burst":5,"PerSecond":0.0}}}}`:      `line 1, column 70: Gates.Rate.Networks["2001:db8::/32"].PerSecond: there is no default here`,
		`{"Rate":{"Networks":{"::ffff:10.0.0.0/104":{"Burst":5,"PerSecond":-1}}}}`: `line 1, column 76: Gates.Rate.Networks["10.0.0.0/8"].PerSecond: is -1`,

		`{"Rate":{"IPv4":{"8":5}}}`:                                     `line 1, column 31: Gates.Rate.IPv4["8"]: expected an object in braces, found 5`,
		`{"Rate":{"IPv4":{"8":{"Burst":5}}}}`:                           `line 1, column 31: Gates.Rate.IPv4["8"].PerSecond: there is no default here: `,
		`{"Rate":{"IPv4":{"8":{"PerSecond":5}}}}`:                       `line 1, column 31: Gates.Rate.IPv4["8"].Burst: there is no default here: `,
		`{"Rate":{"IPv4":{"32":{"PerSecond":-1}}}}`:                     `line 1, column 45: Gates.Rate.IPv4["32"].PerSecond: is -1, expected a finite number, more than 0`,
		`{"Rate":{"IPv4":{"32":{"PerSecond":"1"}}}}`:                    `line 1, column 45: Gates.Rate.IPv4["32"].PerSecond: expected a number, found "1"`,
		`{"Rate":{"IPv4":{"32":{"PerSecond":null}}}}`:                   `line 1, column 45: Gates.Rate.IPv4["32"].PerSecond: expected a number, found null`,
		`{"Rate":{"IPv4":{"32":{"PerSecond":1e999}}}}`:                  `line 1, column 45: Gates.Rate.IPv4["32"].PerSecond: expected a number, found 1e999`,
		`{"Rate":{"IPv4":{"32":{"PerSecond":-1,"Burst":"unlimited"}}}}`: `line 1, column 45: Gates.Rate.IPv4["32"].PerSecond: is -1, expected a finite number, more than 0`,
		`{"Rate":{"IPv4":{"32":{"PerSecond":1e300}}}}`:                  `line 1, column 45: Gates.Rate.IPv4["32"].PerSecond: is 1e+300, expected at most 1000000`,
		`{"Rate":{"IPv4":{"32":{"Burst":17281}}}}`:                      `line 1, column 41: Gates.Rate.IPv4["32"].Burst: is 17281, which takes 24h0m5s to come at 0.2 a second, expected at most 24h0m0s`,
		`{"Rate":{"IPv4":{"32":{"PerSecond":1e-9}}}}`:                   `line 1, column 32: Gates.Rate.IPv4["32"].Burst: is 16, which takes `,
		`{"DialRate":{"IPv6":{"56":{"PerSecond":1e7,"Burst":2}}}}`:      `line 1, column 49: Gates.DialRate.IPv6["56"].PerSecond: is 1e+07, expected at most 1000000`,
		`{"StreamRate":{"IPv4":{"24":{"PerSecond":1e-5,"Burst":1}}}}`:   `line 1, column 64: Gates.StreamRate.IPv4["24"].Burst: is 1, which takes 27h46m40s`,
		`{"StreamRate":{"IPv4":{"24":{"PerSecond":1}}}}`:                `line 1, column 38: Gates.StreamRate.IPv4["24"].Burst: there is no default here`,
		`{"Rate":{"IPv4":{"32":{"Every":1}}}}`:                          `line 1, column 33: Gates.Rate.IPv4["32"].Every: unknown name, did you mean`,
		`{"Rate":{"Networks":{"::/0":{"Burst":5}}}}`:                    `line 1, column 38: Gates.Rate.Networks["::/0"].PerSecond: there is no default here: `,
	} {
		_, err := NewLimiterFromJSON(strings.NewReader(`{"Gates":`+gates+`}`), InfiniteLimits)
		require.ErrorContains(t, err, "limits: "+want, "%s", gates)
	}
}

func TestBadGatesOfAProgramAreErrorsOfNew(t *testing.T) {
	for want, g := range map[string]GateLimits{
		`Gates.Subnets.IPv6["-1"]: expected a prefix length from 0 to 128`:                    {Subnets: SubnetLimits{IPv6: map[int]LimitVal{-1: 5}}},
		`Gates.Subnets.IPv4["32"]: is -5, it must not be negative`:                            {Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: -5}}},
		`Gates.Subnets.Networks["invalid Prefix"]: expected a network such as 192.0.2.0/24`:   {Subnets: SubnetLimits{Networks: map[netip.Prefix]LimitVal{{}: 5}}},
		`Gates.Rate.IPv4["32"].PerSecond: is NaN, expected a finite number, more than 0`:      {Rate: RateLimits{IPv4: map[int]ConnRate{32: {PerSecond: math.NaN()}}}},
		`Gates.Rate.IPv4["32"].PerSecond: is +Inf, expected a finite number, more than 0`:     {Rate: RateLimits{IPv4: map[int]ConnRate{32: {PerSecond: math.Inf(1)}}}},
		`Gates.Rate.IPv4["24"].PerSecond: is NaN, expected a finite number, more than 0`:      {Rate: RateLimits{IPv4: map[int]ConnRate{24: {math.NaN(), Unlimited}}}},
		`Gates.Rate.IPv4["24"].PerSecond: is -Inf, expected a finite number, more than 0`:     {Rate: RateLimits{IPv4: map[int]ConnRate{24: {math.Inf(-1), BlockAllLimit}}}},
		`Gates.Rate.IPv4["8"].PerSecond: is 1e+300, expected at most 1000000`:                 {Rate: RateLimits{IPv4: map[int]ConnRate{8: {1e300, 9}}}},
		`Gates.DialRate.IPv6["8"].PerSecond: is 1.0000005e+06, expected at most 1000000`:      {DialRate: RateLimits{IPv6: map[int]ConnRate{8: {1000000.5, 9}}}},
		`Gates.StreamRate.IPv4["8"].PerSecond: is NaN, expected a finite number, more than 0`: {StreamRate: RateLimits{IPv4: map[int]ConnRate{8: {math.NaN(), 9}}}},
		`Gates.StreamRate.Networks["::/0"].Burst: is 86401, which takes 24h0m1s to come at 1 a second, expected at most 24h0m0s`: {StreamRate: RateLimits{
			Networks: map[netip.Prefix]ConnRate{netip.MustParsePrefix("::/0"): {1, 86401}}}},
		`Gates.Rate.Networks["::/0"].Burst: is -9, it must not be negative`: {Rate: RateLimits{Networks: map[netip.Prefix]ConnRate{netip.MustParsePrefix("::/0"): {1, -9}}}},
	} {
		_, err := New(NewFixedLimiter(PartialLimitConfig{Gates: &g}.Build(InfiniteLimits)))
		require.EqualError(t, err, "rcmgr: limits: "+want)
		var bad *ConfigError
		require.ErrorAs(t, err, &bad)
		require.Equal(t, bad.Path+": "+bad.Err.Error(), want)
		_, err = New(nil, WithGates(g))
		require.EqualError(t, err, "rcmgr: WithGates: limits: "+want)
	}
}

func TestRatesAtTheirBoundsAreAllowedAtTheGates(t *testing.T) {
	for _, r := range []ConnRate{{1e6, 1}, {1e6, 1 << 30}, {1, 86_400}, {1.0 / 86_400, 1}, {1e300, Unlimited}, {1e300, BlockAllLimit}} {
		newFrom(t, PartialLimitConfig{Gates: &GateLimits{StreamRate: RateLimits{IPv4: map[int]ConnRate{8: r}}}}.Build(InfiniteLimits))
	}
}

func TestAManagerLogsItsSettingsAtStart(t *testing.T) {
	text := captureLogFrom(t, slog.LevelInfo)
	gated(t, NewFixedLimiter(readGates(t, `{"Subnets":{"IPv4":{"24":3},"IPv6":{"48":9,"56":"default"},"Networks":{"10.0.0.0/8":"unlimited"}},"Outbound":true}`).Build(InfiniteLimits)),
		WithStripes(4), WithAdmission(AdmissionLinear), WithAllowlistedMultiaddrs(testAllowlist))
	require.Equal(t, 1, strings.Count(text.String(), "\n"), text.String())
	for _, want := range []string{
		"level=INFO", "stripes=4", "admission=linear", "newcomers_quarter=true",
		`connections_per_subnet="[ipv4/24: 3 10.0.0.0/8: unlimited 127.0.0.0/8: unlimited ipv6/56: 8 ipv6/48: 9 ::1/128: unlimited]"`, // the smallest subnets first, as they are asked
		`connect_rates="[ipv4/32: 0.2/s, burst 16 127.0.0.0/8: unlimited `, "outbound_gates=true",
		fmt.Sprintf("allowlist_entries=%d", len(testAllowlist)), "traced=false",
	} {
		require.Contains(t, text.String(), want)
	}

	text.Reset()
	gated(t, NewFixedLimiter(InfiniteLimits), WithConnRateLimiters(nil), WithTraceReporter(&heard{}))
	for _, want := range []string{
		"stripes=1", "admission=half", `connections_per_subnet="[127.0.0.0/8: unlimited ::1/128: unlimited]"`,
		`connect_rates=[off]`, "outbound_gates=false", "allowlist_entries=0", "traced=true",
	} {
		require.Contains(t, text.String(), want)
	}
}

// A list of limits replaces the default list, so the default limits that it has no entry for are
// gone. The log names them.
func TestTheLogNamesTheDefaultLimitsThatAListReplaces(t *testing.T) {
	for config, want := range map[string]string{
		`{"Subnets":{"IPv4":{"24":64}}}`: `default_limits_replaced="[connections ipv4/32: 8]"`,
		`{"Subnets":{"IPv6":{"48":64}},"Rate":{"IPv4":{"24":{"PerSecond":1,"Burst":2}}}}`: `default_limits_replaced="[connections ipv6/56: 8 connect rate ipv4/32: 0.2/s, burst 16]"`,
		`{"Subnets":{"IPv4":{"24":64,"32":"default"}}}`:                                   "",
		`{"Subnets":{"IPv4":{"24":64,"32":"unlimited"}}}`:                                 "",
		`{"Subnets":{"IPv4":{}}}`:                                                         "",
		`{"DialRate":{"IPv4":{"24":{"PerSecond":1,"Burst":2}}}}`:                          "",
	} {
		text := captureLogFrom(t, slog.LevelInfo)
		gated(t, NewFixedLimiter(readGates(t, config).Build(InfiniteLimits)))
		if want == "" {
			require.NotContains(t, text.String(), "default_limits_replaced", config)
		} else {
			require.Contains(t, text.String(), want, config)
		}
	}
}

func TestALineOfAnAllowlistThatDoesNotParseIsAnErrorOrSkipped(t *testing.T) {
	lines := []string{"/ip4/192.0.2.1", "192.0.2.2", "/dns/example.com", "/ip4/192.0.2.0/ipcidr/33", "/ip6/2001:db8::/ipcidr/32"}
	for i, want := range map[int]string{
		2: `rcmgr: WithAllowlistStrings: line 2: allowlist entry "192.0.2.2": `,
		3: `rcmgr: WithAllowlistStrings: line 2: allowlist entry "/dns/example.com": expected an IP address`,
	} {
		_, err := New(nil, WithAllowlistStrings(append(lines[:1:1], lines[i-1]), false))
		require.ErrorContains(t, err, want)
	}
	text := captureLog(t)
	m := gated(t, nil, WithAllowlistStrings(lines, true), WithAllowlistStrings([]string{"/ip4/198.51.100.1"}, false))
	require.Equal(t, 3, strings.Count(text.String(), "level=WARN"), text.String())
	require.Contains(t, text.String(), "line=4")
	for addr, want := range map[string]bool{
		"/ip4/192.0.2.1": true, "/ip4/192.0.2.2": false, "/ip6/2001:db8::7": true, "/ip4/198.51.100.1": true,
	} {
		require.Equal(t, want, m.GetAllowlist().Allowed(multiaddr.StringCast(addr)), addr)
	}
}

func TestGatesOfAnOptionHoldWhateverTheConfigurationSays(t *testing.T) {
	limits := NewFixedLimiter(readGates(t, `{"Subnets":{"IPv4":{"32":3},"IPv6":{"64":5}},"Outbound":true}`).Build(InfiniteLimits))
	byOption := GateLimits{
		Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 2, 24: 7}, Networks: map[netip.Prefix]LimitVal{netip.MustParsePrefix("192.0.2.0/28"): 4}},
		Rate:    RateLimits{IPv4: map[int]ConnRate{}},
	}
	m := gated(t, limits, WithGates(GateLimits{Outbound: pointerTo(false)}), WithGates(byOption))
	byOption.Subnets.IPv4[32] = 9 // the option has its own
	for addr, want := range map[string]int{"198.51.100.1": 2, "192.0.2.1": 4, "2001:db8::1": 5} {
		require.Equal(t, want, passing(t, m, network.DirInbound, addr, 20), addr)
	}
	require.Equal(t, 2, passing(t, m, network.DirOutbound, "203.0.113.1", 20), "the second WithGates leaves that to the configuration")
	m = gated(t, limits, WithGates(byOption), WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 1}}, nil))
	require.Equal(t, 1, passing(t, m, network.DirInbound, "198.51.100.1", 20), "go-libp2p's own option goes before it")

	origins := make(map[string]Origin)
	for _, s := range m.Limits().Settings() {
		origins[s.Place] = s.Origin
	}
	require.Equal(t, OriginCode, origins[`Gates.Subnets.Networks["192.0.2.0/28"]`])
	require.Equal(t, OriginOverride, origins[`Gates.Subnets.IPv6["64"]`])
	require.Equal(t, OriginOverride, origins["Gates.Outbound"])

	_, err := New(nil, WithGates(GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{33: 1}}}))
	require.ErrorContains(t, err, `Gates.Subnets.IPv4["33"]: expected a prefix length from 0 to 32`)
}

func TestAManagerWithoutGatesSaysSoOnceWhenItStarts(t *testing.T) {
	infinite := NewFixedLimiter(InfiniteLimits)
	for name, c := range map[string]struct {
		limits Limiter
		opts   []Option
		warns  bool
	}{
		"InfiniteLimits alone":    {infinite, nil, true},
		"with a limit by option":  {infinite, []Option{WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 8}}, nil)}, false},
		"with gates by option":    {infinite, []Option{WithGates(GateLimits{Outbound: pointerTo(false)})}, false},
		"with rates of a program": {infinite, []Option{WithConnRateLimiters(nil)}, false},
		"built on InfiniteLimits": {NewFixedLimiter(PartialLimitConfig{}.Build(InfiniteLimits)), nil, false},
		"default limits":          {nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			text := captureLog(t)
			m, err := New(c.limits, c.opts...)
			require.NoError(t, err)
			defer m.Close()
			require.Equal(t, c.warns, strings.Count(text.String(), "InfiniteLimits alone") == 1, text.String())
		})
	}
}
