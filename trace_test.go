package rcmgr

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
)

// heard keeps what a reporter is handed.
type heard struct{ evts []TraceEvt }

func (h *heard) ConsumeEvent(e TraceEvt) { h.evts = append(h.evts, e) }

// deltas returns the events in short: "n" for one with Delta n, or its type.
func deltas(evts []TraceEvt) (out []string) {
	for _, e := range evts {
		switch e.Type {
		case TraceReserveMemoryEvt:
			out = append(out, fmt.Sprint(e.Delta))
		case TraceDroppedEvt:
			out = append(out, fmt.Sprint("dropped ", e.Delta))
		default:
			out = append(out, string(e.Type))
		}
	}
	return out
}

func listen(t *testing.T, reporters ...TraceReporter) *tracer {
	t.Helper()
	tr, err := newTracer("", reporters, noLimits())
	require.NoError(t, err)
	return tr
}

// noLimits is a limiter without limits.
func noLimits() Limiter { return NewFixedLimiter(InfiniteLimits) }

func (t *tracer) pushMemory(n int64) {
	t.push(traceEvent{typ: TraceReserveMemoryEvt, name: scopeOf(KindSystem), delta: n})
}

// flushed waits until everything has been delivered.
func flushed(t *testing.T, tr *tracer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := tr.flush(ctx); err != nil {
		t.Error(err)
	}
}

// lines reads a trace file as far as it goes. Only one that was closed has an end.
func lines(t *testing.T, compressed io.Reader, closed bool) (evts []TraceEvt) {
	t.Helper()
	r, err := gzip.NewReader(compressed)
	require.NoError(t, err)
	text, err := io.ReadAll(r)
	if closed {
		require.NoError(t, err)
	} else {
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	}
	for line := range bytes.Lines(text) {
		var e struct {
			TraceEvt
			Scope map[string]string
		}
		require.NoError(t, json.Unmarshal(line, &e), "%s", line)
		evts = append(evts, e.TraceEvt)
	}
	return evts
}

func TestANilTracerCanBeFlushedAndClosed(t *testing.T) {
	tr, err := newTracer("", nil, noLimits())
	require.NoError(t, err)
	require.Nil(t, tr)
	flushed(t, tr)
	tr.close()
}

func TestReportersGetAllEventsInOrder(t *testing.T) {
	var a, b heard
	tr := listen(t, &a, &b)
	want := []string{"start"}
	for n := int64(1); n <= 5000; n++ {
		tr.pushMemory(n)
		want = append(want, fmt.Sprint(n))
		if n%777 < 2 { // many, or one
			flushed(t, tr)
			require.Equal(t, want, deltas(a.evts))
		}
	}
	tr.close()
	flushed(t, tr)
	require.Equal(t, want, deltas(a.evts))
	require.Equal(t, want, deltas(b.evts))
}

func TestAFullQueueDropsAndSaysHowMany(t *testing.T) {
	gate := make(chan struct{})
	var got heard
	tr := listen(t, reporterFunc(func(e TraceEvt) {
		<-gate
		got.ConsumeEvent(e)
	}))
	tr.mu.Lock()
	tr.max = 3
	tr.mu.Unlock()
	waitTaken := func() { // until run has the queue in its hands
		require.Eventually(t, func() bool {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			return len(tr.mu.queue) == 0
		}, 10*time.Second, time.Millisecond)
	}
	waitTaken()
	for n := range int64(10) { // 0, 1, 2 fit
		tr.pushMemory(n)
	}
	gate <- struct{}{} // start
	waitTaken()
	for n := range int64(4) { // 10, 11, 12 fit
		tr.pushMemory(10 + n)
	}
	close(gate)
	flushed(t, tr)
	tr.pushMemory(20)
	tr.close()
	require.Equal(t, []string{"start", "0", "1", "2", "dropped 7", "10", "11", "12", "dropped 1", "20"}, deltas(got.evts))
	told := got.evts[4]
	require.Nil(t, told.Scope)
	text, err := json.Marshal(told)
	require.NoError(t, err)
	require.JSONEq(t, fmt.Sprintf(`{"Time":%q,"Type":"dropped","Delta":7}`, told.Time), string(text))
}

func TestPushingAnEventAllocatesNothing(t *testing.T) {
	tr := &tracer{max: 10_000, wake: make(chan struct{}, 1)}
	tr.mu.queue = make([]traceEvent, 0, tr.max)
	h := &holder{link: &holder{kind: KindStream, num: 4}, role: innerSpan, num: 4, seq: 2}
	r, use := memoryRequest(AdmissionHalf, 10, 255), amounts{}
	delta := r.delta()
	require.Zero(t, testing.AllocsPerRun(1000, func() { tr.granted(h.name(h.num), delta, &use) }))
	require.Len(t, tr.mu.queue, 1001)
}

// The lock is one that the engine would hold while it pushes.
func TestAReporterMayTakeLocksUnderWhichEventsArePushed(t *testing.T) {
	var engine sync.Mutex
	var tr *tracer
	var ready sync.WaitGroup
	ready.Add(1)
	total, got := int64(0), heard{}
	tr = listen(t, reporterFunc(func(e TraceEvt) {
		ready.Wait()
		engine.Lock()
		defer engine.Unlock()
		got.ConsumeEvent(e)
		if e.Delta == 1 {
			total++
			tr.pushMemory(2) // and it makes an event itself
		}
	}))
	ready.Done()
	for range 100 {
		engine.Lock()
		tr.pushMemory(1)
		engine.Unlock()
	}
	flushed(t, tr) // all of the 1
	tr.close()     // and what they led to
	require.Equal(t, int64(100), total)
	require.Len(t, got.evts, 1+200)
}

func TestAPanickingReporterIsNotCalledAgain(t *testing.T) {
	text := captureLog(t)
	calls := 0
	var before, after heard
	tr := listen(t, &before, reporterFunc(func(TraceEvt) {
		calls++
		panic("oh no")
	}), &after)
	tr.pushMemory(1)
	flushed(t, tr)
	tr.pushMemory(2)
	tr.close()
	require.Equal(t, 1, calls)
	require.Equal(t, []string{"start", "1", "2"}, deltas(before.evts))
	require.Equal(t, []string{"start", "1", "2"}, deltas(after.evts))
	require.Equal(t, 1, strings.Count(text.String(), "oh no"), text.String())
	require.Contains(t, text.String(), "reporterFunc")
}

func TestAReporterThatEndsItsGoroutineHangsNobody(t *testing.T) {
	tr := listen(t, reporterFunc(func(TraceEvt) { runtime.Goexit() }))
	tr.pushMemory(1)
	require.ErrorIs(t, tr.flush(context.Background()), errTraceEnded)
	tr.close()
	require.ErrorIs(t, tr.flush(context.Background()), errTraceEnded, "it never will be")
}

func TestTheFileHasAllLinesAfterClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.json.gz")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("old"), 100_000), 0o600))
	var also heard
	tr, err := newTracer(path, []TraceReporter{&also}, noLimits())
	require.NoError(t, err)
	for n := int64(1); n <= 3000; n++ {
		tr.pushMemory(n)
	}
	tr.close()
	tr.pushMemory(0)
	tr.close()
	require.Empty(t, tr.mu.queue, "nobody would deliver it")

	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	got := lines(t, file, true)
	require.Len(t, got, 3001)
	require.Equal(t, deltas(also.evts), deltas(got))

	limits, err := json.Marshal(InfiniteLimits)
	require.NoError(t, err)
	written, err := json.Marshal(got[0].Limit)
	require.NoError(t, err)
	require.JSONEq(t, string(limits), string(written))
	require.Equal(t, noLimits(), also.evts[0].Limit)
}

// disk is a file that fails after some bytes, if it is to.
type disk struct {
	mu struct {
		sync.Mutex
		bytes.Buffer
		closed int
	}
	room int
}

var errDiskFull = errors.New("disk full")

func (d *disk) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.room -= len(b); d.room < 0 {
		return 0, errDiskFull
	}
	return d.mu.Write(b)
}

func (d *disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.closed++
	return nil
}

func (d *disk) written() *bytes.Reader {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.NewReader(slices.Clone(d.mu.Bytes()))
}

func TestLinesReachTheFileWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{room: 1 << 30}
		tr := startTracer(newTraceFile(d, noLimits()), nil, noLimits())
		tr.pushMemory(1)
		time.Sleep(traceFlush / 2)
		require.Zero(t, d.written().Len(), "not line by line")
		tr.pushMemory(2)
		time.Sleep(traceFlush / 2)
		synctest.Wait()
		require.Equal(t, []string{"start", "1", "2"}, deltas(lines(t, d.written(), false)))

		time.Sleep(time.Hour)
		tr.pushMemory(3)
		before := d.written().Len()
		synctest.Wait()
		require.Equal(t, before, d.written().Len())
		time.Sleep(traceFlush)
		synctest.Wait()
		require.Equal(t, []string{"start", "1", "2", "3"}, deltas(lines(t, d.written(), false)))

		quiet := d.written().Len()
		time.Sleep(time.Hour)
		require.Equal(t, quiet, d.written().Len(), "nothing happened, nothing is written")

		tr.pushMemory(4)
		flushed(t, tr)
		require.Equal(t, []string{"start", "1", "2", "3", "4"}, deltas(lines(t, d.written(), false)))
		tr.close()
		require.Len(t, lines(t, d.written(), true), 5)
		require.Equal(t, 1, d.mu.closed)
	})
}

func TestAFailingDiskStopsOnlyTheFile(t *testing.T) {
	for _, room := range []int{0, 100_000} { // at the first flush; in the midst of lines
		text := captureLog(t)
		d := &disk{room: room}
		var got heard
		tr := startTracer(newTraceFile(d, noLimits()), []TraceReporter{&got}, noLimits())
		want := []string{"start"}
		for n := int64(1); n <= 40_000; n++ {
			tr.push(traceEvent{typ: TraceReserveMemoryEvt, delta: n,
				// something that does not compress
				name: scopeName{kind: KindPeer, peer: peer.ID(fmt.Sprint(n * n * 7919 % 1_000_003))}})
			want = append(want, fmt.Sprint(n))
		}
		flushed(t, tr)
		require.Equal(t, 1, d.mu.closed)
		tr.pushMemory(7)
		tr.close()
		require.Equal(t, append(want, "7"), deltas(got.evts))
		require.Equal(t, 1, strings.Count(text.String(), "disk full"), text.String())
		require.Equal(t, 1, strings.Count(text.String(), "\n"), text.String())
		require.Equal(t, 1, d.mu.closed)
	}
}

func TestADiskThatFailsAtTheEndIsReported(t *testing.T) {
	text := captureLog(t)
	d := &disk{}
	tr := startTracer(newTraceFile(d, noLimits()), nil, noLimits())
	tr.close()
	require.Contains(t, text.String(), "disk full")
	require.Equal(t, 1, d.mu.closed)
}

// fullDisk is a file that can be opened and not be written.
const fullDisk = "/dev/full"

func TestTheKernelsFullDisk(t *testing.T) {
	if _, err := os.Stat(fullDisk); err != nil {
		t.Skip("no " + fullDisk)
	}
	text := captureLog(t)
	var got heard
	tr, err := newTracer(fullDisk, []TraceReporter{&got}, noLimits())
	require.NoError(t, err)
	flushed(t, tr)
	tr.pushMemory(1)
	tr.close()
	require.Equal(t, []string{"start", "1"}, deltas(got.evts))
	require.Contains(t, text.String(), "no space left")
}

// deafLimiter cannot be written as JSON.
type deafLimiter struct {
	Limiter
	Changes chan int
}

func TestALimiterThatHasNoJSONIsNoReasonToStop(t *testing.T) {
	d := &disk{room: 1 << 20}
	limits := deafLimiter{Limiter: noLimits()}
	tr := startTracer(newTraceFile(d, limits), nil, limits)
	tr.pushMemory(1)
	tr.close()
	got := lines(t, d.written(), true)
	require.Equal(t, []string{"start", "1"}, deltas(got))
	require.Contains(t, got[0].Limit, "cannot be written")
}

func TestATraceFileThatCannotBeOpenedIsAnErrorWhereTheConfigurationIsStrict(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no", "such", "directory")
	_, err := New(nil, WithTrace(path), WithStrictConfig())
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, path)
}

func TestEveryCloseWaitsForTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var closed atomic.Int32
		tr := listen(t, reporterFunc(func(TraceEvt) { <-gate }))
		for range 2 {
			go func() {
				tr.close()
				closed.Add(1)
			}()
			synctest.Wait()
			require.Zero(t, closed.Load())
		}
		close(gate)
		synctest.Wait()
		require.EqualValues(t, 2, closed.Load())
	})
}

func TestDeliveredEventsAreCleared(t *testing.T) {
	tr := &tracer{max: 10, wake: make(chan struct{}, 1)}
	tr.push(traceEvent{typ: TraceDestroyScopeEvt, name: spanBelow(scopeOf(KindSystem), 1)})
	room := tr.deliver(nil)
	require.Empty(t, room)
	require.Equal(t, traceEvent{}, room[:1][0])
}

func TestManyGoroutinesPushFlushAndClose(t *testing.T) {
	var got heard
	tr := listen(t, &got)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := range int64(2000) {
				tr.pushMemory(n)
				if n%500 == 0 {
					flushed(t, tr)
				}
			}
		})
	}
	wg.Wait()
	for range 3 {
		wg.Go(tr.close)
		wg.Go(func() { flushed(t, tr) })
	}
	wg.Wait()
	require.Len(t, got.evts, 1+4*2000)
}

func TestFlushTraceWaitsForWhatHasHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names sync.Map
		told := func(p peer.ID) bool {
			_, ok := names.Load("peer:" + p.String())
			return ok
		}
		path := filepath.Join(t.TempDir(), "trace")
		m, err := New(NewFixedLimiter(InfiniteLimits), WithTrace(path), WithTraceReporter(reporterFunc(func(e TraceEvt) {
			time.Sleep(time.Second)
			names.Store(e.Name, true)
		})))
		require.NoError(t, err)
		defer m.Close()
		open := func(p peer.ID) {
			s, err := m.OpenStream(p, network.DirInbound)
			require.NoError(t, err)
			t.Cleanup(s.Done)
		}
		have := func(p peer.ID) []bool { // the reporter, the file
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			name := "peer:" + p.String()
			inFile := slices.ContainsFunc(lines(t, bytes.NewReader(text), false), func(e TraceEvt) bool { return e.Name == name })
			return []bool{told(p), inFile}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, m.FlushTrace(ctx))
		open(testPeers[0])
		require.False(t, told(testPeers[0]), "it is told later")
		require.NoError(t, m.FlushTrace(ctx))
		require.Equal(t, []bool{true, true}, have(testPeers[0]))

		before := time.Now()
		require.NoError(t, m.FlushTrace(ctx))
		require.Zero(t, time.Since(before), "nothing is left")

		// In the middle of a batch, for many who wait.
		open(testPeers[1])
		time.Sleep(1500 * time.Millisecond)
		open(testPeers[2])
		var waiters sync.WaitGroup
		for range 3 {
			waiters.Go(func() {
				if err := m.FlushTrace(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		waiters.Wait()
		require.Equal(t, []bool{true, true}, have(testPeers[1]))
		require.Equal(t, []bool{true, true}, have(testPeers[2]))
	})
}

// What has been delivered waits for more on its way to the file.
func TestFlushTraceWritesTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "trace")
		m, err := New(NewFixedLimiter(InfiniteLimits), WithTrace(path))
		require.NoError(t, err)
		defer m.Close()
		written := func() int {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			return len(text)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, m.FlushTrace(ctx))
		last := written()
		require.Positive(t, last)
		viewPeer(t, m, testPeers[0])
		synctest.Wait()
		require.Equal(t, last, written())
		before := time.Now()
		require.NoError(t, m.FlushTrace(ctx))
		require.Zero(t, time.Since(before))
		require.Greater(t, written(), last)
	})
}

func TestFlushTraceGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m *Manager
		asked := false
		var got atomic.Int32
		inTime := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return m.FlushTrace(ctx)
		}
		hang := make(chan struct{})
		var within error
		made := make(chan struct{})
		var err error
		m, err = New(NewFixedLimiter(InfiniteLimits), WithTraceReporter(reporterFunc(func(e TraceEvt) {
			<-made
			got.Add(1)
			switch {
			case e.Type == TraceAddStreamEvt && !asked:
				asked = true
				within = inTime() // it waits for itself
			case e.Type == TraceRemoveStreamEvt:
				<-hang
			}
		})))
		require.NoError(t, err)
		close(made)
		s, err := m.OpenStream(testPeers[0], network.DirInbound)
		require.NoError(t, err)
		require.NoError(t, m.FlushTrace(context.Background()))
		require.True(t, asked)
		require.ErrorIs(t, within, context.DeadlineExceeded)
		require.ErrorContains(t, within, "rcmgr: the trace is not flushed")
		before := got.Load()
		s.Done()
		require.ErrorIs(t, inTime(), context.DeadlineExceeded)
		require.Equal(t, before+1, got.Load())

		// A call that waits when Close begins has waited long enough when it ends.
		waited := make(chan error)
		go func() { waited <- m.FlushTrace(context.Background()) }()
		closed := make(chan error)
		go func() { closed <- m.Close() }()
		synctest.Wait()
		close(hang)
		require.NoError(t, <-waited)
		require.NoError(t, <-closed)
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		require.NoError(t, m.FlushTrace(ended), "there is nothing to wait for")
		off, err := New(nil)
		require.NoError(t, err)
		require.NoError(t, off.FlushTrace(ended))
		require.NoError(t, off.Close())
	})
}

func TestATracedManagerDeliversToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m *Manager
		ready := make(chan struct{})
		asked := false
		path := filepath.Join(t.TempDir(), "trace")
		var err error
		m, err = New(nil, WithTrace(path), WithStripes(8), WithTraceReporter(reporterFunc(func(TraceEvt) {
			<-ready
			m.Stat()
			asked = true
		})))
		require.NoError(t, err)
		require.Len(t, m.stripes, 1)
		close(ready)
		require.NoError(t, m.Close())
		require.True(t, asked)
		file, err := os.Open(path)
		require.NoError(t, err)
		defer file.Close()
		require.Equal(t, TraceStartEvt, lines(t, file, true)[0].Type)
	})
}

func TestClassesAreMadeOfKinds(t *testing.T) {
	id := mustPeer(t, peerA)
	for want, n := range map[string]scopeName{
		`{"Class":"system"}`:               scopeOf(KindSystem),
		`{"Class":"allowlistedTransient"}`: scopeOf(KindAllowlistedTransient),
		`{"Class":"system","Span":"3"}`:    spanBelow(scopeOf(KindSystem), 3),
		`{"Class":"conn","Conn":"17","Span":"2.1"}`: spanBelow(
			spanBelow(scopeName{kind: KindConn, num: 17}, 2), 1),
		`{"Class":"protocol","Protocol":"/my.span-app"}`: {kind: KindProtocol, text: "/my.span-app"},
		`{"Class":"protocol","Protocol":"/peer:to-peer","Span":"1"}`: spanBelow(
			scopeName{kind: KindProtocol, text: "/peer:to-peer"}, 1),
		`{"Class":"service-peer","Service":"a\"b\u003c","Peer":"` + peerA + `"}`: {kind: KindServicePeer, text: `a"b<`, peer: id},
		`{"Class":"peer","Peer":""}`:                 scopeOf(KindPeer),
		`{"Class":"subnet","Subnet":"192.0.2.0/24"}`: nameOfSubnet(KindSubnet, "192.0.2.0/24"),
		`{"Class":"rate","Subnet":"192.0.2.0/24"}`:   nameOfSubnet(KindRate, "192.0.2.0/24"),
	} {
		e := (&tracer{}).export(&traceEvent{typ: TraceDestroyScopeEvt, name: n})
		got, err := json.Marshal(e.Scope)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}

type noMetrics struct{ MetricsReporter }

func TestOptionsOfTraceAndMetrics(t *testing.T) {
	set := func(opts ...Option) config {
		var c config
		for _, opt := range opts {
			require.NoError(t, opt(&c))
		}
		return c
	}
	stats, err := NewStatsTraceReporter()
	require.NoError(t, err)
	stats.ConsumeEvent(TraceEvt{})
	stats.ReportSystemLimits(nil)

	c := set()
	require.False(t, c.traced())
	require.True(t, c.measured())

	a, b := &heard{}, &heard{}
	c = set(WithTraceReporter(a), WithTraceReporter(stats), WithTraceReporter(b))
	require.True(t, c.traced())
	require.Equal(t, []TraceReporter{a, b}, c.reporters)

	c = set(WithTraceReporter(stats), WithTraceReporter(&stats), WithTrace(""))
	require.False(t, c.traced(), "it switches on no tracing")
	c = set(WithTrace("x"))
	require.True(t, c.traced())

	c = set(WithMetricsDisabled())
	require.False(t, c.measured())
	c = set(WithTraceReporter(&stats), WithMetricsDisabled())
	require.True(t, c.measured(), "who asks for metrics has them")

	r := noMetrics{}
	c = set(WithMetrics(r))
	require.Equal(t, MetricsReporter(r), c.reporter)

	require.ErrorContains(t, WithTraceReporter(nil)(&c), "nil")
	require.ErrorContains(t, WithMetrics(nil)(&c), "nil")
}

func TestAManagerWithoutMetricsIsNotShown(t *testing.T) {
	for _, c := range []struct {
		opts []Option
		want bool
	}{
		{nil, true},
		{[]Option{WithMetricsDisabled()}, false},
		{[]Option{WithMetricsDisabled(), WithTraceReporter(StatsTraceReporter{})}, true},
	} {
		m, err := New(nil, c.opts...)
		require.NoError(t, err)
		require.Equal(t, c.want, live.has(m))
		require.NoError(t, m.Close())
		require.False(t, live.has(m))
	}
}
