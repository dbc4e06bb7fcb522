package subnets

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/testseed"
)

func TestTakingIfSomebodyElseAdmitsIsEnteringAndGivingBack(t *testing.T) {
	rng := testseed.Random(t)
	for range 200 {
		cfg := randomRateConfig(rng)
		enters, takes := mustRates(t, cfg), mustRates(t, cfg)
		if rng.IntN(4) == 0 { // a gate that is only observed lets pass, and counts
			observed := func(Gate) bool { return true }
			enters.config.Observed, takes.config.Observed = observed, observed
		}
		var now time.Duration
		clock := func() int64 { return int64(now) }
		enters.now, takes.now = clock, clock
		for range 200 {
			now += time.Duration(rng.IntN(int(2 * time.Second)))
			addr, admits, asked := randomAddr(rng), rng.IntN(3) > 0, false
			var p Pass
			why, ok := enters.Enter(addr, Inbound, &p)
			wasAsked := ok
			if ok && !admits {
				p.Undo()
				ok = false
			}
			why2, ok2 := takes.TakeIf(addr, Inbound, func() bool { asked = true; return admits })
			require.Equal(t, why, why2)
			require.Equal(t, ok, ok2)
			require.Equal(t, wasAsked, asked)
			require.Equal(t, enters.Look(addr), takes.Look(addr))
			require.NoError(t, takes.Check())
		}
		a, b := enters.Refusals()
		c, d := takes.Refusals()
		require.Equal(t, a, c)
		if takes.config.Observed == nil {
			require.Equal(t, b, d)
		}
	}
}

func TestTokensOfStreamsThatAreRefusedElsewhereAreNeverMissed(t *testing.T) {
	// One token, and many who ask for it and are refused elsewhere: it is never seen to be gone.
	s := mustRates(t, rateConfig{perSubnet: usualRates().perSubnet})
	s.now = func() int64 { return 0 }
	addr := randomAddr(rand.New(rand.NewPCG(1, 1)))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				why, ok := s.TakeIf(addr, Inbound, func() bool { return false })
				if why != nil || ok {
					t.Errorf("refused by %v", why)
					return
				}
			}
		})
	}
	wg.Wait()
	requireNoRecords(t, s)
}

func TestAnAddressThatIsInNoSubnetNeedsOnlyToBeAdmitted(t *testing.T) {
	s := mustRates(t, usualRates())
	for _, admits := range []bool{false, true} {
		for _, addr := range []netip.Addr{{}, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
			why, ok := s.TakeIf(addr, Inbound, func() bool { return admits })
			require.NoError(t, why)
			require.Equal(t, admits, ok)
		}
	}
}
