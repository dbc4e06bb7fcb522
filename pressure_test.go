package rcmgr

import (
	"math"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
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
