package rcmgr

import (
	"encoding/json"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// theirScaling returns upstream's own value for one of our configurations.
func theirScaling(tb testing.TB, cfg ScalingLimitConfig) (out upstream.ScalingLimitConfig) {
	tb.Helper()
	peers := cfg.PeerLimits
	cfg.PeerLimits = nil // encoding/json garbles their names
	require.NoError(tb, json.Unmarshal([]byte(toJSON(tb, cfg)), &out))
	for p, l := range peers {
		out.AddPeerLimit(p, theirBase(tb, l.BaseLimit), theirIncrease(tb, l.BaseLimitIncrease))
	}
	return out
}

func TestScaleIsUpstreamsButForStreams(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand) {
		var cfg ScalingLimitConfig
		randomly(t, rng, reflect.ValueOf(&cfg).Elem())
		// Upstream scales streams by the increase of connections.
		cfg.StreamLimitIncrease = cfg.ConnLimitIncrease
		up := theirScaling(t, cfg)
		for _, memory := range []int64{math.MinInt64, -1, 0, 1, 128 << 20, 128<<20 + 1, 129 << 20, 1 << 30, 1<<30 - 1, 3 << 29, 8 << 30, rng.Int64N(1 << 40)} {
			all := []int{math.MinInt, -1, 0, 1, 63, 64, 1000, 1 << 20}
			if testing.Short() {
				all = []int{pick(rng, all)}
			}
			for _, fds := range all {
				requireSameConcrete(t, up.Scale(memory, fds), cfg.Scale(memory, fds))
			}
		}
	})
}

func TestStreamsScaleByTheirOwnIncrease(t *testing.T) {
	cfg := ScalingLimitConfig{
		ConnLimitIncrease:   BaseLimitIncrease{Conns: 7, Memory: 7},
		StreamLimitIncrease: BaseLimitIncrease{Streams: 3, Memory: 5},
	}
	require.Equal(t, BaseLimit{Streams: 6, Memory: 10}, cfg.Scale(2<<30, 0).limits.Stream)
}

func TestDefaultsAreUpstreamsButForASlip(t *testing.T) {
	theirs, ours := upstream.DefaultLimits, DefaultLimits.withOwnMaps()
	libp2p.SetDefaultServiceLimits(&theirs)
	SetDefaultServiceLimits(&ours)

	require.EqualValues(t, 4<<20, ours.ProtocolPeerLimitIncrease.Memory, "MiB a GiB, as for a peer in a service")
	ours.ProtocolPeerLimitIncrease.Memory = 4  // bytes
	const slip int64 = 32 * (256<<20 + 16<<10) // 8 GiB where KiB were meant
	for _, id := range []protocol.ID{identifyProtocol, identifyPushProtocol, pingProtocol} {
		l := theirs.ProtocolPeerLimits[id]
		require.Equal(t, slip, l.BaseLimit.Memory)
		l.BaseLimit.Memory = 1 << 20
		theirs.ProtocolPeerLimits[id] = l
	}
	l := theirs.ServicePeerLimits[pingService]
	require.Equal(t, slip, l.BaseLimit.Memory)
	l.BaseLimit.Memory = 1 << 20
	theirs.ServicePeerLimits[pingService] = l

	require.Equal(t, toJSON(t, theirs), toJSON(t, ours))
	for _, memory := range []int64{64 << 20, 512 << 20, 8 << 30} {
		requireSameConcrete(t, theirs.Scale(memory, 4096), ours.Scale(memory, 4096))
	}
	requireSameConcrete(t, upstream.InfiniteLimits, InfiniteLimits)
}

func TestOnePeerCannotTakeAllMemoryOfABundledProtocol(t *testing.T) {
	for _, b := range bundled {
		for _, proto := range b.protocols {
			if strings.HasPrefix(string(proto), "/libp2p/circuit/") {
				continue // relays hold buffers for both sides; upstream's values
			}
			require.Less(t, b.perPeer.Memory, b.limit.Memory, proto)
		}
		for _, svc := range b.services {
			require.Less(t, b.perPeer.Memory, b.limit.Memory, svc)
		}
	}
}

func TestScaleSaturates(t *testing.T) {
	l := DefaultLimits.Scale(math.MaxInt64, math.MaxInt).limits
	require.Equal(t, int64(math.MaxInt64), l.System.Memory)
	require.Equal(t, math.MaxInt, l.System.FD)
	require.Equal(t, math.MaxInt, l.Transient.FD, "a quarter of unlimited is unlimited")
	require.Equal(t, math.MaxInt, l.PeerDefault.FD)
	small := DefaultLimits.Scale(1<<40, 1<<20).limits
	require.Equal(t, 1<<20, small.System.FD)
	for i, huge := range l.single() {
		a, b := limitsOf(*huge), limitsOf(*small.single()[i])
		for d := range a {
			require.GreaterOrEqual(t, a[d], b[d], "scope %d, dimension %d", i, d)
		}
	}

	var most BaseLimit
	var steepest BaseLimitIncrease
	for _, n := range (*scopeLimits[int, int64])(&most).counts() {
		*n = math.MaxInt
	}
	for _, n := range steepest.counts() {
		*n = math.MaxInt
	}
	most.Memory, steepest.Memory, steepest.FDFraction = math.MaxInt64, math.MaxInt64, 1
	for _, memory := range []int64{0, 1 << 30, math.MaxInt64} {
		for _, base := range []BaseLimit{{}, most} {
			cfg := ScalingLimitConfig{ConnBaseLimit: base, ConnLimitIncrease: steepest}
			want := most
			if memory == 0 {
				want = base
				want.FD = math.MaxInt
			}
			require.Equal(t, want, cfg.Scale(memory, math.MaxInt).limits.Conn)
		}
	}
	require.Equal(t, int64(-math.MaxInt64), grow(math.MinInt64, math.MinInt64, 1<<20, math.MaxInt64), "never wraps")
}

func TestPartNeverWraps(t *testing.T) {
	allButOne := math.MaxInt - 1
	if math.MaxInt == math.MaxInt64 {
		allButOne = math.MaxInt // a float64 is not that precise
	}
	for _, c := range []struct {
		n        int
		fraction float64
		want     int
	}{
		{0, 1, 0},
		{1001, 0.5, 500},
		{1024, 1.0 / 64, 16},
		{1000, 1, 1000},
		{math.MaxInt, 1e-9, math.MaxInt},
		{math.MaxInt - 1, 1, allButOne},
		{math.MaxInt - 1, 2, math.MaxInt},
		{1, math.Inf(1), math.MaxInt},
	} {
		got := part(c.n, c.fraction)
		require.Equal(t, c.want, got, "%v of %d", c.fraction, c.n)
	}
	cfg := ScalingLimitConfig{SystemBaseLimit: BaseLimit{FD: 5}, SystemLimitIncrease: BaseLimitIncrease{FDFraction: math.NaN()}}
	require.Equal(t, 5, cfg.Scale(0, 100).limits.System.FD)
}

func TestAutoScaleTakesThisMachine(t *testing.T) {
	scaled := DefaultLimits.scaleTo(Machine{Memory: 8 << 33, FileDescriptors: 1000})
	require.Equal(t, DefaultLimits.Scale(1<<33, 500).limits, scaled.limits, "an eighth of the memory, half of the descriptors")
	require.Equal(t, Sizing{Rules: "ScalingLimitConfig", Memory: 1 << 33, FileDescriptors: 500,
		Machine: Machine{Memory: 8 << 33, FileDescriptors: 1000}}, scaled.sizing)
	unlimited := DefaultLimits.scaleTo(Machine{Memory: 1 << 30, FileDescriptors: Unlimited})
	require.Equal(t, math.MaxInt, unlimited.limits.System.FD)

	m := ThisMachine()
	require.Equal(t, DefaultLimits.scaleTo(m).limits, DefaultLimits.AutoScale().limits)
	if fds := m.descriptors(); fds == 0 || fds == math.MaxInt || m.MemoryFrom != "host" {
		t.Skip("upstream takes unknown and unlimited descriptors for others, and knows the host's memory only")
	}
	cfg := ScalingLimitConfig{SystemLimitIncrease: systemIncrease, ConnBaseLimit: systemBase}
	up := theirScaling(t, cfg)
	requireSameConcrete(t, up.AutoScale(), cfg.AutoScale())
}

func TestAddSetsEachMapOfUpstreams(t *testing.T) {
	base, inc := BaseLimit{Streams: 1, FD: 2, Memory: 3}, BaseLimitIncrease{Conns: 4, FDFraction: 0.5}
	upBase, upInc := theirBase(t, base), theirIncrease(t, inc)
	var ours ScalingLimitConfig
	var up upstream.ScalingLimitConfig
	for range 2 {
		ours.AddServiceLimit("s", base, inc)
		up.AddServiceLimit("s", upBase, upInc)
		ours.AddServicePeerLimit("sp", base, inc)
		up.AddServicePeerLimit("sp", upBase, upInc)
		ours.AddProtocolLimit("p", base, inc)
		up.AddProtocolLimit("p", upBase, upInc)
		ours.AddProtocolPeerLimit("pp", base, inc)
		up.AddProtocolPeerLimit("pp", upBase, upInc)
		ours.AddPeerLimit("x", base, inc)
		up.AddPeerLimit("x", upBase, upInc)
		require.Equal(t, toJSON(t, up), toJSON(t, ours))
		base.Streams, upBase.Streams = 9, 9
	}
}

func TestDefaultLimiterLeavesTheGlobalAlone(t *testing.T) {
	defer func(was ScalingLimitConfig) { DefaultLimits = was }(DefaultLimits)
	DefaultLimits = DefaultLimits.withOwnMaps()
	// Maps that are there already are those that a copy would share.
	mine := BaseLimit{Streams: 11}
	DefaultLimits.AddServiceLimit("mine", mine, BaseLimitIncrease{})
	DefaultLimits.AddServicePeerLimit("mine", mine, BaseLimitIncrease{})
	DefaultLimits.AddProtocolLimit("mine", mine, BaseLimitIncrease{})
	DefaultLimits.AddProtocolPeerLimit("mine", mine, BaseLimitIncrease{})
	DefaultLimits.AddPeerLimit("mine", mine, BaseLimitIncrease{})
	before := toJSON(t, DefaultLimits)

	l := defaultLimiter()
	require.Equal(t, before, toJSON(t, DefaultLimits))
	require.Equal(t, &mine, l.GetServiceLimits("mine"))
	require.Equal(t, 4, l.GetServicePeerLimits(pingService).GetStreamTotalLimit())

	own := DefaultLimits.withOwnMaps()
	own.AddPeerLimit(peer.ID("other"), mine, BaseLimitIncrease{})
	require.Equal(t, before, toJSON(t, DefaultLimits))
}

func TestDefaultsByMemorySize(t *testing.T) {
	type size struct {
		name   string
		memory int64
		fds    int
	}
	cfg := DefaultLimits.withOwnMaps()
	SetDefaultServiceLimits(&cfg)
	scaled := make(map[string]ConcreteLimitConfig)
	for _, s := range []size{
		{"512 MiB, 1024 descriptors", 512 << 20, 1 << 10},
		{"2 GiB, 4096 descriptors", 2 << 30, 4 << 10},
		{"8 GiB, 16384 descriptors", 8 << 30, 16 << 10},
		{"64 GiB, 131072 descriptors", 64 << 30, 128 << 10},
	} {
		scaled[s.name] = cfg.Scale(s.memory, s.fds)
	}
	got, err := json.MarshalIndent(scaled, "", "  ")
	require.NoError(t, err)
	if *update {
		require.NoError(t, os.WriteFile("testdata/defaults.json", append(got, '\n'), 0o644))
	}
	want, err := os.ReadFile("testdata/defaults.json")
	require.NoError(t, err)
	require.Equal(t, strings.ReplaceAll(string(want), "\r\n", "\n"), string(got)+"\n")
}
