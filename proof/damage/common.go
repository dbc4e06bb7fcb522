package main

// One test binary that has every damage in it. Compiling the package and linking its tests takes
// much longer than the test that fails, so all damages of a module are compiled at once: the body
// of a function that is damaged begins with a damaged copy of itself, which runs in its place if
// the environment variable has the number of the damage. A damage that is not inside of a function
// has a binary of its own, and so has one that no test has noticed in the common one.

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// variable is the environment variable that has the number of a damage.
const variable = "RCMGR_DAMAGE"

// switches is the file that reads it, in each package that is damaged.
const switches = `package %s

import (
	"os"
	"strconv"
)

var damageNumber, _ = strconv.Atoi(os.Getenv("` + variable + `"))
`

// body returns the damaged copy of the function body that the damage is in, and the place in the
// source at which it is to be inserted. It returns 0 if the damage is outside of functions,
// is no Go code by itself, or is in a body with labels, which cannot be there twice.
func (d *damage) body(source string) (at int, body string) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, d.file, source, parser.SkipObjectResolution)
	if err != nil {
		return 0, ""
	}
	from := strings.Index(source, d.was)
	to := from + len(d.was)
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		first, last := set.Position(f.Body.Lbrace).Offset+1, set.Position(f.Body.Rbrace).Offset
		if from < first || to > last || hasLabel(f.Body) {
			continue
		}
		body = source[first:from] + d.now + source[to:last] + "\n"
		if f.Type.Results != nil {
			body += "panic(\"missing return\")\n"
		} else {
			body += "return\n"
		}
		if _, err := parser.ParseFile(set, "", "package p\nfunc f() {"+body+"}", 0); err != nil {
			return 0, ""
		}
		return first, body
	}
	return 0, ""
}

func hasLabel(b *ast.BlockStmt) (has bool) {
	ast.Inspect(b, func(n ast.Node) bool {
		_, label := n.(*ast.LabeledStmt)
		has = has || label
		return !has
	})
	return has
}

// place is where a damage is in a file that has several.
type place struct {
	from, to int // lines
	number   int
}

// damageAll returns a source with some damages, which are numbered, and where each of them is.
// It leaves out those that it cannot have.
func damageAll(source string, all map[int]damage) (damaged string, places []place) {
	type piece struct {
		at, number int
		body       string
	}
	var pieces []piece
	for n, d := range all {
		if at, body := d.body(source); at > 0 {
			pieces = append(pieces, piece{at, n, body})
		}
	}
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Or(a.at-b.at, a.number-b.number) })
	var out strings.Builder
	done, line := 0, 1
	write := func(s string) {
		out.WriteString(s)
		line += strings.Count(s, "\n")
	}
	for _, p := range pieces {
		write(source[done:p.at])
		done = p.at
		from := line
		write("\nif damageNumber == " + strconv.Itoa(p.number) + " {\n" + p.body + "}\n")
		places = append(places, place{from, line - 1, p.number})
	}
	write(source[done:])
	return out.String(), places
}

// common is the common binaries of a module, one for each package of tests.
type common struct {
	has  map[int]bool // the numbers of damages that are in them
	bins *binaries
}

var compileError = regexp.MustCompile(`(?m)^(\S+\.go):(\d+):\d+: `)

// newCommon compiles the damages, which are all in one module. Those that do not compile are left out.
func newCommon(dir, module string, all map[int]damage) (*common, error) {
	for {
		c := &common{has: map[int]bool{}, bins: newBinaries(dir)}
		byFile := map[string]map[int]damage{}
		for n, d := range all {
			if byFile[d.file] == nil {
				byFile[d.file] = map[int]damage{}
			}
			byFile[d.file][n] = d
		}
		places := map[string][]place{}
		packages := map[string]bool{}
		for file, of := range byFile {
			source, err := sourceOf(of)
			if err != nil {
				return nil, err
			}
			damaged, at := damageAll(source, of)
			if len(at) == 0 {
				continue
			}
			if err := c.bins.replace(file, damaged); err != nil {
				return nil, err
			}
			if err := c.bins.replace(filepath.Join(filepath.Dir(file), "zz_damages.go"), fmt.Sprintf(switches, packageOf(source))); err != nil {
				return nil, err
			}
			real, _ := filepath.Abs(file)
			places[c.bins.replaced[real]], packages[filepath.Dir(file)] = at, true
			for _, p := range at {
				c.has[p.number] = true
			}
		}
		overlay, err := c.bins.overlay()
		if err != nil {
			return nil, err
		}
		wrong := false
		for pkg := range packages {
			build := exec.Command("go", "build", "-o", os.DevNull, "-gcflags=-e", "-overlay", overlay, ".")
			build.Dir = pkg
			out, err := build.CombinedOutput()
			if err == nil {
				continue
			}
			found := false
			for _, m := range compileError.FindAllStringSubmatch(string(out), -1) {
				line, _ := strconv.Atoi(m[2])
				for _, p := range places[m[1]] {
					if p.from <= line && line <= p.to {
						found = true
						delete(all, p.number)
					}
				}
			}
			if !found {
				return nil, fmt.Errorf("the common binary of %s does not compile: %s", module, out)
			}
			wrong = true
		}
		if !wrong {
			return c, nil
		}
	}
}

// sourceOf returns the file that some damages are in.
func sourceOf(of map[int]damage) (string, error) {
	for _, d := range of {
		return d.source()
	}
	return "", nil
}

func packageOf(source string) string {
	file, err := parser.ParseFile(token.NewFileSet(), "", source, parser.PackageClauseOnly)
	if err != nil {
		return ""
	}
	return file.Name.Name
}
