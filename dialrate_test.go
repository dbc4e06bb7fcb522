package rcmgr

import (
	"encoding/json"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// dialLimits are rates of dials: to every address, to a network, and to another one that has none.
func dialLimits() *GateLimits {
	return &GateLimits{DialRate: RateLimits{
		IPv4: map[int]ConnRate{32: {PerSecond: 0.1, Burst: 2}},
		Networks: map[netip.Prefix]ConnRate{
			netip.MustParsePrefix("10.0.0.0/8"):     {PerSecond: 1, Burst: 3},
			netip.MustParsePrefix("192.168.0.0/16"): {Burst: Unlimited},
		},
	}}
}

func TestDialsHaveARateOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := limitedConf(func(c *perScope[BaseLimit]) {
			c.Gates = dialLimits()
			c.System.Rates.ConnsOutbound = Rate{PerSecond: 10, Burst: 8} // in all
		})
		m := newManager(t, conf)
		open := func(dir network.Direction, addr string) error {
			c, err := m.OpenConnection(dir, true, multiaddr.StringCast(addr))
			if err == nil {
				c.Done()
			}
			return err
		}
		refused := func(err error, k Kind, key string) {
			t.Helper()
			requireCause(t, err, CauseRate, k)
			var e *LimitError
			require.ErrorAs(t, err, &e)
			require.Equal(t, key, e.ConfigKey())
			require.Equal(t, network.DirOutbound, e.Direction())
		}
		const one, inNetwork, home = "/ip4/192.0.2.1/tcp/1", "/ip4/10.1.2.3/tcp/1", "/ip4/192.168.1.1/tcp/1"
		for range 2 {
			require.NoError(t, open(network.DirOutbound, one))
		}
		for range 3 {
			refused(open(network.DirOutbound, one), KindRate, `Gates.DialRate.IPv4["32"]`)
			require.NoError(t, open(network.DirInbound, one), "the other direction has other buckets")
		}
		e, err := m.Explain(ExplainRequest{Kind: KindConn, Direction: network.DirOutbound, Endpoint: multiaddr.StringCast(one)})
		require.NoError(t, err)
		require.Equal(t, `Gates.DialRate.IPv4["32"]`, e.By.ConfigKey)
		for range 3 {
			require.NoError(t, open(network.DirOutbound, inNetwork))
		}
		refused(open(network.DirOutbound, inNetwork), KindRate, `Gates.DialRate.Networks["10.0.0.0/8"]`)
		for range 3 {
			require.NoError(t, open(network.DirOutbound, home), "eight in all")
		}
		refused(open(network.DirOutbound, home), KindSystem, "System.Rates.ConnsOutbound")
		require.EqualValues(t, 4, m.Snapshot().Refusals[KindRate].ConnsOutbound)
		require.Equal(t, 3, m.Snapshot().Gates.RateBuckets, "one of inbound connections, and two of dials")
		time.Sleep(10 * time.Second)
		require.NoError(t, open(network.DirOutbound, one))
		refused(open(network.DirOutbound, one), KindRate, `Gates.DialRate.IPv4["32"]`)
	})
}

func TestADialThatIsRefusedElsewhereGivesItsTokenBack(t *testing.T) {
	for what, outbound := range map[string]bool{"by a scope": false, "by a gate": true} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conf := limitedConf(func(c *perScope[BaseLimit]) {
					c.Gates = dialLimits()
					c.Gates.Outbound = &outbound
					c.Gates.Subnets.IPv4 = map[int]LimitVal{32: 1}
					if !outbound {
						c.System.FD = 1
					}
				})
				m := newManager(t, conf)
				addr := multiaddr.StringCast("/ip4/192.0.2.1/tcp/1")
				first, err := m.OpenConnection(network.DirOutbound, true, addr)
				require.NoError(t, err)
				for range 5 {
					_, err := m.OpenConnection(network.DirOutbound, true, addr)
					require.Error(t, err)
					require.NotContains(t, err.Error(), "rate limit")
				}
				first.Done()
				second, err := m.OpenConnection(network.DirOutbound, true, addr)
				require.NoError(t, err, "the second token is there")
				second.Done()
				_, err = m.OpenConnection(network.DirOutbound, true, addr)
				requireCause(t, err, CauseRate, KindRate)
			})
		})
	}
}

// A connection that has passed the gates, and is refused then, has taken no token.
func TestADialThatTheLimitOfAConnectionRefusesGivesItsTokenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
			c.Gates, c.Conn.FD = dialLimits(), 0
		}))
		open := func(usefd bool) error {
			_, err := m.OpenConnection(network.DirOutbound, usefd, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
			return err
		}
		for range 5 {
			requireCause(t, open(true), CauseLimit, KindConn)
		}
		require.NoError(t, open(false))
		require.NoError(t, open(false), "both tokens are there")
		requireCause(t, open(false), CauseRate, KindRate)
	})
}

func TestRatesOfDialsAreReadWrittenAndChangedLikeOtherGates(t *testing.T) {
	cfg := PartialLimitConfig{Gates: dialLimits()}
	text := toJSON(t, cfg)
	var read PartialLimitConfig
	require.NoError(t, json.Unmarshal([]byte(text), &read))
	require.Equal(t, cfg, read)
	require.False(t, cfg.IsDefault())
	built := cfg.Build(InfiniteLimits)
	diff := built.Diff(InfiniteLimits)
	require.Equal(t, cfg.Gates.DialRate.IPv4, diff.Gates.DialRate.IPv4)
	var places []string
	for _, s := range built.Settings() {
		if s.Origin == OriginOverride {
			places = append(places, s.Place+" "+s.Value)
		}
	}
	require.Contains(t, places, `Gates.DialRate.IPv4["32"] 0.1/s, burst 2`)
	require.Contains(t, places, `Gates.DialRate.Networks["192.168.0.0/16"] unlimited`)

	m := newManager(t, limitedConf(func(*perScope[BaseLimit]) {}))
	require.False(t, m.gate().concerns(dimConnsOut))
	require.NoError(t, m.SetLimits(NewFixedLimiter(built)))
	require.Equal(t, cfg.Gates.DialRate.IPv4, m.Limits().limits.Gates.DialRate.IPv4)
	require.True(t, m.gate().concerns(dimConnsOut))
	require.False(t, m.gate().checks(dimConnsOut))

	cfg.Gates.DialRate.IPv4[32] = ConnRate{PerSecond: -1, Burst: 1}
	_, err := New(NewFixedLimiter(cfg.Build(InfiniteLimits)))
	require.ErrorContains(t, err, `Gates.DialRate.IPv4["32"].PerSecond`)
}
