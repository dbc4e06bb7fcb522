package rcmgr_test

// An example for each task that the chapters name and that has none beside its subject.

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/rcmgrhost"
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

// followFile puts the limits of a node's file in force again with each signal, until the
// channel is closed.
func followFile(rm *rcmgr.Manager, node rcmgr.NodeLimits, hangup <-chan os.Signal) {
	for range hangup {
		limits, err := node.Build() // reads the file
		if err == nil {
			err = rm.SetLimits(rcmgr.NewFixedLimiter(limits))
		}
		if err != nil {
			log.Println("the limits stay as they are:", err)
		}
	}
}

// runNode makes a host that reads its file of limits again on SIGHUP.
func runNode(file string) error {
	node := rcmgr.NodeLimits{OverridesFile: file}
	host, err := libp2p.New(rcmgrhost.ManagerForNode(node))
	if err != nil {
		return err
	}
	rm, _ := rcmgrhost.Of(host)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	go followFile(rm, node, hangup)
	signal.Stop(hangup)
	close(hangup)
	return host.Close()
}

func ExampleManager_SetLimits_followFile() {
	dir, err := os.MkdirTemp("", "limits")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "limits.json")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			panic(err)
		}
	}
	write(`{"System": {"ConnsInbound": 3000}}`)
	fmt.Println("a whole node:", runNode(file))

	node := rcmgr.NodeLimits{OverridesFile: file}
	rm, err := rcmgr.NewForNode(node)
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	read := func(text string) {
		write(text)
		hangup := make(chan os.Signal, 1)
		hangup <- syscall.SIGHUP
		close(hangup)
		followFile(rm, node, hangup) // returns when the file has been read
		fmt.Println(rm.Limits().ToPartialLimitConfig().System.ConnsInbound)
	}
	read(`{"System": {"ConnsInbound": 4000}}`)
	read(`{"System": {"ConnInbound": 5000}}`) // a mistake, which is logged
	// Output:
	// a whole node: <nil>
	// 4000
	// 4000
}

// admittedBefore calls open until a limit refuses, and returns how often open was admitted
// before, and the place of that limit in the configuration.
func admittedBefore(open func(i int) error) (admitted int, place string) {
	for i := range 10_000 {
		var refusal *rcmgr.LimitError
		if errors.As(open(i), &refusal) {
			return i, refusal.ConfigKey()
		}
	}
	return 10_000, "no limit"
}

// A program tests that its limits refuse what they should.
func Example_limitsThatRefuse() {
	overrides, err := rcmgr.ReadLimits(strings.NewReader(`{
		"System": {"ConnsInbound": 20},
		"PeerDefault": {"StreamsInbound": 10},
		"Gates": {"Subnets": {"Networks": {"127.0.0.0/8": 3}}}
	}`))
	if err != nil {
		panic(err)
	}
	rm, err := rcmgr.NewForNode(rcmgr.NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 1024, Overrides: overrides})
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	fmt.Println(admittedBefore(func(int) error {
		_, err := rm.OpenStream(examplePeer, network.DirInbound)
		return err
	}))
	fmt.Println(admittedBefore(func(int) error {
		_, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.1/tcp/4001"))
		return err
	}))
	fmt.Println(admittedBefore(func(int) error {
		_, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/203.0.113.1/tcp/4001"))
		return err
	}))
	fmt.Println(admittedBefore(func(i int) error {
		_, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast(fmt.Sprintf("/ip4/198.18.0.%d/tcp/4001", i)))
		return err
	}))
	// Output:
	// 10 PeerDefault.StreamsInbound
	// 3 Gates.Subnets.Networks["127.0.0.0/8"]
	// 8 Gates.Subnets.IPv4["32"]
	// 9 System.ConnsInbound
}

// Gates and rates stand in the configuration, beside the limits.
func ExampleGateLimits() {
	limits := rcmgr.PartialLimitConfig{
		PeerDefault: rcmgr.ResourceLimits{Rates: rcmgr.Rates{StreamsInbound: rcmgr.Rate{PerSecond: 30}}},
		Gates:       &rcmgr.GateLimits{Subnets: rcmgr.SubnetLimits{IPv4: map[int]rcmgr.LimitVal{32: 16, 24: 64}}},
	}.Build(rcmgr.DefaultLimits.AutoScale())
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	fmt.Println(rm.Snapshot().Gates.Limits.Subnets.IPv4)
	// Output: map[24:64 32:16]
}

// A caller that was refused by a rate waits until the rate has room again.
func ExampleLimitError_RetryAt() {
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{Rates: rcmgr.Rates{StreamsOutbound: rcmgr.Rate{PerSecond: 1}}},
	}.Build(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	for range 2 {
		_, err = rm.OpenStream(examplePeer, network.DirOutbound)
	}

	var refusal *rcmgr.LimitError
	if errors.As(err, &refusal) && refusal.Cause() == rcmgr.CauseRate {
		wait := time.Until(refusal.RetryAt()) // RetryAt is zero for the gates
		fmt.Println(refusal.Scope(), refusal.ConfigKey(), wait > 0)
	}
	// Output: system System.Rates.StreamsOutbound true
}
