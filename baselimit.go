package rcmgr

// The limit of one scope, as go-libp2p's interfaces have it, and as eight numbers.

import (
	"cmp"
	"fmt"
	"reflect"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Limit is what one scope may hold at most. Zero admits nothing, math.MaxInt
// (math.MaxInt64 for memory) everything; a negative limit is an error wherever
// a limit is taken. A Limit must give the same answers to concurrent callers.
type Limit interface {
	// GetMemoryLimit gives the limit of memory, in bytes.
	GetMemoryLimit() int64
	// GetStreamLimit gives the limit of streams in one direction.
	GetStreamLimit(network.Direction) int
	// GetStreamTotalLimit gives the limit of streams in both directions together.
	GetStreamTotalLimit() int
	// GetConnLimit gives the limit of connections in one direction.
	GetConnLimit(network.Direction) int
	// GetConnTotalLimit gives the limit of connections in both directions together.
	GetConnTotalLimit() int
	// GetFDLimit gives the limit of file descriptors.
	GetFDLimit() int
}

// Limiter tells a manager the limits of its scopes. The manager asks when it
// makes a scope, and when SetLimits or Refresh says so, from many goroutines at
// once and never under a lock of its own. A limit that is nil or below zero is an
// error of whatever needed it, and so is a panic; that is logged, too, the first time.
type Limiter interface {
	// GetSystemLimits gives the limits of everything together.
	GetSystemLimits() Limit
	// GetTransientLimits gives the limits of all connections and streams whose
	// peer or protocol is not known yet.
	GetTransientLimits() Limit
	// GetAllowlistedSystemLimits gives the limits of everything allowlisted
	// that the system scope had no room for.
	GetAllowlistedSystemLimits() Limit
	// GetAllowlistedTransientLimits gives the limits of everything allowlisted
	// that the transient scope had no room for.
	GetAllowlistedTransientLimits() Limit
	// GetServiceLimits gives the limits of one service.
	GetServiceLimits(svc string) Limit
	// GetServicePeerLimits gives the limits of any one peer in one service.
	GetServicePeerLimits(svc string) Limit
	// GetProtocolLimits gives the limits of one protocol.
	GetProtocolLimits(proto protocol.ID) Limit
	// GetProtocolPeerLimits gives the limits of any one peer in one protocol.
	GetProtocolPeerLimits(proto protocol.ID) Limit
	// GetPeerLimits gives the limits of one peer.
	GetPeerLimits(p peer.ID) Limit
	// GetStreamLimits gives the limits of any one stream of a peer.
	GetStreamLimits(p peer.ID) Limit
	// GetConnLimits gives the limits of any one connection.
	GetConnLimits() Limit
}

// BaseLimit is a Limit made of plain numbers: counts, and bytes of memory.
// Its zero value admits nothing. As part of a ScalingLimitConfig it is the
// limit of the smallest node.
type BaseLimit struct {
	Streams         int   `json:",omitempty"`
	StreamsInbound  int   `json:",omitempty"`
	StreamsOutbound int   `json:",omitempty"`
	Conns           int   `json:",omitempty"`
	ConnsInbound    int   `json:",omitempty"`
	ConnsOutbound   int   `json:",omitempty"`
	FD              int   `json:",omitempty"`
	Memory          int64 `json:",omitempty"`
}

var _ Limit = BaseLimit{}

// GetMemoryLimit implements Limit.
func (l BaseLimit) GetMemoryLimit() int64 { return l.Memory }

// GetStreamLimit implements Limit. What is not inbound is outbound.
func (l BaseLimit) GetStreamLimit(dir network.Direction) int {
	if dir == network.DirInbound {
		return l.StreamsInbound
	}
	return l.StreamsOutbound
}

// GetStreamTotalLimit implements Limit.
func (l BaseLimit) GetStreamTotalLimit() int { return l.Streams }

// GetConnLimit implements Limit. What is not inbound is outbound.
func (l BaseLimit) GetConnLimit(dir network.Direction) int {
	if dir == network.DirInbound {
		return l.ConnsInbound
	}
	return l.ConnsOutbound
}

// GetConnTotalLimit implements Limit.
func (l BaseLimit) GetConnTotalLimit() int { return l.Conns }

// GetFDLimit implements Limit.
func (l BaseLimit) GetFDLimit() int { return l.FD }

// Apply fills in each field that is zero from l2.
func (l *BaseLimit) Apply(l2 BaseLimit) {
	fillIn((*quantities[int, int64])(l), (*quantities[int, int64])(&l2))
}

// BaseLimitIncrease is what a limit grows by for each GiB (1<<30 bytes) of
// memory: counts, and bytes of memory. Its zero value is no growth.
type BaseLimitIncrease struct {
	Streams         int   `json:",omitempty"`
	StreamsInbound  int   `json:",omitempty"`
	StreamsOutbound int   `json:",omitempty"`
	Conns           int   `json:",omitempty"`
	ConnsInbound    int   `json:",omitempty"`
	ConnsOutbound   int   `json:",omitempty"`
	Memory          int64 `json:",omitempty"`
	// FDFraction is the part of all file descriptors, from 0 to 1, that the
	// scope may hold if that is more than its base limit. It does not depend
	// on memory.
	FDFraction float64 `json:",omitempty"`
}

// Apply fills in each field that is zero from l2.
func (l *BaseLimitIncrease) Apply(l2 BaseLimitIncrease) {
	from := l2.counts()
	for i, n := range l.counts() {
		*n = cmp.Or(*n, *from[i])
	}
	l.Memory = cmp.Or(l.Memory, l2.Memory)
	l.FDFraction = cmp.Or(l.FDFraction, l2.FDFraction)
}

// counts gives all that is counted, in the order of quantities.counts.
func (l *BaseLimitIncrease) counts() [6]*int {
	return [...]*int{
		&l.Streams, &l.StreamsInbound, &l.StreamsOutbound,
		&l.Conns, &l.ConnsInbound, &l.ConnsOutbound,
	}
}

// isNoLimit reports whether a Limit is nil, or a nil pointer.
func isNoLimit(l Limit) bool {
	v := reflect.ValueOf(l)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// checkLimit returns what is wrong with a limit that a manager was given for the
// scope where: there is none, or a number in it is negative.
func checkLimit(where string, l Limit) error {
	if isNoLimit(l) {
		return fmt.Errorf("%s: no limit given, the Limit is nil", where)
	}
	if said, ok := l.(*copiedLimit); ok && said.err != nil {
		return fmt.Errorf("%s: the Limiter %w", where, said.err)
	}
	a := limitsOf(l)
	for _, d := range limitOrder {
		if a[d] < 0 {
			return fmt.Errorf("%s: the limit %s is %d, it must not be negative", where, limitNames[d], a[d])
		}
	}
	return nil
}

// limitsOf reads a Limit into amounts.
func limitsOf(l Limit) amounts {
	return amounts{
		dimMemory:     l.GetMemoryLimit(),
		dimStreamsIn:  int64(l.GetStreamLimit(network.DirInbound)),
		dimStreamsOut: int64(l.GetStreamLimit(network.DirOutbound)),
		dimStreams:    int64(l.GetStreamTotalLimit()),
		dimConnsIn:    int64(l.GetConnLimit(network.DirInbound)),
		dimConnsOut:   int64(l.GetConnLimit(network.DirOutbound)),
		dimConns:      int64(l.GetConnTotalLimit()),
		dimFD:         int64(l.GetFDLimit()),
	}
}

// baseLimit is the inverse of limitsOf.
func (a *amounts) baseLimit() BaseLimit {
	return BaseLimit{
		Memory:          a[dimMemory],
		StreamsInbound:  int(a[dimStreamsIn]),
		StreamsOutbound: int(a[dimStreamsOut]),
		Streams:         int(a[dimStreams]),
		ConnsInbound:    int(a[dimConnsIn]),
		ConnsOutbound:   int(a[dimConnsOut]),
		Conns:           int(a[dimConns]),
		FD:              int(a[dimFD]),
	}
}

// LimitResetter is implemented by every scope that this package hands out, as
// ResourceScopeLimiter is. Both are safe for concurrent use.
type LimitResetter interface {
	// ResetLimit takes back what SetLimit has set: the scope has the limit that
	// the manager's limits give it, and follows SetLimits again. Where nothing was
	// set, it does nothing. If a Limiter that is not of this package gives no valid
	// limit for the scope, that is counted and logged as a caller's bug, and the
	// limit stays as it was.
	ResetLimit()
}

// ResourceScopeLimiter is implemented by every scope that this package hands
// out: type-assert a network.ResourceScope to read or replace its limit.
type ResourceScopeLimiter interface {
	// Limit returns a copy of the limit in force.
	Limit() Limit
	// SetLimit replaces the limit of this one scope. What is held stays; a
	// scope that holds more than its new limit admits nothing more until it
	// has drained. A nil limit or one below zero is a caller's bug: it is
	// counted and logged, and the limit stays as it was.
	SetLimit(Limit)
}

// saidLimit is a Limit that has been read, once; err says why it could not be.
type copiedLimit struct {
	amounts
	err error
}

func (l *copiedLimit) GetMemoryLimit() int64 { return l.baseLimit().GetMemoryLimit() }

func (l *copiedLimit) GetStreamLimit(dir network.Direction) int {
	return l.baseLimit().GetStreamLimit(dir)
}

func (l *copiedLimit) GetStreamTotalLimit() int { return l.baseLimit().GetStreamTotalLimit() }

func (l *copiedLimit) GetConnLimit(dir network.Direction) int { return l.baseLimit().GetConnLimit(dir) }

func (l *copiedLimit) GetConnTotalLimit() int { return l.baseLimit().GetConnTotalLimit() }

func (l *copiedLimit) GetFDLimit() int { return l.baseLimit().GetFDLimit() }
