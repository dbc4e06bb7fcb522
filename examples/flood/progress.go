package main

// Progress of the attack.

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// screen is the terminal, or another output of lines. It is safe for concurrent use.
type screen struct {
	mu       sync.Mutex
	to       io.Writer
	terminal bool
}

func (s *screen) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to.Write(text)
}

// tell writes a line. If there is a bar, the line takes its place, and the bar appears
// again below it.
func (s *screen) tell(line string) {
	if s.terminal {
		line = clearLine + line
	}
	fmt.Fprintln(s, line)
}

// clearLine makes a terminal write over the current line.
const clearLine = "\r\x1b[K"

// showProgress shows the progress of the attack until ctx ends: a bar on a terminal, a
// plain line each second elsewhere.
func showProgress(ctx context.Context, out *screen, start time.Time, d time.Duration, line func() string) {
	every, show := time.Second, plainLine
	if out.terminal {
		every, show = 100*time.Millisecond, bar
		defer fmt.Fprintln(out)
	}
	for pause(ctx, every) {
		fmt.Fprint(out, show(time.Since(start), d, line()))
	}
}

func plainLine(done, of time.Duration, line string) string {
	return fmt.Sprintf("%4.1f s of %v · %s\n", done.Seconds(), of, line)
}

func bar(done, of time.Duration, line string) string {
	const width = 20
	full := min(int(width*done/of), width)
	return fmt.Sprintf("%s[%s%s] %.1f s · %s", clearLine, strings.Repeat("#", full), strings.Repeat("-", width-full), done.Seconds(), line)
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
