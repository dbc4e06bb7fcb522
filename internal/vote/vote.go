// Package vote finds the name that has more than half of all votes, in the space of one name.
package vote

// A Majority counts votes for names. Its Name is the one that has more than half of all votes, if
// there is one (Boyer and Moore's algorithm); otherwise Name may be any of them. The zero value
// has no votes. A Majority is not safe for concurrent use.
type Majority[N comparable] struct {
	Name  N
	Votes uint64 // at most the number of votes for Name
}

// Add counts n votes for a name.
func (m *Majority[N]) Add(name N, n uint64) {
	switch {
	case m.Name == name:
		m.Votes += n
	case m.Votes >= n:
		m.Votes -= n
	default:
		m.Name, m.Votes = name, n-m.Votes
	}
}
