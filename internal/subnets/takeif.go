package subnets

// Tokens for what others decide, too. A connection enters first, and if a scope refuses it, it
// gives its tokens back; a connection that comes in between may miss them. A stream is decided
// under the locks of its subnets, so that nothing is refused for want of what comes back.

import (
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// TakeIf takes a token of each bucket of addr if all of them have one and admits returns true.
// If a bucket has none, why is the error of the refusal, as that of Enter, and admits is not
// called. If admits returns false, TakeIf takes nothing, why is nil and ok is false. If no bucket
// concerns addr, admits alone decides. admits is called under locks of s and must not call its
// methods. Connections are not counted.
func (s *Subnets) TakeIf(addr netip.Addr, way Way, admits func() bool) (why error, ok bool) {
	if !addr.IsValid() {
		return nil, admits()
	}
	f, k := ip.FamilyOf(addr), ip.KeyOf(addr)
	div := &s.families[f]
	n, _ := s.networks.Lookup(addr)
	w := passage{way: way, key: k, tokens: n.tokens, takes: div.takes && !n.forTokens}
	if w.tokens == nil && !w.takes {
		return nil, admits()
	}
	st := w.tokens
	if w.takes {
		w.narrowest, w.in = div.narrowest, s.stripeOf(k.Cut(div.widest))
		st = w.in
	}
	w.at = s.now()
	st.mu.Lock()
	defer st.mu.Unlock()
	st.reachedLocked(w.at)
	w.empty = st.emptyLocked(&w)
	switch {
	case w.empty != nil && !s.observes(Rate):
		return s.refuseLocked(w.bar(Rate), w.way), false
	case !admits():
		return nil, false
	case w.in != nil:
		return s.askLocked(&w, w.narrowest)
	}
	if why, ok = s.decideLocked(&w); w.tokens != nil {
		st.takeLocked(&st.mu.own, st.named.level)
	}
	return why, ok
}

// emptyLocked returns the narrowest level of a passage that has no token, or that of the named
// network, nil if all have one. The stripe's lock is held.
func (st *Stripe) emptyLocked(w *passage) *level {
	if st.named != nil && st.mu.own.empty(st.named.level, st.mu.latest) {
		return st.named.level
	}
	for l := w.narrowest; l != nil; l = l.wider {
		if rec, _ := st.mu.table.find(w.key.Cut(l.host), l.id); rec.empty(l, st.mu.latest) {
			return l
		}
	}
	return nil
}
