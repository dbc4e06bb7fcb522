//go:build !unix

package main

import "time"

// cpuTime is 0: this system has no getrusage.
func cpuTime() time.Duration { return 0 }
