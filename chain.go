package rcmgr

// An operation touches the accounts of its chain. It takes its stripe's lock once, checks
// all accounts, and then charges all of them. No other operation sees a charge before
// everything has been checked, so none is refused because of a reservation that is refused
// itself. addAllReady checks and charges in one pass what needs no pool; everything else is
// for check, which draws credit from pools.

import (
	"math"

	"github.com/weir-p2p/rcmgr/internal/groups"
)

// The slots of a chain, in the order in which they are checked and reported:
// first accounts that lie in one stripe, then shares of pools.
const (
	slotPeer = iota
	slotProtocolPeer
	slotServicePeer
	slotProtocol
	slotService
	slotSystem // standard or allowlisted
	numSlots

	// pairsBefore is the distance from the slot of a peer's part to that of the service or
	// protocol.
	pairsBefore = slotProtocol - slotProtocolPeer

	// What has no protocol yet stands in transient in its place, standard or allowlisted.
	slotTransient = slotProtocol

	firstShared = slotProtocol
	numShared   = numSlots - firstShared
)

// chain is the accounts above a scope, nil where there is none.
type chain struct{ at [numSlots]*account }

// peer returns the peer's scope, or nil if there is none.
func (c *chain) peer() *peerScope {
	if a := c.at[slotPeer]; a != nil {
		return a.ps
	}
	return nil
}

// clear empties the chain. One store per slot: assigning chain{} would run the bulk write
// barrier.
func (c *chain) clear() {
	c.at[slotPeer], c.at[slotProtocolPeer], c.at[slotServicePeer] = nil, nil, nil
	c.at[slotProtocol], c.at[slotService], c.at[slotSystem] = nil, nil, nil
}

// shared returns the part of the chain that consists of shares.
func (c *chain) shared() *[numShared]*account {
	return (*[numShared]*account)(c.at[firstShared:])
}

// first returns the account on which a span of a peer or of a shared scope stands.
func (c *chain) first() *account {
	for _, a := range &c.at {
		if a != nil {
			return a
		}
	}
	return nil
}

// onlyPair returns a chain of a service or protocol and of the peer's part of it.
func (c *chain) onlyPair(slot int) *chain {
	pair := c.only(slot)
	pair.at[slot-pairsBefore] = c.at[slot-pairsBefore]
	return pair
}

// only returns a chain of one slot.
func (c *chain) only(slot int) *chain {
	one := &chain{}
	one.at[slot] = c.at[slot]
	return one
}

// addAllReady charges a request to the whole chain if every account has that much to spare
// without asking a pool, and reports whether it did. Any request that may fill half of a
// limit may spend idle credit, because a loose pool has handed out no more than half. It
// charges as it checks, and takes the charges back at the first account that has too little;
// the stripe's lock hides that. An account over its limit in another dimension also fails
// here, and check sorts that out.
func (c *chain) addAllReady(r *request) bool {
	for i, a := range &c.at {
		if a == nil {
			continue
		}
		if !a.hasReady(r) {
			for _, charged := range c.at[:i] {
				if charged != nil {
					charged.use.refund(r)
				}
			}
			return false
		}
		a.use.charge(r)
	}
	return true
}

func (a *account) hasReady(r *request) bool {
	ready, use := a.ready, &a.use
	return r.count <= ready[r.dir&dimMask]-int64(use.counts[r.dir&dimMask]) &&
		r.count <= ready[r.both&dimMask]-int64(use.counts[r.both&dimMask]) &&
		r.fds <= ready[dimFD]-int64(use.counts[dimFD]) &&
		r.memory <= ready[dimMemory]-use.memory
}

// addAll charges everything that a request asks for to the whole chain.
func (c *chain) addAll(r *request) {
	for _, a := range &c.at {
		if a != nil {
			a.use.charge(r)
		}
	}
}

// peerGot brings the distributions of what peers hold, and the peer's peaks, up to date after
// the peer got what a request asked for.
func (st *stripe) peerGot(ps *peerScope, r *request) {
	if r.count != 0 {
		st.peerGotUnit(ps, unit{count: 1, fds: uint8(r.fds), dir: r.dir, both: r.both})
	}
	if r.memory != 0 {
		st.peerGotMemory(ps, r.memory)
		st.most[slotPeer].raiseMemory(ps.use.memory)
	}
}

// request is what one operation asks of every account in its chain: memory, one connection
// or stream, or both. What is not asked for is zero.
type request struct {
	memory int64 // bytes
	weight int64 // of the memory, in 256ths of a limit

	count, fds  int64 // see unit
	dir, both   dim
	priority    uint8
	grip        grip       // which locks are held while it is decided
	sharedFirst bool       // a move reports the shared scope before the peer's part of it
	earmarks    earmarkSet // of which the request may take the parts
	observed    kindSet    // the kinds whose limits are not asked, see refusing.go

	// The peer and the subnet that ask, or nil. The rules of ration.go may keep for others what
	// they ask for.
	asker  *peerScope
	subnet *groups.Seat
}

func memoryRequest(a Admission, size int64, priority uint8) request {
	return request{memory: size, weight: a.weight(priority), priority: priority}
}

// fits reports whether a limit admits the request while nothing is held.
func (r *request) fits(limit *amounts) bool {
	return r.count <= limit[r.dir&dimMask] && r.count <= limit[r.both&dimMask] &&
		r.fds <= limit[dimFD] && r.memory <= limit[dimMemory]
}

// item is an amount of one dimension.
type item struct {
	d dim
	n int64
}

// maxItems is the most that a request asks for: memory, a direction, the total, a
// descriptor.
const maxItems = 4

// list returns the n items that are asked for, in the order in which they are checked.
func (r *request) list() (list [maxItems]item, n int) {
	if r.memory != 0 || r.count == 0 {
		list[0] = item{dimMemory, r.memory} // 0 bytes, too: a scope above its limit refuses even that
		n = 1
	}
	if r.count != 0 {
		list[n] = item{r.dir, r.count}
		list[n+1] = item{r.both, r.count}
		n += 2
	}
	if r.fds != 0 {
		list[n] = item{dimFD, r.fds}
		n++
	}
	return list, n
}

// askThrough notes the peer on whose behalf a chain is asked, if the chain has one.
func (r *request) askThrough(c *chain) {
	ps := c.peer()
	if ps == nil {
		return
	}
	r.asker = ps
	if r.both == dimStreams { // a connection has a subnet of its own, which its caller sets
		r.subnet = ps.subnet
	}
	if ps.st.engine.earmarks != nil {
		r.earmarks = ps.earmarksFor(r, c.at[slotProtocol])
	}
}

// bound returns the most that an account may hold once an item of this request is admitted.
func (r *request) bound(e *engine, a *account, it item) int64 {
	most := r.threshold(e, a, it.d)
	if a.kind <= KindTransient && !r.observed.has(a.kind) {
		if e.rations(r) {
			most = min(most, e.ration(r, a, it))
		}
		if e.earmarks != nil {
			most = min(most, e.unmarked(r, a, it.d))
		}
	}
	return most
}

// threshold returns how much of a limit a request like this one may fill, whichever peer asks.
func (r *request) threshold(e *engine, a *account, d dim) int64 {
	if r.observed.has(a.kind) {
		return math.MaxInt64
	}
	if d == dimMemory && r.weight != fullWeight {
		return e.admission.threshold(a.limit()[d], r.weight)
	}
	return e.most(a.kind, a.limit(), d)
}

// exact reports whether a request has to be decided on the sum even though the stripe holds
// credit for it. That is so if the request may not fill half of the limit, and if it asks for 0
// bytes, in order to learn whether there is room.
func (r *request) exact(it item) bool {
	return it.d == dimMemory && (r.weight < fullWeight/2 || it.n == 0)
}

// mayBeReady reports whether what an account has ready can decide the request: it may fill all
// of a limit, and it asks for something.
func (r *request) mayBeReady() bool {
	return r.weight == fullWeight && r.memory|r.count != 0
}

// take decides a request and, if it is admitted, charges the whole chain.
func (st *stripe) take(c *chain, r *request) (verdict, *noted) {
	for {
		v, why := st.takeOnce(c, r)
		if v == admitted || !st.retryUnobserved(r, v, why) {
			return v, why
		}
	}
}

// takeOnce is one attempt of take. It does not ask the limits that are observed for r.
func (st *stripe) takeOnce(c *chain, r *request) (verdict, *noted) {
	if st.rated && r.count != 0 {
		return st.takePaced(c, r)
	}
	return st.takeCounted(c, r)
}

// takeCounted is takeOnce without the rates.
func (st *stripe) takeCounted(c *chain, r *request) (verdict, *noted) {
	if !r.mayBeReady() || !c.addAllReady(r) {
		if v, why := st.check(c, r); v != admitted {
			return v, why
		}
		c.addAll(r)
	}
	if ps := c.peer(); ps != nil {
		st.peerGot(ps, r)
	}
	if r.observed != 0 {
		st.exceeded()
	}
	st.traceChain(c, r, (*tracer).granted)
	return admitted, nil
}

// check decides a request: if it is admitted, every account has room or credit for it.
// Where all stripe locks are held, the verdict is never undecided. A refusal leaves every
// account as it was (I3), and is valid until the stripe notes the next one.
func (st *stripe) check(c *chain, r *request) (verdict, *noted) {
	r.askThrough(c)
	why := st.checkPrivate(c, r)
	switch {
	case why == nil:
		return st.checkShared(c, r, andDraw)
	case r.sharedFirst:
		// Where checkShared admits, it notes nothing, so why is still valid.
		if v, why := st.checkShared(c, r, onlyAsk); v != admitted {
			return v, why
		}
	}
	return refused, why
}

// checkPrivate returns the refusal by an account that lies in this stripe alone, nil if
// there is none.
func (st *stripe) checkPrivate(c *chain, r *request) *noted {
	items, n := r.list()
	for _, a := range c.at[:firstShared] {
		if a == nil {
			continue
		}
		for _, it := range items[:n] {
			if use := a.use.of(it.d); it.n > r.bound(st.engine, a, it)-use {
				return st.refuse(r, a, it, use)
			}
		}
	}
	return nil
}

// shares has the shares of a chain that lack credit for a request, by slot.
type shares [numShared]*share

// lacking returns the shares that have to ask their pools.
func (c *chain) lacking(r *request) (list shares, some bool) {
	items, n := r.list()
	for i, a := range c.shared() {
		if a == nil {
			continue
		}
		for _, it := range items[:n] {
			if a.share.lacks(r, it) {
				list[i], some = a.share, true
			}
		}
	}
	return list, some
}

// checkShared only asks, or also draws the credit that is lacking.
const (
	onlyAsk = false
	andDraw = true
)

// checkShared decides for the shared accounts.
func (st *stripe) checkShared(c *chain, r *request, draw bool) (verdict, *noted) {
	if r.grip == oneStripe {
		// First without the drawing lock. The sum and the mark of a tight pool are one word: if
		// that refuses, no lock changes the answer.
		if v, why := st.judge(c, r, onlyAsk); v != admitted || !draw {
			return v, why
		}
	}
	list, some := c.lacking(r)
	switch {
	case !some:
		return admitted, nil // there is credit for it (I1)
	case r.grip == allStripes:
		if why := st.settle(&list, r, draw); why != nil {
			return refused, why
		}
		return admitted, nil
	}
	st.engine.drawing.Lock()
	v, why := st.judge(c, r, onlyAsk)
	if v == admitted {
		st.judge(c, r, andDraw)
	}
	st.engine.drawing.Unlock()
	return v, why
}

// judge decides for every share that lacks credit, in the order of the chain. With draw, the
// drawing lock is held and everything is known to fit, so judge draws and does not ask again
// what the peer or the subnet may have: that may have changed in between, since what a
// subnet holds is counted without this lock.
func (st *stripe) judge(c *chain, r *request, draw bool) (verdict, *noted) {
	items, n := r.list()
	for _, a := range c.shared() {
		if a == nil {
			continue
		}
		sh := a.share
		for _, it := range items[:n] {
			if !sh.lacks(r, it) {
				continue
			}
			var bound int64
			if draw {
				bound = r.threshold(st.engine, &sh.account, it.d)
			} else {
				bound = r.bound(st.engine, &sh.account, it)
			}
			l := sh.pool.tally(it.d)
			grant, v := l.draw(it.n, sh.short(it), bound)
			switch {
			case v == refused:
				return refused, st.refuse(r, &sh.account, it, l.handed)
			case v == undecided:
				return undecided, nil
			case draw && grant > 0:
				sh.drawLocked(it, grant)
				st.draws++
			}
		}
	}
	return admitted, nil
}

// settle decides on the exact sums, under all stripe locks. With draw, it gets the credit that
// is lacking by calling in credit that lies idle.
func (st *stripe) settle(list *shares, r *request, draw bool) *noted {
	items, n := r.list()
	st.settled++
	for _, sh := range list {
		if sh == nil {
			continue
		}
		for _, it := range items[:n] {
			if !sh.lacks(r, it) {
				continue
			}
			used := sh.pool.usedOf(it.d)
			if it.n <= r.bound(st.engine, &sh.account, it)-used {
				continue
			}
			if !r.exact(it) {
				// A pool of which more than a quarter is used becomes tight, so that the next
				// refusal is cheap. Below a quarter, only a request for most of a limit at
				// once is refused, and each of those is decided here.
				sh.pool.recall(it.d, 0)
			}
			return st.refuse(r, &sh.account, it, used)
		}
	}
	for _, sh := range list {
		if sh == nil || !draw {
			continue
		}
		for _, it := range items[:n] {
			if short := sh.short(it); short > 0 {
				sh.drawSettled(it, short)
			}
		}
	}
	return nil
}

// charge adds what a request asks for.
func (u *held) charge(r *request) {
	u.counts[r.dir&dimMask] += int32(r.count)
	u.counts[r.both&dimMask] += int32(r.count)
	u.counts[dimFD] += int32(r.fds)
	u.memory += r.memory
}

// refund takes away what a request asked for.
func (u *held) refund(r *request) {
	u.counts[r.dir&dimMask] -= int32(r.count)
	u.counts[r.both&dimMask] -= int32(r.count)
	u.counts[dimFD] -= int32(r.fds)
	u.memory -= r.memory
}

// stand puts a new connection or stream into a transient and a system scope.
func (c *chain) stand(transient, system *share) {
	c.at[slotTransient], c.at[slotSystem] = &transient.account, &system.account
}

// short returns how much credit is lacking.
func (sh *share) short(it item) int64 {
	d := it.d & dimMask
	return max(0, it.n-(sh.credit[d]-sh.use.of(d)))
}

// lacks reports whether the pool has to be asked.
func (sh *share) lacks(r *request, it item) bool {
	return it.n > sh.credit[it.d]-sh.use.of(it.d) || r.exact(it)
}

// drawSettled hands out what is short. If that would pass half of the limit, it calls in the
// credit that lies idle. All stripe locks are held.
func (sh *share) drawSettled(it item, short int64) {
	l := sh.pool.tally(it.d)
	if l.hasBelowHalf(short) {
		sh.drawLocked(it, short)
		return
	}
	sh.pool.recall(it.d, it.n)
	sh.addCredit(it.d, it.n)
}

// delta returns what a request asks for, for the tracer.
func (r *request) delta() *traceDelta { return &traceDelta{r.amounts(), r.priority} }

// amounts returns what a request asks for by dimension.
func (r *request) amounts() amounts {
	var u held
	u.charge(r)
	return u.amounts()
}

// peerGotMemory keeps the distribution of what peers hold, and the peer's peak, after it got n
// bytes.
func (st *stripe) peerGotMemory(ps *peerScope, n int64) {
	now := ps.use.memory
	if now > ps.peak.memory {
		ps.peak.memory = now
	}
	st.peerMemory.MoveMemory(now-n, now)
}
