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

// makesRoom reports whether letting connections or streams go can make room in a scope of a
// kind. A connection without a peer has no end that could be closed from outside, and what the
// host itself opens it need not open; but of the streams that it opens, those that wait for a
// protocol may wait for a peer that does not answer.
func (k Kind) makesRoom(d dim) bool {
	if d == dimConnsOut || k.allowlisted() || k > KindProtocol || k == KindServicePeer {
		return false
	}
	switch resourceOf[d] {
	case ResourceStream:
		return d != dimStreamsOut || k == KindTransient
	case ResourceMemory:
		return true
	}
	return k == KindSystem
}

// alarm wakes the worker that makes room. A nil *alarm never does.
type alarm struct {
	ring chan struct{} // has room for one
}

func newAlarm() *alarm { return &alarm{ring: make(chan struct{}, 1)} }

// roomy returns the most of a limit that may be handed out before room has to be made.
func (a *alarm) roomy(k Kind, d dim, limit int64) int64 {
	if a == nil || !k.makesRoom(d) || isUnlimited(d, limit) {
		return math.MaxInt64
	}
	return limit - (reserveOf(limit)+1)/2
}

// report sets bits of what a scope lacks, and wakes the worker. Locks may be held.
func (a *alarm) report(asked *atomic.Uint32, bits uint32) {
	if asked.Load()&bits == bits {
		return
	}
	asked.Or(bits)
	select {
	case a.ring <- struct{}{}:
	default: // it is awake, or will be
	}
}
