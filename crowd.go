package rcmgr

// Maps that were large once: a map of Go's keeps the room that it grew to.

import (
	"maps"
)

// movedAtOnce bounds the entries that are moved under a lock.
const movedAtOnce = 64

// withoutCrowd returns the map, made anew if a crowd has gone: a map keeps the room of its
// best days. crowd is the most that it held. It waits until there is little to move, under a
// lock.
func withoutCrowd[K comparable, V any](m map[K]V, crowd *int) map[K]V {
	few := len(m)
	if few > movedAtOnce || *crowd < 2*movedAtOnce || *crowd <= 16*few {
		return m
	}
	left := make(map[K]V, few)
	maps.Copy(left, m)
	*crowd = few
	return left
}
