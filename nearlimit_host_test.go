package rcmgr_test

// A real host whose connection manager is asked to trim before its limit refuses.

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p"
	coreconnmgr "github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// The high water mark lies far above the limit, so that the connection manager alone
// never trims, and strangers fill the limit. With WithTrimming there is room for whom
// the host values, which also stays while more strangers come.
func TestHostsThatTrimNearTheirLimitAdmitValuedPeers(t *testing.T) {
	ctx := onHosts(t)
	const limit = 10
	for _, trims := range []bool{false, true} {
		cm, err := connmgr.NewConnManager(4, 1000, connmgr.WithGracePeriod(0))
		require.NoError(t, err)
		var opts []rcmgr.Option
		trimming := &countingTrims{ConnManager: cm}
		if trims {
			opts = append(opts, rcmgr.WithTrimming(trimming))
		}
		m := newManager(t, limited(rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: limit}}), opts...)
		server := newServer(t, m, roads[0], libp2p.ConnectionManager(cm))
		to := peer.AddrInfo{ID: server.ID(), Addrs: server.Addrs()}
		holds := func() int { return m.Stat().System.NumConnsInbound }
		// Who is just being let in is not the connection manager's to trim yet.
		untilKnown := func(h host.Host) {
			eventually(t, func() bool {
				return cm.GetTagInfo(h.ID()) != nil || h.Network().Connectedness(server.ID()) != network.Connected
			}, "who came is neither known nor trimmed", m)
		}
		strangerComes := func() {
			stranger := newHost(t, unmanaged())
			require.NoError(t, stranger.Connect(ctx, to))
			untilKnown(stranger)
		}
		friend := newHost(t, unmanaged())
		if !trims {
			for range limit {
				strangerComes()
			}
			require.False(t, connects(ctx, friend, to), "nobody makes room")
			continue
		}
		strangersComeUntilRoomIsMade := func() {
			before := trimming.times.Load()
			for holds() < limit*8/10 && trimming.times.Load() == before {
				strangerComes()
			}
			eventually(t, func() bool { return trimming.times.Load() > before && holds() < limit*8/10 }, "no room is made", m)
		}
		strangersComeUntilRoomIsMade()
		require.True(t, connects(ctx, friend, to))
		untilKnown(friend)
		cm.TagPeer(friend.ID(), "friend", 100) // a trim forgets the tag of a peer that is not connected
		for range 2 {
			strangersComeUntilRoomIsMade()
		}
		require.Equal(t, network.Connected, server.Network().Connectedness(friend.ID()), "it is worth more than strangers")
		require.NoError(t, pingOnce(ctx, friend, server.ID()))
		require.Zero(t, m.Snapshot().Refusals[rcmgr.KindSystem].Total())
	}
}

// countingTrims counts how often it is asked to trim, once it has.
type countingTrims struct {
	coreconnmgr.ConnManager
	times atomic.Int64
}

func (c *countingTrims) TrimOpenConns(ctx context.Context) {
	c.ConnManager.TrimOpenConns(ctx)
	c.times.Add(1)
}

// connects reports whether a host is let in, and can ask for something.
func connects(ctx context.Context, h host.Host, to peer.AddrInfo) bool {
	return h.Connect(ctx, to) == nil && pingOnce(ctx, h, to.ID) == nil
}
