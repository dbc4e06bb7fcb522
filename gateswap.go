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
	return newGate(cfg, m.options.callerRates, m.options.refusalLog > 0, &m.observed)
}

// swapGates puts the next gates in the place of the last ones. Manager.changing is held.
func (e *engine) swapGates(next *gate) {
	last := e.gate()
	if last == next {
		return
	}
	next.subnets.TakeOver(last.subnets, func() { e.gates.Store(next) })
	if (last.streams == nil) != (next.streams == nil) {
		e.inOneCut(e.setRated)
	}
}
