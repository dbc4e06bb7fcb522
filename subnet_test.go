package rcmgr

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func mustSubnets(t testing.TB, cfg subnetConfig) *subnets {
	t.Helper()
	s, err := newSubnets(cfg, rateConfig{})
	require.NoError(t, err)
	return s
}

// try asks for a place and a token, and returns what is full and its limit if there
// are none.
func (s *subnets) try(addr netip.Addr, at time.Duration) (p gatePass, blocked netip.Prefix, limit int, ok bool) {
	s.now = func() int64 { return int64(at) }
	return s.tryNow(addr)
}

// tryNow is try at a time that does not matter, or has been set.
func (s *subnets) tryNow(addr netip.Addr) (p gatePass, blocked netip.Prefix, limit int, ok bool) {
	why, ok := s.enter(addr, dimConnsIn, &p)
	if !ok {
		blocked, limit = why.why.scope.prefix(), int(why.Limit())
	}
	return p, blocked, limit, ok
}

// add is try where there is no limit on rates.
func (s *subnets) add(addr netip.Addr) (blocked netip.Prefix, limit int, ok bool) {
	_, blocked, limit, ok = s.tryNow(addr)
	return blocked, limit, ok
}

// subnetModel counts in one map, by the rules as they are documented.
type subnetModel struct {
	cfg  subnetConfig
	held map[string]int
}

// places returns the names and limits of all that an address counts in.
func (m *subnetModel) places(addr netip.Addr) (names []string, prefixes []netip.Prefix, limits []int) {
	f := ipv4
	if addr.Is6() {
		f = ipv6
	}
	best := -1
	for i, n := range m.cfg.networks[f] {
		if n.Network.Contains(addr) && (best < 0 || n.Network.Bits() > m.cfg.networks[f][best].Network.Bits()) {
			best = i
		}
	}
	if best >= 0 {
		n := m.cfg.networks[f][best]
		return []string{"network " + n.Network.String()}, []netip.Prefix{n.Network}, []int{n.ConnCount}
	}
	levels := slices.SortedFunc(slices.Values(m.cfg.perSubnet[f]), func(a, b ConnLimitPerSubnet) int {
		return cmp.Or(cmp.Compare(b.PrefixLength, a.PrefixLength), cmp.Compare(a.ConnCount, b.ConnCount))
	})
	for i, l := range levels {
		p, _ := addr.Prefix(l.PrefixLength)
		names = append(names, fmt.Sprint("level ", i, p))
		prefixes = append(prefixes, p)
		limits = append(limits, l.ConnCount)
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
	for f := range numFamilies {
		for range rng.IntN(4) {
			cfg.perSubnet[f] = append(cfg.perSubnet[f], ConnLimitPerSubnet{rng.IntN(f.bitLen() + 1), rng.IntN(6)})
		}
		listed := map[netip.Prefix]bool{}
		for range rng.IntN(5) {
			addr := randomAddr(rng)
			network := netip.PrefixFrom(addr, 8+rng.IntN(addr.BitLen()-7)).Masked()
			if familyOf(addr) == f && !listed[network] {
				cfg.networks[f] = append(cfg.networks[f], NetworkPrefixLimit{network, rng.IntN(6)})
				listed[network] = true
			}
		}
	}
	return cfg
}

func TestSubnetsCountLikeOneMap(t *testing.T) {
	rng := testRandom(t)
	for range 200 {
		cfg := randomSubnetConfig(rng)
		s, m := mustSubnets(t, cfg), &subnetModel{cfg, map[string]int{}}
		type opened struct {
			addr netip.Addr
			pass gatePass
		}
		var open []opened
		leave := func(i int) {
			require.True(t, m.remove(open[i].addr))
			if open[i].pass.conns != nil {
				open[i].pass.conns.leave(open[i].pass.key)
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
			checkRecords(t, s)
		}
		for len(open) > 0 {
			leave(len(open) - 1)
		}
		require.Zero(t, countEntries(t, s), "%+v", cfg)
		requireNoRecords(t, s)
	}
}

// nthAddr parses an address in which # stands for a hexadecimal number.
func nthAddr(format string, i int) netip.Addr {
	return netip.MustParseAddr(strings.ReplaceAll(format, "#", fmt.Sprintf("%x", i)))
}

func TestSubnetDefaults(t *testing.T) {
	s := mustSubnets(t, defaultSubnetConfig())
	fill := func(format string, n int) (blocked netip.Prefix, limit, admitted int) {
		for i := range n {
			b, l, ok := s.add(nthAddr(format, i))
			if !ok {
				return b, l, i
			}
		}
		return blocked, limit, n
	}
	for _, c := range []struct {
		format, blocked string
		limit           int
	}{
		{"192.0.2.1", "192.0.2.1/32", 8},
		{"2001:db8:1::#", "2001:db8:1::/56", 8},
		{"2001:db8:2:#00::1", "2001:db8:2::/48", 64},
	} {
		blocked, limit, admitted := fill(c.format, 200)
		require.Equal(t, []any{c.blocked, c.limit, c.limit}, []any{blocked.String(), limit, admitted})
	}
	for _, loopback := range []string{"127.0.0.1", "127.8.9.10", "::1"} {
		_, _, admitted := fill(loopback, 200)
		require.Equal(t, 200, admitted, loopback)
		p, _, _, _ := s.try(netip.MustParseAddr(loopback), 0)
		require.Nil(t, p.conns, "what is not limited is not counted")
	}
}

func TestMostSpecificNetworkWinsAndReplacesSubnets(t *testing.T) {
	cfg := subnetConfig{
		perSubnet: [numFamilies][]ConnLimitPerSubnet{ipv4: {{32, 1}}},
		networks: [numFamilies][]NetworkPrefixLimit{ipv4: {
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
	cfg := subnetConfig{networks: [numFamilies][]NetworkPrefixLimit{ipv6: {{netip.MustParsePrefix("::ffff:192.0.2.0/120"), 0}}}}
	blocked, _, ok := mustSubnets(t, cfg).add(netip.MustParseAddr("192.0.2.9"))
	require.False(t, ok)
	require.Equal(t, "192.0.2.0/24", blocked.String())
}

func TestNoAddressIsInNoSubnet(t *testing.T) {
	s := mustSubnets(t, subnetConfig{perSubnet: [numFamilies][]ConnLimitPerSubnet{{{0, 0}}, {{0, 0}}}})
	p, _, _, ok := s.try(netip.Addr{}, 0)
	require.True(t, ok)
	require.Zero(t, p)
}

func TestBadSubnetLimitsAreErrorsThatNameThem(t *testing.T) {
	perSubnet := func(f family, l ConnLimitPerSubnet) (cfg subnetConfig) {
		cfg.perSubnet[f] = []ConnLimitPerSubnet{{8, 1}, l}
		return cfg
	}
	network := func(f family, n netip.Prefix, count int) (cfg subnetConfig) {
		cfg.networks[f] = []NetworkPrefixLimit{{n, count}}
		return cfg
	}
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")
	for want, cfg := range map[string]subnetConfig{
		"WithLimitPerSubnet: ipv4[1]: PrefixLength is 33, expected 0 to 32":                               perSubnet(ipv4, ConnLimitPerSubnet{33, 1}),
		"WithLimitPerSubnet: ipv6[1]: PrefixLength is 129, expected 0 to 128":                             perSubnet(ipv6, ConnLimitPerSubnet{129, math.MaxInt}),
		"WithLimitPerSubnet: ipv6[1]: PrefixLength is -1, expected 0 to 128":                              perSubnet(ipv6, ConnLimitPerSubnet{-1, 1}),
		"WithLimitPerSubnet: ipv4[1]: ConnCount is -1, expected 0 or more":                                perSubnet(ipv4, ConnLimitPerSubnet{32, -1}),
		"WithNetworkPrefixLimit: ipv4[0]: expected an ipv4 prefix as Network, got 2001:db8::/32":          network(ipv4, v6, 1),
		"WithNetworkPrefixLimit: ipv6[0]: expected an ipv6 prefix as Network, got 10.0.0.0/8":             network(ipv6, v4, 1),
		"WithNetworkPrefixLimit: ipv6[0]: expected an ipv6 prefix as Network, got none or an invalid one": network(ipv6, netip.Prefix{}, 1),
		"WithNetworkPrefixLimit: ipv4[0]: ConnCount is -5, expected 0 or more":                            network(ipv4, v4, -5),
	} {
		_, err := newSubnets(cfg, rateConfig{})
		require.EqualError(t, err, want)
	}
}

func TestSubnetLimitsAreCopied(t *testing.T) {
	networks := []NetworkPrefixLimit{{netip.MustParsePrefix("10.0.0.0/8"), 1}, {netip.MustParsePrefix("10.1.0.0/16"), 1}}
	levels := []ConnLimitPerSubnet{{16, 1}, {32, 1}}
	cfg := subnetConfig{
		perSubnet: [numFamilies][]ConnLimitPerSubnet{ipv4: slices.Clone(levels)},
		networks:  [numFamilies][]NetworkPrefixLimit{ipv4: slices.Clone(networks)},
	}
	s := mustSubnets(t, cfg)
	require.Equal(t, levels, cfg.perSubnet[ipv4])
	require.Equal(t, networks, cfg.networks[ipv4])
	cfg.perSubnet[ipv4][0].ConnCount, cfg.networks[ipv4][1].ConnCount = 9, 9
	for _, addr := range []string{"10.1.0.1", "192.0.2.1"} {
		_, _, first := s.add(netip.MustParseAddr(addr))
		_, _, second := s.add(netip.MustParseAddr(addr))
		require.Equal(t, []bool{true, false}, []bool{first, second}, addr)
	}
}

func TestRefusedAndClosedAddressesLeaveNothing(t *testing.T) {
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}) }
	s := mustSubnets(t, subnetConfig{perSubnet: [numFamilies][]ConnLimitPerSubnet{ipv4: {{32, 8}, {8, 1}}}})
	_, _, ok := s.add(addr(0))
	require.True(t, ok)
	for i := range 100_000 {
		_, _, ok := s.add(addr(i))
		require.False(t, ok)
	}
	require.Equal(t, 2, countEntries(t, s), "refused addresses must not be kept")

	s = mustSubnets(t, defaultSubnetConfig())
	var all []gatePass
	for i := range 100_000 {
		p, _, _, _ := s.try(addr(i), 0)
		all = append(all, p)
	}
	require.Equal(t, 100_000, countEntries(t, s))
	for _, p := range all {
		p.conns.leave(p.key)
	}
	require.Zero(t, countEntries(t, s), "closed addresses must not be kept")
	requireNoRecords(t, s)
}

// Where a record is forgotten, another may move up; it is looked at next.
func TestForgettingASubnetAlsoLooksAtTheRecordThatMovesUp(t *testing.T) {
	var st subnetStripe
	st.mu.table = newSubnetTable(subnetHash{}) // all its records have one home
	for i := range uint64(6) {
		k := subnetKey{lo: i}
		free, _ := st.mu.table.find(k, 1)
		st.mu.table.add(free, k, 1).fullAt = 1
		st.mu.owing++
	}
	st.reachedLocked(1)
	st.forgetLocked(5) // all but the one in the home, which comes last
	require.Equal(t, 1, st.mu.table.n)
	require.Equal(t, 1, st.mu.owing)
}

// holders adds and removes an address from many goroutines, and returns the most
// that were ever held at once and how many adds were refused.
func holders(s *subnets, goroutines, rounds int, addr func(int) netip.Addr) (most, refused int64) {
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
				runtime.Gosched() // so that more are held than there are processors
				held.Add(-1)
				p.conns.leave(p.key)
			}
		})
	}
	wg.Wait()
	return peak.Load(), refusals.Load()
}

func TestSubnetsAreExactUnderConcurrency(t *testing.T) {
	const limit, rounds = 4, 3000
	cfg := subnetConfig{
		perSubnet: [numFamilies][]ConnLimitPerSubnet{ipv6: {{56, 1}, {48, limit}}},
		networks:  [numFamilies][]NetworkPrefixLimit{ipv4: {{netip.MustParsePrefix("10.0.0.0/8"), limit}}},
	}
	inNetwork := func(g int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(g)}) }
	inSite := func(g int) netip.Addr { return netip.AddrFrom16([16]byte{0x20, 1, 6: byte(g)}) }
	for name, addr := range map[string]func(int) netip.Addr{"network": inNetwork, "site": inSite} {
		t.Run(name+" with room refuses nobody", func(t *testing.T) {
			s := mustSubnets(t, cfg)
			most, refused := holders(s, limit, rounds, addr)
			require.Zero(t, refused)
			require.LessOrEqual(t, most, int64(limit))
			require.Zero(t, countEntries(t, s))
		})
		t.Run(name+" without room never overshoots", func(t *testing.T) {
			s := mustSubnets(t, cfg)
			most, _ := holders(s, 4*limit, rounds, addr)
			require.LessOrEqual(t, most, int64(limit))
			for g := range limit {
				_, _, ok := s.add(addr(g))
				require.True(t, ok, "all room must be back")
			}
		})
	}
	t.Run("a refusal takes nobody's room", func(t *testing.T) {
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
	s := mustSubnets(t, defaultSubnetConfig())
	addr := netip.MustParseAddr("2001:db8::1")
	for range 8 {
		s.add(addr)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { s.enter(addr, dimConnsIn, &gatePass{}) }))
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
			s := mustSubnets(b, defaultSubnetConfig())
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				var p gatePass
				s.enter(addr(i), dimConnsIn, &p)
				if p.conns != nil {
					p.conns.leave(p.key)
				}
			}
		})
		b.Run("parallel/"+name, func(b *testing.B) {
			s := mustSubnets(b, defaultSubnetConfig())
			var worker atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(worker.Add(1)) << 20; pb.Next(); i++ {
					var p gatePass
					s.enter(addr(i), dimConnsIn, &p)
					if p.conns != nil {
						p.conns.leave(p.key)
					}
				}
			})
		})
	}
	b.Run("refused", func(b *testing.B) {
		s := mustSubnets(b, defaultSubnetConfig())
		addr := netip.MustParseAddr("192.0.2.1")
		for range connsPerHost {
			s.add(addr)
		}
		b.ReportAllocs()
		for b.Loop() {
			s.enter(addr, dimConnsIn, &gatePass{})
		}
	})
}
