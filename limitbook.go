package rcmgr

// The limits that scopes start with, as the engine reads them from a Limiter. A book has
// what one Limiter says; another book may be put in force in its place (setlimits.go).
// The book in force changes under all stripe locks, so limits that belong together are
// read under one stripe lock, or in one cut.

import (
	"cmp"
	"fmt"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// limitBook has what one Limiter says, and does not change. A Limiter may be other
// people's code, and must not be called under a lock; everything that one of our own says
// is in the book.
type limitBook struct {
	limiter Limiter
	own     *fixedLimiter // the limiter, if it is of this package
	// kinds has the limits of all scopes, by kind. If the Limiter is not of this package,
	// the limits of named scopes are missing, and unnamed is what it returns for the
	// empty name.
	kinds [numKinds]kindLimits
	// mayRefuse has, by kind, the dimensions in which the limit of some scope may refuse a
	// request. The four scopes that always exist have none.
	mayRefuse [numKinds]dimSet
	// rates has the rates of all scopes, by kind, if the Limiter is of this package. It is nil
	// if no scope has a rate.
	rates *[numKinds]kindRates
	// connCost and streamCost are the costs of opening one connection and one stream, in
	// bytes.
	connCost, streamCost int64
	strict               bool // negative limits are errors
	negatives            *negativesSeen
}

// negativesSeen are the negative limits of a Limiter that is not of this package that have been
// logged, by kind: one bit for each dimension.
type negativesSeen [numKinds]atomic.Uint32

// kindLimits are the limits of scopes of one kind.
type kindLimits struct {
	unnamed amounts
	named   map[string]*amounts // nil if there are none
}

// kindRates are the rates of scopes of one kind. A name that is not here has those of the unnamed
// scopes.
type kindRates struct {
	unnamed *scopeRates
	named   map[string]*scopeRates
}

func kindRatesOf[K ~string](unnamed BaseLimit, named map[K]BaseLimit) (r kindRates) {
	r.unnamed = newScopeRates(unnamed.Rates)
	for name, l := range named {
		if l.Rates != unnamed.Rates {
			put(&r.named, string(name), newScopeRates(l.Rates))
		}
	}
	return r
}

// readRates reads the rates of a Limiter of our own.
func (b *limitBook) readRates() {
	limits := &b.own.limits
	rates := [numKinds]kindRates{
		KindServicePeer:  kindRatesOf(limits.ServicePeerDefault, limits.ServicePeer),
		KindService:      kindRatesOf(limits.ServiceDefault, limits.Service),
		KindProtocolPeer: kindRatesOf(limits.ProtocolPeerDefault, limits.ProtocolPeer),
		KindProtocol:     kindRatesOf(limits.ProtocolDefault, limits.Protocol),
		KindPeer:         kindRatesOf(limits.PeerDefault, limits.Peer),
	}
	for k, l := range [...]BaseLimit{limits.System, limits.Transient, limits.AllowlistedSystem, limits.AllowlistedTransient} {
		rates[k].unnamed = newScopeRates(l.Rates)
	}
	for _, of := range rates {
		if of.unnamed != nil || len(of.named) > 0 {
			b.rates = &rates
		}
	}
}

// ratesOf returns the rates of the scope with a name, as the book has them.
func (b *limitBook) ratesOf(k Kind, name string) *scopeRates {
	if b.rates == nil {
		return nil
	}
	of := &b.rates[k]
	if len(of.named) > 0 {
		if r, ok := of.named[name]; ok {
			return r
		}
	}
	return of.unnamed
}

// ratedDims returns, by kind, the dimensions in which some scope has a rate.
func (b *limitBook) ratedDims() (dims [numKinds]dimSet) {
	if b.rates == nil {
		return dims
	}
	for k, of := range b.rates {
		dims[k] = of.unnamed.dims()
		for _, named := range of.named {
			dims[k] |= named.dims()
		}
	}
	return dims
}

// of returns the limit of the scope with a name.
func (l *kindLimits) of(name string) *amounts {
	if a := l.named[name]; a != nil {
		return a
	}
	return &l.unnamed
}

// classLimits are the limits in force of connections, of streams and of peers that are
// not named, and the costs of opening. The scopes point to them, so that all of them get
// new limits at once. They are written under all stripe locks, and read under any one of
// them. A Limiter that is not of this package may return a different limit for each
// stream and peer. While one is in force, only streams and peers that got their limits
// from an earlier Limiter of our own point here.
type classLimits struct {
	conn, stream, peer   amounts
	connCost, streamCost int64
}

// putInForce puts the limits of a book in force. All stripe locks are held, or the
// manager is still being made.
func (c *classLimits) putInForce(b *limitBook) {
	c.conn, c.connCost, c.streamCost = b.kinds[KindConn].unnamed, b.connCost, b.streamCost
	if b.own != nil {
		c.stream, c.peer = b.kinds[KindStream].unnamed, b.kinds[KindPeer].unnamed
	}
}

// kindLimit is the limit that a Limiter returned for a kind.
type kindLimit struct {
	kind  Kind
	limit Limit
}

// newLimitBook reads the limits of all kinds from a Limiter, and everything that it says
// if it is our own. Negative numbers are errors if strict is set; otherwise they are read as
// zero, and logged. again has the negative numbers that were logged before, if the same Limiter
// is read again, or else is nil.
func newLimitBook(l Limiter, strict bool, again *negativesSeen) (*limitBook, error) {
	if l == nil {
		l = defaultLimiter()
	}
	l = guardLimiter(l)
	b := &limitBook{limiter: l, strict: strict, negatives: cmp.Or(again, new(negativesSeen))}
	if own, ok := l.(*fixedLimiter); ok {
		cfg := (*ConcreteLimitConfig)(own)
		if err := cfg.accept(strict); err != nil {
			return nil, err
		}
		b.own = (*fixedLimiter)(cfg.withoutNegatives())
		b.limiter, l = b.own, b.own
	}
	for _, one := range []kindLimit{
		{KindSystem, l.GetSystemLimits()}, {KindTransient, l.GetTransientLimits()},
		{KindAllowlistedSystem, l.GetAllowlistedSystemLimits()}, {KindAllowlistedTransient, l.GetAllowlistedTransientLimits()},
		{KindConn, l.GetConnLimits()},
	} {
		a, err := b.readLimit(one.kind, one.kind.String, one.limit)
		if err != nil {
			return nil, err
		}
		b.kinds[one.kind].unnamed = *a
	}
	b.noteRefusing(KindConn)
	if b.own != nil {
		b.readOwn()
		return b, nil
	}
	for k := KindService; k <= KindStream; k++ {
		if k != KindConn {
			b.mayRefuse[k] = dimSetOf(k.canRunOutOf) // a name that is not known yet may have any limit
		}
	}
	for _, one := range []kindLimit{
		{KindService, l.GetServiceLimits("")}, {KindServicePeer, l.GetServicePeerLimits("")},
		{KindProtocol, l.GetProtocolLimits("")}, {KindProtocolPeer, l.GetProtocolPeerLimits("")},
		{KindPeer, l.GetPeerLimits("")}, {KindStream, l.GetStreamLimits("")},
	} {
		// A limit that it does not have admits nothing; opening such a scope is an error.
		if a, err := limitGiven("", one.limit); err == nil && !(strict && a.negative() < numDims) {
			b.kinds[one.kind].unnamed = *a.orZero()
		}
	}
	return b, nil
}

// readOwn reads the rest of a Limiter of our own, which has been checked.
func (b *limitBook) readOwn() {
	limits := &b.own.limits
	b.kinds[KindService] = kindLimitsOf(limits.ServiceDefault, limits.Service)
	b.kinds[KindServicePeer] = kindLimitsOf(limits.ServicePeerDefault, limits.ServicePeer)
	b.kinds[KindProtocol] = kindLimitsOf(limits.ProtocolDefault, limits.Protocol)
	b.kinds[KindProtocolPeer] = kindLimitsOf(limits.ProtocolPeerDefault, limits.ProtocolPeer)
	b.kinds[KindPeer] = kindLimitsOf(limits.PeerDefault, limits.Peer)
	b.kinds[KindStream].unnamed = limitsOf(limits.Stream)
	b.connCost, b.streamCost = limits.Costs.perOpening()
	b.readRates()
	for k := KindService; k <= KindStream; k++ {
		b.noteRefusing(k)
	}
}

// noteRefusing notes in mayRefuse what the limits of a kind may refuse.
func (b *limitBook) noteRefusing(k Kind) {
	note := func(limit *amounts) {
		b.mayRefuse[k] |= dimSetOf(func(d dim) bool { return k.mayRefuse(d, limit[d]) })
	}
	note(&b.kinds[k].unnamed)
	for _, limit := range b.kinds[k].named {
		note(limit)
	}
}

func kindLimitsOf[K ~string](unnamed BaseLimit, named map[K]BaseLimit) kindLimits {
	l := kindLimits{unnamed: limitsOf(unnamed)}
	if len(named) > 0 {
		l.named = make(map[string]*amounts, len(named))
	}
	for name, limit := range named {
		a := limitsOf(limit)
		l.named[string(name)] = &a
	}
	return l
}

// readLimit returns the numbers of a limit for a scope of kind k. where returns the scope's name.
func (b *limitBook) readLimit(k Kind, where func() string, l Limit) (*amounts, error) {
	a, err := limitGiven("", l)
	if err == nil && a.negative() == numDims {
		return a, nil
	}
	if err != nil || b.strict {
		return nil, checkLimit(where(), l)
	}
	a.eachNegative(func(d dim, err error) {
		if b.negatives[k].Or(1<<d)&(1<<d) == 0 {
			log.Error(fmt.Sprintf("Limiter: %s: %v; %s", where(), err, afterNegative(d)+asUpstream))
		}
	})
	return a.orZero(), nil
}

// fetched has limits that the Limiter of a book returned, one that is not of this
// package. It is the zero value if there was nothing to ask. Once another book is in
// force, the limits must be fetched again.
type fetched[T any] struct {
	by     *limitBook
	limits T
}

// sharedLimits has the limits of a service or protocol, and of one peer in it.
type sharedLimits struct{ own, pair *amounts }

// fetchPeer returns decide's fetch for the limit of a peer.
func fetchPeer(p peer.ID) func(*limitBook) (fetched[*amounts], error) {
	return func(b *limitBook) (fetched[*amounts], error) { return b.fetchPeer(p) }
}

// fetchPeer fetches the limit of a peer. As in all fetches, no lock may be held.
func (b *limitBook) fetchPeer(p peer.ID) (fetched[*amounts], error) {
	if b.own != nil {
		return fetched[*amounts]{}, nil
	}
	a, err := b.readPeer(p)
	return fetched[*amounts]{b, a}, err
}

func (b *limitBook) readPeer(p peer.ID) (*amounts, error) {
	return b.readLimit(KindPeer, func() string { return "peer:" + p.String() }, b.limiter.GetPeerLimits(p))
}

// openingLimits has the limits of a stream, and of its peer.
type openingLimits struct{ stream, peer *amounts }

// fetchOpening fetches the limit of a peer's stream, and that of the peer if it is new.
func (b *limitBook) fetchOpening(p peer.ID, newPeer bool) (f fetched[openingLimits], err error) {
	if b.own != nil {
		return f, nil
	}
	f.by = b
	if f.limits.stream, err = b.readLimit(KindStream, KindStream.String, b.limiter.GetStreamLimits(p)); err == nil && newPeer {
		f.limits.peer, err = b.readPeer(p)
	}
	return f, err
}

// fetchShared fetches the limits of a service or protocol.
func (b *limitBook) fetchShared(k Kind, name string) (fetched[sharedLimits], error) {
	if b.own != nil {
		return fetched[sharedLimits]{}, nil
	}
	l, pl := b.limiter.GetServiceLimits, b.limiter.GetServicePeerLimits
	if k == KindProtocol {
		l = func(s string) Limit { return b.limiter.GetProtocolLimits(protocol.ID(s)) }
		pl = func(s string) Limit { return b.limiter.GetProtocolPeerLimits(protocol.ID(s)) }
	}
	where := k.String() + ":" + name
	own, err := b.readLimit(k, func() string { return where }, l(name))
	if err != nil {
		return fetched[sharedLimits]{}, err
	}
	pair, err := b.readLimit(k.ofPeer(), func() string { return where + ".peer" }, pl(name))
	return fetched[sharedLimits]{b, sharedLimits{own, pair}}, err
}

// sharedLimits returns the limits of a service or protocol, and reports whether they are
// known without calling the Limiter.
func (b *limitBook) sharedLimits(k Kind, name string, f fetched[sharedLimits]) (l sharedLimits, known bool) {
	if b.own != nil {
		return sharedLimits{b.kinds[k].of(name), b.kinds[k.ofPeer()].of(name)}, true
	}
	return f.limits, f.by == b
}

// sizing returns what the limits were computed from.
func (b *limitBook) sizing() Sizing {
	if b.own == nil {
		return Sizing{}
	}
	return b.own.sizing
}

// startAttrs returns, for the log, what the limits were computed from and the limits that
// matter most.
func (b *limitBook) startAttrs() []any {
	s := b.sizing()
	attrs := []any{"limits_by", cmp.Or(s.Rules, "the program")}
	if s.Rules != "" {
		attrs = append(attrs, "limits_for_memory", loggedAmount{dimMemory, s.Memory},
			"limits_for_descriptors", loggedAmount{dimFD, int64(s.descriptors())})
	}
	if m := s.Machine; m != (Machine{}) {
		attrs = append(attrs, "memory_found", loggedAmount{dimMemory, m.Memory}, "memory_from", m.MemoryFrom,
			"descriptors_found", loggedAmount{dimFD, int64(m.descriptors())})
		if m.CgroupError != "" {
			attrs = append(attrs, "cgroup_error", m.CgroupError)
		}
	}
	system, transient := &b.kinds[KindSystem].unnamed, &b.kinds[KindTransient].unnamed
	return append(attrs, "system_memory", loggedAmount{dimMemory, system[dimMemory]},
		"system_descriptors", loggedAmount{dimFD, system[dimFD]}, "system_conns_inbound", loggedAmount{dimConnsIn, system[dimConnsIn]},
		"transient_conns_inbound", loggedAmount{dimConnsIn, transient[dimConnsIn]})
}

func (b *limitBook) placeOfPeer(p peer.ID) limitPlace {
	if b.kinds[KindPeer].named[string(p)] != nil {
		return placeOfName
	}
	return placeOfAll
}

// guardedLimiter catches panics of a Limiter that is not of this package, and of the
// Limits that it returns. After a panic it is called again, because no scope can be made
// without a limit: each operation that needs the limit fails with an error (checkLimit).
type guardedLimiter struct {
	theirs Limiter
	guard
}

// guardLimiter guards a Limiter, unless it is of this package or already guarded.
func guardLimiter(l Limiter) Limiter {
	switch l.(type) {
	case *fixedLimiter, *guardedLimiter:
		return l
	}
	return &guardedLimiter{theirs: l, guard: guard{callback: callbackOf("Limiter", l), then: "calls that need its limit return an error"}}
}

func (g *guardedLimiter) ask(get func() Limit) Limit {
	copied, none := new(copiedLimit), false
	copied.err = g.try(func() {
		l := get()
		if none = isNoLimit(l); !none {
			copied.amounts = limitsOf(l)
		}
	})
	if none {
		return nil
	}
	return copied
}

func (g *guardedLimiter) GetSystemLimits() Limit { return g.ask(g.theirs.GetSystemLimits) }

func (g *guardedLimiter) GetTransientLimits() Limit { return g.ask(g.theirs.GetTransientLimits) }

func (g *guardedLimiter) GetAllowlistedSystemLimits() Limit {
	return g.ask(g.theirs.GetAllowlistedSystemLimits)
}

func (g *guardedLimiter) GetAllowlistedTransientLimits() Limit {
	return g.ask(g.theirs.GetAllowlistedTransientLimits)
}

func (g *guardedLimiter) GetServiceLimits(svc string) Limit {
	return g.ask(func() Limit { return g.theirs.GetServiceLimits(svc) })
}

func (g *guardedLimiter) GetServicePeerLimits(svc string) Limit {
	return g.ask(func() Limit { return g.theirs.GetServicePeerLimits(svc) })
}

func (g *guardedLimiter) GetProtocolLimits(proto protocol.ID) Limit {
	return g.ask(func() Limit { return g.theirs.GetProtocolLimits(proto) })
}

func (g *guardedLimiter) GetProtocolPeerLimits(proto protocol.ID) Limit {
	return g.ask(func() Limit { return g.theirs.GetProtocolPeerLimits(proto) })
}

func (g *guardedLimiter) GetPeerLimits(p peer.ID) Limit {
	return g.ask(func() Limit { return g.theirs.GetPeerLimits(p) })
}

func (g *guardedLimiter) GetStreamLimits(p peer.ID) Limit {
	return g.ask(func() Limit { return g.theirs.GetStreamLimits(p) })
}

func (g *guardedLimiter) GetConnLimits() Limit { return g.ask(g.theirs.GetConnLimits) }
