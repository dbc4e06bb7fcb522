// Command migrated is a small node that was written for go-libp2p's own resource manager,
// with limits from JSON, an allowlist, a trace and metrics, and was moved over as
// MIGRATING.md describes: see the comments (1), (2) and (3). A visitor opens streams
// until the node refuses one; then the node prints what its manager, its metrics and its
// trace say.
//
//	go run ./examples/migrated
package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	rcmgr "github.com/weir-p2p/rcmgr" // (1) was "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

const echo = "/echo/1.0.0"

const limitsJSON = `{
	"System":       {"Conns": 100, "Memory": "67108864"},
	"PeerDefault":  {"ConnsInbound": 2},
	"ProtocolPeer": {"/echo/1.0.0": {"StreamsInbound": 3}}
}`

// newNode returns a host with limits, an allowlist, a trace and metrics.
func newNode(registry *prometheus.Registry, trace string) (host.Host, network.ResourceManager, error) {
	limits := rcmgr.DefaultLimits
	rcmgr.SetDefaultServiceLimits(&limits) // (2) was libp2p.SetDefaultServiceLimits
	limiter, err := rcmgr.NewLimiterFromJSON(strings.NewReader(limitsJSON), limits.AutoScale())
	if err != nil {
		return nil, nil, err
	}
	rcmgr.MustRegisterWith(registry) // (3) new: libp2p.New registers go-libp2p's own metrics only
	rm, err := rcmgr.NewResourceManager(limiter,
		rcmgr.WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{multiaddr.StringCast("/ip4/192.0.2.0/ipcidr/24")}),
		rcmgr.WithTrace(trace))
	if err != nil {
		return nil, nil, err
	}
	node, err := libp2p.New(
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.PrometheusRegisterer(registry),
		libp2p.ResourceManager(rm))
	if err != nil {
		rm.Close()
		return nil, nil, err
	}
	return node, rm, nil
}

func main() {
	cmdline.ExitOn("migrated", cmdline.New("migrated").About(`
Runs a small node that was written for go-libp2p's own resource manager and was
moved over, and prints what its manager, its metrics and its trace say.
`).Parse(os.Args[1:]))
	dir, err := os.MkdirTemp("", "migrated")
	if err == nil {
		err = run(os.Stdout, filepath.Join(dir, "trace.json.gz"))
		os.RemoveAll(dir)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func run(out io.Writer, trace string) error {
	registry := prometheus.NewRegistry()
	node, rm, err := newNode(registry, trace)
	if err != nil {
		return err
	}
	defer node.Close()
	node.SetStreamHandler(echo, func(s network.Stream) {
		io.Copy(s, s)
		s.Close()
	})
	visitor, err := libp2p.New(libp2p.NoListenAddrs, libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		return err
	}
	defer visitor.Close()
	if err := visit(out, visitor, node); err != nil {
		return err
	}
	stat := rm.(rcmgr.ResourceManagerState).Stat()
	fmt.Fprintln(out, "echo streams held:", stat.Protocols[echo].NumStreamsInbound)
	if err := showMetrics(out, registry); err != nil {
		return err
	}
	if err := node.Close(); err != nil { // this closes the manager and the trace, too
		return err
	}
	refused, err := count(trace, `"block_add_stream"`)
	fmt.Fprintln(out, "refusals in the trace:", refused)
	return err
}

// visit opens streams, and keeps them open, until the node refuses one.
func visit(out io.Writer, visitor, node host.Host) error {
	ctx := context.Background()
	if err := visitor.Connect(ctx, peer.AddrInfo{ID: node.ID(), Addrs: node.Addrs()}); err != nil {
		return err
	}
	for n := 0; ; n++ {
		var reset *network.StreamError
		switch err := sayOnce(ctx, visitor, node.ID()); {
		case errors.As(err, &reset):
			fmt.Fprintln(out, "echoes before a refusal:", n)
			return nil
		case err != nil:
			return err
		}
	}
}

func sayOnce(ctx context.Context, from host.Host, to peer.ID) error {
	s, err := from.NewStream(ctx, to, echo)
	if err != nil {
		return err
	}
	if _, err := s.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(s, make([]byte, 1))
	return err
}

func showMetrics(out io.Writer, registry *prometheus.Registry) error {
	families, err := registry.Gather()
	for _, f := range families {
		if f.GetName() != "libp2p_rcmgr_blocked_resources" {
			continue
		}
		for _, m := range f.GetMetric() {
			fmt.Fprint(out, f.GetName())
			for _, l := range m.GetLabel() {
				fmt.Fprintf(out, " %s=%s", l.GetName(), l.GetValue())
			}
			fmt.Fprintln(out, ":", m.GetGauge().GetValue())
		}
	}
	return err
}

// count returns how many lines of a trace contain a word.
func count(trace, word string) (n int, err error) {
	f, err := os.Open(trace)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	text, err := gzip.NewReader(f)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		if strings.Contains(lines.Text(), word) {
			n++
		}
	}
	return n, lines.Err()
}
