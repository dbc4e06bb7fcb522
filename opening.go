package rcmgr

// A connection or stream before it is open. An opening is checked and charged; if admitted, it
// is copied into a holder. Holders are used again: the stripe keeps idle ones of streams, a sync.Pool,
// which is one list for each processor, those of connections, and each connection or stream one of
// its spans (scope.go).

import "github.com/weir-p2p/rcmgr/internal/groups"

// opening is a connection or stream that is to be opened, or a connection that is to move.
type opening struct {
	kind Kind
	unit
	limit  *amounts     // of the connection or stream itself
	cost   int64        // bytes that it takes by itself
	num    int64        // of the connection or stream; 0 until it has one
	marks  mark         // of a connection
	subnet *groups.Seat // that a connection counts for; may be nil
	moves  bool         // it is open, and is to move to its peer
	chain  chain        // the accounts that it stands on
}

// total returns everything that it asks for.
func (o *opening) total() request {
	r := o.request(o.cost)
	r.subnet = o.subnet
	return r
}

func (o *opening) name() scopeName { return scopeName{kind: o.kind, num: o.num} }

// openReady is the short way to open a connection or stream in the standard scopes. It works if
// the unit takes no memory, there is neither tracer nor fair share, and every account has room
// at hand or may draw it. If not, it changes nothing.
func (st *stripe) openReady(o *opening) bool {
	if st.plain {
		return st.openPlain(o)
	}
	return st.openPaced(o)
}

// openPlain is openReady for a plain stripe: the limits alone decide.
func (st *stripe) openPlain(o *opening) bool {
	u, ps := o.unit, o.chain.peer()
	transient, system := st.fixed[KindTransient], st.fixed[KindSystem]
	if o.cost != 0 || !u.within(o.limit) || ps != nil && !ps.hasUnit(u) {
		return false
	}
	one, other := transient.lackingUnit(u), system.lackingUnit(u)
	if one != nil || other != nil {
		r := request{dir: u.dir, asker: ps}
		if st.engine.rations(&r) || !st.drawUnit(u, one, other) {
			return false
		}
	}
	if ps != nil {
		ps.use.addUnit(u)
		ps.refs++
		st.peerGotUnit(ps, u)
	}
	transient.use.addUnit(u)
	system.use.addUnit(u)
	o.chain.stand(transient, system)
	countTransient(&o.chain, u.dir, 1)
	st.number(o)
	return true
}

// openPaced is openReady for a stripe that is not plain. It works if rates are the only reason.
func (st *stripe) openPaced(o *opening) bool {
	if !st.rated || st.closed || st.trace != nil || st.engine.fair != nil || st.engine.earmarks != nil || o.kind == KindStream && st.engine.paces(o.dir) {
		return false
	}
	var p pacing
	if a := o.chain.at[slotPeer]; a != nil {
		p.needsBoth(a, st.rates(a), o.unit)
	}
	ofPeer := p.n
	for _, k := range [...]Kind{KindTransient, KindSystem} {
		if sh := st.fixed[k]; sh.pool.rates != nil {
			p.needsBoth(&sh.account, sh.pool.rates.own, o.unit)
		}
	}
	if p.n == 0 {
		return st.openPlain(o)
	}
	p.read(st, p.n > ofPeer)
	ready := p.lacks(&request{}) == nil && st.openPlain(o)
	if ready {
		p.take()
	}
	p.done(st)
	return ready
}

// needsBoth adds the rates of an account that concern a unit. rates may be nil.
func (p *pacing) needsBoth(a *account, rates *scopeRates, u unit) {
	if rates != nil {
		p.needs(a, rates, u.dir)
		p.needs(a, rates, u.both)
	}
}

// number gives a connection or stream its number, if it has none. Without a tracer, those that
// are refused have none, so that refusals for the same reason are the same error.
func (st *stripe) number(o *opening) {
	if o.num == 0 {
		o.num = st.newID()
	}
}

// checkOpening returns the refusal by the limit of the connection or stream itself, nil if
// that admits it.
func (st *stripe) checkOpening(o *opening, r *request) *noted {
	if r.fits(o.limit) {
		return nil
	}
	items, n := r.list()
	for _, it := range items[:n] {
		if it.n > o.limit[it.d] && !r.observed.has(o.kind) {
			name := o.name()
			why := st.note(refusal{&name, it.d, CauseLimit, r.priority, 0, it.n, o.limit[it.d]}, r, nil)
			if st.trace != nil {
				why.holding(amounts{})
			}
			return why
		}
	}
	return nil
}

// refuseOpening counts the refusal of a connection or stream, and returns it as an error.
func (st *stripe) refuseOpening(why *noted, o *opening, r *request) error {
	err := st.refusal(why, askedScope{num: o.num, kind: o.kind}, r)
	st.traceNotOpened(o)
	return err
}

// traceGate tells the tracer that a gate refused to open a connection, or to let it move to its
// peer. It takes the stripe's lock.
func (st *stripe) traceGate(o *opening, why *LimitError) {
	st.lock()
	defer st.unlock()
	st.traceGateLocked(o, why)
}

// traceGateLocked is traceGate where the stripe's lock is held.
func (st *stripe) traceGateLocked(o *opening, why *LimitError) {
	st.traceOpening(o)
	total := o.total()
	st.trace.blocked(*why.why.scope, total.delta(), why.why.d, &amounts{})
	if !o.moves {
		st.traceNotOpened(o)
	}
}

// traceOpening tells the tracer that a connection or stream is to be opened, unless it has been
// told. In a trace, those that are refused have a number, too.
func (st *stripe) traceOpening(o *opening) {
	if st.trace != nil && o.num == 0 {
		st.number(o)
		st.trace.created(o.name(), *o.limit)
	}
}

// traceOpened tells the tracer that a connection or stream holds what it asked for.
func (st *stripe) traceOpened(o *opening, r *request) {
	if st.trace != nil {
		use := r.amounts()
		st.trace.granted(o.name(), r.delta(), &use)
	}
}

// traceNotOpened tells the tracer that a connection or stream was refused.
func (st *stripe) traceNotOpened(o *opening) {
	if st.trace != nil {
		st.trace.destroyed(o.name())
	}
}

// maxIdle bounds the holders that a stripe keeps for its next streams, besides the spare one.
const maxIdle = 64

// begin uses a holder that the stripe has kept for the stream that was admitted, and returns it.
// It returns nil if the stripe has kept none.
func (st *stripe) begin(o *opening) (h *holder) {
	if st.spare != nil {
		h, st.spare = st.spare, nil
	} else if last := len(st.idle) - 1; last >= 0 {
		h, st.idle = st.idle[last], st.idle[:last]
	} else {
		return nil
	}
	h.become(o)
	return h
}

// keep keeps the holder of a stream that is done for the next one.
func (st *stripe) keep(h *holder) {
	if st.spare == nil {
		st.spare = h
	} else if len(st.idle) < maxIdle {
		st.idle = append(st.idle, h)
	}
}

// start makes t a holder for connections or streams, in a stripe. Its kind never changes, so
// that an old handle still has a name.
func (t *top) start(k Kind, st *stripe) *holder {
	t.kind, t.role, t.tree = k, leaf, &t.root
	t.at.Store(st)
	return &t.holder
}

// become initializes h from what was admitted. One store per field: assigning the whole would
// run the bulk write barrier.
func (h *holder) become(o *opening) {
	h.limit, h.use, h.num = o.limit, o.cost, o.num
	h.spans, h.unit, h.done, h.marks = 0, o.unit, false, o.marks
	at := &h.tree.chain.at
	at[slotPeer], at[slotTransient], at[slotSystem] = o.chain.at[slotPeer], o.chain.at[slotTransient], o.chain.at[slotSystem]
}

// lockIdle returns an idle holder of a connection, and its stripe, which it locks. It prefers
// the holder that this processor used last, in the stripe that this processor touched last. If
// that stripe's lock is taken, it drops the holder and makes one in the next stripe, so that two
// processors do not keep colliding. A caller that does not use the holder puts it back.
func (e *engine) lockIdle() (*holder, *stripe) {
	h, ok := e.idleConns.Get().(*holder)
	if !ok {
		h = newConnHolder(e.anyStripe())
	}
	st := h.tree.at.Load() // a holder that waits does not move
	if st.mu.TryLock() {
		return h, st
	}
	if next := &e.stripes[(st.index+1)&(len(e.stripes)-1)]; next != st {
		h, st = newConnHolder(next.awake()), next
	}
	st.mu.Lock()
	return h, st
}

func newConnHolder(st *stripe) *holder {
	c := &topConn{}
	c.connState = &c.state
	return c.start(KindConn, st)
}
