package rcmgr

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/groups"
)

// sharedTransient has limits on inbound streams and connections of transient alone.
func sharedTransient(streams, conns int) perScope[BaseLimit] {
	conf := unlimitedConf()
	conf.Transient.StreamsInbound, conf.Transient.ConnsInbound = streams, conns
	return conf
}

func fairManager(t testing.TB, conf perScope[BaseLimit], kinds ...Kind) *Manager {
	return newManager(t, conf, append(openGates(), WithFairShare(kinds...), WithStripes(4))...)
}

// comesFrom gives a peer of its own a connection from an address.
func comesFrom(t testing.TB, m *Manager, p peer.ID, addr string) network.ConnManagementScope {
	t.Helper()
	c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast(addr))
	require.NoError(t, err)
	require.NoError(t, c.SetPeer(p))
	return c
}

// refusedByShare reports whether an error says that a peer or subnet has had its share.
func refusedByShare(err error) bool {
	var why *LimitError
	return errors.As(err, &why) && why.Cause() == CauseFairShare
}

func TestFairShareIsForTransientAndSystem(t *testing.T) {
	for _, k := range []Kind{KindPeer, KindAllowlistedSystem, numKinds} {
		_, err := New(nil, WithFairShare(KindSystem, k))
		require.ErrorContains(t, err, "WithFairShare: "+k.String())
		require.ErrorContains(t, err, "expected transient or system")
	}
}

// Many identities of one subnet have one share, and half of the limit if no other is
// there; the next subnet gets half of what is left, and so on: there is always some left
// for a new one.
func TestEachFurtherSubnetGetsHalfOfWhatIsLeft(t *testing.T) {
	m := fairManager(t, sharedTransient(64, 1<<20))
	for i, want := range []int{32, 16, 8, 4, 2, 1, 1, 0} {
		got := 0
		for id := range 64 {
			p := peerNamed(fmt.Sprintf("%d-%d", i, id))
			comesFrom(t, m, p, fmt.Sprintf("/ip4/192.%d.2.%d/tcp/1", i, id))
			if _, err := m.OpenStream(p, network.DirInbound); err == nil {
				got++
			} else {
				require.Equal(t, i < 6, refusedByShare(err), err) // the last ones meet a full scope
			}
		}
		require.Equal(t, want, got, "subnet %d", i)
	}
}

func TestSubnetsAreSlash24AndSlash56(t *testing.T) {
	for _, c := range []struct {
		one, other string
		same       bool
	}{
		{"/ip4/192.0.2.1", "/ip4/192.0.2.254", true},
		{"/ip4/192.0.2.1", "/ip4/192.0.3.1", false},
		{"/ip4/192.0.2.1", "/ip6/::ffff:192.0.2.9", true},
		{"/ip6/2001:db8:0:100::1", "/ip6/2001:db8:0:1ff::2", true},
		{"/ip6/2001:db8:0:100::1", "/ip6/2001:db8:0:200::1", false},
		{"/ip4/127.0.0.2", "/ip4/127.0.0.3", true},
		{"/ip4/127.0.0.1", "/ip4/127.0.0.1", false},
		{"/ip6/::1", "/ip6/::1", false},
	} {
		m := fairManager(t, sharedTransient(2, 1<<20))
		comesFrom(t, m, "one", c.one+"/tcp/1")
		comesFrom(t, m, "other", c.other+"/tcp/1")
		mustOpenStream(t, m, "one", network.DirInbound)
		_, err := m.OpenStream("other", network.DirInbound)
		require.Equal(t, c.same, refusedByShare(err), "%s and %s: %v", c.one, c.other, err)
	}
}

// Who has no subnet is bound as a peer alone.
func TestAPeerMayHoldAQuarter(t *testing.T) {
	m := fairManager(t, sharedTransient(64, 1<<20))
	for range 20 {
		mustOpenStream(t, m, "first", network.DirInbound) // below half, anybody
	}
	for range 16 {
		mustOpenStream(t, m, "second", network.DirInbound)
	}
	for _, p := range []peer.ID{"first", "second"} {
		_, err := m.OpenStream(p, network.DirInbound)
		require.True(t, refusedByShare(err), err)
		mustOpenStream(t, m, p, network.DirOutbound) // is our own
	}
	mustOpenStream(t, m, "newcomer", network.DirInbound)
}

func TestMemoryOfTheSystemHasShares(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Memory = 1000
	m := fairManager(t, conf, KindSystem)
	first, second := servedStream(t, m, "first"), servedStream(t, m, "second")
	require.NoError(t, first.ReserveMemory(250, 255))
	require.NoError(t, second.ReserveMemory(251, 255))
	err := first.ReserveMemory(1, 255)
	require.True(t, refusedByShare(err), err)
	err = viewPeer(t, m, "first").ReserveMemory(1, 255)
	require.True(t, refusedByShare(err), err)
	third := servedStream(t, m, "third")
	require.NoError(t, third.ReserveMemory(300, 255)) // it holds nothing
	require.Error(t, third.ReserveMemory(200, 255))
	third.ReleaseMemory(300)
	second.ReleaseMemory(251)
	require.NoError(t, first.ReserveMemory(150, 128), "half of the limit is anybody's")
	err = first.ReserveMemory(600, 101)
	var why *LimitError
	require.ErrorAs(t, err, &why)
	require.Equal(t, CauseLimit, why.Cause(), "there is no room for it in any case")
}

// What a subnet holds is counted without the drawing lock. So it may be more when what
// has been decided is drawn than when it was decided, and the credit is drawn all the
// same: the request is charged.
func TestCreditIsDrawnThoughTheShareHasShrunkSinceTheDecision(t *testing.T) {
	m := fairManager(t, sharedTransient(1<<20, 8)) // too few connections for batches
	st := m.stripes[0].awake()
	sh := st.fixed[KindTransient]
	near := m.fair.enter(endpoint{addr: netip.MustParseAddr("192.0.2.1")}, dimConnsIn, nil)
	defer m.fair.leave(near)
	for i := range 5 {
		other, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(fmt.Sprintf("/ip4/203.0.%d.1/tcp/1", i)))
		require.NoError(t, err)
		defer other.Done()
	}
	r := unitOf(KindConn, network.DirInbound, false).request(0)
	r.subnet = near
	var c chain
	c.stand(sh, st.fixed[KindSystem])
	st.mu.Lock()
	had := sh.credit[dimConnsIn]
	decided, _ := st.judge(&c, &r, onlyAsk)
	near.Add(groups.Transient, groups.ConnsIn, 8) // others of the subnet have got all, and are about to give it back
	m.drawing.Lock()
	drawn, _ := st.judge(&c, &r, andDraw)
	m.drawing.Unlock()
	near.Add(groups.Transient, groups.ConnsIn, -8)
	got, handed := sh.credit[dimConnsIn]-had, sh.pool.tally(dimConnsIn).handed
	st.trim(sh, dimConnsIn)
	st.trim(sh, dimConns)
	st.mu.Unlock()
	require.Equal(t, []verdict{admitted, admitted}, []verdict{decided, drawn})
	require.Equal(t, []int64{1, 6}, []int64{got, handed})
}

func TestConnectionsHaveSharesBeforeTheyHaveAPeer(t *testing.T) {
	m := fairManager(t, sharedTransient(1<<20, 8))
	open := func(addr string) (network.ConnManagementScope, error) {
		return m.OpenConnection(network.DirInbound, true, multiaddr.StringCast(addr))
	}
	var conns []network.ConnManagementScope
	for i := range 4 {
		c, err := open(fmt.Sprintf("/ip4/192.0.2.%d/tcp/1", i))
		require.NoError(t, err)
		conns = append(conns, c)
	}
	_, err := open("/ip4/192.0.2.9/tcp/1")
	require.True(t, refusedByShare(err), err)
	other, err := open("/ip4/192.0.3.1/tcp/1")
	require.NoError(t, err)
	_, err = open("/ip4/192.0.2.9/tcp/1")
	require.True(t, refusedByShare(err), err)
	require.NoError(t, conns[0].SetPeer("somebody")) // it leaves transient
	conns[1].Done()
	_, err = open("/ip4/192.0.2.9/tcp/1")
	require.NoError(t, err)
	other.Done()
}

// Connections of one peer have a share of the system scope, too.
func TestConnectionsOfOnePeerHaveAShare(t *testing.T) {
	conf := unlimitedConf()
	conf.System.ConnsInbound = 16
	m := fairManager(t, conf, KindSystem)
	for i := range 5 { // below half, anybody
		comesFrom(t, m, "many", fmt.Sprintf("/ip4/192.0.%d.1/tcp/1", i))
	}
	for i := range 4 {
		comesFrom(t, m, peerNamed(strconv.Itoa(i)), fmt.Sprintf("/ip4/198.51.%d.1/tcp/1", i))
	}
	from := multiaddr.StringCast("/ip4/203.0.113.1/tcp/1")
	for p, admitted := range map[peer.ID]bool{"many": false, "newcomer": true} {
		e, err := m.Explain(ExplainRequest{Kind: KindConn, Direction: network.DirInbound, Endpoint: from, UseFD: true, Peer: p})
		require.NoError(t, err)
		require.Equal(t, admitted, e.Admitted, "%s: %v", p, e)
	}
	c, err := m.OpenConnection(network.DirInbound, true, from)
	require.NoError(t, err)
	why := c.SetPeer("many")
	require.True(t, refusedByShare(why), why)
	require.Equal(t, 1, c.Stat().NumConnsInbound)
	require.Nil(t, c.PeerScope())
	alone, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/203.0.114.1/tcp/1"))
	require.NoError(t, err)
	lowered := unlimitedBase
	lowered.ConnsInbound = 2
	viewSystem(t, m).(ResourceScopeLimiter).SetLimit(&lowered)
	other := mustOpenConn(t, m, network.DirOutbound)
	require.NoError(t, other.SetPeer("many"), "our own")
	late, err := m.OpenConnection(network.DirInbound, true, from)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	require.Nil(t, late)
	require.NoError(t, alone.SetPeer("alone"), "it was admitted before the limit was lowered")
	require.NoError(t, m.ObserveOnly(KindSystem))
	require.NoError(t, c.SetPeer("many"))
	require.EqualValues(t, 1, m.Snapshot().WouldRefuse[KindSystem].ConnsInbound)
	checkInvariants(t, m, true)
}

// A peer's share is of what comes from outside, also where the limit is on both directions.
func TestOurOwnDialsAreNoPartOfAPeersShare(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Conns, conf.System.Streams = 16, 16
	m := fairManager(t, conf, KindSystem)
	for range 9 { // more than half, and than a quarter
		require.NoError(t, mustOpenConn(t, m, network.DirOutbound).SetPeer("friend"))
		mustOpenStream(t, m, "friend", network.DirOutbound)
	}
	for i := range 4 { // a quarter
		comesFrom(t, m, "friend", fmt.Sprintf("/ip4/192.0.%d.1/tcp/1", i))
		mustOpenStream(t, m, "friend", network.DirInbound)
	}
	c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/192.0.4.1/tcp/1"))
	require.NoError(t, err)
	why := c.SetPeer("friend")
	require.True(t, refusedByShare(why), why)
	_, why = m.OpenStream("friend", network.DirInbound)
	require.True(t, refusedByShare(why), why)
}

func TestATrustedConnectionIsNotBoundByAShare(t *testing.T) {
	conf := unlimitedConf()
	conf.System.ConnsInbound = 16
	m := fairManager(t, conf, KindSystem)
	for i := range 9 {
		p := testPeers[0]
		if i >= 4 {
			p = peerNamed(strconv.Itoa(i))
		}
		comesFrom(t, m, p, fmt.Sprintf("/ip4/192.0.%d.1/tcp/1", i))
	}
	c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/203.0.113.1/tcp/1"))
	require.NoError(t, err)
	err = c.SetPeer(testPeers[0])
	require.True(t, refusedByShare(err), err)
	require.NoError(t, GetAllowlist(m).Add(multiaddr.StringCast("/p2p/"+testPeers[0].String())))
	require.NoError(t, c.SetPeer(testPeers[0]))
}

// Each limit on what comes from outside is shared out, also those on both directions.
func TestEachLimitHasShares(t *testing.T) {
	for name, limit := range map[string]func(*BaseLimit) *int{
		"ConnsInbound":   func(l *BaseLimit) *int { return &l.ConnsInbound },
		"Conns":          func(l *BaseLimit) *int { return &l.Conns },
		"FD":             func(l *BaseLimit) *int { return &l.FD },
		"StreamsInbound": func(l *BaseLimit) *int { return &l.StreamsInbound },
		"Streams":        func(l *BaseLimit) *int { return &l.Streams },
	} {
		for _, k := range []Kind{KindTransient, KindSystem} {
			conf := unlimitedConf()
			*limit(map[Kind]*BaseLimit{KindTransient: &conf.Transient, KindSystem: &conf.System}[k]) = 8
			m := fairManager(t, conf, k)
			come := func(addr string, n int) (refused error) {
				for i := range n {
					c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast(addr))
					if err != nil {
						return err
					}
					if name != "StreamsInbound" && name != "Streams" {
						continue // it stays without a peer
					}
					p := peerNamed(fmt.Sprint(addr, i))
					require.NoError(t, c.SetPeer(p))
					if _, err := m.OpenStream(p, network.DirInbound); err != nil {
						return err
					}
				}
				return nil
			}
			require.NoError(t, come("/ip4/192.0.2.1/tcp/1", 4), "%v %s", k, name)
			err := come("/ip4/192.0.2.2/tcp/1", 1)
			require.True(t, refusedByShare(err), "%v %s: %v", k, name, err)
			require.NoError(t, come("/ip4/198.51.100.1/tcp/1", 2), "%v %s", k, name)
		}
	}
}

// A peer that lived with streams before its first inbound connection brings them along,
// and stays with that subnet while it has a scope.
func TestAPeerStaysWithItsFirstSubnet(t *testing.T) {
	m := fairManager(t, sharedTransient(8, 1<<20))
	dialled, err := m.OpenConnection(network.DirOutbound, true, multiaddr.StringCast("/ip4/198.51.100.1/tcp/1"))
	require.NoError(t, err)
	require.NoError(t, dialled.SetPeer(testPeer))
	moved := mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, moved.SetProtocol("/p"))
	mustOpenStream(t, m, testPeer, network.DirInbound)
	shares := func() (s []string) {
		for _, l := range m.Snapshot().FairShare.Largest {
			s = append(s, fmt.Sprint(l))
		}
		return s
	}
	require.Empty(t, shares())
	first := comesFrom(t, m, testPeer, "/ip4/192.0.2.1/tcp/1")
	require.Equal(t, []string{"{192.0.2.0/24 {1 1 2} {0 0 1}}"}, shares())
	second := comesFrom(t, m, testPeer, "/ip4/203.0.113.1/udp/1/quic-v1")
	first.Done()
	require.Equal(t, []string{"{192.0.2.0/24 {0 0 2} {0 0 1}}", "{203.0.113.0/24 {1 1 0} {0 0 0}}"}, shares())
	second.Done()
	dialled.Done()
	moved.Done()
	require.Equal(t, []string{"{192.0.2.0/24 {0 0 1} {0 0 1}}"}, shares())
}

// What the allowlist means is not bound, and those that it does not mean after all
// count as everybody.
func TestTheAllowlistGoesBeforeShares(t *testing.T) {
	conf := sharedTransient(8, 8)
	m := newManager(t, conf, append(openGates(), WithFairShare(), WithStripes(4),
		WithAllowlistedMultiaddrs(testAllowlist))...)
	for i := range 6 {
		c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(peerNamed(strconv.Itoa(i))))
	}
	require.Zero(t, m.Snapshot().FairShare.Subnets)
	require.NoError(t, comesFrom(t, m, testPeers[0], "/ip4/192.0.2.2/tcp/1").ReserveMemory(1, 255))
	for range 8 {
		mustOpenStream(t, m, testPeers[0], network.DirInbound)
	}
	require.Zero(t, m.Snapshot().FairShare.Subnets)
	stranger := comesFrom(t, m, testPeers[1], "/ip4/192.0.2.2/tcp/1")
	require.Equal(t, "[{192.0.2.0/24 {1 1 0} {0 0 0}}]", fmt.Sprint(m.Snapshot().FairShare.Largest))
	stranger.Done()
	m.reap()
	require.Zero(t, m.Snapshot().FairShare.Subnets)
}

// An entry that names a peer, wherever it is, does not let a crowd from anywhere past
// its share.
func TestStrangersAtTheAddressesOfAnAllowlistedPeerHaveOneShare(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.ConnsInbound, conf.System.ConnsInbound = 8, 16
	m := newManager(t, conf, append(openGates(), WithFairShare(KindTransient, KindSystem), WithStripes(4),
		WithAllowlistStrings([]string{"/ip4/0.0.0.0/ipcidr/0/p2p/" + testPeers[0].String()}, false))...)
	from := multiaddr.StringCast("/ip4/192.0.2.1/tcp/1")
	standing, moved := 0, 0
	for i := range 32 {
		c, err := m.OpenConnection(network.DirInbound, true, from)
		require.NoError(t, err, "it may be the friend")
		if m.Snapshot().Scopes[KindTransient].Use.NumConnsInbound > standing {
			standing++
		}
		require.LessOrEqual(t, standing, 4, "half of transient")
		if i%2 == 0 {
			continue // it says nothing
		}
		if err = c.SetPeer(peerNamed(strconv.Itoa(i))); err == nil {
			moved++
			standing = m.Snapshot().Scopes[KindTransient].Use.NumConnsInbound
		} else {
			require.True(t, refusedByShare(err), err)
		}
	}
	require.Positive(t, moved)
	crowd := m.Snapshot()
	require.LessOrEqual(t, crowd.Scopes[KindSystem].Use.NumConnsInbound, 8, "half of the system")
	require.EqualValues(t, crowd.Scopes[KindSystem].Use.NumConnsInbound, crowd.FairShare.Largest[0].System.ConnsInbound)
	friend, err := m.OpenConnection(network.DirInbound, true, from)
	require.NoError(t, err)
	require.NoError(t, friend.SetPeer(testPeers[0]))
	require.Equal(t, crowd.FairShare, m.Snapshot().FairShare, "it is of no share")
	checkInvariants(t, m, false)
}

// A connection that turns out to be a stranger's is asked for the share of where it
// comes from, not of where its peer came from first.
func TestAStrangersConnectionCountsForTheSubnetItComesFrom(t *testing.T) {
	conf := unlimitedConf()
	conf.System.ConnsInbound = 16
	m := newManager(t, conf, append(openGates(), WithFairShare(KindSystem), WithStripes(4), WithAllowlistedMultiaddrs(testAllowlist))...)
	for i := range 8 {
		comesFrom(t, m, peerNamed(strconv.Itoa(i)), "/ip4/198.51.100.7/tcp/1")
	}
	var others []network.ConnManagementScope
	for i := range 8 {
		others = append(others, comesFrom(t, m, peerNamed(fmt.Sprint("other ", i)), fmt.Sprintf("/ip4/203.%d.113.1/tcp/1", i)))
	}
	named := multiaddr.StringCast("/ip4/192.0.2.2/tcp/1")
	c, err := m.OpenConnection(network.DirInbound, true, named) // the system is full
	require.NoError(t, err)
	others[0].Done()
	why, err := m.Explain(ExplainRequest{Kind: KindConn, Direction: network.DirInbound, Endpoint: named, UseFD: true, Peer: peerNamed("0")})
	require.NoError(t, err)
	require.True(t, why.Admitted, why)
	require.NoError(t, c.SetPeer(peerNamed("0")))
	checkInvariants(t, m, false)
}

// What counts in the allowlisted scopes is in no share of the standard ones.
func TestAllowlistedStreamsAreNoShare(t *testing.T) {
	conf := unlimitedConf()
	conf.System.StreamsInbound = 8
	m := newManager(t, conf, append(openGates(), WithFairShare(KindSystem), WithStripes(4), WithAllowlistStrings([]string{"/p2p/" + testPeers[0].String()}, false))...)
	comesFrom(t, m, "neighbour", "/ip4/192.0.2.3/tcp/1")
	early, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.NoError(t, err)
	var streams []network.StreamManagementScope
	for range 12 {
		streams = append(streams, mustOpenStream(t, m, testPeers[0], network.DirInbound))
	}
	require.NoError(t, early.SetPeer(testPeers[0]))
	require.Equal(t, 8, m.Snapshot().Scopes[KindAllowlistedSystem].Use.NumStreamsInbound, "it is not trusted yet")
	for range 4 {
		streams = append(streams, mustOpenStream(t, m, testPeers[0], network.DirInbound))
	}
	for _, l := range m.Snapshot().FairShare.Largest {
		require.Zero(t, l.System.StreamsInbound, "a trusted peer is of no subnet")
	}
	for _, s := range streams {
		s.Done()
	}
	early.Done()
	m.reap()
	require.Equal(t, 1, m.Snapshot().FairShare.Subnets)
}

// A peer that the allowlist comes to mean later has its subnet, and streams in either
// system scope; once it has a trusted connection, it has no share to keep to.
func TestAPeerThatIsAllowlistedLaterIsNotBoundByAShare(t *testing.T) {
	conf := unlimitedConf()
	conf.System.StreamsInbound, conf.System.Memory = 8, 1000
	m := fairManager(t, conf, KindSystem)
	comesFrom(t, m, testPeers[0], "/ip4/192.0.2.1/tcp/1")
	for range 4 {
		mustOpenStream(t, m, testPeers[0], network.DirInbound)
	}
	_, err := m.OpenStream(testPeers[0], network.DirInbound)
	require.True(t, refusedByShare(err), err)
	require.NoError(t, GetAllowlist(m).Add(multiaddr.StringCast("/p2p/"+testPeers[0].String())))
	for range 3 {
		mustOpenStream(t, m, testPeers[0], network.DirInbound)
	}
	s := m.Snapshot()
	require.Equal(t, 3, s.Scopes[KindAllowlistedSystem].Use.NumStreamsInbound)
	require.EqualValues(t, 4, s.FairShare.Largest[0].System.StreamsInbound)

	require.NoError(t, servedStream(t, m, "other").ReserveMemory(400, 255))
	mine := viewPeer(t, m, testPeers[0])
	require.NoError(t, mine.ReserveMemory(200, 255))
	require.True(t, refusedByShare(mine.ReserveMemory(100, 255)))
	comesFrom(t, m, testPeers[0], "/ip4/203.0.113.1/tcp/1")
	require.NoError(t, mine.ReserveMemory(100, 255))
	checkInvariants(t, m, false)
}

func TestReservingZeroBytesNeedsNoShare(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Memory = 1000
	m := fairManager(t, conf, KindSystem)
	s := servedStream(t, m, "much")
	require.NoError(t, s.ReserveMemory(400, 255))
	require.NoError(t, servedStream(t, m, "other").ReserveMemory(200, 255))
	require.True(t, refusedByShare(s.ReserveMemory(1, 255)))
	require.NoError(t, s.ReserveMemory(0, 255))
}

func TestFairShareIsShownInLogMetricsAndSnapshot(t *testing.T) {
	lines := collectLog(t, slog.LevelInfo)
	m := newManager(t, sharedTransient(4, 1<<20), append(openGates(), WithFairShare())...)
	require.Contains(t, lines.take()[0], "fair_share=[transient]")
	reg := registryOf(t, m)
	for i := range 4 {
		p := peerNamed(strconv.Itoa(i))
		comesFrom(t, m, p, "/ip4/192.0.2.1/tcp/1")
		_, err := m.OpenStream(p, network.DirInbound)
		require.Equal(t, i >= 2, refusedByShare(err), err)
	}
	require.Equal(t, map[string]float64{"fair-share inbound stream transient": 2}, seriesOf(t, reg, "refusals_total"))
	require.EqualValues(t, 2, m.Snapshot().Refusals[KindTransient].StreamsInbound)
	m.logRefusals()
	line := lines.take()[0]
	require.Contains(t, line, "cause=fair-share holder=subnet:192.0.2.0/24 holds=2 worst=subnet:192.0.2.0/24 worst_times=2 raise=Transient.StreamsInbound")

	why, err := m.Explain(ExplainRequest{Kind: KindStream, Direction: network.DirInbound, Peer: peerNamed("3")})
	require.NoError(t, err)
	require.False(t, why.Admitted)
	require.Equal(t, []any{"fair-share", int64(2), int64(4), int64(2)}, []any{why.By.Cause, why.By.Threshold, why.By.Limit, why.By.Use})
	text := bodyOf(t, ask(Handler(m), "GET", "/?format=text"))
	require.Regexp(t, `What subnets hold, the largest of 1\n\nSubnet .*\n192.0.2.0/24 +4 +4 +2 +0 +2\n`, text)
	require.Contains(t, bodyOf(t, ask(Handler(m), "GET", "/?format=html")),
		`<td class="name">192.0.2.0/24</td><td class="n" data-v="4">4</td><td class="n" data-v="4">4</td><td class="n" data-v="2">2</td><td class="n" data-v="0">0</td>`)
	require.NoError(t, m.ObserveOnly(KindTransient))
	_, err = m.OpenStream(peerNamed("3"), network.DirInbound)
	require.NoError(t, err)
	require.Equal(t, map[string]float64{"fair-share inbound stream transient": 1}, seriesOf(t, reg, "would_refuse_total"))
}

// fairPlay does what strangers do with a manager, and predicts every answer about
// connections and streams from what it has counted itself.
type fairPlay struct {
	t     *testing.T
	r     *rand.Rand
	m     *Manager
	conf  perScope[BaseLimit]
	fair  kindSet
	near  map[peer.ID]*fairHome // where a peer came from first, or was dialled first
	homes []*fairHome
	conns []*fairConn
	strs  []*fairStream
}

// fairHome is an address, or none, with the groups that it is in.
type fairHome struct {
	addr   string
	groups []fairGroup // the subnet comes second in IPv4, and first in IPv6
	out    bool        // as the home of a peer that was dialled, and has not come
}

// fairGroup has the name of a group, and how much it leaves to others for each that it holds.
type fairGroup struct {
	name  string
	leave float64
}

func (h *fairHome) subnet() string {
	switch len(h.groups) {
	case 0:
		return ""
	case 4: // with /32
		return h.groups[1].name
	}
	return h.groups[0].name
}

func (h *fairHome) in(group string) bool {
	return slices.ContainsFunc(h.groups, func(g fairGroup) bool { return g.name == group })
}

// fairHomes are where connections come from and go to. The owner of each IPv4 address is that of its
// first byte.
func fairHomes() []*fairHome {
	v4 := func(a, b, c, d int) *fairHome {
		net := fmt.Sprintf("%d.%d", a, b)
		sub := fmt.Sprint(net, ".", c)
		return &fairHome{addr: fmt.Sprintf("/ip4/%s.%d/tcp/1", sub, d), groups: []fairGroup{
			{fmt.Sprint(sub, ".", d, "/32"), 1}, {sub + ".0/24", 1}, {net + "/16", 0.5}, {fmt.Sprint("owner ", a), 0.5}}}
	}
	return []*fairHome{
		v4(192, 0, 2, 1), v4(192, 0, 2, 2), v4(192, 0, 3, 1), v4(192, 1, 2, 1), v4(198, 51, 100, 7),
		{addr: "/ip6/2001:db8::1/tcp/1", groups: []fairGroup{{"2001:db8::/56", 1}, {"2001:db8::/48", 0.5}, {"2001:db8::/32", 0.25}}},
		{addr: "/ip6/2001:db8:1::1/tcp/1", groups: []fairGroup{{"2001:db8:1::/56", 1}, {"2001:db8:1::/48", 0.5}, {"2001:db8::/32", 0.25}}},
		{addr: "/ip4/127.0.0.1/tcp/1"}, {},
	}
}

func fairOwner(a netip.Addr) string {
	if !a.Is4() {
		return ""
	}
	return fmt.Sprint(a.As4()[0])
}

type fairConn struct {
	network.ConnManagementScope
	dir  network.Direction
	from *fairHome
	peer peer.ID
}

type fairStream struct {
	network.StreamManagementScope
	dir     network.Direction
	peer    peer.ID
	settled bool // it has its protocol
}

// howMany counts what stands in a scope, of those that count.
func howMany[T any](all []T, counts func(T) bool) (n int) {
	for _, x := range all {
		if counts(x) {
			n++
		}
	}
	return n
}

// left returns how much has to be left free if something more is given to a home, where
// each group holds what held returns.
func (p *fairPlay) left(h *fairHome, held func(group string) int) (most int) {
	if h == nil {
		return 0
	}
	for i, g := range h.groups {
		leave := g.leave
		if i == 0 && len(h.groups) == 4 && p.comers(h.subnet()) > 1 {
			leave = 2
		}
		n := held(g.name)
		if i > 0 && h.groups[i].leave < 1 { // it is divided, and the part leaves as much to the others
			n += held(h.groups[min(i-1, 1)].name)
		}
		most = max(most, int(float64(n)*leave))
	}
	return most
}

// comers returns how many addresses of a subnet have inbound connections, or peers that came from
// there.
func (p *fairPlay) comers(subnet string) int {
	return howMany(p.homes, func(h *fairHome) bool {
		came := howMany(p.conns, func(c *fairConn) bool { return c.from == h && c.dir == network.DirInbound })
		for _, n := range p.near {
			if !n.out && n.addr == h.addr {
				came++
			}
		}
		return came > 0 && h.in(subnet)
	})
}

// fits predicts an answer: use is what the scope holds, own what the peer does, and
// left what its groups leave to others.
func (p *fairPlay) fits(k Kind, limit, use, own, left int) bool {
	switch {
	case use+1 > limit:
		return false
	case !p.fair.has(k):
		return k != KindTransient || own == 0 || own+1 <= limit/4 || use+1 <= limit-limit/4
	case own > 0 && own+1 > limit/4:
		return use+1 <= limit/2
	}
	return use+1 <= max(limit/2, limit-left)
}

func (p *fairPlay) conn(h *fairHome) {
	dir := network.Direction(1 + p.r.IntN(2))
	want := true
	for k, l := range map[Kind]*BaseLimit{KindSystem: &p.conf.System, KindTransient: &p.conf.Transient} {
		count := func(in string) int {
			return howMany(p.conns, func(c *fairConn) bool {
				return c.dir == dir && (k == KindSystem || c.peer == "") && (in == "" || c.from.in(in))
			})
		}
		// The connection counts as one that came while it is decided.
		p.conns = append(p.conns, &fairConn{dir: dir, from: h, peer: "itself"})
		left := p.left(h, func(g string) int {
			if k == KindSystem {
				return count(g) - 1
			}
			return count(g)
		})
		p.conns = p.conns[:len(p.conns)-1]
		switch {
		case dir == network.DirInbound:
			want = want && p.fits(k, l.ConnsInbound, count(""), 0, left)
		case k == KindTransient && p.fair.has(k):
			want = want && count("")+1 <= max(l.ConnsOutbound/2, l.ConnsOutbound-left)
		default:
			want = want && count("")+1 <= l.ConnsOutbound
		}
	}
	var far multiaddr.Multiaddr
	if h.addr != "" {
		far = multiaddr.StringCast(h.addr)
	}
	p.ask(ExplainRequest{Kind: KindConn, Direction: dir, UseFD: true, Endpoint: far}, want, func() error {
		c, err := p.m.OpenConnection(dir, true, far)
		if err == nil {
			p.conns = append(p.conns, &fairConn{c, dir, h, ""})
		}
		return err
	})
}

func (p *fairPlay) stream(id peer.ID) {
	dir := network.Direction(1 + p.r.IntN(2))
	count := func(k Kind, of func(*fairStream) bool) int {
		return howMany(p.strs, func(s *fairStream) bool { return s.dir == dir && (k == KindSystem || !s.settled) && of(s) })
	}
	all := func(*fairStream) bool { return true }
	own := func(s *fairStream) bool { return s.peer == id }
	want := true
	for k, l := range map[Kind]*BaseLimit{KindSystem: &p.conf.System, KindTransient: &p.conf.Transient} {
		home := p.near[id]
		if home != nil && home.out && dir == network.DirInbound {
			home = nil
		}
		left := p.left(home, func(group string) int {
			return count(k, func(s *fairStream) bool {
				near := p.near[s.peer]
				return near != nil && near.in(group) && (dir == network.DirOutbound || !near.out)
			})
		})
		if dir == network.DirOutbound {
			want = want && count(k, all)+1 <= p.mostOutbound(k, l, count(k, own), left)
		} else {
			want = want && p.fits(k, l.StreamsInbound, count(k, all), count(k, own), left)
		}
	}
	p.ask(ExplainRequest{Kind: KindStream, Direction: dir, Peer: id}, want, func() error {
		s, err := p.m.OpenStream(id, dir)
		if err == nil {
			p.strs = append(p.strs, &fairStream{s, dir, id, false})
		}
		return err
	})
}

// mostOutbound is how many outbound streams there may be, if the peer that gets another one has
// so many of them, and its groups leave so many to others.
func (p *fairPlay) mostOutbound(k Kind, l *BaseLimit, own, left int) int {
	if k == KindSystem {
		return l.StreamsOutbound
	}
	most := min(l.StreamsOutbound, l.Streams-min(l.Streams/4, l.StreamsInbound))
	switch crowds := own > 0 && own >= most/4; {
	case crowds && p.fair.has(k):
		return most / 2
	case crowds:
		return most - most/4
	case p.fair.has(k):
		return max(most/2, most-left)
	}
	return most
}

// setPeer predicts whether a peer may have a connection that is there.
func (p *fairPlay) setPeer(c *fairConn, id peer.ID) {
	count := func(counts func(*fairConn) bool) int {
		return howMany(p.conns, func(c *fairConn) bool { return c.dir == network.DirInbound && counts(c) })
	}
	own := count(func(c *fairConn) bool { return c.peer == id })
	limit := p.conf.System.ConnsInbound
	crowds := own > 0 && own+1 > limit/4 && count(func(*fairConn) bool { return true }) > limit/2
	err := c.SetPeer(id)
	require.Equal(p.t, p.fair.has(KindSystem) && c.dir == network.DirInbound && crowds, refusedByShare(err), err)
	if err != nil {
		return
	}
	c.peer = id
	near := p.near[id]
	if out := c.dir == network.DirOutbound; len(c.from.groups) > 0 && (near == nil || near.out && !out) {
		home := *c.from
		home.out = out
		p.near[id] = &home
	}
}

// ask holds both Explain and the manager against what was predicted.
func (p *fairPlay) ask(q ExplainRequest, want bool, do func() error) {
	why, err := p.m.Explain(q)
	require.NoError(p.t, err)
	require.Equal(p.t, want, why.Admitted, "%+v: %v", q, why)
	err = do()
	require.Equal(p.t, want, err == nil, "%+v: %v", q, err)
}

func (p *fairPlay) step() {
	ids := []peer.ID{"a", "b", "c", "d", "e", "f"}
	switch p.r.IntN(8) {
	case 0, 1:
		p.conn(p.homes[p.r.IntN(len(p.homes))])
	case 2, 3, 4:
		p.stream(ids[p.r.IntN(len(ids))])
	case 5:
		if len(p.conns) > 0 {
			c := p.conns[p.r.IntN(len(p.conns))]
			id := ids[p.r.IntN(len(ids))]
			if c.peer == "" {
				p.setPeer(c, id)
			} else {
				c.Done()
				p.conns = slices.DeleteFunc(p.conns, func(x *fairConn) bool { return x == c })
			}
		}
	default:
		if len(p.strs) > 0 {
			s := p.strs[p.r.IntN(len(p.strs))]
			if !s.settled && p.r.IntN(2) == 0 {
				require.NoError(p.t, s.SetProtocol("/p"))
				s.settled = true
			} else {
				s.Done()
				p.strs = slices.DeleteFunc(p.strs, func(x *fairStream) bool { return x == s })
			}
		}
	}
	p.check()
}

// check holds what the manager says of subnets against what was counted.
func (p *fairPlay) check() {
	checkInvariants(p.t, p.m, false)
	want, wider := make(map[string][2]SubnetUse), make(map[string]GroupShare)
	add := func(h *fairHome, settled bool, add SubnetUse, out OutboundUse) {
		addTo := func(system, transient *SubnetUse) {
			for _, u := range []*SubnetUse{system, transient} {
				if u == system || !settled {
					u.ConnsInbound += add.ConnsInbound
					u.FD += add.FD
					u.StreamsInbound += add.StreamsInbound
				}
			}
		}
		for _, g := range h.groups {
			if g.name == h.subnet() {
				if add != (SubnetUse{}) {
					n := want[g.name]
					addTo(&n[0], &n[1])
					want[g.name] = n
				}
				continue
			}
			if strings.HasSuffix(g.name, "/32") && len(h.groups) == 4 {
				continue // a single address
			}
			n := wider[g.name]
			addTo(&n.System, &n.Transient)
			if !settled {
				n.Outbound.Conns += out.Conns
				n.Outbound.Streams += out.Streams
			}
			wider[g.name] = n
		}
	}
	for _, c := range p.conns {
		if c.dir == network.DirInbound {
			add(c.from, c.peer != "", SubnetUse{ConnsInbound: 1, FD: 1}, OutboundUse{})
		} else {
			add(c.from, c.peer != "", SubnetUse{}, OutboundUse{Conns: 1})
		}
	}
	for _, s := range p.strs {
		switch from := p.near[s.peer]; {
		case from == nil:
		case s.dir == network.DirOutbound:
			add(from, s.settled, SubnetUse{}, OutboundUse{Streams: 1})
		case !from.out:
			add(from, s.settled, SubnetUse{StreamsInbound: 1}, OutboundUse{})
		}
	}
	shares := p.m.SnapshotTop(100).FairShare
	got := make(map[string][2]SubnetUse)
	for _, s := range shares.Largest {
		if n := [2]SubnetUse{s.System, s.Transient}; n != ([2]SubnetUse{}) {
			got[s.Prefix.String()] = n
		}
	}
	require.Equal(p.t, want, got)
	gotWider := make(map[string]GroupShare)
	for _, g := range shares.Groups {
		name := "owner " + g.Owner
		if g.Owner == "" {
			name = strings.Replace(g.Prefix.String(), ".0.0/16", "/16", 1)
		}
		g.Prefix, g.Owner = netip.Prefix{}, ""
		if g != (GroupShare{}) {
			gotWider[name] = g
		}
	}
	for name, g := range wider {
		if g == (GroupShare{}) {
			delete(wider, name)
		}
	}
	require.Equal(p.t, wider, gotWider)
}

func newFairPlay(t *testing.T, r *rand.Rand, stripes int, kinds ...Kind) *fairPlay {
	conf := unlimitedConf()
	for _, l := range []*BaseLimit{&conf.System, &conf.Transient} {
		l.StreamsInbound, l.StreamsOutbound = 1+r.IntN(24), 1+r.IntN(24)
		l.ConnsInbound, l.ConnsOutbound = 1+r.IntN(16), 1+r.IntN(16)
	}
	m := newManager(t, conf, append(openGates(), WithFairShare(kinds...), WithOwners(fairOwner), WithStripes(stripes))...)
	return &fairPlay{t: t, r: r, m: m, conf: conf, fair: m.options.fair, homes: fairHomes(), near: make(map[peer.ID]*fairHome)}
}

func TestSharesAreThoseOfAModel(t *testing.T) {
	for _, kinds := range [][]Kind{{KindTransient}, {KindSystem}, {KindTransient, KindSystem}} {
		for _, stripes := range []int{1, 8} {
			t.Run(fmt.Sprintf("%v/stripes=%d", kinds, stripes), func(t *testing.T) {
				p := newFairPlay(t, randomFrom(testSeed(t), uint64(stripes)), stripes, kinds...)
				m := p.m
				for range stressSteps() {
					p.step()
				}
				for _, c := range p.conns {
					c.Done()
				}
				for _, s := range p.strs {
					s.Done()
				}
				m.reap()
				assertEmpty(t, m)
				require.Zero(t, m.Snapshot().FairShare.Subnets)
			})
		}
	}
}

// Many at once leave nothing behind, and pass no limit.
func TestSharesOfManyAtOnce(t *testing.T) {
	conf := sharedTransient(32, 16)
	conf.System.StreamsInbound, conf.System.ConnsInbound = 64, 32
	m := fairManager(t, conf, KindTransient, KindSystem)
	stop := watch(t, m, func() error { return brokenInvariant(m, false) })
	together(t, 8, func(id int, r *rand.Rand) {
		for range stressSteps() {
			c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast(fmt.Sprintf("/ip4/192.0.%d.1/tcp/1", r.IntN(4))))
			if err != nil {
				continue
			}
			p := peerNamed(strconv.Itoa(r.IntN(16)))
			if r.IntN(4) > 0 && c.SetPeer(p) == nil {
				var open []network.StreamManagementScope
				for range r.IntN(6) {
					if s, err := m.OpenStream(p, network.DirInbound); err == nil {
						open = append(open, s)
						if r.IntN(2) == 0 {
							_ = s.SetProtocol("/p")
						}
					}
				}
				for _, s := range open {
					s.Done()
				}
			}
			c.Done()
			if r.IntN(50) == 0 {
				m.reap()
			}
		}
	})
	stop()
	for _, s := range m.Snapshot().FairShare.Largest {
		require.Equal(t, SubnetShare{Prefix: s.Prefix}, s)
	}
	m.reap()
	assertEmpty(t, m)
	require.Zero(t, m.Snapshot().FairShare.Subnets)
}

func TestSnapshotsWithSharesAreReadAsWritten(t *testing.T) {
	m := fairManager(t, sharedTransient(4, 4))
	comesFrom(t, m, testPeer, "/ip4/192.0.2.1/tcp/1")
	s := m.Snapshot()
	text, err := json.Marshal(s)
	require.NoError(t, err)
	var got Snapshot
	require.NoError(t, json.Unmarshal(text, &got))
	require.Len(t, got.FairShare.Largest, 1)
	require.Equal(t, s.FairShare, got.FairShare)
}

// What the limit itself has no room for is refused by the limit, with what is held, also where
// much of the credit that was handed out lies idle.
func TestARequestAboveTheLimitItselfIsNotReportedAsAShare(t *testing.T) {
	const kib = 1 << 10
	conf := unlimitedConf()
	conf.System.Memory = 1024 * kib
	m := newManager(t, conf, WithStripes(8), WithFairShare(KindSystem))
	s := servedStream(t, m, testPeer)
	require.NoError(t, s.ReserveMemory(300*kib, 255))
	require.False(t, m.fixed[KindSystem].tight(dimMemory))
	for _, c := range []struct {
		asked int
		cause Cause
	}{{800 * kib, CauseLimit}, {724*kib + 1, CauseLimit}, {724 * kib, CauseFairShare}} {
		var refusal *LimitError
		require.ErrorAs(t, s.ReserveMemory(c.asked, 255), &refusal)
		require.Equal(t, []any{c.cause, int64(300 * kib), int64(1024 * kib)}, []any{refusal.Cause(), refusal.Current(), refusal.Limit()}, c.asked)
	}
	shares := m.Snapshot().Refusals[KindSystem]
	require.EqualValues(t, 3, shares.Memory)
	require.EqualValues(t, 1, m.read().counts.rationed.fair[KindSystem][dimMemory])
	s.Done()
}

// A refusal for the sake of others names the peer or subnet that holds too much.
func TestARefusalNamesTheHolder(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.ConnsInbound, conf.System.Memory = 8, 1<<20
	m := newManager(t, conf, append(openGates(), WithFairShare(KindTransient, KindSystem), WithStripes(8))...)
	far := multiaddr.StringCast("/ip4/192.0.2.7/tcp/1")
	for range 4 {
		_, err := m.OpenConnection(network.DirInbound, true, far)
		require.NoError(t, err)
	}
	_, err := m.OpenConnection(network.DirInbound, true, far)
	var refusal *LimitError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, []any{CauseFairShare, "subnet:192.0.2.0/24"}, []any{refusal.Cause(), refusal.Holder()})
	require.Equal(t, "conn", refusal.Asked())

	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, s.ReserveMemory(400<<10, 255))
	for name, scope := range map[string]network.ResourceScope{"stream": s, "peer": viewPeer(t, m, testPeer)} {
		require.ErrorAs(t, scope.ReserveMemory(300<<10, 255), &refusal, name)
		require.Equal(t, []any{CauseFairShare, "peer:" + testPeer.String()}, []any{refusal.Cause(), refusal.Holder()}, name)
	}
	require.ErrorAs(t, s.ReserveMemory(1<<20, 255), &refusal)
	require.Equal(t, []any{CauseLimit, ""}, []any{refusal.Cause(), refusal.Holder()})
}

// Explain asks for a peer's share of connections once, when the connection gets its peer.
func TestExplainAsksForAPeersShareOfConnectionsOnce(t *testing.T) {
	conf := unlimitedConf()
	conf.System.ConnsInbound = 16
	m := newManager(t, conf, append(openGates(), WithFairShare(KindSystem))...)
	for i := range 10 {
		p := testPeer // it has a quarter of them
		if i >= 4 {
			p = peerNamed(fmt.Sprint(i))
		}
		require.NoError(t, mustOpenConn(t, m, network.DirInbound).SetPeer(p))
	}
	q := ExplainRequest{Kind: KindConn, Direction: network.DirInbound, Peer: testPeer}
	e, err := m.Explain(q)
	require.NoError(t, err)
	require.False(t, e.Admitted)
	require.Equal(t, LimitCheck{Step: "peer", Scope: "system", Kind: KindSystem, Name: "ConnsInbound", Use: 10, Asked: 1, Limit: 16,
		Threshold: 8, Room: -2, Cause: "fair-share", Holder: "peer:" + testPeer.String(),
		Largest: "peer:" + testPeer.String(), LargestHolds: 4, ConfigKey: "System.ConnsInbound"}, *e.By)
	require.Equal(t, 1, howMany(e.Checks, func(c LimitCheck) bool { return c.Step == "peer" && c.Scope == "system" }))
	_, err = do(m, q)
	require.True(t, refusedByShare(err), err)
}

// Where a host is seen to be full at a glance, a share that stands before the limit is named.
func TestAFullHostNamesTheShareThatIsUsedUp(t *testing.T) {
	conf := unlimitedConf()
	conf.Transient.ConnsInbound, conf.Transient.Conns = 6, 4
	m := newManager(t, conf, append(openGates(), WithFairShare(KindTransient))...)
	open := func(addr string) error {
		_, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast(addr))
		return err
	}
	for _, addr := range []string{"/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1", "/ip4/198.51.100.1/tcp/1", "/ip4/203.0.113.1/tcp/1"} {
		require.NoError(t, open(addr))
	}
	var refusal *LimitError
	require.ErrorAs(t, open("/ip4/192.0.2.4/tcp/1"), &refusal)
	require.Equal(t, []any{CauseFairShare, network.DirInbound, "subnet:192.0.2.0/24"}, []any{refusal.Cause(), refusal.Direction(), refusal.Holder()})
	require.ErrorAs(t, open("/ip4/198.18.0.1/tcp/1"), &refusal)
	require.Equal(t, []any{CauseLimit, network.DirUnknown}, []any{refusal.Cause(), refusal.Direction()})
}
