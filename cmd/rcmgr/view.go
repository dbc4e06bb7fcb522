package main

// A snapshot as lines of text that fit into a width: what "table" prints and "top" shows.

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"charm.land/lipgloss/v2"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// nearlyFull is the percentage at which the line of a limit stands out.
const nearlyFull = 90

// column is a column of a table.
type column struct {
	title string
	right bool // numbers
	// spare columns are left out where the width is too small, those with the highest number
	// first. 0 is never left out.
	spare int
}

// row is a line of a table. sortBy has a value for each column by which rows are ordered, the
// greatest first; NaN stands for the text.
type row struct {
	cells  []string
	sortBy []float64
	near   bool
}

// sheet is a table.
type sheet struct {
	title   string
	by      string // the order of the rows, for the heading
	left    string // how many of all rows there are, for the heading
	columns []column
	rows    []row
	empty   string // in place of rows
	name    int    // the smallest width of the first column; 0 is least
}

// heading returns the line above the table.
func (t *sheet) heading() string {
	if t.by == "" {
		return t.title + t.left
	}
	return t.title + ", " + t.by + t.left
}

// named returns the title of a column, as it reads without those beside it.
func (t *sheet) named(column int) string {
	switch title := t.columns[column].title; {
	case title == "": // the bar of a percentage
		return "%"
	case title == "out" && column > 0:
		return strings.TrimSuffix(t.columns[column-1].title, "in") + title
	default:
		return title
	}
}

// byText is the value of a cell in a column that is ordered by its text.
var byText = math.NaN()

// order orders the rows by a column, and keeps the order of equal rows.
func (t *sheet) order(column int, reverse bool) {
	slices.SortStableFunc(t.rows, func(a, b row) int {
		x, y := a.sortBy[column], b.sortBy[column]
		c := cmp.Compare(y, x)
		if math.IsNaN(x) || math.IsNaN(y) {
			c = strings.Compare(a.cells[column], b.cells[column])
		}
		if reverse {
			c = -c
		}
		return c
	})
}

// least is the smallest width of the first column, which has the names, where a table has no other.
const least = 14

// lines returns the heading and at most so many rows, from one of them on, in a width. A width or a
// number of rows that is 0 is no bound. The title of the column by which the rows are ordered is in
// capitals; ordered is the number of that column, or -1.
func (t *sheet) lines(width, from, most, ordered int) []string {
	if len(t.rows) == 0 {
		return []string{faint.Render(t.empty)}
	}
	widths := t.widths()
	shown := make([]int, len(t.columns))
	for i := range shown {
		shown[i] = i
	}
	total := func() (n int) {
		for _, i := range shown {
			n += widths[i] + 2
		}
		return n - 2
	}
	for width > 0 && total()-widths[0]+min(widths[0], cmp.Or(t.name, least)) > width {
		worst := slices.MaxFunc(shown, func(a, b int) int { return cmp.Compare(t.columns[a].spare, t.columns[b].spare) })
		if t.columns[worst].spare == 0 {
			break
		}
		shown = slices.DeleteFunc(shown, func(i int) bool { return i == worst })
	}
	for width > 0 && total() > width { // the widest column of names gives way
		widest := slices.MaxFunc(shown, func(a, b int) int {
			if t.columns[a].right != t.columns[b].right {
				return cmp.Compare(b2i(t.columns[b].right), b2i(t.columns[a].right))
			}
			return cmp.Compare(widths[a], widths[b])
		})
		if widths[widest] <= 1 {
			break
		}
		widths[widest]--
	}
	line := func(cells func(int) string) string {
		var parts []string
		for _, i := range shown {
			cell := shorten(cells(i), widths[i])
			pad := strings.Repeat(" ", max(0, widths[i]-lipgloss.Width(cell)))
			if t.columns[i].right {
				cell = pad + cell
			} else {
				cell += pad
			}
			parts = append(parts, cell)
		}
		text := strings.TrimRight(strings.Join(parts, "  "), " ")
		if width > 0 && lipgloss.Width(text) > width {
			text = shorten(text, width)
		}
		return text
	}
	all := []string{faint.Render(line(func(i int) string {
		if i == ordered {
			return strings.ToUpper(t.columns[i].title)
		}
		return t.columns[i].title
	}))}
	for i, r := range t.rows {
		if i < from {
			continue
		}
		if most > 0 && len(all) > most {
			break
		}
		text := line(func(i int) string { return r.cells[i] })
		if r.near {
			text = near.Render(text)
		}
		all = append(all, text)
	}
	return all
}

// widths returns the widths that the columns need.
func (t *sheet) widths() []int {
	widths := make([]int, len(t.columns))
	for i, c := range t.columns {
		widths[i] = lipgloss.Width(c.title)
		for _, r := range t.rows {
			widths[i] = max(widths[i], lipgloss.Width(r.cells[i]))
		}
	}
	return widths
}

// fits reports whether the columns that are never left out are whole in a width; 0 is no bound.
func (t *sheet) fits(width int) bool {
	needed := -2
	for i, n := range t.widths() {
		if t.columns[i].spare == 0 {
			needed += n + 2
		}
	}
	return width == 0 || needed <= width
}

// b2i returns 1 for true.
func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// shorten returns a text in a width. It leaves out the middle: most IDs of peers begin alike.
func shorten(s string, width int) string {
	if lipgloss.Width(s) <= width {
		return s
	}
	if width <= 1 {
		return "…"[:min(len("…"), 3*width)]
	}
	runes := []rune(s)
	head, tail := (width-1+1)/2, (width-1)/2
	if strings.HasPrefix(s, "peer:") && width > 12 {
		head, tail = 7, width-8 // peers differ at the end of their IDs
	}
	return fit(runes, head) + "…" + fitEnd(runes, tail)
}

// fit returns the first runes that fit into a width.
func fit(runes []rune, width int) string {
	for n := min(len(runes), width); n > 0; n-- {
		if s := string(runes[:n]); lipgloss.Width(s) <= width {
			return s
		}
	}
	return ""
}

// fitEnd returns the last runes that fit into a width.
func fitEnd(runes []rune, width int) string {
	for n := min(len(runes), width); n > 0; n-- {
		if s := string(runes[len(runes)-n:]); lipgloss.Width(s) <= width {
			return s
		}
	}
	return ""
}

// wrap returns a text in lines of a width, broken at spaces; 0 is no bound.
func wrap(s string, width int) []string {
	if width <= 0 {
		return []string{s}
	}
	return strings.Split(lipgloss.Wrap(s, width, " "), "\n")
}

// amount returns an amount of what a limit is on.
func amount(limit string, n int64) string {
	if limit == "Memory" {
		return text.Bytes(n)
	}
	return text.Count(n)
}

// checkedAmount returns an amount of a check. The check of the process's memory compares bytes, for
// every request.
func checkedAmount(k *rcmgr.LimitCheck, n int64) string {
	limit := k.Name
	if k.Kind == rcmgr.KindProcess {
		limit = "Memory"
	}
	if n < 0 {
		return "-" + amount(limit, -n)
	}
	return amount(limit, n)
}

// checkSheets returns a table of what was checked for an answer to "explain". Where the width is
// too small for all of it, the places of the configuration stand in a second table. If that is not
// enough, both tables call what the question has named by its kind.
func checkSheets(e *rcmgr.Explanation, width int) []*sheet {
	if t := checkSheet(e, true, true); t.fits(width) {
		return []*sheet{t}
	}
	all, named := []*sheet{checkSheet(e, true, false)}, true
	if !all[0].fits(width) {
		all[0], named = checkSheet(e, false, false), false
	}
	if more := raiseSheet(e, named); len(more.rows) > 0 {
		all = append(all, more)
	}
	return all
}

// scopeOf returns the scope of a check: its name, or its kind if the question has named it.
func scopeOf(k *rcmgr.LimitCheck, named bool) string {
	switch k.Kind {
	case rcmgr.KindPeer, rcmgr.KindProtocol, rcmgr.KindProtocolPeer, rcmgr.KindService, rcmgr.KindServicePeer:
		if !named {
			return k.Kind.String()
		}
	}
	return text.Printable(k.Scope)
}

// checkSheet returns a table of checks, with the names of scopes or their kinds, and with the places
// of the configuration or without.
func checkSheet(e *rcmgr.Explanation, named, places bool) *sheet {
	t := &sheet{empty: "Nothing is checked.", columns: []column{{"Step", false, 2}, {"Scope", false, 0}, {"Limit", false, 0}, {"Use", true, 0},
		{"Of", true, 0}, {"May Be", true, 3}, {"Room", true, 1}, {"Asked", true, 0}, {"Verdict", false, 0}}}
	for i := range e.Checks {
		k := &e.Checks[i]
		verdict := "fits"
		switch {
		case !k.Fits && k.Observed:
			verdict = "would refuse"
		case !k.Fits && places:
			verdict = "refuses, raise " + k.ConfigKey
		case !k.Fits:
			verdict = "refuses"
		}
		may, room := checkedAmount(k, k.Threshold), checkedAmount(k, k.Room)
		if k.Limit == math.MaxInt64 { // a part of what is unlimited is unlimited, too
			may = checkedAmount(k, k.Limit)
			room = may
		}
		t.rows = append(t.rows, row{near: !k.Fits, cells: []string{k.Step, scopeOf(k, named), k.Name, checkedAmount(k, k.Use),
			checkedAmount(k, k.Limit), may, room, checkedAmount(k, k.Asked), text.Printable(verdict)}})
	}
	return t
}

// raiseSheet returns a table of the limits that refuse beside the one that the answer names.
func raiseSheet(e *rcmgr.Explanation, named bool) *sheet {
	t := &sheet{title: "Also in the way", columns: []column{{"Scope", false, 0}, {"Raise", false, 0}}}
	for i := range e.Checks {
		k := &e.Checks[i]
		if k.Fits || k.Observed || e.By != nil && k.ConfigKey == e.By.ConfigKey {
			continue
		}
		t.rows = append(t.rows, row{near: true, cells: []string{scopeOf(k, named), text.Printable(k.ConfigKey)}})
	}
	return t
}

// victimSheet returns a table of what a host lets go to make room.
func victimSheet(list []rcmgr.RoomVictim) *sheet {
	t := &sheet{columns: []column{{"Scope", false, 0}, {"Peer", false, 0}, {"Short Of", false, 0}, {"Because Of", false, 0}, {"Group", false, 1}}}
	for _, v := range list {
		t.rows = append(t.rows, row{cells: []string{v.Name, v.Peer, text.Printable(v.Scope) + " " + v.Limit, v.Reason, text.Printable(v.Group)}})
	}
	return t
}

// changeSheet returns a table of what has changed between two snapshots: a row for each limit, then
// one for each kind of scope or gate that snapshots do not list and that has refused something.
func changeSheet(d *rcmgr.SnapshotDiff) *sheet {
	t := &sheet{empty: "Nothing has changed.", columns: []column{{"Scope", false, 0}, {"Limit", false, 0}, {"Of", true, 0}, {"Before", true, 1},
		{"Now", true, 0}, {"Change", true, 0}, {"Refused", true, 0}}}
	listed := make(map[rcmgr.Kind]bool)
	for _, k := range []rcmgr.Kind{rcmgr.KindSystem, rcmgr.KindTransient, rcmgr.KindAllowlistedSystem, rcmgr.KindAllowlistedTransient,
		rcmgr.KindService, rcmgr.KindProtocol, rcmgr.KindPeer} {
		listed[k] = true
	}
	for i := range d.Limits {
		l := &d.Limits[i]
		limit, grown := amount(l.Name, l.Limit), "+"+amount(l.Name, l.Grown())
		if l.Limit != l.LimitBefore {
			limit = amount(l.Name, l.LimitBefore) + " -> " + limit
		}
		if l.Grown() < 0 {
			grown = "-" + amount(l.Name, -l.Grown())
		}
		t.rows = append(t.rows, row{near: l.Refusals > 0, cells: []string{text.Printable(l.Scope), l.Name, limit,
			amount(l.Name, l.UseBefore), amount(l.Name, l.Use), grown, fmt.Sprint(l.Refusals)}})
	}
	for k := rcmgr.KindSystem; k <= rcmgr.KindProcess; k++ {
		for i, n := range perLimit(d.Refusals[k]) {
			if !listed[k] && n > 0 {
				t.rows = append(t.rows, row{cells: []string{k.String(), limitNames[i], "-", "-", "-", "-", fmt.Sprint(n)}})
			}
		}
	}
	return t
}

// bar returns a bar of ten parts for a percentage.
func bar(percent float64) string {
	n := int(min(max(percent, 0), 100) / 10)
	return strings.Repeat("█", n) + strings.Repeat("░", 10-n)
}

// limitSheet returns a table of limits, in their order.
func limitSheet(title string, uses rcmgr.LimitUses) *sheet {
	t := &sheet{title: title, empty: "Nothing is limited, and nothing is held.", name: 20, columns: []column{
		{"Scope", false, 0}, {"Limit", false, 0}, {"%", true, 0}, {"", false, 2}, {"Used", true, 0}, {"Of", true, 0},
		{"Peak", true, 1}, {"Refused", true, 0}}}
	for _, u := range uses {
		percent, graph, value := "", "", -1.0
		if p, ok := u.Percent(); ok {
			percent, graph, value = fmt.Sprintf("%.1f", p), bar(p), p
		} else if u.Limit == 0 && u.Use > 0 {
			value = math.MaxFloat64
		}
		t.rows = append(t.rows, row{
			cells: []string{text.Printable(u.Scope), u.Name, percent, graph, amount(u.Name, u.Use), amount(u.Name, u.Limit),
				amount(u.Name, u.Peak), fmt.Sprint(u.Refusals + u.WouldRefuse)},
			sortBy: []float64{byText, byText, value, value, float64(u.Use), float64(u.Limit), float64(u.Peak), float64(u.Refusals + u.WouldRefuse)},
			near:   value >= nearlyFull,
		})
	}
	return t
}

// holderSheet returns a table of what scopes of some kinds hold, the fullest first. all is how many
// there are, of which a snapshot may have some.
func holderSheet(title string, all int, s *rcmgr.Snapshot, kinds ...rcmgr.Kind) *sheet {
	t := &sheet{title: title, by: "the fullest first", left: left(s, all, kinds...), empty: "Nothing is held.", columns: []column{
		{"Scope", false, 0}, {"Fullest", false, 2}, {"%", true, 0}, {"Conns in", true, 0}, {"out", true, 1}, {"FD", true, 3},
		{"Streams in", true, 0}, {"out", true, 1}, {"Memory", true, 0}, {"Refused", true, 0}}}
	byScope := make(map[string]rcmgr.LimitUse)
	for _, u := range s.LimitUses() {
		p, ok := u.Percent()
		if was, known := byScope[u.Scope]; ok && slices.Contains(kinds, u.Kind) {
			if q, _ := was.Percent(); !known || p > q {
				byScope[u.Scope] = u
			}
		}
	}
	for i := range s.Scopes {
		sc := &s.Scopes[i]
		if !slices.Contains(kinds, sc.Kind) {
			continue
		}
		fullest, percent, value := "", "", -1.0
		if u, ok := byScope[sc.Name]; ok {
			value, _ = u.Percent()
			fullest, percent = u.Name, fmt.Sprintf("%.1f", value)
		}
		n := []int{sc.Use.NumConnsInbound, sc.Use.NumConnsOutbound, sc.Use.NumFD, sc.Use.NumStreamsInbound, sc.Use.NumStreamsOutbound}
		r := row{near: value >= nearlyFull, cells: []string{text.Printable(sc.Name), fullest, percent}, sortBy: []float64{byText, byText, value}}
		for _, n := range n {
			r.cells, r.sortBy = append(r.cells, fmt.Sprint(n)), append(r.sortBy, float64(n))
		}
		refused := sc.Refusals.Total() + sc.WouldRefuse.Total()
		r.cells = append(r.cells, text.Bytes(sc.Use.Memory), fmt.Sprint(refused))
		r.sortBy = append(r.sortBy, float64(sc.Use.Memory), float64(refused))
		t.rows = append(t.rows, r)
	}
	t.order(6, false) // equally full ones by their streams
	t.order(2, false)
	return t
}

// refusalSheet returns a table of what each kind of scope or gate has refused.
func refusalSheet(s *rcmgr.Snapshot) *sheet {
	t := &sheet{title: "Refusals", by: "by scope or gate", empty: "Nothing was refused.", columns: []column{
		{"Scope or gate", false, 0}, {"Limit", false, 0}, {"Refused", true, 0}, {"Would have", true, 1}}}
	for k := rcmgr.KindSystem; k <= rcmgr.KindProcess; k++ {
		refused, would := perLimit(s.Refusals[k]), perLimit(s.WouldRefuse[k])
		for i, limit := range limitNames {
			if refused[i]+would[i] > 0 {
				t.rows = append(t.rows, row{
					cells:  []string{k.String(), limit, fmt.Sprint(refused[i]), fmt.Sprint(would[i])},
					sortBy: []float64{byText, byText, float64(refused[i]), float64(would[i])},
				})
			}
		}
	}
	t.order(2, false)
	return t
}

var limitNames = []string{"Streams", "StreamsInbound", "StreamsOutbound", "Conns", "ConnsInbound", "ConnsOutbound", "FD", "Memory"}

func perLimit(r rcmgr.Refusals) []uint64 {
	return []uint64{r.Streams, r.StreamsInbound, r.StreamsOutbound, r.Conns, r.ConnsInbound, r.ConnsOutbound, r.FD, r.Memory}
}

// worthShowing returns the limits that have been used, and those of scopes that all peers share
// unless they are unlimited.
func worthShowing(s *rcmgr.Snapshot) rcmgr.LimitUses {
	return slices.DeleteFunc(s.LimitUses(), func(u rcmgr.LimitUse) bool {
		_, limited := u.Percent()
		return (!limited || u.Kind == rcmgr.KindPeer) && u.Use == 0 && u.Refusals+u.WouldRefuse == 0
	})
}

// head returns the lines above all tables: when, how many, and what stands in the way.
func head(s *rcmgr.Snapshot, rate float64, width int) []string {
	var refused uint64
	for _, r := range s.Refusals {
		refused += r.Total()
	}
	about := fmt.Sprintf("%s  up %s  %s  %s  %d refused", s.Taken.UTC().Format("2006-01-02 15:04:05 UTC"),
		text.Uptime(s.Uptime()), text.Plural(s.Peers, "peer"), text.Plural(s.Gates.Subnets, "subnet"), refused)
	if rate >= 0 {
		about += fmt.Sprintf(" (%.1f/s)", rate)
	}
	if s.Process.Limit > 0 {
		about += fmt.Sprintf("  %s of %s in the process", text.Bytes(s.Process.InUse), text.Bytes(s.Process.Limit))
	}
	lines := wrap(about, width)
	style := bold
	if s.Process.Refusing || s.Bottleneck() != nil {
		style = alarm
	}
	for _, l := range wrap(s.InTheWay(), width) {
		lines = append(lines, style.Render(l))
	}
	return lines
}

// sheets returns the tables of a snapshot, or of what was found in it by a text.
func sheets(s *rcmgr.Snapshot, find string) []*sheet {
	uses := worthShowing(s)
	fixed := slices.DeleteFunc(slices.Clone(uses), func(u rcmgr.LimitUse) bool { return u.Kind > rcmgr.KindAllowlistedTransient })
	slices.SortStableFunc(fixed, func(a, b rcmgr.LimitUse) int {
		p, _ := a.Percent()
		q, _ := b.Percent()
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(q, p))
	})
	others := slices.DeleteFunc(uses, func(u rcmgr.LimitUse) bool { return u.Kind <= rcmgr.KindAllowlistedTransient })
	all := []*sheet{
		limitSheet("System and transient", fixed),
		holderSheet("Peers", s.Peers, s, rcmgr.KindPeer),
		holderSheet("Services and protocols", s.Services+s.Protocols, s, rcmgr.KindService, rcmgr.KindProtocol),
		limitSheet("Limits of services, protocols and peers, the fullest first", others),
		refusalSheet(s),
	}
	if find != "" {
		for _, t := range all[1:4] {
			t.empty = fmt.Sprintf("Nothing has %q in its name.", find)
		}
	}
	all[3].order(2, false)
	all[2].without("Conns in", "out", "FD")
	return all
}

// without removes columns, of each title the first.
func (t *sheet) without(titles ...string) {
	for _, title := range titles {
		i := slices.IndexFunc(t.columns, func(c column) bool { return c.title == title })
		t.columns = slices.Delete(t.columns, i, i+1)
		for j := range t.rows {
			r := &t.rows[j]
			r.cells, r.sortBy = slices.Delete(r.cells, i, i+1), slices.Delete(r.sortBy, i, i+1)
		}
	}
}

// left says how many of all scopes of some kinds are in the snapshot, unless all are.
func left(s *rcmgr.Snapshot, all int, kinds ...rcmgr.Kind) string {
	shown := 0
	for i := range s.Scopes {
		if slices.Contains(kinds, s.Scopes[i].Kind) {
			shown++
		}
	}
	if shown >= all {
		return ""
	}
	return fmt.Sprintf(": %d of %d", shown, all)
}
