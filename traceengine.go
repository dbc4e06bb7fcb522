package rcmgr

// Where the engine tells the tracer what happens. A traced manager has one
// stripe, so whatever is told under its lock is in one order, and what one
// account holds is what the scope holds. Nothing of this costs more than a look
// at a nil pointer where nobody listens.

// traceChain tells that every account of a chain got or gave up what a request
// asks for.
func (st *stripe) traceChain(c *chain, r *request, tell func(*tracer, scopeName, *traceDelta, *amounts)) {
	if st.trace == nil {
		return
	}
	delta := r.delta()
	for _, a := range &c.at {
		if a != nil {
			use := a.use.amounts()
			tell(st.trace, a.name(), delta, &use)
		}
	}
}

// traceMemory tells that a holder got or gave up n bytes.
func (st *stripe) traceMemory(h *holder, n int64, priority uint8, tell func(*tracer, scopeName, *traceDelta, *amounts)) {
	r := memoryRequest(st.engine.admission, n, priority)
	st.traceHeld(h, &r, tell)
}

// traceHeld tells that a holder got or gave up memory: the chain first, then
// its owners from the outermost one, then itself. After a holder that is done,
// nothing was changed any more.
func (st *stripe) traceHeld(h *holder, r *request, tell func(*tracer, scopeName, *traceDelta, *amounts)) {
	switch {
	case h.owner == nil:
		st.traceChain(&h.tree.chain, r, tell)
	case h.owner.serves(h.num):
		st.traceHeld(h.owner, r, tell)
	}
	use := h.amounts()
	tell(st.trace, h.name(h.num), r.delta(), &use)
}

// traceSpan tells of a new span.
func (st *stripe) traceSpan(h *holder) {
	if st.trace == nil {
		return
	}
	limits := h.limitInForce()
	if limits == nil { // its owner is done
		limits = &amounts{}
	}
	st.trace.created(h.name(h.num), *limits)
}

// traceDone tells of a connection, stream or span that is done.
func (st *stripe) traceDone(h *holder) {
	if st.trace != nil {
		st.trace.destroyed(h.name(h.num))
	}
}

// traceCreated tells of a new account.
func (st *stripe) traceCreated(a *account) {
	if st.trace != nil {
		st.trace.created(a.name(), *a.limit())
	}
}

// traceDestroyed tells of an account that goes.
func (st *stripe) traceDestroyed(a *account) {
	if st.trace != nil {
		st.trace.destroyed(a.name())
	}
}
