// Command damage breaks the engine, the gates and the limits in one small way at a time,
// and checks that the tests notice. It changes no file: each damaged file replaces the
// real one in the build alone.
//
//	go run ./proof/damage            # in the top directory of the repository
//	go run ./proof/damage -only pool.go
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

// damage replaces one piece of a file with another.
type damage struct {
	file, was, now string
}

// chosen reads the command line and returns the damages that it selects.
func chosen(args []string) ([]damage, error) {
	var only string
	l := cmdline.New("damage").About(`
Damages the source in a copy, one damage after the other, and says which damages
no test notices. Takes hours without -only.
`)
	l.File(&only, "only", "damage this `file` alone")
	if err := l.Parse(args); err != nil || only == "" {
		return damages, err
	}
	all := slices.DeleteFunc(slices.Clone(damages), func(d damage) bool { return d.file != only })
	if len(all) == 0 {
		return nil, cmdline.Wrong("only", only, errors.New("expected a file that a damage is for, such as "+damages[0].file))
	}
	return all, nil
}

func main() {
	all, err := chosen(os.Args[1:])
	cmdline.ExitOn("damage", err)
	dir, err := os.MkdirTemp("", "damage")
	if err != nil {
		fmt.Fprintln(os.Stderr, "damage:", err)
		os.Exit(1)
	}
	defer os.RemoveAll(dir)
	caught, wrong, began := 0, 0, time.Now()
	for i, d := range all {
		fmt.Printf("%2d of %d  %-14s %-60s ", i+1, len(all), d.file, oneLine(d.was))
		by, err := d.try(dir)
		if err != nil {
			wrong++
			fmt.Printf("WRONG: %v\n\tinstead of %s: %s\n", err, oneLine(d.was), oneLine(d.now))
			continue
		}
		caught++
		fmt.Println("caught by", by)
	}
	fmt.Printf("%d caught, %d not, in %v\n", caught, wrong, time.Since(began).Round(time.Second))
	if wrong > 0 {
		os.RemoveAll(dir)
		os.Exit(1)
	}
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 57 {
		s = s[:57] + "…"
	}
	return s
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)|^panic: (test timed out)|^(fatal error: .*|panic: .*)`)

// try runs the tests on the damaged source, and returns the name of a test that fails.
func (d *damage) try(dir string) (by string, err error) {
	source, err := os.ReadFile(d.file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), d.was); n != 1 {
		return "", fmt.Errorf("it is there %d times, and must be there once: the source has changed", n)
	}
	real, err := filepath.Abs(d.file)
	if err != nil {
		return "", err
	}
	damaged, overlay, tests := filepath.Join(dir, "damaged.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "tests")
	if err := os.WriteFile(damaged, []byte(strings.Replace(string(source), d.was, d.now, 1)), 0o600); err != nil {
		return "", err
	}
	text, err := json.Marshal(map[string]map[string]string{"Replace": {real: damaged}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		return "", err
	}
	for _, pkg := range d.packages() {
		build := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay", overlay, "-o", tests, ".")
		build.Dir = pkg // which may be a module of its own
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("it does not compile: %s", out)
		}
		run := exec.Command(tests, "-test.short", "-test.failfast", "-test.timeout=5m")
		run.Dir = pkg
		out, err := run.CombinedOutput()
		if err == nil {
			continue
		}
		for _, m := range failed.FindAllStringSubmatch(string(out), 1) {
			return strings.Join(m[1:], ""), nil
		}
		return "", fmt.Errorf("the tests did not fail, but end with %v", err)
	}
	return "", errors.New("no test noticed")
}

// packages returns the directories whose tests are run. A package in a subdirectory has
// tests of its own, which run first. A module in a subdirectory has no other ones.
func (d *damage) packages() []string {
	own := filepath.Dir(d.file)
	if own == "." || filepath.Ext(d.file) != ".go" {
		return []string{"."}
	}
	if _, err := os.Stat(filepath.Join(own, "go.mod")); err == nil {
		return []string{own}
	}
	return []string{own, "."}
}
