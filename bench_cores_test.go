package rcmgr

// What a second core brings, and what it costs: how often goroutines wait for each
// other's locks, and how often a stripe has to draw credit from a pool.
//
//	go test -run '^$' -bench Cores -benchtime 200000x -count 5 .

import (
	"flag"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// contended counts the acquisitions of a sync.Mutex that have waited, of all goroutines. The
// runtime's own locks, for which the garbage collector waits, are in the profile as well.
func contended() (n int64) {
	for records := make([]runtime.BlockProfileRecord, 64); ; records = make([]runtime.BlockProfileRecord, 2*len(records)) {
		if k, ok := runtime.MutexProfile(records); ok {
			for _, r := range records[:k] {
				frame, _ := runtime.CallersFrames(r.Stack()).Next()
				if frame.Function == "sync.(*Mutex).Unlock" {
					n += r.Count
				}
			}
			return n
		}
	}
}

// timeTogether runs n rounds on each of several goroutines, and returns the time until all
// are done.
func timeTogether(n int, rounds ...func(int) error) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, len(rounds))
	start := time.Now()
	for g, round := range rounds {
		wg.Go(func() {
			var err error // not in errs, of which all are on one cache line
			for i := 0; i < n && err == nil; i++ {
				err = round(i)
			}
			errs[g] = err
		})
	}
	wg.Wait()
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return took, nil
}

// spin is work that no other goroutine can disturb, of several chains that do not wait
// for one another: it keeps a processor as busy as a workload does, and gains as little
// where two processors are threads of one core.
func spin(seed uint64) func(int) error {
	chains := [4]uint64{seed, seed + 2, seed + 4, seed + 6}
	return func(int) error {
		x, y, z, w := chains[0], chains[1], chains[2], chains[3]
		for range 50 {
			x, y, z, w = xorshift(x), xorshift(y), xorshift(z), xorshift(w)
		}
		chains = [4]uint64{x, y, z, w}
		if x == 0 || y == 0 || z == 0 || w == 0 {
			return fmt.Errorf("xorshift has become 0")
		}
		return nil
	}
}

func xorshift(x uint64) uint64 {
	x ^= x << 13
	x ^= x >> 7
	return x ^ x<<17
}

// onItsOwn prepares one of two workers, each of which goes through this many peers and
// addresses of its own, of those that a workload has: worker 1 of it begins with the 64th.
func onItsOwn(w workload, b *testing.B, m *Manager, worker, peers int) func(int) error {
	round := w.prepare(b, m, worker)
	return func(i int) error { return round(worker*(256-64) + i%peers) }
}

var stripesFlag = flag.Int("rcmgr.stripes", 0, "how many stripes BenchmarkCores has; 0 for the default")

// BenchmarkCores reports the work done by two goroutines on two processors in the time that
// one takes on one, as a part of what spinning goroutines gain at the same time (gain/spin):
// the median of many short parts. One is left with a single processor, for on two, the other
// would collect its garbage.
func BenchmarkCores(b *testing.B) {
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	type measured struct {
		workload
		peers int // of each worker
	}
	var all []measured
	for _, w := range workloads {
		all = append(all, measured{w, 1})
		if w.name == "stream" || w.name == "connection" {
			all = append(all, measured{w, 256})
		}
	}
	for _, w := range all {
		b.Run(fmt.Sprintf("work=%s/peers=%d", w.name, w.peers), func(b *testing.B) {
			m := rivals[0].make(b, w.limits.Build(farLimits())).(*Manager)
			if *stripesFlag > 0 {
				require.NoError(b, m.Close())
				m = oursWithStripes(b, w.limits.Build(farLimits()), *stripesFlag)
			}
			defer m.Close()
			first, second := onItsOwn(w.workload, b, m, 0, w.peers), onItsOwn(w.workload, b, m, 1, w.peers)
			const parts = 40 // each so short that what else the machine does is the same for all of it
			n := b.N/parts + 1
			run := func(rounds ...func(int) error) float64 {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(len(rounds)))
				took, err := timeTogether(n, rounds...)
				require.NoError(b, err)
				return float64(took)
			}
			run(first, second) // all peers, names and shares are there
			var gains []float64
			waited, draws := int64(0), uint64(0)
			b.ResetTimer()
			for range parts {
				spinGain := 2 * run(spin(1)) / run(spin(1), spin(2))
				alone, waitedBefore, drawsBefore := run(first), contended(), m.read().counts.draws
				gains = append(gains, 2*alone/run(first, second)/spinGain)
				waited, draws = waited+contended()-waitedBefore, draws+m.read().counts.draws-drawsBefore
			}
			slices.Sort(gains)
			each := 1e6 / float64(2*n*parts)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(gains[parts/2], "gain/spin")
			b.ReportMetric(float64(waited)*each, "waits/Mop")
			b.ReportMetric(float64(draws)*each, "draws/Mop")
		})
	}
}

// Below half of the limits, pools are asked at most once in a thousand rounds, and
// never under all stripe locks, by many peers in turn as by one, also if no connection
// finds a holder that waits for it, and opens in any stripe. The more stripes share the credit
// of a limit, the less of it each draws at a time: here there are as many as on two processors
// by default.
func TestPoolsAreSeldomAskedBelowHalf(t *testing.T) {
	for _, l := range benchLimits[:2] {
		for _, w := range workloads {
			if l.name == "4GiB" && w.name == "connection" {
				continue // transient's connections are too few for credit
			}
			for _, peers := range []int{512, 1} {
				for _, anywhere := range []bool{false, true} {
					what := fmt.Sprintf("%s/%s/peers=%d/anywhere=%v", l.name, w.name, peers, anywhere)
					limits := w.limits.Build(l.build())
					book, err := newLimitBook(NewFixedLimiter(limits), false, nil)
					require.NoError(t, err)
					m := oursWithStripes(t, limits, stripesFor(2, book))
					m.secret = ip.Hash{A: 6, B: 7} // as many peers in each stripe as usual: chance may be worse
					round := w.prepare(t, m, 0)
					run := func(rounds int) counts {
						for i := range rounds {
							require.NoError(t, round(i%peers))
							if anywhere {
								m.idleConns.Get()
							}
						}
						return m.read().counts
					}
					const rounds = 50_000
					before := run(1024)
					after := run(rounds)
					if w.name != "refusal" { // whose limit is reached
						require.LessOrEqual(t, after.draws-before.draws, uint64(rounds/1000), what)
					}
					require.LessOrEqual(t, after.returns-before.returns, uint64(rounds/1000), what)
					require.Equal(t, before.settled, after.settled, what)
					require.NoError(t, m.Close())
				}
			}
		}
	}
}

// BenchmarkContention counts how often a lock has to be waited for, by the number of
// stripes, with as many goroutines as there are processors, on 512 peers in turn:
// what BENCHMARKS.md foretells for more processors is held against it.
func BenchmarkContention(b *testing.B) {
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	for _, w := range workloads {
		if w.name != "stream" && w.name != "connection" {
			continue
		}
		for _, stripes := range []int{1, 2, 4, 8, 16, 32, 64} {
			b.Run(fmt.Sprintf("work=%s/stripes=%d", w.name, stripes), func(b *testing.B) {
				m, err := New(NewFixedLimiter(farLimits()), WithConnRateLimiters(nil), WithStripes(stripes))
				require.NoError(b, err)
				defer m.Close()
				waited := int64(0)
				runWorkers(b, runtime.GOMAXPROCS(0), func(worker int) func(int) error {
					round := w.prepare(b, m, worker)
					for i := range 512 {
						require.NoError(b, round(i))
					}
					waited = contended()
					return round
				})
				b.ReportMetric(float64(contended()-waited)/float64(b.N)*1e6, "waits/Mop")
				b.ReportMetric(float64(m.read().counts.draws)/float64(b.N)*1e6, "draws/Mop")
			})
		}
	}
}
