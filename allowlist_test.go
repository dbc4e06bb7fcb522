package rcmgr

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

func requireEmptyAllowlist(t testing.TB, al *Allowlist) {
	t.Helper()
	v := al.view.Load()
	require.Zero(t, v.open.Size()+v.named.Size()+v.peers.Size())
	require.Nil(t, v.relays)
}

func TestAllowlistEntriesAdmitWhatTheyName(t *testing.T) {
	a, b := mustPeer(t, peerA), mustPeer(t, peerB)
	type want struct {
		ma               string
		open, named      bool
		allowsA, allowsB bool
		bareA, bareB     bool
	}
	const (
		in      = "/ip4/192.0.2.1/tcp/4001"
		mapped  = "/ip6/::ffff:192.0.2.1/tcp/4001"
		nat     = "/ip6/64:ff9b::c000:201/tcp/4001"
		out     = "/ip4/198.51.100.1/tcp/4001"
		relayed = "/ip4/192.0.2.1/tcp/4001/p2p/" + peerB + "/p2p-circuit"
	)
	for _, c := range []struct {
		entry string
		want  []want
	}{
		{"/ip4/192.0.2.1", []want{
			{ma: in, open: true, allowsA: true, allowsB: true},
			{ma: mapped, open: true, allowsA: true, allowsB: true},
			{ma: nat, open: true, allowsA: true, allowsB: true},
			{ma: out}, {ma: relayed}, {ma: onion},
		}},
		{"/ip4/192.0.2.0/ipcidr/24", []want{{ma: in, open: true, allowsA: true, allowsB: true}, {ma: out}}},
		{"/ip4/192.0.2.1/ipcidr/0", []want{{ma: out, open: true, allowsA: true, allowsB: true}, {ma: onion}}},
		{"/ip6/::ffff:192.0.2.0/ipcidr/120", []want{{ma: in, open: true, allowsA: true, allowsB: true}, {ma: out}}},
		{"/ip6/64:ff9b::c000:201", []want{{ma: in, open: true, allowsA: true, allowsB: true}, {ma: out}}},
		{"/ip4/192.0.2.1/tcp/4001/p2p/" + peerA, []want{
			{ma: in, named: true, allowsA: true}, {ma: nat, named: true, allowsA: true}, {ma: out}, {ma: relayed},
		}},
		{"/ip4/192.0.2.0/ipcidr/24/p2p/" + peerA, []want{{ma: in, named: true, allowsA: true}, {ma: out}}},
		{"/p2p/" + peerA, []want{
			{ma: in, allowsA: true, bareA: true}, {ma: relayed, allowsA: true, bareA: true}, {ma: onion, allowsA: true, bareA: true},
		}},
		{"/ip6zone/eth0/ip6/fe80::1", []want{{ma: "/ip6/fe80::1/tcp/1", open: true, allowsA: true, allowsB: true}}},
	} {
		t.Run(c.entry, func(t *testing.T) {
			var al Allowlist
			require.NoError(t, al.Add(mustMA(t, c.entry)))
			for _, w := range c.want {
				ma := mustMA(t, w.ma)
				require.Equal(t, trustOf(w.open, w.named), al.trustIn(endpointOf(ma)), w.ma)
				require.Equal(t, w.open || w.named, al.Allowed(ma), w.ma)
				require.Equal(t, w.allowsA, al.AllowedPeerAndMultiaddr(a, ma), w.ma)
				require.Equal(t, w.allowsB, al.AllowedPeerAndMultiaddr(b, ma), w.ma)
				require.Equal(t, []bool{w.bareA, w.bareB}, []bool{al.allowsPeer(a), al.allowsPeer(b)}, w.ma)
			}
			require.NoError(t, al.Remove(mustMA(t, c.entry)))
			requireEmptyAllowlist(t, &al)
		})
	}
}

func TestAllowlistRefusesEntriesThatCannotMeanAnything(t *testing.T) {
	for entry, want := range map[string]string{
		"":                                 "expected an IP address",
		"/memory/1":                        `"/memory/1": expected an IP address`,
		"/tcp/4001":                        "expected an IP address",
		"/dns4/example.com/p2p/" + peerA:   "expected an IP address",
		"/ip4/192.0.2.0/ipcidr/33":         "ipcidr length is 33, expected 0 to 32",
		"/ip6/2001:db8::/ipcidr/129":       "ipcidr length is 129, expected 0 to 128",
		"/ip4/192.0.2.0/ipcidr/8/ipcidr/9": "two ipcidr lengths",
		"/ip4/192.0.2.1/ip4/192.0.2.2":     "two IP addresses",
		"/p2p/" + peerA + "/p2p/" + peerB:  "two peers",
		"/ip4/192.0.2.1/p2p/" + peerA + "/p2p-circuit/p2p/" + peerB: "relayed",
	} {
		al := Allowlist{strict: true}
		var ma multiaddr.Multiaddr
		if entry != "" {
			ma = mustMA(t, entry)
		}
		require.ErrorContains(t, al.Add(ma), want, entry)
		require.ErrorContains(t, al.Remove(ma), want, entry)
		require.Nil(t, al.view.Load(), "a bad entry must change nothing")
	}
}

func TestAllowlistZeroValueAllowsNobody(t *testing.T) {
	var al Allowlist
	ma := mustMA(t, "/ip4/192.0.2.1/tcp/1")
	require.False(t, al.Allowed(ma))
	require.False(t, al.Allowed(nil))
	require.False(t, al.AllowedPeerAndMultiaddr(mustPeer(t, peerA), ma))
	require.False(t, al.allowsPeer(mustPeer(t, peerA)))
	require.NoError(t, al.Remove(ma))
	requireEmptyAllowlist(t, &al)
}

// listedEntry is an entry of the model: a plain list, searched from end to end.
type listedEntry struct {
	ma      multiaddr.Multiaddr
	peer    peer.ID
	network netip.Prefix
}

func randomEntry(t testing.TB, rng *rand.Rand, peers []peer.ID) listedEntry {
	var e listedEntry
	s := ""
	if kind := rng.IntN(5); kind > 0 {
		addr := randomAddr(rng)
		bits := rng.IntN(addr.BitLen() + 1)
		e.network = netip.PrefixFrom(addr, bits).Masked()
		s = fmt.Sprintf("/ip4/%s/ipcidr/%d", addr, bits)
		if addr.Is6() {
			s = fmt.Sprintf("/ip6/%s/ipcidr/%d", addr, bits)
		}
		if kind > 2 {
			e.peer = peers[rng.IntN(len(peers))]
		}
	} else {
		e.peer = peers[rng.IntN(len(peers))]
	}
	if e.peer != "" {
		s += "/p2p/" + e.peer.String()
	}
	e.ma = mustMA(t, s)
	return e
}

func randomPeers(rng *rand.Rand, n int) []peer.ID {
	peers := make([]peer.ID, n)
	for i := range peers {
		b := make([]byte, 34)
		b[0], b[1] = 0x12, 32 // a SHA-256 multihash
		for j := 2; j < len(b); j++ {
			b[j] = byte(rng.Uint32())
		}
		peers[i] = peer.ID(b)
	}
	return peers
}

func TestAllowlistDecidesLikeAPlainList(t *testing.T) {
	rng := testRandom(t)
	peers := randomPeers(rng, 6)
	var al Allowlist
	var list []listedEntry
	for step := range 4000 {
		if e := randomEntry(t, rng, peers); rng.IntN(2) == 0 && len(list) < 12 {
			require.NoError(t, al.Add(e.ma))
			list = append(list, e)
		} else {
			if len(list) > 0 && rng.IntN(4) > 0 {
				e = list[rng.IntN(len(list))]
			}
			require.NoError(t, al.Remove(e.ma))
			if i := slices.IndexFunc(list, func(l listedEntry) bool { return l.peer == e.peer && l.network == e.network }); i >= 0 {
				list = slices.Delete(list, i, i+1)
			}
		}
		ep := endpoint{addr: randomAddr(rng)}
		if rng.IntN(8) == 0 {
			ep = endpoint{relayed: true}
		}
		p := peers[rng.IntN(len(peers))]
		var open, named, bare, at bool
		for _, e := range list {
			covers := ep.addr.IsValid() && e.network.IsValid() && e.network.Contains(ep.addr)
			open = open || covers && e.peer == ""
			named = named || covers && e.peer != ""
			at = at || covers && e.peer == p
			bare = bare || !e.network.IsValid() && e.peer == p
		}
		require.Equal(t, trustOf(open, named), al.trustIn(ep), "step %d: %v %v", step, ep, list)
		require.Equal(t, []bool{open || at || bare, bare},
			[]bool{al.allows(p, ep.addr), al.allowsPeer(p)}, "step %d: %v %s %v", step, ep, p, list)
	}
	for _, e := range list {
		require.NoError(t, al.Remove(e.ma))
	}
	requireEmptyAllowlist(t, &al)
}

func TestAllowlistEntriesStayWhileOthersComeAndGo(t *testing.T) {
	var al Allowlist
	p := mustPeer(t, peerA)
	friend := mustMA(t, "/ip4/192.0.2.1/p2p/"+peerA)
	require.NoError(t, al.Add(friend))
	stop := make(chan struct{})
	seed := testSeed(t)
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if al.trustIn(endpointOf(friend)) == noTrust || !al.AllowedPeerAndMultiaddr(p, friend) {
					t.Error("an entry that stays was not seen")
					return
				}
			}
		})
	}
	for w := range 2 {
		writers.Go(func() {
			rng := randomFrom(seed, uint64(w))
			peers := randomPeers(rng, 4)
			for range 1000 {
				e := randomEntry(t, rng, peers)
				if al.Add(e.ma) != nil || al.Remove(e.ma) != nil {
					t.Error("an entry was refused")
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	require.NoError(t, al.Remove(friend))
	requireEmptyAllowlist(t, &al)
}

func TestAllowlistLookupsAllocateNothing(t *testing.T) {
	al := allowlistOf(10)
	ep := endpoint{addr: netip.MustParseAddr("10.0.0.1")}
	p := mustPeer(t, peerA)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		al.trustIn(ep)
		al.allows(p, netip.Addr{})
		al.allowsPeer(p)
	}))
}

// allowlistOf makes a list of n entries of all kinds.
func allowlistOf(n int) *Allowlist {
	rng := randomFrom(uint64(n), 2)
	var entries []allowlistEntry
	for i, p := range randomPeers(rng, n) {
		e := allowlistEntry{peer: p, network: netip.PrefixFrom(someAddr(rng), 24+rng.IntN(9)).Masked()}
		switch i % 3 {
		case 0:
			e.network = netip.Prefix{}
		case 1:
			e.peer = ""
		}
		entries = append(entries, e)
	}
	return newAllowlist(entries)
}

// A list that is given at once is as one that was put together one by one.
func TestAnAllowlistGivenAtOnceIsAsOneByOne(t *testing.T) {
	rng := testRandom(t)
	peers := randomPeers(rng, 4)
	for range 100 {
		var entries []allowlistEntry
		one := new(Allowlist)
		for range rng.IntN(30) {
			e, err := readAllowlistEntry(randomEntry(t, rng, peers).ma)
			require.NoError(t, err)
			entries = append(entries, e)
			one.put(e, 1)
		}
		all := newAllowlist(entries)
		for len(entries) > 0 { // and stays so, back to nothing
			a, b := all.view.Load(), one.view.Load()
			require.True(t, a.open.Equal(b.open) && a.named.Equal(b.named))
			require.Equal(t, b.peers.Size(), a.peers.Size())
			for key, of := range b.peers.All() {
				same, _ := a.peers.Get(key)
				require.Equal(t, of.bare, same.bare)
				require.True(t, of.at == same.at || of.at.Equal(same.at))
			}
			last := entries[len(entries)-1]
			entries = entries[:len(entries)-1]
			all.put(last, -1)
			one.put(last, -1)
		}
		if all.view.Load() != nil { // there was an entry
			requireEmptyAllowlist(t, all)
		}
	}
}

// someAddr returns an address in the part of the Internet that allowlistOf is
// about.
func someAddr(rng *rand.Rand) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(11 + rng.IntN(100)), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
}

// managerWith makes a manager with a list, whose gates ask everybody that the
// list does not know and refuse no connection.
func managerWith(t testing.TB, al *Allowlist) *Manager {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.Gates = &GateLimits{
			Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 1000}},
			Rate:    RateLimits{IPv4: map[int]ConnRate{32: {PerSecond: 1e6, Burst: 1 << 29}}},
		}
	}))
	m.allowlist.view.Store(al.view.Load())
	return m
}

// connectionsFrom returns the whole path of the i-th connection.
func connectionsFrom(t testing.TB, m *Manager, eps []endpoint, peers []peer.ID) (round func(i int)) {
	var fars []multiaddr.Multiaddr
	for _, ep := range eps {
		fars = append(fars, mustMA(t, fmt.Sprintf("/ip4/%s/tcp/1", ep.addr)))
	}
	return func(i int) {
		c, err := m.OpenConnection(network.DirInbound, true, fars[i%len(fars)])
		if err != nil || c.SetPeer(peers[i%len(peers)]) != nil {
			t.Fatal("refused", err)
		}
		c.Done()
	}
}

// A path of a connection past a long list takes nothing more than past a short
// one. BenchmarkAllowlist measures how long it takes.
func TestALongAllowlistAllocatesNoMoreThanAShortOne(t *testing.T) {
	rng := randomFrom(1, 4)
	var eps []endpoint
	for range 64 {
		eps = append(eps, endpoint{addr: someAddr(rng)})
	}
	peers := randomPeers(rng, 64)
	for _, n := range []int{10, 100_000} {
		round := connectionsFrom(t, managerWith(t, allowlistOf(n)), eps, peers)
		i := 0
		once := func() { round(i); i++ }
		for range 1024 {
			once() // all peers and shares are there
		}
		require.LessOrEqual(t, testing.AllocsPerRun(2000, once), 2.0, "%d entries", n)
	}
}

func BenchmarkAllowlist(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		al := allowlistOf(n)
		rng := randomFrom(1, 3)
		eps := make([]endpoint, 1024)
		for i := range eps {
			eps[i].addr = someAddr(rng)
		}
		peers := randomPeers(rng, 1024)
		b.Run(fmt.Sprintf("trustIn/entries=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				al.trustIn(eps[i%len(eps)])
			}
		})
		b.Run(fmt.Sprintf("connection/entries=%d", n), func(b *testing.B) {
			round := connectionsFrom(b, managerWith(b, al), eps, peers)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				round(i)
			}
		})
		b.Run(fmt.Sprintf("allows/entries=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				al.allows(peers[i%len(peers)], eps[i%len(eps)].addr)
			}
		})
	}
}

// trustOf returns how far a list trusts an address that entries cover: all peers there, or
// one that they name.
func trustOf(open, named bool) trust {
	switch {
	case open:
		return trustsAddr
	case named:
		return trustsPeer
	}
	return noTrust
}
