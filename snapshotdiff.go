package rcmgr

// What has changed between two snapshots: who has grown, and what was refused
// in between.

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
)

// LimitChange is a limit whose use or value has changed, or that has refused
// something.
type LimitChange struct {
	// LimitUse is as it was later, but for Refusals and WouldRefuse: those in between.
	LimitUse
	UseBefore   int64
	LimitBefore int64
}

// Grown tells how much more is held than before; less than 0 if it is less.
func (c *LimitChange) Grown() int64 { return c.Use - c.UseBefore }

// SnapshotDiff is what has happened between two snapshots of one manager.
type SnapshotDiff struct {
	From, To time.Time
	// Limits has what has changed: first what refused the most, then what has
	// grown the most of its limit.
	Limits []LimitChange
	// Refusals counts, for each kind of scope and gate, what it refused, and
	// WouldRefuse what it admitted because its limit is only observed.
	Refusals, WouldRefuse    map[Kind]Refusals
	CallerBugs, LateReleases uint64
}

// Since gives what has changed since an earlier snapshot. A scope that stands in
// one of them only held nothing at the other time: take both with all peers, or
// expect changes of those that were not among the fullest. If a count has fallen,
// its scope, or the manager, was made anew in between, and all of it is new.
func (s *Snapshot) Since(before *Snapshot) SnapshotDiff {
	c := SnapshotDiff{
		From: before.Taken, To: s.Taken,
		Refusals:     refusalsByKindSince(s.Refusals, before.Refusals),
		WouldRefuse:  refusalsByKindSince(s.WouldRefuse, before.WouldRefuse),
		CallerBugs:   countSince(s.CallerBugs, before.CallerBugs),
		LateReleases: countSince(s.LateReleases, before.LateReleases),
	}
	was := make(map[string]*ScopeState, len(before.Scopes))
	for i := range before.Scopes {
		was[before.Scopes[i].Name] = &before.Scopes[i]
	}
	for i := range s.Scopes {
		now := &s.Scopes[i]
		old := was[now.Name]
		if old == nil {
			old = &ScopeState{Limit: now.Limit}
		}
		delete(was, now.Name)
		c.add(old, now)
	}
	for _, old := range was {
		c.add(old, &ScopeState{Name: old.Name, Kind: old.Kind, Limit: old.Limit})
	}
	slices.SortFunc(c.Limits, func(a, b LimitChange) int {
		part := func(l LimitChange) float64 { return float64(l.Grown()) / max(1, float64(l.Limit)) }
		return cmp.Or(cmp.Compare(b.Refusals, a.Refusals), cmp.Compare(part(b), part(a)),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Name, b.Name))
	})
	return c
}

func refusalsByKindSince(now, before map[Kind]Refusals) map[Kind]Refusals {
	since := make(map[Kind]Refusals)
	for k, r := range now {
		old := before[k]
		if d := refusalsSince(r.dimCounts(), old.dimCounts()); d != (dimCounts{}) {
			since[k] = d.refusals()
		}
	}
	return since
}

// add notes what has changed of one scope.
func (c *SnapshotDiff) add(before, now *ScopeState) {
	was := before.limitUses()
	for d, u := range now.limitUses() {
		u.Refusals = countSince(u.Refusals, was[d].Refusals)
		u.WouldRefuse = countSince(u.WouldRefuse, was[d].WouldRefuse)
		if u.Refusals > 0 || u.WouldRefuse > 0 || u.Use != was[d].Use || u.Limit != was[d].Limit {
			c.Limits = append(c.Limits, LimitChange{u, was[d].Use, was[d].Limit})
		}
	}
}

func countSince(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func refusalsSince(now, before dimCounts) (since dimCounts) {
	for d := range since {
		since[d] = countSince(now[d], before[d])
	}
	return since
}

// WriteTable writes what has changed: a row for each limit, then one for what
// gates, connections, streams and peers in a service or protocol have refused. An
// error is that of w.
func (c *SnapshotDiff) WriteTable(w io.Writer) error {
	t := newTable(w, "Scope", "Limit Name", "Limit Value", "Before", "Now", "Change", "Refused")
	for i := range c.Limits {
		l := &c.Limits[i]
		limit := limitText(l.Limit)
		if l.Limit != l.LimitBefore {
			limit = limitText(l.LimitBefore) + " -> " + limit
		}
		t.row(printable(l.Scope), l.Name, limit, strconv.FormatInt(l.UseBefore, 10), strconv.FormatInt(l.Use, 10),
			fmt.Sprintf("%+d", l.Grown()), strconv.FormatUint(l.Refusals, 10))
	}
	for k := range numKinds {
		if k.inSnapshots() {
			continue
		}
		r := c.Refusals[k]
		for d, n := range r.dimCounts() {
			if n > 0 {
				t.row(k.String(), limitNames[d], "-", "-", "-", "-", strconv.FormatUint(n, 10))
			}
		}
	}
	return t.Flush()
}
