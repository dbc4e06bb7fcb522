package main

// What is told at the end: tables, and three verdicts.

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr"
)

// outcome is what the show is judged by.
type outcome struct {
	samples         int      // looks at the limits
	passed          []string // limits that were passed
	friendServed    int      // deeds of the friend that went well
	friendRefusals  []string // by our manager
	friendUntracked bool     // refusals of its first packets could not be told from others'
	held            []string // when all hosts were closed
	forgotten       int      // connections that the host dropped without closing their scopes
}

// exitCode is 1 when anything is as it must not be. A friend who was never
// served at all proves nothing, so that is a failure too.
func (o outcome) exitCode() int {
	if len(o.passed)+len(o.friendRefusals)+len(o.held) > 0 || o.friendServed == 0 || o.samples == 0 {
		return 1
	}
	return 0
}

// verdicts are one line each.
func (o outcome) verdicts() []string {
	passed, refusals, remark := o.passed, o.friendRefusals, ""
	if o.samples == 0 {
		passed = []string{"never looked"}
	}
	if o.friendServed == 0 {
		refusals = append([]string{"never served at all"}, refusals...)
	}
	if o.friendUntracked {
		remark = " (but for connections refused before it says who it is)"
	}
	return []string{
		verdict("limits passed", passed, "none") + fmt.Sprintf(" (%d looks)", o.samples),
		verdict("friend refused by our manager", refusals, "never") + remark,
		verdict("held when all hosts are closed", o.held, "nothing"),
	}
}

// verdict names the first few faults, or says that all is well.
func verdict(what string, faults []string, well string) string {
	const most = 3
	if len(faults) == 0 {
		return "ok    " + what + ": " + well
	}
	text := strings.Join(faults[:min(most, len(faults))], "; ")
	if more := len(faults) - most; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return "FAIL  " + what + ": " + text
}

func report(out io.Writer, w *watch, last rcmgr.Snapshot, f *friend, o outcome) {
	fmt.Fprintf(out, "\nlimits of the victim\n%s", limitTable(w.order, last.Refusals))
	fmt.Fprintf(out, "\nrefused, by kind of scope\n%s", refusalTable(last.Refusals))
	fmt.Fprintf(out, "\nthe friend\n%s", friendTable(f.tallies()))
	if last.CallerBugs > 0 {
		fmt.Fprintf(out, "\nhosts broke the contract of their scopes %d times\n", last.CallerBugs)
	}
	if o.forgotten > 0 {
		fmt.Fprintf(out, "\nthe host dropped %d connections without closing their scopes; closed for it\n", o.forgotten)
	}
	fmt.Fprintf(out, "\n%s\n", strings.Join(o.verdicts(), "\n"))
}

// limitTable has a line for each limit: what is used at the end of the attack
// and what was at its highest. Refusals are counted by kind of scope; where
// several scopes share a kind, the table of refusals alone has them.
func limitTable(rows []*row, refusals map[rcmgr.Kind]rcmgr.Refusals) string {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b *row) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.scope, b.scope), cmp.Compare(a.resource, b.resource))
	})
	t := table{{"scope", "resource", "now", "highest", "limit", "used", "refused"}}
	above := ""
	for _, r := range rows {
		name := r.scope
		if name == above {
			name = ""
		}
		above = r.scope
		refused := ""
		if r.kind != rcmgr.KindProtocol && r.kind != rcmgr.KindService {
			refused = fmt.Sprint(resources[r.resource].refused(refusals[r.kind]))
		}
		t = append(t, []string{name, resources[r.resource].name, amount(r.resource, r.now), amount(r.resource, r.highest),
			amount(r.resource, r.limit), fmt.Sprintf("%.0f %%", 100*r.share()), refused})
	}
	return t.format(2)
}

// refusalTable has a line for each kind of scope that refused anything, and a
// column for each resource that anything was refused of.
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

// friendTable has a line for each thing the friend does.
func friendTable(tallies [numDeeds]tally) string {
	t := table{{"does", "times", "served", "p50", "p99", "longest"}}
	for d, of := range tallies {
		slices.Sort(of.took)
		n := len(of.took) + of.failed
		line := []string{deed(d).String(), fmt.Sprint(n), "", "", "", ""}
		if n > 0 {
			line[2] = fmt.Sprintf("%.2f %%", 100*float64(len(of.took))/float64(n))
		}
		if len(of.took) > 0 {
			line[3], line[4], line[5] = millis(quantile(of.took, 0.5)), millis(quantile(of.took, 0.99)), millis(quantile(of.took, 1))
		}
		t = append(t, line)
	}
	text := t.format(1)
	for d, of := range tallies {
		if of.last != nil {
			text += fmt.Sprintf("  last %v that failed: %s\n", deed(d), oneLine(of.last.Error()))
		}
	}
	return text
}

// quantile gives the smallest value that at least part q of all sorted ones
// do not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	i := int(math.Ceil(q * float64(len(sorted))))
	return sorted[max(i, 1)-1]
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// oneLine joins the lines of an error: libp2p lists failed dials below each
// other.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// amount writes an amount of a resource: memory in bytes, the others counted.
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

// table is lines of cells, the first of which is the head.
type table [][]string

// format aligns the first few columns left, the others right.
func (t table) format(left int) string {
	width := make([]int, len(t[0]))
	for _, line := range t {
		for i, cell := range line {
			width[i] = max(width[i], len([]rune(cell)))
		}
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
			text.WriteString("  " + cell)
		}
		b.WriteString(strings.TrimRight(text.String(), " ") + "\n")
	}
	return b.String()
}
