package rcmgr

// Other gates while the manager runs. They are made anew and take over the number of
// connections of each subnet. A connection that leaves the last gates later leaves the new
// ones, too. Tokens are not taken over: how fast connections come is counted anew.

import (
	"reflect"
)

// makeGates returns the gates that limits and options ask for: new ones, or those in force if
// they are the same.
func (m *Manager) makeGates(limits Limiter) (*gate, error) {
	cfg, err := m.options.gateConfig(limits)
	if err != nil {
		return nil, err
	}
	if g := m.gate(); g != nil && reflect.DeepEqual(g.limits, cfg.gateLimits()) {
		return g, nil
	}
	g, err := newGate(cfg, m.options.callerRates, m.options.refusalLog > 0)
	if err != nil {
		return nil, err
	}
	g.subnets.observed = &m.observed
	return g, nil
}

// swapGates puts the next gates in the place of the last ones. Manager.changing is held. It
// takes all locks of the last gates, and under them those of the next, which no other
// goroutine has yet.
func (e *engine) swapGates(next *gate) {
	last := e.gate()
	if last == next {
		return
	}
	for _, st := range last.subnets.inLockOrder() {
		st.mu.Lock()
		defer st.mu.Unlock()
	}
	next.subnets.takeOver(last.subnets)
	last.subnets.each(func(st *subnetStripe) { st.mu.heir = next.subnets })
	e.gates.Store(next)
}
