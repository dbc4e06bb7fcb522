package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

func TestAFileThatChangesIsReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.json")
	w := watcher{file: file, node: rcmgr.NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100}}
	limits, err := w.read()
	require.NoError(t, err, "there need be no file")
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	require.NoError(t, err)
	defer rm.Close()
	reload := func() string {
		var out bytes.Buffer
		w.reload(rm, &out)
		require.False(t, w.changed())
		return out.String()
	}
	write := func(text string) {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.True(t, w.changed())
	}
	require.False(t, w.changed())

	write(`{"System": {"ConnsInbound": 2000}}`)
	require.Equal(t, "System.ConnsInbound: 1024 -> 2000 (override)\n", reload())
	require.Equal(t, "limits are as they were\n", reload())

	write(`{"System": {"ConnInbound": 2000, "Memory": "1MiB"}}`)
	require.Contains(t, reload(), "limits stay as they are: limits: "+file+": line 1, column 13: System.ConnInbound: unknown name, did you mean ConnsInbound?")
	require.Equal(t, 2000, rm.Limits().ToPartialLimitConfig().System.ConnsInbound.Build(0))

	write(`{"Service": {"x": {"Streams": 5}}}`)
	lines := reload()
	require.Contains(t, lines, `Service["x"].Streams: "" -> 5 (override)`)
	require.Contains(t, lines, "System.ConnsInbound: 2000 -> 1024 (node)")
	require.NoError(t, os.Remove(file))
	require.True(t, w.changed())
	require.Equal(t, 8, strings.Count(reload(), `not named any more`))
}

// lineOut is a writer that sends each line to a receiver.
type lineOut chan string

func (l lineOut) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func TestAHostReadsItsLimitsAgainOnHangup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.json")
	look, hangup, out := make(chan time.Time), make(chan os.Signal), make(lineOut)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	s, err := settingsFrom([]string{"-limits", file, "-memory", "1GiB"})
	require.NoError(t, err)
	go func() { ended <- run(ctx, s, look, hangup, out) }()
	require.Equal(t, "there is no "+file+" yet\n", <-out)
	require.Contains(t, <-out, "/ip4/127.0.0.1/tcp/")
	hangup <- syscall.SIGHUP
	require.Equal(t, "limits are as they were\n", <-out)
	require.NoError(t, os.WriteFile(file, []byte(`{"System": {"ConnsInbound": 2000}}`), 0o600))
	look <- time.Time{}
	require.Equal(t, "System.ConnsInbound: 1024 -> 2000 (override)\n", <-out)
	look <- time.Time{} // nothing has changed
	cancel()
	require.NoError(t, <-ended)
}

func TestWrongCommandLinesAreErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "limits.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"System": {"Memory": "64MiBs"}}`), 0o600))
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{file}, fmt.Sprintf("unexpected argument %q: expected nothing but flags", file)},
		{[]string{"-every", "0"}, `invalid value "0" for flag -every: expected a duration of more than 0, `},
		{[]string{"-every", "-1s"}, `invalid value "-1s" for flag -every: expected a duration of more than 0, `},
		{[]string{"-memory", "a lot"}, `invalid value "a lot" for flag -memory: expected a size of more than 0, `},
		{[]string{"-memory", "0"}, `invalid value "0" for flag -memory: expected a size of more than 0, `},
		{[]string{"-limits", ""}, `invalid value "" for flag -limits: expected the name of a file`},
		{[]string{"-limits", dir}, fmt.Sprintf("invalid value %q for flag -limits: ", dir)},
		{[]string{"-limits", file}, fmt.Sprintf("invalid value %q for flag -limits: limits: %s: line 1, column 23: ", file, file)},
	} {
		_, err := settingsFrom(c.args)
		require.ErrorContains(t, err, c.want, "%q", c.args)
	}
	s, err := settingsFrom([]string{"-limits", filepath.Join(dir, "later.json"), "-every", "3s", "-memory", "1GiB"})
	require.NoError(t, err)
	require.Equal(t, 3*time.Second, s.every)
	require.EqualValues(t, 1<<30, s.node.MaxMemory)
}
