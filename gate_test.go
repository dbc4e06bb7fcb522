package rcmgr

// The gates as they stand in a manager: before the scopes, after the allowlist,
// and with nothing left of what was refused.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// inSubnet returns the i-th address of a network.
func inSubnet(network string, i int) multiaddr.Multiaddr {
	b := netip.MustParsePrefix(network).Addr().As16()
	b[14], b[15] = b[14]|byte(i>>8), b[15]|byte(i)
	addr := netip.AddrFrom16(b).Unmap()
	if addr.Is4() {
		return multiaddr.StringCast(fmt.Sprintf("/ip4/%s/tcp/4001", addr))
	}
	return multiaddr.StringCast(fmt.Sprintf("/ip6/%s/udp/4001/quic-v1", addr))
}

// openAll opens a connection to each of n endpoints, all of which must be
// admitted, and closes them.
func openAll(t *testing.T, m *Manager, dir network.Direction, n int, far func(int) multiaddr.Multiaddr) {
	t.Helper()
	var all []network.ConnManagementScope
	for i := range n {
		c, err := m.OpenConnection(dir, true, far(i))
		require.NoError(t, err, "%d: %s", i, far(i))
		require.NoError(t, c.SetPeer(peerNamed(fmt.Sprint(i))))
		all = append(all, c)
	}
	for _, c := range all {
		c.Done()
	}
}

func TestRelayedConnectionsMeetNoGate(t *testing.T) {
	m := newManager(t, unlimitedConf())
	for _, relay := range []string{"/ip4/192.0.2.1/tcp/1", "/ip6/2001:db8::1/tcp/1", ""} {
		openAll(t, m, network.DirInbound, 100, func(int) multiaddr.Multiaddr {
			return mustMA(t, relay+"/p2p/"+peerA+"/p2p-circuit")
		})
	}
	requireGatesEmpty(t, m)
}

func TestConnectionsWithoutAnAddressMeetNoGate(t *testing.T) {
	m := newManager(t, unlimitedConf())
	for _, far := range []string{onion, "/memory/1", "/dns/example.com/tcp/1", "/unix/a"} {
		openAll(t, m, network.DirInbound, 100, func(int) multiaddr.Multiaddr { return mustMA(t, far) })
	}
	openAll(t, m, network.DirInbound, 100, func(int) multiaddr.Multiaddr { return nil })
	requireGatesEmpty(t, m)
}

func TestAHostsOwnDialsMeetNoGate(t *testing.T) {
	// A limit on the whole /24: the default ones count each address alone.
	m := newManager(t, unlimitedConf(),
		WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 24, ConnCount: 8}}, nil))
	for _, subnet := range []string{"203.0.113.0/24", "2001:db8::/56"} {
		openAll(t, m, network.DirOutbound, 100, func(i int) multiaddr.Multiaddr { return inSubnet(subnet, i) })
	}
	requireGatesEmpty(t, m)
}

func TestMappedAndTranslatedAddressesAreEachAHost(t *testing.T) {
	m := newManager(t, unlimitedConf())
	for _, subnet := range []string{"::ffff:203.0.113.0/120", "64:ff9b::203.0.113.0/120"} {
		openAll(t, m, network.DirInbound, 100, func(i int) multiaddr.Multiaddr { return inSubnet(subnet, i) })
	}
	for _, loopback := range []string{"/ip6/::ffff:127.0.0.1/tcp/1", "/ip6/64:ff9b::127.0.0.1/tcp/1"} {
		openAll(t, m, network.DirInbound, 100, func(int) multiaddr.Multiaddr { return mustMA(t, loopback) })
	}
	requireGatesEmpty(t, m)
}

func TestASubnetFullOfAttackersKeepsNoAllowlistedPeerOut(t *testing.T) {
	// No time passes here, so that no bucket gets another token.
	synctest.Test(t, func(t *testing.T) {
		const subnet = "2001:db8:0:100::/56"
		friend := testPeers[0]
		at := inSubnet(subnet, 1000)
		entry := multiaddr.StringCast("/ip6/2001:db8:0:100::3e8/p2p/" + friend.String())
		require.True(t, endpointOf(at).addr == endpointOf(entry).addr)

		m, err := New(nil) // with all limits at their defaults
		require.NoError(t, err)
		defer m.Close()
		var attackers []network.ConnManagementScope
		attack := func() {
			for i := range 200 {
				if c, err := m.OpenConnection(network.DirInbound, false, inSubnet(subnet, i)); err == nil {
					attackers = append(attackers, c)
				}
			}
		}
		connect := func(p peer.ID) error {
			c, err := m.OpenConnection(network.DirInbound, false, at)
			if err != nil {
				return err
			}
			defer c.Done()
			return c.SetPeer(p)
		}
		attack()
		require.Len(t, attackers, connsPerHost, "the attackers fill their subnet, and no more")
		require.ErrorIs(t, connect(friend), network.ErrResourceLimitExceeded, "not yet allowlisted")

		for range 3 { // the list is current at any time
			require.NoError(t, m.GetAllowlist().Add(entry))
			for range 50 {
				require.NoError(t, connect(friend))
			}
			require.ErrorIs(t, connect("somebody else"), network.ErrResourceLimitExceeded, "the entry names a peer")
			require.NoError(t, m.GetAllowlist().Remove(entry))
			require.ErrorIs(t, connect(friend), network.ErrResourceLimitExceeded, "no longer allowlisted")
		}

		// The rate is used up as well, when none of them is connected any more.
		for _, c := range attackers {
			c.Done()
		}
		for range 200 {
			if c, err := m.OpenConnection(network.DirInbound, false, at); err == nil {
				c.Done()
			}
		}
		var le *LimitError
		require.ErrorAs(t, connect(friend), &le)
		require.Equal(t, CauseRate, le.Cause())
		require.NoError(t, m.GetAllowlist().Add(entry))
		require.NoError(t, connect(friend))
		assertEmpty(t, m)
		requireGatesEmpty(t, m)
	})
}

func TestAConnectionThatIsRefusedAfterTheGatesReturnsItsPlaceAndToken(t *testing.T) {
	far := multiaddr.StringCast("/ip4/203.0.113.5/tcp/1")
	open := func(m *Manager) error {
		c, err := m.OpenConnection(network.DirInbound, true, far)
		if err == nil {
			err = c.SetPeer(testPeer)
			defer c.Done()
		}
		return err
	}
	kindOf := func(t *testing.T, err error) Kind {
		var le *LimitError
		require.ErrorAs(t, err, &le)
		return le.Kind()
	}
	t.Run("by a scope", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { // no time passes, and so no token comes
			// The limit of the connection itself is asked only after the gates.
			m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.Conn.FD = 0 }))
			for range 100 {
				require.Equal(t, KindConn, kindOf(t, open(m)))
			}
			tokens := 0
			for m.gate().enterNow(far) {
				tokens++
			}
			require.Equal(t, 2*connsPerHost, tokens)
		})
	})
	t.Run("a stranger on trial", func(t *testing.T) {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.PeerDefault.FD = 0 }),
			WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{multiaddr.StringCast("/ip4/203.0.113.5/p2p/" + testPeers[0].String())}))
		for range 100 {
			require.Equal(t, KindPeer, kindOf(t, open(m)))
		}
		requireGatesEmpty(t, m)
	})
	t.Run("by the subnet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { // no time passes, and so no token comes
			m := newManager(t, unlimitedConf(), WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 1}}, nil))
			c, err := m.OpenConnection(network.DirInbound, true, far)
			require.NoError(t, err)
			for range 100 {
				require.Equal(t, KindSubnet, kindOf(t, open(m)))
			}
			c.Done()
			for range 2*connsPerHost - 1 {
				require.NoError(t, open(m))
			}
			require.Equal(t, KindRate, kindOf(t, open(m)))
		})
	})
}

// enterNow takes a token for an endpoint, and returns its place in the subnets
// back.
func (g *gate) enterNow(far multiaddr.Multiaddr) bool {
	var pass subnets.Pass
	why := withGates(g).enterGates(endpointOf(far).addr, dimConnsIn, &pass)
	if pass.Conns != nil {
		pass.Conns.Leave(pass.Key)
	}
	return why == nil
}

// withGates makes a manager that has nothing but gates.
func withGates(g *gate) *Manager {
	m := new(Manager)
	m.gates.Store(g)
	return m
}

func TestRefusalsByGatesSayWhichAndAreCounted(t *testing.T) {
	m := newManager(t, unlimitedConf())
	for _, c := range []struct {
		far   string
		hold  bool
		scope string
		cause Cause
		limit int64
		words string // of go-libp2p's own manager
	}{
		{"/ip4/203.0.113.5/tcp/1", true, "subnet:203.0.113.5/32", CauseSubnet, 8, "connections per ip limit exceeded"},
		{"/ip6/2001:db8:0:1ff::1/tcp/1", true, "subnet:2001:db8:0:100::/56", CauseSubnet, 8, "connections per ip limit exceeded"},
		{"/ip4/203.0.113.6/tcp/1", false, "rate:203.0.113.6/32", CauseRate, 0, "rate limit exceeded"},
		{"/ip6/2001:db8:1:1ff::1/tcp/1", false, "rate:2001:db8:1:100::/56", CauseRate, 0, "rate limit exceeded"},
	} {
		var err error
		for err == nil {
			var s network.ConnManagementScope
			if s, err = m.OpenConnection(network.DirInbound, true, mustMA(t, c.far)); err == nil {
				if c.hold {
					defer s.Done()
					continue
				}
				s.Done()
			}
		}
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		var le *LimitError
		require.ErrorAs(t, err, &le)
		require.Equal(t, c.scope, le.Scope())
		require.Equal(t, c.cause, le.Cause())
		require.Equal(t, c.limit, le.Limit())
		require.Equal(t, ResourceConnection, le.Resource())
		require.Equal(t, network.DirInbound, le.Direction())
		what := "cannot reserve inbound connection: " + c.words + ": resource limit exceeded"
		require.EqualError(t, err, c.scope+": "+what)
		require.EqualError(t, errors.Unwrap(err), c.scope+": "+what)
		var theirs *ErrStreamOrConnLimitExceeded
		require.ErrorAs(t, err, &theirs)
		require.EqualError(t, theirs, what)
	}
	for _, k := range []Kind{KindSubnet, KindRate} {
		require.Equal(t, Refusals{ConnsInbound: 2}, m.Snapshot().Refusals[k])
	}
}

// A gate returns its last refusal again, but only for the same direction.
func TestARefusalByAGateHasTheDirectionOfTheConnection(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithGates(GateLimits{Outbound: pointerTo(true)}),
		WithNetworkPrefixLimit([]NetworkPrefixLimit{{netip.MustParsePrefix("192.0.2.0/24"), 0}}, nil))
	for _, dir := range []network.Direction{network.DirInbound, network.DirOutbound, network.DirInbound} {
		_, err := m.OpenConnection(dir, false, mustMA(t, "/ip4/192.0.2.1/tcp/1"))
		var e *LimitError
		require.ErrorAs(t, err, &e)
		require.Equal(t, dir, e.Direction())
	}
	require.Equal(t, Refusals{ConnsInbound: 2, ConnsOutbound: 1}, m.Snapshot().Refusals[KindSubnet])
}

// asText is an address of which only the text is known.
type asText string

func (asText) Network() string  { return "udp" }
func (a asText) String() string { return string(a) }

func TestSourcesMustBeVerifiedUnderLoad(t *testing.T) {
	// No time passes here, so that no bucket gets another token.
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.Transient.ConnsInbound = 200 }))
		from := func(i int) net.Addr {
			return &net.UDPAddr{IP: net.IPv4(203, 0, 113, byte(i)), Port: 4001}
		}
		var open []network.ConnManagementScope
		take := func(n int) {
			for range n {
				c, err := m.OpenConnection(network.DirInbound, false, nil)
				require.NoError(t, err)
				open = append(open, c)
			}
		}
		take(100)
		require.False(t, m.VerifySourceAddress(from(1)), "up to half of transient nobody is asked")
		take(1)
		require.True(t, m.VerifySourceAddress(from(2)), "beyond half everybody is")
		require.True(t, m.VerifySourceAddress(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))
		open[0].Done()
		require.False(t, m.VerifySourceAddress(from(3)), "and no longer than that")
		for _, c := range open {
			c.Done()
		}

		for range connsPerHost / 2 {
			require.False(t, m.VerifySourceAddress(from(4)))
		}
		require.True(t, m.VerifySourceAddress(asText("[::ffff:203.0.113.4]:4001")), "the same address in other clothes")
		require.True(t, m.VerifySourceAddress(asText("[64:ff9b::203.0.113.4]:4001")))
		for i := range 2 * connsPerHost {
			other := fmt.Sprintf("[::ffff:198.51.%d.1]:4001", i)
			require.False(t, m.VerifySourceAddress(asText(other)), "all of IPv4 is no subnet of IPv6")
		}
		require.True(t, m.VerifySourceAddress(from(4)), "half of what the subnet may have is begun")
		require.False(t, m.VerifySourceAddress(from(5)), "another subnet's bucket")
		require.True(t, m.VerifySourceAddress(&net.UnixAddr{Name: "x"}), "what is no IP address")
		assertEmpty(t, m)
		requireGatesEmpty(t, m)
	})
}

func TestFloodsThatAreRefusedLeaveNoMemory(t *testing.T) {
	flood := 1_000_000
	if testing.Short() {
		flood = 100_000
	}
	// far returns one of 16 million addresses.
	far := func(i int) multiaddr.Multiaddr {
		ma, err := multiaddr.NewMultiaddrBytes([]byte{multiaddr.P_IP4, 11, byte(i >> 16), byte(i >> 8), byte(i)})
		require.NoError(t, err)
		return ma
	}
	for name, m := range map[string]*Manager{
		"by subnet": newManager(t, unlimitedConf(), WithLimitPerSubnet([]ConnLimitPerSubnet{{0, 1}, {32, 1}}, nil)),
		"by system": newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 1 })),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := m.OpenConnection(network.DirInbound, false, inSubnet("198.51.100.0/24", 1))
			require.NoError(t, err)
			attempt := func(far multiaddr.Multiaddr) {
				if _, err := m.OpenConnection(network.DirInbound, false, far); !errors.Is(err, network.ErrResourceLimitExceeded) {
					t.Fatal("admitted", far, err)
				}
			}
			attempt(far(flood))
			before := heap()
			for i := range flood {
				attempt(far(i))
			}
			// One entry of a map for each of them would be some megabytes.
			require.Less(t, int64(heap())-int64(before), int64(512<<10))
			c.Done()
			assertEmpty(t, m)
			requireGatesEmpty(t, m)
		})
	}
}

// heap returns the bytes that are in use.
func heap() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// FuzzGate takes any two endpoints and directions through all of a manager:
// whatever comes of it, nothing may be left in the end.
func FuzzGate(f *testing.F) {
	for _, s := range []string{
		"/ip4/192.0.2.1/tcp/4001", "/ip6zone/eth0/ip6/fe80::1/tcp/1", "/ip6/::ffff:192.0.2.1/udp/1/quic-v1",
		"/ip6/64:ff9b::1/tcp/1", "/ip6/2001:db8::1/udp/1/quic-v1/webtransport", "/ip4/127.0.0.1/tcp/1",
		"/p2p/" + peerA, "/ip4/192.0.2.1/tcp/1/p2p/" + peerA + "/p2p-circuit", onion, "/memory/1", "/dns/example.com", "",
	} {
		for flags := range byte(16) {
			f.Add([]byte(s), flags)
		}
		if ma, err := multiaddr.NewMultiaddr(s); err == nil {
			f.Add(ma.Bytes(), byte(1))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, flags byte) {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
			c.System.Conns, c.AllowlistedSystem.Conns = 6, 2
		}), WithStripes(2), WithGates(GateLimits{Outbound: pointerTo(true)}), WithLimitPerSubnet(
			[]ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 3}},
			[]ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: 3}, {PrefixLength: 48, ConnCount: 5}}))
		far, err := multiaddr.NewMultiaddrBytes(b)
		if err != nil {
			far, _ = multiaddr.NewMultiaddr(string(b)) // nil goes through too
		}
		dir := network.Direction(1 + flags&1)
		listed := flags&2 != 0 && m.GetAllowlist().Add(far) == nil
		var open []network.ConnManagementScope
		for i := range 8 {
			c, err := m.OpenConnection(dir, flags&4 != 0, far)
			if err != nil {
				require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
				continue
			}
			if p := testPeers[i%len(testPeers)]; c.SetPeer(p) != nil && flags&8 != 0 {
				_ = c.SetPeer(p)
			}
			open = append(open, c)
		}
		require.NotEmpty(t, open, "the first one fits")
		if ep := endpointOf(far); !listed && ep.addr.IsValid() && !ep.addr.IsLoopback() {
			require.Len(t, open, 3, "the gates know the address")
		}
		for _, c := range open {
			c.Done()
			c.Done()
		}
		if listed {
			require.NoError(t, m.GetAllowlist().Remove(far))
		}
		assertEmpty(t, m)
		requireGatesEmpty(t, m)
	})
}
