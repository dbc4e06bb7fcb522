package main

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

func TestEveryFaultFailsTheShow(t *testing.T) {
	var served [numDeeds]tally
	served[deedPing].took = make([]time.Duration, 100)
	well := outcome{by: contenders[0], samples: 900, friend: served}
	for name, c := range map[string]struct {
		change func(*outcome)
		code   int
		says   string
	}{
		"all is well":            {func(*outcome) {}, 0, "ok    limits exceeded: none (900 looks)"},
		"a passed limit":         {func(o *outcome) { o.passed = []string{"system conns in 65 of 64"} }, 1, "FAIL  limits exceeded: system conns in 65 of 64 (900 looks)"},
		"a refused friend":       {func(o *outcome) { o.friendRefusals = []string{"open connection: full"} }, 1, "FAIL  friend refused by our manager: open connection: full"},
		"a leftover":             {func(o *outcome) { o.held = []string{"system memory 7 B"} }, 1, "FAIL  held when all hosts are closed: system memory 7 B"},
		"a friend never served":  {func(o *outcome) { o.friend = [numDeeds]tally{} }, 1, "FAIL  friend refused by our manager: never served at all"},
		"limits never looked at": {func(o *outcome) { o.samples = 0 }, 1, "FAIL  limits exceeded: never looked (0 looks)"},
		"many faults":            {func(o *outcome) { o.held = []string{"a", "b", "c", "d", "e"} }, 1, "FAIL  held when all hosts are closed: a; b; c; and 2 more"},
		"a fault of another":     {func(o *outcome) { o.by, o.held = contenders[1], []string{"system memory 7 B"} }, 0, "      held when all hosts are closed: 1"},
		"a lowered limit":        {func(o *outcome) { o.rows = []*row{{scope: "system", limit: 20, kept: 52}} }, 0, "ok    limits exceeded: none (900 looks; limits lowered below what was held: 1)"},
		"a friend hard to tell":  {func(o *outcome) { o.friendUntracked = true }, 0, "ok    friend refused by our manager: never (but for connections refused before it says who it is)"},
	} {
		t.Run(name, func(t *testing.T) {
			o := well
			c.change(&o)
			require.Equal(t, c.code, exitCode([]outcome{o}))
			require.Contains(t, o.verdicts(), c.says)
			require.Len(t, o.verdicts(), 3)
		})
	}
}

// unlimitedBut returns a limit that is unlimited except for what set changes.
func unlimitedBut(set func(*rcmgr.BaseLimit)) rcmgr.BaseLimit {
	l := rcmgr.BaseLimit{
		Streams: math.MaxInt, StreamsInbound: math.MaxInt, StreamsOutbound: math.MaxInt,
		Conns: math.MaxInt, ConnsInbound: math.MaxInt, ConnsOutbound: math.MaxInt,
		FD: math.MaxInt, Memory: math.MaxInt64,
	}
	set(&l)
	return l
}

func TestEveryResourceIsCheckedAgainstItsOwnLimit(t *testing.T) {
	use := network.ScopeStat{NumConnsInbound: 1, NumConnsOutbound: 2, NumFD: 4, NumStreamsInbound: 5, NumStreamsOutbound: 6, Memory: 12}
	for name, c := range map[string]struct {
		set func(l *rcmgr.BaseLimit, to int)
		use int
	}{
		"conns in":    {func(l *rcmgr.BaseLimit, to int) { l.ConnsInbound = to }, 1},
		"conns out":   {func(l *rcmgr.BaseLimit, to int) { l.ConnsOutbound = to }, 2},
		"conns":       {func(l *rcmgr.BaseLimit, to int) { l.Conns = to }, 3},
		"files":       {func(l *rcmgr.BaseLimit, to int) { l.FD = to }, 4},
		"streams in":  {func(l *rcmgr.BaseLimit, to int) { l.StreamsInbound = to }, 5},
		"streams out": {func(l *rcmgr.BaseLimit, to int) { l.StreamsOutbound = to }, 6},
		"streams":     {func(l *rcmgr.BaseLimit, to int) { l.Streams = to }, 11},
		"memory":      {func(l *rcmgr.BaseLimit, to int) { l.Memory = int64(to) }, 12},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatch()
			look := func(limit int) {
				w.look(rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{
					{Name: "system", Use: use, Limit: unlimitedBut(func(l *rcmgr.BaseLimit) { c.set(l, limit) })}}})
			}
			look(c.use)
			require.Empty(t, w.passed)
			require.Len(t, w.order, 1, "what is unlimited has no row")
			require.Equal(t, name, resources[w.order[0].resource].name)
			look(c.use - 1)
			require.Empty(t, w.passed, "what is held when a limit is lowered stays")
			w = newWatch()
			look(c.use - 1)
			look(c.use - 1)
			require.Len(t, w.passed, 1, "told once")
		})
	}
}

func TestASubnetIsCheckedAgainstItsLimit(t *testing.T) {
	w := newWatch()
	look := func(conns int64) {
		w.look(rcmgr.Snapshot{Gates: rcmgr.GateState{Fullest: []rcmgr.SubnetState{
			{Prefix: netip.MustParsePrefix("127.2.0.0/16"), Conns: conns, Limit: 8}}}})
	}
	look(8)
	require.Empty(t, w.passed)
	look(9)
	require.Equal(t, []string{"subnet:127.2.0.0/16 conns in 9 of 8"}, w.passed)
}

func TestARowKeepsTheHighestUseAndTheWorstPeer(t *testing.T) {
	peer := func(name string, conns, limit int) rcmgr.ScopeState {
		return rcmgr.ScopeState{Name: name, Kind: rcmgr.KindPeer, Use: network.ScopeStat{NumConnsInbound: conns},
			Limit: unlimitedBut(func(l *rcmgr.BaseLimit) { l.ConnsInbound = limit })}
	}
	w := newWatch()
	w.look(rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{peer("peer:a", 5, 100), peer("peer:b", 3, 4)}})
	w.look(rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{peer("peer:a", 2, 100)}})
	w.look(rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{peer("peer:a", 1, 100), peer("peer:b", 2, 100)}})
	require.Len(t, w.order, 2, "one for each limit")
	require.Equal(t, []int64{2, 5, 100}, []int64{w.order[0].now, w.order[0].highest, w.order[0].limit})
	require.Equal(t, []int64{0, 3, 4}, []int64{w.order[1].now, w.order[1].highest, w.order[1].limit})
	w.look(rcmgr.Snapshot{})
	require.Zero(t, w.order[0].now, "a scope that has gone holds nothing")
}

// The tables and the verdict agree about a limit that was lowered: it was not exceeded.
func TestUseFromBeforeALimitWasLoweredDoesNotCountAsPassingIt(t *testing.T) {
	w := newWatch()
	for _, step := range []struct{ use, limit int }{{64, 64}, {52, 20}, {30, 20}} {
		w.lookNow(&heldUnder{use: step.use, limit: step.limit})
	}
	o := outcome{by: contenders[0], samples: w.samples, rows: w.order, passed: w.passed}
	table := func() string {
		var out bytes.Buffer
		o.rows = w.order
		o.report(&out)
		text, _, _ := strings.Cut(out.String(), "\nrefused")
		return text
	}
	head := "\nlimits of the victim\n" +
		"  scope   resource  now  highest  limit   used\n" +
		"  system  conns in    –       64     64  100 %\n"
	kept := "\nheld already when the limit was lowered, which nobody has to give back\n" +
		"  scope   resource  held  limit\n" +
		"  system  conns in    52     20\n"
	const gone = "  –: the limit was not in force any more at the end\n"
	require.Equal(t, head+"          conns in   30        –     20      –\n"+gone+kept, table(), "there was no room under the limit yet")
	require.Equal(t, "30 connections", w.line())
	w.lookNow(&heldUnder{use: 18, limit: 20})
	require.Equal(t, head+"          conns in   18       18     20   90 %\n"+gone+kept, table())
	require.Contains(t, o.verdicts(), "ok    limits exceeded: none (3 looks; limits lowered below what was held: 1)")

	w.lookNow(&heldUnder{use: 21, limit: 20})
	require.Equal(t, []string{"system conns in 21 of 20"}, w.passed)
	require.Equal(t, head+"          conns in   21       21     20  105 %\n"+gone+kept, table(), "this was not held before")
	w.lookNow(&heldUnder{use: 60, limit: 100})
	require.Contains(t, table(), "          conns in    –       21     20  105 %\n          conns in   60       60    100   60 %\n")
	require.Equal(t, "60 connections", w.line())

	var out bytes.Buffer
	report(&out, []outcome{o, {by: contenders[1]}})
	require.Contains(t, out.String(), kept, "beside another, too")
}

func TestHeldResourcesAreListed(t *testing.T) {
	require.Empty(t, heldIn(rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{{Name: "system"}}}))
	held := heldIn(rcmgr.Snapshot{Scopes: []rcmgr.ScopeState{
		{Name: "system", Use: network.ScopeStat{Memory: 2 * kib}},
		{Name: "peer:a", Use: network.ScopeStat{NumFD: 1}},
	}})
	require.Equal(t, []string{"system memory 2.0 KiB", "peer:a files 1"}, held)
	held = heldIn(rcmgr.Snapshot{Gates: rcmgr.GateState{Fullest: []rcmgr.SubnetState{
		{Prefix: netip.MustParsePrefix("127.2.0.0/16"), Conns: 3, Limit: 8}}}})
	require.Equal(t, []string{"subnet:127.2.0.0/16 conns in 3"}, held)
}

func TestTheTablesReadWell(t *testing.T) {
	rows := []*row{
		{scope: "peer (worst of all)", kind: rcmgr.KindPeer, resource: 0, now: 1, highest: 4, limit: 4},
		{scope: "system", kind: rcmgr.KindSystem, resource: memoryResource, now: 3 * mib / 2, highest: 2 * mib, limit: 8 * mib},
		{scope: "system", kind: rcmgr.KindSystem, resource: 0, now: 30, highest: 64, limit: 64},
		{scope: "protocol:/x", kind: rcmgr.KindProtocol, resource: 4, highest: 0, limit: 0},
	}
	refusals := map[rcmgr.Kind]rcmgr.Refusals{
		rcmgr.KindSystem:   {ConnsInbound: 1234},
		rcmgr.KindProtocol: {StreamsInbound: 5},
		rcmgr.KindPeer:     {},
	}
	require.Equal(t, ""+
		"  scope                resource        now  highest    limit   used  refused\n"+
		"  system               conns in         30       64       64  100 %     1234\n"+
		"                       memory      1.5 MiB  2.0 MiB  8.0 MiB   25 %        0\n"+
		"  protocol:/x          streams in        0        0        0    0 %\n"+
		"  peer (worst of all)  conns in          1        4        4  100 %        0\n",
		limitTable(rows, refusals))
	require.Equal(t, ""+
		"  kind      conns in  streams in\n"+
		"  system        1234           0\n"+
		"  protocol         0           5\n",
		refusalTable(refusals))
	require.Equal(t, ""+
		"  scope        resource    now  highest  limit  used\n"+
		"  protocol:/x  streams in    0        0      0   0 %\n",
		limitTable(rows[3:], nil), "refusals are not told")

	limits := map[string]string{"subnet:127.2.0.0/16": "8 at a time", "rate:127.3.0.0/16": "16 at once, then 4 a second"}
	require.Equal(t, ""+
		"  gate                 lets in                      refused\n"+
		"  rate:127.3.0.0/16    16 at once, then 4 a second        0\n"+
		"  subnet:127.2.0.0/16  8 at a time                       12\n",
		gateTable(map[string]uint64{"subnet:127.2.0.0/16": 12}, limits))
	require.Equal(t, ""+
		"  gate    lets in  refused\n"+
		"  subnet                12\n",
		gateTable(map[string]uint64{"subnet": 12}, nil), "it is not told which")

	var deeds [numDeeds]tally
	deeds[deedPing] = tally{took: []time.Duration{3 * time.Millisecond, time.Millisecond, 2 * time.Millisecond}, failed: 1, last: errors.New("dial:\n  * reset")}
	require.Equal(t, ""+
		"  does     times   served     p50     p99  longest\n"+
		"  connect      0\n"+
		"  ping         4  75.00 %  2.0 ms  3.0 ms   3.0 ms\n"+
		"  fetch        0\n"+
		"  last ping that failed: dial: * reset\n",
		friendTable(deeds))
}

func TestTheTableOfLimitsFitsAScreen(t *testing.T) {
	rows := []*row{{scope: "protocol:/flood/fetch/1.0.0", kind: rcmgr.KindProtocol, resource: memoryResource,
		now: 99 * mib, highest: 99 * mib, limit: 99 * mib}, {scope: "system", kind: rcmgr.KindSystem, resource: 4, limit: 64}}
	for line := range strings.Lines(limitTable(rows, map[rcmgr.Kind]rcmgr.Refusals{rcmgr.KindSystem: {}})) {
		require.LessOrEqual(t, len([]rune(strings.TrimSuffix(line, "\n"))), screenColumns, line)
	}
}

func TestTheComparisonReadsWell(t *testing.T) {
	ours := outcome{
		by: contenders[0],
		rows: []*row{
			{scope: "system", kind: rcmgr.KindSystem, resource: memoryResource, highest: 2 * mib, limit: 8 * mib},
			{scope: "allowlistedSystem", kind: rcmgr.KindAllowlistedSystem, resource: 0, highest: 1, limit: 16},
			{scope: "system", kind: rcmgr.KindSystem, resource: 0, highest: 64, limit: 64},
		},
		cpu: 1234 * time.Millisecond,
	}
	ours.friend[deedPing] = tally{took: []time.Duration{time.Millisecond, 2 * time.Millisecond}}
	ours.calls.granted[callConn], ours.calls.granted[callPeer] = 12, 11
	ours.calls.refused[callConn] = 5
	ours.gates = map[string]uint64{"subnet:10.0.0.0/8": 2, "subnet:11.0.0.0/8": 1, "rate:10.0.0.0/8": 1}
	theirs := outcome{
		by: contenders[1],
		rows: []*row{
			{scope: "system", kind: rcmgr.KindSystem, resource: 0, highest: 63, limit: 64},
			{scope: "peer (worst of all)", kind: rcmgr.KindPeer, resource: 0, highest: 4, limit: 4},
		},
		friendRefusals: []string{"reserve memory 1: full"},
		held:           []string{"system memory 1 B"}, forgotten: 2,
	}
	theirs.friend[deedPing] = tally{took: []time.Duration{3 * time.Millisecond}, failed: 1}
	theirs.calls.refused[callMemory] = 7
	theirs.gates = map[string]uint64{"rate": 6}
	require.Equal(t, ""+
		"                                                            ours  upstream\n"+
		"  friend's connect  served                                     –         –\n"+
		"                    p50                                        –         –\n"+
		"                    p99                                        –         –\n"+
		"  friend's ping     served                              100.00 %   50.00 %\n"+
		"                    p50                                   1.0 ms    3.0 ms\n"+
		"                    p99                                   2.0 ms    3.0 ms\n"+
		"  friend's fetch    served                                     –         –\n"+
		"                    p50                                        –         –\n"+
		"                    p99                                        –         –\n"+
		"  connections       opened                                    12         0\n"+
		"                    established                               11         0\n"+
		"  refused           open connection                            5         0\n"+
		"                    reserve memory                             0         7\n"+
		"                    of these, by subnet                        3         0\n"+
		"                    of these, by rate                          1         6\n"+
		"                    of these, to the friend                    0         1\n"+
		"  highest use       system conns in, of 64                    64        63\n"+
		"                    system memory, of 8.0 MiB            2.0 MiB         –\n"+
		"                    allowlistedSystem conns in, of 16          1         –\n"+
		"                    peer (worst of all) conns in, of 4         –         4\n"+
		"  CPU time          of victim, attackers and friend        1.2 s         –\n"+
		"  left at the end   counts above zero                          0         1\n"+
		"                    connections the host forgot                0         2\n",
		comparison([]outcome{ours, theirs}))
}

func TestAQuantileIsOneOfTheValues(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		require.Equal(t, want, quantile(hundred, q))
	}
	require.Equal(t, time.Duration(7), quantile([]time.Duration{7}, 0.5))
}

func TestALineOverwritesTheProgressBar(t *testing.T) {
	for terminal, want := range map[bool]string{false: "news\n", true: "\r\x1b[Knews\n"} {
		var out bytes.Buffer
		(&screen{to: &out, terminal: terminal}).tell("news")
		require.Equal(t, want, out.String())
	}
}

func TestProgressSaysHowFar(t *testing.T) {
	require.Equal(t, " 3.0 s of 6s · fine\n", plainLine(3*time.Second, 6*time.Second, "fine"))
	require.Equal(t, "\r\x1b[K[##########----------] 3.0 s · fine", bar(3*time.Second, 6*time.Second, "fine"))
	require.Equal(t, "\r\x1b[K[####################] 7.0 s · fine", bar(7*time.Second, 6*time.Second, "fine"))
}
