package main

// The traffic. A host fetches a number of bytes from another one, and both reserve memory
// for them meanwhile.

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
)

type fetchID = protocol.ID

const (
	fetchProtocol fetchID = "/rcmgr-soak/fetch/1.0.0"
	fetchService          = "rcmgr-soak.fetch"
	fetchMost             = 64 << 10 // bytes in one answer
	fetchPatience         = 5 * time.Second
	breath                = 20 * time.Millisecond // between two errands, on average
	errandsAtOnce         = 3                     // of one host
)

// serveFetch answers with as many bytes as the first four of a stream say.
func serveFetch(s network.Stream) {
	defer s.Reset()
	s.SetDeadline(time.Now().Add(fetchPatience))
	if s.Scope().SetService(fetchService) != nil {
		return
	}
	var size [4]byte
	if _, err := io.ReadFull(s, size[:]); err != nil {
		return
	}
	n := int(min(binary.BigEndian.Uint32(size[:]), fetchMost))
	if s.Scope().ReserveMemory(n, network.ReservationPriorityMedium) != nil {
		return
	}
	defer s.Scope().ReleaseMemory(n)
	if _, err := s.Write(make([]byte, n)); err == nil {
		s.CloseWrite()
		io.Copy(io.Discard, s)
	}
}

// fetch fetches n bytes over an existing connection.
func (n *node) fetch(ctx context.Context, from peer.ID, size int) error {
	s, err := n.host.NewStream(network.WithNoDial(ctx, "soak"), from, fetchProtocol)
	if err != nil {
		return err
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(fetchPatience))
	span, err := s.Scope().BeginSpan()
	if err != nil {
		return err
	}
	defer span.Done()
	if err := span.ReserveMemory(size, network.ReservationPriorityHigh); err != nil {
		return err
	}
	if _, err := s.Write(binary.BigEndian.AppendUint32(nil, uint32(size))); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, make([]byte, size)); err != nil {
		return err
	}
	return s.Close()
}

// errands runs a host's traffic until it is stopped.
func (w *world) errands(n *node, r *rand.Rand) {
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(time.Duration(r.Int64N(int64(2 * breath)))):
		}
		w.quiet.RLock()
		w.errand(n, r)
		w.quiet.RUnlock()
	}
}

// errand connects to some host by some transport, fetches from it, and sometimes hangs
// up.
func (w *world) errand(n *node, r *rand.Rand) {
	to := w.randomHost(r)
	if to == nil || to == n || to.role == relays && r.IntN(4) != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, fetchPatience)
	defer cancel()
	id := to.host.ID()
	if n.host.Network().Connectedness(id) != network.Connected {
		road := to.addrs[r.IntN(len(to.addrs))]
		n.host.Peerstore().ClearAddrs(id)
		err := n.host.Connect(ctx, peer.AddrInfo{ID: id, Addrs: []multiaddr.Multiaddr{road}})
		if w.connects.count(n.ctx, err); err != nil {
			return
		}
	}
	for range 1 + r.IntN(6) {
		w.fetches.count(n.ctx, n.fetch(ctx, id, 1+r.IntN(fetchMost)))
	}
	if r.IntN(3) == 0 && !n.host.ConnManager().IsProtected(id, relayTag) {
		n.host.Network().ClosePeer(id)
	}
}

// count counts an outcome, unless the end of the host cut it short.
func (o *outcomes) count(ctx context.Context, err error) {
	switch {
	case err == nil:
		o.done.Add(1)
	case errors.Is(err, network.ErrResourceLimitExceeded):
		o.refused.Add(1)
	case ctx.Err() == nil:
		o.failed.Add(1)
	}
}
