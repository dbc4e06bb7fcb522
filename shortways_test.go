package rcmgr

// That the short ways are taken where all that they need is at hand. They change the books as
// the general ones do, so what tells them apart is what only the general ones read: each of
// these tests falsifies that, so that the general way would decide otherwise.

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

// withoutGeneralOpening runs f while the general ways to open and to attach refuse everything,
// for they find the manager closed.
func withoutGeneralOpening(m *Manager, f func()) {
	set := func(closed bool) {
		m.inOneCut(func() {
			for i := range m.stripes {
				m.stripes[i].closed = closed
			}
		})
	}
	set(true)
	defer set(false)
	f()
}

func TestConnectionsAndStreamsTakeTheShortWayWhereRoomIsAtHand(t *testing.T) {
	for name, conf := range map[string]perScope[BaseLimit]{
		"with idle credit": unlimitedConf(),
		"from tight pools": tightLimits().limits,
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, conf, WithStripes(1))
			servedStream(t, m, testPeer) // from here on, its protocol and its service are known
			withoutGeneralOpening(m, func() {
				mustOpenConn(t, m, network.DirInbound)
				s := mustOpenStream(t, m, testPeer, network.DirInbound)
				require.NoError(t, s.SetProtocol(testProto))
				require.NoError(t, s.SetService(testSvc))

				_, err := m.OpenStream(peerNamed("another"), network.DirInbound)
				require.ErrorIs(t, err, errClosed, "the general way refuses")
				require.ErrorIs(t, s.SetService(testSvc), errClosed, "the general way refuses")
			})
		})
	}
}

// The general way would go by a rule that gives this priority half of each limit.
func TestMemoryTakesTheShortWayWhereRoomIsAtHand(t *testing.T) {
	const limit, half, rest = 1000, 500, 10
	for name, set := range map[string]func(*perScope[BaseLimit]){
		"with idle credit": func(c *perScope[BaseLimit]) { c.PeerDefault.Memory = limit },
		"from tight pools": func(c *perScope[BaseLimit]) { c.System.Memory = limit },
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, limitedConf(set), WithStripes(1))
			s := servedStream(t, m, testPeer)
			priority := m.admission.wholeFrom()
			require.NoError(t, s.ReserveMemory(half, priority))
			require.NoError(t, s.ReserveMemory(half-2*rest, priority))
			m.admission = AdmissionLinear
			require.NoError(t, s.ReserveMemory(rest, priority))

			require.Error(t, s.ReserveMemory(rest, priority-1), "the general way refuses")
		})
	}
}

// The general way tells the tracer what it charges to the peer.
func TestAConnectionMovesTheShortWayWhereRoomIsAtHand(t *testing.T) {
	for _, short := range []bool{true, false} {
		told := false
		m := newManager(t, unlimitedConf(), WithTraceReporter(reporterFunc(func(e TraceEvt) {
			told = told || e.Type == TraceAddConnEvt && e.Name == "peer:"+testPeer.String()
		})))
		c := mustOpenConn(t, m, network.DirInbound)
		m.inOneCut(func() {
			for i := range m.stripes {
				m.stripes[i].plain = short
			}
		})
		require.NoError(t, c.SetPeer(testPeer))
		require.NoError(t, m.Close())
		require.Equal(t, !short, told)
	}
}

// It would bring its own credit along otherwise.
func TestAConnectionMovesOntoCreditThatLiesIdle(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(2))
	to := m.stripeOf(testPeer)
	from := &m.stripes[1-to.index]
	open := func(at *stripe) *connScope {
		for {
			if c := mustOpenConn(t, m, network.DirInbound).(*connScope); c.h.tree.at.Load() == at {
				return c
			}
			m.idleConns.Put(newConnHolder(at.awake()))
		}
	}
	open(to)
	c := open(from)
	there := to.fixed[KindSystem]
	use, credit := there.use, there.credit
	require.NoError(t, c.SetPeer(testPeer))
	use.addUnit(c.h.unit)
	require.Equal(t, use, there.use)
	require.Equal(t, credit, there.credit)
}

// What a tight pool hands out and takes back while it stays tight, its word decides: limits,
// and what follows from them, are not read again.
func TestATightPoolIsDrawnFromAndReturnedToByItsWord(t *testing.T) {
	for _, d := range []dim{dimMemory, dimStreams} {
		st, sh := smallPool(tally{limit: 64, batch: 1, handed: 40, tight: true}, d, 30, 30)
		p := sh.pool
		p.most[d] = 0 // a draw would be refused
		if d == dimMemory {
			sh.drawMemoryLocked(1)
		} else {
			st.drawOneLocked(sh, d)
		}
		require.EqualValues(t, 31, sh.credit[d])
		require.EqualValues(t, 41, p.load(d).handed())

		p.most[d] = 1000 // 41 of these would make it loose
		if d == dimMemory {
			st.trimMemory(sh)
		} else {
			st.trim(sh, d)
		}
		require.EqualValues(t, 30, sh.credit[d])
		require.Equal(t, tally{handed: 40, tight: true}.word(), p.load(d))
	}
}
