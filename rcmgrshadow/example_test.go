package rcmgrshadow_test

import (
	"fmt"
	"net/http"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/rcmgrshadow"
)

// A host goes on with go-libp2p's manager, and rcmgr's decides beside it.
func ExampleOursBeside() {
	mux, registry := http.NewServeMux(), prometheus.NewRegistry()
	limits := upstream.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	limiter := upstream.NewFixedLimiter(limits.Scale(1<<30, 1024))
	theirs, err := upstream.NewResourceManager(limiter)
	if err != nil {
		panic(err)
	}
	rm, err := rcmgrshadow.OursBeside(theirs, limiter)
	if err != nil {
		panic(err)
	}
	host, err := libp2p.New(libp2p.ResourceManager(rm), libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		panic(err)
	}
	defer host.Close()

	// Some days later, on a page, as metrics, and as text:
	mux.Handle("/rcmgr-shadow", rcmgrshadow.Handler(rm))
	registry.MustRegister(rm)
	report := rm.Report()
	fmt.Print(report.String())
	// Output:
	// go-libp2p decides, rcmgr beside it: 0 calls, 0 unexplained differences, 0 explained, 0 that follow from these, 0 of timing
	// No differences.
}

// After moving over, go-libp2p's manager can be kept beside for a while.
func ExampleTheirsBeside() {
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Memory: 1 << 20}}
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)))
	if err != nil {
		panic(err)
	}
	rm, err := rcmgrshadow.TheirsBeside(ours)
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	rm.ViewSystem(func(s network.ResourceScope) error {
		defer s.ReleaseMemory(900_000)
		return s.ReserveMemory(900_000, network.ReservationPriorityMedium)
	})
	for _, d := range rm.Report().Differences {
		fmt.Println(d.Count, d.Kind, d.Call, "-", d.Entry)
	}
	// Output: 1 decision ReserveMemory - priorities of memory
}
