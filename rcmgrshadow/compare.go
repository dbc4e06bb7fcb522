package rcmgrshadow

// The comparison: how much two scopes should differ by what is known to differ, whether they
// do, and which decisions follow from that.

import (
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
)

// decided compares two answers to a call at a scope. The lock is held.
func (m *Manager) decided(c *call, s *scope, leadErr, besideErr error) {
	defer m.contain()
	if m.out {
		return
	}
	theirs, ours := theirsFirst(m, read(leadErr), read(besideErr))
	m.tokens(c, theirs)
	if theirs.like(ours) {
		return
	}
	kind := KindDecision
	if theirs.err != nil && ours.err != nil {
		kind = KindRefusal
	}
	var entry string
	switch {
	case theirs.class == limitedByGate || ours.class == limitedByGate:
		var why notCompared
		if entry, why = m.explainGate(c, theirs, ours); entry == "" && why != "" {
			m.counts.notCompared[why]++
			return
		}
	case m.follows(c, s, theirs) || m.follows(c, s, ours):
		m.counts.notCompared[followsEarlier]++
		return
	default:
		entry = m.explain(c, s, theirs, ours)
	}
	m.count(kind, c.name, entry, fmt.Sprintf("%s; go-libp2p's: %v; ours: %v", c.text(s), theirs, ours))
}

// The names of the scopes that take the place of system and transient for what the allowlist
// admits. Only ours shows what they hold.
const (
	allowlistedSystem    = "allowlistedSystem"
	allowlistedTransient = "allowlistedTransient"
)

// chain returns the names of the shared scopes in which the lead counts what a connection or
// stream holds.
func (s *scope) chain() (names []string) {
	system, transient := "system", "transient"
	if s.outside || s.allowlisted && s.beside != nil {
		system, transient = allowlistedSystem, allowlistedTransient
	}
	names = append(names, system)
	if !s.hasPeer || s.id.kind == kindStream && !s.hasProto {
		names = append(names, transient)
	}
	if !s.hasPeer {
		return names
	}
	add := func(kind scopeKind, name string) {
		id := scopeID{kind, name}.String()
		names = append(names, id)
		if kind != kindPeer {
			names = append(names, id+".peer:"+s.peer.String())
		}
	}
	add(kindPeer, string(s.peer))
	if s.hasProto {
		add(kindProtocol, string(s.proto))
	}
	if s.hasSvc {
		add(kindService, s.svc)
	}
	return names
}

// known returns, by the names of shared scopes, how much more the lead holds in them by what
// is known to differ. The lock is held.
func (m *Manager) known() map[string]network.ScopeStat {
	if len(m.apart)+len(m.direct)+len(m.offsets) == 0 {
		return nil
	}
	all := map[string]network.ScopeStat{}
	add := func(name string, d network.ScopeStat) {
		if d != (network.ScopeStat{}) {
			all[name] = plus(all[name], d)
		}
	}
	for s := range m.apart {
		d := s.debt
		if s.beside == nil {
			d = s.lead.Stat()
		}
		for _, name := range s.chain() {
			add(name, d)
		}
	}
	for id, r := range m.direct {
		d := network.ScopeStat{Memory: r.debt}
		add(id.String(), d)
		if id.kind != kindSystem {
			add("system", d)
		}
	}
	for id, d := range m.offsets {
		add(id.String(), d)
	}
	return all
}

func plus(a, b network.ScopeStat) network.ScopeStat {
	return network.ScopeStat{
		NumStreamsInbound: a.NumStreamsInbound + b.NumStreamsInbound, NumStreamsOutbound: a.NumStreamsOutbound + b.NumStreamsOutbound,
		NumConnsInbound: a.NumConnsInbound + b.NumConnsInbound, NumConnsOutbound: a.NumConnsOutbound + b.NumConnsOutbound,
		NumFD: a.NumFD + b.NumFD, Memory: a.Memory + b.Memory,
	}
}

func minus(a, b network.ScopeStat) network.ScopeStat {
	return network.ScopeStat{
		NumStreamsInbound: a.NumStreamsInbound - b.NumStreamsInbound, NumStreamsOutbound: a.NumStreamsOutbound - b.NumStreamsOutbound,
		NumConnsInbound: a.NumConnsInbound - b.NumConnsInbound, NumConnsOutbound: a.NumConnsOutbound - b.NumConnsOutbound,
		NumFD: a.NumFD - b.NumFD, Memory: a.Memory - b.Memory,
	}
}

// touches reports whether a difference in what is held can change the decision about a
// resource.
func touches(d network.ScopeStat, what string) bool {
	streams, conns := d.NumStreamsInbound|d.NumStreamsOutbound, d.NumConnsInbound|d.NumConnsOutbound
	switch what {
	case "memory":
		return d.Memory != 0
	case "file descriptor":
		return d.NumFD != 0
	case "inbound stream":
		return d.NumStreamsInbound != 0
	case "outbound stream":
		return d.NumStreamsOutbound != 0
	case "stream":
		return streams != 0
	case "inbound connection":
		return d.NumConnsInbound != 0
	case "outbound connection":
		return d.NumConnsOutbound != 0
	}
	return conns != 0
}

// follows reports whether a refusal follows from an earlier difference: the scope that
// refuses holds other amounts or has another limit in the other manager, or what is moved does.
func (m *Manager) follows(c *call, s *scope, a answer) bool {
	if a.class != limitedByScope {
		return false
	}
	if m.limitApart {
		return true
	}
	known := m.known()
	for name, d := range known {
		if touches(d, a.what) && withoutNumbers(name) == a.scope {
			return true
		}
	}
	if a.scope == allowlistedSystem || a.scope == allowlistedTransient {
		// They are asked where the others have refused, for lack of something unknown.
		for _, name := range []string{"system", "transient"} {
			if known[name] != (network.ScopeStat{}) {
				return true
			}
		}
	}
	for x := s; x != nil; x = x.owner {
		if touches(x.debt, a.what) && (c.moves || x.name() == a.scope) {
			return true
		}
	}
	if id := s.root().id.String(); s.root().id.shared() && s.owner != nil && strings.HasPrefix(a.scope, withoutNumbers(id)) {
		return touches(known[id], a.what) // a span of a shared scope
	}
	return false
}

// fixedStats returns what the system and the transient scopes of both hold.
func (m *Manager) fixedStats() (lead, beside [2]network.ScopeStat) {
	for i, id := range []scopeID{{kind: kindSystem}, {kind: kindTransient}} {
		look := []func(func(network.ResourceScope) error) error{m.lead.ViewSystem, m.lead.ViewTransient}[i]
		look(func(s network.ResourceScope) error { lead[i] = s.Stat(); return nil })
		if s := m.counterpart(id); s != nil {
			m.guarded(func() { beside[i] = s.Stat() })
		}
	}
	return lead, beside
}

// fixedAgree reports whether the system and transient scopes differ as is known.
func (m *Manager) fixedAgree() bool {
	defer m.contain()
	lead, beside := m.fixedStats()
	known := m.known()
	return minus(lead[0], beside[0]) == known["system"] && minus(lead[1], beside[1]) == known["transient"]
}

// every is after how many calls the system and transient scopes are compared.
const every = 64

// sameNow compares the system and the transient scope now and then.
func (m *Manager) sameNow() {
	if m.counts.calls%every != 0 || m.silent() || m.fixedAgree() {
		return
	}
	m.sameEverything()
}

// sameOwn compares what a connection, stream or span holds in both managers, or a shared
// scope. entry explains a difference, if it is not empty.
func (m *Manager) sameOwn(name string, s *scope, entry string) {
	defer m.contain()
	if s.alone() || s.id.shared() && s.beside == nil {
		return
	}
	lead := s.lead.Stat()
	beside := lead
	m.guarded(func() { beside = s.beside.Stat() })
	if m.out {
		return
	}
	known := s.debt
	if s.id.shared() {
		known = m.known()[s.id.String()]
	}
	d := minus(lead, beside)
	if d == known {
		return
	}
	if s.id.shared() && m.kept(s) {
		if beside == (network.ScopeStat{}) || lead == (network.ScopeStat{}) {
			entry = entryKept
		}
	}
	if entry == "" {
		entry = m.explainStat(s, minus(d, known))
	}
	m.count(KindStat, name, entry, fmt.Sprintf("%s holds %+v at the lead, %+v beside, %+v of which are known to differ", s.name(), lead, beside, known))
	switch {
	case entry == entryKept: // the scope that has the name now is another one
	case s.id.shared():
		m.offset(s.id, minus(d, known))
	default:
		s.owe(minus(d, known))
	}
}

// kept reports whether a scope that was kept from a view is no longer the one that has its
// name: go-libp2p's manager collects it, and makes another.
func (m *Manager) kept(s *scope) bool {
	now := m.counterpart(s.id)
	if now == nil || now.Stat() != s.beside.Stat() {
		return true
	}
	kept := false
	if s.id.kind == kindPeer {
		m.lead.ViewPeer(peer.ID(s.id.name), func(x network.PeerScope) error { kept = x.Stat() != s.lead.Stat(); return nil })
	} else if s.id.kind == kindProtocol {
		m.lead.ViewProtocol(protocol.ID(s.id.name), func(x network.ProtocolScope) error { kept = x.Stat() != s.lead.Stat(); return nil })
	}
	return kept
}

// mostOffsets bounds what is kept of differences that have no end.
const mostOffsets = 1000

func (m *Manager) offset(id scopeID, d network.ScopeStat) {
	if d = plus(m.offsets[id], d); d == (network.ScopeStat{}) {
		delete(m.offsets, id)
	} else if _, there := m.offsets[id]; there || len(m.offsets) < mostOffsets {
		m.offsets[id] = d
	}
}

// sameEverything compares what every shared scope holds. A scope that is not there holds
// nothing. The lock is held.
func (m *Manager) sameEverything() {
	defer m.contain()
	if m.silent() {
		return
	}
	var theirs, ours upstream.ResourceManagerStat
	var lead, beside *upstream.ResourceManagerStat
	if m.oursLead {
		ours = m.ourStat()
		m.guarded(func() { theirs = m.theirs.Stat() })
		lead, beside = &ours, &theirs
	} else {
		theirs = m.theirs.Stat()
		m.guarded(func() { ours = m.ourStat() })
		lead, beside = &theirs, &ours
	}
	if m.out {
		return
	}
	c := comparison{m, m.known(), &theirs}
	c.same(scopeID{kind: kindSystem}, lead.System, beside.System)
	c.same(scopeID{kind: kindTransient}, lead.Transient, beside.Transient)
	sameStats(&c, kindPeer, lead.Peers, beside.Peers)
	sameStats(&c, kindProtocol, lead.Protocols, beside.Protocols)
	sameStats(&c, kindService, lead.Services, beside.Services)
	m.counts.compared++
}

// comparison is one comparison of all shared scopes.
type comparison struct {
	m      *Manager
	known  map[string]network.ScopeStat
	theirs *upstream.ResourceManagerStat
}

func sameStats[N ~string](c *comparison, kind scopeKind, lead, beside map[N]network.ScopeStat) {
	for name, stat := range lead {
		c.same(scopeID{kind, string(name)}, stat, beside[name])
	}
	for name, stat := range beside {
		if _, there := lead[name]; !there {
			c.same(scopeID{kind, string(name)}, network.ScopeStat{}, stat)
		}
	}
}

// same compares what one scope holds.
func (c *comparison) same(id scopeID, lead, beside network.ScopeStat) {
	var known network.ScopeStat
	if len(c.known) > 0 {
		known = c.known[id.String()]
	}
	d := minus(lead, beside)
	if d == known {
		return
	}
	c.m.count(KindStat, "Stat", c.m.explainShared(c.theirs),
		fmt.Sprintf("%v holds %+v at the lead, %+v beside, %+v of which are known to differ", id, lead, beside, known))
	c.m.offset(id, minus(d, known))
}

// sameLimit compares the limits of a scope.
func (m *Manager) sameLimit(s *scope) {
	defer m.contain()
	if s.beside == nil || m.out || m.closed {
		return
	}
	lead := limitOf(s.lead)
	beside := lead
	m.guarded(func() { beside = limitOf(s.beside) })
	what, a, b, same := sameLimits(lead, beside)
	if same || m.out {
		return
	}
	entry := ""
	switch {
	case ended(s):
		entry = entryAfterDone
	case s.owner != nil:
		entry = entrySpanLimit
	case m.badLimit:
		entry = entryBadLimit
	default:
		m.limitApart = true
	}
	m.count(KindLimit, "Limit", entry, fmt.Sprintf("%s of %s is %d at the lead, %d beside", what, s.name(), a, b))
}

// ended reports whether a scope, or one that owns it, is done.
func ended(s *scope) bool {
	for x := s; x != nil; x = x.owner {
		if x.done {
			return true
		}
	}
	return false
}
