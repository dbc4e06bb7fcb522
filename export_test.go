package rcmgr

// What the tests with real hosts, outside of this package, may do.

import (
	"math/rand/v2"
	"testing"
)

// Reap collects idle scopes at once.
func (m *Manager) Reap() { m.reap() }

// RandomOf returns random numbers from the seed of a test.
func RandomOf(t testing.TB) *rand.Rand { return testRandom(t) }
