package rcmgr

// How many members hold how much: a distribution that follows each change of a
// member's value by moving a count from one bucket to another. It costs a few
// nanoseconds while the value changes, under a lock that is held anyway, and
// nothing has to visit the members when it is read. Pure arithmetic, without
// locks.

import (
	"math"
	"math/bits"
	"slices"
)

// bucketScale divides values into buckets, and finds the bucket of a value without
// a search. Slot 0 is for members that hold nothing; slot i, from 1 on, for
// values up to bounds[i-1] and above the bound before it; the slot after the
// last bound for all values beyond.
type bucketScale struct {
	bounds []float64
	small  [17]uint8 // the slot of each value from 0 to 16
	large  [65]uint8 // the slot of any other value v, by the bits of v-1
}

// The bounds are those of the histograms that dashboards for go-libp2p know.
// They are Prometheus' form of an upper bound: inclusive.
var (
	countScale  = newBucketScale(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 32, 64, 128, 256)
	memoryScale = newBucketScale(1<<10, 4<<10, 32<<10, 1<<20, 32<<20, 256<<20, 512<<20, 1<<30, 2<<30, 4<<30)
)

// newBucketScale makes a scale of ascending bounds. Those above 16 must be powers of
// two: then all values with the same number of bits in v-1 share a slot.
func newBucketScale(bounds ...float64) bucketScale {
	s := bucketScale{bounds: bounds}
	slotOf := func(v float64) uint8 {
		i, _ := slices.BinarySearch(bounds, v)
		return uint8(i + 1)
	}
	for v := 1; v < len(s.small); v++ {
		s.small[v] = slotOf(float64(v))
	}
	// The entry for 64 bits stays 0: only a value below zero gets there.
	for n := range 64 {
		s.large[n] = slotOf(math.Ldexp(1, n))
	}
	return s
}

func (s *bucketScale) slot(v int64) uint8 {
	if uint64(v) < uint64(len(s.small)) {
		return s.small[v]
	}
	return s.large[bits.Len64(uint64(v-1))]
}

// spread is a distribution. A member enters it by moving away from 0 and
// leaves it by moving back there; 0 itself is in no bucket.
type spread struct {
	// slots counts members. Slot 0, where they come from, reads minus the
	// number of all that are in; so no move needs to ask whether it enters.
	slots [17]int64
	sum   int64 // of the members' values
}

// moveCount tells that a member that held old connections or streams holds
// now this many.
func (s *spread) moveCount(old, now int64) {
	s.sum += now - old
	s.move(countScale.slot(old), countScale.slot(now))
}

// moveMemory tells that a member that held old bytes holds now this many. It
// is on the path of every reservation, and short enough to be inlined: all
// bounds of memory are powers of two, so the number of bits alone tells the
// slot (of 0 as well, whose entry is that of 64 bits).
func (s *spread) moveMemory(old, now int64) {
	s.sum += now - old
	if from, to := bits.Len64(uint64(old-1)), bits.Len64(uint64(now-1)); from != to {
		s.move(memoryScale.large[from], memoryScale.large[to])
	}
}

func (s *spread) move(from, to uint8) {
	if from != to {
		s.slots[from]--
		s.slots[to]++
	}
}

// add adds the members of another spread that was kept on the same scale.
func (s *spread) add(o *spread) {
	for i, n := range o.slots {
		s.slots[i] += n
	}
	s.sum = addCapped(s.sum, o.sum)
}

// cumulative gives Prometheus' form: how many members there are, and for each
// bound how many do not exceed it.
func (s *spread) cumulative(on *bucketScale) (members uint64, upTo map[float64]uint64) {
	upTo = make(map[float64]uint64, len(on.bounds))
	for i, bound := range on.bounds {
		members += uint64(s.slots[i+1])
		upTo[bound] = members
	}
	return members + uint64(s.slots[len(on.bounds)+1]), upTo
}

// addCapped adds two totals and stops at math.MaxInt64, which stands for
// "unlimited": twice unlimited is unlimited.
func addCapped(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
