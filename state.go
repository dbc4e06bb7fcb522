package rcmgr

// What is held and what is allowed, for people and programs.

import (
	"cmp"
	"maps"
	"slices"

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
	// LateReleases counts releases of memory at scopes that were done. They do
	// nothing: the end of the scope had released everything. go-libp2p's
	// identify does it routinely.
	LateReleases uint64
}

// ListServices gives the names of all services that have a scope, sorted.
func (m *Manager) ListServices() []string {
	return m.listNames(KindService)
}

// ListProtocols gives the IDs of all protocols that have a scope, sorted.
func (m *Manager) ListProtocols() []protocol.ID {
	names := m.listNames(KindProtocol)
	return protocol.ConvertFromStrings(names)
}

func (m *Manager) listNames(k Kind) []string {
	names := []string{}
	for _, p := range m.dir.list() {
		if p.kind == k {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return names
}

// ListPeers gives the IDs of all peers that have a scope, sorted by their bytes.
func (m *Manager) ListPeers() []peer.ID {
	peers := []peer.ID{}
	for i := range m.stripes {
		st := &m.stripes[i]
		st.lock(false)
		peers = slices.AppendSeq(peers, maps.Keys(st.peers))
		st.unlock(false)
	}
	slices.Sort(peers)
	return peers
}

// Stat gives what every scope holds, in one consistent cut. It takes all
// stripe locks for as long as it takes to copy the numbers of every peer.
func (m *Manager) Stat() ResourceManagerStat {
	stat := ResourceManagerStat{
		Services:  make(map[string]network.ScopeStat),
		Protocols: make(map[protocol.ID]network.ScopeStat),
		Peers:     make(map[peer.ID]network.ScopeStat),
	}
	m.inOneCut(func() {
		statOf := func(p *pool) network.ScopeStat {
			used := p.used()
			return used.stat()
		}
		stat.System = statOf(m.fixed[KindSystem])
		stat.Transient = statOf(m.fixed[KindTransient])
		for _, p := range m.dir.list() {
			if p.kind == KindService {
				stat.Services[p.name] = statOf(p)
			} else {
				stat.Protocols[protocol.ID(p.name)] = statOf(p)
			}
		}
		for i := range m.stripes {
			for id, ps := range m.stripes[i].peers {
				stat.Peers[id] = ps.use.stat()
			}
		}
	})
	return stat
}

// Snapshot gives the state of the manager in one consistent cut. It takes all
// stripe locks for as long as it takes to copy the numbers of every peer.
func (m *Manager) Snapshot() Snapshot {
	var names []scopeName
	s := Snapshot{Refusals: make(map[Kind]Refusals), CallerBugs: m.callerBugs.Load()}
	note := func(name scopeName, use, limit *amounts) {
		names = append(names, name)
		s.Scopes = append(s.Scopes, ScopeState{Kind: name.kind, Use: use.stat(), Limit: limit.baseLimit()})
	}
	var refusals [numKinds][numDims]uint64
	m.inOneCut(func() {
		for _, p := range append(m.fixed[:], m.dir.list()...) {
			used := p.used()
			note(p.scope(), &used, &p.limit)
		}
		for i := range m.stripes {
			st := &m.stripes[i]
			s.LateReleases += st.lateReleases
			for _, ps := range st.peers {
				note(ps.scopeName, &ps.use, ps.limit)
			}
			for k := range refusals {
				for d := range refusals[k] {
					refusals[k][d] += st.refusals[k][d]
				}
			}
		}
	})
	for i := range names {
		s.Scopes[i].Name = names[i].String()
	}
	slices.SortFunc(s.Scopes, func(a, b ScopeState) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	for k, r := range refusals {
		if r != [numDims]uint64{} {
			s.Refusals[Kind(k)] = Refusals{
				Memory:          r[dimMemory],
				StreamsInbound:  r[dimStreamsIn],
				StreamsOutbound: r[dimStreamsOut],
				Streams:         r[dimStreams],
				ConnsInbound:    r[dimConnsIn],
				ConnsOutbound:   r[dimConnsOut],
				Conns:           r[dimConns],
				FD:              r[dimFD],
			}
		}
	}
	return s
}

// read gives what metrics show. It visits the shared scopes and the stripes,
// never the peers: their distributions are kept as they change.
func (m *Manager) read() reading {
	var r reading
	m.inOneCut(func() {
		for _, p := range append(m.fixed[:], m.dir.list()...) {
			r.scopes = append(r.scopes, scopeReading{p.kind, p.name, p.used(), p.limit})
		}
		for i := range m.stripes {
			st := &m.stripes[i]
			for dir := range st.peerConns {
				r.peerConns[dir].add(&st.peerConns[dir])
				r.peerStreams[dir].add(&st.peerStreams[dir])
			}
			r.peerMemory.add(&st.peerMemory)
			r.connMemory.add(&st.connMemory)
			for k := range st.blocked {
				r.blocked[k].add(&st.blocked[k])
			}
		}
	})
	return r
}
