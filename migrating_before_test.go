package rcmgr_test

// The programs of MIGRATING.md before they are moved over. They stand here so
// that the compiler reads them: this file imports go-libp2p's own manager.

import (
	"github.com/libp2p/go-libp2p"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
)

var _ = []any{beforeMoving}

func beforeMoving() error {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()))
	if err != nil {
		return err
	}
	host, err := libp2p.New(libp2p.ResourceManager(rm))
	if err != nil {
		return err
	}
	return host.Close()
}
