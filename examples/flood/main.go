// Command flood attacks a real go-libp2p host that runs on our resource
// manager, and shows that it holds: no limit is passed, an allowlisted friend
// is served all the while, and nothing is held once everybody has gone.
//
// One host is the victim. Attackers, each from an address of its own, take
// turns at every attack there is: many connections under fresh identities,
// connections that never shake hands, streams that never say what they want,
// a flood of real requests, and requests whose answers nobody reads. Meanwhile
// a friend pings and fetches. Everything stays within 127.0.0.0/8.
//
//	go run ./examples/flood -duration 10s -attackers 8 -limits file.json
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/gologshim"
)

// settings are what the command line decides.
type settings struct {
	duration   time.Duration
	attackers  int
	limitsFile string
}

func main() {
	var s settings
	flag.DurationVar(&s.duration, "duration", 10*time.Second, "how long the attack lasts")
	flag.IntVar(&s.attackers, "attackers", 8, "number of attackers, each a host at an address of its own")
	flag.StringVar(&s.limitsFile, "limits", "", "JSON `file` with limits that override those of the show")
	flag.Parse()
	if err := s.check(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(2)
	}
	quiet()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	result, err := flood(ctx, s, choosePlaces(s.attackers), os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
	os.Exit(result.exitCode())
}

func (s settings) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case s.duration <= 0:
		return fmt.Errorf("-duration must be positive, not %v", s.duration)
	case s.attackers < 1 || s.attackers > mostAttackers:
		return fmt.Errorf("-attackers must be from 1 to %d, not %d", mostAttackers, s.attackers)
	}
	return nil
}

// quiet keeps libp2p, which reports every refusal of the other side, and
// quic-go, which would like larger socket buffers, away from the terminal.
func quiet() {
	gologshim.SetDefaultHandler(slog.DiscardHandler)
	log.SetOutput(io.Discard)
}

// flood runs the whole show and writes its report to out.
func flood(ctx context.Context, s settings, where places, out io.Writer) (outcome, error) {
	limiter, err := loadLimits(s.limitsFile, s.attackers)
	if err != nil {
		return outcome{}, err
	}
	f, err := newFriend(where.friend)
	if err != nil {
		return outcome{}, err
	}
	v, err := newVictim(limiter, where, f.id)
	if err != nil {
		return outcome{}, err
	}
	attackers, err := newAttackers(where.attackers, v)
	if err != nil {
		v.close()
		return outcome{}, err
	}
	fmt.Fprintln(out, where.describe())

	seen := newWatch()
	attack(ctx, s.duration, v, f, attackers, seen, out)
	v.close()

	held, forgotten := waitUntilFree(v.manager, 2*time.Second), 0
	if len(held) > 0 {
		forgotten = v.observer.closeForgotten()
		held = heldIn(v.manager.Snapshot())
	}
	result := outcome{
		samples:         seen.samples,
		passed:          seen.passed,
		friendServed:    f.served(),
		friendRefusals:  v.observer.refusals(),
		held:            held,
		forgotten:       forgotten,
		friendUntracked: where.shared,
	}
	report(out, seen, v.manager.Snapshot(), f, result)
	return result, nil
}

// attack returns when the time is up, or ctx has ended, and all hosts but the
// victim are closed.
func attack(ctx context.Context, d time.Duration, v *victim, f *friend, attackers []*attacker, seen *watch, out io.Writer) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	start := time.Now()
	turn := min(max(d/10, 250*time.Millisecond), time.Second)

	var wg sync.WaitGroup
	for _, a := range attackers {
		wg.Go(func() { a.run(ctx, start, turn) })
	}
	wg.Go(func() { f.run(ctx, v) })
	wg.Go(func() { seen.run(ctx, v.manager) })
	showProgress(ctx, out, start, d, func() string { return seen.line() + " · " + f.line() })
	wg.Wait()
}
