// Command scopes draws the picture of the scopes that README.md shows, once for pages
// with a light background and once for pages with a dark one.
//
//	go run ./docs/scopes -to docs
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"text/template"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

// A box is a scope, with the name under which its limits stand in a configuration.
type box struct {
	X, Y, Width  int
	Title, Place string
	Faint        bool // one of the two kinds of things that are opened, or a span
}

const boxHeight = 54

// Middle is where the text of a box stands.
func (b box) Middle() int { return b.X + b.Width/2 }

// TitleY is the height of the scope's name.
func (b box) TitleY() int { return b.Y + boxHeight/2 - 5 }

// PlaceY is the height of the name in a configuration.
func (b box) PlaceY() int { return b.Y + boxHeight/2 + 14 }

// An arrow leads from what is held to a scope in which it counts.
type arrow struct {
	X1, Y1, X2, Y2 int
	Dashed         bool // for as long as it has no peer or no protocol
}

// A note is a line of text.
type note struct {
	X, Y int
	Text string
}

type colours struct{ Paper, Ink, Quiet, Box, Edge, Open string }

var themes = map[string]colours{
	"light": {Paper: "#ffffff", Ink: "#1f2328", Quiet: "#59636e", Box: "#ddf4ff", Edge: "#0969da", Open: "#fff8c5"},
	"dark":  {Paper: "#0d1117", Ink: "#e6edf3", Quiet: "#9198a1", Box: "#0c2d6b", Edge: "#58a6ff", Open: "#4b2900"},
}

// picture is all that is drawn.
type picture struct {
	colours
	Boxes  []box
	Arrows []arrow
	Notes  []note
	Height int
}

var drawing = picture{
	Height: boxHeight,
	Boxes: []box{
		{20, 16, 860, "system: all that the host holds", "System", false},
		{20, 128, 205, "service", "Service, ServiceDefault", false},
		{240, 128, 205, "protocol", "Protocol, ProtocolDefault", false},
		{460, 128, 190, "peer", "Peer, PeerDefault", false},
		{690, 128, 190, "transient", "Transient", false},
		{20, 240, 205, "one peer in a service", "ServicePeer, ServicePeerDefault", false},
		{240, 240, 205, "one peer in a protocol", "ProtocolPeer, ProtocolPeerDefault", false},
		{240, 352, 220, "stream", "Stream", true},
		{590, 352, 220, "connection", "Conn", true},
		{430, 452, 190, "span", "the limit of its owner", true},
	},
	Arrows: []arrow{
		{115, 128, 115, 70, false}, {335, 128, 335, 70, false}, {555, 128, 555, 70, false}, {785, 128, 785, 70, false},
		{115, 240, 115, 182, false}, {335, 240, 335, 182, false},
		{270, 352, 150, 294, false}, {335, 352, 335, 294, false}, {440, 352, 520, 182, false}, {460, 366, 720, 182, true},
		{650, 352, 595, 182, false}, {780, 352, 800, 182, true},
		{480, 452, 400, 406, false}, {570, 452, 650, 406, false},
	},
	Notes: []note{
		{20, 438, "An arrow: what is held below counts above, too."},
		{20, 458, "Dashed: until a connection has its peer,"},
		{20, 478, "and a stream its protocol."},
		{640, 458, "Spans open below every scope."},
		{640, 478, "In small letters: the place of the"},
		{640, 498, "limits in a configuration."},
	},
}

var svg = template.Must(template.New("").Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 520" width="900" height="520" font-family="system-ui, sans-serif" font-size="14" role="img" aria-label="The scopes, and which counts in which">
<title>The scopes, and which counts in which</title>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{{.Edge}}"/></marker></defs>
<rect width="900" height="520" rx="6" fill="{{.Paper}}"/>
{{range .Arrows}}<path d="M{{.X1}} {{.Y1}}L{{.X2}} {{.Y2}}" stroke="{{$.Edge}}" stroke-width="1.6"{{if .Dashed}} stroke-dasharray="6 4"{{end}} marker-end="url(#tip)"/>
{{end}}{{range .Boxes}}<rect x="{{.X}}" y="{{.Y}}" width="{{.Width}}" height="{{$.Height}}" rx="6" fill="{{if .Faint}}{{$.Open}}{{else}}{{$.Box}}{{end}}" stroke="{{$.Edge}}"/>
<text x="{{.Middle}}" y="{{.TitleY}}" text-anchor="middle" font-weight="600" fill="{{$.Ink}}">{{.Title}}</text>
<text x="{{.Middle}}" y="{{.PlaceY}}" text-anchor="middle" font-size="11" fill="{{$.Quiet}}">{{.Place}}</text>
{{end}}{{range .Notes}}<text x="{{.X}}" y="{{.Y}}" font-size="12" fill="{{$.Quiet}}">{{.Text}}</text>
{{end}}</svg>
`))

// draw returns the picture for a theme.
func draw(theme string) ([]byte, error) {
	var text bytes.Buffer
	p := drawing
	p.colours = themes[theme]
	err := svg.Execute(&text, p)
	return text.Bytes(), err
}

// directory returns where the command line wants the pictures.
func directory(args []string) (string, error) {
	to := "docs"
	l := cmdline.New("scopes").About(`
Draws the picture of the scopes, once for pages with a light background and once
for pages with a dark one.
`)
	l.Text(&to, "to", "write scopes-light.svg and scopes-dark.svg into this `directory`", "the name of a directory")
	if err := l.Parse(args); err != nil {
		return "", err
	}
	for theme := range themes {
		if err := cmdline.CheckOutput("to", pictureIn(to, theme)); err != nil {
			return "", err
		}
	}
	return to, nil
}

func pictureIn(dir, theme string) string { return filepath.Join(dir, "scopes-"+theme+".svg") }

func main() {
	to, err := directory(os.Args[1:])
	cmdline.ExitOn("scopes", err)
	for theme := range themes {
		text, err := draw(theme)
		if err == nil {
			err = os.WriteFile(pictureIn(to, theme), text, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "scopes:", err)
			os.Exit(1)
		}
	}
}
