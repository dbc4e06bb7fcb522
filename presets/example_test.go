package presets_test

import (
	"fmt"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/presets"
)

// A size that does not fit the node is an error that says how much it needs.
func ExampleRole_Limits() {
	small := rcmgr.NodeLimits{MaxMemory: 2 << 30, MaxFileDescriptors: 4096}
	_, err := presets.Relay.Limits(small, presets.Size{Members: 500, Circuits: 10_000})
	fmt.Println(err)
	_, err = presets.Validator.Limits(small, presets.Size{Conns: 100})
	fmt.Println(err)
	// Output:
	// presets: relay: 500 members and 10000 circuits need about 6312 MiB of memory, the node has 2048 MiB
	// presets: validator: Size.Conns is 100, but the role is sized by Members
}

// The roles, and the numbers that an operator knows of each.
func ExampleRoles() {
	for _, r := range presets.Roles() {
		fmt.Println(r, r.Takes())
	}
	// Output:
	// relay [Members Circuits]
	// validator [Members]
	// gateway [Conns]
	// light-client [Conns]
	// crawler [Conns]
	// bootstrapper [Conns]
}

// The role from a flag or a file.
func ExampleParse() {
	role, err := presets.Parse("gateway")
	fmt.Println(role, err)
	_, err = presets.Parse("boat")
	fmt.Println(err)
	// Output:
	// gateway <nil>
	// presets: no such role: "boat", expected one of relay, validator, gateway, light-client, crawler, bootstrapper
}
