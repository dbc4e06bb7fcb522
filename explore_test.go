package rcmgr

// What the explorer (explore_model_test.go) checks in every state, and what it
// explores: scenarios in which the protocol must hold, and broken rules that it
// must catch.

import (
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-p2p/rcmgr/internal/pace"
)

// inUse returns the exact use of a pool at this instant: what is charged, what
// is decided and drawn and only not charged yet, and what is being released and
// not returned yet. It wraps below zero where two stripes overflow the sum.
func (x *creditModel) inUse(p int) int64 {
	sum := x.used(p)
	for t := range x.threads {
		th := &x.thread[t]
		switch {
		case th.decided && th.drawn.has(p):
			_, _, n := x.asks(t)
			sum += n
		case th.pc == atTrim && th.todo.has(p):
			sum += th.gave
		}
	}
	return sum
}

// admit is the instant at which a request is admitted.
func (x *creditModel) admit(t int) {
	_, pools, n := x.asks(t)
	for p := range x.limits {
		if u, bound := x.inUse(p), x.bound(t, p); pools.has(p) && n > bound-u {
			x.fail(noFalseAdmission, "pool %d holds %d of at most %d, and %d more is admitted", p, u, bound, n)
		}
	}
}

// refuse is the instant at which pool p refuses a request.
func (x *creditModel) refuse(t, p int) {
	_, _, n := x.asks(t)
	if u, bound := x.inUse(p), x.bound(t, p); n <= bound-u {
		x.fail(noFalseRefusal, "pool %d holds %d of at most %d, and %d more is refused", p, u, bound, n)
	}
	x.finish(t)
}

// check checks what must hold in every state. A limit may be lowered below use;
// use and what is handed out may then be above it, but must not grow.
func (x *creditModel) check(before *modelState) {
	for p := range x.limits {
		l, u := x.tally(p), x.inUse(p)
		credit := int64(0)
		for i := range x.stripes {
			sh := x.share[p][i]
			credit += sh.credit
			if sh.use < 0 || sh.use > sh.credit {
				x.fail(creditCovers, "pool %d, stripe %d: use %d, credit %d", p, i, sh.use, sh.credit)
			}
			if held := x.heldIn(p, i); sh.use != held {
				x.fail(useConserved, "pool %d, stripe %d: use %d, but %d is held", p, i, sh.use, held)
			}
		}
		if u < 0 || u > l.limit && u > (&creditModel{creditScenario: x.creditScenario, modelState: *before}).inUse(p) {
			x.fail(noOvershoot, "pool %d: %d is in use, limit %d", p, u, l.limit)
		}
		if credit != l.handed || l.handed > l.limit && l.handed > before.pool[p].handed {
			x.fail(creditConserved, "pool %d: credit %d, handed out %d, limit %d", p, credit, l.handed, l.limit)
		}
		switch was := before.pool[p].tight; {
		case l.batch == 0 && !l.tight:
			x.fail(smallIsTight, "pool %d: limit %d", p, l.limit)
		case l.batch > 0 && was && !l.tight && l.handed > l.limit/4:
			x.fail(turnsAtQuarter, "pool %d: loose with handed out %d, limit %d", p, l.handed, l.limit)
		}
		switch {
		case l.tight && l.handed > u:
			x.fail(tightExact, "pool %d: handed out %d, in use %d", p, l.handed, u)
		case l.tight && l.batch > 0 && l.handed < l.limit/4:
			x.fail(turnsAtQuarter, "pool %d: tight with handed out %d, limit %d", p, l.handed, l.limit)
		case !l.tight && l.handed > l.limit/2:
			x.fail(looseBelowHalf, "pool %d: handed out %d, limit %d", p, l.handed, l.limit)
		case !l.tight && l.handed-u > l.limit/(batches/2):
			x.fail(idleBounded, "pool %d: handed out %d, in use %d, limit %d", p, l.handed, u, l.limit)
		}
	}
}

// heldIn returns what the connections in a stripe hold of a pool.
func (x *creditModel) heldIn(p, stripe int) (sum int64) {
	for _, c := range x.conn {
		if c.in.has(p) && int(c.at) == stripe {
			sum += c.held
		}
	}
	return sum
}

// checkEnd checks a state in which no thread can take a step.
func (x *creditModel) checkEnd() {
	for t, script := range x.threads {
		if th := x.thread[t]; int(th.op) < len(script) {
			x.fail(noDeadlock, "no thread can go on; stripe locks %v", x.owner[:x.stripes])
		}
	}
	for p := range x.limits {
		if u := x.used(p); u != 0 {
			x.fail(zeroAtEnd, "pool %d: %d is in use", p, u)
		}
	}
}

// begin returns the state in which the threads begin.
func (sc *creditScenario) begin(r creditRules) modelState {
	first := *sc
	first.threads = [][]modelOp{sc.setup}
	x := creditModel{creditScenario: &first, creditRules: r}
	copy(x.conn[:], sc.conns)
	for p, n := range sc.limits {
		x.pool[p].limit = n
		x.store(p, x.tally(p).settle(0))
	}
	for x.step(0) {
	}
	x.thread[0] = modelThread{}
	return x.modelState
}

// explore goes through all states that can be reached, and returns their number.
// It stops where a property is broken: only the one given, or "" for any. The
// schedule is the shortest that breaks it.
func (sc *creditScenario) explore(r creditRules, only creditProperty) (states int, broken creditProperty, schedule string) {
	type node struct {
		before int32 // index of the state from which a step leads here
		thread int8  // that takes it
	}
	type reached struct {
		modelState
		index int32
	}
	x := creditModel{creditScenario: sc, creditRules: r, only: only}
	start := sc.begin(r)
	// Of the states seen a hash of 64 bits is kept. In a hundred million
	// states, the chance that one is taken for another is below 1 in 3000, and
	// the seed is another one in every run.
	seed := maphash.MakeSeed()
	seen := map[uint64]struct{}{maphash.Comparable(seed, start): {}}
	nodes := []node{{before: -1}}
	for level := []reached{{start, 0}}; len(level) > 0; {
		var next []reached
		for _, from := range level {
			stuck := true
			for t := range sc.threads {
				x.modelState = from.modelState
				if !x.step(t) {
					continue
				}
				stuck = false
				x.check(&from.modelState)
				key := maphash.Comparable(seed, x.modelState)
				if _, old := seen[key]; old && x.broken == "" {
					continue
				}
				seen[key] = struct{}{}
				nodes = append(nodes, node{from.index, int8(t)})
				next = append(next, reached{x.modelState, int32(len(nodes) - 1)})
				if x.broken != "" {
					break
				}
			}
			if stuck {
				x.modelState = from.modelState
				x.checkEnd()
			}
			if x.broken != "" {
				last := from.index
				if !stuck {
					last = int32(len(nodes) - 1)
				}
				var steps []int
				for i := last; nodes[i].before >= 0; i = nodes[i].before {
					steps = append(steps, int(nodes[i].thread))
				}
				slices.Reverse(steps)
				return len(nodes), x.broken, sc.replay(r, steps) + "  " + x.why + "\n"
			}
		}
		level = next
	}
	return len(nodes), "", ""
}

// replay writes a schedule in lines that can be read.
func (sc *creditScenario) replay(r creditRules, steps []int) string {
	var out strings.Builder
	x := creditModel{creditScenario: sc, creditRules: r, modelState: sc.begin(r)}
	fmt.Fprintf(&out, "  begin: pools %s\n", x.poolsText())
	for _, t := range steps {
		was := x.modelState
		o := sc.threads[t][was.thread[t].op]
		x.step(t)
		fmt.Fprintf(&out, "  T%d %-38s %-11s", t, o, modelPCNames[was.thread[t].pc])
		if text := x.poolsText(); was.pool != x.pool || was.share != x.share {
			fmt.Fprintf(&out, " pools %s", text)
		}
		if was.fullAt != x.fullAt || was.now != x.now {
			fmt.Fprintf(&out, " time %d, buckets full at %d", x.now, x.fullAt)
		}
		switch {
		case x.thread[t].all && !was.thread[t].all && o.do != limitVerb:
			fmt.Fprint(&out, " undecided: goes for all locks")
		case x.thread[t].op == was.thread[t].op, o.do == tickVerb:
		case o.do == reserveVerb && x.conn[o.conn].held == was.conn[o.conn].held,
			o.do == moveVerb && x.conn[o.conn].in == was.conn[o.conn].in && x.conn[o.conn].at == was.conn[o.conn].at:
			fmt.Fprint(&out, " refused")
		default:
			fmt.Fprint(&out, " done")
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

// poolsText shows handed out/limit of each pool, and use/credit of each share.
func (x *creditModel) poolsText() string {
	var out strings.Builder
	for p := range x.limits {
		mark := "loose"
		if x.pool[p].tight {
			mark = "tight"
		}
		fmt.Fprintf(&out, "[%d/%d %s:", x.pool[p].handed, x.pool[p].limit, mark)
		for i := range x.stripes {
			fmt.Fprintf(&out, " %d/%d", x.share[p][i].use, x.share[p][i].credit)
		}
		fmt.Fprint(&out, "] ")
	}
	return out.String()
}

const halfWeight = fullWeight / 2

// doHold is a thread that reserves and releases again.
func doHold(conn int, n, weight int64) []modelOp {
	return []modelOp{doReserve(conn, n, weight), doRelease(conn, n)}
}

// connAt places a connection.
func connAt(stripe int8, in poolSet) modelConn { return modelConn{at: stripe, in: in} }

// oneIn returns a bucket that gets a token in so many ticks.
func oneIn(ticks, burst int64) pace.Bucket {
	b, err := pace.New(float64(time.Second)/float64(ticks*modelTick), burst)
	if err != nil {
		panic(err)
	}
	return b
}

const (
	overHalf  = math.MaxInt64/2 + 1 // two of them overflow
	bothPools = pool0 | pool1
)

// creditScenarios are explored with the engine's rules. With two stripes, a
// limit of 64 has batches of 2: a stripe may keep 4 idle, half is 32, a quarter
// 16.
var creditScenarios = []creditScenario{
	{
		name: "around half", stripes: 2, limits: []int64{64},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(0, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 31, fullWeight), doReserve(0, 1, fullWeight), doRelease(0, 3), doRelease(0, 64)},
			{doReserve(1, 1, halfWeight), doReserve(1, 20, fullWeight), doRelease(1, 64)},
			{doReserve(2, 13, halfWeight), doReserve(2, 1, halfWeight), doRelease(2, 64)},
		},
	},
	{
		name: "tight, loose and idle credit", stripes: 2, limits: []int64{64},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0)},
		setup: []modelOp{doReserve(0, 34, fullWeight)},
		threads: [][]modelOp{
			{doRelease(0, 17), doRelease(0, 2), doRelease(0, 15)},
			{doReserve(1, 1, fullWeight), doRelease(1, 1), doReserve(1, 47, halfWeight), doRelease(1, 47)},
			{doReserve(2, 30, fullWeight), doRelease(2, 29), doRelease(2, 1)},
		},
	},
	{
		name: "low weights", stripes: 2, limits: []int64{64},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 1, fullWeight), doReserve(0, 1, 16), doRelease(0, 64)},
			{doReserve(1, 1, 16), doReserve(1, 14, fullWeight/4), doRelease(1, 64)},
			{doReserve(2, 1, 2), doReserve(2, 33, fullWeight), doRelease(2, 64)},
		},
	},
	{
		name: "as much idle credit as there can be", stripes: 2, limits: []int64{64},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 6, fullWeight), doRelease(0, 4), doReserve(0, 1, halfWeight-16), doRelease(0, 3)},
			{doReserve(1, 6, fullWeight), doRelease(1, 4), doReserve(1, 1, halfWeight-16), doRelease(1, 3)},
			doHold(2, 28, halfWeight),
		},
	},
	{
		name: "refusals", stripes: 2, limits: []int64{70},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 1, fullWeight), doReserve(0, 70, fullWeight), doRelease(0, 70)},
			{doReserve(1, 69, fullWeight), doReserve(1, 3, fullWeight), doRelease(1, 1), doRelease(1, 70)},
			{doReserve(2, 36, halfWeight), doReserve(2, 18, halfWeight), doRelease(2, 70)},
		},
	},
	{
		name: "too small for batches", stripes: 2, limits: []int64{5},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 2, halfWeight), doReserve(0, 3, fullWeight), doRelease(0, 5)},
			{doReserve(1, 3, fullWeight), doRelease(1, 1), doReserve(1, 0, fullWeight), doRelease(1, 5)},
			doHold(2, 1, fullWeight/4),
		},
	},
	{
		name: "unlimited", stripes: 2, limits: []int64{math.MaxInt64},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0)},
		threads: [][]modelOp{
			append(doHold(0, overHalf, fullWeight), doHold(0, 1, halfWeight)...),
			append(doHold(1, overHalf, fullWeight), doHold(1, 1, halfWeight)...),
			doHold(2, overHalf/2, halfWeight),
		},
	},
	{
		name: "two pools", stripes: 2, limits: []int64{32, 64},
		conns: []modelConn{connAt(0, bothPools), connAt(1, bothPools), connAt(1, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 31, fullWeight), doReserve(0, 2, halfWeight), doRelease(0, 64)},
			{doReserve(1, 20, fullWeight), doRelease(1, 19), doRelease(1, 1)},
			doHold(2, 12, halfWeight),
		},
	},
	{
		name: "one pool refuses", stripes: 2, limits: []int64{64, 16},
		conns: []modelConn{connAt(0, bothPools), connAt(1, pool0), connAt(1, pool1)},
		setup: []modelOp{doReserve(1, 40, fullWeight), doReserve(2, 10, fullWeight)},
		threads: [][]modelOp{
			doHold(0, 16, fullWeight),
			append(doHold(1, 16, fullWeight), doRelease(1, 40)),
			{doRelease(2, 10)},
		},
	},
	{
		name: "set limit", stripes: 2, limits: []int64{64},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 1, fullWeight), doReserve(0, 30, fullWeight), doRelease(0, 64)},
			{doReserve(1, 15, halfWeight), doReserve(1, 10, fullWeight), doRelease(1, 64)},
			{doLimit(pool0, 20), doLimit(pool0, 96)},
		},
	},
	{
		name: "a connection moves", stripes: 2, limits: []int64{64, 48},
		conns: []modelConn{connAt(0, bothPools), connAt(1, bothPools), connAt(1, pool1)},
		setup: []modelOp{doReserve(0, 1, fullWeight), doReserve(1, 9, fullWeight)},
		threads: [][]modelOp{
			{doMove(0, 1, pool1), doReserve(0, 24, fullWeight), doRelease(0, 64)},
			{doMove(1, 0, pool1), doRelease(1, 64)},
			{doReserve(0, 3, halfWeight), doRelease(0, 3)},
			doHold(2, 25, halfWeight),
		},
	},
	{
		name: "a connection moves into another pool", stripes: 2, limits: []int64{32, 64},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool1), connAt(0, pool1)},
		setup: []modelOp{doReserve(0, 20, fullWeight)},
		threads: [][]modelOp{
			{doMove(0, 1, pool1), doRelease(0, 20)},
			{doReserve(1, 30, fullWeight), doReserve(1, 20, halfWeight), doRelease(1, 64)},
			{doReserve(2, 14, fullWeight), doMove(2, 0, pool0), doRelease(2, 14)},
		},
	},
	{
		name: "a rate", stripes: 2, limits: []int64{64}, rates: []pace.Bucket{oneIn(2, 2)},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 1, fullWeight), doReserve(0, 1, fullWeight), doRelease(0, 2)},
			{doReserve(1, 1, fullWeight), doReserve(1, 1, halfWeight), doRelease(1, 2)},
			{doReserve(2, 1, fullWeight), doRelease(2, 1), doReserve(2, 1, fullWeight), doRelease(2, 1)},
			{doTick(1), doTick(1), doTick(2)},
		},
	},
	{
		name: "a rate while the clock jumps back", stripes: 2, limits: []int64{64}, rates: []pace.Bucket{oneIn(3, 2)},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 1, fullWeight), doReserve(0, 1, fullWeight), doReserve(0, 1, fullWeight), doRelease(0, 3)},
			{doReserve(1, 1, fullWeight), doReserve(1, 1, fullWeight), doReserve(1, 1, fullWeight), doRelease(1, 3)},
			{doTick(4), doTick(-3), doTick(5), doTick(-1)},
		},
	},
	{
		name: "rates, and a limit that refuses", stripes: 2, limits: []int64{64, 16}, rates: []pace.Bucket{oneIn(2, 2), oneIn(3, 3)},
		conns: []modelConn{connAt(0, bothPools), connAt(1, pool0), connAt(1, pool1)},
		setup: []modelOp{doReserve(2, 10, fullWeight)},
		threads: [][]modelOp{
			{doReserve(0, 10, fullWeight), doReserve(0, 1, fullWeight), doRelease(0, 16)},
			{doReserve(1, 1, fullWeight), doReserve(1, 1, fullWeight), doRelease(1, 2)},
			{doRelease(2, 10), doReserve(2, 1, fullWeight), doRelease(2, 1)},
			{doTick(2), doTick(2)},
		},
	},
	{
		name: "rates, and requests that go for all locks", stripes: 2, limits: []int64{64, 64}, rates: []pace.Bucket{oneIn(2, 3), {}},
		conns: []modelConn{connAt(0, bothPools), connAt(1, pool0), connAt(1, bothPools)},
		setup: []modelOp{doReserve(1, 5, fullWeight), doRelease(1, 4), doTick(6)},
		threads: [][]modelOp{
			{doReserve(0, 31, fullWeight), doReserve(0, 33, halfWeight), doRelease(0, 64)},
			{doReserve(2, 33, fullWeight), doRelease(2, 33), doRelease(1, 64)},
			{doTick(1), doTick(3)},
		},
	},
	{
		name: "one rate refuses", stripes: 2, limits: []int64{64, 64}, rates: []pace.Bucket{oneIn(2, 2), oneIn(4, 1)},
		conns: []modelConn{connAt(0, bothPools), connAt(1, pool0), connAt(1, pool1)},
		threads: [][]modelOp{
			{doReserve(0, 1, fullWeight), doReserve(0, 1, fullWeight), doRelease(0, 2)},
			{doReserve(1, 1, fullWeight), doReserve(1, 1, fullWeight), doRelease(1, 2)},
			{doReserve(2, 1, fullWeight), doRelease(2, 1)},
			{doTick(2), doTick(2)},
		},
	},
	{
		name: "a connection moves into a pool with a rate", stripes: 2, limits: []int64{32, 64}, rates: []pace.Bucket{{}, oneIn(2, 2)},
		conns: []modelConn{connAt(0, pool0), connAt(1, pool1), connAt(0, pool1)},
		setup: []modelOp{doReserve(0, 20, fullWeight)},
		threads: [][]modelOp{
			{doMove(0, 1, pool1), doRelease(0, 20)},
			{doReserve(1, 30, fullWeight), doReserve(1, 20, halfWeight), doRelease(1, 64)},
			{doReserve(2, 14, fullWeight), doRelease(2, 14)},
			{doTick(1), doTick(1)},
		},
	},
	{
		name: "three stripes, two pools, limit change, moving connection", stripes: 3, limits: []int64{48, 96},
		conns: []modelConn{connAt(0, bothPools), connAt(1, pool1), connAt(2, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 20, fullWeight), doMove(0, 2, pool1), doRelease(0, 20)},
			doHold(1, 40, halfWeight),
			doHold(2, 3, fullWeight),
			{doLimit(pool1, 50)},
		},
	},
	{
		name: "the same, longer", deep: true, stripes: 3, limits: []int64{48, 96},
		conns: []modelConn{connAt(0, bothPools), connAt(1, bothPools), connAt(2, pool1), connAt(2, pool0)},
		threads: [][]modelOp{
			{doReserve(0, 20, fullWeight), doMove(0, 2, pool1), doReserve(0, 11, halfWeight), doMove(0, 1, pool1), doRelease(0, 64)},
			{doReserve(1, 3, fullWeight), doMove(1, 0, pool1), doReserve(1, 44, fullWeight), doRelease(1, 40), doRelease(1, 64)},
			{doReserve(2, 1, fullWeight/4), doReserve(2, 40, halfWeight), doReserve(0, 1, fullWeight), doRelease(2, 64), doRelease(0, 64)},
			{doReserve(3, 25, fullWeight), doLimit(pool1, 50), doRelease(3, 25), doLimit(pool1, 200), doLimit(pool0, 9)},
		},
	},
}

func TestExplorerFindsTheProtocolSound(t *testing.T) {
	total := 0
	for _, sc := range creditScenarios {
		if sc.deep && !*exploreDeep {
			continue
		}
		began := time.Now()
		states, broken, schedule := sc.explore(engineRules(), "")
		if broken != "" {
			t.Errorf("%s: broken after %d states: %s\n%s", sc.name, states, broken, schedule)
		}
		t.Logf("%8d states in %v: %s", states, time.Since(began).Round(time.Millisecond), sc.name)
		total += states
	}
	t.Logf("%8d states", total)
}

// TestExplorerFindsEveryPairOfRequestsSound crosses amounts and weights at the
// borders of half, a quarter and a batch with what was there before: two
// requests, and with -explore.deep three, while what was there is released.
func TestExplorerFindsEveryPairOfRequestsSound(t *testing.T) {
	amounts := []int64{1, 3, 16, 31, 33}
	before := [][2]int64{{0, 0}, {5, 4}, {17, 1}, {30, 0}, {31, 0}, {33, 0}, {63, 0}} // reserved, released
	threads := 2
	if *exploreDeep {
		amounts = []int64{1, 2, 15, 17, 32, 64}
		before = append(before, [2]int64{1, 0}, [2]int64{16, 4}, [2]int64{40, 23}, [2]int64{40, 25}, [2]int64{64, 0})
		threads = 3
	}
	var scripts [][]modelOp
	for i := range amounts {
		for _, weight := range []int64{fullWeight, halfWeight, fullWeight / 4} {
			scripts = append(scripts, doHold(0, amounts[i], weight))
		}
	}
	total, runs, began := 0, 0, time.Now()
	each := func(chosen []int) {
		for _, b := range before {
			sc := creditScenario{
				stripes: 2, limits: []int64{64},
				conns:   []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0), connAt(0, pool0)},
				setup:   []modelOp{doReserve(3, b[0], fullWeight), doRelease(3, b[1])},
				threads: [][]modelOp{{doRelease(3, b[0])}},
			}
			for conn, i := range chosen {
				script := slices.Clone(scripts[i])
				for j := range script {
					script[j].conn = conn
				}
				sc.threads = append(sc.threads, script)
			}
			states, broken, schedule := sc.explore(engineRules(), "")
			if broken != "" {
				t.Fatalf("broken: %s\n%s", broken, schedule)
			}
			total += states
			runs++
		}
	}
	var choose func(chosen []int)
	choose = func(chosen []int) {
		if len(chosen) == threads {
			each(chosen)
			return
		}
		for i := range scripts {
			if len(chosen) == 2 && i < chosen[1] {
				continue // threads 1 and 2 stand in the same stripe
			}
			choose(append(chosen, i))
			if len(chosen) == 0 && *exploreDeep {
				t.Logf("%d of %d: %d states in %d scenarios, %v", i+1, len(scripts), total, runs, time.Since(began).Round(time.Second))
			}
		}
	}
	choose(nil)
	t.Logf("%d states in %d scenarios", total, runs)
}

// Broken decisions, to be caught.

func drawPastHalf(l tally, n, short, bound int64) (int64, verdict) {
	if l.tight && n > bound-l.handed {
		return 0, refused
	}
	return max(short, l.keep()/2), admitted
}

func drawBatchPastHalf(l tally, n, short, bound int64) (int64, verdict) {
	grant, v := l.draw(n, short, bound)
	if v == admitted && short > 0 && !l.tight {
		grant = max(grant, l.batch)
	}
	return grant, v
}

func refuseLooseAsExact(l tally, n, short, bound int64) (int64, verdict) {
	if n > bound-l.handed {
		return 0, refused
	}
	return l.draw(n, short, bound)
}

func settleTightAlways(l tally, used int64) tally {
	l.handed, l.tight = used, true
	return l
}

func settleLooseAlways(l tally, used int64) tally {
	l.handed, l.tight = used, false
	return l
}

func giveBackTight(l tally, n int64) tally {
	l.handed -= n
	return l
}

func giveBackLooseBelowHalf(l tally, n int64) tally {
	l.handed -= n
	l.tight = l.tight && l.handed > l.limit/2
	return l
}

func settleByUseAlone(l tally, used int64) tally {
	l.handed, l.tight = used, used > l.limit/4
	return l
}

func keepTwoBatchesAlways(l tally) int64 { return 2 * l.batch }

func keepFourBatches(l tally) int64 { return 2 * l.keep() }

func hasBelowLimit(l tally, short int64) bool { return !l.tight && short <= l.limit-l.handed }

func hasOnePastHalf(w word, limit int64) bool { return w.handed() < limit }

func hasOneAlways(word, int64) bool { return true }

func hasLoose(w word, n, limit int64) bool { return n <= limit-w.handed() }

func hasTightAlways(w word, _, _ int64) bool { return w.tight() }

func lessNever(w word, _, _ int64) (word, bool) { return w, false }

func lessTight(w word, n, _ int64) (word, bool) { return w - word(n)<<1, w.tight() }

func hasBurstAndOne(b pace.Bucket, fullAt, at int64) bool {
	return max(fullAt, at)-at <= b.Take(0, 0)*b.Burst()
}

func takeFromNow(b pace.Bucket, _, at int64) int64 { return b.Take(0, at) }

func takeTwo(b pace.Bucket, fullAt, at int64) int64 { return b.Take(b.Take(fullAt, at), at) }

// TestExplorerCatchesEveryBrokenRule breaks the protocol in one way at a time.
// Only the property named is checked, so each of them is shown to fail; with
// the engine's rules the same scenario is sound.
func TestExplorerCatchesEveryBrokenRule(t *testing.T) {
	one, two := []int64{64}, []int64{64, 16}
	apart := []modelConn{connAt(0, pool0), connAt(1, pool0), connAt(1, pool0)}
	chains := []modelConn{connAt(0, bothPools), connAt(1, bothPools), connAt(1, pool0), connAt(1, pool1)}
	alone := func(ops ...modelOp) [][]modelOp { return [][]modelOp{ops} }
	sound := engineRules()
	shown := make(map[creditProperty]bool)
	for _, c := range []struct {
		name   string
		damage func(r *creditRules)
		sc     creditScenario
		want   []creditProperty
	}{{
		"the tight mark is read apart from what is handed out",
		func(r *creditRules) { r.markApart = true },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(0, 34, fullWeight)}, threads: [][]modelOp{
			{doRelease(0, 34), doReserve(0, 1, fullWeight), doRelease(0, 1)},
			doHold(1, 31, halfWeight),
		}},
		[]creditProperty{noFalseRefusal},
	}, {
		"idle credit is called in, let go, and tried again",
		func(r *creditRules) { r.letGo = true },
		creditScenario{limits: one, conns: apart, threads: alone(doHold(0, 40, fullWeight)...)},
		[]creditProperty{allLocksOnce},
	}, {
		"a large request alone makes a pool tight",
		func(r *creditRules) { r.settle = settleTightAlways },
		creditScenario{limits: one, conns: apart, threads: alone(doReserve(0, 1, fullWeight), doReserve(0, 64, fullWeight), doRelease(0, 1))},
		[]creditProperty{turnsAtQuarter},
	}, {
		"unlimited has no credit",
		func(r *creditRules) { r.unlimitedFree = true },
		creditScenario{limits: []int64{math.MaxInt64}, conns: apart, threads: [][]modelOp{doHold(0, overHalf, fullWeight), doHold(1, overHalf, fullWeight)}},
		[]creditProperty{noOvershoot, noFalseAdmission, creditCovers},
	}, {
		"a draw may pass half",
		func(r *creditRules) { r.draw = drawPastHalf },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{doHold(0, 60, fullWeight), doHold(1, 10, fullWeight)}},
		[]creditProperty{noOvershoot, creditConserved, looseBelowHalf},
	}, {
		"a batch may pass half",
		func(r *creditRules) { r.draw = drawBatchPastHalf },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{doHold(0, 31, fullWeight), doHold(1, 1, fullWeight)}},
		[]creditProperty{looseBelowHalf},
	}, {
		"a release leaves idle credit in a tight pool",
		func(r *creditRules) { r.keep = keepTwoBatchesAlways },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(0, 40, fullWeight)}, threads: [][]modelOp{
			{doRelease(0, 4), doRelease(0, 36)},
			doHold(1, 28, fullWeight),
		}},
		[]creditProperty{tightExact, noFalseRefusal},
	}, {
		"stripes keep too much",
		func(r *creditRules) { r.keep = keepFourBatches },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{
			{doReserve(0, 10, fullWeight), doRelease(0, 8), doRelease(0, 2)},
			{doReserve(1, 10, fullWeight), doRelease(1, 8), doRelease(1, 2)},
			doHold(2, 27, halfWeight),
		}},
		[]creditProperty{idleBounded},
	}, {
		"what a loose pool has handed out is taken for its use",
		func(r *creditRules) { r.draw = refuseLooseAsExact },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{doHold(0, 1, fullWeight), doHold(1, 31, halfWeight)}},
		[]creditProperty{noFalseRefusal},
	}, {
		"a busy pool stays loose",
		func(r *creditRules) { r.settle = settleLooseAlways },
		creditScenario{limits: one, conns: apart, threads: alone(doHold(0, 40, fullWeight)...)},
		[]creditProperty{looseBelowHalf},
	}, {
		"a tight pool stays tight",
		func(r *creditRules) { r.giveBack = giveBackTight },
		creditScenario{limits: one, conns: apart, threads: alone(doHold(0, 40, fullWeight)...)},
		[]creditProperty{turnsAtQuarter},
	}, {
		"one pool is charged before the next is asked, and rolled back",
		func(r *creditRules) { r.rollBack = true },
		creditScenario{limits: two, conns: chains, setup: []modelOp{doReserve(2, 40, fullWeight), doReserve(3, 6, fullWeight)}, threads: [][]modelOp{
			doHold(0, 10, fullWeight),
			{doReserve(2, 20, fullWeight), doRelease(2, 60)},
			{doReserve(3, 4, fullWeight), doRelease(3, 10)},
		}},
		[]creditProperty{noFalseRefusal},
	}, {
		"a pool too small for batches may be loose",
		func(r *creditRules) { r.settle = settleByUseAlone },
		creditScenario{limits: []int64{16}, conns: apart, threads: [][]modelOp{doHold(0, 1, fullWeight), {doLimit(pool0, 17)}}},
		[]creditProperty{smallIsTight},
	}, {
		"a tight pool becomes loose below half",
		func(r *creditRules) { r.giveBack, r.less = giveBackLooseBelowHalf, lessNever },
		creditScenario{limits: one, conns: apart, threads: alone(doReserve(0, 40, fullWeight), doRelease(0, 10), doRelease(0, 30))},
		[]creditProperty{turnsAtQuarter},
	}, {
		"a move locks its stripes in any order",
		func(r *creditRules) { r.stripesAnyOrder = true },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{{doMove(0, 1, pool0)}, {doMove(1, 0, pool0)}}},
		[]creditProperty{noDeadlock},
	}, {
		"a move of one connection locks out of order while another operation takes all locks",
		func(r *creditRules) { r.stripesAnyOrder = true },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{{doMove(1, 0, pool0)}, {doLimit(pool0, 32)}}},
		[]creditProperty{noDeadlock},
	}, {
		"what was decided without a lock is drawn",
		func(r *creditRules) { r.oneLook = true },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(2, 40, fullWeight)}, threads: [][]modelOp{
			doHold(0, 20, fullWeight), doHold(1, 20, fullWeight), {doRelease(2, 40)},
		}},
		[]creditProperty{noOvershoot, noFalseAdmission, creditConserved},
	}, {
		"a low weight spends the credit of its stripe",
		func(r *creditRules) { r.lowOnCredit = true },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{
			{doReserve(0, 1, fullWeight), doReserve(0, 1, 16), doRelease(0, 2)},
			doHold(1, 8, fullWeight),
		}},
		[]creditProperty{noFalseAdmission},
	}, {
		"a connection that has moved is looked for in its old stripe",
		func(r *creditRules) { r.noCompare = true },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(0, 9, fullWeight)}, threads: [][]modelOp{{doMove(0, 1, pool0)}, {doRelease(0, 9)}}},
		[]creditProperty{creditCovers, useConserved},
	}, {
		"a connection moves without its credit",
		func(r *creditRules) { r.leaveCredit = true },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(0, 9, fullWeight)}, threads: alone(doMove(0, 1, pool0), doRelease(0, 9))},
		[]creditProperty{creditCovers},
	}, {
		"a limit is lowered and credit stays out",
		func(r *creditRules) { r.limitAlone = true },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{
			{doReserve(0, 1, fullWeight), doReserve(0, 1, fullWeight), doRelease(0, 2)},
			{doLimit(pool0, 1)},
		}},
		[]creditProperty{noOvershoot, noFalseAdmission, looseBelowHalf},
	}, {
		"idle credit is called in on paper",
		func(r *creditRules) { r.recallOnPaper = true },
		creditScenario{limits: one, conns: apart, threads: [][]modelOp{doHold(0, 1, fullWeight), doHold(1, 40, fullWeight)}},
		[]creditProperty{creditConserved},
	}, {
		"a release forgets the rest of the chain",
		func(r *creditRules) { r.halfRelease = true },
		creditScenario{limits: two, conns: chains, threads: alone(doHold(0, 3, fullWeight)...)},
		[]creditProperty{useConserved, zeroAtEnd},
	}, {
		"a pool becomes loose before what was decided while it was tight is drawn",
		func(r *creditRules) { r.looseAnytime = true },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(0, 40, fullWeight), doRelease(0, 20)}, threads: [][]modelOp{
			{doRelease(0, 20)},
			doHold(1, 40, fullWeight-2),
		}},
		[]creditProperty{creditCovers},
	}, {
		"a pool becomes loose before what its word was asked for while it was tight is drawn",
		func(r *creditRules) { r.looseAnytime = true },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(0, 40, fullWeight), doRelease(0, 20)}, threads: [][]modelOp{
			{doRelease(0, 20)},
			doHold(1, 40, fullWeight),
		}},
		[]creditProperty{looseBelowHalf},
	}, {
		"the exact way leaves a pool loose above half",
		func(r *creditRules) { r.hasBelowHalf = hasBelowLimit },
		creditScenario{limits: one, conns: apart, threads: alone(doHold(0, 40, fullWeight)...)},
		[]creditProperty{looseBelowHalf},
	}, {
		"the word of a loose pool has one above half",
		func(r *creditRules) { r.hasOne = hasOnePastHalf },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(2, 32, fullWeight)}, threads: [][]modelOp{
			doHold(0, 1, fullWeight), {doRelease(2, 32)},
		}},
		[]creditProperty{creditCovers},
	}, {
		"the word of a tight pool has one when it is full",
		func(r *creditRules) { r.hasOne = hasOneAlways },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(2, 64, fullWeight)}, threads: [][]modelOp{
			doHold(0, 1, fullWeight), {doRelease(2, 64)},
		}},
		[]creditProperty{noOvershoot, noFalseAdmission, creditConserved},
	}, {
		"the word of a loose pool has memory",
		func(r *creditRules) { r.hasTight = hasLoose },
		creditScenario{limits: one, conns: apart, threads: alone(doHold(0, 40, fullWeight)...)},
		[]creditProperty{looseBelowHalf},
	}, {
		"the word of a tight pool has memory when it is full",
		func(r *creditRules) { r.hasTight = hasTightAlways },
		creditScenario{limits: one, conns: apart, setup: []modelOp{doReserve(2, 40, fullWeight)}, threads: [][]modelOp{
			doHold(0, 30, fullWeight), {doRelease(2, 40)},
		}},
		[]creditProperty{noOvershoot, noFalseAdmission, creditConserved},
	}, {
		"a tight pool stays tight where little is given back",
		func(r *creditRules) { r.less = lessTight },
		creditScenario{limits: one, conns: apart, threads: alone(doHold(0, 40, fullWeight)...)},
		[]creditProperty{turnsAtQuarter},
	}, {
		"tokens are taken before the limits are asked, and given back",
		func(r *creditRules) { r.tokensFirst = true },
		creditScenario{limits: two, rates: []pace.Bucket{oneIn(2, 1), {}}, conns: chains, setup: []modelOp{doReserve(3, 10, fullWeight)}, threads: [][]modelOp{
			doHold(0, 10, fullWeight), doHold(2, 1, fullWeight), {doRelease(3, 10)},
		}},
		[]creditProperty{rateGiven},
	}, {
		"a request that a limit refuses keeps its token",
		func(r *creditRules) { r.tokensLost = true },
		creditScenario{limits: two, rates: []pace.Bucket{oneIn(2, 1), {}}, conns: chains, setup: []modelOp{doReserve(3, 10, fullWeight)},
			threads: alone(doReserve(0, 10, fullWeight), doReserve(0, 1, fullWeight), doRelease(0, 1), doRelease(3, 10))},
		[]creditProperty{rateGiven},
	}, {
		"the token lock is released before the tokens are taken",
		func(r *creditRules) { r.tokensUnlocked = true },
		creditScenario{limits: one, rates: []pace.Bucket{oneIn(2, 1)}, conns: apart, threads: [][]modelOp{doHold(0, 1, fullWeight), doHold(1, 1, fullWeight)}},
		[]creditProperty{rateHeld},
	}, {
		"the token lock is kept while a request goes for all locks",
		func(r *creditRules) { r.tokensKept = true },
		creditScenario{limits: one, rates: []pace.Bucket{oneIn(2, 4)}, conns: apart, threads: [][]modelOp{doHold(0, 40, fullWeight), doHold(1, 1, fullWeight)}},
		[]creditProperty{noDeadlock},
	}, {
		"a clock that jumps back is believed",
		func(r *creditRules) { r.clockBack = true },
		creditScenario{limits: one, rates: []pace.Bucket{oneIn(2, 2)}, conns: apart,
			threads: alone(doTick(6), doReserve(0, 1, fullWeight), doTick(-6), doReserve(0, 1, fullWeight), doRelease(0, 2))},
		[]creditProperty{rateGiven},
	}, {
		"an empty bucket has a token",
		func(r *creditRules) { r.hasToken = hasBurstAndOne },
		creditScenario{limits: one, rates: []pace.Bucket{oneIn(2, 1)}, conns: apart, threads: alone(append(doHold(0, 1, fullWeight), doHold(0, 1, fullWeight)...)...)},
		[]creditProperty{rateHeld},
	}, {
		"a token is taken from a full bucket each time",
		func(r *creditRules) { r.takeToken = takeFromNow },
		creditScenario{limits: one, rates: []pace.Bucket{oneIn(4, 2)}, conns: apart, threads: [][]modelOp{
			append(doHold(0, 1, fullWeight), doHold(0, 1, fullWeight)...), doHold(1, 1, fullWeight), {doTick(1)},
		}},
		[]creditProperty{rateHeld},
	}, {
		"a request takes two tokens",
		func(r *creditRules) { r.takeToken = takeTwo },
		creditScenario{limits: one, rates: []pace.Bucket{oneIn(2, 2)}, conns: apart, threads: [][]modelOp{doHold(0, 1, fullWeight), doHold(1, 1, fullWeight)}},
		[]creditProperty{rateGiven},
	}} {
		c.sc.stripes = 2
		for _, p := range c.want {
			shown[p] = true
		}
		if _, broken, schedule := c.sc.explore(sound, ""); broken != "" {
			t.Errorf("%s: the scenario is not sound with the engine's rules: %s\n%s", c.name, broken, schedule)
		}
		damaged := sound
		c.damage(&damaged)
		for _, want := range c.want {
			states, broken, schedule := c.sc.explore(damaged, want)
			if broken != want {
				t.Errorf("%s: not caught in %d states; want: %s", c.name, states, want)
				continue
			}
			t.Logf("%s\n  breaks “%s”, found after %d states:\n%s", c.name, want, states, schedule)
		}
	}
	for _, p := range creditProperties {
		if !shown[p] {
			t.Errorf("no broken rule shows that this can fail: %s", p)
		}
	}
}
