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
	_, err := m.changeLimits(limits, nil)
	return err
}

// changeLimits is SetLimits, if the book in force is still last, or last is nil: it
// reports whether.
func (m *Manager) changeLimits(limits Limiter, last *limitBook) (changed bool, err error) {
	next, err := newLimitBook(limits)
	if err != nil {
		return false, fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	known, err := m.fetchLiving(next)
	if err != nil {
		return false, fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	late, changed, err := m.putInForce(next, last, known)
	if !changed || err != nil {
		return false, err
	}
	m.catchUp(next, late)
	log.Info("limits changed", next.startAttrs()...)
	m.logUnreachable(next)
	return true, nil
}

// Refresh asks the Limiter for all limits again, as SetLimits with the same one
// does, errors included. A Limiter of this package says what it said before. It is
// safe for concurrent use.
func (m *Manager) Refresh() error {
	for {
		book := m.limits.Load()
		// While this Limiter is asked, another one may come into force. It stays then.
		changed, err := m.changeLimits(book.limiter, book)
		if changed || err != nil {
			return err
		}
	}
}

// living are scopes whose limits have to be asked for one by one.
type living struct {
	peers  map[peer.ID]fetched[*amounts]
	shared map[*pool]fetched[sharedLimits]
}

func noneLiving() living {
	return living{make(map[peer.ID]fetched[*amounts]), make(map[*pool]fetched[sharedLimits])}
}

// fetchLiving asks a Limiter that is not of this package for the limits of all that
// has a scope.
func (m *Manager) fetchLiving(b *limitBook) (l living, err error) {
	l = noneLiving()
	if b.own != nil {
		return l, nil
	}
	for _, p := range m.dir.list() {
		if l.shared[p], err = b.fetchShared(p.kind, p.name); err != nil {
			return living{}, err
		}
	}
	for _, p := range m.ListPeers() {
		if l.peers[p], err = b.fetchPeer(p); err != nil {
			return living{}, err
		}
	}
	return l, nil
}

// putInForce puts the next book in the place of the last one, if that is still in force
// or last is nil, and with it the gates that its Limiter asks for. It returns the scopes
// that came to be after the Limiter was asked for all that were there.
func (m *Manager) putInForce(next, last *limitBook, known living) (late living, changed bool, err error) {
	m.changing.Lock()
	defer m.changing.Unlock()
	if last != nil && m.limits.Load() != last {
		return living{}, false, nil
	}
	gates, err := m.makeGates(next.limiter)
	if err != nil {
		return living{}, false, fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	select {
	case <-m.stop:
		return living{}, false, errClosed
	default:
	}
	late = noneLiving()
	m.inOneCut(func() {
		last := m.limits.Load()
		m.limits.Store(next)
		m.classes.putInForce(next)
		for k, p := range m.fixed {
			if !m.dir.sticks(p) {
				p.setLimit(next.kinds[k].unnamed)
			}
		}
		for _, p := range m.dir.list() {
			if limits, ok := next.sharedLimits(p.kind, p.name, known.shared[p]); ok {
				m.dir.renew(p, next, limits)
			} else {
				late.shared[p] = fetched[sharedLimits]{}
			}
		}
		m.eachToRenew(last, next, func(ps *peerScope) {
			switch limit := m.peerLimit(ps.id, known.peers[ps.id]); {
			case ps.sticky:
			case limit != nil:
				ps.ready = limit
			default:
				late.peers[ps.id] = fetched[*amounts]{}
			}
		})
	})
	m.swapGates(gates)
	return late, true, nil
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
		for name := range b.kinds[KindPeer].named {
			p := peer.ID(name)
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
		f, err := b.fetchShared(p.kind, p.name)
		if err != nil {
			log.Warn("a limit stays as it was", "err", err)
			continue
		}
		m.inOneCut(func() {
			if m.limits.Load() == b {
				m.dir.renew(p, b, f.limits)
			}
		})
	}
	for id := range late.peers {
		f, err := b.fetchPeer(id)
		if err != nil {
			log.Warn("a limit stays as it was", "err", err)
			continue
		}
		st := m.stripeOf(id)
		st.lock()
		// By another book that is in force by now it has been, or is being, renewed.
		if ps := st.peers[id]; ps != nil && !ps.sticky && m.limits.Load() == b {
			ps.ready = f.limits
		}
		st.unlock()
	}
}

// ResetLimit takes back what SetLimit has set.
func (s *userScope) ResetLimit() {
	h := s.h
	e := h.tree.at.Load().engine
	e.reportUnreset(decide(e, func(b *limitBook) (f fetched[openingLimits], err error) {
		st := h.tree.lock()
		owner, live := h.tree.chain.peer(), s.live()
		st.unlock()
		if live {
			f, err = b.fetchOpening(owner.id, false)
		}
		return f, err
	}, func(_ grip, f fetched[openingLimits]) (verdict, error) {
		st := h.tree.lock()
		defer st.unlock()
		var limit *amounts
		switch {
		case !s.live():
			return refused, nil
		case h.role != leaf: // a span follows its owner
		case h.kind == KindConn:
			limit = &e.classes.conn
		default:
			if limit = e.streamLimit(f); limit == nil {
				return unknown, nil
			}
		}
		h.limit = limit
		return admitted, nil
	}))
}

// reportUnreset reports that a Limiter gave no limit to go back to, if err says so.
func (e *engine) reportUnreset(err error) {
	if err != nil {
		e.reportBug("a limit cannot be taken back", "err", err)
	}
}

// ResetLimit takes back what SetLimit has set.
func (ps *peerScope) ResetLimit() {
	e := ps.st.engine
	e.reportUnreset(decide(e, fetchPeer(ps.id), func(_ grip, f fetched[*amounts]) (verdict, error) {
		st, a, _ := ps.enter(oneStripe)
		defer st.exit(oneStripe)
		limit := e.peerLimit(ps.id, f)
		if limit == nil {
			return unknown, nil
		}
		a.ready, a.sticky = limit, false
		st.enqueue(a)
		return admitted, nil
	}))
}

// ResetLimit takes back what SetLimit has set.
func (p *pool) ResetLimit() {
	e := p.engine
	e.reportUnreset(decide(e, func(b *limitBook) (fetched[sharedLimits], error) {
		return b.fetchShared(p.kind, p.name)
	}, func(_ grip, f fetched[sharedLimits]) (verdict, error) {
		st, a, _ := p.enter(allStripes)
		defer st.exit(allStripes)
		now, book := a.share.pool, e.limits.Load()
		if now.kind <= KindAllowlistedTransient {
			e.dir.stick(now, false)
			now.setLimit(book.kinds[now.kind].unnamed)
			return admitted, nil
		}
		limits, known := book.sharedLimits(now.kind, now.name, f)
		if !known {
			return unknown, nil
		}
		e.dir.stick(now, false)
		e.dir.renew(now, book, limits)
		return admitted, nil
	}))
}
