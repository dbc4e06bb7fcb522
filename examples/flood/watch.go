package main

// Watching the victim's manager: the highest use of each limit.

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// A resource is one thing that is limited, with functions that read it from the use of a
// scope, from its limit, and from its refusals.
type resource struct {
	name    string
	use     func(network.ScopeStat) int64
	limit   func(rcmgr.BaseLimit) int64
	refused func(rcmgr.Refusals) uint64
}

var resources = [...]resource{
	{"conns in",
		func(s network.ScopeStat) int64 { return int64(s.NumConnsInbound) },
		func(l rcmgr.BaseLimit) int64 { return int64(l.ConnsInbound) },
		func(r rcmgr.Refusals) uint64 { return r.ConnsInbound }},
	{"conns out",
		func(s network.ScopeStat) int64 { return int64(s.NumConnsOutbound) },
		func(l rcmgr.BaseLimit) int64 { return int64(l.ConnsOutbound) },
		func(r rcmgr.Refusals) uint64 { return r.ConnsOutbound }},
	{"conns",
		func(s network.ScopeStat) int64 { return int64(s.NumConnsInbound) + int64(s.NumConnsOutbound) },
		func(l rcmgr.BaseLimit) int64 { return int64(l.Conns) },
		func(r rcmgr.Refusals) uint64 { return r.Conns }},
	{"files",
		func(s network.ScopeStat) int64 { return int64(s.NumFD) },
		func(l rcmgr.BaseLimit) int64 { return int64(l.FD) },
		func(r rcmgr.Refusals) uint64 { return r.FD }},
	{"streams in",
		func(s network.ScopeStat) int64 { return int64(s.NumStreamsInbound) },
		func(l rcmgr.BaseLimit) int64 { return int64(l.StreamsInbound) },
		func(r rcmgr.Refusals) uint64 { return r.StreamsInbound }},
	{"streams out",
		func(s network.ScopeStat) int64 { return int64(s.NumStreamsOutbound) },
		func(l rcmgr.BaseLimit) int64 { return int64(l.StreamsOutbound) },
		func(r rcmgr.Refusals) uint64 { return r.StreamsOutbound }},
	{"streams",
		func(s network.ScopeStat) int64 { return int64(s.NumStreamsInbound) + int64(s.NumStreamsOutbound) },
		func(l rcmgr.BaseLimit) int64 { return int64(l.Streams) },
		func(r rcmgr.Refusals) uint64 { return r.Streams }},
	{"memory",
		func(s network.ScopeStat) int64 { return s.Memory },
		func(l rcmgr.BaseLimit) int64 { return l.Memory },
		func(r rcmgr.Refusals) uint64 { return r.Memory }},
}

const (
	connsInResource = 0
	memoryResource  = len(resources) - 1
)

func unlimited(limit int64) bool { return limit == math.MaxInt64 || limit == math.MaxInt }

// A row has what was seen of one limit of one resource of one scope. A limit that changes
// has a row for each of its values. All peers share one row, which has the highest use of
// any of them.
type row struct {
	scope    string
	kind     rcmgr.Kind
	resource int
	limit    int64
	now      int64 // at the last reading
	highest  int64 // the highest reading, except for kept
	kept     int64 // the most that was still held above the limit after it was lowered
	seen     int   // the number of the last reading that had the limit
}

// share returns the highest use as a fraction of the limit.
func (r *row) share() float64 {
	if r.limit == 0 {
		return 0
	}
	return float64(r.highest) / float64(r.limit)
}

// onlyKept reports whether every use was above the limit, from before it was lowered.
func (r *row) onlyKept() bool { return r.kept > 0 && r.highest == 0 }

// of returns what the row is about, whatever the limit.
func (r *row) of() scopeResource { return scopeResource{r.scope, r.resource} }

func (r *row) key() rowKey { return rowKey{r.of(), r.limit} }

// scopeResource is one resource of one scope.
type scopeResource struct {
	scope    string
	resource int
}

type rowKey struct {
	scopeResource
	limit int64
}

// watch gathers rows from snapshots.
type watch struct {
	mu     sync.Mutex
	rows   map[rowKey]*row
	order  []*row // as first seen
	passed []string
	told   map[scopeResource]bool // those that passed already has
	// may is how much each may hold: its limit, or what it held when that was lowered,
	// because it keeps that and gets nothing more.
	may     map[scopeResource]int64
	samples int
	friends []string // the scopes of the friend, and of its relay
	loot    loot

	// Changes of limits: how many have begun and ended, how many had ended before the
	// last reading, and how many may lie between that reading and the one before it.
	begun, ended, known, between int
}

func newWatch(friends ...peer.ID) *watch {
	w := &watch{rows: map[rowKey]*row{}, told: map[scopeResource]bool{}, may: map[scopeResource]int64{}}
	for _, id := range friends {
		w.friends = append(w.friends, "peer:"+id.String())
	}
	return w
}

// run takes a reading a hundred times a second, and a last one when ctx ends.
func (w *watch) run(ctx context.Context, m manager) {
	for pause(ctx, 10*time.Millisecond) {
		w.lookNow(m)
	}
	w.lookNow(m)
}

func (w *watch) lookNow(m manager) {
	w.mu.Lock()
	ended := w.ended
	w.mu.Unlock()
	s := m.Snapshot()
	w.mu.Lock()
	w.between, w.known = w.begun-w.known, ended
	w.mu.Unlock()
	w.look(s)
}

// whileLimitsChange makes a change of limits known to the watch.
func (w *watch) whileLimitsChange(change func() error) error {
	w.mu.Lock()
	w.begun++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended++
	}()
	return change()
}

func (w *watch) look(s rcmgr.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples++
	w.loot.add(s, w.friends)
	for _, r := range w.order {
		r.now = 0
	}
	for _, scope := range s.Scopes {
		for i := range resources {
			w.lookAtLocked(scope, i)
		}
	}
	for _, sub := range s.Gates.Fullest {
		w.lookAtLocked(rcmgr.ScopeState{
			Name:  "subnet:" + sub.Prefix.String(),
			Kind:  rcmgr.KindSubnet,
			Use:   network.ScopeStat{NumConnsInbound: int(sub.Conns)},
			Limit: rcmgr.BaseLimit{ConnsInbound: int(sub.Limit)},
		}, connsInResource)
	}
}

func (w *watch) lookAtLocked(scope rcmgr.ScopeState, i int) {
	limit := resources[i].limit(scope.Limit)
	if unlimited(limit) {
		return
	}
	use := resources[i].use(scope.Use)
	r := w.rowLocked(scope, i, limit)
	r.seen = w.samples
	r.now = max(r.now, use)
	if within := w.checkLocked(scope.Name, i, use, limit); within && use > limit {
		r.kept = max(r.kept, use)
	} else {
		r.highest = max(r.highest, use)
	}
}

// checkLocked reports whether a scope holds no more than it may, and records each limit
// that it has exceeded, once. What a scope holds may have been admitted under a limit
// that no reading has: a new one, if limits have changed since the last reading, or any,
// if they have changed twice.
func (w *watch) checkLocked(scope string, i int, use, limit int64) (within bool) {
	key := scopeResource{scope, i}
	may, old := w.may[key]
	may = max(limit, may)
	if w.between > 1 || w.between == 1 && !old {
		may = max(may, use)
	}
	w.may[key] = max(limit, min(may, use))
	if use > may && !w.told[key] {
		w.told[key] = true
		w.passed = append(w.passed, fmt.Sprintf("%s %s %s of %s", scope, resources[i].name, amount(i, use), amount(i, limit)))
	}
	return use <= may
}

func (w *watch) rowLocked(scope rcmgr.ScopeState, i int, limit int64) *row {
	name := scope.Name
	if scope.Kind == rcmgr.KindPeer {
		name = "peer (worst of all)"
	}
	key := rowKey{scopeResource{name, i}, limit}
	r := w.rows[key]
	if r == nil {
		r = &row{scope: name, kind: scope.Kind, resource: i, limit: limit}
		w.rows[key] = r
		w.order = append(w.order, r)
	}
	return r
}

// line returns a summary of the victim's use, for the progress bar.
func (w *watch) line() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	conns := int64(0)
	for _, r := range w.order {
		if r.of() == (scopeResource{"system", connsInResource}) {
			conns = max(conns, r.now) // 0 for a limit that is no longer in force
		}
	}
	return text.Plural(conns, "connection")
}

// waitUntilFree waits a little until the last connections of a manager whose hosts are
// all closed have ended, and returns what is still held then.
func waitUntilFree(m manager, patience time.Duration) []string {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		held := heldIn(m.Snapshot())
		if len(held) == 0 || time.Now().After(end) {
			return held
		}
	}
}

// heldIn returns everything that is held in any scope, or counts at a gate.
func heldIn(s rcmgr.Snapshot) []string {
	var held []string
	for _, scope := range s.Scopes {
		for i, r := range resources {
			if use := r.use(scope.Use); use != 0 {
				held = append(held, fmt.Sprintf("%s %s %s", scope.Name, r.name, amount(i, use)))
			}
		}
	}
	for _, sub := range s.Gates.Fullest {
		held = append(held, fmt.Sprintf("subnet:%s %s %d", sub.Prefix, resources[connsInResource].name, sub.Conns))
	}
	return held
}
