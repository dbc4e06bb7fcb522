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
	// On a slow machine it takes longer until somebody has fetched something.
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

func TestSettingsThatMakeNoSoakAreErrors(t *testing.T) {
	good := settings{duration: time.Second, hosts: fewestHosts}
	require.NoError(t, good.check(nil))
	require.ErrorContains(t, good.check([]string{"5m"}), `"5m"`)
	require.ErrorContains(t, (&settings{hosts: fewestHosts}).check(nil), "-duration 0s")
	require.ErrorContains(t, (&settings{duration: 1, hosts: 5}).check(nil), "-hosts 5")
}

// A check that finds nothing wrong with what is wrong would be none.
func TestWhatDoesNotAddUpIsFound(t *testing.T) {
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
