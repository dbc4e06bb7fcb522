package rcmgr

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAddCappedStopsAtUnlimited(t *testing.T) {
	const unlimited = math.MaxInt64
	for _, c := range []struct{ a, b, want int64 }{
		{0, 0, 0}, {1, 2, 3}, {unlimited, 0, unlimited}, {unlimited, 1, unlimited},
		{1, unlimited, unlimited}, {unlimited, unlimited, unlimited},
		{unlimited - 1, 1, unlimited}, {5, -7, -2},
	} {
		require.Equal(t, c.want, addCapped(c.a, c.b), "%d + %d", c.a, c.b)
	}
}

func TestATenthOrMoreIsWorthNaming(t *testing.T) {
	for use := range int64(200) {
		for held := range use + 2 {
			require.Equal(t, held > 0 && 10*held >= use, isWorthNaming(held, use), "%d of %d", held, use)
		}
	}
	require.True(t, isWorthNaming(math.MaxInt64, math.MaxInt64))
}
