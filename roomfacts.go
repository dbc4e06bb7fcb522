package rcmgr

// What the engine knows of a connection or stream that may be let go, and the resources of which
// it is short.

import (
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/weir-p2p/rcmgr/internal/letgo"
)

// mostWrapped bounds the wrappers around a scope that are looked through.
const mostWrapped = 8

// unwrapped returns the scope of a connection or stream itself, without the wrappers around it
// that have a method Unwrap() network.ResourceScope.
func unwrapped(scope network.ResourceScope) network.ResourceScope {
	for range mostWrapped {
		w, ok := scope.(interface{ Unwrap() network.ResourceScope })
		if !ok {
			break
		}
		scope = w.Unwrap()
	}
	return scope
}

// factsOf returns what is known of the scope of a connection or stream, and whether it is one of
// this manager that is not done.
func (e *engine) factsOf(scope network.ResourceScope) (f letgo.Facts, ok bool) {
	switch s := scope.(type) {
	case *connScope:
		if s != nil {
			return s.facts(e)
		}
	case *streamScope:
		if s != nil {
			return s.facts(e)
		}
	}
	return f, false
}

func (c *connScope) facts(e *engine) (f letgo.Facts, ok bool) {
	st := c.h.tree.lock()
	defer st.unlock()
	if st.engine != e || !c.live() {
		return f, false
	}
	f = c.h.facts()
	if f.Allowlisted = c.h.marks.has(trusted); c.peer != nil {
		// The peer holds memory for its connections, such as what a muxer buffers.
		f.Memory = max(f.Memory, c.peer.use.memory/max(1, c.peer.use.of(dimConns)))
	}
	return f, true
}

func (s *streamScope) facts(e *engine) (f letgo.Facts, ok bool) {
	st := s.peer.st
	st.lock()
	defer st.unlock()
	if st.engine != e || !s.live() {
		return f, false
	}
	f = s.h.facts()
	f.Allowlisted = s.peer.trusted > 0
	f.Waiting = s.h.tree.chain.at[slotTransient].lasting()
	return f, true
}

// facts returns what is known of a holder that is not done. The lock of its stripe is held.
func (h *holder) facts() letgo.Facts {
	f := letgo.Facts{Num: h.num, Memory: h.use, Outbound: h.dir == dimConnsOut || h.dir == dimStreamsOut}
	r := h.total()
	for d, n := range r.amounts() {
		if n > 0 && dim(d) != dimMemory {
			f.Counts |= 1 << d
		}
	}
	for i, a := range h.tree.chain.shared() {
		if a != nil {
			f.In[i] = a.share.pool
		}
	}
	return f
}

// lacks takes what the pools have reported, and returns the resources that may be short. No lock
// is held.
func (m *Manager) lacks() (list []letgo.Lack) {
	observed := m.observed.load()
	for _, p := range append(m.fixed[:], m.dir.list()...) {
		bits := p.asked.Swap(0)
		for d := range numDims {
			if bits>>d&1 == 0 {
				continue
			}
			refused := bits>>(d+numDims)&1 != 0
			l := m.lackOf(p, d)
			l.Need, l.Observed = func() int64 { return p.lacks(d, refused) }, observed.has(p.kind)
			list = append(list, l)
		}
	}
	return list
}

// lackOf describes a resource of which a pool may be short.
func (m *Manager) lackOf(p *pool, d dim) letgo.Lack {
	name := p.scope()
	return letgo.Lack{In: p, Dim: uint8(d), Kind: uint8(p.kind), Scope: name.String(), Limit: limitNames[d], Memory: d == dimMemory,
		Streams: resourceOf[d] == ResourceStream || d == dimMemory && p.kind != KindSystem,
		Waiting: p.kind == KindTransient, Outbound: d == dimStreamsOut}
}

// lacks returns how much of d the pool has to get back. If it has refused something, that is
// enough for one more of a limit without a reserve. No lock is held.
func (p *pool) lacks(d dim, refused bool) int64 {
	p.home.lock() // for most
	limit := p.most[d]
	p.home.unlock()
	w := p.load(d)
	if !w.tight() {
		return 0 // less than half is in use, or it has just become so
	}
	free, reserve := limit-w.handed(), reserveOf(limit)
	switch {
	case free < (reserve+1)/2:
		return reserve - free
	case refused && free < 1:
		return 1 - free
	}
	return 0
}
