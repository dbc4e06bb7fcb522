package rcmgr_test

// An example for each task that the chapters name and that has none beside its subject.

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-p2p/rcmgr"
)

// The windows of old streams leave room for the first window of a new one.
func ExampleWithAdmission() {
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Memory: 1 << 20}}.Build(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithAdmission(rcmgr.AdmissionGraded))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	stream, err := rm.OpenStream(examplePeer, network.DirInbound)
	if err != nil {
		panic(err)
	}
	defer stream.Done()

	const window = 256 << 10
	grown := 0
	for stream.ReserveMemory(window, 128) == nil { // the priority of a window that grows
		grown++
	}
	err = stream.ReserveMemory(window, network.ReservationPriorityAlways)
	fmt.Println(grown, "of 4 windows, and then:", err)
	// Output: 3 of 4 windows, and then: <nil>
}

// A program that makes the manager itself attaches the host on which room is made.
func ExampleWithRoom() {
	rm, err := rcmgr.New(nil, rcmgr.WithRoom(rcmgr.RoomConfig{}))
	if err != nil {
		panic(err)
	}
	host, err := libp2p.New(libp2p.ResourceManager(rm), libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		panic(err)
	}
	defer host.Close() // closes the manager, too
	detach := rm.AttachHost(host)
	defer detach()

	fmt.Println("hosts on which room is made:", rm.Snapshot().Room.Hosts)
	// Output: hosts on which room is made: 1
}

// Each IPv4 address may hold one connection.
func ExampleWithGates() {
	gates := rcmgr.GateLimits{Subnets: rcmgr.SubnetLimits{
		IPv4: map[int]rcmgr.LimitVal{32: 1},
	}}
	rm, err := rcmgr.New(nil, rcmgr.WithGates(gates), rcmgr.WithRefusalLog(0))
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	for range 2 {
		conn, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/192.0.2.7/tcp/4001"))
		if err != nil {
			fmt.Println(err)
			continue
		}
		defer conn.Done()
	}
	// Output: subnet:192.0.2.7/32: cannot reserve inbound connection: connections per ip limit exceeded: resource limit exceeded
}

// The metrics of all managers of the process.
func ExampleMustRegisterWith() {
	registry := prometheus.NewRegistry() // or prometheus.DefaultRegisterer
	rcmgr.MustRegisterWith(registry)

	families, err := registry.Gather()
	if err != nil {
		panic(err)
	}
	for _, f := range families {
		if f.GetName() == "libp2p_rcmgr_refusals_total" {
			fmt.Println(f.GetHelp() != "")
		}
	}
	// Output: true
}

// The metrics of one manager, under names of their own.
func ExampleManager_RegisterWith() {
	rm, err := rcmgr.New(nil)
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	registry := prometheus.NewRegistry()
	if err := rm.RegisterWith(prometheus.WrapRegistererWithPrefix("inner_", registry)); err != nil {
		panic(err)
	}

	families, err := registry.Gather()
	if err != nil {
		panic(err)
	}
	for _, f := range families {
		if f.GetName() == "inner_libp2p_rcmgr_managers" {
			fmt.Println("managers:", f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	// Output: managers: 1
}

// A limit that was set by hand is taken back.
func ExampleLimitResetter() {
	limits := rcmgr.PartialLimitConfig{PeerDefault: rcmgr.ResourceLimits{Streams: 64}}.Build(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	show := func() {
		fmt.Println("peers with a limit of their own:", len(rm.Limits().ToPartialLimitConfig().Peer))
	}

	if err := limitPeer(rm, examplePeer, 1); err != nil { // by SetLimit
		panic(err)
	}
	show()
	if err := rm.ViewPeer(examplePeer, func(s network.PeerScope) error {
		s.(rcmgr.LimitResetter).ResetLimit()
		return nil
	}); err != nil {
		panic(err)
	}
	show()
	// Output:
	// peers with a limit of their own: 1
	// peers with a limit of their own: 0
}

// What happens is written to a file, an event on each line.
func ExampleWithTrace() {
	dir, err := os.MkdirTemp("", "trace")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "rcmgr.json.gz")
	rm, err := rcmgr.New(nil, rcmgr.WithTrace(path))
	if err != nil {
		panic(err)
	}
	stream, err := rm.OpenStream(examplePeer, network.DirInbound)
	if err != nil {
		panic(err)
	}
	stream.Done()
	rm.Close() // writes the rest

	file, err := os.Open(path)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	text, err := gzip.NewReader(file)
	if err != nil {
		panic(err)
	}
	events := json.NewDecoder(text)
	var first rcmgr.TraceEvt
	if err := events.Decode(&first); err != nil {
		panic(err)
	}
	fmt.Println(first.Type)
	// Output: start
}

// Limits that are not above the high water mark refuse connections before any is closed.
func ExampleConcreteLimitConfig_CheckHighWater() {
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: 100}}.Build(rcmgr.InfiniteLimits)
	fmt.Println(limits.CheckHighWater(400))
	// Output: limits: System.ConnsInbound (100) is not above the connection manager's high water mark of 400, so that connections are refused before any is closed: set at least 800, twice the mark, or lower the mark
}
