package groups

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/testseed"
)

func count(t *Table) (n int) {
	t.Each(func(*Group) { n++ })
	return n
}

func places(t *Table) (n int) {
	for i := range t.shards {
		n += len(t.shards[i].mu.places)
	}
	return n
}

func TestAPlaceCountsInAllOfItsGroups(t *testing.T) {
	tab := New(func(netip.Addr) string { return "cloud" })
	one := tab.Enter(netip.MustParseAddr("192.0.2.1"), false, false)
	two := tab.Enter(netip.MustParseAddr("192.0.3.1"), false, false)
	one.AddConn(System, 1, 3)
	two.AddConn(System, 0, 1)
	held := make(map[string][2]int64)
	tab.Each(func(g *Group) {
		name := g.Owner()
		if name == "" {
			name = g.Prefix().String()
		}
		held[name] = [2]int64{g.Holds(System, ConnsIn), g.Holds(System, FDs)}
	})
	require.Equal(t, map[string][2]int64{"192.0.2.0/24": {3, 3}, "192.0.3.0/24": {1, 0}, "192.0.0.0/16": {4, 3}, "cloud": {4, 3}}, held)
	claim, by := one.Claim(System, ConnsIn)
	require.EqualValues(t, 3, claim)
	require.Equal(t, netip.MustParsePrefix("192.0.2.0/24"), by.Prefix())
	claim, by = two.Claim(System, ConnsIn)
	require.EqualValues(t, 2, claim)
	require.Equal(t, "cloud", by.Owner())
	tab.Leave(one)
	tab.Leave(two)
	require.Zero(t, count(tab)+places(tab))
}

func TestAMillionNamesLeaveNothingBehind(t *testing.T) {
	n := 0
	tab := New(func(netip.Addr) string { n++; return fmt.Sprint(n) })
	const addrs = 20_000
	var seats []*Seat
	for i := range addrs {
		seats = append(seats, tab.Enter(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), false, false))
	}
	require.LessOrEqual(t, count(tab), 3*addrs)
	for _, s := range seats {
		tab.Leave(s)
	}
	require.Zero(t, count(tab)+places(tab))
}

func TestACrowdThatLeavesAFewBehindLeavesNoMemoryBehind(t *testing.T) {
	tab := New(nil)
	var seats []*Seat
	for i := range 20_000 {
		seats = append(seats, tab.Enter(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), false, false))
	}
	pointer := func(m any) uintptr { return reflect.ValueOf(m).Pointer() }
	var places []map[placeKey]*Place // of the crowd, by shard
	var groups []map[groupKey]*Group
	for i := range tab.shards {
		places, groups = append(places, tab.shards[i].mu.places), append(groups, tab.shards[i].mu.groups)
	}
	for _, s := range seats[64:] {
		tab.Leave(s)
	}
	for i := range tab.shards {
		mu := &tab.shards[i].mu
		require.Less(t, mu.crowds[0], 64, "the most that the map has room for")
		require.NotEqual(t, pointer(places[i]), pointer(mu.places), "it is another map than that of the crowd")
		require.NotEqual(t, pointer(groups[i]), pointer(mu.groups))
	}
}

// Many goroutines enter, join, count and leave at the same time. While any is there, its groups
// are, with what all of them hold; when all have gone, nothing is left.
func TestPlacesOfManyGoroutines(t *testing.T) {
	owners := func(a netip.Addr) string { return fmt.Sprint("owner ", a.AsSlice()[1]%2) }
	tab := New(owners)
	seed := testseed.Random(t).Uint64()
	var all sync.WaitGroup
	for id := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(id)))
			var mine []*Seat
			for range 5000 {
				if len(mine) > 0 && r.IntN(2) == 0 {
					last := len(mine) - 1
					mine[last].AddConn(Transient, 1, -1)
					tab.Leave(mine[last])
					mine = mine[:last]
					continue
				}
				addr := netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(2)), byte(r.IntN(3))})
				if r.IntN(3) == 0 {
					addr = netip.AddrFrom16([16]byte{0x20, 1, 0, byte(r.IntN(2)), 0, byte(r.IntN(2)), 15: byte(r.IntN(9))})
				}
				s := tab.Enter(addr, r.IntN(4) == 0, r.IntN(3) == 0)
				if r.IntN(4) == 0 {
					tab.Join(s)
					tab.Leave(s)
				}
				s.AddConn(Transient, 1, 1)
				mine = append(mine, s)
			}
			for _, s := range mine {
				s.AddConn(Transient, 1, -1)
				tab.Leave(s)
			}
		})
	}
	for range 100 {
		tab.Each(func(g *Group) { _ = g.Holds(Transient, ConnsIn) + g.came.Load() })
	}
	all.Wait()
	require.Zero(t, count(tab)+places(tab))
}

// The owner is asked before the place is there, and another connection from it may enter meanwhile.
func TestAPlaceThatEntersTwiceAtOnceIsThereOnceAndLeavesNothing(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8::1")
	var tab *Table
	var first *Seat
	tab = New(func(netip.Addr) string {
		if first == nil {
			first = new(Seat)
			first = tab.Enter(addr, false, false)
		}
		return "owner"
	})
	second := tab.Enter(addr, false, false)
	require.Same(t, first, second)
	tab.Leave(first)
	tab.Leave(second)
	require.Zero(t, count(tab)+places(tab))
}

// A place that enters again while it is there has the groups that it had.
func TestGroupsThatAreSharedAreTheSame(t *testing.T) {
	tab := New(nil)
	one := tab.Enter(netip.MustParseAddr("2001:db8::1"), false, false)
	relayed := tab.Enter(netip.MustParseAddr("2001:db8::2"), true, false)
	out := tab.Enter(netip.MustParseAddr("2001:db8::3"), false, true)
	require.Same(t, one.place.groups[lowest], relayed.place.groups[lowest])
	require.Same(t, one.place, out.place)
	require.NotSame(t, one.place, relayed.place)
	require.True(t, one.place.groups[lowest].IsSubnet())
	require.EqualValues(t, 2, one.place.groups[lowest].came.Load(), "what this host dialled did not come")
	for _, s := range []*Seat{one, relayed, out} {
		tab.Leave(s)
	}
	require.Zero(t, count(tab))
}
