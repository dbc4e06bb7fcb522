package main

// The checks: at every second of the soak, and when it pauses.

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// tally counts what the soak has seen.
type tally struct {
	identities, checks, pauses, wrong int
	mostConns, mostStreams, mostFD    int
	mostGoroutines                    int
	forgotten                         int                   // connections that go-libp2p has forgotten
	refusals                          map[rcmgr.Kind]uint64 // by managers that have ended
}

// complain reports a fault at once.
func (w *world) complain(format string, args ...any) {
	w.wrong++
	fmt.Fprintf(w.out, "WRONG after %v: %s\n", time.Since(w.began).Round(time.Second), fmt.Sprintf(format, args...))
}

// accounted is what all managers hold together.
type accounted struct{ conns, streams, fds int }

// check checks every manager.
func (w *world) check() {
	a := w.lookAtAll()
	w.checks++
	p := look()
	w.mostGoroutines = max(w.mostGoroutines, p.goroutines)
	fmt.Fprintf(w.out, "%6v · %s, %s, %s accounted, %d open · %s · fetched %v · %d wrong\n",
		time.Since(w.began).Round(time.Second), text.Plural(a.conns, "connection"), text.Plural(a.streams, "stream"), text.Plural(a.fds, "descriptor"),
		p.connections-w.base.connections, text.Plural(p.goroutines, "goroutine"), &w.fetches, w.wrong)
}

func (w *world) lookAtAll() (a accounted) {
	for _, n := range w.nodes {
		s := n.manager.Snapshot()
		for _, problem := range problems(&s, n.lowered) {
			w.complain("host %v: %s", n.host.ID(), problem)
		}
		use := s.Scopes[0].Use // of the system scope
		a.conns += use.NumConnsInbound + use.NumConnsOutbound
		a.streams += use.NumStreamsInbound + use.NumStreamsOutbound
		a.fds += use.NumFD
		n.lowered = n.lowered && exceeds(use, s.Scopes[0].Limit)
	}
	w.mostConns, w.mostStreams, w.mostFD = max(w.mostConns, a.conns), max(w.mostStreams, a.streams), max(w.mostFD, a.fds)
	return a
}

// problems returns the sums of a snapshot that do not add up, and the limits that are
// exceeded. If lowered, the limits of system may have been set below its use.
func problems(s *rcmgr.Snapshot, lowered bool) (list []string) {
	sum := map[rcmgr.Kind]network.ScopeStat{}
	for _, sc := range s.Scopes {
		sum[sc.Kind] = plus(sum[sc.Kind], sc.Use)
		if exceeds(sc.Use, sc.Limit) && !(lowered && sc.Kind == rcmgr.KindSystem) {
			list = append(list, fmt.Sprintf("%s holds %+v, its limit is %+v", sc.Name, sc.Use, sc.Limit))
		}
	}
	// Every connection is transient or has a peer; every stream has a peer, and
	// is transient or has a protocol.
	all := plus(sum[rcmgr.KindSystem], sum[rcmgr.KindAllowlistedSystem])
	unknown := plus(sum[rcmgr.KindTransient], sum[rcmgr.KindAllowlistedTransient])
	peers, protocols := sum[rcmgr.KindPeer], sum[rcmgr.KindProtocol]
	for _, parts := range []struct {
		of        string
		have, sum int
	}{
		{"inbound connections", all.NumConnsInbound, unknown.NumConnsInbound + peers.NumConnsInbound},
		{"outbound connections", all.NumConnsOutbound, unknown.NumConnsOutbound + peers.NumConnsOutbound},
		{"descriptors", all.NumFD, unknown.NumFD + peers.NumFD},
		{"inbound streams of peers", all.NumStreamsInbound, peers.NumStreamsInbound},
		{"outbound streams of peers", all.NumStreamsOutbound, peers.NumStreamsOutbound},
		{"inbound streams", all.NumStreamsInbound, unknown.NumStreamsInbound + protocols.NumStreamsInbound},
		{"outbound streams", all.NumStreamsOutbound, unknown.NumStreamsOutbound + protocols.NumStreamsOutbound},
	} {
		if parts.have != parts.sum {
			list = append(list, fmt.Sprintf("%d %s, but the parts have %d", parts.have, parts.of, parts.sum))
		}
	}
	if s.CallerBugs > 0 {
		list = append(list, fmt.Sprintf("%s broke the contract", text.Plural(s.CallerBugs, "call")))
	}
	return list
}

func plus(a, b network.ScopeStat) network.ScopeStat {
	return network.ScopeStat{
		NumStreamsInbound: a.NumStreamsInbound + b.NumStreamsInbound, NumStreamsOutbound: a.NumStreamsOutbound + b.NumStreamsOutbound,
		NumConnsInbound: a.NumConnsInbound + b.NumConnsInbound, NumConnsOutbound: a.NumConnsOutbound + b.NumConnsOutbound,
		NumFD: a.NumFD + b.NumFD, Memory: a.Memory + b.Memory,
	}
}

func exceeds(use network.ScopeStat, l rcmgr.BaseLimit) bool {
	return use.NumStreamsInbound > l.StreamsInbound || use.NumStreamsOutbound > l.StreamsOutbound ||
		use.NumStreamsInbound+use.NumStreamsOutbound > l.Streams ||
		use.NumConnsInbound > l.ConnsInbound || use.NumConnsOutbound > l.ConnsOutbound ||
		use.NumConnsInbound+use.NumConnsOutbound > l.Conns ||
		use.NumFD > l.FD || use.Memory > l.Memory
}

// The most goroutines that a host, a connection and a stream of go-libp2p have.
const (
	goroutinesPerHost   = 40
	goroutinesPerConn   = 6
	goroutinesPerStream = 3
)

// pause stops the traffic until the process has exactly the descriptors that are
// accounted, and until each connection scope belongs to a connection of its host. The
// connections stay.
func (w *world) pause() {
	w.quiet.Lock()
	defer w.quiet.Unlock()
	w.pauses++
	within(grace, func() bool {
		return !slices.ContainsFunc(w.nodes, func(n *node) bool { return len(n.manager.astray(n.host)) > 0 })
	})
	for _, n := range w.nodes {
		w.finishForgotten(n)
	}
	var a accounted
	var p process
	var most int // goroutines
	accountedFor := func() bool { return p.connections-w.base.connections == a.fds || p.connections < 0 }
	within(w.patience, func() bool {
		a, p = w.lookAtAll(), look()
		most = w.base.goroutines + goroutinesPerHost*len(w.nodes) + goroutinesPerConn*a.conns + goroutinesPerStream*a.streams
		return accountedFor() && p.goroutines <= most
	})
	if !accountedFor() {
		w.complain("in a pause: %d descriptors are accounted, the process has %d", a.fds, p.connections-w.base.connections)
	}
	if p.goroutines > most {
		w.complain("in a pause: %d goroutines, for %d hosts, %d connections and %d streams", p.goroutines, len(w.nodes), a.conns, a.streams)
	}
}

func (w *world) report() {
	fmt.Fprintf(w.out, "\nran            %v, %s at a time, %s\n", time.Since(w.began).Round(time.Second),
		text.Plural(w.hosts, "host"), text.Plural(w.identities, "identity", "identities"))
	fmt.Fprintf(w.out, "connected      %v\nfetched        %v\n", &w.connects, &w.fetches)
	fmt.Fprintf(w.out, "refused        %s\n", w.refusalText())
	fmt.Fprintf(w.out, "forgotten      %s, by go-libp2p\n", text.Plural(w.forgotten, "inbound connection"))
	fmt.Fprintf(w.out, "at most        %s, %s, %s, %s\n", text.Plural(w.mostConns, "connection"), text.Plural(w.mostStreams, "stream"),
		text.Plural(w.mostFD, "descriptor"), text.Plural(w.mostGoroutines, "goroutine"))
	fmt.Fprintf(w.out, "checked        %s all managers, %s against the process\n", text.Plural(w.checks, "time"), text.Plural(w.pauses, "time"))
	fmt.Fprintf(w.out, "found wrong    %d\n", w.wrong)
}

// countRefusals adds everything that a manager has refused.
func (w *world) countRefusals(m *rcmgr.Manager) {
	if w.refusals == nil {
		w.refusals = make(map[rcmgr.Kind]uint64)
	}
	for kind, r := range m.Snapshot().Refusals {
		w.refusals[kind] += r.Total()
	}
}

func (w *world) refusalText() string {
	var list []string
	for _, kind := range slices.Sorted(maps.Keys(w.refusals)) {
		list = append(list, fmt.Sprintf("%d by %v", w.refusals[kind], kind))
	}
	return strings.Join(list, ", ")
}
