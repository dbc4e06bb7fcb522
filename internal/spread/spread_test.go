package spread

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// scalesByName is every scale with the move that uses it.
var scalesByName = map[string]struct {
	scale *Scale
	slot  func(v int64) uint64
	move  func(s *Spread, old, now int64)
}{
	"counts": {CountScale, countSlot, (*Spread).MoveCount},
	"memory": {MemoryScale, memorySlot, (*Spread).MoveMemory},
}

// naiveBucket returns the bucket of a value by its definition: that of the first bound that the
// value does not exceed.
func naiveBucket(bounds []float64, v int64) int {
	if v <= 0 {
		return 0
	}
	for i, bound := range bounds {
		if v <= int64(bound) {
			return i + 1
		}
	}
	return len(bounds) + 1
}

// telling returns the values at which a slot is most likely to be wrong: those around each bound
// and each power of two, and small ones.
func telling(bounds []float64) []int64 {
	values := []int64{math.MaxInt64 - 1, math.MaxInt64}
	around := func(v int64) {
		for d := int64(-2); d <= 2; d++ {
			if v+d >= 0 {
				values = append(values, v+d)
			}
		}
	}
	for _, bound := range bounds {
		around(int64(bound))
	}
	for n := range 63 {
		around(1 << n)
	}
	for v := range int64(600) {
		values = append(values, v)
	}
	return values
}

func TestScaleBoundsAreThoseOfUpstreamsHistograms(t *testing.T) {
	require.Equal(t, []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 32, 64, 128, 256}, CountScale.bounds)
	require.Equal(t, []float64{1024, 4096, 32768, 1048576, 33554432, 268435456, 536870912,
		1073741824, 2147483648, 4294967296}, MemoryScale.bounds)
}

func TestTheBucketOfAValueIsThatOfTheFirstBoundItDoesNotExceed(t *testing.T) {
	for name, c := range scalesByName {
		t.Run(name, func(t *testing.T) {
			require.True(t, slices.IsSorted(c.scale.bounds))
			for _, v := range telling(c.scale.bounds) {
				if want, got := naiveBucket(c.scale.bounds, v), int(c.scale.bucket[c.slot(v)]); want != got {
					t.Errorf("%d is in bucket %d, want %d", v, got, want)
				}
			}
		})
	}
}

func TestSpreadMovesOneMemberBetweenAnyTwoValues(t *testing.T) {
	for name, c := range scalesByName {
		t.Run(name, func(t *testing.T) {
			values := telling(c.scale.bounds)
			for _, old := range values {
				for _, now := range values {
					var s, want Spread
					c.move(&s, 0, old)
					c.move(&s, old, now)
					want.slots[c.slot(0)]--
					want.slots[c.slot(now)]++
					want.Sum = now
					if s != want {
						t.Fatalf("0 to %d to %d: %v, want %v", old, now, s, want)
					}
				}
			}
		})
	}
}

func TestAddedSpreadsOfStripesAreTheSpreadOfAllMembers(t *testing.T) {
	const members, stripes = 200, 4
	for name, c := range scalesByName {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			var parts [stripes]Spread
			values := make([]int64, members)
			for range 20_000 {
				m := random.IntN(members)
				now := random.Int64N(1 << random.IntN(40))
				c.move(&parts[m%stripes], values[m], now)
				values[m] = now
			}
			var all Spread
			for i := range parts {
				all.Add(&parts[i])
			}
			checkCumulative(t, &all, c.scale, values)
			for m, v := range values {
				c.move(&parts[m%stripes], v, 0)
			}
			require.Equal(t, [stripes]Spread{}, parts, "nothing is left when no member holds anything")
		})
	}
}

// checkCumulative compares Cumulative and Sum with counts of the members one by one.
func checkCumulative(t *testing.T, s *Spread, on *Scale, values []int64) {
	t.Helper()
	var sum int64
	var members uint64
	upTo := make(map[float64]uint64)
	for _, v := range values {
		if v == 0 {
			continue
		}
		members++
		sum += v
		for _, bound := range on.bounds {
			if float64(v) <= bound {
				upTo[bound]++
			}
		}
	}
	gotMembers, gotUpTo := s.Cumulative(on)
	require.Equal(t, members, gotMembers)
	require.Equal(t, sum, s.Sum)
	require.Len(t, gotUpTo, len(on.bounds))
	for bound, n := range gotUpTo {
		require.Equal(t, upTo[bound], n, "members up to %v", bound)
	}
}

func TestTheSumOfAddedSpreadsIsAtMostTheGreatestInt64(t *testing.T) {
	for _, c := range []struct{ a, b, want int64 }{
		{0, 0, 0}, {1, 2, 3}, {math.MaxInt64, 0, math.MaxInt64}, {math.MaxInt64, 1, math.MaxInt64},
		{1, math.MaxInt64, math.MaxInt64}, {math.MaxInt64, math.MaxInt64, math.MaxInt64}, {math.MaxInt64 - 1, 1, math.MaxInt64},
	} {
		var s, o Spread
		s.MoveMemory(0, c.a)
		o.MoveMemory(0, c.b)
		s.Add(&o)
		require.Equal(t, c.want, s.Sum, "%d + %d", c.a, c.b)
	}
}

func TestSpreadMovesDoNotAllocate(t *testing.T) {
	var s Spread
	require.Zero(t, testing.AllocsPerRun(100, func() {
		s.MoveCount(0, 17)
		s.MoveMemory(0, 1<<20)
	}))
}

func BenchmarkSpreadMove(b *testing.B) {
	for name, c := range map[string]struct {
		move     func(s *Spread, old, now int64)
		from, to int64
	}{
		"count/near":  {(*Spread).MoveCount, 3, 4},
		"count/same":  {(*Spread).MoveCount, 40, 41},
		"memory/near": {(*Spread).MoveMemory, 0, 4096},
		"memory/same": {(*Spread).MoveMemory, 5 << 20, 6 << 20},
	} {
		b.Run(fmt.Sprintf("%s=%d..%d", name, c.from, c.to), func(b *testing.B) {
			var s Spread
			for i := 0; i < b.N; i += 2 {
				c.move(&s, c.from, c.to)
				c.move(&s, c.to, c.from)
			}
		})
	}
}
