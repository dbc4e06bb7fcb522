package main

// How the attack goes, while it goes.

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// showProgress tells how the attack goes until ctx ends: a bar on a terminal,
// a plain line a second elsewhere.
func showProgress(ctx context.Context, out io.Writer, start time.Time, d time.Duration, line func() string) {
	every, show := time.Second, plainLine
	if isTerminal(out) {
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
	return fmt.Sprintf("\r\x1b[K[%s%s] %.1f s · %s", strings.Repeat("#", full), strings.Repeat("-", width-full), done.Seconds(), line)
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
