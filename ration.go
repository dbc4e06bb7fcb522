package rcmgr

// How much of a limit a request may fill, for the sake of others: the last quarter of
// transient's streams is kept for newcomers (WithNewcomersQuarter), and with WithFairShare no
// peer and no subnet takes more than its share of what all of them use.

// countTransient keeps the number of streams that a peer has in the standard
// transient scope.
func countTransient(c *chain, d dim, n int32) {
	if a := c.at[slotTransient]; a != nil && a.kind == KindTransient && d <= dimStreamsOut {
		ps := c.peer()
		ps.transientStreams[(d-dimStreamsIn)&1] += n
		if near := ps.subnet; near != nil && d == dimStreamsIn {
			near.held[KindTransient].streams.Add(int64(n))
		}
	}
}

// countStream adds a stream to what its peer and that one's subnet hold of the standard
// system scope, or takes it away.
func countStream(c *chain, d dim, by int32) {
	if d != dimStreamsIn || c.at[slotSystem].kind != KindSystem {
		return
	}
	ps := c.peer()
	ps.systemIn += by
	if n := ps.subnet; n != nil {
		n.held[KindSystem].streams.Add(int64(by))
	}
}

// countConn adds a connection to what its subnet holds of the standard scopes in which it
// stands, or takes it away.
func countConn(c *chain, u unit, n *fairSubnet, by int64) {
	for _, a := range c.at[slotTransient:] {
		if a != nil && a.kind <= KindTransient {
			n.countConn(a.kind, u.fds, by)
		}
	}
}

// adopt makes the peer one of a subnet, with all that it holds already, if it is of none
// yet. Both are held: the peer's stripe lock, and a connection from the subnet.
func (ps *peerScope) adopt(f *fairShare, n *fairSubnet) {
	if n != nil && ps.subnet == nil {
		ps.subnet = n
		f.join(n, ps.systemIn, ps.transientStreams[0])
	}
}

// holds gives what the subnet holds of a scope's limit.
func (n *fairSubnet) holds(k Kind, d dim) int64 {
	if n == nil {
		return 0
	}
	switch resourceOf[d] {
	case ResourceStream:
		if d == dimStreamsOut {
			return 0 // those that this host opened
		}
		return n.held[k].streams.Load()
	case ResourceConnection:
		return n.held[k].conns.Load()
	case ResourceFD:
		return n.held[k].fds.Load()
	}
	return 0
}

// holds gives what the peer holds of a scope's limit, as far as it has a share of it; of
// descriptors, also those of connections to it.
func (ps *peerScope) holds(k Kind, d dim) int64 {
	switch {
	case ps == nil:
		return 0
	case k == KindTransient && d == dimStreamsOut:
		return int64(ps.transientStreams[1])
	case k == KindTransient && resourceOf[d] == ResourceStream:
		return int64(ps.transientStreams[0])
	case k == KindTransient:
		return 0 // neither a connection nor what it holds has a peer there
	case resourceOf[d] == ResourceStream:
		return int64(ps.systemIn)
	case d == dimConns:
		return ps.use.of(dimConnsIn)
	}
	return ps.use.of(d)
}

// checkPeersShare decides whether a peer may have another of the inbound connections
// that stand in the system scope already, without a peer.
func (st *stripe) checkPeersShare(ps *peerScope, r *request) *noted {
	if r.asker = ps; !st.engine.fair.on(KindSystem) || !st.engine.rations(r) {
		return nil
	}
	system := st.fixed[KindSystem]
	items, n := r.list()
	for _, it := range items[:n] {
		// Above half, what has been handed out is in use, this connection included.
		// Whoever may have all of a limit has been let in, and stays if it has been
		// lowered since.
		used, most := system.pool.tally(it.d).handed, st.engine.ration(r, &system.account, it)
		if it.d != dimMemory && used > most && most < system.limit()[it.d] {
			return st.refuse(r, &system.account, it, used-it.n)
		}
	}
	return nil
}

// most returns the most that a scope of a kind with these limits may hold of d, whoever asks.
// It is the limit but for transient's outbound streams: they leave inbound ones a quarter of
// the total, or their limit if that is less. A part of the total that is never taken needs no
// sum over both directions.
func (e *engine) most(k Kind, limit *amounts, d dim) int64 {
	if k != KindTransient || d != dimStreamsOut || !e.newcomers {
		return limit[d]
	}
	total := limit[dimStreams]
	return min(limit[d], total-min(total/4, limit[dimStreamsIn]))
}

// rations reports whether a request may not get all of a limit. Connections and memory that
// this host asks for itself are its own; of streams it opens, no peer has too many that wait
// in transient.
func (e *engine) rations(r *request) bool {
	switch r.dir {
	case dimConnsOut:
		return false
	case dimStreamsIn:
		return e.fair != nil || e.newcomers && r.asker.holds(KindTransient, dimStreamsIn) > 0
	case dimStreamsOut:
		return (e.newcomers || e.fair.on(KindTransient)) && r.asker.holds(KindTransient, dimStreamsOut) > 0
	case dimConnsIn:
		return e.fair != nil
	}
	return e.fair.on(KindSystem) // memory
}

// ration returns the most that a standard scope may hold after it got an item of a
// request that may not get all.
func (e *engine) ration(r *request, a *account, it item) int64 {
	most := e.most(a.kind, a.limit(), it.d)
	switch {
	case !a.kind.rationed(r, it.d):
	case !e.fair.on(a.kind):
		if e.newcomers && a.kind.hasLastQuarter(it.d) && r.crowds(a.kind, it, most) {
			return most - most/4
		}
	case r.asker != nil && r.asker.trusted > 0:
	case r.crowds(a.kind, it, most):
		return most / 2
	default:
		return max(most/2, most-r.subnet.holds(a.kind, it.d))
	}
	return most
}

// crowds reports whether the peer that asks for an item holds something of a limit, and would
// hold more than a quarter of it.
func (r *request) crowds(k Kind, it item, limit int64) bool {
	held := r.asker.holds(k, it.d)
	return held > 0 && it.n > max(0, limit/4-held)
}

// rationedBy returns the rule that bounds what is within a scope's limit.
func (e *engine) rationedBy(k Kind) Cause {
	if e.fair.on(k) {
		return CauseFairShare
	}
	return CauseCrowding
}

// rationed reports whether a limit on d in a scope of this kind is shared out among those who
// make requests like r. Of what a host opens itself, only the streams that wait in transient
// for their protocol are.
func (k Kind) rationed(r *request, d dim) bool {
	return r.dir != dimStreamsOut || k.hasLastQuarter(d) && d == dimStreamsOut
}
