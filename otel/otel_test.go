package rcmgrotel_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/weir-p2p/rcmgr"
	rcmgrotel "github.com/weir-p2p/rcmgr/otel"
)

func newManager(t *testing.T, limits rcmgr.PartialLimitConfig, opts ...rcmgr.Option) *rcmgr.Manager {
	t.Helper()
	opts = append(opts, rcmgr.WithRefusalLog(0), rcmgr.WithConnRateLimiters(nil)) // a bucket fills with time
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// newReader returns a reader of the SDK that has these producers.
func newReader(t *testing.T, producers ...metric.Producer) *metric.ManualReader {
	t.Helper()
	var opts []metric.ManualReaderOption
	for _, p := range producers {
		opts = append(opts, metric.WithProducer(p))
	}
	reader := metric.NewManualReader(opts...)
	provider := metric.NewMeterProvider(metric.WithReader(reader))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return reader
}

func collect(t *testing.T, reader *metric.ManualReader) []metricdata.ScopeMetrics {
	t.Helper()
	var got metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(context.Background(), &got))
	return got.ScopeMetrics
}

// values are all series by type, name and labels. A histogram has a value for each bucket, the
// sum and the count.
type values map[string]float64

func (v values) histogram(series string, count uint64, sum float64, bounds []float64, upTo func(i int) uint64) {
	v[series+" count"], v[series+" sum"] = float64(count), sum
	for i, bound := range bounds {
		v[fmt.Sprint(series, " ≤ ", bound)] = float64(upTo(i))
	}
}

// labelled joins a name and labels, which are in the order of their names.
func labelled(kind, name string, labels []string) string {
	return kind + " " + name + "{" + strings.Join(labels, ",") + "}"
}

func valuesOf(t *testing.T, scopes []metricdata.ScopeMetrics) values {
	t.Helper()
	v := make(values)
	for _, scope := range scopes {
		for _, m := range scope.Metrics {
			series := func(kind string, set attribute.Set) string {
				var labels []string
				for _, kv := range set.ToSlice() {
					labels = append(labels, fmt.Sprintf("%s=%q", kv.Key, kv.Value.AsString()))
				}
				s := labelled(kind, m.Name, labels)
				require.NotContains(t, v, s, "twice")
				return s
			}
			require.NotEmpty(t, m.Description, m.Name)
			switch d := m.Data.(type) {
			case metricdata.Gauge[float64]:
				for _, p := range d.DataPoints {
					v[series("gauge", p.Attributes)] = p.Value
				}
			case metricdata.Sum[float64]:
				require.True(t, d.IsMonotonic, m.Name)
				require.Equal(t, metricdata.CumulativeTemporality, d.Temporality, m.Name)
				for _, p := range d.DataPoints {
					v[series("counter", p.Attributes)] = p.Value
				}
			case metricdata.Histogram[float64]:
				require.Equal(t, metricdata.CumulativeTemporality, d.Temporality, m.Name)
				for _, p := range d.DataPoints {
					require.Len(t, p.BucketCounts, len(p.Bounds)+1)
					var all uint64
					for _, n := range p.BucketCounts {
						all += n
					}
					require.Equal(t, p.Count, all, m.Name)
					all = 0
					v.histogram(series("histogram", p.Attributes), p.Count, p.Sum, p.Bounds, func(i int) uint64 {
						all += p.BucketCounts[i]
						return all
					})
				}
			default:
				require.Fail(t, "unexpected type", "%s: %T", m.Name, d)
			}
		}
	}
	return v
}

func valuesOnPrometheus(t *testing.T, from prometheus.Gatherer) values {
	t.Helper()
	families, err := from.Gather()
	require.NoError(t, err)
	v := make(values)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			series := func(kind string) string { return labelled(kind, f.GetName(), labels) }
			switch h := m.GetHistogram(); {
			case h != nil:
				var bounds []float64
				for _, b := range h.GetBucket() {
					bounds = append(bounds, b.GetUpperBound())
				}
				v.histogram(series("histogram"), h.GetSampleCount(), h.GetSampleSum(), bounds,
					func(i int) uint64 { return h.GetBucket()[i].GetCumulativeCount() })
			case m.GetCounter() != nil:
				v[series("counter")] = m.GetCounter().GetValue()
			default:
				v[series("gauge")] = m.GetGauge().GetValue()
			}
		}
	}
	return v
}

// busy opens connections and streams, some of which are refused.
func busy(t *testing.T, m *rcmgr.Manager) {
	t.Helper()
	for i := range 12 {
		id := peer.ID(fmt.Sprint("peer ", i%4))
		c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast(fmt.Sprintf("/ip4/192.0.2.%d/tcp/1", i)))
		if err != nil {
			continue
		}
		t.Cleanup(c.Done)
		require.NoError(t, c.SetPeer(id))
		require.NoError(t, c.ReserveMemory(1<<(10+i), 255))
		s, err := m.OpenStream(id, network.DirOutbound)
		if err != nil {
			continue
		}
		t.Cleanup(s.Done)
		require.NoError(t, s.SetProtocol("/a"))
		require.NoError(t, s.SetService("b"))
	}
	require.NotZero(t, m.Snapshot().Refusals)
}

var small = rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: 10, StreamsOutbound: 8, Memory: 1 << 40}}

func TestEveryPrometheusFamilyIsThereWithEqualValuesAndLabels(t *testing.T) {
	one, other := newManager(t, small, rcmgr.WithMemoryPressure(rcmgr.MemoryPressureConfig{
		Limit: 1 << 40, InUse: func() int64 { return 7 },
	})), newManager(t, small, rcmgr.WithObserveOnly(rcmgr.KindPeer))
	sumReg, oneReg := prometheus.NewRegistry(), prometheus.NewRegistry()
	rcmgr.MustRegisterWith(sumReg)
	require.NoError(t, one.RegisterWith(oneReg))
	ofOne, err := rcmgrotel.NewFor(one)
	require.NoError(t, err)
	sum, alone := newReader(t, rcmgrotel.New()), newReader(t, ofOne)

	for _, work := range []func(){func() {}, func() { busy(t, one) }, func() { busy(t, other) }} {
		work()
		collect(t, sum) // each look may raise a peak, so that the next ones see the same
		require.Equal(t, valuesOnPrometheus(t, sumReg), valuesOf(t, collect(t, sum)))
		require.Equal(t, valuesOnPrometheus(t, oneReg), valuesOf(t, collect(t, alone)))
	}
	got := valuesOf(t, collect(t, sum))
	require.Equal(t, 20.0, got[`gauge libp2p_rcmgr_connections{dir="inbound",scope="system"}`])
	require.Equal(t, 4.0, got[`counter libp2p_rcmgr_refusals_total{cause="limit",dir="inbound",resource="connection",scope="system"}`])
	require.Equal(t, 8.0, got[`histogram libp2p_rcmgr_peer_connections{dir="inbound"} count`])
	got = valuesOf(t, collect(t, alone))
	require.Equal(t, 10.0, got[`gauge libp2p_rcmgr_connections{dir="inbound",scope="system"}`])
}

func TestTheInstrumentationScopeIsTheModule(t *testing.T) {
	newManager(t, small)
	scopes := collect(t, newReader(t, rcmgrotel.New()))
	require.Len(t, scopes, 1)
	require.Equal(t, rcmgrotel.ScopeName, scopes[0].Scope.Name)
}

func TestAClosedManagerOrProducerHasNoMetrics(t *testing.T) {
	m := newManager(t, small)
	p, err := rcmgrotel.NewFor(m)
	require.NoError(t, err)
	second, err := rcmgrotel.NewFor(m)
	require.NoError(t, err, "any number of producers may show a manager")
	sum := rcmgrotel.New()
	reader := newReader(t, p, second, sum)
	require.Len(t, collect(t, reader), 3)

	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	require.Len(t, collect(t, reader), 2)
	require.NoError(t, m.Close())
	require.Len(t, collect(t, reader), 1, "the sum stays, for the managers that are made later")
	require.NoError(t, sum.Close())
	require.Empty(t, collect(t, reader))

	_, err = rcmgrotel.NewFor(m)
	require.ErrorContains(t, err, "closed")
	_, err = rcmgrotel.NewFor(newManager(t, small, rcmgr.WithMetricsDisabled()))
	require.ErrorContains(t, err, "disabled")
}

// The refusals of a manager that is closed in between stay counted in the sum, too.
func TestCountersDoNotFallWhileManagersWorkOpenAndClose(t *testing.T) {
	newManager(t, small)
	p := rcmgrotel.New()
	reader := newReader(t, p)
	var stop atomic.Bool
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for !stop.Load() {
				m, err := rcmgr.New(rcmgr.NewFixedLimiter(small.Build(rcmgr.InfiniteLimits)), rcmgr.WithRefusalLog(0))
				if err != nil {
					t.Error(err)
					return
				}
				for i := range 20 {
					_, _ = m.OpenStream(peer.ID(fmt.Sprint(i)), network.DirOutbound)
				}
				m.Close()
			}
		})
	}
	defer func() {
		stop.Store(true)
		workers.Wait()
	}()
	before := make(values)
	refusals := `counter libp2p_rcmgr_refusals_total{cause="limit",dir="outbound",resource="stream",scope="system"}`
	looks := 0
	for looks < 20 || before[refusals] < 100 {
		looks++
		now := valuesOf(t, collect(t, reader))
		for series, n := range before {
			if strings.HasPrefix(series, "counter") {
				require.GreaterOrEqual(t, now[series], n, series)
			}
		}
		before = now
	}
	var closing sync.WaitGroup
	closing.Go(func() { p.Close() })
	collect(t, reader)
	closing.Wait()
	require.Empty(t, collect(t, reader))
}
