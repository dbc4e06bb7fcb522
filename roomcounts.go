package rcmgr

// What was let go, as metrics count it.

import (
	"github.com/weir-p2p/rcmgr/internal/evict"
	"github.com/weir-p2p/rcmgr/internal/letgo"
)

// roomTally counts what was let go by the kind of the scope, connections or streams, and the
// reason.
type roomTally [numKinds][2][evict.NumReasons]uint64

// roomTotals is what metrics count.
type roomTotals struct {
	letGo, would roomTally
	onlyKept     [numKinds]uint64
	faults       [letgo.NumFaults]uint64
}

func (t *roomTally) addCounts(counts map[letgo.Key]uint64) {
	for k, n := range counts {
		stream := 0
		if k.Stream {
			stream = 1
		}
		t[k.Kind][stream][k.Reason] += n
	}
}

func (t *roomTally) add(o *roomTally) {
	for k := range o {
		for what := range o[k] {
			for why, n := range o[k][what] {
				t[k][what][why] += n
			}
		}
	}
}

func (t *roomTotals) addState(s *letgo.State) {
	t.letGo.addCounts(s.LetGo)
	t.would.addCounts(s.Would)
	for k, n := range s.OnlyKept {
		t.onlyKept[k] += n
	}
	for f, n := range s.Faults {
		t.faults[f] += n
	}
}

func (t *roomTotals) add(o *roomTotals) {
	t.letGo.add(&o.letGo)
	t.would.add(&o.would)
	for k, n := range o.onlyKept {
		t.onlyKept[k] += n
	}
	for f, n := range o.faults {
		t.faults[f] += n
	}
}
