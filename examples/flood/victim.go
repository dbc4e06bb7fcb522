package main

// The victim: a host on the manager in question that answers requests.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

type victim struct {
	host     host.Host
	manager  manager
	observer *observer
	addrs    [numRoads]multiaddr.Multiaddr
	relayed  *peer.AddrInfo // the victim's address on the friend's relay, if there is one
}

// newVictim returns the victim. relay is the friend's relay, or "" if the friend needs no relay.
func newVictim(by contender, limits rcmgr.ConcreteLimitConfig, where places, friend, relay peer.ID, opts ...rcmgr.Option) (*victim, error) {
	m, err := by.make(limits, guests(where.friend, friend, relay), opts...)
	if err != nil {
		return nil, err
	}
	o := newObserver(m, where, friend, relay)
	relaying := libp2p.DisableRelay()
	if relay != "" {
		relaying = libp2p.EnableRelay()
	}
	// libp2p.New closes the manager if it fails; otherwise closing the host does.
	h, err := libp2p.New(
		libp2p.ListenAddrStrings(
			fmt.Sprintf("/ip4/%v/tcp/0", where.victim),
			fmt.Sprintf("/ip4/%v/udp/0/quic-v1", where.victim)),
		libp2p.ResourceManager(o),
		relaying,
		libp2p.DisableMetrics(),
	)
	if err != nil {
		return nil, err
	}
	v := &victim{host: h, manager: m, observer: o}
	for _, a := range h.Addrs() {
		by := byTCP
		if _, err := a.ValueForProtocol(multiaddr.P_QUIC_V1); err == nil {
			by = byQUIC
		}
		v.addrs[by] = a
	}
	fetchService.serve(h)
	bulkService.serve(h)
	return v, nil
}

// close closes the host and, with it, the manager.
func (v *victim) close() { v.host.Close() }

// info returns the victim's address for one transport.
func (v *victim) info(by road) peer.AddrInfo {
	return peer.AddrInfo{ID: v.host.ID(), Addrs: []multiaddr.Multiaddr{v.addrs[by]}}
}

// A service sends as many bytes as the request, a big-endian uint32, asks for, and
// reserves memory for them until they are sent.
type service struct {
	name     string
	protocol protocol.ID
	most     uint32 // bytes in one answer
}

var (
	fetchService = service{name: "flood.fetch", protocol: "/flood/fetch/1.0.0", most: 256 * kib}
	bulkService  = service{name: "flood.bulk", protocol: "/flood/bulk/1.0.0", most: 1 * mib}
)

// patience is how long one request may take, on either side.
const patience = 5 * time.Second

func (sv service) serve(h host.Host) {
	h.SetStreamHandler(sv.protocol, func(s network.Stream) {
		if err := sv.answer(s); err != nil {
			s.ResetWithError(network.StreamResourceLimitExceeded)
			return
		}
		s.Close()
	})
}

func (sv service) answer(s network.Stream) error {
	if err := s.Scope().SetService(sv.name); err != nil {
		return err
	}
	if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var request [4]byte
	if _, err := io.ReadFull(s, request[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(request[:])
	if size > sv.most {
		return fmt.Errorf("%s: %d bytes asked, at most %d are sent", sv.name, size, sv.most)
	}
	if err := s.Scope().ReserveMemory(int(size), network.ReservationPriorityAlways); err != nil {
		return err
	}
	defer s.Scope().ReleaseMemory(int(size))
	_, err := s.Write(make([]byte, size))
	return err
}

// ask sends the request for size bytes.
func ask(s network.Stream, size uint32) error {
	_, err := s.Write(binary.BigEndian.AppendUint32(nil, size))
	return err
}

// receive reads the answer and checks its size.
func receive(s network.Stream, size uint32) error {
	n, err := io.Copy(io.Discard, s)
	if err == nil && n != int64(size) {
		return errors.New("answer cut short")
	}
	return err
}
