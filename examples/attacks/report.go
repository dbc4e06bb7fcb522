package main

// The report: tables for each attack, in Markdown.

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
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

// print writes the tables of an attack: one for each group of guests, with a row for each manager,
// what the crowd was refused, and the victim itself.
func (r *result) print(to io.Writer) {
	fmt.Fprintf(to, "\n%s: %s.\nThe option is %s, room is WithRoom.\n", r.Attack, r.About, r.Option)
	for i, g := range r.Outcomes[0].Guests {
		r.managers(to, g.Name, []column{
			{"served", func(o outcome) string { return served(o.Guests[i].tally) }},
			{"median", func(o outcome) string { return quantileOf(o.Guests[i].Took, 0.5) }},
			{"95 %", func(o outcome) string { return quantileOf(o.Guests[i].Took, 0.95) }},
			{"refused", func(o outcome) string { return count(o.Victim.Guests[i]) }},
		})
	}
	r.managers(to, "victim asks others", []column{
		{"served", func(o outcome) string { return served(o.Victim.Own) }},
		{"median", func(o outcome) string { return quantileOf(o.Victim.Own.Took, 0.5) }},
		{"95 %", func(o outcome) string { return quantileOf(o.Victim.Own.Took, 0.95) }},
	})
	if r.Attack == rate.name {
		r.managers(to, "crowd's streams", streamColumns())
	}
	r.crowd(to)
	r.managers(to, "victim", []column{
		{"heap", func(o outcome) string { return mebibytes(o.Victim.Memory.HeapMost) }},
		{"process", func(o outcome) string { return mebibytes(o.Victim.Memory.ProcessMost) }},
		{"above", func(o outcome) string { return percent(o.Victim.Memory.Over, o.Victim.Memory.Looks) }},
		{"forgotten", func(o outcome) string { return count(o.Victim.Forgotten) }},
		{"left", func(o outcome) string { return count(len(o.Victim.Left)) }},
	})
	fmt.Fprint(to, `
Heap and process are the most memory that was in use; above is the time above
what the victim may use; forgotten are connections that the host did not close;
left are the scopes that hold anything when all have gone.
`)
}

const nothing = "–"

// column is a column of a table with a row for each manager.
type column struct {
	head string
	cell func(outcome) string
}

// managers writes a table with a row for each manager, unless all its cells are nothing.
func (r *result) managers(to io.Writer, name string, columns []column) {
	rows, any := [][]string{{name}}, false
	for _, c := range columns {
		rows[0] = append(rows[0], c.head)
	}
	for _, o := range r.Outcomes {
		row := []string{r.short(o.Manager)}
		for _, c := range columns {
			row = append(row, c.cell(o))
			any = any || c.cell(o) != nothing
		}
		rows = append(rows, row)
	}
	if any {
		table(to, rows)
	}
}

// short returns the name of a manager without those of options.
func (r *result) short(manager string) string {
	return strings.NewReplacer(r.Option, "option", "WithRoom", "room").Replace(manager)
}

// crowd writes what the crowd was refused on each manager, if anything.
func (r *result) crowd(to io.Writer) {
	rows := [][]string{{"crowd refused by"}}
	for _, o := range r.Outcomes {
		name := r.short(o.Manager)
		rows[0] = append(rows[0], name[strings.LastIndexAny(name, ", ")+1:])
	}
	for _, why := range r.refusals() {
		row := []string{strings.Replace(why, "inbound connection", "inbound conn", 1)}
		for _, o := range r.Outcomes {
			row = append(row, count(o.Victim.Crowd[why]))
		}
		rows = append(rows, row)
	}
	if len(rows) > 1 {
		table(to, rows)
	}
}

// table writes rows of cells; the first row is the head.
func table(to io.Writer, rows [][]string) {
	fmt.Fprintln(to)
	out := tabwriter.NewWriter(to, 0, 0, 1, ' ', 0)
	for i, row := range rows {
		fmt.Fprintf(out, "| %s\t|\n", strings.Join(row, "\t| "))
		if i == 0 {
			fmt.Fprintf(out, "|---%s\t|\n", strings.Repeat("\t|---", len(row)-1))
		}
	}
	out.Flush()
}

// served returns how many requests were served.
func served(t tally) string {
	if t.asked() == 0 {
		return nothing
	}
	return fmt.Sprintf("%.0f %% of %d", 100*t.rate(), t.asked())
}

// quantileOf returns a quantile of some times.
func quantileOf(times []time.Duration, q float64) string {
	if len(times) == 0 {
		return nothing
	}
	return millis(quantile(slices.Sorted(slices.Values(times)), q))
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
