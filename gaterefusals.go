package rcmgr

// Refusals of the gates in the types of this package: as errors, and in counts and remarks by
// kind and dimension.

import (
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// wayOf returns the direction of connections of a dimension.
func wayOf(d dim) subnets.Way { return subnets.Way(d - dimConnsIn) }

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
	e.why = refusal{scope: &e.name, d: dimConnsIn + dim(r.Way), cause: gateCauses[r.Gate],
		priority: network.ReservationPriorityAlways, current: r.Limit, asked: 1, limit: r.Limit}
	return &e.LimitError
}

// dialRefusal is gateRefusal for the rate of dials.
func dialRefusal(r subnets.Refusal) error {
	return placed(r, placeOfDials, placeOfDialsByName)
}

// streamRefusal is gateRefusal for the rate of streams.
func streamRefusal(r subnets.Refusal) error {
	e := placed(r, placeOfStreams, placeOfStreamsByName)
	e.why.d = dimStreamsIn + dim(r.Way)
	return e
}

// placed returns a refusal whose limit has another place in the configuration: one for all
// subnets of a size, or one for networks that are named.
func placed(r subnets.Refusal, ofAll, ofName limitPlace) *LimitError {
	e, _ := gateRefusal(r).(*LimitError)
	e.asked.place = ofAll
	if r.Rule == subnets.ThisNetwork {
		e.asked.place = ofName
	}
	return e
}

// addGateCounts adds counts of the gates to counts by kind and dimension, from the first one on.
func addGateCounts(to *[numKinds]dimCounts, counts *subnets.Counts, first dim) {
	for g, k := range gateKinds {
		for w, n := range counts[g] {
			to[k][first+dim(w)] += n
		}
	}
}

// takeFromGates adds the counts and notes of the gates to refusals that are not logged yet.
func takeFromGates(to *unloggedRefusals, said *subnets.Said, first dim) {
	addGateCounts(&to.counts, &said.Counts, first)
	for g, k := range gateKinds {
		for w, n := range said.Notes[g] {
			if n.Told {
				worst := majority{Name: nameAtGate(subnets.Gate(g), n.Worst.Name), Votes: n.Worst.Votes}
				to.said[k][first+dim(w)].add(&remark{true, n.Limit, n.Limit, gateCauses[g], 1 << gateCauses[g], worst})
			}
		}
	}
}
