// Package rcmgrtest helps with tests of programs that use a resource manager:
// Watch and RequireEmpty fail a test that leaves something held, and Refuser is
// a manager that refuses on command. It takes a TB for *testing.T, and imports
// no testing package.
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

// TB is what is needed of a *testing.T, *testing.B or *testing.F.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Cleanup(func())
}

// poll is how often is looked whether something has been given back.
const poll = 5 * time.Millisecond

// RequireEmpty fails the test if the manager still holds something when
// patience is over: connections, streams, file descriptors or memory, in any
// scope. The failure names the scopes with what each holds. Hosts give back a
// little after they are closed; with patience 0 it looks once. A closed manager
// can be asked, too.
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

// Watch gives a manager to hand to a host in place of rm, which may be any
// resource manager. When the test ends, it fails for every connection and stream
// that was opened through it and is not done, with what it holds, since when,
// and the line of code that opened it. Cleanups run last first: close hosts in
// cleanups that are set up after Watch, or before the test ends. What a host
// gives back late has patience to come.
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

// opening says how a connection or stream came to be.
type opening struct {
	what  string
	since time.Time
	by    string // file and line
}

// Unwrap gives the manager that is watched, to those who look for its allowlist.
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

// left describes what is open, the oldest first.
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
