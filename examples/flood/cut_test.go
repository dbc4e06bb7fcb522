package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// What attackers hold is what all hold, without the friend.
func TestLootLeavesOutTheFriend(t *testing.T) {
	scope := func(k rcmgr.Kind, name string, conns int) rcmgr.ScopeState {
		return rcmgr.ScopeState{Kind: k, Name: name, Use: network.ScopeStat{NumConnsInbound: conns, NumFD: conns, NumStreamsInbound: conns, Memory: int64(conns)}}
	}
	var l loot
	for _, attackers := range []int{10, 30} {
		l.add(rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{
			scope(rcmgr.KindSystem, "system", attackers+1), scope(rcmgr.KindAllowlistedSystem, "allowlistedSystem", 2),
			scope(rcmgr.KindPeer, "peer:friend", 3), scope(rcmgr.KindPeer, "peer:attacker", attackers),
		}}, []string{"peer:friend"})
	}
	for i := range loots {
		require.EqualValues(t, 30, l.most[i])
		require.EqualValues(t, 20, l.mean(i))
	}
	require.Equal(t, "90.0 %", cutText(30, 3))
	require.Equal(t, nothing, cutText(0, 3))
}

// The show compares the file with no limits, and says what each run held.
func TestTheCutOfAFileIsShown(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks real hosts for two seconds")
	}
	file := filepath.Join(t.TempDir(), "limits.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"System": {"ConnsInbound": 6}}`), 0o600))
	s := set(t, "-attackers", "4", "-duration", "1s", "-cut", "1", "-limits", file)
	var out bytes.Buffer
	_, err := flood(t.Context(), s, choosePlaces(4, false), &out)
	require.NoError(t, err)
	require.Regexp(t, regexp.MustCompile(`(?m)^  conns in +1 +\d+ +\d+ +\S+ % +\d+ +[0-7] +\S+ %$`), out.String())
	require.Contains(t, out.String(), "limits exceeded: 0; counts above zero when all hosts are closed: 0")
	requireNarrow(t, out.String())
}

func TestTheCutNeedsAFileAndOurManager(t *testing.T) {
	for _, args := range [][]string{{"-cut", "1"}, {"-cut", "1", "-limits", os.DevNull, "-manager", "both"},
		{"-cut", "1", "-limits", os.DevNull, "-trace", "t"}} {
		_, err := settingsFrom(args)
		require.ErrorContains(t, err, "cut")
	}
}
