package rcmgr

// Fair share: while more than half of a scope that all peers share is in use, no single
// peer and no single subnet gets all that is left. A peer may hold a quarter of a limit.
// Because identities cost nothing, all peers of a subnet together may hold as much as is
// still free (the dynamic thresholds of Choudhury and Hahne, made for queues that share
// the memory of a switch): one subnet gets half of the limit, two get a third each, and
// peers from anywhere else find room.
//
// Both are bounds on what the scope may hold after a request, and never below half of its
// limit. So they need nothing beyond what limits need (I2): credit below half is spent as
// usual, and above half every request is decided on the exact sum, with a lower bound for
// some. The use of a subnet, of the standard scopes alone, is counted where its peers'
// stripes change it, in counters that all stripes share. A request sees the counters as
// they are at that moment: n requests at the same time may exceed the share by n, but
// never the limit.

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// The sizes of subnets that have a share: in IPv6 what one customer is usually given, and
// in IPv4 what is cheap to rent as a whole.
const (
	fairBits4 = 24
	fairBits6 = 56
)

// fairShards is the number of locks that the subnets are spread over.
const fairShards = 64

// fairShare has the subnets of one manager. A nil *fairShare has none.
type fairShare struct {
	scopes kindSet
	seed   maphash.Seed
	shards [fairShards]fairShard
}

type fairShard struct {
	mu struct {
		sync.Mutex
		subnets map[ip.Key]*fairSubnet // while connections or peers refer to them
		crowd   int                    // see withoutCrowd
	}
	_ [40]byte // the next shard's lock is on a cache line of its own
}

// fairSubnet is what all peers of one subnet hold of the standard system and transient
// scopes by inbound connections and streams.
type fairSubnet struct {
	key  ip.Key
	bits int
	name scopeName // does not change
	refs int       // its connections, and peers that came from it; under the shard's lock
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

// on reports whether a scope has shares.
func (f *fairShare) on(k Kind) bool { return f != nil && f.scopes.has(k) }

// enter returns the subnet of a connection that is to be opened, or nil if it has none.
// The caller must leave it again.
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

// leave gives up a reference that enter or join took. It does nothing for nil.
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

// join adds a peer to a subnet, with the inbound streams that it holds in the system and
// transient scopes. The caller has a reference to the subnet.
func (f *fairShare) join(n *fairSubnet, inSystem, inTransient int32) {
	n.held[KindSystem].streams.Add(int64(inSystem))
	n.held[KindTransient].streams.Add(int64(inTransient))
	s := f.shard(n.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	n.refs++
}

// countConn adds a connection to what the subnet holds of a standard scope (by is 1), or
// removes it (by is -1).
func (n *fairSubnet) countConn(k Kind, fds uint8, by int64) {
	n.held[k].conns.Add(by)
	n.held[k].fds.Add(by * int64(fds))
}

// FairShareState is what the subnets that WithFairShare counts hold.
type FairShareState struct {
	// Scopes are the scopes that have shares. It is empty if the option is off.
	Scopes []Kind
	// Subnets is how many subnets have inbound connections, or peers that came with one.
	Subnets int
	// Largest are the subnets that hold the most, by their connections and streams in the
	// system scope.
	Largest []SubnetShare
}

// SubnetShare is what all peers of one subnet hold of the standard scopes: inbound
// connections, those of them that take a descriptor, and inbound streams.
type SubnetShare struct {
	Prefix    netip.Prefix
	System    SubnetUse
	Transient SubnetUse
}

// SubnetUse is what a subnet holds of one scope.
type SubnetUse struct{ ConnsInbound, FD, StreamsInbound int64 }

// state returns the n subnets that hold the most.
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
				return cmp.Or(cmp.Compare(b.System.total(), a.System.total()), ip.ComparePrefixes(a.Prefix, b.Prefix))
			})
	}
}

func (n *fairSubnet) prefix() netip.Prefix { return n.key.Prefix(n.bits) }

func (n *fairSubnet) share(k Kind) SubnetUse {
	h := &n.held[k]
	return SubnetUse{h.conns.Load(), h.fds.Load(), h.streams.Load()}
}
