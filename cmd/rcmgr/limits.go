package main

// The commands about limits: "check", "replay", "suggest" and "presets".

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/replay"
	"github.com/weir-p2p/rcmgr/presets"
	"github.com/weir-p2p/rcmgr/suggest"
)

// machine has the flags that say what a node has.
type machine struct {
	memory    size
	fds       number
	highWater number
	noConnMgr bool
}

func (m *machine) flags(c *cobra.Command, memoryDefault string) {
	f := c.Flags()
	f.Var(&m.memory, "memory", "`size` of what libp2p may use, such as 2GiB"+memoryDefault)
	f.Var(&m.fds, "fds", "file `descriptors` that libp2p may use"+memoryDefault)
	f.Var(&m.highWater, "high-water", "`number` of connections above which the connection manager closes some")
}

// machineFlags are the flags of a machine.
var machineFlags = []string{"memory", "fds", "high-water"}

// firstGiven returns the first of some flags that was given, or "".
func firstGiven(c *cobra.Command, names ...string) string {
	if i := slices.IndexFunc(names, c.Flags().Changed); i >= 0 {
		return names[i]
	}
	return ""
}

func (m *machine) node() rcmgr.NodeLimits {
	return rcmgr.NodeLimits{MaxMemory: int64(m.memory), MaxFileDescriptors: int(m.fds),
		ConnMgrHighWater: int(m.highWater), NoConnMgr: m.noConnMgr}
}

// checked is what the check of a file found, as JSON.
type checked struct {
	File     string
	Faults   []fault  `json:",omitempty"`
	Warnings []string `json:",omitempty"`
}

type fault struct {
	Line, Column int    `json:",omitempty"`
	Path         string `json:",omitempty"`
	Problem      string
}

// faultsOf returns the faults in an error of the package rcmgr.
func faultsOf(err error) (all []fault) {
	if err == nil {
		return nil
	}
	list := []error{err}
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		list = many.Unwrap()
	}
	for _, one := range list {
		var at *rcmgr.ConfigError
		if errors.As(one, &at) {
			all = append(all, fault{at.Line, at.Column, at.Path, at.Err.Error()})
		} else {
			all = append(all, fault{Problem: one.Error()})
		}
	}
	return all
}

func (f fault) String() string {
	var text string
	if f.Line > 0 {
		text = fmt.Sprintf("line %d, column %d: ", f.Line, f.Column)
	}
	if f.Path != "" && !strings.HasPrefix(f.Problem, f.Path+" ") { // or else the problem begins with the place
		text += f.Path + ": "
	}
	return text + f.Problem
}

func (a *app) checkCommand() *cobra.Command {
	var m machine
	c := &cobra.Command{
		Use:   "check FILE…",
		Short: "Check files of limits: every fault with its line",
		Long: `Check files of limits, such as libp2p-resource-limit-overrides.json of Kubo, as
strictly as rcmgr.ReadLimitsFile does: unknown and repeated names, negative
numbers, wrong peer IDs, text after the end, limits that contradict each other.
With the size of the machine, the limits are built as for a node of this size,
and also checked against its computed limits; with --high-water, against its
connection manager. Limits that can never be reached are warnings. A file that
is called - is the standard input.

The exit code is 0 if all files are fine, 1 if one has a fault, and 2 if one
cannot be read. Warnings count only with --strict.`,
		Example: "  rcmgr check limits.json\n  rcmgr check --memory 2GiB --fds 4096 --high-water 400 limits.json\n  rcmgr presets relay | rcmgr check -",
		Args:    arguments(1, 0, "one or more files of limits"),
	}
	m.flags(c, "; by default half of what this computer has")
	c.Flags().BoolVar(&m.noConnMgr, "no-conn-manager", false, "the node has no connection manager")
	var strict bool
	c.Flags().BoolVar(&strict, "strict", false, "warnings are faults")
	c.RunE = func(cmd *cobra.Command, files []string) error {
		if m.noConnMgr && cmd.Flags().Changed("high-water") {
			return usage("--high-water does not go with --no-conn-manager: expected one of them")
		}
		if err := checkInputs("a file of limits", files...); err != nil {
			return err
		}
		var all []checked
		wrong := false
		for _, file := range files {
			found, err := a.check(cmd.Context(), m.node(), file)
			if err != nil {
				return err
			}
			wrong = wrong || len(found.Faults) > 0 || strict && len(found.Warnings) > 0
			all = append(all, found)
		}
		if err := a.writeChecked(all); err != nil {
			return err
		}
		if wrong {
			return &outcome{code: exitWrong}
		}
		return nil
	}
	return c
}

// check returns what is wrong with a file of limits.
func (a *app) check(ctx context.Context, node rcmgr.NodeLimits, name string) (checked, error) {
	found := checked{File: nameOf(name)}
	file, done, err := a.limitsFile(ctx, name)
	if err != nil {
		return found, err
	}
	defer done()
	if isSnapshot(file) {
		found.Faults = []fault{{Problem: "it is a snapshot, not a file of limits"}}
		return found, nil
	}
	node.OverridesFile = file
	limits, err := node.Build()
	var at *fs.PathError
	if errors.As(err, &at) {
		return found, usage("%w", at)
	}
	found.Faults = faultsOf(err)
	for i := range found.Faults {
		f := &found.Faults[i]
		f.Problem = strings.ReplaceAll(f.Problem, file, found.File) // which may be a copy
	}
	if err == nil {
		found.Warnings = limits.Warnings()
	}
	return found, nil
}

func (a *app) writeChecked(all []checked) error {
	if a.json() {
		return a.writeJSON(all)
	}
	var text bytes.Buffer
	out := &text
	for _, c := range all {
		for _, f := range c.Faults {
			fmt.Fprintf(out, "%s: %s\n", c.File, alarm.Render(f.String()))
		}
		for _, f := range c.Warnings {
			fmt.Fprintf(out, "%s: %s %v\n", c.File, near.Render("warning:"), f)
		}
		if len(c.Faults)+len(c.Warnings) == 0 {
			fmt.Fprintf(out, "%s: fine\n", c.File)
		}
	}
	_, err := a.coloured().Write(text.Bytes())
	return err
}

func (a *app) replayCommand() *cobra.Command {
	var m machine
	var files []string
	var linear bool
	var top number = 10
	c := &cobra.Command{
		Use:   "replay TRACE",
		Short: "Say what other limits would have admitted and refused of a trace",
		Long: `Read the trace of a resource manager, which WithTrace of rcmgr or of go-libp2p
has written (rcmgr.json.gz), and say what other limits would have admitted and
refused, and which of them came nearest to being full. The limits are those of
a node with this memory and this many descriptors, with the overrides of a
file; if there are several files, each is tried. A file that is called - is the
standard input.

A trace has no addresses, so gates are not asked. A request that was refused in
the trace and is admitted now stays as long as others of its kind.`,
		Example: "  rcmgr replay --memory 2GiB --fds 4096 rcmgr.json.gz\n  rcmgr replay --limits a.json --limits b.json rcmgr.json.gz",
		Args:    arguments(1, 1, "the file of a trace"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var admission rcmgr.Admission
			if linear {
				admission = rcmgr.AdmissionLinear
			}
			plans, err := a.plansOf(cmd.Context(), m.node(), files)
			if err != nil {
				return err
			}
			name := nameOf(args[0])
			if isURL(args[0]) {
				return usage("%s is the address of a page: expected the file of a trace", name)
			}
			story, err := within(cmd.Context(), name, func() (*replay.Story, error) {
				f, err := a.open(args[0])
				if err != nil {
					return nil, err
				}
				defer f.Close()
				in := bufio.NewReader(f)
				if start, _ := in.Peek(512); beginsSnapshot.Match(start) {
					return nil, fmt.Errorf("%s: it is a snapshot, not a trace", name)
				}
				story, err := replay.Read(in)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				return story, nil
			})
			if err != nil {
				return err
			}
			if !a.json() {
				var text bytes.Buffer
				story.Describe(&text)
				if _, err := a.out.Write(text.Bytes()); err != nil {
					return err
				}
			}
			type answer struct {
				Limits  string
				Answers *replay.Answers
			}
			out := struct {
				Gaps  []string `json:",omitempty"`
				Tried []answer
			}{Gaps: story.Gaps()}
			width := a.width()
			for _, p := range plans {
				answers, err := within(cmd.Context(), name, func() (*replay.Answers, error) { return story.Replay(p.Limits, admission) })
				if err != nil {
					return fmt.Errorf("%s: %w", p.Name, err)
				}
				out.Tried = append(out.Tried, answer{p.Name, answers})
				if !a.json() {
					if err := answers.Report(a.out, p.Name, int(top), width); err != nil {
						return err
					}
				}
			}
			if a.json() {
				return a.writeJSON(out)
			}
			return nil
		},
	}
	m.flags(c, "; by default half of what this computer has")
	f := c.Flags()
	f.StringArrayVar(&files, "limits", nil, "`file` of overrides; may be given more than once")
	f.BoolVar(&linear, "linear", false, "read the priorities of memory as go-libp2p's manager does")
	f.Var(&top, "top", "`lines` of each list")
	return c
}

// plansOf returns the limits of a node with the overrides of each file, or without overrides if
// there are no files.
func (a *app) plansOf(ctx context.Context, node rcmgr.NodeLimits, files []string) (all []replay.Plan, err error) {
	if len(files) == 0 {
		files = []string{""}
	}
	for _, file := range files {
		p, err := a.planOf(ctx, node, file)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// planOf returns the limits of a node with the overrides of a file, if it has a name.
func (a *app) planOf(ctx context.Context, node rcmgr.NodeLimits, name string) (p replay.Plan, err error) {
	file := name
	if name != "" {
		if err := checkInputs("a file of limits", name); err != nil {
			return p, err
		}
		var done func()
		if file, done, err = a.limitsFile(ctx, name); err != nil {
			return p, err
		}
		defer done()
		if isSnapshot(file) {
			return p, usage("%s is a snapshot, not a file of limits", nameOf(name))
		}
	}
	p, err = replay.PlanOf(node, file)
	if file != name { // a copy, which nobody knows
		p.Name = nameOf(name)
		if err != nil {
			return p, usage("%s", strings.ReplaceAll(err.Error(), file, p.Name))
		}
	}
	if err != nil {
		return p, usage("%w", err)
	}
	return p, nil
}

func (a *app) suggestCommand() *cobra.Command {
	var m machine
	margin := 2.0
	var base, limits, comment string
	var linear, force bool
	c := &cobra.Command{
		Use:   "suggest SOURCE…",
		Short: "Propose limits from what was seen, each with its reason",
		Long: `Propose a file of limits from what was seen of a node: its page, saved
snapshots, traces that WithTrace of rcmgr or of go-libp2p has written, or all
of these. More snapshots, and those of busy times without an attack, make the
proposal more reliable.

Without --limits, the table of reasons is printed. With it, the file of limits
is written, too, and with --comment the reasons. Files that exist are replaced
only with --force, each as a whole.

The exit code is 1 if the proposal would have refused some of what was seen.`,
		Example: `  rcmgr suggest http://127.0.0.1:6060/rcmgr
  rcmgr suggest --limits limits.json --comment limits.txt rcmgr.json.gz monday.json tuesday.json`,
		Args: arguments(1, 0, "one or more sources: pages, snapshots or traces"),
		RunE: func(cmd *cobra.Command, sources []string) error {
			if limits != "" && comment != "" && (limits == comment || isSameFile(limits, comment)) {
				return usage("--limits and --comment name the same file, %s", limits)
			}
			for _, f := range []struct{ flag, name string }{{"limits", limits}, {"comment", comment}} {
				if !cmd.Flags().Changed(f.flag) {
					continue
				}
				if f.name == "" || f.name == "-" {
					return usage("invalid value %q for flag --%s: expected the name of a file", f.name, f.flag)
				}
				if i := slices.IndexFunc(sources, func(s string) bool { return isSameFile(s, f.name) }); i >= 0 {
					return usage("--%s names a source, %s: expected another file", f.flag, sources[i])
				}
				if err := checkOutput(f.name, force); err != nil {
					return err
				}
			}
			o := suggest.Options{Margin: margin, Memory: int64(m.memory), FileDescriptors: int(m.fds), ConnMgrHighWater: int(m.highWater)}
			if linear {
				o.Admission = rcmgr.AdmissionLinear
			}
			if base != "" {
				plans, err := a.plansOf(cmd.Context(), m.node(), []string{base})
				if err != nil {
					return err
				}
				o.Base = &plans[0].Limits
			}
			var seen suggest.Evidence
			for _, source := range sources {
				if err := a.see(cmd, &seen, source); err != nil {
					return err
				}
			}
			p, err := within(cmd.Context(), "the proposal", func() (*suggest.Proposal, error) { return seen.Propose(o) })
			if err != nil {
				return withoutPrefix(err)
			}
			for _, f := range []struct {
				name  string
				write func(io.Writer) error
			}{{limits, p.WriteLimits}, {comment, p.WriteComment}} {
				if f.name == "" {
					continue
				}
				var text bytes.Buffer
				if err := f.write(&text); err != nil {
					return err
				}
				if err := writeFile(f.name, text.Bytes(), force); err != nil {
					return err
				}
			}
			if a.json() {
				err = a.writeJSON(p)
			} else {
				err = a.writeProposal(p)
			}
			if err == nil && len(p.Refused) > 0 {
				err = &outcome{code: exitWrong}
			}
			return err
		},
	}
	m.flags(c, "; by default what the snapshot says")
	f := c.Flags()
	f.Var(ranged[float64]{&margin, 1, 1000}, "margin", "a limit is this `factor` above what was usually held at most")
	f.StringVar(&base, "base", "", "`file` of limits that the proposal is built on")
	f.StringVar(&limits, "limits", "", "write the proposed limits to this `file`")
	f.StringVar(&comment, "comment", "", "write the reasons to this `file`")
	forceFlag(c, &force)
	f.BoolVar(&linear, "linear", false, "read the priorities of memory in a trace as go-libp2p's manager does")
	return c
}

// writeProposal writes the table of a proposal, in the width of the terminal if there is one.
func (a *app) writeProposal(p *suggest.Proposal) error {
	if err := a.writeSheet(proposalSheet(p)); err != nil {
		return err
	}
	return p.WriteNotes(a.out)
}

// proposalSheet returns the table of a proposal. Where the terminal is narrow, it has the proposed
// limits, what was seen, and the rule.
func proposalSheet(p *suggest.Proposal) *sheet {
	t := &sheet{empty: "Nothing is proposed.", name: 44}
	spare := map[string]int{"Holders": 5, "Refused": 4, "Was": 3, "Usual": 2, "Sure": 1}
	for i, title := range suggest.Columns {
		t.columns = append(t.columns, column{title, i >= 1 && i <= 6, spare[title]})
	}
	for i := range p.Reasons {
		t.rows = append(t.rows, row{cells: p.Reasons[i].Cells(), near: p.Reasons[i].Refused > 0})
	}
	return t
}

// see adds a source to what was seen.
func (a *app) see(cmd *cobra.Command, seen *suggest.Evidence, source string) error {
	if isURL(source) || source == "-" {
		s, _, err := a.snapshot(cmd.Context(), source, nil)
		if err != nil {
			return err
		}
		if err := seen.AddSnapshot(s); err != nil {
			return fmt.Errorf("%s: %w", nameOf(source), withoutPrefix(err))
		}
		return nil
	}
	_, err := within(cmd.Context(), source, func() (any, error) {
		if err := checkInputs("a snapshot or a trace", source); err != nil {
			return nil, err
		}
		return nil, withoutPrefix(seen.ReadFile(source))
	})
	return err
}

// withoutPrefix returns an error of package suggest without the name of the package.
func withoutPrefix(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.TrimPrefix(err.Error(), "suggest: "))
}

func (a *app) presetsCommand() *cobra.Command {
	var m machine
	var members, circuits, conns number
	sizes := []string{"members", "circuits", "conns"}
	roles := make([]string, 0)
	for _, r := range presets.Roles() {
		roles = append(roles, r.String())
	}
	c := &cobra.Command{
		Use:   "presets [ROLE]",
		Short: "Print limits for a role, such as a relay or a validator",
		Long: `Print a file of limits for a node with a role, sized by the number that its
operator knows. Without a role, list the roles and what each is sized by.`,
		Example:   "  rcmgr presets\n  rcmgr presets relay --members 500 --circuits 1000 > limits.json",
		Args:      arguments(0, 1, "no role, or one"),
		ValidArgs: roles,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				if name := firstGiven(cmd, slices.Concat(sizes, machineFlags)...); name != "" {
					return usage("--%s does not go without a role: expected one of %s", name, strings.Join(roles, ", "))
				}
				return a.listRoles()
			}
			role, err := presets.Parse(args[0])
			if err != nil {
				return usage("%w", err)
			}
			for _, name := range sizes {
				takes := slices.ContainsFunc(role.Takes(), func(s string) bool { return strings.EqualFold(s, name) })
				if cmd.Flags().Changed(name) && !takes {
					return usage("%v is not sized by --%s: expected --%s", role, name, strings.ToLower(strings.Join(role.Takes(), " or --")))
				}
			}
			limits, err := role.Limits(m.node(), presets.Size{Members: int(members), Circuits: int(circuits), Conns: int(conns)})
			if err != nil {
				return usage("%w", err)
			}
			return a.writeJSON(&limits)
		},
	}
	m.flags(c, "; by default half of what this computer has")
	f := c.Flags()
	f.Var(&members, "members", "`number` of the members of the network")
	f.Var(&circuits, "circuits", "`number` of circuits that are relayed at a time")
	f.Var(&conns, "conns", "`number` of connections")
	return c
}

func (a *app) listRoles() error {
	type role struct {
		Role    presets.Role
		Purpose string
		SizedBy []string
	}
	var all []role
	for _, r := range presets.Roles() {
		all = append(all, role{r, r.Purpose(), r.Takes()})
	}
	if a.json() {
		return a.writeJSON(all)
	}
	t := &sheet{columns: []column{{"Role", false, 0}, {"Sized By", false, 0}, {"Purpose", false, 0}}}
	for _, r := range all {
		by := "memory"
		if len(r.SizedBy) > 0 {
			by = "--" + strings.ToLower(strings.Join(r.SizedBy, ", --"))
		}
		t.rows = append(t.rows, row{cells: []string{r.Role.String(), by, r.Purpose}})
	}
	return a.writeSheet(t)
}
