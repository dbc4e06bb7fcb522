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

// A spread counts its members in slots that are as fine as the value tells without a
// search: 0 to 16 each on its own, and above that, or for memory throughout, all values
// v with the same number of bits in v-1. A scale's buckets consist of whole slots, and
// are put together when somebody reads them.
const (
	fineSlots   = 17
	spreadSlots = fineSlots + 64
)

// countSlot gives the slot of a number of connections or streams.
func countSlot(v int64) uint64 {
	if uint64(v) < fineSlots {
		return uint64(v)
	}
	return fineSlots - 5 + uint64(bits.Len64(uint64(v-1))) // 17 has five bits in v-1
}

// memorySlot gives the slot of a number of bytes. That of 0 is the one for 64 bits.
func memorySlot(v int64) uint64 { return uint64(bits.Len64(uint64(v - 1))) }

// bucketScale divides values into buckets: i, from 1 on, for values up to bounds[i-1]
// and above the bound before it; the one after the last bound for all values beyond.
// Bucket 0, for members that hold nothing, is not shown.
type bucketScale struct {
	bounds []float64
	bucket [spreadSlots]uint8 // of each slot
}

// The bounds are those of the histograms that dashboards for go-libp2p know.
// They are Prometheus' form of an upper bound: inclusive.
var (
	countScale  = newBucketScale(countSlot, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 32, 64, 128, 256)
	memoryScale = newBucketScale(memorySlot, 1<<10, 4<<10, 32<<10, 1<<20, 32<<20, 256<<20, 512<<20, 1<<30, 2<<30, 4<<30)
)

// newBucketScale makes a scale of ascending bounds, each of which must be the greatest
// value of its slot.
func newBucketScale(slot func(int64) uint64, bounds ...float64) bucketScale {
	s := bucketScale{bounds: bounds}
	fill := func(v int64) {
		i, _ := slices.BinarySearch(bounds, float64(v))
		s.bucket[slot(v)] = uint8(i + 1)
	}
	for v := range int64(fineSlots) {
		fill(v)
	}
	for n := range 63 {
		fill(1 << n)
	}
	fill(math.MaxInt64)
	s.bucket[slot(0)] = 0
	return s
}

// spread is a distribution. A member enters it by moving away from 0 and
// leaves it by moving back there.
type spread struct {
	sum int64 // of the members' values
	// slots counts members. The slot of 0, where they come from, reads minus the
	// number of all that are in; so no move needs to ask whether it enters.
	slots [spreadSlots]int32
}

// moveCount tells that a member that held old connections or streams holds
// now this many.
func (s *spread) moveCount(old, now int64) {
	s.sum += now - old
	s.slots[countSlot(old)]--
	s.slots[countSlot(now)]++
}

// moveMemory tells that a member that held old bytes holds now this many. It
// is on the path of every reservation, and short enough to be inlined.
func (s *spread) moveMemory(old, now int64) {
	s.sum += now - old
	s.slots[memorySlot(old)]--
	s.slots[memorySlot(now)]++
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
	var in [spreadSlots]uint64
	for slot, n := range s.slots {
		in[on.bucket[slot]] += uint64(n)
	}
	upTo = make(map[float64]uint64, len(on.bounds))
	for i, bound := range on.bounds {
		members += in[i+1]
		upTo[bound] = members
	}
	return members + in[len(on.bounds)+1], upTo
}

// addCapped adds two totals and stops at math.MaxInt64, which stands for
// "unlimited": twice unlimited is unlimited.
func addCapped(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
