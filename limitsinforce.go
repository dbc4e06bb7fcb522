package rcmgr

// Reading back the limits in force: those that the manager was made with, or was given
// by SetLimits, and those that were set by SetLimit since.

import (
	"maps"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// Limits returns the limits in force, gates included: those that the manager was made
// with, or that SetLimits has put in their place, and those that SetLimit has changed
// since. Pass the result to NewFixedLimiter to make another manager with the same limits,
// or use ToPartialLimitConfig or JSON to show it.
//
// If the manager has a Limiter that is not of this package, the result names only the
// services, protocols and peers that have a scope now, and a limit of their own. Limits
// that SetLimit gave to a single connection, stream or span are not part of the result,
// and neither is the limiter of WithConnRateLimiters.
//
// The result is a copy. The time to make it grows with the number of names in the
// configuration and of peers that have a scope; peers are visited a few at a time. Limits
// is safe for concurrent use.
func (m *Manager) Limits() ConcreteLimitConfig {
	m.changing.Lock() // so that all limits that are read one after another are of one set
	defer m.changing.Unlock()
	book := m.limits.Load()
	out := book.config()
	cfg, from := &out.limits, &out.origins
	cfg.Gates, out.gateOrigins = &m.gate().limits, m.gateOrigins(book)
	var pools []poolLimits
	m.inOneCut(func() {
		for k, to := range [...]*BaseLimit{&cfg.System, &cfg.Transient, &cfg.AllowlistedSystem, &cfg.AllowlistedTransient} {
			*to = m.fixed[k].limitWithRates()
			if m.dir.sticks(m.fixed[k]) {
				*from.single()[k] = allFromCode
			}
		}
		for _, p := range m.dir.list() {
			pools = append(pools, poolLimits{
				p.kind, p.name, p.limitWithRates(), p.pairLimitWithRates(), m.dir.sticks(p)})
		}
	})
	for _, p := range pools {
		if p.kind == KindService {
			setNamed(&cfg.Service, &from.Service, p.name, p.limit, cfg.ServiceDefault, p.byHand)
			setNamed(&cfg.ServicePeer, &from.ServicePeer, p.name, p.pairLimit, cfg.ServicePeerDefault, false)
		} else {
			proto := protocol.ID(p.name)
			setNamed(&cfg.Protocol, &from.Protocol, proto, p.limit, cfg.ProtocolDefault, p.byHand)
			setNamed(&cfg.ProtocolPeer, &from.ProtocolPeer, proto, p.pairLimit, cfg.ProtocolPeerDefault, false)
		}
	}
	unnamed := cfg.PeerDefault
	special := make(map[peer.ID]BaseLimit)
	byHand := make(map[peer.ID]bool)
	for i := range m.stripes {
		m.stripes[i].eachPeer(func(ps *peerScope) {
			l := ps.limitWithRates()
			if _, named := cfg.Peer[ps.id]; named || l != unnamed {
				special[ps.id], byHand[ps.id] = l, ps.sticky
			}
		})
	}
	for p, l := range special {
		setNamed(&cfg.Peer, &from.Peer, p, l, cfg.PeerDefault, byHand[p])
	}
	return out
}

// allFromCode are the origins of a scope all of whose limits were given by code.
var allFromCode = scopeOrigins{quantities[Origin, Origin]{
	Streams: OriginCode, StreamsInbound: OriginCode, StreamsOutbound: OriginCode,
	Conns: OriginCode, ConnsInbound: OriginCode, ConnsOutbound: OriginCode,
	FD: OriginCode, Memory: OriginCode,
}, [numRates]Origin{OriginCode, OriginCode, OriginCode, OriginCode, OriginCode, OriginCode}}

// gateOrigins returns the origins of the gates in force, without those that are default.
func (m *Manager) gateOrigins(b *limitBook) map[string]Origin {
	origins := make(map[string]Origin)
	if b.own != nil {
		origins = maps.Clone((*ConcreteLimitConfig)(b.own).originsOfGates())
		delete(origins, allRates) // that is about the manager that the limits were read from, not about this one
	}
	by := &m.options
	byOption := GateLimits{Subnets: SubnetLimits{Networks: make(map[netip.Prefix]LimitVal)}}
	lists := (*gateLists[LimitVal])(&byOption.Subnets)
	for f := range ip.Families {
		if by.subnets.perSubnet[f] != nil {
			*lists.perSubnet(f) = make(map[int]LimitVal)
		}
		for _, l := range by.subnets.perSubnet[f] {
			(*lists.perSubnet(f))[l.PrefixLength] = limitVal(l.ConnCount)
		}
		for _, l := range by.subnets.networks[f] {
			lists.Networks[ip.NormalPrefix(l.Network)] = limitVal(l.ConnCount)
		}
	}
	maps.Copy(origins, by.gatesByOption.origins(OriginCode))
	maps.Copy(origins, byOption.origins(OriginCode))
	if by.callerRates != nil {
		origins[allRates] = OriginCode
	}
	return origins
}

type poolLimits struct {
	kind             Kind
	name             string
	limit, pairLimit BaseLimit
	byHand           bool // SetLimit gave it its limit
}

// setNamed sets the limit of a name, unless no configuration names it and its limit is
// that of unnamed scopes. The origin of a limit that is not the configuration's is code.
func setNamed[K comparable](
	named *map[K]BaseLimit, origins *map[K]scopeOrigins, name K, l, unnamed BaseLimit, byHand bool,
) {
	was, ok := (*named)[name]
	if !ok && l == unnamed {
		return
	}
	put(named, name, l)
	if byHand || !ok || was != l {
		put(origins, name, allFromCode)
	}
}

// config returns a copy of the limiter's configuration. For a foreign limiter it has the
// limits that the limiter gives for the empty name.
func (b *limitBook) config() ConcreteLimitConfig {
	if b.own != nil {
		return ConcreteLimitConfig{
			limits:  convert(b.own.limits, func(l BaseLimit) BaseLimit { return l }),
			origins: convert(b.own.origins, func(o scopeOrigins) scopeOrigins { return o }),
			sizing:  b.own.sizing,
		}
	}
	unnamed := func(k Kind) BaseLimit { return b.kinds[k].unnamed.baseLimit() }
	limits := perScope[BaseLimit]{
		ServiceDefault: unnamed(KindService), ServicePeerDefault: unnamed(KindServicePeer),
		ProtocolDefault: unnamed(KindProtocol), ProtocolPeerDefault: unnamed(KindProtocolPeer),
		PeerDefault: unnamed(KindPeer), Conn: unnamed(KindConn), Stream: unnamed(KindStream),
	}
	return ConcreteLimitConfig{
		limits:  limits,
		origins: convert(limits, func(BaseLimit) scopeOrigins { return allFromCode }),
	}
}

// byKind returns the limits of unnamed scopes, by kind. The four scopes that always exist
// have none.
func (b *limitBook) byKind() (limits [numKinds]amounts) {
	for k := KindService; k < numKinds; k++ {
		limits[k] = b.kinds[k].unnamed
	}
	return limits
}
