package evict

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/testseed"
)

// crowd makes candidates at random, as hosts have them: peers in subnets in networks, some of
// which the host can tell apart.
func crowd(r *rand.Rand, n int) ([]Candidate, int) {
	var numbers Numbers[[2]int]
	number := func(level, group int) int { return numbers.Of([2]int{level, group}) }
	networks, perNetwork, perSubnet := 1+r.IntN(20), 1+r.IntN(20), 1+r.IntN(8)
	weighty := r.IntN(4) == 0
	all := make([]Candidate, n)
	for i := range all {
		net := r.IntN(networks)
		sub := net*perNetwork + r.IntN(perNetwork)
		addr := sub*perSubnet + r.IntN(perSubnet)
		c := Candidate{
			Opened: r.Int64N(1 + int64(n)), Weight: 1, Idle: r.IntN(3) == 0, Named: r.IntN(5) == 0, New: r.IntN(6) == 0, Unproven: r.IntN(5) == 0,
			Tie: r.Uint64(), Net: uint64(1 + net),
			Groups: [Levels]int{number(Peer, r.IntN(n)), number(Address, addr), number(Subnet, sub), number(Network, net), NoGroup},
		}
		c.Since = c.Opened - r.Int64N(10)
		if weighty {
			c.Weight = 1 + r.Int64N(1000)
		}
		if r.IntN(4) == 0 {
			c.Value = 1 + r.IntN(5)
		}
		if r.IntN(3) == 0 {
			c.Groups[Owner] = number(Owner, net%3)
		}
		if r.IntN(10) == 0 { // nothing is known of its address
			c.Groups, c.Net = [Levels]int{c.Groups[Peer], NoGroup, NoGroup, NoGroup, NoGroup}, 0
		}
		if r.IntN(8) == 0 {
			c.Keep = Class(1 + r.IntN(3))
		}
		all[i] = c
	}
	return all, numbers.Len()
}

// obvious chooses as Choose says it does, in the most obvious way: it looks at everything anew
// for each victim.
func obvious(all []Candidate, kept []Class, w Want) (victims []int) {
	free := func(i int) bool { return kept[i] == Free && !slices.Contains(victims, i) }
	var total float64
	var opened []int64
	for i, c := range all {
		total += float64(c.Weight)
		if free(i) {
			opened = append(opened, c.Opened)
		}
	}
	average := total / float64(len(all))
	slices.Sort(opened)
	worst := func(i int) (score float64, excess bool) {
		for level, g := range all[i].Groups {
			if g == NoGroup {
				continue
			}
			held := int64(0)
			for j, o := range all {
				if o.Keep == Free && o.Groups[level] == g && !slices.Contains(victims, j) {
					held += o.Weight
				}
			}
			score = max(score, float64(held)/shares[level])
		}
		if excess = score > average; !excess {
			score = average
		}
		if all[i].Idle {
			score *= 2
		}
		return score, excess
	}
	for freed := int64(0); freed < w.Weight && len(victims) < w.Most; {
		best, score, excess := -1, 0.0, false
		for i := range all {
			if !free(i) {
				continue
			}
			s, e := worst(i)
			if best < 0 {
				best, score, excess = i, s, e
				continue
			}
			before := false
			switch a, b := &all[i], &all[best]; {
			case s != score:
				before = s > score
			case e != excess:
				before = e
			case e && a.New != b.New:
				before = b.New
			case e && a.Opened != b.Opened:
				before = (a.Opened > b.Opened) == (w.Order == YoungestFirst)
			case e:
				before = a.Tie < b.Tie
			default:
				median := opened[len(opened)/2]
				if old := a.Opened <= median && !a.New; old != (b.Opened <= median && !b.New) {
					before = old
				} else {
					before = a.Tie<<1 < b.Tie<<1
				}
			}
			if before {
				best, score, excess = i, s, e
			}
		}
		if best < 0 {
			break
		}
		victims = append(victims, best)
		freed += all[best].Weight
	}
	return victims
}

func TestTheChoiceIsTheObviousOne(t *testing.T) {
	r := testseed.Random(t)
	for range 500 {
		all, groups := crowd(r, 1+r.IntN(60))
		w := Want{Weight: 1 + r.Int64N(40), Most: 1 + r.IntN(30), Order: Order(r.IntN(2)), Groups: groups}
		got := Choose(all, w)
		var chosen []int
		for _, v := range got.Victims {
			chosen = append(chosen, v.Index)
		}
		require.Equal(t, obvious(all, got.Kept, w), chosen)
	}
}

// requireWorthy checks what must be true of every choice.
func requireWorthy(t *testing.T, all []Candidate, w Want, c Choice) {
	t.Helper()
	freed, chosen := int64(0), make(map[int]bool)
	for _, v := range c.Victims {
		if freed >= w.Weight || chosen[v.Index] || c.Kept[v.Index] != Free {
			require.FailNow(t, "a victim more than is needed, one that was chosen twice, or one that is kept", "%v", v)
		}
		chosen[v.Index] = true
		freed += all[v.Index].Weight
	}
	require.Equal(t, freed, c.Weight)
	free, rest := 0, 0
	var counts [NumClasses]int
	for i, class := range c.Kept {
		counts[class]++
		if all[i].Keep == Free {
			rest++
		} else if class != all[i].Keep {
			require.FailNow(t, "the host's own decision is overridden", "%v", all[i])
		}
		if class == Free && !chosen[i] {
			free++
		}
	}
	if freed < w.Weight && len(c.Victims) < w.Most {
		require.Zero(t, free, "all that may be let go are let go before a need is not met")
	}
	for i, class := range c.Kept {
		if all[i].Unproven && (class == Rare || class == Longstanding) {
			require.FailNow(t, "what is unproven is kept for its age or its network", "%v", all[i])
		}
	}
	for class := Valued; class < NumClasses; class++ {
		require.LessOrEqual(t, counts[class], rest/parts[class], "%v keeps its part", class)
	}
}

func TestAMillionVictimsAndNoneOfThemWasToBeKept(t *testing.T) {
	victims := 1_000_000
	if testing.Short() {
		victims = 50_000
	}
	r := testseed.Random(t)
	for victims > 0 {
		all, groups := crowd(r, 1+r.IntN(3000))
		for range 8 {
			w := Want{Weight: 1 + r.Int64N(2000), Most: 1 + r.IntN(2000), Order: Order(r.IntN(2)), Groups: groups}
			c := Choose(all, w)
			requireWorthy(t, all, w, c)
			victims -= len(c.Victims)
		}
	}
}

// place returns a candidate of a host in a subnet of a network.
func place(network, subnet, host int) Candidate {
	at := func(level, host, subnet int) int { return places.Of([4]int{level, network, subnet, host}) }
	return Candidate{Weight: 1, Tie: uint64(network*7919 + subnet*104729 + host*1299709), Net: uint64(network + 1),
		Groups: [Levels]int{at(Peer, host, subnet), at(Address, host, subnet), at(Subnet, 0, subnet), at(Network, 0, 0), NoGroup}}
}

var places Numbers[[4]int]

func TestAnOwnerOfManySubnetsCompetesWithItself(t *testing.T) {
	var all []Candidate
	for i := range 256 { // one in each subnet of one network
		all = append(all, place(0, i, 0))
	}
	for i := range 256 { // from everywhere
		c := place(1+i, 0, 0)
		c.Opened, c.Since = 1, 1 // they came after the crowd
		all = append(all, c)
	}
	c := Choose(all, Want{Weight: 100, Most: 100, Groups: places.Len()})
	require.Len(t, c.Victims, 100)
	for _, v := range c.Victims {
		require.Less(t, v.Index, 256)
		require.Equal(t, Victim{v.Index, LargestGroup, Network}, v)
	}
}

func TestWhereNoGroupIsLargeTheYoungerHalfIsLeftAlone(t *testing.T) {
	var all []Candidate
	for i := range 1000 {
		c := place(i, 0, 0)
		c.Opened, c.Since = int64(i), int64(i)
		all = append(all, c)
	}
	c := Choose(all, Want{Weight: 100, Most: 1000, Groups: places.Len()})
	require.Len(t, c.Victims, 100)
	for _, v := range c.Victims {
		require.Equal(t, Chance, v.Why)
		require.Less(t, v.Index, 700, "newcomers have time to show what they are")
	}
}

func TestAGroupThatHoldsJustItsShareIsNotTooLarge(t *testing.T) {
	for extra, why := range []Reason{Chance, LargestGroup} {
		var all []Candidate
		for i := range 100 * (2 + extra) { // two connections of a peer are its share
			all = append(all, place(i%100, 0, 0))
		}
		for _, v := range Choose(all, Want{Weight: 10, Most: 10, Groups: places.Len()}).Victims {
			require.Equal(t, why, v.Why)
		}
	}
}

func TestACrowdThatCameFirstDoesNotFillThePlacesOfTheLongestStanding(t *testing.T) {
	var all []Candidate
	for i := range 400 {
		all = append(all, place(0, i%100, i/100))
	}
	for i := range 400 {
		c := place(1+i, 0, 0)
		c.Opened, c.Since = 1, 1
		all = append(all, c)
	}
	kept := Choose(all, Want{Weight: 1, Most: 1, Groups: places.Len()}).Kept
	crowd, others := 0, 0
	for i, class := range kept {
		switch {
		case class != Longstanding:
		case i < 400:
			crowd++
		default:
			others++
		}
	}
	require.LessOrEqual(t, crowd, int(shares[Network]))
	require.Equal(t, 200, crowd+others)
}

// An attack from everywhere has no large groups. A large group of honest peers, such as a provider,
// is served all the same.
func TestTheLongestStandingOfAGroupLeaveHalfOfItsShareToItsNewcomers(t *testing.T) {
	var all []Candidate
	for i := range 1000 {
		c := place(i+1, 0, 0)
		if i < 30 {
			c = place(0, i, 0) // one network, which holds no more than its share
			c.Net = 0
		}
		c.Since = int64(i)
		c.Opened = int64(i % 100)
		c.New = i >= 16 && i < 30
		all = append(all, c)
	}
	c := Choose(all, Want{Weight: 100, Most: 1000, Groups: places.Len()})
	require.Len(t, c.Victims, 100)
	standing := 0
	for i := range 30 {
		if c.Kept[i] == Longstanding {
			standing++
		}
	}
	require.Equal(t, int(shares[Network])/2, standing)
	for _, v := range c.Victims {
		require.Equal(t, Chance, v.Why)
		require.GreaterOrEqual(t, v.Index, 30, "the newcomers of the network are not the ones to go")
	}
}

func TestOfALargeGroupTheNewestAreLeftAMomentToBeOfUse(t *testing.T) {
	for _, order := range []Order{YoungestFirst, OldestFirst} {
		var all []Candidate
		for i := range 100 {
			c := place(0, 0, i)
			c.Opened, c.Since, c.New = int64(i), int64(-i), i%2 == 1
			all = append(all, c)
		}
		c := Choose(all, Want{Weight: 30, Most: 30, Order: order, Groups: places.Len()})
		require.Len(t, c.Victims, 30)
		for _, v := range c.Victims {
			require.False(t, all[v.Index].New)
		}
	}
}

func TestClassesDoNotTakeFromEachOther(t *testing.T) {
	var all []Candidate
	for i := range 160 {
		all = append(all, place(i%40, i, 0))
		all[i].Since = int64(i)
		if i >= 80 { // all strangers come to be valued and to use the protocol
			all[i].Value, all[i].Named = 1, true
		}
	}
	kept := Choose(all, Want{Weight: 1, Most: 1, Groups: places.Len()}).Kept
	var counts [NumClasses]int
	for _, class := range kept {
		counts[class]++
	}
	require.Equal(t, [NumClasses]int{Free: 50, Valued: 40, Named: 20, Rare: 10, Longstanding: 40}, counts)
	for i := range 40 {
		require.NotEqual(t, Free, kept[i], "the longest-standing stay whatever strangers do")
	}
}

func TestThePeersThatAreValuedMostAreKept(t *testing.T) {
	var all []Candidate
	for i := range 80 {
		c := place(i, 0, 0)
		c.Value = 1 + (i*37)%80 // all are different
		all = append(all, c)
	}
	kept := Choose(all, Want{Weight: 1, Most: 1, Groups: places.Len()}).Kept
	for i, class := range kept {
		require.Equal(t, all[i].Value > 60, class == Valued, "of value %d", all[i].Value)
	}
}

func TestRareNetworksAreChosenBySecretNumbersAndKeepOneEach(t *testing.T) {
	all := make([]Candidate, 64)
	for i := range all {
		all[i] = place(i, 0, 0)
		all[i].Net = uint64(1000 - i)
		all[i].Since, all[i].Opened = int64(i), int64(i)
	}
	all[63].Net = 0 // it has no network
	all[61].Net = all[62].Net
	kept := Choose(all, Want{Weight: 1, Most: 1, Groups: places.Len()}).Kept
	var rare []int
	for i, class := range kept {
		if class == Rare {
			rare = append(rare, i)
		}
	}
	require.Equal(t, []int{58, 59, 60, 61}, rare)
}

func TestWithoutAnyThatMayGoThereIsNoVictim(t *testing.T) {
	require.Empty(t, Choose(nil, Want{Weight: 1, Most: 1}).Victims)
	all := []Candidate{{Keep: Protected, Weight: 1, Groups: [Levels]int{0, NoGroup, NoGroup, NoGroup, NoGroup}}}
	require.Empty(t, Choose(all, Want{Weight: 1, Most: 1, Groups: 1}).Victims)
	all[0].Keep = Free
	require.Len(t, Choose(all, Want{Weight: 1, Most: 1, Groups: 1}).Victims, 1)
}

func TestWhatIsIdleGoesBeforeWhatIsUsed(t *testing.T) {
	var all []Candidate
	for i := range 100 {
		c := place(i, 0, 0)
		c.Opened, c.Since = int64(i), int64(i)
		c.Idle = i >= 90
		all = append(all, c)
	}
	c := Choose(all, Want{Weight: 5, Most: 100, Groups: places.Len()})
	for _, v := range c.Victims {
		require.Equal(t, Idle, v.Why)
		require.GreaterOrEqual(t, v.Index, 90)
	}
	require.True(t, slices.IsSortedFunc(c.Victims, func(a, b Victim) int { return cmp.Compare(all[a.Index].Tie, all[b.Index].Tie) }))
}

func TestOfALargeGroupTheYoungestGoOrTheOldest(t *testing.T) {
	for order, want := range map[Order][]int{YoungestFirst: {99, 98, 97}, OldestFirst: {0, 1, 2}} {
		var all []Candidate
		for i := range 100 {
			c := place(0, 0, i)
			c.Opened, c.Since = int64(i), int64(-i)
			if order == YoungestFirst {
				c.Since = int64(i)
			}
			all = append(all, c)
		}
		var chosen []int
		for _, v := range Choose(all, Want{Weight: 3, Most: 3, Order: order, Groups: places.Len()}).Victims {
			chosen = append(chosen, v.Index)
		}
		require.Equal(t, want, chosen)
	}
}
