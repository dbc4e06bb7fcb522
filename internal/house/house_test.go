package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const top = "../.."

func ours(t *testing.T) *house {
	t.Helper()
	files, names, err := readPackage(top)
	require.NoError(t, err)
	require.Greater(t, len(files), 50)
	return &house{files, names, floors}
}

func TestNoFileNamesAHigherFloorAndNoneOutsideTheEngineIsInACircleOfNames(t *testing.T) {
	for _, fault := range ours(t).faults() {
		t.Error(fault)
	}
}

func TestTheContributorsGuideShowsTheFloors(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(top, document))
	require.NoError(t, err)
	require.True(t, strings.Contains(string(text), ours(t).tables()),
		"the tables of files in %s are not those of floors.go: go run ./internal/house -write brings them in line", document)
}

func TestEachFileStandsOnOneFloorAndIsThere(t *testing.T) {
	seen := make(map[string]bool)
	for _, f := range floors {
		for _, r := range f.rooms {
			for _, file := range strings.Fields(r.files) {
				require.False(t, seen[file], "%s stands on two floors", file)
				seen[file] = true
				require.FileExists(t, filepath.Join(top, file))
			}
		}
	}
	for _, goos := range []string{"", "_unix", "_other"} { // files for other systems, too
		all, err := filepath.Glob(filepath.Join(top, "*"+goos+".go"))
		require.NoError(t, err)
		for _, file := range all {
			file = filepath.Base(file)
			require.True(t, seen[file] || file == "doc.go" || strings.HasSuffix(file, "_test.go"), file)
		}
	}
}

func TestFaultsOfAMadeUpPackageAreFound(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("go.mod", "module example.com/made/up\n\ngo 1.25\n")
	write("low.go", "package up\n\nfunc low() { high() }\n")
	write("high.go", "package up\n\nimport \"strings\"\n\ntype t[V any] struct{ field V }\n\nfunc high() { _ = strings.ToUpper(\"\") }\n")
	write("one.go", "package up\n\nfunc one(x t[int]) int { return x.field + two() }\n")
	write("two.go", "package up\n\nfunc two() int { return one(t[int]{}) }\n")
	write("left.go", "package up\n\nvar left = right\n\nconst here = 1\n")
	write("right.go", "package up\n\nconst right = here\n")
	files, names, err := readPackage(dir)
	require.NoError(t, err)
	require.Equal(t, graph{
		{"low.go", "high.go"}: {"high"}, {"one.go", "high.go"}: {"field", "t"}, {"one.go", "two.go"}: {"two"},
		{"two.go", "one.go"}: {"one"}, {"two.go", "high.go"}: {"t"},
		{"left.go", "right.go"}: {"right"}, {"right.go", "left.go"}: {"here"},
	}, names)

	h := house{files, names, []floor{
		{"attic", "", []room{{"one.go two.go", ""}}},
		{engine, "", []room{{"left.go right.go", ""}}},
		{"high", "", []room{{"high.go", ""}}},
	}}
	require.Equal(t, []string{"low.go stands on no floor: add it to internal/house/floors.go"}, h.faults())
	h.floors = append(h.floors, floor{"low", "", []room{{"low.go", ""}}})
	require.Equal(t, []string{
		"low.go (low) names what high.go (high) declares, which is higher: high",
		"these name each other in a circle: one.go two.go",
	}, h.faults())
}

func TestADocumentWithoutMarksForTheTablesIsAnError(t *testing.T) {
	_, err := (&house{}).written("# Contributing\n")
	require.ErrorContains(t, err, document)
}
