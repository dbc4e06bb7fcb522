package rcmgrhost_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
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
