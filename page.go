package rcmgr

// The live page: the snapshot for a browser, for a terminal and for programs, under one
// address. The server renders the whole page, so it can be read without JavaScript;
// the page's script only fetches the page again and replaces the old one. The page loads
// nothing from other servers, and nothing can be changed through it.

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	"github.com/weir-p2p/rcmgr/internal/webpage"
)

var (
	//go:embed page/page.html
	pageHTML string
	//go:embed page/page.css
	pageStyle string
	//go:embed page/page.js
	pageScript string
)

const (
	// pagePeers is how many peers SnapshotTop is asked for.
	pagePeers = 20
	// questionsASecond is how many questions to Explain are answered in a second, and
	// how many at once, for all clients together. Each takes all stripe locks, and may
	// call a foreign Limiter.
	questionsASecond = 5
)

// nearlyFull is the percentage of a limit above which the page shows the limit first.
const nearlyFull = 90

// Handler returns a handler that shows what m holds, what its limits are, and what it has
// refused:
//
//	http.Handle("/rcmgr", rcmgr.Handler(m))
//
// A browser gets a page that updates itself and shows the fullest limits first. Other
// clients get the tables as text, or a Snapshot in JSON if they send the header
// "Accept: application/json". The query ?format=html, ?format=text or ?format=json
// overrides the header.
//
// A query such as ?explain=stream&direction=inbound&peer=12D3Koo… is a question to
// Manager.Explain, answered in the same three formats. The value of explain is the Kind
// of the ExplainRequest; the other keys are direction, endpoint, fd, peer, protocol,
// service, memory and priority.
//
// The handler works under any path, and answers only GET and HEAD. The page shows peer
// IDs and subnets: serve it where only operators can see it.
//
// The number of clients does not matter to the manager: the handler takes at most one
// snapshot a second, and asks at most five questions a second, with a burst of five.
// Further questions are answered with status 429 and a Retry-After header. A HEAD request
// does not reach the manager. The handler is safe for concurrent use.
func Handler(m *Manager) http.Handler {
	p := &page{m: m, questions: rate.NewLimiter(questionsASecond, questionsASecond)}
	p.template = template.Must(template.New("page").Funcs(template.FuncMap{
		"amount":  amountText,
		"percent": func(u LimitUse) string { return u.percentText() },
		"full":    func(u LimitUse) float64 { return min(max(u.fullness(), -1), 100) }, // finite, for the script
		"limited": func(u LimitUse) bool { _, ok := u.Percent(); return ok },
		"near":    func(u LimitUse) bool { return u.fullness() >= nearlyFull },
		"name":    printable,
		"lower":   strings.ToLower,
		"words":   strings.Fields,
		"age":     func(s *Snapshot, o OpenScope) string { return s.age(&o) },
		"class":   func(o OpenScope) string { return o.Class() },
		"where":   func(o OpenScope) string { return o.Where() },
		"shares":  func(s SubnetShare) []int64 { return s.numbers() },
	}).Parse(pageHTML))
	p.policy = webpage.Policy(pageStyle, pageScript)
	p.snapshots = webpage.NewCache(func() Snapshot { return m.SnapshotTop(pagePeers) })
	return p
}

type page struct {
	m         *Manager
	template  *template.Template
	policy    string        // Content-Security-Policy
	questions *rate.Limiter // each question to the manager takes a token
	// snapshots has the snapshot that all requests share. Each takes all stripe locks, and
	// many clients may watch.
	snapshots *webpage.Cache[Snapshot]
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	webpage.Serve(w, r, p.policy, func(format webpage.Format) webpage.Answer {
		l := look{asked: r.URL.Query()}
		var a webpage.Answer
		a.Status = p.explain(&l, r.Method == http.MethodHead)
		if a.Status == http.StatusTooManyRequests {
			a.RetryAfter = 1
		}
		if format != webpage.HTML { // the page says it at the form
			a.Err = l.err
		}
		write := map[webpage.Format]func(io.Writer, *look) error{
			webpage.HTML: p.writeHTML, webpage.JSON: writeJSON, webpage.Text: writeText}[format]
		a.Write = func(w io.Writer) error {
			l.snapshot = p.snapshots.Get()
			return write(w, &l)
		}
		return a
	})
}

// look is what one request is answered from: a snapshot, and the answer to the request's
// question if it has one.
type look struct {
	snapshot Snapshot
	asked    url.Values // the query
	answer   *Explanation
	err      error // why the question has no answer
}

// explain answers the request's question, if it has one, and returns the HTTP status. It
// does not ask the manager if only the header is wanted.
func (p *page) explain(l *look, onlyHeader bool) (status int) {
	if l.asked.Get("explain") == "" {
		return http.StatusOK
	}
	var q ExplainRequest
	if q, l.err = questionOf(l.asked); l.err == nil && !onlyHeader {
		if !p.questions.Allow() {
			l.err = fmt.Errorf("more than %d questions a second were asked: try again in a second", questionsASecond)
			return http.StatusTooManyRequests
		}
		l.answer, l.err = p.m.Explain(q)
	}
	if l.err != nil {
		return http.StatusBadRequest
	}
	return http.StatusOK
}

// writeJSON writes the snapshot, or the answer to a question if there is one.
func writeJSON(w io.Writer, l *look) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if l.answer != nil {
		return e.Encode(l.answer)
	}
	return e.Encode(&l.snapshot)
}

// writeText writes the tables, nearly full limits before all limits, or the answer to a
// question if there is one.
func writeText(w io.Writer, l *look) error {
	if l.answer != nil {
		return l.answer.WriteTable(w)
	}
	s := &l.snapshot
	fmt.Fprintf(w, "%s, up %s, %d peers, %d refusals, %d bugs of callers\n",
		s.Taken.UTC().Format(time.RFC3339), s.Uptime().Round(time.Second), s.Peers, s.totalRefusals(), s.CallerBugs)
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

// kindRefusals is what the scopes of one kind have refused, and what they would have
// refused if their limits were enforced.
type kindRefusals struct {
	Kind         Kind
	Total, Would uint64
	What         []string
	WouldWhat    []string
}

// each returns the limits that have refused something, each with its count.
func (r *Refusals) each() (what []string) {
	for d, n := range r.dimCounts() {
		if n > 0 {
			what = append(what, fmt.Sprintf("%s %d", limitNames[d], n))
		}
	}
	return what
}

func (s *Snapshot) refusalsByKind() (all []kindRefusals) {
	for kind := range numKinds {
		r, would := s.Refusals[kind], s.WouldRefuse[kind]
		k := kindRefusals{Kind: kind, Total: r.Total(), Would: would.Total(), What: r.each(), WouldWhat: would.each()}
		if k.Total+k.Would > 0 {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b kindRefusals) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(b.Would, a.Would), cmp.Compare(a.Kind, b.Kind))
	})
	return all
}

// plot is a curve of refusals a second over time, for an SVG polyline.
type plot struct {
	Width, Height int
	Points        string
	Minutes       int     // the time that the width stands for
	Most, Now     float64 // refusals a second
}

// plotOf returns nil while there are fewer than two points.
func plotOf(s *Snapshot) *plot {
	rates := s.refusalRates()
	if len(rates) < 2 {
		return nil
	}
	p := plot{Width: 300, Height: 40, Now: rates[len(rates)-1].PerSecond}
	for _, r := range rates {
		p.Most = max(p.Most, r.PerSecond)
	}
	p.Minutes = max(1, int(s.Taken.Sub(rates[0].At).Round(time.Minute).Minutes()))
	span := max(time.Minute, s.Taken.Sub(rates[0].At)).Seconds()
	var points strings.Builder
	for _, r := range rates {
		x := float64(p.Width) * (1 - s.Taken.Sub(r.At).Seconds()/span)
		y := float64(p.Height-2) - float64(p.Height-4)*r.PerSecond/max(1, p.Most)
		fmt.Fprintf(&points, "%.1f,%.1f ", x, y)
	}
	p.Points = strings.TrimSpace(points.String())
	return &p
}

// writeHTML writes the page. Its form still shows the question that was sent with it.
func (p *page) writeHTML(w io.Writer, l *look) error {
	s := &l.snapshot
	var explained strings.Builder
	if l.answer != nil {
		if err := l.answer.WriteTable(&explained); err != nil {
			return err
		}
	}
	// A limit that is unlimited, or that belongs to a peer, appears only if something has
	// used it or was refused by it.
	shown := slices.DeleteFunc(s.LimitUses(), func(u LimitUse) bool {
		_, limited := u.Percent()
		return (!limited || u.Kind == KindPeer) && u.Use == 0 && u.Refusals == 0 && u.WouldRefuse == 0
	})
	slices.SortStableFunc(shown, func(a, b LimitUse) int {
		return cmp.Or(cmp.Compare(b.fullness(), a.fullness()), cmp.Compare(b.Refusals, a.Refusals),
			cmp.Compare(b.WouldRefuse, a.WouldRefuse))
	})
	wrong := ""
	if l.err != nil {
		wrong = l.err.Error()
	}
	return p.template.Execute(w, map[string]any{
		"S": s, "Plot": plotOf(s), "Up": s.Uptime().Round(time.Second).String(), "Near": len(s.LimitsNear(nearlyFull)),
		"Refused": s.totalRefusals(), "ByKind": s.refusalsByKind(), "Limits": shown, "Holders": s.holders(),
		"HoldersTitle": s.holdersTitle(), "Wrong": wrong, "MemberPeaks": s.memberPeakRows(),
		"Names":     s.nameRows(),
		"Explained": explained.String(), "Asked": l.asked, "Observing": s.observing(), "Observed": s.observedText(),
		"Style": template.CSS(pageStyle), "Script": template.JS(pageScript),
	})
}

// questionOf reads a question to Explain from the query of the page's address:
//
//	?explain=stream&direction=inbound&peer=12D3Koo…&protocol=/ipfs/ping/1.0.0
//
// The keys are the names of ExplainRequest's fields in lower case, but explain stands for Kind
// and fd for UseFD. An error names the key.
func questionOf(query url.Values) (q ExplainRequest, err error) {
	q.Protocol, q.Service = protocol.ID(query.Get("protocol")), query.Get("service")
	q.UseFD = query.Get("fd") != ""
	for _, one := range []struct {
		key      string
		expected string
		read     func(string) error
	}{
		{"explain", "conn, stream, system, transient, peer, protocol or service", func(s string) error {
			return q.Kind.UnmarshalText([]byte(s))
		}},
		{"direction", "inbound or outbound", func(s string) error {
			names := []string{network.DirInbound: labelInbound, network.DirOutbound: labelOutbound}
			i := slices.Index(names, strings.ToLower(s))
			q.Direction = network.Direction(max(0, i))
			if i < 1 {
				return strconv.ErrSyntax
			}
			return nil
		}},
		{"endpoint", "a multiaddr", func(s string) (err error) {
			q.Endpoint, err = multiaddr.NewMultiaddr(s)
			return err
		}},
		{"peer", "a peer ID", func(s string) (err error) {
			q.Peer, err = peer.Decode(s)
			return err
		}},
		{"memory", "a number of bytes", func(s string) (err error) {
			q.Memory, err = strconv.ParseInt(s, 10, 64)
			return err
		}},
		{"priority", "a number from 0 to 255", func(s string) error {
			n, err := strconv.ParseUint(s, 10, 8)
			q.Priority = uint8(n)
			return err
		}},
	} {
		if text := query.Get(one.key); text != "" {
			if err := one.read(text); err != nil {
				return ExplainRequest{}, fmt.Errorf("%s is %q, expected %s", one.key, text, one.expected)
			}
		}
	}
	return q, nil
}
