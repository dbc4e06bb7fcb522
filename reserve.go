package rcmgr

// How much of a limit WithRoom keeps free, in which limits room can be made, and how the worker
// that makes it (room.go) learns that it is needed.
//
// With WithRoom, a scope that all peers share keeps a small part of each limit free, so that
// newcomers need not wait until room has been made for them. When half of that reserve is taken,
// or when the scope refuses something, it sets a bit and wakes the worker.

import (
	"math"
	"sync/atomic"
	"time"
)

// leastReserved is the least limit of which a part is kept free. A part of a smaller one would
// be too much to keep from those that use it; there, room is made only after a refusal.
const leastReserved = 8

// reserveOf returns how much of a limit is kept free once room has been made.
func reserveOf(limit int64) int64 {
	if limit < leastReserved {
		return 0
	}
	return max(1, limit/32)
}

// roomShare is how many times as long as a pass the pause after it is at least, so that all passes
// take a fifth of a processor at most. It is the same for garbage collections (pressure.go).
const roomShare = 4

// makesRoom reports whether letting connections or streams go can make room in a scope of a
// kind. None is made for what the host itself opens, except for its streams in transient, which
// may wait there for a peer that does not answer. For connections in transient, it is made if the
// host lets handshakes be ended.
func (a *alarm) makesRoom(k Kind, d dim) bool {
	if d == dimConnsOut || k.allowlisted() || k > KindProtocol || k == KindServicePeer {
		return false
	}
	switch resourceOf[d] {
	case ResourceStream:
		return d != dimStreamsOut || k == KindTransient
	case ResourceMemory:
		return true
	}
	return k == KindSystem || k == KindTransient && a.handshakes.Load()
}

// widened returns the reserve after newcomers have used it up before room was made, once for
// each of steps. It is doubled each time, to an eighth of the limit at most.
func widened(limit int64, steps uint8) int64 {
	reserve := reserveOf(limit)
	return min(reserve<<steps, max(reserve, limit/8))
}

// mostSteps is the greatest number of steps by which a reserve is widened.
const mostSteps = 2

// wideReserves are the reserves of a scope that were too small. A nil *wideReserves has none.
type wideReserves struct {
	by [numDims]uint8
	at [numDims]time.Time // when one was widened last, or made narrower
}

func (w *wideReserves) steps(d dim) uint8 {
	if w == nil {
		return 0
	}
	return w.by[d&dimMask]
}

// alarm wakes the worker that makes room. A nil *alarm never does.
type alarm struct {
	ring       chan struct{} // has room for one
	handshakes atomic.Bool   // they can be ended
}

func newAlarm() *alarm { return &alarm{ring: make(chan struct{}, 1)} }

// roomy returns the most of a limit that may be handed out before room has to be made, with its
// reserve widened by steps.
func (a *alarm) roomy(k Kind, d dim, limit int64, steps uint8) int64 {
	if a == nil || !a.makesRoom(k, d) || isUnlimited(d, limit) {
		return math.MaxInt64
	}
	return limit - (widened(limit, steps)+1)/2
}

// report sets bits of what a scope lacks, and wakes the worker. Locks may be held.
func (a *alarm) report(asked *atomic.Uint32, bits uint32) {
	if asked.Load()&bits == bits {
		return
	}
	asked.Or(bits)
	a.sound()
}

// sound wakes the worker.
func (a *alarm) sound() {
	select {
	case a.ring <- struct{}{}:
	default: // it is awake, or will be
	}
}
