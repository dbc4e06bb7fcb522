// Command api lists everything that a program can name of the packages for users, one
// declaration a line, and compares it with the last release. It must be run in the root
// directory of the module.
//
//	go run ./proof/api                    # prints what has changed since the last release
//	go run ./proof/api -write             # brings now.txt up to date
//	go run ./proof/api -release v0.2.0    # now.txt becomes what later changes are compared with
//
// now.txt shows each change in review. Its tests fail if it is out of date, and if a
// declaration of the last release is gone or different and CHANGELOG.md does not name it
// under "Breaking".
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

const (
	nowFile      = "proof/api/now.txt"
	releasedFile = "proof/api/released.txt"
	changelog    = "CHANGELOG.md"
	module       = "github.com/weir-p2p/rcmgr"
)

// settings has the options of the command line.
type settings struct {
	write   bool
	release string
}

// chosen returns the settings that the arguments of the command line choose.
func chosen(args []string) (s settings, err error) {
	l := cmdline.New("api").About(`
Prints the difference between what programs can name now and in the last
release. Run it from the top of the repository.
`)
	l.Bool(&s.write, "write", "write "+nowFile)
	l.Text(&s.release, "release", "write "+releasedFile+", too, for this `version`", "a version such as v0.2.0")
	if err := l.Parse(args); err != nil {
		return s, err
	}
	if s.release != "" && !regexp.MustCompile(`^v\d+\.\d+\.\d+$`).MatchString(s.release) {
		return s, fmt.Errorf("invalid value %q for flag -release: expected a version such as v0.2.0", s.release)
	}
	return s, nil
}

func main() {
	s, err := chosen(os.Args[1:])
	cmdline.ExitOn("api", err)
	if err := run(s); err != nil {
		fmt.Fprintln(os.Stderr, "api:", err)
		os.Exit(1)
	}
}

func run(s settings) error {
	now, err := declarations(".")
	if err != nil {
		return err
	}
	released, err := readLines(releasedFile)
	if err != nil {
		return err
	}
	for _, line := range missing(released, now) {
		fmt.Println("-", line)
	}
	for _, line := range missing(now, released) {
		fmt.Println("+", line)
	}
	if s.write || s.release != "" {
		if err := writeLines(nowFile, "What programs can name. Written by go run ./proof/api -write.", now); err != nil {
			return err
		}
	}
	if s.release != "" {
		return writeLines(releasedFile, "What programs can name in "+s.release+".", now)
	}
	return nil
}

// declarations returns a sorted line for each name that a program can use of the packages
// of the module in a directory. Packages in internal, examples and proof are left out.
func declarations(dir string) ([]string, error) {
	list := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Export,DepOnly", "./...")
	list.Dir, list.Stderr = dir, os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	exports := make(map[string]string)
	var ours []string
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Export string
			DepOnly            bool
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		exports[p.ImportPath] = p.Export
		inside, ok := strings.CutPrefix(p.ImportPath, module)
		if ok && !p.DepOnly && !regexp.MustCompile(`^/(internal|examples|proof)/`).MatchString(inside) {
			ours = append(ours, p.ImportPath)
		}
	}
	imports := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})
	var lines []string
	for _, path := range ours {
		pkg, err := imports.Import(path)
		if err != nil {
			return nil, err
		}
		lines = append(lines, declarationsOf(pkg)...)
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

// declarationsOf returns a line for each exported name of a package, exported field, and
// exported method, those of embedded types included.
func declarationsOf(pkg *types.Package) (lines []string) {
	add := func(format string, args ...any) {
		lines = append(lines, pkg.Name()+": "+fmt.Sprintf(format, args...))
	}
	text := func(t types.Type) string {
		return types.TypeString(t, func(p *types.Package) string { return p.Name() })
	}
	signature := func(f types.Object) string { return strings.TrimPrefix(text(f.Type()), "func") }
	for _, name := range pkg.Scope().Names() {
		object := pkg.Scope().Lookup(name)
		if !object.Exported() {
			continue
		}
		switch o := object.(type) {
		case *types.Const:
			add("const %s %s", name, text(o.Type()))
		case *types.Var:
			add("var %s %s", name, text(o.Type()))
		case *types.Func:
			add("func %s%s", name, signature(o))
		case *types.TypeName:
			if o.IsAlias() {
				add("type %s = %s", name, text(types.Unalias(o.Type())))
				continue
			}
			switch under := o.Type().Underlying().(type) {
			case *types.Struct:
				add("type %s struct", name)
				for f := range under.Fields() {
					if f.Exported() {
						add("field %s.%s %s", name, f.Name(), text(f.Type()))
					}
				}
			case *types.Interface:
				add("type %s interface", name)
				for m := range under.Methods() {
					add("method %s.%s%s", name, m.Name(), signature(m))
				}
				continue
			default:
				add("type %s %s", name, text(under))
			}
			byValue := types.NewMethodSet(o.Type())
			for m := range types.NewMethodSet(types.NewPointer(o.Type())).Methods() {
				if !m.Obj().Exported() {
					continue
				}
				receiver := name
				if byValue.Lookup(pkg, m.Obj().Name()) == nil {
					receiver = "(*" + name + ")"
				}
				add("method %s.%s%s", receiver, m.Obj().Name(), signature(m.Obj()))
			}
		}
	}
	return lines
}

// missing returns the lines of a list that another one does not have.
func missing(from, in []string) []string {
	return slices.DeleteFunc(slices.Clone(from), func(line string) bool { return slices.Contains(in, line) })
}

// unexplained returns the declarations of the last release that are gone without a word
// under the heading "Breaking" in the newest part of the change log.
func unexplained(released, now []string, changes string) []string {
	_, newest, _ := strings.Cut(changes, "\n## ")
	newest, _, _ = strings.Cut(newest, "\n## ")
	_, breaking, _ := strings.Cut(newest, "\n### Breaking\n")
	breaking, _, _ = strings.Cut(breaking, "\n### ")
	return slices.DeleteFunc(missing(released, now), func(line string) bool {
		return strings.Contains(breaking, "`"+nameOf(line)+"`")
	})
}

// nameOf returns what a line declares, as the change log names it: rcmgr.New,
// rcmgr.Manager.Close.
func nameOf(line string) string {
	pkg, declaration, _ := strings.Cut(line, ": ")
	_, declaration, _ = strings.Cut(declaration, " ") // const, var, func, type, field, method
	declaration = strings.NewReplacer("(*", "", ").", ".").Replace(declaration)
	name, _, _ := strings.Cut(declaration, " ")
	name, _, _ = strings.Cut(name, "(")
	return pkg + "." + name
}

// readLines returns the lines of a file that are not comments.
func readLines(file string) (lines []string, err error) {
	text, err := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines, err
}

func writeLines(file, comment string, lines []string) error {
	return os.WriteFile(file, []byte("# "+comment+"\n"+strings.Join(lines, "\n")+"\n"), 0o644)
}
