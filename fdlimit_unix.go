//go:build aix || darwin || dragonfly || freebsd || linux || netbsd || openbsd || solaris

package rcmgr

// The number of file descriptors that this process may open, on systems with resource
// limits.

import (
	"math"

	"golang.org/x/sys/unix"
)

// descriptorLimit returns the soft limit: math.MaxInt if there is none, 0 if it cannot be
// read.
func descriptorLimit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return fromRlimit(uint64(l.Cur)) // int64 on some systems
}

// fromRlimit returns the number of a resource limit. RLIM_INFINITY is the greatest uint64
// on some systems and the greatest int64 on others.
func fromRlimit(n uint64) int {
	return int(min(n, math.MaxInt))
}
