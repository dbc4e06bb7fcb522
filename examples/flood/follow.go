package main

// Limits that change while the attack lasts, with the file that they come from.

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/weir-p2p/rcmgr"
)

// follower puts the limits of a file in force when its text changes.
type follower struct {
	file      string
	attackers int
	manager   *rcmgr.Manager
	seen      *watch
	was       []byte // the text that was read last
	applied   int    // how often limits have changed
	slip      error  // what is wrong with the file as it is
}

func newFollower(s settings, m *rcmgr.Manager, seen *watch) *follower {
	was, _ := os.ReadFile(s.limitsFile)
	return &follower{file: s.limitsFile, attackers: s.attackers, manager: m, seen: seen, was: was}
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
	text, err := os.ReadFile(f.file)
	if err != nil || bytes.Equal(text, f.was) {
		return
	}
	f.was = text
	limits, err := loadLimits(f.file, f.attackers)
	if err == nil {
		err = f.seen.whileLimitsChange(func() error { return f.manager.SetLimits(rcmgr.NewFixedLimiter(limits)) })
	}
	if f.slip = err; err == nil {
		f.applied++
	}
}

// String tells in one line what came of it.
func (f *follower) String() string {
	if f.slip != nil {
		return fmt.Sprintf("limits changed %d times; the file as it is now changed nothing: %v", f.applied, f.slip)
	}
	return fmt.Sprintf("limits changed %d times", f.applied)
}
