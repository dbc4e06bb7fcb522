package subnets

// How fast one subnet may connect: token buckets.
//
// The state of a bucket is one number, the time at which the bucket will be full again. The
// bucket lacks one token for every interval until then. It decides exactly as the bucket of
// golang.org/x/time/rate does (the tests compare them), but in whole nanoseconds and in a tenth
// of the space. It needs no lock of its own, and its record can be dropped once it is full. A
// token can be given back at any time. A reservation of x/time/rate can be cancelled only
// before its time has come, and for a connection that time comes at once.

import (
	"fmt"
	"math"

	"github.com/weir-p2p/rcmgr/internal/pace"
)

// A Bucket is the arithmetic of a token bucket whose state is the time at which it will be
// full. Times and durations are in nanoseconds. The zero value is no limit. A Bucket is
// immutable.
type Bucket struct {
	interval int64 // from one new token to the next
	capacity int64 // from empty to full
}

// NewBucket returns a bucket that starts full, with burst tokens, and gets perSecond new ones a
// second. perSecond 0 is no limit; burst 0 admits nothing. A burst of 1<<30 tokens or more is
// no limit, as no host can use it up. The interval between two tokens is rounded up to whole
// nanoseconds (pace.Interval). It is shortened where the bucket would take so long to fill that
// times overflow. NewBucket returns an error if perSecond
// is negative or not finite, or if burst is negative.
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
	interval := max(1, min(pace.Interval(perSecond), float64(longest/max(1, int64(burst)))))
	return Bucket{interval: int64(interval), capacity: int64(interval) * int64(burst)}, nil
}

// Unlimited reports whether the bucket is no limit.
func (b Bucket) Unlimited() bool { return b.interval == 0 }

// take returns the time at which the bucket will be full after a token is taken from it, and
// reports whether there was a token to take.
func (b Bucket) take(fullAt, at int64) (next int64, ok bool) {
	next = max(fullAt, at) + b.interval
	return next, next-at <= b.capacity
}

// taken returns the number of tokens that a bucket lacks, and the number that it has when full.
func (b Bucket) taken(fullAt, at int64) (tokens, burst int64) {
	return (max(0, fullAt-at) + b.interval - 1) / b.interval, b.capacity / b.interval
}
