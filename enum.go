package rcmgr

// Small numbers that have names.

import (
	"fmt"
	"slices"
	"strings"
)

// nameOf returns the name of a value, by a list of the names of all.
func nameOf[T ~uint8](v T, names []string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "unknown"
}

// unmarshalName is the inverse of nameOf. what says in an error what has these names.
func unmarshalName[T ~uint8](to *T, text []byte, names []string, what string) error {
	i := slices.Index(names, string(text))
	if i < 0 {
		return fmt.Errorf("no %s: %q, expected one of %s", what, text, strings.Join(names, ", "))
	}
	*to = T(i)
	return nil
}
