package rcmgr

import (
	"fmt"
	"hash/fnv"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"unsafe"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
)

// hidePeers takes the peers out of a table that goes on counting them, so that code which looks
// at one of them crashes.
func hidePeers(t *peerTable) {
	for _, l := range t.leaves {
		clear(l.at[:])
	}
}

// brokenTable returns an error unless each leaf is where its bits say, has only peers of these
// bits, and has a tag for each.
func brokenTable(t *peerTable) error {
	n := len(t.rest)
	for prefix := uint32(0); prefix < hashPrefixes; {
		l := t.leaf(prefix)
		for _, at := range t.places(prefix) {
			if at != l {
				return fmt.Errorf("the leaf of %#x is not in all of its places", prefix)
			}
		}
		if prefix%l.width() != 0 {
			return fmt.Errorf("a leaf of %d bits begins at %#x", l.bits, prefix)
		}
		for i, ps := range l.at {
			switch {
			case (ps != nil) != (i < int(l.n)):
				return fmt.Errorf("a leaf of %d peers has %v at %d", l.n, ps, i)
			case ps == nil:
			case l.tags[i] != uint8(t.hash(ps.id)):
				return fmt.Errorf("%s has the tag %#x", ps.id, l.tags[i])
			case hashPrefix(t.hash(ps.id))/l.width() != prefix/l.width():
				return fmt.Errorf("%s is in the leaf of %#x", ps.id, prefix)
			}
		}
		n += int(l.n)
		prefix += l.width()
	}
	if n != t.n {
		return fmt.Errorf("%d peers are counted, and there are %d", t.n, n)
	}
	return nil
}

// hashFrom returns a hash function for IDs.
func hashFrom(r *rand.Rand) func(peer.ID) uint64 {
	secret := r.Uint64()
	return func(p peer.ID) uint64 {
		h := fnv.New64a()
		h.Write([]byte(p))
		hi, lo := bits.Mul64(h.Sum64()^secret, 0x9e3779b97f4a7c15)
		return hi ^ lo
	}
}

// A table of peers is like a map from their IDs, whatever the hash is: while it fills, changes and
// empties, by ones and by crowds.
func TestATableOfPeersIsLikeAMap(t *testing.T) {
	for name, weaken := range map[string]func(uint64) uint64{
		"good":            func(h uint64) uint64 { return h },
		"few tags":        func(h uint64) uint64 { return h &^ 0xfe },
		"few prefixes":    func(h uint64) uint64 { return h & (0xc000_01ff << 32) },
		"long prefixes":   func(h uint64) uint64 { return h >> 17 },
		"one for all":     func(h uint64) uint64 { return 1 << 60 },
		"two for all":     func(h uint64) uint64 { return h & (1 << 40) },
		"the last places": func(h uint64) uint64 { return h | 0xffff<<48 },
	} {
		t.Run(name, func(t *testing.T) {
			r := testRandom(t)
			good := hashFrom(r)
			hash := func(p peer.ID) uint64 { return weaken(good(p)) }
			table, all := newPeerTable(hash), make(map[peer.ID]*peerScope)
			var order []peer.ID
			remove := func() {
				i := r.IntN(len(order))
				p := order[i]
				order[i] = order[len(order)-1]
				order = order[:len(order)-1]
				table.remove(all[p])
				delete(all, p)
				require.Nil(t, table.find(hash(p), p))
			}
			wanted, most := 0, 0
			for round := range 20_000 {
				if round%1000 == 0 {
					wanted = []int{0, 1, 40, 300, 900}[r.IntN(5)]
					require.NoError(t, brokenTable(table))
					seen := slices.Collect(table.all)
					require.Len(t, seen, len(all))
					for _, ps := range seen {
						require.Same(t, all[ps.id], ps)
					}
					inRows := 0
					for next := uint32(0); next < hashPrefixes; {
						var row []*peerScope
						row, next = table.row(make([]*peerScope, 0, peersAtOnce), next)
						inRows += len(row)
					}
					require.Equal(t, len(all), inRows)
				}
				id := peer.ID(fmt.Sprint("peer ", r.IntN(3000)))
				if all[id] != table.find(hash(id), id) {
					require.FailNow(t, "another peer was found", id)
				}
				if len(all) > 0 && (len(all) > wanted || r.IntN(4) == 0) {
					remove()
				}
				if all[id] == nil && (len(all) < wanted || r.IntN(4) == 0) {
					all[id] = &peerScope{id: id}
					order = append(order, id)
					table.add(all[id])
				}
				require.Equal(t, len(all), table.n)
				most = max(most, len(all))
				if len(table.leaves) > 2*max(1, most) {
					require.FailNow(t, "there are too many places for leaves", len(table.leaves))
				}
			}
			for len(order) > 0 {
				remove()
			}
			require.NoError(t, brokenTable(table))
			require.Len(t, table.leaves, 1, "nothing is kept of a crowd")
		})
	}
}

// Rows have each peer that stays once, although others come and go between them.
func TestRowsHaveEachPeerOnceWhileOthersComeAndGo(t *testing.T) {
	r := testRandom(t)
	for _, staying := range []int{0, 10, 2000} {
		table := newPeerTable(hashFrom(r))
		for i := range staying {
			table.add(&peerScope{id: peer.ID(fmt.Sprint("stays ", i))})
		}
		for range 20 {
			var others []*peerScope
			churn := func() {
				for n := r.IntN(1500); n > 0; n-- {
					if len(others) > 0 && (len(others) > 3000 || r.IntN(4) == 0) {
						table.remove(others[0])
						others = others[1:]
					} else {
						others = append(others, &peerScope{id: peer.ID(fmt.Sprint("goes ", r.Uint64()))})
						table.add(others[len(others)-1])
					}
				}
				if r.IntN(4) == 0 {
					for _, ps := range others {
						table.remove(ps)
					}
					others = nil
				}
			}
			churn()
			seen := make(map[peer.ID]int)
			row, rows := make([]*peerScope, 0, peersAtOnce), 0
			for next := uint32(0); next < hashPrefixes; rows++ {
				row, next = table.row(row[:0], next)
				require.LessOrEqual(t, len(row), peersAtOnce)
				for _, ps := range row {
					seen[ps.id]++
					require.Equal(t, 1, seen[ps.id], ps.id)
				}
				churn()
			}
			for i := range staying {
				require.Equal(t, 1, seen[peer.ID(fmt.Sprint("stays ", i))])
			}
			require.GreaterOrEqual(t, rows, staying/peersAtOnce)
			for _, ps := range others {
				table.remove(ps)
			}
		}
	}
}

// Peers of different stripes share the cache lines on which one ends and the next begins. What
// streams and memory change of one is not on them.
func TestWhatChangesOfAPeerIsFarFromItsNeighbours(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("pointers are shorter here")
	}
	var ps peerScope
	size := unsafe.Sizeof(ps)
	require.EqualValues(t, 176, size, "one of the allocator's sizes")
	const line, aligned = 64, 16
	require.GreaterOrEqual(t, unsafe.Offsetof(ps.account), uintptr(line-aligned))
	require.LessOrEqual(t, unsafe.Offsetof(ps.transientStreams)+unsafe.Sizeof(ps.transientStreams), size-(line-aligned))
	require.Less(t, unsafe.Offsetof(ps.account), unsafe.Offsetof(ps.transientStreams))
}

// A leaf fills one of the allocator's sizes, and what is searched in it is one cache line.
func TestALeafOfPeersFillsWhatItTakes(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("pointers are short")
	}
	require.EqualValues(t, 512, unsafe.Sizeof(peerLeaf{}))
	require.EqualValues(t, 64, unsafe.Offsetof(peerLeaf{}.at))
}

// With very many peers, a table takes little more than their pointers.
func TestATableOfVeryManyPeersTakesLittle(t *testing.T) {
	table := newPeerTable(hashFrom(testRandom(t)))
	for i := range 100_000 {
		table.add(&peerScope{id: peer.ID(strconv.Itoa(i))})
		if i < 1000 || i%1000 != 999 {
			continue
		}
		leaves := 0
		for prefix := uint32(0); prefix < hashPrefixes; prefix += table.leaf(prefix).width() {
			leaves++
		}
		bytes := leaves*int(unsafe.Sizeof(peerLeaf{})) + len(table.leaves)*int(unsafe.Sizeof((*peerLeaf)(nil)))
		require.Less(t, bytes, 20*table.n, "%d leaves in %d places", leaves, len(table.leaves))
	}
}
