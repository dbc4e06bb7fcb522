package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestWrongCommandLinesAreErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no", "results.json")
	const between = ": expected regular expressions between slashes: error parsing regexp: "
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"HotPath"}, `unexpected argument "HotPath": expected nothing but flags`},
		{[]string{"-bench", ""}, `invalid value "" for flag -bench: expected a regular expression`},
		{[]string{"-bench", "("}, `invalid value "(" for flag -bench` + between},
		{[]string{"-bench", "a/*b"}, `invalid value "a/*b" for flag -bench` + between},
		{[]string{"-bench", `a\`}, `invalid value "a\\" for flag -bench` + between},
		{[]string{"-rounds", "0"}, `invalid value "0" for flag -rounds: expected a number of 1 or more`},
		{[]string{"-rounds", "NaN"}, `invalid value "NaN" for flag -rounds: expected a number of 1 or more`},
		{[]string{"-time", "0"}, `invalid value "0" for flag -time: expected a duration of more than 0, `},
		{[]string{"-time", "-1s"}, `invalid value "-1s" for flag -time: expected a duration of more than 0, `},
		{[]string{"-time", "10x"}, `invalid value "10x" for flag -time: expected a duration of more than 0, `},
		{[]string{"-json", missing}, fmt.Sprintf("invalid value %q for flag -json: expected a file that can be written: ", missing)},
	} {
		_, err := settingsFrom(c.args)
		require.ErrorContains(t, err, c.want, "%q", c.args)
	}
	s, err := settingsFrom([]string{"-time", "60ms", "-rounds", "9"})
	require.NoError(t, err)
	require.Equal(t, settings{bench: "HotPath|Gates", rounds: 9, length: 60 * time.Millisecond, measure: "ns/op"}, s)
}

func TestAPatternIsWhatGoTestTakes(t *testing.T) {
	for _, good := range []string{"", "HotPath|Gates", "HotPath/limits=.*/work=(far|near)/procs=1", "(a/*b)", "[/(]/x", "]/x", `\(/b`, "a/"} {
		require.NoError(t, checkPattern(good), good)
	}
	for _, bad := range []string{"a/(", "(/b", "[/x", "a/b)", "a/+", "a)(/b"} {
		require.Error(t, checkPattern(bad), bad)
	}
}

func TestTheTablesFit80Columns(t *testing.T) {
	r := report{Go: "go1.26.8", Arch: "linux/amd64", Processors: 2, Processor: "Intel(R) Xeon(R) Processor", Measure: "cpu-ns/op"}
	for _, name := range []string{"HotPath/limits=tight/work=memory-of-one-peer/procs=1", "HotPath/limits=tight/work=all/procs=1", "Gates/work=open", "Alone"} {
		var lines []line
		for impl, takes := range map[string]float64{ours: 1, "ours-without-metrics": 1, "one-mutex": 50, "upstream": 888.8, "upstream-without-metrics": 88.8} {
			lines = append(lines, line{name, impl, Result{1000 * takes, 1}})
		}
		r.add(name, lines)
	}
	var out bytes.Buffer
	r.print(&out)
	for line := range strings.Lines(out.String()) {
		require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), 80, line)
	}
	for _, want := range []string{
		"\nHotPath/limits=tight/procs=1:\n\n",
		"| memory-of-one-peer | 1000     | 50.0      | 1.0   | 888.8    | 88.8      |\n",
		"| all                | 1      | 50.0–50.0 | 1.0–1.0 | 888.8–888.8 | 88.8–88.8 |\n",
		"\nGates:\n\n", "| open     |", "| Alone    |",
	} {
		require.Contains(t, out.String(), want)
	}
}
