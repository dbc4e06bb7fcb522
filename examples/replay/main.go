// Command replay reads the trace of a resource manager and says what other limits
// would have admitted and refused: how to tune on paper. The trace is one that
// WithTrace has written, this package's or go-libp2p's (rcmgr.json.gz), compressed
// or not.
//
//	go run ./examples/replay -memory 2GiB -fds 4096 rcmgr.json.gz
//	go run ./examples/replay -limits a.json -limits b.json rcmgr.json.gz
//
// Limits are those of a node with that memory and that many descriptors, and what
// a file of overrides says otherwise; with several files, each is tried. What is
// judged is connections, streams, their peers, protocols and services, and the
// memory that they and the spans of other scopes hold. A trace knows no addresses:
// the gates are not asked. Whoever stood in an allowlisted scope may do so again.
//
// What a trace refused has no further story. If other limits admit it, it is given
// the one that others of its kind have: it waits for its peer or protocol as long as
// the median of them, and ends after their median time. It is a peer, or has a
// protocol, of its own. Memory that was refused is asked for, and given back at once.
package main

import (
	"flag"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/weir-p2p/rcmgr"
)

// settings are what the limits are made from.
type settings struct {
	files     []string // of overrides; none is the computed limits alone
	memory    string
	fds       int
	admission rcmgr.Admission
	top       int
}

func main() {
	s := settings{}
	flag.Func("limits", "JSON `file` of overrides; may be given more than once", func(name string) error {
		s.files = append(s.files, name)
		return nil
	})
	flag.StringVar(&s.memory, "memory", "", "`size` of what libp2p may use, such as 2GiB; by default half of what this process may use")
	flag.IntVar(&s.fds, "fds", 0, "file `descriptors` that libp2p may use; by default half of those of this process")
	flag.BoolFunc("linear", "read priorities as go-libp2p's manager does (AdmissionLinear)", func(string) error {
		s.admission = rcmgr.AdmissionLinear
		return nil
	})
	flag.IntVar(&s.top, "top", 10, "`lines` of each list")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: replay [flags] trace")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(os.Stdout, flag.Arg(0), s); err != nil {
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, trace string, s settings) error {
	plans, err := s.plans()
	if err != nil {
		return err
	}
	file, err := os.Open(trace)
	if err != nil {
		return err
	}
	defer file.Close()
	story, err := readStory(file)
	if err != nil {
		return fmt.Errorf("%s: %w", trace, err)
	}
	story.describe(out)
	for _, p := range plans {
		a, err := replay(story, p)
		if err != nil {
			return err
		}
		if err := a.report(out, p.name, s.top); err != nil {
			return err
		}
	}
	return nil
}

// plan is limits to try.
type plan struct {
	name      string
	limits    rcmgr.ConcreteLimitConfig
	admission rcmgr.Admission
}

func (s *settings) plans() (all []plan, err error) {
	node := rcmgr.NodeLimits{MaxFileDescriptors: s.fds}
	if s.memory != "" {
		size, err := humanize.ParseBytes(s.memory)
		if err != nil || size > math.MaxInt64 {
			return nil, fmt.Errorf("-memory: no size: %q", s.memory)
		}
		node.MaxMemory = int64(size)
	}
	add := func(name string) error {
		limits, err := node.Build()
		all = append(all, plan{name, limits, s.admission})
		return err
	}
	if len(s.files) == 0 {
		return all, add("computed limits")
	}
	for _, file := range s.files {
		if node.Overrides, err = rcmgr.ReadLimitsFile(file); err == nil {
			err = add(file)
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
