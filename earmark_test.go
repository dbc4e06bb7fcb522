package rcmgr

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// someEarmarks returns random earmarks, and the same for the model.
func someEarmarks(r *rand.Rand) (list []Earmark, model []modelEarmark) {
	left := int64(50)
	free := slices.Clone(testProtocols)
	for i := range 1 + r.IntN(3) {
		e := modelEarmark{percent: 1 + r.Int64N(left/2)}
		left -= e.percent
		for e.peers == nil && !e.friends && e.protocols == nil {
			if r.IntN(2) == 0 {
				e.peers = []peer.ID{pick(r, testPeers), pick(r, testPeers)}
			}
			e.friends = r.IntN(3) == 0
			if r.IntN(2) == 0 && len(free) > 0 {
				e.protocols, free = free[:1:1], free[1:]
			}
		}
		one := Earmark{Name: fmt.Sprint("earmark ", i), Part: float64(e.percent) / 100, Allowlisted: e.friends}
		if peers := e.peers; peers != nil {
			one.Peers = func() []peer.ID { return peers }
		}
		for _, p := range e.protocols {
			one.Protocols = append(one.Protocols, protocol.ID(p))
		}
		list, model = append(list, one), append(model, e)
	}
	return list, model
}

func TestRandomSequencesWithEarmarksDecideAsTheModel(t *testing.T) {
	steps := cmp.Or(*stepsFlag, 2000)
	if testing.Short() || raceDetector() {
		steps = cmp.Or(*stepsFlag, 200)
	}
	seed := testSeed(t)
	cell := uint64(0)
	for _, stripes := range []int{1, 8} {
		for _, g := range append(slices.Clone(regimes), mixed) {
			for _, a := range []Admission{AdmissionHalf, AdmissionGraded} {
				for _, observing := range []bool{false, true} {
					cell++
					r := randomFrom(seed, cell)
					t.Run(fmt.Sprintf("stripes=%d/%s/%v/observing=%v", stripes, g.name, a, observing), func(t *testing.T) {
						list, marks := someEarmarks(r)
						d := newDuelOf(t, r, stripes, g, g.conf(r, stripes), a, r.IntN(2) == 0, WithEarmarks(list...))
						d.observing, d.lowered = observing, observing
						d.mod.earmarks = marks
						d.run(steps)
					})
				}
			}
		}
	}
}

// named is an earmark for peers.
func named(part float64, peers ...peer.ID) Earmark {
	return Earmark{Name: "friends", Part: part, Peers: func() []peer.ID { return peers }}
}

func TestOthersLeaveThePartOfAnEarmarkFree(t *testing.T) {
	for what, set := range map[string]func(*perScope[BaseLimit]){
		"system":    func(c *perScope[BaseLimit]) { c.System.StreamsInbound = 40 },
		"transient": func(c *perScope[BaseLimit]) { c.Transient.StreamsInbound = 40 },
	} {
		t.Run(what, func(t *testing.T) {
			lines := collectLog(t, slog.LevelError)
			m := newManager(t, limitedConf(set), WithNewcomersQuarter(false), WithEarmarks(named(0.25, "friend")))
			for i := range 30 {
				mustOpenStream(t, m, peerNamed(fmt.Sprint(i)), network.DirInbound)
			}
			_, err := m.OpenStream("stranger", network.DirInbound)
			requireCause(t, err, CauseEarmark, m.kindNamed(what))
			require.Equal(t, map[string]string{"system": "System.StreamsInbound", "transient": "Transient.StreamsInbound"}[what],
				err.(*LimitError).ConfigKey())
			e, err := m.Explain(ExplainRequest{Kind: KindStream, Direction: network.DirInbound, Peer: "stranger"})
			require.NoError(t, err)
			require.Equal(t, []string{"friends"}, e.By.KeptFor)
			require.Contains(t, e.String(), "(earmark for friends)")
			require.EqualValues(t, 30, e.By.Threshold)
			for range 10 {
				mustOpenStream(t, m, "friend", network.DirInbound)
			}
			_, err = m.OpenStream("friend", network.DirInbound)
			requireCause(t, err, CauseLimit, m.kindNamed(what))
			m.logRefusals()
			got := lines.take()
			require.Len(t, got, 1)
			require.Contains(t, got[0], `current=40 limit=40 cause="limit, earmark"`)
			e, err = m.Explain(ExplainRequest{Kind: KindStream, Direction: network.DirInbound, Peer: "stranger"})
			require.NoError(t, err)
			require.Contains(t, e.String(), "StreamsInbound is at 40 of 40, and 1 more would exceed 40 (limit)")
			for _, c := range e.Checks {
				require.Equal(t, c.Threshold-c.Use, c.Room, "%s %s", c.Scope, c.Name)
			}
		})
	}
}

func (m *Manager) kindNamed(name string) Kind { return Kind(slices.Index(kindNames[:], name)) }

// A connection that an allowlisted peer's address let in has to fit transient, in which no connection
// has a peer. So no earmark keeps anything there from it, also where the limits that are only observed
// make the manager decide a second time.
func TestATransientConnectionOfAStrangerHasNoPeerForEarmarks(t *testing.T) {
	friend, stranger, far := testPeers[0], testPeers[1], testFars[3].addr
	for _, observed := range [][]Kind{nil, {KindPeer}} {
		t.Run(fmt.Sprint("observed: ", observed), func(t *testing.T) {
			m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
				c.System.Conns, c.Transient.Memory = 1, 100
				if observed != nil {
					c.PeerDefault.Memory = 10
				}
			}), append(openGates(), WithAllowlistedMultiaddrs(testAllowlist), WithEarmarks(named(0.25, friend)))...)
			if observed != nil {
				require.NoError(t, m.ObserveOnly(observed...))
			}
			before, err := m.OpenConnection(network.DirInbound, false, testFars[1].addr)
			require.NoError(t, err)
			trial, err := m.OpenConnection(network.DirInbound, false, far)
			require.NoError(t, err)
			before.Done()
			require.NoError(t, trial.ReserveMemory(80, network.ReservationPriorityAlways))
			require.NoError(t, trial.SetPeer(stranger))
			trial.Done()
			assertEmpty(t, m)
		})
	}
}

func TestAConnectionIsHeldToEarmarksOnceItsPeerIsKnown(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 8 }),
		append(openGates(), WithEarmarks(named(0.5, "friend")))...)
	dial := func(p peer.ID, dir network.Direction) error {
		c, err := m.OpenConnection(dir, true, nil)
		require.NoError(t, err)
		if err = c.SetPeer(p); err != nil {
			c.Done()
		}
		return err
	}
	for i := range 4 {
		require.NoError(t, dial(peerNamed(fmt.Sprint(i)), network.DirInbound))
	}
	for _, dir := range testDirs {
		requireCause(t, dial("stranger", dir), CauseEarmark, KindSystem)
	}
	for range 4 {
		require.NoError(t, dial("friend", network.DirInbound))
	}
}

func TestStreamsOfAProtocolHaveAPart(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams = 8 }), WithEarmarks(
		Earmark{Name: "mesh", Part: 0.5, Protocols: []protocol.ID{"/mesh"}}))
	open := func(id protocol.ID) error {
		s, err := m.OpenStream("peer", network.DirInbound)
		require.NoError(t, err, "it may turn out to be of the mesh")
		if err = s.SetProtocol(id); err != nil {
			s.Done()
		}
		return err
	}
	for range 4 {
		require.NoError(t, open("/other"))
	}
	requireCause(t, open("/other"), CauseEarmark, KindSystem)
	for id, admitted := range map[protocol.ID]bool{"/other": false, "/mesh": true} {
		e, err := m.Explain(ExplainRequest{Kind: KindStream, Direction: network.DirInbound, Peer: "peer", Protocol: id})
		require.NoError(t, err)
		require.Equal(t, admitted, e.Admitted, id)
		if !admitted {
			require.Equal(t, []any{"protocol", "system", "earmark"}, []any{e.By.Step, e.By.Scope, e.By.Cause})
		}
	}
	for range 4 {
		require.NoError(t, open("/mesh"))
	}
}

func TestAPeerMayHaveSeveralEarmarksAndEachIsCountedOnce(t *testing.T) {
	peers := func(of ...peer.ID) func() []peer.ID { return func() []peer.ID { return of } }
	m := newEarmarks([]Earmark{{Name: "a", Part: 0.29, Peers: peers("x", "y", "y")}, {Name: "b", Part: 0.2, Peers: peers("x", "z")}})
	m.ask()
	require.Equal(t, map[peer.ID]earmarkSet{"x": 3, "y": 1, "z": 2}, m.named.Load().of)
	require.Equal(t, []int{2, 2}, []int{m.state()[0].Peers, m.state()[1].Peers})
	for may, kept := range []int64{49, 20, 29, 0} {
		require.Equal(t, kept, m.keptFrom(earmarkSet(may), 100), "to requests with the earmarks %b", may)
	}
}

// Each stranger opens one stream, so that no other rule looks at what its peer holds.
func TestStrangersLeaveThePartOfAnEarmarkFreeWhereTheSystemHasARate(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Streams = 8
		c.System.Rates.Streams = Rate{PerSecond: 1000, Burst: 1000}
	}), WithEarmarks(named(0.5, "friend")))
	for i := range 4 {
		mustOpenStream(t, m, peerNamed(fmt.Sprint(i)), network.DirInbound)
	}
	_, err := m.OpenStream("stranger", network.DirInbound)
	requireCause(t, err, CauseEarmark, KindSystem)
	for range 4 {
		mustOpenStream(t, m, "friend", network.DirInbound)
	}
}

func TestAStreamInThePartOfItsProtocolMayHaveAService(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams = 8 }), WithEarmarks(
		Earmark{Name: "mesh", Part: 0.5, Protocols: []protocol.ID{"/mesh"}}))
	for range 8 {
		s := mustOpenStream(t, m, "peer", network.DirInbound)
		require.NoError(t, s.SetProtocol("/mesh"))
		require.NoError(t, s.SetService("relay"))
	}
}

// A stream that counts in the allowlisted scopes takes nothing of an earmark in the standard ones.
func TestAnAllowlistedStreamMayHaveAnyProtocolHoweverFullTheStandardScopesAre(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams = 8 }),
		append(openGates(), WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{multiaddr.StringCast("/ip4/192.0.2.1")}),
			WithEarmarks(named(0.5, "friend")))...)
	connectAs(t, m, "allowlisted", network.DirInbound, "/ip4/192.0.2.1/tcp/1")
	for range 8 {
		require.NoError(t, mustOpenStream(t, m, "friend", network.DirInbound).SetProtocol("/x"))
	}
	s := mustOpenStream(t, m, "allowlisted", network.DirInbound)
	require.Equal(t, KindAllowlistedSystem, s.(*streamScope).h.tree.chain.at[slotSystem].kind)
	require.NoError(t, s.SetProtocol("/x"))
}

func TestEarmarksHoldBesideRates(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Streams = 8
		c.System.Rates.Streams = Rate{PerSecond: 1000, Burst: 1000}
	}), WithEarmarks(named(0.5, "friend")))
	for range 4 {
		mustOpenStream(t, m, "stranger", network.DirInbound)
	}
	_, err := m.OpenStream("stranger", network.DirInbound)
	requireCause(t, err, CauseEarmark, KindSystem)
	for range 4 {
		mustOpenStream(t, m, "friend", network.DirInbound)
	}
}

func TestAnEarmarkIsForAnAllowlistedPeerWhileItIsListed(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Streams, c.AllowlistedSystem.Streams = 2, 0
	}), WithAllowlistStrings([]string{"/p2p/" + testPeer.String()}, false),
		WithEarmarks(Earmark{Name: "listed", Part: 0.5, Allowlisted: true}))
	mustOpenStream(t, m, "stranger", network.DirInbound)
	_, err := m.OpenStream("stranger", network.DirInbound)
	requireCause(t, err, CauseEarmark, KindSystem)
	mustOpenStream(t, m, testPeer, network.DirInbound)
}

func TestARequestThatHasAnEarmarkIsHeldToNoShare(t *testing.T) {
	for cause, opts := range map[Cause][]Option{CauseCrowding: nil, CauseFairShare: {WithFairShare()}} {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.Transient.StreamsInbound = 40 }),
			append(opts, WithEarmarks(named(0.05, "friend")))...)
		var held []network.StreamManagementScope
		for range 40 {
			held = append(held, mustOpenStream(t, m, "friend", network.DirInbound))
		}
		for _, s := range held {
			s.Done()
		}
		var err error
		for err == nil {
			_, err = m.OpenStream("stranger", network.DirInbound)
		}
		requireCause(t, err, cause, KindTransient) // the share is used up before the part of the earmark is reached
	}
}

func TestAnEarmarkOfProtocolsAloneKeepsNoConnections(t *testing.T) {
	for bound, e := range map[int]Earmark{
		8: {Name: "mesh", Part: 0.5, Protocols: []protocol.ID{"/mesh"}},
		4: {Name: "mesh", Part: 0.5, Protocols: []protocol.ID{"/mesh"}, Peers: func() []peer.ID { return nil }},
	} {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 8 }), append(openGates(), WithEarmarks(e))...)
		for i := range bound + 1 {
			c, err := m.OpenConnection(network.DirInbound, true, nil)
			if err == nil {
				err = c.SetPeer(peerNamed(fmt.Sprint(i)))
			}
			require.Equal(t, i < bound, err == nil, "connection %d of %d: %v", i, bound, err)
		}
	}
}

func TestMemoryHasAnEarmarkedPart(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = 1000 }), WithEarmarks(named(0.25, "friend")))
	stranger, friend := servedStream(t, m, "stranger"), servedStream(t, m, "friend")
	require.NoError(t, stranger.ReserveMemory(750, network.ReservationPriorityAlways))
	requireCause(t, stranger.ReserveMemory(1, network.ReservationPriorityAlways), CauseEarmark, KindSystem)
	require.NoError(t, friend.ReserveMemory(250, network.ReservationPriorityAlways))
}

func TestTheHostIsAskedForItsPeersEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mesh atomic.Pointer[[]peer.ID]
		mesh.Store(&[]peer.ID{"first"})
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams = 2 }), WithEarmarks(
			Earmark{Name: "mesh", Part: 0.5, Peers: func() []peer.ID { return *mesh.Load() }}))
		mustOpenStream(t, m, "stranger", network.DirInbound)
		may := func(p peer.ID) bool {
			s, err := m.OpenStream(p, network.DirInbound)
			if err == nil {
				s.Done()
			}
			return err == nil
		}
		require.True(t, may("first"), "New has asked")
		require.False(t, may("second"))
		mesh.Store(&[]peer.ID{"second", "third"})
		time.Sleep(earmarkInterval + time.Millisecond)
		synctest.Wait()
		require.False(t, may("first"))
		require.True(t, may("second"))
		require.Equal(t, []EarmarkState{{Name: "mesh", Part: 0.5, Peers: 2}}, m.Snapshot().Earmarks)
		require.NoError(t, m.Close())
	})
}

func TestAFunctionOfPeersThatPanicsIsNotCalledAgainAndItsLastListStays(t *testing.T) {
	calls := 0
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Streams = 2 }), WithEarmarks(
		Earmark{Name: "mesh", Part: 0.5, Peers: func() []peer.ID {
			if calls++; calls > 1 {
				panic("the mesh is torn")
			}
			return []peer.ID{"friend"}
		}}))
	lines := captureLog(t)
	m.earmarks.ask()
	m.earmarks.ask()
	text := lines.String()
	require.Equal(t, 2, calls)
	require.Equal(t, 1, strings.Count(text, "the mesh is torn"))
	require.Contains(t, text, "the peers that it named last stay")
	mustOpenStream(t, m, "stranger", network.DirInbound)
	mustOpenStream(t, m, "friend", network.DirInbound)
}

func TestEarmarksThatCannotBeAreErrors(t *testing.T) {
	peers := func() []peer.ID { return nil }
	one := func(e Earmark) []Earmark { return []Earmark{e} }
	for want, list := range map[string][]Earmark{
		"earmark 0 has no Name": one(Earmark{Part: 0.1, Peers: peers}),
		`earmark 0 ("a"): Part is 0, expected a number above 0 and at most 0.5`:               one(Earmark{Name: "a", Peers: peers}),
		`earmark 0 ("a"): Part is -0.1, expected`:                                             one(Earmark{Name: "a", Part: -0.1, Peers: peers}),
		`earmark 0 ("a"): Part is NaN, expected`:                                              one(Earmark{Name: "a", Part: math.NaN(), Peers: peers}),
		`earmark 0 ("a"): Part is 1.5, expected`:                                              one(Earmark{Name: "a", Part: 1.5, Peers: peers}),
		`earmark 0 ("a") is for no peer and no protocol: set Peers, Allowlisted or Protocols`: one(Earmark{Name: "a", Part: 0.1}),
		`earmark 0 ("a"): a name in Protocols is empty`:                                       one(Earmark{Name: "a", Part: 0.1, Protocols: []protocol.ID{""}}),
		`earmark 1 ("a"): another one has this Name`:                                          {{Name: "a", Part: 0.1, Peers: peers}, {Name: "a", Part: 0.1, Peers: peers}},
		`the parts of all earmarks are 0.6 together, expected at most 0.5`:                    {{Name: "a", Part: 0.3, Peers: peers}, {Name: "b", Part: 0.3, Peers: peers}},
		`earmark 1 ("b"): the protocol "/x" is in earmark "a" already`:                        {{Name: "a", Part: 0.1, Protocols: []protocol.ID{"/x"}}, {Name: "b", Part: 0.1, Protocols: []protocol.ID{"/x"}}},
		"there are 8 earmarks, expected at most 7":                                            make([]Earmark, 8),
	} {
		_, err := New(nil, WithEarmarks(list...))
		require.ErrorContains(t, err, "WithEarmarks: "+want)
	}
	half := Earmark{Name: "a", Part: 0.3, Peers: peers}
	_, err := New(nil, WithEarmarks(half), WithEarmarks(Earmark{Name: "b", Part: 0.3, Peers: peers}))
	require.ErrorContains(t, err, "0.6 together", "two options are one list")
}

func TestEarmarksAreSeenInTablesAndOnThePage(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithEarmarks(
		Earmark{Name: "validators", Part: 0.2, Peers: func() []peer.ID { return []peer.ID{"a", "b"} }, Allowlisted: true},
		Earmark{Name: "mesh", Part: 0.125, Protocols: []protocol.ID{"/meshsub/1.1.0", "/meshsub/1.2.0"}}))
	s := m.Snapshot()
	var text strings.Builder
	require.NoError(t, s.WriteText(&text))
	for _, want := range []string{"Kept for those that the host names", "validators", "20 %", "2 and the allowlist", "12.5 %", "/meshsub/1.1.0 /meshsub/1.2.0"} {
		require.Contains(t, text.String(), want)
	}
	var read Snapshot
	require.NoError(t, json.Unmarshal([]byte(toJSON(t, s)), &read))
	require.Equal(t, s.Earmarks, read.Earmarks)
}

// Strangers come and go from all sides, and the friend always finds all of its part.
func TestAFriendFindsItsPartHoweverManyStrangersAsk(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.StreamsInbound = 64 }),
			WithNewcomersQuarter(false), WithStripes(stripes), WithEarmarks(named(0.25, "friend")))
		var stop atomic.Bool
		var strangers sync.WaitGroup
		for g := range 4 {
			strangers.Go(func() {
				var held []network.StreamManagementScope
				for i := 0; !stop.Load(); i++ {
					s, err := m.OpenStream(peerNamed(fmt.Sprint(g, i%50)), network.DirInbound)
					if err == nil {
						held = append(held, s)
					} else if len(held) > 0 {
						held[0].Done()
						held = held[1:]
					}
				}
				for _, s := range held {
					s.Done()
				}
			})
		}
		for range 300 {
			var held []network.StreamManagementScope
			for range 16 {
				held = append(held, mustOpenStream(t, m, "friend", network.DirInbound))
			}
			for _, s := range held {
				s.Done()
			}
		}
		stop.Store(true)
		strangers.Wait()
		assertEmpty(t, m)
	}
}
