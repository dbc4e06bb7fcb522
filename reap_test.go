package rcmgr

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
)

// A map keeps the room of its best days, so it is made anew.
func TestACrowdOfPeersLeavesNoMemoryBehind(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	crowd := func(n int) {
		for i := range n {
			mustOpenStream(t, m, peer.ID(fmt.Sprint("a peer of many ", i)), network.DirInbound).Done()
		}
	}
	crowd(1)
	m.reap()
	before := heapNow()
	crowd(50_000)
	m.reap()
	require.Empty(t, m.ListPeers())
	require.Less(t, heapNow()-before, int64(200<<10), "the room of 50 000 peers in a map is 2 MB")
}
