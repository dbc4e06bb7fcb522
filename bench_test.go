package rcmgr

// The hot path beside its rivals: ours as it comes and with metrics off, which
// must be the same, go-libp2p's as it comes, and the same with its metrics off. All run
// the same workloads through network.ResourceManager, with the same limits, far
// away, and no limit on subnets or rates.
//
//	go test -run '^$' -bench . -count 6 | tee bench.txt && benchstat -col /impl bench.txt

import (
	"fmt"
	"math"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

const (
	farMemory = 256 << 30
	farFDs    = 1 << 20
)

var rivals = []struct {
	impl string
	make func() (network.ResourceManager, error)
}{
	{"ours", func() (network.ResourceManager, error) {
		return NewResourceManager(NewFixedLimiter(DefaultLimits.Scale(farMemory, farFDs)), WithConnRateLimiters(nil))
	}},
	{"ours-without-metrics", func() (network.ResourceManager, error) {
		return NewResourceManager(NewFixedLimiter(DefaultLimits.Scale(farMemory, farFDs)), WithConnRateLimiters(nil),
			WithMetricsDisabled())
	}},
	{"upstream", func() (network.ResourceManager, error) {
		return upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.DefaultLimits.Scale(farMemory, farFDs)))
	}},
	{"upstream-without-metrics", func() (network.ResourceManager, error) {
		return upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.DefaultLimits.Scale(farMemory, farFDs)),
			upstream.WithMetricsDisabled())
	}},
}

// workload is something that is done again and again to a manager. prepare
// gives the i-th round of it.
type workload struct {
	name    string
	prepare func(require.TestingT, network.ResourceManager) func(i int) error
}

// The addresses are loopback, which no gate limits.
var workloads = []workload{
	{"memory", func(t require.TestingT, rm network.ResourceManager) func(int) error {
		s := negotiated(t, rm, "peer")
		return func(int) error {
			if err := s.ReserveMemory(4<<10, network.ReservationPriorityAlways); err != nil {
				return err
			}
			s.ReleaseMemory(4 << 10)
			return nil
		}
	}},
	{"span", func(t require.TestingT, rm network.ResourceManager) func(int) error {
		s := negotiated(t, rm, "peer")
		return func(int) error {
			span, err := s.BeginSpan()
			if err != nil {
				return err
			}
			defer span.Done()
			return span.ReserveMemory(4<<10, network.ReservationPriorityAlways)
		}
	}},
	{"stream", func(t require.TestingT, rm network.ResourceManager) func(int) error {
		peers := names(512)
		return func(i int) error {
			s, err := rm.OpenStream(peers[i%len(peers)], network.DirInbound)
			if err != nil {
				return err
			}
			defer s.Done()
			if err := s.SetProtocol("/proto/1.0.0"); err != nil {
				return err
			}
			if err := s.SetService("service"); err != nil {
				return err
			}
			if err := s.ReserveMemory(4<<10, network.ReservationPriorityAlways); err != nil {
				return err
			}
			s.ReleaseMemory(4 << 10)
			return nil
		}
	}},
	{"connection", func(t require.TestingT, rm network.ResourceManager) func(int) error {
		peers, addrs := names(512), make([]multiaddr.Multiaddr, 512)
		for i := range addrs {
			addrs[i] = multiaddr.StringCast(fmt.Sprintf("/ip4/127.1.%d.%d/tcp/4001", i/256, i%256))
		}
		return func(i int) error {
			c, err := rm.OpenConnection(network.DirInbound, true, addrs[i%len(addrs)])
			if err != nil {
				return err
			}
			defer c.Done()
			return c.SetPeer(peers[i%len(peers)])
		}
	}},
}

func names(n int) []peer.ID {
	peers := make([]peer.ID, n)
	for i := range peers {
		peers[i] = peer.ID(fmt.Sprintf("a peer whose name is as long as theirs %d", i))
	}
	return peers
}

// negotiated opens a stream that has a protocol and a service.
func negotiated(t require.TestingT, rm network.ResourceManager, p peer.ID) network.StreamManagementScope {
	s, err := rm.OpenStream(p, network.DirInbound)
	require.NoError(t, err)
	require.NoError(t, s.SetProtocol("/proto/1.0.0"))
	require.NoError(t, s.SetService("service"))
	return s
}

func BenchmarkHotPath(b *testing.B) {
	for _, w := range workloads {
		for _, r := range rivals {
			b.Run(fmt.Sprintf("work=%s/impl=%s", w.name, r.impl), func(b *testing.B) {
				rm, err := r.make()
				require.NoError(b, err)
				defer rm.Close()
				round := w.prepare(b, rm)
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if err := round(i); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}

// Refusing must be as cheap as admitting: under a flood, refusals are the hot
// path. The system is full, and every open is refused.
func BenchmarkRefusal(b *testing.B) {
	addr := multiaddr.StringCast("/ip4/127.0.0.1/tcp/4001")
	for _, r := range []struct {
		impl string
		make func() (network.ResourceManager, error)
	}{
		{"ours", func() (network.ResourceManager, error) {
			limits := PartialLimitConfig{System: ResourceLimits{ConnsInbound: 64}}.Build(InfiniteLimits)
			return NewResourceManager(NewFixedLimiter(limits), WithConnRateLimiters(nil))
		}},
		{"upstream-without-metrics", func() (network.ResourceManager, error) {
			limits := upstream.PartialLimitConfig{System: upstream.ResourceLimits{ConnsInbound: 64}}.Build(upstream.InfiniteLimits)
			return upstream.NewResourceManager(upstream.NewFixedLimiter(limits), upstream.WithMetricsDisabled())
		}},
	} {
		b.Run("impl="+r.impl, func(b *testing.B) {
			rm, err := r.make()
			require.NoError(b, err)
			defer rm.Close()
			for range 64 {
				_, err := rm.OpenConnection(network.DirInbound, true, addr)
				require.NoError(b, err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := rm.OpenConnection(network.DirInbound, true, addr); err == nil {
					b.Fatal("admitted into a full system")
				}
			}
		})
	}
}

// What an operation may allocate, where the limits are far away.
func TestAllocations(t *testing.T) {
	most := map[string]float64{"memory": 0, "span": 1, "stream": 1, "connection": 1}
	for _, w := range workloads {
		t.Run(w.name, func(t *testing.T) {
			rm, err := rivals[0].make()
			require.NoError(t, err)
			defer rm.Close()
			round := w.prepare(t, rm)
			for i := range 1024 {
				require.NoError(t, round(i)) // all peers, names and shares are there
			}
			i := 0
			got := testing.AllocsPerRun(1000, func() {
				if err := round(i); err != nil {
					t.Error(err)
				}
				i++
			})
			require.LessOrEqual(t, got, most[w.name])
		})
	}
}

// Metrics are read, not reported: on or off, a manager does the same work. The
// only difference is whether a scrape finds it.
func TestMetricsOnOrOffIsTheSameWork(t *testing.T) {
	for _, w := range workloads {
		allocs := make(map[bool]float64)
		for _, on := range []bool{true, false} {
			opts := []Option{WithConnRateLimiters(nil), WithStripes(8)}
			if !on {
				opts = append(opts, WithMetricsDisabled())
			}
			m, err := New(NewFixedLimiter(DefaultLimits.Scale(farMemory, farFDs)), opts...)
			require.NoError(t, err)
			require.Equal(t, on, live.has(m))
			round, i := w.prepare(t, m), 0
			allocs[on] = testing.AllocsPerRun(2000, func() {
				if err := round(i); err != nil {
					t.Error(err)
				}
				i++
			})
			require.NoError(t, m.Close())
		}
		require.Equal(t, allocs[true], allocs[false], w.name)
	}
}

func TestRefusalAllocatesAtMostTwice(t *testing.T) {
	limits := PartialLimitConfig{System: ResourceLimits{StreamsInbound: BlockAllLimit, ConnsInbound: BlockAllLimit, Memory: 1 << 30}}.Build(InfiniteLimits)
	rm, err := New(NewFixedLimiter(limits))
	require.NoError(t, err)
	defer rm.Close()
	addr := multiaddr.StringCast("/ip4/192.0.2.1/tcp/4001")
	s, err := rm.OpenStream("peer", network.DirOutbound)
	require.NoError(t, err)
	defer s.Done()
	for name, refuse := range map[string]func() error{
		"connection": func() error { _, err := rm.OpenConnection(network.DirInbound, true, addr); return err },
		"stream":     func() error { _, err := rm.OpenStream("peer", network.DirInbound); return err },
		"memory":     func() error { return s.ReserveMemory(math.MaxInt, 0) },
	} {
		got := testing.AllocsPerRun(100, func() {
			if err := refuse(); err == nil {
				t.Error("admitted")
			}
		})
		require.LessOrEqual(t, got, 2.0, name)
	}
}
