package rcmgr

// The counts of refusals: by kind and dimension, by cause, and by the name that stands out
// among the refused.

import "github.com/weir-p2p/rcmgr/internal/vote"

// rationCounts counts the refusals of requests that would have fit the limit itself.
type rationCounts struct {
	crowded dimCounts                    // CauseCrowding, which only transient has
	fair    [KindTransient + 1]dimCounts // CauseFairShare
}

func (c *rationCounts) count(why *refusal) {
	switch why.cause {
	case CauseCrowding:
		c.crowded[why.d]++
	case CauseFairShare:
		c.fair[why.scope.kind][why.d]++
	}
}

func (c *rationCounts) add(o *rationCounts) {
	c.crowded.add(&o.crowded)
	for k := range c.fair {
		c.fair[k].add(&o.fair[k])
	}
}

// majority is the name that has more than half of all votes, if there is one.
type majority = vote.Majority[scopeName]

// remark is what the log says about the refusals of one kind and limit, besides their count.
type remark struct {
	told           bool  // there was a refusal
	current, limit int64 // of the last refusal
	cause          Cause // of the last refusal
	worst          majority
}

// add adds the remark of another stripe.
func (r *remark) add(o *remark) {
	if !o.told {
		return
	}
	r.told = true
	r.current, r.limit, r.cause = o.current, o.limit, o.cause
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
type refusalLog struct{ refused, would [numKinds]dimCounts }

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
	r.told = true
	r.current, r.limit, r.cause = why.current, why.limit, why.cause
	r.worst.Add(concerned, times)
}
