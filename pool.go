package rcmgr

// A scope that all peers share has a pool: its limit, and the credit that it has handed out
// to the stripes. Each stripe has a share of the pool: what the stripe's members use of the
// scope, and the credit that the stripe holds.
//
// A limit bounds the sum over all stripes, but no common operation may take all locks. The
// half rule says when a stripe may hold credit that it does not use:
//
//   - Loose: while no more than half of the limit is handed out, a stripe that runs short
//     draws a batch, and spends it under its own lock alone. No request that fits below half
//     is refused, at any priority that may fill half, so stripes need not agree below half.
//   - A request that needs more is decided on the exact sum. Under all stripe locks the idle
//     credit is called in, and the request is decided and charged at once. (Calling credit in,
//     releasing the locks and trying again has no bound: others may draw in between.) Refusals
//     are decided this way, too, because what a loose pool has handed out does not tell what is held.
//   - Tight: if more than a quarter is in use then, stripes draw exactly what they need and
//     return at once what they release. The credit handed out equals use, and every decision
//     is made on the exact sum under a short lock. (If the request alone made a pool tight, one
//     large request could flip it back and forth.)
//   - A tight pool of which less than a quarter is used becomes loose again.
//
// Each dimension of a pool is loose or tight on its own. The rules are in tally and word,
// without locks or atomics, so that explore_test.go can run the same code through all
// interleavings.

import (
	"sync"
	"sync/atomic"
)

// batches is the number of batches per stripe that make up a limit. A stripe keeps at most
// two of them idle, so at most an eighth of a limit lies idle.
const batches = 16

// batchOf returns the credit that a stripe draws ahead. It is 0 if the limit is too small for
// that; the pool is always tight then.
func batchOf(limit int64, stripes int) int64 {
	return limit / int64(batches*stripes)
}

// tally is the state of one dimension of a pool.
//
// I1: for every share, use ≤ credit; the credit of all shares is handed;
// handed ≤ limit, unless the limit was lowered below use, or is only observed.
type tally struct {
	limit  int64 // the most that may be handed out
	batch  int64
	handed int64 // credit handed out to all stripes
	tight  bool  // no share holds idle credit: handed is the exact use
}

// draw decides a request for n by a share that lacks short of the credit for it, 0 if it has
// enough. The scope may hold at most bound afterwards. draw returns the credit to hand out,
// at least short. If that is handed out, the drawing lock has to be held from before draw.
func (l tally) draw(n, short, bound int64) (grant int64, v verdict) {
	if l.tight {
		if n > bound-l.handed {
			return 0, refused
		}
		return short, admitted
	}
	// What is handed out is at least what is used. While it stays within half of the limit
	// and within the bound, the request certainly fits.
	room := min(l.limit/2, bound) - l.handed
	if short > room {
		return 0, undecided
	}
	if short > 0 && l.batch > short && l.batch <= room {
		return l.batch, admitted
	}
	return short, admitted
}

// giveBack takes credit back from a share.
func (l tally) giveBack(n int64) tally {
	l.handed -= n
	if l.tight && l.handed < looseBelow(l.limit, l.batch) {
		l.tight = false
	}
	return l
}

// looseBelow returns the least that a tight pool hands out. With less it becomes loose.
func looseBelow(limit, batch int64) int64 {
	if batch == 0 {
		return 0
	}
	return limit / 4
}

// settle takes in all idle credit, under all stripe locks. What is handed out is used from now
// on, and the pool is tight if that is more than a quarter.
func (l tally) settle(used int64) tally {
	l.handed = used
	l.tight = l.batch == 0 || used > l.limit/4
	return l
}

// keep returns the idle credit that a share may hold.
func (l tally) keep() int64 {
	if l.tight {
		return 0
	}
	return 2 * l.batch
}

// hasBelowHalf reports whether draw admits a request that may fill all of the limit while the
// pool is loose and stays so.
func (l tally) hasBelowHalf(short int64) bool { return !l.tight && short <= l.limit/2-l.handed }

// word is what is handed out of one dimension, and whether the pool is tight, as a pool
// stores the two: handed<<1 | tight. What it decides is what tally decides where that takes
// little: its methods are short enough to be inlined, and load no more of the pool than they
// are given. TestTheShortWaysOfAPoolDecideAsItsTallyDoes shows that the two agree.
type word uint64

// tightMark is the part of a word that says that the pool is tight.
const tightMark = 1

func (w word) handed() int64 { return int64(w >> 1) }

func (w word) tight() bool { return w&tightMark != 0 }

// word is the inverse of pool.tally.
func (l tally) word() word {
	w := word(l.handed) << 1
	if l.tight {
		w |= tightMark
	}
	return w
}

// hasOne reports whether draw admits a request for one, by a share without credit, that may
// fill all of the limit. The answer is certain only if the drawing lock is held.
func (w word) hasOne(limit int64) bool {
	if !w.tight() {
		limit /= 2
	}
	return w.handed() < limit
}

// hasTight reports whether the pool is tight and draw admits a request for n that may fill
// all of the limit. The answer is certain only if the drawing lock is held.
func (w word) hasTight(n, limit int64) bool { return w.tight() && n <= limit-w.handed() }

// full reports whether draw refuses a request for one that may fill all of the limit.
func (w word) full(limit int64) bool { return w.tight() && w.handed() >= limit }

// less is giveBack for a pool that is tight and stays tight. The second result reports whether
// that is so; if not, the first has no meaning. looseBelow is that of the pool.
func (w word) less(n, looseBelow int64) (now word, tight bool) {
	now = w - word(n)<<1
	return now, now.tight() && now.handed() >= looseBelow
}

// drawingLock is held to draw credit from any pools, and to make a pool loose. A decision under
// it stays true until the credit is drawn, because giving credit back without it only makes
// more of it. One lock serves all pools: a request asks all of its pools before it draws from
// one, and would wait for three locks instead of one (DECISIONS.md). The lock is on a cache
// line of its own.
type drawingLock struct {
	_ [64]byte
	sync.Mutex
	grown []*pool // services and protocols that have drawn since followPeaks read them
	_     [64]byte
}

// pool is a scope that all peers share. It is also the handle through which
// its users see it (shared.go).
type pool struct {
	engine *engine
	kind   Kind
	grown  bool          // it is in the list of followPeaks; guarded as peak is
	spans  atomic.Uint32 // begun at the scope so far, for their names
	name   string        // of the service or protocol
	home   *stripe

	// These are written under all stripe locks, or under the drawing lock while there are
	// no shares, and read under the lock of any stripe that has one.
	limit amounts
	// most is the part of limit that may be held, see engine.most; batch and looseBelow are
	// computed from it.
	most, batch, looseBelow amounts
	pairLimit               amounts    // of one peer in this service or protocol
	rates                   *poolRates // nil if there has been none
	// limitCopy is a copy of limit for readers without a lock. A copy does not change.
	limitCopy atomic.Pointer[amounts]

	// word holds, for each dimension, the sum of the credit of all shares (I1) and the tight
	// mark. Both are one word: a mark that is read apart from the sum may be stale, and refuse
	// what fits. Under the lock of one stripe a word may shrink; to grow, or to become loose, it
	// takes the drawing lock, too. Under all stripe locks, or while there are no shares, it may
	// change in any way: no stripe can draw then. It is read without a lock.
	word [numDims]atomic.Uint64

	// peak is the most that is known to have been used of each dimension at one instant. It
	// is raised from the word of a tight pool, by used, and by a stripe that draws. So it is
	// exact above half of the limit; below, it is what followPeaks and others have read. It is
	// guarded by the drawing lock, or by all stripe locks.
	peak amounts
	// mark is the most that a tight pool hands out without a call of passed. It is never above
	// peak, and guarded as peak is.
	mark amounts
	// roomy is the most that may be handed out before room has to be made (reserve.go). It is
	// written and read as limit is.
	roomy amounts
	// wide says by how many steps the reserves of newcomers are widened; nil means by none. It is
	// written under all stripe locks when room is made, and does not change.
	wide *wideReserves
	// asked has the bit d for each dimension of which room has to be made, and the bit d+numDims
	// if that has been refused.
	asked atomic.Uint32
	// low is the least that was handed out of each dimension before a draw, since limitWatch
	// looked last. It is guarded as peak is.
	low    amounts
	shares []*share // by stripe; an entry is guarded by its stripe's lock

	// Guarded by the directory's lock.
	members int        // shares that exist
	denied  denials    // what collected shares had refused; read under all stripe locks
	sticky  bool       // SetLimit gave it its limit: it keeps that, and is not collected
	by      *limitBook // the book that its limits are from
}

// load loads the word of one dimension. Two words belong to different instants.
func (p *pool) load(d dim) word { return word(p.word[d&dimMask].Load()) }

// tally loads one dimension, with what follows from the limit.
func (p *pool) tally(d dim) tally {
	w := p.load(d)
	return tally{limit: p.most[d], batch: p.batch[d], handed: w.handed(), tight: w.tight()}
}

// tight reports, without a lock, whether the pool is tight in d.
func (p *pool) tight(d dim) bool { return p.word[d&dimMask].Load()&tightMark != 0 }

// fullFor reports, without the drawing lock, whether the pool is full, by this limit, of
// anything that a connection or stream counts in. d is what it is full of, and handed is how
// much of that is handed out.
func (p *pool) fullFor(u unit, limit *amounts) (d dim, handed int64, full bool) {
	if handed, full = p.fullOf(u.dir, limit); full {
		return u.dir, handed, true
	}
	if handed, full = p.fullOf(u.both, limit); full || u.fds == 0 {
		return u.both, handed, full
	}
	handed, full = p.fullOf(dimFD, limit)
	return dimFD, handed, full
}

func (p *pool) fullOf(d dim, limit *amounts) (handed int64, full bool) {
	w := p.load(d)
	return w.handed(), w.full(limit[d&dimMask])
}

// seemsFullFor is fullFor for a caller without a lock, so it may be out of date. A loose pool is
// not full.
func (p *pool) seemsFullFor(u unit) bool {
	if !p.tight(u.dir) && !p.tight(u.both) && !p.tight(dimFD) {
		return false
	}
	_, _, full := p.fullFor(u, p.limitCopy.Load())
	return full
}

// handOut notes that a share gets more credit. In a tight pool that is used at once. The
// drawing lock is held, or all stripe locks are.
func (p *pool) handOut(d dim, n int64) {
	w := word(p.word[d&dimMask].Add(uint64(n) << 1))
	handed := w.handed()
	p.low[d] = min(p.low[d], handed-n)
	if w.tight() && handed > p.mark[d&dimMask] {
		p.passed(d, handed)
	}
}

// passed notes that the pool has handed out more of d than its mark. The drawing lock is held, or
// all stripe locks are.
func (p *pool) passed(d dim, handed int64) {
	p.raisePeak(d, handed)
	if a := p.engine.alarm; a != nil && handed > p.roomy[d] {
		a.report(&p.asked, 1<<d)
	}
	p.mark[d] = min(p.peak[d], p.roomy[d])
}

func (p *pool) raisePeak(d dim, used int64) { p.peak[d&dimMask] = max(p.peak[d&dimMask], used) }

// takeBack notes that a share returns credit, under the lock of its stripe. It takes the drawing
// lock only if that makes the pool loose, so that the pool does not become loose while a
// stripe that found it tight is about to draw.
func (p *pool) takeBack(d dim, n int64) tally {
	for locked := false; ; {
		was := p.tally(d)
		now := was.giveBack(n)
		if now.tight != was.tight && !locked {
			p.engine.drawing.Lock()
			locked = true
			continue
		}
		if p.word[d].CompareAndSwap(uint64(was.word()), uint64(now.word())) {
			if locked {
				p.engine.drawing.Unlock()
			}
			return now
		}
	}
}

// takesBack is the short way of takeBack. It reports false, and changes nothing, unless the pool
// is tight and stays tight, and no other goroutine changes the word meanwhile.
func (p *pool) takesBack(d dim, n int64) bool {
	at := &p.word[d&dimMask]
	was := word(at.Load())
	now, tight := was.less(n, p.looseBelow[d&dimMask])
	return tight && at.CompareAndSwap(uint64(was), uint64(now))
}

// setLimit puts a limit in force. All stripe locks are held, or the drawing lock is and
// there are no shares.
func (p *pool) setLimit(limit amounts) {
	p.limit = limit
	p.limitCopy.Store(&limit)
	for d := range numDims {
		p.most[d] = p.engine.most(p.kind, &limit, d)
		p.batch[d] = batchOf(p.most[d], len(p.shares))
		p.looseBelow[d] = looseBelow(p.most[d], p.batch[d])
		p.heedRoom(d)
		p.recall(d, 0)
	}
}

// heedRoom computes when room has to be made. The locks are those of setLimit.
func (p *pool) heedRoom(d dim) {
	p.roomy[d] = p.engine.alarm.roomy(p.kind, d, p.most[d], p.wide.steps(d))
	p.mark[d] = min(p.mark[d], p.roomy[d])
}

// renewLocked puts the limits of a book in force, except where SetLimit gave the scope its
// limit. The directory's lock is held, and all stripe locks are, or the drawing lock is and
// there are no shares.
func (p *pool) renewLocked(by *limitBook, limits sharedLimits) {
	p.by = by
	p.renewRates(by)
	if limits.own == nil {
		return // they could not be fetched
	}
	p.pairLimit = *limits.pair
	if !p.sticky {
		p.setLimit(*limits.own)
	}
}

// used returns the exact use, and takes note of it as a peak. All stripe locks are held.
func (p *pool) used() (sum amounts) {
	for _, sh := range p.shares {
		if sh != nil {
			sum.addHeld(&sh.use)
		}
	}
	for d, n := range sum {
		p.raisePeak(dim(d), n)
	}
	return sum
}

// denials returns what the scope has refused. All stripe locks are held.
func (p *pool) denials() denials {
	sum := p.denied
	for _, sh := range p.shares {
		if sh != nil {
			sum.addOf(&sh.direct)
		}
	}
	return sum
}

func (p *pool) usedOf(d dim) (sum int64) {
	for _, sh := range p.shares {
		if sh != nil {
			sum += sh.use.of(d)
		}
	}
	return sum
}

// recall takes in all idle credit and settles, with extra handed out on top for a request that
// has been admitted. The locks are those of setLimit.
func (p *pool) recall(d dim, extra int64) {
	was := p.tally(d)
	l := was.settle(p.usedOf(d) + extra)
	p.word[d].Store(uint64(l.word()))
	p.low[d] = min(p.low[d], was.handed)
	p.passed(d, l.handed)
	for _, sh := range p.shares {
		if sh != nil {
			sh.setCredit(d, sh.use.of(d), l)
		}
	}
}

// share is a stripe's part of a shared scope, guarded by the stripe's lock.
type share struct {
	account
	pool *pool
	direct
	// Each on a cache line of its own.
	_      [32]byte
	credit amounts // I1: never less than use
	floor  amounts // credit less what may lie idle, as the pool was when it was last read
}

// setCredit sets the credit that the share holds, and how much of it may lie idle.
func (sh *share) setCredit(d dim, credit int64, l tally) {
	sh.credit[d] = credit
	sh.floor[d] = credit - l.keep()
}

// lacksOne reports whether there is no credit for one more.
func (sh *share) lacksOne(d dim) bool { return int64(sh.use.counts[d&dimMask]) >= sh.credit[d&dimMask] }

// mayDrawOne reports whether there is credit for one more, or the pool has it to give.
func (sh *share) mayDrawOne(d dim) bool {
	return !sh.lacksOne(d) || sh.pool.load(d).hasOne(sh.pool.most[d&dimMask])
}

// drawLocked hands out grant, of which the share uses it.n at once. The drawing lock is held,
// or all stripe locks are.
func (sh *share) drawLocked(it item, grant int64) {
	p, d := sh.pool, it.d
	p.handOut(d, grant)
	sh.setCredit(d, sh.credit[d]+grant, p.tally(d))
	p.raisePeak(d, sh.use.of(d)+it.n)
	if !p.grown && p.kind > KindAllowlistedTransient {
		p.grown = true
		p.engine.drawing.grown = append(p.engine.drawing.grown, p)
	}
}

// addCredit adds credit that is in use to the share, or takes it away.
func (sh *share) addCredit(d dim, n int64) {
	sh.credit[d&dimMask] += n
	sh.floor[d&dimMask] += n
}

// idles reports whether too much credit of d, which is a count, lies idle.
func (sh *share) idles(d dim) bool { return int64(sh.use.counts[d&dimMask]) < sh.floor[d&dimMask] }

// idlesMemory reports whether too much credit of memory lies idle.
func (sh *share) idlesMemory() bool { return sh.use.memory < sh.floor[dimMemory] }

// trimHalf returns idle credit down to half of what the share may keep, if it has more
// than that.
func (sh *share) trimHalf(d dim, idle int64) {
	excess := int64(0)
	if keep := sh.pool.tally(d).keep(); idle > keep {
		excess = idle - keep/2
	}
	l := sh.pool.takeBack(d, excess)
	sh.setCredit(d, sh.credit[d]-excess, l)
}

// surrender returns all credit.
func (sh *share) surrender() {
	for d := range numDims {
		sh.setCredit(d, 0, sh.pool.takeBack(d, sh.credit[d]))
	}
}
