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
	rater   connRater
	sources *rates // attempts that need not prove their source address

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

// leave ends a connection: it no longer counts in its subnets.
func (g *gate) leave(p gatePass) {
	if p.addr.IsValid() {
		g.subnets.remove(p.addr)
	}
}

// undo takes back everything, because something else refused the connection.
func (g *gate) undo(p gatePass) {
	g.leave(p)
	p.token.giveBack(time.Now())
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
