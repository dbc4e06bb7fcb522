package rcmgr_test

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

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
