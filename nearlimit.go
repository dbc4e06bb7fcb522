package rcmgr

// Calls to listeners when a limit is nearly reached, so that they can make room before
// anything is refused: a connection manager can trim, an operator can be alerted. A
// periodic job looks at the pools of the shared scopes, and calls the listeners without
// any lock. A pool that uses more than half of a limit is tight, so its word says exactly
// how much is used (pool.go); a loose pool is near no limit. pool.low shows whether use
// has fallen and risen again between two looks. The job runs only if there is a listener.

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
)

const (
	// nearInterval is the time between two looks. A rise that ends in between is not
	// seen, but a fall is.
	nearInterval = 200 * time.Millisecond
	// nearMargin is how far use has to fall below a mark, in percent of the limit, before
	// the mark is reported again. Without a margin, use that hovers at the mark would be
	// reported all the time.
	nearMargin = 5
)

// nearMarks are the percentages of a limit that are reported.
var nearMarks = [...]int{80, 95}

// limitWatch keeps which marks of each limit have been reported.
type limitWatch struct {
	m    *Manager
	tell []nearListener
	trim []trimmedConnMgr
	told map[*pool]*[numDims]marksReached // only scopes that have reached a mark
}

// nearListener is a listener. Once it has failed it is not called any more.
type nearListener struct {
	*guard
	listen func(NearLimitEvent)
}

// trimmedConnMgr is a connection manager. Once it has failed it is not called any more.
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

// marksReached is how many of nearMarks have been reported since use was last below them.
type marksReached uint8

// after returns the marks that are reached once use is held.
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

// look looks at all shared scopes, and reports the marks that were reached.
func (w *limitWatch) look() {
	told := make(map[*pool]*[numDims]marksReached)
	full := false // the system scope is nearly full of something that connections hold
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
				full = full || now[d] > 0 && p.kind == KindSystem && trimmable(dim(d), l.limit)
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

// lookAt returns the pool's tally of each dimension, all by one set of limits, and the
// least that was handed out of each since the last call.
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

// trimmable reports whether trimming connections lowers the use of d, and the limit is not 0.
func trimmable(d dim, limit int64) bool { return resourceOf[d] != ResourceStream && limit > 0 }
