package rcmgr

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

// crowdedWith opens a stream in each of many protocols and services; every tenth of them
// holds two, and every hundredth memory.
func crowdedWith(t *testing.T, m *Manager, names int) {
	open := func(i int) network.StreamManagementScope {
		s := mustOpenStream(t, m, testPeers[i%len(testPeers)], network.DirInbound)
		t.Cleanup(s.Done)
		require.NoError(t, s.SetProtocol(protocol.ID(fmt.Sprintf("/%04d", i))))
		require.NoError(t, s.SetService(fmt.Sprintf("%04d", i)))
		return s
	}
	for i := range names {
		s := open(i)
		if i%10 == 3 {
			open(i)
		}
		if i%100 == 7 {
			require.NoError(t, s.ReserveMemory(1+i, 255))
		}
	}
}

// A look at the top is as long as it is, whatever names there are; and it says how many.
func TestALookAtTheTopNamesTheBusiest(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	const many = 4 * mostNamed
	crowdedWith(t, m, many)
	for _, s := range []Snapshot{m.SnapshotTop(0), pageOf(t, m)} {
		require.Equal(t, many, s.Protocols)
		require.Equal(t, many, s.Services)
		named := make(map[Kind][]string)
		for _, sc := range s.Scopes {
			named[sc.Kind] = append(named[sc.Kind], strings.TrimPrefix(sc.ID, "/"))
		}
		for _, k := range []Kind{KindProtocol, KindService} {
			require.Len(t, named[k], mostNamed)
			for i := range many {
				if i%10 == 3 || i%100 == 7 {
					require.Contains(t, named[k], fmt.Sprintf("%04d", i), "%v", k)
				}
			}
		}
	}
	for format, title := range map[string]string{
		"html": "Services and protocols, the fullest first: 100 of 2048", "text": "256 of 1024 services, 256 of 1024 protocols",
	} {
		body := bodyOf(t, ask(Handler(m), "GET", "/?format="+format))
		require.Contains(t, body, title, format)
		require.Less(t, strings.Count(body, "protocol:/"), 8*2*mostNamed+1, format)
	}

	all := m.Snapshot()
	require.Equal(t, many, all.Protocols)
	require.Len(t, all.Scopes, 4+2*many+len(testPeers))
}

func pageOf(t *testing.T, m *Manager) (s Snapshot) {
	require.NoError(t, json.Unmarshal([]byte(bodyOf(t, ask(Handler(m), "GET", "/?format=json"))), &s))
	return s
}

// Under all stripe locks, a scrape and a look at the top visit the busiest alone: here they
// would see scopes without a holder if they visited the others.
func TestACutVisitsOnlyTheBusiestScopes(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	crowdedWith(t, m, 3*mostNamed)
	b := m.busiest()
	require.Len(t, b.named, 2*mostNamed)
	var others []*pool
	m.inOneCut(func() {
		for _, p := range m.dir.list() {
			if !slices.Contains(b.named, p) {
				others = append(others, p)
			}
		}
	})
	require.Len(t, others, 2*2*mostNamed)
	shares := make(map[*pool][]*share)
	m.inOneCut(func() {
		for _, p := range others {
			shares[p], p.shares = p.shares, []*share{{account: account{use: held{memory: 1 << 40}}}}
		}
	})
	r := m.readWith(b)
	require.Len(t, r.scopes, 4+2*(mostNamed+1))
	for _, s := range r.scopes {
		require.Less(t, s.use[dimMemory], int64(1<<40), s.name)
		if s.name == othersName {
			require.EqualValues(t, 2*mostNamed, s.use[dimStreamsIn], "what was seen before the cut")
		}
	}
	m.inOneCut(func() {
		for p, was := range shares {
			p.shares = was
		}
	})
}

// Who went, or came back as another scope of that name, between the two looks.
func TestACutLeavesOutScopesThatAreGoneByThen(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(4))
	crowdedWith(t, m, 2*mostNamed)
	var busy []network.StreamManagementScope
	for _, name := range []protocol.ID{"/gone", "/back"} {
		for range 3 {
			s := mustOpenStream(t, m, "p", network.DirInbound)
			require.NoError(t, s.SetProtocol(name))
			busy = append(busy, s)
		}
	}
	b := m.busiest()
	for _, s := range busy {
		s.Done()
	}
	m.reap()
	m.reap()
	s := mustOpenStream(t, m, "p", network.DirInbound)
	defer s.Done()
	require.NoError(t, s.SetProtocol("/back"))
	for _, s := range m.readWith(b).scopes {
		require.NotContains(t, []string{"/gone", "/back"}, s.name)
	}
}

// Several managers have others each; what is shown is one sum of them, in a place of its own.
func TestTheSeriesOfAllOtherScopesIsOneSumOverManagers(t *testing.T) {
	var l liveManagers
	var use int64
	for i := range 3 {
		m := newManager(t, unlimitedConf())
		crowdedWith(t, m, 2*mostNamed+i)
		l.add(m)
		sum := m.SnapshotTop(0).Scopes[0].Use
		use += int64(sum.NumStreamsInbound)
	}
	reg := registerInOrder(t, &l, nil, registerOrders["ours first"])
	for _, scope := range []string{"protocol", "service"} {
		var streams float64
		named := 0
		for labels, v := range seriesOf(t, reg, "scope_use") {
			if strings.HasSuffix(labels, " streams "+scope) {
				streams += v
				named++
			}
		}
		require.EqualValues(t, use, streams, "nothing is left out")
		require.Equal(t, mostNamed+1, named)
	}
	for labels := range seriesOf(t, reg, "scope_peak") {
		require.NotContains(t, labels, othersName, "a sum of peaks was never held")
	}
}

// Named limits, and names that are not shown, cost a scrape nothing.
func TestAScrapeAllocatesNoMoreForManyNames(t *testing.T) {
	allocations := func(peers, protocols int) float64 {
		conf := unlimitedConf()
		conf.Peer = make(map[peer.ID]BaseLimit)
		for i := range peers {
			conf.Peer[peerNamed(fmt.Sprint(i))] = unlimitedBase
		}
		m := newManager(t, conf, WithStripes(4))
		crowdedWith(t, m, protocols)
		return testing.AllocsPerRun(5, func() { m.read() })
	}
	few := allocations(1, 2*mostNamed)
	require.InDelta(t, few, allocations(5000, 2*mostNamed), 5)
	require.InDelta(t, few, allocations(1, 6*mostNamed), 20, "beyond those that are named")
}
