package rcmgr

// What is held and what is allowed, for people and programs.

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// ResourceScopeLimiter is implemented by every scope that this package hands
// out: type-assert a network.ResourceScope to read or replace its limit.
type ResourceScopeLimiter interface {
	// Limit returns a copy of the limit in force.
	Limit() Limit
	// SetLimit replaces the limit of this one scope. What is held stays; a
	// scope that holds more than its new limit admits nothing more until it
	// has drained. A nil limit or one below zero is a caller's bug: it is
	// counted and logged, and the limit stays as it was.
	SetLimit(Limit)
}

// ResourceManagerState is implemented by *Manager.
type ResourceManagerState interface {
	ListServices() []string
	ListProtocols() []protocol.ID
	ListPeers() []peer.ID

	Stat() ResourceManagerStat
}

// ResourceManagerStat is what every scope holds, in one consistent cut: the
// numbers of all scopes belong to the same instant.
type ResourceManagerStat struct {
	System    network.ScopeStat
	Transient network.ScopeStat
	Services  map[string]network.ScopeStat
	Protocols map[protocol.ID]network.ScopeStat
	Peers     map[peer.ID]network.ScopeStat
}

// Refusals counts requests that were refused, by the limit that stood in the
// way. The numbers only grow.
type Refusals struct {
	Memory          uint64 `json:",omitempty"`
	StreamsInbound  uint64 `json:",omitempty"`
	StreamsOutbound uint64 `json:",omitempty"`
	Streams         uint64 `json:",omitempty"`
	ConnsInbound    uint64 `json:",omitempty"`
	ConnsOutbound   uint64 `json:",omitempty"`
	Conns           uint64 `json:",omitempty"`
	FD              uint64 `json:",omitempty"`
}

// Total gives the number of all refusals.
func (r Refusals) Total() uint64 {
	return r.Memory + r.StreamsInbound + r.StreamsOutbound + r.Streams +
		r.ConnsInbound + r.ConnsOutbound + r.Conns + r.FD
}

// ScopeState is what one scope holds and what it may hold.
type ScopeState struct {
	// Name is the scope's name as it stands in errors: "system",
	// "protocol:/ipfs/ping/1.0.0", "peer:12D3Koo…".
	Name  string
	Kind  Kind
	Use   network.ScopeStat
	Limit BaseLimit
}

// Snapshot is the state of a manager in one consistent cut.
type Snapshot struct {
	// Scopes holds the system, transient and allowlisted scopes, then
	// services, protocols and peers, each sorted by name.
	Scopes []ScopeState
	// Refusals counts, for each kind of scope and gate, what it refused since
	// the manager was made.
	Refusals map[Kind]Refusals
	// CallerBugs counts calls that broke the contract of a scope: more
	// released than reserved, a negative size, a limit that is none.
	CallerBugs uint64
}
