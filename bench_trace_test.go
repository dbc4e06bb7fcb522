package rcmgr

// What a trace costs: a round of each workload and the writing of its events
// to the file, Close included, beside go-libp2p's manager.
//
//	go test -run '^$' -bench Tracing -benchtime 20x -count 5 .

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	xrate "github.com/libp2p/go-libp2p/x/rate"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/cputime"
)

// tracedRounds is how many rounds one trace has: few enough that nothing is
// dropped, however slow the disk is.
const tracedRounds = 4096

var tracedRivals = []struct {
	impl string
	make func(t testing.TB, limits ConcreteLimitConfig, file string) network.ResourceManager
}{
	{"ours", func(t testing.TB, limits ConcreteLimitConfig, file string) network.ResourceManager {
		rm, err := NewResourceManager(NewFixedLimiter(limits), WithConnRateLimiters(nil), WithTrace(file))
		require.NoError(t, err)
		return rm
	}},
	{"upstream-without-metrics", func(t testing.TB, limits ConcreteLimitConfig, file string) network.ResourceManager {
		return newUpstream(t, limits, upstream.WithConnRateLimiters(&xrate.Limiter{}), upstream.WithMetricsDisabled(),
			upstream.WithTrace(file))
	}},
}

func BenchmarkTracing(b *testing.B) {
	for _, w := range workloads {
		for _, r := range tracedRivals {
			b.Run(fmt.Sprintf("work=%s/impl=%s", w.name, r.impl), func(b *testing.B) {
				dir, traces, since := b.TempDir(), 0, cputime.Used()
				for b.Loop() {
					traces++
					rm := r.make(b, w.limits.Build(farLimits()), filepath.Join(dir, fmt.Sprint(traces)))
					round := w.prepare(b, rm, 0)
					for i := range tracedRounds {
						if err := round(i); err != nil {
							b.Fatal(err)
						}
					}
					require.NoError(b, rm.Close())
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(traces*tracedRounds), "ns/round")
				b.ReportMetric(float64(cputime.Used()-since)/float64(traces*tracedRounds), "cpu-ns/round")
			})
		}
	}
}
