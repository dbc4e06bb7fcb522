package rcmgr_test

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/weir-p2p/rcmgr"
)

// A program tells its operator which limit is in the way.
func ExampleSnapshot_Bottleneck() {
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: 1}}.Build(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rm.Close()
	conn, err := rm.OpenConnection(network.DirInbound, false, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Done()

	s := rm.SnapshotTop(10)
	fmt.Println(s.Bottleneck().ConfigKey)
	fmt.Println(s.InTheWay())
	// Output:
	// System.ConnsInbound
	// system inbound connections are full (1 of 1); raise System.ConnsInbound
}
