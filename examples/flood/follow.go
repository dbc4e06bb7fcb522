package main

// Limits that follow their file during the attack.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// follower puts the limits of a file in force when its text changes, and reports the
// result at once.
type follower struct {
	file    string
	show    rcmgr.ConcreteLimitConfig // what the file overrides
	manager *rcmgr.Manager
	seen    *watch
	tell    func(line string)
	found   sighting // when the file was last read
	inForce string   // the text whose limits are in force
	applied int      // how often limits have changed
	slip    error    // the error in the file as it is now
}

// sighting is the text of a file, or the error from reading it.
type sighting struct{ text, problem string }

// newFollower returns a follower of the file whose text the limits in force are from.
func newFollower(s settings, m *rcmgr.Manager, seen *watch, tell func(line string)) *follower {
	return &follower{file: s.limitsFile, show: s.showLimits(), manager: m, seen: seen, tell: tell,
		found: sighting{text: s.limitsText}, inForce: s.limitsText}
}

// run reads the file at every tick, until ctx ends.
func (f *follower) run(ctx context.Context, tick <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			f.look()
		}
	}
}

// look reads the file, and applies it if it has changed. A file with an error changes no
// limit.
func (f *follower) look() {
	var now sighting
	text, err := os.ReadFile(f.file)
	if now.text = string(text); err != nil {
		now = sighting{problem: err.Error()}
	}
	if now == f.found {
		return
	}
	f.found = now
	if f.slip = f.apply(now); f.slip != nil {
		f.tell(fmt.Sprintf("limits stay as they are: %v", f.slip))
	} else {
		f.tell(fmt.Sprintf("the limits of %s are in force", f.file))
	}
}

// apply puts the limits of the file in force, unless they already are.
func (f *follower) apply(now sighting) error {
	if now.problem != "" {
		return errors.New(now.problem)
	}
	if now.text == f.inForce {
		return nil
	}
	limits, text, err := loadLimits(f.file, f.show)
	if err == nil {
		err = f.seen.whileLimitsChange(func() error { return f.manager.SetLimits(rcmgr.NewFixedLimiter(limits)) })
	}
	if err == nil {
		f.inForce = text
		f.applied++
	}
	return err
}

// String returns one line that says what following the file has done.
func (f *follower) String() string {
	line := "limits changed " + text.Plural(f.applied, "time")
	if f.slip != nil {
		line += fmt.Sprintf("; the file as it is now changed nothing: %v", f.slip)
	}
	return line
}
