package rcmgr

// The front door: how a manager is made, how its scopes are viewed, and how it is
// closed.

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Manager decides for a go-libp2p host which connections, streams, file
// descriptors and memory it takes, and keeps exact account of what it holds.
// Pass it to libp2p.New with libp2p.ResourceManager.
//
// It is made with New or NewResourceManager; the zero value is of no use. All
// methods are safe for concurrent use. The scopes that it hands out also
// implement ResourceScopeLimiter.
type Manager struct {
	engine
	options    config     // what the options said
	changing   sync.Mutex // held while limits are put in force, before all other locks
	refusalLog refusalLog // what has been told of refusals
	history    refusalHistory
	started    time.Time

	handles   atomic.Int64 // of Share, that are open
	closeOnce sync.Once
	stop      chan struct{}
	workers   sync.WaitGroup
}

var (
	_ network.ResourceManager = (*Manager)(nil)
	_ connmgr.GetConnLimiter  = (*Manager)(nil)
	_ ResourceManagerState    = (*Manager)(nil)
)

// ViewSystem calls f with the scope of everything, and returns what f does. f runs
// under no lock, and may keep the scope; so it is with all views. After Close, scopes can
// still be looked at, and refuse everything; what a view makes then goes when f returns.
func (m *Manager) ViewSystem(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindSystem])
}

// ViewTransient calls f with the scope of connections that have no peer yet
// and streams that have no protocol yet.
func (m *Manager) ViewTransient(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindTransient])
}

// ViewAllowlistedSystem is ViewSystem for what the allowlist lets in where system
// or transient is full.
func (m *Manager) ViewAllowlistedSystem(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindAllowlistedSystem])
}

// ViewAllowlistedTransient is ViewTransient for what the allowlist lets in where
// system or transient is full.
func (m *Manager) ViewAllowlistedTransient(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindAllowlistedTransient])
}

// ViewService calls f with the scope of a service, which is made if there is none,
// and returns what f does. An empty name is an error, and so is a Limiter that
// gives no valid limit for the service: f is not called then.
func (m *Manager) ViewService(svc string, f func(network.ServiceScope) error) error {
	return m.view(KindService, svc, func(p *pool) error { return f(serviceScope{p}) })
}

// ViewProtocol is ViewService for a protocol.
func (m *Manager) ViewProtocol(proto protocol.ID, f func(network.ProtocolScope) error) error {
	return m.view(KindProtocol, string(proto), func(p *pool) error { return f(protocolScope{p}) })
}

func (e *engine) view(kind Kind, name string, f func(*pool) error) error {
	if name == "" {
		return &scopeError{scopeName{kind: kind}, errNoName}
	}
	fresh := e.dir.find(kind, name)
	if fresh == nil {
		var err error
		if fresh, err = e.newPool(kind, name); err != nil {
			return err
		}
	}
	st, a, _ := fresh.enter(oneStripe)
	a.refs++
	st.unlock()
	defer func() {
		st.lock()
		defer st.exit(oneStripe)
		st.unref(a)
	}()
	return f(a.share.pool)
}

// ViewPeer calls f with the scope of a peer, which is made if there is none, and
// returns what f does. A Limiter that gives no valid limit for the peer is an error:
// f is not called then.
func (m *Manager) ViewPeer(p peer.ID, f func(network.PeerScope) error) error {
	st := m.stripeOf(p).awake()
	var ps *peerScope
	err := decide(&m.engine, fetchPeer(p), func(_ grip, limit fetched[*amounts]) (verdict, error) {
		st.lock()
		defer st.unlock()
		if ps = st.peer(p, limit); ps == nil {
			return unknown, nil
		}
		ps.refs++
		return admitted, nil
	})
	if err != nil {
		return err
	}
	defer func() {
		st.lock()
		defer st.exit(oneStripe)
		st.unref(&ps.account)
	}()
	return f(ps)
}

// GetConnLimit gives the system's limit on connections, for the connection
// manager.
func (m *Manager) GetConnLimit() int {
	return m.fixed[KindSystem].Limit().GetConnTotalLimit()
}

// GetAllowlist gives the allowlist, which can be changed at any time.
func (m *Manager) GetAllowlist() *Allowlist { return m.allowlist }

// GetAllowlist gives the allowlist of a manager of this package, also through
// wrappers that have a method Unwrap() network.ResourceManager; nil for others.
func GetAllowlist(rm network.ResourceManager) *Allowlist {
	for rm != nil {
		if m, ok := rm.(interface{ GetAllowlist() *Allowlist }); ok {
			return m.GetAllowlist()
		}
		w, ok := rm.(interface {
			Unwrap() network.ResourceManager
		})
		if !ok {
			return nil
		}
		rm = w.Unwrap()
	}
	return nil
}

// ObserveOnly switches the limits of some classes, or without any named of all, to
// being only observed, as WithObserveOnly does for a start; other classes stay as
// they are. A kind that does not exist is an error, and then nothing is changed. It
// is safe for concurrent use.
func (m *Manager) ObserveOnly(kinds ...Kind) error {
	set, err := kindSetOf(kinds)
	if err != nil {
		return fmt.Errorf("rcmgr: ObserveOnly: %w", err)
	}
	m.observe(func(now kindSet) kindSet { return now | set })
	return nil
}

// Enforce takes ObserveOnly back, for some classes or without any named for all:
// their limits refuse again. A scope that holds more than its limit by then keeps
// it, and gets nothing more until it has drained. It is safe for concurrent use.
func (m *Manager) Enforce(kinds ...Kind) error {
	set, err := kindSetOf(kinds)
	if err != nil {
		return fmt.Errorf("rcmgr: Enforce: %w", err)
	}
	m.observe(func(now kindSet) kindSet { return now &^ set })
	return nil
}

// Observed gives the classes whose limits are only observed, in the order of their
// numbers. It is safe for concurrent use.
func (m *Manager) Observed() []Kind { return m.observed.load().list() }

func (m *Manager) observe(change func(kindSet) kindSet) {
	m.inOneCut(func() { m.observed.bits.Store(uint32(change(m.observed.load()))) })
	log.Info("limits that are only observed", "kinds", m.observed.load())
}

// ResourceManagerState is implemented by *Manager, and tells what its scopes are
// and what they hold. All methods are safe for concurrent use.
type ResourceManagerState interface {
	// ListServices gives the names of all services that have a scope.
	ListServices() []string
	// ListProtocols gives the IDs of all protocols that have a scope.
	ListProtocols() []protocol.ID
	// ListPeers gives the IDs of all peers that have a scope.
	ListPeers() []peer.ID

	// Stat gives what every scope holds.
	Stat() ResourceManagerStat
}

// ListServices gives the names of all services that have a scope, sorted.
func (m *Manager) ListServices() []string {
	return m.listNames(KindService)
}

// ListProtocols gives the IDs of all protocols that have a scope, sorted.
func (m *Manager) ListProtocols() []protocol.ID {
	names := m.listNames(KindProtocol)
	return protocol.ConvertFromStrings(names)
}

func (m *Manager) listNames(k Kind) []string {
	names := []string{}
	for _, p := range m.dir.list() {
		if p.kind == k {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return names
}

// ListPeers gives the IDs of all peers that have a scope, sorted by their bytes.
func (m *Manager) ListPeers() []peer.ID {
	peers := []peer.ID{}
	for i := range m.stripes {
		st := &m.stripes[i]
		st.lock()
		peers = slices.AppendSeq(peers, maps.Keys(st.peers))
		st.unlock()
	}
	slices.Sort(peers)
	return peers
}

// FlushTrace waits until the events of all that happened before the call have been handed to
// every TraceReporter, and written to the file of WithTrace, where others can read them. It
// returns an error if ctx ends before that, which wraps ctx's, or if a reporter has ended the
// goroutine that delivers. Events for which the queue had no room, a reporter that has
// failed and a file that could not be written are not waited for. If the manager is not
// traced, and after Close, which waits for all of this itself, it returns nil at once.
//
// It is safe for concurrent use. Within ConsumeEvent it waits for that very call, and so
// until ctx ends.
func (m *Manager) FlushTrace(ctx context.Context) error { return m.trace.flush(ctx) }

// maxWarnings bounds what one line of the log tells.
const maxWarnings = 20

// logUnreachable tells in one line which of the limits that come into force can
// never be reached, at a level that go-libp2p's loggers show by default.
func (m *Manager) logUnreachable(b *limitBook) {
	if b.own == nil {
		return // who wrote what is not known
	}
	all := (*ConcreteLimitConfig)(b.own).unreachable(m.allowlist.hasEntries())
	if len(all) == 0 {
		return
	}
	told := all[:min(len(all), maxWarnings)]
	log.Error("limits that can never be reached", "count", len(all), "first", strings.Join(told, "; "))
}

// ResourceManagerStat is what every scope holds, in one consistent cut: the
// numbers of all scopes belong to the same instant.
type ResourceManagerStat struct {
	System    network.ScopeStat
	Transient network.ScopeStat
	Services  map[string]network.ScopeStat
	Protocols map[protocol.ID]network.ScopeStat
	Peers     map[peer.ID]network.ScopeStat
	// What the allowlist lets in where system and transient are full.
	AllowlistedSystem    network.ScopeStat `json:",omitzero"`
	AllowlistedTransient network.ScopeStat `json:",omitzero"`
}
