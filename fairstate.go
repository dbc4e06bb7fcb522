package rcmgr

// What the groups of WithFairShare hold, as snapshots show it.

import (
	"cmp"
	"net/netip"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/groups"
	"github.com/weir-p2p/rcmgr/internal/ip"
)

// FairShareState is what the groups that WithFairShare counts hold.
type FairShareState struct {
	// Scopes are the scopes that have shares. It is empty if the option is off.
	Scopes []Kind
	// Subnets is how many subnets have inbound connections, or peers that came with one.
	Subnets int
	// Largest are the subnets that hold the most, by their connections and streams in the
	// system scope.
	Largest []SubnetShare
	// Groups are the networks and owners that hold the most, owners first, at most as many of
	// each as there may be subnets in Largest.
	Groups []GroupShare `json:",omitempty"`
}

// SubnetShare is what all peers of one subnet hold of the standard scopes: inbound
// connections, those of them that take a descriptor, and inbound streams.
type SubnetShare struct {
	Prefix    netip.Prefix
	System    SubnetUse
	Transient SubnetUse
}

// SubnetUse is what a subnet holds of one scope.
type SubnetUse struct{ ConnsInbound, FD, StreamsInbound int64 }

// GroupShare is what all peers of a network or of an owner hold of the standard scopes.
type GroupShare struct {
	// Prefix is an IPv4 /16, or an IPv6 /48 or /32. It is invalid if Owner is set.
	Prefix netip.Prefix `json:",omitzero"`
	// Owner is a name that the function of WithOwners has returned.
	Owner     string `json:",omitempty"`
	System    SubnetUse
	Transient SubnetUse
	// Outbound is what this host is about to open there, and is in the transient scope.
	Outbound OutboundUse
}

// OutboundUse is what a host is about to open: connections without a peer, and streams without a
// protocol.
type OutboundUse struct{ Conns, Streams int64 }

func (s *SubnetUse) total() int64 { return s.ConnsInbound + s.StreamsInbound }

// total returns by how much the largest groups are found.
func (s *GroupShare) total() int64 {
	return s.System.total() + s.Outbound.Conns + s.Outbound.Streams
}

// state returns the n subnets, networks and owners that hold the most.
func (f *fairShare) state(n int) FairShareState {
	if f == nil {
		return FairShareState{}
	}
	s := FairShareState{Scopes: f.scopes.list()}
	var owners, networks []GroupShare
	f.Each(func(g *groups.Group) {
		share := shareOf(g)
		switch {
		case g.IsSubnet():
			if g.Came() {
				s.Subnets++
				s.Largest = offer(s.Largest, SubnetShare{share.Prefix, share.System, share.Transient}, n, compareSubnets)
			}
		case g.Owner() != "":
			owners = offer(owners, share, n, compareGroups)
		case share.total() > 0:
			networks = offer(networks, share, n, compareGroups)
		}
	})
	s.Groups = append(owners, networks...)
	return s
}

func shareOf(g *groups.Group) GroupShare {
	use := func(in groups.Scope) SubnetUse {
		return SubnetUse{g.Holds(in, groups.ConnsIn), g.Holds(in, groups.FDs), g.Holds(in, groups.StreamsIn)}
	}
	return GroupShare{Prefix: g.Prefix(), Owner: g.Owner(), System: use(groups.System), Transient: use(groups.Transient),
		Outbound: OutboundUse{g.Holds(groups.Transient, groups.ConnsOut), g.Holds(groups.Transient, groups.StreamsOut)}}
}

func compareSubnets(a, b SubnetShare) int {
	return cmp.Or(cmp.Compare(b.System.total(), a.System.total()), ip.ComparePrefixes(a.Prefix, b.Prefix))
}

func compareGroups(a, b GroupShare) int {
	return cmp.Or(cmp.Compare(b.total(), a.total()), ip.ComparePrefixes(a.Prefix, b.Prefix), strings.Compare(a.Owner, b.Owner))
}
