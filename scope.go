package rcmgr

// The scopes that something is held by: connections, streams, and spans. Above
// a connection or stream stands its chain of accounts; below it may stand a
// tree of spans. The whole tree lies in one stripe.

import (
	"encoding/binary"
	"math"
	"net/netip"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// root is where a tree of holders is attached: to its stripe and its chain.
type root struct {
	// at is the stripe that the tree lies in. It is written under the locks of
	// both stripes, when a connection moves: load, lock, compare.
	at    atomic.Pointer[stripe]
	chain chain
	conn  *conn // nil if it is not the tree of a connection
}

// lock takes the lock of the stripe that the tree lies in. Where each nanosecond counts
// it is written out, for it is too long to be inlined:
//
//	st := tree.follow(tree.at.Load().lockNow())
func (r *root) lock() *stripe { return r.follow(r.at.Load().lockNow()) }

// lockNow takes the lock of the stripe.
func (st *stripe) lockNow() *stripe {
	st.mu.Lock()
	return st
}

// follow takes the stripe in which the tree lay a moment ago, locked, and gives the one
// in which it lies now, locked. Mostly they are the same.
func (r *root) follow(st *stripe) *stripe {
	if r.at.Load() != st {
		return r.lockAgain(st)
	}
	return st
}

// lockAgain is for a tree that has moved while its lock was waited for.
func (r *root) lockAgain(st *stripe) *stripe {
	for r.at.Load() != st {
		st.mu.Unlock()
		st = r.at.Load().lockNow()
	}
	return st
}

// lockWith takes the locks of the tree's stripe and of another one.
func (r *root) lockWith(to *stripe, all bool) (from *stripe) {
	for {
		from = r.at.Load()
		switch {
		case all:
			to.engine.lockAll()
			return r.at.Load()
		case from == to:
			to.mu.Lock()
		case from.index < to.index:
			from.mu.Lock()
			to.mu.Lock()
		default:
			to.mu.Lock()
			from.mu.Lock()
		}
		if r.at.Load() == from {
			return from
		}
		unlockBoth(from, to, false)
	}
}

func unlockBoth(a, b *stripe, all bool) {
	if all {
		a.engine.unlockAll()
		return
	}
	a.mu.Unlock()
	if a != b {
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
	// num is the number of the connection or stream that the tree belongs to; 0 if it
	// belongs to none.
	num   int64
	seq   uint32 // of a span, in its name; 0 for what is none
	spans uint32 // begun so far
	unit         // of a leaf
	kind  Kind
	role  role
	done  bool // I5: holds nothing, refuses everything
	marks mark // of a connection
}

// top is a topmost holder and the root of its tree.
type top struct {
	holder
	root
}

// conn is what the engine keeps of a connection besides its holder and chain.
type conn struct {
	far  subnetKey     // its far end, if that has an address; see endpoint
	gate *subnetStripe // in which its address counts; may be nil
	near *neighbours   // that it counts for; may be nil
}

// mark is what else there is to know of a connection.
type mark uint8

const (
	located mark = 1 << iota // its far end has an address
	// An entry of the allowlist that names a peer let it past the gates, before it
	// was known who it is.
	onTrial
	// Its peer may fall back on the allowlisted scopes for streams.
	trusted
)

func (all mark) has(m mark) bool { return all&m != 0 }

// topConn is the topmost holder of a connection.
type topConn struct {
	top
	of conn
}

// role says what a holder is.
type role uint8

const (
	leaf      role = iota // a connection or stream
	firstSpan             // a span of a peer, or of a shared scope
	innerSpan             // a span of a leaf or of another span
)

// is tells whether the holder is not done, and belongs to the tree of the connection or
// stream with this number. Once that is done, another one may have taken its place.
func (h *holder) is(num int64) bool { return h.num == num && !h.done }

// name returns the name of the scope that has, or had, this number. The lock of its
// stripe is held.
func (h *holder) name(num int64) scopeName {
	var room [8 * spanBytes]byte
	top, around := h, room[:0]
	for top.owner != nil {
		if top = top.owner; top.role != leaf {
			around = binary.BigEndian.AppendUint32(around, top.seq)
		}
	}
	name := scopeName{kind: top.kind, num: num}
	if top.role == firstSpan {
		name = top.tree.chain.first().name()
	}
	name.span, name.around = h.seq, string(around)
	return name
}

// asked names the scope for who is refused. The lock of its stripe is held.
func (h *holder) asked(num int64) askedScope {
	if h.role == leaf || h.owner != nil && h.owner.role == leaf {
		return askedScope{num: num, kind: h.kind, span: h.seq}
	}
	name := h.name(num)
	return askedScope{name: &name}
}

// limits gives the limit in force: a span follows its owner's unless it has
// been given its own. It is nil where the owner is done, who refuses for the span.
func (h *holder) limits() *amounts {
	switch {
	case h.limit != nil:
		return h.limit
	case h.owner == nil:
		return h.tree.chain.first().limit()
	case !h.owner.is(h.num):
		return nil
	}
	return h.owner.limits()
}

// userScope is what the user of a connection, stream or span has of it. When a
// connection or stream is done, its holder becomes that of another one: most of what
// opening one costs is new memory, and its collection. The holder has another number
// then, and the user has a scope that is done.
type userScope struct {
	h   *holder
	num int64
}

// live tells whether the scope is not done. The lock of its stripe is held.
func (s *userScope) live() bool { return s.h.is(s.num) }

func (s *userScope) name() scopeName { return s.h.name(s.num) }

func (s *userScope) asked() askedScope { return s.h.asked(s.num) }

// openIn tells whether the scope may still ask for something. The lock of its stripe,
// st, is held.
func (s *userScope) openIn(st *stripe) error {
	if !s.live() {
		return &scopeError{s.name(), network.ErrResourceScopeClosed}
	}
	if st.closed {
		return errClosed
	}
	return nil
}

// ReserveMemory reserves size bytes, at this scope and everything above it, or
// nothing.
func (s *userScope) ReserveMemory(size int, priority uint8) error {
	h, n := s.h, int64(size)
	tree := h.tree
	st := tree.follow(tree.at.Load().lockNow())
	if st.holdReady(h, s.num, n, priority) {
		st.mu.Unlock()
		if st.engine.reporter != nil {
			st.engine.reporter.AllowMemory(size)
		}
		return nil
	}
	for all := false; ; all = true {
		v, err := st.reserve(s, n, priority, all)
		st.unlock(all)
		if v == undecided {
			st.engine.lockAll()
			st = tree.at.Load()
			continue
		}
		if size < 0 {
			st.engine.reportBug("a negative size was to be reserved", "err", err)
		}
		if err != nil {
			tellRefusal(err)
		}
		if st.engine.reporter != nil {
			st.engine.reportMemory(size, err)
		}
		return err
	}
}

// reserve decides a reservation through the tree and its chain.
func (st *stripe) reserve(s *userScope, n int64, priority uint8, all bool) (verdict, error) {
	if err := s.openIn(st); err != nil {
		return refused, err
	}
	h := s.h
	if n < 0 {
		return refused, &scopeError{s.name(), negativeSize(n)}
	}
	r := memoryRequest(st.engine.admission, n, priority)
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
			st.hold(h, n, priority)
			if r.observed != 0 {
				st.exceeded()
			}
			return v, nil
		case st.beyond(&r, v):
			continue
		case v == refused:
			return v, st.refusal(s.asked(), &r)
		}
		return v, nil
	}
}

// checkTree decides a reservation for a holder and its owners.
func (st *stripe) checkTree(h *holder, r *request) (verdict, error) {
	for x := h; x != nil; x = x.owner {
		if !x.is(h.num) {
			// A span may outlive its owner, but it gets nothing more (I5).
			return refused, &scopeError{h.name(h.num), &scopeError{x.name(h.num), network.ErrResourceScopeClosed}}
		}
		limit, bound := int64(math.MaxInt64), int64(math.MaxInt64)
		if limits := x.limits(); limits != nil {
			limit = limits[dimMemory]
		}
		if !r.observed.has(x.kind) {
			bound = st.engine.admission.threshold(limit, r.weight)
		}
		if r.memory > bound-x.use {
			st.traceRefuser(x)
			name := x.name(h.num)
			st.note(refusal{&name, dimMemory, CauseLimit, r.priority, x.use, r.memory, limit}, nil)
			top := x
			for top.owner != nil {
				top = top.owner
			}
			if top.is(h.num) { // else the chain is somebody else's by now
				r.asker = h.tree.chain.peer()
			}
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

// ReleaseMemory gives back size bytes that were reserved at this scope. What
// was not reserved here is not released: that is a caller's bug. A scope that
// is done has released everything already; go-libp2p itself releases at closed
// streams, so that is counted, but it is nothing to complain about.
func (s *userScope) ReleaseMemory(size int) {
	h := s.h
	tree := h.tree
	st := tree.follow(tree.at.Load().lockNow())
	if !s.live() {
		if size != 0 {
			st.lateReleases++
		}
		st.mu.Unlock()
		return
	}
	n := max(0, min(int64(size), h.own)) // I6
	if n > 0 {
		h.own -= n
		st.drop(&h.tree.chain, h, s.num, n)
	}
	if n == int64(size) {
		st.mu.Unlock()
		return
	}
	name := s.name()
	st.mu.Unlock()
	st.engine.reportRelease(name, int64(size)-n)
}

// Stat gives what the scope holds.
func (s *userScope) Stat() network.ScopeStat {
	st := s.h.tree.lock()
	defer st.unlock(false)
	if !s.live() {
		return network.ScopeStat{}
	}
	a := s.h.amounts()
	return a.stat()
}

// total is everything that a holder holds, as a request.
func (h *holder) total() request { return h.unit.whole(h.use) }

// amounts is everything that a holder holds.
func (h *holder) amounts() amounts {
	r := h.total()
	return r.amounts()
}

// spanScope is a span of a connection, of a stream, or of another span.
type spanScope struct {
	userScope
	node holder
}

var _ ResourceScopeLimiter = (*spanScope)(nil)

// BeginSpan opens a span below this scope.
func (s *userScope) BeginSpan() (network.ResourceScopeSpan, error) {
	h := s.h
	span := &spanScope{node: holder{tree: h.tree, owner: h, num: s.num, kind: h.kind, role: innerSpan}}
	span.userScope = userScope{&span.node, s.num}
	st := h.tree.follow(h.tree.at.Load().lockNow())
	if err := s.openIn(st); err != nil {
		st.mu.Unlock()
		return nil, err
	}
	h.spans++
	span.node.seq = h.spans
	st.traceSpan(&span.node)
	st.mu.Unlock()
	return span, nil
}

// Done ends a span and releases what it holds. Again, it does nothing.
func (s *userScope) Done() {
	tree := s.h.tree
	st := tree.follow(tree.at.Load().lockNow())
	if s.live() {
		s.h.finish(st)
		if st.closed {
			st.sweep()
		}
	}
	st.mu.Unlock()
}

// finish releases everything that the holder has and marks it done (I5).
func (h *holder) finish(st *stripe) {
	held, c := h.use, &h.tree.chain
	st.change(h, -held)
	h.own, h.done = 0, true
	switch {
	case h.owner == nil:
		if held != 0 {
			st.drop(c, nil, 0, held)
		}
		st.leave(c, h.unit)
		if st.trace != nil {
			total := h.whole(held)
			st.traceChain(c, &total, (*tracer).returned)
		}
	case h.owner.is(h.num):
		st.drop(c, h.owner, h.num, held)
	}
	st.traceDone(h)
}

// Limit gives a copy of the limit in force. One that admits nothing is that of a scope
// that is done, or of a span whose owner is and that has none of its own.
func (s *userScope) Limit() Limit {
	st := s.h.tree.lock()
	defer st.unlock(false)
	var l BaseLimit
	if limits := s.h.limits(); limits != nil && s.live() {
		l = limits.baseLimit()
	}
	return &l
}

// SetLimit gives this scope a limit of its own.
func (s *userScope) SetLimit(limit Limit) {
	st := s.h.tree.lock()
	name := s.name()
	st.unlock(false)
	if a, ok := st.engine.readLimit(&name, limit); ok {
		st := s.h.tree.lock()
		defer st.unlock(false)
		if s.live() {
			s.h.limit = a
		}
	}
}

// connScope is a connection: transient until its peer is known.
type connScope struct {
	userScope
	peer *peerScope // once it is known
}

var (
	_ network.ConnManagementScope = (*connScope)(nil)
	_ ResourceScopeLimiter        = (*connScope)(nil)
)

// conn gives what the engine keeps of the connection, while it is not done. The lock of
// its stripe is held.
func (c *connScope) conn() *conn { return c.h.tree.conn }

// PeerScope gives the scope of the connection's peer, or nil before SetPeer.
func (c *connScope) PeerScope() network.PeerScope {
	st := c.h.tree.lock()
	defer st.unlock(false)
	if c.peer == nil {
		return nil // not a nil pointer in an interface
	}
	return c.peer
}

// SetPeer moves the connection from transient to its peer, or leaves it as it
// was (I3).
func (c *connScope) SetPeer(p peer.ID) error {
	e := c.h.tree.at.Load().engine
	err := c.setPeer(e, p)
	if err != nil {
		tellRefusal(err)
	} else if e.leaks != nil {
		e.leaks.moved(&c.userScope, func(r *openRecord) { r.peer = p })
	}
	if e.reporter != nil {
		e.reportPeer(p, err)
	}
	return err
}

func (c *connScope) setPeer(e *engine, p peer.ID) error {
	mv := move{to: e.stripeOf(p).awake()}
	if e.allowlist.hasEntries() {
		_, far, err := c.copied()
		if err != nil {
			return err
		}
		mv.trusted = e.allowlist.allows(p, far)
	}
	err := c.moveTo(p, &mv)
	if err != nil {
		mv.pass.undo()
	}
	return err
}

// enterGates is for a connection for which the allowlist opened the gates, and that
// turns out to be somebody else's.
func (c *connScope) enterGates(e *engine, p *gatePass) error {
	h, far, err := c.copied()
	if err != nil {
		return err
	}
	if e.pressure.refuses(h.dir) {
		if err := c.refuseForMemory(); err != nil {
			return err
		}
	}
	if why := e.enterGates(far, h.dir, p); why != nil {
		return e.refusedAtGate(&h, why)
	}
	return nil
}

// copied gives the connection's holder, and the address of its far end, an invalid one
// if that has none, if the connection can still be given a peer.
func (c *connScope) copied() (h holder, far netip.Addr, err error) {
	st := c.h.tree.lock()
	defer st.unlock(false)
	if err = c.mayMove(st); err != nil {
		return h, far, err
	}
	if c.h.marks.has(located) {
		far = c.conn().far.addr()
	}
	return *c.h, far, nil
}

// allowlisted tells whether the connection is charged to the allowlisted scopes. The lock
// of its stripe is held.
func (c *connScope) allowlisted() bool {
	return c.h.tree.chain.at[slotSystem].kind == KindAllowlistedSystem
}

// mayMove tells whether the connection can still be given a peer.
func (c *connScope) mayMove(st *stripe) error {
	err := c.openIn(st)
	if err == nil && c.peer != nil {
		err = &scopeError{c.name(), errAttached}
	}
	return err
}

// move is where a connection is to go.
type move struct {
	to      *stripe
	trusted bool     // the allowlist means this peer at this address
	gates   gating   // whether the gates have to be asked, because it does not
	pass    gatePass // what they gave
}

// gating is how far a connection that moves has got with the gates.
type gating uint8

const (
	notDue gating = iota // as far as is known
	due
	passed
)

func (c *connScope) moveTo(p peer.ID, mv *move) error {
	m := mv.to.engine
	return decide(m, func(b *limitBook) (fetched[*amounts], error) {
		if mv.gates == due {
			if err := c.enterGates(m, &mv.pass); err != nil {
				return fetched[*amounts]{}, err
			}
			mv.gates = passed
		}
		return b.fetchPeer(p)
	}, func(all bool, limit fetched[*amounts]) (verdict, error) {
		from := c.h.tree.lockWith(mv.to, all)
		defer unlockBoth(from, mv.to, all)
		if err := c.mayMove(from); err != nil {
			return refused, err
		}
		if c.h.marks.has(onTrial) && !mv.trusted && mv.gates != passed {
			mv.gates = due
			return unknown, nil
		}
		ps := mv.to.peer(p, limit)
		if ps == nil {
			return unknown, nil
		}
		v, err := c.moveLocked(from, ps, mv, all)
		if v != admitted {
			mv.to.enqueue(&ps.account) // it may have been made for this
		}
		return v, err
	})
}

// moveLocked charges the new place first and then leaves the old one.
func (c *connScope) moveLocked(from *stripe, ps *peerScope, mv *move, all bool) (verdict, error) {
	h, to, of := c.h, mv.to, c.conn()
	u, place, stays := h.unit, &h.tree.chain, mv.trusted || !c.allowlisted()
	if to.plain && stays && h.use == 0 && ps.hasUnit(u) {
		ps.use.addUnit(u)
		to.peerGotUnit(ps, u)
	} else if v, err := c.takeNewPlace(to, ps, mv.trusted, all); v != admitted {
		return v, err
	}
	system := to.fixed[KindSystem]
	if stays {
		system = c.carry(from, to)
	} else {
		from.giveBack(place.at[slotSystem].share, u, h.use)
	}
	from.giveBack(place.at[slotTransient].share, u, h.use)

	if h.use != 0 {
		from.connMemory.moveMemory(h.use, 0)
		to.connMemory.moveMemory(0, h.use)
	}
	ps.refs++
	if mv.trusted {
		ps.trusted++
		h.marks |= trusted
	}
	if mv.pass.conns != nil {
		of.gate = mv.pass.conns
	}
	c.countNear(-1)
	if mv.trusted {
		from.engine.fair.leave(of.near)
		of.near = nil
	}
	c.peer, place.at[slotPeer] = ps, &ps.account
	place.at[slotTransient], place.at[slotSystem] = nil, &system.account
	h.tree.at.Store(to)
	c.countNear(1)
	to.engine.fair.adopt(ps, of.near)
	return admitted, nil
}

// takeNewPlace charges the connection to where it is to go, as far as it does not
// stand there already.
func (c *connScope) takeNewPlace(to *stripe, ps *peerScope, trusted, all bool) (v verdict, err error) {
	total := c.h.total()
	var place chain
	place.at[slotPeer] = &ps.account
	switch {
	case !trusted && c.allowlisted():
		place.at[slotSystem] = &to.fixed[KindSystem].account
		total.sharedFirst, total.near = true, c.conn().near
		v = to.takeStranger(&place, &total, all)
	case !trusted && to.checkPeersShare(ps, &total) == refused && !to.beyond(&total, refused):
		v = refused
	default:
		v = to.take(&place, &total, all)
	}
	if v == refused {
		err = to.refusal(c.asked(), &total)
	}
	return v, err
}

// countNear counts the connection for its subnet, in the scopes where it stands now.
func (c *connScope) countNear(by int64) {
	if near := c.conn().near; near != nil {
		near.countConn(&c.h.tree.chain, c.h.unit, by)
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

// carry moves the connection's use of its system scope to the scope's share in another
// stripe. If it holds no memory, and there lies idle credit for all that it counts in, it
// stands on that; else it takes its own along. If all did, the credit would gather in the
// stripes of those who come and go the most, and be drawn anew where they open.
func (c *connScope) carry(from, to *stripe) *share {
	h := c.h
	here := h.tree.chain.at[slotSystem].share
	there := to.fixed[here.kind]
	switch {
	case here == there:
	case h.use == 0 && there.hasUnit(h.unit):
		there.use.addUnit(h.unit)
		here.use.subUnit(h.unit)
		if here.idlesUnit(h.unit) {
			from.trimUnit(here, h.unit)
		}
	default:
		here.carry(h.unit, -1, -h.use)
		there.carry(h.unit, 1, h.use)
	}
	return there
}

// Done releases the connection and everything that it holds. Again, it does
// nothing.
func (c *connScope) Done() {
	tree := c.h.tree
	st := tree.follow(tree.at.Load().lockNow())
	if !c.live() {
		st.mu.Unlock()
		return
	}
	of := c.conn()
	if c.h.marks.has(trusted) {
		c.peer.trusted--
	}
	c.countNear(-1)
	c.h.finish(st)
	if st.engine.leaks != nil {
		st.engine.leaks.closed(&c.userScope)
	}
	far, gate, near := of.far, of.gate, of.near
	of.gate, of.near = nil, nil
	if st.closed {
		st.sweep()
	}
	tree.chain.clear()
	st.mu.Unlock()
	st.engine.idleConns.Put(c.h)
	st.engine.fair.leave(near)
	if gate != nil {
		gate.leave(far)
	}
}

// streamScope is a stream: transient until its protocol is known.
type streamScope struct {
	userScope
	peer *peerScope
}

var (
	_ network.StreamManagementScope = (*streamScope)(nil)
	_ ResourceScopeLimiter          = (*streamScope)(nil)
)

// PeerScope gives the scope of the stream's peer.
func (s *streamScope) PeerScope() network.PeerScope {
	return s.peer
}

// ProtocolScope gives the scope of the stream's protocol, or nil before
// SetProtocol and after Done.
func (s *streamScope) ProtocolScope() network.ProtocolScope {
	if p := s.pool(slotProtocol, KindProtocol); p != nil {
		return protocolScope{p}
	}
	return nil
}

// ServiceScope gives the scope of the stream's service, or nil before
// SetService and after Done.
func (s *streamScope) ServiceScope() network.ServiceScope {
	if p := s.pool(slotService, KindService); p != nil {
		return serviceScope{p}
	}
	return nil
}

// pool gives the protocol or service, nil where there is none yet.
func (s *streamScope) pool(slot int, k Kind) *pool {
	st := s.h.tree.lock()
	defer st.unlock(false)
	if a := s.h.tree.chain.at[slot]; s.live() && a != nil && a.kind == k {
		return a.share.pool
	}
	return nil
}

// SetProtocol moves the stream from transient to its protocol, or leaves it as
// it was (I3).
func (s *streamScope) SetProtocol(proto protocol.ID) error {
	err := s.attach(KindProtocol, string(proto))
	m := s.peer.st.engine
	if err != nil {
		tellRefusal(err)
	} else if m.leaks != nil {
		m.leaks.moved(&s.userScope, func(r *openRecord) { r.protocol = string(proto) })
	}
	if m.reporter != nil {
		m.reportProtocol(proto, s.peer.id, err)
	}
	return err
}

// SetService adds the stream to a service, or leaves it as it was (I3).
func (s *streamScope) SetService(svc string) error {
	err := s.attach(KindService, svc)
	m := s.peer.st.engine
	if err != nil {
		tellRefusal(err)
	} else if m.leaks != nil {
		m.leaks.moved(&s.userScope, func(r *openRecord) { r.service = svc })
	}
	if m.reporter != nil {
		m.reportService(svc, s.peer.id, err)
	}
	return err
}

func (s *streamScope) attach(kind Kind, name string) error {
	slot := slotProtocol
	if kind == KindService {
		slot = slotService
	}
	st := s.peer.st // in which the stream stays
	st.mu.Lock()
	if s.attachReady(st, kind, slot, name) {
		st.mu.Unlock()
		return nil
	}
	locked := true
	var fresh *pool
	return decide(st.engine, func(*limitBook) (f fetched[sharedLimits], err error) {
		fresh, err = st.engine.newPool(kind, name)
		return f, err
	}, func(all bool, _ fetched[sharedLimits]) (verdict, error) {
		if !locked {
			st.lock(all)
		}
		locked = false
		defer st.unlock(all)
		if err := s.mayAttach(st, kind, slot, name); err != nil {
			return refused, err
		}
		pr := s.peer.pairNamed(kind, name)
		if pr == nil {
			sh := st.shareNamed(kind, name, fresh)
			if sh == nil {
				return unknown, nil
			}
			pr = st.pair(s.peer, sh)
		}
		v, err := s.attachLocked(st, pr, slot, all)
		if v != admitted {
			st.enqueue(&pr.account) // it may have been made for this
		}
		return v, err
	})
}

// mayAttach reports, by a nil error, whether the stream can still be given a protocol or
// service of this name.
func (s *streamScope) mayAttach(st *stripe, kind Kind, slot int, name string) error {
	if err := s.openIn(st); err != nil {
		return err
	}
	c := &s.h.tree.chain
	var err error
	switch {
	case c.at[slot] != nil && c.at[slot].kind == kind:
		err = errAttached
	case kind == KindService && c.at[slotProtocol].kind != KindProtocol:
		err = errNoProtocol
	case name == "":
		err = errNoName
	default:
		return nil
	}
	return &scopeError{s.name(), err}
}

// attachReady attaches a stream that holds nothing but itself to a service or protocol
// in which its peer has a part already, where there is room at hand; if not, it changes
// nothing.
func (s *streamScope) attachReady(st *stripe, kind Kind, slot int, name string) bool {
	h := s.h
	c := &h.tree.chain
	if !st.plain || !s.live() || h.use != 0 ||
		c.at[slot] != nil && !c.at[slot].lasting() || c.at[slotProtocol].lasting() == (kind == KindService) {
		return false
	}
	u, pr := h.unit, s.peer.pairNamed(kind, name)
	if pr == nil || !pr.hasUnit(u) || !pr.share.hasUnit(u) && !st.drawUnit(u, pr.share, nil) {
		return false
	}
	pr.use.addUnit(u)
	pr.share.use.addUnit(u)
	st.attached(h, pr, slot)
	return true
}

func (s *streamScope) attachLocked(st *stripe, pr *pair, slot int, all bool) (verdict, error) {
	var place chain
	place.at[slot-pairsBefore], place.at[slot] = &pr.account, &pr.share.account
	total := s.h.total()
	total.sharedFirst = true
	switch v := st.take(&place, &total, all); v {
	case refused:
		return v, st.refusal(s.asked(), &total)
	case undecided:
		return v, nil
	}
	st.attached(s.h, pr, slot)
	return admitted, nil
}

// attached puts a stream below what it has been charged to.
func (st *stripe) attached(h *holder, pr *pair, slot int) {
	c := &h.tree.chain
	pr.refs++
	pr.share.refs++
	if slot == slotProtocol {
		countTransient(c, h.dir, -1)
		st.giveBack(c.at[slotTransient].share, h.unit, h.use)
	}
	c.at[slot-pairsBefore], c.at[slot] = &pr.account, &pr.share.account
	most := &st.most[slot-pairsBefore]
	most.raise(&pr.use, h.dir)
	most.raise(&pr.use, h.both)
	most.memory = max(most.memory, pr.use.memory)
}

// countTransient keeps the number of streams that a peer has in the standard
// transient scope.
func countTransient(c *chain, d dim, n int32) {
	if a := c.at[slotTransient]; a != nil && a.kind == KindTransient && d <= dimStreamsOut {
		ps := c.peer()
		ps.transientStreams[(d-dimStreamsIn)&1] += n
		if near := ps.near; near != nil && d == dimStreamsIn {
			near.held[KindTransient].streams.Add(int64(n))
		}
	}
}

// Done releases the stream and everything that it holds. Again, it does
// nothing.
func (s *streamScope) Done() {
	h, st := s.h, s.peer.st
	st.mu.Lock()
	if s.live() {
		countTransient(&h.tree.chain, h.dir, -1)
		if st.engine.fair != nil {
			countStream(&h.tree.chain, h.dir, -1)
		}
		h.finish(st)
		if st.engine.leaks != nil {
			st.engine.leaks.closed(&s.userScope)
		}
		if st.closed {
			st.sweep()
		}
		h.tree.chain.clear()
		if len(st.idle) < maxIdle {
			st.idle = append(st.idle, h)
		}
	}
	st.mu.Unlock()
}
