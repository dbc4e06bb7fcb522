//go:build !unix

package rcmgr

import "time"

// processorTime is not known here.
func processorTime() time.Duration { return 0 }
