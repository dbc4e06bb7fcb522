package rcmgr

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime/debug"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/stretchr/testify/require"
)

func TestTheLeastMemoryThatIsKnownCounts(t *testing.T) {
	const mib, none = 1 << 20, math.MaxInt64
	cgroup := func(limit uint64, err error) func() (uint64, error) {
		return func() (uint64, error) { return limit, err }
	}
	for _, c := range []struct {
		name       string
		host       uint64
		cgroup     func() (uint64, error)
		goMemLimit int64
		want       Machine
	}{
		{"a host", 4096 * mib, cgroup(0, memlimit.ErrNoLimit), none,
			Machine{Memory: 4096 * mib, MemoryFrom: "host", Host: 4096 * mib}},
		{"a container", 4096 * mib, cgroup(512*mib, nil), none,
			Machine{Memory: 512 * mib, MemoryFrom: "cgroup", Host: 4096 * mib, Cgroup: 512 * mib}},
		{"a container larger than its host", 4096 * mib, cgroup(8192*mib, nil), none,
			Machine{Memory: 4096 * mib, MemoryFrom: "host", Host: 4096 * mib, Cgroup: 8192 * mib}},
		{"GOMEMLIMIT", 4096 * mib, cgroup(1024*mib, nil), 512 * mib,
			Machine{Memory: 512 * mib, MemoryFrom: "GOMEMLIMIT", Host: 4096 * mib, Cgroup: 1024 * mib, GoMemLimit: 512 * mib}},
		{"GOMEMLIMIT above the container", 4096 * mib, cgroup(1024*mib, nil), 2048 * mib,
			Machine{Memory: 1024 * mib, MemoryFrom: "cgroup", Host: 4096 * mib, Cgroup: 1024 * mib, GoMemLimit: 2048 * mib}},
		{"no cgroup", 4096 * mib, cgroup(0, memlimit.ErrNoCgroup), none,
			Machine{Memory: 4096 * mib, MemoryFrom: "host", Host: 4096 * mib}},
		{"another system", 4096 * mib, cgroup(0, memlimit.ErrCgroupsNotSupported), none,
			Machine{Memory: 4096 * mib, MemoryFrom: "host", Host: 4096 * mib}},
		{"a cgroup that cannot be read", 4096 * mib, cgroup(0, errors.New("no")), none,
			Machine{Memory: 4096 * mib, MemoryFrom: "host", Host: 4096 * mib, CgroupError: "no"}},
		{"nothing known", 0, cgroup(0, memlimit.ErrNoLimit), none,
			Machine{Memory: 1024 * mib, MemoryFrom: "unknown"}},
		{"beyond 63 bits", math.MaxUint64, cgroup(math.MaxUint64, nil), 0,
			Machine{Memory: 1024 * mib, MemoryFrom: "unknown", Host: math.MaxInt64, Cgroup: math.MaxInt64}},
	} {
		got := machineOf(c.host, c.cgroup, c.goMemLimit, 1000)
		c.want.FileDescriptors = 1000
		require.Equal(t, c.want, got, c.name)
	}
}

func TestUnlimitedAndUnknownDescriptorsOfAMachineStayWhatTheyAre(t *testing.T) {
	for n, want := range map[int]LimitVal{math.MaxInt: Unlimited, 0: DefaultLimit, -1: DefaultLimit, 1024: 1024} {
		m := machineOf(1<<30, func() (uint64, error) { return 0, memlimit.ErrNoLimit }, math.MaxInt64, n)
		require.Equal(t, want, m.FileDescriptors)
		require.Equal(t, max(0, n), m.descriptors())
	}
}

// inChild runs a test again in a process of its own, with more in its environment,
// and reports whether this is that process.
func inChild(t *testing.T, change func(*exec.Cmd), env ...string) bool {
	t.Helper()
	if os.Getenv("RCMGR_TEST_CHILD") == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), "RCMGR_TEST_CHILD="+t.Name()), env...)
	if change != nil {
		change(cmd)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return false
}

// requireSized checks that everything that sizes itself does so for this many
// bytes.
func requireSized(t *testing.T, memory int64, from string) {
	t.Helper()
	machine := ThisMachine()
	require.Equal(t, memory, machine.Memory, "%+v", machine)
	require.Equal(t, from, machine.MemoryFrom)

	want := DefaultLimits.Scale(memory/8, part(machine.descriptors(), 0.5)).limits.System
	m, err := New(nil)
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, &want, viewSystem(t, m).(ResourceScopeLimiter).Limit())
	sizing := m.Snapshot().Sizing
	require.Equal(t, memory/8, sizing.Memory)
	require.Equal(t, machine, sizing.Machine)

	n, err := NewForNode(NodeLimits{})
	require.NoError(t, err)
	defer n.Close()
	system := viewSystem(t, n).(ResourceScopeLimiter).Limit()
	require.Equal(t, memory/2, system.GetMemoryLimit())
	require.Equal(t, "NodeLimits", n.Snapshot().Sizing.Rules)
	require.Equal(t, machine, n.Snapshot().Sizing.Machine)
}

func TestGOMEMLIMITIsTheSizeOfTheMachine(t *testing.T) {
	if inChild(t, nil, "GOMEMLIMIT=512MiB") {
		requireSized(t, 512<<20, "GOMEMLIMIT")
		debug.SetMemoryLimit(256 << 20)
		requireSized(t, 256<<20, "GOMEMLIMIT")
		fmt.Println("sized")
	}
}
