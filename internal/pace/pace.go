// Package pace is the arithmetic of token buckets that let one through at a time.
//
// The state of a bucket is one number, the time at which it will be full again. It lacks one
// token for each interval until then. So it needs no timer, and a bucket that is full needs no
// state at all.
package pace

import (
	"fmt"
	"math"
	"time"
)

const (
	// MostPerSecond is the highest rate of a bucket. Times are whole nanoseconds, which do
	// not tell much higher rates apart.
	MostPerSecond = 1_000_000
	// LongestFill is the longest time that an empty bucket may take to become full. A scope
	// or subnet is kept in memory until its buckets are full.
	LongestFill = 24 * time.Hour
)

// Bucket is a token bucket: full, it has a burst of tokens, and it gets a new one after each
// interval. Times are in nanoseconds, and not negative. The zero value is no bucket, which has
// no limit. A Bucket is immutable.
type Bucket struct {
	interval int64 // from one new token to the next
	capacity int64 // from empty to full
}

// Interval returns the time between two tokens of perSecond a second, in nanoseconds. It is a
// whole number, rounded up, so that never more than perSecond come.
func Interval(perSecond float64) float64 {
	interval := float64(time.Second) / perSecond
	// 1/60 as a floating-point number is not quite 1/60, but its interval must be a minute. Both
	// it and the quotient are exact to about 1e-16 of themselves.
	if whole := math.Round(interval); math.Abs(interval-whole) <= 1e-15*interval {
		return whole
	}
	return math.Ceil(interval)
}

// New returns a bucket that gets perSecond tokens a second and holds at most burst. The
// interval is that of Interval. An error says which of the two is wrong.
func New(perSecond float64, burst int64) (Bucket, error) {
	switch {
	case !(perSecond > 0):
		return Bucket{}, &Fault{"PerSecond", fmt.Sprintf("is %v, expected a number above 0", perSecond)}
	case perSecond > MostPerSecond:
		return Bucket{}, &Fault{"PerSecond", fmt.Sprintf("is %v, expected at most %d", perSecond, MostPerSecond)}
	case burst < 1:
		return Bucket{}, &Fault{"Burst", fmt.Sprintf("is %d, expected at least 1", burst)}
	}
	interval := Interval(perSecond)
	if fill := interval * float64(burst); fill > float64(LongestFill) {
		return Bucket{}, &Fault{"Burst", fmt.Sprintf("is %d, which takes %v to come at %v a second, expected at most %v",
			burst, time.Duration(min(fill, math.MaxInt64/2)).Round(time.Second), perSecond, LongestFill)}
	}
	return Bucket{int64(interval), int64(interval) * burst}, nil
}

// Fault is an error of New.
type Fault struct {
	Field string // "PerSecond" or "Burst"
	What  string
}

// Error returns what is wrong with the field.
func (f *Fault) Error() string { return f.Field + " " + f.What }

// Limits reports whether b is a bucket.
func (b Bucket) Limits() bool { return b.interval != 0 }

// Has reports whether a bucket that will be full at fullAt has a token at a time. No bucket
// always has one.
func (b Bucket) Has(fullAt, at int64) bool {
	return max(fullAt, at)+b.interval-at <= b.capacity || b.interval == 0
}

// Fit returns the state of an empty bucket if fullAt is that of a bucket which lacks more than
// this one holds. Such a state is left where the rate was another one before.
func (b Bucket) Fit(fullAt, at int64) int64 { return min(fullAt, at+b.capacity) }

// Take returns the time at which the bucket will be full after a token was taken from it. A
// bucket without a token stays empty.
func (b Bucket) Take(fullAt, at int64) int64 {
	return min(max(fullAt, at)+b.interval, at+b.capacity)
}

// Left returns the number of tokens in the bucket.
func (b Bucket) Left(fullAt, at int64) int64 {
	if !b.Limits() {
		return math.MaxInt64
	}
	return max(0, b.capacity-max(0, fullAt-at)) / b.interval
}

// Next returns the time from which the bucket has a token, if none is taken before. That is at
// if it has one.
func (b Bucket) Next(fullAt, at int64) int64 {
	return max(at, b.Fit(fullAt, at)+b.interval-b.capacity)
}

// Burst returns the number of tokens in a full bucket.
func (b Bucket) Burst() int64 {
	if !b.Limits() {
		return math.MaxInt64
	}
	return b.capacity / b.interval
}
