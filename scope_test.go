package rcmgr

// The engine against the reference model: random sequences of calls over a
// grid of limits, stripes and rules, compared after every call, with the
// invariants of doc.go checked after every call too.

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

// pairOfScopes is a scope of the engine with that of the model.
type pairOfScopes struct {
	eng network.ResourceScope
	mod *modelScope // nil for a shared scope: it is looked up by name
	// shared is how the model finds a scope on which others stand.
	shared func() *modelScope
}

func (p *pairOfScopes) model() *modelScope {
	if p.shared != nil {
		return p.shared()
	}
	return p.mod
}

// duel asks the engine and the model the same questions.
type duel struct {
	t       testing.TB
	r       *rand.Rand
	eng     *Manager
	mod     *model
	stripes int
	regime  regime
	held    []*pairOfScopes
	most    int  // scopes to hold at a time
	filling bool // or draining
	lowered bool
	// observing: limits of random kinds are only observed, in turns.
	observing bool
	largest   int64        // the most bytes of a request; 0: any number
	clock     *handClock   // of the rates; nil without
	last      string       // the last question, for the message
	slow      map[Kind]int // refusals by rates
}

func TestRandomSequencesDecideAsTheModel(t *testing.T) {
	steps := cmp.Or(*stepsFlag, 3000)
	if testing.Short() || raceDetector() { // it is one goroutine: there is no race to find
		steps = cmp.Or(*stepsFlag, 150)
	}
	seed := testSeed(t)
	cell := uint64(0)
	for _, stripes := range []int{1, 2, 8, 64} {
		for _, g := range append(slices.Clone(regimes), mixed) {
			for _, a := range []Admission{AdmissionHalf, AdmissionLinear, AdmissionGraded} {
				for _, newcomers := range []bool{true, false} {
					cell++
					r := randomFrom(seed, cell)
					t.Run(fmt.Sprintf("stripes=%d/%s/admission=%d/newcomers=%v", stripes, g.name, a, newcomers), func(t *testing.T) {
						newDuel(t, r, stripes, g, a, newcomers).run(steps)
					})
				}
			}
		}
	}
}

func newDuel(t testing.TB, r *rand.Rand, stripes int, g regime, a Admission, newcomers bool, more ...Option) *duel {
	return newDuelOf(t, r, stripes, g, g.conf(r, stripes), a, newcomers, more...)
}

// newDuelOf is newDuel with limits that are given.
func newDuelOf(t testing.TB, r *rand.Rand, stripes int, g regime, conf perScope[BaseLimit], a Admission, newcomers bool, more ...Option) *duel {
	opts := append(openGates(), WithStripes(stripes), WithAdmission(a), WithNewcomersQuarter(newcomers),
		WithAllowlistedMultiaddrs(testAllowlist))
	opts = append(opts, more...)
	d := &duel{
		t: t, r: r, stripes: stripes, regime: g, most: 24, filling: true,
		eng: newManager(t, conf, opts...),
		mod: newModel(&conf, a, newcomers),
	}
	if g.name == "batch" {
		d.most = 32 * stripes // enough to pass half of a limit
	}
	return d
}

func (d *duel) run(steps int) {
	for i := range steps {
		if d.observing && d.r.IntN(20) == 0 {
			d.observe()
		}
		d.step()
		checkInvariants(d.t, d.eng, d.lowered)
		d.compare(i%16 == 0)
	}
	if d.r.IntN(2) == 0 {
		d.eng.Close()
		d.mod.Close()
		for range 50 {
			d.step() // nothing more is admitted
			checkInvariants(d.t, d.eng, d.lowered)
			d.compare(true)
		}
	}
	d.r.Shuffle(len(d.held), func(i, j int) { d.held[i], d.held[j] = d.held[j], d.held[i] })
	for len(d.held) > 0 {
		d.finish(0)
	}
	d.compare(true)
	if d.clock != nil {
		d.clock.ahead(24 * time.Hour) // until all buckets are full
	}
	assertEmpty(d.t, d.eng)
}

// step asks one random question.
func (d *duel) step() {
	if d.clock != nil && d.r.IntN(10) == 0 {
		d.clock.ahead(pick(d.r, []time.Duration{1, time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond, time.Second, time.Minute}))
	}
	if d.clock != nil && d.r.IntN(20) == 0 {
		d.rush()
		return
	}
	switch n := len(d.held); {
	case n == 0:
		d.filling = true
	case n >= d.most:
		d.filling = false
	case d.r.IntN(4*d.most) == 0:
		d.filling = !d.filling
	}
	if d.filling && d.r.IntN(3) == 0 || len(d.held) == 0 {
		d.open()
		return
	}
	if !d.filling && d.r.IntN(3) == 0 {
		d.finish(d.r.IntN(len(d.held)))
		return
	}
	p := d.held[d.r.IntN(len(d.held))]
	switch d.r.IntN(20) {
	case 0, 1, 2, 3, 4, 5:
		d.reserve(p)
	case 6, 7, 8:
		d.release(p)
	case 9, 10, 11, 12, 13:
		d.attach(p)
	case 14, 15:
		d.span(p)
	case 16:
		if d.clock != nil && !d.mod.closed && d.r.IntN(4) == 0 {
			d.setRates()
			return
		}
		d.view()
	case 17:
		d.setLimit(p)
	case 18:
		if d.r.IntN(8) == 0 {
			d.reap()
		}
	case 19:
		d.finish(d.r.IntN(len(d.held)))
	}
}

var testDirs = []network.Direction{network.DirInbound, network.DirInbound, network.DirOutbound, network.DirUnknown}

func (d *duel) open() {
	dir := pick(d.r, testDirs)
	if d.r.IntN(2) == 0 {
		p := pick(d.r, testPeers)
		d.ask("OpenStream(%s, %v)", p, dir)
		eng, err := d.eng.OpenStream(p, dir)
		mod, want := d.mod.OpenStream(p, dir)
		if d.same(err, want) {
			d.held = append(d.held, &pairOfScopes{eng: eng, mod: mod})
		}
		return
	}
	fd, far := d.r.IntN(2) == 0, pick(d.r, testFars)
	d.ask("OpenConnection(%v, %v, %v)", dir, fd, far.addr)
	eng, err := d.eng.OpenConnection(dir, fd, far.addr)
	mod, want := d.mod.OpenConnection(dir, fd, far.far)
	if d.same(err, want) {
		d.held = append(d.held, &pairOfScopes{eng: eng, mod: mod})
	}
}

// rush opens a few connections or streams of one peer, attaches them and closes each at once: a
// rate counts what no limit does.
func (d *duel) rush() {
	if d.r.IntN(3) == 0 {
		d.rushConns()
		return
	}
	p, dir := pick(d.r, testPeers), pick(d.r, testDirs)
	proto, svc := pick(d.r, testProtocols), pick(d.r, testServices)
	for range 1 + d.r.IntN(8) {
		d.ask("OpenStream(%s, %v) of many", p, dir)
		eng, err := d.eng.OpenStream(p, dir)
		mod, want := d.mod.OpenStream(p, dir)
		if !d.same(err, want) {
			continue
		}
		d.ask("stream.SetProtocol(%q) of many", proto)
		if d.same(eng.SetProtocol(protocol.ID(proto)), d.mod.SetProtocol(mod, proto)) {
			d.ask("stream.SetService(%q) of many", svc)
			d.same(eng.SetService(svc), d.mod.SetService(mod, svc))
		}
		eng.Done()
		d.mod.Done(mod)
	}
}

func (d *duel) rushConns() {
	dir, far, p := pick(d.r, testDirs), pick(d.r, testFars), pick(d.r, testPeers)
	for range 1 + d.r.IntN(8) {
		d.ask("OpenConnection(%v, false, %v) of many", dir, far.addr)
		eng, err := d.eng.OpenConnection(dir, false, far.addr)
		mod, want := d.mod.OpenConnection(dir, false, far.far)
		if !d.same(err, want) {
			continue
		}
		d.ask("conn.SetPeer(%s) of many", p)
		d.same(eng.SetPeer(p), d.mod.SetPeer(mod, p))
		eng.Done()
		d.mod.Done(mod)
	}
}

func (d *duel) attach(p *pairOfScopes) {
	switch eng := p.eng.(type) {
	case network.ConnManagementScope:
		id := pick(d.r, testPeers)
		d.ask("%s.SetPeer(%s)", p.mod.name, id)
		d.same(eng.SetPeer(id), d.mod.SetPeer(p.mod, id))
	case network.StreamManagementScope:
		if d.r.IntN(3) == 0 {
			id := pick(d.r, append(testServices, ""))
			d.ask("%s.SetService(%q)", p.mod.name, id)
			d.same(eng.SetService(id), d.mod.SetService(p.mod, id))
			return
		}
		id := pick(d.r, append(testProtocols, testProtocols...))
		if d.r.IntN(30) == 0 {
			id = ""
		}
		d.ask("%s.SetProtocol(%q)", p.mod.name, id)
		d.same(eng.SetProtocol(protocol.ID(id)), d.mod.SetProtocol(p.mod, id))
	default:
		d.reserve(p)
	}
}

// size returns a number of bytes that is telling for some limit above p.
func (d *duel) size(p *pairOfScopes) int {
	return int(max(math.MinInt, min(d.bytes(p), cmp.Or(d.largest, math.MaxInt64), math.MaxInt)))
}

func (d *duel) bytes(p *pairOfScopes) int64 {
	line := p.model().line()
	limit := d.mod.Limit(pick(d.r, line)).Memory
	switch d.r.IntN(10) {
	case 0:
		return d.r.Int64N(3)
	case 1:
		return limit
	case 2:
		return limit / 2
	case 3:
		return limit/2 - pick(d.r, line).use[dimMemory] // may be negative
	case 4:
		return limit - pick(d.r, line).use[dimMemory]
	case 5:
		return limit / int64(16*d.stripes)
	case 6:
		return limit/4 + d.r.Int64N(3)
	case 7:
		return d.r.Int64N(limit/8 + 2)
	case 8:
		return d.r.Int64N(64)
	}
	return d.r.Int64N(limit/2 + 2)
}

var testPriorities = []uint8{0, 1, 100, network.ReservationPriorityLow, 126, 127, 128, 152, 203, 254, 255, 255, 255}

func (d *duel) reserve(p *pairOfScopes) {
	n, prio := d.size(p), pick(d.r, testPriorities)
	if d.r.IntN(8) == 0 {
		prio = uint8(d.r.Uint32())
	}
	d.ask("%s.ReserveMemory(%d, %d)", p.model().name, n, prio)
	d.same(p.eng.ReserveMemory(n, prio), d.mod.ReserveMemory(p.model(), n, prio))
}

func (d *duel) release(p *pairOfScopes) {
	n := p.model().own
	switch d.r.IntN(10) {
	case 0:
		n += d.r.Int64N(5)
	case 1:
		n = -d.r.Int64N(5)
	case 2, 3, 4, 5:
		n = d.r.Int64N(n/2 + 1)
	}
	n = min(n, math.MaxInt)
	d.ask("%s.ReleaseMemory(%d)", p.model().name, n)
	p.eng.ReleaseMemory(int(n))
	d.mod.ReleaseMemory(p.model(), int(n))
}

func (d *duel) span(p *pairOfScopes) {
	owner, ok := p.eng.(interface {
		BeginSpan() (network.ResourceScopeSpan, error)
	})
	require.True(d.t, ok)
	d.ask("%s.BeginSpan()", p.model().name)
	eng, err := owner.BeginSpan()
	mod, want := d.mod.BeginSpan(p.model())
	if d.same(err, want) {
		d.held = append(d.held, &pairOfScopes{eng: eng, mod: mod})
	}
}

// view keeps a handle on a shared scope.
func (d *duel) view() {
	p := &pairOfScopes{}
	keep := func(s network.ResourceScope) error { p.eng = s; return nil }
	var err error
	switch d.r.IntN(5) {
	case 0:
		p.shared = d.mod.system
		err = d.eng.ViewSystem(keep)
	case 1:
		p.shared = d.mod.transient
		err = d.eng.ViewTransient(keep)
	case 2:
		id := pick(d.r, testPeers)
		p.shared = func() *modelScope { return d.mod.peer(id) }
		err = d.eng.ViewPeer(id, func(s network.PeerScope) error { return keep(s) })
	case 3:
		id := pick(d.r, testProtocols)
		p.shared = func() *modelScope { return d.mod.protocol(id) }
		err = d.eng.ViewProtocol(protocol.ID(id), func(s network.ProtocolScope) error { return keep(s) })
	case 4:
		id := pick(d.r, testServices)
		p.shared = func() *modelScope { return d.mod.service(id) }
		err = d.eng.ViewService(id, func(s network.ServiceScope) error { return keep(s) })
	}
	d.ask("View %s", p.model().name)
	require.NoError(d.t, err)
	d.held = append(d.held, p)
}

func (d *duel) setLimit(p *pairOfScopes) {
	limit := d.regime.limit(d.r, d.stripes)
	switch d.r.IntN(8) {
	case 0, 1, 2:
		limit = mixed.limit(d.r, d.stripes)
	case 3, 4:
		limit = unlimitedBase
	case 5:
		limit.Memory = -1
	}
	if d.clock != nil && d.r.IntN(8) == 0 {
		limit.Rates = someRates(d.r)
	}
	d.ask("%s.SetLimit(%+v)", p.model().name, limit)
	p.eng.(ResourceScopeLimiter).SetLimit(&limit)
	d.mod.SetLimit(p.model(), limit)
	d.lowered = true
	l := d.mod.Limit(p.model())
	require.Equal(d.t, &l, p.eng.(ResourceScopeLimiter).Limit(), d.last)
}

// setRates calls SetLimits with other rates, or with none.
func (d *duel) setRates() {
	conf := *d.mod.conf
	for _, l := range conf.single() {
		l.Rates = Rates{}
	}
	if d.r.IntN(4) > 0 {
		rateAll(d.r, &conf)
	} else {
		conf.Peer, conf.Protocol, conf.ProtocolPeer = unrated(conf.Peer), unrated(conf.Protocol), unrated(conf.ProtocolPeer)
		conf.Service, conf.ServicePeer = unrated(conf.Service), unrated(conf.ServicePeer)
	}
	d.ask("SetLimits with other rates")
	require.NoError(d.t, d.eng.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: conf})))
	d.mod.SetLimits(&conf)
}

func (d *duel) reap() {
	d.ask("reap")
	d.eng.reap()
	d.mod.reap()
	var names []string
	for _, id := range d.eng.ListPeers() {
		names = append(names, "peer:"+id.String())
	}
	for _, id := range d.eng.ListProtocols() {
		names = append(names, "protocol:"+string(id))
	}
	for _, id := range d.eng.ListServices() {
		names = append(names, "service:"+id)
	}
	var want []string
	for name := range d.mod.scopes {
		if strings.Contains(name, ":") && !strings.Contains(name, ".peer:") {
			want = append(want, name)
		}
	}
	require.ElementsMatch(d.t, want, names, "what is left after collection")
	// A span whose tree has ended stands on nothing that can be compared.
	d.held = slices.DeleteFunc(d.held, func(p *pairOfScopes) bool {
		line := p.model().line()
		return line[len(line)-1].done
	})
}

// finish ends what is held at i, and now and then keeps a handle on it. A
// shared scope gives back what was reserved at it.
func (d *duel) finish(i int) {
	p := d.held[i]
	if p.shared != nil {
		for again := true; again; again = p.shared().own > 0 { // more than an int may hold
			n := min(p.shared().own, math.MaxInt)
			d.ask("%s.ReleaseMemory(%d)", p.model().name, n)
			p.eng.ReleaseMemory(int(n))
			d.mod.ReleaseMemory(p.model(), int(n))
		}
	} else {
		d.ask("%s.Done()", p.mod.name)
		p.eng.(interface{ Done() }).Done()
		d.mod.Done(p.mod)
		d.compareOne(p)
		if d.filling && d.r.IntN(4) == 0 {
			return // to ask it again
		}
	}
	d.held[i] = d.held[len(d.held)-1]
	d.held = d.held[:len(d.held)-1]
}

func (d *duel) ask(format string, args ...any) { d.last = fmt.Sprintf(format, args...) }

// same checks an answer, and reports whether the request was admitted.
func (d *duel) same(err error, want answer) bool {
	got := answerOf(err)
	if e := new(LimitError); errors.As(err, &e) && !e.RetryAt().IsZero() {
		got.retry = int64(e.RetryAt().Sub(d.eng.tokens.began))
	}
	if d.slow != nil && got.cause == CauseRate {
		d.slow[(&modelScope{name: got.scope}).kind()]++
	}
	want.asked = numbers.ReplaceAllString(want.asked, "$1")
	require.Equal(d.t, want.String(), got.String(), d.last)
	require.Equal(d.t, want, got, d.last)
	return got.outcome == yes
}

// numbers finds the numbers of connections, streams and spans.
var numbers = regexp.MustCompile(`\b(conn|stream|span)-\d+`)

func answerOf(err error) answer {
	var e *LimitError
	switch {
	case err == nil:
		return answer{outcome: yes}
	case errors.As(err, &e):
		return answer{limited, numbers.ReplaceAllString(e.Asked(), "$1"), numbers.ReplaceAllString(e.Scope(), "$1"),
			e.Resource(), e.Direction(), e.Current(), e.Attempted(), e.Limit(), e.Priority(), e.Cause(), 0}
	case errors.Is(err, network.ErrResourceScopeClosed):
		return answer{outcome: closed}
	}
	return answer{outcome: misused}
}

// compare compares what every shared scope holds, and with all what every
// other scope holds.
func (d *duel) compare(all bool) {
	got := make(map[string]amounts)
	late := uint64(0)
	put := func(name scopeName, use amounts) {
		if use != (amounts{}) {
			got[name.String()] = use
		}
	}
	d.eng.inOneCut(func() {
		for _, p := range append(d.eng.fixed[:], d.eng.dir.list()...) {
			put(p.scope(), p.used())
		}
		for i := range d.eng.stripes {
			if !d.eng.stripes[i].woken.Load() {
				continue
			}
			late += d.eng.stripes[i].lateReleases
			for ps := range d.eng.stripes[i].allPeers {
				put(ps.name(), ps.use.amounts())
				for _, pr := range ps.allPairs() {
					put(pr.name(), pr.use.amounts())
				}
			}
		}
	})
	want := make(map[string]amounts, len(d.mod.scopes))
	for name, s := range d.mod.scopes {
		if s.use != (amounts{}) {
			want[name] = s.use
		}
	}
	if !maps.Equal(want, got) {
		require.Equal(d.t, want, got, d.last)
	}
	require.Equal(d.t, d.mod.bugs, d.eng.callerBugs.Load(), "bugs of callers after %s", d.last)
	require.Equal(d.t, d.mod.late, late, "late releases after %s", d.last)
	if d.observing {
		require.Equal(d.t, d.mod.would, d.eng.wouldRefuseNow(), "what would have been refused after %s", d.last)
	}
	if !all {
		return
	}
	d.compareTokens()
	for _, p := range d.held {
		d.compareOne(p)
	}
	stat := d.eng.Stat()
	require.Equal(d.t, d.mod.system().use.stat(), stat.System)
	require.Equal(d.t, d.mod.transient().use.stat(), stat.Transient)
	for id, s := range stat.Peers {
		require.Equal(d.t, d.mod.peer(id).use.stat(), s)
	}
}

// compareTokens compares the rates of all scopes that others stand on, and what is left of them.
func (d *duel) compareTokens() {
	if d.clock == nil || d.mod.closed { // which keeps no bucket
		return
	}
	got, want := make(map[string][]RateState), make(map[string][]RateState)
	for _, s := range d.eng.Snapshot().Scopes {
		if s.Rates != nil {
			got[s.Name] = s.Rates
		}
	}
	d.eng.inOneCut(func() { // a snapshot does not have the parts of peers
		for i := range d.eng.stripes {
			if !d.eng.stripes[i].woken.Load() {
				continue
			}
			for ps := range d.eng.stripes[i].allPeers {
				for _, pr := range ps.allPairs() {
					if b := pr.bucketCut(); b.rates != nil {
						name := pr.name()
						got[name.String()] = b.states(d.clock.now)
					}
				}
			}
		}
	})
	d.mod.at("allowlistedTransient", d.mod.conf.AllowlistedTransient) // and system: made when they are needed
	for name, s := range d.mod.scopes {
		left := d.mod.tokens(s)
		lacks := func(r RateState) bool { return r.Left < r.Burst }
		_, made := got[name] // the engine makes no scope for a request that is refused
		if left != nil && (made || slices.ContainsFunc(left, lacks)) {
			want[name] = left
		}
	}
	require.Equal(d.t, want, got, d.last)
}

func (d *duel) compareOne(p *pairOfScopes) {
	if want, got := d.mod.Stat(p.model()), p.eng.Stat(); want != got {
		require.Equal(d.t, want, got, "%s after %s", p.model().name, d.last)
	}
}
