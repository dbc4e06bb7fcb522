package main

// One host of the soak, with its manager and its limits.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

// role is what a host is there for.
type role int

const (
	member role = iota
	relays      // for those who are hidden
	hidden      // listens nowhere, and is reached by a relay
)

var roads = []string{
	"/ip4/127.0.0.1/tcp/0",
	"/ip4/127.0.0.1/udp/0/quic-v1",
	"/ip4/127.0.0.1/tcp/0/ws",
}

type node struct {
	role    role
	host    host.Host
	manager *ledger
	limits  rcmgr.BaseLimit // of system, as they were at first
	lowered bool            // they may have been set below what was in use
	addrs   []multiaddr.Multiaddr

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup // its own traffic
}

// workingPoint is limits about as high as what a host of so many wants at a
// time, so that it meets them often.
func workingPoint(hosts int) rcmgr.BaseLimit {
	return rcmgr.BaseLimit{
		Conns: hosts, ConnsInbound: 2 * hosts / 3, ConnsOutbound: hosts, FD: 2 * hosts / 3,
		Streams: 3 * hosts, StreamsInbound: 2 * hosts, StreamsOutbound: 2 * hosts, Memory: int64(hosts) << 20, // yamux takes 256 KiB for a stream
	}
}

func limitsOf(system rcmgr.BaseLimit) rcmgr.Limiter {
	some := rcmgr.PartialLimitConfig{
		System:      system.ToResourceLimits(),
		Transient:   rcmgr.ResourceLimits{ConnsInbound: 8, StreamsInbound: 16, Conns: 16, FD: 12},
		PeerDefault: rcmgr.ResourceLimits{Conns: 2, Streams: 12, Memory: 3 << 20},
		Service:     map[string]rcmgr.ResourceLimits{fetchService: {StreamsInbound: 24, Memory: 512 << 10}},
		Protocol:    map[fetchID]rcmgr.ResourceLimits{fetchProtocol: {StreamsOutbound: 24}},
	}
	return rcmgr.NewFixedLimiter(some.Build(rcmgr.InfiniteLimits))
}

func newNode(r role, hosts int) (*node, error) {
	n := &node{role: r, limits: workingPoint(hosts)}
	limits := limitsOf(n.limits)
	if r == relays { // they serve
		limits = rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits)
	}
	m, err := rcmgr.New(limits)
	if err != nil {
		return nil, err
	}
	n.manager = newLedger(m)
	opts := []libp2p.Option{libp2p.ResourceManager(n.manager), libp2p.DisableMetrics(), libp2p.EnableRelay()}
	switch r {
	case hidden:
		opts = append(opts, libp2p.NoListenAddrs)
	case relays:
		opts = append(opts, libp2p.EnableRelayService(relay.WithInfiniteLimits()), libp2p.ForceReachabilityPublic())
		fallthrough
	default:
		opts = append(opts, libp2p.ListenAddrStrings(roads...))
	}
	// libp2p.New closes the manager if it fails, and the host does in the end.
	if n.host, err = libp2p.New(opts...); err != nil {
		return nil, err
	}
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.addrs = n.host.Addrs()
	n.host.SetStreamHandler(fetchProtocol, serveFetch)
	return n, nil
}

// relaysNow waits until a relay relays.
func (n *node) relaysNow() error {
	if !within(patience, func() bool { return slices.Contains(n.host.Mux().Protocols(), proto.ProtoIDv2Hop) }) {
		return fmt.Errorf("a relay does not relay after %v", patience)
	}
	return nil
}

// relayTag marks the relay that a host must not hang up on.
const relayTag = "relay"

// reserveAt gives a hidden host a place at a relay.
func (n *node) reserveAt(at *node) error {
	ctx, cancel := context.WithTimeout(n.ctx, patience)
	defer cancel()
	info := peer.AddrInfo{ID: at.host.ID(), Addrs: at.addrs[:1]}
	if err := n.host.Connect(ctx, info); err != nil {
		return err
	}
	n.host.ConnManager().Protect(info.ID, relayTag)
	if _, err := circuit.Reserve(ctx, n.host, info); err != nil {
		return err
	}
	via := multiaddr.StringCast(fmt.Sprintf("%v/p2p/%v/p2p-circuit", info.Addrs[0], info.ID))
	n.addrs = []multiaddr.Multiaddr{via}
	return nil
}

// endNode ends a host. Its own traffic ends first: go-libp2p crashes if a host is
// closed while it dials. What it held must be gone afterwards.
func (w *world) endNode(n *node) {
	if err := w.tryEnd(n); err != nil {
		w.complain("%v", err)
	}
	w.countRefusals(n.manager.Manager)
}

func (w *world) tryEnd(n *node) error {
	n.stop()
	n.work.Wait()
	for _, p := range n.host.Network().Peers() {
		n.host.Network().ClosePeer(p)
	}
	if err := n.host.Close(); err != nil {
		return err
	}
	within(grace, func() bool { return len(held(n.manager.Manager)) == 0 })
	w.finishForgotten(n)
	if left := held(n.manager.Manager); len(left) > 0 {
		return fmt.Errorf("a closed host still holds %s", strings.Join(left, ", "))
	}
	return nil
}

// finishForgotten ends what a host has forgotten, and counts it.
func (w *world) finishForgotten(n *node) {
	inbound, outbound := n.manager.finishForgotten(n.host)
	w.forgotten += inbound
	if outbound > 0 {
		w.complain("host %v has lost %d outbound connections", n.host.ID(), outbound)
	}
}

// held names all that a manager holds.
func held(m *rcmgr.Manager) (names []string) {
	for _, s := range m.Snapshot().Scopes {
		if s.Use != (network.ScopeStat{}) {
			names = append(names, fmt.Sprintf("%s %+v", s.Name, s.Use))
		}
	}
	return names
}

// changeLimits gives the host limits between half and one and a half of what it
// had at first.
func (n *node) changeLimits(r *rand.Rand) {
	if n.role == relays {
		return
	}
	l, by := n.limits, .5+r.Float64()
	for _, c := range []*int{&l.Conns, &l.ConnsInbound, &l.ConnsOutbound, &l.FD, &l.Streams, &l.StreamsInbound, &l.StreamsOutbound} {
		*c = int(by * float64(*c))
	}
	l.Memory = int64(by * float64(l.Memory))
	n.lowered = true // perhaps
	n.manager.ViewSystem(func(s network.ResourceScope) error {
		s.(rcmgr.ResourceScopeLimiter).SetLimit(&l)
		return nil
	})
}

// within waits until something is so, and tells if it is.
func within(d time.Duration, is func() bool) bool {
	for end := time.Now().Add(d); !is(); time.Sleep(tick) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
