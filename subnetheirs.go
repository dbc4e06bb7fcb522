package rcmgr

// Other gates take over what is open: each connection counts, from then on, where the new
// gates divide the addresses, and leaves where it counts.

import (
	"net/netip"
	"slices"
)

// inLockOrder gives all stripes in the order in which enter locks those of one
// address: networks named for connections, those named for tokens, levels.
func (s *subnets) inLockOrder() (all []*subnetStripe) {
	for _, forConns := range []bool{true, false} {
		for _, st := range s.named {
			if (st.named.level.conns != noConnLimit) == forConns {
				all = append(all, st)
			}
		}
	}
	levels := s.all() // nobody can make others any more, that would not be locked
	for i := range levels {
		all = append(all, &levels[i])
	}
	return all
}

// retired tells whether others have taken over. They do so for all stripes at once.
func (w *passage) retired() bool {
	switch {
	case w.in != nil:
		return w.in.mu.heir != nil
	case w.conns != nil:
		return w.conns.mu.heir != nil
	}
	return w.tokens != nil && w.tokens.mu.heir != nil
}

// takeOver takes over the connections that last counts, and its counts of
// refusals. All locks of last are held, and nobody else knows s.
func (s *subnets) takeOver(last *subnets) {
	last.each(func(st *subnetStripe) {
		for _, one := range st.countedLocked() {
			s.countInherited(one.prefix(), one.conns)
		}
		if n := st.mu.gateNotes; n != nil {
			n.remark(last.noting)
			to := s.all()[0].notesLocked()
			to.refused.takeOver(&n.refused)
			to.would.takeOver(&n.would)
		}
	})
}

// countedSubnet is a subnet and the connections of it that count in none inside it.
type countedSubnet struct {
	subnet
	conns int32
}

// countedLocked gives the subnets of the stripe in which connections count. A
// connection counts in one, and in those around it.
func (st *subnetStripe) countedLocked() (all []countedSubnet) {
	if st.named != nil {
		return []countedSubnet{{*st.named, st.mu.own.conns}}
	}
	within := make(map[subnet]int32)
	for f := range numFamilies {
		levels := st.counting(f, f.bitLen())
		for i := range st.mu.table.slots {
			rec := &st.mu.table.slots[i]
			at := slices.IndexFunc(levels, func(l *level) bool { return l.id == rec.id })
			if !rec.used() || at < 0 || rec.conns == 0 {
				continue
			}
			all = append(all, countedSubnet{subnet{levels[at], rec.key}, rec.conns})
			if at+1 < len(levels) {
				around := levels[at+1]
				within[subnet{around, rec.key.cut(around.host)}] += rec.conns
			}
		}
	}
	for i := range all {
		all[i].conns -= within[all[i].subnet]
	}
	return all
}

// counting gives the levels of a family that limit connections and whose subnets
// are not narrower than this prefix length, the narrowest first.
func (p *partition) counting(f family, bits int) (levels []*level) {
	for l := p.families[f].narrowest; l != nil; l = l.wider {
		if l.conns != noConnLimit && l.bits <= bits {
			levels = append(levels, l)
		}
	}
	return levels
}

// placeOf gives the narrowest subnet in which a connection of an address counts in
// this stripe.
func (st *subnetStripe) placeOf(k subnetKey) netip.Prefix {
	if st.named != nil {
		return st.named.prefix()
	}
	f := k.family()
	l := st.counting(f, f.bitLen())[0]
	return k.cut(l.host).prefix(l.bits)
}

// countInherited counts n connections more, or one less, that another partition has
// in a subnet, where they would have been counted here, as far as the subnet alone
// tells: not in networks and on levels that are narrower.
func (s *subnets) countInherited(at netip.Prefix, n int32) {
	if in, ok := s.networks.LookupPrefix(at); ok && in.forConns {
		if in.conns == nil {
			return
		}
		if heir := in.conns.inherit(nil, subnetKey{}, n); heir != nil {
			heir.countInherited(in.conns.named.prefix(), n)
		}
		return
	}
	f := familyOf(at.Addr())
	levels := s.counting(f, at.Bits())
	if len(levels) == 0 {
		return
	}
	key := keyOf(at.Addr())
	if heir := s.stripeOf(key.cut(s.families[f].widest)).inherit(levels, key, n); heir != nil {
		heir.countInherited(key.cut(levels[0].host).prefix(levels[0].bits), n)
	}
}

// inherit counts in a stripe: on these levels, or in its named network.
// It gives those that have taken over.
func (st *subnetStripe) inherit(levels []*level, key subnetKey, n int32) (heir *subnets) {
	st.mu.Lock()
	defer st.mu.Unlock()
	one := int32(1)
	if n < 0 {
		one = -1
	}
	count := func(rec *subnetRecord) {
		for range n * one {
			st.countLocked(rec, one)
		}
	}
	if st.named != nil {
		count(&st.mu.own)
	}
	t := &st.mu.table
	for _, l := range levels {
		sub := key.cut(l.host)
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
