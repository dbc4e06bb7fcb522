// Package lean gives back the memory of maps that held a crowd once. A Go map never does so by
// itself.
package lean

import "maps"

const (
	// movedAtOnce bounds the entries that are moved under a lock, once after a crowd. It takes
	// about a millisecond, most of which is the search in the map.
	movedAtOnce = 1024
	// leastCrowd is the number of entries of which a map takes so little memory that it stays.
	leastCrowd = 128
)

// Map returns m, or a copy of m that takes less memory if m held many more entries
// once. crowd is the most entries that m has held. The caller holds a lock, so Map
// copies m only when few entries are left.
func Map[K comparable, V any](m map[K]V, crowd *int) map[K]V {
	few := len(m)
	if few > movedAtOnce || *crowd < leastCrowd || *crowd <= 16*few {
		return m
	}
	left := make(map[K]V, few)
	maps.Copy(left, m)
	*crowd = few
	return left
}
