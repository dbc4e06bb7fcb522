package rcmgr

// The kinds of scopes and gates, and their names.

import (
	"fmt"
	"slices"
	"strings"
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

// nameOf returns the name of a value, by a list of the names of all.
func nameOf[T ~uint8](v T, names []string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "unknown"
}

// unmarshalName is the inverse of nameOf. what says in an error what has these names.
func unmarshalName[T ~uint8](to *T, text []byte, names []string, what string) error {
	i := slices.Index(names, string(text))
	if i < 0 {
		return fmt.Errorf("no %s: %q, expected one of %s", what, text, strings.Join(names, ", "))
	}
	*to = T(i)
	return nil
}
