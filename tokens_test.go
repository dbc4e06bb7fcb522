package rcmgr

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// handClock is a clock that tests move.
type handClock struct{ now int64 }

func (c *handClock) ahead(d time.Duration) { c.now += int64(d) }

// newPaced returns a manager with these limits, and the clock of its rates.
func newPaced(t testing.TB, set func(c *perScope[BaseLimit]), opts ...Option) (*Manager, *handClock) {
	t.Helper()
	c := new(handClock)
	m := newManager(t, limitedConf(set), opts...)
	m.tokens.clock = func() int64 { return c.now }
	return m, c
}

func TestAPeersStreamsComeNoFasterThanItsRate(t *testing.T) {
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) {
		c.PeerDefault.Rates.StreamsInbound = Rate{PerSecond: 10, Burst: 3}
	})
	open := func() error {
		s, err := m.OpenStream("fast", network.DirInbound)
		if err == nil {
			s.Done()
		}
		return err
	}
	for range 3 {
		require.NoError(t, open())
	}
	for range 5 {
		err := open()
		var refused *LimitError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, CauseRate, refused.Cause())
		require.Equal(t, KindPeer, refused.Kind())
		require.Equal(t, ResourceStream, refused.Resource())
		require.Equal(t, network.DirInbound, refused.Direction())
		require.EqualValues(t, 3, refused.Limit())
		require.EqualValues(t, 3, refused.Current())
		require.EqualValues(t, 1, refused.Attempted())
		require.Equal(t, "PeerDefault.Rates.StreamsInbound", refused.ConfigKey())
		require.Equal(t, 100*time.Millisecond, refused.RetryAt().Sub(m.tokens.began).Round(time.Microsecond))
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	}
	mustOpenStream(t, m, "fast", network.DirOutbound)
	mustOpenStream(t, m, "slow", network.DirInbound)
	clock.ahead(100*time.Millisecond - 1)
	require.Error(t, open())
	clock.ahead(1)
	require.NoError(t, open())
	require.Error(t, open())
	clock.ahead(time.Hour)
	for range 3 {
		require.NoError(t, open())
	}
	require.Error(t, open())
}

// A minute of one peer that opens and closes 10,000 streams a second, against 100 a second.
func TestAPeerThatOpensTenThousandStreamsASecondGetsItsRateAndAFriendLosesNothing(t *testing.T) {
	const burst, perSecond = 400, 100
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) {
		c.PeerDefault.Rates.StreamsInbound = Rate{PerSecond: perSecond, Burst: burst}
	})
	var times []int64 // at which the attacker was admitted
	for i := range 600_000 {
		clock.now = int64(i) * int64(100*time.Microsecond)
		if s, err := m.OpenStream("attacker", network.DirInbound); err == nil {
			times = append(times, clock.now)
			s.Done()
		}
		if i%1000 == 0 { // ten a second
			mustOpenStream(t, m, "friend", network.DirInbound).Done()
		}
	}
	require.Len(t, times, burst+60*perSecond-1) // the last instant is 0.1 ms before the minute is over
	for n := range len(times) - burst {
		// From each one on, one more than the burst comes no sooner than a token does.
		require.GreaterOrEqual(t, times[n+burst]-times[n], int64(time.Second)/perSecond)
	}
	for _, over := range []int{1, 10, 1000, 5000} {
		for n := range len(times) - burst - over + 1 {
			last := times[n+burst+over-1]
			require.GreaterOrEqual(t, last-times[n], int64(over)*int64(time.Second)/perSecond)
		}
	}
}

func TestAMillionPeersWithARateTakeSixteenBytesEachAndNothingOnceTheyAreFull(t *testing.T) {
	peers := 1_000_000
	if testing.Short() || raceDetector() {
		peers = 20_000
	}
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) {
		c.PeerDefault.Rates.StreamsInbound = Rate{PerSecond: 10, Burst: 40}
	})
	goroutines := ourGoroutines()
	for i := range peers {
		mustOpenStream(t, m, peerNamed(fmt.Sprint(i)), network.DirInbound).Done()
	}
	require.Less(t, ourGoroutines()-goroutines, 100, "there is none for each of them")
	owing, more := 0, 0
	count := func() {
		owing, more = 0, 0
		for i := range m.stripes {
			m.stripes[i].eachPeer(func(ps *peerScope) {
				if ps.rare != nil {
					owing++
					if ps.rare.rares != nil {
						more++
					}
				}
			})
		}
	}
	count()
	require.Equal(t, peers, owing, "16 bytes each, see the test below")
	require.Zero(t, more)
	clock.ahead(time.Second)
	for range 4 {
		m.reap()
	}
	count()
	require.Zero(t, owing)
	assertEmpty(t, m)
}

// someRates returns random rates whose tokens come after whole nanoseconds.
func someRates(r *rand.Rand) (rates Rates) {
	for _, one := range rates.all() {
		if r.IntN(3) == 0 {
			*one = Rate{PerSecond: pick(r, []float64{0.01, 0.1, 1, 10}), Burst: LimitVal(1 + r.IntN(4))}
		}
	}
	return rates
}

// rateAll sets random rates in the scopes of one or two kinds, or in the peers' parts of such
// scopes. If all kinds had rates, the system's would refuse nearly everything.
func rateAll(r *rand.Rand, conf *perScope[BaseLimit]) {
	scopes := conf.single()
	rated := make([]bool, len(scopes))
	rated[r.IntN(len(scopes)-2)], rated[r.IntN(len(scopes)-2)] = true, true // all but Conn and Stream
	// The allowlisted scopes are asked where the standard ones refuse.
	rated[0], rated[1] = rated[0] || rated[2], rated[1] || rated[3]
	for i, l := range scopes {
		if l.Rates = (Rates{}); rated[i] {
			l.Rates = someRates(r)
		}
	}
	named := func(l *BaseLimit) bool { return rated[slices.Index(scopes[:], l)] }
	conf.Peer = ratedByName(r, named(&conf.PeerDefault), conf.Peer, conf.PeerDefault, testPeers[:2]...)
	conf.Protocol = ratedByName(r, named(&conf.ProtocolDefault), conf.Protocol, conf.ProtocolDefault, "/a")
	conf.ProtocolPeer = ratedByName(r, named(&conf.ProtocolPeerDefault), conf.ProtocolPeer, conf.ProtocolPeerDefault, "/a")
	conf.Service = ratedByName(r, named(&conf.ServiceDefault), conf.Service, conf.ServiceDefault, "x")
	conf.ServicePeer = ratedByName(r, named(&conf.ServicePeerDefault), conf.ServicePeer, conf.ServicePeerDefault, "x")
}

// ratedByName returns a copy of the limits in which these names have other random rates, or none.
func ratedByName[K comparable](r *rand.Rand, rated bool, limits map[K]BaseLimit, otherwise BaseLimit, names ...K) map[K]BaseLimit {
	limits = unrated(limits)
	for _, name := range names {
		l := orElse(limits, name, otherwise)
		if l.Rates = (Rates{}); rated {
			l.Rates = someRates(r)
		}
		put(&limits, name, l)
	}
	return limits
}

// unrated returns a copy of the limits without rates.
func unrated[K comparable](limits map[K]BaseLimit) map[K]BaseLimit {
	limits = maps.Clone(limits)
	for name, l := range limits {
		l.Rates = Rates{}
		limits[name] = l
	}
	return limits
}

func TestRandomSequencesWithRatesDecideAsTheModel(t *testing.T) {
	steps := cmp.Or(*stepsFlag, 2000)
	if testing.Short() || raceDetector() {
		steps = cmp.Or(*stepsFlag, 300)
	}
	seed := testSeed(t)
	cell, slow := uint64(0), make(map[Kind]int)
	round := func() {
		for _, stripes := range []int{1, 8} {
			for _, g := range append(slices.Clone(regimes), mixed) {
				for _, observing := range []bool{false, true} {
					cell++
					r := randomFrom(seed, cell)
					t.Run(fmt.Sprintf("stripes=%d/%s/observing=%v", stripes, g.name, observing), func(t *testing.T) {
						conf := g.conf(r, stripes)
						rateAll(r, &conf)
						d := newDuelOf(t, r, stripes, g, conf, AdmissionHalf, r.IntN(2) == 0)
						d.clock, d.slow, d.observing, d.lowered = new(handClock), slow, observing, observing
						now := func() int64 { return d.clock.now }
						d.eng.tokens.clock, d.mod.now = now, now
						d.run(steps)
					})
				}
			}
		}
	}
	round()
	// Rates of every kind of scope have refused, or chance has another try.
	rated := []Kind{KindSystem, KindTransient, KindAllowlistedSystem, KindAllowlistedTransient, KindService, KindServicePeer,
		KindProtocol, KindProtocolPeer, KindPeer}
	spared := func(k Kind) bool { return slow[k] == 0 }
	enough := steps >= 300 && !testing.Short()
	for tries := 0; tries < 9 && enough && !t.Failed() && slices.ContainsFunc(rated, spared); tries++ {
		round()
	}
	t.Logf("refusals by rates: %v", slow)
	for _, k := range rated {
		require.True(t, slow[k] > 0 || !enough || t.Failed(), "no rate of %v has refused", k)
	}
}

// All goroutines together get what the rate of the system admits, and all of it.
func TestManyGoroutinesGetExactlyTheRateOfASharedScope(t *testing.T) {
	var clock atomic.Int64
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Rates.Streams = Rate{PerSecond: 1000, Burst: 50}
		c.PeerDefault.Rates.StreamsInbound = Rate{PerSecond: 400, Burst: 30}
		c.ProtocolDefault.Rates.Streams = Rate{PerSecond: 500, Burst: 20}
	}), WithStripes(8))
	m.tokens.clock = clock.Load
	var opened, attached atomic.Int64
	most := func(r Rate) int64 { return int64(r.Burst) + int64(r.PerSecond*float64(clock.Load())/1e9) }
	for range 40 {
		var all sync.WaitGroup
		for g := range 4 {
			all.Go(func() {
				for {
					refused := 0
					for i := range len(testPeers) {
						s, err := m.OpenStream(testPeers[(g+i)%len(testPeers)], network.DirInbound)
						if err != nil {
							refused++
							continue
						}
						opened.Add(1)
						if s.SetProtocol("/x") == nil {
							attached.Add(1)
						}
						s.Done()
					}
					if refused == len(testPeers) {
						return // no peer gets any more before the clock moves
					}
				}
			})
		}
		all.Wait()
		require.Equal(t, most(Rate{PerSecond: 1000, Burst: 50}), opened.Load())
		require.Equal(t, most(Rate{PerSecond: 500, Burst: 20}), attached.Load())
		clock.Add(int64(10 * time.Millisecond))
	}
	assertEmptyAfter(t, m, func() { clock.Add(int64(24 * time.Hour)) })
}

// assertEmptyAfter is assertEmpty once all buckets are full again.
func assertEmptyAfter(t testing.TB, m *Manager, ahead func()) {
	t.Helper()
	ahead()
	assertEmpty(t, m)
}

func TestARequestThatIsRefusedElsewhereTakesNoToken(t *testing.T) {
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) {
		c.System.Rates.Streams = Rate{PerSecond: 1, Burst: 4}
		c.PeerDefault.Rates.Streams = Rate{PerSecond: 1, Burst: 2}
		c.PeerDefault.StreamsOutbound = 0
		c.Peer = map[peer.ID]BaseLimit{"none": {}}
	})
	for range 10 {
		_, err := m.OpenStream("none", network.DirInbound)
		requireCause(t, err, CauseLimit, KindPeer)
		_, err = m.OpenStream("out", network.DirOutbound)
		requireCause(t, err, CauseLimit, KindPeer)
	}
	mustOpenStream(t, m, "out", network.DirInbound)
	mustOpenStream(t, m, "out", network.DirInbound)
	for range 10 {
		_, err := m.OpenStream("out", network.DirInbound)
		requireCause(t, err, CauseRate, KindPeer)
	}
	mustOpenStream(t, m, "other", network.DirInbound)
	mustOpenStream(t, m, "other", network.DirInbound)
	for range 10 {
		_, err := m.OpenStream("third", network.DirInbound)
		requireCause(t, err, CauseRate, KindSystem)
	}
	clock.ahead(2 * time.Second)
	mustOpenStream(t, m, "third", network.DirInbound)
	mustOpenStream(t, m, "third", network.DirInbound)
}

func requireCause(t testing.TB, err error, c Cause, k Kind) {
	t.Helper()
	var refused *LimitError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, c, refused.Cause())
	require.Equal(t, k, refused.Kind())
}

func TestAConnectionThatItsPeersRateRefusesStaysTransient(t *testing.T) {
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) {
		c.PeerDefault.Rates.Conns = Rate{PerSecond: 1, Burst: 1}
	})
	first, second := mustOpenConn(t, m, network.DirInbound), mustOpenConn(t, m, network.DirInbound)
	require.NoError(t, first.SetPeer("p"))
	requireCause(t, second.SetPeer("p"), CauseRate, KindPeer)
	require.EqualValues(t, 1, m.Stat().Transient.NumConnsOutbound+m.Stat().Transient.NumConnsInbound)
	require.NoError(t, second.SetPeer("other"))
	third := mustOpenConn(t, m, network.DirInbound)
	requireCause(t, third.SetPeer("p"), CauseRate, KindPeer)
	clock.ahead(time.Second)
	require.NoError(t, third.SetPeer("p"))
}

func TestAClockThatJumpsBackLosesNoToken(t *testing.T) {
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) {
		c.System.Rates.Streams = Rate{PerSecond: 10, Burst: 8}
		c.PeerDefault.Rates.Streams = Rate{PerSecond: 10, Burst: 4}
	})
	clock.ahead(time.Hour)
	mustOpenStream(t, m, "p", network.DirInbound)
	clock.ahead(-time.Hour)
	for range 3 {
		mustOpenStream(t, m, "p", network.DirInbound)
	}
	for range 2 {
		_, err := m.OpenStream("p", network.DirInbound)
		requireCause(t, err, CauseRate, KindPeer)
		clock.ahead(time.Minute) // the clock is still behind
	}
	clock.now = int64(time.Hour + 100*time.Millisecond)
	mustOpenStream(t, m, "p", network.DirInbound)
	_, err := m.OpenStream("p", network.DirInbound)
	requireCause(t, err, CauseRate, KindPeer)
}

func TestAPeerThatComesBackHasItsOldBucket(t *testing.T) {
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) {
		c.PeerDefault.Rates.Streams = Rate{PerSecond: 1, Burst: 100}
		c.ProtocolPeerDefault.Rates.Streams = Rate{PerSecond: 1, Burst: 40}
		c.ProtocolDefault.Rates.Streams = Rate{PerSecond: 1, Burst: 60}
	})
	open := func() error {
		s, err := m.OpenStream("p", network.DirInbound)
		if err != nil {
			return err
		}
		defer s.Done()
		return s.SetProtocol("/x")
	}
	for range 40 {
		require.NoError(t, open())
	}
	m.reap()
	requireCause(t, open(), CauseRate, KindProtocolPeer)
	require.Len(t, m.ListPeers(), 1)
	require.Len(t, m.ListProtocols(), 1)
	clock.ahead(39 * time.Second)
	m.reap()
	require.Len(t, m.ListPeers(), 1, "one token is missing")
	clock.ahead(2 * time.Second)
	m.reap()
	require.Empty(t, m.ListPeers())
	require.Empty(t, m.ListProtocols())
}

// While no limit has a rate, scopes are collected whatever their buckets lack. A handle brings back a
// scope whose buckets are full, as a new one's are.
func TestAScopeThatComesBackAfterItWasCollectedWithoutRatesHasFullBuckets(t *testing.T) {
	slow := Rates{StreamsInbound: Rate{PerSecond: 0.001, Burst: 1}, StreamsOutbound: Rate{PerSecond: 0.001, Burst: 1}}
	rated := unlimitedConf()
	rated.PeerDefault.Rates, rated.ProtocolDefault.Rates, rated.ServiceDefault.Rates = slow, slow, slow
	put := func(m *Manager, conf perScope[BaseLimit]) {
		require.NoError(t, m.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: conf})))
	}
	m, _ := newPaced(t, func(c *perScope[BaseLimit]) { *c = rated })
	open := func(p peer.ID, dir network.Direction) error {
		s, err := m.OpenStream(p, dir)
		if err != nil {
			return err
		}
		defer s.Done()
		if err := s.SetProtocol(testProto); err != nil {
			return err
		}
		return s.SetService(testSvc)
	}
	var kept []network.ResourceScope
	keep := func(s network.ResourceScope) error {
		kept = append(kept, s)
		return nil
	}
	both := []network.Direction{network.DirInbound, network.DirOutbound}
	for _, dir := range both {
		require.NoError(t, open("peer", dir))
	}
	require.NoError(t, m.ViewPeer("peer", func(s network.PeerScope) error { return keep(s) }))
	require.NoError(t, m.ViewProtocol(testProto, func(s network.ProtocolScope) error { return keep(s) }))
	require.NoError(t, m.ViewService(testSvc, func(s network.ServiceScope) error { return keep(s) }))
	for _, dir := range both {
		requireCause(t, open("peer", dir), CauseRate, KindPeer)
		requireCause(t, open("other", dir), CauseRate, KindProtocol)
	}
	put(m, unlimitedConf())
	m.reap()
	require.Empty(t, m.ListPeers())
	require.Empty(t, m.ListProtocols())
	require.Empty(t, m.ListServices())
	put(m, rated)
	for _, s := range kept {
		require.NoError(t, s.ReserveMemory(1, 255))
		s.ReleaseMemory(1)
	}
	for _, dir := range both {
		require.NoError(t, open("peer", dir))
	}
	m.Close()
	assertEmpty(t, m)
}

func TestRatesThatAreChangedTakeEffectAtOnceAndKeepWhatWasTaken(t *testing.T) {
	m, clock := newPaced(t, func(*perScope[BaseLimit]) {})
	with := func(r Rate) {
		conf := limitedConf(func(c *perScope[BaseLimit]) { c.PeerDefault.Rates.Streams, c.System.Rates.Streams = r, r })
		require.NoError(t, m.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: conf})))
		require.Equal(t, r, m.Limits().limits.System.Rates.Streams)
	}
	open := func() error { _, err := m.OpenStream("p", network.DirInbound); return err }
	plain := func() bool { return m.stripes[0].plain }
	require.True(t, plain())
	with(Rate{PerSecond: 0.001, Burst: 2})
	require.False(t, plain())
	require.NoError(t, open())
	require.NoError(t, open())
	requireCause(t, open(), CauseRate, KindPeer)
	with(Rate{PerSecond: 0.001, Burst: 1})
	requireCause(t, open(), CauseRate, KindPeer)
	with(Rate{PerSecond: 1, Burst: 1})
	requireCause(t, open(), CauseRate, KindPeer)
	clock.ahead(time.Second)
	require.NoError(t, open(), "a slower rate before does not count any more")
	with(Rate{})
	require.True(t, plain())
	for range 10 {
		require.NoError(t, open())
	}
}

func TestSetLimitSetsRatesAndResetLimitTakesThemBack(t *testing.T) {
	m, _ := newPaced(t, func(c *perScope[BaseLimit]) { c.ProtocolDefault.Rates.Streams = Rate{PerSecond: 1, Burst: 3} })
	one := unlimitedBase
	one.Rates.StreamsInbound = Rate{PerSecond: 1, Burst: 1}
	open := func(to string) error {
		s, err := m.OpenStream("p", network.DirInbound)
		if err != nil {
			return err
		}
		defer s.Done()
		return s.SetProtocol(protocol.ID(to))
	}
	require.NoError(t, m.ViewPeer("p", func(s network.PeerScope) error {
		s.(ResourceScopeLimiter).SetLimit(one)
		require.Equal(t, &one, s.(ResourceScopeLimiter).Limit())
		return nil
	}))
	require.NoError(t, open("/x"))
	requireCause(t, open("/x"), CauseRate, KindPeer)
	require.Equal(t, one, m.Limits().limits.Peer["p"])
	require.NoError(t, m.ViewPeer("p", func(s network.PeerScope) error { s.(LimitResetter).ResetLimit(); return nil }))
	require.NoError(t, open("/x"))
	require.NoError(t, open("/x"))
	requireCause(t, open("/x"), CauseRate, KindProtocol)
	require.NoError(t, m.ViewProtocol("/x", func(s network.ProtocolScope) error {
		s.(ResourceScopeLimiter).SetLimit(unlimitedBase)
		return nil
	}))
	require.NoError(t, open("/x"), "the limit that was set has no rate")
	require.Equal(t, unlimitedBase, m.Limits().limits.Protocol["/x"])
	require.NoError(t, m.ViewProtocol("/x", func(s network.ProtocolScope) error { s.(LimitResetter).ResetLimit(); return nil }))
	requireCause(t, open("/x"), CauseRate, KindProtocol)
}

func TestARateOfSetLimitHoldsWhereNoConfigurationHasOne(t *testing.T) {
	m, clock := newPaced(t, func(*perScope[BaseLimit]) {})
	one := unlimitedBase
	one.Rates.StreamsInbound = Rate{PerSecond: 1, Burst: 1}
	require.Zero(t, m.read().refusable.rates)
	require.NoError(t, m.ViewPeer("p", func(s network.PeerScope) error {
		s.(ResourceScopeLimiter).SetLimit(one)
		return nil
	}))
	require.Equal(t, dimSet(1<<dimStreamsIn), m.read().refusable.rates[KindPeer], "metrics have a series for it before it refuses")
	require.NoError(t, openAndClose(m, "p", network.DirInbound))
	requireCause(t, openAndClose(m, "p", network.DirInbound), CauseRate, KindPeer)
	require.NoError(t, m.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams = 9 })})))
	requireCause(t, openAndClose(m, "p", network.DirInbound), CauseRate, KindPeer)
	clock.ahead(time.Second)
	require.NoError(t, openAndClose(m, "p", network.DirInbound))
}

// The memory that rates take, of very many peers at once.
func TestAPeerWithARateTakesSixteenBytesUntilItsBucketIsFull(t *testing.T) {
	require.EqualValues(t, 8+unsafe.Sizeof(uintptr(0)), unsafe.Sizeof(rarePeer{}), "16 bytes where pointers have 8")
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) { c.PeerDefault.Rates.StreamsInbound = perSecond(100) })
	before := runtime.NumGoroutine()
	for i := range 1000 {
		mustOpenStream(t, m, peer.ID(fmt.Sprint("peer", i)), network.DirInbound)
	}
	rare := func() (n int) {
		for i := range m.stripes {
			for ps := range m.stripes[i].allPeers {
				if ps.rare != nil {
					require.Nil(t, ps.rare.rares)
					n++
				}
			}
		}
		return n
	}
	require.Equal(t, 1000, rare())
	require.Equal(t, before, runtime.NumGoroutine())
	m.reap()
	require.Equal(t, 1000, rare())
	clock.ahead(time.Second)
	m.reap()
	require.Zero(t, rare(), "full buckets take no memory, although the peers are there")
	require.Len(t, m.ListPeers(), 1000)
}

// Few peers have buckets of two rates that are not full. One of them has a place that all rates of
// the peer share, and a rate must not be found there and in its own place at different times.
func TestABurstThatWasLoweredIsForgottenWhicheverRateIsAskedNext(t *testing.T) {
	limits := func(burst LimitVal) perScope[BaseLimit] {
		return limitedConf(func(c *perScope[BaseLimit]) {
			c.PeerDefault.Rates.Conns = Rate{PerSecond: 1, Burst: 1}
			c.PeerDefault.Rates.Streams = Rate{PerSecond: 1, Burst: burst}
		})
	}
	m := newManager(t, limits(100))
	clock := new(handClock)
	m.tokens.clock = func() int64 { return clock.now }
	dial := func() { require.NoError(t, mustOpenConn(t, m, network.DirInbound).SetPeer("p")) }
	dial()
	for range 100 {
		mustOpenStream(t, m, "p", network.DirInbound)
	}
	clock.ahead(2 * time.Second) // the bucket of connections is full
	require.NoError(t, m.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: limits(1)})))
	requireCause(t, openAndClose(m, "p", network.DirInbound), CauseRate, KindPeer)
	clock.ahead(2 * time.Second) // that of streams, too
	dial()
	require.NoError(t, openAndClose(m, "p", network.DirInbound))
}

// Stripes take tokens of one bucket at the same time.
func TestAStreamWaitsForTheBucketsOfSharedScopes(t *testing.T) {
	m, _ := newPaced(t, func(c *perScope[BaseLimit]) { c.System.Rates.Streams = perSecond(1000) })
	mustOpenStream(t, m, "p", network.DirInbound)
	unlock := lockFor(t, &m.tokens.mu)
	opened, id := make(chan error, 1), make(chan string, 1)
	go func() {
		id <- goroutineID()
		_, err := m.OpenStream("p", network.DirInbound)
		opened <- err
	}()
	waitUntilLocked(t, <-id)
	unlock()
	require.NoError(t, <-opened)
}

// A peer that stays must not gather a record of every protocol that it has ever used.
func TestAPeersPartOfAProtocolLeavesNoBucketBehind(t *testing.T) {
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) { c.ProtocolPeerDefault.Rates.Streams = perSecond(10) })
	ps := viewPeer(t, m, "p").(*peerScope)
	c := mustOpenConn(t, m, network.DirInbound)
	require.NoError(t, c.SetPeer("p"))
	for i := range 5 {
		s := mustOpenStream(t, m, "p", network.DirInbound)
		require.NoError(t, s.SetProtocol(protocol.ID(fmt.Sprint("/", i))))
		s.Done()
	}
	require.Len(t, ps.rare.rates.pairs, 5)
	clock.ahead(time.Minute)
	m.reap()
	require.Empty(t, m.ListProtocols())
	require.Same(t, ps, m.stripeOf("p").known("p"))
	require.Empty(t, ps.rare.rates.pairs)
}

func TestRefusalsByRatesAreSeenEverywhere(t *testing.T) {
	var logged bytes.Buffer
	reg := prometheus.NewPedanticRegistry()
	m, clock := newPaced(t, func(c *perScope[BaseLimit]) {
		c.System.Rates.StreamsInbound = Rate{PerSecond: 10, Burst: 4}
		c.PeerDefault.Rates.StreamsInbound = Rate{PerSecond: 10, Burst: 2}
	})
	require.NoError(t, m.RegisterWith(reg))
	requireValue(t, 0, reg, "refusals_total", "rate", "inbound", "stream", "peer")
	requireValue(t, 4, reg, "scope_rate_tokens", "", "streams_inbound", "system")
	for range 2 {
		mustOpenStream(t, m, testPeers[0], network.DirInbound)
	}
	_, err := m.OpenStream(testPeers[0], network.DirInbound)
	requireCause(t, err, CauseRate, KindPeer)
	mustOpenStream(t, m, testPeers[1], network.DirInbound)

	// The error, and what it writes.
	var refused *LimitError
	require.ErrorAs(t, err, &refused)
	require.Contains(t, err.Error(), "cannot reserve inbound stream: rate limit exceeded")
	slog.New(slog.NewTextHandler(&logged, nil)).Info("refused", "err", refused)
	require.Contains(t, logged.String(), "err.cause=rate")
	require.Contains(t, logged.String(), "err.retry_at="+refused.RetryAt().Format("2006-01-02T15:04:05.000"))
	require.Contains(t, toJSON(t, refused), `"RetryAt":"`)
	require.WithinDuration(t, m.tokens.began.Add(100*time.Millisecond), refused.RetryAt(), 0)

	// Explain.
	e, err := m.Explain(ExplainRequest{Kind: KindStream, Peer: testPeers[0], Direction: network.DirInbound})
	require.NoError(t, err)
	require.Equal(t, "rate", e.By.Cause)
	require.True(t, refused.RetryAt().Equal(e.By.RetryAt))
	require.Contains(t, e.String(), "Rates.StreamsInbound is at 2 of 2, and 1 more would exceed 2 (rate); raise PeerDefault.Rates.StreamsInbound")

	// The snapshot, its JSON and its table.
	s := m.Snapshot()
	want := map[string]RateState{
		"system":                        {"StreamsInbound", 10, 4, 1},
		"peer:" + testPeers[0].String(): {"StreamsInbound", 10, 2, 0},
		"peer:" + testPeers[1].String(): {"StreamsInbound", 10, 2, 1},
	}
	for _, sc := range s.Scopes {
		if r, ok := want[sc.Name]; ok {
			require.Equal(t, []RateState{r}, sc.Rates)
			delete(want, sc.Name)
		} else {
			require.Empty(t, sc.Rates)
		}
	}
	require.Empty(t, want)
	var back Snapshot
	require.NoError(t, json.Unmarshal([]byte(toJSON(t, s)), &back))
	require.Equal(t, s.Scopes[0].Rates, back.Scopes[0].Rates)
	near := s.LimitsNear(99)
	require.Equal(t, "Rates.StreamsInbound", near[0].Name)

	// Metrics.
	requireValue(t, 1, reg, "refusals_total", "rate", "inbound", "stream", "peer")
	requireValue(t, 0, reg, "refusals_total", "rate", "inbound", "stream", "system")
	requireValue(t, 1, reg, "scope_rate_tokens", "", "streams_inbound", "system")
	requireValue(t, 4, reg, "scope_rate_burst", "", "streams_inbound", "system")
	clock.ahead(time.Minute)
	requireValue(t, 4, reg, "scope_rate_tokens", "", "streams_inbound", "system")

	// The page.
	page := httptest.NewRecorder()
	Handler(m).ServeHTTP(page, httptest.NewRequest("GET", "/?format=text", nil))
	require.Contains(t, page.Body.String(), "Rates.StreamsInbound")
}

func TestARateThatIsOnlyObservedRefusesNothingAndCounts(t *testing.T) {
	m, _ := newPaced(t, func(c *perScope[BaseLimit]) { c.PeerDefault.Rates.Streams = Rate{PerSecond: 1, Burst: 2} },
		WithObserveOnly(KindPeer))
	for range 5 {
		mustOpenStream(t, m, "p", network.DirInbound)
	}
	require.Equal(t, map[modelWould]int{{KindPeer, dimStreams, CauseRate}: 3}, m.wouldRefuseNow())
}
