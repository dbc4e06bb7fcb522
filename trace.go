package rcmgr

// Tracing: every change of every scope as an event, in one order, with the totals that
// followed from it, for a file and for reporters.
//
//	engine ── push ──▶ queue ── run ──▶ reporters
//	 (under its lock)  (bounded)  └───▶ file (tracefile.go)
//
// The engine only appends plain numbers to the queue. One goroutine makes names, times
// and JSON, and delivers the events in order, without holding a lock. So a reporter may
// call the manager, and a slow reporter delays only deliveries. Events that do not fit
// the queue are dropped and counted, and an event in their place says how many.
//
// The table below says what is pushed when. Above means the accounts of the chain in its
// order: peer, protocol-peer, service-peer, protocol, service, transient, system, as far
// as they apply. The connection's, stream's or span's own event comes last, after those
// of its owners (outermost first). "change" stands for up to three events of a scope:
// memory, then streams, then connections with descriptors, each only if it changes. What
// moves with its scope has priority 255.
//
//	New                    start; create system, transient, allowlistedSystem,
//	                       allowlistedTransient
//	OpenConnection         create conn; add_conn above; add_conn conn
//	OpenStream             create peer if it is new; create stream; add_stream above;
//	                       add_stream stream
//	ReserveMemory          reserve_memory above; at each owner; at the scope
//	ReleaseMemory          release_memory above; at each owner; at the scope
//	BeginSpan              create the span, with its owner's limit
//	SetPeer                create peer if it is new; change peer (+); change transient (-)
//	SetPeer, allowlisted   change peer (+), system (+), allowlistedSystem (-),
//	for another peer       allowlistedTransient (-)
//	SetProtocol            create protocol and protocol-peer if they are new; change
//	                       protocol-peer (+), protocol (+), transient (-)
//	SetService             as SetProtocol, with service; transient has been left
//	Done                   change above and at each owner (-); destroy the scope;
//	                       nothing above an owner that is done
//	reap                   destroy each scope that is collected
//	View                   create the scope if it is new
//	ReserveMemory of 0, SetLimit, a second Done, calls on a scope that is done: nothing
//
// A refusal is one block event of the scope or gate that refused. It has what that scope
// or gate holds, and the amount of that resource that was requested. A connection or
// stream that is refused is created before the block event and destroyed after it.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// TraceReporter receives all events of a manager. Pass it to WithTraceReporter.
type TraceReporter interface {
	// ConsumeEvent is called for each event, in order, after it has happened. Events are
	// delivered from a queue, so the call that caused one may have returned before.
	// FlushTrace waits for the deliveries. ConsumeEvent is called by one goroutine at a
	// time and without any lock of the manager. It may call the manager, except for
	// Close, which waits for it. While it runs, up to 65,536 events wait; more are
	// dropped, and an event of type TraceDroppedEvt says how many. A reporter that panics
	// is logged and not called again.
	ConsumeEvent(TraceEvt)
}

func (t *tracer) export(e *traceEvent) TraceEvt {
	evt := TraceEvt{
		Time: time.Unix(0, e.at).Format(time.RFC3339Nano), Type: e.typ, Priority: e.priority,
		Delta: e.delta, DeltaIn: int(e.deltaIn), DeltaOut: int(e.deltaOut),
		Memory:    e.memory,
		StreamsIn: int(e.streamsIn), StreamsOut: int(e.streamsOut),
		ConnsIn: int(e.connsIn), ConnsOut: int(e.connsOut), FD: int(e.fd),
	}
	switch e.typ {
	case TraceStartEvt:
		evt.Limit = t.limits
		return evt
	case TraceDroppedEvt:
		return evt
	}
	if e.limit != nil {
		l := e.limit.baseLimit()
		evt.Limit = &l
	}
	evt.Name, evt.Scope = e.name.String(), classOfScope(&e.name)
	return evt
}

const (
	// traceQueue bounds the number of events that wait. As many again may be in delivery.
	traceQueue = 1 << 16
	// traceFlush is how long a line may be buffered before it is written to the file.
	traceFlush = time.Second
)

// tracer delivers events. A nil *tracer has no reporter and no file: the engine checks
// for nil before it makes an event.
type tracer struct {
	limits    Limiter                 // in the start event
	reporters []*guardedTraceReporter // for run alone
	file      *traceFile              // for run alone, or nil if there is none, or it failed
	max       int                     // traceQueue

	// The lock comes after all others (I8) and is only ever held for a moment.
	mu struct {
		sync.Mutex
		queue   []traceEvent
		dropped int64 // since the queue was last taken
		closed  bool

		pushed  int64 // events so far, with those that were dropped
		flushed int64 // how many of pushed have been delivered and written
		// asked is closed when flushed has been brought up to date. It is nil if no
		// goroutine waits for that.
		asked chan struct{}
	}
	wake chan struct{} // the queue is no longer empty, or a flush waits
	stop chan struct{}
	done chan struct{} // run has ended

	delivered int64 // pushed when the queue was last taken; for run alone
}

// newTracer starts a tracer for a manager with these limits, and returns nil if there is
// neither a path nor a reporter. A file that cannot be opened is an error. The first
// event, start, is already in the queue.
func newTracer(path string, reporters []TraceReporter, limits Limiter) (*tracer, error) {
	if path == "" && len(reporters) == 0 {
		return nil, nil
	}
	var file *traceFile
	if path != "" {
		out, err := os.Create(path)
		if err != nil {
			return nil, fmt.Errorf("trace: %w", err)
		}
		file = newTraceFile(out, limits)
	}
	return startTracer(file, reporters, limits), nil
}

func startTracer(file *traceFile, reporters []TraceReporter, limits Limiter) *tracer {
	t := &tracer{
		limits:    limits,
		reporters: guardedTraceReporters(reporters),
		file:      file,
		max:       traceQueue,
		wake:      make(chan struct{}, 1),
		stop:      make(chan struct{}),
		done:      make(chan struct{}),
	}
	t.push(traceEvent{typ: TraceStartEvt})
	go t.run()
	return t
}

// push appends an event to the queue, or drops and counts it. It never waits for a
// delivery, and may be called under any lock. Events pushed under one lock keep their
// order.
func (t *tracer) push(e traceEvent) {
	e.at = time.Now().UnixNano()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return
	}
	t.mu.pushed++
	switch n := len(t.mu.queue); {
	case n >= t.max:
		t.mu.dropped++
		return
	case n == 0:
		t.wakeUp()
	}
	if n := len(t.mu.queue); n == cap(t.mu.queue) {
		// Double it, because append alone adds a quarter at a time and copies often.
		t.mu.queue = slices.Grow(t.mu.queue, max(64, n))
	}
	t.mu.queue = append(t.mu.queue, e)
}

// wakeUp makes run look at the queue, now or after its current deliveries.
func (t *tracer) wakeUp() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// traceDelta is what a request asks for.
type traceDelta struct {
	amounts
	priority uint8 // of the memory
}

// created pushes that a scope with this limit was made.
func (t *tracer) created(name scopeName, limit amounts) {
	t.push(traceEvent{typ: TraceCreateScopeEvt, name: name, limit: &limit})
}

// destroyed pushes that a scope was destroyed.
func (t *tracer) destroyed(name scopeName) {
	t.push(traceEvent{typ: TraceDestroyScopeEvt, name: name})
}

// granted pushes that a scope admitted a request and now holds use: one event each for
// memory, streams and connections, if the request has any of them.
func (t *tracer) granted(name scopeName, r *traceDelta, use *amounts) {
	delta := r.amounts
	t.changed(TraceReserveMemoryEvt, name, &delta, use, r.priority)
	t.changed(TraceAddStreamEvt, name, &delta, use, 0)
	t.changed(TraceAddConnEvt, name, &delta, use, 0)
}

// returned pushes that a scope released what a request has, and now holds use.
func (t *tracer) returned(name scopeName, r *traceDelta, use *amounts) {
	delta := r.amounts
	for d := range delta {
		delta[d] = -delta[d]
	}
	t.changed(TraceReleaseMemoryEvt, name, &delta, use, 0)
	t.changed(TraceRemoveStreamEvt, name, &delta, use, 0)
	t.changed(TraceRemoveConnEvt, name, &delta, use, 0)
}

// blocked pushes that a scope, which holds use, refused a request because of one
// dimension.
func (t *tracer) blocked(name scopeName, r *traceDelta, d dim, use *amounts) {
	delta := r.amounts
	switch resourceOf[d] {
	case ResourceMemory:
		t.changed(TraceBlockReserveMemoryEvt, name, &delta, use, r.priority)
	case ResourceStream:
		t.changed(TraceBlockAddStreamEvt, name, &delta, use, 0)
	default:
		t.changed(TraceBlockAddConnEvt, name, &delta, use, 0)
	}
}

// changed pushes an event of this type with the part of a change that the type is about,
// unless that part is zero.
func (t *tracer) changed(typ TraceEvtTyp, name scopeName, delta, use *amounts, priority uint8) {
	e := traceEvent{typ: typ, name: name, priority: priority}
	switch typ {
	case TraceReserveMemoryEvt, TraceReleaseMemoryEvt, TraceBlockReserveMemoryEvt:
		e.delta, e.memory = delta[dimMemory], use[dimMemory]
	case TraceAddStreamEvt, TraceRemoveStreamEvt, TraceBlockAddStreamEvt:
		e.deltaIn, e.deltaOut = delta[dimStreamsIn], delta[dimStreamsOut]
		e.streamsIn, e.streamsOut = use[dimStreamsIn], use[dimStreamsOut]
	default:
		e.deltaIn, e.deltaOut, e.delta = delta[dimConnsIn], delta[dimConnsOut], delta[dimFD]
		e.connsIn, e.connsOut, e.fd = use[dimConnsIn], use[dimConnsOut], use[dimFD]
	}
	if e.delta|e.deltaIn|e.deltaOut != 0 {
		t.push(e)
	}
}

// run delivers events until close.
func (t *tracer) run() {
	// These are deferred because a reporter may end the goroutine (runtime.Goexit). After
	// that nothing is delivered, and nothing may be queued.
	defer close(t.done)
	defer func() {
		t.mu.Lock()
		t.mu.closed, t.mu.queue = true, nil
		t.mu.Unlock()
		t.file.close()
	}()
	flush := time.NewTimer(0)
	flush.Stop()
	defer flush.Stop()
	var spare []traceEvent
	for waiting := false; ; {
		stopped := false
		select {
		case <-t.wake:
		case <-flush.C:
			waiting = false
			t.flushFile()
			continue
		case <-t.stop:
			stopped = true
		}
		spare = t.deliver(spare)
		if flushed := t.answer(stopped); stopped {
			return
		} else if !flushed && !waiting && t.file != nil {
			waiting = true
			flush.Reset(traceFlush)
		}
	}
}

// answer writes the file if a goroutine waits in flush, and lets it go on. At the end it
// writes the file in any case. It reports whether the file was written.
func (t *tracer) answer(end bool) bool {
	t.mu.Lock()
	asked := t.mu.asked
	t.mu.Unlock()
	if asked == nil && !end {
		return false
	}
	t.flushFile()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.flushed = t.delivered
	if asked != nil {
		close(asked)
		t.mu.asked = nil
	}
	return true
}

// deliver delivers the queued events, and puts spare in place of the queue.
func (t *tracer) deliver(spare []traceEvent) []traceEvent {
	t.mu.Lock()
	batch, dropped := t.mu.queue, t.mu.dropped
	t.mu.queue, t.mu.dropped = spare, 0
	t.delivered = t.mu.pushed
	t.mu.Unlock()
	for i := range batch {
		t.deliverOne(&batch[i])
	}
	if dropped > 0 {
		// The queue was full from the last event of the batch until now.
		t.deliverOne(&traceEvent{typ: TraceDroppedEvt, at: time.Now().UnixNano(), delta: dropped})
	}
	clear(batch) // the batch refers to names and spans
	return batch[:0]
}

func (t *tracer) deliverOne(e *traceEvent) {
	if len(t.reporters) > 0 {
		evt := t.export(e)
		for _, r := range t.reporters {
			r.call(func() { r.reporter.ConsumeEvent(evt) })
		}
	}
	if t.file != nil {
		t.keepFile(t.file.write(e))
	}
}

func (t *tracer) flushFile() {
	if t.file != nil {
		t.keepFile(t.file.flush())
	}
}

// keepFile closes and drops a file that cannot be written. Its events are lost; tracing
// to reporters goes on.
func (t *tracer) keepFile(err error) {
	if err != nil {
		log.Error("the resource manager's trace file cannot be written, tracing into it ends", "err", err)
		_ = t.file.out.Close() // its fault has been logged
		t.file = nil
	}
}

// guardedTraceReporter is a reporter that receives no more events after it has panicked.
type guardedTraceReporter struct {
	reporter TraceReporter
	guard
}

func guardedTraceReporters(reporters []TraceReporter) (all []*guardedTraceReporter) {
	for _, r := range reporters {
		all = append(all, &guardedTraceReporter{reporter: r, guard: guard{callback: callbackOf("WithTraceReporter", r)}})
	}
	return all
}

func (t *tracer) flush(ctx context.Context) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for all := t.mu.pushed; t.mu.flushed < all; {
		if t.mu.asked == nil {
			t.mu.asked = make(chan struct{})
		}
		asked, ended := t.mu.asked, false
		t.wakeUp()
		t.mu.Unlock()
		select {
		case <-asked:
		case <-t.done:
			ended = true
		case <-ctx.Done():
		}
		t.mu.Lock()
		switch {
		case t.mu.flushed >= all:
		case ended:
			return errTraceEnded
		case ctx.Err() != nil:
			return fmt.Errorf("rcmgr: the trace is not flushed: %w", ctx.Err())
		}
	}
	return nil
}

var errTraceEnded = errors.New("rcmgr: the trace is not flushed: a TraceReporter has ended the goroutine that delivers events")

// close delivers everything that has been pushed, and ends the tracer. Events that are
// pushed later are lost. Further calls wait for the first one.
func (t *tracer) close() {
	if t == nil {
		return
	}
	t.mu.Lock()
	first := !t.mu.closed
	t.mu.closed = true
	t.mu.Unlock()
	if first {
		close(t.stop)
	}
	<-t.done
}

// StatsTraceReporter asks for metrics. Programs that were written for go-libp2p's manager pass
// it to WithTraceReporter. Metrics are read from the manager at each scrape
// (MustRegisterWith) and not gathered from events, so it does not turn tracing on. Passed
// by value or by pointer, it overrides WithMetricsDisabled. The zero value is ready to
// use.
type StatsTraceReporter struct{}

var _ TraceReporter = StatsTraceReporter{}

// NewStatsTraceReporter returns a StatsTraceReporter. The error is always nil.
func NewStatsTraceReporter() (StatsTraceReporter, error) { return StatsTraceReporter{}, nil }

// ConsumeEvent does nothing, because metrics are read at each scrape.
func (StatsTraceReporter) ConsumeEvent(TraceEvt) {}

// ReportSystemLimits does nothing, because the limits in force are read at each scrape.
func (StatsTraceReporter) ReportSystemLimits(Limiter) {}
