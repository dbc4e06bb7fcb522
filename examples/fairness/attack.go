package main

// Attackers: each tries to fill one limit with what go-libp2p lets a stranger hold
// until a time-out. What times out, they open again at once; besides, one of them,
// drawn by lot, tries at every tick.

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// go-libp2p's time-outs.
const (
	handshakeTimeout   = 15 * time.Second
	negotiationTimeout = 10 * time.Second
)

// attack is one way to fill a limit.
type attack struct {
	title  string
	filled string // what the limit is on, of which there are limit
	limit  int
	denied func(fortune) share // what honest peers lack then
	strike func(*siege, *attacker)
}

var (
	handshakes  = &attack{"Handshakes that never end", "transient connections", transientConns, connsOf, (*siege).beginHandshake}
	streams     = &attack{"Streams that say nothing", "transient streams", transientStreams, streamsOf, (*siege).openStream}
	connections = &attack{"Connections that stay", "connections of the system", systemConns, connsOf, (*siege).holdConnection}

	attacks = []*attack{handshakes, streams, connections}
)

// attacker is one identity. It may have any number of connections and streams.
type attacker struct {
	id      peer.ID
	from    multiaddr.Multiaddr
	conn    network.ConnManagementScope // that its streams are on, while there are any
	streams int
}

// siege is an attack that goes on.
type siege struct {
	*clock
	rm        network.ResourceManager
	rand      *rand.Rand
	attack    *attack
	attackers []*attacker
	end       time.Duration // when it is given up
	held      int           // of what the limit limits
}

// attackers gives some identities in each of the subnets, several of them behind
// every address where there are more identities than addresses.
func (s *scene) attackers() (all []*attacker) {
	for subnet := range s.subnets {
		for i := range s.identities {
			all = append(all, &attacker{id: peer.ID(fmt.Sprintf("attacker-%d-%d", subnet, i)), from: s.place(subnet, i)})
		}
	}
	return all
}

// tick has one attacker try, and comes again.
func (s *siege) tick(every time.Duration) {
	if s.now >= s.end {
		return
	}
	s.attack.strike(s, s.attackers[s.rand.IntN(len(s.attackers))])
	s.after(every, func() { s.tick(every) })
}

// hold keeps something for a time and has done give it back. Then the attacker
// strikes again.
func (s *siege) hold(a *attacker, d time.Duration, done func()) {
	s.held++
	s.after(min(d, s.end-s.now), func() {
		s.held--
		done()
		if s.now < s.end {
			s.attack.strike(s, a)
		}
	})
}

func (s *siege) beginHandshake(a *attacker) {
	if conn, err := s.rm.OpenConnection(network.DirInbound, true, a.from); err == nil {
		s.hold(a, handshakeTimeout, conn.Done)
	}
}

// openStream opens a stream, on a connection that lives as long as the attacker has
// streams: who is refused leaves nothing behind.
func (s *siege) openStream(a *attacker) {
	if a.streams == 0 {
		if a.conn = s.connect(a); a.conn == nil {
			return
		}
	}
	stream, err := s.rm.OpenStream(a.id, network.DirInbound)
	if err != nil {
		s.leave(a)
		return
	}
	a.streams++
	s.hold(a, negotiationTimeout, func() {
		stream.Done()
		a.streams--
		s.leave(a)
	})
}

// leave closes a connection without streams.
func (s *siege) leave(a *attacker) {
	if a.streams == 0 {
		a.conn.Done()
	}
}

func (s *siege) holdConnection(a *attacker) {
	if conn := s.connect(a); conn != nil {
		s.hold(a, s.end-s.now, conn.Done)
	}
}

// connect gives a connection whose handshake took no time, or nil.
func (s *siege) connect(a *attacker) network.ConnManagementScope {
	conn, err := s.rm.OpenConnection(network.DirInbound, true, a.from)
	if err != nil {
		return nil
	}
	if err := conn.SetPeer(a.id); err != nil {
		conn.Done()
		return nil
	}
	return conn
}
