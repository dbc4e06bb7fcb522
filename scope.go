package rcmgr

// Trees of holders. A holder is a connection, a stream or a span. Above a connection or
// stream stands its chain of accounts, and below it a tree of spans, all in one stripe.

import (
	"encoding/binary"
	"math"
	"runtime"
	"sync/atomic"
	"weak"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/groups"
	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// root is where a tree of holders is attached: to its stripe and its chain.
type root struct {
	// at is the stripe that the tree lies in. When a connection moves, it is written under
	// the locks of both stripes. A reader loads it, takes that stripe's lock, and compares
	// (follow).
	at        atomic.Pointer[stripe]
	chain     chain
	connState *connState // nil if it is not the tree of a connection
}

// lock takes the lock of the stripe that the tree lies in. It is too long to be inlined, so
// the hottest callers write it out and save a call:
//
//	st := tree.follow(tree.at.Load().lockNow())
func (r *root) lock() *stripe { return r.follow(r.at.Load().lockNow()) }

// lockNow takes the lock of the stripe.
func (st *stripe) lockNow() *stripe {
	st.mu.Lock()
	return st
}

// follow takes the stripe in which the tree lay a moment ago, locked, and returns the one in
// which it lies now, locked. They differ only if the tree has moved in between.
func (r *root) follow(st *stripe) *stripe {
	if r.at.Load() != st {
		return r.lockAgain(st)
	}
	return st
}

// lockAgain is follow for a tree that moved while its lock was waited for.
func (r *root) lockAgain(st *stripe) *stripe {
	for r.at.Load() != st {
		st.mu.Unlock()
		st = r.at.Load().lockNow()
	}
	return st
}

// lockAs takes the lock of the stripe that the tree lies in, or every stripe's.
func (r *root) lockAs(e *engine, g grip) *stripe {
	if g == oneStripe {
		return r.lock()
	}
	e.lockAll()
	return r.at.Load()
}

// lockWith takes the locks of the tree's stripe and of another one, or every stripe's.
func (r *root) lockWith(to *stripe, g grip) (from *stripe) {
	for {
		from = r.at.Load()
		switch {
		case g == allStripes:
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
		unlockBoth(from, to, oneStripe)
	}
}

func unlockBoth(a, b *stripe, g grip) {
	if g == allStripes {
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
	tree *root
	// link is the owner of an inner span. In a leaf, which has no owner, it is the holder of a span
	// that is done, kept for the next span, or nil.
	link  *holder
	limit *amounts
	use   int64 // bytes, with those of all spans below
	own   int64 // bytes reserved at this holder itself: 0 <= own <= use (I6)
	// num is the number of the connection or stream that the tree belongs to, 0 for a span
	// of a peer or of a shared scope.
	num   int64
	seq   uint32 // the number of a span among those of its owner, from 1
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

// connState is what the engine keeps of a connection besides its holder and chain.
type connState struct {
	remote ip.Key          // the address of the far end, or of its relay, if there is one; see endpoint
	gate   *subnets.Stripe // in which its address counts; may be nil
	subnet *groups.Seat    // that it counts for; may be nil
}

// mark is a fact about a connection.
type mark uint8

const (
	located mark = 1 << iota // its far end has an address
	// An entry of the allowlist that names a peer let it past the gates before its peer was
	// known.
	onTrial
	// Its peer may fall back on the allowlisted scopes for streams.
	trusted
	viaRelay // its far end is behind a relay that has an address
)

func (all mark) has(m mark) bool { return all&m != 0 }

// topConn is the topmost holder of a connection.
type topConn struct {
	top
	state connState
}

// role is what a holder stands for.
type role uint8

const (
	leaf      role = iota // a connection or stream
	firstSpan             // a span of a peer, or of a shared scope
	innerSpan             // a span of a leaf or of another span
)

// serves reports whether the holder is not done and belongs to the connection or stream with
// this number. Once that is done, the holder may serve another one.
func (h *holder) serves(num int64) bool { return h.num == num && !h.done }

// owner returns the holder that owns this one, or nil for the topmost one.
func (h *holder) owner() *holder {
	if h.role == innerSpan {
		return h.link
	}
	return nil
}

// scopeID identifies one of the scopes that a holder serves one after another. Its lower numBits bits
// are the number of the connection or stream, and the bits above are that of the span among those of
// its owner. A span whose numbers do not fit (fitsID) has a holder of its own.
type scopeID uint64

const numBits = 40

// fitsID reports whether the numbers of a connection or stream, and of a span of it, fit a scopeID.
func fitsID(num int64, seq uint32) bool { return num>>numBits == 0 && seq>>(64-numBits) == 0 }

// id returns the ID of the scope that the holder serves, or was the last to serve.
func (h *holder) id() scopeID { return scopeID(h.num) + scopeID(h.seq)<<numBits }

// is reports whether the holder serves this scope, and that is not done.
func (h *holder) is(id scopeID) bool { return h.id() == id && !h.done }

// beginSpan returns the holder of the next span of h.
func (h *holder) beginSpan() *holder {
	if h.spans < math.MaxUint32 { // it never says again that none have begun
		h.spans++
	}
	x := h.link
	if h.role == leaf && x != nil && fitsID(h.num, h.spans) {
		h.link, x.done = nil, false
	} else {
		x = &holder{tree: h.tree, link: h, kind: h.kind, role: innerSpan}
	}
	x.num, x.seq = h.num, h.spans
	return x
}

// keep keeps the holder of a span that is done for the next span, unless spans have begun below it.
func (h *holder) keep(x *holder) {
	if h.role == leaf && h.link == nil && x.spans == 0 && fitsID(x.num, x.seq) {
		h.link, x.limit = x, nil
	}
}

// name returns the name of the scope that has, or had, this number. The lock of its
// stripe is held.
func (h *holder) name(num int64) scopeName {
	var room [8 * spanBytes]byte
	top, around := h, room[:0]
	for top.role == innerSpan {
		if top = top.link; top.role != leaf {
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

// asked returns the scope as the one that was asked, for a refusal. The lock of its stripe is
// held.
func (h *holder) asked() askedScope {
	if h.role == leaf || h.role == innerSpan && h.link.role == leaf {
		return askedScope{num: h.num, kind: h.kind, span: h.seq}
	}
	name := h.name(h.num)
	return askedScope{name: &name}
}

// limitInForce returns the limit of the holder. A span has that of its owner unless SetLimit
// gave it one. It is nil if the owner is done; the owner then refuses for the span.
func (h *holder) limitInForce() *amounts {
	owner := h.owner()
	switch {
	case h.limit != nil:
		return h.limit
	case owner == nil:
		return h.tree.chain.first().limit()
	case !owner.serves(h.num):
		return nil
	}
	return owner.limitInForce()
}

// userScope is the handle that a user has on a connection, stream or span. When that is done,
// its holder serves another one, because most of the cost of opening is the allocation and its
// collection. The holder has another ID then, so the old handle is one of a scope that is done
// (I5).
type userScope struct {
	h  *holder
	id scopeID
}

// live reports whether the scope is not done. The lock of its stripe is held.
func (s *userScope) live() bool { return s.h.is(s.id) }

// name returns the name of the scope, also after it is done. The lock of its stripe is held.
func (s *userScope) name() scopeName {
	switch h := s.h; {
	case h.role == leaf:
		return h.name(int64(s.id))
	case h.id() != s.id: // it serves another span of the leaf
		return scopeName{kind: h.kind, num: int64(s.id & (1<<numBits - 1)), span: uint32(s.id >> numBits)}
	default:
		return h.name(h.num)
	}
}

// checkOpen returns an error if the scope or the manager is closed. The lock of its stripe,
// st, is held.
func (s *userScope) checkOpen(st *stripe) error {
	if !s.live() {
		return &scopeError{s.name(), network.ErrResourceScopeClosed}
	}
	if st.closed {
		return errClosed
	}
	return nil
}

// ReserveMemory reserves size bytes at this scope and everything above it, or nothing.
func (s *userScope) ReserveMemory(size int, priority uint8) error {
	h, n := s.h, int64(size)
	tree := h.tree
	st := tree.follow(tree.at.Load().lockNow())
	if st.holdReady(h, s.id, n, priority) {
		st.mu.Unlock()
		if st.engine.reporter != nil {
			st.engine.reporter.AllowMemory(size)
		}
		return nil
	}
	locked := true
	err := decide(st.engine, nothing, func(g grip, _ fetched[struct{}]) (verdict, error) {
		if !locked {
			st = tree.lockAs(st.engine, g)
		}
		locked = false
		defer st.unlockAs(g)
		return st.reserve(s, n, priority, g)
	})
	if size < 0 {
		st.engine.reportBug("a negative size was to be reserved", "err", err)
	}
	if err != nil {
		logRefusal(err)
	}
	if st.engine.reporter != nil {
		st.engine.reportMemory(size, err)
	}
	return err
}

// reserve decides a reservation through the tree and its chain.
func (st *stripe) reserve(s *userScope, n int64, priority uint8, g grip) (verdict, error) {
	if err := s.checkOpen(st); err != nil {
		return refused, err
	}
	h := s.h
	if n < 0 {
		return refused, &scopeError{s.name(), negativeSize(n)}
	}
	r := memoryRequest(st.engine.admission, n, priority)
	r.grip = g
	for {
		why, err := st.checkTree(h, &r)
		if err != nil {
			return refused, err
		}
		v := refused
		if why == nil {
			v, why = st.check(&h.tree.chain, &r)
		}
		switch {
		case v == admitted:
			st.hold(h, n, priority)
			if r.observed != 0 {
				st.exceeded()
			}
			return v, nil
		case st.retryUnobserved(&r, v, why):
			continue
		case v == refused:
			return v, st.refusal(why, s.h.asked(), &r)
		}
		return v, nil
	}
}

// checkTree returns the refusal of a reservation by a holder or one of its owners, nil if
// there is none. An owner that is done is an error.
func (st *stripe) checkTree(h *holder, r *request) (*noted, error) {
	for x := h; x != nil; x = x.owner() {
		if !x.serves(h.num) {
			// A span may outlive its owner, but it gets nothing more (I5).
			return nil, &scopeError{h.name(h.num), &scopeError{x.name(h.num), network.ErrResourceScopeClosed}}
		}
		limit, bound := int64(math.MaxInt64), int64(math.MaxInt64)
		if limits := x.limitInForce(); limits != nil {
			limit = limits[dimMemory]
		}
		if !r.observed.has(x.kind) {
			bound = st.engine.admission.threshold(limit, r.weight)
		}
		if r.memory > bound-x.use {
			top := x
			for top.role == innerSpan {
				top = top.link
			}
			if top.serves(h.num) { // else the chain is now that of another connection or stream
				r.asker = h.tree.chain.peer()
			}
			name := x.name(h.num)
			why := st.note(refusal{&name, dimMemory, CauseLimit, r.priority, x.use, r.memory, limit}, r, nil)
			if st.trace != nil {
				why.holding(x.amounts())
			}
			return why, nil
		}
	}
	return nil, nil
}

// change adds n bytes to what a holder uses.
func (st *stripe) change(h *holder, n int64) {
	if h.kind == KindConn && h.role == leaf {
		st.connMemory.MoveMemory(h.use, h.use+n)
	}
	h.use += n
}

// ReleaseMemory releases size bytes that were reserved at this scope. Bytes that were not
// reserved here are not released, and are a caller's bug. A scope that is done has released
// everything already. go-libp2p itself releases at closed streams, so that is counted but not
// logged.
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
		st.drop(&h.tree.chain, h, h.num, n)
	}
	if n == int64(size) {
		st.mu.Unlock()
		return
	}
	name := s.name()
	st.mu.Unlock()
	st.engine.reportRelease(name, int64(size)-n)
}

// Stat returns what the scope holds.
func (s *userScope) Stat() network.ScopeStat {
	st := s.h.tree.lock()
	defer st.unlock()
	if !s.live() {
		return network.ScopeStat{}
	}
	a := s.h.amounts()
	return a.stat()
}

// total returns everything that the holder holds, as a request.
func (h *holder) total() request { return h.unit.request(h.use) }

// amounts returns everything that the holder holds.
func (h *holder) amounts() amounts {
	r := h.total()
	return r.amounts()
}

// spanScope is a span of a connection, of a stream, or of another span.
type spanScope struct{ userScope }

var _ ResourceScopeLimiter = (*spanScope)(nil)

// BeginSpan opens a span below this scope.
func (s *userScope) BeginSpan() (network.ResourceScopeSpan, error) {
	tree, span := s.h.tree, &spanScope{}
	st := tree.follow(tree.at.Load().lockNow())
	if err := s.checkOpen(st); err != nil {
		st.mu.Unlock()
		return nil, err
	}
	h := s.h.beginSpan()
	st.traceSpan(h)
	span.h, span.id = h, h.id()
	st.mu.Unlock()
	return span, nil
}

// Done ends a span and releases what it holds. A second call does nothing.
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
	held, c, owner := h.use, &h.tree.chain, h.owner()
	h.own, h.done = 0, true
	if held != 0 { // else nothing changes, and no cache line of the distribution is written
		st.change(h, -held)
	}
	switch {
	case owner == nil:
		if held != 0 {
			st.drop(c, nil, 0, held)
		}
		st.leave(c, h.unit)
		if st.trace != nil {
			total := h.request(held)
			st.traceChain(c, &total, (*tracer).returned)
		}
	case owner.serves(h.num):
		st.drop(c, owner, h.num, held)
		owner.keep(h)
	}
	st.traceDone(h)
}

// Limit returns a copy of the limit in force. For a scope that is done, and for a span
// without a limit of its own whose owner is done, it is one that admits nothing.
func (s *userScope) Limit() Limit {
	st := s.h.tree.lock()
	defer st.unlock()
	var l BaseLimit
	if limits := s.h.limitInForce(); limits != nil && s.live() {
		l = limits.baseLimit()
	}
	return &l
}

// SetLimit gives this scope a limit of its own.
func (s *userScope) SetLimit(limit Limit) {
	st := s.h.tree.lock()
	name := s.name()
	st.unlock()
	if a, ok := st.engine.readLimit(&name, limit); ok {
		st := s.h.tree.lock()
		defer st.unlock()
		if s.live() {
			s.h.limit = a
		}
	}
}

// recordOpened makes the leak finder's record of a connection or stream, before its user has
// it.
func (s *userScope) recordOpened(l *leakFinder, p peer.ID) {
	scope := weak.Make(s)
	r := &openRecord{kind: s.h.kind, dir: s.h.dir, num: int64(s.id), peer: p, memory: func() int64 {
		if s := scope.Value(); s != nil {
			return s.Stat().Memory
		}
		return 0
	}}
	l.opened(r)
	runtime.AddCleanup(s, l.drop, r)
}

// recordMoved notes what an open connection or stream belongs to now.
func (s *userScope) recordMoved(l *leakFinder, note func(*openRecord)) {
	l.moved(int64(s.id), note)
	runtime.KeepAlive(s) // see leakFinder.opened
}

// recordClosed removes the record. The lock of the stripe is held.
func (s *userScope) recordClosed(l *leakFinder) {
	l.closed(int64(s.id))
	runtime.KeepAlive(s)
}

func (e *engine) reportMemory(size int, err error) {
	if admitted, _, refused := decisionOf(err); admitted {
		e.reporter.AllowMemory(size)
	} else if refused {
		e.reporter.BlockMemory(size)
	}
}
