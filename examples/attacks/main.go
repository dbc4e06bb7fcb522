// Command attacks has a real go-libp2p host attacked in three ways that limits alone
// do not answer, on go-libp2p's own resource manager, on ours as it comes, and on ours
// with the option that is meant for it, one after the other, and shows what honest
// peers got meanwhile, what the crowd was refused and by what, and what memory it took.
//
//   - fairshare: a crowd with many identities from three networks fills what is
//     transient, with streams that never negotiate and connections that never shake
//     hands (WithFairShare).
//   - memory: the victim keeps what it is sent, and reserves nothing for it
//     (WithMemoryPressure).
//   - trim: a crowd fills all connections of a host whose connection manager would
//     know whom to let go (WithTrimming).
//
// The victim is a process of its own; the others share one. Everything stays within
// 127.0.0.0/8, all of which has to be there.
//
//	go run ./examples/attacks -attack all -duration 10s -attackers 24
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/gologshim"
)

// settings are what the command line decides.
type settings struct {
	which     string // attack, or all
	duration  time.Duration
	attackers int
	memory    int64 // MiB
}

// A smaller crowd does not fill what is to be filled, a larger one has no addresses.
const (
	fewestAttackers = 20
	mostAttackers   = 250 * crowdNetworks
)

func main() {
	quiet()
	if os.Getenv(victimEnv) != "" {
		if err := beVictim(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "attacks: victim:", err)
			os.Exit(1)
		}
		return
	}
	var s settings
	flag.StringVar(&s.which, "attack", "all", "`which`: all, "+strings.Join(attackNames(), ", "))
	flag.DurationVar(&s.duration, "duration", 10*time.Second, "how long guests come, of each attack on each manager")
	flag.IntVar(&s.attackers, "attackers", 24, "how many the crowd is, each a host at an address of its own")
	flag.Int64Var(&s.memory, "memory", 256, "`MiB` that the victim's process may use in the attack on its memory")
	file := flag.String("json", "", "also write the results to this `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	err := s.check(flag.Args())
	if err == nil {
		err = run(ctx, s, *file)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err)
		os.Exit(1)
	}
}

// quiet keeps libp2p, which reports every refusal of the other side, away from the
// terminal.
func quiet() { gologshim.SetDefaultHandler(slog.DiscardHandler) }

func (s settings) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case len(s.chosen()) == 0:
		return fmt.Errorf("-attack must be all or one of %s, not %q", strings.Join(attackNames(), ", "), s.which)
	case s.duration <= 0:
		return fmt.Errorf("-duration must be positive, not %v", s.duration)
	case s.attackers < fewestAttackers || s.attackers > mostAttackers:
		return fmt.Errorf("-attackers must be from %d to %d, not %d", fewestAttackers, mostAttackers, s.attackers)
	case s.memory < 64:
		return fmt.Errorf("-memory must be at least 64, not %d: a host alone takes tens of MiB", s.memory)
	}
	return checkLoopback()
}

func attackNames() (names []string) {
	for _, a := range attacks {
		names = append(names, a.name)
	}
	return names
}

// chosen gives the attacks that -attack names.
func (s settings) chosen() []*attack {
	if s.which == "all" {
		return attacks
	}
	if a := attackNamed(s.which); a != nil {
		return []*attack{a}
	}
	return nil
}

// run writes progress to the standard error, and tables to the standard output.
func run(ctx context.Context, s settings, file string) error {
	var results []result
	for _, a := range s.chosen() {
		r, err := a.onAll(ctx, s, os.Stderr)
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	fmt.Printf("%s, %s/%s, %d processors; a crowd of %d, %v on each manager.\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), s.attackers, s.duration)
	for _, r := range results {
		r.print(os.Stdout)
	}
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(results, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// onAll runs an attack on one manager after the other.
func (a *attack) onAll(ctx context.Context, s settings, progress io.Writer) (result, error) {
	r := result{Attack: a.name, Option: a.option, About: a.about}
	for column := range columns {
		fmt.Fprintf(progress, "%s, on %s\n", a.name, a.column(column))
		o, err := play(ctx, s, a, column, progress)
		if err != nil {
			return r, fmt.Errorf("%s, on %s: %w", a.name, a.column(column), err)
		}
		r.Outcomes = append(r.Outcomes, o)
	}
	return r, nil
}
