package rcmgr

// Limits that contradict each other, or the connection manager. Nobody means
// them, and nothing fails: connections are just refused that were to be let in.

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/connmgr"
)

// watched are the limits of the system scope that a connection manager must be
// able to reach the high water mark below.
var watched = [...]dim{dimConns, dimConnsIn, dimStreams, dimStreamsIn}

// CheckHighWater returns, as an error of one sentence, which limits of the system
// scope are not above the high water mark of the connection manager: connections
// would be refused before it closes any, however useless those are. nil is no
// conflict. Where an allowlist admits whom these limits refuse, they may be so on
// purpose.
func (cfg ConcreteLimitConfig) CheckHighWater(highWater int) error {
	if conflict := cfg.highWaterConflict(highWater); conflict != nil {
		return conflict
	}
	return nil
}

func (cfg *ConcreteLimitConfig) highWaterConflict(highWater int) *ConfigError {
	system := limitsOf(cfg.limits.System)
	conflict, places := belowMark(&system, func(_ dim, limit int64) bool { return limit > int64(highWater) })
	if conflict == "" {
		return nil
	}
	return &ConfigError{also: places, Err: fmt.Errorf("%s not above the connection manager's high water mark of %d, so that connections are refused before any is closed: set at least %d, twice the mark, or lower the mark",
		conflict, highWater, 2*int64(highWater))}
}

// CheckConnManager is CheckHighWater for the limits in force and any connection
// manager, which it asks by way of connmgr.GetConnLimiter; if that panics, it is an error.
// One that was given to WithTrimming makes room before a limit on connections is reached,
// wherever its high water mark lies. With an allowlist, all is well.
func (m *Manager) CheckConnManager(cm connmgr.ConnManager) error {
	if m.allowlist.hasEntries() {
		return nil
	}
	system := limitsOf(m.fixed[KindSystem].Limit())
	wouldTrim := false
	asking := guard{callback: callbackOf("CheckConnManager", cm), then: "its high water mark is not known"}
	var conflict string
	fault := asking.try(func() {
		trims := m.trims(cm)
		conflict, _ = belowMark(&system, func(d dim, limit int64) bool {
			helped := madeRoomFor(d, limit)
			if trims && helped || cm.CheckLimit(oneConnLimit(limit-1)) == nil { // they may be equal there
				return true
			}
			wouldTrim = wouldTrim || helped
			return false
		})
	})
	switch {
	case fault != nil:
		return fmt.Errorf("limits: the connection manager, a %T, %w", cm, fault)
	case conflict == "":
		return nil
	}
	advice := "set at least twice the mark, or lower the mark"
	if wouldTrim {
		advice = "set at least twice the mark, lower the mark, or give the connection manager to WithTrimming"
	}
	return fmt.Errorf("limits: %s not above the connection manager's high water mark, so that connections are refused before any is closed: %s",
		conflict, advice)
}

// trims reports whether a connection manager was given to WithTrimming.
func (m *Manager) trims(cm connmgr.ConnManager) bool {
	return reflect.ValueOf(cm).Comparable() && slices.Contains(m.options.trimmed, cm)
}

// oneConnLimit is a limit as connection managers ask for it.
type oneConnLimit int

func (l oneConnLimit) GetConnLimit() int { return int(l) }

// belowMark names the watched limits that are not above the mark, and returns their
// places.
func belowMark(system *amounts, above func(d dim, limit int64) bool) (conflict string, places []string) {
	var low []string
	for _, d := range watched {
		if limit := system[d]; !isUnlimited(d, limit) && !above(d, limit) {
			place := "System." + limitNames[d]
			low, places = append(low, fmt.Sprintf("%s (%d)", place, limit)), append(places, place)
		}
	}
	switch len(low) {
	case 0:
		return "", nil
	case 1:
		return low[0] + " is", places
	}
	return strings.Join(low, ", ") + " are", places
}
