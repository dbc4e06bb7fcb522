package rcmgr

// Memory is reserved and released far more often than anything else happens. So both have short
// ways of their own through a chain, which need no request: one for credit that is at hand,
// and one for what tight pools have to give. Everything else is for check in chain.go.

// holdReady is the short way to reserve n bytes: it works if they are at hand, or can be drawn
// from tight pools. It reports whether it did. The slots are written out, because a loop over
// them takes longer.
func (st *stripe) holdReady(h *holder, id scopeID, n int64, priority uint8) bool {
	if priority < st.wholeFrom || n <= 0 || st.closed || !h.is(id) {
		return false
	}
	for x := h; ; x = x.link {
		// A span without a limit of its own never holds more than its owner.
		if !x.serves(h.num) || x.limit != nil && n > x.limit[dimMemory]-x.use {
			return false
		}
		if x.role != innerSpan {
			break
		}
	}
	at := &h.tree.chain.at
	if at[slotPeer].lacksMemory(n) || at[slotProtocolPeer].lacksMemory(n) || at[slotServicePeer].lacksMemory(n) {
		return false
	}
	if at[slotProtocol].lacksMemory(n) || at[slotService].lacksMemory(n) || at[slotSystem].lacksMemory(n) {
		if st.engine.sharesMemory || !st.drawMemory(&h.tree.chain, n) {
			return false
		}
	}
	st.hold(h, n, priority)
	return true
}

// hold charges what has been admitted to h, its owners and its chain.
func (st *stripe) hold(h *holder, n int64, priority uint8) {
	h.own += n
	for x := h; ; x = x.link {
		st.change(x, n)
		if x.role != innerSpan {
			break
		}
	}
	at := &h.tree.chain.at
	if a := at[slotPeer]; a != nil {
		a.gotMemory(n, &st.most[slotPeer])
		st.peerGotMemory(a.ps, n)
	}
	at[slotProtocolPeer].gotMemory(n, &st.most[slotProtocolPeer])
	at[slotServicePeer].gotMemory(n, &st.most[slotServicePeer])
	at[slotProtocol].addMemory(n)
	at[slotService].addMemory(n)
	at[slotSystem].addMemory(n)
	if st.trace != nil {
		st.traceMemory(h, n, priority, (*tracer).granted)
	}
}

// lacksMemory reports whether the account has less than n bytes to spare. An empty slot lacks
// nothing.
func (a *account) lacksMemory(n int64) bool {
	return a != nil && n > a.ready[dimMemory]-a.use.memory
}

func (a *account) addMemory(n int64) {
	if a != nil {
		a.use.memory += n
	}
}

// drawMemory draws n bytes for the shares that lack them, if their pools are tight and have
// them to give, and reports whether it did. If not, it changes nothing. It draws all n bytes,
// because no share of a tight pool has idle credit.
func (st *stripe) drawMemory(c *chain, n int64) bool {
	protocol, service, system := c.at[slotProtocol].lacking(n), c.at[slotService].lacking(n), c.at[slotSystem].lacking(n)
	if !protocol.hasMemory(n) || !service.hasMemory(n) || !system.hasMemory(n) {
		return false
	}
	drawing := &st.engine.drawing
	drawing.Lock()
	may := protocol.hasMemory(n) && service.hasMemory(n) && system.hasMemory(n)
	if may {
		st.draws += protocol.drawMemoryLocked(n) + service.drawMemoryLocked(n) + system.drawMemoryLocked(n)
	}
	drawing.Unlock()
	return may
}

// lacking returns the share of the account if it has less than n bytes to spare, else nil.
func (a *account) lacking(n int64) *share {
	if a.lacksMemory(n) {
		return a.share
	}
	return nil
}

// hasMemory reports whether n bytes can be drawn for a share: its pool is tight and has them. A
// nil share needs none.
func (sh *share) hasMemory(n int64) bool {
	return sh == nil || sh.pool.load(dimMemory).hasTight(n, sh.pool.most[dimMemory])
}

// drawMemoryLocked draws n bytes for a share, and returns the number of draws, 0 for a nil
// share. The drawing lock is held.
func (sh *share) drawMemoryLocked(n int64) (draws uint64) {
	if sh == nil {
		return 0
	}
	sh.pool.handOut(dimMemory, n)
	sh.addCredit(dimMemory, n)
	return 1
}

// gotMemory adds n bytes to a peer, or to its part of a service or protocol, if there is one.
func (a *account) gotMemory(n int64, most *held) {
	if a != nil {
		a.use.memory += n
		most.raiseMemory(a.use.memory)
	}
}

// drop releases n bytes from h, its owners and the chain, and returns credit of which too much
// lies idle then. The walk stops at the first owner that is done or has another number than
// num: it has released everything below it already (I5). If h is nil, drop releases from the
// chain alone.
func (st *stripe) drop(c *chain, h *holder, num, n int64) {
	x := h
	for ; x != nil && x.serves(num); x = x.owner() {
		st.change(x, -n)
	}
	if x == nil {
		if a := c.at[slotPeer]; a != nil {
			now := a.use.memory
			a.use.memory = now - n
			st.peerMemory.MoveMemory(now, now-n)
		}
		c.at[slotProtocolPeer].addMemory(-n)
		c.at[slotServicePeer].addMemory(-n)
		if a := c.at[slotProtocol]; a.freeMemory(n) {
			st.trimMemory(a.share)
		}
		if a := c.at[slotService]; a.freeMemory(n) {
			st.trimMemory(a.share)
		}
		if a := c.at[slotSystem]; a.freeMemory(n) {
			st.trimMemory(a.share)
		}
	}
	if st.trace != nil && h != nil {
		st.traceMemory(h, n, 0, (*tracer).returned)
	}
}

// freeMemory takes n bytes from the account of a share, and reports whether too much credit
// lies idle then. An empty slot is false.
func (a *account) freeMemory(n int64) bool {
	if a == nil {
		return false
	}
	a.use.memory -= n
	return a.share.idlesMemory()
}

// trimMemory is trim for memory.
func (st *stripe) trimMemory(sh *share) {
	st.returns++
	idle := sh.credit[dimMemory] - sh.use.memory
	if sh.pool.takesBack(dimMemory, idle) {
		sh.addCredit(dimMemory, -idle)
		return
	}
	sh.trimHalf(dimMemory, idle)
}
