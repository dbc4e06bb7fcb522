package rcmgr

// The engine decides: it has the stripes, the scopes that all peers share, and everything
// else that a decision reads. A Manager is an engine with a door for the host and with
// views on what it does; the engine knows neither.

import (
	"encoding/binary"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// engine is the part of a Manager that decides and accounts.
type engine struct {
	seed      maphash.Seed
	secret    ip.Hash // chooses the stripes of peers, and their places there
	stripes   []stripe
	idleConns sync.Pool // of *holder: they wait for the next connections; see lockIdle
	dir       directory
	drawing   drawingLock
	members   memberHistory // the most that any one member has held
	fixed     [KindAllowlistedTransient + 1]*pool
	limits    atomic.Pointer[limitBook] // in force; see setlimits.go
	classes   classLimits               // in force
	admission Admission
	newcomers bool
	noting    bool // refusals are logged, so remarks on them are kept
	// sharesMemory is set if a part of the system's memory may be kept from a peer.
	sharesMemory bool
	fair         *fairShare // nil: no scope has shares
	alarm        *alarm     // nil: no room is made
	allowlist    *Allowlist
	observed     observedKinds        // the kinds whose limits refuse nothing
	gates        atomic.Pointer[gate] // in force; see gateswap.go
	earmarks     *earmarks            // nil: nothing is earmarked
	trace        *tracer              // nil: nothing is traced
	reporter     MetricsReporter      // nil: decisions are not reported
	leaks        *leakFinder          // nil: no records of what is open
	pressure     *pressure            // nil: the process's memory does not matter

	tokens     tokens
	lastID     atomic.Int64
	callerBugs atomic.Uint64
	// setByHand has, by kind, a dimSet of the dimensions in which a limit of SetLimit may refuse
	// a request, or might have before it was taken back.
	// The bits above are the same for its rates; see rateBits.
	setByHand [numKinds]atomic.Uint32
	bugLog    rate.Sometimes // I6: one line for a burst of bugs
	bugsTo    *slog.Logger   // as of New: the runtime may find a leak when all else has ended
	ended     atomic.Bool    // Close has begun
}

// grip is the set of stripe locks that a decision holds. Under the lock of one stripe, what
// a shared scope holds is known within bounds. Under all of them it is known exactly, and
// every decision is final.
type grip uint8

const (
	oneStripe grip = iota
	allStripes
)

// decide calls try until it admits or refuses, or fails. try takes the locks of the grip that
// it is given, and releases them. If it returns undecided, it is called again with all locks.
// If it returns unknown, a limit is missing that the book in force does not have itself:
// decide fetches it without a lock and calls try again with what was fetched. try uses that
// only while the same book is in force.
func decide[T any](e *engine, fetch func(*limitBook) (fetched[T], error), try func(grip, fetched[T]) (verdict, error)) error {
	var f fetched[T]
	for g := oneStripe; ; {
		v, err := try(g, f)
		switch v {
		case undecided:
			g = allStripes
		case unknown:
			if f, err = fetch(e.limits.Load()); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// nothing is the fetch for a decision that needs no limit from a Limiter.
func nothing(*limitBook) (f fetched[struct{}], err error) { return f, nil }

// peerLimit returns the limit of a peer by the book in force, or nil if its Limiter has to
// be asked. A stripe's lock is held.
func (e *engine) peerLimit(p peer.ID, f fetched[*amounts]) *amounts {
	b := e.limits.Load()
	switch {
	case b.own == nil && f.by == b:
		return f.limits
	case b.own == nil:
		return nil
	}
	if l := b.kinds[KindPeer].named[string(p)]; l != nil {
		return l
	}
	return &e.classes.peer
}

// streamLimit is peerLimit for a stream.
func (e *engine) streamLimit(f fetched[openingLimits]) *amounts {
	switch b := e.limits.Load(); {
	case b.own != nil:
		return &e.classes.stream
	case f.by == b:
		return f.limits.stream
	}
	return nil
}

// build makes the stripes and the four scopes that are always there, which are the first
// events of a trace.
func (e *engine) build() {
	e.tokens.began = time.Now()
	e.sharesMemory = e.fair.on(KindSystem) || e.earmarks != nil
	e.dir.mu.services = make(map[string]*pool)
	e.dir.mu.protocols = make(map[string]*pool)
	for i := range e.stripes {
		st := &e.stripes[i]
		st.engine, st.index, st.trace = e, i, e.trace
		st.wholeFrom = e.admission.wholeFrom()
	}
	e.setRated()
	for k := range e.fixed {
		e.fixed[k] = e.makePool(Kind(k), "", e.limits.Load().kinds[k].unnamed, amounts{})
		e.fixed[k].renewRates(e.limits.Load())
	}
	if e.trace != nil {
		e.stripes[0].wake()
	}
}

func (e *engine) makePool(kind Kind, name string, limit, pairLimit amounts) *pool {
	home := maphash.String(e.seed, name) & uint64(len(e.stripes)-1)
	p := &pool{engine: e, kind: kind, name: name, home: &e.stripes[home], pairLimit: pairLimit,
		shares: make([]*share, len(e.stripes))}
	p.setLimit(limit)
	return p
}

// newPool makes the scope of a service or protocol. It is not in the directory yet. The
// Limiter may be asked, so no lock may be held.
func (e *engine) newPool(kind Kind, name string) (*pool, error) {
	book := e.limits.Load()
	f, err := book.fetchShared(kind, name)
	if err != nil {
		return nil, err
	}
	limits, _ := book.sharedLimits(kind, name, f)
	p := e.makePool(kind, name, *limits.own, *limits.pair)
	p.by = book
	p.renewRates(book)
	return p, nil
}

// readLimit reads the limit of a call to SetLimit. An invalid one is a caller's bug.
func (e *engine) readLimit(scope *scopeName, limit Limit) (*amounts, bool) {
	if err := checkLimit(scope.String(), limit); err != nil {
		e.reportBug("an invalid limit was set", "scope", scope.String(), "err", err)
		return nil, false
	}
	a := limitsOf(limit)
	e.setByHand[scope.kind].Or(uint32(dimSetOf(func(d dim) bool { return scope.kind.mayRefuse(d, a[d]) })))
	return &a, true
}

// reportRelease reports that a scope was to release memory that was not reserved at it.
func (e *engine) reportRelease(scope scopeName, excess int64) {
	e.reportBug("memory was released that had not been reserved at the scope",
		"scope", scope.String(), "excess", loggedAmount{dimMemory, excess})
}

// reportBug counts a caller's bug, and logs it unless another one was logged shortly
// before. No lock is held.
func (e *engine) reportBug(msg string, args ...any) {
	n := e.callerBugs.Add(1)
	tell := false
	e.bugLog.Do(func() { tell = true }) // it holds a lock of its own, so the line is logged after it
	if tell {
		e.bugsTo.Warn("BUG of a caller: "+msg, append(args, "bugs", n)...)
	}
}

// stripeOf returns the stripe that a peer belongs to. A caller that puts something into it
// has to wake it.
func (e *engine) stripeOf(p peer.ID) *stripe { return e.stripeAt(e.hashOf(p)) }

// stripeAt returns the stripe of the peers that have a hash.
func (e *engine) stripeAt(hash uint64) *stripe {
	return &e.stripes[hash>>32&uint64(len(e.stripes)-1)]
}

// hashOf returns the hash of a peer. An ID ends with a key or the hash of one, which is enough to
// tell peers apart.
func (e *engine) hashOf(p peer.ID) uint64 {
	const enough = 16
	var end ip.Key
	if at := len(p) - enough; at >= 0 {
		end.Hi = binary.LittleEndian.Uint64([]byte(p[at:]))
		end.Lo = binary.LittleEndian.Uint64([]byte(p[at+enough/2:]))
	} else {
		end.Hi = maphash.String(e.seed, string(p)) // no ID of a peer is so short
	}
	return e.secret.Of(end)
}

// anyStripe returns a random stripe, ready for use, for what has no peer.
func (e *engine) anyStripe() *stripe {
	return e.stripes[rand.Uint64()&uint64(len(e.stripes)-1)].awake()
}

func (e *engine) lockAll() {
	for i := range e.stripes {
		e.stripes[i].mu.Lock()
	}
}

func (e *engine) unlockAll() {
	for i := range e.stripes {
		e.stripes[i].mu.Unlock()
	}
}

// inOneCut runs f under all stripe locks, so that everything that f sees belongs to one instant.
func (e *engine) inOneCut(f func()) {
	e.lockAll()
	defer e.unlockAll()
	f()
}

// gate returns the gates in force.
func (e *engine) gate() *gate { return e.gates.Load() }

// paces reports whether the gates limit how fast streams of a direction come from a subnet. d is
// their dimension.
func (e *engine) paces(d dim) bool { return e.gate().paces(d) }

// limitKey returns the place of the configuration that says how much of d a scope may hold,
// by a book and gates; see configKey.
func limitKey(b *limitBook, g *gate, k Kind, d dim, which *scopeName) string {
	place := placeOfAll
	switch k {
	case KindPeer:
		place = b.placeOfPeer(which.peer)
	case KindSubnet, KindRate:
		place = g.placeOfSubnet(which, d)
	}
	return configKey(k, d, which, place)
}
