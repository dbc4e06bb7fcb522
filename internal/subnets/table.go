package subnets

// The records of one stripe of the gates, found by their subnet: a hash table with
// everything in place. A record is 32 bytes without pointers, so a million of
// them are neither a million allocations nor anything for the garbage collector
// to follow, and a look-up touches one cache line or two. No locks.

import "github.com/weir-p2p/rcmgr/internal/ip"

// record is what is kept of one subnet. One that is not kept is as a new one.
type record struct {
	key    ip.Key
	fullAt int64 // when its bucket will be full, see Bucket; 0 if it is
	conns  int32 // connections, if its level limits them
	id     uint16
}

// used reports whether there is a record in this place of the table.
func (rec *record) used() bool { return rec.id != 0 }

// idle reports whether a record says nothing, and need not be kept.
func (rec *record) idle() bool { return rec.conns == 0 && rec.fullAt == 0 }

// full reports whether no further connection has room.
func (rec *record) full(l *level) bool { return int64(rec.conns) >= l.conns }

// empty reports whether there is no token.
func (rec *record) empty(l *level, at int64) bool {
	_, ok := l.tokens.take(rec.fullAt, at)
	return !ok
}

// leastSlots is the size of the smallest table.
const leastSlots = 8

// table is an open hash table with linear probing: a record lies in its home,
// or in the next place that is free. It is between an eighth and three quarters
// full, or of the smallest size; until the first record is added, it has one place, which
// stays empty, and which a copy of it may have as well.
type table struct {
	hash  ip.Hash
	slots []record // a power of two
	n     int      // records
	hand  int      // where next goes on
}

func newTable(hash ip.Hash) table {
	return table{hash: hash, slots: make([]record, 1)}
}

func (t *table) home(k ip.Key) int { return int(t.hash.Of(k)) & (len(t.slots) - 1) }

// find returns the record of a subnet on a level and its place, or else the free place
// where it would be, in which there is nothing, as in a new record. They are valid
// until a record is added or removed.
func (t *table) find(k ip.Key, id uint16) (rec *record, at int) {
	for at = t.home(k); ; at = (at + 1) & (len(t.slots) - 1) {
		rec = &t.slots[at]
		if rec.id == id && rec.key == k || !rec.used() {
			return rec, at
		}
	}
}

// add makes a record for a subnet that has none, in the place that find gave, or
// in another one if the table grows.
func (t *table) add(free *record, k ip.Key, id uint16) *record {
	if 4*(t.n+1) > 3*len(t.slots) {
		t.resize(max(leastSlots, 2*len(t.slots)))
		free, _ = t.find(k, id)
	}
	t.n++
	free.key, free.id = k, id
	return free
}

// remove takes the record out that is in a place. Those behind it that are not in
// their home move up, so that no gap comes between a record and its home.
func (t *table) remove(gap int) {
	last := len(t.slots) - 1
	for i := (gap + 1) & last; t.slots[i].used(); i = (i + 1) & last {
		// A record may move to the gap if that is not before its home.
		if (i-t.home(t.slots[i].key))&last >= (i-gap)&last {
			t.slots[gap] = t.slots[i]
			gap = i
		}
	}
	t.slots[gap] = record{}
	t.n--
	if len(t.slots) > leastSlots && 8*t.n < len(t.slots) {
		t.resize(len(t.slots) / 2)
	}
}

func (t *table) resize(slots int) {
	old := t.slots
	t.slots = make([]record, slots)
	for i := range old {
		if old[i].used() {
			free, _ := t.find(old[i].key, old[i].id)
			*free = old[i]
		}
	}
}

// next returns every place in turn, and what is in it.
func (t *table) next() (rec *record, at int) {
	t.hand = (t.hand + 1) & (len(t.slots) - 1)
	return &t.slots[t.hand], t.hand
}
