// Package rcmgrtest helps to test programs that use a resource manager. Watch and
// RequireEmpty fail a test that leaves resources held, and Refuser is a manager that
// refuses on command. The package accepts a TB in place of a *testing.T and does not
// import testing.
package rcmgrtest

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

// TB is the part of *testing.T, *testing.B and *testing.F that this package uses.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Cleanup(func())
}

// poll is the time between two checks of what is still held.
const poll = 5 * time.Millisecond

// RequireEmpty fails the test if the manager still holds connections, streams, file
// descriptors or memory in any scope when patience is over. The failure names these
// scopes and what each holds. Hosts release some resources a little after they are
// closed. With a patience of 0 it checks once. It also works with a closed manager.
func RequireEmpty(t TB, m *rcmgr.Manager, patience time.Duration) {
	t.Helper()
	var left []string
	if !within(patience, func() bool { left = held(m); return len(left) == 0 }) {
		t.Errorf("the resource manager still holds:\n\t%s", strings.Join(left, "\n\t"))
	}
}

func within(patience time.Duration, is func() bool) bool {
	for end := time.Now().Add(patience); !is(); time.Sleep(poll) {
		if !time.Now().Before(end) {
			return false
		}
	}
	return true
}

func held(m *rcmgr.Manager) (list []string) {
	for _, s := range m.Snapshot().Scopes {
		if s.Use != (network.ScopeStat{}) {
			list = append(list, s.Name+": "+describe(s.Use))
		}
	}
	return list
}

func describe(s network.ScopeStat) string {
	var parts []string
	for _, p := range []struct {
		n    int64
		what string
	}{
		{int64(s.NumConnsInbound), "inbound connections"}, {int64(s.NumConnsOutbound), "outbound connections"},
		{int64(s.NumStreamsInbound), "inbound streams"}, {int64(s.NumStreamsOutbound), "outbound streams"},
		{int64(s.NumFD), "file descriptors"}, {s.Memory, "bytes of memory"},
	} {
		if p.n != 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return strings.Join(parts, ", ")
}

// Watch returns a manager to pass to a host in place of rm, which may be any resource
// manager. When the test ends, it fails the test for every connection and stream that was
// opened through the returned manager and is not done, and reports what each holds, how
// long ago it was opened, and by which line of code. Resources that a host releases late
// have patience to be released. Cleanups run last first: close hosts in cleanups that are
// registered after Watch, or before the test ends.
func Watch(t TB, rm network.ResourceManager, patience time.Duration) network.ResourceManager {
	w := &watched{ResourceManager: rm, open: make(map[leaf]opening)}
	t.Cleanup(func() {
		t.Helper()
		if !within(patience, func() bool { return len(w.left()) == 0 }) {
			t.Errorf("not given back to the resource manager:\n\t%s", strings.Join(w.left(), "\n\t"))
		}
	})
	return w
}

type watched struct {
	network.ResourceManager
	mu   sync.Mutex
	open map[leaf]opening
}

// leaf is a connection or stream.
type leaf interface {
	Stat() network.ScopeStat
	Done()
}

// opening is how a connection or stream was opened.
type opening struct {
	what  string
	since time.Time
	by    string // file and line
}

// Unwrap returns the manager that is watched, so that its allowlist is found.
func (w *watched) Unwrap() network.ResourceManager { return w.ResourceManager }

func (w *watched) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	s, err := w.ResourceManager.OpenConnection(dir, usefd, endpoint)
	if err != nil {
		return nil, err
	}
	c := &watchedConn{s, w}
	w.note(c, fmt.Sprintf("%v connection with %v", dir, endpoint))
	return c, nil
}

func (w *watched) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := w.ResourceManager.OpenStream(p, dir)
	if err != nil {
		return nil, err
	}
	st := &watchedStream{s, w}
	w.note(st, fmt.Sprintf("%v stream with %v", dir, p))
	return st, nil
}

func (w *watched) note(s leaf, what string) {
	const caller = 2 // of OpenConnection or OpenStream
	_, file, line, _ := runtime.Caller(caller)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[s] = opening{what, time.Now(), fmt.Sprintf("%s:%d", file, line)}
}

func (w *watched) forget(s leaf) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, s)
}

// left describes what is still open, the oldest first.
func (w *watched) left() (list []string) {
	type item struct {
		opening
		holds string
	}
	var items []item
	w.mu.Lock()
	for s, o := range w.open {
		items = append(items, item{o, describe(s.Stat())})
	}
	w.mu.Unlock()
	slices.SortFunc(items, func(a, b item) int { return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.what, b.what)) })
	for _, i := range items {
		list = append(list, fmt.Sprintf("%s, opened %v ago at %s, holds %s", i.what, time.Since(i.since).Round(time.Millisecond), i.by, i.holds))
	}
	return list
}

type watchedConn struct {
	network.ConnManagementScope
	w *watched
}

func (c *watchedConn) Done() {
	c.ConnManagementScope.Done()
	c.w.forget(c)
}

type watchedStream struct {
	network.StreamManagementScope
	w *watched
}

func (s *watchedStream) Done() {
	s.StreamManagementScope.Done()
	s.w.forget(s)
}
