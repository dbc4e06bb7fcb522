package rcmgr

// Fair share: while more than half of a scope that all share is in use, no single
// peer and no single subnet gets all that is left. A peer may hold a quarter of a
// limit; identities cost nothing, so all peers of a subnet together may hold as much
// as is still free (the dynamic thresholds of Choudhury and Hahne, made for queues
// that share the memory of a switch): one subnet half of the limit, two a third each,
// and whoever comes from anywhere else finds room.
//
// Both are bounds on what the scope may hold after a request, never below half of its
// limit. So they need nothing that limits do not need (I2): credit below half is
// spent as ever, and above half everything is decided on the exact sum, with a lower
// bound for some. What a subnet holds, of the standard scopes alone, is counted where
// its peers' stripes change it, in numbers that all of them share. It is what it is when
// somebody asks: n who ask at the same time may pass the share by n, though never the
// limit.

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// The subnets that have a share: what one customer is usually given of IPv6, and of
// IPv4 what costs little to rent as a whole.
const (
	fairBits4 = 24
	fairBits6 = 56
)

// fairShards is the number of locks that the subnets share out.
const fairShards = 64

// fairShare has the subnets of one manager. A nil one knows of none.
type fairShare struct {
	scopes kindSet
	seed   maphash.Seed
	shards [fairShards]fairShard
}

type fairShard struct {
	mu struct {
		sync.Mutex
		subnets map[ip.Key]*fairSubnet // as long as connections or peers point there
		crowd   int                    // see withoutCrowd
	}
	_ [40]byte // the next shard's lock is on a cache line of its own
}

// fairSubnet is what all of one subnet hold of the standard system and transient
// scopes, from outside.
type fairSubnet struct {
	key  ip.Key
	bits int
	name scopeName // does not change
	refs int       // connections from there, and peers that came from there; under the shard's lock
	held [KindTransient + 1]struct{ streams, conns, fds atomic.Int64 }
}

func newFairShare(scopes kindSet) *fairShare {
	if scopes == 0 {
		return nil
	}
	return &fairShare{scopes: scopes, seed: maphash.MakeSeed()}
}

func (f *fairShare) shard(k ip.Key) *fairShard {
	return &f.shards[maphash.Comparable(f.seed, k)%fairShards]
}

// on tells whether a scope has shares.
func (f *fairShare) on(k Kind) bool { return f != nil && f.scopes.has(k) }

// enter gives the subnet of a connection that is to be opened, nil if it is of none.
// It is to be left again.
func (f *fairShare) enter(addr netip.Addr, d dim) *fairSubnet {
	if f == nil || d != dimConnsIn || !addr.IsValid() || addr == localhost4 || addr == localhost6 {
		return nil
	}
	fam, bits := ip.FamilyOf(addr), fairBits4
	if fam == ip.V6 {
		bits = fairBits6
	}
	key := ip.KeyOf(addr).Cut(uint(fam.BitLen() - bits))
	s := f.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.mu.subnets[key]
	if n == nil {
		n = &fairSubnet{key: key, bits: bits, name: subnetName(KindSubnet, key, bits)}
		if s.mu.subnets == nil {
			s.mu.subnets = make(map[ip.Key]*fairSubnet)
		}
		s.mu.subnets[key] = n
		s.mu.crowd = max(s.mu.crowd, len(s.mu.subnets))
	}
	n.refs++
	return n
}

var localhost4, localhost6 = netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()

// leave gives up what enter gave, or adopt took; nil is nothing.
func (f *fairShare) leave(n *fairSubnet) {
	if n != nil {
		f.drop(n)
	}
}

func (f *fairShare) drop(n *fairSubnet) {
	s := f.shard(n.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.refs--; n.refs == 0 {
		delete(s.mu.subnets, n.key)
		s.mu.subnets = withoutCrowd(s.mu.subnets, &s.mu.crowd)
	}
}

// join takes a peer into a subnet, with the inbound streams that it holds in the system and
// transient scopes. Somebody holds the subnet.
func (f *fairShare) join(n *fairSubnet, inSystem, inTransient int32) {
	n.held[KindSystem].streams.Add(int64(inSystem))
	n.held[KindTransient].streams.Add(int64(inTransient))
	s := f.shard(n.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	n.refs++
}

// countConn adds a connection to what the subnet holds of a standard scope, or takes it away.
func (n *fairSubnet) countConn(k Kind, fds uint8, by int64) {
	n.held[k].conns.Add(by)
	n.held[k].fds.Add(by * int64(fds))
}

// FairShareState is what the subnets hold that WithFairShare knows of.
type FairShareState struct {
	// Scopes that have shares; none if it is off.
	Scopes []Kind
	// Subnets that have inbound connections, or peers who came with one.
	Subnets int
	// Largest are those that hold the most, by the connections and streams they have
	// in the system scope.
	Largest []SubnetShare
}

// SubnetShare is what all of one subnet hold of the standard scopes: of inbound
// connections, those that take a descriptor, and inbound streams.
type SubnetShare struct {
	Prefix    netip.Prefix
	System    SubnetUse
	Transient SubnetUse
}

// SubnetUse is what a subnet holds of one scope.
type SubnetUse struct{ ConnsInbound, FD, StreamsInbound int64 }

// state gives what the n subnets with the most hold.
func (f *fairShare) state(n int) FairShareState {
	if f == nil {
		return FairShareState{}
	}
	s := FairShareState{Scopes: f.scopes.list()}
	for i := range f.shards {
		f.shards[i].addTo(&s, n)
	}
	return s
}

func (s *SubnetUse) total() int64 { return s.ConnsInbound + s.StreamsInbound }

// addTo adds the subnets of a shard, and keeps the n largest.
func (s *fairShard) addTo(to *FairShareState, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.Subnets += len(s.mu.subnets)
	for _, sub := range s.mu.subnets {
		to.Largest = offer(to.Largest, SubnetShare{sub.prefix(), sub.share(KindSystem), sub.share(KindTransient)}, n,
			func(a, b SubnetShare) int {
				return cmp.Or(cmp.Compare(b.System.total(), a.System.total()), a.Prefix.Compare(b.Prefix))
			})
	}
}

func (n *fairSubnet) prefix() netip.Prefix { return n.key.Prefix(n.bits) }

func (n *fairSubnet) share(k Kind) SubnetUse {
	h := &n.held[k]
	return SubnetUse{h.conns.Load(), h.fds.Load(), h.streams.Load()}
}
