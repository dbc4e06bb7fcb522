package rcmgr

// The limits in force, read back: what the manager was made with, and what was
// set by hand since.

import (
	"maps"
	"math"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Limits gives the limits in force: those that the manager was made with and
// those that SetLimit has changed since, gates included. It is what would make
// another manager with the same limits, by way of NewFixedLimiter, and what
// ToPartialLimitConfig or JSON shows. Of a Limiter that is not of this package,
// services, protocols and peers are named if they have a scope now and a limit
// other than the unnamed ones. Limits of single connections, streams and spans
// are not in it; nor is WithConnRateLimiters, which has no such form. It is safe
// for concurrent use.
func (m *Manager) Limits() ConcreteLimitConfig {
	cfg := m.limits.Load().config()
	cfg.Gates = &m.gate().limits
	var pools []poolLimits
	m.inOneCut(func() {
		for k, to := range [...]*BaseLimit{&cfg.System, &cfg.Transient, &cfg.AllowlistedSystem, &cfg.AllowlistedTransient} {
			*to = m.fixed[k].limit.baseLimit()
		}
		for _, p := range m.dir.list() {
			pools = append(pools, poolLimits{p.kind, p.name, p.limit.baseLimit(), p.pairLimit.baseLimit()})
		}
	})
	for _, p := range pools {
		if p.kind == KindService {
			setNamed(&cfg.Service, p.name, p.limit, cfg.ServiceDefault)
			setNamed(&cfg.ServicePeer, p.name, p.pairLimit, cfg.ServicePeerDefault)
		} else {
			setNamed(&cfg.Protocol, protocol.ID(p.name), p.limit, cfg.ProtocolDefault)
			setNamed(&cfg.ProtocolPeer, protocol.ID(p.name), p.pairLimit, cfg.ProtocolPeerDefault)
		}
	}
	unnamed := limitsOf(cfg.PeerDefault)
	special := make(map[peer.ID]BaseLimit)
	for i := range m.stripes {
		m.stripes[i].eachPeer(func(ps *peerScope) {
			if _, named := cfg.Peer[ps.peer]; named || *ps.limit != unnamed {
				special[ps.peer] = ps.limit.baseLimit()
			}
		})
	}
	for p, l := range special {
		setNamed(&cfg.Peer, p, l, cfg.PeerDefault)
	}
	return ConcreteLimitConfig{limits: cfg}
}

type poolLimits struct {
	kind             Kind
	name             string
	limit, pairLimit BaseLimit
}

// setNamed puts a limit under its name, unless that is unnamed and as all that
// are not named.
func setNamed[K comparable](named *map[K]BaseLimit, name K, l, unnamed BaseLimit) {
	if _, ok := (*named)[name]; !ok && l == unnamed {
		return
	}
	if *named == nil {
		*named = make(map[K]BaseLimit)
	}
	(*named)[name] = l
}

// config gives what the limiter says, in maps of its own. Of one that is not of
// this package, it has what it says of names that it cannot know.
func (b *limitBook) config() perScope[BaseLimit] {
	if b.own != nil {
		c := b.own.limits
		c.Service, c.ServicePeer = maps.Clone(c.Service), maps.Clone(c.ServicePeer)
		c.Protocol, c.ProtocolPeer = maps.Clone(c.Protocol), maps.Clone(c.ProtocolPeer)
		c.Peer = maps.Clone(c.Peer)
		return c
	}
	said := func(l Limit) BaseLimit {
		if checkLimit("", l) != nil {
			return BaseLimit{} // it admits nothing: to open such a scope is an error
		}
		a := limitsOf(l)
		return a.baseLimit()
	}
	return perScope[BaseLimit]{
		ServiceDefault:      said(b.limiter.GetServiceLimits("")),
		ServicePeerDefault:  said(b.limiter.GetServicePeerLimits("")),
		ProtocolDefault:     said(b.limiter.GetProtocolLimits("")),
		ProtocolPeerDefault: said(b.limiter.GetProtocolPeerLimits("")),
		PeerDefault:         said(b.limiter.GetPeerLimits("")),
		Conn:                said(b.limiter.GetConnLimits()),
		Stream:              said(b.limiter.GetStreamLimits("")),
	}
}

// byKind gives the limits of what is not named, by kind. The four scopes that
// are always there have none.
func (b *limitBook) byKind() (limits [numKinds]amounts) {
	c := b.config()
	for k, l := range map[Kind]BaseLimit{
		KindService: c.ServiceDefault, KindServicePeer: c.ServicePeerDefault,
		KindProtocol: c.ProtocolDefault, KindProtocolPeer: c.ProtocolPeerDefault,
		KindPeer: c.PeerDefault, KindConn: c.Conn, KindStream: c.Stream,
	} {
		limits[k] = limitsOf(&l)
	}
	return limits
}

// limits says the same as a configuration that leaves nothing to the defaults.
// Of several levels of one prefix length, all of which a connection has to fit,
// the least is said.
func (c *gateConfig) limits() GateLimits {
	g := GateLimits{
		Subnets: SubnetLimits{Networks: make(map[netip.Prefix]LimitVal)},
		Rate:    RateLimits{Networks: make(map[netip.Prefix]ConnRate)},
	}
	g.Outbound = new(c.outbound)
	subnets, rates := (*gateLists[LimitVal])(&g.Subnets), (*gateLists[ConnRate])(&g.Rate)
	for f := range numFamilies {
		*subnets.perSubnet(f), *rates.perSubnet(f) = make(map[int]LimitVal), make(map[int]ConnRate)
		for _, l := range c.subnets.perSubnet[f] {
			levels := *subnets.perSubnet(f)
			if said, ok := levels[l.PrefixLength]; !ok || l.ConnCount < said.Build(0) {
				levels[l.PrefixLength] = limitVal(l.ConnCount)
			}
		}
		for _, l := range c.rate.perSubnet[f] {
			(*rates.perSubnet(f))[l.prefixLength] = l.connRate()
		}
		for _, l := range c.subnets.networks[f] {
			setFirst(g.Subnets.Networks, normalPrefix(l.Network), limitVal(l.ConnCount))
		}
		for _, l := range c.rate.networks[f] {
			setFirst(g.Rate.Networks, normalPrefix(l.network), l.connRate())
		}
	}
	return g
}

// setFirst keeps what is there: of two entries for one network the first holds.
func setFirst[V any](m map[netip.Prefix]V, network netip.Prefix, v V) {
	if _, ok := m[network]; !ok {
		m[network] = v
	}
}

// connRate is the inverse of ConnRate.rateLimit.
func (l rateLimit) connRate() ConnRate {
	switch {
	case l.perSecond == 0 || l.burst == math.MaxInt:
		return ConnRate{Burst: Unlimited}
	case l.burst == 0:
		return ConnRate{Burst: BlockAllLimit}
	}
	return ConnRate{PerSecond: l.perSecond, Burst: limitVal(l.burst)}
}
