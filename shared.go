package rcmgr

// The scopes that others stand on: peers, services, protocols, and the four that are always
// there. A user holds such a scope directly. If it was collected in between, each method
// looks its name up again (I7).

import (
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/weir-p2p/rcmgr/internal/groups"
	"github.com/weir-p2p/rcmgr/internal/ip"
)

// directScope is a scope on which memory can be reserved directly, and from which
// spans begin.
type directScope interface {
	// enter takes the lock of the stripe where direct reservations are kept, or every
	// stripe's, and returns that stripe with the scope's account and chain there;
	// stripe.exit ends that.
	enter(g grip) (*stripe, *account, chain)
	// enterAny is enter for any one stripe in which the scope stands.
	enterAny() (*stripe, *account, chain)
	scope() scopeName
	manager() *engine
}

func reserveAt(pl directScope, size int, priority uint8) error {
	e := pl.manager()
	if size < 0 {
		err := &scopeError{pl.scope(), negativeSize(size)}
		e.reportBug("a negative size was to be reserved", "err", err)
		return err
	}
	r := memoryRequest(e.admission, int64(size), priority)
	err := decide(e, nothing, func(g grip, _ fetched[struct{}]) (verdict, error) {
		st, a, c := pl.enter(g)
		defer st.exit(g)
		r.grip = g
		return st.takeDirect(a, &c, &r)
	})
	if err != nil {
		logRefusal(err)
	}
	if e.reporter != nil {
		e.reportMemory(size, err)
	}
	return err
}

func (st *stripe) takeDirect(a *account, c *chain, r *request) (verdict, error) {
	if st.closed {
		return refused, errClosed
	}
	v, why := st.take(c, r)
	switch v {
	case admitted:
		a.makeDirect().own += r.memory
	case refused:
		name := a.name()
		return v, st.refusal(why, askedScope{name: &name}, r)
	}
	return v, nil
}

func releaseAt(pl directScope, size int) {
	st, a, c := pl.enter(oneStripe)
	var n int64
	at := a.asDirect()
	if at != nil {
		n = max(0, min(int64(size), at.own)) // I6
	}
	if n > 0 {
		at.own -= n
		st.drop(&c, nil, 0, n)
		if st.trace != nil {
			r := memoryRequest(st.engine.admission, n, 0)
			st.traceChain(&c, &r, (*tracer).returned)
		}
		st.enqueue(a)
	}
	excess := int64(size) - n
	st.exit(oneStripe)
	if excess != 0 {
		st.engine.reportRelease(pl.scope(), excess)
	}
}

// beginSpanAt opens a span below a scope. number returns the span's number.
func beginSpanAt(pl directScope, number func(*account, *chain) uint32) (network.ResourceScopeSpan, error) {
	span := &rootSpan{}
	span.h, span.tree = &span.holder, &span.root
	st, a, c := pl.enterAny()
	defer st.exit(oneStripe)
	if st.closed {
		return nil, errClosed
	}
	span.kind, span.role, span.seq = a.kind, firstSpan, number(a, &c)
	span.id = span.holder.id()
	span.chain = c
	span.at.Store(st)
	for _, a := range &c.at {
		if a != nil && !a.lasting() {
			a.refs++
		}
	}
	st.traceSpan(span.h)
	return span, nil
}

// rootSpan is a span of a peer or of a shared scope, with a tree of its own.
type rootSpan struct {
	userScope
	top
}

var _ ResourceScopeLimiter = (*rootSpan)(nil)

// peerScope is everything of one peer. The peers of different stripes are next to each other in
// memory, and share the cache lines on which one ends and the next begins. So what streams and
// memory change is in the middle, and before and after it are 48 bytes that seldom change; only
// systemIn changes with each inbound stream, if the system scope has shares.
type peerScope struct {
	id peer.ID
	st *stripe
	// pairs lists the peer's parts of services and protocols. Once there are many, the list is
	// empty and they are in rare.
	pairs *pair
	rare  *rarePeer // nil for most peers
	// subnet is where its first inbound connection came from, or, before it has one, where its
	// first outbound one went; nil without either, and without WithFairShare.
	subnet *groups.Seat

	account
	// transientStreams counts the peer's streams in the transient scope: inbound, outbound.
	transientStreams [2]int32

	// peak is the most that the peer has held of each dimension.
	peak held
	// systemIn counts the peer's inbound streams in the system scope, if that has shares.
	systemIn int32
	// trusted counts the peer's connections that the allowlist covers.
	trusted int32
}

var (
	_ network.PeerScope    = (*peerScope)(nil)
	_ ResourceScopeLimiter = (*peerScope)(nil)
)

// rarePeer has what few peers need: the time of a rate, and what fewer need.
type rarePeer struct {
	oneRate oneTime
	*rares  // nil for most
}

// rares is what very few peers need: memory reserved at the peer itself, refusals by its limit, many
// pairs, several rates, or a subnet whose streams have a rate.
type rares struct {
	direct
	byShare map[*share]*pair // by the share that each is a part of; nil if the list has them
	rates   *peerRates
	far     ip.Key // the address of the peer, see entry.go; zero if it has none
	// partDenied is what a part of the peer has refused, with its name: the part of the pair that
	// refused last.
	partDenied *denied
	deniedPart *account
}

// locate notes the address of a connection as that of its peer, unless the peer has another
// connection, which has noted its own. The lock of the peer's stripe is held.
func (ps *peerScope) locate(far ip.Key) {
	if rare := ps.makeRare(); rare.far == (ip.Key{}) || ps.use.of(dimConns) <= 1 {
		rare.far = far
	}
}

// far returns the address of a peer, which is not valid if none is known. The lock of the peer's
// stripe is held.
func (ps *peerScope) far() netip.Addr {
	if ps.rare == nil || ps.rare.rares == nil || ps.rare.rares.far == (ip.Key{}) {
		return netip.Addr{}
	}
	return ps.rare.rares.far.Addr()
}

// denyPart is account.deny for the peer's part of a service or protocol. How many
// requests it refused is shown nowhere, so only the last part's name is needed.
func (ps *peerScope) denyPart(a *account) *denied {
	rare := ps.makeRare()
	if rare.deniedPart != a {
		rare.deniedPart, rare.partDenied = a, &denied{name: a.name()}
	}
	return rare.partDenied
}

// makeRare returns the peer's rares, which it makes first if the peer has none.
func (ps *peerScope) makeRare() *rares {
	if ps.rare == nil {
		ps.rare = &rarePeer{}
	}
	return ps.rare.makeMore()
}

func (r *rarePeer) makeMore() *rares {
	if r.rares == nil {
		r.rares = new(rares)
	}
	return r.rares
}

// asDirect returns what the peer has as a directScope, or nil if it has nothing yet.
func (ps *peerScope) asDirect() *direct {
	if ps.rare == nil || ps.rare.rares == nil {
		return nil
	}
	return &ps.rare.direct
}

// denied returns what the peer has refused, or nil if it has refused nothing.
func (ps *peerScope) denied() *denied {
	if at := ps.asDirect(); at != nil {
		return at.denied
	}
	return nil
}

// byShare returns the pairs if they are in a map, else nil.
func (ps *peerScope) byShare() map[*share]*pair {
	if ps.rare == nil || ps.rare.rares == nil {
		return nil
	}
	return ps.rare.byShare
}

// pair is a peer's part of a service or protocol.
type pair struct {
	account
	next *pair // in the peer's list
}

// pair returns a peer's part of a service or protocol, and makes it if there is none. A
// caller that does not use it has to enqueue it.
func (st *stripe) pair(ps *peerScope, sh *share) *pair {
	if pr := ps.pair(sh); pr != nil {
		return pr
	}
	pr := st.newPair()
	pr.kind, pr.share, pr.ps, pr.ready = sh.kind.ofPeer(), sh, ps, &sh.pool.pairLimit
	sh.refs++
	ps.refs++
	ps.addPair(pr)
	st.traceCreated(&pr.account)
	return pr
}

// pairsAtOnce is how many pairs a stripe makes at once. They fill whole cache lines, so that no
// line has pairs of two stripes, for which two processors would wait in turn.
const pairsAtOnce = 4

// newPair returns a pair that is not in use. The memory of a pair is free again when all those that
// were made with it are gone, too.
func (st *stripe) newPair() *pair {
	if len(st.blank) == 0 {
		st.blank = make([]pair, pairsAtOnce)
	}
	pr := &st.blank[0]
	st.blank = st.blank[1:]
	return pr
}

// manyPairs is the number of pairs of one peer above which they are in a map.
const manyPairs = 16

// pair returns the peer's part of a service or protocol, or nil if it has none.
func (ps *peerScope) pair(sh *share) *pair {
	if all := ps.byShare(); all != nil {
		return all[sh]
	}
	for pr := ps.pairs; pr != nil; pr = pr.next {
		if pr.share == sh {
			return pr
		}
	}
	return nil
}

// pairNamed returns the peer's part of a service or protocol by its name, if the peer has few
// parts: that is faster than to look up the share. nil means that the caller has to look.
func (ps *peerScope) pairNamed(k Kind, name string) *pair {
	for pr := ps.pairs; pr != nil; pr = pr.next {
		if pr.kind == k.ofPeer() && pr.share.pool.name == name {
			return pr
		}
	}
	return nil
}

// eachPair calls f with all parts of the peer. The lock of its stripe is held.
func (ps *peerScope) eachPair(f func(*pair)) {
	for pr := ps.pairs; pr != nil; pr = pr.next {
		f(pr)
	}
	for _, pr := range ps.byShare() {
		f(pr)
	}
}

func (ps *peerScope) addPair(pr *pair) {
	few := 0
	for at := ps.pairs; at != nil; at = at.next {
		few++
	}
	if few == manyPairs {
		ps.makeRare().byShare = make(map[*share]*pair)
		for ps.pairs != nil {
			first := ps.pairs
			ps.rare.byShare[first.share] = first
			ps.pairs, first.next = first.next, nil
		}
	}
	if all := ps.byShare(); all != nil {
		all[pr.share] = pr
		return
	}
	pr.next, ps.pairs = ps.pairs, pr
}

func (ps *peerScope) dropPair(pr *pair) {
	if all := ps.byShare(); all != nil {
		delete(all, pr.share)
		return
	}
	at := &ps.pairs
	for *at != pr {
		at = &(*at).next
	}
	*at, pr.next = pr.next, nil
}

func (ps *peerScope) enterAny() (*stripe, *account, chain) { return ps.enter(oneStripe) }

func (ps *peerScope) enter(g grip) (*stripe, *account, chain) {
	st := ps.st
	var now *peerScope
	var last *amounts
	_ = decide(st.engine, func(b *limitBook) (fetched[*amounts], error) {
		limit, err := b.fetchPeer(ps.id)
		if err != nil {
			limit = fetched[*amounts]{b, last} // the last one known
		}
		return limit, nil
	}, func(_ grip, limit fetched[*amounts]) (verdict, error) {
		st.lockAs(g)
		if now = st.current(ps, limit); now == nil {
			last = ps.limit()
			st.unlockAs(g)
			return unknown, nil
		}
		return admitted, nil // and locked
	})
	var c chain
	c.at[slotPeer], c.at[slotSystem] = &now.account, &st.fixed[KindSystem].account
	return st, &now.account, c
}

func (ps *peerScope) scope() scopeName { return scopeName{kind: KindPeer, peer: ps.id} }
func (ps *peerScope) manager() *engine { return ps.st.engine }

// Peer returns the peer's ID.
func (ps *peerScope) Peer() peer.ID { return ps.id }

// ReserveMemory reserves size bytes at the peer and the system, or nothing.
func (ps *peerScope) ReserveMemory(size int, priority uint8) error {
	return reserveAt(ps, size, priority)
}

// ReleaseMemory releases bytes that were reserved at this scope itself.
func (ps *peerScope) ReleaseMemory(size int) { releaseAt(ps, size) }

// BeginSpan opens a span below the peer.
func (ps *peerScope) BeginSpan() (network.ResourceScopeSpan, error) {
	return beginSpanAt(ps, func(_ *account, c *chain) uint32 {
		st := c.peer().st
		st.spans++
		return st.spans
	})
}

// Stat returns what the peer holds.
func (ps *peerScope) Stat() network.ScopeStat {
	_, a, _ := ps.enter(oneStripe)
	defer ps.st.exit(oneStripe)
	use := a.use.amounts()
	return use.stat()
}

// Limit returns a copy of the limit in force.
func (ps *peerScope) Limit() Limit {
	st, a, _ := ps.enter(oneStripe)
	defer st.exit(oneStripe)
	l := a.ps.limitWithRates()
	return &l
}

// SetLimit gives this peer a limit of its own, and keeps its scope from being collected.
func (ps *peerScope) SetLimit(limit Limit) {
	name := ps.scope()
	l, ok := ps.st.engine.readLimit(&name, limit)
	if !ok {
		return
	}
	rates := ps.st.engine.rateByHand(KindPeer, limit)
	_, a, _ := ps.enter(oneStripe)
	defer ps.st.exit(oneStripe)
	a.ready = l
	a.sticky = true
	a.ps.setPeerRates(rates)
}

func (p *pool) enter(g grip) (*stripe, *account, chain) { return p.enterAt(p.home.awake(), g) }

func (p *pool) enterAny() (*stripe, *account, chain) {
	return p.enterAt(p.engine.anyStripe(), oneStripe)
}

// enterAt is enter in one stripe, which is ready for use.
func (p *pool) enterAt(st *stripe, g grip) (*stripe, *account, chain) {
	var sh *share
	_ = decide(p.engine, func(b *limitBook) (fetched[sharedLimits], error) {
		limits, err := b.fetchShared(p.kind, p.name)
		if err != nil {
			limits = fetched[sharedLimits]{by: b} // the last ones known stay
		}
		return limits, nil
	}, func(_ grip, limits fetched[sharedLimits]) (verdict, error) {
		st.lockAs(g)
		if sh = st.shareOf(p, limits); sh == nil {
			st.unlockAs(g)
			return unknown, nil
		}
		return admitted, nil // and locked
	})
	system := st.fixed[KindSystem]
	var c chain
	switch p.kind {
	case KindSystem, KindAllowlistedSystem:
		system = sh
	case KindTransient:
		c.at[slotTransient] = &sh.account
	case KindAllowlistedTransient:
		c.at[slotTransient] = &sh.account
		system = st.fixed[KindAllowlistedSystem]
	case KindService:
		c.at[slotService] = &sh.account
	case KindProtocol:
		c.at[slotProtocol] = &sh.account
	}
	c.at[slotSystem] = &system.account
	return st, &sh.account, c
}

func (p *pool) scope() scopeName { return scopeName{kind: p.kind, text: p.name} }
func (p *pool) manager() *engine { return p.engine }

// ReserveMemory reserves size bytes at the scope and the system, or nothing.
func (p *pool) ReserveMemory(size int, priority uint8) error {
	return reserveAt(p, size, priority)
}

// ReleaseMemory releases bytes that were reserved at this scope itself.
func (p *pool) ReleaseMemory(size int) { releaseAt(p, size) }

// BeginSpan opens a span below the scope.
func (p *pool) BeginSpan() (network.ResourceScopeSpan, error) {
	return beginSpanAt(p, func(a *account, _ *chain) uint32 { return a.share.pool.spans.Add(1) })
}

// Stat returns what the scope holds, over all stripes at one instant.
func (p *pool) Stat() network.ScopeStat {
	st, a, _ := p.enter(allStripes)
	defer st.exit(allStripes)
	used := a.share.pool.used()
	return used.stat()
}

// Limit returns a copy of the limit in force.
func (p *pool) Limit() Limit {
	st, a, _ := p.enter(oneStripe)
	defer st.exit(oneStripe)
	l := a.share.pool.limitWithRates()
	return &l
}

// SetLimit replaces the limit, and keeps the scope from being collected.
func (p *pool) SetLimit(limit Limit) {
	name := p.scope()
	l, ok := p.engine.readLimit(&name, limit)
	if !ok {
		return
	}
	rates := p.engine.rateByHand(p.kind, limit)
	st, a, _ := p.enter(allStripes)
	defer st.exit(allStripes)
	a.share.pool.setLimit(*l)
	a.share.pool.setRates(rates, a.share.pool.pairRates())
	p.engine.dir.stick(a.share.pool, true)
}

// serviceScope is a service as network.ServiceScope.
type serviceScope struct{ *pool }

var _ network.ServiceScope = serviceScope{}

// Name returns the service's name.
func (s serviceScope) Name() string { return s.name }

// protocolScope is a protocol as network.ProtocolScope.
type protocolScope struct{ *pool }

var _ network.ProtocolScope = protocolScope{}

// Protocol returns the protocol's ID.
func (s protocolScope) Protocol() protocol.ID { return protocol.ID(s.name) }
