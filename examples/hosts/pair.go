package main

// Two hosts that are connected, and the loads between them.

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-p2p/rcmgr/rcmgrhost"
)

// kind is a kind of manager.
type kind struct {
	name   string
	option func() (libp2p.Option, error)
}

// noManager is the place in kinds with which the others are compared.
const noManager = 0

var kinds = []kind{
	{"no manager", func() (libp2p.Option, error) {
		return libp2p.ResourceManager(&network.NullResourceManager{}), nil
	}},
	{"this one", func() (libp2p.Option, error) { return rcmgrhost.Manager(nil), nil }},
	{"go-libp2p's, metrics off", func() (libp2p.Option, error) {
		limits := upstream.DefaultLimits
		libp2p.SetDefaultServiceLimits(&limits)
		rm, err := upstream.NewResourceManager(upstream.NewFixedLimiter(limits.AutoScale()), upstream.WithMetricsDisabled())
		return libp2p.ResourceManager(rm), err
	}},
	{"go-libp2p's, as it comes", func() (libp2p.Option, error) { return libp2p.DefaultResourceManager, nil }},
}

// transport is a way over which hosts are connected.
type transport struct{ name, listen string }

var transports = []transport{
	{"TCP", "/ip4/127.0.0.1/tcp/0"},
	{"QUIC", "/ip4/127.0.0.1/udp/0/quic-v1"},
}

const (
	echo    = protocol.ID("/echo/1.0.0")
	message = 64 // bytes
	openers = 4  // goroutines that open streams
)

// pair is two hosts, of which the first opens connections and streams to the second.
type pair struct {
	from, to host.Host
	gone     chan struct{} // a connection of the second has ended
}

// newPair makes two hosts with one kind of manager, and connects them.
func newPair(ctx context.Context, k kind, t transport) (*pair, error) {
	p := &pair{gone: make(chan struct{}, 1)}
	for _, one := range []struct {
		host *host.Host
		addr libp2p.Option
	}{
		{&p.to, libp2p.ListenAddrStrings(t.listen)},
		{&p.from, libp2p.NoListenAddrs},
	} {
		manager, err := k.option()
		if err == nil {
			*one.host, err = libp2p.New(manager, one.addr, libp2p.PrometheusRegisterer(prometheus.NewRegistry()))
		}
		if err != nil {
			p.close()
			return nil, err
		}
	}
	p.to.Network().Notify(&network.NotifyBundle{DisconnectedF: func(network.Network, network.Conn) {
		select {
		case p.gone <- struct{}{}:
		default: // it has been said already
		}
	}})
	p.to.SetStreamHandler(echo, func(s network.Stream) {
		defer s.Close()
		io.CopyN(s, s, message)
	})
	if err := p.connect(ctx); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pair) connect(ctx context.Context) error {
	return p.from.Connect(ctx, peer.AddrInfo{ID: p.to.ID(), Addrs: p.to.Addrs()})
}

// disconnect closes the connection, and returns when both hosts have none.
func (p *pair) disconnect(ctx context.Context) error {
	if err := p.from.Network().ClosePeer(p.to.ID()); err != nil {
		return err
	}
	for len(p.to.Network().ConnsToPeer(p.from.ID())) > 0 {
		select {
		case <-p.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// close closes the hosts that have been made.
func (p *pair) close() {
	for _, h := range []host.Host{p.from, p.to} {
		if h != nil {
			h.Close()
		}
	}
}

// load is something that is done many times between two hosts.
type load struct {
	name   string
	number func(settings) int
	run    func(ctx context.Context, p *pair, n int) error
}

var loads = []load{
	{"stream", func(s settings) int { return s.streams }, openStreams},
	{"connection", func(s settings) int { return s.connections }, openConnections},
}

// openStreams opens streams, one after the other in each of several goroutines.
func openStreams(ctx context.Context, p *pair, n int) error {
	errs := make([]error, openers)
	var open sync.WaitGroup
	for i := range openers {
		open.Go(func() {
			for ; i < n; i += openers {
				if errs[i%openers] = p.echo(ctx); errs[i%openers] != nil {
					return
				}
			}
		})
	}
	open.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// echo opens a stream, sends a message, reads the answer and closes the stream.
func (p *pair) echo(ctx context.Context) error {
	s, err := p.from.NewStream(ctx, p.to.ID(), echo)
	if err != nil {
		return err
	}
	defer s.Close()
	var buf [message]byte
	if _, err := s.Write(buf[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, buf[:]); err != nil {
		return fmt.Errorf("the answer: %w", err)
	}
	return nil
}

// identified is implemented by hosts of go-libp2p.
type identified interface{ IDService() identify.IDService }

// openConnections opens connections one after the other. Each ends when both hosts know the
// other and neither has it any more. The connection that was there before is there again at
// the end.
func openConnections(ctx context.Context, p *pair, n int) error {
	if err := p.disconnect(ctx); err != nil {
		return err
	}
	for range n {
		if err := p.connect(ctx); err != nil { // returns when the other side is identified
			return err
		}
		for _, c := range p.to.Network().ConnsToPeer(p.from.ID()) {
			p.to.(identified).IDService().IdentifyConn(c)
		}
		if err := p.disconnect(ctx); err != nil {
			return err
		}
	}
	return p.connect(ctx)
}
