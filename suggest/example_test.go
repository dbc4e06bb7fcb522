package suggest_test

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/weir-p2p/rcmgr/suggest"
)

// From the trace of a node to a file of limits.
func Example() {
	var seen suggest.Evidence
	if err := seen.ReadFile("testdata/soak.json.gz"); err != nil { // written by rcmgr.WithTrace
		panic(err)
	}
	p, err := seen.Propose(suggest.Options{Memory: 2 << 30, FileDescriptors: 4096})
	if err != nil {
		panic(err)
	}
	for _, r := range p.Reasons {
		if r.Place == "System.ConnsInbound" {
			fmt.Println(r.Place, "=", r.Value)
			fmt.Println("seen at most:", r.Seen, "decided by:", r.Rule, "sure:", r.Sure)
		}
	}
	fmt.Println("refused of what was seen:", len(p.Refused))
	// p.WriteLimits writes the file, and p.WriteComment the text beside it.

	// Output:
	// System.ConnsInbound = 16
	// seen at most: 7 decided by: floor sure: low
	// refused of what was seen: 0
}

// What the README shows.
var _ = func() error {
	var seen suggest.Evidence
	if err := seen.ReadFile("rcmgr.json.gz"); err != nil { // a trace, or snapshots in JSON
		return err
	}
	p, err := seen.Propose(suggest.Options{})
	if err != nil {
		return err
	}
	return p.WriteTable(os.Stdout) // and WriteLimits, WriteComment
}

// What docs/suggest.md shows.
var _ = func(files []string, limits, comment io.Writer) error {
	var seen suggest.Evidence
	for _, file := range files { // snapshots in JSON, traces
		if err := seen.ReadFile(file); err != nil {
			return err
		}
	}
	p, err := seen.Propose(suggest.Options{Memory: 2 << 30, FileDescriptors: 4096, ConnMgrHighWater: 400})
	if err != nil {
		return err
	}
	return errors.Join(
		p.WriteLimits(limits),   // JSON for rcmgr.ReadLimitsFile and NodeLimits.OverridesFile
		p.WriteComment(comment), // a paragraph for each limit, because JSON has no comments
		p.WriteTable(os.Stdout),
	)
}
