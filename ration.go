package rcmgr

// How much of a limit a request may fill, so that others get something. Three policies are
// here. WithNewcomersQuarter, which is on by default, keeps the last quarter of transient's
// streams for peers that hold little of it. WithFairShare limits each peer, each subnet and each
// group around it to a share that follows from what is left free. WithEarmarks keeps a part for peers
// and protocols that the host names (earmark.go).

import (
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/weir-p2p/rcmgr/internal/groups"
)

// countTransient adds n to the number of streams that the chain's peer, and that peer's subnet,
// have in the standard transient scope, if the chain is charged there.
func countTransient(c *chain, d dim, n int32) {
	if a := c.at[slotTransient]; a != nil && a.kind == KindTransient && d <= dimStreamsOut {
		ps := c.peer()
		ps.transientStreams[(d-dimStreamsIn)&1] += n
		if ps.subnet != nil {
			ps.countStreams(groups.Transient, d, int64(n))
		}
	}
}

// countStream adds n to the number of inbound streams that the chain's peer, and that peer's
// subnet, have in the standard system scope, if the chain is charged there.
func countStream(c *chain, d dim, n int32) {
	if d != dimStreamsIn || c.at[slotSystem].kind != KindSystem {
		return
	}
	ps := c.peer()
	ps.systemIn += n
	if ps.subnet != nil {
		ps.countStreams(groups.System, d, int64(n))
	}
}

// countConn adds n connections to what a subnet and its groups hold in the standard scopes that
// the chain is charged in.
func countConn(c *chain, u unit, subnet *groups.Seat, n int64) {
	for _, a := range c.at[slotTransient:] {
		if a != nil && a.kind <= KindTransient {
			subnet.AddConn(groupKinds[a.kind], u.fds, n)
		}
	}
}

// countStreams adds n streams in a direction to what the groups of a peer hold, which has some.
// Inbound streams of a peer that this host alone has connected to do not count.
func (ps *peerScope) countStreams(in groups.Scope, d dim, n int64) {
	switch s := ps.subnet; {
	case d == dimStreamsOut:
		s.Add(in, groups.StreamsOut, n)
	case !s.Out():
		s.Add(in, groups.StreamsIn, n)
	}
}

// adopt makes a peer, with all that it holds already, a member of the groups of its connection.
// The first inbound connection decides, and before there is one, the first outbound one. The lock
// of the peer's stripe is held, and so is the connection.
func (ps *peerScope) adopt(f *fairShare, n *groups.Seat) {
	if ps.subnet != nil && (!ps.subnet.Out() || n.Out()) {
		return
	}
	in, out := int64(ps.transientStreams[0]), int64(ps.transientStreams[1])
	if ps.subnet != nil {
		ps.countStreams(groups.Transient, dimStreamsOut, -out)
		f.Leave(ps.subnet)
	}
	f.Join(n)
	ps.subnet = n
	ps.countStreams(groups.System, dimStreamsIn, int64(ps.systemIn))
	ps.countStreams(groups.Transient, dimStreamsIn, in)
	ps.countStreams(groups.Transient, dimStreamsOut, out)
}

// holds returns what the peer holds of a scope's limit, as far as the peer has a share of it.
// Descriptors include those of outbound connections.
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

// checkPeersShare returns the refusal to give a peer one more of the connections that stand in
// the system scope without a peer, nil if the peer may have it.
func (st *stripe) checkPeersShare(ps *peerScope, r *request) *noted {
	r.asker = ps
	e := st.engine
	shares := e.fair.on(KindSystem) && e.rations(r)
	if !shares && e.earmarks == nil {
		return nil
	}
	if e.earmarks != nil {
		r.earmarks = ps.earmarksFor(r, nil)
	}
	return st.checkStanding(r, func(a *account, it item) int64 { return e.mostStanding(shares, r, a, it) })
}

// mostStanding returns the most that the system scope may hold for a connection to get its peer.
func (e *engine) mostStanding(shares bool, r *request, a *account, it item) int64 {
	most := e.most(a.kind, a.limit(), it.d)
	if shares {
		most = e.ration(r, a, it)
	}
	if e.earmarks != nil {
		most = min(most, e.unmarked(r, a, it.d))
	}
	return most
}

// most returns the most that a scope of a kind with these limits may hold of d, whichever peer
// asks. That is the limit, except for transient's outbound streams: they leave a quarter of
// the total to inbound ones, or the inbound limit if that is less. As a bound on one
// dimension alone, it needs no sum over both directions.
func (e *engine) most(k Kind, limit *amounts, d dim) int64 {
	if k != KindTransient || d != dimStreamsOut || !e.newcomers {
		return limit[d]
	}
	total := limit[dimStreams]
	return min(limit[d], total-min(total/4, limit[dimStreamsIn]))
}

// rations reports whether a request may be held to a part of a limit, for the sake of others.
// Outbound connections and streams are, in the transient scope, for the sake of what the host
// opens elsewhere.
func (e *engine) rations(r *request) bool {
	switch r.dir {
	case dimConnsOut:
		return e.fair.on(KindTransient)
	case dimStreamsIn:
		return e.fair != nil || e.newcomers && r.asker.holds(KindTransient, dimStreamsIn) > 0
	case dimStreamsOut:
		return e.fair.on(KindTransient) || e.newcomers && r.asker.holds(KindTransient, dimStreamsOut) > 0
	case dimConnsIn:
		return e.fair != nil
	}
	return e.fair.on(KindSystem)
}

// ration returns the most that a standard scope may hold once it has an item of a request that
// may not fill all of a limit.
func (e *engine) ration(r *request, a *account, it item) int64 {
	most := e.most(a.kind, a.limit(), it.d)
	switch {
	case !a.kind.rationed(r, it.d), r.earmarks&hasEarmark != 0:
	case !e.fair.on(a.kind):
		if e.newcomers && a.kind.hasLastQuarter(it.d) && r.crowds(a.kind, it, most) {
			return most - most/4
		}
	case r.asker != nil && r.asker.trusted > 0:
	case r.crowds(a.kind, it, most):
		return most / 2
	default:
		claim, _ := claimOf(r.subnet, a.kind, it.d)
		return max(most/2, most-claim)
	}
	return most
}

// crowds reports whether the peer that asks for an item holds some of a limit already, and
// would hold more than a quarter of it.
func (r *request) crowds(k Kind, it item, limit int64) bool {
	held := r.asker.holds(k, it.d)
	return held > 0 && it.n > max(0, limit/4-held)
}

// rationedBy returns the rule by which a scope refuses an item that its limit would admit.
func (e *engine) rationedBy(r *request, a *account, it item, current int64) Cause {
	switch {
	case e.earmarks != nil && (!e.rations(r) || it.n <= e.ration(r, a, it)-current):
		return CauseEarmark
	case e.fair.on(a.kind):
		return CauseFairShare
	}
	return CauseCrowding
}

// earmarksFor returns the earmarks whose parts a request of a peer may take. at is the account of
// its protocol, or of what stands in the place of one, or nil. The lock of the peer's stripe is
// held.
func (ps *peerScope) earmarksFor(r *request, at *account) (may earmarkSet) {
	e := ps.st.engine
	m := e.earmarks
	may = m.named.Load().of[ps.id]
	if m.allowlisted != 0 && (ps.trusted > 0 || e.allowlist.allowsPeer(ps.id)) {
		may |= m.allowlisted
	}
	if at != nil && at.kind == KindProtocol {
		name := at.name()
		may |= m.protocols[protocol.ID(name.text)]
	}
	if may != 0 {
		may |= hasEarmark
	}
	switch {
	case at != nil && at.lasting(): // it has no protocol yet
		may |= m.ofProtocols
	case r.both == dimConns && r.count != 0: // it never has one
		may |= m.onlyProtocols
	}
	return may
}

// unmarked returns the most that a standard scope may hold of d once a request is admitted, for the
// sake of the earmarks that it does not have. Of a connection without a peer, that is not known.
func (e *engine) unmarked(r *request, a *account, d dim) int64 {
	most := e.most(a.kind, a.limit(), d)
	if r.asker == nil || isUnlimited(d, most) {
		return most
	}
	return most - e.earmarks.keptFrom(r.earmarks, most)
}

// checkProtocol returns the refusal to let a stream that stands in the system scope have a
// protocol, nil if it may have it. r is what the stream holds.
func (st *stripe) checkProtocol(ps *peerScope, pr *pair, r *request) *noted {
	r.asker, r.earmarks = ps, ps.earmarksFor(r, &pr.share.account)
	return st.checkStanding(r, func(a *account, it item) int64 { return st.engine.unmarked(r, a, it.d) })
}

// checkStanding returns the refusal of what stands in the system scope already, if that holds more
// than most returns, and nil if it does not. Above half of a limit, what has been handed out is in
// use, the request included. What was admitted when all of a limit was free to it stays even if the
// limit has been lowered since.
func (st *stripe) checkStanding(r *request, mostOf func(*account, item) int64) *noted {
	system := st.fixed[KindSystem]
	items, n := r.list()
	for _, it := range items[:n] {
		used, most := system.pool.tally(it.d).handed, mostOf(&system.account, it)
		if it.d != dimMemory && used > most && most < system.limit()[it.d] {
			return st.refuse(r, &system.account, it, used-it.n)
		}
	}
	return nil
}

// rationed reports whether scopes of this kind divide their limit on d among those that make
// requests like r. For what the host opens itself, only transient does: what has got past it, the
// host has chosen to keep.
func (k Kind) rationed(r *request, d dim) bool {
	if r.dir == dimStreamsOut || r.dir == dimConnsOut {
		return k == KindTransient && d == r.dir
	}
	return true
}
