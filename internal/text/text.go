// Package text has the forms in which people read amounts and names: in logs, tables, on the page
// and in a terminal.
package text

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Bytes returns a number of bytes with a unit, such as "1.5 MiB", and "unlimited" for
// math.MaxInt64.
func Bytes(n int64) string {
	if n == math.MaxInt64 || n < 1<<10 {
		return Count(n)
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if v /= 1 << 10; v < 1<<10 {
			break
		}
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + " " + unit
}

// Count returns a number, and "unlimited" for math.MaxInt64.
func Count(n int64) string {
	if n == math.MaxInt64 {
		return "unlimited"
	}
	return strconv.FormatInt(n, 10)
}

// Uptime returns for how long something has been up, such as "4m10s", or "20d0h16m" after a day.
func Uptime(d time.Duration) string {
	const day = 24 * time.Hour
	if d = d.Round(time.Second); d < day {
		return d.String()
	}
	d = d.Round(time.Minute)
	return fmt.Sprintf("%dd%dh%dm", d/day, d%day/time.Hour, d%time.Hour/time.Minute)
}

// Setting returns the value of a setting of a configuration at a place such as "System.Memory",
// with a unit if it is a number of bytes.
func Setting(place, value string) string {
	if strings.HasSuffix(place, ".Memory") || strings.HasPrefix(place, "Costs.") {
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return Bytes(n)
		}
	}
	return value
}

// Settings is Setting for two values that differ. If both would read alike, they stay numbers.
func Settings(place, a, b string) (string, string) {
	if x, y := Setting(place, a), Setting(place, b); x != y {
		return x, y
	}
	return a, b
}

// Printable returns a name in a form that cannot break a table or a terminal. A remote peer
// may have chosen the name.
func Printable(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(name)
	}
	return name
}

// CutLast is strings.Cut around the last instance of sep.
func CutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// Plural returns a number with its noun, such as "1 host" or "3 hosts". The noun is in the singular;
// its plural is that with an s, or the given one.
func Plural[N int | int64 | uint64](n N, one string, more ...string) string {
	return Count(int64(n)) + " " + Noun(n, one, more...)
}

// Noun returns a noun in the form that belongs to a number, as Plural does.
func Noun[N int | int64 | uint64](n N, one string, more ...string) string {
	switch {
	case n == 1:
		return one
	case len(more) > 0:
		return more[0]
	}
	return one + "s"
}

// Shorten returns a text in at most so many characters, of which it takes the middle out. Most IDs
// of peers begin alike, so of them more of the end stays. n must be at least 1.
func Shorten(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	head, tail := n/2, n-1-n/2
	if strings.HasPrefix(s, "peer:") && n > 12 {
		head, tail = 7, n-8
	}
	return string(runes[:head]) + "…" + string(runes[len(runes)-tail:])
}
