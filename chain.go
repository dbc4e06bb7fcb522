package rcmgr

// One operation touches the accounts of its chain. It takes its stripe's lock
// once, checks them all, then charges them all: nobody ever sees a charge before
// everything has been checked, so nobody else is refused because of a
// reservation that never was. What is at hand is checked and charged in one pass
// (addAllReady); where that does not do, check decides, and draws credit from
// pools.

import (
	"math"
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

	// A peer's part of a service or protocol stands so far before the whole of it.
	pairsBefore = slotProtocol - slotProtocolPeer

	// Who has no protocol yet stands in transient in its place, standard or allowlisted.
	slotTransient = slotProtocol

	firstShared = slotProtocol
	numShared   = numSlots - firstShared
)

// The accounts before those are the kinds of members of which peaks are kept.
var _ [firstShared]Kind = memberKinds

// chain is the accounts above a scope, nil where there is none.
type chain struct{ at [numSlots]*account }

// peer gives the peer's scope, nil if there is none.
func (c *chain) peer() *peerScope {
	if a := c.at[slotPeer]; a != nil {
		return a.ps
	}
	return nil
}

// clear empties the chain. Slot by slot: all at once would go through the garbage
// collector's hands.
func (c *chain) clear() {
	c.at[slotPeer], c.at[slotProtocolPeer], c.at[slotServicePeer] = nil, nil, nil
	c.at[slotProtocol], c.at[slotService], c.at[slotSystem] = nil, nil, nil
}

// shared gives the part of the chain that consists of shares.
func (c *chain) shared() *[numShared]*account {
	return (*[numShared]*account)(c.at[firstShared:])
}

// first is the account on which a span of a peer or of a shared scope stands.
func (c *chain) first() *account {
	for _, a := range &c.at {
		if a != nil {
			return a
		}
	}
	return nil
}

// onlyPair returns the slot of a service or protocol and that of the peer's part of it as a
// chain.
func (c *chain) onlyPair(slot int) *chain {
	pair := c.only(slot)
	pair.at[slot-pairsBefore] = c.at[slot-pairsBefore]
	return pair
}

// only gives one slot of a chain as a chain.
func (c *chain) only(slot int) *chain {
	one := &chain{}
	one.at[slot] = c.at[slot]
	return one
}

// addAllReady charges a request to the whole chain if all of it has that much to
// spare without asking a pool, and tells whether it did. Credit that lies idle may
// be spent by every request that may fill half of a limit, for a loose pool has
// handed out no more than that. It checks and charges in one pass and takes back
// what did not fit; nobody sees that, for it all is under the stripe's lock. An
// account that holds more than it may of something that is not asked for has
// nothing ready either: check tells the two apart.
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

// peerGot keeps the distributions of what peers hold, and the peer's peaks, after it
// got what a request asked for.
func (st *stripe) peerGot(ps *peerScope, r *request) {
	if r.count != 0 {
		st.peerGotUnit(ps, unit{count: 1, dir: r.dir, both: r.both})
	}
	if r.memory != 0 {
		st.peerGotMemory(ps, r.memory)
	}
}

// request is what one operation asks of every account in its chain: memory, and
// one connection or stream, or one of the two. What is not asked for is zero.
type request struct {
	memory int64 // bytes
	weight int64 // of the memory, in 256ths of a limit

	count, fds  int64 // see unit
	dir, both   dim
	priority    uint8
	grip        grip    // which locks are held while it is decided
	sharedFirst bool    // a move reports the shared scope before the peer's part of it
	observed    kindSet // whose limits are not asked, see observe.go

	// Who asks, as far as others are to get something, too; see fairshare.go.
	asker  *peerScope
	subnet *fairSubnet
}

func memoryRequest(a Admission, size int64, priority uint8) request {
	return request{memory: size, weight: a.weight(priority), priority: priority}
}

// fits tells whether a limit admits the request while nothing is held.
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

// list gives the n things that are asked for, in the order in which they are
// checked. Where there is room for all of them, nobody needs the list.
func (r *request) list() (list [maxItems]item, n int) {
	if r.memory != 0 || r.count == 0 {
		list[0] = item{dimMemory, r.memory} // of nothing, too: there may be no room even for that
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

// askThrough notes on whose behalf a chain is asked: for its peer, if it has one.
func (r *request) askThrough(c *chain) {
	ps := c.peer()
	if ps == nil {
		return
	}
	r.asker = ps
	if r.both == dimStreams { // a connection is of its own subnet
		r.subnet = ps.subnet
	}
}

// bound gives the most that an account may hold after it got an item of this request.
func (r *request) bound(e *engine, a *account, it item) int64 {
	most := r.threshold(e, a, it.d)
	if a.kind <= KindTransient && !r.observed.has(a.kind) && e.rations(r) {
		most = min(most, e.ration(r, a, it))
	}
	return most
}

// threshold returns how much of a limit requests like this one may fill, whoever asks.
func (r *request) threshold(e *engine, a *account, d dim) int64 {
	if r.observed.has(a.kind) {
		return math.MaxInt64
	}
	if d == dimMemory && r.weight != fullWeight {
		return e.admission.threshold(a.limit()[d], r.weight)
	}
	return e.most(a.kind, a.limit(), d)
}

// exact tells whether a request has to be decided on the sum even where the
// stripe holds credit for it: half of the limit may be too much for it, or it
// asks for nothing and wants to know whether there is room.
func (r *request) exact(it item) bool {
	return it.d == dimMemory && (r.weight < fullWeight/2 || it.n == 0)
}

// mayBeReady tells whether what an account has ready decides: all of its limit
// is there for the request, and it asks for something.
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

// takeOnce is take by the limits that the request has to fit now.
func (st *stripe) takeOnce(c *chain, r *request) (verdict, *noted) {
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
	if r.sharedFirst {
		if v, why := st.checkShared(c, r, onlyAsk); v != admitted {
			return v, why
		}
	}
	if why := st.checkPrivate(c, r); why != nil {
		return refused, why
	}
	return st.checkShared(c, r, andDraw)
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

// shares is the shares of a chain that lack credit for a request, by slot.
type shares [numShared]*share

// lacking finds the shares that have to ask their pools.
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

// What checkShared is called for: only to ask, or to get the credit that is lacking, too.
const (
	onlyAsk = false
	andDraw = true
)

// checkShared decides for the shared accounts.
func (st *stripe) checkShared(c *chain, r *request, draw bool) (verdict, *noted) {
	if r.grip == oneStripe {
		// First a look without a lock: what one loaded word refuses is refused.
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

// judge decides for every share that lacks credit, first in the order of the
// chain. With draw, the drawing lock is held and it has been decided that everything fits:
// it draws, and does not ask again what a peer or subnet may have. What others of its
// subnet hold may have changed in between, for that is counted without this lock.
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

// settle decides on the exact sums, under all stripe locks, and gets the credit
// that is lacking by calling in what lies idle.
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
				// A pool of which more than a quarter is used becomes tight, so that
				// the next refusal is cheap. Below, only requests for most of a
				// limit at once are refused; each of them is decided here.
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

// stand puts what is new into a transient and a system scope.
func (c *chain) stand(transient, system *share) {
	c.at[slotTransient], c.at[slotSystem] = &transient.account, &system.account
}

// short tells how much credit is lacking.
func (sh *share) short(it item) int64 {
	d := it.d & dimMask
	return max(0, it.n-(sh.credit[d]-sh.use.of(d)))
}

// lacks tells whether the pool has to be asked.
func (sh *share) lacks(r *request, it item) bool {
	return it.n > sh.credit[it.d]-sh.use.of(it.d) || r.exact(it)
}

// drawSettled hands out what is short, and calls in what lies idle where that
// would pass half of the limit. All stripe locks are held.
func (sh *share) drawSettled(it item, short int64) {
	l := sh.pool.tally(it.d)
	if !l.tight && short <= l.limit/2-l.handed {
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
