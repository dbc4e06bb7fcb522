// Command soak runs tens of real go-libp2p hosts for as long as you like, each on a
// manager of its own with limits near what it needs, and checks all the while that the
// accounts are right.
//
// The hosts reach each other over TCP, QUIC, WebSocket and relays, fetch from each other,
// hang up, and are replaced by others with new identities; their limits change. Every
// second, each manager's snapshot has to add up. Every ten seconds the traffic pauses;
// then the process must have exactly the descriptors that are accounted, and no more
// goroutines than its connections and streams explain. In the end nothing may be left.
// Everything stays within 127.0.0.1.
//
//	go run ./examples/soak -duration 10m -hosts 24
//
// With -trace, what the first relay is asked for is written to a file: the trace of an
// honest host under load, from which package suggest proposes limits.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

// settings are the values of the command line.
type settings struct {
	duration time.Duration
	hosts    int
	seed     uint64
	trace    string // a file for the trace of the first relay
}

const (
	fewestHosts = 6    // two relays, two hosts behind them, two others
	mostHosts   = 1000 // all are in one process
)

func main() {
	s, err := settingsFrom(os.Args[1:])
	cmdline.ExitOn("soak", err)
	// Refusals and hosts that vanish are expected here, so libp2p's log of them is
	// discarded.
	gologshim.SetDefaultHandler(slog.DiscardHandler)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	sound, err := soak(ctx, s, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
	}
	if err != nil || !sound {
		os.Exit(1)
	}
}

// settingsFrom reads the command line.
func settingsFrom(args []string) (settings, error) {
	s := settings{duration: time.Minute, hosts: 24}
	l := cmdline.New("soak").About(`
Runs tens of real hosts for as long as you like, each on a manager of its own
with limits near what it needs, and checks every second that the accounts are
right, and in the end that nothing is left. Everything stays within 127.0.0.1.
`)
	l.Duration(&s.duration, "duration", "the `time` that it runs")
	l.Int(&s.hosts, "hosts", fewestHosts, mostHosts, "`number` of hosts")
	l.Seed(&s.seed, "seed", "the `number` from which all choices of the hosts follow, by default another one each time")
	l.File(&s.trace, "trace", "`file` for a trace of the first relay, which has no limits and stays to the end")
	err := l.Parse(args)
	if !l.Given("seed") {
		s.seed = uint64(time.Now().UnixNano())
	}
	return s, err
}

const (
	checkEvery  = time.Second
	pauseEvery  = 10 * time.Second
	changeEvery = time.Second      // a host is replaced, limits change
	patience    = 20 * time.Second // for a condition that must become true
	grace       = 2 * time.Second  // for what a closed host releases late
	tick        = 10 * time.Millisecond
)

// soak runs the soak, and reports whether everything was right.
func soak(ctx context.Context, s settings, out io.Writer) (sound bool, err error) {
	w := newWorld(s, out)
	fmt.Fprintf(out, "%d hosts for %v, seed %d\n", s.hosts, s.duration, s.seed)
	if err := w.populate(); err != nil {
		w.end()
		return false, err
	}
	end := time.NewTimer(s.duration)
	defer end.Stop()
	check, pause, change := time.NewTicker(checkEvery), time.NewTicker(pauseEvery), time.NewTicker(changeEvery)
	defer check.Stop()
	defer pause.Stop()
	defer change.Stop()
	for over := false; !over; {
		select {
		case <-check.C:
			w.check()
		case <-pause.C:
			w.pause()
		case <-change.C:
			w.changeLimits()
			if err := w.replaceOne(); err != nil {
				w.end()
				return false, err
			}
		case <-end.C:
			over = true
		case <-ctx.Done():
			over = true
		}
	}
	w.check()
	w.pause()
	w.end()
	w.report()
	return w.wrong == 0, nil
}
