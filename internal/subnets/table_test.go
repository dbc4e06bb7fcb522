package subnets

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/testseed"
)

func TestSubnetRecordsAre32BytesWithoutPointers(t *testing.T) {
	require.Equal(t, 32, int(unsafe.Sizeof(record{})))
}

// The table is compared with a map, once with a hash that spreads the keys well and once with one
// that gives all keys the same home.
func TestSubnetTableKeepsWhatAMapKeeps(t *testing.T) {
	type name struct {
		key ip.Key
		id  uint16
	}
	rng := testseed.Random(t)
	for _, hash := range []ip.Hash{{A: rng.Uint64(), B: rng.Uint64()}, {}} {
		table, model := newTable(hash), map[name]int32{}
		for step := range 20_000 {
			// The number of records swings between few and many.
			k := name{ip.Key{Lo: rng.Uint64N(300)}, uint16(1 + rng.IntN(2))}
			rec, at := table.find(k.key, k.id)
			held, ok := model[k]
			require.Equal(t, ok, rec.used(), "step %d", step)
			switch grows := step/1000%2 == 0; {
			case ok:
				require.Equal(t, held, rec.conns, "step %d", step)
				if !grows || rng.IntN(10) == 0 {
					table.remove(at)
					delete(model, k)
				}
			case grows || rng.IntN(10) == 0:
				table.add(rec, k.key, k.id).conns = int32(step)
				model[k] = int32(step)
			}
			require.Equal(t, len(model), table.n)
			require.LessOrEqual(t, 4*table.n, 3*len(table.slots))
			require.True(t, len(table.slots) <= leastSlots || 8*table.n >= len(table.slots))
		}
		for k, held := range model {
			rec, at := table.find(k.key, k.id)
			require.Equal(t, held, rec.conns)
			table.remove(at)
		}
		require.Zero(t, table.n)
		require.Len(t, table.slots, leastSlots)
	}
}

func TestARecordThatMakesTheTableGrowIsFound(t *testing.T) {
	table := newTable(ip.Hash{A: 1, B: 2})
	for i := range uint64(4 * leastSlots) {
		k := ip.Key{Lo: i}
		free, _ := table.find(k, 1)
		made := table.add(free, k, 1)
		found, _ := table.find(k, 1)
		require.Same(t, made, found)
	}
}

func TestNextVisitsEveryPlaceOfTheSubnetTable(t *testing.T) {
	table := newTable(ip.Hash{A: 1, B: 2})
	for i := range uint64(100) {
		k := ip.Key{Lo: i}
		free, _ := table.find(k, 1)
		table.add(free, k, 1)
	}
	seen := make(map[ip.Key]bool)
	for range table.slots {
		if rec, _ := table.next(); rec.used() {
			seen[rec.key] = true
		}
	}
	require.Len(t, seen, 100)
}
