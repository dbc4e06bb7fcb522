// Command compare runs the benchmarks of this manager and of its rivals in turn, several
// times, and prints the time of each rival as a multiple of ours: the median over the
// rounds, the least and the most. A disturbance in a round affects every implementation,
// so ratios are steadier than times.
//
//	go run ./examples/compare [-bench regexp] [-rounds 5] [-time 100ms] [-cpu] [-json file]
//
// With -cpu, it compares processor time, including all of the garbage collector's,
// instead of elapsed time. That is the cost of a round, and other programs on the machine
// hardly affect it. It is measured on Unix only.
//
// The command needs the source of the package, and a few minutes.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

// settings are the values of the command line.
type settings struct {
	bench   string
	rounds  int
	length  time.Duration
	measure string // the unit of go test that is compared
	results string // the file for the results, "" for none
}

func main() {
	s, err := settingsFrom(os.Args[1:])
	cmdline.ExitOn("compare", err)
	if err = run(s); errors.Is(err, errNoBenchmark) {
		cmdline.ExitOn("compare", err) // a mistake in -bench that only running the benchmarks shows
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// settingsFrom reads the command line.
func settingsFrom(args []string) (settings, error) {
	s := settings{bench: "HotPath|Gates", rounds: 5, length: 100 * time.Millisecond, measure: "ns/op"}
	var cpu bool
	l := cmdline.New("compare").About(`
Runs the benchmarks of this manager and of its rivals in turn, and prints the
time of each rival as a multiple of ours: the median over the rounds, the least
and the most. Needs the source of the package, and a few minutes.
`)
	l.Text(&s.bench, "bench", "the benchmarks, as a regular `expression`", "a regular expression")
	l.Int(&s.rounds, "rounds", 1, math.MaxInt, "the `number` of runs of each benchmark")
	l.Duration(&s.length, "time", "the `time` for which each is measured")
	l.Bool(&cpu, "cpu", "compare processor time in place of elapsed time")
	l.File(&s.results, "json", "also write the results to this `file`")
	if err := l.Parse(args); err != nil {
		return s, err
	}
	if err := checkPattern(s.bench); err != nil {
		return s, cmdline.Wrong("bench", s.bench, err)
	}
	if cpu {
		s.measure = "cpu-ns/op"
	}
	if cpu && runtime.GOOS == "windows" {
		return s, cmdline.Wrong("cpu", "true", errors.New("expected on Unix, whose benchmarks measure it"))
	}
	return s, cmdline.CheckOutput("json", s.results)
}

// checkPattern returns an error unless go test accepts a pattern: each part between
// slashes, except for slashes in brackets and parentheses, must be a regular expression.
func checkPattern(pattern string) error {
	var parts []string
	from, brackets, parentheses := 0, 0, 0
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\':
			i++
		case c == '[':
			brackets++
		case c == ']':
			brackets = max(brackets-1, 0) // a single ] is an ordinary character
		case brackets > 0:
		case c == '(':
			parentheses++
		case c == ')':
			parentheses--
		case c == '/' && parentheses == 0:
			parts = append(parts, pattern[from:i])
			from = i + 1
		}
	}
	for _, part := range append(parts, pattern[from:]) {
		if _, err := regexp.Compile(part); err != nil {
			return fmt.Errorf("expected regular expressions between slashes: %w", err)
		}
	}
	return nil
}

func run(s settings) error {
	dir, err := os.MkdirTemp("", "compare")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(os.Stderr, "building")
	binary := filepath.Join(dir, "rcmgr.test")
	build := exec.Command("go", "test", "-c", "-o", binary, "github.com/weir-p2p/rcmgr")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the benchmarks: %w", err)
	}
	r := report{
		Go: runtime.Version(), Arch: runtime.GOOS + "/" + runtime.GOARCH, Processors: runtime.NumCPU(),
		Rounds: s.rounds, Time: s.length.String(), Measure: s.measure,
	}
	once, err := measure(binary, s.bench, "1x", r.Measure)
	if errors.Is(err, errNoBenchmark) {
		return cmdline.Wrong("bench", s.bench, err)
	}
	if err != nil {
		return err
	}
	r.Processor = once.processor
	for round := range s.rounds {
		for i, name := range once.names() {
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %3d of %d  %-70s", round+1, s.rounds, i+1, len(once.names()), name)
			m, err := measure(binary, exactly("Benchmark"+name), s.length.String(), r.Measure)
			if err != nil {
				return err
			}
			r.add(name, m.lines)
		}
	}
	fmt.Fprintln(os.Stderr)
	r.total()
	r.print(os.Stdout)
	if s.results == "" {
		return nil
	}
	text, err := json.MarshalIndent(&r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(s.results, append(text, '\n'), 0o644)
}

// exactly returns a pattern that matches all implementations of one benchmark.
func exactly(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

// line is one result of a benchmark.
type line struct {
	name string // without the implementation
	impl string
	Result
}

// Result is the cost of one operation.
type Result struct {
	Nanoseconds float64 // in the unit that is compared
	Allocations float64
}

// measurement has the output of one run of the benchmarks.
type measurement struct {
	processor string
	lines     []line
}

// names returns the name of each benchmark that was run, once.
func (m *measurement) names() (names []string) {
	for _, l := range m.lines {
		if !slices.Contains(names, l.name) {
			names = append(names, l.name)
		}
	}
	return names
}

func measure(binary, pattern, length, unit string) (*measurement, error) {
	cmd := exec.Command(binary, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", length)
	var out, failure bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failure
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", pattern, err, &out, &failure)
	}
	return parse(&out, unit)
}

var errNoBenchmark = errors.New("expected to match a benchmark that names an implementation")

// parse reads the benchmark output of go test, with the nanoseconds in a unit. It skips
// benchmarks without an implementation in their name.
func parse(text io.Reader, unit string) (*measurement, error) {
	var m measurement
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		if cpu, ok := strings.CutPrefix(lines.Text(), "cpu: "); ok {
			m.processor = cpu
		}
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name, impl, ok := strings.Cut(fields[0], "/impl=")
		if !ok {
			continue
		}
		l := line{name: strings.TrimPrefix(name, "Benchmark"), impl: withoutProcs(impl)}
		for i := 2; i+1 < len(fields); i += 2 {
			n, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", lines.Text(), err)
			}
			switch fields[i+1] {
			case unit:
				l.Nanoseconds = n
			case "allocs/op":
				l.Allocations = n
			}
		}
		m.lines = append(m.lines, l)
	}
	if len(m.lines) == 0 && lines.Err() == nil {
		return nil, errNoBenchmark
	}
	return &m, lines.Err()
}

// withoutProcs removes the number of processors that go test appends to names.
func withoutProcs(impl string) string {
	at := strings.LastIndexByte(impl, '-')
	if _, err := strconv.Atoi(impl[at+1:]); at < 0 || err != nil {
		return impl
	}
	return impl[:at]
}

// report has the results of all rounds.
type report struct {
	Go, Arch, Processor string
	Processors          int
	Rounds              int
	Time                string // of each benchmark in a round
	Measure             string // the unit of go test that is compared
	Cases               []*benchCase
}

// benchCase is one workload, with the results of each implementation by round.
type benchCase struct {
	Name    string
	Results map[string][]Result
	Ratios  map[string]Spread // a rival's time as a multiple of ours
}

// Spread is the median, the least and the most over the rounds.
type Spread struct{ Median, Least, Most float64 }

func (r *report) add(name string, lines []line) {
	at := slices.IndexFunc(r.Cases, func(c *benchCase) bool { return c.Name == name })
	if at < 0 {
		at = len(r.Cases)
		r.Cases = append(r.Cases, &benchCase{Name: name, Results: make(map[string][]Result)})
	}
	c := r.Cases[at]
	for _, l := range lines {
		c.Results[l.impl] = append(c.Results[l.impl], l.Result)
	}
	c.Ratios = c.ratios()
}

// ours is the implementation that all others are compared with.
const ours = "ours"

func (c *benchCase) ratios() map[string]Spread {
	ratios := make(map[string]Spread)
	for impl, results := range c.Results {
		if impl == ours || len(results) != len(c.Results[ours]) {
			continue
		}
		var all []float64
		for i, r := range results {
			all = append(all, r.Nanoseconds/c.Results[ours][i].Nanoseconds)
		}
		ratios[impl] = spreadOf(all)
	}
	return ratios
}

func spreadOf(all []float64) Spread {
	slices.Sort(all)
	middle := len(all) / 2
	median := all[middle]
	if len(all)%2 == 0 {
		median = (all[middle-1] + all[middle]) / 2
	}
	return Spread{median, all[0], all[len(all)-1]}
}

var work = regexp.MustCompile("work=[^/]*")

// total appends a case for each set of cases that differ only in the workload: a round of
// each of them, one after the other.
func (r *report) total() {
	var names []string
	of := make(map[string][]*benchCase)
	for _, c := range r.Cases {
		name := work.ReplaceAllString(c.Name, "work=all")
		if of[name] == nil {
			names = append(names, name)
		}
		of[name] = append(of[name], c)
	}
	for _, name := range names {
		if len(of[name]) > 1 {
			r.Cases = append(r.Cases, sumOf(name, of[name]))
		}
	}
}

// sumOf adds up the cases round by round, for implementations that have run all of them.
func sumOf(name string, cases []*benchCase) *benchCase {
	sum := &benchCase{Name: name, Results: make(map[string][]Result)}
	for impl, first := range cases[0].Results {
		all := slices.Clone(first)
		for _, c := range cases[1:] {
			if len(c.Results[impl]) != len(all) {
				all = nil
				break
			}
			for i, one := range c.Results[impl] {
				all[i].Nanoseconds += one.Nanoseconds
				all[i].Allocations += one.Allocations
			}
		}
		if all != nil {
			sum.Results[impl] = all
		}
	}
	sum.Ratios = sum.ratios()
	return sum
}

// print writes two tables in Markdown for each set of cases that differ only in the
// workload: medians, and the least and the most.
func (r *report) print(to io.Writer) {
	fmt.Fprintf(to, "%s, %s, %d × %s;\n%s, medians of %d rounds of %s each.\n", r.Go, r.Arch, r.Processors, r.Processor, r.Measure, r.Rounds, r.Time)
	fmt.Fprint(to, "Rivals as multiples of ours; * without metrics.\n")
	for _, name := range r.sets() {
		cases := r.set(name)
		rivals := rivalsIn(cases)
		fmt.Fprintf(to, "\n%s:\n\n", name)
		rows := [][]string{append([]string{"workload", "ours, ns"}, heads(rivals)...)}
		for _, c := range cases {
			var times []float64
			for _, result := range c.Results[ours] {
				times = append(times, result.Nanoseconds)
			}
			row := []string{c.workload(), fmt.Sprintf("%.0f", spreadOf(times).Median)}
			rows = append(rows, append(row, c.cells(rivals, func(s Spread) string { return fmt.Sprintf("%.1f", s.Median) })...))
		}
		table(to, rows)
		fmt.Fprint(to, "\nThe least and the most, and the allocations of ours:\n\n")
		rows = [][]string{append([]string{"workload", "allocs"}, heads(rivals)...)}
		for _, c := range cases {
			allocations := 0.0
			for _, result := range c.Results[ours] {
				allocations = max(allocations, result.Allocations)
			}
			row := []string{c.workload(), fmt.Sprint(allocations)}
			rows = append(rows, append(row, c.cells(rivals, func(s Spread) string { return fmt.Sprintf("%.1f–%.1f", s.Least, s.Most) })...))
		}
		table(to, rows)
	}
}

// setOf returns the name of a case without its workload.
func setOf(name string) string {
	return strings.Trim(strings.ReplaceAll(work.ReplaceAllString(name, ""), "//", "/"), "/")
}

// workload returns the workload of a case, or its whole name if it names none.
func (c *benchCase) workload() string {
	if w, ok := strings.CutPrefix(work.FindString(c.Name), "work="); ok {
		return w
	}
	return c.Name
}

// sets returns the names of the cases without their workloads, each once.
func (r *report) sets() (names []string) {
	for _, c := range r.Cases {
		if name := setOf(c.Name); !slices.Contains(names, name) && len(c.Results[ours]) > 0 {
			names = append(names, name)
		}
	}
	return names
}

// set returns the cases that differ only in the workload.
func (r *report) set(name string) (cases []*benchCase) {
	for _, c := range r.Cases {
		if setOf(c.Name) == name && len(c.Results[ours]) > 0 {
			cases = append(cases, c)
		}
	}
	return cases
}

func rivalsIn(cases []*benchCase) (rivals []string) {
	for _, c := range cases {
		for impl := range c.Ratios {
			if !slices.Contains(rivals, impl) {
				rivals = append(rivals, impl)
			}
		}
	}
	slices.Sort(rivals)
	return rivals
}

func heads(rivals []string) (heads []string) {
	for _, impl := range rivals {
		heads = append(heads, strings.Replace(impl, "-without-metrics", "*", 1))
	}
	return heads
}

// cells returns what is shown of each rival, with nothing for one that has not run the case.
func (c *benchCase) cells(rivals []string, show func(Spread) string) (cells []string) {
	for _, impl := range rivals {
		cell := ""
		if s, ok := c.Ratios[impl]; ok {
			cell = show(s)
		}
		cells = append(cells, cell)
	}
	return cells
}

// table writes rows of cells; the first row is the head.
func table(to io.Writer, rows [][]string) {
	out := tabwriter.NewWriter(to, 0, 0, 1, ' ', 0)
	for i, row := range rows {
		fmt.Fprintf(out, "| %s\t|\n", strings.Join(row, "\t| "))
		if i == 0 {
			fmt.Fprintf(out, "|---%s\t|\n", strings.Repeat("\t|---", len(row)-1))
		}
	}
	out.Flush()
}
