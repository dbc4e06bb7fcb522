package rcmgr

// A stream. Its peer is known from the start. It is transient until its protocol is known, and
// may be attached to a service after that.

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// streamScope is a stream: transient until its protocol is known.
type streamScope struct {
	userScope
	peer *peerScope
}

var (
	_ network.StreamManagementScope = (*streamScope)(nil)
	_ ResourceScopeLimiter          = (*streamScope)(nil)
)

// PeerScope returns the scope of the stream's peer.
func (s *streamScope) PeerScope() network.PeerScope {
	return s.peer
}

// ProtocolScope returns the scope of the stream's protocol, or nil before
// SetProtocol and after Done.
func (s *streamScope) ProtocolScope() network.ProtocolScope {
	if p := s.pool(slotProtocol, KindProtocol); p != nil {
		return protocolScope{p}
	}
	return nil
}

// ServiceScope returns the scope of the stream's service, or nil before
// SetService and after Done.
func (s *streamScope) ServiceScope() network.ServiceScope {
	if p := s.pool(slotService, KindService); p != nil {
		return serviceScope{p}
	}
	return nil
}

// pool returns the protocol or service of the stream, or nil if it has none yet.
func (s *streamScope) pool(slot int, k Kind) *pool {
	st := s.h.tree.lock()
	defer st.unlock()
	if a := s.h.tree.chain.at[slot]; s.live() && a != nil && a.kind == k {
		return a.share.pool
	}
	return nil
}

// SetProtocol moves the stream from transient to its protocol, or leaves it as
// it was (I3).
func (s *streamScope) SetProtocol(proto protocol.ID) error {
	err := s.attach(KindProtocol, string(proto))
	e := s.peer.st.engine
	if err != nil {
		logRefusal(err)
	} else if e.leaks != nil {
		s.recordMoved(e.leaks, func(r *openRecord) { r.protocol = string(proto) })
	}
	if e.reporter != nil {
		e.reportProtocol(proto, s.peer.id, err)
	}
	return err
}

// SetService adds the stream to a service, or leaves it as it was (I3).
func (s *streamScope) SetService(svc string) error {
	err := s.attach(KindService, svc)
	e := s.peer.st.engine
	if err != nil {
		logRefusal(err)
	} else if e.leaks != nil {
		s.recordMoved(e.leaks, func(r *openRecord) { r.service = svc })
	}
	if e.reporter != nil {
		e.reportService(svc, s.peer.id, err)
	}
	return err
}

func (s *streamScope) attach(kind Kind, name string) error {
	slot := slotProtocol
	if kind == KindService {
		slot = slotService
	}
	st := s.peer.st // a stream never leaves it
	st.mu.Lock()
	if s.attachReady(st, kind, slot, name) {
		st.mu.Unlock()
		return nil
	}
	lock := firstLock{st, true}
	var fresh *pool
	return decide(st.engine, func(*limitBook) (f fetched[sharedLimits], err error) {
		fresh, err = st.engine.newPool(kind, name)
		return f, err
	}, func(g grip, _ fetched[sharedLimits]) (verdict, error) {
		lock.take(g)
		defer st.unlockAs(g)
		if err := s.mayAttach(st, kind, slot, name); err != nil {
			return refused, err
		}
		pr := s.peer.pairNamed(kind, name)
		if pr == nil {
			sh := st.shareNamed(kind, name, fresh)
			if sh == nil {
				return unknown, nil
			}
			pr = st.pair(s.peer, sh)
		}
		v, err := s.attachLocked(st, pr, slot, g)
		if v != admitted {
			st.enqueue(&pr.account) // it may have been made for this stream
		}
		return v, err
	})
}

// mayAttach returns an error if the stream cannot be given a protocol or service of this name.
func (s *streamScope) mayAttach(st *stripe, kind Kind, slot int, name string) error {
	if err := s.checkOpen(st); err != nil {
		return err
	}
	c := &s.h.tree.chain
	var err error
	switch {
	case c.at[slot] != nil && c.at[slot].kind == kind:
		err = errAttached
	case kind == KindService && c.at[slotProtocol].kind != KindProtocol:
		err = errNoProtocol
	case name == "":
		err = errNoName
	default:
		return nil
	}
	return &scopeError{s.name(), err}
}

// attachReady is the short way to attach a stream: it works if the stream holds no memory, its
// peer has a part in the service or protocol already, and there is room at hand. If not, it
// changes nothing.
func (s *streamScope) attachReady(st *stripe, kind Kind, slot int, name string) bool {
	h := s.h
	c := &h.tree.chain
	if !st.plain || !s.live() || h.use != 0 ||
		c.at[slot] != nil && !c.at[slot].lasting() || c.at[slotProtocol].lasting() == (kind == KindService) {
		return false
	}
	u, pr := h.unit, s.peer.pairNamed(kind, name)
	if pr == nil || !pr.hasUnit(u) || !pr.share.hasUnit(u) && !st.drawUnit(u, pr.share, nil) {
		return false
	}
	pr.use.addUnit(u)
	pr.share.use.addUnit(u)
	st.attached(h, pr, slot)
	return true
}

func (s *streamScope) attachLocked(st *stripe, pr *pair, slot int, g grip) (verdict, error) {
	var target chain
	target.at[slot-pairsBefore], target.at[slot] = &pr.account, &pr.share.account
	total := s.h.total()
	total.grip, total.sharedFirst = g, true
	if st.engine.earmarks != nil && slot == slotProtocol && s.h.tree.chain.at[slotSystem].kind == KindSystem {
		if why := st.checkProtocol(s.peer, pr, &total); why != nil && !st.retryUnobserved(&total, refused, why) {
			return refused, st.refusal(why, s.h.asked(), &total)
		}
	}
	switch v, why := st.take(&target, &total); v {
	case refused:
		return v, st.refusal(why, s.h.asked(), &total)
	case undecided:
		return v, nil
	}
	st.attached(s.h, pr, slot)
	return admitted, nil
}

// attached puts a stream below the service or protocol that it has been charged to.
func (st *stripe) attached(h *holder, pr *pair, slot int) {
	c := &h.tree.chain
	pr.refs++
	pr.share.refs++
	if slot == slotProtocol {
		countTransient(c, h.dir, -1)
		st.giveBack(c.at[slotTransient].share, h.unit, h.use)
	}
	c.at[slot-pairsBefore], c.at[slot] = &pr.account, &pr.share.account
	most := &st.most[slot-pairsBefore]
	most.raise(&pr.use, h.dir)
	most.raise(&pr.use, h.both)
	most.raiseMemory(pr.use.memory)
}

// Done releases the stream and everything that it holds. A second call does nothing.
func (s *streamScope) Done() {
	h, st := s.h, s.peer.st
	st.mu.Lock()
	if s.live() {
		countTransient(&h.tree.chain, h.dir, -1)
		if st.engine.fair != nil {
			countStream(&h.tree.chain, h.dir, -1)
		}
		h.finish(st)
		if st.engine.leaks != nil {
			s.recordClosed(st.engine.leaks)
		}
		if st.closed {
			st.sweep()
		}
		h.tree.chain.clear()
		st.keep(h)
	}
	st.mu.Unlock()
}

func (e *engine) reportProtocol(proto protocol.ID, p peer.ID, err error) {
	switch admitted, by, refused := decisionOf(err); {
	case admitted:
		e.reporter.AllowProtocol(proto)
	case refused && by == KindProtocolPeer:
		e.reporter.BlockProtocolPeer(proto, p)
	case refused:
		e.reporter.BlockProtocol(proto)
	}
}

func (e *engine) reportService(svc string, p peer.ID, err error) {
	switch admitted, by, refused := decisionOf(err); {
	case admitted:
		e.reporter.AllowService(svc)
	case refused && by == KindServicePeer:
		e.reporter.BlockServicePeer(svc, p)
	case refused:
		e.reporter.BlockService(svc)
	}
}
