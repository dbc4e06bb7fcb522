package rcmgr

// Other limits while the manager runs: all of them at once or none. Everything is
// read and checked first; then, under all stripe locks, the next book takes the
// place of the last one, and what lives gets its limits; the gates follow. A
// connection, stream or peer that is not named points to the limits of its kind,
// so it has the new ones without a visit. What was set by hand stays until it is
// taken back.

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

// SetLimits puts other limits in force, as if the manager had been made with
// them: scopes that live have them at once, and so have the gates. What is held
// stays: a scope above its new limit gets nothing more until it has drained. A
// scope that was given a limit by SetLimit keeps that, see LimitResetter. Options
// go before the limits as they did in New. With nil, the default limits are
// computed again, for what this process may use now.
//
// An error says what is wrong, and that all limits are as they were. Of a Limiter
// that is not of this package, streams that are open keep their limit, and the
// limits of every peer, service and protocol that has a scope are asked for,
// before any lock is taken; all peers are then visited under all stripe locks.
// Otherwise, only those are that the limits name. Gates that change count from
// anew how fast connections come. SetLimits is safe for concurrent use.
func (m *Manager) SetLimits(limits Limiter) error {
	if limits == nil {
		limits = defaultLimiter()
	}
	next, err := newLimitBook(limits)
	if err != nil {
		return fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	said, err := m.askLiving(next)
	if err != nil {
		return fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	late, err := m.putInForce(next, said)
	if err != nil {
		return err
	}
	m.catchUp(next, late)
	log.Info("limits changed", next.startAttrs()...)
	return nil
}

// Refresh asks the Limiter for all limits again, as SetLimits with the same one
// does, errors included. A Limiter of this package says what it said before. It is
// safe for concurrent use.
func (m *Manager) Refresh() error {
	return m.SetLimits(m.limits.Load().limiter)
}

// living are scopes whose limits have to be asked for one by one.
type living struct {
	peers  map[peer.ID]peerLimit
	shared map[*pool]sharedLimits
}

// askLiving asks a Limiter that is not of this package for the limits of all that
// has a scope.
func (m *Manager) askLiving(b *limitBook) (living, error) {
	l := living{make(map[peer.ID]peerLimit), make(map[*pool]sharedLimits)}
	if b.own != nil {
		return l, nil
	}
	for _, p := range m.dir.list() {
		said, err := b.askShared(p.kind, p.name)
		if err != nil {
			return living{}, err
		}
		l.shared[p] = said
	}
	for _, p := range m.ListPeers() {
		said, err := b.askPeer(p)
		if err != nil {
			return living{}, err
		}
		l.peers[p] = said
	}
	return l, nil
}

// putInForce puts the next book in the place of the last one, and with it the gates
// that its Limiter asks for. It gives back the scopes that came to be after the
// Limiter was asked for all that were there.
func (m *Manager) putInForce(next *limitBook, said living) (late living, err error) {
	m.changing.Lock()
	defer m.changing.Unlock()
	gates, err := m.makeGates(next.limiter)
	if err != nil {
		return living{}, fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	select {
	case <-m.stop:
		return living{}, errClosed
	default:
	}
	late = living{make(map[peer.ID]peerLimit), make(map[*pool]sharedLimits)}
	m.inOneCut(func() {
		last := m.limits.Load()
		if next.own == nil { // it says nothing of those that are open
			next.classes.stream, next.classes.peer = last.classes.stream, last.classes.peer
		}
		*last.classes = *next.classes
		next.classes = last.classes
		m.limits.Store(next)
		for k, p := range m.fixed {
			if !m.dir.sticks(p) {
				p.setLimit(next.fixed[k])
			}
		}
		for _, p := range m.dir.list() {
			if now, ok := next.sharedNow(p.kind, p.name, said.shared[p]); ok {
				m.dir.renew(p, now)
			} else {
				late.shared[p] = sharedLimits{}
			}
		}
		m.eachToRenew(last, next, func(ps *peerScope) {
			switch limit := next.peerNow(ps.id, said.peers[ps.id]); {
			case ps.sticky:
			case limit != nil:
				ps.ready = limit
			default:
				late.peers[ps.id] = peerLimit{}
			}
		})
	})
	m.swapGates(gates)
	return late, nil
}

// eachToRenew calls f with the peers that do not have new limits by what they
// point to. All stripe locks are held.
func (m *Manager) eachToRenew(last, next *limitBook, f func(*peerScope)) {
	if last.own == nil || next.own == nil {
		for i := range m.stripes {
			for _, ps := range m.stripes[i].peers {
				f(ps)
			}
		}
		return
	}
	for _, b := range []*limitBook{last, next} {
		for p := range b.peers {
			if ps := m.stripeOf(p).peers[p]; ps != nil {
				f(ps)
			}
		}
	}
}

// catchUp gives those that came late their limits. What cannot be asked for keeps
// its limit.
func (m *Manager) catchUp(b *limitBook, late living) {
	for p := range late.shared {
		said, err := b.askShared(p.kind, p.name)
		if err != nil {
			log.Warn("a limit stays as it was", "err", err)
			continue
		}
		m.inOneCut(func() {
			if m.limits.Load() == b {
				m.dir.renew(p, said)
			}
		})
	}
	for id := range late.peers {
		said, err := b.askPeer(id)
		if err != nil {
			log.Warn("a limit stays as it was", "err", err)
			continue
		}
		st := m.stripeOf(id)
		st.lock(false)
		if ps, limit := st.peers[id], m.limits.Load().peerNow(id, said); ps != nil && !ps.sticky && limit != nil {
			ps.ready = limit
		}
		st.unlock(false)
	}
}

// LimitResetter is implemented by every scope that this package hands out, as
// ResourceScopeLimiter is. Both are safe for concurrent use.
type LimitResetter interface {
	// ResetLimit takes back what SetLimit has set: the scope has the limit that
	// the manager's limits give it, and follows SetLimits again. Where nothing was
	// set, it does nothing. If a Limiter that is not of this package gives no valid
	// limit for the scope, that is counted and logged as a caller's bug, and the
	// limit stays as it was.
	ResetLimit()
}

// ResetLimit takes back what SetLimit has set.
func (s *userScope) ResetLimit() {
	h := s.h
	st := h.tree.lock()
	m, owner, live := st.m, h.tree.chain.peer(), s.live()
	st.unlock(false)
	if !live {
		return
	}
	var limit *amounts // a span follows its owner
	if h.role == leaf {
		book := m.limits.Load()
		limit = &book.classes.conn
		if h.kind == KindStream {
			var err error
			if limit, err = book.stream(owner.id); err != nil {
				m.reportBug("a limit cannot be taken back", "err", err)
				return
			}
		}
	}
	s.putLimit(limit)
}

// ResetLimit takes back what SetLimit has set.
func (ps *peerScope) ResetLimit() {
	m := ps.st.m
	for {
		said, err := m.limits.Load().askPeer(ps.id)
		if err != nil {
			m.reportBug("a limit cannot be taken back", "err", err)
			return
		}
		_, a, _ := ps.enter(true, false)
		limit := m.limits.Load().peerNow(ps.id, said)
		if limit != nil {
			a.ready = limit
			a.sticky = false
			ps.st.enqueue(a)
		}
		ps.st.unlock(false)
		if limit != nil {
			return
		}
	}
}

// ResetLimit takes back what SetLimit has set.
func (p *pool) ResetLimit() {
	for {
		book := p.m.limits.Load()
		var said sharedLimits
		if p.kind > KindAllowlistedTransient {
			var err error
			if said, err = book.askShared(p.kind, p.name); err != nil {
				p.m.reportBug("a limit cannot be taken back", "err", err)
				return
			}
		}
		st, a, _ := p.enter(true, true)
		current := p.m.limits.Load() == book
		if current {
			now := a.share.pool
			p.m.dir.stick(now, false)
			if now.kind <= KindAllowlistedTransient {
				now.setLimit(book.fixed[now.kind])
			} else {
				p.m.dir.renew(now, said)
			}
		}
		st.unlock(true)
		if current {
			return
		}
	}
}
