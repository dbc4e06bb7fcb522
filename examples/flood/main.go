// Command flood attacks a real go-libp2p host that runs on our resource manager, and
// shows that it holds: no limit is exceeded, an allowlisted friend is served throughout,
// and nothing is held when all other hosts are closed. It can do the same with
// go-libp2p's own manager, and show both side by side; it then still passes or fails by
// ours alone.
//
// One host is the victim. Attackers, each with an address of its own, make every attack
// in turn: many connections under fresh identities, connections that never shake hands,
// streams that never negotiate a protocol, a flood of real requests, and requests whose
// answers are never read. They come from three networks: one may hold only a few
// connections, one may open them only slowly, and one is limited by the scopes alone.
// Meanwhile a friend in the first of these pings and fetches. Everything stays within
// 127.0.0.0/8.
//
//	go run ./examples/flood -duration 10s -attackers 8 -limits file.json -manager both
//
// With -serve 127.0.0.1:8080, the live page of our manager is on that address during the
// attack, and its metrics are under /metrics. With -watch, the limits follow their file
// meanwhile, and a mistake in it is reported when it is read. With -unlimited, only the
// limits of the file are in force, and with -trace, all that the victim is asked for is
// written to a file. With -cut 3, the attack is made three times without limits and three
// times with those of the file alone, and the report is how much less attackers hold.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/gologshim"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/cmdline"
	"github.com/weir-p2p/rcmgr/internal/cputime"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// settings are the values of the command line.
type settings struct {
	duration   time.Duration
	attackers  int
	limitsFile string
	limits     rcmgr.ConcreteLimitConfig // the limits of the show, overridden by limitsFile
	limitsText string                    // the text of limitsFile
	manager    string
	relay      bool         // the friend connects through a relay
	page       net.Listener // for the live page; nil without it
	watch      bool         // limits follow limitsFile
	unlimited  bool         // the show has no limits of its own
	trace      string       // a file for the trace of our manager
	cut        int          // how often to compare limitsFile alone with no limits, 0 for not at all
}

func main() {
	s, err := settingsFrom(os.Args[1:])
	cmdline.ExitOn("flood", err)
	quiet()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	code, err := flood(ctx, s, choosePlaces(s.attackers, s.relay), os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// settingsFrom reads the command line and the file of limits, and listens on the address
// of the live page.
func settingsFrom(args []string) (settings, error) {
	s := settings{duration: 10 * time.Second, attackers: 8, manager: "ours"}
	var serve string
	l := cmdline.New("flood").About(`
Attacks a real host that runs on our resource manager, and shows that it holds:
no limit is exceeded, an allowlisted friend is served throughout, and nothing is
held when all other hosts are closed. Everything stays within 127.0.0.0/8.
`)
	l.Duration(&s.duration, "duration", "the `time` that the attack lasts")
	l.Int(&s.attackers, "attackers", 1, mostAttackers, "`number` of attackers, each a host at an address of its own")
	l.File(&s.limitsFile, "limits", "JSON `file` with limits that override those of the show")
	l.Choice(&s.manager, "manager", "the `manager` of the victim; upstream is go-libp2p's own", "ours", "upstream", "both")
	l.Bool(&s.relay, "friend-behind-relay", "the friend comes through a relay of its own, before the attack, and stays")
	l.Address(&serve, "serve", "`address` with a port, such as 127.0.0.1:8080, for the live page and /metrics while our manager is attacked")
	l.Bool(&s.watch, "watch", "read the file of -limits again whenever it changes, on our manager")
	l.Bool(&s.unlimited, "unlimited", "no limits but those of -limits")
	l.File(&s.trace, "trace", "`file` for a trace of our manager, which then uses one processor at a time")
	l.Int(&s.cut, "cut", 0, mostCuts, "the number of `times` to attack without limits, and then with those of -limits, to show how much less the attackers hold")
	if err := l.Parse(args); err != nil {
		return s, err
	}
	notOurs := errors.New("expected with -manager ours or both: go-libp2p's manager has nothing of the kind")
	switch {
	case s.manager == "upstream" && serve != "":
		return s, cmdline.Wrong("serve", serve, notOurs)
	case s.manager == "upstream" && s.watch:
		return s, cmdline.Wrong("watch", "true", notOurs)
	case s.manager == "upstream" && s.trace != "":
		return s, cmdline.Wrong("trace", s.trace, notOurs)
	case s.cut > 0 && (s.manager != "ours" || serve != "" || s.watch || s.trace != ""):
		return s, cmdline.Wrong("cut", strconv.Itoa(s.cut), errors.New("expected without -serve, -watch and -trace, and with -manager ours"))
	case s.cut > 0 && s.limitsFile == "":
		return s, cmdline.Wrong("cut", strconv.Itoa(s.cut), errors.New("expected with -limits, the file to compare"))
	case s.watch && s.limitsFile == "":
		return s, cmdline.Wrong("watch", "true", errors.New("expected with -limits, the file to watch"))
	}
	var err error
	if s.limits, s.limitsText, err = loadLimits(s.limitsFile, s.showLimits()); err != nil {
		return s, cmdline.Wrong("limits", s.limitsFile, err)
	}
	if serve != "" {
		if s.page, err = net.Listen("tcp", serve); err != nil {
			return s, cmdline.Wrong("serve", serve, err)
		}
	}
	return s, nil
}

// turn returns how long each attack lasts. For a cut, each attacker makes every attack once, so
// that there is time to take all that it is after.
func (s *settings) turn() time.Duration {
	if s.cut > 0 {
		return max(s.duration/time.Duration(len(attacks)), 250*time.Millisecond)
	}
	return min(max(s.duration/10, 250*time.Millisecond), time.Second)
}

// showLimits returns the limits of the show, or none with -unlimited.
func (s *settings) showLimits() rcmgr.ConcreteLimitConfig {
	if s.unlimited || s.cut > 0 {
		return rcmgr.InfiniteLimits
	}
	return showLimits(s.attackers)
}

// quiet keeps two logs away from the terminal: libp2p's, which has every refusal by the
// other side, and quic-go's, which asks for larger socket buffers.
func quiet() {
	gologshim.SetDefaultHandler(slog.DiscardHandler)
	log.SetOutput(io.Discard)
}

// flood runs the whole show, on each manager in turn, writes its report to out, and
// returns the exit code.
func flood(ctx context.Context, s settings, where places, to io.Writer) (int, error) {
	out := &screen{to: to, terminal: isTerminal(to)}
	fmt.Fprintln(out, where.describe())
	if s.cut > 0 {
		return cutShow(ctx, s, where, out)
	}
	var results []outcome
	for _, by := range chosen(s.manager) {
		if len(results) > 0 && ctx.Err() != nil {
			break // interrupted
		}
		if s.manager != "ours" {
			fmt.Fprintf(out, "\non %s\n", by.title)
		}
		runtime.GC() // garbage of the last manager must not burden the next
		result, err := stand(ctx, s, by, where, out)
		if err != nil {
			return 0, fmt.Errorf("on %s: %w", by.title, err)
		}
		results = append(results, result)
	}
	report(out, results)
	return exitCode(results), nil
}

// stand attacks a victim on one manager.
func stand(ctx context.Context, s settings, by contender, where places, out *screen) (outcome, error) {
	cpu := cputime.Used()
	f, err := newFriend(where.home)
	if err != nil {
		return outcome{}, err
	}
	var relay host.Host
	var relayID peer.ID
	if s.relay {
		if relay, err = newRelay(ctx, where.friend); err != nil {
			return outcome{}, err
		}
		defer relay.Close()
		relayID = relay.ID()
	}
	var opts []rcmgr.Option
	if s.trace != "" {
		opts = append(opts, rcmgr.WithStrictConfig(), rcmgr.WithTrace(s.trace))
	}
	v, err := newVictim(by, s.limits, where, f.id, relayID, opts...)
	if err != nil {
		return outcome{}, err
	}
	if s.relay {
		if err := v.reserve(ctx, relay); err != nil {
			v.close()
			return outcome{}, fmt.Errorf("no place at the friend's relay: %w", err)
		}
	}
	attackers, err := newAttackers(where.attackers, v)
	if err != nil {
		v.close()
		return outcome{}, err
	}
	if ours, ok := v.manager.(*rcmgr.Manager); ok && s.page != nil {
		show, err := serve(s.page, ours)
		if err != nil {
			v.close()
			return outcome{}, fmt.Errorf("-serve: %w", err)
		}
		defer show.Close()
		fmt.Fprintf(out, "live page http://%[1]s/ · metrics http://%[1]s/metrics\n", show.Addr)
	}
	seen := newWatch(f.id, relayID)
	stop := func() {}
	if ours, ok := v.manager.(*rcmgr.Manager); ok && s.watch {
		stop = followUntil(ctx, s, ours, seen, out)
	}
	attack(ctx, s.duration, s.turn(), v, f, attackers, seen, out)
	stop()
	v.close()

	held, forgotten := waitUntilFree(v.manager, 2*time.Second), 0
	cpu = cputime.Used() - cpu
	if len(held) > 0 {
		forgotten = v.observer.closeForgotten()
		held = heldIn(v.manager.Snapshot())
	}
	return outcome{
		by:              by,
		samples:         seen.samples,
		rows:            seen.order,
		passed:          seen.passed,
		loot:            seen.loot,
		friend:          f.tallies(),
		friendRefusals:  v.observer.refusals(),
		friendUntracked: where.shared,
		calls:           v.observer.counts(),
		gates:           v.observer.gateRefusals(),
		gateLimits:      gateLimits(s.limits),
		held:            held,
		forgotten:       forgotten,
		last:            v.manager.Snapshot(),
		cpu:             cpu,
	}, nil
}

// followUntil follows the file of limits until stop is called, which returns a report.
func followUntil(ctx context.Context, s settings, m *rcmgr.Manager, seen *watch, out *screen) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	tick := time.NewTicker(250 * time.Millisecond)
	f := newFollower(s, m, seen, out.tell)
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx, tick.C) })
	return func() {
		cancel()
		tick.Stop()
		wg.Wait()
		fmt.Fprintln(out, f)
	}
}

// attack attacks until the time is up or ctx has ended, and returns when all hosts but
// the victim are closed.
func attack(ctx context.Context, d, turn time.Duration, v *victim, f *friend, attackers []*attacker, seen *watch, out *screen) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()

	var wg sync.WaitGroup
	arrived, arrive := context.WithCancel(ctx)
	defer arrive()
	wg.Go(func() { f.run(ctx, v, arrive) })
	if v.relayed != nil {
		// Before its handshake is done, a relayed connection has to find room like a
		// stranger's.
		<-arrived.Done()
	}
	start := time.Now()
	for _, a := range attackers {
		wg.Go(func() { a.run(ctx, start, turn) })
	}
	wg.Go(func() { seen.run(ctx, v.manager) })
	showProgress(ctx, out, start, d, func() string {
		return fmt.Sprintf("%s · %s · %s", seen.line(), text.Plural(v.observer.counts().totalRefused(), "refusal"), f.line())
	})
	wg.Wait()
}
