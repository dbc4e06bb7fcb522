package rcmgr

// What the gates keep, for people: how many subnets have connections, and which
// are the fullest. The locks of the gates are taken one at a time.

import (
	"cmp"
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// state returns what the gates keep, with the n fullest subnets.
func (g *gate) state(n int) GateState {
	var s GateState
	s.Subnets, s.RateBuckets = g.subnets.InUse()
	g.subnets.Busy(func(sub subnets.Share) {
		s.Fullest = offer(s.Fullest, SubnetState{sub.Subnet, sub.Use, sub.Limit}, n, compareFullness)
	})
	return s
}

// compareFullness orders the fullest first; of those as full, the first by address.
func compareFullness(a, b SubnetState) int {
	part := func(s SubnetState) float64 { return float64(s.Conns) / float64(s.Limit) }
	return cmp.Or(cmp.Compare(part(b), part(a)), a.Prefix.Compare(b.Prefix))
}

// SubnetState is how many connections one subnet has.
type SubnetState struct {
	Prefix netip.Prefix
	Conns  int64
	Limit  int64
}

// GateState is what the gates keep. It is read a little later than the scopes.
type GateState struct {
	// Subnets counts the subnets that have connections, each prefix length on
	// its own; RateBuckets those that have connected lately.
	Subnets     int
	RateBuckets int
	// Fullest has the subnets and networks with the most of their limit taken,
	// the fullest first.
	Fullest []SubnetState
}
