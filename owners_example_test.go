package rcmgr_test

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/gaissmai/bart"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr"
)

// ownerTable says who owns a network.
type ownerTable struct{ bart.Table[string] }

// readOwners reads a file with a prefix and the name of its owner in each line, such as
// "192.0.2.0/24 AS64496".
func readOwners(file string) (*ownerTable, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := new(ownerTable)
	names := make(map[string]string) // each name is kept once, whatever its networks are
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("%s:%d: expected a prefix and a name", file, n)
		}
		prefix, err := netip.ParsePrefix(fields[0])
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, n, err)
		}
		if _, known := names[fields[1]]; !known {
			names[fields[1]] = strings.Clone(fields[1])
		}
		t.Insert(prefix, names[fields[1]])
	}
	return t, lines.Err()
}

// of returns the owner of an address, or "" if it is not known. It takes no lock, because the
// table does not change.
func (t *ownerTable) of(addr netip.Addr) string {
	name, _ := t.Lookup(addr)
	return name
}

// A table of owners is read from a file. While the host has little room left, all networks of an
// owner have one share.
func ExampleWithOwners() {
	owners, err := readOwners("testdata/owners.txt")
	if err != nil {
		fmt.Println(err)
		return
	}
	limits := rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{ConnsInbound: 8}}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)),
		rcmgr.WithFairShare(), rcmgr.WithOwners(owners.of))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rm.Close()
	for _, from := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4", "203.0.113.1"} {
		_, err := rm.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/"+from+"/tcp/4001"))
		fmt.Println(from, "of", owners.of(netip.MustParseAddr(from)), "admitted:", err == nil)
	}

	// Output:
	// 192.0.2.1 of AS64496 admitted: true
	// 192.0.2.2 of AS64496 admitted: true
	// 192.0.2.3 of AS64496 admitted: true
	// 198.51.100.1 of AS64496 admitted: true
	// 198.51.100.2 of AS64496 admitted: true
	// 198.51.100.3 of AS64496 admitted: false
	// 198.51.100.4 of AS64496 admitted: false
	// 203.0.113.1 of AS64497 admitted: true
}
