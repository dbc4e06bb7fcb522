package rcmgr

// One number of a configuration, or a word that stands for the default, for no limit, or
// for nothing at all.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
)

// LimitVal is one number in a configuration: a count, or one of the three constants. Its
// zero value is DefaultLimit. In JSON it is a number, or "default", "unlimited" or
// "blockAll"; the number 0 is read as "blockAll".
type LimitVal int

const (
	// DefaultLimit leaves the limit to the defaults that the configuration is built on.
	DefaultLimit LimitVal = 0
	// Unlimited admits everything.
	Unlimited LimitVal = -1
	// BlockAllLimit admits nothing.
	BlockAllLimit LimitVal = -2
)

// LimitVal64 is LimitVal for bytes of memory. In JSON it is written as a string of
// digits, because many readers of JSON round large numbers. It is read with or without
// quotes.
type LimitVal64 int64

const (
	// DefaultLimit64 leaves the limit to the defaults that the configuration is built on.
	DefaultLimit64 LimitVal64 = 0
	// Unlimited64 admits everything.
	Unlimited64 LimitVal64 = -1
	// BlockAllLimit64 admits nothing.
	BlockAllLimit64 LimitVal64 = -2
)

// limitWords has the constants in their JSON form.
var limitWords = map[int64]string{
	int64(DefaultLimit):  `"default"`,
	int64(Unlimited):     `"unlimited"`,
	int64(BlockAllLimit): `"blockAll"`,
}

// parseLimit reads one of the words, or else a number with the given function.
func parseLimit(b []byte, number func([]byte) (int64, error)) (int64, error) {
	for val, word := range limitWords {
		if string(b) == word {
			return val, nil
		}
	}
	n, err := number(b)
	if e := (*json.UnmarshalTypeError)(nil); errors.As(err, &e) {
		return 0, e // unwrapped, so that encoding/json adds the place
	}
	if err != nil {
		return 0, fmt.Errorf("not a limit: %w", err)
	}
	// An explicit 0 admits nothing. The default has a word of its own.
	return cmp.Or(n, int64(BlockAllLimit)), nil
}

func parseCount(b []byte) (n int64, err error) {
	var count int // as wide as LimitVal
	err = json.Unmarshal(b, &count)
	return int64(count), err
}

func parseBytes(b []byte) (n int64, err error) {
	var digits string
	if json.Unmarshal(b, &digits) == nil {
		return strconv.ParseInt(digits, 10, 64)
	}
	err = json.Unmarshal(b, &n)
	return n, err
}

// MarshalJSON writes a number or a word.
func (l LimitVal) MarshalJSON() ([]byte, error) {
	if word, ok := limitWords[int64(l)]; ok {
		return []byte(word), nil
	}
	return strconv.AppendInt(nil, int64(l), 10), nil
}

// UnmarshalJSON reads a number or a word. If it fails, l does not change.
func (l *LimitVal) UnmarshalJSON(b []byte) error {
	n, err := parseLimit(b, parseCount)
	if err == nil {
		*l = LimitVal(n)
	}
	return err
}

// Build returns the limit that l stands for: defaultVal for DefaultLimit, math.MaxInt for
// Unlimited, 0 for BlockAllLimit.
func (l LimitVal) Build(defaultVal int) int {
	switch l {
	case DefaultLimit:
		return defaultVal
	case Unlimited:
		return math.MaxInt
	case BlockAllLimit:
		return 0
	}
	return int(l)
}

// limitVal is the inverse of LimitVal.Build.
func limitVal(n int) LimitVal {
	switch n {
	case 0:
		return BlockAllLimit
	case math.MaxInt:
		return Unlimited
	}
	return LimitVal(n)
}

// MarshalJSON writes digits in quotes, or a word.
func (l LimitVal64) MarshalJSON() ([]byte, error) {
	if word, ok := limitWords[int64(l)]; ok {
		return []byte(word), nil
	}
	return strconv.AppendQuote(nil, strconv.FormatInt(int64(l), 10)), nil
}

// UnmarshalJSON reads a number, digits in quotes, or a word. If it fails, l does not
// change.
func (l *LimitVal64) UnmarshalJSON(b []byte) error {
	n, err := parseLimit(b, parseBytes)
	if err == nil {
		*l = LimitVal64(n)
	}
	return err
}

// Build returns the limit that l stands for, in bytes: defaultVal for DefaultLimit64,
// math.MaxInt64 for Unlimited64, 0 for BlockAllLimit64.
func (l LimitVal64) Build(defaultVal int64) int64 {
	switch l {
	case DefaultLimit64:
		return defaultVal
	case Unlimited64:
		return math.MaxInt64
	case BlockAllLimit64:
		return 0
	}
	return int64(l)
}

// limitVal64 is the inverse of LimitVal64.Build.
func limitVal64(n int64) LimitVal64 {
	switch n {
	case 0:
		return BlockAllLimit64
	case math.MaxInt64:
		return Unlimited64
	}
	return LimitVal64(n)
}

func overlayMap[K comparable, A, B any](upper map[K]A, lower map[K]B, unnamed B, join func(A, B) B) map[K]B {
	if upper == nil && lower == nil {
		return nil
	}
	out := make(map[K]B, max(len(upper), len(lower)))
	for k, b := range lower {
		out[k] = join(upper[k], b) // if k is not in upper, its zero value changes nothing
	}
	for k, a := range upper {
		if _, ok := lower[k]; !ok {
			out[k] = join(a, unnamed)
		}
	}
	return out
}
