package strictjson

// The known name that an unknown one was probably meant to be.

import (
	"fmt"
	"math"
	"strings"
)

// unknownName is the error for a name that is not known. Its text is made only when it is read,
// because it takes long to make, and few of many such errors are read.
type unknownName struct {
	name  string
	known []string
}

func (e *unknownName) Error() string {
	return fmt.Sprintf("unknown name, did you mean %s? Known here are %s", nearest(e.name, e.known), strings.Join(e.known, ", "))
}

// nearest returns the known name that can be reached from name by the fewest edits, regardless of
// upper and lower case.
func nearest(name string, known []string) string {
	name = strings.ToLower(name[:min(len(name), 64)]) // a longer name is near to no known one
	best, fewest := "", math.MaxInt
	for _, k := range known {
		if n := edits(name, strings.ToLower(k)); n < fewest {
			best, fewest = k, n
		}
	}
	return best
}

// edits returns the least number of bytes to insert, delete or replace to turn a into b
// (the Levenshtein distance).
func edits(a, b string) int {
	row := make([]int, len(b)+1) // the edits from the part of a read so far to each start of b
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
