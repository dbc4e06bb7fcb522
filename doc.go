// Package rcmgr is a network resource manager for go-libp2p hosts. A host asks
// it before it takes a connection, a stream, a file descriptor or memory; it
// answers yes or no from limits on a graph of scopes, and keeps exact account
// of what is held. It stands where go-libp2p's own resource manager stands,
// behind network.ResourceManager, with the same exported names:
//
//	rm, err := rcmgr.New(nil) // default limits, for what this process may use
//	host, err := libp2p.New(libp2p.ResourceManager(rm))
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
// transient where these are full and the allowlist covers the connection.
// Spans open below every scope and give back all they hold when they are done.
//
// # Stripes and credit
//
// A limit on a scope that all peers share is a fact about everything at once,
// and no common operation may take all locks. So the accounts are cut into
// stripes, each under one lock, and the shared scopes hand out credit to them:
//
//	           system   transient   allowlisted×2   protocol…   service…     pools of credit
//	             │          │             │             │           │
//	stripe 0   share      share         share         share       share      one lock for the whole row:
//	           peers ── peer×protocol, peer×service ── connections ── streams ── spans
//	stripe 1   share      share         share         share       share
//	           peers ── …
//
// An operation takes its stripe's lock once, checks every account of its chain,
// and then charges all of them: up from the scope itself through its owners,
// if it is a span, to the peer, protocol×peer, service×peer, protocol, service,
// transient and system, whichever apply. The first that refuses is the one that
// the error names. How stripes spend credit below half of a limit, and how
// everything is exact above, stands in pool.go.
//
// # Invariants
//
// The code cites these by number, and the tests check them.
//
//   - I1: For every share and dimension, use ≤ credit. For every pool, the
//     credit of all shares is what it has handed out, and no more than the
//     limit. (After a limit was lowered below use, nothing is admitted until use
//     has drained. A limit that is only observed is passed, by whatever the
//     limits that are not admit.)
//   - I2: No overshoot: at no instant does a scope hold more than its limit,
//     unless that was lowered, or is or was only observed. No
//     false refusal: a request is refused only if at that instant it did not
//     fit the limits, or the part of the transient scope's streams that is kept
//     for others (WithNewcomersQuarter), or, where that is on, its fair share.
//   - I3: All or nothing: a refused operation leaves every account as it was,
//     and a failed move leaves the scope where it was.
//   - I4: Conservation: what a scope uses is the sum over the connections,
//     streams and spans, and of what was reserved directly, below it; in one
//     consistent cut over all stripes.
//   - I5: A scope that is done holds nothing, refuses everything with
//     network.ErrResourceScopeClosed, takes no reference, and being done again
//     does nothing. A span may outlive its owner: every walk up a chain stops
//     at the first owner that is done. What a connection or stream was kept in
//     may serve another one by then: whoever still has the first sees nothing of
//     that, and does nothing to it.
//   - I6: Each scope knows what was reserved at it besides its total. A release
//     takes from the former only; what is too much is a caller's bug, counted
//     and logged with the scope's name. When all scopes are done, every account
//     is zero.
//   - I7: A scope in use, by references or by anything it holds, is never
//     collected; an unused one goes within two minutes, with a bounded amount
//     of work under any lock. A scope that was kept from a View goes on working
//     after it was collected, and two accounts of one name never coexist.
//   - I8: Lock order: stripes by index, then the directory of shared scopes,
//     then the one for drawing from pools, then the shards of subnets that have a
//     share and of records of what is open, and last the queue of the tracer. The
//     locks of the gates are never held together with any of these. A change of limits
//     has a lock that comes before all. No callback, limiter, log line, metric or I/O
//     runs under any of them.
package rcmgr
