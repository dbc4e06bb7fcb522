package rcmgr

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// bySubnet is unlimited but for the connections of subnets.
func bySubnet(s SubnetLimits) Limiter {
	free := map[int]ConnRate{}
	g := &GateLimits{Subnets: s, Rate: RateLimits{IPv4: free, IPv6: free}}
	return NewFixedLimiter(PartialLimitConfig{Gates: g}.Build(InfiniteLimits))
}

func ofIPv4(levels map[int]LimitVal) SubnetLimits {
	return SubnetLimits{IPv4: levels, IPv6: map[int]LimitVal{}}
}

func ofNetworks(networks map[string]LimitVal) SubnetLimits {
	s := ofIPv4(map[int]LimitVal{})
	s.Networks = make(map[netip.Prefix]LimitVal)
	for n, v := range networks {
		s.Networks[netip.MustParsePrefix(n)] = v
	}
	return s
}

func TestGatesThatChangeGoOnCountingWhatIsOpen(t *testing.T) {
	const far = "/ip4/192.0.2.1/tcp/1"
	for name, c := range map[string]struct {
		before, after SubnetLimits
		room          int  // for more, after 5 are open
		lost          bool // going back, some are in no subnet of known size
	}{
		"a lower limit":           {ofIPv4(map[int]LimitVal{32: 8}), ofIPv4(map[int]LimitVal{32: 3}), 0, false},
		"a higher limit":          {ofIPv4(map[int]LimitVal{32: 5}), ofIPv4(map[int]LimitVal{32: 7}), 2, false},
		"a wider level":           {ofIPv4(map[int]LimitVal{32: 8}), ofIPv4(map[int]LimitVal{24: 6}), 1, true},
		"one more level":          {ofIPv4(map[int]LimitVal{32: 8}), ofIPv4(map[int]LimitVal{32: 9, 24: 7, 16: 8}), 2, false},
		"a narrower level":        {ofIPv4(map[int]LimitVal{24: 8}), ofIPv4(map[int]LimitVal{32: 9, 24: 7}), 2, false},
		"a level to a network":    {ofIPv4(map[int]LimitVal{32: 8}), ofNetworks(map[string]LimitVal{"192.0.0.0/8": 6}), 1, true},
		"a network to a level":    {ofNetworks(map[string]LimitVal{"192.0.2.0/28": 8}), ofIPv4(map[int]LimitVal{16: 6}), 1, true},
		"a network to a larger":   {ofNetworks(map[string]LimitVal{"192.0.2.0/28": 8}), ofNetworks(map[string]LimitVal{"192.0.2.0/24": 6}), 1, true},
		"a network to no limit":   {ofNetworks(map[string]LimitVal{"192.0.2.0/28": 8}), ofNetworks(map[string]LimitVal{"192.0.2.0/28": Unlimited}), 10, true},
		"no limit at all":         {ofIPv4(map[int]LimitVal{32: 8}), ofIPv4(map[int]LimitVal{}), 10, true},
		"other levels altogether": {ofIPv4(map[int]LimitVal{16: 8}), ofIPv4(map[int]LimitVal{24: 3}), 3, true}, // which of them are in it is not known
	} {
		t.Run(name, func(t *testing.T) {
			m, err := New(bySubnet(c.before))
			require.NoError(t, err)
			defer m.Close()
			open := func(n int) (all []network.ConnManagementScope) {
				for range n {
					scope, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(far))
					if err != nil {
						require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
						return all
					}
					all = append(all, scope)
				}
				return all
			}
			before := open(5)
			require.Len(t, before, 5)
			require.NoError(t, m.SetLimits(bySubnet(c.after)))
			after := open(10)
			require.Len(t, after, c.room)

			// Again, and back: an heir has an heir.
			require.NoError(t, m.SetLimits(bySubnet(c.before)))
			require.NoError(t, m.SetLimits(bySubnet(c.after)))
			if !c.lost {
				require.Empty(t, open(1))
			}
			for _, scope := range append(before, after...) {
				scope.Done()
			}
			requireGatesEmpty(t, m)
			for _, scope := range open(3) {
				scope.Done()
			}
			requireGatesEmpty(t, m)
		})
	}
}

func TestGatesThatStayAsTheyAreKeepTheirTokens(t *testing.T) {
	m := newFrom(t, InfiniteLimits)
	require.NoError(t, m.SetLimits(NewFixedLimiter(DefaultLimits.Scale(1<<30, 100))))
	g := m.gate()
	require.NoError(t, m.SetLimits(NewFixedLimiter(DefaultLimits.Scale(1<<31, 100))))
	require.Same(t, g, m.gate())
	require.NoError(t, m.SetLimits(bySubnet(ofIPv4(map[int]LimitVal{32: 1}))))
	require.NotSame(t, g, m.gate())
}

func TestOptionsGoBeforeGatesThatChange(t *testing.T) {
	m, err := New(bySubnet(ofIPv4(map[int]LimitVal{32: 8})), WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 2}}, nil), WithGates(GateLimits{Outbound: pointerTo(true)}))
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.SetLimits(bySubnet(SubnetLimits{IPv4: map[int]LimitVal{32: 9}, IPv6: map[int]LimitVal{64: 5}})))
	g := m.Limits().ToPartialLimitConfig().Gates
	require.Equal(t, map[int]LimitVal{32: 2}, g.Subnets.IPv4)
	require.Equal(t, map[int]LimitVal{64: 5}, g.Subnets.IPv6)
	require.True(t, *g.Outbound)
}

func TestRefusalsOfGatesThatChangeStayCountedAndAreLogged(t *testing.T) {
	logged := collectLog(t, 8)
	m, err := New(bySubnet(ofIPv4(map[int]LimitVal{32: BlockAllLimit})))
	require.NoError(t, err)
	refuse := func() {
		_, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	}
	refuse()
	require.NoError(t, m.SetLimits(bySubnet(ofIPv4(map[int]LimitVal{24: BlockAllLimit}))))
	refuse()
	s := m.Snapshot()
	require.EqualValues(t, 2, s.Refusals[KindSubnet].ConnsInbound)
	m.Close()
	lines := logged.take()
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], "resource limits 2 times")
}

func TestRefusalsByReplacedGatesAreStillLogged(t *testing.T) {
	logged := collectLog(t, 8)
	m, err := New(bySubnet(ofIPv4(map[int]LimitVal{32: BlockAllLimit})))
	require.NoError(t, err)
	_, err = m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	require.NoError(t, m.SetLimits(bySubnet(ofIPv4(map[int]LimitVal{24: 5}))))
	m.Close()
	lines := logged.take()
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], "worst=subnet:192.0.2.1/32")
}

// A connection that waited for the gates while they retired asks their heirs.
func TestReplacedGatesAdmitNothing(t *testing.T) {
	m, err := New(bySubnet(ofIPv4(map[int]LimitVal{32: 8})))
	require.NoError(t, err)
	defer m.Close()
	last, addr := m.gate(), netip.MustParseAddr("192.0.2.1")
	require.NoError(t, m.SetLimits(bySubnet(ofIPv4(map[int]LimitVal{32: 1}))))
	var pass subnets.Pass
	why, ok := last.enter(addr, dimConnsIn, &pass)
	require.Equal(t, subnets.Pass{Addr: addr, Key: ip.KeyOf(addr)}, pass)
	require.False(t, ok)
	require.Nil(t, why)
	require.Zero(t, countEntries(t, last.subnets))
	why = m.enterGates(addr, dimConnsIn, &pass)
	require.NotNil(t, pass.Conns)
	require.Nil(t, why)
	why = m.enterGates(addr, dimConnsIn, &subnets.Pass{})
	require.NotNil(t, why)
}

// Connections come and go while gates change; nothing is left in any of them.
func TestGatesChangeUnderLoadAndNothingIsLeft(t *testing.T) {
	random := func(r *rand.Rand) Limiter {
		s := ofNetworks(map[string]LimitVal{})
		for range r.IntN(3) {
			s.IPv4[[]int{16, 20, 24, 28, 32}[r.IntN(5)]] = LimitVal(1 + r.IntN(20))
		}
		for range r.IntN(3) {
			p, err := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), 0}).Prefix(16 + 4*r.IntN(4))
			require.NoError(t, err)
			s.Networks[p] = []LimitVal{Unlimited, LimitVal(1 + r.IntN(20))}[r.IntN(2)]
		}
		rates := RateLimits{IPv4: map[int]ConnRate{24: {PerSecond: 1e6, Burst: 1000}}, Networks: make(map[netip.Prefix]ConnRate)}
		for n := range s.Networks {
			wider, err := n.Addr().Prefix(n.Bits() - r.IntN(3)*4)
			require.NoError(t, err)
			rates.Networks[wider] = ConnRate{PerSecond: 1e6, Burst: 1000}
		}
		return NewFixedLimiter(PartialLimitConfig{Gates: &GateLimits{Subnets: s, Rate: rates}}.Build(InfiniteLimits))
	}
	m, err := New(random(testRandom(t)))
	require.NoError(t, err)
	defer m.Close()
	var mu sync.Mutex
	gates := map[*gate]bool{m.gate(): true}
	together(t, 5, func(id int, r *rand.Rand) {
		var held []network.ConnManagementScope
		for step := range stressSteps() {
			switch {
			case id == 0 && step%4 == 0:
				if err := m.SetLimits(random(r)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				gates[m.gate()] = true
				mu.Unlock()
			case len(held) > 0 && r.IntN(2) == 0:
				i := r.IntN(len(held))
				held[i].Done()
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			default:
				far := fmt.Sprintf("/ip4/10.0.%d.%d/tcp/1", r.IntN(2), r.IntN(64))
				if c, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(far)); err == nil {
					held = append(held, c)
				}
			}
		}
		for _, c := range held {
			c.Done()
		}
	})
	for g := range gates {
		require.Zero(t, countEntries(t, g.subnets))
	}
	requireGatesEmpty(t, m)
}
