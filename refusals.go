package rcmgr

// The counts of refusals: by kind and dimension, by cause, and by the name that stands out
// among the refused. The name that holds most of what is full.

import (
	"sync"
	"time"

	"github.com/weir-p2p/rcmgr/internal/vote"
)

// rationCounts counts the refusals of requests that would have fit the limit itself.
type rationCounts struct {
	crowded dimCounts                    // CauseCrowding, which only transient has
	fair    [KindTransient + 1]dimCounts // CauseFairShare
	rate    *rateCounts                  // CauseRate; nil until a rate of a scope has refused
	marked  *markedCounts                // CauseEarmark; nil until an earmark has refused
}

// markedCounts counts the refusals for the sake of earmarks, by kind.
type markedCounts [KindTransient + 1]dimCounts

// of returns the counts of one kind of scopes or gates.
func (c *markedCounts) of(k Kind) (n dimCounts) {
	if c != nil && k <= KindTransient {
		n = c[k]
	}
	return n
}

// makeMarked returns the counts of earmarks, and makes them if there are none.
func (c *rationCounts) makeMarked() *markedCounts {
	if c.marked == nil {
		c.marked = new(markedCounts)
	}
	return c.marked
}

// rateCounts counts the refusals by rates of scopes, by their kind.
type rateCounts [KindPeer + 1]dimCounts

// of returns the counts of one kind of scopes or gates.
func (c *rateCounts) of(k Kind) (n dimCounts) {
	if c != nil && k <= KindPeer {
		n = c[k]
	}
	return n
}

// makeRate returns the counts of rates, and makes them if there are none.
func (c *rationCounts) makeRate() *rateCounts {
	if c.rate == nil {
		c.rate = new(rateCounts)
	}
	return c.rate
}

func (c *rationCounts) count(why *refusal) {
	switch why.cause {
	case CauseCrowding:
		c.crowded[why.d]++
	case CauseFairShare:
		c.fair[why.scope.kind][why.d]++
	case CauseRate:
		c.makeRate()[why.scope.kind][why.d]++
	case CauseEarmark:
		c.makeMarked()[why.scope.kind][why.d]++
	}
}

func (c *rationCounts) add(o *rationCounts) {
	c.crowded.add(&o.crowded)
	for k := range c.fair {
		c.fair[k].add(&o.fair[k])
	}
	if o.marked != nil {
		own := c.makeMarked()
		for k := range own {
			own[k].add(&o.marked[k])
		}
	}
	if o.rate != nil {
		own := c.makeRate()
		for k := range own {
			own[k].add(&o.rate[k])
		}
	}
}

// majority is the name that has more than half of all votes, if there is one.
type majority = vote.Majority[scopeName]

// remark is what the log says about the refusals of one kind and limit, besides their count.
type remark struct {
	told           bool   // there was a refusal
	current, limit int64  // of the refusal at which most was held
	cause          Cause  // of that refusal
	causes         uint16 // of all refusals: the bit 1<<c for a Cause c
	worst          majority
}

// add adds the remark of another stripe.
func (r *remark) add(o *remark) {
	if !o.told {
		return
	}
	r.numbers(o.current, o.limit, o.cause)
	r.causes |= o.causes
	r.worst.Add(o.worst.Name, o.worst.Votes)
}

// remarks are the remarks on one kind, by dimension.
type remarks [numDims]remark

// add adds the remarks of another stripe, which may be nil.
func (r *remarks) add(o *remarks) {
	if o != nil {
		for d := range o {
			r[d].add(&o[d])
		}
	}
}

// unloggedRefusals is what the next lines of the log are made from: all refusals since the
// manager was made, and the remarks since the last lines.
type unloggedRefusals struct {
	counts [numKinds]dimCounts
	said   [numKinds]remarks
}

// refusalLog has the counts that have been logged already: of refusals, and of requests that
// observed limits would have refused.
// Each is nil until there are some: most managers that are idle have refused nothing.
type refusalLog struct{ refused, would *[numKinds]dimCounts }

// take adds the counts and the remarks of a stripe, and removes the remarks from it.
func (s *unloggedRefusals) take(counts *[numKinds]dimCounts, said *[numKinds]*remarks) {
	for k, of := range said {
		s.counts[k].add(&counts[k])
		s.said[k].add(of)
		said[k] = nil
	}
}

// Refusals counts refused requests by the limit that refused them. The counts only grow.
type Refusals struct {
	Streams         uint64 `json:",omitempty"`
	StreamsInbound  uint64 `json:",omitempty"`
	StreamsOutbound uint64 `json:",omitempty"`
	Conns           uint64 `json:",omitempty"`
	ConnsInbound    uint64 `json:",omitempty"`
	ConnsOutbound   uint64 `json:",omitempty"`
	FD              uint64 `json:",omitempty"`
	Memory          uint64 `json:",omitempty"`
}

// Total returns the number of all refusals.
func (r Refusals) Total() uint64 {
	n := uint64(0)
	for _, of := range r.dimCounts() {
		n += of
	}
	return n
}

func (c *dimCounts) refusals() Refusals {
	return Refusals(quantitiesOf(func(d dim) uint64 { return c[d] }, c[dimMemory]))
}

// dimCounts is the inverse of dimCounts.refusals.
func (r *Refusals) dimCounts() dimCounts { return byDim(quantities[uint64, uint64](*r)) }

// note notes a refusal that happened a number of times, and the name that it concerned.
func (r *remark) note(why *refusal, concerned scopeName, times uint64) {
	r.numbers(why.used(), why.limit, why.cause)
	r.causes |= 1 << (why.cause & 15)
	r.worst.Add(concerned, times)
}

// numbers keeps the numbers of a refusal. A scope may refuse while it holds less than its limit,
// for the sake of others, and a little later be full. So those numbers are kept at which most was
// held.
func (r *remark) numbers(current, limit int64, cause Cause) {
	if !r.told || current >= r.current {
		r.told, r.current, r.limit, r.cause = true, current, limit, cause
	}
}

// limitOf names a limit: that of a dimension of a scope that all peers share.
type limitOf struct {
	kind Kind
	name string // of the service or protocol
	d    dim
}

// hasLargest reports whether it is known what each peer or subnet holds of a limit.
func (l limitOf) hasLargest() bool {
	switch l.kind {
	case KindSystem, KindTransient:
		return true
	case KindService, KindProtocol:
		return l.name != "" && l.kind.canRunOutOf(l.d)
	}
	return false
}

// largest is the peer or subnet that holds most of a limit, and what it holds. Its name is
// empty if none is known to hold any.
type largest struct {
	name scopeName
	held int64
}

// isWorthNaming reports whether it holds a tenth of what is held or more.
func (l *largest) isWorthNaming(use int64) bool { return isWorthNaming(l.held, use) }

// recentLargest keeps what Explain has found, so that frequent questions do not make it look at
// all peers each time.
type recentLargest struct {
	mu    sync.Mutex
	at    time.Time
	found map[limitOf]largest
}

// largestFor is how long an answer is good enough for the next question.
const largestFor = time.Second

// largestKept bounds the limits in a recentLargest.
const largestKept = 64

// of returns the peer or subnet that holds most of a limit, as find returns it now or has
// returned it within the last second.
func (r *recentLargest) of(l limitOf, find func([]limitOf) []largest) largest {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.found == nil || now.Sub(r.at) >= largestFor || len(r.found) >= largestKept {
		r.at, r.found = now, make(map[limitOf]largest)
	}
	who, ok := r.found[l]
	if !ok {
		who = find([]limitOf{l})[0]
		r.found[l] = who
	}
	return who
}
