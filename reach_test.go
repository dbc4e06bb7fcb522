package rcmgr

import (
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

// sizes are from the smallest to the largest node.
var sizes = []int64{1 << 20, 64 << 20, 128 << 20, 129 << 20, 512 << 20, 1 << 30, 2 << 30, 8 << 30, 64 << 30, 1 << 40, math.MaxInt64}

func TestDefaultLimitsThatCannotBeReachedAreNotWarnedAbout(t *testing.T) {
	overrides, err := ReadLimitsFile("testdata/overrides.json")
	require.NoError(t, err)
	withServices := DefaultLimits.withOwnMaps()
	SetDefaultServiceLimits(&withServices)
	require.Empty(t, InfiniteLimits.Warnings())
	require.Empty(t, ConcreteLimitConfig{}.Warnings())
	require.Empty(t, withServices.AutoScale().Warnings())
	for _, size := range sizes {
		for _, fds := range []int{0, 1, 256, 1 << 20, math.MaxInt} {
			require.Empty(t, DefaultLimits.Scale(size, fds).Warnings())
			require.Empty(t, withServices.Scale(size, fds).Warnings())
			require.Empty(t, PartialLimitConfig{}.Build(withServices.Scale(size, fds)).Warnings())
			for _, n := range []NodeLimits{
				{}, {NoConnMgr: true}, {ConnMgrHighWater: 5000}, {Overrides: overrides},
				{Overrides: PartialLimitConfig{Gates: &GateLimits{Outbound: new(bool)}, Costs: &Costs{Conn: 100}}},
			} {
				n.MaxMemory, n.MaxFileDescriptors = size, max(fds, 1)
				cfg, err := n.Build()
				require.NoError(t, err)
				require.Empty(t, cfg.Warnings(), "%+v", n)
				m := newFrom(t, cfg)
				require.Empty(t, m.Limits().Warnings())
			}
		}
	}
}

func TestAWrittenLimitThatCanNeverBeReachedIsWarnedAbout(t *testing.T) {
	const end = ": it can never be reached"
	p := mustPeer(t, peerText1)
	low := PartialLimitConfig{
		System:      ResourceLimits{Conns: 160, ConnsInbound: 80, ConnsOutbound: 100, Streams: 1000, StreamsInbound: 500, StreamsOutbound: 600, FD: 90, Memory: 1 << 20},
		Transient:   ResourceLimits{ConnsInbound: 40, Memory: 1000},
		PeerDefault: ResourceLimits{Streams: 300, Memory: 500},
	}.build(InfiniteLimits, OriginNodeLimits)
	of := func(network string) map[netip.Prefix]LimitVal {
		return map[netip.Prefix]LimitVal{netip.MustParsePrefix(network): 81}
	}
	for _, c := range []struct {
		name string
		cfg  PartialLimitConfig
		want []string
	}{
		{"nothing", PartialLimitConfig{}, nil},
		{"at the limit", PartialLimitConfig{System: ResourceLimits{ConnsInbound: 160, ConnsOutbound: 160}, Transient: ResourceLimits{Conns: 160}}, nil},
		{"words", PartialLimitConfig{System: ResourceLimits{ConnsInbound: Unlimited, Streams: Unlimited}, PeerDefault: ResourceLimits{Memory: Unlimited64, Conns: BlockAllLimit}}, nil},
		{"blocked on purpose", PartialLimitConfig{System: ResourceLimits{Conns: BlockAllLimit}, Transient: ResourceLimits{Conns: 20}}, nil},
		{"a lower system", PartialLimitConfig{System: ResourceLimits{Memory: 10}}, nil},
		{"a part", PartialLimitConfig{System: ResourceLimits{ConnsInbound: 10000}},
			[]string{"System.ConnsInbound is 10000 (override), above System.Conns, which is 160 (node)"}},
		{"both written", PartialLimitConfig{System: ResourceLimits{StreamsOutbound: 7000, Streams: 6000, StreamsInbound: 5900}},
			[]string{"System.StreamsOutbound is 7000 (override), above System.Streams, which is 6000 (override)"}},
		{"a total", PartialLimitConfig{System: ResourceLimits{Conns: 181}},
			[]string{"System.Conns is 181 (override), above System.ConnsInbound and System.ConnsOutbound together, which are 80 (node) and 100 (node)"}},
		{"a total at its parts", PartialLimitConfig{System: ResourceLimits{Conns: 180}}, nil},
		{"transient", PartialLimitConfig{Transient: ResourceLimits{FD: 91, StreamsInbound: 501, Conns: 160}},
			[]string{"Transient.StreamsInbound is 501 (override), above System.StreamsInbound, which is 500 (node)",
				"Transient.FD is 91 (override), above System.FD, which is 90 (node)"}},
		{"allowlisted", PartialLimitConfig{AllowlistedSystem: ResourceLimits{Conns: 5, Memory: 400}, AllowlistedTransient: ResourceLimits{ConnsInbound: 6}},
			[]string{"AllowlistedTransient.ConnsInbound is 6 (override), above AllowlistedSystem.Conns, which is 5 (override)"}},
		{"peers", PartialLimitConfig{PeerDefault: ResourceLimits{Conns: 161}, Peer: map[peer.ID]ResourceLimits{p: {ConnsInbound: 81}}},
			[]string{"PeerDefault.Conns is 161 (override), above System.Conns, which is 160 (node)",
				`Peer["` + peerText1 + `"].ConnsInbound is 81 (override), above System.ConnsInbound, which is 80 (node)`}},
		{"services", PartialLimitConfig{ServiceDefault: ResourceLimits{Streams: 1001}, Service: map[string]ResourceLimits{"x": {StreamsInbound: 501}, "y": {Conns: 5000}}},
			[]string{"ServiceDefault.Streams is 1001 (override), above System.Streams, which is 1000 (node)",
				`Service["x"].StreamsInbound is 501 (override), above System.StreamsInbound, which is 500 (node)`}},
		{"a peer in services", PartialLimitConfig{Service: map[string]ResourceLimits{"x": {Streams: 20}, "y": {}}, ServicePeerDefault: ResourceLimits{Streams: 301}, ServicePeer: map[string]ResourceLimits{"x": {StreamsInbound: 21}}},
			[]string{"ServicePeerDefault.Streams is 301 (override), above PeerDefault.Streams, which is 300 (node)",
				`ServicePeer["x"].StreamsInbound is 21 (override), above Service["x"].Streams, which is 20 (override)`}},
		{"a peer in some service", PartialLimitConfig{ServiceDefault: ResourceLimits{Streams: 5}, Service: map[string]ResourceLimits{"x": {Streams: 20}}, ServicePeerDefault: ResourceLimits{Streams: 20}}, nil},
		{"a peer in no service", PartialLimitConfig{ServiceDefault: ResourceLimits{Streams: 5}, Service: map[string]ResourceLimits{"x": {Streams: 20}}, ServicePeerDefault: ResourceLimits{Streams: 21}},
			[]string{`ServicePeerDefault.Streams is 21 (override), above Service["x"].Streams, which is 20 (override)`}},
		{"a peer in services that are not named", PartialLimitConfig{ServiceDefault: ResourceLimits{Streams: 5}, ServicePeerDefault: ResourceLimits{Streams: 20},
			Service: map[string]ResourceLimits{"x": {Streams: 20}}, ServicePeer: map[string]ResourceLimits{"x": {Streams: 3}}},
			[]string{"ServicePeerDefault.Streams is 20 (override), above ServiceDefault.Streams, which is 5 (override)"}},
		{"protocols", PartialLimitConfig{Protocol: map[protocol.ID]ResourceLimits{"/x": {Memory: 1<<20 + 1}}, ProtocolPeer: map[protocol.ID]ResourceLimits{"/x": {Memory: 501}}},
			[]string{`Protocol["/x"].Memory is 1048577 (override), above System.Memory, which is 1048576 (node)`,
				`ProtocolPeer["/x"].Memory is 501 (override), above PeerDefault.Memory, which is 500 (node)`}},
		{"some peer has room", PartialLimitConfig{ProtocolPeerDefault: ResourceLimits{Memory: 501}, Peer: map[peer.ID]ResourceLimits{p: {Memory: 501}}}, nil},
		{"one", PartialLimitConfig{Conn: ResourceLimits{Memory: 1001, Conns: 5000}, Stream: ResourceLimits{Memory: 501, Streams: 5000}},
			[]string{"Stream.Memory is 501 (override), above PeerDefault.Memory, which is 500 (node)",
				"Conn.Memory is 1001 (override), above Transient.Memory, which is 1000 (node)"}},
		{"costs", PartialLimitConfig{Costs: &Costs{Conn: 501, Stream: 1001}},
			[]string{"Costs.Conn is 501 (override), above PeerDefault.Memory, which is 500 (node): none could be kept",
				"Costs.Stream is 1001 (override), above PeerDefault.Memory, which is 500 (node): none could be kept"}},
		{"costs above transient", PartialLimitConfig{Costs: &Costs{Conn: 1001}, PeerDefault: ResourceLimits{Memory: Unlimited64}},
			[]string{"Costs.Conn is 1001 (override), above Transient.Memory, which is 1000 (node): none could be kept"}},
		{"costs of a part", PartialLimitConfig{Costs: &Costs{Conn: 500, Stream: NoCost}}, nil},
		{"subnets", PartialLimitConfig{Gates: &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 16, 24: 12, 8: 81}, IPv6: map[int]LimitVal{64: 80}, Networks: of("10.0.0.0/8")}}},
			[]string{`Gates.Subnets.IPv4["8"] is 81 (override), above System.ConnsInbound, which is 80 (node)`,
				`Gates.Subnets.IPv4["32"] is 16 (override), above Gates.Subnets.IPv4["24"], which is 12 (override)`,
				`Gates.Subnets.Networks["10.0.0.0/8"] is 81 (override), above System.ConnsInbound, which is 80 (node)`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var want []string
			for _, text := range c.want {
				if !strings.Contains(text, end) && !strings.HasSuffix(text, "could be kept") {
					text += end
				}
				want = append(want, text)
			}
			cfg := c.cfg.Build(low)
			require.Equal(t, want, cfg.Warnings())
			require.Equal(t, want, newFrom(t, cfg).Limits().Warnings())
		})
	}
	outbound := true
	require.Empty(t, PartialLimitConfig{Gates: &GateLimits{Outbound: &outbound, Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 81}}}}.Build(low).Warnings())
}

// Limits that were read back from a manager are no more written than they were.
func TestDefaultGatesStayDefaultsHoweverOftenLimitsAreSet(t *testing.T) {
	const mark = `Gates.Subnets.IPv6["48"]`
	small := PartialLimitConfig{System: ResourceLimits{ConnsInbound: 20}}.Build(DefaultLimits.Scale(1<<30, 1024))
	m, err := New(NewFixedLimiter(small), WithConnRateLimiters(nil))
	require.NoError(t, err)
	defer m.Close()
	for range 2 {
		require.NoError(t, m.SetLimits(NewFixedLimiter(PartialLimitConfig{Gates: &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{24: 3}}}}.Build(m.Limits()))))
	}
	all := settingsOf(t, m.Limits())
	require.Equal(t, ConfigSetting{mark, "64", OriginDefault}, all[mark])
	require.Equal(t, OriginOverride, all[`Gates.Subnets.IPv4["24"]`].Origin)
	require.Equal(t, OriginCode, all["Gates.Rate"].Origin)
	require.Empty(t, m.Limits().Warnings())
	other := newFrom(t, m.Limits())
	require.NotContains(t, settingsOf(t, other.Limits()), "Gates.Rate")
}

func TestLimitsThatWereSetByHandAreWarnedAboutToo(t *testing.T) {
	m := newFrom(t, DefaultLimits.Scale(1<<30, 1024))
	l := m.Limits().limits.System
	l.ConnsInbound = 9999
	viewSystem(t, m).(ResourceScopeLimiter).SetLimit(l)
	require.Equal(t, []string{"System.ConnsInbound is 9999 (code), above System.Conns, which is 256 (code): it can never be reached"}, m.Limits().Warnings())
}

func TestAManagerLogsOnceWhichLimitsCanNeverBeReached(t *testing.T) {
	text := captureLogFrom(t, slog.LevelError)
	part := PartialLimitConfig{System: ResourceLimits{ConnsInbound: 10000}, PeerDefault: ResourceLimits{StreamsInbound: 1 << 20}}.
		Build(PartialLimitConfig{PeerDefault: ResourceLimits{Streams: Unlimited}}.build(DefaultLimits.Scale(1<<30, 1024), OriginDefault))
	const conns = "System.ConnsInbound is 10000 (override), above System.Conns, which is 256 (default): it can never be reached"
	const streams = "PeerDefault.StreamsInbound is 1048576 (override), above System.StreamsInbound, which is 2048 (default): it can never be reached"
	line := func() string {
		t.Helper()
		out := text.String()
		text.Reset()
		require.LessOrEqual(t, strings.Count(out, "\n"), 1, out)
		return out
	}
	m := newFrom(t, part)
	out := line()
	require.Contains(t, out, `msg="limits that can never be reached" count=2 first="`+conns+"; "+streams+`"`)

	require.NoError(t, m.SetLimits(NewFixedLimiter(DefaultLimits.Scale(1<<30, 1024))))
	require.Empty(t, line())
	require.NoError(t, m.SetLimits(NewFixedLimiter(part)))
	require.Equal(t, out[strings.Index(out, "msg="):], func() string { s := line(); return s[strings.Index(s, "msg="):] }())

	allowed, err := New(NewFixedLimiter(part), WithAllowlistStrings([]string{"/ip4/192.0.2.1"}, false))
	require.NoError(t, err)
	defer allowed.Close()
	out = line()
	require.Contains(t, out, `count=1 first="`+conns+`"`, "the allowlist leads past system, but not past a total")

	_, err = New(otherLimiter{NewFixedLimiter(part)})
	require.NoError(t, err)
	require.Empty(t, line())

	many := PartialLimitConfig{Service: make(map[string]ResourceLimits)}
	for i := range 30 {
		many.Service[fmt.Sprint(i)] = ResourceLimits{Streams: 1 << 20}
	}
	newFrom(t, many.Build(InfiniteLimits))
	require.Empty(t, line())
	newFrom(t, many.Build(DefaultLimits.Scale(1<<30, 1024)))
	out = line()
	require.Contains(t, out, "count=30 ")
	require.Equal(t, 20, strings.Count(out, "it can never be reached"))
}

// A file that raises one number works on every machine, or on none.
func TestAFileThatRaisesTransientAloneWorksOnEveryMachine(t *testing.T) {
	text, err := os.ReadFile("testdata/transient-alone.json")
	require.NoError(t, err)
	file := string(text)
	node := NodeLimits{MaxFileDescriptors: 1024, Overrides: readText(t, file)}
	for _, size := range sizes {
		defaults := DefaultLimits.Scale(size, 1024)
		l, err := NewLimiterFromJSON(strings.NewReader(file), defaults)
		require.NoError(t, err, "%d bytes", size)
		require.Equal(t, 600, l.GetTransientLimits().GetConnTotalLimit())
		m, err := New(l)
		require.NoError(t, err)
		warnings := strings.Join(m.Limits().Warnings(), "\n")
		m.Close()
		if system := defaults.limits.System.Conns; system < 600 {
			require.Contains(t, warnings, fmt.Sprintf("Transient.Conns is 600 (override), above System.Conns, which is %d (default)", system))
		} else {
			require.NotContains(t, warnings, "Transient.Conns ")
		}

		node.MaxMemory = size
		cfg, err := node.Build()
		require.NoError(t, err, "%d bytes", size)
		require.Empty(t, cfg.Warnings())
	}
	_, err = NewDefaultLimiterFromJSON(strings.NewReader(file))
	require.NoError(t, err)

	node.MaxMemory, node.Overrides = 1<<30, PartialLimitConfig{Transient: ResourceLimits{Memory: 2 << 30}}
	cfg, err := node.Build()
	require.NoError(t, err)
	require.Equal(t, []string{"Transient.Memory is 2147483648 (override), above System.Memory, which is 1073741824 (node): it can never be reached"}, cfg.Warnings())
}

func TestWrittenLimitsThatContradictEachOtherAreAnError(t *testing.T) {
	written := PartialLimitConfig{System: ResourceLimits{Conns: 100}, Transient: ResourceLimits{FD: 50}}.Build(DefaultLimits.Scale(1<<30, 1024))
	for text, want := range map[string]string{
		`{"Transient":{"Conns":101}}`: "line 1, column 23: Transient.Conns: is 101, above System.Conns, which is 100: everything transient counts there, too",
		`{"System":{"FD":49}}`:        "line 1, column 17: System.FD: is 49, below Transient.FD, which is 50: everything transient counts there, too",
	} {
		_, err := strictly(NewLimiterFromJSON(strings.NewReader(text), written))
		require.ErrorContains(t, err, want)
	}
	for text, warned := range map[string]bool{
		`{"Transient":{"Conns":100}}`: false, `{"System":{"FD":50}}`: false, `{"System":{"Memory":1}}`: false, `{"Transient":{"Streams":99999}}`: true,
	} {
		l, err := strictly(NewLimiterFromJSON(strings.NewReader(text), written))
		require.NoError(t, err)
		require.Equal(t, warned, len(ConcreteLimitConfig(*l.(*fixedLimiter)).Warnings()) > 0, text)
	}
	node := NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100, Overrides: PartialLimitConfig{
		System: ResourceLimits{Streams: 5}, Transient: ResourceLimits{Streams: 6}}}
	_, err := node.Build()
	require.ErrorContains(t, err, "Transient.Streams: is 6, above System.Streams, which is 5")

	// A manager starts: what a program puts together in Go, it may have its reasons for.
	m := newFrom(t, node.Overrides.Build(InfiniteLimits))
	require.Len(t, m.Limits().Warnings(), 1)
}

func readText(t *testing.T, text string) PartialLimitConfig {
	t.Helper()
	cfg, err := ReadLimits(strings.NewReader(text))
	require.NoError(t, err)
	return cfg
}

// A limit of the gates that is written as "default" is not written, so it is not one that can never
// be reached.
func TestADefaultOfTheGatesIsNotWritten(t *testing.T) {
	levels := func(inner LimitVal) ConcreteLimitConfig {
		of := SubnetLimits{IPv4: map[int]LimitVal{24: 3, 32: inner}}
		return PartialLimitConfig{Gates: &GateLimits{Subnets: of}}.Build(DefaultLimits.AutoScale())
	}
	require.Equal(t, []string{`Gates.Subnets.IPv4["32"] is 8 (override), above Gates.Subnets.IPv4["24"], which is 3 (override): it can never be reached`},
		levels(connsPerHost).Warnings())
	limits := levels(DefaultLimit)
	require.Empty(t, limits.Warnings())
	require.Contains(t, limits.Settings(), ConfigSetting{`Gates.Subnets.IPv4["32"]`, "8", OriginDefault})
}
