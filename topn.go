package rcmgr

// The first few of many values by an order, such as the fullest scopes. All values are visited
// once, and only the few are kept in memory.

import "slices"

// offer returns at most n values, the first of those in first and of x, in their order. first
// is nil, or the result of offer with the same n and order. If the list is full, an x that is
// equal to the last value is not added.
func offer[T any](first []T, x T, n int, compare func(a, b T) int) []T {
	if len(first) >= n { // the common case if there are many values
		if n <= 0 || compare(first[n-1], x) <= 0 {
			return first
		}
		first = first[:n-1]
	}
	at, _ := slices.BinarySearchFunc(first, x, compare)
	return slices.Insert(first, at, x)
}
