package rcmgr_test

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/weir-p2p/rcmgr"
)

// The memory is what a counter says, so that it can be full here.
func ExampleWithMemoryPressure() {
	var inUse atomic.Int64
	inUse.Store(950 << 20)
	rm, err := rcmgr.New(nil, rcmgr.WithMemoryPressure(rcmgr.MemoryPressureConfig{Limit: 1 << 30, InUse: inUse.Load}))
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	_, err = rm.OpenStream("a stranger", network.DirInbound)
	var refusal *rcmgr.LimitError
	if errors.As(err, &refusal) {
		fmt.Println(refusal.Cause(), refusal.Current()>>20, "MiB of", refusal.Limit()>>20, "MiB")
	}
	_, err = rm.OpenStream("whom we ask", network.DirOutbound)
	fmt.Println(err)
	// Output:
	// memory-pressure 950 MiB of 921 MiB
	// <nil>
}

func _() {
	_ = func() (*rcmgr.Manager, error) {
		rm, err := rcmgr.New(nil, rcmgr.WithMemoryPressure(rcmgr.MemoryPressureConfig{}))
		return rm, err
	}
}
