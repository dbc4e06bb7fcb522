package rcmgr

// Idle scopes go. An account that loses its last reference stands in its
// stripe's queue, and once a minute the queues are emptied: what is still
// unused goes, a few accounts at a time under the lock. Nothing that is used,
// or that holds anything, memory included, is collected (I7).

import (
	"slices"
	"time"
)

const (
	// reapInterval is how long an unused scope lives at most.
	reapInterval = time.Minute
	// reapChunk bounds the accounts that are looked at under one lock.
	reapChunk = 64
)

func (m *Manager) reapUntilClosed() {
	defer m.reaper.Done()
	tick := time.NewTicker(reapInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.reap()
		case <-m.stop:
			return
		}
	}
}

// reap collects everything that is unused now.
func (m *Manager) reap() {
	for i := range m.stripes {
		for m.stripes[i].reapSome() {
		}
	}
	m.gate.forget(time.Now())
}

// reapSome looks at the head of the queue, and tells whether more is waiting.
func (st *stripe) reapSome() bool {
	st.lock(false)
	defer st.unlock(false)
	n := min(reapChunk, len(st.queue))
	for _, a := range st.queue[:n] {
		a.queued = false
		if !a.gone && a.unused() {
			st.collect(a)
		}
	}
	st.queue = st.queue[n:]
	if len(st.queue) == 0 {
		st.queue = nil // its room may have been made for a crowd
	}
	return st.queue != nil
}

// collect takes an unused account out of the stripe and marks it gone.
func (st *stripe) collect(a *account) {
	a.gone = true
	st.traceDestroyed(a)
	switch a.kind {
	case KindPeer:
		ps := st.peers[a.peer]
		for _, pr := range ps.pairs {
			pr.gone = true
			st.traceDestroyed(&pr.account)
			st.unref(&pr.of.account)
		}
		ps.pairs = nil
		delete(st.peers, a.peer)
	case KindServicePeer, KindProtocolPeer:
		ps := st.peers[a.peer]
		for i, pr := range ps.pairs {
			if &pr.account == a {
				ps.pairs = slices.Delete(ps.pairs, i, i+1)
				st.unref(&pr.of.account)
				break
			}
		}
	case KindService, KindProtocol:
		sh := st.named(a.kind)[a.text]
		delete(st.named(a.kind), a.text)
		sh.pool.shares[st.index] = nil
		sh.surrender()
		st.m.dir.leave(sh.pool)
	}
}

// surrender returns all credit of an unused share.
func (sh *share) surrender() {
	sh.pool.mu.Lock()
	defer sh.pool.mu.Unlock()
	for d := range numDims {
		sh.returnLocked(d, sh.credit[d])
	}
}
