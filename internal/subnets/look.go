package subnets

// Reading what the records hold. The locks are taken one at a time.

import (
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// A Share is how much of a limit one subnet uses: its connections, if Gate is Conns, or the
// tokens that its bucket lacks, if Gate is Rate.
type Share struct {
	Subnet     netip.Prefix
	Gate       Gate
	Use, Limit int64
}

// Busy calls f with every subnet and network that has connections and a limit on them, and for
// which worth returns true: most of very many need not be made into a Share. It holds the lock of
// a stripe while it calls worth and f, which must not call s. A stripe has one in 64 of all
// subnets.
func (s *Subnets) Busy(worth func(conns, limit int64) bool, f func(Share)) {
	s.each(func(st *Stripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if own := &st.mu.own; own.conns > 0 && worth(int64(own.conns), st.named.level.conns) {
			f(st.named.share(own))
		}
		for i := range st.mu.table.slots {
			rec := &st.mu.table.slots[i]
			if rec.conns == 0 {
				continue
			}
			if level := st.byID[rec.id-1]; worth(int64(rec.conns), level.conns) {
				f(subnet{level, rec.key}.share(rec))
			}
		}
	})
}

// share returns how many of the connections that a subnet may have its record counts.
func (sub subnet) share(rec *record) Share {
	return Share{sub.prefix(), Conns, int64(rec.conns), sub.level.conns}
}

// InUse returns the number of subnets and networks that have connections, and the number of
// buckets that are kept because they are not full, or were not when they were last looked at. It
// does not look at every subnet.
func (s *Subnets) InUse() (subnets, buckets int) {
	s.each(func(st *Stripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		subnets += int(st.mu.busy)
		buckets += int(st.mu.owing)
	})
	return subnets, buckets
}

// Look returns how much the subnets of an address use of their limits: connections before
// tokens, and narrow subnets before wide ones. The address is one that ip.Normal has returned.
// Look counts no connection and takes no token. An invalid address is in no subnet.
func (s *Subnets) Look(addr netip.Addr) (conns []Share) {
	n, _ := s.networks.Lookup(addr)
	if !addr.IsValid() || n.free {
		return nil
	}
	var tokens []Share
	add := func(st *Stripe, sub subnet, counts, takes bool) {
		rec := &st.mu.own
		if st.named == nil {
			rec, _ = st.mu.table.find(sub.key, sub.level.id)
		}
		if counts && sub.level.conns != NoLimit {
			conns = append(conns, sub.share(rec))
		}
		if takes && !sub.level.tokens.Unlimited() {
			use, limit := sub.level.tokens.taken(rec.fullAt, max(s.now(), st.mu.latest))
			tokens = append(tokens, Share{sub.prefix(), Rate, use, limit})
		}
	}
	look := func(st *Stripe, f func()) {
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
	f, key := ip.FamilyOf(addr), ip.KeyOf(addr)
	div := &s.families[f]
	counts, takes := div.counts && !n.forConns, div.takes && !n.forTokens
	if counts || takes {
		st := s.stripeOf(key.Cut(div.widest))
		look(st, func() {
			for l := div.narrowest; l != nil; l = l.wider {
				add(st, subnet{l, key.Cut(l.host)}, counts, takes)
			}
		})
	}
	return append(conns, tokens...)
}
