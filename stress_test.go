package rcmgr

// Many goroutines at once, best run with -race: no request is refused that
// fits (I2), no limit is passed (I2), what everybody holds adds up at every
// instant (I1, I4), and nothing is left at the end.

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

var stressStripes = []int{1, 8, 64}

// resourceUse is a way to hold something: n of it, in one step or in several. It
// returns how to let go.
type resourceUse struct {
	name string
	// limit puts a limit on what take takes, and on nothing else.
	limit func(c *perScope[BaseLimit], n int64)
	// single: take takes one at a time.
	single bool
	// take takes n. What it returns with an error ends what was begun.
	take func(m *Manager, r *rand.Rand, n int, priority uint8) (release func(), err error)
}

var stressPeers = manyPeers(40)

func setMemory(ls ...*BaseLimit) func(n int64) {
	return func(n int64) {
		for _, l := range ls {
			l.Memory = n
		}
	}
}

func takeAt(s network.ResourceScope, n int, priority uint8) (func(), error) {
	if err := s.ReserveMemory(n, priority); err != nil {
		return nil, err
	}
	return func() { s.ReleaseMemory(n) }, nil
}

var resourceUses = []resourceUse{
	{
		name:  "memory of system, at peers",
		limit: func(c *perScope[BaseLimit], n int64) { setMemory(&c.System)(n) },
		take: func(m *Manager, r *rand.Rand, n int, priority uint8) (release func(), err error) {
			m.ViewPeer(pick(r, stressPeers), func(s network.PeerScope) error {
				release, err = takeAt(s, n, priority)
				return nil
			})
			return release, err
		},
	},
	{
		name:  "memory of transient, at itself and at spans",
		limit: func(c *perScope[BaseLimit], n int64) { setMemory(&c.Transient)(n) },
		take: func(m *Manager, r *rand.Rand, n int, priority uint8) (release func(), err error) {
			m.ViewTransient(func(s network.ResourceScope) error {
				if r.IntN(2) == 0 {
					release, err = takeAt(s, n, priority)
					return nil
				}
				var span network.ResourceScopeSpan
				if span, err = s.BeginSpan(); err == nil {
					release = span.Done
					err = span.ReserveMemory(n, priority)
				}
				return nil
			})
			return release, err
		},
	},
	{
		name:  "memory of a protocol and its service, at streams and their spans",
		limit: func(c *perScope[BaseLimit], n int64) { setMemory(&c.ProtocolDefault, &c.ServiceDefault)(n) },
		take: func(m *Manager, r *rand.Rand, n int, priority uint8) (func(), error) {
			s, err := m.OpenStream(pick(r, stressPeers), network.DirOutbound)
			if err != nil {
				return nil, err
			}
			span, err := s.BeginSpan()
			if err != nil {
				return s.Done, err
			}
			end := func() {
				if r.IntN(2) == 0 {
					span.Done()
				}
				s.Done()
			}
			steps := []func() error{
				func() error { return s.SetProtocol("/p") },
				func() error { return s.SetService("s") },
				func() error { return pick(r, []network.ResourceScope{s, span}).ReserveMemory(n, priority) },
			}
			if priority == 255 && r.IntN(4) == 0 {
				steps[0], steps[1], steps[2] = steps[2], steps[0], steps[1] // the memory comes along with the stream
			}
			for _, step := range steps {
				if err := step(); err != nil {
					return end, err
				}
			}
			return end, nil
		},
	},
	{
		name:   "connections",
		single: true,
		limit: func(c *perScope[BaseLimit], n int64) {
			for _, l := range []*BaseLimit{&c.System, &c.Transient} {
				l.Conns, l.ConnsInbound, l.FD = int(n), int(n), int(n)
			}
		},
		take: func(m *Manager, r *rand.Rand, _ int, _ uint8) (func(), error) {
			c, err := m.OpenConnection(network.DirInbound, true, nil)
			if err != nil {
				return nil, err
			}
			if r.IntN(4) != 0 {
				err = c.SetPeer(pick(r, stressPeers))
			}
			return c.Done, err
		},
	},
	{
		name:   "streams",
		single: true,
		limit: func(c *perScope[BaseLimit], n int64) {
			for _, l := range []*BaseLimit{&c.System, &c.Transient, &c.ProtocolDefault, &c.ServiceDefault} {
				l.Streams, l.StreamsInbound = int(n), int(n)
			}
		},
		take: func(m *Manager, r *rand.Rand, _ int, _ uint8) (func(), error) {
			s, err := m.OpenStream(pick(r, stressPeers), network.DirInbound)
			if err != nil {
				return nil, err
			}
			if r.IntN(4) != 0 {
				if err = s.SetProtocol("/p"); err == nil && r.IntN(2) == 0 {
					err = s.SetService("s")
				}
			}
			return s.Done, err
		},
	},
}

// around is limits around the points where something changes.
func around(stripes int) []int64 {
	n := int64(16 * stripes)
	return []int64{8, n - 1, n, 4*n + 3}
}

// TestRequestsThatFitAreNeverRefused: workers that together want exactly the limit.
func TestRequestsThatFitAreNeverRefused(t *testing.T) {
	const workers = 8
	for _, use := range resourceUses {
		for _, stripes := range stressStripes {
			for _, limit := range around(stripes) {
				if !use.single {
					limit *= 64 // bytes
				}
				t.Run(fmt.Sprintf("%s/stripes=%d/limit=%d", use.name, stripes, limit), func(t *testing.T) {
					conf := unlimitedConf()
					use.limit(&conf, limit)
					m := newManager(t, conf, append(openGates(), WithStripes(stripes), WithNewcomersQuarter(false))...)
					together(t, workers, func(id int, r *rand.Rand) {
						share := limit / workers
						if id == 0 {
							share += limit % workers
						}
						holdWithin(t, m, &use, r, share)
					})
					assertEmpty(t, m)
				})
			}
		}
	}
}

// holdWithin holds up to share of something, in changing parts.
func holdWithin(t *testing.T, m *Manager, use *resourceUse, r *rand.Rand, share int64) {
	type part struct {
		n       int64
		release func()
	}
	var parts []part
	var held int64
	letGo := func(i int) {
		parts[i].release()
		held -= parts[i].n
		parts[i] = parts[len(parts)-1]
		parts = parts[:len(parts)-1]
	}
	full := false // once; from then on it comes and goes
	for i := 0; !full || i < stressSteps()/2; i++ {
		if t.Failed() {
			break
		}
		n := share - held // all of it, as often as not
		full = full || n == 0
		switch {
		case n == 0 || full && len(parts) > 0 && r.IntN(2) == 0:
			letGo(r.IntN(len(parts)))
			continue
		case use.single:
			n = 1
		case r.IntN(2) == 0:
			n = 1 + r.Int64N(n)
		}
		priority := uint8(128 + r.IntN(128))
		if r.IntN(2) == 0 {
			priority = 255
		}
		release, err := use.take(m, r, int(n), priority)
		if err != nil {
			t.Errorf("%d more was refused to one who holds %d of %d: %v", n, held, share, err)
			return
		}
		held += n
		parts = append(parts, part{n, release})
	}
	for len(parts) > 0 {
		letGo(len(parts) - 1)
	}
}

// witness knows, from outside, between which bounds the use of one limited
// thing lies.
type witness struct {
	limit int64
	low   atomic.Int64 // held for certain
	high  atomic.Int64 // perhaps held: asked for and neither refused nor released
	asked atomic.Int64 // all that was ever asked for
}

// try asks for n with a bound, and checks the answer: no overshoot, and no
// refusal that nobody can explain.
func (w *witness) try(t *testing.T, n, bound int64, take func() (func(), error)) (release func(), ok bool) {
	before := w.asked.Load()
	high := w.high.Add(n)
	w.asked.Add(n) // after high: whoever is not seen here has not begun
	end, err := take()
	if err != nil {
		// At no instant of the call was more in use, this request included,
		// than at its begin and what others have asked for since.
		if most := high + w.asked.Load() - before - n; most <= bound {
			t.Errorf("%d was refused while at most %d of %d was in use with it: %v", n, most, bound, err)
		}
		if end != nil {
			end()
		}
		w.high.Add(-n)
		return nil, false
	}
	if low := w.low.Add(n); low > w.limit {
		t.Errorf("%d held of %d", low, w.limit)
	}
	return func() {
		w.low.Add(-n)
		end()
		w.high.Add(-n)
	}, true
}

// TestNoLimitIsPassedAndEveryRefusalIsDue: workers that want more than fits.
func TestNoLimitIsPassedAndEveryRefusalIsDue(t *testing.T) {
	const workers = 6
	for _, use := range resourceUses {
		for _, stripes := range stressStripes {
			for _, limit := range around(stripes) {
				if !use.single {
					limit *= 64
				}
				t.Run(fmt.Sprintf("%s/stripes=%d/limit=%d", use.name, stripes, limit), func(t *testing.T) {
					conf := unlimitedConf()
					use.limit(&conf, limit)
					m := newManager(t, conf, append(openGates(), WithStripes(stripes), WithNewcomersQuarter(false))...)
					w := &witness{limit: limit}
					var refusals atomic.Int64
					stop := watch(t, m, func() error { return brokenInvariant(m, false) })
					together(t, workers, func(_ int, r *rand.Rand) { refusals.Add(grab(t, m, &use, w, r)) })
					stop()
					require.NotZero(t, refusals.Load(), "the limit was never reached")
					assertEmpty(t, m)
				})
			}
		}
	}
}

// grab takes as much as it gets, and lets go of some of it.
func grab(t *testing.T, m *Manager, use *resourceUse, w *witness, r *rand.Rand) (refusals int64) {
	var parts []func()
	for i := 0; refusals == 0 || i < stressSteps()/8; i++ { // at least until it is full
		if t.Failed() {
			break
		}
		n, bound, priority := int64(1), w.limit, uint8(255)
		if !use.single {
			n = 1 + r.Int64N(w.limit/2)
			if r.IntN(2) == 0 {
				n = 1 + r.Int64N(w.limit/16)
			}
			if r.IntN(2) == 0 {
				priority = uint8(r.Uint32())
				bound = AdmissionHalf.threshold(w.limit, AdmissionHalf.weight(priority))
			}
		}
		release, ok := w.try(t, n, bound, func() (func(), error) { return use.take(m, r, int(n), priority) })
		if ok {
			parts = append(parts, release)
			if refusals == 0 || r.IntN(3) == 0 {
				continue
			}
		} else {
			refusals++
		}
		for len(parts) > 0 && r.IntN(8) != 0 {
			parts[len(parts)-1]()
			parts = parts[:len(parts)-1]
		}
	}
	for _, release := range parts {
		release()
	}
	return refusals
}

// TestConnectionsMoveWhileTheirSpansReserve: a connection goes to its peer's
// stripe while others reserve memory on it and its spans. Everything fits.
func TestConnectionsMoveWhileTheirSpansReserve(t *testing.T) {
	const workers, each = 4, 1000
	for _, stripes := range stressStripes {
		t.Run(fmt.Sprintf("stripes=%d", stripes), func(t *testing.T) {
			conf := unlimitedConf()
			conf.System.Memory, conf.Transient.Memory = workers*each, workers*each
			conf.System.Conns, conf.Transient.Conns = workers, workers
			m := newManager(t, conf, append(openGates(), WithStripes(stripes))...)
			stop := watch(t, m, func() error { return brokenInvariant(m, false) })
			together(t, workers, func(_ int, r *rand.Rand) {
				for range stressSteps() / 4 {
					if t.Failed() {
						return
					}
					moveUnderWay(t, m, r, each)
				}
			})
			stop()
			assertEmpty(t, m)
		})
	}
}

func moveUnderWay(t *testing.T, m *Manager, r *rand.Rand, memory int) {
	c, err := m.OpenConnection(network.DirInbound, false, nil)
	if err != nil {
		t.Errorf("OpenConnection: %v", err)
		return
	}
	span, _ := c.BeginSpan()
	inner, _ := span.BeginSpan()
	scopes := []network.ResourceScopeSpan{c, span, inner}
	seed := r.Uint64()
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		r := randomFrom(seed, 1)
		close(ready)
		for range 6 {
			s, n := pick(r, scopes), r.IntN(memory)+1
			if err := s.ReserveMemory(n, 255); err != nil {
				t.Errorf("ReserveMemory: %v", err)
				return
			}
			s.Stat()
			s.ReleaseMemory(n)
		}
	})
	<-ready
	if err := c.SetPeer(pick(r, stressPeers)); err != nil {
		t.Errorf("SetPeer: %v", err)
	}
	wg.Wait()
	r.Shuffle(len(scopes), func(i, j int) { scopes[i], scopes[j] = scopes[j], scopes[i] })
	for _, s := range scopes {
		s.Done()
	}
}

// TestALockIsTakenInTheStripeThatAConnectionMovedTo: a call that waits for the lock of a
// connection's stripe while the connection moves away gets the new one.
func TestALockIsTakenInTheStripeThatAConnectionMovedTo(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	for range 200 {
		c := mustOpenConn(t, m, network.DirInbound).(*connScope)
		tree, p := c.h.tree, stressPeers[0]
		from := tree.at.Load()
		for i := 0; m.stripeOf(p) == from; i++ {
			p = stressPeers[i]
		}
		var wg sync.WaitGroup
		from.mu.Lock() // they queue up behind this
		wg.Go(func() { c.SetPeer(p) })
		for range 4 {
			runtime.Gosched()
			wg.Go(func() {
				st := tree.lock()
				if st != tree.at.Load() {
					t.Error("the lock of a stripe that the connection has left")
				}
				st.unlock()
			})
		}
		runtime.Gosched()
		from.mu.Unlock()
		wg.Wait()
		c.Done()
	}
	assertEmpty(t, m)
}

// TestEverythingAtOnce: opens, moves, spans, reservations, views, collection
// and limits that change, on scopes that are shared by all workers.
func TestEverythingAtOnce(t *testing.T) {
	const workers = 6
	for _, stripes := range stressStripes {
		for _, a := range []Admission{AdmissionHalf, AdmissionLinear, AdmissionGraded} {
			t.Run(fmt.Sprintf("stripes=%d/admission=%d", stripes, a), func(t *testing.T) {
				conf := unlimitedConf()
				for _, l := range []*BaseLimit{&conf.System, &conf.Transient, &conf.ProtocolDefault, &conf.ServiceDefault} {
					*l = crowdLimit(stripes, 0)
				}
				conf.PeerDefault = crowdLimit(2, 0)
				m := newManager(t, conf, append(openGates(), WithStripes(stripes), WithAdmission(a),
					WithAllowlistedMultiaddrs(testAllowlist))...)
				stop := watch(t, m, drains(m))
				c := &crowd{t: t, m: m, stripes: stripes}
				together(t, workers, func(_ int, r *rand.Rand) { c.work(r) })
				stop()
				c.end()
				assertEmpty(t, m)
			})
		}
	}
}

// drains checks the invariants, and that a scope which holds more than its
// limit, because the limit was lowered, holds no more than in the last cut.
func drains(m *Manager) func() error {
	type state struct{ limit, use amounts }
	last := make(map[*pool]state)
	return func() error {
		for _, p := range append(m.fixed[:], m.dir.list()...) {
			use := p.used()
			if was, ok := last[p]; ok && was.limit == p.limit {
				for d := range use {
					if use[d] > max(p.limit[d], was.use[d]) {
						return fmt.Errorf("I2: %v went from %d to %d of dimension %d, its limit is %d", p.scope(), was.use[d], use[d], d, p.limit[d])
					}
				}
			}
			last[p] = state{p.limit, use}
		}
		return brokenInvariant(m, true)
	}
}

// crowdLimit is around what six workers use. Each version is a different one.
func crowdLimit(stripes, version int) BaseLimit {
	n := 16*stripes + 20 + version%37
	return BaseLimit{
		Streams: n, StreamsInbound: n - 8, StreamsOutbound: n - 9, Conns: n, ConnsInbound: n - 4, ConnsOutbound: n - 5,
		FD: n - 6, Memory: int64(n)<<20 + int64(version),
	}
}

// crowd is what the workers of TestEverythingAtOnce share.
type crowd struct {
	t       *testing.T
	m       *Manager
	stripes int
	version atomic.Int64 // of limits
	// slots holds scopes that any worker may use, move or end at any time.
	slots [64]atomic.Pointer[network.ResourceScopeSpan]
}

func (c *crowd) put(r *rand.Rand, s network.ResourceScopeSpan) {
	if old := c.slots[r.IntN(len(c.slots))].Swap(&s); old != nil {
		(*old).Done()
	}
}

func (c *crowd) work(r *rand.Rand) {
	var places []func() // how to release what was reserved at shared scopes
	defer func() {
		for _, release := range places {
			release()
		}
	}()
	for range 3 * stressSteps() {
		if c.t.Failed() {
			return
		}
		switch r.IntN(12) {
		case 0, 1, 2:
			if s, err := c.m.OpenStream(pick(r, stressPeers), pick(r, testDirs)); err == nil {
				c.put(r, s)
			}
		case 3, 4:
			if s, err := c.m.OpenConnection(pick(r, testDirs), r.IntN(2) == 0, pick(r, testFars).addr); err == nil {
				c.put(r, s)
			}
		case 5, 6, 7, 8:
			if s := c.slots[r.IntN(len(c.slots))].Load(); s != nil {
				c.touch(r, *s)
			}
		case 9:
			c.place(r, func(s network.ResourceScope) {
				if n := r.IntN(4 << 20); s.ReserveMemory(n, uint8(r.Uint32())) == nil {
					places = append(places, func() { s.ReleaseMemory(n) })
				}
				if span, err := s.BeginSpan(); err == nil {
					c.put(r, span)
				}
			})
			for len(places) > 8 {
				places[0]()
				places = places[1:]
			}
		case 10:
			if r.IntN(20) == 0 {
				c.place(r, func(s network.ResourceScope) {
					l := crowdLimit(c.stripes, int(c.version.Add(1)))
					s.(ResourceScopeLimiter).SetLimit(&l)
				})
			}
		case 11:
			c.look(r)
		}
	}
}

// touch does something with a scope that may be ended by others meanwhile.
func (c *crowd) touch(r *rand.Rand, s network.ResourceScopeSpan) {
	switch r.IntN(6) {
	case 0, 1:
		if n := r.IntN(2 << 20); s.ReserveMemory(n, uint8(r.Uint32())) == nil && r.IntN(2) == 0 {
			s.ReleaseMemory(n)
		}
	case 2:
		if span, err := s.BeginSpan(); err == nil {
			c.put(r, span)
		}
	case 3:
		s.Done()
	default:
		switch s := s.(type) {
		case network.ConnManagementScope:
			if s.SetPeer(pick(r, stressPeers)) == nil {
				s.PeerScope()
			}
		case network.StreamManagementScope:
			if s.SetProtocol(protocol.ID(pick(r, testProtocols))) == nil {
				s.SetService(pick(r, testServices))
			}
			s.ProtocolScope()
			s.ServiceScope()
		}
	}
	s.Stat()
}

// place calls f with some shared scope.
func (c *crowd) place(r *rand.Rand, f func(network.ResourceScope)) {
	var err error
	switch r.IntN(5) {
	case 0:
		err = c.m.ViewSystem(func(s network.ResourceScope) error { f(s); return nil })
	case 1:
		err = c.m.ViewTransient(func(s network.ResourceScope) error { f(s); return nil })
	case 2:
		err = c.m.ViewPeer(pick(r, stressPeers), func(s network.PeerScope) error { f(s); return nil })
	case 3:
		err = c.m.ViewProtocol(protocol.ID(pick(r, testProtocols)), func(s network.ProtocolScope) error { f(s); return nil })
	case 4:
		err = c.m.ViewService(pick(r, testServices), func(s network.ServiceScope) error { f(s); return nil })
	}
	if err != nil {
		c.t.Errorf("View: %v", err)
	}
}

// look reads what people and metrics read, and collects.
func (c *crowd) look(r *rand.Rand) {
	switch r.IntN(16) {
	case 0:
		c.m.reap()
	case 1:
		c.m.Stat()
	case 2:
		c.m.Snapshot()
	case 3:
		c.m.read()
	case 4:
		c.m.ListPeers()
		c.m.ListProtocols()
		c.m.ListServices()
	}
}

func (c *crowd) end() {
	for i := range c.slots {
		if s := c.slots[i].Load(); s != nil {
			(*s).Done()
		}
	}
	// What was lowered does not matter any more: nothing is held.
	limit := unlimitedBase
	limit.Memory = math.MaxInt64
	for _, k := range []Kind{KindSystem, KindTransient} {
		c.m.fixed[k].SetLimit(&limit)
	}
}
