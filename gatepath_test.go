package rcmgr

// The way of a connection through the gates to its peer: what is seen of one
// that is refused there, what becomes of one that is on trial, and what is left
// of those that have gone.

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// oneToken gives each IPv4 address a token, and no other for a long time.
func oneToken() ConnRate { return ConnRate{PerSecond: 0.001, Burst: 1} }

// TestEveryRefusalByAGateIsSeenEverywhere: whichever gate refuses, and whether it
// does before the scopes are asked or when a connection on trial shows who it
// is, it stands in the error, in the snapshot, in the metrics and in the trace,
// and the reporter hears of it; each once.
func TestEveryRefusalByAGateIsSeenEverywhere(t *testing.T) {
	const at = "198.51.100.1"
	network24 := netip.MustParsePrefix("198.51.100.0/24")
	listed := WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{multiaddr.StringCast("/ip4/" + at + "/p2p/" + testPeers[0].String())})
	for name, c := range map[string]struct {
		gates  GateLimits
		opts   []Option
		dir    network.Direction
		moving bool // it is SetPeer that is refused
		kind   Kind
		prefix string
	}{
		"subnet":           {gates: GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 1}}}, kind: KindSubnet, prefix: at + "/32"},
		"wider subnet":     {gates: GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{16: 1, 32: 9}}}, kind: KindSubnet, prefix: "198.51.0.0/16"},
		"network":          {gates: GateLimits{Subnets: SubnetLimits{Networks: map[netip.Prefix]LimitVal{network24: 1}}}, kind: KindSubnet, prefix: "198.51.100.0/24"},
		"rate":             {gates: GateLimits{Rate: RateLimits{IPv4: map[int]ConnRate{32: oneToken()}}}, kind: KindRate, prefix: at + "/32"},
		"rate of network":  {gates: GateLimits{Rate: RateLimits{Networks: map[netip.Prefix]ConnRate{network24: oneToken()}}}, kind: KindRate, prefix: "198.51.100.0/24"},
		"caller's rate":    {opts: []Option{WithConnRateLimiters(&rate.Limiter{GlobalLimit: rate.Limit{RPS: 1e-6, Burst: 1}})}, kind: KindRate, prefix: at + "/32"},
		"outbound, subnet": {gates: GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 1}}, Outbound: pointerTo(true)}, dir: network.DirOutbound, kind: KindSubnet, prefix: at + "/32"},
		"outbound, rate":   {gates: GateLimits{Rate: RateLimits{IPv4: map[int]ConnRate{32: oneToken()}}, Outbound: pointerTo(true)}, dir: network.DirOutbound, kind: KindRate, prefix: at + "/32"},
		"on trial, subnet": {gates: GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 1}}}, opts: []Option{listed}, moving: true, kind: KindSubnet, prefix: at + "/32"},
		"on trial, rate":   {gates: GateLimits{Rate: RateLimits{IPv4: map[int]ConnRate{32: oneToken()}}}, opts: []Option{listed}, moving: true, kind: KindRate, prefix: at + "/32"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, refused, text := network.DirInbound, Refusals{ConnsInbound: 1}, "inbound"
			if c.dir == network.DirOutbound {
				dir, refused, text = c.dir, Refusals{ConnsOutbound: 1}, "outbound"
			}
			far := mustMA(t, "/ip4/"+at+"/tcp/1")
			conf := unlimitedConf()
			conf.Gates = &c.gates
			var events []string
			heard := &talk{}
			m := newManager(t, conf, append(c.opts, WithMetrics(heard), WithTraceReporter(reporterFunc(func(e TraceEvt) {
				if strings.HasPrefix(string(e.Type), "block") {
					events = append(events, fmt.Sprint(e.Type, " ", e.Name, " ", e.DeltaIn, e.DeltaOut))
				}
			})))...)
			reg := registryOf(t, m)
			connect := func() error {
				conn, err := m.OpenConnection(dir, true, far)
				if err != nil {
					require.False(t, c.moving)
					return err
				}
				t.Cleanup(conn.Done)
				return conn.SetPeer(testPeers[1])
			}
			require.NoError(t, connect())
			heard.said = nil

			err := connect()
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			var e *LimitError
			require.ErrorAs(t, err, &e)
			kind := c.kind.String()
			require.Equal(t, []any{c.kind, kind + ":" + c.prefix, kind, ResourceConnection, dir},
				[]any{e.Kind(), e.Scope(), e.Cause().String(), e.Resource(), e.Direction()})
			for k := range numKinds {
				if k != c.kind {
					require.Zero(t, m.Snapshot().Refusals[k], k)
				}
			}
			require.Equal(t, refused, m.Snapshot().Refusals[c.kind])
			require.Equal(t, map[string]float64{fmt.Sprintf("%s %s connection %s", kind, text, kind): 1}, seriesOf(t, reg, "refusals_total"))
			require.Equal(t, map[string]float64{fmt.Sprintf("%s connection %s", text, kind): 1}, seriesOf(t, reg, "blocked_resources"))
			if c.moving {
				require.Equal(t, []string{fmt.Sprintln("conn", dir, true), fmt.Sprintln("no peer", testPeers[1])}, heard.said)
			} else {
				require.Equal(t, []string{fmt.Sprintln("no conn", dir, true)}, heard.said)
			}
			require.NoError(t, m.Close()) // the trace is told to its end
			want := fmt.Sprintf("block_add_conn %s:%s 1 0", kind, c.prefix)
			if dir == network.DirOutbound {
				want = fmt.Sprintf("block_add_conn %s:%s 0 1", kind, c.prefix)
			}
			require.Equal(t, []string{want}, events)
		})
	}
}

// TestATraceHasTheEndOfConnectionsThatAGateRefuses: every connection that a trace has seen
// come, it sees go, also where the scopes were looked at before the gates.
func TestATraceHasTheEndOfConnectionsThatAGateRefuses(t *testing.T) {
	for _, system := range []int{5, unlimitedBase.Conns} { // one small enough to be looked at first
		for _, far := range []multiaddr.Multiaddr{testFars[1].addr, testFars[3].addr} { // refused at once, or on trial
			open := map[string]bool{}
			var twice []string
			refusals := 0
			m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
				c.System.Conns = system
				c.Gates = &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 1}}}
			}), WithAllowlistedMultiaddrs(testAllowlist), WithTraceReporter(reporterFunc(func(e TraceEvt) {
				switch {
				case e.Type == TraceBlockAddConnEvt:
					refusals++
				case e.Type == TraceCreateScopeEvt && strings.HasPrefix(e.Name, "conn-"):
					open[e.Name] = true
				case e.Type == TraceDestroyScopeEvt && strings.HasPrefix(e.Name, "conn-"):
					if !open[e.Name] {
						twice = append(twice, e.Name)
					}
					delete(open, e.Name)
				}
			})))
			for range 3 {
				c, err := m.OpenConnection(network.DirInbound, true, far)
				if err == nil {
					defer c.Done()
					err = c.SetPeer(testPeers[1])
				}
				if err != nil && c != nil {
					c.Done()
				}
			}
			require.NoError(t, m.Close())
			require.Equal(t, map[string]bool{"conn-1": true}, open, "the one that is still open")
			require.Empty(t, twice, "one that could not move is still there, and ends once")
			require.Equal(t, 2, refusals)
		}
	}
}

// TestRelayedConnectionsNeedNoDescriptor: that of the relay's own connection is
// all there is.
func TestRelayedConnectionsNeedNoDescriptor(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.FD = 0 }))
	for _, via := range []string{"/ip4/192.0.2.1/tcp/1/p2p/" + peerA + "/p2p-circuit", "/p2p/" + peerA + "/p2p-circuit"} {
		for _, dir := range []network.Direction{network.DirInbound, network.DirOutbound} {
			c, err := m.OpenConnection(dir, true, mustMA(t, via))
			require.NoError(t, err)
			require.Zero(t, c.Stat().NumFD)
			c.Done()
		}
	}
	_, err := m.OpenConnection(network.DirInbound, true, mustMA(t, "/ip4/192.0.2.1/tcp/1"))
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
}

// TestGatesAreAskedInOrder: where all of them would refuse, the scopes that may be
// full do first, then the subnet, and the rate last.
func TestGatesAreAskedInOrder(t *testing.T) {
	for _, full := range []dim{dimConnsIn, dimConns, dimFD} {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
			system := limitsOf(&c.System)
			system[full] = 2
			c.System = system.base()
			c.Gates = &GateLimits{
				Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 1}},
				Rate:    RateLimits{IPv4: map[int]ConnRate{32: oneToken()}},
			}
		}))
		far := testFars[1].addr
		held, err := m.OpenConnection(network.DirInbound, true, far)
		require.NoError(t, err)
		room, err := m.OpenConnection(network.DirInbound, true, nil)
		require.NoError(t, err)
		for _, c := range []struct {
			want Kind
			then func()
		}{{KindSystem, room.Done}, {KindSubnet, held.Done}, {KindRate, func() {}}} {
			_, err := m.OpenConnection(network.DirInbound, true, far)
			var e *LimitError
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.want, e.Kind())
			c.then()
		}
		assertEmpty(t, m)
	}
}

// TestSourcesAreVerifiedByTheMostSpecificNetwork: as its connections count there
// and nowhere else.
func TestSourcesAreVerifiedByTheMostSpecificNetwork(t *testing.T) {
	networks := []NetworkPrefixLimit{
		{Network: netip.MustParsePrefix("10.0.0.0/8"), ConnCount: 4},
		{Network: netip.MustParsePrefix("10.1.0.0/16"), ConnCount: 40},
	}
	var theirs []upstream.NetworkPrefixLimit
	for _, n := range networks {
		theirs = append(theirs, upstream.NetworkPrefixLimit(n))
	}
	up, err := upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.InfiniteLimits), upstream.WithNetworkPrefixLimit(theirs, nil))
	require.NoError(t, err)
	defer up.Close()
	for name, c := range map[string]struct {
		rm   network.ResourceManager
		want int
	}{"ours": {newManager(t, unlimitedConf(), WithNetworkPrefixLimit(networks, nil)), 20}, "upstream": {up, 2}} {
		unverified := 0
		for range 100 {
			if !c.rm.VerifySourceAddress(&net.UDPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 1}) {
				unverified++
			}
		}
		require.Equal(t, c.want, unverified, name)
	}
}

// useText is what the subnets and the scopes hold, as it is compared. A bucket
// that got its token back stays for an interval.
func useText(m *Manager) string {
	s := m.Snapshot()
	text := fmt.Sprintln(s.Gates.Subnets, s.Gates.Fullest)
	for _, scope := range s.Scopes {
		if scope.Use != (network.ScopeStat{}) {
			text += fmt.Sprintln(scope.Name, scope.Use)
		}
	}
	return text
}

// TestARefusedStrangerAtAnAllowlistedAddressChangesNothing: whatever refuses a stranger who
// came where the allowlist means another peer, gate, system, transient or peer,
// nothing has changed anywhere; and the same connection may still turn out to be
// the friend's, or have room later on.
func TestARefusedStrangerAtAnAllowlistedAddressChangesNothing(t *testing.T) {
	friend, stranger := testPeers[0], testPeers[1]
	far := testFars[3].addr // where the allowlist means the friend
	other := testFars[1].addr
	for name, c := range map[string]struct {
		limit  func(*perScope[BaseLimit])
		subnet LimitVal
		rate   ConnRate
		kind   Kind
		full   int  // connections of others that stand in the way
		near   bool // they come from the same subnet
		passes bool // the stranger fits once they have gone
	}{
		"subnet":    {subnet: 2, kind: KindSubnet, full: 2, near: true, passes: true},
		"rate":      {rate: ConnRate{PerSecond: 0.001, Burst: 2}, kind: KindRate, full: 2, near: true},
		"system":    {limit: func(c *perScope[BaseLimit]) { c.System.ConnsInbound = 2 }, kind: KindSystem, full: 2, passes: true},
		"transient": {limit: func(c *perScope[BaseLimit]) { c.Transient.ConnsInbound = 2 }, kind: KindTransient, full: 2, passes: true},
		"system and peer": {limit: func(c *perScope[BaseLimit]) {
			c.System.ConnsInbound = 2
			c.Peer = map[peer.ID]BaseLimit{stranger: {}}
		}, kind: KindSystem, full: 2},
		"the stranger's own limit": {limit: func(c *perScope[BaseLimit]) { c.Peer = map[peer.ID]BaseLimit{stranger: {}} }, kind: KindPeer},
	} {
		for _, stripes := range []int{1, 8} {
			t.Run(fmt.Sprintf("%s, %d stripes", name, stripes), func(t *testing.T) {
				conf := unlimitedConf()
				if c.limit != nil {
					c.limit(&conf)
				}
				conf.Gates = &GateLimits{}
				if c.subnet != 0 {
					conf.Gates.Subnets.IPv4 = map[int]LimitVal{24: c.subnet}
				}
				if c.rate != (ConnRate{}) {
					conf.Gates.Rate.IPv4 = map[int]ConnRate{24: c.rate}
				}
				m := newManager(t, conf, WithStripes(stripes), WithAllowlistedMultiaddrs(testAllowlist))
				var inTheWay []network.ConnManagementScope
				for i := range c.full {
					at := other
					if c.near { // in the /24 of the friend
						at = inSubnet("192.0.2.0/24", 77+i)
					}
					conn, err := m.OpenConnection(network.DirInbound, false, at)
					require.NoError(t, err)
					inTheWay = append(inTheWay, conn)
				}

				trial, err := m.OpenConnection(network.DirInbound, true, far)
				require.NoError(t, err)
				span, err := trial.BeginSpan()
				require.NoError(t, err)
				require.NoError(t, trial.ReserveMemory(10, 255))
				require.NoError(t, span.ReserveMemory(7, 255))
				before := useText(m)
				for range 3 {
					err := trial.SetPeer(stranger)
					var e *LimitError
					require.ErrorAs(t, err, &e)
					require.Equal(t, c.kind, e.Kind())
					require.Equal(t, before, useText(m))
					require.Nil(t, trial.PeerScope())
				}
				require.NoError(t, trial.SetPeer(friend), "it is the friend after all")
				trial.Done()

				// Once there is room, the stranger is let in, and counts at the gate.
				again, err := m.OpenConnection(network.DirInbound, true, far)
				require.NoError(t, err)
				require.Error(t, again.SetPeer(stranger))
				for _, conn := range inTheWay {
					conn.Done()
				}
				if c.passes {
					counted := m.Snapshot().Gates.Subnets
					require.NoError(t, again.SetPeer(stranger))
					require.Greater(t, m.Snapshot().Gates.Subnets, counted)
				} else {
					require.Error(t, again.SetPeer(stranger))
				}
				again.Done()
				assertEmpty(t, m)
				require.Zero(t, countEntries(t, m.gate().subnets))
			})
		}
	}
}

// TestTheAllowlistedScopesAreShown: what the allowlist lets into a full manager
// stands in Stat, in views, in metrics, and in errors where it finds no room.
func TestTheAllowlistedScopesAreShown(t *testing.T) {
	friend := testPeers[0]
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Conns = 0
		c.AllowlistedSystem.Memory, c.AllowlistedSystem.Conns = 100, 2
	}), WithAllowlistedMultiaddrs(testAllowlist))
	require.NotContains(t, toJSON(t, m.Stat()), "llowlisted", "go-libp2p's JSON while nothing is there")
	view := func(of func(func(network.ResourceScope) error) error) (stat network.ScopeStat) {
		require.NoError(t, of(func(s network.ResourceScope) error { stat = s.Stat(); return nil }))
		return stat
	}
	requireHolds := func(system, transient network.ScopeStat) {
		t.Helper()
		stat := m.Stat()
		require.Equal(t, []network.ScopeStat{{}, {}, system, transient},
			[]network.ScopeStat{stat.System, stat.Transient, stat.AllowlistedSystem, stat.AllowlistedTransient})
		require.Equal(t, system, view(m.ViewAllowlistedSystem))
		require.Equal(t, transient, view(m.ViewAllowlistedTransient))
	}
	conn, err := m.OpenConnection(network.DirInbound, true, testFars[3].addr)
	require.NoError(t, err)
	one := network.ScopeStat{NumConnsInbound: 1, NumFD: 1}
	requireHolds(one, one)
	require.NoError(t, conn.SetPeer(friend))
	requireHolds(one, network.ScopeStat{})
	require.Equal(t, 1.0, seriesOf(t, registryOf(t, m), "scope_use")[" conns_inbound allowlistedSystem"])

	err = conn.ReserveMemory(101, 255)
	require.ErrorContains(t, err, "allowlistedSystem: cannot reserve memory")
	require.NoError(t, m.ViewAllowlistedSystem(func(s network.ResourceScope) error {
		span, err := s.BeginSpan()
		require.NoError(t, err)
		defer span.Done()
		return span.ReserveMemory(100, 255)
	}))
	conn.Done()
	requireHolds(network.ScopeStat{}, network.ScopeStat{})
	assertEmpty(t, m)
}

// TestGatesForgetAddressesWhenNothingConnects: of addresses that have
// connected, and of those that were asked to be verified, nothing is kept once
// their buckets are full again.
func TestGatesForgetAddressesWhenNothingConnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(NewFixedLimiter(ConcreteLimitConfig{limits: unlimitedConf()}))
		require.NoError(t, err)
		for i := range 500 {
			for _, far := range []multiaddr.Multiaddr{inSubnet("203.0.0.0/16", i), inSubnet("2001:db8::/112", i)} {
				if conn, err := m.OpenConnection(network.DirInbound, false, far); err == nil {
					conn.Done()
				}
				ep := endpointOf(far)
				m.VerifySourceAddress(net.UDPAddrFromAddrPort(netip.AddrPortFrom(ep.addr, 1)))
			}
		}
		buckets := func(s *subnets.Subnets) int {
			_, n := s.InUse()
			return n
		}
		require.GreaterOrEqual(t, buckets(m.gate().subnets), 500)
		require.GreaterOrEqual(t, buckets(m.gate().sources), 500)
		time.Sleep(2*time.Minute + time.Second) // the fullest bucket takes 80 s, a site's 160
		synctest.Wait()
		require.LessOrEqual(t, buckets(m.gate().subnets), 1, "the /48 that all of IPv6 was in")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.NoError(t, m.Close()) // nothing changes any more
		for _, s := range []*subnets.Subnets{m.gate().subnets, m.gate().sources} {
			require.Zero(t, bucketEntries(t, s))
			require.Zero(t, countEntries(t, s))
		}
	})
}
