package rcmgr

// The records of one stripe of the gates, found by their subnet: a hash table with
// everything in place. A record is 32 bytes without pointers, so a million of
// them are neither a million allocations nor anything for the garbage collector
// to follow, and a look-up touches one cache line or two. No locks.

import "math/bits"

// subnetRecord is what is kept of one subnet. One that is not kept is as a new one.
type subnetRecord struct {
	key    subnetKey
	fullAt int64 // when its bucket will be full, see bucketLimit; 0 if it is
	conns  int32 // connections, if its level limits them
	id     uint16
}

// used tells whether there is a record in this place of the table.
func (rec *subnetRecord) used() bool { return rec.id != 0 }

// full tells whether no further connection has room.
func (rec *subnetRecord) full(l *level) bool { return int64(rec.conns) >= l.conns }

// empty tells whether there is no token.
func (rec *subnetRecord) empty(l *level, at int64) bool {
	_, ok := l.tokens.take(rec.fullAt, at)
	return !ok
}

// subnetHash is a secret, without which nobody can choose subnets that meet in one
// place.
type subnetHash struct{ a, b uint64 }

func (h subnetHash) of(k subnetKey) uint64 {
	hi, lo := bits.Mul64(k.hi^h.a, k.lo^h.b)
	const spread = 0x9e3779b97f4a7c15 // 2⁶⁴ by the golden ratio: mixes the bits once more
	return (hi ^ lo) * spread
}

// leastSlots is the size of the smallest table.
const leastSlots = 8

// subnetTable is an open hash table with linear probing: a record lies in its home,
// or in the next place that is free. It is between an eighth and three quarters
// full, or of the smallest size. The zero value, with a hash, is an empty one.
type subnetTable struct {
	hash  subnetHash
	slots []subnetRecord // a power of two
	n     int            // records
	hand  int            // where next goes on
}

func (t *subnetTable) home(k subnetKey) int { return int(t.hash.of(k)) & (len(t.slots) - 1) }

// find gives the record of a subnet on a level, or nil. It is valid until a record
// is added or removed.
func (t *subnetTable) find(k subnetKey, id uint16) *subnetRecord {
	if t.n == 0 {
		return nil
	}
	for i := t.home(k); ; i = (i + 1) & (len(t.slots) - 1) {
		switch rec := &t.slots[i]; {
		case rec.id == id && rec.key == k:
			return rec
		case !rec.used():
			return nil
		}
	}
}

// add makes a record for a subnet that has none.
func (t *subnetTable) add(k subnetKey, id uint16) *subnetRecord {
	if 4*(t.n+1) > 3*len(t.slots) {
		t.resize(max(leastSlots, 2*len(t.slots)))
	}
	t.n++
	return t.put(subnetRecord{key: k, id: id})
}

func (t *subnetTable) put(rec subnetRecord) *subnetRecord {
	i := t.home(rec.key)
	for t.slots[i].used() {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = rec
	return &t.slots[i]
}

// remove takes a record out. Those behind it that are not in their home move up,
// so that no gap comes between a record and its home.
func (t *subnetTable) remove(rec *subnetRecord) {
	last := len(t.slots) - 1
	gap := t.home(rec.key)
	for &t.slots[gap] != rec {
		gap = (gap + 1) & last
	}
	for i := (gap + 1) & last; t.slots[i].used(); i = (i + 1) & last {
		// A record may move to the gap if that is not before its home.
		if (i-t.home(t.slots[i].key))&last >= (i-gap)&last {
			t.slots[gap] = t.slots[i]
			gap = i
		}
	}
	t.slots[gap] = subnetRecord{}
	t.n--
	if len(t.slots) > leastSlots && 8*t.n < len(t.slots) {
		t.resize(len(t.slots) / 2)
	}
}

func (t *subnetTable) resize(slots int) {
	old := t.slots
	t.slots = make([]subnetRecord, slots)
	for i := range old {
		if old[i].used() {
			t.put(old[i])
		}
	}
}

// next gives every place in turn.
func (t *subnetTable) next() *subnetRecord {
	t.hand = (t.hand + 1) & (len(t.slots) - 1)
	return &t.slots[t.hand]
}
