package rcmgrshadow

// Addresses: the allowlists and the gates, which count connections before any scope does.
// Go-libp2p's manager does not show what it counts there, so what could make the two differ is
// noted.

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/ip"
)

// allowlistedUse returns how many connections and streams ours has in the allowlisted scopes.
func (m *Manager) allowlistedUse() (n int) {
	defer m.contain()
	m.ours.ViewAllowlistedSystem(func(s network.ResourceScope) error {
		stat := s.Stat()
		n = stat.NumConnsInbound + stat.NumConnsOutbound + stat.NumStreamsInbound + stat.NumStreamsOutbound
		return nil
	})
	return n
}

// sameAllowlist compares what the allowlists say of an address.
func (m *Manager) sameAllowlist(endpoint multiaddr.Multiaddr) {
	defer m.contain()
	theirs, ours := m.theirList.Allowed(endpoint), m.ours.GetAllowlist().Allowed(endpoint)
	if theirs != ours {
		m.count(KindAllowlist, "OpenConnection", placeOf(endpoint).entry(),
			fmt.Sprintf("%v is on go-libp2p's allowlist: %v; on ours: %v", endpoint, theirs, ours))
	}
}

func (m *Manager) samePeerAllowlist(s *scope, p peer.ID) {
	defer m.contain()
	list := m.ours.GetAllowlist()
	theirs, ours := m.theirList.AllowedPeerAndMultiaddr(p, s.endpoint), list.AllowedPeerAndMultiaddr(p, s.endpoint)
	if theirs == ours {
		return
	}
	entry := placeOf(s.endpoint).entry()
	if list.AllowedPeerAndMultiaddr(p, nil) {
		entry = entryBarePeer
	}
	m.count(KindAllowlist, "SetPeer", entry, fmt.Sprintf("%v at %v is on go-libp2p's allowlist: %v; on ours: %v", p, s.endpoint, theirs, ours))
}

// place is where the far end of a connection is, as far as the two disagree about that.
type place struct {
	counted bool // go-libp2p's manager reads an address from it
	relayed bool
	mapped  bool // an IPv4 address within an IPv6 address
}

func placeOf(endpoint multiaddr.Multiaddr) (p place) {
	addr, err := manet.ToIP(endpoint)
	if a, ok := netip.AddrFromSlice(addr); err == nil && ok {
		p.counted, p.mapped = true, ip.Normal(a) != a
	}
	p.relayed = slices.ContainsFunc(endpoint, func(c multiaddr.Component) bool { return c.Code() == multiaddr.P_CIRCUIT })
	return p
}

// entry explains a difference by the form of the address, or is empty.
func (p place) entry() string {
	switch {
	case p.relayed:
		return entryRelayed
	case p.mapped:
		return entryMapped
	}
	return ""
}

// tokens notes what a connection that go-libp2p's manager refuses leaves at its gates.
func (m *Manager) tokens(c *call, theirs answer) {
	if c.name == "OpenConnection" && theirs.class == limitedByScope {
		m.gateEver[entryTokens] = true
	}
}

// inGates notes that a connection is open that only one manager counts at its gates.
func (s *scope) inGates(c *call) {
	defer s.m.contain()
	p := placeOf(c.endpoint)
	if s.gated || !p.counted && !p.relayed {
		return
	}
	switch {
	case p.entry() != "":
		s.gate = p.entry()
	case c.dir == network.DirOutbound && !s.m.gatesOutward:
		s.gate = entryOutbound
	case s.m.theirList.Allowed(c.endpoint) || s.m.ours.GetAllowlist().Allowed(c.endpoint):
		s.gate = entryAllowedGates
	case s.beside != nil:
		return
	}
	s.gated = true
	s.m.gateOpen[s.gate]++
	s.m.gateEver[s.gate] = true
}

// verifyDiffers counts different answers of VerifySourceAddress.
func (m *Manager) verifyDiffers(addr net.Addr, lead, beside bool) {
	defer m.contain()
	theirs, ours := theirsFirst(m, lead, beside)
	entry := ""
	if ours && !theirs && m.underLoad() {
		entry = entryVerifyLoad
	} else if at, err := netip.ParseAddrPort(addr.String()); err == nil && ip.Normal(at.Addr()) != at.Addr() {
		entry = entryMapped
	}
	if entry == "" {
		m.counts.notCompared[timing]++
		return
	}
	m.count(KindDecision, "VerifySourceAddress", entry, fmt.Sprintf("%v; go-libp2p's: %v; ours: %v", addr, theirs, ours))
}

// underLoad reports whether more than half of ours' transient inbound connections are taken.
func (m *Manager) underLoad() (loaded bool) {
	m.ours.ViewTransient(func(s network.ResourceScope) error {
		limit := s.(rcmgr.ResourceScopeLimiter).Limit().GetConnLimit(network.DirInbound)
		loaded = s.Stat().NumConnsInbound > limit/2
		return nil
	})
	return loaded
}

// explainGate returns the entry that explains why one manager refuses at a gate, or at
// another gate than the other. If no entry does, the difference may be one that is not
// compared.
func (m *Manager) explainGate(c *call, theirs, ours answer) (entry string, why notCompared) {
	at := placeOf(c.endpoint)
	switch {
	case theirs.class == limitedByGate && ours.err != nil:
		return entryOrder, ""
	case c.moves:
		return entryAllowedGates, "" // the peer is another than the one that passes the gates
	case c.dir == network.DirOutbound && !m.gatesOutward && theirs.class == limitedByGate:
		return entryOutbound, ""
	case at.entry() != "":
		return at.entry(), ""
	case m.theirList.Allowed(c.endpoint) || m.ours.GetAllowlist().Allowed(c.endpoint):
		return entryAllowedGates, ""
	case m.noGates && theirs.class == limitedByGate:
		return entryNoGates, ""
	}
	fuller := []string{entryMapped, entryAllowedGates}
	if theirs.class == limitedByGate { // which counts more than ours
		fuller = append(fuller, entryOutbound, entryRelayed)
	}
	for _, entry := range fuller {
		if theirs.what == "rate" && m.gateEver[entry] || m.gateOpen[entry] > 0 {
			return entry, ""
		}
	}
	switch {
	case theirs.what == "rate" && m.gateEver[entryTokens]:
		return entryTokens, ""
	case m.gateOpen[""] > 0:
		return "", followsEarlier
	case theirs.what == "rate" || ours.what == "rate":
		return "", timing
	}
	return "", ""
}
