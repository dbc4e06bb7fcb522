package rcmgr

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/stretchr/testify/require"
)

// words checks that a type of n values is words in JSON, and can be read back.
func words[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](t *testing.T, of func(i int) T, n int) {
	t.Helper()
	seen := make(map[string]bool)
	for i := range n {
		v := of(i)
		text := fmt.Sprint(v)
		require.False(t, seen[text] || text == "unknown", "%T %d is %s", v, i, text)
		seen[text] = true
		b, err := json.Marshal(map[string]any{"is": v})
		require.NoError(t, err)
		require.JSONEq(t, fmt.Sprintf(`{"is":%q}`, text), string(b))
		var read T
		require.NoError(t, json.Unmarshal([]byte(fmt.Sprintf("%q", text)), &read))
		require.Equal(t, v, read)
	}
	require.Equal(t, "unknown", fmt.Sprint(of(n)))
	var none T
	err := P(&none).UnmarshalText([]byte("nothing"))
	require.ErrorContains(t, err, `"nothing"`)
	require.ErrorContains(t, err, fmt.Sprint("expected one of ", of(0), ", ")) // and all others
	require.ErrorContains(t, err, fmt.Sprint(of(n-1)))
}

func TestEnumerationsHaveTheSameNamesInTextAndJSON(t *testing.T) {
	words(t, func(i int) Kind { return Kind(i) }, int(numKinds))
	words(t, func(i int) Origin { return Origin(i) }, 4)
	words(t, func(i int) Resource { return Resource(i) }, 4)
	words(t, func(i int) Cause { return Cause(i) }, 7)
	words(t, func(i int) Admission { return Admission(i) }, 3)
}

// collectJSONLog collects what is logged until the end of the test, as JSON. It
// returns a function that returns the lines so far, by their message.
func collectJSONLog(t *testing.T) func() map[string]map[string]any {
	var text bytes.Buffer
	before := log
	log = slog.New(slog.NewJSONHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	t.Cleanup(func() { log = before })
	return func() map[string]map[string]any {
		lines := make(map[string]map[string]any)
		for line := range strings.Lines(text.String()) {
			var read map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &read))
			lines[read["msg"].(string)] = read
		}
		return lines
	}
}

// In JSON, names are words and amounts are numbers, in every line; as text, bytes have
// their unit.
func TestLogsInJSONKeepTheirMeaning(t *testing.T) {
	run := func(t *testing.T) (m *Manager, used *meter) {
		used = &meter{}
		p := used.pressure()
		p.Limit = 1 << 20
		limits, err := NodeLimits{MaxMemory: 512 << 20, MaxFileDescriptors: 1024}.Build()
		require.NoError(t, err)
		m, err = New(NewFixedLimiter(limits), WithFairShare(), WithObserveOnly(KindRate, KindStream), WithMemoryPressure(p))
		require.NoError(t, err)
		t.Cleanup(func() { m.Close() })
		require.NoError(t, m.SetLimits(NewFixedLimiter(limits)))
		require.NoError(t, m.Enforce(KindRate))
		used.Store(1 << 20)
		m.pressure.look()
		_, err = m.OpenStream(testPeer, network.DirInbound)
		require.Error(t, err)
		used.Store(0)
		m.pressure.look()
		require.Error(t, viewSystem(t, m).ReserveMemory(1<<30, 255))
		viewSystem(t, m).ReleaseMemory(3 << 20)
		m.logRefusals()
		return m, used
	}
	t.Run("JSON", func(t *testing.T) {
		lines := collectJSONLog(t)
		run(t)
		for msg, want := range map[string]map[string]any{
			"resource manager started": {
				"admission": "half", "fair_share": []any{"transient"}, "observe_only": []any{"stream", "rate"},
				"limits_for_memory": 512.0 * (1 << 20), "limits_for_descriptors": 1024.0, "system_memory": 512.0 * (1 << 20),
				"system_descriptors": 1024.0, "system_conns_inbound": 800.0,
			},
			"limits changed":                {"limits_for_memory": 512.0 * (1 << 20), "transient_conns_inbound": 128.0},
			"limits that are only observed": {"kinds": []any{"stream"}},
			"too much memory is in use: inbound connections and streams of strangers are refused": {
				"in_use": 1.0 * (1 << 20), "limit": 1.0 * (1 << 20), "refuse_above": 943718.0, "admit_below": 629145.0},
			"enough memory is free again: inbound connections and streams are admitted": {"in_use": 0.0, "admit_below": 629145.0},
			`Protected from exceeding resource limits 1 time: "process: cannot reserve inbound stream: resource limit exceeded"`: {
				"current": 1.0 * (1 << 20), "limit": 943718.0, "cause": "memory-pressure", "raise": "WithMemoryPressure"},
			`Protected from exceeding resource limits 1 time: "system: cannot reserve memory: resource limit exceeded"`: {
				"current": 0.0, "limit": 512.0 * (1 << 20), "raise": "System.Memory"},
			"refused": {
				"asked": "system", "scope": "system", "kind": "system", "resource": "memory", "cause": "limit",
				"current": 0.0, "attempted": 1.0 * (1 << 30), "limit": 512.0 * (1 << 20), "priority": 255.0, "raise": "System.Memory"},
			"BUG of a caller: memory was released that had not been reserved at the scope": {"scope": "system", "excess": 3.0 * (1 << 20)},
		} {
			line := lines()[msg]
			require.NotNil(t, line, msg)
			for key, value := range want {
				require.Equal(t, value, line[key], "%s: %s", msg, key)
			}
		}
	})
	t.Run("text", func(t *testing.T) {
		lines := collectLog(t, slog.LevelDebug)
		run(t)
		text := strings.Join(lines.take(), "\n")
		for _, want := range []string{
			"admission=half", "fair_share=[transient]", `observe_only="[stream rate]"`, `limits_for_memory="512.0 MiB"`,
			`system_memory="512.0 MiB" system_descriptors=1024`, `in_use="1.0 MiB" refuse_above="921.6 KiB"`,
			`current=0 limit="512.0 MiB" raise=System.Memory`, `current=0 attempted="1.0 GiB" limit="512.0 MiB"`,
			`current="1.0 MiB" limit="921.6 KiB" cause=memory-pressure`, `excess="3.0 MiB"`,
		} {
			require.Contains(t, text, want)
		}
	})
	t.Run("no limit", func(t *testing.T) {
		lines := collectJSONLog(t)
		newManager(t, unlimitedConf())
		started := lines()["resource manager started"]
		require.Equal(t, []any{}, started["fair_share"])
		for _, key := range []string{"system_memory", "system_descriptors"} {
			require.Equal(t, float64(math.MaxInt64), started[key], "the largest number, as in snapshots")
		}
		text := collectLog(t, slog.LevelInfo)
		newManager(t, unlimitedConf())
		require.Contains(t, text.take()[0], "system_memory=unlimited system_descriptors=unlimited")
	})
}

// A refusal has all that it says by name, in JSON and in logs, wherever it is logged.
func TestALimitErrorIsItsNumbersByName(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Memory = 2048
	m := newManager(t, conf, WithStripes(1))
	err := mustOpenConn(t, m, network.DirInbound).ReserveMemory(3000, 101)
	b, jsonErr := json.Marshal(err)
	require.NoError(t, jsonErr)
	require.JSONEq(t, `{"Error":"conn-1: system: cannot reserve memory: resource limit exceeded","Asked":"conn-1","Scope":"system",
		"Kind":"system","Resource":"memory","Cause":"limit","Current":0,"Attempted":3000,"Limit":2048,"Priority":101,"ConfigKey":"System.Memory"}`, string(b))

	lines := collectJSONLog(t)
	log.Info("mine", "err", err)
	require.Equal(t, map[string]any{
		"error": "conn-1: system: cannot reserve memory: resource limit exceeded", "asked": "conn-1", "scope": "system", "kind": "system",
		"resource": "memory", "cause": "limit", "current": 0.0, "attempted": 3000.0, "limit": 2048.0, "priority": 101.0, "raise": "System.Memory",
	}, lines()["mine"]["err"])
	text := collectLog(t, slog.LevelInfo)
	log.Info("mine", "err", err)
	require.Contains(t, text.take()[0], `err.error="conn-1: system: cannot reserve memory: resource limit exceeded" err.asked=conn-1 `)

	conf.PeerDefault.StreamsInbound = 0
	_, err = newManager(t, conf).OpenStream(testPeer, network.DirInbound)
	b, jsonErr = json.Marshal(err)
	require.NoError(t, jsonErr)
	require.Contains(t, string(b), `"Resource":"stream","Direction":"Inbound",`)
}

// A refusal knows the place in the configuration that the log names for it.
func TestARefusalKnowsWhereItsLimitIsSet(t *testing.T) {
	conf := unlimitedConf()
	conf.System.FD = 0
	conf.PeerDefault.StreamsInbound = 0
	named := unlimitedBase
	named.StreamsInbound = 0
	conf.Peer = map[peer.ID]BaseLimit{"named": named, "free": unlimitedBase, testPeer: unlimitedBase}
	conf.ServiceDefault.Memory = 5
	conf.Conn.Memory = 7
	ten := netip.MustParsePrefix("10.0.0.0/8")
	conf.Gates = &GateLimits{
		Subnets: SubnetLimits{IPv4: map[int]LimitVal{24: BlockAllLimit}, Networks: map[netip.Prefix]LimitVal{ten: BlockAllLimit, netip.MustParsePrefix("11.0.0.0/8"): Unlimited, netip.MustParsePrefix("12.0.0.0/8"): Unlimited}},
		Rate:    RateLimits{IPv4: map[int]ConnRate{32: {Burst: BlockAllLimit}}, Networks: map[netip.Prefix]ConnRate{netip.MustParsePrefix("12.0.0.0/8"): {Burst: BlockAllLimit}}},
	}
	var used meter
	p := used.pressure()
	m := newManager(t, conf, WithStripes(1), WithMemoryPressure(p))
	open := func(m *Manager, addr string) error {
		_, err := m.OpenConnection(network.DirInbound, false, mustMA(t, addr))
		return err
	}
	stream := func(m *Manager, p peer.ID) error {
		_, err := m.OpenStream(p, network.DirInbound)
		return err
	}
	c := mustOpenConn(t, m, network.DirInbound)
	span := mustBeginSpan(t, viewPeer(t, m, testPeer))
	span.(ResourceScopeLimiter).SetLimit(&BaseLimit{})
	byHand := viewPeer(t, m, "by hand")
	byHand.(ResourceScopeLimiter).SetLimit(&BaseLimit{})
	_, fdErr := m.OpenConnection(network.DirInbound, true, nil)
	foreign, err := New(otherLimiter{NewFixedLimiter(ConcreteLimitConfig{limits: conf})})
	require.NoError(t, err)
	t.Cleanup(func() { foreign.Close() })
	callers := newManager(t, unlimitedConf(), WithConnRateLimiters(&rate.Limiter{GlobalLimit: rate.Limit{RPS: 1e-9, Burst: 1}}))
	require.NoError(t, open(callers, "/ip4/192.0.2.1"))
	refused := map[string]error{
		"System.FD": fdErr,
		`Peer["` + peer.ID("named").String() + `"].StreamsInbound`: stream(m, "named"),
		"PeerDefault.StreamsInbound":                               stream(m, "stranger"),
		`Peer["` + testPeer.String() + `"].Memory`:                 span.ReserveMemory(1, 255),
		"PeerDefault.Memory":                                       byHand.ReserveMemory(1, 255),
		`Service["svc"].Memory`:                                    viewService(t, m, "svc").ReserveMemory(6, 255),
		"Conn.Memory":                                              c.ReserveMemory(8, 255),
		`Gates.Subnets.IPv4["24"]`:                                 open(m, "/ip4/192.0.2.1"),
		`Gates.Subnets.Networks["10.0.0.0/8"]`:                     open(m, "/ip4/10.0.0.1"),
		`Gates.Rate.IPv4["32"]`:                                    open(m, "/ip4/11.0.0.1"),
		`Gates.Rate.Networks["12.0.0.0/8"]`:                        open(m, "/ip4/12.0.0.1"),
		"WithConnRateLimiters":                                     open(callers, "/ip4/192.0.2.1"),
	}
	used.Store(1000)
	m.pressure.look()
	refused["WithMemoryPressure"] = stream(m, "free")
	for want, err := range refused {
		var e *LimitError
		require.True(t, errors.As(err, &e), "%s: %v", want, err)
		require.Equal(t, want, e.ConfigKey(), err)
	}
	var e *LimitError
	require.ErrorAs(t, stream(foreign, "named"), &e)
	require.Equal(t, "PeerDefault.StreamsInbound", e.ConfigKey(), "where names stand is the program's to know")
}
