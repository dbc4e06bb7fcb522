package rcmgrshadow

// What has been different so far: counted by kind, logged once, and read as a report or as
// metrics.

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-p2p/rcmgr/internal/text"
)

// Kind is in what two managers differ.
type Kind string

const (
	// KindDecision means that one manager admits and the other refuses.
	KindDecision Kind = "decision"
	// KindRefusal means that both refuse, but another scope, or for lack of another
	// resource.
	KindRefusal Kind = "refusal"
	// KindStat means that a scope holds other amounts.
	KindStat Kind = "stat"
	// KindLimit means that a scope has another limit.
	KindLimit Kind = "limit"
	// KindAttached means that a connection or stream is attached to another peer, protocol or
	// service.
	KindAttached Kind = "attached"
	// KindAllowlist means that the allowlists do not say the same of an address or peer.
	KindAllowlist Kind = "allowlist"
	// KindPanic means that the manager beside has panicked. It is not asked any more.
	KindPanic Kind = "panic"
)

var kinds = []Kind{KindDecision, KindRefusal, KindStat, KindLimit, KindAttached, KindAllowlist, KindPanic}

// Difference is what is counted as one kind of difference.
type Difference struct {
	Kind Kind
	Call string `json:",omitempty"` // the method, such as "ReserveMemory"
	// Entry is the entry of DIFFERENCES.md that explains the difference, by its name in
	// the first column. It is empty if no entry explains it.
	Entry       string `json:",omitempty"`
	Explained   bool
	Count       uint64
	First, Last time.Time
	Example     string // the first one, as text
}

// Report is what has been different between two managers since a Manager was made.
type Report struct {
	Lead, Beside string // "go-libp2p" or "rcmgr"
	Since, Taken time.Time
	Calls        uint64 // that both managers were asked
	Compared     uint64 // how often all scopes were compared
	// Differences lists the unexplained ones first, and then the most frequent.
	Differences            []Difference
	Unexplained, Explained uint64 // sums of the counts of Differences
	// Follows counts decisions that differ because the managers hold other amounts after an
	// earlier difference. Timing counts decisions about rates and source addresses that
	// differ because the managers read the clock one after the other. Neither is among
	// Differences.
	Follows, Timing uint64
	// Apart is how many connections and streams are open that only the lead has, or that
	// hold other amounts beside.
	Apart int
	// Out means that the manager beside has panicked, and is not asked any more.
	Out bool
}

// counts is what a Manager counts. It is guarded by the Manager's lock.
type counts struct {
	calls, compared uint64
	lines           map[lineKey]*Difference
	notCompared     map[notCompared]uint64
	news            []*Difference // to be logged when the lock is released
}

type lineKey struct {
	kind        Kind
	call, entry string
}

func newCounts() counts {
	return counts{lines: map[lineKey]*Difference{}, notCompared: map[notCompared]uint64{}}
}

// mostText is the greatest length of an example, which may quote names that remote peers
// choose.
const mostText = 600

// count counts a difference.
func (m *Manager) count(kind Kind, call, entry, example string) {
	key := lineKey{kind, call, entry}
	now := time.Now()
	d := m.counts.lines[key]
	if d == nil {
		d = &Difference{Kind: kind, Call: call, Entry: entry, Explained: entry != "", First: now, Example: printable(example)}
		m.counts.lines[key] = d
		news := *d
		m.counts.news = append(m.counts.news, &news)
	}
	d.Count++
	d.Last = now
}

// printable returns a text without what could break a table or a terminal, and not too long.
func printable(text string) string {
	if len(text) > mostText {
		text = strings.ToValidUTF8(text[:mostText], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// log logs the first difference of its kind.
func (d *Difference) log() {
	attrs := []any{"kind", d.Kind, "call", d.Call, "example", d.Example}
	if d.Explained {
		log.Warn("the resource managers differ, as DIFFERENCES.md says", append(attrs, "entry", d.Entry)...)
		return
	}
	log.Error("the resource managers differ, and no entry of DIFFERENCES.md explains it", append(attrs,
		"check", "that both managers have the same allowlist, gates and options")...)
}

// Report compares what all scopes hold, and returns what has been different so far. Calls wait
// meanwhile, for as long as both managers take for their Stat.
func (m *Manager) Report() Report {
	m.mu.Lock()
	defer m.unlock()
	m.sameEverything()
	r := Report{
		Lead: "go-libp2p", Beside: "rcmgr", Since: m.started, Taken: time.Now(),
		Calls: m.counts.calls, Compared: m.counts.compared,
		Follows: m.counts.notCompared[followsEarlier], Timing: m.counts.notCompared[timing],
		Apart: len(m.apart), Out: m.out, Differences: []Difference{},
	}
	if m.oursLead {
		r.Lead, r.Beside = r.Beside, r.Lead
	}
	for _, d := range m.counts.lines {
		r.Differences = append(r.Differences, *d)
		if d.Explained {
			r.Explained += d.Count
		} else {
			r.Unexplained += d.Count
		}
	}
	slices.SortFunc(r.Differences, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(explainedLast(a), explainedLast(b)), cmp.Compare(b.Count, a.Count),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Call, b.Call), cmp.Compare(a.Entry, b.Entry))
	})
	return r
}

func explainedLast(d Difference) int {
	if d.Explained {
		return 1
	}
	return 0
}

// Summary returns the report in one line.
func (r *Report) Summary() string {
	text := fmt.Sprintf("%s decides, %s beside it: %s, %s, %d explained, %d that follow from these, %d of timing",
		r.Lead, r.Beside, text.Plural(r.Calls, "call"), text.Plural(r.Unexplained, "unexplained difference"), r.Explained, r.Follows, r.Timing)
	if r.Out {
		text += "; the manager beside has panicked, and is not asked any more"
	}
	return text
}

// String returns the report as WriteTable writes it.
func (r *Report) String() string {
	var b strings.Builder
	r.WriteTable(&b)
	return b.String()
}

// WriteTable writes a summary, a table of the differences, and an example of each. It returns
// the error of w, if any.
func (r *Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, r.Summary())
	if len(r.Differences) == 0 {
		_, err := fmt.Fprintln(w, "No differences.")
		return err
	}
	fmt.Fprintln(t, "\nCount\tKind\tCall\tEntry of DIFFERENCES.md")
	for _, d := range r.Differences {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", d.Count, d.Kind, d.Call, d.entryText())
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, d := range r.Differences {
		if _, err := fmt.Fprintf(w, "%s, %s, %s: first %s: %s\n", d.Kind, d.Call, d.entryText(), d.First.UTC().Format(time.RFC3339), d.Example); err != nil {
			return err
		}
	}
	return nil
}

func (d *Difference) entryText() string { return cmp.Or(d.Entry, "NONE: unexplained") }

var (
	differencesDesc = prometheus.NewDesc("libp2p_rcmgr_shadow_differences_total",
		"Differences between the resource manager that decides and the one beside it, by the entry of DIFFERENCES.md that explains them.",
		[]string{"kind", "explained", "entry"}, nil)
	notComparedDesc = prometheus.NewDesc("libp2p_rcmgr_shadow_not_compared_total",
		"Decisions that differ because of an earlier difference (follows) or of the clock (timing).", []string{"why"}, nil)
	callsDesc = prometheus.NewDesc("libp2p_rcmgr_shadow_calls_total", "Calls that both resource managers were asked.", nil, nil)
	apartDesc = prometheus.NewDesc("libp2p_rcmgr_shadow_apart", "Open connections and streams that differ.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *Manager) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{differencesDesc, notComparedDesc, callsDesc, apartDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector, from a Report. Unexplained differences
// have a series for each kind from the start.
func (m *Manager) Collect(ch chan<- prometheus.Metric) {
	r := m.Report()
	type series struct {
		kind  Kind
		entry string
	}
	sums := map[series]uint64{}
	for _, k := range kinds {
		sums[series{k, ""}] = 0
	}
	for _, d := range r.Differences {
		sums[series{d.Kind, d.Entry}] += d.Count
	}
	counter := func(desc *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	for s, n := range sums {
		counter(differencesDesc, n, string(s.kind), strconv.FormatBool(s.entry != ""), s.entry)
	}
	counter(notComparedDesc, r.Follows, string(followsEarlier))
	counter(notComparedDesc, r.Timing, string(timing))
	counter(callsDesc, r.Calls)
	ch <- prometheus.MustNewConstMetric(apartDesc, prometheus.GaugeValue, float64(r.Apart))
}
