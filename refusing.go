package rcmgr

// A refusal, from the account that refuses to the error that the caller gets. It is noted
// while something may still override it, then counted, kept for the log, traced and made
// into an error, all under the lock of a stripe; the caller is told when that is released.
//
// Limits may be observed only: what they would refuse is admitted and counted, so that
// limits can be tried on a node before they bite. Nothing is different until something is
// refused. Then, if the limit that refused is of a class that is observed, the same is
// decided once more without the limits of these classes: they end at what a number can
// hold. What all others admit is charged to all, also above the limits that are observed,
// and the first refusal is counted as one that would have been. Accounts stay exact, and
// credit is handed out above such a limit as it is after a limit was lowered (I1): its pool
// is tight, and every decision about it is one on the exact sum.

import (
	"context"
	"errors"
	"log/slog"

	"github.com/libp2p/go-libp2p/core/peer"
)

// noted is a refusal that may still be overridden.
type noted struct {
	refusal
	by    *account // that refused, if it was one
	asker peer.ID  // the peer that asked, where that is known
	// holder is the name of the peer or subnet that holds too much, where that is the cause.
	holder *scopeName
	held   *amounts // by what refused, if somebody listens to the tracer
}

// note notes a refusal. It is valid until the stripe notes the next one.
func (st *stripe) note(why refusal, r *request, by *account) *noted {
	st.why = noted{refusal: why, by: by}
	if r.asker != nil {
		st.why.asker = r.asker.id
	}
	return &st.why
}

// holding keeps what the scope that refuses holds.
func (why *noted) holding(use amounts) { why.held = &use }

// refuse notes that an account refuses an item.
func (st *stripe) refuse(r *request, a *account, it item, current int64) *noted {
	cause := r.causeOf(st.engine, a, it, current)
	why := st.note(refusal{&a.deny().name, it.d, cause, r.priority, current, it.n, a.limit()[it.d]}, r, a)
	why.holder = r.holderOf(st.engine, a, it, cause)
	if st.trace != nil {
		why.holding(a.use.amounts())
	}
	return why
}

// deny returns what the account has refused, with its name, and makes it where there is none.
func (a *account) deny() *denied {
	if a.denied == nil {
		a.denied = &denied{name: a.name()}
	}
	return a.denied
}

// denied is what an account has refused, and its name, to which refusals point: it is
// never written again.
type denied struct {
	name scopeName
	denials
}

// denials counts requests that were refused, and that would have been if the limit
// were not only observed, by what ran out.
type denials struct{ refused, would dimCounts }

// add adds those of o.
func (n *denials) add(o *denials) {
	n.refused.add(&o.refused)
	n.would.add(&o.would)
}

// addOf adds what an account has refused, if it has.
func (n *denials) addOf(a *account) {
	if a.denied != nil {
		n.add(&a.denied.denials)
	}
}

// holderOf returns the name of the peer or subnet that holds too much of a limit, nil if
// that is not the cause, or if it is outbound streams that have left their part of transient.
func (r *request) holderOf(e *engine, a *account, it item, cause Cause) *scopeName {
	switch {
	case cause != CauseCrowding && cause != CauseFairShare:
	case r.crowds(a.kind, it, e.most(a.kind, a.limit(), it.d)):
		return &r.asker.deny().name
	case cause == CauseFairShare && r.subnet != nil:
		return &r.subnet.name
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

// refusal counts a refusal, and returns it as an error.
func (st *stripe) refusal(why *noted, asked askedScope, r *request) error {
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
		st.trace.blocked(*why.scope, r.delta(), why.d, why.held)
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

// observations is what a stripe keeps of limits that are only observed.
type observations struct {
	// last is what would have refused the request that is being decided.
	last     noted
	counts   [numKinds]dimCounts
	rationed rationCounts // those of counts that no limit itself would have refused
	remarks  [numKinds]*remarks
}

// beyond reports whether a request that was not admitted is to be decided once more, without
// the limits that are only observed. It is asked after each attempt.
func (st *stripe) retryUnobserved(r *request, v verdict, why *noted) bool {
	if v == undecided {
		r.observed = 0 // it will be decided from anew
		return false
	}
	observed := st.engine.observed.load()
	if observed == 0 || r.observed != 0 || !observed.standIn(why.scope.kind) {
		return false
	}
	st.observe(why)
	r.observed = observed
	return true
}

// observe keeps what would have refused.
func (st *stripe) observe(why *noted) {
	if st.observed == nil {
		st.observed = new(observations)
	}
	st.observed.last = *why
}

// exceeded counts a request that was admitted beyond a limit.
func (st *stripe) exceeded() {
	o := st.observed
	k, d := o.last.scope.kind, o.last.d
	o.counts[k][d]++
	o.rationed.count(&o.last.refusal)
	if by := o.last.by; by != nil {
		by.deny().would[d]++
		o.last.by = nil
	}
	if st.engine.noting {
		keepRemark(&o.remarks, &o.last)
	}
}

// addWouldRefuse adds what would have been refused to counts by kind. The stripe's
// lock is held.
func (st *stripe) addWouldRefuse(to *[numKinds]dimCounts) {
	if st.notes != nil && st.observed != nil {
		for k := range to {
			to[k].add(&st.observed.counts[k])
		}
	}
}

// logRefusal logs one refusal with its numbers, for people who debug. It is called without
// locks, with what the caller gets.
func logRefusal(err error) {
	ctx := context.Background()
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	var e *LimitError
	if !errors.As(err, &e) {
		return
	}
	log.LogAttrs(ctx, slog.LevelDebug, "refused", e.attrs()...)
}
