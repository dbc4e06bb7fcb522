package rcmgr_test

// Real hosts that show their manager on Prometheus.

import (
	"context"
	"maps"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// series returns the value of a series, or what none has: 0.
func series(t *testing.T, reg prometheus.Gatherer, name string, labels map[string]string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != "libp2p_rcmgr_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			got := map[string]string{}
			for _, l := range m.GetLabel() {
				got[l.GetName()] = l.GetValue()
			}
			if maps.Equal(got, labels) {
				if h := m.GetHistogram(); h != nil {
					return float64(h.GetSampleCount())
				}
				return m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func TestHostsWithPrometheusShowTheManagerInEitherOrder(t *testing.T) {
	registries := map[string]func() *prometheus.Registry{
		"pedantic": prometheus.NewPedanticRegistry,
		"default":  prometheus.NewRegistry,
	}
	type registration struct {
		name          string
		before, after func(*testing.T, *rcmgr.Manager, *prometheus.Registry)
	}
	none := func(*testing.T, *rcmgr.Manager, *prometheus.Registry) {}
	must := func(_ *testing.T, _ *rcmgr.Manager, reg *prometheus.Registry) { rcmgr.MustRegisterWith(reg) }
	own := func(t *testing.T, m *rcmgr.Manager, reg *prometheus.Registry) {
		require.NoError(t, m.RegisterWith(reg))
	}
	for _, r := range []registration{
		{"MustRegisterWith before libp2p.New", must, none},
		{"MustRegisterWith after libp2p.New", none, must},
		{"RegisterWith before libp2p.New", own, none},
		{"RegisterWith after libp2p.New", none, own},
	} {
		for kind, newRegistry := range registries {
			t.Run(r.name+", "+kind, func(t *testing.T) {
				ctx := onHosts(t)
				reg := newRegistry()
				for range 2 { // the second time, on the registry of the first
					m := newManager(t, nil)
					r.before(t, m, reg)
					h := newServer(t, m, roads[0], libp2p.PrometheusRegisterer(reg))
					r.after(t, m, reg)
					requireConnectionShows(t, ctx, h, reg)
					require.NoError(t, h.Close())
					_, err := reg.Gather()
					require.NoError(t, err)
				}
			})
		}
	}
}

// requireConnectionShows connects to a host, and checks that its metrics follow.
func requireConnectionShows(t *testing.T, ctx context.Context, h host.Host, reg *prometheus.Registry) {
	t.Helper()
	// What one connection with one stream adds to what was there before.
	adds := []struct {
		family string
		labels map[string]string
		add    float64
	}{
		{"connections", map[string]string{"dir": "inbound", "scope": "system"}, 1},
		{"connections", map[string]string{"dir": "outbound", "scope": "system"}, 0},
		{"connections", map[string]string{"dir": "inbound", "scope": "transient"}, 0},
		{"streams", map[string]string{"dir": "inbound", "scope": "system", "protocol": ""}, 1},
		{"streams", map[string]string{"dir": "outbound", "scope": "system", "protocol": ""}, 0},
		{"streams", map[string]string{"dir": "inbound", "scope": "protocol", "protocol": string(echoProtocol)}, 1},
		{"memory", map[string]string{"scope": "protocol", "protocol": string(echoProtocol)}, echoMemory},
		{"fds", map[string]string{"scope": "system"}, 1},
		{"peer_connections", map[string]string{"dir": "inbound"}, 1},
		{"peer_streams", map[string]string{"dir": "inbound"}, 1},
		{"previous_peer_connections", map[string]string{"dir": "inbound"}, 0},
	}
	before := make([]float64, len(adds))
	for i, a := range adds {
		before[i] = series(t, reg, a.family, a.labels)
	}
	shows := func(times float64) func() bool {
		return func() bool {
			for i, a := range adds {
				if series(t, reg, a.family, a.labels) != before[i]+times*a.add {
					return false
				}
			}
			return true
		}
	}
	client := newHost(t, unmanaged())
	work(t, ctx, client, *host.InfoFromHost(h))
	eventually(t, shows(1), "a live connection is not in the metrics")
	require.Positive(t, series(t, reg, "limit", map[string]string{"scope": "system", "resource": "conns"}))
	require.NoError(t, client.Close())
	eventually(t, shows(0), "a closed connection is still in the metrics")
}

// One host has this package's manager, the other one go-libp2p's own.
func TestHostsWithDifferentManagersAreBothInTheSum(t *testing.T) {
	ctx := onHosts(t)
	open := func(reg *prometheus.Registry) float64 { return series(t, reg, "managers", map[string]string{}) }
	before := prometheus.NewRegistry()
	rcmgr.MustRegisterWith(before)
	others := open(before)
	reg := prometheus.NewRegistry()
	ours := newServer(t, newManager(t, nil), roads[0], libp2p.PrometheusRegisterer(reg))
	theirManager, err := upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.DefaultLimits.AutoScale()))
	require.NoError(t, err)
	theirs := newHost(t, theirManager, libp2p.PrometheusRegisterer(reg))
	rcmgr.MustRegisterWith(reg)

	conns := func(dir string) float64 {
		return series(t, reg, "connections", map[string]string{"dir": dir, "scope": "system"})
	}
	echo := map[string]string{"dir": "inbound", "scope": "protocol", "protocol": string(echoProtocol)}
	streams := series(t, reg, "streams", echo)
	in, out := conns("inbound"), conns("outbound")
	work(t, ctx, theirs, *host.InfoFromHost(ours))
	eventually(t, func() bool {
		return conns("inbound") == in+1 && conns("outbound") == out+1 && series(t, reg, "streams", echo) == streams+1
	}, "one end of a connection is not in the metrics")
	require.Equal(t, others+1, open(reg), "managers of this package")
}
