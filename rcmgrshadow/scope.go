package rcmgrshadow

// The scopes of a Manager. Each has a scope of the lead, and one of the manager beside for as
// long as that has admitted it, too. The methods that only some scopes have are on small
// types around scope, which are generic in the type of the lead's limits.

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr"
)

type scopeKind uint8

const (
	kindSystem scopeKind = iota
	kindTransient
	kindPeer
	kindProtocol
	kindService
	kindConn
	kindStream
	kindSpan
)

// scopeID names a shared scope. Connections, streams and spans have only a kind.
type scopeID struct {
	kind scopeKind
	name string
}

func (id scopeID) shared() bool { return id.kind <= kindService }

// String returns the name that the managers have in their errors; one name for all
// connections, and one for all streams.
func (id scopeID) String() string {
	switch id.kind {
	case kindSystem:
		return "system"
	case kindTransient:
		return "transient"
	case kindPeer:
		return "peer:" + peer.ID(id.name).String()
	case kindProtocol:
		return "protocol:" + id.name
	case kindService:
		return "service:" + id.name
	case kindConn:
		return "conn"
	case kindStream:
		return "stream"
	}
	return "span"
}

// scope is a scope of both managers. The fields below id are guarded by the Manager's lock.
type scope struct {
	m     *Manager
	id    scopeID
	owner *scope // of a span

	lead   network.ResourceScope
	beside network.ResourceScope // nil if only the lead has the scope
	done   bool
	self   reserved          // by itself; not of a shared scope
	debt   network.ScopeStat // how much more the lead holds in a scope that both have

	endpoint multiaddr.Multiaddr // of a connection
	// What the lead has attached a connection or stream to. Names may be empty.
	peer                      peer.ID
	proto                     protocol.ID
	svc                       string
	hasPeer, hasProto, hasSvc bool
	// allowlisted means that ours has it in its allowlisted scopes.
	allowlisted bool
	// outside means that the lead counts a scope that only it has in neither system nor
	// transient.
	outside bool
	// nowhere means that go-libp2p's manager counts a connection that is open in no scope.
	nowhere bool
	// gate is the entry that explains why only one manager counts the connection at its
	// gates. It has a meaning if gated is set.
	gate  string
	gated bool
}

// reserved is the memory that was reserved at one scope by itself.
type reserved struct {
	lead, beside int64
	debt         int64 // how much more the lead holds here, in spans too; only of a shared scope
}

// root returns the connection, the stream or the shared scope to which a span belongs.
func (s *scope) root() *scope {
	for s.owner != nil {
		s = s.owner
	}
	return s
}

// alone reports whether the lead alone is asked.
func (s *scope) alone() bool { return s.beside == nil || s.root().beside == nil || s.m.silent() }

// name returns the scope's name with those of the scopes around it.
func (s *scope) name() string {
	if s.owner != nil {
		return s.owner.name() + ".span"
	}
	return s.id.String()
}

// reservedHere returns what was reserved at the scope by itself.
func (s *scope) reservedHere() *reserved {
	if !s.id.shared() {
		return &s.self
	}
	r := s.m.direct[s.id]
	if r == nil {
		r = &reserved{}
		s.m.direct[s.id] = r
	}
	return r
}

// owe adds to what the lead holds more in a scope, and in those that own it.
func (s *scope) owe(d network.ScopeStat) {
	for x := s; x != nil && !x.done; x = x.owner {
		if x.id.shared() {
			r := x.reservedHere()
			r.debt += d.Memory
			x.m.settle(x)
			return
		}
		x.debt = plus(x.debt, d)
		if x.owner == nil {
			x.m.settle(x)
		}
	}
}

// settle brings the lists of what differs up to date after an amount has changed.
func (m *Manager) settle(s *scope) {
	switch {
	case s.id.shared():
		if r := m.direct[s.id]; r != nil && *r == (reserved{}) {
			delete(m.direct, s.id)
		}
	case s.owner != nil:
	case !s.done && (s.beside == nil || s.debt != (network.ScopeStat{})):
		m.apart[s] = struct{}{}
	default:
		delete(m.apart, s)
	}
}

// hold notes what was reserved at a scope. Amounts below zero were released.
func (s *scope) hold(lead, beside int64) {
	r := s.reservedHere()
	r.lead += lead
	r.beside += beside
	s.owe(network.ScopeStat{Memory: lead - beside})
}

func (s *scope) ReserveMemory(size int, prio uint8) error {
	m := s.m
	m.mu.Lock()
	defer m.unlock()
	leadErr := s.lead.ReserveMemory(size, prio)
	if s.alone() {
		if leadErr == nil {
			s.hold(int64(size), 0)
		}
		return leadErr
	}
	m.counts.calls++
	var besideErr error
	m.guarded(func() { besideErr = s.beside.ReserveMemory(size, prio) })
	if m.out {
		return leadErr
	}
	m.decided(&call{name: "ReserveMemory", size: int64(size), prio: prio, reserves: true}, s, leadErr, besideErr)
	switch {
	case leadErr == nil && besideErr == nil:
		s.hold(int64(size), int64(size))
	case leadErr == nil:
		s.hold(int64(size), 0)
	case besideErr == nil:
		m.guarded(func() { s.beside.ReleaseMemory(size) })
	}
	m.sameOwn("ReserveMemory", s, "")
	m.sameNow()
	return leadErr
}

func (s *scope) ReleaseMemory(size int) {
	m := s.m
	m.mu.Lock()
	defer m.unlock()
	if s.done { // it does nothing
		s.lead.ReleaseMemory(size)
		if s.beside != nil {
			m.guarded(func() { s.beside.ReleaseMemory(size) })
		}
		return
	}
	r, n := *s.reservedHere(), int64(size)
	defer m.settle(s)
	s.lead.ReleaseMemory(size)
	if !s.alone() {
		m.counts.calls++
	}
	if n >= 0 && n <= r.lead {
		// What only the lead has is given back first, so that they hold the same again soon.
		both := min(r.beside, n-min(n, r.lead-r.beside))
		if s.beside != nil && both > 0 {
			m.guarded(func() { s.beside.ReleaseMemory(int(both)) })
		}
		s.hold(-n, -both)
		if !s.alone() {
			m.sameOwn("ReleaseMemory", s, "")
			m.sameNow()
		}
		return
	}
	s.misrelease(r, n)
}

// misrelease goes on after the lead was asked to release what was not reserved here.
// Go-libp2p's manager then takes it from what others hold, and ours does not. Where
// go-libp2p's manager is the one beside, it is spared that.
func (s *scope) misrelease(r reserved, n int64) {
	m := s.m
	entry := entryTooMuch
	if n < 0 {
		entry = entryNegative
	}
	fits := min(max(n, 0), r.lead)
	both := min(r.beside, fits-min(fits, r.lead-r.beside))
	if s.beside != nil {
		m.guarded(func() { s.beside.ReleaseMemory(int(both)) })
	}
	s.hold(-fits, -both)
	if m.silent() {
		return
	}
	m.count(KindStat, "ReleaseMemory", entry, fmt.Sprintf("%s: %d bytes released, %d reserved there", s.name(), n, r.lead))
	if m.oursLead {
		return
	}
	m.lost = entry
	for x := s; x != nil && !x.done; x = x.owner {
		m.sameOwn("ReleaseMemory", x, entry)
	}
	m.sameEverything()
}

func (s *scope) Stat() network.ScopeStat {
	m := s.m
	m.mu.Lock()
	defer m.unlock()
	if !s.alone() {
		m.counts.calls++
		m.sameOwn("Stat", s, "")
	}
	return s.lead.Stat()
}

func (s *scope) BeginSpan() (network.ResourceScopeSpan, error) {
	m := s.m
	m.mu.Lock()
	defer m.unlock()
	lead, leadErr := s.lead.BeginSpan()
	span := &scope{m: m, id: scopeID{kind: kindSpan}, owner: s, lead: lead}
	if s.alone() {
		if leadErr != nil {
			return nil, leadErr
		}
		return m.newSpan(span), nil
	}
	m.counts.calls++
	var beside network.ResourceScopeSpan
	var besideErr error
	m.guarded(func() { beside, besideErr = s.beside.BeginSpan() })
	if !m.opened(&call{name: "BeginSpan"}, span, lead, beside, leadErr, besideErr) {
		return nil, leadErr
	}
	return m.newSpan(span), nil
}

// end is Done.
func (s *scope) end() {
	m := s.m
	m.mu.Lock()
	defer m.unlock()
	s.lead.(network.ResourceScopeSpan).Done()
	if s.beside != nil {
		m.guarded(func() { s.beside.(network.ResourceScopeSpan).Done() })
	}
	if s.done {
		return
	}
	if s.owner != nil {
		s.owe(minus(network.ScopeStat{}, s.debt))
	}
	s.done, s.debt = true, network.ScopeStat{}
	m.settle(s)
	if s.gated {
		m.gateOpen[s.gate]--
	}
	if m.silent() {
		return
	}
	m.counts.calls++
	if s.nowhere {
		m.lost = entryFailedMove
		m.sameEverything()
	}
	m.sameNow()
}

// opened compares the answers to a call that opens a scope, and keeps what was opened. It
// reports whether the lead has opened it.
func (m *Manager) opened(c *call, s *scope, lead, beside network.ResourceScopeSpan, leadErr, besideErr error) bool {
	if leadErr == nil {
		s.lead = lead
	}
	if m.out {
		return leadErr == nil
	}
	m.decided(c, s, leadErr, besideErr)
	switch {
	case leadErr == nil && besideErr == nil:
		s.beside = beside
		m.sameOwn(c.name, s, "")
		m.sameLimit(s)
		m.sameSide(c, s)
	case leadErr == nil:
		m.place(s)
	case besideErr == nil:
		m.guarded(beside.Done)
	}
	m.sameNow()
	return leadErr == nil
}

// sameSide compares whether both managers have opened a connection or stream in the allowlisted
// scopes, or both in the standard ones. If not, it is left to the lead alone.
func (m *Manager) sameSide(c *call, s *scope) {
	defer m.contain()
	entry := ""
	switch {
	case c.name == "OpenStream" && s.allowlisted:
		entry = entryStreams
	case c.name != "OpenConnection" || !m.theirList.Allowed(c.endpoint) && !s.allowlisted || m.fixedAgree():
		return
	case m.theirList.Allowed(c.endpoint) != m.ours.GetAllowlist().Allowed(c.endpoint):
		entry = placeOf(c.endpoint).entry()
	}
	follows := len(m.known()) > 0
	s.leave()
	if entry == "" && follows {
		m.counts.notCompared[followsEarlier]++
		return
	}
	m.count(KindDecision, c.name, entry, c.text(s)+" is admitted by the allowlist in one manager only")
}

// leave leaves a connection or stream to the lead alone.
func (s *scope) leave() {
	if s.beside == nil {
		return
	}
	s.m.guarded(func() { s.beside.(network.ResourceScopeSpan).Done() })
	s.beside = nil
	if !s.gated && placeOf(s.endpoint).counted {
		s.gated = true // no entry explains that only the lead counts it
		s.m.gateOpen[s.gate]++
	}
	s.m.place(s)
}

// place finds out where the lead counts a scope that only it has: with all others, or,
// because of the allowlist, in neither system nor transient.
func (m *Manager) place(s *scope) {
	defer m.contain()
	m.settle(s)
	if s.owner != nil || s.done || m.silent() {
		return
	}
	s.outside = s.allowlisted && m.oursLead
	if !m.fixedAgree() {
		s.outside = !s.outside
		if !m.fixedAgree() {
			s.outside = !s.outside
		}
	}
}

// move asks both managers to attach a connection or stream to a peer, protocol or service.
func (s *scope) move(c *call, ask func(network.ResourceScope) error, attached func()) error {
	m := s.m
	m.mu.Lock()
	defer m.unlock()
	if !s.alone() && c.to != "" && s.id.kind == kindConn {
		m.samePeerAllowlist(s, peer.ID(c.to))
	}
	leadErr := ask(s.lead)
	if leadErr == nil && !s.done {
		attached()
	}
	if s.alone() {
		if s.id.kind == kindConn && !m.silent() {
			m.place(s) // it may have left the allowlisted scopes
			if m.nowhere(s, leadErr); s.nowhere {
				m.lost = entryFailedMove
				m.sameEverything()
			}
		}
		return leadErr
	}
	m.counts.calls++
	var besideErr error
	m.guarded(func() { besideErr = ask(s.beside) })
	if m.out {
		return leadErr
	}
	m.decided(c, s, leadErr, besideErr)
	strays := s.id.kind == kindConn && s.allowlisted && !m.ours.GetAllowlist().AllowedPeerAndMultiaddr(peer.ID(c.to), s.endpoint)
	switch {
	case s.done: // go-libp2p's manager keeps it attached
	case (leadErr == nil) != (besideErr == nil):
		s.leave()
		m.nowhere(s, leadErr)
	case leadErr == nil && strays:
		s.allowlisted = false
	case leadErr != nil && strays && !s.hasPeer:
		// Go-libp2p's manager has taken it out of the allowlisted scopes, and counts it
		// nowhere unless the standard ones had room.
		m.count(KindStat, c.name, entryFailedMove, s.name())
		s.leave()
		m.nowhere(s, leadErr)
	}
	m.sameNow()
	return leadErr
}

// nowhere notes that go-libp2p's manager, which leads, may have taken a connection out of the
// allowlisted scopes before it refused to attach it.
func (m *Manager) nowhere(s *scope, err error) {
	if err != nil && !m.oursLead && s.outside && s.id.kind == kindConn && !s.done {
		s.nowhere = true
	}
}

// attachedTo returns one of the shared scopes that a connection or stream is attached to,
// or nil if the lead has none.
func (s *scope) attachedTo(id func(network.ResourceScope) (scopeID, network.ResourceScope)) *scope {
	m := s.m
	m.mu.Lock()
	defer m.unlock()
	name, lead := id(s.lead)
	if !s.alone() {
		m.counts.calls++
		var beside network.ResourceScope
		var other scopeID
		m.guarded(func() { other, beside = id(s.beside) })
		if name != other && !m.out {
			entry := ""
			if s.done {
				entry = entryAfterDone
			}
			m.count(KindAttached, "attached", entry, fmt.Sprintf("%s: %v at the lead, %v beside", s.name(), attachedText(lead, name), attachedText(beside, other)))
		}
	}
	if lead == nil {
		return nil
	}
	return &scope{m: m, id: name, lead: lead, beside: m.counterpart(name)}
}

func attachedText(s network.ResourceScope, id scopeID) string {
	if s == nil {
		return "nothing"
	}
	return id.String()
}

// limiterOf is a scope's interface ResourceScopeLimiter, in either package.
type limiterOf[L any] interface {
	Limit() L
	SetLimit(L)
}

// limited is a scope whose lead has limits of type L.
type limited[L any] struct{ *scope }

// Limit returns the lead's limit.
func (s limited[L]) Limit() L {
	s.m.mu.Lock()
	defer s.m.unlock()
	if !s.alone() {
		s.m.sameLimit(s.scope)
	}
	return s.lead.(limiterOf[L]).Limit()
}

// SetLimit sets the limit in both managers.
func (s limited[L]) SetLimit(limit L) {
	m := s.m
	m.mu.Lock()
	defer m.unlock()
	s.lead.(limiterOf[L]).SetLimit(limit)
	if s.beside == nil || m.out {
		return
	}
	m.counts.calls++
	good := isLimit(limit)
	if !good {
		m.badLimit = m.badLimit || !m.oursLead // go-libp2p's manager has taken it
		m.count(KindLimit, "SetLimit", entryBadLimit, fmt.Sprintf("%s: %v", s.name(), limit))
	}
	m.guarded(func() {
		switch beside := s.beside.(type) {
		case rcmgr.ResourceScopeLimiter:
			own, _ := any(limit).(rcmgr.Limit)
			beside.SetLimit(own)
		case upstream.ResourceScopeLimiter:
			if good {
				beside.SetLimit(copyOfLimit(any(limit).(rcmgr.Limit)))
			}
		}
	})
}

type (
	spanScope[L any] struct{ limited[L] }
	peerScope[L any] struct {
		limited[L]
	}
	protocolScope[L any] struct{ limited[L] }
	serviceScope[L any]  struct{ limited[L] }
	connScope[L any]     struct{ spanScope[L] }
	streamScope[L any]   struct{ spanScope[L] }
)

func (s spanScope[L]) Done() { s.end() }

func (s peerScope[L]) Peer() peer.ID             { return peer.ID(s.id.name) }
func (s protocolScope[L]) Protocol() protocol.ID { return protocol.ID(s.id.name) }
func (s serviceScope[L]) Name() string           { return s.id.name }

func (s connScope[L]) PeerScope() network.PeerScope   { return s.peerScope() }
func (s streamScope[L]) PeerScope() network.PeerScope { return s.peerScope() }

func (s *scope) peerScope() network.PeerScope {
	p := s.attachedTo(func(x network.ResourceScope) (scopeID, network.ResourceScope) {
		if p := x.(interface{ PeerScope() network.PeerScope }).PeerScope(); p != nil {
			return scopeID{kindPeer, string(p.Peer())}, p
		}
		return scopeID{}, nil
	})
	if p == nil {
		return nil
	}
	return s.m.newPeer(p)
}

func (s connScope[L]) SetPeer(p peer.ID) error {
	return s.move(&call{name: "SetPeer", to: string(p), moves: true},
		func(x network.ResourceScope) error { return x.(network.ConnManagementScope).SetPeer(p) },
		func() { s.peer, s.hasPeer = p, true })
}

func (s streamScope[L]) ProtocolScope() network.ProtocolScope {
	p := s.attachedTo(func(x network.ResourceScope) (scopeID, network.ResourceScope) {
		if p := x.(network.StreamManagementScope).ProtocolScope(); p != nil {
			return scopeID{kindProtocol, string(p.Protocol())}, p
		}
		return scopeID{}, nil
	})
	if p == nil {
		return nil
	}
	return s.m.newProtocol(p)
}

func (s streamScope[L]) SetProtocol(proto protocol.ID) error {
	return s.move(&call{name: "SetProtocol", to: string(proto), moves: true, named: true},
		func(x network.ResourceScope) error { return x.(network.StreamManagementScope).SetProtocol(proto) },
		func() { s.proto, s.hasProto = proto, true })
}

func (s streamScope[L]) ServiceScope() network.ServiceScope {
	p := s.attachedTo(func(x network.ResourceScope) (scopeID, network.ResourceScope) {
		if p := x.(network.StreamManagementScope).ServiceScope(); p != nil {
			return scopeID{kindService, p.Name()}, p
		}
		return scopeID{}, nil
	})
	if p == nil {
		return nil
	}
	return s.m.newService(p)
}

func (s streamScope[L]) SetService(svc string) error {
	return s.move(&call{name: "SetService", to: svc, moves: true, named: true},
		func(x network.ResourceScope) error { return x.(network.StreamManagementScope).SetService(svc) },
		func() { s.svc, s.hasSvc = svc, true })
}

type (
	theirLimit = upstream.Limit
	ourLimit   = rcmgr.Limit
)

func (m *Manager) newScope(s *scope) network.ResourceScope {
	if m.oursLead {
		return limited[ourLimit]{s}
	}
	return limited[theirLimit]{s}
}

func (m *Manager) newSpan(s *scope) network.ResourceScopeSpan {
	if m.oursLead {
		return spanScope[ourLimit]{limited[ourLimit]{s}}
	}
	return spanScope[theirLimit]{limited[theirLimit]{s}}
}

func (m *Manager) newPeer(s *scope) network.PeerScope {
	if m.oursLead {
		return peerScope[ourLimit]{limited[ourLimit]{s}}
	}
	return peerScope[theirLimit]{limited[theirLimit]{s}}
}

func (m *Manager) newProtocol(s *scope) network.ProtocolScope {
	if m.oursLead {
		return protocolScope[ourLimit]{limited[ourLimit]{s}}
	}
	return protocolScope[theirLimit]{limited[theirLimit]{s}}
}

func (m *Manager) newService(s *scope) network.ServiceScope {
	if m.oursLead {
		return serviceScope[ourLimit]{limited[ourLimit]{s}}
	}
	return serviceScope[theirLimit]{limited[theirLimit]{s}}
}

func (m *Manager) newConn(s *scope) network.ConnManagementScope {
	if m.oursLead {
		return connScope[ourLimit]{spanScope[ourLimit]{limited[ourLimit]{s}}}
	}
	return connScope[theirLimit]{spanScope[theirLimit]{limited[theirLimit]{s}}}
}

func (m *Manager) newStream(s *scope) network.StreamManagementScope {
	if m.oursLead {
		return streamScope[ourLimit]{spanScope[ourLimit]{limited[ourLimit]{s}}}
	}
	return streamScope[theirLimit]{spanScope[theirLimit]{limited[theirLimit]{s}}}
}
