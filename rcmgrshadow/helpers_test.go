package rcmgrshadow

import (
	"bytes"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	logging "github.com/libp2p/go-libp2p/gologshim"
)

// logged is what has been logged in this process.
var logged logText

// logText is text that may be written and read concurrently. It keeps only lines about
// differences, refusals and limits.
type logText struct {
	mu    sync.Mutex
	lines []string
}

func (l *logText) Write(b []byte) (int, error) {
	if slices.ContainsFunc([]string{"resource managers differ", "can never be reached", "from exceeding resource limits"}, func(text string) bool {
		return bytes.Contains(b, []byte(text))
	}) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, string(b))
		l.lines = l.lines[max(0, len(l.lines)-1000):]
	}
	return len(b), nil
}

// about returns the lines that have a text.
func (l *logText) about(text string) (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

// raceDetector reports whether this test binary was built with -race.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func TestMain(m *testing.M) {
	logging.SetDefaultHandler(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
	os.Exit(m.Run())
}
