package rcmgr

// What stands before the scopes: how many connections, and how many attempts,
// may come from one part of the IP address space. The gates are for inbound
// connections, and by choice for outbound ones, that have an address of their
// own; their locks are never held together with those of stripes and pools (I8).

import (
	"net"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

type gate struct {
	subnets *subnets
	rater   connRater // nil: connections may come as fast as they like
	sources *rates    // attempts that need not prove their source address

	outbound bool // outbound connections pass the gates, too
}

// newGate makes the gates, with a rater of its own where none is given. Bad
// prefixes are errors.
func newGate(cfg gateConfig, rater connRater) (*gate, error) {
	s, err := newSubnets(cfg.subnets)
	if err != nil {
		return nil, err
	}
	if rater == nil {
		if rater, err = newConnRates(cfg.rate); err != nil {
			return nil, err
		}
	} else if own, ok := rater.(callerRates); ok && own.Limiter == nil {
		rater = nil // and no clock is read
	}
	sources, err := newSourceRates(cfg.subnets)
	if err != nil {
		return nil, err
	}
	return &gate{subnets: s, rater: rater, sources: sources, outbound: cfg.outbound}, nil
}

// concerns tells whether connections in a direction pass the gates.
func (g *gate) concerns(dir network.Direction) bool {
	return dir == network.DirInbound || g.outbound
}

// gatePass is what the gates gave for one connection. The zero value is nothing.
type gatePass struct {
	addr  netip.Addr // counted in its subnets, if valid
	token rateToken
}

// enter asks the gates for a connection from addr, or says why not. Without an
// address there is nothing to ask.
func (g *gate) enter(addr netip.Addr, dir network.Direction, why *refusal) (gatePass, verdict) {
	if !addr.IsValid() {
		return gatePass{}, admitted
	}
	if prefix, limit, ok := g.subnets.add(addr); !ok {
		return gatePass{}, why.refuseAtGate(KindSubnet, CauseSubnet, dir, prefix, int64(limit))
	}
	if g.rater == nil {
		return gatePass{addr: addr}, admitted
	}
	token, prefix, ok := g.rater.take(addr, time.Now())
	if !ok {
		g.subnets.remove(addr)
		return gatePass{}, why.refuseAtGate(KindRate, CauseRate, dir, prefix, 0)
	}
	return gatePass{addr: addr, token: token}, admitted
}

// refuseAtGate says which prefix is full.
func (why *refusal) refuseAtGate(kind Kind, cause Cause, dir network.Direction, prefix netip.Prefix, limit int64) verdict {
	d := dimConnsIn
	if dir == network.DirOutbound {
		d = dimConnsOut
	}
	var buf [len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128")]byte
	text := string(prefix.AppendTo(buf[:0])) // prefix.String allocates twice
	*why = refusal{scopeName{kind: kind, text: text}, d, cause, limit, 1, limit}
	return refused
}

// leave ends a connection that is counted in the subnets of addr.
func (g *gate) leave(addr netip.Addr) { g.subnets.remove(addr) }

// undo takes back everything, because something else refused the connection.
func (g *gate) undo(p gatePass) {
	g.leave(p.addr)
	if p.token.from != nil {
		p.token.giveBack(time.Now())
	}
}

// forget drops what the gates keep of addresses that have been quiet.
func (g *gate) forget(now time.Time) {
	if own, ok := g.rater.(*rates); ok {
		own.dropFull(now)
	}
	g.sources.dropFull(now)
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
	_, _, ok := g.sources.take(normalAddr(ap.Addr()), time.Now())
	return !ok
}

// passGates asks the gates in order: is there any room at all, has the subnet
// room, is it slow enough. Who is refused by the first leaves no trace in the
// others.
func (m *Manager) passGates(h *holder, r *request, far endpoint) (gatePass, error) {
	st := m.anyStripe()
	if m.crowded(r) {
		if err := st.glance(h, r); err != nil {
			return gatePass{}, err
		}
	}
	var why refusal
	pass, v := m.gate.enter(far.addr, h.dir, &why)
	if v == admitted {
		return pass, nil
	}
	st.lock(false)
	defer st.unlock(false)
	if st.closed {
		return gatePass{}, errClosed
	}
	st.number(h)
	st.refusedAtGate(&why)
	return gatePass{}, st.refuseOpening(h, r)
}

// glance refuses a connection that certainly does not fit now.
func (st *stripe) glance(h *holder, r *request) error {
	st.lock(false)
	defer st.unlock(false)
	if st.closed {
		return errClosed
	}
	st.number(h) // its own limit may refuse it, and is named by it
	var c chain
	c.stand(st.fixed[KindTransient], st.fixed[KindSystem])
	if st.checkOpening(h, r) != refused && st.checkShared(&c, r, false, false) != refused {
		return nil
	}
	return st.refuseOpening(h, r)
}

// crowded tells, without a lock, whether system or transient may be full.
func (m *Manager) crowded(r *request) bool {
	for _, k := range [...]Kind{KindTransient, KindSystem} {
		for _, it := range r.items() {
			if m.fixed[k].tight(it.d) {
				return true
			}
		}
	}
	return false
}

// VerifySourceAddress tells a transport whether to make sure of a source
// address before it spends anything on the connection: when the address's
// subnet has come often lately, and when more than half of the transient scope's
// inbound connections are taken, whoever asks.
func (m *Manager) VerifySourceAddress(addr net.Addr) bool {
	return m.halfConnected() || m.gate.suspicious(addr)
}

// halfConnected tells whether transient holds more than half of the inbound
// connections that it may. A loose pool never does.
func (m *Manager) halfConnected() bool {
	p := m.fixed[KindTransient]
	if !p.tight(dimConnsIn) {
		return false
	}
	p.home.lock(false)
	defer p.home.unlock(false)
	l := p.tally(dimConnsIn)
	return l.leastUse() > l.limit/2
}
