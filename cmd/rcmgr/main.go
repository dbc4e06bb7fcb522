// Command rcmgr is for operators of a node: it shows what its resource manager holds and what
// stands in the way, checks files of limits, and proposes limits from what was seen.
// docs/command.md has an introduction, and rcmgr help has all commands.
//
// A command that looks at a node takes the address of its page (rcmgr.Handler), or a snapshot
// that was saved. The exit code is 0 if all is well, 1 if something is not as it should be or
// could not be done, and 2 if the command line is wrong. docs/command.md has all cases.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	"github.com/weir-p2p/rcmgr/internal/bytesize"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// The exit codes.
const (
	exitFine  = 0
	exitWrong = 1 // something is wrong, or could not be done
	exitUsage = 2 // the command line is wrong, or names a file that cannot be read
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process, whatever it does
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run runs a command line and returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) (code int) {
	defer func() { // the code of a panic is that of a wrong command line
		if fault := recover(); fault != nil {
			fmt.Fprintf(errOut, "rcmgr: a fault of rcmgr itself, please report it with what RCMGR_STACK=1 adds: %v\n", fault)
			if os.Getenv("RCMGR_STACK") != "" {
				if c, ok := fault.(*crash); ok {
					errOut.Write(c.stack)
				}
				errOut.Write(debug.Stack())
			}
			code = exitWrong
		}
	}()
	root := newRoot(&app{in: in, out: out})
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	var done *outcome
	switch {
	case err == nil:
		return exitFine
	case !errors.As(err, &done): // an error of cobra's is about the command line
		done = &outcome{exitUsage, err}
	}
	if done.err != nil {
		fmt.Fprintln(errOut, "rcmgr:", strings.TrimSpace(done.err.Error()))
	}
	return done.code
}

// within returns what f returns, or an error as soon as the context ends. What f does is then left
// behind: nothing else interrupts the read of a terminal or a FIFO. name is what f reads, for the
// error.
func within[T any](ctx context.Context, name string, f func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
		fault *crash
	}
	done := make(chan answer, 1)
	go func() {
		var got answer
		defer func() {
			if value := recover(); value != nil {
				got.fault = &crash{value, debug.Stack()}
			}
			done <- got
		}()
		got.value, got.err = f()
	}()
	select {
	case got := <-done:
		if got.fault != nil {
			panic(got.fault) // where run reports it
		}
		return got.value, got.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%s: %w", name, errInterrupted)
	}
}

// errInterrupted is the error of a command that Ctrl-C has ended.
var errInterrupted = errors.New("interrupted")

// crash is a panic of a function that within has called.
type crash struct {
	value any
	stack []byte
}

func (c *crash) String() string { return fmt.Sprint(c.value) }

// outcome is the error of a command, with its exit code. If it has no error, the command has
// already printed what is wrong.
type outcome struct {
	code int
	err  error
}

func (o *outcome) Error() string {
	if o.err == nil {
		return fmt.Sprintf("exit code %d", o.code)
	}
	return o.err.Error()
}

func (o *outcome) Unwrap() error { return o.err }

// usage returns the error of a command line that is wrong.
func usage(format string, args ...any) error { return &outcome{exitUsage, fmt.Errorf(format, args...)} }

// arguments returns the check of a command that takes from least to most arguments; most is 0 for
// any number. what describes them, for the error.
func arguments(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= least && (most == 0 || len(args) <= most) {
			return nil
		}
		example, _, _ := strings.Cut(strings.TrimSpace(c.Example), "\n")
		return usage("%s: expected %s, got %s; for example: %s", c.Name(), what, text.Plural(len(args), "argument"), example)
	}
}

// app has what all commands share.
type app struct {
	in      io.Reader
	out     io.Writer
	output  string // "text" or "json"
	wide    bool   // tables are as wide as their content
	timeout time.Duration
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "rcmgr",
		Short: "Look at the resource manager of a libp2p node, and find limits for it",
		Long: `rcmgr shows what the resource manager of a libp2p node holds and what stands in
the way, checks files of limits, and proposes limits from what was seen.

SOURCE is the address of the node's page, such as http://127.0.0.1:6060/rcmgr,
which the program serves with rcmgr.Handler; or the file of a snapshot that
"rcmgr snapshot" has saved; or - for a snapshot on the standard input.

The exit code is 0 if all is well, 1 if something is wrong or could not be
done, and 2 if the command line is wrong, for example if it names a file that
does not exist.

Tables fit the terminal, or 80 columns without one: long names lose their
middle. With --wide, and in JSON, they are whole. With NO_COLOR in the
environment, or without a terminal, there are no colours.`,
		Version:       version(),
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case a.output != "text" && a.output != "json":
				return usage("invalid value %q for flag --output: expected text or json", a.output)
			case a.timeout <= 0:
				return usage("invalid value %q for flag --timeout: expected a duration of more than 0, such as 10s", a.timeout)
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", "text", "`form` of the output: text or json")
	flags.BoolVar(&a.wide, "wide", false, "do not shorten names: tables are as wide as their content")
	flags.DurationVar(&a.timeout, "timeout", 10*time.Second, "how long to wait for an answer of the node")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		a.topCommand(), a.tableCommand(), a.explainCommand(), a.snapshotCommand(),
		a.checkCommand(), a.diffCommand(), a.replayCommand(), a.suggestCommand(), a.presetsCommand(),
		manCommand(root),
	)
	for _, c := range root.Commands() {
		if c.RunE != nil {
			c.RunE = withOutcome(c.RunE)
		}
	}
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", fmt.Sprintf(".FlagUsagesWrapped %d", pipeWidth)))
	root.SetVersionTemplate("{{.Version}}\n")
	return root
}

// version returns the version of the module that the command was built from, and its revision.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text := info.Main.Version + " " + info.GoVersion
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			text += " " + s.Value
		}
	}
	return text
}

// withOutcome returns f, whose errors get the exit code 1 unless they have another.
func withOutcome(f func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd, args)
		var done *outcome
		if err == nil || errors.As(err, &done) {
			return err
		}
		return &outcome{exitWrong, err}
	}
}

// json reports whether the output is to be JSON.
func (a *app) json() bool { return a.output == "json" }

// writeJSON writes a value as indented JSON.
func (a *app) writeJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// terminal returns the width and height of the terminal. ok is false if the output is not a
// terminal.
func (a *app) terminal() (width, height int, ok bool) {
	f, isFile := a.out.(*os.File)
	if !isFile || !term.IsTerminal(f.Fd()) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(f.Fd())
	return width, height, err == nil && width > 0
}

// pipeWidth is the width of tables where there is no terminal.
const pipeWidth = 80

// width returns the width of tables: that of the terminal, pipeWidth, or 0, which is no bound.
func (a *app) width() int {
	if a.wide {
		return 0
	}
	if width, _, ok := a.terminal(); ok {
		return width
	}
	return pipeWidth
}

// sentenceWidth returns the width of sentences: that of the terminal, or 0, which is no bound. In a
// pipe they stay whole, so that a program finds them.
func (a *app) sentenceWidth() int {
	width, _, _ := a.terminal()
	return width
}

// writeSheet writes a table in the width of the output.
func (a *app) writeSheet(t *sheet) error {
	_, err := fmt.Fprintln(a.coloured(), strings.Join(t.lines(a.width(), 0, 0, -1), "\n"))
	return err
}

// coloured returns the output, which drops colours unless a terminal shows them.
func (a *app) coloured() io.Writer { return colorprofile.NewWriter(a.out, os.Environ()) }

// size is a flag that is a number of bytes, more than 0, with or without a unit.
type size int64

func (s *size) Set(text string) error {
	n, err := bytesize.Parse(text)
	if err != nil || n <= 0 {
		return errors.New("expected a size of more than 0, such as 512MiB or 2GiB")
	}
	*s = size(n)
	return nil
}

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return fmt.Sprint(int64(*s))
}

func (s *size) Type() string { return "size" }

// number is a flag that is a whole number of at least 1.
type number int

func (n *number) Set(text string) error { return ranged[int]{(*int)(n), 1, math.MaxInt}.Set(text) }

func (n *number) String() string {
	if *n == 0 {
		return ""
	}
	return fmt.Sprint(int(*n))
}

func (n *number) Type() string { return "number" }

// ranged is a flag that is a number from least to most. Its type says whether it is a whole one.
type ranged[N int | float64] struct {
	value       *N
	least, most N // most is math.MaxInt for no bound
}

func (r ranged[N]) Set(text string) error {
	v, err := r.parse(text)
	switch {
	case err == nil && v >= r.least && v <= r.most: // NaN is neither
		*r.value = v
		return nil
	case any(r.most) == any(math.MaxInt):
		return fmt.Errorf("expected a number of %v or more", r.least)
	}
	return fmt.Errorf("expected a number from %v to %v", r.least, r.most)
}

func (r ranged[N]) parse(text string) (v N, err error) {
	switch at := any(&v).(type) {
	case *int:
		*at, err = strconv.Atoi(text)
	case *float64:
		*at, err = strconv.ParseFloat(text, 64)
	}
	return v, err
}

func (r ranged[N]) String() string {
	if r.value == nil {
		return ""
	}
	return fmt.Sprint(*r.value)
}

func (r ranged[N]) Type() string { return "number" }

// The styles. A terminal chooses its own shades, so that they suit a light and a dark one.
var (
	bold  = lipgloss.NewStyle().Bold(true)
	faint = lipgloss.NewStyle().Faint(true)
	alarm = lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true)
	near  = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
)
