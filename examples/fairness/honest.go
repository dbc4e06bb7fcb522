package main

// Honest peers. Each comes once, connects, shakes hands, opens a stream, negotiates a
// protocol, is served, and goes. A peer that is refused tries again, after longer and
// longer waits.

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr/internal/fakehost"
)

const (
	handshakeTime   = 300 * time.Millisecond // on average, like the next two
	negotiationTime = 200 * time.Millisecond
	usedFor         = 15 * time.Second

	mostTries = 5 // for a connection, and for a stream
	firstWait = time.Second
)

// group is the honest peers of one kind of place.
type group struct {
	name   string
	weight float64 // its fraction of all peers; the fractions add up to 1
	home   func(*rand.Rand) multiaddr.Multiaddr
}

// share counts the peers that wanted something, those that got it at their first try, and
// those that got it in the end.
type share struct{ wanted, atFirst, inTheEnd int }

// got counts a peer that is served after some refusals.
func (s *share) got(refusals int) {
	s.inTheEnd++
	if refusals == 0 {
		s.atFirst++
	}
}

func (s *share) add(o share) {
	s.wanted += o.wanted
	s.atFirst += o.atFirst
	s.inTheEnd += o.inTheEnd
}

// fortune counts what honest peers got. A peer is served when it has its connection and
// its stream.
type fortune struct {
	conns, streams, served share
	lost                   int // of those that were served, how many the host let go before they went
}

func connsOf(f fortune) share   { return f.conns }
func streamsOf(f fortune) share { return f.streams }

// visit is the visit of one honest peer. All its random choices come from a source of its
// own, so that the same peer comes to every manager.
type visit struct {
	*clock
	host *fakehost.Host
	rand *rand.Rand
	id   peer.ID
	from multiaddr.Multiaddr
	fate *fortune // of its group

	conn                         *fakehost.Conn // nil if it has none
	served                       bool
	connected                    bool // it had a connection once
	connRefusals, streamRefusals int
}

// newVisit returns the visit of the n-th peer.
func newVisit(c *clock, host *fakehost.Host, seed uint64, n int, groups []group, fates []fortune) *visit {
	v := &visit{clock: c, host: host, rand: rand.New(rand.NewPCG(seed, uint64(n))), id: peer.ID(fmt.Sprintf("honest-%d", n))}
	at, left := 0, v.rand.Float64()
	for left >= groups[at].weight && at < len(groups)-1 {
		left -= groups[at].weight
		at++
	}
	v.from, v.fate = groups[at].home(v.rand), &fates[at]
	return v
}

func (v *visit) begin() {
	v.fate.served.wanted++
	v.fate.conns.wanted++
	v.connect()
}

func (v *visit) connect() {
	shake, err := v.host.Shake(v.from)
	if err != nil {
		v.again(&v.connRefusals, v.connect)
		return
	}
	v.after(v.about(handshakeTime), func() {
		conn, err := shake.Finish(v.id)
		if err != nil {
			v.again(&v.connRefusals, v.connect)
			return
		}
		conn.Closed = v.lose
		v.conn = conn
		if !v.connected {
			v.connected = true
			v.fate.conns.got(v.connRefusals)
			v.fate.streams.wanted++
		}
		v.open()
	})
}

func (v *visit) open() {
	conn := v.conn
	if conn == nil {
		return // it was let go meanwhile, and the peer connects again
	}
	stream, err := conn.Open(network.DirInbound)
	if err != nil {
		v.again(&v.streamRefusals, v.open)
		return
	}
	ended := false
	stream.Closed = func(byHost bool) {
		ended = true
		if byHost && !conn.IsClosed() {
			if v.served {
				v.fate.lost++
				conn.Close()
			} else {
				v.again(&v.streamRefusals, v.open)
			}
		}
	}
	v.after(v.about(negotiationTime), func() {
		if ended {
			return
		}
		if err := stream.SetProtocol("/honest/1.0.0"); err != nil {
			stream.Reset()
			v.again(&v.streamRefusals, v.open)
			return
		}
		v.served = true
		v.fate.streams.got(v.streamRefusals)
		v.fate.served.got(v.connRefusals + v.streamRefusals)
		v.after(time.Duration(v.rand.ExpFloat64()*float64(usedFor)), func() {
			stream.Reset()
			conn.Close()
		})
	})
}

// lose is called when the connection was closed.
func (v *visit) lose(byHost bool) {
	v.conn = nil
	switch {
	case !byHost:
	case v.served:
		v.fate.lost++
	default:
		v.again(&v.connRefusals, v.connect)
	}
}

// again schedules another try, after twice the last wait, or gives up.
func (v *visit) again(refusals *int, try func()) {
	*refusals++
	if *refusals < mostTries {
		v.after(v.about(firstWait<<(*refusals-1)), try)
	} else if v.conn != nil {
		v.conn.Close()
	}
}

// about returns a random duration between half of d and one and a half of it.
func (v *visit) about(d time.Duration) time.Duration {
	return d/2 + time.Duration(v.rand.Int64N(int64(d)))
}
