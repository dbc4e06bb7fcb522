package main

// The loopback address of each host, and hosts that dial from there. All addresses are
// within 127.0.0.0/8, so that subnets are real ones.

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
)

const (
	crowdNetworks = 3   // how many /24 the attackers share
	firstGroup    = 200 // guests of group n are in 127.(200+n).0.0/16
)

// homeIP returns the address of the victim and of the host that it asks.
func homeIP() net.IP { return net.IPv4(127, 0, 0, 1) }

// crowdIP returns the address of attacker n, of 750 at most.
func crowdIP(n int) net.IP {
	return net.IPv4(127, 1, byte(n%crowdNetworks), byte(n/crowdNetworks+1))
}

// guestIP returns the address of guest n of a group. 250 successive guests are each in a
// /24 of their own.
func guestIP(group, n int) net.IP {
	return net.IPv4(127, byte(firstGroup+group), byte(n%250), byte(n/250%250+1))
}

// groupAt returns the group of the guests at an address, -1 if it is not a guest's.
func groupAt(ip net.IP) int {
	if v4 := ip.To4(); v4 != nil && v4[0] == 127 && v4[1] >= firstGroup {
		return int(v4[1]) - firstGroup
	}
	return -1
}

// checkLoopback returns an error unless this machine has all of these addresses. Linux
// has them; other systems, such as macOS, may have 127.0.0.1 only.
func checkLoopback() error {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: guestIP(0, 0)})
	if err != nil {
		return errors.Join(errors.New("this needs all of 127.0.0.0/8, as Linux has it"), err)
	}
	return l.Close()
}

// newHost returns a host that dials from ip, by TCP. It has no limits, so every refusal
// is the victim's.
func newHost(ip net.IP, more ...libp2p.Option) (host.Host, error) {
	return libp2p.New(append(more,
		libp2p.NoListenAddrs,
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableMetrics(),
		libp2p.Transport(tcp.NewTCPTransport, tcp.WithDialerForAddr(
			func(multiaddr.Multiaddr) (tcp.ContextDialer, error) { return dialerFrom(ip), nil })),
	)...)
}

func dialerFrom(ip net.IP) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}}
}

// listenAddr is the address of hosts that others dial.
const listenAddr = "/ip4/127.0.0.1/tcp/0"

// connect connects h unless it is connected, without waiting because the last dial
// failed. A dial that has begun goes on when ctx ends, because a host that is closed
// while its swarm gathers addresses to dial crashes in go-libp2p v0.51.0. For the same
// reason streams are opened with asConnected.
func connect(ctx context.Context, h host.Host, to peer.AddrInfo) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return h.Connect(network.WithForceDirectDial(ctx, "attacks"), to)
}

// asConnected returns a context with which opening a stream does not dial.
func asConnected(ctx context.Context) context.Context {
	return network.WithNoDial(ctx, "attacks")
}

// pause waits for d, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
