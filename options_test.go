package rcmgr

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// gatesInForce returns the limits of subnets that a manager goes by.
func gatesInForce(m *Manager) SubnetLimits { return m.Limits().ToPartialLimitConfig().Gates.Subnets }

// An option means what it was given when it was made, and a manager what it was made
// with: what a caller does to its own slices later comes into force nowhere.
func TestOptionsCopyTheirArguments(t *testing.T) {
	network := netip.MustParsePrefix("10.0.0.0/8")
	perSubnet4 := []ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 5}}
	perSubnet6 := []ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: 6}}
	networks4 := []NetworkPrefixLimit{{Network: network, ConnCount: 7}}
	networks6 := []NetworkPrefixLimit{{Network: netip.MustParsePrefix("2001:db8::/32"), ConnCount: 8}}
	addrs := []multiaddr.Multiaddr{mustMA(t, "/ip4/192.0.2.1")}
	texts := []string{"/ip4/192.0.2.2"}
	observed, fair := []Kind{KindProcess}, []Kind{KindSystem}
	opts := []Option{
		WithLimitPerSubnet(perSubnet4, perSubnet6), WithNetworkPrefixLimit(networks4, networks6),
		WithAllowlistedMultiaddrs(addrs), WithAllowlistStrings(texts, false),
		WithObserveOnly(observed...), WithFairShare(fair...),
	}
	want := SubnetLimits{
		IPv4:     map[int]LimitVal{32: 5},
		IPv6:     map[int]LimitVal{64: 6},
		Networks: map[netip.Prefix]LimitVal{network: 7, netip.MustParsePrefix("2001:db8::/32"): 8},
	}
	first := newManager(t, unlimitedConf(), opts...)

	perSubnet4[0].ConnCount, perSubnet6[0].PrefixLength = 50, 48
	networks4[0].ConnCount, networks6[0].Network = 70, netip.MustParsePrefix("2001:db8::/48")
	addrs[0], texts[0] = mustMA(t, "/ip4/198.51.100.1"), "not an address"
	observed[0], fair[0] = KindSystem, KindConn
	require.NoError(t, first.Refresh())
	for _, m := range []*Manager{first, newManager(t, unlimitedConf(), opts...)} {
		require.Equal(t, want, gatesInForce(m))
		require.True(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/192.0.2.1")))
		require.True(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/192.0.2.2")))
		require.False(t, m.GetAllowlist().Allowed(mustMA(t, "/ip4/198.51.100.1")))
		require.Equal(t, []Kind{KindProcess}, m.Observed())
		require.Equal(t, []Kind{KindSystem}, m.Snapshot().FairShare.Scopes)
	}
}

// The default networks are read when a manager is made, and never again.
func TestTheDefaultNetworksAreReadWhenAManagerIsMade(t *testing.T) {
	was4, was6 := DefaultNetworkPrefixLimitV4, DefaultNetworkPrefixLimitV6
	defer func() { DefaultNetworkPrefixLimitV4, DefaultNetworkPrefixLimitV6 = was4, was6 }()
	DefaultNetworkPrefixLimitV4, DefaultNetworkPrefixLimitV6 = slices.Clone(was4), slices.Clone(was6)

	far := mustMA(t, "/ip4/127.0.0.1/tcp/1")
	conf := unlimitedConf()
	named := netip.MustParsePrefix("192.0.2.0/24")
	conf.Gates = &GateLimits{Subnets: SubnetLimits{Networks: map[netip.Prefix]LimitVal{named: 3}}}
	configured, plain := newManager(t, conf), newManager(t, unlimitedConf())
	before := gatesInForce(plain)
	require.Equal(t, Unlimited, before.Networks[netip.MustParsePrefix("127.0.0.0/8")])

	DefaultNetworkPrefixLimitV4[0].ConnCount = 0
	DefaultNetworkPrefixLimitV6 = nil
	for _, m := range []*Manager{plain, configured} {
		require.NoError(t, m.Refresh())
		_, err := m.OpenConnection(network.DirInbound, false, far)
		require.NoError(t, err)
	}
	require.Equal(t, before, gatesInForce(plain))
	require.EqualValues(t, 3, gatesInForce(configured).Networks[named])

	_, err := newManager(t, unlimitedConf()).OpenConnection(network.DirInbound, false, far)
	require.ErrorContains(t, err, "subnet:127.0.0.0/8", "a manager that is made now has the networks of now")
	require.Equal(t, math.MaxInt, was4[0].ConnCount)
}

// everyOption returns an option of each kind, by the name of the function that makes it.
func everyOption(t *testing.T) map[string]Option {
	near := netip.MustParsePrefix("10.0.0.0/8")
	return map[string]Option{
		"WithStripes":               WithStripes(4),
		"WithAdmission":             WithAdmission(AdmissionLinear),
		"WithNewcomersQuarter":      WithNewcomersQuarter(false),
		"WithRefusalLog":            WithRefusalLog(time.Second),
		"WithAllowlistedMultiaddrs": WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{mustMA(t, "/ip4/192.0.2.1"), mustMA(t, "/dns4/example.com")}),
		"WithAllowlistResolver":     WithAllowlistResolver(serving(nil), 0),
		"WithAllowlistStrings":      WithAllowlistStrings([]string{"/ip4/192.0.2.2", "none"}, true),
		"WithLimitPerSubnet":        WithLimitPerSubnet([]ConnLimitPerSubnet{{24, 9}, {32, 5}}, []ConnLimitPerSubnet{{48, 9}, {64, 5}}),
		"WithNetworkPrefixLimit":    WithNetworkPrefixLimit([]NetworkPrefixLimit{{near, 7}}, []NetworkPrefixLimit{}),
		"WithConnRateLimiters":      WithConnRateLimiters(&rate.Limiter{}),
		"WithRefusalLogger":         WithRefusalLogger(slog.New(slog.DiscardHandler), slog.LevelWarn),
		"WithStrictConfig":          WithStrictConfig(),
		"WithGates":                 WithGates(GateLimits{Outbound: pointerTo(true)}),
		"WithTrace":                 WithTrace(filepath.Join(t.TempDir(), "trace")),
		"WithTraceReporter":         WithTraceReporter(reporterFunc(func(TraceEvt) {})),
		"WithMetrics":               WithMetrics(&talk{}),
		"WithMetricsDisabled":       WithMetricsDisabled(),
		"WithMemoryPressure":        WithMemoryPressure(MemoryPressureConfig{Every: time.Millisecond}),
		"WithRoom":                  WithRoom(RoomConfig{}),
		"WithLeakFinder":            WithLeakFinder(LeakFinderConfig{Stacks: 1}),
		"WithFairShare":             WithFairShare(),
		"WithOwners":                WithOwners(fairOwner),
		"WithEarmarks":              WithEarmarks(Earmark{Name: "friends", Part: 0.1, Allowlisted: true}),
		"WithObserveOnly":           WithObserveOnly(KindRate, KindSubnet),
		"WithNearLimitFunc":         WithNearLimitFunc(func(NearLimitEvent) {}),
		"WithTrimming":              WithTrimming(connmgr.NullConnMgr{}),
	}
}

// One set of options makes any number of managers, also at once. The race detector finds
// what an option would write for all of them; each is as if it were the first.
func TestOneSetOfOptionsMakesAnyNumberOfManagers(t *testing.T) {
	lines := collectLog(t, slog.LevelInfo)
	byName := everyOption(t)
	for _, name := range optionFunctions(t) {
		require.Contains(t, byName, name, "an option that is not tried here")
	}
	var opts []Option
	for _, opt := range byName {
		opts = append(opts, opt)
	}
	var managers [3]*Manager
	var makers sync.WaitGroup
	for i := range managers {
		makers.Go(func() {
			m, err := New(NewFixedLimiter(InfiniteLimits), opts...)
			if err != nil {
				t.Error(err)
				return
			}
			managers[i] = m
		})
	}
	makers.Wait()
	defer func() {
		for _, m := range managers {
			m.Close()
		}
	}()
	require.False(t, t.Failed())

	started := slices.DeleteFunc(lines.take(), func(line string) bool { return !strings.Contains(line, "resource manager started") })
	require.Len(t, started, len(managers))
	for i, m := range managers[1:] {
		require.Equal(t, started[0], started[i+1])
		first := managers[0]
		of, firstOf := m.pressure.state(), first.pressure.state()
		require.Equal(t, []int64{firstOf.Limit, firstOf.RefuseAbove, firstOf.AdmitBelow}, []int64{of.Limit, of.RefuseAbove, of.AdmitBelow})
		require.Equal(t, first.leaks.LeakFinderConfig, m.leaks.LeakFinderConfig)
		require.Equal(t, gatesInForce(first), gatesInForce(m))
		a, b := reflect.ValueOf(first.options), reflect.ValueOf(m.options)
		for f := range a.NumField() {
			switch name := a.Type().Field(f).Name; a.Field(f).Kind() {
			case reflect.Pointer:
				require.NotEqual(t, a.Field(f).Pointer(), b.Field(f).Pointer(), "%s is one for both", name)
			case reflect.Slice:
				require.Equal(t, a.Field(f).Len(), b.Field(f).Len(), name)
			}
		}
	}
}

// The line at start shows every option that is on. Those that choose where something is
// written have no other effect, and are left out.
func TestTheLineAtStartShowsEveryOptionThatIsOn(t *testing.T) {
	byName := everyOption(t)
	started := func(opts ...Option) (line string) {
		lines := collectLog(t, slog.LevelInfo)
		m, err := New(NewFixedLimiter(InfiniteLimits), append(opts, byName["WithAllowlistResolver"])...)
		require.NoError(t, err)
		m.Close()
		for _, l := range lines.take() {
			if _, after, ok := strings.Cut(l, "resource manager started"); ok {
				line = after
			}
		}
		return line
	}
	plain := started()
	for _, want := range []string{" room=off ", " memory_pressure=off ", " leak_finder=off ", " rates=[] "} {
		require.Contains(t, plain, want)
	}
	for name, opt := range byName {
		switch line := started(opt); name {
		case "WithRefusalLog", "WithRefusalLogger", "WithMetricsDisabled", "WithAllowlistResolver":
		case "WithStripes":
			require.Contains(t, line, " stripes=4 ")
		default:
			require.NotEqual(t, plain, line, name)
		}
	}
	for want, opt := range map[string]Option{
		" room=on ":                   byName["WithRoom"],
		` room="observe only" `:       WithRoom(RoomConfig{ObserveOnly: true}),
		` memory_pressure="1.0 GiB" `: WithMemoryPressure(MemoryPressureConfig{Limit: 1 << 30}),
		" leak_finder=on ":            byName["WithLeakFinder"],
		" trimming=on ":               byName["WithTrimming"],
		" near_limit_functions=1 ":    byName["WithNearLimitFunc"],
		" refusal_log=off ":           WithRefusalLog(0),
	} {
		require.Contains(t, started(opt), want)
	}

	lines := collectLog(t, slog.LevelInfo)
	rated := PartialLimitConfig{
		PeerDefault:  ResourceLimits{Rates: Rates{StreamsInbound: Rate{PerSecond: 30}}},
		ProtocolPeer: map[protocol.ID]ResourceLimits{"/a": {Rates: Rates{Streams: Rate{PerSecond: 2, Burst: 9}}}, "/b": {Streams: 7}},
	}
	m, err := New(NewFixedLimiter(rated.Build(InfiniteLimits)))
	require.NoError(t, err)
	m.Close()
	require.Contains(t, lines.take()[0], ` rates="[PeerDefault.Rates.StreamsInbound: 30/s, burst 30 ProtocolPeer[\"/a\"].Rates.Streams: 2/s, burst 9]" `)
}

// optionFunctions returns the names of the functions that return an Option.
func optionFunctions(t *testing.T) (names []string) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	made := regexp.MustCompile(`(?m)^func (\w+)\(.*\) Option \{`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		if !strings.HasSuffix(file, "_test.go") {
			for _, found := range made.FindAllSubmatch(text, -1) {
				names = append(names, string(found[1]))
			}
		}
	}
	require.NotEmpty(t, names)
	return names
}

// The table of docs/options.md has every option and every setting, and no other, with the
// defaults of the code, and tells go-libp2p's options from those that are only here.
func TestTheDocumentsListTheOptions(t *testing.T) {
	chapter, err := os.ReadFile("docs/options.md")
	require.NoError(t, err)
	changelog, err := os.ReadFile("CHANGELOG.md")
	require.NoError(t, err)
	theirs, err := exec.Command("go", "doc", "-short", "github.com/libp2p/go-libp2p/p2p/host/resource-manager").Output()
	require.NoError(t, err)
	var listed []string
	defaults, units := make(map[string]string), make(map[string]string)
	part := ""
	for line := range strings.Lines(string(chapter)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 5 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if strings.HasPrefix(cells[0], "**") {
			part = strings.Trim(cells[0], "*")
		}
		name := strings.Trim(cells[0], "`")
		if name == cells[0] {
			continue
		}
		listed = append(listed, name)
		defaults[name] = cells[1]
		require.Contains(t, string(changelog), "\n## "+cells[3], "%s: since %s", name, cells[3])
		require.NotEmpty(t, cells[2], "%s has neither unit nor value", name)
		require.NotEmpty(t, cells[4], "%s has no cost", name)
		units[name] = cells[2]
		if strings.HasPrefix(name, "With") {
			require.Equal(t, strings.Contains(string(theirs), "func "+name+"("), part == "as in go-libp2p", "%s under %q", name, part)
		} else {
			require.Equal(t, part, strings.Split(name, ".")[0], name)
		}
	}
	made, takes := exportedOptions(t)
	for _, settings := range []any{MemoryPressureConfig{}, Earmark{}, LeakFinderConfig{}, RoomConfig{}, NodeLimits{}} {
		of := reflect.TypeOf(settings)
		for i := range of.NumField() {
			name := of.Name() + "." + of.Field(i).Name
			made = append(made, name)
			takes[name] = of.Field(i).Type.String()
		}
	}
	slices.Sort(listed)
	slices.Sort(made)
	require.Equal(t, made, listed)
	for name, unit := range units {
		require.Equal(t, takes[name] == "", unit == "takes nothing", name)
		require.Equal(t, takes[name] == "bool", strings.HasPrefix(unit, "true or false"), name)
	}

	onOff := map[bool]string{true: "on", false: "off"}
	none := map[bool]string{true: "none", false: "some"}
	cfg := defaultConfig()
	var pressure MemoryPressureConfig
	require.NoError(t, pressure.check())
	require.NoError(t, WithLeakFinder(LeakFinderConfig{})(&cfg))
	leaks := *cfg.leaks
	room, err := RoomConfig{}.checked()
	require.NoError(t, err)
	cfg = defaultConfig()
	for name, want := range map[string]string{
		"WithAdmission":                    cfg.admission.String(),
		"WithNewcomersQuarter":             onOff[cfg.newcomers],
		"WithFairShare":                    onOff[cfg.fair != 0],
		"WithOwners":                       none[cfg.owner == nil],
		"WithEarmarks":                     onOff[cfg.earmarks != nil],
		"WithObserveOnly":                  onOff[cfg.observed != 0],
		"WithMemoryPressure":               onOff[cfg.pressure != nil],
		"WithRoom":                         onOff[cfg.room != nil],
		"WithLeakFinder":                   onOff[cfg.leaks != nil],
		"WithStrictConfig":                 onOff[cfg.strict],
		"WithRefusalLog":                   cfg.refusalLog.String(),
		"WithAllowlistResolver":            none[cfg.resolver == nil],
		"WithAllowlistedMultiaddrs":        none[len(cfg.allowlisted) == 0],
		"WithAllowlistStrings":             none[len(cfg.names) == 0],
		"WithNearLimitFunc":                none[cfg.nearLimit == nil],
		"WithTrimming":                     none[cfg.trimmed == nil],
		"WithTrace":                        none[cfg.tracePath == ""],
		"WithTraceReporter":                none[cfg.reporters == nil],
		"WithMetrics":                      none[cfg.reporter == nil],
		"MemoryPressureConfig.RefuseAbove": fmt.Sprint(pressure.RefuseAbove),
		"MemoryPressureConfig.Every":       pressure.Every.String(),
		"LeakFinderConfig.Stacks":          fmt.Sprint(leaks.Stacks),
		"LeakFinderConfig.Oldest":          fmt.Sprint(leaks.Oldest),
		"RoomConfig.PerSecond":             fmt.Sprint(room.PerSecond),
		"RoomConfig.ObserveOnly":           fmt.Sprint(room.ObserveOnly),
	} {
		require.Equal(t, want, defaults[name], "the default of %s", name)
	}
	require.InDelta(t, pressure.RefuseAbove*8/9, pressure.AdmitBelow, 1e-9)
	require.Contains(t, string(chapter), "0 for "+nameInterval.String())
}

// exportedOptions returns the names of the functions of this package that return an Option, and
// what each takes.
func exportedOptions(t *testing.T) (names []string, takes map[string]string) {
	takes = make(map[string]string)
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || !fn.Name.IsExported() || fn.Type.Results == nil {
				continue
			}
			if result, ok := fn.Type.Results.List[0].Type.(*ast.Ident); ok && result.Name == "Option" {
				names = append(names, fn.Name.Name)
				for _, p := range fn.Type.Params.List {
					takes[fn.Name.Name] += types.ExprString(p.Type)
				}
			}
		}
	}
	return names, takes
}

func TestTheDocumentsNameOnlyOptionsThatExist(t *testing.T) {
	options, _ := exportedOptions(t)
	named := regexp.MustCompile(`(\w+\.)?\b(With[A-Z]\w+)`)
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, name := range files {
			if name == "CHANGELOG.md" {
				continue // it names those that are gone, too
			}
			text, err := os.ReadFile(name)
			require.NoError(t, err)
			for _, m := range named.FindAllStringSubmatch(string(text), -1) {
				if m[1] == "" || m[1] == "rcmgr." {
					require.Contains(t, options, m[2], name)
				}
			}
		}
	}
}

// The files of limits in the chapters are what the strict reader reads.
func TestTheLimitsInTheDocumentsAreRead(t *testing.T) {
	fence := regexp.MustCompile("(?s)```json\n(.*?)```")
	files, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	read := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
			limits, err := ReadLimits(strings.NewReader(m[1]))
			require.NoError(t, err, "%s:\n%s", name, m[1])
			_, err = NodeLimits{MaxMemory: 2 << 30, MaxFileDescriptors: 4096, Overrides: limits}.Build()
			require.NoError(t, err, "%s:\n%s", name, m[1])
			read++
		}
	}
	require.NotZero(t, read)
}
