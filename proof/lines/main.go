// Command lines counts the cache lines that come over from another core in one round of a
// workload: lines that the round reads or writes, and that another thread has written last.
// Each such line costs more than most of what is computed. So these lines, rather than waits
// for locks, bound what a second core gains.
//
//	go run ./proof/lines stream      # in the top directory of the repository
//
// Two threads take turns, each with peers of its own, and valgrind writes down every access to
// memory. This needs valgrind, on Linux, and about a minute for each workload. The result does not
// depend on how fast the machine is.
package main

import (
	"bufio"
	"cmp"
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

const (
	lineBytes = 64
	warm      = 128 // rounds of each thread that come before those that are counted
	marks     = "github.com/weir-p2p/rcmgr.lineMarks"
)

func parse(args []string) (workload string, err error) {
	l := cmdline.New("lines").About(`
Counts the cache lines that come over from another core in one round of a
workload. Needs valgrind, on Linux, and about a minute for each workload.
`)
	l.Argument(&workload, "memory, span, stream, connection or refusal")
	return workload, l.Parse(args)
}

func main() {
	workload, err := parse(os.Args[1:])
	cmdline.ExitOn("lines", err)
	if err := measure(workload); err != nil {
		fmt.Fprintln(os.Stderr, "lines:", err)
		os.Exit(1)
	}
}

// measure runs the workload under valgrind, and prints what it has counted.
func measure(workload string) error {
	dir, err := os.MkdirTemp("", "lines")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "rcmgr.test")
	build := exec.Command("go", "test", "-tags", "valgrind", "-c", "-o", program, ".")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the tests: %w", err)
	}
	code, at, err := symbols(program)
	if err != nil {
		return err
	}
	run := exec.Command("valgrind", "--tool=lackey", "--trace-mem=yes", "--log-fd=2", program,
		"-test.run", "^TestTwoThreadsTakeTurns$", "-rcmgr.lines", workload)
	run.Env = append(os.Environ(), "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	var said strings.Builder
	run.Stdout = &said
	accesses, err := run.StderrPipe()
	if err != nil {
		return err
	}
	if err := run.Start(); err != nil {
		return err
	}
	t := trace{marks: at, lines: make(map[uint64]*line), moves: make(map[move]int)}
	if err := errors.Join(t.read(accesses), run.Wait()); err != nil {
		return fmt.Errorf("%w\n%s", err, said.String())
	}
	return t.print(os.Stdout, code)
}

// symbols returns the table of the program's functions, and the address of the marks.
func symbols(program string) (*gosym.Table, uint64, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	lines, err := f.Section(".gopclntab").Data()
	if err != nil {
		return nil, 0, err
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(lines, f.Section(".text").Addr))
	if err != nil {
		return nil, 0, err
	}
	all, err := f.Symbols()
	for _, s := range all {
		if s.Name == marks {
			return table, s.Value, nil
		}
	}
	return nil, 0, errors.Join(err, errors.New("the program has no symbol "+marks))
}

// A line is a cache line as the two threads have it.
type line struct {
	writer int    // the thread that wrote it last, from 1; 0 if neither has
	code   uint64 // the instruction that wrote it last
	shared bool   // the other thread has read it since
}

// trace counts what the accesses of both threads make of the lines.
type trace struct {
	marks  uint64
	thread int // that does a round, from 1; 0 between rounds
	code   uint64
	rounds int
	lines  map[uint64]*line
	moves  map[move]int // the lines that came over
}

// A move is a line that an instruction wrote in one thread and another needed in the other.
type move struct{ wrote, needs uint64 }

// read reads valgrind's list of accesses, such as " S 1ffeffe7f0,8".
func (t *trace) read(r io.Reader) error {
	in := bufio.NewReaderSize(r, 1<<20)
	for {
		text, err := in.ReadSlice('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if len(text) < 5 || text[0] != ' ' && text[0] != 'I' {
			continue
		}
		kind := text[0]
		if kind == ' ' {
			kind = text[1]
		}
		if t.thread == 0 && kind != 'S' {
			continue
		}
		address, size, ok := strings.Cut(strings.TrimSpace(string(text[3:])), ",")
		if !ok {
			continue
		}
		at, err := strconv.ParseUint(address, 16, 64)
		if err != nil {
			continue // a message of valgrind's
		}
		if kind == 'I' {
			t.code = at
			continue
		}
		n, err := strconv.ParseUint(size, 10, 64)
		if err != nil {
			return fmt.Errorf("valgrind wrote %q, expected the size of an access", text)
		}
		if mark := (at - t.marks) / 8; at >= t.marks && mark < 3 {
			t.begin(int(mark))
		} else if t.thread != 0 {
			for l := at / lineBytes; l <= (at+n-1)/lineBytes; l++ {
				t.access(l, kind != 'L')
			}
		}
	}
}

// begin begins a round of the first or second thread, or ends one.
func (t *trace) begin(mark int) {
	if t.thread = mark + 1; mark == 2 {
		t.thread = 0
		t.rounds++
	}
}

func (t *trace) access(at uint64, write bool) {
	l := t.lines[at]
	if l == nil {
		l = new(line)
		t.lines[at] = l
	}
	if l.writer != 0 && l.writer != t.thread && !l.shared && t.rounds >= 2*warm {
		t.moves[move{l.code, t.code}]++
	}
	switch {
	case write:
		l.writer, l.code, l.shared = t.thread, t.code, false
	case l.writer != t.thread:
		l.shared = true
	}
}

// place is where an instruction is.
type place struct {
	name string // of the function, with the line of source
	ours bool   // it is in rcmgr, and not in a test
}

func placeOf(code *gosym.Table, pc uint64) place {
	file, number, f := code.PCToLine(pc)
	if f == nil {
		return place{}
	}
	name, ours := strings.CutPrefix(f.Name, "github.com/weir-p2p/")
	return place{fmt.Sprintf("%s (%s:%d)", name, filepath.Base(file), number), ours && !strings.HasSuffix(file, "_test.go")}
}

// print prints how many lines came over for a round, and which places in the code they are for.
func (t *trace) print(w io.Writer, code *gosym.Table) error {
	rounds := t.rounds - 2*warm
	if rounds <= 0 {
		return fmt.Errorf("the trace has %d rounds, expected more than %d", t.rounds, 2*warm)
	}
	byPlace, ours, others := make(map[string]int), 0, 0
	for m, n := range t.moves {
		needs, wrote := placeOf(code, m.needs), placeOf(code, m.wrote)
		if needs.ours && wrote.ours {
			ours += n
			byPlace[needs.name+", written at "+wrote.name] += n
		} else {
			others += n
		}
	}
	per := func(n int) float64 { return float64(n) / float64(rounds) }
	fmt.Fprintf(w, "%.1f lines a round come over from the other core, and %.1f of the Go runtime and the test\n", per(ours), per(others))
	for _, place := range slices.SortedFunc(maps.Keys(byPlace), func(a, b string) int {
		return cmp.Or(byPlace[b]-byPlace[a], strings.Compare(a, b))
	}) {
		if share := per(byPlace[place]); share >= 0.05 {
			fmt.Fprintf(w, "%6.2f  %s\n", share, place)
		}
	}
	return nil
}
