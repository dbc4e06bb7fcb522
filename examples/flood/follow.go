package main

// Limits that change while the attack lasts, with the file that they come from.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/weir-p2p/rcmgr"
)

// follower puts the limits of a file in force when its text changes, and tells at
// once what came of it.
type follower struct {
	file      string
	attackers int
	manager   *rcmgr.Manager
	seen      *watch
	tell      func(line string)
	found     sighting // at the last look
	inForce   string   // the text whose limits are
	applied   int      // how often limits have changed
	slip      error    // what is wrong with the file as it is
}

// sighting is a file's text, or why it cannot be read.
type sighting struct{ text, problem string }

// newFollower follows the file from the text on that the limits in force are of.
func newFollower(s settings, m *rcmgr.Manager, seen *watch, tell func(line string)) *follower {
	return &follower{file: s.limitsFile, attackers: s.attackers, manager: m, seen: seen, tell: tell,
		found: sighting{text: s.limitsText}, inForce: s.limitsText}
}

// run looks at the file at every tick, until ctx ends.
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

// look reads the file if it has changed. One with a slip changes no limit.
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

// apply puts the limits of the file in force, unless they are already.
func (f *follower) apply(now sighting) error {
	if now.problem != "" {
		return errors.New(now.problem)
	}
	if now.text == f.inForce {
		return nil
	}
	limits, text, err := loadLimits(f.file, f.attackers)
	if err == nil {
		err = f.seen.whileLimitsChange(func() error { return f.manager.SetLimits(rcmgr.NewFixedLimiter(limits)) })
	}
	if err == nil {
		f.inForce = text
		f.applied++
	}
	return err
}

// String tells in one line what came of it.
func (f *follower) String() string {
	text := fmt.Sprintf("limits changed %d times", f.applied)
	if f.slip != nil {
		text += fmt.Sprintf("; the file as it is now changed nothing: %v", f.slip)
	}
	return text
}
