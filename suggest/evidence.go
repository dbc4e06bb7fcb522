package suggest

// What was seen, from all sources: for each scope the looks, and the highest values.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/replay"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// Evidence is what was seen of one node: snapshots, traces, or both, in any order. Its zero
// value is empty. It is not safe for concurrent use. If a method returns an error, nothing was
// added. A snapshot of the same manager and the same time as one that was added before, or a trace
// that begins and ends with another, is no news: it adds nothing but a note in the proposal.
type Evidence struct {
	sources []string
	seen    map[scope]*seenScope
	sizings []rcmgr.Sizing // those of the latest snapshots first
	sized   []time.Time    // when they were taken
	traces  []trace
	gates   seenGates
	notes   []string
	again   []string // the sources whose snapshots or traces had been added before

	managers map[time.Time]*manager // by the time when they were made
	traced   time.Duration          // the length of all traces
}

type trace struct {
	name  string
	story *replay.Story
}

// manager is what the snapshots of one manager have said so far.
type manager struct {
	until  time.Time
	taken  map[time.Time]bool // when its snapshots were taken
	scopes map[scope]*counted
}

// counted are the counts of a scope, which only grow, in the latest snapshot.
type counted struct{ peak, refused, would amounts }

// seenScope is what was seen of a scope, or of the one peer that held most.
type seenScope struct {
	looks []look
	of    [numDims]seenDim
}

// look is what was held at most in a short time.
type look struct {
	at   time.Time
	held amounts
}

type seenDim struct {
	peak           int64
	at             time.Time
	in             string
	holders        int
	top            string
	topHeld        int64
	limit          int64 // of the last look, 0 if it is not known
	refused, would uint64
	snapshot       int64 // the highest value that a snapshot has
	snapshotIn     string
}

// any reports whether the scope has held anything of the resource of d.
func (s *seenScope) any(d dim) bool {
	if d == dimConnsIn {
		return s.of[dimConns].peak > 0
	}
	return s.of[dimStreams].peak > 0
}

// raise records a value that was held, and reports whether it is the highest so far.
func (s *seenScope) raise(d dim, n int64, at time.Time, in string) (higher bool) {
	of := &s.of[d]
	if n <= of.peak {
		return false
	}
	of.peak, of.at, of.in = n, at, in
	of.holders, of.top, of.topHeld = 0, "", 0
	return true
}

func (e *Evidence) at(s scope) *seenScope {
	if e.seen == nil {
		e.seen = make(map[scope]*seenScope)
	}
	if e.seen[s] == nil {
		e.seen[s] = new(seenScope)
	}
	return e.seen[s]
}

// span returns for how long the node was seen.
func (e *Evidence) span() time.Duration {
	all := e.traced
	for started, m := range e.managers {
		all += m.until.Sub(started)
	}
	return all
}

// noteAgain returns a note about what was given again, or "" if nothing was.
func (e *Evidence) noteAgain() string {
	if len(e.again) == 0 {
		return ""
	}
	return fmt.Sprintf("What was given again counts once: %s, such as %s.",
		text.Plural(len(e.again), "snapshot or trace", "snapshots or traces"), e.again[0])
}

// Sources returns the names of everything that was added.
func (e *Evidence) Sources() []string { return slices.Clone(e.sources) }

// ReadFile adds the snapshots or the trace in a file. It tells them apart by their contents.
func (e *Evidence) ReadFile(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("suggest: %w", err)
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, 64<<10)
	if isTrace(in) {
		return e.ReadTrace(name, in)
	}
	return e.ReadSnapshot(name, in)
}

// isTrace reports whether a file is a trace: compressed, or with an event as its first line.
func isTrace(in *bufio.Reader) bool {
	start, _ := in.Peek(4 << 10)
	if bytes.HasPrefix(start, []byte{0x1f, 0x8b}) {
		return true
	}
	start = bytes.TrimSpace(start)
	return bytes.HasPrefix(start, []byte(`{"Time":`)) || bytes.HasPrefix(start, []byte(`{"Type":`))
}

// ReadSnapshot adds one or more snapshots in JSON, as the live page and json.Marshal write
// them, one after the other. The name is that of the source in errors and reasons.
func (e *Evidence) ReadSnapshot(name string, r io.Reader) error {
	bounded := &boundedReader{r: r, left: mostBytes}
	in := json.NewDecoder(bounded)
	var all []rcmgr.Snapshot
	var unread []string
	for {
		var raw json.RawMessage
		err := in.Decode(&raw)
		if errors.Is(err, io.EOF) && len(all) > 0 {
			break
		}
		if err == nil {
			var s rcmgr.Snapshot
			var others []string
			if s, others, err = snapshotFrom(raw); err == nil {
				all, unread = append(all, s), append(unread, others...)
				bounded.left = mostBytes
				continue
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			err = errors.New("it is empty: expected the JSON of a Snapshot")
		case errors.Is(err, io.ErrUnexpectedEOF):
			err = errors.New("the JSON of a Snapshot is cut off")
		}
		return fmt.Errorf("suggest: %s: %w", name, err)
	}
	for i := range all {
		e.addSnapshot(name, &all[i])
	}
	if len(unread) > 0 {
		slices.Sort(unread)
		e.notes = append(e.notes, fmt.Sprintf("%s was written by another version of rcmgr; this one does not know its %s.",
			name, strings.Join(slices.Compact(unread), ", ")))
	}
	return nil
}

// mostBytes is the largest size of a snapshot that is read.
const mostBytes = 512 << 20

// boundedReader returns an error when more is read than is left.
type boundedReader struct {
	r    io.Reader
	left int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p[:min(len(p), b.left+1)])
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("it has more than %d MiB, which no snapshot has", mostBytes>>20)
	}
	return n, err
}

// snapshotFrom reads a snapshot, and returns the names of the members that it does not know.
func snapshotFrom(raw []byte) (s rcmgr.Snapshot, unread []string, err error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return s, nil, fmt.Errorf("expected the JSON of a Snapshot: %w", err)
	}
	for _, must := range []string{"Taken", "Started", "Scopes"} {
		if members[must] == nil {
			return s, nil, fmt.Errorf("expected the JSON of a Snapshot, which has Taken, Started and Scopes: there is no %s", must)
		}
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, nil, fmt.Errorf("a Snapshot of another version: %w", err)
	}
	known, err := json.Marshal(rcmgr.Snapshot{})
	if err != nil {
		return s, nil, err
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(known, &names); err != nil {
		return s, nil, err
	}
	for name := range members {
		if names[name] == nil && !optional[name] {
			unread = append(unread, name)
		}
	}
	return s, unread, check(&s)
}

// optional are the members of a Snapshot that are left out where they are empty.
var optional = map[string]bool{
	"Sizing": true, "MemberPeaks": true, "WouldRefuse": true, "Observed": true, "Recent": true,
	"Process": true, "FairShare": true, "Largest": true, "FullestParts": true, "Earmarks": true, "Allowlist": true, "Leaks": true,
}

// check returns an error for a snapshot that no manager writes.
func check(s *rcmgr.Snapshot) error {
	if s.Taken.Before(s.Started) {
		return fmt.Errorf("a Snapshot that was taken at %v, before its manager was made at %v",
			s.Taken.Format(time.RFC3339), s.Started.Format(time.RFC3339))
	}
	if !slices.ContainsFunc(s.Scopes, func(sc rcmgr.ScopeState) bool { return sc.Kind == rcmgr.KindSystem }) {
		return errors.New("a Snapshot without the system scope")
	}
	return nil
}

// AddSnapshot adds a snapshot. A snapshot that is older than one of the same manager that was added
// before adds a look, but no refusals.
func (e *Evidence) AddSnapshot(s *rcmgr.Snapshot) error {
	if err := check(s); err != nil {
		return fmt.Errorf("suggest: %w", err)
	}
	e.addSnapshot("the snapshot of "+s.Taken.Format(time.RFC3339), s)
	return nil
}

func (e *Evidence) addSnapshot(name string, s *rcmgr.Snapshot) {
	// As in JSON, so that a snapshot is the same before and after it was saved.
	started, taken := s.Started.Round(0).UTC(), s.Taken.Round(0).UTC()
	m := e.managers[started]
	switch {
	case m == nil:
		m = &manager{taken: make(map[time.Time]bool), scopes: make(map[scope]*counted)}
		if e.managers == nil {
			e.managers = make(map[time.Time]*manager)
		}
		e.managers[started] = m
	case m.taken[taken]:
		e.again = append(e.again, name)
		return
	}
	m.taken[taken] = true
	e.sources = append(e.sources, name)
	if s.Sizing.Memory > 0 {
		at, _ := slices.BinarySearchFunc(e.sized, s.Taken, func(t, taken time.Time) int { return taken.Compare(t) })
		e.sized, e.sizings = slices.Insert(e.sized, at, s.Taken), slices.Insert(e.sizings, at, s.Sizing)
	}
	if s.Taken.After(m.until) {
		m.until = s.Taken
	}
	e.gates.add(name, s)
	listed := 0
	for i := range s.Scopes {
		if s.Scopes[i].Kind == rcmgr.KindPeer {
			listed++
		}
	}
	for i := range s.Scopes {
		sc := &s.Scopes[i]
		if sc.Kind == rcmgr.KindPeer {
			continue
		}
		at := scope{kind: sc.Kind}
		if isNamed(sc.Kind) {
			at.name = sc.ID
		}
		now := counted{peak: amountsOf(sc.Peak), refused: countsOf(&sc.Refusals), would: countsOf(&sc.WouldRefuse)}
		e.add(name, s.Taken, m, at, useOf(sc), now, limitsOf(sc.Limit), func(d dim, of *seenDim) {
			if sc.Kind == rcmgr.KindSystem && listed == s.Peers {
				of.holders, of.top, of.topHeld = holdersIn(s, d)
			}
		})
	}
	for kind, most := range s.MemberPeaks {
		refused, would := s.Refusals[kind], s.WouldRefuse[kind]
		now := counted{peak: amountsOf(most.Ever), refused: countsOf(&refused), would: countsOf(&would)}
		e.add(name, s.Taken, m, scope{kind: kind}, amountsOf(most.Recent), now, memberLimit(s, kind), func(d dim, of *seenDim) {
			if kind == rcmgr.KindPeer && listed == s.Peers {
				of.holders, of.top, of.topHeld = fullestIn(s, d)
			}
		})
	}
}

// add adds what a snapshot has of one scope. describe is called for each dimension whose
// highest value it has.
func (e *Evidence) add(in string, at time.Time, m *manager, s scope, use amounts, now counted, limit amounts, describe func(dim, *seenDim)) {
	seen := e.at(s)
	before := m.scopes[s]
	l := look{at: at, held: use}
	if before == nil {
		before = new(counted)
		m.scopes[s] = before
	}
	for d := range numDims {
		if now.peak[d] > before.peak[d] { // since the look before
			l.held[d] = max(now.peak[d], use[d])
			before.peak[d] = now.peak[d]
		}
		of := &seen.of[d]
		// More peers may since have held as much as the fullest one.
		if seen.raise(d, l.held[d], at, in) || s.kind == rcmgr.KindPeer && l.held[d] > 0 && l.held[d] == of.peak {
			describe(d, of)
		}
		if l.held[d] > of.snapshot {
			of.snapshot, of.snapshotIn = l.held[d], in
		}
		of.refused += grown(&before.refused[d], now.refused[d])
		of.would += grown(&before.would[d], now.would[d])
		of.limit = limit[d]
	}
	seen.looks = append(seen.looks, l)
}

// useOf returns what a scope holds.
func useOf(s *rcmgr.ScopeState) amounts {
	use, total := &s.Use, func(a, b int) int64 { return int64(a) + int64(b) }
	return amounts{
		dimStreams:   total(use.NumStreamsInbound, use.NumStreamsOutbound),
		dimStreamsIn: int64(use.NumStreamsInbound), dimStreamsOut: int64(use.NumStreamsOutbound),
		dimConns:   total(use.NumConnsInbound, use.NumConnsOutbound),
		dimConnsIn: int64(use.NumConnsInbound), dimConnsOut: int64(use.NumConnsOutbound),
		dimFD: int64(use.NumFD), dimMemory: use.Memory,
	}
}

// grown returns by how much a count has grown, and keeps the new one.
func grown(before *int64, now int64) uint64 {
	if now <= *before {
		return 0
	}
	more := now - *before
	*before = now
	return uint64(more)
}

// holdersIn returns how many peers held some of d, and which of them held most.
func holdersIn(s *rcmgr.Snapshot, d dim) (n int, top string, held int64) {
	for i := range s.Scopes {
		if sc := &s.Scopes[i]; sc.Kind == rcmgr.KindPeer {
			use := useOf(sc)[d]
			if use > 0 {
				n++
			}
			if use > held {
				top, held = sc.Name, use
			}
		}
	}
	return n, top, held
}

// fullestIn returns how many peers have at some time held half or more of what the fullest has,
// which is that one, and what it held.
func fullestIn(s *rcmgr.Snapshot, d dim) (n int, top string, held int64) {
	for i := range s.Scopes {
		if sc := &s.Scopes[i]; sc.Kind == rcmgr.KindPeer {
			if peak := amountsOf(sc.Peak)[d]; peak > held {
				top, held = sc.Name, peak
			}
		}
	}
	for i := range s.Scopes {
		if sc := &s.Scopes[i]; sc.Kind == rcmgr.KindPeer && held > 0 && 2*amountsOf(sc.Peak)[d] >= held {
			n++
		}
	}
	return n, top, held
}

// memberLimit returns the limit of a peer, as far as a snapshot has it.
func memberLimit(s *rcmgr.Snapshot, k rcmgr.Kind) amounts {
	for i := range s.Scopes {
		if sc := &s.Scopes[i]; sc.Kind == k {
			return limitsOf(sc.Limit)
		}
	}
	return amounts{}
}

// ReadTrace adds a trace that rcmgr.WithTrace or go-libp2p's WithTrace wrote, compressed or
// not. The name is that of the source in errors and reasons. A trace that is cut off, as that
// of a process that was killed, is read as far as it goes, with a note in the proposal.
func (e *Evidence) ReadTrace(name string, r io.Reader) error {
	t := newTimeline(name)
	story, err := replay.ReadEach(r, t.take)
	if err != nil {
		return fmt.Errorf("suggest: %s: %w", name, err)
	}
	from, until := story.Time()
	for _, before := range e.traces {
		if first, last := before.story.Time(); first.Equal(from) && last.Equal(until) {
			e.again = append(e.again, name)
			return nil
		}
	}
	t.end(until)
	e.sources = append(e.sources, name)
	e.traces = append(e.traces, trace{name, story})
	e.traced += until.Sub(from)
	for _, gap := range story.Gaps() {
		e.notes = append(e.notes, name+": "+gap)
	}
	for s, tr := range t.scopes {
		seen := e.at(s)
		for i, held := range tr.slices {
			seen.looks = append(seen.looks, look{from.Add(time.Duration(i) * t.width), held})
		}
		for d := range numDims {
			of, new := &seen.of[d], &tr.of[d]
			if new.peak > of.peak {
				of.peak, of.at, of.in = new.peak, new.at, name
				of.holders, of.top, of.topHeld = new.holders, new.top, new.topHeld
			}
			of.refused += new.refused
			if new.limit > 0 {
				of.limit = new.limit
			}
		}
	}
	return nil
}

// decodeLimit reads the limit of a scope from a trace. Without a limit, it returns zeros.
func decodeLimit(raw json.RawMessage) amounts {
	var l rcmgr.BaseLimit
	if len(raw) == 0 || json.Unmarshal(raw, &l) != nil {
		return amounts{}
	}
	return limitsOf(l)
}

// countsOf returns the counts of refusals by dimension.
func countsOf(r *rcmgr.Refusals) amounts {
	signed := func(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
	return amounts{
		dimStreams: signed(r.Streams), dimStreamsIn: signed(r.StreamsInbound), dimStreamsOut: signed(r.StreamsOutbound),
		dimConns: signed(r.Conns), dimConnsIn: signed(r.ConnsInbound), dimConnsOut: signed(r.ConnsOutbound),
		dimFD: signed(r.FD), dimMemory: signed(r.Memory),
	}
}
