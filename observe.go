package rcmgr

// Limits that are only observed: what they would refuse is admitted and counted,
// so that limits can be tried on a node before they bite.
//
// Nothing is different until something is refused. Then, if the limit that stood
// in the way is one of a class that is observed, the same is decided once more,
// without the limits of these classes: they end at what a number can hold. What
// all others admit is charged to all, also above the limits that are observed, and
// the first refusal is counted as one that would have been. Accounts stay exact,
// and credit is handed out above such a limit as it is after a limit was lowered
// (I1): its pool is tight, and every decision about it is one on the exact sum.

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
)

// kindSet is a set of kinds, as bits.
type kindSet uint16

const allKinds kindSet = 1<<numKinds - 1

func (s kindSet) has(k Kind) bool { return s>>k&1 != 0 }

// list gives the kinds in their order.
func (s kindSet) list() (kinds []Kind) {
	for k := range numKinds {
		if s.has(k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// LogValue returns the kinds as a list of words, for logs of every form.
func (s kindSet) LogValue() slog.Value {
	words := []string{} // in JSON, nil is null
	for _, k := range s.list() {
		words = append(words, k.String())
	}
	return slog.AnyValue(words)
}

// kindSetOf reads kinds; none are all.
func kindSetOf(kinds []Kind) (s kindSet, err error) {
	if len(kinds) == 0 {
		return allKinds, nil
	}
	for _, k := range kinds {
		if k >= numKinds {
			return 0, fmt.Errorf("no kind of scope: %d, expected KindSystem to %v", k, numKinds-1)
		}
		s |= 1 << k
	}
	return s, nil
}

// observedKinds are the classes whose limits are only observed. They are written
// under all stripe locks; the gates read them under their own.
type observedKinds struct{ bits atomic.Uint32 }

func (o *observedKinds) load() kindSet { return kindSet(o.bits.Load()) }

// WithObserveOnly starts with the limits of some classes of scopes and gates, or
// without any named of all, as limits that are only observed: they refuse nothing.
// What they would have refused is admitted and accounted for exactly, and counted
// in Snapshot.WouldRefuse and the metrics, and the log tells of it in lines that
// begin with "Would have". A limit that is not observed refuses as always. Only
// what no number can hold is refused by limits that are observed: a sum above
// math.MaxInt64. Manager.Enforce and Manager.ObserveOnly switch at run time. A
// kind that does not exist is an error.
func WithObserveOnly(kinds ...Kind) Option {
	set, err := kindSetOf(kinds)
	return func(c *config) error {
		if err != nil {
			return fmt.Errorf("WithObserveOnly: %w", err)
		}
		c.observed |= set
		return nil
	}
}

// ObserveOnly switches the limits of some classes, or without any named of all, to
// being only observed, as WithObserveOnly does for a start; other classes stay as
// they are. A kind that does not exist is an error, and then nothing is changed. It
// is safe for concurrent use.
func (m *Manager) ObserveOnly(kinds ...Kind) error {
	set, err := kindSetOf(kinds)
	if err != nil {
		return fmt.Errorf("rcmgr: ObserveOnly: %w", err)
	}
	m.observe(func(now kindSet) kindSet { return now | set })
	return nil
}

// Enforce takes ObserveOnly back, for some classes or without any named for all:
// their limits refuse again. A scope that holds more than its limit by then keeps
// it, and gets nothing more until it has drained. It is safe for concurrent use.
func (m *Manager) Enforce(kinds ...Kind) error {
	set, err := kindSetOf(kinds)
	if err != nil {
		return fmt.Errorf("rcmgr: Enforce: %w", err)
	}
	m.observe(func(now kindSet) kindSet { return now &^ set })
	return nil
}

// Observed gives the classes whose limits are only observed, in the order of their
// numbers. It is safe for concurrent use.
func (m *Manager) Observed() []Kind { return m.observed.load().list() }

func (m *Manager) observe(change func(kindSet) kindSet) {
	m.inOneCut(func() { m.observed.bits.Store(uint32(change(m.observed.load()))) })
	log.Info("limits that are only observed", "kinds", m.observed.load())
}

// observations is what a stripe keeps of limits that are only observed.
type observations struct {
	// last is what would have refused the request that is being decided.
	last     noted
	counts   [numKinds]dimCounts
	rationed rationCounts // those of counts that no limit itself would have refused
	remarks  [numKinds]*remarks
}

// beyond tells whether a request that was not admitted is to be decided once more,
// beyond the limits that are only observed. It is asked after each attempt.
func (st *stripe) beyond(r *request, v verdict) bool {
	if v == undecided {
		r.observed = 0 // it will be decided from anew
		return false
	}
	observed := st.engine.observed.load()
	if observed == 0 || r.observed != 0 || !observed.standIn(st.why.scope.kind) {
		return false
	}
	st.observeLast()
	r.observed = observed
	return true
}

// observeLast keeps what would have refused.
func (st *stripe) observeLast() {
	if st.observed == nil {
		st.observed = new(observations)
	}
	st.observed.last = st.why
}

// standIn tells whether something else may be admitted if the limits of these kinds
// were not there, where one of kind k has refused. The allowlisted scopes are asked
// after the standard ones have refused, for any reason.
func (s kindSet) standIn(k Kind) bool {
	return s.has(k) || k == KindAllowlistedSystem || k == KindAllowlistedTransient
}

// exceeded counts a request that was admitted beyond a limit.
func (st *stripe) exceeded() {
	o := st.observed
	k, d := o.last.scope.kind, o.last.d
	o.counts[k][d]++
	o.rationed.count(&o.last.refusal)
	if by := o.last.by; by != nil {
		by.deny().would[d]++
		o.last.by = nil
	}
	if st.engine.noting {
		keepRemark(&o.remarks, &o.last)
	}
}

// addWouldRefuse adds what would have been refused to counts by kind. The stripe's
// lock is held.
func (st *stripe) addWouldRefuse(to *[numKinds]dimCounts) {
	if st.notes != nil && st.observed != nil {
		for k := range to {
			to[k].add(&st.observed.counts[k])
		}
	}
}

// onlyObserved gives the gates that refuse nothing.
func (s *subnets) onlyObserved() kindSet {
	if s.observed == nil {
		return 0
	}
	return s.observed.load()
}

// letLocked counts a connection that a gate lets pass though it is full.
func (s *subnets) letLocked(by bar, d dim) {
	e := by.tellLocked(d, s.noting)
	by.st.mu.would.counts[by.kind-KindSubnet][d]++
	if s.noting {
		by.st.mu.would.note(e, 1)
	}
}

// lets is letLocked for a refusal by something else, of one address, if the gate is
// only observed.
func (s *subnets) lets(addr netip.Addr, k Kind, d dim) bool {
	if !s.onlyObserved().has(k) {
		return false
	}
	st := &s.all()[0]
	st.mu.Lock()
	defer st.mu.Unlock()
	s.letLocked(bar{st, single(addr), k}, d)
	return true
}
