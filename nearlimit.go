package rcmgr

// Who wants to know that a limit is nearly reached, to make room before anything is
// refused: a trimmer of connections, an operator's pager. A worker looks at the
// pools of the shared scopes a few times a second, and calls without any lock. A
// pool in which more than half of a limit is used is tight, and its word says what
// is used exactly (pool.go); one that is loose is near nothing. Whether use has
// fallen back in between, and is up again, tells the pool's low. Without a listener
// nothing runs.

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
)

const (
	// nearInterval is the time between two looks. What comes and goes in between is
	// not seen; what goes and comes back is.
	nearInterval = 200 * time.Millisecond
	// nearMargin is how far below a mark use has to fall, in percent of the limit,
	// before the mark is told again: at the mark it may go up and down all the time.
	nearMargin = 5
)

// nearMarks are the percentages of a limit that are told.
var nearMarks = [...]int{80, 95}

// limitWatch is what has been told of each limit.
type limitWatch struct {
	m    *Manager
	tell []nearListener
	trim []trimmedConnMgr
	told map[*pool]*[numDims]marksReached // of the scopes that are there, where any is
}

// nearListener is one that is not called any more once it has failed.
type nearListener struct {
	*guard
	listen func(NearLimitEvent)
}

// trimmedConnMgr is one that is not asked any more once it has failed.
type trimmedConnMgr struct {
	*guard
	trim func(context.Context)
}

func newLimitWatch(m *Manager, listeners []func(NearLimitEvent), trimmed []connmgr.ConnManager) *limitWatch {
	w := &limitWatch{m: m}
	for _, f := range listeners {
		w.tell = append(w.tell, nearListener{&guard{callback: "WithNearLimitFunc"}, f})
	}
	for _, cm := range trimmed {
		w.trim = append(w.trim, trimmedConnMgr{&guard{callback: callbackOf("WithTrimming", cm)}, cm.TrimOpenConns})
	}
	return w
}

// marksTold is how many of nearMarks have been told, and not been taken back.
type marksReached uint8

// after gives what has been told once so much is used.
func (n marksReached) after(use, limit int64) marksReached {
	reached := func(percent int) bool { return float64(use) >= float64(limit)/100*float64(percent) }
	for n > 0 && !reached(nearMarks[n-1]-nearMargin) {
		n--
	}
	for int(n) < len(nearMarks) && reached(nearMarks[n]) {
		n++
	}
	return n
}

// look looks at all shared scopes, and tells what is to be told.
func (w *limitWatch) look() {
	told := make(map[*pool]*[numDims]marksReached)
	full := false // the host is, of what connections hold
	for _, p := range append(w.m.fixed[:], w.m.dir.list()...) {
		var before, now [numDims]marksReached
		if last := w.told[p]; last != nil {
			before = *last
		}
		all, low := p.lookAt()
		for d, l := range all {
			if l.tight && l.limit > 0 && p.kind.canRunOutOf(dim(d)) && !isUnlimited(dim(d), l.limit) {
				kept := min(before[d], before[d].after(low[d], l.limit))
				now[d] = kept.after(l.handed, l.limit)
				w.tellNew(p, dim(d), l, nearMarks[min(kept, now[d]):now[d]])
				full = full || now[d] > 0 && p.kind == KindSystem && madeRoomFor(dim(d), l.limit)
			}
		}
		if now != ([numDims]marksReached{}) {
			told[p] = &now
		}
	}
	w.told = told
	if full {
		for _, cm := range w.trim {
			cm.call(func() { cm.trim(context.Background()) })
		}
	}
}

func (w *limitWatch) tellNew(p *pool, d dim, l tally, marks []int) {
	name := p.scope()
	for _, percent := range marks {
		e := NearLimitEvent{Scope: name.String(), Kind: p.kind, Name: limitNames[d], Resource: resourceOf[d],
			Direction: directionOf[d], Percent: percent, Use: l.handed, Limit: l.limit}
		for _, tell := range w.tell {
			tell.call(func() { tell.listen(e) })
		}
	}
}

// lookAt gives all dimensions, by one set of limits, and the least that was handed
// out of each since the last time.
func (p *pool) lookAt() (all [numDims]tally, low amounts) {
	p.home.lock()
	defer p.home.unlock()
	p.engine.drawing.Lock()
	defer p.engine.drawing.Unlock()
	for d := range numDims {
		all[d] = p.tally(d)
		low[d] = min(p.low[d], all[d].handed)
		p.low[d] = all[d].handed
	}
	return all, low
}

// madeRoomFor reports whether a connection manager is asked to trim before the system
// scope's limit of d is reached.
func madeRoomFor(d dim, limit int64) bool { return resourceOf[d] != ResourceStream && limit > 0 }
