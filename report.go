package rcmgr

// A snapshot, and its report: what stands in the way, which is the one limit that an operator has
// to look at first with the peer or subnet that holds most of it, and then all tables.

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr/internal/text"
)

// Snapshot returns the state of the manager with all its peers. It holds all stripe locks
// while it copies the numbers of every peer, some milliseconds for 100,000 peers; SnapshotTop
// holds them for less. Snapshot is safe for concurrent use.
func (m *Manager) Snapshot() Snapshot { return m.withHolders(m.takeAll()) }

// SnapshotTop returns the state of the manager with only the fullest of its peers,
// services and protocols. For each limit, and for the streams in the transient scope, it lists
// the given number of peers that hold the most, and it lists as many peers that were refused
// most often. If peers is 0 or
// less, it lists none. Of services and protocols it lists the 256 each that hold the
// most streams; those with equally many are ordered by memory. Gates.Fullest and
// FairShare.Largest list at most that number of subnets, too.
//
// SnapshotTop finds these scopes a few at a time right before it copies the numbers of
// all at one instant. The time under all stripe locks and the memory it takes depend on
// the number that is asked for, not on how many peers and names there are. SnapshotTop
// is safe for concurrent use.
func (m *Manager) SnapshotTop(peers int) Snapshot { return m.withHolders(m.takeTop(peers)) }

// withHolders returns the snapshot with the peers that hold most of the limit that is in the way,
// where its scopes do not tell. They are looked for after the snapshot was taken, and only then.
func (m *Manager) withHolders(s Snapshot) Snapshot {
	s.FullestParts = m.partsInTheWay(&s)
	for i := range s.Scopes {
		sc := &s.Scopes[i]
		if (sc.Kind == KindService || sc.Kind == KindProtocol) && sc.fullness() >= halfFull {
			s.Largest = m.largestOf(s.Bottleneck())
			break // without such a scope it is empty, and there is no need to look at all peers
		}
	}
	return s
}

// partsInTheWay returns the fullest part of a peer for each limit on such parts that has refused
// something. It looks at peers only if something was refused lately, or would have been.
func (m *Manager) partsInTheWay(s *Snapshot) (all LimitUses) {
	if !s.hasRefusedLately() {
		return nil
	}
	type limit struct {
		k Kind
		d dim
	}
	var of []limit
	for _, k := range []Kind{KindServicePeer, KindProtocolPeer} {
		refused, would := s.Refusals[k], s.WouldRefuse[k]
		wouldBe := would.dimCounts()
		for d, n := range refused.dimCounts() {
			if n+wouldBe[d] > 0 {
				of = append(of, limit{k, dim(d)})
			}
		}
	}
	for _, l := range of {
		k, d := l.k, l.d
		p := m.fullestPart(k, d)
		if p.use == 0 {
			continue
		}
		refused, would, most := s.Refusals[k], s.WouldRefuse[k], s.MemberPeaks[k]
		refusedBy, wouldBe, ever := refused.dimCounts(), would.dimCounts(), most.Ever.byDim()
		u := LimitUse{Scope: p.name.String(), Kind: k, Name: limitNames[d], Limit: p.limit, Use: p.use,
			Peak: max(ever[d], p.use), Refusals: refusedBy[d], WouldRefuse: wouldBe[d]}
		if isUnlimited(d, u.Limit) {
			u.Limit = math.MaxInt64
		}
		all = append(all, u)
	}
	return all
}

// largestOf returns the peer that holds most of a bottleneck, if that is a limit of a service or
// protocol. For others it returns none.
func (m *Manager) largestOf(b *Bottleneck) (h LimitHolder) {
	if b == nil {
		return h
	}
	d, isRate := b.dim()
	kind, name, _ := strings.Cut(b.Scope, ":")
	if isRate || b.fullness() < halfFull || kind != KindService.String() && kind != KindProtocol.String() {
		return h
	}
	if holder, held := m.largestPeer(b.Kind, name, d); isWorthNaming(held, b.Use) {
		h = LimitHolder{Scope: b.Scope, Name: b.Name, Holder: holder.String(), Held: held}
	}
	return h
}

// Bottleneck is the limit that stands in the way of the most requests.
type Bottleneck struct {
	LimitUse
	// Holder is the ID of the peer, or the subnet, that holds most of what the limit is on, and
	// Held is how much it holds. Holder is empty if no peer or subnet holds a tenth, or if the
	// snapshot does not show it, as for transient connections without WithFairShare. It is also
	// empty for a limit on one peer or on its part of a service or protocol, which Scope names.
	Holder string `json:",omitempty"`
	Held   int64  `json:",omitempty"`
	// ConfigKey is the place in the configuration to change to admit more.
	ConfigKey string
	// Observed means that the limit is only observed, and refuses nothing.
	Observed bool `json:",omitempty"`
}

const (
	// nearlyFull is the percentage of a limit from which on it counts as nearly full.
	nearlyFull = 90
	// halfFull is the percentage from which on some requests are refused while others are
	// admitted: those that would take another's share, and memory of a low priority.
	halfFull = 50
)

// Bottleneck returns the limit that stands in the way of the most requests. It returns nil if no
// limit in the snapshot is 90 % full, and none that is half full has refused anything. Limits
// that are enforced come first, then those of scopes that all peers share, then full ones, then
// those that have refused the most. If no limit is that full at this instant, but requests were
// refused in the last five minutes, or would have been, it is the limit that has refused the most.
func (s *Snapshot) Bottleneck() *Bottleneck {
	near := s.LimitsNear(halfFull)
	for _, u := range s.FullestParts {
		if u.fullness() >= halfFull {
			near = append(near, u)
		}
	}
	first := s.bottleneckOf(near)
	if first == nil && s.hasRefusedLately() {
		refusing := s.limitUsesWhere(nil, func(u LimitUse) bool { return u.Refusals+u.WouldRefuse > 0 })
		first = s.bottleneckOf(append(refusing, s.FullestParts...))
	}
	if first == nil {
		return nil
	}
	d, isRate := first.dim()
	if first.fullness() >= halfFull && !isRate { // below half, others have filled it; a rate is not held
		if holder, held := s.holderOf(&first.LimitUse, d); isWorthNaming(held, first.Use) {
			first.Holder, first.Held = holder, held
		}
	}
	name := scopeName{kind: first.Kind}
	switch first.Kind {
	case KindPeer:
	case KindServicePeer, KindProtocolPeer:
		_, name.text, _ = strings.Cut(first.Scope, ":")
		name.text = name.text[:max(0, strings.LastIndex(name.text, ".peer:"))]
	default:
		name.text = strings.TrimPrefix(first.Scope, first.Kind.String()+":")
	}
	first.ConfigKey = configKey(first.Kind, d, &name, placeOfAll)
	if isRate {
		first.ConfigKey = rateKey(first.ConfigKey, d)
	}
	return first
}

// bottleneckOf returns the limit that matters most of those that are nearly full or have refused
// something. It returns nil if none is or has.
func (s *Snapshot) bottleneckOf(uses LimitUses) (first *Bottleneck) {
	for _, u := range uses {
		if u.Limit == math.MaxInt64 { // what has refused something was another one
			continue
		}
		b := &Bottleneck{LimitUse: u, Observed: slices.Contains(s.Observed, u.Kind)}
		if (u.fullness() >= nearlyFull || b.refused() > 0 && !b.raised()) && (first == nil || b.compare(first) < 0) {
			first = b
		}
	}
	return first
}

// compare orders the bottlenecks that matter most first.
func (b *Bottleneck) compare(other *Bottleneck) int {
	first := func(holds func(*Bottleneck) bool) int {
		switch a := holds(b); {
		case a == holds(other):
			return 0
		case a:
			return -1
		}
		return 1
	}
	return cmp.Or(
		first(func(b *Bottleneck) bool { return !b.Observed }),
		first(func(b *Bottleneck) bool { return !b.ofOnePeer() }),
		first((*Bottleneck).full),
		cmp.Compare(other.refused(), b.refused()),
		cmp.Compare(other.fullness(), b.fullness()),
	)
}

// raised reports whether what the limit refused was refused by a lower one, which SetLimits has
// replaced: so little was ever held that this one cannot have refused. A single reservation of
// memory may exceed any limit, and a rate has no peak.
func (b *Bottleneck) raised() bool {
	d, isRate := b.dim()
	return !isRate && d != dimMemory && max(b.Use, b.Peak) < b.Limit/2
}

// ofOnePeer reports whether the limit is that of a peer, or of its part of a service or protocol.
func (u *LimitUse) ofOnePeer() bool { return u.Kind == KindPeer || u.Kind.isPart() }

// isPart reports whether scopes of the kind are parts of a peer in a service or protocol.
func (k Kind) isPart() bool { return k == KindServicePeer || k == KindProtocolPeer }

// shownScope returns the scope that the page shows for the limit: of a part, that of its peer.
func (b *Bottleneck) shownScope() string {
	if i := strings.LastIndex(b.Scope, "peer:"); b.Kind.isPart() && i >= 0 {
		return b.Scope[i:]
	}
	return b.Scope
}

// refused returns how many requests the limit has refused, or would have.
func (b *Bottleneck) refused() uint64 { return b.Refusals + b.WouldRefuse }

// full reports whether the limit has no room for one more. If it has refused something, that is
// so for memory, which most ask for at a priority that leaves some of it free, and for three
// quarters of the transient scope's streams, if the last quarter is for newcomers.
func (b *Bottleneck) full() bool {
	d, _ := b.dim()
	return b.Use >= b.Limit || b.refused() > 0 &&
		(d == dimMemory || b.Kind.hasLastQuarter(d) && b.Use >= b.Limit-b.Limit/4)
}

// holderOf returns the peer or subnet that holds the most of a limit, which is on d, and how much
// that is, as far as the snapshot tells.
func (s *Snapshot) holderOf(u *LimitUse, d dim) (holder string, held int64) {
	k := u.Kind
	if s.Largest.Scope == u.Scope && s.Largest.Name == u.Name {
		return s.Largest.Holder, s.Largest.Held
	}
	offer := func(name string, n int64) {
		if n > held {
			holder, held = name, n
		}
	}
	for i := range s.Scopes {
		sc := &s.Scopes[i]
		if sc.Kind != KindPeer {
			continue
		}
		switch in, out := int64(sc.TransientStreamsInbound), int64(sc.TransientStreamsOutbound); {
		case k == KindSystem:
			offer(sc.ID, amountsOf(sc.Use)[d])
		case k == KindTransient && d == dimStreamsIn:
			offer(sc.ID, in)
		case k == KindTransient && d == dimStreamsOut:
			offer(sc.ID, out)
		case k == KindTransient && d == dimStreams:
			offer(sc.ID, in+out)
		}
	}
	for i := range s.FairShare.Largest {
		sub := &s.FairShare.Largest[i]
		switch {
		case k == KindTransient && d == dimConnsIn:
			offer(sub.Prefix.String(), sub.Transient.ConnsInbound)
		case k == KindTransient && d == dimFD:
			offer(sub.Prefix.String(), sub.Transient.FD)
		}
	}
	return holder, held
}

// nounsOfLimits has what each limit is on, in words.
var nounsOfLimits = [numDims]string{
	dimMemory: "memory", dimStreams: "streams", dimStreamsIn: "inbound streams", dimStreamsOut: "outbound streams",
	dimConns: "connections", dimConnsIn: "inbound connections", dimConnsOut: "outbound connections", dimFD: "file descriptors",
}

// what returns what is full, such as "transient inbound streams" or "system rate of inbound streams".
func (b *Bottleneck) what() string {
	d, isRate := b.dim()
	if isRate {
		return printable(b.Scope) + " rate of " + nounsOfLimits[d]
	}
	return printable(b.Scope) + " " + nounsOfLimits[d]
}

// state returns how full it is, such as "are full (64 of 64)", "are 93 % full (60 of 64)" or "were
// full at times (64 of 64 at most) and have refused 12".
func (b *Bottleneck) state() string {
	are, were, have := "are", "were", "have"
	if d, isRate := b.dim(); d == dimMemory || isRate {
		are, were, have = "is", "was", "has"
	}
	of := func(n int64) string { return amountText(b.Name, n) + " of " + amountText(b.Name, b.Limit) }
	var state string
	switch percent, ok := b.Percent(); {
	case b.fullness() < halfFull:
		if b.Observed {
			have = "would have"
		}
		state = fmt.Sprintf("%s full at times (%s at most) and %s refused %d", were, of(b.Peak), have, b.refused())
	case ok && b.Use < b.Limit:
		state = fmt.Sprintf("%s %s full (%s)", are, percentage(min(99.9, percent)), of(b.Use)) // all of it would be full
	default:
		state = fmt.Sprintf("%s full (%s)", are, of(b.Use))
	}
	if b.Observed {
		state += ", which is only observed"
	}
	return state
}

// part returns how much of what is used the holder has, in percent.
func (b *Bottleneck) part() string {
	if b.Use == 0 {
		return percentage(0)
	}
	return percentage(min(100, 100*float64(b.Held)/float64(b.Use))) // Held may be from a little later
}

// percentage returns a percentage in a sentence, such as "66.7 %" or "75 %". It is the number that
// the tables have, without a decimal that is 0.
func percentage(percent float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(percent, 'f', 1, 64), ".0") + " %"
}

// String returns the bottleneck in one sentence, such as
//
//	transient inbound streams are full (64 of 64); 12D3Koo… holds 75 %; raise Transient.StreamsInbound
func (b *Bottleneck) String() string {
	sentence := b.what() + " " + b.state()
	if b.Holder != "" {
		sentence += fmt.Sprintf("; %s holds %s", b.Holder, b.part())
	}
	return sentence + "; raise " + b.ConfigKey
}

// WriteText writes all tables with their headings: what stands in the way, the limits that are
// nearly full, all limits, what services, protocols and peers hold, and what else the snapshot
// has. It is what Handler answers as text. WriteText returns the error of w, if any.
func (s *Snapshot) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "%s, up %s, %s, %s, %s\n", s.Taken.UTC().Format(time.RFC3339), text.Uptime(s.Uptime()),
		text.Plural(s.Peers, "peer"), text.Plural(s.totalRefusals(), "refusal"), text.Plural(s.CallerBugs, "bug of a caller", "bugs of callers"))
	fmt.Fprintf(w, "%s\n", s.InTheWay())
	if m := &s.Process; m.Limit > 0 {
		fmt.Fprintf(w, "%s of %s of memory in use by the process",
			amountText("Memory", m.InUse), amountText("Memory", m.Limit))
		if m.Refusing {
			fmt.Fprint(w, ", inbound connections and streams of strangers are refused")
		}
		fmt.Fprintln(w)
	}
	if s.observing() {
		fmt.Fprintf(w, "\nLimits that are only observed: %s\n\n", s.observedText())
		if err := s.WriteRefusals(w); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\nLimits of which %d%% and more are taken\n\n", nearlyFull)
	if err := s.LimitsNear(nearlyFull).WriteTable(w); err != nil {
		return err
	}
	fmt.Fprint(w, "\nAll limits\n\n")
	if err := s.shownLimits().WriteTable(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s\n\n", s.holdersTitle())
	if err := s.WriteHolders(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nThe most that one peer has held\n\n")
	if err := s.writeMemberPeaks(w); err != nil {
		return err
	}
	if len(s.FairShare.Largest) > 0 {
		fmt.Fprintf(w, "\nWhat subnets hold, the largest of %d\n\n", s.FairShare.Subnets)
		if err := s.FairShare.writeLargest(w); err != nil {
			return err
		}
	}
	if len(s.FairShare.Groups) > 0 {
		fmt.Fprintf(w, "\nWhat networks and owners hold, the largest\n\n")
		if err := s.FairShare.writeGroups(w); err != nil {
			return err
		}
	}
	if len(s.Earmarks) > 0 {
		fmt.Fprint(w, "\nKept for those that the host names\n\n")
		if err := s.writeEarmarks(w); err != nil {
			return err
		}
	}
	if err := s.Room.writeSection(w); err != nil {
		return err
	}
	if names := s.nameRows(); len(names) > 0 {
		fmt.Fprint(w, "\nHost names in the allowlist\n\n")
		if err := writeNames(w, names); err != nil {
			return err
		}
	}
	if len(s.Leaks.Oldest) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\nThe oldest of %d open connections and streams, %d of them dropped without Done\n\n",
		s.Leaks.Open, s.Leaks.Dropped)
	return s.writeOldest(w)
}

// InTheWay returns in one sentence what stands in the way of requests: the memory of the process,
// if requests are refused because of it; otherwise the Bottleneck; and otherwise that no limit is
// nearly full, with the kind of scope or gate that has refused the most so far.
func (s *Snapshot) InTheWay() string {
	if s.Process.Refusing {
		return fmt.Sprintf("the process has %s of %s of memory in use, and refuses inbound connections and streams of strangers",
			amountText("Memory", s.Process.InUse), amountText("Memory", s.Process.Limit))
	}
	if b := s.Bottleneck(); b != nil {
		return b.String()
	}
	sentence := "no limit is nearly full"
	if most := s.refusalsByKind(); len(most) > 0 && most[0].Total > 0 {
		sentence += fmt.Sprintf("; of %s refused so far, %d %s refused by %s (%s)",
			text.Plural(s.totalRefusals(), "request"), most[0].Total, text.Noun(most[0].Total, "was", "were"), kindWords(most[0].Kind), strings.Join(most[0].What, ", "))
	}
	return sentence
}

// kindWords returns what a kind of scopes or gates is called in a sentence.
func kindWords(k Kind) string {
	switch k {
	case KindSubnet:
		return "limits on connections per subnet"
	case KindRate:
		return "the connect rate"
	case KindProcess:
		return "the memory of the process"
	case KindSystem, KindTransient, KindAllowlistedSystem, KindAllowlistedTransient:
		return "the " + k.String() + " scope"
	}
	return k.String() + " scopes"
}
