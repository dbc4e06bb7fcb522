package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var runs int // with -count more than 1; refusals stay counted for the life of the process

// Without the three changes, the program prints the same on go-libp2p's manager.
func TestTheMigratedProgramBehavesAsBefore(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real hosts")
	}
	runs++
	var out bytes.Buffer
	require.NoError(t, run(&out, filepath.Join(t.TempDir(), "trace.json.gz")))
	require.Equal(t, fmt.Sprintf(`echoes before a refusal: 3
echo streams held: 3
libp2p_rcmgr_blocked_resources dir=inbound resource=stream scope=protocol: %d
refusals in the trace: 1
`, runs), out.String())
}
