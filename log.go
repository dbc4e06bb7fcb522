package rcmgr

// The package's log.

import (
	"context"
	"errors"
	"log/slog"

	logging "github.com/libp2p/go-libp2p/gologshim"
)

var log = logging.Logger("rcmgr")

// tellRefusal logs one refusal with its numbers, for who debugs. It is called
// without locks, with what the caller gets.
func tellRefusal(err error) {
	ctx := context.Background()
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	var e *LimitError
	if !errors.As(err, &e) {
		return
	}
	log.LogAttrs(ctx, slog.LevelDebug, "refused", e.attrs()...)
}
