package rcmgr

// Finding what is never given back. With WithLeakFinder, each connection and stream
// has a record for as long as it is open: since when, whose, and for some of them
// where it was opened. The oldest of each class are what has leaked, if anything
// has. A record holds no scope: one that is dropped without Done is garbage, and
// when the runtime finds it, the record is still there.
//
// Records lie in shards by number, each under a lock that comes after all others
// (I8). Without the option there are none, and the manager has no finder.

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
)

// LeakFinderConfig says what WithLeakFinder keeps. Its zero value is no stacks, and the
// ten oldest.
type LeakFinderConfig struct {
	// Stacks is of how many connections and streams that are opened one's stack is
	// kept: 1 is each, 1000 one of a thousand, 0 none.
	Stacks int
	// Oldest is how many open scopes of each class a Snapshot has. 0 is 10.
	Oldest int
}

// OpenScope is one connection or stream that is open.
type OpenScope struct {
	Name string // "conn-17"
	Kind Kind
	// Transient: a connection without a peer, or a stream without a protocol.
	Transient bool              `json:",omitzero"`
	Direction network.Direction // inbound or outbound
	Peer      string            `json:",omitzero"`
	Protocol  string            `json:",omitzero"`
	Service   string            `json:",omitzero"`
	Opened    time.Time         // to a second
	// Memory is the bytes that it holds, with its spans. It is 0 if the scope was
	// dropped.
	Memory int64
	// Dropped: nobody has the scope any more, and it was not done.
	Dropped bool `json:",omitzero"`
	// Stack tells where it was opened, if that was kept: a function, file and line
	// each, the innermost first.
	Stack []string `json:",omitzero"`
}

// LeakState is what WithLeakFinder has found.
type LeakState struct {
	// Oldest has the oldest open scopes of each class, the oldest first: transient
	// connections, other connections, transient streams, other streams.
	Oldest []OpenScope
	// Open is how many connections and streams are open; Dropped how many of these
	// nobody has any more.
	Open, Dropped int
}

// leakShards is the number of locks: numbers that follow each other are opened by
// one stripe, and meet different ones.
const leakShards = 64

type leakFinder struct {
	LeakFinderConfig
	report func(msg string, args ...any) // of a scope that was dropped
	now    atomic.Int64                  // Unix time in nanoseconds, as of the last second
	at     [leakShards]leakShard
}

type leakShard struct {
	mu struct {
		sync.Mutex
		open    map[int64]*openRecord // by number
		crowd   int                   // see withoutCrowd
		dropped int
	}
	_ [64]byte // the next shard's lock is on a cache line of its own
}

// openRecord is what is known of an open scope. The lock of its shard is held where
// it is read or written, but for what never changes.
type openRecord struct {
	memory func() int64 // that the scope holds, 0 if it is gone; never changes, as all above peer
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

// leakTick is the time between two looks at the clock.
const leakTick = time.Second

func (l *leakFinder) lookAtClock() { l.now.Store(time.Now().UnixNano()) }

func (l *leakFinder) shard(num int64) *leakShard { return &l.at[num%leakShards] }

// opened takes note of a connection or stream that nobody else knows of yet. All that
// happens to its record afterwards, opened, moved and closed do while the scope is alive:
// drop comes later than all of it, and what it finds, nobody can end any more.
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

// moved takes note of whose an open scope is now.
func (l *leakFinder) moved(num int64, note func(*openRecord)) {
	s := l.shard(num)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.mu.open[num]; r != nil { // else it was closed since
		note(r)
	}
}

// closed forgets a connection or stream. The lock of its stripe is held.
func (l *leakFinder) closed(num int64) {
	s := l.shard(num)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.open, num)
	s.mu.open = withoutCrowd(s.mu.open, &s.mu.crowd)
}

// drop is called when a scope is garbage, in a goroutine of the runtime's. A scope that
// was ended has no record any more.
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

// transient tells whether the scope has not been placed yet.
func (r *openRecord) transient() bool {
	if r.kind == KindConn {
		return r.peer == ""
	}
	return r.protocol == ""
}

// state gives the record as others see it, with so many bytes of memory.
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
				continue // the engine's part of opening
			}
			s.Stack = append(s.Stack, fmt.Sprintf("%s %s:%d", f.Function, filepath.Base(f.File), f.Line))
		}
	}
	return s
}

// class orders records as LeakState does.
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

// state gives the oldest of each class. It visits each record, under one lock of many
// at a time.
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

// Class says in words to which of the classes of LeakState a scope belongs:
// "transient" or "established", and whether it was dropped.
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

// Where is the innermost place of the stack that is not in this package, or empty if
// no stack was kept.
func (o *OpenScope) Where() string {
	for _, frame := range o.Stack {
		if !strings.HasPrefix(frame, "github.com/weir-p2p/rcmgr.") {
			return frame
		}
	}
	return ""
}
