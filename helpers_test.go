package rcmgr

// What several files of tests use: making a manager, opening connections and
// streams, names and addresses, random numbers with a seed that can be repeated,
// and many goroutines. What a test may look at afterwards is in invariants_test.go.

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	logging "github.com/libp2p/go-libp2p/gologshim"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/testseed"
)

var stepsFlag = flag.Int("rcmgr.steps", int(envUint("RCMGR_STEPS")), "random calls for each cell of the grid; 0 takes the default (also RCMGR_STEPS)")

func envUint(name string) uint64 { return testseed.Env(name) }

// raceDetector reports whether this test binary was built with -race.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// testSeed returns a seed for a random test, see testseed.Of.
func testSeed(t testing.TB) uint64 { return testseed.Of(t) }

// testRandom returns random numbers from the seed of a test.
func testRandom(t testing.TB) *rand.Rand { return testseed.Random(t) }

// randomFrom returns random numbers that are the same for the same seed and stream.
func randomFrom(seed, stream uint64) *rand.Rand { return testseed.From(seed, stream) }

func pointerTo[T any](v T) *T { return &v }

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// newManager makes a manager that is closed with the test.
func newManager(t testing.TB, conf perScope[BaseLimit], opts ...Option) *Manager {
	t.Helper()
	return newFrom(t, ConcreteLimitConfig{limits: conf}, opts...)
}

// newFrom is newManager with limits as users build them, or read them back.
func newFrom(t testing.TB, cfg ConcreteLimitConfig, opts ...Option) *Manager {
	t.Helper()
	m, err := New(NewFixedLimiter(cfg), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// otherLimiter is a Limiter of another package.
type otherLimiter struct{ Limiter }

// openGates lets everything past the gates.
func openGates() []Option {
	return []Option{
		WithLimitPerSubnet([]ConnLimitPerSubnet{}, []ConnLimitPerSubnet{}),
		WithConnRateLimiters(nil),
	}
}

// unlimitedBase admits everything.
var unlimitedBase = amounts{math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64,
	math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64}.base()

// base returns limits as they are written. Where int is small, so are counts.
func (a amounts) base() BaseLimit {
	for d := range a {
		if dim(d) != dimMemory {
			a[d] = min(a[d], math.MaxInt)
		}
	}
	return a.baseLimit()
}

// eachLimit visits the limits of every kind of scope in a configuration.
func eachLimit(c *perScope[BaseLimit], f func(Kind, *BaseLimit)) {
	for k, l := range map[Kind]*BaseLimit{
		KindSystem: &c.System, KindTransient: &c.Transient,
		KindAllowlistedSystem: &c.AllowlistedSystem, KindAllowlistedTransient: &c.AllowlistedTransient,
		KindService: &c.ServiceDefault, KindServicePeer: &c.ServicePeerDefault,
		KindProtocol: &c.ProtocolDefault, KindProtocolPeer: &c.ProtocolPeerDefault,
		KindPeer: &c.PeerDefault, KindConn: &c.Conn, KindStream: &c.Stream,
	} {
		f(k, l)
	}
}

// unlimitedConf admits everything everywhere.
func unlimitedConf() (c perScope[BaseLimit]) {
	eachLimit(&c, func(_ Kind, l *BaseLimit) { *l = unlimitedBase })
	return c
}

// limitedConf is unlimited but for what set changes.
func limitedConf(set func(*perScope[BaseLimit])) perScope[BaseLimit] {
	c := unlimitedConf()
	set(&c)
	return c
}

func toJSON(tb testing.TB, v any) string {
	tb.Helper()
	b, err := json.Marshal(v)
	require.NoError(tb, err)
	return string(b)
}

const (
	testPeer  = peer.ID("\x00\x03foe")
	testProto = protocol.ID("/test/1")
	testSvc   = "svc"
)

var (
	testPeers     = []peer.ID{peerNamed("ann"), peerNamed("bob"), peerNamed("cat"), peerNamed("dan"), peerNamed("eve")}
	testProtocols = []string{"/a", "/b", "/c"}
	testServices  = []string{"x", "y"}
	testFars      = []struct {
		addr multiaddr.Multiaddr
		far  modelFar
	}{
		{nil, modelFar{}},
		{multiaddr.StringCast("/ip4/198.51.100.1/tcp/1"), modelFar{}},
		{multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"), modelFar{open: true}},
		{multiaddr.StringCast("/ip4/192.0.2.2/tcp/1"), modelFar{named: testPeers[0]}},
	}
	testAllowlist = []multiaddr.Multiaddr{
		multiaddr.StringCast("/ip4/192.0.2.1"),
		multiaddr.StringCast("/ip4/192.0.2.2/p2p/" + testPeers[0].String()),
	}
)

// peerNamed returns a peer ID that is valid, and short.
func peerNamed(name string) peer.ID {
	return peer.ID("\x00" + string(rune(len(name))) + name) // an identity multihash
}

func manyPeers(n int) (peers []peer.ID) {
	for i := range n {
		peers = append(peers, peerNamed(fmt.Sprintf("p%d", i)))
	}
	return peers
}

const (
	peerA = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
	peerB = "12D3KooWLHPUFgXm5tKkgk9jVNMSCnNfDHHvPCgDcqvJqXzZmBmq"
	onion = "/onion3/vww6ybal4bd7szmgncyruucpgfkqahzddi37ktceo3ah7ngmcopnpyyd:1234"
)

func mustMA(t testing.TB, s string) multiaddr.Multiaddr {
	t.Helper()
	ma, err := multiaddr.NewMultiaddr(s)
	require.NoError(t, err)
	return ma
}

func mustPeer(t testing.TB, s string) peer.ID {
	t.Helper()
	p, err := peer.Decode(s)
	require.NoError(t, err)
	return p
}

// randomAddr draws from few enough addresses that networks meet and nest.
func randomAddr(rng *rand.Rand) netip.Addr {
	bit := func() byte { return byte(rng.IntN(2)) }
	if rng.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10 + bit(), bit(), bit(), bit()})
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 5: bit(), 6: bit(), 7: bit(), 15: bit()})
}

func mustOpenConn(t testing.TB, m *Manager, dir network.Direction) network.ConnManagementScope {
	t.Helper()
	c, err := m.OpenConnection(dir, false, nil)
	require.NoError(t, err)
	return c
}

func mustOpenStream(t testing.TB, m *Manager, p peer.ID, dir network.Direction) network.StreamManagementScope {
	t.Helper()
	s, err := m.OpenStream(p, dir)
	require.NoError(t, err)
	return s
}

// servedStream opens a stream and attaches it everywhere.
func servedStream(t testing.TB, m *Manager, p peer.ID) network.StreamManagementScope {
	t.Helper()
	s := mustOpenStream(t, m, p, network.DirInbound)
	require.NoError(t, s.SetProtocol(testProto))
	require.NoError(t, s.SetService(testSvc))
	return s
}

func mustBeginSpan(t testing.TB, s network.ResourceScope) network.ResourceScopeSpan {
	t.Helper()
	span, err := s.BeginSpan()
	require.NoError(t, err)
	return span
}

// The scopes that others stand on, to be kept.
func viewSystem(t testing.TB, m *Manager) (s network.ResourceScope) {
	t.Helper()
	require.NoError(t, m.ViewSystem(func(v network.ResourceScope) error { s = v; return nil }))
	return s
}

func viewTransient(t testing.TB, m *Manager) (s network.ResourceScope) {
	t.Helper()
	require.NoError(t, m.ViewTransient(func(v network.ResourceScope) error { s = v; return nil }))
	return s
}

func viewPeer(t testing.TB, m *Manager, p peer.ID) (s network.PeerScope) {
	t.Helper()
	require.NoError(t, m.ViewPeer(p, func(v network.PeerScope) error { s = v; return nil }))
	return s
}

func viewProtocol(t testing.TB, m *Manager, p protocol.ID) (s network.ProtocolScope) {
	t.Helper()
	require.NoError(t, m.ViewProtocol(p, func(v network.ProtocolScope) error { s = v; return nil }))
	return s
}

func viewService(t testing.TB, m *Manager, svc string) (s network.ServiceScope) {
	t.Helper()
	require.NoError(t, m.ViewService(svc, func(v network.ServiceScope) error { s = v; return nil }))
	return s
}

// stressSteps is how many steps a worker takes in one scenario.
func stressSteps() int {
	switch {
	case *stepsFlag > 0:
		return *stepsFlag
	case testing.Short():
		return 300
	}
	return 1500
}

// together runs workers at the same time and waits for all of them. Each has
// random numbers of its own.
func together(t *testing.T, workers int, work func(id int, r *rand.Rand)) {
	seed := testSeed(t)
	var wg sync.WaitGroup
	for id := range workers {
		wg.Go(func() { work(id, randomFrom(seed, uint64(id))) })
	}
	wg.Wait()
}

// watch checks the invariants in one consistent cut after another until stop
// is called, which says how many cuts it was.
func watch(t *testing.T, m *Manager, check func() error) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	cuts := 0
	go func() {
		defer close(ended)
		for ; ; cuts++ {
			var err error
			m.inOneCut(func() { err = check() })
			if err != nil {
				t.Errorf("cut %d: %v", cuts, err)
				return
			}
			select {
			case <-end:
				return
			default:
				runtime.Gosched()
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		t.Logf("%d cuts", cuts)
	}
}

// goroutineID returns the number of the goroutine that calls it.
func goroutineID() string {
	var text [64]byte
	return strings.Fields(string(text[:runtime.Stack(text[:], false)]))[1] // after "goroutine"
}

// lockFor locks l until the function that it returns is called, at the latest until the end of
// the test: a test that fails must not make others wait for its locks.
func lockFor(t *testing.T, l sync.Locker) (unlock func()) {
	l.Lock()
	unlock = sync.OnceFunc(l.Unlock)
	t.Cleanup(unlock)
	return unlock
}

// waitUntilLocked waits until a goroutine waits for a mutex: for the one that the test
// holds, if no other is contended.
func waitUntilLocked(t *testing.T, id string) {
	t.Helper()
	all := make([]byte, 1<<20)
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		if strings.Contains(string(all[:runtime.Stack(all, true)]), "\ngoroutine "+id+" [sync.Mutex.Lock") {
			return
		}
		require.True(t, time.Now().Before(end), "goroutine %s waits for no lock", id)
	}
}

// logTo sends what is logged from a level on to w, until the end of the test.
func logTo(t *testing.T, w io.Writer, level slog.Level) {
	t.Helper()
	before := log
	log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	t.Cleanup(func() { log = before })
}

// captureLog returns the text of the warnings that are logged until the end of the test.
func captureLog(t *testing.T) *bytes.Buffer {
	t.Helper()
	return captureLogFrom(t, slog.LevelWarn)
}

func captureLogFrom(t *testing.T, level slog.Level) *bytes.Buffer {
	t.Helper()
	var text bytes.Buffer
	logTo(t, &text, level)
	return &text
}

// collectLog returns the lines that are logged until the end of the test.
func collectLog(t *testing.T, level slog.Level) *logLines {
	t.Helper()
	lines := &logLines{}
	logTo(t, lines, level)
	return lines
}

// reporterFunc is a function as a TraceReporter.
type reporterFunc func(TraceEvt)

func (f reporterFunc) ConsumeEvent(e TraceEvt) { f(e) }

// registryOf shows one manager on a registry that checks what it is given.
func registryOf(t *testing.T, m *Manager) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, m.RegisterWith(reg))
	return reg
}

// seriesOf returns the series of a family that are not 0, by their labels' values
// in the order of their names.
func seriesOf(t *testing.T, from prometheus.Gatherer, name string) map[string]float64 {
	t.Helper()
	got, err := from.Gather()
	require.NoError(t, err)
	found := make(map[string]float64)
	for _, f := range got {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			if v := m.GetGauge().GetValue() + m.GetCounter().GetValue(); f.GetName() == familyPrefix+name && v != 0 {
				found[strings.Join(labels, " ")] = v
			}
		}
	}
	return found
}

func ask(h http.Handler, method, target string, accept ...string) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	r.Header["Accept"] = accept
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func bodyOf(t *testing.T, r *http.Response) string {
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(b)
}

// heapNow returns how many bytes that are in use after garbage has been collected.
func heapNow() int64 {
	runtime.GC()
	runtime.GC() // what the first one let go of
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// logLines collects lines of the log, each without its time.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, text, _ := strings.Cut(string(b), "level=")
	l.lines = append(l.lines, strings.TrimSpace(text))
	return len(b), nil
}

// take returns the lines since the last time.
func (l *logLines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

// talk is a MetricsReporter that writes down what it is told.
type talk struct{ said []string }

// regime is a family of limits. stripes is the number that batches go by.
type regime struct {
	name string
	pick func(r *rand.Rand, stripes int) int64
}

var regimes = []regime{
	{"tiny", func(r *rand.Rand, _ int) int64 { return r.Int64N(6) }},
	{"small", func(r *rand.Rand, _ int) int64 { return 4 + r.Int64N(60) }},
	{"batch", func(r *rand.Rand, n int) int64 { return int64(16*n)*(1+r.Int64N(3)) + r.Int64N(5) - 2 }},
	{"large", func(r *rand.Rand, _ int) int64 { return 1<<20 + r.Int64N(1<<40) }},
	{"unlimited", func(r *rand.Rand, _ int) int64 { return math.MaxInt64 - r.Int64N(2)*r.Int64N(1000) }},
}

func (g regime) limit(r *rand.Rand, stripes int) BaseLimit {
	var a amounts
	for d := range a {
		a[d] = g.pick(r, stripes)
	}
	return a.base()
}

// mixed takes every number from another family.
var mixed = regime{"mixed", func(r *rand.Rand, n int) int64 { return regimes[r.IntN(len(regimes))].pick(r, n) }}

// conf gives every kind of scope limits of the regime, or leaves it unlimited
// so that others decide.
func (g regime) conf(r *rand.Rand, stripes int) perScope[BaseLimit] {
	c := unlimitedConf()
	for _, l := range c.single() {
		if r.IntN(2) == 0 {
			*l = g.limit(r, stripes)
		}
	}
	c.Conn.Memory, c.Stream.Memory = max(c.Conn.Memory, 1), max(c.Stream.Memory, 1)
	for _, l := range []*BaseLimit{&c.Conn, &c.Stream} { // enough for itself, most of the time
		if r.IntN(8) != 0 {
			mem := l.Memory
			*l = unlimitedBase
			l.Memory = mem
		}
	}
	if r.IntN(2) == 0 {
		c.Peer = map[peer.ID]BaseLimit{testPeers[1]: mixed.limit(r, stripes)}
		c.Protocol = map[protocol.ID]BaseLimit{"/a": mixed.limit(r, stripes)}
		c.ServicePeer = map[string]BaseLimit{"x": mixed.limit(r, stripes)}
	}
	return c
}

func (r *talk) say(what ...any) { r.said = append(r.said, fmt.Sprintln(what...)) }

func (r *talk) AllowConn(dir network.Direction, usefd bool) { r.say("conn", dir, usefd) }

func (r *talk) BlockConn(dir network.Direction, usefd bool) { r.say("no conn", dir, usefd) }

func (r *talk) AllowStream(p peer.ID, dir network.Direction) { r.say("stream", p, dir) }

func (r *talk) BlockStream(p peer.ID, dir network.Direction) { r.say("no stream", p, dir) }

func (r *talk) AllowPeer(p peer.ID) { r.say("peer", p) }

func (r *talk) BlockPeer(p peer.ID) { r.say("no peer", p) }

func (r *talk) AllowProtocol(proto protocol.ID) { r.say("protocol", proto) }

func (r *talk) BlockProtocol(proto protocol.ID) { r.say("no protocol", proto) }

func (r *talk) BlockProtocolPeer(proto protocol.ID, p peer.ID) { r.say("no protocol peer", proto, p) }

func (r *talk) AllowService(svc string) { r.say("service", svc) }

func (r *talk) BlockService(svc string) { r.say("no service", svc) }

func (r *talk) BlockServicePeer(svc string, p peer.ID) { r.say("no service peer", svc, p) }

func (r *talk) AllowMemory(size int) { r.say("memory", size) }

func (r *talk) BlockMemory(size int) { r.say("no memory", size) }

// TestMain keeps what managers log out of the output of tests and benchmarks,
// unless GOLOG_LOG_LEVEL asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("GOLOG_LOG_LEVEL") == "" {
		logging.SetDefaultHandler(slog.DiscardHandler)
	}
	live.settle() // which tests ran before must not decide whether one finds a warning in the log
	os.Exit(m.Run())
}

// viewEach returns a handle on a scope of every kind that can be viewed.
func viewEach(t *testing.T, m *Manager) map[string]network.ResourceScope {
	return map[string]network.ResourceScope{
		"system":                    viewSystem(t, m),
		"transient":                 viewTransient(t, m),
		kindNamesHere[KindPeer]:     viewPeer(t, m, testPeer),
		kindNamesHere[KindProtocol]: viewProtocol(t, m, testProto),
		kindNamesHere[KindService]:  viewService(t, m, testSvc),
	}
}

// listed returns the names of all scopes that are listed.
func listed(m *Manager) (names []string) {
	for _, p := range m.ListPeers() {
		names = append(names, "peer:"+p.String())
	}
	for _, p := range m.ListProtocols() {
		names = append(names, "protocol:"+string(p))
	}
	for _, s := range m.ListServices() {
		names = append(names, "service:"+s)
	}
	return names
}
