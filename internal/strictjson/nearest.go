package strictjson

// What a name that nobody knows was probably meant to be.

import (
	"fmt"
	"math"
	"strings"
)

// unknownName is an error whose text is made when it is read: of many, few are.
type unknownName struct {
	name  string
	known []string
}

func (e *unknownName) Error() string {
	return fmt.Sprintf("unknown name, did you mean %s? Known here are %s", nearest(e.name, e.known), strings.Join(e.known, ", "))
}

// nearest returns the known name that takes the fewest edits to get to.
func nearest(name string, known []string) string {
	name = strings.ToLower(name[:min(len(name), 64)]) // longer ones are near to nothing
	best, fewest := "", math.MaxInt
	for _, k := range known {
		if n := edits(name, strings.ToLower(k)); n < fewest {
			best, fewest = k, n
		}
	}
	return best
}

// edits returns how many bytes to insert, delete or replace to get from a to b
// (Levenshtein's distance).
func edits(a, b string) int {
	row := make([]int, len(b)+1) // from what has been read of a to each start of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
