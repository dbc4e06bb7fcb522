package rcmgr

// Peaks of shared scopes: the most that was held at one instant. Above half of a limit, where
// a pool is tight, its word says what is used, and nothing is missed. Below, stripes spend
// credit on their own, and the sum is known only to those who hold all stripe locks: once a
// second it is looked at, of the scopes that are always there, and of services and protocols
// that have drawn credit since: what others use more by then lay idle, an eighth of the limit
// at most. What comes and goes in between is not seen, but for what a stripe holds when it
// draws.

import "time"

const (
	// peakInterval is the time between two looks.
	peakInterval = time.Second
	// peaksAtOnce bounds the services and protocols that are looked at under all locks.
	peaksAtOnce = 16
)

// followPeaks looks at what is used.
func (m *Manager) followPeaks() {
	m.inOneCut(func() {
		for _, p := range m.fixed {
			p.used()
		}
	})
	for left := m.grown(); left > 0; left -= peaksAtOnce {
		m.inOneCut(func() {
			for range min(left, peaksAtOnce) {
				last := len(m.drawing.grown) - 1
				p := m.drawing.grown[last]
				m.drawing.grown = m.drawing.grown[:last]
				p.grown = false
				p.used()
			}
			if len(m.drawing.grown) == 0 {
				m.drawing.grown = nil // its room may have been made for a crowd
			}
		})
	}
}

// grown returns how many services and protocols are to be looked at. The list is guarded by
// the drawing lock and the lock of any stripe, or by all stripe locks.
func (m *Manager) grown() int {
	st := &m.stripes[0]
	st.lock(false)
	defer st.unlock(false)
	m.drawing.Lock()
	defer m.drawing.Unlock()
	return len(m.drawing.grown)
}
