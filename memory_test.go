package rcmgr

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

// What tight pools had at the first look, without the drawing lock, may be gone when it
// is taken: others have drawn it.
func TestCreditIsCheckedAgainUnderTheDrawingLock(t *testing.T) {
	for name, draw := range map[string]func(*stripe, *chain) bool{
		"memory": func(st *stripe, c *chain) bool { return st.drawMemory(c, 1) },
		"streams": func(st *stripe, c *chain) bool {
			return st.drawUnit(unitOf(KindStream, network.DirInbound, false), c.at[slotTransient].share, c.at[slotSystem].share)
		},
		"any": func(st *stripe, c *chain) bool {
			r := unitOf(KindStream, network.DirInbound, false).request(0)
			v, _ := st.checkShared(c, &r, andDraw)
			return v == admitted
		},
	} {
		for _, taken := range []Kind{KindTransient, KindSystem} {
			t.Run(name+" of "+taken.String(), func(t *testing.T) {
				few := BaseLimit{Memory: 3, StreamsInbound: 3, Streams: 3} // tight for ever
				m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.Transient, c.System = few, few }), WithStripes(2))
				st, other := m.stripes[0].awake(), m.stripes[1].awake()
				var c chain
				c.stand(st.fixed[KindTransient], st.fixed[KindSystem])

				unlockOther, unlockDrawing := lockFor(t, &other.mu), lockFor(t, &m.drawing)
				drew, id := make(chan bool, 1), make(chan string, 1)
				go func() {
					id <- goroutineID()
					st.mu.Lock()
					defer st.mu.Unlock()
					drew <- draw(st, &c)
				}()
				waitUntilLocked(t, <-id) // it has looked
				for d := range numDims {
					other.fixed[taken].drawLocked(item{d, m.fixed[taken].limit[d]}, m.fixed[taken].limit[d])
				}
				unlockDrawing()
				unlockOther()
				require.False(t, <-drew)

				m.inOneCut(func() {
					require.Zero(t, st.fixed[KindTransient].credit)
					require.Zero(t, st.fixed[KindTransient].use)
					require.Zero(t, st.fixed[KindSystem].credit)
				})
			})
		}
	}
}

// Credit is taken back without the drawing lock, but for one thing: a pool becomes loose
// only while it is free. A request that is to draw, because all that is handed out is in
// use, draws when that is still so.
func TestAPoolBecomesLooseUnderTheDrawingLock(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = 1 << 20 }), WithStripes(1))
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	system := m.fixed[KindSystem]
	require.NoError(t, s.ReserveMemory(3<<18, 255))
	require.True(t, system.tight(dimMemory))

	unlock := lockFor(t, &m.drawing)
	id := make(chan string, 2)
	release := func(size int) chan struct{} {
		done := make(chan struct{})
		go func() {
			id <- goroutineID()
			s.ReleaseMemory(size)
			close(done)
		}()
		return done
	}
	select {
	case <-release(1 << 19): // down to a quarter
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a lock that it does not need")
	}
	require.True(t, system.tight(dimMemory))
	require.EqualValues(t, 1<<18, system.tally(dimMemory).handed)

	<-id
	done := release(1)
	waitUntilLocked(t, <-id)
	select {
	case <-done:
		t.Fatal("the pool became loose while the lock was held")
	default:
	}
	require.True(t, system.tight(dimMemory))
	require.EqualValues(t, 1<<18, system.tally(dimMemory).handed, "tight, all that is handed out is in use or about to be given back")
	unlock()
	<-done
	require.False(t, system.tight(dimMemory))
	require.EqualValues(t, 1<<18-1, system.tally(dimMemory).handed)
}

// Tight pools are asked for each byte and each stream, once for each thing that is
// counted, and get it back at once.
func TestDrawsAndReturnsAreCounted(t *testing.T) {
	few := BaseLimit{Memory: 9, StreamsInbound: 9, Streams: 9} // tight for ever
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.Transient, c.System = few, few }))
	var last EngineState
	sinceLast := func(draws, returns uint64) {
		t.Helper()
		now := m.Snapshot().Engine
		require.Equal(t, []uint64{draws, returns}, []uint64{now.Draws - last.Draws, now.Returns - last.Returns})
		last = now
	}
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	sinceLast(4, 0) // inbound and all, in transient and in system
	require.NoError(t, s.ReserveMemory(1, network.ReservationPriorityAlways))
	sinceLast(2, 0)
	s.ReleaseMemory(1)
	sinceLast(0, 2)
	s.Done()
	sinceLast(0, 4)

	s = mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, s.ReserveMemory(1, network.ReservationPriorityAlways))
	sinceLast(6, 0)
	require.NoError(t, s.SetProtocol(testProto)) // which draws ahead; transient gets all back
	sinceLast(3, 3)
	s.Done()
	sinceLast(0, 3)
}

// A stream, and a span of one, fill no more of a limit than their priority may, whether
// or not there is credit at hand.
func TestStreamsKeepToWhatTheirPriorityMayFill(t *testing.T) {
	for _, limit := range []int64{8, 1 << 20} { // tight for ever, and loose up to half
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = limit }), WithStripes(8))
		s := mustOpenStream(t, m, testPeer, network.DirInbound)
		for _, x := range []network.ResourceScopeSpan{s, mustBeginSpan(t, s)} {
			half := int(limit / 2)
			require.NoError(t, x.ReserveMemory(half-1, 0))
			require.Error(t, x.ReserveMemory(2, 0))
			require.NoError(t, x.ReserveMemory(1, 0))
			require.Error(t, x.ReserveMemory(1, 0))
			require.NoError(t, x.ReserveMemory(half, 128))
			require.Error(t, x.ReserveMemory(1, 255))
			x.ReleaseMemory(2 * half)
		}
	}
}
