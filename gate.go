package rcmgr

// What stands before the scopes: how many connections, and how many attempts,
// may come from one part of the IP address space. The gates are for inbound
// connections, and by choice for outbound ones, that have an address of their
// own; their locks are never held together with those of the engine (I8).

import (
	"net"
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

type gate struct {
	subnets *subnets.Subnets // connections, and tokens unless a caller brought its own
	caller  *callerRates     // nil: nobody did
	sources *subnets.Subnets // attempts that need not prove their source address

	outbound bool // outbound connections pass the gates, too

	limits GateLimits // what it was made from; not written to
}

// newGate makes the gates. Bad prefixes are errors. noting tells whether refusals
// are noted for the log. observed has the gates that refuse nothing; nil is none.
func newGate(cfg gateConfig, caller *callerRates, noting bool, observed *observedKinds) (*gate, error) {
	limits := cfg.gateLimits()
	if caller != nil {
		cfg.rate = rateConfig{}
	}
	how := subnets.Config{Error: gateRefusal, Noting: noting}
	if observed != nil {
		how.Observed = func(g subnets.Gate) bool { return observed.load().has(gateKinds[g]) }
	}
	s, err := newSubnets(cfg.subnets, cfg.rate, how)
	if err != nil {
		return nil, err
	}
	sources, err := newSubnets(subnetConfig{}, cfg.subnets.sourceRates(), subnets.Config{})
	if err != nil {
		return nil, err
	}
	return &gate{subnets: s, caller: caller, sources: sources, outbound: cfg.outbound, limits: limits}, nil
}

// concerns tells whether connections in a direction pass the gates.
func (g *gate) concerns(d dim) bool {
	return d == dimConnsIn || g.outbound
}

// newSubnets makes one of the gates' two counts. Bad prefixes are errors.
func newSubnets(conns subnetConfig, rates rateConfig, how subnets.Config) (*subnets.Subnets, error) {
	var b subnets.Builder
	if err := conns.each(
		func(f ip.Family, l ConnLimitPerSubnet) error {
			return b.LimitConns(f, l.PrefixLength, connLimit(l.ConnCount))
		},
		func(f ip.Family, l NetworkPrefixLimit) error {
			return b.LimitNetworkConns(f, l.Network, connLimit(l.ConnCount))
		},
	); err != nil {
		return nil, err
	}
	if err := rates.each(b.LimitRate, b.LimitNetworkRate); err != nil {
		return nil, err
	}
	return b.New(how), nil
}

// enter asks the gates for a connection from addr, or tells why not: no reason is given by
// those that have retired. d is inbound connections, or outbound ones. What was given is
// written to p.
func (g *gate) enter(addr netip.Addr, d dim, p *subnets.Pass) (why *LimitError, ok bool) {
	err, ok := g.subnets.Enter(addr, wayOf(d), p)
	if ok && g.asksCaller() {
		err, ok = g.askCaller(d, p)
	}
	why, _ = err.(*LimitError)
	return why, ok
}

// asksCaller reports whether the rates are those of a limiter that the program brought.
func (g *gate) asksCaller() bool { return g.caller.set() }

// askCaller asks the caller's own rates for an address that has passed the subnets,
// or takes back what they gave it.
func (g *gate) askCaller(d dim, p *subnets.Pass) (why error, ok bool) {
	if g.caller.allows(p.Addr) {
		return nil, true
	}
	if why, ok = g.subnets.RefuseRate(p.Addr, wayOf(d)); !ok {
		refused := *p
		*p = subnets.Pass{}
		refused.Undo()
	}
	return why, ok
}

// addRefusals adds what the gates have refused, and would have, to counts by kind.
func (g *gate) addRefusals(refused, would *[numKinds]dimCounts) {
	r, w := g.subnets.Refusals()
	addGateCounts(refused, &r)
	addGateCounts(would, &w)
}

// giveRemarks is stripe.giveRemarks for the gates.
func (g *gate) giveRemarks(refused, would *unloggedRefusals) {
	r, w := g.subnets.TakeNotes()
	takeFromGates(refused, &r)
	takeFromGates(would, &w)
}

// forget drops what the gates keep of addresses that have been quiet.
func (g *gate) forget() {
	g.subnets.Forget(0)
	g.sources.Forget(0)
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
	_, ok := g.sources.Enter(ip.Normal(ap.Addr()), subnets.Inbound, &subnets.Pass{})
	return !ok
}
