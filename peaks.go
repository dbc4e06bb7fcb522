package rcmgr

// Peaks of shared scopes: the most that was held at one instant. Above half of a limit a pool
// is tight, its word is the exact use, and no peak is missed. Below half, stripes spend credit
// on their own, and the sum is known only under all stripe locks. There it is read once a
// second: for the scopes that are always there, and for services and protocols that have drawn
// credit since. The others can only have used credit that lay idle, an eighth of the limit at
// most. A rise and fall within a second is missed, except for what a stripe holds when it
// draws.

import "time"

const (
	// peakInterval is the time between two readings.
	peakInterval = time.Second
	// peaksAtOnce bounds the services and protocols that are read under all locks at once.
	peaksAtOnce = 16
)

// followPeaks reads what is used.
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
				e.drawing.grown = nil // do not keep the memory of a long list
			}
		})
	}
}

// grown returns how many services and protocols have to be read. The list is guarded by the
// drawing lock and the lock of any stripe, or by all stripe locks.
func (e *engine) grown() int {
	st := &e.stripes[0]
	st.lock()
	defer st.unlock()
	e.drawing.Lock()
	defer e.drawing.Unlock()
	return len(e.drawing.grown)
}
