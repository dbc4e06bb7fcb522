package main

// A host that is full although its connection manager could close some connections. The
// limit on connections is below the connection manager's high water mark, so it never
// trims of its own accord; no connection has a grace period. The crowd wants more
// connections than there is room for, and opens others when it loses some. Guests are
// peers that the victim values: it tags them when they come. They stay for a while, ask,
// go, and come again.

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	coreconnmgr "github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/weir-p2p/rcmgr"
)

const (
	mostConns   = 64
	connsOfEach = 4  // that each attacker wants
	lowWater    = 12 // what is left after trimming, besides connections that are just being opened
	highWater   = 128
	stay        = time.Second
)

// The groups of guests.
const (
	comingGuests = iota
	stayingGuests
)

var trim = attack{
	name:     "trim",
	about:    "connections of no value, as many as there may be",
	option:   "WithTrimming",
	groups:   []string{"valued peers, coming", "valued peers, staying"},
	asking:   1,
	plan:     planTrim,
	attacker: holdConns,
	guests:   comeAndStay,
}

func planTrim(o order) (plan, error) {
	cm, err := connmgr.NewConnManager(lowWater, highWater, connmgr.WithGracePeriod(0))
	if err != nil {
		return plan{}, err
	}
	valued := map[peer.ID]bool{}
	for _, id := range o.Friends {
		valued[id] = true
	}
	trimming := &trims{ConnManager: cm}
	return plan{
		limits: rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: mostConns}},
		option: rcmgr.WithTrimming(trimming),
		host:   []libp2p.Option{libp2p.ConnectionManager(cm)},
		start: func(h host.Host) {
			h.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
				if valued[c.RemotePeer()] {
					cm.TagPeer(c.RemotePeer(), "valued", 100)
				}
			}})
		},
		atWorst: func(r report) bool { return trimming.begun.Load() || len(r.Crowd) > 0 },
	}, nil
}

// trims is a connection manager that records whether it was asked to trim.
type trims struct {
	coreconnmgr.ConnManager
	begun atomic.Bool
}

func (t *trims) TrimOpenConns(ctx context.Context) {
	t.begun.Store(true)
	t.ConnManager.TrimOpenConns(ctx)
}

// holdConns holds connections, and opens others when it loses some, one at a time. It
// dials without the host's swarm, which would keep to one connection.
func holdConns(ctx context.Context, sh *show, a attacker) {
	addr := sh.to.Addrs[0]
	dialler := a.Network().(*swarm.Swarm).TransportForDialing(addr)
	var held []transport.CapableConn
	for pause(ctx, again) {
		held = slices.DeleteFunc(held, transport.CapableConn.IsClosed)
		if len(held) == connsOfEach {
			continue
		}
		dialling, cancel := context.WithTimeout(ctx, patience)
		if conn, err := dialler.Dial(dialling, addr, sh.to.ID); err == nil {
			held = append(held, conn)
		}
		cancel()
	}
	for _, conn := range held {
		conn.Close()
	}
}

// comeAndStay lets all friends come, each independently.
func comeAndStay(ctx context.Context, sh *show) {
	var all sync.WaitGroup
	defer all.Wait()
	for n, f := range sh.friends {
		all.Go(func() {
			h, err := newHost(guestIP(comingGuests, n), libp2p.Identity(f.key))
			if err != nil {
				return
			}
			defer h.Close()
			for pause(ctx, between) {
				if sh.groups[comingGuests].do(ctx, func(ctx context.Context) error { return come(ctx, h, sh.to) }) {
					stayAwhile(ctx, sh, h)
				}
				h.Network().ClosePeer(sh.to.ID)
			}
		})
	}
}

// stayAwhile asks for a while, or until a request is not served.
func stayAwhile(ctx context.Context, sh *show, h host.Host) {
	for end := time.Now().Add(stay); time.Now().Before(end) && pause(ctx, between); {
		if !sh.groups[stayingGuests].do(ctx, func(ctx context.Context) error { return ask(ctx, h, sh.to.ID) }) {
			return
		}
	}
}
