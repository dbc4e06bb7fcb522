package main

// The command "top": a snapshot again and again, in a terminal.

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	"github.com/weir-p2p/rcmgr"
)

func (a *app) topCommand() *cobra.Command {
	var every time.Duration
	var times int
	c := &cobra.Command{
		Use:   "top SOURCE",
		Short: "Watch a node: what is nearly full, who holds it, what is refused",
		Long: `Watch a node in a terminal: what stands in the way, the limits that are nearly
full first, who holds what, and what is refused. A saved snapshot does not
change.

Keys: 1 to 5 or Tab choose what is shown, s and S the column that orders it and
r the direction, arrows and Page Up and Down scroll, / finds by a part of a
name, p pauses, q ends.

If the output is not a terminal, top prints what it would show once, or as often
as --times says; with -o json, each time as one line. The node takes one
snapshot of its fullest peers for each, at most one a second.`,
		Example: "  rcmgr top http://127.0.0.1:6060/rcmgr\n  rcmgr top -o json --times 60 http://127.0.0.1:6060/rcmgr > minute.jsonl",
		Args:    arguments(1, 1, "one source: a page, the file of a snapshot, or - for one on the standard input"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if every < time.Second {
				return usage("invalid value %q for flag --every: expected 1s or more", every)
			}
			t := &top{a: a, ctx: cmd.Context(), source: args[0], every: every, rate: -1}
			width, height, ok := a.terminal()
			in, isFile := a.in.(*os.File)
			if a.json() || !ok || !isFile || !term.IsTerminal(in.Fd()) || cmd.Flags().Changed("times") {
				return t.print(max(1, times), a.width())
			}
			t.width, t.height = width, height
			if !t.isLive() { // a file is read before the screen is taken: it may be the terminal itself
				if t.Update(t.load()()); t.s == nil {
					if cmd.Context().Err() != nil {
						return nil // interrupted, which is how one leaves
					}
					return t.err
				}
			}
			_, err := tea.NewProgram(t, tea.WithContext(cmd.Context()), tea.WithInput(a.in), tea.WithOutput(a.out),
				tea.WithColorProfile(colorprofile.Detect(a.out, os.Environ())), tea.WithoutSignalHandler()).Run()
			if cmd.Context().Err() != nil {
				return nil
			}
			if err == nil && t.s == nil {
				err = t.err // there was nothing to show; nil if that was not waited for
			}
			return err
		},
	}
	c.Flags().DurationVar(&every, "every", 2*time.Second, "how often to look, at most every second")
	c.Flags().Var(ranged[int]{&times, 0, math.MaxInt}, "times", "print as often as this `number` says, and end; 0 means until q is pressed")
	return c
}

// top is what is shown, and where it comes from.
type top struct {
	a      *app
	ctx    context.Context
	source string
	every  time.Duration

	s             *rcmgr.Snapshot // what was found; nil until the first answer
	whole         *rcmgr.Snapshot
	sought        string  // the search that s answers
	rate          float64 // refusals a second since the snapshot before; -1 if it is not known
	err           error   // of the last look
	width, height int

	view     int
	orders   [views]order
	from     int // the first row that is shown
	find     string
	isTyping bool // a text to search for is being typed
	isNew    bool // the search has not been answered yet
	isPaused bool
}

type order struct {
	column  int // from 1; 0 is the order in which the table comes
	reverse bool
}

// The views. The first has two tables.
const (
	overview = iota
	fixedScopes
	peers
	names
	refusals
	views
)

var viewNames = [views]string{"Overview", "System", "Peers", "Protocols", "Refusals"}

// loaded is the message that a snapshot has come.
type loaded struct {
	s, whole *rcmgr.Snapshot
	find     string // what was looked for
	err      error
}

// tick is the message that it is time to look again.
type tick struct{}

func (t *top) isLive() bool { return isURL(t.source) }

// load returns the command that looks at the source.
func (t *top) load() tea.Cmd {
	find := t.find
	return func() tea.Msg {
		s, whole, err := t.a.found(t.ctx, t.source, find, 0)
		return loaded{s, whole, find, err}
	}
}

func (t *top) Init() tea.Cmd {
	if t.s == nil {
		return tea.Sequence(t.load(), t.wait())
	}
	return t.wait()
}

func (t *top) wait() tea.Cmd {
	if !t.isLive() {
		return nil
	}
	return tea.Tick(t.every, func(time.Time) tea.Msg { return tick{} })
}

func (t *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		t.width, t.height = msg.Width, msg.Height
	case tick:
		if t.isPaused {
			return t, t.wait()
		}
		return t, tea.Sequence(t.load(), t.wait())
	case loaded:
		if t.take(msg); t.s == nil { // the address is wrong, or nobody answers there
			return t, tea.Quit
		}
	case tea.KeyPressMsg:
		return t, t.press(msg)
	}
	return t, nil
}

// take stores a new snapshot. After an error, the last one stays.
func (t *top) take(l loaded) {
	t.err = l.err
	if l.err != nil {
		return
	}
	// A node with very many peers answers with the same snapshot for a few seconds.
	if t.s != nil && !l.whole.Taken.Equal(t.whole.Taken) {
		since := l.whole.Since(t.whole)
		var n uint64
		for _, r := range since.Refusals {
			n += r.Total()
		}
		if seconds := since.To.Sub(since.From).Seconds(); seconds > 0 {
			t.rate = float64(n) / seconds
		}
	}
	t.s, t.whole, t.sought = l.s, l.whole, l.find
	if t.isNew {
		t.isNew = false
		t.showFound()
	}
}

// showFound chooses a view that shows what was found. The present one stays if it does.
func (t *top) showFound() {
	found := [views]bool{}
	for i := range t.s.Scopes {
		switch t.s.Scopes[i].Kind {
		case rcmgr.KindPeer:
			found[peers] = true
		case rcmgr.KindService, rcmgr.KindProtocol:
			found[names] = true
		}
	}
	switch {
	case found[t.view]:
	case found[names] && !found[peers]:
		t.view = names
	default:
		t.view = peers
	}
}

func (t *top) press(k tea.KeyPressMsg) tea.Cmd {
	if t.isTyping {
		return t.typed(k)
	}
	if t.s == nil {
		switch k.String() {
		case "q", "ctrl+c", "esc":
			return tea.Quit
		}
		return nil
	}
	o := &t.orders[t.view]
	columns := len(t.tables()[len(t.tables())-1].columns)
	switch key := k.String(); key {
	case "q", "ctrl+c", "esc":
		if key == "esc" && t.find != "" {
			t.find, t.from = "", 0
			return t.load()
		}
		return tea.Quit
	case "1", "2", "3", "4", "5":
		t.view, t.from = int(key[0]-'1'), 0
	case "tab":
		t.view, t.from = (t.view+1)%views, 0
	case "shift+tab":
		t.view, t.from = (t.view+views-1)%views, 0
	case "s":
		o.column = (o.column + 1) % (columns + 1)
	case "S", "shift+s":
		o.column = (o.column + columns) % (columns + 1)
	case "r":
		o.reverse = !o.reverse
	case "p":
		t.isPaused = !t.isPaused
	case "/":
		t.isTyping, t.find = true, ""
	case "down", "j":
		t.from++
	case "up", "k":
		t.from--
	case "pgdown", "space":
		t.from += t.height / 2
	case "pgup":
		t.from -= t.height / 2
	case "home":
		t.from = 0
	}
	t.from = max(0, t.from)
	return nil
}

// typed takes a key of the text that is to be found.
func (t *top) typed(k tea.KeyPressMsg) tea.Cmd {
	switch k.String() {
	case "enter":
		t.isTyping, t.isNew, t.from = false, t.find != "", 0
		return t.load()
	case "esc", "ctrl+c":
		t.isTyping, t.find = false, ""
		return t.load()
	case "backspace":
		runes := []rune(t.find)
		t.find = string(runes[:max(0, len(runes)-1)])
	default:
		t.find += k.Text
	}
	return nil
}

// tables returns the tables of the view. The last one is scrolled and ordered.
func (t *top) tables() []*sheet {
	all := sheets(t.s, t.sought)
	var shown []*sheet
	switch t.view {
	case overview:
		near := limitSheet("Limits, the fullest first", worthShowing(t.s))
		near.order(2, false)
		shown = []*sheet{near, all[1]}
	case fixedScopes:
		shown = all[:1]
	case peers:
		shown = all[1:2]
	case names:
		shown = all[2:3]
	case refusals:
		shown = all[4:]
	}
	last := shown[len(shown)-1]
	if o := t.orders[t.view]; o.column > 0 || o.reverse {
		column := max(0, min(o.column, len(last.columns))-1)
		last.order(column, o.reverse)
		if last.by = "by " + last.named(column); o.reverse {
			last.by += ", reversed"
		}
	}
	return shown
}

func (t *top) View() tea.View {
	v := tea.NewView(strings.Join(t.lines(), "\n"))
	v.AltScreen, v.WindowTitle = true, "rcmgr top"
	return v
}

// lines returns the whole screen.
func (t *top) lines() []string {
	if t.s == nil {
		return []string{shortenEnd("waiting for "+nameOf(t.source), t.width), faint.Render(shortenEnd("q end", t.width))}
	}
	lines := head(t.whole, t.rate, t.width)
	if t.err != nil {
		lines = append(lines, alarm.Render(shortenEnd("not of now: "+t.err.Error(), t.width)))
	}
	var tabs []string
	for i, name := range viewNames {
		tab := fmt.Sprintf("%d %s", i+1, name)
		if i == t.view {
			tab = lipgloss.NewStyle().Reverse(true).Render(" " + tab + " ")
		} else {
			tab = " " + tab + " "
		}
		tabs = append(tabs, tab)
	}
	lines = append(lines, "", strings.Join(tabs, ""))
	tables := t.tables()
	room := t.height - len(lines) - 1 // the last line is for the keys
	for i, table := range tables {
		lines = append(lines, "", bold.Render(shortenEnd(table.heading(), t.width)))
		room -= 2
		rows := room
		from, ordered := 0, -1
		if i == len(tables)-1 {
			t.from = max(0, min(t.from, len(table.rows)-(rows-1)))
			from, ordered = t.from, t.orders[t.view].column-1
		} else {
			rows = min(len(table.rows)+1, room/2) // half of the screen at most
		}
		shown := table.lines(t.width, from, max(1, rows-1), ordered)
		lines = append(lines, shown...)
		room -= len(shown)
	}
	for len(lines) < t.height-1 {
		lines = append(lines, "")
	}
	lines = lines[:max(0, min(len(lines), t.height-1))]
	return append(lines, t.foot())
}

func (t *top) foot() string {
	switch {
	case t.isTyping:
		return "find: " + t.find + "▏"
	case t.find != "":
		return faint.Render(shortenEnd(fmt.Sprintf("found by %q · Esc shows everything · q ends", t.find), t.width))
	}
	keys := "Tab view · s order · r reverse · / find · ↑↓ scroll"
	if t.isLive() {
		keys += " · p pause"
	}
	keys += " · q end"
	if t.isPaused {
		keys = "paused · " + keys
	}
	return faint.Render(shortenEnd(keys, t.width))
}

// shortenEnd returns a text in a width, without its end.
func shortenEnd(s string, width int) string {
	if width <= 0 || lipgloss.Width(s) <= width {
		return s
	}
	return fit([]rune(s), width-1) + "…"
}

// print prints what the screen would show, as often as times says.
func (t *top) print(times, width int) error {
	if !t.isLive() {
		times = 1
	}
	for i := range times {
		if i > 0 {
			select {
			case <-t.ctx.Done():
				return fmt.Errorf("%s: %w", nameOf(t.source), errInterrupted)
			case <-time.After(t.every):
			}
		}
		msg := t.load()().(loaded)
		if msg.err != nil {
			return msg.err
		}
		t.take(msg)
		if t.a.json() {
			if err := json.NewEncoder(t.a.out).Encode(reportOf(t.s, t.whole)); err != nil {
				return err
			}
			continue
		}
		lines := head(t.whole, t.rate, t.a.sentenceWidth())
		for _, table := range t.tables() {
			lines = append(lines, "", bold.Render(table.heading()))
			lines = append(lines, table.lines(width, 0, mostPrinted, -1)...)
		}
		if i < times-1 {
			lines = append(lines, "")
		}
		if _, err := fmt.Fprintln(t.a.coloured(), strings.Join(lines, "\n")); err != nil {
			return err
		}
	}
	return nil
}

// mostPrinted is how many rows of a table top prints where there is no terminal.
const mostPrinted = 20
