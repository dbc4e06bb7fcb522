package main

// The loopback address of each host, and hosts that dial from there.

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/text"
)

// mostAttackers keeps the address of every attacker within its network.
const mostAttackers = 1000

// The attackers' networks. Only the scopes limit connections from the first; the victim
// has a gate for each of the others (see showLimits), and the friend is in the most
// crowded one.
const (
	freeNetwork = "127.1.0.0/16"
	fewNetwork  = "127.2.0.0/16" // few connections at a time
	slowNetwork = "127.3.0.0/16" // new connections slowly
)

// friendNetwork is the network of a friend behind a relay, which no other host is in.
const friendNetwork = "127.4.0.0/16"

// networkOf returns the network of an attacker: half of them are in the first.
func networkOf(attacker int) string {
	return [...]string{freeNetwork, fewNetwork, slowNetwork, freeNetwork}[attacker%4]
}

// places has the addresses of the show.
type places struct {
	victim    net.IP
	friend    net.IP // the friend's address as the victim sees it
	home      net.IP // the friend's own address: another one if it comes through a relay
	attackers []net.IP
	shared    bool // this machine has 127.0.0.1 only, so all share it
}

// choosePlaces gives each host an address of its own. Linux has all of 127.0.0.0/8; other
// systems, such as macOS, may have 127.0.0.1 only.
func choosePlaces(attackers int, relay bool) places {
	p := places{victim: net.IPv4(127, 0, 0, 1), friend: at(fewNetwork, 255, 1), home: at(fewNetwork, 255, 1)}
	if relay {
		p.home = at(friendNetwork, 0, 1)
	}
	for i := range attackers {
		p.attackers = append(p.attackers, at(networkOf(i), byte(i/250), byte(i%250+1)))
	}
	for _, ip := range append([]net.IP{p.friend, p.home}, p.attackers...) {
		if !bindable(ip) {
			p.shareOne()
			break
		}
	}
	return p
}

// at returns an address in one of the networks.
func at(network string, c, d byte) net.IP {
	b := netip.MustParsePrefix(network).Addr().As4()
	return net.IPv4(b[0], b[1], c, d)
}

func (p *places) shareOne() {
	p.shared = true
	p.friend, p.home = p.victim, p.victim
	for i := range p.attackers {
		p.attackers[i] = p.victim
	}
}

func bindable(ip net.IP) bool {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: ip})
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func (p places) describe() string {
	if p.shared {
		return fmt.Sprintf("victim, friend and %s all at %v: this machine has no other loopback address,\n"+
			"so a friend refused before it says who it is cannot be told from an attacker,\n"+
			"and the gates have no network to look after", text.Plural(len(p.attackers), "attacker"), p.victim)
	}
	in := map[string]int{}
	for i := range p.attackers {
		in[networkOf(i)]++
	}
	friend := fmt.Sprintf("friend at %v,", p.friend)
	if !p.home.Equal(p.friend) {
		friend = fmt.Sprintf("friend at %v, behind a relay at %v,", p.home, p.friend)
	}
	return fmt.Sprintf("victim at %v,\nattackers: %d in %s, %d in %s, %d in %s,\n%s among those of the second network",
		p.victim, in[freeNetwork], freeNetwork, in[fewNetwork], fewNetwork, in[slowNetwork], slowNetwork, friend)
}

// A road is the transport by which a host reaches the victim.
type road uint8

const (
	byTCP road = iota
	byQUIC
	numRoads
)

// newHost returns a host that only dials, from ip, by one transport. It has no limits, so
// every refusal is the victim's.
func newHost(key crypto.PrivKey, ip net.IP, by road, more ...libp2p.Option) (host.Host, error) {
	opts := append(more,
		libp2p.Identity(key),
		libp2p.NoListenAddrs,
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableMetrics(),
	)
	if by == byTCP {
		opts = append(opts, libp2p.Transport(tcp.NewTCPTransport, tcp.WithDialerForAddr(
			func(multiaddr.Multiaddr) (tcp.ContextDialer, error) { return dialerFrom(ip), nil })))
	} else {
		opts = append(opts, libp2p.Transport(libp2pquic.NewTransport), libp2p.QUICReuse(
			quicreuse.NewConnManager, quicreuse.OverrideListenUDP(
				func(network string, _ *net.UDPAddr) (net.PacketConn, error) {
					return net.ListenUDP(network, &net.UDPAddr{IP: ip})
				})))
	}
	return libp2p.New(opts...)
}

// connect connects h unless it is connected, without waiting because the last dial
// failed. The end of ctx does not cut short a dial that has begun, because a host that is
// closed while its swarm is still gathering addresses to dial crashes in go-libp2p
// v0.51.0. For the same reason streams are opened with asConnected.
func connect(ctx context.Context, h host.Host, to peer.AddrInfo) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if !isRelayed(to) {
		ctx = network.WithForceDirectDial(ctx, "flood")
	}
	return h.Connect(ctx, to)
}

// asConnected returns a context with which opening a stream does not dial.
func asConnected(ctx context.Context) context.Context {
	return network.WithNoDial(ctx, "flood")
}

func dialerFrom(ip net.IP) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}}
}
