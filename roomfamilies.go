package rcmgr

// What was let go to make room, as series of metrics.

import (
	"github.com/weir-p2p/rcmgr/internal/evict"
	"github.com/weir-p2p/rcmgr/internal/letgo"
)

// roomKinds are the kinds of scopes in which room is made.
var roomKinds = [...]Kind{KindSystem, KindTransient, KindService, KindProtocol}

func (r *reading) letGo(counts *roomTally, to series) {
	for _, k := range roomKinds {
		for stream, reasons := range counts[k] {
			for reason, n := range reasons {
				// Only some of them can be, so the others have no series before they are.
				if n > 0 || r.rooms > 0 && (stream == 1) == (k != KindSystem) {
					to.counter(n, k.String(), [...]string{"conn", "stream"}[stream], evict.Reason(reason).String())
				}
			}
		}
	}
}

func (r *reading) roomKept(to series) {
	if r.rooms > 0 {
		for class, n := range r.kept {
			to.gauge(int64(n), evict.Class(class).String())
		}
	}
}

func (r *reading) roomOnlyKept(to series) {
	for _, k := range roomKinds {
		if n := r.counts.room.onlyKept[k]; n > 0 || r.rooms > 0 {
			to.counter(n, k.String())
		}
	}
}

func (r *reading) roomFaults(to series) {
	for f, n := range r.counts.room.faults {
		if n > 0 || r.rooms > 0 {
			to.counter(n, letgo.Fault(f).String())
		}
	}
}
