package rcmgrshadow

// Limits that both managers have: those of one package turned into those of the other, and
// held against them.

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"

	"github.com/weir-p2p/rcmgr"
)

// sameFixedLimits compares the limits of the scopes that are always there.
func (m *Manager) sameFixedLimits() error {
	for _, f := range []struct {
		name         string
		lead, beside func(func(network.ResourceScope) error) error
	}{
		{"System", m.lead.ViewSystem, m.beside.ViewSystem},
		{"Transient", m.lead.ViewTransient, m.beside.ViewTransient},
	} {
		var lead, beside rcmgr.Limit
		err := errors.Join(
			f.lead(func(s network.ResourceScope) error { lead = limitOf(s); return nil }),
			f.beside(func(s network.ResourceScope) error { beside = limitOf(s); return nil }))
		if err != nil {
			return err
		}
		if what, a, b, same := sameLimits(lead, beside); !same {
			return fmt.Errorf("%s.%s is %d in the lead and %d in the manager beside, expected the same limits", f.name, what, a, b)
		}
	}
	return nil
}

// oursFrom returns go-libp2p's limits as limits of ours.
func oursFrom(theirs upstream.Limiter) (rcmgr.Limiter, error) {
	fixed, ok := theirs.(interface {
		ToPartialLimitConfig() upstream.PartialLimitConfig
	})
	if !ok {
		return rcmgr.LimiterFrom(theirs), nil
	}
	cfg := fixed.ToPartialLimitConfig()
	partial, err := rcmgr.PartialLimitConfigFrom(&cfg)
	if err != nil {
		return nil, err
	}
	ours := rcmgr.NewFixedLimiter(partial.Build(rcmgr.InfiniteLimits))
	return ours, sameLimiters(cfg, rcmgr.LimiterFrom(theirs), ours)
}

// unwarned returns same, or theirs if a manager with same would log limits that can never be
// reached. Most of them are go-libp2p's defaults, which no operator has written. A manager logs no
// such warnings about a Limiter of another package.
func unwarned(theirs upstream.Limiter, same rcmgr.Limiter) rcmgr.Limiter {
	if fixed, ok := same.(interface {
		ToPartialLimitConfig() rcmgr.PartialLimitConfig
	}); ok && len(fixed.ToPartialLimitConfig().Build(rcmgr.InfiniteLimits).Warnings()) > 0 {
		return rcmgr.LimiterFrom(theirs)
	}
	return same
}

// theirsFrom returns limits of ours as go-libp2p's.
func theirsFrom(ours rcmgr.ConcreteLimitConfig) (upstream.Limiter, error) {
	partial := ours.ToPartialLimitConfig()
	text, err := json.Marshal(&partial)
	if err != nil {
		return nil, err
	}
	var cfg upstream.PartialLimitConfig
	if err := json.Unmarshal(text, &cfg); err != nil {
		return nil, err
	}
	theirs := upstream.NewFixedLimiter(cfg.Build(upstream.InfiniteLimits))
	return theirs, sameLimiters(cfg, rcmgr.LimiterFrom(theirs), rcmgr.NewFixedLimiter(ours))
}

// theirGates returns options that give go-libp2p's manager the gates of a configuration of ours.
func theirGates(g *rcmgr.GateLimits) []upstream.Option {
	perSubnet := func(limits map[int]rcmgr.LimitVal) []upstream.ConnLimitPerSubnet {
		list := []upstream.ConnLimitPerSubnet{} // nil would be the default
		for bits, n := range limits {
			list = append(list, upstream.ConnLimitPerSubnet{PrefixLength: bits, ConnCount: n.Build(0)})
		}
		return list
	}
	networks := [2][]upstream.NetworkPrefixLimit{{}, {}}
	for network, n := range g.Subnets.Networks {
		family := 0
		if network.Addr().Is6() {
			family = 1
		}
		networks[family] = append(networks[family], upstream.NetworkPrefixLimit{Network: network, ConnCount: n.Build(0)})
	}
	perSecond := func(r rcmgr.ConnRate) rate.Limit {
		switch r.Burst {
		case rcmgr.Unlimited:
			return rate.Limit{}
		case rcmgr.BlockAllLimit:
			return rate.Limit{RPS: math.SmallestNonzeroFloat64}
		}
		return rate.Limit{RPS: r.PerSecond, Burst: int(r.Burst)}
	}
	rates := func(limits map[int]rcmgr.ConnRate) (list []rate.SubnetLimit) {
		for bits, r := range limits {
			list = append(list, rate.SubnetLimit{PrefixLength: bits, Limit: perSecond(r)})
		}
		return list
	}
	limiter := &rate.Limiter{SubnetRateLimiter: rate.SubnetLimiter{
		IPv4SubnetLimits: rates(g.Rate.IPv4), IPv6SubnetLimits: rates(g.Rate.IPv6), GracePeriod: time.Minute,
	}}
	for network, r := range g.Rate.Networks {
		limiter.NetworkPrefixLimits = append(limiter.NetworkPrefixLimits, rate.PrefixLimit{Prefix: network, Limit: perSecond(r)})
	}
	return []upstream.Option{
		upstream.WithLimitPerSubnet(perSubnet(g.Subnets.IPv4), perSubnet(g.Subnets.IPv6)),
		upstream.WithNetworkPrefixLimit(networks[0], networks[1]),
		upstream.WithConnRateLimiters(limiter),
	}
}

// sameLimiters compares all limits of two Limiters. named has the names for which there are
// limits. An error has the first limit that differs.
func sameLimiters(named upstream.PartialLimitConfig, theirs, ours rcmgr.Limiter) (err error) {
	same := func(place string, a, b rcmgr.Limit) {
		if what, theirs, ours, same := sameLimits(a, b); !same && err == nil {
			err = fmt.Errorf("%s.%s is %d in go-libp2p's limits and %d in rcmgr's, expected the same limits", place, what, theirs, ours)
		}
	}
	same("System", theirs.GetSystemLimits(), ours.GetSystemLimits())
	same("Transient", theirs.GetTransientLimits(), ours.GetTransientLimits())
	same("AllowlistedSystem", theirs.GetAllowlistedSystemLimits(), ours.GetAllowlistedSystemLimits())
	same("AllowlistedTransient", theirs.GetAllowlistedTransientLimits(), ours.GetAllowlistedTransientLimits())
	same("Conn", theirs.GetConnLimits(), ours.GetConnLimits())
	same("Stream", theirs.GetStreamLimits(""), ours.GetStreamLimits(""))
	same("ServiceDefault", theirs.GetServiceLimits(""), ours.GetServiceLimits(""))
	same("ServicePeerDefault", theirs.GetServicePeerLimits(""), ours.GetServicePeerLimits(""))
	same("ProtocolDefault", theirs.GetProtocolLimits(""), ours.GetProtocolLimits(""))
	same("ProtocolPeerDefault", theirs.GetProtocolPeerLimits(""), ours.GetProtocolPeerLimits(""))
	same("PeerDefault", theirs.GetPeerLimits(""), ours.GetPeerLimits(""))
	eachName("Service", named.Service, func(place, name string) { same(place, theirs.GetServiceLimits(name), ours.GetServiceLimits(name)) })
	eachName("ServicePeer", named.ServicePeer, func(place, name string) {
		same(place, theirs.GetServicePeerLimits(name), ours.GetServicePeerLimits(name))
	})
	eachName("Protocol", named.Protocol, func(place string, name protocol.ID) {
		same(place, theirs.GetProtocolLimits(name), ours.GetProtocolLimits(name))
	})
	eachName("ProtocolPeer", named.ProtocolPeer, func(place string, name protocol.ID) {
		same(place, theirs.GetProtocolPeerLimits(name), ours.GetProtocolPeerLimits(name))
	})
	eachName("Peer", named.Peer, func(place string, id peer.ID) { same(place, theirs.GetPeerLimits(id), ours.GetPeerLimits(id)) })
	return err
}

// eachName visits the names of one part of a configuration, in their order.
func eachName[N ~string](part string, named map[N]upstream.ResourceLimits, visit func(place string, name N)) {
	for _, name := range sortedKeys(named) {
		text := string(name)
		if id, ok := any(name).(peer.ID); ok {
			text = id.String()
		}
		visit(fmt.Sprintf("%s[%q]", part, text), name)
	}
}

// copyOfLimit returns a limit in go-libp2p's type, which does not change with the caller's.
func copyOfLimit(l rcmgr.Limit) *upstream.BaseLimit {
	in, out := network.DirInbound, network.DirOutbound
	return &upstream.BaseLimit{
		Streams: l.GetStreamTotalLimit(), StreamsInbound: l.GetStreamLimit(in), StreamsOutbound: l.GetStreamLimit(out),
		Conns: l.GetConnTotalLimit(), ConnsInbound: l.GetConnLimit(in), ConnsOutbound: l.GetConnLimit(out),
		FD: l.GetFDLimit(), Memory: l.GetMemoryLimit(),
	}
}

// isLimit reports whether a limit is one.
func isLimit(limit any) bool {
	l, ok := limit.(rcmgr.Limit)
	return ok && !slices.ContainsFunc(numbersOf(l), func(n int64) bool { return n < 0 })
}

var limitNames = []string{"Memory", "FD", "Streams", "StreamsInbound", "StreamsOutbound", "Conns", "ConnsInbound", "ConnsOutbound"}

// numbersOf returns a limit's numbers in the order of limitNames.
func numbersOf(l rcmgr.Limit) []int64 {
	in, out := network.DirInbound, network.DirOutbound
	counts := []int{l.GetFDLimit(), l.GetStreamTotalLimit(), l.GetStreamLimit(in), l.GetStreamLimit(out),
		l.GetConnTotalLimit(), l.GetConnLimit(in), l.GetConnLimit(out)}
	all := []int64{l.GetMemoryLimit()}
	for _, n := range counts {
		all = append(all, int64(n))
	}
	return all
}

// limitOf returns a scope's limit, nil if it has none.
func limitOf(s network.ResourceScope) rcmgr.Limit {
	switch s := s.(type) {
	case rcmgr.ResourceScopeLimiter:
		return s.Limit()
	case upstream.ResourceScopeLimiter:
		if l := s.Limit(); l != nil {
			return l
		}
	}
	return nil
}

// sameLimits returns the first number in which two limits differ. A limit that is not there
// differs from none.
func sameLimits(a, b rcmgr.Limit) (what string, inA, inB int64, same bool) {
	if a == nil || b == nil {
		return "", 0, 0, true
	}
	theirs, ours := numbersOf(a), numbersOf(b)
	for i, what := range limitNames {
		if theirs[i] != ours[i] {
			return what, theirs[i], ours[i], false
		}
	}
	return "", 0, 0, true
}

// sortedKeys returns the keys of a map in their order.
func sortedKeys[K ~string, V any](all map[K]V) []K { return slices.Sorted(maps.Keys(all)) }
