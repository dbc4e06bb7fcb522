package rcmgr

// The state of the gates in a snapshot: how many subnets have connections, and which of
// them are the fullest. The locks of the gates are taken one at a time.

import (
	"cmp"
	"math"
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// state returns the state of the gates with the n fullest subnets.
func (g *gate) state(n int) GateState {
	s := GateState{Limits: *g.limits.over(nil)} // a copy
	s.Subnets, s.RateBuckets = g.inUse()
	least := math.Inf(-1) // no subnet that is less full is one of the fullest
	g.subnets.Busy(func(conns, limit int64) bool {
		return float64(conns)/float64(limit) >= least
	}, func(sub subnets.Share) {
		s.Fullest = offer(s.Fullest, SubnetState{sub.Subnet, sub.Use, sub.Limit}, n, compareFullness)
		if k := len(s.Fullest); k == n && k > 0 {
			least = float64(s.Fullest[k-1].Conns) / float64(s.Fullest[k-1].Limit)
		}
	})
	return s
}

// compareFullness orders the fullest first, and equally full subnets by address.
func compareFullness(a, b SubnetState) int {
	part := func(s SubnetState) float64 { return float64(s.Conns) / float64(s.Limit) }
	return cmp.Or(cmp.Compare(part(b), part(a)), ip.ComparePrefixes(a.Prefix, b.Prefix))
}

// SubnetState is how many connections one subnet has, and how many it may have.
type SubnetState struct {
	Prefix netip.Prefix
	Conns  int64
	Limit  int64
}

// GateState is the state of the gates. In a Snapshot, it is read a little later than the
// scopes.
type GateState struct {
	// Subnets counts the subnets that have connections, and RateBuckets those that have
	// connected lately. An address counts once for each prefix length that has a limit.
	Subnets     int
	RateBuckets int
	// Fullest lists the subnets and networks that have used up the largest part of their
	// limit on connections, the fullest first.
	Fullest []SubnetState
	// Limits are the limits in force, with all defaults filled in. With WithConnRateLimiters,
	// the rates in Limits.Rate are not in force: the program's limiter decides.
	Limits GateLimits `json:",omitzero"`
}
