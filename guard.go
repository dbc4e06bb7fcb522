package rcmgr

// Other people's code that a manager calls: reporters, listeners, connection managers,
// Limiters. What goes wrong in it is logged once, with what was called, and stops nothing
// else: whoever asked for a decision gets it, and workers go on.

import (
	"fmt"
	"runtime/debug"
	"sync/atomic"
)

// guard keeps the faults of one callback from whoever calls it. The zero value is ready;
// its methods are safe for concurrent use, and are called without locks.
type guard struct {
	callback string // what is called, for the log
	then     string // what is so once it has failed; empty: it is not called again
	failed   atomic.Bool
}

// call calls f, which calls the callback, unless that has failed before. It reports
// whether f came back.
func (g *guard) call(f func()) bool { return !g.failed.Load() && g.try(f) == nil }

// try calls f, which calls the callback, and returns a panic of it as an error. If it ends
// its goroutine (runtime.Goexit), try does not return; that is a fault, too.
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

// tell logs the first fault, from where it is.
func (g *guard) tell(how string) {
	then := g.then
	if then == "" {
		then = "it is not called again"
	}
	log.Error("a callback has failed: "+then, "callback", g.callback, "fault", how, "stack", string(debug.Stack()))
}

// faultError says what a callback did instead of coming back.
type faultError string

func (e faultError) Error() string { return string(e) }

// callbackOf names a callback by the option, or interface, and the type that it has.
func callbackOf(what string, of any) string { return fmt.Sprintf("%s: %T", what, of) }
