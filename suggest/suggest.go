// Package suggest proposes limits from what was seen of a node: from snapshots of its
// manager, from a trace, or from both. Each proposed limit has its reason, so that an
// operator can judge it:
//
//	var seen suggest.Evidence
//	err := seen.ReadFile("rcmgr.json.gz")                  // written by rcmgr.WithTrace
//	…
//	p, err := seen.Propose(suggest.Options{})
//	…
//	err = p.WriteLimits(file)                              // a file for rcmgr.ReadLimitsFile
//	err = p.WriteTable(os.Stdout)
//
// # The rule
//
// A limit is twice what was usually held at most, but at least one and a half times the
// highest value that was ever seen; Options.Margin changes the factor. It is rounded up to
// two digits. Usually held at most is the mean of the higher half of all looks: a snapshot is
// a look, and a trace is cut into as many as 64 slices of equal length, each of which is one.
// The mean varies much less from run to run than the highest value does, so the proposals for
// one node are alike.
//
// No limit is below what libp2p's own protocols need on any node, and none is above what the
// machine has. Where a trace is part of what was seen, it is replayed to the proposed limits,
// and each limit that refuses anything that the trace admitted is raised.
//
// # What is taken for honest
//
// All that was held is taken for need. Propose from a time without an attack, and look at
// the reasons: they name the peer that held most. What was refused is not need, but a
// limit that refused something is marked as not sure. In a manager that only observes its
// limits (rcmgr.WithObserveOnly) nothing is cut off, so that is the best time to look.
//
// Of the gates, only limits of single networks are proposed, where a snapshot has shown one that
// needs more than is in force: a snapshot lists the fullest networks of one instant, and a trace
// has no addresses.
package suggest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/replay"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// Options are the choices of a proposal. The zero value is a good start.
type Options struct {
	// Margin is the factor of a limit above what was usually held at most, from 1 to 1000.
	// 0 stands for 2.
	Margin float64
	// Memory, in bytes, and FileDescriptors are what libp2p may use of the machine. 0
	// stands for what the limits were computed for by the latest snapshot that says so; if
	// none does, the proposal has no bound there.
	Memory          int64
	FileDescriptors int
	// ConnMgrHighWater is the connection manager's high water mark, 0 if it is not known.
	// The limits of the system scope will be at least twice as high: room for so many
	// connections, each with a descriptor, a stream and a yamux window. Those of the transient
	// scope will be at least half as high as the mark.
	ConnMgrHighWater int
	// Base are the limits that the proposal will be built on. nil stands for NodeLimits
	// with Memory, FileDescriptors and ConnMgrHighWater.
	Base *rcmgr.ConcreteLimitConfig
	// Admission is how a replay reads the priorities of memory.
	Admission rcmgr.Admission
}

// Proposal is a configuration of limits with its reasons.
type Proposal struct {
	// Limits is what WriteLimits writes. What was not seen is left to the limits that it is
	// built on.
	Limits rcmgr.PartialLimitConfig
	// Reasons has one reason for each limit, in the order of the fields of PartialLimitConfig.
	Reasons []Reason
	// Notes say what is missing from what was seen, and what the proposal does not know.
	Notes []string
	// Refused lists what the proposed limits would have refused of what was seen. It is
	// empty unless the machine has less than was held, or what was held cannot be replayed.
	Refused []Refusal
	// Built has the proposed limits on their base.
	Built rcmgr.ConcreteLimitConfig `json:"-"`
}

// Sure is how well what was seen supports a limit.
type Sure string

const (
	// SureLow means that less than an hour was seen, or fewer than 5 looks, or that the
	// limit of that time refused something, so that the need is not known.
	SureLow Sure = "low"
	// SureMedium means that less than a day was seen, or fewer than 20 looks.
	SureMedium Sure = "medium"
	// SureHigh means that a day or more was seen.
	SureHigh Sure = "high"
)

// Rule is what decided a limit.
type Rule string

const (
	RuleMargin    Rule = "margin"    // the margin above what was seen
	RuleFloor     Rule = "floor"     // what libp2p's own protocols need
	RuleHighWater Rule = "highwater" // what the connection manager's high water mark needs
	RuleSum       Rule = "sum"       // the sum of both directions
	RuleReplay    Rule = "replay"    // raised until a replay of the trace refused nothing
	RuleMachine   Rule = "machine"   // what the machine has
	RuleOuter     Rule = "outer"     // the limit of a scope in which all of it counts, too
	RuleBurst     Rule = "burst"     // of a rate: a network may come back with all of its connections at once
)

// Reason is one proposed limit, and why it is what it is. Amounts are counts, or bytes of
// memory.
type Reason struct {
	// Place is where the limit stands in the configuration, such as "System.ConnsInbound" or
	// `Protocol["/ipfs/ping/1.0.0"].Streams`.
	Place string
	// Value is the limit, or math.MaxInt64 for no limit. Text is the same as in the file,
	// without quotes: "64", "unlimited".
	Value int64
	Text  string
	Rule  Rule

	// Seen is the most that was held, at the time At, according to the snapshot or trace In.
	// Usual is what was usually held at most.
	Seen  int64
	Usual int64
	At    time.Time `json:",omitzero"`
	In    string    `json:",omitzero"`
	// Holders is the number of peers that held any of it at that time; in limits of each
	// peer, that of peers which at some time held half of it or more. It is 0 if it is
	// not known. Top is the name of the peer that held most of it, and TopHeld what it held.
	Holders int    `json:",omitzero"`
	Top     string `json:",omitzero"`
	TopHeld int64  `json:",omitzero"`
	// Was is the limit at the time of the last look, math.MaxInt64 if there was none, or 0
	// if it is not known. Refused counts the requests that it refused, and WouldRefuse those
	// that it admitted because it was only observed.
	Was         int64  `json:",omitzero"`
	Refused     uint64 `json:",omitzero"`
	WouldRefuse uint64 `json:",omitzero"`
	// Looks and Span are how often, and for how long, the node was looked at.
	Looks int
	Span  time.Duration
	Sure  Sure
	// Why is all of this as a sentence.
	Why string

	gate   bool           // it is about a gate
	rate   rcmgr.ConnRate // the proposed rate of a gate; Value is its burst
	unseen bool           // it is for services or protocols that were never seen
}

// Refusal is something that was held and that the proposed limits would have refused.
type Refusal struct {
	// In is the snapshot or trace that it was seen in.
	In string
	// Scope is the scope that refuses, What it refuses, and Place the limit.
	Scope, What, Place string
	// Times counts the requests of a trace. Held is the most that a snapshot saw held, where
	// that is above Limit.
	Times       int   `json:",omitzero"`
	Held, Limit int64 `json:",omitzero"`
}

// Propose proposes limits. It returns an error if nothing was seen, or if the options
// contradict each other.
func (e *Evidence) Propose(o Options) (*Proposal, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if len(e.sources) == 0 {
		return nil, errors.New("suggest: nothing was seen: expected a snapshot or a trace")
	}
	w := &work{e: e, o: o, p: &Proposal{}, rows: make(map[scope]*row)}
	if err := w.prepare(); err != nil {
		return nil, err
	}
	w.propose()
	w.gates()
	if err := w.replay(); err != nil {
		return nil, err
	}
	w.finish()
	return w.p, nil
}

func (o *Options) check() error {
	switch {
	case o.Margin != 0 && !(o.Margin >= 1 && o.Margin <= 1000):
		return fmt.Errorf("suggest: Margin is %g, expected a number from 1 to 1000", o.Margin)
	case o.Memory < 0 || o.FileDescriptors < 0 || o.ConnMgrHighWater < 0:
		return errors.New("suggest: Memory, FileDescriptors and ConnMgrHighWater must not be negative")
	}
	return nil
}

// work is a proposal in the making.
type work struct {
	e    *Evidence
	o    Options
	p    *Proposal
	base rcmgr.ConcreteLimitConfig
	rows map[scope]*row

	gateLimits  *rcmgr.GateLimits // nil: as they are
	gateReasons []*Reason
}

// row is the proposal for one scope, by dimension. A dimension without a reason is left to
// the base.
type row [numDims]*Reason

// prepare finds out what the machine has, and what the proposal is built on.
func (w *work) prepare() error {
	w.o.Margin = cmp.Or(w.o.Margin, 2)
	for _, known := range w.e.sizings {
		w.o.Memory = cmp.Or(w.o.Memory, known.Memory)
		if fds := known.FileDescriptors.Build(0); fds > 0 && fds < math.MaxInt {
			w.o.FileDescriptors = cmp.Or(w.o.FileDescriptors, fds)
		}
	}
	if w.o.Memory == 0 || w.o.FileDescriptors == 0 {
		w.p.Notes = append(w.p.Notes, "What the machine has is not known, so that limits of memory or file descriptors may be above it: give Memory and FileDescriptors (--memory, --fds).")
	}
	if w.o.ConnMgrHighWater == 0 {
		w.p.Notes = append(w.p.Notes, "The connection manager's high water mark is not known, so that limits of connections may be below it: give ConnMgrHighWater (--high-water).")
	}
	if w.o.Base != nil {
		w.base = *w.o.Base
		return nil
	}
	var err error
	w.base, err = rcmgr.NodeLimits{MaxMemory: w.o.Memory, MaxFileDescriptors: w.o.FileDescriptors,
		ConnMgrHighWater: w.o.ConnMgrHighWater}.Build()
	if err != nil {
		return fmt.Errorf("suggest: %w", err)
	}
	return nil
}

// mostNamed is how many services, and how many protocols, get limits of their own.
const mostNamed = 64

func (w *work) propose() {
	// A scope comes before those inside it.
	for _, k := range []rcmgr.Kind{rcmgr.KindSystem, rcmgr.KindTransient, rcmgr.KindAllowlistedSystem, rcmgr.KindAllowlistedTransient,
		rcmgr.KindPeer, rcmgr.KindServicePeer, rcmgr.KindProtocolPeer, rcmgr.KindConn, rcmgr.KindStream} {
		w.scope(scope{kind: k})
	}
	named := map[rcmgr.Kind][]scope{}
	for s := range w.e.seen {
		if s.name != "" {
			named[s.kind] = append(named[s.kind], s)
		}
	}
	for _, k := range []rcmgr.Kind{rcmgr.KindService, rcmgr.KindProtocol} {
		list := named[k]
		slices.SortFunc(list, func(a, b scope) int {
			held := func(s scope) int64 { return w.e.seen[s].of[dimStreams].peak }
			return cmp.Or(cmp.Compare(held(b), held(a)), cmp.Compare(a.name, b.name))
		})
		if len(list) > mostNamed {
			w.p.Notes = append(w.p.Notes, fmt.Sprintf("Of %d scopes of the kind %v, those %d that held the most streams have limits of their own.",
				len(list), k, mostNamed))
		}
		for _, s := range list[:min(len(list), mostNamed)] {
			w.scope(s)
		}
		w.others(k, list[min(len(list), mostNamed):])
		w.boundParts(k)
	}
}

// boundParts lowers what one peer may have of any service, or of any protocol, to the most that one
// of these may have. One without a limit of its own has the limit for all others.
func (w *work) boundParts(k rcmgr.Kind) {
	parts := map[rcmgr.Kind]rcmgr.Kind{rcmgr.KindService: rcmgr.KindServicePeer, rcmgr.KindProtocol: rcmgr.KindProtocolPeer}[k]
	r, others := w.rows[scope{kind: parts}], w.rows[scope{kind: k}]
	if r == nil || others == nil {
		return
	}
	for d := range numDims {
		if r[d] == nil || others[d] == nil || r[d].Value == math.MaxInt64 {
			continue
		}
		most := int64(0)
		for s, of := range w.rows {
			if s.kind == k && of[d] != nil {
				most = max(most, of[d].Value)
			}
		}
		if r[d].Value > most {
			r[d].Value, r[d].Rule = most, RuleOuter
		}
	}
	in, out, total := r[dimStreamsIn], r[dimStreamsOut], r[dimStreams]
	if in != nil && out != nil && total != nil && in.Value < math.MaxInt64-out.Value {
		total.Value = min(total.Value, in.Value+out.Value)
	}
}

// others proposes limits for services or protocols that have none of their own. If all that were
// seen have some, these limits are for names that were never seen: nothing shows that peers need
// them, and an attacker chooses them as freely as any others.
func (w *work) others(k rcmgr.Kind, seen []scope) {
	s := scope{kind: k}
	all := new(seenScope)
	for _, one := range seen {
		of := w.e.seen[one]
		for d := range numDims {
			if all.raise(d, of.of[d].peak, of.of[d].at, of.of[d].in) {
				all.of[d].holders, all.of[d].top, all.of[d].topHeld = of.of[d].holders, of.of[d].top, of.of[d].topHeld
			}
		}
	}
	r := new(row)
	for _, d := range []dim{dimStreamsIn, dimStreamsOut, dimMemory} {
		if all.of[d].peak == 0 && d == dimStreamsOut { // the node's own doing
			continue
		}
		r[d] = w.reasonOf(s, all, d)
		r[d].Value, r[d].Rule = roundUp((1+w.o.Margin)/2*float64(r[d].Seen), d == dimMemory), RuleMargin
		least := floorOf(k, d)
		if r[d].unseen = len(seen) == 0; r[d].unseen {
			least = floorOfUnseen(d)
		}
		if r[d].Value < least {
			r[d].Value, r[d].Rule = least, RuleFloor
		}
	}
	w.complete(s, r, all)
	w.rows[s] = r
}

// scope proposes limits for one scope.
func (w *work) scope(s scope) {
	seen := w.e.seen[s]
	if seen == nil {
		return
	}
	r := new(row)
	for d := range numDims {
		if hasLimit(s.kind, d) && d != dimStreams && d != dimConns {
			r[d] = w.limit(s, seen, d)
		}
	}
	w.complete(s, r, seen)
	if *r != (row{}) {
		w.rows[s] = r
	}
}

// complete bounds the limits of a scope, and adds those that follow from them.
func (w *work) complete(s scope, r *row, seen *seenScope) {
	bound := func(dims ...dim) {
		for _, d := range dims {
			if r[d] != nil {
				w.bound(s, r, d)
			}
		}
	}
	bound(dimStreamsIn, dimStreamsOut, dimConnsIn, dimConnsOut, dimMemory)
	w.sum(s, r, seen, dimStreams, dimStreamsIn, dimStreamsOut)
	w.sum(s, r, seen, dimConns, dimConnsIn, dimConnsOut)
	var conns int64
	for _, d := range []dim{dimConnsIn, dimConnsOut} {
		if r[d] != nil && r[d].Value < math.MaxInt64-conns {
			conns += r[d].Value
		}
	}
	if fd := r[dimFD]; fd != nil && conns > fd.Value {
		fd.Value, fd.Rule = conns, RuleSum
	}
	bound(dimStreams, dimConns, dimFD)
}

// limit proposes one limit. It returns nil if nothing was seen that it could be based on.
func (w *work) limit(s scope, seen *seenScope, d dim) *Reason {
	of := &seen.of[d]
	opened := d == dimStreamsIn || d == dimConnsIn // by others: an attacker may open them where no peer did
	if of.peak == 0 && of.refused+of.would == 0 && !(opened && seen.any(d)) {
		return nil
	}
	r := w.reasonOf(s, seen, d)
	want := max(w.o.Margin*float64(r.Usual), (1+w.o.Margin)/2*float64(r.Seen))
	r.Value, r.Rule = roundUp(want, d == dimMemory), RuleMargin
	if least := floorOf(s.kind, d); r.Value < least {
		r.Value, r.Rule = least, RuleFloor
	}
	if mark := w.markOf(s.kind, d); r.Value < mark {
		r.Value, r.Rule = mark, RuleHighWater
	}
	return r
}

// markOf returns the least limit beside the connection manager's high water mark, 0 without one:
// twice the mark, because the connection manager closes connections only from time to time. As in
// NodeLimits, the transient scope has a quarter of that. What is seen of a quiet time does not show
// how many peers there will be, but the mark does.
func (w *work) markOf(k rcmgr.Kind, d dim) int64 {
	most := 2 * float64(w.o.ConnMgrHighWater)
	switch {
	case k == rcmgr.KindTransient:
		most /= 4
	case k != rcmgr.KindSystem:
		return 0
	}
	if d == dimMemory {
		most *= window
	}
	return roundUp(most, d == dimMemory)
}

// sum proposes a limit on both directions together, which is the sum of their limits, so that
// neither direction takes the other's room.
func (w *work) sum(s scope, r *row, seen *seenScope, total, in, out dim) {
	if r[in] == nil && r[out] == nil {
		return
	}
	t := w.reasonOf(s, seen, total)
	t.Value, t.Rule = math.MaxInt64, RuleSum
	if r[in] != nil && r[out] != nil && r[in].Value < math.MaxInt64-r[out].Value {
		t.Value = r[in].Value + r[out].Value
	}
	r[total] = t
}

// bound lowers a limit to what the machine has, and to the limits of the scopes around it.
func (w *work) bound(s scope, r *row, d dim) {
	has := int64(math.MaxInt64)
	switch {
	case d == dimMemory && w.o.Memory > 0:
		has = w.o.Memory
	case d == dimFD && w.o.FileDescriptors > 0:
		has = int64(w.o.FileDescriptors)
	}
	if r[d].Value > has {
		r[d].Value, r[d].Rule = has, RuleMachine
	}
	for _, k := range outer[s.kind] {
		if around := w.rows[scope{kind: k}]; around != nil && around[d] != nil && r[d].Value > around[d].Value && r[d].Value < math.MaxInt64 {
			r[d].Value, r[d].Rule = around[d].Value, RuleOuter
		}
	}
}

// outer has the kinds of scopes in which all that a scope holds counts, too.
var outer = map[rcmgr.Kind][]rcmgr.Kind{
	rcmgr.KindTransient:            {rcmgr.KindSystem},
	rcmgr.KindAllowlistedTransient: {rcmgr.KindAllowlistedSystem},
	rcmgr.KindPeer:                 {rcmgr.KindSystem},
	rcmgr.KindService:              {rcmgr.KindSystem},
	rcmgr.KindProtocol:             {rcmgr.KindSystem},
	rcmgr.KindServicePeer:          {rcmgr.KindSystem, rcmgr.KindPeer},
	rcmgr.KindProtocolPeer:         {rcmgr.KindSystem, rcmgr.KindPeer},
	rcmgr.KindStream:               {rcmgr.KindSystem, rcmgr.KindPeer},
	rcmgr.KindConn:                 {rcmgr.KindSystem, rcmgr.KindPeer},
}

// reasonOf returns what was seen of a limit.
func (w *work) reasonOf(s scope, seen *seenScope, d dim) *Reason {
	of := &seen.of[d]
	return &Reason{
		Place: s.place() + "." + dimNames[d],
		Seen:  of.peak, Usual: usual(seen.looks, d), At: of.at, In: of.in,
		Holders: of.holders, Top: of.top, TopHeld: of.topHeld,
		Was: of.limit, Refused: of.refused, WouldRefuse: of.would,
		Looks: len(seen.looks), Span: w.e.span(),
	}
}

// usual returns the mean of the higher half of all looks.
func usual(looks []look, d dim) int64 {
	all := make([]int64, len(looks))
	for i, l := range looks {
		all[i] = l.held[d]
	}
	slices.Sort(all)
	all = all[len(all)/2:]
	if len(all) == 0 {
		return 0
	}
	var sum float64
	for _, n := range all {
		sum += float64(n)
	}
	return int64(math.Round(sum / float64(len(all))))
}

// mostReplays bounds how often limits are raised after a replay.
const mostReplays = 40

// replay raises the limits that refuse what a trace admitted.
func (w *work) replay() error {
	for range mostReplays {
		w.build()
		raised := false
		w.p.Refused = nil
		for _, t := range w.e.traces {
			a, err := t.story.Replay(w.p.Built, w.o.Admission)
			if err != nil {
				return fmt.Errorf("suggest: %w", err)
			}
			for _, by := range a.ByRefusals() {
				raised = w.raise(by) || raised
				w.p.Refused = append(w.p.Refused, Refusal{In: t.name, Scope: by.Scope, What: by.What, Place: by.Key, Times: a.Refusers[by]})
			}
		}
		if !raised {
			break
		}
	}
	return nil
}

// raise raises the limit that refused, and reports whether it could.
func (w *work) raise(by replay.Refuser) bool {
	s, d, ok := w.at(by.Key)
	if !ok {
		return false
	}
	r := w.reasonAt(s, d)
	was := r.Value
	if was == math.MaxInt64 {
		return false
	}
	want := roundUp(max(float64(was)*1.25, float64(r.Seen)), d == dimMemory)
	for _, k := range outer[s.kind] {
		if around := w.rows[scope{kind: k}]; around != nil && around[d] != nil {
			w.raiseTo(scope{kind: k}, d, want, RuleReplay)
		}
	}
	w.raiseTo(s, d, want, RuleReplay)
	return r.Value > was
}

// raiseTo raises a limit to n, as far as the machine has that, and the limit on both directions
// together with it.
func (w *work) raiseTo(s scope, d dim, n int64, by Rule) {
	r := w.reasonAt(s, d)
	if r.Value >= n {
		return
	}
	r.Value, r.Rule = n, by
	all := w.rows[s]
	w.bound(s, all, d)
	total, in, out := dimStreams, dimStreamsIn, dimStreamsOut
	switch d {
	case dimStreamsIn, dimStreamsOut:
	case dimConnsIn, dimConnsOut:
		total, in, out = dimConns, dimConnsIn, dimConnsOut
	default:
		return
	}
	sum := r.Value
	if all[in] != nil && all[out] != nil {
		sum = min(all[in].Value, math.MaxInt64-all[out].Value) + all[out].Value
	}
	if all[total] != nil || limitAt(w.p.Built, s.place()+"."+dimNames[total]) < r.Value {
		w.raiseTo(s, total, sum, RuleSum)
	}
}

// reasonAt returns the reason of a limit. If the limit has no reason yet, reasonAt makes one for the
// limit of the base.
func (w *work) reasonAt(s scope, d dim) *Reason {
	r := w.rows[s]
	if r == nil {
		r = new(row)
		w.rows[s] = r
	}
	if r[d] == nil {
		seen := w.e.seen[s]
		if seen == nil {
			seen = new(seenScope)
		}
		r[d] = w.reasonOf(s, seen, d)
		r[d].Value = limitAt(w.p.Built, r[d].Place)
	}
	return r[d]
}

// at returns the scope and the dimension of a place in the configuration.
func (w *work) at(place string) (scope, dim, bool) {
	before, name, _ := text.CutLast(place, ".")
	d := slices.Index(dimNames[:], name)
	if d < 0 {
		return scope{}, 0, false
	}
	s, ok := scopeAt(before)
	return s, dim(d), ok
}

// limitAt returns the limit at a place of a configuration.
func limitAt(cfg rcmgr.ConcreteLimitConfig, place string) int64 {
	for _, s := range cfg.Settings() {
		if s.Place == place {
			var v rcmgr.LimitVal64
			text := s.Value
			if text == "unlimited" || text == "blockAll" {
				text = `"` + text + `"`
			}
			if v.UnmarshalJSON([]byte(text)) == nil {
				return v.Build(0)
			}
		}
	}
	return math.MaxInt64
}

// build makes the configuration from the rows.
func (w *work) build() {
	cfg := rcmgr.PartialLimitConfig{Gates: w.gateLimits}
	for s, r := range w.rows {
		var l rcmgr.ResourceLimits
		for d := range numDims {
			if r[d] != nil {
				setLimit(&l, d, r[d].Value)
			}
		}
		switch s.kind {
		case rcmgr.KindSystem:
			cfg.System = l
		case rcmgr.KindTransient:
			cfg.Transient = l
		case rcmgr.KindAllowlistedSystem:
			cfg.AllowlistedSystem = l
		case rcmgr.KindAllowlistedTransient:
			cfg.AllowlistedTransient = l
		case rcmgr.KindService:
			putNamed(&cfg.ServiceDefault, &cfg.Service, s.name, l)
		case rcmgr.KindServicePeer:
			putNamed(&cfg.ServicePeerDefault, &cfg.ServicePeer, s.name, l)
		case rcmgr.KindProtocol:
			putNamed(&cfg.ProtocolDefault, &cfg.Protocol, protocol.ID(s.name), l)
		case rcmgr.KindProtocolPeer:
			putNamed(&cfg.ProtocolPeerDefault, &cfg.ProtocolPeer, protocol.ID(s.name), l)
		case rcmgr.KindPeer:
			putNamed(&cfg.PeerDefault, &cfg.Peer, peer.ID(s.name), l)
		case rcmgr.KindConn:
			cfg.Conn = l
		case rcmgr.KindStream:
			cfg.Stream = l
		}
	}
	w.p.Limits, w.p.Built = cfg, cfg.Build(w.base)
}

func putNamed[K ~string](unnamed *rcmgr.ResourceLimits, named *map[K]rcmgr.ResourceLimits, name K, l rcmgr.ResourceLimits) {
	if name == "" {
		*unnamed = l
		return
	}
	if *named == nil {
		*named = make(map[K]rcmgr.ResourceLimits)
	}
	(*named)[name] = l
}

// finish writes down the reasons, and what the limits would have refused.
func (w *work) finish() {
	w.p.Notes = append(w.p.Notes, w.e.notes...)
	if note := w.e.noteAgain(); note != "" {
		w.p.Notes = append(w.p.Notes, note)
	}
	for _, s := range slices.SortedFunc(maps.Keys(w.rows), compareScopes) {
		for _, d := range dimOrder {
			r := w.rows[s][d]
			if r == nil {
				continue
			}
			r.Looks, r.Span = cmp.Or(r.Looks, len(w.e.sources)), w.e.span()
			w.give(r, d)
			w.heldAbove(s, d, r)
		}
	}
	for _, r := range w.gateReasons {
		w.give(r, dimConnsIn)
	}
	if span := w.e.span(); span < leastSpan {
		seen := "at one moment only"
		if span >= time.Second {
			seen = fmt.Sprintf("for only %v", span.Round(time.Second))
		}
		w.p.Notes = append(w.p.Notes, "The node was seen "+seen+", so the proposal is not sure: what it needs at busier times is not known.")
	}
	if n := w.refusing(); n > 0 {
		w.p.Notes = append(w.p.Notes, fmt.Sprintf("Of the limits that were in force, %d refused requests while the node was seen. What it needed is not known, "+
			"and if that was an attack, the proposal makes room for it: propose from a time without one.", n))
	}
	for _, warning := range w.p.Built.Warnings() {
		w.p.Notes = append(w.p.Notes, warning+".")
	}
}

// give completes a reason, and adds it to the proposal.
func (w *work) give(r *Reason, d dim) {
	r.Sure, r.Text = r.sureness(), r.text()
	r.Why = r.sentence(w.o.Margin, d)
	w.p.Reasons = append(w.p.Reasons, *r)
}

// heldAbove adds what a snapshot saw held above a limit.
func (w *work) heldAbove(s scope, d dim, r *Reason) {
	seen := w.e.seen[s]
	if seen != nil && seen.of[d].snapshot > r.Value {
		of := &seen.of[d]
		w.p.Refused = append(w.p.Refused, Refusal{In: of.snapshotIn, Scope: s.String(), What: dimNames[d], Place: r.Place,
			Held: of.snapshot, Limit: r.Value})
	}
}

// refusing returns how many of the limits for which there are proposals refused something.
func (w *work) refusing() (n int) {
	for i := range w.p.Reasons {
		if w.p.Reasons[i].Refused > 0 {
			n++
		}
	}
	return n
}

// leastSpan is how long a node has to be seen for a proposal that is more than a first guess.
const leastSpan = time.Hour

func (r *Reason) sureness() Sure {
	switch {
	case r.Refused > 0, r.Span < leastSpan, r.Looks < 5:
		return SureLow
	case r.Span < 24*time.Hour, r.Looks < 20:
		return SureMedium
	}
	return SureHigh
}
