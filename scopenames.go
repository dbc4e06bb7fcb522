package rcmgr

// Reading names of scopes in traces, logs and errors. These functions are for programs that
// have only the names. Nothing in this package parses a name.
//
// A service or protocol may have any name, so two kinds of names are ambiguous. A protocol
// whose name ends in ".span-" and a number is taken for a span. A protocol whose name ends in
// ".peer:" and characters of base58 is taken for a peer's part. TraceEvt.Scope and
// LimitError.Kind are not ambiguous.

import "strings"

// IsSystemScope reports whether a name is that of the system scope.
func IsSystemScope(name string) bool { return name == kindNames[KindSystem] }

// IsTransientScope reports whether a name is that of the transient scope.
func IsTransientScope(name string) bool { return name == kindNames[KindTransient] }

// IsStreamScope reports whether a name is that of a stream, such as "stream-4". It returns
// false for a span of a stream.
func IsStreamScope(name string) bool {
	return strings.HasPrefix(name, "stream-") && !IsSpan(name)
}

// IsConnScope reports whether a name is that of a connection, such as "conn-17". It returns
// false for a span of a connection.
func IsConnScope(name string) bool {
	return strings.HasPrefix(name, "conn-") && !IsSpan(name)
}

// IsSpan reports whether a name is that of a span, such as "stream-4.span-1": it ends in
// ".span-" and a number. It therefore also returns true for a protocol with a name such as
// "/my.span-1".
func IsSpan(name string) bool {
	const mark = ".span-"
	i := strings.LastIndex(name, mark)
	return i >= 0 && len(name) > i+len(mark) && consistsOf(name[i+len(mark):], "0123456789")
}

// PeerStrInScopeName returns the ID of the peer, as text, if name is that of a peer's scope,
// such as "peer:12D3Koo…". Otherwise it returns the empty string.
func PeerStrInScopeName(name string) string {
	id, ok := strings.CutPrefix(name, "peer:")
	if !ok || IsSpan(name) {
		return ""
	}
	return id
}

// ParseProtocolScopeName returns the protocol, if name is that of a protocol's scope, such as
// "protocol:/ipfs/ping/1.0.0". Otherwise it returns the empty string, as it does for one
// peer's part of a protocol. A protocol with a name such as "/a.peer:b", which ends in
// characters of base58, is taken for a peer's part.
func ParseProtocolScopeName(name string) string {
	proto, ok := strings.CutPrefix(name, "protocol:")
	if !ok || IsSpan(name) || isPeersPart(name) {
		return ""
	}
	return proto
}

// isPeersPart reports whether a name ends in ".peer:" and a peer's ID.
func isPeersPart(name string) bool {
	const mark = ".peer:"
	i := strings.LastIndex(name, mark)
	const base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	return i >= 0 && consistsOf(name[i+len(mark):], base58)
}

// consistsOf reports whether s has only characters of an alphabet.
func consistsOf(s, alphabet string) bool {
	return strings.Trim(s, alphabet) == ""
}
