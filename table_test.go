package rcmgr

import (
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

// trimmed is a table without the space at the ends of its lines.
func trimmed(t *testing.T, write func(*strings.Builder) error) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, write(&b))
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func TestTableOfLimits(t *testing.T) {
	s := exampleSnapshot()
	s.Scopes = s.Scopes[:1]
	require.Equal(t, `Scope   Limit Name       Limit Value  Limit Usage Amount  Limit Usage Percent
system  Memory           1.0 GiB      1.0 MiB             0.1%
system  StreamsInbound   unlimited    3                   n/a
system  StreamsOutbound  unlimited    0                   n/a
system  Streams          unlimited    3                   n/a
system  ConnsInbound     64           60                  93.8%
system  ConnsOutbound    unlimited    4                   n/a
system  Conns            128          64                  50.0%
system  FD               0            0                   n/a
`, trimmed(t, func(b *strings.Builder) error { return s.LimitUses().WriteTable(b) }))
}

func TestTableOfLimitsThatAreNear(t *testing.T) {
	s := exampleSnapshot()
	peerName := "peer:" + testPeer.String()
	// Above a limit of 0 is fuller than anything.
	require.Equal(t, `Scope        Limit Name    Limit Value  Limit Usage Amount  Limit Usage Percent
`+peerName+`  FD            0            1                   n/a
`+peerName+`  ConnsInbound  64           64                  100.0%
system       ConnsInbound  64           60                  93.8%
`, trimmed(t, func(b *strings.Builder) error { return s.LimitsNear(90).WriteTable(b) }))
	require.Len(t, s.LimitsNear(100), 2)
	require.Len(t, s.LimitsNear(93.75), 3)
	require.Len(t, s.LimitsNear(93.76), 2)
	require.Empty(t, new(Snapshot).LimitsNear(0))
	for _, u := range s.LimitsNear(0) {
		_, ok := u.Percent()
		require.True(t, ok || u.Use > 0 && u.Limit == 0, "%v", u)
	}
}

func TestTableOfHolders(t *testing.T) {
	s := exampleSnapshot()
	peerName := "peer:" + testPeer.String()
	pad := strings.Repeat(" ", len(`"protocol:/evil\n\x1b[2J/1"`)-len(peerName))
	require.Equal(t, `Scope                        Conns In  Conns Out  FD  Streams In  Streams Out  Memory  Refused
"protocol:/evil\n\x1b[2J/1"  0         0          0   3           0            0       0
`+peerName+pad+`  64        0          1   0           0            0       0
`, trimmed(t, func(b *strings.Builder) error { return s.WriteHolders(b) }))
}

// Tables and sentences have the same form of memory as the log; JSON has bytes.
func TestMemoryHasItsUnitInEveryTable(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = 3 << 20 }))
	before := m.Snapshot()
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, s.ReserveMemory(2<<20, 255))
	after := m.Snapshot()
	diff := after.Since(&before)
	answer, err := m.Explain(ExplainRequest{Kind: KindPeer, Peer: testPeer, Memory: 2 << 20, Priority: 255})
	require.NoError(t, err)
	require.Contains(t, answer.String(), "Memory is at 2.0 MiB of 3.0 MiB, and 2.0 MiB more would exceed 3.0 MiB")
	var text strings.Builder
	for _, write := range []func(io.Writer) error{
		after.LimitUses().WriteTable, after.WriteHolders, after.writeMemberPeaks, diff.WriteTable, answer.WriteTable,
	} {
		text.Reset()
		require.NoError(t, write(&text))
		require.Contains(t, text.String(), "2.0 MiB")
		require.NotContains(t, text.String(), "2097152")
	}
	s.ReleaseMemory(1 << 20)
	last := m.Snapshot()
	diff = last.Since(&after)
	text.Reset()
	require.NoError(t, diff.WriteTable(&text))
	require.Contains(t, text.String(), "-1.0 MiB")

	full := LimitCheck{Kind: KindProcess, Name: "ConnsInbound"}
	require.Equal(t, "-1.0 MiB", full.text(-1<<20), "the process is short of bytes, whatever is asked for")
}

func TestNamesOfStrangersCannotBreakATable(t *testing.T) {
	for name, want := range map[string]string{
		"/ipfs/ping/1.0.0": "/ipfs/ping/1.0.0",
		"/größe":           "/größe",
		"a\tb":             `"a\tb"`,
		"a\nb":             `"a\nb"`,
		"\x1b[31m":         `"\x1b[31m"`,
		"\xff":             `"\xff"`,
		"a\u202eb":         `"a\u202eb"`,
	} {
		require.Equal(t, want, printable(name))
	}
}

type brokenWriter struct{}

var errBroken = errors.New("broken pipe")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func TestATableThatCannotBeWrittenIsAnError(t *testing.T) {
	s := exampleSnapshot()
	require.ErrorIs(t, s.LimitUses().WriteTable(brokenWriter{}), errBroken)
	require.ErrorIs(t, s.WriteHolders(brokenWriter{}), errBroken)
	c := s.Since(new(Snapshot))
	require.ErrorIs(t, c.WriteTable(brokenWriter{}), errBroken)
}

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		limit, use int64
		percent    float64
		ok         bool
	}{
		{100, 50, 50, true}, {100, 150, 150, true}, {1, 0, 0, true},
		{0, 0, 0, false}, {0, 5, 0, false}, {math.MaxInt64, 5, 0, false},
		{math.MaxInt64 - 1, math.MaxInt64 - 1, 100, true},
	} {
		u := LimitUse{Limit: c.limit, Use: c.use}
		percent, ok := u.Percent()
		require.Equal(t, c.ok, ok, "%v", c)
		require.InDelta(t, c.percent, percent, 1e-9, "%v", c)
	}
}

func TestChangesBetweenSnapshots(t *testing.T) {
	before, after := exampleSnapshot(), exampleSnapshot()
	peerName := "peer:" + testPeer.String()
	require.Empty(t, after.Since(&before).Limits)
	require.Empty(t, after.Since(&before).Refusals)

	after.Scopes[0].Use.NumConnsInbound = 64
	after.Scopes[0].Refusals.ConnsInbound = 12
	after.Scopes[0].Limit.FD = 5
	after.Scopes[1].Refusals.StreamsInbound = 100 // collected and made anew: fewer than these are all new
	before.Scopes[1].Refusals.StreamsInbound = 200
	after.Scopes = after.Scopes[:2] // the peer has gone
	after.Scopes = append(after.Scopes, ScopeState{Name: "peer:new", Kind: KindPeer, Limit: unlimitedBase,
		Use: network.ScopeStat{NumConnsInbound: 1}})
	after.Refusals = map[Kind]Refusals{KindSystem: {ConnsInbound: 12, FD: 2}, KindRate: {ConnsInbound: 10}}
	after.CallerBugs = 3

	c := after.Since(&before)
	require.Equal(t, map[Kind]Refusals{KindSystem: {ConnsInbound: 7}, KindRate: {ConnsInbound: 1}}, c.Refusals)
	require.EqualValues(t, 3, c.CallerBugs)
	require.Equal(t, before.Taken, c.From)
	require.Equal(t, after.Taken, c.To)
	pad := strings.Repeat(" ", len(`"protocol:/evil\n\x1b[2J/1"`)-len(peerName))
	require.Equal(t, `Scope                        Limit Name      Limit Value  Before  Now  Change  Refused
"protocol:/evil\n\x1b[2J/1"  StreamsInbound  unlimited    3       3    +0      100
system                       ConnsInbound    64           60      64   +4      7
system                       Conns           128          64      68   +4      0
peer:new                     Conns           unlimited    0       1    +1      0
peer:new                     ConnsInbound    unlimited    0       1    +1      0
system                       FD              0 -> 5       0       0    +0      0
`+peerName+pad+`  Conns           128          64      0    -64     0
`+peerName+pad+`  ConnsInbound    64           64      0    -64     0
`+peerName+pad+`  FD              0            1       0    -1      0
rate                         ConnsInbound    -            -       -    -       1
`, trimmed(t, func(b *strings.Builder) error { return c.WriteTable(b) }))
}
