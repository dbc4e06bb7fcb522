// Package vote finds what has more than half of all votes, in the space of one name.
package vote

// Majority is the name that has more than half of all votes, if there is one (Boyer and
// Moore's algorithm). The zero value has had no vote. It is not safe for concurrent use.
type Majority[N comparable] struct {
	Name  N
	Votes uint64 // never more than the name has had
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
