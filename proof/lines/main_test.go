package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two threads take turns at line 0x40. Whatever the other has written last comes over once, for
// reading or writing; what a thread has itself, what nobody has written, and what lies between
// rounds, does not count.
func TestALineComesOverWhenTheOtherThreadWroteItLast(t *testing.T) {
	round := func(mark string, body ...string) string {
		return "I  1000,4\n S " + mark + ",8\n" + strings.Join(body, "\n") + "\n S 9010,8\n"
	}
	const first, second = "9000", "9008"
	var text strings.Builder
	for range warm {
		text.WriteString(round(first, "I  1000,3", " S 1000,8") + round(second, " L 2000,8"))
	}
	text.WriteString("==1== a message\n S 1000,8\n") // between rounds
	text.WriteString(round(second, "I  2000,3", " L 1008,8", " L 1010,8", "I  2010,3", " M 1020,8"))
	text.WriteString(round(first, "I  3000,3", " S 103c,8")) // over two lines: the other's, and one that is new
	text.WriteString(round(first, " L 1000,8", " S 1040,4"))
	tr := trace{marks: 0x9000, lines: map[uint64]*line{}, moves: map[move]int{}}
	require.NoError(t, tr.read(strings.NewReader(text.String())))
	require.Equal(t, 2*warm+3, tr.rounds)
	require.Equal(t, map[move]int{{wrote: 0x1000, needs: 0x2000}: 1, {wrote: 0x2010, needs: 0x3000}: 1}, tr.moves)
}

func TestParse(t *testing.T) {
	workload, err := parse([]string{"stream"})
	require.NoError(t, err)
	require.Equal(t, "stream", workload)
	_, err = parse(nil)
	require.Error(t, err)
}
