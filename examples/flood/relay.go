package main

// The friend's relay. It has the address that the friend has otherwise, it is not
// attacked, and the victim has a reservation on it.

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/multiformats/go-multiaddr"
)

// newRelay returns a host that relays without limits, when it is ready.
func newRelay(ctx context.Context, ip net.IP) (host.Host, error) {
	h, err := libp2p.New(
		libp2p.ListenAddrStrings(fmt.Sprintf("/ip4/%v/tcp/0", ip)),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.EnableRelayService(relay.WithInfiniteLimits()),
		libp2p.ForceReachabilityPublic(),
		libp2p.DisableMetrics(),
	)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(patience); !slices.Contains(h.Mux().Protocols(), proto.ProtoIDv2Hop); {
		if !pause(ctx, breath) || time.Now().After(end) {
			h.Close()
			return nil, fmt.Errorf("the friend's relay does not relay after %v", patience)
		}
	}
	return h, nil
}

// reserve makes the victim reserve a place on a relay, through which it can then be
// reached.
func (v *victim) reserve(ctx context.Context, relay host.Host) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at := *host.InfoFromHost(relay)
	if err := v.host.Connect(ctx, at); err != nil {
		return err
	}
	if _, err := circuit.Reserve(ctx, v.host, at); err != nil {
		return err
	}
	via := multiaddr.StringCast("/p2p/" + relay.ID().String() + "/p2p-circuit")
	v.relayed = &peer.AddrInfo{ID: v.host.ID()}
	for _, a := range at.Addrs {
		v.relayed.Addrs = append(v.relayed.Addrs, a.Encapsulate(via))
	}
	return nil
}

func isRelayed(to peer.AddrInfo) bool {
	return slices.ContainsFunc(to.Addrs, func(a multiaddr.Multiaddr) bool {
		_, err := a.ValueForProtocol(multiaddr.P_CIRCUIT)
		return err == nil
	})
}

// guests returns the entries of the allowlist: the friend at the address that the victim
// sees, and behind a relay also the relay, and the friend at any address.
func guests(ip net.IP, friend, relay peer.ID) []multiaddr.Multiaddr {
	entries := []multiaddr.Multiaddr{multiaddr.StringCast(fmt.Sprintf("/ip4/%v/p2p/%v", ip, friend))}
	if relay != "" {
		entries = append(entries,
			multiaddr.StringCast(fmt.Sprintf("/ip4/%v/p2p/%v", ip, relay)),
			multiaddr.StringCast(fmt.Sprintf("/p2p/%v", friend)))
	}
	return entries
}
