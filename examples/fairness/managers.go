package main

// The managers that are compared. All have the same limits, and the same limits of
// connections for each subnet. The gates on rates are open in all of them, because they
// use the real clock, which would see a night's attack within a second.

import (
	"bytes"
	"encoding/json"
	"math"
	"net/netip"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/weir-p2p/rcmgr"
)

// The limits that attacks fill. Everything else has room.
const (
	systemConns      = 2048
	transientConns   = 512
	transientStreams = 512
)

// limits returns the limits of a node with 2 GiB, and a limit on streams that have not
// negotiated a protocol.
func limits() (rcmgr.ConcreteLimitConfig, error) {
	return rcmgr.NodeLimits{
		MaxMemory:          systemConns << 20,
		MaxFileDescriptors: 4 * systemConns,
		Overrides: rcmgr.PartialLimitConfig{
			Transient: rcmgr.ResourceLimits{StreamsInbound: transientStreams},
			Gates: &rcmgr.GateLimits{
				Subnets: rcmgr.SubnetLimits{Networks: map[netip.Prefix]rcmgr.LimitVal{sharedByHonest: rcmgr.Unlimited}},
				Rate:    rcmgr.RateLimits{IPv4: map[int]rcmgr.ConnRate{}, IPv6: map[int]rcmgr.ConnRate{}},
			},
		},
	}.Build()
}

// variant is a manager in one configuration.
type variant struct {
	name string
	make func(rcmgr.ConcreteLimitConfig, *clock) (network.ResourceManager, error)
}

// column returns the name at the head of a narrow column: the last part.
func (v *variant) column() string {
	parts := strings.Split(v.name, ", ")
	return parts[len(parts)-1]
}

var variants = []variant{
	{"go-libp2p's", newUpstream},
	{"ours", newOurs()},
	{"fair share", newOurs(rcmgr.WithFairShare())},
	{"fair share, system too", newOurs(rcmgr.WithFairShare(rcmgr.KindTransient, rcmgr.KindSystem))},
}

// roomVariants are the managers that are compared with -show room.
var roomVariants = []variant{
	{"ours", newOurs()},
	{"room", newWithRoom()},
	{"room, owners known", newWithRoom(rcmgr.WithOwners(ownerOf))},
}

func newOurs(opts ...rcmgr.Option) func(rcmgr.ConcreteLimitConfig, *clock) (network.ResourceManager, error) {
	return func(limits rcmgr.ConcreteLimitConfig, _ *clock) (network.ResourceManager, error) {
		return rcmgr.New(rcmgr.NewFixedLimiter(limits), append(opts, rcmgr.WithRefusalLog(0))...)
	}
}

// newWithRoom makes managers that make room by the simulated time, and always choose the same.
func newWithRoom(opts ...rcmgr.Option) func(rcmgr.ConcreteLimitConfig, *clock) (network.ResourceManager, error) {
	return func(limits rcmgr.ConcreteLimitConfig, c *clock) (network.ResourceManager, error) {
		room := rcmgr.WithRoom(rcmgr.RoomConfig{ByHand: true, Now: c.time, Seed: 1})
		return newOurs(append(opts, room)...)(limits, c)
	}
}

func newUpstream(limits rcmgr.ConcreteLimitConfig, _ *clock) (network.ResourceManager, error) {
	text, err := json.Marshal(limits.ToPartialLimitConfig())
	if err != nil {
		return nil, err
	}
	limiter, err := upstream.NewLimiterFromJSON(bytes.NewReader(text), upstream.InfiniteLimits)
	if err != nil {
		return nil, err
	}
	return upstream.NewResourceManager(limiter, upstream.WithMetricsDisabled(), upstream.WithConnRateLimiters(new(rate.Limiter)),
		upstream.WithNetworkPrefixLimit([]upstream.NetworkPrefixLimit{{Network: sharedByHonest, ConnCount: math.MaxInt}}, nil))
}
