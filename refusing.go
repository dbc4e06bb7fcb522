package rcmgr

// A refusal, from the account that refuses to the error that the caller gets. It is noted
// first, because the allowlist or an observed limit may override it. If none does, it is
// counted, kept for the log, traced, and returned as an error (refusal), all under the lock
// of a stripe. Once that is released it is logged for debugging (logRefusal). The log of
// refusals is written later, from the counts (refusallog.go).
//
// A limit may be only observed: what it would refuse is admitted and counted, so that limits
// can be tried on a node before they bite. Nothing is different until a limit refuses. If it
// is of an observed kind, the request is decided once more without the limits of the observed
// kinds, which then end at what a number can hold. What the other limits admit is charged to
// all accounts, also above an observed limit, and the first refusal is counted as one that
// would have been. Accounts stay exact. Credit is handed out above such a limit as it is
// after a limit was lowered (I1): the pool is tight, and is decided on the exact sum.

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/groups"
)

// noted is a refusal that may still be overridden.
type noted struct {
	refusal
	by    *account // that refused, if it was one
	asker peer.ID  // the peer that asked, where that is known
	// holder is the name of the peer or subnet that holds too much, where that is the cause.
	holder *scopeName
	held   *amounts // what the scope that refused holds, for the tracer; nil without one
}

// lastRefusal is what a stripe keeps of its last refusal.
type lastRefusal struct {
	why      noted       // that note noted last
	returned *LimitError // that refusal returned last, nil until there is one
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

// deny returns what the account has refused, with its name.
func (a *account) deny() *denied {
	if a.share != nil && a.ps != nil {
		return a.ps.denyPart(a)
	}
	at := a.makeDirect()
	if at.denied == nil {
		at.denied = &denied{name: a.name()}
	}
	return at.denied
}

// denied is what an account has refused, and its name. Refusals point to the name, so it is
// not written again.
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

// addOf adds what an account has refused.
func (n *denials) addOf(a *direct) {
	if a.denied != nil {
		n.add(&a.denied.denials)
	}
}

// holderOf returns the name of the peer or subnet that holds too much of a limit. It is nil if
// that is not the cause, or if outbound streams of many peers are.
func (r *request) holderOf(e *engine, a *account, it item, cause Cause) *scopeName {
	switch {
	case cause != CauseCrowding && cause != CauseFairShare:
	case r.crowds(a.kind, it, e.most(a.kind, a.limit(), it.d)):
		return &r.asker.deny().name
	case cause == CauseFairShare:
		if _, by := claimOf(r.subnet, a.kind, it.d); by != nil {
			name := nameOfGroup(by)
			return &name
		}
	}
	return nil
}

// causeOf returns the rule by which an account refuses an item.
func (r *request) causeOf(e *engine, a *account, it item, current int64) Cause {
	switch {
	case it.n <= r.threshold(e, a, it.d)-current:
		return e.rationedBy(r, a, it, current)
	case it.n <= a.limit()[it.d]-current && it.d != dimMemory:
		return CauseCrowding // outbound streams leave room for inbound ones
	}
	return CauseLimit
}

// concerned returns the name for the log. If a peer or subnet holds too much, it is that one.
// If the scope that refused is shared by all or is a single connection or stream, it is the
// peer that asked. Otherwise it is the scope itself, without its spans.
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

// keepRemark keeps what the log is to say of a refusal.
func keepRemark(to *[numKinds]*remarks, why *noted) {
	of := &to[why.scope.kind]
	if *of == nil {
		*of = new(remarks)
	}
	(*of)[why.d].note(&why.refusal, why.concerned(), 1)
}

// placeOf returns the place of the limit that refused, by the limits in force. Most peers have
// no limit by name, which their limit shows without a look into the book. The stripe's lock
// is held.
func (st *stripe) placeOf(why *noted) limitPlace {
	if why.scope.kind != KindPeer || why.by != nil && why.by.ready == &st.engine.classes.peer {
		return placeOfAll
	}
	return st.engine.limits.Load().placeOfPeer(why.scope.peer)
}

// callForRoom reports what a scope that all peers share has refused. No room is made for
// a limit on one peer.
func (why *noted) callForRoom(a *alarm) {
	if why.by.share == nil || why.by.ps != nil {
		return
	}
	p, d := why.by.share.pool, why.d
	if (why.cause == CauseLimit || d == dimStreamsOut) && a.makesRoom(p.kind, d) {
		a.report(&p.asked, 1<<d|1<<(d+numDims))
	}
}

// refusal counts a refusal, and returns it as an error.
func (st *stripe) refusal(why *noted, asked askedScope, r *request) error {
	k := why.scope.kind
	asked.place = st.placeOf(why)
	if st.refusalCounts == nil {
		st.refusalCounts = new(refusalCounts)
	}
	st.refusals[k][why.d]++
	st.rationed.count(&why.refusal)
	if why.by != nil {
		why.by.deny().refused[why.d]++
		if st.engine.alarm != nil {
			why.callForRoom(st.engine.alarm)
		}
		why.by = nil
	}
	if st.engine.noting {
		keepRemark(&st.remarks, why)
	}
	blocked := &st.blocked[k]
	blocked[r.dir&dimMask] += r.count
	blocked[r.both&dimMask] += r.count
	blocked[dimFD] += r.fds
	// A connection or stream that is refused when it moves may hold memory, but it did not ask
	// for it.
	if why.d == dimMemory {
		blocked[dimMemory] = addCapped(blocked[dimMemory], r.memory)
	}
	if st.trace != nil {
		st.trace.blocked(*why.scope, r.delta(), why.d, why.held)
	}
	if asked.numbered() {
		asked.name = why.holder
	}
	// During a flood, one refusal is as the one before. Each of them has the same error then.
	now := LimitError{why.refusal, asked}
	if st.returned == nil || *st.returned != now {
		st.returned = &LimitError{why.refusal, asked}
	}
	return st.returned
}

// observations is what a stripe counts for limits that are only observed.
type observations struct {
	// last is what would have refused the request that is being decided.
	last     noted
	counts   [numKinds]dimCounts
	rationed rationCounts // those of counts that no limit itself would have refused
	remarks  [numKinds]*remarks
}

// retryUnobserved reports whether a request that was not admitted has to be decided once more,
// without the limits that are only observed. It is called after each attempt.
func (st *stripe) retryUnobserved(r *request, v verdict, why *noted) bool {
	if v == undecided {
		r.observed = 0 // it is decided anew
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

// observe keeps the refusal by an observed limit.
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
	if st.awakened != nil && st.observed != nil {
		for k := range to {
			to[k].add(&st.observed.counts[k])
		}
	}
}

// logRefusal logs one refusal with its numbers, at level debug. It is called without locks,
// with the error that the caller gets.
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

// The peer or subnet that holds most of a limit. A full limit refuses one peer after another,
// and the peer that fills it need not be among them. So the log of refusals and Explain look for
// it among all peers, a few at a time, when a line is written or a question is answered, and never
// when a request is decided.

// largestLately returns the name of the peer or subnet that holds most of a limit, and what it
// holds, now or within the last second. of is the name of a service or protocol. The name is
// empty if no holder is known, or if it holds less than a tenth.
func (e *engine) largestLately(k Kind, of string, d dim, use int64, recent *recentLargest) (name string, held int64) {
	l := limitOf{k, of, d}
	if !l.hasLargest() {
		return "", 0
	}
	who := recent.of(l, e.largestHolders)
	if !who.isWorthNaming(use) {
		return "", 0
	}
	return who.name.String(), who.held
}

// largestHolders returns the peer or subnet that holds most of each limit; of peers that hold
// equally much, the one whose ID comes first. It takes the locks of the stripes one by one, and
// releases them after a few peers.
func (e *engine) largestHolders(of []limitOf) []largest {
	found := make([]largest, len(of))
	if len(of) == 0 {
		return found
	}
	for i := range e.stripes {
		e.stripes[i].eachPeer(func(ps *peerScope) {
			for j, l := range of {
				held, most := ps.partOf(l), &found[j]
				if held > most.held || held > 0 && held == most.held && ps.id < most.name.peer {
					*most = largest{scopeName{kind: KindPeer, peer: ps.id}, held}
				}
			}
		})
	}
	for j, l := range of {
		if l.kind > KindTransient || !e.fair.on(l.kind) {
			continue
		}
		// A subnet holds at least what each of its peers does. It is named if that is twice as
		// much, because then it is full of peers.
		if sub := e.fair.largest(l); sub.held > 0 && sub.held >= 2*found[j].held {
			found[j] = sub
		}
	}
	return found
}

// partOf returns what the peer holds of a limit. The lock of its stripe is held.
func (ps *peerScope) partOf(l limitOf) int64 {
	switch l.kind {
	case KindSystem:
		return ps.use.of(l.d)
	case KindTransient:
		return ps.inTransient(l.d)
	}
	sh := ps.st.named(l.kind)[l.name]
	if sh == nil {
		return 0
	}
	if pr := ps.pair(sh); pr != nil {
		return pr.use.of(l.d)
	}
	return 0
}

// partUse is a peer's part of a service or protocol, with what it holds and may hold of one thing.
type partUse struct {
	name       scopeName
	use, limit int64
}

// isFuller reports whether a part is fuller than another. Of equally full ones, that of the peer
// whose ID comes first is.
func (p *partUse) isFuller(other *partUse) bool {
	a, b := fullness(p.use, p.limit), fullness(other.use, other.limit)
	return cmp.Or(cmp.Compare(b, a), cmp.Compare(other.use, p.use),
		strings.Compare(string(p.name.peer), string(other.name.peer)), strings.Compare(p.name.text, other.name.text)) < 0
}

// fullestPart returns the fullest part of a peer in services or in protocols. Without any that
// holds something, its use is 0. It takes the locks of the stripes one by one, and releases them
// after a few peers.
func (e *engine) fullestPart(k Kind, d dim) (most partUse) {
	for i := range e.stripes {
		e.stripes[i].eachPeer(func(ps *peerScope) {
			ps.eachPair(func(pr *pair) {
				if use := pr.use.of(d); pr.kind == k && use > 0 {
					p := partUse{scopeName{kind: k, text: pr.share.pool.name, peer: ps.id}, use, pr.limit()[d]}
					if most.use == 0 || p.isFuller(&most) {
						most = p
					}
				}
			})
		})
	}
	return most
}

// largestPeer returns the peer that holds most of a limit of a service or protocol, and what it
// holds. It is empty if nothing is known of the limit, or nothing is held.
func (e *engine) largestPeer(k Kind, name string, d dim) (id peer.ID, held int64) {
	l := limitOf{k, name, d}
	if !l.hasLargest() {
		return "", 0
	}
	most := e.largestHolders([]limitOf{l})[0]
	return most.name.peer, most.held
}

// inTransient returns how many streams of the peer have no protocol yet. Connections there have
// no peer.
func (ps *peerScope) inTransient(d dim) int64 {
	in, out := int64(ps.transientStreams[0]), int64(ps.transientStreams[1])
	switch d {
	case dimStreamsIn:
		return in
	case dimStreamsOut:
		return out
	case dimStreams:
		return in + out
	}
	return 0
}

// largest returns the group that holds most of a limit: a subnet, or what is around it if that
// holds twice as much, because then it is full of subnets.
func (f *fairShare) largest(l limitOf) (most largest) {
	w, ok := countedAs(l.d)
	if !ok {
		return most
	}
	const subnet, wider, owner = 0, 1, 2
	var by [3]struct {
		group *groups.Group
		held  int64
	}
	f.Each(func(g *groups.Group) {
		at := wider
		switch {
		case g.IsSubnet():
			at = subnet
		case g.Owner() != "":
			at = owner
		}
		held := g.Holds(groupKinds[l.kind], w)
		b := &by[at]
		if held > b.held || held > 0 && held == b.held && g.Prefix().Bits() > b.group.Prefix().Bits() {
			b.group, b.held = g, held
		}
	})
	for _, b := range by {
		if b.held > 0 && b.held >= 2*most.held {
			most = largest{nameOfGroup(b.group), b.held}
		}
	}
	return most
}
