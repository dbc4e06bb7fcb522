package rcmgr

// The memory of the whole process as an input. Reservations are only what callers asked
// for; the process uses more than that. When its use comes near its limit, new inbound
// connections and streams of strangers are refused, and what is open goes on, until use
// has clearly fallen again. With WithRoom, connections are let go before and meanwhile.
//
// A worker reads the memory. A caller that opens something reads one word, and
// reservations do not depend on it.

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// MemoryPressureConfig says when WithMemoryPressure refuses. With its zero value it
// refuses above 90 % of the memory that this process may use, until less than 80 % is in
// use.
type MemoryPressureConfig struct {
	// Limit is how many bytes this process may have in use. 0 means what ThisMachine
	// finds: the least of the host's memory, the control group's and GOMEMLIMIT.
	Limit int64
	// RefuseAbove is the fraction of Limit in use above which strangers are refused. 0
	// means 0.9.
	RefuseAbove float64
	// AdmitBelow is the fraction of Limit below which they are admitted again. It is less
	// than RefuseAbove, so that the decision does not change at every small change of
	// use. 0 means eight ninths of RefuseAbove.
	AdmitBelow float64
	// Every is the time between two readings. 0 means 100 ms.
	Every time.Duration
	// InUse returns the bytes in use. Set it if the process uses much memory that is not
	// the Go runtime's, such as that of C libraries or mapped files. It is called by one
	// goroutine at a time, without locks. If it is nil, the runtime's own numbers count:
	// objects that the last garbage collection left alive, stacks, and the runtime's own
	// data. Objects that have become garbage since are counted only if the runtime would
	// let the heap grow past Limit before it collects them, which GOMEMLIMIT prevents. If
	// InUse panics, that is logged, and the runtime's numbers count from then on.
	InUse func() int64
}

// logged returns the limit for a log, or "off" if p is nil.
func (p *MemoryPressureConfig) logged() any {
	if p == nil {
		return "off"
	}
	return loggedAmount{dimMemory, p.Limit}
}

// check fills in the defaults, and returns an error for other values that are invalid.
func (p *MemoryPressureConfig) check() error {
	switch {
	case p.Limit < 0:
		return fmt.Errorf("a Limit of %d is less than 0", p.Limit)
	case p.Every < 0:
		return fmt.Errorf("an Every of %v is less than 0", p.Every)
	}
	if p.RefuseAbove == 0 {
		p.RefuseAbove = 0.9
	}
	if p.AdmitBelow == 0 {
		p.AdmitBelow = p.RefuseAbove * 8 / 9
	}
	if !(0 < p.RefuseAbove && p.RefuseAbove <= 1) {
		return fmt.Errorf("RefuseAbove is %v, expected a share above 0, and at most 1", p.RefuseAbove)
	}
	if !(0 < p.AdmitBelow && p.AdmitBelow < p.RefuseAbove) {
		return fmt.Errorf("AdmitBelow is %v, expected a share above 0, and below RefuseAbove, which is %v", p.AdmitBelow, p.RefuseAbove)
	}
	if p.Every == 0 {
		p.Every = 100 * time.Millisecond
	}
	if p.Limit == 0 {
		m := ThisMachine()
		if m.MemoryFrom == "unknown" {
			return errors.New("what this process may use is not known: Limit must be set")
		}
		p.Limit = m.Memory
	}
	if p.InUse == nil {
		p.InUse = runtimeMemory(p.Limit)
	}
	return nil
}

// ProcessMemory is the memory of the process as WithMemoryPressure sees it, in bytes.
type ProcessMemory struct {
	InUse       int64 // when it was last read
	Limit       int64
	RefuseAbove int64
	AdmitBelow  int64
	// Refusing reports whether inbound connections and streams of strangers are refused.
	Refusing bool
	// Times is how often refusing has begun.
	Times uint64
}

// pressure watches the memory for one manager. A nil *pressure never refuses.
type pressure struct {
	scope           scopeName
	every           time.Duration
	read            func() int64 // guarded by reading
	reading         guard
	runtime         func() int64 // the bytes in use once read has failed
	limit           int64
	refuse, readmit int64
	inUse           atomic.Int64
	refusing        atomic.Bool // all that opening a connection or stream reads
	times           atomic.Uint64
	freeing         *freeing // nil without WithRoom
}

// freeing is how WithRoom keeps the memory of the process free. Nothing shows which connections
// hold memory that nobody has reserved, so each connection and stream is taken to hold the same
// part of it, and no more go before it is known what those that have gone held.
//
// Making room only reads the last reading, and has the next one begun, because a program's
// function that reads the memory may take long.
type freeing struct {
	alarm  *alarm
	look   chan struct{} // a message has a look begin before it is due, unless one goes on
	asked  atomic.Uint32 // 1 if room has to be made
	before atomic.Int64  // the memory in use when the last connections were let go
	went   atomic.Int64  // what they are taken to have held; 0 once that is known
	gone   atomic.Bool   // they have gone, and the next look is to find out what they held
	next   atomic.Int64  // when garbage may be collected again: nanoseconds since 1970
	each   int64         // what each connection and stream is taken to hold; of the pass that goes on

	// These are of the look that goes on.
	now   func() time.Time
	short bool      // too much is in use, or has been, and not enough has become free yet
	vain  int       // how often in a row too little has become free
	until time.Time // nothing is let go before
}

const (
	// If less than 1/leastFreed of what connections are taken to hold becomes free when they have
	// gone, the memory was not theirs.
	leastFreed = 4
	// After that has happened twice in a row, nothing is let go for firstPause, and after each
	// further time for twice as long, up to longestPause.
	firstPause   = time.Second
	longestPause = time.Minute
)

func newPressure(p *MemoryPressureConfig) *pressure {
	if p == nil {
		return nil
	}
	of := func(share float64) int64 { return int64(min(share*float64(p.Limit), math.MaxInt64/2)) }
	w := &pressure{
		scope: scopeName{kind: KindProcess}, every: p.Every, limit: p.Limit, refuse: of(p.RefuseAbove), readmit: of(p.AdmitBelow),
		read: p.InUse, runtime: runtimeMemory(p.Limit),
		reading: guard{callback: "MemoryPressure.InUse", then: "what the Go runtime has in use counts in its place"},
	}
	w.look()
	return w
}

// look reads the memory and decides. It is called by one goroutine at a time.
func (p *pressure) look() {
	gone := p.freeing != nil && p.freeing.gone.Load()
	if gone {
		p.freeing.collect()
	}
	var n int64
	if !p.reading.call(func() { n = p.read() }) {
		n = p.runtime()
	}
	p.inUse.Store(n)
	bytes := func(n int64) loggedAmount { return loggedAmount{dimMemory, n} }
	switch was := p.refusing.Load(); {
	case !was && n > p.refuse:
		p.times.Add(1)
		p.refusing.Store(true)
		log.Warn("too much memory is in use: inbound connections and streams of strangers are refused",
			"in_use", bytes(n), "refuse_above", bytes(p.refuse), "admit_below", bytes(p.readmit), "limit", bytes(p.limit))
	case was && n < p.readmit:
		p.refusing.Store(false)
		log.Info("enough memory is free again: inbound connections and streams are admitted",
			"in_use", bytes(n), "admit_below", bytes(p.readmit))
	}
	if p.freeing != nil {
		p.freeing.decide(p, n, gone)
	}
}

// shortAbove returns the bytes in use above which WithRoom lets connections go.
func (p *pressure) shortAbove() int64 { return p.readmit + (p.refuse-p.readmit)/2 }

// enoughBelow returns the bytes in use below which it stops, if strangers are admitted. It is not
// as low as what each choice aims at, or else newcomers could put that off for ever, by a few bytes.
func (p *pressure) enoughBelow() int64 { return p.readmit + (p.refuse-p.readmit)/8 }

// collect collects garbage, or else what closed connections held counts as in use still.
func (f *freeing) collect() {
	began := time.Now()
	runtime.GC()
	f.next.Store(f.now().Add(roomShare * time.Since(began)).UnixNano())
}

// decide asks for room if that is needed with n bytes in use. gone reports whether all that was let
// go has gone.
func (f *freeing) decide(p *pressure, n int64, gone bool) {
	if gone {
		freed, held := f.before.Load()-n, f.went.Swap(0)
		f.gone.Store(false)
		if f.vain++; freed >= held/leastFreed {
			f.vain = 0
		}
		if f.vain > 1 { // newcomers may have taken the memory once
			pause := min(firstPause<<min(f.vain-2, 16), longestPause)
			f.until = f.now().Add(pause)
			log.Warn("letting connections go has freed too little of the memory of the process: none go for a time",
				"freed", loggedAmount{dimMemory, freed}, "for", pause)
		}
	}
	switch {
	case n > p.shortAbove():
		f.short = true
	case n < p.enoughBelow() && !p.refusing.Load():
		f.short = false
	}
	if f.short && !f.now().Before(f.until) {
		f.alarm.report(&f.asked, 1)
	}
}

// refuses reports whether strangers' connections or streams in a direction are refused
// now.
func (p *pressure) refuses(d dim) bool {
	return p != nil && (d == dimConnsIn || d == dimStreamsIn) && p.refusing.Load()
}

func (p *pressure) state() (s ProcessMemory) {
	if p == nil {
		return s
	}
	return ProcessMemory{InUse: p.inUse.Load(), Limit: p.limit, RefuseAbove: p.refuse, AdmitBelow: p.readmit,
		Refusing: p.refusing.Load(), Times: p.times.Load()}
}

// runtimeMemory returns a function that returns the runtime's bytes in use, for a process
// that may use limit bytes.
func runtimeMemory(limit int64) func() int64 {
	names := [...]string{
		"/gc/heap/live:bytes",
		"/memory/classes/heap/objects:bytes",
		"/gc/heap/goal:bytes",
		"/memory/classes/total:bytes",
		"/memory/classes/heap/released:bytes",
		"/memory/classes/heap/free:bytes",
		"/memory/classes/heap/unused:bytes",
	}
	samples := make([]metrics.Sample, len(names))
	for i, name := range names {
		samples[i].Name = name
	}
	return func() int64 {
		metrics.Read(samples)
		var v [len(names)]int64
		for i, s := range samples {
			if s.Value.Kind() == metrics.KindUint64 { // or else this runtime does not have it
				v[i] = capBytes(s.Value.Uint64())
			}
		}
		live, objects, goal := v[0], v[1], v[2]
		return heapInUse(live, objects, goal, v[3]-v[4]-v[5]-v[6]-objects, limit)
	}
}

// heapInUse returns how many bytes count as in use. live is the bytes of objects that the
// last collection left alive, objects is those and the bytes allocated since, goal is how
// many bytes of objects there may be before the next collection, and other is all memory
// besides objects.
func heapInUse(live, objects, goal, other, limit int64) int64 {
	if goal <= limit-other {
		return live + other // garbage is collected before it reaches the limit
	}
	return objects + other
}
