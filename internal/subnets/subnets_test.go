package subnets

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/testseed"
)

// subnetModel counts connections in one map, by the documented rules.
type subnetModel struct {
	cfg  subnetConfig
	held map[string]int
}

// places returns the names, prefixes and limits of all subnets in which an address counts.
func (m *subnetModel) places(addr netip.Addr) (names []string, prefixes []netip.Prefix, limits []int) {
	f := ip.V4
	if addr.Is6() {
		f = ip.V6
	}
	best := -1
	for i, n := range m.cfg.networks[f] {
		if n.network.Contains(addr) && (best < 0 || n.network.Bits() > m.cfg.networks[f][best].network.Bits()) {
			best = i
		}
	}
	if best >= 0 {
		n := m.cfg.networks[f][best]
		return []string{"network " + n.network.String()}, []netip.Prefix{n.network}, []int{n.conns}
	}
	levels := slices.SortedFunc(slices.Values(m.cfg.perSubnet[f]), func(a, b subnetLimit) int {
		return cmp.Or(cmp.Compare(b.prefixLength, a.prefixLength), cmp.Compare(a.conns, b.conns))
	})
	for i, l := range levels {
		p, _ := addr.Prefix(l.prefixLength)
		names = append(names, fmt.Sprint("level ", i, p))
		prefixes = append(prefixes, p)
		limits = append(limits, l.conns)
	}
	return names, prefixes, limits
}

func (m *subnetModel) add(addr netip.Addr) (netip.Prefix, int, bool) {
	names, prefixes, limits := m.places(addr)
	for i, name := range names {
		if m.held[name] >= limits[i] {
			return prefixes[i], limits[i], false
		}
	}
	for _, name := range names {
		m.held[name]++
	}
	return netip.Prefix{}, 0, true
}

func (m *subnetModel) remove(addr netip.Addr) bool {
	names, _, _ := m.places(addr)
	for _, name := range names {
		if m.held[name] == 0 {
			return false
		}
	}
	for _, name := range names {
		m.held[name]--
	}
	return true
}

func randomSubnetConfig(rng *rand.Rand) (cfg subnetConfig) {
	for f := range ip.Families {
		for range rng.IntN(4) {
			cfg.perSubnet[f] = append(cfg.perSubnet[f], subnetLimit{rng.IntN(f.BitLen() + 1), rng.IntN(6)})
		}
		listed := map[netip.Prefix]bool{}
		for range rng.IntN(5) {
			addr := randomAddr(rng)
			network := netip.PrefixFrom(addr, 8+rng.IntN(addr.BitLen()-7)).Masked()
			if ip.FamilyOf(addr) == f && !listed[network] {
				cfg.networks[f] = append(cfg.networks[f], networkLimit{network, rng.IntN(6)})
				listed[network] = true
			}
		}
	}
	return cfg
}

func TestSubnetsCountConnectionsAsAModelWithOneMapDoes(t *testing.T) {
	rng := testseed.Random(t)
	for range 200 {
		cfg := randomSubnetConfig(rng)
		s, m := mustSubnets(t, cfg), &subnetModel{cfg, map[string]int{}}
		type opened struct {
			addr netip.Addr
			pass Pass
		}
		var open []opened
		leave := func(i int) {
			require.True(t, m.remove(open[i].addr))
			if open[i].pass.Conns != nil {
				open[i].pass.Conns.Leave(open[i].pass.Key)
			}
			open = slices.Delete(open, i, i+1)
		}
		for step := range 300 {
			if len(open) > 0 && rng.IntN(5) < 2 {
				leave(rng.IntN(len(open)))
			} else {
				addr := randomAddr(rng)
				wantBlocked, wantLimit, want := m.add(addr)
				pass, blocked, limit, ok := s.try(addr, 0)
				if blocked != wantBlocked || limit != wantLimit || ok != want {
					t.Fatalf("step %d: add %s to %+v: %v %d %v, expected %v %d %v", step, addr, cfg, blocked, limit, ok, wantBlocked, wantLimit, want)
				}
				if ok {
					open = append(open, opened{addr, pass})
				}
			}
			require.NoError(t, s.Check())
		}
		for len(open) > 0 {
			leave(len(open) - 1)
		}
		require.Zero(t, countEntries(t, s), "%+v", cfg)
		requireNoRecords(t, s)
	}
}

func TestMostSpecificNetworkWinsAndReplacesSubnets(t *testing.T) {
	cfg := subnetConfig{
		perSubnet: [ip.Families][]subnetLimit{ip.V4: {{32, 1}}},
		networks: [ip.Families][]networkLimit{ip.V4: {
			{netip.MustParsePrefix("10.0.0.0/8"), 2},
			{netip.MustParsePrefix("10.1.2.3/16"), 3}, // host bits do not matter
			{netip.MustParsePrefix("10.0.0.0/8"), 7},  // the first entry holds
		}},
	}
	s := mustSubnets(t, cfg)
	for addr, want := range map[string]int{"10.1.0.1": 3, "10.2.0.1": 2, "11.0.0.1": 1} {
		admitted := 0
		for range 9 {
			if _, _, ok := s.add(netip.MustParseAddr(addr)); ok {
				admitted++
			}
		}
		require.Equal(t, want, admitted, addr)
	}
}

func TestMappedNetworksAreIPv4Networks(t *testing.T) {
	cfg := subnetConfig{networks: [ip.Families][]networkLimit{ip.V6: {{netip.MustParsePrefix("::ffff:192.0.2.0/120"), 0}}}}
	blocked, _, ok := mustSubnets(t, cfg).add(netip.MustParseAddr("192.0.2.9"))
	require.False(t, ok)
	require.Equal(t, "192.0.2.0/24", blocked.String())
}

func TestNoAddressIsInNoSubnet(t *testing.T) {
	s := mustSubnets(t, subnetConfig{perSubnet: [ip.Families][]subnetLimit{{{0, 0}}, {{0, 0}}}})
	p, _, _, ok := s.try(netip.Addr{}, 0)
	require.True(t, ok)
	require.Zero(t, p)
}

func TestRefusedAndClosedAddressesLeaveNothing(t *testing.T) {
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}) }
	s := mustSubnets(t, subnetConfig{perSubnet: [ip.Families][]subnetLimit{ip.V4: {{32, 8}, {8, 1}}}})
	_, _, ok := s.add(addr(0))
	require.True(t, ok)
	for i := range 100_000 {
		_, _, ok := s.add(addr(i))
		require.False(t, ok)
	}
	require.Equal(t, 2, countEntries(t, s), "refused addresses must not be kept")

	s = mustSubnets(t, usualSubnets())
	var all []Pass
	for i := range 100_000 {
		p, _, _, _ := s.try(addr(i), 0)
		all = append(all, p)
	}
	require.Equal(t, 100_000, countEntries(t, s))
	for _, p := range all {
		p.Conns.Leave(p.Key)
	}
	require.Zero(t, countEntries(t, s), "closed addresses must not be kept")
	requireNoRecords(t, s)
}

// The wider levels of a subnet count first, and the table may grow for them.
func TestASubnetIsCountedWhereTheTableGrowsForAWiderOne(t *testing.T) {
	s := mustSubnets(t, usualSubnets())
	for i := range 2000 {
		addr := netip.AddrFrom16([16]byte{0x20, 0x01, 4: byte(i >> 8), 5: byte(i)})
		s.add(addr)
		for _, share := range s.Look(addr) {
			require.EqualValues(t, 1, share.Use, "%v", share.Subnet)
		}
	}
}

// When a record is removed, another one may move to its place, and must not be missed.
func TestForgettingASubnetAlsoLooksAtTheRecordThatMovesUp(t *testing.T) {
	var st Stripe
	st.mu.table = newTable(ip.Hash{}) // all its records have one home
	for i := range uint64(6) {
		k := ip.Key{Lo: i}
		free, _ := st.mu.table.find(k, 1)
		st.mu.table.add(free, k, 1).fullAt = 1
		st.mu.owing++
	}
	st.reachedLocked(1)
	st.forgetLocked(5) // removes all records but the one in its home, which comes last
	require.Equal(t, 1, st.mu.table.n)
	require.EqualValues(t, 1, st.mu.owing)
}

// holders enters and leaves with an address in each of many goroutines. It returns the greatest
// number of connections that were held at the same time, and the number of refusals.
func holders(s *Subnets, goroutines, rounds int, addr func(int) netip.Addr) (most, refused int64) {
	var held, peak, refusals atomic.Int64
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for range rounds {
				p, _, _, ok := s.tryNow(addr(g))
				if !ok {
					refusals.Add(1)
					continue
				}
				now := held.Add(1)
				for p := peak.Load(); now > p && !peak.CompareAndSwap(p, now); p = peak.Load() {
				}
				runtime.Gosched() // lets other goroutines hold connections at the same time
				held.Add(-1)
				p.Conns.Leave(p.Key)
			}
		})
	}
	wg.Wait()
	return peak.Load(), refusals.Load()
}

func TestSubnetsAreExactUnderConcurrency(t *testing.T) {
	const limit, rounds = 4, 3000
	cfg := subnetConfig{
		perSubnet: [ip.Families][]subnetLimit{ip.V6: {{56, 1}, {48, limit}}},
		networks:  [ip.Families][]networkLimit{ip.V4: {{netip.MustParsePrefix("10.0.0.0/8"), limit}}},
	}
	inNetwork := func(g int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(g)}) }
	inSite := func(g int) netip.Addr { return netip.AddrFrom16([16]byte{0x20, 1, 6: byte(g)}) }
	for name, addr := range map[string]func(int) netip.Addr{"network": inNetwork, "site": inSite} {
		t.Run(name+" with room refuses no connection", func(t *testing.T) {
			s := mustSubnets(t, cfg)
			most, refused := holders(s, limit, rounds, addr)
			require.Zero(t, refused)
			require.LessOrEqual(t, most, int64(limit))
			require.Zero(t, countEntries(t, s))
		})
		t.Run(name+" never exceeds its limit", func(t *testing.T) {
			s := mustSubnets(t, cfg)
			most, _ := holders(s, 4*limit, rounds, addr)
			require.LessOrEqual(t, most, int64(limit))
			for g := range limit {
				_, _, ok := s.add(addr(g))
				require.True(t, ok, "all connections must have left")
			}
		})
	}
	t.Run("a refusal takes no room from other connections", func(t *testing.T) {
		s := mustSubnets(t, cfg)
		_, _, ok := s.add(inSite(0))
		require.True(t, ok)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for range rounds {
					if _, _, ok := s.add(inSite(0)); ok {
						t.Error("a full subnet admitted another")
					}
				}
			})
		}
		_, refused := holders(s, limit-1, rounds, func(g int) netip.Addr { return inSite(g + 1) })
		wg.Wait()
		require.Zero(t, refused)
	})
}

func TestSubnetsAllocateNothingForARefusal(t *testing.T) {
	s := mustSubnets(t, usualSubnets())
	addr := netip.MustParseAddr("2001:db8::1")
	for range 8 {
		s.add(addr)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { s.Enter(addr, Inbound, &Pass{}) }))
}

func BenchmarkSubnets(b *testing.B) {
	for name, addr := range map[string]func(int) netip.Addr{
		"ipv4": func(i int) netip.Addr {
			return netip.AddrFrom4([4]byte{byte(i>>24) + 1, byte(i >> 16), byte(i >> 8), byte(i)})
		},
		"ipv6": func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i), 1, 15: 1})
		},
		"loopback": func(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, byte(i)}) },
	} {
		b.Run("add+remove/"+name, func(b *testing.B) {
			s := mustSubnets(b, usualSubnets())
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				var p Pass
				s.Enter(addr(i), Inbound, &p)
				if p.Conns != nil {
					p.Conns.Leave(p.Key)
				}
			}
		})
		b.Run("parallel/"+name, func(b *testing.B) {
			s := mustSubnets(b, usualSubnets())
			var worker atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(worker.Add(1)) << 20; pb.Next(); i++ {
					var p Pass
					s.Enter(addr(i), Inbound, &p)
					if p.Conns != nil {
						p.Conns.Leave(p.Key)
					}
				}
			})
		})
	}
	b.Run("refused", func(b *testing.B) {
		s := mustSubnets(b, usualSubnets())
		addr := netip.MustParseAddr("192.0.2.1")
		for range connsPerHost {
			s.add(addr)
		}
		b.ReportAllocs()
		for b.Loop() {
			s.Enter(addr, Inbound, &Pass{})
		}
	})
}
