package main

// Memory that no scope accounts for. The victim keeps what it is sent for as long as the
// stream lasts, and reserves no memory for it. All limits are far away, but the memory of
// the process is limited. Each attacker sends message after message, each on a stream
// that it holds, until it has sent its part of twice that memory. Guests are a friend on
// the allowlist, a peer that came before and goes on asking on its open stream, and
// strangers.

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

const (
	keepProtocol protocol.ID = "/attacks/keep/1.0.0"
	keepSize                 = 256 << 10 // bytes of a message
)

// The groups of guests.
const (
	allowlistedFriend = iota
	earlyGuest
	strangers
)

var memoryPressure = attack{
	name:     "memory",
	about:    "memory that is held without a reservation",
	option:   "WithMemoryPressure",
	groups:   []string{"allowlisted friend", "guest on its stream", "strangers"},
	asking:   3,
	plan:     planMemory,
	before:   comeEarly,
	attacker: sendToKeep,
	guests:   askInThreeWays,
}

// messages returns how many messages each attacker sends.
func messages(memory int64, attackers int) int {
	return int(2*memory/keepSize)/attackers + 1
}

func planMemory(o order) (plan, error) {
	debug.SetMemoryLimit(o.Memory) // as GOMEMLIMIT does
	var kept atomic.Int64
	total := int64(o.Attackers * messages(o.Memory, o.Attackers))
	return plan{
		allowlist: []multiaddr.Multiaddr{
			multiaddr.StringCast(fmt.Sprintf("/ip4/%v/p2p/%v", guestIP(allowlistedFriend, 0), o.Friends[0])),
		},
		option: rcmgr.WithMemoryPressure(rcmgr.MemoryPressureConfig{Limit: o.Memory}),
		start: func(h host.Host) {
			h.SetStreamHandler(keepProtocol, func(s network.Stream) {
				defer s.Reset()
				message := make([]byte, keepSize)
				if _, err := io.ReadFull(s, message); err != nil {
					return
				}
				kept.Add(1)
				s.Write(message[:1]) // report that it is kept
				s.Read(message[1:])  // wait until the stream ends
			})
		},
		atWorst: func(r report) bool { return kept.Load() == total || len(r.Crowd) > 0 },
	}, nil
}

// comeEarly connects a guest before the crowd comes, and opens a stream.
func comeEarly(ctx context.Context, sh *show) error {
	h, err := newHost(guestIP(earlyGuest, 0))
	if err != nil {
		return err
	}
	sh.hosts = append(sh.hosts, h)
	if err := connect(ctx, h, sh.to); err != nil {
		return err
	}
	sh.early, err = h.NewStream(asConnected(ctx), sh.to.ID, echoProtocol)
	if err != nil {
		return err
	}
	return askOn(ctx, sh.early)
}

// sendToKeep sends one attacker's part.
func sendToKeep(ctx context.Context, sh *show, a attacker) {
	for left := messages(int64(sh.memory)<<20, sh.attackers); left > 0 && pause(ctx, again); {
		if connect(ctx, a, sh.to) == nil && sendOne(ctx, a, sh.to.ID) == nil {
			left--
		}
	}
	<-ctx.Done()
}

// sendOne sends a message, and leaves the stream open.
func sendOne(ctx context.Context, h host.Host, to peer.ID) error {
	s, err := h.NewStream(asConnected(ctx), to, keepProtocol)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	_, err = s.Write(make([]byte, keepSize))
	if err == nil {
		_, err = io.ReadFull(s, make([]byte, 1))
	}
	if err != nil {
		s.Reset()
	}
	return err
}

func askInThreeWays(ctx context.Context, sh *show) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		for pause(ctx, between) {
			sh.visit(ctx, allowlistedFriend, 0, libp2p.Identity(sh.friends[0].key))
		}
	})
	all.Go(func() {
		for pause(ctx, between) {
			sh.groups[earlyGuest].do(ctx, func(ctx context.Context) error { return askOn(ctx, sh.early) })
		}
	})
	all.Go(func() {
		for n := 0; pause(ctx, between); n++ {
			sh.visit(ctx, strangers, n)
		}
	})
}
