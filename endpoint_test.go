package rcmgr

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/subnets"
)

func TestEndpointIsTheFarEndsOwnAddress(t *testing.T) {
	const certhash = "/certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g"
	for _, c := range []struct {
		name, ma, addr string
		relayed        bool
	}{ // addr of what is relayed is its relay's
		{"ip4 tcp", "/ip4/192.0.2.1/tcp/4001", "192.0.2.1", false},
		{"ip4 alone", "/ip4/192.0.2.1", "192.0.2.1", false},
		{"ip4 with peer", "/ip4/192.0.2.1/tcp/4001/p2p/" + peerA, "192.0.2.1", false},
		{"ip6 tcp", "/ip6/2001:db8::1/tcp/4001", "2001:db8::1", false},
		{"ip6 zone", "/ip6zone/eth0/ip6/fe80::1/tcp/4001", "fe80::1", false},
		{"v4-mapped", "/ip6/::ffff:192.0.2.1/tcp/4001", "192.0.2.1", false},
		{"v4-mapped loopback", "/ip6/::ffff:127.0.0.1/tcp/4001", "127.0.0.1", false},
		{"NAT64", "/ip6/64:ff9b::c000:201/tcp/4001", "192.0.2.1", false},
		{"beside NAT64", "/ip6/64:ff9b:1::c000:201/tcp/4001", "64:ff9b:1::c000:201", false},
		{"quic", "/ip4/192.0.2.1/udp/4001/quic-v1", "192.0.2.1", false},
		{"webtransport", "/ip6/2001:db8::1/udp/4001/quic-v1/webtransport" + certhash, "2001:db8::1", false},
		{"webrtc", "/ip4/192.0.2.1/udp/4001/webrtc-direct" + certhash, "192.0.2.1", false},
		{"ws", "/ip4/192.0.2.1/tcp/443/tls/sni/example.com/ws", "192.0.2.1", false},
		{"dns", "/dns4/example.com/tcp/4001", "", false},
		{"dnsaddr", "/dnsaddr/example.com", "", false},
		{"address behind dns", "/dns4/example.com/ip4/192.0.2.1", "", false},
		{"onion3", onion, "", false},
		{"memory", "/memory/17", "", false},
		{"unix", "/unix/tmp/socket", "", false},
		{"peer only", "/p2p/" + peerA, "", false},
		{"zone only", "/ip6zone/eth0", "", false},
		{"circuit by address", "/ip4/192.0.2.1/tcp/4001/p2p/" + peerA + "/p2p-circuit/p2p/" + peerB, "192.0.2.1", true},
		{"circuit by peer", "/p2p/" + peerA + "/p2p-circuit", "", true},
		{"circuit alone", "/p2p-circuit", "", true},
		{"webrtc through circuit", "/ip4/192.0.2.1/tcp/4001/p2p/" + peerA + "/p2p-circuit/webrtc", "192.0.2.1", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := endpointOf(mustMA(t, c.ma))
			want := endpoint{relayed: c.relayed}
			if c.relayed && c.addr != "" {
				want.via = netip.MustParseAddr(c.addr)
			} else if c.addr != "" {
				want.addr = netip.MustParseAddr(c.addr)
			}
			require.Equal(t, want, got)
		})
	}
}

func TestEndpointOfNothingHasNoAddress(t *testing.T) {
	for _, ma := range []multiaddr.Multiaddr{nil, {}, {multiaddr.Component{}}} {
		require.Equal(t, endpoint{}, endpointOf(ma))
	}
}

func TestEndpointAllocatesNothing(t *testing.T) {
	for _, s := range []string{"/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::1/udp/4001/quic-v1", "/ip6/64:ff9b::1/tcp/1"} {
		ma := mustMA(t, s)
		require.Zero(t, testing.AllocsPerRun(100, func() { endpointOf(ma) }), s)
	}
}

// FuzzEndpoint takes any bytes through all that decides before a scope is
// asked, and back: nothing may panic, and nothing may be left.
func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{
		"/ip4/192.0.2.1/tcp/4001", "/ip6zone/eth0/ip6/fe80::1/tcp/1", "/ip6/::ffff:192.0.2.1/udp/1/quic-v1",
		"/ip6/64:ff9b::1/tcp/1", "/ip4/192.0.2.0/ipcidr/24", "/ip6/2001:db8::/ipcidr/200/p2p/" + peerA,
		"/p2p/" + peerA, "/ip4/192.0.2.1/tcp/1/p2p/" + peerA + "/p2p-circuit", onion, "/memory/1", "/dns/example.com", "",
	} {
		f.Add([]byte(s))
		if ma, err := multiaddr.NewMultiaddr(s); err == nil {
			f.Add(ma.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ma, err := multiaddr.NewMultiaddrBytes(b)
		if err != nil {
			ma, _ = multiaddr.NewMultiaddr(string(b)) // nil goes through too
		}
		ep := endpointOf(ma)
		if ep.addr.IsValid() {
			require.False(t, ep.relayed || ep.addr.Is4In6() || ep.addr.Zone() != "" || netip.MustParsePrefix("64:ff9b::/96").Contains(ep.addr))
			require.False(t, strings.Contains(ma.String(), "/p2p-circuit"))
		}

		p := mustPeer(t, peerB)
		for _, strict := range []bool{true, false} {
			al := Allowlist{strict: strict}
			if al.Add(ma) != nil {
				continue
			}
			if strict {
				require.Equal(t, ep.addr.IsValid(), al.Allowed(ma))
			}
			al.AllowedPeerAndMultiaddr(p, ma)
			require.NoError(t, al.Remove(ma))
			requireEmptyAllowlist(t, &al)
		}

		kept, err := newSubnets(defaultSubnetConfig(), defaultRateConfig(), subnets.Config{})
		require.NoError(t, err)
		var pass subnets.Pass
		_, ok := kept.Enter(ep.addr, subnets.Inbound, &pass)
		require.True(t, ok)
		require.NoError(t, kept.Check())
		pass.Undo()
		require.Zero(t, countEntries(t, kept))
		kept.Forget(time.Hour)
		require.Zero(t, bucketEntries(t, kept))
	})
}
