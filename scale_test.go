package rcmgr

// Very many peers: what they cost in memory, and that nothing is done for all of
// them under one lock.

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

var peersFlag = flag.Int("rcmgr.peers", 20_000, "how many peers TestVeryManyPeers opens")

// openPeer opens a connection of a peer, and two streams with a protocol and a
// service, and returns what ends them.
func openPeer(t testing.TB, rm network.ResourceManager, p peer.ID) (done [3]interface{ Done() }) {
	c, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.1/tcp/4001"))
	require.NoError(t, err)
	require.NoError(t, c.SetPeer(p))
	done[0] = c
	for i := range 2 {
		s, err := rm.OpenStream(p, network.DirInbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol(protocol.ID(benchProtocol)))
		require.NoError(t, s.SetService(benchService))
		done[i+1] = s
	}
	return done
}

// bytesOfAPeer returns the heap that a peer takes with our manager and with upstream's, by name.
// open opens what the peer has, and returns what ends it.
func bytesOfAPeer(t *testing.T, open func(network.ResourceManager, peer.ID) [3]interface{ Done() }) map[string]int64 {
	const peers = 4000
	unlimited := InfiniteLimits
	heap := make(map[string]int64)
	for _, r := range rivals {
		if r.impl == "one-mutex" || r.impl == "ours-without-metrics" {
			continue
		}
		rm := r.make(t, unlimited)
		ids, opened := names(peers), make([][3]interface{ Done() }, peers)
		before := heapNow()
		for i, p := range ids {
			opened[i] = open(rm, p)
		}
		heap[r.impl] = (heapNow() - before) / peers
		runtime.KeepAlive(ids)
		runtime.KeepAlive(opened)
		require.NoError(t, rm.Close())
	}
	return heap
}

// A peer with a connection and two streams takes less than half of the memory that it
// takes with go-libp2p's manager.
func TestAPeerTakesHalfOfUpstreamsMemory(t *testing.T) {
	heap := bytesOfAPeer(t, func(rm network.ResourceManager, p peer.ID) [3]interface{ Done() } { return openPeer(t, rm, p) })
	t.Logf("bytes for a peer with a connection and two streams: %v", heap)
	require.Less(t, 2*heap["ours"], heap["upstream-without-metrics"])
}

// A peer with a connection alone takes less than two thirds of the memory that it takes with
// go-libp2p's manager.
func TestAConnectionTakesTwoThirdsOfUpstreamsMemory(t *testing.T) {
	heap := bytesOfAPeer(t, func(rm network.ResourceManager, p peer.ID) (done [3]interface{ Done() }) {
		c, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.1/tcp/4001"))
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(p))
		done[0] = c
		return done
	})
	t.Logf("bytes for a peer with a connection alone: %v", heap)
	require.Less(t, 3*heap["ours"], 2*heap["upstream-without-metrics"])
}

// Peers are opened, used, left idle and collected, and then nothing is kept of them.
// Each of the stripes has more of them than it may look at under its lock.
//
//	go test -run VeryManyPeers -rcmgr.peers 1000000 -v .
func TestVeryManyPeers(t *testing.T) {
	m, err := New(NewFixedLimiter(InfiniteLimits), WithStripes(8))
	require.NoError(t, err)
	defer m.Close()
	empty := heapNow()
	for _, part := range []int{4, 2, 1} {
		n := *peersFlag / part
		open := make([][3]interface{ Done() }, n)
		frame := heapNow()
		for i := range open {
			open[i] = openPeer(t, m, peer.ID(fmt.Sprintf("a peer whose name is as long as theirs %d", i)))
		}
		t.Logf("%d peers: %d bytes each", n, (heapNow()-frame)/int64(n))
		for _, all := range open {
			for _, x := range all {
				x.Done()
			}
		}
		open = nil
		for i := range m.stripes {
			require.Equal(t, reapChunk, m.stripes[i].reapSome(n), "as many as may be looked at under one lock")
		}
		m.reap()
		assertEmpty(t, m)
		left := heapNow() - empty
		t.Logf("%d bytes left", left)
		require.Less(t, left, int64(1<<20))
	}
}

// A crowd comes and goes while as many peers stay as a busy host has: what the crowd took is
// free again.
func TestThoseWhoStayDoNotKeepTheMemoryOfACrowd(t *testing.T) {
	const staying, crowd = 1000, 40_000
	m := newManager(t, unlimitedConf(), WithStripes(1))
	open := func(n int, name string) (conns []network.ConnManagementScope) {
		for i := range n {
			c, err := m.OpenConnection(network.DirInbound, false, nil)
			require.NoError(t, err)
			require.NoError(t, c.SetPeer(peer.ID(fmt.Sprintf("a peer whose name is as long as theirs %s %d", name, i))))
			conns = append(conns, c)
		}
		return conns
	}
	stay := open(staying, "stays")
	before := heapNow()
	for _, c := range open(crowd, "goes") {
		c.Done()
	}
	m.reap()
	require.Equal(t, staying, m.stripes[0].numPeers())
	require.Less(t, heapNow()-before, int64(256<<10), "the map alone took more than a megabyte")
	for _, c := range stay {
		c.Done()
	}
}

// BenchmarkPageOfVeryManyPeers measures what one refresh of the command top, or of a browser,
// costs a node with 100,000 peers.
func BenchmarkPageOfVeryManyPeers(b *testing.B) {
	m := newManager(b, unlimitedConf())
	for _, p := range manyPeers(100_000) {
		for _, scope := range openPeer(b, m, p) {
			b.Cleanup(scope.Done)
		}
	}
	for _, format := range []string{"json", "html"} {
		b.Run(format, func(b *testing.B) {
			for b.Loop() {
				w := httptest.NewRecorder()
				Handler(m).ServeHTTP(w, httptest.NewRequest("GET", "/?format="+format, nil)) // a new one, which has no snapshot yet
				require.Equal(b, http.StatusOK, w.Code)
			}
		})
	}
}
