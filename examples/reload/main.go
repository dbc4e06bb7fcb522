// Command reload runs a host whose limits can be changed while it runs. They are in a
// file of overrides, which is read again when it changes, and on SIGHUP. A mistake in the
// file changes nothing, and is reported with its place.
//
//	go run ./examples/reload -limits limits.json -memory 2GiB
//	echo '{"System": {"ConnsInbound": 2000}}' > limits.json
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

// settings are the values of the command line.
type settings struct {
	watcher
	limits rcmgr.ConcreteLimitConfig // the limits at the start
	every  time.Duration
}

func main() {
	s, err := settingsFrom(os.Args[1:])
	cmdline.ExitOn("reload", err)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	if err := run(ctx, s, tick.C, hangup, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "reload:", err)
		os.Exit(1)
	}
}

// settingsFrom reads the command line, and the file of overrides if there is one.
func settingsFrom(args []string) (settings, error) {
	s := settings{every: 2 * time.Second}
	s.file = "limits.json"
	l := cmdline.New("reload").About(`
Runs a host whose limits are in a file, which is read again when it changes and
on SIGHUP. A mistake in the file changes nothing, and is reported.
`)
	l.File(&s.file, "limits", "JSON `file` of overrides, which may come later")
	l.Size(&s.node.MaxMemory, "memory", "`size` of what libp2p may use, by default half of what the process may use")
	l.Duration(&s.every, "every", "the `time` between two looks at the file")
	if err := l.Parse(args); err != nil {
		return s, err
	}
	var err error
	if s.limits, err = s.read(); err != nil {
		return s, cmdline.Wrong("limits", s.file, err)
	}
	return s, nil
}

// run runs a host until ctx ends.
func run(ctx context.Context, s settings, look <-chan time.Time, hangup <-chan os.Signal, out io.Writer) error {
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(s.limits))
	if err != nil {
		return err
	}
	h, err := libp2p.New(libp2p.ResourceManager(rm), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		return err
	}
	defer h.Close() // this closes the manager, too
	if s.was == nil {
		fmt.Fprintf(out, "there is no %s yet\n", s.file)
	}
	fmt.Fprintf(out, "%s at %v\n", h.ID(), h.Addrs())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
		case <-look:
			if !s.changed() {
				continue
			}
		}
		s.reload(rm, out)
	}
}

// watcher has a file, and its state when it was last read.
type watcher struct {
	file string
	node rcmgr.NodeLimits
	was  fs.FileInfo // nil if the file did not exist
}

// read returns the limits with the overrides of the file, if it exists.
func (w *watcher) read() (rcmgr.ConcreteLimitConfig, error) {
	w.was, _ = os.Stat(w.file)
	overrides, err := rcmgr.ReadLimitsFile(w.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return rcmgr.ConcreteLimitConfig{}, err
	}
	node := w.node
	node.Overrides = overrides
	return node.Build()
}

// changed reports whether the file has changed since it was read.
func (w *watcher) changed() bool {
	now, _ := os.Stat(w.file)
	if now == nil || w.was == nil {
		return now != w.was
	}
	return !now.ModTime().Equal(w.was.ModTime()) || now.Size() != w.was.Size() || !os.SameFile(now, w.was)
}

// reload puts the limits of the file in force, and prints what has changed.
func (w *watcher) reload(rm *rcmgr.Manager, out io.Writer) {
	before := rm.Limits()
	limits, err := w.read()
	if err == nil {
		err = rm.SetLimits(rcmgr.NewFixedLimiter(limits))
	}
	if err != nil {
		fmt.Fprintln(out, "limits stay as they are:", err)
		return
	}
	changes := settingsSince(before, rm.Limits())
	if len(changes) == 0 {
		fmt.Fprintln(out, "limits are as they were")
	}
	for _, c := range changes {
		fmt.Fprintln(out, c)
	}
}

// settingsSince returns the settings whose values differ.
func settingsSince(before, now rcmgr.ConcreteLimitConfig) (lines []string) {
	was := make(map[string]string)
	for _, s := range before.Settings() {
		was[s.Place] = s.Value
	}
	for _, s := range now.Settings() {
		if old := was[s.Place]; old != s.Value {
			lines = append(lines, fmt.Sprintf("%s: %s -> %s (%s)", s.Place, cmp.Or(old, `""`), s.Value, s.Origin))
		}
		delete(was, s.Place)
	}
	for _, place := range slices.Sorted(maps.Keys(was)) {
		lines = append(lines, place+": not named any more")
	}
	return lines
}
