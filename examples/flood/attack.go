package main

// The attackers. Each makes all attacks in turn, one step behind the attacker before it,
// so that every attack is always in progress. At the end of its turn it releases what it
// has taken, so that the next attack finds the victim free.

import (
	"context"
	"crypto/rand"
	"io"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	manet "github.com/multiformats/go-multiaddr/net"
)

// breath is the pause after each step. It keeps a machine with two processors responsive,
// so that the friend waits for the victim and not for the machine.
const breath = 10 * time.Millisecond

type attacker struct {
	number int
	key    crypto.PrivKey
	ip     net.IP
	by     road
	victim *victim
}

// attacks are the attacks that each attacker makes. Each lasts until its context ends.
var attacks = []func(*attacker, context.Context){
	(*attacker).manyIdentities,
	(*attacker).halfOpen,
	(*attacker).silentStreams,
	(*attacker).manyRequests,
	(*attacker).unreadAnswers,
}

func newAttackers(ips []net.IP, v *victim) ([]*attacker, error) {
	var all []*attacker
	for i, ip := range ips {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		all = append(all, &attacker{number: i, key: key, ip: ip, victim: v})
	}
	return all, nil
}

func newKey() (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	return key, err
}

// run takes turns until ctx ends, by TCP and QUIC alternately.
func (a *attacker) run(ctx context.Context, start time.Time, turn time.Duration) {
	for i := 0; ctx.Err() == nil; i++ {
		a.by = road((a.number + i) % int(numRoads))
		turnCtx, cancel := context.WithDeadline(ctx, start.Add(time.Duration(i+1)*turn))
		attacks[(a.number+i)%len(attacks)](a, turnCtx)
		<-turnCtx.Done()
		cancel()
	}
}

// manyIdentities opens a few connections for each of many fresh identities.
func (a *attacker) manyIdentities(ctx context.Context) {
	held := hoard{most: 12}
	defer held.Close()
	for pause(ctx, breath) {
		key, err := newKey()
		if err != nil {
			return
		}
		h, err := newHost(key, a.ip, a.by)
		if err != nil {
			return
		}
		// This is one connection more than a peer may have.
		held.add(&identity{host: h, conns: a.dialTimes(ctx, h, 5)})
	}
}

// dialTimes dials n times without the host's swarm, which would keep to one connection.
func (a *attacker) dialTimes(ctx context.Context, h host.Host, n int) []io.Closer {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	addr := a.victim.addrs[a.by]
	t := h.Network().(*swarm.Swarm).TransportForDialing(addr)
	var conns []io.Closer
	for range n {
		conn, err := t.Dial(ctx, addr, a.victim.host.ID())
		if err != nil {
			break
		}
		conns = append(conns, conn)
	}
	return conns
}

// halfOpen opens TCP connections and never shakes hands.
func (a *attacker) halfOpen(ctx context.Context) {
	held := hoard{most: 40}
	defer held.Close()
	_, addr, err := manet.DialArgs(a.victim.addrs[byTCP])
	if err != nil {
		return
	}
	for pause(ctx, breath) {
		if conn, err := dialerFrom(a.ip).DialContext(ctx, "tcp4", addr); err == nil {
			// Do not linger, so that the port is free again at once.
			conn.(*net.TCPConn).SetLinger(0)
			held.add(conn)
		}
	}
}

// silentStreams opens streams and sends nothing but the first byte, without which QUIC
// would not tell the other side that there is a stream.
func (a *attacker) silentStreams(ctx context.Context) {
	a.holdStreams(ctx, 64, func(ctx context.Context, h host.Host) (network.Stream, error) {
		s, err := h.Network().NewStream(ctx, a.victim.host.ID())
		if err == nil {
			s.Write([]byte{19})
		}
		return s, err
	})
}

// unreadAnswers asks for the largest answer and for a small one in turn, because the
// large one may be refused by then, and reads nothing.
func (a *attacker) unreadAnswers(ctx context.Context) {
	sizes := [...]uint32{bulkService.most, bulkService.most / 16}
	n := 0
	a.holdStreams(ctx, 16, func(ctx context.Context, h host.Host) (network.Stream, error) {
		s, err := h.NewStream(ctx, a.victim.host.ID(), bulkService.protocol)
		if err == nil {
			ask(s, sizes[n%len(sizes)])
			n++
		}
		return s, err
	})
}

// holdStreams opens streams over one connection, which it opens again when it is lost,
// and holds the latest of them.
func (a *attacker) holdStreams(ctx context.Context, most int, open func(context.Context, host.Host) (network.Stream, error)) {
	a.withHost(func(h host.Host) {
		held := hoard{most: most}
		defer held.Close()
		for pause(ctx, breath) {
			a.try(ctx, h, func(ctx context.Context) {
				if s, err := open(ctx, h); err == nil {
					held.add(resetter{s})
				}
			})
		}
	})
}

// manyRequests sends more requests at once than one peer may have, and reads the answers.
func (a *attacker) manyRequests(ctx context.Context) {
	a.withHost(func(h host.Host) {
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				for pause(ctx, 2*breath) {
					a.try(ctx, h, func(ctx context.Context) { a.request(ctx, h) })
				}
			})
		}
		wg.Wait()
	})
}

func (a *attacker) request(ctx context.Context, h host.Host) {
	s, err := h.NewStream(ctx, a.victim.host.ID(), fetchService.protocol)
	if err != nil {
		return
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if ask(s, fetchService.most) == nil {
		receive(s, fetchService.most)
	}
}

// withHost runs f with the attacker's host.
func (a *attacker) withHost(f func(host.Host)) {
	h, err := newHost(a.key, a.ip, a.by)
	if err != nil {
		return
	}
	defer h.Close()
	f(h)
}

// try connects if necessary and then makes one step, both within the time that one
// request may take. It ignores errors.
func (a *attacker) try(ctx context.Context, h host.Host, step func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if connect(ctx, h, a.victim.info(a.by)) == nil {
		step(asConnected(ctx))
	}
}

// pause waits for d, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// hoard keeps the latest of the things added to it, and closes older ones.
type hoard struct {
	most int
	held []io.Closer
}

func (h *hoard) add(c io.Closer) {
	h.held = append(h.held, c)
	if len(h.held) > h.most {
		h.held[0].Close()
		h.held = h.held[1:]
	}
}

func (h *hoard) Close() {
	for _, c := range h.held {
		c.Close()
	}
}

// resetter is a stream that Close resets, in both directions at once.
type resetter struct{ network.Stream }

func (r resetter) Close() error { return r.Reset() }

// identity is a throw-away host and its connections.
type identity struct {
	host  host.Host
	conns []io.Closer
}

func (i *identity) Close() error {
	for _, c := range i.conns {
		c.Close()
	}
	return i.host.Close()
}
