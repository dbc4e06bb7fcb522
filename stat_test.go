package rcmgr

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// namingConf names so many services, protocols and peers, with limits of their own.
func namingConf(names int) perScope[BaseLimit] {
	c := unlimitedConf()
	c.Service, c.ServicePeer = make(map[string]BaseLimit), make(map[string]BaseLimit)
	c.Protocol, c.ProtocolPeer = make(map[protocol.ID]BaseLimit), make(map[protocol.ID]BaseLimit)
	c.Peer = make(map[peer.ID]BaseLimit)
	limit := unlimitedBase
	limit.Streams = 1000
	for i := range names {
		name := fmt.Sprintf("/%04d", i)
		c.Service[name], c.ServicePeer[name] = limit, limit
		c.Protocol[protocol.ID(name)], c.ProtocolPeer[protocol.ID(name)] = limit, limit
		c.Peer[peerNamed(name)] = limit
	}
	return c
}

// costOf returns how many times f allocates, and how many bytes: the median of its looks, because
// what else runs in the process, or a collection that empties a pool, adds to some of them.
func costOf(f func()) (times float64, bytes uint64) {
	const looks = 11
	f() // fills what is made once
	mallocs, totals := make([]uint64, looks), make([]uint64, looks)
	var before, after runtime.MemStats
	for i := range looks {
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		mallocs[i], totals[i] = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	}
	slices.Sort(mallocs)
	slices.Sort(totals)
	return float64(mallocs[looks/2]), totals[looks/2]
}

// A configuration may name very many peers that are not here: no look copies it.
func TestWhatLooksAtAManagerAllocatesNoMoreWhereTheConfigurationNamesThousands(t *testing.T) {
	type cost struct {
		times float64
		bytes uint64
	}
	costs := func(names int) map[string]cost {
		m := newManager(t, namingConf(names), WithStripes(4), WithRefusalLog(0))
		s := mustOpenStream(t, m, testPeer, network.DirInbound)
		require.NoError(t, s.SetProtocol("/a"))
		require.NoError(t, s.SetService("a"))
		reg := prometheus.NewRegistry()
		require.NoError(t, m.RegisterWith(reg))
		page, watch := Handler(m), newLimitWatch(m, nil, nil)
		of := make(map[string]cost)
		for name, look := range map[string]func(){
			"a scrape":              func() { _, _ = reg.Gather() },
			"a scrape's reading":    func() { m.read() },
			"Snapshot":              func() { m.Snapshot() },
			"SnapshotTop":           func() { m.SnapshotTop(5) },
			"Stat":                  func() { m.Stat() },
			"Explain":               func() { _, _ = m.Explain(ExplainRequest{Kind: KindStream, Peer: testPeer}) },
			"the page":              func() { ask(page, "GET", "/?format=html") },
			"the log of refusals":   m.logRefusals,
			"one line of that log":  func() { m.logLine(&refusalLine{kind: KindPeer, d: dimStreamsIn, times: 1, remark: new(remark)}) },
			"the watch over limits": watch.look,
			"the recent refusals":   func() { m.refusedByNow() },
			"peaks":                 m.followPeaks,
		} {
			times, bytes := costOf(look)
			of[name] = cost{times, bytes}
		}
		return of
	}
	few, many := costs(1), costs(10_000) // with the first name, series of refusals begin
	for name, c := range few {
		// Buffers and maps that are kept for the next time make small differences.
		require.InDelta(t, c.times, many[name].times, 5+c.times/50, "%s: allocations", name)
		require.InDelta(t, c.bytes, many[name].bytes, float64(4096+c.bytes/4), "%s: bytes", name)
	}
	require.Equal(t, few["a scrape's reading"].times, many["a scrape's reading"].times)
}
