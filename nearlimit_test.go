package rcmgr

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

func TestMarksAreReportedOnceUntilUseFallsBack(t *testing.T) {
	told := marksReached(0)
	for _, step := range []struct {
		use  int64
		want marksReached
	}{
		{79, 0}, {80, 1}, {94, 1}, {80, 1}, {79, 1}, {75, 1}, {80, 1}, {74, 0}, {80, 1}, {95, 2}, {90, 2}, {89, 1}, {95, 2},
		{200, 2}, {74, 0}, {100, 2}, {0, 0}, {94, 1},
	} {
		told = told.after(step.use, 100)
		require.Equal(t, step.want, told, "at %d", step.use)
	}
	require.EqualValues(t, 1, marksReached(0).after(math.MaxInt64/100*81, math.MaxInt64-1))
	require.EqualValues(t, 0, marksReached(0).after(math.MaxInt64/100*79, math.MaxInt64-1))
}

// watchNear makes a manager in a bubble, and returns the events since the last look.
func watchNear(t *testing.T, conf perScope[BaseLimit], opts ...Option) (m *Manager, next func() []string) {
	var events []string
	m = newManager(t, conf, append(opts, WithNearLimitFunc(func(e NearLimitEvent) {
		events = append(events, fmt.Sprintf("%s %s %d: %d of %d", e.Scope, e.Name, e.Percent, e.Use, e.Limit))
	}))...)
	return m, func() []string {
		time.Sleep(nearInterval)
		synctest.Wait()
		last := events
		events = nil
		return last
	}
}

func TestNearLimitsAreReportedOncePerMark(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		synctest.Test(t, func(t *testing.T) {
			conf := unlimitedConf()
			conf.System.Memory = 1 << 20
			m, next := watchNear(t, conf, WithStripes(stripes))
			defer m.Close()
			system := m.fixed[KindSystem]
			at := func(percent int64) []string {
				want := percent * (1 << 20) / 100
				if now := system.Stat().Memory; want > now {
					require.NoError(t, system.ReserveMemory(int(want-now), 255))
				} else {
					system.ReleaseMemory(int(now - want))
				}
				return next()
			}
			require.Empty(t, at(79))
			require.Equal(t, []string{"system Memory 80: 849346 of 1048576"}, at(81))
			require.Empty(t, at(90))
			require.Empty(t, at(78))
			require.Empty(t, at(81), "it has not fallen back")
			require.Len(t, at(96), 1)
			require.Empty(t, at(70))
			require.Equal(t, []string{"system Memory 80: 1048576 of 1048576", "system Memory 95: 1048576 of 1048576"}, at(100))
			require.Empty(t, at(0))
		})
	}
}

func TestNearLimitsOfServicesProtocolsAndDirections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := unlimitedConf()
		conf.ProtocolDefault.StreamsInbound, conf.ServiceDefault.Streams, conf.PeerDefault.Streams = 5, 5, 4
		conf.System.FD, conf.System.ConnsInbound = 0, math.MaxInt
		m, next := watchNear(t, conf)
		defer m.Close()
		var held []network.StreamManagementScope
		for range 4 {
			s := mustOpenStream(t, m, testPeer, network.DirInbound)
			require.NoError(t, s.SetProtocol("/a"))
			require.NoError(t, s.SetService("x"))
			held = append(held, s)
		}
		require.ElementsMatch(t, []string{"protocol:/a StreamsInbound 80: 4 of 5", "service:x Streams 80: 4 of 5"}, next(),
			"the peer, which is full, is not watched")
		require.Empty(t, next())

		// A scope that was collected and comes back is a new one.
		for _, s := range held {
			s.Done()
		}
		m.reap()
		require.Empty(t, next())
		for range 4 {
			s := mustOpenStream(t, m, testPeer, network.DirInbound)
			require.NoError(t, s.SetProtocol("/a"))
		}
		require.Equal(t, []string{"protocol:/a StreamsInbound 80: 4 of 5"}, next())
	})
}

// A flood fills at once what a trimmer has made room in.
func TestNearLimitIsReportedAgainAfterUseFell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := unlimitedConf()
		conf.System.Memory = 100
		m, next := watchNear(t, conf)
		defer m.Close()
		system := m.fixed[KindSystem]
		require.NoError(t, system.ReserveMemory(100, 255))
		require.Len(t, next(), 2)
		for _, step := range []struct {
			to    int
			again int
		}{{76, 1}, {74, 2}, {90, 0}, {89, 1}} {
			system.ReleaseMemory(100 - step.to)
			require.NoError(t, system.ReserveMemory(100-step.to, 255))
			require.Len(t, next(), step.again, "down to %d and up again", step.to)
			require.Empty(t, next())
		}
		system.ReleaseMemory(100)
		require.Empty(t, next())
	})
}

func TestNearLimitIsReportedForLoweredAndObservedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, next := watchNear(t, unlimitedConf(), WithObserveOnly())
		defer m.Close()
		system := m.fixed[KindSystem]
		require.NoError(t, system.ReserveMemory(1000, 255))
		require.Empty(t, next())
		limit := unlimitedBase
		limit.Memory = 1200
		system.SetLimit(&limit)
		require.Equal(t, []string{"system Memory 80: 1000 of 1200"}, next())
		require.NoError(t, system.ReserveMemory(1000, 255))
		require.Equal(t, []string{"system Memory 95: 2000 of 1200"}, next())
		system.SetLimit(&unlimitedBase)
		require.Empty(t, next())
	})
}

// The least that was handed out between two looks is known whatever came after it: also
// credit that was handed out under all stripe locks, for a request that another pool
// could not decide by itself, and after idle credit was called in.
func TestTheLeastCreditHandedOutBetweenTwoLooksIsKnown(t *testing.T) {
	const k = 1 << 10
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Memory, c.ProtocolDefault.Memory = 1000*k, 1000*k
	}), WithStripes(1))
	system := m.fixed[KindSystem]
	least := func() int64 {
		_, low := system.lookAt()
		return low[dimMemory]
	}
	first, second := mustOpenStream(t, m, testPeer, network.DirInbound), mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, second.SetProtocol(testProto))
	require.NoError(t, first.ReserveMemory(850*k, 255))
	least()
	first.ReleaseMemory(500 * k)
	settled := m.Snapshot().Engine.Settled
	require.NoError(t, second.ReserveMemory(510*k, 255)) // more than half of the protocol's
	require.Equal(t, settled+1, m.Snapshot().Engine.Settled)
	require.EqualValues(t, 350*k, least())
	first.Done()
	second.Done()

	require.NoError(t, system.ReserveMemory(1, 255))
	require.Greater(t, system.tally(dimMemory).handed, int64(k), "a batch ahead")
	least()
	m.inOneCut(func() { system.recall(dimMemory, 0) })
	require.NoError(t, system.ReserveMemory(k, 255))
	require.EqualValues(t, 1, least())
	system.ReleaseMemory(1 + k)
	assertEmpty(t, m)
}

// A look at limits may still have a scope in its list that is gone, and comes back with
// other limits: it reads the old ones or the new ones.
func TestAScopeThatComesBackDuringALookHasOldOrNewLimits(t *testing.T) {
	conf := unlimitedConf()
	m := newManager(t, conf, WithStripes(4))
	kept := viewService(t, m, testSvc)
	p := m.dir.find(KindService, testSvc)
	m.reap()
	require.Nil(t, m.dir.find(KindService, testSvc))
	conf.ServiceDefault.Memory = 1000
	require.NoError(t, m.SetLimits(NewFixedLimiter(ConcreteLimitConfig{limits: conf})))

	unlock := lockFor(t, &m.drawing) // as lookAt does
	back, id := make(chan error, 1), make(chan string, 1)
	go func() {
		id <- goroutineID()
		span, err := kept.BeginSpan()
		if err == nil {
			span.Done()
		}
		back <- err
	}()
	waitUntilLocked(t, <-id)
	require.Equal(t, int64(math.MaxInt64), p.limit[dimMemory])
	unlock()
	require.NoError(t, <-back)
	all, _ := p.lookAt()
	require.EqualValues(t, 1000, all[dimMemory].limit)
}

// A listener may ask the manager anything, several are called, and none is called after
// Close.
func TestListenersRunWithoutLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := unlimitedConf()
		conf.System.Memory = 10
		var m *Manager
		asked, second := 0, 0
		m = newManager(t, conf, WithNearLimitFunc(func(NearLimitEvent) {
			m.Snapshot()
			m.fixed[KindSystem].ReleaseMemory(8)
			asked++
		}), WithNearLimitFunc(func(NearLimitEvent) { second++ }))
		require.NoError(t, m.fixed[KindSystem].ReserveMemory(8, 255))
		time.Sleep(nearInterval)
		synctest.Wait()
		require.Equal(t, []int{1, 1}, []int{asked, second})
		require.Zero(t, m.Stat().System.Memory)
		require.NoError(t, m.fixed[KindSystem].ReserveMemory(9, 255))
		m.Close()
		time.Sleep(10 * nearInterval)
		require.Equal(t, 1, asked)
	})
}

func TestAListenerThatIsNoneIsAnError(t *testing.T) {
	_, err := New(nil, WithNearLimitFunc(nil))
	require.EqualError(t, err, "rcmgr: WithNearLimitFunc: the function is nil")
}

// trimmer counts how often it is asked to trim.
type trimmer struct {
	connmgr.NullConnMgr
	times atomic.Int64
}

func (c *trimmer) TrimOpenConns(context.Context) { c.times.Add(1) }

// A connection that can be trimmed only later is trimmed then: at every look while the host is nearly full.
func TestTrimmingGoesOnWhileTheHostIsFull(t *testing.T) {
	_, err := New(nil, WithTrimming(nil))
	require.ErrorContains(t, err, "WithTrimming: the connection manager is nil")
	synctest.Test(t, func(t *testing.T) {
		conf := unlimitedConf()
		conf.System.Conns, conf.System.Streams, conf.Transient.Memory = 20, 2, 10
		cm := &trimmer{}
		m := newManager(t, conf, append(openGates(), WithTrimming(cm))...)
		defer m.Close()
		looks := func(n int64) int64 {
			before := cm.times.Load()
			time.Sleep(time.Duration(n) * nearInterval)
			synctest.Wait()
			return cm.times.Load() - before
		}
		mustOpenStream(t, m, testPeer, network.DirInbound)
		mustOpenStream(t, m, testPeer, network.DirInbound)
		require.NoError(t, viewTransient(t, m).ReserveMemory(10, 255))
		require.Zero(t, looks(3), "neither streams nor transient are what connections hold")
		var conns []network.ConnManagementScope
		for len(conns) < 15 {
			conns = append(conns, mustOpenConn(t, m, network.DirOutbound))
		}
		require.Zero(t, looks(3))
		conns = append(conns, mustOpenConn(t, m, network.DirInbound))
		require.EqualValues(t, 3, looks(3))
		conns[0].Done()
		require.EqualValues(t, 3, looks(3), "not clearly below the mark")
		conns[1].Done()
		require.Zero(t, looks(3))
	})
}
