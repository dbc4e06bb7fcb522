package rcmgr_test

import (
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/weir-p2p/rcmgr"
)

// A stream that never gets a protocol is the oldest transient one, and its stack
// shows the line that opened it.
func ExampleWithLeakFinder() {
	rm, err := rcmgr.New(nil, rcmgr.WithLeakFinder(rcmgr.LeakFinderConfig{Stacks: 1}))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	defer openForNothing(rm).Done()

	for _, scope := range rm.Snapshot().Leaks.Oldest {
		function, _, _ := strings.Cut(scope.Where(), " ")
		fmt.Println(scope.Kind, scope.Class(), function)
	}
	// Output:
	// stream transient github.com/weir-p2p/rcmgr_test.openForNothing
}

func openForNothing(rm network.ResourceManager) network.StreamManagementScope {
	stream, err := rm.OpenStream("a peer", network.DirInbound)
	if err != nil {
		panic(err)
	}
	return stream
}

func _() {
	_ = func() (*rcmgr.Manager, error) {
		rm, err := rcmgr.New(nil, rcmgr.WithLeakFinder(rcmgr.LeakFinderConfig{Stacks: 100}))
		return rm, err
	}
}
