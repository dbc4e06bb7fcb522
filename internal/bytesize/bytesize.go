// Package bytesize reads numbers of bytes with units, such as "64MiB".
package bytesize

import (
	"errors"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

var (
	errUnit  = errors.New("unknown unit of bytes")
	errRange = errors.New("not a number of bytes of 63 bits")
)

// Parse returns the number of bytes of a text such as "64MiB", "1.5 GB" or "123". The units are
// B; k, M, G, T, P and E for powers of 1000; Ki to Ei for powers of 1024; a B may follow, the case
// of letters does not matter, and spaces may stand around the unit. A fraction of a byte is cut
// off. Parse returns an error for more than math.MaxInt64 bytes, for less than one byte unless
// the number is 0, and for commas, which are decimal points in some languages and separators in
// others.
func Parse(text string) (int64, error) {
	end := 0
	for end < len(text) && (text[end] == '.' || '0' <= text[end] && text[end] <= '9') {
		end++
	}
	number := text[:end]
	unit, err := unitOf(text[end:])
	if err != nil {
		return 0, err
	}
	if n, err := strconv.ParseUint(number, 10, 64); err == nil { // all digits are kept
		high, low := bits.Mul64(n, unit)
		if high != 0 || low > math.MaxInt64 {
			return 0, errRange
		}
		return int64(low), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, err
	}
	f *= float64(unit)
	if f >= math.MaxInt64 || f < 1 && strings.ContainsAny(number, "123456789") {
		return 0, errRange
	}
	return int64(f), nil
}

// unitOf returns the number of bytes of a unit.
func unitOf(text string) (uint64, error) {
	text = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(text)), "b")
	if text == "" {
		return 1, nil
	}
	power := strings.Index("kmgtpe", text[:1]) + 1
	if power == 0 {
		return 0, errUnit
	}
	unit, base := uint64(1), uint64(1000)
	switch text[1:] {
	case "":
	case "i":
		base = 1024
	default:
		return 0, errUnit
	}
	for range power {
		unit *= base
	}
	return unit, nil
}
