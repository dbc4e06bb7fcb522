package rcmgr

// What this process may use of the machine that it runs on. A container with
// 512 MiB on a large host has 512 MiB, and so has a process with GOMEMLIMIT:
// the least of what is known counts.

import (
	"errors"
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/pbnjay/memory"
)

// Machine is what this process may use of its machine, and how that was found
// out.
type Machine struct {
	// Memory is the least of the three below that is known, in bytes, or 1 GiB
	// if none is.
	Memory int64
	// MemoryFrom tells which that is: "host", "cgroup", "GOMEMLIMIT", or
	// "unknown".
	MemoryFrom string
	// Host is the memory of the machine, Cgroup the limit of the process's
	// control group (version 1 or 2) or the least of those around it, and
	// GoMemLimit that of the Go runtime, in bytes. 0 is none, or not known.
	Host       int64 `json:",omitzero"`
	Cgroup     int64 `json:",omitzero"`
	GoMemLimit int64 `json:",omitzero"`
	// CgroupError tells why the limit of the control group could not be read.
	CgroupError string `json:",omitzero"`
	// FileDescriptors is how many the process may open: its soft limit.
	// DefaultLimit stands for a number that cannot be found out.
	FileDescriptors LimitVal `json:",omitzero"`
}

// ThisMachine finds out what this process may use. Default limits are made for
// it: see ScalingLimitConfig.AutoScale and NodeLimits.
func ThisMachine() Machine {
	return machineOf(memory.TotalMemory(), memlimit.FromCgroup, debug.SetMemoryLimit(-1), descriptorLimit())
}

// machineOf puts together what was asked for: bytes of the host, 0 if unknown;
// the control group's; the runtime's, math.MaxInt64 if there is none; and
// descriptors, see descriptorLimit.
func machineOf(host uint64, cgroup func() (uint64, error), goMemLimit int64, descriptors int) Machine {
	m := Machine{Host: capBytes(host), FileDescriptors: descriptorVal(descriptors)}
	if goMemLimit < math.MaxInt64 {
		m.GoMemLimit = goMemLimit
	}
	limit, err := cgroup()
	switch {
	case err == nil:
		m.Cgroup = capBytes(limit)
	case !errors.Is(err, memlimit.ErrNoLimit) && !errors.Is(err, memlimit.ErrNoCgroup) &&
		!errors.Is(err, memlimit.ErrCgroupsNotSupported):
		m.CgroupError = err.Error()
	}

	m.Memory, m.MemoryFrom = math.MaxInt64, "unknown"
	for _, found := range []struct {
		bytes int64
		from  string
	}{{m.Host, "host"}, {m.Cgroup, "cgroup"}, {m.GoMemLimit, "GOMEMLIMIT"}} {
		if 0 < found.bytes && found.bytes < m.Memory {
			m.Memory, m.MemoryFrom = found.bytes, found.from
		}
	}
	if m.MemoryFrom == "unknown" {
		m.Memory = 1 << 30 // an eighth of it are the 128 MiB of the smallest node
	}
	return m
}

// descriptors gives the number as descriptorLimit does: math.MaxInt is
// unlimited, 0 unknown.
func (m *Machine) descriptors() int { return m.FileDescriptors.Build(0) }

// descriptorVal is its inverse. A number below 0 is unknown, too.
func descriptorVal(n int) LimitVal {
	if n <= 0 {
		return DefaultLimit
	}
	return limitVal(n)
}

// Sizing is what limits were computed for. It is empty for limits that were
// given as they are.
type Sizing struct {
	// Rules are those by which the limits were computed: "ScalingLimitConfig" or
	// "NodeLimits".
	Rules string `json:",omitzero"`
	// Memory, in bytes, and FileDescriptors are what the limits were computed for.
	Memory          int64    `json:",omitzero"`
	FileDescriptors LimitVal `json:",omitzero"`
	// Machine is what was found, and empty where nobody had to look.
	Machine Machine `json:",omitzero"`
}
