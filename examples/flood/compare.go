package main

// The comparison of both managers.

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-p2p/rcmgr"
)

// comparison returns a table with a column for each outcome.
func comparison(all []outcome) string {
	c := &comparing{all: all, table: table{{"", ""}}}
	for _, o := range all {
		c.table[0] = append(c.table[0], o.by.flag)
	}
	c.friend()
	c.group("connections")
	c.line("opened", func(o outcome) string { return fmt.Sprint(o.calls.granted[callConn]) })
	c.line("established", func(o outcome) string { return fmt.Sprint(o.calls.granted[callPeer]) })
	c.refusals()
	c.highest()
	c.group("CPU time")
	c.line("of victim, attackers and friend", func(o outcome) string {
		if o.cpu == 0 {
			return ""
		}
		return fmt.Sprintf("%.1f s", o.cpu.Seconds())
	})
	c.group("left at the end")
	c.line("counts above zero", func(o outcome) string { return fmt.Sprint(len(o.held)) })
	c.line("connections the host forgot", func(o outcome) string { return fmt.Sprint(o.forgotten) })
	return c.table.format(2)
}

// comparing is a comparison that is being made.
type comparing struct {
	all   []outcome
	table table
	title string // title of the group, until it has a line
}

func (c *comparing) group(title string) { c.title = title }

// row adds a line. cell returns the cell of outcome i, or an empty string.
func (c *comparing) row(what string, cell func(i int) string) {
	line := []string{c.title, what}
	for i := range c.all {
		line = append(line, cmp.Or(cell(i), nothing))
	}
	c.title = ""
	c.table = append(c.table, line)
}

func (c *comparing) line(what string, cell func(outcome) string) {
	c.row(what, func(i int) string { return cell(c.all[i]) })
}

func (c *comparing) friend() {
	for d := range numDeeds {
		c.group("friend's " + d.String())
		c.line("served", func(o outcome) string { return o.friend[d].rate() })
		c.line("p50", func(o outcome) string { return o.friend[d].quantile(0.5) })
		c.line("p99", func(o outcome) string { return o.friend[d].quantile(0.99) })
	}
}

// refusals adds a line for each kind of call that was ever refused.
func (c *comparing) refusals() {
	c.group("refused")
	for k := range numCalls {
		refused := func(o outcome) bool { return o.calls.refused[k] > 0 }
		if slices.ContainsFunc(c.all, refused) {
			c.line(k.String(), func(o outcome) string { return fmt.Sprint(o.calls.refused[k]) })
		}
	}
	for _, gate := range []rcmgr.Kind{rcmgr.KindSubnet, rcmgr.KindRate} {
		c.line(fmt.Sprintf("of these, by %v", gate), func(o outcome) string { return fmt.Sprint(o.atGate(gate)) })
	}
	c.line("of these, to the friend", func(o outcome) string { return fmt.Sprint(len(o.friendRefusals)) })
}

// atGate returns how many connections the gates of one kind refused.
func (o outcome) atGate(k rcmgr.Kind) (n uint64) {
	for gate, refused := range o.gates {
		if kind, _, _ := strings.Cut(gate, ":"); kind == k.String() {
			n += refused
		}
	}
	return n
}

// highest adds a line for each limit that any of the outcomes has.
func (c *comparing) highest() {
	rows := map[rowKey][]*row{} // one for each outcome, or nil
	var order []*row
	for i, o := range c.all {
		for _, r := range o.rows {
			l := r.key()
			if rows[l] == nil {
				rows[l] = make([]*row, len(c.all))
				order = append(order, r)
			}
			rows[l][i] = r
		}
	}
	c.group("highest use")
	for _, r := range sortRows(order) {
		of := rows[r.key()]
		c.row(fmt.Sprintf("%s %s, of %s", r.scope, resources[r.resource].name, amount(r.resource, r.limit)), func(i int) string {
			if of[i] == nil || of[i].onlyKept() {
				return ""
			}
			return amount(r.resource, of[i].highest)
		})
	}
}
