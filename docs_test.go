package rcmgr_test

// The documents say what is so: every snippet of Go in them is code that is compiled in
// a test or an example, every test and file that they name exists, every link leads to a
// file and a heading, and their tables of options and metrics are those of the code.

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// compiled is a file that the compiler reads: its imports, and its lines of
// code without indentation and comments.
type compiled struct {
	imports []string
	lines   string
}

var (
	goFence     = regexp.MustCompile("(?ms)^ *```go\n(.*?)^ *```$")
	lineComment = regexp.MustCompile(`(^|\s)//.*`)
	oneImport   = regexp.MustCompile(`^import (?:(\w+) )?"(.*)"$`)
)

func TestSnippetsInTheDocumentsAreCompiledCode(t *testing.T) {
	code := compiledFiles(t)
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, s := range snippetsThatAreNot(string(text), code) {
			t.Errorf("%s shows what is compiled nowhere:\n%s", name, s)
		}
	}
}

// A check that finds nothing wrong with a wrong snippet would be none.
func TestSnippetsThatAreCompiledNowhereAreFound(t *testing.T) {
	code := []compiled{codeOf(t, []byte("package p\n\nimport r \"example.org/r\"\n\nfunc f() {\n\ta := r.A // why\n\n\tb(a)\n}\n"))}
	fence := func(s string) string { return "text\n```go\n" + s + "```\n" }
	for _, good := range []string{"a := r.A\n", "import r \"example.org/r\"\n\na := r.A\nb(a) // what\n"} {
		require.Empty(t, snippetsThatAreNot(fence(good), code), good)
	}
	for _, bad := range []string{"a := r.B\n", "b(a)\na := r.A\n", "import r \"example.org/s\"\n\na := r.A\n", ":= r.A\n", "// nothing\n"} {
		require.Len(t, snippetsThatAreNot(fence(bad), code), 1, bad)
	}
}

// snippetsThatAreNot returns the snippets of a document of which no file has all
// imports and all lines in one piece.
func snippetsThatAreNot(document string, code []compiled) (missing []string) {
	for _, fence := range goFence.FindAllStringSubmatch(document, -1) {
		var imports, lines []string
		for line := range strings.Lines(codeLines(fence[1])) {
			if m := oneImport.FindStringSubmatch(strings.TrimSuffix(line, "\n")); m != nil {
				imports = append(imports, importKey(m[1], m[2]))
			} else {
				lines = append(lines, line)
			}
		}
		has := func(c compiled) bool {
			return strings.Contains(c.lines, "\n"+strings.Join(lines, "")) &&
				!slices.ContainsFunc(imports, func(i string) bool { return !slices.Contains(c.imports, i) })
		}
		if len(imports)+len(lines) == 0 || !slices.ContainsFunc(code, has) {
			missing = append(missing, fence[1])
		}
	}
	return missing
}

// importKey is the name under which a file knows a package, and its path.
func importKey(name, importPath string) string {
	if name == "" {
		name = path.Base(importPath)
	}
	return name + " " + importPath
}

// codeLines returns the lines that have code on them.
func codeLines(src string) string {
	var b strings.Builder
	for line := range strings.Lines(src) {
		if line = strings.TrimSpace(lineComment.ReplaceAllString(line, "")); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

func codeOf(t *testing.T, src []byte) compiled {
	f, err := parser.ParseFile(token.NewFileSet(), "", src, parser.ImportsOnly)
	require.NoError(t, err)
	c := compiled{lines: "\n" + codeLines(string(src))}
	for _, i := range f.Imports {
		name := ""
		if i.Name != nil {
			name = i.Name.Name
		}
		c.imports = append(c.imports, importKey(name, strings.Trim(i.Path.Value, `"`)))
	}
	return c
}

// compiledFiles returns the tests of this package and of those for users, and the examples.
func compiledFiles(t *testing.T) (code []compiled) {
	var files []string
	for _, pattern := range []string{"*_test.go", "rcmgr*/*_test.go", "suggest/*_test.go", "presets/*_test.go"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		files = append(files, found...)
	}
	require.NoError(t, filepath.WalkDir("examples", func(p string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(p, ".go") {
			files = append(files, p)
		}
		return err
	}))
	for _, name := range files {
		src, err := os.ReadFile(name)
		require.NoError(t, err)
		code = append(code, codeOf(t, src))
	}
	return code
}

// documents returns the documents at the top of the repository, and the chapters.
func documents(t *testing.T) []string {
	names, err := filepath.Glob("*.md")
	require.NoError(t, err)
	require.Contains(t, names, "README.md")
	chapters, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, chapters)
	return append(names, chapters...)
}

var (
	testName = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark|Example)[A-Z]\w+`)
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)[A-Z]\w+)\(`)
	link     = regexp.MustCompile(`(?:\]\(|src="|srcset=")([^)"#:]*)(?:#([^)"]*))?[)"]`) // to a file of ours, not to a site
	comment  = regexp.MustCompile(`(?s)<!--.*?-->`)
	heading  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fence    = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	fileName = regexp.MustCompile("`([\\w/]+\\.(?:go|json))`")
)

// testSources returns the names of all tests of the repository, and the text of their files and
// of those with their flags.
func testSources(t *testing.T) (tests map[string]bool, text string) {
	tests = make(map[string]bool)
	var all strings.Builder
	require.NoError(t, filepath.WalkDir(".", func(p string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, "_test.go") && !strings.HasPrefix(filepath.ToSlash(p), "internal/testseed/") {
			return err
		}
		src, err := os.ReadFile(p)
		all.Write(src)
		for _, m := range testFunc.FindAllStringSubmatch(string(src), -1) {
			tests[m[1]] = true
		}
		return err
	}))
	return tests, all.String()
}

func TestTheDocumentsNameOnlyWhatExists(t *testing.T) {
	tests, _ := testSources(t)
	require.True(t, tests["TestTheDocumentsNameOnlyWhatExists"])
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, test := range testName.FindAllString(string(text), -1) {
			if !tests[test] {
				t.Errorf("%s names the test %s, which does not exist", name, test)
			}
		}
		for _, m := range fileName.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("%s names the file %s: %v", name, m[1], err)
			}
		}
		for _, l := range brokenLinks(name, string(text)) {
			t.Errorf("%s has a link to %s, which leads nowhere", name, l)
		}
	}
}

var (
	goRun    = regexp.MustCompile("go run (?:-v )?\\./([\\w/-]+)([^`\n#|;)]*)")
	goTest   = regexp.MustCompile("go test ([^`\n#;)]*)")
	flagName = regexp.MustCompile(`(?:^| )-([a-z][\w.-]*)`)
	pattern  = regexp.MustCompile(`-(run|bench|fuzz|skip) ('[^']*'|\S+)`)
)

func TestTheCommandsOfTheDocumentsHaveTheirProgramsFlagsAndTests(t *testing.T) {
	tests, sources := testSources(t)
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, wrong := range wrongCommands(string(text), tests, sources) {
			t.Errorf("%s: %s", name, wrong)
		}
	}
	for text, wrong := range map[string]int{
		"`go run -v ./examples/flood -duration 1m -serve 127.0.0.1:80` and -x": 0,
		"`go run ./examples/none`":                            1,
		"`go run ./examples/flood -none`":                     1,
		"go test -run '^$' -bench HotPath/x=1 -rcmgr.steps=1": 0,
		"go test -run NoSuchTest .":                           1,
		"go test -bench NoSuchBenchmark .":                    1,
		"go test -rcmgr.none=1 .":                             1,
	} {
		require.Len(t, wrongCommands(text, tests, sources), wrong, text)
	}
}

// wrongCommands returns what the commands of a document name that does not exist: programs of
// this repository and their flags, tests, and flags of tests.
func wrongCommands(document string, tests map[string]bool, sources string) (wrong []string) {
	for _, m := range goRun.FindAllStringSubmatch(document, -1) {
		program, err := os.ReadFile(filepath.Join(m[1], "main.go"))
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("there is no program %s", m[1]))
			continue
		}
		for _, f := range flagName.FindAllStringSubmatch(m[2], -1) {
			if f[1] != "h" && !strings.Contains(string(program), fmt.Sprintf("%q", f[1])) {
				wrong = append(wrong, fmt.Sprintf("%s has no flag -%s", m[1], f[1]))
			}
		}
	}
	for _, m := range goTest.FindAllStringSubmatch(document, -1) {
		for _, p := range pattern.FindAllStringSubmatch(m[1], -1) {
			first, _, _ := strings.Cut(strings.Trim(p[2], "'"), "/")
			search, err := regexp.Compile(first)
			matches := func(name string) bool {
				return strings.HasPrefix(name, "Benchmark") == (p[1] == "bench") && search.MatchString(name)
			}
			if err != nil || first != "^$" && !slices.ContainsFunc(slices.Collect(maps.Keys(tests)), matches) {
				wrong = append(wrong, fmt.Sprintf("-%s %s matches nothing", p[1], p[2]))
			}
		}
		for _, f := range flagName.FindAllStringSubmatch(m[1], -1) {
			if strings.Contains(f[1], ".") && !strings.Contains(sources, fmt.Sprintf("%q", f[1])) {
				wrong = append(wrong, fmt.Sprintf("tests have no flag -%s", f[1]))
			}
		}
	}
	return wrong
}

func TestLinksThatLeadNowhereAreFound(t *testing.T) {
	for text, broken := range map[string][]string{
		"[x](README.md) [x](MIGRATING.md#kubo) [x](https://example.org/y#z)": nil,
		"# One *word*: `twice`\n[x](#one-word-twice)":                        nil,
		"[x](NONE.md)":              {"NONE.md"},
		"[x](MIGRATING.md#none)":    {"MIGRATING.md#none"},
		"[x](#none)":                {"#none"},
		`<img src="docs/none.svg">`: {"docs/none.svg"},
	} {
		require.Equal(t, broken, brokenLinks("TEXT.md", text), text)
	}
}

// brokenLinks returns the links in a document that lead to no file or to no heading.
func brokenLinks(name, text string) (broken []string) {
	for _, m := range link.FindAllStringSubmatch(comment.ReplaceAllString(text, ""), -1) {
		target := text
		if m[1] != "" {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(name), m[1]))
			if info, dirErr := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil && (dirErr != nil || !info.IsDir()) {
				broken = append(broken, m[1])
				continue
			}
			target = string(b)
		}
		if m[2] != "" && !slices.Contains(anchors(target), m[2]) {
			broken = append(broken, m[1]+"#"+m[2])
		}
	}
	return broken
}

// anchors returns the names under which links find the headings of a document, as GitHub
// makes them.
func anchors(text string) (names []string) {
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		names = append(names, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1]))
	}
	return names
}

// A stranger reads the README whole.
func TestTheREADMEHasAtMost10KB(t *testing.T) {
	info, err := os.Stat("README.md")
	require.NoError(t, err)
	require.LessOrEqual(t, info.Size(), int64(10_000))
}

// importSearch is the command of MIGRATING.md that finds the files to change.
var importSearch = regexp.MustCompile(`grep -rl '(p2p/host/.*)' --include`)

func TestTheSearchForImportsFindsEveryPackageOfUpstreams(t *testing.T) {
	text, err := os.ReadFile("MIGRATING.md")
	require.NoError(t, err)
	found := importSearch.FindStringSubmatch(string(text))
	require.NotNil(t, found)
	search := regexp.MustCompile(found[1]) // grep reads this pattern as Go does

	packages, err := exec.Command("go", "list", "github.com/libp2p/go-libp2p/p2p/host/resource-manager/...").Output()
	require.NoError(t, err)
	listed := strings.Fields(string(packages))
	require.Contains(t, listed, "github.com/libp2p/go-libp2p/p2p/host/resource-manager/obs")
	for _, one := range listed {
		require.Regexp(t, search, fmt.Sprintf("import rcmgr %q", one))
	}
	require.NotRegexp(t, search, `import "github.com/weir-p2p/rcmgr/obs"`)
	require.NotRegexp(t, search, `import "example.org/p2p/host/resource-managers"`)
}

// CONTRIBUTING.md says that a random test can be repeated with the seed that it
// prints. So all random numbers come from testRandom, or from randomFrom.
func TestRandomTestsTakeTheirSeedFromTheFlag(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	require.Contains(t, files, "helpers_test.go")
	for _, name := range files {
		src, err := os.ReadFile(name)
		require.NoError(t, err)
		if name != "helpers_test.go" {
			require.Empty(t, otherRandomNumbers(t, name, src), "use testRandom")
		}
	}
	for code, found := range map[string]int{
		`import "math/rand/v2"; var n = rand.IntN(2)`:                           1,
		`import "math/rand/v2"; var r = rand.New(rand.NewPCG(1, 2))`:            1,
		`import dice "math/rand"; var n, m = dice.Int(), dice.Int()`:            2,
		`import "math/rand/v2"; func f(r *rand.Rand) int { return r.IntN(2) }`:  0,
		`import "math/rand/v2"; func f(s rand.Source) { rand.New(s).Uint64() }`: 0,
		`import "crypto/rand"; var r = rand.Reader`:                             0,
	} {
		require.Len(t, otherRandomNumbers(t, "", []byte("package p; "+code)), found, code)
	}
}

// otherRandomNumbers returns where a file uses package math/rand for more than its
// types, and for numbers from a source that is given.
func otherRandomNumbers(t *testing.T, name string, src []byte) (found []string) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, src, 0)
	require.NoError(t, err)
	for _, i := range f.Imports {
		if !strings.HasPrefix(i.Path.Value, `"math/rand`) {
			continue
		}
		called := "rand"
		if i.Name != nil {
			called = i.Name.Name
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == called && x.Obj == nil && !slices.Contains([]string{"Rand", "Source", "New"}, s.Sel.Name) {
				found = append(found, fmt.Sprintf("%s: %s.%s", fset.Position(s.Pos()), called, s.Sel.Name))
			}
			return true
		})
	}
	return found
}
