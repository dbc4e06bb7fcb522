package rcmgr

// The options of a manager, which are all choices besides its limits. They are checked when
// the manager is made, and fill in one config.

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// config is what options set.
type config struct {
	stripes        int
	admission      Admission
	refusalLog     time.Duration                       // 0: off
	writeRefusals  func(msg string, attrs []slog.Attr) // WithRefusalLogger
	observed       kindSet                             // WithObserveOnly
	newcomers      bool                                // WithNewcomersQuarter
	fair           kindSet                             // WithFairShare
	earmarks       *earmarks                           // WithEarmarks
	allowlisted    []allowlistEntry
	defaultSubnets subnetConfig            // the gates where the limit configuration sets none
	subnets        subnetConfig            // nil lists: as in the limit configuration
	callerRates    *callerRates            // nil: as in the limit configuration
	gatesByOption  *GateLimits             // WithGates
	strict         bool                    // WithStrictConfig
	faults         []fault                 // what go-libp2p's manager passes over
	leaks          *LeakFinderConfig       // nil: open scopes are not recorded
	pressure       *MemoryPressureConfig   // nil: the memory of the process is not watched
	room           *RoomConfig             // nil: no room is made
	owner          func(netip.Addr) string // WithOwners

	nearLimit  []func(NearLimitEvent)
	trimmed    []connmgr.ConnManager
	tracePath  string          // empty: no file
	reporters  []TraceReporter // without any StatsTraceReporter
	reporter   MetricsReporter // nil: decisions are not reported
	metricsOff bool            // WithMetricsDisabled
	statsAsked bool            // a StatsTraceReporter was given

	names      []allowlistedName // host names on the allowlist, which are not in allowlisted
	resolver   AllowlistResolver // nil: host names cannot be looked up
	namesEvery time.Duration     // the time between two lookups of a name
}

// traced reports whether the manager makes events.
func (c *config) traced() bool { return c.tracePath != "" || len(c.reporters) > 0 }

// measured reports whether MustRegisterWith shows the manager.
func (c *config) measured() bool { return c.statsAsked || !c.metricsOff }

// Option sets a property of a manager that is being made. If an option is invalid, New
// returns an error that names it. An option keeps copies of the lists that it is made from.
// It may be passed to any number of managers, also concurrently.
type Option func(*config) error

// WithStripes sets the number of stripes, which are the locks over which the manager divides
// its accounts. It must be a power of two from 1 to 256. With more stripes, more processors
// can work at the same time without waiting for each other. With fewer, decisions that need
// the locks of all stripes are cheaper. The default is 16 for each processor that Go uses
// (GOMAXPROCS), rounded up to a power of two, and down to four for each if a limit of the system
// or transient scope, or of services or protocols, is too small to be divided among more. A
// manager that is traced has one stripe.
func WithStripes(n int) Option {
	return func(c *config) error {
		if n < 1 || n > maxStripes || bits.OnesCount(uint(n)) != 1 {
			return fmt.Errorf("WithStripes: %d is not a power of two from 1 to %d", n, maxStripes)
		}
		c.stripes = n
		return nil
	}
}

// WithAdmission sets the rule by which the priority of a memory reservation decides how much
// of a limit it may fill. The default is AdmissionHalf.
func WithAdmission(a Admission) Option {
	return func(c *config) error {
		if int(a) >= len(admissionNames) {
			return fmt.Errorf("WithAdmission: unknown rule of admission: %d, expected %d (%v), %d (%v) or %d (%v)",
				a, AdmissionHalf, AdmissionHalf, AdmissionLinear, AdmissionLinear, AdmissionGraded, AdmissionGraded)
		}
		c.admission = a
		return nil
	}
}

// WithNewcomersQuarter sets whether parts of the transient scope's limits on streams are kept
// free for others. It is on by default.
//
//   - The last quarter of the limit on each direction is kept for peers that hold nothing
//     of it yet, or would hold at most a quarter of it. A single peer can then neither keep
//     out the first stream of a newcomer, nor, by not answering, the streams that this host
//     opens to other peers. A single peer can still get three quarters of the limit.
//   - A quarter of the limit on both directions, or the limit on inbound streams if that is
//     less, is kept for inbound streams. Outbound streams that wait for their protocol
//     cannot take it.
//
// Requests that are refused for this reason have CauseCrowding.
func WithNewcomersQuarter(on bool) Option {
	return func(c *config) error {
		c.newcomers = on
		return nil
	}
}

// WithRefusalLog sets how often the manager logs what it has refused since the last time. The
// default is every 10 seconds; 0 means never. The log has one line for each kind of scope and
// limit that has refused something, and no line if nothing was refused. The level is error,
// because go-libp2p's loggers show no lower level by default:
//
//	Protected from exceeding resource limits 2 times: "system: cannot reserve inbound connection: resource limit exceeded"
//
// The attributes of a line are
//
//   - current and limit: what was held, and the limit, at the refusal at which most was held.
//     Bytes are written with a unit, but as plain numbers by a JSON handler. A line of the gate
//     on rates has neither.
//   - cause: the causes of all these refusals, beginning with that of the refusal that current
//     and limit are from. It is left out if all were refused by the limit itself (CauseLimit).
//   - holder and holds: the peer or subnet that holds most of the limit when the line is
//     written, and how much it holds. They are present only if the holder is known, and holds
//     at least a tenth of current. A connection in the transient scope has no peer, and there
//     are subnets only with WithFairShare. To find the holder, the manager looks at each peer,
//     a few at a time.
//   - raise: the place in the configuration of the limit to raise.
//   - worst and worst_times: the name of one peer, subnet, service or protocol, and a
//     number of refusals that it certainly had. They are present only if that number is at
//     least a tenth of all.
//
// Close logs what was refused since the last line. A negative interval is an error.
// WithRefusalLogger sets another level and logger. At level debug, each refusal is logged when it
// happens, independently of the interval.
func WithRefusalLog(every time.Duration) Option {
	return func(c *config) error {
		if every < 0 {
			return fmt.Errorf("WithRefusalLog: %v is less than 0", every)
		}
		c.refusalLog = every
		return nil
	}
}

// WithRefusalLogger sets the logger and the level of the lines that WithRefusalLog describes, for
// a program that has logged refusals before, and whose operators look for them there. nil is the
// logger of this package, whose name is rcmgr. The logger is called without locks. If it panics,
// that is logged, and the logger of this package takes its place. Refusals at level debug, and all
// other lines, stay with the logger of this package.
func WithRefusalLogger(logger *slog.Logger, level slog.Level) Option {
	return func(c *config) error {
		c.writeRefusals = guardedLines(logger, level, "WithRefusalLogger")
		return nil
	}
}

// WithAllowlistedMultiaddrs adds entries to the allowlist. See Allowlist for their forms, and
// Allowlist.Add for what is ignored in them. The option may be given more than once.
func WithAllowlistedMultiaddrs(mas []multiaddr.Multiaddr) Option {
	var entries []allowlistEntry
	var faults []fault
	for _, ma := range mas {
		e, passed, err := readOrPassAllowlistEntry(ma)
		if err != nil {
			return func(*config) error { return fmt.Errorf("WithAllowlistedMultiaddrs: %w", err) }
		}
		if passed != nil {
			faults = append(faults, fault{fmt.Errorf("WithAllowlistedMultiaddrs: %w", passed.err), passed.then})
		}
		entries = append(entries, e)
	}
	return func(c *config) error {
		for _, e := range entries {
			c.list(e, func(err error) error { return fmt.Errorf("WithAllowlistedMultiaddrs: %w", err) })
		}
		c.faults = append(c.faults, faults...)
		return nil
	}
}

// WithAllowlistStrings adds entries to the allowlist that are given as text, for example in a
// configuration file. See Allowlist for their forms. If an entry is invalid, New returns an
// error that quotes it. With skipBad, New instead logs and skips the entry: a node then
// starts despite a mistake in its file, but the entry admits no connection or stream.
func WithAllowlistStrings(entries []string, skipBad bool) Option {
	entries = slices.Clone(entries)
	return func(c *config) error {
		for i, text := range entries {
			bad := func(err error) error {
				if skipBad {
					log.Warn("left out of the allowlist", "line", i+1, "err", err)
					return nil
				}
				return fmt.Errorf("WithAllowlistStrings: line %d: %w", i+1, err)
			}
			e, err := parseAllowlistText(text)
			if err == nil {
				c.list(e, bad)
			} else if err = bad(err); err != nil {
				return err
			}
		}
		return nil
	}
}

// WithLimitPerSubnet sets how many connections one subnet may have, for IPv4 and IPv6. A
// connection has to fit all limits of its family, except in networks for which there is a
// limit of their own (see WithNetworkPrefixLimit). A nil list leaves the limits of the
// limit configuration (see SubnetLimits), which by default are 8 for an IPv4 address, 8 for
// an IPv6 /56, and 64 for an IPv6 /48.
func WithLimitPerSubnet(v4, v6 []ConnLimitPerSubnet) Option {
	v4, v6 = slices.Clone(v4), slices.Clone(v6)
	return func(c *config) error {
		replace(&c.subnets.perSubnet, v4, v6)
		return nil
	}
}

// WithNetworkPrefixLimit sets, for each of the given networks, how many connections all of
// its addresses may have together. In these networks, the limits per subnet do not apply. If
// several networks contain an address, only the most specific one counts. A nil list leaves
// the networks of the limit configuration (see SubnetLimits), which by default leave
// loopback addresses unlimited.
func WithNetworkPrefixLimit(v4, v6 []NetworkPrefixLimit) Option {
	v4, v6 = slices.Clone(v4), slices.Clone(v6)
	return func(c *config) error {
		replace(&c.subnets.networks, v4, v6)
		return nil
	}
}

// WithConnRateLimiters replaces the limits on how fast one subnet may connect, including
// those of the limit configuration (see RateLimits), by a rate limiter of the caller's. nil,
// and a limiter that has no limit when the manager is made, mean no such limit. If a connection
// takes a token from the limiter and is then refused by another limit, the token is lost.
func WithConnRateLimiters(connRateLimiter *rate.Limiter) Option {
	return func(c *config) error {
		c.callerRates = newCallerRates(connRateLimiter)
		return nil
	}
}

// WithGates sets limits of the gates. Those that gates leaves out stay as in the limit
// configuration. Use it for limits that are not read from a file, or to turn on the gates for
// outbound connections. WithLimitPerSubnet, WithNetworkPrefixLimit and WithConnRateLimiters,
// which are go-libp2p's own options, take precedence over WithGates. If gates is invalid, New
// returns an error. If the option is given more than once, the last one counts.
func WithGates(gates GateLimits) Option {
	return func(c *config) error {
		if _, err := gates.config(defaultGateConfig()); err != nil {
			return fmt.Errorf("WithGates: %w", err)
		}
		c.gatesByOption = gates.over(nil)
		return nil
	}
}

// WithTrace writes a trace of everything that happens to a file. The file is compressed with
// gzip, and has one TraceEvt in JSON on each line. Existing contents are lost. If path is
// empty, no file is written.
//
// If the file cannot be opened, that is logged and there is no trace file; with
// WithStrictConfig, New returns an error. If the file can no longer be written, the error is
// logged and the file is closed, but the manager works as before. Events reach the
// file after about a second. Close writes the rest and closes the file.
//
// A traced manager always has a single stripe, even with WithStripes, so that events have
// one order and exact totals. It can therefore use only one processor at a time.
func WithTrace(path string) Option {
	return func(c *config) error {
		c.tracePath = path
		return nil
	}
}

// WithTraceReporter hands all events to a reporter (see TraceReporter). Events pass through a
// queue, so they reach the reporter a little later; Manager.FlushTrace and Manager.Close wait
// for them. The manager is then traced, with a single stripe (see WithTrace). The option may
// be given more than once, for several reporters. The reporter must not be nil.
//
// A StatsTraceReporter is an exception. It gets no events, and only ensures that
// MustRegisterWith shows the manager.
func WithTraceReporter(reporter TraceReporter) Option {
	return func(c *config) error {
		switch reporter.(type) {
		case nil:
			return errors.New("WithTraceReporter: the reporter is nil")
		case StatsTraceReporter, *StatsTraceReporter:
			c.statsAsked = true
		default:
			c.reporters = append(c.reporters, reporter)
		}
		return nil
	}
}

// WithMetrics reports every decision to a reporter (see MetricsReporter), which must not be
// nil. If the option is given more than once, the last one counts. Prometheus needs no
// reporter (see MustRegisterWith).
func WithMetrics(reporter MetricsReporter) Option {
	return func(c *config) error {
		if reporter == nil {
			return errors.New("WithMetrics: the reporter is nil")
		}
		c.reporter = reporter
		return nil
	}
}

// WithMetricsDisabled leaves the manager out of the metrics that MustRegisterWith shows,
// unless WithTraceReporter is given a StatsTraceReporter.
func WithMetricsDisabled() Option {
	return func(c *config) error {
		c.metricsOff = true
		return nil
	}
}

// repairSubnets repairs the limits of subnets, see subnetConfig.repair.
func (c *config) repairSubnets() []fault {
	return append(c.defaultSubnets.repair("DefaultNetworkPrefixLimit"), c.subnets.repair("WithNetworkPrefixLimit")...)
}

// attrs returns, for the log, which of the options are on that have a goroutine, a callback or
// records of their own. The first three are there even if they are off.
func (c *config) attrs() []any {
	onOff := func(on bool, text string) string {
		if on {
			return text
		}
		return "off"
	}
	room := "on"
	if c.room != nil && c.room.ObserveOnly {
		room = "observe only"
	}
	attrs := []any{"room", onOff(c.room != nil, room), "memory_pressure", c.pressure.logged(), "leak_finder", onOff(c.leaks != nil, "on")}
	for _, more := range []struct {
		name  string
		value any
		on    bool
	}{
		{"owners", "on", c.owner != nil},
		{"trimming", "on", len(c.trimmed) > 0},
		{"near_limit_functions", len(c.nearLimit), len(c.nearLimit) > 0},
		{"metrics_reporter", "on", c.reporter != nil},
		{"strict_config", "on", c.strict},
		{"refusal_log", "off", c.refusalLog == 0},
	} {
		if more.on {
			attrs = append(attrs, more.name, more.value)
		}
	}
	return attrs
}

// gateConfig returns the configuration of the gates of a manager with these limits.
func (c *config) gateConfig(limits Limiter) (gateConfig, error) {
	g, err := gateConfigOf(limits, gateConfig{subnets: c.defaultSubnets, rate: defaultRateConfig()})
	if err != nil {
		return gateConfig{}, err
	}
	if g, err = c.gatesByOption.config(g); err != nil {
		return gateConfig{}, err
	}
	replace(&g.subnets.perSubnet, c.subnets.perSubnet[ip.V4], c.subnets.perSubnet[ip.V6])
	replace(&g.subnets.networks, c.subnets.networks[ip.V4], c.subnets.networks[ip.V6])
	for f := range ip.Families {
		g.subnets.replaced.perSubnet[f], g.subnets.replaced.networks[f] = c.subnets.perSubnet[f] != nil, c.subnets.networks[f] != nil
	}
	return g, nil
}

// replace sets the lists of the families for which there is a new list.
func replace[T any](lists *[ip.Families][]T, v4, v6 []T) {
	if v4 != nil {
		lists[ip.V4] = v4
	}
	if v6 != nil {
		lists[ip.V6] = v6
	}
}

// WithFairShare keeps a single peer, a single subnet, and the network or the owner of many subnets
// from taking all of a scope. kinds may
// be KindTransient and KindSystem; if it is empty, the option applies to the transient scope.
// It is off by default.
//
// The rule covers inbound connections and streams, and the outbound connections and streams that
// are still in the transient scope. It covers the limits on inbound streams, streams in both
// directions, inbound connections, connections in both directions, and file descriptors, and
// transient's limits on outbound streams and connections. It applies to a request with which the
// scope would hold more than half of such a limit:
//
//   - A peer that holds something already is refused if it would hold more than a quarter of
//     the limit. For peers, this is also true of memory.
//   - A subnet is refused if less of the limit would be left than the subnet holds. A subnet
//     is an IPv4 /24 or an IPv6 /56.
//   - An IPv4 address that shares its /24 with others is refused if less would be left than twice
//     what it holds.
//   - A network is refused if less would be left than a part of what it holds: half for an IPv4
//     /16, an IPv6 /48 and an owner (WithOwners), a quarter for an IPv6 /32. What the subnet that
//     asks holds counts twice here, so that it leaves as much of what the network or the owner may
//     hold to other subnets. In an IPv6 /32, the /48 stand in the place of subnets.
//
// A group holds the inbound connections from its addresses, and the inbound streams of each peer
// whose first inbound connection came from it. It also holds the outbound connections to its
// addresses, and the outbound streams to each such peer; the first outbound connection decides for
// peers that have had no inbound one. Peers behind a relay that has an address belong to the
// relay's groups, except that of its single IPv4 address.
//
// A group that holds nothing is admitted while there is room. Connections without any IP address
// belong to no group, and neither do those at 127.0.0.1 and ::1. Connections and streams of the
// allowlist fall back on the allowlisted scopes, as if a limit had refused them, and the rule does
// not apply to them once their peer is known.
//
// A refusal is a *LimitError of the scope with CauseFairShare. If kinds contains another
// kind, New returns an error.
func WithFairShare(kinds ...Kind) Option {
	if len(kinds) == 0 {
		kinds = []Kind{KindTransient}
	}
	var shared kindSet
	for _, k := range kinds {
		if k != KindTransient && k != KindSystem {
			return func(*config) error {
				return fmt.Errorf("WithFairShare: %v has no shares, expected transient or system", k)
			}
		}
		shared |= 1 << k
	}
	return func(c *config) error {
		c.fair |= shared
		return nil
	}
}

// WithOwners names the owners of addresses for WithFairShare and WithRoom: an autonomous system, a
// cloud, an entry of a list. All addresses of an owner are one group, however many subnets it has.
// An empty name means that the owner is not known. Without the option, only prefixes are groups.
//
// owner is called when the first connection from or to an address opens and, whenever room is
// made, for each connection that may be let go. It is called by any number of goroutines at once,
// without locks, and must be fast; a table of prefixes in memory is fast enough. WithFairShare
// asks for only one address of each IPv6 /56.
//
// A name of more than 64 bytes counts as no name. If owner panics, it is not called again. Both
// are logged and counted as a caller's bug. If the option is given more than once, the last one
// counts.
func WithOwners(owner func(netip.Addr) string) Option {
	return func(c *config) error {
		if owner == nil {
			return errors.New("WithOwners: expected a function, not nil")
		}
		c.owner = owner
		return nil
	}
}

// WithEarmarks keeps parts of the limits of the system and transient scopes for peers and protocols
// that the host names: its mesh, validators, friends. Others are refused once no more than these
// parts are left, with CauseEarmark. It is off by default.
//
// The parts lie inside the limits. Each is kept free in addition to what its peers and protocols
// hold already. A peer that has an earmark, and a stream of a protocol that has one, may take the
// parts of all its earmarks and what is free to all peers. Neither fair shares nor the newcomers'
// quarter apply to it.
//
// Whether a connection may stay in a part is decided when its peer is known, and for a stream also
// when its protocol is known. Before that, as many of them as the transient scope admits may stand
// in a part that turns out not to be theirs, so a part should be larger than that scope's limits.
// Connections that the allowlist covers are admitted in any case. No earmark is kept from memory
// that is reserved at a shared scope itself, because it has no peer.
//
// New returns an error if a part, a name or a protocol is not valid.
func WithEarmarks(list ...Earmark) Option {
	return func(c *config) error {
		all, err := c.earmarks.with(list)
		if err != nil {
			return fmt.Errorf("WithEarmarks: %w", err)
		}
		c.earmarks = all
		return nil
	}
}

// WithLeakFinder keeps a record of each open connection and stream, so that Snapshot and the
// live page show the oldest of each class, and finds those that are dropped without Done. It
// is off by default. It about doubles the time to open and close a connection or stream, but
// does not slow down reservations. Ages are exact to a second.
//
// A connection or stream that is dropped without Done is counted and logged as a caller's
// bug when the garbage collector finds it. Everything that it held stays reserved.
func WithLeakFinder(f LeakFinderConfig) Option {
	return func(c *config) error {
		if f.Stacks < 0 || f.Oldest < 0 {
			return fmt.Errorf("WithLeakFinder: Stacks is %d and Oldest %d, they must not be negative", f.Stacks, f.Oldest)
		}
		c.leaks = &LeakFinderConfig{Stacks: f.Stacks, Oldest: cmp.Or(f.Oldest, 10)}
		return nil
	}
}

// WithNearLimitFunc calls f when the use of a limit reaches 80 percent, and again when it
// reaches 95 percent. If it reaches both at once, f is called for both. f is called again for
// a mark only after use has fallen below it by more than five percent of the limit.
//
// The manager looks five times a second at the scopes that all peers share: system,
// transient, the allowlisted ones, services and protocols. It does not watch single peers,
// connections and streams, because remote peers can make these come and go as they like, and
// it does not watch the gates.
//
// f is called by one goroutine at a time and without any lock, so it may call all methods of
// the manager except Close, which waits for f to return. The next look waits for f, too. If f
// panics, the panic is logged and f is not called again. The option may be given more than
// once, for several functions. f must not be nil.
func WithNearLimitFunc(f func(NearLimitEvent)) Option {
	return func(c *config) error {
		if f == nil {
			return errors.New("WithNearLimitFunc: the function is nil")
		}
		c.nearLimit = append(c.nearLimit, f)
		return nil
	}
}

// WithTrimming asks a connection manager to close its least valuable connections when the
// system scope uses 80 percent of its limit on connections, file descriptors or memory. It
// asks five times a second, because new connections and those in their grace period can be
// closed only later. It stops when use has fallen below 75 percent.
//
// The connection manager trims as if its high water mark had been reached: it closes
// connections that it does not protect, down to its low water mark. The low water mark must
// lie below 75 percent of the limit for this to make room. The high water mark may even lie
// above the limit.
//
// The connection manager is called by one goroutine at a time and without any lock. Close
// waits for the call to return. If the connection manager panics, the panic is logged and it
// is not called again. The option may be given more than once, for several connection
// managers. cm must not be nil.
func WithTrimming(cm connmgr.ConnManager) Option {
	return func(c *config) error {
		if cm == nil {
			return errors.New("WithTrimming: the connection manager is nil")
		}
		c.trimmed = append(c.trimmed, cm)
		return nil
	}
}

// WithObserveOnly starts the manager with limits that are only observed: those of the given
// kinds of scopes and gates, or of all kinds if none is given. Such limits refuse nothing.
// Requests that they would have refused are admitted, accounted for exactly, and counted in
// Snapshot.WouldRefuse and the metrics. They are logged in lines that begin with "Would
// have". Limits of other kinds refuse as usual. The only requests that an observed limit
// refuses are those that would bring a sum above math.MaxInt64.
//
// Manager.Enforce and Manager.ObserveOnly change the kinds while the manager runs. If a kind
// does not exist, New returns an error.
func WithObserveOnly(kinds ...Kind) Option {
	set, err := kindSetOf(kinds)
	return func(c *config) error {
		if err != nil {
			return fmt.Errorf("WithObserveOnly: %w", err)
		}
		c.observed |= set
		return nil
	}
}

// WithMemoryPressure refuses inbound connections and inbound streams while this process has
// too much memory in use, for any purpose. It is off by default.
//
// Connections and streams that are open stay open, and may reserve what their limits admit. With
// WithRoom, the host closes connections of the groups that hold most. Outbound connections and
// streams are not refused, and neither are those of the allowlist. A connection from an address for
// which the allowlist names a peer is refused when its peer turns out to be another one. Allowlist
// entries without an address admit only streams, because the peer of a new connection is not known
// yet.
//
// A refusal is a *LimitError with KindProcess and CauseMemoryPressure. If p is invalid, New
// returns an error.
func WithMemoryPressure(p MemoryPressureConfig) Option {
	return func(c *config) error {
		own := p // each manager fills in its own copy, with its own buffers for reading
		if err := own.check(); err != nil {
			return fmt.Errorf("WithMemoryPressure: %w", err)
		}
		c.pressure = &own
		return nil
	}
}

// WithRoom lets go of connections and streams when a scope is nearly full, so that newcomers
// find room. It is off by default. It needs a host that is attached by Manager.AttachHost or made
// with an option of package rcmgrhost.
//
// While it is on, a small part of each limit of the system and transient scopes and of services
// and protocols is kept free: a thirty-second, or one if the limit is at least eight. When half of
// that is taken, or when such a scope refuses something, the host closes connections or resets
// streams until the reserve is free again, at once and in batches. While requests use up the
// reserve faster than room is made, it is larger, up to an eighth. A limit of less than eight has
// no reserve, and room for one is made after each refusal.
//
// These are kept in any case: what the host has opened, what the allowlist covers, and peers that
// the connection manager protects. Of the others, up to a quarter is kept because the connection
// manager values their peers most, up to an eighth because their peers use a protocol of
// RoomConfig.Protocols, up to a sixteenth as the only ones of their networks, and up to a quarter
// because they have been open longest. The rest competes by groups: each connection belongs to its
// peer, its address, its /24 and its /16 (/56, /48 and /32 in IPv6), and the owner that WithOwners
// names; peers behind a relay belong to the relay's groups. A group's share is two connections for
// a peer or an address, eight for a /24, and 32 for a /16 or an owner. The group that holds most
// relative to its share loses first, its newest connections before older ones; connections without
// any stream count twice. Where no group is above its share, chance decides among the older half.
// Streams without a protocol go in the other order: those that have waited longest go first.
// docs/room.md has the details.
//
// A handshake has no network.Conn that could be closed, so that no room is made in transient's
// limits on connections and descriptors, except with RoomForHandshakes of package rcmgrhost. No
// room is made in limits on what the host itself opens, except for streams that have waited for a
// protocol for three seconds or more. In the memory of the process, room is made with
// WithMemoryPressure; the manager runs a garbage collection then whenever connections have gone.
//
// If c is invalid, New returns an error.
func WithRoom(c RoomConfig) Option {
	c, err := c.checked()
	return func(to *config) error {
		if err != nil {
			return fmt.Errorf("WithRoom: %w", err)
		}
		own := c
		to.room = &own
		return nil
	}
}

// WithAllowlistResolver makes host names entries of the allowlist, in all options and in
// Allowlist.Add: /dns/…, /dns4/…, /dns6/… and /dnsaddr/…, with or without /p2p/… at the end. A
// name stands for the addresses that r finds for it. Without the option, a host name is an
// error.
//
// A name is looked up when it is listed, and about every given time after that, or every five
// minutes if every is 0. The addresses of a new answer take the place of the last ones in one
// step. Connections that are open keep what the list gave them. If a lookup fails or finds no
// address, the addresses of the last answer stay, however old they are, and the lookup is
// repeated after ten seconds, and then after twice as long each time. If only a part of a
// lookup fails, its addresses are added to the last ones.
//
// New does not wait for an answer, so that a host starts while its name servers do not answer.
// Until the first answer comes, the allowlist does not cover the addresses of the name.
//
// The first failure after a success is logged. Snapshot.Allowlist, the live page and the metrics
// show which names fail. A lookup that hangs does not delay other names. Close cancels all
// lookups, but does not wait for a resolver that does not return when its context ends.
//
// An answer that names a peer, which a dnsaddr may have, admits only that peer at the address.
// An entry /dnsaddr/…/p2p/… admits only the addresses that the answer has for that peer.
// Relayed addresses and networks in an answer are left out.
//
// There may be 256 names, and a name stands for at most 64 addresses. If an answer has more,
// those that come last in the order of their numbers are left out. Eight lookups run at a time,
// each for 30 seconds at most. It is an error if r is nil, or if every is neither 0 nor at least
// ten seconds. If the option is given more than once, the last one counts.
func WithAllowlistResolver(r AllowlistResolver, every time.Duration) Option {
	return func(c *config) error {
		if r == nil {
			return errors.New("WithAllowlistResolver: the resolver is nil")
		}
		every := cmp.Or(every, nameInterval)
		if every < leastNameInterval {
			return fmt.Errorf("WithAllowlistResolver: %v between two lookups, expected at least %v, or 0 for %v", every, leastNameInterval, nameInterval)
		}
		c.resolver, c.namesEvery = r, every
		return nil
	}
}

// allowlistedName is a host name that an option has put on the allowlist. Another option may
// have the resolver, so whether the name can be kept is known only when all have been read.
type allowlistedName struct {
	allowlistEntry
	// refused is called with the reason why it cannot be kept. It returns the error of New, or
	// nil if New passes over the entry.
	refused func(error) error
}

// list adds an entry to the allowlist. See allowlistedName for refused.
func (c *config) list(e allowlistEntry, refused func(error) error) {
	if e.name == "" {
		c.allowlisted = append(c.allowlisted, e)
	} else {
		c.names = append(c.names, allowlistedName{e, refused})
	}
}

// listNames puts the host names on a list, and forgets those that are passed over.
func (c *config) listNames(al *Allowlist) (err error) {
	c.names = slices.DeleteFunc(c.names, func(n allowlistedName) bool {
		bad := al.put(n.allowlistEntry, 1)
		if bad != nil && err == nil {
			err = n.refused(bad)
		}
		return bad != nil
	})
	return err
}

// NearLimitEvent says that a scope uses much of a limit. See WithNearLimitFunc.
type NearLimitEvent struct {
	Scope     string // the scope's name, such as "system" or "protocol:/ipfs/ping/1.0.0"
	Kind      Kind
	Name      string // the limit's name in configurations, such as "ConnsInbound"
	Resource  Resource
	Direction network.Direction // network.DirUnknown as in LimitError.Direction
	Percent   int               // the mark that was reached: 80 or 95
	Use       int64             // when the manager looked, in bytes or as a count
	Limit     int64             // in bytes or as a count
}
