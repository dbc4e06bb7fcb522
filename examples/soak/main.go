// Command soak runs tens of real go-libp2p hosts for as long as one likes, each
// on a manager of its own with limits around what it needs, and checks all the
// while that the accounts are right.
//
// The hosts reach each other over TCP, QUIC, WebSocket and relays, fetch from
// each other, hang up, and are replaced by others with new identities; their
// limits change. Every second, each manager's snapshot has to add up, and every
// ten the traffic pauses: then the descriptors that the process really has must
// be exactly those that are accounted, and its goroutines no more than the
// connections and streams explain. In the end nothing may be left. Everything
// stays within 127.0.0.1.
//
//	go run ./examples/soak -duration 10m -hosts 24
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/gologshim"
)

// settings are what the command line decides.
type settings struct {
	duration time.Duration
	hosts    int
	seed     uint64
}

const fewestHosts = 6 // two relays, two hosts behind them, two others

func main() {
	var s settings
	flag.DurationVar(&s.duration, "duration", time.Minute, "how long it goes on")
	flag.IntVar(&s.hosts, "hosts", 24, "number of hosts")
	flag.Uint64Var(&s.seed, "seed", uint64(time.Now().UnixNano()), "seed of what the hosts choose to do")
	flag.Parse()
	if err := s.check(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
	// Refusals and hosts that vanish are what this is about.
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

func (s *settings) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("unexpected argument %q", args[0])
	case s.duration <= 0:
		return fmt.Errorf("-duration %v: want more than 0", s.duration)
	case s.hosts < fewestHosts:
		return fmt.Errorf("-hosts %d: want at least %d", s.hosts, fewestHosts)
	}
	return nil
}

const (
	checkEvery  = time.Second
	pauseEvery  = 10 * time.Second
	changeEvery = time.Second      // a host is replaced, limits change
	patience    = 20 * time.Second // for whatever must become so
	grace       = 2 * time.Second  // for what a closed host gives back late
	tick        = 10 * time.Millisecond
)

// soak runs it all, and tells whether everything was right.
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
