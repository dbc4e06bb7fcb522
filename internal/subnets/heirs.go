package subnets

// Other gates take over what is open: each connection counts, from then on, where the new
// gates divide the addresses, and leaves where it counts.

import (
	"net/netip"
	"slices"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// inLockOrder returns all stripes in the order in which Enter locks those of one
// address: networks named for connections, those named for tokens, levels.
func (s *Subnets) inLockOrder() (all []*Stripe) {
	for _, forConns := range []bool{true, false} {
		for _, st := range s.named {
			if (st.named.level.conns != NoLimit) == forConns {
				all = append(all, st)
			}
		}
	}
	levels := s.all() // none can be made any more that would not be locked
	for i := range levels {
		all = append(all, &levels[i])
	}
	return all
}

// retired reports whether others have taken over. They do so for all stripes at once.
func (w *passage) retired() bool {
	switch {
	case w.in != nil:
		return w.in.mu.heir != nil
	case w.conns != nil:
		return w.conns.mu.heir != nil
	}
	return w.tokens != nil && w.tokens.mu.heir != nil
}

// TakeOver takes over the connections that last counts, and its refusals. Nobody else may know
// s yet. All locks of last are held meanwhile, and while publish is called, which makes s
// known: from then on last gives nothing to those that enter, and connections that leave it
// leave s, too. Tokens are not taken over.
//
// A connection may have entered last, and be in no list yet of those that are open: so what
// has heirs is the record, and nothing has to find the connections.
func (s *Subnets) TakeOver(last *Subnets, publish func()) {
	for _, st := range last.inLockOrder() {
		st.mu.Lock()
		defer st.mu.Unlock()
	}
	last.each(func(st *Stripe) {
		for _, one := range st.countedLocked() {
			s.countInherited(one.prefix(), one.conns)
		}
		if n := st.mu.notes; n != nil {
			n.remark(last.config.Noting)
			to := s.all()[0].notesLocked()
			to.refused.add(&n.refused)
			to.would.add(&n.would)
		}
	})
	last.each(func(st *Stripe) { st.mu.heir = s })
	publish()
}

// countedSubnet is a subnet and the connections of it that count in none inside it.
type countedSubnet struct {
	subnet
	conns int32
}

// countedLocked returns the subnets of the stripe in which connections count. A
// connection counts in one, and in those around it.
func (st *Stripe) countedLocked() (all []countedSubnet) {
	if st.named != nil {
		return []countedSubnet{{*st.named, st.mu.own.conns}}
	}
	within := make(map[subnet]int32)
	for f := range ip.Families {
		levels := st.counting(f, f.BitLen())
		for i := range st.mu.table.slots {
			rec := &st.mu.table.slots[i]
			at := slices.IndexFunc(levels, func(l *level) bool { return l.id == rec.id })
			if !rec.used() || at < 0 || rec.conns == 0 {
				continue
			}
			all = append(all, countedSubnet{subnet{levels[at], rec.key}, rec.conns})
			if at+1 < len(levels) {
				around := levels[at+1]
				within[subnet{around, rec.key.Cut(around.host)}] += rec.conns
			}
		}
	}
	for i := range all {
		all[i].conns -= within[all[i].subnet]
	}
	return all
}

// counting returns the levels of a family that limit connections and whose subnets
// are not narrower than this prefix length, the narrowest first.
func (p *partition) counting(f ip.Family, bits int) (levels []*level) {
	for l := p.families[f].narrowest; l != nil; l = l.wider {
		if l.conns != NoLimit && l.bits <= bits {
			levels = append(levels, l)
		}
	}
	return levels
}

// placeOf returns the narrowest subnet in which a connection of an address counts in
// this stripe.
func (st *Stripe) placeOf(k ip.Key) netip.Prefix {
	if st.named != nil {
		return st.named.prefix()
	}
	f := k.Family()
	l := st.counting(f, f.BitLen())[0]
	return k.Cut(l.host).Prefix(l.bits)
}

// countInherited counts n connections more, or one less, that another partition has
// in a subnet, where they would have been counted here, as far as the subnet alone
// tells: not in networks and on levels that are narrower.
func (s *Subnets) countInherited(at netip.Prefix, n int32) {
	if in, ok := s.networks.LookupPrefix(at); ok && in.forConns {
		if in.conns == nil {
			return
		}
		if heir := in.conns.inherit(nil, ip.Key{}, n); heir != nil {
			heir.countInherited(in.conns.named.prefix(), n)
		}
		return
	}
	f := ip.FamilyOf(at.Addr())
	levels := s.counting(f, at.Bits())
	if len(levels) == 0 {
		return
	}
	key := ip.KeyOf(at.Addr())
	if heir := s.stripeOf(key.Cut(s.families[f].widest)).inherit(levels, key, n); heir != nil {
		heir.countInherited(key.Cut(levels[0].host).Prefix(levels[0].bits), n)
	}
}

// inherit counts in a stripe: on these levels, or in its named network.
// It returns those that have taken over.
func (st *Stripe) inherit(levels []*level, key ip.Key, n int32) (heir *Subnets) {
	st.mu.Lock()
	defer st.mu.Unlock()
	one := int32(1)
	if n < 0 {
		one = -1
	}
	count := func(rec *record) {
		for range n * one {
			st.countLocked(rec, one)
		}
	}
	if st.named != nil {
		count(&st.mu.own)
	}
	t := &st.mu.table
	for _, l := range levels {
		sub := key.Cut(l.host)
		rec, _ := t.find(sub, l.id)
		if !rec.used() {
			rec = t.add(rec, sub, l.id)
		}
		if count(rec); rec.idle() {
			_, at := t.find(sub, l.id)
			t.remove(at)
		}
	}
	return st.mu.heir
}
