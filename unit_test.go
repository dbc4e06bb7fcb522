package rcmgr

// What is at hand is charged, moved and given back without a request (unit.go, and
// attachReady and moveLocked in scope.go). These ways admit what the long ones admit, and
// book what they book.

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/spread"
)

// A unit needs room in all that it counts in, and credit of any of that which lies idle
// is seen.
func TestAUnitNeedsRoomInEveryDimensionThatItCountsIn(t *testing.T) {
	for _, u := range []unit{
		unitOf(KindStream, network.DirInbound, false), unitOf(KindStream, network.DirOutbound, false),
		unitOf(KindConn, network.DirInbound, true), unitOf(KindConn, network.DirOutbound, true),
	} {
		var use held
		use.addUnit(u)
		just := use.amounts()
		has := func(limit *amounts) []bool {
			a := account{ready: limit}
			return []bool{u.within(limit), a.hasUnit(u)}
		}
		require.Equal(t, []bool{true, true}, has(&just))
		require.False(t, (&share{account: account{use: use}, floor: just}).idlesUnit(u))
		for d, n := range just {
			if n == 0 {
				continue
			}
			less, more := just, just
			less[d]--
			more[d]++
			require.Equal(t, []bool{false, false}, has(&less), "%v without dimension %d", u, d)
			require.True(t, (&share{account: account{use: use}, floor: more}).idlesUnit(u), "%v with dimension %d idle", u, d)
		}
	}
}

// That there is room at hand for a stream changes nothing of what is asked for first.
func TestCreditAtHandDoesNotSkipEarlierChecks(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	servedStream(t, m, testPeer) // from here on, its protocol and its service have room at hand
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	refused := func(err, why error) {
		t.Helper()
		before := books(m)
		require.ErrorIs(t, err, why)
		require.Equal(t, before, books(m))
	}
	refused(s.SetService(testSvc), errNoProtocol)
	require.NoError(t, s.ReserveMemory(100, 255))
	require.NoError(t, s.SetProtocol(testProto))
	refused(s.SetProtocol(testProto), errAttached)
	require.NoError(t, s.SetService(testSvc))
	refused(s.SetService(testSvc), errAttached)
	for name, h := range books(m) {
		want := amounts{dimMemory: 100, dimStreamsIn: 2, dimStreams: 2}
		require.Equal(t, want, h.use, name)
	}
	s.ReleaseMemory(100)
	refused(s.SetProtocol(testProto), errAttached)
	refused(s.SetService(testSvc), errAttached)
	s.Done()
	refused(s.SetProtocol(testProto), network.ErrResourceScopeClosed)
	refused(s.SetService(testSvc), network.ErrResourceScopeClosed)
}

// ledger is all that a manager keeps of what was admitted and refused, over all stripes.
type ledger struct {
	books            map[string]holding
	peers            map[peer.ID]peerLedger
	counts           [4]spread.Spread
	peerMem, connMem spread.Spread
	refusals         [numKinds]dimCounts
	rationed         rationCounts
	late             uint64
	// What there is of each pool, share by share; only where there is one stripe, for
	// connections without a peer go to any.
	pools                   map[string][]poolLedger
	draws, returns, settled uint64
}

type peerLedger struct {
	peak             held
	transientStreams [2]int32
	trusted          int32
	spans            uint32
}

type poolLedger struct {
	tally         tally
	peak, low     int64
	credit, floor int64
}

// addTo adds a distribution. Two systems without limits may hold more bytes together than
// an int64: then the sum wraps, over all stripes as it does in one.
func addTo(s, o *spread.Spread) {
	sum := s.Sum + o.Sum
	s.Add(o)
	s.Sum = sum
}

func ledgerOf(m *Manager) ledger {
	l := ledger{books: books(m), peers: make(map[peer.ID]peerLedger), pools: make(map[string][]poolLedger)}
	m.inOneCut(func() {
		for i := range m.stripes {
			st := &m.stripes[i]
			if !st.woken.Load() {
				continue
			}
			for p, ps := range st.peers {
				spans := uint32(0)
				if ps.rare != nil {
					spans = ps.rare.spans
				}
				l.peers[p] = peerLedger{ps.peak, ps.transientStreams, ps.trusted, spans}
			}
			for d := range st.peerCounts {
				addTo(&l.counts[d], &st.peerCounts[d])
			}
			addTo(&l.peerMem, &st.peerMemory)
			addTo(&l.connMem, &st.connMemory)
			for k := range st.refusals {
				l.refusals[k].add(&st.refusals[k])
			}
			l.rationed.add(&st.rationed)
			l.late += st.lateReleases
		}
		st := &m.stripes[0]
		if len(m.stripes) > 1 || !st.woken.Load() {
			return
		}
		l.draws, l.returns, l.settled = st.draws, st.returns, st.settled
		for _, sh := range slices.Concat(st.fixed[:], slices.Collect(maps.Values(st.protocols)), slices.Collect(maps.Values(st.services))) {
			var all []poolLedger
			for d := range numDims {
				all = append(all, poolLedger{sh.pool.tally(d), sh.pool.peak[d], sh.pool.low[d], sh.credit[d], sh.floor[d]})
			}
			name := sh.name()
			l.pools[name.String()] = all
		}
	})
	return l
}

// TestFastPathsKeepTheSameBooksAsTheGeneralPath: two managers are asked the same, one of which knows no
// short ways.
func TestFastPathsKeepTheSameBooksAsTheGeneralPath(t *testing.T) {
	seed, cell := testSeed(t), uint64(0)
	steps := 600
	if testing.Short() {
		steps = 150
	}
	for _, stripes := range []int{1, 8} {
		for _, g := range append(slices.Clone(regimes), mixed) {
			for _, newcomers := range []bool{true, false} {
				cell++
				t.Run(fmt.Sprintf("stripes=%d/%s/newcomers=%v", stripes, g.name, newcomers), func(t *testing.T) {
					asked := func() *duel {
						return newDuel(t, randomFrom(seed, cell), stripes, g, AdmissionHalf, newcomers)
					}
					short, long := asked(), asked()
					long.eng.seed, long.eng.secret = short.eng.seed, short.eng.secret
					for i := range long.eng.stripes {
						long.eng.stripes[i].plain = false
						long.eng.stripes[i].wholeFrom = 255 // and nothing below
					}
					for range steps {
						short.step()
						long.step()
						require.Equal(t, short.last, long.last)
						require.Equal(t, ledgerOf(long.eng), ledgerOf(short.eng), short.last)
					}
				})
			}
		}
	}
}

// Who has the credit at hand does not wait for those who draw.
func TestCreditIsSpentWithoutTheDrawingLock(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(1))
	open := func() {
		s := mustOpenStream(t, m, testPeer, network.DirInbound)
		defer s.Done()
		require.NoError(t, s.SetProtocol(benchProtocol))
		require.NoError(t, s.ReserveMemory(1, 255))
	}
	open() // there is credit from now on
	m.drawing.Lock()
	defer m.drawing.Unlock()
	done := make(chan struct{})
	go func() {
		open()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a lock that it does not need")
	}
}
