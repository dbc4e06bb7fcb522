package main

// The plot: a panel for each attack, with a line for each manager over the number of
// subnets. Its colours follow the reader's theme, light or dark. Every other line is thin
// and dashed, so that lines with the same course can be distinguished.

import (
	_ "embed"
	"fmt"
	"io"
	"math"
	"strings"
	"text/template"
)

//go:embed plot.svg.tmpl
var plotText string

var plotTemplate = template.Must(template.New("plot").Parse(plotText))

// Sizes on the page, in pixels.
const (
	panelWidth, panelHeight = 260, 220
	panelGap                = 34
	left, top               = 66, 74
)

// mark is a labelled position on an axis.
type mark struct {
	Label string
	At    float64 // in the panel
	Page  float64 // on the page
}

// line is the style of a variant, and its place in the legend.
type line struct {
	Index   int
	Name    string
	X       int
	Width   string
	Dashes  string
	Opacity string
}

type curve struct {
	Index  int
	Points string
}

type panel struct {
	Title  string
	X      int
	Limit  int
	LimitX float64
	Curves []curve
}

// atSubnets returns the position of a number of subnets in a panel, on a logarithmic
// scale.
func atSubnets(n int) float64 {
	least, most := subnetsTried[0], subnetsTried[len(subnetsTried)-1]
	return tenths(panelWidth * math.Log(float64(n)/float64(least)) / math.Log(float64(most)/float64(least)))
}

func atPercent(p float64) float64 { return tenths(panelHeight * (1 - p/100)) }

func tenths(x float64) float64 { return math.Round(10*x) / 10 }

// draw writes the plot of what honest peers got at the first try.
func draw(to io.Writer, all []series, variants []variant) error {
	page := map[string]any{
		"Title":      "What honest peers get while others attack",
		"Left":       left,
		"Top":        top,
		"PanelWidth": panelWidth, "PanelHeight": panelHeight,
		"Width":      left + len(all)*(panelWidth+panelGap),
		"Height":     top + panelHeight + 96,
		"MiddleX":    left + (len(all)*(panelWidth+panelGap)-panelGap)/2,
		"MiddleY":    top + panelHeight/2,
		"UnderTicks": panelHeight + 20,
		"UnderAxis":  top + panelHeight + 46,
		"LegendY":    top + panelHeight + 74,
		"Identities": identitiesInAll,
		"Percents":   percents(),
		"Subnets":    subnetMarks(),
		"Lines":      lines(variants),
	}
	var panels []panel
	for i, s := range all {
		p := panel{Title: s.title, X: left + i*(panelWidth+panelGap), Limit: s.attack.limit, LimitX: atSubnets(s.attack.limit)}
		for j := range variants {
			p.Curves = append(p.Curves, curve{j, s.points(j)})
		}
		panels = append(panels, p)
	}
	page["Panels"] = panels
	return plotTemplate.Execute(to, page)
}

// points returns the curve of one variant, over the scenes with an attack.
func (s *series) points(variant int) string {
	var b strings.Builder
	for _, story := range s.stories {
		if story.attack != nil {
			got := s.attack.denied(story.outcomes[variant].all())
			fmt.Fprintf(&b, "%g,%g ", atSubnets(story.subnets), atPercent(got.percentAtFirst()))
		}
	}
	return strings.TrimSpace(b.String())
}

func percents() (all []mark) {
	for p := 0; p <= 100; p += 25 {
		y := atPercent(float64(p))
		all = append(all, mark{Label: fmt.Sprint(p), At: y, Page: top + y})
	}
	return all
}

func subnetMarks() (all []mark) {
	for _, n := range subnetsTried {
		all = append(all, mark{Label: fmt.Sprint(n), At: atSubnets(n)})
	}
	return all
}

func lines(variants []variant) (all []line) {
	x := left
	for i, v := range variants {
		l := line{Index: i, Name: v.name, X: x, Width: "7", Dashes: "none", Opacity: "0.55"}
		if i%2 == 1 {
			l.Width, l.Dashes, l.Opacity = "2.5", "7 5", "1"
		}
		all = append(all, l)
		x += 70 + 8*len(v.name)
	}
	return all
}
