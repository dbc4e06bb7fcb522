package main

// The attackers. Each goes through all attacks by turns, one step behind the
// one before it, so that every attack is always on. What a turn has taken it
// gives back at its end, so that the next one finds the victim free.

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

// breath is the pause after each step: it keeps a machine of two cores
// responsive, so that what the friend waits for is the victim.
const breath = 10 * time.Millisecond

type attacker struct {
	number int
	key    crypto.PrivKey
	ip     net.IP
	by     road
	victim *victim
}

// attacks are what an attacker can do. Each lasts until its context ends.
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
		// One more than a peer may have.
		held.add(&identity{host: h, conns: a.dialTimes(ctx, h, 5)})
	}
}

// dialTimes dials past the host's swarm, which would keep to one connection.
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
			// Without lingering, so that the port is free again at once.
			conn.(*net.TCPConn).SetLinger(0)
			held.add(conn)
		}
	}
}

// silentStreams opens streams and says nothing but the first byte, without
// which QUIC would not tell the other side that there is a stream.
func (a *attacker) silentStreams(ctx context.Context) {
	a.holdStreams(ctx, 64, func(ctx context.Context, h host.Host) (network.Stream, error) {
		s, err := h.Network().NewStream(ctx, a.victim.host.ID())
		if err == nil {
			s.Write([]byte{19})
		}
		return s, err
	})
}

// unreadAnswers asks for as much as there is, or for little when that is
// refused by now, and reads nothing.
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

// holdStreams opens streams over one connection, opened anew when it is lost,
// and holds the last few of them.
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

// manyRequests sends more requests at once than one peer may have, and reads
// the answers.
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

// try connects if need be, then does one step, both within the time that one
// request may take. An attacker does not care what fails.
func (a *attacker) try(ctx context.Context, h host.Host, step func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if connect(ctx, h, a.victim.info(a.by)) == nil {
		step(asConnected(ctx))
	}
}

// pause waits a moment and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// hoard keeps the latest few of what it is given and closes what is older.
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

// resetter closes a stream at once, in both directions.
type resetter struct{ network.Stream }

func (r resetter) Close() error { return r.Reset() }

// identity is a throw-away host and the connections that were made by it.
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
