package rcmgr

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	upstreamPath = "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	ownPath      = "github.com/weir-p2p/rcmgr"
)

// apiExempt are the names whose types are meant to differ.
var apiExempt = map[string]string{
	"Option": "it sets our configuration, not upstream's manager",
}

func TestExportedNamesAndSignaturesAreThoseOfUpstream(t *testing.T) {
	theirs, ours := loadTypes(t, upstreamPath, ownPath)
	missing := apiDifferences(theirs.Scope(), ours.Scope())
	require.Empty(t, missing, "what upstream exports and we do not, or not so:\n%s", strings.Join(missing, "\n"))
}

// The package comment tells a reader which names are go-libp2p's, and what it links to is there.
func TestThePackageCommentListsTheNamesOfUpstream(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	comment := strings.ReplaceAll(string(text), "\n// ", "\n")
	_, listing, found := strings.Cut(comment, "# Names of go-libp2p's manager")
	require.True(t, found)
	listing, _, _ = strings.Cut(listing, "\n# ")
	theirs, ours := loadTypes(t, upstreamPath, ownPath)
	var listed, exported []string
	for _, m := range docLink.FindAllStringSubmatch(listing, -1) {
		listed = append(listed, m[1])
	}
	for _, name := range theirs.Scope().Names() {
		if _, isConst := theirs.Scope().Lookup(name).(*types.Const); token.IsExported(name) && !isConst {
			exported = append(exported, name)
		}
	}
	require.ElementsMatch(t, exported, listed)
	for _, m := range docLink.FindAllStringSubmatch(comment, -1) {
		obj := ours.Scope().Lookup(m[1])
		require.NotNil(t, obj, "[%s]", m[1])
		if m[2] != "" {
			method, _, _ := types.LookupFieldOrMethod(types.NewPointer(obj.Type()), true, ours, m[2])
			require.NotNil(t, method, "[%s.%s]", m[1], m[2])
		}
	}
}

// go doc shows the package comment before the names, so it is about as long as one screen, and what
// is for readers of the source stands below the package clause.
func TestThePackageCommentIsShort(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	comment, source, found := strings.Cut(string(text), "\npackage rcmgr\n")
	require.True(t, found)
	require.LessOrEqual(t, strings.Count(comment, "\n"), 65)
	for _, heading := range []string{"# Stripes and credit", "# Objects", "# Invariants"} {
		require.Contains(t, source, heading)
	}
}

// docLink is a link of a doc comment to a name of the package.
var docLink = regexp.MustCompile(`\[([A-Z]\w*)(?:\.([A-Z]\w*))?\]`)

func TestPackageObsHasTheNamesOfUpstreams(t *testing.T) {
	theirs, ours := loadTypes(t, upstreamPath+"/obs", ownPath+"/obs")
	require.NotEmpty(t, theirs.Scope().Names())
	missing := apiDifferences(theirs.Scope(), ours.Scope())
	require.Empty(t, missing, "what upstream's obs exports and ours does not, or not so:\n%s", strings.Join(missing, "\n"))
	require.Equal(t, theirs.Scope().Names(), ours.Scope().Names(), "and no others")
}

// The comparison itself: each of these must be reported.
func TestAPIComparisonFindsEveryKindOfDifference(t *testing.T) {
	theirs := checkSource(t, `
		type Gone struct{}
		type S struct { A int; B int `+"`json:\"b\"`"+`; hidden int }
		func (S) ByValue() {}
		func (*S) ByPointer(int) error { return nil }
		type I interface { M() }
		type J interface { M(name int) }
		type N int
		type Alias = S
		const C N = 1
		var V int
		func F(S) int { return 0 }
		type Same struct { A S }
		func (Same) M(i I) {}
		type Option func(*S) error
		type Key struct { A int }
	`)
	ours := checkSource(t, `
		type S struct { B int; A int64 }
		func (*S) ByValue() {}
		func (*S) ByPointer(int) {}
		type I interface { M(); More() }
		type J interface { M(otherName int) }
		type N int
		type Alias = N
		const C N = 2
		const V = 1
		func F(S) (int, error) { return 0, nil }
		type Same struct { A S; More, hidden int }
		func (*Same) Too() {}
		func (Same) M(i I) {}
		type Option func(*N) error
		type Key struct { A int; hidden []int }
	`)
	require.Equal(t, []string{
		"Alias: is an alias of rcmgr.N, not rcmgr.S",
		"C: is 2, not 1",
		"F: is func(rcmgr.S) (int, error), not func(rcmgr.S) int",
		"Gone: missing",
		"I: is interface{M(); More()}, not interface{M()}",
		"Key: cannot be compared by ==",
		"S: the field A is int64, not int",
		`S: the field B is int, not int "json:\"b\""`,
		"S: the fields stand in another order",
		"S: the method ByValue is missing",
		"*S: the method ByPointer is func(int), not func(int) error",
		"V: is a const, not a var",
	}, apiDifferences(theirs.Scope(), ours.Scope()))
}

// apiDifferences lists what the first package exports and the second does not
// in the same way. The second may have more names, fields and methods.
func apiDifferences(theirs, ours *types.Scope) (out []string) {
	for _, name := range theirs.Names() { // sorted
		if !token.IsExported(name) {
			continue
		}
		their, our := theirs.Lookup(name), ours.Lookup(name)
		say := func(format string, args ...any) {
			out = append(out, fmt.Sprintf(format, args...))
		}
		switch {
		case our == nil:
			say("%s: missing", name)
			continue
		case kindOf(our) != kindOf(their):
			say("%s: is a %s, not a %s", name, kindOf(our), kindOf(their))
			continue
		case apiExempt[name] != "":
			continue
		}
		switch their := their.(type) {
		case *types.TypeName:
			if a := our.(*types.TypeName); their.IsAlias() || a.IsAlias() {
				if is, want := typeText(types.Unalias(a.Type())), typeText(types.Unalias(their.Type())); is != want {
					say("%s: is an alias of %s, not %s", name, is, want)
				}
				continue
			}
			typeDifferences(name, their.Type(), our.Type(), say)
			continue
		case *types.Const:
			if is, want := our.(*types.Const).Val(), their.Val(); !constant.Compare(is, token.EQL, want) {
				say("%s: is %s, not %s", name, is, want)
			}
		}
		if is, want := typeText(our.Type()), typeText(their.Type()); is != want {
			say("%s: is %s, not %s", name, is, want)
		}
	}
	return out
}

func kindOf(o types.Object) string {
	return strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", o), "*types."))
}

func typeDifferences(name string, their, our types.Type, say func(string, ...any)) {
	if types.Comparable(their) && !types.Comparable(our) {
		say("%s: cannot be compared by ==", name)
	}
	theirStruct, ok := their.Underlying().(*types.Struct)
	ourStruct, ok2 := our.Underlying().(*types.Struct)
	if ok && ok2 {
		fieldDifferences(name, theirStruct, ourStruct, say)
	} else if is, want := typeText(our.Underlying()), typeText(their.Underlying()); is != want {
		say("%s: is %s, not %s", name, is, want)
	}
	if types.IsInterface(their) {
		return // whose methods are the type itself
	}
	told := make(map[string]bool)
	for _, ptr := range []string{"", "*"} {
		if ptr != "" {
			their, our = types.NewPointer(their), types.NewPointer(our)
		}
		has := exportedMethods(our)
		for _, m := range sortedMethods(their) {
			switch is, want := has[m.Name()], typeText(m.Type()); {
			case told[m.Name()]:
			case is == "":
				say("%s%s: the method %s is missing", ptr, name, m.Name())
			case is != want:
				say("%s%s: the method %s is %s, not %s", ptr, name, m.Name(), is, want)
			default:
				continue
			}
			told[m.Name()] = true
		}
	}
}

func fieldDifferences(name string, their, our *types.Struct, say func(string, ...any)) {
	last, ordered := -1, true
	for i := range their.NumFields() {
		f := their.Field(i)
		if !f.Exported() {
			continue
		}
		at := -1
		for j := range our.NumFields() {
			if our.Field(j).Name() == f.Name() {
				at = j
			}
		}
		if at < 0 {
			say("%s: the field %s is missing", name, f.Name())
			continue
		}
		if is, want := fieldText(our, at), fieldText(their, i); is != want {
			say("%s: the field %s is %s, not %s", name, f.Name(), is, want)
		}
		ordered = ordered && at > last
		last = at
	}
	if !ordered {
		say("%s: the fields stand in another order", name)
	}
}

func fieldText(s *types.Struct, i int) string {
	text := typeText(s.Field(i).Type())
	if s.Field(i).Embedded() {
		text = "embedded " + text
	}
	if tag := s.Tag(i); tag != "" {
		text += fmt.Sprintf(" %q", tag)
	}
	return text
}

func sortedMethods(t types.Type) (methods []types.Object) {
	set := types.NewMethodSet(t) // sorted
	for i := range set.Len() {
		if m := set.At(i).Obj(); m.Exported() {
			methods = append(methods, m)
		}
	}
	return methods
}

func exportedMethods(t types.Type) map[string]string {
	out := make(map[string]string)
	for _, m := range sortedMethods(t) {
		out[m.Name()] = typeText(m.Type())
	}
	return out
}

// typeText writes a type so that both packages have the same name, and without
// the names of parameters.
func typeText(t types.Type) string {
	switch of := t.(type) {
	case *types.Signature:
		t = types.NewSignatureType(nil, nil, nil, unnamed(of.Params()), unnamed(of.Results()), of.Variadic())
	case *types.Interface:
		var methods []string
		for i := range of.NumMethods() { // sorted
			m := of.Method(i)
			methods = append(methods, m.Name()+strings.TrimPrefix(typeText(m.Type()), "func"))
		}
		return "interface{" + strings.Join(methods, "; ") + "}"
	}
	return types.TypeString(t, func(p *types.Package) string {
		if p.Path() == ownPath || p.Path() == upstreamPath {
			return "rcmgr"
		}
		return p.Path()
	})
}

func unnamed(vars *types.Tuple) *types.Tuple {
	var out []*types.Var
	for v := range vars.Variables() {
		out = append(out, types.NewParam(token.NoPos, nil, "", v.Type()))
	}
	return types.NewTuple(out...)
}

// loadTypes reads the types of two packages from what the compiler left of
// them.
func loadTypes(t *testing.T, a, b string) (*types.Package, *types.Package) {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}", a, b)
	cmd.Stderr = os.Stderr
	list, err := cmd.Output()
	require.NoError(t, err)
	files := make(map[string]string)
	for line := range bytes.Lines(list) {
		path, file, _ := strings.Cut(strings.TrimSpace(string(line)), "\t")
		files[path] = file
	}
	from := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(files[path])
	})
	pa, err := from.Import(a)
	require.NoError(t, err)
	pb, err := from.Import(b)
	require.NoError(t, err)
	return pa, pb
}

// checkSource makes a package of declarations.
func checkSource(t *testing.T, decls string) *types.Package {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "p.go", "package p\n"+decls, 0)
	require.NoError(t, err)
	p, err := new(types.Config).Check(ownPath, fset, []*ast.File{file}, nil)
	require.NoError(t, err)
	return p
}
