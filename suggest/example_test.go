package suggest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/weir-p2p/rcmgr"
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

// A snapshot that a program takes itself, and the sentence with which a limit is explained.
func ExampleEvidence_AddSnapshot() {
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), rcmgr.WithMetricsDisabled())
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	for range 30 {
		conn, err := rm.OpenConnection(network.DirInbound, false, nil)
		if err != nil {
			panic(err)
		}
		defer conn.Done()
	}

	var seen suggest.Evidence
	now := rm.SnapshotTop(100) // in a program, every minute or so
	now.Started, now.Taken = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC), time.Date(2026, 1, 2, 3, 20, 0, 0, time.UTC)
	if err := seen.AddSnapshot(&now); err != nil {
		panic(err)
	}
	p, err := seen.Propose(suggest.Options{Memory: 2 << 30, FileDescriptors: 4096})
	if err != nil {
		panic(err)
	}
	for _, r := range p.Reasons {
		if r.Place == "System.ConnsInbound" {
			fmt.Println(r.Place, "=", r.Text)
			fmt.Println(r.Why)
		}
	}
	// Output:
	// System.ConnsInbound = 60
	// At most 30 seen at 2026-01-02T03:20:00Z. The limit is 2 times the usual or 1.5 times the highest value, rounded up to two digits. Sureness is low: 1 look in 20m0s.
}

// The proposal as a file that a node reads.
func ExampleProposal_WriteLimits() {
	var seen suggest.Evidence
	if err := seen.ReadFile("testdata/soak.json.gz"); err != nil {
		panic(err)
	}
	p, err := seen.Propose(suggest.Options{Memory: 2 << 30, FileDescriptors: 4096})
	if err != nil {
		panic(err)
	}
	var file bytes.Buffer
	if err := p.WriteLimits(&file); err != nil {
		panic(err)
	}
	limits, err := rcmgr.ReadLimits(&file)
	if err != nil {
		panic(err)
	}
	fmt.Println("inbound streams:", limits.System.StreamsInbound)
	fmt.Println("of one peer:", limits.PeerDefault.StreamsInbound)
	// Output:
	// inbound streams: 24
	// of one peer: 16
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
