package main

// What is told at the end: a table for each attack, as Markdown has them.

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// result is how an attack went on all managers.
type result struct {
	Attack   string
	Option   string
	About    string
	Outcomes []outcome
}

// print writes the table of an attack.
func (r *result) print(to io.Writer) {
	fmt.Fprintf(to, "\n%s: %s\n\n", r.Attack, r.About)
	out := tabwriter.NewWriter(to, 0, 0, 1, ' ', 0)
	defer out.Flush()
	line := func(what string, cell func(outcome) string) {
		fmt.Fprintf(out, "| %s\t", what)
		for _, o := range r.Outcomes {
			fmt.Fprintf(out, "| %s\t", cell(o))
		}
		fmt.Fprintln(out, "|")
	}
	line("", func(o outcome) string { return o.Manager })
	line("---", func(outcome) string { return "---" })
	for i, g := range r.Outcomes[0].Guests {
		r.requests(line, g.Name, func(o outcome) tally { return o.Guests[i].tally })
		line(g.Name+": refused", func(o outcome) string { return fmt.Sprint(o.Victim.Guests[i]) })
	}
	r.requests(line, "victim asks others", func(o outcome) tally { return o.Victim.Own })
	for _, why := range r.refusals() {
		line("crowd refused by "+why, func(o outcome) string { return fmt.Sprint(o.Victim.Crowd[why]) })
	}
	line("heap in use, most", func(o outcome) string { return mebibytes(o.Victim.HeapMost) })
	line("memory of the process, most", func(o outcome) string { return mebibytes(o.Victim.ProcessMost) })
	line("time above what it may use", func(o outcome) string { return fmt.Sprintf("%.0f %%", 100*o.Victim.Over) })
	line("held when all have gone", func(o outcome) string { return fmt.Sprint(len(o.Victim.Left)) })
}

// requests writes how the requests of a group went.
func (r *result) requests(line func(string, func(outcome) string), name string, of func(outcome) tally) {
	line(name+": served", func(o outcome) string {
		t := of(o)
		return fmt.Sprintf("%.0f %% of %d", 100*t.rate(), len(t.Took)+t.Failed)
	})
	line(name+": median, 95 %", func(o outcome) string {
		took := slices.Sorted(slices.Values(of(o).Took))
		return quantile(took, 0.5) + ", " + quantile(took, 0.95)
	})
}

// refusals lists what refused any of the crowd on any manager.
func (r *result) refusals() []string {
	all := map[string]int{}
	for _, o := range r.Outcomes {
		maps.Copy(all, o.Victim.Crowd)
	}
	return slices.Sorted(maps.Keys(all))
}

// rate is the part of requests that was served, 0 if there was none.
func (t tally) rate() float64 {
	return float64(len(t.Took)) / float64(max(len(t.Took)+t.Failed, 1))
}

// quantile gives the smallest that at least part q of all sorted ones do not exceed.
func quantile(sorted []time.Duration, q float64) string {
	if len(sorted) == 0 {
		return "–"
	}
	d := sorted[max(int(math.Ceil(q*float64(len(sorted)))), 1)-1]
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<19)>>20) }
