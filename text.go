package rcmgr

// Amounts, limits and tables as text.

import (
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/weir-p2p/rcmgr/internal/strictjson"
)

// amountText writes an amount for people: bytes of memory with their unit, and
// a limit that is none in a word.
func amountText(limit string, n int64) string {
	switch {
	case n == math.MaxInt64:
		return "unlimited"
	case limit != limitNames[dimMemory] || n < 1<<10:
		return strconv.FormatInt(n, 10)
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if v /= 1 << 10; v < 1<<10 {
			break
		}
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + " " + unit
}

// valueText gives a limit as it stands in JSON.
func valueText(d dim, limit int64) string {
	switch {
	case isUnlimited(d, limit):
		return "unlimited"
	case limit == 0:
		return "blockAll"
	}
	return strconv.FormatInt(limit, 10)
}

// limitText gives a limit as people read it.
func limitText(limit int64) string {
	if limit == math.MaxInt64 || limit == math.MaxInt {
		return "unlimited"
	}
	return strconv.FormatInt(limit, 10)
}

// loggedAmount is an amount as logs have it: as text, bytes with their unit, and in JSON
// always a number, in which no limit is math.MaxInt64, as in snapshots.
type loggedAmount struct {
	d dim
	n int64
}

// amountFor is the amount that a scope or gate compares with its limit of d: what the
// process gate refuses are connections and streams, and what it compares are bytes.
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

// row writes one row. An error of writing comes back from Flush.
func (t table) row(cells ...string) {
	io.WriteString(t, strings.Join(cells, "\t")+"\n")
}

// printable gives a name that may be a stranger's choice in a form that cannot
// break a table or a terminal.
func printable(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(name)
	}
	return name
}

// byteOrderMark is what some editors put before a text in UTF-8.
const byteOrderMark = strictjson.ByteOrderMark
