package rcmgr

// What can be chosen about a manager besides its limits. Options are checked when
// the manager is made; all that they say ends up in one config.

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
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
	stripes       int
	admission     Admission
	refusalLog    time.Duration // 0: off
	observed      kindSet       // WithObserveOnly
	newcomers     bool          // WithNewcomersQuarter
	fair          kindSet       // WithFairShare
	allowlisted   []allowlistEntry
	gates         gateConfig            // of a limit configuration that does not say otherwise
	subnets       subnetConfig          // nil lists: what the limit configuration says
	callerRates   *callerRates          // nil: likewise
	gatesByOption GateLimits            // by WithGates
	leaks         *LeakFinderConfig     // nil: no records of what is open
	pressure      *MemoryPressureConfig // nil: the process's memory is not looked at

	nearLimit  []func(NearLimitEvent)
	trimmed    []connmgr.ConnManager
	tracePath  string          // empty: no file
	reporters  []TraceReporter // of traces; StatsTraceReporter is none of them
	reporter   MetricsReporter // nil: nobody is told of decisions
	metricsOff bool            // WithMetricsDisabled
	statsAsked bool            // a StatsTraceReporter was given
}

// traced tells whether events are wanted.
func (c *config) traced() bool { return c.tracePath != "" || len(c.reporters) > 0 }

// measured tells whether the manager is one of those that metrics show.
func (c *config) measured() bool { return c.statsAsked || !c.metricsOff }

// Option sets something about a manager that is being made. What an option cannot
// mean is an error of New that names the option. It keeps a copy of the lists that it
// is made from, and may be given to any number of managers, also at the same time.
type Option func(*config) error

// WithStripes sets the number of stripes, a power of two from 1 to 256. More
// stripes let more processors work at the same time without waiting for each
// other; fewer make the decisions that need all of them cheaper. The default
// is four for each processor that Go uses.
func WithStripes(n int) Option {
	return func(c *config) error {
		if n < 1 || n > maxStripes || bits.OnesCount(uint(n)) != 1 {
			return fmt.Errorf("WithStripes: %d is not a power of two from 1 to %d", n, maxStripes)
		}
		c.stripes = n
		return nil
	}
}

// WithAdmission sets the rule by which priorities of memory reservations are
// read. The default is AdmissionHalf.
func WithAdmission(a Admission) Option {
	return func(c *config) error {
		if a != AdmissionHalf && a != AdmissionLinear {
			return fmt.Errorf("WithAdmission: no such rule: %d", a)
		}
		c.admission = a
		return nil
	}
}

// WithNewcomersQuarter says whether parts of the transient scope's streams are kept free:
//
//   - of the streams in each direction, the last quarter, for peers that hold less than a
//     quarter of them. No single peer can then keep a newcomer's first stream out, and none
//     that hangs those that this host opens to others; a lone peer still gets three quarters.
//   - of the total, a quarter for inbound streams, or their own limit if that is less:
//     outbound ones that wait for their protocol do not take it.
//
// It is on by default. What is refused for the sake of others has CauseCrowding.
func WithNewcomersQuarter(on bool) Option {
	return func(c *config) error {
		c.newcomers = on
		return nil
	}
}

// WithRefusalLog sets how often the log tells what has been refused since the
// last time: at level error, which is what go-libp2p's loggers show by default,
// one line for each kind of scope and limit that has refused anything, and no
// line otherwise:
//
//	Protected from exceeding resource limits 2 times: "system: cannot reserve inbound connection: resource limit exceeded"
//
// Its attributes are current and limit as they were at the last refusal (of bytes with
// their unit, which a log in JSON has as a number), cause
// if that was not the limit itself, raise with the place in the configuration
// that would admit more, and, if one peer, subnet, service or protocol had at
// least a tenth of all, worst with its name and worst_times with how often it
// was refused for certain. Close writes the rest. The default is every 10
// seconds; 0 is never, for hosts that do it themselves. At level debug, each
// refusal is logged with its numbers when it happens, whatever is set here.
func WithRefusalLog(every time.Duration) Option {
	return func(c *config) error {
		if every < 0 {
			return fmt.Errorf("WithRefusalLog: %v is less than 0", every)
		}
		c.refusalLog = every
		return nil
	}
}

// WithAllowlistedMultiaddrs adds entries to the allowlist. Given again, it
// adds more. See Allowlist.Add for what an entry looks like.
func WithAllowlistedMultiaddrs(mas []multiaddr.Multiaddr) Option {
	var entries []allowlistEntry
	for _, ma := range mas {
		e, err := readAllowlistEntry(ma)
		if err != nil {
			return func(*config) error { return fmt.Errorf("WithAllowlistedMultiaddrs: %w", err) }
		}
		entries = append(entries, e)
	}
	return func(c *config) error {
		c.allowlisted = append(c.allowlisted, entries...)
		return nil
	}
}

// WithAllowlistStrings is WithAllowlistedMultiaddrs for entries as text, as they
// stand in a configuration file. What is no entry is an error of New that
// quotes it or, with skipBad, is logged and left out: a node then starts
// despite a slip in its file, and refuses whom the slip was to let in.
func WithAllowlistStrings(entries []string, skipBad bool) Option {
	entries = slices.Clone(entries)
	return func(c *config) error {
		for i, text := range entries {
			e, err := parseAllowlistText(text)
			switch {
			case err == nil:
				c.allowlisted = append(c.allowlisted, e)
			case skipBad:
				log.Warn("left out of the allowlist", "line", i+1, "err", err)
			default:
				return fmt.Errorf("WithAllowlistStrings: line %d: %w", i+1, err)
			}
		}
		return nil
	}
}

// WithLimitPerSubnet sets how many connections one subnet may have, for IPv4
// and IPv6; nil leaves what the limit configuration says (see SubnetLimits), by
// default 8 for an IPv4 address; 8 for an IPv6 /56 and 64 for a /48. A
// connection has to fit all entries of its family. WithNetworkPrefixLimit goes
// before it.
func WithLimitPerSubnet(v4, v6 []ConnLimitPerSubnet) Option {
	v4, v6 = slices.Clone(v4), slices.Clone(v6)
	return func(c *config) error {
		replace(&c.subnets.perSubnet, v4, v6)
		return nil
	}
}

// WithNetworkPrefixLimit sets how many connections all addresses of given
// networks may have together, in place of the limits per subnet; nil leaves
// what the limit configuration says (see SubnetLimits), by default that
// loopback is unlimited. Where several cover an address, the most specific one
// counts.
func WithNetworkPrefixLimit(v4, v6 []NetworkPrefixLimit) Option {
	v4, v6 = slices.Clone(v4), slices.Clone(v6)
	return func(c *config) error {
		replace(&c.subnets.networks, v4, v6)
		return nil
	}
}

// WithConnRateLimiters replaces the limit on how fast one subnet may connect,
// whatever the limit configuration says about it (see RateLimits). nil means no
// such limit. A token taken from a limiter of one's own cannot be given back when
// something else refuses the connection.
func WithConnRateLimiters(connRateLimiter *rate.Limiter) Option {
	return func(c *config) error {
		c.callerRates = &callerRates{connRateLimiter}
		return nil
	}
}

// WithGates sets what it names of the gates, whatever the limit configuration says about
// that; what it leaves out stays. It is for limits that are not read from a file, and for
// turning on the gates for outbound connections. WithLimitPerSubnet, WithNetworkPrefixLimit
// and WithConnRateLimiters, go-libp2p's own options, go before it. What a GateLimits may not
// say is an error of New. Given again, it replaces what was given before.
func WithGates(gates GateLimits) Option {
	return func(c *config) error {
		if _, err := gates.config(defaultGateConfig()); err != nil {
			return fmt.Errorf("WithGates: %w", err)
		}
		c.gatesByOption = *gates.over(nil)
		return nil
	}
}

// WithTrace writes everything that happens to a file, as gzip-compressed lines
// of JSON, one TraceEvt each. What the file held before is lost. A file that
// cannot be opened is an error of New; one that can no longer be written is
// closed and logged, and nothing else stops. Lines reach the file after about a
// second; Close writes the rest and closes it. An empty path is no file.
//
// A traced manager has its events in one order with exact totals, and for that
// one stripe, whatever WithStripes says: it works on one processor at a time.
func WithTrace(path string) Option {
	return func(c *config) error {
		c.tracePath = path
		return nil
	}
}

// WithTraceReporter hands all events to a reporter, soon after they have happened: from a
// queue, which Manager.FlushTrace and Close empty, see TraceReporter. Given again, it adds
// another one. It makes the manager a traced one, see WithTrace,
// but for a StatsTraceReporter, which only says that metrics are wanted.
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

// WithMetrics tells a reporter of every decision, see MetricsReporter. Given
// again, it replaces the reporter.
func WithMetrics(reporter MetricsReporter) Option {
	return func(c *config) error {
		if reporter == nil {
			return errors.New("WithMetrics: the reporter is nil")
		}
		c.reporter = reporter
		return nil
	}
}

// WithMetricsDisabled leaves the manager out of what MustRegisterWith shows,
// unless a StatsTraceReporter asks for it.
func WithMetricsDisabled() Option {
	return func(c *config) error {
		c.metricsOff = true
		return nil
	}
}

// gateConfig returns what the gates of a manager with these limits are made from.
func (c *config) gateConfig(limits Limiter) (gateConfig, error) {
	g, err := gateConfigOf(limits, c.gates)
	if err != nil {
		return gateConfig{}, err
	}
	if g, err = c.gatesByOption.config(g); err != nil {
		return gateConfig{}, err
	}
	replace(&g.subnets.perSubnet, c.subnets.perSubnet[ip.V4], c.subnets.perSubnet[ip.V6])
	replace(&g.subnets.networks, c.subnets.networks[ip.V4], c.subnets.networks[ip.V6])
	return g, nil
}

// replace sets the lists that are given, by family.
func replace[T any](lists *[ip.Families][]T, v4, v6 []T) {
	if v4 != nil {
		lists[ip.V4] = v4
	}
	if v6 != nil {
		lists[ip.V6] = v6
	}
}

// WithFairShare keeps single peers and single subnets from taking all of the
// transient scope, or of the scopes that are named: KindTransient and KindSystem. It
// is for what comes from outside, and for the outbound streams of a peer that wait in
// transient. While a scope, with a request, holds more than half
// of a limit on inbound streams, inbound connections, all streams, all connections or
// descriptors,
//
//   - a peer is refused what would give it more than a quarter of the limit, unless
//     it holds nothing; of memory, too, and of transient's outbound streams;
//   - a subnet is refused what would leave less than it holds: all inbound connections
//     from one IPv4 /24 or one IPv6 /56, and all inbound streams of peers whose first
//     inbound connection with an address came from there.
//
// Somebody of a subnet that holds nothing is admitted while there is room. Who has no
// address of their own (behind a relay, or not IP) and this machine's own
// 127.0.0.1 and ::1 are of no subnet. Whom the allowlist means falls back on the
// allowlisted scopes, as where a limit refuses, and has no share to keep to once its
// peer is known. A refusal is a *LimitError of the scope, with CauseFairShare. It is off by default.
// Other kinds are an error.
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

// WithLeakFinder keeps a record of each open connection and stream, so that
// Snapshot and the live page show the oldest of each class, and finds those that
// are dropped without Done. It is off by default. When on, opening and closing take
// about as long again; reservations do not know of it. Ages are exact to a second.
//
// What is dropped without Done is a caller's bug, counted and logged as such when
// the garbage collection has found it. What it held stays reserved.
func WithLeakFinder(f LeakFinderConfig) Option {
	return func(c *config) error {
		if f.Stacks < 0 || f.Oldest < 0 {
			return fmt.Errorf("WithLeakFinder: Stacks is %d and Oldest %d, they must not be negative", f.Stacks, f.Oldest)
		}
		c.leaks = &LeakFinderConfig{Stacks: f.Stacks, Oldest: cmp.Or(f.Oldest, 10)}
		return nil
	}
}

// WithNearLimitFunc calls f when 80 percent of a limit are used, and again at 95: once
// each, and again only after use has fallen more than five percent of the limit
// below the mark. Who passes both at once is told of both. Watched are the scopes
// that all peers share: system, transient, the allowlisted ones, services and
// protocols, which are looked at five times a second. Single peers, connections and
// streams are not, for they come and go as strangers like; nor are the gates.
//
// f is called by one goroutine at a time and without any lock of the manager, which
// it may ask anything; looks wait for it. Close waits for it, too, so that f must
// not call Close. If it panics, that is logged, and it is not called again. Given again,
// the option adds another listener. f may not be nil.
func WithNearLimitFunc(f func(NearLimitEvent)) Option {
	return func(c *config) error {
		if f == nil {
			return errors.New("WithNearLimitFunc: the function is nil")
		}
		c.nearLimit = append(c.nearLimit, f)
		return nil
	}
}

// WithTrimming asks a connection manager to close what it values least, from when 80
// percent of the connections, descriptors or memory of the whole host are used until
// that has fallen more than five percent of the limit below, five times a second: what
// is just being let in or in its grace period can be closed only later. The connection
// manager trims as if its high water mark had been reached: down to its low water mark,
// which must lie below 75 percent of the limit for this to make room, and none that it
// protects. With that, the high water mark may even lie above the limit.
//
// The connection manager is asked by one goroutine at a time, which Close waits for,
// without any lock of the manager. If it panics, that is logged, and it is not asked
// again. Given again, the option adds another one. cm may not be nil.
func WithTrimming(cm connmgr.ConnManager) Option {
	return func(c *config) error {
		if cm == nil {
			return errors.New("WithTrimming: the connection manager is nil")
		}
		c.trimmed = append(c.trimmed, cm)
		return nil
	}
}

// WithObserveOnly starts with the limits of some classes of scopes and gates, or
// without any named of all, as limits that are only observed: they refuse nothing.
// What they would have refused is admitted and accounted for exactly, and counted
// in Snapshot.WouldRefuse and the metrics, and the log tells of it in lines that
// begin with "Would have". A limit that is not observed refuses as always. Only
// what no number can hold is refused by limits that are observed: a sum above
// math.MaxInt64. Manager.Enforce and Manager.ObserveOnly switch at run time. A
// kind that does not exist is an error.
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

// WithMemoryPressure refuses inbound connections and inbound streams while this
// process has too much memory in use, whatever it is used for. It is off by
// default. What is open stays and may reserve what its limits admit; outbound
// connections and streams go on, and so do those that the allowlist means. A
// connection from an address at which the allowlist names a peer is refused once it
// turns out to be somebody else; a bare peer ID helps streams only.
//
// A refusal is a *LimitError of KindProcess and CauseMemoryPressure.
func WithMemoryPressure(p MemoryPressureConfig) Option {
	return func(c *config) error {
		own := p // filled in for each manager anew: it reads with buffers of its own
		if err := own.check(); err != nil {
			return fmt.Errorf("WithMemoryPressure: %w", err)
		}
		c.pressure = &own
		return nil
	}
}

// NearLimitEvent tells that much of a limit is used.
type NearLimitEvent struct {
	Scope     string // the scope's name: "system", "protocol:/ipfs/ping/1.0.0"
	Kind      Kind
	Name      string // of the limit, as in configurations: "ConnsInbound"
	Resource  Resource
	Direction network.Direction // as LimitError.Direction
	Percent   int               // the mark that was reached: 80 or 95
	Use       int64             // when it was seen, in bytes or as a number
	Limit     int64
}
