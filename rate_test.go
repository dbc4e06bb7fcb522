package rcmgr

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

	xrate "github.com/libp2p/go-libp2p/x/rate"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

func mustRates(t testing.TB, cfg rateConfig) *subnets {
	t.Helper()
	r, err := newSubnets(subnetConfig{}, cfg)
	require.NoError(t, err)
	return r
}

// rateModel keeps a golang.org/x/time/rate Limiter for every subnet, for ever.
type rateModel struct {
	cfg     rateConfig
	buckets map[string]*rate.Limiter
}

func (m *rateModel) of(addr netip.Addr) (all []*rate.Limiter, prefixes []netip.Prefix) {
	f := familyOf(addr)
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
	for f := range numFamilies {
		for _, bits := range rng.Perm(f.bitLen() + 1)[:rng.IntN(4)] { // each length once
			cfg.perSubnet[f] = append(cfg.perSubnet[f], subnetRate{bits, limit()})
		}
		if addr := randomAddr(rng); familyOf(addr) == f {
			cfg.networks[f] = []networkRate{{netip.PrefixFrom(addr, rng.IntN(addr.BitLen()+1)).Masked(), limit()}}
		}
	}
	return cfg
}

func TestRatesDecideLikeTokenBuckets(t *testing.T) {
	rng := testRandom(t)
	for range 100 {
		cfg := randomRateConfig(rng)
		r, m := mustRates(t, cfg), &rateModel{cfg, map[string]*rate.Limiter{}}
		start := time.Now()
		now := start
		for step := range 500 {
			// Odd nanoseconds, so that no decision hangs on how a float is rounded.
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
				p.undo()
			}
		}
		bucketEntries(t, r)
		r.forget(int64(now.Add(time.Hour).Sub(start)))
		require.Zero(t, bucketEntries(t, r), "%+v", cfg)
	}
}

func TestConnRateDefaults(t *testing.T) {
	for _, c := range []struct {
		format, blocked string
		burst           int
		interval        time.Duration
	}{
		{"192.0.2.1", "192.0.2.1/32", 16, 5 * time.Second},
		{"2001:db8:1::#", "2001:db8:1::/56", 16, 5 * time.Second},
		{"2001:db8:2:#00::1", "2001:db8:2::/48", 80, 2 * time.Second},
	} {
		r := mustRates(t, defaultRateConfig())
		taken := func(at time.Duration) (n int) {
			for i := range 200 {
				_, blocked, _, ok := r.try(nthAddr(c.format, i), at)
				if !ok {
					require.Equal(t, c.blocked, blocked.String())
					return n
				}
				n++
			}
			return n
		}
		require.Equal(t, c.burst, taken(0), c.format)
		require.Zero(t, taken(c.interval-1), c.format)
		require.Equal(t, 1, taken(c.interval), c.format)
	}
	r := mustRates(t, defaultRateConfig())
	for _, loopback := range []string{"127.0.0.1", "127.8.9.10", "::1"} {
		for range 200 {
			addr := netip.MustParseAddr(loopback)
			p, _, _, ok := r.try(addr, 0)
			require.True(t, ok, loopback)
			require.Equal(t, gatePass{addr: addr, key: keyOf(addr)}, p, "loopback has no bucket, and so no lock")
		}
	}
}

func TestARefusalTakesNoToken(t *testing.T) {
	one := rateLimit{perSecond: 1, burst: 1}
	r := mustRates(t, rateConfig{perSubnet: [numFamilies][]subnetRate{ipv6: {{48, rateLimit{1, 2}}, {56, one}}}})
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
	cfg := defaultRateConfig()
	cfg.networks[ipv4] = []networkRate{{netip.MustParsePrefix("10.0.0.0/8"), rateLimit{0.2, 16}}}
	r := mustRates(t, cfg)
	for _, addr := range []string{"192.0.2.1", "2001:db8::1", "10.0.0.1"} {
		for i := range 1000 {
			p, _, _, ok := r.try(netip.MustParseAddr(addr), time.Duration(i)*time.Millisecond)
			require.True(t, ok, "%s %d", addr, i)
			p.undo()
		}
	}
	gatePass{}.undo() // nothing to give back
}

func TestNoAddressNeedsNoToken(t *testing.T) {
	none := rateLimit{perSecond: 1, burst: 0}
	r := mustRates(t, rateConfig{perSubnet: [numFamilies][]subnetRate{{{0, none}}, {{0, none}}}})
	caller := callerRates{&xrate.Limiter{GlobalLimit: xrate.Limit{RPS: 0.001, Burst: 1}}}
	for range 10 {
		_, _, _, ok := r.try(netip.Addr{}, 0)
		require.True(t, ok)
		require.True(t, caller.allows(netip.Addr{}))
	}
}

func TestACallersOwnLimiterIsUsed(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	caller := callerRates{&xrate.Limiter{NetworkPrefixLimits: []xrate.PrefixLimit{
		{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Limit: xrate.Limit{RPS: 0.001, Burst: 2}},
	}}}
	g, err := newGate(gateConfig{}, &caller, false)
	require.NoError(t, err)
	for want := 2; want >= 0; want-- {
		var pass gatePass
		why := withGates(g).enterGates(addr, dimConnsIn, &pass)
		require.Equal(t, want > 0, why == nil)
		if why != nil {
			require.Equal(t, "rate:192.0.2.1/32", why.Scope())
		}
		pass.undo() // cannot give it back
	}
	g, err = newGate(gateConfig{rate: defaultRateConfig()}, &callerRates{}, false)
	require.NoError(t, err)
	for range 100 {
		why := withGates(g).enterGates(addr, dimConnsIn, &gatePass{})
		require.Nil(t, why, "no limiter limits nothing")
	}
}

func TestSourceRatesLetHalfASubnetBeginUnverified(t *testing.T) {
	cfg := defaultSubnetConfig()
	cfg.networks[ipv4] = append(cfg.networks[ipv4][:1:1],
		NetworkPrefixLimit{netip.MustParsePrefix("10.0.0.0/8"), 20},
		NetworkPrefixLimit{netip.MustParsePrefix("10.1.0.0/16"), 1})
	cfg.perSubnet[ipv4] = append(cfg.perSubnet[ipv4], ConnLimitPerSubnet{32, 100}) // the least holds
	r := mustRates(t, cfg.sourceRates())
	unverified := func(addr string, after time.Duration) (n int) {
		for range 100 {
			if _, _, _, ok := r.try(netip.MustParseAddr(addr), after); ok {
				n++
			}
		}
		return n
	}
	for addr, want := range map[string]int{
		"192.0.2.1": 4, "2001:db8::1": 4, "10.2.0.1": 10, "10.1.0.1": 0, "127.0.0.1": 100, "::1": 100,
	} {
		require.Equal(t, want, unverified(addr, 0), addr)
	}
	p, _, _, _ := r.try(netip.MustParseAddr("127.0.0.1"), 0)
	require.Nil(t, p.tokens, "half of no limit is no limit: no bucket, and so no lock")
	require.Equal(t, 0, unverified("192.0.2.1", 10*time.Second-1))
	require.Equal(t, 1, unverified("192.0.2.1", 10*time.Second))
}

func TestBadRatesAreErrorsThatNameThem(t *testing.T) {
	perSubnet := func(bits int, perSecond float64, burst int) (cfg rateConfig) {
		cfg.perSubnet[ipv6] = []subnetRate{{bits, rateLimit{perSecond, burst}}}
		return cfg
	}
	badNetwork := rateConfig{networks: [numFamilies][]networkRate{ipv4: {{network: netip.MustParsePrefix("::/0")}}}}
	for want, cfg := range map[string]rateConfig{
		"connect rate: subnets: ipv6[0]: PrefixLength is 129, expected 0 to 128":                              perSubnet(129, 0, 1),
		"connect rate: subnets: ipv6[0]: rate is -1 tokens per second, expected a finite number, 0 or more":   perSubnet(1, -1, 1),
		"connect rate: subnets: ipv6[0]: rate is NaN tokens per second, expected a finite number, 0 or more":  perSubnet(1, math.NaN(), 1),
		"connect rate: subnets: ipv6[0]: rate is +Inf tokens per second, expected a finite number, 0 or more": perSubnet(1, math.Inf(1), 1),
		"connect rate: subnets: ipv6[0]: burst is -1 tokens, expected 0 or more":                              perSubnet(1, 1, -1),
		"connect rate: networks: ipv4[0]: expected an ipv4 prefix as Network, got ::/0":                       badNetwork,
	} {
		_, err := newSubnets(subnetConfig{}, cfg)
		require.EqualError(t, err, want)
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
		b, err := c.l.bucket()
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
	t.Run("when nobody connects any more", func(t *testing.T) {
		r := mustRates(t, defaultRateConfig())
		for i := range 100_000 {
			r.try(addr(i), 0)
		}
		r.forget(int64(5*time.Second - 1))
		require.Equal(t, 100_000, bucketEntries(t, r))
		r.forget(int64(5 * time.Second))
		require.Zero(t, bucketEntries(t, r))
		requireNoRecords(t, r)
	})
	t.Run("as others connect", func(t *testing.T) {
		r := mustRates(t, defaultRateConfig())
		const perSecond = 5000
		for i := range 20 * perSecond {
			r.try(addr(i), time.Duration(i)*time.Second/perSecond)
		}
		require.Less(t, bucketEntries(t, r), 6*perSecond, "five seconds' worth and a little")
	})
	t.Run("and not before", func(t *testing.T) {
		r := mustRates(t, defaultRateConfig())
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
	t.Run("refusals keep none alive", func(t *testing.T) {
		r := mustRates(t, rateConfig{perSubnet: [numFamilies][]subnetRate{ipv4: {{32, rateLimit{1, 9}}, {8, rateLimit{1, 1}}}}})
		for i := range 100_000 {
			r.try(addr(i), 0)
		}
		require.Equal(t, 2, bucketEntries(t, r))
	})
}

func TestCallersWithAnEarlierTimeGetTheirTokens(t *testing.T) {
	cfg := rateConfig{networks: [numFamilies][]networkRate{ipv4: {{netip.MustParsePrefix("10.0.0.0/8"), rateLimit{0.2, 16}}}}}
	cfg.perSubnet = defaultRateConfig().perSubnet
	r := mustRates(t, cfg)
	for _, addr := range []string{"192.0.2.1", "10.0.0.1"} {
		for i := range 16 { // each read the clock before the one that was served first
			_, _, _, ok := r.try(netip.MustParseAddr(addr), time.Second-time.Duration(i)*time.Microsecond)
			require.True(t, ok, "%s %d", addr, i)
		}
	}
}

func TestRatesAreExactUnderConcurrency(t *testing.T) {
	cfg := defaultRateConfig()
	cfg.networks[ipv4] = []networkRate{{netip.MustParsePrefix("10.0.0.0/8"), rateLimit{0.2, 16}}}
	for _, s := range []string{"192.0.2.1", "2001:db8::1", "10.0.0.1"} {
		r := mustRates(t, cfg)
		r.now = func() int64 { return 0 }
		addr := netip.MustParseAddr(s)
		var kept, refused atomic.Int64
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 500 {
					// At most eight tokens are out at a time, and eight are kept.
					p, _, _, ok := r.tryNow(addr)
					switch {
					case !ok:
						refused.Add(1)
					case g == 0 && i%60 == 0 && kept.Load() < 8:
						kept.Add(1)
					default:
						p.undo()
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
				r := mustRates(b, defaultRateConfig())
				at := int64(0)
				r.now = func() int64 { return at }
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					at = int64(i) * int64(time.Second) / int64(perSecond)
					r.enter(addr(i), dimConnsIn, &gatePass{})
				}
			})
		}
	}
	b.Run("refused", func(b *testing.B) {
		r := mustRates(b, defaultRateConfig())
		r.now = func() int64 { return 0 }
		addr := netip.MustParseAddr("192.0.2.1")
		for range 2 * connsPerHost {
			r.enter(addr, dimConnsIn, &gatePass{})
		}
		b.ReportAllocs()
		for b.Loop() {
			r.enter(addr, dimConnsIn, &gatePass{})
		}
	})
}

// A token that was taken from a bucket that has been full since is not given back
// to who came later, or to another subnet.
func TestATokenIsNotReturnedToABucketThatWasForgotten(t *testing.T) {
	cfg := rateConfig{perSubnet: [numFamilies][]subnetRate{{{32, rateLimit{perSecond: 1, burst: 2}}}}}
	r := mustRates(t, cfg)
	first, second := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	pass, _, _, ok := r.try(first, 0)
	require.True(t, ok)
	r.forget(int64(time.Minute))
	for range 2 {
		_, _, _, ok := r.try(second, time.Minute)
		require.True(t, ok)
	}
	pass.undo()
	require.Equal(t, 1, bucketEntries(t, r))
	_, _, _, ok = r.try(second, time.Minute)
	require.False(t, ok)
}

// Where one level limits connections and another how fast they come, each keeps what
// it limits, and no more.
func TestALevelWithoutARateHasNoBucket(t *testing.T) {
	s, err := newSubnets(
		subnetConfig{perSubnet: [numFamilies][]ConnLimitPerSubnet{ipv4: {{32, 8}}}},
		rateConfig{perSubnet: [numFamilies][]subnetRate{ipv4: {{24, rateLimit{1, 5}}}}})
	require.NoError(t, err)
	for range 3 {
		_, _, _, ok := s.try(netip.MustParseAddr("192.0.2.1"), time.Second)
		require.True(t, ok)
	}
	require.Equal(t, 1, bucketEntries(t, s))
	require.Equal(t, 1, countEntries(t, s))
}
