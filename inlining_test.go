package rcmgr

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/version"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// inlinedInto has, for functions on the paths of every connection, stream and reservation,
// the helpers that cost no call there.
var inlinedInto = map[string][]string{
	// Memory.
	"(*userScope).ReserveMemory": {"(*root).follow", "(*stripe).lockNow"},
	"(*userScope).ReleaseMemory": {"(*root).follow", "(*stripe).lockNow", "(*userScope).live"},
	"(*stripe).holdReady":        {"(*holder).serves", "(*account).lacksMemory"},
	"(*stripe).hold": {"(*stripe).change", "(*stripe).peerGotMemory", "(*account).gotMemory", "(*account).addMemory",
		"spread.(*Spread).MoveMemory"},
	"(*stripe).drawMemory":      {"(*account).lacking", "(*share).hasMemory", "word.hasTight"},
	"(*share).drawMemoryLocked": {"(*share).addCredit"},
	"(*stripe).drop": {"(*holder).serves", "(*stripe).change", "(*account).addMemory", "(*account).freeMemory", "(*share).idlesMemory",
		"spread.(*Spread).MoveMemory"},
	"(*stripe).trimMemory": {"(*pool).takesBack", "word.less", "(*share).addCredit"},

	// Connections and streams.
	"(*engine).openConnection":  {"unitOf", "(*holder).become", "(*fairShare).leave"},
	"(*engine).openStream":      {"unitOf", "(*stripe).awake"},
	"(*stripe).openStreamReady": {"(*engine).streamLimit", "(*pressure).refuses"},
	"(*stripe).openPlain": {"unit.within", "(*account).hasUnit", "(*share).lackingUnit", "(*held).addUnit", "(*chain).peer",
		"(*chain).stand", "(*stripe).newID"},
	"(*stripe).begin":            {"(*holder).become"},
	"(*share).mayDraw":           {"(*share).mayDrawOne", "(*share).lacksOne", "word.hasOne"},
	"(*stripe).drawOneLocked":    {"(*share).lacksOne", "(*pool).tight", "(*share).addCredit"},
	"(*stripe).peerGotUnit":      {"dim.oneWay", "(*held).raise", "spread.(*Spread).MoveCount"},
	"(*streamScope).attachReady": {"(*userScope).live", "(*account).lasting", "(*peerScope).pairNamed", "(*account).hasUnit", "(*held).addUnit"},
	"(*stripe).attached":         {"(*held).raise"},
	"(*stripe).giveBack":         {"(*held).subUnit", "(*share).idlesUnit", "(*share).idlesMemory"},
	"(*connScope).moveReady":     {"(*account).hasUnit", "(*held).addUnit"},
	"(*connScope).moveCharged":   {"(*holder).countSubnet", "(*fairShare).leave"},
	"(*connScope).carry":         {"(*account).hasUnit", "(*held).addUnit", "(*held).subUnit", "(*share).idlesUnit"},
	"(*userScope).Done":          {"(*root).follow", "(*stripe).lockNow", "(*userScope).live"},
	"(*connScope).Done":          {"(*root).follow", "(*stripe).lockNow", "(*userScope).live", "(*chain).clear", "(*holder).countSubnet", "(*fairShare).leave"},
	"(*streamScope).Done":        {"(*userScope).live", "(*chain).clear"},
	"(*holder).finish":           {"(*stripe).change"},
	"(*stripe).leave":            {"(*held).subUnit", "(*share).idlesUnit", "(*stripe).enqueue", "(*account).lasting", "spread.(*Spread).MoveCount"},
	"(*stripe).trimUnit":         {"(*share).idles", "(*share).idlesMemory"},
	"(*stripe).trim":             {"(*pool).takesBack", "word.less", "(*share).addCredit"},

	// The general way, and refusals.
	"(*chain).addAllReady": {"(*account).hasReady", "(*held).charge", "(*held).refund"},
	"(*pool).fullFor":      {"(*pool).fullOf", "word.full"},
	"(*stripe).judge":      {"(*pool).tally", "tally.draw"},
}

// notInlined are the functions that are written out somewhere for being too long to be
// inlined: once one is no longer, it can be called there.
var notInlined = []string{"(*root).lock"}

// inliningCompiler is the compiler by whose costs the helpers are short enough. An older one
// may count otherwise. With a newer one the test runs, so that it is not left out unnoticed
// where Go is updated.
const inliningCompiler = "go1.26"

// The test asks the compiler itself, by a build of its own. On other processors an atomic
// operation may be more than one instruction, and cost more.
func TestHelpersOnHotPathsAreInlined(t *testing.T) {
	if testing.Short() {
		t.Skip("it compiles the package")
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skipf("not for %s", runtime.GOARCH)
	}
	if compiler := strings.TrimSpace(goOutput(t, "env", "GOVERSION")); version.Compare(compiler, inliningCompiler) < 0 {
		t.Skipf("the compiler is %s, which is older than %s", compiler, inliningCompiler)
	}

	can, into := make(map[string]bool), make(map[string]bool)
	functions := declaredFunctions(t)
	said := regexp.MustCompile(`(?m)^(?:\./)?(\S+\.go):(\d+):\d+: (can inline|inlining call to) (\S+)$`)
	for _, m := range said.FindAllStringSubmatch(goOutput(t, "build", "-race=false", "-cover=false", "-pgo=off", "-gcflags=-m", "."), -1) {
		file, what, name := m[1], m[3], m[4]
		line, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		if what == "can inline" {
			can[name] = true
			continue
		}
		for _, f := range functions {
			if f.file == file && f.from <= line && line <= f.to {
				into[f.name+" "+name] = true
			}
		}
	}
	require.NotEmpty(t, can, "what the compiler says cannot be read")
	declared := make(map[string]bool)
	for _, f := range functions {
		declared[f.name] = true
	}
	for f, helpers := range inlinedInto {
		for _, h := range helpers {
			switch own := !strings.HasPrefix(h, "spread."); {
			case !declared[f] || own && !declared[h]:
				t.Errorf("there is no %s or no %s: correct the list", f, h)
			case own && !can[h]:
				t.Errorf("%s is too long to be inlined; %s calls it", h, f)
			case !into[f+" "+h]:
				t.Errorf("%s does not inline %s", f, h)
			}
		}
	}
	for _, f := range notInlined {
		switch {
		case !declared[f]:
			t.Errorf("there is no %s: correct the list", f)
		case can[f]:
			t.Errorf("%s can be inlined: call it where it is written out", f)
		}
	}
}

// goOutput runs a go command, and returns what it says.
func goOutput(t *testing.T, args ...string) string {
	t.Helper()
	said, err := exec.Command("go", args...).CombinedOutput()
	require.NoError(t, err, "%s", said)
	return string(said)
}

// declaredFunction is a function of this package, by the name that the compiler gives it, and
// its lines.
type declaredFunction struct {
	name, file string
	from, to   int
}

func declaredFunctions(t *testing.T) (all []declaredFunction) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	set := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			of := declaredFunction{f.Name.Name, name, set.Position(f.Pos()).Line, set.Position(f.End()).Line}
			if f.Recv != nil {
				switch r := f.Recv.List[0].Type.(type) {
				case *ast.StarExpr:
					if id, ok := r.X.(*ast.Ident); ok {
						of.name = "(*" + id.Name + ")." + of.name
					}
				case *ast.Ident:
					of.name = r.Name + "." + of.name
				}
			}
			all = append(all, of)
		}
	}
	return all
}
