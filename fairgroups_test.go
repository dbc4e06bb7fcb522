package rcmgr

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// openFrom opens connections without a peer from each address, until one is refused, and returns
// how many are open.
func openFrom(t *testing.T, m *Manager, dir network.Direction, most int, addr func(i int) string) (n int) {
	t.Helper()
	for i := range most {
		if _, err := m.OpenConnection(dir, false, multiaddr.StringCast(addr(i))); err != nil {
			require.True(t, refusedByShare(err), err)
			return i
		}
	}
	return most
}

func TestTheSubnetsOfANetworkTogetherHoldTwiceWhatIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		from  string
		want  int
		other string
	}{
		"an IPv4 /16": {"/ip4/192.0.%d.1/tcp/1", 43, "/ip4/192.1.0.1/tcp/1"},
		"an IPv6 /48": {"/ip6/2001:db8:1:%x00::1/tcp/1", 43, "/ip6/2001:db8:2::1/tcp/1"},
		"an IPv6 /32": {"/ip6/2001:db8:%x::1/tcp/1", 52, "/ip6/2001:db9::1/tcp/1"},
	} {
		t.Run(name, func(t *testing.T) {
			m := fairManager(t, sharedTransient(1<<20, 64))
			require.Equal(t, c.want, openFrom(t, m, network.DirInbound, 64, func(i int) string { return fmt.Sprintf(c.from, i) }))
			_, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(c.other))
			require.NoError(t, err)
		})
	}
}

func TestAnOwnerOfManyNetworksHasOneShare(t *testing.T) {
	m := newManager(t, sharedTransient(1<<20, 64), append(openGates(), WithFairShare(), WithOwners(func(a netip.Addr) string {
		if a.As4()[0] == 10 {
			return "cloud"
		}
		return ""
	}))...)
	from := func(i int) string { return fmt.Sprintf("/ip4/10.%d.0.1/tcp/1", i) }
	require.Equal(t, 43, openFrom(t, m, network.DirInbound, 64, from))
	_, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(from(99)))
	var refusal *LimitError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, "owner:cloud", refusal.Holder())
	why, err := m.Explain(ExplainRequest{Kind: KindConn, Direction: network.DirInbound, Endpoint: multiaddr.StringCast(from(99))})
	require.NoError(t, err)
	require.Equal(t, []any{"fair-share", "owner:cloud", "owner:cloud", int64(43)}, []any{why.By.Cause, why.By.Holder, why.By.Largest, why.By.LargestHolds})
	_, err = m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/11.0.0.1/tcp/1"))
	require.NoError(t, err)
	shares := m.SnapshotTop(2).FairShare
	require.Len(t, shares.Groups, 3, "an owner, and two networks")
	require.Equal(t, GroupShare{Owner: "cloud", System: SubnetUse{43, 0, 0}, Transient: SubnetUse{43, 0, 0}}, shares.Groups[0])
	require.Equal(t, GroupShare{Prefix: netip.MustParsePrefix("10.0.0.0/16"), System: SubnetUse{1, 0, 0}, Transient: SubnetUse{1, 0, 0}}, shares.Groups[1])
	text := bodyOf(t, ask(Handler(m), "GET", "/?format=text"))
	require.Regexp(t, `What networks and owners hold, the largest\n\nGroup .*\ncloud +43 +0 +43 +0 +0 +0\n`, text)
	require.Contains(t, bodyOf(t, ask(Handler(m), "GET", "/?format=html")), `<td class="name" title="cloud">cloud</td>`)
}

// A neighbour that holds much leaves a part of what the subnet may hold.
func TestAnAddressLeavesAPartOfItsSubnetToOthers(t *testing.T) {
	m := fairManager(t, sharedTransient(1<<20, 100))
	require.Equal(t, 40, openFrom(t, m, network.DirInbound, 40, func(i int) string { return fmt.Sprintf("/ip4/10.%d.0.1/tcp/1", i) }))
	one, two := "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1"
	require.Equal(t, 1, openFrom(t, m, network.DirInbound, 1, func(int) string { return two }))
	require.Equal(t, 20, openFrom(t, m, network.DirInbound, 60, func(int) string { return one }))
	require.Equal(t, 9, openFrom(t, m, network.DirInbound, 60, func(int) string { return two }))
}

// The subnets of an attacker hold all that they can get of what their network or owner may hold.
// Each leaves as much of that to others as it holds itself, so others find room.
func TestASubnetLeavesAPartOfWhatItsNetworkOrOwnerMayHoldToOthers(t *testing.T) {
	cloud := func(a netip.Addr) string {
		if a.Is4() && a.As4()[0] == 11 {
			return "cloud"
		}
		return ""
	}
	for name, c := range map[string]struct {
		from        string // of a subnet by its number
		held, other int
	}{
		"an IPv4 /16":                        {"/ip4/10.0.%d.1/tcp/1", 62, 4},
		"an IPv6 /48":                        {"/ip6/2001:db8:1:%x00::1/tcp/1", 62, 4},
		"an IPv6 /32":                        {"/ip6/2001:db8:%x::1/tcp/1", 77, 3},
		"an owner of networks":               {"/ip4/11.%d.0.1/tcp/1", 62, 4},
		"an owner of subnets in one network": {"/ip4/11.0.%d.1/tcp/1", 62, 4},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, sharedTransient(1<<20, 100), append(openGates(), WithFairShare(), WithOwners(cloud))...)
			of := func(subnet int) func(int) string {
				return func(int) string { return fmt.Sprintf(c.from, subnet) }
			}
			held := 0
			for more := true; more; { // four subnets, in turn
				more = false
				for subnet := range 4 {
					n := openFrom(t, m, network.DirInbound, 1, of(subnet))
					held += n
					more = more || n > 0
				}
			}
			require.Equal(t, c.held, held)
			require.Equal(t, c.other, openFrom(t, m, network.DirInbound, 99, of(9)))
			require.Zero(t, openFrom(t, m, network.DirInbound, 1, of(0)))
		})
	}
}

func TestPeersBehindARelayHaveTheSharesOfTheRelay(t *testing.T) {
	const relay = "/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5/p2p-circuit"
	m := fairManager(t, sharedTransient(1<<20, 64))
	require.Equal(t, 32, openFrom(t, m, network.DirInbound, 64, func(i int) string { return "/ip4/192.0.2.1/tcp/1" + relay }))
	_, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.0.2.9/tcp/1"))
	require.True(t, refusedByShare(err), "a neighbour of the relay: %v", err)
	_, err = m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.1.2.1/tcp/1"+relay))
	require.NoError(t, err, "another relay")
	_, err = m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(relay))
	require.NoError(t, err, "a relay without an address")
	require.Equal(t, 2, m.Snapshot().FairShare.Subnets)
}

// What hangs, because the other side never answers, keeps the host from nothing elsewhere.
func TestAGroupThatHangsCostsWhatTheHostOpensElsewhereNothing(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.StreamsOutbound, conf.Transient.ConnsOutbound = 64, 64
	m := fairManager(t, conf)
	hung := func(i int) string { return fmt.Sprintf("/ip4/192.0.2.%d/tcp/1", i) }
	require.Equal(t, 32, openFrom(t, m, network.DirOutbound, 64, hung), "dials that never connect")
	elsewhere, err := m.OpenConnection(network.DirOutbound, false, multiaddr.StringCast("/ip4/198.51.100.1/tcp/1"))
	require.NoError(t, err)
	require.NoError(t, elsewhere.SetPeer("elsewhere"))

	opened := 0
	for i := range 64 { // streams to peers that never answer, whichever side has connected
		p := peerNamed(fmt.Sprint("hung ", i))
		comesFrom(t, m, p, hung(i))
		if _, err := m.OpenStream(p, network.DirOutbound); err != nil {
			require.True(t, refusedByShare(err), err)
			continue
		}
		opened++
	}
	require.Equal(t, 32, opened)
	for range 16 { // a peer may have a quarter
		_, err := m.OpenStream("elsewhere", network.DirOutbound)
		require.NoError(t, err)
	}
	require.Equal(t, OutboundUse{Conns: 32, Streams: 32}, m.SnapshotTop(1).FairShare.Groups[0].Outbound)
}

// A hung peer alone is held to a quarter, with and without the option.
func TestAPeerThatHangsCostsWhatTheHostOpensElsewhereNothing(t *testing.T) {
	for name, opts := range map[string][]Option{"by default": nil, "with shares": {WithFairShare(KindTransient, KindSystem)}} {
		t.Run(name, func(t *testing.T) {
			conf := unlimitedConf()
			conf.Transient.StreamsOutbound = 64
			m := newManager(t, conf, opts...)
			for range 1000 {
				_, _ = m.OpenStream("hung", network.DirOutbound)
			}
			for i := range 16 {
				mustOpenStream(t, m, peerNamed(fmt.Sprint(i)), network.DirOutbound)
			}
		})
	}
}

func TestAPeerThatWasDialledBelongsWhereItComesFromLater(t *testing.T) {
	m := fairManager(t, sharedTransient(64, 64))
	groups := func() (s []string) {
		for _, g := range m.Snapshot().FairShare.Groups {
			s = append(s, fmt.Sprintf("%v%v%v", g.Prefix, g.System, g.Outbound))
		}
		return s
	}
	dialled, err := m.OpenConnection(network.DirOutbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.NoError(t, err)
	require.NoError(t, dialled.SetPeer(testPeer))
	out, in := mustOpenStream(t, m, testPeer, network.DirOutbound), mustOpenStream(t, m, testPeer, network.DirInbound)
	require.Equal(t, []string{"192.0.0.0/16{0 0 0}{0 1}"}, groups())
	came := comesFrom(t, m, testPeer, "/ip4/198.51.100.1/tcp/1")
	require.Equal(t, []string{"198.51.0.0/16{1 1 1}{0 1}"}, groups())
	out.Done()
	in.Done()
	came.Done()
	dialled.Done()
	require.Empty(t, groups())
	m.reap()
	assertEmpty(t, m)
	require.Zero(t, m.Snapshot().FairShare.Subnets)
}

func TestWithoutFairShareForTransientWhatTheHostOpensHasNoShare(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.ConnsOutbound, conf.System.ConnsOutbound = 8, 16
	m := fairManager(t, conf, KindSystem)
	for range 8 {
		c, err := m.OpenConnection(network.DirOutbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(testPeer), "what has got past transient, the host has chosen")
	}
	require.Equal(t, 8, openFrom(t, m, network.DirOutbound, 8, func(int) string { return "/ip4/192.0.2.1/tcp/1" }))
}

// A function of WithOwners that fails is counted and told, and refuses and loses nothing.
func TestOwnersThatFailAreToldAndLoseNothing(t *testing.T) {
	var calls atomic.Int64
	for name, c := range map[string]struct {
		owner  func(netip.Addr) string
		bugs   bool
		tells  string
		owners int
	}{
		"panics":          {func(netip.Addr) string { calls.Add(1); panic("no table") }, true, "no table", 0},
		"names too long":  {func(netip.Addr) string { return strings.Repeat("x", 65) }, true, "too long", 0},
		"a million names": {func(a netip.Addr) string { return fmt.Sprint(calls.Add(1), a) }, false, "", 16},
		"no names":        {func(netip.Addr) string { return "" }, false, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			calls.Store(0)
			lines := collectLog(t, slog.LevelInfo)
			m := newManager(t, sharedTransient(64, 64), append(openGates(), WithFairShare(KindTransient, KindSystem), WithOwners(c.owner))...)
			lines.take()
			var conns []network.ConnManagementScope
			for i := range 16 {
				conns = append(conns, comesFrom(t, m, peerNamed(fmt.Sprint(i)), fmt.Sprintf("/ip4/10.%d.0.1/tcp/1", i)))
			}
			owners := howMany(m.SnapshotTop(100).FairShare.Groups, func(g GroupShare) bool { return g.Owner != "" })
			require.Equal(t, c.owners, owners)
			require.Equal(t, c.bugs, m.Snapshot().CallerBugs > 0)
			if c.tells != "" {
				require.Contains(t, strings.Join(lines.take(), "\n"), c.tells)
			}
			if name == "panics" {
				require.EqualValues(t, 1, calls.Load(), "it is not called again")
			}
			for _, c := range conns {
				c.Done()
			}
			m.reap()
			assertEmpty(t, m)
			require.Empty(t, m.Snapshot().FairShare.Groups, "no name outlives its addresses")
		})
	}
	_, err := New(nil, WithOwners(nil))
	require.ErrorContains(t, err, "WithOwners")
}

// The gates count a connection before its owner is asked for. They forget it if the program ends
// the goroutine then.
func TestOwnersThatEndTheirGoroutineLeaveNothingBehind(t *testing.T) {
	collectLog(t, slog.LevelError+1)
	m := newManager(t, unlimitedConf(), WithFairShare(), WithOwners(func(netip.Addr) string { runtime.Goexit(); return "" }))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	}()
	<-ended
	require.Zero(t, m.Snapshot().Gates.Subnets)
	c, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.NoError(t, err)
	c.Done()
	assertEmpty(t, m)
}

// Many at once: the owner of an address is asked for without a lock, and what is counted comes to
// nothing in the end.
func TestOwnersMayCallTheManager(t *testing.T) {
	var m *Manager
	m = newManager(t, sharedTransient(64, 64), append(openGates(), WithFairShare(), WithOwners(func(a netip.Addr) string {
		m.Snapshot()
		return a.String()
	}))...)
	comesFrom(t, m, peer.ID("one"), "/ip4/192.0.2.1/tcp/1")
	require.Equal(t, "192.0.2.1", m.Snapshot().FairShare.Groups[0].Owner)
}
