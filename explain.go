package rcmgr

// Explain: whether a connection, stream or reservation would be admitted now, and what
// stands in its way. The accounts that the request would touch are copied in one cut,
// and the request is checked against chains of these copies, with the thresholds of the
// engine (request.askThrough, request.bound). Nothing is made, charged or counted.
//
// The question takes the same steps as the request would: open, then peer, protocol
// and service, whichever are named, then memory. Each step is charged to the copies
// before the next one is checked. TestExplainSaysWhatWillBe makes the requests that it
// asked about, and compares both results.

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/letgo"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// ExplainRequest is a question to Manager.Explain: a connection, a stream or a memory
// reservation that a host might ask for.
type ExplainRequest struct {
	// Kind is KindConn for a connection and KindStream for a stream. KindSystem,
	// KindTransient, KindPeer, KindProtocol or KindService stand for a reservation of
	// Memory directly at that scope.
	Kind      Kind
	Direction network.Direction // any but network.DirInbound counts as outbound
	// Endpoint is the far end of a connection, nil if it has no address. UseFD says
	// whether the connection takes a file descriptor.
	Endpoint multiaddr.Multiaddr
	UseFD    bool
	// Peer, Protocol and Service are those that the connection or stream is attached to
	// after it was opened. A stream needs a Peer; with a Service, it needs a Protocol too.
	Peer     peer.ID
	Protocol protocol.ID
	Service  string
	// Memory is the number of bytes that are reserved as the last step, with Priority.
	Memory   int64
	Priority uint8
}

// LimitCheck is one limit that the request of an ExplainRequest has to fit. Amounts are
// bytes of memory, or counts.
type LimitCheck struct {
	// Step is the step of the request: "open", "gate", "peer", "protocol", "service" or
	// "memory". It is "allowlist" if the request is opened again in the allowlisted
	// scopes.
	Step string
	// Scope is the scope or gate that has the limit. "conn" and "stream" stand for the
	// new connection or stream itself.
	Scope string
	Kind  Kind
	Name  string // the limit's name in configurations, such as "ConnsInbound" or "Rates.Streams"
	Use   int64  // what the scope would hold before this step; of a rate, the tokens that are taken
	Asked int64  // what the step asks for
	Limit int64  // math.MaxInt64 if unlimited; of a rate, its burst
	// Threshold is the most that the scope may hold after this step. It is less than
	// Limit for a low priority, or if a part of the limit is kept for other peers.
	Threshold int64
	Room      int64 // Threshold - Use; negative if the scope holds more already
	Fits      bool
	// Observed means that the limit is only observed, and refuses nothing.
	Observed bool
	Cause    string `json:",omitempty"` // the cause of the refusal, if it does not fit
	// Holder names the peer or subnet that holds too much of the limit, if that is the
	// cause.
	Holder string `json:",omitempty"`
	// KeptFor has the names of the earmarks for which what is left of the limit is kept, if that is
	// the cause.
	KeptFor []string `json:",omitempty"`
	// Largest names the peer or subnet that holds most of the limit, and LargestHolds is how
	// much, as they were within the last second. Only By has them, if the scope is system,
	// transient, a service or a protocol. They are empty if none holds a tenth of what is held,
	// or if that is not known: a connection in the transient scope has no peer, and subnets are
	// known only with WithFairShare.
	Largest      string `json:",omitempty"`
	LargestHolds int64  `json:",omitzero"`
	ConfigKey    string `json:",omitempty"` // the place in the configuration to change to admit more
	// RetryAt is the time at which the rate has a token again. It is zero if it has one now.
	RetryAt time.Time `json:",omitzero"`
}

// Explanation is the answer of Manager.Explain.
type Explanation struct {
	Admitted bool
	// By is the check that would refuse the request; nil if it would be admitted.
	By *LimitCheck `json:",omitempty"`
	// Checks lists all limits that were checked, in their order. The list goes on
	// after the first check that refuses.
	Checks []LimitCheck
	// WouldLetGo lists what the request would make the host let go of first, three at most. It is
	// empty without WithRoom, and while there is room enough.
	WouldLetGo []RoomVictim `json:",omitempty"`
	// Unknown names what could not be checked. That can only be a rate limiter of
	// WithConnRateLimiters; it is empty otherwise.
	Unknown string `json:",omitempty"`
}

// Explain reports whether a connection, stream or reservation would be admitted now,
// and which limits it has to fit. It reserves nothing and changes nothing, so another
// request may take the room before the real one comes.
//
// The scopes and their limits are read at one instant, gates and subnets' shares at
// another. If both a limit on connections and a gate would refuse a connection, By
// is the limit. Explain returns an error if the question lacks something, if a Limiter
// has no valid limit for a name in the question, or if the manager is closed. It takes all
// stripe locks for a moment. It is safe for concurrent use.
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
	e.nameLargest()
	e.out.WouldLetGo = e.wouldLetGo()
	return &e.out, nil
}

// nameLargest names the peer or subnet that holds most of a limit that refuses.
func (e *explainer) nameLargest() {
	k := e.out.By
	if k == nil || !slices.Contains(limitNames[:], k.Name) { // a rate is not held by anyone
		return
	}
	name := ""
	switch k.Kind {
	case KindService:
		name = e.q.Service
	case KindProtocol:
		name = string(e.q.Protocol)
	}
	d := dim(slices.Index(limitNames[:], k.Name))
	k.Largest, k.LargestHolds = e.m.largestLately(k.Kind, name, d, k.Use, &e.m.explained)
}

// wouldLetGo returns what would be let go because of the first check after which room would have
// to be made. No lock is held.
func (e *explainer) wouldLetGo() (list []RoomVictim) {
	if e.m.room == nil {
		return nil
	}
	for i := range e.out.Checks {
		if l, short := e.lackAfter(&e.out.Checks[i]); short {
			for _, v := range e.m.room.WouldGo(l, 3) {
				list = append(list, roomVictim(&v))
			}
			return list
		}
	}
	return nil
}

// lackAfter returns what would be short after the request that was checked, and whether anything
// would be.
func (e *explainer) lackAfter(c *LimitCheck) (l letgo.Lack, short bool) {
	p, d := e.m.fixed[KindSystem], dim(slices.Index(limitNames[:], c.Name))
	var over int64
	switch c.Kind {
	case KindProcess:
		if over = c.Use - e.m.pressure.readmit + 1; c.Fits && c.Use <= e.m.pressure.shortAbove() {
			return l, false
		}
		l = e.m.lackOfProcess(e.m.heldByEach())
		l.Need = func() int64 { return over }
		return l, true
	case KindProtocol:
		p = e.m.dir.find(KindProtocol, string(e.q.Protocol))
	case KindService:
		p = e.m.dir.find(KindService, e.q.Service)
	case KindTransient:
		p = e.m.fixed[KindTransient]
	case KindSystem:
	default:
		return l, false
	}
	if over = e.m.lacksFor(p, d, c.Limit, c.Use+c.Asked); over <= 0 {
		return l, false
	}
	l = e.m.lackOf(p, d)
	l.Need = func() int64 { return over }
	return l, true
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
	case q.Kind == KindPeer && q.Peer == "", q.Kind == KindProtocol && q.Protocol == "",
		q.Kind == KindService && q.Service == "":
		return errNoName
	case q.Kind == KindStream:
		return nil
	case q.Memory == 0 &&
		slices.Contains([]Kind{KindSystem, KindTransient, KindPeer, KindProtocol, KindService}, q.Kind):
		return fmt.Errorf("Kind is %v and Memory is 0: nothing is asked for; "+
			"expected a number of bytes, or conn or stream as Kind", q.Kind)
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

	// These are taken in one cut. The accounts are copies; those that the question does
	// not concern are nil.
	book                      *limitBook
	observed                  kindSet
	fixed                     [KindAllowlistedTransient + 1]*account
	peer                      *peerScope
	protocol, service         *account
	protocolPart, servicePart *account // the peer's parts of the two
	self                      *account // of the new connection or stream
	buckets                   map[*account]*bucketCut
	now                       int64 // the time of the buckets
	cost                      int64 // what opening costs, in bytes
}

// questionLimits are the limits of everything that a question names.
type questionLimits struct {
	opening           openingLimits
	protocol, service sharedLimits
}

// fetch asks a foreign Limiter for the limits of what the question names.
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

// copyAccounts copies the accounts that the question concerns, in one cut.
func (e *explainer) copyAccounts() error {
	return decide(&e.m.engine, e.fetch, func(_ grip, f fetched[questionLimits]) (v verdict, err error) {
		e.m.inOneCut(func() { v = e.copyLocked(f) })
		return v, nil
	})
}

func (e *explainer) copyLocked(f fetched[questionLimits]) verdict {
	q, m := e.q, e.m
	e.book, e.observed = m.limits.Load(), m.observed.load()
	e.buckets, e.now = make(map[*account]*bucketCut), m.latestTime()
	if e.book.own == nil && f.by != e.book {
		return unknown
	}
	for k, p := range m.fixed {
		e.fixed[k] = copyOf(p.kind, "", p.limit, heldOf(p.used()))
		e.keep(e.fixed[k], p.bucketCut())
	}
	switch q.Kind {
	case KindConn:
		limit := m.classes.conn
		e.self, e.cost = &account{kind: KindConn, ready: &limit}, m.classes.connCost
	case KindStream:
		limit := *m.streamLimit(fetched[openingLimits]{f.by, f.limits.opening})
		e.self, e.cost = &account{kind: KindStream, ready: &limit}, m.classes.streamCost
	}
	var ps *peerScope
	if q.Peer != "" {
		ps = m.stripeOf(q.Peer).known(q.Peer)
		e.copyPeer(ps, m.peerLimit(q.Peer, fetched[*amounts]{f.by, f.limits.opening.peer}))
	}
	if q.Protocol != "" {
		e.protocol, e.protocolPart = e.copyShared(KindProtocol, string(q.Protocol),
			fetched[sharedLimits]{f.by, f.limits.protocol}, ps)
	}
	if q.Service != "" {
		e.service, e.servicePart = e.copyShared(KindService, q.Service,
			fetched[sharedLimits]{f.by, f.limits.service}, ps)
	}
	return admitted
}

// copyPeer copies a peer's scope, or makes the copy of a new one if ps is nil. All stripe
// locks are held.
func (e *explainer) copyPeer(ps *peerScope, unnamed *amounts) {
	limit, use := *unnamed, held{}
	e.peer = &peerScope{id: e.q.Peer, st: e.m.stripeOf(e.q.Peer)}
	if ps != nil {
		limit, use = *ps.limit(), ps.use
		e.peer.transientStreams, e.peer.systemIn = ps.transientStreams, ps.systemIn
		e.peer.trusted, e.peer.subnet = ps.trusted, ps.subnet
		if far := ps.far(); far.IsValid() {
			e.peer.makeRare().far = ip.KeyOf(far)
		}
	}
	e.peer.account = account{kind: KindPeer, use: use, ready: &limit, ps: e.peer}
	b := e.book.fullBuckets(KindPeer, string(e.q.Peer))
	if ps != nil {
		b = ps.bucketCut()
	}
	e.keep(&e.peer.account, b)
}

// copyOf returns a share of a pool of its own, as a copy of a shared scope.
func copyOf(kind Kind, name string, limit amounts, use held) *account {
	sh := &share{pool: &pool{kind: kind, name: name, limit: limit}}
	sh.account = account{kind: kind, use: use, ready: &sh.pool.limit, share: sh}
	return &sh.account
}

// copyShared copies a service or protocol and a peer's part of it. All stripe locks
// are held.
func (e *explainer) copyShared(k Kind, name string,
	f fetched[sharedLimits], ps *peerScope) (shared, part *account) {
	limits, _ := e.book.sharedLimits(k, name, f)
	limit, partLimit, use, partUse := *limits.own, *limits.pair, held{}, held{}
	own, pair := e.book.fullBuckets(k, name), e.book.fullBuckets(k.ofPeer(), name)
	if p := e.m.dir.find(k, name); p != nil {
		own, pair = p.bucketCut(), p.fullPairBuckets()
		limit, partLimit, use = p.limit, p.pairLimit, heldOf(p.used())
		if ps != nil {
			if pr := ps.pair(ps.st.named(k)[name]); pr != nil {
				partUse, pair = pr.use, pr.bucketCut()
			}
		}
	}
	shared = copyOf(k, name, limit, use)
	part = &account{kind: k.ofPeer(), use: partUse, ready: &partLimit, share: shared.share, ps: e.peer}
	e.keep(shared, own)
	e.keep(part, pair)
	return shared, part
}

// answer takes all steps of the question.
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

// keep keeps a copy of the buckets of an account.
func (e *explainer) keep(a *account, b bucketCut) { e.buckets[a] = &b }

// rateChecks checks the rates of a chain, in the engine's order.
func (e *explainer) rateChecks(step string, r *request, accounts []*account) (checks []LimitCheck) {
	for _, a := range accounts {
		b := e.buckets[a]
		for _, d := range b.concerned(r) {
			name, s := a.name(), b.state(d, e.now)
			k := LimitCheck{Step: step, Scope: name.String(), Kind: a.kind, Name: "Rates." + s.Name, Use: s.Burst - s.Left,
				Asked: r.count, Limit: s.Burst, Threshold: s.Burst, Room: s.Left, Fits: s.Left > 0, Observed: e.observed.has(a.kind)}
			if !k.Fits {
				k.Cause, k.ConfigKey = CauseRate.String(), rateKey(limitKey(e.book, e.m.gate(), a.kind, d, &name), d)
				k.RetryAt = b.next(d, e.now, &e.m.tokens)
			}
			checks = append(checks, k)
		}
	}
	return checks
}

// step checks a step against self, unless that is nil, and a chain, and charges it to
// them.
func (e *explainer) step(name string, r *request, self *account, c *chain) {
	e.take(e.ask(name, r, self, c))
	e.charge(r, self, c)
}

// checked is the result of a step.
type checked struct {
	checks []LimitCheck
	by     *LimitCheck // the first check that refuses, nil if none
	all    bool        // it fits every limit, even those that are only observed
}

// ask checks self, and then the rates and the limits of a chain, in the engine's order.
func (e *explainer) ask(step string, r *request, self *account, c *chain) checked {
	out := e.askLimits(step, r, self, &chain{})
	out.checks = append(out.checks, e.rateChecks(step, r, r.inOrder(c))...)
	out.checks = append(out.checks, e.askLimits(step, r, nil, c).checks...)
	return out.decided()
}

// inOrder returns the accounts of a chain in the order in which they refuse.
func (r *request) inOrder(c *chain) []*account {
	if r.sharedFirst {
		return slices.Concat(c.at[firstShared:], c.at[:firstShared])
	}
	return c.at[:]
}

// askLimits checks the limits of self, unless that is nil, and of a chain.
func (e *explainer) askLimits(step string, r *request, self *account, c *chain) checked {
	r.askThrough(c)
	var out checked
	items, n := r.list()
	for _, a := range append([]*account{self}, r.inOrder(c)...) {
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

// checkOf checks an item against an account that so far holds use of it.
func (e *explainer) checkOf(step string, r *request, a *account, it item, use int64) LimitCheck {
	bound, name := r.bound(&e.m.engine, a, it), a.name()
	k := LimitCheck{Step: step, Scope: name.String(), Kind: a.kind, Name: limitNames[it.d], Use: use, Asked: it.n,
		Limit: a.limit()[it.d], Threshold: bound, Room: bound - use, Fits: it.n <= bound-use}
	// A sum above math.MaxInt64 is refused even if the limit is only observed.
	k.Observed = e.observed.has(a.kind) && it.n <= math.MaxInt64-use
	if !k.Fits {
		cause := r.causeOf(&e.m.engine, a, it, use)
		k.Cause, k.ConfigKey = cause.String(), limitKey(e.book, e.m.gate(), a.kind, it.d, &name)
		if holder := r.holderOf(&e.m.engine, a, it, cause); holder != nil {
			k.Holder = holder.String()
		}
		if cause == CauseLimit { // what is kept for others makes no difference then
			k.Threshold = k.Limit
			if it.d == dimMemory {
				k.Threshold = r.threshold(&e.m.engine, a, it.d)
			}
			k.Room = k.Threshold - use
		}
		if cause == CauseEarmark {
			k.KeptFor = e.m.earmarks.names(r.earmarks)
		}
	}
	return k
}

// take adds the result of a step to the answer. By stays the first refusal.
func (e *explainer) take(c checked) {
	e.out.Checks = append(e.out.Checks, c.checks...)
	if c.by != nil && e.out.By == nil {
		e.out.Admitted, e.out.By = false, c.by
	}
}

// charge charges a step to the copies. Their buckets stay as they are, because no later step asks
// the rates of an account again.
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

// standing returns the chain of a request that counts in the transient and the system
// scope of the given kinds, and in the peer if ofPeer is set. KindSystem as transient
// means no transient scope.
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
		r.subnet = e.m.fair.enter(e.far, u.dir, nil)
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
		trusted := e.m.allowlist.allowsAt(e.q.Peer, e.far.addr, e.far.via)
		if gated && trusts == trustsPeer && !trusted {
			e.process(u.dir)
			e.gate(u.dir)
		}
		c = e.move(&r, c, trusted)
	}
	e.memory(c)
}

// move moves a connection from a chain without a peer to its peer, as takeNewPlace does,
// and returns its new chain.
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
		e.take(e.askLimits("peer", &r, nil, standard.only(slotSystem)))
		e.take(e.askLimits("peer", &r, nil, standard.only(slotTransient)))
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

// open checks the standard scopes. If they refuse and fallBack is set, because the
// allowlist covers the request, it checks the allowlisted ones. It returns the chain that
// the new connection or stream counts in.
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
		e.gate(u.dir)
	}
	c := e.open(&r, trusted, true)
	r = u.request(e.cost)
	r.sharedFirst = true
	if e.protocol != nil {
		if c.at[slotSystem].kind == KindSystem {
			e.protocolsPart(&r)
		}
		c.at[slotProtocolPeer], c.at[slotProtocol] = e.protocolPart, e.protocol
		e.step("protocol", &r, nil, c.onlyPair(slotProtocol))
	}
	if e.service != nil {
		c.at[slotServicePeer], c.at[slotService] = e.servicePart, e.service
		e.step("service", &r, nil, c.onlyPair(slotService))
	}
	e.memory(c)
}

// memory checks the last step, the reservation of memory in a chain.
func (e *explainer) memory(c *chain) {
	if e.q.Memory > 0 {
		r := memoryRequest(e.m.admission, e.q.Memory, e.q.Priority)
		e.step("memory", &r, e.self, c)
	}
}

// reservation checks a reservation directly at a shared scope or a peer.
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

// peersShare checks the peer's fair share of the system scope, as checkPeersShare does.
// The connection is charged there already. The subnet's share was checked by open.
func (e *explainer) peersShare(opened *request) {
	r := *opened
	r.asker, r.subnet = e.peer, nil
	shares := e.m.fair.on(KindSystem) && e.m.rations(&r)
	if e.m.earmarks != nil {
		r.earmarks = e.peer.earmarksFor(&r, nil)
	}
	e.standingIn("peer", &r, func(it item) int64 { return e.m.mostStanding(shares, &r, e.fixed[KindSystem], it) })
}

// protocolsPart checks the part of the system scope that a stream may take because of its
// protocol, as checkProtocol does. The stream is charged there already.
func (e *explainer) protocolsPart(opened *request) {
	if e.m.earmarks == nil {
		return
	}
	r := *opened
	r.asker, r.earmarks = e.peer, e.peer.earmarksFor(&r, e.protocol)
	e.standingIn("protocol", &r, func(it item) int64 { return e.m.unmarked(&r, e.fixed[KindSystem], it.d) })
}

// standingIn checks what is charged to the system scope already, as checkStanding does. A limit
// that it may fill was checked when it was opened.
func (e *explainer) standingIn(step string, r *request, mostOf func(item) int64) {
	var c checked
	system := e.fixed[KindSystem]
	items, n := r.list()
	for _, it := range items[:n] {
		if it.d != dimMemory && mostOf(it) < system.limit()[it.d] {
			c.checks = append(c.checks, e.checkOf(step, r, system, it, system.use.of(it.d)-it.n))
		}
	}
	e.take(c.decided())
}

// process checks the memory of the process.
func (e *explainer) process(d dim) {
	p := e.m.pressure.state()
	if p.Limit == 0 || d != dimConnsIn && d != dimStreamsIn {
		return
	}
	most := p.RefuseAbove
	if p.Refusing {
		most = p.AdmitBelow
	}
	k := LimitCheck{Step: "gate", Scope: KindProcess.String(), Kind: KindProcess, Name: limitNames[d],
		Use: p.InUse, Asked: 1, Limit: p.RefuseAbove, Threshold: most, Room: most - p.InUse,
		Fits: !p.Refusing, Observed: e.observed.has(KindProcess)}
	if !k.Fits {
		k.Cause = CauseMemoryPressure.String()
		k.ConfigKey = limitKey(e.book, e.m.gate(), KindProcess, d, &scopeName{})
	}
	e.take(checked{checks: []LimitCheck{k}}.decided())
}

// at returns the address that the gates check: that of the far end of a connection, or the one
// that the peer of a stream has.
func (e *explainer) at() netip.Addr {
	if e.q.Kind == KindStream {
		return e.peer.far()
	}
	return e.far.addr
}

// gate checks the gates for the far end.
func (e *explainer) gate(d dim) {
	g := e.m.gate()
	var c checked
	look := func(s *subnets.Subnets, key func(*scopeName) string) {
		for _, s := range s.Look(e.at()) {
			scope := nameAtGate(s.Gate, s.Subnet)
			k := LimitCheck{Step: "gate", Scope: scope.String(), Kind: scope.kind, Name: limitNames[d], Use: s.Use, Asked: 1,
				Limit: s.Limit, Threshold: s.Limit, Room: s.Limit - s.Use, Fits: s.Use < s.Limit, Observed: e.observed.has(scope.kind)}
			if !k.Fits {
				k.Cause, k.ConfigKey = gateCauses[s.Gate].String(), key(&scope)
			}
			c.checks = append(c.checks, k)
		}
	}
	if d == dimConnsOut && g.dials != nil {
		look(g.dials, func(scope *scopeName) string {
			place := placeOfDials
			if _, named := g.limits.DialRate.Networks[scope.prefix()]; named {
				place = placeOfDialsByName
			}
			return configKey(KindRate, d, scope, place)
		})
	}
	if g.paces(d) {
		look(g.streams, func(scope *scopeName) string { return limitKey(e.book, g, KindRate, d, scope) })
	}
	if resourceOf[d] == ResourceConnection && g.checks(d) {
		look(g.subnets, func(scope *scopeName) string { return limitKey(e.book, g, scope.kind, d, scope) })
		if g.asksCaller() {
			e.out.Unknown = "the caller's own rate limiter is not asked: it would take a token"
		}
	}
	e.take(c.decided())
}

// String returns the answer in one line.
func (e *Explanation) String() string {
	if e.Admitted {
		return "it would be admitted"
	}
	k := e.By
	why := k.Cause
	if k.Holder != "" {
		why += " by " + printable(k.Holder)
	}
	if len(k.KeptFor) > 0 {
		why += " for " + printable(strings.Join(k.KeptFor, ", "))
	}
	most := ""
	if k.Largest != "" {
		most = fmt.Sprintf("; %s holds %s of it", printable(k.Largest), k.text(k.LargestHolds))
	}
	return fmt.Sprintf("it would be refused by %s: %s is at %s of %s, and %s more would exceed %s (%s)%s; raise %s",
		printable(k.Scope), k.Name, k.text(k.Use), k.text(k.Limit), k.text(k.Asked), k.text(k.Threshold), why, most, k.ConfigKey)
}

// text returns an amount of the check with its unit. The check of the process's memory compares
// bytes, for every request.
func (k *LimitCheck) text(n int64) string {
	limit := k.Name
	switch {
	case n == math.MaxInt: // on 32 bits, of a count
		n = math.MaxInt64
	case k.Kind == KindProcess:
		limit = limitNames[dimMemory]
	}
	if n < 0 {
		return "-" + amountText(limit, -n)
	}
	return amountText(limit, n)
}

// WriteTable writes the answer and a table with a row for each limit that was checked.
// It returns the error of w, if any.
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
		room := k.text(k.Room)
		if threshold := k.text(k.Threshold); threshold == k.text(math.MaxInt64) {
			room = threshold
		}
		t.row(k.Step, printable(k.Scope), k.Name, k.text(k.Use), k.text(k.Limit), k.text(k.Threshold), room, k.text(k.Asked), verdict)
	}
	if err := t.Flush(); err != nil || len(e.WouldLetGo) == 0 {
		return err
	}
	fmt.Fprint(w, "\nFirst to be let go to make room\n\n")
	return writeVictims(w, e.WouldLetGo)
}
