package main

// The resources that the process really has.

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// process has the resources of the process at one instant.
type process struct {
	connections int // TCP sockets that do not listen; -1 if unknown
	goroutines  int
}

func look() process {
	return process{connections: connections(), goroutines: runtime.NumGoroutine()}
}

// connections returns the number of this process's TCP sockets that do not listen. It is
// known on Linux only.
func connections() (n int) {
	connected := make(map[string]bool) // by inode
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil && table == "/proc/self/net/tcp" {
			return -1
		}
		for line := range strings.Lines(string(text)) {
			const state, inode, listens = 3, 9, "0A"
			if f := strings.Fields(line); len(f) > inode && f[state] != listens {
				connected["socket:["+f[inode]+"]"] = true
			}
		}
	}
	files, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return -1
	}
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && connected[to] {
			n++
		}
	}
	return n
}
