package rcmgr

// Explain: would this connection, stream or reservation be admitted now, and what
// stands in the way. The accounts that it would touch are copied in one cut, and
// the question is asked of chains of copies, on whose behalf and by the thresholds
// that the engine takes (request.askThrough, request.bound); nothing is made, charged
// or counted.
//
// A question goes the way of the real thing, in steps: open, then peer, protocol
// and service, whichever are named, then memory. What one step would be charged is
// charged to the copies before the next one is asked. TestExplainSaysWhatWillBe does
// what it asked about, and holds both against each other.

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
)

// ExplainRequest is what Explain is asked.
type ExplainRequest struct {
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

// LimitCheck is one limit that a question has to fit.
type LimitCheck struct {
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
	// Holder names the peer or subnet that holds too much of the limit, where that is the
	// cause.
	Holder    string `json:",omitempty"`
	ConfigKey string `json:",omitempty"` // the place in the configuration that would admit more
}

// Explanation is what Explain answers.
type Explanation struct {
	Admitted bool
	// By is the check that refuses; nil if it is admitted.
	By *LimitCheck `json:",omitempty"`
	// Checks are all limits that were asked, in their order, also those after the
	// one that refuses.
	Checks []LimitCheck
	// Unknown says what could not be asked: a caller's own rate limiter.
	Unknown string `json:",omitempty"`
}

// Explain reports whether a connection, stream or reservation would be admitted now,
// and which limits it has to fit, with what they have left. The scopes and their limits
// are seen at one instant, the gates and what subnets hold of the scopes at another. It
// changes nothing and reserves nothing: somebody else may take the room. If both the limits
// on connections and a gate refuse a connection, the former are named. An error says what
// the question lacks, that a Limiter gives no limit for what it names, or that the manager
// is closed. It takes all stripe locks for a moment. It is safe for concurrent use.
func (m *Manager) Explain(q ExplainRequest) (*Explanation, error) {
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

func (q *ExplainRequest) check() error {
	switch {
	case q.Memory < 0:
		return negativeSize(q.Memory)
	case q.Kind == KindConn:
		return nil
	case q.Kind == KindStream && q.Peer == "":
		return errors.New("a stream needs a Peer")
	case q.Kind == KindStream && q.Service != "" && q.Protocol == "":
		return errNoProtocol
	case q.Kind == KindPeer && q.Peer == "", q.Kind == KindProtocol && q.Protocol == "", q.Kind == KindService && q.Service == "":
		return errNoName
	case q.Kind == KindStream:
		return nil
	case q.Memory == 0 && slices.Contains([]Kind{KindSystem, KindTransient, KindPeer, KindProtocol, KindService}, q.Kind):
		return fmt.Errorf("Kind is %v and Memory is 0: nothing is asked for; expected a number of bytes, or conn or stream as Kind", q.Kind)
	case q.Kind <= KindTransient || q.Kind == KindPeer || q.Kind == KindProtocol || q.Kind == KindService:
		return nil
	}
	return fmt.Errorf("Kind is %v, expected conn, stream, system, transient, peer, protocol or service", q.Kind)
}

// explainer answers one question.
type explainer struct {
	m   *Manager
	q   *ExplainRequest
	far endpoint
	out Explanation

	// What follows is of one cut. Accounts are copies; nil is not concerned.
	book                      *limitBook
	observed                  kindSet
	fixed                     [KindAllowlistedTransient + 1]*account
	peer                      *peerScope
	protocol, service         *account
	protocolPart, servicePart *account // the peer's parts of the two
	self                      *account // of the new connection or stream
	cost                      int64    // of opening, in bytes
}

// questionLimits are those of everything that a question names.
type questionLimits struct {
	opening           openingLimits
	protocol, service sharedLimits
}

// fetch asks a Limiter that is not of this package for what the question names.
func (e *explainer) fetch(b *limitBook) (f fetched[questionLimits], err error) {
	f.by = b
	switch {
	case e.q.Kind == KindStream:
		opening, err := b.fetchOpening(e.q.Peer, true)
		if f.limits.opening = opening.limits; err != nil {
			return f, err
		}
	case e.q.Peer != "":
		peer, err := b.fetchPeer(e.q.Peer)
		if f.limits.opening.peer = peer.limits; err != nil {
			return f, err
		}
	}
	for k, one := range map[Kind]struct {
		name string
		to   *sharedLimits
	}{
		KindProtocol: {string(e.q.Protocol), &f.limits.protocol},
		KindService:  {e.q.Service, &f.limits.service},
	} {
		if one.name != "" {
			var shared fetched[sharedLimits]
			if shared, err = b.fetchShared(k, one.name); err != nil {
				return f, err
			}
			*one.to = shared.limits
		}
	}
	return f, nil
}

// copyAccounts copies what the question concerns, in one cut.
func (e *explainer) copyAccounts() error {
	return decide(&e.m.engine, e.fetch, func(_ grip, f fetched[questionLimits]) (v verdict, err error) {
		e.m.inOneCut(func() { v = e.copyLocked(f) })
		return v, nil
	})
}

func (e *explainer) copyLocked(f fetched[questionLimits]) verdict {
	q, m := e.q, e.m
	e.book, e.observed = m.limits.Load(), m.observed.load()
	if e.book.own == nil && f.by != e.book {
		return unknown
	}
	for k, p := range m.fixed {
		e.fixed[k] = copyOf(p.scope(), p.limit, heldOf(p.used()))
	}
	switch q.Kind {
	case KindConn:
		e.self, e.cost = copyOf(scopeName{kind: KindConn}, m.classes.conn, held{}), m.classes.connCost
	case KindStream:
		limit := m.streamLimit(fetched[openingLimits]{f.by, f.limits.opening})
		e.self, e.cost = copyOf(scopeName{kind: KindStream}, *limit, held{}), m.classes.streamCost
	}
	var ps *peerScope
	if q.Peer != "" {
		ps = m.stripeOf(q.Peer).peers[q.Peer]
		e.copyPeer(ps, m.peerLimit(q.Peer, fetched[*amounts]{f.by, f.limits.opening.peer}))
	}
	if q.Protocol != "" {
		e.protocol, e.protocolPart = e.copyShared(KindProtocol, string(q.Protocol), fetched[sharedLimits]{f.by, f.limits.protocol}, ps)
	}
	if q.Service != "" {
		e.service, e.servicePart = e.copyShared(KindService, q.Service, fetched[sharedLimits]{f.by, f.limits.service}, ps)
	}
	return admitted
}

// copyPeer copies a peer, or makes what would be made where there is none. All stripe locks
// are held.
func (e *explainer) copyPeer(ps *peerScope, unnamed *amounts) {
	limit, use := *unnamed, held{}
	e.peer = &peerScope{id: e.q.Peer}
	if ps != nil {
		limit, use = *ps.limit(), ps.use
		e.peer.transientStreams, e.peer.systemIn, e.peer.trusted, e.peer.subnet = ps.transientStreams, ps.systemIn, ps.trusted, ps.subnet
	}
	e.peer.account = *copyOf(scopeName{kind: KindPeer, peer: e.q.Peer}, limit, use)
	e.peer.account.ps = e.peer
}

// copyOf makes an account that lies nowhere: its name is in what it has refused.
func copyOf(name scopeName, limit amounts, use held) *account {
	return &account{kind: name.kind, use: use, ready: &limit, denied: &denied{name: name}}
}

// copyShared copies a service or protocol and a peer's part of it. All stripe locks
// are held.
func (e *explainer) copyShared(k Kind, name string, f fetched[sharedLimits], ps *peerScope) (shared, part *account) {
	limits, _ := e.book.sharedLimits(k, name, f)
	limit, partLimit, use, partUse := *limits.own, *limits.pair, held{}, held{}
	if p := e.m.dir.find(k, name); p != nil {
		limit, partLimit, use = p.limit, p.pairLimit, heldOf(p.used())
		if ps != nil {
			if pr := ps.pair(ps.st.named(k)[name]); pr != nil {
				partUse = pr.use
			}
		}
	}
	return copyOf(scopeName{kind: k, text: name}, limit, use),
		copyOf(scopeName{kind: k.ofPeer(), text: name, peer: e.q.Peer}, partLimit, partUse)
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

// step asks a step's chain, below it self unless that is nil, and then charges them.
func (e *explainer) step(name string, r *request, self *account, c *chain) {
	e.take(e.ask(name, r, self, c))
	e.charge(r, self, c)
}

// checked is what a step came to: by all limits, and by those that are not only
// observed.
type checked struct {
	checks []LimitCheck
	by     *LimitCheck // refuses
	all    bool        // every limit is fit, also those that are only observed
}

// ask asks self and the accounts of a chain in the order in which the engine does.
func (e *explainer) ask(step string, r *request, self *account, c *chain) checked {
	r.askThrough(c)
	accounts := append([]*account{self}, c.at[:]...)
	if r.sharedFirst {
		accounts = slices.Concat(c.at[firstShared:], c.at[:firstShared])
	}
	var out checked
	items, n := r.list()
	for _, a := range accounts {
		for _, it := range items[:n] {
			if a != nil {
				out.checks = append(out.checks, e.checkOf(step, r, a, it, a.use.of(it.d)))
			}
		}
	}
	return out.decided()
}

func (c checked) decided() checked {
	c.all = true
	for i := range c.checks {
		if k := &c.checks[i]; !k.Fits {
			c.all = false
			if c.by == nil && !k.Observed {
				c.by = k
			}
		}
	}
	return c
}

// checkOf checks an item against an account that holds use before.
func (e *explainer) checkOf(step string, r *request, a *account, it item, use int64) LimitCheck {
	bound, name := r.bound(&e.m.engine, a, it), a.name()
	k := LimitCheck{Step: step, Scope: name.String(), Kind: a.kind, Name: limitNames[it.d], Use: use, Asked: it.n,
		Limit: a.limit()[it.d], Threshold: bound, Room: bound - use, Fits: it.n <= bound-use}
	// What no number can hold is refused by all.
	k.Observed = e.observed.has(a.kind) && it.n <= math.MaxInt64-use
	if !k.Fits {
		cause := r.causeOf(&e.m.engine, a, it, use)
		k.Cause, k.ConfigKey = cause.String(), limitKey(e.book, e.m.gate(), a.kind, it.d, &name)
		if holder := r.holderOf(&e.m.engine, a, it, cause); holder != nil {
			k.Holder = holder.String()
		}
	}
	return k
}

// take takes in what a step came to, unless one before has refused.
func (e *explainer) take(c checked) {
	e.out.Checks = append(e.out.Checks, c.checks...)
	if c.by != nil && e.out.By == nil {
		e.out.Admitted, e.out.By = false, c.by
	}
}

func (e *explainer) charge(r *request, self *account, c *chain) {
	if self != nil {
		self.use.charge(r)
	}
	for _, a := range c.at {
		if a != nil {
			a.use.charge(r)
		}
	}
}

// standing is the chain of what stands in a transient and a system scope, of these kinds,
// and below the peer if that is known. No transient scope is KindSystem.
func (e *explainer) standing(ofPeer bool, transient, system Kind) *chain {
	c := &chain{}
	if ofPeer {
		c.at[slotPeer] = &e.peer.account
	}
	if transient != KindSystem {
		c.at[slotTransient] = e.fixed[transient]
	}
	c.at[slotSystem] = e.fixed[system]
	return c
}

func (e *explainer) conn() {
	u := unitOf(KindConn, e.q.Direction, e.q.UseFD && !e.far.relayed)
	r := u.request(e.cost)
	trusts := e.m.allowlist.trustIn(e.far)
	if trusts != trustsAddr {
		r.subnet = e.m.fair.enter(e.far.addr, u.dir)
		defer e.m.fair.leave(r.subnet)
	}
	gated := trusts != trustsAddr && e.m.gate().concerns(u.dir)
	if trusts == noTrust {
		e.process(u.dir)
	}
	c := e.open(&r, trusts != noTrust, false)
	if gated && trusts != trustsPeer {
		e.gate(u.dir)
	}
	if e.q.Peer != "" {
		trusted := e.m.allowlist.allows(e.q.Peer, e.far.addr)
		if gated && trusts == trustsPeer && !trusted {
			e.process(u.dir)
			e.gate(u.dir)
		}
		c = e.move(&r, c, trusted)
	}
	e.memory(c)
}

// move moves a connection from a chain without a peer to its peer, as takeNewPlace does, and
// returns the chain in which it stands then.
func (e *explainer) move(opened *request, from *chain, trusted bool) *chain {
	r := *opened
	place := &chain{}
	place.at[slotPeer] = &e.peer.account
	system := from.at[slotSystem].kind
	switch {
	case !trusted && system == KindAllowlistedSystem:
		system = KindSystem
		r.sharedFirst = true
		standard := e.standing(false, KindTransient, KindSystem)
		e.take(e.ask("peer", &r, nil, standard.only(slotSystem)))
		e.take(e.ask("peer", &r, nil, standard.only(slotTransient)))
		place.at[slotSystem] = e.fixed[KindSystem]
	case !trusted:
		e.peersShare(&r)
		r.subnet = nil
	default:
		r.subnet = nil
	}
	e.step("peer", &r, nil, place)
	if trusted {
		e.peer.trusted++
	}
	return e.standing(true, KindSystem, system)
}

// open asks the standard scopes, and if they refuse and the allowlist means it, the
// allowlisted ones. It returns the chain in which the new one stands.
func (e *explainer) open(r *request, fallBack, ofPeer bool) *chain {
	standard := e.standing(ofPeer, KindTransient, KindSystem)
	first := e.ask("open", r, e.self, standard)
	if !first.all && fallBack {
		other := e.standing(ofPeer, KindAllowlistedTransient, KindAllowlistedSystem)
		if second := e.ask("allowlist", r, e.self, other); second.all || first.by != nil {
			e.out.Checks = append(e.out.Checks, first.checks...)
			e.take(second)
			e.charge(r, e.self, other)
			return other
		}
	}
	e.take(first)
	e.charge(r, e.self, standard)
	return standard
}

func (e *explainer) stream() {
	u := unitOf(KindStream, e.q.Direction, false)
	r := u.request(e.cost)
	trusted := e.peer.trusted > 0 || e.m.allowlist.allowsPeer(e.q.Peer)
	if !trusted {
		e.process(u.dir)
	}
	c := e.open(&r, trusted, true)
	r = u.request(e.cost)
	r.sharedFirst = true
	if e.protocol != nil {
		c.at[slotProtocolPeer], c.at[slotProtocol] = e.protocolPart, e.protocol
		e.step("protocol", &r, nil, c.onlyPair(slotProtocol))
	}
	if e.service != nil {
		c.at[slotServicePeer], c.at[slotService] = e.servicePart, e.service
		e.step("service", &r, nil, c.onlyPair(slotService))
	}
	e.memory(c)
}

// memory asks for the memory in the end, in the chain where it is reserved.
func (e *explainer) memory(c *chain) {
	if e.q.Memory > 0 {
		r := memoryRequest(e.m.admission, e.q.Memory, e.q.Priority)
		e.step("memory", &r, e.self, c)
	}
}

// reservation asks for memory right at a scope that others stand on.
func (e *explainer) reservation() {
	c := e.standing(e.q.Kind == KindPeer, KindSystem, KindSystem)
	switch e.q.Kind {
	case KindTransient:
		c.at[slotTransient] = e.fixed[KindTransient]
	case KindProtocol:
		c.at[slotProtocol] = e.protocol
	case KindService:
		c.at[slotService] = e.service
	}
	e.memory(c)
}

// peersShare asks for the peer's share of the system scope, in which the connection
// stands by now, as checkPeersShare does. Its subnet's was asked for before.
func (e *explainer) peersShare(opened *request) {
	r, system := *opened, e.fixed[KindSystem]
	r.asker, r.subnet = e.peer, nil
	if !e.m.fair.on(KindSystem) || !e.m.rations(&r) {
		return
	}
	var c checked
	items, n := r.list()
	for _, it := range items[:n] {
		// A connection that may have all of a limit was asked for that when it was opened.
		if it.d != dimMemory && e.m.ration(&r, system, it) < system.limit()[it.d] {
			c.checks = append(c.checks, e.checkOf("peer", &r, system, it, system.use.of(it.d)-it.n))
		}
	}
	e.take(c.decided())
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
	k := LimitCheck{Step: "gate", Scope: KindProcess.String(), Kind: KindProcess, Name: limitNames[d], Use: p.InUse, Asked: 1,
		Limit: p.RefuseAbove, Threshold: most, Room: most - p.InUse, Fits: !p.Refusing, Observed: e.observed.has(KindProcess)}
	if !k.Fits {
		k.Cause, k.ConfigKey = CauseMemoryPressure.String(), limitKey(e.book, e.m.gate(), KindProcess, d, &scopeName{})
	}
	e.take(checked{checks: []LimitCheck{k}}.decided())
}

// gate asks the gates for the far end.
func (e *explainer) gate(d dim) {
	g := e.m.gate()
	var c checked
	for _, s := range g.subnets.Look(e.far.addr) {
		scope := nameAtGate(s.Gate, s.Subnet)
		k := LimitCheck{Step: "gate", Scope: scope.String(), Kind: scope.kind, Name: limitNames[d], Use: s.Use, Asked: 1,
			Limit: s.Limit, Threshold: s.Limit, Room: s.Limit - s.Use, Fits: s.Use < s.Limit, Observed: e.observed.has(scope.kind)}
		if !k.Fits {
			k.Cause, k.ConfigKey = gateCauses[s.Gate].String(), limitKey(e.book, g, scope.kind, d, &scope)
		}
		c.checks = append(c.checks, k)
	}
	if g.caller.set() {
		e.out.Unknown = "the caller's own rate limiter is not asked: it would take a token"
	}
	e.take(c.decided())
}

// String gives the answer in one line.
func (e *Explanation) String() string {
	if e.Admitted {
		return "it would be admitted"
	}
	k := e.By
	why := k.Cause
	if k.Holder != "" {
		why += " by " + printable(k.Holder)
	}
	return fmt.Sprintf("it would be refused by %s: %s holds %d of %d, %d more must not pass %d (%s); raise %s",
		printable(k.Scope), k.Name, k.Use, k.Limit, k.Asked, k.Threshold, why, k.ConfigKey)
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
			verdict = "refuses, raise " + k.ConfigKey
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
