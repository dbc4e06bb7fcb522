// Package evict chooses which of many connections or streams a full host lets go of. It knows
// nothing of hosts and scopes: what it chooses from is a list of facts.
//
// Some candidates are kept, each by the first class that takes it. Three classes are what the
// host has decided, and have no bound. The others keep only a part of the rest each, because
// strangers may come to belong to them in the end; no class takes anything from another.
//
// The rest compete by their groups: the member of the group that exceeds its share most goes
// first. Groups are nested: a peer, an address, a subnet, a network, and an owner that the host
// knows. So the owner of many addresses competes with itself. If a group exceeds its share, its
// youngest member that has had time to be of use goes, and the members from before an attack
// stay. If no group does, nothing distinguishes attackers from others, and chance decides among the
// older half: in any fixed order either all newcomers or all others would go.
package evict

import (
	"cmp"
	"container/heap"
	"slices"
)

// Class is the reason why a candidate is kept. The zero value means that it is not.
type Class uint8

const (
	Free         Class = iota
	Outbound           // the host opened it
	Allowlisted        // the allowlist covers it
	Protected          // the connection manager protects its peer
	Valued             // the connection manager values its peer most
	Named              // its peer uses a protocol that the host names
	Rare               // it is the only one that is kept of its network
	Longstanding       // it has been there for longest
	NumClasses
)

var classNames = [NumClasses]string{"free", "outbound", "allowlisted", "protected", "valued", "protocol", "rare", "longstanding"}

// String returns the name of the class, as metrics and tables show it.
func (c Class) String() string { return classNames[c] }

// parts has, for each class that has a bound, the divisor of the number of candidates that the
// unbounded classes leave. They leave five sixteenths to be let go.
var parts = [NumClasses]int{Valued: 4, Named: 8, Rare: 16, Longstanding: 4}

// The levels of groups.
const (
	Peer    = iota
	Address // an IPv4 address, an IPv6 /56
	Subnet  // an IPv4 /24, an IPv6 /48
	Network // an IPv4 /16, an IPv6 /32
	Owner   // what the host itself says
	Levels
)

// shares has what a group of each level may hold, in candidates of average weight. Only their ratios
// decide which group is the largest.
var shares = [Levels]float64{Peer: 2, Address: 2, Subnet: 8, Network: 32, Owner: 32}

// Order is the order in which the members of a group go that holds more than its share.
type Order uint8

const (
	YoungestFirst Order = iota // what has stood for long has proved something
	OldestFirst                // what has waited for long, such as for a protocol, is less likely to succeed
)

// NoGroup stands for the missing group of a candidate that has none on a level.
const NoGroup = -1

// Candidate is a connection or stream that may be let go.
type Candidate struct {
	Keep   Class // Outbound, Allowlisted or Protected: it is kept in any case; or Free
	Opened int64 // when it was opened: the nanoseconds since an instant that is the same for all
	Since  int64 // when the oldest connection of its peer was opened
	Weight int64 // what letting it go makes free; more than 0
	Value  int   // of its peer in the connection manager; more than 0 is valued
	Named  bool  // see Class
	Idle   bool  // nothing is known to use it; it counts twice
	// Unproven means that neither its age nor its network says anything for it: it is kept neither
	// as one of the longest-standing nor as the only one of its network.
	Unproven bool
	New      bool // it has not had time to be of use; it goes after the others of its groups
	// Net is a secret number of its network, by which Rare chooses networks; 0 without a network.
	Net uint64
	Tie uint64 // a secret random number
	// Groups has the number of its group on each level, or NoGroup. It always has one on the level
	// Peer. A number belongs to one group of one level.
	Groups [Levels]int
}

// Numbers numbers groups, starting from 0. The zero value is ready for use.
type Numbers[K comparable] struct{ of map[K]int }

// Of returns the number of a group.
func (n *Numbers[K]) Of(group K) int {
	if i, ok := n.of[group]; ok {
		return i
	}
	if n.of == nil {
		n.of = make(map[K]int)
	}
	i := len(n.of)
	n.of[group] = i
	return i
}

// Len returns how many groups have numbers.
func (n *Numbers[K]) Len() int { return len(n.of) }

// Want says how much a choice is to make free, and with how many victims at most.
type Want struct {
	Weight int64 // to make free
	Most   int   // the greatest number of victims
	Order  Order
	Groups int // all numbers of groups are less
}

// Reason is the reason why a candidate was chosen.
type Reason uint8

const (
	LargestGroup Reason = iota // its group holds more than its share
	Idle                       // nothing is known to use it
	Chance
	NumReasons
)

var reasonNames = [NumReasons]string{"group", "idle", "chance"}

// String returns the name of the reason, as metrics and tables show it.
func (r Reason) String() string { return reasonNames[r] }

// Victim is a candidate that is to be let go.
type Victim struct {
	Index int // in the list of candidates
	Why   Reason
	Level int // of the group that exceeds its share most
}

// Choice is the result of Choose.
type Choice struct {
	Victims []Victim // in the order in which they go
	Kept    []Class  // by candidate
	Weight  int64    // of all victims
}

// Choose chooses victims until they weigh what is wanted, or there are as many as may be, or
// all others are kept.
func Choose(all []Candidate, w Want) Choice {
	c := Choice{Kept: keep(all, w.Groups)}
	q := newQueue(all, c.Kept, w)
	for c.Weight < w.Weight && len(c.Victims) < w.Most && len(q.ready) > 0 {
		v := q.next()
		c.Victims = append(c.Victims, v)
		c.Weight += all[v.Index].Weight
	}
	return c
}

// keep returns the classes of all candidates.
func keep(all []Candidate, groups int) []Class {
	kept := make([]Class, len(all))
	rest := make([]int, 0, len(all)) // by age of their peers, the oldest first
	for i := range all {
		if kept[i] = all[i].Keep; kept[i] == Free {
			rest = append(rest, i)
		}
	}
	slices.SortFunc(rest, func(a, b int) int {
		return cmp.Or(cmp.Compare(all[a].Since, all[b].Since), cmp.Compare(all[a].Tie, all[b].Tie))
	})
	take := func(class Class, from []int, may func(*Candidate) bool) {
		for left := len(rest) / parts[class]; left > 0 && len(from) > 0; from = from[1:] {
			if i := from[0]; kept[i] == Free && may(&all[i]) {
				kept[i] = class
				left--
			}
		}
	}
	byValue := slices.Clone(rest)
	slices.SortStableFunc(byValue, func(a, b int) int { return cmp.Compare(all[b].Value, all[a].Value) })
	take(Valued, byValue, func(c *Candidate) bool { return c.Value > 0 })
	take(Named, rest, func(c *Candidate) bool { return c.Named })
	byNet := slices.Clone(rest)
	slices.SortStableFunc(byNet, func(a, b int) int { return cmp.Compare(all[a].Net, all[b].Net) })
	var last uint64
	take(Rare, byNet, func(c *Candidate) bool {
		if c.Unproven {
			return false
		}
		first := c.Net != last // and it has one, since 0 comes first
		last = c.Net
		return first
	})
	// A crowd that came first would keep all places of the longest-standing if its groups could
	// hold as many of them as there are. They hold half of their shares at most: if they filled
	// these, each newcomer of the group would be the one to go.
	counts := make([]float64, groups)
	take(Longstanding, rest, func(c *Candidate) bool {
		if c.Unproven {
			return false
		}
		for level, g := range c.Groups {
			if g != NoGroup && counts[g] >= shares[level]/2 {
				return false
			}
		}
		for _, g := range c.Groups {
			if g != NoGroup {
				counts[g]++
			}
		}
		return true
	})
	return kept
}

// queue has those that may go, in lines. A line has the members of one group that are idle, or
// those that are not; so all of a line have the same score by that group, and the one that is to
// go first stands at the head of the line with the highest score.
type queue struct {
	all     []Candidate
	average float64 // weight of a candidate
	held    []int64 // weight, by group
	gone    []bool  // by candidate
	turn    []uint64
	order   Order
	lines   []line  // by group: of those that are in use, and of those that are idle
	ready   []*line // a heap of those that have members, the first to go at its head
}

type line struct {
	group, level  int
	idle          bool
	byAge, byTurn []int // the candidates in either order; some may have gone
	at            int   // in ready
	// What decides the place in ready. It changes only right before the line is put in its place.
	score  float64
	excess bool // the group holds more than its share
	head   int  // the candidate that goes first
}

func newQueue(all []Candidate, kept []Class, w Want) *queue {
	q := &queue{all: all, order: w.Order, held: make([]int64, w.Groups), gone: make([]bool, len(all)),
		turn: make([]uint64, len(all)), lines: make([]line, 2*w.Groups)}
	var free []int
	var total float64
	for i := range all {
		total += float64(all[i].Weight)
		if all[i].Keep == Free { // a group is not charged for what the host has decided to keep
			q.hold(&all[i], 1)
		}
		if kept[i] == Free {
			free = append(free, i)
		}
	}
	if len(free) == 0 {
		return q
	}
	q.average = total / float64(len(all))
	opened := make([]int64, len(free))
	for at, i := range free {
		opened[at] = all[i].Opened
	}
	slices.Sort(opened)
	median := opened[len(opened)/2]
	slices.SortFunc(free, q.compareAges)
	for _, i := range free {
		const younger = 1 << 63
		if q.turn[i] = all[i].Tie &^ younger; all[i].New || all[i].Opened > median {
			q.turn[i] |= younger
		}
		q.eachLine(&all[i], func(l *line) { l.byAge = append(l.byAge, i) })
	}
	slices.SortFunc(free, q.compareTurns)
	for _, i := range free {
		q.eachLine(&all[i], func(l *line) { l.byTurn = append(l.byTurn, i) })
	}
	for g := range q.lines {
		if l := &q.lines[g]; len(l.byAge) > 0 {
			l.at = len(q.ready)
			q.look(l)
			q.ready = append(q.ready, l)
		}
	}
	heap.Init(q)
	return q
}

// eachLine calls f with the lines in which a candidate stands.
func (q *queue) eachLine(c *Candidate, f func(*line)) {
	for level, g := range c.Groups {
		if g == NoGroup {
			continue
		}
		l := &q.lines[2*g]
		if c.Idle {
			l = &q.lines[2*g+1]
		}
		l.group, l.level, l.idle = g, level, c.Idle
		f(l)
	}
}

// hold adds a candidate to what its groups hold, or removes it if by is -1.
func (q *queue) hold(c *Candidate, by int64) {
	for _, g := range c.Groups {
		if g != NoGroup {
			q.held[g] += by * c.Weight
		}
	}
}

// score returns how far a group exceeds its share.
func (q *queue) score(group, level int) float64 { return float64(q.held[group]) / shares[level] }

// look finds out what decides the place of a line.
func (q *queue) look(l *line) {
	l.score = q.score(l.group, l.level)
	l.excess = l.score > q.average
	if l.head = l.byAge[0]; !l.excess {
		l.head, l.score = l.byTurn[0], q.average // no more than others
	}
	if l.idle {
		l.score *= 2
	}
}

// next takes the one that is to go first.
func (q *queue) next() Victim {
	i := q.ready[0].head
	c := &q.all[i]
	v, most := Victim{Index: i, Why: Chance}, 0.0
	for level, g := range c.Groups {
		if g != NoGroup && q.score(g, level) > most {
			v.Level, most = level, q.score(g, level)
		}
	}
	switch {
	case most > q.average:
		v.Why = LargestGroup
	case c.Idle:
		v.Why = Idle
	}
	q.gone[i] = true
	q.hold(c, -1)
	for _, g := range c.Groups {
		if g != NoGroup {
			q.settle(&q.lines[2*g])
			q.settle(&q.lines[2*g+1])
		}
	}
	return v
}

// settle brings a line to its place after one of its group has gone.
func (q *queue) settle(l *line) {
	if len(l.byAge) == 0 {
		return
	}
	l.byAge, l.byTurn = q.present(l.byAge), q.present(l.byTurn)
	if len(l.byAge) == 0 {
		heap.Remove(q, l.at)
	} else {
		q.look(l)
		heap.Fix(q, l.at)
	}
}

// present returns a list without those at its head that have gone.
func (q *queue) present(list []int) []int {
	for len(list) > 0 && q.gone[list[0]] {
		list = list[1:]
	}
	return list
}

func (q *queue) compareAges(a, b int) int {
	ca, cb := &q.all[a], &q.all[b]
	order := cmp.Compare(ca.Opened, cb.Opened)
	if q.order == YoungestFirst {
		order = -order
	}
	if ca.New != cb.New {
		if order = -1; ca.New {
			order = 1
		}
	}
	return cmp.Or(order, cmp.Compare(ca.Tie, cb.Tie), cmp.Compare(a, b))
}

func (q *queue) compareTurns(a, b int) int {
	return cmp.Or(cmp.Compare(q.turn[a], q.turn[b]), cmp.Compare(a, b))
}

// compare orders lines: first by what their groups hold, then by age or chance.
func (q *queue) compare(a, b *line) int {
	switch {
	case a.score != b.score:
		return cmp.Compare(b.score, a.score)
	case a.excess != b.excess:
		if a.excess {
			return -1
		}
		return 1
	case a.excess:
		return q.compareAges(a.head, b.head)
	}
	return q.compareTurns(a.head, b.head)
}

// Len, Less, Swap, Push and Pop are those of heap.Interface.
func (q *queue) Len() int           { return len(q.ready) }
func (q *queue) Less(i, j int) bool { return q.compare(q.ready[i], q.ready[j]) < 0 }
func (q *queue) Swap(i, j int) {
	q.ready[i], q.ready[j] = q.ready[j], q.ready[i]
	q.ready[i].at, q.ready[j].at = i, j
}
func (q *queue) Push(l any) { q.ready = append(q.ready, l.(*line)) }

func (q *queue) Pop() any {
	last := len(q.ready) - 1
	l := q.ready[last]
	q.ready = q.ready[:last]
	return l
}
