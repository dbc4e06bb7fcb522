package rcmgr

// The kinds of scopes and gates, and their names.

import (
	"fmt"
	"log/slog"
	"sync/atomic"
)

// Kind says which kind of scope a name belongs to. Kinds are told apart by
// this number, never by looking into names.
type Kind uint8

const (
	KindSystem               Kind = iota // everything
	KindTransient                        // connections without a peer, streams without a protocol
	KindAllowlistedSystem                // as system, for what the allowlist covers
	KindAllowlistedTransient             // as transient, for what the allowlist covers
	KindService                          // all streams of a service
	KindServicePeer                      // the streams of one peer in a service
	KindProtocol                         // all streams of a protocol
	KindProtocolPeer                     // the streams of one peer in a protocol
	KindPeer                             // all connections and streams of a peer
	KindConn                             // one connection
	KindStream                           // one stream
	KindSubnet                           // connections from one IP prefix (a gate, not a scope)
	KindRate                             // connection attempts from one IP prefix (a gate, not a scope)
	KindProcess                          // the memory of the whole process (a gate, not a scope)
	numKinds
)

var kindNames = [numKinds]string{
	"system", "transient", "allowlistedSystem", "allowlistedTransient",
	"service", "service-peer", "protocol", "protocol-peer", "peer",
	"conn", "stream", "subnet", "rate", "process",
}

// String returns the kind's name as it stands in logs and metrics: "system",
// "transient", "allowlistedSystem", "allowlistedTransient", "service",
// "service-peer", "protocol", "protocol-peer", "peer", "conn", "stream",
// "subnet", "rate" or "process".
func (k Kind) String() string {
	return nameOf(k, kindNames[:])
}

// inSnapshots reports whether scopes of this kind stand in a Snapshot.
func (k Kind) inSnapshots() bool {
	return k <= KindService || k == KindProtocol || k == KindPeer
}

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

// hasLastQuarter reports whether the last quarter of a limit on d is kept for peers that hold
// less than a quarter of it.
func (k Kind) hasLastQuarter(d dim) bool {
	return k == KindTransient && (d == dimStreamsIn || d == dimStreamsOut)
}

// hasShares reports whether a limit on d in a scope of this kind is shared out where fair
// share is on.
func (k Kind) hasShares(d dim) bool {
	return d != dimConnsOut && (d != dimStreamsOut || k.hasLastQuarter(d))
}

// limits tells whether a scope or gate of this kind can run out of d.
func (k Kind) canRunOutOf(d dim) bool {
	switch k {
	case KindSubnet, KindRate:
		return d == dimConnsIn || d == dimConnsOut
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

// kindSet is a set of kinds, as bits.
type kindSet uint16

const allKinds kindSet = 1<<numKinds - 1

func (s kindSet) has(k Kind) bool { return s>>k&1 != 0 }

// list gives the kinds in their order.
func (s kindSet) list() (kinds []Kind) {
	for k := range numKinds {
		if s.has(k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// LogValue returns the kinds as a list of words, for logs of every form.
func (s kindSet) LogValue() slog.Value {
	words := []string{} // in JSON, nil is null
	for _, k := range s.list() {
		words = append(words, k.String())
	}
	return slog.AnyValue(words)
}

// kindSetOf reads kinds; none are all.
func kindSetOf(kinds []Kind) (s kindSet, err error) {
	if len(kinds) == 0 {
		return allKinds, nil
	}
	for _, k := range kinds {
		if k >= numKinds {
			return 0, fmt.Errorf("no kind of scope: %d, expected KindSystem to %v", k, numKinds-1)
		}
		s |= 1 << k
	}
	return s, nil
}

// observedKinds are the classes whose limits are only observed. They are written
// under all stripe locks; the gates read them under their own.
type observedKinds struct{ bits atomic.Uint32 }

func (o *observedKinds) load() kindSet { return kindSet(o.bits.Load()) }

// standIn tells whether something else may be admitted if the limits of these kinds
// were not there, where one of kind k has refused. The allowlisted scopes are asked
// after the standard ones have refused, for any reason.
func (s kindSet) standIn(k Kind) bool {
	return s.has(k) || k == KindAllowlistedSystem || k == KindAllowlistedTransient
}
