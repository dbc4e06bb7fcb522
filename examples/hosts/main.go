// Command hosts measures what a user of go-libp2p feels of a resource manager: the processor
// time that a stream and a connection take between two real hosts on loopback, with this
// manager, with go-libp2p's own, with that one without its metrics, and without any.
//
//	go run ./examples/hosts [-rounds 15] [-streams 1500] [-connections 80] [-profile=false]
//
// Both hosts of a pair have the same kind of manager, with the limits that it has by default.
// A stream is opened, carries 64 bytes there and back, and is closed; four goroutines do so.
// A connection is opened, identified on both sides and closed, one after the other. In each
// round every pair is measured once, in another order, so that a disturbance affects all of
// them. The time is that of both hosts together, including the garbage collector's. It is
// measured on Unix only.
//
// At last each pair is profiled, which says how much of that time passes in functions of its
// manager.
package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"time"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
	"github.com/weir-p2p/rcmgr/internal/cputime"
)

// settings are the values of the command line.
type settings struct {
	rounds, streams, connections int
	profile                      bool
}

func main() {
	s, err := settingsFrom(os.Args[1:])
	cmdline.ExitOn("hosts", err)
	if err := run(s); err != nil {
		fmt.Fprintln(os.Stderr, "hosts:", err)
		os.Exit(1)
	}
}

// settingsFrom reads the command line.
func settingsFrom(args []string) (settings, error) {
	s := settings{rounds: 15, streams: 1500, connections: 80, profile: true}
	l := cmdline.New("hosts").About(`
Measures the processor time that a stream and a connection take between two
real hosts on loopback: with this manager, with go-libp2p's own, with that one
without its metrics, and without any. Takes some minutes.
`)
	l.Int(&s.rounds, "rounds", 1, math.MaxInt, "the `number` of measurements of each pair of hosts")
	l.Int(&s.streams, "streams", 1, math.MaxInt, "the `number` of streams in a measurement")
	l.Int(&s.connections, "connections", 1, math.MaxInt, "the `number` of connections in a measurement")
	l.Bool(&s.profile, "profile", "also show the manager's part of the time")
	if err := l.Parse(args); err != nil {
		return s, err
	}
	if !cputime.Known {
		return s, errors.New("this system does not say how much processor time a process has used; expected Unix")
	}
	return s, nil
}

// measured is what was measured of one kind of manager over one transport, for each load in
// loads: the time of each round for one stream or connection, and the share of all that time
// that passed in functions of the manager.
type measured struct {
	times [][]time.Duration
	share []float64
}

// results has what was measured, by transport and kind of manager.
type results [][]measured

func run(s settings) error {
	found, err := measureAll(s)
	if err != nil {
		return err
	}
	return found.print(os.Stdout, s)
}

// measureAll measures every kind of manager over every transport.
func measureAll(s settings) (results, error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var pairs [][]*pair
	defer func() {
		for _, over := range pairs {
			for _, p := range over {
				p.close()
			}
		}
	}()
	found := make(results, len(transports))
	for t, transport := range transports {
		pairs = append(pairs, nil)
		found[t] = make([]measured, len(kinds))
		for k, kind := range kinds {
			p, err := newPair(ctx, kind, transport)
			if err != nil {
				return nil, fmt.Errorf("%s over %s: %w", kind.name, transport.name, err)
			}
			pairs[t] = append(pairs[t], p)
			found[t][k] = measured{make([][]time.Duration, len(loads)), make([]float64, len(loads))}
		}
	}
	for round := range s.rounds {
		for t := range transports {
			for l, load := range loads {
				for i := range kinds {
					k := (i + round) % len(kinds)
					fmt.Fprintf(os.Stderr, "\rround %d of %d: %ss over %-4s %-28s", round+1, s.rounds, load.name, transports[t].name, kinds[k].name)
					took, err := cost(ctx, pairs[t][k], load, s)
					if err != nil {
						return nil, fmt.Errorf("%ss over %s, %s: %w", load.name, transports[t].name, kinds[k].name, err)
					}
					found[t][k].times[l] = append(found[t][k].times[l], took)
				}
			}
		}
	}
	if s.profile {
		for t := range transports {
			for l, load := range loads {
				for k := range kinds {
					fmt.Fprintf(os.Stderr, "\rprofile: %ss over %-4s %-40s", load.name, transports[t].name, kinds[k].name)
					share, err := shareOfManager(func() error {
						for range (s.rounds + 3) / 4 {
							if _, err := cost(ctx, pairs[t][k], load, s); err != nil {
								return err
							}
						}
						return nil
					})
					if err != nil {
						return nil, err
					}
					found[t][k].share[l] = share
				}
			}
		}
	}
	fmt.Fprintf(os.Stderr, "\r%80s\r", "")
	return found, nil
}

// cost returns the processor time that one stream or connection takes.
func cost(ctx context.Context, p *pair, l load, s settings) (time.Duration, error) {
	runtime.GC() // so that no pair pays for another one's garbage
	n, before := l.number(s), cputime.Used()
	if err := l.run(ctx, p, n); err != nil {
		return 0, err
	}
	return (cputime.Used() - before) / time.Duration(n), nil
}

// median returns the middle of several values.
func median[T float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
