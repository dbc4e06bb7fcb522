package subnets

// When the gates are replaced, the new ones take over the open connections. From then on each
// connection counts in the subnets into which the new gates divide the addresses. When it
// closes, it leaves both the old subnets and the new ones.

import (
	"net/netip"
	"slices"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// inLockOrder returns all stripes in the order in which Enter locks those of one address: those
// of networks named for connections, those of networks named for tokens, those of the levels.
func (s *Subnets) inLockOrder() (all []*Stripe) {
	for _, forConns := range []bool{true, false} {
		for _, st := range s.named {
			if (st.named.level.conns != NoLimit) == forConns {
				all = append(all, st)
			}
		}
	}
	levels := s.all() // makes them if there are none: one made later would not be locked
	for i := range levels {
		all = append(all, &levels[i])
	}
	return all
}

// retired reports whether another Subnets has taken over, which it does for all stripes at once.
// The locks of the passage's stripes are held.
func (w *passage) retired() bool {
	switch {
	case w.in != nil:
		return w.in.mu.heir != nil
	case w.conns != nil:
		return w.conns.mu.heir != nil
	}
	return w.tokens != nil && w.tokens.mu.heir != nil
}

// TakeOver takes over the connections that last counts, and its refusals. Tokens are not taken
// over. No other goroutine may have s yet. TakeOver holds all locks of last, and calls publish,
// which makes s known, before it releases them. From then on last admits no connection, and a
// connection that leaves last leaves s, too.
//
// TakeOver moves the counts of the records and needs no list of open connections, because a
// connection that has entered last may not be in such a list yet.
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

// countedSubnet is a subnet, and the number of its connections that count in no narrower subnet.
type countedSubnet struct {
	subnet
	conns int32
}

// countedLocked returns the subnets of the stripe that have connections. Each connection counts
// in the narrowest of its subnets that it is limited by, and in all wider ones; here it is part
// of the narrowest alone. The stripe's lock is held.
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

// counting returns the levels of a family that limit connections and whose prefix length is at
// most bits, the narrowest first.
func (p *partition) counting(f ip.Family, bits int) (levels []*level) {
	for l := p.families[f].narrowest; l != nil; l = l.wider {
		if l.conns != NoLimit && l.bits <= bits {
			levels = append(levels, l)
		}
	}
	return levels
}

// placeOf returns the narrowest subnet of this stripe in which a connection from the address
// with this key counts.
func (st *Stripe) placeOf(k ip.Key) netip.Prefix {
	if st.named != nil {
		return st.named.prefix()
	}
	f := k.Family()
	l := st.counting(f, f.BitLen())[0]
	return k.Cut(l.host).Prefix(l.bits)
}

// countInherited counts n more connections, or one less if n is -1, which the Subnets before
// this one counts in the subnet at. They count in the networks and on the levels of this one
// that contain all of that subnet. Narrower ones are left out, because only the connections'
// addresses would show which of them applies.
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

// inherit counts n more connections, or one less if n is -1, in a stripe: in the subnets of the
// key on these levels, or in the stripe's named network. It returns the Subnets that has taken
// over from the stripe's own, or nil.
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
