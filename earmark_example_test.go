package rcmgr_test

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/weir-p2p/rcmgr"
)

// meshOf stands for a program's own list of the peers that it exchanges most with.
type meshOf []peer.ID

func (m meshOf) Peers() []peer.ID { return m }

// The mesh, a protocol and the allowlist have a part each.
func ExampleEarmark() {
	mesh := meshOf{"one", "another"}
	rm, err := rcmgr.New(nil, rcmgr.WithEarmarks(
		rcmgr.Earmark{Name: "mesh", Part: 0.2, Peers: func() []peer.ID { return mesh.Peers() }},
		rcmgr.Earmark{Name: "consensus", Part: 0.1, Protocols: []protocol.ID{"/consensus/1.0.0"}},
		rcmgr.Earmark{Name: "friends", Part: 0.1, Allowlisted: true},
	))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	for _, e := range rm.Snapshot().Earmarks {
		fmt.Println(e.Name, e.Part, e.Peers)
	}
	// Output:
	// mesh 0.2 2
	// consensus 0.1 0
	// friends 0.1 0
}

// A quarter of each limit is for validators, however many others ask.
func ExampleWithEarmarks() {
	validators := func() []peer.ID { return []peer.ID{"a validator"} } // asked once a second
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Streams: 8}}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)),
		rcmgr.WithEarmarks(rcmgr.Earmark{Name: "validators", Part: 0.25, Peers: validators}))
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	open := func(p peer.ID) (n int, err error) {
		for ; err == nil; n++ {
			_, err = rm.OpenStream(p, network.DirInbound)
		}
		return n - 1, err
	}
	var why *rcmgr.LimitError
	n, err := open("somebody else")
	fmt.Println("others:", n, errors.As(err, &why), why.Cause())
	n, err = open("a validator")
	fmt.Println("a validator:", n, errors.As(err, &why), why.Cause())
	// Output:
	// others: 6 true earmark
	// a validator: 2 true limit
}
