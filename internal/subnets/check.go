package subnets

import (
	"fmt"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// Check returns an error if the records are inconsistent: if a record cannot be found, is kept
// though it is idle, or exceeds its limit; if the counts of records are wrong; or if a table is
// too large or too small for its records. It is for tests. It reads every record, and holds one
// lock at a time.
func (s *Subnets) Check() (err error) {
	s.each(func(st *Stripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if err == nil {
			err = s.checkLocked(st)
		}
	})
	return err
}

// checkLocked is Check for one stripe. The stripe's lock is held.
func (s *Subnets) checkLocked(st *Stripe) error {
	n, busy, owing := 0, 0, 0
	count := func(rec *record) {
		if rec.conns > 0 {
			busy++
		}
		if rec.fullAt != 0 {
			owing++
		}
	}
	count(&st.mu.own)
	t := &st.mu.table
	for i := range t.slots {
		rec := &t.slots[i]
		if !rec.used() {
			if *rec != (record{}) {
				return fmt.Errorf("a free place is not empty: %+v", *rec)
			}
			continue
		}
		n++
		count(rec)
		l := st.byID[rec.id-1]
		prefix := subnet{l, rec.key}.prefix()
		_, at := t.find(rec.key, rec.id)
		switch {
		case at != i:
			return fmt.Errorf("%s cannot be found", prefix)
		case rec.key.Cut(l.host) != rec.key:
			return fmt.Errorf("the key of %s has bits behind its prefix: %+v", prefix, *rec)
		case s.stripeOf(rec.key.Cut(s.families[ip.FamilyOf(prefix.Addr())].widest)) != st:
			return fmt.Errorf("%s is under another lock", prefix)
		case rec.idle():
			return fmt.Errorf("%s is idle, but kept", prefix)
		case rec.conns < 0 || int64(rec.conns) > l.conns:
			return fmt.Errorf("%s has %d connections, and may have %d", prefix, rec.conns, l.conns)
		}
	}
	switch {
	case n != t.n || busy != int(st.mu.busy) || owing != int(st.mu.owing):
		return fmt.Errorf("there are %d records, %d busy, %d owing: counted as %d, %d, %d", n, busy, owing, t.n, st.mu.busy, st.mu.owing)
	case len(t.slots) > leastSlots && 8*n < len(t.slots), 4*n > 3*len(t.slots):
		return fmt.Errorf("there are %d records in %d places", n, len(t.slots))
	}
	return nil
}
