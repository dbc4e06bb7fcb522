package rcmgr

// Explain: would this connection, stream or reservation be admitted now, and what
// stands in the way. The accounts that it would touch are copied in one cut, and
// the question is asked of the copies with the thresholds of the engine itself
// (request.bound); nothing is made, charged or counted.
//
// A question goes the way of the real thing, in steps: open, then peer, protocol
// and service, whichever are named, then memory. What one step would be charged is
// charged to the copies before the next one is asked.

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
)

// Question is what Explain is asked.
type Question struct {
	// Kind is KindConn for a connection, KindStream for a stream, and KindSystem,
	// KindTransient, KindPeer, KindProtocol or KindService for a reservation of
	// Memory right at that scope.
	Kind      Kind
	Direction network.Direction
	// Endpoint is the far end of a connection, nil if it has no address; UseFD
	// tells whether it takes a file descriptor.
	Endpoint multiaddr.Multiaddr
	UseFD    bool
	// Peer, Protocol and Service are what it is attached to after it was opened. A
	// stream needs a Peer, and a Protocol before a Service.
	Peer     peer.ID
	Protocol protocol.ID
	Service  string
	// Memory is reserved at the end, in bytes, with Priority.
	Memory   int64
	Priority uint8
}

// Check is one limit that a question has to fit.
type Check struct {
	Step  string // open, gate, peer, protocol, service or memory; "allowlist" for open once more
	Scope string // that would have to admit it; "conn" and "stream" are the new ones
	Kind  Kind
	Name  string // of the limit, as in configurations: "ConnsInbound"
	Use   int64  // that the scope would hold before
	Asked int64
	Limit int64 // math.MaxInt64 is unlimited
	// Threshold is the most that the scope may hold afterwards, for this question: a
	// part of Limit for a low priority, or where a peer or a subnet holds much.
	Threshold int64
	Room      int64 // Threshold less Use; less than 0 if more is held than allowed
	Fits      bool
	// Observed tells that the limit is only observed: it refuses nothing.
	Observed bool
	Cause    string `json:",omitempty"` // of the refusal, if it does not fit
	Raise    string `json:",omitempty"` // the place in the configuration that would admit more
}

// Explanation is what Explain answers.
type Explanation struct {
	Admitted bool
	// By is the check that refuses; nil if it is admitted.
	By *Check `json:",omitempty"`
	// Checks are all limits that were asked, in their order, also those after the
	// one that refuses.
	Checks []Check
	// Unknown says what could not be asked: a caller's own rate limiter.
	Unknown string `json:",omitempty"`
}

// Explain tells whether a connection, stream or reservation would be admitted now,
// and which limits it has to fit, with what they have left. The scopes are seen at
// one instant, the gates and what subnets hold of the scopes at another. It changes nothing and reserves nothing:
// somebody else may take the room. A connection that is refused by the limits of
// connections is told so even where a gate would refuse it, too, as is the real one
// where the host is seen to be full at a glance. An error tells what the question lacks, or that the manager is
// closed. It takes all stripe locks for a moment. It is safe for concurrent use.
func (m *Manager) Explain(q Question) (*Explanation, error) {
	if err := q.check(); err != nil {
		return nil, fmt.Errorf("rcmgr: Explain: %w", err)
	}
	if m.ended.Load() {
		return nil, errClosed
	}
	e := explainer{m: m, q: &q, far: endpointOf(q.Endpoint), observed: m.observed.load()}
	if err := e.copyAccounts(); err != nil {
		return nil, err
	}
	e.answer()
	return &e.out, nil
}

func (q *Question) check() error {
	switch {
	case q.Memory < 0:
		return negativeSize(q.Memory)
	case q.Kind == KindConn || q.Kind == KindSystem || q.Kind == KindTransient:
		return nil
	case q.Kind == KindStream && q.Peer == "":
		return errors.New("a stream needs a Peer")
	case q.Kind == KindStream && q.Service != "" && q.Protocol == "":
		return errNoProtocol
	case q.Kind == KindPeer && q.Peer == "", q.Kind == KindProtocol && q.Protocol == "", q.Kind == KindService && q.Service == "":
		return errNoName
	case q.Kind == KindStream || q.Kind == KindPeer || q.Kind == KindProtocol || q.Kind == KindService:
		return nil
	}
	return fmt.Errorf("Kind is %v, expected conn, stream, system, transient, peer, protocol or service", q.Kind)
}

// explainer answers one question.
type explainer struct {
	m        *Manager
	q        *Question
	far      endpoint
	observed kindSet
	out      Explanation

	// Copies of accounts; nil is not concerned.
	fixed                     [KindAllowlistedTransient + 1]*account
	peer, protocol, service   *account
	protocolPeer, servicePeer *account
	self                      *account  // of the new connection or stream
	asker                     peerScope // what else counts of the peer
	cost                      int64     // of opening, in bytes
}

// copyAccounts copies what the question concerns, in one cut. A Limiter of the
// caller's is asked before.
func (e *explainer) copyAccounts() error {
	q, m := e.q, e.m
	book := m.limits.Load()
	said, err := book.askPeer(q.Peer)
	if err != nil {
		return err
	}
	protocolSaid, err := book.askShared(KindProtocol, string(q.Protocol))
	if err != nil {
		return err
	}
	serviceSaid, err := book.askShared(KindService, q.Service)
	if err != nil {
		return err
	}
	stream, err := book.stream(q.Peer)
	if err != nil {
		return err
	}
	m.inOneCut(func() {
		for k, p := range m.fixed {
			e.fixed[k] = copyOf(p.scope(), p.limit, heldOf(p.used()))
		}
		switch q.Kind {
		case KindConn:
			e.self, e.cost = copyOf(scopeName{kind: KindConn, num: spanOf, text: "conn"}, book.classes.conn, held{}), book.connCost
		case KindStream:
			e.self, e.cost = copyOf(scopeName{kind: KindStream, num: spanOf, text: "stream"}, *stream, held{}), book.streamCost
		}
		ps := m.stripeOf(q.Peer).peers[q.Peer]
		switch {
		case q.Peer == "":
		case ps != nil:
			e.peer = copyOf(ps.name(), *ps.limit(), ps.use)
			e.asker = peerScope{account: *e.peer, id: q.Peer, transientIn: ps.transientIn, systemIn: ps.systemIn, trusted: ps.trusted, near: ps.near}
		default:
			limit := m.limits.Load().peerNow(q.Peer, said)
			if limit == nil {
				limit = said.limit // it changes at this moment
			}
			e.peer = copyOf(scopeName{kind: KindPeer, peer: q.Peer}, *limit, held{})
		}
		if q.Protocol != "" {
			e.protocol, e.protocolPeer = e.copyShared(KindProtocol, KindProtocolPeer, string(q.Protocol), protocolSaid, ps)
		}
		if q.Service != "" {
			e.service, e.servicePeer = e.copyShared(KindService, KindServicePeer, q.Service, serviceSaid, ps)
		}
	})
	return nil
}

// copyOf makes an account that lies nowhere: its name is in what it has refused.
func copyOf(name scopeName, limit amounts, use held) *account {
	return &account{kind: name.kind, use: use, ready: &limit, denied: &denied{name: name}}
}

// copyShared copies a service or protocol and a peer's part of it. All stripe locks
// are held.
func (e *explainer) copyShared(k, pairKind Kind, name string, said sharedLimits, ps *peerScope) (shared, part *account) {
	limit, pairLimit, use, pairUse := *said.own, *said.pair, held{}, held{}
	if p := e.m.dir.find(k, name); p != nil {
		limit, pairLimit, use = p.limit, p.pairLimit, heldOf(p.used())
		if ps != nil {
			if pr := ps.pair(ps.st.named(k)[name]); pr != nil {
				pairUse = pr.use
			}
		}
	}
	return copyOf(scopeName{kind: k, text: name}, limit, use),
		copyOf(scopeName{kind: pairKind, text: name, peer: e.q.Peer}, pairLimit, pairUse)
}

// answer goes through the steps.
func (e *explainer) answer() {
	e.out.Admitted = true
	switch e.q.Kind {
	case KindConn:
		e.conn()
	case KindStream:
		e.stream()
	default:
		e.reservation()
	}
}

// step asks all accounts of a step, and then charges them.
func (e *explainer) step(name string, r *request, accounts ...*account) {
	e.take(e.ask(name, r, accounts...), r, accounts...)
}

// checked is what a step came to: by all limits, and by those that are not only
// observed.
type checked struct {
	checks []Check
	by     *Check // refuses
	all    bool   // every limit is fit, also those that are only observed
}

func (e *explainer) ask(step string, r *request, accounts ...*account) checked {
	c := checked{all: true}
	list, n := r.list()
	for _, a := range accounts {
		for _, it := range list[:n] {
			if a != nil {
				c.checks = append(c.checks, e.checkOf(step, r, a, it))
			}
		}
	}
	c.decide()
	return c
}

func (c *checked) decide() {
	for i := range c.checks {
		if k := &c.checks[i]; !k.Fits {
			c.all = false
			if c.by == nil && !k.Observed {
				c.by = k
			}
		}
	}
}

func (e *explainer) checkOf(step string, r *request, a *account, it item) Check {
	bound, use := r.bound(e.m, a, it), a.use.of(it.d)
	name := a.name()
	k := Check{Step: step, Scope: name.String(), Kind: a.kind, Name: limitNames[it.d], Use: use, Asked: it.n,
		Limit: a.limit()[it.d], Threshold: bound, Room: bound - use, Fits: it.n <= bound-use}
	// What no number can hold is refused by all.
	k.Observed = e.observed.has(a.kind) && it.n <= math.MaxInt64-use
	if !k.Fits {
		k.Cause = r.causeOf(e.m, a, it, use).String()
		k.Raise = e.m.limitKey(a.kind, it.d, &name)
	}
	return k
}

// take takes in what a step came to, unless one before has refused, and charges it.
func (e *explainer) take(c checked, r *request, accounts ...*account) {
	e.out.Checks = append(e.out.Checks, c.checks...)
	if c.by != nil && e.out.By == nil {
		e.out.Admitted, e.out.By = false, c.by
	}
	for _, a := range accounts {
		if a != nil {
			a.use.charge(r)
		}
	}
	if e.peer != nil {
		e.asker.use = e.peer.use
	}
}

func (e *explainer) conn() {
	u := unitOf(KindConn, e.q.Direction, e.q.UseFD && !e.far.relayed)
	r := u.whole(e.cost)
	open, named := e.m.allowlist.allowsAddr(e.far)
	if !open {
		r.near = e.m.fair.enter(e.far.addr, u.dir)
		defer e.m.fair.leave(r.near)
	}
	gated := !open && e.m.gate().concerns(u.dir)
	if !open && !named {
		e.process(u.dir)
	}
	system := e.open(&r, open || named)
	if gated && !named {
		e.gate(u.dir)
	}
	if e.q.Peer != "" {
		trusted := e.m.allowlist.allows(e.q.Peer, e.far.addr)
		if gated && named && !trusted {
			e.process(u.dir)
			e.gate(u.dir)
		}
		if system.kind == KindAllowlistedSystem && !trusted {
			system = e.fixed[KindSystem]
			e.step("peer", &r, system, e.fixed[KindTransient])
		}
		if system.kind == KindSystem && !trusted {
			e.peersShare(&r, system)
		}
		e.step("peer", &r, e.peer)
		if trusted {
			e.asker.trusted++
		}
		e.memory(e.self, e.peer, system)
		return
	}
	transient := e.fixed[KindTransient]
	if system.kind == KindAllowlistedSystem {
		transient = e.fixed[KindAllowlistedTransient]
	}
	e.memory(e.self, transient, system)
}

// open asks the standard scopes, and if they refuse and the allowlist means it, the
// allowlisted ones. It gives the system scope in which the new one would stand.
func (e *explainer) open(r *request, fallBack bool) *account {
	standard := []*account{e.self, e.peerOfStream(), e.fixed[KindTransient], e.fixed[KindSystem]}
	first := e.ask("open", r, standard...)
	if first.all || !fallBack {
		e.take(first, r, standard...)
		return e.fixed[KindSystem]
	}
	other := []*account{e.self, e.peerOfStream(), e.fixed[KindAllowlistedTransient], e.fixed[KindAllowlistedSystem]}
	second := e.ask("allowlist", r, other...)
	if !second.all && first.by == nil {
		e.take(first, r, standard...)
		return e.fixed[KindSystem]
	}
	e.out.Checks = append(e.out.Checks, first.checks...)
	e.take(second, r, other...)
	return e.fixed[KindAllowlistedSystem]
}

// peerOfStream gives the peer's account where it is asked at opening.
func (e *explainer) peerOfStream() *account {
	if e.q.Kind == KindStream {
		return e.peer
	}
	return nil
}

func (e *explainer) stream() {
	u := unitOf(KindStream, e.q.Direction, false)
	r := u.whole(e.cost)
	r.asker, r.near = &e.asker, e.asker.near
	trusted := e.asker.trusted > 0 || e.m.allowlist.allowsPeer(e.q.Peer)
	if !trusted {
		e.process(u.dir)
	}
	system := e.open(&r, trusted)
	transient := e.fixed[KindTransient]
	if system.kind == KindAllowlistedSystem {
		transient = e.fixed[KindAllowlistedTransient]
	}
	if e.protocol != nil {
		e.step("protocol", &r, e.protocol, e.protocolPeer)
		transient = nil
	}
	if e.service != nil {
		e.step("service", &r, e.service, e.servicePeer)
	}
	e.memory(e.self, e.peer, e.protocolPeer, e.servicePeer, e.protocol, e.service, transient, system)
}

// memory asks for the memory in the end.
func (e *explainer) memory(accounts ...*account) {
	if e.q.Memory > 0 {
		r := memoryRequest(e.m.admission, e.q.Memory, e.q.Priority)
		r.asker = &e.asker
		e.step("memory", &r, accounts...)
	}
}

// reservation asks for memory right at a scope that others stand on.
func (e *explainer) reservation() {
	at := map[Kind]*account{KindTransient: e.fixed[KindTransient], KindPeer: e.peer,
		KindProtocol: e.protocol, KindService: e.service}[e.q.Kind]
	r := memoryRequest(e.m.admission, e.q.Memory, e.q.Priority)
	r.asker = &e.asker
	e.step("memory", &r, at, e.fixed[KindSystem])
}

// peersShare asks for the peer's share of the system scope, in which the connection
// stands by now. Its subnet's was asked for before.
func (e *explainer) peersShare(opened *request, system *account) {
	r := *opened
	r.asker, r.near = &e.asker, nil
	if !e.m.fair.on(KindSystem) || !e.m.rations(&r) {
		return
	}
	var c checked
	items, n := r.list()
	for _, it := range items[:n] {
		// Whoever may have all of a limit was asked for that when it was opened.
		if it.d != dimMemory && e.m.ration(&r, system, it) < system.limit()[it.d] {
			before := *system
			before.use.counts[it.d] -= int32(it.n)
			c.checks = append(c.checks, e.checkOf("peer", &r, &before, it))
		}
	}
	c.decide()
	e.take(c, &request{})
}

// process asks whether the process has memory for strangers.
func (e *explainer) process(d dim) {
	p := e.m.pressure.state()
	if p.Limit == 0 || d != dimConnsIn && d != dimStreamsIn {
		return
	}
	most := p.RefuseAbove
	if p.Refusing {
		most = p.AdmitBelow
	}
	k := Check{Step: "gate", Scope: KindProcess.String(), Kind: KindProcess, Name: limitNames[d], Use: p.InUse, Asked: 1,
		Limit: p.RefuseAbove, Threshold: most, Room: most - p.InUse, Fits: !p.Refusing, Observed: e.observed.has(KindProcess)}
	if !k.Fits {
		k.Cause, k.Raise = CauseMemoryPressure.String(), e.m.limitKey(KindProcess, d, &scopeName{})
	}
	c := checked{checks: []Check{k}}
	c.decide()
	e.take(c, &request{})
}

// gate asks the gates for the far end.
func (e *explainer) gate(d dim) {
	g := e.m.gate()
	var c checked
	for _, s := range g.subnets.look(e.far.addr) {
		k := Check{Step: "gate", Scope: s.scope.String(), Kind: s.scope.kind, Name: limitNames[d], Use: s.use, Asked: 1,
			Limit: s.limit, Threshold: s.limit, Room: s.limit - s.use, Fits: s.use < s.limit, Observed: e.observed.has(s.scope.kind)}
		if !k.Fits {
			k.Cause, k.Raise = CauseSubnet.String(), e.m.limitKey(s.scope.kind, d, &s.scope)
			if s.scope.kind == KindRate {
				k.Cause = CauseRate.String()
			}
		}
		c.checks = append(c.checks, k)
	}
	if g.caller.limits() {
		e.out.Unknown = "the caller's own rate limiter is not asked: it would take a token"
	}
	c.decide()
	e.take(c, &request{})
}

// gateLook is what a gate has left for one address: connections, or tokens of a
// bucket that are taken.
type gateLook struct {
	scope      scopeName
	use, limit int64
}

// look gives what the gates have of an address, connections before tokens and narrow
// subnets before wide ones. It takes nothing.
func (s *subnets) look(addr netip.Addr) (conns []gateLook) {
	n, _ := s.networks.Lookup(addr)
	if !addr.IsValid() || n.free {
		return nil
	}
	var tokens []gateLook
	add := func(st *subnetStripe, sub subnet, counts, takes bool) {
		rec := &st.mu.own
		if st.named == nil {
			rec, _ = st.mu.table.find(sub.key, sub.level.id)
		}
		name := sub.prefix().String()
		if counts && sub.level.conns != noConnLimit {
			conns = append(conns, gateLook{scopeName{kind: KindSubnet, text: name}, int64(rec.conns), sub.level.conns})
		}
		if takes && !sub.level.tokens.unlimited() {
			use, limit := sub.level.tokens.taken(rec.fullAt, max(s.now(), st.mu.latest))
			tokens = append(tokens, gateLook{scopeName{kind: KindRate, text: name}, use, limit})
		}
	}
	look := func(st *subnetStripe, f func()) {
		st.mu.Lock()
		defer st.mu.Unlock()
		f()
	}
	if n.conns != nil {
		look(n.conns, func() { add(n.conns, *n.conns.named, true, false) })
	}
	if n.tokens != nil {
		look(n.tokens, func() { add(n.tokens, *n.tokens.named, false, true) })
	}
	f, key := familyOf(addr), keyOf(addr)
	div := &s.families[f]
	counts, takes := div.counts && !n.forConns, div.takes && !n.forTokens
	if counts || takes {
		st := s.stripeOf(key.cut(div.widest))
		look(st, func() {
			for l := div.narrowest; l != nil; l = l.wider {
				add(st, subnet{l, key.cut(l.host)}, counts, takes)
			}
		})
	}
	return append(conns, tokens...)
}

// taken gives how many tokens a bucket lacks, of how many.
func (b bucketLimit) taken(fullAt, at int64) (tokens, burst int64) {
	return (max(0, fullAt-at) + b.interval - 1) / b.interval, b.capacity / b.interval
}

// String gives the answer in one line.
func (e *Explanation) String() string {
	if e.Admitted {
		return "it would be admitted"
	}
	k := e.By
	return fmt.Sprintf("it would be refused by %s: %s holds %d of %d, %d more must not pass %d (%s); raise %s",
		printable(k.Scope), k.Name, k.Use, k.Limit, k.Asked, k.Threshold, k.Cause, k.Raise)
}

// WriteTable writes the answer, and a row for each limit that was asked.
func (e *Explanation) WriteTable(w io.Writer) error {
	fmt.Fprintln(w, e)
	if e.Unknown != "" {
		fmt.Fprintln(w, e.Unknown)
	}
	fmt.Fprintln(w)
	t := newTable(w, "Step", "Scope", "Limit Name", "Use", "Limit", "Threshold", "Room", "Asked", "Verdict")
	for i := range e.Checks {
		k := &e.Checks[i]
		verdict := "fits"
		switch {
		case !k.Fits && k.Observed:
			verdict = "would refuse"
		case !k.Fits:
			verdict = "refuses, raise " + k.Raise
		}
		room := strconv.FormatInt(k.Room, 10)
		if limitText(k.Threshold) == limitText(math.MaxInt64) {
			room = limitText(k.Threshold)
		}
		t.row(k.Step, printable(k.Scope), k.Name, strconv.FormatInt(k.Use, 10), limitText(k.Limit), limitText(k.Threshold),
			room, strconv.FormatInt(k.Asked, 10), verdict)
	}
	return t.Flush()
}
