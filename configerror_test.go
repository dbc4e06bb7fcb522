package rcmgr

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

// configErrorsOf returns all that an error says of a configuration, as line:column
// path, and checks that it reads so.
func configErrorsOf(t *testing.T, err error) (all []string) {
	t.Helper()
	require.Error(t, err)
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	var first *ConfigError
	require.ErrorAs(t, err, &first)
	list, ok := err.(interface{ Unwrap() []error })
	require.True(t, ok, "%T", err)
	require.Same(t, first, list.Unwrap()[0])
	lines := strings.Split(err.Error(), "\n")
	for i, one := range list.Unwrap() {
		e := one.(*ConfigError)
		require.Equal(t, e.Error(), lines[i])
		require.Error(t, e.Err)
		require.ErrorIs(t, err, e.Err)
		all = append(all, fmt.Sprintf("%d:%d %s", e.Line, e.Column, e.Path))
	}
	return all
}

const manySlips = `{
  "Sytem": {"Conns": [{}]},
  "System": {"Conns": -1, "ConnsInbound": "many", "Memory": "1 MiBs", "FD": 5, "fd": 6},
  "Service": {"x": {"Stream": 5}, "x": {"Streams": false}, "y": 7},
  "Peer": {"Qm": {"Conns": true}},
  "Costs": [1],
  "Gates": {"Outbound": 1, "Subnets": {"IPv4": {"24": "x", "/8": 1}, "Networks": {"10.0.0.1/8": 1}},
    "Rate": {"IPv6": {"64": {"PerSecond": null}}}}
}`

func TestAllMistakesInAFileAreReportedAtOnce(t *testing.T) {
	want := []string{
		"2:3 Sytem", "3:23 System.Conns", "3:43 System.ConnsInbound", "3:61 System.Memory", "3:80 System.fd",
		`4:21 Service["x"].Stream`, `4:35 Service["x"]`, `4:65 Service["y"]`,
		`5:12 Peer["Qm"]`, "6:12 Costs",
		"7:25 Gates.Outbound", `7:55 Gates.Subnets.IPv4["24"]`, `7:60 Gates.Subnets.IPv4["/8"]`,
		`7:83 Gates.Subnets.Networks["10.0.0.1/8"]`, `8:43 Gates.Rate.IPv6["64"].PerSecond`,
	}
	want[4] = "3:80 System.FD"
	for name, read := range readers() {
		cfg, err := read(manySlips)
		found := configErrorsOf(t, err)
		if name != "ReadLimits" { // they go on in what is given twice, because they may pass over that
			at := slices.Index(found, `4:52 Service["x"].Streams`)
			require.Positive(t, at, name)
			found = slices.Delete(found, at, at+1)
		}
		require.Equal(t, want, found, name)
		require.Zero(t, cfg)
	}
	file := filepath.Join(t.TempDir(), "limits.json")
	require.NoError(t, os.WriteFile(file, []byte(manySlips), 0o600))
	_, err := ReadLimitsFile(file)
	require.Equal(t, want, configErrorsOf(t, err))
	var first *ConfigError
	require.ErrorAs(t, err, &first)
	require.Equal(t, []any{file, 2, 3, "Sytem"}, []any{first.File, first.Line, first.Column, first.Path})
	require.ErrorContains(t, first.Err, "unknown name, did you mean System? Known here are ")
	require.Equal(t, len(want), strings.Count(err.Error(), "limits: "+file+": line "))
}

func TestErrorsOfAFileAreBounded(t *testing.T) {
	for n, end := range map[int]string{
		20: "limits: line 1, column 201: name19: unknown name", 21: "\nlimits: and 1 more", 100000: "\nlimits: and 99980 more",
	} {
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, `,"name%d":5`, i)
		}
		_, err := ReadLimits(strings.NewReader("{" + text.String()[1:] + "}"))
		require.Len(t, configErrorsOf(t, err), 20)
		lines := strings.SplitAfter(err.Error(), "\n")
		require.Contains(t, "\n"+lines[len(lines)-1], end)
	}
}

// What each value by itself does not show.
const manyContradictions = `{
  "System": {"Conns": 5, "Streams": 6}, "Transient": {"Conns": 7, "Streams": 8, "FD": 9},
  "Costs": {"Conn": 10, "Stream": 11},
  "Conn": {"Memory": 9}, "Stream": {"Memory": 10},
  "Gates": {"Subnets": {"IPv4": {"33": 1, "24": "default"}, "IPv6": {"129": 1}},
    "Rate": {"IPv4": {"8": {"Burst": 5}}, "Networks": {"::ffff:10.0.0.0/104": {"PerSecond": 1}}}}
}`

func TestAllContradictingLimitsAreReportedAtOnceWithTheirPlaces(t *testing.T) {
	want := []string{
		"3:21 Costs.Conn", "3:35 Costs.Stream",
		`5:40 Gates.Subnets.IPv4["33"]`, `5:49 Gates.Subnets.IPv4["24"]`, `5:77 Gates.Subnets.IPv6["129"]`,
		`6:28 Gates.Rate.IPv4["8"].PerSecond`, `6:79 Gates.Rate.Networks["10.0.0.0/8"].Burst`,
		"2:76 Transient.Streams", "2:64 Transient.Conns",
	}
	want[7], want[8] = "2:78 Transient.Streams", "2:64 Transient.Conns"
	for name, read := range readers() {
		_, err := read(manyContradictions)
		require.Equal(t, want, configErrorsOf(t, err), name)
	}
	file := filepath.Join(t.TempDir(), "limits.json")
	require.NoError(t, os.WriteFile(file, []byte(manyContradictions), 0o600))
	_, err := NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100, OverridesFile: file}.Build()
	require.Equal(t, want, configErrorsOf(t, err))
	require.Equal(t, len(want), strings.Count(err.Error(), "limits: "+file+": line "))
}

func TestMistakesThatShowWhenLimitsAreBuiltNameTheLineOfTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.json")
	write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
	node := NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100, OverridesFile: file, Overrides: PartialLimitConfig{
		System: ResourceLimits{FD: 90}, Costs: &Costs{Stream: 50}, Conn: ResourceLimits{Memory: 1000},
	}}
	for text, want := range map[string]string{
		`{"Costs":{"Conn":1001}}`:                       "line 1, column 18: Costs.Conn: is 1001, above Conn.Memory, which is 1000: none could be opened",
		"{\n\"Stream\":{\"Memory\":49}}":                "line 2, column 20: Costs.Stream: is 50, above Stream.Memory, which is 49: none could be opened",
		`{"Transient":{"FD":91}}`:                       "line 1, column 20: Transient.FD: is 91, above System.FD, which is 90",
		`{"System":{"ConnsInbound":96}}`:                "line 1, column 27: System.ConnsInbound (96) is not above the connection manager's high water mark of 96",
		`{"System":{"StreamsInbound":7,"Streams":8}}`:   "line 1, column 41: System.Streams (8), System.StreamsInbound (7) are not above",
		`{"Gates":{"Rate":{"IPv4":{"9":{"Burst":1}}}}}`: `line 1, column 31: Gates.Rate.IPv4["9"].PerSecond: there is no default here`,
		`{"Sytem":{}}`:                                  "line 1, column 2: Sytem: unknown name",
	} {
		n := node
		n.ConnMgrHighWater = 96
		write(text)
		_, err := n.Build()
		require.ErrorContains(t, err, "limits: "+file+": "+want)
		_, err = NewForNode(n)
		require.ErrorContains(t, err, "rcmgr: limits: "+file+": "+want)
		require.Len(t, configErrorsOf(t, err), 1)
	}
	write(`{"System":{"FD":80},"Protocol":{"/x":{"Streams":3}}}`)
	cfg, err := node.Build()
	require.NoError(t, err)
	require.Equal(t, []any{80, int64(1000), 3}, []any{cfg.limits.System.FD, cfg.limits.Conn.Memory, cfg.limits.Protocol["/x"].Streams}, "the file goes first")

	// What the file has no part in has no line.
	bad := node
	bad.Overrides.Costs = &Costs{Conn: 1001}
	_, err = bad.Build()
	require.EqualError(t, err, "limits: Costs.Conn: is 1001, above Conn.Memory, which is 1000: none could be opened")
	require.Equal(t, []string{"0:0 Costs.Conn"}, configErrorsOf(t, err))
	bad.OverridesFile += "x"
	_, err = bad.Build()
	require.ErrorIs(t, err, fs.ErrNotExist)

	// The same for defaults of a program's.
	defaults := PartialLimitConfig{Costs: &Costs{Conn: 10}}.Build(InfiniteLimits)
	_, err = NewLimiterFromJSON(strings.NewReader(`{"System":{},"Conn":{"Memory":9}}`), defaults)
	require.EqualError(t, err, "limits: line 1, column 31: Costs.Conn: is 10, above Conn.Memory, which is 9: none could be opened")
}

func TestAllMistakesInLimitsOfAProgramAreReportedAtOnce(t *testing.T) {
	cfg := PartialLimitConfig{
		System:  ResourceLimits{Conns: -3, Memory: -4},
		Service: map[string]ResourceLimits{"x": {StreamsInbound: -5}},
		Costs:   &Costs{Conn: -6, Stream: 8},
		Stream:  ResourceLimits{Memory: 7},
		Gates:   &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{24: -9, 40: 1}}},
	}
	want := []string{"0:0 System.Conns", "0:0 System.Memory", `0:0 Service["x"].StreamsInbound`, "0:0 Costs.Conn", "0:0 Costs.Stream",
		`0:0 Gates.Subnets.IPv4["40"]`, `0:0 Gates.Subnets.IPv4["24"]`}
	_, err := New(NewFixedLimiter(cfg.Build(InfiniteLimits)), WithStrictConfig())
	require.Equal(t, want, configErrorsOf(t, err))
	require.ErrorContains(t, err, "rcmgr: limits: System.Conns: is -3, it must not be negative\nlimits: System.Memory: is -4, it must not be negative\n")
	_, err = NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100, Overrides: cfg}.Build()
	require.Equal(t, want, configErrorsOf(t, err))

	m := newFrom(t, InfiniteLimits)
	require.Equal(t, want, configErrorsOf(t, m.SetLimits(NewFixedLimiter(cfg.Build(InfiniteLimits)))))
	c, err := m.OpenConnection(network.DirInbound, true, nil)
	require.NoError(t, err)
	c.Done()
}

func TestAConflictWithTheConnectionManagerIsAConfigError(t *testing.T) {
	err := PartialLimitConfig{System: ResourceLimits{Conns: 5}}.Build(InfiniteLimits).CheckHighWater(6)
	var bad *ConfigError
	require.ErrorAs(t, err, &bad)
	require.True(t, strings.HasPrefix(err.Error(), "limits: System.Conns (5) is not above"), err)
	require.NoError(t, InfiniteLimits.CheckHighWater(6))
}
