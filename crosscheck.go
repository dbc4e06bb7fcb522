package rcmgr

// Limits that contradict the connection manager. No operator means to set them, but
// nothing fails at once: connections that were meant to be accepted are refused.

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"sort"
	"strings"

	"github.com/libp2p/go-libp2p/core/connmgr"
)

// watched are the limits of the system scope that have to lie above the high water mark
// of a connection manager.
var watched = [...]dim{dimConns, dimConnsIn, dimStreams, dimStreamsIn}

// CheckHighWater returns an error that names the limits of the system scope that are
// not above the connection manager's high water mark, or nil if all of them are. With a
// limit at or below the mark, connections are refused before the connection manager
// closes any, however little the open ones are worth. A manager with an allowlist may
// have such limits on purpose.
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
	return &ConfigError{also: places, Err: fmt.Errorf("%s not above the connection manager's high water mark of %d, "+
		"so that connections are refused before any is closed: set at least %d, twice the mark, or lower the mark",
		conflict, highWater, 2*int64(highWater))}
}

// CheckConnManager returns an error if limits of the system scope that are now in force
// are not above the high water mark of cm, as CheckHighWater does for a known mark. It
// finds out by calling cm.CheckLimit; a panic of that is returned as an error. Limits on
// connections pass if cm was given to WithTrimming, because it then closes
// connections before such a limit is reached. With WithRoom, limits of at least eight pass for the
// same reason, unless it only observes. If the manager has an allowlist,
// CheckConnManager always returns nil.
func (m *Manager) CheckConnManager(cm connmgr.ConnManager) error {
	if m.allowlist.hasEntries() {
		return nil
	}
	system := m.fixed[KindSystem].limitCopy.Load()
	wouldTrim := false
	asking := guard{callback: callbackOf("CheckConnManager", cm), then: "its high water mark is not known"}
	var conflict, mark string
	fault := asking.try(func() {
		trims := m.trims(cm)
		conflict, _ = belowMark(system, func(d dim, limit int64) bool {
			helped := trimmable(d, limit)
			if trims && helped || m.makesRoomBelow(d, limit) || cm.CheckLimit(oneConnLimit(limit-1)) == nil { // a limit equal to the mark passes CheckLimit
				return true
			}
			wouldTrim = wouldTrim || helped
			return false
		})
		if conflict == "" {
			return
		}
		if n := highWaterOf(cm); n > 0 {
			mark = fmt.Sprintf(" of %d", n)
		}
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
	return fmt.Errorf("limits: %s not above the connection manager's high water mark%s, "+
		"so that connections are refused before any is closed: %s", conflict, mark, advice)
}

// conflictWith returns how the limits in force conflict with the connection manager of a host, or
// an empty text.
func (m *Manager) conflictWith(h RoomHost) string {
	asking := guard{callback: "a host that limits are compared with", then: "its connection manager is not known"}
	var cm connmgr.ConnManager
	if err := asking.try(func() { cm = h.ConnManager() }); err != nil || cm == nil {
		return ""
	}
	if err := m.CheckConnManager(cm); err != nil {
		return err.Error()
	}
	return ""
}

// highWaterOf returns the high water mark of a connection manager, which is the least limit that
// its CheckLimit finds no fault with. It returns 0 if there is no such limit.
func highWaterOf(cm connmgr.ConnManager) int {
	const most = math.MaxInt32
	fits := func(n int) bool { return cm.CheckLimit(oneConnLimit(n)) == nil }
	if !fits(most) {
		return 0
	}
	return sort.Search(most, fits)
}

// makesRoomBelow reports whether WithRoom closes connections or streams before a limit of the
// system scope is reached. Limits too small for a reserve refuse first.
func (m *Manager) makesRoomBelow(d dim, limit int64) bool {
	return m.options.room != nil && !m.options.room.ObserveOnly && m.alarm.makesRoom(KindSystem, d) && reserveOf(limit) > 0
}

// trims reports whether a connection manager was given to WithTrimming.
func (m *Manager) trims(cm connmgr.ConnManager) bool {
	return reflect.ValueOf(cm).Comparable() && slices.Contains(m.options.trimmed, cm)
}

// oneConnLimit is a limit on connections, as a connmgr.GetConnLimiter.
type oneConnLimit int

func (l oneConnLimit) GetConnLimit() int { return int(l) }

// belowMark returns the watched limits that are not above the mark, as the beginning of
// a sentence, and their places in a configuration.
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
