// Command attacks attacks a real go-libp2p host in four ways that limits alone do not
// solve: on go-libp2p's own resource manager, then on ours with its defaults, then on
// ours with the option that is meant for the attack, and then with WithRoom, too. It shows
// how honest peers were served meanwhile, what the crowd was refused and by which scope,
// and how much memory was used.
//
//   - fairshare: a crowd with many identities from three networks fills the transient
//     scope, with streams that never negotiate and connections that never shake hands
//     (WithFairShare).
//   - memory: the victim keeps what it is sent, and reserves no memory for it
//     (WithMemoryPressure).
//   - trim: a crowd fills all connections of a host whose connection manager could
//     close some of them (WithTrimming).
//   - rate: one peer opens and closes streams as fast as it can, and holds few at a
//     time (Rates, beside the limits of each peer).
//
// The victim is a process of its own; all other hosts share one. Everything stays within
// 127.0.0.0/8, and needs all of it.
//
//	go run ./examples/attacks -attack all -duration 10s -attackers 24
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

// settings are the values of the command line.
type settings struct {
	which     string // the name of an attack, or all
	duration  time.Duration
	attackers int
	memory    int    // MiB
	results   string // the file for the results, "" for none
}

// A smaller crowd does not fill the limits, and a larger one has no addresses.
const (
	fewestAttackers = 20
	mostAttackers   = 250 * crowdNetworks
)

// A host alone takes tens of MiB, and no attack fills a TiB within seconds.
const leastMemory, mostMemory = 64, 1 << 20

func main() {
	quiet()
	if os.Getenv(victimEnv) != "" {
		if err := beVictim(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "attacks: victim:", err)
			os.Exit(1)
		}
		return
	}
	s, err := settingsFrom(os.Args[1:])
	cmdline.ExitOn("attacks", err)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	if err = checkLoopback(); err == nil {
		err = run(ctx, s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err)
		os.Exit(1)
	}
}

// quiet keeps the log of libp2p, which has every refusal by the other side, away from the
// terminal.
func quiet() { gologshim.SetDefaultHandler(slog.DiscardHandler) }

// settingsFrom reads the command line.
func settingsFrom(args []string) (settings, error) {
	s := settings{which: "all", duration: 10 * time.Second, attackers: 24, memory: 256}
	names := append([]string{s.which}, attackNames()...)
	l := cmdline.New("attacks").About(`
Attacks a real host in four ways that limits alone do not answer: on
go-libp2p's manager, on ours with its defaults, on ours with the option that is
meant for the attack, and with WithRoom, too. Shows how honest peers are served
meanwhile. Everything stays within 127.0.0.0/8. The last attack, rate, has one
attacker, whatever -attackers says.
`)
	l.Choice(&s.which, "attack", "the attack by its `name`", names...)
	l.Duration(&s.duration, "duration", "the `time` for which guests come, in each attack on each manager")
	l.Int(&s.attackers, "attackers", fewestAttackers, mostAttackers, "the `number` of attackers, each a host at an address of its own")
	l.Int(&s.memory, "memory", leastMemory, mostMemory, "memory in `MiB` that the victim's process may use in the attack on its memory")
	l.File(&s.results, "json", "also write the results to this `file`")
	if err := l.Parse(args); err != nil {
		return s, err
	}
	if l.Given("memory") && !slices.Contains(s.chosen(), &memoryPressure) {
		return s, cmdline.Wrong("memory", fmt.Sprint(s.memory), fmt.Errorf("expected with -attack %s or all, not %s", memoryPressure.name, s.which))
	}
	return s, cmdline.CheckOutput("json", s.results)
}

func attackNames() (names []string) {
	for _, a := range attacks {
		names = append(names, a.name)
	}
	return names
}

// chosen returns the attacks that -attack names.
func (s settings) chosen() []*attack {
	if s.which == "all" {
		return attacks
	}
	if a := attackNamed(s.which); a != nil {
		return []*attack{a}
	}
	return nil
}

// run writes progress to standard error, and tables to standard output.
func run(ctx context.Context, s settings) error {
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
	if s.results == "" {
		return nil
	}
	text, err := json.MarshalIndent(results, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(s.results, append(text, '\n'), 0o644)
}

// onAll runs an attack on each manager in turn.
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
