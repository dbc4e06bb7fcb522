package rcmgr

// Amounts, limits and thresholds. This file is pure arithmetic without locks, so that it can
// be understood and tested alone.

import (
	"math"

	"github.com/libp2p/go-libp2p/core/network"
)

// dim is a dimension: a quantity that is counted and limited on its own. The dimensions of an
// account are checked in the order of their numbers.
type dim uint8

const (
	dimMemory     dim = iota // bytes
	dimStreamsIn             // inbound streams
	dimStreamsOut            // outbound streams
	dimStreams               // streams in both directions
	dimConnsIn               // inbound connections
	dimConnsOut              // outbound connections
	dimConns                 // connections in both directions
	dimFD                    // file descriptors
	numDims
)

// dimMask changes no valid dim. Masking with it shows the compiler that an index is within
// bounds.
const dimMask = numDims - 1

// dimSet is a set of dimensions, as bits.
type dimSet uint8

func (s dimSet) has(d dim) bool { return s>>d&1 != 0 }

// dimSetOf returns the dimensions of which a condition holds.
func dimSetOf(holds func(dim) bool) (s dimSet) {
	for d := range numDims {
		if holds(d) {
			s |= 1 << d
		}
	}
	return s
}

// oneWay numbers the four dimensions that count streams or connections of one direction from 0
// to 3.
func (d dim) oneWay() uint8 { return uint8(d-d>>2-1) & 3 }

// amounts has one number for each dimension, such as what a scope holds or its limits. In what
// a scope holds, a total is the sum of its two directions.
type amounts [numDims]int64

// stat returns what a scope holds as go-libp2p's ScopeStat.
func (a *amounts) stat() network.ScopeStat {
	return network.ScopeStat{
		Memory:             a[dimMemory],
		NumStreamsInbound:  int(a[dimStreamsIn]),
		NumStreamsOutbound: int(a[dimStreamsOut]),
		NumConnsInbound:    int(a[dimConnsIn]),
		NumConnsOutbound:   int(a[dimConnsOut]),
		NumFD:              int(a[dimFD]),
	}
}

// held is what one account holds. Each peer has several, so it is little more than half as
// large as amounts. Counts have 32 bits: each stream or connection takes more than a hundred
// bytes of memory, so no account holds 2³¹ of them.
type held struct {
	memory int64
	counts [numDims]int32 // all dimensions but memory
}

// of returns how much is held in one dimension.
func (u *held) of(d dim) int64 {
	if d == dimMemory {
		return u.memory
	}
	return int64(u.counts[d&dimMask])
}

// amounts returns how much is held in all dimensions.
func (u *held) amounts() (a amounts) {
	a.addHeld(u)
	return a
}

// addHeld adds what an account holds.
func (a *amounts) addHeld(u *held) {
	for d := range numDims {
		a[d] += u.of(d)
	}
}

// heldOf is the inverse of held.amounts.
func heldOf(a amounts) held {
	u := held{memory: a[dimMemory]}
	for d := dimStreamsIn; d < numDims; d++ {
		u.counts[d] = int32(a[d])
	}
	return u
}

// raise sets the count of d to that of o, if that is greater. A peak that stays is not written:
// a cache line that is only read need not come over from another core.
func (u *held) raise(o *held, d dim) {
	if n := o.counts[d&dimMask]; n > u.counts[d&dimMask] {
		u.counts[d&dimMask] = n
	}
}

// raiseMemory sets the memory to n, if that is greater.
func (u *held) raiseMemory(n int64) {
	if n > u.memory {
		u.memory = n
	}
}

// isUnlimited reports whether a limit on d is unlimited.
func isUnlimited(d dim, limit int64) bool {
	return limit == math.MaxInt64 || d != dimMemory && limit == math.MaxInt
}

// fullness returns how much of a limit is used, in percent. It is +Inf if something is held
// although the limit is 0, and -Inf if nothing is, or if the limit is math.MaxInt64.
func fullness(use, limit int64) float64 {
	switch {
	case limit == 0 && use > 0:
		return math.Inf(1)
	case limit == 0, limit == math.MaxInt64:
		return math.Inf(-1)
	}
	return float64(use) / float64(limit) * 100
}

// fullest returns the fullness of the fullest limit.
func fullest(use, limit *amounts) float64 {
	most := math.Inf(-1)
	for d, l := range limit {
		if !isUnlimited(dim(d), l) {
			most = max(most, fullness(use[d], l))
		}
	}
	return most
}

// addCapped returns the sum of two amounts, and math.MaxInt64 if it would overflow. As limits,
// unlimited plus anything is unlimited.
func addCapped(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// dimCounts has a number of events for each dimension.
type dimCounts [numDims]uint64

// add adds the events of b.
func (a *dimCounts) add(b *dimCounts) {
	for d := range a {
		a[d] += b[d]
	}
}

// Admission is the rule by which the priority of a memory reservation decides how much of a
// limit it may fill. Connections, streams and file descriptors have no priority, and may fill
// all of their limits. The zero value is AdmissionHalf.
type Admission uint8

const (
	// AdmissionHalf admits a reservation if the scope then holds at most
	// limit × min(256, 128+priority) / 256 bytes. This is half of the limit at priority 0,
	// and all of it at priority 128 and above. It is the default, and the formula of
	// py-libp2p's resource manager.
	AdmissionHalf Admission = iota
	// AdmissionLinear admits a reservation if the scope then holds at most
	// limit × (1+priority) / 256 bytes. This is almost nothing at priority 0, and all of the
	// limit only at priority 255. A limit of math.MaxInt64 admits everything at every
	// priority. It is the formula of go-libp2p's own resource manager.
	AdmissionLinear
	// AdmissionGraded admits a reservation if the scope then holds at most
	// limit × (257+priority) / 512 bytes. This is half of the limit at priority 0, three
	// quarters at 128, 90 % at 203, and all of it only at priority 255. Nothing is refused
	// while half is free, as by AdmissionHalf, and what is reserved at a lower priority leaves
	// room for ReservationPriorityAlways, as by AdmissionLinear.
	AdmissionGraded
)

var admissionNames = [...]string{"half", "linear", "graded"}

// String returns the rule's name: "half", "linear" or "graded".
func (a Admission) String() string { return nameOf(a, admissionNames[:]) }

// MarshalText returns String's text, for JSON and logs.
func (a Admission) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText writes. An error says what was expected.
func (a *Admission) UnmarshalText(text []byte) error {
	return unmarshalName(a, text, admissionNames[:], "rule of admission")
}

// fullWeight is the weight that may fill all of a limit.
const fullWeight = 512

// weight returns the part of a limit, in 512ths, that a priority may fill.
func (a Admission) weight(priority uint8) int64 {
	p := int64(priority)
	switch a {
	case AdmissionLinear:
		return 2 * (1 + p)
	case AdmissionGraded:
		return 257 + p
	}
	return min(fullWeight, 2*(128+p))
}

// wholeFrom returns the lowest priority that may fill all of a limit.
func (a Admission) wholeFrom() uint8 {
	if a == AdmissionHalf {
		return 128
	}
	return math.MaxUint8
}

// threshold returns the most that a scope with this limit may hold after a reservation of this
// weight, which is ⌊limit × weight / 512⌋. It does not overflow for any limit from 0 to
// math.MaxInt64.
func (a Admission) threshold(limit, weight int64) int64 {
	if weight == fullWeight || (a == AdmissionLinear && limit == math.MaxInt64) {
		return limit
	}
	return limit>>9*weight + (limit&511)*weight>>9
}

// Resource is the kind of resource that a request asks for.
type Resource uint8

const (
	ResourceMemory     Resource = iota // bytes
	ResourceStream                     // streams
	ResourceConnection                 // connections
	ResourceFD                         // file descriptors
)

var resourceNames = [...]string{"memory", "stream", "connection", "file descriptor"}

// String returns "memory", "stream", "connection" or "file descriptor".
func (r Resource) String() string { return nameOf(r, resourceNames[:]) }

// MarshalText returns String's text, for JSON and logs.
func (r Resource) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes. An error says what was expected.
func (r *Resource) UnmarshalText(text []byte) error {
	return unmarshalName(r, text, resourceNames[:], "resource")
}

var resourceOf = [numDims]Resource{
	dimMemory:    ResourceMemory,
	dimStreamsIn: ResourceStream, dimStreamsOut: ResourceStream, dimStreams: ResourceStream,
	dimConnsIn: ResourceConnection, dimConnsOut: ResourceConnection, dimConns: ResourceConnection,
	dimFD: ResourceFD,
}

var directionOf = [numDims]network.Direction{
	dimStreamsIn: network.DirInbound, dimStreamsOut: network.DirOutbound,
	dimConnsIn: network.DirInbound, dimConnsOut: network.DirOutbound,
}

func (a *amounts) addCapped(b *amounts) {
	for d := range a {
		a[d] = addCapped(a[d], b[d])
	}
}

// limitLabels are the names of limits in metrics.
var limitLabels = [numDims]string{
	dimMemory:     "memory",
	dimStreamsIn:  "streams_inbound",
	dimStreamsOut: "streams_outbound",
	dimStreams:    "streams",
	dimConnsIn:    "conns_inbound",
	dimConnsOut:   "conns_outbound",
	dimConns:      "conns",
	dimFD:         "fd",
}

// resourceLabels are the names in metrics of the resource and direction that ran out.
var resourceLabels = [numDims]struct{ resource, dir string }{
	dimMemory:     {resource: "memory"},
	dimStreamsIn:  {"stream", labelInbound},
	dimStreamsOut: {"stream", labelOutbound},
	dimStreams:    {resource: "stream"},
	dimConnsIn:    {"connection", labelInbound},
	dimConnsOut:   {"connection", labelOutbound},
	dimConns:      {resource: "connection"},
	dimFD:         {resource: "fd"},
}

// verdict is the result of a decision.
type verdict uint8

const (
	admitted  verdict = iota
	refused           // the request did not fit at one instant
	undecided         // the decision needs the exact sum under all stripe locks
	unknown           // a foreign Limiter has to be asked first, see decide
)

// limitNames are the names of limits in configurations.
var limitNames = [numDims]string{
	dimMemory:     "Memory",
	dimStreamsIn:  "StreamsInbound",
	dimStreamsOut: "StreamsOutbound",
	dimStreams:    "Streams",
	dimConnsIn:    "ConnsInbound",
	dimConnsOut:   "ConnsOutbound",
	dimConns:      "Conns",
	dimFD:         "FD",
}

// amountsOf is the inverse of amounts.stat.
func amountsOf(s network.ScopeStat) amounts {
	return amounts{
		dimMemory:     s.Memory,
		dimStreamsIn:  int64(s.NumStreamsInbound),
		dimStreamsOut: int64(s.NumStreamsOutbound),
		dimStreams:    int64(s.NumStreamsInbound) + int64(s.NumStreamsOutbound),
		dimConnsIn:    int64(s.NumConnsInbound),
		dimConnsOut:   int64(s.NumConnsOutbound),
		dimConns:      int64(s.NumConnsInbound) + int64(s.NumConnsOutbound),
		dimFD:         int64(s.NumFD),
	}
}

const (
	labelInbound  = "inbound"
	labelOutbound = "outbound"
)

// ratePlace returns the place of a rate in the configuration.
func ratePlace(scope string, d dim) string { return scope + ".Rates." + limitNames[d] }

// isWorthNaming reports whether a part of what is held is a tenth of it or more.
func isWorthNaming(held, use int64) bool { return held > (use-1)/10 }
