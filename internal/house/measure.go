package main

// Reading which declarations of each other the files of the package name.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// An arrow runs from one file to another if the first names something that the second declares.
type arrow struct{ from, to string }

// graph has, for each arrow, the names that the file from uses and the file to declares.
type graph map[arrow][]string

// readPackage returns the files of the package in a directory, and the graph of the names that
// they use of each other. It leaves out tests, and files that are not built for this system.
func readPackage(dir string) (files []string, g graph, err error) {
	list := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Export,GoFiles,DepOnly", ".")
	list.Dir, list.Stderr = dir, os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go list: %w", err)
	}
	exports := make(map[string]string)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Export string
			GoFiles            []string
			DepOnly            bool
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, nil, fmt.Errorf("go list: %w", err)
		}
		exports[p.ImportPath] = p.Export
		if !p.DepOnly {
			files = p.GoFiles
		}
	}
	fset := token.NewFileSet()
	var syntax []*ast.File
	for _, name := range files {
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, 0)
		if err != nil {
			return nil, nil, err
		}
		syntax = append(syntax, f)
	}
	info := &types.Info{Uses: make(map[*ast.Ident]types.Object)}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	pkg, err := config.Check(dir, fset, syntax, info)
	if err != nil {
		return nil, nil, err
	}
	return files, arrows(fset, pkg, info), nil
}

// arrows returns the graph of the names that the files of a package use of each other.
func arrows(fset *token.FileSet, pkg *types.Package, info *types.Info) graph {
	fileOf := func(p token.Pos) string { return filepath.Base(fset.Position(p).Filename) }
	sets := make(map[arrow]map[string]bool)
	for id, obj := range info.Uses {
		if obj.Pkg() != pkg {
			continue
		}
		if v, ok := obj.(*types.Var); ok {
			obj = v.Origin()
		} else if f, ok := obj.(*types.Func); ok {
			obj = f.Origin()
		}
		a := arrow{fileOf(id.Pos()), fileOf(obj.Pos())}
		if a.from == a.to {
			continue
		}
		if sets[a] == nil {
			sets[a] = make(map[string]bool)
		}
		sets[a][obj.Name()] = true
	}
	g := make(graph)
	for a, names := range sets {
		g[a] = slices.Sorted(maps.Keys(names))
	}
	return g
}

// sorted returns all arrows, ordered by their files.
func (g graph) sorted() []arrow {
	return slices.SortedFunc(maps.Keys(g), func(a, b arrow) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
}

// circles returns the sets of two or more files that can all reach each other by arrows, the
// largest set first. They are strongly connected components, found by Tarjan's algorithm.
func (g graph) circles(files []string) [][]string {
	next := make(map[string][]string)
	for _, a := range g.sorted() {
		next[a.from] = append(next[a.from], a.to)
	}
	var (
		found   [][]string
		stack   []string
		index   = make(map[string]int) // from 1
		low     = make(map[string]int)
		onStack = make(map[string]bool)
		visit   func(string)
	)
	visit = func(f string) {
		index[f] = len(index) + 1
		low[f] = index[f]
		stack, onStack[f] = append(stack, f), true
		for _, to := range next[f] {
			switch {
			case index[to] == 0:
				visit(to)
				low[f] = min(low[f], low[to])
			case onStack[to]:
				low[f] = min(low[f], index[to])
			}
		}
		if low[f] != index[f] {
			return
		}
		at := slices.Index(stack, f)
		circle := slices.Clone(stack[at:])
		stack = stack[:at]
		for _, member := range circle {
			onStack[member] = false
		}
		if len(circle) > 1 {
			slices.Sort(circle)
			found = append(found, circle)
		}
	}
	for _, f := range files {
		if index[f] == 0 {
			visit(f)
		}
	}
	slices.SortStableFunc(found, func(a, b []string) int { return cmp.Compare(len(b), len(a)) })
	return found
}
