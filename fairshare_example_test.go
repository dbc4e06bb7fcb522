package rcmgr_test

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

// Many identities in one subnet have one share.
func ExampleWithFairShare() {
	limits := rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{StreamsInbound: 8}}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)), rcmgr.WithFairShare())
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	// opens comes with a connection of its own, and opens a stream that says nothing.
	opens := func(who peer.ID, from string) error {
		c, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast(from))
		if err != nil {
			return err
		}
		if err := c.SetPeer(who); err != nil {
			return err
		}
		_, err = rm.OpenStream(who, network.DirInbound)
		return err
	}
	admitted := 0
	for i := range 100 {
		if opens(peer.ID(fmt.Sprint("identity ", i)), fmt.Sprintf("/ip4/192.0.2.%d/tcp/4001", i)) == nil {
			admitted++
		}
	}
	fmt.Println(admitted, "of 100 identities of one subnet")
	fmt.Println("a newcomer:", opens("newcomer", "/ip4/198.51.100.1/tcp/4001"))

	var why *rcmgr.LimitError
	if err := opens("another", "/ip4/192.0.2.200/tcp/4001"); errors.As(err, &why) {
		fmt.Println(why.Scope(), why.Cause())
	}
	// Output:
	// 4 of 100 identities of one subnet
	// a newcomer: <nil>
	// transient fair-share
}

func _() {
	_ = func() (*rcmgr.Manager, error) {
		rm, err := rcmgr.New(nil, rcmgr.WithFairShare())
		return rm, err
	}
}
