package rcmgr_test

// The three levels of limits, as docs/limits.md shows them.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/weir-p2p/rcmgr"
)

// Nothing to set: the limits are those of go-libp2p, for what this process may
// use.
func ExampleNew_nothing() {
	rm, err := rcmgr.New(nil)
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	sizing := rm.Snapshot().Sizing
	fmt.Println(sizing.Rules, sizing.Memory == sizing.Machine.Memory/8)
	// Output:
	// ScalingLimitConfig true
}

// Two numbers, and the high water mark of the connection manager: all other limits
// follow as they do in Kubo.
func ExampleNewForNode() {
	rm, err := rcmgr.NewForNode(rcmgr.NodeLimits{
		MaxMemory:          2 << 30,
		MaxFileDescriptors: 4096,
		ConnMgrHighWater:   1200,
	})
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	limits := rm.Limits().ToPartialLimitConfig()
	fmt.Println("system:", limits.System.ConnsInbound, "inbound connections; transient:", limits.Transient.ConnsInbound)
	// Output:
	// system: 2400 inbound connections; transient: 512
}

// Everything: a file of overrides. What it does not say is computed.
func ExampleReadLimitsFile() {
	name := overridesFile(`{
  "System": {"ConnsInbound": 3000, "Memory": "1536MiB"},
  "Protocol": {"/my/protocol/1.0.0": {"StreamsInbound": 500}},
  "Costs": {"Conn": "64KiB"}
}`)
	overrides, err := rcmgr.ReadLimitsFile(name)
	if err != nil {
		panic(err)
	}
	rm, err := rcmgr.NewForNode(rcmgr.NodeLimits{MaxMemory: 2 << 30, MaxFileDescriptors: 4096, Overrides: overrides})
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	var some []rcmgr.ConfigSetting
	for _, s := range rm.Limits().Settings() {
		if strings.HasSuffix(s.Place, ".ConnsInbound") && s.Value != "unlimited" || strings.HasPrefix(s.Place, "Costs.") {
			some = append(some, s)
		}
	}
	for _, s := range some[:2] {
		fmt.Println(s.Place, s.Value, s.Origin)
	}
	fmt.Println(some[len(some)-2])
	// Output:
	// System.ConnsInbound 3000 override
	// Transient.ConnsInbound 512 node
	// {Costs.Conn 65536 override}
}

// A slip in the file is found at once.
func ExampleReadLimitsFile_slip() {
	_, err := rcmgr.ReadLimitsFile(overridesFile(`{
  "System": {"ConnInbound": 3000}
}`))
	_, text, _ := strings.Cut(err.Error(), "limits.json: ")
	fmt.Println(text)
	// Output:
	// line 2, column 14: System.ConnInbound: unknown name, did you mean ConnsInbound? Known here are Streams, StreamsInbound, StreamsOutbound, Conns, ConnsInbound, ConnsOutbound, FD, Memory, Rates
}

// Limits can be changed while the manager runs.
func ExampleManager_SetLimits() {
	defaults, err := rcmgr.NodeLimits{MaxMemory: 2 << 30, MaxFileDescriptors: 4096}.Build()
	if err != nil {
		panic(err)
	}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(defaults))
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	raise := func() error {
		more := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: 5000}}
		return rm.SetLimits(rcmgr.NewFixedLimiter(more.Build(rm.Limits())))
	}
	if err := raise(); err != nil {
		panic(err)
	}

	text, err := rm.Limits().Diff(defaults).MarshalJSON()
	fmt.Println(string(text), err)
	// Output:
	// {"System":{"ConnsInbound":5000}} <nil>
}

func overridesFile(text string) string {
	dir, err := os.MkdirTemp("", "limits")
	if err != nil {
		panic(err)
	}
	name := filepath.Join(dir, "limits.json")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		panic(err)
	}
	return name
}

func _() {
	_ = func(rm *rcmgr.Manager, cm connmgr.ConnManager, defaults rcmgr.ConcreteLimitConfig) error {
		if err := rm.CheckConnManager(cm); err != nil {
			return err
		}
		text, err := rm.Limits().Diff(defaults).MarshalJSON() // only what differs
		if err != nil {
			return err
		}
		return errors.Join(
			os.WriteFile("limits.json", text, 0o600),
			rm.Limits().Settings().WriteTable(os.Stdout), // everything, with its origin
		)
	}
}
