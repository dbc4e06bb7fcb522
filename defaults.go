package rcmgr

// Default limits: those of the smallest node, and their growth with memory and file
// descriptors.

import (
	"maps"
	"math"
	"math/big"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// baseLimitConfig is the limit of the smallest node, and its growth.
type baseLimitConfig struct {
	BaseLimit         BaseLimit
	BaseLimitIncrease BaseLimitIncrease
}

// ScalingLimitConfig has limits that grow with the memory and the file descriptors that a
// node may use. Each …BaseLimit is the limit of a node with no more than 128 MiB, and
// each …LimitIncrease is what a larger node gets in addition for each GiB. Its zero value
// admits nothing. It is not safe for concurrent modification.
//
// A copy shares its maps with the original, so an Add method on one may change the other.
type ScalingLimitConfig struct {
	SystemBaseLimit     BaseLimit
	SystemLimitIncrease BaseLimitIncrease

	TransientBaseLimit     BaseLimit
	TransientLimitIncrease BaseLimitIncrease

	AllowlistedSystemBaseLimit     BaseLimit
	AllowlistedSystemLimitIncrease BaseLimitIncrease

	AllowlistedTransientBaseLimit     BaseLimit
	AllowlistedTransientLimitIncrease BaseLimitIncrease

	// The …BaseLimit and …LimitIncrease below are for services, protocols and peers that
	// the maps do not name. The Add methods write to the maps.
	ServiceBaseLimit     BaseLimit
	ServiceLimitIncrease BaseLimitIncrease
	ServiceLimits        map[string]baseLimitConfig

	ServicePeerBaseLimit     BaseLimit
	ServicePeerLimitIncrease BaseLimitIncrease
	ServicePeerLimits        map[string]baseLimitConfig

	ProtocolBaseLimit     BaseLimit
	ProtocolLimitIncrease BaseLimitIncrease
	ProtocolLimits        map[protocol.ID]baseLimitConfig

	ProtocolPeerBaseLimit     BaseLimit
	ProtocolPeerLimitIncrease BaseLimitIncrease
	ProtocolPeerLimits        map[protocol.ID]baseLimitConfig

	PeerBaseLimit     BaseLimit
	PeerLimitIncrease BaseLimitIncrease
	PeerLimits        map[peer.ID]baseLimitConfig

	ConnBaseLimit     BaseLimit
	ConnLimitIncrease BaseLimitIncrease

	StreamBaseLimit     BaseLimit
	StreamLimitIncrease BaseLimitIncrease
}

// AddServiceLimit sets the limit of one service.
func (cfg *ScalingLimitConfig) AddServiceLimit(svc string, base BaseLimit, inc BaseLimitIncrease) {
	put(&cfg.ServiceLimits, svc, baseLimitConfig{base, inc})
}

// AddServicePeerLimit sets the limit of any one peer in one service.
func (cfg *ScalingLimitConfig) AddServicePeerLimit(svc string, base BaseLimit, inc BaseLimitIncrease) {
	put(&cfg.ServicePeerLimits, svc, baseLimitConfig{base, inc})
}

// AddProtocolLimit sets the limit of one protocol.
func (cfg *ScalingLimitConfig) AddProtocolLimit(proto protocol.ID, base BaseLimit, inc BaseLimitIncrease) {
	put(&cfg.ProtocolLimits, proto, baseLimitConfig{base, inc})
}

// AddProtocolPeerLimit sets the limit of any one peer in one protocol.
func (cfg *ScalingLimitConfig) AddProtocolPeerLimit(proto protocol.ID, base BaseLimit, inc BaseLimitIncrease) {
	put(&cfg.ProtocolPeerLimits, proto, baseLimitConfig{base, inc})
}

// AddPeerLimit sets the limit of one peer.
func (cfg *ScalingLimitConfig) AddPeerLimit(p peer.ID, base BaseLimit, inc BaseLimitIncrease) {
	put(&cfg.PeerLimits, p, baseLimitConfig{base, inc})
}

// withOwnMaps returns a copy that shares nothing with cfg.
func (cfg ScalingLimitConfig) withOwnMaps() ScalingLimitConfig {
	cfg.ServiceLimits = maps.Clone(cfg.ServiceLimits)
	cfg.ServicePeerLimits = maps.Clone(cfg.ServicePeerLimits)
	cfg.ProtocolLimits = maps.Clone(cfg.ProtocolLimits)
	cfg.ProtocolPeerLimits = maps.Clone(cfg.ProtocolPeerLimits)
	cfg.PeerLimits = maps.Clone(cfg.PeerLimits)
	return cfg
}

// Scale returns the limits of a node that may use memory bytes and numFD file
// descriptors. AutoScale passes an eighth of the memory that this process may use, which suits a
// program that does other things besides; a machine that is dedicated to the node can give more.
// Up to 128 MiB the limits are the base limits. No limit grows beyond math.MaxInt
// (math.MaxInt64 for memory). A numFD of math.MaxInt means unlimited, and so does any
// fraction of it. If numFD is 0 or less, the limits of file descriptors are the base
// limits.
func (cfg *ScalingLimitConfig) Scale(memory int64, numFD int) ConcreteLimitConfig {
	var mebibytes int64
	if memory > 128<<20 {
		mebibytes = memory >> 20
	}
	scopes := cfg.scopes()
	return ConcreteLimitConfig{
		limits:  convert(scopes, func(c baseLimitConfig) BaseLimit { return c.scale(mebibytes, numFD) }),
		origins: convert(scopes, func(baseLimitConfig) scopeOrigins { return scopeOrigins{} }),
		sizing:  Sizing{Rules: "ScalingLimitConfig", Memory: memory, FileDescriptors: descriptorVal(numFD)},
	}
}

// scopes returns each limit together with its increase.
func (cfg *ScalingLimitConfig) scopes() perScope[baseLimitConfig] {
	return perScope[baseLimitConfig]{
		System:               baseLimitConfig{cfg.SystemBaseLimit, cfg.SystemLimitIncrease},
		Transient:            baseLimitConfig{cfg.TransientBaseLimit, cfg.TransientLimitIncrease},
		AllowlistedSystem:    baseLimitConfig{cfg.AllowlistedSystemBaseLimit, cfg.AllowlistedSystemLimitIncrease},
		AllowlistedTransient: baseLimitConfig{cfg.AllowlistedTransientBaseLimit, cfg.AllowlistedTransientLimitIncrease},
		ServiceDefault:       baseLimitConfig{cfg.ServiceBaseLimit, cfg.ServiceLimitIncrease},
		Service:              cfg.ServiceLimits,
		ServicePeerDefault:   baseLimitConfig{cfg.ServicePeerBaseLimit, cfg.ServicePeerLimitIncrease},
		ServicePeer:          cfg.ServicePeerLimits,
		ProtocolDefault:      baseLimitConfig{cfg.ProtocolBaseLimit, cfg.ProtocolLimitIncrease},
		Protocol:             cfg.ProtocolLimits,
		ProtocolPeerDefault:  baseLimitConfig{cfg.ProtocolPeerBaseLimit, cfg.ProtocolPeerLimitIncrease},
		ProtocolPeer:         cfg.ProtocolPeerLimits,
		PeerDefault:          baseLimitConfig{cfg.PeerBaseLimit, cfg.PeerLimitIncrease},
		Peer:                 cfg.PeerLimits,
		Conn:                 baseLimitConfig{cfg.ConnBaseLimit, cfg.ConnLimitIncrease},
		Stream:               baseLimitConfig{cfg.StreamBaseLimit, cfg.StreamLimitIncrease},
	}
}

func (c baseLimitConfig) scale(mebibytes int64, numFD int) BaseLimit {
	out := c.BaseLimit
	numbers := (*scopeLimits[int, int64])(&out).counts()
	for i, perGiB := range c.BaseLimitIncrease.counts() {
		*numbers[i] = int(grow(int64(*numbers[i]), int64(*perGiB), mebibytes, math.MaxInt))
	}
	out.Memory = grow(out.Memory, c.BaseLimitIncrease.Memory, mebibytes, math.MaxInt64)
	out.Rates = out.Rates.plus(c.BaseLimitIncrease.Rates, mebibytes)
	if fraction := c.BaseLimitIncrease.FDFraction; fraction > 0 && numFD > 0 {
		out.FD = max(out.FD, part(numFD, fraction))
	}
	return out
}

// plus returns the rates with those of an increase added once for each GiB.
func (r Rates) plus(more Rates, mebibytes int64) Rates {
	perGiB := more.all()
	for i, own := range r.all() {
		if *perGiB[i] == (Rate{}) || own.Burst == Unlimited {
			continue
		}
		own.PerSecond += perGiB[i].PerSecond * float64(mebibytes) / 1024
		// A burst that is left open goes on being what comes in a second.
		if own.Burst != 0 || perGiB[i].Burst != 0 {
			own.Burst = LimitVal(grow(own.burst(), int64(perGiB[i].Burst), mebibytes, math.MaxInt))
		}
	}
	return r
}

// grow returns base + perGiB × GiB, rounded down, and at most most. It uses big integers
// because the product may exceed 64 bits.
func grow(base, perGiB, mebibytes, most int64) int64 {
	sum := new(big.Int).Mul(big.NewInt(perGiB), big.NewInt(mebibytes))
	sum.Rsh(sum, 10)
	sum.Add(sum, big.NewInt(base))
	if sum.CmpAbs(big.NewInt(most)) > 0 {
		return int64(sum.Sign()) * most
	}
	return sum.Int64()
}

// part returns a fraction of n. Any fraction of unlimited is unlimited.
func part(n int, fraction float64) int {
	// On 64 bits float64(math.MaxInt) is one more than math.MaxInt, so the conversion of
	// a smaller number back to int is safe.
	if f := fraction * float64(n); n < math.MaxInt && f < math.MaxInt {
		return int(f)
	}
	return math.MaxInt
}

// AutoScale returns the limits of a node that may use an eighth of the memory that this
// process may use, and half of the file descriptors that it may open: see ThisMachine.
func (cfg *ScalingLimitConfig) AutoScale() ConcreteLimitConfig {
	return cfg.scaleTo(ThisMachine())
}

func (cfg *ScalingLimitConfig) scaleTo(m Machine) ConcreteLimitConfig {
	out := cfg.Scale(m.Memory/8, part(m.descriptors(), 0.5))
	out.sizing.Machine = m
	return out
}

// defaultLimiter returns the limits of a manager that was given no Limiter: DefaultLimits
// and the limits of libp2p's own services, scaled to this machine.
func defaultLimiter() Limiter {
	cfg := DefaultLimits.withOwnMaps()
	SetDefaultServiceLimits(&cfg)
	return NewFixedLimiter(cfg.AutoScale())
}

// The limits of the system scope and the transient scope, and their growth.
var (
	systemBase = BaseLimit{
		Conns: 128, ConnsInbound: 64, ConnsOutbound: 128,
		Streams: 2048, StreamsInbound: 1024, StreamsOutbound: 2048,
		FD:     256,
		Memory: 128 << 20,
	}
	systemIncrease = BaseLimitIncrease{
		Conns: 128, ConnsInbound: 64, ConnsOutbound: 128,
		Streams: 2048, StreamsInbound: 1024, StreamsOutbound: 2048,
		FDFraction: 1,
		Memory:     1 << 30,
	}
	transientBase = BaseLimit{
		Conns: 64, ConnsInbound: 32, ConnsOutbound: 64,
		Streams: 256, StreamsInbound: 128, StreamsOutbound: 256,
		FD:     64,
		Memory: 32 << 20,
	}
	transientIncrease = BaseLimitIncrease{
		Conns: 32, ConnsInbound: 16, ConnsOutbound: 32,
		Streams: 256, StreamsInbound: 128, StreamsOutbound: 256,
		FDFraction: 0.25,
		Memory:     128 << 20,
	}
)

// DefaultLimits are the limits of everything that a program does not configure itself.
// They must not be modified while another goroutine may read them.
var DefaultLimits = ScalingLimitConfig{
	SystemBaseLimit:        systemBase,
	SystemLimitIncrease:    systemIncrease,
	TransientBaseLimit:     transientBase,
	TransientLimitIncrease: transientIncrease,

	// Allowlisted addresses get as much again. Lower these to give them less.
	AllowlistedSystemBaseLimit:        systemBase,
	AllowlistedSystemLimitIncrease:    systemIncrease,
	AllowlistedTransientBaseLimit:     transientBase,
	AllowlistedTransientLimitIncrease: transientIncrease,

	ServiceBaseLimit:     BaseLimit{Streams: 4096, StreamsInbound: 1024, StreamsOutbound: 4096, Memory: 64 << 20},
	ServiceLimitIncrease: BaseLimitIncrease{Streams: 2048, StreamsInbound: 512, StreamsOutbound: 2048, Memory: 128 << 20},

	ServicePeerBaseLimit:     BaseLimit{Streams: 256, StreamsInbound: 128, StreamsOutbound: 256, Memory: 16 << 20},
	ServicePeerLimitIncrease: BaseLimitIncrease{Streams: 8, StreamsInbound: 4, StreamsOutbound: 8, Memory: 4 << 20},

	ProtocolBaseLimit:     BaseLimit{Streams: 2048, StreamsInbound: 512, StreamsOutbound: 2048, Memory: 64 << 20},
	ProtocolLimitIncrease: BaseLimitIncrease{Streams: 512, StreamsInbound: 256, StreamsOutbound: 512, Memory: 164 << 20},

	ProtocolPeerBaseLimit:     BaseLimit{Streams: 256, StreamsInbound: 64, StreamsOutbound: 128, Memory: 16 << 20},
	ProtocolPeerLimitIncrease: BaseLimitIncrease{Streams: 16, StreamsInbound: 4, StreamsOutbound: 8, Memory: 4 << 20},

	PeerBaseLimit: BaseLimit{
		// go-libp2p's swarm dials up to 8 addresses of a peer at a time.
		Conns: 8, ConnsInbound: 8, ConnsOutbound: 8,
		Streams: 512, StreamsInbound: 256, StreamsOutbound: 512,
		FD:     4,
		Memory: 64 << 20,
	},
	PeerLimitIncrease: BaseLimitIncrease{
		Streams: 256, StreamsInbound: 128, StreamsOutbound: 256,
		FDFraction: 1.0 / 64,
		Memory:     128 << 20,
	},

	ConnBaseLimit:   BaseLimit{Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1, Memory: 32 << 20},
	StreamBaseLimit: BaseLimit{Streams: 1, StreamsInbound: 1, StreamsOutbound: 1, Memory: 16 << 20},
}

// InfiniteLimits admit everything, have no gates, and only count. The operating system
// still limits file descriptors. A configuration that PartialLimitConfig.Build builds on
// them has the default gates unless it says otherwise.
var InfiniteLimits = infiniteLimits()

func infiniteLimits() ConcreteLimitConfig {
	cfg := ConcreteLimitConfig{ungated: true}
	for _, l := range cfg.limits.single() {
		*l = BaseLimit{
			Streams: math.MaxInt, StreamsInbound: math.MaxInt, StreamsOutbound: math.MaxInt,
			Conns: math.MaxInt, ConnsInbound: math.MaxInt, ConnsOutbound: math.MaxInt,
			FD:     math.MaxInt,
			Memory: math.MaxInt64,
		}
	}
	return cfg
}

// The names of go-libp2p's own services and protocols. They are repeated here because the
// packages that export them import a large part of go-libp2p.
const (
	identifyService  = "libp2p.identify"
	pingService      = "libp2p.ping"
	autonatService   = "libp2p.autonat"
	holepunchService = "libp2p.holepunch"
	relayService     = "libp2p.relay/v2"

	identifyProtocol     protocol.ID = "/ipfs/id/1.0.0"
	identifyPushProtocol protocol.ID = "/ipfs/id/push/1.0.0"
	pingProtocol         protocol.ID = "/ipfs/ping/1.0.0"
	autonatProtocol      protocol.ID = "/libp2p/autonat/1.0.0"
	holepunchProtocol    protocol.ID = "/libp2p/dcutr"
	relayHopProtocol     protocol.ID = "/libp2p/circuit/relay/0.2.0/hop"
	relayStopProtocol    protocol.ID = "/libp2p/circuit/relay/0.2.0/stop"
)

// bundled has libp2p's own services and protocols, and the limits of each, for all peers
// together and for any one peer.
//
// The memory of one peer in identify and ping is 1 MiB, as in the other services. That is
// far more than they reserve (8 KiB and 64 bytes a stream), and less than the base limit
// of their protocols for all peers (4 MiB), so one peer cannot take all of it.
var bundled = [...]struct {
	services  []string
	protocols []protocol.ID
	limit     BaseLimit
	increase  BaseLimitIncrease
	perPeer   BaseLimit
}{
	{
		services:  []string{identifyService},
		protocols: []protocol.ID{identifyProtocol, identifyPushProtocol},
		limit:     BaseLimit{Streams: 128, StreamsInbound: 64, StreamsOutbound: 64, Memory: 4 << 20},
		increase:  BaseLimitIncrease{Streams: 128, StreamsInbound: 64, StreamsOutbound: 64, Memory: 4 << 20},
		perPeer:   BaseLimit{Streams: 32, StreamsInbound: 16, StreamsOutbound: 16, Memory: 1 << 20},
	},
	{
		services:  []string{pingService},
		protocols: []protocol.ID{pingProtocol},
		limit:     BaseLimit{Streams: 64, StreamsInbound: 64, StreamsOutbound: 64, Memory: 4 << 20},
		increase:  BaseLimitIncrease{Streams: 64, StreamsInbound: 64, StreamsOutbound: 64, Memory: 4 << 20},
		perPeer:   BaseLimit{Streams: 4, StreamsInbound: 2, StreamsOutbound: 3, Memory: 1 << 20},
	},
	{
		services:  []string{autonatService},
		protocols: []protocol.ID{autonatProtocol},
		limit:     BaseLimit{Streams: 64, StreamsInbound: 64, StreamsOutbound: 64, Memory: 4 << 20},
		increase:  BaseLimitIncrease{Streams: 4, StreamsInbound: 4, StreamsOutbound: 4, Memory: 2 << 20},
		perPeer:   BaseLimit{Streams: 2, StreamsInbound: 2, StreamsOutbound: 2, Memory: 1 << 20},
	},
	{
		services:  []string{holepunchService},
		protocols: []protocol.ID{holepunchProtocol},
		limit:     BaseLimit{Streams: 64, StreamsInbound: 32, StreamsOutbound: 32, Memory: 4 << 20},
		increase:  BaseLimitIncrease{Streams: 16, StreamsInbound: 8, StreamsOutbound: 8, Memory: 4 << 20},
		perPeer:   BaseLimit{Streams: 2, StreamsInbound: 2, StreamsOutbound: 2, Memory: 1 << 20},
	},
	{
		services: []string{relayService},
		limit:    BaseLimit{Streams: 256, StreamsInbound: 256, StreamsOutbound: 256, Memory: 16 << 20},
		increase: BaseLimitIncrease{Streams: 256, StreamsInbound: 256, StreamsOutbound: 256, Memory: 16 << 20},
		perPeer:  BaseLimit{Streams: 64, StreamsInbound: 64, StreamsOutbound: 64, Memory: 1 << 20},
	},
	{ // for the relay and for the peers that use it
		protocols: []protocol.ID{relayHopProtocol, relayStopProtocol},
		limit:     BaseLimit{Streams: 640, StreamsInbound: 640, StreamsOutbound: 640, Memory: 16 << 20},
		increase:  BaseLimitIncrease{Streams: 640, StreamsInbound: 640, StreamsOutbound: 640, Memory: 16 << 20},
		perPeer:   BaseLimit{Streams: 128, StreamsInbound: 128, StreamsOutbound: 128, Memory: 32 << 20},
	},
}

// SetDefaultServiceLimits sets the limits of libp2p's own services and protocols:
// identify, ping, autonat, holepunch and relay. It replaces limits that config already
// has for them. Use it in place of the function of the same name in package libp2p, which
// accepts only go-libp2p's own type.
func SetDefaultServiceLimits(config *ScalingLimitConfig) {
	for _, b := range bundled {
		for _, svc := range b.services {
			config.AddServiceLimit(svc, b.limit, b.increase)
			config.AddServicePeerLimit(svc, b.perPeer, BaseLimitIncrease{})
		}
		for _, proto := range b.protocols {
			config.AddProtocolLimit(proto, b.limit, b.increase)
			config.AddProtocolPeerLimit(proto, b.perPeer, BaseLimitIncrease{})
		}
	}
}
