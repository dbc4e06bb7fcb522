package rcmgr

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/stretchr/testify/require"
)

// readName is everything that the helpers say about a name.
type readName struct {
	System, Transient, Stream, Conn, Span bool
	Peer, Protocol                        string
}

func readAsOurs(name string) readName {
	return readName{IsSystemScope(name), IsTransientScope(name), IsStreamScope(name), IsConnScope(name),
		IsSpan(name), PeerStrInScopeName(name), ParseProtocolScopeName(name)}
}

func readAsUpstream(name string) readName {
	return readName{upstream.IsSystemScope(name), upstream.IsTransientScope(name),
		upstream.IsStreamScope(name), upstream.IsConnScope(name), upstream.IsSpan(name),
		upstream.PeerStrInScopeName(name), upstream.ParseProtocolScopeName(name)}
}

func TestNamesAreReadAsWhatTheyAre(t *testing.T) {
	for _, c := range []struct {
		name string
		want readName
	}{
		{"system", readName{System: true}},
		{"transient", readName{Transient: true}},
		{"allowlistedSystem", readName{}},
		{"allowlistedTransient", readName{}},
		{"system.span-1", readName{Span: true}},
		{"conn-17", readName{Conn: true}},
		{"conn-17.span-2", readName{Span: true}},
		{"stream-4", readName{Stream: true}},
		{"stream-4.span-1.span-10", readName{Span: true}},
		{"peer:" + peerA, readName{Peer: peerA}},
		{"peer:" + peerA + ".span-1", readName{Span: true}},
		{"service:ping", readName{}},
		{"service:ping.peer:" + peerA, readName{}},
		{"service:ping.span-3", readName{Span: true}},
		{"protocol:/ipfs/ping/1.0.0", readName{Protocol: "/ipfs/ping/1.0.0"}},
		{"protocol:/ipfs/ping/1.0.0.peer:" + peerA, readName{}},
		{"protocol:/ipfs/ping/1.0.0.span-1", readName{Span: true}},
		{"subnet:192.0.2.0/24", readName{}},
		{"", readName{}},
	} {
		require.Equal(t, c.want, readAsOurs(c.name), c.name)
		require.Equal(t, c.want, readAsUpstream(c.name), c.name)
	}
}

func TestProtocolsThatLookLikeSpansOrPeersAreReadRight(t *testing.T) {
	for name, want := range map[string]readName{
		"protocol:/my.span-app":                        {Protocol: "/my.span-app"},
		"protocol:/my.span-app.span-2":                 {Span: true},
		"protocol:/my.span-app.peer:" + peerA:          {},
		"protocol:/peer:to-peer":                       {Protocol: "/peer:to-peer"},
		"protocol:/a.peer:to-peer":                     {Protocol: "/a.peer:to-peer"},
		"protocol:/a.peer:to-peer.peer:" + peerA:       {},
		"protocol:peer:" + peerA + "/chat":             {Protocol: "peer:" + peerA + "/chat"},
		"protocol:a:b":                                 {Protocol: "a:b"},
		"service:my.span-app":                          {},
		"service:my.span-":                             {},
		"protocol:/what a string cannot tell.span-1":   {Span: true},
		"protocol:/what a string cannot tell.peer:b58": {},
	} {
		require.Equal(t, want, readAsOurs(name), name)
	}
}

// Every name that a scope can have, of services and protocols whose own names
// do not look like something else: upstream and we agree, and we are right.
func TestNamesOfAllKindsAreReadAsByUpstream(t *testing.T) {
	rng := testRandom(t)
	const letters = "abcXYZ019/.:-_ \xff世"
	word := func() string {
		b := make([]byte, 1+rng.IntN(12))
		for i := range b {
			b[i] = letters[rng.IntN(len(letters))]
		}
		return "/" + string(b)
	}
	for range 20_000 {
		id := make([]byte, rng.IntN(40))
		for i := range id {
			id[i] = byte(rng.Uint32())
		}
		n := scopeName{kind: Kind(rng.IntN(int(KindSubnet))), num: rng.Int64N(1 << 40), peer: peer.ID(id)}
		switch n.kind {
		case KindService, KindServicePeer, KindProtocol, KindProtocolPeer:
			n.text, n.num = word(), 0
		case KindConn, KindStream:
			n.num++
		}
		spans := rng.IntN(3)
		for range spans {
			n = spanBelow(n, 1+rng.Uint32N(200))
		}
		name := n.String()
		want := readName{Span: spans > 0}
		if spans == 0 {
			want.System, want.Transient = n.kind == KindSystem, n.kind == KindTransient
			want.Conn, want.Stream = n.kind == KindConn, n.kind == KindStream
			if n.kind == KindPeer {
				want.Peer = n.peer.String()
			}
			if n.kind == KindProtocol {
				want.Protocol = n.text
			}
		}
		require.Equal(t, want, readAsOurs(name), fmt.Sprintf("%q", name))
		require.Equal(t, want, readAsUpstream(name), fmt.Sprintf("%q", name))
	}
}
