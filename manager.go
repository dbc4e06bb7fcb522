package rcmgr

// The front door: how a manager is made, how its scopes are viewed, and how it is
// closed.

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	logging "github.com/libp2p/go-libp2p/gologshim"
	"golang.org/x/time/rate"
)

var log = logging.Logger("rcmgr")

// Manager decides for a go-libp2p host which connections, streams, file
// descriptors and memory it takes, and keeps exact account of what it holds.
// Pass it to libp2p.New with libp2p.ResourceManager.
//
// It is made with New or NewResourceManager; the zero value is of no use. All
// methods are safe for concurrent use. The scopes that it hands out also
// implement ResourceScopeLimiter.
type Manager struct {
	engine
	options    config      // what the options said
	changing   sync.Mutex  // held while limits are put in force, before all other locks
	refusalLog *refusalLog // nil: refusals are not logged
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

// NewDefault makes a manager with nothing to set: DefaultLimits and the limits of
// libp2p's services, for what this process may use of its machine (ThisMachine).
// It is New without limits.
func NewDefault(opts ...Option) (*Manager, error) { return New(nil, opts...) }

// New makes a manager with the given limits; nil is NewDefault. Limits are read
// when a scope is made, and when SetLimits or Refresh says so. Close ends it.
func New(limits Limiter, opts ...Option) (*Manager, error) {
	cfg := defaultConfig()
	for i, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("rcmgr: option %d is nil", i)
		}
		if err := opt(&cfg); err != nil {
			return nil, fmt.Errorf("rcmgr: %w", err)
		}
	}
	if limits == nil {
		limits = defaultLimiter()
	}
	book, err := newLimitBook(limits)
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	if cfg.traced() {
		cfg.stripes = 1 // one order of events, with exact totals
	}
	m := &Manager{
		engine: engine{
			seed:      maphash.MakeSeed(),
			secret:    subnetHash{rand.Uint64(), rand.Uint64()},
			stripes:   make([]stripe, cfg.stripes),
			admission: cfg.admission,
			newcomers: cfg.newcomers,
			fair:      newFairShare(cfg.fair),
			allowlist: newAllowlist(cfg.allowlisted),
			reporter:  guarded(cfg.reporter),
			noting:    cfg.refusalLog > 0,
			bugLog:    rate.Sometimes{Interval: 10 * time.Second},
		},
		options: cfg,
		started: time.Now(),
		stop:    make(chan struct{}),
	}
	m.observed.bits.Store(uint32(cfg.observed))
	gates, err := m.makeGates(limits)
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	m.gates.Store(gates)
	if m.trace, err = newTracer(cfg.tracePath, cfg.reporters, limits); err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	if cfg.refusalLog > 0 {
		m.refusalLog = &refusalLog{m: m, every: cfg.refusalLog}
	}
	m.pressure = newPressure(cfg.pressure)
	m.leaks = newLeakFinder(&m.engine, cfg.leaks)
	m.limits.Store(book)
	m.classes.putInForce(book)
	m.build()
	if cfg.measured() {
		live.add(m)
	}
	m.workers.Go(func() { m.workUntilClosed(m.jobs()) })
	m.logStart()
	m.logUnreachable(book)
	return m, nil
}

// logStart tells in one line what is on.
func (m *Manager) logStart() {
	gates, _ := m.options.gateConfig(m.limits.Load().limiter) // of which gates were made
	rates := gates.rate.describe()
	if caller := m.gate().caller; caller != nil {
		rates = []string{"as WithConnRateLimiters says"}
		if caller.limiter == nil {
			rates = []string{"off"}
		}
	}
	log.Info("resource manager started", append([]any{"stripes", len(m.stripes), "admission", m.admission,
		"newcomers_quarter", m.newcomers, "fair_share", m.options.fair, "observe_only", m.observed.load(), "connections_per_subnet", gates.subnets.describe(),
		"connect_rates", rates, "outbound_gates", gates.outbound,
		"allowlist_entries", len(m.options.allowlisted), "traced", m.trace != nil}, m.limits.Load().startAttrs()...)...)
}

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

// NewResourceManager is New as go-libp2p's own package spells it.
func NewResourceManager(limits Limiter, opts ...Option) (network.ResourceManager, error) {
	m, err := New(limits, opts...)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return m, nil
}

// build makes the stripes and the four scopes that are always there. A trace begins with
// these.
func (e *engine) build() {
	e.dir.mu.services = make(map[string]*pool)
	e.dir.mu.protocols = make(map[string]*pool)
	for i := range e.stripes {
		st := &e.stripes[i]
		st.engine, st.index, st.trace = e, i, e.trace
		st.wholeFrom = e.admission.wholeFrom()
		st.plain = e.trace == nil && e.fair == nil
	}
	for k := range e.fixed {
		e.fixed[k] = e.makePool(Kind(k), "", e.limits.Load().kinds[k].unnamed, amounts{})
	}
	if e.trace != nil {
		e.stripes[0].wake()
	}
}

func (e *engine) makePool(kind Kind, name string, limit, pairLimit amounts) *pool {
	home := maphash.String(e.seed, name) & uint64(len(e.stripes)-1)
	p := &pool{engine: e, kind: kind, name: name, home: &e.stripes[home], pairLimit: pairLimit,
		shares: make([]*share, len(e.stripes))}
	p.setLimit(limit)
	return p
}

// newPool makes the scope of a service or protocol; nobody knows of it yet.
// The limiter is asked, so no lock may be held.
func (e *engine) newPool(kind Kind, name string) (*pool, error) {
	book := e.limits.Load()
	f, err := book.fetchShared(kind, name)
	if err != nil {
		return nil, err
	}
	limits, _ := book.sharedLimits(kind, name, f)
	p := e.makePool(kind, name, *limits.own, *limits.pair)
	p.by = book
	return p, nil
}

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
	st, a, _ := fresh.enter(true, false)
	a.refs++
	st.unlock(false)
	defer func() {
		st.lock(false)
		defer st.exit(false)
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
	err := decide(&m.engine, fetchPeer(p), func(_ bool, limit fetched[*amounts]) (verdict, error) {
		st.lock(false)
		defer st.unlock(false)
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
		st.lock(false)
		defer st.exit(false)
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

// Close ends the manager: nothing more is admitted, and the error then matches
// network.ErrResourceScopeClosed. What is open can still be released; scopes go with the
// last that they hold, but for those whose limit was set by hand. A trace is written to its
// end. Again, it does nothing. It always returns nil.
func (m *Manager) Close() error {
	m.closeOnce.Do(func() {
		m.ended.Store(true)
		close(m.stop)
		m.workers.Wait()
		m.inOneCut(func() {
			for i := range m.stripes {
				m.stripes[i].closed, m.stripes[i].plain = true, false
			}
		})
		if m.refusalLog != nil {
			m.refusalLog.write()
		}
		live.remove(m)
		m.trace.close()
		m.reap() // for the last time; see stripe.sweep
	})
	return nil
}

// readLimit reads a limit that somebody sets at run time.
func (e *engine) readLimit(scope *scopeName, limit Limit) (*amounts, bool) {
	if err := checkLimit(scope.String(), limit); err != nil {
		e.reportBug("a limit that is none was set", "scope", scope.String(), "err", err)
		return nil, false
	}
	a := limitsOf(limit)
	return &a, true
}

// reportRelease says that a scope was asked to release what it did not hold.
func (e *engine) reportRelease(scope scopeName, excess int64) {
	e.reportBug("memory was released that had not been reserved at the scope",
		"scope", scope.String(), "excess", loggedAmount{dimMemory, excess})
}

// reportBug counts a caller's bug, and logs it unless another one was logged
// shortly before. No lock is held.
func (e *engine) reportBug(msg string, args ...any) {
	n := e.callerBugs.Add(1)
	tell := false
	e.bugLog.Do(func() { tell = true }) // under a lock of its own: nothing is logged there
	if tell {
		log.Warn("BUG of a caller: "+msg, append(args, "bugs", n)...)
	}
}
