package rcmgr

// Finding connections and streams that are never given back. With WithLeakFinder, each of
// them has a record for as long as it is open: since when, for which peer, and for some
// of them where it was opened. If any have leaked, they are among the oldest of their
// class. A record does not keep its scope alive: a scope that is dropped without Done
// becomes garbage, and when the runtime collects it, the record is still there.
//
// Records lie in shards by number, each under a lock that comes after all others (I8).
// Without the option there are no records, and the manager has no finder.

import (
	"cmp"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/lean"
)

// LeakFinderConfig says what WithLeakFinder keeps. With its zero value it keeps no
// stacks, and reports the ten oldest scopes of each class.
type LeakFinderConfig struct {
	// Stacks is the sampling interval of stacks: 1 keeps the stack of every connection
	// and stream that is opened, 1000 that of one in a thousand, 0 none.
	Stacks int
	// Oldest is how many open scopes of each class a Snapshot has. 0 means 10.
	Oldest int
}

// OpenScope is one connection or stream that is open.
type OpenScope struct {
	Name string // "conn-17"
	Kind Kind
	// Transient reports whether it is a connection without a peer, or a stream without a
	// protocol.
	Transient bool              `json:",omitzero"`
	Direction network.Direction // inbound or outbound
	Peer      string            `json:",omitzero"`
	Protocol  string            `json:",omitzero"`
	Service   string            `json:",omitzero"`
	Opened    time.Time         // to a second
	// Memory is how many bytes the scope and its spans hold. It is 0 if the scope was
	// dropped.
	Memory int64
	// Dropped reports whether the program has dropped the scope without calling Done.
	Dropped bool `json:",omitzero"`
	// Stack is where the scope was opened, if that was kept: one function with file and
	// line per element, the innermost first.
	Stack []string `json:",omitzero"`
}

// LeakState is what WithLeakFinder has found.
type LeakState struct {
	// Oldest has the oldest open scopes of each class, the oldest first: transient
	// connections, other connections, transient streams, other streams.
	Oldest []OpenScope
	// Open is how many connections and streams are open, and Dropped how many of these
	// were dropped without Done.
	Open, Dropped int
}

// leakShards is the number of locks. Consecutive numbers come from one stripe, and use
// different locks.
const leakShards = 64

type leakFinder struct {
	LeakFinderConfig
	report func(msg string, args ...any) // logs a scope that was dropped
	now    atomic.Int64                  // Unix time in nanoseconds, as of the last second
	at     [leakShards]leakShard
}

type leakShard struct {
	mu struct {
		sync.Mutex
		open    map[int64]*openRecord // by number
		crowd   int                   // see lean.Map
		dropped int
	}
	_ [64]byte // the next shard's lock is on a cache line of its own
}

// openRecord is what is known of an open scope. Its fields are read and written under the
// lock of its shard, except for those that never change.
type openRecord struct {
	memory func() int64 // bytes held, 0 if the scope is gone; no field above peer ever changes
	kind   Kind
	dir    dim
	num    int64
	opened int64
	stack  []uintptr

	peer              peer.ID
	protocol, service string
	dropped           bool
}

func newLeakFinder(f *LeakFinderConfig, report func(msg string, args ...any)) *leakFinder {
	if f == nil {
		return nil
	}
	l := &leakFinder{LeakFinderConfig: *f, report: report}
	l.lookAtClock()
	return l
}

// leakTick is the time between two readings of the clock.
const leakTick = time.Second

func (l *leakFinder) lookAtClock() { l.now.Store(time.Now().UnixNano()) }

func (l *leakFinder) shard(num int64) *leakShard { return &l.at[num%leakShards] }

// opened records a connection or stream that no other goroutine knows of yet. For one
// record, opened, moved and closed are called while the scope is alive; drop is called
// after them, when no goroutine can end the scope any more.
func (l *leakFinder) opened(r *openRecord) {
	r.opened = l.now.Load()
	if l.Stacks > 0 && r.num%int64(l.Stacks) == 0 {
		var pcs [32]uintptr
		n := runtime.Callers(2, pcs[:])
		r.stack = slices.Clone(pcs[:n])
	}
	s := l.shard(r.num)
	s.mu.Lock()
	if s.mu.open == nil {
		s.mu.open = make(map[int64]*openRecord)
	}
	s.mu.open[r.num] = r
	s.mu.crowd = max(s.mu.crowd, len(s.mu.open))
	s.mu.Unlock()
}

// moved records the peer, protocol or service that an open scope has now.
func (l *leakFinder) moved(num int64, note func(*openRecord)) {
	s := l.shard(num)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.mu.open[num]; r != nil { // or else it was closed meanwhile
		note(r)
	}
}

// closed removes the record of a connection or stream. The lock of its stripe is held.
func (l *leakFinder) closed(num int64) {
	s := l.shard(num)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.open, num)
	s.mu.open = lean.Map(s.mu.open, &s.mu.crowd)
}

// drop is called when a scope is garbage, in a goroutine of the runtime's. A scope that
// was done has no record any more.
func (l *leakFinder) drop(r *openRecord) {
	s := l.shard(r.num)
	s.mu.Lock()
	if s.mu.open[r.num] != r {
		s.mu.Unlock()
		return
	}
	r.dropped = true
	s.mu.dropped++
	told := r.state(0)
	s.mu.Unlock()
	args := []any{"scope", told.Name, "peer", told.Peer, "protocol", printable(told.Protocol), "opened", told.Opened}
	if len(told.Stack) > 0 {
		args = append(args, "stack", told.Stack)
	}
	l.report("a scope was dropped without Done", args...)
}

// transient reports whether the scope has no place yet: no peer, or no protocol.
func (r *openRecord) transient() bool {
	if r.kind == KindConn {
		return r.peer == ""
	}
	return r.protocol == ""
}

// state returns the record for a Snapshot, with the bytes of memory that the scope holds.
func (r *openRecord) state(memory int64) OpenScope {
	name := scopeName{kind: r.kind, num: r.num}
	s := OpenScope{Name: name.String(), Kind: r.kind, Transient: r.transient(), Direction: directionOf[r.dir],
		Protocol: r.protocol, Service: r.service, Opened: time.Unix(0, r.opened), Memory: memory, Dropped: r.dropped}
	if r.peer != "" {
		s.Peer = r.peer.String()
	}
	if len(r.stack) > 0 {
		frames := runtime.CallersFrames(r.stack)
		for more := true; more; {
			var f runtime.Frame
			f, more = frames.Next()
			if len(s.Stack) == 0 && !strings.Contains(f.Function, ").Open") {
				continue // a function of the engine, below Open
			}
			s.Stack = append(s.Stack, fmt.Sprintf("%s %s:%d", f.Function, filepath.Base(f.File), f.Line))
		}
	}
	return s
}

// class returns the index of the record's class in the order of LeakState.Oldest.
func (r *openRecord) class() int {
	c := 0
	if r.kind == KindStream {
		c = 2
	}
	if !r.transient() {
		c++
	}
	return c
}

// state returns the oldest scopes of each class. It visits every record, and holds the
// lock of one shard at a time.
func (l *leakFinder) state() (s LeakState) {
	if l == nil {
		return s
	}
	older := func(a, b *openRecord) int {
		return cmp.Or(cmp.Compare(a.opened, b.opened), cmp.Compare(a.num, b.num))
	}
	var oldest [4][]*openRecord
	for i := range l.at {
		mu := &l.at[i].mu
		mu.Lock()
		s.Open += len(mu.open)
		s.Dropped += mu.dropped
		for _, r := range mu.open {
			list := &oldest[r.class()]
			*list = offer(*list, r, l.Oldest, older)
		}
		mu.Unlock()
	}
	for _, list := range oldest {
		for _, r := range list {
			memory := r.memory()
			mu := &l.shard(r.num).mu
			mu.Lock()
			s.Oldest = append(s.Oldest, r.state(memory))
			mu.Unlock()
		}
	}
	return s
}

// Class returns the class of LeakState that the scope is in, "transient" or
// "established", followed by ", dropped" if it was dropped.
func (o *OpenScope) Class() string {
	c := "established"
	if o.Transient {
		c = "transient"
	}
	if o.Dropped {
		c += ", dropped"
	}
	return c
}

// Where returns the innermost element of Stack that is not in this package, or an empty
// string if no stack was kept.
func (o *OpenScope) Where() string {
	for _, frame := range o.Stack {
		if !strings.HasPrefix(frame, "github.com/weir-p2p/rcmgr.") {
			return frame
		}
	}
	return ""
}
