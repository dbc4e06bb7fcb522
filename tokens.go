package rcmgr

// Rates in force. A connection or stream takes a token of every rate of every account that it
// enters, and gives none back when it leaves. A bucket is one number, the time at which it will
// be full (internal/pace): it has no timer, and a full bucket of a peer takes no memory.
//
// The half rule of pool.go does not serve tokens. Below half of a limit, stripes may spend credit
// without asking each other because only the sum counts. Of tokens, the time of each counts, too:
// a token that a stripe drew ahead and spent late would be one more than the rate admits. So
// every token is taken from the bucket itself, and the bucket is exact at every moment:
//
//   - The buckets of a shared scope are in its pool, under the token lock, which comes after the
//     stripes' locks and before all others of the engine (I8).
//   - Those of a peer, and of its parts of services and protocols, are under its stripe's lock.
//
// All rates of a request are asked first, and then its counts. The tokens are taken once both
// have admitted it, before any lock is released. So no refusal takes a token, and no request is
// refused for want of a token that is given back later (I3).
//
// An account is not collected before its buckets are full. Otherwise, a peer that leaves and
// comes back would find full ones. While no limit has a rate, stripes are not rated, and nothing
// here is called.

import (
	"slices"
	"sync"
	"time"

	"github.com/weir-p2p/rcmgr/internal/pace"
)

// fullTimes are the times at which the buckets of one account will be full. 0 is full.
type fullTimes [numDims]int64

// last returns the time at which all of them are full.
func (f *fullTimes) last() (at int64) {
	for _, one := range f {
		at = max(at, one)
	}
	return at
}

// poolRates are the rates of a scope that all peers share, and of one peer in it. Both are
// written under all stripe locks, or while there are no shares.
type poolRates struct {
	own, pair *scopeRates
	fullAt    fullTimes // under the token lock
}

// peerRates is what few peers need besides the time of one bucket.
type peerRates struct {
	fullAt fullTimes
	own    *scopeRates           // that SetLimit set
	pairs  map[*share]*fullTimes // of the peer's parts of services and protocols
}

// oneTime is a time at which a bucket will be full, and the dimension of the bucket in its
// upper bits: the rates of most peers have one dimension. The zero value has none.
type oneTime uint64

const oneTimeBits = 61 // 73 years

func oneTimeOf(d dim, at int64) oneTime { return oneTime(d)<<oneTimeBits | oneTime(at) }
func (o oneTime) dim() dim              { return dim(o >> oneTimeBits) }
func (o oneTime) at() int64             { return int64(o & (1<<oneTimeBits - 1)) }

// tokens is the lock of the buckets of all shared scopes, and the clock of all rates.
type tokens struct {
	mu struct {
		sync.Mutex
		latest int64 // the latest time that was read for a bucket of a shared scope
	}
	began time.Time
	clock func() int64 // nil is the time since began
	// byHand: SetLimit has set a rate. It is written under all stripe locks.
	byHand bool
}

// rateBits is the place of the dimensions of rates in engine.setByHand, above those of limits.
const rateBits = numDims

// now reads the clock.
func (t *tokens) now() int64 {
	if t.clock != nil {
		return t.clock()
	}
	return int64(time.Since(t.began)) // by the monotonic clock
}

// timeOf returns a time of the clock as one of the calendar.
func (t *tokens) timeOf(at int64) time.Time { return t.began.Add(time.Duration(at)) }

// noLater returns a time that is not before one that was read earlier. A clock that jumps back
// stands still until it has caught up.
func noLater(latest *int64, now int64) int64 {
	*latest = max(*latest, now)
	return *latest
}

// rates returns the rates of an account. The lock of its stripe is held.
func (st *stripe) rates(a *account) *scopeRates {
	switch {
	case a.kind == KindPeer && a.sticky:
		if a.ps.rare == nil || a.ps.rare.rares == nil || a.ps.rare.rates == nil {
			return nil
		}
		return a.ps.rare.rates.own
	case a.kind == KindPeer:
		return st.engine.limits.Load().ratesOf(KindPeer, string(a.ps.id))
	case a.share.pool.rates == nil:
		return nil
	case a.ps != nil:
		return a.share.pool.rates.pair
	}
	return a.share.pool.rates.own
}

// fullAt returns the time at which a bucket of an account will be full, 0 if it is full. For a
// share, the token lock is held.
func (a *account) fullAt(d dim) int64 {
	switch {
	case a.ps == nil:
		return a.share.pool.rates.fullAt[rateAt(d)]
	case a.ps.rare == nil:
		return 0
	case a.kind == KindPeer && a.ps.rare.oneRate.dim() == d:
		return a.ps.rare.oneRate.at()
	case a.ps.rare.rares == nil || a.ps.rare.rates == nil:
		return 0
	case a.kind == KindPeer:
		return a.ps.rare.rates.fullAt[rateAt(d)]
	}
	if times := a.ps.rare.rates.pairs[a.share]; times != nil {
		return times[rateAt(d)]
	}
	return 0
}

// setFullAt sets that time. now is the time by which full buckets are forgotten.
func (a *account) setFullAt(d dim, at, now int64) {
	if a.ps == nil {
		a.share.pool.rates.fullAt[rateAt(d)] = at
		return
	}
	if a.ps.rare == nil {
		a.ps.rare = new(rarePeer)
	}
	rare := a.ps.rare
	if one := rare.oneRate; a.kind == KindPeer && (one.dim() == d || one.at() <= now) &&
		(rare.rares == nil || rare.rates == nil || rare.rates.fullAt[rateAt(d)] <= now) {
		rare.oneRate = oneTimeOf(d, at)
		return
	}
	rates := rare.makeRates()
	times := &rates.fullAt
	if a.kind != KindPeer {
		if times = rates.pairs[a.share]; times == nil {
			times = new(fullTimes)
			if rates.pairs == nil {
				rates.pairs = make(map[*share]*fullTimes)
			}
			rates.pairs[a.share] = times
		}
	}
	times[rateAt(d)] = at
}

// makeRates returns rates, and makes them if there are none.
func (r *rarePeer) makeRates() *peerRates {
	more := r.makeMore()
	if more.rates == nil {
		more.rates = new(peerRates)
	}
	return more.rates
}

// pacing is a request at the rates of a chain.
type pacing struct {
	now    int64
	locked bool // the token lock is held
	n      int
	asked  [2 * numSlots]pacedItem // the first n
}

// pacedItem is one rate that a request needs a token of.
type pacedItem struct {
	a      *account
	bucket *pace.Bucket
	fullAt int64 // when the bucket will be full; lacks reads it
	d      dim
}

// pace finds the rates that concern a request, in the order in which they refuse. If a shared
// scope has one, it takes the token lock, which done releases.
func (st *stripe) pace(c *chain, r *request, p *pacing) (any bool) {
	shared := false
	if r.sharedFirst {
		shared = p.gather(st, c.at[firstShared:], r)
		p.gather(st, c.at[:firstShared], r)
	} else {
		p.gather(st, c.at[:firstShared], r)
		shared = p.gather(st, c.at[firstShared:], r)
	}
	if p.n == 0 {
		return false
	}
	p.read(st, shared)
	return true
}

// read reads the clock. If a shared scope has a rate, it takes the token lock before.
func (p *pacing) read(st *stripe, shared bool) {
	t := &st.engine.tokens
	if shared {
		t.mu.Lock()
		p.locked, p.now = true, noLater(&t.mu.latest, t.now())
	} else {
		p.now = t.now()
	}
	p.now = noLater(&st.paced, p.now)
}

// gather adds the rates of some accounts of a chain, and reports whether there are any.
func (p *pacing) gather(st *stripe, accounts []*account, r *request) bool {
	before := p.n
	for _, a := range accounts {
		if a == nil {
			continue
		}
		if rates := st.rates(a); rates != nil {
			p.needs(a, rates, r.dir)
			p.needs(a, rates, r.both)
		}
	}
	return p.n > before
}

// needs adds one rate of an account, if it has that.
func (p *pacing) needs(a *account, rates *scopeRates, d dim) {
	if b := &rates.buckets[rateAt(d)]; b.Limits() {
		it := &p.asked[p.n]
		it.a, it.bucket, it.d = a, b, d
		p.n++
	}
}

// done releases the token lock.
func (p *pacing) done(st *stripe) {
	if p.locked {
		st.engine.tokens.mu.Unlock()
	}
}

// lacks returns the first rate that has no token for a request, nil if all have one.
func (p *pacing) lacks(r *request) *pacedItem {
	for i := range p.asked[:p.n] {
		it := &p.asked[i]
		it.fullAt = it.a.fullAt(it.d)
		if !it.bucket.Has(it.fullAt, p.now) && !r.observed.has(it.a.kind) {
			return it
		}
	}
	return nil
}

// take takes the tokens of a request that is admitted.
func (p *pacing) take() {
	for i := range p.asked[:p.n] {
		it := &p.asked[i]
		it.a.setFullAt(it.d, it.bucket.Take(it.fullAt, p.now), p.now)
	}
}

// takePaced is takeOnce where a rate may refuse.
func (st *stripe) takePaced(c *chain, r *request) (verdict, *noted) {
	var p pacing
	if !st.pace(c, r, &p) {
		return st.takeCounted(c, r)
	}
	defer p.done(st)
	if it := p.lacks(r); it != nil {
		r.askThrough(c)
		return refused, st.refuseRate(it, r, &p)
	}
	v, why := st.takeCounted(c, r)
	if v == admitted {
		p.take()
	}
	return v, why
}

// glanceAtRates returns the refusal of a connection by a rate of the standard scopes, nil if there
// is none. It takes no token.
func (st *stripe) glanceAtRates(r *request) (why *noted) {
	var c chain
	c.stand(st.fixed[KindTransient], st.fixed[KindSystem])
	var p pacing
	if st.pace(&c, r, &p) {
		defer p.done(st)
		if it := p.lacks(r); it != nil {
			why = st.refuseRate(it, r, &p)
		}
	}
	return why
}

// refuseRate notes that a rate refuses a request.
func (st *stripe) refuseRate(it *pacedItem, r *request, p *pacing) *noted {
	a, d := it.a, it.d
	fullAt := it.bucket.Fit(a.fullAt(d), p.now)
	if fullAt != a.fullAt(d) {
		a.setFullAt(d, fullAt, p.now)
	}
	next := st.engine.tokens.timeOf(it.bucket.Next(fullAt, p.now)).UnixNano()
	why := st.note(refusal{&a.deny().name, d, CauseRate, r.priority, next, r.count, it.bucket.Burst()}, r, a)
	if st.trace != nil {
		why.holding(a.use.amounts())
	}
	return why
}

// setRates puts the rates of a scope that all peers share in force, and those of one peer in it.
// Tokens that were taken stay taken, but no bucket lacks more than it holds. That of a peer is
// put right when it refuses for the first time. The locks are those of pool.setLimit; no stripe
// takes a token from the pool meanwhile.
func (p *pool) setRates(own, pair *scopeRates) {
	switch {
	case p.rates != nil:
		p.rates.own, p.rates.pair = own, pair
		if own == nil {
			break
		}
		for i, at := range p.rates.fullAt {
			if b := own.buckets[i]; b.Limits() {
				p.rates.fullAt[i] = b.Fit(at, p.engine.tokens.now())
			}
		}
	case own != nil || pair != nil:
		p.rates = &poolRates{own: own, pair: pair}
	}
}

// renewRates puts the rates of a book in force for a pool, except that a scope which SetLimit
// gave its limit keeps its own.
func (p *pool) renewRates(by *limitBook) {
	own := by.ratesOf(p.kind, p.name)
	if p.sticky {
		own = p.ownRates()
	}
	var pair *scopeRates
	if p.kind > KindAllowlistedTransient {
		pair = by.ratesOf(p.kind.ofPeer(), p.name)
	}
	p.setRates(own, pair)
}

func (p *pool) ownRates() *scopeRates {
	if p.rates == nil {
		return nil
	}
	return p.rates.own
}

func (p *pool) pairRates() *scopeRates {
	if p.rates == nil {
		return nil
	}
	return p.rates.pair
}

// limitWithRates returns the limit of a peer. The lock of its stripe is held.
func (ps *peerScope) limitWithRates() BaseLimit {
	l := ps.limit().baseLimit()
	l.Rates = ps.st.rates(&ps.account).given()
	return l
}

// limitWithRates returns the limit of the scope. All stripe locks are held, or that of one where
// it has a share.
func (p *pool) limitWithRates() BaseLimit {
	l := p.limit.baseLimit()
	l.Rates = p.ownRates().given()
	return l
}

// pairLimitWithRates returns the limit of one peer in the scope. All stripe locks are held.
func (p *pool) pairLimitWithRates() BaseLimit {
	l := p.pairLimit.baseLimit()
	l.Rates = p.pairRates().given()
	return l
}

// setRated notes whether any limit in force has a rate, or the gates have one of streams. All
// stripe locks are held, or the manager is still being made.
func (e *engine) setRated() {
	rated := e.limits.Load().rates != nil || e.tokens.byHand
	for i := range e.stripes {
		st := &e.stripes[i]
		st.rated = rated
		st.plain = !rated && e.trace == nil && e.fair == nil && !st.closed && e.earmarks == nil && !e.paces(dimStreamsIn)
	}
}

// rateByHand returns the rates of a limit that SetLimit is about to set for a scope of kind k, and
// notes that there are some.
func (e *engine) rateByHand(k Kind, limit Limit) *scopeRates {
	r := newScopeRates(ratesOf(limit))
	if r != nil {
		e.setByHand[k].Or(uint32(r.dims()) << rateBits)
		e.inOneCut(func() {
			e.tokens.byHand = true
			e.setRated()
		})
	}
	return r
}

// owes reports whether an account has a bucket that is not full. The lock of its stripe is held.
func (st *stripe) owes(a *account) bool {
	if !st.rated || st.closed {
		return false
	}
	t := &st.engine.tokens
	now := max(st.paced, t.now())
	if a.ps == nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		return a.share.pool.rates != nil && a.share.pool.rates.fullAt.last() > max(now, t.mu.latest)
	}
	rare := a.ps.rare
	switch {
	case rare == nil:
		return false
	case a.kind == KindPeer && rare.oneRate.at() > now:
		return true
	case rare.rares == nil || rare.rates == nil:
		return false
	case a.kind == KindPeer:
		return rare.rates.fullAt.last() > now
	}
	times := rare.rates.pairs[a.share]
	return times != nil && times.last() > now
}

// fillBuckets makes all buckets of a peer that is collected full. They are, unless no rate was in
// force, so that nobody asked.
func (ps *peerScope) fillBuckets() {
	if rare := ps.rare; rare != nil {
		rare.oneRate = 0
		if rare.rares != nil && rare.rates != nil {
			rare.rates.fullAt = fullTimes{}
		}
	}
}

// fillBuckets is peerScope.fillBuckets for a service or protocol. It takes the token lock.
func (p *pool) fillBuckets() {
	if p.rates == nil {
		return
	}
	mu := &p.engine.tokens.mu
	mu.Lock()
	defer mu.Unlock()
	p.rates.fullAt = fullTimes{}
}

// dropPairRates forgets the buckets of a peer's part of a service or protocol, which are full.
func dropPairRates(a *account) {
	if rare := a.ps.rare; rare != nil && rare.rares != nil && rare.rates != nil {
		delete(rare.rates.pairs, a.share)
	}
}

// setPeerRates gives a peer rates of its own, with which SetLimit replaces those of the book. The
// lock of its stripe is held.
func (ps *peerScope) setPeerRates(own *scopeRates) {
	switch {
	case ps.rare != nil && ps.rare.rares != nil && ps.rare.rates != nil:
		ps.rare.rates.own = own
	case own != nil:
		if ps.rare == nil {
			ps.rare = new(rarePeer)
		}
		ps.rare.makeRates().own = own
	}
}

// dropFull releases the memory of buckets of a peer that are full again.
func (st *stripe) dropFull(ps *peerScope) {
	if rare := ps.rare; st.rated && rare != nil && rare.rares == nil && !st.owes(&ps.account) {
		ps.rare = nil
	}
}

// latestTime returns the time of all rates. All stripe locks are held.
func (e *engine) latestTime() int64 {
	now := e.tokens.mu.latest
	if !e.stripes[0].rated {
		return now
	}
	for i := range e.stripes {
		if n := e.stripes[i].awakened; n != nil {
			now = max(now, n.paced)
		}
	}
	return max(now, e.tokens.now())
}

// ratedPeers returns how many of a number of peers may have rates.
func (e *engine) ratedPeers(peers int) int {
	if b := e.limits.Load(); b.rates == nil {
		return 0
	} else if of := b.rates[KindPeer]; of.unnamed == nil {
		return min(peers, len(of.named))
	}
	return peers
}

// bucketCut are the rates of a scope and its buckets, copied in a cut. rates is nil if there is no
// rate. A nil *bucketCut has none, either.
type bucketCut struct {
	rates  *scopeRates
	fullAt fullTimes
}

// bucketCut copies the buckets of a peer, or of its part of a service or protocol. The lock of
// its stripe is held.
func (a *account) bucketCut() (b bucketCut) {
	st := a.ps.st
	if !st.rated {
		return b
	}
	if b.rates = st.rates(a); b.rates != nil {
		for d := dimStreamsIn; d < dimFD; d++ {
			b.fullAt[rateAt(d)] = a.fullAt(d)
		}
	}
	return b
}

// bucketCut copies the buckets of the scope. All stripe locks are held.
func (p *pool) bucketCut() (b bucketCut) {
	if p.rates != nil {
		b = bucketCut{p.rates.own, p.rates.fullAt}
	}
	return b
}

// fullPairBuckets returns the buckets of a peer that has no part in the scope yet.
func (p *pool) fullPairBuckets() bucketCut { return bucketCut{rates: p.pairRates()} }

// fullBuckets returns the buckets of a scope that is not there yet.
func (b *limitBook) fullBuckets(k Kind, name string) bucketCut {
	return bucketCut{rates: b.ratesOf(k, name)}
}

// tokens returns the tokens of full buckets, 0 without a rate, and those that are in the buckets
// now. All stripe locks are held.
func (p *pool) tokens() (burst, left amounts) {
	b := p.bucketCut()
	if b.rates == nil {
		return burst, left
	}
	now := max(p.engine.tokens.now(), p.engine.tokens.mu.latest)
	for d := dimStreamsIn; d < dimFD; d++ {
		if s := b.state(d, now); b.rates.buckets[rateAt(d)].Limits() {
			burst[d], left[d] = s.Burst, s.Left
		}
	}
	return burst, left
}

// concerned returns the dimensions in which a request needs a token.
func (b *bucketCut) concerned(r *request) (dims []dim) {
	if b == nil || r.count == 0 {
		return nil
	}
	for _, d := range [2]dim{r.dir, r.both} {
		if b.rates.dims().has(d) {
			dims = append(dims, d)
		}
	}
	return dims
}

// state returns one rate and what is left of it.
func (b *bucketCut) state(d dim, now int64) RateState {
	of, rates := b.rates.buckets[rateAt(d)], b.rates.limits.all()
	return RateState{limitNames[d], rates[slices.Index(rateOrder[:], d)].PerSecond, of.Burst(), of.Left(b.fullAt[rateAt(d)], now)}
}

// states returns all rates and what is left of them.
func (b *bucketCut) states(now int64) (all []RateState) {
	for _, d := range rateOrder {
		if b.rates.dims().has(d) {
			all = append(all, b.state(d, now))
		}
	}
	return all
}

// next returns the time at which a bucket has a token again.
func (b *bucketCut) next(d dim, now int64, t *tokens) time.Time {
	of := b.rates.buckets[rateAt(d)]
	return t.timeOf(of.Next(of.Fit(b.fullAt[rateAt(d)], now), now))
}

// RateState is one rate of a scope, and what is left of its burst.
type RateState struct {
	// Name is the name of the rate in configurations, such as "StreamsInbound".
	Name      string
	PerSecond float64
	Burst     int64 // the tokens of a full bucket
	Left      int64 // the tokens that are in it now
}
