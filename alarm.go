package rcmgr

// Where room has to be made. With WithRoom, a scope that all peers share keeps a small part of
// each limit free, so that newcomers need not wait until room has been made for them. When half
// of that reserve is taken, or when the scope refuses something, it sets a bit and wakes the
// worker that makes room (room.go). Without the option, nothing here runs except that passed
// notes peaks.

import "math"

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

// passed notes that a pool has handed out more of d than its mark. The drawing lock is held, or
// all stripe locks are.
func (p *pool) passed(d dim, handed int64) {
	p.raisePeak(d, handed)
	if p.engine.alarm != nil && handed > p.roomy[d] {
		p.engine.alarm.report(p, 1<<d)
	}
	p.mark[d] = min(p.peak[d], p.roomy[d])
}

// refused notes a refusal by an account. The lock of its stripe is held.
func (a *alarm) refused(why *noted) {
	if a == nil || why.by.share == nil || why.by.ps != nil {
		return // no room is made in what one peer may have
	}
	p, d := why.by.share.pool, why.d
	if (why.cause == CauseLimit || d == dimStreamsOut) && p.kind.makesRoom(d) {
		a.report(p, 1<<d|1<<(d+numDims))
	}
}

// report sets bits of what a pool lacks, and wakes the worker. Locks may be held.
func (a *alarm) report(p *pool, bits uint32) {
	if p.asked.Load()&bits == bits {
		return
	}
	p.asked.Or(bits)
	select {
	case a.ring <- struct{}{}:
	default: // it is awake, or will be
	}
}

// shortOf is one dimension of which a pool is short.
type shortOf struct {
	pool *pool
	d    dim
	need func() int64 // how much it has to get back now
}

// shortages takes what the pools have reported, and returns them. No lock is
// held.
func (e *engine) shortages() (list []shortOf) {
	for _, p := range append(e.fixed[:], e.dir.list()...) {
		bits := p.asked.Swap(0)
		if bits == 0 {
			continue
		}
		for d := range numDims {
			if bits>>d&1 != 0 {
				refused := bits>>(d+numDims)&1 != 0
				list = append(list, shortOf{p, d, func() int64 { return p.lacks(d, refused) }})
			}
		}
	}
	return list
}

// lacks returns how much of d the pool has to get back. If it has refused something, that is
// enough for one more of a limit without a reserve. No lock is held.
func (p *pool) lacks(d dim, refused bool) int64 {
	p.home.lock() // for most
	limit := p.most[d]
	p.home.unlock()
	w := p.load(d)
	if !w.tight() {
		return 0 // less than half is in use, or it has just become so
	}
	free, reserve := limit-w.handed(), reserveOf(limit)
	switch {
	case free < (reserve+1)/2:
		return reserve - free
	case refused && free < 1:
		return 1 - free
	}
	return 0
}
