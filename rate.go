package rcmgr

// How fast one subnet may connect: token buckets, over the same division of the
// address space as the connections per subnet. The same buckets tell when the
// source addresses of a subnet must be verified.
//
// A bucket is one number, the time at which it will be full again: it lacks one
// token for every interval until then. That is golang.org/x/time/rate's bucket
// exactly (the tests compare them), in whole nanoseconds and a tenth of the
// space; it needs no lock of its own, forgets itself when its time has come,
// and gives a token back at any time, where a reservation there can be
// cancelled only before its time has come, which for a connection is at once.

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"time"

	xrate "github.com/libp2p/go-libp2p/x/rate"
)

// callerRates is a limiter of go-libp2p's x/rate. It goes by its own clock and
// does not tell which of its buckets was empty; a token that was taken from it
// cannot be given back. The zero value limits nothing.
type callerRates struct{ limiter *xrate.Limiter }

// limits tells whether there is any limit. c may be nil.
func (c *callerRates) set() bool { return c != nil && c.limiter != nil }

// allows takes a token for an address, if there is a limit on it.
func (c *callerRates) allows(addr netip.Addr) bool {
	return !c.set() || !addr.IsValid() || c.limiter.Allow(addr)
}

// rateLimit describes a bucket: it starts full, with burst tokens, and gets
// perSecond new ones a second. perSecond 0 is no limit, burst 0 admits nothing.
type rateLimit struct {
	perSecond float64
	burst     int
}

// subnetRate is the limit of every subnet of one size.
type subnetRate struct {
	prefixLength int
	rateLimit
}

// networkRate is the limit of one network, in place of every subnetRate.
type networkRate struct {
	network netip.Prefix
	rateLimit
}

// rateConfig is what buckets are made from, by family.
type rateConfig struct {
	perSubnet [numFamilies][]subnetRate
	networks  [numFamilies][]networkRate
}

// defaultRateConfig lets a subnet connect twice as often as it may be connected
// before it has to wait, and then once in five seconds (a site: in two).
// Loopback is free.
func defaultRateConfig() rateConfig {
	host := rateLimit{perSecond: 0.2, burst: 2 * connsPerHost}
	site := rateLimit{perSecond: 0.5, burst: 10 * connsPerHost}
	return rateConfig{
		perSubnet: [numFamilies][]subnetRate{
			ipv4: {{32, host}},
			ipv6: {{56, host}, {48, site}},
		},
		networks: [numFamilies][]networkRate{
			ipv4: {{network: netip.MustParsePrefix("127.0.0.0/8")}},
			ipv6: {{network: netip.MustParsePrefix("::1/128")}},
		},
	}
}

// describe says the limits in short, as "ipv4/32: 16 and 0.2/s".
func (cfg *rateConfig) describe() (all []string) {
	for f := range numFamilies {
		for _, l := range cfg.perSubnet[f] {
			all = append(all, fmt.Sprintf("%s/%d: %s", f, l.prefixLength, l.rateLimit))
		}
		for _, l := range cfg.networks[f] {
			all = append(all, fmt.Sprintf("%s: %s", l.network, l.rateLimit))
		}
	}
	return all
}

func (l rateLimit) String() string {
	if b, err := l.bucket(); err == nil && b.unlimited() {
		return "unlimited"
	}
	return fmt.Sprintf("%d and %g/s", l.burst, l.perSecond)
}

// each hands every entry to the function of its list. An error names the place
// in the lists.
func (cfg *rateConfig) each(
	perSubnet func(family, int, bucketLimit) error,
	network func(family, netip.Prefix, bucketLimit) error,
) error {
	for f := range numFamilies {
		for i, l := range cfg.perSubnet[f] {
			b, err := l.bucket()
			if err = cmp.Or(err, f.checkPrefixLength(l.prefixLength)); err == nil {
				err = perSubnet(f, l.prefixLength, b)
			}
			if err != nil {
				return fmt.Errorf("connect rate: subnets: %s[%d]: %w", f, i, err)
			}
		}
		for i, l := range cfg.networks[f] {
			b, err := l.bucket()
			if err == nil {
				err = network(f, l.network, b)
			}
			if err != nil {
				return fmt.Errorf("connect rate: networks: %s[%d]: %w", f, i, err)
			}
		}
	}
	return nil
}

// verifyEvery is how often a subnet may begin an unverified handshake once it
// has used up its burst: a handshake with a spoofed source holds a place for
// about 5 seconds, so at this rate it fills half a place.
const verifyEvery = 10 * time.Second

// sourceRates gives the buckets that tell when a subnet's source addresses must
// be verified: when they are empty. They let half of the connections that the
// subnet may have begin without, so that spoofed ones cannot fill it.
func (cfg *subnetConfig) sourceRates() (rates rateConfig) {
	half := func(connCount int) rateLimit {
		burst := connCount
		if connCount != math.MaxInt { // half of no limit is no limit
			burst /= 2
		}
		return rateLimit{perSecond: 1 / verifyEvery.Seconds(), burst: burst}
	}
	for f := range numFamilies {
		least := make(map[int]int)
		for _, l := range cfg.perSubnet[f] {
			if n, ok := least[l.PrefixLength]; !ok || l.ConnCount < n {
				least[l.PrefixLength] = l.ConnCount
			}
		}
		for bits, n := range least {
			rates.perSubnet[f] = append(rates.perSubnet[f], subnetRate{bits, half(n)})
		}
		for _, l := range cfg.networks[f] {
			rates.networks[f] = append(rates.networks[f], networkRate{l.Network, half(l.ConnCount)})
		}
	}
	return rates
}

// bucketLimit is the arithmetic of a token bucket whose state is the time at
// which it will be full. Times and durations are in nanoseconds. The zero value
// is no limit.
type bucketLimit struct {
	interval int64 // from one new token to the next
	capacity int64 // from empty to full
}

func (b bucketLimit) unlimited() bool { return b.interval == 0 }

// take gives the time at which the bucket will be full once a token is taken
// from it, and whether there was one to take.
func (b bucketLimit) take(fullAt, at int64) (next int64, ok bool) {
	next = max(fullAt, at) + b.interval
	return next, next-at <= b.capacity
}

// bucket checks a limit and turns it into arithmetic. Bursts that no host can
// use up are no limit; and no bucket takes so long to fill that times overflow.
func (l rateLimit) bucket() (bucketLimit, error) {
	const (
		boundless = 1 << 30
		longest   = 1 << 61 // about 73 years
	)
	switch {
	case !(l.perSecond >= 0) || math.IsInf(l.perSecond, 1):
		return bucketLimit{}, fmt.Errorf("rate is %v tokens per second, expected a finite number, 0 or more", l.perSecond)
	case l.burst < 0:
		return bucketLimit{}, fmt.Errorf("burst is %d tokens, expected 0 or more", l.burst)
	case l.perSecond == 0 || l.burst >= boundless:
		return bucketLimit{}, nil
	}
	interval := math.Round(float64(time.Second) / l.perSecond)
	interval = max(1, min(interval, float64(longest/max(1, int64(l.burst)))))
	return bucketLimit{interval: int64(interval), capacity: int64(interval) * int64(l.burst)}, nil
}

// taken returns how many tokens a bucket lacks, of how many.
func (b bucketLimit) taken(fullAt, at int64) (tokens, burst int64) {
	return (max(0, fullAt-at) + b.interval - 1) / b.interval, b.capacity / b.interval
}
