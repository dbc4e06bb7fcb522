package rcmgr

// The hot path beside its rivals (bench_rivals_test.go). All run the same workloads
// through network.ResourceManager, with the same limits and no limit on rates.
// Ours has its metrics on; that off is the same work, a test counts.
//
//	go run ./examples/compare
//
// runs them in turn and prints the ratios; this is for benchstat:
//
//	go test -run '^$' -bench HotPath -count 6 | tee bench.txt && benchstat -col /impl bench.txt
//
// procs=1 is one processor, which collects the garbage as well.

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/cputime"
)

const (
	farMemory = 256 << 30
	farFDs    = 1 << 20
)

// farLimits are limits that no workload comes near.
func farLimits() ConcreteLimitConfig { return DefaultLimits.Scale(farMemory, farFDs) }

// benchLimits are the limits that workloads run under.
var benchLimits = []struct {
	name  string
	build func() ConcreteLimitConfig
	// ballast is held at each scope that all share.
	ballast int
}{
	{name: "far", build: farLimits},
	{name: "4GiB", build: func() ConcreteLimitConfig { return DefaultLimits.Scale(4<<30, 1<<14) }},
	{name: "tight", build: tightLimits, ballast: 40 << 20},
}

// tightLimits are too small for credit, but for memory, of which more than half is
// held by the ballast: so everything is decided on the exact sum.
func tightLimits() ConcreteLimitConfig {
	few := ResourceLimits{
		Streams: 64, StreamsInbound: 64, StreamsOutbound: 64,
		Conns: 64, ConnsInbound: 64, ConnsOutbound: 64, FD: 64, Memory: 64 << 20,
	}
	system := few
	system.Memory *= 4 // the ballast of all scopes
	return PartialLimitConfig{System: system, Transient: few, ProtocolDefault: few, ServiceDefault: few}.Build(farLimits())
}

const (
	benchProtocol = "/proto/1.0.0"
	benchService  = "service"
)

func loadBallast(t require.TestingT, rm network.ResourceManager, n int) {
	reserve := func(s network.ResourceScope) error { return s.ReserveMemory(n, network.ReservationPriorityAlways) }
	require.NoError(t, rm.ViewSystem(reserve))
	require.NoError(t, rm.ViewTransient(reserve))
	require.NoError(t, rm.ViewProtocol(benchProtocol, func(s network.ProtocolScope) error { return reserve(s) }))
	require.NoError(t, rm.ViewService(benchService, func(s network.ServiceScope) error { return reserve(s) }))
}

// workload is something that is done again and again to a manager. prepare
// returns the i-th round of it for one of several workers.
type workload struct {
	name    string
	prepare func(t require.TestingT, rm network.ResourceManager, worker int) func(i int) error
	limits  PartialLimitConfig // that it needs besides
	allocs  float64            // the most that a round of ours may allocate
}

var workloads = []workload{
	{name: "memory", prepare: func(t require.TestingT, rm network.ResourceManager, worker int) func(int) error {
		return reserveAndRelease(negotiated(t, rm, names(worker + 1)[worker]))
	}},
	{name: "memory-of-one-peer", prepare: func(t require.TestingT, rm network.ResourceManager, _ int) func(int) error {
		return reserveAndRelease(negotiated(t, rm, "peer"))
	}},
	{name: "span", allocs: 1, prepare: func(t require.TestingT, rm network.ResourceManager, worker int) func(int) error {
		s := negotiated(t, rm, names(worker + 1)[worker])
		return func(int) error {
			span, err := s.BeginSpan()
			if err != nil {
				return err
			}
			defer span.Done()
			return span.ReserveMemory(4<<10, network.ReservationPriorityAlways)
		}
	}},
	{name: "stream", allocs: 1, prepare: func(t require.TestingT, rm network.ResourceManager, worker int) func(int) error {
		peers := names(512)
		return func(i int) error {
			s, err := rm.OpenStream(peers[(worker*64+i)%len(peers)], network.DirInbound)
			if err != nil {
				return err
			}
			defer s.Done()
			if err := s.SetProtocol(benchProtocol); err != nil {
				return err
			}
			if err := s.SetService(benchService); err != nil {
				return err
			}
			if err := s.ReserveMemory(4<<10, network.ReservationPriorityAlways); err != nil {
				return err
			}
			s.ReleaseMemory(4 << 10)
			return nil
		}
	}},
	{name: "connection", allocs: 1, prepare: func(t require.TestingT, rm network.ResourceManager, worker int) func(int) error {
		peers, addrs := names(512), make([]multiaddr.Multiaddr, 512)
		for i := range addrs {
			addrs[i] = multiaddr.StringCast(fmt.Sprintf("/ip4/11.1.%d.%d/tcp/4001", i/256, i%256))
		}
		return func(i int) error {
			at := (worker*64 + i) % len(addrs)
			c, err := rm.OpenConnection(network.DirInbound, true, addrs[at])
			if err != nil {
				return err
			}
			defer c.Done()
			return c.SetPeer(peers[at])
		}
	}},
	// Refusing must be as cheap as admitting: under a flood, refusals are the hot
	// path. The system is full, and every open is refused.
	{name: "refusal", allocs: 0, limits: PartialLimitConfig{System: ResourceLimits{ConnsInbound: 8}},
		prepare: func(t require.TestingT, rm network.ResourceManager, worker int) func(int) error {
			open := func() error {
				_, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.1/tcp/4001"))
				return err
			}
			for worker == 0 && open() == nil {
			}
			addr := multiaddr.StringCast("/ip4/11.1.1.1/tcp/4001")
			return func(int) error {
				if _, err := rm.OpenConnection(network.DirInbound, true, addr); err == nil {
					return fmt.Errorf("admitted into a full system")
				}
				return nil
			}
		}},
}

func reserveAndRelease(s network.ResourceScope) func(int) error {
	return func(int) error {
		if err := s.ReserveMemory(4<<10, network.ReservationPriorityAlways); err != nil {
			return err
		}
		s.ReleaseMemory(4 << 10)
		return nil
	}
}

func names(n int) []peer.ID {
	peers := make([]peer.ID, n)
	for i := range peers {
		peers[i] = peer.ID(fmt.Sprintf("a peer whose name is as long as theirs %d", i))
	}
	return peers
}

// negotiated opens a stream that has a protocol and a service.
func negotiated(t require.TestingT, rm network.ResourceManager, p peer.ID) network.StreamManagementScope {
	s, err := rm.OpenStream(p, network.DirInbound)
	require.NoError(t, err)
	require.NoError(t, s.SetProtocol(protocol.ID(benchProtocol)))
	require.NoError(t, s.SetService(benchService))
	return s
}

func BenchmarkHotPath(b *testing.B) {
	for _, l := range benchLimits {
		for _, w := range workloads {
			for _, procs := range []int{1, 2} {
				for _, r := range rivals {
					b.Run(fmt.Sprintf("limits=%s/work=%s/procs=%d/impl=%s", l.name, w.name, procs, r.impl), func(b *testing.B) {
						rm := r.make(b, w.limits.Build(l.build()))
						defer rm.Close()
						loadBallast(b, rm, l.ballast)
						runWorkers(b, procs, func(worker int) func(int) error { return w.prepare(b, rm, worker) })
					})
				}
			}
		}
	}
}

// What no round can do without: its locks, and what it allocates. The rest of it is
// accounting.
func BenchmarkFloor(b *testing.B) {
	var (
		mu   sync.Mutex
		n    int
		kept any // as a host keeps its scopes
	)
	for _, f := range []struct {
		of  string
		run func()
	}{
		{"lock", func() { mu.Lock(); n++; mu.Unlock() }},
		{"stream", func() { kept = new(streamScope) }},
		{"connection", func() { kept = new(connScope) }},
		{"span", func() { kept = new(spanScope) }},
		{"refusal", func() { kept = new(LimitError) }},
	} {
		b.Run("of="+f.of, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			b.ReportAllocs()
			for b.Loop() {
				f.run()
			}
		})
	}
	runtime.KeepAlive(kept)
}

// runWorkers measures rounds of several workers, on as many processors.
func runWorkers(b *testing.B, procs int, prepare func(worker int) func(int) error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
	rounds := make([]func(int) error, procs)
	for i := range rounds {
		rounds[i] = prepare(i)
	}
	b.ReportAllocs()
	var workers atomic.Int32
	defer reportProcessorTime(b, cputime.Used())
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		round := rounds[workers.Add(1)-1]
		for i := 0; pb.Next(); i++ {
			if err := round(i); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// reportProcessorTime reports the time of processors since one moment, garbage
// collection included: what else the machine does disturbs it little.
func reportProcessorTime(b *testing.B, since time.Duration) {
	if since > 0 {
		b.ReportMetric(float64(cputime.Used()-since)/float64(b.N), "cpu-ns/op")
	}
}

// What an operation may allocate, with metrics on.
func TestAllocations(t *testing.T) {
	for _, l := range benchLimits {
		for _, w := range workloads {
			t.Run(l.name+"/"+w.name, func(t *testing.T) {
				rm := rivals[0].make(t, w.limits.Build(l.build()))
				defer rm.Close()
				loadBallast(t, rm, l.ballast)
				round := w.prepare(t, rm, 0)
				for i := range 1024 {
					require.NoError(t, round(i)) // all peers, names and shares are there
				}
				i := 0
				got := testing.AllocsPerRun(1000, func() {
					if err := round(i); err != nil {
						t.Error(err)
					}
					i++
				})
				require.LessOrEqual(t, got, w.allocs)
			})
		}
	}
}

// The limits that are to be tight are: nothing in the workloads is decided otherwise
// than on the exact sum. There are so many stripes on two processors.
func TestTheTightLimitsOfBenchmarksAreTight(t *testing.T) {
	for _, w := range workloads {
		m := oursWithStripes(t, w.limits.Build(tightLimits()), 8)
		loadBallast(t, m, benchLimits[2].ballast)
		round := w.prepare(t, m, 0)
		for i := range 1024 {
			require.NoError(t, round(i))
		}
		m.inOneCut(func() {
			for _, p := range append(m.fixed[:KindAllowlistedSystem], m.dir.list()...) {
				for d := range numDims {
					require.True(t, p.tight(d) || !p.kind.canRunOutOf(d), "%s: %s, dimension %d", w.name, p.scope().kind, d)
				}
			}
		})
		require.NoError(t, m.Close())
	}
}

// Metrics are read, not reported: on or off, a manager does the same work, with
// as many allocations and as much asked of the shared scopes.
// The only difference is whether a scrape finds it. With one stripe, all that is
// counted here is the same each time. The instructions of a round, with valgrind,
// are the difference between two lengths of
//
//	CGO_ENABLED=0 go test -tags valgrind -c -o rcmgr.test .
//	GOMAXPROCS=1 GOGC=off GODEBUG=asyncpreemptoff=1 valgrind --tool=callgrind ./rcmgr.test \
//		-test.run '^$' -test.bench 'HotPath/limits=far/work=memory$/procs=1/impl=ours$' -test.benchtime 22000x
func TestMetricsAddNoWorkToReservations(t *testing.T) {
	for _, w := range workloads {
		type work struct {
			allocs                  float64
			draws, returns, settled uint64
		}
		done := make(map[bool]work)
		for _, on := range []bool{true, false} {
			opts := []Option{WithConnRateLimiters(nil), WithStripes(1)}
			if !on {
				opts = append(opts, WithMetricsDisabled())
			}
			m, err := New(NewFixedLimiter(w.limits.Build(farLimits())), opts...)
			require.NoError(t, err)
			require.Equal(t, on, live.has(m))
			round, i := w.prepare(t, m, 0), 0
			allocs := testing.AllocsPerRun(2000, func() {
				if err := round(i); err != nil {
					t.Error(err)
				}
				i++
			})
			c := m.read().counts
			done[on] = work{allocs, c.draws, c.returns, c.settled}
			require.NoError(t, m.Close())
		}
		require.NotZero(t, done[true].draws)
		require.Equal(t, done[true], done[false], w.name)
	}
}

func TestRefusalAllocatesAtMostTwice(t *testing.T) {
	limits := PartialLimitConfig{System: ResourceLimits{StreamsInbound: BlockAllLimit, ConnsInbound: BlockAllLimit, Memory: 1 << 30}}.Build(InfiniteLimits)
	rm, err := New(NewFixedLimiter(limits), WithStripes(1)) // a stripe allocates once, when it is first used
	require.NoError(t, err)
	defer rm.Close()
	addr := multiaddr.StringCast("/ip4/192.0.2.1/tcp/4001")
	s, err := rm.OpenStream("peer", network.DirOutbound)
	require.NoError(t, err)
	defer s.Done()
	for name, refuse := range map[string]func() error{
		"connection": func() error { _, err := rm.OpenConnection(network.DirInbound, true, addr); return err },
		"stream":     func() error { _, err := rm.OpenStream("peer", network.DirInbound); return err },
		"memory":     func() error { return s.ReserveMemory(math.MaxInt, 0) },
	} {
		got := testing.AllocsPerRun(100, func() {
			if err := refuse(); err == nil {
				t.Error("admitted")
			}
		})
		require.LessOrEqual(t, got, 2.0, name)
	}
}
