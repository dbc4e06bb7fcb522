package main

// A crowd that fills the transient scope. Each attacker is a different peer, from one of
// three networks, and holds little: streams that never negotiate a protocol, and
// connections that never shake hands. Guests come one after another, each from a network
// of its own.

import (
	"context"
	"io"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/weir-p2p/rcmgr"
)

const (
	transientStreams = 64
	transientConns   = 32
	silentOfEach     = 8 // streams that each attacker wants
	halfOpenOfEach   = 3 // connections that each attacker wants
)

var fairShare = attack{
	name:     "fairshare",
	about:    "streams that never negotiate and connections that never shake hands, from three networks",
	option:   "WithFairShare",
	groups:   []string{"newcomers"},
	asking:   1,
	plan:     planFairShare,
	attacker: holdTransient,
	guests: func(ctx context.Context, sh *show) {
		for n := 0; pause(ctx, between); n++ {
			sh.visit(ctx, 0, n)
		}
	},
}

func planFairShare(order) (plan, error) {
	return plan{
		limits: rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{
			StreamsInbound: transientStreams,
			ConnsInbound:   transientConns,
		}},
		option:  rcmgr.WithFairShare(),
		atWorst: func(r report) bool { return r.refused("inbound stream") && r.refused("inbound connection") },
	}, nil
}

// holdTransient holds streams and connections, and opens others when it loses some. It
// begins when the whole crowd is connected, because after that attackers would keep each
// other out.
func holdTransient(ctx context.Context, sh *show, a attacker) {
	for connect(ctx, a, sh.to) != nil && pause(ctx, again) {
	}
	sh.connected.Done()
	sh.connected.Wait()
	var all sync.WaitGroup
	defer all.Wait()
	for range silentOfEach {
		all.Go(func() {
			for pause(ctx, again) {
				if connect(ctx, a, sh.to) == nil {
					holdSilentStream(ctx, a, sh.to.ID)
				}
			}
		})
	}
	for range halfOpenOfEach {
		all.Go(func() {
			for pause(ctx, again) {
				holdHalfOpen(ctx, a.ip, sh.to)
			}
		})
	}
}

// holdSilentStream opens a stream, and sends nothing until it ends.
func holdSilentStream(ctx context.Context, h host.Host, to peer.ID) {
	s, err := h.Network().NewStream(asConnected(ctx), to)
	if err != nil {
		return
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	s.Read(make([]byte, 1))
}

// holdHalfOpen opens a TCP connection, and sends nothing until it ends.
func holdHalfOpen(ctx context.Context, from net.IP, to peer.AddrInfo) {
	_, addr, err := manet.DialArgs(to.Addrs[0])
	if err != nil {
		return
	}
	conn, err := dialerFrom(from).DialContext(ctx, "tcp4", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.(*net.TCPConn).SetLinger(0) // so that the port is free again at once
	io.Copy(io.Discard, conn)
}
