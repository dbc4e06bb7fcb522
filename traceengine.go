package rcmgr

// Events that the engine passes to the tracer. (Those of opening, and of refusals by gates,
// are in opening.go; those of other refusals in refusing.go.) A traced manager has one stripe,
// so all events are in one order, and the use of a share is that of its whole scope. Without a
// tracer each event costs a comparison with nil.

// traceChain adds an event for every account of a chain that got or gave up what a request asks for.
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

// traceMemory adds the events of a holder that got or gave up n bytes.
func (st *stripe) traceMemory(h *holder, n int64, priority uint8, tell func(*tracer, scopeName, *traceDelta, *amounts)) {
	r := memoryRequest(st.engine.admission, n, priority)
	st.traceHeld(h, &r, tell)
}

// traceHeld adds the events of a holder that got or gave up memory: first for the chain, then for
// the owners from the outermost inwards, and then for the holder. There are none above an owner
// that is done, because nothing was charged there.
func (st *stripe) traceHeld(h *holder, r *request, tell func(*tracer, scopeName, *traceDelta, *amounts)) {
	switch owner := h.owner(); {
	case owner == nil:
		st.traceChain(&h.tree.chain, r, tell)
	case owner.serves(h.num):
		st.traceHeld(owner, r, tell)
	}
	use := h.amounts()
	tell(st.trace, h.name(h.num), r.delta(), &use)
}

// traceSpan adds the event that a span has begun.
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

// traceDone adds the event that a connection, stream or span is done.
func (st *stripe) traceDone(h *holder) {
	if st.trace != nil {
		st.trace.destroyed(h.name(h.num))
	}
}

// traceCreated adds the event that an account was made.
func (st *stripe) traceCreated(a *account) {
	if st.trace != nil {
		st.trace.created(a.name(), *a.limit())
	}
}

// traceDestroyed adds the event that an account was collected.
func (st *stripe) traceDestroyed(a *account) {
	if st.trace != nil {
		st.trace.destroyed(a.name())
	}
}
