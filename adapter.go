package rcmgr

// Limiters and configurations that were made for another package of the same shape,
// mainly go-libp2p's own resource manager. Its types have the same methods as ours, but
// Go does not convert one to the other.

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// ForeignLimiter has the methods of the Limiter of another package, whose type of limits is L.
// LimiterFrom makes one a Limiter of this package.
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

// LimiterFrom returns a Limiter that uses the Limiter of another package, such as
// go-libp2p's own resource manager: New(LimiterFrom(theirs)). It calls theirs for each
// limit, so it is as safe for concurrent use as theirs is. A nil limit stays nil.
func LimiterFrom[L Limit](theirs ForeignLimiter[L]) Limiter {
	return foreign[L]{theirs}
}

// foreign is a ForeignLimiter as a Limiter. Its methods only convert.
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

// PartialLimitConfigFrom returns the configuration of another package as one of this
// package, by way of JSON. Call it with a pointer, as in PartialLimitConfigFrom(&theirs).
// If theirs is a configuration of go-libp2p's that has all limits, call its method
// ToPartialLimitConfig first. The way back is JSON, too: json.Unmarshal what json.Marshal
// returns for ours. An error names the parts of the configuration that have no meaning
// here.
func PartialLimitConfigFrom(theirs json.Marshaler) (PartialLimitConfig, error) {
	text, err := theirs.MarshalJSON()
	if err != nil {
		return PartialLimitConfig{}, fmt.Errorf("limits: %w", err)
	}
	cfg, _, err := parseLimits(bytes.NewReader(text), nil)
	return cfg, err
}
