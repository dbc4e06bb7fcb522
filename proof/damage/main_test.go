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

func TestWrongCommandLinesAreErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"pool.go"}, `unexpected argument "pool.go": expected nothing but flags`},
		{[]string{"-only", ""}, `invalid value "" for flag -only: expected the name of a file`},
		{[]string{"-only", "NOFILE"}, `invalid value "NOFILE" for flag -only: expected a file that a damage is for, such as ` + damages[0].file},
	} {
		if _, _, err := chosen(c.args); err == nil || err.Error() != c.want {
			t.Errorf("%q: %v, want %s", c.args, err, c.want)
		}
	}
	all, _, err := chosen(nil)
	if err != nil || len(all) != len(damages) {
		t.Errorf("%d of %d, %v", len(all), len(damages), err)
	}
	only, _, err := chosen([]string{"-only", damages[0].file})
	if err != nil || len(only) == 0 || len(only) == len(all) {
		t.Errorf("%d of %d, %v", len(only), len(damages), err)
	}
	for _, d := range only {
		if d.file != damages[0].file {
			t.Error(d.file)
		}
	}
}
