package rcmgr

// Faults of foreign code that a manager calls: reporters, listeners, connection managers,
// Limiters and loggers. A fault is logged once, with the name of the callback, and stops nothing else:
// decisions are returned to their callers, and periodic jobs go on.

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
)

// guard keeps the faults of one callback from its caller. The zero value is ready to use. The
// methods are safe for concurrent use, and are called without locks.
type guard struct {
	callback string // the name of the callback, for the log
	then     string // what follows from a fault; empty: the callback is not called again
	failed   atomic.Bool
}

// call calls f, which calls the callback, unless the callback has failed before. It reports
// whether f was called and returned.
func (g *guard) call(f func()) bool { return !g.failed.Load() && g.try(f) == nil }

// try calls f, which calls the callback, and returns a panic of it as an error. If the
// callback ends its goroutine (runtime.Goexit), that is logged as a fault, too, but try cannot
// return.
func (g *guard) try(f func()) (err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		how := "ended its goroutine"
		if p := recover(); p != nil {
			how = fmt.Sprint("panicked: ", p)
		}
		err = faultError(how)
		if !g.failed.Swap(true) {
			g.tell(how)
		}
	}()
	f()
	returned = true
	return nil
}

// tell logs the first fault. It is called where the fault happened, for the stack.
func (g *guard) tell(how string) {
	then := g.then
	if then == "" {
		then = "it is not called again"
	}
	log.Error("a callback has failed: "+then, "callback", g.callback, "fault", how, "stack", string(debug.Stack()))
}

// guardedLines returns a function that writes lines of a level to the logger that a program passed
// to an option. nil is the logger of this package, which also takes the place of one that fails.
func guardedLines(to *slog.Logger, level slog.Level, option string) func(msg string, attrs []slog.Attr) {
	g := &guard{callback: option, then: "the logger rcmgr takes its place"}
	return func(msg string, attrs []slog.Attr) {
		write := func(to *slog.Logger) { to.LogAttrs(context.Background(), level, msg, attrs...) }
		if to == nil || !g.call(func() { write(to) }) {
			write(log)
		}
	}
}

// longestOwner is the length of the longest name of an owner, in bytes.
const longestOwner = 64

// guardedOwners returns the function of WithOwners, nil without one. Once it has panicked, it knows
// no owner. bug counts and logs its faults.
func guardedOwners(owner func(netip.Addr) string, bug func(string, ...any)) func(netip.Addr) string {
	if owner == nil {
		return nil
	}
	g := &guard{callback: "WithOwners"}
	return func(a netip.Addr) (name string) {
		if g.failed.Load() {
			return ""
		}
		if err := g.try(func() { name = owner(a) }); err != nil {
			bug("the function of WithOwners has failed, and is not called again", "err", err)
			return ""
		}
		if len(name) > longestOwner {
			bug("the name of an owner is too long, and counts as none", "bytes", len(name), "most", longestOwner, "name", printable(name[:longestOwner]))
			return ""
		}
		return name
	}
}

// faultError says what a callback did instead of returning.
type faultError string

func (e faultError) Error() string { return string(e) }

// callbackOf returns the name of a callback, made from an option or interface and its type.
func callbackOf(what string, of any) string { return fmt.Sprintf("%s: %T", what, of) }
