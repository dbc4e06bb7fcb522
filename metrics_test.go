package rcmgr

import (
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/spread"
)

// fakeManager says what it is told to, and counts how often it is asked.
type fakeManager struct {
	mu    sync.Mutex
	says  reading
	reads int
}

func (f *fakeManager) read() reading {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	return f.says
}

func (f *fakeManager) say(r reading) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.says = r
}

// systemOnly is the reading of a manager that uses this at system, and has
// nothing else to tell.
func systemOnly(use amounts) reading {
	return reading{managers: 1, scopes: []scopeReading{{kind: KindSystem, use: use}, {kind: KindTransient}}}
}

// busyReading has something different to say in every series.
func busyReading() reading {
	r := reading{managers: 1, scopes: []scopeReading{
		{
			kind:  KindSystem,
			use:   amounts{dimMemory: 1000, dimStreamsIn: 11, dimStreamsOut: 12, dimStreams: 23, dimConnsIn: 13, dimConnsOut: 14, dimConns: 27, dimFD: 15},
			limit: amounts{dimMemory: 2000, dimStreamsIn: 21, dimStreamsOut: 22, dimStreams: 43, dimConnsIn: 23, dimConnsOut: 24, dimConns: 47, dimFD: 25},
			burst: amounts{dimStreams: 26}, left: amounts{dimStreams: 5},
		},
		{
			kind:  KindTransient,
			use:   amounts{dimMemory: 3000, dimStreamsIn: 31, dimStreamsOut: 32, dimConnsIn: 33, dimConnsOut: 34, dimFD: 35},
			limit: amounts{dimMemory: math.MaxInt64, dimStreamsIn: 41, dimStreamsOut: 42, dimStreams: 83, dimConnsIn: 43, dimConnsOut: 44, dimConns: 87, dimFD: 45},
		},
		{kind: KindAllowlistedSystem, use: amounts{dimMemory: 1, dimStreamsIn: 1, dimConnsIn: 1, dimFD: 1}},
		{kind: KindService, name: "relay", use: amounts{dimMemory: 1, dimStreamsIn: 1}},
		{kind: KindProtocol, name: "/peer:x.span-1", use: amounts{dimMemory: 4000, dimStreamsIn: 51, dimStreamsOut: 52}},
	}}
	r.peerConns[0].MoveCount(0, 1)
	r.peerConns[0].MoveCount(0, 257)
	r.peerConns[1].MoveCount(0, 16)
	r.peerStreams[0].MoveCount(0, 10)
	r.peerStreams[1].MoveCount(0, 11)
	r.peerMemory.MoveMemory(0, 1<<10)
	r.peerMemory.MoveMemory(0, 1<<10+1)
	r.connMemory.MoveMemory(0, 5<<30)
	r.counts.blocked[KindSystem] = amounts{dimConnsIn: 1, dimFD: 2}
	r.counts.blocked[KindService] = amounts{dimStreamsOut: 3}
	r.counts.blocked[KindServicePeer] = amounts{dimStreamsOut: 4, dimMemory: 5}
	r.counts.blocked[KindProtocolPeer] = amounts{dimStreamsIn: 6}
	r.counts.blocked[KindPeer] = amounts{dimConnsOut: 7}
	r.counts.blocked[KindSubnet] = amounts{dimConnsIn: 8}
	r.process = ProcessMemory{InUse: 1, Limit: 4, RefuseAbove: 3, AdmitBelow: 2}
	r.observed[KindPeer] = 1
	r.names.waiting, r.names.answered, r.names.failing = 1, 2, 3
	r.counts.failedLookUps = 4
	r.rooms = 1
	r.refusable.limits[KindPeer] = 1 << dimMemory
	return r
}

// busySeries is what dashboards get from a busy manager, but for histograms.
const busySeries = `
# TYPE libp2p_rcmgr_blocked_resources gauge
libp2p_rcmgr_blocked_resources{dir="inbound",resource="connection",scope="system"} 1
libp2p_rcmgr_blocked_resources{dir="",resource="fd",scope="system"} 2
libp2p_rcmgr_blocked_resources{dir="outbound",resource="stream",scope="service"} 7
libp2p_rcmgr_blocked_resources{dir="",resource="memory",scope="service"} 5
libp2p_rcmgr_blocked_resources{dir="inbound",resource="stream",scope="protocol"} 6
libp2p_rcmgr_blocked_resources{dir="outbound",resource="connection",scope="peer"} 7
libp2p_rcmgr_blocked_resources{dir="inbound",resource="connection",scope="subnet"} 8
# TYPE libp2p_rcmgr_connections gauge
libp2p_rcmgr_connections{dir="inbound",scope="system"} 13
libp2p_rcmgr_connections{dir="outbound",scope="system"} 14
libp2p_rcmgr_connections{dir="inbound",scope="transient"} 33
libp2p_rcmgr_connections{dir="outbound",scope="transient"} 34
# TYPE libp2p_rcmgr_fds gauge
libp2p_rcmgr_fds{scope="system"} 15
libp2p_rcmgr_fds{scope="transient"} 35
# TYPE libp2p_rcmgr_limit gauge
libp2p_rcmgr_limit{resource="memory",scope="system"} 2000
libp2p_rcmgr_limit{resource="streams_inbound",scope="system"} 21
libp2p_rcmgr_limit{resource="streams_outbound",scope="system"} 22
libp2p_rcmgr_limit{resource="streams",scope="system"} 43
libp2p_rcmgr_limit{resource="conns_inbound",scope="system"} 23
libp2p_rcmgr_limit{resource="conns_outbound",scope="system"} 24
libp2p_rcmgr_limit{resource="conns",scope="system"} 47
libp2p_rcmgr_limit{resource="fd",scope="system"} 25
libp2p_rcmgr_limit{resource="memory",scope="transient"} 9223372036854775807
libp2p_rcmgr_limit{resource="streams_inbound",scope="transient"} 41
libp2p_rcmgr_limit{resource="streams_outbound",scope="transient"} 42
libp2p_rcmgr_limit{resource="streams",scope="transient"} 83
libp2p_rcmgr_limit{resource="conns_inbound",scope="transient"} 43
libp2p_rcmgr_limit{resource="conns_outbound",scope="transient"} 44
libp2p_rcmgr_limit{resource="conns",scope="transient"} 87
libp2p_rcmgr_limit{resource="fd",scope="transient"} 45
# TYPE libp2p_rcmgr_memory gauge
libp2p_rcmgr_memory{protocol="",scope="system"} 1000
libp2p_rcmgr_memory{protocol="",scope="transient"} 3000
libp2p_rcmgr_memory{protocol="/peer:x.span-1",scope="protocol"} 4000
# TYPE libp2p_rcmgr_streams gauge
libp2p_rcmgr_streams{dir="inbound",protocol="",scope="system"} 11
libp2p_rcmgr_streams{dir="outbound",protocol="",scope="system"} 12
libp2p_rcmgr_streams{dir="inbound",protocol="",scope="transient"} 31
libp2p_rcmgr_streams{dir="outbound",protocol="",scope="transient"} 32
libp2p_rcmgr_streams{dir="inbound",protocol="/peer:x.span-1",scope="protocol"} 51
libp2p_rcmgr_streams{dir="outbound",protocol="/peer:x.span-1",scope="protocol"} 52
`

// idleSeries is what is shown before the first manager is made.
const idleSeries = `
# TYPE libp2p_rcmgr_connections gauge
libp2p_rcmgr_connections{dir="inbound",scope="system"} 0
libp2p_rcmgr_connections{dir="outbound",scope="system"} 0
libp2p_rcmgr_connections{dir="inbound",scope="transient"} 0
libp2p_rcmgr_connections{dir="outbound",scope="transient"} 0
# TYPE libp2p_rcmgr_fds gauge
libp2p_rcmgr_fds{scope="system"} 0
libp2p_rcmgr_fds{scope="transient"} 0
# TYPE libp2p_rcmgr_memory gauge
libp2p_rcmgr_memory{protocol="",scope="system"} 0
libp2p_rcmgr_memory{protocol="",scope="transient"} 0
# TYPE libp2p_rcmgr_streams gauge
libp2p_rcmgr_streams{dir="inbound",protocol="",scope="system"} 0
libp2p_rcmgr_streams{dir="outbound",protocol="",scope="system"} 0
libp2p_rcmgr_streams{dir="inbound",protocol="",scope="transient"} 0
libp2p_rcmgr_streams{dir="outbound",protocol="",scope="transient"} 0
`

// histogramText is a histogram of these values in Prometheus' text form, by
// counting them one by one.
func histogramText(name, labels string, bounds []float64, values ...int64) string {
	var text strings.Builder
	var sum int64
	upTo := func(bound float64) (n int) {
		for _, v := range values {
			if float64(v) <= bound {
				n++
			}
		}
		return n
	}
	for _, bound := range append(slices.Clone(bounds), math.Inf(1)) {
		le := strings.TrimPrefix(fmt.Sprintf(`%s,le="%v"`, labels, bound), ",")
		fmt.Fprintf(&text, "%s_bucket{%s} %d\n", name, le, upTo(bound))
	}
	for _, v := range values {
		sum += v
	}
	fmt.Fprintf(&text, "%s_sum{%s} %d\n%s_count{%s} %d\n", name, labels, sum, name, labels, len(values))
	return text.String()
}

// histogramsText is the text of all histograms, with these values in those of now.
func histogramsText(connsIn, connsOut, streamsIn, streamsOut, peerMemory, connMemory []int64) string {
	const in, out = `dir="inbound"`, `dir="outbound"`
	var text strings.Builder
	for _, h := range []struct {
		name, labels string
		scale        *spread.Scale
		values       []int64
	}{
		{"peer_connections", in, spread.CountScale, connsIn},
		{"peer_connections", out, spread.CountScale, connsOut},
		{"peer_streams", in, spread.CountScale, streamsIn},
		{"peer_streams", out, spread.CountScale, streamsOut},
		{"peer_memory", "", spread.MemoryScale, peerMemory},
		{"conn_memory", "", spread.MemoryScale, connMemory},
	} {
		for _, prefix := range []string{"libp2p_rcmgr_", "libp2p_rcmgr_previous_"} {
			if h.labels != out {
				fmt.Fprintf(&text, "# TYPE %s%s histogram\n", prefix, h.name)
			}
			text.WriteString(histogramText(prefix+h.name, h.labels, h.scale.Bounds(), h.values...))
			h.values = nil
		}
	}
	return text.String()
}

var (
	busyText = busySeries + histogramsText([]int64{1, 257}, []int64{16}, []int64{10}, []int64{11}, []int64{1 << 10, 1<<10 + 1}, []int64{5 << 30})
	idleText = idleSeries + histogramsText(nil, nil, nil, nil, nil, nil)
)

// requireScrape compares upstream's families, as a registry returns them, with an
// expected text.
func requireScrape(t *testing.T, from prometheus.Gatherer, want string) {
	t.Helper()
	var names []string
	for name := range upstreamFamilies() {
		names = append(names, name)
	}
	requireFamilies(t, from, want, names...)
}

// requireFamilies compares some families, as a registry returns them, with an
// expected text, whose help lines are added from their descriptions.
func requireFamilies(t *testing.T, from prometheus.Gatherer, want string, names ...string) {
	t.Helper()
	want = regexp.MustCompile(`(?m)^# TYPE (\S+)`).ReplaceAllStringFunc(want, func(line string) string {
		name := strings.Fields(line)[2]
		return "# HELP " + name + " " + helpOf(strings.TrimPrefix(name, familyPrefix)) + "\n" + line
	})
	for i := range names {
		names[i] = familyPrefix + names[i]
	}
	require.NoError(t, testutil.GatherAndCompare(from, strings.NewReader(byFamily(want)), names...))
}

// helpOf returns the help text of a family.
func helpOf(family string) string {
	for _, f := range metricsFamilies {
		if f.name == family && f.help != "" {
			return f.help
		}
	}
	_, rest, _ := strings.Cut(upstreamFamilies()[family].desc.String(), `help: "`)
	help, _, _ := strings.Cut(rest, `"`)
	return help
}

// byFamily puts the parts of one family together, as the text format demands.
func byFamily(text string) string {
	var order []string
	lines := make(map[string][]string)
	for line := range strings.Lines(text) {
		name := familyOfLine(line)
		if name == "" {
			continue
		}
		if lines[name] == nil {
			order = append(order, name)
		}
		lines[name] = append(lines[name], line)
	}
	var all strings.Builder
	for _, name := range order {
		all.WriteString(strings.Join(lines[name], ""))
	}
	return all.String()
}

func familyOfLine(line string) string {
	if fields := strings.Fields(line); strings.HasPrefix(line, "# ") {
		return fields[2]
	}
	name, _, _ := strings.Cut(line, "{")
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return strings.TrimSpace(name)
}

// shownValue returns one series of a family, or false.
func shownValue(t *testing.T, from prometheus.Gatherer, name string, labels ...string) (float64, bool) {
	t.Helper()
	got, err := from.Gather()
	require.NoError(t, err)
	for _, f := range got {
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() { // in the order of their names
				have = append(have, l.GetValue())
			}
			if f.GetName() == familyPrefix+name && slices.Equal(have, labels) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue(), true // it is one of the two
			}
		}
	}
	return 0, false
}

func requireValue(t *testing.T, want float64, from prometheus.Gatherer, name string, labels ...string) {
	t.Helper()
	got, ok := shownValue(t, from, name, labels...)
	require.True(t, ok, "%s %q is shown", name, labels)
	require.Equal(t, want, got, "%s %q", name, labels)
}

func TestDescriptionsAreUpstreamsOneForEachCollector(t *testing.T) {
	var own []string
	for _, f := range metricsFamilies {
		if f.help != "" {
			own = append(own, f.desc().String())
		}
	}
	describe := func(seen memorizer) (all []string) {
		for _, c := range seen.collectors {
			var descs []string
			for d := range descriptions(c) {
				descs = append(descs, d.String())
			}
			require.Len(t, descs, 1)
			all = append(all, descs...)
		}
		slices.Sort(all)
		return all
	}
	var ours, theirs memorizer
	upstream.MustRegisterWith(&theirs)
	MustRegisterWith(&ours)
	require.Len(t, theirs.collectors, 14)
	all := append(describe(theirs), own...)
	slices.Sort(all)
	require.Equal(t, all, describe(ours))
	for name := range upstreamFamilies() {
		require.NotContains(t, strings.Join(own, "\n"), `"`+familyPrefix+name+`"`, "a name of upstream's")
	}
}

// registerOrders are the ways in which our collectors and upstream's may meet.
var registerOrders = map[string][]string{
	"ours first":             {"ours", "upstream's"},
	"upstream's first":       {"upstream's", "ours"},
	"ours alone":             {"ours"},
	"again and again":        {"ours", "ours", "upstream's", "ours", "upstream's", "ours"},
	"upstream's first twice": {"upstream's", "upstream's", "ours", "ours", "upstream's"},
}

// registerInOrder registers, on a pedantic registry, the sum or one manager.
func registerInOrder(t *testing.T, l *liveManagers, only reader, order []string) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	for _, who := range order {
		if who == "ours" {
			require.NoError(t, l.register(reg, only))
		} else {
			require.NotPanics(t, func() { upstream.MustRegisterWith(reg) }, "libp2p.New registers these")
		}
	}
	return reg
}

func TestScrapeShowsOurManagerInAnyOrderWithUpstream(t *testing.T) {
	var l liveManagers
	m := &fakeManager{says: busyReading()}
	l.add(m)
	for name, order := range registerOrders {
		for shown, only := range map[string]reader{"sum": nil, "one": m} {
			t.Run(name+"/"+shown, func(t *testing.T) {
				requireScrape(t, registerInOrder(t, &l, only, order), busyText)
			})
		}
	}
}

func TestScrapeBeforeAnyManagerShowsZerosAndNoLimits(t *testing.T) {
	requireScrape(t, registerInOrder(t, new(liveManagers), nil, registerOrders["upstream's first"]), idleText)
}

func TestLabelsWrappedAroundARegistererAreKept(t *testing.T) {
	var l liveManagers
	m := &fakeManager{says: systemOnly(amounts{dimFD: 3})}
	l.add(m)
	for name, order := range registerOrders {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewPedanticRegistry()
			wrapped := prometheus.WrapRegistererWith(prometheus.Labels{"a_host": "h"}, reg)
			for _, who := range order {
				if who == "ours" {
					require.NoError(t, l.register(wrapped, nil))
				} else {
					upstream.MustRegisterWith(wrapped)
				}
			}
			requireValue(t, 3, reg, "fds", "h", "system")
		})
	}
}

func TestLintFindsNothingInTheFamilies(t *testing.T) {
	var l liveManagers
	l.add(&fakeManager{says: busyReading()})
	reg := registerInOrder(t, &l, nil, registerOrders["ours alone"])
	problems, err := testutil.GatherAndLint(reg)
	require.NoError(t, err)
	require.Empty(t, problems)
	shown, err := reg.Gather()
	require.NoError(t, err)
	require.Len(t, shown, len(metricsFamilies), "all were looked at")
}

func TestManagersAreSummed(t *testing.T) {
	var l liveManagers
	one, two := &fakeManager{says: busyReading()}, &fakeManager{says: busyReading()}
	two.says.scopes = append(two.says.scopes, scopeReading{kind: KindProtocol, name: "/two", use: amounts{dimMemory: 9}})
	l.add(one)
	l.add(two)
	reg := registerInOrder(t, &l, nil, registerOrders["ours first"])

	requireValue(t, 26, reg, "connections", "inbound", "system")
	requireValue(t, 70, reg, "fds", "transient")
	requireValue(t, 104, reg, "streams", "outbound", "/peer:x.span-1", "protocol")
	requireValue(t, 8000, reg, "memory", "/peer:x.span-1", "protocol")
	requireValue(t, 9, reg, "memory", "/two", "protocol")
	requireValue(t, 94, reg, "limit", "conns", "system")
	requireValue(t, math.MaxInt64, reg, "limit", "memory", "transient")
	requireValue(t, 14, reg, "blocked_resources", "outbound", "stream", "service")
	requireValue(t, 2, reg, "allowlist_names", "waiting")
	requireValue(t, 4, reg, "allowlist_names", "answered")
	requireValue(t, 6, reg, "allowlist_names", "failing")
	requireValue(t, 8, reg, "allowlist_failed_lookups_total")
	sum := l.read(nil)
	for _, s := range []struct{ of, one *spread.Spread }{
		{&sum.peerConns[0], &one.says.peerConns[0]}, {&sum.peerConns[1], &one.says.peerConns[1]},
		{&sum.peerStreams[0], &one.says.peerStreams[0]}, {&sum.peerStreams[1], &one.says.peerStreams[1]},
		{&sum.peerMemory, &one.says.peerMemory}, {&sum.connMemory, &one.says.connMemory},
	} {
		var want spread.Spread
		want.Add(s.one)
		want.Add(s.one)
		require.Equal(t, want, *s.of)
	}
}

func TestClosedManagerDisappearsButItsRefusalsStayCounted(t *testing.T) {
	var l liveManagers
	closing, staying := &fakeManager{says: busyReading()}, &fakeManager{says: systemOnly(amounts{dimConnsIn: 4})}
	l.add(closing)
	l.add(staying)
	reg := registerInOrder(t, &l, nil, registerOrders["ours first"])
	requireValue(t, 17, reg, "connections", "inbound", "system")

	l.remove(closing)
	l.remove(closing)
	requireValue(t, 4, reg, "connections", "inbound", "system")
	requireValue(t, 7, reg, "blocked_resources", "outbound", "stream", "service")
	requireValue(t, 4, reg, "allowlist_failed_lookups_total")
	_, shown := shownValue(t, reg, "memory", "/peer:x.span-1", "protocol")
	require.False(t, shown, "a series vanishes with its scope")
	require.Equal(t, spread.Spread{}, l.read(nil).peerMemory, "its peers are not counted any more")

	l.remove(staying)
	_, shown = shownValue(t, reg, "limit", "conns", "system")
	require.False(t, shown, "there is no limit without a manager")
}

func TestOneManagerIsShownAlone(t *testing.T) {
	var l liveManagers
	shown, other := &fakeManager{says: systemOnly(amounts{dimFD: 1})}, &fakeManager{says: systemOnly(amounts{dimFD: 10})}
	l.add(shown)
	l.add(other)
	reg := registerInOrder(t, &l, shown, registerOrders["ours first"])
	requireValue(t, 1, reg, "fds", "system")
	l.remove(shown)
	requireValue(t, 0, reg, "fds", "system")
}

func TestRegisteringOverAnEarlierRegistration(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second string // "sum", "a", "b", "closed"
		refused       bool
		fds           float64 // shown at the end
	}{
		{"sum over sum", "sum", "sum", false, 11},
		{"sum over one", "a", "sum", false, 1},
		{"one over itself", "a", "a", false, 1},
		{"one over another", "a", "b", true, 1},
		{"one over sum", "sum", "a", true, 11},
		{"one over a closed one", "closed", "b", false, 10},
		{"sum over a closed one", "closed", "sum", false, 11},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l liveManagers
			managers := map[string]reader{
				"a":      &fakeManager{says: systemOnly(amounts{dimFD: 1})},
				"b":      &fakeManager{says: systemOnly(amounts{dimFD: 10})},
				"closed": &fakeManager{says: systemOnly(amounts{dimFD: 100})},
			}
			for _, m := range managers {
				l.add(m)
			}
			reg := prometheus.NewPedanticRegistry()
			upstream.MustRegisterWith(reg)
			require.NoError(t, l.register(reg, managers[c.first]))
			l.remove(managers["closed"])

			err := l.register(reg, managers[c.second])
			if c.refused {
				require.ErrorContains(t, err, "WrapRegistererWithPrefix")
			} else {
				require.NoError(t, err)
			}
			requireValue(t, c.fds, reg, "fds", "system")
		})
	}
}

func TestManagersOnOneRegistryUnderNamesOfTheirOwn(t *testing.T) {
	var l liveManagers
	a, b := &fakeManager{says: systemOnly(amounts{dimFD: 1})}, &fakeManager{says: systemOnly(amounts{dimFD: 10})}
	l.add(a)
	l.add(b)
	reg := registerInOrder(t, &l, nil, registerOrders["ours first"])
	require.NoError(t, l.register(prometheus.WrapRegistererWithPrefix("a_", reg), a))
	require.NoError(t, l.register(prometheus.WrapRegistererWithPrefix("b_", reg), b))
	got, err := reg.Gather()
	require.NoError(t, err)
	fds := make(map[string]float64)
	for _, f := range got {
		if strings.HasSuffix(f.GetName(), "_fds") {
			fds[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue() // system is before transient
		}
	}
	require.Equal(t, map[string]float64{"libp2p_rcmgr_fds": 11, "a_libp2p_rcmgr_fds": 1, "b_libp2p_rcmgr_fds": 10}, fds)
}

func TestForeignCollectorInTheWayIsAnErrorAndNothingStaysBehind(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	opts := prometheus.GaugeOpts{Name: familyPrefix + "blocked_resources", Help: "a foreign family"}
	for name, foreign := range map[string]prometheus.Collector{
		"another description": prometheus.NewGauge(opts),
		"the same description": prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: opts.Name, Help: helpOf("blocked_resources"),
		}, []string{"dir", "scope", "resource"}),
	} {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewPedanticRegistry()
			reg.MustRegister(foreign)
			require.ErrorContains(t, new(liveManagers).register(reg, nil), "blocked_resources")
			upstreams := prometheus.NewPedanticRegistry()
			upstreams.MustRegister(foreign)
			if name == "another description" {
				require.Panics(t, func() { upstream.MustRegisterWith(upstreams) })
				require.Panics(t, func() { MustRegisterWith(reg) })
			} else {
				require.NotPanics(t, func() { upstream.MustRegisterWith(upstreams) })
				MustRegisterWith(reg)
				logged := lines.take()
				require.Len(t, logged, 1)
				require.Contains(t, logged[0], "blocked_resources: ")
			}
			require.True(t, reg.Unregister(foreign), "the foreign one was left alone")
			n, err := testutil.GatherAndCount(reg)
			require.NoError(t, err)
			require.Zero(t, n)
		})
	}
}

func TestFailedRegistrationLeavesTheOneThatStands(t *testing.T) {
	reg := registerInOrder(t, new(liveManagers), nil, registerOrders["ours first"])
	require.True(t, reg.Unregister(upstreamFamilies()["blocked_resources"].collector))
	reg.MustRegister(prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: familyPrefix + "blocked_resources", Help: helpOf("blocked_resources"),
	}, []string{"dir", "scope", "resource"}))
	require.Error(t, new(liveManagers).register(reg, nil))
	requireValue(t, 0, reg, "fds", "system")
}

func TestExportedRegistrations(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	upstream.MustRegisterWith(reg)
	MustRegisterWith(reg)
	MustRegisterWith(reg)
	_, err := reg.Gather()
	require.NoError(t, err)
	require.Panics(t, func() { MustRegisterWith(nil) })
	require.ErrorContains(t, new(Manager).RegisterWith(reg), "closed", "a manager that is not live has nothing to show")
	require.ErrorContains(t, live.register(nil, nil), "nil")
}

func TestOneScrapeIsOneReading(t *testing.T) {
	// No reading gets old meanwhile, however slow a scrape is.
	synctest.Test(t, func(t *testing.T) {
		var l liveManagers
		m := new(fakeManager)
		l.add(m)
		reg := registerInOrder(t, &l, nil, registerOrders["ours first"])
		for scrape := 1; scrape <= 5; scrape++ {
			m.say(systemOnly(amounts{dimFD: int64(scrape)}))
			requireValue(t, float64(scrape), reg, "fds", "system")
			require.Equal(t, scrape, m.reads)
		}
	})
}

// However many families there are: more than a word has bits, too.
func TestEachFamilyThatAsksAgainBeginsANewScrape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in no time
		m := &fakeManager{says: systemOnly(amounts{})}
		var l liveManagers
		l.add(m)
		v := &metricsView{live: &l}
		const families = 3 * 64
		for family := range families {
			v.reading(family)
		}
		require.Equal(t, 1, m.reads, "one scrape")
		for family := range families {
			before := m.reads
			v.reading(family)
			v.reading(family)
			require.Greater(t, m.reads, before, "family %d", family)
		}
	})
}

func TestAReadingIsNotSharedByTwoScrapes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l liveManagers
		m := &fakeManager{says: systemOnly(amounts{dimFD: 1})}
		l.add(m)
		v := &metricsView{live: &l}
		fds := func(family int) int64 { return v.reading(family).basic()[KindSystem].use[dimFD] }
		require.EqualValues(t, 1, fds(0))

		m.say(systemOnly(amounts{dimFD: 2}))
		require.EqualValues(t, 1, fds(1), "families of one scrape share a reading")
		require.EqualValues(t, 2, fds(0), "a family that asks again begins a new scrape")
		m.say(systemOnly(amounts{dimFD: 3}))
		time.Sleep(staleAfter)
		require.EqualValues(t, 3, fds(1))
	})
}

func TestScrapeSurvivesNamesThatAreNotUTF8(t *testing.T) {
	r := systemOnly(amounts{})
	for _, name := range []string{"/a\xff", "/a\xfe", "/a\uFFFD"} {
		r.scopes = append(r.scopes, scopeReading{kind: KindProtocol, name: name, use: amounts{dimMemory: 1}})
	}
	var l liveManagers
	l.add(&fakeManager{says: r})
	requireValue(t, 3, registerInOrder(t, &l, nil, registerOrders["ours first"]), "memory", "/a\uFFFD", "protocol")
}

func TestSeriesThatDoesNotFitItsFamilyFailsTheScrapeOnly(t *testing.T) {
	sent := make(chan prometheus.Metric, 1)
	series{desc: upstreamFamilies()["fds"].desc, to: sent}.gauge(1, "one label", "too many")
	require.Error(t, (<-sent).Write(nil))
}

func TestRegisteringScrapingOpeningAndClosingAtOnce(t *testing.T) {
	var l liveManagers
	reg := prometheus.NewPedanticRegistry()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 20 {
				m := &fakeManager{says: busyReading()}
				l.add(m)
				if err := l.register(reg, nil); err != nil {
					t.Error(err)
				}
				upstream.MustRegisterWith(reg)
				if _, err := reg.Gather(); err != nil {
					t.Error(err)
				}
				l.remove(m)
			}
		})
	}
	all.Wait()
	requireValue(t, 4*20*8, reg, "blocked_resources", "inbound", "connection", "subnet")
}
