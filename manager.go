package rcmgr

import (
	"fmt"
	"hash/maphash"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	logging "github.com/libp2p/go-libp2p/gologshim"
	"github.com/multiformats/go-multiaddr"
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
	seed      maphash.Seed
	stripes   []stripe
	dir       directory
	fixed     [KindAllowlistedTransient + 1]*pool
	limits    *limitBook
	admission Admission
	newcomers bool
	allowlist *Allowlist
	gate      *gate
	trace     *tracer         // nil: nobody listens
	reporter  MetricsReporter // nil: nobody is told of decisions

	lastID     atomic.Int64
	callerBugs atomic.Uint64
	bugLog     rate.Sometimes // I6: one line for a burst of bugs

	handles   atomic.Int64 // of Share, that are open
	closeOnce sync.Once
	stop      chan struct{}
	reaper    sync.WaitGroup
}

var (
	_ network.ResourceManager = (*Manager)(nil)
	_ connmgr.GetConnLimiter  = (*Manager)(nil)
	_ ResourceManagerState    = (*Manager)(nil)
)

// New makes a manager with the given limits. With nil, it takes DefaultLimits
// and libp2p's service limits, scaled to this machine. Limits are read when a
// scope is made. Close ends it.
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
		seed:      maphash.MakeSeed(),
		stripes:   make([]stripe, cfg.stripes),
		limits:    book,
		admission: cfg.admission,
		newcomers: cfg.newcomers,
		allowlist: new(Allowlist),
		reporter:  cfg.reporter,
		bugLog:    rate.Sometimes{Interval: 10 * time.Second},
		stop:      make(chan struct{}),
	}
	for _, e := range cfg.allowlisted {
		m.allowlist.put(e, 1)
	}
	gates, err := cfg.gateConfig(limits)
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	if m.gate, err = newGate(gates, cfg.rater); err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	if m.trace, err = newTracer(cfg.tracePath, cfg.reporters, limits); err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	m.build()
	if cfg.measured() {
		live.add(m)
	}
	m.reaper.Add(1)
	go m.reapUntilClosed()
	m.logStart(&gates, len(cfg.allowlisted))
	return m, nil
}

// logStart tells in one line what is on.
func (m *Manager) logStart(gates *gateConfig, allowlisted int) {
	rates := gates.rate.describe()
	if _, ok := m.gate.rater.(callerRates); ok {
		rates = []string{"as WithConnRateLimiters says"}
	}
	log.Info("resource manager started", "stripes", len(m.stripes), "admission", m.admission,
		"newcomers_quarter", m.newcomers, "connections_per_subnet", gates.subnets.describe(),
		"connect_rates", rates, "outbound_gates", gates.outbound,
		"allowlist_entries", allowlisted, "traced", m.trace != nil)
}

// NewResourceManager is New as go-libp2p's own package spells it.
func NewResourceManager(limits Limiter, opts ...Option) (network.ResourceManager, error) {
	m, err := New(limits, opts...)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return m, nil
}

// build makes the stripes and the four scopes that are always there.
func (m *Manager) build() {
	m.dir.mu.services = make(map[string]*pool)
	m.dir.mu.protocols = make(map[string]*pool)
	for i := range m.stripes {
		st := &m.stripes[i]
		st.m, st.index, st.trace = m, i, m.trace
		st.wholeFrom = m.admission.wholeFrom()
		st.services = make(map[string]*share)
		st.protocols = make(map[string]*share)
		st.peers = make(map[peer.ID]*peerScope)
	}
	for k := range m.fixed {
		m.fixed[k] = m.makePool(Kind(k), "", m.limits.fixed[k], amounts{})
		for i := range m.stripes {
			m.stripes[i].addShare(m.fixed[k])
		}
	}
}

func (m *Manager) makePool(kind Kind, name string, limit, pairLimit amounts) *pool {
	home := maphash.String(m.seed, name) & uint64(len(m.stripes)-1)
	p := &pool{m: m, kind: kind, name: name, home: &m.stripes[home], pairLimit: pairLimit,
		shares: make([]*share, len(m.stripes))}
	p.setLimit(limit)
	return p
}

// newPool makes the scope of a service or protocol; nobody knows of it yet.
// The limiter is asked, so no lock may be held.
func (m *Manager) newPool(kind Kind, name string) (*pool, error) {
	limit, pairLimit, err := m.limits.shared(kind, name)
	if err != nil {
		return nil, err
	}
	return m.makePool(kind, name, limit, pairLimit), nil
}

// OpenConnection admits a connection into the transient scope, or refuses it.
// endpoint is the far end; it may be nil.
func (m *Manager) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	far := endpointOf(endpoint)
	usefd = usefd && !far.relayed // the descriptor is that of the connection to the relay
	c, err := m.openConnection(dir, usefd, far)
	if m.reporter != nil {
		m.reportConn(dir, usefd, err)
	}
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return c, nil
}

func (m *Manager) openConnection(dir network.Direction, usefd bool, far endpoint) (*connScope, error) {
	limit, err := m.limits.conn()
	if err != nil {
		return nil, err
	}
	h := holder{kind: KindConn, dir: dir, fd: usefd, limit: limit}
	open, named := m.allowlist.allowsAddr(far)
	var pass gatePass
	gated := !open && m.gate.concerns(dir)
	if gated && !named {
		if pass, err = m.passGates(&h, far); err != nil {
			return nil, err
		}
	}
	st, c, err := m.openConn(&h, open || named)
	if err != nil {
		m.gate.undo(pass)
		return nil, err
	}
	scope := &connScope{holder: h, far: far, pass: pass, onTrial: gated && named,
		allowlisted: c.at[slotSystem].kind == KindAllowlistedSystem}
	scope.tree = &scope.root
	scope.chain = c
	scope.at.Store(st)
	return scope, nil
}

// passGates asks the gates in order: is there any room at all, has the subnet
// room, is it slow enough. Who is refused by the first leaves no trace in the
// others.
func (m *Manager) passGates(h *holder, far endpoint) (gatePass, error) {
	st := m.anyStripe()
	r := h.total()
	if m.crowded(&r) {
		if err := st.glance(h, &r); err != nil {
			return gatePass{}, err
		}
	}
	var why refusal
	pass, v := m.gate.enter(far.addr, h.dir, &why)
	if v == admitted {
		return pass, nil
	}
	st.lock(false)
	defer st.unlock(false)
	if st.closed {
		return gatePass{}, errClosed
	}
	st.number(h)
	st.refusedAtGate(&why)
	return gatePass{}, st.refuseOpening(h, &r)
}

// glance refuses a connection that certainly does not fit now.
func (st *stripe) glance(h *holder, r *request) error {
	st.lock(false)
	defer st.unlock(false)
	if st.closed {
		return errClosed
	}
	st.number(h) // its own limit may refuse it, and is named by it
	c := st.standard(nil)
	if st.checkOpening(h, r) != refused && st.checkShared(&c, r, false, false) != refused {
		return nil
	}
	return st.refuseOpening(h, r)
}

// crowded tells, without a lock, whether system or transient may be full.
func (m *Manager) crowded(r *request) bool {
	for _, k := range [...]Kind{KindTransient, KindSystem} {
		for _, it := range r.items() {
			if m.fixed[k].tight(it.d) {
				return true
			}
		}
	}
	return false
}

func (m *Manager) openConn(h *holder, fallBack bool) (*stripe, chain, error) {
	for all := false; ; all = true {
		st := m.anyStripe()
		st.lock(all)
		c, v, err := st.open(h, nil, fallBack, all)
		st.unlock(all)
		if v != undecided {
			return st, c, err
		}
	}
}

// OpenStream admits a stream of a peer into the transient scope, or refuses it.
func (m *Manager) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := m.openStream(p, dir)
	if m.reporter != nil {
		m.reportStream(p, dir, err)
	}
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return s, nil
}

func (m *Manager) openStream(p peer.ID, dir network.Direction) (*streamScope, error) {
	limit, err := m.limits.stream(p)
	if err != nil {
		return nil, err
	}
	st := m.stripeOf(p)
	h := holder{kind: KindStream, dir: dir, limit: limit}
	var peerLimit *amounts
	for all := false; ; {
		st.lock(all)
		if st.closed { // before a scope is made that nobody collects any more
			st.unlock(all)
			return nil, errClosed
		}
		ps := st.peer(p, peerLimit)
		if ps == nil {
			st.unlock(all)
			if peerLimit, err = m.limits.peer(p); err != nil {
				return nil, err
			}
			continue
		}
		c, v, err := st.open(&h, ps, ps.trusted > 0, all)
		st.unlock(all)
		switch v {
		case refused:
			return nil, err
		case undecided:
			all = true
			continue
		}
		scope := &streamScope{holder: h}
		scope.tree = &scope.root
		scope.chain = c
		scope.at.Store(st)
		return scope, nil
	}
}

// standard gives the chain of what is new: transient and system.
func (st *stripe) standard(ps *peerScope) chain {
	return st.chainOf(ps, st.fixed[KindTransient], st.fixed[KindSystem])
}

func (st *stripe) chainOf(ps *peerScope, transient, system *share) chain {
	c := chain{peer: ps}
	if ps != nil {
		c.at[slotPeer] = &ps.account
	}
	if transient != nil {
		c.at[slotTransient] = &transient.account
	}
	c.at[slotSystem] = &system.account
	return c
}

// open charges a new connection or stream to the standard scopes, or if they
// refuse it and it may fall back, to the allowlisted ones.
func (st *stripe) open(h *holder, ps *peerScope, fallBack, all bool) (c chain, v verdict, err error) {
	if st.closed {
		return c, refused, errClosed
	}
	st.number(h)
	r := h.total()
	if v = st.checkOpening(h, &r); v == admitted {
		c, v = st.takeOpening(&r, ps, fallBack, all)
	}
	switch v {
	case refused:
		err = st.refuseOpening(h, &r)
	case admitted:
		if ps != nil {
			ps.refs++
			countTransient(&c, h.dir, 1)
		}
		st.traceOpened(h, &r)
	}
	return c, v, err
}

// number gives a connection or stream its number, once.
func (st *stripe) number(h *holder) {
	if h.num == 0 {
		h.num = st.newID()
		st.traceOpening(h)
	}
}

// checkOpening asks the limit of the connection or stream itself.
func (st *stripe) checkOpening(h *holder, r *request) verdict {
	for _, it := range r.items() {
		if it.n > h.limit[it.d] {
			st.refusedBy(traceName{scopeName: h.name()}, &amounts{})
			st.why = refusal{h.name(), it.d, CauseLimit, 0, it.n, h.limit[it.d]}
			return refused
		}
	}
	return admitted
}

func (st *stripe) takeOpening(r *request, ps *peerScope, fallBack, all bool) (chain, verdict) {
	if ps != nil && st.m.newcomers {
		r.crowding = int64(ps.transientIn) >= st.m.fixed[KindTransient].limit[dimStreamsIn]/4
	}
	c := st.standard(ps)
	v := st.take(&c, r, all)
	if v == refused && (fallBack || ps != nil && st.m.allowlist.allowsPeer(ps.peer)) {
		c = st.chainOf(ps, st.fixed[KindAllowlistedTransient], st.fixed[KindAllowlistedSystem])
		v = st.take(&c, r, all)
	}
	return c, v
}

// refuseOpening tells that a connection or stream will not be.
func (st *stripe) refuseOpening(h *holder, r *request) error {
	err := st.refusal(h.name(), r)
	st.traceNotOpened(h)
	return err
}

// VerifySourceAddress tells a transport whether to make sure of a source
// address before it spends anything on the connection: when the address's
// subnet has come often lately, and when more than half of the transient scope's
// inbound connections are taken, whoever asks.
func (m *Manager) VerifySourceAddress(addr net.Addr) bool {
	return m.halfConnected() || m.gate.suspicious(addr)
}

// halfConnected tells whether transient holds more than half of the inbound
// connections that it may. A loose pool never does.
func (m *Manager) halfConnected() bool {
	p := m.fixed[KindTransient]
	if !p.tight(dimConnsIn) {
		return false
	}
	p.home.lock(false)
	defer p.home.unlock(false)
	l := p.tally(dimConnsIn)
	return l.leastUse() > l.limit/2
}

// ViewSystem calls f with the scope of everything.
func (m *Manager) ViewSystem(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindSystem])
}

// ViewTransient calls f with the scope of connections that have no peer yet
// and streams that have no protocol yet.
func (m *Manager) ViewTransient(f func(network.ResourceScope) error) error {
	return f(m.fixed[KindTransient])
}

// ViewService calls f with the scope of a service. The scope may be kept.
func (m *Manager) ViewService(svc string, f func(network.ServiceScope) error) error {
	return m.view(KindService, svc, func(p *pool) error { return f(serviceScope{p}) })
}

// ViewProtocol calls f with the scope of a protocol. The scope may be kept.
func (m *Manager) ViewProtocol(proto protocol.ID, f func(network.ProtocolScope) error) error {
	return m.view(KindProtocol, string(proto), func(p *pool) error { return f(protocolScope{p}) })
}

func (m *Manager) view(kind Kind, name string, f func(*pool) error) error {
	if name == "" {
		return &scopeError{scopeName{kind: kind}, errNoName}
	}
	fresh := m.dir.find(kind, name)
	if fresh == nil {
		var err error
		if fresh, err = m.newPool(kind, name); err != nil {
			return err
		}
	}
	st, a, _ := fresh.enter(true, false)
	a.refs++
	st.unlock(false)
	defer func() {
		st.lock(false)
		defer st.unlock(false)
		st.unref(a)
	}()
	return f(a.share.pool)
}

// ViewPeer calls f with the scope of a peer. The scope may be kept.
func (m *Manager) ViewPeer(p peer.ID, f func(network.PeerScope) error) error {
	limit, err := m.limits.peer(p)
	if err != nil {
		return err
	}
	st := m.stripeOf(p)
	st.lock(false)
	ps := st.peer(p, limit)
	ps.refs++
	st.unlock(false)
	defer func() {
		st.lock(false)
		defer st.unlock(false)
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
// network.ErrResourceScopeClosed. What is open can still be released. A trace is
// written to its end. Again, it does nothing. It always returns nil.
func (m *Manager) Close() error {
	m.closeOnce.Do(func() {
		close(m.stop)
		m.reaper.Wait()
		m.inOneCut(func() {
			for i := range m.stripes {
				m.stripes[i].closed = true
			}
		})
		live.remove(m)
		m.trace.close()
	})
	return nil
}

// Share gives a handle that a host may own: go-libp2p closes its manager when
// the host closes. The manager is closed when the last of its handles is. If
// libp2p.New fails, close the handle: go-libp2p does so in some cases only, and
// closing it again does nothing.
func (m *Manager) Share() *SharedManager {
	m.handles.Add(1)
	return &SharedManager{Manager: m}
}

// SharedManager is one of several handles on a Manager. After its own Close it
// opens no connection and no stream; the scopes that it has opened, and those
// that it shows, go on working until the manager is closed.
type SharedManager struct {
	*Manager
	closed atomic.Bool
}

// Unwrap gives the manager behind the handle.
func (s *SharedManager) Unwrap() network.ResourceManager { return s.Manager }

// OpenConnection is Manager.OpenConnection while the handle is open.
func (s *SharedManager) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	if s.closed.Load() {
		return nil, errClosed
	}
	return s.Manager.OpenConnection(dir, usefd, endpoint)
}

// OpenStream is Manager.OpenStream while the handle is open.
func (s *SharedManager) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if s.closed.Load() {
		return nil, errClosed
	}
	return s.Manager.OpenStream(p, dir)
}

// Close closes the handle, and the manager if it was the last one. Again, it
// does nothing.
func (s *SharedManager) Close() error {
	if s.closed.CompareAndSwap(false, true) && s.handles.Add(-1) == 0 {
		return s.Manager.Close()
	}
	return nil
}

// readLimit reads a limit that somebody sets at run time.
func (m *Manager) readLimit(scope *scopeName, limit Limit) (*amounts, bool) {
	if err := checkLimit(scope.String(), limit); err != nil {
		m.reportBug("a limit that is none was set", "scope", scope.String(), "err", err)
		return nil, false
	}
	a := limitsOf(limit)
	return &a, true
}

// reportRelease says that a scope was asked to release what it did not hold.
func (m *Manager) reportRelease(scope scopeName, excess int64) {
	m.reportBug("memory was released that had not been reserved at the scope",
		"scope", scope.String(), "excess", excess)
}

// reportBug counts a caller's bug, and logs it unless another one was logged
// shortly before. No lock is held.
func (m *Manager) reportBug(msg string, args ...any) {
	n := m.callerBugs.Add(1)
	tell := false
	m.bugLog.Do(func() { tell = true }) // under a lock of its own: nothing is logged there
	if tell {
		log.Warn("BUG of a caller: "+msg, append(args, "bugs", n)...)
	}
}
