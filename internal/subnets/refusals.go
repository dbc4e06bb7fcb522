package subnets

// What is refused: counted, told as an error, and noted for a log. An error is made once for
// many refusals that follow each other in one subnet.

import (
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/vote"
)

// Gate is what a subnet can run out of.
type Gate uint8

const (
	Conns Gate = iota // connections at a time
	Rate              // connections in a time
	Gates             // how many there are
)

// Way is the direction of a connection.
type Way uint8

const (
	Inbound Way = iota
	Outbound
	Ways // how many there are
)

// Rule is which limit refused.
type Rule uint8

const (
	EverySubnet Rule = iota // that of all subnets of one size
	ThisNetwork             // that of a network of its own
	Elsewhere               // none of these: RefuseRate was called
)

// A Refusal says which subnet is full, or comes too fast.
type Refusal struct {
	Subnet netip.Prefix
	Gate   Gate
	Way    Way
	Rule   Rule
	Limit  int64 // connections that the subnet has and may have; 0 for Rate
}

// Counts counts refusals.
type Counts [Gates][Ways]uint64

// add adds what others have counted.
func (c *Counts) add(o *Counts) {
	for g := range c {
		for w := range c[g] {
			c[g][w] += o[g][w]
		}
	}
}

// A Note is what a log can say of refusals by one gate. The zero value is nothing.
type Note struct {
	Told  bool  // there were some
	Limit int64 // of the last one, see Refusal
	Worst vote.Majority[netip.Prefix]
}

// add takes in n refusals more of one subnet.
func (n *Note) add(limit int64, of netip.Prefix, times uint64) {
	n.Told, n.Limit = true, limit
	n.Worst.Add(of, times)
}

// Notes has what a log can say.
type Notes [Gates][Ways]Note

// add takes in what others, which may be nil, have to say.
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

// refusals counts refusals, and has what the log will say of them.
type refusals struct {
	counts Counts
	said   *Notes // nil is nothing
}

// note notes for the log what was told so many times.
func (r *refusals) note(told *Refusal, times uint64) {
	if r.said == nil {
		r.said = new(Notes)
	}
	r.said[told.Gate][told.Way].add(told.Limit, told.Subnet, times)
}

// add adds what others have counted and noted.
func (r *refusals) add(o *refusals) {
	r.counts.add(&o.counts)
	if o.said != nil {
		if r.said == nil {
			r.said = new(Notes)
		}
		r.said.add(o.said)
	}
}

// notes is what a stripe has refused.
type notes struct {
	// What was refused, and what would have been.
	refused, would refusals
	// last is what was refused last, and told its error; at is where: it is told again to
	// the next that is refused there. times is how many of these are in no note yet.
	last  Refusal
	told  error
	at    subnet
	times uint64
}

// remark keeps what the log will say about what has been told, if it is noting.
func (n *notes) remark(noting bool) {
	if noting && n.times > 0 {
		n.refused.note(&n.last, n.times)
	}
	n.times = 0
}

// notesLocked returns the stripe's notes, and makes them where there are none.
func (st *Stripe) notesLocked() *notes {
	if st.mu.notes == nil {
		st.mu.notes = new(notes)
	}
	return st.mu.notes
}

// bar is a subnet that has no room, or no token, and the gate that it is about.
type bar struct {
	st *Stripe // that keeps it
	subnet
	gate Gate
}

// rule returns whose limit it is. A level without tokens has refused none.
func (b *bar) rule() Rule {
	switch {
	case b.st.named != nil:
		return ThisNetwork
	case b.gate == Rate && b.level.tokens.Unlimited():
		return Elsewhere
	}
	return EverySubnet
}

// refuseLocked counts a refusal, and returns its error.
func (s *Subnets) refuseLocked(by bar, way Way) error {
	if s.config.Error == nil {
		return nil
	}
	notes := s.tellLocked(&by, way)
	notes.refused.counts[by.gate][way]++
	notes.times++
	return notes.told
}

// letLocked counts a connection that a gate lets pass though it is full.
func (s *Subnets) letLocked(by bar, way Way) {
	notes := s.tellLocked(&by, way)
	notes.would.counts[by.gate][way]++
	if s.config.Noting {
		notes.would.note(&notes.last, 1)
	}
}

// tellLocked returns the notes of a stripe, in which a refusal has been made an error. What
// was last told of the subnet is told again: it has not changed, and a flood makes nothing new.
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

// observes reports whether a gate refuses nothing.
func (s *Subnets) observes(g Gate) bool { return s.config.Observed != nil && s.config.Observed(g) }

// RefuseRate counts that something else refuses an address that comes too fast, and returns the
// error, as Enter does. Where Rate is only observed, the address may pass.
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

// Refusals returns how many connections have been refused, and how many would have been by
// gates that are only observed. It takes the locks one at a time.
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

// Said is what has been refused: how much in all, and what was noted since the last time.
type Said struct {
	Counts Counts
	Notes  Notes
}

func (to *Said) take(r *refusals) {
	to.Counts.add(&r.counts)
	to.Notes.add(r.said)
	r.said = nil
}

// TakeNotes is Refusals with what was noted, which is handed over.
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
