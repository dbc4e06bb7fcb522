package rcmgr

// What stands before the scopes: how many connections, and how many attempts,
// may come from one part of the IP address space. The gates are for inbound
// connections, and by choice for outbound ones, that have an address of their
// own; their locks are never held together with those of the engine (I8).

import (
	"net"
	"net/netip"
)

type gate struct {
	subnets *subnets     // connections, and tokens unless a caller brought its own
	caller  *callerRates // nil: nobody did
	sources *subnets     // attempts that need not prove their source address

	outbound bool // outbound connections pass the gates, too

	limits GateLimits // what it was made from; not written to
}

// newGate makes the gates. Bad prefixes are errors. noting tells whether refusals
// are noted for the log.
func newGate(cfg gateConfig, caller *callerRates, noting bool) (*gate, error) {
	limits := cfg.limits()
	if caller != nil {
		cfg.rate = rateConfig{}
	}
	s, err := newSubnets(cfg.subnets, cfg.rate)
	if err != nil {
		return nil, err
	}
	s.noting = noting
	sources, err := newSubnets(subnetConfig{}, cfg.subnets.sourceRates())
	if err != nil {
		return nil, err
	}
	sources.quiet = true
	return &gate{subnets: s, caller: caller, sources: sources, outbound: cfg.outbound, limits: limits}, nil
}

// concerns tells whether connections in a direction pass the gates.
func (g *gate) concerns(d dim) bool {
	return d == dimConnsIn || g.outbound
}

// askCaller asks the caller's own rates for an address that has passed the subnets,
// or takes back what they gave it.
func (g *gate) askCaller(d dim, p *gatePass) (why *LimitError, ok bool) {
	if g.caller.allows(p.addr) || g.subnets.lets(p.addr, KindRate, d) {
		return nil, true
	}
	refused := *p
	*p = gatePass{}
	refused.undo()
	return g.subnets.refuse(refused.addr, KindRate, d), false
}

// forget drops what the gates keep of addresses that have been quiet.
func (g *gate) forget() {
	g.subnets.forget(g.subnets.now())
	g.sources.forget(g.sources.now())
}

// suspicious tells whether the subnet of a source address has come so often
// lately that the address must be verified. What is no IP address is.
func (g *gate) suspicious(addr net.Addr) bool {
	if addr == nil {
		return true
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return true
	}
	_, ok := g.sources.enter(normalAddr(ap.Addr()), dimConnsIn, &gatePass{})
	return !ok
}

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
