package rcmgr

// Memory is reserved and released far more often than anything else happens. So the
// two have paths of their own through a chain, without a request to put together:
// for what is there, and for what tight pools have to give. All else is for check
// in chain.go to decide.

// addMemory charges n bytes, of a reservation that may fill all of a limit, to the
// whole chain if all of it has that much to spare, or if what is lacking can be
// drawn from tight pools, and tells whether it did. Like addAllReady it charges as
// it goes, and takes back what did not fit.
func (st *stripe) addMemory(c *chain, n int64) bool {
	for i, a := range &c.at {
		if a == nil {
			continue
		}
		if n > a.ready[dimMemory]-a.use[dimMemory] {
			if i >= firstShared && !st.m.fair.on(KindSystem) && st.drawMemory(c.at[i:], n) {
				return true
			}
			for _, charged := range c.at[:i] {
				if charged != nil {
					charged.use[dimMemory] -= n
				}
			}
			return false
		}
		a.use[dimMemory] += n
	}
	return true
}

// drawMemory is addMemory for the last shares of a chain, where credit is lacking:
// it draws it and charges them, or changes nothing.
func (st *stripe) drawMemory(last []*account, n int64) bool {
	var lacking [numShared]*share
	k := 0
	for _, a := range last {
		if a == nil || n <= a.ready[dimMemory]-a.use[dimMemory] {
			continue
		}
		if !a.share.pool.tally(dimMemory).has(n) {
			return false
		}
		lacking[k] = a.share
		k++
	}
	may := true
	for _, sh := range lacking[:k] {
		sh.pool.mu.Lock()
		may = may && sh.pool.tally(dimMemory).has(n)
	}
	for _, sh := range lacking[:k] {
		if may {
			sh.drawLocked(dimMemory, n-(sh.credit[dimMemory]-sh.use[dimMemory]))
			st.draws++
		}
		sh.pool.mu.Unlock()
	}
	if !may {
		return false
	}
	for _, a := range last {
		if a != nil {
			a.use[dimMemory] += n
		}
	}
	return true
}

// peerGotMemory keeps the distribution of what peers hold, and the peer's peak, after
// it got n bytes.
func (st *stripe) peerGotMemory(ps *peerScope, n int64) {
	now := ps.use[dimMemory]
	ps.peak.raise(&ps.use, dimMemory)
	st.peerMemory.moveMemory(now-n, now)
}

// subMemory takes n bytes from the whole chain, and returns credit where too much
// lies idle now.
func (st *stripe) subMemory(c *chain, n int64) {
	if c.peer != nil {
		now := c.peer.use[dimMemory]
		st.peerMemory.moveMemory(now, now-n)
	}
	for _, a := range c.at[:firstShared] {
		if a != nil {
			a.use[dimMemory] -= n
		}
	}
	for _, a := range c.shared() {
		if a == nil {
			continue
		}
		a.use[dimMemory] -= n
		if sh := a.share; sh.use[dimMemory] < sh.floor[dimMemory] {
			sh.pool.mu.Lock()
			st.returns += sh.trimLocked(dimMemory)
			sh.pool.mu.Unlock()
		}
	}
}
