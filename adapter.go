package rcmgr

// What was made with another package of the same shape, go-libp2p's own
// resource manager first of all. Its types have the same methods as ours, but
// other names, so Go does not take the one for the other.

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// ForeignLimiter is Limiter with limits of type L: the Limiter of another
// package, whose Limit is L.
type ForeignLimiter[L Limit] interface {
	GetSystemLimits() L
	GetTransientLimits() L
	GetAllowlistedSystemLimits() L
	GetAllowlistedTransientLimits() L
	GetServiceLimits(svc string) L
	GetServicePeerLimits(svc string) L
	GetProtocolLimits(proto protocol.ID) L
	GetProtocolPeerLimits(proto protocol.ID) L
	GetPeerLimits(p peer.ID) L
	GetStreamLimits(p peer.ID) L
	GetConnLimits() L
}

// LimiterFrom makes a Limiter of one that was written for another package,
// go-libp2p's own resource manager first of all: New(LimiterFrom(theirs)). It
// asks theirs for each limit, so it is as safe for concurrent use as theirs is.
// A nil limit stays nil.
func LimiterFrom[L Limit](theirs ForeignLimiter[L]) Limiter {
	return foreign[L]{theirs}
}

// foreign is a ForeignLimiter as a Limiter. What it does is to convert.
type foreign[L Limit] struct{ theirs ForeignLimiter[L] }

func (f foreign[L]) GetSystemLimits() Limit            { return f.theirs.GetSystemLimits() }
func (f foreign[L]) GetTransientLimits() Limit         { return f.theirs.GetTransientLimits() }
func (f foreign[L]) GetAllowlistedSystemLimits() Limit { return f.theirs.GetAllowlistedSystemLimits() }
func (f foreign[L]) GetAllowlistedTransientLimits() Limit {
	return f.theirs.GetAllowlistedTransientLimits()
}
func (f foreign[L]) GetServiceLimits(svc string) Limit     { return f.theirs.GetServiceLimits(svc) }
func (f foreign[L]) GetServicePeerLimits(svc string) Limit { return f.theirs.GetServicePeerLimits(svc) }
func (f foreign[L]) GetProtocolLimits(proto protocol.ID) Limit {
	return f.theirs.GetProtocolLimits(proto)
}
func (f foreign[L]) GetProtocolPeerLimits(proto protocol.ID) Limit {
	return f.theirs.GetProtocolPeerLimits(proto)
}
func (f foreign[L]) GetPeerLimits(p peer.ID) Limit   { return f.theirs.GetPeerLimits(p) }
func (f foreign[L]) GetStreamLimits(p peer.ID) Limit { return f.theirs.GetStreamLimits(p) }
func (f foreign[L]) GetConnLimits() Limit            { return f.theirs.GetConnLimits() }

// PartialLimitConfigFrom takes over the configuration of another package, by
// way of JSON; give it a pointer, as in PartialLimitConfigFrom(&theirs). From a
// configuration of go-libp2p's that has all limits, get a partial one first,
// with its method ToPartialLimitConfig. The other way leads through JSON, too:
// json.Unmarshal of what json.Marshal gives for ours. An error tells what in
// the configuration has no meaning here.
func PartialLimitConfigFrom(theirs json.Marshaler) (PartialLimitConfig, error) {
	text, err := theirs.MarshalJSON()
	if err != nil {
		return PartialLimitConfig{}, fmt.Errorf("limits: %w", err)
	}
	cfg, _, err := parseLimits(bytes.NewReader(text))
	return cfg, err
}
