package rcmgr

import (
	"fmt"
	"math"
	"net/http/httptest"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/fakehost"
)

// meter is memory that a test sets.
type meter struct{ atomic.Int64 }

func (m *meter) pressure() MemoryPressureConfig {
	return MemoryPressureConfig{Limit: 1000, RefuseAbove: 0.9, AdmitBelow: 0.6, Every: time.Hour, InUse: m.Load}
}

func TestStrangersFromOutsideAreRefusedWhileMemoryIsShort(t *testing.T) {
	var used meter
	friendAt := func(addr string) multiaddr.Multiaddr { return mustMA(t, addr+"/p2p/"+testPeers[0].String()) }
	m := newManager(t, unlimitedConf(), WithMemoryPressure(used.pressure()), WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{
		mustMA(t, "/ip4/192.0.2.0/ipcidr/24"), friendAt("/ip4/198.51.100.1"), mustMA(t, "/p2p/"+testPeers[1].String())}))
	reg := registryOf(t, m)
	stranger := testPeers[2]
	in, out := network.DirInbound, network.DirOutbound
	connect := func(dir network.Direction, addr string) error {
		c, err := m.OpenConnection(dir, true, mustMA(t, addr+"/tcp/1"))
		if err == nil {
			c.Done()
		}
		return err
	}
	stream := func(i int, dir network.Direction) error {
		s, err := m.OpenStream(testPeers[i], dir)
		if err == nil {
			s.Done()
		}
		return err
	}
	const afar = "/ip4/203.0.113.1"
	before, err := m.OpenStream(stranger, in)
	require.NoError(t, err)
	onTrial, err := m.OpenConnection(in, true, mustMA(t, "/ip4/198.51.100.1/tcp/1"))
	require.NoError(t, err)

	refuses := func(now bool) {
		t.Helper()
		check := require.NoError
		if now {
			check = func(t require.TestingT, err error, _ ...any) {
				require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			}
		}
		check(t, connect(in, afar))
		check(t, stream(2, in))
		require.Equal(t, now, m.Snapshot().Process.Refusing)
		for _, c := range []struct {
			who string
			err error
		}{
			{"our own connection", connect(out, afar)}, {"our own stream", stream(2, out)},
			{"allowlisted network", connect(in, "/ip4/192.0.2.7")}, {"on trial", connect(in, "/ip4/198.51.100.1")},
			{"stream of an allowlisted peer", stream(1, in)},
			{"what is open", before.ReserveMemory(10, 0)},
		} {
			require.NoError(t, c.err, c.who)
		}
	}
	for _, step := range []struct {
		used    int64
		refuses bool
	}{{0, false}, {900, false}, {901, true}, {600, true}, {599, false}, {901, true}} {
		used.Store(step.used)
		m.pressure.look()
		refuses(step.refuses)
	}

	var why *LimitError
	require.ErrorAs(t, connect(in, afar), &why)
	require.Equal(t, "process", why.Scope())
	require.Equal(t, KindProcess, why.Kind())
	require.Equal(t, CauseMemoryPressure, why.Cause())
	require.Equal(t, "memory-pressure", why.Cause().String())
	require.Equal(t, ResourceConnection, why.Resource())
	require.Equal(t, in, why.Direction())
	require.Equal(t, []int64{901, 1, 900}, []int64{why.Current(), why.Attempted(), why.Limit()})
	require.Equal(t, "process: cannot reserve inbound connection: resource limit exceeded", why.Unwrap().Error())
	require.Regexp(t, `^conn: process: cannot`, why.Error())
	require.ErrorAs(t, stream(2, in), &why)
	require.Equal(t, CauseMemoryPressure, why.Cause())
	require.Regexp(t, `^stream: process: cannot reserve inbound stream`, why.Error())

	// The address spoke for one peer, and it was another.
	require.ErrorAs(t, onTrial.SetPeer(stranger), &why)
	require.Equal(t, CauseMemoryPressure, why.Cause())
	require.Nil(t, onTrial.PeerScope())
	require.NoError(t, onTrial.SetPeer(testPeers[0]))
	s, err := m.OpenStream(testPeers[0], in)
	require.NoError(t, err, "whose connection is allowlisted")
	s.Done()

	state := m.Snapshot()
	require.Equal(t, ProcessMemory{InUse: 901, Limit: 1000, RefuseAbove: 900, AdmitBelow: 600, Refusing: true, Times: 2}, state.Process)
	require.Equal(t, Refusals{ConnsInbound: 5, StreamsInbound: 4}, state.Refusals[KindProcess])
	require.Equal(t, map[string]float64{"memory-pressure inbound connection process": 5, "memory-pressure inbound stream process": 4}, seriesOf(t, reg, "refusals_total"))
	requireValue(t, 1, reg, "memory_pressure")
	requireValue(t, 901, reg, "process_memory", "in_use")
	problems, err := testutil.GatherAndLint(reg, "libp2p_rcmgr_memory_pressure", "libp2p_rcmgr_process_memory")
	require.NoError(t, err)
	require.Empty(t, problems)
	page := httptest.NewRecorder()
	Handler(m).ServeHTTP(page, httptest.NewRequest("GET", "/?format=text", nil))
	require.Contains(t, page.Body.String(), "901 of 1000 of memory in use by the process, inbound connections and streams of strangers are refused\n")
	page = httptest.NewRecorder()
	Handler(m).ServeHTTP(page, httptest.NewRequest("GET", "/?format=html", nil))
	require.Contains(t, page.Body.String(), `<dt>process memory</dt><dd>901</dd>`)
	used.Store(0)
	m.pressure.look()
	refuses(false)
	before.Done()
	onTrial.Done()
}

func TestMemoryIsLookedAtUntilClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used meter
		var looks atomic.Int64
		p := used.pressure()
		p.Every = time.Second
		p.InUse = func() int64 { looks.Add(1); return used.Load() }
		used.Store(950)
		m, err := New(NewFixedLimiter(InfiniteLimits), WithMemoryPressure(p))
		require.NoError(t, err)
		_, err = m.OpenStream("p", network.DirInbound)
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded, "from the start")
		used.Store(0)
		time.Sleep(time.Second + time.Millisecond)
		s, err := m.OpenStream("p", network.DirInbound)
		require.NoError(t, err)
		s.Done()
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 4, looks.Load())
		require.NoError(t, m.Close())
		time.Sleep(time.Minute)
		require.EqualValues(t, 4, looks.Load())
	})
}

// A refusal for the sake of memory leaves no trace in the accounts, and its events
// add up.
func TestARefusalForMemoryLeavesNothing(t *testing.T) {
	var used meter
	used.Store(1000)
	a := newAuditor()
	m := newManager(t, unlimitedConf(), WithMemoryPressure(used.pressure()), WithTraceReporter(a))
	_, err := m.OpenConnection(network.DirInbound, true, mustMA(t, "/ip4/203.0.113.1/tcp/1"))
	require.Error(t, err)
	_, err = m.OpenStream(testPeers[0], network.DirInbound)
	require.Error(t, err)
	require.Equal(t, network.ScopeStat{}, m.Stat().System)
	require.Equal(t, network.ScopeStat{}, m.Stat().Transient)
	checkInvariants(t, m, false) // the peer that was made for it will go
	require.NoError(t, m.Close())
	require.ErrorContains(t, a.wrong, `Name:process`) // of which no event tells that it was made
}

func TestWhatIsNoShareOfMemoryIsAnError(t *testing.T) {
	for _, c := range []struct {
		p    MemoryPressureConfig
		want string
	}{
		{MemoryPressureConfig{Limit: -1}, "a Limit of -1 is less than 0"},
		{MemoryPressureConfig{Every: -1}, "an Every of -1ns is less than 0"},
		{MemoryPressureConfig{RefuseAbove: 1.1}, "RefuseAbove is 1.1, expected a share above 0, and at most 1"},
		{MemoryPressureConfig{RefuseAbove: -0.1, AdmitBelow: 0.1}, "RefuseAbove is -0.1, expected"},
		{MemoryPressureConfig{RefuseAbove: math.NaN(), AdmitBelow: 0.1}, "RefuseAbove is NaN, expected"},
		{MemoryPressureConfig{RefuseAbove: 0.5, AdmitBelow: 0.5}, "AdmitBelow is 0.5, expected a share above 0, and below RefuseAbove, which is 0.5"},
		{MemoryPressureConfig{AdmitBelow: math.NaN()}, "AdmitBelow is NaN"},
	} {
		_, err := New(nil, WithMemoryPressure(c.p))
		require.ErrorContains(t, err, "WithMemoryPressure: "+c.want)
	}
}

func TestTheZeroMemoryPressureIsForThisMachine(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithMemoryPressure(MemoryPressureConfig{}))
	s := m.Snapshot().Process
	require.Equal(t, ThisMachine().Memory, s.Limit)
	require.InDelta(t, 0.9, float64(s.RefuseAbove)/float64(s.Limit), 1e-6)
	require.InDelta(t, 0.8, float64(s.AdmitBelow)/float64(s.Limit), 1e-6)
	require.Positive(t, s.InUse)
	require.Less(t, s.InUse, s.Limit)
	require.Equal(t, 100*time.Millisecond, m.pressure.every)
	require.Zero(t, newManager(t, unlimitedConf()).Snapshot().Process)
}

// What the runtime says is its heap: memory that is held is in use, and garbage
// counts only where the runtime would let it grow too large.
func TestMemoryInUseCountsTheHeapWithoutGarbage(t *testing.T) {
	const held = 64 << 20
	read := runtimeMemory(math.MaxInt64)
	readAll := runtimeMemory(1) // whatever there is, is too much
	heapNow()                   // garbage of other tests must not go in between
	before := readAll()
	block := make([]byte, held)
	for i := range block {
		block[i] = 1
	}
	require.Greater(t, readAll()-before, int64(held/2))
	require.Positive(t, read())
	require.Equal(t, byte(1), block[held-1])

	for _, c := range []struct{ live, objects, goal, other, limit, want int64 }{
		{50, 80, 100, 10, 200, 60}, // the next collection comes in time
		{50, 80, 190, 10, 200, 60},
		{50, 80, 191, 10, 200, 90}, // it does not
		{50, 80, math.MaxInt64, 10, 200, 90},
	} {
		require.Equal(t, c.want, heapInUse(c.live, c.objects, c.goal, c.other, c.limit), c)
	}
}

// Where memory is only observed, strangers are admitted, and counted.
func TestObservedMemoryPressureRefusesNothing(t *testing.T) {
	var used meter
	used.Store(950)
	m := newManager(t, unlimitedConf(), WithMemoryPressure(used.pressure()), WithObserveOnly(KindProcess))
	m.pressure.look()
	c, err := m.OpenConnection(network.DirInbound, true, mustMA(t, "/ip4/203.0.113.1/tcp/1"))
	require.NoError(t, err)
	s, err := m.OpenStream(testPeers[0], network.DirInbound)
	require.NoError(t, err)
	require.Equal(t, map[Kind]Refusals{KindProcess: {ConnsInbound: 1, StreamsInbound: 1}}, m.Snapshot().WouldRefuse)
	require.NoError(t, m.Enforce(KindProcess))
	_, err = m.OpenStream(testPeers[0], network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	s.Done()
	c.Done()
	assertEmpty(t, m)
}

// memoryOf is the memory of a process that a test makes up, in KiB: what the program itself has, and
// the same part for each connection and stream of a host.
type memoryOf struct {
	base, each atomic.Int64
	host       atomic.Pointer[fakehost.Host]
	more       func() int64 // if it is not nil
}

func (u *memoryOf) inUse() int64 {
	n := u.base.Load()
	if u.more != nil {
		n += u.more()
	}
	if h := u.host.Load(); h != nil {
		for _, c := range h.Network().Conns() {
			n += u.each.Load() * int64(1+len(c.GetStreams()))
		}
	}
	return n
}

// pressure is for a process that may have 1000 KiB in use.
func (u *memoryOf) pressure() MemoryPressureConfig {
	return MemoryPressureConfig{Limit: 1000 << 10, InUse: func() int64 { return u.inUse() << 10 }}
}

// roomInMemory returns a manager that makes room in the memory of the process, and a host.
func roomInMemory(t *testing.T, u *memoryOf, c RoomConfig, opts ...Option) (*Manager, *fakehost.Host) {
	m, h := roomOn(t, unlimitedConf(), c, append(opts, WithMemoryPressure(u.pressure()))...)
	u.host.Store(h)
	return m, h
}

// connectWithStreams opens a connection with streams that have a protocol.
func connectWithStreams(t *testing.T, h *fakehost.Host, streams int, p string, n, subnet int) *fakehost.Conn {
	t.Helper()
	c := connectIn16(t, h, p, n, subnet, 0)
	for range streams {
		s, err := c.Open(network.DirInbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/a"))
	}
	return c
}

func TestRoomInTheMemoryOfTheProcessIsMadeBeforeStrangersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u memoryOf
		u.base.Store(100)
		u.each.Store(1)
		m, h := roomInMemory(t, &u, RoomConfig{})
		reg := registryOf(t, m)
		requireValue(t, 0, reg, "room_let_go_total", "group", "process", "conn")
		var kept []*fakehost.Conn
		for i := range 20 {
			kept = append(kept, connectWithStreams(t, h, 1, fmt.Sprint("guest", i), 1+i, 0))
		}
		friend := connectWithStreams(t, h, 30, "friend", 0, 0)
		h.CM.(*fakehost.ConnManager).Protect(friend.RemotePeer(), "")
		time.Sleep(time.Minute)
		for i := range 500 { // one network, four streams each
			connectWithStreams(t, h, 4, fmt.Sprint("crowd", i), 0, i%256)
			time.Sleep(100 * time.Millisecond)
			require.LessOrEqual(t, u.inUse(), int64(900))
		}
		p := m.Snapshot().Process
		require.Zero(t, p.Times, "it is above 85 % that connections go, not above 90 %")
		require.False(t, p.Refusing)
		require.GreaterOrEqual(t, u.inUse(), int64(800-5-5), "no more go than have to")
		for _, c := range append(kept, friend) {
			require.False(t, c.IsClosed(), c.RemotePeer())
		}
		s := m.Snapshot().Room
		require.Len(t, s.LetGo, 1)
		require.Equal(t, RoomCount{Scope: KindProcess, What: KindConn, Reason: "group", Count: s.LetGo[0].Count}, s.LetGo[0])
		require.Equal(t, "process", s.Last[0].Scope)
		require.Equal(t, "Memory", s.Last[0].Limit)
		require.Equal(t, "10.0.0.0/16", s.Last[0].Group)
		require.Equal(t, float64(s.LetGo[0].Count), seriesOf(t, reg, "room_let_go_total")["group process conn"])
		checkInvariants(t, m, false)
		m.Close()
	})
}

func TestStrangersAreAdmittedAgainAsSoonAsRoomInTheMemoryOfTheProcessIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u memoryOf
		u.each.Store(10)
		m, h := roomInMemory(t, &u, RoomConfig{})
		for i := range 95 {
			connectIn16(t, h, fmt.Sprint("crowd", i), 0, i, 0)
		}
		time.Sleep(time.Second)
		require.Equal(t, ProcessMemory{InUse: 790 << 10, Limit: 1000 << 10, RefuseAbove: 900 << 10, AdmitBelow: 800 << 10, Times: 1}, m.Snapshot().Process)
		require.Equal(t, 79, h.Len())
		connectIn16(t, h, "newcomer", 1, 0, 0)
		m.Close()
	})
}

// Where the program itself has a part of the memory, several choices are needed. No reading is
// waited for between them.
func TestConnectionsGoUntilStrangersAreAdmittedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u memoryOf
		u.base.Store(475)
		u.each.Store(5)
		p := u.pressure()
		p.Every = 10 * time.Second
		m, h := roomOn(t, unlimitedConf(), RoomConfig{}, WithMemoryPressure(p))
		u.host.Store(h)
		for i := range 95 {
			connectIn16(t, h, fmt.Sprint("crowd", i), 0, i, 0)
		}
		time.Sleep(11 * time.Second)
		require.Equal(t, ProcessMemory{InUse: 795 << 10, Limit: 1000 << 10, RefuseAbove: 900 << 10, AdmitBelow: 800 << 10, Times: 1}, m.Snapshot().Process)
		m.Close()
	})
}

// What a connection held is garbage when it has gone, and counts as in use until it is collected.
func TestMemoryIsCollectedBeforeItIsKnownWhatBecameFree(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	collections := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	synctest.Test(t, func(t *testing.T) {
		logged := captureLog(t)
		var u memoryOf
		u.each.Store(10)
		var mu sync.Mutex
		var garbage int64
		var since uint64 // the collections before it was held
		u.more = func() int64 {
			mu.Lock()
			defer mu.Unlock()
			if collections() != since {
				return 0
			}
			return garbage
		}
		m, h := roomInMemory(t, &u, RoomConfig{})
		h.Letting = func(c *fakehost.Conn) error {
			mu.Lock()
			defer mu.Unlock()
			if now := collections(); now != since {
				since, garbage = now, 0
			}
			garbage += 10
			return c.Close()
		}
		for i := range 95 {
			connectIn16(t, h, fmt.Sprint("crowd", i), 0, i, 0)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Less(t, u.inUse(), int64(800))
		require.NotContains(t, logged.String(), "freed too little")
		m.Close()
	})
}

// Whatever holds the memory, it is not the connections.
func TestWhereLettingGoFreesNoMemoryItIsTriedAgainLaterAndLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logged := captureLog(t)
		var u memoryOf
		u.base.Store(860)
		m, h := roomInMemory(t, &u, RoomConfig{})
		for i := range 200 {
			connectIn16(t, h, fmt.Sprint("crowd", i), 0, i, 0)
		}
		gone := func(d time.Duration) int {
			before := letGo(m)
			time.Sleep(d)
			synctest.Wait()
			return int(letGo(m) - before)
		}
		batch := 200 * 61 / 860
		require.InDelta(t, 2*batch, gone(500*time.Millisecond), 2, "twice as many as would hold what is too much")
		require.Equal(t, 1, strings.Count(logged.String(), "has freed too little of the memory"), logged)
		require.Equal(t, 1, strings.Count(logged.String(), "for=1s"), logged)
		require.Zero(t, gone(400*time.Millisecond))
		require.Positive(t, gone(400*time.Millisecond))
		require.Zero(t, gone(1800*time.Millisecond), "two seconds")
		require.Positive(t, gone(400*time.Millisecond))
		gone(10 * time.Minute)
		require.Contains(t, logged.String(), "for=1m0s")
		require.NotContains(t, logged.String(), "for=1m4s")
		require.Less(t, gone(10*time.Minute), 11*batch)
		require.Positive(t, h.Len(), "most of them are still here")

		// Once it is they that hold the memory, all is as at the beginning.
		u.base.Store(0)
		u.each.Store(950 / int64(h.Len()))
		time.Sleep(2 * time.Minute)
		require.Less(t, u.inUse(), int64(800))
		u.base.Store(860)
		u.each.Store(0)
		gone(time.Second)
		require.Equal(t, 2, strings.Count(logged.String(), "for=1s"), logged)
		require.NotContains(t, logged.String(), "no room could be made")
		m.Close()
	})
}

func TestOnlyObservedMemoryOfTheProcessLetsNothingGo(t *testing.T) {
	for name, c := range map[string]struct {
		room RoomConfig
		opts []Option
	}{
		"the kind": {opts: []Option{WithObserveOnly(KindProcess)}},
		"the room": {room: RoomConfig{ObserveOnly: true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var u memoryOf
				u.each.Store(10)
				m, h := roomInMemory(t, &u, c.room, c.opts...)
				for i := range 90 {
					connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
				}
				time.Sleep(time.Minute)
				s := m.Snapshot().Room
				require.Equal(t, []RoomCount{{Scope: KindProcess, What: KindConn, Reason: "group", Count: 11}}, s.WouldLetGo,
					"down to 790 KiB, and each once")
				require.Empty(t, s.LetGo)
				require.Equal(t, 90, h.Len())
				m.Close()
			})
		})
	}
}

func TestExplainNamesWhatWouldGoForTheMemoryOfTheProcess(t *testing.T) {
	var u memoryOf
	u.each.Store(10)
	p := u.pressure()
	p.Every = time.Hour // only the test looks
	m, h := roomOn(t, unlimitedConf(), RoomConfig{ByHand: true}, WithMemoryPressure(p))
	u.host.Store(h)
	for i := range 85 {
		connectIn16(t, h, fmt.Sprint(i), i%2, i, 0)
	}
	explain := func() *Explanation {
		m.pressure.look()
		e, err := m.Explain(ExplainRequest{Kind: KindConn, Direction: network.DirInbound, Endpoint: in16(t, 9, 0, 0), UseFD: true})
		require.NoError(t, err)
		return e
	}
	require.Empty(t, explain().WouldLetGo)
	connectIn16(t, h, "one more", 0, 99, 0)
	e := explain()
	require.True(t, e.Admitted)
	require.Len(t, e.WouldLetGo, 3)
	require.Equal(t, "10.0.0.0/16", e.WouldLetGo[0].Group)
	u.base.Store(100)
	require.False(t, explain().Admitted)
	require.NotEmpty(t, explain().WouldLetGo)
}

// A program's function that reads the memory may hang, or take long.
func TestRoomInOtherLimitsIsMadeWhileTheMemoryIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u memoryOf
		read := make(chan int64)
		m, h := roomOfConns(t, 64, RoomConfig{}, WithMemoryPressure(MemoryPressureConfig{Limit: 1000, InUse: func() int64 {
			if u.host.Load() == nil {
				return 950
			}
			return <-read
		}}))
		u.host.Store(h)
		time.Sleep(time.Second)
		m.pressure.refusing.Store(false) // so that the crowd gets in
		for i := range 64 {
			connectIn16(t, h, fmt.Sprint(i), 0, i, 0)
			time.Sleep(time.Millisecond)
		}
		require.Less(t, h.Len(), 64)
		close(read)
		m.Close()
	})
}

// Newcomers hide a part of what becomes free.
func TestASteadyCrowdIsNotRefusedForTheMemoryOfTheProcess(t *testing.T) {
	for _, every := range []time.Duration{20 * time.Millisecond, 10 * time.Millisecond, 5 * time.Millisecond} {
		t.Run(every.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logged := captureLog(t)
				var u memoryOf
				u.each.Store(1)
				m, h := roomInMemory(t, &u, RoomConfig{})
				h.Letting = func(c *fakehost.Conn) error {
					time.Sleep(10 * time.Millisecond)
					return c.Close()
				}
				for i := range 800 + int(10*time.Second/every) {
					connectIn16(t, h, fmt.Sprint("crowd", i), 0, i%256, 0)
					if i >= 800 {
						time.Sleep(every)
					}
				}
				synctest.Wait()
				require.NotContains(t, logged.String(), "freed too little")
				require.NotZero(t, letGo(m))
				m.Close()
			})
		})
	}
}

func TestRoomByHandIsMadeByTheNextCallsWhereClosingTakesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u memoryOf
		u.each.Store(10)
		m, h := roomInMemory(t, &u, RoomConfig{ByHand: true})
		h.Letting = func(c *fakehost.Conn) error {
			time.AfterFunc(10*time.Millisecond, func() { c.Close() })
			return nil
		}
		for round := range 2 {
			for h.Len() < 88 {
				connectIn16(t, h, fmt.Sprint(round, h.Len()), 0, h.Len(), 0)
			}
			for range 5 {
				time.Sleep(time.Second)
				m.MakeRoom()
			}
			require.Equal(t, 79, h.Len())
		}
		m.Close()
	})
}

func TestGarbageIsCollectedAgainOnlyAfterFourTimesWhatThatTook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u memoryOf
		p := u.pressure()
		p.Every = time.Hour
		now := time.Now()
		m, _ := roomOn(t, unlimitedConf(), RoomConfig{ByHand: true, Now: func() time.Time { return now }}, WithMemoryPressure(p))
		f := m.pressure.freeing
		u.base.Store(950)
		f.next.Store(now.Add(time.Second).UnixNano())
		f.went.Store(1)
		require.Zero(t, m.lacksOfProcess())
		synctest.Wait()
		require.NotZero(t, f.went.Load())
		now = now.Add(time.Second)
		require.Zero(t, m.lacksOfProcess())
		synctest.Wait()
		require.Zero(t, f.went.Load())
		require.False(t, f.gone.Load())
		require.EqualValues(t, 150<<10+1, m.lacksOfProcess())
		m.Close()
	})
}

func TestACollectionPutsOffTheNext(t *testing.T) {
	now := time.Now()
	f := &freeing{now: func() time.Time { return now }}
	f.collect()
	require.Greater(t, f.next.Load(), now.UnixNano())
}
