package subnets

// Refusals: counted, returned as errors, and noted for a log. If many refusals in a row are for
// one subnet, they share one error.

import (
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/vote"
)

// Gate is one of the two limits of a subnet.
type Gate uint8

const (
	Conns Gate = iota // on connections at a time
	Rate              // on how fast connections come: tokens of a bucket
	Gates             // the number of gates
)

// Way is the direction of a connection.
type Way uint8

const (
	Inbound Way = iota
	Outbound
	Ways // the number of directions
)

// Rule is the kind of limit that refused.
type Rule uint8

const (
	EverySubnet Rule = iota // the limit of every subnet of one size
	ThisNetwork             // the limit of one named network
	Elsewhere               // a limit outside this package: RefuseRate was called
)

// A Refusal has the subnet that refused a connection, and the limit that was reached.
type Refusal struct {
	Subnet netip.Prefix
	Gate   Gate
	Way    Way
	Rule   Rule
	Limit  int64 // the connections that the subnet may have, and has; 0 if Gate is Rate
}

// Counts has the numbers of refusals by gate and direction.
type Counts [Gates][Ways]uint64

// add adds the counts in o.
func (c *Counts) add(o *Counts) {
	for g := range c {
		for w := range c[g] {
			c[g][w] += o[g][w]
		}
	}
}

// A Note sums up, for a log, the refusals of one gate in one direction. The zero value is for no
// refusals.
type Note struct {
	Told  bool                        // there were refusals
	Limit int64                       // of the last refusal, see Refusal
	Worst vote.Majority[netip.Prefix] // the subnet with more than half of the refusals, if any
}

// add adds a number of refusals of one subnet.
func (n *Note) add(limit int64, of netip.Prefix, times uint64) {
	n.Told, n.Limit = true, limit
	n.Worst.Add(of, times)
}

// Notes has the notes for a log by gate and direction.
type Notes [Gates][Ways]Note

// add adds the notes in o, which may be nil.
func (n *Notes) add(o *Notes) {
	if o == nil {
		return
	}
	for g := range n {
		for w := range n[g] {
			if said := &o[g][w]; said.Told {
				n[g][w].add(said.Limit, said.Worst.Name, said.Worst.Votes)
			}
		}
	}
}

// refusals has the counts of refusals, and the notes that no log has taken yet.
type refusals struct {
	counts Counts
	said   *Notes // nil until something is noted
}

// note adds a refusal, which happened a number of times, to the notes for the log.
func (r *refusals) note(told *Refusal, times uint64) {
	if r.said == nil {
		r.said = new(Notes)
	}
	r.said[told.Gate][told.Way].add(told.Limit, told.Subnet, times)
}

// add adds the counts and the notes in o.
func (r *refusals) add(o *refusals) {
	r.counts.add(&o.counts)
	if o.said != nil {
		if r.said == nil {
			r.said = new(Notes)
		}
		r.said.add(o.said)
	}
}

// notes has the refusals of one stripe. The stripe's lock guards it.
type notes struct {
	refused refusals // connections that were refused
	would   refusals // connections that an observed gate would have refused
	// last is the last refusal, at its subnet, and told its error. The next refusals by the
	// same limit return the same error. times is the number of these that are in no note yet.
	last  Refusal
	told  error
	at    subnet
	times uint64
}

// remark notes the last refusal for the log, as often as it happened since it was noted. If
// noting is false, it is not noted.
func (n *notes) remark(noting bool) {
	if noting && n.times > 0 {
		n.refused.note(&n.last, n.times)
	}
	n.times = 0
}

// notesLocked returns the stripe's notes, and makes them if there are none. The stripe's lock is
// held.
func (st *Stripe) notesLocked() *notes {
	if st.mu.notes == nil {
		st.mu.notes = new(notes)
	}
	return st.mu.notes
}

// bar is a subnet that has no room, if gate is Conns, or no token, if gate is Rate.
type bar struct {
	st *Stripe // has the subnet's record
	subnet
	gate Gate
}

// rule returns the kind of limit that refuses. A refusal for lack of tokens on a level without
// buckets comes from RefuseRate.
func (b *bar) rule() Rule {
	switch {
	case b.st.named != nil:
		return ThisNetwork
	case b.gate == Rate && b.level.tokens.Unlimited():
		return Elsewhere
	}
	return EverySubnet
}

// refuseLocked counts a refusal and returns its error, or nil if there is no Config.Error. The
// lock of by.st is held.
func (s *Subnets) refuseLocked(by bar, way Way) error {
	if s.config.Error == nil {
		return nil
	}
	notes := s.tellLocked(&by, way)
	notes.refused.counts[by.gate][way]++
	notes.times++
	return notes.told
}

// letLocked counts a connection that an observed gate admits though it would refuse it, unless
// refusals have no error. The lock of by.st is held.
func (s *Subnets) letLocked(by bar, way Way) {
	if s.config.Error == nil {
		return
	}
	notes := s.tellLocked(&by, way)
	notes.would.counts[by.gate][way]++
	if s.config.Noting {
		notes.would.note(&notes.last, 1)
	}
}

// tellLocked returns the notes of the bar's stripe, in which last and told are the refusal and
// its error. If the last refusal was by the same limit of the same subnet in the same direction,
// its error is used again, so that a flood of refusals allocates nothing. The lock of b.st is
// held.
func (s *Subnets) tellLocked(b *bar, way Way) *notes {
	notes := b.st.notesLocked()
	if notes.told == nil || notes.at != b.subnet || notes.last.Gate != b.gate || notes.last.Way != way {
		notes.remark(s.config.Noting)
		r := Refusal{Subnet: b.prefix(), Gate: b.gate, Way: way, Rule: b.rule()}
		if b.gate == Conns {
			r.Limit = b.level.conns
		}
		notes.last, notes.told, notes.at = r, s.config.Error(r), b.subnet
	}
	return notes
}

// observes reports whether a gate is only observed, and refuses nothing.
func (s *Subnets) observes(g Gate) bool { return s.config.Observed != nil && s.config.Observed(g) }

// RefuseRate counts a refusal that a rate limit outside s has decided for an address, and
// returns its error, as Enter does. If the gate Rate is only observed, RefuseRate counts a
// connection that would have been refused, and ok is true: the address may pass.
func (s *Subnets) RefuseRate(addr netip.Addr, way Way) (why error, ok bool) {
	st := &s.all()[0]
	by := bar{st, subnet{&level{bits: addr.BitLen()}, ip.KeyOf(addr)}, Rate}
	st.mu.Lock()
	defer st.mu.Unlock()
	if s.observes(Rate) {
		s.letLocked(by, way)
		return nil, true
	}
	return s.refuseLocked(by, way), false
}

// Refusals returns the number of connections that were refused, and the number that gates which
// are only observed would have refused. It takes the locks one at a time.
func (s *Subnets) Refusals() (refused, would Counts) {
	s.each(func(st *Stripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if n := st.mu.notes; n != nil {
			refused.add(&n.refused.counts)
			would.add(&n.would.counts)
		}
	})
	return refused, would
}

// Said has the counts of all refusals so far, and the notes since the last call of TakeNotes.
type Said struct {
	Counts Counts
	Notes  Notes
}

// take adds the counts and the notes in r, and removes the notes from r.
func (to *Said) take(r *refusals) {
	to.Counts.add(&r.counts)
	to.Notes.add(r.said)
	r.said = nil
}

// TakeNotes returns what Refusals returns, and the notes since its last call, which it removes
// from s.
func (s *Subnets) TakeNotes() (refused, would Said) {
	s.each(func(st *Stripe) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if n := st.mu.notes; n != nil {
			n.remark(s.config.Noting)
			refused.take(&n.refused)
			would.take(&n.would)
		}
	})
	return refused, would
}
