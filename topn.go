package rcmgr

// The first few of many.

import (
	"slices"
)

// offer takes something into the first n by an order.
func offer[T any](first []T, x T, n int, compare func(a, b T) int) []T {
	at, _ := slices.BinarySearchFunc(first, x, compare)
	if at == n {
		return first
	}
	return slices.Insert(first[:min(len(first), n-1)], at, x)
}
