package rcmgr

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestSubnetKeysAreThePrefixesOfNetip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		a, b := randomAddr(rng), randomAddr(rng)
		for bits := range min(a.BitLen(), b.BitLen()) + 1 {
			same := a.BitLen() == b.BitLen() && netip.PrefixFrom(a, bits).Contains(b)
			if a.BitLen() == b.BitLen() {
				require.Equal(t, same, keyOf(a, bits) == keyOf(b, bits), "%s %s /%d", a, b, bits)
			}
			l := level[int]{bits: bits}
			require.Equal(t, netip.PrefixFrom(a, bits).Masked(), l.subnet(a))
		}
	}
}

func TestAllSubnetsOfAnAddressAreUnderOneLock(t *testing.T) {
	p := newPartition[int, int]()
	p.addLevel(ipv6, 56, 1)
	p.addLevel(ipv6, 48, 1)
	p.addLevel(ipv6, 64, 1)
	seen := map[int]bool{}
	for i := range 256 {
		site := p.stripeOf(netip.AddrFrom16([16]byte{0x20, 1, 5: byte(i)}))
		seen[site] = true
		for j := range 16 {
			require.Equal(t, site, p.stripeOf(netip.AddrFrom16([16]byte{0x20, 1, 5: byte(i), 6: byte(j), 7: byte(j), 15: byte(j)})))
		}
	}
	require.Greater(t, len(seen), gateStripes/2, "sites must spread over the stripes")
}

func TestStripesHaveCacheLinesOfTheirOwn(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("sizes are for 64-bit machines")
	}
	require.EqualValues(t, 64, unsafe.Sizeof(subnetStripe{}))
	require.EqualValues(t, 64, unsafe.Sizeof(rateStripe{}))
}

func TestSubnetIntsGiveTheirMemoryBack(t *testing.T) {
	var s subnetInts
	key := func(i int) subnetKey { return subnetKey{lo: uint64(i)} }
	for i := range 100_000 {
		s.set(subnetInt{key(i), int64(i)})
	}
	for i := 10; i < 100_000; i++ {
		s.delete(key(i))
	}
	require.Less(t, s.peak, 128, "the map must have been made anew")
	for i := range 10 {
		v, ok := s.get(key(i))
		require.True(t, ok)
		require.EqualValues(t, i, v)
		s.delete(key(i))
	}
	require.Empty(t, s.m)
}
