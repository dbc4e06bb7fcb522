package main

// The managers that the victim can run on, behind one interface: ours, and go-libp2p's
// own for comparison. Both get the same limits and, as far as they can read it, the same
// allowlist, and otherwise their defaults.

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/weir-p2p/rcmgr"
)

// manager is the part of a resource manager that the show uses.
type manager interface {
	network.ResourceManager
	Snapshot() rcmgr.Snapshot
}

// A contender is a manager that the victim can run on.
type contender struct {
	flag   string // its name for -manager and at the head of its column
	title  string
	judged bool // reports whether the show passes or fails by it
	// make makes the manager. Only ours has use for options.
	make func(limits rcmgr.ConcreteLimitConfig, guests []multiaddr.Multiaddr, opts ...rcmgr.Option) (manager, error)
}

var contenders = []contender{
	{"ours", "our manager", true, newOurs},
	{"upstream", "go-libp2p's manager", false, newUpstream},
}

// chosen returns the contenders that -manager names, none if the name is unknown.
func chosen(flag string) []contender {
	if flag == "both" {
		return contenders
	}
	for i, c := range contenders {
		if c.flag == flag {
			return contenders[i : i+1]
		}
	}
	return nil
}

func newOurs(limits rcmgr.ConcreteLimitConfig, guests []multiaddr.Multiaddr, opts ...rcmgr.Option) (manager, error) {
	return rcmgr.New(rcmgr.NewFixedLimiter(limits), append(opts, rcmgr.WithAllowlistedMultiaddrs(guests))...)
}

func newUpstream(limits rcmgr.ConcreteLimitConfig, guests []multiaddr.Multiaddr, _ ...rcmgr.Option) (manager, error) {
	text, err := json.Marshal(limits.ToPartialLimitConfig())
	if err != nil {
		return nil, err
	}
	var partial upstream.PartialLimitConfig
	if err := json.Unmarshal(text, &partial); err != nil {
		return nil, fmt.Errorf("limits, as go-libp2p's manager reads them: %w", err)
	}
	limiter := upstream.NewFixedLimiter(partial.Build(upstream.InfiniteLimits))
	gates, err := upstreamGates(limits)
	if err != nil {
		return nil, err
	}
	// go-libp2p's allowlist has no entries without an address.
	guests = slices.DeleteFunc(slices.Clone(guests), func(a multiaddr.Multiaddr) bool {
		_, err := manet.ToIP(a)
		return err != nil
	})
	m, err := upstream.NewResourceManager(limiter, append(gates, upstream.WithAllowlistedMultiaddrs(guests))...)
	return &upstreamManager{m, limiter}, err
}

// upstreamGates returns options of go-libp2p's for the gates that a manager of ours has
// with these limits, as far as they concern loopback, which is in a named network or in
// one inside it, no matter what the limits of unnamed subnets are.
func upstreamGates(limits rcmgr.ConcreteLimitConfig) ([]upstream.Option, error) {
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	gates := ours.Limits().ToPartialLimitConfig().Gates

	var v4, v6 []upstream.NetworkPrefixLimit
	for network, l := range gates.Subnets.Networks {
		to := &v4
		if network.Addr().Is6() {
			to = &v6
		}
		*to = append(*to, upstream.NetworkPrefixLimit{Network: network, ConnCount: l.Build(0)})
	}
	rates := &rate.Limiter{}
	for network, r := range gates.Rate.Networks {
		l := rate.Limit{RPS: cmp.Or(r.PerSecond, 1), Burst: r.Burst.Build(0)}
		if r.Burst == rcmgr.Unlimited {
			l = rate.Limit{}
		}
		rates.NetworkPrefixLimits = append(rates.NetworkPrefixLimits, rate.PrefixLimit{Prefix: network, Limit: l})
	}
	return []upstream.Option{upstream.WithNetworkPrefixLimit(v4, v6), upstream.WithConnRateLimiters(rates)}, nil
}

// upstreamManager is go-libp2p's manager. Its Snapshot lacks the allowlisted scopes,
// which that manager does not show, and refusals, which the observer counts.
type upstreamManager struct {
	network.ResourceManager
	limits upstream.Limiter
}

func (m *upstreamManager) Snapshot() rcmgr.Snapshot {
	var s rcmgr.Snapshot
	add := func(kind rcmgr.Kind, name string, use network.ScopeStat, limit upstream.Limit) {
		s.Scopes = append(s.Scopes, rcmgr.ScopeState{Name: name, Kind: kind, Use: use, Limit: baseLimit(limit)})
	}
	stat := m.ResourceManager.(upstream.ResourceManagerState).Stat()
	add(rcmgr.KindSystem, "system", stat.System, m.limits.GetSystemLimits())
	add(rcmgr.KindTransient, "transient", stat.Transient, m.limits.GetTransientLimits())
	for name, use := range stat.Services {
		add(rcmgr.KindService, "service:"+name, use, m.limits.GetServiceLimits(name))
	}
	for id, use := range stat.Protocols {
		add(rcmgr.KindProtocol, "protocol:"+string(id), use, m.limits.GetProtocolLimits(id))
	}
	for id, use := range stat.Peers {
		if use != (network.ScopeStat{}) { // scopes of peers that have gone stay for a minute
			add(rcmgr.KindPeer, "peer:"+id.String(), use, m.limits.GetPeerLimits(id))
		}
	}
	return s
}

func baseLimit(l upstream.Limit) rcmgr.BaseLimit {
	return rcmgr.BaseLimit{
		Streams:         l.GetStreamTotalLimit(),
		StreamsInbound:  l.GetStreamLimit(network.DirInbound),
		StreamsOutbound: l.GetStreamLimit(network.DirOutbound),
		Conns:           l.GetConnTotalLimit(),
		ConnsInbound:    l.GetConnLimit(network.DirInbound),
		ConnsOutbound:   l.GetConnLimit(network.DirOutbound),
		FD:              l.GetFDLimit(),
		Memory:          l.GetMemoryLimit(),
	}
}
