package rcmgr

// A snapshot as tables: one row for each limit of a scope, what each scope holds, and
// what was refused.

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Percent returns how much of the limit is used, in percent. ok is false if the limit is
// unlimited or 0.
func (u *LimitUse) Percent() (percent float64, ok bool) {
	if u.Limit == math.MaxInt64 || u.Limit == 0 {
		return 0, false
	}
	return fullness(u.Use, u.Limit), true
}

// fullness is Percent for sorting: see fullness.
func (u *LimitUse) fullness() float64 { return fullness(u.Use, u.Limit) }

func (u *LimitUse) percentText() string {
	if percent, ok := u.Percent(); ok {
		return fmt.Sprintf("%.1f%%", percent)
	}
	return "n/a"
}

func (s *ScopeState) limitUses() (all [numDims]LimitUse) {
	use, limit := amountsOf(s.Use), limitsOf(s.Limit)
	peak, refused, would := s.Peak.byDim(), s.Refusals.dimCounts(), s.WouldRefuse.dimCounts()
	for d := range all {
		u := LimitUse{Scope: s.Name, Kind: s.Kind, Name: limitNames[d], Limit: limit[d], Use: use[d],
			Peak: peak[d], Refusals: refused[d], WouldRefuse: would[d], Tight: slices.Contains(s.Tight, limitNames[d])}
		if isUnlimited(dim(d), u.Limit) {
			u.Limit = math.MaxInt64
		}
		all[d] = u
	}
	return all
}

// rateUses returns the rates as limits on tokens.
func (s *ScopeState) rateUses() (all []LimitUse) {
	for _, r := range s.Rates {
		all = append(all, LimitUse{Scope: s.Name, Kind: s.Kind, Name: "Rates." + r.Name, Limit: r.Burst, Use: r.Burst - r.Left})
	}
	return all
}

// LimitUses returns all limits of all scopes, in the order of Scopes.
func (s *Snapshot) LimitUses() LimitUses {
	return s.limitUsesWhere(make(LimitUses, 0, len(s.Scopes)*int(numDims)), func(LimitUse) bool { return true })
}

// limitUsesWhere appends the limits for which keep returns true, in the order of Scopes. A snapshot
// of very many peers has millions of limits, so nothing is kept of the others.
func (s *Snapshot) limitUsesWhere(to LimitUses, keep func(LimitUse) bool) LimitUses {
	for i := range s.Scopes {
		uses := s.Scopes[i].limitUses()
		for _, of := range [][]LimitUse{uses[:], s.Scopes[i].rateUses()} {
			for d := range of {
				if keep(of[d]) {
					to = append(to, of[d])
				}
			}
		}
	}
	return to
}

// dim returns the dimension of a limit, or of a rate.
func (u *LimitUse) dim() (d dim, isRate bool) {
	name, isRate := strings.CutPrefix(u.Name, "Rates.")
	return dim(slices.Index(limitNames[:], name)), isRate
}

// shownLimits is LimitUses without limits that nothing can count in, such as those on connections
// of a protocol, and without an allowlisted scope that nothing has ever used.
func (s *Snapshot) shownLimits() LimitUses {
	unused := make(map[string]bool)
	for i := range s.Scopes {
		sc := &s.Scopes[i]
		uses := sc.limitUses()
		unused[sc.Name] = sc.Kind.allowlisted() && !slices.ContainsFunc(uses[:], func(u LimitUse) bool { return u.Use != 0 || u.Peak != 0 || u.Refusals != 0 })
	}
	return s.limitUsesWhere(nil, func(u LimitUse) bool {
		d, isRate := u.dim()
		return !unused[u.Scope] && (isRate || u.Kind.canRunOutOf(d))
	})
}

// LimitsNear returns the limits of which at least the given percentage is used, the
// fullest first. A limit of 0 counts as full if its scope holds anything.
func (s *Snapshot) LimitsNear(percent float64) LimitUses {
	near := s.limitUsesWhere(nil, func(u LimitUse) bool { return u.fullness() >= percent })
	slices.SortStableFunc(near, func(a, b LimitUse) int { return cmp.Compare(b.fullness(), a.fullness()) })
	return near
}

// WriteTable writes the limits as a table in the form of Kubo's `ipfs swarm resources`.
// Memory has its unit. The percentage is "n/a" if the limit is unlimited or 0. WriteTable
// returns the error of w, if any.
func (limits LimitUses) WriteTable(w io.Writer) error {
	t := newTable(w, "Scope", "Limit Name", "Limit Value", "Limit Usage Amount", "Limit Usage Percent")
	for i := range limits {
		u := &limits[i]
		t.row(printable(u.Scope), u.Name, amountText(u.Name, u.Limit), amountText(u.Name, u.Use), u.percentText())
	}
	return t.Flush()
}

// fullness returns the fullness of the scope's fullest limit.
func (s *ScopeState) fullness() float64 {
	use, limit := amountsOf(s.Use), limitsOf(s.Limit)
	return fullest(&use, &limit)
}

// fullest returns the fullest limit, or nil if none of them has a percentage.
func (s *ScopeState) fullest() (most *LimitUse) {
	for _, u := range s.limitUses() {
		if _, ok := u.Percent(); ok && (most == nil || u.fullness() > most.fullness()) {
			most = &u
		}
	}
	return most
}

// holders returns services, protocols and peers, each class with the fullest first.
// Equally full scopes, such as those without limits, are ordered by what they hold.
func (s *Snapshot) holders() []ScopeState {
	type ranked struct {
		*ScopeState
		fullness float64
	}
	var all []ranked
	for i := range s.Scopes {
		if sc := &s.Scopes[i]; sc.Kind > KindAllowlistedTransient {
			all = append(all, ranked{sc, sc.fullness()})
		}
	}
	slices.SortStableFunc(all, func(a, b ranked) int {
		held := func(r ranked) int64 { return int64(r.Use.NumStreamsInbound) + int64(r.Use.NumStreamsOutbound) }
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(b.fullness, a.fullness),
			cmp.Compare(held(b), held(a)), cmp.Compare(b.Use.Memory, a.Use.Memory))
	})
	sorted := make([]ScopeState, len(all))
	for i, r := range all {
		sorted[i] = *r.ScopeState
	}
	return sorted
}

// holdersTitle returns a heading for holders that says how many scopes are left out.
func (s *Snapshot) holdersTitle() string {
	var shown [numKinds]int
	for i := range s.Scopes {
		shown[s.Scopes[i].Kind]++
	}
	var parts []string
	for _, all := range []struct {
		kind Kind
		n    int
		name string
	}{{KindService, s.Services, "services"}, {KindProtocol, s.Protocols, "protocols"}, {KindPeer, s.Peers, "peers"}} {
		if shown[all.kind] < all.n {
			parts = append(parts, fmt.Sprintf("%d of %d %s", shown[all.kind], all.n, all.name))
		}
	}
	title := "Who holds what, the fullest first"
	if len(parts) > 0 {
		title += ": " + strings.Join(parts, ", ")
	}
	return title
}

// WriteHolders writes a table of what services, protocols and peers hold, each class with
// the fullest first. Memory has its unit. WriteHolders returns the error of w, if any.
func (s *Snapshot) WriteHolders(w io.Writer) error {
	t := newTable(w, "Scope", "Conns In", "Conns Out", "FD", "Streams In", "Streams Out", "Memory", "Refused")
	for _, sc := range s.holders() {
		t.row(printable(sc.Name), strconv.Itoa(sc.Use.NumConnsInbound), strconv.Itoa(sc.Use.NumConnsOutbound),
			strconv.Itoa(sc.Use.NumFD), strconv.Itoa(sc.Use.NumStreamsInbound), strconv.Itoa(sc.Use.NumStreamsOutbound),
			amountText(limitNames[dimMemory], sc.Use.Memory), strconv.FormatUint(sc.Refusals.Total(), 10))
	}
	return t.Flush()
}

// WriteRefusals writes a table of what each class of scopes and gates has refused, and of
// what it would have refused if its limits were not only observed. WriteRefusals returns
// the error of w, if any.
func (s *Snapshot) WriteRefusals(w io.Writer) error {
	t := newTable(w, "Scope or Gate", "Limit Name", "Refused", "Would Have Refused")
	for k := range numKinds {
		refusals, would := s.Refusals[k], s.WouldRefuse[k]
		wouldBe := would.dimCounts()
		for d, n := range refusals.dimCounts() {
			if n+wouldBe[d] > 0 {
				t.row(k.String(), limitNames[d], strconv.FormatUint(n, 10), strconv.FormatUint(wouldBe[d], 10))
			}
		}
	}
	return t.Flush()
}

// kindRefusals is what the scopes of one kind have refused, and what they would have
// refused if their limits were enforced.
type kindRefusals struct {
	Kind         Kind
	Total, Would uint64
	What         []string
	WouldWhat    []string
}

// each returns the limits that have refused something, each with its count.
func (r *Refusals) each() (what []string) {
	for d, n := range r.dimCounts() {
		if n > 0 {
			what = append(what, fmt.Sprintf("%s %d", limitNames[d], n))
		}
	}
	return what
}

func (s *Snapshot) refusalsByKind() (all []kindRefusals) {
	for kind := range numKinds {
		r, would := s.Refusals[kind], s.WouldRefuse[kind]
		k := kindRefusals{Kind: kind, Total: r.Total(), Would: would.Total(), What: r.each(), WouldWhat: would.each()}
		if k.Total+k.Would > 0 {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b kindRefusals) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(b.Would, a.Would), cmp.Compare(a.Kind, b.Kind))
	})
	return all
}

// writeMemberPeaks writes the most that any one peer has held, in all, in one service and
// in one protocol.
func (s *Snapshot) writeMemberPeaks(w io.Writer) error {
	t := newTable(w, "Scope", "Limit Name", "Last Two Minutes", "Ever")
	for _, p := range s.memberPeakRows() {
		t.row(p.Kind.String(), p.Name, amountText(p.Name, p.Recent), amountText(p.Name, p.Ever))
	}
	return t.Flush()
}

// memberPeakRow is the most that any one member of a class has held in one dimension.
type memberPeakRow struct {
	Kind         Kind
	Name         string // the name of the limit in this dimension
	Recent, Ever int64
}

// memberPeakRows leaves out dimensions in which no member has held anything.
func (s *Snapshot) memberPeakRows() (rows []memberPeakRow) {
	for _, k := range memberKinds {
		p := s.MemberPeaks[k]
		recent := p.Recent.byDim()
		for d, ever := range p.Ever.byDim() {
			if ever > 0 {
				rows = append(rows, memberPeakRow{k, limitNames[d], recent[d], ever})
			}
		}
	}
	return rows
}

// observing reports whether some limits are only observed, or have been.
func (s *Snapshot) observing() bool { return len(s.Observed) > 0 || len(s.WouldRefuse) > 0 }

// observedText names the classes whose limits are only observed.
func (s *Snapshot) observedText() string {
	switch len(s.Observed) {
	case 0:
		return "none"
	case int(numKinds):
		return "all"
	}
	names := make([]string, len(s.Observed))
	for i, k := range s.Observed {
		names[i] = k.String()
	}
	return strings.Join(names, ", ")
}

// shareRow is a row of the table of what subnets hold.
type shareRow struct {
	Prefix  string
	Numbers []int64 // in the order of the table's columns
}

// rows returns what each of the largest subnets holds.
func (s *FairShareState) rows() (rows []shareRow) {
	for i := range s.Largest {
		sub := &s.Largest[i]
		rows = append(rows, shareRow{sub.Prefix.String(), []int64{sub.System.ConnsInbound, sub.System.FD,
			sub.System.StreamsInbound, sub.Transient.ConnsInbound, sub.Transient.StreamsInbound}})
	}
	return rows
}

func (s *FairShareState) writeLargest(w io.Writer) error {
	t := newTable(w, "Subnet", "Conns In", "FD", "Streams In", "Transient Conns In", "Transient Streams In")
	for _, r := range s.rows() {
		row := []string{r.Prefix}
		for _, n := range r.Numbers {
			row = append(row, strconv.FormatInt(n, 10))
		}
		t.row(row...)
	}
	return t.Flush()
}

// groupRows returns what each of the largest networks and owners holds.
func (s *FairShareState) groupRows() (rows []groupRow) {
	for i := range s.Groups {
		g := &s.Groups[i]
		name := g.Owner
		if name == "" {
			name = g.Prefix.String()
		}
		rows = append(rows, groupRow{name, []int64{g.System.ConnsInbound, g.System.StreamsInbound,
			g.Transient.ConnsInbound, g.Transient.StreamsInbound, g.Outbound.Conns, g.Outbound.Streams}})
	}
	return rows
}

// earmarkRow is a row of the table of earmarks.
type earmarkRow struct{ Name, Part, Peers, Protocols string }

// earmarkRows returns the earmarks as text.
func (s *Snapshot) earmarkRows() (rows []earmarkRow) {
	for _, e := range s.Earmarks {
		peers := strconv.Itoa(e.Peers)
		if e.Allowlisted {
			peers += " and the allowlist"
		}
		var protocols []string
		for _, p := range e.Protocols {
			protocols = append(protocols, string(p))
		}
		rows = append(rows, earmarkRow{printable(e.Name), fmt.Sprintf("%g %%", 100*e.Part), peers,
			cmp.Or(printable(strings.Join(protocols, " ")), "-")})
	}
	return rows
}

// groupRow is a row of the table of what networks and owners hold.
type groupRow struct {
	Name    string
	Numbers []int64 // in the order of the table's columns
}

func (s *FairShareState) writeGroups(w io.Writer) error {
	t := newTable(w, "Group", "Conns In", "Streams In", "New Conns", "New Streams", "Dials", "Opening")
	for _, r := range s.groupRows() {
		row := []string{printable(r.Name)}
		for _, n := range r.Numbers {
			row = append(row, strconv.FormatInt(n, 10))
		}
		t.row(row...)
	}
	return t.Flush()
}

// writeEarmarks writes the earmarks as a table.
func (s *Snapshot) writeEarmarks(w io.Writer) error {
	t := newTable(w, "Earmark", "Of Each Limit", "Peers", "Protocols")
	for _, r := range s.earmarkRows() {
		t.row(r.Name, r.Part, r.Peers, r.Protocols)
	}
	return t.Flush()
}

// writeNames writes the host names in the allowlist as a table.
func writeNames(w io.Writer, rows []nameRow) error {
	t := newTable(w, "Host Name", "Admits", "Answered", "Problem")
	for _, r := range rows {
		t.row(printable(r.Entry), printable(r.Admits), r.Answered, printable(r.Problem))
	}
	return t.Flush()
}

// writeOldest writes the oldest open scopes as a table.
func (s *Snapshot) writeOldest(w io.Writer) error {
	t := newTable(w, "Scope", "Class", "Direction", "Age", "Memory", "Peer", "Protocol", "Opened By")
	for i := range s.Leaks.Oldest {
		o := &s.Leaks.Oldest[i]
		t.row(o.Name, o.Class(), strings.ToLower(o.Direction.String()), s.age(o),
			amountText(limitNames[dimMemory], o.Memory),
			cmp.Or(o.Peer, "-"), cmp.Or(printable(o.Protocol), "-"), cmp.Or(o.Where(), "-"))
	}
	return t.Flush()
}

// age returns how old a scope was when the snapshot was taken.
func (s *Snapshot) age(o *OpenScope) string {
	return max(0, s.Taken.Sub(o.Opened)).Round(time.Second).String()
}
