package rcmgr

// Earmarks: a part of each limit of the system and transient scopes that only some peers and
// protocols may take. Other requests are refused once no more than that part is left, as streams
// are by the newcomers' quarter. So an earmark is a bound on what a scope may hold after a request
// (ration.go), decided on the exact sum together with the limit (I2). It needs no count of what its
// peers hold already: it keeps a part free for them beside that (DECISIONS.md).
//
// All earmarks together are at most half of a limit, because only above half does a decision ask
// which peer a request is for.
//
// The host is asked once a second, without locks, which peers an earmark is for. A decision looks
// into the last answer.

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Earmark keeps a part of each limit of the system and transient scopes for some peers and
// protocols. See WithEarmarks.
type Earmark struct {
	// Name is what Explain, Snapshot and errors call it, such as "validators".
	Name string
	// Part is the part of each limit, such as 0.25. All earmarks together have at most 0.5. Numbers
	// of connections and streams are rounded down.
	Part float64
	// Peers returns the peers that may take the part. It is called by New and then once a second,
	// without locks, and must return soon. The manager keeps no reference to the list. If Peers
	// panics, that is logged, it is not called again, and the last list stays.
	Peers func() []peer.ID
	// Allowlisted says that peers which the allowlist covers may take the part.
	Allowlisted bool
	// Protocols are the protocols whose streams, of any peer, may take the part.
	Protocols []protocol.ID
}

// EarmarkState is one earmark in a Snapshot.
type EarmarkState struct {
	Name        string
	Part        float64
	Peers       int           // that the last call of Earmark.Peers returned
	Allowlisted bool          `json:",omitempty"`
	Protocols   []protocol.ID `json:",omitempty"`
}

// earmarkSet is a set of earmarks, by their places in the list, and whether a request has any of
// them for certain.
type earmarkSet uint8

const (
	mostEarmarks = 7
	// hasEarmark is in the set of a request that has one of the earmarks. A stream without a
	// protocol may take more than those, since it may turn out to have them.
	hasEarmark earmarkSet = 1 << mostEarmarks
	// earmarkInterval is the time between two calls of Earmark.Peers.
	earmarkInterval = time.Second
	// earmarkUnit is what parts are counted in, so that a part of a number is exact.
	earmarkUnit = 1_000_000
)

// earmarks are those of one manager. A nil *earmarks has none.
type earmarks struct {
	list      []Earmark
	parts     []int64 // in units
	guards    []*guard
	protocols map[protocol.ID]earmarkSet
	// allowlisted are those of the allowlist, ofProtocols those that have protocols, and
	// onlyProtocols those that have nothing else.
	allowlisted, ofProtocols, onlyProtocols earmarkSet
	named                                   atomic.Pointer[namedPeers]
}

// namedPeers is what the host has named: the earmarks of each peer, and the number of peers of
// each earmark. It is not written to any more.
type namedPeers struct {
	of    map[peer.ID]earmarkSet
	count [mostEarmarks]int
}

// checkEarmarks returns what is wrong with earmarks, nil if nothing is.
func checkEarmarks(list []Earmark) error {
	sum, names, protocols := int64(0), map[string]bool{}, map[protocol.ID]string{}
	if len(list) > mostEarmarks {
		return fmt.Errorf("there are %d earmarks, expected at most %d", len(list), mostEarmarks)
	}
	for i, e := range list {
		at := fmt.Sprintf("earmark %d (%q)", i, e.Name)
		switch {
		case e.Name == "":
			return fmt.Errorf("earmark %d has no Name", i)
		case names[e.Name]:
			return fmt.Errorf("%s: another one has this Name", at)
		case !(e.Part > 0 && e.Part <= 0.5):
			return fmt.Errorf("%s: Part is %v, expected a number above 0 and at most 0.5", at, e.Part)
		case e.Peers == nil && !e.Allowlisted && len(e.Protocols) == 0:
			return fmt.Errorf("%s is for no peer and no protocol: set Peers, Allowlisted or Protocols", at)
		}
		for _, p := range e.Protocols {
			if p == "" {
				return fmt.Errorf("%s: a name in Protocols is empty", at)
			}
			if of, taken := protocols[p]; taken {
				return fmt.Errorf("%s: the protocol %q is in earmark %q already", at, p, of)
			}
			protocols[p] = e.Name
		}
		names[e.Name] = true
		sum += earmarkUnits(e.Part)
	}
	if sum > earmarkUnit/2 {
		return fmt.Errorf("the parts of all earmarks are %v together, expected at most 0.5: below half of a limit, nothing is kept free",
			float64(sum)/earmarkUnit)
	}
	return nil
}

func earmarkUnits(part float64) int64 { return int64(part*earmarkUnit + 0.5) }

// with returns the earmarks of m and others. They are asked for no peers yet.
func (m *earmarks) with(others []Earmark) (*earmarks, error) {
	list := others
	if m != nil {
		list = slices.Concat(m.list, others)
	}
	if err := checkEarmarks(list); err != nil || len(list) == 0 {
		return nil, err
	}
	return newEarmarks(list), nil
}

// newEarmarks returns earmarks that have been checked.
func newEarmarks(list []Earmark) *earmarks {
	m := &earmarks{protocols: make(map[protocol.ID]earmarkSet)}
	for i, e := range list {
		e.Protocols = slices.Clone(e.Protocols)
		m.list, m.parts = append(m.list, e), append(m.parts, earmarkUnits(e.Part))
		m.guards = append(m.guards, &guard{callback: "Earmark.Peers", then: "the peers that it named last stay"})
		for _, p := range e.Protocols {
			m.protocols[p] |= 1 << i
		}
		if e.Allowlisted {
			m.allowlisted |= 1 << i
		}
		if len(e.Protocols) > 0 {
			m.ofProtocols |= 1 << i
			if e.Peers == nil && !e.Allowlisted {
				m.onlyProtocols |= 1 << i
			}
		}
	}
	m.named.Store(new(namedPeers))
	return m
}

// asksPeers reports whether the host names peers.
func (m *earmarks) asksPeers() bool {
	return m != nil && slices.ContainsFunc(m.list, func(e Earmark) bool { return e.Peers != nil })
}

// ask asks the host for the peers of all earmarks. It is called without locks, by one goroutine at
// a time.
func (m *earmarks) ask() {
	last, now := m.named.Load(), &namedPeers{of: make(map[peer.ID]earmarkSet)}
	for i := range m.list {
		bit := earmarkSet(1) << i
		var peers []peer.ID
		if m.list[i].Peers == nil {
			continue
		}
		if m.guards[i].call(func() { peers = m.list[i].Peers() }) {
			for _, p := range peers {
				now.of[p] |= bit
			}
		} else {
			for p, of := range last.of {
				if of&bit != 0 {
					now.of[p] |= bit
				}
			}
		}
	}
	for _, of := range now.of {
		for i := range m.list {
			now.count[i] += int(of >> i & 1)
		}
	}
	m.named.Store(now)
}

// keptFrom returns how much of a limit is kept from a request that may take some earmarks.
func (m *earmarks) keptFrom(may earmarkSet, limit int64) (n int64) {
	for i, part := range m.parts {
		if may>>i&1 == 0 {
			n += limit/earmarkUnit*part + limit%earmarkUnit*part/earmarkUnit
		}
	}
	return min(n, limit/2)
}

// names returns the names of the earmarks that keep something from a request that may take some.
func (m *earmarks) names(may earmarkSet) (names []string) {
	for i := range m.list {
		if may>>i&1 == 0 {
			names = append(names, m.list[i].Name)
		}
	}
	return names
}

// state returns the earmarks for a snapshot.
func (m *earmarks) state() (all []EarmarkState) {
	if m == nil {
		return nil
	}
	named := m.named.Load()
	for i, e := range m.list {
		all = append(all, EarmarkState{e.Name, e.Part, named.count[i], e.Allowlisted, slices.Clone(e.Protocols)})
	}
	return all
}
