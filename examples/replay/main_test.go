package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// The report shows the effect of each file of overrides on a trace.
func TestTheReportSaysWhatEachFileWouldDo(t *testing.T) {
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace.json.gz")
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsOutbound: 3}}.Build(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithTrace(trace), rcmgr.WithRefusalLog(0))
	require.NoError(t, err)
	for i := range 4 {
		if c, err := rm.OpenConnection(network.DirOutbound, false, nil); i < 3 {
			require.NoError(t, err)
			defer c.Done()
		}
	}
	require.NoError(t, rm.Close())
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
		return name
	}
	strict := file("strict.json", `{"Transient": {"ConnsOutbound": 1}}`)
	lax := file("lax.json", `{}`)
	var out bytes.Buffer
	answer := func(args ...string) error {
		s, err := settingsFrom(args)
		require.NoError(t, err)
		return run(&out, s)
	}
	require.NoError(t, answer("-limits", strict, "-limits", lax, "-memory", "1GiB", "-fds", "100", "-top", "1", trace))
	_, text, _ := strings.Cut(out.String(), "\n") // without the line that has the duration
	require.Equal(t, `
`+strict+`

What                 admitted  now refused  now admitted  refused  not asked
outbound connection  1         2            0             1        0

Who refuses what was admitted

Scope      What                 Times
transient  outbound connection  2

Highest use, where it was half of a limit or more

Scope      Limit          Of  Highest use  Percent
transient  ConnsOutbound  1   1            100.0%

`+lax+`

What                 admitted  now refused  now admitted  refused  not asked
outbound connection  3         0            1             0        0
`, text)

	require.ErrorContains(t, answer("-memory", "1GiB", "-fds", "100", strict), strict+": line 1: expected an event")
}

func TestWrongCommandLinesAreErrors(t *testing.T) {
	dir := t.TempDir()
	trace, slip := filepath.Join(dir, "trace.json"), filepath.Join(dir, "slip.json")
	require.NoError(t, os.WriteFile(trace, nil, 0o600))
	require.NoError(t, os.WriteFile(slip, []byte(`{"Sytem": {}}`), 0o600))
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, `missing argument: expected trace`},
		{[]string{trace, "-top", "3"}, `unexpected argument "-top": expected flags, then nothing but trace`},
		{[]string{trace, trace}, fmt.Sprintf("unexpected argument %q: expected flags, then nothing but trace", trace)},
		{[]string{trace + "x"}, fmt.Sprintf("invalid argument %q: expected the file of a trace: ", trace+"x")},
		{[]string{"-top", "-1", trace}, `invalid value "-1" for flag -top: expected a number of 1 or more`},
		{[]string{"-top", "0", trace}, `invalid value "0" for flag -top: expected a number of 1 or more`},
		{[]string{"-fds", "0", trace}, `invalid value "0" for flag -fds: expected a number of 1 or more`},
		{[]string{"-memory", "a lot", trace}, `invalid value "a lot" for flag -memory: expected a size of more than 0, `},
		{[]string{"-linear=maybe", trace}, `invalid boolean value "maybe" for -linear: expected true or false`},
		{[]string{"-limits", trace + "x", trace}, fmt.Sprintf("invalid value %q for flag -limits: limits: open ", trace+"x")},
		{[]string{"-limits", slip, trace}, "did you mean System?"},
	} {
		_, err := settingsFrom(c.args)
		require.ErrorContains(t, err, c.want, "%q", c.args)
	}
	for value, want := range map[string]rcmgr.Admission{"true": rcmgr.AdmissionLinear, "false": 0} {
		s, err := settingsFrom([]string{"-linear=" + value, trace})
		require.NoError(t, err)
		require.Equal(t, want, s.admission)
		require.NoError(t, s.trace.Close())
	}
}
