package rcmgr

// The number of requests that were refused in the last minutes, so that an operator who looks at a host
// in trouble sees when the trouble began. A periodic job adds up the counts of the stripes
// every ten seconds, and the sums of five minutes are kept.

import (
	"slices"
	"sync"
	"time"
)

const (
	historyInterval = 10 * time.Second
	historyLength   = 30 // five minutes
)

// RefusalsAt is how many requests all scopes and gates together had refused between the
// making of the manager and a time, and how many they had admitted only because a limit is
// observed.
type RefusalsAt struct {
	At          time.Time
	Refusals    uint64
	WouldRefuse uint64 `json:",omitempty"`
}

// refusalHistory has the sums of the last minutes, the oldest first.
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
