package rcmgr

// Many goroutines, whose every call is recorded and held against the limits
// afterwards (histories_check_test.go): at the border of half a limit, up to a
// limit and back, with limits so small that there is no credit, with many
// stripes that have little of it, through long chains, with connections that move
// under spans of other goroutines, while limits change, and on 1, 2, 4 and 8
// processors. For millions of calls:
//
//	go test -run TestHistories -v -rcmgr.ops=100000000 -timeout 2h .

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

var opsFlag = flag.Int("rcmgr.ops", 0, "calls that TestHistories makes and checks, at least; 0 takes the default")

func historyOps() int {
	switch {
	case *opsFlag > 0:
		return *opsFlag
	case testing.Short() || raceDetector():
		return 100_000
	}
	return 1_500_000
}

const (
	historyWorkers = 8
	historyMost    = 1000 // steps of one worker in one history
)

// historySteps is how many steps a worker takes in one history, so that every
// cell of the grid has its turn.
func historySteps() int {
	cells := 0
	for _, load := range historyLoads {
		cells += len(load.stripes) * len(historyProcs)
	}
	return min(historyMost, historyOps()/cells/historyWorkers)
}

var historyProcs = []int{1, 2, 4, 8}

// thing is what scopes hold. Everything is inbound, so that a limit of one
// direction and that of both are one place.
type thing int

const (
	ofConns thing = iota
	ofStreams
	ofMemory
	numThings
)

const bytesPerUnit = 64 // of a limit, where it is one of memory

// The scopes of a history, by number.
const (
	atTheSystem = iota
	inTransient
	atProtocols  // two
	atTheService = iota + 1
	atPeers      // six
	numNumbers   = iota + 6
)

var (
	historyProtocols = []protocol.ID{"/p", "/q"}
	historyService   = "s"
	historyPeers     = manyPeers(6)
)

func kindOfNumber(scope int) Kind {
	switch {
	case scope == atTheSystem:
		return KindSystem
	case scope == inTransient:
		return KindTransient
	case scope < atTheService:
		return KindProtocol
	case scope == atTheService:
		return KindService
	}
	return KindPeer
}

// historyLoad is what workers do, and against which limits.
type historyLoad struct {
	name      string
	holds     thing            // what they are after
	from, to  float64          // how much of it they mean to hold together, in parts of limit
	limit     func(int) int64  // by stripes; in units
	limited   map[Kind]float64 // the parts of limit that scopes of these kinds get
	things    []thing          // that are limited
	stripes   []int
	admission Admission
	changes   bool // limits change
	lends     bool // spans below connections are handed to others; only system is limited
}

var (
	onSystem   = map[Kind]float64{KindSystem: 1}
	wholeChain = map[Kind]float64{KindSystem: 1, KindTransient: .5, KindProtocol: .6, KindService: .7, KindPeer: .3}
	onlyMemory = []thing{ofMemory}
	allThings  = []thing{ofConns, ofStreams, ofMemory}
)

func noBatch(int) int64             { return 7 }
func oneBatch(stripes int) int64    { return int64(16*stripes) + 1 }
func someBatches(stripes int) int64 { return int64(4*16*stripes) + 3 }

var historyLoads = []historyLoad{
	{name: "memory around half", holds: ofMemory, from: .4, to: .6, limit: someBatches, limited: onSystem, things: onlyMemory, stripes: stressStripes},
	{name: "memory tight and back", holds: ofMemory, from: .1, to: 1.3, limit: oneBatch, limited: onSystem, things: onlyMemory, stripes: stressStripes},
	{name: "memory in long chains", holds: ofMemory, from: .2, to: 1.1, limit: someBatches, limited: wholeChain, things: onlyMemory, stripes: stressStripes, changes: true},
	{name: "memory by linear admission", holds: ofMemory, from: .1, to: 1, limit: someBatches, limited: wholeChain, things: onlyMemory, stripes: stressStripes, admission: AdmissionLinear, changes: true},
	{name: "memory by graded admission", holds: ofMemory, from: .1, to: 1, limit: someBatches, limited: wholeChain, things: onlyMemory, stripes: stressStripes, admission: AdmissionGraded, changes: true},
	{name: "streams around half", holds: ofStreams, from: .4, to: .6, limit: someBatches, limited: onSystem, things: allThings, stripes: []int{1, 4}},
	{name: "streams in long chains", holds: ofStreams, from: .1, to: 1.2, limit: oneBatch, limited: wholeChain, things: allThings, stripes: []int{1, 4, 16}, changes: true},
	{name: "connections that move with memory", holds: ofConns, from: .1, to: 1.2, limit: oneBatch, limited: wholeChain, things: allThings, stripes: []int{1, 4, 16}, changes: true},
	{name: "connections that move under others' spans", holds: ofConns, from: .2, to: 1.2, limit: oneBatch, limited: onSystem, things: allThings, stripes: []int{4, 16}, lends: true, changes: true},
	{name: "tiny limits on streams", holds: ofStreams, from: 0, to: 2, limit: noBatch, limited: wholeChain, things: allThings, stripes: stressStripes, changes: true},
	{name: "tiny limits on connections", holds: ofConns, from: 0, to: 2, limit: noBatch, limited: wholeChain, things: allThings, stripes: stressStripes},
	{name: "many stripes with little credit", holds: ofMemory, from: .2, to: 1.2, limit: oneBatch, limited: wholeChain, things: onlyMemory, stripes: []int{256}, changes: true},
}

func TestHistoriesOfManyGoroutinesHaveNoFalseAnswer(t *testing.T) {
	seed, procs := testSeed(t), runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	var sum historyCount
	for i := range historyLoads {
		load := &historyLoads[i]
		t.Run(load.name, func(t *testing.T) {
			var c historyCount
			quota, isRefused := historyOps()/len(historyLoads), load.holds == ofMemory || load.to > 1
			// What few calls leave to chance is not given up at once.
			enough := func() bool { return c.calls >= quota && (c.refusals > 0 || !isRefused) || c.calls > 50*quota }
			for began := time.Now(); !enough(); {
				for _, stripes := range load.stripes {
					for _, p := range historyProcs {
						runtime.GOMAXPROCS(p)
						h := newHistory(t, load, stripes)
						h.run(seed + uint64(c.histories))
						if t.Failed() {
							t.Fatalf("with %d stripes on %d processors", stripes, p)
						}
						c.add(h)
					}
				}
				if passed := time.Since(began); passed > 10*time.Second {
					began = time.Now()
					t.Logf("so far %v", c)
				}
			}
			require.Equal(t, isRefused, c.refusals > 0, "limits are reached, or not")
			t.Log(c)
			sum.calls, sum.refusals, sum.looks = sum.calls+c.calls, sum.refusals+c.refusals, sum.looks+c.looks
			sum.changes, sum.histories = sum.changes+c.changes, sum.histories+c.histories
		})
	}
	t.Logf("in all: %v", sum)
}

// historyCount says how much has been checked.
type historyCount struct{ histories, calls, refusals, looks, changes int }

func (c *historyCount) add(h *liveHistory) {
	c.histories++
	c.calls += len(h.calls)
	for i := range h.calls {
		switch {
		case h.calls[i].refused:
			c.refusals++
		case h.calls[i].does == looks:
			c.looks++
		case h.calls[i].does == limits:
			c.changes++
		}
	}
}

func (c historyCount) String() string {
	return fmt.Sprintf("%d calls in %d histories: %d refused, %d looks at everything, %d limits changed",
		c.calls, c.histories, c.refusals, c.looks, c.changes)
}

// liveHistory is a history in the making.
type liveHistory struct {
	history
	t       *testing.T
	m       *Manager
	load    *historyLoad
	limit   int64                      // of system, of what the load holds
	placeOf [numNumbers][numThings]int // or -1: not limited
	change  sync.Mutex                 // one limit is set at a time
}

func newHistory(t *testing.T, load *historyLoad, stripes int) *liveHistory {
	h := &liveHistory{t: t, load: load, limit: load.limit(stripes)}
	if load.holds == ofMemory {
		h.limit *= bytesPerUnit
	}
	conf := unlimitedConf()
	for kind, l := range map[Kind]*BaseLimit{
		KindSystem: &conf.System, KindTransient: &conf.Transient, KindPeer: &conf.PeerDefault,
		KindProtocol: &conf.ProtocolDefault, KindService: &conf.ServiceDefault,
	} {
		*l = load.limitOf(kind, load.limit(stripes), 1)
	}
	for scope := range h.placeOf {
		kind := kindOfNumber(scope)
		l := load.limitOf(kind, load.limit(stripes), 1)
		for th := range numThings {
			h.placeOf[scope][th] = -1
			if _, ok := load.limited[kind]; ok && slices.Contains(load.things, th) {
				h.placeOf[scope][th] = len(h.start)
				h.start = append(h.start, limitOfThing(&l, th))
			}
		}
	}
	h.m = newManager(t, conf, append(openGates(), WithStripes(stripes), WithNewcomersQuarter(false),
		WithAdmission(load.admission), WithRefusalLog(0), WithMetricsDisabled())...)
	return h
}

// limitOf returns the limit of a kind of scope, changed by a factor.
func (load *historyLoad) limitOf(kind Kind, units int64, factor float64) BaseLimit {
	l := unlimitedBase
	part, ok := load.limited[kind]
	if !ok {
		return l
	}
	n := max(1, int(part*factor*float64(units)))
	for _, th := range load.things {
		switch th {
		case ofConns:
			l.Conns, l.ConnsInbound = n, n
		case ofStreams:
			l.Streams, l.StreamsInbound = n, n
		case ofMemory:
			l.Memory = int64(n) * bytesPerUnit
		}
	}
	return l
}

func limitOfThing(l *BaseLimit, th thing) int64 {
	return [...]int64{int64(l.Conns), int64(l.Streams), l.Memory}[th]
}

func (h *liveHistory) run(seed uint64) {
	workers := make([]*historian, historyWorkers)
	for i := range workers {
		workers[i] = &historian{liveHistory: h, r: randomFrom(seed, uint64(i)), inbox: make(chan *loan, 2)}
	}
	var wg sync.WaitGroup
	for i, w := range workers {
		w.neighbour = workers[(i+1)%len(workers)].inbox
		wg.Go(func() {
			w.aimAnew()
			for range historySteps() {
				w.step()
			}
		})
	}
	wg.Wait()
	for _, w := range workers {
		w.endLoans()
	}
	for _, w := range workers {
		for len(w.held) > 0 {
			w.end(0)
		}
		h.calls = append(h.calls, w.calls...)
	}
	if err := h.verify(); err != nil {
		h.t.Error(err)
	}
	assertEmpty(h.t, h.m)
	h.m.Close()
}

// heldScope is a connection or stream of a worker, with a span.
type heldScope struct {
	scope       network.ResourceScopeSpan
	self        thing // ofConns or ofStreams
	in          []int // the scopes that it counts in, by number
	own, inSpan int64 // bytes
	span        network.ResourceScopeSpan
	lent        atomic.Bool // a span of it is with a neighbour
}

// loan is a span below the connection of another goroutine.
type loan struct {
	span network.ResourceScopeSpan
	own  int64
	of   *heldScope
}

// historian is one worker of a history, with the calls that it has made.
type historian struct {
	*liveHistory
	r         *rand.Rand
	calls     []call
	flows     []flow
	held      []*heldScope
	amount    int64 // that it holds of what the load is after
	aim       int64
	loans     []*loan
	inbox     chan *loan
	neighbour chan *loan
}

func (w *historian) aimAnew() {
	part := w.load.from + w.r.Float64()*(w.load.to-w.load.from)
	w.aim = int64(part * float64(w.limit) / historyWorkers)
	if w.limit < 2*historyWorkers {
		w.aim = w.r.Int64N(3)
	}
}

func (w *historian) step() {
	switch n := w.r.IntN(512); {
	case n == 0:
		w.look()
	case n == 1:
		w.cut()
	case n == 2 && w.load.changes:
		w.setLimit()
	case n < 16:
		runtime.Gosched()
	case n < 64 && w.load.lends:
		w.useLoans()
	case w.amount < w.aim:
		w.grow()
	case w.amount > w.aim:
		w.shrink()
	default:
		w.aimAnew()
	}
}

// ask makes a call and records it. What is given back is, if it is admitted.
func (w *historian) ask(text string, of512 uint64, takes, gives []flow, f func() error) bool {
	c := call{does: asks, text: text, of512: of512, takes: takes, begun: w.now()}
	err := f()
	c.ended = w.now()
	if c.refused = err != nil; !c.refused {
		c.gives = gives
	} else if !errors.Is(err, network.ErrResourceLimitExceeded) {
		w.t.Errorf("%s: %v", text, err)
	}
	w.calls = append(w.calls, c)
	return !c.refused
}

// count returns an amount of several things in several scopes as flows.
func (w *historian) count(scopes []int, amount [numThings]int64) []flow {
	begin := len(w.flows)
	nothing := amount == [numThings]int64{} // is what a call for no memory asks for
	for _, s := range scopes {
		for th, n := range amount {
			if p := w.placeOf[s][th]; p >= 0 && (n > 0 || nothing && thing(th) == ofMemory) {
				w.flows = append(w.flows, flow{p, n})
			}
		}
	}
	return w.flows[begin:len(w.flows):len(w.flows)]
}

func bytesOf(n int64) [numThings]int64 { return [numThings]int64{ofMemory: n} }

func (o *heldScope) total() (a [numThings]int64) {
	a[o.self], a[ofMemory] = 1, o.own+o.inSpan
	return a
}

func (w *historian) grow() {
	switch n := w.r.IntN(8); {
	case len(w.held) == 0, w.load.holds != ofMemory && n < 4, w.load.holds == ofMemory && n == 0 && len(w.held) < 4:
		w.open()
	case n < 6 && w.load.holds != ofMemory, n == 1:
		w.move(pick(w.r, w.held))
	default:
		w.reserve(pick(w.r, w.held))
	}
}

func (w *historian) shrink() {
	i := w.r.IntN(len(w.held))
	switch o := w.held[i]; {
	case w.load.holds != ofMemory || w.r.IntN(16) == 0:
		w.end(i)
	case o.inSpan > 0:
		w.endSpan(o)
	default:
		w.release(o)
	}
}

func (w *historian) open() {
	o := &heldScope{self: ofStreams}
	peer := w.r.IntN(len(historyPeers))
	o.in = append(o.in, inTransient, atTheSystem, atPeers+peer)
	if w.load.holds == ofConns {
		o.self, o.in = ofConns, o.in[:2]
	}
	if !w.ask("to open", 0, w.count(o.in, o.total()), nil, func() (err error) {
		if o.self == ofConns {
			o.scope, err = w.m.OpenConnection(network.DirInbound, false, nil)
		} else {
			o.scope, err = w.m.OpenStream(historyPeers[peer], network.DirInbound)
		}
		return err
	}) {
		w.aimAnew()
		return
	}
	w.held = append(w.held, o)
	if w.load.holds == o.self {
		w.amount++
	}
	if w.load.lends {
		w.lend(o)
	}
}

// move takes a connection or stream from transient to where it belongs, or a
// stream into a service.
func (w *historian) move(o *heldScope) {
	var to []int
	var f func() error
	switch s := o.scope.(type) {
	case network.ConnManagementScope:
		if len(o.in) != 2 || o.in[0] != inTransient {
			return
		}
		peer := w.r.IntN(len(historyPeers))
		to = []int{atPeers + peer}
		f = func() error { return s.SetPeer(historyPeers[peer]) }
	case network.StreamManagementScope:
		switch {
		case o.in[0] == inTransient:
			i := w.r.IntN(len(historyProtocols))
			to = []int{atProtocols + i}
			f = func() error { return s.SetProtocol(historyProtocols[i]) }
		case !slices.Contains(o.in, atTheService):
			to = []int{atTheService}
			f = func() error { return s.SetService(historyService) }
		default:
			return
		}
	}
	leaves := o.in[0] == inTransient
	var gives []flow
	if leaves {
		gives = w.count(o.in[:1], o.total())
	}
	if w.ask("to move", 0, w.count(to, o.total()), gives, f) {
		if leaves {
			o.in = o.in[1:]
		}
		o.in = append(o.in, to...)
	}
}

// size returns a number of bytes.
func (w *historian) size() int64 {
	if w.load.holds != ofMemory { // they are along for the ride
		return w.r.Int64N(bytesPerUnit)
	}
	switch w.r.IntN(8) {
	case 0:
		return w.r.Int64N(2)
	case 1:
		return 1 + w.r.Int64N(w.limit/4)
	case 2, 3:
		return max(1, w.aim-w.amount)
	}
	return 1 + w.r.Int64N(1+w.limit/32)
}

func (w *historian) priority() (priority uint8, of512 uint64) {
	priority = 255
	if w.r.IntN(2) == 0 {
		priority = uint8(w.r.Uint32())
	}
	switch p := uint64(priority); w.load.admission {
	case AdmissionLinear:
		return priority, 2 * (1 + p)
	case AdmissionGraded:
		return priority, 257 + p
	default:
		return priority, 2 * min(256, 128+p)
	}
}

func (w *historian) reserve(o *heldScope) {
	to, held := o.scope, &o.own
	if w.r.IntN(4) == 0 {
		if o.span == nil {
			o.span, _ = o.scope.BeginSpan()
		}
		to, held = o.span, &o.inSpan
	}
	n := w.size()
	if priority, of512 := w.priority(); w.ask("to reserve", of512, w.count(o.in, bytesOf(n)), nil, func() error {
		return to.ReserveMemory(int(n), priority)
	}) {
		*held += n
		w.holds(n)
	} else if w.r.IntN(2) == 0 {
		w.aimAnew()
	}
}

// holds notes that there are n bytes more.
func (w *historian) holds(n int64) {
	if w.load.holds == ofMemory {
		w.amount += n
	}
}

func (w *historian) release(o *heldScope) {
	n := o.own
	if n > 1 && w.r.IntN(2) == 0 {
		n = 1 + w.r.Int64N(n)
	}
	w.ask("to release", 0, nil, w.count(o.in, bytesOf(n)), func() error {
		o.scope.ReleaseMemory(int(n))
		return nil
	})
	o.own -= n
	w.holds(-n)
}

func (w *historian) endSpan(o *heldScope) {
	w.ask("to end a span", 0, nil, w.count(o.in, bytesOf(o.inSpan)), func() error { o.span.Done(); return nil })
	w.holds(-o.inSpan)
	o.span, o.inSpan = nil, 0
}

func (w *historian) end(i int) {
	o := w.held[i]
	if o.lent.Load() {
		return
	}
	w.ask("to end", 0, nil, w.count(o.in, o.total()), func() error { o.scope.Done(); return nil })
	if w.load.holds == o.self {
		w.amount--
	}
	w.holds(-o.own - o.inSpan)
	w.held[i] = w.held[len(w.held)-1]
	w.held = w.held[:len(w.held)-1]
}

// lend offers a span of a connection to the neighbour.
func (w *historian) lend(o *heldScope) {
	span, _ := o.scope.BeginSpan()
	o.lent.Store(true)
	select {
	case w.neighbour <- &loan{span: span, of: o}:
	default:
		span.Done()
		o.lent.Store(false)
	}
}

// useLoans reserves and releases memory under connections that may move away at
// this very moment.
func (w *historian) useLoans() {
	select {
	case l := <-w.inbox:
		w.loans = append(w.loans, l)
	default:
	}
	if len(w.loans) == 0 {
		return
	}
	l, n := w.loans[0], w.size()
	priority, of512 := w.priority()
	for range 4 {
		if w.ask("to reserve on loan", of512, w.count([]int{atTheSystem}, bytesOf(n)), nil, func() error {
			return l.span.ReserveMemory(int(n), priority)
		}) {
			l.own += n
		}
	}
	if w.r.IntN(2) == 0 {
		w.endLoan()
	}
}

func (w *historian) endLoan() {
	l := w.loans[0]
	w.ask("to end a loan", 0, nil, w.count([]int{atTheSystem}, bytesOf(l.own)), func() error { l.span.Done(); return nil })
	l.of.lent.Store(false)
	w.loans = w.loans[1:]
}

func (w *historian) endLoans() {
	for len(w.inbox) > 0 {
		w.loans = append(w.loans, <-w.inbox)
	}
	for len(w.loans) > 0 {
		w.endLoan()
	}
}

// setLimit gives a scope up to half as much again as it had, or as little as
// half.
func (w *historian) setLimit() {
	scope := w.r.IntN(numNumbers)
	kind := kindOfNumber(scope)
	units := w.load.limit(len(w.m.stripes))
	l := w.load.limitOf(kind, units, .5+w.r.Float64())
	if _, ok := w.load.limited[kind]; !ok {
		return
	}
	s := w.scope(scope)
	w.change.Lock()
	defer w.change.Unlock()
	begun := w.now()
	s.(ResourceScopeLimiter).SetLimit(&l)
	ended := w.now()
	for th, p := range w.placeOf[scope] {
		if p >= 0 {
			w.calls = append(w.calls, call{does: limits, begun: begun, ended: ended, sets: flow{p, limitOfThing(&l, thing(th))}})
		}
	}
}

// scope returns a handle on a scope.
func (w *historian) scope(number int) (s network.ResourceScope) {
	var err error
	switch kindOfNumber(number) {
	case KindSystem:
		err = w.m.ViewSystem(func(x network.ResourceScope) error { s = x; return nil })
	case KindTransient:
		err = w.m.ViewTransient(func(x network.ResourceScope) error { s = x; return nil })
	case KindProtocol:
		err = w.m.ViewProtocol(historyProtocols[number-atProtocols], func(x network.ProtocolScope) error { s = x; return nil })
	case KindService:
		err = w.m.ViewService(historyService, func(x network.ServiceScope) error { s = x; return nil })
	default:
		err = w.m.ViewPeer(historyPeers[number-atPeers], func(x network.PeerScope) error { s = x; return nil })
	}
	if err != nil {
		w.t.Errorf("View: %v", err)
	}
	return s
}

// sees notes what a look at a scope has shown.
func (w *historian) sees(c *call, scope int, use network.ScopeStat) {
	for th, n := range [numThings]int64{int64(use.NumConnsInbound), int64(use.NumStreamsInbound), use.Memory} {
		if p := w.placeOf[scope][th]; p >= 0 {
			c.sees[p] = n
		}
	}
}

// look takes a snapshot.
func (w *historian) look() {
	c := call{does: looks, sees: make([]int64, len(w.start)), begun: w.now()}
	s := w.m.Snapshot()
	c.ended = w.now()
	for _, sc := range s.Scopes {
		switch sc.Kind {
		case KindSystem, KindTransient:
			w.sees(&c, int(sc.Kind), sc.Use)
		case KindProtocol:
			w.sees(&c, atProtocols+slices.Index(historyProtocols, protocol.ID(sc.ID)), sc.Use)
		case KindService:
			w.sees(&c, atTheService, sc.Use)
		case KindPeer:
			w.sees(&c, atPeers+slices.IndexFunc(historyPeers, func(p peer.ID) bool { return p.String() == sc.ID }), sc.Use)
		}
	}
	w.calls = append(w.calls, c)
}

// cut checks the invariants in one consistent cut, and what is in use there.
func (w *historian) cut() {
	c := call{does: looks, sees: make([]int64, len(w.start)), begun: w.now()}
	var err error
	w.m.inOneCut(func() {
		err = brokenInvariant(w.m, w.load.changes)
		for scope := range numNumbers {
			var use amounts
			switch kind := kindOfNumber(scope); kind {
			case KindSystem, KindTransient:
				use = w.m.fixed[kind].used()
			case KindProtocol, KindService:
				name := historyService
				if kind == KindProtocol {
					name = string(historyProtocols[scope-atProtocols])
				}
				if p := w.m.dir.find(kind, name); p != nil {
					use = p.used()
				}
			default:
				if ps := w.m.stripeOf(historyPeers[scope-atPeers]).known(historyPeers[scope-atPeers]); ps != nil {
					use = ps.use.amounts()
				}
			}
			w.sees(&c, scope, use.stat())
		}
	})
	c.ended = w.now()
	if err != nil {
		w.t.Error(err)
	}
	w.calls = append(w.calls, c)
}

// TestHistoriesWithAFalseAnswerAreFound: the checker itself can fail. Each
// history has one call that no order explains, and is sound without it.
func TestHistoriesWithAFalseAnswerAreFound(t *testing.T) {
	ask := func(begun, ended, n int64) call {
		return call{begun: begun, ended: ended, takes: []flow{{0, n}}}
	}
	give := func(begun, ended, n int64) call {
		return call{begun: begun, ended: ended, gives: []flow{{0, n}}}
	}
	refused := func(c call) call { c.refused = true; return c }
	for _, c := range []struct {
		name  string
		start []int64
		sound []call
		bad   call
	}{
		{"refused though there was room", []int64{10}, []call{ask(1, 2, 5)}, refused(ask(3, 4, 5))},
		{"refused though another was refused at the same time", []int64{10}, []call{ask(1, 2, 4), refused(ask(3, 6, 7))}, refused(ask(4, 5, 6))},
		{"refused though there was room before anybody began", []int64{10}, []call{ask(1, 2, 10), give(3, 4, 10), ask(7, 8, 10)}, refused(ask(5, 6, 1))},
		{"admitted though it was full", []int64{10}, []call{ask(1, 2, 10)}, ask(3, 4, 1)},
		{"admitted though it was full in one place or the other", []int64{10, 10}, []call{
			{begun: 1, ended: 2, takes: []flow{{0, 10}}},
			{begun: 4, ended: 7, takes: []flow{{1, 10}}},
			{begun: 8, ended: 9, gives: []flow{{0, 10}}},
		}, call{begun: 3, ended: 10, takes: []flow{{0, 1}, {1, 1}}}},
		{"admitted beyond its part", []int64{256}, []call{ask(1, 2, 120)}, call{begun: 3, ended: 4, of512: 256, takes: []flow{{0, 9}}}},
		{"refused within its part", []int64{256}, []call{ask(1, 2, 120)}, call{begun: 3, ended: 4, of512: 256, takes: []flow{{0, 8}}, refused: true}},
		{"admitted by a limit that was lowered before", []int64{10}, []call{{does: limits, begun: 1, ended: 2, sets: flow{0, 4}}}, ask(3, 4, 5)},
		{"refused by a limit that was raised before", []int64{4}, []call{{does: limits, begun: 1, ended: 2, sets: flow{0, 10}}}, refused(ask(3, 4, 5))},
		{"less was seen than was held", []int64{10}, []call{ask(1, 2, 5)}, call{does: looks, begun: 3, ended: 4, sees: []int64{4}}},
		{"more was seen than was held", []int64{10}, []call{ask(1, 2, 5), give(3, 4, 5)}, call{does: looks, begun: 5, ended: 6, sees: []int64{1}}},
		{"two instants were seen", []int64{10, 10}, []call{
			{begun: 1, ended: 2, takes: []flow{{0, 1}}},
			{begun: 4, ended: 5, gives: []flow{{0, 1}}},
			{begun: 6, ended: 7, takes: []flow{{1, 1}}},
		}, call{does: looks, begun: 3, ended: 8, sees: []int64{1, 1}}},
	} {
		h := history{start: c.start, calls: c.sound}
		h.clock.Store(12)
		require.NoError(t, h.verify(), c.name)
		h.calls = append(h.calls, c.bad)
		require.Error(t, h.verify(), c.name)
	}
	// Whatever may be so is not false.
	for _, c := range []call{ask(3, 6, 5), refused(ask(3, 6, 5)), refused(ask(3, 6, 11))} {
		h := history{start: []int64{10}, calls: []call{ask(1, 2, 10), give(4, 5, 10), c}}
		h.clock.Store(12)
		require.NoError(t, h.verify())
	}
}
