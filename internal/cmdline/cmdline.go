// Package cmdline reads the command lines of all programs in this repository in one way.
// A mistake in a command line is found before any work begins, and ends the program with
// code 2 and one message that names the flag, its value and what was expected.
//
// A program has one function that makes a Line, defines its flags, calls Parse, and then
// checks what no flag can check by itself: files, and flags that depend on each other.
// The function returns an error for ExitOn, so it can be tested without running the
// program.
package cmdline

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/weir-p2p/rcmgr/internal/bytesize"
)

// Line is a command line. Its methods define the flags of a program; the value of a
// flag's variable before Parse is its default. It is not safe for concurrent use.
type Line struct {
	flags     *flag.FlagSet
	about     string
	arguments []argument
}

// argument is an argument that must follow the flags.
type argument struct {
	name string
	to   *string
}

// New returns the command line of a program, without flags or arguments.
func New(program string) *Line {
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // Parse returns the error
	return &Line{flags: flags}
}

// About sets what -h says that the program does, in lines of at most 80 columns, and returns l.
func (l *Line) About(text string) *Line {
	l.about = strings.TrimSpace(text)
	return l
}

// Int defines a flag that is a whole number from least to most.
func (l *Line) Int(to *int, name string, least, most int, usage string) {
	expected := fmt.Sprintf("a number from %d to %d", least, most)
	if most == math.MaxInt {
		expected = fmt.Sprintf("a number of %d or more", least)
	}
	read(l, to, name, usage+"; "+expected, expected, func(text string) (int, bool) {
		n, err := strconv.Atoi(text)
		return n, err == nil && n >= least && n <= most
	})
}

// Seed defines a flag that is any number of 64 bits.
func (l *Line) Seed(to *uint64, name, usage string) {
	expected := fmt.Sprintf("a number from 0 to %d", uint64(math.MaxUint64))
	read(l, to, name, usage+"; "+expected, expected, func(text string) (uint64, bool) {
		n, err := strconv.ParseUint(text, 10, 64)
		return n, err == nil
	})
}

// Duration defines a flag that is a duration of more than 0.
func (l *Line) Duration(to *time.Duration, name, usage string) {
	const expected = "a duration of more than 0, such as 10s or 1m30s"
	read(l, to, name, usage+"; "+expected, expected, func(text string) (time.Duration, bool) {
		d, err := time.ParseDuration(text)
		return d, err == nil && d > 0
	})
}

// Size defines a flag that is a number of bytes, more than 0, with or without a unit.
func (l *Line) Size(to *int64, name, usage string) {
	const expected = "a size of more than 0, such as 512MiB or 2GiB"
	read(l, to, name, usage+"; "+expected, expected, func(text string) (int64, bool) {
		n, err := bytesize.Parse(text)
		return n, err == nil && n > 0
	})
}

// Choice defines a flag that is one of some words.
func (l *Line) Choice(to *string, name, usage string, words ...string) {
	last := len(words) - 1
	expected := strings.Join(words[:last], ", ") + " or " + words[last]
	read(l, to, name, usage+"; "+expected, expected, func(text string) (string, bool) {
		for _, w := range words {
			if text == w {
				return text, true
			}
		}
		return "", false
	})
}

// Text defines a flag that is any text but an empty one. A shell makes an empty text of a
// variable that is not set, which is never what was meant.
func (l *Line) Text(to *string, name, usage, expected string) {
	read(l, to, name, usage, expected, func(text string) (string, bool) { return text, text != "" })
}

// File defines a flag that is the name of a file.
func (l *Line) File(to *string, name, usage string) {
	l.Text(to, name, usage, "the name of a file")
}

// Files defines a flag that is the name of a file, and may be given more than once.
func (l *Line) Files(to *[]string, name, usage string) {
	var file string
	read(l, &file, name, usage+"; may be given more than once", "the name of a file", func(text string) (string, bool) {
		*to = append(*to, text)
		return text, text != ""
	})
}

// Address defines a flag that is an address to listen on: a port, and a host, which may
// be left out.
func (l *Line) Address(to *string, name, usage string) {
	read(l, to, name, usage, "an address with a port, such as 127.0.0.1:8080", func(text string) (string, bool) {
		_, port, err := net.SplitHostPort(text)
		_, wrong := strconv.ParseUint(port, 10, 16)
		return text, err == nil && wrong == nil
	})
}

// Bool defines a flag that is true or false.
func (l *Line) Bool(to *bool, name, usage string) {
	l.flags.BoolFunc(name, fmt.Sprintf("%s (default %v)", usage, *to), func(text string) (err error) {
		if *to, err = strconv.ParseBool(text); err != nil {
			return errors.New("expected true or false")
		}
		return nil
	})
}

// read defines a flag. parse returns the value of a text, and reports whether the text is
// as expected. Where a flag has no default, usage may say what the program then does.
func read[T comparable](l *Line, to *T, name, usage, expected string, parse func(string) (T, bool)) {
	var zero T
	if *to != zero {
		usage += fmt.Sprintf(" (default %v)", *to)
	} else if !strings.Contains(usage, "by default") {
		usage += " (default none)"
	}
	l.flags.Func(name, usage, func(text string) error {
		v, ok := parse(text)
		if !ok {
			return errors.New("expected " + expected)
		}
		*to = v
		return nil
	})
}

// Argument defines an argument that must follow the flags.
func (l *Line) Argument(to *string, name string) {
	l.arguments = append(l.arguments, argument{name, to})
}

// Parse reads flags and arguments from args, which do not include the name of the
// program. It returns an error for ExitOn.
func (l *Line) Parse(args []string) error {
	if err := l.flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return help(l.usage())
	} else if err != nil {
		return err
	}
	rest := l.flags.Args()
	for _, a := range l.arguments {
		if len(rest) == 0 {
			return fmt.Errorf("missing argument: expected %s", a.name)
		}
		*a.to, rest = rest[0], rest[1:]
	}
	if len(rest) == 0 {
		return nil
	}
	if len(l.arguments) > 0 {
		return fmt.Errorf("unexpected argument %q: expected flags, then nothing but %s", rest[0], l.names())
	}
	return fmt.Errorf("unexpected argument %q: expected nothing but flags", rest[0])
}

// Given reports whether a flag was on the command line that Parse read.
func (l *Line) Given(name string) (given bool) {
	l.flags.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}

func (l *Line) names() string {
	var names []string
	for _, a := range l.arguments {
		names = append(names, a.name)
	}
	return strings.Join(names, " ")
}

// usage returns the text that -h prints.
func (l *Line) usage() string {
	var text strings.Builder
	fmt.Fprintln(&text, strings.TrimSpace("usage: "+l.flags.Name()+" [flags] "+l.names()))
	if l.about != "" {
		fmt.Fprintf(&text, "\n%s\n\n", l.about)
	}
	l.flags.SetOutput(&text)
	l.flags.PrintDefaults()
	var fitted strings.Builder
	for line := range strings.Lines(text.String()) {
		fitted.WriteString(fit(line))
	}
	return fitted.String()
}

// screenColumns is the number of columns of a terminal that help fits.
const screenColumns = 80

// fit breaks a line that is too wide for a terminal between words. Each part is indented as far as
// the line.
func fit(line string) string {
	words := strings.Fields(line)
	indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
	margin := len(indent)
	if strings.HasSuffix(indent, "\t") {
		margin = 8
	}
	width := margin + len([]rune(strings.TrimSpace(line)))
	if width <= screenColumns || len(words) == 0 {
		return line
	}
	text, at := indent+words[0], margin+len([]rune(words[0]))
	for _, word := range words[1:] {
		if n := len([]rune(word)); at+1+n > screenColumns {
			text, at = text+"\n"+indent+word, margin+n
		} else {
			text, at = text+" "+word, at+1+n
		}
	}
	return text + "\n"
}

// Wrong returns the error for the value of a flag, in the words that Parse uses. It wraps
// why.
func Wrong(flag, value string, why error) error {
	return fmt.Errorf("invalid value %q for flag -%s: %w", value, flag, why)
}

// CheckOutput returns an error unless file, the value of a flag, can be written or is
// empty. It does not change a file that exists, and leaves none that did not.
func CheckOutput(flag, file string) error {
	if file == "" {
		return nil
	}
	info, err := os.Stat(file)
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		return nil // a pipe or a device, which opening may affect
	}
	_, err = os.Lstat(file) // a link to a file that does not exist is itself not new
	isNew := errors.Is(err, fs.ErrNotExist)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		err = f.Close()
	}
	if err == nil && isNew {
		err = os.Remove(file)
	}
	if err != nil {
		return Wrong(flag, file, fmt.Errorf("expected a file that can be written: %w", err))
	}
	return nil
}

// help is the error of a command line that asks for help, and has its text.
type help string

func (h help) Error() string { return string(h) }

// ExitOn ends the program if err is not nil: with code 0 after printing the help that was
// asked for, or with code 2 after printing the mistake in the command line.
func ExitOn(program string, err error) {
	if err != nil {
		os.Exit(tell(program, err, os.Stdout, os.Stderr))
	}
}

// tell prints an error and returns the exit code.
func tell(program string, err error, out, errOut io.Writer) int {
	var asked help
	if errors.As(err, &asked) {
		fmt.Fprint(out, string(asked))
		return 0
	}
	fmt.Fprintf(errOut, "%s: %v\n", program, err)
	return 2
}
