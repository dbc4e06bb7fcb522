package rcmgr

// The scopes that something is held by: connections, streams, and spans. Above
// a connection or stream stands its chain of accounts; below it may stand a
// tree of spans. The whole tree lies in one stripe.

import (
	"math"
	"net/netip"
	"strconv"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// root is where a tree of holders is attached: to its stripe and its chain.
type root struct {
	// at is the stripe that the tree lies in. It is written under the locks of
	// both stripes when a connection moves to its peer's: load, lock, compare.
	at    atomic.Pointer[stripe]
	chain chain
}

// lock takes the lock of the stripe that the tree lies in.
func (r *root) lock(all bool) *stripe {
	st := r.at.Load()
	if all {
		st.m.lockAll()
		return r.at.Load()
	}
	st.mu.Lock()
	if r.at.Load() == st {
		return st
	}
	return r.lockAgain(st)
}

// lockAgain is for a tree that has moved while its lock was waited for.
func (r *root) lockAgain(st *stripe) *stripe {
	for {
		st.mu.Unlock()
		now := r.at.Load()
		now.mu.Lock()
		if r.at.Load() == now {
			return now
		}
		st = now
	}
}

// lockWith takes the locks of the tree's stripe and of another one.
func (r *root) lockWith(to *stripe, all bool) (from *stripe) {
	for {
		from = r.at.Load()
		lockBoth(from, to, all)
		if now := r.at.Load(); now == from || all {
			return now
		}
		unlockBoth(from, to, all)
	}
}

func lockBoth(a, b *stripe, all bool) {
	if a == b || all {
		a.lock(all)
		return
	}
	if a.index > b.index {
		a, b = b, a
	}
	a.mu.Lock()
	b.mu.Lock()
}

func unlockBoth(a, b *stripe, all bool) {
	a.unlock(all)
	if a != b && !all {
		b.mu.Unlock()
	}
}

// holder is one node of a tree: a connection or stream, or a span.
type holder struct {
	tree  *root
	owner *holder // nil for the topmost one
	limit *amounts
	use   int64 // bytes, with all spans below
	own   int64 // bytes reserved at this very holder (I6)
	num   int64 // in the name
	spans int64 // begun so far
	unit        // of a leaf
	kind  Kind
	role  role
	done  bool // I5: holds nothing, refuses everything
}

// role says what a holder is.
type role uint8

const (
	leaf      role = iota // a connection or stream
	firstSpan             // a span of a peer, or of a shared scope
	innerSpan             // a span of a leaf or of another span
)

// name gives the scope's name. The lock of its stripe is held.
func (h *holder) name() scopeName {
	switch h.role {
	case leaf:
		return scopeName{kind: h.kind, num: h.num}
	case firstSpan:
		return spanName(h.tree.chain.first().scopeName, h.num)
	}
	return spanName(h.owner.name(), h.num)
}

func spanName(owner scopeName, num int64) scopeName {
	owner.text = owner.String() + ".span-" + strconv.FormatInt(num, 10)
	owner.num = spanOf
	return owner
}

// limits gives the limit in force: a span follows its owner's unless it has
// been given its own.
func (h *holder) limits() *amounts {
	switch {
	case h.limit != nil:
		return h.limit
	case h.owner != nil:
		return h.owner.limits()
	}
	return h.tree.chain.first().limit
}

// enter takes the lock for an operation that asks for something, and finds out
// whether the scope still may.
func (h *holder) enter(all bool) (*stripe, error) {
	st := h.tree.lock(all)
	err := h.openIn(st)
	if err != nil {
		st.unlock(all)
		return nil, err
	}
	return st, nil
}

func (h *holder) openIn(st *stripe) error {
	if h.done {
		return &scopeError{h.name(), network.ErrResourceScopeClosed}
	}
	if st.closed {
		return errClosed
	}
	return nil
}

// ReserveMemory reserves size bytes, at this scope and everything above it, or
// nothing.
func (h *holder) ReserveMemory(size int, priority uint8) error {
	for all := false; ; all = true {
		st := h.tree.lock(all)
		if !all && st.holdReady(h, int64(size), priority) {
			st.mu.Unlock()
			if st.m.reporter != nil {
				st.m.reporter.AllowMemory(size)
			}
			return nil
		}
		v, err := st.reserve(h, int64(size), priority, all)
		st.unlock(all)
		if v == undecided {
			continue
		}
		if size < 0 {
			st.m.reportBug("a negative size was to be reserved", "err", err)
		}
		if err != nil {
			tellRefusal(err)
		}
		if st.m.reporter != nil {
			st.m.reportMemory(size, err)
		}
		return err
	}
}

// holdReady reserves what fits everywhere without asking further, or takes no more
// than drawing exactly what is lacking.
func (st *stripe) holdReady(h *holder, n int64, priority uint8) bool {
	if priority < st.wholeFrom || n <= 0 || st.closed {
		return false
	}
	for x := h; x != nil; x = x.owner {
		limit := x.limit
		if limit == nil {
			limit = x.limits()
		}
		if x.done || n > limit[dimMemory]-x.use {
			return false
		}
	}
	if !st.addMemory(&h.tree.chain, n) {
		return false
	}
	st.held(h, n, priority)
	return true
}

// held charges a reservation that its chain has been charged for to h and its
// owners.
func (st *stripe) held(h *holder, n int64, priority uint8) {
	h.own += n
	for x := h; x != nil; x = x.owner {
		st.change(x, n)
	}
	if ps := h.tree.chain.peer; ps != nil {
		st.peerGotMemory(ps, n)
	}
	if st.trace != nil {
		st.traceMemory(h, n, priority, (*tracer).granted)
	}
}

// reserve decides a reservation through the tree and its chain.
func (st *stripe) reserve(h *holder, n int64, priority uint8, all bool) (verdict, error) {
	if err := h.openIn(st); err != nil {
		return refused, err
	}
	if n < 0 {
		return refused, &scopeError{h.name(), negativeSize(n)}
	}
	r := memoryRequest(st.m.admission, n, priority)
	for {
		v, err := st.checkTree(h, &r)
		if err != nil {
			return refused, err
		}
		if v == admitted {
			v = st.check(&h.tree.chain, &r, all)
		}
		switch {
		case v == admitted:
			h.tree.chain.addAll(&r)
			st.held(h, n, priority)
			if r.observed != 0 {
				st.exceeded()
			}
			return v, nil
		case st.beyond(&r, v):
			continue
		case v == refused:
			return v, st.refusal(h.name(), &r)
		}
		return v, nil
	}
}

// checkTree decides a reservation for a holder and its owners.
func (st *stripe) checkTree(h *holder, r *request) (verdict, error) {
	for x := h; x != nil; x = x.owner {
		if x.done {
			// A span may outlive its owner, but it gets nothing more (I5).
			return refused, &scopeError{h.name(), &scopeError{x.name(), network.ErrResourceScopeClosed}}
		}
		limit := x.limits()[dimMemory]
		bound := st.m.admission.threshold(limit, r.weight)
		if r.observed.has(x.kind) {
			bound = math.MaxInt64
		}
		if r.memory > bound-x.use {
			st.traceRefuser(x)
			name := x.name()
			st.note(refusal{&name, dimMemory, CauseLimit, x.use, r.memory, limit}, nil)
			r.asker = h.tree.chain.peer
			st.why.askedBy(r)
			return refused, nil
		}
	}
	return admitted, nil
}

// change changes what a holder uses.
func (st *stripe) change(h *holder, n int64) {
	if h.kind == KindConn && h.role == leaf {
		st.connMemory.moveMemory(h.use, h.use+n)
	}
	h.use += n
}

// drop releases n bytes from a holder up to the chain. Every walk up stops at
// the first owner that is done: it has released what was below it (I5).
func (st *stripe) drop(h *holder, n int64) {
	x := h
	for ; x != nil && !x.done; x = x.owner {
		st.change(x, -n)
	}
	if x == nil {
		st.subMemory(&h.tree.chain, n)
	}
	if st.trace != nil && !h.done {
		st.traceMemory(h, n, 0, (*tracer).returned)
	}
}

// ReleaseMemory gives back size bytes that were reserved at this scope. What
// was not reserved here is not released: that is a caller's bug. A scope that
// is done has released everything already; go-libp2p itself releases at closed
// streams, so that is counted, but it is nothing to complain about.
func (h *holder) ReleaseMemory(size int) {
	st := h.tree.lock(false)
	n := max(0, min(int64(size), h.own)) // I6
	if n > 0 {
		h.own -= n
		st.drop(h, n)
	}
	if n == int64(size) {
		st.mu.Unlock()
		return
	}
	if h.done {
		st.lateReleases++
		st.mu.Unlock()
		return
	}
	name := h.name()
	st.mu.Unlock()
	st.m.reportRelease(name, int64(size)-n)
}

// Stat gives what the scope holds.
func (h *holder) Stat() network.ScopeStat {
	st := h.tree.lock(false)
	defer st.unlock(false)
	if h.done {
		return network.ScopeStat{}
	}
	a := h.amounts()
	return a.stat()
}

// total is everything that a holder holds, as a request.
func (h *holder) total() request { return h.unit.whole(h.use) }

// amounts is everything that a holder holds.
func (h *holder) amounts() (a amounts) {
	r := h.total()
	a.charge(&r)
	return a
}

// BeginSpan opens a span below this scope.
func (h *holder) BeginSpan() (network.ResourceScopeSpan, error) {
	span := &holder{tree: h.tree, owner: h, kind: h.kind, role: innerSpan}
	st, err := h.enter(false)
	if err != nil {
		return nil, err
	}
	h.spans++
	span.num = h.spans
	st.traceSpan(span)
	st.unlock(false)
	return span, nil
}

// Done ends a span and releases what it holds. Again, it does nothing.
func (h *holder) Done() {
	st := h.tree.lock(false)
	if !h.done {
		h.finish(st)
	}
	st.mu.Unlock()
}

// finish releases everything that the holder has and marks it done (I5).
func (h *holder) finish(st *stripe) {
	held, c := h.use, &h.tree.chain
	st.change(h, -held)
	h.own, h.done = 0, true
	switch {
	case h.owner != nil:
		st.drop(h.owner, held)
	default:
		if held != 0 {
			st.subMemory(c, held)
		}
		st.leave(c, h.unit)
		if st.trace != nil {
			total := h.whole(held)
			st.traceChain(c, &total, (*tracer).returned)
		}
		if st.m.leaks != nil && h.role == leaf {
			st.m.leaks.closed(h)
		}
	}
	st.traceDone(h)
}

// Limit gives a copy of the limit in force.
func (h *holder) Limit() Limit {
	st := h.tree.lock(false)
	defer st.unlock(false)
	l := h.limits().baseLimit()
	return &l
}

// SetLimit gives this scope a limit of its own.
func (h *holder) SetLimit(limit Limit) {
	name := h.lockedName()
	a, ok := h.tree.at.Load().m.readLimit(&name, limit)
	if !ok {
		return
	}
	st := h.tree.lock(false)
	defer st.unlock(false)
	h.limit = a
}

func (h *holder) lockedName() scopeName {
	st := h.tree.lock(false)
	defer st.unlock(false)
	return h.name()
}

// connScope is a connection: transient until its peer is known.
type connScope struct {
	holder
	root

	addr netip.Addr    // of its far end, see endpoint
	gate *subnetStripe // in which its address counts; may be nil
	near *neighbours   // that it counts for; may be nil
	// onTrial: an entry of the allowlist that names a peer let it past the
	// gates, before it was known who it is.
	onTrial bool
	// allowlisted: it is charged to the allowlisted scopes.
	allowlisted bool
	// trusted: its peer may fall back on the allowlisted scopes for streams.
	trusted bool
}

var (
	_ network.ConnManagementScope = (*connScope)(nil)
	_ ResourceScopeLimiter        = (*connScope)(nil)
)

// PeerScope gives the scope of the connection's peer, or nil before SetPeer.
func (c *connScope) PeerScope() network.PeerScope {
	st := c.root.lock(false)
	defer st.unlock(false)
	if c.chain.peer == nil {
		return nil // not a nil pointer in an interface
	}
	return c.chain.peer
}

// SetPeer moves the connection from transient to its peer, or leaves it as it
// was (I3).
func (c *connScope) SetPeer(p peer.ID) error {
	m := c.at.Load().m
	err := c.setPeer(m, p)
	if err != nil {
		tellRefusal(err)
	} else if m.leaks != nil {
		m.leaks.moved(&c.holder, func(r *openRecord) { r.peer = p })
	}
	if m.reporter != nil {
		m.reportPeer(p, err)
	}
	return err
}

func (c *connScope) setPeer(m *Manager, p peer.ID) error {
	mv := move{to: m.stripeOf(p), trusted: m.allowlist.allows(p, c.addr)}
	if c.onTrial && !mv.trusted {
		// The allowlist opened the gates for somebody else.
		if err := c.mayStillMove(); err != nil {
			return err
		}
		if m.pressure.refuses(c.dir) {
			if err := c.refuseForMemory(); err != nil {
				return err
			}
		}
		if why := m.enterGates(c.addr, c.dir, &mv.pass); why != nil {
			return m.refusedAtGate(&c.holder, why)
		}
	}
	err := c.moveTo(p, &mv)
	if err != nil {
		mv.pass.undo()
	}
	return err
}

func (c *connScope) mayStillMove() error {
	st := c.root.lock(false)
	defer st.unlock(false)
	return c.mayMove(st)
}

// mayMove tells whether the connection can still be given a peer.
func (c *connScope) mayMove(st *stripe) error {
	err := c.openIn(st)
	if err == nil && c.chain.peer != nil {
		err = &scopeError{c.name(), errAttached}
	}
	return err
}

// move is where a connection is to go.
type move struct {
	to      *stripe
	trusted bool     // the allowlist means this peer at this address
	pass    gatePass // what the gates gave for it
}

func (c *connScope) moveTo(p peer.ID, mv *move) error {
	var said peerLimit
	for all := false; ; {
		from := c.root.lockWith(mv.to, all)
		err := c.mayMove(from)
		if err != nil {
			unlockBoth(from, mv.to, all)
			return err
		}
		ps := mv.to.peer(p, said)
		if ps == nil {
			unlockBoth(from, mv.to, all)
			if said, err = from.m.limits.Load().askPeer(p); err != nil {
				return err
			}
			continue
		}
		v, err := c.moveLocked(from, ps, mv, all)
		unlockBoth(from, mv.to, all)
		if v != undecided {
			return err
		}
		all = true
	}
}

// moveLocked charges the new place first and then leaves the old one.
func (c *connScope) moveLocked(from *stripe, ps *peerScope, mv *move, all bool) (verdict, error) {
	to, stays := mv.to, mv.trusted || !c.allowlisted
	if to.plain && stays && c.use == 0 && ps.hasUnit(c.unit) {
		ps.use.addUnit(c.unit)
		to.peerGotUnit(ps, c.unit)
	} else if v, err := c.takeNewPlace(to, ps, mv.trusted, all); v != admitted {
		return v, err
	}
	system := to.fixed[KindSystem]
	if stays {
		system = c.carry(to)
	} else {
		from.giveBack(c.chain.at[slotSystem].share, c.unit, c.use)
	}
	from.giveBack(c.chain.at[slotTransient].share, c.unit, c.use)

	if c.use != 0 {
		from.connMemory.moveMemory(c.use, 0)
		to.connMemory.moveMemory(0, c.use)
	}
	ps.refs++
	if mv.trusted {
		ps.trusted++
	}
	c.trusted, c.allowlisted = mv.trusted, c.allowlisted && stays
	if mv.pass.conns != nil {
		c.gate = mv.pass.conns
	}
	c.countNear(-1)
	if mv.trusted {
		from.m.fair.leave(c.near)
		c.near = nil
	}
	c.chain.peer, c.chain.at[slotPeer] = ps, &ps.account
	c.chain.at[slotTransient], c.chain.at[slotSystem] = nil, &system.account
	c.at.Store(to)
	c.countNear(1)
	to.m.fair.adopt(ps, c.near)
	return admitted, nil
}

// takeNewPlace charges the connection to where it is to go, as far as it does not
// stand there already.
func (c *connScope) takeNewPlace(to *stripe, ps *peerScope, trusted, all bool) (v verdict, err error) {
	total := c.total()
	place := chain{peer: ps}
	place.at[slotPeer] = &ps.account
	switch {
	case !trusted && c.allowlisted:
		place.at[slotSystem] = &to.fixed[KindSystem].account
		total.sharedFirst, total.near = true, c.near
		v = to.takeStranger(&place, &total, all)
	case !trusted && to.checkPeersShare(ps, &total) == refused && !to.beyond(&total, refused):
		v = refused
	default:
		v = to.take(&place, &total, all)
	}
	if v == refused {
		err = to.refusal(c.name(), &total)
	}
	return v, err
}

// countNear counts the connection for its subnet, in the scopes where it stands now.
func (c *connScope) countNear(by int64) {
	if c.near != nil {
		c.near.countConn(&c.chain, c.unit, by)
	}
}

// takeStranger is take for a connection that is not whom the allowlist meant: it has
// to fit the standard scopes, also transient, though it does not stay there.
func (st *stripe) takeStranger(place *chain, r *request, all bool) verdict {
	var standard chain
	standard.stand(st.fixed[KindTransient], st.fixed[KindSystem])
	for {
		v := st.checkShared(standard.only(slotSystem), r, all, false)
		if v == admitted {
			v = st.checkShared(standard.only(slotTransient), r, all, false)
		}
		if v == admitted {
			v = st.takeOnce(place, r, all)
		}
		if v == admitted || !st.beyond(r, v) {
			return v
		}
	}
}

// carry moves the connection's use of its system scope, together with the
// credit for it, to the scope's share in another stripe.
func (c *connScope) carry(to *stripe) *share {
	here := c.chain.at[slotSystem].share
	there := to.fixed[here.kind]
	if here == there {
		return there
	}
	for _, a := range [...]*amounts{&here.use, &here.credit, &here.floor} {
		a.subUnit(c.unit)
		a[dimMemory] -= c.use
	}
	for _, a := range [...]*amounts{&there.use, &there.credit, &there.floor} {
		a.addUnit(c.unit)
		a[dimMemory] += c.use
	}
	return there
}

// Done releases the connection and everything that it holds. Again, it does
// nothing.
func (c *connScope) Done() {
	st := c.root.lock(false)
	if c.done {
		st.unlock(false)
		return
	}
	if c.trusted {
		c.chain.peer.trusted--
	}
	c.countNear(-1)
	c.finish(st)
	st.unlock(false)
	st.m.fair.leave(c.near)
	if c.gate != nil {
		c.gate.leave(c.addr)
	}
}

// streamScope is a stream: transient until its protocol is known.
type streamScope struct {
	holder
	root
}

var (
	_ network.StreamManagementScope = (*streamScope)(nil)
	_ ResourceScopeLimiter          = (*streamScope)(nil)
)

// PeerScope gives the scope of the stream's peer.
func (s *streamScope) PeerScope() network.PeerScope {
	return s.chain.peer
}

// ProtocolScope gives the scope of the stream's protocol, or nil before
// SetProtocol.
func (s *streamScope) ProtocolScope() network.ProtocolScope {
	if p := s.pool(slotProtocol, KindProtocol); p != nil {
		return protocolScope{p}
	}
	return nil
}

// ServiceScope gives the scope of the stream's service, or nil before
// SetService.
func (s *streamScope) ServiceScope() network.ServiceScope {
	if p := s.pool(slotService, KindService); p != nil {
		return serviceScope{p}
	}
	return nil
}

// pool gives the protocol or service, nil where there is none yet.
func (s *streamScope) pool(slot int, k Kind) *pool {
	st := s.root.lock(false)
	defer st.unlock(false)
	if a := s.chain.at[slot]; a != nil && a.kind == k {
		return a.share.pool
	}
	return nil
}

// SetProtocol moves the stream from transient to its protocol, or leaves it as
// it was (I3).
func (s *streamScope) SetProtocol(proto protocol.ID) error {
	err := s.attach(KindProtocol, string(proto))
	m := s.at.Load().m
	if err != nil {
		tellRefusal(err)
	} else if m.leaks != nil {
		m.leaks.moved(&s.holder, func(r *openRecord) { r.protocol = string(proto) })
	}
	if m.reporter != nil {
		m.reportProtocol(proto, s.chain.peer.peer, err)
	}
	return err
}

// SetService adds the stream to a service, or leaves it as it was (I3).
func (s *streamScope) SetService(svc string) error {
	err := s.attach(KindService, svc)
	m := s.at.Load().m
	if err != nil {
		tellRefusal(err)
	} else if m.leaks != nil {
		m.leaks.moved(&s.holder, func(r *openRecord) { r.service = svc })
	}
	if m.reporter != nil {
		m.reportService(svc, s.chain.peer.peer, err)
	}
	return err
}

func (s *streamScope) attach(kind Kind, name string) error {
	slot := slotProtocol
	if kind == KindService {
		slot = slotService
	}
	var fresh *pool
	for all := false; ; {
		st := s.root.lock(all)
		if s.attachReady(st, kind, slot, name) {
			st.unlock(all)
			return nil
		}
		err := s.openIn(st)
		switch {
		case err != nil:
		case s.chain.at[slot] != nil && s.chain.at[slot].kind == kind:
			err = &scopeError{s.name(), errAttached}
		case kind == KindService && s.chain.at[slotProtocol].kind != KindProtocol:
			err = &scopeError{s.name(), errNoProtocol}
		case name == "":
			err = &scopeError{s.name(), errNoName}
		}
		if err != nil {
			st.unlock(all)
			return err
		}
		pr := s.chain.peer.pairNamed(kind, name)
		if pr == nil {
			sh := st.shareNamed(kind, name, fresh)
			if sh == nil {
				st.unlock(all)
				if fresh, err = st.m.newPool(kind, name); err != nil {
					return err
				}
				continue
			}
			pr = st.pair(s.chain.peer, sh)
		}
		v, err := s.attachLocked(st, pr, slot, all)
		st.unlock(all)
		if v != undecided {
			return err
		}
		all = true
	}
}

// attachReady attaches a stream that holds nothing but itself to a service or protocol
// in which its peer has a part already, where there is room at hand; if not, it changes
// nothing.
func (s *streamScope) attachReady(st *stripe, kind Kind, slot int, name string) bool {
	at := s.chain.at[slot]
	if !st.plain || s.done || s.use != 0 || at != nil && !at.lasting() || s.chain.at[slotProtocol].lasting() == (kind == KindService) {
		return false
	}
	pr := s.chain.peer.pairNamed(kind, name)
	if pr == nil || !pr.hasUnit(s.unit) || !pr.of.hasUnit(s.unit) {
		return false
	}
	pr.use.addUnit(s.unit)
	pr.of.use.addUnit(s.unit)
	s.attached(st, pr, slot)
	return true
}

func (s *streamScope) attachLocked(st *stripe, pr *pair, slot int, all bool) (verdict, error) {
	var place chain
	place.at[slot-pairsBefore], place.at[slot] = &pr.account, &pr.of.account
	total := s.total()
	total.sharedFirst = true
	switch v := st.take(&place, &total, all); v {
	case refused:
		return v, st.refusal(s.name(), &total)
	case undecided:
		return v, nil
	}
	s.attached(st, pr, slot)
	return admitted, nil
}

// attached puts the stream below what it has been charged to.
func (s *streamScope) attached(st *stripe, pr *pair, slot int) {
	pr.refs++
	pr.of.refs++
	if slot == slotProtocol {
		countTransient(&s.chain, s.dir, -1)
		st.giveBack(s.chain.at[slotTransient].share, s.unit, s.use)
	}
	s.chain.at[slot-pairsBefore], s.chain.at[slot] = &pr.account, &pr.of.account
}

// countTransient keeps the number of inbound streams that a peer has in the
// standard transient scope.
func countTransient(c *chain, d dim, n int32) {
	if a := c.at[slotTransient]; a != nil && a.kind == KindTransient && d == dimStreamsIn {
		c.peer.transientIn += n
		if near := c.peer.near; near != nil {
			near.held[KindTransient].streams.Add(int64(n))
		}
	}
}

// Done releases the stream and everything that it holds. Again, it does
// nothing.
func (s *streamScope) Done() {
	st := s.root.lock(false)
	if !s.done {
		countTransient(&s.chain, s.dir, -1)
		if st.m.fair != nil {
			countStream(&s.chain, s.dir, -1)
		}
		s.finish(st)
	}
	st.mu.Unlock()
}
