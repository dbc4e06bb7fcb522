package rcmgr

// The package's log.

import (
	logging "github.com/libp2p/go-libp2p/gologshim"
)

var log = logging.Logger("rcmgr")
