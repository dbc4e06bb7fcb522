package rcmgr

// A process may have hundreds of hosts, most of which do nothing most of the time.

import (
	"runtime"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/stretchr/testify/require"
)

// ourGoroutines is how many goroutines are in functions of this package.
func ourGoroutines() (n int) {
	all := make([]byte, 1<<22)
	for _, g := range strings.Split(string(all[:runtime.Stack(all, true)]), "\n\n") {
		if strings.Contains(g, "weir-p2p/rcmgr.") {
			n++
		}
	}
	return n
}

func TestAnIdleManagerTakesLittle(t *testing.T) {
	const managers = 50
	heap, running := heapNow(), runtime.NumGoroutine()
	theirs := make([]network.ResourceManager, managers)
	for i := range theirs {
		var err error
		theirs[i], err = upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.DefaultLimits.AutoScale()))
		require.NoError(t, err)
	}
	t.Logf("go-libp2p's manager: %.1f KiB, %d goroutine", float64(heapNow()-heap)/managers/1024, (runtime.NumGoroutine()-running)/managers)
	for _, m := range theirs {
		require.NoError(t, m.Close())
	}

	for _, processors := range []int{2, 16, 64} {
		stripes := 4 * processors
		all := make([]*Manager, managers)
		goroutines, heap := ourGoroutines(), heapNow()
		for i := range all {
			var err error
			all[i], err = New(nil, WithStripes(stripes))
			require.NoError(t, err)
		}
		each := func() int64 { return (heapNow() - heap) / managers }
		t.Logf("this one, for %d processors: %.1f KiB, 1 goroutine", processors, float64(each())/1024)
		require.Equal(t, managers, ourGoroutines()-goroutines, "one worker each")
		require.Less(t, each(), int64(64<<10))
		for _, m := range all { // recurring jobs, and readers, make nothing that stays either
			m.reap()
			m.followPeaks()
			m.refusedByNow()
			m.Snapshot()
			m.read()
		}
		require.Less(t, each(), int64(64<<10))
		for _, m := range all {
			require.NoError(t, m.Close())
		}
		require.Equal(t, goroutines, ourGoroutines())
	}
}
