package rcmgr

// Other people's code that a manager calls: reporters, listeners, connection managers,
// Limiters. What goes wrong in it is logged once, with what was called, and stops nothing
// else: whoever asked for a decision gets it, and workers go on.

import (
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
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

// guardedLimiter keeps the faults of a Limiter that is not of this package, and of the
// Limits that it gives. It is asked again after one, for no scope can be made without:
// whoever needs the limit gets an error each time (checkLimit).
type guardedLimiter struct {
	theirs Limiter
	guard
}

// guardLimiter guards a Limiter, unless it is of this package or guarded.
func guardLimiter(l Limiter) Limiter {
	switch l.(type) {
	case *fixedLimiter, *guardedLimiter:
		return l
	}
	return &guardedLimiter{theirs: l, guard: guard{callback: callbackOf("Limiter", l), then: "whoever needs its limit gets an error"}}
}

// saidLimit is a Limit that has been read, once; err says why it could not be.
type saidLimit struct {
	amounts
	err error
}

func (l *saidLimit) GetMemoryLimit() int64 { return l.baseLimit().GetMemoryLimit() }
func (l *saidLimit) GetStreamLimit(dir network.Direction) int {
	return l.baseLimit().GetStreamLimit(dir)
}
func (l *saidLimit) GetStreamTotalLimit() int               { return l.baseLimit().GetStreamTotalLimit() }
func (l *saidLimit) GetConnLimit(dir network.Direction) int { return l.baseLimit().GetConnLimit(dir) }
func (l *saidLimit) GetConnTotalLimit() int                 { return l.baseLimit().GetConnTotalLimit() }
func (l *saidLimit) GetFDLimit() int                        { return l.baseLimit().GetFDLimit() }

func (g *guardedLimiter) ask(get func() Limit) Limit {
	said, none := new(saidLimit), false
	said.err = g.try(func() {
		l := get()
		if none = isNoLimit(l); !none {
			said.amounts = limitsOf(l)
		}
	})
	if none {
		return nil
	}
	return said
}

func (g *guardedLimiter) GetSystemLimits() Limit    { return g.ask(g.theirs.GetSystemLimits) }
func (g *guardedLimiter) GetTransientLimits() Limit { return g.ask(g.theirs.GetTransientLimits) }
func (g *guardedLimiter) GetAllowlistedSystemLimits() Limit {
	return g.ask(g.theirs.GetAllowlistedSystemLimits)
}
func (g *guardedLimiter) GetAllowlistedTransientLimits() Limit {
	return g.ask(g.theirs.GetAllowlistedTransientLimits)
}
func (g *guardedLimiter) GetServiceLimits(svc string) Limit {
	return g.ask(func() Limit { return g.theirs.GetServiceLimits(svc) })
}
func (g *guardedLimiter) GetServicePeerLimits(svc string) Limit {
	return g.ask(func() Limit { return g.theirs.GetServicePeerLimits(svc) })
}
func (g *guardedLimiter) GetProtocolLimits(proto protocol.ID) Limit {
	return g.ask(func() Limit { return g.theirs.GetProtocolLimits(proto) })
}
func (g *guardedLimiter) GetProtocolPeerLimits(proto protocol.ID) Limit {
	return g.ask(func() Limit { return g.theirs.GetProtocolPeerLimits(proto) })
}
func (g *guardedLimiter) GetPeerLimits(p peer.ID) Limit {
	return g.ask(func() Limit { return g.theirs.GetPeerLimits(p) })
}
func (g *guardedLimiter) GetStreamLimits(p peer.ID) Limit {
	return g.ask(func() Limit { return g.theirs.GetStreamLimits(p) })
}
func (g *guardedLimiter) GetConnLimits() Limit { return g.ask(g.theirs.GetConnLimits) }
