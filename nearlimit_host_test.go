package rcmgr_test

// A real host whose connection manager is asked to trim before its limit refuses.

import (
	"context"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// The high water mark lies far above the limit, so that the connection manager alone
// never trims, and strangers fill the limit. With TrimConns there is room for whom
// the host values, who also stays while more strangers come.
func TestHostsThatTrimNearTheirLimitTakeWhomTheyValue(t *testing.T) {
	ctx := onHosts(t)
	const limit = 10
	for _, trims := range []bool{false, true} {
		cm, err := connmgr.NewConnManager(4, 1000, connmgr.WithGracePeriod(0))
		require.NoError(t, err)
		var opts []rcmgr.Option
		if trims {
			opts = append(opts, rcmgr.WithOnNearLimit(rcmgr.TrimConns(cm)))
		}
		m := newManager(t, limited(rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: limit}}), opts...)
		server := newServer(t, m, roads[0], libp2p.ConnectionManager(cm))
		to := peer.AddrInfo{ID: server.ID(), Addrs: server.Addrs()}
		holds := func() int { return m.Stat().System.NumConnsInbound }
		strangers := func(n int) {
			for range n {
				before := holds()
				require.NoError(t, newHost(t, unmanaged()).Connect(ctx, to))
				eventually(t, func() bool { return holds() != before }, "a stranger is counted, or trimmed already", m)
			}
		}
		friend := newHost(t, unmanaged())
		if !trims {
			strangers(limit)
			require.False(t, connects(ctx, friend, to), "nobody makes room")
			continue
		}
		strangers(limit * 8 / 10)
		// Who is just being let in is not the connection manager's to trim yet.
		eventually(t, func() bool { return holds() < limit*8/10 }, "room is made", m)
		require.True(t, connects(ctx, friend, to))
		cm.TagPeer(friend.ID(), "friend", 100) // a tag of somebody who is not here is forgotten in a trim
		for range 2 {
			strangers(limit*8/10 - holds())
			eventually(t, func() bool { return holds() < limit*8/10 }, "room is made again", m)
		}
		require.Equal(t, network.Connected, server.Network().Connectedness(friend.ID()), "it is worth more than strangers")
		require.NoError(t, pingOnce(ctx, friend, server.ID()))
		require.Zero(t, m.Snapshot().Refusals[rcmgr.KindSystem].Total())
	}
}

// connects tells whether a host is let in, and can ask for something.
func connects(ctx context.Context, h host.Host, to peer.AddrInfo) bool {
	return h.Connect(ctx, to) == nil && pingOnce(ctx, h, to.ID) == nil
}
