package subnets

// The records of one stripe, found by their subnet, in a hash table that holds the records
// themselves. A record is 32 bytes without pointers. So a million records are not a million
// allocations, the garbage collector does not scan them, and a lookup touches one or two cache
// lines. There are no locks here; the stripe's lock is held.

import "github.com/weir-p2p/rcmgr/internal/ip"

// record is the state of one subnet. A subnet without a record is in the state of a new one.
type record struct {
	key    ip.Key
	fullAt int64  // when its bucket will be full, see Bucket; 0 if the bucket is full
	conns  int32  // connections, if its level limits them
	id     uint16 // of its level; 0 in a free place
}

// used reports whether there is a record in this place of the table.
func (rec *record) used() bool { return rec.id != 0 }

// idle reports whether a record has no connections and a full bucket, and need not be kept.
func (rec *record) idle() bool { return rec.conns == 0 && rec.fullAt == 0 }

// full reports whether there is no room for another connection.
func (rec *record) full(l *level) bool { return int64(rec.conns) >= l.conns }

// empty reports whether the bucket has no token at a time.
func (rec *record) empty(l *level, at int64) bool {
	_, ok := l.tokens.take(rec.fullAt, at)
	return !ok
}

// leastSlots is the size of the smallest table.
const leastSlots = 8

// table is an open hash table with linear probing: a record lies in its home, which is the place
// that its hash names, or in the next free place after it. The table is between an eighth and
// three quarters full, or has leastSlots places. Until the first record is added it has one
// place, which stays empty and which copies of the table may therefore share.
type table struct {
	slots []record // their number is a power of two
	n     int      // the number of records
	hash  ip.Hash
	hand  int // the place that next returned last
}

func newTable(hash ip.Hash) table {
	return table{hash: hash, slots: make([]record, 1)}
}

func (t *table) home(k ip.Key) int { return int(t.hash.Of(k)) & (len(t.slots) - 1) }

// find returns the record of a subnet on the level id, and its place. If there is none, it
// returns the free place where the record would be, which holds the zero record. Both results
// are valid until a record is added or removed.
func (t *table) find(k ip.Key, id uint16) (rec *record, at int) {
	for at = t.home(k); ; at = (at + 1) & (len(t.slots) - 1) {
		rec = &t.slots[at]
		if rec.id == id && rec.key == k || !rec.used() {
			return rec, at
		}
	}
}

// add makes a record for a subnet that has none, and returns it. It lies in the place that find
// has returned, or in another one if the table grows.
func (t *table) add(free *record, k ip.Key, id uint16) *record {
	if 4*(t.n+1) > 3*len(t.slots) {
		t.resize(max(leastSlots, 2*len(t.slots)))
		free, _ = t.find(k, id)
	}
	t.n++
	free.key, free.id = k, id
	return free
}

// remove removes the record in the place gap. Records behind it that are not in their home move
// up, so that no free place comes between a record and its home.
func (t *table) remove(gap int) {
	last := len(t.slots) - 1
	for i := (gap + 1) & last; t.slots[i].used(); i = (i + 1) & last {
		// A record may move to the gap unless the gap is before its home.
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

// next returns the place after the one that it returned last, and the record in it. Repeated
// calls go round all places.
func (t *table) next() (rec *record, at int) {
	t.hand = (t.hand + 1) & (len(t.slots) - 1)
	return &t.slots[t.hand], t.hand
}
