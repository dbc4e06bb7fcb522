package rcmgr

// The limits that scopes start with, as the engine reads them from a Limiter.

import (
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// limitBook reads a Limiter. It must not be asked under any lock: a Limiter is
// other people's code.
type limitBook struct {
	limiter Limiter
	// fixed has the limits of the four scopes that are always there, by kind.
	fixed [KindAllowlistedTransient + 1]amounts
	// known holds what a limiter of our own says to every connection, stream
	// and peer, so that it need not be read for each of them.
	known struct {
		conn, stream, peer *amounts
		peers              map[peer.ID]*amounts
	}
}

func newLimitBook(l Limiter) (*limitBook, error) {
	b := &limitBook{limiter: l}
	for k, limit := range [...]Limit{
		KindSystem:               l.GetSystemLimits(),
		KindTransient:            l.GetTransientLimits(),
		KindAllowlistedSystem:    l.GetAllowlistedSystemLimits(),
		KindAllowlistedTransient: l.GetAllowlistedTransientLimits(),
	} {
		a, err := readLimit(Kind(k).String(), limit)
		if err != nil {
			return nil, err
		}
		b.fixed[k] = *a
	}
	conn, err := b.conn()
	if err != nil {
		return nil, err
	}
	own, ok := l.(*fixedLimiter)
	if !ok {
		return b, nil
	}
	stream, err := b.stream("")
	if err != nil {
		return nil, err
	}
	known := &b.known
	known.peers = make(map[peer.ID]*amounts, len(own.limits.Peer))
	for p := range own.limits.Peer {
		if known.peers[p], err = b.peer(p); err != nil {
			return nil, err
		}
	}
	if known.peer, err = b.peer(""); err != nil {
		return nil, err
	}
	known.conn, known.stream = conn, stream
	return b, nil
}

func readLimit(where string, l Limit) (*amounts, error) {
	if err := checkLimit(where, l); err != nil {
		return nil, err
	}
	a := limitsOf(l)
	return &a, nil
}

func (b *limitBook) conn() (*amounts, error) {
	if a := b.known.conn; a != nil {
		return a, nil
	}
	return readLimit(KindConn.String(), b.limiter.GetConnLimits())
}

func (b *limitBook) stream(p peer.ID) (*amounts, error) {
	if a := b.known.stream; a != nil {
		return a, nil
	}
	return readLimit(KindStream.String(), b.limiter.GetStreamLimits(p))
}

func (b *limitBook) peer(p peer.ID) (*amounts, error) {
	if a := b.known.peers[p]; a != nil {
		return a, nil
	}
	if a := b.known.peer; a != nil {
		return a, nil
	}
	l := b.limiter.GetPeerLimits(p)
	if checkLimit("", l) != nil {
		return readLimit("peer:"+p.String(), l) // the name only if it is to be told
	}
	return readLimit("", l)
}

// shared gives the limits of a service or protocol, and of one peer in it.
func (b *limitBook) shared(k Kind, name string) (own, pair amounts, err error) {
	l, pl := b.limiter.GetServiceLimits, b.limiter.GetServicePeerLimits
	if k == KindProtocol {
		l = func(s string) Limit { return b.limiter.GetProtocolLimits(protocol.ID(s)) }
		pl = func(s string) Limit { return b.limiter.GetProtocolPeerLimits(protocol.ID(s)) }
	}
	where := k.String() + ":" + name
	a, err := readLimit(where, l(name))
	if err != nil {
		return own, pair, err
	}
	pa, err := readLimit(where+".peer", pl(name))
	if err != nil {
		return own, pair, err
	}
	return *a, *pa, nil
}
