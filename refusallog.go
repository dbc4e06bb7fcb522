package rcmgr

// The log of refusals: what was refused in the last seconds, rolled up into one
// line for each kind of scope and limit, as Kubo's users know it. It is made from
// the counts that the stripes keep, so it misses nothing. What a line says
// besides, the last numbers and who stands out among the refused, is kept in the
// stripes, one name for each kind and limit: strangers can fill no map, and cause
// no line of their own.
//
// Nothing here runs unless something has been refused, but for one look at the
// counts in an interval.

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// logRefusals writes what was refused since the last time.
func (m *Manager) logRefusals() {
	var refused, would unloggedRefusals
	for i := range m.stripes {
		m.stripes[i].giveRemarks(&refused, &would)
	}
	m.gate().giveRemarks(&refused, &would)
	m.logLines("Protected", &refused, &m.refusalLog.refused)
	m.logLines("Would have protected", &would, &m.refusalLog.would)
}

func (m *Manager) logLines(begin string, now *unloggedRefusals, logged *[numKinds]dimCounts) {
	for k := range now.counts {
		for d, n := range now.counts[k] {
			if times := n - logged[k][d]; times > 0 {
				m.logLine(begin, Kind(k), dim(d), times, &now.said[k][d])
			}
		}
	}
	*logged = now.counts
}

// giveRemarks adds up what the stripe has counted, and hands over what it has
// kept for the log.
func (st *stripe) giveRemarks(refused, would *unloggedRefusals) {
	st.lock()
	defer st.unlock()
	if st.notes == nil {
		return
	}
	refused.take(&st.refusals, &st.remarks)
	if o := st.observed; o != nil {
		would.take(&o.counts, &o.remarks)
	}
}

func (m *Manager) logLine(begin string, k Kind, d dim, times uint64, r *remark) {
	// Who has a tenth of all for certain is worth a name.
	worst, named := r.worst.Name, r.worst.Votes > 0 && r.worst.Votes >= times/10
	if worst.kind == KindPeer && worst.peer == "" {
		named = false // nobody knows who asked
	}
	refuser := scopeName{kind: k}
	if named && r.worst.Votes == times && (k == KindService || k == KindProtocol) {
		refuser = worst // all of them were its
	}
	e := LimitError{why: refusal{scope: &refuser, d: d}}
	var attrs []slog.Attr
	if k != KindRate {
		attrs = append(attrs, slog.Any("current", amountFor(k, d, r.current)), slog.Any("limit", amountFor(k, d, r.limit)))
	}
	if r.cause != CauseLimit {
		attrs = append(attrs, slog.String("cause", r.cause.String()))
	}
	if named {
		attrs = append(attrs, slog.String("worst", printable(worst.String())), slog.Uint64("worst_times", r.worst.Votes))
	} else {
		worst = scopeName{kind: k}
	}
	attrs = append(attrs, slog.String("raise", limitKey(m.limits.Load(), m.gate(), k, d, &worst)))
	msg := fmt.Sprintf("%s from exceeding resource limits %d times: %q", begin, times, classOf(&refuser)+": "+e.what())
	log.LogAttrs(context.Background(), slog.LevelError, msg, attrs...)
}

// classOf gives a scope's name, or that of its kind where it has none of its own.
func classOf(n *scopeName) string {
	if n.text == "" {
		return n.kind.String()
	}
	return n.String()
}

// refusedByNow adds up what was refused, one stripe after the other.
func (m *Manager) refusedByNow() RefusalsAt {
	var counted engineCounts
	var would [numKinds]dimCounts
	for i := range m.stripes {
		st := &m.stripes[i]
		st.lock()
		st.addCounts(&counted)
		st.unlock()
	}
	m.gate().addRefusals(&counted.refusals, &would)
	now := RefusalsAt{At: time.Now()}
	for k := range counted.refusals {
		now.Refusals += counted.refusals[k].refusals().Total()
	}
	return now
}
