// Package spread keeps the distribution of a value among members: how many of them hold how
// much. When a member's value changes, its count moves from one bucket to another. A move takes a
// few nanoseconds, while the value's lock is held anyway. Reading the distribution does not visit
// the members.
package spread

import (
	"math"
	"math/bits"
	"slices"
)

// A Spread counts its members in slots, whose number can be computed from the value without a
// search. For connections and streams, each value from 0 to 16 has its own slot. For larger
// values, and for all values of memory from 2 on, a slot has all values v with the same number of
// bits in v-1; the last slot also has all greater ones. The buckets of a Scale consist of whole
// slots, and are added up when they are read.
// The slots of usual values, and that of 0, are next to each other, on the cache line of the sum.
const (
	fineSlots = 17
	slots     = 46
	lastSlot  = slots - 1
)

// countSlot returns the slot of a number of connections or streams.
func countSlot(v int64) uint64 {
	if uint64(v) < fineSlots {
		return uint64(v)
	}
	return min(lastSlot, fineSlots-5+uint64(bits.Len64(uint64(v-1)))) // v-1 has five bits for the first, 17
}

// memorySlot returns the slot of a number of bytes, which is 0 for none. One byte is in the slot
// of two.
func memorySlot(v int64) uint64 { return min(lastSlot, uint64(bits.Len64(uint64(v-1)|1))&63) }

// Scale divides values into buckets by ascending bounds. Each bound is the greatest value of its
// bucket. A Scale is immutable, and safe for concurrent use.
type Scale struct {
	bounds []float64
	// bucket has the bucket of each slot. Bucket i, from 1 on, has the values up to
	// bounds[i-1] that exceed the bound before it. The last bucket has the values that
	// exceed all bounds. Bucket 0, for members that hold nothing, is not shown.
	bucket [slots]uint8
}

// CountScale and MemoryScale are the scales of the histograms that dashboards for go-libp2p show.
// CountScale is for values that MoveCount moves; MemoryScale, in bytes, is for those that
// MoveMemory moves.
var (
	CountScale  = newScale(countSlot, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 32, 64, 128, 256)
	MemoryScale = newScale(memorySlot, 1<<10, 4<<10, 32<<10, 1<<20, 32<<20, 256<<20, 512<<20, 1<<30, 2<<30, 4<<30)
)

// newScale returns a scale with ascending bounds. Each bound must be the greatest value of its
// slot.
func newScale(slot func(int64) uint64, bounds ...float64) *Scale {
	s := &Scale{bounds: bounds}
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

// Bounds returns the bounds of the buckets, in ascending order. Each is the greatest value of its
// bucket. The last bucket, for the values that exceed all bounds, has none.
func (s *Scale) Bounds() []float64 { return slices.Clone(s.bounds) }

// Spread is the distribution of the values that members hold, which are 0 or more. A member
// enters a Spread by a move from 0, and leaves it by a move to 0. The moves of one Spread are
// either all by MoveCount or all by MoveMemory. The zero value has no members. A Spread is not
// safe for concurrent use. Two Spreads whose members have the same values, moved by the same
// method, are equal.
type Spread struct {
	// Sum is the total of the members' values. A move beyond math.MaxInt64 wraps around,
	// so that the move back restores the sum.
	Sum int64
	// slots has the number of members in each slot. The slot of 0, from which members
	// come, has minus the number of all members, so a move from or to 0 is like any other.
	// There are so many that each of several Spreads begins a cache line if the first does.
	slots [slots]int32
}

// MoveCount changes the number of connections or streams that a member holds from old to now. It
// runs for every connection and stream, and is short enough to be inlined.
func (s *Spread) MoveCount(old, now int64) {
	s.Sum += now - old
	s.slots[countSlot(old)]--
	s.slots[countSlot(now)]++
}

// MoveMemory changes the number of bytes that a member holds from old to now. It runs for every
// reservation, and is short enough to be inlined.
func (s *Spread) MoveMemory(old, now int64) {
	s.Sum += now - old
	s.slots[memorySlot(old)]--
	s.slots[memorySlot(now)]++
}

// Add adds the members of another Spread that is moved by the same method. If the sum would
// exceed math.MaxInt64, it becomes math.MaxInt64.
func (s *Spread) Add(o *Spread) {
	for i, n := range o.slots {
		s.slots[i] += n
	}
	if o.Sum > 0 && s.Sum > math.MaxInt64-o.Sum {
		s.Sum = math.MaxInt64
		return
	}
	s.Sum += o.Sum
}

// Cumulative returns the distribution as Prometheus has it: the number of members, and for each
// bound the number of members whose values do not exceed it. The scale must be the one for the
// method that moved the members.
func (s *Spread) Cumulative(on *Scale) (members uint64, upTo map[float64]uint64) {
	var in [slots]uint64
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
