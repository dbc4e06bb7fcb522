package subnets

import (
	"net/netip"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

func TestAllSubnetsOfAnAddressAreUnderOneLock(t *testing.T) {
	s := mustSubnets(t, subnetConfig{perSubnet: [ip.Families][]subnetLimit{
		ip.V4: {{32, 1}}, ip.V6: {{56, 1}, {48, 1}, {64, 1}},
	}})
	stripeOf := func(addr netip.Addr) *Stripe {
		return s.stripeOf(ip.KeyOf(addr).Cut(s.families[ip.FamilyOf(addr)].widest))
	}
	seen := map[*Stripe]bool{}
	for i := range 256 {
		site := stripeOf(netip.AddrFrom16([16]byte{0x20, 1, 5: byte(i)}))
		seen[site] = true
		for j := range 16 {
			require.Same(t, site, stripeOf(netip.AddrFrom16([16]byte{0x20, 1, 5: byte(i), 6: byte(j), 7: byte(j), 15: byte(j)})))
		}
	}
	require.Greater(t, len(seen), numStripes/2, "sites must spread over the stripes")
	clear(seen)
	for i := range 256 {
		seen[stripeOf(netip.AddrFrom4([4]byte{11, 0, 0, byte(i)}))] = true
	}
	require.Greater(t, len(seen), numStripes/2, "hosts must spread over the stripes")
}

func TestStripesHaveCacheLinesOfTheirOwn(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("sizes are for 64-bit machines")
	}
	const line = 64
	require.Zero(t, unsafe.Sizeof(Stripe{})%line)
	s := made(t, subnetConfig{}, rateConfig{})
	for i := range s.all() {
		st := &s.all()[i]
		lineOf := func(p unsafe.Pointer) uintptr { return uintptr(p) / line }
		require.Equal(t, lineOf(unsafe.Pointer(st)), lineOf(unsafe.Pointer(&st.mu.table.n)), "what each connection writes")
		require.Less(t, lineOf(unsafe.Pointer(&st.named)), lineOf(unsafe.Add(unsafe.Pointer(st), unsafe.Sizeof(*st))), "nothing on the line of the next")
	}
}

// If a network with a limit on rates is inside one with a limit on connections, both limits hold
// in it, and the other way round.
func TestNetworksInsideEachOtherHaveBothTheirLimitsAndRates(t *testing.T) {
	nets := func(p string, n int) []networkLimit { return []networkLimit{{netip.MustParsePrefix(p), n}} }
	one := rateLimit{perSecond: 1, burst: 1}
	s := made(t,
		subnetConfig{
			perSubnet: [ip.Families][]subnetLimit{{{32, 7}}},
			networks:  [ip.Families][]networkLimit{append(nets("10.0.0.0/8", 2), nets("10.1.1.0/24", 9)...)},
		},
		rateConfig{
			perSubnet: [ip.Families][]subnetRate{{{32, rateLimit{1, 5}}}},
			networks:  [ip.Families][]networkRate{{{netip.MustParsePrefix("10.1.0.0/16"), rateLimit{1, 4}}, {netip.MustParsePrefix("11.0.0.0/8"), one}}},
		})
	s.now = func() int64 { return 0 }
	for addr, want := range map[string]string{
		"10.2.0.1": "subnet 10.0.0.0/8", // two connections, five tokens
		"10.1.2.1": "subnet 10.0.0.0/8",
		"10.1.1.1": "rate 10.1.0.0/16", // nine connections, four tokens
		"11.0.0.1": "rate 11.0.0.0/8",
		"12.0.0.1": "rate 12.0.0.1/32", // seven connections, five tokens
	} {
		var all []Pass
		for {
			var p Pass
			why, ok := s.Enter(netip.MustParseAddr(addr), Inbound, &p)
			if !ok {
				require.Equal(t, want, why.Error(), addr)
				break
			}
			all = append(all, p)
		}
		for _, p := range all {
			p.Undo()
		}
	}
	require.Zero(t, countEntries(t, s))
}
