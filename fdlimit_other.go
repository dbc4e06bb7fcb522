//go:build !(aix || darwin || dragonfly || freebsd || linux || netbsd || openbsd || solaris)

package rcmgr

// How many file descriptors this process may open, where there are no resource
// limits to ask for.

import (
	"math"
	"runtime"
)

// descriptorLimit gives math.MaxInt on Windows, which has no limit of this
// kind, and elsewhere 0: it cannot be told.
func descriptorLimit() int {
	if runtime.GOOS == "windows" {
		return math.MaxInt
	}
	return 0
}
