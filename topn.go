package rcmgr

// The first few of many by an order, such as the fullest: found while the many are visited
// once, in memory for the few.

import "slices"

// offer returns the first n, at most, of what is in first and x, in their order. first has
// been made by offer with the same n and order, or is nil. Of two that are equal in a full
// list, the one that came first stays.
func offer[T any](first []T, x T, n int, compare func(a, b T) int) []T {
	if len(first) >= n { // most of many are turned away here
		if n <= 0 || compare(first[n-1], x) <= 0 {
			return first
		}
		first = first[:n-1]
	}
	at, _ := slices.BinarySearchFunc(first, x, compare)
	return slices.Insert(first, at, x)
}
