package vote

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/testseed"
)

func TestANameWithMoreThanHalfOfTheVotesIsFoundAndNeverOvercounted(t *testing.T) {
	random := testseed.Random(t)
	for range 200 {
		var parts [3]Majority[int]
		had, total := map[int]uint64{}, uint64(0)
		favourite := random.IntN(5)
		for range 1 + random.IntN(300) {
			name := random.IntN(5)
			if random.IntN(3) == 0 {
				name = favourite
			}
			had[name]++
			total++
			parts[random.IntN(len(parts))].Add(name, 1)
		}
		var all Majority[int]
		for _, p := range parts {
			all.Add(p.Name, p.Votes)
		}
		require.LessOrEqual(t, all.Votes, had[all.Name])
		for name, n := range had {
			if n > total/2 {
				require.Equal(t, name, all.Name)
			}
		}
	}
}

func TestVotesForAnotherNameAreSubtractedUntilItLeads(t *testing.T) {
	var m Majority[string]
	for _, step := range []struct {
		name  string
		votes uint64
		want  Majority[string]
	}{
		{"a", 2, Majority[string]{"a", 2}},
		{"b", 5, Majority[string]{"b", 3}},
		{"a", 2, Majority[string]{"b", 1}},
		{"c", 1, Majority[string]{"b", 0}},
		{"c", 1, Majority[string]{"c", 1}},
	} {
		m.Add(step.name, step.votes)
		require.Equal(t, step.want, m)
	}
}
