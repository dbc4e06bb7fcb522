package rcmgrshadow

// The comparison: what an answer says, how much two scopes should differ by what is known to
// differ, and what follows from that.

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/ip"
)

// call is one call, as far as the explanation of a difference asks for it.
type call struct {
	name     string
	dir      network.Direction
	usefd    bool
	endpoint multiaddr.Multiaddr
	peer     peer.ID
	to       string // the peer, protocol or service of a move or view
	size     int64
	prio     uint8

	opens, moves, reserves bool
	named                  bool // to is the name of a protocol or service
}

// class is what kind of answer a manager gave.
type class uint8

const (
	admitted class = iota
	limitedByScope
	limitedByGate
	scopeClosed
	senseless // the call makes no sense to the manager
)

// answer is what a manager said to one call.
type answer struct {
	class class
	scope string // that refused; without the numbers of connections, streams and spans
	what  string // that there is too little of: "memory", "inbound stream", …; "subnet" or "rate" at a gate
	ours  *rcmgr.LimitError
	err   error
}

func (a answer) String() string {
	if a.err == nil {
		return "admitted"
	}
	return a.err.Error()
}

// like reports whether two answers are the same but for their texts.
func (a answer) like(b answer) bool {
	return a.class == b.class && a.scope == b.scope && a.what == b.what
}

// numbered is the part of a scope's name that the managers count each for itself.
var numbered = regexp.MustCompile(`^(conn|stream)-\d+|(\.span)-\d+`)

func withoutNumbers(name string) string { return numbered.ReplaceAllString(name, "$1$2") }

func read(err error) answer {
	a := answer{err: err}
	var tooMany *upstream.ErrStreamOrConnLimitExceeded
	switch {
	case err == nil:
	case errors.As(err, &a.ours):
		a.readOurs()
	case errors.Is(err, network.ErrResourceScopeClosed):
		a.class = scopeClosed
	case errors.As(err, &tooMany):
		a.class, a.scope = limitedByScope, refusing(err)
		a.what, _, _ = strings.Cut(strings.TrimPrefix(tooMany.Error(), "cannot reserve "), ":")
	case errors.Is(err, network.ErrResourceLimitExceeded):
		a.class, a.scope, a.what = limitedByScope, refusing(err), "memory"
	case strings.HasPrefix(err.Error(), "connections per ip limit exceeded"):
		a.class, a.what = limitedByGate, "subnet"
	case err.Error() == "rate limit exceeded":
		a.class, a.what = limitedByGate, "rate"
	default:
		a.class = senseless
	}
	return a
}

// readOurs reads a refusal of ours.
func (a *answer) readOurs() {
	switch a.ours.Kind() {
	case rcmgr.KindSubnet, rcmgr.KindRate:
		a.class, a.what = limitedByGate, a.ours.Kind().String()
		return
	}
	a.class, a.scope = limitedByScope, withoutNumbers(a.ours.Scope())
	a.what = a.ours.Resource().String()
	if dir := a.ours.Direction(); dir != network.DirUnknown {
		a.what = strings.ToLower(dir.String()) + " " + a.what
	}
}

// refusing returns the name of the scope that has refused, by an error of go-libp2p's, which
// has the names of the scopes on the way, each around the next.
func refusing(err error) (name string) {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return withoutNumbers(name)
		}
		if outer, ok := strings.CutSuffix(err.Error(), ": "+inner.Error()); ok && !strings.HasPrefix(outer, "cannot reserve ") {
			name = outer
		}
		err = inner
	}
}

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

func (c *call) text(s *scope) string {
	switch {
	case c.name == "OpenConnection":
		return fmt.Sprintf("OpenConnection(%v, %v, %v)", c.dir, c.usefd, c.endpoint)
	case c.name == "OpenStream":
		return fmt.Sprintf("OpenStream(%v, %v)", c.peer, c.dir)
	case c.reserves:
		return fmt.Sprintf("ReserveMemory(%d, %d) at %s", c.size, c.prio, s.name())
	case c.name == "SetPeer":
		return fmt.Sprintf("SetPeer(%v) at %s", peer.ID(c.to), s.name())
	case c.moves:
		return fmt.Sprintf("%s(%s) at %s", c.name, c.to, s.name())
	}
	return fmt.Sprintf("%s at %s", c.name, s.name())
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

// allowlistedUse returns how many connections and streams ours has in the allowlisted scopes.
func (m *Manager) allowlistedUse() (n int) {
	defer m.contain()
	m.ours.ViewAllowlistedSystem(func(s network.ResourceScope) error {
		stat := s.Stat()
		n = stat.NumConnsInbound + stat.NumConnsOutbound + stat.NumStreamsInbound + stat.NumStreamsOutbound
		return nil
	})
	return n
}

// sameAllowlist compares what the allowlists say of an address.
func (m *Manager) sameAllowlist(endpoint multiaddr.Multiaddr) {
	defer m.contain()
	theirs, ours := m.theirList.Allowed(endpoint), m.ours.GetAllowlist().Allowed(endpoint)
	if theirs != ours {
		m.count(KindAllowlist, "OpenConnection", placeOf(endpoint).entry(),
			fmt.Sprintf("%v is on go-libp2p's allowlist: %v; on ours: %v", endpoint, theirs, ours))
	}
}

func (m *Manager) samePeerAllowlist(s *scope, p peer.ID) {
	defer m.contain()
	list := m.ours.GetAllowlist()
	theirs, ours := m.theirList.AllowedPeerAndMultiaddr(p, s.endpoint), list.AllowedPeerAndMultiaddr(p, s.endpoint)
	if theirs == ours {
		return
	}
	entry := placeOf(s.endpoint).entry()
	if list.AllowedPeerAndMultiaddr(p, nil) {
		entry = entryBarePeer
	}
	m.count(KindAllowlist, "SetPeer", entry, fmt.Sprintf("%v at %v is on go-libp2p's allowlist: %v; on ours: %v", p, s.endpoint, theirs, ours))
}

// place is where the far end of a connection is, as far as the two disagree about that.
type place struct {
	counted bool // go-libp2p's manager reads an address from it
	relayed bool
	mapped  bool // an IPv4 address within an IPv6 address
}

func placeOf(endpoint multiaddr.Multiaddr) (p place) {
	addr, err := manet.ToIP(endpoint)
	if a, ok := netip.AddrFromSlice(addr); err == nil && ok {
		p.counted, p.mapped = true, ip.Normal(a) != a
	}
	p.relayed = slices.ContainsFunc(endpoint, func(c multiaddr.Component) bool { return c.Code() == multiaddr.P_CIRCUIT })
	return p
}

// entry explains a difference by the form of the address, or is empty.
func (p place) entry() string {
	switch {
	case p.relayed:
		return entryRelayed
	case p.mapped:
		return entryMapped
	}
	return ""
}

// tokens notes what a connection that go-libp2p's manager refuses leaves at its gates.
func (m *Manager) tokens(c *call, theirs answer) {
	if c.name == "OpenConnection" && theirs.class == limitedByScope {
		m.gateEver[entryTokens] = true
	}
}

// inGates notes that a connection is open that only one manager counts at its gates.
func (s *scope) inGates(c *call) {
	defer s.m.contain()
	p := placeOf(c.endpoint)
	if s.gated || !p.counted && !p.relayed {
		return
	}
	switch {
	case p.entry() != "":
		s.gate = p.entry()
	case c.dir == network.DirOutbound && !s.m.gatesOutward:
		s.gate = entryOutbound
	case s.m.theirList.Allowed(c.endpoint) || s.m.ours.GetAllowlist().Allowed(c.endpoint):
		s.gate = entryAllowedGates
	case s.beside != nil:
		return
	}
	s.gated = true
	s.m.gateOpen[s.gate]++
	s.m.gateEver[s.gate] = true
}

// verifyDiffers counts different answers of VerifySourceAddress.
func (m *Manager) verifyDiffers(addr net.Addr, lead, beside bool) {
	defer m.contain()
	theirs, ours := theirsFirst(m, lead, beside)
	entry := ""
	if ours && !theirs && m.underLoad() {
		entry = entryVerifyLoad
	} else if at, err := netip.ParseAddrPort(addr.String()); err == nil && ip.Normal(at.Addr()) != at.Addr() {
		entry = entryMapped
	}
	if entry == "" {
		m.counts.notCompared[timing]++
		return
	}
	m.count(KindDecision, "VerifySourceAddress", entry, fmt.Sprintf("%v; go-libp2p's: %v; ours: %v", addr, theirs, ours))
}

// underLoad reports whether more than half of ours' transient inbound connections are taken.
func (m *Manager) underLoad() (loaded bool) {
	m.ours.ViewTransient(func(s network.ResourceScope) error {
		limit := s.(rcmgr.ResourceScopeLimiter).Limit().GetConnLimit(network.DirInbound)
		loaded = s.Stat().NumConnsInbound > limit/2
		return nil
	})
	return loaded
}

// isLimit reports whether a limit is one.
func isLimit(limit any) bool {
	l, ok := limit.(rcmgr.Limit)
	return ok && !slices.ContainsFunc(numbersOf(l), func(n int64) bool { return n < 0 })
}

var limitNames = []string{"Memory", "FD", "Streams", "StreamsInbound", "StreamsOutbound", "Conns", "ConnsInbound", "ConnsOutbound"}

// numbersOf returns a limit's numbers in the order of limitNames.
func numbersOf(l rcmgr.Limit) []int64 {
	in, out := network.DirInbound, network.DirOutbound
	counts := []int{l.GetFDLimit(), l.GetStreamTotalLimit(), l.GetStreamLimit(in), l.GetStreamLimit(out),
		l.GetConnTotalLimit(), l.GetConnLimit(in), l.GetConnLimit(out)}
	all := []int64{l.GetMemoryLimit()}
	for _, n := range counts {
		all = append(all, int64(n))
	}
	return all
}

// limitOf returns a scope's limit, nil if it has none.
func limitOf(s network.ResourceScope) rcmgr.Limit {
	switch s := s.(type) {
	case rcmgr.ResourceScopeLimiter:
		return s.Limit()
	case upstream.ResourceScopeLimiter:
		if l := s.Limit(); l != nil {
			return l
		}
	}
	return nil
}

// sameLimits returns the first number in which two limits differ. A limit that is not there
// differs from none.
func sameLimits(a, b rcmgr.Limit) (what string, inA, inB int64, same bool) {
	if a == nil || b == nil {
		return "", 0, 0, true
	}
	theirs, ours := numbersOf(a), numbersOf(b)
	for i, what := range limitNames {
		if theirs[i] != ours[i] {
			return what, theirs[i], ours[i], false
		}
	}
	return "", 0, 0, true
}

// sortedKeys returns the keys of a map in their order.
func sortedKeys[K ~string, V any](all map[K]V) []K { return slices.Sorted(maps.Keys(all)) }
