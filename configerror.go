package rcmgr

// Errors in a configuration of limits, with their places. All errors are reported together,
// so that a user need not mend them one at a time.

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// ConfigError is one error in a configuration of limits. Functions that read or build a
// configuration return an error in which errors.As finds the first one. To get all of them,
// use errors.As with a target of type interface{ Unwrap() []error }: they are in the order of
// the text, or of the fields of PartialLimitConfig, and at most 20. A ConfigError does not
// change after it is returned.
type ConfigError struct {
	// File is the name of the file, or empty if it is not known.
	File string
	// Line and Column are the position in the text, counted from 1; columns are
	// characters. Both are 0 if the configuration was not read from a text.
	Line, Column int
	// Path is the place in the configuration, such as "System.Conns" or
	// `Gates.Subnets.IPv4["32"]`. It is empty if the error concerns the configuration as
	// a whole.
	Path string
	// Err says what is wrong, and what was expected.
	Err error

	also []string // other paths that the error is about, in case Path is not in the text
	// then says what happens if the error is passed over, as go-libp2p's own functions do. It
	// is empty if they fail, too, or do not know what the error is about.
	then   string
	warned bool // Warnings, which are logged, too, have the error
}

// Error returns the error in one line, such as
//
//	limits: limits.json: line 2, column 14: System.ConnInbound: unknown name, did you mean ConnsInbound?
func (e *ConfigError) Error() string {
	var b strings.Builder
	b.WriteString("limits: ")
	if e.File != "" {
		b.WriteString(e.File + ": ")
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, "line %d, column %d: ", e.Line, e.Column)
	}
	said := e.Err.Error()
	if (e.Path != "" || e.Line > 0) && (e.Path == "" || !strings.HasPrefix(said, e.Path+" ")) { // or else Err begins with the place
		b.WriteString(cmp.Or(e.Path, "top level") + ": ")
	}
	b.WriteString(said)
	return b.String()
}

// Unwrap returns Err, for errors.Is and errors.As.
func (e *ConfigError) Unwrap() error { return e.Err }

// maxConfigErrors bounds how many errors are kept; the others are counted.
const maxConfigErrors = 20

// configErrors has all errors in a configuration. The zero value has none.
type configErrors struct {
	all   []*ConfigError
	more  int // how many more there were
	fatal int // how many of all these cannot be passed over
}

// Error returns one line for each error.
func (e *configErrors) Error() string {
	var lines []string
	for _, one := range e.all {
		lines = append(lines, one.Error())
	}
	if e.more > 0 {
		lines = append(lines, fmt.Sprintf("limits: and %d more", e.more))
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the errors, each a *ConfigError.
func (e *configErrors) Unwrap() []error {
	all := make([]error, len(e.all))
	for i, one := range e.all {
		all[i] = one
	}
	return all
}

// err returns e, or nil if it has no error.
func (e *configErrors) err() error {
	if len(e.all) == 0 {
		return nil
	}
	return e
}

// add adds an error and reports whether it is kept: after maxConfigErrors, others are
// only counted.
func (e *configErrors) add(one *ConfigError) bool {
	if one.then == "" {
		e.fatal++
	}
	if len(e.all) == maxConfigErrors {
		e.more++
		return false
	}
	e.all = append(e.all, one)
	return true
}

// addf adds an error at a place in the configuration.
func (e *configErrors) addf(path, format string, args ...any) {
	e.add(&ConfigError{Path: path, Err: fmt.Errorf(format, args...)})
}

// join adds the errors in err, which was returned by the method err or is nil.
func (e *configErrors) join(err error) {
	var from *configErrors
	if errors.As(err, &from) {
		all := e.fatal + from.fatal
		for _, one := range from.all {
			e.add(one)
		}
		e.more += from.more
		e.fatal = all
	}
}

// orPassedOver returns all errors in e if strict is set or one of them cannot be passed over.
// Otherwise it logs them, and returns nil.
func (e *configErrors) orPassedOver(strict bool) error {
	if strict || e.fatal > 0 {
		return e.err()
	}
	e.logPassedOver()
	return nil
}

// logPassedOver logs, for each error, what happens because it is passed over. The level is
// error, because go-libp2p's loggers show no lower level by default.
func (e *configErrors) logPassedOver() {
	for _, one := range e.all {
		if !one.warned {
			log.Error(one.Error() + "; " + one.then + asUpstream)
		}
	}
	if e.more > 0 {
		log.Error("limits: more faults were passed over", "number", e.more)
	}
}
