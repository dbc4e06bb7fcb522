package main

// Test binaries of damaged source, and what they say.

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// source returns the file that is damaged, which has the piece once.
func (d *damage) source() (string, error) {
	source, err := os.ReadFile(d.file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), d.was); n != 1 {
		return "", fmt.Errorf("it is there %d times, and must be there once: the source has changed", n)
	}
	return string(source), nil
}

// module returns the directory of the module that the damage is in.
func (d *damage) module() string {
	own := filepath.Dir(d.file)
	if _, err := os.Stat(filepath.Join(own, "go.mod")); err == nil {
		return own
	}
	return "."
}

// packages returns the directories whose tests are run. A package in a subdirectory has
// tests of its own, which run first. A module in a subdirectory has no other ones.
func (d *damage) packages() []string {
	own := filepath.Dir(d.file)
	switch {
	case own == "." || filepath.Ext(d.file) != ".go":
		return []string{"."}
	case d.module() != ".":
		return []string{own}
	}
	return []string{own, "."}
}

// binaries are test binaries that are compiled from files some of which are replaced.
type binaries struct {
	dir      string
	replaced map[string]string // by the absolute name of a file
	built    map[string]string // by the directory of a package
	unsound  map[string]bool   // by the name of a test: whether it fails without a damage, too
}

func newBinaries(dir string) *binaries {
	return &binaries{dir: dir, replaced: map[string]string{}, built: map[string]string{}, unsound: map[string]bool{}}
}

// replace replaces a file, or adds one.
func (b *binaries) replace(file, text string) error {
	real, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(b.dir, "*"+filepath.Ext(file))
	if err != nil {
		return err
	}
	b.replaced[real] = f.Name()
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// overlay returns the name of a file that tells the go command what is replaced.
func (b *binaries) overlay() (name string, err error) {
	text, err := json.Marshal(map[string]map[string]string{"Replace": b.replaced})
	if err != nil {
		return "", err
	}
	name = filepath.Join(b.dir, "overlay.json")
	return name, os.WriteFile(name, text, 0o600)
}

// tests compiles the tests of a package, unless it has done so, and returns the binary.
func (b *binaries) tests(pkg string) (name string, err error) {
	if name, ok := b.built[pkg]; ok {
		return name, nil
	}
	overlay, err := b.overlay()
	if err != nil {
		return "", err
	}
	name = filepath.Join(b.dir, "tests"+strconv.Itoa(len(b.built)))
	build := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay", overlay, "-o", name, ".")
	build.Dir = pkg // which may be in a module of its own
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not compile: %s", out)
	}
	b.built[pkg] = name
	return name, nil
}

// ofHosts is the package of which all tests are run, because those with -short, which leave out
// real hosts, are none.
const ofHosts = "rcmgrhost"

// inAll is the number of a damage that is in the whole binary.
const inAll = 0

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)|^panic: (test timed out)|^(fatal error: .*|panic: .*)`)

// run runs tests of a package with a damage, all short ones if only is empty, and returns the
// name of one that fails, or "".
func (b *binaries) run(pkg string, number int, only string, most time.Duration) (by string, err error) {
	name, err := b.tests(pkg)
	if err != nil {
		return "", err
	}
	for {
		args := []string{"-test.failfast", "-test.timeout=" + most.String()}
		if pkg != ofHosts {
			args = append(args, "-test.short")
		}
		if only != "" {
			args = append(args, "-test.run="+only)
		}
		var skip []string
		for test, is := range b.unsound {
			if is {
				skip = append(skip, exactly(test))
			}
		}
		if len(skip) > 0 {
			args = append(args, "-test.skip="+strings.Join(skip, "|"))
		}
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = pkg, append(os.Environ(), variable+"="+strconv.Itoa(number))
		out, err := cmd.CombinedOutput()
		if err == nil {
			return "", nil
		}
		m := failed.FindSubmatch(out)
		if m == nil {
			return "", fmt.Errorf("the tests did not fail, but end with %v", err)
		}
		if by = string(m[1]); by == "" {
			return string(m[2]) + string(m[3]), nil
		}
		if number == inAll {
			return by, nil
		}
		by, _, _ = strings.Cut(by, "/")
		if _, known := b.unsound[by]; !known {
			undamaged, err := b.run(pkg, inAll, exactly(by), most)
			if err != nil {
				return "", err
			}
			b.unsound[by] = undamaged != ""
		}
		if !b.unsound[by] {
			return by, nil
		}
	}
}

// exactly returns an expression for one test.
func exactly(test string) string { return "^" + test + "$" }
