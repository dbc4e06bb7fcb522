package rcmgr

// Faults from outside: callers' code that panics, a manager that is closed while
// everybody is busy, a full disk, hardly any memory. Whatever happens, the
// accounts are right, and nothing is held in the end.

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

var errFault = errors.New("a fault that was injected")

// faults panics now and then, once it is on.
type faults struct {
	on       atomic.Bool
	asked    atomic.Uint64
	injected atomic.Int64
}

func (f *faults) maybe() {
	if f.on.Load() && f.asked.Add(1)%5 == 0 {
		f.injected.Add(1)
		panic(errFault)
	}
}

// survive calls what may meet a fault, and reports whether it did.
func survive(t *testing.T, call func()) (panicked bool) {
	defer func() {
		if p := recover(); p != nil {
			panicked = true
			if p != any(errFault) {
				t.Errorf("another panic: %v\n%s", p, debug.Stack())
			}
		}
	}()
	call()
	return false
}

// TestPanicsOfCallersLeaveTheAccountsRight: in limiters, limits and views.
func TestPanicsOfCallersLeaveTheAccountsRight(t *testing.T) {
	const workers = 4
	for _, stripes := range []int{1, 8} {
		f := &faults{}
		conf := unlimitedConf()
		conf.System, conf.PeerDefault = crowdLimit(stripes, 0), crowdLimit(1, 0)
		m, err := New(&askedLimiter{NewFixedLimiter(ConcreteLimitConfig{limits: conf}), f.maybe},
			append(openGates(), WithStripes(stripes), WithRefusalLog(0))...)
		require.NoError(t, err)
		f.on.Store(true)
		stop := watch(t, m, func() error { return brokenInvariant(m, true) })
		together(t, workers, func(_ int, r *rand.Rand) {
			var held []network.ResourceScopeSpan
			for range stressSteps() {
				survive(t, func() { faultyStep(t, m, r, f, &held) })
				if len(held) > 20 {
					held[0].Done()
					held = held[1:]
				}
			}
			for _, s := range held {
				s.Done()
			}
		})
		stop()
		require.Greater(t, f.injected.Load(), int64(100))
		t.Logf("%d panics", f.injected.Load())
		f.on.Store(false)
		for _, k := range []Kind{KindSystem, KindTransient} {
			m.fixed[k].SetLimit(&unlimitedBase)
		}
		m.Close()
		assertEmpty(t, m)
	}
}

func faultyStep(t *testing.T, m *Manager, r *rand.Rand, f *faults, held *[]network.ResourceScopeSpan) {
	p := pick(r, stressPeers[:8])
	switch r.IntN(6) {
	case 0:
		if c, err := m.OpenConnection(network.DirInbound, true, nil); err == nil {
			*held = append(*held, c)
			c.SetPeer(p)
		}
	case 1:
		if s, err := m.OpenStream(p, network.DirInbound); err == nil {
			*held = append(*held, s)
			// Names of their own, so that the limiter is asked for them.
			s.SetProtocol(protocol.ID(fmt.Sprint("/", r.IntN(100))))
			s.SetService(fmt.Sprint(r.IntN(100)))
		}
	case 2:
		m.ViewPeer(p, func(s network.PeerScope) error {
			if span, err := s.BeginSpan(); err == nil {
				*held = append(*held, span)
				span.ReserveMemory(r.IntN(1<<20), 255)
			}
			f.maybe()
			return nil
		})
	case 3:
		m.ViewProtocol("/p", func(s network.ProtocolScope) error {
			if s.ReserveMemory(1000, 255) == nil {
				defer s.ReleaseMemory(1000)
			}
			f.maybe()
			return nil
		})
	case 4:
		m.ViewService("s", func(network.ServiceScope) error { f.maybe(); return nil })
	case 5:
		m.ViewSystem(func(s network.ResourceScope) error {
			l := crowdLimit(8, r.IntN(30))
			s.(ResourceScopeLimiter).SetLimit(askedLimit{&l, f.maybe})
			return nil
		})
	}
}

// badReporter panics at every call.
type badReporter struct {
	MetricsReporter // nil: every call of it panics
	calls           atomic.Int64
}

func (r *badReporter) AllowConn(network.Direction, bool) { r.calls.Add(1); panic(errFault) }

// TestAMetricsReporterThatPanicsIsNotCalledAgain: a connection that was opened
// belongs to the caller, which alone gives it back.
func TestAMetricsReporterThatPanicsIsNotCalledAgain(t *testing.T) {
	text := captureLog(t)
	bad := &badReporter{}
	m := newManager(t, unlimitedConf(), WithMetrics(bad))
	for range 3 {
		c := mustOpenConn(t, m, network.DirInbound)
		require.NoError(t, c.SetPeer(testPeer))
		servedStream(t, m, testPeer).Done()
		c.Done()
	}
	assertEmpty(t, m)
	require.EqualValues(t, 1, bad.calls.Load())
	require.Equal(t, 1, strings.Count(text.String(), errFault.Error()), text.String())
	require.Contains(t, text.String(), "badReporter")
}

// TestEveryCallOfAReporterIsGuarded: each of its methods by itself.
func TestEveryCallOfAReporterIsGuarded(t *testing.T) {
	captureLog(t)
	for i, call := range []func(r MetricsReporter){
		func(r MetricsReporter) { r.AllowConn(network.DirInbound, true) },
		func(r MetricsReporter) { r.BlockConn(network.DirInbound, true) },
		func(r MetricsReporter) { r.AllowStream("p", network.DirInbound) },
		func(r MetricsReporter) { r.BlockStream("p", network.DirInbound) },
		func(r MetricsReporter) { r.AllowPeer("p") },
		func(r MetricsReporter) { r.BlockPeer("p") },
		func(r MetricsReporter) { r.AllowProtocol("/p") },
		func(r MetricsReporter) { r.BlockProtocol("/p") },
		func(r MetricsReporter) { r.BlockProtocolPeer("/p", "p") },
		func(r MetricsReporter) { r.AllowService("s") },
		func(r MetricsReporter) { r.BlockService("s") },
		func(r MetricsReporter) { r.BlockServicePeer("s", "p") },
		func(r MetricsReporter) { r.AllowMemory(1) },
		func(r MetricsReporter) { r.BlockMemory(1) },
	} {
		g := guarded(&badReporter{})
		require.NotPanics(t, func() { call(g) }, "method %d", i)
		require.True(t, g.(*guardedReporter).failed.Load(), "method %d was not passed on", i)
	}
}

// badRegisterer panics when it is given its second collector.
type badRegisterer struct {
	prometheus.Registerer
	given int
}

func (r *badRegisterer) Register(c prometheus.Collector) error {
	if r.given++; r.given == 2 {
		panic(errFault)
	}
	return r.Registerer.Register(c)
}

func TestARegistererThatPanicsLeavesMetricsUsable(t *testing.T) {
	m := newManager(t, unlimitedConf())
	reg := prometheus.NewRegistry()
	require.True(t, survive(t, func() { m.RegisterWith(&badRegisterer{Registerer: reg}) }))
	reg = prometheus.NewRegistry()
	require.NoError(t, m.RegisterWith(reg))
	all, err := reg.Gather()
	require.NoError(t, err)
	require.NotEmpty(t, all)
	again, err := reg.Gather()
	require.NoError(t, err)
	require.Len(t, again, len(all))
	mustOpenConn(t, m, network.DirInbound).Done()
	assertEmpty(t, m)
}

// TestAManagerClosedWhileEverybodyIsBusyIsEmptyInTheEnd: workers open, move,
// reserve and end, others look and scrape, one trace goes to a full disk, and the
// manager is closed at some point.
func TestAManagerClosedWhileEverybodyIsBusyIsEmptyInTheEnd(t *testing.T) {
	captureLog(t)
	for _, traced := range []bool{false, true} {
		for range 10 {
			before := runtime.NumGoroutine()
			closeWhileBusy(t, traced)
			for end := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
				require.True(t, time.Now().Before(end), "a goroutine is left")
			}
		}
	}
}

func closeWhileBusy(t *testing.T, traced bool) {
	conf := unlimitedConf()
	conf.System = crowdLimit(4, 0)
	opts := append(openGates(), WithStripes(4))
	if _, err := os.Stat(fullDisk); err == nil && traced {
		opts = append(opts, WithTrace(fullDisk))
	}
	m := newManager(t, conf, opts...)
	reg := prometheus.NewRegistry()
	require.NoError(t, m.RegisterWith(reg))
	var closed sync.WaitGroup
	var reached atomic.Int64
	closed.Go(func() {
		for reached.Load() < 100 { // everybody is at it
			runtime.Gosched()
		}
		m.Close()
	})
	together(t, 4, func(_ int, r *rand.Rand) {
		var held []network.ResourceScopeSpan
		for after := 0; after < 50; {
			if reached.Add(1)%64 == 0 {
				m.Snapshot()
				m.reap()
				reg.Gather()
			}
			s, err := openSomething(m, r)
			if err != nil {
				if errors.Is(err, network.ErrResourceScopeClosed) {
					after++
				}
			} else {
				if after > 0 {
					t.Error("admitted after Close has refused")
				}
				held = append(held, s)
				s.ReserveMemory(r.IntN(1000), 255)
			}
			if len(held) > 10 {
				held[0].Done()
				held = held[1:]
			}
		}
		for _, s := range held {
			s.Done()
		}
	})
	closed.Wait()
	assertEmpty(t, m)
}

// openSomething opens a connection or a stream, and moves it.
func openSomething(m *Manager, r *rand.Rand) (network.ResourceScopeSpan, error) {
	p := pick(r, stressPeers)
	if r.IntN(2) == 0 {
		c, err := m.OpenConnection(network.DirInbound, true, nil)
		if err != nil {
			return nil, err
		}
		c.SetPeer(p)
		return c, nil
	}
	s, err := m.OpenStream(p, network.DirInbound)
	if err != nil {
		return nil, err
	}
	if s.SetProtocol("/p") == nil {
		s.SetService("s")
	}
	return s, nil
}

// TestHardlyAnyMemoryChangesNoAnswer: the garbage collector runs all the time,
// as it does where GOMEMLIMIT is near what is used.
func TestHardlyAnyMemoryChangesNoAnswer(t *testing.T) {
	limit := debug.SetMemoryLimit(1 << 20)
	defer debug.SetMemoryLimit(limit)
	seed := testSeed(t)
	for i := range historyLoads {
		h := newHistory(t, &historyLoads[i], historyLoads[i].stripes[0])
		h.run(seed)
	}
	// A manager with the defaults has room for a few at least.
	m, err := New(nil)
	require.NoError(t, err)
	c, err := m.OpenConnection(network.DirInbound, true, nil)
	require.NoError(t, err)
	require.NoError(t, c.SetPeer(peer.ID("p")))
	c.Done()
	m.Close()
	assertEmpty(t, m)
}
