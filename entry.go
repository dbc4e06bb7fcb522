package rcmgr

// What a connection passes before any scope is asked: the memory of the process, the allowlist
// and the gates. A glance at the scopes comes before the gates: a connection for which there
// is no room anyway takes no token of its subnet.
//
// A stream passes the gates, too, if streams have a rate by subnet. It knows its peer, but not its
// connection, so a peer has one address for all of its streams: that of the first of its
// connections. The peer keeps it only under gates that ask for it, so peers that were there before
// such gates have none until they connect again. The scopes decide on the stream while the gate
// holds the subnet's lock, so the rate is exact, as those of scopes are.

import (
	"net"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// passEntry decides whether a connection may ask the scopes. If the allowlist covers its
// address, the gates do not check the connection. Neither do they if the allowlist names a peer at
// that address, but then the connection is on trial until its peer is known. What the gates have
// counted is written to p.
func (e *engine) passEntry(o *opening, remote endpoint, trusts trust, p *subnets.Pass) error {
	if trusts == noTrust && e.pressure.refuses(o.dir) {
		if err := e.refuseForMemory(o); err != nil {
			return err
		}
	}
	if trusts == trustsAddr || !e.gate().concerns(o.dir) {
		return nil
	}
	if trusts == trustsPeer {
		o.marks |= onTrial
		return nil
	}
	return e.passGates(o, remote, p)
}

// passGates asks in order whether there is room at all, whether the subnet has room, and
// whether connections from it come slowly enough. A refusal by one leaves no trace in the
// others.
func (e *engine) passGates(o *opening, remote endpoint, p *subnets.Pass) error {
	if e.fixed[KindTransient].seemsFullFor(o.unit) || e.fixed[KindSystem].seemsFullFor(o.unit) {
		o.subnet = e.fair.enter(remote, o.dir, nil)
		idle, st := e.lockIdle()
		err := st.glance(o)
		st.mu.Unlock()
		e.idleConns.Put(idle)
		e.fair.leave(o.subnet)
		if o.subnet = nil; err != nil {
			return err
		}
	}
	if why := e.enterGates(remote.addr, o.dir, p); why != nil {
		return e.refusedAtGate(o, why)
	}
	return nil
}

// refusedAtGate returns the error for a connection that a gate refused. The gate has counted it.
func (e *engine) refusedAtGate(o *opening, why *LimitError) error {
	if e.ended.Load() {
		return errClosed
	}
	if e.trace != nil {
		e.stripes[0].traceGate(o, why)
	}
	return why
}

// glance refuses a connection that certainly does not fit now. The stripe's lock is held.
func (st *stripe) glance(o *opening) error {
	if st.closed {
		return errClosed
	}
	observed := st.engine.observed.load() // these refuse nothing, now or later
	for _, k := range [...]Kind{KindTransient, KindSystem} {
		p := st.engine.fixed[k]
		d, handed, full := p.fullFor(o.unit, &p.limit)
		if !full || observed.has(k) {
			continue
		}
		st.traceOpening(o) // its own limit may refuse it, and is named after it
		o.cost = st.engine.classes.connCost
		r := o.total()
		r.observed = observed
		why := st.checkOpening(o, &r)
		if why == nil {
			var v verdict
			if v, why = st.checkFirst(&r); v == undecided {
				return nil // its cost may be what is refused
			}
		}
		if why == nil {
			why = st.refuse(&r, &st.fixed[k].account, item{d, 1}, handed)
		}
		return st.refuseOpening(why, o, &r)
	}
	return nil
}

// checkFirst decides what comes before a full scope: whether the rates of the standard scopes
// have tokens, and whether these scopes admit what the connection costs in memory, and what its
// subnet may have.
func (st *stripe) checkFirst(r *request) (verdict, *noted) {
	if st.rated {
		if why := st.glanceAtRates(r); why != nil {
			return refused, why
		}
	}
	if r.memory == 0 && !st.engine.rations(r) {
		return admitted, nil
	}
	var c chain
	c.stand(st.fixed[KindTransient], st.fixed[KindSystem])
	return st.checkShared(&c, r, onlyAsk)
}

// VerifySourceAddress reports whether a transport should verify a source address before it
// spends anything on the connection. It should if connections from the address's subnet have
// come often lately, for which each call counts as one attempt, and, for every address, if more
// than half of the transient scope's inbound connections are taken. It is true for nil and for an
// address that is not an IP address with a port.
func (m *Manager) VerifySourceAddress(addr net.Addr) bool {
	return m.halfConnected() || m.gate().suspicious(addr)
}

// halfConnected reports whether transient holds more than half of its limit on inbound
// connections. A loose pool never does, and the word of a tight one is the exact use. It is
// called for each packet that begins a connection, and takes no lock.
func (e *engine) halfConnected() bool {
	p := e.fixed[KindTransient]
	w := p.load(dimConnsIn)
	return w.tight() && w.handed() > p.limitCopy.Load()[dimConnsIn]/2
}

// enterGates asks the gates in force for a connection from addr, and returns the refusal, nil
// if there is none. Without an address there is nothing to ask. d is inbound or outbound
// connections. What the gates gave is written to p.
func (e *engine) enterGates(addr netip.Addr, d dim, p *subnets.Pass) *LimitError {
	for {
		why, ok := e.gate().enter(addr, d, p)
		if ok || why != nil {
			return why
		}
		// These gates have retired, and others are in force.
	}
}

// refuseForMemory refuses a connection that has no scope yet, unless memory is only observed.
func (e *engine) refuseForMemory(o *opening) error {
	idle, st := e.lockIdle()
	defer e.idleConns.Put(idle)
	defer st.mu.Unlock()
	if st.closed {
		return errClosed
	}
	return st.refuseForMemory(o, nil)
}

// refuseForMemory refuses a stream or a connection for the sake of the process's memory. If
// memory is only observed, it counts that, and returns nil. The stripe's lock is held.
func (st *stripe) refuseForMemory(o *opening, asker *peerScope) error {
	r := o.total()
	r.asker = asker
	why := st.noteMemory(&r)
	if st.onlyObserves(why) {
		return nil
	}
	st.traceOpening(o)
	return st.refuseOpening(why, o, &r)
}

// onlyObserves reports whether memory is only observed, and counts the refusal if so.
func (st *stripe) onlyObserves(why *noted) bool {
	if !st.engine.observed.load().has(KindProcess) {
		return false
	}
	st.observe(why)
	st.exceeded()
	return true
}

// noteMemory notes that a connection or stream is refused for the sake of memory.
func (st *stripe) noteMemory(r *request) *noted {
	p := st.engine.pressure
	why := st.note(refusal{&p.scope, r.dir, CauseMemoryPressure, network.ReservationPriorityAlways, p.inUse.Load(), 1, p.refuse}, r, nil)
	if st.trace != nil {
		why.holding(amounts{})
	}
	return why
}

// passStreamGate calls admits if the subnet of a peer has a token for a stream, and takes the
// token if admits returns true. If the gate refuses, it returns the refusal, otherwise nil.
func (st *stripe) passStreamGate(ps *peerScope, o *opening, admits func() bool) error {
	err, ok := st.engine.gate().streams.TakeIf(ps.far(), subnets.Way(o.dir-dimStreamsIn), admits)
	if ok || err == nil {
		return nil
	}
	if why, _ := err.(*LimitError); st.trace != nil {
		st.traceGateLocked(o, why)
	}
	return err
}
