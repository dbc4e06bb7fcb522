package pace

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/testseed"
)

func TestABucketHasABurstAndThenOneTokenForEachInterval(t *testing.T) {
	b, err := New(10, 3)
	require.NoError(t, err)
	require.Equal(t, int64(3), b.Burst())
	const ms = int64(time.Millisecond)
	fullAt := int64(0)
	for _, step := range []struct {
		at       int64
		has      bool
		left     int64 // before
		nextAt   int64
		takeToo  bool
		fullSoon int64 // after
	}{
		{at: 5 * ms, has: true, left: 3, nextAt: 5 * ms, takeToo: true, fullSoon: 105 * ms},
		{at: 5 * ms, has: true, left: 2, nextAt: 5 * ms, takeToo: true, fullSoon: 205 * ms},
		{at: 6 * ms, has: true, left: 1, nextAt: 6 * ms, takeToo: true, fullSoon: 305 * ms},
		{at: 6 * ms, has: false, left: 0, nextAt: 105 * ms, fullSoon: 305 * ms},
		{at: 105*ms - 1, has: false, left: 0, nextAt: 105 * ms, fullSoon: 305 * ms},
		{at: 105 * ms, has: true, left: 1, nextAt: 105 * ms, takeToo: true, fullSoon: 405 * ms},
		{at: 405 * ms, has: true, left: 3, nextAt: 405 * ms, takeToo: true, fullSoon: 505 * ms},
	} {
		require.Equal(t, step.has, b.Has(fullAt, step.at), "%+v", step)
		require.Equal(t, step.left, b.Left(fullAt, step.at), "%+v", step)
		require.Equal(t, step.nextAt, b.Next(fullAt, step.at), "%+v", step)
		if step.takeToo {
			fullAt = b.Take(fullAt, step.at)
		}
		require.Equal(t, step.fullSoon, fullAt, "%+v", step)
	}
}

func TestNoBucketHasNoLimit(t *testing.T) {
	var b Bucket
	require.False(t, b.Limits())
	require.True(t, b.Has(0, 0))
	require.True(t, b.Has(b.Take(0, 17), 17))
	require.True(t, b.Has(18, 17), "where a bucket was before")
	require.Equal(t, int64(math.MaxInt64), b.Left(0, 17))
	require.Equal(t, int64(math.MaxInt64), b.Burst())
	require.Equal(t, int64(17), b.Next(0, 17))
}

func TestAnEmptyBucketOwesNoMoreThanItHolds(t *testing.T) {
	b, err := New(1, 2)
	require.NoError(t, err)
	fullAt := int64(0)
	for range 5 {
		fullAt = b.Take(fullAt, 0)
	}
	require.Equal(t, 2*int64(time.Second), fullAt)
	// A state that a slower bucket has left behind is that of an empty bucket.
	require.Equal(t, 2*int64(time.Second), b.Fit(int64(time.Hour), 0))
	require.Equal(t, int64(time.Second), b.Next(int64(time.Hour), 0))
	require.Equal(t, int64(time.Second), b.Fit(int64(time.Second), 0))
}

// Over any time, no more than burst + rate × time come through, and whoever waits until Next
// is let through.
func TestRandomBucketsAdmitWhatTheirRateSaysAndAllOfIt(t *testing.T) {
	rng := rand.New(rand.NewPCG(testseed.Of(t), 0))
	for range 300 {
		perSecond := math.Exp(rng.Float64()*20 - 6)
		burst := 1 + rng.Int64N(20)
		b, err := New(min(perSecond, MostPerSecond), burst)
		if err != nil {
			continue
		}
		checkBucket(t, rng, b, min(perSecond, MostPerSecond), burst)
	}
}

func checkBucket(t *testing.T, rng *rand.Rand, b Bucket, perSecond float64, burst int64) {
	t.Helper()
	// The reference counts tokens as fractions, with the interval as it was rounded.
	interval := b.interval
	tokens, last := big.NewRat(burst, 1), int64(0)
	var times []int64
	fullAt, at := int64(0), int64(0)
	for range 200 {
		at += rng.Int64N(2 * interval)
		if rng.IntN(20) == 0 {
			at += burst * interval
		}
		tokens.Add(tokens, big.NewRat(at-last, interval))
		if tokens.Cmp(big.NewRat(burst, 1)) > 0 {
			tokens.SetInt64(burst)
		}
		last = at
		has := tokens.Cmp(big.NewRat(1, 1)) >= 0
		require.Equal(t, has, b.Has(fullAt, at))
		whole := new(big.Int).Quo(tokens.Num(), tokens.Denom())
		require.Equal(t, whole.Int64(), b.Left(fullAt, at))
		next := b.Next(fullAt, at)
		require.True(t, b.Has(fullAt, next))
		require.True(t, next == at || !b.Has(fullAt, next-1))
		if has {
			fullAt = b.Take(fullAt, at)
			tokens.Sub(tokens, big.NewRat(1, 1))
			times = append(times, at)
		}
	}
	for i := range times {
		for j := i; j < len(times); j++ {
			most := float64(burst) + perSecond*float64(times[j]-times[i])/float64(time.Second)
			if n := float64(j - i + 1); n > most*(1+1e-9) {
				t.Fatalf("%v in %v ns, expected at most %v", n, times[j]-times[i], most)
			}
		}
	}
}

func TestImpossibleBucketsAreErrorsThatNameTheField(t *testing.T) {
	for _, c := range []struct {
		perSecond float64
		burst     int64
		field     string
	}{
		{0, 1, "PerSecond"},
		{-1, 1, "PerSecond"},
		{math.NaN(), 1, "PerSecond"},
		{math.Inf(1), 1, "PerSecond"},
		{math.Inf(-1), 1, "PerSecond"},
		{1_000_001, 1, "PerSecond"},
		{1, 0, "Burst"},
		{1, -1, "Burst"},
		{1, math.MinInt64, "Burst"},
		{1, 86_401, "Burst"},
		{1, math.MaxInt64, "Burst"},
		{1e-300, 1, "Burst"},
	} {
		_, err := New(c.perSecond, c.burst)
		var fault *Fault
		require.ErrorAs(t, err, &fault, "%+v", c)
		require.Equal(t, c.field, fault.Field, "%+v", c)
	}
	for _, perSecond := range []float64{MostPerSecond, 1.0 / 86_400} {
		_, err := New(perSecond, 1)
		require.NoError(t, err)
	}
}

func TestAnIntervalIsThatOfTheRateOrLessThanANanosecondLonger(t *testing.T) {
	rng := rand.New(rand.NewPCG(testseed.Of(t), 0))
	rates := []float64{3, 7, 0.3, 600_000, 690_000, 999_999.1, 999_999.9, MostPerSecond, 1.0 / 86_400}
	for range 1000 {
		rates = append(rates, math.Exp(rng.Float64()*25-11))
	}
	for _, perSecond := range rates {
		exact := new(big.Rat).Quo(big.NewRat(int64(time.Second), 1), new(big.Rat).SetFloat64(perSecond))
		got := new(big.Rat).SetFloat64(Interval(perSecond))
		// A rate such as 0.1 is stored with an error of about 1e-16 of itself.
		least := new(big.Rat).Mul(exact, new(big.Rat).SetFloat64(1-2e-15))
		require.GreaterOrEqual(t, got.Cmp(least), 0, "%v a second: %v", perSecond, got)
		require.Negative(t, got.Cmp(least.Add(exact, big.NewRat(1, 1))), "%v a second: %v", perSecond, got)
		require.True(t, got.IsInt())
	}
}

func TestIntervalsOfExtremeRatesArePositive(t *testing.T) {
	require.Equal(t, 1.0, Interval(math.MaxFloat64))
	require.Equal(t, 1.0, Interval(3e9))
	require.True(t, math.IsInf(Interval(math.SmallestNonzeroFloat64), 1))
}

func TestARateForEachHourHasAWholeInterval(t *testing.T) {
	for perHour := 1; perHour <= 3600; perHour++ {
		exact := (int64(time.Hour) + int64(perHour) - 1) / int64(perHour)
		require.Equal(t, exact, int64(Interval(float64(perHour)/3600)), "%d an hour", perHour)
	}
}

func TestARateForEachMinuteHasAWholeInterval(t *testing.T) {
	for perMinute := 1; perMinute <= 1000; perMinute++ {
		b, err := New(float64(perMinute)/60, 1)
		require.NoError(t, err)
		exact := int64(time.Minute) / int64(perMinute)
		if int64(time.Minute)%int64(perMinute) != 0 {
			exact++
		}
		require.Equal(t, exact, b.interval, "%d a minute", perMinute)
	}
}
