package rcmgr

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// streamLimits are rates of streams: of every /24, of a network, and of another one that has none.
func streamLimits() *GateLimits {
	none := map[int]ConnRate{}
	return &GateLimits{
		Rate:    RateLimits{IPv4: none, IPv6: none},
		Subnets: SubnetLimits{IPv4: map[int]LimitVal{}, IPv6: map[int]LimitVal{}},
		StreamRate: RateLimits{
			IPv4: map[int]ConnRate{24: {PerSecond: 1, Burst: 3}},
			Networks: map[netip.Prefix]ConnRate{
				netip.MustParsePrefix("10.0.0.0/8"):     {PerSecond: 1, Burst: 5},
				netip.MustParsePrefix("192.168.0.0/16"): {Burst: Unlimited},
			},
		},
	}
}

// streamGated returns a manager whose gates have rates of streams, and other limits that admit all.
func streamGated(t *testing.T, change func(*perScope[BaseLimit]), opts ...Option) *Manager {
	t.Helper()
	return newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.Gates = streamLimits()
		if change != nil {
			change(c)
		}
	}), opts...)
}

// connect opens a connection of a new peer, and returns both.
func connect(t testing.TB, m *Manager, dir network.Direction, addr string) (peer.ID, network.ConnManagementScope) {
	t.Helper()
	p := test.RandPeerIDFatal(t)
	return p, connectAs(t, m, p, dir, addr)
}

func connectAs(t testing.TB, m *Manager, p peer.ID, dir network.Direction, addr string) network.ConnManagementScope {
	t.Helper()
	c, err := m.OpenConnection(dir, true, multiaddr.StringCast(addr))
	require.NoError(t, err)
	require.NoError(t, c.SetPeer(p))
	return c
}

// openAndClose opens a stream, closes it and returns the error of opening it.
func openAndClose(m *Manager, p peer.ID, dir network.Direction) error {
	s, err := m.OpenStream(p, dir)
	if err == nil {
		s.Done()
	}
	return err
}

func TestStreamsHaveARateForAllPeersOfASubnet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := streamGated(t, nil)
		refused := func(err error, key string) {
			t.Helper()
			requireCause(t, err, CauseRate, KindRate)
			var e *LimitError
			require.ErrorAs(t, err, &e)
			require.Equal(t, key, e.ConfigKey())
			require.Equal(t, network.DirInbound, e.Direction())
			require.Equal(t, ResourceStream, e.Resource())
			require.ErrorContains(t, err, "rate limit exceeded")
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		}
		const in, out = network.DirInbound, network.DirOutbound
		a, _ := connect(t, m, in, "/ip4/192.0.2.1/tcp/1")
		b, _ := connect(t, m, out, "/ip4/192.0.2.200/tcp/1") // whoever dialed: it is the same subnet
		friend, _ := connect(t, m, in, "/ip4/198.51.100.1/tcp/1")
		inNetwork, _ := connect(t, m, in, "/ip4/10.1.2.3/tcp/1")
		home, _ := connect(t, m, in, "/ip4/192.168.1.1/tcp/1")
		relayed, _ := connect(t, m, in, "/ip4/192.0.2.1/tcp/1/p2p/"+a.String()+"/p2p-circuit")
		stranger := test.RandPeerIDFatal(t) // of which no connection is known

		require.NoError(t, openAndClose(m, a, in))
		require.NoError(t, openAndClose(m, b, in))
		require.NoError(t, openAndClose(m, a, in))
		const key = `Gates.StreamRate.IPv4["24"]`
		for range 4 {
			refused(openAndClose(m, a, in), key)
			refused(openAndClose(m, b, in), key)
			for _, p := range []peer.ID{home, relayed, stranger} {
				require.NoError(t, openAndClose(m, p, in))
			}
			require.NoError(t, openAndClose(m, a, out), "what the host opens is its own choice")
		}
		for range 3 {
			require.NoError(t, openAndClose(m, friend, in), "another subnet has another bucket")
		}
		for range 5 {
			require.NoError(t, openAndClose(m, inNetwork, in))
		}
		refused(openAndClose(m, inNetwork, in), `Gates.StreamRate.Networks["10.0.0.0/8"]`)

		e, err := m.Explain(ExplainRequest{Kind: KindStream, Direction: in, Peer: a})
		require.NoError(t, err)
		require.False(t, e.Admitted)
		require.Equal(t, key, e.By.ConfigKey)
		require.Equal(t, "rate:192.0.2.0/24", e.By.Scope)
		s := m.Snapshot()
		require.EqualValues(t, 9, s.Refusals[KindRate].StreamsInbound)
		require.Zero(t, s.Refusals[KindRate].ConnsInbound)
		require.Equal(t, 3, s.Gates.RateBuckets)

		time.Sleep(time.Second) // one token comes, for both peers together
		e, err = m.Explain(ExplainRequest{Kind: KindStream, Direction: in, Peer: a})
		require.NoError(t, err)
		require.True(t, e.Admitted)
		require.NoError(t, openAndClose(m, b, in))
		refused(openAndClose(m, a, in), key)
	})
}

func TestStreamsAreHeldToTheRateOfTheirSubnetWhereAScopeHasARateToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := streamGated(t, func(c *perScope[BaseLimit]) { c.System.Rates.Streams = Rate{PerSecond: 1000, Burst: 1000} })
		p, _ := connect(t, m, network.DirInbound, "/ip4/192.0.2.1/tcp/1")
		for range 3 {
			require.NoError(t, openAndClose(m, p, network.DirInbound))
		}
		requireCause(t, openAndClose(m, p, network.DirInbound), CauseRate, KindRate)
	})
}

func TestStreamsOfTheHostHaveARateBySubnetByChoice(t *testing.T) {
	m := streamGated(t, func(c *perScope[BaseLimit]) {
		outbound := true
		c.Gates.Outbound = &outbound
	})
	p, _ := connect(t, m, network.DirInbound, "/ip4/192.0.2.1/tcp/1")
	for range 3 {
		require.NoError(t, openAndClose(m, p, network.DirOutbound))
	}
	requireCause(t, openAndClose(m, p, network.DirOutbound), CauseRate, KindRate)
	require.EqualValues(t, 1, m.Snapshot().Refusals[KindRate].StreamsOutbound)
}

func TestTheAllowlistIsFreeOfTheRateOfStreams(t *testing.T) {
	p, at := test.RandPeerIDFatal(t), "/ip4/192.0.2.1/tcp/1"
	for what, entry := range map[string]string{"an address": "/ip4/192.0.2.1", "a peer": "/p2p/" + p.String()} {
		t.Run(what, func(t *testing.T) {
			m := streamGated(t, nil, WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{multiaddr.StringCast(entry)}))
			connectAs(t, m, p, network.DirInbound, at)
			for range 20 {
				require.NoError(t, openAndClose(m, p, network.DirInbound))
			}
		})
	}
}

func TestAPeerThatIsAllowlistedLaterIsFreeOfTheRateOfStreams(t *testing.T) {
	m := streamGated(t, nil)
	p, _ := connect(t, m, network.DirInbound, "/ip4/192.0.2.1/tcp/1")
	for range 3 {
		require.NoError(t, openAndClose(m, p, network.DirInbound))
	}
	require.Error(t, openAndClose(m, p, network.DirInbound))
	require.NoError(t, m.GetAllowlist().Add(multiaddr.StringCast("/p2p/"+p.String())))
	for range 9 {
		require.NoError(t, openAndClose(m, p, network.DirInbound))
	}
}

// What is not among the rates of dials, or of streams, is named as a rate of connections would be.
func TestTheLogNamesTheRateThatRefused(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.Gates = streamLimits()
		c.Gates.DialRate = dialLimits().DialRate
	}), WithRefusalLog(time.Hour))
	lines := captureLog(t)
	for _, addr := range []string{"/ip4/192.0.2.1/tcp/1", "/ip4/10.1.2.3/tcp/1"} {
		p, _ := connect(t, m, network.DirInbound, addr)
		for range 9 {
			openAndClose(m, p, network.DirInbound)
			if c, err := m.OpenConnection(network.DirOutbound, true, multiaddr.StringCast(addr)); err == nil {
				c.Done()
			}
		}
		m.logRefusals()
		text := lines.String()
		lines.Reset()
		key := map[string]string{"/ip4/192.0.2.1/tcp/1": `Gates.DialRate.IPv4[`, "/ip4/10.1.2.3/tcp/1": `Gates.DialRate.Networks[`}[addr]
		require.Contains(t, text, key)
		require.Contains(t, text, strings.Replace(key, "DialRate", "StreamRate", 1))
	}
}

func TestAPeerIsWhereTheFirstOfItsConnectionsIs(t *testing.T) {
	m := streamGated(t, nil)
	const in = network.DirInbound
	p, first := connect(t, m, in, "/ip4/192.0.2.1/tcp/1")
	second := connectAs(t, m, p, in, "/ip4/192.168.1.1/tcp/1") // where no rate holds
	for range 3 {
		require.NoError(t, openAndClose(m, p, in))
	}
	require.Error(t, openAndClose(m, p, in))
	first.Done()
	require.Error(t, openAndClose(m, p, in), "it does not move by itself")
	second.Done()
	connectAs(t, m, p, in, "/ip4/192.168.1.1/tcp/1")
	for range 9 {
		require.NoError(t, openAndClose(m, p, in), "it came back from elsewhere")
	}
}

func TestAStreamThatIsRefusedElsewhereTakesNoTokenOfItsSubnet(t *testing.T) {
	m := streamGated(t, func(c *perScope[BaseLimit]) { c.PeerDefault.StreamsInbound = 1 })
	p, _ := connect(t, m, network.DirInbound, "/ip4/192.0.2.1/tcp/1")
	s, err := m.OpenStream(p, network.DirInbound)
	require.NoError(t, err)
	for range 5 {
		requireCause(t, openAndClose(m, p, network.DirInbound), CauseLimit, KindPeer)
	}
	s.Done()
	require.NoError(t, openAndClose(m, p, network.DirInbound))
	require.NoError(t, openAndClose(m, p, network.DirInbound))
	requireCause(t, openAndClose(m, p, network.DirInbound), CauseRate, KindRate)
}

func TestARateOfStreamsBySubnetThatIsOnlyObservedRefusesNothing(t *testing.T) {
	m := streamGated(t, nil, WithObserveOnly(KindRate))
	p, _ := connect(t, m, network.DirInbound, "/ip4/192.0.2.1/tcp/1")
	for range 10 {
		require.NoError(t, openAndClose(m, p, network.DirInbound))
	}
	s := m.Snapshot()
	require.EqualValues(t, 7, s.WouldRefuse[KindRate].StreamsInbound)
	require.Zero(t, s.Refusals[KindRate].StreamsInbound)
}

// Over any time t no more than burst + rate × t, and all that fits, from however many peers,
// stripes and goroutines.
func TestTheRateOfStreamsBySubnetIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := streamGated(t, nil)
		var peers []peer.ID
		for i := range 16 {
			p, _ := connect(t, m, network.DirInbound, fmt.Sprintf("/ip4/192.0.2.%d/tcp/1", i))
			peers = append(peers, p)
		}
		var admitted atomic.Int64
		var wg sync.WaitGroup
		seed := testRandom(t).Uint64()
		for i := range uint64(8) {
			rng := randomFrom(seed, i)
			wg.Go(func() {
				for range 600 { // a minute
					time.Sleep(100 * time.Millisecond)
					if openAndClose(m, peers[rng.IntN(len(peers))], network.DirInbound) == nil {
						admitted.Add(1)
					}
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 3+59, admitted.Load()) // within 59.9 seconds from the first try
	})
}

func TestRatesOfStreamsBySubnetAreReadWrittenAndChangedLikeOtherGates(t *testing.T) {
	const text = `{"Gates": {"StreamRate": {"IPv4": {"24": {"PerSecond": 50, "Burst": 200}}, "Networks": {"192.168.0.0/16": {"Burst": "unlimited"}}}}}`
	limiter, err := NewLimiterFromJSON(strings.NewReader(text), InfiniteLimits)
	require.NoError(t, err)
	m := newFrom(t, InfiniteLimits)
	p, _ := connect(t, m, network.DirInbound, "/ip4/192.0.2.1/tcp/1")
	require.NoError(t, m.SetLimits(limiter))
	limits := m.Limits()
	written, err := json.Marshal(limits.limits.Gates.StreamRate.IPv4)
	require.NoError(t, err)
	require.JSONEq(t, `{"24": {"PerSecond": 50, "Burst": 200}}`, string(written))

	for range 300 {
		require.NoError(t, openAndClose(m, p, network.DirInbound), "where it is was not asked when it came")
	}
	again := connectAs(t, m, p, network.DirInbound, "/ip4/192.0.2.1/tcp/1")
	for range 200 {
		require.NoError(t, openAndClose(m, p, network.DirInbound))
	}
	requireCause(t, openAndClose(m, p, network.DirInbound), CauseRate, KindRate)
	again.Done()
	require.NoError(t, m.SetLimits(NewFixedLimiter(InfiniteLimits)))
	for range 300 {
		require.NoError(t, openAndClose(m, p, network.DirInbound), "the rate is gone")
	}

	for bad, place := range map[string]string{
		`{"24": {"Burst": 2}}`:                     `Gates.StreamRate.IPv4["24"].PerSecond`,
		`{"24": {"PerSecond": 2}}`:                 `Gates.StreamRate.IPv4["24"].Burst`,
		`{"24": {"PerSecond": -1, "Burst": 2}}`:    `Gates.StreamRate.IPv4["24"].PerSecond`,
		`{"33": {"PerSecond": 1, "Burst": 2}}`:     `Gates.StreamRate.IPv4["33"]`,
		`{"24": {"PerSecond": 1, "Brust": 2}}`:     `Gates.StreamRate.IPv4["24"].Brust`,
		`{"24": {"PerSecond": 1e999, "Burst": 2}}`: `Gates.StreamRate.IPv4["24"].PerSecond`,
	} {
		l, err := NewLimiterFromJSON(strings.NewReader(`{"Gates": {"StreamRate": {"IPv4": `+bad+`}}}`), InfiniteLimits)
		if err == nil {
			_, err = New(l)
		}
		require.ErrorContains(t, err, place, bad)
	}
}

func TestATraceHasStreamsThatTheirSubnetRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.json")
	m := streamGated(t, nil, WithTrace(path))
	p, _ := connect(t, m, network.DirInbound, "/ip4/192.0.2.1/tcp/1")
	for range 3 {
		require.NoError(t, openAndClose(m, p, network.DirInbound))
	}
	require.Error(t, openAndClose(m, p, network.DirInbound))
	require.NoError(t, m.Close())
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	require.NoError(t, err)
	text, err := io.ReadAll(unzipped)
	require.NoError(t, err)
	require.Contains(t, string(text), "rate:192.0.2.0/24")
}
