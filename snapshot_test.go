package rcmgr

import (
	"encoding/json"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

func TestASnapshotIsReadFromJSONAsItIsWritten(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.StreamsInbound = 3
	conf.PeerDefault.ConnsInbound = 0
	m := newManager(t, conf)
	for range 3 {
		mustOpenStream(t, m, testPeer, network.DirInbound)
	}
	_, err := m.OpenStream(testPeer, network.DirInbound)
	require.Error(t, err)

	before := m.Snapshot()
	text, err := json.MarshalIndent(before, "", " ")
	require.NoError(t, err)
	var after Snapshot
	require.NoError(t, json.Unmarshal(text, &after))
	require.True(t, before.Taken.Equal(after.Taken))
	after.Taken, after.Started = before.Taken, before.Started
	require.Equal(t, before, after)
}
