package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/presets"
	"github.com/weir-p2p/rcmgr/suggest"
)

var update = flag.Bool("update", false, "write the golden files")

// ran is what a command has printed, and its exit code.
type ran struct {
	code     int
	out, err string
}

func rcmgrWith(in string, args ...string) ran {
	var out, errOut bytes.Buffer
	code := run(context.Background(), args, strings.NewReader(in), &out, &errOut)
	return ran{code, out.String(), errOut.String()}
}

func command(args ...string) ran { return rcmgrWith("", args...) }

// golden compares a text with a file in testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), text)
}

// attacker and others have the IDs of peers.
var attacker, others = id('a'), []peer.ID{id('b'), id('c')}

func id(c byte) peer.ID { return peer.ID(append([]byte{18, 32}, bytes.Repeat([]byte{c}, 32)...)) }

// node returns the manager of a node under attack.
func node(t *testing.T, options ...rcmgr.Option) *rcmgr.Manager {
	limits := rcmgr.PartialLimitConfig{
		System:      rcmgr.ResourceLimits{StreamsInbound: 40, Memory: 1 << 20},
		Transient:   rcmgr.ResourceLimits{StreamsInbound: 8},
		PeerDefault: rcmgr.ResourceLimits{StreamsInbound: 16},
	}.Build(rcmgr.InfiniteLimits)
	options = append(options, rcmgr.WithNewcomersQuarter(false), rcmgr.WithRefusalLog(0))
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), options...)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	open := func(p peer.ID) network.StreamManagementScope {
		s, err := m.OpenStream(p, network.DirInbound)
		require.NoError(t, err)
		t.Cleanup(s.Done)
		return s
	}
	for _, p := range others {
		s := open(p)
		require.NoError(t, s.SetProtocol("/ipfs/ping/1.0.0"))
		require.NoError(t, s.ReserveMemory(64<<10, 255))
	}
	for range 6 {
		open(attacker)
	}
	for _, p := range others {
		open(p)
	}
	for range 3 {
		_, err := m.OpenStream(attacker, network.DirInbound)
		require.Error(t, err)
	}
	return m
}

// serve returns the address of a page.
func serve(t *testing.T, h http.Handler) string {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// saved returns the file of a node's snapshot, with times that do not change.
func saved(t *testing.T, m *rcmgr.Manager) string {
	s := m.Snapshot()
	s.Started = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	s.Taken, s.Recent = s.Started.Add(90*time.Second), nil
	text, err := json.Marshal(&s)
	require.NoError(t, err)
	return file(t, "node.json", string(text))
}

func file(t *testing.T, name, text string) string {
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

const stands = "transient inbound streams are full (8 of 8); "

func TestTableShowsASnapshot(t *testing.T) {
	name := saved(t, node(t))
	got := command("table", "--wide", name)
	require.Zero(t, got.code, got.err)
	golden(t, "table.txt", got.out)
	require.NotContains(t, got.out, "\x1b", "no colours where there is no terminal")

	got = command("table", "--near", "90", name)
	require.Zero(t, got.code, got.err)
	require.Contains(t, got.out, "transient")
	require.NotContains(t, got.out, "system ")

	got = command("table", "--find", "PING", name)
	require.Contains(t, got.out, "protocol:/ipfs/ping/1.0.0")
	require.NotContains(t, got.out, "peer:")
	got = command("table", "--find", "peer:", "--from", "2", "-o", "json", name)
	require.Equal(t, 1, strings.Count(got.out, `"Name": "peer:`), got.out)

	got = command("table", "-o", "json", name)
	var r struct {
		rcmgr.Snapshot
		InTheWay   string
		Bottleneck *rcmgr.Bottleneck
	}
	require.NoError(t, json.Unmarshal([]byte(got.out), &r))
	require.Equal(t, 3, r.Peers)
	require.Equal(t, stands+attacker.String()+" holds 75 %; raise Transient.StreamsInbound", r.InTheWay)
	require.Equal(t, attacker.String(), r.Bottleneck.Holder)
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, command("table", name), rcmgrWith(string(text), "table", "-"), "a snapshot may come through a pipe")
	require.Equal(t, command("table", name), rcmgrWith(got.out, "table", "-"), "and be what table itself has written")
}

func TestSnapshotSavesWhatOtherCommandsRead(t *testing.T) {
	at := serve(t, rcmgr.Handler(node(t)))
	got := command("snapshot", at)
	require.Zero(t, got.code, got.err)
	name := file(t, "saved.json", got.out)
	for _, source := range []string{at, name} {
		for _, c := range []string{"table", "top"} {
			got := command(c, source)
			require.Zero(t, got.code, got.err)
			require.Contains(t, got.out, stands)
		}
	}
	got = command("snapshot", "--find", "ping", at)
	require.Contains(t, got.out, `"Found": 1`)
}

func TestTopPrintsOnceWithoutATerminal(t *testing.T) {
	m := node(t)
	name := saved(t, m)
	got := command("top", "--wide", name)
	require.Zero(t, got.code, got.err)
	golden(t, "top.txt", got.out)
	at := serve(t, rcmgr.Handler(m))
	got = command("top", "-o", "json", "--times", "2", "--every", "1s", at)
	require.Zero(t, got.code, got.err)
	lines := strings.Split(strings.TrimSpace(got.out), "\n")
	require.Len(t, lines, 2)
	for _, line := range lines {
		_, err := parse([]byte(line))
		require.NoError(t, err)
	}
}

// press sends a key to the screen.
func press(t *top, keys ...string) {
	for _, key := range keys {
		k := tea.KeyPressMsg{Text: key}
		switch key {
		case "enter":
			k = tea.KeyPressMsg{Code: tea.KeyEnter}
		case "esc":
			k = tea.KeyPressMsg{Code: tea.KeyEscape}
		case "tab":
			k = tea.KeyPressMsg{Code: tea.KeyTab}
		case "down":
			k = tea.KeyPressMsg{Code: tea.KeyDown}
		}
		if _, next := t.Update(k); next != nil {
			if msg, ok := next().(loaded); ok {
				t.Update(msg)
			}
		}
	}
}

func TestTopFitsAnyTerminal(t *testing.T) {
	a := &app{timeout: time.Second}
	screen := &top{rate: -1, a: a, ctx: t.Context(), source: saved(t, node(t)), every: time.Second}
	screen.Update(screen.load()())
	require.NoError(t, screen.err)
	for _, width := range []int{1, 20, 40, 80, 120, 300} {
		for _, height := range []int{1, 5, 24, 60} {
			for view := range views {
				screen.Update(tea.WindowSizeMsg{Width: width, Height: height})
				screen.view = view
				lines := screen.lines()
				require.LessOrEqual(t, len(lines), max(1, height))
				for _, line := range lines {
					if width >= 40 {
						require.LessOrEqual(t, lipgloss.Width(line), max(width, 56), "%d columns: %s", width, line)
					}
				}
			}
		}
	}
	screen.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
	screen.view = overview
	golden(t, "screen80.txt", plainText(screen.lines()))
	screen.Update(tea.WindowSizeMsg{Width: 120, Height: 30})
	golden(t, "screen120.txt", plainText(screen.lines()))
}

// plainText returns lines without colours.
func plainText(lines []string) string {
	var out bytes.Buffer
	(&app{out: &out}).coloured().Write([]byte(strings.Join(lines, "\n") + "\n"))
	return out.String()
}

func TestTopIsOrderedAndSearchedByKeys(t *testing.T) {
	screen := &top{rate: -1, a: &app{timeout: time.Second}, ctx: t.Context(), source: saved(t, node(t)), every: time.Second, width: 120, height: 30}
	screen.Update(screen.load()())
	first := func() string {
		tables := screen.tables()
		rows := tables[len(tables)-1].rows
		if len(rows) == 0 {
			return ""
		}
		return rows[0].cells[0]
	}
	press(screen, "3")
	require.Equal(t, peers, screen.view)
	require.Equal(t, "peer:"+attacker.String(), first(), "the fullest")
	press(screen, "r")
	require.NotEqual(t, "peer:"+attacker.String(), first())
	press(screen, "r", "s", "s", "s", "s", "s", "s", "s", "s", "s") // by memory
	require.NotEqual(t, "peer:"+attacker.String(), first(), "it holds none")
	press(screen, "S", "S") // by streams
	require.Equal(t, "peer:"+attacker.String(), first())
	press(screen, "/", "p", "i", "n", "g", "enter")
	require.Equal(t, names, screen.view, "where something was found")
	require.Equal(t, "protocol:/ipfs/ping/1.0.0", first())
	press(screen, "3")
	require.Empty(t, first())
	press(screen, "esc")
	require.NotEmpty(t, first())
	press(screen, "down", "down", "down", "down", "down", "tab", "tab")
	require.Equal(t, refusals, screen.view)
	require.Contains(t, plainText(screen.lines()), "transient")
	press(screen, "/", "1", "2", "D", "3", "enter")
	require.Equal(t, peers, screen.view)
	press(screen, "esc")
	_, quit := screen.Update(tea.KeyPressMsg{Text: "q"})
	require.IsType(t, tea.QuitMsg{}, quit())
}

// Until the first answer comes, top shows the address that it waits for, and q ends it. If the first
// answer is an error, top ends with it.
func TestTopSaysWhatItWaitsFor(t *testing.T) {
	screen := &top{rate: -1, a: &app{timeout: time.Second}, ctx: t.Context(), source: "http://me:secret@192.0.2.1/rcmgr", every: time.Second, width: 60, height: 10}
	require.Equal(t, "waiting for http://me:xxxxx@192.0.2.1/rcmgr\nq end\n", plainText(screen.lines()))
	press(screen, "3", "s", "r", "/", "tab", "down")
	screen.Update(tea.WindowSizeMsg{Width: 20, Height: 2})
	require.Equal(t, "waiting for http://…\nq end\n", plainText(screen.lines()))
	for _, key := range []string{"q", "esc"} {
		k := tea.KeyPressMsg{Text: key}
		if key == "esc" {
			k = tea.KeyPressMsg{Code: tea.KeyEscape}
		}
		_, quit := screen.Update(k)
		require.IsType(t, tea.QuitMsg{}, quit())
	}
	_, quit := screen.Update(tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl})
	require.IsType(t, tea.QuitMsg{}, quit())

	fault := errors.New("nobody there")
	_, quit = screen.Update(loaded{err: fault})
	require.IsType(t, tea.QuitMsg{}, quit())
	require.Equal(t, fault, screen.err)

	screen.source = serve(t, rcmgr.Handler(node(t)))
	screen.width, screen.height = 80, 24
	require.NotNil(t, screen.Init(), "it looks at once")
	screen.Update(screen.load()())
	require.NoError(t, screen.err)
	require.Contains(t, plainText(screen.lines()), "1 Overview")
}

// The heading of a table names the column that orders it.
func TestAHeadingNamesTheOrder(t *testing.T) {
	screen := &top{rate: -1, a: &app{timeout: time.Second}, ctx: t.Context(), source: saved(t, node(t)), every: time.Second, width: 120, height: 30}
	screen.Update(screen.load()())
	for _, c := range []struct {
		view int
		want []string // as s goes through the columns
	}{
		{peers, []string{"Peers, the fullest first", "Peers, by Scope", "Peers, by Fullest", "Peers, by %", "Peers, by Conns in", "Peers, by Conns out", "Peers, by FD",
			"Peers, by Streams in", "Peers, by Streams out", "Peers, by Memory", "Peers, by Refused", "Peers, the fullest first"}},
		{names, []string{"Services and protocols, the fullest first", "Services and protocols, by Scope", "Services and protocols, by Fullest",
			"Services and protocols, by %", "Services and protocols, by Streams in", "Services and protocols, by Streams out"}},
		{fixedScopes, []string{"System and transient", "System and transient, by Scope", "System and transient, by Limit", "System and transient, by %", "System and transient, by %"}},
		{refusals, []string{"Refusals, by scope or gate", "Refusals, by Scope or gate", "Refusals, by Limit"}},
	} {
		screen.view = c.view
		for _, want := range c.want {
			require.Contains(t, strings.Split(plainText(screen.lines()), "\n"), want)
			press(screen, "s")
		}
	}
	screen.view, screen.orders = peers, [views]order{}
	press(screen, "r")
	require.Contains(t, plainText(screen.lines()), "\nPeers, by Scope, reversed\n")
}

// What stands in the way is the same whatever is looked for, and what is not found is told.
func TestASearchLeavesTheSentence(t *testing.T) {
	name := saved(t, node(t))
	at := serve(t, rcmgr.Handler(node(t)))
	for _, source := range []string{name, at} {
		want := strings.Split(command("table", source).out, "\n")[1]
		require.Contains(t, want, attacker.String()+" holds")
		for _, find := range []string{"ping", "nothing like it"} {
			got := command("table", "--find", find, source)
			require.Zero(t, got.code, got.err)
			require.Equal(t, want, strings.Split(got.out, "\n")[1])
			require.Equal(t, find != "ping", strings.Count(got.out, fmt.Sprintf("Nothing has %q in its name.", find)) == 3, got.out)
			require.NotContains(t, got.out, "Nothing is held.")
			var r report
			require.NoError(t, json.Unmarshal([]byte(command("table", "-o", "json", "--find", find, source).out), &r))
			require.Equal(t, want, r.InTheWay)
			require.NotNil(t, r.Bottleneck)
		}
		screen := &top{rate: -1, a: &app{timeout: time.Second}, ctx: t.Context(), source: source, every: time.Second, width: 200, height: 30}
		screen.Update(screen.load()())
		press(screen, "/", "z", "z", "!", "enter")
		require.NoError(t, screen.err)
		text := plainText(screen.lines())
		require.Contains(t, text, "\n"+want+"\n")
		require.Contains(t, text, "\nNothing has \"zz!\" in its name.\n")
		press(screen, "/", "y")
		require.Contains(t, plainText(screen.lines()), "\nNothing has \"zz!\" in its name.\n", "another text has not been looked for yet")
		press(screen, "esc")
		require.NotContains(t, plainText(screen.lines()), "Nothing has")
	}
}

// What was seen last stays in sight.
func TestTopGoesOnWhenTheNodeIsGone(t *testing.T) {
	m := node(t)
	server := httptest.NewServer(rcmgr.Handler(m))
	screen := &top{rate: -1, a: &app{timeout: time.Second}, ctx: t.Context(), source: server.URL, every: time.Second, width: 100, height: 30}
	screen.Update(screen.load()())
	require.Contains(t, plainText(screen.lines()), stands)
	server.Close()
	screen.Update(screen.load()())
	text := plainText(screen.lines())
	require.Contains(t, text, stands)
	require.Contains(t, text, "not of now: http://")
}

func TestExplainSaysWhatStandsInTheWay(t *testing.T) {
	m := node(t)
	name := saved(t, m)
	at := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rcmgr.Handler(m).ServeHTTP(w, r) // a new one, which has not been asked too often
	}))
	for _, source := range []string{at, name} {
		got := command("explain", source, "stream", "--peer", attacker.String(), "--protocol", "/ipfs/ping/1.0.0")
		require.Equal(t, exitWrong, got.code)
		require.Empty(t, got.err)
		require.Regexp(t, `^it would be refused by transient: StreamsInbound is at 8 of 8, and 1 more would exceed 8 \(limit\).*; raise Transient.StreamsInbound\n`, got.out)
		got = command("explain", source, "stream", "--direction", "outbound", "--peer", attacker.String(), "-o", "json")
		require.Zero(t, got.code, got.err+got.out)
		require.Contains(t, got.out, `"Admitted": true`)
		got = command("explain", source, "system", "--memory", "2MiB", "--priority", "255")
		require.Equal(t, exitWrong, got.code)
		require.Contains(t, got.out, "raise System.Memory")
		got = command("explain", source, "conn", "--fd", "--endpoint", "/ip4/192.0.2.1/tcp/1", "--memory", "1KiB")
		require.Zero(t, got.code, got.err)

		for want, args := range map[string][]string{
			`kind of scope`:           {"boat"},
			"eeds":                    {"stream"},
			"expected a peer ID":      {"stream", "--peer", "me"},
			"nothing is asked for":    {"system"},
			"--direction: expected":   {"conn", "--direction", "up"},
			"--priority":              {"conn", "--priority", "256"},
			"a size of more than 0":   {"conn", "--memory", "-1"},
			"expected a source and":   {},
			"xpected":                 {"subnet", "--memory", "1"},
			"unknown flag: --whereto": {"conn", "--whereto", "x"},
			"add --peer ID":           {"stream", "--protocol", "/fill/1.0.0"},
			"add --memory SIZE":       {"protocol", "--protocol", "/fill/1.0.0"},
			"add --protocol NAME":     {"protocol", "--memory", "1MiB"},
			"needs a protocol: add":   {"stream", "--peer", attacker.String(), "--service", "s"},
		} {
			got := command(append([]string{"explain", source}, args...)...)
			require.Equal(t, exitUsage, got.code, "%v: %s", args, got.err)
			require.Contains(t, got.err, want)
		}
	}
	asked := 0
	at = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many questions", http.StatusTooManyRequests)
			return
		}
		rcmgr.Handler(m).ServeHTTP(w, r)
	}))
	got := command("explain", at, "conn")
	require.Zero(t, got.code, got.err)
	require.Equal(t, 2, asked, "it waits as long as the page says")
	got = command("explain", name, "stream", "--peer", id('z').String(), "--protocol", "/none")
	require.Contains(t, got.out, "this is from a saved snapshot, which does not show the allowlist; "+
		"the peer's part of the protocol or service; the scope peer:"+id('z').String()+"; the scope protocol:/none\n")
}

// In 80 columns, the table says which scopes refuse and where to raise their limits, whole, however
// long the names are that the question has.
func TestExplainInAPipeHasEveryLimitAndItsPlaceWhole(t *testing.T) {
	const name, service = "/a/protocol/with/quite/a/long/name/1.0.0", "a.service.with.quite.a.long.name"
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.PartialLimitConfig{
		Protocol:     map[protocol.ID]rcmgr.ResourceLimits{name: {StreamsInbound: 12, Memory: 1 << 20}},
		ProtocolPeer: map[protocol.ID]rcmgr.ResourceLimits{name: {Memory: 256 << 20}},
		ServicePeer:  map[string]rcmgr.ResourceLimits{service: {StreamsInbound: rcmgr.BlockAllLimit}},
	}.Build(rcmgr.InfiniteLimits)))
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	question := []string{"explain", serve(t, rcmgr.Handler(m)), "stream", "--peer", attacker.String(), "--protocol", name,
		"--service", service, "--memory", "512MiB"}
	got := command(question...)
	require.Equal(t, exitWrong, got.code, got.err)
	require.NotContains(t, got.out, "…")
	sentence, table, _ := strings.Cut(got.out, "\n\n")
	require.Regexp(t, "^it would be refused by service:"+service+".peer:"+attacker.String()+": .*; raise ServicePeer", sentence)
	for _, row := range []string{
		`(?m)^protocol-peer +Memory +0 +256\.0 MiB +256\.0 MiB +512\.0 MiB +refuses$`,
		`(?m)^service-peer +StreamsInbound +0 +0 +0 +1 +refuses$`,
		"(?m)^Also in the way$",
		`(?m)^protocol +Protocol\["` + name + `"\]\.Memory$`,
		`(?m)^protocol-peer +ProtocolPeer\["` + name + `"\]\.Memory$`,
	} {
		require.Regexp(t, row, table)
	}
	require.NotRegexp(t, "(?m) ServicePeer", table, "the sentence has its place")
	for _, line := range strings.Split(table, "\n") {
		require.LessOrEqual(t, lipgloss.Width(line), 80, line)
	}
	wide := command(append(question, "--wide")...).out
	require.Contains(t, wide, "protocol:"+name+".peer:"+attacker.String()+" ")
	require.Contains(t, wide, `refuses, raise ProtocolPeer["`+name+`"].Memory`)
	require.NotContains(t, wide, "Also in the way", "the table has all places")
}

// A saved snapshot answers as the node itself does: by its gates, its rates, its fair shares and
// the memory of its process.
func TestASavedSnapshotAnswersAsTheNode(t *testing.T) {
	limits := rcmgr.PartialLimitConfig{
		System:    rcmgr.ResourceLimits{ConnsInbound: 1000, Rates: rcmgr.Rates{StreamsOutbound: rcmgr.Rate{PerSecond: 0.001, Burst: 2}}},
		Transient: rcmgr.ResourceLimits{ConnsInbound: 20},
		Gates: &rcmgr.GateLimits{Subnets: rcmgr.SubnetLimits{
			IPv6:     map[int]rcmgr.LimitVal{48: 6, 56: 4},
			Networks: map[netip.Prefix]rcmgr.LimitVal{netip.MustParsePrefix("198.51.100.0/24"): 2, netip.MustParsePrefix("10.0.0.0/8"): rcmgr.Unlimited},
		}},
	}.Build(rcmgr.InfiniteLimits)
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithFairShare(), rcmgr.WithRefusalLog(0), rcmgr.WithConnRateLimiters(nil))
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	open := func(address string, n int) {
		for range n {
			_, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(address))
			require.NoError(t, err)
		}
	}
	open("/ip4/203.0.113.7/tcp/1", 7)
	open("/ip4/198.51.100.1/tcp/1", 2)
	open("/ip6/2001:db8::1/tcp/1", 3)
	open("/ip6/2001:db8:0:100::1/tcp/1", 3)
	for range 2 {
		s, err := m.OpenStream(attacker, network.DirOutbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/p"))
	}
	name := saved(t, m)
	at := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { rcmgr.Handler(m).ServeHTTP(w, r) }))
	var now, then rcmgr.Explanation
	refused := 0
	for _, args := range [][]string{
		{"conn", "--endpoint", "/ip4/203.0.113.7/tcp/1"},
		{"conn", "--endpoint", "/ip4/203.0.113.8/tcp/1"}, // the subnet's fair share
		{"conn", "--endpoint", "/ip4/198.51.100.9/udp/1/quic-v1"},
		{"conn", "--endpoint", "/ip4/198.51.100.9/tcp/1/p2p/" + attacker.String() + "/p2p-circuit"},
		{"conn", "--endpoint", "/ip4/10.1.2.3/tcp/1"},
		{"conn", "--endpoint", "/ip4/192.0.2.1/tcp/1"},
		{"conn", "--endpoint", "/ip6/2001:db8::2/tcp/1"},
		{"conn", "--endpoint", "/ip6/2001:db8:0:200::2/tcp/1"},
		{"conn", "--endpoint", "/ip6/2001:db9::2/tcp/1"},
		{"conn", "--endpoint", "/ip4/198.51.100.9/tcp/1", "--direction", "outbound"},
		{"conn"},
		{"stream", "--peer", attacker.String(), "--direction", "outbound"},
		{"stream", "--peer", attacker.String()},
	} {
		for source, to := range map[string]*rcmgr.Explanation{at: &now, name: &then} {
			*to = rcmgr.Explanation{}
			got := command(append([]string{"explain", "-o", "json", source}, args...)...)
			require.NoError(t, json.Unmarshal([]byte(got.out), to), got.err)
			require.Equal(t, !to.Admitted, got.code == exitWrong)
		}
		require.Equal(t, now.Admitted, then.Admitted, "%v: the node says %v, the snapshot %v", args, &now, &then)
		if !now.Admitted {
			refused++
			now.By.Largest, now.By.LargestHolds, then.By.Largest, then.By.LargestHolds = "", 0, "", 0
			now.By.RetryAt = time.Time{}
			if now.By.Cause == rcmgr.CauseFairShare.String() {
				now.By.Holder = then.By.Holder // below
			}
			require.Equal(t, now.By, then.By, "%v", args)
		}
	}
	require.Equal(t, 6, refused)
	got := command("explain", name, "conn", "--endpoint", "/ip4/203.0.113.8/tcp/1")
	require.Contains(t, got.out, "fair-share")
	require.Contains(t, got.out, "203.0.113.0/24")
	require.Contains(t, got.out, "which does not show the allowlist; how fast connections have come from there\n")
	require.Contains(t, command("explain", name, "conn").out, "that needs --endpoint")

	text, err := os.ReadFile(name)
	require.NoError(t, err)
	var old map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(text, &old))
	old["Gates"] = json.RawMessage(`{"Subnets": 1}`)
	text, err = json.Marshal(old)
	require.NoError(t, err)
	got = rcmgrWith(string(text), "explain", "-", "conn", "--endpoint", "/ip4/192.0.2.1/tcp/1")
	require.Contains(t, got.out, "the limits of the gates, because it is of an older version")
}

func TestCheckNamesEveryFault(t *testing.T) {
	good := file(t, "good.json", `{"System": {"Conns": 1000, "Memory": "64MiB"}}`)
	bad := file(t, "bad.json", "{\"System\": {\n  \"ConnInbound\": 1,\n  \"Streams\": -5\n}}")
	size := []string{"--memory", "1GiB", "--fds", "1024"}
	check := func(args ...string) ran { return command(append(append([]string{"check"}, size...), args...)...) }
	got := check(good)
	require.Equal(t, ran{0, good + ": fine\n", ""}, got)
	got = check(good, bad)
	require.Equal(t, exitWrong, got.code)
	require.Empty(t, got.err)
	golden(t, "check.txt", strings.ReplaceAll(strings.ReplaceAll(got.out, good, "good.json"), bad, "bad.json"))
	got = check("-o", "json", bad)
	require.Equal(t, exitWrong, got.code)
	var all []checked
	require.NoError(t, json.Unmarshal([]byte(got.out), &all))
	require.Len(t, all[0].Faults, 2)
	require.Equal(t, 2, all[0].Faults[0].Line)

	got = check("--high-water", "600", good)
	require.Zero(t, got.code, got.out)
	got = check("--high-water", "1000", good)
	require.Equal(t, exitWrong, got.code)
	require.Contains(t, got.out, "System.Conns")

	odd := file(t, "odd.json", `{"System": {"Conns": 100}, "PeerDefault": {"Conns": 200}}`)
	got = check(odd)
	require.Zero(t, got.code)
	require.Contains(t, got.out, "warning: ")
	require.Equal(t, exitWrong, check("--strict", odd).code)

	for want, args := range map[string][]string{
		"no such file":                      {filepath.Join(t.TempDir(), "none.json")},
		"is a directory":                    {t.TempDir()},
		"expected one or more files":        {},
		"a size of more than 0":             {"--memory", "0", good},
		"expected a number of 1 or more":    {"--fds", "x", good},
		"expected text or json":             {"-o", "xml", good},
		`unknown command "chek" for "rcmgr`: nil,
	} {
		got := check(args...)
		if args == nil {
			if strings.Contains(want, "chek") {
				got = command("chek", good)
			}
		}
		require.Equal(t, exitUsage, got.code, "%v %s", args, got.err)
		require.Contains(t, got.err, want)
		require.Equal(t, 1, strings.Count(strings.Split(got.err, "\n\n")[0], "rcmgr:"), got.err)
	}
}

func TestDiffComparesSnapshotsAndLimits(t *testing.T) {
	m := node(t)
	before := saved(t, m)
	s, err := m.OpenStream(others[0], network.DirOutbound)
	require.NoError(t, err)
	t.Cleanup(s.Done)
	require.NoError(t, s.SetProtocol("/new"))
	_, err = m.OpenStream(attacker, network.DirInbound)
	require.Error(t, err)
	at := serve(t, rcmgr.Handler(m))
	got := command("diff", before, at)
	if got.code != 0 { // the clock of this computer is before the time in the file
		require.Contains(t, got.err, "older")
	}
	text, err := os.ReadFile(before)
	require.NoError(t, err)
	old := file(t, "old.json", strings.ReplaceAll(string(text), "2026-11-30T12:01:30Z", "2020-01-01T00:00:00Z"))
	got = command("diff", old, at)
	require.Zero(t, got.code, got.err)
	require.Contains(t, got.out, "protocol:/new")
	require.Regexp(t, `transient +StreamsInbound +8 +8 +8 +\+0 +1\n`, got.out)
	require.Contains(t, command("diff", "-o", "json", old, at).out, `"From": "2020-01-01`)
	got = command("diff", at, old)
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.err, "expected the older snapshot first")

	a := file(t, "a.json", `{"System": {"Conns": 1000}}`)
	b := file(t, "b.json", `{"System": {"Conns": 2000}, "Peer": {"`+attacker.String()+`": {"Conns": 3}}}`)
	got = command("diff", "--memory", "1GiB", "--fds", "1024", a, b)
	require.Zero(t, got.code, got.err)
	require.Regexp(t, `(?m)^System\.Conns +1000 +2000$`, got.out)
	require.Regexp(t, `Peer\["`+attacker.String()+`"\]\.Conns +- +3`, got.out)
	require.Equal(t, "no limit differs\n", command("diff", a, a).out)
	require.Contains(t, command("diff", "-o", "json", a, b).out, `"Before": "1000"`)
	few := file(t, "few.json", `{"System": {"Memory": "64MiB"}, "Transient": {"Memory": 1048576}, "Costs": {"Conn": "64KiB"}}`)
	more := file(t, "more.json", `{"System": {"Memory": "1GiB"}, "Transient": {"Memory": 1048577}, "Costs": {"Conn": "128KiB"}}`)
	got = command("diff", "--memory", "1GiB", "--fds", "1024", few, more)
	require.Regexp(t, `(?m)^System.Memory +64.0 MiB +1.0 GiB$`, got.out)
	require.Regexp(t, `(?m)^Costs.Conn +64.0 KiB +128.0 KiB$`, got.out)
	require.Regexp(t, `(?m)^Transient.Memory +1048576 +1048577$`, got.out, "what would read alike is in bytes")
	require.Contains(t, command("diff", "-o", "json", "--memory", "1GiB", "--fds", "1024", few, more).out, `"After": "1073741824"`)
	require.Equal(t, exitUsage, command("diff", a, old).code)
	require.Equal(t, exitUsage, command("diff", a).code)
}

// traced returns a trace of a node under attack.
func traced(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "rcmgr.json.gz")
	m := node(t, rcmgr.WithTrace(name))
	require.NoError(t, m.FlushTrace(t.Context()))
	require.NoError(t, m.Close())
	return name
}

func TestReplayTriesOtherLimits(t *testing.T) {
	trace := traced(t)
	open := file(t, "open.json", `{"Transient": {"StreamsInbound": 100}}`)
	closed := file(t, "closed.json", `{"Transient": {"StreamsInbound": 2}, "PeerDefault": {"StreamsInbound": 4}}`)
	got := command("replay", "--memory", "1GiB", "--fds", "1024", "--limits", open, "--limits", closed, trace)
	require.Zero(t, got.code, got.err)
	require.Contains(t, got.out, open)
	require.Contains(t, got.out, closed)
	require.Contains(t, got.out, "now refused")
	got = command("replay", "-o", "json", trace)
	require.Zero(t, got.code, got.err)
	require.True(t, json.Valid([]byte(got.out)))

	text, err := os.ReadFile(trace)
	require.NoError(t, err)
	cut := file(t, "cut.json.gz", string(text[:len(text)-12]))
	got = command("replay", cut)
	require.Zero(t, got.code, got.err)
	require.Contains(t, got.out, "The trace ends in the middle")
	got = command("replay", open)
	require.Equal(t, exitWrong, got.code)
	require.Contains(t, got.err, "expected an event of a trace")
	require.Equal(t, exitUsage, command("replay", "--limits", trace, trace).code)
	require.Equal(t, exitUsage, command("replay", "none.gz").code)
}

func TestSuggestWritesAFileThatCheckAccepts(t *testing.T) {
	m := node(t)
	at, trace := serve(t, rcmgr.Handler(m)), traced(t)
	dir := t.TempDir()
	limits, comment := filepath.Join(dir, "limits.json"), filepath.Join(dir, "limits.txt")
	got := command("suggest", "--memory", "1GiB", "--fds", "1024", "--limits", limits, "--comment", comment, at, saved(t, m), trace)
	require.Contains(t, []int{exitFine, exitWrong}, got.code, got.err)
	require.Empty(t, got.err)
	require.Contains(t, got.out, "Transient.StreamsInbound")
	checked := command("check", "--memory", "1GiB", "--fds", "1024", limits)
	require.Zero(t, checked.code, checked.out)
	text, err := os.ReadFile(comment)
	require.NoError(t, err)
	require.Contains(t, string(text), "Transient.StreamsInbound")
	got = command("suggest", "-o", "json", "--base", limits, trace)
	require.True(t, json.Valid([]byte(got.out)), got.err)

	require.Equal(t, exitUsage, command("suggest").code)
	require.Equal(t, exitUsage, command("suggest", "none.json").code)
	require.Equal(t, exitUsage, command("suggest", "--margin", "0.5", trace).code)
	got = command("suggest", file(t, "x.json", "rubbish"))
	require.Equal(t, exitWrong, got.code)
	require.NotContains(t, got.err, "goroutine")
	require.Equal(t, exitWrong, command("suggest", "--limits", filepath.Join(dir, "no", "such"), trace).code)
}

// A file that exists is overwritten only with --force, and the command says so before it looks at
// its sources.
func TestNoFileIsOverwrittenWithoutForce(t *testing.T) {
	trace := traced(t)
	old := file(t, "limits.json", "the old one")
	require.NoError(t, os.Chmod(old, 0o640))
	beside := filepath.Join(filepath.Dir(old), "new.txt")
	for _, flag := range []string{"--limits", "--comment"} {
		for _, source := range []string{trace, "none.json"} {
			require.Equal(t, ran{exitUsage, "", "rcmgr: " + old + " exists; --force overwrites it\n"}, command("suggest", flag, old, source))
		}
	}
	got := command("suggest", "--limits", beside, "--comment", old, trace)
	require.Equal(t, exitUsage, got.code)
	require.NoFileExists(t, beside, "no file is written if one cannot be")
	text, err := os.ReadFile(old)
	require.NoError(t, err)
	require.Equal(t, "the old one", string(text))

	if runtime.GOOS == "windows" {
		t.Skip("links and permissions are not as on Unix")
	}
	link := filepath.Join(t.TempDir(), "link.json")
	require.NoError(t, os.Symlink(old, link))
	require.Equal(t, exitUsage, command("suggest", "--limits", link, trace).code)
	got = command("suggest", "--memory", "1GiB", "--fds", "1024", "--force", "--limits", link, "--comment", beside, trace)
	require.Zero(t, got.code, got.err)
	require.Zero(t, command("check", "--memory", "1GiB", "--fds", "1024", old).code, "the file that the link leads to is replaced")
	at, err := os.Lstat(link)
	require.NoError(t, err)
	require.Equal(t, os.ModeSymlink, at.Mode().Type())
	at, err = os.Stat(old)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), at.Mode().Perm())
	all, err := os.ReadDir(filepath.Dir(old))
	require.NoError(t, err)
	require.Len(t, all, 2, "nothing else is left there")

	require.Equal(t, exitUsage, command("suggest", "--force", "--limits", t.TempDir(), trace).code)
	got = command("suggest", "--force", "--limits", beside, "--comment", beside, trace)
	require.Equal(t, ran{exitUsage, "", "rcmgr: --limits and --comment name the same file, " + beside + "\n"}, got)
	require.Zero(t, command("suggest", "--limits", os.DevNull, trace).code, "a device has nothing to lose")

	other := filepath.Join(t.TempDir(), "dir")
	require.NoError(t, os.Symlink(filepath.Dir(beside), other))
	for _, same := range []string{filepath.Join(other, "new.txt"), filepath.Join(other, "third.txt")} {
		there := filepath.Join(filepath.Dir(beside), filepath.Base(same))
		got = command("suggest", "--force", "--limits", there, "--comment", same, trace)
		require.Equal(t, ran{exitUsage, "", "rcmgr: --limits and --comment name the same file, " + there + "\n"}, got)
	}

	dir := t.TempDir()
	page := filepath.Join(dir, "rcmgr-top.1")
	require.NoError(t, os.WriteFile(page, []byte("another page"), 0o600))
	require.Equal(t, ran{exitUsage, "", "rcmgr: " + page + " exists; --force overwrites it\n"}, command("man", dir))
	require.NoFileExists(t, filepath.Join(dir, "rcmgr.1"))
	require.Zero(t, command("man", "--force", dir).code)
}

// What suggest writes never takes the place of what it reads, and a name that cannot be that of a
// file is told before anything is written.
func TestSuggestWritesOnlyWhereItMay(t *testing.T) {
	source := saved(t, node(t))
	was, err := os.ReadFile(source)
	require.NoError(t, err)
	dir := t.TempDir()
	link, hard := filepath.Join(dir, "link.json"), filepath.Join(dir, "hard.json")
	names := []string{source, filepath.Dir(source) + "/./" + filepath.Base(source)}
	if os.Symlink(source, link) == nil {
		names = append(names, link)
	}
	if os.Link(source, hard) == nil {
		names = append(names, hard)
	}
	for _, flag := range []string{"--limits", "--comment"} {
		for _, name := range names {
			for _, force := range []string{"--force", "--linear"} {
				require.Equal(t, ran{exitUsage, "", "rcmgr: " + flag + " names a source, " + source + ": expected another file\n"},
					command("suggest", source, flag, name, force))
			}
		}
		for _, name := range []string{"-", ""} {
			require.Equal(t, ran{exitUsage, "", fmt.Sprintf("rcmgr: invalid value %q for flag %s: expected the name of a file\n", name, flag)},
				command("suggest", source, flag, name))
		}
	}
	now, err := os.ReadFile(source)
	require.NoError(t, err)
	require.Equal(t, string(was), string(now))

	written, never := filepath.Join(dir, "limits.json"), filepath.Join(dir, "none", "reasons")
	for _, flags := range [][]string{{"--limits", written, "--comment", never}, {"--comment", written, "--limits", never}} {
		got := command(append([]string{"suggest", source}, flags...)...)
		require.Equal(t, exitWrong, got.code)
		require.Regexp(t, "^rcmgr: "+regexp.QuoteMeta(never)+": [^:]*\n$", got.err)
		require.NoFileExists(t, written)
	}
}

// A reader of the file sees the old one or the new one, never a part of either.
func TestAFileIsReplacedAsAWhole(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be replaced")
	}
	name := file(t, "limits.json", "old")
	reader, err := os.Open(name)
	require.NoError(t, err)
	defer reader.Close()
	require.NoError(t, writeFile(name, []byte("new"), true))
	var was [9]byte
	n, err := reader.Read(was[:])
	require.NoError(t, err)
	require.Equal(t, "old", string(was[:n]))
	now, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, "new", string(now))
	require.ErrorContains(t, writeFile(name, []byte("newer"), false), "exists; --force overwrites it", "it was made after the command had looked")
}

func TestPresetsAreFilesThatCheckAccepts(t *testing.T) {
	got := command("presets")
	require.Zero(t, got.code)
	for _, r := range presets.Roles() {
		require.Contains(t, got.out, r.String())
		got := command("presets", "--memory", "2GiB", "--fds", "4096", r.String())
		require.Zero(t, got.code, got.err)
		checked := command("check", "--memory", "2GiB", "--fds", "4096", file(t, "limits.json", got.out))
		require.Zero(t, checked.code, "%v: %s", r, checked.out)
	}
	require.True(t, json.Valid([]byte(command("presets", "-o", "json").out)))
	require.Equal(t, exitUsage, command("presets", "boat").code)
	got = command("presets", "relay", "--circuits", "many")
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.err, "expected a number of 1 or more")
}

// A source that is no snapshot of ours is reported in one line, with an exit code.
func TestBadSourcesAreToldInOneLine(t *testing.T) {
	good, err := os.ReadFile(saved(t, node(t)))
	require.NoError(t, err)
	slow := make(chan struct{})
	t.Cleanup(func() { close(slow) })
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-slow:
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/html", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>hello") })
	mux.HandleFunc("/json", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"hello": 1}`) })
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) { w.Write(good[:len(good)/2]) })
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(good)))
		w.Write(good[:100])
	})
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "try later\x1b[2J", http.StatusTooManyRequests)
	})
	server := httptest.NewServer(mux)
	gone := httptest.NewServer(mux)
	gone.Close()
	at := server.URL
	t.Cleanup(server.Close)
	other := strings.Replace(string(good), `"Kind":"system"`, `"Kind":"galaxy"`, 1)
	for _, c := range []struct {
		source, want string
		code         int
	}{
		{gone.URL, "connection refused", exitWrong},
		{at + "/slow", "no answer in 200ms; --timeout waits longer", exitWrong},
		{at + "/html", "it is no snapshot: expected JSON", exitWrong},
		{at + "/json", "it is no snapshot of a resource manager", exitWrong},
		{at + "/none", "404 Not Found: 404 page not found", exitWrong},
		{at, "; is the page at " + at + "/rcmgr?", exitWrong},
		{at + "/cut", "the snapshot is cut off after", exitWrong},
		{at + "/short", "the answer is cut off", exitWrong},
		{at + "/busy", `429 Too Many Requests: "try later\x1b[2J"`, exitWrong},
		{"http://", "expected one such as", exitUsage},
		{"http://%zz", "expected one such as", exitUsage},
		{"localhost:6060/rcmgr", "an address begins with http:// or https://", exitUsage},
		{"none.json", "no such file", exitUsage},
		{t.TempDir(), "is a directory", exitUsage},
		{file(t, "a", ""), "it is empty", exitWrong},
		{file(t, "b", " \n"), "it is empty", exitWrong},
		{file(t, "c", "[]"), "it is no snapshot", exitWrong},
		{file(t, "d", `{"Taken": 5}`), "no snapshot that this version reads", exitWrong},
		{file(t, "e", `{"Taken": "2026-11-30T12:00:00Z"}`), "expected Taken, and Scopes", exitWrong},
		{file(t, "f", string(good[:len(good)-2])), "is cut off after", exitWrong},
		{file(t, "g", other), "no snapshot that this version reads", exitWrong},
		{file(t, "h", "{\x00}"), "it is no snapshot: byte 2", exitWrong},
	} {
		for _, args := range [][]string{{"table"}, {"top"}, {"snapshot"}, {"explain"}} {
			args = append(args, "--timeout", "200ms", c.source)
			if args[0] == "explain" {
				args = append(args, "conn")
			}
			got := command(args...)
			require.Equal(t, c.code, got.code, "%v: %s", args, got.err)
			if args[0] != "explain" { // which may say it in other words
				require.Contains(t, got.err, c.want, args)
			}
			require.Empty(t, got.out)
			require.Equal(t, 1, strings.Count(got.err, "\n"), got.err)
			require.True(t, strings.HasPrefix(got.err, "rcmgr: "), got.err)
			require.NotContains(t, got.err, "\x1b")
		}
	}
	// A newer version may have more to say.
	newer := file(t, "newer", strings.Replace(string(good), `{"Taken"`, `{"Weather":"fine","Taken"`, 1))
	require.Zero(t, command("table", newer).code)
	require.Zero(t, command("table", file(t, "bom", "\xef\xbb\xbf"+string(good))).code)
}

// No error shows the password that an address has.
func TestNoErrorHasAPassword(t *testing.T) {
	good := saved(t, node(t))
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	addresses := []string{gone.URL, serve(t, http.NotFoundHandler()), "http://127.0.0.1:0x/rcmgr", "http://%zz/rcmgr"}
	for _, answer := range []string{"<html>", "{}", `{"hello": 1}`} {
		addresses = append(addresses, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) })))
	}
	addresses = append(addresses, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text, err := os.ReadFile(good)
		require.NoError(t, err)
		w.Write(bytes.ReplaceAll(text, []byte("2026-11-30"), []byte("2020-11-30")))
	})))
	limits := file(t, "limits.json", "{}")
	told := 0
	for _, address := range addresses {
		for _, password := range []string{"secretpw", "secret%pw", "secret@pw"} {
			source := strings.Replace(address, "://", "://user:"+password+"@", 1)
			for _, args := range [][]string{{"table", source}, {"top", source}, {"snapshot", source}, {"explain", source, "conn"}, {"suggest", source},
				{"diff", good, source}, {"diff", source, limits}, {"check", source}, {"replay", source}, {"replay", "--limits", source, limits}} {
				got := command(args...)
				require.NotContains(t, got.err+got.out, "secret", "%v", args)
				if got.code != exitFine {
					require.Contains(t, got.err, "xxxxx@", "%v", args)
					told++
				}
			}
		}
	}
	require.Greater(t, told, 200)
}

// check and replay read the standard input, as the commands do that look at a node.
func TestCheckAndReplayReadTheStandardInput(t *testing.T) {
	for _, name := range []string{"TMPDIR", "TMP"} {
		t.Setenv(name, t.TempDir())
	}
	size := []string{"--memory", "1GiB", "--fds", "1024"}
	text, err := os.ReadFile(traced(t))
	require.NoError(t, err)
	trace := string(text)
	relay := command(append([]string{"presets", "relay"}, size...)...)
	require.Zero(t, relay.code, relay.err)
	require.Equal(t, ran{0, "standard input: fine\n", ""}, rcmgrWith(relay.out, append([]string{"check", "-"}, size...)...))
	bad := "{\"System\": {\n  \"ConnInbound\": 1,\n  \"Streams\": -5\n}}"
	got := rcmgrWith(bad, append([]string{"check", "-"}, size...)...)
	require.Equal(t, exitWrong, got.code)
	want := command(append([]string{"check", file(t, "bad", bad)}, size...)...).out
	require.Equal(t, regexp.MustCompile(`(?m)^.*?: `).ReplaceAllString(want, "standard input: "), got.out, "with the same lines")
	require.Equal(t, ran{1, "standard input: line 1, column 1: unexpected end of JSON input\n", ""}, rcmgrWith("", "check", "-"))

	name := file(t, "trace", trace)
	require.Equal(t, command("replay", name), rcmgrWith(trace, "replay", "-"))
	got = rcmgrWith(relay.out, append([]string{"replay", "--limits", "-", name}, size...)...)
	require.Zero(t, got.code, got.err)
	require.Contains(t, got.out, "\nstandard input\n")
	got = rcmgrWith(bad, "replay", "--limits", "-", name)
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.err, "rcmgr: limits: standard input: line 2")
	got = rcmgrWith("rubbish", "replay", "-")
	require.Equal(t, exitWrong, got.code)
	require.Contains(t, got.err, "rcmgr: standard input: line 1: expected an event of a trace")
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "rcmgr-*.json"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// A snapshot in the place of a file of limits or of a trace is told as that, and not as a file with
// many faults.
func TestASnapshotIsNoFileOfLimitsAndNoTrace(t *testing.T) {
	name, limits := saved(t, node(t)), file(t, "limits.json", "{}")
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	for _, s := range []string{name, file(t, "bom.json", "\xef\xbb\xbf"+string(text)), file(t, "table.json", command("table", "-o", "json", name).out)} {
		require.Equal(t, ran{exitWrong, s + ": it is a snapshot, not a file of limits\n", ""}, command("check", s))
		require.Equal(t, ran{exitWrong, "", "rcmgr: " + s + ": it is a snapshot, not a trace\n"}, command("replay", s))
		for _, args := range [][]string{{"replay", "--limits", s, traced(t)}, {"suggest", "--base", s, name}} {
			require.Equal(t, ran{exitUsage, "", "rcmgr: " + s + " is a snapshot, not a file of limits\n"}, command(args...))
		}
		for _, args := range [][]string{{s, limits}, {limits, s}} {
			got := command("diff", args[0], args[1])
			require.Equal(t, exitUsage, got.code)
			require.Contains(t, got.err, "is a file of limits, and the other is a snapshot\n")
		}
	}
	got := rcmgrWith(string(text), "check", "-")
	require.Equal(t, ran{exitWrong, "standard input: it is a snapshot, not a file of limits\n", ""}, got)
}

// A flag that says nothing about what is asked for is told, and not ignored.
func TestAFlagThatSaysNothingIsTold(t *testing.T) {
	name, limits := saved(t, node(t)), file(t, "limits.json", "{}")
	explain := func(args ...string) []string { return append([]string{"explain", name}, args...) }
	me := attacker.String()
	for _, c := range []struct {
		want string
		args []string
	}{
		{"--protocol does not go with conn: expected only --direction, --endpoint, --fd, --peer, --memory, --priority", explain("conn", "--protocol", "/x")},
		{"--service does not go with conn: ", explain("conn", "--service", "x")},
		{"--fd does not go with stream: expected only --direction, --peer, --protocol, --service, --memory, --priority", explain("stream", "--peer", me, "--fd")},
		{"--endpoint does not go with stream: ", explain("stream", "--peer", me, "--endpoint", "/ip4/192.0.2.1/tcp/1")},
		{"--fd does not go with system: expected only --memory, --priority", explain("system", "--memory", "1MiB", "--fd")},
		{"--peer does not go with system: ", explain("system", "--memory", "1MiB", "--peer", me)},
		{"--direction does not go with transient: ", explain("transient", "--memory", "1MiB", "--direction", "outbound")},
		{"--peer does not go with protocol: ", explain("protocol", "--protocol", "/p", "--memory", "1MiB", "--peer", me)},
		{"--protocol does not go with peer: ", explain("peer", "--peer", me, "--memory", "1MiB", "--protocol", "/p")},
		{"--priority does not go without --memory: expected --memory SIZE, too", explain("conn", "--priority", "3")},
		{"--high-water does not go with --no-conn-manager: expected one of them", []string{"check", "--no-conn-manager", "--high-water", "4", limits}},
		{"--circuits does not go without a role: expected one of ", []string{"presets", "--circuits", "5"}},
		{"--memory does not go without a role: ", []string{"presets", "--memory", "1GiB"}},
		{"--memory does not go with snapshots: expected two files of limits, or no --memory", []string{"diff", "--memory", "1GiB", name, name}},
		{"--fds does not go with snapshots: ", []string{"diff", name, name, "--fds", "7"}},
	} {
		got := command(c.args...)
		require.Equal(t, exitUsage, got.code, "%v: %s", c.args, got.err)
		require.True(t, strings.HasPrefix(got.err, "rcmgr: "+c.want), got.err)
		require.Equal(t, 1, strings.Count(got.err, "\n"), got.err)
		require.Empty(t, got.out)
	}
}

// A number that is out of its range, or none, is told with the range.
func TestANumberOutOfItsRangeIsToldWithTheRange(t *testing.T) {
	name := saved(t, node(t))
	for _, c := range []struct {
		args          []string
		flag, limits  string
		wrong, within []string
	}{
		{[]string{"table", name}, "--near", "from 0 to 100", []string{"-1", "200", "NaN", "Inf", "x", ""}, []string{"0", "100", "99.5"}},
		{[]string{"explain", name, "conn", "--memory", "1KiB"}, "--priority", "from 0 to 255", []string{"256", "-1", "1.5", "x", "9999999999999999999"}, []string{"0", "255"}},
		{[]string{"table", name, "--find", "a"}, "--from", "of 0 or more", []string{"-1", "x", "9999999999999999999"}, []string{"0", "7"}},
		{[]string{"top", name}, "--times", "of 0 or more", []string{"-1", "x"}, []string{"0", "2"}},
		{[]string{"suggest", name}, "--margin", "from 1 to 1000", []string{"0.5", "1001", "NaN", "x"}, []string{"1", "1000", "2.5"}},
		{[]string{"check", name}, "--fds", "of 1 or more", []string{"0", "-1", "x"}, nil},
	} {
		for _, v := range c.wrong {
			want := fmt.Sprintf("rcmgr: invalid argument %q for %q flag: expected a number %s\n", v, c.flag, c.limits)
			require.Equal(t, ran{exitUsage, "", want}, command(append(c.args, c.flag, v)...))
		}
		for _, v := range c.within {
			got := command(append(c.args, c.flag, v)...)
			require.Zero(t, got.code, "%v %s: %s", c.args, v, got.err)
		}
	}
	require.Contains(t, command("explain", "--help").out, "(default 128)")
	require.Contains(t, command("suggest", "--help").out, "(default 2)")
	require.NotContains(t, command("table", "--help").out, "(default 0)")
}

// A limit that is only observed refuses nothing, and a subnet that is not among the fullest fits
// unless the last of these is full itself.
func TestWhatASavedSnapshotDoesNotList(t *testing.T) {
	limits := rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{ConnsInbound: 1},
		Gates: &rcmgr.GateLimits{Subnets: rcmgr.SubnetLimits{IPv4: map[int]rcmgr.LimitVal{32: 2}}}}.Build(rcmgr.InfiniteLimits)
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithObserveOnly(rcmgr.KindTransient), rcmgr.WithRefusalLog(0), rcmgr.WithConnRateLimiters(nil))
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	for n, want := range []string{"which does not show the allowlist; how fast connections have come from there\n",
		"; how many connections 192.0.2.1/32 has\n"} {
		_, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/203.0.113.7/tcp/1"))
		require.NoError(t, err)
		s := m.Snapshot()
		s.Gates.Subnets = 100
		text, err := json.Marshal(&s)
		require.NoError(t, err)
		got := rcmgrWith(string(text), "explain", "-", "conn", "--endpoint", "/ip4/192.0.2.1/tcp/1")
		require.Zero(t, got.code, got.out)
		require.Contains(t, got.out, want)
		require.NotContains(t, got.out, "subnet:192.0.2.1/32")
		require.Contains(t, got.out, "would refuse", "of transient, with %d", n+1)
	}
}

// In a terminal of 80 columns, the tables of suggest and replay fit.
func TestProposalsAndReplaysFitATerminal(t *testing.T) {
	m := node(t, rcmgr.WithTrace(filepath.Join(t.TempDir(), "trace.gz")))
	s, err := m.OpenStream(attacker, network.DirOutbound)
	require.NoError(t, err)
	require.NoError(t, s.SetProtocol("/libp2p/a/rather/long/name/of/a/protocol/1.0.0"))
	var seen suggest.Evidence
	now := m.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(suggest.Options{})
	require.NoError(t, err)
	lines := proposalSheet(p).lines(80, 0, 0, -1)
	require.Greater(t, len(lines), 20)
	for _, line := range lines {
		require.LessOrEqual(t, lipgloss.Width(line), 80, line)
	}
	text := plainText(lines)
	require.Contains(t, text, "System.StreamsInbound ", "names that fit are whole")
	require.Regexp(t, `Protocol\["/libp2p/a/.*….*\.StreamsOutbound`, text)
	whole := proposalSheet(p).lines(0, 0, 0, -1)
	require.Contains(t, whole[0], strings.TrimSpace(suggest.Columns[6]))
}

// Without a terminal, every table of every command has at most 80 columns, however long the names
// are. With --wide, names are whole.
func TestTablesFitAPipe(t *testing.T) {
	name := protocol.ID("/a/very/long/name/of/a/protocol/" + strings.Repeat("which/goes/on/and/on/", 8) + "1.0.0")
	path := filepath.Join(t.TempDir(), "rcmgr.json.gz")
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{StreamsInbound: 1 << 40, Memory: 1 << 50},
		Protocol: map[protocol.ID]rcmgr.ResourceLimits{name: {StreamsInbound: 2}}}.Build(rcmgr.InfiniteLimits)
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithRefusalLog(0), rcmgr.WithTrace(path))
	require.NoError(t, err)
	first := m.Snapshot()
	for range 3 {
		s, err := m.OpenStream(attacker, network.DirInbound)
		require.NoError(t, err)
		if s.SetProtocol(name) != nil {
			continue
		}
		require.NoError(t, s.SetService(strings.Repeat("service.", 30)))
		require.NoError(t, s.ReserveMemory(1<<39+12345, 255))
	}
	_, err = m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip6/2001:db8:1234:5678:9abc:def0:1234:5678/tcp/1"))
	require.NoError(t, err)
	last := m.Snapshot()
	require.NoError(t, m.FlushTrace(t.Context()))
	t.Cleanup(func() { m.Close() })
	var files []string
	for i, s := range []rcmgr.Snapshot{first, last} {
		text, err := json.Marshal(&s)
		require.NoError(t, err)
		files = append(files, file(t, fmt.Sprint(i), string(text)))
	}
	old, long := file(t, "old.json", "{}"), file(t, "new.json", `{"Protocol": {"`+string(name)+`": {"Streams": 7}}, "Peer": {"`+attacker.String()+`": {"Memory": 123456789012345}}}`)
	for _, c := range []struct {
		args []string
		skip int // the lines that are sentences, which are whole
	}{
		{[]string{"table", files[1]}, 2}, {[]string{"table", "--near", "0", files[1]}, 2}, {[]string{"top", files[1]}, 2},
		{[]string{"explain", files[1], "stream", "--peer", attacker.String(), "--protocol", string(name), "--memory", "1TiB"}, 2},
		{[]string{"explain", files[1], "conn", "--endpoint", "/ip6/2001:db8:1234:5678:9abc:def0:1234:5678/tcp/1"}, 2},
		{[]string{"diff", files[0], files[1]}, 0}, {[]string{"diff", old, long}, 0},
		{[]string{"replay", "--limits", long, path}, 0}, {[]string{"suggest", path, files[1]}, 0}, {[]string{"presets"}, 0}, {[]string{"check", old}, 1},
	} {
		got := command(c.args...)
		require.Empty(t, got.err, "%v", c.args)
		table, notes, _ := strings.Cut(got.out, "\n\n")
		if c.args[0] != "suggest" { // whose notes are sentences
			table += "\n\n" + notes
		}
		lines := strings.Split(table, "\n")
		require.Greater(t, len(lines), c.skip, "%v", c.args)
		for _, line := range lines[c.skip:] {
			require.LessOrEqual(t, lipgloss.Width(line), 80, "%v: %s", c.args, line)
		}
		if strings.Contains(got.out, "…") {
			wide := command(append(c.args, "--wide")...)
			require.NotContains(t, wide.out, "…", "%v", c.args)
		}
	}
	wide := command("table", "--wide", files[1])
	require.Contains(t, wide.out, "protocol:"+string(name))
	require.Contains(t, command("diff", "--wide", old, long).out, string(name))
}

// A trace that is not ours, of a later version or cut off in its first bytes gets one line and an
// exit code, whichever command reads it. One with gaps is read, with a note.
func TestBadTracesAreToldInOneLine(t *testing.T) {
	start := `{"Time":"2026-01-02T03:04:05Z","Type":"start"}` + "\n"
	conn := `{"Time":"2026-01-02T03:04:07Z","Type":"add_conn","Scope":{"Class":"system"},"Name":"system","DeltaIn":1,"ConnsIn":9}` + "\n"
	for name, c := range map[string]struct{ text, want string }{
		"a later version":   {start + `{"Time":"2026-01-02T03:04:06Z","Type":"teleport"}` + "\n", `line 2: no such type of event: "teleport"; the trace may be of a later version`},
		"not all of a line": {start + `{"Time":"2026-01-02T03:0` + "\n" + conn, "line 2: expected an event of a trace"},
		"no time":           {start + `{"Type":"add_conn"}` + "\n", "line 2: expected an event of a trace, which has Time and Type"},
		"no gzip":           {"\x1f\x8b\x08", "unexpected EOF"},
		"no event":          {"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xffrubbish", "it is cut off before the end of its first event"},
	} {
		for _, command1 := range []string{"replay", "suggest"} {
			got := command(command1, file(t, "trace", c.text))
			require.Equal(t, exitWrong, got.code, "%s: %s", name, got.err)
			require.Contains(t, got.err, c.want, name)
			require.Equal(t, 1, strings.Count(got.err, "\n"), got.err)
			require.True(t, strings.HasPrefix(got.err, "rcmgr: "), got.err)
			require.Empty(t, got.out, name)
		}
	}
	// A trace that was unpacked before it was cut off.
	for _, text := range []string{start + conn[:20], start + conn + conn[:len(conn)-2]} {
		for _, c := range []string{"replay", "suggest"} {
			got := command(c, file(t, "trace", text))
			require.Zero(t, got.code, got.err)
			require.Contains(t, got.out, "The trace ends in the middle of an event", c)
		}
	}
	gap := file(t, "trace", start+`{"Time":"2026-01-02T03:04:06Z","Type":"dropped","Delta":17}`+"\n"+conn)
	for _, c := range []string{"replay", "suggest"} {
		got := command(c, gap)
		require.Zero(t, got.code, got.err)
		require.Contains(t, got.out, "17 events are missing", c)
	}
}

// suggest and diff read the same sources as the commands that look at a node, and say of them what
// is wrong in the same way.
func TestBadSourcesOfSuggestAndDiff(t *testing.T) {
	good := saved(t, node(t))
	gone := httptest.NewServer(http.NotFoundHandler())
	at := gone.URL
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(silent.Close)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>hello") }))
	t.Cleanup(page.Close)
	gone.Close()
	for source, want := range map[string]string{
		at:                              "connection refused",
		silent.URL:                      "no answer in 200ms",
		page.URL:                        "it is no snapshot",
		file(t, "x", `{"Taken": "then`): "", // cut off
		file(t, "y", `{"hello": 1}`):    "",
	} {
		for _, args := range [][]string{{"suggest", source}, {"diff", source, good}, {"diff", good, source}} {
			got := command(append([]string{args[0], "--timeout", "200ms"}, args[1:]...)...)
			require.NotZero(t, got.code, "%v", args)
			require.Contains(t, got.err, want, "%v", args)
			require.Equal(t, 1, strings.Count(got.err, "\n"), "%v: %s", args, got.err)
			require.Empty(t, got.out, "%v", args)
		}
	}
}

// Wherever a snapshot or a trace is cut off, and whichever byte of it is another one, a command
// ends with an exit code, and with one line if that is not 0.
func TestBrokenFilesNeverBreakACommand(t *testing.T) {
	snapshot, err := os.ReadFile(saved(t, node(t)))
	require.NoError(t, err)
	trace := []byte(`{"Time":"2026-01-02T03:04:05Z","Type":"start"}
{"Time":"2026-01-02T03:04:06Z","Type":"create_scope","Scope":{"Class":"system"},"Name":"system","Limit":{"Memory":1024}}
{"Time":"2026-01-02T03:04:07Z","Type":"add_conn","Scope":{"Class":"peer","Peer":"QmUtnNzMAW8vHc8RgQMBMbt5azBtG7ypAEGtfWM2kRg1Ma"},"Name":"peer:QmUtnNzMAW8vHc8RgQMBMbt5azBtG7ypAEGtfWM2kRg1Ma","DeltaIn":1,"ConnsIn":9}
`)
	name := filepath.Join(t.TempDir(), "file")
	try := func(text []byte, commands ...[]string) {
		require.NoError(t, os.WriteFile(name, text, 0o600))
		for _, args := range commands {
			got := command(append(args, name)...)
			if got.code != exitFine && got.err != "" {
				require.Equal(t, 1, strings.Count(got.err, "\n"), "%v: %s", args, got.err)
			}
			require.Contains(t, []int{exitFine, exitWrong, exitUsage}, got.code)
		}
	}
	ofSnapshot := [][]string{{"table"}, {"top"}, {"suggest"}, {"diff", name}}
	for n := 0; n < len(snapshot); n += 101 {
		try(snapshot[:n], ofSnapshot...)
		other := bytes.Clone(snapshot)
		other[n] = "0\"{}-9"[n%6]
		try(other, ofSnapshot...)
	}
	ofTrace := [][]string{{"replay"}, {"suggest"}}
	for n := 0; n < len(trace); n += 7 {
		try(trace[:n], ofTrace...)
		other := bytes.Clone(trace)
		other[n] = "0\"{}-9"[n%6]
		try(other, ofTrace...)
	}
}

func TestManualAndCompletionHaveEveryCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	got := command("man", dir)
	require.Zero(t, got.code, got.err)
	for _, c := range newRoot(&app{}).Commands() {
		if c.Hidden {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "rcmgr-"+c.Name()+".1"))
		require.NoError(t, err)
		require.Contains(t, string(text), ".SH SYNOPSIS")
		if c.RunE != nil && c.Name() != "completion" {
			require.NotEmpty(t, c.Long, c.Name())
			require.NotEmpty(t, c.Example, c.Name())
		}
	}
	again := filepath.Join(t.TempDir(), "man")
	require.Zero(t, command("man", again).code)
	for _, page := range []string{"rcmgr.1", "rcmgr-top.1"} {
		first, err := os.ReadFile(filepath.Join(dir, page))
		require.NoError(t, err)
		second, err := os.ReadFile(filepath.Join(again, page))
		require.NoError(t, err)
		require.Equal(t, string(first), string(second), "it has no time in it")
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		got := command("completion", shell)
		require.Zero(t, got.code, got.err)
		require.Contains(t, got.out, "rcmgr")
	}
	got = command("__complete", "presets", "re")
	require.Contains(t, got.out, "relay\n")
	got = command("__complete", "explain", "x.json", "")
	require.Contains(t, got.out, "transient\n")
}

func TestHelpIsNoFault(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"help", "top"}, {"top", "-h"}, {}} {
		got := command(args...)
		require.Zero(t, got.code, args)
		require.Contains(t, got.out, "rcmgr")
		require.Empty(t, got.err)
	}
}
