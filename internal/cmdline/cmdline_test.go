package cmdline

import (
	"bytes"
	"errors"
	"go/parser"
	"go/token"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// all has one of each flag, with defaults.
type all struct {
	n     int
	least int
	seed  uint64
	d     time.Duration
	size  int64
	which string
	file  string
	files []string
	addr  string
	yes   bool
	one   string
	line  *Line
}

func readAll(args ...string) (a all, err error) {
	a = all{n: 8, d: time.Second, which: "this"}
	a.line = New("prog").About("Does this.\nAnd that.\n")
	a.line.Int(&a.n, "n", 2, 9, "how many")
	a.line.Int(&a.least, "least", 1, math.MaxInt, "how many at least")
	a.line.Seed(&a.seed, "seed", "of chance")
	a.line.Duration(&a.d, "d", "how `long`")
	a.line.Size(&a.size, "size", "`bytes`")
	a.line.Choice(&a.which, "which", "of them", "this", "that", "those")
	a.line.File(&a.file, "file", "a `file`")
	a.line.Files(&a.files, "files", "a `file`, by default a.json")
	a.line.Address(&a.addr, "addr", "an address")
	a.line.Bool(&a.yes, "yes", "or no")
	a.line.Argument(&a.one, "trace")
	return a, a.line.Parse(args)
}

func TestAnythingWrongNamesTheFlagItsValueAndWhatWasExpected(t *testing.T) {
	const (
		number   = "expected a number from 2 to 9"
		atLeast  = "expected a number of 1 or more"
		seed     = "expected a number from 0 to 18446744073709551615"
		duration = "expected a duration of more than 0, such as 10s or 1m30s"
		size     = "expected a size of more than 0, such as 512MiB or 2GiB"
		file     = "expected the name of a file"
		address  = "expected an address with a port, such as 127.0.0.1:8080"
	)
	for _, c := range []struct {
		flag     string
		values   []string
		expected string
	}{
		{"n", []string{"", "1", "10", "0", "-1", "NaN", "2.5", "1e1", "99999999999999999999", "x"}, number},
		{"least", []string{"", "0", "-9", "99999999999999999999"}, atLeast},
		{"seed", []string{"", "-1", "18446744073709551616", "x"}, seed},
		{"d", []string{"", "0", "0s", "-1s", "5", "x", "NaNs", "9999999h"}, duration},
		{"size", []string{"", "0", "-1", "NaN", "16EiB", "8EiB", "a lot", "1MiBs"}, size},
		{"which", []string{"", "This", "thi"}, "expected this, that or those"},
		{"file", []string{""}, file},
		{"files", []string{""}, file},
		{"addr", []string{"", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:80"}, address},
	} {
		for _, v := range c.values {
			_, err := readAll("-"+c.flag, v, "x.gz")
			require.EqualError(t, err, "invalid value "+strconv.Quote(v)+" for flag -"+c.flag+": "+c.expected)
		}
	}
	for want, args := range map[string][]string{
		`invalid boolean value "x" for -yes: expected true or false`:         {"-yes=x", "x.gz"},
		`flag provided but not defined: -no`:                                 {"-no", "x.gz"},
		`flag needs an argument: -n`:                                         {"-n"},
		`missing argument: expected trace`:                                   {"-n", "5"},
		`unexpected argument "-n": expected flags, then nothing but trace`:   {"x.gz", "-n", "5"},
		`unexpected argument "y.gz": expected flags, then nothing but trace`: {"x.gz", "y.gz"},
	} {
		_, err := readAll(args...)
		require.EqualError(t, err, want)
	}
	why := errors.New("expected with -d")
	require.EqualError(t, Wrong("n", "5", why), `invalid value "5" for flag -n: expected with -d`)
	require.ErrorIs(t, Wrong("n", "5", why), why)
	require.EqualError(t, New("none").Parse([]string{"x"}), `unexpected argument "x": expected nothing but flags`)
}

func TestValidFlagsAreRead(t *testing.T) {
	a, err := readAll("-n", "9", "-least", "1", "-seed", "18446744073709551615", "-d", "1m30s", "-size", "2GiB", "-which", "that",
		"-file", "a", "-files", "b", "-files", "c", "-addr", ":0", "-yes", "x.gz")
	require.NoError(t, err)
	require.True(t, a.line.Given("n"))
	line := a.line
	a.line = nil
	require.Equal(t, all{n: 9, least: 1, seed: math.MaxUint64, d: 90 * time.Second, size: 2 << 30, which: "that",
		file: "a", files: []string{"b", "c"}, addr: ":0", yes: true, one: "x.gz"}, a)
	require.True(t, line.Given("yes"))
	a, err = readAll("-yes=false", "x.gz")
	require.NoError(t, err)
	require.False(t, a.yes)
	require.False(t, a.line.Given("n"))
	require.Equal(t, 8, a.n)
}

func TestHelpIsNoMistake(t *testing.T) {
	_, err := readAll("-h")
	var out, errOut bytes.Buffer
	require.Equal(t, 0, tell("prog", err, &out, &errOut))
	require.Empty(t, errOut.String())
	for _, want := range []string{
		"usage: prog [flags] trace\n\nDoes this.\nAnd that.\n\n",
		"  -d long\n    \thow long; a duration of more than 0, such as 10s or 1m30s (default 1s)\n",
		"\thow many; a number from 2 to 9 (default 8)\n",
		"\thow many at least; a number of 1 or more (default none)\n",
		"\tbytes; a size of more than 0, such as 512MiB or 2GiB (default none)\n",
		"\tof them; this, that or those (default this)\n",
		"\ta file (default none)\n",
		"\ta file, by default a.json; may be given more than once\n",
		"\tor no (default false)\n",
	} {
		require.Contains(t, out.String(), want)
	}

	out.Reset()
	_, err = readAll("-n", "1")
	require.Equal(t, 2, tell("prog", err, &out, &errOut))
	require.Empty(t, out.String())
	require.Equal(t, "prog: invalid value \"1\" for flag -n: expected a number from 2 to 9\n", errOut.String())
}

func TestAFileThatCannotBeWrittenIsKnownBeforeAndNothingIsChanged(t *testing.T) {
	require.NoError(t, CheckOutput("json", ""))
	dir := t.TempDir()
	file := filepath.Join(dir, "new")
	require.NoError(t, CheckOutput("json", file))
	require.NoFileExists(t, file)
	require.NoError(t, os.WriteFile(file, []byte("old"), 0o600))
	require.NoError(t, CheckOutput("json", file))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "old", string(text))
	for _, bad := range []string{dir, filepath.Join(dir, "no", "new"), filepath.Join(file, "new")} {
		err := CheckOutput("json", bad)
		require.ErrorContains(t, err, "invalid value "+strconv.Quote(bad)+" for flag -json: expected a file that can be written: ")
	}
}

// A program that reads its command line by itself would do so in its own way.
func TestEveryProgramReadsItsCommandLineHere(t *testing.T) {
	programs, err := filepath.Glob("../../*/*/main.go")
	require.NoError(t, err)
	programs = slices.DeleteFunc(programs, func(program string) bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(program), "go.mod"))
		return err == nil // a module of its own, with a library of its own for command lines
	})
	require.GreaterOrEqual(t, len(programs), 9)
	for _, program := range programs {
		text, err := os.ReadFile(program)
		require.NoError(t, err)
		name := filepath.Base(filepath.Dir(program))
		require.Contains(t, string(text), "cmdline.ExitOn("+strconv.Quote(name)+", ", program)
		require.Contains(t, string(text), "cmdline.New("+strconv.Quote(name)+").About(", "%s: -h says what it does", program)
		files, err := filepath.Glob(filepath.Join(filepath.Dir(program), "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			require.NoError(t, err)
			for _, i := range f.Imports {
				require.NotEqual(t, `"flag"`, i.Path.Value, file)
			}
		}
	}
}

// Help fits a terminal of 80 columns, with tabs of eight.
func TestHelpOfEveryProgramFitsATerminal(t *testing.T) {
	l := New("prog").About(strings.Repeat("word ", 40))
	var file string
	l.File(&file, "file", "`file` for "+strings.Repeat("größe ", 30)+"end")
	l.Text(&file, "x", strings.Repeat("y", 90), "a text")
	text := l.usage()
	require.Contains(t, text, "end (default none)")
	wide := 0
	for line := range strings.Lines(text) {
		if strings.Contains(line, "yyy") {
			wide++ // no word is cut
			continue
		}
		require.LessOrEqual(t, len([]rune(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "    \t", "        "))), 80, line)
	}
	require.Equal(t, 1, wide)
	require.Equal(t, "    \tshort\n", fit("    \tshort\n"))
}
