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
	limits := cfg.gateLimits()
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
