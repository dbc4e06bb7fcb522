package ip

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/testseed"
)

func TestNormalAddrHasOneFormForEachHost(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1":               "192.0.2.1",
		"::ffff:192.0.2.1":        "192.0.2.1",
		"::ffff:192.0.2.1%eth0":   "192.0.2.1",
		"64:ff9b::192.0.2.1":      "192.0.2.1",
		"64:ff9b::192.0.2.1%eth0": "192.0.2.1",
		"fe80::1%eth0":            "fe80::1",
		"::1":                     "::1",
	} {
		require.Equal(t, netip.MustParseAddr(want), Normal(netip.MustParseAddr(in)), in)
	}
	require.False(t, Normal(netip.Addr{}).IsValid())
}

func TestNormalPrefixCoversTheSameHosts(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.77/24":          "192.0.2.0/24",
		"::ffff:192.0.2.77/120":  "192.0.2.0/24",
		"64:ff9b::192.0.2.0/120": "192.0.2.0/24",
		"::ffff:0.0.0.0/96":      "0.0.0.0/0",
		"::ffff:0.0.0.0/80":      "::/80",
		"64:ff9b::/95":           "64:ff9b::/95",
		"2001:db8::1/32":         "2001:db8::/32",
	} {
		require.Equal(t, netip.MustParsePrefix(want), NormalPrefix(netip.MustParsePrefix(in)), in)
	}
	require.False(t, NormalPrefix(netip.Prefix{}).IsValid())
}

func TestComparePrefixesOrdersByFamilyThenAddressThenLength(t *testing.T) {
	ordered := []netip.Prefix{{}}
	for _, text := range []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/8", "10.0.0.0/9", "10.0.0.0/32", "10.1.0.0/16", "192.0.2.0/24",
		"::/0", "::1/0", "::ffff:10.0.0.0/104", "2001:db8::/32", "2001:db8::/48",
	} {
		ordered = append(ordered, netip.MustParsePrefix(text))
	}
	for i, a := range ordered {
		for j, b := range ordered {
			require.Equal(t, cmp.Compare(i, j), ComparePrefixes(a, b), "%v %v", a, b)
		}
	}
}

func TestCutKeysAreEqualExactlyIfNetipHasTheirAddressesInOnePrefix(t *testing.T) {
	rng := testseed.Random(t)
	for range 200 {
		a, b := randomAddr(rng), randomAddr(rng)
		for bits := range min(a.BitLen(), b.BitLen()) + 1 {
			cut := func(addr netip.Addr) Key { return KeyOf(addr).Cut(uint(addr.BitLen() - bits)) }
			if a.BitLen() == b.BitLen() {
				require.Equal(t, netip.PrefixFrom(a, bits).Contains(b), cut(a) == cut(b), "%s %s /%d", a, b, bits)
			}
			require.Equal(t, netip.PrefixFrom(a, bits).Masked(), cut(a).Prefix(bits))
		}
	}
}

// randomAddr returns one of so few addresses that many share their networks.
func randomAddr(rng *rand.Rand) netip.Addr {
	bit := func() byte { return byte(rng.IntN(2)) }
	if rng.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10 + bit(), bit(), bit(), bit()})
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 5: bit(), 6: bit(), 7: bit(), 15: bit()})
}
