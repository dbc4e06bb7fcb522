package letgo

import (
	"maps"
	"slices"

	"github.com/weir-p2p/rcmgr/internal/evict"
)

// Fault is something that went wrong with a host.
type Fault uint8

const (
	Panicked  Fault = iota // a closer panicked
	Hung                   // closers do not return, so that no more can be called
	StaysOpen              // what was closed is still open
	Walk                   // the connections of a host could not be looked at
	NumFaults
)

var faultNames = [NumFaults]string{"panicked", "hung", "stays-open", "walk"}

// String returns the name of the fault, as metrics and tables show it.
func (f Fault) String() string { return faultNames[f] }

// Key is what connections and streams that were let go are counted by.
type Key struct {
	Kind   uint8 // of the scope that was full
	Stream bool
	Reason evict.Reason
}

// State is what has been done so far. It only grows, but for the numbers that say "now".
type State struct {
	Hosts    int // now
	LetGo    map[Key]uint64
	Would    map[Key]uint64        // that would have been let go if limits were not only observed
	OnlyKept map[uint8]uint64      // by kind: how often all that was left was kept
	Kept     [evict.NumClasses]int // by class, when victims were last chosen
	Faults   [NumFaults]uint64
	Closing  int      // now: closed, and not gone yet
	StayOpen int      // now: closed long ago, and still open
	Last     []Victim // the last that were let go, or would have been, the newest last
}

// mostLast is how many victims a State has.
const mostLast = 16

func (s *State) init() {
	s.LetGo, s.Would, s.OnlyKept = make(map[Key]uint64), make(map[Key]uint64), make(map[uint8]uint64)
}

func (s *State) letGo(v *Victim) {
	s.LetGo[v.key()]++
	s.keepLast(v)
}

func (s *State) keepLast(v *Victim) {
	if len(s.Last) == mostLast {
		s.Last = slices.Delete(s.Last, 0, 1)
	}
	s.Last = append(s.Last, *v)
}

func (v *Victim) key() Key { return Key{v.Kind, v.Stream, v.Reason} }

// State returns a copy of what has been done.
func (r *Room) State() State {
	r.settle(r.Now())
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.mu.state
	s.Hosts = len(r.mu.hosts)
	s.LetGo, s.Would, s.OnlyKept, s.Last = maps.Clone(s.LetGo), maps.Clone(s.Would), maps.Clone(s.OnlyKept), slices.Clone(s.Last)
	return s
}

func (r *Room) noteFault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.state.Faults[f]++
}

func (r *Room) noteOnlyKept(l *Lack) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.state.OnlyKept[l.Kind]++
}

func (r *Room) noteKept(kept []evict.Class) {
	var n [evict.NumClasses]int
	for _, c := range kept {
		n[c]++
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.state.Kept = n
}

// noteWould counts what would have been let go, once while it is there.
func (r *Room) noteWould(f *found, v Victim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.going[v.Num] = &going{Victim: v, scope: f.scope, since: v.At, would: true}
	r.mu.state.Would[v.key()]++
	r.mu.state.keepLast(&v)
}
