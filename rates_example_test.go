package rcmgr_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr"
)

// A peer may open three streams at once, and then one in ten seconds. It never holds more than
// one, so no limit stops it.
func ExampleRates() {
	limits := rcmgr.PartialLimitConfig{
		PeerDefault: rcmgr.ResourceLimits{
			Rates: rcmgr.Rates{StreamsInbound: rcmgr.Rate{PerSecond: 0.1, Burst: 3}},
		},
	}.Build(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rm.Close()

	opened := 0
	for range 10_000 {
		s, err := rm.OpenStream(peer.ID("fast"), network.DirInbound)
		if err != nil {
			var refused *rcmgr.LimitError
			if errors.As(err, &refused) {
				fmt.Println("cause:", refused.Cause())
				fmt.Println("a time to retry at:", !refused.RetryAt().IsZero())
			}
			break
		}
		opened++
		s.Done()
	}
	fmt.Println("opened:", opened)
	// Output:
	// cause: rate
	// a time to retry at: true
	// opened: 3
}

// A rate stands beside the limits of a scope.
func ExampleRate() {
	limits := rcmgr.PartialLimitConfig{
		PeerDefault: rcmgr.ResourceLimits{
			Rates: rcmgr.Rates{StreamsInbound: rcmgr.Rate{PerSecond: 100, Burst: 400}},
		},
	}.Build(rcmgr.DefaultLimits.AutoScale())
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	inForce := rm.Limits().ToPartialLimitConfig()
	fmt.Println(inForce.PeerDefault.Rates.StreamsInbound)
	// Output:
	// 100/s, burst 400
}

// The host dials an address three times at once, and then once in ten seconds. Dials to the home
// network are free of that.
func ExampleGateLimits_dialRate() {
	gates := rcmgr.GateLimits{DialRate: rcmgr.RateLimits{
		IPv4:     map[int]rcmgr.ConnRate{32: {PerSecond: 0.1, Burst: 3}},
		Networks: map[netip.Prefix]rcmgr.ConnRate{netip.MustParsePrefix("192.168.0.0/16"): {Burst: rcmgr.Unlimited}},
	}}
	limits := rcmgr.PartialLimitConfig{
		Gates:  &gates,
		System: rcmgr.ResourceLimits{Rates: rcmgr.Rates{ConnsOutbound: rcmgr.Rate{PerSecond: 20}}}, // in all
	}.Build(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	for _, to := range []string{"/ip4/192.0.2.7/tcp/4001", "/ip4/192.168.0.7/tcp/4001"} {
		dialled := 0
		for range 5 {
			if conn, err := rm.OpenConnection(network.DirOutbound, true, multiaddr.StringCast(to)); err == nil {
				dialled++
				conn.Done()
			}
		}
		fmt.Println(to, dialled)
	}
	// Output:
	// /ip4/192.0.2.7/tcp/4001 3
	// /ip4/192.168.0.7/tcp/4001 5
}

// However many identities an attacker has, their streams share the rate of their network.
func ExampleGateLimits_streamRate() {
	gates := rcmgr.GateLimits{StreamRate: rcmgr.RateLimits{
		IPv4: map[int]rcmgr.ConnRate{24: {PerSecond: 1, Burst: 4}},
	}}
	rm, err := rcmgr.New(nil, rcmgr.WithGates(gates))
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	opened := 0
	var refused *rcmgr.LimitError
	for i := range 3 {
		conn, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast(fmt.Sprintf("/ip4/192.0.2.%d/tcp/4001", i)))
		if err != nil {
			panic(err)
		}
		defer conn.Done()
		identity := peer.ID(fmt.Sprint("identity ", i))
		if err := conn.SetPeer(identity); err != nil {
			panic(err)
		}
		for range 2 {
			s, err := rm.OpenStream(identity, network.DirInbound)
			if errors.As(err, &refused) {
				continue
			}
			opened++
			s.Done()
		}
	}
	fmt.Println("streams:", opened)
	fmt.Println("refused by:", refused.ConfigKey())
	// Output:
	// streams: 4
	// refused by: Gates.StreamRate.IPv4["24"]
}
