package rcmgr

// The resources that this process may use of the machine it runs on. A container with 512
// MiB on a large host has 512 MiB, and so has a process with that GOMEMLIMIT: the least
// of the known limits counts.

import (
	"errors"
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/pbnjay/memory"
)

// Machine has the resources that this process may use of its machine, and how they were
// found out.
type Machine struct {
	// Memory is the least known of the three limits below, in bytes, or 1 GiB if none is
	// known.
	Memory int64
	// MemoryFrom names the limit that Memory comes from: "host", "cgroup", "GOMEMLIMIT",
	// or "unknown".
	MemoryFrom string
	// Host is the memory of the machine. Cgroup is the limit of the process's control
	// group (version 1 or 2), or the least of those around it. GoMemLimit is the limit of
	// the Go runtime. All are in bytes; 0 means no limit, or an unknown one.
	Host       int64 `json:",omitzero"`
	Cgroup     int64 `json:",omitzero"`
	GoMemLimit int64 `json:",omitzero"`
	// CgroupError says why the limit of the control group could not be read.
	CgroupError string `json:",omitzero"`
	// FileDescriptors is how many descriptors the process may open: its soft limit. It is
	// DefaultLimit if the number is unknown.
	FileDescriptors LimitVal `json:",omitzero"`
}

// ThisMachine returns the resources that this process may use. Default limits are
// computed from them: see ScalingLimitConfig.AutoScale and NodeLimits.
func ThisMachine() Machine {
	return machineOf(memory.TotalMemory(), memlimit.FromCgroup, debug.SetMemoryLimit(-1), descriptorLimit())
}

// machineOf returns the Machine with these limits: bytes of the host, 0 if unknown; of
// the control group; of the runtime, math.MaxInt64 if there is none; and descriptors, as
// descriptorLimit returns them.
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
		m.Memory = 1 << 30 // an eighth of it is the 128 MiB of the smallest node
	}
	return m
}

// descriptors returns the number as descriptorLimit does: math.MaxInt means unlimited, 0
// unknown.
func (m *Machine) descriptors() int { return m.FileDescriptors.Build(0) }

// descriptorVal is the inverse of descriptors. A negative number is unknown, too.
func descriptorVal(n int) LimitVal {
	if n <= 0 {
		return DefaultLimit
	}
	return limitVal(n)
}

// Sizing is what limits were computed from. It is empty for limits that were not
// computed.
type Sizing struct {
	// Rules names the rules that computed the limits: "ScalingLimitConfig" or
	// "NodeLimits".
	Rules string `json:",omitzero"`
	// Memory, in bytes, and FileDescriptors are the resources of the node that the limits
	// were computed for.
	Memory          int64    `json:",omitzero"`
	FileDescriptors LimitVal `json:",omitzero"`
	// Machine is what ThisMachine found. It is empty if the machine was not looked at.
	Machine Machine `json:",omitzero"`
}

func capBytes(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// descriptors returns the file descriptors that the limits were computed for.
func (s *Sizing) descriptors() int { return s.FileDescriptors.Build(0) }
