package rcmgr

// Connections and streams open, move and end very often, and seldom hold memory while they
// do. So a unit, which is what one of them counts as, has short ways of its own that need no
// request: it is charged if there is room at hand in every account, and leaves its whole
// chain at once. Everything else is for check in chain.go.
//
// What is written here for a unit must agree with what is written for a request: addUnit
// and subUnit with charge and refund, hasUnit with hasReady, within with fits, peerGotUnit
// with peerGot, mayDraw and drawUnit with judge, trim with trimMemory. unit_test.go goes through
// all these pairs. openReady, attachReady and moveReady must agree with take:
// TestFastPathsKeepTheSameBooksAsTheGeneralPath.

import (
	"github.com/libp2p/go-libp2p/core/network"
)

// unit is one connection or stream as it is counted. The zero value is none.
type unit struct {
	count uint8 // 1, in dir and in both
	fds   uint8 // 1 if it takes a descriptor
	dir   dim   // connections or streams in its direction
	both  dim   // those in either direction
}

// unitOf returns the unit of a kind. Every direction but inbound counts as outbound.
func unitOf(kind Kind, dir network.Direction, fd bool) unit {
	u := unit{count: 1, dir: dimStreamsIn, both: dimStreams}
	if kind == KindConn {
		u.dir, u.both = dimConnsIn, dimConns
	}
	if dir != network.DirInbound {
		u.dir++ // the outbound dimension
	}
	if fd {
		u.fds = 1
	}
	return u
}

// request returns the request for a connection or stream with all the memory that it holds.
func (u unit) request(memory int64) request {
	return request{memory: memory, weight: fullWeight, priority: network.ReservationPriorityAlways,
		count: int64(u.count), fds: int64(u.fds), dir: u.dir, both: u.both}
}

// addUnit charges a unit.
func (a *held) addUnit(u unit) {
	a.counts[u.dir&dimMask] += int32(u.count)
	a.counts[u.both&dimMask] += int32(u.count)
	a.counts[dimFD] += int32(u.fds)
}

// subUnit takes a unit away.
func (a *held) subUnit(u unit) {
	a.counts[u.dir&dimMask] -= int32(u.count)
	a.counts[u.both&dimMask] -= int32(u.count)
	a.counts[dimFD] -= int32(u.fds)
}

// hasUnit is hasReady for a unit.
func (a *account) hasUnit(u unit) bool {
	ready, use := a.ready, &a.use
	return ready[u.dir&dimMask] > int64(use.counts[u.dir&dimMask]) &&
		ready[u.both&dimMask] > int64(use.counts[u.both&dimMask]) &&
		ready[dimFD]-int64(use.counts[dimFD]) >= int64(u.fds)
}

// drawUnit draws the credit that two shares lack for a unit, if their pools have it, and
// reports whether it did. If not, it changes nothing. Either share may be nil.
func (st *stripe) drawUnit(u unit, one, other *share) bool {
	if !one.mayDraw(u) || !other.mayDraw(u) {
		return false
	}
	drawing := &st.engine.drawing
	drawing.Lock()
	may := one.mayDraw(u) && other.mayDraw(u)
	if may {
		st.drawUnitLocked(one, u)
		st.drawUnitLocked(other, u)
	}
	drawing.Unlock()
	return may
}

// lackingUnit returns the share if it has no credit for a unit, and nil if it has.
func (sh *share) lackingUnit(u unit) *share {
	if sh.hasUnit(u) {
		return nil
	}
	return sh
}

// within reports whether a limit admits a unit while nothing is held.
func (u unit) within(limit *amounts) bool {
	return limit[u.dir&dimMask] > 0 && limit[u.both&dimMask] > 0 && limit[dimFD] >= int64(u.fds)
}

// leave takes a unit out of its whole chain, with the references that it holds, and returns
// credit of which too much lies idle then.
func (st *stripe) leave(c *chain, u unit) {
	for _, a := range c.at[:firstShared] {
		if a != nil {
			a.use.subUnit(u)
			if a.refs--; a.refs == 0 {
				st.enqueue(a)
			}
		}
	}
	for _, a := range c.shared() {
		if a == nil {
			continue
		}
		a.use.subUnit(u)
		if sh := a.share; u.count != 0 && sh.idlesUnit(u) { // count is 0 for a span
			st.trimUnit(sh, u)
		}
		if !a.lasting() {
			if a.refs--; a.refs == 0 {
				st.enqueue(a)
			}
		}
	}
	if ps := c.peer(); ps != nil && u.count != 0 {
		now := int64(ps.use.counts[u.dir&dimMask])
		st.peerCounts[u.dir.oneWay()].MoveCount(now+1, now)
	}
}

// carry adds n units, and memory, to the share together with the credit for them.
func (sh *share) carry(u unit, n, memory int64) {
	fds := n * int64(u.fds)
	sh.use.counts[u.dir&dimMask] += int32(n)
	sh.use.counts[u.both&dimMask] += int32(n)
	sh.use.counts[dimFD] += int32(fds)
	sh.use.memory += memory
	sh.addCredit(u.dir, n)
	sh.addCredit(u.both, n)
	sh.addCredit(dimFD, fds)
	sh.addCredit(dimMemory, memory)
}

// giveBack takes a unit, and the memory that it holds, from one share.
func (st *stripe) giveBack(sh *share, u unit, memory int64) {
	sh.use.subUnit(u)
	sh.use.memory -= memory
	if sh.idlesUnit(u) || sh.idlesMemory() {
		st.trimUnit(sh, u)
	}
	if st.trace != nil {
		r, use := u.request(memory), sh.use.amounts()
		st.trace.returned(sh.name(), r.delta(), &use)
	}
}

// idlesUnit reports whether too much credit lies idle of anything that a unit counts in.
func (sh *share) idlesUnit(u unit) bool {
	return sh.idles(u.dir) || sh.idles(u.both) || sh.idles(dimFD)
}

// peerGotUnit brings the distributions of what peers hold, and the peaks, up to date after the
// peer got a unit.
func (st *stripe) peerGotUnit(ps *peerScope, u unit) {
	now := int64(ps.use.counts[u.dir&dimMask])
	st.peerCounts[u.dir.oneWay()].MoveCount(now-1, now)
	ps.peak.raise(&ps.use, u.dir)
	ps.peak.raise(&ps.use, u.both)
	most := &st.most[slotPeer]
	most.raise(&ps.use, u.dir)
	most.raise(&ps.use, u.both)
	if u.fds != 0 {
		ps.peak.raise(&ps.use, dimFD)
		most.raise(&ps.use, dimFD)
	}
}

// mayDraw reports whether the share has credit for everything that a unit counts in, or its
// pool has it to give. Under the drawing lock that stays so. A nil share lacks nothing.
func (sh *share) mayDraw(u unit) bool {
	return sh == nil || sh.mayDrawOne(u.dir) && sh.mayDrawOne(u.both) && (u.fds == 0 || sh.mayDrawOne(dimFD))
}

// drawUnitLocked draws the credit that is lacking. The drawing lock is held, and mayDraw has
// reported true under it.
func (st *stripe) drawUnitLocked(sh *share, u unit) {
	if sh == nil {
		return
	}
	st.drawOneLocked(sh, u.dir)
	st.drawOneLocked(sh, u.both)
	if u.fds != 0 {
		st.drawOneLocked(sh, dimFD)
	}
}

func (st *stripe) drawOneLocked(sh *share, d dim) {
	if !sh.lacksOne(d) {
		return
	}
	st.draws++
	if sh.pool.tight(d) { // it hands out exactly one: the rest of drawLocked has no effect
		sh.pool.handOut(d, 1)
		sh.addCredit(d, 1)
		return
	}
	l := sh.pool.tally(d)
	grant, _ := l.draw(1, 1, l.limit)
	sh.drawLocked(item{d, 1}, grant)
}

// trimUnit returns idle credit of all that a unit counts in, and of memory.
func (st *stripe) trimUnit(sh *share, u unit) {
	if sh.idles(u.dir) {
		st.trim(sh, u.dir)
	}
	if sh.idles(u.both) {
		st.trim(sh, u.both)
	}
	if sh.idles(dimFD) {
		st.trim(sh, dimFD)
	}
	if sh.idlesMemory() {
		st.trimMemory(sh)
	}
}

// trim returns idle credit of d, which is a count, if there is more than the share may keep. It
// reads the pool's word first, which may have become loose.
func (st *stripe) trim(sh *share, d dim) {
	st.returns++
	idle := sh.credit[d&dimMask] - int64(sh.use.counts[d&dimMask])
	if sh.pool.takesBack(d, idle) {
		sh.addCredit(d, -idle)
		return
	}
	sh.trimHalf(d, idle)
}
