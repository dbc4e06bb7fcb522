package rcmgr

// The Manager: views of its scopes, its allowlist, and switching limits to being only
// observed.

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/weir-p2p/rcmgr/internal/letgo"
)

// Manager decides for a go-libp2p host which connections, streams, file descriptors and
// memory it may take, and keeps exact account of what the host holds. Pass it to libp2p.New
// with libp2p.ResourceManager.
//
// Use New or NewResourceManager to make one; the zero value is of no use. All methods are
// safe for concurrent use. The scopes of a manager also implement ResourceScopeLimiter.
type Manager struct {
	engine
	options    config     // as set by the options
	changing   sync.Mutex // held while limits are put in force; taken before all other locks
	refusalLog refusalLog // which refusals have been logged
	explained  recentLargest
	// writeRefusals writes a line of the log of refusals. It is nil without WithRefusalLogger.
	writeRefusals func(msg string, attrs []slog.Attr)
	history       refusalHistory
	started       time.Time
	cuts          sync.Pool   // of *cut
	names         *hostNames  // of the allowlist; nil without WithAllowlistResolver
	room          *letgo.Room // nil without WithRoom
	checks        limitChecks
	owner         func(netip.Addr) string // nil without WithOwners

	handles   atomic.Int64 // how many handles are open
	closeOnce sync.Once
	stop      chan struct{}
	workers   sync.WaitGroup
}

// limitChecks compare the limits in force with the connection managers of attached hosts. Each
// returns a conflict, or an empty text.
type limitChecks struct {
	mu  sync.Mutex
	all map[*func() string]bool
}

// add adds a check. The function that it returns removes it again.
func (c *limitChecks) add(check func() string) (remove func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = make(map[*func() string]bool)
	}
	c.all[&check] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.all, &check)
	}
}

// conflicts makes all checks, without the lock.
func (c *limitChecks) conflicts() map[*func() string]string {
	c.mu.Lock()
	checks := slices.Collect(maps.Keys(c.all))
	c.mu.Unlock()
	found := make(map[*func() string]string, len(checks))
	for _, check := range checks {
		found[check] = (*check)()
	}
	return found
}

// logNew makes all checks, and logs the conflicts that were not there before.
func (c *limitChecks) logNew(before map[*func() string]string) {
	for check, conflict := range c.conflicts() {
		if conflict != "" && conflict != before[check] {
			log.Warn("limits conflict with the connection manager", "err", conflict)
		}
	}
}

var (
	_ network.ResourceManager = (*Manager)(nil)
	_ connmgr.GetConnLimiter  = (*Manager)(nil)
	_ ResourceManagerState    = (*Manager)(nil)
)

// ViewSystem calls f with the system scope, which counts everything, and returns f's
// error. As in all View methods, f runs without any lock, and may keep the scope. After
// Close, scopes can still be viewed, but they refuse everything, and a scope that a View
// method has to make is removed again when f returns.
func (m *Manager) ViewSystem(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindSystem])
}

// ViewTransient calls f with the transient scope, which counts connections that have no
// peer yet and streams that have no protocol yet. It returns f's error.
func (m *Manager) ViewTransient(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindTransient])
}

// ViewAllowlistedSystem calls f with the scope that takes the place of the system scope for
// connections and streams that the allowlist admits when the system or the transient scope
// is full. It returns f's error.
func (m *Manager) ViewAllowlistedSystem(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindAllowlistedSystem])
}

// ViewAllowlistedTransient calls f with the scope that takes the place of the transient
// scope for connections and streams that the allowlist admits when the system or the
// transient scope is full. It returns f's error.
func (m *Manager) ViewAllowlistedTransient(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindAllowlistedTransient])
}

// ViewService calls f with the scope of a service, and returns f's error. If the service
// has no scope yet, it is made. If the name is empty, or if a Limiter has no valid limit
// for the service, ViewService returns an error and does not call f.
func (m *Manager) ViewService(svc string, f func(network.ServiceScope) error) error {
	return m.view(KindService, svc, func(p *pool) error { return f(serviceScope{p}) })
}

// ViewProtocol calls f with the scope of a protocol, and returns f's error. If the protocol
// has no scope yet, it is made. If the name is empty, or if a Limiter has no valid limit
// for the protocol, ViewProtocol returns an error and does not call f.
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

// ViewPeer calls f with the scope of a peer, and returns f's error. If the peer has no scope
// yet, it is made. If a Limiter has no valid limit for the peer, ViewPeer returns an error
// and does not call f.
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

// GetConnLimit returns the system scope's limit on connections in both directions, math.MaxInt
// if there is none.
// Connection managers call it to check that their high water mark lies below.
func (m *Manager) GetConnLimit() int {
	return int(m.fixed[KindSystem].limitCopy.Load()[dimConns])
}

// GetAllowlist returns the manager's allowlist, which can be changed at any time.
func (m *Manager) GetAllowlist() *Allowlist { return m.allowlist }

// GetAllowlist returns the allowlist of rm, if it is a manager of this package or wraps one.
// A wrapper has a method Unwrap() network.ResourceManager. For any other resource manager,
// GetAllowlist returns nil.
func GetAllowlist(rm network.ResourceManager) *Allowlist {
	lists, ok := unwrap[interface{ GetAllowlist() *Allowlist }](rm)
	if !ok {
		return nil
	}
	return lists.GetAllowlist()
}

// ManagerOf returns the manager that rm is or wraps, and reports whether there is one. It
// looks through a Handle, and through any other wrapper that has a method
// Unwrap() network.ResourceManager.
func ManagerOf(rm network.ResourceManager) (*Manager, bool) {
	return unwrap[*Manager](rm)
}

// unwrap returns the first value of type T among rm and what it wraps, from the outside in.
func unwrap[T any](rm network.ResourceManager) (T, bool) {
	for rm != nil {
		if found, ok := rm.(T); ok {
			return found, true
		}
		w, ok := rm.(interface {
			Unwrap() network.ResourceManager
		})
		if !ok {
			break
		}
		rm = w.Unwrap()
	}
	var none T
	return none, false
}

// ObserveOnly makes the limits of the given kinds of scopes and gates, or of all kinds if
// none is given, only observed: they count what they would refuse, but refuse nothing (see
// WithObserveOnly). Other kinds stay as they are. If a kind does not exist, ObserveOnly
// returns an error and changes nothing. It is safe for concurrent use.
func (m *Manager) ObserveOnly(kinds ...Kind) error {
	set, err := kindSetOf(kinds)
	if err != nil {
		return fmt.Errorf("rcmgr: ObserveOnly: %w", err)
	}
	m.observe(func(now kindSet) kindSet { return now | set })
	return nil
}

// Enforce undoes ObserveOnly for the given kinds, or for all kinds if none is given: their
// limits refuse again. A scope that now holds more than its limit keeps what it holds, and
// admits nothing more until it has drained below the limit. If a kind does not exist,
// Enforce returns an error and changes nothing. It is safe for concurrent use.
func (m *Manager) Enforce(kinds ...Kind) error {
	set, err := kindSetOf(kinds)
	if err != nil {
		return fmt.Errorf("rcmgr: Enforce: %w", err)
	}
	m.observe(func(now kindSet) kindSet { return now &^ set })
	return nil
}

// Observed returns the kinds whose limits are only observed, in ascending order. It is safe
// for concurrent use.
func (m *Manager) Observed() []Kind { return m.observed.load().list() }

func (m *Manager) observe(change func(kindSet) kindSet) {
	m.inOneCut(func() { m.observed.bits.Store(uint32(change(m.observed.load()))) })
	log.Info("limits that are only observed", "kinds", m.observed.load())
}

// ResourceManagerState shows which scopes a manager has, and what they hold. *Manager
// implements it. All methods are safe for concurrent use.
type ResourceManagerState interface {
	// ListServices returns the names of all services that have a scope.
	ListServices() []string
	// ListProtocols returns the IDs of all protocols that have a scope.
	ListProtocols() []protocol.ID
	// ListPeers returns the IDs of all peers that have a scope.
	ListPeers() []peer.ID

	// Stat returns what every scope holds.
	Stat() ResourceManagerStat
}

// ListServices returns the names of all services that have a scope, sorted.
func (m *Manager) ListServices() []string {
	return m.listNames(KindService)
}

// ListProtocols returns the IDs of all protocols that have a scope, sorted.
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

// ListPeers returns the IDs of all peers that have a scope, sorted by their bytes.
func (m *Manager) ListPeers() []peer.ID {
	peers := []peer.ID{}
	for i := range m.stripes {
		st := &m.stripes[i]
		st.lock()
		for ps := range st.allPeers {
			peers = append(peers, ps.id)
		}
		st.unlock()
	}
	slices.Sort(peers)
	return peers
}

// FlushTrace waits until all events from before the call have been handed to every
// TraceReporter and written to the file of WithTrace, where other programs can read them.
// It does not wait for events that the queue had no room for, for a reporter that has
// failed, or for a file that can no longer be written.
//
// FlushTrace returns an error that wraps ctx.Err() if ctx ends first, and an error if a
// reporter has ended the goroutine that delivers events. It returns nil at once if the
// manager is not traced, or is closed: Close itself delivers all events. FlushTrace is safe
// for concurrent use, but must not be called in ConsumeEvent. There it would wait for
// ConsumeEvent to return, which it never does before ctx ends.
func (m *Manager) FlushTrace(ctx context.Context) error { return m.trace.flush(ctx) }

// limitAttrs returns, for the log, the rates in force, what the limits were computed from and the
// limits that matter most.
func limitAttrs(b *limitBook) []any {
	return append([]any{"rates", (*ConcreteLimitConfig)(b.own).ratesInForce()}, b.startAttrs()...)
}

// limitChange is what SetLimits has replaced, and the gates that came in its place.
type limitChange struct {
	last       *limitBook
	lastGates  *gate
	gatesOfNow *gate
}

// logChanged logs that a book was put in force, and which settings have changed.
func logChanged(b *limitBook, was *limitChange) {
	if !log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	changes := (*ConcreteLimitConfig)(b.own).changesFrom((*ConcreteLimitConfig)(was.last.own), &was.gatesOfNow.limits, &was.lastGates.limits)
	log.Info("limits changed", append([]any{"changes", changes}, limitAttrs(b)...)...)
}

// logKept logs that the new limit of a scope could not be read.
func logKept(err error) { log.Warn("a limit stays as it was", "err", err) }

// maxWarnings is the greatest number of warnings in one line of the log.
const maxWarnings = 20

// logUnreachable logs in one line which limits of b can never be reached. It logs an error,
// because go-libp2p's loggers show no lower level by default.
func (m *Manager) logUnreachable(b *limitBook) {
	if b.own == nil {
		return // a foreign Limiter does not show which limits were written on purpose
	}
	all := (*ConcreteLimitConfig)(b.own).unreachable(m.allowlist.hasEntries())
	if len(all) == 0 {
		return
	}
	told := all[:min(len(all), maxWarnings)]
	log.Error("limits that can never be reached", "count", len(all), "first", strings.Join(told, "; "))
}

// ResourceManagerStat is what every scope holds. The numbers of all scopes belong to the
// same instant.
type ResourceManagerStat struct {
	System    network.ScopeStat
	Transient network.ScopeStat
	Services  map[string]network.ScopeStat
	Protocols map[protocol.ID]network.ScopeStat
	Peers     map[peer.ID]network.ScopeStat
	// AllowlistedSystem and AllowlistedTransient count what the allowlist admits when
	// System or Transient is full.
	AllowlistedSystem    network.ScopeStat `json:",omitzero"`
	AllowlistedTransient network.ScopeStat `json:",omitzero"`
}
