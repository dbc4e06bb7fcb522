package rcmgr

// Where the engine tells the tracer what happens. A traced manager has one
// stripe, so whatever is told under its lock is in one order, and what one
// account holds is what the scope holds. Nothing of this costs more than a look
// at a nil pointer where nobody listens.

import (
	"slices"
	"strconv"
)

// traceChain tells that every account of a chain got or gave up what a request
// asks for.
func (st *stripe) traceChain(c *chain, r *request, tell func(*tracer, traceName, *request, *amounts)) {
	if st.trace == nil {
		return
	}
	for _, a := range &c.at {
		if a != nil {
			use := a.use.amounts()
			tell(st.trace, traceName{scopeName: a.name()}, r, &use)
		}
	}
}

// traceMemory tells that a holder got or gave up n bytes.
func (st *stripe) traceMemory(h *holder, n int64, priority uint8, tell func(*tracer, traceName, *request, *amounts)) {
	r := memoryRequest(st.engine.admission, n, priority)
	st.traceHeld(h, &r, tell)
}

// traceHeld tells that a holder got or gave up memory: the chain first, then
// its owners from the outermost one, then itself. After a holder that is done,
// nothing was changed any more.
func (st *stripe) traceHeld(h *holder, r *request, tell func(*tracer, traceName, *request, *amounts)) {
	switch {
	case h.owner == nil:
		st.traceChain(&h.tree.chain, r, tell)
	case h.owner.is(h.num):
		st.traceHeld(h.owner, r, tell)
	}
	use := h.amounts()
	tell(st.trace, h.traceName(), r, &use)
}

// refuser is who refused last, for the tracer alone.
type refuser struct {
	name traceName
	use  amounts
}

// refusedBy notes who refused.
func (st *stripe) refusedBy(name traceName, use *held) {
	if st.trace != nil {
		st.refuser = refuser{name, use.amounts()}
	}
}

// traceRefuser notes that a holder refused.
func (st *stripe) traceRefuser(h *holder) {
	if st.trace != nil {
		st.refuser = refuser{h.traceName(), h.amounts()}
	}
}

// traceGate tells of a refusal by a gate: of a connection that will not be, or of
// one that wanted to move to its peer.
func (st *stripe) traceGate(h *holder, why *LimitError) {
	st.lock(false)
	defer st.unlock(false)
	st.number(h)
	total := h.total()
	st.trace.blocked(traceName{scopeName: *why.why.scope}, &total, why.why.d, &amounts{})
	if h.tree == nil { // it is no scope yet
		st.traceNotOpened(h)
	}
}

// traceSpan tells of a new span.
func (st *stripe) traceSpan(h *holder) {
	if st.trace == nil {
		return
	}
	limits := h.limits()
	if limits == nil { // its owner is done
		limits = &amounts{}
	}
	st.trace.created(h.traceName(), *limits)
}

// traceOpening tells of a connection or stream that is to be opened.
func (st *stripe) traceOpening(h *holder) {
	if st.trace != nil {
		st.trace.created(traceName{scopeName: h.name(h.num)}, *h.limit)
	}
}

// traceOpened tells that a connection or stream holds what it asked for.
func (st *stripe) traceOpened(h *holder, r *request) {
	if st.trace != nil {
		use := r.amounts()
		st.trace.granted(traceName{scopeName: h.name(h.num)}, r, &use)
	}
}

// traceNotOpened tells of a connection or stream that was refused.
func (st *stripe) traceNotOpened(h *holder) {
	if st.trace != nil {
		st.trace.destroyed(traceName{scopeName: h.name(h.num)})
	}
}

// traceDone tells of a connection, stream or span that is done.
func (st *stripe) traceDone(h *holder) {
	if st.trace != nil {
		st.trace.destroyed(h.traceName())
	}
}

// traceCreated tells of a new account.
func (st *stripe) traceCreated(a *account) {
	if st.trace != nil {
		st.trace.created(traceName{scopeName: a.name()}, *a.limit())
	}
}

// traceDestroyed tells of an account that goes.
func (st *stripe) traceDestroyed(a *account) {
	if st.trace != nil {
		st.trace.destroyed(traceName{scopeName: a.name()})
	}
}

// traceName is the name of a scope or span before it is made into strings.
type traceName struct {
	scopeName         // of the scope, or of what a span's owners stand on
	span      *holder // nil for what is no span; its numbers never change
}

// traceName names a holder. The lock of its stripe is held.
func (h *holder) traceName() traceName {
	top := h
	for top.owner != nil {
		top = top.owner
	}
	if top.role == firstSpan {
		return traceName{top.tree.chain.first().name(), h}
	}
	name := traceName{scopeName: top.name(h.num)}
	if h != top {
		name.span = h
	}
	return name
}

// texts gives the name, and the numbers of a span as in scopeClass.
func (n *traceName) texts() (name, span string) {
	var nums []uint32
	for h := n.span; h != nil && h.role != leaf; h = h.owner {
		nums = append(nums, h.seq)
	}
	name = n.scopeName.String()
	for i, num := range slices.Backward(nums) {
		name += spanText(num)
		span += strconv.FormatUint(uint64(num), 10)
		if i > 0 {
			span += "."
		}
	}
	return name, span
}

func (n *traceName) class(span string) *scopeClass {
	c := &scopeClass{Kind: n.kind, Name: n.own(), Span: span}
	switch n.kind {
	case KindConn, KindStream:
		c.Name = strconv.FormatInt(n.num, 10)
	case KindPeer, KindServicePeer, KindProtocolPeer:
		c.Peer = n.peer.String()
	}
	return c
}
