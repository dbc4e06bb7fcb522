package main

// Files that commands read and write. A file that the command line names and that cannot be read
// is a mistake of the command line; what is in it is not. A file that is there is overwritten
// only with --force, and never in part: a node that follows its file of limits must not read
// half of it.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// openFile opens a file that the command line names. A directory is an error, too.
func openFile(name string) (*os.File, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) && strings.Contains(name, ":") {
		return nil, usage("%s: no such file; an address begins with http:// or https://", name)
	}
	if err != nil {
		return nil, usage("%w", err)
	}
	if at, err := f.Stat(); err == nil && at.IsDir() {
		f.Close()
		return nil, usage("%s is a directory: expected a file", name)
	}
	return f, nil
}

// checkInputs returns an error unless all files can be opened. want is what is expected of them.
// The standard input and FIFOs are left alone: to close a FIFO again would end its writer.
func checkInputs(want string, names ...string) error {
	for _, name := range names {
		if at, err := os.Stat(name); name == "-" || err == nil && at.Mode()&fs.ModeNamedPipe != 0 {
			continue
		}
		if isURL(name) {
			return usage("%s is the address of a page: expected %s", nameOf(name), want)
		}
		f, err := openFile(name)
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

// limitsFile returns the name of a file with the limits that the command line names. For what can
// be read only once, such as the standard input, it is a copy, which done removes.
func (a *app) limitsFile(ctx context.Context, name string) (file string, done func(), err error) {
	if at, err := os.Stat(name); name != "-" && (err != nil || at.Mode().IsRegular()) {
		return name, func() {}, nil
	}
	text, err := a.load(ctx, name, nil)
	if err != nil {
		return "", nil, err
	}
	f, err := os.CreateTemp("", "rcmgr-*.json")
	if err != nil {
		return "", nil, err
	}
	done = func() { os.Remove(f.Name()) }
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		done()
		return "", nil, err
	}
	return f.Name(), done, nil
}

// beginsSnapshot is the beginning of a snapshot, as a manager and this command write it.
var beginsSnapshot = regexp.MustCompile(`^(\x{FEFF})?\s*\{\s*"Taken"\s*:`)

// isSnapshot reports whether a file is a snapshot. It reads only the beginning.
func isSnapshot(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	start, _ := bufio.NewReader(f).Peek(512)
	return beginsSnapshot.Match(start)
}

// forceFlag defines the flag without which no file is overwritten.
func forceFlag(c *cobra.Command, force *bool) {
	c.Flags().BoolVar(force, "force", false, "overwrite files that exist")
}

// errExists is the error for a file that would be overwritten.
func errExists(name string) error { return usage("%s exists; --force overwrites it", name) }

// checkOutput returns an error if a file cannot be written because of what is there. A command
// calls it before its work begins.
func checkOutput(name string, force bool) error {
	at, err := os.Stat(name)
	switch {
	case err != nil: // it is new
	case at.IsDir():
		return usage("%s is a directory: expected the name of a file", name)
	case at.Mode().IsRegular() && !force:
		return errExists(name)
	case !at.Mode().IsRegular():
		return nil
	}
	f, err := fileBeside(name) // nothing else says whether a file can be made there
	if err != nil {
		return err
	}
	f.Close()
	return os.Remove(f.Name())
}

// fileBeside makes a file in the directory of another, or of the file that a link leads to.
func fileBeside(name string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(target(name)), "."+filepath.Base(name)+".*")
	var at *fs.PathError
	if errors.As(err, &at) {
		err = fmt.Errorf("%s: %w", name, at.Err) // of the file that was asked for
	}
	return f, err
}

// target returns the name of the file that a link leads to.
func target(name string) string {
	if target, err := filepath.EvalSymlinks(name); err == nil {
		return target
	}
	return name
}

// isSameFile reports whether two names are those of one file, whether it exists or not.
func isSameFile(a, b string) bool {
	one, errA := os.Stat(a)
	other, errB := os.Stat(b)
	if errA == nil && errB == nil {
		return os.SameFile(one, other)
	}
	if errA == nil || errB == nil || filepath.Base(a) != filepath.Base(b) {
		return false
	}
	one, errA = os.Stat(filepath.Dir(a))
	other, errB = os.Stat(filepath.Dir(b))
	return errA == nil && errB == nil && os.SameFile(one, other)
}

// writeFile writes a file. If it cannot write all of it, it leaves what was there before.
func writeFile(name string, text []byte, force bool) error {
	at, err := os.Stat(name)
	switch {
	case err == nil && !at.Mode().IsRegular(): // a device or a pipe, which has nothing to lose
		return fill(name, text, os.O_WRONLY, 0)
	case err == nil && force:
		return replaceFile(name, text, at.Mode().Perm())
	}
	err = fill(name, text, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	switch {
	case errors.Is(err, fs.ErrExist) && force: // it has been made meanwhile
		return replaceFile(name, text, 0o644)
	case errors.Is(err, fs.ErrExist):
		return errExists(name)
	}
	return err
}

// fill opens a file and writes to it. A file that it has made and cannot fill is removed.
func fill(name string, text []byte, flags int, perm fs.FileMode) error {
	f, err := os.OpenFile(name, flags, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Close())
	if err != nil && flags&os.O_EXCL != 0 {
		os.Remove(name)
	}
	return err
}

// replaceFile puts a new file in the place of one that exists, or of the file that a link leads to.
func replaceFile(name string, text []byte, perm fs.FileMode) error {
	f, err := fileBeside(name)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // unless it has taken the other's place
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), target(name))
}
