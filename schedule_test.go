package rcmgr

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
)

// schedules runs jobs until the end of the test.
func schedules(t *testing.T, jobs ...*job) {
	m := &Manager{stop: make(chan struct{})}
	m.workers.Go(func() { m.workUntilClosed(jobs) })
	t.Cleanup(func() {
		close(m.stop)
		m.workers.Wait()
	})
}

func TestJobsAreDoneWhenTheyAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var did []string
		note := func(name string) func() {
			return func() { did = append(did, fmt.Sprint(name, time.Since(begun).Seconds())) }
		}
		slow := 0
		schedules(t,
			&job{every: 3 * time.Second, do: note("three ")},
			&job{every: 2 * time.Second, do: note("two ")},
			&job{every: 5 * time.Second, do: func() {
				note("five ")()
				if slow++; slow == 2 {
					time.Sleep(4500 * time.Millisecond) // others miss one of their times, or two
				}
			}})
		time.Sleep(16*time.Second + time.Millisecond)
		synctest.Wait()
		require.Equal(t, []string{"two 2", "three 3", "two 4", "five 5", "three 6", "two 6", "two 8", "three 9", "two 10", "five 10",
			"three 14.5", "two 14.5", "three 15", "five 15", "two 16"}, did)
	})
}

// A job apart holds up no other, and is done by one goroutine at a time.
func TestAJobOfItsOwnGoroutineDoesNotDelayOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begun, ended, others atomic.Int32
		counts := func() []int32 { return []int32{begun.Load(), ended.Load(), others.Load()} }
		schedules(t,
			&job{every: time.Second, do: func() { others.Add(1) }},
			&job{every: time.Second, apart: true, do: func() {
				begun.Add(1)
				time.Sleep(2500 * time.Millisecond)
				ended.Add(1)
			}})
		time.Sleep(3200 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, []int32{1, 0, 3}, counts())
		time.Sleep(time.Second) // it ended at 3.5, and began again at 4
		synctest.Wait()
		require.Equal(t, []int32{2, 1, 4}, counts())
	})
}

// hangingHandler hangs where an error is logged.
type hangingHandler struct {
	slog.Handler
	hang func()
}

func (h hangingHandler) Enabled(_ context.Context, l slog.Level) bool { return l == slog.LevelError }

func (h hangingHandler) Handle(context.Context, slog.Record) error {
	h.hang()
	return nil
}

// Callbacks that hang, whichever, keep neither scopes from being collected nor refusals from
// being seen, and each is called once.
func TestCallbacksThatHangHoldUpNoOtherWork(t *testing.T) {
	for name, option := range map[string]func(t *testing.T, hang func()) Option{
		"near limit": func(_ *testing.T, hang func()) Option { return WithNearLimitFunc(func(NearLimitEvent) { hang() }) },
		"memory in use": func(_ *testing.T, hang func()) Option {
			looks := 0
			return WithMemoryPressure(MemoryPressureConfig{Limit: 1 << 30, InUse: func() int64 {
				if looks++; looks > 1 { // New looks first
					hang()
				}
				return 0
			}})
		},
		"log": func(t *testing.T, hang func()) Option {
			before := log
			t.Cleanup(func() { log = before })
			log = slog.New(hangingHandler{slog.DiscardHandler, hang})
			return WithRefusalLog(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conf := unlimitedConf()
				conf.System.StreamsInbound = 1
				calls, release := 0, make(chan struct{})
				m, err := New(NewFixedLimiter(ConcreteLimitConfig{limits: conf}), WithLeakFinder(LeakFinderConfig{}), option(t, func() {
					calls++
					<-release
				}))
				require.NoError(t, err)
				first := mustOpenStream(t, m, "a", network.DirInbound)
				openingRefused(t, m, "b", 1)
				viewPeer(t, m, "idle")
				time.Sleep(2 * reapInterval)
				synctest.Wait()
				require.Equal(t, 1, calls)
				require.Equal(t, []peer.ID{"a"}, m.ListPeers())
				require.EqualValues(t, 1, m.Snapshot().Recent[0].Refusals)
				s := mustOpenStream(t, m, "c", network.DirOutbound)
				require.Equal(t, "0s", func() string { s := m.Snapshot(); return s.age(&s.Leaks.Oldest[1]) }(), "the clock goes on")
				s.Done()
				first.Done()
				close(release)
				require.NoError(t, m.Close())
			})
		})
	}
}
