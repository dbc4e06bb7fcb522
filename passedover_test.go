package rcmgr

// What go-libp2p's own manager starts with must start this one, under the same names: odd files
// of limits, negative numbers, subnets that cannot be, entries of the allowlist through a relay,
// and a trace file that cannot be opened. Upstream's manager stands beside ours in each test.

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	xrate "github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// upstreamReads returns the limits that upstream's function reads, as JSON, and "" if it
// returns an error.
func upstreamReads(t *testing.T, text string) string {
	t.Helper()
	l, err := upstream.NewLimiterFromJSON(strings.NewReader(text), upstream.InfiniteLimits)
	if err != nil {
		return ""
	}
	cfg := l.(interface {
		ToPartialLimitConfig() upstream.PartialLimitConfig
	}).ToPartialLimitConfig()
	return toJSON(t, &cfg)
}

func TestAFileThatUpstreamReadsIsReadTheSameAndStartsAManager(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	const like = "; %s, as with go-libp2p's manager"
	id := mustPeer(t, peerText1)
	again := peer.ToCid(id).String()
	for text, want := range map[string][]string{
		`{"Sytem":{"Conns":1},"System":{"FD":2}}`: {"line 1, column 2: Sytem: unknown name, did you mean System? *" + fmt.Sprintf(like, "it is ignored")},
		`{"System":{"Conns":3,"Limit":[1,{}]}}`:   {"line 1, column 22: System.Limit: unknown name, *" + fmt.Sprintf(like, "it is ignored")},
		`{"System":{"Conns":-5}}`:                 {`line 1, column 20: System.Conns: -5 is negative: write "unlimited" for no limit, "blockAll" to admit nothing` + fmt.Sprintf(like, "it refuses every connection")},
		`{"Service":{"x":{"Memory":"-9"}}}`:       {`line 1, column 27: Service["x"].Memory: "-9" is negative: *` + fmt.Sprintf(like, "it refuses every reservation of memory")},
		`{"System":{"Conns":-1,"FD":-2}}`: {
			`line 1, column 20: System.Conns: -1 is negative: *` + fmt.Sprintf(like, `it reads as "unlimited"`),
			`line 1, column 28: System.FD: -2 is negative: *` + fmt.Sprintf(like, `it reads as "blockAll"`),
		},
		`{"ServiceDefault":{"FD":-7},"Service":{"x":{}}}`:        {`line 1, column 25: ServiceDefault.FD: -7 is negative: *` + fmt.Sprintf(like, "it refuses every connection that takes a file descriptor")},
		`{"System":{"Conns":1},"System":{"FD":2}}`:               {"line 1, column 23: System: is given twice" + fmt.Sprintf(like, "for each value in it, the last one holds")},
		`{"Service":{"a":{"Conns":1},"a":{"FD":2}}}`:             {`line 1, column 29: Service["a"]: is given twice` + fmt.Sprintf(like, "the last one holds")},
		`{"Peer":{"` + peerText1 + `":{},"` + again + `":{}}}`:   {`line 1, column 68: Peer["` + again + `"]: is given twice` + fmt.Sprintf(like, "the last one holds")},
		`{"System":null,"Service":null}`:                         {"line 1, column 11: System: expected an object in braces, found null" + fmt.Sprintf(like, "it reads as if it were left out"), "line 1, column 26: Service: *"},
		`{"System":{"Conns":null}}`:                              {"line 1, column 20: System.Conns: expected a whole number *" + fmt.Sprintf(like, `it reads as "blockAll"`)},
		`{"Service":{"":{"FD":3}}}`:                              {`line 1, column 13: Service[""]: expected a name: it is empty` + fmt.Sprintf(like, "nothing has this name")},
		"{\"Service\":{\"\xff\":{\"FD\":3}}}":                    {"line 1, column 14: top level: expected UTF-8, found the byte 0xff" + fmt.Sprintf(like, "such bytes read as U+FFFD")},
		`{"System":{"Conns":3}} x`:                               {"line 1, column 24: top level: invalid character 'x' after top-level value" + fmt.Sprintf(like, "the text after the first value is ignored")},
		"{}\n{\"System\":5}":                                     {"line 2, column 1: top level: *"},
		`null`:                                                   {"line 1, column 1: top level: expected an object in braces, found null" + fmt.Sprintf(like, "it reads as if it were left out")},
		`{"System":{"Conns":5},"Transient":{"Conns":6}}`:         {"*Transient.Conns is 6 (override), above System.Conns, which is 5 (override): it can never be reached*"},
		`{"System":{"Conns":5,"Memory":"67108864"},"Stream":{}}`: nil,
	} {
		upstreams := upstreamReads(t, text)
		require.NotEmpty(t, upstreams, text)
		l, err := NewLimiterFromJSON(strings.NewReader(text), InfiniteLimits)
		require.NoError(t, err, text)
		require.Equal(t, upstreams, toJSON(t, l), text)

		m, err := New(l)
		require.NoError(t, err, text)
		require.NoError(t, m.SetLimits(infiniteWithGates()), text)
		require.NoError(t, m.SetLimits(l), text)
		require.NoError(t, m.Close())
		logged := lines.take()
		if want != nil && strings.HasPrefix(want[0], "*") { // one of Warnings: at the start and at SetLimits
			require.Len(t, logged, 2, text)
			logged = logged[:1]
		}
		requireLines(t, want, logged, "ERROR msg=", "limits: ", text)

		_, err = New(l, WithStrictConfig())
		require.Equal(t, want != nil, err != nil, text)
		_, err = ReadLimits(strings.NewReader(text))
		require.Equal(t, want != nil, err != nil, text)
	}
}

// infiniteWithGates are other limits, without anything to log.
func infiniteWithGates() Limiter {
	return NewFixedLimiter(PartialLimitConfig{}.Build(InfiniteLimits))
}

// requireLines compares lines of the log with what they must be. A * stands for anything.
func requireLines(t *testing.T, want, logged []string, level, prefix, about string) {
	t.Helper()
	require.Len(t, logged, len(want), about)
	for i, line := range logged {
		line = strings.ReplaceAll(strings.ReplaceAll(strings.TrimPrefix(line, level), `\"`, `"`), `\\`, `\`)
		at := 0
		for j, part := range strings.Split(want[i], "*") {
			found := strings.Index(line[at:], part)
			require.GreaterOrEqual(t, found, 0, "%s: %q is not in %s", about, part, line)
			if j == 0 && part != "" {
				require.Equal(t, `"`+prefix, line[:found], about)
			}
			at += found + len(part)
		}
		if !strings.HasSuffix(want[i], "*") {
			require.Equal(t, `"`, line[at:], about)
		}
	}
}

// oddText returns a text that may have anything in it that upstream passes over, and some that
// it refuses.
func oddText(r *rand.Rand) string {
	number := func() string {
		return pick(r, []string{"1", "0", "7", "-1", "-2", "-5", "-0", "null", `"unlimited"`, `"blockAll"`, `"default"`, "99", `"8"`, "1.5", "true"})
	}
	var object func(depth int) string
	object = func(depth int) string {
		var members []string
		for range r.IntN(4) {
			if depth == 2 || r.IntN(12) == 0 {
				members = append(members, fmt.Sprintf("%q: %s", pick(r, []string{"Conns", "conns", "Streams", "FD", "Memory", "Memry", ""}), number()))
				continue
			}
			switch name := pick(r, []string{"System", "system", "Transient", "Service", "Peer", "ServiceDefault", "Sytem", "Conn"}); {
			case depth == 0 && name == "Peer":
				members = append(members, fmt.Sprintf("%q: {%q: %s}", name, pick(r, []string{peerText1, peerText2}), object(2)))
			case depth == 0 && name == "Service":
				members = append(members, fmt.Sprintf("%q: {%q: %s, %q: %s}", name, pick(r, []string{"a", "", "b"}), object(2), "a", object(2)))
			default:
				members = append(members, fmt.Sprintf("%q: %s", name, object(2)))
			}
		}
		if r.IntN(20) == 0 {
			return "null"
		}
		return "{" + strings.Join(members, ", ") + "}"
	}
	return object(0) + pick(r, []string{"", "", " ", " x", "{"})
}

func TestWhateverUpstreamReadsIsReadTheSame(t *testing.T) {
	logTo(t, io.Discard, slog.LevelError)
	r := testRandom(t)
	read := 0
	for range 20_000 {
		text := oddText(r)
		upstreams := upstreamReads(t, text)
		if upstreams == "" {
			continue
		}
		read++
		l, err := NewLimiterFromJSON(strings.NewReader(text), InfiniteLimits)
		require.NoError(t, err, text)
		require.Equal(t, upstreams, toJSON(t, l), text)
		_, strict := strictly(l, nil)
		_, errRead := ReadLimits(strings.NewReader(text))
		require.Equal(t, errRead != nil, strict != nil, "%s: %v, %v", text, errRead, strict)
	}
	require.Greater(t, read, 5000)
}

func TestWhatIsPassedOverInAFileIsLoggedInBoundedNumber(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, `,"name%d":5`, i)
	}
	_, err := NewLimiterFromJSON(strings.NewReader("{"+text.String()[1:]+"}"), InfiniteLimits)
	require.NoError(t, err)
	logged := lines.take()
	require.Len(t, logged, 21)
	require.Contains(t, logged[20], "number=980")
}

func TestCostsAndGatesInAFileAreReadStrictly(t *testing.T) {
	for _, text := range []string{
		`{"Gates":{"Subnet":{}}}`, `{"Gates":{},"Gates":{}}`, `{"Costs":{"Conn":-5}}`, `{"Costs":null}`, `{"Gates":{"Subnets":{"IPv4":{"32":-5}}}}`,
		`{"Gates":{"Subnets":{"Networks":{"10.0.0.1/8":5}}}}`, `{"Costs":{"Con":5},"Sytem":{}}`,
	} {
		_, err := NewLimiterFromJSON(strings.NewReader(text), InfiniteLimits)
		require.ErrorContains(t, err, "limits: line 1", text)
	}
}

// withNegative sets one limit of one scope to a negative number in both packages.
func withNegative(t *testing.T, scope, limit string) (PartialLimitConfig, upstream.PartialLimitConfig) {
	t.Helper()
	var ours PartialLimitConfig
	var theirs upstream.PartialLimitConfig
	text := []byte(fmt.Sprintf(`{%q: {%q: -5}}`, scope, limit))
	require.NoError(t, json.Unmarshal(text, &ours))
	require.NoError(t, json.Unmarshal(text, &theirs))
	return ours, theirs
}

func TestNegativeLimitsOfAProgramRefuseAsUpstreamsDoAndAreLoggedOnce(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	for _, scope := range singleNames {
		for d, limit := range limitNames {
			ours, theirs := withNegative(t, scope, limit)
			m, err := New(NewFixedLimiter(ours.Build(InfiniteLimits)), WithNewcomersQuarter(false), WithAdmission(AdmissionLinear), WithRefusalLog(0))
			require.NoError(t, err)
			name := scope + "." + limit
			requireLines(t, []string{name + ": is -5, it must not be negative; it refuses " + negativeRefuses[d] + ", as with go-libp2p's manager"},
				lines.take(), "ERROR msg=", "limits: ", name)
			require.NoError(t, m.Refresh())
			require.Empty(t, lines.take(), name)
			up, err := upstream.NewResourceManager(upstream.NewFixedLimiter(theirs.Build(upstream.InfiniteLimits)), upstream.WithMetricsDisabled())
			require.NoError(t, err)
			// Where upstream moves something into a scope, it also checks what does not move.
			quirk := (d == int(dimMemory) || d == int(dimConns) || d == int(dimStreams)) &&
				(strings.HasPrefix(scope, "Peer") || strings.HasPrefix(scope, "Protocol") || strings.HasPrefix(scope, "Service"))
			want, got := admitsWhat(up), admitsWhat(m)
			for what, admitted := range want {
				require.True(t, got[what] == admitted || quirk && got[what], "%s: %s: %v", name, what, got)
			}
			for what := range got {
				_, asked := want[what]
				require.True(t, asked || quirk, "%s: %s: %v", name, what, want)
			}
			up.Close()
			m.Close()

			_, err = New(NewFixedLimiter(ours.Build(InfiniteLimits)), WithStrictConfig())
			require.ErrorContains(t, err, name+": is -5, it must not be negative")
			lines.take()
		}
	}
}

// admitsWhat reports, for one of everything that can be asked, whether a manager admits it.
func admitsWhat(rm network.ResourceManager) map[string]bool {
	all := make(map[string]bool)
	note := func(what string, err error) bool {
		all[what] = err == nil
		return err == nil
	}
	far := multiaddr.StringCast("/ip4/192.0.2.1/tcp/1")
	for _, dir := range []network.Direction{network.DirInbound, network.DirOutbound} {
		c, err := rm.OpenConnection(dir, true, far)
		if at := fmt.Sprint("connection ", dir); note(at, err) {
			if note(at+": peer", c.SetPeer("x")) {
				note(at+": memory", c.ReserveMemory(1, network.ReservationPriorityAlways))
			}
			c.Done()
		}
		s, err := rm.OpenStream("x", dir)
		if at := fmt.Sprint("stream ", dir); note(at, err) {
			if note(at+": protocol", s.SetProtocol("/p")) && note(at+": service", s.SetService("s")) {
				note(at+": memory", s.ReserveMemory(1, network.ReservationPriorityAlways))
			}
			s.Done()
		}
	}
	return all
}

// oddLimiter has a negative limit for one peer and one protocol, and for the system.
type oddLimiter struct{ Limiter }

func (l oddLimiter) GetSystemLimits() Limit { return &BaseLimit{Conns: -3, ConnsInbound: 5} }

func (l oddLimiter) GetPeerLimits(peer.ID) Limit {
	limit := unlimitedBase
	limit.StreamsInbound = -4
	return &limit
}

func (l oddLimiter) GetProtocolLimits(protocol.ID) Limit { return &BaseLimit{Memory: -6} }

func TestNegativeLimitsOfALimiterOfTheProgramsAreLoggedOnceForEachKind(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	odd := oddLimiter{fixedOf(unlimitedConf())}
	_, err := New(odd, WithStrictConfig())
	require.ErrorContains(t, err, "system: the limit Conns is -3, it must not be negative")
	require.Empty(t, lines.take())

	m, err := New(odd, WithRefusalLog(0))
	require.NoError(t, err)
	defer m.Close()
	requireLines(t, []string{"system: the limit Conns is -3, it must not be negative; it refuses every connection, as with go-libp2p's manager"},
		lines.take(), "ERROR msg=", "Limiter: ", "system")
	_, err = m.OpenConnection(network.DirOutbound, false, nil)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	for _, p := range []peer.ID{testPeer, "other"} {
		_, err = m.OpenStream(p, network.DirInbound)
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	}
	viewProtocol(t, m, "/a")
	viewProtocol(t, m, "/b")
	require.NoError(t, m.Refresh())
	requireLines(t, []string{
		"peer:" + testPeer.String() + ": the limit StreamsInbound is -4, it must not be negative; it refuses every inbound stream, as with go-libp2p's manager",
		"protocol:/a: the limit Memory is -6, it must not be negative; it refuses every reservation of memory, as with go-libp2p's manager",
	}, lines.take(), "ERROR msg=", "Limiter: ", "others")
	require.Zero(t, m.Limits().limits.System.Conns)
}

func TestSubnetLimitsThatCannotBeDoWhatUpstreamsDo(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	const like = ", as with go-libp2p's manager"
	v4, v6 := netip.MustParsePrefix("192.0.0.0/16"), netip.MustParsePrefix("2001:db8::/32")
	type odd struct {
		per4, per6 []ConnLimitPerSubnet
		net4, net6 []NetworkPrefixLimit
		want       string
	}
	for _, c := range []odd{
		{per4: []ConnLimitPerSubnet{{32, 5}, {33, 8}}, want: "WithLimitPerSubnet: ipv4[1]: PrefixLength is 33, expected 0 to 32; it refuses every connection from ipv4 outside of named networks"},
		{per4: []ConnLimitPerSubnet{{-1, 8}}, want: "WithLimitPerSubnet: ipv4[0]: PrefixLength is -1, expected 0 to 32; it refuses every connection from ipv4 outside of named networks"},
		{per6: []ConnLimitPerSubnet{{129, math.MaxInt32}}, want: "WithLimitPerSubnet: ipv6[0]: PrefixLength is 129, expected 0 to 128; it refuses every connection from ipv6 outside of named networks"},
		{per4: []ConnLimitPerSubnet{{24, -1}}, want: "WithLimitPerSubnet: ipv4[0]: ConnCount is -1, expected 0 or more; it refuses every connection from ipv4 outside of named networks"},
		{net4: []NetworkPrefixLimit{{v6, 0}}, want: "WithNetworkPrefixLimit: ipv4[0]: expected an ipv4 prefix as Network, got 2001:db8::/32; it has no effect"},
		{net6: []NetworkPrefixLimit{{v4, 0}, {v6, 1}}, want: "WithNetworkPrefixLimit: ipv6[0]: expected an ipv6 prefix as Network, got 192.0.0.0/16; it has no effect"},
		{net4: []NetworkPrefixLimit{{netip.Prefix{}, 0}}, want: "WithNetworkPrefixLimit: ipv4[0]: expected an ipv4 prefix as Network, got none or an invalid one; it has no effect"},
		{net4: []NetworkPrefixLimit{{v4, -3}}, want: "WithNetworkPrefixLimit: ipv4[0]: ConnCount is -3, expected 0 or more; it refuses every connection from the network"},
	} {
		opts := []Option{WithRefusalLog(0), WithLimitPerSubnet(c.per4, c.per6), WithNetworkPrefixLimit(c.net4, c.net6)}
		_, err := New(infiniteWithGates(), append(opts, WithStrictConfig())...)
		strict, _, _ := strings.Cut(c.want, ";")
		require.EqualError(t, err, "rcmgr: "+strict)
		m, err := New(infiniteWithGates(), opts...)
		require.NoError(t, err)
		requireLines(t, []string{c.want + like}, lines.take(), "ERROR msg=", "", c.want)

		var per4, per6 []upstream.ConnLimitPerSubnet
		for _, l := range c.per4 {
			per4 = append(per4, upstream.ConnLimitPerSubnet(l))
		}
		for _, l := range c.per6 {
			per6 = append(per6, upstream.ConnLimitPerSubnet(l))
		}
		var net4, net6 []upstream.NetworkPrefixLimit
		for _, l := range c.net4 {
			net4 = append(net4, upstream.NetworkPrefixLimit(l))
		}
		for _, l := range c.net6 {
			net6 = append(net6, upstream.NetworkPrefixLimit(l))
		}
		up, err := upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.InfiniteLimits), upstream.WithMetricsDisabled(),
			upstream.WithLimitPerSubnet(per4, per6), upstream.WithNetworkPrefixLimit(net4, net6))
		require.NoError(t, err)
		for _, far := range []string{"/ip4/192.0.2.1", "/ip4/198.51.100.1", "/ip6/2001:db8::1", "/ip6/2001:db9::1", "/ip4/127.0.0.1"} {
			for range 9 {
				_, theirs := up.OpenConnection(network.DirInbound, false, multiaddr.StringCast(far+"/tcp/1"))
				_, ours := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(far+"/tcp/1"))
				require.Equal(t, theirs == nil, ours == nil, "%s: %s: %v, %v", c.want, far, theirs, ours)
			}
		}
		require.NoError(t, m.Refresh())
		require.NoError(t, m.Close())
		require.NoError(t, up.Close())
		require.Empty(t, lines.take())
	}
}

// A limiter with such limits is used as it is, as upstream uses it.
func TestARateLimiterThatCannotBeIsUsedAsUpstreamUsesItAndLogged(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	network4 := netip.MustParsePrefix("192.0.2.0/24")
	global := func(rps float64, burst int) xrate.Limiter {
		return xrate.Limiter{GlobalLimit: xrate.Limit{RPS: rps, Burst: burst}}
	}
	named := func(rps float64, burst int) xrate.Limiter {
		return xrate.Limiter{NetworkPrefixLimits: []xrate.PrefixLimit{{Prefix: network4, Limit: xrate.Limit{RPS: rps, Burst: burst}}}}
	}
	perSubnet := func(bits int, rps float64, burst int) xrate.SubnetLimiter {
		return xrate.SubnetLimiter{IPv4SubnetLimits: []xrate.SubnetLimit{{PrefixLength: bits, Limit: xrate.Limit{RPS: rps, Burst: burst}}}}
	}
	for _, c := range []struct {
		limiter func() xrate.Limiter
		want    string
	}{
		{func() xrate.Limiter { return global(math.NaN(), 3) }, "GlobalLimit: RPS is NaN, expected a finite number, 0 or more"},
		{func() xrate.Limiter { return global(-1, 3) }, "GlobalLimit: RPS is -1, expected a finite number, 0 or more"},
		{func() xrate.Limiter { return global(math.Inf(1), 3) }, "GlobalLimit: RPS is +Inf, expected a finite number, 0 or more"},
		{func() xrate.Limiter { return global(0.001, -3) }, "GlobalLimit: Burst is -3, expected 0 or more"},
		{func() xrate.Limiter { return named(-1, 2) }, "NetworkPrefixLimits: 192.0.2.0/24: RPS is -1, expected a finite number, 0 or more"},
		{func() xrate.Limiter { return xrate.Limiter{SubnetRateLimiter: perSubnet(33, 1, 2)} }, "SubnetRateLimiter: ipv4/33: PrefixLength is 33, expected 0 to 32"},
		{func() xrate.Limiter { return xrate.Limiter{SubnetRateLimiter: perSubnet(24, 0.001, -1)} }, "SubnetRateLimiter: ipv4/24: Burst is -1, expected 0 or more"},
		{func() xrate.Limiter { return global(1e300, 3) }, ""},
		{func() xrate.Limiter { return global(0.001, 0) }, ""},
		{func() xrate.Limiter { return xrate.Limiter{SubnetRateLimiter: perSubnet(24, 0.001, 2)} }, ""},
	} {
		ours, theirs := c.limiter(), c.limiter()
		_, err := New(infiniteWithGates(), WithConnRateLimiters(&ours), WithStrictConfig())
		if c.want != "" {
			require.EqualError(t, err, "rcmgr: WithConnRateLimiters: "+c.want)
		} else {
			require.NoError(t, err)
		}
		m := gated(t, infiniteWithGates(), WithConnRateLimiters(&ours), WithRefusalLog(0))
		other, err := upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.InfiniteLimits), upstream.WithConnRateLimiters(&theirs))
		require.NoError(t, err)
		defer other.Close()
		var want []string
		if c.want != "" {
			want = []string{c.want + "; the limiter is used as it is, as with go-libp2p's manager"}
		}
		requireLines(t, want, lines.take(), "ERROR msg=", "WithConnRateLimiters: ", c.want)
		for range 5 {
			var admitted [2]bool
			for i, rm := range []network.ResourceManager{m, other} {
				conn, err := rm.OpenConnection(network.DirInbound, false, mustMA(t, "/ip4/192.0.2.1/tcp/1"))
				if admitted[i] = err == nil; err == nil {
					conn.Done()
				}
			}
			require.Equal(t, admitted[1], admitted[0], c.want)
		}
	}
}

func TestOddDefaultNetworksDoNotKeepAManagerFromStarting(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	before := DefaultNetworkPrefixLimitV4
	t.Cleanup(func() { DefaultNetworkPrefixLimitV4 = before })
	DefaultNetworkPrefixLimitV4 = []NetworkPrefixLimit{{netip.MustParsePrefix("192.0.2.0/24"), -1}, {netip.MustParsePrefix("::1/128"), 1}}
	m, err := New(infiniteWithGates(), WithRefusalLog(0))
	require.NoError(t, err)
	defer m.Close()
	requireLines(t, []string{
		"ipv4[0]: ConnCount is -1, expected 0 or more; it refuses every connection from the network, as with go-libp2p's manager",
		"ipv4[1]: expected an ipv4 prefix as Network, got ::1/128; it has no effect, as with go-libp2p's manager",
	}, lines.take(), "ERROR msg=", "DefaultNetworkPrefixLimit: ", "defaults")
	_, err = m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	_, err = New(infiniteWithGates(), WithStrictConfig())
	require.ErrorContains(t, err, "DefaultNetworkPrefixLimit: ipv4[0]: ConnCount is -1")
}

func TestOddAllowlistEntriesCoverWhatTheyCoverUpstream(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	a, b := mustPeer(t, peerA), mustPeer(t, peerB)
	relayed := "/ip4/192.0.2.1/tcp/1/p2p/" + peerA + "/p2p-circuit"
	for entry, covers := range map[string]string{
		relayed + "/p2p/" + peerB:    "peer " + peerB + " at 192.0.2.1/32 and through a relay there",
		relayed:                      "peer " + peerA + " at 192.0.2.1/32 and through a relay there",
		"/ip4/192.0.2.1/p2p-circuit": "every peer at 192.0.2.1/32 and through a relay there",
		"/ip4/192.0.2.1/ipcidr/24/p2p/" + peerB + "/p2p-circuit/p2p/" + peerA:         "peer " + peerB + " at 192.0.2.0/24 and through a relay there",
		"/ip4/192.0.2.1/ip4/198.51.100.1":                                             "every peer at 198.51.100.1/32",
		"/ip4/192.0.2.1/ipcidr/24/ipcidr/16":                                          "every peer at 192.0.0.0/16",
		"/ip4/192.0.2.1/p2p/" + peerA + "/p2p/" + peerB:                               "peer " + peerB + " at 192.0.2.1/32",
		"/ip4/192.0.2.1/ip6/2001:db8::1/ipcidr/33":                                    "every peer at 2001:db8::/33",
		"/ip6/2001:db8::1/tcp/1/p2p/" + peerA + "/p2p-circuit/p2p/" + peerB:           "peer " + peerB + " at 2001:db8::1/128 and through a relay there",
		"/ip4/192.0.2.0/ipcidr/24/tcp/4001/p2p/" + peerA + "/p2p-circuit/ip4/1.2.3.4": "peer " + peerA + " at 192.0.2.0/24 and through a relay there",
	} {
		ma := mustMA(t, entry)
		want := `allowlist entry "` + entry + `": `
		strict := Allowlist{strict: true}
		require.ErrorContains(t, strict.Add(ma), want)
		_, err := New(nil, WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{ma}), WithStrictConfig())
		require.ErrorContains(t, err, "rcmgr: WithAllowlistedMultiaddrs: "+want)
		_, err = New(nil, WithAllowlistStrings([]string{entry}, false))
		require.ErrorContains(t, err, "WithAllowlistStrings: line 1: "+want)
		require.Empty(t, lines.take())

		var added, theirs = new(Allowlist), new(upstream.Allowlist)
		require.NoError(t, added.Add(ma))
		requireLines(t, []string{want + "*; it covers " + covers + ", as with go-libp2p's manager"}, lines.take(), "ERROR msg=", "", entry)
		require.NoError(t, theirs.Add(ma))
		m := newManager(t, unlimitedConf(), WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{ma}))
		requireLines(t, []string{want + "*; it covers " + covers + ", as with go-libp2p's manager"}, lines.take(), "ERROR msg=", "WithAllowlistedMultiaddrs: ", entry)
		for _, ours := range []*Allowlist{added, m.GetAllowlist()} {
			for _, far := range []string{
				"/ip4/192.0.2.1/tcp/9", "/ip4/192.0.2.9/udp/9/quic-v1", "/ip4/192.0.9.9/tcp/9", "/ip4/198.51.100.1/tcp/9", "/ip6/2001:db8::1/tcp/9",
				relayed, relayed + "/p2p/" + peerB, "/ip4/192.0.2.9/tcp/1/p2p/" + peerB + "/p2p-circuit", "/ip6/2001:db8::1/tcp/1/p2p/" + peerA + "/p2p-circuit",
				"/p2p/" + peerA + "/p2p-circuit", "/memory/1",
			} {
				at := mustMA(t, far)
				if !strings.Contains(covers, "relay") && strings.Contains(far, "p2p-circuit") {
					require.False(t, ours.Allowed(at), "%s: %s", entry, far)
					continue // the address of a relay is not that of the peer behind it
				}
				require.Equal(t, theirs.Allowed(at), ours.Allowed(at), "%s: %s", entry, far)
				for _, p := range []peer.ID{a, b} {
					require.Equal(t, theirs.AllowedPeerAndMultiaddr(p, at), ours.AllowedPeerAndMultiaddr(p, at), "%s: %s %s", entry, far, p)
				}
			}
			require.NoError(t, ours.Remove(ma))
			requireEmptyAllowlist(t, ours)
		}
		require.Empty(t, lines.take())
	}
}

func TestAPeerListedThroughARelayIsServedThroughItWhenTheHostIsFull(t *testing.T) {
	logTo(t, io.Discard, slog.LevelError)
	listed := mustMA(t, "/ip4/192.0.2.1/tcp/1/p2p/"+peerA+"/p2p-circuit/p2p/"+peerB)
	conf := unlimitedConf()
	conf.System.Conns = 1
	m := newManager(t, conf, WithRefusalLog(0), WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{listed}))
	var cfg upstream.PartialLimitConfig
	cfg.System.Conns = 1
	up, err := upstream.NewResourceManager(upstream.NewFixedLimiter(cfg.Build(upstream.InfiniteLimits)), upstream.WithMetricsDisabled(),
		upstream.WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{listed}))
	require.NoError(t, err)
	defer up.Close()
	for _, rm := range []network.ResourceManager{m, up} {
		open := func(far string) (network.ConnManagementScope, error) {
			return rm.OpenConnection(network.DirInbound, false, mustMA(t, far))
		}
		_, err := open("/ip4/203.0.113.1/tcp/1")
		require.NoError(t, err)
		_, err = open("/ip4/203.0.113.2/tcp/1")
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		_, err = open("/ip4/192.0.2.9/tcp/1/p2p/" + peerA + "/p2p-circuit")
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded, "another relay")

		through := "/ip4/192.0.2.1/tcp/1/p2p/" + peerA + "/p2p-circuit"
		c, err := open(through)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(mustPeer(t, peerB)))
		other, err := open(through)
		require.NoError(t, err)
		require.ErrorIs(t, other.SetPeer(mustPeer(t, peerA)), network.ErrResourceLimitExceeded, "another peer behind the relay")
		c.Done()
		other.Done()
	}
}

func TestAManagerStartsWithoutATraceFileThatCannotBeOpened(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	path := filepath.Join(t.TempDir(), "no", "trace")
	up, err := upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.InfiniteLimits), upstream.WithTrace(path), upstream.WithMetricsDisabled())
	require.NoError(t, err)
	up.Close()
	m := newManager(t, unlimitedConf(), WithTrace(path), WithStripes(4))
	logged := lines.take()
	require.Len(t, logged, 1)
	require.Contains(t, logged[0], path)
	require.Contains(t, logged[0], "; there is no trace file, as with go-libp2p's manager")
	require.Len(t, m.stripes, 4, "it is not traced")
	m.Close()

	full := filepath.Join(t.TempDir(), "trace")
	require.NoError(t, os.WriteFile(full, []byte("old"), 0o600))
	newManager(t, unlimitedConf(), WithTrace(full)).Close()
	text, err := os.ReadFile(full)
	require.NoError(t, err)
	require.NotEqual(t, "old", string(text))
	require.Empty(t, lines.take())
}
