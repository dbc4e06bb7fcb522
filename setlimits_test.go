package rcmgr

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// distinctConf has another number of streams for each scope, from n on, and enough
// of everything else.
func distinctConf(n int, named bool) perScope[BaseLimit] {
	next := func() BaseLimit {
		n++
		l := unlimitedBase
		l.Streams = n
		return l
	}
	var c perScope[BaseLimit]
	for _, l := range c.single() {
		*l = next()
	}
	if named {
		c.Service = map[string]BaseLimit{"a": next()}
		c.ServicePeer = map[string]BaseLimit{"a": next()}
		c.Protocol = map[protocol.ID]BaseLimit{"/a": next()}
		c.ProtocolPeer = map[protocol.ID]BaseLimit{"/a": next()}
		c.Peer = map[peer.ID]BaseLimit{testPeer: next()}
	}
	return c
}

func fixedOf(c perScope[BaseLimit]) Limiter {
	return NewFixedLimiter(ConcreteLimitConfig{limits: c})
}

// everything opens one of each scope and returns them with what a configuration says
// of them.
func everything(t *testing.T, m *Manager) map[string]struct {
	scope network.ResourceScope
	says  func(Limiter) Limit
} {
	t.Helper()
	type one = struct {
		scope network.ResourceScope
		says  func(Limiter) Limit
	}
	all := make(map[string]one)
	for _, p := range []peer.ID{testPeer, "other"} {
		s, err := m.OpenStream(p, network.DirInbound)
		require.NoError(t, err)
		proto, svc := protocol.ID("/a"), "a"
		if p == "other" {
			proto, svc = "/b", "b"
		}
		require.NoError(t, s.SetProtocol(proto))
		require.NoError(t, s.SetService(svc))
		of := func(l Limiter) Limit { return l.GetStreamLimits(p) }
		all["stream of "+string(p)] = one{s, of}
		span, err := s.BeginSpan()
		require.NoError(t, err)
		all["span of stream of "+string(p)] = one{span, of}
		ps := viewPeer(t, m, p)
		span, err = ps.BeginSpan()
		require.NoError(t, err)
		ofPeer := func(l Limiter) Limit { return l.GetPeerLimits(p) }
		all["peer "+string(p)], all["span of peer "+string(p)] = one{ps, ofPeer}, one{span, ofPeer}
		all["protocol "+string(proto)] = one{viewProtocol(t, m, proto), func(l Limiter) Limit { return l.GetProtocolLimits(proto) }}
		all["service "+svc] = one{viewService(t, m, svc), func(l Limiter) Limit { return l.GetServiceLimits(svc) }}
	}
	c, err := m.OpenConnection(network.DirInbound, false, nil)
	require.NoError(t, err)
	all["connection"] = one{c, func(l Limiter) Limit { return l.GetConnLimits() }}
	all["system"] = one{viewSystem(t, m), Limiter.GetSystemLimits}
	all["transient"] = one{viewTransient(t, m), Limiter.GetTransientLimits}
	all["allowlisted system"] = one{m.fixed[KindAllowlistedSystem], Limiter.GetAllowlistedSystemLimits}
	all["allowlisted transient"] = one{m.fixed[KindAllowlistedTransient], Limiter.GetAllowlistedTransientLimits}
	return all
}

// pairLimits returns the limits of peers in services and protocols.
func pairLimits(m *Manager) map[string]int64 {
	all := make(map[string]int64)
	m.inOneCut(func() {
		for i := range m.stripes {
			for ps := range m.stripes[i].allPeers {
				for _, pr := range ps.allPairs() {
					all[string(ps.id)+" "+pr.share.pool.name] = pr.limit()[dimStreams]
				}
			}
		}
	})
	return all
}

func requireAsSaid(t *testing.T, m *Manager, l Limiter, but ...string) {
	t.Helper()
	skip := make(map[string]bool)
	for _, name := range but {
		skip[name] = true
	}
	for name, one := range everything(t, m) {
		if !skip[name] {
			require.Equal(t, one.says(l), one.scope.(ResourceScopeLimiter).Limit(), name)
		}
	}
	require.Equal(t, map[string]int64{
		string(testPeer) + " /a": int64(l.GetProtocolPeerLimits("/a").GetStreamTotalLimit()), "other /b": int64(l.GetProtocolPeerLimits("/b").GetStreamTotalLimit()),
		string(testPeer) + " a": int64(l.GetServicePeerLimits("a").GetStreamTotalLimit()), "other b": int64(l.GetServicePeerLimits("b").GetStreamTotalLimit()),
	}, pairLimits(m))
	checkInvariants(t, m, true)
}

// Every way from one kind of Limiter to another, with scopes that are named by
// both, by one of them, or by none.
func TestSetLimitsReachesEverythingThatLives(t *testing.T) {
	other := func(l Limiter) Limiter { return otherLimiter{l} }
	same := func(l Limiter) Limiter { return l }
	for name, kinds := range map[string][2]func(Limiter) Limiter{
		"ours to ours": {same, same}, "ours to another": {same, other},
		"another to ours": {other, same}, "another to another": {other, other},
	} {
		for _, named := range [][2]bool{{true, true}, {true, false}, {false, true}, {false, false}} {
			t.Run(fmt.Sprintf("%s, named %v", name, named), func(t *testing.T) {
				m, err := New(kinds[0](fixedOf(distinctConf(100, named[0]))))
				require.NoError(t, err)
				defer m.Close()
				living := everything(t, m)
				next := kinds[1](fixedOf(distinctConf(200, named[1])))
				require.NoError(t, m.SetLimits(next))
				for name, one := range living {
					got := one.scope.(ResourceScopeLimiter).Limit()
					if foreign := m.limits.Load().own == nil; name[:4] == "stre" || name[:4] == "span" && name[8:12] == "stre" {
						// Streams that a Limiter of ours did not open keep theirs.
						if _, was := kinds[0](nil).(otherLimiter); was || foreign {
							continue
						}
					}
					require.Equal(t, one.says(next), got, name)
				}
				requireAsSaid(t, m, next)
			})
		}
	}
}

func TestGaugesTableAndConnLimitFollowSetLimits(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns, c.PeerDefault.Conns = 100, 10 }))
	reg := prometheus.NewRegistry()
	require.NoError(t, m.RegisterWith(reg))
	require.NoError(t, m.SetLimits(fixedOf(limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns, c.PeerDefault.Conns = 200, 20 }))))
	require.Equal(t, 200, m.GetConnLimit())
	s := m.Snapshot()
	require.Equal(t, 200, s.Scopes[0].Limit.Conns)
	cfg := m.Limits().ToPartialLimitConfig()
	require.EqualValues(t, 200, cfg.System.Conns)
	require.EqualValues(t, 20, cfg.PeerDefault.Conns)
	requireValue(t, 200, reg, "scope_limit", "", "conns", "system")
	requireValue(t, 20, reg, "class_limit", "conns", "peer")
}

func TestSetLimitsChangesAllOrNothing(t *testing.T) {
	before := namedConf().Build(DefaultLimits.Scale(1<<30, 100))
	bad := func(change func(*PartialLimitConfig)) Limiter {
		p := namedConf()
		p.System.Conns, p.Gates.Subnets.IPv4[32] = 999, 999
		change(&p)
		return NewFixedLimiter(p.Build(DefaultLimits.Scale(1<<30, 100)))
	}
	m := newFrom(t, before, WithStrictConfig())
	viewPeer(t, m, testPeer)
	viewProtocol(t, m, "/a")
	want := asJSON(t, m.Limits())
	for text, l := range map[string]Limiter{
		`Service["a"].Streams: is -5`: bad(func(p *PartialLimitConfig) { p.Service["a"] = ResourceLimits{Streams: -5} }),
		`Stream.FD: is -3`:            bad(func(p *PartialLimitConfig) { p.Stream.FD = -3 }),
		`Gates.Subnets.IPv4["33"]`:    bad(func(p *PartialLimitConfig) { p.Gates.Subnets.IPv4[33] = 1 }),
		`Costs.Stream: is 78, above`:  bad(func(p *PartialLimitConfig) { p.Costs = &Costs{Stream: 78} }),
		"peer:" + testPeer.String():   brokenFor{fixedOf(unlimitedConf()), "peer"},
		"protocol:/a":                 brokenFor{fixedOf(unlimitedConf()), "protocol"},
		"protocol:/a.peer":            brokenFor{fixedOf(unlimitedConf()), "protocol-peer"},
		"system":                      brokenFor{fixedOf(unlimitedConf()), "system"},
	} {
		err := m.SetLimits(l)
		require.ErrorContains(t, err, "limits not changed: ")
		require.ErrorContains(t, err, text)
		require.Equal(t, want, asJSON(t, m.Limits()), text)
	}
	require.NoError(t, m.SetLimits(bad(func(*PartialLimitConfig) {})), "without the slip")
	require.Equal(t, 999, m.GetConnLimit())
	require.EqualValues(t, 999, m.Limits().ToPartialLimitConfig().Gates.Subnets.IPv4[32])
	require.NoError(t, m.SetLimits(nil))
	require.Equal(t, DefaultLimits.AutoScale().limits.System.Conns, m.GetConnLimit())
	require.Equal(t, ThisMachine(), m.Snapshot().Sizing.Machine)

	m.Close()
	require.ErrorIs(t, m.SetLimits(nil), network.ErrResourceScopeClosed)
}

// brokenFor has no limit for one kind of scope.
type brokenFor struct {
	Limiter
	kind string
}

func (b brokenFor) GetSystemLimits() Limit {
	if b.kind == "system" {
		return nil
	}
	return b.Limiter.GetSystemLimits()
}
func (b brokenFor) GetPeerLimits(p peer.ID) Limit {
	if b.kind == "peer" {
		return nil
	}
	return b.Limiter.GetPeerLimits(p)
}
func (b brokenFor) GetProtocolLimits(p protocol.ID) Limit {
	if b.kind == "protocol" {
		return nil
	}
	return b.Limiter.GetProtocolLimits(p)
}
func (b brokenFor) GetProtocolPeerLimits(p protocol.ID) Limit {
	if b.kind == "protocol-peer" {
		return nil
	}
	return b.Limiter.GetProtocolPeerLimits(p)
}

func TestUseAboveALoweredLimitStaysAndNothingIsAdmitted(t *testing.T) {
	for _, kind := range []string{"system", "peer"} {
		t.Run(kind, func(t *testing.T) {
			limited := func(n int) Limiter {
				return fixedOf(limitedConf(func(c *perScope[BaseLimit]) {
					if kind == "peer" {
						c.PeerDefault.Streams = n
					} else {
						c.System.Streams = n
					}
				}))
			}
			m, err := New(limited(10))
			require.NoError(t, err)
			defer m.Close()
			var held []network.StreamManagementScope
			for range 10 {
				held = append(held, mustOpenStream(t, m, testPeer, network.DirInbound))
			}
			require.NoError(t, m.SetLimits(limited(4)))
			require.Equal(t, 10, m.Stat().System.NumStreamsInbound)
			for i, s := range held {
				_, err := m.OpenStream(testPeer, network.DirInbound)
				if left := len(held) - i; left >= 4 {
					require.ErrorIs(t, err, network.ErrResourceLimitExceeded, "%d are open", left)
				} else {
					require.NoError(t, err, "%d are open", left)
					break
				}
				s.Done()
			}
			require.NoError(t, m.SetLimits(limited(5)))
			mustOpenStream(t, m, testPeer, network.DirInbound)
			_, err = m.OpenStream(testPeer, network.DirInbound)
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			checkInvariants(t, m, false)
		})
	}
}

func TestALimitSetByHandStaysUntilItIsTakenBack(t *testing.T) {
	for name, kind := range map[string]func(Limiter) Limiter{
		"ours": func(l Limiter) Limiter { return l }, "another": func(l Limiter) Limiter { return otherLimiter{l} },
	} {
		t.Run(name, func(t *testing.T) {
			m, err := New(kind(fixedOf(distinctConf(100, true))))
			require.NoError(t, err)
			defer m.Close()
			byHand := unlimitedBase
			byHand.Streams = 77
			living := everything(t, m)
			for _, one := range living {
				one.scope.(ResourceScopeLimiter).SetLimit(&byHand)
			}
			next := kind(fixedOf(distinctConf(200, false)))
			require.NoError(t, m.SetLimits(next))
			require.NoError(t, m.Refresh())
			for name, one := range living {
				require.Equal(t, &byHand, one.scope.(ResourceScopeLimiter).Limit(), name)
			}
			require.EqualValues(t, 77, m.Limits().ToPartialLimitConfig().Peer["other"].Streams)
			for _, one := range living {
				one.scope.(LimitResetter).ResetLimit()
			}
			for name, one := range living {
				require.Equal(t, one.says(next), one.scope.(ResourceScopeLimiter).Limit(), name)
			}
			last := kind(fixedOf(distinctConf(300, true)))
			require.NoError(t, m.SetLimits(last))
			requireAsSaid(t, m, last)
			for name, one := range living {
				if name[:4] != "stre" && name[:4] != "span" || name == "another" {
					require.Equal(t, one.says(last), one.scope.(ResourceScopeLimiter).Limit(), name)
				}
			}
		})
	}
}

func TestAScopeWhoseLimitWasTakenBackIsCollectedAgain(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	scopes := []network.ResourceScope{viewPeer(t, m, testPeer), viewProtocol(t, m, "/a"), viewService(t, m, "a")}
	for _, s := range scopes {
		s.(ResourceScopeLimiter).SetLimit(&BaseLimit{Streams: 1})
	}
	m.reap()
	m.reap()
	require.Len(t, m.ListPeers(), 1)
	require.Len(t, m.dir.list(), 2)
	for _, s := range scopes {
		s.(LimitResetter).ResetLimit()
	}
	assertEmpty(t, m)
	require.Empty(t, m.ListPeers())
	require.Empty(t, m.dir.list())
}

func TestAScopeThatComesBackHasTheLimitsInForce(t *testing.T) {
	for name, kind := range map[string]func(Limiter) Limiter{
		"ours": func(l Limiter) Limiter { return l }, "another": func(l Limiter) Limiter { return otherLimiter{l} },
	} {
		t.Run(name, func(t *testing.T) {
			m, err := New(kind(fixedOf(distinctConf(100, true))), WithStripes(4))
			require.NoError(t, err)
			defer m.Close()
			kept := map[network.ResourceScope]func(Limiter) Limit{
				viewPeer(t, m, testPeer):   func(l Limiter) Limit { return l.GetPeerLimits(testPeer) },
				viewPeer(t, m, "other"):    func(l Limiter) Limit { return l.GetPeerLimits("other") },
				viewProtocol(t, m, "/a"):   func(l Limiter) Limit { return l.GetProtocolLimits("/a") },
				viewProtocol(t, m, "/b"):   func(l Limiter) Limit { return l.GetProtocolLimits("/b") },
				viewService(t, m, "a"):     func(l Limiter) Limit { return l.GetServiceLimits("a") },
				viewService(t, m, "other"): func(l Limiter) Limit { return l.GetServiceLimits("other") },
			}
			m.reap()
			m.reap()
			require.Empty(t, m.ListPeers())
			require.Empty(t, m.dir.list())
			next := kind(fixedOf(distinctConf(200, true)))
			require.NoError(t, m.SetLimits(next))
			for s, says := range kept {
				require.NoError(t, s.ReserveMemory(1, 255))
				require.Equal(t, says(next), s.(ResourceScopeLimiter).Limit())
				s.ReleaseMemory(1)
			}
			// One that has no limit for them any more leaves them theirs.
			m.reap()
			m.reap()
			require.NoError(t, m.SetLimits(brokenFor{next, "peer"}))
			p := viewKept(kept)
			require.NoError(t, p.ReserveMemory(1, 255))
			p.ReleaseMemory(1)
			checkInvariants(t, m, false)
		})
	}
}

// viewKept returns the scope of a peer.
func viewKept(kept map[network.ResourceScope]func(Limiter) Limit) network.ResourceScope {
	for s := range kept {
		if _, ok := s.(network.PeerScope); ok {
			return s
		}
	}
	return nil
}

// movingLimiter changes its mind, and calls asked with the peers it is asked for.
type movingLimiter struct {
	Limiter
	streams atomic.Int64
	asked   func(peer.ID)
}

func (l *movingLimiter) limit() Limit {
	b := unlimitedBase
	b.Streams = int(l.streams.Load())
	return &b
}

func (l *movingLimiter) GetSystemLimits() Limit                { return l.limit() }
func (l *movingLimiter) GetProtocolLimits(protocol.ID) Limit   { return l.limit() }
func (l *movingLimiter) GetServicePeerLimits(svc string) Limit { return l.limit() }
func (l *movingLimiter) GetConnLimits() Limit                  { return l.limit() }
func (l *movingLimiter) GetPeerLimits(p peer.ID) Limit {
	if l.asked != nil {
		l.asked(p)
	}
	return l.limit()
}

func TestRefreshReadsTheLimiterAgain(t *testing.T) {
	l := &movingLimiter{Limiter: fixedOf(unlimitedConf())}
	l.streams.Store(100)
	m, err := New(l)
	require.NoError(t, err)
	defer m.Close()
	living := everything(t, m)
	l.streams.Store(200)
	for name, one := range living {
		got := one.scope.(ResourceScopeLimiter).Limit().GetStreamTotalLimit()
		require.True(t, got == 100 || got == math.MaxInt, "%s is not read again by itself: %d", name, got)
	}
	require.NoError(t, m.Refresh())
	for name, one := range living {
		require.Equal(t, one.says(l), one.scope.(ResourceScopeLimiter).Limit(), name)
	}
	require.EqualValues(t, 200, pairLimits(m)["other b"])

	own := newManager(t, distinctConf(100, true))
	require.NoError(t, own.Refresh())
	requireAsSaid(t, own, fixedOf(distinctConf(100, true)))
}

// What comes to be while the Limiter is asked for what lives has the new limits, too.
func TestScopesMadeWhileALimiterIsReadAgainHaveTheNewLimits(t *testing.T) {
	l := &movingLimiter{Limiter: fixedOf(unlimitedConf())}
	l.streams.Store(100)
	m, err := New(l)
	require.NoError(t, err)
	defer m.Close()
	viewPeer(t, m, testPeer)
	m.stripeOf(testPeer).known(testPeer).refs++ // it stays
	come := []peer.ID{"late", "later"}
	l.asked = func(p peer.ID) {
		if p == testPeer && len(come) > 0 {
			late := come[0]
			come = come[1:]
			l.streams.Store(100)
			s := mustOpenStream(t, m, late, network.DirInbound)
			require.NoError(t, s.SetProtocol(protocol.ID("/"+late)))
			l.streams.Store(200)
		}
	}
	require.NoError(t, m.Refresh())
	require.Len(t, come, 1)
	require.Equal(t, 200, viewPeer(t, m, "late").(ResourceScopeLimiter).Limit().GetStreamTotalLimit())
	require.Equal(t, 200, viewProtocol(t, m, "/late").(ResourceScopeLimiter).Limit().GetStreamTotalLimit())
	require.Equal(t, 200, viewPeer(t, m, testPeer).(ResourceScopeLimiter).Limit().GetStreamTotalLimit())
	m.stripeOf(testPeer).known(testPeer).refs--
}

// Limits change all the time, but there is always room: nothing may be refused (I2),
// and the books are right in every cut (I1, I4).
func TestLimitsChangeUnderLoadAndNothingThatFitsIsRefused(t *testing.T) {
	const workers, each = 6, 4 // what each holds at most
	for _, stripes := range stressStripes {
		t.Run(fmt.Sprint(stripes, " stripes"), func(t *testing.T) {
			room := func(r *rand.Rand) perScope[BaseLimit] {
				enough := func() BaseLimit {
					var a amounts
					for d := range a {
						a[d] = workers*each + r.Int64N(200)*int64(r.IntN(2)) + r.Int64N(2)*int64(16*stripes)*r.Int64N(4)
					}
					a[dimMemory] *= 1000
					return a.base()
				}
				var c perScope[BaseLimit]
				for _, l := range c.single() {
					*l = enough()
				}
				if r.IntN(2) == 0 {
					c.Peer = map[peer.ID]BaseLimit{stressPeers[0]: enough()}
					c.Protocol = map[protocol.ID]BaseLimit{"/a": enough()}
				}
				c.Costs = &Costs{Conn: Cost(1 + r.IntN(100)), Stream: Cost(1 + r.IntN(100))}
				return c
			}
			seed := testSeed(t)
			m := newManager(t, room(randomFrom(seed, 1)), append(openGates(), WithStripes(stripes), WithNewcomersQuarter(false))...)
			stop := watch(t, m, func() error { return brokenInvariant(m, false) })
			var done atomic.Bool
			changes := 0
			changed := make(chan struct{})
			go func() {
				defer close(changed)
				r := randomFrom(seed, 99)
				for ; !done.Load(); changes++ {
					l := fixedOf(room(r))
					if r.IntN(4) == 0 {
						l = otherLimiter{l}
					}
					if err := m.SetLimits(l); err != nil {
						t.Error(err)
					}
				}
			}()
			together(t, workers, func(_ int, r *rand.Rand) {
				for range stressSteps() / 4 {
					hold(t, m, pick(r, stressPeers[:8]), r, each)
				}
			})
			done.Store(true)
			<-changed
			stop()
			t.Logf("%d changes", changes)
			require.NoError(t, m.SetLimits(fixedOf(unlimitedConf())))
			assertEmpty(t, m)
		})
	}
}

// hold opens a connection, some streams and spans, moves them, reserves, and lets go.
func hold(t *testing.T, m *Manager, p peer.ID, r *rand.Rand, streams int) {
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	c, err := m.OpenConnection(network.DirInbound, true, nil)
	must(err)
	if err != nil {
		return
	}
	defer c.Done()
	must(c.SetPeer(p))
	must(c.ReserveMemory(1+r.IntN(100), 255))
	for range 1 + r.IntN(streams-1) {
		s, err := m.OpenStream(p, network.DirInbound)
		must(err)
		if err != nil {
			return
		}
		defer s.Done()
		must(s.SetProtocol(pick(r, []protocol.ID{"/a", "/b"})))
		must(s.SetService(pick(r, []string{"a", "b"})))
		must(s.ReserveMemory(1+r.IntN(100), 255))
	}
	must(m.ViewPeer(p, func(s network.PeerScope) error {
		must(s.ReserveMemory(10, 255))
		s.ReleaseMemory(10)
		return nil
	}))
}

// Limits go up and down below what all peers want: none holds more than the
// larger of them (I2).
func TestNoScopePassesTheLargerOfTwoLimitsThatChange(t *testing.T) {
	small, large := limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams, c.PeerDefault.Streams = 10, 3 }),
		limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams, c.PeerDefault.Streams = 300, 7 })
	m := newManager(t, small, WithStripes(8))
	stop := watch(t, m, func() error {
		if n := m.fixed[KindSystem].usedOf(dimStreams); n > 300 {
			return fmt.Errorf("%d streams", n)
		}
		for i := range m.stripes {
			for ps := range m.stripes[i].allPeers {
				if ps.use.of(dimStreams) > 7 {
					return errors.New("a peer has too many")
				}
			}
		}
		return brokenInvariant(m, true)
	})
	together(t, 6, func(id int, r *rand.Rand) {
		var held []network.StreamManagementScope
		for step := range stressSteps() / 2 {
			switch {
			case id == 0 && step%8 == 0:
				l := fixedOf(pick(r, []perScope[BaseLimit]{small, large}))
				if err := m.SetLimits(l); err != nil {
					t.Error(err)
				}
			case r.IntN(3) > 0 || len(held) == 0:
				if s, err := m.OpenStream(pick(r, stressPeers), network.DirInbound); err == nil {
					held = append(held, s)
				}
			default:
				held[0].Done()
				held = held[1:]
			}
		}
		for _, s := range held {
			s.Done()
		}
	})
	stop()
	assertEmpty(t, m)
}

func TestConcurrentChangesOfLimitsAreNotMixed(t *testing.T) {
	m := newManager(t, unlimitedConf())
	version := func(n int) Limiter {
		p := PartialLimitConfig{
			System: ResourceLimits{Conns: LimitVal(n)}, PeerDefault: ResourceLimits{Conns: LimitVal(n)},
			Gates: &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: LimitVal(n)}}},
		}
		return NewFixedLimiter(p.Build(InfiniteLimits))
	}
	together(t, 4, func(id int, r *rand.Rand) {
		for range stressSteps() / 10 {
			if err := m.SetLimits(version(1 + r.IntN(1000))); err != nil {
				t.Error(err)
			}
		}
	})
	got := m.Limits().ToPartialLimitConfig()
	require.Equal(t, got.System.Conns, got.PeerDefault.Conns)
	require.Equal(t, got.System.Conns, got.Gates.Subnets.IPv4[32])
}

// uniform has n, or many times that of memory, for every limit of every scope and gate, and
// costs as high as they may be.
func uniform(n int) ConcreteLimitConfig {
	var c PartialLimitConfig
	for _, l := range (*perScope[ResourceLimits])(&c).single() {
		for _, count := range l.counts() {
			*count = LimitVal(n)
		}
		l.Memory = LimitVal64(n) << 20
	}
	c.Costs = &Costs{Conn: Cost(n) << 20, Stream: Cost(n) << 20}
	c.Gates = &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: LimitVal(n)}}}
	for _, l := range []*ResourceLimits{&c.System, &c.Transient, &c.PeerDefault} {
		l.Memory = Unlimited64
	}
	return c.Build(InfiniteLimits)
}

// changingBetween calls f while the limits change all the time between two sets, each by a
// Limiter of this package or another.
func changingBetween(t *testing.T, m *Manager, sets [2]ConcreteLimitConfig, f func()) {
	t.Helper()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			l := NewFixedLimiter(sets[i%2])
			if i/2%2 == 1 {
				l = otherLimiter{l}
			}
			if err := m.SetLimits(l); err != nil {
				t.Error(err)
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	f()
}

// What is read of the limits in force is of one set of them, whatever comes into force
// meanwhile.
func TestAnswersAreOfOneSetOfLimits(t *testing.T) {
	sets := [2]ConcreteLimitConfig{uniform(100), uniform(200)}
	steps := stressSteps()

	t.Run("Explain", func(t *testing.T) {
		m := newFrom(t, sets[0])
		changingBetween(t, m, sets, func() {
			for range steps {
				e, err := m.Explain(ExplainRequest{Kind: KindStream, Peer: testPeer, Protocol: "/a", Service: "a", Memory: 1, Priority: 255})
				if !assert.NoError(t, err) {
					return
				}
				n := e.Checks[1].Limit
				for _, c := range e.Checks {
					if c.Name != "Memory" && !assert.Equal(t, n, c.Limit, "%+v", e.Checks) {
						return
					}
				}
			}
		})
	})
	t.Run("Limits", func(t *testing.T) {
		m := newFrom(t, sets[0])
		for i := range 64 {
			require.NoError(t, m.ViewPeer(peerNamed(fmt.Sprint(i)), func(s network.PeerScope) error { return s.ReserveMemory(1, 255) }))
		}
		require.NoError(t, mustOpenStream(t, m, testPeer, network.DirInbound).SetProtocol("/a"))
		changingBetween(t, m, sets, func() {
			for range steps {
				got := m.Limits().ToPartialLimitConfig()
				n := got.System.Conns
				for place, l := range map[string]ResourceLimits{"Transient": got.Transient, "PeerDefault": got.PeerDefault,
					"ProtocolDefault": got.ProtocolDefault, "Conn": got.Conn, "Stream": got.Stream} {
					if !assert.Equal(t, n, l.Conns, place) {
						return
					}
				}
				if !assert.Empty(t, got.Peer) || !assert.Empty(t, got.Protocol) {
					return
				}
				if subnets := got.Gates.Subnets.IPv4[32]; subnets != connsPerHost && !assert.Equal(t, n, subnets) {
					return
				}
			}
		})
	})
	t.Run("opening", func(t *testing.T) {
		m := newFrom(t, sets[0])
		changingBetween(t, m, sets, func() {
			for range steps {
				c, err := m.OpenConnection(network.DirInbound, true, nil)
				if !assert.NoError(t, err, "it fits before and after") {
					return
				}
				assert.NoError(t, c.SetPeer(testPeer))
				s, err := m.OpenStream(testPeer, network.DirInbound)
				if !assert.NoError(t, err, "it fits before and after") {
					return
				}
				s.Done()
				c.Done()
			}
		})
		m.reap()
		assertEmpty(t, m)
	})
	t.Run("scrapes and snapshots", func(t *testing.T) {
		m := newFrom(t, sets[0])
		changingBetween(t, m, sets, func() {
			for range steps {
				r := m.read()
				system := r.scopes[slices.IndexFunc(r.scopes, func(s scopeReading) bool { return s.kind == KindSystem })]
				for k := KindService; k <= KindStream; k++ {
					if !assert.Equal(t, system.limit[dimConns], r.classes[k][dimConns], k) {
						return
					}
				}
			}
		})
	})
}

// A set of limits that comes into force while Refresh asks the Limiter of the last one stays.
func TestRefreshLeavesLimitsThatWereSetMeanwhile(t *testing.T) {
	l := &movingLimiter{Limiter: fixedOf(unlimitedConf())}
	l.streams.Store(100)
	m, err := New(l)
	require.NoError(t, err)
	defer m.Close()
	viewPeer(t, m, testPeer)
	m.stripeOf(testPeer).known(testPeer).refs++ // it stays
	l.asked = func(p peer.ID) {
		l.asked = nil
		require.NoError(t, m.SetLimits(fixedOf(distinctConf(200, false))))
	}
	require.NoError(t, m.Refresh())
	require.Nil(t, l.asked)
	require.Equal(t, 201, m.fixed[KindSystem].Limit().GetStreamTotalLimit())
	m.stripeOf(testPeer).known(testPeer).refs--
}

// yieldingLimiter puts other limits in force once, in the middle of answering.
type yieldingLimiter struct {
	Limiter
	yield *func()
}

func (l yieldingLimiter) once() {
	if f := *l.yield; f != nil {
		*l.yield = nil
		f()
	}
}

func (l yieldingLimiter) GetServiceLimits(svc string) Limit {
	l.once()
	return l.Limiter.GetServiceLimits(svc)
}

func (l yieldingLimiter) GetProtocolLimits(p protocol.ID) Limit {
	l.once()
	return l.Limiter.GetProtocolLimits(p)
}

func (l yieldingLimiter) GetPeerLimits(p peer.ID) Limit {
	l.once()
	return l.Limiter.GetPeerLimits(p)
}

func (l yieldingLimiter) GetStreamLimits(p peer.ID) Limit {
	l.once()
	return l.Limiter.GetStreamLimits(p)
}

// A Limiter whose place another one takes while it answers is not what the scope gets its
// limits from.
func TestLimitsFromAReplacedLimiterAreNotUsed(t *testing.T) {
	streams := func(s network.ResourceScope) int { return s.(ResourceScopeLimiter).Limit().GetStreamTotalLimit() }
	for name, use := range map[string]func(m *Manager) network.ResourceScope{
		"peer":     func(m *Manager) network.ResourceScope { return viewPeer(t, m, testPeer) },
		"protocol": func(m *Manager) network.ResourceScope { return viewProtocol(t, m, "/a") },
		"service":  func(m *Manager) network.ResourceScope { return viewService(t, m, "a") },
		"stream":   func(m *Manager) network.ResourceScope { return mustOpenStream(t, m, testPeer, network.DirInbound) },
		"peer of a stream": func(m *Manager) network.ResourceScope {
			return mustOpenStream(t, m, testPeer, network.DirInbound).PeerScope()
		},
		"peer of a connection": func(m *Manager) network.ResourceScope {
			c := mustOpenConn(t, m, network.DirInbound)
			require.NoError(t, c.SetPeer(testPeer))
			return c.PeerScope()
		},
	} {
		t.Run(name, func(t *testing.T) {
			var yield func()
			m, err := New(yieldingLimiter{fixedOf(distinctConf(100, false)), &yield})
			require.NoError(t, err)
			defer m.Close()
			next := otherLimiter{fixedOf(distinctConf(200, false))}
			yield = func() { require.NoError(t, m.SetLimits(next)) }
			s := use(m)
			require.Nil(t, yield)
			require.Greater(t, streams(s), 200)

			// Nor is it what ResetLimit goes back to.
			require.NoError(t, m.SetLimits(yieldingLimiter{fixedOf(distinctConf(300, false)), &yield}))
			s.(ResourceScopeLimiter).SetLimit(&unlimitedBase)
			yield = func() { require.NoError(t, m.SetLimits(next)) }
			s.(LimitResetter).ResetLimit()
			require.Nil(t, yield)
			require.Greater(t, streams(s), 200)
			require.Less(t, streams(s), 300)
		})
	}
}

// All stripes wait while limits are put in force: what a book names is found there by one
// lookup, and a service or protocol takes nothing new but its copy of its limit.
func TestPuttingLimitsInForceAllocatesOneCopyOfTheLimitForEachServiceAndProtocol(t *testing.T) {
	costs := func(living, named int) (times float64, bytes uint64) {
		m := newManager(t, unlimitedConf(), WithStripes(4), WithRefusalLog(0))
		crowdedWith(t, m, living)
		var books [2]*limitBook
		for i := range books {
			var err error
			books[i], err = newLimitBook(fixedOf(namingConf(named)), true, nil)
			require.NoError(t, err)
		}
		n := 0
		return costOf(func() {
			n++
			late, changes, err := m.putInForce(books[n%2], nil, noneLiving())
			if err != nil || changes == nil || len(late.shared) > 0 {
				t.Error("the limits were not put in force", err)
			}
		})
	}
	const fewer, more = 100, 600
	const scopes = 2 * (more - fewer) // services and protocols
	for _, named := range []int{0, 2000} {
		times, bytes := costs(fewer, named)
		moreTimes, moreBytes := costs(more, named)
		require.InDelta(t, scopes, moreTimes-times, 3, "with %d names in the configuration", named)
		each := uint64(unsafe.Sizeof(amounts{}) + unsafe.Sizeof((*pool)(nil))) // the latter in the list of scopes
		require.InDelta(t, scopes*each, moreBytes-bytes, 4096, "with %d names in the configuration", named)
	}
}

// The line about a change of limits names the first settings that have changed, with both values.
func TestTheLogNamesTheSettingsThatSetLimitsHasChanged(t *testing.T) {
	of := func(p PartialLimitConfig) Limiter { return NewFixedLimiter(p.Build(InfiniteLimits)) }
	rate := func(perSecond float64) PartialLimitConfig {
		return PartialLimitConfig{PeerDefault: ResourceLimits{Rates: Rates{StreamsInbound: Rate{PerSecond: perSecond}}}}
	}
	first := rate(30)
	m, err := New(of(first))
	require.NoError(t, err)
	defer m.Close()
	for _, c := range []struct {
		next Limiter
		want string
	}{
		{of(first), `changes=[]`},
		{of(rate(60)), `changes="[PeerDefault.Rates.StreamsInbound: 30/s, burst 30 -> 60/s, burst 60]"`},
		{of(PartialLimitConfig{}), `changes="[PeerDefault.Rates.StreamsInbound: 60/s, burst 60 -> unlimited]"`},
		{of(PartialLimitConfig{Protocol: map[protocol.ID]ResourceLimits{"/a": {Streams: 5}}}), `changes="[Protocol[\"/a\"].Streams: unlimited -> 5]"`},
		{of(PartialLimitConfig{ProtocolDefault: ResourceLimits{Streams: 6}}), `changes="[ProtocolDefault.Streams: unlimited -> 6 Protocol[\"/a\"].Streams: 5 -> 6]"`},
		{of(PartialLimitConfig{Gates: &GateLimits{Outbound: pointerTo(true), Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 3}}}}),
			`changes="[ProtocolDefault.Streams: 6 -> unlimited Gates.Subnets.IPv4[\"32\"]: 8 -> 3 Gates.Outbound: false -> true]"`},
		{NewFixedLimiter(distinctOf(7)), `and `},
	} {
		lines := collectLog(t, slog.LevelInfo)
		require.NoError(t, m.SetLimits(c.next))
		require.Contains(t, lines.take()[0], c.want)
	}
}

func distinctOf(n int) ConcreteLimitConfig {
	return ConcreteLimitConfig{limits: distinctConf(n, true)}
}
