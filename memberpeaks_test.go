package rcmgr

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

func TestMemberPeaksAreWhatOneMemberHeldAtMost(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	reg := registryOf(t, m)
	var open []network.ResourceScopeSpan
	streams := func(p int, dir network.Direction, n int, proto protocol.ID, svc string) (last network.StreamManagementScope) {
		for range n {
			last = mustOpenStream(t, m, testPeers[p], dir)
			open = append(open, last)
			if proto != "" {
				require.NoError(t, last.SetProtocol(proto))
			}
			if svc != "" {
				require.NoError(t, last.SetService(svc))
			}
		}
		return last
	}
	streams(0, network.DirInbound, 5, "", "")
	streams(0, network.DirOutbound, 1, "/a", "a")
	s := streams(1, network.DirInbound, 3, "/a", "a")
	streams(1, network.DirInbound, 1, "/b", "a") // one peer in another protocol is another member
	require.NoError(t, s.ReserveMemory(1000, 255))
	span, err := s.BeginSpan()
	require.NoError(t, err)
	require.NoError(t, span.ReserveMemory(500, 255))
	s.ReleaseMemory(700)
	require.NoError(t, s.ReserveMemory(100, 255))
	require.NoError(t, streams(2, network.DirInbound, 1, "", "").PeerScope().ReserveMemory(1600, 255)) // not below a protocol
	for i := range 3 {
		c, err := m.OpenConnection(network.DirInbound, i > 0, nil)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(testPeers[2]))
		open = append(open, c)
	}
	ever := map[string]float64{ // resource, scope
		"conns peer": 3, "conns_inbound peer": 3, "fd peer": 2, "memory peer": 1600,
		"streams peer": 6, "streams_inbound peer": 5, "streams_outbound peer": 1,
		"streams protocol-peer": 3, "streams_inbound protocol-peer": 3, "streams_outbound protocol-peer": 1, "memory protocol-peer": 1500,
		"streams service-peer": 4, "streams_inbound service-peer": 4, "streams_outbound service-peer": 1, "memory service-peer": 1500,
	}
	require.Equal(t, ever, seriesOf(t, reg, "member_peak"))
	require.Equal(t, ever, seriesOf(t, reg, "member_recent_peak"))
	for _, s := range open {
		s.Done()
	}
	require.Equal(t, ever, seriesOf(t, reg, "member_peak"))

	for range 3 {
		m.reap()
	}
	require.Equal(t, ever, seriesOf(t, reg, "member_peak"), "also when they are gone")
	require.Equal(t, map[string]float64{"memory peer": 1600}, seriesOf(t, reg, "member_recent_peak"))
	read := m.Snapshot().MemberPeaks
	require.Equal(t, Amounts{Conns: 3, ConnsInbound: 3, FD: 2, Memory: 1600, Streams: 6, StreamsInbound: 5, StreamsOutbound: 1}, read[KindPeer].Ever)
	require.Equal(t, Amounts{Memory: 1600}, read[KindPeer].Recent)
	require.Equal(t, Amounts{Memory: 1500, Streams: 4, StreamsInbound: 4, StreamsOutbound: 1}, read[KindServicePeer].Ever)
	require.Zero(t, read[KindProtocolPeer].Recent)
	text := strings.Join(strings.Fields(bodyOf(t, ask(Handler(m), "GET", "/?format=text"))), " ")
	require.Contains(t, text, "The most that one peer has held Scope Limit Name Last Two Minutes Ever peer Memory 1.6 KiB 1.6 KiB peer StreamsInbound 0 5 ")
	html := bodyOf(t, ask(Handler(m), "GET", "/?format=html"))
	require.Contains(t, html, `<td>service-peer</td><td>Memory</td><td class="n" data-v="0">0</td><td class="n" data-v="1500">1.5 KiB</td>`)
	require.NotContains(t, html, "<td>service-peer</td><td>Conns</td>")
}

func TestRecentMemberPeaksAreOfTheLastOneToTwoMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(NewFixedLimiter(InfiniteLimits))
		require.NoError(t, err)
		defer m.Close()
		open := func(n int) (all []network.StreamManagementScope) {
			for range n {
				s, err := m.OpenStream("a peer", network.DirInbound)
				require.NoError(t, err)
				all = append(all, s)
			}
			return all
		}
		peaks := func() [2]int {
			s := m.SnapshotTop(0)
			return [2]int{s.MemberPeaks[KindPeer].Ever.StreamsInbound, s.MemberPeaks[KindPeer].Recent.StreamsInbound}
		}
		steady := open(3)
		time.Sleep(10 * time.Minute)
		require.Equal(t, [2]int{3, 3}, peaks(), "what is held steadily is not lost")
		time.Sleep(reapInterval / 2)
		for _, s := range open(7) {
			s.Done()
		}
		require.Equal(t, [2]int{10, 10}, peaks())
		time.Sleep(reapInterval)
		require.Equal(t, [2]int{10, 10}, peaks())
		time.Sleep(reapInterval)
		require.Equal(t, [2]int{10, 3}, peaks())
		for _, s := range steady {
			s.Done()
		}
		time.Sleep(2 * reapInterval)
		require.Equal(t, [2]int{10, 0}, peaks())
	})
}

// After any calls, the peaks are those of an observer that looks at every member after each
// step.
func TestMemberPeaksAreThoseOfAModel(t *testing.T) {
	seed := testSeed(t)
	rng := randomFrom(seed, 0)
	conf := unlimitedConf()
	conf.PeerDefault.Streams, conf.PeerDefault.Memory = 9, 3000
	conf.ProtocolPeerDefault.StreamsInbound = 4
	conf.System.Memory = 8000
	m := newManager(t, conf, WithStripes(4))
	var ever, last, now memberPeaks
	look := func(p *memberPeaks) {
		for i := range m.stripes {
			for ps := range m.stripes[i].allPeers {
				p.raise(slotPeer, &ps.use)
				for _, pr := range ps.allPairs() {
					slot := map[Kind]int{KindProtocolPeer: slotProtocolPeer, KindServicePeer: slotServicePeer}[pr.kind]
					p.raise(slot, &pr.use)
				}
			}
		}
	}
	names := []protocol.ID{"/a", "/b", "/c"}
	for i := range manyPairs {
		names = append(names, protocol.ID(rune('d'+i)))
	}
	var conns []network.ConnManagementScope
	var streams []network.StreamManagementScope
	dirs := []network.Direction{network.DirInbound, network.DirOutbound}
	for step := range 6000 {
		peer, name := testPeers[rng.IntN(3)], names[rng.IntN(len(names))]
		switch do := rng.IntN(12); {
		case step%2000 == 1000, do == 11 && rng.IntN(100) == 0: // three times at least
			m.reap()
			ever.add(&now)
			last, now = now, memberPeaks{}
		case do == 0:
			if c, err := m.OpenConnection(dirs[rng.IntN(2)], rng.IntN(2) == 0, nil); err == nil {
				if rng.IntN(2) == 0 {
					c.ReserveMemory(rng.IntN(300), 255)
				}
				c.SetPeer(peer)
				conns = append(conns, c)
			}
		case do <= 3:
			if s, err := m.OpenStream(peer, dirs[rng.IntN(2)]); err == nil {
				streams = append(streams, s)
			}
		case do == 4 && len(conns) > 0:
			at := rng.IntN(len(conns))
			conns[at].Done()
			conns = append(conns[:at], conns[at+1:]...)
		case len(streams) > 0:
			at := rng.IntN(len(streams))
			switch s := streams[at]; do {
			case 5:
				s.SetProtocol(name)
			case 6:
				s.SetService(string(name))
			case 7:
				s.ReserveMemory(rng.IntN(900), uint8(rng.IntN(256)))
			case 8:
				s.ReleaseMemory(int(s.Stat().Memory))
			case 9:
				s.Done()
				streams = append(streams[:at], streams[at+1:]...)
			case 10:
				s.PeerScope().ReserveMemory(rng.IntN(20), 255)
			}
		}
		look(&now)
		wantRecent := now
		wantRecent.add(&last)
		wantEver := ever
		wantEver.add(&wantRecent)
		var gotEver, gotRecent memberPeaks
		m.inOneCut(func() { gotEver, gotRecent = m.memberPeaks() })
		require.Equal(t, wantEver, gotEver, "step %d of seed %d", step, seed)
		require.Equal(t, wantRecent, gotRecent, "step %d of seed %d", step, seed)
	}
	for slot, k := range memberKinds {
		require.NotZero(t, ever[slot].memory, k)
		require.NotZero(t, ever[slot].counts[dimStreamsOut], k)
	}
	for _, c := range conns {
		c.Done()
	}
	for _, s := range streams {
		s.Done()
	}
}
