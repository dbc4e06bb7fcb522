package rcmgr_test

import (
	"fmt"
	"os"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"

	"github.com/weir-p2p/rcmgr"
)

// busyManager admits three inbound streams to a peer.
func busyManager() *rcmgr.Manager {
	limits := rcmgr.PartialLimitConfig{PeerDefault: rcmgr.ResourceLimits{StreamsInbound: 3}}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)))
	if err != nil {
		panic(err)
	}
	return rm
}

func open(rm *rcmgr.Manager, streams int) {
	for range streams {
		if _, err := rm.OpenStream(examplePeer, network.DirInbound); err != nil {
			fmt.Println("refused")
		}
	}
}

// What is full, as a table.
func ExampleLimitUses_WriteTable() {
	rm := busyManager()
	defer rm.Close()
	open(rm, 3)

	s := rm.Snapshot()
	s.LimitsNear(90).WriteTable(os.Stdout)
	// Output:
	// Scope                                                      Limit Name      Limit Value  Limit Usage Amount  Limit Usage Percent
	// peer:12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL  StreamsInbound  3            3                   100.0%
}

// Who fills a limit: in one sentence, and as a table of all that hold anything.
func ExampleSnapshot_WriteHolders() {
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{StreamsInbound: 4}}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	open(rm, 4)

	s := rm.Snapshot()
	fmt.Println(s.InTheWay())
	s.WriteHolders(os.Stdout)
	// Output:
	// system inbound streams are full (4 of 4); 12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL holds 100 %; raise System.StreamsInbound
	// Scope                                                      Conns In  Conns Out  FD  Streams In  Streams Out  Memory  Refused
	// peer:12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL  0         0          0   4           0            0       0
}

// Limits that are tried on a node before they bite.
func ExampleWithObserveOnly() {
	limits := rcmgr.PartialLimitConfig{PeerDefault: rcmgr.ResourceLimits{StreamsInbound: 3}}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)), rcmgr.WithObserveOnly())
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	open(rm, 5) // none is refused
	fmt.Println("would have refused", rm.Snapshot().WouldRefuse[rcmgr.KindPeer].StreamsInbound)

	if err := rm.Enforce(); err != nil { // while it runs
		panic(err)
	}
	open(rm, 1)
	// Output:
	// would have refused 2
	// refused
}

// Would it be admitted now, and if not, what to set.
func ExampleManager_Explain() {
	rm := busyManager()
	defer rm.Close()
	open(rm, 3)

	answer, err := rm.Explain(rcmgr.ExplainRequest{Kind: rcmgr.KindStream, Direction: network.DirInbound, Peer: examplePeer})
	if err != nil {
		panic(err)
	}
	fmt.Println(answer.Admitted, answer.By.Name, answer.By.Use, "of", answer.By.Limit, answer.By.ConfigKey)
	// answer.WriteTable(os.Stdout) has a row for each limit on the way.
	// Output: false StreamsInbound 3 of 3 PeerDefault.StreamsInbound
}

// Hear of a limit before it refuses.
func ExampleWithNearLimitFunc() {
	near := make(chan rcmgr.NearLimitEvent, 16)
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{StreamsInbound: 5}}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)),
		rcmgr.WithNearLimitFunc(func(e rcmgr.NearLimitEvent) { near <- e }))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	open(rm, 4)

	e := <-near
	fmt.Printf("%s: %d %% of %s: %d of %d\n", e.Scope, e.Percent, e.Name, e.Use, e.Limit)
	// Output: system: 80 % of StreamsInbound: 4 of 5
}

// Let the connection manager make room before the limit refuses.
func ExampleWithTrimming() {
	cm, err := connmgr.NewConnManager(100, 400)
	if err != nil {
		panic(err)
	}
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: 200}}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())), rcmgr.WithTrimming(cm))
	if err != nil {
		panic(err)
	}
	host, err := libp2p.New(libp2p.ResourceManager(rm), libp2p.ConnectionManager(cm), libp2p.NoListenAddrs)
	if err != nil {
		panic(err)
	}
	defer host.Close()
	// Output:
}

// What has grown, and what was refused, between two looks.
func ExampleSnapshot_Since() {
	rm := busyManager()
	defer rm.Close()
	open(rm, 2)
	before := rm.Snapshot()
	open(rm, 3)

	after := rm.Snapshot()
	for _, c := range after.Since(&before).Limits {
		if c.Refusals > 0 {
			fmt.Println(c.Scope, c.Name, "has grown by", c.Grown(), "and refused", c.Refusals)
		}
	}
	// Output:
	// refused
	// refused
	// peer:12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL StreamsInbound has grown by 1 and refused 2
}

// The limits in force, also those that were set while the manager runs.
func ExampleManager_Limits() {
	rm := busyManager()
	defer rm.Close()
	if err := limitPeer(rm, examplePeer, 1); err != nil {
		panic(err)
	}
	limits := rm.Limits().ToPartialLimitConfig()
	fmt.Println(limits.PeerDefault.StreamsInbound, limits.Peer[examplePeer].Streams)
	// Output: 3 1
}
