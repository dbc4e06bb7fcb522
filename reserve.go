package rcmgr

// How much of a limit WithRoom keeps free, and in which limits room can be made.

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
