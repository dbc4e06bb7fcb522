package rcmgr

// The limits that scopes start with, as the engine reads them from a Limiter. A
// book is what one Limiter says; it does not change, but another one may come into
// force in its place (setlimits.go).

import (
	"cmp"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// limitBook reads a Limiter. A Limiter is other people's code, and must not be
// asked under any lock; one of our own has all that it says in maps.
type limitBook struct {
	limiter Limiter
	own     *fixedLimiter // the limiter, if it is of this package
	// fixed has the limits of the four scopes that are always there, by kind.
	fixed [KindAllowlistedTransient + 1]amounts
	// classes has what is said to all of a kind. Scopes point into it, so that all
	// of them have new limits at once. It goes from one book to the next, is
	// written under all stripe locks, and read under any one of them.
	classes *classLimits
	// peers has the limits of the peers that a limiter of our own names.
	peers map[peer.ID]*amounts
	// connCost and streamCost are what opening one costs, in bytes.
	connCost, streamCost int64
}

// classLimits are the limits of what is not named. A Limiter that is not of this
// package may say something else to each stream and peer; then only those that a
// limiter of our own gave their limits point here.
type classLimits struct{ conn, stream, peer amounts }

// newLimitBook reads what a Limiter says to all, and everything that one of our
// own says.
func newLimitBook(l Limiter) (*limitBook, error) {
	b := &limitBook{limiter: l, classes: new(classLimits)}
	b.own, _ = l.(*fixedLimiter)
	for _, one := range []struct {
		where string
		limit Limit
		to    *amounts
	}{
		{KindSystem.String(), l.GetSystemLimits(), &b.fixed[KindSystem]},
		{KindTransient.String(), l.GetTransientLimits(), &b.fixed[KindTransient]},
		{KindAllowlistedSystem.String(), l.GetAllowlistedSystemLimits(), &b.fixed[KindAllowlistedSystem]},
		{KindAllowlistedTransient.String(), l.GetAllowlistedTransientLimits(), &b.fixed[KindAllowlistedTransient]},
		{KindConn.String(), l.GetConnLimits(), &b.classes.conn},
	} {
		a, err := readLimit(one.where, one.limit)
		if err != nil {
			return nil, err
		}
		*one.to = *a
	}
	if b.own == nil {
		return b, nil
	}
	return b, b.readOwn()
}

func (b *limitBook) readOwn() (err error) {
	limits := &b.own.limits
	limits.each(func(place string, l BaseLimit) {
		if err == nil {
			err = checkLimit(place, l)
		}
	})
	if err != nil {
		return err
	}
	b.classes.stream, b.classes.peer = limitsOf(limits.Stream), limitsOf(limits.PeerDefault)
	b.peers = make(map[peer.ID]*amounts, len(limits.Peer))
	for p, l := range limits.Peer {
		a := limitsOf(l)
		b.peers[p] = &a
	}
	b.connCost, b.streamCost, err = limits.Costs.perOpening(limits.Conn.Memory, limits.Stream.Memory)
	return err
}

func readLimit(where string, l Limit) (*amounts, error) {
	if err := checkLimit(where, l); err != nil {
		return nil, err
	}
	a := limitsOf(l)
	return &a, nil
}

// stream gives the limit of a stream of a peer.
func (b *limitBook) stream(p peer.ID) (*amounts, error) {
	if b.own != nil {
		return &b.classes.stream, nil
	}
	return readLimit(KindStream.String(), b.limiter.GetStreamLimits(p))
}

// peerLimit is the limit of a peer as it was said by a book. Once another book is
// in force, it has to be asked for again.
type peerLimit struct {
	by    *limitBook
	limit *amounts
}

// askPeer asks for the limit of a peer. No lock may be held.
func (b *limitBook) askPeer(p peer.ID) (peerLimit, error) {
	if b.own != nil {
		return peerLimit{}, nil // peerNow knows it
	}
	l := b.limiter.GetPeerLimits(p)
	where := ""
	if checkLimit("", l) != nil {
		where = "peer:" + p.String() // the name only if it is to be told
	}
	a, err := readLimit(where, l)
	return peerLimit{b, a}, err
}

// peerNow gives the limit of a peer by the book in force, or nil if its Limiter has
// to be asked. A stripe's lock is held.
func (b *limitBook) peerNow(p peer.ID, said peerLimit) *amounts {
	switch {
	case b.own == nil && said.by == b:
		return said.limit
	case b.own == nil:
		return nil
	case b.peers[p] != nil:
		return b.peers[p]
	}
	return &b.classes.peer
}

// sharedLimits are those of a service or protocol, and of one peer in it, as they
// were said by a book.
type sharedLimits struct {
	by        *limitBook
	own, pair *amounts
}

// askShared asks for the limits of a service or protocol. No lock may be held.
func (b *limitBook) askShared(k Kind, name string) (sharedLimits, error) {
	l, pl := b.limiter.GetServiceLimits, b.limiter.GetServicePeerLimits
	if k == KindProtocol {
		l = func(s string) Limit { return b.limiter.GetProtocolLimits(protocol.ID(s)) }
		pl = func(s string) Limit { return b.limiter.GetProtocolPeerLimits(protocol.ID(s)) }
	}
	where := k.String() + ":" + name
	own, err := readLimit(where, l(name))
	if err != nil {
		return sharedLimits{}, err
	}
	pair, err := readLimit(where+".peer", pl(name))
	return sharedLimits{b, own, pair}, err
}

// sharedNow gives the limits of a service or protocol by the book in force, unless
// its Limiter has to be asked. A stripe's lock is held.
func (b *limitBook) sharedNow(k Kind, name string, said sharedLimits) (now sharedLimits, ok bool) {
	if b.own != nil {
		now, err := b.askShared(k, name) // looks into maps, whose limits have been checked
		return now, err == nil
	}
	return said, said.by == b
}

// sizing is what the limits were computed for.
func (b *limitBook) sizing() Sizing {
	if b.own == nil {
		return Sizing{}
	}
	return b.own.sizing
}

// peerPlace gives the place of a peer's limits in the configuration.
func (b *limitBook) peerPlace(p peer.ID) string {
	if b.peers[p] != nil {
		return fmt.Sprintf("Peer[%q]", p)
	}
	return "PeerDefault"
}

// startAttrs tell a log what the limits were computed for, on what grounds, and
// what of it matters first.
func (b *limitBook) startAttrs() []any {
	s := b.sizing()
	attrs := []any{"limits_by", cmp.Or(s.Rules, "the program")}
	if s.Rules != "" {
		attrs = append(attrs, "limits_for_memory", s.Memory, "limits_for_descriptors", limitText(int64(s.FileDescriptors.Build(0))))
	}
	if m := s.Machine; m != (Machine{}) {
		attrs = append(attrs, "memory_found", m.Memory, "memory_from", m.MemoryFrom,
			"descriptors_found", limitText(int64(m.descriptors())))
		if m.CgroupError != "" {
			attrs = append(attrs, "cgroup_error", m.CgroupError)
		}
	}
	system, transient := &b.fixed[KindSystem], &b.fixed[KindTransient]
	return append(attrs, "system_memory", limitText(system[dimMemory]), "system_descriptors", limitText(system[dimFD]),
		"system_conns_inbound", limitText(system[dimConnsIn]), "transient_conns_inbound", limitText(transient[dimConnsIn]))
}
