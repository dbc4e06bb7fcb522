package rcmgr

// What room was made, as snapshots show it.

import (
	"cmp"
	"slices"
	"time"

	"github.com/weir-p2p/rcmgr/internal/evict"
	"github.com/weir-p2p/rcmgr/internal/letgo"
)

// RoomState is what WithRoom has done.
type RoomState struct {
	// Hosts is the number of attached hosts. Room is made on these alone.
	Hosts int
	// LetGo counts the connections that were closed and the streams that were reset. WouldLetGo
	// counts those that would have been closed or reset if the limit and the option were
	// enforced, each once.
	LetGo      []RoomCount `json:",omitempty"`
	WouldLetGo []RoomCount `json:",omitempty"`
	// Kept has the number of connections or streams in each class that is kept, at the last
	// choice: "outbound", "allowlisted", "protected", "valued", "protocol", "rare" and
	// "longstanding". "free" could be let go.
	Kept map[string]int `json:",omitempty"`
	// OnlyKept counts how often a kind of scope was short of room and all that was left was
	// kept, so that newcomers were refused.
	OnlyKept map[Kind]uint64 `json:",omitempty"`
	// Faults counts what went wrong with hosts: "panicked" (in closing), "hung" (so many
	// closings do not return that no more are begun), "stays-open" (a second after it was
	// closed), and "walk" (the connections of a host could not be looked at).
	Faults map[string]uint64 `json:",omitempty"`
	// Closing is how many were closed and are not gone yet; StayOpen is how many of them were
	// closed a second ago or earlier.
	Closing, StayOpen int
	// Last has the connections and streams that were let go last, or would have been, the newest first.
	Last []RoomVictim `json:",omitempty"`
}

// on reports whether there is anything to show.
func (s *RoomState) on() bool { return s.Hosts > 0 || len(s.WouldLetGo)+len(s.LetGo) > 0 }

// RoomCount is a number of connections or streams.
type RoomCount struct {
	Scope Kind // of the scope that was short of room; KindProcess for the memory of the process
	What  Kind // KindConn or KindStream
	// Reason is "group" if a group held more than its share, "idle" if nothing was known to use
	// them, and "chance" otherwise.
	Reason string
	Count  uint64
}

// RoomVictim is a connection or stream that was let go, or would be.
type RoomVictim struct {
	Name   string // of its scope, such as "conn-17"
	Peer   string
	Scope  string // that was short of room, such as "system"
	Limit  string // the limit's name in configurations, such as "ConnsInbound"
	Reason string // see RoomCount
	// Group is the group that exceeded its share most: a peer, a prefix, a name that
	// the function of WithOwners has returned, "relay" with the relay's ID, or "no address".
	Group string
	At    time.Time
}

// roomState returns what WithRoom has done.
func roomState(r *letgo.Room) (s RoomState) {
	if r == nil {
		return s
	}
	now := r.State()
	s = RoomState{Hosts: now.Hosts, Closing: now.Closing, StayOpen: now.StayOpen,
		LetGo: roomCounts(now.LetGo), WouldLetGo: roomCounts(now.Would)}
	for class, n := range now.Kept {
		if n > 0 {
			putIn(&s.Kept, evict.Class(class).String(), n)
		}
	}
	for kind, n := range now.OnlyKept {
		putIn(&s.OnlyKept, Kind(kind), n)
	}
	for fault, n := range now.Faults {
		if n > 0 {
			putIn(&s.Faults, letgo.Fault(fault).String(), n)
		}
	}
	for _, v := range slices.Backward(now.Last) {
		s.Last = append(s.Last, roomVictim(&v))
	}
	return s
}

func putIn[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
}

func roomVictim(v *letgo.Victim) RoomVictim {
	return RoomVictim{Name: v.Name(), Peer: v.Peer.String(), Scope: v.Scope, Limit: v.Limit,
		Reason: v.Reason.String(), Group: v.Group, At: v.At}
}

// roomCounts returns counts as a list, in a fixed order.
func roomCounts(counts map[letgo.Key]uint64) (list []RoomCount) {
	for k, n := range counts {
		c := RoomCount{Scope: Kind(k.Kind), What: KindConn, Reason: k.Reason.String(), Count: n}
		if k.Stream {
			c.What = KindStream
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b RoomCount) int {
		return cmp.Or(cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.What, b.What), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}
