package rcmgr

import (
	"flag"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

var linesOf = flag.String("rcmgr.lines", "", "a workload of which two threads take turns, for proof/lines")

// lineMarks is written when a round of the first or second thread begins, and when a round
// ends, so that proof/lines finds the rounds in a trace of all writes.
var lineMarks [3]uint64

// Two threads do rounds of a workload in turns, each with peers of its own. It checks only that
// they do; what they write is counted by proof/lines.
func TestTwoThreadsTakeTurns(t *testing.T) {
	if *linesOf == "" {
		t.Skip("for proof/lines, which gives -rcmgr.lines")
	}
	const peers, rounds = 128, 4 * 128
	var w workload
	for _, of := range workloads {
		if of.name == *linesOf {
			w = of
		}
	}
	require.NotNil(t, w.prepare, "no workload of this name: %s", *linesOf)
	m := rivals[0].make(t, w.limits.Build(farLimits())).(*Manager)
	defer m.Close()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var turn atomic.Int32
	var wg sync.WaitGroup
	for g := range 2 {
		round := w.prepare(t, m, g)
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for i := range rounds {
				for turn.Load() != int32(g) {
					_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
				}
				lineMarks[g] = uint64(i)
				err := round(g*(256-64) + i%peers)
				lineMarks[2] = uint64(i)
				turn.Store(int32(1 - g))
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
