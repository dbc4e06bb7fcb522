package rcmgr

// What a scrape shows: the families of metrics, and how their series are made from a
// reading. The number of series of each family is bounded, no matter what remote peers do: peers
// and connections are shown by class and as distributions, and only the busiest services
// and protocols are shown by name.

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/weir-p2p/rcmgr/internal/evict"
	"github.com/weir-p2p/rcmgr/internal/letgo"
	"github.com/weir-p2p/rcmgr/internal/spread"
)

// reading has the numbers of one manager for a scrape, all of one instant, or the sum of
// several such readings.
type reading struct {
	managers int
	scopes   []scopeReading // the shared scopes
	// classes has the limits that each scope of a kind starts with. In a sum it has the
	// greatest. The four scopes that always exist have none.
	classes [numKinds]amounts
	// memberPeaks and recentPeaks have the most that any one peer has held, in all, in one
	// service and in one protocol (memberpeaks.go). In a sum they have the greatest.
	memberPeaks, recentPeaks [numKinds]amounts

	peers       int              // how many have a scope
	peerConns   [2]spread.Spread // connections for each peer: inbound, outbound
	peerStreams [2]spread.Spread // streams for each peer: inbound, outbound
	peerMemory  spread.Spread    // bytes for each peer
	connMemory  spread.Spread    // bytes for each connection
	subnets     int              // how many have connections, each prefix length on its own
	rateBuckets int              // how many are not full
	stripes     int
	observed    [numKinds]int // in how many managers the limits of this kind are only observed
	refusable   refusable
	counts      counts
	// process is the memory of the process, which is the same for all managers. It is zero
	// if none of them watches it. pressed counts the managers that refuse because of it.
	process ProcessMemory
	pressed int
	// rooms counts the managers that make room, and kept those that belonged to each class when
	// there was last a choice.
	rooms int
	kept  [evict.NumClasses]int
	// names counts the host names of allowlists by how their last lookup has gone.
	names struct{ waiting, answered, failing int }

	// others has what go-libp2p's own managers hold, in the sum over the process; othersErr
	// is why a part of it is missing.
	others    otherSeries
	othersErr error
}

// refusable is what a manager may refuse by its limits and options as they are now, or any of
// several managers.
type refusable struct {
	limits  [numKinds]dimSet          // because a limit is full
	crowded dimSet                    // because of WithNewcomersQuarter, which only transient has
	shares  [KindTransient + 1]dimSet // because of WithFairShare
	rates   [numKinds]dimSet          // because of a rate
	marked  [KindTransient + 1]dimSet // because of WithEarmarks
}

func (r *refusable) add(o *refusable) {
	for k := range r.limits {
		r.limits[k] |= o.limits[k]
	}
	r.crowded |= o.crowded
	for k := range r.shares {
		r.shares[k] |= o.shares[k]
		r.marked[k] |= o.marked[k]
	}
	for k := range r.rates {
		r.rates[k] |= o.rates[k]
	}
}

// readingSum adds up readings.
type readingSum struct {
	reading
	at map[readingKey]int // index of a scope in scopes
}

type readingKey struct {
	kind Kind
	name string
}

func (t *readingSum) add(r reading) {
	for i := range r.scopes {
		t.addScope(r.scopes[i])
	}
	for k := range numKinds {
		t.classes[k].raise(&r.classes[k])
		t.memberPeaks[k].raise(&r.memberPeaks[k])
		t.recentPeaks[k].raise(&r.recentPeaks[k])
	}
	for dir := range r.peerConns {
		t.peerConns[dir].Add(&r.peerConns[dir])
		t.peerStreams[dir].Add(&r.peerStreams[dir])
	}
	t.peerMemory.Add(&r.peerMemory)
	t.connMemory.Add(&r.connMemory)
	t.managers += r.managers
	t.peers += r.peers
	t.subnets += r.subnets
	t.rateBuckets += r.rateBuckets
	t.stripes += r.stripes
	t.pressed += r.pressed
	t.rooms += r.rooms
	for class, n := range r.kept {
		t.kept[class] += n
	}
	t.names.waiting += r.names.waiting
	t.names.answered += r.names.answered
	t.names.failing += r.names.failing
	if r.process.Limit > 0 {
		t.process = r.process
	}
	for k, n := range r.observed {
		t.observed[k] += n
	}
	t.refusable.add(&r.refusable)
	t.counts.add(&r.counts)
}

// addScope adds a scope, or joins it with one of the same name. A registry fails the whole
// scrape if it gets a series twice, or a label that is not UTF-8. Remote peers can choose
// names of protocols, so names are made valid and cut off, which can make two names equal.
func (t *readingSum) addScope(s scopeReading) {
	s.name = strings.ToValidUTF8(s.name, "\uFFFD")
	if len(s.name) > longestName {
		s.name = strings.ToValidUTF8(s.name[:longestName], "") + "…"
	}
	key := readingKey{s.kind, s.name}
	if i, ok := t.at[key]; ok {
		t.scopes[i].join(&s)
		return
	}
	if t.at == nil {
		t.at = make(map[readingKey]int)
	}
	t.at[key] = len(t.scopes)
	t.scopes = append(t.scopes, s)
}

// longestName is the greatest number of bytes of a name in a label.
const longestName = 128

// bounded returns the sum with only the busiest services and protocols by name, and the
// others of each kind as one scope.
func (t *readingSum) bounded() *reading {
	slices.SortFunc(t.scopes, func(a, b scopeReading) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), compareBusy(&a, &b))
	})
	all := t.scopes
	t.scopes, t.at = nil, nil
	named, others := make(map[Kind]int), make(map[Kind]*scopeReading)
	for i := range all {
		s := &all[i]
		if s.name != othersName && named[s.kind] < mostNamed {
			named[s.kind]++
			t.scopes = append(t.scopes, *s)
			continue
		}
		if others[s.kind] == nil {
			rest := othersOf(s.kind)
			others[s.kind] = &rest
		}
		others[s.kind].include(s)
	}
	for _, k := range [...]Kind{KindService, KindProtocol} {
		if rest := others[k]; rest != nil {
			t.scopes = append(t.scopes, *rest)
		}
	}
	return &t.reading
}

// metricsFamily is one family of metrics: its name, how its series are made from a reading,
// and its labels in the order of the description. If help is empty, the family has upstream's
// description.
type metricsFamily struct {
	name   string
	series func(*reading, series)
	help   string
	labels []string
}

const familyPrefix = "libp2p_rcmgr_"

// desc returns the description of a family that only this package has.
func (f *metricsFamily) desc() *prometheus.Desc {
	return prometheus.NewDesc(familyPrefix+f.name, f.help, f.labels, nil)
}

var metricsFamilies = [...]metricsFamily{
	// These families are go-libp2p's, and its dashboards know them.
	{name: "connections", series: (*reading).connections, labels: []string{"dir", "scope"}},
	{name: "streams", series: (*reading).streams, labels: []string{"dir", "scope", "protocol"}},
	{name: "memory", series: (*reading).memory, labels: []string{"scope", "protocol"}},
	{name: "fds", series: (*reading).descriptors, labels: []string{"scope"}},
	{name: "limit", series: (*reading).limits, labels: []string{"scope", "resource"}},
	{name: "blocked_resources", series: (*reading).blockedResources, labels: []string{"dir", "scope", "resource"}},
	{
		name:   "peer_connections",
		labels: []string{"dir"},
		series: func(r *reading, to series) { to.histograms(&r.peerConns, spread.CountScale) },
	},
	{
		name:   "peer_streams",
		labels: []string{"dir"},
		series: func(r *reading, to series) { to.histograms(&r.peerStreams, spread.CountScale) },
	},
	{
		name:   "peer_memory",
		series: func(r *reading, to series) { to.histogram(&r.peerMemory, spread.MemoryScale) },
	},
	{
		name:   "conn_memory",
		series: func(r *reading, to series) { to.histogram(&r.connMemory, spread.MemoryScale) },
	},
	// Upstream's four families above only grow, so dashboards subtract the previous ones
	// from them. Ours show the present state, so there is nothing to subtract, except where
	// other hosts of the process use upstream's manager.
	{
		name:   "previous_peer_connections",
		labels: []string{"dir"},
		series: func(_ *reading, to series) { to.histograms(new([2]spread.Spread), spread.CountScale) },
	},
	{
		name:   "previous_peer_streams",
		labels: []string{"dir"},
		series: func(_ *reading, to series) { to.histograms(new([2]spread.Spread), spread.CountScale) },
	},
	{
		name:   "previous_peer_memory",
		series: func(_ *reading, to series) { to.histogram(new(spread.Spread), spread.MemoryScale) },
	},
	{
		name:   "previous_conn_memory",
		series: func(_ *reading, to series) { to.histogram(new(spread.Spread), spread.MemoryScale) },
	},

	// These families are this package's own.
	{
		name: "refusals_total", series: (*reading).refusals,
		help:   "Requests refused, by the class of the scope or gate that refused, what ran out, and the rule. The label dir is empty for limits on both directions together, and for resources without a direction.",
		labels: []string{"scope", "resource", "dir", "cause"},
	},
	{
		name: "would_refuse_total", series: (*reading).wouldRefuse,
		help:   "Requests that were admitted because the limit that stood in the way is only observed. The labels are those of refusals_total. A class that has never been observed has no series.",
		labels: []string{"scope", "resource", "dir", "cause"},
	},
	{
		name: "observe_only", series: (*reading).observeOnly,
		help:   "Managers in which the limits of a class are only observed.",
		labels: []string{"scope"},
	},
	{
		name: "scope_use", series: (*reading).scopeUse,
		help:   "What a scope that all peers share holds now, as a count or in bytes of memory.",
		labels: []string{"scope", "name", "resource"},
	},
	{
		name: "scope_limit", series: (*reading).scopeLimit,
		help:   "What a scope that all peers share may hold. An unlimited resource has no series.",
		labels: []string{"scope", "name", "resource"},
	},
	{
		name: "scope_peak", series: (*reading).scopePeak,
		help:   "The most that a scope that all peers share has held since it was made. Below half of a limit it is the most that was seen once a second and at each scrape.",
		labels: []string{"scope", "name", "resource"},
	},
	{
		name: "scope_rate_tokens", series: (*reading).scopeTokens,
		help:   "How many connections or streams may enter a scope that all peers share at once, by its rate. A resource without a rate has no series.",
		labels: []string{"scope", "name", "resource"},
	},
	{
		name: "scope_rate_burst", series: (*reading).scopeBurst,
		help:   "How many may enter at once while none has entered lately. A resource without a rate has no series.",
		labels: []string{"scope", "name", "resource"},
	},
	{
		name: "class_limit", series: (*reading).classLimits,
		help:   "What each scope of a class may hold unless it has a limit of its own. An unlimited resource has no series.",
		labels: []string{"scope", "resource"},
	},
	{
		name: "member_peak", series: func(r *reading, to series) { r.members(&r.memberPeaks, to) },
		help:   "The most that any one peer has held at once since the manager was made, in all, in one service and in one protocol, as a count or in bytes of memory.",
		labels: []string{"scope", "resource"},
	},
	{
		name: "member_recent_peak", series: func(r *reading, to series) { r.members(&r.recentPeaks, to) },
		help:   "Like member_peak, but only of the last one to two minutes.",
		labels: []string{"scope", "resource"},
	},
	{
		name: "tight_limits", series: (*reading).tightLimits,
		help:   "How many limits of a class of scopes are decided on the exact sum, because much of them is taken or they are small.",
		labels: []string{"scope"},
	},
	{
		name: "managers", series: gaugeOf(func(r *reading) int { return r.managers }),
		help: "Open resource managers whose numbers are added up here.",
	},
	{
		name: "peers", series: gaugeOf(func(r *reading) int { return r.peers }),
		help: "Peers that have a scope.",
	},
	{
		name: "subnets", series: gaugeOf(func(r *reading) int { return r.subnets }),
		help: "Subnets with connections, each prefix length on its own.",
	},
	{
		name: "rate_buckets", series: gaugeOf(func(r *reading) int { return r.rateBuckets }),
		help: "Subnets that have connected lately, each prefix length on its own.",
	},
	{
		name: "memory_pressure", series: gaugeOf(func(r *reading) int { return r.pressed }),
		help: "Managers that refuse strangers, because the process has too much memory in use.",
	},
	{
		name: "process_memory", series: (*reading).processMemory,
		help:   "Bytes of memory that the process has in use, and the bounds above which strangers are refused and below which they are admitted again. There is no series if no manager watches the memory.",
		labels: []string{"what"},
	},
	{
		name: "room_let_go_total", series: func(r *reading, to series) { r.letGo(&r.counts.room.letGo, to) },
		help:   "Connections that were closed and streams that were reset to make room, by the class of the scope that was short of it, and why they were chosen. There is no series if no manager makes room.",
		labels: []string{"scope", "what", "reason"},
	},
	{
		name: "room_would_let_go_total", series: func(r *reading, to series) { r.letGo(&r.counts.room.would, to) },
		help:   "Those that would have been let go if that, or the limit, were not only observed. The labels are those of room_let_go_total.",
		labels: []string{"scope", "what", "reason"},
	},
	{
		name: "room_kept", series: (*reading).roomKept,
		help:   "How many connections or streams belonged to each class of those that are kept, when there was last a choice.",
		labels: []string{"class"},
	},
	{
		name: "room_only_kept_total", series: (*reading).roomOnlyKept,
		help:   "How often a class of scopes was short of room and all that was left was kept, so that newcomers were refused.",
		labels: []string{"scope"},
	},
	{
		name: "room_faults_total", series: (*reading).roomFaults,
		help:   "What went wrong with hosts while room was made.",
		labels: []string{"fault"},
	},
	{
		name: "allowlist_names", series: (*reading).allowlistNames,
		help:   "Host names in allowlists that have had no answer yet, whose last lookup was answered, and whose last lookup has failed. There is no series if there are no names.",
		labels: []string{"state"},
	},
	{
		name: "allowlist_failed_lookups_total", series: (*reading).failedLookUps,
		help: "Lookups of host names in allowlists that have failed. There is no series if there are no names.",
	},
	{
		name: "stripes", series: gaugeOf(func(r *reading) int { return r.stripes }),
		help: "Locks over which the accounts are divided.",
	},
	{
		name: "credit_draws_total", series: counterOf(func(c *counts) uint64 { return c.draws }),
		help: "How often a stripe took credit from a scope that all peers share.",
	},
	{
		name: "credit_returns_total", series: counterOf(func(c *counts) uint64 { return c.returns }),
		help: "How often a stripe returned credit.",
	},
	{
		name: "all_lock_decisions_total", series: counterOf(func(c *counts) uint64 { return c.settled }),
		help: "Decisions that took the locks of all stripes.",
	},
	{
		name: "caller_bugs_total", series: counterOf(func(c *counts) uint64 { return c.callerBugs }),
		help: "Calls that broke the contract of a scope, such as releasing more than was reserved.",
	},
	{
		name: "late_releases_total", series: counterOf(func(c *counts) uint64 { return c.lateReleases }),
		help: "Releases of memory at scopes that were already done. They do nothing.",
	},
}

func gaugeOf(of func(*reading) int) func(*reading, series) {
	return func(r *reading, to series) { to.gauge(int64(of(r))) }
}

func counterOf(of func(*counts) uint64) func(*reading, series) {
	return func(r *reading, to series) { to.counter(of(&r.counts)) }
}

// basic returns the system and transient scopes. They have series even before the first
// manager is made.
func (r *reading) basic() []scopeReading {
	found := []scopeReading{KindSystem: {kind: KindSystem}, KindTransient: {kind: KindTransient}}
	for _, s := range r.scopes {
		if int(s.kind) < len(found) {
			found[s.kind] = s
		}
	}
	return found
}

// basicAndProtocols returns the scopes whose streams and memory have series.
func (r *reading) basicAndProtocols() []scopeReading {
	found := r.basic()
	for _, s := range r.scopes {
		if s.kind == KindProtocol {
			found = append(found, s)
		}
	}
	return found
}

func (r *reading) connections(to series) {
	for _, s := range r.basic() {
		to.gauge(s.use[dimConnsIn], labelInbound, s.kind.String())
		to.gauge(s.use[dimConnsOut], labelOutbound, s.kind.String())
	}
}

func (r *reading) streams(to series) {
	for _, s := range r.basicAndProtocols() {
		to.gauge(s.use[dimStreamsIn], labelInbound, s.kind.String(), s.name)
		to.gauge(s.use[dimStreamsOut], labelOutbound, s.kind.String(), s.name)
	}
}

func (r *reading) memory(to series) {
	for _, s := range r.basicAndProtocols() {
		to.gauge(s.use[dimMemory], s.kind.String(), s.name)
	}
}

func (r *reading) descriptors(to series) {
	for _, s := range r.basic() {
		to.gauge(s.use[dimFD], s.kind.String())
	}
}

func (r *reading) limits(to series) {
	if len(r.scopes) == 0 {
		return // without a manager there is no limit, and 0 would say that nothing is allowed
	}
	for _, s := range r.basic() {
		for d, resource := range limitLabels {
			to.gauge(s.limit[d], s.kind.String(), resource)
		}
	}
}

func (r *reading) blockedResources(to series) {
	blocked := r.counts.blocked
	// Dashboards count refusals by a peer's part of a service or protocol as refusals by the
	// service or protocol.
	blocked[KindService].addCapped(&blocked[KindServicePeer])
	blocked[KindProtocol].addCapped(&blocked[KindProtocolPeer])
	blocked[KindServicePeer], blocked[KindProtocolPeer] = amounts{}, amounts{}
	for k := range blocked {
		for d, l := range resourceLabels {
			if n := blocked[k][d]; n != 0 && dim(d) != dimStreams && dim(d) != dimConns {
				to.gauge(n, l.dir, Kind(k).String(), l.resource)
			}
		}
	}
}

// refusals sends a series for everything that has been refused, or can be. If a series began
// with its first refusal, a rate over it would miss that refusal.
func (r *reading) refusals(to series) {
	to.refusals(&r.counts.refusals, &r.counts.rationed, allKinds, &r.refusable)
}

// wouldRefuse sends a series for every limit that is only observed, or has been.
func (r *reading) wouldRefuse(to series) {
	var kinds kindSet
	for k := range numKinds {
		if r.observed[k] > 0 || r.counts.would[k] != (dimCounts{}) {
			kinds |= 1 << k
		}
	}
	to.refusals(&r.counts.would, &r.counts.wouldRationed, kinds, &r.refusable)
}

func (r *reading) observeOnly(to series) {
	for k, n := range r.observed {
		to.gauge(int64(n), Kind(k).String())
	}
}

func (s series) refusals(counts *[numKinds]dimCounts, rationed *rationCounts, kinds kindSet, may *refusable) {
	for _, k := range kinds.list() {
		cause := CauseLimit
		switch k {
		case KindSubnet:
			cause = CauseSubnet
		case KindRate:
			cause = CauseRate
		case KindProcess:
			cause = CauseMemoryPressure
		}
		for d := range numDims {
			send := func(n uint64, cause Cause, may dimSet) {
				if n > 0 || may.has(d) {
					s.counter(n, k.String(), resourceLabels[d].resource, resourceLabels[d].dir, cause.String())
				}
			}
			full := counts[k][d]
			if k == KindTransient {
				full -= rationed.crowded[d]
				send(rationed.crowded[d], CauseCrowding, may.crowded)
			}
			if k <= KindTransient {
				full -= rationed.fair[k][d]
				send(rationed.fair[k][d], CauseFairShare, may.shares[k])
				n := rationed.marked.of(k)[d]
				full -= n
				send(n, CauseEarmark, may.marked[k])
			}
			if k <= KindPeer {
				n := rationed.rate.of(k)[d]
				full -= n
				send(n, CauseRate, may.rates[k])
			}
			send(full, cause, may.limits[k])
		}
	}
}

func (r *reading) scopeUse(to series) {
	r.eachLimit(func(s *scopeReading, d dim, resource string) {
		to.gauge(s.use[d], s.kind.String(), s.name, resource)
	})
}

func (r *reading) scopeLimit(to series) {
	r.eachLimit(func(s *scopeReading, d dim, resource string) {
		if !isUnlimited(d, s.limit[d]) {
			to.gauge(s.limit[d], s.kind.String(), s.name, resource)
		}
	})
}

func (r *reading) scopePeak(to series) {
	r.eachLimit(func(s *scopeReading, d dim, resource string) {
		if s.name != othersName {
			to.gauge(s.peak[d], s.kind.String(), s.name, resource)
		}
	})
}

func (r *reading) scopeTokens(to series) {
	r.eachLimit(func(s *scopeReading, d dim, resource string) {
		if s.burst[d] > 0 {
			to.gauge(s.left[d], s.kind.String(), s.name, resource)
		}
	})
}

func (r *reading) scopeBurst(to series) {
	r.eachLimit(func(s *scopeReading, d dim, resource string) {
		if s.burst[d] > 0 {
			to.gauge(s.burst[d], s.kind.String(), s.name, resource)
		}
	})
}

// eachLimit calls f with everything that the scopes can run out of.
func (r *reading) eachLimit(f func(s *scopeReading, d dim, resource string)) {
	for i := range r.scopes {
		s := &r.scopes[i]
		for d, resource := range limitLabels {
			if s.kind.canRunOutOf(dim(d)) {
				f(s, dim(d), resource)
			}
		}
	}
}

func (r *reading) classLimits(to series) {
	if r.managers == 0 {
		return
	}
	for k := KindService; k <= KindStream; k++ {
		for d, resource := range limitLabels {
			if limit := r.classes[k][d]; k.canRunOutOf(dim(d)) && !isUnlimited(dim(d), limit) {
				to.gauge(limit, k.String(), resource)
			}
		}
	}
}

func (r *reading) members(peaks *[numKinds]amounts, to series) {
	if r.managers == 0 {
		return
	}
	for _, k := range memberKinds {
		for d, resource := range limitLabels {
			if k.canRunOutOf(dim(d)) {
				to.gauge(peaks[k][d], k.String(), resource)
			}
		}
	}
}

func (r *reading) tightLimits(to series) {
	tight := map[Kind]int{
		KindSystem: 0, KindTransient: 0, KindAllowlistedSystem: 0, KindAllowlistedTransient: 0,
		KindService: 0, KindProtocol: 0,
	}
	for _, s := range r.scopes {
		tight[s.kind] += s.tight
	}
	for k, n := range tight {
		to.gauge(int64(n), k.String())
	}
}

func (r *reading) processMemory(to series) {
	if r.process.Limit == 0 {
		return
	}
	to.gauge(r.process.InUse, "in_use")
	to.gauge(r.process.RefuseAbove, "refuse_above")
	to.gauge(r.process.AdmitBelow, "admit_below")
}

func (r *reading) allowlistNames(to series) {
	if r.namesKnown() {
		to.gauge(int64(r.names.waiting), "waiting")
		to.gauge(int64(r.names.answered), "answered")
		to.gauge(int64(r.names.failing), "failing")
	}
}

// roomKinds are the kinds of scopes in which room is made, and the memory of the process.
var roomKinds = [...]Kind{KindSystem, KindTransient, KindService, KindProtocol, KindProcess}

// makesRoomIn reports whether room is made in something of a kind, so that there are series for it.
func (r *reading) makesRoomIn(k Kind) bool {
	return r.rooms > 0 && (k != KindProcess || r.process.Limit > 0)
}

func (r *reading) letGo(counts *roomTally, to series) {
	for _, k := range roomKinds {
		for stream, reasons := range counts[k] {
			for reason, n := range reasons {
				// Only some of them can be, so the others have no series before they are.
				if conns := k == KindSystem || k == KindProcess; n > 0 || r.makesRoomIn(k) && conns == (stream == 0) {
					to.counter(n, k.String(), [...]string{"conn", "stream"}[stream], evict.Reason(reason).String())
				}
			}
		}
	}
}

func (r *reading) roomKept(to series) {
	if r.rooms > 0 {
		for class, n := range r.kept {
			to.gauge(int64(n), evict.Class(class).String())
		}
	}
}

func (r *reading) roomOnlyKept(to series) {
	for _, k := range roomKinds {
		if n := r.counts.room.onlyKept[k]; n > 0 || r.makesRoomIn(k) {
			to.counter(n, k.String())
		}
	}
}

func (r *reading) roomFaults(to series) {
	for f, n := range r.counts.room.faults {
		if n > 0 || r.rooms > 0 {
			to.counter(n, letgo.Fault(f).String())
		}
	}
}

func (r *reading) failedLookUps(to series) {
	if r.namesKnown() {
		to.counter(r.counts.failedLookUps)
	}
}

// namesKnown reports whether there are host names in allowlists, or lookups have failed.
func (r *reading) namesKnown() bool {
	return r.names.waiting+r.names.answered+r.names.failing > 0 || r.counts.failedLookUps > 0
}

// otherSeries has what go-libp2p's own managers show: the series of each family, by the name of
// the family without the prefix and by their labels.
type otherSeries map[string]map[string]otherMetric

// otherMetric is one series.
type otherMetric struct {
	labels    []string // in the order of the family's description
	value     float64  // zero if it is a histogram
	histogram *histogram
}

// histogram is a distribution: the number of values, their sum, and how many do not exceed each
// bound.
type histogram struct {
	count uint64
	sum   float64
	upTo  map[float64]uint64
}

// add adds the values of another histogram. Bounds that only one of the two has are dropped,
// because how many values of the other do not exceed them is not known.
func (h *histogram) add(o *histogram) {
	h.count += o.count
	h.sum += o.sum
	for bound := range h.upTo {
		if n, ok := o.upTo[bound]; ok {
			h.upTo[bound] += n
		} else {
			delete(h.upTo, bound)
		}
	}
}

// seriesKey returns the labels as a key. What separates them is no UTF-8, as all labels are.
func seriesKey(labels []string) string { return strings.Join(labels, "\xff") }

// series sends the series of one family to a registry. To each of them it adds that of others
// with the same labels, and removes that from others, which it owns.
type series struct {
	desc   *prometheus.Desc
	to     chan<- prometheus.Metric
	others map[string]otherMetric
}

// other removes the series of others with these labels and returns it, or the zero value.
func (s series) other(labels []string) otherMetric {
	key := seriesKey(labels)
	o := s.others[key]
	delete(s.others, key)
	return o
}

func (s series) gauge(value int64, labels ...string) {
	s.sendGauge(float64(value)+s.other(labels).value, labels)
}

// sendGauge sends a gauge. What is unlimited does not grow with another part of a sum.
func (s series) sendGauge(value float64, labels []string) {
	value = min(value, math.MaxInt64)
	s.send(prometheus.NewConstMetric(s.desc, prometheus.GaugeValue, value, labels...))
}

func (s series) counter(value uint64, labels ...string) {
	s.send(prometheus.NewConstMetric(s.desc, prometheus.CounterValue, float64(value), labels...))
}

func (s series) histograms(directions *[2]spread.Spread, on *spread.Scale) {
	s.histogram(&directions[0], on, labelInbound)
	s.histogram(&directions[1], on, labelOutbound)
}

func (s series) histogram(members *spread.Spread, on *spread.Scale, labels ...string) {
	h := histogram{sum: float64(members.Sum)}
	h.count, h.upTo = members.Cumulative(on)
	if o := s.other(labels); o.histogram != nil {
		h.add(o.histogram)
	}
	s.sendHistogram(&h, labels)
}

func (s series) sendHistogram(h *histogram, labels []string) {
	s.send(prometheus.NewConstHistogram(s.desc, h.count, h.sum, h.upTo, labels...))
}

// sendOthers sends the series of others that remain, which only go-libp2p's own managers have.
func (s series) sendOthers() {
	for _, o := range s.others {
		if o.histogram != nil {
			s.sendHistogram(o.histogram, o.labels)
		} else {
			s.sendGauge(o.value, o.labels)
		}
	}
}

// send sends a series. If the series is invalid, it sends the error, which fails the
// scrape; a panic in a registry's goroutine would end the host.
func (s series) send(m prometheus.Metric, err error) {
	if err != nil {
		m = prometheus.NewInvalidMetric(s.desc, err)
	}
	s.to <- m
}
