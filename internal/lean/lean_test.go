package lean

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A map is copied once few entries are left of a crowd, and not before: neither while many are
// left, nor if there was no crowd.
func TestMapsAreCopiedWhenACrowdHasGone(t *testing.T) {
	filled := func(n int) map[int]int {
		m := make(map[int]int)
		for i := range n {
			m[i] = -i
		}
		return m
	}
	for _, c := range []struct {
		left, crowd int
		copied      bool
	}{
		{0, leastCrowd - 1, false},
		{0, leastCrowd, true},
		{7, leastCrowd, true},
		{8, leastCrowd, false},
		{movedAtOnce, 16*movedAtOnce + 1, true},
		{movedAtOnce + 1, 100 * movedAtOnce, false},
	} {
		m, crowd := filled(c.left), c.crowd
		out := Map(m, &crowd)
		require.Equal(t, filled(c.left), out, "%+v", c)
		m[-1] = 1 // in the copy it is not
		require.Equal(t, c.copied, len(out) == c.left, "%+v", c)
		if c.copied {
			require.Equal(t, c.left, crowd, "what the map has held since")
		} else {
			require.Equal(t, c.crowd, crowd, "%+v", c)
		}
	}
}
