package rcmgr

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
)

// oldest returns what a look says of the oldest, without times.
func oldest(m *Manager) (lines []string) {
	s := m.Snapshot()
	for i := range s.Leaks.Oldest {
		o := &s.Leaks.Oldest[i]
		lines = append(lines, fmt.Sprintf("%v %v %v peer=%v protocol=%v service=%v memory=%v age=%v",
			o.Kind, o.Class(), o.Direction, o.Peer != "", o.Protocol, o.Service, o.Memory, s.age(o)))
	}
	return lines
}

func TestTheOldestOpenScopesAreKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(NewFixedLimiter(InfiniteLimits), WithLeakFinder(LeakFinderConfig{Oldest: 2}))
		require.NoError(t, err)
		defer m.Close()
		in, out := network.DirInbound, network.DirOutbound
		wait := func() { time.Sleep(10*time.Second + time.Millisecond) }

		stuck, err := m.OpenStream(testPeers[0], in) // it never negotiates
		require.NoError(t, err)
		wait()
		c, err := m.OpenConnection(out, true, nil)
		require.NoError(t, err)
		require.NoError(t, c.ReserveMemory(100, 255))
		span, err := c.BeginSpan()
		require.NoError(t, err)
		require.NoError(t, span.ReserveMemory(10, 255))
		wait()
		require.NoError(t, c.SetPeer(testPeers[1]))
		s, err := m.OpenStream(testPeers[1], out)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/p"))
		require.NoError(t, s.SetService("svc"))
		wait()
		var others []network.StreamManagementScope
		for range 3 {
			o, err := m.OpenStream(testPeers[2], in)
			require.NoError(t, err)
			others = append(others, o)
		}
		trying, err := m.OpenConnection(in, true, nil)
		require.NoError(t, err)
		require.Equal(t, []string{
			"conn transient Inbound peer=false protocol= service= memory=0 age=0s",
			"conn established Outbound peer=true protocol= service= memory=110 age=20s",
			"stream transient Inbound peer=true protocol= service= memory=0 age=30s",
			"stream transient Inbound peer=true protocol= service= memory=0 age=0s",
			"stream established Outbound peer=true protocol=/p service=svc memory=0 age=10s",
		}, oldest(m))
		require.Equal(t, 7, m.Snapshot().Leaks.Open)

		// A refused move changes nothing, and neither does a scope below.
		require.Error(t, s.SetProtocol("/q"))
		span.Done()
		require.Equal(t, 7, m.Snapshot().Leaks.Open)
		stuck.Done()
		stuck.Done()
		require.Len(t, oldest(m), 5)
		require.Equal(t, 6, m.Snapshot().Leaks.Open)
		for _, d := range []interface{ Done() }{c, s, others[0], others[1], others[2], trying} {
			d.Done()
		}
		require.Empty(t, oldest(m))
		require.Zero(t, m.Snapshot().Leaks.Open)
		for i := range m.leaks.at {
			require.Empty(t, m.leaks.at[i].mu.open)
		}
	})
}

// openAndForget opens a stream and loses it.
//
//go:noinline
func openAndForget(t *testing.T, m *Manager) {
	s, err := m.OpenStream(testPeers[0], network.DirInbound)
	require.NoError(t, err)
	require.NoError(t, s.SetProtocol("/lost"))
	require.NoError(t, s.ReserveMemory(100, 255))
}

func TestAScopeThatIsDroppedWithoutDoneIsFound(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithLeakFinder(LeakFinderConfig{Stacks: 1}))
	kept, err := m.OpenStream(testPeers[1], network.DirInbound)
	require.NoError(t, err)
	closed, err := m.OpenStream(testPeers[1], network.DirInbound)
	require.NoError(t, err)
	closed.Done()
	openAndForget(t, m)
	for range 10_000 { // the runtime gives no other word
		if m.Snapshot().Leaks.Dropped > 0 {
			break
		}
		runtime.GC()
		runtime.Gosched()
	}
	s := m.Snapshot()
	require.Equal(t, 2, s.Leaks.Open)
	require.Equal(t, 1, s.Leaks.Dropped)
	for s.CallerBugs == 0 { // it is told right after it is counted
		runtime.Gosched()
		s = m.Snapshot()
	}
	require.Equal(t, uint64(1), s.CallerBugs)
	var lost OpenScope
	for _, o := range s.Leaks.Oldest {
		if o.Dropped {
			lost = o
		}
	}
	require.Equal(t, testPeers[0].String(), lost.Peer)
	require.Equal(t, "/lost", lost.Protocol)
	require.Equal(t, "established, dropped", lost.Class())
	require.Contains(t, strings.Join(lost.Stack, "\n"), "rcmgr.openAndForget leaks_test.go:")
	require.Equal(t, 1, m.Stat().Protocols["/lost"].NumStreamsInbound, "what it holds stays held")
	kept.Done()
	closed = nil
	for range 3 {
		runtime.GC()
	}
	require.Equal(t, 1, m.Snapshot().Leaks.Dropped, "what was done is no leak")
}

// collectGarbage collects what nothing refers to any more, until it has seen several times that
// the runtime has run the cleanups of what went at the same time.
func collectGarbage() {
	for range 10 {
		gone := make(chan struct{})
		runtime.AddCleanup(new([64]byte), func(gone chan struct{}) { close(gone) }, gone)
		for waiting := true; waiting; {
			runtime.GC()
			select {
			case <-gone:
				waiting = false
			default:
				runtime.Gosched()
			}
		}
	}
}

// A caller that ends a scope need not have it any more by the time that its record is closed: the
// collection may come in between.
func TestAScopeThatIsEndedWhileItIsCollectedIsNotDropped(t *testing.T) {
	// The callers hand over the only reference that there is.
	for name, end := range map[string]func(m *Manager) (func(), error){
		"conn": func(m *Manager) (func(), error) {
			c, err := m.OpenConnection(network.DirInbound, true, nil)
			return func() { c.Done() }, err
		},
		"conn of a peer": func(m *Manager) (func(), error) {
			c, err := m.OpenConnection(network.DirInbound, true, nil)
			if err == nil {
				err = c.SetPeer(testPeers[0])
			}
			return func() { c.Done() }, err
		},
		"stream": func(m *Manager) (func(), error) {
			s, err := m.OpenStream(testPeers[0], network.DirInbound)
			return func() { s.Done() }, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, unlimitedConf(), WithLeakFinder(LeakFinderConfig{}),
				WithTraceReporter(reporterFunc(func(TraceEvt) {})))
			done, err := end(m)
			require.NoError(t, err)
			unlock := lockFor(t, &m.trace.mu) // in which Done tells of it, before it closes the record
			ended, id := make(chan struct{}), make(chan string, 1)
			go func(done func()) {
				defer close(ended)
				id <- goroutineID()
				done()
			}(done)
			done = nil
			waitUntilLocked(t, <-id)
			collectGarbage()
			unlock()
			<-ended
			collectGarbage()
			s := m.Snapshot()
			require.Equal(t, LeakState{}, s.Leaks)
			require.Zero(t, s.CallerBugs)
		})
	}
}

// Numbers are of connections and streams; a span of a peer has numbers of its own.
func TestASpanOfAPeerIsNotMistakenForAStreamOfTheSameNumber(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithLeakFinder(LeakFinderConfig{}), WithStripes(1))
	s, err := m.OpenStream(testPeers[0], network.DirInbound)
	require.NoError(t, err)
	defer s.Done()
	require.NoError(t, m.ViewPeer(testPeers[0], func(p network.PeerScope) error {
		span, err := p.BeginSpan()
		require.NoError(t, err)
		require.EqualValues(t, s.(*streamScope).h.num, span.(*rootSpan).seq)
		span.Done()
		return nil
	}))
	require.Equal(t, 1, m.Snapshot().Leaks.Open)
}

// The shards are visited in another order than that of age.
func TestTheOldestIsFoundInAnyShard(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithLeakFinder(LeakFinderConfig{Oldest: 3}), WithStripes(1))
	for range 3 * leakShards {
		s, err := m.OpenStream(testPeers[0], network.DirInbound)
		require.NoError(t, err)
		defer s.Done()
	}
	var names []string
	for _, o := range m.Snapshot().Leaks.Oldest {
		names = append(names, o.Name)
	}
	require.Equal(t, []string{"stream-1", "stream-2", "stream-3"}, names)
}

func TestTheLeakFinderSamplesStacks(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithLeakFinder(LeakFinderConfig{Stacks: 4, Oldest: 100}), WithStripes(1))
	for range 40 {
		s, err := m.OpenStream(testPeers[0], network.DirInbound)
		require.NoError(t, err)
		defer s.Done()
	}
	n := 0
	for _, o := range m.Snapshot().Leaks.Oldest {
		if len(o.Stack) > 0 {
			n++
			require.Contains(t, o.Stack[0], "OpenStream open.go:")
			require.NotContains(t, strings.Join(o.Stack, ""), "leaks.go")
		}
	}
	require.Equal(t, 10, n)
}

func TestThePageHasTheOldest(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithLeakFinder(LeakFinderConfig{Stacks: 1}))
	s, err := m.OpenStream(testPeers[0], network.DirInbound)
	require.NoError(t, err)
	defer s.Done()
	require.NoError(t, s.SetProtocol("<b>\n"))
	get := func(format string) string {
		w := httptest.NewRecorder()
		Handler(m).ServeHTTP(w, httptest.NewRequest("GET", "/?format="+format, nil))
		require.Equal(t, 200, w.Code)
		return w.Body.String()
	}
	require.Contains(t, get("text"), "The oldest of 1 open connections and streams, 0 of them dropped without Done\n")
	require.Regexp(t, `stream-\d+  established  inbound    \ds   0       `+testPeers[0].String()+`  "<b>\\n"`, get("text"))
	html := get("html")
	require.Contains(t, html, "<h2>The oldest of 1 open connections and streams</h2>")
	require.Contains(t, html, "&lt;b&gt;")
	require.NotContains(t, html, "<b>")
	var read Snapshot
	require.NoError(t, json.Unmarshal([]byte(get("json")), &read))
	require.Len(t, read.Leaks.Oldest, 1)
	require.Equal(t, "<b>\n", read.Leaks.Oldest[0].Protocol)
	require.NotEmpty(t, read.Leaks.Oldest[0].Stack)

	off := newManager(t, unlimitedConf())
	text, err := json.Marshal(off.Snapshot())
	require.NoError(t, err)
	require.NotContains(t, string(text), "Leaks")
	_, err = New(nil, WithLeakFinder(LeakFinderConfig{Stacks: -1}))
	require.ErrorContains(t, err, "WithLeakFinder: Stacks is -1 and Oldest 0")
}

// Many at work leave no record behind, also while others look.
func TestTheLeakFinderKeepsNoRecordOfDoneScopes(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithLeakFinder(LeakFinderConfig{Stacks: 16}))
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := range 500 {
				c, err := m.OpenConnection(network.DirInbound, true, nil)
				if err == nil {
					err = c.SetPeer(peer.ID(fmt.Sprint(w, i%7)))
				}
				s, err2 := m.OpenStream(peer.ID(fmt.Sprint(w, i%7)), network.DirOutbound)
				if err2 == nil {
					err2 = s.SetProtocol("/p")
				}
				if err != nil || err2 != nil {
					t.Error(err, err2)
					return
				}
				if i%100 == 0 {
					m.Snapshot()
				}
				c.Done()
				s.Done()
			}
		})
	}
	workers.Wait()
	require.Equal(t, LeakState{}, m.Snapshot().Leaks)
}

// What it costs to have records: a stream that is opened and closed, with and
// without.
func BenchmarkLeakFinder(b *testing.B) {
	for _, c := range []struct {
		name string
		opts []Option
	}{
		{"records=none", nil},
		{"records=all", []Option{WithLeakFinder(LeakFinderConfig{})}},
		{"records=all,stacks=all", []Option{WithLeakFinder(LeakFinderConfig{Stacks: 1})}},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := newManager(b, unlimitedConf(), c.opts...)
			b.ReportAllocs()
			for b.Loop() {
				s, err := m.OpenStream(testPeers[0], network.DirInbound)
				if err == nil {
					err = s.SetProtocol("/p")
				}
				if err != nil {
					b.Fatal(err)
				}
				s.Done()
			}
		})
	}
}
