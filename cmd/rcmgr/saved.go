package main

// What "explain" answers from a saved snapshot: the limits and rates of the scopes on the way, the
// gates, fair shares and the memory of the process, as far as the snapshot has them.

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/weir-p2p/rcmgr"
)

// savedAnswer is an answer in the making.
type savedAnswer struct {
	q       *question
	s       *rcmgr.Snapshot
	out     *rcmgr.Explanation
	held    map[[2]string]int64 // what the steps before have taken, by scope and limit
	unknown []string
	addr    netip.Addr // of the far end; invalid without an address of its own
}

// answer answers the question from a snapshot.
func (q *question) answer(s *rcmgr.Snapshot) (*rcmgr.Explanation, error) {
	if q.peer != "" {
		id, err := peer.Decode(q.peer)
		if err != nil {
			return nil, usage("invalid value %q for flag --peer: expected a peer ID", q.peer)
		}
		q.peer = id.String()
	}
	a := &savedAnswer{q: q, s: s, out: &rcmgr.Explanation{Admitted: true}, held: make(map[[2]string]int64)}
	if q.endpoint != "" {
		at, err := multiaddr.NewMultiaddr(q.endpoint)
		if err != nil {
			return nil, usage("invalid value %q for flag --endpoint: expected a multiaddr", q.endpoint)
		}
		if _, err := at.ValueForProtocol(multiaddr.P_CIRCUIT); err != nil { // a relayed connection has no address of its own
			if ip, err := manet.ToIP(at); err == nil {
				a.addr, _ = netip.AddrFromSlice(ip)
				a.addr = a.addr.Unmap()
			}
		}
	}
	if err := a.steps(); err != nil {
		return nil, err
	}
	for i := range a.out.Checks {
		if k := &a.out.Checks[i]; !k.Fits && !k.Observed {
			a.out.Admitted, a.out.By = false, k
			break
		}
	}
	a.out.Unknown = "this is from a saved snapshot"
	if len(a.unknown) > 0 {
		a.out.Unknown += ", which does not show " + strings.Join(a.unknown, "; ")
	}
	return a.out, nil
}

// steps takes the steps of the request, in the order in which a manager takes them.
func (a *savedAnswer) steps() error {
	q := a.q
	in := strings.ToUpper(q.direction[:1]) + q.direction[1:]
	unit := []string{"Streams" + in, "Streams"}
	named := func(kind, name string) string {
		if name == "" {
			return ""
		}
		return kind + ":" + name
	}
	of, protocol, service := named("peer", q.peer), named("protocol", q.protocol), named("service", q.service)
	chain := map[rcmgr.Kind][]string{rcmgr.KindSystem: {"system"}, rcmgr.KindTransient: {"transient", "system"},
		rcmgr.KindPeer: {of, "system"}, rcmgr.KindProtocol: {protocol, "system"}, rcmgr.KindService: {service, "system"}}[q.what]
	switch q.what {
	case rcmgr.KindConn:
		unit = []string{"Conns" + in, "Conns"}
		if q.fd {
			unit = append(unit, "FD")
		}
		a.unknown = append(a.unknown, "the allowlist")
		a.process()
		a.scope("open", "transient", unit, 1)
		a.scope("open", "system", unit, 1)
		a.gates()
		a.scope("peer", of, unit, 1)
		if chain = []string{of, "system"}; of == "" {
			chain = []string{"transient", "system"}
		}
	case rcmgr.KindStream:
		a.unknown = append(a.unknown, "the allowlist")
		a.process()
		for _, scope := range []string{of, "transient", "system"} {
			a.scope("open", scope, unit, 1)
		}
		a.scope("protocol", protocol, unit, 1)
		a.scope("service", service, unit, 1)
		if protocol != "" {
			a.unknown = append(a.unknown, "the peer's part of the protocol or service")
		}
		if chain = []string{of, protocol, service, "system"}; protocol == "" {
			chain = []string{of, "transient", "system"}
		}
	default:
		if chain == nil {
			return usage("a request for %v cannot be explained: expected conn, stream, peer, protocol, service, system or transient", q.what)
		}
	}
	if q.memory > 0 {
		for _, scope := range chain {
			a.scope("memory", scope, []string{"Memory"}, int64(q.memory))
		}
		if q.priority < 255 {
			a.unknown = append(a.unknown, "how priorities of memory are read")
		}
	}
	for _, scope := range chain {
		if scope != "" && !slices.ContainsFunc(a.s.Scopes, func(sc rcmgr.ScopeState) bool { return sc.Name == scope }) {
			a.unknown = append(a.unknown, "the scope "+scope)
		}
	}
	return nil
}

// observed reports whether the limits of a kind are only observed.
func (a *savedAnswer) observed(k rcmgr.Kind) bool { return slices.Contains(a.s.Observed, k) }

// scope checks the rates and the limits of a scope, and takes n of each.
func (a *savedAnswer) scope(step, name string, limits []string, n int64) {
	i := slices.IndexFunc(a.s.Scopes, func(sc rcmgr.ScopeState) bool { return sc.Name == name })
	if i < 0 {
		return
	}
	sc := &a.s.Scopes[i]
	one := rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{*sc}}
	uses := one.LimitUses()
	for _, r := range sc.Rates {
		if slices.Contains(limits, r.Name) {
			k := rcmgr.LimitCheck{Step: step, Scope: name, Kind: sc.Kind, Name: "Rates." + r.Name, Use: r.Burst - r.Left, Asked: n,
				Limit: r.Burst, Threshold: r.Burst, Room: r.Left, Fits: r.Left > 0, Observed: a.observed(sc.Kind)}
			if !k.Fits {
				k.Cause, k.ConfigKey = rcmgr.CauseRate.String(), configKey(rcmgr.LimitUse{Scope: name, Kind: sc.Kind, Name: k.Name})
			}
			a.out.Checks = append(a.out.Checks, k)
		}
	}
	for _, limit := range limits {
		u := uses[slices.IndexFunc(uses, func(u rcmgr.LimitUse) bool { return u.Name == limit })]
		at := [2]string{name, limit}
		k := rcmgr.LimitCheck{Step: step, Scope: name, Kind: u.Kind, Name: limit, Use: u.Use + a.held[at], Asked: n,
			Limit: u.Limit, Threshold: u.Limit, Observed: a.observed(u.Kind)}
		a.held[at] += n
		cause := rcmgr.CauseLimit
		if most, holder := a.share(&k); most < k.Limit {
			if k.Threshold = most; n > most-k.Use && n <= k.Limit-k.Use {
				cause, k.Holder = rcmgr.CauseFairShare, holder
			}
		}
		k.Room = k.Threshold - k.Use
		if k.Fits = n <= k.Room; !k.Fits {
			k.Cause, k.ConfigKey = cause.String(), configKey(u)
			if b := a.s.Bottleneck(); b != nil && b.Holder != "" && b.Scope == u.Scope && b.Name == u.Name {
				k.Largest, k.LargestHolds = "peer:"+b.Holder, b.Held
			}
		}
		a.out.Checks = append(a.out.Checks, k)
	}
}

// share returns how much of a limit may be in use after a request under WithFairShare, and the
// subnet or peer that holds too much of it. It is the whole limit if nothing is shared.
func (a *savedAnswer) share(k *rcmgr.LimitCheck) (most int64, holder string) {
	most = k.Limit
	outbound := a.q.direction == "outbound"
	if !slices.Contains(a.s.FairShare.Scopes, k.Kind) || k.Kind > rcmgr.KindTransient || outbound {
		return most, ""
	}
	if k.Use+k.Asked <= most/2 {
		return most, "" // below half, there are no shares
	}
	if a.q.what != rcmgr.KindConn || !a.addr.IsValid() {
		a.doNotKnow("the share of the subnet that the peer came from")
		return most, ""
	}
	bits := 24
	if a.addr.Is6() {
		bits = 56
	}
	subnet, _ := a.addr.Prefix(bits)
	i := slices.IndexFunc(a.s.FairShare.Largest, func(s rcmgr.SubnetShare) bool { return s.Prefix == subnet })
	if i < 0 {
		if len(a.s.FairShare.Largest) < a.s.FairShare.Subnets {
			a.doNotKnow("the share of " + subnet.String() + ", which is not among the largest")
		}
		return most, ""
	}
	use := a.s.FairShare.Largest[i].System
	if k.Kind == rcmgr.KindTransient {
		use = a.s.FairShare.Largest[i].Transient
	}
	held := use.ConnsInbound
	if k.Name == "FD" {
		held = use.FD
	}
	return max(most/2, most-held), "subnet:" + subnet.String()
}

// doNotKnow adds something that the snapshot does not show, once.
func (a *savedAnswer) doNotKnow(what string) {
	if !slices.Contains(a.unknown, what) {
		a.unknown = append(a.unknown, what)
	}
}

// gates checks how many connections the far end's subnets have.
func (a *savedAnswer) gates() {
	g := &a.s.Gates
	if a.q.direction == "outbound" && (g.Limits.Outbound == nil || !*g.Limits.Outbound) {
		return
	}
	if g.Limits.Subnets.IPv4 == nil && g.Limits.Subnets.Networks == nil {
		a.doNotKnow("the limits of the gates, because it is of an older version")
		return
	}
	if !a.addr.IsValid() {
		if a.q.endpoint == "" {
			a.doNotKnow("what the gates say: that needs --endpoint")
		}
		return
	}
	a.doNotKnow("how fast connections have come from there")
	for network, limit := range a.subnets() {
		i := slices.IndexFunc(g.Fullest, func(s rcmgr.SubnetState) bool { return s.Prefix == network.prefix })
		var use int64
		switch {
		case i >= 0:
			use = g.Fullest[i].Conns
		case len(g.Fullest) < g.Subnets && len(g.Fullest) > 0:
			// It is no fuller than the last one that is listed.
			if last := g.Fullest[len(g.Fullest)-1]; last.Conns >= last.Limit {
				a.doNotKnow("how many connections " + network.prefix.String() + " has")
			}
			continue
		}
		k := rcmgr.LimitCheck{Step: "gate", Scope: "subnet:" + network.prefix.String(), Kind: rcmgr.KindSubnet,
			Name: "Conns" + strings.ToUpper(a.q.direction[:1]) + a.q.direction[1:], Use: use, Asked: 1,
			Limit: limit, Threshold: limit, Room: limit - use, Fits: use < limit, Observed: a.observed(rcmgr.KindSubnet)}
		if !k.Fits {
			k.Cause, k.ConfigKey = rcmgr.CauseSubnet.String(), network.place
		}
		a.out.Checks = append(a.out.Checks, k)
	}
}

// gated is a subnet or network with a limit on connections, and the place of that limit.
type gated struct {
	prefix netip.Prefix
	place  string
}

// subnets calls yield with the limits that the far end's address has to fit: that of the most
// specific network that is named, or those of its subnets.
func (a *savedAnswer) subnets() func(yield func(gated, int64) bool) {
	l := &a.s.Gates.Limits.Subnets
	var named netip.Prefix
	for n := range l.Networks {
		if n.Contains(a.addr) && (!named.IsValid() || n.Bits() > named.Bits()) {
			named = n
		}
	}
	return func(yield func(gated, int64) bool) {
		if named.IsValid() {
			if limit := l.Networks[named]; limit != rcmgr.Unlimited {
				yield(gated{named, fmt.Sprintf("Gates.Subnets.Networks[%q]", named)}, int64(limit.Build(0)))
			}
			return
		}
		family, levels := "IPv4", l.IPv4
		if a.addr.Is6() {
			family, levels = "IPv6", l.IPv6
		}
		for _, bits := range slices.Backward(slices.Sorted(maps.Keys(levels))) { // as the gates do
			limit := levels[bits]
			prefix, err := a.addr.Prefix(bits)
			if err == nil && limit != rcmgr.Unlimited &&
				!yield(gated{prefix, fmt.Sprintf("Gates.Subnets.%s[%q]", family, strconv.Itoa(bits))}, int64(limit.Build(0))) {
				return
			}
		}
	}
}

// process checks the memory of the process.
func (a *savedAnswer) process() {
	p := &a.s.Process
	if p.Limit == 0 || a.q.direction != "inbound" {
		return
	}
	most := p.RefuseAbove
	if p.Refusing {
		most = p.AdmitBelow
	}
	name := "StreamsInbound"
	if a.q.what == rcmgr.KindConn {
		name = "ConnsInbound"
	}
	k := rcmgr.LimitCheck{Step: "gate", Scope: rcmgr.KindProcess.String(), Kind: rcmgr.KindProcess, Name: name, Use: p.InUse, Asked: 1,
		Limit: p.RefuseAbove, Threshold: most, Room: most - p.InUse, Fits: !p.Refusing, Observed: a.observed(rcmgr.KindProcess)}
	if !k.Fits {
		k.Cause, k.ConfigKey = rcmgr.CauseMemoryPressure.String(), "WithMemoryPressure"
	}
	a.out.Checks = append(a.out.Checks, k)
}
