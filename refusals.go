package rcmgr

// Refusals as they are counted: by kind and dimension, by the rule that refused, and by
// who asked.

import "github.com/weir-p2p/rcmgr/internal/vote"

// rationCounts counts, among refusals, those of requests that the limit itself had room
// for.
type rationCounts struct {
	crowded dimCounts // CauseCrowding: streams, by transient
	fair    [KindTransient + 1]dimCounts
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

// remark is what the log says about refusals of one kind and limit.
type remark struct {
	told           bool
	current, limit int64 // of the last one
	cause          Cause
	worst          majority
}

// add takes in what another stripe has to say.
func (r *remark) add(o *remark) {
	if !o.told {
		return
	}
	r.told = true
	r.current, r.limit, r.cause = o.current, o.limit, o.cause
	r.worst.Add(o.worst.Name, o.worst.Votes)
}

// remarks has what the log says of one kind, by what ran out.
type remarks [numDims]remark

// add takes in what others, which may be nil, have to say.
func (r *remarks) add(o *remarks) {
	if o != nil {
		for d := range o {
			r[d].add(&o[d])
		}
	}
}

// unloggedRefusals is what the log has to say next: how much in all, and what of the last.
type unloggedRefusals struct {
	counts [numKinds]dimCounts
	said   [numKinds]remarks
}

// refusalLog is what the log has told already: of what was refused, and of what would have
// been.
type refusalLog struct{ refused, would [numKinds]dimCounts }

// take adds what has been counted, and takes over what was noted.
func (s *unloggedRefusals) take(counts *[numKinds]dimCounts, said *[numKinds]*remarks) {
	for k, of := range said {
		s.counts[k].add(&counts[k])
		s.said[k].add(of)
		said[k] = nil
	}
}

// Refusals counts requests that were refused, by the limit that stood in the
// way. The numbers only grow.
type Refusals struct {
	Memory          uint64 `json:",omitempty"`
	StreamsInbound  uint64 `json:",omitempty"`
	StreamsOutbound uint64 `json:",omitempty"`
	Streams         uint64 `json:",omitempty"`
	ConnsInbound    uint64 `json:",omitempty"`
	ConnsOutbound   uint64 `json:",omitempty"`
	Conns           uint64 `json:",omitempty"`
	FD              uint64 `json:",omitempty"`
}

// Total gives the number of all refusals.
func (r Refusals) Total() uint64 {
	return r.Memory + r.StreamsInbound + r.StreamsOutbound + r.Streams +
		r.ConnsInbound + r.ConnsOutbound + r.Conns + r.FD
}

func (c *dimCounts) refusals() Refusals {
	return Refusals{
		Memory:          c[dimMemory],
		StreamsInbound:  c[dimStreamsIn],
		StreamsOutbound: c[dimStreamsOut],
		Streams:         c[dimStreams],
		ConnsInbound:    c[dimConnsIn],
		ConnsOutbound:   c[dimConnsOut],
		Conns:           c[dimConns],
		FD:              c[dimFD],
	}
}

// dimCounts is the inverse of dimCounts.refusals.
func (r *Refusals) dimCounts() dimCounts {
	return dimCounts{
		dimMemory:     r.Memory,
		dimStreamsIn:  r.StreamsInbound,
		dimStreamsOut: r.StreamsOutbound,
		dimStreams:    r.Streams,
		dimConnsIn:    r.ConnsInbound,
		dimConnsOut:   r.ConnsOutbound,
		dimConns:      r.Conns,
		dimFD:         r.FD,
	}
}

// note notes a refusal that has happened a number of times.
func (r *remark) note(why *refusal, concerned scopeName, times uint64) {
	r.told = true
	r.current, r.limit, r.cause = why.current, why.limit, why.cause
	r.worst.Add(concerned, times)
}
