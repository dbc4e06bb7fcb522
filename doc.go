// Package rcmgr is a network resource manager for go-libp2p hosts. A host asks it before it
// takes a connection, a stream, a file descriptor or memory. It admits or refuses according to
// limits on a graph of scopes, and keeps an exact account of what is held. A [Manager]
// implements network.ResourceManager in place of go-libp2p's own manager:
//
//	rm, err := rcmgr.New(nil) // default limits, for what this process may use
//	host, err := libp2p.New(libp2p.ResourceManager(rm))
//
// Where to begin:
//
//   - Limits: [New] with the defaults, [NewForNode] from memory and descriptors,
//     [ReadLimitsFile] from a file, [PartialLimitConfig] in Go, [Manager.SetLimits] while the
//     host runs.
//   - Addresses: [Allowlist], [WithGates], [WithFairShare].
//   - How fast connections and streams may come: [Rates], [GateLimits].
//   - Peers and protocols that matter: [WithEarmarks].
//   - A host that is full: [WithRoom], [WithTrimming].
//   - Memory: [WithAdmission], [WithMemoryPressure].
//   - Refusals: [LimitError], [WithRefusalLog], [Manager.Explain], [WithObserveOnly].
//   - What is held, and by which peer: [Handler], [Manager.Snapshot], [Snapshot.InTheWay],
//     [WithLeakFinder], [WithTrace].
//   - Metrics: [MustRegisterWith]. Several hosts: [Manager.NewHandle].
//
// Package rcmgrhost makes the manager with the host, rcmgrshadow tries it beside go-libp2p's
// manager, and rcmgrtest helps to test programs that use it. README.md lists the chapters on
// all of these; MIGRATING.md is for programs that use go-libp2p's manager today.
//
// # Names of go-libp2p's manager
//
// These names are in go-libp2p's package, too, with the same signatures and constants. All
// other names exist only here.
//
//   - Managers: [NewResourceManager], [Option], [WithAllowlistedMultiaddrs],
//     [WithConnRateLimiters], [WithLimitPerSubnet], [WithNetworkPrefixLimit], [WithMetrics],
//     [WithMetricsDisabled], [WithTrace], [WithTraceReporter].
//   - Limits: [Limit], [BaseLimit], [BaseLimitIncrease], [LimitVal], [LimitVal64],
//     [ResourceLimits], [PartialLimitConfig], [ConcreteLimitConfig], [ScalingLimitConfig],
//     [DefaultLimits], [InfiniteLimits], [Limiter], [NewFixedLimiter], [NewLimiterFromJSON],
//     [NewDefaultLimiterFromJSON], [ResourceScopeLimiter].
//   - Addresses: [Allowlist], [GetAllowlist], [ConnLimitPerSubnet], [NetworkPrefixLimit],
//     [DefaultNetworkPrefixLimitV4], [DefaultNetworkPrefixLimitV6].
//   - Refusals: [ErrMemoryLimitExceeded], [ErrStreamOrConnLimitExceeded].
//   - What is held: [ResourceManagerState], [ResourceManagerStat].
//   - Metrics and traces: [MustRegisterWith], [MetricsReporter], [StatsTraceReporter],
//     [NewStatsTraceReporter], [TraceReporter], [TraceEvt], [TraceEvtTyp].
//   - Names of scopes: [IsSystemScope], [IsTransientScope], [IsConnScope], [IsStreamScope],
//     [IsSpan], [ParseProtocolScopeName], [PeerStrInScopeName].
//
// # Scopes
//
// Everything that is held counts in its own scope and in all scopes above it:
//
//	system ─┬─ transient ──┬─ connections without a peer
//	        │              └─ streams without a protocol
//	        ├─ service  ───── service × peer ──┐
//	        ├─ protocol ───── protocol × peer ─┼─ stream ─┐
//	        └─ peer ──────────┬────────────────┘          ├─ span ─ span …
//	                          └──────────── connection ───┘
//
// A connection is transient until SetPeer, a stream until SetProtocol. Two more
// scopes, allowlistedSystem and allowlistedTransient, stand in for system and
// transient if these are full and the allowlist covers the connection.
// A span can begin below any scope, and releases all that it holds when it is done.
package rcmgr

// This part of doc.go is for readers of the source: how the engine is built, and what must hold
// of it. It stands after the package clause, so that go doc does not show it.
//
// # Stripes and credit
//
// A limit on a scope that all peers share depends on everything at once, but no
// common operation may take all locks. So the accounts are cut into stripes,
// each under one lock, and the shared scopes hand out credit to the stripes:
//
//	           system   transient   allowlisted×2   protocol…   service…     pools of credit
//	             │          │             │             │           │
//	stripe 0   share      share         share         share       share      one lock for the whole row:
//	           peers ── peer×protocol, peer×service ── connections ── streams ── spans
//	stripe 1   share      share         share         share       share
//	           peers ── …
//
// An operation takes its stripe's lock once, checks every account that it would
// change, and then charges all of them. A reservation asks the scope itself, its
// owners if it is a span, and then those of peer, protocol×peer, service×peer,
// protocol, service, transient and system that apply; a move asks only what it
// enters, the shared scope before the peer's part of it. The error names the first
// that refuses.
// pool.go explains how stripes spend credit below half of a limit, and why
// everything is exact above.
//
// # Objects
//
// What points to what in the engine, for a stream with a span below it:
//
//	streamScope ── userScope ─┐
//	                          ▼
//	spanScope ──▶ holder ──▶ holder      a tree: the span, and the stream that owns it
//	                 │ tree   │ tree
//	                 └───┬────┘
//	                     ▼    at
//	                   root ──────▶ stripe ◀── the stripe's lock guards all on this drawing
//	                     │ chain               but pools; it lists the peers and shares here
//	                     ▼
//	     slots of the chain, each an account: what is used, and what may be
//	     ┌───────────┬─────────────────┬────────────────────────────────┐
//	     ▼           ▼                 ▼                                ▼
//	 peerScope ──▶ pair ─────────▶ share of a protocol       share of the system
//	 one peer      its part of it      │ pool   credit              │ pool   credit
//	                                   ▼                            ▼
//	                                 pool                         pool
//	                                 limit, word: credit handed out to the shares
//
// A user has a userScope, a handle of a holder and an ID: holders serve again, and a handle with
// an old ID is one of a scope that is done (I5). A holder belongs to a tree; the root
// of the tree knows the stripe and the chain. root.at alone is read without the stripe's lock,
// and compared again under it. A pool's limit is written under all stripe locks and read under
// any of them. Its word is atomic: under the lock of one stripe it shrinks; to grow, or to
// become loose, it takes the drawing lock, too. Services and protocols are found by name in the
// directory, which has a lock of its own. (I8 has the order of the locks.)
//
// Connections and streams may also be limited by how fast they enter a scope. tokens.go has the
// buckets of these rates, and explains why they need no credit.
//
// An operation takes the lock of its stripe and tries its short way, which works if there is
// room at hand in every account. If not, decide (engine.go) calls the general way: stripe.check
// (chain.go) asks the accounts, and stripe.judge asks the pools, and draws credit, for shares
// that lack it. If that cannot tell, decide calls it again under all stripe locks, where
// stripe.settle decides on exact sums. What is admitted is charged to every account.
//
// A refusal is noted where it is decided. All the rest happens in refusing.go: under the
// stripe's lock, the refusal is counted, kept for the log of refusals, traced and made into an
// error; without a lock, it is logged at level debug and reported to a MetricsReporter. Snapshot,
// the metrics and the page read the counts; a job writes the log of refusals from them
// (refusallog.go). CONTRIBUTING.md has the files and functions.
//
// # Invariants
//
// The code cites these by number, and the tests check them.
//
//   - I1: For every share and dimension, use ≤ credit. For every pool, the
//     credit of all shares is what it has handed out, and no more than the
//     limit. (After a limit was lowered below use, nothing is admitted until use
//     has drained. A limit that is only observed is exceeded by what the other
//     limits admit.)
//   - I2: No overshoot: at no instant does a scope hold more than its limit,
//     unless that was lowered, or is or was only observed. No false refusal: a
//     request is refused only if at that instant it did not fit the limits, the
//     part of the transient scope's streams that is kept for newcomers
//     (WithNewcomersQuarter), its fair share, if that is on, or a rate. Over any
//     time t, no more enter a scope than its burst and its rate × t.
//   - I3: All or nothing: a refused operation leaves every account as it was,
//     with all tokens of its rates, and a failed move leaves the scope where it
//     was.
//   - I4: Conservation: in one consistent cut over all stripes, what a scope uses
//     is the sum over the connections, streams and spans below it, and of what
//     was reserved at it directly.
//   - I5: A scope that is done holds nothing, refuses everything with
//     network.ErrResourceScopeClosed, and takes no reference; being done again
//     does nothing. A span may outlive its owner: every walk up a tree stops at
//     the first owner that is done. The holder of a connection, stream or span
//     that is done may serve another one; a handle of the first neither sees nor
//     affects that.
//   - I6: Each scope knows what was reserved at it, besides its total. A release
//     takes from the former only; releasing more is a caller's bug, counted and
//     logged with the scope's name. When all scopes are done, every account is
//     zero.
//   - I7: A scope in use, by references or by anything that it holds, is never
//     collected, and neither is one whose rates lack a token. Any other is,
//     within two minutes, with a bounded amount of work under any lock. A scope
//     that was kept from a View goes on working after it was collected, and two
//     accounts of one name never coexist.
//   - I8: Lock order: stripes by index, then the directory of shared scopes, then
//     the token lock, then the drawing lock, then the shards of subnets that have
//     a share and of records of what is open, and last the queue of the tracer.
//     The locks of the gates are never held together with any of these, except
//     that a stream is decided under a lock of the gate of streams, which comes
//     after the stripes' and before the token lock. A change of limits has a lock
//     that comes before all. No callback of the program, Limiter, log line, metric
//     or I/O runs under any of them.
