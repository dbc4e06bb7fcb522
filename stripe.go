package rcmgr

// A stripe is a lock and everything under it. A peer belongs to one stripe, by
// a seeded hash of its ID, so that strangers cannot choose one. The peer's scope, its
// part of each protocol and service, its connections, its streams and all their
// spans live there, in plain integers.

import (
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/spread"
)

// maxStripes bounds the number of stripes: beyond it, taking all their locks
// costs more than another stripe saves.
const maxStripes = 256

// stripe is a lock and the accounts under it. awake makes the maps, the shares and what is in
// awakened when a stripe is first used, so that an idle host needs none. Code that reads all
// stripes must expect that they are nil.
//
// Two processors that use a stripe in turn pay for each cache line that either of them writes.
// So what every connection and stream writes is on one line, with the lock, and what they only
// read is on another. The allocator begins an array of stripes with a line or, if it puts a
// header there, 8 bytes later; a field at the border of two lines may be on either.
type stripe struct {
	mu            sync.Mutex
	nextID, endID int64 // numbers for connections and streams, taken in blocks
	// spare is the holder of the stream that was done last, for the next stream. It is nil if
	// that has come already.
	spare  *holder
	engine *engine
	trace  *tracer // nil: nothing is traced
	index  int

	// fixed holds the shares of the four scopes that are always there, by kind.
	fixed [KindAllowlistedTransient + 1]*share
	*awakened
	peers *peerTable
	// wholeFrom is the least priority that may fill all of a limit.
	wholeFrom uint8
	closed    bool // the manager is closed: nothing new is admitted
	// plain: there is no tracer, fair share, earmark or rate, and the manager is not closed. Then
	// the accounts alone decide, and nothing else has to be told.
	plain bool
	rated bool        // some limit has a rate, see tokens.go
	woken atomic.Bool // awake has made what is needed; read without the lock
	_     [16]byte
}

// awakened is what a stripe has besides what every connection and stream uses. What they read
// comes first.
type awakened struct {
	*spreads
	// The shares of services and protocols, by name.
	services, protocols map[string]*share
	most                memberPeaks // that any one member has held since the generation began

	// What the stripe notes and counts besides its accounts.

	workCounts
	*refusalCounts                    // nil until the stripe refuses a request
	remarks        [numKinds]*remarks // for the log
	// observed is nil until a limit that is only observed would have refused.
	observed *observations
	lastRefusal

	paced int64  // the latest time that was read for a rate
	blank []pair // that are not in use yet
	// queue holds the accounts that may have become unused, for reap.
	queue []*account
	// idle has more holders of streams that are done.
	idle []*holder
	// spans counts those that were begun at its peers, for their names. A muxer may begin one for
	// each stream, as yamux does, so a count for each peer would take memory for all of them.
	spans uint32
}

// spreads has the distributions that metrics read. Each costs an addition under a lock that is
// held anyway. It has no pointers, so the allocator lets it begin with a cache line.
type spreads struct {
	peerCounts             [4]spread.Spread // of connections and streams, by dim.oneWay
	peerMemory, connMemory spread.Spread
}

func newAwakened() *awakened {
	return &awakened{spreads: new(spreads), services: make(map[string]*share), protocols: make(map[string]*share)}
}

// engineCounts is what stripes count, and only grows.
type engineCounts struct {
	refusalCounts
	workCounts
}

func (c *engineCounts) add(o *engineCounts) {
	c.refusalCounts.add(&o.refusalCounts)
	c.workCounts.add(&o.workCounts)
}

// refusalCounts is what stripes count of refusals. It is large, and most stripes of most hosts
// never refuse.
type refusalCounts struct {
	refusals [numKinds]dimCounts
	// blocked is what was asked for and refused, by the kind of the scope or
	// gate that refused: numbers of streams, connections and file descriptors,
	// bytes of memory. The dimensions for both directions together have no meaning.
	blocked  [numKinds]amounts
	rationed rationCounts // of refusals that were not because of a limit itself
}

func (c *refusalCounts) add(o *refusalCounts) {
	for k := range numKinds {
		c.refusals[k].add(&o.refusals[k])
		c.blocked[k].addCapped(&o.blocked[k])
	}
	c.rationed.add(&o.rationed)
}

// workCounts is what stripes count of their work.
type workCounts struct {
	lateReleases uint64 // at scopes that are done
	draws        uint64 // credit drawn from pools
	returns      uint64 // credit returned to pools
	settled      uint64 // decisions under all stripe locks
}

func (c *workCounts) add(o *workCounts) {
	c.lateReleases += o.lateReleases
	c.draws += o.draws
	c.returns += o.returns
	c.settled += o.settled
}

// awake returns the stripe ready for use. No lock of a stripe is held.
func (st *stripe) awake() *stripe {
	if !st.woken.Load() {
		st.wake()
	}
	return st
}

// wake makes what the stripe needs, under its lock, if that is missing.
func (st *stripe) wake() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.awakened != nil {
		return
	}
	st.awakened = newAwakened()
	st.peers = newPeerTable(st.engine.hashOf)
	for _, p := range st.engine.fixed {
		st.addShare(p)
	}
	st.woken.Store(true)
}

// addCounts adds what the stripe has counted. Its lock is held.
func (st *stripe) addCounts(to *engineCounts) {
	if st.awakened == nil {
		return
	}
	to.workCounts.add(&st.workCounts)
	if st.refusalCounts != nil {
		to.refusalCounts.add(st.refusalCounts)
	}
}

func (st *stripe) named(k Kind) map[string]*share {
	if k == KindService {
		return st.services
	}
	return st.protocols
}

// idBlock is how many numbers a stripe takes at once.
const idBlock = 64

// newID returns the next number for a connection or stream.
func (st *stripe) newID() int64 {
	if st.nextID == st.endID {
		st.endID = st.engine.lastID.Add(idBlock)
		st.nextID = st.endID - idBlock
	}
	st.nextID++
	return st.nextID
}

func (st *stripe) lock()   { st.mu.Lock() }
func (st *stripe) unlock() { st.mu.Unlock() }

// lockAs takes the stripe's lock, or every stripe's, in order (I8).
func (st *stripe) lockAs(g grip) {
	if g == allStripes {
		st.engine.lockAll()
	} else {
		st.mu.Lock()
	}
}

func (st *stripe) unlockAs(g grip) {
	if g == allStripes {
		st.engine.unlockAll()
	} else {
		st.mu.Unlock()
	}
}

// firstLock takes the lock of a stripe for each attempt of a decision. If held is set, the lock
// is held already at the first.
type firstLock struct {
	st   *stripe
	held bool
}

func (l *firstLock) take(g grip) {
	if !l.held {
		l.st.lockAs(g)
	}
	l.held = false
}

// unref drops a reference and queues the account if nothing else holds it.
func (st *stripe) unref(a *account) {
	a.refs--
	st.enqueue(a)
}

// enqueue makes an unused account a candidate for collection.
func (st *stripe) enqueue(a *account) {
	if !a.queued && a.unused() {
		a.queued = true
		st.queue = append(st.queue, a)
	}
}

// find returns the scope of a peer whose ID has this hash, or nil if it has none. The stripe has
// been used.
func (st *stripe) find(hash uint64, p peer.ID) *peerScope { return st.peers.find(hash, p) }

// known is find for a caller that may look into a stripe which has not been used.
func (st *stripe) known(p peer.ID) *peerScope {
	if st.peers == nil {
		return nil
	}
	return st.find(st.engine.hashOf(p), p)
}

// numPeers returns the number of peers that have a scope. The stripe may be one that has not been
// used.
func (st *stripe) numPeers() int {
	if st.peers == nil {
		return 0
	}
	return st.peers.n
}

// allPeers calls yield with all peers until it returns false. The stripe's lock is held. The
// stripe may be one that has not been used.
func (st *stripe) allPeers(yield func(*peerScope) bool) {
	if st.peers != nil {
		st.peers.all(yield)
	}
}

// peer returns the scope of a peer, or nil if it has none and the Limiter has to be
// asked for its limit first. A caller that does not use the scope has to enqueue it.
func (st *stripe) peer(p peer.ID, f fetched[*amounts]) *peerScope {
	ps := st.known(p)
	if ps != nil {
		return ps
	}
	if limit := st.engine.peerLimit(p, f); limit != nil {
		ps = &peerScope{id: p, st: st}
		ps.account = account{kind: KindPeer, ps: ps, ready: limit}
		st.peers.add(ps)
		st.traceCreated(&ps.account)
	}
	return ps
}

// current returns the scope that a peer has now (I7). It is ps itself, or a newer one if ps
// was collected and the peer came back. If the peer has none, ps is brought back. It is nil
// if the Limiter has to be asked for the limit first.
func (st *stripe) current(ps *peerScope, f fetched[*amounts]) *peerScope {
	if !ps.gone {
		return ps
	}
	if other := st.known(ps.id); other != nil {
		return other
	}
	limit := st.engine.peerLimit(ps.id, f)
	if limit == nil {
		return nil
	}
	ps.ready = limit
	ps.gone = false
	st.peers.add(ps)
	st.enqueue(&ps.account)
	st.traceCreated(&ps.account)
	return ps
}

// shareOf returns the stripe's share of p or, if p was collected, of the pool that has its name
// now (I7). It makes the share, and puts p back into the directory, as needed. It returns nil
// if the Limiter has to be asked for the limits first.
func (st *stripe) shareOf(p *pool, f fetched[sharedLimits]) *share {
	if sh := p.shares[st.index]; sh != nil {
		return sh
	}
	if sh := st.named(p.kind)[p.name]; sh != nil {
		return sh
	}
	if p = st.engine.dir.join(p, f); p == nil {
		return nil
	}
	return st.addShare(p)
}

func (st *stripe) addShare(p *pool) *share {
	sh := &share{pool: p}
	sh.account = account{kind: p.kind, share: sh, ready: &sh.credit}
	p.shares[st.index] = sh
	if p.kind <= KindAllowlistedTransient {
		st.fixed[p.kind] = sh
	} else {
		st.named(p.kind)[p.name] = sh
		st.enqueue(&sh.account)
	}
	st.traceCreated(&sh.account)
	return sh
}

// shareNamed returns the share of a service or protocol. If no scope of that name is
// known, fresh becomes that scope. It returns nil if fresh is nil, or if the limits of
// fresh are no longer in force.
func (st *stripe) shareNamed(k Kind, name string, fresh *pool) *share {
	sh := st.named(k)[name]
	if sh == nil && fresh == nil {
		fresh = st.engine.dir.find(k, name)
	}
	if sh == nil && fresh != nil {
		sh = st.shareOf(fresh, fetched[sharedLimits]{})
	}
	return sh
}

// directory knows all services and protocols by name. Its lock comes after
// the stripes' and before the drawing lock (I8).
type directory struct {
	mu struct {
		sync.Mutex
		services, protocols map[string]*pool
	}
}

func (dir *directory) namedLocked(k Kind) map[string]*pool {
	if k == KindService {
		return dir.mu.services
	}
	return dir.mu.protocols
}

func (dir *directory) find(k Kind, name string) *pool {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	return dir.namedLocked(k)[name]
}

// join adds a member to the pool that bears the name of p, and returns that pool. If there is
// none, it is p itself, with the limits in force. It returns nil if the Limiter has to be
// asked for those first.
func (dir *directory) join(p *pool, f fetched[sharedLimits]) *pool {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	pools := dir.namedLocked(p.kind)
	if other := pools[p.name]; other != nil {
		p = other
	} else if book := p.engine.limits.Load(); p.by != book {
		limits, known := book.sharedLimits(p.kind, p.name, f)
		if !known {
			return nil
		}
		p.engine.drawing.Lock() // it has no shares, so no stripe draws, but limitWatch may be reading it
		p.renewLocked(book, limits)
		p.engine.drawing.Unlock()
	}
	pools[p.name] = p
	p.members++
	return p
}

// leave removes a member, and keeps the count of what it has refused. A pool without members
// is forgotten.
func (dir *directory) leave(sh *share) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	p := sh.pool
	p.denied.addOf(&sh.direct)
	if p.members--; p.members == 0 && !p.sticky {
		delete(dir.namedLocked(p.kind), p.name)
		p.fillBuckets() // it may come back
	}
}

// stick sets whether a pool keeps its limit and is not collected.
func (dir *directory) stick(p *pool, on bool) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	p.sticky = on
}

// sticks returns what stick has set.
func (dir *directory) sticks(p *pool) bool {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	return p.sticky
}

// renew puts the limits of a book in force for a pool. All stripe locks are held.
func (dir *directory) renew(p *pool, by *limitBook, limits sharedLimits) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	p.renewLocked(by, limits)
}

// renewRates puts the rates of a book in force for a pool. All stripe locks are held.
func (dir *directory) renewRates(p *pool, by *limitBook) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	p.renewRates(by)
}

// sizes returns how many services and protocols there are.
func (dir *directory) sizes() (services, protocols int) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	return len(dir.mu.services), len(dir.mu.protocols)
}

// each calls f with all services, and then with all protocols. The directory's lock is held
// meanwhile.
func (dir *directory) each(f func(*pool)) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	for _, p := range dir.mu.services {
		f(p)
	}
	for _, p := range dir.mu.protocols {
		f(p)
	}
}

// list returns all services, and then all protocols.
func (dir *directory) list() []*pool {
	services, protocols := dir.sizes()
	pools := make([]*pool, 0, services+protocols)
	dir.each(func(p *pool) { pools = append(pools, p) })
	return pools
}

// peersAtOnce bounds the peers that are looked at under one lock.
const peersAtOnce = 256

// eachPeer calls f with every peer that has a scope from beginning to end, and perhaps with
// others, under the stripe's lock, which it takes.
func (st *stripe) eachPeer(f func(*peerScope)) {
	st.peersInRows(func(row []*peerScope) {
		for _, ps := range row {
			f(ps)
		}
	})
}

// peersInRows is eachPeer with many peers at a time. It releases the lock in between. Peers lie
// far apart, so most of the time goes into waiting for memory. In a loop over a row that does
// little with each of them, the processor fetches several at a time.
func (st *stripe) peersInRows(f func([]*peerScope)) {
	row := make([]*peerScope, 0, peersAtOnce)
	st.lock()
	defer st.unlock()
	if st.peers == nil {
		return
	}
	for next := uint32(0); ; {
		row, next = st.peers.row(row[:0], next)
		f(row)
		if next == hashPrefixes {
			return
		}
		st.unlock()
		st.lock()
	}
}
