package rcmgr

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
)

// holdBoth opens inbound and outbound streams of a peer.
func holdBoth(t *testing.T, m *Manager, p peer.ID, in, out int) {
	holdStreams(t, m, p, in, false)
	for range out {
		mustOpenStream(t, m, p, network.DirOutbound)
	}
}

// holdStreams opens inbound streams of a peer, each with testProto and testSvc if served is set.
func holdStreams(t *testing.T, m *Manager, p peer.ID, n int, served bool) {
	for range n {
		s := mustOpenStream(t, m, p, network.DirInbound)
		if served {
			require.NoError(t, s.SetProtocol(testProto))
			require.NoError(t, s.SetService(testSvc))
		}
	}
}

// The log names the peer that fills a limit, and not only those that it refuses because of that.
func TestTheLogNamesThePeerThatHoldsMost(t *testing.T) {
	const hog, other, victim = peer.ID("hog"), peer.ID("other"), peer.ID("victim")
	for name, c := range map[string]struct {
		limit  func(*perScope[BaseLimit])
		served bool
	}{
		"system":             {func(l *perScope[BaseLimit]) { l.System.StreamsInbound = 8 }, false},
		"transient":          {func(l *perScope[BaseLimit]) { l.Transient.Streams = 8 }, false},
		"protocol:/test/1":   {func(l *perScope[BaseLimit]) { l.ProtocolDefault.StreamsInbound = 8 }, true},
		"service:" + testSvc: {func(l *perScope[BaseLimit]) { l.ServiceDefault.StreamsInbound = 8 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			lines := collectLog(t, slog.LevelError)
			m := newManager(t, limitedConf(c.limit), WithStripes(4), WithNewcomersQuarter(false))
			holdStreams(t, m, hog, 6, c.served)
			holdStreams(t, m, other, 2, c.served)
			if c.served {
				s := mustOpenStream(t, m, victim, network.DirInbound)
				err := s.SetProtocol(testProto)
				if err == nil {
					err = s.SetService(testSvc)
				}
				require.Error(t, err)
			} else {
				openingRefused(t, m, victim, 1)
			}
			m.logRefusals()
			line := lines.take()[0]
			require.Contains(t, line, name+": cannot reserve ")
			require.Contains(t, line, " current=8 limit=8 holder=peer:"+hog.String()+" holds=6 ")
		})
	}
}

// A limit on both directions is filled by both.
func TestTheLogCountsBothDirectionsOfThePeerThatHoldsMost(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	m := newManager(t, limitedConf(func(l *perScope[BaseLimit]) { l.Transient.Streams = 8 }), WithNewcomersQuarter(false))
	holdBoth(t, m, "hog", 2, 3)
	holdBoth(t, m, "other", 3, 0)
	openingRefused(t, m, testPeer, 1)
	m.logRefusals()
	require.Contains(t, lines.take()[0], " current=8 limit=8 holder=peer:"+peer.ID("hog").String()+" holds=5 ")
}

// If no peer holds much, none is named, and neither is one that is not known: a
// connection in the transient scope has no peer.
func TestTheLogNamesNoPeerThatHoldsLittle(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	m := newManager(t, limitedConf(func(l *perScope[BaseLimit]) {
		l.System.StreamsInbound, l.Transient.ConnsInbound = 30, 1
	}), WithNewcomersQuarter(false))
	for i := range 30 {
		holdStreams(t, m, peer.ID(fmt.Sprint(i)), 1, false)
	}
	openingRefused(t, m, testPeer, 1)
	mustOpenConn(t, m, network.DirInbound)
	_, err := m.OpenConnection(network.DirInbound, false, nil)
	require.Error(t, err)
	m.logRefusals()
	for _, line := range lines.take() {
		require.NotContains(t, line, "holder=")
	}
}

// The numbers of a line are those at which most was held. A scope that keeps a part of its limit
// for newcomers refuses before it is full, and may be full when the line is written.
func TestTheLogHasTheMostThatWasHeldAtARefusal(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	m := newManager(t, limitedConf(func(l *perScope[BaseLimit]) { l.Transient.StreamsInbound = 512 }), WithStripes(4))
	refusedOnce := func(p peer.ID) {
		_, err := m.OpenStream(p, network.DirInbound)
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	}
	holdStreams(t, m, "hog", 384, false)
	refusedOnce("hog") // at 384
	for i := range 128 {
		holdStreams(t, m, peer.ID(fmt.Sprint(i)), 1, false)
	}
	refusedOnce("newcomer") // at 512
	open := m.Snapshot()
	require.Equal(t, 512, open.stateOf(t, "transient").Use.NumStreamsInbound)
	m.logRefusals()
	require.Contains(t, lines.take()[0], " current=512 limit=512 cause=\"limit, crowding\" holder=peer:"+peer.ID("hog").String()+" holds=384 ")

	refusedOnce("newcomer")
	refusedOnce("hog") // at 512, too, whichever stripe is asked first
	m.logRefusals()
	require.Contains(t, lines.take()[0], " current=512 limit=512 ")
}

// Explain names the peer that holds most of what would refuse.
func TestExplainNamesThePeerThatHoldsMost(t *testing.T) {
	m := newManager(t, limitedConf(func(l *perScope[BaseLimit]) { l.Transient.StreamsInbound = 8 }), WithNewcomersQuarter(false))
	holdStreams(t, m, "hog", 6, false)
	holdStreams(t, m, "other", 2, false)
	e, err := m.Explain(ExplainRequest{Kind: KindStream, Direction: network.DirInbound, Peer: testPeer})
	require.NoError(t, err)
	require.Equal(t, "peer:"+peer.ID("hog").String(), e.By.Largest)
	require.EqualValues(t, 6, e.By.LargestHolds)
	require.Contains(t, e.String(), "would exceed 8 (limit); peer:"+peer.ID("hog").String()+" holds 6 of it; raise Transient.StreamsInbound")
	e, err = m.Explain(ExplainRequest{Kind: KindStream, Direction: network.DirOutbound, Peer: testPeer})
	require.NoError(t, err)
	require.True(t, e.Admitted)
}

// However often strangers ask, the peers are looked at once a second.
func TestExplainLooksForTheLargestOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(NewFixedLimiter(ConcreteLimitConfig{limits: limitedConf(func(l *perScope[BaseLimit]) { l.System.StreamsInbound = 8 })}),
			WithNewcomersQuarter(false))
		require.NoError(t, err)
		defer m.Close()
		named := func() string {
			e, err := m.Explain(ExplainRequest{Kind: KindStream, Direction: network.DirInbound, Peer: testPeer})
			require.NoError(t, err)
			return e.By.Largest
		}
		var open []network.StreamManagementScope
		for range 8 {
			open = append(open, mustOpenStream(t, m, "first", network.DirInbound))
		}
		require.Equal(t, "peer:"+peer.ID("first").String(), named())
		for _, s := range open {
			s.Done()
		}
		holdStreams(t, m, "second", 8, false)
		require.Equal(t, "peer:"+peer.ID("first").String(), named(), "as it was a moment ago")
		time.Sleep(time.Second)
		require.Equal(t, "peer:"+peer.ID("second").String(), named())
	})
}
