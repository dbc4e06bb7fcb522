package obs

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// Types of another package would not pass for rcmgr's.
var (
	_ func() (rcmgr.StatsTraceReporter, error) = NewStatsTraceReporter
	_ *rcmgr.StatsTraceReporter                = (*StatsTraceReporter)(nil)
)

func TestMustRegisterWithRegistersTheMetricsOfRcmgr(t *testing.T) {
	reg := prometheus.NewRegistry()
	MustRegisterWith(reg)
	m, err := rcmgr.New(nil)
	require.NoError(t, err)
	defer m.Close()
	require.Error(t, m.RegisterWith(reg), "the sum over all managers is registered already")
}
