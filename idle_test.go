package rcmgr

// A process may have hundreds of hosts, most of which do nothing most of the time.

import (
	"runtime"
	"strings"
	"testing"

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
	const managers, stripes = 50, 64 // as on 16 processors
	all := make([]*Manager, managers)
	goroutines, heap := ourGoroutines(), heapNow()
	for i := range all {
		var err error
		all[i], err = New(nil, WithStripes(stripes))
		require.NoError(t, err)
	}
	each := func() int64 { return (heapNow() - heap) / managers }
	t.Logf("%d bytes each", each())
	require.Equal(t, managers, ourGoroutines()-goroutines, "one worker each")
	require.Less(t, each(), int64(50<<10))
	for _, m := range all { // what is done again and again, and who looks, makes nothing either
		m.reap()
		m.followPeaks()
		m.refusedByNow()
		m.Snapshot()
		m.read()
	}
	require.Less(t, each(), int64(50<<10))
	for _, m := range all {
		require.NoError(t, m.Close())
	}
	require.Equal(t, goroutines, ourGoroutines())
}
