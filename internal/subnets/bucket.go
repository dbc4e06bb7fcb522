package subnets

// How fast one subnet may connect: token buckets.
//
// A bucket is one number, the time at which it will be full again: it lacks one
// token for every interval until then. That is golang.org/x/time/rate's bucket
// exactly (the tests compare them), in whole nanoseconds and a tenth of the
// space; it needs no lock of its own, forgets itself when its time has come,
// and returns a token at any time, where a reservation there can be
// cancelled only before its time has come, which for a connection is at once.

import (
	"fmt"
	"math"
	"time"
)

// A Bucket is the arithmetic of a token bucket whose state is the time at
// which it will be full. Times and durations are in nanoseconds. The zero value
// is no limit. It does not change.
type Bucket struct {
	interval int64 // from one new token to the next
	capacity int64 // from empty to full
}

// NewBucket checks a limit and turns it into arithmetic: a bucket that starts full, with
// burst tokens, and gets perSecond new ones a second. perSecond 0 is no limit, burst 0 admits
// nothing. Bursts that no host can use up are no limit; and no bucket takes so long to fill
// that times overflow.
func NewBucket(perSecond float64, burst int) (Bucket, error) {
	const (
		boundless = 1 << 30
		longest   = 1 << 61 // about 73 years
	)
	switch {
	case !(perSecond >= 0) || math.IsInf(perSecond, 1):
		return Bucket{}, fmt.Errorf("rate is %v tokens per second, expected a finite number, 0 or more", perSecond)
	case burst < 0:
		return Bucket{}, fmt.Errorf("burst is %d tokens, expected 0 or more", burst)
	case perSecond == 0 || burst >= boundless:
		return Bucket{}, nil
	}
	interval := math.Round(float64(time.Second) / perSecond)
	interval = max(1, min(interval, float64(longest/max(1, int64(burst)))))
	return Bucket{interval: int64(interval), capacity: int64(interval) * int64(burst)}, nil
}

// Unlimited reports whether the bucket is no limit.
func (b Bucket) Unlimited() bool { return b.interval == 0 }

// take returns the time at which the bucket will be full once a token is taken
// from it, and whether there was one to take.
func (b Bucket) take(fullAt, at int64) (next int64, ok bool) {
	next = max(fullAt, at) + b.interval
	return next, next-at <= b.capacity
}

// taken returns how many tokens a bucket lacks, of how many.
func (b Bucket) taken(fullAt, at int64) (tokens, burst int64) {
	return (max(0, fullAt-at) + b.interval - 1) / b.interval, b.capacity / b.interval
}
