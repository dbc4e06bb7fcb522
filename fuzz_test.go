package rcmgr

// Fuzz targets for what comes from outside: sequences of calls, override files,
// allowlists, names that end up in a trace. Each has something to compare with,
// so that it finds more than crashes. (Others stand with their subject:
// FuzzLimitsJSON, FuzzEndpoint, FuzzGate, FuzzDifferential.)

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/strictjson"
)

// byteSource gives random numbers that the fuzzer chooses, a byte each. When
// it has run out, others follow.
type byteSource struct {
	bytes []byte
	then  *rand.Rand
}

func (s *byteSource) Uint64() uint64 {
	if len(s.bytes) == 0 {
		return s.then.Uint64()
	}
	b := s.bytes[0]
	s.bytes = s.bytes[1:]
	return uint64(b) * 0x0101010101010101
}

// FuzzOperations asks the engine and the model (model_test.go) the same
// questions, which the input chooses, and checks the invariants after each.
func FuzzOperations(f *testing.F) {
	r := randomFrom(2, 2)
	for i := range 40 {
		data := make([]byte, 100+10*i)
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		f.Add(byte(i), data)
	}
	regimes := append(slices.Clone(regimes), mixed)
	f.Fuzz(func(t *testing.T, cell byte, data []byte) {
		data = data[:min(len(data), 512)]
		r := rand.New(&byteSource{data, randomFrom(1, uint64(len(data)))})
		stripes := []int{1, 2, 8, 64}[cell&3]
		regime := regimes[int(cell>>2&7)%len(regimes)]
		newDuel(t, r, stripes, regime, Admission(cell>>5&1), cell>>6&1 == 0).run(len(data) / 4)
	})
}

// FuzzOverrides lays an override file over the defaults and makes a manager of
// it: each limit in force is the file's, or where that says nothing the
// default's, and the limits read back make the same again.
func FuzzOverrides(f *testing.F) {
	real, err := os.ReadFile("testdata/overrides.json")
	require.NoError(f, err)
	f.Add(real)
	alone, err := os.ReadFile("testdata/transient-alone.json")
	require.NoError(f, err)
	f.Add(alone)
	f.Add([]byte(`{"Transient":{"Conns":99999,"Memory":"unlimited"}}`))
	f.Add([]byte(`{"System":{"Conns":-3},"Extra":1} and more`))
	f.Add([]byte(`{"System":{"Memory":"default","Conns":"unlimited"},"Stream":{"Memory":1},"Conn":{"FD":0}}`))
	f.Add([]byte(`{"Service":{"s":{"Streams":3}},"ServicePeer":{"s":{"Streams":2}},"ProtocolPeerDefault":{"StreamsInbound":"blockAll"}}`))
	defaults := DefaultLimits.Scale(1<<30, 1024)
	f.Fuzz(func(t *testing.T, text []byte) {
		limiter, err := NewLimiterFromJSON(bytes.NewReader(text), defaults)
		if err != nil {
			require.ErrorContains(t, err, "limits: line ")
			return
		}
		// What comes after the configuration is passed over, as go-libp2p's manager does.
		var file PartialLimitConfig
		text = bytes.TrimPrefix(text, []byte(strictjson.ByteOrderMark))
		require.NoError(t, json.NewDecoder(bytes.NewReader(text)).Decode(&file))
		m, err := New(limiter, WithStripes(2), WithRefusalLog(0))
		require.NoError(t, err)
		defer m.Close()

		// In force, a limit below zero is 0, which admits as little.
		inForce := func(l BaseLimit) BaseLimit {
			a := limitsOf(&l)
			for d := range a {
				a[d] = max(0, a[d])
			}
			return a.baseLimit()
		}
		want := func(over ResourceLimits, under BaseLimit) BaseLimit { return inForce(over.Build(&under)) }
		in := m.Limits()
		require.Equal(t, want(file.System, defaults.limits.System), in.limits.System)
		require.Equal(t, want(file.Transient, defaults.limits.Transient), in.limits.Transient)
		require.Equal(t, want(file.PeerDefault, defaults.limits.PeerDefault), in.limits.PeerDefault)
		for name, over := range file.Protocol {
			under := want(file.ProtocolDefault, defaults.limits.ProtocolDefault)
			if named, ok := defaults.limits.Protocol[name]; ok {
				under = named
			}
			require.Equal(t, want(over, under), inForce(*limiter.GetProtocolLimits(name).(*BaseLimit)))
		}
		// Not by the strict reader: in a file that has all limits, all are written.
		var again ConcreteLimitConfig
		require.NoError(t, json.Unmarshal([]byte(toJSON(t, in)), &again))
		other, err := New(NewFixedLimiter(again), WithRefusalLog(0))
		require.NoError(t, err)
		defer other.Close()
		require.Equal(t, toJSON(t, in), toJSON(t, other.Limits()))

		// It decides, one way or the other, and keeps nothing.
		if c, err := m.OpenConnection(network.DirInbound, true, nil); err == nil {
			c.SetPeer(testPeers[0])
			c.Done()
		}
		for name := range file.Protocol {
			if s, err := m.OpenStream(testPeers[0], network.DirInbound); err == nil {
				s.SetProtocol(name)
				s.ReserveMemory(1, 255)
				s.Done()
			}
		}
		assertEmpty(t, m)
	})
}

// FuzzAllowlist holds the allowlist against a plain list of its entries.
func FuzzAllowlist(f *testing.F) {
	for _, entries := range []string{
		"/ip4/192.0.2.1", "/ip4/192.0.2.0/ipcidr/24\n/ip4/192.0.2.7/p2p/" + peerA, "/p2p/" + peerA + "\n/p2p/" + peerB,
		"/ip6/2001:db8::/ipcidr/32\n/ip6/::ffff:192.0.2.1\n/ip6/64:ff9b::1", "/ip4/0.0.0.0/ipcidr/0", "/ip4/1.2.3.4/tcp/1/p2p/" + peerB,
		"/dns/example.com", "/ip4/192.0.2.1/p2p/" + peerA + "/p2p-circuit", "\n", "/ip6zone/eth0/ip6/fe80::1",
	} {
		for _, far := range []string{"/ip4/192.0.2.7/tcp/1", "/ip6/2001:db8::1/udp/1/quic-v1", "/p2p/" + peerA + "/p2p-circuit", ""} {
			f.Add(entries, far)
		}
	}
	f.Fuzz(func(t *testing.T, text, far string) {
		lines := strings.Split(text, "\n")
		lines = lines[:min(len(lines), 50)]
		var list []allowlistEntry
		var al Allowlist
		for _, line := range lines {
			e, err := parseAllowlistText(line)
			if err != nil {
				require.ErrorContains(t, err, "allowlist entry ")
				continue
			}
			if err := al.put(e, 1); err != nil {
				require.ErrorIs(t, err, errNoResolver)
				continue
			}
			list = append(list, e)
		}
		ma, _ := multiaddr.NewMultiaddr(far) // nil goes through too
		ep := endpointOf(ma)
		covers := func(n netip.Prefix) bool { return ep.addr.IsValid() && n.IsValid() && n.Contains(ep.addr) }
		require.Equal(t, slices.ContainsFunc(list, func(e allowlistEntry) bool { return covers(e.network) }), al.Allowed(ma))
		for _, p := range []peer.ID{mustPeer(t, peerA), mustPeer(t, peerB)} {
			want := slices.ContainsFunc(list, func(e allowlistEntry) bool {
				return (e.peer == "" || e.peer == p) && (covers(e.network) || e.peer == p && !e.network.IsValid())
			})
			require.Equal(t, want, al.AllowedPeerAndMultiaddr(p, ma), "%v at %v", p, ma)
		}
		for _, e := range list {
			al.put(e, -1)
		}
		if len(list) > 0 {
			requireEmptyAllowlist(t, &al)
		}
		_, err := New(nil, WithAllowlistStrings(lines, false))
		require.Equal(t, len(list) == len(lines), err == nil, "%v", err)
	})
}

// FuzzAllowlistAnswer looks up a name on the allowlist, with answers as the fuzzer chooses. They
// list whole addresses only, no more than the bound, and no peer but the one that is meant.
func FuzzAllowlistAnswer(f *testing.F) {
	for _, entry := range []string{"/dns4/a", "/dns/a/tcp/1", "/dns6/a", "/dnsaddr/a", "/dnsaddr/a/p2p/" + peerA, "/dns4/a/p2p/" + peerB} {
		for _, answer := range []string{
			"/ip4/192.0.2.1", "/ip6/2001:db8::1/tcp/1\n/ip6/::ffff:192.0.2.1", "/ip4/192.0.2.1/p2p/" + peerA + "\n/ip4/192.0.2.2/p2p/" + peerB,
			"/ip4/0.0.0.0/ipcidr/0", "/dnsaddr/a", "/dns4/a/p2p/" + peerA + "\n/ip4/10.0.0.1", "/p2p/" + peerA, "/ip4/192.0.2.1/p2p/" + peerB + "/p2p-circuit", "\n",
		} {
			f.Add(entry, answer)
		}
	}
	f.Fuzz(func(t *testing.T, entry, text string) {
		e, err := parseAllowlistText(entry)
		if err != nil || e.name == "" {
			return
		}
		var answer []multiaddr.Multiaddr
		for line := range strings.SplitSeq(text, "\n") {
			ma, _ := multiaddr.NewMultiaddr(line) // nil goes through too
			answer = append(answer, ma)
		}
		h := newHostNames(sameAnswer(answer), time.Minute, new(Allowlist))
		l := &lookUp{names: h, ctx: t.Context()}
		l.ask(e, 0)
		l.finish()
		require.LessOrEqual(t, l.questions, mostQuestions)
		require.LessOrEqual(t, len(l.found), mostNameEntries)
		require.True(t, l.err != nil || l.failed != nil || len(l.found) > 0)
		for _, found := range l.found {
			require.True(t, found.network.IsSingleIP())
			require.True(t, e.peer == "" || found.peer == e.peer)
			again, err := parseAllowlistText(found.String())
			require.NoError(t, err)
			require.Equal(t, found, again)
		}
	})
}

// sameAnswer is a resolver with one answer for all names.
type sameAnswer []multiaddr.Multiaddr

func (a sameAnswer) Resolve(context.Context, multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error) {
	return a, nil
}

// FuzzTraceLine takes names that a stranger may choose into a trace: a line is
// JSON that says what the event says, whatever is in them.
func FuzzTraceLine(f *testing.F) {
	for _, name := range []string{"/ipfs/id/1.0.0", "", "<svc> & \"x\"\\", "a\nb\x00\x1f\x7f", "bad \xff\xfe", "süß\u2028", "<", ">", "&", "\"", "\\", "\x7f"} {
		for kind := range byte(numKinds) {
			f.Add(kind, name, int64(1)<<40, kind%2 == 0)
		}
	}
	limits := NewFixedLimiter(InfiniteLimits)
	f.Fuzz(func(t *testing.T, kind byte, name string, n int64, withLimit bool) {
		e := traceEvent{typ: TraceReserveMemoryEvt, at: n, delta: n, memory: -n, name: scopeName{
			kind: Kind(kind) % numKinds, text: name, peer: peer.ID(name), num: n,
		}}
		if withLimit {
			e.limit = &amounts{n, n, n, n, n, n, n, n}
		}
		line := newTraceFile(new(disk), limits).append(nil, &e)
		want, err := json.Marshal((&tracer{limits: limits}).export(&e))
		require.NoError(t, err)
		require.Equal(t, string(want), string(line))
		var read map[string]any
		require.NoError(t, json.Unmarshal(line, &read), "%s", line)
	})
}
