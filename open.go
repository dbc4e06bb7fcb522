package rcmgr

// How connections and streams are opened. A connection passes the allowlist and the gates
// first (entry.go); both then ask the scopes that they are to stand in.

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// OpenConnection admits a connection, which is in the transient scope until SetPeer, or refuses
// it with a *LimitError. After Close, the error matches network.ErrResourceScopeClosed. usefd
// says whether the connection takes a file descriptor. endpoint is the address of the far end,
// and may be nil. Any direction but network.DirInbound counts as outbound. Call Done on the
// scope when the connection is closed. OpenConnection is safe for concurrent use.
func (m *Manager) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	remote := endpointOf(endpoint)
	usefd = usefd && !remote.relayed // the connection to the relay has the descriptor
	c, err := m.openConnection(dir, usefd, remote)
	if m.reporter != nil {
		m.reportConn(dir, usefd, err)
	}
	if err != nil {
		logRefusal(err)
		return nil, err // not a nil pointer in an interface
	}
	return c, nil
}

func (e *engine) openConnection(dir network.Direction, usefd bool, remote endpoint) (*connScope, error) {
	var o opening // set field by field: a literal would be built in a temporary and copied
	o.kind, o.unit, o.limit = KindConn, unitOf(KindConn, dir, usefd), &e.classes.conn
	if remote.addr.IsValid() {
		o.marks |= located
	} else if remote.via.IsValid() {
		o.marks |= viaRelay
	}
	trusts := e.allowlist.trustIn(remote)
	var pass subnets.Pass
	if err := e.passEntry(&o, remote, trusts, &pass); err != nil {
		return nil, err
	}
	if e.fair != nil && trusts != trustsAddr {
		o.subnet = e.fair.enter(remote, o.dir, &pass)
	}
	h, st := e.lockIdle()
	o.cost = e.classes.connCost
	if st.openReady(&o) {
		h.become(&o)
		st.mu.Unlock()
	} else if err := e.openConnectionSlowly(st, h, &o, trusts != noTrust); err != nil {
		e.idleConns.Put(h)
		pass.Undo()
		e.fair.leave(o.subnet)
		return nil, err
	}
	scope := &connScope{userScope: userScope{h, scopeID(o.num)}}
	state := scope.state() // without a lock: no other goroutine has this scope, and older handles do not read it
	state.remote, state.gate, state.subnet = pass.Key, pass.Conns, o.subnet
	if pass.Key == (ip.Key{}) && o.marks.has(located) {
		state.remote = ip.KeyOf(remote.addr)
	} else if o.marks.has(viaRelay) {
		state.remote = ip.KeyOf(remote.via)
	}
	if e.leaks != nil {
		scope.recordOpened(e.leaks, "")
	}
	return scope, nil
}

// openConnectionSlowly is the general way to make h a connection. Its stripe is locked.
func (e *engine) openConnectionSlowly(st *stripe, h *holder, o *opening, fallBack bool) error {
	lock := firstLock{st, true}
	return decide(e, nothing, func(g grip, _ fetched[struct{}]) (verdict, error) {
		lock.take(g)
		defer st.unlockAs(g)
		o.cost = e.classes.connCost
		v, err := st.open(o, fallBack, g)
		if v == admitted {
			h.become(o)
		}
		return v, err
	})
}

// OpenStream admits a stream of a peer into the transient scope, or refuses it with
// a *LimitError. After Close, the error matches network.ErrResourceScopeClosed; a
// Limiter that returns no valid limit for the peer or the stream is an error, too. Any
// direction but network.DirInbound counts as outbound. Call Done on the scope when the stream
// is closed. OpenStream is safe for concurrent use.
func (m *Manager) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := m.openStream(p, dir)
	if m.reporter != nil {
		m.reportStream(p, dir, err)
	}
	if err != nil {
		logRefusal(err)
		return nil, err // not a nil pointer in an interface
	}
	return s, nil
}

func (e *engine) openStream(p peer.ID, dir network.Direction) (*streamScope, error) {
	hash := e.hashOf(p)
	st := e.stripeAt(hash).awake()
	var o opening // as in openConnection
	o.kind, o.unit = KindStream, unitOf(KindStream, dir, false)
	st.mu.Lock()
	ps := st.find(hash, p)
	if ps == nil || !st.openStreamReady(ps, &o) {
		return e.openStreamSlowly(st, p, &o)
	}
	h := st.begin(&o)
	st.mu.Unlock()
	return e.newStream(st, h, &o, ps), nil
}

// openStreamReady is the short way to open a stream: it works if the peer is known and
// everything that the stream takes is at hand. If not, it changes nothing.
func (st *stripe) openStreamReady(ps *peerScope, o *opening) bool {
	o.limit, o.cost = st.engine.streamLimit(fetched[openingLimits]{}), st.engine.classes.streamCost
	o.chain.at[slotPeer] = &ps.account
	return o.limit != nil && !st.engine.pressure.refuses(o.dir) && st.openReady(o)
}

// openStreamSlowly is the general way to open a stream. The stripe is locked.
func (e *engine) openStreamSlowly(st *stripe, p peer.ID, o *opening) (scope *streamScope, err error) {
	lock, newPeer := firstLock{st, true}, false
	err = decide(e, func(b *limitBook) (fetched[openingLimits], error) { return b.fetchOpening(p, newPeer) },
		func(g grip, f fetched[openingLimits]) (verdict, error) {
			lock.take(g)
			if st.closed { // before a scope is made that no worker would collect
				st.unlockAs(g)
				return refused, errClosed
			}
			o.limit, o.cost = e.streamLimit(f), e.classes.streamCost
			ps := st.peer(p, fetched[*amounts]{f.by, f.limits.peer})
			if ps == nil {
				newPeer = true
				st.unlockAs(g)
				return unknown, nil
			}
			v, err := unknown, error(nil)
			if o.limit != nil {
				o.chain.at[slotPeer] = &ps.account
				v, err = st.openStreamOf(ps, o, g)
			}
			if v != admitted {
				st.enqueue(&ps.account) // it may have been made for this stream
				st.unlockAs(g)
				return v, err
			}
			h := st.begin(o)
			st.unlockAs(g)
			scope = e.newStream(st, h, o, ps)
			return v, nil
		})
	return scope, err
}

// openStreamOf opens a stream of a peer, unless the memory of the process or a limit refuses
// it.
func (st *stripe) openStreamOf(ps *peerScope, o *opening, g grip) (verdict, error) {
	e := st.engine
	if g == oneStripe && e.pressure.refuses(o.dir) && ps.trusted == 0 && !e.allowlist.allowsPeer(ps.id) {
		if err := st.refuseForMemory(o, ps); err != nil {
			return refused, err
		}
	}
	if e.paces(o.dir) && ps.trusted == 0 && !e.allowlist.allowsPeer(ps.id) {
		return st.openThroughGate(ps, o, g)
	}
	return st.open(o, ps.trusted > 0, g)
}

// openThroughGate opens a stream of a peer unless the gate of streams or a limit refuses it.
func (st *stripe) openThroughGate(ps *peerScope, o *opening, g grip) (v verdict, err error) {
	if why := st.passStreamGate(ps, o, func() bool {
		v, err = st.open(o, false, g)
		return v == admitted
	}); why != nil {
		return refused, why
	}
	return v, err
}

// newStream returns the scope of a stream that was admitted. A nil h is a new holder.
func (e *engine) newStream(st *stripe, h *holder, o *opening, ps *peerScope) *streamScope {
	if h == nil {
		t := &top{}
		h = t.start(KindStream, st)
		h.become(o)
	}
	scope := &streamScope{userScope{h, scopeID(o.num)}, ps}
	if e.leaks != nil {
		scope.recordOpened(e.leaks, ps.id)
	}
	return scope
}

// open charges a connection or stream to the standard scopes. If they refuse it and it may fall
// back, it is charged to the allowlisted ones.
func (st *stripe) open(o *opening, fallBack bool, g grip) (verdict, error) {
	if st.openReady(o) {
		return admitted, nil
	}
	if st.closed {
		return refused, errClosed
	}
	st.traceOpening(o)
	r := o.total()
	r.grip = g
	v, why := st.takeOpening(o, &r, fallBack)
	for v != admitted && st.retryUnobserved(&r, v, why) {
		v, why = st.takeOpening(o, &r, fallBack)
	}
	switch v {
	case refused:
		return v, st.refuseOpening(why, o, &r)
	case admitted:
		st.number(o)
		if o.cost > 0 && o.kind == KindConn {
			st.connMemory.MoveMemory(0, o.cost)
		}
		if ps := o.chain.peer(); ps != nil {
			ps.refs++
			countTransient(&o.chain, o.dir, 1)
			if st.engine.fair != nil {
				countStream(&o.chain, o.dir, 1)
			}
		} else if o.subnet != nil {
			countConn(&o.chain, o.unit, o.subnet, 1)
		}
		st.traceOpened(o, &r)
	}
	return v, nil
}

func (st *stripe) takeOpening(o *opening, r *request, fallBack bool) (verdict, *noted) {
	if why := st.checkOpening(o, r); why != nil {
		return refused, why
	}
	c := &o.chain
	c.stand(st.fixed[KindTransient], st.fixed[KindSystem])
	v, why := st.takeOnce(c, r)
	if ps := c.peer(); v == refused && (fallBack || ps != nil && st.engine.allowlist.allowsPeer(ps.id)) {
		c.stand(st.fixed[KindAllowlistedTransient], st.fixed[KindAllowlistedSystem])
		v, why = st.takeOnce(c, r)
	}
	return v, why
}

func (e *engine) reportConn(dir network.Direction, usefd bool, err error) {
	if admitted, _, refused := decisionOf(err); admitted {
		e.reporter.AllowConn(dir, usefd)
	} else if refused {
		e.reporter.BlockConn(dir, usefd)
	}
}

func (e *engine) reportStream(p peer.ID, dir network.Direction, err error) {
	if admitted, _, refused := decisionOf(err); admitted {
		e.reporter.AllowStream(p, dir)
	} else if refused {
		e.reporter.BlockStream(p, dir)
	}
}
