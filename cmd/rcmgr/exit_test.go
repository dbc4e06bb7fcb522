package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr"
)

// reading has the commands that read a source, as command lines that lack it at the end or, for
// explain, before conn.
var reading = [][]string{{"table"}, {"top"}, {"snapshot"}, {"explain"}, {"suggest"}, {"diff"}}

// lineFor returns the command line that reads a source. good is a file of a snapshot.
func lineFor(args []string, source, good string) []string {
	line := append([]string{args[0]}, "--timeout", "200ms", source)
	switch args[0] {
	case "explain":
		line = append(line, "conn")
	case "diff":
		line = append(line, good)
	}
	return line
}

// Every row of the table of exit codes in docs/command.md is true, for every command that it is
// about, and each error is one line.
func TestExitCodesAreThoseOfTheDocument(t *testing.T) {
	m := node(t)
	at, good, trace := serve(t, rcmgr.Handler(m)), saved(t, m), traced(t)
	text, err := os.ReadFile(good)
	require.NoError(t, err)
	limits, bad := file(t, "limits.json", "{}"), file(t, "bad.json", `{"System": {"Conn": 1}}`)
	old := file(t, "old.json", strings.ReplaceAll(string(text), "2026-11-30T12:01:30Z", "2020-01-01T00:00:00Z"))
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(silent.Close)
	hangsUp := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		require.NoError(t, err)
		conn.Close()
	}))
	// each returns the command line of each command that reads a source.
	each := func(sources ...string) (all [][]string) {
		for _, source := range sources {
			for _, c := range reading {
				all = append(all, lineFor(c, source, good))
			}
		}
		return all
	}
	refused := []string{"suggest", "--memory", "64KiB", "--fds", "8", good}
	never := filepath.Join(t.TempDir(), "never")
	closed := filepath.Join(t.TempDir(), "closed")
	require.NoError(t, os.WriteFile(closed, nil, 0))
	unreadable := []string{never, t.TempDir()}
	if f, err := os.Open(closed); err != nil { // unless it is the superuser's
		unreadable = append(unreadable, closed)
	} else {
		f.Close()
	}
	var missing [][]string
	for _, name := range unreadable {
		missing = append(missing, each(name)...)
		missing = append(missing, []string{"diff", good, name}, []string{"check", name}, []string{"check", limits, name},
			[]string{"replay", name}, []string{"replay", "--limits", name, trace}, []string{"suggest", "--base", name, trace})
	}
	pages := func(answers ...string) (all []string) {
		for _, answer := range answers {
			all = append(all, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) })))
		}
		return all
	}
	notOurs := append(pages("", "<html>", `{"hello": 1}`, `{"Taken": "2026-11-30T12:00:00Z"}`, "[]", string(text[:200])), hangsUp,
		serve(t, http.NotFoundHandler()), strings.Replace(at, "http:", "https:", 1),
		serve(t, http.RedirectHandler("/again", http.StatusFound)))
	other := strings.Replace(string(text), `"Kind":"system"`, `"Kind":"galaxy"`, 1)
	rubbish := []string{"", " \n", "[]", "{}", "rubbish", "\x00\x01", string(text[:200]), string(text[:len(text)-1]), other, `{"Taken": 5}`}
	var spoilt [][]string
	for i, r := range rubbish {
		name := file(t, fmt.Sprint("spoilt", i), r)
		if r != "{}" { // which is a file of limits
			spoilt = append(spoilt, lineFor([]string{"diff"}, name, good), []string{"diff", good, name})
		}
		for _, c := range reading[:5] {
			spoilt = append(spoilt, lineFor(c, name, good))
		}
		spoilt = append(spoilt, []string{"replay", name})
	}
	rows := map[string][][]string{
		"all is well, and for `diff` also if there is a difference": {
			{"table", at}, {"top", good}, {"snapshot", at}, {"explain", at, "conn"}, {"check", limits}, {"diff", old, good},
			{"diff", limits, limits}, {"replay", trace}, {"suggest", trace}, {"presets"}, {"presets", "relay"}, {"completion", "bash"}},
		"help was asked for":                            {{}, {"help"}, {"-h"}, {"top", "-h"}, {"help", "check"}},
		"`top` in a terminal is ended by `q` or Ctrl-C": nil, // TestTopIsOrderedAndSearchedByKeys; below
		"`check`: a file has a fault, or with `--strict` a warning": {{"check", bad}, {"check", limits, bad}, {"check", file(t, "empty", "")},
			{"check", "--strict", "--memory", "1GiB", "--fds", "1024", file(t, "odd.json", `{"System": {"Conns": 100}, "PeerDefault": {"Conns": 200}}`)}},
		"`explain`: the request would be refused":                                                 {{"explain", at, "stream", "--peer", attacker.String()}, {"explain", good, "stream", "--peer", attacker.String(), "-o", "json"}},
		"`suggest`: the proposal would have refused some of what was seen; the files are written": {refused, append(refused, "--limits", filepath.Join(t.TempDir(), "written"))},
		"a node does not answer, or not in time":                                                  each(gone.URL, silent.URL, "http://nosuch.invalid/"),
		"the answer is not a resource manager's page":                                             each(notOurs...),
		"a source is empty, cut off, too large, of another version, or not a snapshot":            spoilt,
		"the output cannot be written":                                                            nil, // below
		"Ctrl-C ends another command before it is done":                                           nil, // below
		"a command or flag does not exist, has a wrong value, is missing, or says nothing beside the others": {{"chek"}, {"table"}, {"table", good, "--boat"}, {"top", good, "--every", "x"},
			{"top", good, "--every", "1ms"}, {"top", good, "--times", "-1"}, {"table", good, good}, {"table", "-o", "xml", good}, {"table", "--timeout", "0s", good},
			{"check"}, {"check", "--memory", "0", limits}, {"replay"}, {"replay", "--top", "0", trace}, {"suggest"}, {"suggest", "--margin", "0.5", trace},
			{"diff", good}, {"explain", good}, {"explain", good, "boat"}, {"snapshot"}, {"snapshot", "--from", "5", good}, {"table", "http://"}, {"presets", "boat"}, {"man"},
			{"check", at}, {"replay", at}},
		"a file that is named does not exist, cannot be opened, or is a directory": missing,
		"a file to be written exists, and there is no `--force`, or it is a source of `suggest`": {{"suggest", "--limits", limits, trace},
			{"suggest", "--comment", limits, trace}, {"suggest", "--force", "--limits", trace, trace}},
		"a file after `--limits` of `replay`, after `--base` or of `diff` has a fault": {
			{"replay", "--limits", bad, trace}, {"suggest", "--base", bad, trace}, {"diff", limits, bad}},
		"`diff`: a snapshot and a file of limits, or the newer snapshot first": {{"diff", good, limits}, {"diff", limits, good}, {"diff", good, old}},
		"`explain`: the question makes no sense, such as a wrong peer ID": {{"explain", at, "stream", "--peer", "me"}, {"explain", good, "stream", "--peer", "me"},
			{"explain", good, "system"}, {"explain", good, "stream"}},
		"`presets`: the role has no such size, or the node has too little memory for it": {{"presets", "validator", "--circuits", "5"},
			{"presets", "relay", "--memory", "256MiB", "--circuits", "100000"}},
	}
	document, err := os.ReadFile(filepath.Join("..", "..", "docs", "command.md"))
	require.NoError(t, err)
	_, table, found := strings.Cut(string(document), "## Exit codes")
	require.True(t, found)
	table, _, _ = strings.Cut(table, "\n## ")
	seen := 0
	for _, row := range regexp.MustCompile(`(?m)^\| (.*) \| (\d) \|$`).FindAllStringSubmatch(table, -1) {
		lines, known := rows[row[1]]
		require.True(t, known, "no test of %q", row[1])
		seen++
		for _, line := range lines {
			got := command(line...)
			require.Equal(t, row[2], fmt.Sprint(got.code), "%s: %v: %s", row[1], line, got.err)
			if got.code == exitFine || got.err == "" {
				require.Empty(t, got.err, "%v", line)
				require.NotEmpty(t, got.out, "%v", line)
				continue
			}
			first, _, _ := strings.Cut(got.err, "\n\nDid you mean")
			require.Regexp(t, `\Arcmgr: [^\n]+\n?\z`, first, "%v", line)
			require.NotContains(t, got.err, "goroutine", "%v", line)
			require.Empty(t, got.out, "%v", line)
		}
	}
	require.Equal(t, len(rows), seen, "a case here is not in the document")

	require.Contains(t, command("table", hangsUp).err, ": it has closed the connection without an answer\n")
	require.Equal(t, "rcmgr: "+at+" is the address of a page: expected a file of limits\n", command("check", at).err)
	foreign := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusBadRequest) }))
	require.Equal(t, exitWrong, command("table", foreign).code, "nothing was asked that could be wrong")

	// Ctrl-C.
	ended, stop := context.WithCancel(t.Context())
	stop()
	for _, c := range reading {
		var out, errOut bytes.Buffer
		code := run(ended, lineFor(c, at, good), strings.NewReader(""), &out, &errOut)
		require.Equal(t, exitWrong, code, "%v", c)
		require.Equal(t, "rcmgr: "+at+": interrupted\n", errOut.String(), "%v", c)
	}
	interruptedReads(t)
	// Output that cannot be written.
	for _, line := range [][]string{{"table", good}, {"top", good}, {"snapshot", good}, {"explain", good, "conn"}, {"check", limits}, {"check", bad},
		{"diff", old, good}, {"diff", limits, limits}, {"replay", trace}, {"suggest", trace}, {"presets"}, {"presets", "relay"}} {
		for _, form := range []string{"text", "json"} {
			var errOut bytes.Buffer
			code := run(t.Context(), append(line, "-o", form), strings.NewReader(""), fullDisk{}, &errOut)
			require.Equal(t, exitWrong, code, "%v", line)
			require.Equal(t, "rcmgr: the disk is full\n", errOut.String(), "%v", line)
		}
	}
}

// interruptedReads checks that Ctrl-C ends commands that wait for the end of what they read.
func interruptedReads(t *testing.T) {
	terminal, w := io.Pipe() // nobody writes to it
	t.Cleanup(func() { w.Close() })
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil { // it answers without an end
			fmt.Fprint(w, " ")
		}
	}))
	sources := map[string]string{"-": "standard input", server: server}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if exec.Command("mkfifo", fifo).Run() == nil { // there may be none
		sources[fifo] = fifo
		defer os.Remove(fifo)
	}
	for source, name := range sources {
		for _, c := range slices.Concat(reading, [][]string{{"replay"}, {"check"}}) {
			line := lineFor(c, source, source)
			line = append(line[:1], line[3:]...) // without its time limit
			if source == server && (c[0] == "replay" || c[0] == "check") {
				continue // which read files alone
			}
			ctx, stop := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, stop)
			var out, errOut bytes.Buffer
			began := time.Now()
			code := run(ctx, line, terminal, &out, &errOut)
			require.Less(t, time.Since(began), 5*time.Second, "%v", line)
			require.Equal(t, exitWrong, code, "%v", line)
			require.Equal(t, "rcmgr: "+name+": interrupted\n", errOut.String(), "%v", line)
			require.Empty(t, out.String(), "%v", line)
		}
	}
}

// fullDisk is a file that nothing can be written to.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

// A fault of the command itself is a line and an exit code of its own, because a panic would end it
// with that of a wrong command line.
func TestAFaultOfTheCommandIsOneLine(t *testing.T) {
	var errOut bytes.Buffer
	code := run(t.Context(), []string{"table", "-"}, faulty{}, &bytes.Buffer{}, &errOut)
	require.Equal(t, exitWrong, code)
	require.Equal(t, "rcmgr: a fault of rcmgr itself, please report it with what RCMGR_STACK=1 adds: no reader\n", errOut.String())
}

type faulty struct{}

func (faulty) Read([]byte) (int, error) { panic("no reader") }

// Whatever stands in the place of a value in a snapshot, every command ends with an exit code, and
// with one line if it cannot read it.
func TestAnyValueInASnapshotIsReadOrRefused(t *testing.T) {
	text, err := os.ReadFile(saved(t, node(t)))
	require.NoError(t, err)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	odd := func() any { // each value anew, since the next may be spoilt inside it
		all := []any{nil, -1, 0, 1e300, -9223372036854775808., "", "peer:", "x\ny\x1b[2J", true, []any{}, map[string]any{}, []any{nil},
			"2026-11-30T12:01:30Z", "system", "protocol-peer", "unlimited"}
		return all[r.IntN(len(all))]
	}
	// spoil puts something else in the place of one of n values, counted as they are met.
	var spoil func(v any, n *int) any
	spoil = func(v any, n *int) any {
		if *n--; *n == 0 {
			return odd()
		}
		switch v := v.(type) {
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) { // a seed gives the same again
				v[key] = spoil(v[key], n)
			}
		case []any:
			for i := range v {
				v[i] = spoil(v[i], n)
			}
		}
		return v
	}
	name := filepath.Join(t.TempDir(), "snapshot")
	for range 300 {
		var whole any
		require.NoError(t, json.Unmarshal(text, &whole))
		for range 1 + r.IntN(3) {
			n := 1 + r.IntN(400)
			whole = spoil(whole, &n)
		}
		spoilt, err := json.Marshal(whole)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, spoilt, 0o600))
		for _, args := range [][]string{{"table", name}, {"top", name}, {"explain", name, "stream", "--peer", attacker.String(), "--memory", "1KiB"},
			{"explain", name, "conn", "--endpoint", "/ip4/192.0.2.1/tcp/1"}, {"suggest", name}, {"diff", name, name}} {
			got := command(args...)
			require.NotContains(t, got.err, "a fault of rcmgr itself", "seed %d, %v: %s", seed, args, spoilt)
			require.LessOrEqual(t, strings.Count(got.err, "\n"), 1, "seed %d, %v: %s", seed, args, got.err)
			require.NotContains(t, got.out+got.err, "\x1b", "seed %d, %v", seed, args)
		}
	}
}

// What no snapshot, file of limits or event of a trace is as large as is not read to its end.
func TestHugeSourcesAreNotReadToTheirEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("reads gigabytes")
	}
	name := filepath.Join(t.TempDir(), "huge")
	f, err := os.Create(name)
	require.NoError(t, err)
	_, err = f.WriteString(`{"Time":"`)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(mostBytes+2)) // a hole, which takes no room on the disk
	require.NoError(t, f.Close())
	for want, args := range map[string][]string{
		"has more than 512.0 MiB, which no snapshot has": {"table", name},
		"more than 64 MiB, which no event has":           {"replay", name},
	} {
		got := command(args...)
		require.Equal(t, exitWrong, got.code)
		require.Contains(t, got.err, want)
	}
	got := command("check", name)
	require.Equal(t, exitWrong, got.code)
	require.Contains(t, got.out, "more than 256 MiB, which no file of limits has")
}

// Help fits a terminal of 80 columns, except for examples, which are command lines.
func TestHelpHasAtMostEightyColumns(t *testing.T) {
	commands := []string{""}
	for _, c := range newRoot(&app{}).Commands() {
		commands = append(commands, c.Name())
	}
	require.Contains(t, commands, "suggest")
	for _, name := range commands {
		got := command(append(strings.Fields(name), "--help")...)
		require.Zero(t, got.code)
		for _, line := range strings.Split(strings.TrimSpace(got.out), "\n") {
			if !strings.HasPrefix(line, "  rcmgr ") {
				require.LessOrEqual(t, utf8.RuneCountInString(line), 80, "%s: %s", name, line)
			}
		}
	}
	require.NotEmpty(t, strings.TrimSpace(command("--version").out))
}

// A command with too few or too many arguments says in one line what it expects, with an example.
func TestAWrongNumberOfArgumentsGetsALineInTheWordsOfTheCommand(t *testing.T) {
	wrong := 0
	for _, c := range newRoot(&app{}).Commands() {
		if c.Args == nil || c.Name() == "completion" || c.Name() == "help" {
			continue
		}
		require.NotEmpty(t, c.Example, c.Name())
		for n := range 5 {
			args := slices.Repeat([]string{"x"}, n)
			if c.Args(c, args) == nil {
				continue
			}
			wrong++
			got := command(append([]string{c.Name()}, args...)...)
			require.Equal(t, exitUsage, got.code)
			require.Empty(t, got.out)
			example, _, _ := strings.Cut(strings.TrimSpace(c.Example), "\n")
			noun := "arguments"
			if n == 1 {
				noun = "argument"
			}
			require.Regexp(t, fmt.Sprintf("^rcmgr: %s: expected [^;]+, got %d %s; for example: ", c.Name(), n, noun), got.err)
			require.True(t, strings.HasSuffix(got.err, "; for example: "+example+"\n"), got.err)
			require.True(t, strings.HasPrefix(example, "rcmgr "+c.Name()), example)
			require.NotContains(t, got.err, "arg(s)")
		}
	}
	require.Greater(t, wrong, 25, "all commands are tried")
}
