// Command house measures how the files of package rcmgr name each other's things, and
// writes the tables of files in CONTRIBUTING.md:
//
//	go run ./internal/house          # the measures, and each arrow that runs up
//	go run ./internal/house -write   # CONTRIBUTING.md, too
//
// It is to be run at the top of the module. Its tests fail where a file names what a higher
// floor declares, where files outside the engine name each other in a circle, and where
// CONTRIBUTING.md says something else.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

const document = "CONTRIBUTING.md"

// settings are what the command line says.
type settings struct{ write, names bool }

func chosen(args []string) (s settings, err error) {
	l := cmdline.New("house")
	l.Bool(&s.write, "write", "write the tables of "+document)
	l.Bool(&s.names, "names", "print what each file names of each other one")
	return s, l.Parse(args)
}

func main() {
	s, err := chosen(os.Args[1:])
	cmdline.ExitOn("house", err)
	if err := run(s); err != nil {
		fmt.Fprintln(os.Stderr, "house:", err)
		os.Exit(1)
	}
}

func run(s settings) error {
	files, g, err := readPackage(".")
	if err != nil {
		return err
	}
	h := house{files, g, floors}
	fmt.Print(h.measures())
	for _, fault := range h.faults() {
		fmt.Println(fault)
	}
	if s.names {
		for _, a := range g.sorted() {
			fmt.Printf("%s\t%s\t%s\n", a.from, a.to, strings.Join(g[a], " "))
		}
	}
	if !s.write {
		return nil
	}
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	now, err := h.written(string(text))
	if err != nil {
		return err
	}
	return os.WriteFile(document, []byte(now), 0o644)
}

// house is a package whose files stand on floors.
type house struct {
	files  []string // that were read
	names  graph
	floors []floor
}

// level returns on which floor a file stands, 0 for the top, or -1.
func (h *house) level(file string) int {
	return slices.IndexFunc(h.floors, func(f floor) bool {
		return slices.ContainsFunc(f.rooms, func(r room) bool { return slices.Contains(strings.Fields(r.files), file) })
	})
}

// up returns the arrows from a lower floor to a higher one.
func (h *house) up() (up []arrow) {
	for _, a := range h.names.sorted() {
		if h.level(a.from) > h.level(a.to) {
			up = append(up, a)
		}
	}
	return up
}

// knots returns the circles that have files outside the engine.
func (h *house) knots() (knots [][]string) {
	for _, c := range h.names.circles(h.files) {
		if slices.ContainsFunc(c, func(f string) bool { return h.floors[h.level(f)].name != engine }) {
			knots = append(knots, c)
		}
	}
	return knots
}

// faults returns a sentence for everything that is not as it has to be.
func (h *house) faults() (faults []string) {
	for _, f := range h.files {
		if h.level(f) < 0 && f != "doc.go" {
			return append(faults, f+" stands on no floor: add it to internal/house/floors.go")
		}
	}
	for _, a := range h.up() {
		faults = append(faults, fmt.Sprintf("%s (%s) names what %s (%s) declares, which is higher: %s",
			a.from, h.floors[h.level(a.from)].name, a.to, h.floors[h.level(a.to)].name, strings.Join(h.names[a], " ")))
	}
	for _, c := range h.knots() {
		faults = append(faults, "these name each other in a circle: "+strings.Join(c, " "))
	}
	return faults
}

// measures returns the table of how much the files know of each other.
func (h *house) measures() string {
	largest := 0
	if circles := h.names.circles(h.files); len(circles) > 0 {
		largest = len(circles[0])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| | |\n|---|---|\n")
	fmt.Fprintf(&b, "| files | %d |\n", len(h.files))
	fmt.Fprintf(&b, "| pairs of files, one of which names what the other declares | %d |\n", len(h.names))
	fmt.Fprintf(&b, "| other files whose names one file uses, on average | %.2f |\n", float64(len(h.names))/float64(len(h.files)))
	fmt.Fprintf(&b, "| pairs that run up, from a floor to a higher one | %d |\n", len(h.up()))
	fmt.Fprintf(&b, "| circles of names with files outside the engine | %d |\n", len(h.knots()))
	fmt.Fprintf(&b, "| files in the largest circle | %d |\n", largest)
	return b.String()
}

// tables returns what is in each file, floor by floor.
func (h *house) tables() string {
	var b strings.Builder
	for i, f := range h.floors {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "| %s | %s |\n|---|---|\n", f.name, f.about)
		for _, r := range f.rooms {
			fmt.Fprintf(&b, "| `%s` | %s |\n", strings.Join(strings.Fields(r.files), "`, `"), r.about)
		}
	}
	return b.String()
}

// written returns the document with the tables as they are now.
func (h *house) written(text string) (string, error) {
	for _, part := range []struct{ name, text string }{{"files", h.tables()}, {"measures", h.measures()}} {
		begin, end := "<!-- house: "+part.name+" -->\n", "<!-- house: end of "+part.name+" -->\n"
		head, rest, found := strings.Cut(text, begin)
		_, tail, ended := strings.Cut(rest, end)
		if !found || !ended {
			return "", fmt.Errorf("%s: no %q and %q", document, begin, end)
		}
		text = head + begin + part.text + end + tail
	}
	return text, nil
}
