package rcmgr

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// inContainer runs a test in a process that sees these files, and nothing else, in
// place of /proc, and in a directory that it is given by name. It has no limit of Go's.
func inContainer(t *testing.T, dir string, files map[string]string) bool {
	if !inChild(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		probe := exec.Command("/bin/true")
		probe.SysProcAttr = cmd.SysProcAttr
		if err := probe.Run(); err != nil {
			t.Skipf("no namespaces here: %v", err)
		}
	}, "RCMGR_TEST_DIR="+dir, "GOMEMLIMIT=off") {
		return false
	}
	dir = os.Getenv("RCMGR_TEST_DIR")
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	require.NoError(t, unix.Mount("made", "/proc", "tmpfs", 0, ""))
	for name, text := range files {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
	}
	require.NoError(t, os.WriteFile("/proc/self/mountinfo", fmt.Appendf(nil, files["mountinfo"], dir), 0o644))
	return true
}

func TestACgroupOfVersion2IsTheSizeOfTheMachine(t *testing.T) {
	if inContainer(t, t.TempDir(), map[string]string{
		"/proc/self/cgroup":      "0::/pod/app\n",
		"mountinfo":              "30 23 0:26 / %s rw,nosuid - cgroup2 cgroup2 rw\n",
		"pod/memory.max":         "536870912\n", // the least of those around it
		"pod/app/memory.max":     "1073741824\n",
		"pod/app/memory.current": "0\n",
	}) {
		requireSized(t, 512<<20, "cgroup")
	}
}

func TestACgroupOfVersion1IsTheSizeOfTheMachine(t *testing.T) {
	if inContainer(t, t.TempDir(), map[string]string{
		"/proc/self/cgroup":         "5:cpu:/\n4:memory:/app\n0::/\n",
		"mountinfo":                 "35 31 0:32 / %s rw,relatime - cgroup cgroup rw,memory\n",
		"app/memory.limit_in_bytes": "9223372036854771712\n",
		"app/memory.stat":           "cache 0\nhierarchical_memory_limit 536870912\n",
		"app/memory.usage_in_bytes": "0\n",
		"memory.limit_in_bytes":     "9223372036854771712\n",
	}) {
		requireSized(t, 512<<20, "cgroup")
	}
}

func TestAnUnlimitedCgroupLeavesTheHost(t *testing.T) {
	if inContainer(t, t.TempDir(), map[string]string{
		"/proc/self/cgroup": "0::/app\n",
		"mountinfo":         "30 23 0:26 / %s rw,nosuid - cgroup2 cgroup2 rw\n",
		"app/memory.max":    "max\n",
	}) {
		m := ThisMachine()
		requireSized(t, m.Host, "host")
		require.Zero(t, m.Cgroup)
		require.Empty(t, m.CgroupError)
	}
}

func TestACgroupThatCannotBeReadIsReported(t *testing.T) {
	if inContainer(t, t.TempDir(), map[string]string{
		"/proc/self/cgroup": "0::/app\n",
		"mountinfo":         "30 23 0:26 / %s rw,nosuid - cgroup2 cgroup2 rw\n",
		"app/memory.max":    "a lot\n",
	}) {
		m := ThisMachine()
		require.Equal(t, "host", m.MemoryFrom)
		require.Contains(t, m.CgroupError, "memory.max")
	}
}
