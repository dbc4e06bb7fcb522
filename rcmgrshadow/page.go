package rcmgrshadow

// The report under one address: a page for a browser, text for a terminal, JSON for programs.

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"sync"
	"time"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageStyle string
)

// pageFor is how long one report serves all requests. A report holds up all calls for a
// moment, and many clients may watch.
const pageFor = time.Second

// Handler returns a handler that shows m's report:
//
//	http.Handle("/rcmgr-shadow", rcmgrshadow.Handler(m))
//
// A browser gets a page that loads itself again every five seconds and shows the unexplained
// differences first. Other clients get the report as text, or as JSON if they send the header
// "Accept: application/json". The query ?format=html, ?format=text or ?format=json overrides
// the header. However many clients ask, there is at most one report a second.
//
// The page shows names of peers and protocols: serve it where only operators can see it.
func Handler(m *Manager) http.Handler {
	sum := sha256.Sum256([]byte(pageStyle))
	return &page{
		m: m,
		template: template.Must(template.New("page").Funcs(template.FuncMap{
			"time": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + " UTC" },
		}).Parse(pageHTML)),
		policy: "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-" +
			base64.StdEncoding.EncodeToString(sum[:]) + "'",
	}
}

type page struct {
	m        *Manager
	template *template.Template
	policy   string // Content-Security-Policy

	mu   sync.Mutex
	last Report
}

func (p *page) report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.last.Taken) >= pageFor {
		p.last = p.m.Report()
	}
	return p.last
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", p.policy)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are answered", http.StatusMethodNotAllowed)
		return
	}
	format := r.URL.Query().Get("format")
	if format == "" {
		h.Add("Vary", "Accept")
		accept := r.Header.Get("Accept")
		switch {
		case strings.Contains(accept, "text/html"):
			format = "html"
		case strings.Contains(accept, "application/json"):
			format = "json"
		default:
			format = "text"
		}
	}
	kind, write := "", p.writeHTML
	switch format {
	case "html":
		kind = "text/html; charset=utf-8"
	case "json":
		kind, write = "application/json", writeJSON
	case "text":
		kind, write = "text/plain; charset=utf-8", writeText
	default:
		http.Error(w, fmt.Sprintf("format is %q, expected html, text or json", format), http.StatusBadRequest)
		return
	}
	report := p.report()
	var body bytes.Buffer
	if err := write(&body, &report); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", kind)
	w.Write(body.Bytes())
}

func writeText(w *bytes.Buffer, r *Report) error { return r.WriteTable(w) }

func writeJSON(w *bytes.Buffer, r *Report) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func (p *page) writeHTML(w *bytes.Buffer, r *Report) error {
	return p.template.Execute(w, map[string]any{"R": r, "Style": template.CSS(pageStyle)})
}
