package main

// The report: tables, and three verdicts.

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// outcome is the result of the attack on one manager: what the manager is judged by, and
// what else is shown of it.
type outcome struct {
	by              contender
	samples         int      // how often limits were checked
	rows            []*row   // one for each limit
	passed          []string // limits that were exceeded
	loot            loot
	friend          [numDeeds]tally
	friendRefusals  []string // by the manager
	friendUntracked bool     // refusals of its first packets could not be distinguished from others
	calls           callCounts
	gates           map[string]uint64 // refusals by gate
	gateLimits      map[string]string // what gates admit
	held            []string          // when all other hosts were closed
	forgotten       int               // connections that the host dropped without closing their scopes
	last            rcmgr.Snapshot
	cpu             time.Duration // 0 if unknown
}

// friendServed returns the number of deeds that succeeded.
func (o outcome) friendServed() (n int) {
	for _, t := range o.friend {
		n += len(t.took)
	}
	return n
}

// well reports whether everything is as it must be. A friend that was never served proves
// nothing, so that is a failure, too.
func (o outcome) well() bool {
	return len(o.passed)+len(o.friendRefusals)+len(o.held) == 0 && o.friendServed() > 0 && o.samples > 0
}

// exitCode returns 1 if anything is wrong with a manager that the show is judged by.
func exitCode(all []outcome) int {
	for _, o := range all {
		if o.by.judged && !o.well() {
			return 1
		}
	}
	return 0
}

// verdicts returns the verdicts, one line each.
func (o outcome) verdicts() []string {
	passed, refusals, remark := o.passed, o.friendRefusals, ""
	if o.samples == 0 {
		passed = []string{"never looked"}
	}
	if o.friendServed() == 0 {
		refusals = append([]string{"never served at all"}, refusals...)
	}
	if o.friendUntracked {
		remark = " (but for connections refused before it says who it is)"
	}
	looks := fmt.Sprintf(" (%s)", text.Plural(o.samples, "look"))
	if n := len(keptRows(o.rows)); n > 0 {
		looks = fmt.Sprintf(" (%s; limits lowered below what was held: %d)", text.Plural(o.samples, "look"), n)
	}
	return []string{
		o.verdict("limits exceeded", passed, "none") + looks,
		o.verdict("friend refused by "+o.by.title, refusals, "never") + remark,
		o.verdict("held when all hosts are closed", o.held, "nothing"),
	}
}

// verdict returns a line that names the first few faults, or says that there are none.
// For a manager that the show is not judged by, it only counts the faults.
func (o outcome) verdict(what string, faults []string, well string) string {
	const most = 3
	if !o.by.judged {
		return fmt.Sprintf("      %s: %d", what, len(faults))
	}
	if len(faults) == 0 {
		return "ok    " + what + ": " + well
	}
	text := strings.Join(faults[:min(most, len(faults))], "; ")
	if more := len(faults) - most; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return "FAIL  " + what + ": " + text
}

// report writes one outcome in full, or several side by side.
func report(out io.Writer, all []outcome) {
	if len(all) == 1 {
		all[0].report(out)
	} else {
		fmt.Fprintf(out, "\nthe same attack, one after the other\n%s", comparison(all))
		for _, o := range all {
			o.reportKept(out)
		}
	}
	for _, o := range all {
		fmt.Fprintln(out)
		if !o.by.judged {
			fmt.Fprintf(out, "for comparison, on %s\n", o.by.title)
		}
		fmt.Fprintln(out, strings.Join(o.verdicts(), "\n"))
	}
}

func (o outcome) report(out io.Writer) {
	fmt.Fprintf(out, "\nlimits of the victim\n%s", limitTable(o.rows, o.last.Refusals))
	o.reportKept(out)
	if o.last.Refusals != nil {
		fmt.Fprintf(out, "\nrefused, by kind of scope\n%s", refusalTable(o.last.Refusals))
	} else {
		fmt.Fprintf(out, "\nrefused, by what was asked\n%s", callTable(o.calls))
	}
	limits := o.gateLimits
	if o.last.Refusals == nil {
		limits = nil // nor does this manager say which of its gates refused
	}
	fmt.Fprintf(out, "\nconnections refused, by gate\n%s", gateTable(o.gates, limits))
	fmt.Fprintf(out, "\nthe friend\n%s", friendTable(o.friend))
	if o.last.CallerBugs > 0 {
		fmt.Fprintf(out, "\nhosts broke the contract of their scopes %s\n", text.Plural(o.last.CallerBugs, "time"))
	}
	if o.forgotten > 0 {
		fmt.Fprintf(out, "\nthe host dropped %s without closing %s; closed for it\n",
			text.Plural(o.forgotten, "connection"), text.Noun(o.forgotten, "its scope", "their scopes"))
	}
}

// reportKept shows what was held above limits when they were lowered, if anything was.
func (o outcome) reportKept(out io.Writer) {
	if kept := keptRows(o.rows); len(kept) > 0 {
		fmt.Fprintf(out, "\nheld already when the limit was lowered, which nobody has to give back\n%s", keptTable(kept))
	}
}

func keptRows(rows []*row) []*row {
	return slices.DeleteFunc(slices.Clone(rows), func(r *row) bool { return r.kept == 0 })
}

// keptTable returns a line for each limit that was lowered below what was held.
func keptTable(rows []*row) string {
	t := table{{"scope", "resource", "held", "limit"}}
	for _, r := range sortRows(rows) {
		t = append(t, []string{r.scope, resources[r.resource].name, amount(r.resource, r.kept), amount(r.resource, r.limit)})
	}
	return t.format(2)
}

// nothing is an empty cell.
const nothing = "–"

// limitTable returns a line for each limit: its use at the end of the attack, if the
// limit is in force then, and its highest use. Refusals are counted by kind of scope;
// where several scopes share a kind, only the tables of refusals have them. Refusals are
// nil if the manager does not count them.
func limitTable(rows []*row, refusals map[rcmgr.Kind]rcmgr.Refusals) string {
	head := []string{"scope", "resource", "now", "highest", "limit", "used", "refused"}
	if refusals == nil {
		head = head[:6]
	}
	t := table{head}
	above, unknown := "", false
	lastSeen := map[scopeResource]int{}
	for _, r := range rows {
		lastSeen[r.of()] = max(lastSeen[r.of()], r.seen)
	}
	for _, r := range sortRows(rows) {
		name := r.scope
		if name == above {
			name = ""
		}
		above = r.scope
		now, highest, used, refused := amount(r.resource, r.now), amount(r.resource, r.highest), fmt.Sprintf("%.0f %%", 100*r.share()), ""
		inForce := r.seen == lastSeen[r.of()]
		if !inForce {
			now = nothing
		}
		if r.onlyKept() {
			highest, used = nothing, nothing
		}
		if refusals != nil && inForce && r.kind != rcmgr.KindProtocol && r.kind != rcmgr.KindService && r.kind != rcmgr.KindSubnet {
			refused = fmt.Sprint(resources[r.resource].refused(refusals[r.kind]))
		}
		unknown = unknown || now == nothing
		line := []string{name, resources[r.resource].name, now, highest, amount(r.resource, r.limit), used, refused}
		t = append(t, line[:len(head)])
	}
	text := t.format(2)
	if unknown {
		text += "  " + nothing + ": the limit was not in force any more at the end\n"
	}
	return text
}

func sortRows(rows []*row) []*row {
	return slices.SortedStableFunc(slices.Values(rows), func(a, b *row) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.scope, b.scope), cmp.Compare(a.resource, b.resource))
	})
}

// refusalTable returns a line for each kind of scope that refused anything, and a column
// for each resource that was refused.
func refusalTable(refusals map[rcmgr.Kind]rcmgr.Refusals) string {
	var kinds []rcmgr.Kind
	var columns []resource
	for kind, r := range refusals {
		if r.Total() > 0 {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	for _, res := range resources {
		for _, kind := range kinds {
			if res.refused(refusals[kind]) > 0 {
				columns = append(columns, res)
				break
			}
		}
	}
	head := []string{"kind"}
	for _, res := range columns {
		head = append(head, res.name)
	}
	t := table{head}
	for _, kind := range kinds {
		line := []string{kind.String()}
		for _, res := range columns {
			line = append(line, fmt.Sprint(res.refused(refusals[kind])))
		}
		t = append(t, line)
	}
	return t.format(1)
}

// gateTable returns a line for each gate that is known or has refused.
func gateTable(refused map[string]uint64, limits map[string]string) string {
	all := maps.Clone(refused)
	for gate := range limits {
		all[gate] += 0
	}
	t := table{{"gate", "lets in", "refused"}}
	for _, gate := range slices.Sorted(maps.Keys(all)) {
		t = append(t, []string{gate, limits[gate], fmt.Sprint(all[gate])})
	}
	return t.format(2)
}

// callTable returns a line for each kind of call.
func callTable(calls callCounts) string {
	t := table{{"call", "granted", "refused"}}
	for c := range numCalls {
		t = append(t, []string{c.String(), fmt.Sprint(calls.granted[c]), fmt.Sprint(calls.refused[c])})
	}
	return t.format(1)
}

// friendTable returns a line for each kind of deed.
func friendTable(tallies [numDeeds]tally) string {
	t := table{{"does", "times", "served", "p50", "p99", "longest"}}
	for d, of := range tallies {
		t = append(t, []string{deed(d).String(), fmt.Sprint(len(of.took) + of.failed), of.rate(),
			of.quantile(0.5), of.quantile(0.99), of.quantile(1)})
	}
	text := t.format(1)
	for d, of := range tallies {
		if of.last != nil {
			text += fmt.Sprintf("  last %v that failed: %s\n", deed(d), oneLine(of.last.Error()))
		}
	}
	return text
}

// rate returns how often a deed succeeded, or an empty string if it was never tried.
func (t tally) rate() string {
	n := len(t.took) + t.failed
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f %%", 100*float64(len(t.took))/float64(n))
}

// quantile returns a quantile of the times, or an empty string if there are none.
func (t tally) quantile(q float64) string {
	if len(t.took) == 0 {
		return ""
	}
	return millis(quantile(slices.Sorted(slices.Values(t.took)), q))
}

// quantile returns the smallest value that at least part q of all sorted ones do not
// exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	i := int(math.Ceil(q * float64(len(sorted))))
	return sorted[max(i, 1)-1]
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// oneLine joins the lines of an error, because libp2p lists failed dials one below the
// other.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// amount returns an amount of a resource as text: memory in bytes, the others as counts.
func amount(resource int, n int64) string {
	switch {
	case resource != memoryResource:
		return fmt.Sprint(n)
	case n >= mib:
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	case n >= kib:
		return fmt.Sprintf("%.1f KiB", float64(n)/kib)
	}
	return fmt.Sprintf("%d B", n)
}

// table is lines of cells. The first line is the head.
type table [][]string

// screenColumns is the number of columns of a terminal that a table should fit.
const screenColumns = 80

// format aligns the first few columns left, and the others right. A table that is too wide
// for a screen has narrower gaps.
func (t table) format(left int) string {
	width := make([]int, len(t[0]))
	for _, line := range t {
		for i, cell := range line {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	gap, total := "  ", 0
	for _, w := range width {
		total += len(gap) + w
	}
	if total > screenColumns {
		gap = " "
	}
	var b strings.Builder
	for _, line := range t {
		var text strings.Builder
		for i, cell := range line {
			pad := strings.Repeat(" ", width[i]-len([]rune(cell)))
			if i < left {
				cell += pad
			} else {
				cell = pad + cell
			}
			text.WriteString(gap + cell)
		}
		b.WriteString(strings.TrimRight(text.String(), " ") + "\n")
	}
	return b.String()
}
