package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

func TestASoakFindsNothingWrong(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real hosts for three seconds")
	}
	// On a slow machine it takes longer until anything has been fetched.
	for duration, fetched := 3*time.Second, false; !fetched; duration *= 2 {
		var out bytes.Buffer
		sound, err := soak(context.Background(), settings{duration: duration, hosts: fewestHosts + 2, seed: 1}, &out)
		require.NoError(t, err)
		require.True(t, sound, out.String())
		require.Contains(t, out.String(), "found wrong    0")
		require.Regexp(t, `checked        [1-9]\d* times all managers, [1-9]`, out.String())
		fetched = !strings.Contains(out.String(), "fetched        0,")
		require.True(t, fetched || duration < time.Minute, out.String())
	}
}

func TestWrongCommandLinesAreErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"5m"}, `unexpected argument "5m": expected nothing but flags`},
		{[]string{"-duration", "0s"}, `invalid value "0s" for flag -duration: expected a duration of more than 0, `},
		{[]string{"-hosts", "5"}, `invalid value "5" for flag -hosts: expected a number from 6 to 1000`},
		{[]string{"-hosts", "1001"}, `invalid value "1001" for flag -hosts: expected a number from 6 to 1000`},
		{[]string{"-seed", "-1"}, `invalid value "-1" for flag -seed: expected a number from 0 to `},
	} {
		_, err := settingsFrom(c.args)
		require.ErrorContains(t, err, c.want, "%q", c.args)
	}
	s, err := settingsFrom([]string{"-duration", "5m", "-seed", "0"})
	require.NoError(t, err)
	require.Equal(t, settings{duration: 5 * time.Minute, hosts: 24}, s)
	s, err = settingsFrom(nil)
	require.NoError(t, err)
	require.NotZero(t, s.seed)
}

// A check that cannot find a fault proves nothing.
func TestSumsThatDoNotAddUpAreFound(t *testing.T) {
	m, err := rcmgr.New(nil)
	require.NoError(t, err)
	defer m.Close()
	c, err := m.OpenConnection(network.DirInbound, true, nil)
	require.NoError(t, err)
	defer c.Done()
	require.NoError(t, c.SetPeer("somebody"))
	s, err := m.OpenStream("somebody", network.DirOutbound)
	require.NoError(t, err)
	defer s.Done()
	require.NoError(t, s.SetProtocol("/p"))

	sound := m.Snapshot()
	require.Empty(t, problems(&sound, false))
	for i, sc := range sound.Scopes {
		if sc.Use == (network.ScopeStat{}) {
			continue
		}
		lost := m.Snapshot()
		lost.Scopes[i].Use = network.ScopeStat{}
		require.NotEmpty(t, problems(&lost, false), "%s has lost what it held", sc.Name)
		over := m.Snapshot()
		over.Scopes[i].Limit = rcmgr.BaseLimit{}
		require.NotEmpty(t, problems(&over, false), "%s holds more than its limit", sc.Name)
		require.Equal(t, sc.Kind == rcmgr.KindSystem, len(problems(&over, true)) == 0, "%s", sc.Name)
	}
	bug := m.Snapshot()
	bug.CallerBugs = 1
	require.NotEmpty(t, problems(&bug, false))
}

func TestAConnectionThatNobodyAccountsIsFound(t *testing.T) {
	if connections() < 0 {
		t.Skip("nobody tells what this process has")
	}
	var out bytes.Buffer
	w := newWorld(settings{}, &out)
	w.patience = 0
	w.pause()
	require.Zero(t, w.wrong, out.String())
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	w.pause()
	require.Zero(t, w.wrong, "a listener is no connection")
	c, err := net.Dial("tcp4", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	w.pause()
	require.Equal(t, 1, w.wrong)
	require.Contains(t, out.String(), "0 descriptors are accounted, the process has 1")
}
