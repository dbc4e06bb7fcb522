package main

// The report: a table for each attack, in Markdown.

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// result has the outcomes of an attack on all managers.
type result struct {
	Attack   string
	Option   string
	About    string
	Outcomes []outcome
}

// print writes the table of an attack, without lines that are empty for all managers.
func (r *result) print(to io.Writer) {
	fmt.Fprintf(to, "\n%s: %s.\n\n", r.Attack, r.About)
	out := tabwriter.NewWriter(to, 0, 0, 1, ' ', 0)
	defer out.Flush()
	r.line(out, "", func(o outcome) string { return o.Manager })
	r.line(out, "---", func(outcome) string { return "---" })
	for i, g := range r.Outcomes[0].Guests {
		r.requests(out, g.Name, func(o outcome) tally { return o.Guests[i].tally })
		r.line(out, g.Name+": refused by the manager", func(o outcome) string { return count(o.Victim.Guests[i]) })
	}
	r.requests(out, "victim asks others", func(o outcome) tally { return o.Victim.Own })
	for _, why := range r.refusals() {
		r.line(out, "crowd refused by "+why, func(o outcome) string { return count(o.Victim.Crowd[why]) })
	}
	r.line(out, "heap in use, most", func(o outcome) string { return mebibytes(o.Victim.Memory.HeapMost) })
	r.line(out, "memory of the process, most", func(o outcome) string { return mebibytes(o.Victim.Memory.ProcessMost) })
	r.line(out, "time above what it may use", func(o outcome) string { return percent(o.Victim.Memory.Over, o.Victim.Memory.Looks) })
	r.line(out, "connections that the host forgot", func(o outcome) string { return count(o.Victim.Forgotten) })
	r.line(out, "scopes that hold anything when all have gone", func(o outcome) string { return fmt.Sprint(len(o.Victim.Left)) })
}

const nothing = "–"

// line writes a line, unless all its cells are nothing.
func (r *result) line(out io.Writer, what string, cell func(outcome) string) {
	text, any := "| "+what+"\t", false
	for _, o := range r.Outcomes {
		any = any || cell(o) != nothing
		text += "| " + cell(o) + "\t"
	}
	if any {
		fmt.Fprintln(out, text+"|")
	}
}

// requests writes how many requests of a group were served, and how long they took.
func (r *result) requests(out io.Writer, name string, of func(outcome) tally) {
	r.line(out, name+": served", func(o outcome) string {
		if t := of(o); t.asked() > 0 {
			return fmt.Sprintf("%.0f %% of %d", 100*t.rate(), t.asked())
		}
		return nothing
	})
	r.line(out, name+": median, 95 %", func(o outcome) string {
		took := slices.Sorted(slices.Values(of(o).Took))
		if len(took) == 0 {
			return nothing
		}
		return millis(quantile(took, 0.5)) + ", " + millis(quantile(took, 0.95))
	})
}

// refusals returns the descriptions of all refusals to the crowd on any manager.
func (r *result) refusals() []string {
	all := map[string]int{}
	for _, o := range r.Outcomes {
		maps.Copy(all, o.Victim.Crowd)
	}
	return slices.Sorted(maps.Keys(all))
}

// quantile returns the smallest duration that at least part q of all sorted ones do not
// exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[max(int(math.Ceil(q*float64(len(sorted)))), 1)-1]
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<19)>>20) }

func percent(part, of int) string {
	if part == 0 {
		return nothing
	}
	return fmt.Sprintf("%.0f %%", 100*float64(part)/float64(of))
}

func count(n int) string {
	if n == 0 {
		return nothing
	}
	return fmt.Sprint(n)
}
