// Package rcmgrshadow tries one resource manager beside another without risk. A Manager
// asks two managers the same: go-libp2p's own, and one of rcmgr. One of them, the lead,
// decides. The other decides beside it, and no caller sees its answers. But each answer that
// differs is counted, explained by an entry of DIFFERENCES.md if one explains it, and
// logged once. A program that has go-libp2p's manager adds one line:
//
//	theirs, err := upstream.NewResourceManager(limiter)
//	…
//	rm, err := rcmgrshadow.OursBeside(theirs, limiter)
//	…
//	host, err := libp2p.New(libp2p.ResourceManager(rm))
//
// Manager.Report returns what would have been different, and Handler shows it as a page. A
// Manager is a prometheus.Collector, too.
//
// # What is compared
//
// Each call that can be refused: whether it is admitted, and if both refuse, by which scope
// and for which resource. Texts are not compared. After each call, what the scope in
// question holds in both managers; now and then, what the system and the transient scope
// hold; and at each Report, what every scope holds. When a scope is first seen, its limits.
//
// Both managers are asked under one lock, so they see all calls in the same order, and no
// difference comes from the order of concurrent calls. The price is that calls wait for
// each other: this is for a trial, not for a host at its limits of speed. Code of the program
// that a manager calls, which are Limiters, TraceReporters and MetricsReporters, may be
// called with the lock held, and must not call the Manager.
//
// # What follows from a difference
//
// Where only the lead has admitted a connection, stream or span, that scope is left to the
// lead alone until it is done. Where only the other one has admitted something, it has to
// give it back at once. What the two hold then differs by a known amount, which is taken
// into account wherever they are compared. A decision that differs in a scope in which
// they hold different amounts, or for which they have different limits, follows from an
// earlier difference: it is counted as such, and is no difference of its own. From the moment
// that the limits of any scope differ, all decisions of scopes that differ are counted so.
//
// Where go-libp2p's manager loses or gains an amount for good, such as by a release of more than
// was reserved, later differences are explained by the entry for that.
//
// At the gates, the two can hold different counts and tokens, which go-libp2p's manager does
// not show. Go-libp2p's manager also counts outbound and relayed connections there, and keeps the
// tokens of connections that it refuses afterwards. Once that has happened, a difference at
// a gate is explained by it. Rates also depend on the clock, which the managers read one
// after the other. A difference of rates that has no other cause is counted as one of timing.
//
// If the manager beside panics, that is counted and logged, it is never asked again, and
// the lead goes on alone.
package rcmgrshadow

import (
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	logging "github.com/libp2p/go-libp2p/gologshim"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-p2p/rcmgr"
)

var log = logging.Logger("rcmgr")

// Manager is a resource manager that decides as its lead does, and asks another manager the
// same beside it. Pass it to libp2p.New with libp2p.ResourceManager. Its scopes also
// implement the interface ResourceScopeLimiter of the lead's package.
//
// Use New, OursBeside or TheirsBeside to make one; the zero value is of no use. All methods
// are safe for concurrent use.
type Manager struct {
	lead, beside network.ResourceManager
	oursLead     bool
	ours         *rcmgr.Manager                // whichever of the two it is
	theirs       upstream.ResourceManagerState // the other one
	theirList    *upstream.Allowlist
	started      time.Time

	// What the configuration of ours, when the Manager was made, has of its own.
	costs        bool // connections or streams cost memory by themselves
	gatesOutward bool // outbound connections pass the gates
	noGates      bool // there are none

	mu         sync.Mutex // held while the managers are asked; taken before all their locks
	closed     bool
	out        bool // the manager beside has panicked, and is not asked any more
	counts     counts
	rule       admissionRule // whether ours has go-libp2p's rule for priorities
	lost       string        // the entry that explains why amounts differ for good; empty if none does
	badLimit   bool          // SetLimit was called with an invalid limit
	limitApart bool          // limits differ, and no entry explains it

	// apart has the connections and streams that differ: that only the lead has, or that
	// hold different amounts. It has no more of them than are open.
	apart map[*scope]struct{}
	// direct has what was reserved at shared scopes by themselves, while it is not 0.
	direct map[scopeID]*reserved
	// offsets has, for scopes that differ for a reason that is not known or cannot be
	// undone, by how much the lead holds more. Such a difference is counted once.
	offsets map[scopeID]network.ScopeStat
	// gateOpen has how many open connections only one manager counts at its gates, and
	// gateEver whether there ever were any, by the entries that explain it.
	gateOpen map[string]int
	gateEver map[string]bool
}

var (
	_ network.ResourceManager       = (*Manager)(nil)
	_ connmgr.GetConnLimiter        = (*Manager)(nil)
	_ upstream.ResourceManagerState = (*Manager)(nil)
	_ prometheus.Collector          = (*Manager)(nil)
)

// New returns a manager that decides as lead does, and asks beside the same. One of them has
// to be go-libp2p's own resource manager and the other one of rcmgr, each alone or in
// wrappers that have a method Unwrap() network.ResourceManager. From then on, they must be
// used through the returned manager only. Whatever is called for one of them by itself, such
// as rcmgr.Manager.SetLimits, or a change of its allowlist, has to be called for both.
//
// New returns an error if the limits of the system or transient scopes of the two differ, or
// what these hold. All other limits are compared when their scope is first used.
func New(lead, beside network.ResourceManager) (*Manager, error) {
	m := &Manager{
		lead: lead, beside: beside, started: time.Now(), counts: newCounts(),
		apart: map[*scope]struct{}{}, direct: map[scopeID]*reserved{}, offsets: map[scopeID]network.ScopeStat{},
		gateOpen: map[string]int{}, gateEver: map[string]bool{},
	}
	theirs := beside
	if m.ours = oursIn(lead); m.ours != nil {
		m.oursLead = true
	} else {
		m.ours, theirs = oursIn(beside), lead
	}
	if theirs = theirsIn(theirs); m.ours == nil || theirs == nil {
		return nil, fmt.Errorf("rcmgrshadow: the managers are a %T and a %T, expected one of rcmgr and one of go-libp2p", lead, beside)
	}
	cfg := m.ours.Limits().ToPartialLimitConfig()
	if g := cfg.Gates; g != nil {
		m.gatesOutward = g.Outbound != nil && *g.Outbound
		m.noGates = len(g.Subnets.IPv4)+len(g.Subnets.IPv6)+len(g.Rate.IPv4)+len(g.Rate.IPv6) == 0
	}
	m.costs = cfg.Costs != nil
	m.theirs, m.theirList = theirs.(upstream.ResourceManagerState), upstream.GetAllowlist(theirs)
	if err := m.sameFixedLimits(); err != nil {
		return nil, fmt.Errorf("rcmgrshadow: %w", err)
	}
	if a, b := m.theirs.Stat(), m.ours.Stat(); a.System != b.System || a.Transient != b.Transient {
		return nil, errors.New("rcmgrshadow: the managers hold different amounts already")
	}
	return m, nil
}

// OursBeside returns a Manager that decides as theirs does, and asks a manager of rcmgr beside
// it. theirs is a manager of go-libp2p's own package with these limits. The manager of rcmgr is
// made with the same limits and with opts; it stays out of the metrics and writes no log of
// refusals, unless opts say so. Pass options that both managers have, such as the allowlist and
// the limits per subnet, to both.
//
// With no options, admission by priority and newcomers' quarters are as in rcmgr by default,
// and differ. The options WithAdmission(AdmissionLinear) and WithNewcomersQuarter(false)
// make both decide the same.
//
// If OursBeside returns an error, theirs is as it was.
func OursBeside(theirs network.ResourceManager, limits upstream.Limiter, opts ...rcmgr.Option) (*Manager, error) {
	if limits == nil {
		return nil, errors.New("rcmgrshadow: there are no limits")
	}
	same, err := oursFrom(limits)
	if err != nil {
		return nil, fmt.Errorf("rcmgrshadow: %w", err)
	}
	quiet := []rcmgr.Option{rcmgr.WithMetricsDisabled(), rcmgr.WithRefusalLog(0)}
	ours, err := rcmgr.New(unwarned(limits, same), append(quiet, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("rcmgrshadow: %w", err)
	}
	m, err := New(theirs, ours)
	if err != nil {
		ours.Close()
	}
	return m, err
}

// TheirsBeside returns a Manager that decides as ours does, and asks a manager of go-libp2p's
// own package beside it. That manager is made with the limits and gates that are in force in
// ours and with opts, and has no metrics. ours may also be a Handle. Pass the allowlist, and a limiter
// of rates that the program brings, to both. If TheirsBeside returns an error, ours is as it was.
func TheirsBeside(ours network.ResourceManager, opts ...upstream.Option) (*Manager, error) {
	m := oursIn(ours)
	if m == nil {
		return nil, fmt.Errorf("rcmgrshadow: the manager is a %T, expected one of rcmgr", ours)
	}
	limits := m.Limits()
	same, err := theirsFrom(limits)
	if err != nil {
		return nil, fmt.Errorf("rcmgrshadow: %w", err)
	}
	quiet := append(theirGates(limits.ToPartialLimitConfig().Gates), upstream.WithMetricsDisabled())
	theirs, err := upstream.NewResourceManager(same, append(quiet, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("rcmgrshadow: %w", err)
	}
	shadow, err := New(ours, theirs)
	if err != nil {
		theirs.Close()
	}
	return shadow, err
}

// within returns the first manager of a chain of wrappers for which is reports true.
func within(rm network.ResourceManager, is func(network.ResourceManager) bool) network.ResourceManager {
	for rm != nil && !is(rm) {
		w, ok := rm.(interface {
			Unwrap() network.ResourceManager
		})
		if !ok {
			return nil
		}
		rm = w.Unwrap()
	}
	return rm
}

func oursIn(rm network.ResourceManager) *rcmgr.Manager {
	m, _ := within(rm, func(rm network.ResourceManager) bool { _, is := rm.(*rcmgr.Manager); return is }).(*rcmgr.Manager)
	return m
}

func theirsIn(rm network.ResourceManager) network.ResourceManager {
	return within(rm, func(rm network.ResourceManager) bool { return upstream.GetAllowlist(rm) != nil })
}

// Unwrap returns the lead, so that rcmgr.GetAllowlist and the like find it.
func (m *Manager) Unwrap() network.ResourceManager { return m.lead }

// Ours returns the manager of rcmgr, whether it is the lead or not, to look at it, for example
// with rcmgr.Handler.
func (m *Manager) Ours() *rcmgr.Manager { return m.ours }

// Close closes both managers, and returns the lead's error. After Close, nothing is compared
// any more. What is open can be given back.
func (m *Manager) Close() error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.unlock()
	err := m.lead.Close()
	if first {
		// Not under the lock: a manager that closes waits for its goroutines.
		if err := m.beside.Close(); err != nil {
			log.Error("the manager beside cannot be closed", "err", err)
		}
	}
	return err
}

// GetConnLimit returns the lead's limit on connections.
func (m *Manager) GetConnLimit() int {
	if l, ok := m.lead.(connmgr.GetConnLimiter); ok {
		return l.GetConnLimit()
	}
	return math.MaxInt
}

// leadState is what both packages' managers show of themselves.
func (m *Manager) leadState() interface {
	ListServices() []string
	ListProtocols() []protocol.ID
	ListPeers() []peer.ID
} {
	if m.oursLead {
		return m.ours
	}
	return m.theirs
}

// ListServices returns the names of all services that have a scope in the lead.
func (m *Manager) ListServices() []string { return m.leadState().ListServices() }

// ListProtocols returns the IDs of all protocols that have a scope in the lead.
func (m *Manager) ListProtocols() []protocol.ID { return m.leadState().ListProtocols() }

// ListPeers returns the IDs of all peers that have a scope in the lead.
func (m *Manager) ListPeers() []peer.ID { return m.leadState().ListPeers() }

// Stat returns what every scope of the lead holds, in go-libp2p's type.
func (m *Manager) Stat() upstream.ResourceManagerStat {
	if m.oursLead {
		return m.ourStat()
	}
	return m.theirs.Stat()
}

func (m *Manager) ourStat() upstream.ResourceManagerStat {
	s := m.ours.Stat()
	return upstream.ResourceManagerStat{System: s.System, Transient: s.Transient,
		Services: s.Services, Protocols: s.Protocols, Peers: s.Peers}
}

// theirsFirst returns what go-libp2p's manager and ours have said, from what the lead and the
// other one have.
func theirsFirst[T any](m *Manager, lead, beside T) (theirs, ours T) {
	if m.oursLead {
		return beside, lead
	}
	return lead, beside
}

// guarded calls the manager beside. The lock is held.
func (m *Manager) guarded(f func()) {
	if m.out {
		return
	}
	defer m.contain()
	f()
}

// contain ends a panic of the manager beside, or of the comparison, so that no call of the
// program fails for its sake. That manager is left out from then on, because its locks may be
// held for ever. It has to be deferred itself.
func (m *Manager) contain() {
	if r := recover(); r != nil {
		m.out = true
		m.count(KindPanic, "", "", fmt.Sprint("the manager beside is not asked any more, after a panic: ", r))
	}
}

// silent reports whether the manager beside is not asked. The lock is held.
func (m *Manager) silent() bool { return m.out || m.closed }

// OpenConnection opens a connection in the lead, and beside it.
func (m *Manager) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	m.mu.Lock()
	defer m.unlock()
	c := call{name: "OpenConnection", dir: dir, usefd: usefd, endpoint: endpoint, opens: true}
	before := m.allowlistedUse()
	lead, leadErr := m.lead.OpenConnection(dir, usefd, endpoint)
	if m.silent() {
		if leadErr != nil {
			return nil, leadErr
		}
		return m.newConn(&scope{m: m, id: scopeID{kind: kindConn}, lead: lead}), nil
	}
	m.counts.calls++
	m.sameAllowlist(endpoint)
	var beside network.ConnManagementScope
	var besideErr error
	m.guarded(func() { beside, besideErr = m.beside.OpenConnection(dir, usefd, endpoint) })
	s := &scope{m: m, id: scopeID{kind: kindConn}, endpoint: endpoint}
	s.allowlisted = before != m.allowlistedUse()
	if !m.opened(&c, s, lead, beside, leadErr, besideErr) {
		return nil, leadErr
	}
	s.inGates(&c)
	return m.newConn(s), nil
}

// OpenStream opens a stream in the lead, and beside it.
func (m *Manager) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	m.mu.Lock()
	defer m.unlock()
	c := call{name: "OpenStream", dir: dir, peer: p, opens: true}
	before := m.allowlistedUse()
	lead, leadErr := m.lead.OpenStream(p, dir)
	if m.silent() {
		if leadErr != nil {
			return nil, leadErr
		}
		return m.newStream(&scope{m: m, id: scopeID{kind: kindStream}, lead: lead, peer: p, hasPeer: true}), nil
	}
	m.counts.calls++
	var beside network.StreamManagementScope
	var besideErr error
	m.guarded(func() { beside, besideErr = m.beside.OpenStream(p, dir) })
	s := &scope{m: m, id: scopeID{kind: kindStream}, peer: p, hasPeer: true}
	s.allowlisted = before != m.allowlistedUse()
	if !m.opened(&c, s, lead, beside, leadErr, besideErr) {
		return nil, leadErr
	}
	return m.newStream(s), nil
}

// VerifySourceAddress returns the lead's answer.
func (m *Manager) VerifySourceAddress(addr net.Addr) bool {
	m.mu.Lock()
	defer m.unlock()
	lead := m.lead.VerifySourceAddress(addr)
	if m.silent() {
		return lead
	}
	m.counts.calls++
	beside := lead
	m.guarded(func() { beside = m.beside.VerifySourceAddress(addr) })
	if beside != lead && !m.out {
		m.verifyDiffers(addr, lead, beside)
	}
	return lead
}

// ViewSystem calls f with the system scope, and returns f's error.
func (m *Manager) ViewSystem(f func(network.ResourceScope) error) error {
	id := scopeID{kind: kindSystem}
	return view(m, id, m.lead.ViewSystem, m.beside.ViewSystem, func(s *scope) error { return f(m.newScope(s)) })
}

// ViewTransient calls f with the transient scope, and returns f's error.
func (m *Manager) ViewTransient(f func(network.ResourceScope) error) error {
	id := scopeID{kind: kindTransient}
	return view(m, id, m.lead.ViewTransient, m.beside.ViewTransient, func(s *scope) error { return f(m.newScope(s)) })
}

// ViewService calls f with the scope of a service, and returns f's error.
func (m *Manager) ViewService(svc string, f func(network.ServiceScope) error) error {
	return view(m, scopeID{kindService, svc}, ofName(m.lead.ViewService, svc), ofName(m.beside.ViewService, svc),
		func(s *scope) error { return f(m.newService(s)) })
}

// ViewProtocol calls f with the scope of a protocol, and returns f's error.
func (m *Manager) ViewProtocol(proto protocol.ID, f func(network.ProtocolScope) error) error {
	return view(m, scopeID{kindProtocol, string(proto)}, ofName(m.lead.ViewProtocol, proto), ofName(m.beside.ViewProtocol, proto),
		func(s *scope) error { return f(m.newProtocol(s)) })
}

// ViewPeer calls f with the scope of a peer, and returns f's error.
func (m *Manager) ViewPeer(p peer.ID, f func(network.PeerScope) error) error {
	return view(m, scopeID{kindPeer, string(p)}, ofName(m.lead.ViewPeer, p), ofName(m.beside.ViewPeer, p),
		func(s *scope) error { return f(m.newPeer(s)) })
}

// ofName returns a View method with its name.
func ofName[N, S any](view func(N, func(S) error) error, name N) func(func(S) error) error {
	return func(f func(S) error) error { return view(name, f) }
}

// view views a scope in the lead, and beside it. The scope beside is only looked up: f runs
// within the lead's view alone, and without the lock.
func view[S network.ResourceScope](m *Manager, id scopeID, lead, beside func(func(S) error) error, f func(*scope) error) error {
	called := false
	err := lead(func(s S) error {
		called = true
		return f(viewed(m, id, s, beside, nil))
	})
	if !called {
		viewed(m, id, nil, beside, err)
	}
	return err
}

// viewed returns a scope of the lead with that of the manager beside, and compares them. lead
// is nil if the lead returned an error.
func viewed[S network.ResourceScope](
	m *Manager, id scopeID, lead network.ResourceScope, beside func(func(S) error) error, leadErr error,
) *scope {
	m.mu.Lock()
	defer m.unlock()
	s := &scope{m: m, id: id, lead: lead}
	var besideErr error
	m.guarded(func() { besideErr = beside(func(x S) error { s.beside = x; return nil }) })
	if m.silent() {
		return s
	}
	m.counts.calls++
	m.decided(&call{name: "View", to: id.name, named: true}, s, leadErr, besideErr)
	if lead != nil {
		m.sameLimit(s)
	}
	return s
}

// counterpart returns a shared scope of the manager beside, or nil if it has none. The lock is
// held.
func (m *Manager) counterpart(id scopeID) (found network.ResourceScope) {
	m.guarded(func() {
		switch id.kind {
		case kindSystem:
			m.beside.ViewSystem(func(s network.ResourceScope) error { found = s; return nil })
		case kindTransient:
			m.beside.ViewTransient(func(s network.ResourceScope) error { found = s; return nil })
		case kindPeer:
			m.beside.ViewPeer(peer.ID(id.name), func(s network.PeerScope) error { found = s; return nil })
		case kindProtocol:
			m.beside.ViewProtocol(protocol.ID(id.name), func(s network.ProtocolScope) error { found = s; return nil })
		case kindService:
			m.beside.ViewService(id.name, func(s network.ServiceScope) error { found = s; return nil })
		}
	})
	return found
}

// unlock releases the lock, and then logs what was first seen under it.
func (m *Manager) unlock() {
	news := m.counts.news
	m.counts.news = nil
	m.mu.Unlock()
	for _, d := range news {
		d.log()
	}
}
