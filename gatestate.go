package rcmgr

// What the gates keep, for people: how many subnets have connections, and which
// are the fullest. The locks of the gates are taken one at a time, and let go
// after a few subnets.

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
)

// subnetsAtOnce bounds the subnets that are looked at under one lock.
const subnetsAtOnce = 256

// state gives what the gates keep, with the n fullest subnets.
func (g *gate) state(n int) GateState {
	var s GateState
	s.Subnets, s.RateBuckets = g.inUse()
	g.subnets.each(func(sub SubnetState) { s.offer(sub, n) })
	return s
}

// offer takes a subnet into the n fullest. Of those as full, the first by
// address go before.
func (s *GateState) offer(sub SubnetState, n int) {
	at, _ := slices.BinarySearchFunc(s.Fullest, sub, compareFullness)
	if at == n {
		return
	}
	if len(s.Fullest) == n {
		s.Fullest = s.Fullest[:n-1]
	}
	s.Fullest = slices.Insert(s.Fullest, at, sub)
}

// compareFullness orders the fullest first.
func compareFullness(a, b SubnetState) int {
	part := func(s SubnetState) float64 { return float64(s.Conns) / float64(s.Limit) }
	return cmp.Or(cmp.Compare(part(b), part(a)), a.Prefix.Compare(b.Prefix))
}

// each calls f with every subnet and network that has connections and a limit.
// It may call f under a lock.
func (s *subnets) each(f func(SubnetState)) {
	for _, n := range s.in.networks.All() {
		if held := n.held.Load(); held > 0 {
			f(SubnetState{n.network, held, n.limit})
		}
	}
	for i := range s.stripes {
		st := &s.stripes[i]
		for _, levels := range s.in.families {
			for _, l := range levels {
				eachSubnet(&st.mu.Mutex, &st.mu.held[l.id], func(k subnetKey, held int64) {
					f(SubnetState{k.prefix(l.bits), held, int64(l.limit)})
				})
			}
		}
	}
}

// eachSubnet calls f with every subnet that is there from beginning to end,
// under a lock that is let go in between: a map may change while it is ranged
// over.
func eachSubnet(mu *sync.Mutex, s *subnetInts, f func(subnetKey, int64)) {
	mu.Lock()
	defer mu.Unlock()
	n := 0
	for k, v := range s.m {
		f(k, v)
		if n++; n%subnetsAtOnce == 0 {
			mu.Unlock()
			mu.Lock()
		}
	}
}

// prefix gives the subnet that the key names, on a level of a prefix length.
// What is cut off an IPv4 address lies in its last 32 bits, so it stays mapped.
func (k subnetKey) prefix(bits int) netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.hi)
	binary.BigEndian.PutUint64(b[8:], k.lo)
	return netip.PrefixFrom(netip.AddrFrom16(b).Unmap(), bits)
}

// inUse counts what the gates keep, without a look at every subnet: subnets and
// networks that have connections, and buckets that are not full or have been lately.
func (g *gate) inUse() (subnets, buckets int) {
	for i := range g.subnets.stripes {
		st := &g.subnets.stripes[i]
		st.mu.Lock()
		for l := range st.mu.held {
			subnets += len(st.mu.held[l].m)
		}
		st.mu.Unlock()
	}
	for _, n := range g.subnets.in.networks.All() {
		if n.held.Load() > 0 {
			subnets++
		}
	}
	own, ok := g.rater.(*rates)
	if !ok {
		return subnets, 0
	}
	for i := range own.stripes {
		st := &own.stripes[i]
		st.mu.Lock()
		for l := range st.mu.levels {
			buckets += len(st.mu.levels[l].fullAt.m)
		}
		st.mu.Unlock()
	}
	return subnets, buckets
}
