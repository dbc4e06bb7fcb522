//go:build unix

package main

// The processor time of this process, where the system measures it.

import (
	"syscall"
	"time"
)

// cpuTime returns the time that this process has computed so far, in user and system mode
// together, or 0 if it is unknown.
func cpuTime() time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
