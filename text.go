package rcmgr

// What is written for people: the log, and amounts, limits and tables as text.

import (
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"

	logging "github.com/libp2p/go-libp2p/gologshim"

	"github.com/weir-p2p/rcmgr/internal/text"
)

var log = logging.Logger("rcmgr")

// fault is something wrong in what a program passed, which go-libp2p's own manager passes over.
type fault struct {
	err  error
	then string // what happens if it is passed over
}

// String returns the fault as a line for the log.
func (f *fault) String() string { return f.err.Error() + "; " + f.then + asUpstream }

// asUpstream ends a line about something that is passed over.
const asUpstream = ", as with go-libp2p's manager"

// amountText returns an amount in a form for people: bytes of memory with a unit, and
// "unlimited" for math.MaxInt64.
func amountText(limit string, n int64) string {
	if limit == limitNames[dimMemory] {
		return text.Bytes(n)
	}
	return text.Count(n)
}

// valueText returns a limit in the form of JSON configurations.
func valueText(d dim, limit int64) string {
	switch {
	case isUnlimited(d, limit):
		return "unlimited"
	case limit == 0:
		return "blockAll"
	}
	return strconv.FormatInt(limit, 10)
}

// limitText returns a limit as a number, or "unlimited".
func limitText(limit int64) string {
	if limit == math.MaxInt64 || limit == math.MaxInt {
		return "unlimited"
	}
	return strconv.FormatInt(limit, 10)
}

// loggedAmount is an amount in a log. Its text is that of amountText. In JSON it is always a
// number, and unlimited is math.MaxInt64 as in snapshots.
type loggedAmount struct {
	d dim
	n int64
}

// amountFor returns n as an amount that a scope or gate compares with its limit on d. The gate
// on the process's memory refuses connections and streams, but compares bytes.
func amountFor(k Kind, d dim, n int64) loggedAmount {
	if k == KindProcess {
		d = dimMemory
	}
	return loggedAmount{d, n}
}

func (a loggedAmount) number() int64 {
	if isUnlimited(a.d, a.n) {
		return math.MaxInt64
	}
	return a.n
}

func (a loggedAmount) String() string { return amountText(limitNames[a.d], a.number()) }

func (a loggedAmount) MarshalJSON() ([]byte, error) {
	return strconv.AppendInt(nil, a.number(), 10), nil
}

// table writes aligned columns.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer, columns ...string) table {
	t := table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	t.row(columns...)
	return t
}

// row writes one row. Flush returns the error of writing, if any.
func (t table) row(cells ...string) {
	io.WriteString(t, strings.Join(cells, "\t")+"\n")
}

// printable returns a name in a form that cannot break a table or a terminal. A remote peer
// may have chosen the name.
func printable(name string) string { return text.Printable(name) }
