package rcmgr

// How connections and streams come to be: past the allowlist and the gates,
// through the scopes that all of them stand in.

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// OpenConnection admits a connection into the transient scope, or refuses it with a
// *LimitError. After Close, the error matches network.ErrResourceScopeClosed.
// usefd says whether the connection takes a file descriptor; endpoint is the far
// end, and may be nil.
func (m *Manager) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	far := endpointOf(endpoint)
	usefd = usefd && !far.relayed // the descriptor is that of the connection to the relay
	c, err := m.openConnection(dir, usefd, far)
	if m.reporter != nil {
		m.reportConn(dir, usefd, err)
	}
	if err != nil {
		tellRefusal(err)
		return nil, err // not a nil pointer in an interface
	}
	return c, nil
}

func (e *engine) openConnection(dir network.Direction, usefd bool, far endpoint) (*connScope, error) {
	var h holder // field by field: a literal would be made elsewhere, and copied
	h.kind, h.unit, h.limit = KindConn, unitOf(KindConn, dir, usefd), &e.classes.conn
	open, named := e.allowlist.allowsAddr(far)
	var pass gatePass
	var err error
	if e.pressure.refuses(h.dir) && !open && !named {
		if err = e.refuseForMemory(&h); err != nil {
			return nil, err
		}
	}
	if far.addr.IsValid() {
		h.marks |= located
	}
	gated := !open && e.gate().concerns(h.dir)
	if gated && named {
		h.marks |= onTrial
	}
	if gated && !named {
		if err = e.passGates(&h, far, &pass); err != nil {
			return nil, err
		}
	}
	var near *neighbours
	if e.fair != nil && !open {
		near = e.fair.enter(far.addr, h.dir)
	}
	var c chain
	in, st := e.lockIdle()
	for all := false; ; all = true {
		h.use = e.classes.connCost
		v, err := st.open(&h, &c, near, open || named, all)
		switch v {
		case refused:
			st.unlock(all)
			e.idleConns.Put(in)
			pass.undo()
			e.fair.leave(near)
			return nil, err
		case undecided:
			st.unlock(all)
			e.lockAll()
			continue
		}
		in.become(&h, &c)
		if all {
			e.unlockAll()
		} else {
			st.mu.Unlock() // in line, as in root.lock
		}
		scope := &connScope{userScope: userScope{in, h.num}}
		of := scope.conn() // without a lock: nobody else has it, and who had the holder before does not look
		of.far, of.gate, of.near = pass.key, pass.conns, near
		if pass.key == (subnetKey{}) && h.marks.has(located) {
			of.far = keyOf(far.addr)
		}
		if e.leaks != nil {
			e.leaks.opened(&scope.userScope, "")
		}
		return scope, nil
	}
}

// OpenStream admits a stream of a peer into the transient scope, or refuses it with
// a *LimitError. After Close, the error matches network.ErrResourceScopeClosed; a
// Limiter that gives no valid limit for the peer or the stream is an error, too.
func (m *Manager) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := m.openStream(p, dir)
	if m.reporter != nil {
		m.reportStream(p, dir, err)
	}
	if err != nil {
		tellRefusal(err)
		return nil, err // not a nil pointer in an interface
	}
	return s, nil
}

func (e *engine) openStream(p peer.ID, dir network.Direction) (*streamScope, error) {
	st := e.stripeOf(p).awake()
	var h holder // as in openConnection
	h.kind, h.unit = KindStream, unitOf(KindStream, dir, false)
	var c chain
	st.mu.Lock()
	ps := st.peers[p]
	if ps == nil || !st.openStreamReady(ps, &h, &c) {
		return e.openStreamSlowly(st, p, &h, &c)
	}
	return e.newStream(st.begin(&h, &c, false), ps), nil
}

// openStreamReady opens a stream of a peer that is known where all that it takes is at hand;
// if not, it changes nothing.
func (st *stripe) openStreamReady(ps *peerScope, h *holder, c *chain) bool {
	h.limit, h.use = st.engine.streamLimit(fetched[openingLimits]{}), st.engine.classes.streamCost
	c.at[slotPeer] = &ps.account
	return h.limit != nil && !st.engine.pressure.refuses(h.dir) && st.openReady(h, c)
}

// openStreamSlowly is openStream where not everything is at hand. The stripe is locked.
func (e *engine) openStreamSlowly(st *stripe, p peer.ID, h *holder, c *chain) (scope *streamScope, err error) {
	locked, newPeer := true, false
	err = decide(e, func(b *limitBook) (fetched[openingLimits], error) { return b.fetchOpening(p, newPeer) },
		func(all bool, f fetched[openingLimits]) (verdict, error) {
			if !locked {
				st.lock(all)
			}
			locked = false
			if st.closed { // before a scope is made that nobody collects any more
				st.unlock(all)
				return refused, errClosed
			}
			h.limit, h.use = e.streamLimit(f), e.classes.streamCost
			ps := st.peer(p, fetched[*amounts]{f.by, f.limits.peer})
			if ps == nil {
				newPeer = true
				st.unlock(all)
				return unknown, nil
			}
			v, err := unknown, error(nil)
			if h.limit != nil {
				c.at[slotPeer] = &ps.account
				v, err = st.openStreamOf(ps, h, c, all)
			}
			if v != admitted {
				st.enqueue(&ps.account) // it may have been made for this
				st.unlock(all)
				return v, err
			}
			scope = e.newStream(st.begin(h, c, all), ps)
			return v, nil
		})
	return scope, err
}

func (e *engine) newStream(s userScope, ps *peerScope) *streamScope {
	scope := &streamScope{s, ps}
	if e.leaks != nil {
		e.leaks.opened(&scope.userScope, ps.id)
	}
	return scope
}

// openStreamOf admits a stream of a peer, unless the memory of the process or a limit
// refuses it.
func (st *stripe) openStreamOf(ps *peerScope, h *holder, c *chain, all bool) (verdict, error) {
	e := st.engine
	if !all && e.pressure.refuses(h.dir) && ps.trusted == 0 && !e.allowlist.allowsPeer(ps.id) {
		if err := st.refuseOpeningForMemory(h, ps); err != nil {
			return refused, err
		}
	}
	return st.open(h, c, nil, ps.trusted > 0, all)
}

// begin gives a stream that was admitted a holder, one that was used before where there is
// one, and unlocks the stripe, or with all every stripe.
func (st *stripe) begin(as *holder, c *chain, all bool) userScope {
	var h *holder
	if last := len(st.idle) - 1; last >= 0 {
		h, st.idle = st.idle[last], st.idle[:last]
		h.become(as, c)
	}
	if all {
		st.engine.unlockAll()
	} else {
		st.mu.Unlock() // in line, as in root.lock
	}
	if h == nil {
		t := &top{}
		h = t.start(KindStream, st)
		h.become(as, c)
	}
	return userScope{h, as.num}
}

// start makes t a holder for connections or streams, in a stripe. Its kind never changes:
// whoever knew it before can still be told a name.
func (t *top) start(k Kind, st *stripe) *holder {
	t.kind, t.role, t.tree = k, leaf, &t.root
	t.at.Store(st)
	return &t.holder
}

// lockIdle gives a holder that waits for a connection, and the stripe in which it lies,
// locked. Mostly it is that of the connection that was done last on this processor, whose
// stripe is what this processor has touched last. Where somebody else is in there, he would
// be met again and again: then it is a new one in the next stripe, if there is one, and the
// other is garbage. Who is refused puts it back.
func (e *engine) lockIdle() (*holder, *stripe) {
	h, ok := e.idleConns.Get().(*holder)
	if !ok {
		h = newConnHolder(e.anyStripe())
	}
	st := h.tree.at.Load() // where it stays: in nobody's hands, it does not move
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
	c.conn = &c.of
	return c.start(KindConn, st)
}

// become makes h what was admitted. Field by field: a copy of the whole would go through
// the garbage collector's hands.
func (h *holder) become(as *holder, c *chain) {
	h.limit, h.use, h.num = as.limit, as.use, as.num
	h.spans, h.unit, h.done, h.marks = 0, as.unit, false, as.marks
	at := &h.tree.chain
	at.at[slotPeer], at.at[slotTransient], at.at[slotSystem] = c.at[slotPeer], c.at[slotTransient], c.at[slotSystem]
}

// open charges a new connection, of a subnet if it is near one, or a new stream to
// the standard scopes, or if they refuse it and it may fall back, to the allowlisted
// ones.
func (st *stripe) open(h *holder, c *chain, near *neighbours, fallBack, all bool) (verdict, error) {
	if st.openReady(h, c) {
		return admitted, nil
	}
	if st.closed {
		return refused, errClosed
	}
	st.number(h)
	r := h.total()
	r.near = near
	v := st.checkOpening(h, &r)
	if v == admitted {
		v = st.takeOpening(&r, c, fallBack, all)
	}
	for v != admitted && st.beyond(&r, v) {
		if v = st.checkOpening(h, &r); v == admitted {
			v = st.takeOpening(&r, c, fallBack, all)
		}
	}
	switch v {
	case refused:
		return v, st.refuseOpening(h, &r)
	case admitted:
		if h.use > 0 && h.kind == KindConn {
			st.connMemory.MoveMemory(0, h.use)
		}
		if ps := c.peer(); ps != nil {
			ps.refs++
			countTransient(c, h.dir, 1)
			if st.engine.fair != nil {
				countStream(c, h.dir, 1)
			}
		} else if near != nil {
			near.countConn(c, h.unit, 1)
		}
		st.traceOpened(h, &r)
	}
	return v, nil
}

// checkOpening asks the limit of the connection or stream itself.
func (st *stripe) checkOpening(h *holder, r *request) verdict {
	if r.fits(h.limit) {
		return admitted
	}
	items, n := r.list()
	for _, it := range items[:n] {
		if it.n > h.limit[it.d] && !r.observed.has(h.kind) {
			st.refusedBy(h.name(h.num), &held{})
			name := h.name(h.num)
			st.note(refusal{&name, it.d, CauseLimit, r.priority, 0, it.n, h.limit[it.d]}, nil)
			return refused
		}
	}
	return admitted
}

func (st *stripe) takeOpening(r *request, c *chain, fallBack, all bool) verdict {
	c.stand(st.fixed[KindTransient], st.fixed[KindSystem])
	v, ps := st.takeOnce(c, r, all), c.peer()
	if v == refused && (fallBack || ps != nil && st.engine.allowlist.allowsPeer(ps.id)) {
		c.stand(st.fixed[KindAllowlistedTransient], st.fixed[KindAllowlistedSystem])
		v = st.takeOnce(c, r, all)
	}
	return v
}

// refuseOpening tells that a connection or stream will not be.
func (st *stripe) refuseOpening(h *holder, r *request) error {
	err := st.refusal(h.asked(h.num), r)
	st.traceNotOpened(h)
	return err
}

func (e *engine) reportConn(dir network.Direction, usefd bool, err error) {
	switch v, _ := decisionOf(err); v {
	case admitted:
		e.reporter.AllowConn(dir, usefd)
	case refused:
		e.reporter.BlockConn(dir, usefd)
	}
}

func (e *engine) reportStream(p peer.ID, dir network.Direction, err error) {
	switch v, _ := decisionOf(err); v {
	case admitted:
		e.reporter.AllowStream(p, dir)
	case refused:
		e.reporter.BlockStream(p, dir)
	}
}
