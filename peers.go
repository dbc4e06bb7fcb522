package rcmgr

// The peers of a stripe, by their IDs. A Go map would keep each ID beside the pointer to the
// peer, which has it already, and takes about 40 bytes for each of very many peers. This table
// takes 14.
//
// Peers are in leaves, in no order. A leaf has those whose hashes begin with the same bits. A
// full leaf is split in two by one more bit, and two leaves that belong together are merged when
// few peers are left in them. So the memory of a crowd that has gone is free, and nothing is done
// for very many peers at once.

import (
	"encoding/binary"
	"math/bits"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// leafPeers is the most peers of a leaf. Its tags fill a cache line with what else it has, and
	// it fills 512 bytes, which the allocator has a class for.
	leafPeers = 56
	// mostBits bounds the bits by which leaves are told apart: the first ones of a hash. The
	// stripe of a peer follows from others.
	mostBits = 24
	// hashPrefixes is the number of prefixes that hashes have, of mostBits each.
	hashPrefixes = 1 << mostBits
)

// peerTable has the peers of a stripe, whose lock is held.
type peerTable struct {
	// leaves has the leaf of each prefix of a hash, by its first bits. A leaf is in as many
	// places, one after the other, as there are such prefixes that begin with the bits of its own.
	leaves []*peerLeaf
	shift  uint8 // makes an index into leaves from a prefix
	n      int
	hash   func(peer.ID) uint64
	// rest has peers whose leaf is full and cannot be split. It is nil until more than leafPeers
	// peers have almost the same hash, for which leaves would get very long.
	rest map[peer.ID]*peerScope
}

// peerLeaf has peers whose hashes begin with the same bits.
type peerLeaf struct {
	n    uint8
	bits uint8 // how many bits these are
	_    [6]byte
	tags [leafPeers]uint8 // the last byte of the hash of each peer
	at   [leafPeers]*peerScope
}

func newPeerTable(hash func(peer.ID) uint64) *peerTable {
	return &peerTable{leaves: []*peerLeaf{{}}, shift: mostBits, hash: hash}
}

func hashPrefix(hash uint64) uint32 { return uint32(hash >> (64 - mostBits)) }

// leaf returns the leaf of those whose hashes begin with a prefix.
func (t *peerTable) leaf(prefix uint32) *peerLeaf { return t.leaves[prefix>>(t.shift&31)] }

// find returns the peer with an ID that has this hash, or nil. It compares
// eight tags at a time, and then IDs, because peers may have the same tag.
func (t *peerTable) find(hash uint64, p peer.ID) *peerScope {
	const lows, highs = 0x0101010101010101, 0x8080808080808080
	l := t.leaf(hashPrefix(hash))
	tag := uint64(uint8(hash)) * lows
	for first := 0; first < int(l.n); first += 8 {
		// A byte of other is 0 where the tags are the same. Its highest bit is set in same then,
		// and sometimes without need in the bytes after that.
		other := binary.LittleEndian.Uint64(l.tags[first:]) ^ tag
		for same := (other - lows) &^ other & highs; same != 0; same &= same - 1 {
			if ps := l.at[first+bits.TrailingZeros64(same)/8]; ps != nil && ps.id == p {
				return ps
			}
		}
	}
	return t.rest[p]
}

// add adds a peer that the table does not have.
func (t *peerTable) add(ps *peerScope) {
	t.n++
	hash := t.hash(ps.id)
	prefix := hashPrefix(hash)
	for t.leaf(prefix).n == leafPeers {
		if !t.split(prefix) {
			if t.rest == nil {
				t.rest = make(map[peer.ID]*peerScope)
			}
			t.rest[ps.id] = ps
			return
		}
	}
	t.leaf(prefix).add(ps, uint8(hash))
}

// remove removes a peer that the table has.
func (t *peerTable) remove(ps *peerScope) {
	t.n--
	prefix := hashPrefix(t.hash(ps.id))
	l := t.leaf(prefix)
	for i, other := range l.at[:l.n] {
		if other == ps {
			l.remove(i)
			for t.merge(prefix) {
			}
			return
		}
	}
	delete(t.rest, ps.id)
}

func (l *peerLeaf) add(ps *peerScope, tag uint8) {
	l.at[l.n], l.tags[l.n] = ps, tag
	l.n++
}

// remove puts the last peer in the place of another one.
func (l *peerLeaf) remove(i int) {
	l.n--
	l.at[i], l.tags[i] = l.at[l.n], l.tags[l.n]
	l.at[l.n] = nil
}

// places returns the part of leaves that the leaf of a prefix takes.
func (t *peerTable) places(prefix uint32) []*peerLeaf {
	n := uint32(1) << (mostBits - t.shift - t.leaf(prefix).bits)
	first := prefix >> t.shift &^ (n - 1)
	return t.leaves[first : first+n]
}

// split moves the peers of a leaf whose hashes have a one after the bits of the leaf to a leaf of
// their own. It reports false if there is no such bit, or if leaves would get longer for it than
// twice the number of peers.
func (t *peerTable) split(prefix uint32) bool {
	l := t.leaf(prefix)
	if len(t.places(prefix)) == 1 && !t.double() {
		return false
	}
	of := t.places(prefix)
	l.bits++
	right := &peerLeaf{bits: l.bits}
	for i := 0; i < int(l.n); {
		if ps := l.at[i]; hashPrefix(t.hash(ps.id))>>(mostBits-l.bits)&1 != 0 {
			right.add(ps, l.tags[i])
			l.remove(i)
		} else {
			i++
		}
	}
	for i := len(of) / 2; i < len(of); i++ {
		of[i] = right
	}
	return true
}

// merge merges the leaf of a prefix with the one from which it was split, if the two have become
// so empty that they are not split again soon. It reports whether it did.
func (t *peerTable) merge(prefix uint32) bool {
	l := t.leaf(prefix)
	if l.bits == 0 {
		return false
	}
	other := t.leaf(prefix ^ 1<<(mostBits-l.bits))
	if other.bits != l.bits || l.n+other.n > leafPeers/2 {
		return false
	}
	for i, ps := range other.at[:other.n] {
		l.add(ps, other.tags[i])
	}
	l.bits--
	of := t.places(prefix)
	for i := range of {
		of[i] = l
	}
	if len(of) == 2 {
		t.halve()
	}
	return true
}

// double makes leaves twice as long, unless it is longer than the number of peers.
func (t *peerTable) double() bool {
	if t.shift == 0 || len(t.leaves) > t.n {
		return false
	}
	leaves := make([]*peerLeaf, 0, 2*len(t.leaves))
	for _, l := range t.leaves {
		leaves = append(leaves, l, l)
	}
	t.leaves = leaves
	t.shift--
	return true
}

// halve makes leaves half as long if each leaf is in two places at least.
func (t *peerTable) halve() {
	for i := 0; i < len(t.leaves); i += 2 {
		if t.leaves[i] != t.leaves[i+1] {
			return
		}
	}
	leaves := make([]*peerLeaf, 0, len(t.leaves)/2)
	for i := 0; i < len(t.leaves); i += 2 {
		leaves = append(leaves, t.leaves[i])
	}
	t.leaves = leaves
	t.shift++
}

// all calls yield with all peers until it returns false. The table must not change meanwhile.
func (t *peerTable) all(yield func(*peerScope) bool) {
	for prefix := uint32(0); prefix < hashPrefixes; {
		l := t.leaf(prefix)
		for _, ps := range l.at[:l.n] {
			if !yield(ps) {
				return
			}
		}
		prefix += l.width()
	}
	for _, ps := range t.rest {
		if !yield(ps) {
			return
		}
	}
}

// width returns the number of prefixes that a leaf has.
func (l *peerLeaf) width() uint32 { return 1 << (mostBits - l.bits) }

// row appends to a row of peers, in the order of the prefixes of their hashes and beginning with
// one of these, as many leaves as the row has room for. It returns the row, and the prefix with
// which the next row begins, which is hashPrefixes after the last one. The table may change
// between two rows: each peer that stays is in one of them, and no peer is in two.
func (t *peerTable) row(row []*peerScope, prefix uint32) ([]*peerScope, uint32) {
	for prefix < hashPrefixes {
		l := t.leaf(prefix)
		if len(row)+int(l.n) > cap(row) {
			return row, prefix
		}
		begin := prefix &^ (l.width() - 1)
		for _, ps := range l.at[:l.n] {
			if prefix == begin || hashPrefix(t.hash(ps.id)) >= prefix { // else two leaves were merged meanwhile
				row = append(row, ps)
			}
		}
		prefix = begin + l.width()
	}
	for _, ps := range t.rest {
		row = append(row, ps)
	}
	return row, hashPrefixes
}
