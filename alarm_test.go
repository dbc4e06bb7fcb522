package rcmgr

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAThirtySecondOfALimitIsReservedAndOneOfASmallOne(t *testing.T) {
	for limit, want := range map[int64]int64{0: 0, 1: 0, 7: 0, 8: 1, 31: 1, 32: 1, 64: 2, 2048: 64} {
		require.Equal(t, want, reserveOf(limit), "of %d", limit)
	}
	a := newAlarm()
	require.EqualValues(t, 2048-32, a.roomy(KindSystem, dimConns, 2048), "room is made when half of the reserve is taken")
	require.EqualValues(t, 31, a.roomy(KindSystem, dimConns, 32))
	require.EqualValues(t, 7, a.roomy(KindSystem, dimConns, 7), "there is no reserve")
	require.EqualValues(t, int64(math.MaxInt64), a.roomy(KindSystem, dimConns, math.MaxInt64))
	require.EqualValues(t, int64(math.MaxInt64), (*alarm)(nil).roomy(KindSystem, dimConns, 2048), "without the option")
}

func TestRoomIsMadeWhereClosingMakesRoom(t *testing.T) {
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
		text := ""
		for d := range numDims {
			if k.makesRoom(d) {
				text += limitNames[d] + " "
			}
		}
		require.Equal(t, want, text, "%v", k)
	}
}
