package rcmgr

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

func costing(conn, stream Cost, set func(*perScope[BaseLimit])) ConcreteLimitConfig {
	c := limitedConf(set)
	c.Costs = &Costs{Conn: conn, Stream: stream}
	return ConcreteLimitConfig{limits: c}
}

func TestConnectionsAndStreamsCostWhatTheConfigurationSays(t *testing.T) {
	const connCost, streamCost = 64 << 10, 4 << 10
	m := newFrom(t, costing(connCost, streamCost, func(c *perScope[BaseLimit]) {
		c.System.Memory, c.Transient.Memory = 2*connCost+streamCost, 2*connCost
	}))
	memory := func(s network.ResourceScope) int { return int(s.Stat().Memory) }
	system, transient := viewSystem(t, m), viewTransient(t, m)

	c, err := m.OpenConnection(network.DirInbound, true, nil)
	require.NoError(t, err)
	require.Equal(t, connCost, memory(c))
	require.Equal(t, []int{connCost, connCost}, []int{memory(system), memory(transient)})
	checkInvariants(t, m, false)

	require.NoError(t, c.SetPeer(testPeer))
	require.Equal(t, []int{connCost, 0, connCost}, []int{memory(system), memory(transient), memory(viewPeer(t, m, testPeer))})
	checkInvariants(t, m, false)

	s, err := m.OpenStream(testPeer, network.DirInbound)
	require.NoError(t, err)
	require.Equal(t, []int{connCost + streamCost, streamCost, connCost + streamCost},
		[]int{memory(system), memory(transient), memory(viewPeer(t, m, testPeer))})
	require.NoError(t, s.SetProtocol("/a"))
	require.NoError(t, s.SetService("a"))
	require.Equal(t, streamCost, memory(viewProtocol(t, m, "/a")))
	checkInvariants(t, m, false)

	// The cost is not reserved, so it cannot be released.
	require.NoError(t, s.ReserveMemory(100, 255))
	s.ReleaseMemory(100 + streamCost)
	require.Equal(t, streamCost, memory(s))
	require.EqualValues(t, 1, m.Snapshot().CallerBugs)

	d, err := m.OpenConnection(network.DirOutbound, false, nil)
	require.NoError(t, err)
	_, err = m.OpenConnection(network.DirOutbound, false, nil)
	require.ErrorContains(t, err, "system: cannot reserve memory", "there is room for a connection, but not for what it costs")
	var refusal *LimitError
	require.ErrorAs(t, err, &refusal)
	require.EqualValues(t, connCost, refusal.Attempted())
	_, err = m.OpenStream(testPeer, network.DirOutbound)
	require.ErrorContains(t, err, "cannot reserve memory")

	s.Done()
	c.Done()
	d.Done()
	assertEmpty(t, m)
}

func TestACostIsFixedWhenTheConnectionOrStreamOpens(t *testing.T) {
	m := newFrom(t, costing(100, 0, func(*perScope[BaseLimit]) {}))
	dear, err := m.OpenConnection(network.DirInbound, false, nil)
	require.NoError(t, err)
	require.NoError(t, m.SetLimits(NewFixedLimiter(costing(NoCost, 7, func(*perScope[BaseLimit]) {}))))
	cheap, err := m.OpenConnection(network.DirInbound, false, nil)
	require.NoError(t, err)
	s, err := m.OpenStream(testPeer, network.DirInbound)
	require.NoError(t, err)
	require.Equal(t, []int64{100, 0, 7, 107}, []int64{dear.Stat().Memory, cheap.Stat().Memory, s.Stat().Memory, viewSystem(t, m).Stat().Memory})
	dear.Done()
	cheap.Done()
	s.Done()
	assertEmpty(t, m)
}

func TestByDefaultNothingCosts(t *testing.T) {
	for _, cfg := range []ConcreteLimitConfig{DefaultLimits.Scale(1<<30, 100), InfiniteLimits, {}} {
		b, err := newLimitBook(NewFixedLimiter(cfg), true, nil)
		require.NoError(t, err)
		require.Zero(t, b.connCost+b.streamCost)
	}
}

func TestCostsInJSON(t *testing.T) {
	text := `{"Costs":{"Conn":65536,"Stream":"none"}}`
	want := PartialLimitConfig{Costs: &Costs{Conn: 65536, Stream: NoCost}}
	require.Equal(t, text, toJSON(t, want))
	require.Equal(t, text, toJSON(t, &want))
	for _, same := range []string{text, `{"costs":{"CONN":"64KiB","stream":0}}`, `{"Costs":{"Conn":"65536","Stream":"0"}}`} {
		read, err := ReadLimits(strings.NewReader(same))
		require.NoError(t, err)
		require.Equal(t, want, read)
	}
	var lenient PartialLimitConfig
	require.NoError(t, json.Unmarshal([]byte(text), &lenient))
	require.Equal(t, want, lenient)
	var up upstream.PartialLimitConfig
	require.NoError(t, json.Unmarshal([]byte(text), &up))
	require.Equal(t, "{}", toJSON(t, &up), "go-libp2p passes over it")

	const expected = `expected a whole number of bytes or a size such as "64MiB" from 0 to 9223372036854775807, or "none", found `
	for text, want := range map[string]string{
		`{"Costs":{"Conn":-1}}`:                         `line 1, column 18: Costs.Conn: -1 is negative: write "none" for no cost`,
		`{"Costs":{"Conn":"unlimited"}}`:                `line 1, column 18: Costs.Conn: ` + expected + `"unlimited"`,
		`{"Costs":{"Conn":null}}`:                       `line 1, column 18: Costs.Conn: ` + expected + `null`,
		`{"Costs":{"Con":1}}`:                           `line 1, column 11: Costs.Con: unknown name, did you mean Conn? Known here are Conn, Stream`,
		`{"Conn":{"Memory":9},"Costs":{"Conn":10}}`:     `line 1, column 38: Costs.Conn: is 10, above Conn.Memory, which is 9: none could be opened`,
		`{"Costs":{"Stream":10},"Stream":{"Memory":9}}`: `line 1, column 20: Costs.Stream: is 10, above Stream.Memory, which is 9`,
	} {
		_, err := ReadLimits(strings.NewReader(text))
		require.ErrorContains(t, err, want)
	}
	for _, bad := range []string{`-5`, `"x"`, `true`, `1.5`, `{}`} {
		c := Cost(3)
		require.Error(t, json.Unmarshal([]byte(bad), &c), bad)
		require.Equal(t, Cost(3), c)
	}
}

func TestCostsOfAConfigurationOverrideThoseBelow(t *testing.T) {
	lower := &Costs{Conn: 5, Stream: 6}
	for _, c := range []struct{ upper, want *Costs }{
		{nil, lower}, {&Costs{}, lower}, {&Costs{Conn: 7}, &Costs{Conn: 7, Stream: 6}}, {&Costs{Stream: NoCost}, &Costs{Conn: 5, Stream: NoCost}},
	} {
		got := PartialLimitConfig{Costs: c.upper}.Build(ConcreteLimitConfig{limits: perScope[BaseLimit]{Costs: lower}}).limits.Costs
		require.Equal(t, c.want, got)
		got.Conn = 99
		require.EqualValues(t, 5, lower.Conn, "nothing is shared")
	}
	require.Nil(t, PartialLimitConfig{}.Build(InfiniteLimits).limits.Costs)
}

func TestCostsThatNothingCanPayAreErrorsOfTheManager(t *testing.T) {
	_, err := New(NewFixedLimiter(costing(11, 0, func(c *perScope[BaseLimit]) { c.Conn.Memory = 10 })))
	require.ErrorContains(t, err, "Costs.Conn: is 11, above Conn.Memory, which is 10")
	_, err = New(NewFixedLimiter(costing(0, -2, func(*perScope[BaseLimit]) {})))
	require.ErrorContains(t, err, "Costs.Stream: is -2, it must not be negative")
	newFrom(t, costing(math.MaxInt64, 0, func(*perScope[BaseLimit]) {}))
}
