package rcmgr

// Rates: how fast connections and streams may enter a scope, beside how many it may hold. They
// are part of the limits of a scope (BaseLimit.Rates, ResourceLimits.Rates), and written as
// "10/s" or "600/min" in JSON. internal/pace has the arithmetic.

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/pace"
)

// Rate is how fast connections or streams may enter a scope: Burst at once, and PerSecond more
// each second. In any t seconds, no more than Burst + PerSecond × t enter, and no request that
// keeps within this is refused.
//
// In JSON it is "10/s", "600/min" or "3600/h", or {"PerSecond": 10, "Burst": 40}; "unlimited"
// and "default" are Rate{Burst: Unlimited} and the zero value.
//
// The zero value is no rate in a BaseLimit, and leaves the rate to the defaults in
// ResourceLimits. With Unlimited as Burst, there is no rate, even if the defaults have one. Otherwise
// PerSecond has to be more than 0 and at most 1,000,000. A Burst of 0 stands for what PerSecond
// admits in a second, and at least 1. Burst / PerSecond must be at most 24 hours. The time between
// two tokens is rounded up to whole nanoseconds.
type Rate struct {
	PerSecond float64  `json:",omitempty"`
	Burst     LimitVal `json:",omitempty"`
}

// Rates are the rates of one scope. Each counts by itself: Streams and Conns count both
// directions together, and the others count one direction. A connection or stream needs a token
// of every rate that concerns it, and gives none back when it leaves the scope. As with Rate, the
// zero value means no rates in a BaseLimit, and leaves them to the defaults in ResourceLimits.
type Rates struct {
	Streams         Rate `json:",omitzero"`
	StreamsInbound  Rate `json:",omitzero"`
	StreamsOutbound Rate `json:",omitzero"`
	Conns           Rate `json:",omitzero"`
	ConnsInbound    Rate `json:",omitzero"`
	ConnsOutbound   Rate `json:",omitzero"`
}

// all returns every rate, in the order of quantities.counts.
func (r *Rates) all() [numRates]*Rate {
	return [...]*Rate{&r.Streams, &r.StreamsInbound, &r.StreamsOutbound, &r.Conns, &r.ConnsInbound, &r.ConnsOutbound}
}

// fillIn sets each rate that is zero to that in from.
func (r *Rates) fillIn(from *Rates) {
	theirs := from.all()
	for i, own := range r.all() {
		if *own == (Rate{}) {
			*own = *theirs[i]
		}
	}
}

// build returns the rates with each that is zero taken from defaults, and no rate as the zero
// value.
func (r Rates) build(defaults Rates) Rates {
	r.fillIn(&defaults)
	for _, own := range r.all() {
		if own.none() {
			*own = Rate{}
		}
	}
	return r
}

// diff returns the rates that differ from those below, and the zero value for the rest.
func (r Rates) diff(below Rates) Rates {
	theirs := below.all()
	for i, own := range r.all() {
		switch {
		case own.none() && theirs[i].none(), *own == *theirs[i]:
			*own = Rate{}
		case own.none():
			*own = Rate{Burst: Unlimited}
		}
	}
	return r
}

// none reports whether there is no rate.
func (r Rate) none() bool { return r == Rate{} || r.Burst == Unlimited }

// burst returns how many may enter at once.
func (r Rate) burst() int64 {
	if r.Burst != 0 {
		return int64(r.Burst)
	}
	return int64(max(1, math.Ceil(min(r.PerSecond, pace.MostPerSecond))))
}

// bucket returns the bucket of a rate. An error comes with the field that it is about.
func (r Rate) bucket() (b pace.Bucket, err error) {
	switch {
	case r.none():
		return b, nil
	case r.PerSecond == 0:
		return b, &pace.Fault{Field: "PerSecond", What: `is missing: expected a number above 0, or a rate such as "10/s"`}
	case r.Burst == BlockAllLimit:
		return b, &pace.Fault{Field: "Burst", What: "is 0, expected at least 1: to admit nothing, set the limit beside the rate to 0"}
	}
	return pace.New(r.PerSecond, r.burst())
}

// String returns the rate as "unlimited", or as rate and burst, such as "10/s, burst 40".
func (r Rate) String() string {
	if r.none() {
		return "unlimited"
	}
	return fmt.Sprintf("%g/s, burst %d", r.PerSecond, r.burst())
}

// rateUnits are the units of time of a rate in JSON, in seconds.
var rateUnits = map[string]float64{"s": 1, "min": 60, "h": 3600}

// MarshalJSON writes "unlimited", "default", a rate such as "10/s" whose burst is what comes in a
// second, or an object.
func (r Rate) MarshalJSON() ([]byte, error) {
	switch {
	case r.Burst == Unlimited:
		return []byte(limitWords[int64(Unlimited)]), nil
	case r == Rate{}:
		return []byte(limitWords[int64(DefaultLimit)]), nil
	case r.Burst == 0 && r.PerSecond != 0:
		return json.Marshal(strconv.FormatFloat(r.PerSecond, 'g', -1, 64) + "/s")
	}
	type plain Rate
	return json.Marshal(plain(r))
}

// UnmarshalJSON reads what MarshalJSON writes, and "600/min" and "3600/h". A rate that no scope
// can have is an error. If it fails, r does not change.
func (r *Rate) UnmarshalJSON(b []byte) error {
	read, err := parseRate(b)
	if err == nil {
		_, err = read.bucket()
	}
	if err != nil {
		return fmt.Errorf("not a rate: %w", err)
	}
	*r = read
	return nil
}

var errNoRate = errors.New(`expected a rate such as "10/s" or "600/min", {"PerSecond": 10, "Burst": 40}, "unlimited" or "default"`)

// parseRate reads the JSON of a rate, and does not check whether a scope can have it.
func parseRate(b []byte) (Rate, error) {
	switch string(b) {
	case limitWords[int64(Unlimited)]:
		return Rate{Burst: Unlimited}, nil
	case limitWords[int64(DefaultLimit)]:
		return Rate{}, nil
	}
	var text string
	if json.Unmarshal(b, &text) == nil && string(b) != "null" {
		return parseRateText(text)
	}
	if len(b) == 0 || b[0] != '{' {
		return Rate{}, errNoRate
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return Rate{}, err
	}
	var r Rate
	for name, raw := range members {
		switch {
		case strings.EqualFold(name, "PerSecond"):
			if string(raw) == "null" || json.Unmarshal(raw, &r.PerSecond) != nil {
				return Rate{}, fmt.Errorf("PerSecond: expected a number above 0, found %s", raw)
			}
			if r.PerSecond == 0 { // not the same as a member that is missing
				return Rate{}, &pace.Fault{Field: "PerSecond", What: "is 0, expected a number above 0"}
			}
		case strings.EqualFold(name, "Burst"):
			if string(raw) == "null" || r.Burst.UnmarshalJSON(raw) != nil || r.Burst == DefaultLimit {
				return Rate{}, &pace.Fault{Field: "Burst", What: "is " + string(raw) + ", expected a whole number of at least 1"}
			}
		default:
			return Rate{}, fmt.Errorf("%s: unknown name, expected PerSecond and Burst", strconv.Quote(name))
		}
	}
	if len(members) == 0 {
		return Rate{}, errNoRate
	}
	if r.Burst < 0 && r.Burst != BlockAllLimit && r.Burst != Unlimited {
		return Rate{}, &pace.Fault{Field: "Burst", What: fmt.Sprintf("is %d, expected at least 1", r.Burst)}
	}
	return r, nil
}

// parseRateText reads a rate such as "10/s".
func parseRateText(text string) (Rate, error) {
	number, unit, ok := strings.Cut(text, "/")
	seconds, known := rateUnits[strings.TrimSpace(unit)]
	if !ok {
		return Rate{}, errNoRate
	}
	if !known {
		return Rate{}, fmt.Errorf("%s is no unit of a rate, expected s, min or h", strconv.Quote(unit))
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil && !math.IsInf(n, 0) {
		return Rate{}, fmt.Errorf("%s is no number, expected a rate such as \"10/s\"", strconv.Quote(number))
	}
	if n == 0 {
		return Rate{}, &pace.Fault{Field: "PerSecond", What: "is 0, expected a number above 0"}
	}
	return Rate{PerSecond: n / seconds}, nil
}

// rateBuckets has the buckets of one scope by dimension. A nil *rateBuckets has none.
type rateBuckets [numDims]pace.Bucket

// rateAt returns the place of a dimension in arrays of rates.
func rateAt(d dim) int { return int(d & dimMask) }

// buckets returns the buckets of rates that have been checked, or nil if no rate is set.
func (r Rates) buckets() *rateBuckets {
	var all rateBuckets
	for i, rate := range r.all() {
		all[rateAt(rateOrder[i])], _ = rate.bucket()
	}
	if all == (rateBuckets{}) {
		return nil
	}
	return &all
}

// check returns an error for each rate that no scope can have.
func (r Rates) check(place string) *configErrors {
	errs := new(configErrors)
	for i, rate := range r.all() {
		at := ratePlace(place, rateOrder[i])
		var fault *pace.Fault
		if _, err := rate.bucket(); errors.As(err, &fault) {
			errs.add(&ConfigError{Path: at + "." + fault.Field, also: []string{at}, Err: errors.New(fault.What)})
		} else if !rate.none() && (place == "Conn" || place == "Stream") {
			errs.addf(at, "a single %s has no rate: set it where many of them stand, such as System or PeerDefault", strings.ToLower(place)+map[string]string{"Conn": "ection"}[place])
		}
	}
	return errs
}

// scopeRates are the rates of a scope, and their buckets. A nil *scopeRates has no rates.
type scopeRates struct {
	limits  Rates // as they were set
	buckets rateBuckets
}

// newScopeRates returns the buckets of rates that have been checked, or nil if no rate is set.
func newScopeRates(r Rates) *scopeRates {
	b := r.buckets()
	if b == nil {
		return nil
	}
	return &scopeRates{r, *b}
}

// given returns the rates as they were set.
func (s *scopeRates) given() Rates {
	if s == nil {
		return Rates{}
	}
	return s.limits
}

// dims returns the dimensions that have a rate.
func (s *scopeRates) dims() dimSet {
	return dimSetOf(func(d dim) bool { return s != nil && dimStreamsIn <= d && d < dimFD && s.buckets[rateAt(d)].Limits() })
}
