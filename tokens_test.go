package rcmgr

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
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

// someRates returns random rates whose tokens come after whole nanoseconds.
func someRates(r *rand.Rand) (rates Rates) {
	for _, one := range rates.all() {
		if r.IntN(3) == 0 {
			*one = Rate{PerSecond: pick(r, []float64{0.1, 1, 10, 100}), Burst: LimitVal(1 + r.IntN(6))}
		}
	}
	return rates
}

// rate gives every scope of a configuration random rates, or none.
func rateAll(r *rand.Rand, conf *perScope[BaseLimit]) {
	for i, l := range conf.single() {
		if i < len(conf.single())-2 && r.IntN(2) == 0 { // all but Conn and Stream
			l.Rates = someRates(r)
		}
	}
	for _, p := range testPeers[:2] {
		l := conf.PeerDefault
		l.Rates = someRates(r)
		put(&conf.Peer, p, l)
	}
}

func TestRandomSequencesWithRatesDecideAsTheModel(t *testing.T) {
	steps := cmp.Or(*stepsFlag, 2000)
	if testing.Short() || raceDetector() {
		steps = cmp.Or(*stepsFlag, 300)
	}
	seed := testSeed(t)
	cell := uint64(0)
	for _, stripes := range []int{1, 8} {
		for _, g := range append(slices.Clone(regimes), mixed) {
			for _, observing := range []bool{false, true} {
				cell++
				r := randomFrom(seed, cell)
				t.Run(fmt.Sprintf("stripes=%d/%s/observing=%v", stripes, g.name, observing), func(t *testing.T) {
					conf := g.conf(r, stripes)
					rateAll(r, &conf)
					d := newDuelOf(t, r, stripes, g, conf, AdmissionHalf, r.IntN(2) == 0)
					d.clock, d.observing, d.lowered = new(handClock), observing, observing
					now := func() int64 { return d.clock.now }
					d.eng.tokens.clock, d.mod.now = now, now
					d.run(steps)
				})
			}
		}
	}
}
