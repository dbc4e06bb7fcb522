package rcmgr

// How long others wait for a lock while one call holds all of them.

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/stretchr/testify/require"
)

var stallsFlag = flag.Int("rcmgr.stalls", 0, "how many peers TestStalls opens; 0: it is left out")

// TestStalls prints how long streams take to open while other calls are made one after the
// other, with very many peers.
//
//	go test -run TestStalls -rcmgr.stalls 100000 -v .
func TestStalls(t *testing.T) {
	if *stallsFlag == 0 {
		t.Skip("a measurement: -rcmgr.stalls 100000")
	}
	m, err := New(NewFixedLimiter(InfiniteLimits))
	require.NoError(t, err)
	defer m.Close()
	theirs, err := upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.InfiniteLimits))
	require.NoError(t, err)
	defer theirs.Close()
	for i := range *stallsFlag {
		p := peer.ID(fmt.Sprintf("a peer whose name is as long as theirs %d", i))
		openPeer(t, m, p)
		openPeer(t, theirs, p)
	}
	question := ExplainRequest{Kind: KindStream, Peer: "somebody", Direction: network.DirInbound}
	t.Logf("%-36s %9s %9s %9s %9s %9s", "beside", "streams", "median", "p99.9", "worst", "allocates")
	for _, one := range []struct {
		name string
		rm   network.ResourceManager
		call func()
	}{
		{"nothing", m, func() {}},
		{"Snapshot", m, func() { m.Snapshot() }},
		{"SnapshotTop(20)", m, func() { m.SnapshotTop(20) }},
		{"Stat", m, func() { m.Stat() }},
		{"a scrape", m, func() { m.read() }},
		{"Explain", m, func() { m.Explain(question) }},
		{"SetLimits", m, func() { m.SetLimits(NewFixedLimiter(InfiniteLimits)) }},
		{"collection", m, m.reap},
		{"go-libp2p's: nothing", theirs, func() {}},
		{"go-libp2p's: Stat", theirs, func() { theirs.(upstream.ResourceManagerState).Stat() }},
	} {
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		calls := 0
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		go func() {
			defer close(stopped)
			for ; ctx.Err() == nil; calls++ {
				one.call()
				time.Sleep(100 * time.Millisecond)
			}
		}()
		var took []time.Duration
		for begin := time.Now(); time.Since(begin) < 5*time.Second; {
			from := time.Now()
			s, err := one.rm.OpenStream("somebody", network.DirInbound)
			require.NoError(t, err)
			s.Done()
			took = append(took, time.Since(from))
			time.Sleep(20 * time.Microsecond)
		}
		stop()
		<-stopped
		runtime.ReadMemStats(&after)
		slices.Sort(took)
		t.Logf("%-36s %9d %9v %9v %9v %6.1f MB", one.name, len(took), took[len(took)/2],
			took[len(took)*999/1000], took[len(took)-1], float64(after.TotalAlloc-before.TotalAlloc)/float64(calls)/1e6)
	}
}
