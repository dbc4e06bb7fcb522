package rcmgr

// How connections and streams come to be: past the allowlist and the gates,
// through the scopes that all of them stand in.

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// OpenConnection admits a connection into the transient scope, or refuses it.
// endpoint is the far end; it may be nil.
func (m *Manager) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	far := endpointOf(endpoint)
	usefd = usefd && !far.relayed // the descriptor is that of the connection to the relay
	c, err := m.openConnection(dir, usefd, far)
	tellRefusal(err)
	if m.reporter != nil {
		m.reportConn(dir, usefd, err)
	}
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return c, nil
}

func (m *Manager) openConnection(dir network.Direction, usefd bool, far endpoint) (*connScope, error) {
	limit, err := m.limits.conn()
	if err != nil {
		return nil, err
	}
	h := holder{kind: KindConn, dir: dir, fd: usefd, limit: limit}
	open, named := m.allowlist.allowsAddr(far)
	var pass gatePass
	gated := !open && m.gate.concerns(dir)
	if gated && !named {
		if pass, err = m.passGates(&h, far); err != nil {
			return nil, err
		}
	}
	st, c, err := m.openConn(&h, open || named)
	if err != nil {
		m.gate.undo(pass)
		return nil, err
	}
	scope := &connScope{holder: h, far: far, pass: pass, onTrial: gated && named,
		allowlisted: c.at[slotSystem].kind == KindAllowlistedSystem}
	scope.tree = &scope.root
	scope.chain = c
	scope.at.Store(st)
	return scope, nil
}

func (m *Manager) openConn(h *holder, fallBack bool) (*stripe, chain, error) {
	for all := false; ; all = true {
		st := m.anyStripe()
		st.lock(all)
		c, v, err := st.open(h, nil, fallBack, all)
		st.unlock(all)
		if v != undecided {
			return st, c, err
		}
	}
}

// OpenStream admits a stream of a peer into the transient scope, or refuses it.
func (m *Manager) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := m.openStream(p, dir)
	tellRefusal(err)
	if m.reporter != nil {
		m.reportStream(p, dir, err)
	}
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return s, nil
}

func (m *Manager) openStream(p peer.ID, dir network.Direction) (*streamScope, error) {
	limit, err := m.limits.stream(p)
	if err != nil {
		return nil, err
	}
	st := m.stripeOf(p)
	h := holder{kind: KindStream, dir: dir, limit: limit}
	var peerLimit *amounts
	for all := false; ; {
		st.lock(all)
		if st.closed { // before a scope is made that nobody collects any more
			st.unlock(all)
			return nil, errClosed
		}
		ps := st.peer(p, peerLimit)
		if ps == nil {
			st.unlock(all)
			if peerLimit, err = m.limits.peer(p); err != nil {
				return nil, err
			}
			continue
		}
		c, v, err := st.open(&h, ps, ps.trusted > 0, all)
		st.unlock(all)
		switch v {
		case refused:
			return nil, err
		case undecided:
			all = true
			continue
		}
		scope := &streamScope{holder: h}
		scope.tree = &scope.root
		scope.chain = c
		scope.at.Store(st)
		return scope, nil
	}
}

// standard gives the chain of what is new: transient and system.
func (st *stripe) standard(ps *peerScope) chain {
	return st.chainOf(ps, st.fixed[KindTransient], st.fixed[KindSystem])
}

func (st *stripe) chainOf(ps *peerScope, transient, system *share) chain {
	c := chain{peer: ps}
	if ps != nil {
		c.at[slotPeer] = &ps.account
	}
	if transient != nil {
		c.at[slotTransient] = &transient.account
	}
	c.at[slotSystem] = &system.account
	return c
}

// open charges a new connection or stream to the standard scopes, or if they
// refuse it and it may fall back, to the allowlisted ones.
func (st *stripe) open(h *holder, ps *peerScope, fallBack, all bool) (c chain, v verdict, err error) {
	if st.closed {
		return c, refused, errClosed
	}
	st.number(h)
	r := h.total()
	if v = st.checkOpening(h, &r); v == admitted {
		c, v = st.takeOpening(&r, ps, fallBack, all)
	}
	switch v {
	case refused:
		err = st.refuseOpening(h, &r)
	case admitted:
		if ps != nil {
			ps.refs++
			countTransient(&c, h.dir, 1)
		}
		st.traceOpened(h, &r)
	}
	return c, v, err
}

// number gives a connection or stream its number, once.
func (st *stripe) number(h *holder) {
	if h.num == 0 {
		h.num = st.newID()
		st.traceOpening(h)
	}
}

// checkOpening asks the limit of the connection or stream itself.
func (st *stripe) checkOpening(h *holder, r *request) verdict {
	for _, it := range r.items() {
		if it.n > h.limit[it.d] {
			st.refusedBy(traceName{scopeName: h.name()}, &amounts{})
			st.note(refusal{h.name(), it.d, CauseLimit, 0, it.n, h.limit[it.d]}, nil)
			return refused
		}
	}
	return admitted
}

func (st *stripe) takeOpening(r *request, ps *peerScope, fallBack, all bool) (chain, verdict) {
	if ps != nil && st.m.newcomers {
		r.crowding = int64(ps.transientIn) >= st.m.fixed[KindTransient].limit[dimStreamsIn]/4
	}
	c := st.standard(ps)
	v := st.take(&c, r, all)
	if v == refused && (fallBack || ps != nil && st.m.allowlist.allowsPeer(ps.peer)) {
		c = st.chainOf(ps, st.fixed[KindAllowlistedTransient], st.fixed[KindAllowlistedSystem])
		v = st.take(&c, r, all)
	}
	return c, v
}

// refuseOpening tells that a connection or stream will not be.
func (st *stripe) refuseOpening(h *holder, r *request) error {
	err := st.refusal(h.name(), r)
	st.traceNotOpened(h)
	return err
}
