package rcmgr

// How fast one subnet may connect: token buckets, over the same division of the
// address space as the connections per subnet, and filled and emptied by a
// clock that the caller reads. The same buckets tell when the source addresses
// of a subnet must be verified.
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
	"sync"
	"time"

	xrate "github.com/libp2p/go-libp2p/x/rate"
)

// connRater decides about the rate of connections. It is safe for concurrent
// use.
type connRater interface {
	// take takes a token for a connection from a normalised address at a time,
	// or tells which subnet has none left, having taken nothing. An invalid
	// address needs no token.
	take(addr netip.Addr, now time.Time) (tok rateToken, blocked netip.Prefix, ok bool)
}

// rateToken is a token that was taken. The zero value is none.
type rateToken struct {
	from *rates
	addr netip.Addr
}

// giveBack returns the token, when something else refused what it was for. It
// must be called at most once. It does nothing for a token from a limiter of
// the caller's own, which cannot take one back.
func (t rateToken) giveBack(now time.Time) {
	if t.from != nil {
		t.from.giveBack(t.addr, now)
	}
}

// callerRates is a limiter of go-libp2p's x/rate. Without one, nothing is
// limited, and newGate drops it.
type callerRates struct{ *xrate.Limiter }

// take goes by the limiter's own clock. The limiter does not tell which of its
// buckets was empty, so the address is named.
func (c callerRates) take(addr netip.Addr, _ time.Time) (tok rateToken, blocked netip.Prefix, ok bool) {
	if !addr.IsValid() || c.Allow(addr) {
		return rateToken{}, netip.Prefix{}, true
	}
	return rateToken{}, netip.PrefixFrom(addr, addr.BitLen()), false
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

// rates holds the buckets. Only those that are not full are kept, or have been
// full for less than an interval. The locks are never held together with
// others.
type rates struct {
	in      partition[*networkBucket, bucketLimit]
	start   time.Time
	stripes [gateStripes]rateStripe
}

// rateStripe has the buckets under one lock, on a cache line of its own.
type rateStripe struct {
	mu struct {
		sync.Mutex
		// latest is the latest time seen. Callers read the clock before they get
		// the lock: to one that was overtaken, tokens taken later would look as
		// if they were owed.
		latest int64
		levels []rateLevel // by id
	}
	_ [24]byte
}

// rateLevel has the buckets of one level, those of one stripe.
type rateLevel struct {
	interval int64      // of each bucket
	fullAt   subnetInts // see bucketLimit; a bucket that is not there is full
	// due holds every bucket of fullAt once, with the time at which to look if
	// it is full. That is always one interval after it was put there, so the
	// queue is in order without sorting; and as every token taken delays a
	// bucket by one interval, there is at most one look for every token.
	due dueQueue
}

// networkBucket is the bucket of a named network, which many addresses from all
// stripes may share.
type networkBucket struct {
	network netip.Prefix
	bucketLimit
	mu struct {
		sync.Mutex
		latest int64 // the latest time seen, as in rateStripe
		fullAt int64
	}
}

// newConnRates makes the buckets that limit how fast connections come. An error
// names the place in the lists of cfg.
func newConnRates(cfg rateConfig) (*rates, error) {
	r := newRates()
	for f := range numFamilies {
		for i, l := range cfg.perSubnet[f] {
			if err := r.addLevel(f, l); err != nil {
				return nil, fmt.Errorf("connect rate: subnets: %s[%d]: %w", f, i, err)
			}
		}
		for i, l := range cfg.networks[f] {
			if err := r.addNetwork(f, l); err != nil {
				return nil, fmt.Errorf("connect rate: networks: %s[%d]: %w", f, i, err)
			}
		}
	}
	return r, nil
}

// verifyEvery is how often a subnet may begin an unverified handshake once it
// has used up its burst: a handshake with a spoofed source holds a place for
// about 5 seconds, so at this rate it fills half a place.
const verifyEvery = 10 * time.Second

// newSourceRates makes the buckets that tell when a subnet's source addresses
// must be verified: when take refuses. They let half of the connections that
// the subnet may have begin without, so that spoofed ones cannot fill it.
func newSourceRates(cfg subnetConfig) (*rates, error) {
	half := func(connCount int) rateLimit {
		return rateLimit{perSecond: 1 / verifyEvery.Seconds(), burst: connCount / 2}
	}
	r := newRates()
	err := cfg.each(
		func(f family, l ConnLimitPerSubnet) error {
			return r.addLevel(f, subnetRate{l.PrefixLength, half(l.ConnCount)})
		},
		func(f family, l NetworkPrefixLimit) error {
			return r.addNetwork(f, networkRate{l.Network, half(l.ConnCount)})
		})
	if err != nil {
		return nil, err
	}
	return r, nil
}

func newRates() *rates {
	return &rates{in: newPartition[*networkBucket, bucketLimit](), start: time.Now()}
}

func (r *rates) addLevel(f family, l subnetRate) error {
	b, err := l.bucket()
	if err := cmp.Or(err, f.checkPrefixLength(l.prefixLength)); err != nil {
		return err
	}
	if !b.unlimited() {
		r.in.addLevel(f, l.prefixLength, b)
		for i := range r.stripes {
			mu := &r.stripes[i].mu
			mu.levels = append(mu.levels, rateLevel{interval: b.interval})
		}
	}
	return nil
}

func (r *rates) addNetwork(f family, l networkRate) error {
	b, err := l.bucket()
	if err != nil {
		return err
	}
	return r.in.addNetwork(f, l.network, &networkBucket{network: normalPrefix(l.network), bucketLimit: b})
}

// take is connRater's.
func (r *rates) take(addr netip.Addr, now time.Time) (tok rateToken, blocked netip.Prefix, ok bool) {
	if !addr.IsValid() {
		return rateToken{}, netip.Prefix{}, true
	}
	at := r.clock(now)
	if n, named := r.in.networks.Lookup(addr); named {
		switch {
		case n.unlimited():
			return rateToken{}, netip.Prefix{}, true
		case !n.take(at):
			return rateToken{}, n.network, false
		}
		return rateToken{r, addr}, netip.Prefix{}, true
	}
	levels := r.in.levelsOf(addr)
	if len(levels) == 0 {
		return rateToken{}, netip.Prefix{}, true
	}
	st := &r.stripes[r.in.stripeOf(addr)]
	st.mu.Lock()
	defer st.mu.Unlock()
	at = st.latestLocked(at)
	// Two looks for each token keep ahead of the one that each will need.
	st.dropFullLocked(at, 2)
	taken := make([]subnetInt, 0, inlineLevels)
	for i := range levels {
		l := &levels[i]
		k := l.key(addr)
		full, _ := st.mu.levels[l.id].fullAt.get(k)
		next, ok := l.limit.take(full, at)
		if !ok {
			return rateToken{}, l.subnet(addr), false
		}
		taken = append(taken, subnetInt{k, next})
	}
	for i, b := range taken {
		st.mu.levels[levels[i].id].setLocked(b, at)
	}
	return rateToken{r, addr}, netip.Prefix{}, true
}

func (r *rates) giveBack(addr netip.Addr, now time.Time) {
	if n, named := r.in.networks.Lookup(addr); named {
		n.mu.Lock()
		n.mu.fullAt -= n.interval
		n.mu.Unlock()
		return
	}
	st := &r.stripes[r.in.stripeOf(addr)]
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, l := range r.in.levelsOf(addr) {
		k := l.key(addr)
		fullAt := &st.mu.levels[l.id].fullAt
		// A bucket that is gone has been full: it has no room for the token.
		if full, ok := fullAt.get(k); ok {
			fullAt.set(subnetInt{k, full - l.limit.interval})
		}
	}
}

// dropFull forgets the buckets that are full, a bounded number under each lock.
// take does the same as it goes; this is for when nobody connects any more.
func (r *rates) dropFull(now time.Time) {
	const batch = 256
	at := r.clock(now)
	for i := range r.stripes {
		st := &r.stripes[i]
		for more := true; more; {
			st.mu.Lock()
			more = st.dropFullLocked(st.latestLocked(at), batch)
			st.mu.Unlock()
		}
	}
}

// clock gives a time as the buckets know it: nanoseconds since they were made,
// by the monotonic clock where there is one.
func (r *rates) clock(now time.Time) int64 { return int64(now.Sub(r.start)) }

func (st *rateStripe) latestLocked(at int64) int64 {
	st.mu.latest = max(st.mu.latest, at)
	return st.mu.latest
}

// setLocked sets when a bucket will be full, after a token was taken from it.
func (l *rateLevel) setLocked(b subnetInt, at int64) {
	before := len(l.fullAt.m)
	l.fullAt.set(b)
	if len(l.fullAt.m) > before {
		l.due.push(subnetInt{b.key, at + l.interval})
	}
}

// dropFullLocked looks at no more than a number of buckets on each level, and
// forgets those that are full. It tells if there may be more to look at.
func (st *rateStripe) dropFullLocked(at int64, most int) (more bool) {
	for i := range st.mu.levels {
		l := &st.mu.levels[i]
		looked := 0
		for ; looked < most; looked++ {
			k, ok := l.due.popUntil(at)
			if !ok {
				break
			}
			if full, _ := l.fullAt.get(k); full > at {
				l.due.push(subnetInt{k, at + l.interval})
			} else {
				l.fullAt.delete(k)
			}
		}
		more = more || looked == most
	}
	return more
}

func (n *networkBucket) take(at int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.latest = max(n.mu.latest, at)
	next, ok := n.bucketLimit.take(n.mu.fullAt, n.mu.latest)
	if ok {
		n.mu.fullAt = next
	}
	return ok
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

// dueQueue is a first-in-first-out queue of buckets and the times at which they
// are due. It is a list of blocks, so that nothing is ever moved and the memory
// of a flood goes with the flood.
type dueQueue struct {
	head, tail *dueBlock
}

type dueBlock struct {
	items    [20]subnetInt
	from, to int // those in use
	next     *dueBlock
}

func (q *dueQueue) push(d subnetInt) {
	switch {
	case q.tail == nil:
		q.tail = new(dueBlock)
		q.head = q.tail
	case q.tail.to == len(q.tail.items):
		q.tail.next = new(dueBlock)
		q.tail = q.tail.next
	}
	q.tail.items[q.tail.to] = d
	q.tail.to++
}

// popUntil takes the first bucket, if it is due by a time.
func (q *dueQueue) popUntil(at int64) (k subnetKey, ok bool) {
	b := q.head
	if b == nil || b.items[b.from].value > at {
		return subnetKey{}, false
	}
	k = b.items[b.from].key
	b.from++
	if b.from == b.to {
		q.head = b.next
		if q.head == nil {
			q.tail = nil
		}
	}
	return k, true
}
