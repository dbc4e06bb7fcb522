package rcmgrshadow_test

// The shadow on real hosts: they connect over several transports, open streams and close, and
// both managers agree on all of it.

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/rcmgrshadow"
)

// patience bounds every wait. Each ends as soon as what it waits for is so.
const patience = 20 * time.Second

const echo = protocol.ID("/echo/1")

// newHost returns a host that is closed after the test.
func newHost(t *testing.T, rm network.ResourceManager) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ResourceManager(rm), libp2p.DisableMetrics(),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0/ws"))
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	h.SetStreamHandler(echo, func(s network.Stream) {
		defer s.Close()
		if s.Scope().SetService("echo") == nil {
			io.Copy(s, s)
		}
	})
	return h
}

// shadows returns one Manager led by each package's.
func shadows(t *testing.T) []*rcmgrshadow.Manager {
	t.Helper()
	limits := upstream.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	limiter := upstream.NewFixedLimiter(limits.Scale(64<<20, 256))
	theirs, err := upstream.NewResourceManager(limiter, upstream.WithMetricsDisabled())
	require.NoError(t, err)
	first, err := rcmgrshadow.OursBeside(theirs, limiter, rcmgr.WithAdmission(rcmgr.AdmissionLinear), rcmgr.WithNewcomersQuarter(false))
	require.NoError(t, err)
	ours, err := rcmgr.New(rcmgr.LimiterFrom(limiter), rcmgr.WithAdmission(rcmgr.AdmissionLinear), rcmgr.WithNewcomersQuarter(false))
	require.NoError(t, err)
	second, err := rcmgrshadow.TheirsBeside(ours)
	require.NoError(t, err)
	return []*rcmgrshadow.Manager{first, second}
}

func TestRealHostsFindNoUnexplainedDifference(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real hosts")
	}
	managers := shadows(t)
	hosts := []host.Host{newHost(t, managers[0]), newHost(t, managers[1])}
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	for _, addr := range hosts[0].Addrs() {
		require.NoError(t, hosts[1].Connect(ctx, peer.AddrInfo{ID: hosts[0].ID(), Addrs: []multiaddr.Multiaddr{addr}}))
		talk(t, ctx, hosts[1], hosts[0].ID())
		talk(t, ctx, hosts[0], hosts[1].ID())
		res := <-ping.Ping(ctx, hosts[1], hosts[0].ID())
		require.NoError(t, res.Error, addr)
		require.NoError(t, hosts[1].Network().ClosePeer(hosts[0].ID()))
	}
	for i, m := range managers {
		r := m.Report()
		require.Zero(t, r.Unexplained, "%s", &r)
		require.False(t, r.Out)
		require.Greater(t, r.Calls, uint64(100))
		t.Log(r.Summary())
		require.NoError(t, hosts[i].Close())
	}
	for _, m := range managers {
		require.Eventually(t, func() bool {
			return m.Stat().System == network.ScopeStat{} && m.Ours().Stat().System == network.ScopeStat{}
		}, patience, 5*time.Millisecond, "something is held after the hosts have closed")
		r := m.Report()
		require.Zero(t, r.Apart)
		require.Zero(t, r.Unexplained, "%s", &r)
	}
}

// talk opens streams at the same time, and reads back what it writes. The limits may refuse
// some of them.
func talk(t *testing.T, ctx context.Context, from host.Host, to peer.ID) {
	t.Helper()
	var wg sync.WaitGroup
	var echoed atomic.Int64
	for range 16 {
		wg.Go(func() {
			s, err := from.NewStream(ctx, to, echo)
			if err != nil {
				return
			}
			defer s.Close()
			if _, err := s.Write(make([]byte, 1<<16)); err == nil {
				s.CloseWrite()
				n, _ := io.Copy(io.Discard, s)
				echoed.Add(n)
			}
		})
	}
	wg.Wait()
	require.NotZero(t, echoed.Load())
}
