package rcmgr

// A history is a record of calls: when each began and ended, by the ticks of
// one clock that everybody reads, what it asked for and what came of it. This
// file holds one against what limits mean, without knowing how the engine works.
//
// Between two ticks nothing that is known changes, and what a scope holds there
// lies between two bounds:
//
//	low   granted by calls that have ended, and not being given back yet
//	high  asked for by calls that have begun and are admitted, and not given
//	      back by a call that has ended
//
// What a refused call asked for is in neither: it must not have been taken, not
// even for an instant (I3). So, over the time between a call's two ticks:
//
//   - A refusal is false if there was room above high all the time, in every
//     place where the call asked for something.
//   - An admission is false if there was no instant at which there was room above
//     low in all of these places.
//   - A look at everything is false if there was no instant at which all that it
//     saw lay between the bounds.
//
// While a limit is being changed, a refusal is held against the lower of the
// two limits, and an admission against the higher one.

import (
	"fmt"
	"slices"
	"sync/atomic"
)

// flow is an amount of what is limited at one place. A place is one dimension of
// one scope, by its index in a history.
type flow struct {
	place int
	n     int64
}

// deed is what a call does.
type deed uint8

const (
	asks   deed = iota // takes something, gives something back, or both: a move
	looks              // sees how much is held in every place
	limits             // sets the limit of one place
)

// call is one call in a history.
type call struct {
	begun, ended int64 // ticks
	does         deed
	refused      bool
	of512        uint64 // the part of a limit that the call may fill; 0: all
	takes, gives []flow
	sees         []int64 // by place, of looks
	sets         flow    // of limits
	text         string
}

// history is what has happened at a few places.
type history struct {
	clock atomic.Int64
	start []int64 // limits, by place
	calls []call
}

// now is an instant that no other event has.
func (h *history) now() int64 { return h.clock.Add(1) }

// verify returns the first call whose outcome no order of the calls explains.
func (h *history) verify() error {
	b := h.bounds()
	for i := range h.calls {
		c := &h.calls[i]
		switch {
		case c.does == looks && !b.sawWhatWas(c):
			return fmt.Errorf("ticks %d to %d: %v is what nobody can have seen: held were %s", c.begun, c.ended, c.sees, b.at(c))
		case c.does == asks && c.refused && b.alwaysFitted(c):
			return fmt.Errorf("ticks %d to %d: %s %v was refused, but fitted all the time: held were %s", c.begun, c.ended, c.text, c.takes, b.at(c))
		case c.does == asks && !c.refused && !b.everFitted(c):
			return fmt.Errorf("ticks %d to %d: %s %v was admitted, but never fitted: held were %s", c.begun, c.ended, c.text, c.takes, b.at(c))
		}
	}
	return nil
}

// line is what is known of one place after each tick.
type line struct{ low, high, least, most []int64 } // use, and limit

type bounds []line

func (h *history) bounds() bounds {
	n := h.clock.Load() + 1
	b := make(bounds, len(h.start))
	for p := range b {
		b[p] = line{make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)}
	}
	for i := range h.calls {
		c := &h.calls[i]
		if c.does != asks || c.refused {
			continue
		}
		for _, f := range c.takes {
			b[f.place].high[c.begun] += f.n
			b[f.place].low[c.ended] += f.n
		}
		for _, f := range c.gives {
			b[f.place].low[c.begun] -= f.n
			b[f.place].high[c.ended] -= f.n
		}
	}
	for p := range b {
		for s := 1; s < int(n); s++ {
			b[p].low[s] += b[p].low[s-1]
			b[p].high[s] += b[p].high[s-1]
		}
		h.limitsOver(p, &b[p])
	}
	return b
}

// limitsOver fills in the limits of a place. They are set by one call after
// another.
func (h *history) limitsOver(p int, l *line) {
	var changes []*call
	for i := range h.calls {
		if c := &h.calls[i]; c.does == limits && c.sets.place == p {
			changes = append(changes, c)
		}
	}
	slices.SortFunc(changes, func(a, b *call) int { return int(a.begun - b.begun) })
	limit, s := h.start[p], int64(0)
	until := func(end, least, most int64) {
		for ; s < end; s++ {
			l.least[s], l.most[s] = least, most
		}
	}
	for _, c := range changes {
		until(c.begun, limit, limit)
		until(c.ended, min(limit, c.sets.n), max(limit, c.sets.n))
		limit = c.sets.n
	}
	until(int64(len(l.least)), limit, limit)
}

func (c *call) bound(limit int64) int64 {
	if c.of512 == 0 {
		return limit
	}
	return fraction(limit, c.of512)
}

// alwaysFitted reports whether there was room for a call for as long as it took.
func (b bounds) alwaysFitted(c *call) bool {
	for _, f := range c.takes {
		for s := c.begun; s < c.ended; s++ {
			if l := &b[f.place]; f.n > c.bound(l.least[s])-l.high[s] {
				return false
			}
		}
	}
	return true
}

// everFitted reports whether there was room for a call, in all places at once.
func (b bounds) everFitted(c *call) bool {
	for s := c.begun; s < c.ended; s++ {
		if !slices.ContainsFunc(c.takes, func(f flow) bool {
			l := &b[f.place]
			return f.n > c.bound(l.most[s])-l.low[s]
		}) {
			return true
		}
	}
	return false
}

// sawWhatWas reports whether what a look saw may have been so at one instant.
func (b bounds) sawWhatWas(c *call) bool {
	for s := c.begun; s < c.ended; s++ {
		within := true
		for p := range b {
			within = within && b[p].low[s] <= c.sees[p] && c.sees[p] <= b[p].high[s]
		}
		if within {
			return true
		}
	}
	return false
}

// at shows what was held, and the limits, where and when a call began.
func (b bounds) at(c *call) string {
	var text string
	for p := range b {
		l, s := &b[p], c.begun
		text += fmt.Sprintf("[%d: %d to %d of %d to %d] ", p, l.low[s], l.high[s], l.least[s], l.most[s])
	}
	return text
}
