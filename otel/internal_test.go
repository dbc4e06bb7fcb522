package rcmgrotel

import (
	"context"
	"errors"
	"runtime/debug"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/instrumentation"
)

func TestTheScopeHasTheVersionOfTheModuleInTheProgram(t *testing.T) {
	program := &debug.BuildInfo{Deps: []*debug.Module{
		{Path: ScopeName + "/otel", Version: "v0.2.0"}, {Path: ScopeName, Version: "v0.3.0"},
	}}
	require.Equal(t, instrumentation.Scope{Name: ScopeName, Version: "v0.3.0"}, scopeIn(program))
	require.Equal(t, instrumentation.Scope{Name: ScopeName}, scopeIn(nil))
}

// broken is a collector that fails.
type broken struct{ *prometheus.Desc }

func (b broken) Describe(to chan<- *prometheus.Desc) { to <- b.Desc }

func (b broken) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.NewInvalidMetric(b.Desc, errors.New("this collector is broken"))
}

func TestAnErrorIsReturnedWithTheMetricsThatCanBeRead(t *testing.T) {
	p := New()
	p.registry.MustRegister(broken{prometheus.NewDesc("fails", "always", nil, nil)})
	scopes, err := p.Produce(context.Background())
	require.ErrorContains(t, err, "this collector is broken")
	require.Len(t, scopes, 1)
	require.NotEmpty(t, scopes[0].Metrics)
}
