package rcmgr

// Reading the names of scopes as they stand in traces, logs and errors. Only
// programs that are handed such names need this: nothing in this package ever
// parses one.

import "strings"

// The functions of this file class the names that scopes of this package have.
// A service or a protocol may be called anything, so two names can be read in
// two ways: a protocol whose name ends like a span, ".span-" and a number, is
// taken for a span, and one whose name ends like a peer's part, ".peer:" and
// letters and digits of base58, for a peer's part. TraceEvt.Scope and
// LimitError.Kind tell those apart, too.

// IsSystemScope tells whether a name is that of the system scope.
func IsSystemScope(name string) bool { return name == kindNames[KindSystem] }

// IsTransientScope tells whether a name is that of the transient scope.
func IsTransientScope(name string) bool { return name == kindNames[KindTransient] }

// IsStreamScope tells whether a name is that of a stream, such as "stream-4".
// A span of a stream is none.
func IsStreamScope(name string) bool {
	return strings.HasPrefix(name, "stream-") && !IsSpan(name)
}

// IsConnScope tells whether a name is that of a connection, such as "conn-17".
// A span of a connection is none.
func IsConnScope(name string) bool {
	return strings.HasPrefix(name, "conn-") && !IsSpan(name)
}

// IsSpan tells whether a name is that of a span, such as "stream-4.span-1": it
// ends in ".span-" and a number. A protocol called "/my.span-app" is none, one
// called "/my.span-1" passes for one.
func IsSpan(name string) bool {
	const mark = ".span-"
	i := strings.LastIndex(name, mark)
	return i >= 0 && len(name) > i+len(mark) && consistsOf(name[i+len(mark):], "0123456789")
}

// PeerStrInScopeName gives the peer's ID, as text, from the name of a peer's
// scope, such as "peer:12D3Koo…"; "" from every other name.
func PeerStrInScopeName(name string) string {
	id, ok := strings.CutPrefix(name, "peer:")
	if !ok || IsSpan(name) {
		return ""
	}
	return id
}

// ParseProtocolScopeName gives the protocol from the name of a protocol's
// scope, such as "protocol:/ipfs/ping/1.0.0"; "" from every other name, that of
// one peer's part of a protocol included. A protocol called "/a.peer:to-peer"
// is given, one called "/a.peer:b" passes for a peer's part.
func ParseProtocolScopeName(name string) string {
	proto, ok := strings.CutPrefix(name, "protocol:")
	if !ok || IsSpan(name) || isPeersPart(name) {
		return ""
	}
	return proto
}

// isPeersPart tells whether a name ends in a peer's ID.
func isPeersPart(name string) bool {
	const mark = ".peer:"
	i := strings.LastIndex(name, mark)
	return i >= 0 && consistsOf(name[i+len(mark):], "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")
}

// consistsOf tells whether s has only letters of an alphabet.
func consistsOf(s, alphabet string) bool {
	return strings.Trim(s, alphabet) == ""
}
