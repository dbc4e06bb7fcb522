package main

// The limits of the show, which are so small that every attack reaches one.

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/weir-p2p/rcmgr"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// loadLimits returns the limits of the show, overridden by a file if one is named, and
// the text of that file.
func loadLimits(file string, show rcmgr.ConcreteLimitConfig) (limits rcmgr.ConcreteLimitConfig, text string, err error) {
	limits = show
	if file == "" {
		return limits, "", nil
	}
	// Read the text before the limits: if the file changes in between, it will differ
	// from this text and be read again.
	read, err := os.ReadFile(file)
	if err != nil {
		return limits, "", fmt.Errorf("expected a file of limits: %w", err)
	}
	partial, err := rcmgr.ReadLimitsFile(file)
	if err != nil {
		return limits, "", err
	}
	return partial.Build(limits), string(read), nil
}

// gateLimits returns what the gates of named networks admit, by the name of their scope.
func gateLimits(limits rcmgr.ConcreteLimitConfig) map[string]string {
	texts := map[string]string{}
	gates := limits.ToPartialLimitConfig().Gates
	if gates == nil {
		return texts
	}
	for network, l := range gates.Subnets.Networks {
		if l != rcmgr.Unlimited {
			texts["subnet:"+network.String()] = fmt.Sprintf("%d at a time", l.Build(0))
		}
	}
	for network, r := range gates.Rate.Networks {
		if r.Burst != rcmgr.Unlimited {
			texts["rate:"+network.String()] = fmt.Sprintf("%d at once, then %g a second", r.Burst.Build(0), r.PerSecond)
		}
	}
	return texts
}

// showLimits returns limits of every kind of scope that attackers reach. They fill system
// and transient, past which the allowlist helps the friend. No allowlist helps past the
// limit of a protocol or a service, so those have limits for each peer. The attackers
// that fetch at the same time (one in five, by turns) cannot fill the fetch protocol
// together, so the friend is served. The limits for each peer in bulk are too large for
// that: two attackers fill it.
//
// Two of the three networks of attackers are limited by a gate before that. The friend is
// in one of them, and the allowlist takes it past the gate, too.
//
// Limits that are not named are unlimited, which keeps them out of the table. With more
// than eight attackers the limits are higher.
func showLimits(attackers int) rcmgr.ConcreteLimitConfig {
	n := rcmgr.LimitVal(max(attackers, 8))
	return rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			ConnsInbound:   8 * n,
			FD:             6 * n,
			StreamsInbound: 20 * n,
			Memory:         rcmgr.LimitVal64(n) * 8 * mib,
		},
		Transient: rcmgr.ResourceLimits{
			ConnsInbound:   3 * n,
			StreamsInbound: 6 * n,
		},
		AllowlistedSystem: rcmgr.ResourceLimits{
			ConnsInbound:   16,
			StreamsInbound: 64,
			Memory:         32 * mib,
		},
		AllowlistedTransient: rcmgr.ResourceLimits{
			ConnsInbound:   8,
			StreamsInbound: 32,
		},
		PeerDefault: rcmgr.ResourceLimits{
			ConnsInbound:   4,
			StreamsInbound: 28,
			Memory:         16 * mib,
		},
		Protocol: map[protocol.ID]rcmgr.ResourceLimits{
			fetchService.protocol: {StreamsInbound: 8 * n},
			bulkService.protocol:  {StreamsInbound: 12},
		},
		ProtocolPeer: map[protocol.ID]rcmgr.ResourceLimits{
			fetchService.protocol: {StreamsInbound: 4},
			bulkService.protocol:  {StreamsInbound: 10},
		},
		Service: map[string]rcmgr.ResourceLimits{
			fetchService.name: {Memory: rcmgr.LimitVal64(n) * 512 * kib},
			bulkService.name:  {Memory: 6 * mib},
		},
		ServicePeer: map[string]rcmgr.ResourceLimits{
			bulkService.name: {Memory: 4 * mib},
		},
		Gates: &rcmgr.GateLimits{
			Subnets: rcmgr.SubnetLimits{Networks: map[netip.Prefix]rcmgr.LimitVal{
				netip.MustParsePrefix(fewNetwork): n,
			}},
			Rate: rcmgr.RateLimits{Networks: map[netip.Prefix]rcmgr.ConnRate{
				netip.MustParsePrefix(slowNetwork): {Burst: 2 * n, PerSecond: float64(n) / 2},
			}},
		},
	}.Build(rcmgr.InfiniteLimits)
}
