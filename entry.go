package rcmgr

// What a connection passes before any scope is asked: the memory of the process, the
// allowlist and the gates. A glance at scopes that are full comes before the gates, so that
// what would be refused anyway costs no subnet anything.

import (
	"net"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"
)

// passGates asks the gates in order: is there any room at all, has the subnet
// room, is it slow enough. Who is refused by the first leaves no trace in the
// others.
func (e *engine) passGates(h *holder, far endpoint, p *gatePass) error {
	if e.fixed[KindTransient].seemsFullFor(h.unit) || e.fixed[KindSystem].seemsFullFor(h.unit) {
		near := e.fair.enter(far.addr, h.dir)
		idle, st := e.lockIdle()
		err := st.glance(h, near)
		st.mu.Unlock()
		e.idleConns.Put(idle)
		e.fair.leave(near)
		if err != nil {
			return err
		}
	}
	if why := e.enterGates(far.addr, h.dir, p); why != nil {
		return e.refusedAtGate(h, why)
	}
	return nil
}

// refusedAtGate tells that a gate refused a connection, which has been counted
// there.
func (e *engine) refusedAtGate(h *holder, why *LimitError) error {
	if e.ended.Load() {
		return errClosed
	}
	if e.trace != nil {
		e.stripes[0].traceGate(h, why)
	}
	return why
}

// glance refuses a connection that certainly does not fit now, of a subnet if it is near
// one. The stripe's lock is held.
func (st *stripe) glance(h *holder, near *neighbours) error {
	if st.closed {
		return errClosed
	}
	observed := st.engine.observed.load() // these refuse nothing, now or later
	for _, k := range [...]Kind{KindTransient, KindSystem} {
		p := st.engine.fixed[k]
		d, handed, full := p.fullFor(h.unit, &p.limit)
		if !full || observed.has(k) {
			continue
		}
		st.number(h) // its own limit may refuse it, and is named by it
		h.use = st.engine.classes.connCost
		r := h.total()
		r.observed, r.near = observed, near
		v := st.checkOpening(h, &r)
		if v == admitted {
			v = st.checkFirst(&r)
		}
		switch v {
		case undecided:
			return nil // it may be refused for its cost
		case admitted:
			st.refuse(&r, &st.fixed[k].account, item{d, 1}, handed)
		}
		return st.refuseOpening(h, &r)
	}
	return nil
}

// checkFirst decides by the standard scopes about a connection that one of them is full for,
// as far as something else may come first: what it costs in memory, or a share.
func (st *stripe) checkFirst(r *request) verdict {
	if r.memory == 0 && !st.engine.rations(r) {
		return admitted
	}
	var c chain
	c.stand(st.fixed[KindTransient], st.fixed[KindSystem])
	return st.checkShared(&c, r, false, false)
}

// VerifySourceAddress tells a transport whether to make sure of a source
// address before it spends anything on the connection: when the address's
// subnet has come often lately, and when more than half of the transient scope's
// inbound connections are taken, whoever asks.
func (m *Manager) VerifySourceAddress(addr net.Addr) bool {
	return m.halfConnected() || m.gate().suspicious(addr)
}

// halfConnected reports whether transient holds more than half of the inbound
// connections that it may. A loose pool never does, and the word of a tight one says what is
// used. It is asked for each packet that begins a connection, and takes no lock.
func (e *engine) halfConnected() bool {
	p := e.fixed[KindTransient]
	w := p.word[dimConnsIn].Load()
	return w&tightMark != 0 && int64(w>>1) > p.told.Load()[dimConnsIn]/2
}

// enterGates asks the gates in force for a connection from addr, or tells why not.
// Without an address there is nothing to ask. d is inbound connections, or outbound
// ones. What was given is written to p.
func (e *engine) enterGates(addr netip.Addr, d dim, p *gatePass) *LimitError {
	for {
		g := e.gate()
		why, ok := g.subnets.enter(addr, d, p)
		if ok && g.caller.limits() {
			why, ok = g.askCaller(d, p)
		}
		if ok || why != nil {
			return why
		}
		// They had retired: others are in force.
	}
}

// refuseForMemory refuses a connection that has no scope yet. Where memory is only
// observed, it counts that, and refuses nothing.
func (e *engine) refuseForMemory(h *holder) error {
	idle, st := e.lockIdle()
	defer e.idleConns.Put(idle)
	defer st.unlock(false)
	if st.closed {
		return errClosed
	}
	return st.refuseOpeningForMemory(h, nil)
}

// refuseOpeningForMemory is refuseForMemory under the stripe's lock, of a peer's
// stream or of a connection.
func (st *stripe) refuseOpeningForMemory(h *holder, asker *peerScope) error {
	if st.noteMemory(h, asker); st.onlyObservesMemory() {
		return nil
	}
	st.number(h)
	r := h.total()
	return st.refuseOpening(h, &r)
}

// onlyObservesMemory tells whether memory refuses nothing, and counts what was noted
// if so.
func (st *stripe) onlyObservesMemory() bool {
	if !st.engine.observed.load().has(KindProcess) {
		return false
	}
	st.observeLast()
	st.exceeded()
	return true
}

// noteMemory notes that a connection or stream is refused for the sake of memory.
func (st *stripe) noteMemory(h *holder, asker *peerScope) {
	p := st.engine.pressure
	st.refusedBy(p.scope, &held{})
	st.note(refusal{&p.scope, h.dir, CauseMemoryPressure, network.ReservationPriorityAlways, p.inUse.Load(), 1, p.refuse}, nil)
	st.why.askedBy(&request{asker: asker})
}
