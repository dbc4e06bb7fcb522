// Package groups counts what the groups hold that an address belongs to: the address itself, its
// subnet, its network, the owner that a program names. What a place holds, all of its groups
// hold. A group may hold a share of what a limit has: the more it holds, the more must be left
// to others.
//
// A place is all that has the same groups: an IPv4 address, an IPv6 /56, the peers behind one
// relay. It is found by one lookup, and its groups by pointers, so only the first connection from
// a place looks for groups. Places and groups are removed with the last that refers to them, so
// there are never more of them than connections and peers, whatever names a program returns.
//
// All methods are safe for concurrent use. Locks of shards are never held together, and nothing
// foreign runs under them. Counts are read without a lock.
package groups

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/lean"
)

// Scope is a scope in which groups are counted.
type Scope uint8

const (
	System Scope = iota
	Transient
	scopes
)

// What is a resource that is counted for groups.
type What uint8

const (
	ConnsIn What = iota
	FDs          // of the inbound connections
	StreamsIn
	ConnsOut
	StreamsOut
	whats
)

// The levels of groups, from the smallest. A place has a group on each level but byOwner, on which
// it may have one. A place behind a relay has none on the lowest level if that is one address.
const (
	lowest  = iota // an IPv4 address, an IPv6 /56
	middle         // an IPv4 /24, an IPv6 /48
	widest         // an IPv4 /16, an IPv6 /32
	byOwner        // named by the program
	numLevels
)

// level is what one level of a family is.
type level struct {
	bits int // length of its prefixes
	// claim is how much must be left to others for each that a group holds, in quarters.
	claim int64
}

// An IPv4 /24 is cheap to rent as a whole, and an IPv6 /56 is what one customer is usually given,
// so these may hold as much as is left. A wider group has more members with a good reason to be
// there, and more of them that pay for their places.
var levels = [ip.Families][byOwner]level{
	ip.V4: {{32, 4}, {24, 4}, {16, 2}},
	ip.V6: {{56, 4}, {48, 2}, {32, 1}},
}

const (
	// ownersClaim is the claim of an owner.
	ownersClaim = 2
	// crowdedClaim is the claim of an IPv4 address if others of its /24 are there, too, so that
	// it leaves them a part of what the /24 may hold.
	crowdedClaim = 8
)

// subnet is the level of what is shown as a subnet: an IPv4 /24, an IPv6 /56.
var subnet = [ip.Families]int{ip.V4: middle, ip.V6: lowest}

// Group is all places that have something in common.
type Group struct {
	key   groupKey
	level int
	claim int64
	// single means that it is an IPv4 address, which is the group of one place and is not listed.
	single bool
	refs   int          // places; under the lock of its shard
	came   atomic.Int64 // places that have seats of what came from them
	held   [scopes][whats]atomic.Int64
}

type groupKey struct {
	ip.Key
	bits  int
	owner string // if it is one
}

// Owner returns the name of the owner, or the empty string if the group is a prefix.
func (g *Group) Owner() string { return g.key.owner }

// Prefix returns the group's prefix, or an invalid one if it is an owner.
func (g *Group) Prefix() netip.Prefix {
	if g.key.owner != "" {
		return netip.Prefix{}
	}
	return g.key.Prefix(g.key.bits)
}

// IsSubnet reports whether the group is what is shown as a subnet.
func (g *Group) IsSubnet() bool { return g.level != byOwner && g.level == subnet[g.key.Family()] }

// Came reports whether anything came from the group.
func (g *Group) Came() bool { return g.came.Load() > 0 }

// Holds returns what all of the group hold.
func (g *Group) Holds(s Scope, w What) int64 { return g.held[s][w].Load() }

// Place is what all that has the same groups has in common.
type Place struct {
	key    placeKey
	groups [numLevels]*Group // nil where it has none
	seats  [2]Seat           // of what came from it, and of what this host dialled
	refs   int               // of both seats; under the lock of its shard
}

type placeKey struct {
	ip.Key
	relayed bool
}

// Seat is a place for connections in one direction, and for their peers.
type Seat struct {
	place *Place
	out   bool // this host dialled
	refs  int  // connections and peers; under the lock of the place's shard
}

// Out reports whether the seat is of what this host dialled.
func (s *Seat) Out() bool { return s.out }

// Add adds n to what all groups of the seat hold.
func (s *Seat) Add(in Scope, w What, n int64) {
	for _, g := range s.place.groups {
		if g != nil {
			g.held[in][w].Add(n)
		}
	}
}

// AddConn adds n connections to what all groups of the seat hold, with their descriptors.
func (s *Seat) AddConn(in Scope, fds uint8, n int64) {
	if s.out {
		s.Add(in, ConnsOut, n)
		return
	}
	s.Add(in, ConnsIn, n)
	if fds != 0 {
		s.Add(in, FDs, n*int64(fds))
	}
}

// Claim returns how much must be left to others after one more is admitted, and the group because
// of which. A nil seat claims nothing. Peers that only this host has connected to claim nothing by
// what they open themselves.
func (s *Seat) Claim(in Scope, w What) (most int64, by *Group) {
	if s == nil || s.out && w == StreamsIn {
		return 0, nil
	}
	var byItself int64
	for l, g := range s.place.groups {
		if g == nil {
			continue
		}
		claim := g.claim
		if g.single && s.place.groups[middle].came.Load() > 1 {
			claim = crowdedClaim
		}
		held := g.Holds(in, w)
		c, alone := held*claim/4, held*claim/4
		if part := s.place.partOf(l); part != nil {
			c = (held + part.Holds(in, w)) * claim / 4
		}
		// Of several with the same claim, the one is named that claims most by itself.
		if c > most || c == most && c > 0 && alone >= byItself {
			most, by, byItself = c, g, alone
		}
	}
	return most, by
}

// partOf returns the group one level below the one on a level, if it has to leave room to the other
// parts of that, and nil otherwise. What a part holds counts twice in the claim of the whole, once as
// the whole's and once so that the part leaves as much of what the whole may hold to the other
// parts. So a subnet that holds nothing finds room in a network whose other subnets are crowds.
// For an IPv4 address, crowdedClaim is what does so.
func (p *Place) partOf(level int) *Group {
	switch level {
	case lowest:
		return nil
	case middle:
		if g := p.groups[lowest]; g != nil && !g.single {
			return g
		}
		return nil
	}
	return p.groups[middle]
}

// numShards is the number of locks that places and groups are spread over.
const numShards = 64

// Table has places and groups. Use New to make one.
type Table struct {
	owner  func(netip.Addr) string
	seed   maphash.Seed
	shards [numShards]shard
}

type shard struct {
	mu struct {
		sync.Mutex
		places map[placeKey]*Place
		groups map[groupKey]*Group
		crowds [2]int // of places and of groups, see lean.Map
	}
	_ [32]byte // the next shard's lock is on a cache line of its own
}

// New returns an empty table. owner returns the name of the owner of an address, or the empty
// string; it may be nil. It is called without locks.
func New(owner func(netip.Addr) string) *Table {
	return &Table{owner: owner, seed: maphash.MakeSeed()}
}

func shardOf[K comparable](t *Table, key K) *shard {
	return &t.shards[maphash.Comparable(t.seed, key)%numShards]
}

// Enter returns the seat at an address, or at the address of a relay that others are behind. The
// caller must leave it again. The owner of the first address that comes from an IPv6 /56 is that
// of all, until the last of them leaves.
func (t *Table) Enter(addr netip.Addr, relayed, out bool) *Seat {
	fam := ip.FamilyOf(addr)
	key := placeKey{ip.KeyOf(addr).Cut(uint(fam.BitLen() - levels[fam][lowest].bits)), relayed}
	if s := t.find(key, out); s != nil {
		return s
	}
	owner := ""
	if t.owner != nil {
		owner = t.owner(addr)
	}
	p := &Place{key: key}
	for l, of := range levels[fam] {
		if relayed && of.bits == fam.BitLen() {
			continue // it is the relay's, which has many peers
		}
		k := groupKey{Key: key.Cut(uint(fam.BitLen() - of.bits)), bits: of.bits}
		if of.bits == fam.BitLen() {
			p.groups[l] = &Group{key: k, level: l, claim: of.claim, single: true}
		} else {
			p.groups[l] = t.group(k, l, of.claim)
		}
	}
	if owner != "" {
		p.groups[byOwner] = t.group(groupKey{owner: owner}, byOwner, ownersClaim)
	}
	p.seats[0].place, p.seats[1].place, p.seats[1].out = p, p, true
	s, others := t.insert(p, out)
	if others {
		t.dropGroups(p)
	}
	return s
}

// find returns a seat of a place that is there.
func (t *Table) find(key placeKey, out bool) *Seat {
	s := shardOf(t, key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.mu.places[key]; p != nil {
		return p.join(out)
	}
	return nil
}

// insert returns a seat of a place, or of another one with the same key that is there already.
func (t *Table) insert(p *Place, out bool) (seat *Seat, other bool) {
	s := shardOf(t, p.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if there := s.mu.places[p.key]; there != nil {
		return there.join(out), true
	}
	put(&s.mu.places, &s.mu.crowds[0], p.key, p)
	return p.join(out), false
}

func put[K comparable, V any](m *map[K]V, crowd *int, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
	*crowd = max(*crowd, len(*m))
}

// remove removes an entry of a map, and gives back the memory of a crowd.
func remove[K comparable, V any](m *map[K]V, crowd *int, k K) {
	const few = 8
	if delete(*m, k); len(*m) == 0 && *crowd > few {
		*m, *crowd = nil, 0
	} else {
		*m = lean.Map(*m, crowd)
	}
}

// join takes a reference to a seat. The lock of the place's shard is held.
func (p *Place) join(out bool) *Seat {
	s := &p.seats[0]
	if out {
		s = &p.seats[1]
	}
	p.refs++
	if s.refs++; s.refs == 1 && !out {
		p.come(1)
	}
	return s
}

func (p *Place) come(n int64) {
	for _, g := range p.groups {
		if g != nil {
			g.came.Add(n)
		}
	}
}

// Join takes another reference to a seat that the caller has a reference to.
func (t *Table) Join(seat *Seat) {
	s := shardOf(t, seat.place.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	seat.place.join(seat.out)
}

// Leave drops a reference.
func (t *Table) Leave(seat *Seat) {
	if t.leave(seat) {
		t.dropGroups(seat.place)
	}
}

// leave drops a reference, and reports whether the place is gone.
func (t *Table) leave(seat *Seat) bool {
	p := seat.place
	s := shardOf(t, p.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if seat.refs--; seat.refs == 0 && !seat.out {
		p.come(-1)
	}
	if p.refs--; p.refs > 0 {
		return false
	}
	remove(&s.mu.places, &s.mu.crowds[0], p.key)
	return true
}

// group returns a group with a reference more.
func (t *Table) group(key groupKey, level int, claim int64) *Group {
	s := shardOf(t, key)
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.mu.groups[key]
	if g == nil {
		g = &Group{key: key, level: level, claim: claim}
		put(&s.mu.groups, &s.mu.crowds[1], key, g)
	}
	g.refs++
	return g
}

// dropGroups drops a place's references to its groups.
func (t *Table) dropGroups(p *Place) {
	for _, g := range p.groups {
		if g != nil && !g.single {
			t.drop(g)
		}
	}
}

func (t *Table) drop(g *Group) {
	s := shardOf(t, g.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.refs--; g.refs == 0 {
		remove(&s.mu.groups, &s.mu.crowds[1], g.key)
	}
}

// Each calls f with every group but single addresses. f is called under a lock, and may not call the table.
func (t *Table) Each(f func(*Group)) {
	for i := range t.shards {
		t.shards[i].each(f)
	}
}

func (s *shard) each(f func(*Group)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.mu.groups {
		f(g)
	}
}
