package rcmgr

import (
	"encoding/binary"
	"fmt"
	"testing"
	"unsafe"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/spread"
)

// What each request touches is on as few cache lines as it can be.
func TestAccountsLieOnCacheLines(t *testing.T) {
	const line = 64
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("pointers are shorter here")
	}
	var sh share
	require.Zero(t, unsafe.Sizeof(sh)%line, "so the allocator gives it whole lines")
	for name, at := range map[string]uintptr{
		"use": unsafe.Offsetof(sh.use), "credit": unsafe.Offsetof(sh.credit), "floor": unsafe.Offsetof(sh.floor),
	} {
		require.Zero(t, at%line, name)
	}
	for name, at := range map[string]uintptr{
		"ready": unsafe.Offsetof(sh.ready), "share": unsafe.Offsetof(sh.share), "refs": unsafe.Offsetof(sh.refs), "kind": unsafe.Offsetof(sh.kind),
	} {
		require.Less(t, at, uintptr(line), name)
	}
	require.GreaterOrEqual(t, unsafe.Offsetof(sh.pool), uintptr(line), "what is only read")
	var of spread.Spread
	require.Zero(t, unsafe.Sizeof(of)%line, "so that usual values are on the line of their sum")
	m := newManager(t, unlimitedConf())
	for i := range m.stripes {
		require.Zero(t, uintptr(unsafe.Pointer(m.stripes[i].awake().spreads))%line)
	}
	stripeOn := make(map[uintptr]int) // the stripe of each line that has pairs
	for i := range 200 {
		s := mustOpenStream(t, m, peerNamed(fmt.Sprint(i)), network.DirInbound)
		require.NoError(t, s.SetProtocol("/a"))
		require.NoError(t, s.SetService("x"))
		ps := s.(*streamScope).peer
		ps.eachPair(func(pr *pair) {
			first := uintptr(unsafe.Pointer(pr))
			for l := first / line; l <= (first+unsafe.Sizeof(*pr)-1)/line; l++ {
				if other, ok := stripeOn[l]; ok {
					require.Equal(t, other, ps.st.index, "pairs of two stripes are on a line")
				}
				stripeOn[l] = ps.st.index
			}
		})
	}
	var st stripe
	require.Zero(t, unsafe.Sizeof(st)%line)
	// For 8 stripes, the allocator puts a header before the array; for 4 and 256, it does not.
	for _, n := range []int{4, 8, 256} {
		m := newManager(t, unlimitedConf(), WithStripes(n))
		for i := range m.stripes {
			lineOf := func(offset uintptr) uintptr { return (uintptr(unsafe.Pointer(&m.stripes[i])) + offset) / line }
			writtenEnds, readBegins := unsafe.Offsetof(st.spare), unsafe.Offsetof(st.fixed)
			require.Equal(t, lineOf(0), lineOf(writtenEnds), "%d stripes: what each connection and stream writes", n)
			require.LessOrEqual(t, lineOf(unsafe.Offsetof(st.woken))-lineOf(readBegins), uintptr(1))
			require.Greater(t, lineOf(readBegins+8), lineOf(writtenEnds), "%d stripes: what they only read", n)
			require.Less(t, lineOf(unsafe.Offsetof(st.woken)), lineOf(unsafe.Sizeof(st)), "%d stripes: nothing on the line of the next", n)
		}
	}
}

// Peers whose IDs are alike but for a few bits of their keys are in different stripes,
// about equally many in each, and in others in each manager.
func TestPeersAreSpreadOverStripes(t *testing.T) {
	const peers, stripes = 1 << 14, 64
	key := func(at int, n uint64) peer.ID {
		id := make([]byte, 38) // as that of an Ed25519 key
		copy(id, "\x00\x24\x08\x01\x12\x20")
		binary.BigEndian.PutUint64(id[at:], n)
		return peer.ID(id)
	}
	for name, id := range map[string]func(i int) peer.ID{
		"last bytes":          func(i int) peer.ID { return key(30, uint64(i)) },
		"first of these":      func(i int) peer.ID { return key(30, uint64(i)<<50) },
		"eight bytes before":  func(i int) peer.ID { return key(22, uint64(i)) },
		"first of these, too": func(i int) peer.ID { return key(22, uint64(i)<<50) },
		"short names":         func(i int) peer.ID { return peer.ID(fmt.Sprint("peer", i)) },
	} {
		m, other := newManager(t, unlimitedConf(), WithStripes(stripes)), newManager(t, unlimitedConf(), WithStripes(stripes))
		var counts [stripes]int
		moved := 0
		for i := range peers {
			at := m.stripeOf(id(i)).index
			counts[at]++
			if other.stripeOf(id(i)).index != at {
				moved++
			}
		}
		for at, n := range counts {
			require.InDelta(t, peers/stripes, n, peers/stripes/2, "%s: stripe %d", name, at)
		}
		require.Greater(t, moved, peers/2, name)
	}
}

// A connection that moves to a stripe with idle credit leaves its own credit where it was.
func TestConnectionsThatMoveAwayLeaveNoMoreCreditThanAStripeMayKeep(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 1 << 10 }), append(openGates(), WithStripes(2))...)
	from, to := m.stripes[0].awake(), m.stripes[1].awake()
	p := testPeer
	for i := 0; m.stripeOf(p) != to; i++ {
		p = peerNamed(fmt.Sprint(i))
	}
	open := func(st *stripe, n int64) (all []*connScope) {
		for range n {
			h := newConnHolder(st)
			o := opening{kind: KindConn, unit: unitOf(KindConn, network.DirInbound, false), limit: &m.classes.conn}
			st.lock()
			v, err := st.open(&o, false, oneStripe)
			require.NoError(t, err)
			require.Equal(t, admitted, v)
			h.become(&o)
			st.unlock()
			all = append(all, &connScope{userScope: userScope{h, scopeID(o.num)}})
		}
		return all
	}
	done := func(all []*connScope) {
		for _, c := range all {
			c.Done()
		}
	}
	l := m.fixed[KindSystem].tally(dimConns)
	idle := func(st *stripe) int64 {
		sh := st.fixed[KindSystem]
		return sh.credit[dimConns] - sh.use.of(dimConns)
	}
	conns := open(from, 4*l.batch)
	done(conns[2*l.batch+1:])
	conns = conns[:2*l.batch+1]
	done(open(to, 2*l.batch))
	require.Equal(t, l.keep(), idle(to))
	for _, c := range conns[:2*l.batch] {
		require.NoError(t, c.SetPeer(p))
		require.LessOrEqual(t, idle(from), l.keep())
	}
	require.Zero(t, idle(to))
	done(conns)
}
