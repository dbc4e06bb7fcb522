package rcmgr

// Unused scopes are collected. An account that loses its last reference enters the queue of
// its stripe. Once a minute the queues are worked off, a few accounts at a time under the
// lock, and those that are still unused are collected. A scope that is used, or that holds
// anything, memory included, never is (I7). Close collects for the last time. From then on
// each operation collects what it has made unused itself.

import "time"

const (
	// reapInterval is the time between two collections. A scope that is unused at one of them
	// is collected then or at the next (I7).
	reapInterval = time.Minute
	// reapChunk bounds the accounts that are looked at under one lock.
	reapChunk = 64
)

// reap collects everything that is unused now, in the gates, too, and begins a new generation
// of the peaks of members.
func (e *engine) reap() {
	for i := range e.stripes {
		st := &e.stripes[i]
		// Two rounds: an account that goes in the first may have been the last to hold a
		// peer, a service or a protocol. A bounded number, because the queue of a busy host
		// may never be empty.
		for range 2 {
			for left, n := st.waiting(), 1; left > 0 && n > 0; left -= n {
				n = st.reapSome(left)
			}
		}
	}
	e.gate().forget()
	e.beginMemberPeaks()
}

// waiting returns the length of the queue. It takes the stripe's lock.
func (st *stripe) waiting() int {
	st.lock()
	defer st.unlock()
	if st.awakened == nil {
		return 0
	}
	return len(st.queue)
}

// reapSome is reapLocked for a caller without the stripe's lock, which it takes.
func (st *stripe) reapSome(most int) int {
	st.lock()
	defer st.unlock()
	return st.reapLocked(most)
}

// sweep collects what has become unused in a stripe after Close, when no worker does. Its lock
// is held. An operation makes only a few accounts unused; two rounds, as in reap.
func (st *stripe) sweep() {
	for range 2 {
		st.reapLocked(reapChunk)
	}
}

// exit ends what directScope.enter, or a view, has begun in the stripe.
func (st *stripe) exit(g grip) {
	if st.closed {
		st.sweep()
	}
	st.unlockAs(g)
}

// reapLocked looks at the head of the queue, at no more than most accounts, and returns at
// how many. The stripe's lock is held.
func (st *stripe) reapLocked(most int) int {
	n := min(most, reapChunk, len(st.queue))
	for _, a := range st.queue[:n] {
		a.queued = false
		switch {
		case a.gone || !a.unused():
		case st.rated && st.owes(a):
			a.queued = true
			st.queue = append(st.queue, a)
		default:
			st.collect(a)
		}
	}
	st.queue = st.queue[n:]
	if len(st.queue) == 0 {
		st.queue = nil // do not keep the memory of a long queue
	}
	return n
}

// collect takes an unused account out of the stripe and marks it gone.
func (st *stripe) collect(a *account) {
	a.gone = true
	st.traceDestroyed(a)
	switch a.kind {
	case KindPeer:
		st.peers.remove(a.ps)
		a.ps.fillBuckets() // it may come back
		st.engine.fair.leave(a.ps.subnet)
		a.ps.subnet = nil
	case KindServicePeer, KindProtocolPeer:
		dropPairRates(a)
		ps, sh := a.ps, a.share
		ps.dropPair(ps.pair(sh))
		a.ps, a.share, a.ready = nil, nil, nil // others may keep its memory, see newPair
		st.unref(&ps.account)
		st.unref(&sh.account)
	case KindService, KindProtocol:
		sh := a.share
		delete(st.named(a.kind), sh.pool.name)
		sh.pool.shares[st.index] = nil
		sh.surrender()
		st.engine.dir.leave(sh)
	}
}

// The slots of a chain before the shared ones are those of the members whose peaks are kept.
var _ [firstShared]Kind = memberKinds

// memberPeaks returns the most that any one member has held since the manager was made, and
// in the last two generations. All stripe locks are held.
func (e *engine) memberPeaks() (ever, recent memberPeaks) {
	recent = e.members.last
	for i := range e.stripes {
		if n := e.stripes[i].awakened; n != nil {
			recent.add(&n.most)
		}
	}
	ever = e.members.ever
	ever.add(&recent)
	return ever, recent
}

func (p *memberPeaks) raisePair(pr *pair) {
	slot := slotProtocolPeer
	if pr.kind == KindServicePeer {
		slot = slotServicePeer
	}
	p.raise(slot, &pr.use)
}

// beginMemberPeaks begins the next generation of peaks. What members hold now is added a few
// peers at a time; until that is done, the generation before has it.
func (e *engine) beginMemberPeaks() {
	e.inOneCut(func() {
		over := &e.members
		over.last = memberPeaks{}
		for i := range e.stripes {
			if n := e.stripes[i].awakened; n != nil {
				over.last.add(&n.most)
				n.most = memberPeaks{}
			}
		}
		over.ever.add(&over.last)
	})
	for i := range e.stripes {
		st := &e.stripes[i]
		st.eachPeer(func(ps *peerScope) {
			st.dropFull(ps)
			st.most.raise(slotPeer, &ps.use)
			ps.eachPair(st.most.raisePair)
		})
	}
}
