package rcmgr

// The limit of one scope: go-libp2p's interfaces, and the same as eight numbers.

import (
	"cmp"
	"fmt"
	"reflect"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Limit is the most that one scope may hold. Zero admits nothing, and math.MaxInt
// (math.MaxInt64 for memory) admits everything. A negative limit of a Limiter admits nothing
// and is logged, or is an error with WithStrictConfig. A Limit must return the same values to
// concurrent callers.
type Limit interface {
	// GetMemoryLimit returns the limit of memory, in bytes.
	GetMemoryLimit() int64
	// GetStreamLimit returns the limit of streams in one direction.
	GetStreamLimit(network.Direction) int
	// GetStreamTotalLimit returns the limit of streams in both directions together.
	GetStreamTotalLimit() int
	// GetConnLimit returns the limit of connections in one direction.
	GetConnLimit(network.Direction) int
	// GetConnTotalLimit returns the limit of connections in both directions together.
	GetConnTotalLimit() int
	// GetFDLimit returns the limit of file descriptors.
	GetFDLimit() int
}

// Limiter returns the limits of a manager's scopes. The manager calls it when it makes a
// scope, and in SetLimits and Refresh: from many goroutines at once, and never while it
// holds a lock. If a limit is nil, or the Limiter panics, the operation that needed the limit
// fails with an error; the first panic is also logged. A negative number admits nothing, and
// the first one of each kind of scope and limit is logged; with WithStrictConfig it is an
// error, too.
type Limiter interface {
	// GetSystemLimits returns the limits of everything together.
	GetSystemLimits() Limit
	// GetTransientLimits returns the limits of all connections and streams whose
	// peer or protocol is not known yet.
	GetTransientLimits() Limit
	// GetAllowlistedSystemLimits returns the limits of everything allowlisted
	// that the system scope had no room for.
	GetAllowlistedSystemLimits() Limit
	// GetAllowlistedTransientLimits returns the limits of everything allowlisted
	// that the transient scope had no room for.
	GetAllowlistedTransientLimits() Limit
	// GetServiceLimits returns the limits of one service.
	GetServiceLimits(svc string) Limit
	// GetServicePeerLimits returns the limits of any one peer in one service.
	GetServicePeerLimits(svc string) Limit
	// GetProtocolLimits returns the limits of one protocol.
	GetProtocolLimits(proto protocol.ID) Limit
	// GetProtocolPeerLimits returns the limits of any one peer in one protocol.
	GetProtocolPeerLimits(proto protocol.ID) Limit
	// GetPeerLimits returns the limits of one peer.
	GetPeerLimits(p peer.ID) Limit
	// GetStreamLimits returns the limits of any one stream of a peer.
	GetStreamLimits(p peer.ID) Limit
	// GetConnLimits returns the limits of any one connection.
	GetConnLimits() Limit
}

// BaseLimit is a Limit made of plain numbers: counts, and bytes of memory. Its zero value
// admits nothing. In a ScalingLimitConfig it is the limit of the smallest node. Rates limits how
// fast connections and streams come, beside how many there are; go-libp2p's own BaseLimit has no
// such field.
type BaseLimit struct {
	Streams         int   `json:",omitempty"`
	StreamsInbound  int   `json:",omitempty"`
	StreamsOutbound int   `json:",omitempty"`
	Conns           int   `json:",omitempty"`
	ConnsInbound    int   `json:",omitempty"`
	ConnsOutbound   int   `json:",omitempty"`
	FD              int   `json:",omitempty"`
	Memory          int64 `json:",omitempty"`
	Rates           Rates `json:",omitzero"`
}

var _ Limit = BaseLimit{}

// GetMemoryLimit implements Limit.
func (l BaseLimit) GetMemoryLimit() int64 { return l.Memory }

// GetStreamLimit implements Limit. Every direction but inbound counts as outbound.
func (l BaseLimit) GetStreamLimit(dir network.Direction) int {
	if dir == network.DirInbound {
		return l.StreamsInbound
	}
	return l.StreamsOutbound
}

// GetStreamTotalLimit implements Limit.
func (l BaseLimit) GetStreamTotalLimit() int { return l.Streams }

// GetConnLimit implements Limit. Every direction but inbound counts as outbound.
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

// Apply sets each field of l that is zero to its value in l2.
func (l *BaseLimit) Apply(l2 BaseLimit) {
	fillIn((*scopeLimits[int, int64])(l), (*scopeLimits[int, int64])(&l2))
}

// BaseLimitIncrease is the amount by which a limit grows for each GiB (1<<30 bytes) of
// memory: counts, and bytes of memory. Its zero value means no growth.
type BaseLimitIncrease struct {
	Streams         int   `json:",omitempty"`
	StreamsInbound  int   `json:",omitempty"`
	StreamsOutbound int   `json:",omitempty"`
	Conns           int   `json:",omitempty"`
	ConnsInbound    int   `json:",omitempty"`
	ConnsOutbound   int   `json:",omitempty"`
	Memory          int64 `json:",omitempty"`
	// FDFraction is the fraction of all file descriptors, from 0 to 1, that the scope may
	// hold if that is more than its base limit. It does not depend on memory.
	FDFraction float64 `json:",omitempty"`
	// Rates are added to the base rates once for each GiB of memory, and in proportion for a
	// part of one: PerSecond to PerSecond, Burst to Burst. At up to 128 MiB nothing is added.
	Rates Rates `json:",omitzero"`
}

// Apply sets each field of l that is zero to its value in l2.
func (l *BaseLimitIncrease) Apply(l2 BaseLimitIncrease) {
	from := l2.counts()
	for i, n := range l.counts() {
		*n = cmp.Or(*n, *from[i])
	}
	l.Memory = cmp.Or(l.Memory, l2.Memory)
	l.FDFraction = cmp.Or(l.FDFraction, l2.FDFraction)
	l.Rates.fillIn(&l2.Rates)
}

// counts returns all counts, in the order of quantities.counts.
func (l *BaseLimitIncrease) counts() [6]*int {
	return [...]*int{
		&l.Streams, &l.StreamsInbound, &l.StreamsOutbound,
		&l.Conns, &l.ConnsInbound, &l.ConnsOutbound,
	}
}

// scopeLimits is the shape of BaseLimit and ResourceLimits: quantities, and rates beside them.
type scopeLimits[Count, Bytes comparable] struct {
	Streams         Count
	StreamsInbound  Count
	StreamsOutbound Count
	Conns           Count
	ConnsInbound    Count
	ConnsOutbound   Count
	FD              Count
	Memory          Bytes
	Rates           Rates
}

// counts is quantities.counts.
func (l *scopeLimits[Count, Bytes]) counts() [7]*Count {
	return [...]*Count{
		&l.Streams, &l.StreamsInbound, &l.StreamsOutbound,
		&l.Conns, &l.ConnsInbound, &l.ConnsOutbound,
		&l.FD,
	}
}

// fillIn sets each field of to that is zero to its value in from.
func fillIn[Count, Bytes comparable](to, from *scopeLimits[Count, Bytes]) {
	source := from.counts()
	for i, n := range to.counts() {
		*n = cmp.Or(*n, *source[i])
	}
	to.Memory = cmp.Or(to.Memory, from.Memory)
	to.Rates.fillIn(&from.Rates)
}

// GetRates returns the rates. A Limit that is given to SetLimit sets rates if it has this
// method.
func (l BaseLimit) GetRates() Rates { return l.Rates }

// ratesOf returns the rates of a limit, if it has any.
func ratesOf(l Limit) Rates {
	if r, ok := l.(interface{ GetRates() Rates }); ok {
		return r.GetRates()
	}
	return Rates{}
}

// isNoLimit reports whether a Limit is nil or a nil pointer.
func isNoLimit(l Limit) bool {
	v := reflect.ValueOf(l)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// checkLimit returns an error if the limit that a manager was given for the scope where
// is nil, or has a negative number or a rate that no scope can have.
func checkLimit(where string, l Limit) error {
	a, err := limitGiven(where, l)
	if err != nil {
		return err
	}
	for _, d := range limitOrder {
		if a[d] < 0 {
			return fmt.Errorf("%s: %w", where, negativeLimit(d, a[d]))
		}
	}
	rates := ratesOf(l)
	for i, rate := range rates.all() {
		if _, err := rate.bucket(); err != nil {
			return fmt.Errorf("%s: the rate %s: %w", where, limitNames[rateOrder[i]], err)
		}
	}
	return nil
}

// limitGiven returns the numbers of a limit, or an error if it is nil. where names its scope.
func limitGiven(where string, l Limit) (*amounts, error) {
	if isNoLimit(l) {
		return nil, fmt.Errorf("%s: no limit given, the Limit is nil", where)
	}
	if copied, ok := l.(*copiedLimit); ok {
		if copied.err != nil {
			return nil, fmt.Errorf("%s: the Limiter %w", where, copied.err)
		}
		return &copied.amounts, nil
	}
	a := limitsOf(l)
	return &a, nil
}

// eachNegative calls f with each negative number, and what is wrong with it.
func (a *amounts) eachNegative(f func(dim, error)) {
	for _, d := range limitOrder {
		if a[d] < 0 {
			f(d, negativeLimit(d, a[d]))
		}
	}
}

func negativeLimit(d dim, n int64) error {
	return fmt.Errorf("the limit %s is %d, it must not be negative", limitNames[d], n)
}

// limitsOf returns the numbers of a Limit.
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

// baseLimit is the inverse of limitsOf. Rates are not among the numbers.
func (a *amounts) baseLimit() BaseLimit {
	out := BaseLimit{Memory: a[dimMemory]}
	for i, n := range (*scopeLimits[int, int64])(&out).counts() {
		*n = int(a[limitOrder[i]])
	}
	return out
}

// LimitResetter is implemented by every scope that this package returns, like
// ResourceScopeLimiter. Both are safe for concurrent use.
type LimitResetter interface {
	// ResetLimit undoes SetLimit: the scope has the limit that the manager's
	// configuration gives it, and follows SetLimits again. It does nothing if no limit
	// was set. If a Limiter of the program's own returns no valid limit for the scope,
	// that is counted and logged as a caller's bug, and the limit does not change.
	ResetLimit()
}

// ResourceScopeLimiter is implemented by every scope that this package returns. Use a
// type assertion on a network.ResourceScope to read or replace its limit.
type ResourceScopeLimiter interface {
	// Limit returns a copy of the limit in force.
	Limit() Limit
	// SetLimit replaces the limit of this one scope. Existing resources are kept; a scope
	// that holds more than its new limit admits nothing until it has drained below it. A
	// limit that is nil or has a negative number is a caller's bug: it is counted and
	// logged, and the limit does not change. A limit with a method GetRates, such as a
	// BaseLimit, also sets the rates of a scope that many share; with any other, it has
	// none afterwards.
	SetLimit(Limit)
}

// copiedLimit has the values of a Limit, each read once. err says why they could not be
// read.
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
