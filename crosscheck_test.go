package rcmgr

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/connmgr"
	basic "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

func TestLimitsThatAreNotAboveTheHighWaterMarkAreReportedWithWhatToSet(t *testing.T) {
	const mark = 96
	const end = " not above the connection manager's high water mark"
	for _, c := range []struct {
		name   string
		system ResourceLimits
		want   string // what is named
	}{
		{"nothing", ResourceLimits{}, ""},
		{"above", ResourceLimits{Conns: mark + 1, ConnsInbound: mark + 1, Streams: mark + 1, StreamsInbound: mark + 1}, ""},
		{"what does not matter", ResourceLimits{ConnsOutbound: 1, StreamsOutbound: 1, FD: 1, Memory: 1}, ""},
		{"connections", ResourceLimits{Conns: mark}, "System.Conns (96) is"},
		{"inbound connections", ResourceLimits{ConnsInbound: 5}, "System.ConnsInbound (5) is"},
		{"streams", ResourceLimits{Streams: mark}, "System.Streams (96) is"},
		{"inbound streams", ResourceLimits{StreamsInbound: BlockAllLimit}, "System.StreamsInbound (0) is"},
		{"several", ResourceLimits{Conns: 90, ConnsInbound: 80}, "System.Conns (90), System.ConnsInbound (80) are"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := PartialLimitConfig{System: c.system}.Build(InfiniteLimits)
			m, err := New(NewFixedLimiter(cfg))
			require.NoError(t, err)
			defer m.Close()
			cm, err := basic.NewConnManager(10, mark)
			require.NoError(t, err)
			defer cm.Close()
			if c.want == "" {
				require.NoError(t, cfg.CheckHighWater(mark))
				require.NoError(t, m.CheckConnManager(cm))
				return
			}
			err = cfg.CheckHighWater(mark)
			require.ErrorContains(t, err, c.want+end+" of 96, so that connections are refused before any is closed: set at least 192, twice the mark, or lower the mark")
			require.NotContains(t, strings.TrimSuffix(err.Error(), "."), "\n", "one sentence")
			require.ErrorContains(t, m.CheckConnManager(cm), c.want+end+" of 96, so that connections are refused before any is closed: set at least twice the mark, ")
			require.NoError(t, m.CheckConnManager(connmgr.NullConnMgr{}))

			require.NoError(t, m.GetAllowlist().Add(multiaddr.StringCast("/ip4/192.0.2.1")))
			require.NoError(t, m.CheckConnManager(cm), "the allowlist serves whom these limits refuse")
			require.NoError(t, m.GetAllowlist().Remove(multiaddr.StringCast("/ip4/192.0.2.1")))
			require.Error(t, m.CheckConnManager(cm))
			require.NoError(t, m.SetLimits(NewFixedLimiter(InfiniteLimits)))
			require.NoError(t, m.CheckConnManager(cm), "the limits in force count")
		})
	}
	require.Error(t, PartialLimitConfig{System: ResourceLimits{Conns: 5}}.Build(InfiniteLimits).CheckHighWater(math.MaxInt))
}

// unlikeConnMgr is a connection manager that Go cannot compare with another one.
type unlikeConnMgr struct {
	connmgr.NullConnMgr
	_ []int
}

// A connection manager that is asked to trim makes room before a limit on connections is
// reached, wherever its mark lies. It is not asked for the sake of streams, and cannot
// make room where nothing is admitted.
func TestAConnectionManagerThatTrimsMayHaveAMarkAboveTheLimit(t *testing.T) {
	cm, err := basic.NewConnManager(10, 96)
	require.NoError(t, err)
	defer cm.Close()
	another, err := basic.NewConnManager(10, 96)
	require.NoError(t, err)
	defer another.Close()
	for _, c := range []struct {
		system ResourceLimits
		want   string // empty: all is well
	}{
		{ResourceLimits{Conns: 90, ConnsInbound: 80}, ""},
		{ResourceLimits{Conns: 90, Streams: 80}, "System.Streams (80) is not above"},
		{ResourceLimits{Conns: 90, ConnsInbound: BlockAllLimit}, "System.ConnsInbound (0) is not above"},
	} {
		limits := PartialLimitConfig{System: c.system}.Build(InfiniteLimits)
		m, err := New(NewFixedLimiter(limits), WithTrimming(unlikeConnMgr{}), WithTrimming(cm))
		require.NoError(t, err)
		defer m.Close()
		err = m.CheckConnManager(cm)
		if c.want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "System.Conns (")
			require.NotContains(t, err.Error(), "WithTrimming")
		}
		err = m.CheckConnManager(another)
		require.ErrorContains(t, err, "System.Conns (90)")
		require.ErrorContains(t, err, "set at least twice the mark, lower the mark, or give the connection manager to WithTrimming")
		require.NoError(t, m.CheckConnManager(unlikeConnMgr{}), "it has no mark")
	}
}

// fussyConnMgr finds fault with every limit.
type fussyConnMgr struct{ connmgr.NullConnMgr }

func (fussyConnMgr) CheckLimit(connmgr.GetConnLimiter) error { return errClosed }

func TestAConflictWithAConnectionManagerNamesItsMarkIfItHasOne(t *testing.T) {
	m, err := New(NewFixedLimiter(PartialLimitConfig{System: ResourceLimits{Conns: 10}}.Build(InfiniteLimits)))
	require.NoError(t, err)
	defer m.Close()
	for _, mark := range []int{10, 11, 12, 1000, 1 << 20, math.MaxInt32} {
		cm, err := basic.NewConnManager(1, mark)
		require.NoError(t, err)
		defer cm.Close()
		require.ErrorContains(t, m.CheckConnManager(cm), fmt.Sprintf("high water mark of %d, so that", mark))
	}
	require.ErrorContains(t, m.CheckConnManager(fussyConnMgr{}), "high water mark, so that")
}

// With WithRoom, connections and streams are closed before a limit refuses, so a mark above it is
// no conflict. A limit of less than eight has no reserve and refuses first.
func TestAManagerThatMakesRoomMayHaveLimitsBelowTheMark(t *testing.T) {
	cm, err := basic.NewConnManager(10, 96)
	require.NoError(t, err)
	defer cm.Close()
	for _, c := range []struct {
		room      RoomConfig
		limit     LimitVal
		conflicts bool
	}{
		{RoomConfig{}, 90, false},
		{RoomConfig{}, 8, false},
		{RoomConfig{}, 7, true},
		{RoomConfig{ObserveOnly: true}, 90, true},
	} {
		limits := PartialLimitConfig{System: ResourceLimits{Conns: c.limit, Streams: c.limit}}.Build(InfiniteLimits)
		m, err := New(NewFixedLimiter(limits), WithRoom(c.room))
		require.NoError(t, err)
		defer m.Close()
		require.Equal(t, c.conflicts, m.CheckConnManager(cm) != nil, "%+v", c)
	}
}
