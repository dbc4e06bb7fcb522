// Package spread counts how many members hold how much: a distribution that follows
// each change of a member's value by moving a count from one bucket to another. A move
// costs a few nanoseconds, at a moment when the value's lock is held anyway, and
// nothing has to visit the members when the distribution is read.
package spread

import (
	"math"
	"math/bits"
	"slices"
)

// A Spread counts its members in slots that are as fine as the value tells without a
// search: 0 to 16 each on its own, and above that, or for memory throughout, all values
// v with the same number of bits in v-1. A Scale's buckets consist of whole slots, and
// are put together when somebody reads them.
const (
	fineSlots = 17
	slots     = fineSlots + 64
)

// countSlot returns the slot of a number of connections or streams.
func countSlot(v int64) uint64 {
	if uint64(v) < fineSlots {
		return uint64(v)
	}
	return fineSlots - 5 + uint64(bits.Len64(uint64(v-1))) // 17 has five bits in v-1
}

// memorySlot returns the slot of a number of bytes. That of 0 is the one for 64 bits.
func memorySlot(v int64) uint64 { return uint64(bits.Len64(uint64(v - 1))) }

// Scale divides values into buckets, by ascending bounds that belong to the buckets
// below them. It does not change, and is safe for concurrent use.
type Scale struct {
	bounds []float64
	// bucket has the bucket of each slot: i, from 1 on, for values up to bounds[i-1] and
	// above the bound before it; the one after the last bound for all values beyond.
	// Bucket 0, for members that hold nothing, is not shown.
	bucket [slots]uint8
}

// The scales of the histograms that dashboards for go-libp2p know: CountScale for what
// MoveCount moves, MemoryScale, in bytes, for what MoveMemory moves.
var (
	CountScale  = newScale(countSlot, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 32, 64, 128, 256)
	MemoryScale = newScale(memorySlot, 1<<10, 4<<10, 32<<10, 1<<20, 32<<20, 256<<20, 512<<20, 1<<30, 2<<30, 4<<30)
)

// newScale makes a scale of ascending bounds, each of which must be the greatest
// value of its slot.
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

// Bounds returns the bounds of the buckets, each the greatest value of its own. The last
// bucket, for all values beyond, has none.
func (s *Scale) Bounds() []float64 { return slices.Clone(s.bounds) }

// Spread is the distribution of the values that members hold, numbers from 0 on. A
// member enters it by moving away from 0 and leaves it by moving back there. All moves
// of one Spread are by MoveCount, or all by MoveMemory. The zero value has no members.
// It is not safe for concurrent use; two that have the same members, on the same scale,
// are equal.
type Spread struct {
	// Sum is the total of the members' values. A move beyond math.MaxInt64 wraps around,
	// so that the move back comes out right.
	Sum int64
	// slots counts members. The slot of 0, where they come from, reads minus the
	// number of all that are in; so no move needs to ask whether it enters.
	slots [slots]int32
}

// MoveCount notes that a member that held old connections or streams now holds this
// many. It is on the path of each of them, and short enough to be inlined.
func (s *Spread) MoveCount(old, now int64) {
	s.Sum += now - old
	s.slots[countSlot(old)]--
	s.slots[countSlot(now)]++
}

// MoveMemory notes that a member that held old bytes now holds this many. It is on the
// path of every reservation, and short enough to be inlined.
func (s *Spread) MoveMemory(old, now int64) {
	s.Sum += now - old
	s.slots[memorySlot(old)]--
	s.slots[memorySlot(now)]++
}

// Add adds the members of another Spread that was moved on the same scale. The sum stops
// at math.MaxInt64.
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

// Cumulative returns Prometheus' form: how many members there are, and for each bound
// how many do not exceed it. The scale must be that of the moves.
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
