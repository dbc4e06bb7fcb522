package main

// Attackers. Each tries to fill one limit with connections or streams that go-libp2p lets
// a stranger hold until a timeout. When one times out, its attacker opens another at
// once. In addition, one attacker, drawn at random, tries at every tick.

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr/internal/fakehost"
)

// The timeouts of go-libp2p.
const (
	handshakeTimeout   = 15 * time.Second
	negotiationTimeout = 10 * time.Second
)

// attack is one way to fill a limit.
type attack struct {
	title  string
	short  string // the title where there is little room
	filled string // the resource, of which there may be limit
	limit  int
	denied func(fortune) share // what honest peers then lack
	strike func(*siege, *attacker)
}

var (
	handshakes  = &attack{"Handshakes that never end", "shaking", "transient connections", transientConns, connsOf, (*siege).beginHandshake}
	streams     = &attack{"Streams that say nothing", "streams", "transient streams", transientStreams, streamsOf, (*siege).openStream}
	connections = &attack{"Connections that stay", "conns", "connections of the system", systemConns, connsOf, (*siege).holdConnection}
	served      = &attack{"Connections that stay and use a protocol", "in use", "connections of the system", systemConns, connsOf, (*siege).holdServed}

	attacks = []*attack{handshakes, streams, connections}
)

// attacker is one identity. It may have any number of connections and streams.
type attacker struct {
	id      peer.ID
	from    multiaddr.Multiaddr
	conn    *fakehost.Conn // the connection of its streams, if it has any
	streams int
}

// siege is an attack in progress.
type siege struct {
	*clock
	host      *fakehost.Host
	rand      *rand.Rand
	attack    *attack
	attackers []*attacker
	end       time.Duration // when the attack ends
	held      int           // of the resource that the limit is on
}

// attackers returns the identities in all of the subnets. If there are more identities
// than addresses, several share an address.
func (s *scene) attackers() (all []*attacker) {
	for subnet := range s.subnets {
		for i := range s.identities {
			all = append(all, &attacker{id: peer.ID(fmt.Sprintf("attacker-%d-%d", subnet, i)), from: s.place(subnet, i)})
		}
	}
	return all
}

// tick lets one attacker try, and schedules the next tick.
func (s *siege) tick(every time.Duration) {
	if s.now >= s.end {
		return
	}
	s.attack.strike(s, s.attackers[s.rand.IntN(len(s.attackers))])
	s.after(every, func() { s.tick(every) })
}

// hold keeps something for a time and then calls done to release it. After that the
// attacker strikes again. The function that hold returns has to be called if the host lets go of
// it before; then the attacker strikes again when chance has it try.
func (s *siege) hold(a *attacker, d time.Duration, done func()) (lost func()) {
	s.held++
	over := false
	s.after(min(d, s.end-s.now), func() {
		if over {
			return
		}
		over = true
		s.held--
		done()
		if s.now < s.end {
			s.attack.strike(s, a)
		}
	})
	return func() {
		if !over {
			over = true
			s.held--
		}
	}
}

func (s *siege) beginHandshake(a *attacker) {
	if shake, err := s.host.Shake(a.from); err == nil {
		shake.Ended = s.hold(a, handshakeTimeout, shake.Close)
	}
}

// openStream opens a stream, on a connection that lasts as long as the attacker has
// streams. An attacker that is refused leaves nothing behind.
func (s *siege) openStream(a *attacker) {
	if a.streams == 0 {
		if a.conn = s.connect(a); a.conn == nil {
			return
		}
	}
	stream, err := a.conn.Open(network.DirInbound)
	if err != nil {
		s.leave(a)
		return
	}
	a.streams++
	lost := s.hold(a, negotiationTimeout, func() { stream.Reset() })
	stream.Closed = func(bool) {
		lost()
		a.streams--
		s.leave(a)
	}
}

// leave closes a connection without streams.
func (s *siege) leave(a *attacker) {
	if a.streams == 0 {
		a.conn.Close()
	}
}

func (s *siege) holdConnection(a *attacker) {
	if conn := s.connect(a); conn != nil {
		lost := s.hold(a, s.end-s.now, func() { conn.Close() })
		conn.Closed = func(bool) { lost() }
	}
}

// holdServed is holdConnection with a stream that has a protocol, as honest peers have.
func (s *siege) holdServed(a *attacker) {
	conn := s.connect(a)
	if conn == nil {
		return
	}
	if stream, err := conn.Open(network.DirInbound); err != nil || stream.SetProtocol("/honest/1.0.0") != nil {
		conn.Close()
		return
	}
	lost := s.hold(a, s.end-s.now, func() { conn.Close() })
	conn.Closed = func(bool) { lost() }
}

// connect returns a connection whose handshake took no time, or nil.
func (s *siege) connect(a *attacker) *fakehost.Conn {
	conn, err := s.host.Connect(a.id, network.DirInbound, a.from)
	if err != nil {
		return nil
	}
	return conn
}
