package rcmgr

import (
	"fmt"
	"math"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

func TestAThirtySecondOfALimitIsReservedAndOneOfASmallOne(t *testing.T) {
	for limit, want := range map[int64]int64{0: 0, 1: 0, 7: 0, 8: 1, 31: 1, 32: 1, 64: 2, 2048: 64} {
		require.Equal(t, want, reserveOf(limit), "of %d", limit)
	}
	a := newAlarm()
	require.EqualValues(t, 2048-32, a.roomy(KindSystem, dimConns, 2048, 0), "room is made when half of the reserve is taken")
	require.EqualValues(t, 31, a.roomy(KindSystem, dimConns, 32, 0))
	require.EqualValues(t, 7, a.roomy(KindSystem, dimConns, 7, 0), "there is no reserve")
	require.EqualValues(t, int64(math.MaxInt64), a.roomy(KindSystem, dimConns, math.MaxInt64, 0))
	require.EqualValues(t, int64(math.MaxInt64), (*alarm)(nil).roomy(KindSystem, dimConns, 2048, 0), "without the option")
}

func TestAReserveThatIsUsedUpIsWidenedToAnEighthAtMost(t *testing.T) {
	for limit, want := range map[int64][]int64{7: {0, 0, 0}, 8: {1, 1, 1}, 16: {1, 2, 2}, 31: {1, 2, 3}, 64: {2, 4, 8}, 2048: {64, 128, 256}} {
		for steps, n := range want {
			require.Equal(t, n, widened(limit, uint8(steps)), "of %d", limit)
		}
	}
	require.EqualValues(t, 60, newAlarm().roomy(KindSystem, dimConns, 64, 2))
}

func TestRoomIsMadeWhereClosingMakesRoom(t *testing.T) {
	a, shaking := newAlarm(), newAlarm()
	shaking.handshakes.Store(true)
	for k, want := range map[Kind]string{
		KindSystem:            "Memory StreamsInbound Streams ConnsInbound Conns FD ",
		KindTransient:         "Memory StreamsInbound StreamsOutbound Streams ",
		KindService:           "Memory StreamsInbound Streams ",
		KindProtocol:          "Memory StreamsInbound Streams ",
		KindPeer:              "",
		KindServicePeer:       "",
		KindConn:              "",
		KindAllowlistedSystem: "",
		KindSubnet:            "",
	} {
		may := func(a *alarm) (text string) {
			for d := range numDims {
				if a.makesRoom(k, d) {
					text += limitNames[d] + " "
				}
			}
			return text
		}
		require.Equal(t, want, may(a), "%v", k)
		if k == KindTransient {
			want += "ConnsInbound Conns FD "
		}
		require.Equal(t, want, may(shaking), "%v, where handshakes can be ended", k)
	}
}

func TestTheWorkerIsWokenOnceForAllThatIsShort(t *testing.T) {
	a := newAlarm()
	var asked atomic.Uint32
	for range 2 {
		a.report(&asked, 1)
		a.report(&asked, 2)
		a.report(&asked, 2|4)
	}
	require.EqualValues(t, 1|2|4, asked.Load())
	require.Len(t, a.ring, 1)
	<-a.ring
	a.report(&asked, 1|4)
	require.Empty(t, a.ring, "it has been told already")
	a.report(&asked, 1|8)
	require.Len(t, a.ring, 1)
}

func TestRoomIsMadeUntilTheReserveIsFreeAgain(t *testing.T) {
	for _, c := range []struct {
		limit, held   int
		steps         uint8 // by which the reserve is widened
		lacks, refuse int64 // without a refusal, and after one
	}{
		{128, 126, 0, 0, 0}, // half of 4
		{128, 127, 0, 3, 3},
		{128, 128, 0, 4, 4},
		{128, 120, 2, 0, 0}, // half of 16
		{128, 121, 2, 9, 9},
		{7, 6, 0, 0, 0}, // there is no reserve
		{7, 7, 0, 0, 1},
		{128, 10, 0, 0, 0},
	} {
		m := newManager(t, limitedConf(func(l *perScope[BaseLimit]) { l.System.Conns = c.limit }), openGates()...)
		for i := range c.held {
			_, err := m.OpenConnection(network.DirInbound, true, in16(t, 0, i, 0))
			require.NoError(t, err)
		}
		p := m.fixed[KindSystem]
		p.wide = &wideReserves{}
		p.wide.by[dimConns] = c.steps
		require.Equal(t, c.lacks, p.lacks(dimConns, false), "%+v", c)
		require.Equal(t, c.refuse, p.lacks(dimConns, true), "%+v", c)
	}
}

func TestWhatGoesForWhatIsShort(t *testing.T) {
	m := newManager(t, unlimitedConf(), openGates()...)
	s, err := m.OpenStream("peer", network.DirInbound)
	require.NoError(t, err)
	require.NoError(t, s.SetProtocol("/p"))
	of := func(p *pool) (text string) {
		for d := range numDims {
			l := m.lackOf(p, d)
			what := "connections"
			if l.Streams {
				what = "streams"
			}
			if l.Shaking {
				what = "handshakes"
			}
			if l.Waiting {
				what += ", the oldest"
			}
			if l.Outbound {
				what += ", the host's own"
			}
			text += fmt.Sprintf("%s: %s\n", l.Limit, what)
		}
		return text
	}
	require.Equal(t, `Memory: connections
StreamsInbound: streams
StreamsOutbound: streams, the host's own
Streams: streams
ConnsInbound: connections
ConnsOutbound: connections
Conns: connections
FD: connections
`, of(m.fixed[KindSystem]))
	require.Equal(t, `Memory: streams, the oldest
StreamsInbound: streams, the oldest
StreamsOutbound: streams, the oldest, the host's own
Streams: streams, the oldest
ConnsInbound: handshakes, the oldest
ConnsOutbound: handshakes, the oldest
Conns: handshakes, the oldest
FD: handshakes, the oldest
`, of(m.fixed[KindTransient]))
	require.Contains(t, of(m.dir.list()[0]), "Memory: streams\n", "a protocol has no connections")
}
