package rcmgr

// Enumerations whose values have names.

import (
	"fmt"
	"slices"
	"strings"
)

// nameOf returns the name of a value, given the names of all values.
func nameOf[T ~uint8](v T, names []string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "unknown"
}

// unmarshalName is the inverse of nameOf. Errors use what as the name of the type.
func unmarshalName[T ~uint8](to *T, text []byte, names []string, what string) error {
	i := slices.Index(names, string(text))
	if i < 0 {
		return fmt.Errorf("unknown %s: %q, expected one of %s", what, text, strings.Join(names, ", "))
	}
	*to = T(i)
	return nil
}
