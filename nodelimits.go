package rcmgr

// Limits for a node that has its machine or container to itself, computed as Kubo
// does from two numbers, memory and file descriptors. Only the system, transient and
// peer scopes get computed limits. libp2p's own services and protocols keep their
// default limits, and everything else is unlimited.

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// NodeLimits describes what a node may use. The zero value lets it use half of the
// memory and half of the file descriptors of this process. Build computes limits from
// it by the rules of Kubo v0.43, and NewForNode makes a manager with these limits:
//
//   - The system scope may hold MaxMemory, MaxFileDescriptors, and one inbound
//     connection for each MiB of the memory, but at least 800 connections and at
//     least twice ConnMgrHighWater. Its inbound streams are unlimited, so that they
//     need not be raised along with the connections.
//   - The transient scope may hold a quarter of the memory, of the descriptors, and of
//     the inbound connections that follow from the memory alone.
//   - A peer may hold as many inbound connections and streams as in DefaultLimits.
//   - Outbound connections and streams are unlimited, because the node itself opens
//     them.
//   - The allowlisted scopes are unlimited.
type NodeLimits struct {
	// MaxMemory is how much memory libp2p may use, in bytes. 0 stands for half of
	// what the process may use (see ThisMachine).
	MaxMemory int64
	// MaxFileDescriptors is how many file descriptors libp2p may use; math.MaxInt is
	// no limit. 0 stands for half of those that the process may open.
	MaxFileDescriptors int
	// ConnMgrHighWater is the number of connections above which the connection
	// manager starts to close some; 0 means that it is not known. It is an error if
	// overrides leave the system scope with a limit that is not above this number (see
	// CheckHighWater), unless there is an Allowlist.
	ConnMgrHighWater int
	// NoConnMgr means that no connection manager closes connections. The limit on
	// inbound connections is then one for each MiB, even if that is below 800. A
	// ConnMgrHighWater beside it is logged, and is ignored.
	NoConnMgr bool
	// Allowlist lists the addresses and peers that are admitted when all others are
	// refused, in the form of WithAllowlistStrings. NewForNode passes it on; Build only
	// checks whether it is empty.
	Allowlist []string
	// Overrides take precedence over all computed limits. ReadLimitsFile reads such
	// overrides from a file.
	Overrides PartialLimitConfig
	// OverridesFile is the name of a file whose limits take precedence over Overrides;
	// empty means no file. Build reads it as ReadLimitsFile does, and can name the line
	// of the file even in errors that show only once the limits are built. If there is
	// no such file, the error matches fs.ErrNotExist.
	OverridesFile string
}

// minConnsInbound is the number of inbound connections that a node should accept at
// least, for the health of the network.
const minConnsInbound = 800

// NewForNode returns a manager with the limits that n.Build computes and with
// n.Allowlist. Options in opts are applied as by New.
func NewForNode(n NodeLimits, opts ...Option) (*Manager, error) {
	cfg, err := n.Build()
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	opts = append(slices.Clip(opts), WithAllowlistStrings(n.Allowlist, false))
	m, err := New(NewFixedLimiter(cfg), opts...)
	if err == nil {
		n.warnAbove(ThisMachine())
	}
	return m, err
}

// warnAbove logs that the node may use more memory than there is.
func (n *NodeLimits) warnAbove(have Machine) {
	if have.Memory > 0 && n.MaxMemory > have.Memory && n.MaxMemory < math.MaxInt64 {
		log.Warn("NodeLimits.MaxMemory is above the memory that this process may use",
			"max_memory", loggedAmount{dimMemory, n.MaxMemory}, "memory_found", loggedAmount{dimMemory, have.Memory}, "memory_from", have.MemoryFrom)
	}
}

// Build computes the limits. An error names the field of n that is invalid, or the
// limits that contradict each other, and says what was expected. Each error about
// limits is a ConfigError.
func (n NodeLimits) Build() (ConcreteLimitConfig, error) {
	return n.build(ThisMachine)
}

func (n NodeLimits) build(look func() Machine) (ConcreteLimitConfig, error) {
	if err := n.check(); err != nil {
		return ConcreteLimitConfig{}, err
	}
	if n.NoConnMgr && n.ConnMgrHighWater > 0 {
		log.Warn("NodeLimits has NoConnMgr, so its ConnMgrHighWater is ignored", "high_water", n.ConnMgrHighWater)
		n.ConnMgrHighWater = 0
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
	var overrides PartialLimitConfig
	var file *limitFile
	if n.OverridesFile != "" {
		var err error
		if overrides, file, err = parseLimitsFile(n.OverridesFile); err != nil {
			return ConcreteLimitConfig{}, err
		}
		cfg = overrides.Build(cfg)
	}
	cfg.sizing = sizing
	overrides.Apply(n.Overrides)
	errs := cfg.check()
	cfg.checkTransient(errs, &overrides)
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
	return nil
}

// computed returns the limits that follow from the two numbers. A limit that comes to 0
// reads as DefaultLimit, so the default limit takes its place.
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
