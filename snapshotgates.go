package rcmgr

// What the gates keep, for people: how many subnets have connections, and which
// are the fullest. The locks of the gates are taken one at a time.

import (
	"cmp"
	"net/netip"
)

// state returns what the gates keep, with the n fullest subnets.
func (g *gate) state(n int) GateState {
	var s GateState
	s.Subnets, s.RateBuckets = g.inUse()
	g.subnets.eachBusy(func(sub SubnetState) { s.Fullest = offer(s.Fullest, sub, n, compareFullness) })
	return s
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

// gateLook is what a gate has left for one address: connections, or tokens of a
// bucket that are taken.
type gateLook struct {
	scope      scopeName
	use, limit int64
}

// look gives what the gates have of an address, connections before tokens and narrow
// subnets before wide ones. It takes nothing.
func (s *subnets) look(addr netip.Addr) (conns []gateLook) {
	n, _ := s.networks.Lookup(addr)
	if !addr.IsValid() || n.free {
		return nil
	}
	var tokens []gateLook
	add := func(st *subnetStripe, sub subnet, counts, takes bool) {
		rec := &st.mu.own
		if st.named == nil {
			rec, _ = st.mu.table.find(sub.key, sub.level.id)
		}
		if counts && sub.level.conns != noConnLimit {
			conns = append(conns, gateLook{subnetName(KindSubnet, sub.key, sub.level.bits), int64(rec.conns), sub.level.conns})
		}
		if takes && !sub.level.tokens.unlimited() {
			use, limit := sub.level.tokens.taken(rec.fullAt, max(s.now(), st.mu.latest))
			tokens = append(tokens, gateLook{subnetName(KindRate, sub.key, sub.level.bits), use, limit})
		}
	}
	look := func(st *subnetStripe, f func()) {
		st.mu.Lock()
		defer st.mu.Unlock()
		f()
	}
	if n.conns != nil {
		look(n.conns, func() { add(n.conns, *n.conns.named, true, false) })
	}
	if n.tokens != nil {
		look(n.tokens, func() { add(n.tokens, *n.tokens.named, false, true) })
	}
	f, key := familyOf(addr), keyOf(addr)
	div := &s.families[f]
	counts, takes := div.counts && !n.forConns, div.takes && !n.forTokens
	if counts || takes {
		st := s.stripeOf(key.cut(div.widest))
		look(st, func() {
			for l := div.narrowest; l != nil; l = l.wider {
				add(st, subnet{l, key.cut(l.host)}, counts, takes)
			}
		})
	}
	return append(conns, tokens...)
}

// SubnetState is how many connections one subnet has.
type SubnetState struct {
	Prefix netip.Prefix
	Conns  int64
	Limit  int64
}

// GateState is what the gates keep. It is read a little later than the scopes.
type GateState struct {
	// Subnets counts the subnets that have connections, each prefix length on
	// its own; RateBuckets those that have connected lately.
	Subnets     int
	RateBuckets int
	// Fullest has the subnets and networks with the most of their limit taken,
	// the fullest first.
	Fullest []SubnetState
}
