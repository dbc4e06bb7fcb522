// Command house measures how much the files of package rcmgr name each other's declarations, and
// writes the tables of files in CONTRIBUTING.md:
//
//	go run ./internal/house          # prints the measures, and each fault
//	go run ./internal/house -write   # writes CONTRIBUTING.md, too
//
// It must be run in the root directory of the module. Its tests fail if a file names what a
// higher floor declares, if files outside the engine name each other in a circle, or if the
// tables of files in CONTRIBUTING.md are out of date.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

const document = "CONTRIBUTING.md"

// settings has the options of the command line.
type settings struct{ write, names bool }

// chosen returns the settings that the arguments of the command line choose.
func chosen(args []string) (s settings, err error) {
	l := cmdline.New("house").About(`
Measures how much the files of the package know of each other, and names what
runs up from a floor to a higher one.
`)
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
	files  []string // those that were read
	names  graph
	floors []floor
}

// level returns the number of the floor on which a file stands, 0 for the top, or -1 if there is
// none.
func (h *house) level(file string) int {
	return slices.IndexFunc(h.floors, func(f floor) bool {
		return slices.ContainsFunc(f.rooms, func(r room) bool { return slices.Contains(strings.Fields(r.files), file) })
	})
}

// up returns the arrows that run from a lower floor to a higher one.
func (h *house) up() (up []arrow) {
	for _, a := range h.names.sorted() {
		if h.level(a.from) > h.level(a.to) {
			up = append(up, a)
		}
	}
	return up
}

// knots returns the circles in which there is a file outside the engine.
func (h *house) knots() (knots [][]string) {
	for _, c := range h.names.circles(h.files) {
		if slices.ContainsFunc(c, func(f string) bool { return h.floors[h.level(f)].name != engine }) {
			knots = append(knots, c)
		}
	}
	return knots
}

// faults returns a text for each violation of the floors' rules. If a file stands on no floor, it
// returns only that.
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

// measures returns a table of how much the files name each other's declarations.
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

// tables returns a table for each floor, with a description of each file.
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

// written returns the text of the document with the tables and measures as they are now. It
// returns an error if the text has no marks for them.
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
