package rcmgr

// The difference of two snapshots: what has grown, and what was refused in between.

import (
	"cmp"
	"io"
	"slices"
	"strconv"
	"time"
)

// LimitChange is a limit whose use or value has changed between two snapshots, or that
// has refused something in between.
type LimitChange struct {
	// LimitUse is the limit in the later snapshot, but its Refusals and WouldRefuse
	// count only what happened between the two.
	LimitUse
	UseBefore   int64
	LimitBefore int64
}

// Grown returns how much more is held than before. It is negative if less is held.
func (c *LimitChange) Grown() int64 { return c.Use - c.UseBefore }

// SnapshotDiff is what has changed between two snapshots of one manager. Its counts are
// those between From and To.
type SnapshotDiff struct {
	From, To time.Time
	// Limits lists the limits that have changed. Those that refused the most come first,
	// then those whose use has grown by the largest part of the limit.
	Limits []LimitChange
	// Refusals counts, for each kind of scope and gate, the requests that it refused, and
	// WouldRefuse those that it admitted because its limit is only observed.
	Refusals, WouldRefuse    map[Kind]Refusals
	CallerBugs, LateReleases uint64
}

// Since returns what has changed since an earlier snapshot. A scope that is missing from
// one of the snapshots counts as having held nothing then. Two results of SnapshotTop
// may therefore show changes of a peer only because it was not among the fullest in one
// of them. If a count has fallen, the scope or the manager was replaced in between, and
// all of the later count is taken as new.
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

// add adds the changes of one scope.
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

// grownText returns by how much a use has grown, with its sign.
func grownText(limit string, n int64) string {
	if n < 0 {
		return "-" + amountText(limit, -n)
	}
	return "+" + amountText(limit, n)
}

// WriteTable writes the changes as a table: a row for each limit, then a row for each
// kind that is not in Scopes and has refused something, which are the gates, connections,
// streams, and peers' parts of services and protocols. It returns the error of w, if any.
func (c *SnapshotDiff) WriteTable(w io.Writer) error {
	t := newTable(w, "Scope", "Limit Name", "Limit Value", "Before", "Now", "Change", "Refused")
	for i := range c.Limits {
		l := &c.Limits[i]
		limit := amountText(l.Name, l.Limit)
		if l.Limit != l.LimitBefore {
			limit = amountText(l.Name, l.LimitBefore) + " -> " + limit
		}
		t.row(printable(l.Scope), l.Name, limit,
			amountText(l.Name, l.UseBefore), amountText(l.Name, l.Use),
			grownText(l.Name, l.Grown()), strconv.FormatUint(l.Refusals, 10))
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
