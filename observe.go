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
