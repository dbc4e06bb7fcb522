package rcmgr

// A connection: transient until its peer is known, and then moved to its peer, with all
// that it holds.

import (
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// connScope is a connection: transient until its peer is known.
type connScope struct {
	userScope
	peer *peerScope // once it is known
}

var (
	_ network.ConnManagementScope = (*connScope)(nil)
	_ ResourceScopeLimiter        = (*connScope)(nil)
)

// state returns what the engine keeps of the connection while it is not done. The lock of its
// stripe is held.
func (c *connScope) state() *connState { return c.h.tree.connState }

// PeerScope returns the scope of the connection's peer, or nil before SetPeer.
func (c *connScope) PeerScope() network.PeerScope {
	st := c.h.tree.lock()
	defer st.unlock()
	if c.peer == nil {
		return nil // not a nil pointer in an interface
	}
	return c.peer
}

// SetPeer moves the connection from transient to its peer, or leaves it as it
// was (I3).
func (c *connScope) SetPeer(p peer.ID) error {
	e := c.h.tree.at.Load().engine
	err := c.setPeer(e, p)
	if err != nil {
		logRefusal(err)
	} else if e.leaks != nil {
		c.recordMoved(e.leaks, func(r *openRecord) { r.peer = p })
	}
	if e.reporter != nil {
		e.reportPeer(p, err)
	}
	return err
}

func (c *connScope) setPeer(e *engine, p peer.ID) error {
	hash := e.hashOf(p)
	mv := move{to: e.stripeAt(hash).awake(), hash: hash}
	if e.allowlist.hasEntries() {
		_, remote, via, err := c.copied()
		if err != nil {
			return err
		}
		mv.trusted = e.allowlist.allowsAt(p, remote, via)
	}
	err := c.moveTo(p, &mv)
	if err != nil {
		mv.pass.Undo()
	}
	return err
}

// maybeTrusted reports whether the allowlist covers the connection, which has no peer yet, or may
// cover it once it has one. The lock of its stripe is held.
func (c *connScope) maybeTrusted(e *engine) bool {
	switch {
	case c.h.marks.has(located):
		return e.allowlist.mayTrust(c.state().remote.Addr(), netip.Addr{})
	case c.h.marks.has(viaRelay):
		return e.allowlist.mayTrust(netip.Addr{}, c.state().remote.Addr())
	}
	return false
}

// enterGates sends the connection through the gates. It skipped them because the allowlist names
// a peer at its address, and its peer turned out to be another one.
func (c *connScope) enterGates(e *engine, p *subnets.Pass) error {
	o, remote, _, err := c.copied()
	if err != nil {
		return err
	}
	if e.pressure.refuses(o.dir) {
		if err := c.refuseForMemory(); err != nil {
			return err
		}
	}
	if why := e.enterGates(remote, o.dir, p); why != nil {
		return e.refusedAtGate(&o, why)
	}
	return nil
}

// copied returns the connection as an opening, to be used without its lock, and the addresses of
// its far end and of the relay before it, which are invalid if there are none. It is an error if
// the connection can no longer be given a peer.
func (c *connScope) copied() (o opening, remote, via netip.Addr, err error) {
	st := c.h.tree.lock()
	defer st.unlock()
	if err = c.mayMove(st); err != nil {
		return o, remote, via, err
	}
	switch {
	case c.h.marks.has(located):
		remote = c.state().remote.Addr()
	case c.h.marks.has(viaRelay):
		via = c.state().remote.Addr()
	}
	h := c.h
	return opening{kind: h.kind, unit: h.unit, limit: h.limit, cost: h.use, num: h.num, moves: true}, remote, via, nil
}

// allowlisted reports whether the connection is charged to the allowlisted scopes. The lock
// of its stripe is held.
func (c *connScope) allowlisted() bool {
	return c.h.tree.chain.at[slotSystem].kind == KindAllowlistedSystem
}

// mayMove returns an error if the connection can no longer be given a peer.
func (c *connScope) mayMove(st *stripe) error {
	err := c.checkOpen(st)
	if err == nil && c.peer != nil {
		err = &scopeError{c.name(), errAttached}
	}
	return err
}

// move says where a connection is to go.
type move struct {
	to      *stripe
	hash    uint64       // of the peer's ID
	trusted bool         // the allowlist covers this peer at this address
	gates   gating       // whether the gates have to be asked, if it does not
	pass    subnets.Pass // what the gates gave
}

// gating is the progress of a moving connection at the gates.
type gating uint8

const (
	notDue gating = iota // they need not be asked, as far as is known now
	due
	passed
)

func (c *connScope) moveTo(p peer.ID, mv *move) error {
	e := mv.to.engine
	if c.moveReady(p, mv) {
		return nil
	}
	return decide(e, func(b *limitBook) (fetched[*amounts], error) {
		if mv.gates == due {
			if err := c.enterGates(e, &mv.pass); err != nil {
				return fetched[*amounts]{}, err
			}
			mv.gates = passed
		}
		return b.fetchPeer(p)
	}, func(g grip, limit fetched[*amounts]) (verdict, error) {
		from := c.h.tree.lockWith(mv.to, g)
		defer unlockBoth(from, mv.to, g)
		if err := c.mayMove(from); err != nil {
			return refused, err
		}
		if c.h.marks.has(onTrial) && !mv.trusted && mv.gates != passed {
			mv.gates = due
			return unknown, nil
		}
		ps := mv.to.peer(p, limit)
		if ps == nil {
			return unknown, nil
		}
		v, err := c.moveLocked(from, ps, mv, g)
		if v != admitted {
			mv.to.enqueue(&ps.account) // it may have been made for this connection
		}
		return v, err
	})
}

// moveReady is the short way to move: it works if the connection holds no memory and stays in
// its system scope, the peer's limit is known, and the peer has room. If not, it changes nothing.
func (c *connScope) moveReady(p peer.ID, mv *move) bool {
	h, to := c.h, mv.to
	from := h.tree.lockWith(to, oneStripe)
	defer unlockBoth(from, to, oneStripe)
	if !to.plain || !c.live() || c.peer != nil || h.marks.has(onTrial) || !c.stays(mv) || h.use != 0 {
		return false
	}
	ps := to.find(mv.hash, p)
	if ps == nil {
		if ps = to.peer(p, fetched[*amounts]{}); ps == nil {
			return false
		}
	}
	if !ps.hasUnit(h.unit) {
		to.enqueue(&ps.account) // it may have been made for this connection
		return false
	}
	ps.use.addUnit(h.unit)
	to.peerGotUnit(ps, h.unit)
	c.moveCharged(from, ps, mv)
	return true
}

// stays reports whether the connection keeps its system scope when it moves.
func (c *connScope) stays(mv *move) bool { return mv.trusted || !c.allowlisted() }

// moveLocked charges the new place first and then leaves the old one.
func (c *connScope) moveLocked(from *stripe, ps *peerScope, mv *move, g grip) (verdict, error) {
	v, err := c.takeNewPlace(mv.to, ps, mv.trusted, g)
	if v == admitted {
		c.moveCharged(from, ps, mv)
		if c.h.marks.has(located) && mv.to.engine.paces(dimStreamsIn) {
			ps.locate(c.state().remote)
		}
	}
	return v, err
}

// moveCharged moves the connection to the place that it has been charged to.
func (c *connScope) moveCharged(from *stripe, ps *peerScope, mv *move) {
	h, to, state := c.h, mv.to, c.state()
	u, place, stays := h.unit, &h.tree.chain, c.stays(mv)
	system := to.fixed[KindSystem]
	if stays {
		system = c.carry(from, to)
	} else {
		from.giveBack(place.at[slotSystem].share, u, h.use)
	}
	from.giveBack(place.at[slotTransient].share, u, h.use)

	if h.use != 0 {
		from.connMemory.MoveMemory(h.use, 0)
		to.connMemory.MoveMemory(0, h.use)
	}
	ps.refs++
	if mv.trusted {
		ps.trusted++
		h.marks |= trusted
	}
	if mv.pass.Conns != nil {
		state.gate = mv.pass.Conns
	}
	h.countSubnet(-1)
	if mv.trusted {
		from.engine.fair.leave(state.subnet)
		state.subnet = nil
	}
	c.peer, place.at[slotPeer] = ps, &ps.account
	place.at[slotTransient], place.at[slotSystem] = nil, &system.account
	h.tree.at.Store(to)
	h.countSubnet(1)
	if state.subnet != nil {
		ps.adopt(to.engine.fair, state.subnet)
	}
}

// takeNewPlace charges the connection to those accounts of its new place that do not count it
// yet.
func (c *connScope) takeNewPlace(to *stripe, ps *peerScope, trusted bool, g grip) (verdict, error) {
	total := c.h.total()
	total.grip = g
	var target chain
	target.at[slotPeer] = &ps.account
	var v verdict
	var why *noted
	if !trusted && c.allowlisted() {
		target.at[slotSystem] = &to.fixed[KindSystem].account
		total.sharedFirst, total.subnet = true, c.state().subnet
		v, why = to.takeStranger(&target, &total)
	} else {
		if !trusted {
			why = to.checkPeersShare(ps, &total)
		}
		if why != nil && !to.retryUnobserved(&total, refused, why) {
			v = refused
		} else {
			v, why = to.take(&target, &total)
		}
	}
	if v != refused {
		return v, nil
	}
	return v, to.refusal(why, c.h.asked(), &total)
}

// countSubnet adds n connections to what the subnet of the connection holds of the scopes that
// the connection is charged to now.
func (h *holder) countSubnet(n int64) {
	if h.tree.connState.subnet != nil {
		h.countGroups(n)
	}
}

// countGroups is countSubnet for a connection that has a subnet.
func (h *holder) countGroups(n int64) {
	countConn(&h.tree.chain, h.unit, h.tree.connState.subnet, n)
}

// takeStranger is take for a connection whose peer is not the one that the allowlist names. It
// has to fit the standard scopes, transient included, although it does not stay in transient.
func (st *stripe) takeStranger(target *chain, r *request) (verdict, *noted) {
	var standard chain
	standard.stand(st.fixed[KindTransient], st.fixed[KindSystem])
	for {
		r.asker, r.earmarks = nil, 0 // as in transient, where a connection has no peer
		v, why := st.checkShared(standard.only(slotSystem), r, onlyAsk)
		if v == admitted {
			v, why = st.checkShared(standard.only(slotTransient), r, onlyAsk)
		}
		if v == admitted {
			v, why = st.takeOnce(target, r)
		}
		if v == admitted || !st.retryUnobserved(r, v, why) {
			return v, why
		}
	}
}

// carry moves the connection's use of its system scope to the scope's share in another stripe,
// and returns that share. If the connection holds no memory and the share has idle credit for
// it, it stands on that. Otherwise it takes its own credit along. If every connection did, the
// credit would gather in the stripes of the busiest peers, and would have to be drawn again in
// the stripes where connections open.
func (c *connScope) carry(from, to *stripe) *share {
	h := c.h
	here := h.tree.chain.at[slotSystem].share
	there := to.fixed[here.kind]
	switch {
	case here == there:
	case h.use == 0 && there.hasUnit(h.unit):
		there.use.addUnit(h.unit)
		here.use.subUnit(h.unit)
		if here.idlesUnit(h.unit) {
			from.trimUnit(here, h.unit)
		}
	default:
		here.carry(h.unit, -1, -h.use)
		there.carry(h.unit, 1, h.use)
	}
	return there
}

// Done releases the connection and everything that it holds. A second call does nothing.
func (c *connScope) Done() {
	tree := c.h.tree
	st := tree.follow(tree.at.Load().lockNow())
	if !c.live() {
		st.mu.Unlock()
		return
	}
	state := c.state()
	if c.h.marks.has(trusted) {
		c.peer.trusted--
	}
	c.h.countSubnet(-1)
	c.h.finish(st)
	if st.engine.leaks != nil {
		c.recordClosed(st.engine.leaks)
	}
	remote, gate, subnet := state.remote, state.gate, state.subnet
	state.gate, state.subnet = nil, nil
	if st.closed {
		st.sweep()
	}
	tree.chain.clear()
	st.mu.Unlock()
	st.engine.idleConns.Put(c.h)
	st.engine.fair.leave(subnet)
	if gate != nil {
		gate.Leave(remote)
	}
}

// refuseForMemory refuses, for the sake of the process's memory, a connection that the
// allowlist let in for another peer.
func (c *connScope) refuseForMemory() error {
	st := c.h.tree.lock()
	defer st.unlock()
	if err := c.checkOpen(st); err != nil {
		return err
	}
	total := c.h.total()
	why := st.noteMemory(&total)
	if st.onlyObserves(why) {
		return nil
	}
	return st.refusal(why, c.h.asked(), &total)
}

func (e *engine) reportPeer(p peer.ID, err error) {
	if admitted, _, refused := decisionOf(err); admitted {
		e.reporter.AllowPeer(p)
	} else if refused {
		e.reporter.BlockPeer(p)
	}
}
