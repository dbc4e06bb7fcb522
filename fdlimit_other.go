//go:build !(aix || darwin || dragonfly || freebsd || linux || netbsd || openbsd || solaris)

package rcmgr

// The number of file descriptors that this process may open, on systems without resource
// limits.

import (
	"math"
	"runtime"
)

// descriptorLimit returns math.MaxInt on Windows, which has no such limit, and 0
// elsewhere, where it is unknown.
func descriptorLimit() int {
	if runtime.GOOS == "windows" {
		return math.MaxInt
	}
	return 0
}
