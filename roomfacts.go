package rcmgr

// What the engine knows of a connection or stream that may be let go, and the resources of which
// it is short.

import (
	"time"

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
	if f.Allowlisted = c.h.marks.has(trusted); c.peer == nil {
		f.Allowlisted = c.maybeTrusted(e)
	} else {
		// The peer holds memory for its connections, such as what a muxer buffers.
		conns := max(1, c.peer.use.of(dimConns))
		f.Memory = max(f.Memory, c.peer.use.memory/conns)
		f.Streams = (c.peer.use.of(dimStreams) + conns - 1) / conns
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
			if !l.Observed && !m.room.Observe {
				m.widenReserve(p, d, refused)
			}
			list = append(list, l)
		}
	}
	if p := m.pressure; p != nil && p.freeing.asked.Swap(0) != 0 {
		if p.freeing.went.Load() == 0 {
			p.freeing.each = m.heldByEach()
		}
		l := m.lackOfProcess(p.freeing.each)
		l.Need, l.Observed = m.lacksOfProcess, observed.has(KindProcess)
		list = append(list, l)
	}
	return list
}

// lacksFor returns how much has to be let go if a pool, which may be nil, is to hold some of d. No
// lock is held.
func (m *Manager) lacksFor(p *pool, d dim, limit, holds int64) int64 {
	if p == nil || !m.alarm.makesRoom(p.kind, d) {
		return 0
	}
	p.home.lock()
	defer p.home.unlock()
	return holds - m.alarm.roomy(p.kind, d, limit, p.wide.steps(d))
}

// heedHandshakes notes that handshakes can be ended.
func (m *Manager) heedHandshakes() {
	m.inOneCut(func() {
		m.alarm.handshakes.Store(true)
		for d := range numDims {
			m.fixed[KindTransient].heedRoom(d)
		}
	})
}

// wideFor is how long a reserve stays wide if it is not used up again.
const wideFor = time.Minute

// widenReserve widens a reserve of which a scope is short if it has been used up, so that newcomers
// were refused before room could be made for them. After some time without that, it is made
// narrower again. It is called while room is made, by one goroutine at a time. No lock is held.
func (m *Manager) widenReserve(p *pool, d dim, refused bool) {
	was, now := p.wide, m.room.Now()
	steps := was.steps(d)
	switch {
	case refused && steps < mostSteps:
		steps++
	case !refused && steps > 0 && now.Sub(was.at[d]) >= wideFor:
		steps--
	case !refused || steps == 0:
		return
	}
	next := new(wideReserves)
	if was != nil {
		*next = *was
	}
	next.by[d], next.at[d] = steps, now
	m.inOneCut(func() {
		p.wide = next
		p.heedRoom(d)
	})
}

// lackOf describes a resource of which a pool may be short.
func (m *Manager) lackOf(p *pool, d dim) letgo.Lack {
	name := p.scope()
	l := letgo.Lack{In: p, Dim: uint8(d), Kind: uint8(p.kind), Scope: name.String(), Limit: limitNames[d], Memory: d == dimMemory,
		Streams: resourceOf[d] == ResourceStream || d == dimMemory && p.kind != KindSystem,
		Waiting: p.kind == KindTransient, Outbound: d == dimStreamsOut}
	l.Shaking = l.Waiting && !l.Streams
	return l
}

// heldByEach returns how much of the memory of the process each connection and stream is taken to
// hold, at least 1. No lock is held.
func (m *Manager) heldByEach() int64 {
	var holders int64
	m.inOneCut(func() {
		for _, k := range [...]Kind{KindSystem, KindAllowlistedSystem} {
			use := m.fixed[k].used()
			holders += use[dimConns] + use[dimStreams]
		}
	})
	return max(1, m.pressure.inUse.Load()/max(1, holders))
}

// lackOfProcess describes the memory of the process, which is watched.
func (m *Manager) lackOfProcess(each int64) letgo.Lack {
	p := m.pressure
	return letgo.Lack{In: p.freeing, Kind: uint8(KindProcess), Scope: p.scope.String(), Limit: limitNames[dimMemory],
		Each: each, Went: func(weight int64) { p.freeing.went.Add(weight) }}
}

// lacksOfProcess returns how many bytes of the memory of the process have to become free. It is
// called once all that was let go for that has gone. No lock is held.
func (m *Manager) lacksOfProcess() int64 {
	p, f := m.pressure, m.pressure.freeing
	if f.went.Load() > 0 {
		if m.room.Now().UnixNano() >= f.next.Load() {
			f.gone.Store(true)
			select {
			case f.look <- struct{}{}:
			default: // it will begin
			}
		}
		return 0 // a look asks again, if there is still need
	}
	n := p.inUse.Load()
	f.before.Store(n)
	return max(0, n-p.readmit+1)
}

// lacks returns how much of d the pool has to get back. If it has refused something, that is
// enough for one more of a limit without a reserve. No lock is held.
func (p *pool) lacks(d dim, refused bool) int64 {
	p.home.lock() // for most
	limit, steps := p.most[d], p.wide.steps(d)
	p.home.unlock()
	w := p.load(d)
	if !w.tight() {
		return 0 // less than half is in use, or it has just become so
	}
	free, reserve := limit-w.handed(), widened(limit, steps)
	switch {
	case free < (reserve+1)/2:
		return reserve - free
	case refused && free < 1:
		return 1 - free
	}
	return 0
}
