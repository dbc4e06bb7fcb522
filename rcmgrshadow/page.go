package rcmgrshadow

// The report under one address: a page for a browser, text for a terminal, JSON for programs.

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"io"
	"net/http"
	"time"

	"github.com/weir-p2p/rcmgr/internal/webpage"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageStyle string
)

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
	return &page{
		template: template.Must(template.New("page").Funcs(template.FuncMap{
			"time": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + " UTC" },
		}).Parse(pageHTML)),
		policy:  webpage.Policy(pageStyle, ""),
		reports: webpage.NewCache(m.Report),
	}
}

type page struct {
	template *template.Template
	policy   string // Content-Security-Policy
	// reports has the report that all requests share. A report holds up all calls for a
	// moment, and many clients may watch.
	reports *webpage.Cache[Report]
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	webpage.Serve(w, r, p.policy, func(format webpage.Format) webpage.Answer {
		write := map[webpage.Format]func(io.Writer, *Report) error{
			webpage.HTML: p.writeHTML, webpage.JSON: writeJSON, webpage.Text: writeText}[format]
		return webpage.Answer{Write: func(w io.Writer) error {
			report := p.reports.Get()
			return write(w, &report)
		}}
	})
}

func writeText(w io.Writer, r *Report) error { return r.WriteTable(w) }

func writeJSON(w io.Writer, r *Report) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func (p *page) writeHTML(w io.Writer, r *Report) error {
	return p.template.Execute(w, map[string]any{"R": r, "Style": template.CSS(pageStyle)})
}
