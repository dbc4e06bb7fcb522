// Command replay reads the trace of a resource manager and shows what other limits would
// have admitted and refused, so that limits can be tuned on paper. The trace was written
// by WithTrace, of this package or of go-libp2p (rcmgr.json.gz), and may be compressed.
//
//	go run ./examples/replay -memory 2GiB -fds 4096 rcmgr.json.gz
//	go run ./examples/replay -limits a.json -limits b.json rcmgr.json.gz
//
// The limits are those of a node with this memory and this many descriptors, with the
// overrides of a file; if there are several files, each is tried. They apply to
// connections, streams, their peers, protocols and services, and the memory that these
// and the spans of other scopes hold. A trace has no addresses, so the gates are not
// asked. Connections and streams that were in an allowlisted scope may use it again.
//
// A connection or stream that the trace refused does not appear in it again. If other
// limits admit it, it behaves like others of its kind: it gets its peer or protocol after
// the median of their times, and ends after the median of their lives. It has a peer, or
// a protocol, of its own. Memory that was refused is reserved, and released at once.
package main

import (
	"fmt"
	"io"
	"math"
	"os"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/cmdline"
	"github.com/weir-p2p/rcmgr/internal/replay"
)

// columns is the width of a terminal that the tables fit.
const columns = 80

// settings are the values of the command line.
type settings struct {
	trace     *os.File
	plans     []replay.Plan // one for each file of overrides, or for the computed limits alone
	admission rcmgr.Admission
	top       int
}

func main() {
	s, err := settingsFrom(os.Args[1:])
	cmdline.ExitOn("replay", err)
	if err := run(os.Stdout, s); err != nil {
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
}

// settingsFrom reads the command line and the files of overrides, and opens the trace.
func settingsFrom(args []string) (settings, error) {
	s := settings{top: 10}
	var (
		node   rcmgr.NodeLimits
		files  []string
		linear bool
		trace  string
	)
	l := cmdline.New("replay").About(`
Reads the trace of a resource manager, and shows what other limits would have
admitted and refused. The trace was written by WithTrace, of this package or of
go-libp2p, and may be compressed.
`)
	l.Files(&files, "limits", "JSON `file` of overrides, by default none")
	l.Size(&node.MaxMemory, "memory", "`size` of what libp2p may use, by default half of what this process may use")
	l.Int(&node.MaxFileDescriptors, "fds", 1, math.MaxInt, "file `descriptors` that libp2p may use, by default half of those of this process")
	l.Bool(&linear, "linear", "read priorities as go-libp2p's manager does (AdmissionLinear)")
	l.Int(&s.top, "top", 1, math.MaxInt, "the `number` of lines in each list")
	l.Argument(&trace, "trace")
	if err := l.Parse(args); err != nil {
		return s, err
	}
	if linear {
		s.admission = rcmgr.AdmissionLinear
	}
	var err error
	if s.plans, err = plansOf(node, files); err != nil {
		return s, err
	}
	if s.trace, err = os.Open(trace); err != nil {
		return s, fmt.Errorf("invalid argument %q: expected the file of a trace: %w", trace, err)
	}
	return s, nil
}

// run closes the trace.
func run(out io.Writer, s settings) error {
	defer s.trace.Close()
	story, err := replay.Read(s.trace)
	if err != nil {
		return fmt.Errorf("%s: %w", s.trace.Name(), err)
	}
	story.Describe(out)
	for _, p := range s.plans {
		a, err := story.Replay(p.Limits, s.admission)
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		if err := a.Report(out, p.Name, s.top, columns); err != nil {
			return err
		}
	}
	return nil
}

// plansOf returns the limits of a node with the overrides of each file, or without overrides if
// there are no files.
func plansOf(node rcmgr.NodeLimits, files []string) (all []replay.Plan, err error) {
	if len(files) == 0 {
		files = []string{""}
	}
	for _, file := range files {
		p, err := replay.PlanOf(node, file)
		switch {
		case err != nil && file != "":
			return nil, cmdline.Wrong("limits", file, err)
		case err != nil:
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}
