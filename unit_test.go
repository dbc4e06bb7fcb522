package rcmgr

// What is at hand is charged, moved and given back without a request (unit.go, and
// attachReady in stream.go and moveLocked in conn.go). These ways admit what the long ones admit, and
// book what they book.

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/spread"
)

// A unit needs room in all that it counts in, and credit of any of that which lies idle
// is seen.
func TestAUnitNeedsRoomInEveryDimensionThatItCountsIn(t *testing.T) {
	for _, u := range everyUnit {
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

// everyUnit has all that a connection or stream can count in.
var everyUnit = []unit{
	unitOf(KindStream, network.DirInbound, false), unitOf(KindStream, network.DirOutbound, false),
	unitOf(KindConn, network.DirInbound, false), unitOf(KindConn, network.DirOutbound, false),
	unitOf(KindConn, network.DirInbound, true), unitOf(KindConn, network.DirOutbound, true),
}

// eachSmall calls f with all small amounts of what a unit counts in, each below n.
func eachSmall(u unit, n int64, f func(a amounts)) {
	for dir := range n {
		for both := range n {
			for fds := range n {
				a := amounts{dimFD: fds}
				a[u.dir], a[u.both] = dir, both
				f(a)
			}
		}
	}
}

// All that is written for a unit, or for memory, beside what is written for a request: each
// pair decides and books the same.
func TestByUnitAndByMemoryIsAsByRequest(t *testing.T) {
	for _, u := range everyUnit {
		r := u.request(0)
		eachSmall(u, 3, func(use amounts) {
			byUnit, byRequest := heldOf(use), heldOf(use)
			byUnit.addUnit(u)
			byRequest.charge(&r)
			require.Equal(t, byRequest, byUnit)
			byUnit.subUnit(u)
			byRequest.refund(&r)
			require.Equal(t, byRequest, byUnit)
			require.Equal(t, heldOf(use), byUnit)

			eachSmall(u, 4, func(ready amounts) {
				sh := share{account: account{use: heldOf(use), ready: &ready}}
				has := sh.hasReady(&r)
				if sh.hasUnit(u) != has || (sh.lackingUnit(u) == nil) != has {
					t.Fatalf("%+v: of %v, %v is used: by request it is %v that there is room", u, ready, use, has)
				}
				if u.within(&ready) != r.fits(&ready) {
					t.Fatalf("%+v: by request it is %v that it fits %v", u, r.fits(&ready), ready)
				}
			})

			books := func(got func(st *stripe, ps *peerScope)) (awakened, held) {
				st, ps := &stripe{awakened: newAwakened()}, &peerScope{}
				ps.use = heldOf(use)
				ps.use.addUnit(u)
				got(st, ps)
				return *st.awakened, ps.peak
			}
			unitStripe, unitPeak := books(func(st *stripe, ps *peerScope) { st.peerGotUnit(ps, u) })
			requestStripe, requestPeak := books(func(st *stripe, ps *peerScope) { st.peerGot(ps, &r) })
			require.Equal(t, requestStripe, unitStripe)
			require.Equal(t, requestPeak, unitPeak)
		})
	}

	for n := int64(1); n < 4; n++ {
		r := memoryRequest(AdmissionHalf, n, network.ReservationPriorityAlways)
		for use := range int64(6) {
			byMemory, byRequest := account{use: held{memory: use}}, held{memory: use}
			byMemory.addMemory(n)
			byRequest.charge(&r)
			require.Equal(t, byRequest, byMemory.use)
			for ready := range int64(6) {
				a := account{use: held{memory: use}, ready: &amounts{dimMemory: ready}}
				require.Equal(t, !a.hasReady(&r), a.lacksMemory(n), "of %d, %d is used, and %d asked for", ready, use, n)
			}
		}
	}
}

// A pool gives and takes back a count as it does memory.
func TestCountsAreReturnedAsMemoryIs(t *testing.T) {
	smallTallies(func(l tally) {
		for idle := range min(l.handed, 4) + 1 {
			st, counts := smallPool(l, dimStreams, l.handed-idle, l.handed)
			st.trim(counts, dimStreams)
			st, memory := smallPool(l, dimMemory, l.handed-idle, l.handed)
			st.trimMemory(memory)
			if c, m := counts.books(dimStreams), memory.books(dimMemory); c != m {
				t.Fatalf("%+v, of which %d lies idle: a count is left with\n%+v, memory with\n%+v", l, idle, c, m)
			}
		}
	})
}

// What mayDraw says of a unit is what draw says of everything that it counts in and lacks, and
// drawUnit draws that, of both shares or of none.
func TestAUnitIsDrawnAsEverythingThatItCountsInIs(t *testing.T) {
	states := []tally{ // as they are before a share with room for one more draws
		{limit: 8, handed: 8, tight: true}, {limit: 8, handed: 7, tight: true},
		{limit: 64, batch: 2, handed: 32}, {limit: 64, batch: 2, handed: 31}, {limit: 64, batch: 2, handed: 4},
	}
	shareWith := func(u unit, dir, both, fds tally, ready amounts) (*stripe, *share) {
		st, sh := smallPool(dir, u.dir, 0, ready[u.dir])
		for d, l := range map[dim]tally{u.both: both, dimFD: fds} {
			_, of := smallPool(l, d, 0, ready[d])
			p := sh.pool
			p.most[d], p.batch[d], p.looseBelow[d] = of.pool.most[d], of.pool.batch[d], of.pool.looseBelow[d]
			p.word[d].Store(uint64(l.word()))
			sh.setCredit(d, ready[d], l)
		}
		return st, sh
	}
	for _, u := range everyUnit {
		r := u.request(0)
		items, n := r.list()
		for _, dir := range states {
			for _, both := range states {
				for _, fds := range states {
					eachSmall(u, 2, func(ready amounts) {
						st, sh := shareWith(u, dir, both, fds, ready)
						may, drawn := true, ready
						for _, it := range items[:n] {
							if short := sh.short(it); short > 0 {
								grant, v := sh.pool.tally(it.d).draw(1, short, sh.pool.most[it.d])
								may = may && v == admitted
								drawn[it.d] += grant
							}
						}
						if !may {
							drawn = ready
						}
						_, other := shareWith(u, states[4], states[4], states[4], amounts{})
						before := other.credit
						if sh.mayDraw(u) != may || st.drawUnit(u, sh, other) != may || sh.credit != drawn || (other.credit != before) != may {
							t.Fatalf("%+v with %v of %+v, %+v, %+v: it is %v that draw admits it all, and the credit is %v then; drawUnit leaves %v",
								u, ready, dir, both, fds, may, drawn, sh.credit)
						}
					})
				}
			}
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
	refused          refusalCounts
	late             uint64
	spans            uint32 // begun at peers
	// What there is of each pool, share by share; only where there is one stripe, for
	// connections without a peer go to any.
	pools                   map[string][]poolLedger
	draws, returns, settled uint64
}

type peerLedger struct {
	peak             held
	transientStreams [2]int32
	trusted          int32
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
			for ps := range st.allPeers {
				l.peers[ps.id] = peerLedger{ps.peak, ps.transientStreams, ps.trusted}
			}
			for d := range st.peerCounts {
				addTo(&l.counts[d], &st.peerCounts[d])
			}
			addTo(&l.peerMem, &st.peerMemory)
			addTo(&l.connMem, &st.connMemory)
			var counted engineCounts
			st.addCounts(&counted)
			l.refused.add(&counted.refusalCounts)
			l.late += counted.lateReleases
			l.spans += st.spans
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
				same := func(t *testing.T) {
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
				}
				// No time passes while it runs, so neither manager reads its peaks between the
				// steps of the other.
				t.Run(fmt.Sprintf("stripes=%d/%s/newcomers=%v", stripes, g.name, newcomers),
					func(t *testing.T) { synctest.Test(t, same) })
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
