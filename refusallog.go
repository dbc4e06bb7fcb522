package rcmgr

// The log of refusals: one line for each kind of scope and limit that has refused
// something in the last seconds, in the form that Kubo's users know. The log misses
// no refusal, because it is made from the counts that the stripes keep. The stripes
// also keep, for each kind and limit, the numbers of the last refusal, and the one name
// that stands out among the refused (majority). Remote peers can therefore neither make a
// map grow nor cause lines of their own.

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr/internal/text"
)

// logRefusals logs what was refused since the last call.
func (m *Manager) logRefusals() {
	var refused, would unloggedRefusals
	for i := range m.stripes {
		m.stripes[i].giveRemarks(&refused, &would)
	}
	m.gate().giveRemarks(&refused, &would)
	lines := refusalLines(nil, "Protected", &refused, &m.refusalLog.refused)
	lines = refusalLines(lines, "Would have protected", &would, &m.refusalLog.would)
	m.findLargest(lines)
	for i := range lines {
		m.logLine(&lines[i])
	}
}

// refusalLine is what a line of the log is made from.
type refusalLine struct {
	begin string
	kind  Kind
	d     dim
	times uint64
	*remark
	largest largest
}

// refusalLines adds a line for each kind and limit that has refused something since it was logged.
func refusalLines(lines []refusalLine, begin string, now *unloggedRefusals, already **[numKinds]dimCounts) []refusalLine {
	if *already == nil {
		if now.counts == ([numKinds]dimCounts{}) {
			return lines
		}
		*already = new([numKinds]dimCounts)
	}
	logged := *already
	for k := range now.counts {
		for d, n := range now.counts[k] {
			if times := n - logged[k][d]; times > 0 {
				lines = append(lines, refusalLine{begin: begin, kind: Kind(k), d: dim(d), times: times, remark: &now.said[k][d]})
			}
		}
	}
	*logged = now.counts
	return lines
}

// findLargest finds the peer or subnet that holds most of each limit that refused. Of services
// and protocols, it takes the one that refused most.
func (m *Manager) findLargest(lines []refusalLine) {
	var of []limitOf
	var which []int
	for i := range lines {
		if l := lines[i].limit(); l.hasLargest() {
			of, which = append(of, l), append(which, i)
		}
	}
	for j, found := range m.largestHolders(of) {
		lines[which[j]].largest = found
	}
}

func (l *refusalLine) limit() limitOf {
	of := limitOf{kind: l.kind, d: l.d}
	if worst, named := l.worstName(); named && worst.kind == l.kind {
		of.name = worst.text
	}
	return of
}

// worstName returns the name that is logged, which certainly had at least a tenth of the refusals.
func (l *refusalLine) worstName() (worst scopeName, named bool) {
	worst, named = l.worst.Name, l.worst.Votes > 0 && l.worst.Votes >= l.times/10
	if worst.kind == KindPeer && worst.peer == "" {
		named = false // the connections had no known peer
	}
	return worst, named
}

// giveRemarks adds the stripe's counts of refusals, and hands over the remarks that it
// has kept for the log. It takes the stripe's lock.
func (st *stripe) giveRemarks(refused, would *unloggedRefusals) {
	st.lock()
	defer st.unlock()
	if st.awakened == nil {
		return
	}
	if st.refusalCounts != nil {
		refused.take(&st.refusals, &st.remarks)
	}
	if o := st.observed; o != nil {
		would.take(&o.counts, &o.remarks)
	}
}

func (m *Manager) logLine(l *refusalLine) {
	k, d, times, r := l.kind, l.d, l.times, l.remark
	worst, named := l.worstName()
	refuser := scopeName{kind: k}
	if named && r.worst.Votes == times && (k == KindService || k == KindProtocol) {
		refuser = worst // it caused all of the refusals
	}
	e := LimitError{why: refusal{scope: &refuser, d: d, cause: r.cause}}
	var attrs []slog.Attr
	if k != KindRate {
		attrs = append(attrs,
			slog.Any("current", amountFor(k, d, r.current)), slog.Any("limit", amountFor(k, d, r.limit)))
	}
	if names := r.causeNames(); names != CauseLimit.String() {
		attrs = append(attrs, slog.String("cause", names))
	}
	if l.largest.isWorthNaming(r.current) {
		attrs = append(attrs, slog.String("holder", printable(l.largest.name.String())),
			slog.Any("holds", amountFor(k, d, l.largest.held)))
	}
	if named {
		attrs = append(attrs, slog.String("worst", printable(worst.String())), slog.Uint64("worst_times", r.worst.Votes))
	} else {
		worst = scopeName{kind: k}
	}
	key := limitKey(m.limits.Load(), m.gate(), k, d, &worst)
	if e.why.byRate() {
		key = rateKey(key, d)
	}
	attrs = append(attrs, slog.String("raise", key))
	msg := fmt.Sprintf("%s from exceeding resource limits %s: %q", l.begin, text.Plural(times, "time"), classOf(&refuser)+": "+e.what())
	if m.writeRefusals == nil {
		log.LogAttrs(context.Background(), slog.LevelError, msg, attrs...)
		return
	}
	m.writeRefusals(msg, attrs)
}

// causeNames returns the causes of all refusals, that of the numbers first.
func (r *remark) causeNames() string {
	names := []string{r.cause.String()}
	for c := CauseLimit; r.causes>>c != 0; c++ {
		if c != r.cause && r.causes>>c&1 != 0 {
			names = append(names, c.String())
		}
	}
	return strings.Join(names, ", ")
}

// classOf returns a scope's name, or that of its kind if it has none of its own.
func classOf(n *scopeName) string {
	if n.text == "" {
		return n.kind.String()
	}
	return n.String()
}

// refusedByNow returns how many requests have been refused up to now, or would have been. It
// adds up one stripe after another.
func (m *Manager) refusedByNow() RefusalsAt {
	var counted engineCounts
	var would [numKinds]dimCounts
	for i := range m.stripes {
		st := &m.stripes[i]
		st.lock()
		st.addCounts(&counted)
		st.addWouldRefuse(&would)
		st.unlock()
	}
	m.gate().addRefusals(&counted.refusals, &would)
	now := RefusalsAt{At: time.Now()}
	for k := range counted.refusals {
		now.Refusals += counted.refusals[k].refusals().Total()
		now.WouldRefuse += would[k].refusals().Total()
	}
	return now
}
