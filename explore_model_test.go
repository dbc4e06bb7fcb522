package rcmgr

// An explorer of the credit protocol (pool.go, chain.go): it runs every
// interleaving of a few operations on a few stripes and pools, and checks in
// every state what they promise.
//
// What decides is the engine's own code: tally.draw, giveBack, settle, keep and
// hasBelowHalf, word.hasOne, hasTight and less, batchOf and Admission.threshold, and of rates
// pace.Bucket and noLater. What is modelled here are the steps between them. checkShared, settle, takeBack and moveTo take
// them; drawUnit and drawMemory take those of checkShared, and ask the word alone; where it
// does not have what they need, checkShared begins from anew under the same stripe lock.
// Requests for one that may fill all of a limit go the way of drawUnit first, larger ones
// that of drawMemory, and what is given back that of takesBack:
//
//	find the connection's stripe · lock it (both for a move, or all of them),
//	look at the shares · load the word of each pool that has to be asked · take
//	the drawing lock, decide again · draw from each · unlock, charge
//	                             … or, undecided: unlock, lock all stripes,
//	decide on the exact sums, call idle credit in, charge, unlock
//	                             … a release: take it off, return idle credit to each
//	pool, with the drawing lock where it becomes loose by that
//
// Where a pool has a rate, every request for it needs a token, as in takePaced: after the
// stripes' locks, it takes the token lock, reads the clock and asks all rates. It takes the
// tokens when it is charged, and releases the token lock then, when it is refused, when it
// goes for all locks, and when it leaves the short way, after which it begins again with the
// token lock. The clock is a thread of its own, and may jump back.
//
// A step is what others can see happen at once: to take one lock, to load or
// store one word. What follows under locks until the next such action nobody
// sees, so it belongs to the step. A state is all locks, pools, shares and
// connections and where each thread stands; the search goes breadth first
// through all states that can be reached, so a failure comes with the shortest
// schedule that leads to it.
//
// TestExplorer… runs the protocol as it is; TestExplorerCatches… breaks one
// rule at a time and demands that the property it should break is broken. To
// explore more, add a scenario, or run
//
//	go test -run Explorer -v -explore.deep
//
// Beyond this model: dimensions (each is on its own), accounts that lie in one
// stripe, and their rates (no protocol: one lock), which of several refusals is reported, and
// collection of idle shares. That the steps are those of chain.go is for the
// reader to see: each step names what it does there.

import (
	"flag"
	"fmt"
	"math"
	"math/bits"
	"time"

	"github.com/weir-p2p/rcmgr/internal/pace"
)

var exploreDeep = flag.Bool("explore.deep", false, "explore more and larger scenarios (minutes)")

// creditProperty is a promise of the protocol.
type creditProperty string

const (
	noOvershoot      creditProperty = "no overshoot: use ≤ limit"
	noFalseAdmission creditProperty = "no false admission: what is admitted fits its bound at that instant"
	noFalseRefusal   creditProperty = "no false refusal: what is refused does not fit its bound at that instant"
	creditCovers     creditProperty = "0 ≤ use ≤ credit in every share"
	creditConserved  creditProperty = "credit of all shares = handed out ≤ limit"
	looseBelowHalf   creditProperty = "a loose pool has handed out at most half"
	idleBounded      creditProperty = "at most an eighth of a limit is idle credit"
	tightExact       creditProperty = "a tight pool has no idle credit"
	turnsAtQuarter   creditProperty = "a pool is tight only from a quarter on, and becomes loose only up to a quarter"
	smallIsTight     creditProperty = "a pool too small for batches is tight"
	useConserved     creditProperty = "use of a share = what the connections in its stripe hold"
	allLocksOnce     creditProperty = "an operation is decided the first time it holds all locks"
	noDeadlock       creditProperty = "no deadlock"
	zeroAtEnd        creditProperty = "all use is zero at the end"
	rateHeld         creditProperty = "over any time t, no more than burst + rate × t are admitted"
	rateGiven        creditProperty = "no rate refuses what fits in burst + rate × t"
)

var creditProperties = []creditProperty{
	noOvershoot, noFalseAdmission, noFalseRefusal, creditCovers, creditConserved, looseBelowHalf,
	idleBounded, tightExact, turnsAtQuarter, smallIsTight, useConserved, allLocksOnce, noDeadlock, zeroAtEnd,
	rateHeld, rateGiven,
}

// The most that a scenario may have. A larger state costs time in all of them.
const (
	modelStripes = 3
	modelPools   = 2
	modelConns   = 4
	modelThreads = 4
	modelTimes   = 6 // requests that a pool with a rate admits
)

// poolSet is a set of pools, a bit each. Lower pools come first in a chain.
type poolSet uint8

const (
	pool0 poolSet = 1 << iota
	pool1
)

func (s poolSet) has(p int) bool { return s>>p&1 != 0 }
func (s poolSet) first() int     { return bits.TrailingZeros8(uint8(s)) }

// modelVerb is what an operation does.
type modelVerb uint8

const (
	reserveVerb modelVerb = iota
	releaseVerb
	moveVerb
	limitVerb
	tickVerb
)

// modelOp is one operation of a thread.
type modelOp struct {
	do     modelVerb
	conn   int
	n      int64 // units; of limitVerb the new limit
	weight int64 // in 512ths of a limit, as request.weight
	to     int   // stripe that a move goes to
	pools  poolSet
}

func doReserve(conn int, n, weight int64) modelOp {
	return modelOp{do: reserveVerb, conn: conn, n: n, weight: weight}
}

// doRelease gives back n, or what the connection holds if that is less.
func doRelease(conn int, n int64) modelOp { return modelOp{do: releaseVerb, conn: conn, n: n} }

// doMove takes a connection to another stripe and into other pools: it has to
// fit the new ones, stands on idle credit or takes along its own in those where it
// stays, and leaves the others.
func doMove(conn, to int, pools poolSet) modelOp {
	return modelOp{do: moveVerb, conn: conn, weight: fullWeight, to: to, pools: pools}
}

func doLimit(pool poolSet, n int64) modelOp { return modelOp{do: limitVerb, pools: pool, n: n} }

// doTick moves the clock of the rates by n.
func doTick(n int64) modelOp { return modelOp{do: tickVerb, n: n} }

func (o modelOp) String() string {
	switch o.do {
	case tickVerb:
		return fmt.Sprintf("clock %+d", o.n)
	case reserveVerb:
		return fmt.Sprintf("reserve %d (weight %d) on conn %d", o.n, o.weight, o.conn)
	case releaseVerb:
		return fmt.Sprintf("release %d of conn %d", o.n, o.conn)
	case moveVerb:
		return fmt.Sprintf("move conn %d to stripe %d, pools %02b", o.conn, o.to, o.pools)
	}
	return fmt.Sprintf("set limit of pool %d to %d", o.pools.first(), o.n)
}

// creditScenario is what is explored: where the connections stand, and what each
// thread does. It ends with nothing held.
type creditScenario struct {
	name    string
	deep    bool // only with -explore.deep
	stripes int
	limits  []int64 // of pools
	rates   []pace.Bucket
	conns   []modelConn
	setup   []modelOp // done before the threads begin
	threads [][]modelOp
}

// creditRules is the protocol: the engine's functions, and which steps are left out
// or done in the wrong way.
type creditRules struct {
	draw     func(l tally, n, short, bound int64) (int64, verdict)
	giveBack func(l tally, n int64) tally
	settle   func(l tally, used int64) tally
	keep     func(l tally) int64

	hasBelowHalf func(l tally, short int64) bool
	hasOne       func(w word, limit int64) bool
	hasTight     func(w word, n, limit int64) bool
	less         func(w word, n, looseBelow int64) (word, bool)

	hasToken  func(b pace.Bucket, fullAt, at int64) bool
	takeToken func(b pace.Bucket, fullAt, at int64) int64

	tokensFirst     bool // take tokens when the rates have been asked, and give them back after a refusal
	tokensLost      bool // the same, and give none back
	tokensUnlocked  bool // release the token lock before the tokens are taken
	tokensKept      bool // keep the token lock while going for all locks
	clockBack       bool // believe a clock that jumps back
	markApart       bool // handed out and the tight mark are loaded one after the other
	letGo           bool // call idle credit in under all locks, let go, try again
	unlimitedFree   bool // a pool without a limit hands out no credit
	rollBack        bool // draw from one pool before the next has been asked
	stripesAnyOrder bool
	oneLook         bool // do not decide again under the drawing lock
	lowOnCredit     bool // low weights spend the stripe's credit like others
	noCompare       bool // after its stripe is locked, do not look if a connection has moved
	leaveCredit     bool // a connection moves without its credit
	limitAlone      bool // set a limit without calling credit in
	recallOnPaper   bool // call idle credit in without taking it from the shares
	halfRelease     bool // release from the first pool of a chain only
	looseAnytime    bool // a pool becomes loose while another holds the drawing lock
}

func engineRules() creditRules {
	return creditRules{draw: tally.draw, giveBack: tally.giveBack, settle: tally.settle, keep: tally.keep,
		hasBelowHalf: tally.hasBelowHalf, hasOne: word.hasOne, hasTight: word.hasTight, less: word.less,
		hasToken: pace.Bucket.Has, takeToken: pace.Bucket.Take}
}

// A state: comparable, small, without pointers.
type (
	modelState struct {
		share  [modelPools][modelStripes]modelShare
		pool   [modelPools]modelPool
		conn   [modelConns]modelConn
		thread [modelThreads]modelThread
		owner  [modelStripes]int8 // of the stripe's lock: 0, or thread + 1
		draws  int8               // which has the drawing lock, likewise
		paces  int8               // which has the token lock
		now    int8               // the clock, in ticks
		latest int8               // the latest time that was read
		fullAt [modelPools]int8   // when the buckets will be full
		// When the last requests of each pool with a rate were admitted, plus 1.
		times [modelPools][modelTimes]int8
	}
	modelShare struct{ use, credit, floor int64 } // as in share
	modelPool  struct {
		limit, handed int64
		tight         bool
	}
	modelConn struct {
		held int64   // in each of its pools
		in   poolSet // its chain
		at   int8    // its stripe
	}
	modelThread struct {
		gave    int64   // released, and not yet returned to the pools in todo
		op      int8    // index in its script
		pc      modelPC // what it does next
		from    int8    // where it found its connection
		locked  int8    // how many of the stripe locks it needs it has
		allTime int8    // how often it went for all locks
		all     bool    // it needs all stripe locks
		general bool    // it has gone the short way in vain
		decided bool    // its request is admitted, and not yet charged
		lacks   poolSet // has to ask these
		todo    poolSet // of these, still to load, draw from, return to
		drawn   poolSet
		at      int8    // the time of the request
		taken   poolSet // tokensFirst: has taken these tokens
		marked  bool    // markApart: has loaded the mark
		mark    bool
	}
)

// modelPC says what step a thread takes next.
type modelPC uint8

const (
	atFind modelPC = iota
	atStripes
	atLoad
	atDrawing
	atDraw
	atTrim
	atTokens
)

var modelPCNames = [...]string{"find", "lock stripe", "load", "lock drawing", "draw", "return", "lock tokens"}

// creditModel is a state in the making: one thread takes one step in it.
type creditModel struct {
	*creditScenario
	creditRules
	modelState
	broken creditProperty // "" if none
	why    string
	only   creditProperty // the one that is checked, "" for all
}

func (x *creditModel) fail(p creditProperty, format string, args ...any) {
	if x.broken == "" && (x.only == "" || x.only == p) {
		x.broken, x.why = p, fmt.Sprintf(format, args...)
	}
}

// step lets thread t take a step. It is false, and nothing has changed, if t
// waits for a lock or has finished.
func (x *creditModel) step(t int) bool {
	th := &x.thread[t]
	if int(th.op) == len(x.threads[t]) {
		return false
	}
	switch th.pc {
	case atFind:
		o := x.threads[t][th.op]
		if o.do == tickVerb {
			x.now += int8(o.n)
			x.finish(t)
			return true
		}
		th.from, th.all, th.pc = x.conn[o.conn].at, o.do == limitVerb, atStripes
		return true
	case atStripes:
		return x.lockStripe(t)
	case atLoad:
		return x.load(t)
	case atDrawing:
		return x.lockDrawing(t)
	case atDraw:
		return x.drawFrom(t)
	case atTokens:
		return x.lockTokens(t)
	}
	return x.trim(t)
}

// stripesOf lists the stripes whose locks t needs, in order.
func (x *creditModel) stripesOf(t int) []int8 {
	th, o := &x.thread[t], x.threads[t][x.thread[t].op]
	from, to := th.from, int8(o.to)
	switch {
	case th.all:
		return []int8{0, 1, 2}[:x.stripes]
	case o.do != moveVerb || from == to:
		return []int8{from}
	case from > to && !x.stripesAnyOrder:
		return []int8{to, from}
	}
	return []int8{from, to}
}

func (x *creditModel) lockStripe(t int) bool {
	th, o := &x.thread[t], x.threads[t][x.thread[t].op]
	list := x.stripesOf(t)
	owner := &x.owner[list[th.locked]]
	if *owner != 0 {
		return false
	}
	*owner = int8(t) + 1
	if th.locked++; int(th.locked) < len(list) {
		return true
	}
	now := x.conn[o.conn].at
	switch {
	case o.do == limitVerb:
		x.setLimit(o.pools.first(), o.n)
		x.finish(t)
		return true
	case now != th.from && !th.all && !x.noCompare:
		x.unlockStripes(t)
		th.from = now
		return true
	case th.all:
		th.from = now
	}
	x.pace(t)
	return true
}

// paced returns the pools with a rate that the operation of t enters.
func (x *creditModel) paced(t int) (paced poolSet) {
	_, pools, _ := x.asks(t)
	for p := range x.rates {
		if pools.has(p) && x.rates[p].Limits() {
			paced |= 1 << p
		}
	}
	return paced
}

// pace begins what a thread does under the locks of its stripes.
func (x *creditModel) pace(t int) {
	if th := &x.thread[t]; x.paced(t) != 0 {
		th.pc = atTokens
	} else {
		x.look(t)
	}
}

// modelTick is the unit of the clock: the times of a state are small.
const modelTick = int64(time.Microsecond)

// lockTokens takes the token lock, reads the clock and asks all rates.
func (x *creditModel) lockTokens(t int) bool {
	if x.paces != 0 {
		return false
	}
	th := &x.thread[t]
	x.paces = int8(t) + 1
	latest := int64(x.latest)
	th.at = int8(noLater(&latest, int64(x.now)))
	if x.latest = int8(latest); x.clockBack {
		th.at = x.now
	}
	for p := range x.rates {
		if x.paced(t).has(p) && !x.hasToken(x.rates[p], int64(x.fullAt[p])*modelTick, int64(th.at)*modelTick) {
			if x.fits(p, x.latest) {
				x.fail(rateGiven, "pool %d: a request at %d is refused, others were admitted at %s", p, x.latest, x.timesText(p))
			}
			x.finish(t)
			return true
		}
	}
	if x.tokensFirst || x.tokensLost {
		x.takeTokens(t)
		th.taken = x.paced(t)
	}
	if x.tokensFirst || x.tokensLost || x.tokensUnlocked {
		x.unlockTokens(t)
	}
	x.look(t)
	return true
}

// fits reports whether the rate of a pool admits one more at a time, by the times of those that it
// has admitted.
func (x *creditModel) fits(p int, at int8) bool {
	times, burst := x.times[p][:x.admittedBy(p)], x.rates[p].Burst()
	interval := x.rates[p].Take(0, 0) / modelTick
	for i, first := range times {
		if int64(len(times)-i+1) > burst+int64(at-(first-1))/interval {
			return false
		}
	}
	return true
}

// admittedBy returns how many requests the rate of a pool has admitted.
func (x *creditModel) admittedBy(p int) (n int) {
	for n < modelTimes && x.times[p][n] != 0 {
		n++
	}
	return n
}

func (x *creditModel) timesText(p int) string {
	text := ""
	for _, at := range x.times[p][:x.admittedBy(p)] {
		text += fmt.Sprint(" ", at-1)
	}
	return text
}

// takeTokens takes the tokens of a request.
func (x *creditModel) takeTokens(t int) {
	for p := range x.rates {
		if x.paced(t).has(p) {
			x.fullAt[p] = int8(x.takeToken(x.rates[p], int64(x.fullAt[p])*modelTick, int64(x.thread[t].at)*modelTick) / modelTick)
		}
	}
}

// admitPaced takes the tokens of a request that is charged, and releases the token lock.
func (x *creditModel) admitPaced(t int) {
	th := &x.thread[t]
	for p := range x.rates {
		if !x.paced(t).has(p) {
			continue
		}
		if !x.fits(p, x.latest) {
			x.fail(rateHeld, "pool %d: a request at %d is admitted, others were at %s", p, x.latest, x.timesText(p))
		}
		x.times[p][x.admittedBy(p)] = x.latest + 1
	}
	if th.taken == 0 {
		x.takeTokens(t)
	}
	th.taken = 0
	x.unlockTokens(t)
}

func (x *creditModel) unlockTokens(t int) {
	if x.paces == int8(t)+1 {
		x.paces = 0
	}
}

func (x *creditModel) unlockStripes(t int) {
	for i := range x.owner {
		if x.owner[i] == int8(t)+1 {
			x.owner[i] = 0
		}
	}
	x.thread[t].locked = 0
}

func (x *creditModel) unlockDrawing(t int) {
	if x.draws == int8(t)+1 {
		x.draws = 0
	}
}

// finish ends an operation.
func (x *creditModel) finish(t int) {
	x.unlockTokens(t)
	x.returnTokens(t)
	x.unlockDrawing(t)
	x.unlockStripes(t)
	x.thread[t] = modelThread{op: x.thread[t].op + 1}
}

// returnTokens puts back the tokens that a thread took before the accounts were checked.
func (x *creditModel) returnTokens(t int) {
	for p := range x.rates {
		if x.thread[t].taken.has(p) && x.tokensFirst {
			x.fullAt[p] -= int8(x.rates[p].Take(0, 0) / modelTick)
		}
	}
}

// goAll lets go of everything and goes for all stripe locks.
func (x *creditModel) goAll(t int) {
	th := &x.thread[t]
	x.unlockDrawing(t)
	if !x.tokensKept {
		x.unlockTokens(t)
	}
	x.returnTokens(t)
	x.unlockStripes(t)
	*th = modelThread{op: th.op, from: th.from, allTime: th.allTime + 1, all: true, pc: atStripes}
	if th.allTime > 1 {
		x.fail(allLocksOnce, "it goes for all locks again")
	}
}

// asks returns what a thread's operation asks for: n of each of these pools, in
// the shares of a stripe. It is called under the locks of the connection.
func (x *creditModel) asks(t int) (stripe int, pools poolSet, n int64) {
	th, o := &x.thread[t], x.threads[t][x.thread[t].op]
	c := &x.conn[o.conn]
	switch o.do {
	case reserveVerb:
		return int(th.from), c.in, o.n
	case moveVerb:
		return o.to, o.pools &^ c.in, c.held
	}
	return int(th.from), 0, 0
}

func (x *creditModel) weight(t int) int64 { return x.threads[t][x.thread[t].op].weight }

// bound returns the most that a pool may hold after the request of t.
func (x *creditModel) bound(t, p int) int64 {
	return AdmissionHalf.threshold(x.pool[p].limit, x.weight(t))
}

// exact, as request.exact.
func (x *creditModel) exact(t int, n int64) bool {
	return (x.weight(t) < fullWeight/2 || n == 0) && !x.lowOnCredit
}

func (x *creditModel) tally(p int) tally {
	w := &x.pool[p]
	return tally{limit: w.limit, batch: batchOf(w.limit, x.stripes), handed: w.handed, tight: w.tight}
}

func (x *creditModel) store(p int, l tally) { x.pool[p].handed, x.pool[p].tight = l.handed, l.tight }

func (x *creditModel) setCredit(p, stripe int, credit int64, l tally) {
	sh := &x.share[p][stripe]
	sh.credit, sh.floor = credit, credit-x.keep(l)
}

func (sh *modelShare) short(n int64) int64 { return max(0, n-(sh.credit-sh.use)) }

// look finds out which pools have to be asked.
func (x *creditModel) look(t int) {
	th := &x.thread[t]
	stripe, pools, n := x.asks(t)
	for p := range x.limits {
		free := x.unlimitedFree && x.pool[p].limit == math.MaxInt64
		if pools.has(p) && !free && (x.share[p][stripe].short(n) > 0 || x.exact(t, n)) {
			th.lacks |= 1 << p
		}
	}
	switch {
	case th.lacks == 0:
		x.admit(t)
		x.charge(t)
	case th.all:
		x.settleAll(t)
	default:
		th.pc, th.todo = atLoad, th.lacks
	}
}

// load decides by one load of one pool's word.
func (x *creditModel) load(t int) bool {
	th := &x.thread[t]
	p := th.todo.first()
	if x.short(t) {
		th.todo &^= 1 << p
		switch {
		case !x.has(t, p):
			x.goGenerally(t)
		case th.todo == 0:
			th.pc, th.todo = atDrawing, th.lacks
		}
		return true
	}
	l := x.tally(p)
	if x.markApart {
		if !th.marked {
			th.marked, th.mark = true, l.tight
			return true
		}
		l.tight, th.marked, th.mark = th.mark, false, false
	}
	_, v := x.ask(t, p, l)
	th.todo &^= 1 << p
	switch {
	case v == refused:
		x.refuse(t, p)
	case v == undecided:
		x.goAll(t)
	case th.todo == 0:
		th.pc, th.todo = atDrawing, th.lacks
	}
	return true
}

// short reports whether t goes the way of drawUnit or drawMemory, where word decides.
func (x *creditModel) short(t int) bool {
	th, o := &x.thread[t], x.threads[t][x.thread[t].op]
	return o.do == reserveVerb && o.weight == fullWeight && !th.all && !th.general && !x.rollBack
}

// has is what drawUnit or drawMemory asks a pool.
func (x *creditModel) has(t, p int) bool {
	l := x.tally(p)
	if _, _, n := x.asks(t); n > 1 {
		return x.hasTight(l.word(), n, l.limit)
	}
	return x.hasOne(l.word(), l.limit)
}

// goGenerally leaves the short way for the general one.
func (x *creditModel) goGenerally(t int) {
	th := &x.thread[t]
	x.unlockDrawing(t)
	if th.general = true; x.paced(t) != 0 {
		x.unlockTokens(t)
		th.pc, th.todo, th.lacks = atTokens, 0, 0
		return
	}
	th.pc, th.todo = atLoad, th.lacks
}

func (x *creditModel) ask(t, p int, l tally) (grant int64, v verdict) {
	stripe, _, n := x.asks(t)
	return x.draw(l, n, x.share[p][stripe].short(n), x.bound(t, p))
}

// lockDrawing takes the drawing lock; under it the request is decided.
func (x *creditModel) lockDrawing(t int) bool {
	if x.draws != 0 {
		return false
	}
	x.draws = int8(t) + 1
	if x.rollBack {
		x.drawOrRollBack(t)
	} else {
		x.decide(t)
	}
	return true
}

func (x *creditModel) decide(t int) {
	th := &x.thread[t]
	for p := range x.limits {
		if !th.lacks.has(p) || x.oneLook {
			continue
		}
		if x.short(t) {
			if !x.has(t, p) {
				x.goGenerally(t)
				return
			}
			continue
		}
		switch _, v := x.ask(t, p, x.tally(p)); v {
		case refused:
			x.refuse(t, p)
			return
		case undecided:
			x.goAll(t)
			return
		}
	}
	x.admit(t)
	th.decided, th.pc, th.todo = true, atDraw, th.lacks
}

// drawFrom draws from one pool; after the last, the request is charged.
func (x *creditModel) drawFrom(t int) bool {
	th := &x.thread[t]
	p := th.todo.first()
	if _, _, n := x.asks(t); x.short(t) && (n > 1 || x.pool[p].tight) {
		x.handOutTight(t, p, n)
	} else {
		grant, _ := x.ask(t, p, x.tally(p))
		x.handOut(t, p, grant)
	}
	if th.todo &^= 1 << p; th.todo == 0 {
		x.unlockDrawing(t)
		x.charge(t)
	}
	return true
}

func (x *creditModel) handOut(t, p int, grant int64) {
	stripe, _, n := x.asks(t)
	sh := &x.share[p][stripe]
	if x.oneLook {
		grant = max(grant, sh.short(n))
	}
	l := x.tally(p)
	l.handed += grant
	x.store(p, l)
	x.setCredit(p, stripe, sh.credit+grant, l)
	x.thread[t].drawn |= 1 << p
}

// handOutTight is what drawMemoryLocked does, and drawOneLocked in a tight pool.
func (x *creditModel) handOutTight(t, p int, n int64) {
	stripe, _, _ := x.asks(t)
	x.pool[p].handed += n
	x.share[p][stripe].credit += n
	x.share[p][stripe].floor += n
	x.thread[t].drawn |= 1 << p
}

// drawOrRollBack is what rollBack does instead of decide.
func (x *creditModel) drawOrRollBack(t int) {
	th := &x.thread[t]
	p := th.todo.first()
	th.todo &^= 1 << p
	stripe, _, _ := x.asks(t)
	grant, v := x.ask(t, p, x.tally(p))
	if v == admitted {
		x.handOut(t, p, grant)
		x.unlockDrawing(t)
		if th.todo == 0 {
			x.charge(t)
		}
		return
	}
	for q := range x.limits {
		if th.drawn.has(q) {
			x.returnIdle(q, stripe)
		}
	}
	if v == refused {
		x.refuse(t, p)
	} else {
		x.goAll(t)
	}
}

// settleAll decides on the exact sums under all stripe locks.
func (x *creditModel) settleAll(t int) {
	th := &x.thread[t]
	stripe, _, n := x.asks(t)
	if x.letGo {
		for p := range x.limits {
			x.recall(p, 0)
		}
		x.unlockStripes(t)
		*th = modelThread{op: th.op, allTime: th.allTime}
		return
	}
	for p := range x.limits {
		if th.lacks.has(p) && n > x.bound(t, p)-x.used(p) {
			if !x.exact(t, n) {
				x.recall(p, 0)
			}
			x.refuse(t, p)
			return
		}
	}
	x.admit(t)
	for p := range x.limits {
		sh := &x.share[p][stripe]
		if short := sh.short(n); th.lacks.has(p) && short > 0 {
			if x.hasBelowHalf(x.tally(p), short) {
				x.handOut(t, p, short)
				continue
			}
			x.recall(p, n)
			sh.credit += n
			sh.floor += n
		}
	}
	x.charge(t)
}

// used returns the exact use. All stripe locks are held.
func (x *creditModel) used(p int) (sum int64) {
	for i := range x.stripes {
		sum += x.share[p][i].use
	}
	return sum
}

func (x *creditModel) recall(p int, extra int64) {
	l := x.settle(x.tally(p), x.used(p)+extra)
	x.store(p, l)
	for i := 0; i < x.stripes && !x.recallOnPaper; i++ {
		x.setCredit(p, i, x.share[p][i].use, l)
	}
}

func (x *creditModel) setLimit(p int, n int64) {
	x.pool[p].limit = n
	if !x.limitAlone {
		x.recall(p, 0)
	}
}

// charge charges what was admitted, and does the rest of the operation: a
// release, or to leave the old place after a move.
func (x *creditModel) charge(t int) {
	th, o := &x.thread[t], x.threads[t][x.thread[t].op]
	stripe, pools, n := x.asks(t)
	x.admitPaced(t)
	for p := range x.limits {
		if pools.has(p) {
			x.share[p][stripe].use += n
		}
	}
	c := &x.conn[o.conn]
	leaves := poolSet(0)
	switch o.do {
	case reserveVerb:
		c.held += n
	case releaseVerb:
		leaves, th.gave = c.in, min(o.n, c.held)
		c.held -= th.gave
		if x.halfRelease {
			leaves = 1 << leaves.first()
		}
	case moveVerb:
		leaves, th.gave = c.in&^o.pools, c.held
		leaves |= x.carry(c.in&o.pools, int(th.from), o.to, n)
		c.in, c.at = o.pools, int8(o.to)
	}
	th.decided, th.drawn, th.todo = false, 0, 0
	for p := range x.limits {
		if sh := &x.share[p][th.from]; leaves.has(p) {
			sh.use -= th.gave
			if sh.use < sh.floor {
				th.todo |= 1 << p
			}
		}
	}
	th.pc = atTrim
	if th.todo == 0 {
		x.finish(t)
	}
}

// carry moves use from stripe to stripe: to credit that lies idle there, or with its own. It
// gives the pools of the first kind, whose old share is still to be left. (The engine does so
// for connections without memory, and for all that they count in, or nothing.)
func (x *creditModel) carry(pools poolSet, from, to int, n int64) (leaves poolSet) {
	for p := range x.limits {
		if !pools.has(p) {
			continue
		}
		here, there := &x.share[p][from], &x.share[p][to]
		there.use += n
		if there.use <= there.credit {
			leaves |= 1 << p
			continue
		}
		here.use -= n
		if !x.leaveCredit {
			here.credit -= n
			here.floor -= n
			there.credit += n
			there.floor += n
		}
	}
	return leaves
}

// trim returns idle credit to one pool: under the drawing lock, if it becomes loose.
func (x *creditModel) trim(t int) bool {
	th := &x.thread[t]
	p := th.todo.first()
	if x.returnTight(p, int(th.from)) {
		if th.todo &^= 1 << p; th.todo == 0 {
			x.finish(t)
		}
		return true
	}
	if x.draws != 0 && x.returned(p, int(th.from)).tight != x.pool[p].tight && !x.looseAnytime {
		return false
	}
	x.returnIdle(p, int(th.from))
	if th.todo &^= 1 << p; th.todo == 0 {
		x.finish(t)
	}
	return true
}

// returnTight is what trim does where takesBack does.
func (x *creditModel) returnTight(p, stripe int) bool {
	l, sh := x.tally(p), &x.share[p][stripe]
	idle := sh.credit - sh.use
	now, tight := x.less(l.word(), idle, looseBelow(l.limit, l.batch))
	if tight {
		x.store(p, tally{handed: now.handed(), tight: now.tight()})
		sh.credit -= idle
		sh.floor -= idle
	}
	return tight
}

// excess is what a stripe has to return of a pool's credit.
func (x *creditModel) excess(p, stripe int) int64 {
	sh, keep := &x.share[p][stripe], x.keep(x.tally(p))
	if idle := sh.credit - sh.use; idle > keep {
		return idle - keep/2
	}
	return 0
}

func (x *creditModel) returned(p, stripe int) tally {
	return x.giveBack(x.tally(p), x.excess(p, stripe))
}

func (x *creditModel) returnIdle(p, stripe int) {
	excess, l := x.excess(p, stripe), x.returned(p, stripe)
	x.store(p, l)
	x.setCredit(p, stripe, x.share[p][stripe].credit-excess, l)
}
