package rcmgr

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/spread"
)

// everySeries returns all that a registry shows, by name and labels. A histogram has a value
// for each bucket, the sum and the count.
func everySeries(t *testing.T, from prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := from.Gather()
	require.NoError(t, err)
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), familyPrefix)
			for _, l := range m.GetLabel() {
				name += fmt.Sprintf(" %s=%q", l.GetName(), l.GetValue())
			}
			h := m.GetHistogram()
			if h == nil {
				all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() // it is one of the two
				continue
			}
			all[name+" count"], all[name+" sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
			for _, b := range h.GetBucket() {
				all[fmt.Sprint(name, " ≤ ", b.GetUpperBound())] = float64(b.GetCumulativeCount())
			}
		}
	}
	return all
}

// registryOfSum registers the sum over these managers, and over go-libp2p's own.
func registryOfSum(t *testing.T, managers ...reader) *prometheus.Registry {
	t.Helper()
	l := &liveManagers{others: live.others}
	for _, m := range managers {
		l.add(m)
	}
	return registerInOrder(t, l, nil, registerOrders["upstream's first"])
}

func newMeasuredUpstream(t *testing.T, limits upstream.ConcreteLimitConfig) network.ResourceManager {
	t.Helper()
	m, err := upstream.NewResourceManager(upstream.NewFixedLimiter(limits))
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// busyWork opens and ends connections and streams at random, some of which are refused. What is
// left open ends with the test.
func busyWork(t *testing.T, r *rand.Rand, m network.ResourceManager) {
	var open []interface{ Done() }
	t.Cleanup(func() {
		for _, s := range open {
			s.Done()
		}
	})
	for i := range 200 {
		dir := pick(r, []network.Direction{network.DirInbound, network.DirOutbound})
		switch r.IntN(4) {
		case 0:
			c, err := m.OpenConnection(dir, r.IntN(2) == 0, multiaddr.StringCast(fmt.Sprintf("/ip4/192.0.2.%d/tcp/1", i)))
			if err != nil {
				continue
			}
			open = append(open, c)
			_ = c.ReserveMemory(r.IntN(1<<20), 255)
			if r.IntN(2) == 0 {
				_ = c.SetPeer(pick(r, testPeers))
			}
		case 1, 2:
			s, err := m.OpenStream(pick(r, testPeers), dir)
			if err != nil {
				continue
			}
			open = append(open, s)
			_ = s.SetProtocol(pick(r, []protocol.ID{"/both", protocol.ID(fmt.Sprintf("/%T", m))}))
			_ = s.ReserveMemory(r.IntN(1<<20), 255)
		case 3:
			if len(open) > 0 {
				n := r.IntN(len(open))
				open[n].Done()
				open = append(open[:n], open[n+1:]...)
			}
		}
	}
}

// Every series of both is there, with the sum of the two, and no other.
func TestTheSumHasWhatUpstreamsManagersHold(t *testing.T) {
	r := testRandom(t)
	theirLimits := upstream.PartialLimitConfig{
		System:      upstream.ResourceLimits{StreamsInbound: 5, Conns: 20, Memory: 1 << 40, FD: upstream.Unlimited},
		PeerDefault: upstream.ResourceLimits{Memory: 5 << 20},
	}.Build(upstream.InfiniteLimits)
	theirs := newMeasuredUpstream(t, theirLimits)
	conf := unlimitedConf()
	conf.System.StreamsInbound, conf.System.Conns, conf.System.Memory, conf.PeerDefault.Memory = 20, 10, 1<<30, 3<<20
	ours := newManager(t, conf)
	busyWork(t, r, theirs)
	busyWork(t, r, ours)
	ours.followPeaks() // once, so that the two scrapes see the same

	alone, beside := everySeries(t, registryOf(t, ours)), everySeries(t, upstreamRegistry())
	want := make(map[string]float64)
	for _, of := range []map[string]float64{alone, beside} {
		for series, n := range of {
			want[series] = min(want[series]+n, math.MaxInt64)
		}
	}
	require.Equal(t, want, everySeries(t, registryOfSum(t, ours)))
	require.NotZero(t, beside[`connections dir="outbound" scope="system"`]+beside[`connections dir="inbound" scope="system"`], "the other manager was not busy")
	require.NotZero(t, beside[`blocked_resources dir="inbound" resource="stream" scope="system"`])
	require.Equal(t, float64(math.MaxInt64), want[`limit resource="fd" scope="system"`], "unlimited and unlimited")

	require.Equal(t, alone, everySeries(t, registryOf(t, ours)), "what RegisterWith shows is one manager")
}

func TestAProcessWhollyOnThisPackageShowsItsManagersAlone(t *testing.T) {
	if !inChild(t, nil) { // in which no manager of go-libp2p's has ever been
		return
	}
	conf := unlimitedConf()
	conf.System.StreamsInbound, conf.System.Conns = 20, 10
	m := newManager(t, conf)
	without := func() map[string]float64 {
		var l liveManagers
		l.add(m)
		return everySeries(t, registerInOrder(t, &l, nil, registerOrders["ours alone"]))
	}
	require.Equal(t, without(), everySeries(t, registryOfSum(t, m)))
	busyWork(t, testRandom(t), m)
	m.followPeaks()
	require.Equal(t, without(), everySeries(t, registryOfSum(t, m)))
	none := everySeries(t, registerInOrder(t, new(liveManagers), nil, registerOrders["ours alone"]))
	require.Equal(t, none, everySeries(t, registryOfSum(t)), "before the first manager")
}

func TestAManagerOfGoLibp2psIsShownBeforeAnyOfOurs(t *testing.T) {
	theirs := newMeasuredUpstream(t, upstream.InfiniteLimits)
	c, err := theirs.OpenConnection(network.DirOutbound, true, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.NoError(t, err)
	defer c.Done()
	reg := registryOfSum(t)
	requireValue(t, 1, reg, "connections", "outbound", "system")
	requireValue(t, 1, reg, "fds", "transient")
	requireValue(t, 0, reg, "managers")
}

// others returns a function for liveManagers.others.
func others(collectors ...prometheus.Collector) func() prometheus.Gatherer {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors...)
	return func() prometheus.Gatherer { return reg }
}

func TestHistogramsAreAddedAtTheBoundsThatBothHave(t *testing.T) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: familyPrefix + "peer_memory", Help: "of another release", Buckets: []float64{1 << 10, 1 << 11, 1 << 30},
	})
	for _, v := range []float64{1, 1500, 1 << 20} {
		h.Observe(v)
	}
	says := systemOnly(amounts{})
	says.peerMemory = spread.Spread{}
	says.peerMemory.MoveMemory(0, 1<<10)
	says.peerMemory.MoveMemory(0, 1<<12)
	l := &liveManagers{others: others(h)}
	l.add(&fakeManager{says: says})
	all := everySeries(t, registerInOrder(t, l, nil, registerOrders["ours alone"]))
	for series := range all {
		if !strings.HasPrefix(series, "peer_memory") {
			delete(all, series)
		}
	}
	require.Equal(t, map[string]float64{
		"peer_memory count": 5, "peer_memory sum": 1<<10 + 1<<12 + 1 + 1500 + 1<<20,
		"peer_memory ≤ 1024": 2, fmt.Sprint("peer_memory ≤ ", float64(1<<30)): 5,
	}, all)
}

// broken is a collector that fails.
type broken struct{ *prometheus.Desc }

func (b broken) Describe(to chan<- *prometheus.Desc) { to <- b.Desc }

func (b broken) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.NewInvalidMetric(b.Desc, errors.New("this collector is broken"))
}

func TestAFailureOfGoLibp2psCollectorsIsOneOfTheScrape(t *testing.T) {
	l := &liveManagers{others: others(broken{prometheus.NewDesc("fails", "always", nil, nil)})}
	l.add(&fakeManager{says: systemOnly(amounts{dimFD: 3})})
	reg := registerInOrder(t, l, nil, registerOrders["ours alone"])
	shown, err := reg.Gather()
	require.ErrorContains(t, err, "this collector is broken")
	require.NotEmpty(t, shown)
	for _, f := range shown {
		if f.GetName() == familyPrefix+"fds" {
			require.Equal(t, 3.0, f.GetMetric()[0].GetGauge().GetValue())
		}
	}
}

// lenient is a Registerer that takes everything.
type lenient struct{ has map[prometheus.Collector]bool }

func (l lenient) Register(c prometheus.Collector) error {
	l.has[c] = true
	return nil
}

func (l lenient) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		l.has[c] = true
	}
}

func (l lenient) Unregister(c prometheus.Collector) bool {
	delete(l.has, c)
	return true
}

func TestUpstreamsCollectorsAreFoundOnARegistryWithoutATrace(t *testing.T) {
	wraps := map[string]func(prometheus.Registerer) prometheus.Registerer{
		"plain": func(r prometheus.Registerer) prometheus.Registerer { return r },
		"prefix": func(r prometheus.Registerer) prometheus.Registerer {
			return prometheus.WrapRegistererWithPrefix("a_", r)
		},
		"labels": func(r prometheus.Registerer) prometheus.Registerer {
			return prometheus.WrapRegistererWith(prometheus.Labels{"host": "h"}, r)
		},
	}
	for name, wrap := range wraps {
		for kind, newRegistry := range map[string]func() *prometheus.Registry{
			"registry": prometheus.NewRegistry, "pedantic": prometheus.NewPedanticRegistry,
		} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				reg := newRegistry()
				on := wrap(reg)
				require.False(t, hasUpstream(on))
				require.NotPanics(t, func() { upstream.MustRegisterWith(on) })
				require.True(t, hasUpstream(on))
				shown, err := reg.Gather()
				require.NoError(t, err)
				require.NotEmpty(t, shown)
				require.True(t, on.Unregister(upstreamFamilies()["connections"].collector), "it is still registered")

				other := newRegistry()
				require.False(t, hasUpstream(wrap(other)))
				require.NoError(t, wrap(other).Register(prometheus.NewGauge(prometheus.GaugeOpts{
					Name: familyPrefix + "connections", Help: "a family of the same name",
				})), "the name is still free")
			})
		}
	}
	require.False(t, hasUpstream(nil))
	all := lenient{make(map[prometheus.Collector]bool)}
	require.False(t, hasUpstream(all))
	require.Empty(t, all.has)
}

func TestTheLogWarnsOnceIfOnlyGoLibp2psMetricsAreRegistered(t *testing.T) {
	withTheirs := func() *prometheus.Registry {
		reg := prometheus.NewRegistry()
		upstream.MustRegisterWith(reg)
		return reg
	}
	for name, c := range map[string]struct {
		do    func(l *liveManagers, m reader)
		warns int
	}{
		"theirs alone": {func(l *liveManagers, _ reader) {
			reg := withTheirs()
			l.warnIfHidden(reg)
			l.warnIfHidden(reg)
		}, 1},
		"theirs later": {func(l *liveManagers, _ reader) {
			reg := prometheus.NewRegistry()
			l.warnIfHidden(reg)
			upstream.MustRegisterWith(reg)
			l.warnIfHidden(reg)
		}, 1},
		"none": {func(l *liveManagers, _ reader) { l.warnIfHidden(prometheus.NewRegistry()) }, 0},
		"both": {func(l *liveManagers, _ reader) {
			reg := withTheirs()
			require.NoError(t, l.register(reg, nil))
			l.warnIfHidden(reg)
		}, 0},
		"ours on a registry of the program": {func(l *liveManagers, _ reader) {
			require.NoError(t, l.register(prometheus.NewRegistry(), nil))
			l.warnIfHidden(withTheirs())
		}, 0},
		"one manager on a registry of the program": {func(l *liveManagers, m reader) {
			require.NoError(t, l.register(prometheus.NewRegistry(), m))
			l.warnIfHidden(withTheirs())
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			lines := collectLog(t, slog.LevelWarn)
			var l liveManagers
			m := &fakeManager{}
			l.add(m)
			c.do(&l, m)
			said := lines.take()
			require.Len(t, said, c.warns)
			for _, line := range said {
				require.Contains(t, line, "WARN")
				require.Contains(t, line, "call rcmgr.MustRegisterWith(prometheus.DefaultRegisterer)")
			}
		})
	}
}

func TestManagersWarnAMinuteAfterTheStartIfTheyAreNotShown(t *testing.T) {
	before := prometheus.DefaultRegisterer
	t.Cleanup(func() {
		prometheus.DefaultRegisterer = before
		live.settle()
	})
	for name, c := range map[string]struct {
		opts  []Option
		does  func(*prometheus.Registry)
		warns int
	}{
		"forgotten":        {nil, func(*prometheus.Registry) {}, 1},
		"registered":       {nil, func(reg *prometheus.Registry) { MustRegisterWith(reg) }, 0},
		"metrics disabled": {[]Option{WithMetricsDisabled()}, func(*prometheus.Registry) {}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lines := collectLog(t, slog.LevelWarn)
				reg := prometheus.NewRegistry()
				prometheus.DefaultRegisterer = reg
				live.mu.Lock()
				live.mu.settled = false
				live.mu.Unlock()
				var managers []*Manager
				for range 2 {
					m, err := New(NewFixedLimiter(InfiniteLimits), append(openGates(), c.opts...)...)
					require.NoError(t, err)
					managers = append(managers, m)
				}
				lines.take() // of the start
				time.Sleep(hiddenInterval - time.Second)
				upstream.MustRegisterWith(reg) // by libp2p.New
				c.does(reg)
				time.Sleep(10 * hiddenInterval)
				for _, m := range managers {
					require.NoError(t, m.Close())
				}
				require.Len(t, lines.take(), c.warns)
			})
		})
	}
}
