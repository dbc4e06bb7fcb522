package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var runs int // with -count; what was refused stays counted for all of the process

// Undo the three changes, and the program says the same on go-libp2p's manager.
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
