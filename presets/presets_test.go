package presets_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/presets"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// everyNode calls f with every role on small and large nodes, with few and many descriptors.
func everyNode(t *testing.T, f func(t *testing.T, r presets.Role, n rcmgr.NodeLimits)) {
	for _, r := range presets.Roles() {
		for _, memory := range []int64{gib, 2 * gib, 4 * gib, 16 * gib, 64 * gib} {
			for _, fds := range []int{64, 256, 1024, 65536, math.MaxInt} {
				for _, mark := range []int{0, 96, 5000} {
					t.Run(fmt.Sprintf("%v/%dGiB/%dfds/mark%d", r, memory/gib, fds, mark), func(t *testing.T) {
						f(t, r, rcmgr.NodeLimits{MaxMemory: memory, MaxFileDescriptors: fds, ConnMgrHighWater: mark})
					})
				}
			}
		}
	}
}

// Each preset can be written to a file, is read back by the strict reader, and fits the limits
// of its node: no limit is out of reach, and the high water mark is below all of them.
func TestEachPresetFitsItsNode(t *testing.T) {
	everyNode(t, func(t *testing.T, r presets.Role, n rcmgr.NodeLimits) {
		limits, err := r.Limits(n, presets.Size{})
		require.NoError(t, err)
		text, err := json.Marshal(limits)
		require.NoError(t, err)
		read, err := rcmgr.ReadLimits(bytes.NewReader(text))
		require.NoError(t, err)
		n.Overrides = read
		cfg, err := n.Build()
		require.NoError(t, err)
		require.Empty(t, cfg.Warnings())
		require.NoError(t, cfg.CheckHighWater(n.ConnMgrHighWater))
		if fds := cfg.ToPartialLimitConfig().Transient.FD; n.MaxFileDescriptors < math.MaxInt {
			require.LessOrEqual(t, int(fds), n.MaxFileDescriptors)
		}
	})
}

// All connections of a subnet may come back at once.
func TestTheBurstOfASubnetIsAtLeastItsLimit(t *testing.T) {
	everyNode(t, func(t *testing.T, r presets.Role, n rcmgr.NodeLimits) {
		limits, err := r.Limits(n, presets.Size{})
		require.NoError(t, err)
		gates := limits.Gates
		require.NotEmpty(t, gates.Subnets.IPv4)
		require.NotEmpty(t, gates.Subnets.IPv6)
		for bits, conns := range gates.Subnets.IPv4 {
			require.GreaterOrEqual(t, gates.Rate.IPv4[bits].Burst, conns)
			require.Positive(t, gates.Rate.IPv4[bits].PerSecond)
		}
		for bits, conns := range gates.Subnets.IPv6 {
			require.GreaterOrEqual(t, gates.Rate.IPv6[bits].Burst, conns)
		}
	})
}

func managerOf(t *testing.T, r presets.Role, n rcmgr.NodeLimits, size presets.Size) *rcmgr.Manager {
	var err error
	n.Overrides, err = r.Limits(n, size)
	require.NoError(t, err)
	rm, err := rcmgr.NewForNode(n, rcmgr.WithMetricsDisabled(), rcmgr.WithRefusalLog(0))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rm.Close()) })
	return rm
}

func testPeer(i int) peer.ID { return peer.ID(fmt.Sprintf("peer-%d", i)) }

// address returns the address of a host of its own.
func address(i int) multiaddr.Multiaddr {
	return multiaddr.StringCast(fmt.Sprintf("/ip4/10.%d.%d.%d/udp/1/quic-v1", i>>16&255, i>>8&255, i&255))
}

// connect opens an inbound connection of each of n peers before any of them says who it is, as
// after a restart, and returns them.
func connect(t *testing.T, rm *rcmgr.Manager, from, n int) (conns []network.ConnManagementScope) {
	for i := range n {
		c, err := rm.OpenConnection(network.DirInbound, false, address(from+i))
		require.NoError(t, err, "connection %d", i)
		conns = append(conns, c)
	}
	for i, c := range conns {
		require.NoError(t, c.SetPeer(testPeer(from+i)), "connection %d", i)
	}
	return conns
}

// A relay carries as many circuits as it was sized for, after all of its members have come
// back at once.
func TestARelayCarriesTheCircuitsItWasSizedFor(t *testing.T) {
	const members, circuits = 300, 900
	rm := managerOf(t, presets.Relay, rcmgr.NodeLimits{MaxMemory: 2 * gib, MaxFileDescriptors: 512}, presets.Size{Members: members, Circuits: circuits})
	connect(t, rm, 0, members)
	connect(t, rm, members, circuits)
	for i := range circuits {
		for _, side := range []struct {
			dir network.Direction
			of  peer.ID
			at  protocol.ID
		}{
			{network.DirInbound, testPeer(members + i), "/libp2p/circuit/relay/0.2.0/hop"},
			{network.DirOutbound, testPeer(i % members), "/libp2p/circuit/relay/0.2.0/stop"},
		} {
			s, err := rm.OpenStream(side.of, side.dir)
			require.NoError(t, err, "circuit %d", i)
			require.NoError(t, s.SetProtocol(side.at), "circuit %d", i)
			require.NoError(t, s.SetService("libp2p.relay/v2"), "circuit %d", i)
			require.NoError(t, s.ReserveMemory(8*kib, network.ReservationPriorityHigh), "circuit %d", i)
			// This is what yamux takes.
			require.NoError(t, rm.ViewPeer(side.of, func(p network.PeerScope) error {
				return p.ReserveMemory(256*kib, network.ReservationPriorityAlways)
			}), "circuit %d", i)
		}
	}
}

// Each member of a validator's network may hold as many streams as honest ones have been seen
// to hold on a slow machine.
func TestAValidatorServesAllMembersAtOnce(t *testing.T) {
	const members, streams = 200, 128
	rm := managerOf(t, presets.Validator, rcmgr.NodeLimits{MaxMemory: 4 * gib, MaxFileDescriptors: 1024}, presets.Size{Members: members})
	connect(t, rm, 0, members)
	for i := range members {
		for n := range streams {
			s, err := rm.OpenStream(testPeer(i), network.DirInbound)
			require.NoError(t, err, "stream %d of member %d", n, i)
			require.NoError(t, s.SetProtocol("/x"))
		}
	}
}

// A crawler dials as many peers at once as it was sized for.
func TestACrawlerDialsAsManyAsItWasSizedFor(t *testing.T) {
	const conns = 5000
	rm := managerOf(t, presets.Crawler, rcmgr.NodeLimits{MaxMemory: 4 * gib, MaxFileDescriptors: 8192}, presets.Size{Conns: conns})
	for i := range conns {
		_, err := rm.OpenConnection(network.DirOutbound, true, address(i))
		require.NoError(t, err, "connection %d", i)
	}
}

// A bootstrapper takes as many peers as it was sized for, and lets none of them hold much.
func TestABootstrapperTakesAsManyAsItWasSizedFor(t *testing.T) {
	const conns = 4000
	rm := managerOf(t, presets.Bootstrapper, rcmgr.NodeLimits{MaxMemory: 4 * gib, MaxFileDescriptors: 1024}, presets.Size{Conns: conns})
	connect(t, rm, 0, conns/2)
	connect(t, rm, conns/2, conns/2)
	streams := 0
	for err := error(nil); err == nil; streams++ {
		_, err = rm.OpenStream(testPeer(0), network.DirInbound)
	}
	require.LessOrEqual(t, streams, 17)
}

func TestASizeThatDoesNotFitIsAnErrorThatSaysWhy(t *testing.T) {
	node := rcmgr.NodeLimits{MaxMemory: gib, MaxFileDescriptors: 1024}
	for _, c := range []struct {
		role presets.Role
		size presets.Size
		want string
	}{
		{presets.Relay, presets.Size{Conns: 3}, "presets: relay: Size.Conns is 3, but the role is sized by Members and Circuits"},
		{presets.Crawler, presets.Size{Members: 3}, "presets: crawler: Size.Members is 3, but the role is sized by Conns"},
		{presets.Gateway, presets.Size{Conns: -1}, "presets: gateway: Size.Conns is -1, it must not be negative"},
		{presets.Gateway, presets.Size{Conns: 1 << 30}, "expected at most 16777216"},
		{presets.Bootstrapper, presets.Size{Conns: 100000}, "presets: bootstrapper: 100000 connections need about 12500 MiB of memory, the node has 1024 MiB"},
		{presets.Relay, presets.Size{Members: 10, Circuits: 10000}, "10 members and 10000 circuits need about"},
		{presets.Role(99), presets.Size{}, "presets: no such role: Role(99)"},
	} {
		_, err := c.role.Limits(node, c.size)
		require.ErrorContains(t, err, c.want)
	}
	_, err := presets.Relay.Limits(rcmgr.NodeLimits{MaxMemory: -1}, presets.Size{})
	require.ErrorContains(t, err, "NodeLimits.MaxMemory is -1")
}

func TestRolesAreReadByTheirNames(t *testing.T) {
	for _, r := range presets.Roles() {
		read, err := presets.Parse(r.String())
		require.NoError(t, err)
		require.Equal(t, r, read)
		require.NotEmpty(t, r.Purpose())
		require.NotEmpty(t, r.Takes())
		var again presets.Role
		text, err := r.MarshalText()
		require.NoError(t, err)
		require.NoError(t, again.UnmarshalText(text))
		require.Equal(t, r, again)
	}
	_, err := presets.Parse("rely")
	require.EqualError(t, err, `presets: no such role: "rely", expected one of relay, validator, gateway, light-client, crawler, bootstrapper`)
}

func Example() {
	node := rcmgr.NodeLimits{MaxMemory: 2 << 30, MaxFileDescriptors: 4096}
	limits, err := presets.Relay.Limits(node, presets.Size{Members: 500, Circuits: 1000})
	if err != nil {
		panic(err)
	}
	node.Overrides = limits
	rm, err := rcmgr.NewForNode(node)
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	fmt.Println("inbound connections:", limits.System.ConnsInbound)
	fmt.Println("of the relay service:", limits.Service["libp2p.relay/v2"].StreamsInbound, "streams in,",
		limits.Service["libp2p.relay/v2"].StreamsOutbound, "out")
	// Output:
	// inbound connections: 1500
	// of the relay service: 1500 streams in, 1000 out
}
