package rcmgr

// What the gates keep, for people: how many subnets have connections, and which
// are the fullest. The locks of the gates are taken one at a time, and let go
// after a few subnets.

import (
	"cmp"
	"slices"
)

// subnetsAtOnce bounds the subnets that are looked at under one lock.
const subnetsAtOnce = 256

// state gives what the gates keep, with the n fullest subnets.
func (g *gate) state(n int) GateState {
	var s GateState
	s.Subnets, s.RateBuckets = g.inUse()
	g.subnets.eachBusy(func(sub SubnetState) { s.offer(sub, n) })
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

// eachBusy calls f with every subnet and network that has connections and a limit
// of them. It may call f under a lock, which is let go in between: a map may
// change while it is ranged over.
func (s *subnets) eachBusy(f func(SubnetState)) {
	offer := func(sub *subnet) {
		if sub.conns > 0 && sub.level.conns != noConnLimit {
			f(SubnetState{sub.prefix(), sub.conns, sub.level.conns})
		}
	}
	for _, sub := range s.named {
		sub.in.mu.Lock()
		offer(sub)
		sub.in.mu.Unlock()
	}
	for i := range s.stripes {
		s.stripes[i].eachRecord(offer)
	}
}

// eachRecord calls f with every record that is there from beginning to end.
func (st *subnetStripe) eachRecord(f func(*subnet)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := 0
	for i := range st.mu.levels {
		for _, sub := range st.mu.levels[i].records {
			f(sub)
			if n++; n%subnetsAtOnce == 0 {
				st.mu.Unlock()
				st.mu.Lock()
			}
		}
	}
}

// inUse counts what the gates keep, without a look at every subnet: subnets and
// networks that have connections, and buckets that are not full or have been
// lately.
func (g *gate) inUse() (subnets, buckets int) {
	g.subnets.each(func(st *subnetStripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		subnets += st.mu.busy
		buckets += st.mu.owing
	})
	return subnets, buckets
}
