//go:build !unix

package cputime

import "time"

// Known reports whether the system measures it.
const Known = false

// Used returns 0, because this system has no getrusage.
func Used() time.Duration { return 0 }
