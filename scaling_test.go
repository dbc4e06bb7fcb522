package rcmgr

// How throughput grows with processors that this machine does not have: the
// estimate of BENCHMARKS.md beside a simulation of processors that take locks.
//
//	go test -run StripesForManyProcessors -v .

import (
	queue "container/heap"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// striping is processors that again and again work for a while, and then hold the
// lock of a stripe for a while. Times are in nanoseconds.
type striping struct {
	processors, stripes int
	hold, between       float64
}

// estimate returns the part of acquisitions that find the lock held, and the part of
// the throughput that is left of what the processors would do alone. Each of the
// others holds some lock for a part of its time, this one with a chance of one in
// the number of stripes, and then half of its turn is left to wait for.
func (s striping) estimate() (held, throughput float64) {
	held = float64(s.processors-1) / float64(s.stripes) * s.hold / (s.hold + s.between)
	return held, (s.hold + s.between) / (s.hold + s.between + held*s.hold/2)
}

// simulate runs n acquisitions, in the order in which they are asked for.
func (s striping) simulate(rng *rand.Rand, n int) (held, throughput float64) {
	next := make(times, s.processors)
	for i := range next {
		next[i] = rng.Float64() * (s.hold + s.between)
	}
	queue.Init(&next)
	free := make([]float64, s.stripes)
	waits, end := 0, 0.0
	for range n {
		at := next[0]
		lock := &free[rng.IntN(s.stripes)]
		if *lock > at {
			waits++
		}
		*lock = max(*lock, at) + s.hold
		end = max(end, *lock)
		next[0] = *lock + s.between*(0.5+rng.Float64())
		queue.Fix(&next, 0)
	}
	alone := float64(n) * (s.hold + s.between) / float64(s.processors)
	return float64(waits) / float64(n), alone / end
}

// times is a heap of when processors will ask for their next lock.
type times []float64

func (t times) Len() int           { return len(t) }
func (t times) Less(i, j int) bool { return t[i] < t[j] }
func (t times) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *times) Push(any)          { panic("the number of processors does not change") }
func (t *times) Pop() any          { panic("the number of processors does not change") }

func TestStripesForManyProcessors(t *testing.T) {
	rng := testRandom(t)
	// A lock is held for as long as what is done without one takes, which is more
	// than any workload of the benchmarks does.
	const hold, between = 20, 20
	for _, processors := range []int{2, 8, 32, 128} {
		for _, perProcessor := range []int{1, 4, 16} {
			s := striping{processors, processors * perProcessor, hold, between}
			held, throughput := s.simulate(rng, 1_000_000)
			wantHeld, want := s.estimate()
			t.Logf("%3d processors, %4d stripes: %4.1f %% of locks are held (estimate %4.1f), throughput %.3f of alone (%.3f)",
				processors, s.stripes, 100*held, 100*wantHeld, throughput, want)
			require.InDelta(t, want, throughput, 0.1)
			if perProcessor == 4 {
				require.Greater(t, throughput, 0.9, "as many stripes as there are by default")
				require.Less(t, math.Abs(held-wantHeld), 0.03)
			}
		}
	}
}

// What a round writes that another processor may have written last, in cache lines, and how
// long one processor takes for it (HotPath, limits far). A line that lies in another core's
// cache takes about lineNS to come over, within one last-level cache.
var linesWritten = []struct {
	work  string
	alone float64 // nanoseconds
	lines float64
}{{"stream", 277, 9}, {"connection", 350, 7}}

const lineNS = 45

// shared returns the throughput of each of several processors that serve many peers in turn, as
// a part of what one does alone. Whichever stripe a peer is in, another processor was the last
// in it with a chance of (P-1)/P.
func shared(alone, lines float64, processors int) float64 {
	return alone / (alone + lines*lineNS*float64(processors-1)/float64(processors))
}

func TestLinesForManyProcessors(t *testing.T) {
	for _, w := range linesWritten {
		for _, processors := range []int{2, 16, 64, 128} {
			part := shared(w.alone, w.lines, processors)
			t.Logf("%-10s %3d processors: %.2f of alone, %5.1f times one processor, %4.0f million a second", w.work,
				processors, part, part*float64(processors), part*float64(processors)/w.alone*1000)
			require.Less(t, part, 1.0)
		}
		require.InDelta(t, shared(w.alone, w.lines, 64), shared(w.alone, w.lines, 128), 0.01, "it does not fall further")
	}
}

// A limit that is too small for batches is decided on the exact sum at any load, under
// the drawing lock. These are the default limits, by memory and processors.
//
//	go test -run TooSmallForCredit -v .
func TestDefaultLimitsThatAreTooSmallForCredit(t *testing.T) {
	tooSmall := func(gib int64, stripes int) (list []string) {
		limits := DefaultLimits.Scale(gib<<30, 1<<16).limits
		for _, of := range []struct {
			kind  Kind
			limit BaseLimit
		}{
			{KindSystem, limits.System}, {KindTransient, limits.Transient},
			{KindService, limits.ServiceDefault}, {KindProtocol, limits.ProtocolDefault},
		} {
			a := limitsOf(&of.limit)
			for d := range numDims {
				if of.kind.canRunOutOf(d) && batchOf(a[d], stripes) == 0 {
					list = append(list, of.kind.String()+"."+limitNames[d])
				}
			}
		}
		return list
	}
	for _, gib := range []int64{1, 4, 16, 64} {
		for _, processors := range []int{2, 8, 32, 128} {
			book, err := newLimitBook(NewFixedLimiter(DefaultLimits.Scale(gib<<30, 1<<16)), false, nil)
			require.NoError(t, err)
			stripes := stripesFor(processors, book)
			t.Logf("%2d GiB, %3d processors, %3d stripes: %v", gib, processors, stripes, tooSmall(gib, stripes))
		}
	}
	require.Equal(t, []string{"transient.ConnsInbound"}, tooSmall(4, 8))
	require.Empty(t, tooSmall(16, 8))
	require.NotContains(t, tooSmall(64, maxStripes), "system.StreamsInbound")
}

// By default there are 16 stripes for each processor, unless a shared scope's limit has credit
// only with fewer.
func TestStripesByDefault(t *testing.T) {
	by := func(processors int, limits ConcreteLimitConfig) int {
		book, err := newLimitBook(NewFixedLimiter(limits), false, nil)
		require.NoError(t, err)
		return stripesFor(processors, book)
	}
	for _, row := range []struct {
		processors int
		limits     ConcreteLimitConfig
		want       int
	}{
		{1, InfiniteLimits, 16}, {2, InfiniteLimits, 32}, {3, InfiniteLimits, 64}, {16, InfiniteLimits, 256}, {500, InfiniteLimits, 256},
		{2, PartialLimitConfig{Transient: ResourceLimits{StreamsInbound: 511}}.Build(InfiniteLimits), 16},
		{2, PartialLimitConfig{Transient: ResourceLimits{StreamsInbound: 512}}.Build(InfiniteLimits), 32},
		{2, PartialLimitConfig{System: ResourceLimits{Memory: 128}}.Build(InfiniteLimits), 8},
		{2, PartialLimitConfig{ProtocolDefault: ResourceLimits{StreamsOutbound: 511}}.Build(InfiniteLimits), 16},
		{2, PartialLimitConfig{PeerDefault: ResourceLimits{StreamsOutbound: 511}}.Build(InfiniteLimits), 32}, // not shared
		{2, PartialLimitConfig{System: ResourceLimits{Memory: 127}}.Build(InfiniteLimits), 32},               // never had any
	} {
		require.Equal(t, row.want, by(row.processors, row.limits), "%d processors, %+v", row.processors, row.limits.limits.System)
	}
	m, err := New(NewFixedLimiter(InfiniteLimits))
	require.NoError(t, err)
	defer m.Close()
	require.Len(t, m.stripes, by(runtime.GOMAXPROCS(0), InfiniteLimits))
}
