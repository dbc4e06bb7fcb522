package rcmgr

// The limits in force, read back: what the manager was made with, and what was
// set by hand since.

import (
	"maps"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// Limits returns the limits in force: those that the manager was made with and
// those that SetLimit has changed since, gates included. NewFixedLimiter makes of
// them a Limiter for another manager with the same limits; ToPartialLimitConfig and
// JSON show them. Of a Limiter that is not of this package, services, protocols and
// peers are named if they have a scope now and a limit other than the unnamed ones.
// Limits that SetLimit gave to a single connection, stream or span are not in it; nor
// is WithConnRateLimiters, which has no such form.
//
// The result is a copy: it grows with what the configuration names, and with the peers
// that have a scope, which are visited a few at a time. It is safe for concurrent use.
func (m *Manager) Limits() ConcreteLimitConfig {
	m.changing.Lock() // what is read one after another is of one set of limits
	defer m.changing.Unlock()
	book := m.limits.Load()
	out := book.config()
	cfg, from := &out.limits, &out.origins
	cfg.Gates, out.gateOrigins = &m.gate().limits, m.gateOrigins(book)
	var pools []poolLimits
	m.inOneCut(func() {
		for k, to := range [...]*BaseLimit{&cfg.System, &cfg.Transient, &cfg.AllowlistedSystem, &cfg.AllowlistedTransient} {
			*to = m.fixed[k].limit.baseLimit()
			if m.dir.sticks(m.fixed[k]) {
				*from.single()[k] = allFromCode
			}
		}
		for _, p := range m.dir.list() {
			pools = append(pools, poolLimits{p.kind, p.name, p.limit.baseLimit(), p.pairLimit.baseLimit(), m.dir.sticks(p)})
		}
	})
	for _, p := range pools {
		if p.kind == KindService {
			setNamed(&cfg.Service, &from.Service, p.name, p.limit, cfg.ServiceDefault, p.byHand)
			setNamed(&cfg.ServicePeer, &from.ServicePeer, p.name, p.pairLimit, cfg.ServicePeerDefault, false)
		} else {
			setNamed(&cfg.Protocol, &from.Protocol, protocol.ID(p.name), p.limit, cfg.ProtocolDefault, p.byHand)
			setNamed(&cfg.ProtocolPeer, &from.ProtocolPeer, protocol.ID(p.name), p.pairLimit, cfg.ProtocolPeerDefault, false)
		}
	}
	unnamed := limitsOf(cfg.PeerDefault)
	special := make(map[peer.ID]BaseLimit)
	byHand := make(map[peer.ID]bool)
	for i := range m.stripes {
		m.stripes[i].eachPeer(func(ps *peerScope) {
			if _, named := cfg.Peer[ps.id]; named || *ps.limit() != unnamed {
				special[ps.id], byHand[ps.id] = ps.limit().baseLimit(), ps.sticky
			}
		})
	}
	for p, l := range special {
		setNamed(&cfg.Peer, &from.Peer, p, l, cfg.PeerDefault, byHand[p])
	}
	return out
}

// allFromCode are the origins of a scope that code gave its limits.
var allFromCode = scopeOrigins{
	Streams: OriginCode, StreamsInbound: OriginCode, StreamsOutbound: OriginCode,
	Conns: OriginCode, ConnsInbound: OriginCode, ConnsOutbound: OriginCode,
	FD: OriginCode, Memory: OriginCode,
}

// gateOrigins returns the origins of the gates in force that are not the default.
func (m *Manager) gateOrigins(b *limitBook) map[string]Origin {
	origins := make(map[string]Origin)
	if b.own != nil {
		origins = maps.Clone((*ConcreteLimitConfig)(b.own).originsOfGates())
		delete(origins, allRates) // of the manager that those limits were read from
	}
	by := &m.options
	said := GateLimits{Subnets: SubnetLimits{Networks: make(map[netip.Prefix]LimitVal)}}
	lists := (*gateLists[LimitVal])(&said.Subnets)
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
	maps.Copy(origins, said.origins(OriginCode))
	if by.callerRates != nil {
		origins[allRates] = OriginCode
	}
	return origins
}

type poolLimits struct {
	kind             Kind
	name             string
	limit, pairLimit BaseLimit
	byHand           bool // limit was set by hand
}

// setNamed puts a limit under its name, unless it is what the unnamed have and no
// configuration names it. Where no configuration gave it, its origin is code.
func setNamed[K comparable](named *map[K]BaseLimit, origins *map[K]scopeOrigins, name K, l, unnamed BaseLimit, byHand bool) {
	was, ok := (*named)[name]
	if !ok && l == unnamed {
		return
	}
	put(named, name, l)
	if byHand || !ok || was != l {
		put(origins, name, allFromCode)
	}
}

// config returns a copy of what the limiter says. Of a limiter that is not of this
// package, that is what it says of the empty name.
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

// byKind returns the limits of what is not named, by kind. The four scopes that
// are always there have none.
func (b *limitBook) byKind() (limits [numKinds]amounts) {
	for k := KindService; k < numKinds; k++ {
		limits[k] = b.kinds[k].unnamed
	}
	return limits
}
