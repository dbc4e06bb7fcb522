package rcmgr

// How many requests were refused in the last minutes, so that whoever comes to
// look at a host in trouble sees when the trouble began. The counts are there
// anyway: every ten seconds they are added up, and thirty sums are kept.

import (
	"slices"
	"sync"
	"time"
)

const (
	historyInterval = 10 * time.Second
	historyLength   = 30 // five minutes
)

// RefusalsAt is how many requests had been refused, by all scopes and gates
// together, at one time since the manager was made.
type RefusalsAt struct {
	At       time.Time
	Refusals uint64
}

// refusalHistory has what was refused by then, the oldest first.
type refusalHistory struct {
	mu struct {
		sync.Mutex
		kept []RefusalsAt
	}
}

func (h *refusalHistory) keep(now RefusalsAt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.mu.kept) > historyLength {
		h.mu.kept = slices.Delete(h.mu.kept, 0, 1)
	}
	h.mu.kept = append(h.mu.kept, now)
}

func (h *refusalHistory) all() []RefusalsAt {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.mu.kept)
}

// refusedByNow adds up what was refused, one stripe after the other.
func (m *Manager) refusedByNow() RefusalsAt {
	var counted engineCounts
	var would [numKinds]dimCounts
	for i := range m.stripes {
		st := &m.stripes[i]
		st.lock(false)
		st.addCounts(&counted)
		st.unlock(false)
	}
	m.gate().subnets.addRefusals(&counted.refusals, &would)
	now := RefusalsAt{At: time.Now()}
	for k := range counted.refusals {
		now.Refusals += counted.refusals[k].refusals().Total()
	}
	return now
}

// refusalRate is how many requests were refused each second until At, since the
// rate before it.
type refusalRate struct {
	At        time.Time
	PerSecond float64
}

// refusalRates gives the rates of refusals in the last minutes up to now, the
// oldest first.
func (s *Snapshot) refusalRates() (rates []refusalRate) {
	var known []RefusalsAt
	if s.Uptime() <= historyLength*historyInterval {
		known = append(known, RefusalsAt{At: s.Started}) // nothing had been refused
	}
	known = append(known, s.Recent...)
	if n := len(known); n > 1 && s.Taken.Sub(known[n-1].At) < historyInterval/2 {
		known = known[:n-1] // else the rate of the last moment is one of very few
	}
	known = append(known, RefusalsAt{s.Taken, s.totalRefusals()})
	for i, to := range known[1:] {
		from := known[i]
		if seconds := to.At.Sub(from.At).Seconds(); seconds > 0 && to.Refusals >= from.Refusals {
			rates = append(rates, refusalRate{to.At, float64(to.Refusals-from.Refusals) / seconds})
		}
	}
	return rates
}
