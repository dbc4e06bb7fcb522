package main

// What attackers hold against no limits, and against those of a file.

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/weir-p2p/rcmgr"
)

// mostCuts bounds how often -cut repeats the attack.
const mostCuts = 100

// loots are the resources that attackers take.
var loots = [...]int{0, 3, 4, len(resources) - 1} // conns in, files, streams in, memory

// loot is what attackers held, over all looks.
type loot struct {
	looks int
	sum   [len(loots)]float64
	most  [len(loots)]int64
}

// add adds what is held in a snapshot: all but what belongs to the friends.
func (l *loot) add(s rcmgr.Snapshot, friends []string) {
	var held [len(loots)]int64
	for i := range s.Scopes {
		sc := &s.Scopes[i]
		sign := int64(0)
		switch {
		case sc.Kind == rcmgr.KindSystem || sc.Kind == rcmgr.KindAllowlistedSystem:
			sign = 1
		case sc.Kind == rcmgr.KindPeer && slices.Contains(friends, sc.Name):
			sign = -1
		}
		for i, r := range loots {
			held[i] += sign * resources[r].use(sc.Use)
		}
	}
	l.looks++
	for i, n := range held {
		l.sum[i] += float64(n)
		l.most[i] = max(l.most[i], n)
	}
}

// mean returns what was held on average.
func (l *loot) mean(i int) float64 { return l.sum[i] / float64(max(1, l.looks)) }

// cutShow attacks without limits and with those of the file in turn. It returns the exit code. That
// the file refuses the friend something is no fault of the manager.
func cutShow(ctx context.Context, s settings, where places, out *screen) (int, error) {
	var free, held []outcome
	file := s.limits
	for range s.cut {
		for _, one := range []struct {
			limits rcmgr.ConcreteLimitConfig
			to     *[]outcome
			what   string
		}{{rcmgr.InfiniteLimits, &free, "without limits"}, {file, &held, "with " + s.limitsFile}} {
			fmt.Fprintf(out, "\n%s\n", one.what)
			runtime.GC()
			s.limits = one.limits
			result, err := stand(ctx, s, contenders[0], where, out)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", one.what, err)
			}
			*one.to = append(*one.to, result)
			if ctx.Err() != nil {
				return 0, errors.New("interrupted")
			}
		}
	}
	fmt.Fprintf(out, "\nwhat attackers held\n%s", cutTable(free, held))
	fmt.Fprintf(out, "\nthe friend, in the last run with the file\n%s", friendTable(held[len(held)-1].friend))
	fmt.Fprintln(out)
	passed, left := 0, 0
	for _, o := range held {
		passed, left = passed+len(o.passed), left+len(o.held)
	}
	fmt.Fprintf(out, "limits exceeded: %d; counts above zero when all hosts are closed: %d\n", passed, left)
	if passed+left > 0 {
		return 1, nil
	}
	return 0, nil
}

// cutTable returns a line for each resource and each pair of attacks.
func cutTable(free, held []outcome) string {
	t := table{{"", "", "on average", "", "", "at most", "", ""}, {"resource", "run", "free", "file", "cut", "free", "file", "cut"}}
	for i, r := range loots {
		name := resources[r].name
		for n := range free {
			a, b := &free[n].loot, &held[n].loot
			t = append(t, []string{name, fmt.Sprint(n + 1),
				amount(r, int64(a.mean(i)+0.5)), amount(r, int64(b.mean(i)+0.5)), cutText(a.mean(i), b.mean(i)),
				amount(r, a.most[i]), amount(r, b.most[i]), cutText(float64(a.most[i]), float64(b.most[i]))})
			name = ""
		}
	}
	return t.format(1)
}

// cutText returns the part of free that is not held any more.
func cutText(free, held float64) string {
	if free <= 0 {
		return nothing
	}
	return fmt.Sprintf("%.1f %%", 100*(1-held/free))
}
