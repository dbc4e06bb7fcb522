package rcmgr

// A holder that is done serves the next connection, stream or span (lockIdle and begin in
// opening.go, beginSpan in scope.go). A caller that still has what it was before must not notice, and must not be
// noticed.

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// TestCallsOnDoneScopesDoNotChangeOthers: while some open, use and close scopes of their own,
// others call everything there is on those that are done.
func TestCallsOnDoneScopesDoNotChangeOthers(t *testing.T) {
	const workers = 3
	for _, tt := range []struct {
		name string
		opts []Option
	}{
		{"plain", nil},
		{"records", []Option{WithLeakFinder(LeakFinderConfig{Stacks: 3})}},
		{"shares", []Option{WithFairShare()}},                                               // the long ways
		{"allowlist", []Option{WithAllowlistStrings([]string{"/ip4/198.51.100.1"}, false)}}, // it looks at a connection twice
	} {
		for _, stripes := range []int{1, 8} {
			t.Run(fmt.Sprintf("%s/stripes=%d", tt.name, stripes), func(t *testing.T) {
				conf := unlimitedConf()
				conf.System.Memory = workers * hauntedMost // none gets what others have not given back
				m := newManager(t, conf, append(append(openGates(), tt.opts...), WithStripes(stripes))...)
				h := &haunted{t: t, m: m, holders: make(map[*holder]bool)}
				h.alive.Store(workers)
				stop := watch(t, m, func() error { return brokenInvariant(m, false) })
				together(t, 2*workers, func(id int, r *rand.Rand) {
					if id < workers {
						h.live(r)
						return
					}
					for h.alive.Load() > 0 {
						h.haunt(r)
						runtime.Gosched()
					}
				})
				stop()
				require.Less(t, len(h.holders), h.opened, "no holder has served twice")
				s := m.Snapshot()
				require.Zero(t, s.CallerBugs)
				require.Zero(t, s.Leaks.Open)
				require.Zero(t, s.Leaks.Dropped)
				assertEmpty(t, m)
				require.Zero(t, m.Snapshot().FairShare.Subnets)
			})
		}
	}
}

// A span with a limit of its own gets nothing either, once its owner is done.
func TestASpanWithALimitOfItsOwnEndsWithItsOwner(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	span := mustBeginSpan(t, s)
	spans := []network.ResourceScopeSpan{span, mustBeginSpan(t, span)}
	for _, x := range spans {
		x.(ResourceScopeLimiter).SetLimit(&unlimitedBase)
		require.NoError(t, x.ReserveMemory(1, 255))
	}
	s.Done()
	getNothing := func() {
		before := books(m)
		for _, x := range spans {
			require.ErrorIs(t, x.ReserveMemory(1, 255), network.ErrResourceScopeClosed)
		}
		require.Equal(t, before, books(m))
	}
	getNothing()
	other := mustOpenStream(t, m, testPeer, network.DirOutbound)
	require.Same(t, s.(*streamScope).h, other.(*streamScope).h, "another one is in its place")
	getNothing()
	other.Done()
	assertEmpty(t, m)
}

// A span that outlives its owner is refused by its own limit, and not in the name of the
// scope that has its owner's place by now.
func TestARefusalIsNotBlamedOnTheNextUserOfAHolder(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	s := mustOpenStream(t, m, testPeers[0], network.DirInbound)
	span := mustBeginSpan(t, s)
	span.(ResourceScopeLimiter).SetLimit(&BaseLimit{Memory: 10})
	blamed := func() peer.ID {
		var why *LimitError
		require.ErrorAs(t, span.ReserveMemory(11, 255), &why)
		return m.stripes[0].why.asker
	}
	require.Equal(t, testPeers[0], blamed())
	s.Done()
	require.Empty(t, blamed())
	other := mustOpenStream(t, m, testPeers[1], network.DirInbound)
	require.Same(t, s.(*streamScope).h, other.(*streamScope).h)
	require.Empty(t, blamed())
	other.Done()
	assertEmpty(t, m)
}

// Spans of a stream that come one after another have one holder. An old handle has its own name, and
// neither sees nor affects the next span.
func TestTheNextSpanHasTheHolderOfTheOneBefore(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	for name, owner := range map[string]network.ResourceScopeSpan{
		"stream": mustOpenStream(t, m, testPeer, network.DirInbound), "conn": mustOpenConn(t, m, network.DirInbound),
	} {
		isDone := func(span *spanScope, number int) {
			err := span.ReserveMemory(1, 255)
			require.ErrorIs(t, err, network.ErrResourceScopeClosed)
			require.Regexp(t, fmt.Sprintf(`^%s-\d+\.span-%d: `, name, number), err)
		}
		before := mustBeginSpan(t, owner).(*spanScope)
		before.SetLimit(&BaseLimit{Memory: 5})
		require.NoError(t, before.ReserveMemory(5, 255))
		before.Done()
		require.Nil(t, before.h.limit)
		span := mustBeginSpan(t, owner).(*spanScope)
		require.Same(t, before.h, span.h)
		require.NoError(t, span.ReserveMemory(10, 255), "the limit of the span before")
		isDone(before, 1)
		before.ReleaseMemory(3)
		before.SetLimit(&BaseLimit{})
		before.Done()
		require.Zero(t, before.Stat())
		require.EqualValues(t, 10, span.Stat().Memory)
		require.NoError(t, span.ReserveMemory(1, 255))
		span.Done()
		isDone(before, 1)
		isDone(span, 2)
		owner.Done()
	}
	require.EqualValues(t, 2, m.Snapshot().LateReleases)
	assertEmpty(t, m)
}

// The holder of a span serves no other one where a handle could be mistaken for the handle of that.
func TestSpansThatKeepTheirHolders(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	for name, c := range map[string]struct {
		prepare func(*streamScope, *spanScope)
		serves  bool
	}{
		"":                              {func(*streamScope, *spanScope) {}, true},
		"a span has begun below it":     {prepare: func(_ *streamScope, span *spanScope) { mustBeginSpan(t, span) }},
		"the largest number of a span":  {func(_ *streamScope, span *spanScope) { span.h.seq = 1<<(64-numBits) - 1 }, true},
		"too large a number of a span":  {prepare: func(_ *streamScope, span *spanScope) { span.h.seq = 1 << (64 - numBits) }},
		"too large a number of streams": {prepare: func(s *streamScope, span *spanScope) { s.h.num, span.h.num = 1<<numBits, 1<<numBits }},
		"another stream has its owner": {prepare: func(s *streamScope, _ *spanScope) {
			s.Done()
			require.Same(t, s.h, mustOpenStream(t, m, testPeer, network.DirInbound).(*streamScope).h)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustOpenStream(t, m, testPeer, network.DirInbound).(*streamScope)
			s.h.link = nil
			span := mustBeginSpan(t, s).(*spanScope)
			c.prepare(s, span)
			s.id, span.id = s.h.id(), span.h.id()
			span.Done()
			if c.serves {
				require.Same(t, span.h, s.h.link)
			} else {
				require.NotSame(t, span.h, s.h.link)
			}
		})
	}
}

// A holder that was kept is not used where its old handle could be mistaken for that of the new span:
// where a number is too large for a scopeID, or the count of spans has come to its end.
func TestAKeptHolderServesNoSpanWithTooLargeANumber(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	for name, prepare := range map[string]func(*streamScope){
		"of a span":           func(s *streamScope) { s.h.spans = 1<<(64-numBits) - 1 },
		"of a stream":         func(s *streamScope) { s.h.num = 1 << numBits },
		"the largest number":  func(s *streamScope) { s.h.spans = math.MaxUint32 - 1 },
		"as large as it gets": func(s *streamScope) { s.h.spans = math.MaxUint32 },
	} {
		t.Run(name, func(t *testing.T) {
			s := mustOpenStream(t, m, testPeer, network.DirInbound).(*streamScope)
			before := mustBeginSpan(t, s).(*spanScope)
			before.Done()
			require.Same(t, before.h, s.h.link)
			prepare(s)
			s.id = s.h.id()
			for range 3 {
				span := mustBeginSpan(t, s).(*spanScope)
				require.NotSame(t, before.h, span.h)
				require.NotZero(t, span.h.seq)
				inner := mustBeginSpan(t, span)
				require.NoError(t, inner.ReserveMemory(10, 255))
				span.Done()
				require.Zero(t, s.Stat().Memory)
				inner.Done()
				require.Zero(t, s.Stat().Memory)
			}
			s.Done()
		})
	}
	assertEmpty(t, m)
}

// However many spans have begun below a span, its holder serves no other one.
func TestASpanThatHadVeryManySpansKeepsItsHolder(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	s := mustOpenStream(t, m, testPeer, network.DirInbound).(*streamScope)
	span := mustBeginSpan(t, s).(*spanScope)
	span.h.spans = math.MaxUint32
	inner := mustBeginSpan(t, span)
	require.NoError(t, inner.ReserveMemory(10, 255))
	span.Done()
	next := mustBeginSpan(t, s).(*spanScope)
	require.NoError(t, next.ReserveMemory(5, 255))
	inner.Done()
	require.EqualValues(t, 5, next.Stat().Memory)
	s.Done()
	assertEmpty(t, m)
}

// A stripe keeps few holders of streams that are done, however many there were.
func TestAStripeKeepsAFewIdleHolders(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	var open []network.ResourceScopeSpan
	for range maxIdle + 4 {
		open = append(open, mustOpenStream(t, m, testPeer, network.DirInbound))
	}
	for _, s := range open {
		s.Done()
	}
	st := &m.stripes[0]
	require.Len(t, st.idle, maxIdle)
	require.NotNil(t, st.spare)
	for range 3 { // they are taken from there, and come back
		first := mustOpenStream(t, m, testPeer, network.DirInbound)
		require.Nil(t, st.spare)
		second := mustOpenStream(t, m, testPeer, network.DirInbound)
		require.Len(t, st.idle, maxIdle-1)
		for range 2 {
			first.Done()
			second.Done()
		}
		require.NotNil(t, st.spare)
		require.Len(t, st.idle, maxIdle)
	}
	assertEmpty(t, m)
}

// Connections that come and go use the same few holders, which hold on to nothing while
// they wait. Who is refused, by whatever, takes none away.
func TestHoldersOfConnectionsAreReused(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Conns = 1
	var used meter
	m := newManager(t, conf, WithFairShare(), WithConnRateLimiters(nil), WithMemoryPressure(used.pressure()))
	addr := multiaddr.StringCast("/ip4/203.0.113.1/tcp/1")
	refuses := func(kind Kind, dir network.Direction) {
		var err error
		allocs := testing.AllocsPerRun(1000, func() { _, err = m.OpenConnection(dir, true, addr) })
		var why *LimitError
		require.ErrorAs(t, err, &why)
		require.Equal(t, kind, why.Kind())
		// The race detector makes a pool forget every fourth holder, which does not come to
		// a whole one.
		require.Zero(t, allocs)
	}
	served := make(map[*holder]bool)
	const rounds = 1000
	for range rounds {
		c, err := m.OpenConnection(network.DirInbound, true, addr)
		require.NoError(t, err)
		of := c.(*connScope).state()
		require.NotNil(t, of.gate)
		require.NotNil(t, of.subnet)
		require.NoError(t, c.SetPeer(testPeer))
		if len(served) == 0 {
			refuses(KindSystem, network.DirInbound)  // seen by the gates
			refuses(KindSystem, network.DirOutbound) // for which they do not look
			used.Store(1000)
			m.pressure.look()
			refuses(KindProcess, network.DirInbound)
			used.Store(0)
			m.pressure.look()
		}
		h := c.(*connScope).h
		served[h] = true
		c.Done()
		c.Done()
		require.True(t, h.done)
		require.Same(t, m.stripeOf(testPeer), h.tree.at.Load(), "it stays where it was done")
		require.Nil(t, of.gate, "it would keep gates that have been replaced")
		require.Nil(t, of.subnet, "and subnets that are gone")
		require.Equal(t, chain{}, h.tree.chain, "and peers")
	}
	// A collection of garbage may take them, too.
	require.Less(t, len(served), rounds*3/4)
	assertEmpty(t, m)
}

// A connection does not wait for a stripe in which another goroutine is at work.
func TestAConnectionDoesNotWaitForALockedStripe(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	for range 100 {
		c, err := m.OpenConnection(network.DirInbound, true, testFars[0].addr)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(testPeer))
		c.Done() // there may a holder lie now
		busy := m.stripeOf(testPeer)
		busy.mu.Lock()
		opened := make(chan *connScope)
		go func() {
			c, _ := m.OpenConnection(network.DirInbound, true, testFars[0].addr)
			opened <- c.(*connScope)
		}()
		select {
		case c := <-opened:
			busy.mu.Unlock()
			require.NotSame(t, busy, c.h.tree.at.Load())
			c.Done()
		case <-time.After(10 * time.Second):
			busy.mu.Unlock()
			(<-opened).Done()
			t.Fatal("it waits")
		}
	}
	assertEmpty(t, m)
}

// Where there is one stripe alone, as of a manager that is traced, a holder is not given up
// for the goroutine that is at work there.
func TestASingleStripeReusesItsHoldersWhileItsLockIsTaken(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // each processor has holders of its own
	m := newManager(t, unlimitedConf(), WithStripes(1))
	again := 0
	for range 20 {
		before := mustOpenConn(t, m, network.DirInbound).(*connScope)
		before.Done()
		unlock := lockFor(t, &m.stripes[0].mu)
		opened, id := make(chan network.ConnManagementScope), make(chan string, 1)
		go func() {
			id <- goroutineID()
			c, _ := m.OpenConnection(network.DirInbound, true, testFars[0].addr)
			opened <- c
		}()
		waitUntilLocked(t, <-id)
		unlock()
		c := (<-opened).(*connScope)
		if c.h == before.h {
			again++
		}
		c.Done()
	}
	require.Greater(t, again, 0) // the race detector makes a pool forget some
	assertEmpty(t, m)
}

// hauntedMost is the most bytes that one worker holds at a time.
const hauntedMost = 3000

// haunted is what the workers of TestCallsOnDoneScopesDoNotChangeOthers share.
type haunted struct {
	t     *testing.T
	m     *Manager
	alive atomic.Int32 // goroutines that still open scopes
	// ghosts holds scopes that are done, and spans of such.
	ghosts [16]atomic.Pointer[ghost]

	mu      sync.Mutex
	opened  int
	holders map[*holder]bool // all that ever served
}

// ghost is a scope that is done, or a span of one.
type ghost struct {
	network.ResourceScopeSpan
	name   string
	orphan bool // its owner alone was done
}

// served notes which holder serves a scope, and returns the scope's name.
func (h *haunted) served(s *userScope) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened++
	h.holders[s.h] = true
	st := s.h.tree.lock()
	defer st.unlock()
	name := s.name()
	return name.String()
}

// leave ends a scope, and leaves it to be haunted by.
func (h *haunted) leave(r *rand.Rand, s network.ResourceScopeSpan, name string) {
	s.Done()
	h.ghosts[r.IntN(len(h.ghosts))].Store(&ghost{s, name, false})
}

// live opens scopes, and expects to be alone with them.
func (h *haunted) live(r *rand.Rand) {
	defer h.alive.Add(-1)
	for range stressSteps() {
		if err := h.liveOnce(r); err != nil {
			h.t.Error(err)
			return
		}
	}
}

func (h *haunted) liveOnce(r *rand.Rand) error {
	p, n := pick(r, stressPeers), 1+r.IntN(hauntedMost/3)
	c, err := h.m.OpenConnection(network.DirInbound, true, testFars[1].addr)
	if err != nil {
		return err
	}
	s, err := h.m.OpenStream(p, network.DirOutbound)
	if err != nil {
		return err
	}
	cName, sName := h.served(&c.(*connScope).userScope), h.served(&s.(*streamScope).userScope)
	before := r.IntN(2) == 0 // it moves with its memory, or gets it there
	if before {
		err = c.ReserveMemory(n, 255)
	}
	err = errors.Join(err, c.SetPeer(p), s.SetProtocol(testProto), s.SetService(testSvc), s.ReserveMemory(n, 255))
	if !before {
		err = errors.Join(err, c.ReserveMemory(n, 255))
	}
	first, spanErr := s.BeginSpan()
	if err := errors.Join(err, spanErr); err != nil {
		return err
	}
	err = first.ReserveMemory(n, 255)
	h.leave(r, first, sName+".span-1")
	span, spanErr := s.BeginSpan() // in its holder
	if err := errors.Join(err, spanErr); err != nil {
		return err
	}
	inner, err := span.BeginSpan()
	if err == nil {
		err = inner.ReserveMemory(n, 255)
	}
	runtime.Gosched()
	err = errors.Join(err, alone(c, s, p, int64(n)))
	h.leave(r, c, cName)
	h.leave(r, s, sName)
	h.leave(r, span, sName+".span-2")
	inner.ReleaseMemory(n / 2) // of what is gone with its owners
	h.ghosts[r.IntN(len(h.ghosts))].Store(&ghost{inner, sName + ".span-2.span-1", true})
	return err
}

// alone checks that a connection and a stream of a peer hold n bytes of their own, and the
// stream as many in its spans, and stand where they were put.
func alone(c network.ConnManagementScope, s network.StreamManagementScope, p peer.ID, n int64) error {
	conn, stream := c.Stat(), s.Stat()
	switch {
	case conn != network.ScopeStat{NumConnsInbound: 1, NumFD: 1, Memory: n} ||
		stream != network.ScopeStat{NumStreamsOutbound: 1, Memory: 2 * n}:
		return fmt.Errorf("a connection holds %+v, a stream %+v, with %d bytes at each place", conn, stream, n)
	case c.PeerScope().Peer() != p || s.PeerScope().Peer() != p:
		return errors.New("another peer has them")
	case s.ProtocolScope().Protocol() != testProto || s.ServiceScope().Name() != testSvc:
		return errors.New("a stream stands elsewhere")
	}
	for _, s := range []network.ResourceScopeSpan{c, s} {
		if *s.(ResourceScopeLimiter).Limit().(*BaseLimit) != unlimitedBase {
			return errors.New("somebody has set a limit")
		}
	}
	return nil
}

// haunt calls everything on a scope that is done.
func (h *haunted) haunt(r *rand.Rand) {
	g := h.ghosts[r.IntN(len(h.ghosts))].Load()
	if g == nil {
		return
	}
	closed := func(what string, err error) {
		if !errors.Is(err, network.ErrResourceScopeClosed) || !strings.HasPrefix(err.Error(), g.name+": ") {
			h.t.Errorf("%s.%s: %v", g.name, what, err)
		}
	}
	silent := func(what string, tells bool) {
		if tells {
			h.t.Errorf("%s.%s tells something", g.name, what)
		}
	}
	closed("ReserveMemory", g.ReserveMemory(r.IntN(2), uint8(r.Uint32())))
	l := g.ResourceScopeSpan.(ResourceScopeLimiter)
	limit := unlimitedBase // it is asked first, where a span is not done
	if !g.orphan {
		limit = BaseLimit{}
	}
	l.SetLimit(&limit)
	if !g.orphan {
		silent("Limit", *l.Limit().(*BaseLimit) != (BaseLimit{}))
		silent("Stat", g.Stat() != (network.ScopeStat{}))
		_, err := g.BeginSpan()
		closed("BeginSpan", err)
		g.ReleaseMemory(1 + r.IntN(hauntedMost))
	}
	l.(LimitResetter).ResetLimit()
	switch s := g.ResourceScopeSpan.(type) {
	case network.ConnManagementScope:
		closed("SetPeer", s.SetPeer(pick(r, stressPeers)))
		s.PeerScope()
	case network.StreamManagementScope:
		closed("SetProtocol", s.SetProtocol("/other"))
		closed("SetService", s.SetService("other"))
		silent("ProtocolScope", s.ProtocolScope() != nil)
		silent("ServiceScope", s.ServiceScope() != nil)
	}
	g.Done()
}
