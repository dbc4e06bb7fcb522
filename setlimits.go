package rcmgr

// Other limits while the manager runs: all of them at once, or none. Everything is read and
// checked first. Then, under all stripe locks, the next book takes the place of the last one,
// and the scopes that are there get their limits. The gates follow. A connection, stream or
// peer without a name in the configuration points to the limits of its kind, so it has the
// new ones without a visit. A limit that SetLimit gave stays until ResetLimit.

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

// SetLimits puts other limits in force, as if the manager had been made with them. Open scopes
// and gates have them at once. What is held stays: a scope above its new limit admits nothing
// until it has drained below it. A scope whose limit was set by SetLimit keeps that limit
// (see LimitResetter). Options take precedence over the limits, as they did in New. With nil, the
// default limits are computed again, for what this process may use now.
//
// On an error, all limits are as they were. A Limiter that is not of this package is asked
// for the limits of every peer, service and protocol that has a scope, before any lock is
// taken, and all peers are then visited under all stripe locks; streams that are open keep
// their limit. With a Limiter of this package, only the peers that the limits name are
// visited. Gates that change count anew how fast connections come. SetLimits is safe for
// concurrent use.
func (m *Manager) SetLimits(limits Limiter) error {
	_, err := m.changeLimits(limits, nil)
	return err
}

// changeLimits is SetLimits on condition that the book in force is still last, or last is nil.
// It reports whether that was so.
func (m *Manager) changeLimits(limits Limiter, last *limitBook) (changed bool, err error) {
	var again *negativesSeen
	if last != nil {
		again = last.negatives
	}
	next, err := newLimitBook(limits, m.limits.Load().strict, again)
	if err != nil {
		return false, fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	known, err := m.fetchLiving(next)
	if err != nil {
		return false, fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	conflicts := m.checks.conflicts()
	late, change, err := m.putInForce(next, last, known)
	if change == nil || err != nil {
		return false, err
	}
	m.catchUp(next, late)
	logChanged(next, change)
	m.logUnreachable(next)
	m.checks.logNew(conflicts)
	return true, nil
}

// Refresh asks the Limiter for all limits again. It is SetLimits with the Limiter in force,
// errors included. A Limiter whose limits do not change, such as that of
// NewFixedLimiter, returns what it returned before. Refresh is safe
// for concurrent use.
func (m *Manager) Refresh() error {
	for {
		book := m.limits.Load()
		// If another Limiter comes into force while this one is asked, that one stays.
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

// fetchLiving asks a Limiter that is not of this package for the limits of every peer, service
// and protocol that has a scope.
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

// putInForce puts the next book in the place of the last one, if that is still in force or last
// is nil, and with it the gates that its Limiter asks for. late has the scopes that were made
// after the Limiter was asked. change is nil if nothing was put in force.
func (m *Manager) putInForce(next, last *limitBook, known living) (late living, change *limitChange, err error) {
	m.changing.Lock()
	defer m.changing.Unlock()
	if last != nil && m.limits.Load() != last {
		return living{}, nil, nil
	}
	gates, err := m.makeGates(next.limiter)
	if err != nil {
		return living{}, nil, fmt.Errorf("rcmgr: limits not changed: %w", err)
	}
	select {
	case <-m.stop:
		return living{}, nil, errClosed
	default:
	}
	late = noneLiving()
	before, gatesBefore := m.limits.Load(), m.gate()
	m.inOneCut(func() {
		last := m.limits.Load()
		m.limits.Store(next)
		m.classes.putInForce(next)
		m.setRated()
		for k, p := range m.fixed {
			m.dir.renewRates(p, next)
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
	return late, &limitChange{before, gatesBefore, gates}, nil
}

// eachToRenew calls f with the peers that do not point to the limits of their kind, and so have
// to be visited. All stripe locks are held.
func (m *Manager) eachToRenew(last, next *limitBook, f func(*peerScope)) {
	if last.own == nil || next.own == nil {
		for i := range m.stripes {
			for ps := range m.stripes[i].allPeers {
				f(ps)
			}
		}
		return
	}
	for _, b := range []*limitBook{last, next} {
		for name := range b.kinds[KindPeer].named {
			p := peer.ID(name)
			if ps := m.stripeOf(p).known(p); ps != nil {
				f(ps)
			}
		}
	}
}

// catchUp gives scopes that were made late their limits. A scope whose limit cannot be fetched
// keeps the one that it has.
func (m *Manager) catchUp(b *limitBook, late living) {
	for p := range late.shared {
		f, err := b.fetchShared(p.kind, p.name)
		if err != nil {
			logKept(err)
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
			logKept(err)
			continue
		}
		st := m.stripeOf(id)
		st.lock()
		// If another book is in force by now, that one renews the scope.
		if ps := st.known(id); ps != nil && !ps.sticky && m.limits.Load() == b {
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

// reportUnreset reports a limit that cannot be taken back, because the Limiter gave no valid
// one. A nil err is nothing.
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
		a.ps.setPeerRates(nil)
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
			e.dir.renewRates(now, book)
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
