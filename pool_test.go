package rcmgr

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

// smallTallies calls f with every small state of a pool, reachable or not: with limits that
// were lowered below what is handed out, too.
func smallTallies(f func(l tally)) {
	for limit := range int64(20) {
		for batch := range int64(4) {
			for handed := range limit + 4 {
				for _, tight := range []bool{false, true} {
					f(tally{limit, batch, handed, tight})
				}
			}
		}
	}
}

// What the short ways ask a word, or do to it, is what draw, giveBack and settle would say
// and do.
func TestTheShortWaysOfAPoolDecideAsItsTallyDoes(t *testing.T) {
	asked, has := 0, 0
	agree := func(l tally, rule string, short, general bool, of ...int64) {
		asked++
		if general {
			has++
		}
		if short != general {
			t.Fatalf("%+v: %s%v says %v, and its tally %v", l, rule, of, short, general)
		}
	}
	smallTallies(func(l tally) {
		w := l.word()
		require.Equal(t, l, tally{l.limit, l.batch, w.handed(), w.tight()})

		one, v := l.draw(1, 1, l.limit)
		agree(l, "hasOne", w.hasOne(l.limit), v == admitted)
		agree(l, "full", w.full(l.limit), v == refused)
		if l.tight && v == admitted && one != 1 {
			t.Fatalf("%+v: one is drawn of a tight pool, and %d would be", l, one)
		}
		for n := int64(1); n <= 3; n++ {
			for short := range n + 1 {
				grant, v := l.draw(n, short, l.limit)
				agree(l, "hasTight", w.hasTight(n, l.limit), l.tight && v == admitted, n, short)
				agree(l, "hasBelowHalf", l.hasBelowHalf(short), !l.tight && v == admitted, short)
				if w.hasTight(n, l.limit) && grant != short {
					t.Fatalf("%+v: a share of a tight pool lacks %d, and would get %d", l, short, grant)
				}
				if after := l.handed + short; l.hasBelowHalf(short) && after > l.limit/2 {
					t.Fatalf("%+v: it stays loose with %d", l, after)
				}
				// Who may fill less than the limit gets nothing that they would not.
				for bound := range l.limit {
					switch _, v := l.draw(n, short, bound); {
					case v == admitted && !w.hasTight(n, l.limit) && !l.hasBelowHalf(short):
						t.Fatalf("%+v: %d of at most %d are admitted", l, n, bound)
					case v != refused && w.full(l.limit):
						t.Fatalf("%+v: it is full, and %d of at most %d are not refused", l, n, bound)
					}
				}
			}
		}
		for n := range l.handed + 1 {
			now, tight := w.less(n, looseBelow(l.limit, l.batch))
			then := l.giveBack(n)
			agree(l, "less", tight, l.tight && then.tight, n)
			if tight && now != then.word() {
				t.Fatalf("%+v less %d: %d is handed out, and by its tally %d", l, n, now.handed(), then.handed)
			}
		}
		for used := range l.limit + 1 {
			settled := l.settle(used)
			if !settled.tight {
				continue
			}
			// What settle leaves is exact.
			w := settled.word()
			agree(settled, "hasOne", w.hasOne(l.limit), used < l.limit)
			agree(settled, "full", w.full(l.limit), used == l.limit)
			agree(settled, "hasTight", w.hasTight(3, l.limit), used+3 <= l.limit, 3)
		}
	})
	require.Greater(t, has, 1000)
	require.Greater(t, asked-has, 1000)
}

// smallPool is a pool of one share, and its stripe, as a tally and the share's use and credit
// have it.
func smallPool(l tally, d dim, use, credit int64) (*stripe, *share) {
	e := &engine{}
	p := &pool{engine: e, kind: KindSystem}
	p.most[d], p.batch[d], p.looseBelow[d] = l.limit, l.batch, looseBelow(l.limit, l.batch)
	p.word[d].Store(uint64(l.word()))
	p.low[d] = l.handed
	sh := &share{pool: p}
	sh.account = account{kind: KindSystem, share: sh, ready: &sh.credit}
	p.shares = []*share{sh}
	var held amounts
	held[d] = use
	sh.use = heldOf(held)
	sh.setCredit(d, credit, l)
	return &stripe{engine: e, awakened: newAwakened()}, sh
}

// poolBooks is all that a pool of one share keeps of one dimension.
type poolBooks struct {
	poolLedger
	use int64
}

func (sh *share) books(d dim) poolBooks {
	p := sh.pool
	return poolBooks{poolLedger{p.tally(d), p.peak[d], p.low[d], sh.credit[d], sh.floor[d]}, sh.use.of(d)}
}

// A crowd that leaves does not ask the pool for each of its streams.
func TestBelowHalfOfALimitCreditComesAndGoesABatchAtATime(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams = 1 << 14 }), WithStripes(1))
	mustOpenStream(t, m, testPeer, network.DirInbound)
	batch := m.fixed[KindSystem].tally(dimStreams).batch
	require.Greater(t, batch, int64(10))
	before := m.read().counts
	var open []network.ResourceScopeSpan
	for range 5 * batch {
		open = append(open, mustOpenStream(t, m, testPeer, network.DirInbound))
	}
	for _, s := range open {
		s.Done()
	}
	after := m.read().counts
	require.EqualValues(t, 5, after.draws-before.draws)
	require.LessOrEqual(t, after.returns-before.returns, uint64(5))
}

// What the short ways draw and return leaves the books as drawLocked and trimHalf do.
func TestTheShortWaysOfAShareKeepTheBooksOfTheGeneralOnes(t *testing.T) {
	drawn, returned := 0, 0
	same := func(l tally, short, general *share, d dim) {
		if s, g := short.books(d), general.books(d); s != g {
			t.Fatalf("%+v, dimension %d: the short way leaves\n%+v, the general one\n%+v", l, d, s, g)
		}
	}
	smallTallies(func(l tally) {
		for _, d := range []dim{dimMemory, dimStreams} {
			for idle := range min(l.handed, 4) + 1 {
				use := (l.handed - idle) / 2 // the rest is that of other stripes
				pair := func() (*stripe, *share, *share) {
					st, short := smallPool(l, d, use, use+idle)
					_, general := smallPool(l, d, use, use+idle)
					return st, short, general
				}
				st, short, general := pair()
				general.trimHalf(d, idle)
				if d == dimMemory {
					st.trimMemory(short)
				} else {
					st.trim(short, d)
				}
				same(l, short, general, d)
				returned++

				if l.tight && idle > 0 {
					continue // there is none (I1)
				}
				st, short, general = pair()
				n := int64(1)
				if d == dimMemory {
					n = 3
				}
				if d == dimMemory && !short.hasMemory(n) || d != dimMemory && !short.mayDrawOne(d) {
					continue
				}
				if lacks := general.short(item{d, n}); lacks > 0 {
					grant, v := l.draw(n, lacks, l.limit)
					require.Equal(t, admitted, v)
					general.drawLocked(item{d, n}, grant)
				}
				if d == dimMemory {
					short.drawMemoryLocked(n)
				} else {
					st.drawOneLocked(short, d)
				}
				same(l, short, general, d)
				drawn++
			}
		}
	})
	require.Greater(t, drawn, 1000)
	require.Greater(t, returned, 1000)
}
