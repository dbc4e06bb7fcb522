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
	"math"
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

	"github.com/weir-p2p/rcmgr/internal/text"
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
	// questionsASecond is how many questions are answered in a second, and how many at once,
	// for all clients together: those to Explain, and those for scopes by name. Each takes
	// all stripe locks, and may call a foreign Limiter.
	questionsASecond = 5
	// peersAQuestion is how many peers a search looks through for the price of one question.
	peersAQuestion = 20_000
	// pageRows is how many scopes the page lists in one table.
	pageRows = 100
)

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
// The query ?find=text lists the services, protocols and peers whose names contain a text, a
// hundred at a time and the fullest of each kind first; ?find=peer:&from=100 lists the second
// hundred of all peers. The query ?scope=peer:12D3Koo… shows one scope with all its limits. The
// answers in JSON are Snapshots that list these scopes, and the four that always exist; that of
// find also has Found, the number of all that were found.
//
// The handler works under any path, and answers only GET and HEAD. The page shows peer
// IDs and subnets: serve it where only operators can see it.
//
// The number of clients does not matter to the manager: the handler takes at most one
// snapshot a second, and fewer if one takes more than a sixtieth of a second, as with some
// hundred thousand peers. It asks at most five questions a second, with a burst of five. A find
// is one question, and one more for every 20,000 peers. Further questions are answered with
// status 429 and a Retry-After header. A HEAD request does not reach the manager. The handler
// is safe for concurrent use.
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
		"args":    templateArgs,
		"fullest": func(s ScopeState) *LimitUse { return s.fullest() },
		"what":    (*Bottleneck).what,
		"state":   (*Bottleneck).state,
		"shown":   (*Bottleneck).shownScope,
		"part":    (*Bottleneck).part,
		"ofPeer":  func(b *Bottleneck) bool { return !strings.Contains(b.Holder, "/") }, // or of a subnet
		"may": func(k LimitCheck) int64 { // a part of what is unlimited is unlimited, too
			if k.Limit == math.MaxInt64 {
				return k.Limit
			}
			return k.Threshold
		},
	}).Parse(pageHTML))
	p.policy = webpage.Policy(pageStyle, pageScript)
	p.snapshots = webpage.NewCache(func() Snapshot { return m.SnapshotTop(pagePeers) })
	return p
}

// templateArgs returns names and values as the data of a template in the page.
func templateArgs(pairs ...any) map[string]any {
	args := make(map[string]any)
	for i := 0; i < len(pairs); i += 2 {
		args[pairs[i].(string)] = pairs[i+1]
	}
	return args
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
		a.Status = p.answer(&l, r.Method == http.MethodHead)
		if a.Status == http.StatusTooManyRequests {
			a.RetryAfter = 1
		}
		if format != webpage.HTML { // the page says it at the form
			a.Err = l.err
		}
		write := map[webpage.Format]func(io.Writer, *look) error{
			webpage.HTML: p.writeHTML, webpage.JSON: writeJSON, webpage.Text: writeText}[format]
		a.Write = func(w io.Writer) error {
			if l.snapshot == nil {
				s := p.snapshots.Get()
				l.snapshot = &s
			}
			return write(w, &l)
		}
		return a
	})
}

// look is what one request is answered from: a snapshot, and the answer to the request's
// question if it has one.
type look struct {
	asked    url.Values // the query
	snapshot *Snapshot  // nil: the one that all requests share
	answer   *Explanation
	found    *hits
	scope    string // the only scope that is shown; empty for all
	err      error  // why the question has no answer
}

// hits are the scopes that a search has found.
type hits struct{ From, To, All int }

// First is the number of the first hit, counted from 1.
func (h *hits) First() int { return h.From + 1 }

// Before and After return where the hits before and after these begin. Before returns -1 at the
// first hits, and After returns 0 at the last ones.
func (h *hits) Before() int {
	if h.From == 0 {
		return -1
	}
	return max(0, h.From-pageRows)
}

func (h *hits) After() int {
	if h.To >= h.All {
		return 0
	}
	return h.To
}

// answer answers the request's questions, if it has any, and returns the HTTP status. It
// does not ask the manager if only the header is wanted.
func (p *page) answer(l *look, onlyHeader bool) (status int) {
	for _, q := range []struct {
		key string
		ask func(l *look, onlyHeader bool) (status int)
	}{{"explain", p.explain}, {"find", p.find}, {"scope", p.findScope}} {
		if l.asked.Get(q.key) != "" {
			if status := q.ask(l, onlyHeader); status != http.StatusOK {
				return status
			}
		}
	}
	return http.StatusOK
}

// allow reports whether a question may be asked that costs as much as n of the simplest. If not,
// l says so.
func (p *page) allow(l *look, n int) bool {
	if p.questions.AllowN(time.Now(), min(n, questionsASecond)) {
		return true
	}
	l.err = fmt.Errorf("more than %d questions a second were asked: try again in a second", questionsASecond)
	return false
}

func (p *page) explain(l *look, onlyHeader bool) (status int) {
	var q ExplainRequest
	if q, l.err = questionOf(l.asked); l.err == nil && !onlyHeader {
		if !p.allow(l, 1) {
			return http.StatusTooManyRequests
		}
		l.answer, l.err = p.m.Explain(q)
	}
	if l.err != nil {
		return http.StatusBadRequest
	}
	return http.StatusOK
}

func (p *page) find(l *look, onlyHeader bool) (status int) {
	from := 0
	if text := l.asked.Get("from"); text != "" {
		var err error
		if from, err = strconv.Atoi(text); err != nil || from < 0 {
			l.err = fmt.Errorf("from is %q, expected a number of 0 or more", text)
			return http.StatusBadRequest
		}
	}
	if onlyHeader {
		return http.StatusOK
	}
	if !p.allow(l, 1+p.snapshots.Get().Peers/peersAQuestion) {
		return http.StatusTooManyRequests
	}
	s, all := p.m.find(l.asked.Get("find"), from, pageRows)
	from = min(from, all)
	l.snapshot, l.found = &s, &hits{From: from, To: min(from+pageRows, all), All: all}
	return http.StatusOK
}

func (p *page) findScope(l *look, onlyHeader bool) (status int) {
	if onlyHeader {
		return http.StatusOK
	}
	if !p.allow(l, 1) {
		return http.StatusTooManyRequests
	}
	name := l.asked.Get("scope")
	s, ok := p.m.findScope(name)
	if !ok {
		l.err = fmt.Errorf("no scope has the name %q now", name)
		return http.StatusNotFound
	}
	s.Scopes = slices.DeleteFunc(s.Scopes, func(sc ScopeState) bool {
		return sc.Name != name && sc.Kind > KindAllowlistedTransient
	})
	l.snapshot, l.scope = &s, name
	return http.StatusOK
}

// writeJSON writes the snapshot, or the answer to a question if there is one.
func writeJSON(w io.Writer, l *look) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if l.answer != nil {
		return e.Encode(l.answer)
	}
	if l.found != nil {
		return e.Encode(struct {
			*Snapshot
			Found int
		}{l.snapshot, l.found.All})
	}
	return e.Encode(l.snapshot)
}

// writeText writes the tables, nearly full limits before all limits, or the answer to a
// question if there is one.
func writeText(w io.Writer, l *look) error {
	if l.answer != nil {
		return l.answer.WriteTable(w)
	}
	return l.snapshot.WriteText(w)
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

// writeHTML writes the page. Its forms still show the question that was sent with it.
func (p *page) writeHTML(w io.Writer, l *look) error {
	s := l.snapshot
	fixed, others := rowsOf(s, l.scope)
	if l.found != nil {
		others = nil
	}
	var names, peers []ScopeState
	for _, sc := range s.holders() {
		if sc.Kind == KindPeer {
			peers = append(peers, sc)
		} else {
			names = append(names, sc)
		}
	}
	wrong, wrongFind := "", ""
	switch {
	case l.err == nil:
	case l.answer == nil && l.asked.Get("explain") != "":
		wrong = l.err.Error()
	default:
		wrongFind = l.err.Error()
	}
	all := p.snapshots.Get() // a snapshot of some scopes may lack the limit that is full, or its holder
	peersShown, namesShown := min(len(peers), pageRows), min(len(names), pageRows)
	return p.template.Execute(w, map[string]any{
		"S": s, "Plot": plotOf(s), "Up": text.Uptime(s.Uptime()), "Near": len(all.LimitsNear(nearlyFull)),
		"Refused": s.totalRefusals(), "ByKind": s.refusalsByKind(), "Fixed": fixed,
		"Others": others[:min(len(others), pageRows)], "OthersLeft": max(0, len(others)-pageRows),
		"Peers": peers[:peersShown], "Names": names[:namesShown], "NamesAll": s.Services + s.Protocols,
		"InTheWay": all.InTheWay(), "Bottleneck": all.Bottleneck(), "Found": l.found, "Scope": l.scope, "All": slices.Concat(fixed, others),
		"Wrong": wrong, "WrongFind": wrongFind, "MemberPeaks": s.memberPeakRows(), "HostNames": s.nameRows(), "Shares": s.FairShare.rows(), "Groups": s.FairShare.groupRows(),
		"Earmarks": s.earmarkRows(),
		"Room":     s.Room.text(), "Answer": l.answer, "Asked": l.asked, "Observing": s.observing(), "Observed": s.observedText(),
		"Style": template.CSS(pageStyle), "Script": template.JS(pageScript),
	})
}

// rowsOf returns the limits of the four scopes that always exist, and those of all others, each
// with the fullest first. A limit that is unlimited, or that belongs to a peer, appears only if
// something has used it or was refused by it. If there is only one scope to show, all its limits
// appear, and no others; otherwise limits that nothing can count in are left out.
func rowsOf(s *Snapshot, only string) (fixed, others LimitUses) {
	limits := s.shownLimits()
	if only != "" {
		limits = s.LimitUses()
	}
	for _, u := range limits {
		_, limited := u.Percent()
		unused := (!limited || u.Kind == KindPeer) && u.Use == 0 && u.Refusals == 0 && u.WouldRefuse == 0
		switch {
		case only != "" && u.Scope != only, only == "" && unused:
		case u.Kind <= KindAllowlistedTransient:
			fixed = append(fixed, u)
		default:
			others = append(others, u)
		}
	}
	fullestFirst := func(a, b LimitUse) int {
		return cmp.Or(cmp.Compare(b.fullness(), a.fullness()), cmp.Compare(b.Refusals, a.Refusals),
			cmp.Compare(b.WouldRefuse, a.WouldRefuse))
	}
	slices.SortStableFunc(fixed, func(a, b LimitUse) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), fullestFirst(a, b)) })
	slices.SortStableFunc(others, fullestFirst)
	return fixed, others
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
