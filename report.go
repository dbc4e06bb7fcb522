package rcmgr

// A snapshot as a report: what stands in the way, which is the one limit that an operator has to
// look at first with the peer or subnet that holds most of it, and then all tables.

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Bottleneck is the limit that stands in the way of the most requests.
type Bottleneck struct {
	LimitUse
	// Holder is the peer's ID, or the subnet, that holds the most of what the limit is on, and
	// Held is how much. Holder is empty if the snapshot does not tell: it knows no single
	// holders of services and protocols, and of transient connections only with WithFairShare.
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
// refused in the last five minutes, it is the limit that has refused the most.
func (s *Snapshot) Bottleneck() *Bottleneck {
	first := s.bottleneckOf(s.LimitsNear(halfFull))
	if first == nil && slices.ContainsFunc(s.refusalRates(), func(r refusalRate) bool { return r.PerSecond > 0 }) {
		first = s.bottleneckOf(s.LimitUses())
	}
	if first == nil {
		return nil
	}
	d, isRate := first.dim()
	if first.fullness() >= halfFull && !isRate { // or it is not they who filled it; and a rate is not held
		first.Holder, first.Held = s.holderOf(first.Kind, d)
	}
	name := scopeName{kind: first.Kind}
	if first.Kind != KindPeer {
		name.text = strings.TrimPrefix(first.Scope, first.Kind.String()+":")
	}
	first.ConfigKey = configKey(first.Kind, d, &name, placeOfAll)
	if isRate {
		first.ConfigKey = rateKey(first.ConfigKey, d)
	}
	return first
}

// dim returns the dimension of a limit, or of a rate.
func (u *LimitUse) dim() (d dim, isRate bool) {
	name, isRate := strings.CutPrefix(u.Name, "Rates.")
	return dim(slices.Index(limitNames[:], name)), isRate
}

// bottleneckOf returns the limit that matters most of those that are nearly full or have refused
// something. It returns nil if none is or has.
func (s *Snapshot) bottleneckOf(uses LimitUses) (first *Bottleneck) {
	for _, u := range uses {
		b := &Bottleneck{LimitUse: u, Observed: slices.Contains(s.Observed, u.Kind)}
		if (u.fullness() >= nearlyFull || b.refused() > 0) && (first == nil || b.compare(first) < 0) {
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
		first(func(b *Bottleneck) bool { return b.Kind != KindPeer }),
		first((*Bottleneck).full),
		cmp.Compare(other.refused(), b.refused()),
		cmp.Compare(other.fullness(), b.fullness()),
	)
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

// holderOf returns the peer or subnet that holds the most of a scope's limit on d, and how much
// that is, as far as the snapshot tells.
func (s *Snapshot) holderOf(k Kind, d dim) (holder string, held int64) {
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
		state = fmt.Sprintf("%s full at times (%s at most) and %s refused %d", were, of(b.Peak), have, b.refused())
	case ok && b.Use < b.Limit:
		state = fmt.Sprintf("%s %d %% full (%s)", are, int(percent), of(b.Use))
	default:
		state = fmt.Sprintf("%s full (%s)", are, of(b.Use))
	}
	if b.Observed {
		state += ", which is only observed"
	}
	return state
}

// heldPercent returns how much of what is used the holder has, in percent.
func (b *Bottleneck) heldPercent() int {
	if b.Use == 0 {
		return 0
	}
	return int(100 * float64(b.Held) / float64(b.Use))
}

// String returns the bottleneck in one sentence, such as
//
//	transient inbound streams are full (64 of 64); 12D3Koo… holds 75 %; raise Transient.StreamsInbound
func (b *Bottleneck) String() string {
	text := b.what() + " " + b.state()
	if b.Holder != "" {
		text += fmt.Sprintf("; %s holds %d %%", b.Holder, b.heldPercent())
	}
	return text + "; raise " + b.ConfigKey
}

// WriteText writes all tables with their headings: what stands in the way, the limits that are
// nearly full, all limits, what services, protocols and peers hold, and what else the snapshot
// has. It is what Handler answers as text. WriteText returns the error of w, if any.
func (s *Snapshot) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "%s, up %s, %d peers, %d refusals, %d bugs of callers\n",
		s.Taken.UTC().Format(time.RFC3339), s.Uptime().Round(time.Second), s.Peers, s.totalRefusals(), s.CallerBugs)
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
	if err := s.LimitUses().WriteTable(w); err != nil {
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
	if s.Room.on() {
		fmt.Fprintf(w, "\nLet go to make room, on %d hosts\n\n", s.Room.Hosts)
		if err := s.Room.writeRoom(w); err != nil {
			return err
		}
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
	text := "no limit is nearly full"
	if most := s.refusalsByKind(); len(most) > 0 && most[0].Total > 0 {
		text += fmt.Sprintf("; of %d requests refused so far, %d were refused by %s (%s)",
			s.totalRefusals(), most[0].Total, kindWords(most[0].Kind), strings.Join(most[0].What, ", "))
	}
	return text
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
