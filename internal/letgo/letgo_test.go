package letgo

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/evict"
)

func TestTheLastVictimsAreRemembered(t *testing.T) {
	var s State
	s.init()
	for i := range 3 * mostLast {
		s.letGo(&Victim{Num: int64(i), Stream: i%2 == 0, Reason: evict.Idle})
	}
	require.Len(t, s.Last, mostLast)
	require.Equal(t, "conn-47", s.Last[mostLast-1].Name())
	require.Equal(t, "stream-46", s.Last[mostLast-2].Name())
	require.Equal(t, map[Key]uint64{{Reason: evict.Idle}: 24, {Stream: true, Reason: evict.Idle}: 24}, s.LetGo)
}

func TestARoomWithoutHostsHasNothingToLetGo(t *testing.T) {
	r := New(Config{PerSecond: 1}, Engine{Lacks: func() []Lack { return []Lack{{Need: func() int64 { return 1 }, Kind: 1}} }})
	require.Equal(t, Outcome{Barren: true}, r.Pass())
	require.Equal(t, map[uint8]uint64{1: 1}, r.State().OnlyKept)
	require.Empty(t, r.WouldGo(Lack{Need: func() int64 { return 1 }}, 3))
}
