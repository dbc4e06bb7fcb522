package rcmgr_test

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

// fixedNames is a resolver that knows its names by heart. A host uses madns.DefaultResolver.
type fixedNames map[string]string

func (f fixedNames) Resolve(_ context.Context, name multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error) {
	address, ok := f[name.String()]
	if !ok {
		return nil, fmt.Errorf("no such host")
	}
	return []multiaddr.Multiaddr{multiaddr.StringCast(address)}, nil
}

func ExampleWithAllowlistResolver() {
	names := fixedNames{"/dns4/friend.example.com": "/ip4/192.0.2.1"}
	rm, err := rcmgr.New(nil, rcmgr.WithAllowlistStrings([]string{"/dns4/friend.example.com", "/dns4/gone.example.com"}, false),
		rcmgr.WithAllowlistResolver(names, 0))
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	state := rm.Snapshot().Allowlist
	for len(state.Names[0].Admits) == 0 || state.Names[1].Err == "" { // New does not wait for answers
		time.Sleep(time.Millisecond)
		state = rm.Snapshot().Allowlist
	}
	for _, name := range state.Names {
		fmt.Println(name.Entry, name.Admits, name.Failed)
	}
	fmt.Println(rm.GetAllowlist().Allowed(multiaddr.StringCast("/ip4/192.0.2.1/tcp/4001")))
	// Output:
	// /dns4/friend.example.com [/ip4/192.0.2.1] 0
	// /dns4/gone.example.com [] 1
	// true
}

// hostResolver makes an AllowlistResolver of the interface that libp2p.MultiaddrResolver takes.
type hostResolver struct{ network.MultiaddrDNSResolver }

func (r hostResolver) Resolve(ctx context.Context, name multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error) {
	const most = 100
	if name[0].Code() == multiaddr.P_DNSADDR {
		return r.ResolveDNSAddr(ctx, "", name, 1, most)
	}
	return r.ResolveDNSComponent(ctx, name, most)
}

// A resolver of libp2p's own interface needs an adapter. A swarm.ResolverFromMaDNS needs none.
func ExampleAllowlistResolver() {
	resolver := hostResolver{libp2pNames{"/dnsaddr/example.com": "/ip4/192.0.2.1"}}
	found, err := resolver.Resolve(context.Background(), multiaddr.StringCast("/dnsaddr/example.com"))
	fmt.Println(found, err)
	_, err = rcmgr.New(nil, rcmgr.WithAllowlistResolver(resolver, time.Second))
	fmt.Println(err)
	// Output:
	// [/ip4/192.0.2.1] <nil>
	// rcmgr: WithAllowlistResolver: 1s between two lookups, expected at least 10s, or 0 for 5m0s
}

// libp2pNames is a resolver of libp2p's own interface.
type libp2pNames fixedNames

func (n libp2pNames) ResolveDNSAddr(ctx context.Context, _ peer.ID, name multiaddr.Multiaddr, _, most int) ([]multiaddr.Multiaddr, error) {
	return n.ResolveDNSComponent(ctx, name, most)
}

func (n libp2pNames) ResolveDNSComponent(ctx context.Context, name multiaddr.Multiaddr, _ int) ([]multiaddr.Multiaddr, error) {
	return fixedNames(n).Resolve(ctx, name)
}

func _() {
	_ = func(resolver rcmgr.AllowlistResolver) (*rcmgr.Manager, error) {
		names := []string{"/dns4/friend.example.com", "/dnsaddr/example.com/p2p/12D3Koo…"}
		rm, err := rcmgr.New(nil, rcmgr.WithAllowlistStrings(names, false), rcmgr.WithAllowlistResolver(resolver, 0))
		return rm, err
	}
}
