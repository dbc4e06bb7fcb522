package rcmgr

import (
	"cmp"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOfManyThatAreOfferedTheFirstFewAreKeptInOrder(t *testing.T) {
	r := testRandom(t)
	for range 300 {
		all := r.Perm(r.IntN(50))
		for _, n := range []int{-1, 0, 1, 2, 7, 49, 50, math.MaxInt} {
			var first []int
			for _, x := range all {
				first = offer(first, x, n, cmp.Compare)
			}
			want := slices.Sorted(slices.Values(all))
			want = want[:max(0, min(n, len(want)))]
			require.Equal(t, append([]int{}, want...), append([]int{}, first...), "the first %d of %v", n, all)
		}
	}
}

func TestOfEqualsThatAreOfferedThoseThatCameFirstAreKept(t *testing.T) {
	type one struct{ rank, came int }
	byRank := func(a, b one) int { return cmp.Compare(a.rank, b.rank) }
	var first []one
	for i, rank := range []int{2, 1, 2, 2, 1, 3, 2, 1} {
		first = offer(first, one{rank, i}, 3, byRank)
	}
	slices.SortFunc(first, func(a, b one) int { return cmp.Compare(a.came, b.came) })
	require.Equal(t, []one{{1, 1}, {1, 4}, {1, 7}}, first)
	first = offer(first, one{1, 8}, 3, byRank)
	require.Len(t, first, 3)
	require.NotContains(t, first, one{1, 8})
}

func TestAnOfferThatIsTurnedAwayTakesNoMemory(t *testing.T) {
	first := make([]int, 0, 10)
	for x := range 10 {
		first = offer(first, x, 10, cmp.Compare)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		first = offer(first, 11, 10, cmp.Compare)
		first = offer(first, -1, 10, cmp.Compare)
	}), "nor does one that takes another's place")
}
