// Command damage breaks the engine, the gates and the limits in one small way at a time,
// and checks that the tests notice. It changes no file: damaged files replace the real ones
// in the build alone.
//
//	go run ./proof/damage            # in the top directory of the repository
//	go run ./proof/damage -only pool.go
package main

import (
	_ "embed"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

// damage replaces one piece of a file with another.
type damage struct {
	file, was, now string
}

// settings is the command line.
type settings struct {
	only, first, keep string
	write             bool
}

// chosen reads the command line and returns the damages that it selects.
func chosen(args []string) (all []damage, s settings, err error) {
	l := cmdline.New("damage").About(`
Damages the source in a copy, one damage after the other, and says which damages
no test notices. Takes an hour or more without -only.
`)
	l.File(&s.only, "only", "damage this `file` alone, or the files of this directory")
	l.Text(&s.first, "first", "run the tests whose names match this `expression` before others", "a regular expression")
	l.File(&s.keep, "keep", "keep the test binaries in this `directory`, and try nothing")
	l.Bool(&s.write, "write", "write which test noticed each damage to "+caughtFile+", so that it runs first the next time")
	if err := l.Parse(args); err != nil || s.only == "" {
		return damages, s, err
	}
	all = slices.DeleteFunc(slices.Clone(damages), func(d damage) bool { return d.file != s.only && filepath.Dir(d.file) != filepath.Clean(s.only) })
	if len(all) == 0 {
		return nil, s, cmdline.Wrong("only", s.only, errors.New("expected a file that a damage is for, such as "+damages[0].file))
	}
	return all, s, nil
}

func main() {
	all, s, err := chosen(os.Args[1:])
	cmdline.ExitOn("damage", err)
	if s.keep != "" {
		cmdline.ExitOn("damage", compileIn(s.keep, all))
		return
	}
	dir, err := os.MkdirTemp("", "damage")
	if err != nil {
		fmt.Fprintln(os.Stderr, "damage:", err)
		os.Exit(1)
	}
	wrong, err := tryAll(dir, all, s)
	os.RemoveAll(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "damage:", err)
	}
	if err != nil || wrong > 0 {
		os.Exit(1)
	}
}

// compileIn compiles the common binaries in a directory, and says how a damage is tried by hand.
func compileIn(dir string, all []damage) error {
	t, err := newTrial(dir, all)
	if err != nil {
		return err
	}
	for i, d := range all {
		fmt.Printf("%3d %s: %s: %s\n", i+1, d.file, oneLine(d.was), oneLine(d.now))
		c := t.modules[d.module()]
		if c == nil || !c.has[i+1] {
			fmt.Println("    not in the common binary")
			continue
		}
		for _, pkg := range d.packages() {
			name, err := c.bins.tests(pkg)
			if err != nil {
				return err
			}
			fmt.Printf("    cd %s && %s=%d %s -test.short\n", pkg, variable, i+1, name)
		}
	}
	return nil
}

// tryAll tries damages one after the other, and returns how many no test notices.
func tryAll(dir string, all []damage, s settings) (wrong int, err error) {
	began := time.Now()
	t, err := newTrial(dir, all)
	if err != nil {
		return 0, err
	}
	t.first = s.first
	fmt.Printf("compiled in %v\n", time.Since(began).Round(time.Second))
	caught, tried := 0, time.Now()
	for i, d := range all {
		left := time.Since(tried) / time.Duration(max(1, i)) * time.Duration(len(all)-i)
		fmt.Printf("%3d of %d, %v left  %s %s ", i+1, len(all), left.Round(time.Second), d.file, oneLine(d.was))
		by, err := t.try(i, d)
		if err != nil {
			wrong++
			fmt.Printf("WRONG: %v\n\tinstead of %s: %s\n", err, oneLine(d.was), oneLine(d.now))
			continue
		}
		caught++
		t.caught[d.key()] = by
		fmt.Println("caught by", by)
	}
	fmt.Printf("%d caught, %d not, in %v\n", caught, wrong, time.Since(began).Round(time.Second))
	if s.write {
		return wrong, os.WriteFile(caughtFile, []byte(t.caught.text(damages)), 0o666)
	}
	return wrong, nil
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 57 {
		s = s[:57] + "…"
	}
	return s
}

// trial tries damages.
type trial struct {
	dir     string
	first   string
	modules map[string]*common
	caught  caught
}

func newTrial(dir string, all []damage) (*trial, error) {
	t := &trial{dir: dir, modules: map[string]*common{}, caught: readCaught(caughtText)}
	of := map[string]map[int]damage{}
	for i, d := range all {
		if _, err := d.source(); err != nil {
			continue // which try says
		}
		m := d.module()
		if of[m] == nil {
			of[m] = map[int]damage{}
		}
		of[m][i+1] = d
	}
	for m, numbered := range of {
		sub, err := os.MkdirTemp(dir, "common")
		if err != nil {
			return nil, err
		}
		if t.modules[m], err = newCommon(sub, m, numbered); err != nil {
			return nil, err
		}
	}
	return t, nil
}

const (
	mostForOne = time.Minute
	mostForAll = 5 * time.Minute
)

// try runs the tests on the damaged source, and returns the name of a test that fails.
func (t *trial) try(i int, d damage) (by string, err error) {
	source, err := d.source()
	if err != nil {
		return "", err
	}
	if c := t.modules[d.module()]; c.has[i+1] {
		if by, err = t.tryIn(c.bins, i+1, d); by != "" || err != nil {
			return by, err
		}
	}
	alone, err := os.MkdirTemp(t.dir, "alone")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(alone)
	b := newBinaries(alone)
	if err := b.replace(d.file, strings.Replace(source, d.was, d.now, 1)); err != nil {
		return "", err
	}
	if by, err = t.tryIn(b, inAll, d); by == "" && err == nil {
		err = errors.New("no test noticed")
	}
	return by, err
}

// tryIn runs the tests that are likely to notice a damage, and then all others.
func (t *trial) tryIn(b *binaries, number int, d damage) (by string, err error) {
	for _, pkg := range d.packages() {
		for _, only := range []string{t.first, exactlyOr(t.caught[d.key()])} {
			if only == "" {
				continue
			}
			if by, err = b.run(pkg, number, only, mostForOne); by != "" || err != nil {
				return by, err
			}
		}
	}
	for _, pkg := range d.packages() {
		if by, err = b.run(pkg, number, "", mostForAll); by != "" || err != nil {
			return by, err
		}
	}
	return "", nil
}

func exactlyOr(test string) string {
	if test == "" {
		return ""
	}
	return exactly(test)
}

// caught has the test that noticed a damage the last time, by the key of the damage. It says which
// tests are likely to notice it again, and no more.
type caught map[string]string

const caughtFile = "proof/damage/caught.txt"

//go:embed caught.txt
var caughtText string

// key returns a short name of the damage.
func (d *damage) key() string {
	return fmt.Sprintf("%s %08x", d.file, crc32.ChecksumIEEE([]byte(d.was+"\x00"+d.now)))
}

func readCaught(text string) caught {
	c := caught{}
	for line := range strings.Lines(text) {
		if key, test, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			c[key] = test
		}
	}
	return c
}

// text returns what readCaught reads, in the order of all damages.
func (c caught) text(all []damage) string {
	var lines []string
	for _, d := range all {
		if test := c[d.key()]; strings.HasPrefix(test, "Test") || strings.HasPrefix(test, "Fuzz") || strings.HasPrefix(test, "Example") {
			lines = append(lines, d.key()+": "+test+"\n")
		}
	}
	return strings.Join(lines, "")
}
