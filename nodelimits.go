package rcmgr

// Limits for a node that has its machine, or its container, to itself: two
// numbers, from which all others follow as they do in Kubo. What it computes is
// for the system, transient and peer scopes; libp2p's own services and protocols
// keep their limits, and everything else is unlimited.

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// NodeLimits says what a node may use. Its zero value is half of the memory and
// of the file descriptors of this process. The rules are those of Kubo v0.43:
//
//   - System holds MaxMemory, MaxFileDescriptors, and one inbound connection for
//     each MiB of the memory; at least 800 of these, and at least twice
//     ConnMgrHighWater. Inbound streams are unlimited there, so that they need
//     not be raised along with the connections.
//   - Transient holds a quarter of the memory, the descriptors, and the inbound
//     connections that the memory alone gives.
//   - A peer holds as many inbound connections and streams as by DefaultLimits.
//   - What the node itself begins is trusted: outbound is unlimited.
//   - The allowlisted scopes are unlimited.
//
// Build makes limits of it, NewForNode a manager.
type NodeLimits struct {
	// MaxMemory is what libp2p may use, in bytes. 0 is half of what the process
	// may use, see ThisMachine.
	MaxMemory int64
	// MaxFileDescriptors is how many libp2p may use; math.MaxInt is no limit. 0
	// is half of those that the process may open.
	MaxFileDescriptors int
	// ConnMgrHighWater is the number of connections from which on the connection
	// manager closes some. Limits that would refuse connections before that are
	// an error, unless there is an Allowlist. 0 is not known.
	ConnMgrHighWater int
	// NoConnMgr says that no connection manager closes connections. Then one
	// inbound connection for each MiB is all there is, however few that are.
	NoConnMgr bool
	// Allowlist names who is served when everybody else is refused, see
	// WithAllowlistStrings. Build only looks whether there is any; NewForNode
	// lets them in.
	Allowlist []string
	// Overrides go before everything that is computed. ReadLimitsFile reads them
	// from a file.
	Overrides PartialLimitConfig
	// OverridesFile is the name of a file that goes before Overrides, read by Build as
	// ReadLimitsFile reads it. Its advantage over that is that errors which show only
	// when limits are built name the line, too. Empty is no file; if there is none of
	// the name, the error matches fs.ErrNotExist.
	OverridesFile string
}

// minConnsInbound is how many inbound connections a node should be able to take
// for the network's sake.
const minConnsInbound = 800

// NewForNode makes a manager with the limits of a node. It is New with what Build
// gives, and with the allowlist.
func NewForNode(n NodeLimits, opts ...Option) (*Manager, error) {
	cfg, err := n.Build()
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	opts = append(slices.Clip(opts), WithAllowlistStrings(n.Allowlist, false))
	return New(NewFixedLimiter(cfg), opts...)
}

// Build computes the limits. An error names the field of n, or the limits that
// contradict each other, and what was expected; errors of the latter kind are a
// ConfigError each.
func (n NodeLimits) Build() (ConcreteLimitConfig, error) {
	return n.build(ThisMachine)
}

func (n NodeLimits) build(look func() Machine) (ConcreteLimitConfig, error) {
	if err := n.check(); err != nil {
		return ConcreteLimitConfig{}, err
	}
	sizing := Sizing{Rules: "NodeLimits"}
	memory, descriptors := n.MaxMemory, n.MaxFileDescriptors
	if memory == 0 || descriptors == 0 {
		sizing.Machine = look()
		memory = cmp.Or(memory, sizing.Machine.Memory/2)
		descriptors = cmp.Or(descriptors, part(sizing.Machine.descriptors(), 0.5))
	}
	sizing.Memory, sizing.FileDescriptors = memory, descriptorVal(descriptors)

	defaults := DefaultLimits.withOwnMaps()
	SetDefaultServiceLimits(&defaults)
	cfg := n.computed(memory, descriptors).build(defaults.Scale(memory, descriptors), OriginNodeLimits)
	cfg = n.Overrides.Build(cfg)
	var said PartialLimitConfig
	var file *limitFile
	if n.OverridesFile != "" {
		var err error
		if said, file, err = parseLimitsFile(n.OverridesFile); err != nil {
			return ConcreteLimitConfig{}, err
		}
		cfg = said.Build(cfg)
	}
	cfg.sizing = sizing
	said.Apply(n.Overrides)
	errs := cfg.check()
	cfg.checkTransient(errs, &said)
	if n.ConnMgrHighWater > 0 && len(n.Allowlist) == 0 {
		if conflict := cfg.highWaterConflict(n.ConnMgrHighWater); conflict != nil {
			errs.add(conflict)
		}
	}
	if err := file.placed(errs); err != nil {
		return ConcreteLimitConfig{}, err
	}
	return cfg, nil
}

func (n *NodeLimits) check() error {
	for _, f := range []struct {
		name string
		n    int64
	}{
		{"MaxMemory", n.MaxMemory}, {"MaxFileDescriptors", int64(n.MaxFileDescriptors)},
		{"ConnMgrHighWater", int64(n.ConnMgrHighWater)},
	} {
		if f.n < 0 {
			return fmt.Errorf("limits: NodeLimits.%s is %d, it must not be negative", f.name, f.n)
		}
	}
	if n.NoConnMgr && n.ConnMgrHighWater > 0 {
		return fmt.Errorf("limits: NodeLimits has ConnMgrHighWater %d and NoConnMgr: set one of the two", n.ConnMgrHighWater)
	}
	return nil
}

// computed is what the numbers say. Where a part comes to nothing, it is left to
// the defaults, as DefaultLimit does.
func (n *NodeLimits) computed(memory int64, descriptors int) PartialLimitConfig {
	perMiB := int(min(memory>>20, math.MaxInt))
	inbound := perMiB
	if !n.NoConnMgr {
		inbound = max(inbound, minConnsInbound, 2*min(n.ConnMgrHighWater, math.MaxInt/2))
	}
	unlimited := ResourceLimits{
		Streams: Unlimited, StreamsInbound: Unlimited, StreamsOutbound: Unlimited,
		Conns: Unlimited, ConnsInbound: Unlimited, ConnsOutbound: Unlimited,
		FD: Unlimited, Memory: Unlimited64,
	}
	limited := func(bytes int64, fds, conns int) ResourceLimits {
		l := unlimited
		l.Memory, l.FD, l.ConnsInbound = LimitVal64(bytes), descriptorVal(fds), LimitVal(conns)
		return l
	}
	peer := unlimited
	peer.ConnsInbound, peer.StreamsInbound = DefaultLimit, DefaultLimit
	return PartialLimitConfig{
		System:    limited(memory, descriptors, inbound),
		Transient: limited(memory/4, part(descriptors, 0.25), perMiB/4),

		AllowlistedSystem:    unlimited,
		AllowlistedTransient: unlimited,
		ServiceDefault:       unlimited,
		ServicePeerDefault:   unlimited,
		ProtocolDefault:      unlimited,
		ProtocolPeerDefault:  unlimited,
		PeerDefault:          peer,
		Conn:                 unlimited,
		Stream:               unlimited,
	}
}
