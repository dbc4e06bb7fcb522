package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Running the damages takes long. That each still has its piece of the source is
// seen at once.
func TestEveryDamageHasItsPieceOfTheSource(t *testing.T) {
	for _, d := range damages {
		source, err := os.ReadFile(filepath.Join("..", "..", d.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), d.was); n != 1 {
			t.Errorf("%s has this %d times, expected once: %s", d.file, n, d.was)
		}
		if d.was == d.now {
			t.Errorf("%s is not damaged by this: %s", d.file, d.was)
		}
	}
}
