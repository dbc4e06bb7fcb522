package rcmgr

import (
	"log/slog"
	"math"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// noMachine is for limits that do not depend on the machine.
func noMachine(t *testing.T) func() Machine {
	return func() Machine {
		t.Error("the machine was looked at")
		return Machine{}
	}
}

// The numbers are worked out by hand from the rules that stand at NodeLimits.
func TestNodeLimitsAreThoseOfKubo(t *testing.T) {
	const mib = 1 << 20
	type numbers struct {
		memory      int64
		fds, connIn int
	}
	for _, c := range []struct {
		name              string
		node              NodeLimits
		system, transient numbers
		peerStreamsIn     int
	}{
		{"512 MiB", NodeLimits{MaxMemory: 512 * mib, MaxFileDescriptors: 1024},
			numbers{536870912, 1024, 800}, numbers{134217728, 256, 128}, 320},
		{"2 GiB", NodeLimits{MaxMemory: 2048 * mib, MaxFileDescriptors: 4096, ConnMgrHighWater: 96},
			numbers{2147483648, 4096, 2048}, numbers{536870912, 1024, 512}, 512},
		{"2 GiB, high mark", NodeLimits{MaxMemory: 2048 * mib, MaxFileDescriptors: 4096, ConnMgrHighWater: 2000},
			numbers{2147483648, 4096, 4000}, numbers{536870912, 1024, 512}, 512},
		{"8 GiB", NodeLimits{MaxMemory: 8192 * mib, MaxFileDescriptors: 16384, ConnMgrHighWater: 600},
			numbers{8589934592, 16384, 8192}, numbers{2147483648, 4096, 2048}, 1280},
		{"64 GiB", NodeLimits{MaxMemory: 65536 * mib, MaxFileDescriptors: 131072, ConnMgrHighWater: 96},
			numbers{68719476736, 131072, 65536}, numbers{17179869184, 32768, 16384}, 8448},
		{"1 GB", NodeLimits{MaxMemory: 1e9, MaxFileDescriptors: 1001},
			numbers{1000000000, 1001, 953}, numbers{250000000, 250, 238}, 375},
		{"100 MiB", NodeLimits{MaxMemory: 100 * mib, MaxFileDescriptors: 100, ConnMgrHighWater: 401},
			numbers{104857600, 100, 802}, numbers{26214400, 25, 25}, 256},
		{"512 MiB without connection manager", NodeLimits{MaxMemory: 512 * mib, MaxFileDescriptors: 1024, NoConnMgr: true},
			numbers{536870912, 1024, 512}, numbers{134217728, 256, 128}, 320},
		// A part that comes to nothing is left to the default limits.
		{"3 MiB", NodeLimits{MaxMemory: 3 * mib, MaxFileDescriptors: 3, NoConnMgr: true},
			numbers{3145728, 3, 3}, numbers{786432, 64, 32}, 256},
		{"512 KiB", NodeLimits{MaxMemory: mib / 2, MaxFileDescriptors: 10, NoConnMgr: true},
			numbers{524288, 10, 64}, numbers{131072, 2, 32}, 256},
		{"unlimited descriptors", NodeLimits{MaxMemory: 512 * mib, MaxFileDescriptors: math.MaxInt},
			numbers{536870912, math.MaxInt, 800}, numbers{134217728, math.MaxInt, 128}, 320},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := c.node.build(noMachine(t))
			require.NoError(t, err)
			unlimited := InfiniteLimits.limits.System
			want := func(n numbers) BaseLimit {
				l := unlimited
				l.Memory, l.FD, l.ConnsInbound = n.memory, n.fds, n.connIn
				return l
			}
			onePeer := unlimited
			onePeer.ConnsInbound, onePeer.StreamsInbound = 8, c.peerStreamsIn
			got := cfg.limits
			require.Equal(t, want(c.system), got.System)
			require.Equal(t, want(c.transient), got.Transient)
			require.Equal(t, onePeer, got.PeerDefault)
			for _, l := range []BaseLimit{got.AllowlistedSystem, got.AllowlistedTransient, got.ServiceDefault, got.ServicePeerDefault,
				got.ProtocolDefault, got.ProtocolPeerDefault, got.Conn, got.Stream} {
				require.Equal(t, unlimited, l)
			}

			defaults := DefaultLimits.withOwnMaps()
			SetDefaultServiceLimits(&defaults)
			named := defaults.Scale(c.node.MaxMemory, c.node.MaxFileDescriptors).limits
			require.NotEmpty(t, named.Service)
			require.Equal(t, named.Service, got.Service)
			require.Equal(t, named.ServicePeer, got.ServicePeer)
			require.Equal(t, named.Protocol, got.Protocol)
			require.Equal(t, named.ProtocolPeer, got.ProtocolPeer)
			require.Equal(t, Sizing{Rules: "NodeLimits", Memory: c.node.MaxMemory, FileDescriptors: limitVal(c.node.MaxFileDescriptors)}, cfg.sizing)
		})
	}
}

func TestNodeLimitsAreHalfOfTheMachineByDefault(t *testing.T) {
	machine := Machine{Memory: 512 << 20, MemoryFrom: "cgroup", FileDescriptors: 1001}
	cfg, err := NodeLimits{}.build(func() Machine { return machine })
	require.NoError(t, err)
	require.EqualValues(t, 256<<20, cfg.limits.System.Memory)
	require.Equal(t, 500, cfg.limits.System.FD)
	require.Equal(t, Sizing{Rules: "NodeLimits", Memory: 256 << 20, FileDescriptors: 500, Machine: machine}, cfg.sizing)

	for fds, want := range map[LimitVal]int{Unlimited: math.MaxInt, DefaultLimit: 256} {
		machine.FileDescriptors = fds
		cfg, err = NodeLimits{MaxMemory: 1 << 30}.build(func() Machine { return machine })
		require.NoError(t, err)
		require.Equal(t, want, cfg.limits.System.FD)
		require.EqualValues(t, 1<<30, cfg.limits.System.Memory)
	}
}

func TestOverridesGoBeforeWhatIsComputed(t *testing.T) {
	cfg, err := NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100, Overrides: PartialLimitConfig{
		System:      ResourceLimits{ConnsInbound: 5, StreamsInbound: 7},
		PeerDefault: ResourceLimits{Streams: BlockAllLimit},
		Service:     map[string]ResourceLimits{"x": {Streams: 3}, pingService: {Streams: 4}},
	}}.build(noMachine(t))
	require.NoError(t, err)
	require.Equal(t, 5, cfg.limits.System.ConnsInbound)
	require.Equal(t, 7, cfg.limits.System.StreamsInbound)
	require.Zero(t, cfg.limits.PeerDefault.Streams)
	require.Equal(t, 3, cfg.limits.Service["x"].Streams)
	require.Equal(t, math.MaxInt, cfg.limits.Service["x"].StreamsInbound)
	require.Equal(t, 4, cfg.limits.Service[pingService].Streams)
	require.Equal(t, 64+64, cfg.limits.Service[pingService].StreamsInbound)
}

func TestAHighWaterMarkIsIgnoredWhereThereIsNoConnectionManager(t *testing.T) {
	lines := collectLog(t, slog.LevelWarn)
	node := NodeLimits{MaxMemory: 64 << 20, MaxFileDescriptors: 100, NoConnMgr: true}
	want, err := node.build(noMachine(t))
	require.NoError(t, err)
	require.Empty(t, lines.take())
	node.ConnMgrHighWater = 96 // above the limit, which is no conflict here
	cfg, err := node.build(noMachine(t))
	require.NoError(t, err)
	require.Equal(t, 64, cfg.limits.System.ConnsInbound)
	require.Equal(t, toJSON(t, want), toJSON(t, cfg))
	require.Equal(t, []string{`WARN msg="NodeLimits has NoConnMgr, so its ConnMgrHighWater is ignored" high_water=96`}, lines.take())
	m, err := NewForNode(node)
	require.NoError(t, err)
	m.Close()
}

func TestNodeLimitsThatMakeNoSenseAreErrors(t *testing.T) {
	sized := NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100}
	for want, change := range map[string]func(*NodeLimits){
		"NodeLimits.MaxMemory is -1, it must not be negative":          func(n *NodeLimits) { n.MaxMemory = -1 },
		"NodeLimits.MaxFileDescriptors is -2, it must not be negative": func(n *NodeLimits) { n.MaxFileDescriptors = -2 },
		"NodeLimits.ConnMgrHighWater is -3, it must not be negative":   func(n *NodeLimits) { n.ConnMgrHighWater = -3 },
		"Transient.Memory: is 2147483648, above System.Memory, which is 1": func(n *NodeLimits) {
			n.Overrides.Transient.Memory, n.Overrides.System.Memory = 2<<30, 1<<30
		},
		"System.ConnsInbound (96) is not above the connection manager's high water mark of 96": func(n *NodeLimits) {
			n.ConnMgrHighWater, n.Overrides.System.ConnsInbound = 96, 96
		},
	} {
		n := sized
		change(&n)
		_, err := n.build(noMachine(t))
		require.ErrorContains(t, err, want)
		_, err = NewForNode(n)
		require.ErrorContains(t, err, want)
	}
	_, err := NewForNode(NodeLimits{Allowlist: []string{"/ip4/192.0.2.1", "nonsense"}})
	require.ErrorContains(t, err, "line 2")
	_, err = NewForNode(sized, nil)
	require.ErrorContains(t, err, "option")
}

func TestANodeServesAllowlistedPeers(t *testing.T) {
	friend := multiaddr.StringCast("/ip4/192.0.2.1/tcp/1")
	// All but friends are kept out: no conflict with the mark, because it is meant so.
	m, err := NewForNode(NodeLimits{
		MaxMemory: 1 << 30, MaxFileDescriptors: 100, ConnMgrHighWater: 96,
		Allowlist: []string{"/ip4/192.0.2.1"},
		Overrides: PartialLimitConfig{System: ResourceLimits{ConnsInbound: BlockAllLimit}},
	})
	require.NoError(t, err)
	defer m.Close()
	_, err = m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/192.0.2.2/tcp/1"))
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	c, err := m.OpenConnection(network.DirInbound, true, friend)
	require.NoError(t, err)
	require.NoError(t, c.SetPeer(peer.ID("friend")))
	c.Done()
}

func TestAManagerLogsWhatItsLimitsWereComputedFor(t *testing.T) {
	logged := collectLog(t, -4)
	m, err := NewForNode(NodeLimits{MaxMemory: 512 << 20, MaxFileDescriptors: 1024})
	require.NoError(t, err)
	m.Close()
	lines := strings.Join(logged.take(), "\n")
	for _, want := range []string{"limits_by=NodeLimits", `limits_for_memory="512.0 MiB"`, "limits_for_descriptors=1024",
		`system_memory="512.0 MiB"`, "system_descriptors=1024", "system_conns_inbound=800", "transient_conns_inbound=128"} {
		require.Contains(t, lines, want)
	}
	require.NotContains(t, lines, "memory_found")

	m, err = New(nil)
	require.NoError(t, err)
	m.Close()
	lines = strings.Join(logged.take(), "\n")
	for _, want := range []string{"limits_by=ScalingLimitConfig", "memory_found=", "memory_from=", "descriptors_found="} {
		require.Contains(t, lines, want)
	}
	book, err := newLimitBook(NewFixedLimiter(DefaultLimits.scaleTo(Machine{Memory: 1, CgroupError: "no"})), true, nil)
	require.NoError(t, err)
	require.Contains(t, book.startAttrs(), "cgroup_error")
}

func TestANodeWithMoreMemoryThanThereIsIsWarnedAbout(t *testing.T) {
	for memory, warns := range map[int64]bool{0: false, 1 << 20: false, math.MaxInt64 - 1: true, math.MaxInt64: false} {
		text := captureLog(t)
		m, err := NewForNode(NodeLimits{MaxMemory: memory, MaxFileDescriptors: 1024})
		require.NoError(t, err)
		m.Close()
		require.Equal(t, warns, strings.Contains(text.String(), "MaxMemory is above the memory that this process may use"), text.String())
	}
}
