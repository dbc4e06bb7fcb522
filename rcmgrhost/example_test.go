package rcmgrhost_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/rcmgrhost"
)

// The order of the options does not matter: the metrics are on the host's registry.
func ExampleManager() {
	registry := prometheus.NewRegistry()
	host, err := libp2p.New(
		rcmgrhost.Manager(nil), // default limits, for what this process may use
		libp2p.PrometheusRegisterer(registry),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
	)
	if err != nil {
		panic(err)
	}
	defer host.Close() // closes the manager, too

	visitor, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		panic(err)
	}
	defer visitor.Close()
	if err := visitor.Connect(context.Background(), peer.AddrInfo{ID: host.ID(), Addrs: host.Addrs()}); err != nil {
		panic(err)
	}
	if rm, ok := rcmgrhost.Of(host); ok {
		fmt.Println("inbound connections:", rm.Stat().System.NumConnsInbound)
	}
	// Output: inbound connections: 1
}

func ExampleManagerForNode() {
	node := rcmgr.NodeLimits{MaxMemory: 2 << 30, MaxFileDescriptors: 4096, ConnMgrHighWater: 1200}
	host, err := libp2p.New(rcmgrhost.ManagerForNode(node), libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		panic(err)
	}
	defer host.Close()

	rm, _ := rcmgrhost.Of(host)
	limits := rm.Limits().ToPartialLimitConfig()
	fmt.Println("inbound connections at most:", limits.System.ConnsInbound)
	// Output: inbound connections at most: 2400
}

// The manager of a host is at hand without a variable that keeps it.
func ExampleOf() {
	host, err := libp2p.New(rcmgrhost.Manager(nil), libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		panic(err)
	}
	defer host.Close()

	rm, ok := rcmgrhost.Of(host)
	fmt.Println(ok, rm.Stat().System.NumConnsInbound)
	// Output: true 0
}

// In a program that is built of fx modules, the option is one of those that the host is
// made of. Other modules take the manager as a dependency.
func ExampleManager_fx() {
	resources := fx.Module("resources",
		fx.Provide(
			fx.Annotate(
				func() libp2p.Option { return rcmgrhost.Manager(nil) },
				fx.ResultTags(`group:"libp2p"`),
			),
			func(h host.Host) (*rcmgr.Manager, error) {
				rm, ok := rcmgrhost.Of(h)
				if !ok {
					return nil, errors.New("the host has no resource manager of rcmgr")
				}
				return rm, nil
			},
		),
	)
	makeHost := func(life fx.Lifecycle, options []libp2p.Option) (host.Host, error) {
		h, err := libp2p.New(append(options, libp2p.NoListenAddrs, libp2p.DisableMetrics())...)
		if err == nil {
			life.Append(fx.StopHook(h.Close)) // closes the manager, too
		}
		return h, err
	}

	app := fx.New(
		fx.NopLogger,
		resources,
		fx.Provide(fx.Annotate(makeHost, fx.ParamTags(``, `group:"libp2p"`))),
		fx.Invoke(func(rm *rcmgr.Manager) {
			fmt.Println("inbound connections:", rm.Stat().System.NumConnsInbound)
		}),
	)
	if err := app.Start(context.Background()); err != nil {
		panic(err)
	}
	if err := app.Stop(context.Background()); err != nil {
		panic(err)
	}
	// Output: inbound connections: 0
}

// A full host closes what is worth least, and newcomers find room.
func ExampleManager_room() {
	host, err := libp2p.New(rcmgrhost.Manager(nil, rcmgr.WithRoom(rcmgr.RoomConfig{})))
	if err != nil {
		panic(err)
	}
	defer host.Close()

	rm, _ := rcmgrhost.Of(host)
	fmt.Println("hosts on which room is made:", rm.Snapshot().Room.Hosts)
	// Output: hosts on which room is made: 1
}

// A host admits at most 16 handshakes at a time. Attackers that shake no hands take them all, and
// a newcomer gets in at the first try.
func ExampleRoomForHandshakes() {
	limits := rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{ConnsInbound: 16}}
	host, err := libp2p.New(
		rcmgrhost.Manager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())),
			rcmgr.WithRoom(rcmgr.RoomConfig{})),
		rcmgrhost.RoomForHandshakes(),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.DisableMetrics(),
	)
	if err != nil {
		panic(err)
	}
	defer host.Close()
	rm, _ := rcmgrhost.Of(host)

	for range 16 {
		_, addr, err := manet.DialArgs(host.Addrs()[0])
		if err != nil {
			panic(err)
		}
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			panic(err)
		}
		defer conn.Close()
	}
	for len(rm.Snapshot().Room.LetGo) == 0 {
		time.Sleep(time.Millisecond)
	}

	newcomer, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		panic(err)
	}
	defer newcomer.Close()
	fmt.Println(newcomer.Connect(context.Background(), peer.AddrInfo{ID: host.ID(), Addrs: host.Addrs()}))
	fmt.Println(rm.Snapshot().Room.LetGo[0].Scope)
	// Output:
	// <nil>
	// transient
}
