//go:build aix || darwin || dragonfly || freebsd || linux || netbsd || openbsd || solaris

package rcmgr

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestUnlimitedDescriptorsAreUnlimited(t *testing.T) {
	require.Equal(t, math.MaxInt, fromRlimit(unix.RLIM_INFINITY))
	require.Equal(t, math.MaxInt, fromRlimit(math.MaxUint64))
	require.Equal(t, math.MaxInt, fromRlimit(math.MaxInt64))
	require.Equal(t, 1024, fromRlimit(1024))

	var l unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &l))
	require.Equal(t, fromRlimit(uint64(l.Cur)), descriptorLimit())
	require.Positive(t, descriptorLimit())
}
