package rcmgr

// The kinds of scopes and gates, and their names.

import (
	"fmt"
	"log/slog"
	"sync/atomic"
)

// Kind is the kind of a scope or gate.
type Kind uint8

const (
	KindSystem               Kind = iota // everything
	KindTransient                        // connections without a peer, streams without a protocol
	KindAllowlistedSystem                // in place of system, for what the allowlist covers
	KindAllowlistedTransient             // in place of transient, for what the allowlist covers
	KindService                          // all streams of a service
	KindServicePeer                      // the streams of one peer in a service
	KindProtocol                         // all streams of a protocol
	KindProtocolPeer                     // the streams of one peer in a protocol
	KindPeer                             // all connections and streams of a peer
	KindConn                             // one connection
	KindStream                           // one stream
	KindSubnet                           // connections from one IP prefix (a gate, not a scope)
	KindRate                             // how fast connections and streams come from one IP prefix (a gate, not a scope)
	KindProcess                          // the memory of the whole process (a gate, not a scope)
	numKinds
)

var kindNames = [numKinds]string{
	"system", "transient", "allowlistedSystem", "allowlistedTransient",
	"service", "service-peer", "protocol", "protocol-peer", "peer",
	"conn", "stream", "subnet", "rate", "process",
}

// String returns the kind's name in logs and metrics: "system",
// "transient", "allowlistedSystem", "allowlistedTransient", "service",
// "service-peer", "protocol", "protocol-peer", "peer", "conn", "stream",
// "subnet", "rate" or "process".
func (k Kind) String() string {
	return nameOf(k, kindNames[:])
}

// inSnapshots reports whether a Snapshot lists scopes of this kind.
func (k Kind) inSnapshots() bool {
	return k <= KindService || k == KindProtocol || k == KindPeer
}

// allowlisted reports whether scopes of this kind stand in for standard ones.
func (k Kind) allowlisted() bool { return k == KindAllowlistedSystem || k == KindAllowlistedTransient }

// ofPeer returns the kind of one peer's part of a service or protocol.
func (k Kind) ofPeer() Kind {
	if k == KindService {
		return KindServicePeer
	}
	return KindProtocolPeer
}

// MarshalText returns String's text, for JSON and logs.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText writes. An error says what was expected.
func (k *Kind) UnmarshalText(text []byte) error {
	return unmarshalName(k, text, kindNames[:], "kind of scope")
}

// hasLastQuarter reports whether WithNewcomersQuarter keeps the last quarter of a limit on d
// for peers that hold little of it.
func (k Kind) hasLastQuarter(d dim) bool {
	return k == KindTransient && (d == dimStreamsIn || d == dimStreamsOut)
}

// hasShares reports whether WithFairShare, if it is on for a scope of this kind, applies to a
// limit on d.
func (k Kind) hasShares(d dim) bool {
	return k == KindTransient || d != dimConnsOut && d != dimStreamsOut
}

// canRunOutOf reports whether a scope or gate of this kind can run out of d.
func (k Kind) canRunOutOf(d dim) bool {
	switch k {
	case KindSubnet:
		return d == dimConnsIn || d == dimConnsOut
	case KindRate:
		return d == dimConnsIn || d == dimConnsOut || d == dimStreamsIn || d == dimStreamsOut
	case KindProcess:
		return d == dimConnsIn || d == dimStreamsIn
	}
	switch resourceOf[d] {
	case ResourceMemory:
		return true
	case ResourceStream:
		return k != KindConn
	}
	return k <= KindAllowlistedTransient || k == KindPeer || k == KindConn
}

// mayRefuse reports whether a scope of this kind with a limit on d may refuse a request because
// of it.
func (k Kind) mayRefuse(d dim, limit int64) bool {
	if (k == KindConn || k == KindStream) && d != dimMemory && limit > 0 {
		return false // it counts only itself
	}
	return k.canRunOutOf(d) && !isUnlimited(d, limit)
}

// kindSet is a set of kinds, as bits.
type kindSet uint16

const allKinds kindSet = 1<<numKinds - 1

func (s kindSet) has(k Kind) bool { return s>>k&1 != 0 }

// list returns the kinds in ascending order.
func (s kindSet) list() (kinds []Kind) {
	for k := range numKinds {
		if s.has(k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// LogValue returns the names of the kinds as a list, for text and JSON handlers alike.
func (s kindSet) LogValue() slog.Value {
	words := []string{} // in JSON, nil is null
	for _, k := range s.list() {
		words = append(words, k.String())
	}
	return slog.AnyValue(words)
}

// kindSetOf returns the set of the given kinds, or of all kinds if none is given.
func kindSetOf(kinds []Kind) (s kindSet, err error) {
	if len(kinds) == 0 {
		return allKinds, nil
	}
	for _, k := range kinds {
		if k >= numKinds {
			return 0, fmt.Errorf("unknown kind of scope: %d, expected 0 (%v) to %d (%v)",
				k, KindSystem, numKinds-1, numKinds-1)
		}
		s |= 1 << k
	}
	return s, nil
}

// observedKinds are the kinds whose limits are only observed. They are written under all
// stripe locks. The gates read them under a lock of their own.
type observedKinds struct{ bits atomic.Uint32 }

func (o *observedKinds) load() kindSet { return kindSet(o.bits.Load()) }

// standIn reports whether a refusal by a scope of kind k may be caused by a set of observed
// limits. It may if k is in the set. It may also if k is an allowlisted scope, because these
// are asked only after a standard scope has refused, which may be an observed one.
func (s kindSet) standIn(k Kind) bool {
	return s.has(k) || k.allowlisted()
}
