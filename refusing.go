package rcmgr

// A refusal, from the account that refuses to the error that its caller gets: noted while it
// may still be overridden, then counted, remarked on for the log, traced and returned. All
// of it runs under the lock of a stripe; what is logged is logged later (refusallog.go).

import (
	"github.com/libp2p/go-libp2p/core/peer"
)

// noted is a refusal that has not been told yet: it may still be overridden.
type noted struct {
	refusal
	by    *account // that refused, if it was one
	asker peer.ID  // who asked, where that is known
	// holder is the name of the peer or subnet that holds too much, where that is the cause.
	holder *scopeName
}

// note notes a refusal.
func (st *stripe) note(why refusal, by *account) { st.why = noted{refusal: why, by: by} }

// askedBy notes who asked for what was refused.
func (why *noted) askedBy(r *request) {
	if r.asker != nil {
		why.asker = r.asker.id
	}
}

// refuse notes that an account refuses an item.
func (st *stripe) refuse(r *request, a *account, it item, current int64) verdict {
	name := &a.deny().name
	st.refusedBy(*name, &a.use)
	st.note(refusal{name, it.d, r.causeOf(st.engine, a, it, current), r.priority, current, it.n, a.limit()[it.d]}, a)
	st.why.askedBy(r)
	st.why.holder = r.holderOf(st.engine, a, it, st.why.cause)
	return refused
}

// holderOf returns the name of the peer or subnet that holds too much of a limit, nil if
// that is not the cause, or if it is outbound streams that have left their part of transient.
func (r *request) holderOf(e *engine, a *account, it item, cause Cause) *scopeName {
	switch {
	case cause != CauseCrowding && cause != CauseFairShare:
	case r.crowds(a.kind, it, e.most(a.kind, a.limit(), it.d)):
		return &r.asker.deny().name
	case cause == CauseFairShare && r.near != nil:
		return &r.near.name
	}
	return nil
}

// causeOf returns the rule by which an account refuses an item.
func (r *request) causeOf(e *engine, a *account, it item, current int64) Cause {
	switch {
	case it.n <= r.threshold(e, a, it.d)-current:
		return e.rationedBy(a.kind)
	case it.n <= a.limit()[it.d]-current && it.d != dimMemory:
		return CauseCrowding // of inbound streams, by outbound ones
	}
	return CauseLimit
}

// concerned returns the name that the log may have to name: that of the peer or subnet which
// holds too much, if one does; else, if the refusing scope is everybody's or a single
// connection or stream, that of the peer which asked; and otherwise that of the scope itself,
// not of a span of it.
func (why *noted) concerned() scopeName {
	if why.holder != nil {
		return *why.holder
	}
	if k := why.scope.kind; k <= KindAllowlistedTransient || k == KindConn || k == KindStream || k == KindProcess {
		return scopeName{kind: KindPeer, peer: why.asker}
	}
	name := *why.scope
	name.span, name.around = 0, ""
	return name
}

// keepRemark keeps what the log will say about a refusal.
func keepRemark(to *[numKinds]*remarks, why *noted) {
	of := &to[why.scope.kind]
	if *of == nil {
		*of = new(remarks)
	}
	(*of)[why.d].note(&why.refusal, why.concerned(), 1)
}

// placeOf returns the place of the limit that refused, by the limits in force. Most peers
// that refuse have no name there, which a look at the limit tells. The stripe's lock is
// held.
func (st *stripe) placeOf(why *noted) limitPlace {
	if why.scope.kind != KindPeer || why.by != nil && why.by.ready == &st.engine.classes.peer {
		return placeOfAll
	}
	return st.engine.limits.Load().placeOfPeer(why.scope.peer)
}

// refusal counts the refusal that is noted in st.why, and tells it as an error.
func (st *stripe) refusal(asked askedScope, r *request) error {
	why := &st.why
	k := why.scope.kind
	asked.place = st.placeOf(why)
	st.refusals[k][why.d]++
	st.rationed.count(&why.refusal)
	if why.by != nil {
		why.by.deny().refused[why.d]++
		why.by = nil
	}
	if st.engine.noting {
		keepRemark(&st.remarks, why)
	}
	blocked := &st.blocked[k]
	blocked[r.dir&dimMask] += r.count
	blocked[r.both&dimMask] += r.count
	blocked[dimFD] += r.fds
	// A connection or stream that is refused when it moves may hold memory, but it is
	// not memory that was asked for.
	if why.d == dimMemory {
		blocked[dimMemory] = addCapped(blocked[dimMemory], r.memory)
	}
	if st.trace != nil {
		st.trace.blocked(st.refuser.name, r.delta(), why.d, &st.refuser.use)
	}
	if asked.num != 0 {
		asked.name = why.holder
	}
	return &LimitError{why.refusal, asked}
}

// limitKey returns the place in the configuration of limits that says how much of d
// a scope may hold, by a book and gates; see configKey.
func limitKey(b *limitBook, g *gate, k Kind, d dim, which *scopeName) string {
	place := placeOfAll
	switch k {
	case KindPeer:
		place = b.placeOfPeer(which.peer)
	case KindSubnet, KindRate:
		place = g.placeOfSubnet(which)
	}
	return configKey(k, d, which, place)
}

// placeOfSubnet is placeOfPeer for a subnet at a gate.
func (g *gate) placeOfSubnet(name *scopeName) limitPlace {
	named := false
	switch {
	case name.kind == KindSubnet:
		_, named = g.limits.Subnets.Networks[name.prefix()]
	case g.caller != nil:
		return placeOfCaller
	default:
		_, named = g.limits.Rate.Networks[name.prefix()]
	}
	if named {
		return placeOfName
	}
	return placeOfAll
}
