package subnets

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"

	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// Limits as tests write them. math.MaxInt connections are no limit.
type (
	subnetLimit  struct{ prefixLength, conns int }
	networkLimit struct {
		network netip.Prefix
		conns   int
	}
	subnetConfig struct {
		perSubnet [ip.Families][]subnetLimit
		networks  [ip.Families][]networkLimit
	}
	rateLimit struct {
		perSecond float64
		burst     int
	}
	subnetRate struct {
		prefixLength int
		rateLimit
	}
	networkRate struct {
		network netip.Prefix
		rateLimit
	}
	rateConfig struct {
		perSubnet [ip.Families][]subnetRate
		networks  [ip.Families][]networkRate
	}
)

// connsPerHost is the number of connections that one address may have in usualSubnets.
const connsPerHost = 8

var loopback = [ip.Families]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// usualSubnets returns limits on connections like the defaults of a manager.
func usualSubnets() (cfg subnetConfig) {
	cfg.perSubnet = [ip.Families][]subnetLimit{{{32, connsPerHost}}, {{56, connsPerHost}, {48, 8 * connsPerHost}}}
	for f, n := range loopback {
		cfg.networks[f] = []networkLimit{{n, math.MaxInt}}
	}
	return cfg
}

// usualRates returns limits on rates like the defaults of a manager.
func usualRates() (cfg rateConfig) {
	host, site := rateLimit{0.2, 2 * connsPerHost}, rateLimit{0.5, 10 * connsPerHost}
	cfg.perSubnet = [ip.Families][]subnetRate{{{32, host}}, {{56, host}, {48, site}}}
	for f, n := range loopback {
		cfg.networks[f] = []networkRate{{network: n}}
	}
	return cfg
}

// refused is the error of a refusal in tests.
type refused struct{ Refusal }

func (r *refused) Error() string {
	return fmt.Sprint([...]string{Conns: "subnet", Rate: "rate"}[r.Gate], " ", r.Subnet)
}

// testConfig returns settings with which refusals are errors of type *refused, and are noted.
func testConfig() Config {
	return Config{Error: func(r Refusal) error { return &refused{r} }, Noting: true}
}

// made returns a Subnets with these limits and the settings of testConfig.
func made(t testing.TB, conns subnetConfig, rates rateConfig) *Subnets {
	t.Helper()
	var b Builder
	limit := func(n int) int64 {
		if n == math.MaxInt {
			return NoLimit
		}
		return int64(n)
	}
	bucket := func(l rateLimit) Bucket {
		b, err := NewBucket(l.perSecond, l.burst)
		require.NoError(t, err)
		return b
	}
	for f := range ip.Families {
		for _, l := range conns.perSubnet[f] {
			require.NoError(t, b.LimitConns(f, l.prefixLength, limit(l.conns)))
		}
		for _, l := range conns.networks[f] {
			require.NoError(t, b.LimitNetworkConns(f, l.network, limit(l.conns)))
		}
		for _, l := range rates.perSubnet[f] {
			require.NoError(t, b.LimitRate(f, l.prefixLength, bucket(l.rateLimit)))
		}
		for _, l := range rates.networks[f] {
			require.NoError(t, b.LimitNetworkRate(f, l.network, bucket(l.rateLimit)))
		}
	}
	return b.New(testConfig())
}

func mustSubnets(t testing.TB, cfg subnetConfig) *Subnets {
	t.Helper()
	return made(t, cfg, rateConfig{})
}

func mustRates(t testing.TB, cfg rateConfig) *Subnets {
	t.Helper()
	return made(t, subnetConfig{}, cfg)
}

// try enters an address at a time, which is since the Subnets was made. If it is refused, try
// returns the subnet that refused, and its limit.
func (s *Subnets) try(addr netip.Addr, at time.Duration) (p Pass, blocked netip.Prefix, limit int, ok bool) {
	s.now = func() int64 { return int64(at) }
	return s.tryNow(addr)
}

// tryNow is try at the time that s.now returns.
func (s *Subnets) tryNow(addr netip.Addr) (p Pass, blocked netip.Prefix, limit int, ok bool) {
	why, ok := s.Enter(addr, Inbound, &p)
	if !ok {
		r := why.(*refused)
		blocked, limit = r.Subnet, int(r.Limit)
	}
	return p, blocked, limit, ok
}

// add is tryNow without the Pass.
func (s *Subnets) add(addr netip.Addr) (blocked netip.Prefix, limit int, ok bool) {
	_, blocked, limit, ok = s.tryNow(addr)
	return blocked, limit, ok
}

// countEntries returns the number of subnets that have connections, on all levels. It checks that
// the records are consistent. No other goroutine may use s meanwhile.
func countEntries(t testing.TB, s *Subnets) int {
	t.Helper()
	require.NoError(t, s.Check())
	n, _ := s.InUse()
	return n
}

// bucketEntries returns the number of buckets that are kept, and otherwise is like countEntries.
func bucketEntries(t testing.TB, s *Subnets) int {
	t.Helper()
	require.NoError(t, s.Check())
	_, n := s.InUse()
	return n
}

// requireNoRecords checks that no subnet has a record, and that all tables have shrunk.
func requireNoRecords(t testing.TB, s *Subnets) {
	t.Helper()
	for i := range s.all() {
		require.Zero(t, s.all()[i].mu.table.n)
		require.LessOrEqual(t, len(s.all()[i].mu.table.slots), leastSlots)
	}
}

// randomAddr returns one of a few addresses, so that many share their subnets.
func randomAddr(rng *rand.Rand) netip.Addr {
	bit := func() byte { return byte(rng.IntN(2)) }
	if rng.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10 + bit(), bit(), bit(), bit()})
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 5: bit(), 6: bit(), 7: bit(), 15: bit()})
}
