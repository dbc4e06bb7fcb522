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

// role is the part that a host plays.
type role int

const (
	member role = iota
	relays      // serves hidden hosts
	hidden      // does not listen, and is reached through a relay
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
	limits  rcmgr.BaseLimit // of system, at the start
	lowered bool            // they may have been set below what was in use
	addrs   []multiaddr.Multiaddr

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup // its own traffic
}

// workingPoint returns limits that are about what one of so many hosts wants at a time,
// so that it reaches them often.
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

func newNode(r role, hosts int, trace string) (*node, error) {
	n := &node{role: r, limits: workingPoint(hosts)}
	limits := limitsOf(n.limits)
	if r == relays { // relays only serve
		limits = rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits)
	}
	var watched []rcmgr.Option
	if trace != "" {
		watched = append(watched, rcmgr.WithStrictConfig(), rcmgr.WithTrace(trace))
	}
	m, err := rcmgr.New(limits, watched...)
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
	// libp2p.New closes the manager if it fails; otherwise closing the host does.
	if n.host, err = libp2p.New(opts...); err != nil {
		return nil, err
	}
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.addrs = n.host.Addrs()
	n.host.SetStreamHandler(fetchProtocol, serveFetch)
	return n, nil
}

// relaysNow waits until a relay is ready.
func (n *node) relaysNow() error {
	if !within(patience, func() bool { return slices.Contains(n.host.Mux().Protocols(), proto.ProtoIDv2Hop) }) {
		return fmt.Errorf("a relay does not relay after %v", patience)
	}
	return nil
}

// relayTag marks a hidden host's relay, from which it must not disconnect.
const relayTag = "relay"

// reserveAt reserves a place on a relay for a hidden host.
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

// endNode closes a host. Its own traffic ends first, because go-libp2p crashes if a host
// is closed while it dials. Nothing that it held may be left.
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

// finishForgotten closes the connections that a host has forgotten, and counts them.
func (w *world) finishForgotten(n *node) {
	inbound, outbound := n.manager.finishForgotten(n.host)
	w.forgotten += inbound
	if outbound > 0 {
		w.complain("host %v has lost %d outbound connections", n.host.ID(), outbound)
	}
}

// held returns everything that a manager holds.
func held(m *rcmgr.Manager) (names []string) {
	for _, s := range m.Snapshot().Scopes {
		if s.Use != (network.ScopeStat{}) {
			names = append(names, fmt.Sprintf("%s %+v", s.Name, s.Use))
		}
	}
	return names
}

// changeLimits sets the host's limits to between half and one and a half of those at the
// start.
func (n *node) changeLimits(r *rand.Rand) {
	if n.role == relays {
		return
	}
	l, by := n.limits, .5+r.Float64()
	for _, c := range []*int{&l.Conns, &l.ConnsInbound, &l.ConnsOutbound, &l.FD, &l.Streams, &l.StreamsInbound, &l.StreamsOutbound} {
		*c = int(by * float64(*c))
	}
	l.Memory = int64(by * float64(l.Memory))
	n.lowered = true // perhaps they were
	n.manager.ViewSystem(func(s network.ResourceScope) error {
		s.(rcmgr.ResourceScopeLimiter).SetLimit(&l)
		return nil
	})
}

// within waits until is returns true, at most for d, and reports whether it did.
func within(d time.Duration, is func() bool) bool {
	for end := time.Now().Add(d); !is(); time.Sleep(tick) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
