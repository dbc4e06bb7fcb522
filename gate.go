package rcmgr

// The gates, which limit how many connections, how many attempts and how many streams may come
// from one part of the IP address space. A connection passes them before any scope is asked.
// Inbound connections that have an IP address of their own pass the gates, and outbound ones do
// if the configuration says so. The locks of the gates are never held together with those of
// the engine, except that a stream is decided under the lock of its subnet (I8).

import (
	"net"
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// gate is all gates of a manager. Its methods are safe for concurrent use.
type gate struct {
	subnets *subnets.Subnets // connections, and tokens unless the program has its own limiter
	caller  *callerRates     // the program's own limiter of rates, or nil
	sources *subnets.Subnets // attempts that need not prove their source address
	dials   *subnets.Subnets // tokens of outbound connections alone; nil if they have no rate
	streams *subnets.Subnets // tokens of streams, see entry.go; nil if they have no rate

	outbound bool // the gates check outbound connections, too

	limits   GateLimits // the limits that the gates were made from; not written to
	replaced replacedLists
	// refusing says of each gate whether it has a limit by which it may refuse.
	refusing [subnets.Gates]bool
}

// newGate makes the gates. It returns an error if a prefix or a limit is invalid. noting reports
// whether refusals are noted for the log. observed has the gates that are only observed, and
// refuse nothing; it may be nil.
func newGate(cfg gateConfig, caller *callerRates, noting bool, observed *observedKinds) (*gate, error) {
	limits := cfg.gateLimits()
	if caller != nil {
		cfg.rate = rateConfig{}
	}
	replaced := cfg.subnets.replaced // a copy, because the method keeps what it is of
	how := subnets.Config{Error: replaced.refusal, Noting: noting}
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
	g := &gate{subnets: s, caller: caller, sources: sources, outbound: cfg.outbound, limits: limits, replaced: replaced}
	if limitsAny(gateLists[ConnRate](limits.DialRate), ConnRate{Burst: Unlimited}) {
		how.Error = dialRefusal
		if g.dials, err = newSubnets(subnetConfig{}, *cfg.dials, how); err != nil {
			return nil, err
		}
	}
	if limitsAny(gateLists[ConnRate](limits.StreamRate), ConnRate{Burst: Unlimited}) {
		how.Error = streamRefusal
		if g.streams, err = newSubnets(subnetConfig{}, *cfg.streams, how); err != nil {
			return nil, err
		}
	}
	g.refusing[subnets.Conns] = limitsAny(gateLists[LimitVal](limits.Subnets), Unlimited)
	g.refusing[subnets.Rate] = caller.set() ||
		caller == nil && limitsAny(gateLists[ConnRate](limits.Rate), ConnRate{Burst: Unlimited})
	return g, nil
}

// place returns where the limit on connections of a family is set. named reports whether it is that
// of a network.
func (l *replacedLists) place(f ip.Family, named bool) limitPlace {
	switch {
	case named && l.networks[f]:
		return placeOfNetworksOption
	case named:
		return placeOfName
	case l.perSubnet[f]:
		return placeOfSubnetsOption
	}
	return placeOfAll
}

// refusal is gateRefusal for limits that options may have replaced.
func (l *replacedLists) refusal(r subnets.Refusal) error {
	e, _ := gateRefusal(r).(*LimitError)
	if r.Gate == subnets.Conns {
		e.asked.place = l.place(ip.FamilyOf(r.Subnet.Addr()), r.Rule == subnets.ThisNetwork)
	}
	return e
}

// limitsAny reports whether any of the lists' limits is not the one that stands for none.
func limitsAny[V comparable](lists gateLists[V], none V) bool {
	for _, limit := range lists.Networks {
		if limit != none {
			return true
		}
	}
	for f := range ip.Families {
		for _, limit := range *lists.perSubnet(f) {
			if limit != none {
				return true
			}
		}
	}
	return false
}

// refusable returns, by kind, the dimensions in which the gates may refuse a connection.
func (g *gate) refusable() (may [numKinds]dimSet) {
	for of, k := range gateKinds {
		if g.refusing[of] {
			may[k] = dimSetOf(func(d dim) bool { return resourceOf[d] == ResourceConnection && k.canRunOutOf(d) && g.checks(d) })
		}
	}
	if g.dials != nil {
		may[KindRate] |= 1 << dimConnsOut
	}
	for _, d := range [...]dim{dimStreamsIn, dimStreamsOut} {
		if g.paces(d) {
			may[KindRate] |= 1 << d
		}
	}
	return may
}

// concerns reports whether any gate checks connections in a direction.
func (g *gate) concerns(d dim) bool { return g.checks(d) || g.dials != nil }

// checks reports whether the gates that check inbound connections check those in a direction.
func (g *gate) checks(d dim) bool {
	return d == dimConnsIn || g.outbound
}

// paces reports whether streams of a direction have a rate by subnet. d is their dimension.
func (g *gate) paces(d dim) bool { return g.streams != nil && (d == dimStreamsIn || g.outbound) }

// newSubnets makes one of the gates' Subnets. It returns an error if a prefix or a
// limit is invalid.
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

// counted is the records of connections or of streams, which count from the first dimension on:
// inbound, outbound.
type counted struct {
	*subnets.Subnets
	first dim
}

// all returns the records by which the gates refuse.
func (g *gate) all() (all []counted) {
	for _, s := range [...]counted{{g.subnets, dimConnsIn}, {g.dials, dimConnsIn}, {g.streams, dimStreamsIn}} {
		if s.Subnets != nil {
			all = append(all, s)
		}
	}
	return all
}

// enter asks the gates to admit a connection from or to addr. d is the dimension of inbound
// connections, or that of outbound ones. enter writes to p what the gates have counted. If they
// refuse, ok is false and why is the refusal; gates that have retired return no why.
func (g *gate) enter(addr netip.Addr, d dim, p *subnets.Pass) (why *LimitError, ok bool) {
	if d == dimConnsOut && g.dials != nil {
		return g.enterDial(addr, p)
	}
	return g.enterBoth(addr, d, p)
}

// enterDial is enter for an outbound connection where these have a rate of their own.
func (g *gate) enterDial(addr netip.Addr, p *subnets.Pass) (why *LimitError, ok bool) {
	var dial subnets.Pass
	err, ok := g.dials.Enter(addr, subnets.Outbound, &dial)
	if !ok {
		why, _ = err.(*LimitError)
		return why, false
	}
	if g.outbound {
		if why, ok = g.enterBoth(addr, dimConnsOut, p); !ok {
			dial.Undo()
			return why, false
		}
	} else {
		p.Addr, p.Key = dial.Addr, dial.Key
	}
	p.AlsoUndo(&dial)
	return nil, true
}

// enterBoth is enter for the gates that check inbound connections, too.
func (g *gate) enterBoth(addr netip.Addr, d dim, p *subnets.Pass) (why *LimitError, ok bool) {
	err, ok := g.subnets.Enter(addr, wayOf(d), p)
	if ok && g.asksCaller() {
		err, ok = g.askCaller(d, p)
	}
	why, _ = err.(*LimitError)
	return why, ok
}

// asksCaller reports whether the program's own limiter decides about rates.
func (g *gate) asksCaller() bool { return g.caller.set() }

// askCaller asks the program's own limiter to admit an address that the subnets have admitted.
// If the limiter refuses, askCaller undoes the pass p.
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

// addRefusals adds the counts of connections that the gates have refused, and of those that
// gates which are only observed would have refused, to counts by kind.
func (g *gate) addRefusals(refused, would *[numKinds]dimCounts) {
	for _, s := range g.all() {
		r, w := s.Refusals()
		addGateCounts(refused, &r, s.first)
		addGateCounts(would, &w, s.first)
	}
}

// giveRemarks adds the counts of the gates' refusals, and hands over the remarks that are noted
// of them, as stripe.giveRemarks does for a stripe.
func (g *gate) giveRemarks(refused, would *unloggedRefusals) {
	for _, s := range g.all() {
		r, w := s.TakeNotes()
		takeFromGates(refused, &r, s.first)
		takeFromGates(would, &w, s.first)
	}
}

// inUse returns the number of subnets that have connections, and of buckets that are kept.
func (g *gate) inUse() (conns, buckets int) {
	for _, s := range g.all() {
		n, owing := s.InUse()
		conns, buckets = conns+n, buckets+owing
	}
	return conns, buckets
}

// forget drops the records of addresses that have been quiet.
func (g *gate) forget() {
	g.sources.Forget(0)
	for _, s := range g.all() {
		s.Forget(0)
	}
}

// suspicious reports whether so many connections have come from the subnet of a source address
// lately that the address must be verified. It reports true for an address that is no IP address
// with a port.
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

// placeOfSubnet is placeOfPeer for a subnet at a gate.
func (g *gate) placeOfSubnet(name *scopeName, d dim) limitPlace {
	named := false
	switch {
	case name.kind == KindSubnet:
		_, named = g.limits.Subnets.Networks[name.prefix()]
		return g.replaced.place(ip.FamilyOf(name.prefix().Addr()), named)
	case resourceOf[d] == ResourceStream:
		if _, named = g.limits.StreamRate.Networks[name.prefix()]; named {
			return placeOfStreamsByName
		}
		return placeOfStreams
	case d == dimConnsOut && !g.outbound: // only dials have a rate
		if _, named = g.limits.DialRate.Networks[name.prefix()]; named {
			return placeOfDialsByName
		}
		return placeOfDials
	case g.caller != nil:
		return placeOfCaller
	default:
		_, named = g.limits.Rate.Networks[name.prefix()]
	}
	if named {
		return placeOfName
	}
	return placeOfAll
}
