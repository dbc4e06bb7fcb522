package rcmgr

// Refusals of the gates in the types of this package: as errors, and in counts and remarks by
// kind and dimension.

import (
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// wayOf is the inverse of dimOf, for connections of one direction.
func wayOf(d dim) subnets.Way { return subnets.Way(d - dimConnsIn) }

// dimOf returns the dimension of connections of one direction.
func dimOf(w subnets.Way) dim { return dimConnsIn + dim(w) }

// The kinds, causes and places of this package for the gates and rules of package subnets.
var (
	gateKinds  = [subnets.Gates]Kind{subnets.Conns: KindSubnet, subnets.Rate: KindRate}
	gateCauses = [subnets.Gates]Cause{subnets.Conns: CauseSubnet, subnets.Rate: CauseRate}
	gatePlaces = [...]limitPlace{subnets.EverySubnet: placeOfAll, subnets.ThisNetwork: placeOfName, subnets.Elsewhere: placeOfCaller}
)

// nameAtGate returns the name of a subnet at a gate.
func nameAtGate(g subnets.Gate, of netip.Prefix) scopeName {
	return subnetName(gateKinds[g], ip.KeyOf(of.Addr()), of.Bits())
}

// gateError is a refusal together with the name of its subnet, so that both are one allocation.
type gateError struct {
	LimitError
	name scopeName
}

// gateRefusal returns a refusal of the gates as a *LimitError.
func gateRefusal(r subnets.Refusal) error {
	e := &gateError{name: nameAtGate(r.Gate, r.Subnet)}
	e.asked = askedScope{name: &e.name, place: gatePlaces[r.Rule]}
	e.why = refusal{scope: &e.name, d: dimOf(r.Way), cause: gateCauses[r.Gate],
		priority: network.ReservationPriorityAlways, current: r.Limit, asked: 1, limit: r.Limit}
	return &e.LimitError
}

// dialRefusal is gateRefusal for the rate of dials.
func dialRefusal(r subnets.Refusal) error {
	err := gateRefusal(r)
	if e, ok := err.(*LimitError); ok {
		e.asked.place = placeOfDials
		if r.Rule == subnets.ThisNetwork {
			e.asked.place = placeOfDialsByName
		}
	}
	return err
}

// addGateCounts adds counts of the gates to counts by kind and dimension.
func addGateCounts(to *[numKinds]dimCounts, counts *subnets.Counts) {
	for g, k := range gateKinds {
		for w, n := range counts[g] {
			to[k][dimOf(subnets.Way(w))] += n
		}
	}
}

// takeFromGates adds the counts and notes of the gates to refusals that are not logged yet.
func takeFromGates(to *unloggedRefusals, said *subnets.Said) {
	addGateCounts(&to.counts, &said.Counts)
	for g, k := range gateKinds {
		for w, n := range said.Notes[g] {
			if n.Told {
				worst := majority{Name: nameAtGate(subnets.Gate(g), n.Worst.Name), Votes: n.Worst.Votes}
				to.said[k][dimOf(subnets.Way(w))].add(&remark{true, n.Limit, n.Limit, gateCauses[g], worst})
			}
		}
	}
}
