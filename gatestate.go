package rcmgr

// What the gates keep, for people: how many subnets have connections, and which
// are the fullest. The locks of the gates are taken one at a time.

import (
	"cmp"
	"slices"
)

// state gives what the gates keep, with the n fullest subnets.
func (g *gate) state(n int) GateState {
	var s GateState
	s.Subnets, s.RateBuckets = g.inUse()
	g.subnets.eachBusy(func(sub SubnetState) { s.Fullest = offer(s.Fullest, sub, n, compareFullness) })
	return s
}

// offer takes something into the first n by an order.
func offer[T any](first []T, x T, n int, compare func(a, b T) int) []T {
	at, _ := slices.BinarySearchFunc(first, x, compare)
	if at == n {
		return first
	}
	return slices.Insert(first[:min(len(first), n-1)], at, x)
}

// compareFullness orders the fullest first; of those as full, the first by address.
func compareFullness(a, b SubnetState) int {
	part := func(s SubnetState) float64 { return float64(s.Conns) / float64(s.Limit) }
	return cmp.Or(cmp.Compare(part(b), part(a)), a.Prefix.Compare(b.Prefix))
}

// eachBusy calls f with every subnet and network that has connections and a limit
// of them. It calls f under the lock of a stripe: one in 64 of all subnets.
func (s *subnets) eachBusy(f func(SubnetState)) {
	s.each(func(st *subnetStripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if own := &st.mu.own; own.conns > 0 {
			f(SubnetState{st.named.prefix(), int64(own.conns), st.named.level.conns})
		}
		for i := range st.mu.table.slots {
			if rec := &st.mu.table.slots[i]; rec.conns > 0 {
				l := st.byID[rec.id-1]
				f(SubnetState{subnet{l, rec.key}.prefix(), int64(rec.conns), l.conns})
			}
		}
	})
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
