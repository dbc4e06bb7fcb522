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
func (e *engine) followPeaks() {
	e.inOneCut(func() {
		for _, p := range e.fixed {
			p.used()
		}
	})
	for left := e.grown(); left > 0; left -= peaksAtOnce {
		e.inOneCut(func() {
			for range min(left, peaksAtOnce) {
				last := len(e.drawing.grown) - 1
				p := e.drawing.grown[last]
				e.drawing.grown = e.drawing.grown[:last]
				p.grown = false
				p.used()
			}
			if len(e.drawing.grown) == 0 {
				e.drawing.grown = nil // its room may have been made for a crowd
			}
		})
	}
}

// grown returns how many services and protocols are to be looked at. The list is guarded by
// the drawing lock and the lock of any stripe, or by all stripe locks.
func (e *engine) grown() int {
	st := &e.stripes[0]
	st.lock()
	defer st.unlock()
	e.drawing.Lock()
	defer e.drawing.Unlock()
	return len(e.drawing.grown)
}
