package rcmgr

// How many requests were refused in the last minutes, so that whoever comes to
// look at a host in trouble sees when the trouble began. The counts are there
// anyway: every ten seconds they are added up, and thirty sums are kept.

import (
	"slices"
	"sync"
	"time"
)

const (
	historyInterval = 10 * time.Second
	historyLength   = 30 // five minutes
)

// RefusalsAt is how many requests had been refused, by all scopes and gates
// together, at one time since the manager was made.
type RefusalsAt struct {
	At       time.Time
	Refusals uint64
}

// refusalHistory has what was refused by then, the oldest first.
type refusalHistory struct {
	mu struct {
		sync.Mutex
		kept []RefusalsAt
	}
}

func (h *refusalHistory) keep(now RefusalsAt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.mu.kept) > historyLength {
		h.mu.kept = slices.Delete(h.mu.kept, 0, 1)
	}
	h.mu.kept = append(h.mu.kept, now)
}

func (h *refusalHistory) all() []RefusalsAt {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.mu.kept)
}
