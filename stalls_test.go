package rcmgr

// How long others wait for a lock while one call holds all of them.

import (
	"context"
	"flag"
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/stretchr/testify/require"
)

var stallsFlag = flag.Int("rcmgr.stalls", 0, "how many peers TestStalls opens; 0: it is left out")

// TestStalls prints how long streams take to open while other calls are made one after the
// other, with very many peers.
//
//	go test -run TestStalls -rcmgr.stalls 100000 -v .
func TestStalls(t *testing.T) {
	if *stallsFlag == 0 {
		t.Skip("a measurement: -rcmgr.stalls 100000")
	}
	m, err := New(NewFixedLimiter(InfiniteLimits))
	require.NoError(t, err)
	defer m.Close()
	theirs, err := upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.InfiniteLimits))
	require.NoError(t, err)
	defer theirs.Close()
	for i := range *stallsFlag {
		p := peer.ID(fmt.Sprintf("a peer whose name is as long as theirs %d", i))
		openPeer(t, m, p)
		openPeer(t, theirs, p)
	}
	var system network.ResourceScope
	require.NoError(t, m.ViewSystem(func(s network.ResourceScope) error { system = s; return nil }))
	question := ExplainRequest{Kind: KindStream, Peer: "somebody", Direction: network.DirInbound}
	t.Logf("%-36s %9s %9s %9s %9s %9s", "beside", "streams", "median", "p99.9", "worst", "allocates")
	for _, one := range []struct {
		name string
		rm   network.ResourceManager
		call func()
	}{
		{"nothing", m, func() {}},
		{"Snapshot", m, func() { m.Snapshot() }},
		{"SnapshotTop(20)", m, func() { m.SnapshotTop(20) }},
		{"Stat", m, func() { m.Stat() }},
		{"a scrape", m, func() { m.read() }},
		{"Explain", m, func() { m.Explain(question) }},
		{"SetLimits", m, func() { m.SetLimits(NewFixedLimiter(InfiniteLimits)) }},
		{"collection", m, m.reap},
		{"a decision on the exact sum", m, func() {
			const moreThanHalf = math.MaxInt/2 + math.MaxInt/8
			require.NoError(t, system.ReserveMemory(moreThanHalf, network.ReservationPriorityAlways))
			system.ReleaseMemory(moreThanHalf)
		}},
		{"go-libp2p's: nothing", theirs, func() {}},
		{"go-libp2p's: Stat", theirs, func() { theirs.(upstream.ResourceManagerState).Stat() }},
	} {
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		calls := 0
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		go func() {
			defer close(stopped)
			for ; ctx.Err() == nil; calls++ {
				one.call()
				time.Sleep(100 * time.Millisecond)
			}
		}()
		var took []time.Duration
		for begin := time.Now(); time.Since(begin) < 5*time.Second; {
			from := time.Now()
			s, err := one.rm.OpenStream("somebody", network.DirInbound)
			require.NoError(t, err)
			s.Done()
			took = append(took, time.Since(from))
			time.Sleep(20 * time.Microsecond)
		}
		stop()
		<-stopped
		runtime.ReadMemStats(&after)
		slices.Sort(took)
		t.Logf("%-36s %9d %9v %9v %9v %6.1f MB", one.name, len(took), took[len(took)/2],
			took[len(took)*999/1000], took[len(took)-1], float64(after.TotalAlloc-before.TotalAlloc)/float64(calls)/1e6)
	}
}

// What holds all locks, besides a consistent cut with every peer (Snapshot and Stat), looks at
// no peer meanwhile but at those that it is about: with peers that are nil, it would crash. So
// how long others wait does not grow with the peers.
func TestWhatHoldsAllLocksVisitsNoPeer(t *testing.T) {
	conf := limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory, c.Transient.Memory = 1<<30, 1<<30 })
	for name, call := range map[string]func(*testing.T, *Manager){
		"a scrape":       func(_ *testing.T, m *Manager) { m.read() },
		"SetLimits":      func(t *testing.T, m *Manager) { require.NoError(t, m.SetLimits(fixedOf(conf))) },
		"Refresh":        func(t *testing.T, m *Manager) { require.NoError(t, m.Refresh()) },
		"ObserveOnly":    func(t *testing.T, m *Manager) { require.NoError(t, m.ObserveOnly(KindSystem)) },
		"a peak":         func(_ *testing.T, m *Manager) { m.followPeaks() },
		"a scope's Stat": func(t *testing.T, m *Manager) { viewSystem(t, m).Stat() },
		"a scope's limit": func(t *testing.T, m *Manager) {
			viewSystem(t, m).(ResourceScopeLimiter).SetLimit(&BaseLimit{Memory: 1 << 30})
		},
		"an exact refusal": func(t *testing.T, m *Manager) { require.Error(t, viewSystem(t, m).ReserveMemory(math.MaxInt32, 255)) },
		"an exact sum": func(t *testing.T, m *Manager) {
			before := m.read().counts.settled
			require.NoError(t, viewSystem(t, m).ReserveMemory(600<<20, 255))
			require.Greater(t, m.read().counts.settled, before)
			viewSystem(t, m).ReleaseMemory(600 << 20)
		},
		"Explain": func(t *testing.T, m *Manager) {
			_, err := m.Explain(ExplainRequest{Kind: KindStream, Peer: testPeer, Direction: network.DirInbound})
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, conf, WithStripes(4))
			for i := range m.stripes {
				m.stripes[i].awake()
			}
			m.inOneCut(func() {
				for i := range m.stripes {
					for n := range 1000 {
						m.stripes[i].peers.add(&peerScope{id: peerNamed(fmt.Sprint(i, n))})
					}
					hidePeers(m.stripes[i].peers)
				}
			})
			defer m.inOneCut(func() {
				for i := range m.stripes {
					m.stripes[i].peers = newPeerTable(m.hashOf)
				}
			})
			call(t, m)
		})
	}
}
