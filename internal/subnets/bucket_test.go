package subnets

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/testseed"
)

// rateModel has a golang.org/x/time/rate Limiter for every subnet, and removes none.
type rateModel struct {
	cfg     rateConfig
	buckets map[string]*rate.Limiter
}

func (m *rateModel) of(addr netip.Addr) (all []*rate.Limiter, prefixes []netip.Prefix) {
	f := ip.FamilyOf(addr)
	bucket := func(name string, p netip.Prefix, l rateLimit) {
		if m.buckets[name] == nil {
			m.buckets[name] = rate.NewLimiter(rate.Limit(l.perSecond), l.burst)
			if l.perSecond == 0 {
				m.buckets[name].SetLimit(rate.Inf)
			}
		}
		all, prefixes = append(all, m.buckets[name]), append(prefixes, p)
	}
	best := -1
	for i, n := range m.cfg.networks[f] {
		if n.network.Contains(addr) && (best < 0 || n.network.Bits() > m.cfg.networks[f][best].network.Bits()) {
			best = i
		}
	}
	if best >= 0 {
		n := m.cfg.networks[f][best]
		bucket("network "+n.network.String(), n.network, n.rateLimit)
		return all, prefixes
	}
	for i, l := range slices.SortedFunc(slices.Values(m.cfg.perSubnet[f]), func(a, b subnetRate) int {
		return cmp.Compare(b.prefixLength, a.prefixLength)
	}) {
		p, _ := addr.Prefix(l.prefixLength)
		bucket(fmt.Sprint("level ", i, p), p, l.rateLimit)
	}
	return all, prefixes
}

func (m *rateModel) take(addr netip.Addr, now time.Time) (netip.Prefix, bool) {
	all, prefixes := m.of(addr)
	for i, b := range all {
		if b.Limit() != rate.Inf && b.TokensAt(now) < 1 {
			return prefixes[i], false
		}
	}
	for _, b := range all {
		b.AllowN(now, 1)
	}
	return netip.Prefix{}, true
}

func (m *rateModel) giveBack(addr netip.Addr, now time.Time) {
	all, _ := m.of(addr)
	for _, b := range all {
		b.AllowN(now, -1)
	}
}

func randomRateConfig(rng *rand.Rand) (cfg rateConfig) {
	limit := func() rateLimit {
		return rateLimit{[]float64{0, 0.1, 0.2, 0.5, 1, 2, 10}[rng.IntN(7)], rng.IntN(8)}
	}
	for f := range ip.Families {
		for _, bits := range rng.Perm(f.BitLen() + 1)[:rng.IntN(4)] { // each length once
			cfg.perSubnet[f] = append(cfg.perSubnet[f], subnetRate{bits, limit()})
		}
		if addr := randomAddr(rng); ip.FamilyOf(addr) == f {
			cfg.networks[f] = []networkRate{{netip.PrefixFrom(addr, rng.IntN(addr.BitLen()+1)).Masked(), limit()}}
		}
	}
	return cfg
}

func TestRatesDecideLikeTokenBuckets(t *testing.T) {
	rng := testseed.Random(t)
	for range 100 {
		cfg := randomRateConfig(rng)
		r, m := mustRates(t, cfg), &rateModel{cfg, map[string]*rate.Limiter{}}
		start := time.Now()
		now := start
		for step := range 500 {
			// Times that are not round, so that no decision depends on how a float is rounded.
			now = now.Add(time.Duration(rng.Int64N(int64(time.Second))))
			if rng.IntN(50) == 0 {
				now = now.Add(time.Duration(rng.Int64N(int64(time.Minute))))
			}
			addr := randomAddr(rng)
			wantBlocked, want := m.take(addr, now)
			p, blocked, _, ok := r.try(addr, now.Sub(start))
			require.Equal(t, []any{wantBlocked, want}, []any{blocked, ok}, "step %d: %s of %+v", step, addr, cfg)
			if ok && rng.IntN(3) == 0 {
				now = now.Add(time.Duration(rng.Int64N(int64(time.Second))))
				m.giveBack(addr, now)
				p.Undo()
			}
		}
		bucketEntries(t, r)
		r.forget(int64(now.Add(time.Hour).Sub(start)))
		require.Zero(t, bucketEntries(t, r), "%+v", cfg)
	}
}

func TestARefusalTakesNoToken(t *testing.T) {
	one := rateLimit{perSecond: 1, burst: 1}
	r := mustRates(t, rateConfig{perSubnet: [ip.Families][]subnetRate{ip.V6: {{48, rateLimit{1, 2}}, {56, one}}}})
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:0:100::1")
	_, _, _, ok := r.try(a, 0)
	require.True(t, ok)
	for range 10 {
		_, blocked, _, ok := r.try(a, 0)
		require.False(t, ok)
		require.Equal(t, "2001:db8::/56", blocked.String())
	}
	_, _, _, ok = r.try(b, 0)
	require.True(t, ok, "the /48's second token must be left for the other /56")
}

func TestTokensThatAreGivenBackCanBeTakenAgain(t *testing.T) {
	cfg := usualRates()
	cfg.networks[ip.V4] = []networkRate{{netip.MustParsePrefix("10.0.0.0/8"), rateLimit{0.2, 16}}}
	r := mustRates(t, cfg)
	for _, addr := range []string{"192.0.2.1", "2001:db8::1", "10.0.0.1"} {
		for i := range 1000 {
			p, _, _, ok := r.try(netip.MustParseAddr(addr), time.Duration(i)*time.Millisecond)
			require.True(t, ok, "%s %d", addr, i)
			p.Undo()
		}
	}
	Pass{}.Undo() // nothing to give back
}

func TestNoAddressNeedsNoToken(t *testing.T) {
	none := rateLimit{perSecond: 1, burst: 0}
	r := mustRates(t, rateConfig{perSubnet: [ip.Families][]subnetRate{{{0, none}}, {{0, none}}}})
	for range 10 {
		_, _, _, ok := r.try(netip.Addr{}, 0)
		require.True(t, ok)
	}
}

// In a time t, no more than burst + rate × t are admitted, although times are whole nanoseconds.
func TestABucketIsNeverFasterThanItsRate(t *testing.T) {
	for _, perSecond := range []float64{690_000, 600_000, 999_999.1, 3} {
		const burst = 2
		b, err := NewBucket(perSecond, burst)
		require.NoError(t, err)
		taken := 0
		for fullAt, at := int64(0), int64(0); at <= int64(time.Second); at = fullAt + b.interval - b.capacity {
			var ok bool
			fullAt, ok = b.take(fullAt, at)
			require.True(t, ok)
			taken++
		}
		require.LessOrEqual(t, float64(taken), burst+perSecond, "%v a second", perSecond)
	}
	b, err := NewBucket(3, 1)
	require.NoError(t, err)
	require.EqualValues(t, 333_333_334, b.interval)
	for _, perSecond := range []float64{0.1, 0.2, 0.3 / 3, 1.0 / 60, 7.0 / 3500} {
		b, err := NewBucket(perSecond, 1)
		require.NoError(t, err)
		require.Zero(t, b.interval%int64(100*time.Millisecond), "%v a second: floating-point noise does not make it slower", perSecond)
	}
}

func TestBucketsOfExtremeRatesDoNotOverflow(t *testing.T) {
	for _, c := range []struct {
		l    rateLimit
		want int // of 100 at once
	}{
		{rateLimit{math.SmallestNonzeroFloat64, 3}, 3},
		{rateLimit{1e-300, 99}, 99},
		{rateLimit{math.MaxFloat64, 3}, 3},
		{rateLimit{1e-9, 1<<30 - 1}, 100},
		{rateLimit{0.1, math.MaxInt / 2}, 100},
	} {
		b, err := NewBucket(c.l.perSecond, c.l.burst)
		require.NoError(t, err)
		taken, full := 0, int64(0)
		for range 100 {
			next, ok := b.take(full, 0)
			require.GreaterOrEqual(t, next, full)
			if ok {
				taken, full = taken+1, next
			}
		}
		require.Equal(t, c.want, taken, "%+v", c.l)
	}
}

func TestBucketsGoWhenTheyAreFullAgain(t *testing.T) {
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}) }
	t.Run("when no connections come any more", func(t *testing.T) {
		r := mustRates(t, usualRates())
		for i := range 100_000 {
			r.try(addr(i), 0)
		}
		r.forget(int64(5*time.Second - 1))
		require.Equal(t, 100_000, bucketEntries(t, r))
		r.forget(int64(5 * time.Second))
		require.Zero(t, bucketEntries(t, r))
		requireNoRecords(t, r)
	})
	t.Run("while other subnets connect", func(t *testing.T) {
		r := mustRates(t, usualRates())
		const perSecond = 5000
		for i := range 20 * perSecond {
			r.try(addr(i), time.Duration(i)*time.Second/perSecond)
		}
		require.Less(t, bucketEntries(t, r), 6*perSecond, "no more than the buckets of five seconds, and a few")
	})
	t.Run("but not before they are full", func(t *testing.T) {
		r := mustRates(t, usualRates())
		for range 16 {
			r.try(addr(0), 0)
		}
		for s := 1; s < 80; s++ {
			r.forget(int64(time.Duration(s) * time.Second))
			require.Equal(t, 1, bucketEntries(t, r), "after %d s", s)
		}
		r.forget(int64(85 * time.Second))
		require.Zero(t, bucketEntries(t, r))
	})
	t.Run("and refused addresses get none", func(t *testing.T) {
		r := mustRates(t, rateConfig{perSubnet: [ip.Families][]subnetRate{ip.V4: {{32, rateLimit{1, 9}}, {8, rateLimit{1, 1}}}}})
		for i := range 100_000 {
			r.try(addr(i), 0)
		}
		require.Equal(t, 2, bucketEntries(t, r))
	})
}

func TestCallersWithAnEarlierTimeGetTheirTokens(t *testing.T) {
	cfg := rateConfig{networks: [ip.Families][]networkRate{ip.V4: {{netip.MustParsePrefix("10.0.0.0/8"), rateLimit{0.2, 16}}}}}
	cfg.perSubnet = usualRates().perSubnet
	r := mustRates(t, cfg)
	for _, addr := range []string{"192.0.2.1", "10.0.0.1"} {
		for i := range 16 { // each caller has read the clock before those that came before it
			_, _, _, ok := r.try(netip.MustParseAddr(addr), time.Second-time.Duration(i)*time.Microsecond)
			require.True(t, ok, "%s %d", addr, i)
		}
	}
}

func TestRatesAreExactUnderConcurrency(t *testing.T) {
	cfg := usualRates()
	cfg.networks[ip.V4] = []networkRate{{netip.MustParsePrefix("10.0.0.0/8"), rateLimit{0.2, 16}}}
	for _, s := range []string{"192.0.2.1", "2001:db8::1", "10.0.0.1"} {
		r := mustRates(t, cfg)
		r.now = func() int64 { return 0 }
		addr := netip.MustParseAddr(s)
		var kept, refused atomic.Int64
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 500 {
					// At most eight tokens are taken at a time, and at most eight are kept.
					p, _, _, ok := r.tryNow(addr)
					switch {
					case !ok:
						refused.Add(1)
					case g == 0 && i%60 == 0 && kept.Load() < 8:
						kept.Add(1)
					default:
						p.Undo()
					}
				}
			})
		}
		wg.Wait()
		require.Zero(t, refused.Load(), s)
		left := 0
		for range 32 {
			if _, _, _, ok := r.try(addr, 0); ok {
				left++
			}
		}
		require.EqualValues(t, 16-kept.Load(), left, s)
	}
}

func BenchmarkRates(b *testing.B) {
	for name, addr := range map[string]func(int) netip.Addr{
		"ipv4": func(i int) netip.Addr {
			return netip.AddrFrom4([4]byte{byte(i>>24) + 1, byte(i >> 16), byte(i >> 8), byte(i)})
		},
		"ipv6": func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i), 1, 15: 1})
		},
	} {
		for _, perSecond := range []int{1000, 100_000} {
			b.Run(fmt.Sprintf("take/%s/addresses-per-second=%d", name, perSecond), func(b *testing.B) {
				r := mustRates(b, usualRates())
				at := int64(0)
				r.now = func() int64 { return at }
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					at = int64(i) * int64(time.Second) / int64(perSecond)
					r.Enter(addr(i), Inbound, &Pass{})
				}
			})
		}
	}
	b.Run("refused", func(b *testing.B) {
		r := mustRates(b, usualRates())
		r.now = func() int64 { return 0 }
		addr := netip.MustParseAddr("192.0.2.1")
		for range 2 * connsPerHost {
			r.Enter(addr, Inbound, &Pass{})
		}
		b.ReportAllocs()
		for b.Loop() {
			r.Enter(addr, Inbound, &Pass{})
		}
	})
}

// A token of a bucket that has been full since the token was taken is given back neither to the
// subnet's later bucket nor to another subnet.
func TestATokenIsNotReturnedToABucketThatWasForgotten(t *testing.T) {
	cfg := rateConfig{perSubnet: [ip.Families][]subnetRate{{{32, rateLimit{perSecond: 1, burst: 2}}}}}
	r := mustRates(t, cfg)
	first, second := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	pass, _, _, ok := r.try(first, 0)
	require.True(t, ok)
	r.forget(int64(time.Minute))
	for range 2 {
		_, _, _, ok := r.try(second, time.Minute)
		require.True(t, ok)
	}
	pass.Undo()
	require.Equal(t, 1, bucketEntries(t, r))
	_, _, _, ok = r.try(second, time.Minute)
	require.False(t, ok)
}

// If one level limits connections and another one limits rates, the records of each have only
// what their level limits.
func TestALevelWithoutARateHasNoBucket(t *testing.T) {
	s := made(t,
		subnetConfig{perSubnet: [ip.Families][]subnetLimit{ip.V4: {{32, 8}}}},
		rateConfig{perSubnet: [ip.Families][]subnetRate{ip.V4: {{24, rateLimit{1, 5}}}}})
	for range 3 {
		_, _, _, ok := s.try(netip.MustParseAddr("192.0.2.1"), time.Second)
		require.True(t, ok)
	}
	require.Equal(t, 1, bucketEntries(t, s))
	require.Equal(t, 1, countEntries(t, s))
}
