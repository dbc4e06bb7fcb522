package letgo

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/evict"
	"github.com/weir-p2p/rcmgr/internal/fakehost"
)

func TestTheLastVictimsAreRemembered(t *testing.T) {
	var s State
	s.init()
	for i := range 3 * mostLast {
		s.letGo(&Victim{Num: int64(i), Stream: i%2 == 0, Reason: evict.Idle})
	}
	require.Len(t, s.Last, mostLast)
	require.Equal(t, "conn-47", s.Last[mostLast-1].Name())
	require.Equal(t, "stream-46", s.Last[mostLast-2].Name())
	require.Equal(t, map[Key]uint64{{Reason: evict.Idle}: 24, {Stream: true, Reason: evict.Idle}: 24}, s.LetGo)
}

func TestARoomWithoutHostsHasNothingToLetGo(t *testing.T) {
	r := New(Config{PerSecond: 1}, Engine{Lacks: func() []Lack { return []Lack{{Need: func() int64 { return 1 }, Kind: 1}} }})
	require.Equal(t, Outcome{Barren: true}, r.Pass())
	require.Equal(t, map[uint8]uint64{1: 1}, r.State().OnlyKept)
	require.Empty(t, r.WouldGo(Lack{Need: func() int64 { return 1 }}, 3))
}

// scope is the scope of a connection or stream of a manager that has no limits.
type scope struct {
	network.NullScope
	facts Facts
	done  bool
}

func (s *scope) Done() { s.done = true }

// rig is a Room with a host, whose clock stands still. Room is made in Pass alone.
type rig struct {
	network.NullResourceManager
	*Room
	host  *fakehost.Host
	cm    *fakehost.ConnManager
	now   time.Time
	in    []any  // the shared scopes in which what is opened counts
	lacks []Lack // of the next pass
	again int    // lacks that were put back
	gone  []Victim
	last  int64
}

func newRig(c Config) *rig {
	g := &rig{now: time.Unix(1e9, 0), in: []any{"system"}, cm: &fakehost.ConnManager{}}
	clock := func() time.Time { return g.now }
	c.ByHand, c.Now, c.Seed = true, clock, 1
	if c.PerSecond == 0 {
		c.PerSecond = 1000
	}
	g.Room = New(c, Engine{
		Facts: func(s network.ResourceScope) (Facts, bool) {
			own, ok := s.(*scope)
			if !ok || own.done {
				return Facts{}, false
			}
			return own.facts, true
		},
		Own:    func(s network.ResourceScope) network.ResourceScope { return s },
		Lacks:  func() []Lack { defer func() { g.lacks = nil }(); return g.lacks },
		Again:  func(Lack) { g.again++ },
		Locate: locate,
		Try: func(_ string, f func()) (ok bool) {
			defer func() { ok = recover() == nil }()
			f()
			return
		},
		Gone: func(v Victim) { g.gone = append(g.gone, v) },
		Log:  slog.New(slog.DiscardHandler),
	})
	g.host = &fakehost.Host{RM: g, CM: g.cm, Now: clock}
	g.Attach(g.host)
	return g
}

// locate returns the place of an address, and of a relay before it.
func locate(a multiaddr.Multiaddr) (p Place) {
	p.Addr, _ = netip.ParseAddr(strings.Split(a.String(), "/")[2])
	if _, err := a.ValueForProtocol(multiaddr.P_CIRCUIT); err == nil {
		p.Relay = "relay"
	}
	return p
}

func (g *rig) scope() *scope {
	g.last++
	s := &scope{facts: Facts{Num: g.last, Counts: 1}}
	copy(s.facts.In[:], g.in)
	return s
}

func (g *rig) OpenConnection(dir network.Direction, _ bool, _ multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	s := g.scope()
	s.facts.Outbound = dir == network.DirOutbound
	return s, nil
}

func (g *rig) OpenStream(_ peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s := g.scope()
	s.facts.Outbound, s.facts.Waiting = dir == network.DirOutbound, true
	return s, nil
}

// connect opens a connection, each from a network of its own.
func (g *rig) connect(t *testing.T, p string) *fakehost.Conn {
	t.Helper()
	return g.connectFrom(t, p, fmt.Sprintf("/ip4/%d.%d.0.1/tcp/1", 10+g.last>>8, g.last&255))
}

func (g *rig) connectFrom(t *testing.T, p, from string) *fakehost.Conn {
	t.Helper()
	c, err := g.host.Connect(peer.ID(p), network.DirInbound, multiaddr.StringCast(from))
	require.NoError(t, err)
	return c
}

// short returns a lack of n of what counts in a shared scope.
func short(in any, n int64) Lack { return Lack{In: in, Need: func() int64 { return n }} }

// lets runs a pass for lacks, and returns how many are let go.
func (g *rig) lets(of ...Lack) Outcome {
	g.lacks, g.again = of, 0
	return g.Pass()
}

// letGo returns how many have been let go so far, as it is counted.
func (g *rig) letGo() (n int) {
	for _, times := range g.State().LetGo {
		n += int(times)
	}
	return n
}

func TestAVictimThatIsSeenToHaveGoneWhileItsCloserRunsIsCountedOnce(t *testing.T) {
	g := newRig(Config{})
	c := g.connect(t, "p")
	c.Letting = func() error {
		c.Close()
		require.Equal(t, 1, g.letGo())
		return nil
	}
	g.lets(short("system", 1))
	require.Equal(t, 1, g.letGo())
	require.Len(t, g.gone, 1)
}

func TestWhatStaysOpenAndGoesLaterIsCountedAsThatUntilThen(t *testing.T) {
	g := newRig(Config{})
	c := g.connect(t, "p")
	c.Letting = func() error { return nil }
	g.lets(short("system", 1))
	require.Equal(t, []int{1, 0}, []int{g.State().Closing, g.State().StayOpen})
	g.now = g.now.Add(patience - 1)
	require.Equal(t, []int{1, 0}, []int{g.State().Closing, g.State().StayOpen})
	g.now = g.now.Add(1)
	require.Equal(t, []int{0, 1}, []int{g.State().Closing, g.State().StayOpen})
	c.Close()
	require.Equal(t, []int{0, 0}, []int{g.State().Closing, g.State().StayOpen})
	require.Equal(t, 1, g.letGo())
}

func TestWhatWouldHaveBeenLetGoAndGoesByItselfIsNotLetGo(t *testing.T) {
	g := newRig(Config{Observe: true})
	c := g.connect(t, "p")
	require.Equal(t, Outcome{LetGo: 1}, g.lets(short("system", 1)))
	c.Close()
	require.Zero(t, g.letGo())
	require.Empty(t, g.gone)
	require.Len(t, g.State().Would, 1)
}

// A limit that is only observed, and exceeded by far, chooses all that may go. For another limit,
// they go before those that are kept.
func TestWhatWouldHaveBeenLetGoForAnObservedLimitIsLetGoForAnother(t *testing.T) {
	g := newRig(Config{})
	g.in = []any{"system", "protocol"}
	for range 16 {
		g.connect(t, fmt.Sprint(g.last))
		g.now = g.now.Add(time.Second)
	}
	observed := short("protocol", 100)
	observed.Observed = true
	would := make(map[int64]bool)
	require.Equal(t, Outcome{LetGo: 11}, g.lets(observed))
	for _, v := range g.State().Last {
		would[v.Num] = true
	}
	require.Len(t, would, 11)
	require.Equal(t, 2, g.lets(short("system", 2)).LetGo)
	require.Len(t, g.gone, 2)
	for _, v := range g.gone {
		require.True(t, would[v.Num], "it is none of the longest-standing")
	}
	require.Equal(t, 14, g.host.Len())
	require.Equal(t, 2, g.letGo())
	require.Zero(t, g.State().Closing)
}

func TestWhatTheBoundOnClosingsLeavesIsMadeUpForLater(t *testing.T) {
	g := newRig(Config{PerSecond: 4}) // one at once
	for range 16 {
		g.connect(t, fmt.Sprint(g.last))
	}
	for range 3 {
		require.Equal(t, Outcome{LetGo: 1, Later: true}, g.lets(short("system", 3)))
		require.Equal(t, 1, g.again)
		require.Equal(t, Outcome{Later: true}, g.lets(short("system", 2)), "the second's closings are used up")
		require.Equal(t, 1, g.again)
		g.now = g.now.Add(time.Second / 4)
	}
	require.Equal(t, 3, g.letGo())
	require.Empty(t, g.State().OnlyKept)
}

func TestOnlyWhatCountsInTheScopeThatIsShortIsLetGo(t *testing.T) {
	g := newRig(Config{})
	g.in = []any{"elsewhere"}
	for range 8 {
		g.connect(t, fmt.Sprint(g.last))
	}
	require.Equal(t, Outcome{Barren: true}, g.lets(short("system", 1)))
	g.in = []any{nil, "system"}
	c := g.connect(t, "p")
	require.Equal(t, Outcome{LetGo: 1, Later: true}, g.lets(short("system", 3)))
	require.True(t, c.IsClosed())
	memory := short("system", 1)
	memory.Memory = true
	g.connect(t, "holds none")
	require.Equal(t, Outcome{Barren: true}, g.lets(memory))
}

// memoryOfProcess returns a lack of n bytes of memory that nobody has reserved.
func memoryOfProcess(n, each int64, went *int64) Lack {
	l := short("process", n)
	l.Each, l.Went = each, func(weight int64) { *went += weight }
	return l
}

func TestMemoryThatNobodyHasReservedIsTakenToBeHeldByEachStreamAlike(t *testing.T) {
	g := newRig(Config{})
	var went int64
	var conns []*fakehost.Conn
	for i := range 16 {
		c := g.connect(t, fmt.Sprint(i))
		c.Scope().(*scope).facts.Streams = 1
		conns = append(conns, c)
	}
	conns[9].Scope().(*scope).facts.Streams = 9
	require.Equal(t, Outcome{LetGo: 1, Later: true}, g.lets(memoryOfProcess(100, 10, &went)))
	require.True(t, conns[9].IsClosed())
	require.EqualValues(t, 100, went, "ten times ten bytes")
	require.Equal(t, Outcome{LetGo: 2, Later: true}, g.lets(memoryOfProcess(21, 10, &went)))
	require.EqualValues(t, 140, went)
	require.Equal(t, 1, g.again)
}

func TestNoMoreGoForTheMemoryOfTheProcessUntilThoseThatWentHaveGone(t *testing.T) {
	g := newRig(Config{})
	var went int64
	var slow *fakehost.Conn
	for i := range 16 {
		c := g.connect(t, fmt.Sprint(i))
		c.Letting = func() error { slow = c; return nil }
	}
	require.Equal(t, Outcome{LetGo: 1, Later: true}, g.lets(memoryOfProcess(1, 10, &went)))
	asked := memoryOfProcess(1000, 10, &went)
	asked.Need = func() int64 { t.Error("what has become free is not known yet"); return 0 }
	require.Equal(t, Outcome{Later: true}, g.lets(asked))
	require.Equal(t, 1, g.again)
	slow.Close()
	require.Equal(t, Outcome{LetGo: 1, Later: true}, g.lets(memoryOfProcess(1, 10, &went)))
	require.EqualValues(t, 20, went)
}

func TestWhatGoesForAnotherLimitDoesNotPutOffTheMemoryOfTheProcess(t *testing.T) {
	g := newRig(Config{})
	var went int64
	for i := range 16 {
		g.connect(t, fmt.Sprint(i)).Letting = func() error { return nil }
	}
	require.Equal(t, Outcome{LetGo: 1, Later: true}, g.lets(short("system", 1)))
	memory := memoryOfProcess(1, 10, &went)
	memory.Kind = 1
	require.Equal(t, Outcome{LetGo: 1, Later: true}, g.lets(memory))
	require.EqualValues(t, 10, went)
}

func TestMemoryOfTheProcessThatIsOnlyObservedIsNotToldWhatWent(t *testing.T) {
	g := newRig(Config{Observe: true})
	var went int64
	for i := range 16 {
		g.connect(t, fmt.Sprint(i))
	}
	require.Equal(t, Outcome{LetGo: 1}, g.lets(memoryOfProcess(1, 10, &went)))
	require.Equal(t, Outcome{}, g.lets(memoryOfProcess(1, 10, &went)), "each is counted once")
	require.Zero(t, went)
	require.Zero(t, g.again)
}

func TestWhatWouldGoIsCountedWhileClosersHang(t *testing.T) {
	g := newRig(Config{})
	for i := range 8 {
		g.connect(t, fmt.Sprint(i))
	}
	for range cap(g.slots) {
		g.slots <- struct{}{}
	}
	require.Equal(t, Outcome{Later: true}, g.lets(short("system", 2)))
	observed := short("system", 2)
	observed.Observed = true
	require.Equal(t, Outcome{LetGo: 2}, g.lets(observed))
}

func TestWhatWouldGoNextIsNamedThoughNothingIsShort(t *testing.T) {
	g := newRig(Config{})
	g.connect(t, "p")
	victims := g.WouldGo(short("system", 0), 3)
	require.Len(t, victims, 1)
	require.Equal(t, peer.ID("p"), victims[0].Peer)
	require.Zero(t, g.letGo())
}

// sees returns what a look at connections and streams finds.
func (g *rig) sees() *view { return g.look(g.now, sightConns|sightStreams) }

func TestAllConnectionsOfAPeerAreAsOldAsItsOldest(t *testing.T) {
	for _, oldestFirst := range []bool{false, true} {
		g := newRig(Config{})
		began := g.now
		for i := range 3 {
			g.now = began.Add(time.Duration(2-i) * time.Hour)
			if oldestFirst {
				g.now = began.Add(time.Duration(i) * time.Hour)
			}
			g.connect(t, "p")
		}
		g.now = began.Add(3 * time.Hour)
		g.connect(t, "another")
		found := g.sees().found
		require.Len(t, found, 4)
		for _, f := range found[:3] {
			require.Equal(t, began.UnixNano(), f.candidate.Since)
			require.Equal(t, f.opened.UnixNano(), f.candidate.Opened)
		}
		require.Equal(t, g.now.UnixNano(), found[3].candidate.Since)
	}
}

func TestOfVeryManyConnectionsTheNextLookSeesOthers(t *testing.T) {
	g := newRig(Config{})
	for range mostLooked + 100 {
		g.connect(t, fmt.Sprint(g.last))
	}
	seen := make(map[int64]bool)
	for range 2 {
		found := g.look(g.now, sightConns).found
		require.Len(t, found, mostLooked)
		for _, f := range found {
			seen[f.Num] = true
		}
	}
	require.Len(t, seen, mostLooked+100)
}

func TestStreamsAreOfTheClassesOfTheirConnection(t *testing.T) {
	g := newRig(Config{Protocols: []protocol.ID{"/named"}})
	c := g.connect(t, "named and protected")
	g.cm.Protect("named and protected", "")
	for _, p := range []protocol.ID{"", "/named", ""} {
		s, err := c.Open(network.DirInbound)
		require.NoError(t, err)
		if p != "" {
			require.NoError(t, s.SetProtocol(p))
		}
	}
	_, err := g.connect(t, "a stranger").Open(network.DirInbound)
	require.NoError(t, err)
	found := g.sees().found
	require.Len(t, found, 2+4)
	for _, f := range found {
		special := f.peer == "named and protected"
		require.Equal(t, special, f.candidate.Named)
		require.Equal(t, special, f.keep(&Lack{Streams: true}, g.now) == evict.Protected)
	}
}

func TestAConnectionIsIdleOnceItHasHadTimeForAStream(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, c := range []struct {
		age     time.Duration
		others  time.Duration // their median age
		streams int
		idle    bool
	}{
		{grace, time.Hour, 0, true},
		{grace - 1, time.Hour, 0, false},
		{grace - 1, grace - 1, 0, false},
		{grace - 1, grace - 2, 0, true},
		{leastGrace, 0, 0, true},
		{leastGrace - 1, 0, 0, false},
		{time.Hour, 0, 1, false},
	} {
		f := found{opened: now.Add(-c.age), streams: c.streams}
		require.Equal(t, c.idle, f.idle(&Lack{}, now, now.Add(-c.others)), "%+v", c)
		require.False(t, f.idle(&Lack{Shaking: true}, now, now.Add(-c.others)), "all handshakes are")
		require.Equal(t, c.age < leastGrace, f.fresh(now), "%+v", c)
	}
	stream := found{stream: &fakehost.Stream{}, Facts: Facts{Waiting: true}}
	require.True(t, stream.idle(&Lack{Streams: true}, now, now), "it has no protocol")
	require.False(t, stream.idle(&Lack{Streams: true, Waiting: true}, now, now), "none has")
	stream.Waiting = false
	require.False(t, stream.idle(&Lack{Streams: true}, now, now))
}

func TestOfWhatTheHostOpensOnlyStreamsThatHaveWaitedForLongMayGo(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, c := range []struct {
		waiting, outbound bool // the stream waits, and outbound ones are short
		age               time.Duration
		want              evict.Class
	}{
		{true, true, hungAfter, evict.Free},
		{true, true, hungAfter - 1, evict.Outbound},
		{false, true, time.Hour, evict.Outbound},
		{true, false, time.Hour, evict.Outbound},
	} {
		f := found{Facts: Facts{Outbound: true, Waiting: c.waiting}, opened: now.Add(-c.age)}
		require.Equal(t, c.want, f.keep(&Lack{Outbound: c.outbound}, now), "%+v", c)
		f.Outbound = false
		require.Equal(t, evict.Free, f.keep(&Lack{Outbound: c.outbound}, now), "%+v", c)
	}
}

func TestAConnectionIsInTheGroupsOfItsAddress(t *testing.T) {
	owner := ""
	g := newRig(Config{Group: func(netip.Addr) string { return owner }})
	groupsOf := func(from string) (names []string) {
		g.connectFrom(t, "p", from)
		v := g.sees()
		for level, number := range v.found[len(v.found)-1].candidate.Groups {
			if level != evict.Peer && number != evict.NoGroup {
				names = append(names, v.names[number].String())
			}
		}
		return names
	}
	require.Equal(t, []string{"192.0.2.1/32", "192.0.2.0/24", "192.0.0.0/16"}, groupsOf("/ip4/192.0.2.1/tcp/1"))
	require.Equal(t, []string{"192.0.2.0/24", "192.0.0.0/16"}, groupsOf("/ip4/192.0.2.1/tcp/1/p2p-circuit"), "the address is the relay's")
	owner = strings.Repeat("x", longestName)
	require.Equal(t, []string{"2001:db8::/56", "2001:db8::/48", "2001:db8::/32", owner}, groupsOf("/ip6/2001:db8::1/tcp/1"))
	owner += "x"
	require.Len(t, groupsOf("/ip6/2001:db8::1/tcp/1"), 3, "the name is too long")
}

// The order of networks decides which are kept as rare ones. An attacker that knew it could choose
// addresses.
func TestTheNumbersOfNetworksAreSecret(t *testing.T) {
	order := func(seed uint64) (nets []int) {
		g := newRig(Config{})
		g.secret = New(Config{Seed: seed}, Engine{}).secret
		for range 32 {
			g.connect(t, fmt.Sprint(g.last))
		}
		found := g.sees().found
		for i := range found {
			nets = append(nets, i)
		}
		slices.SortFunc(nets, func(a, b int) int {
			if found[a].candidate.Net < found[b].candidate.Net {
				return -1
			}
			return 1
		})
		return nets
	}
	require.Equal(t, order(1), order(1))
	require.NotEqual(t, order(1), order(2))
}

// brittle is a connection manager that fails when it is asked for a peer.
type brittle struct {
	*fakehost.ConnManager
	at peer.ID
}

func (b brittle) IsProtected(p peer.ID, tag string) bool {
	if p == b.at {
		panic("no")
	}
	return b.ConnManager.IsProtected(p, tag)
}

func TestOfAHostThatFailsInTheMiddleNothingIsLetGo(t *testing.T) {
	g := newRig(Config{})
	for i := range 8 {
		g.connect(t, fmt.Sprint(i))
	}
	g.host.CM = brittle{g.cm, "5"}
	require.Empty(t, g.sees().found)
	require.Equal(t, Outcome{Barren: true}, g.lets(short("system", 1)))
	require.EqualValues(t, 2, g.State().Faults[Walk])
	other := &fakehost.Host{RM: g, Now: func() time.Time { return g.now }}
	g.Attach(other)
	_, err := other.Connect("elsewhere", network.DirInbound, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.NoError(t, err)
	require.Equal(t, 1, g.lets(short("system", 1)).LetGo)
	require.Zero(t, other.Len())
}
