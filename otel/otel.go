// Package rcmgrotel shows resource managers with OpenTelemetry. A Producer is given to the
// reader of a MeterProvider:
//
//	producer := metric.WithProducer(rcmgrotel.New())
//	reader := metric.NewPeriodicReader(exporter, producer)
//	provider := metric.NewMeterProvider(metric.WithReader(reader))
//
// The metrics are made from the Prometheus families of package rcmgr, by OpenTelemetry's own
// bridge, with their names, labels and values. A dashboard therefore finds the same numbers
// either way. Instruments of a Meter could not show them all: the instruments that are read
// when metrics are collected have single values, and none of them takes a distribution, such
// as that of connections over peers.
//
// A gauge of Prometheus becomes a Gauge, a counter a monotonic Sum, and a histogram a
// Histogram. They are cumulative, whichever temporality the reader prefers. A histogram shows
// the present distribution, so its counts also fall. Units are empty: memory is in bytes, and
// all else is a count. The instrumentation scope is ScopeName, with the version of the module.
//
// The package is a module of its own, so that a program without OpenTelemetry does not
// depend on it.
package rcmgrotel

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/weir-p2p/rcmgr"
)

// ScopeName is the name of the instrumentation scope of all metrics.
const ScopeName = "github.com/weir-p2p/rcmgr"

// Producer has the metrics of resource managers for metric.WithProducer. It is safe for
// concurrent use.
type Producer struct {
	registry *prometheus.Registry // has the managers' metrics alone
	single   bool                 // it shows one manager
	closed   atomic.Bool
}

var _ metric.Producer = (*Producer)(nil)

// New returns a producer for the sum over all managers of this process, as
// rcmgr.MustRegisterWith shows it. Managers that are made later are included.
func New() *Producer {
	p := &Producer{registry: prometheus.NewRegistry()}
	rcmgr.MustRegisterWith(p.registry) // does not panic, because the registry is empty
	return p
}

// NewFor returns a producer for one manager, as the manager's RegisterWith shows it. It is an
// error if the manager is closed or its metrics are disabled. Once the manager is closed, the
// producer has no metrics.
func NewFor(m *rcmgr.Manager) (*Producer, error) {
	p := &Producer{registry: prometheus.NewRegistry(), single: true}
	if err := m.RegisterWith(p.registry); err != nil {
		return nil, err
	}
	return p, nil
}

// Close ends the producer: from then on it has no metrics. It exists because a reader keeps
// its producers until it is shut down itself. Closing a producer again does nothing. Close
// always returns nil.
func (p *Producer) Close() error {
	p.closed.Store(true)
	return nil
}

// Produce returns the metrics as they are now. It is called by the reader. If some metrics
// cannot be read, Produce returns the others and an error.
func (p *Producer) Produce(ctx context.Context) ([]metricdata.ScopeMetrics, error) {
	if p.closed.Load() {
		return nil, nil
	}
	families, err := p.registry.Gather()
	if p.single && managersIn(families) == 0 {
		return nil, err
	}
	// The bridge gets what was gathered in place of the registry. If it had the registry, it
	// would pass an error to OpenTelemetry's global handler and drop all metrics.
	scopes, bridgeErr := bridge.NewMetricProducer(bridge.WithGatherer(gathered(families))).Produce(ctx)
	for i := range scopes {
		scopes[i].Scope = scope()
	}
	return scopes, errors.Join(err, bridgeErr)
}

// managersIn returns the number of open managers that the families show.
func managersIn(families []*dto.MetricFamily) (n float64) {
	for _, f := range families {
		if f.GetName() == "libp2p_rcmgr_managers" {
			for _, m := range f.GetMetric() {
				n += m.GetGauge().GetValue()
			}
		}
	}
	return n
}

// gathered is a Gatherer of what has been gathered already.
type gathered []*dto.MetricFamily

func (g gathered) Gather() ([]*dto.MetricFamily, error) { return g, nil }

// scope returns the instrumentation scope in this program.
var scope = sync.OnceValue(func() instrumentation.Scope {
	program, _ := debug.ReadBuildInfo()
	return scopeIn(program)
})

// scopeIn returns the instrumentation scope in a program. If the program has no information on
// its modules, the scope has no version.
func scopeIn(program *debug.BuildInfo) instrumentation.Scope {
	s := instrumentation.Scope{Name: ScopeName}
	if program != nil {
		for _, module := range program.Deps {
			if module.Path == ScopeName {
				s.Version = module.Version
			}
		}
	}
	return s
}
