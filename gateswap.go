package rcmgr

// Other gates while the manager runs. They are made anew, and take over how many
// connections each subnet has: a record of the last gates has an heir among the
// next, and a connection that leaves the one leaves the other. Tokens are not
// taken over, so how fast connections come is counted from anew.

import (
	"net/netip"
	"reflect"
)

// gate gives the gates in force.
func (m *Manager) gate() *gate { return m.gates.Load() }

// enterGates asks the gates in force.
func (m *Manager) enterGates(addr netip.Addr, d dim) (gatePass, *LimitError) {
	for {
		g := m.gate()
		p, why := g.enter(addr, d)
		if p != (gatePass{}) || why != nil || m.gate() == g {
			return p, why
		}
		// They had retired, and given nothing.
	}
}

// makeGates makes the gates that limits and options ask for, or gives those in
// force if they are the same.
func (m *Manager) makeGates(limits Limiter) (*gate, error) {
	cfg, err := m.options.gateConfig(limits)
	if err != nil {
		return nil, err
	}
	if g := m.gate(); g != nil && reflect.DeepEqual(g.limits, cfg.limits()) {
		return g, nil
	}
	return newGate(cfg, m.options.callerRates, m.options.refusalLog > 0)
}

// swapGates puts the next gates in the place of the last ones. m.changing is held.
func (m *Manager) swapGates(next *gate) {
	last := m.gate()
	if last == next {
		return
	}
	for _, sub := range last.subnets.named {
		sub.in.mu.Lock()
		defer sub.in.mu.Unlock()
	}
	for i := range last.subnets.stripes {
		st := &last.subnets.stripes[i]
		st.mu.Lock()
		defer st.mu.Unlock()
	}
	next.subnets.takeOver(last.subnets)
	last.subnets.retired = true
	m.gates.Store(next)
}

// takeOver takes over the connections that last counts, and its counts of
// refusals. All locks of last are held, and nobody else knows s.
func (s *subnets) takeOver(last *subnets) {
	for _, sub := range last.named {
		sub.heir = s.inherit(sub, sub.conns)
	}
	last.each(func(st *subnetStripe) {
		// A connection counts at one record, and in all around it.
		within := make(map[*subnet]int64)
		for i := range st.mu.levels {
			for _, sub := range st.mu.levels[i].records {
				within[sub.up] += sub.conns
			}
		}
		for i := range st.mu.levels {
			for _, sub := range st.mu.levels[i].records {
				sub.heir = s.inherit(sub, sub.conns-within[sub])
			}
		}
		to := &s.stripes[0].mu
		for i := range gateKinds {
			to.refusals[i].add(&st.mu.refusals[i])
			if said := st.mu.remarks[i]; said != nil {
				if to.remarks[i] == nil {
					to.remarks[i] = new(remarks)
				}
				to.remarks[i].add(said)
			}
		}
	})
}

// inherit counts n connections of another partition's subnet where they would have
// been counted here, as far as the subnet alone tells: not in networks and on
// levels that are narrower. It gives the narrowest record in which they count.
func (s *subnets) inherit(from *subnet, n int64) (heir *subnet) {
	if n == 0 {
		return nil
	}
	prefix := from.prefix()
	f := familyOf(prefix.Addr())
	if in, ok := s.networks.LookupPrefix(prefix); ok && in.forConns {
		if in.conns != nil {
			in.conns.countManyLocked(n)
		}
		return in.conns
	}
	if !s.counted[f] {
		return nil
	}
	key := keyOf(prefix.Addr())
	st := s.stripeOf(key, s.levels[f])
	for i := range s.levels[f] {
		l := &s.levels[f][len(s.levels[f])-1-i] // the widest first
		if l.bits > prefix.Bits() {
			break
		}
		up := heir
		if heir = st.mu.levels[l.id].records[key.cut(l.host)]; heir == nil {
			heir = st.addLocked(l, key.cut(l.host), up)
		}
		heir.countManyLocked(n)
	}
	return heir
}

func (sub *subnet) countManyLocked(n int64) {
	for range n {
		sub.countLocked(1)
	}
}
