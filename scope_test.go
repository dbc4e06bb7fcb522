package rcmgr

// The engine against the reference model: random sequences of calls over a
// grid of limits, stripes and rules, compared after every call, with the
// invariants of doc.go checked after every call too.

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/spread"
)

// A failure prints its seed and the flags that repeat it.
var (
	seedFlag  = flag.Uint64("rcmgr.seed", envUint("RCMGR_SEED"), "seed of random sequences; 0 takes the time (also RCMGR_SEED)")
	stepsFlag = flag.Int("rcmgr.steps", int(envUint("RCMGR_STEPS")), "random calls for each cell of the grid; 0 takes the default (also RCMGR_STEPS)")
)

func envUint(name string) uint64 {
	n, _ := strconv.ParseUint(os.Getenv(name), 0, 64)
	return n
}

// raceDetector tells whether this test binary was built with -race.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func testSeed(t testing.TB) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with: go test -run '^%s$' -rcmgr.seed=%d", strings.SplitN(t.Name(), "/", 2)[0], seed)
		}
	})
	return seed
}

// newManager makes a manager that is closed with the test.
func newManager(t testing.TB, conf perScope[BaseLimit], opts ...Option) *Manager {
	t.Helper()
	m, err := New(NewFixedLimiter(ConcreteLimitConfig{limits: conf}), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// unlimitedBase admits everything.
var unlimitedBase = amounts{math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64,
	math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64}.base()

// base gives limits as they are written. Where int is small, so are counts.
func (a amounts) base() BaseLimit {
	for d := range a {
		if dim(d) != dimMemory {
			a[d] = min(a[d], math.MaxInt)
		}
	}
	return a.baseLimit()
}

// eachLimit visits the limits of every kind of scope in a configuration.
func eachLimit(c *perScope[BaseLimit], f func(Kind, *BaseLimit)) {
	for k, l := range map[Kind]*BaseLimit{
		KindSystem: &c.System, KindTransient: &c.Transient,
		KindAllowlistedSystem: &c.AllowlistedSystem, KindAllowlistedTransient: &c.AllowlistedTransient,
		KindService: &c.ServiceDefault, KindServicePeer: &c.ServicePeerDefault,
		KindProtocol: &c.ProtocolDefault, KindProtocolPeer: &c.ProtocolPeerDefault,
		KindPeer: &c.PeerDefault, KindConn: &c.Conn, KindStream: &c.Stream,
	} {
		f(k, l)
	}
}

// unlimitedConf admits everything everywhere.
func unlimitedConf() (c perScope[BaseLimit]) {
	eachLimit(&c, func(_ Kind, l *BaseLimit) { *l = unlimitedBase })
	return c
}

// checkInvariants checks I1, I4 and the books that are kept along the way.
// With lowered, limits may have been set below what was in use.
func checkInvariants(t testing.TB, m *Manager, lowered bool) {
	t.Helper()
	var err error
	m.inOneCut(func() { err = brokenInvariant(m, lowered) })
	require.NoError(t, err)
}

// brokenInvariant gives the first invariant that does not hold. All stripe
// locks are held.
func brokenInvariant(m *Manager, lowered bool) error {
	named := m.dir.list()
	for _, p := range m.fixed {
		if err := brokenPool(p, lowered); err != nil {
			return err
		}
	}
	for _, p := range named {
		if err := brokenPool(p, lowered); err != nil {
			return err
		}
		members := 0
		for i, sh := range p.shares {
			if sh != m.stripes[i].named(p.kind)[p.name] {
				return fmt.Errorf("I7: stripe %d knows another %v than the directory", i, p.scope())
			}
			if sh != nil {
				members++
			}
		}
		if members != p.members || members == 0 && !p.sticky {
			return fmt.Errorf("I7: %v has %d shares, counted are %d", p.scope(), members, p.members)
		}
	}
	var every, transient, protocols, peers amounts // I4: over both systems
	for i := range m.stripes {
		st := &m.stripes[i]
		if err := brokenStripe(st, lowered); err != nil {
			return fmt.Errorf("stripe %d: %w", i, err)
		}
		if !st.woken.Load() {
			continue
		}
		every.addHeld(&st.fixed[KindSystem].use)
		every.addHeld(&st.fixed[KindAllowlistedSystem].use)
		transient.addHeld(&st.fixed[KindTransient].use)
		transient.addHeld(&st.fixed[KindAllowlistedTransient].use)
		for _, sh := range st.protocols {
			protocols.addHeld(&sh.use)
			if len(named) == 0 || m.dir.find(sh.kind, sh.pool.name) != sh.pool {
				return fmt.Errorf("I7: %v is not in the directory", sh.name())
			}
		}
		for _, sh := range st.services {
			if m.dir.find(sh.kind, sh.pool.name) != sh.pool {
				return fmt.Errorf("I7: %v is not in the directory", sh.name())
			}
		}
		for _, ps := range st.peers {
			peers.addHeld(&ps.use)
		}
	}
	for d := dimStreamsIn; d < numDims; d++ {
		// Every stream has a peer, and is in transient or in one protocol.
		// Every connection is in transient or has a peer.
		want := transient[d] + peers[d]
		if d <= dimStreams {
			want = transient[d] + protocols[d]
			if peers[d] != every[d] {
				return fmt.Errorf("I4: peers hold %d of dimension %d, the systems %d", peers[d], d, every[d])
			}
		}
		if want != every[d] {
			return fmt.Errorf("I4: parts hold %d of dimension %d, the systems %d", want, d, every[d])
		}
	}
	// Two systems without limits may hold more bytes together than an int64.
	if peers, every := uint64(peers[dimMemory]), uint64(every[dimMemory]); peers > every {
		return fmt.Errorf("I4: peers hold %d bytes, the systems %d", peers, every)
	}
	return nil
}

func brokenPool(p *pool, lowered bool) error {
	for d := range numDims {
		l := p.tally(d)
		var use, credit, idle int64
		for _, sh := range p.shares {
			if sh == nil {
				continue
			}
			if sh.pool != p || sh.limit() != &p.limit || sh.ready != &sh.credit {
				return fmt.Errorf("%v: a share points elsewhere", p.scope())
			}
			if sh.use.of(d) > sh.credit[d] {
				return fmt.Errorf("I1: %v: a share uses %d of dimension %d on a credit of %d", p.scope(), sh.use.of(d), d, sh.credit[d])
			}
			if sh.credit[d]-sh.use.of(d) > 2*l.batch {
				return fmt.Errorf("I1: %v: a share keeps %d of dimension %d idle, a batch is %d", p.scope(), sh.credit[d]-sh.use.of(d), d, l.batch)
			}
			use, credit = use+sh.use.of(d), credit+sh.credit[d]
		}
		idle = credit - use
		switch {
		case credit != l.handed:
			return fmt.Errorf("I1: %v: shares hold credit %d of dimension %d, handed out are %d", p.scope(), credit, d, l.handed)
		case l.handed > l.limit && !lowered:
			return fmt.Errorf("I2: %v: %d of dimension %d handed out, the limit is %d", p.scope(), l.handed, d, l.limit)
		case l.tight && idle != 0:
			return fmt.Errorf("I1: %v: tight in dimension %d, but %d lies idle", p.scope(), d, idle)
		case !l.tight && (idle > l.limit/8 || l.handed > l.limit/2 || l.batch == 0):
			return fmt.Errorf("I1: %v: loose in dimension %d: limit %d, batch %d, handed %d, idle %d", p.scope(), d, l.limit, l.batch, l.handed, idle)
		case l.tight && l.batch > 0 && l.handed < l.limit/4:
			return fmt.Errorf("%v: tight in dimension %d, though only %d of %d is in use", p.scope(), d, l.handed, l.limit)
		case l.batch != l.limit/int64(16*len(p.shares)):
			return fmt.Errorf("%v: dimension %d: a batch of %d for a limit of %d", p.scope(), d, l.batch, l.limit)
		case l.tight && p.peak[d] < use:
			return fmt.Errorf("%v: dimension %d: the peak is %d, and %d are used", p.scope(), d, p.peak[d], use)
		}
	}
	return nil
}

// brokenStripe checks what can be seen in one stripe alone.
func brokenStripe(st *stripe, lowered bool) error {
	if !st.woken.Load() {
		if st.notes != nil || st.fixed != [len(st.fixed)]*share{} || len(st.idle)+len(st.queue) > 0 {
			return errors.New("a stripe that nobody uses has something")
		}
		return nil
	}
	queued := make(map[*account]bool, len(st.queue))
	for _, a := range st.queue {
		queued[a] = true
	}
	check := func(a *account) error {
		u := a.use.amounts()
		switch {
		case slices.Min(u[:]) < 0 || a.own < 0 || a.own > u[dimMemory]:
			return fmt.Errorf("%v uses %v, %d bytes of its own", a.name(), u, a.own)
		case u[dimStreams] != u[dimStreamsIn]+u[dimStreamsOut] || u[dimConns] != u[dimConnsIn]+u[dimConnsOut]:
			return fmt.Errorf("%v: a total is not the sum of its directions: %v", a.name(), u)
		case a.ps != nil && !a.sticky && !lowered && exceeds(&u, a.limit()):
			return fmt.Errorf("I2: %v uses %v of %v", a.name(), u, *a.limit())
		case a.refs < 0 || a.gone || a.queued != queued[a]:
			return fmt.Errorf("I7: %v: %d references, gone %v, queued %v", a.name(), a.refs, a.gone, a.queued)
		case !a.lasting() && a.unused() && !a.queued:
			return fmt.Errorf("I7: %v is unused, but nobody will collect it", a.name())
		}
		return nil
	}
	parts := make(map[*share]*amounts) // what the pairs of a share hold
	for _, group := range []map[string]*share{st.services, st.protocols} {
		for _, sh := range group {
			if err := check(&sh.account); err != nil {
				return err
			}
			parts[sh] = new(amounts)
		}
	}
	for _, sh := range st.fixed {
		if err := check(&sh.account); err != nil {
			return err
		}
	}
	for _, h := range st.idle {
		if h.tree.at.Load() != st || !h.done || h.use != 0 || h.own != 0 {
			return fmt.Errorf("a holder that waits for the next lies elsewhere, or holds %d bytes", h.use)
		}
	}
	var conns, streams [2]int64
	var memory int64
	var inTransient [2]int64
	for _, ps := range st.peers {
		if err := check(&ps.account); err != nil {
			return err
		}
		for d, n := range ps.use.amounts() {
			if ps.peak.of(dim(d)) < n {
				return fmt.Errorf("%v: dimension %d: the peak is %d, and %d are used", ps.name(), d, ps.peak.of(dim(d)), n)
			}
		}
		listed := 0
		for pr := ps.pairs; pr != nil; pr = pr.next {
			listed++
		}
		if listed > manyPairs || ps.byShare() != nil && listed > 0 {
			return fmt.Errorf("%v: %d pairs in the list, and %d in the map", ps.name(), listed, len(ps.byShare()))
		}
		for _, pr := range ps.allPairs() {
			if err := check(&pr.account); err != nil {
				return err
			}
			if parts[pr.share] == nil {
				return fmt.Errorf("I7: %v stands on a share that is gone", pr.name())
			}
			parts[pr.share].addHeld(&pr.use)
			for d, n := range pr.use.amounts() {
				if n > ps.use.of(dim(d)) {
					return fmt.Errorf("I4: %v holds more than its peer", pr.name())
				}
			}
		}
		if ps.trusted < 0 || ps.transientStreams[0] < 0 || ps.transientStreams[1] < 0 {
			return fmt.Errorf("%v: %d trusted connections, %d streams in transient", ps.name(), ps.trusted, ps.transientStreams)
		}
		conns[0], conns[1] = conns[0]+ps.use.of(dimConnsIn), conns[1]+ps.use.of(dimConnsOut)
		streams[0], streams[1] = streams[0]+ps.use.of(dimStreamsIn), streams[1]+ps.use.of(dimStreamsOut)
		memory += ps.use.of(dimMemory)
		for i, n := range ps.transientStreams {
			inTransient[i] += int64(n)
		}
	}
	for sh, part := range parts {
		for d, n := range part {
			if use := sh.use.of(dim(d)); n != use && dim(d) != dimMemory || n > use {
				return fmt.Errorf("I4: %v: holds %v, the peers' parts of it %v", sh.name(), sh.use, *part)
			}
		}
	}
	for i, d := range []dim{dimStreamsIn, dimStreamsOut} {
		if n := st.fixed[KindTransient].use.of(d); n != inTransient[i] {
			return fmt.Errorf("I4: peers hold %d %s in transient, which has %d", inTransient[i], limitNames[d], n)
		}
	}
	for i := range conns {
		connsNow, streamsNow := st.peerCounts[(dimConnsIn+dim(i)).oneWay()], st.peerCounts[(dimStreamsIn+dim(i)).oneWay()]
		if connsNow.Sum != conns[i] || streamsNow.Sum != streams[i] || st.peerMemory.Sum != memory {
			return errors.New("a distribution is not that of the peers")
		}
	}
	return nil
}

func (a *amounts) add(b *amounts) {
	for d := range a {
		a[d] += b[d]
	}
}

func exceeds(use, limit *amounts) bool {
	for d := range use {
		if use[d] > limit[d] {
			return true
		}
	}
	return false
}

// assertEmpty checks that nothing is held, and that nothing that is idle stays
// behind except limits that were set by hand.
func assertEmpty(t testing.TB, m *Manager) {
	t.Helper()
	checkInvariants(t, m, false)
	check := func(a *account) {
		if a.use != (held{}) || a.own != 0 {
			t.Errorf("%v still holds %v, %d bytes of its own", a.name(), a.use, a.own)
		}
	}
	m.inOneCut(func() {
		for i := range m.stripes {
			st := &m.stripes[i]
			if !st.woken.Load() {
				continue
			}
			for _, sh := range st.fixed {
				check(&sh.account)
			}
			for _, group := range []map[string]*share{st.services, st.protocols} {
				for _, sh := range group {
					check(&sh.account)
				}
			}
			for _, ps := range st.peers {
				check(&ps.account)
				for _, pr := range ps.allPairs() {
					check(&pr.account)
				}
			}
			for _, s := range append(st.peerCounts[:], st.peerMemory, st.connMemory) {
				if s != (spread.Spread{}) {
					t.Errorf("a distribution is not empty: %v", s)
				}
			}
		}
	})
	m.reap()
	m.inOneCut(func() {
		for i := range m.stripes {
			st := &m.stripes[i]
			if len(st.services)+len(st.protocols)+len(st.queue) != 0 {
				t.Errorf("stripe %d: services %v, protocols %v, %d in the queue", i, st.services, st.protocols, len(st.queue))
			}
			for _, ps := range st.peers {
				if !ps.sticky || ps.refs != 0 || len(ps.allPairs()) != 0 {
					t.Errorf("%v stays: %d references, %d pairs", ps.name(), ps.refs, len(ps.allPairs()))
				}
			}
		}
		for _, p := range m.dir.list() {
			if !p.sticky || p.members != 0 {
				t.Errorf("%v stays with %d members", p.scope(), p.members)
			}
			for d := range numDims {
				if l := p.tally(d); l.handed != 0 {
					t.Errorf("%v: %d of dimension %d are handed out to nobody", p.scope(), l.handed, d)
				}
			}
		}
	})
	checkInvariants(t, m, false)
}

// regime is a family of limits. stripes is the number that batches go by.
type regime struct {
	name string
	pick func(r *rand.Rand, stripes int) int64
}

var regimes = []regime{
	{"tiny", func(r *rand.Rand, _ int) int64 { return r.Int64N(6) }},
	{"small", func(r *rand.Rand, _ int) int64 { return 4 + r.Int64N(60) }},
	{"batch", func(r *rand.Rand, n int) int64 { return int64(16*n)*(1+r.Int64N(3)) + r.Int64N(5) - 2 }},
	{"large", func(r *rand.Rand, _ int) int64 { return 1<<20 + r.Int64N(1<<40) }},
	{"unlimited", func(r *rand.Rand, _ int) int64 { return math.MaxInt64 - r.Int64N(2)*r.Int64N(1000) }},
}

func (g regime) limit(r *rand.Rand, stripes int) BaseLimit {
	var a amounts
	for d := range a {
		a[d] = g.pick(r, stripes)
	}
	return a.base()
}

// mixed takes every number from another family.
var mixed = regime{"mixed", func(r *rand.Rand, n int) int64 { return regimes[r.IntN(len(regimes))].pick(r, n) }}

// conf gives every kind of scope limits of the regime, or leaves it unlimited
// so that others decide.
func (g regime) conf(r *rand.Rand, stripes int) perScope[BaseLimit] {
	c := unlimitedConf()
	for _, l := range c.single() {
		if r.IntN(2) == 0 {
			*l = g.limit(r, stripes)
		}
	}
	c.Conn.Memory, c.Stream.Memory = max(c.Conn.Memory, 1), max(c.Stream.Memory, 1)
	for _, l := range []*BaseLimit{&c.Conn, &c.Stream} { // enough for itself, most of the time
		if r.IntN(8) != 0 {
			mem := l.Memory
			*l = unlimitedBase
			l.Memory = mem
		}
	}
	if r.IntN(2) == 0 {
		c.Peer = map[peer.ID]BaseLimit{testPeers[1]: mixed.limit(r, stripes)}
		c.Protocol = map[protocol.ID]BaseLimit{"/a": mixed.limit(r, stripes)}
		c.ServicePeer = map[string]BaseLimit{"x": mixed.limit(r, stripes)}
	}
	return c
}

var (
	testPeers     = []peer.ID{peerNamed("ann"), peerNamed("bob"), peerNamed("cat"), peerNamed("dan"), peerNamed("eve")}
	testProtocols = []string{"/a", "/b", "/c"}
	testServices  = []string{"x", "y"}
	testFars      = []struct {
		addr multiaddr.Multiaddr
		far  modelFar
	}{
		{nil, modelFar{}},
		{multiaddr.StringCast("/ip4/198.51.100.1/tcp/1"), modelFar{}},
		{multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"), modelFar{open: true}},
		{multiaddr.StringCast("/ip4/192.0.2.2/tcp/1"), modelFar{named: testPeers[0]}},
	}
	testAllowlist = []multiaddr.Multiaddr{
		multiaddr.StringCast("/ip4/192.0.2.1"),
		multiaddr.StringCast("/ip4/192.0.2.2/p2p/" + testPeers[0].String()),
	}
)

// peerNamed gives a peer ID that is valid, and short.
func peerNamed(name string) peer.ID {
	return peer.ID("\x00" + string(rune(len(name))) + name) // an identity multihash
}

// openGates lets everything past the gates.
func openGates() []Option {
	return []Option{
		WithLimitPerSubnet([]ConnLimitPerSubnet{}, []ConnLimitPerSubnet{}),
		WithConnRateLimiters(nil),
	}
}

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
	last      string // the last question, for the message
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
			for _, a := range []Admission{AdmissionHalf, AdmissionLinear} {
				for _, newcomers := range []bool{true, false} {
					cell++
					r := rand.New(rand.NewPCG(seed, cell))
					t.Run(fmt.Sprintf("stripes=%d/%s/admission=%d/newcomers=%v", stripes, g.name, a, newcomers), func(t *testing.T) {
						newDuel(t, r, stripes, g, a, newcomers).run(steps)
					})
				}
			}
		}
	}
}

func newDuel(t testing.TB, r *rand.Rand, stripes int, g regime, a Admission, newcomers bool, more ...Option) *duel {
	conf := g.conf(r, stripes)
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
	assertEmpty(d.t, d.eng)
}

// step asks one random question.
func (d *duel) step() {
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

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

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

// size gives a number of bytes that is telling for some limit above p.
func (d *duel) size(p *pairOfScopes) int {
	return int(max(math.MinInt, min(d.bytes(p), math.MaxInt)))
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
	d.ask("%s.SetLimit(%+v)", p.model().name, limit)
	p.eng.(ResourceScopeLimiter).SetLimit(&limit)
	d.mod.SetLimit(p.model(), limit)
	d.lowered = true
	l := d.mod.Limit(p.model())
	require.Equal(d.t, &l, p.eng.(ResourceScopeLimiter).Limit(), d.last)
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

// same checks an answer, and tells whether the request was admitted.
func (d *duel) same(err error, want answer) bool {
	got := answerOf(err)
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
			e.Resource(), e.Direction(), e.Current(), e.Attempted(), e.Limit(), e.Priority(), e.Cause()}
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
			for _, ps := range d.eng.stripes[i].peers {
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

func (d *duel) compareOne(p *pairOfScopes) {
	if want, got := d.mod.Stat(p.model()), p.eng.Stat(); want != got {
		require.Equal(d.t, want, got, "%s after %s", p.model().name, d.last)
	}
}
