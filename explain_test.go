package rcmgr

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	xrate "github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// Asked first and then done, everything is admitted or refused as Explain said, by
// the same limit for the same reason; and to be asked changes nothing.
func TestExplainSaysWhatWillBe(t *testing.T) {
	if math.MaxInt < math.MaxInt64 {
		t.Skip("with 32 bits nobody can ask for the sizes of some questions")
	}
	steps := cmp.Or(*stepsFlag, 150)
	if testing.Short() || raceDetector() {
		steps = cmp.Or(*stepsFlag, 60)
	}
	seed := testSeed(t)
	outcomes := make(map[string]int)
	kinds := []string{"admitted", "system", "transient", "peer", "protocol", "service", "protocol-peer", "conn", "stream", "subnet", "rate", "process",
		"transient crowding", "transient fair-share", "system fair-share", "system rate", "transient rate", "peer rate",
		"protocol rate", "system earmark", "transient earmark"}
	unseen := func(kind string) bool { return outcomes[kind] == 0 }
	// What few cells leave to chance is not given up at once, and looked for in longer ones.
	for cell := uint64(0); cell < 60 || cell < 1000 && slices.ContainsFunc(kinds, unseen); cell++ {
		r, steps := randomFrom(seed, cell), steps
		if cell >= 60 {
			steps *= 5
		}
		// In a bubble no time passes, so that nothing is collected in between, and no
		// look at the refusals joins the history.
		explained := func(t *testing.T) {
			stripes := pick(r, []int{1, 2, 8})
			conf := pick(r, append([]regime{mixed, mixed}, regimes[:3]...)).conf(r, stripes)
			conf.Gates = &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: 2}}}
			if r.IntN(2) == 0 {
				conf.Gates = &GateLimits{Rate: RateLimits{IPv4: map[int]ConnRate{32: {PerSecond: 0.001, Burst: 3}}}}
			}
			var inUse atomic.Int64
			opts := []Option{WithStripes(stripes), WithAdmission(Admission(r.IntN(2))), WithNewcomersQuarter(r.IntN(2) == 0),
				WithAllowlistedMultiaddrs(testAllowlist), WithMemoryPressure(MemoryPressureConfig{Limit: 100, InUse: inUse.Load})}
			if r.IntN(4) == 0 {
				opts = append(opts, openGates()...)
			}
			if r.IntN(4) == 0 {
				opts = append(opts, WithGates(GateLimits{Outbound: pointerTo(true)}))
			}
			if r.IntN(2) == 0 {
				opts = append(opts, WithFairShare(pick(r, [][]Kind{{KindTransient}, {KindSystem}, {KindTransient, KindSystem}})...))
			}
			if r.IntN(2) == 0 {
				marks, _ := someEarmarks(r)
				opts = append(opts, WithEarmarks(marks...))
			}
			if r.IntN(2) == 0 {
				opts = append(opts, WithObserveOnly(pick(r, allKinds.list()), pick(r, allKinds.list())))
			}
			if r.IntN(2) == 0 {
				conf.Costs = &Costs{Conn: costWithin(r, conf.Conn.Memory), Stream: costWithin(r, conf.Stream.Memory)}
			}
			clock := new(handClock)
			if r.IntN(2) == 0 {
				rateAll(r, &conf)
			}
			m := newManager(t, conf, opts...)
			m.tokens.clock = func() int64 { return clock.now }
			var held []interface{ Done() }
			for range steps {
				if r.IntN(16) == 0 {
					inUse.Store(pick(r, []int64{1, 1, 1, 99}))
					m.pressure.look()
				}
				clock.ahead(time.Duration(r.Int64N(int64(50 * time.Millisecond))))
				q := randomQuestion(r, m)
				before := lastingState(m)
				e, err := m.Explain(q)
				require.NoError(t, err)
				if after := lastingState(m); !reflect.DeepEqual(before, after) {
					require.Equal(t, toJSON(t, before), toJSON(t, after), "to ask changes nothing")
				}
				scope, err := do(m, q)
				outcome, cause := compareExplanation(t, q, e, err)
				outcomes[outcome]++
				outcomes[outcome+" "+cause]++
				if scope != nil && r.IntN(4) == 0 {
					scope.Done()
				} else if scope != nil {
					held = append(held, scope)
				}
				for len(held) > 0 && r.IntN(8) == 0 {
					i := r.IntN(len(held))
					held[i].Done()
					held[i] = held[len(held)-1]
					held = held[:len(held)-1]
				}
			}
		}
		t.Run(fmt.Sprint(cell), func(t *testing.T) { synctest.Test(t, explained) })
	}
	for _, k := range kinds {
		require.NotZero(t, outcomes[k], "%s was among what refused", k)
	}
}

// costWithin returns a cost that a limit of memory admits, a small one mostly.
func costWithin(r *rand.Rand, limit int64) Cost {
	return Cost(min(limit, 1+r.Int64N(1<<uint(r.IntN(30)))))
}

func randomQuestion(r *rand.Rand, m *Manager) ExplainRequest {
	q := ExplainRequest{Kind: pick(r, []Kind{KindConn, KindConn, KindConn, KindStream, KindStream, KindPeer, KindProtocol, KindService, KindSystem, KindTransient}),
		Direction: pick(r, testDirs), UseFD: r.IntN(2) == 0, Priority: pick(r, testPriorities), Peer: pick(r, testPeers),
		Endpoint: pick(r, testFars).addr}
	if q.Kind == KindConn && r.IntN(2) == 0 {
		q.Peer = ""
	}
	if q.Kind == KindProtocol || q.Kind != KindConn && r.IntN(2) == 0 {
		q.Protocol = protocol.ID(pick(r, testProtocols))
	}
	if q.Kind == KindService || q.Protocol != "" && r.IntN(2) == 0 {
		q.Service = pick(r, testServices)
	}
	if r.IntN(2) == 0 || q.Kind != KindConn && q.Kind != KindStream {
		q.Memory = 1 + r.Int64N(1<<uint(r.IntN(40)))
		if limit := m.fixed[KindSystem].Limit().GetMemoryLimit(); r.IntN(2) == 0 && limit > 0 {
			q.Memory = 1 + r.Int64N(limit)
		}
	}
	return q
}

// do does what was asked about. It gives back what is to be ended.
func do(m *Manager, q ExplainRequest) (scope interface{ Done() }, err error) {
	reserve := func(s network.ResourceScope) error {
		if q.Memory == 0 {
			return nil
		}
		return s.ReserveMemory(int(q.Memory), q.Priority)
	}
	direct := func(s network.ResourceScope) error {
		err := s.ReserveMemory(int(q.Memory), q.Priority)
		if err == nil {
			s.ReleaseMemory(int(q.Memory))
		}
		return err
	}
	switch q.Kind {
	case KindConn:
		c, err := m.OpenConnection(q.Direction, q.UseFD, q.Endpoint)
		if err != nil {
			return nil, err
		}
		if q.Peer != "" {
			err = c.SetPeer(q.Peer)
		}
		if err == nil {
			err = reserve(c)
		}
		return c, err
	case KindStream:
		s, err := m.OpenStream(q.Peer, q.Direction)
		if err != nil {
			return nil, err
		}
		if q.Protocol != "" {
			err = s.SetProtocol(q.Protocol)
		}
		if err == nil && q.Service != "" {
			err = s.SetService(q.Service)
		}
		if err == nil {
			err = reserve(s)
		}
		return s, err
	case KindPeer:
		return nil, m.ViewPeer(q.Peer, func(s network.PeerScope) error { return direct(s) })
	case KindProtocol:
		return nil, m.ViewProtocol(q.Protocol, func(s network.ProtocolScope) error { return direct(s) })
	case KindService:
		return nil, m.ViewService(q.Service, func(s network.ServiceScope) error { return direct(s) })
	case KindTransient:
		return nil, m.ViewTransient(direct)
	}
	return nil, m.ViewSystem(direct)
}

// compareExplanation returns what kind of scope refused, and its cause.
func compareExplanation(t *testing.T, q ExplainRequest, e *Explanation, err error) (kind, cause string) {
	t.Helper()
	asked := make(map[string]int)
	for _, c := range e.Checks {
		asked[c.Step+" "+c.Scope+" "+c.Name]++
	}
	for check, times := range asked {
		// A stranger that the allowlist let in has to fit the system by itself, and for its peer.
		most := 1
		if strings.HasPrefix(check, "peer system ") {
			most = 2
		}
		require.LessOrEqual(t, times, most, "%s\n%+v", check, q)
	}
	if e.Admitted {
		require.NoError(t, err, "%+v\n%+v", q, e)
		require.Nil(t, e.By)
		return "admitted", ""
	}
	var refusal *LimitError
	require.True(t, errors.As(err, &refusal), "%+v\n%v\n%v", q, e, err)
	if k := refusal.Kind(); (k == KindSubnet || k == KindRate) && e.By.Step == "open" {
		// A full host was not seen to be full at a glance, so the gate was asked first.
		require.True(t, slices.ContainsFunc(e.Checks, func(c LimitCheck) bool {
			return c.Scope == refusal.Scope() && !c.Fits && c.Cause == refusal.Cause().String()
		}), "%+v\n%v\n%v", q, e, err)
		return k.String(), refusal.Cause().String()
	}
	name := limitNames[refusal.why.d]
	if refusal.why.byRate() {
		name = "Rates." + name
	}
	want := strings.Join([]string{numbers.ReplaceAllString(refusal.Scope(), "$1"), name, refusal.Cause().String()}, " ")
	require.Equal(t, want, strings.Join([]string{e.By.Scope, e.By.Name, e.By.Cause}, " "), "%+v\n%v\n%v", q, e, err)
	require.Equal(t, refusal.Attempted(), e.By.Asked)
	if refusal.Kind() != KindRate {
		require.Equal(t, refusal.Limit(), e.By.Limit)
	}
	require.True(t, refusal.RetryAt().Equal(e.By.RetryAt), "%v %v", refusal.RetryAt(), e.By.RetryAt)
	if refusal.why.byRate() {
		require.Equal(t, refusal.ConfigKey(), e.By.ConfigKey)
	}
	return refusal.Kind().String(), refusal.Cause().String()
}

// lastingState returns a snapshot without what a look changes: its time, and peaks, which
// may be new where there is no limit.
func lastingState(m *Manager) Snapshot {
	s := m.Snapshot()
	s.Taken = s.Started
	for i := range s.Scopes {
		s.Scopes[i].Peak = Amounts{}
	}
	return s
}

func TestQuestionsThatLackSomethingAreErrors(t *testing.T) {
	m := newManager(t, unlimitedConf())
	for want, q := range map[string]ExplainRequest{
		"a stream needs a Peer": {Kind: KindStream},
		errNoProtocol.Error():   {Kind: KindStream, Peer: testPeer, Service: "x"},
		errNoName.Error():       {Kind: KindService},
		"Kind is system and Memory is 0: nothing is asked for; expected a number of bytes, or conn or stream as Kind": {},
		"Kind is peer and Memory is 0: nothing is asked for; expected a number of bytes, or conn or stream as Kind":   {Kind: KindPeer, Peer: testPeer},
		"cannot reserve -1 bytes: the size must not be negative":                                                      {Kind: KindConn, Memory: -1},
		"Kind is subnet, expected conn, stream, system, transient, peer, protocol or service":                         {Kind: KindSubnet},
	} {
		_, err := m.Explain(q)
		require.EqualError(t, err, "rcmgr: Explain: "+want)
	}
	m.Close()
	_, err := m.Explain(ExplainRequest{Kind: KindConn})
	require.ErrorIs(t, err, network.ErrResourceScopeClosed)
}

func TestAnExplanationAsTextAndJSON(t *testing.T) {
	conf := unlimitedConf()
	conf.PeerDefault.StreamsInbound = 2
	m := newManager(t, conf, WithObserveOnly(KindProtocol))
	mustOpenStream(t, m, testPeer, network.DirInbound)
	q := ExplainRequest{Kind: KindStream, Direction: network.DirInbound, Peer: testPeer}
	e, err := m.Explain(q)
	require.NoError(t, err)
	require.Equal(t, "it would be admitted", e.String())
	mustOpenStream(t, m, testPeer, network.DirInbound)
	e, err = m.Explain(q)
	require.NoError(t, err)
	var text strings.Builder
	require.NoError(t, e.WriteTable(&text))
	require.Contains(t, text.String(), "it would be refused by peer:"+testPeer.String()+": StreamsInbound is at 2 of 2, and 1 more would exceed 2 (limit); raise PeerDefault.StreamsInbound\n")
	require.Regexp(t, `(?m)^open  peer:\S+ +StreamsInbound  2    2          2          0          1      refuses, raise PeerDefault.StreamsInbound$`, text.String())
	b, err := json.Marshal(e)
	require.NoError(t, err)
	var read Explanation
	require.NoError(t, json.Unmarshal(b, &read))
	require.Equal(t, e, &read)
}

func TestAnExplanationSaysThatACallersLimiterIsNotAsked(t *testing.T) {
	m := newManager(t, unlimitedConf())
	q := ExplainRequest{Kind: KindConn, Direction: network.DirInbound, Endpoint: multiaddr.StringCast("/ip4/198.51.100.1/tcp/1")}
	e, err := m.Explain(q)
	require.NoError(t, err)
	require.Empty(t, e.Unknown)
	m = newManager(t, unlimitedConf(), WithConnRateLimiters(&xrate.Limiter{GlobalLimit: xrate.Limit{RPS: 1, Burst: 1}}))
	e, err = m.Explain(q)
	require.NoError(t, err)
	require.Contains(t, e.Unknown, "is not asked")
}

func TestThePageExplains(t *testing.T) {
	const goodPeer = "12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL"
	conf := unlimitedConf()
	conf.PeerDefault.StreamsInbound = 0
	m := newManager(t, conf)
	get := func(query url.Values) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		Handler(m).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?"+query.Encode(), nil))
		return w
	}
	query := url.Values{"explain": {"stream"}, "peer": {goodPeer}, "direction": {"inbound"}, "protocol": {"/a<b"}, "memory": {"5"}, "priority": {"128"}, "service": {"x"}}
	for format, want := range map[string]string{
		"text": "raise PeerDefault.StreamsInbound\n",
		"json": `"ConfigKey": "PeerDefault.StreamsInbound"`,
		"html": "raise PeerDefault.StreamsInbound</strong>",
	} {
		query.Set("format", format)
		w := get(query)
		require.Equal(t, http.StatusOK, w.Code)
		require.Contains(t, w.Body.String(), want)
		require.NotContains(t, strings.ReplaceAll(w.Body.String(), "/a<b", map[bool]string{true: "ESCAPED"}[format == "html"]), "ESCAPED")
	}
	query.Set("format", "html")
	form := get(query).Body.String()
	for _, kept := range []string{`name="peer" value="` + goodPeer, `value="/a&lt;b"`, `<option selected>stream`, `<option selected>inbound`, `value="5"`, `value="128"`} {
		require.Contains(t, form, kept)
	}
	require.NotContains(t, form, " checked")
	query.Set("explain", "conn")
	query.Set("endpoint", "/ip4/198.51.100.1/tcp/1")
	query.Set("fd", "1")
	query.Set("format", "text")
	require.Contains(t, get(query).Body.String(), "subnet:198.51.100.1/32")
	for key, bad := range map[string]string{"explain": "boat", "peer": "me", "direction": "up", "memory": "x", "priority": "256", "endpoint": "ip"} {
		q := url.Values{}
		for k, v := range query {
			q[k] = v
		}
		q.Set(key, bad)
		w := get(q)
		require.Equal(t, http.StatusBadRequest, w.Code, key)
		require.Contains(t, w.Body.String(), key)
		require.Contains(t, w.Body.String(), bad)
	}
}

func TestAnExplanationKnowsOfMemoryPressure(t *testing.T) {
	var inUse atomic.Int64
	inUse.Store(99)
	m := newManager(t, unlimitedConf(), WithMemoryPressure(MemoryPressureConfig{Limit: 100, InUse: inUse.Load}),
		WithAllowlistedMultiaddrs(testAllowlist))
	asks := map[string]ExplainRequest{
		"connection": {Kind: KindConn, Direction: network.DirInbound, Endpoint: multiaddr.StringCast("/ip4/198.51.100.1/tcp/1")},
		"stream":     {Kind: KindStream, Direction: network.DirInbound, Peer: testPeer},
		"somebody else": {Kind: KindConn, Direction: network.DirInbound, Peer: testPeers[1],
			Endpoint: multiaddr.StringCast("/ip4/192.0.2.2/tcp/1")},
		"friend": {Kind: KindConn, Direction: network.DirInbound, Endpoint: multiaddr.StringCast("/ip4/192.0.2.1/tcp/1")},
		"ours":   {Kind: KindStream, Direction: network.DirOutbound, Peer: testPeer},
	}
	for name, q := range asks {
		e, err := m.Explain(q)
		require.NoError(t, err)
		if e.Admitted {
			require.Contains(t, []string{"friend", "ours"}, name)
			continue
		}
		require.Equal(t, LimitCheck{Step: "gate", Scope: "process", Kind: KindProcess, Name: e.By.Name, Use: 99, Asked: 1, Limit: 90,
			Threshold: 80, Room: -19, Cause: "memory-pressure", ConfigKey: "WithMemoryPressure"}, *e.By, name)
	}
	require.NoError(t, m.ObserveOnly(KindProcess))
	e, err := m.Explain(asks["stream"])
	require.NoError(t, err)
	require.True(t, e.Admitted)
	inUse.Store(1)
	m.pressure.look()
	require.NoError(t, m.Enforce())
	for name, q := range asks {
		e, err := m.Explain(q)
		require.NoError(t, err)
		require.True(t, e.Admitted, name)
	}
}

// onlyNamed is a Limiter of a program's own that knows one service, one protocol, and the
// streams of one peer.
type onlyNamed struct{ Limiter }

func (onlyNamed) known(name, want string, limit Limit) Limit {
	if name != want {
		return nil
	}
	return limit
}

func (l onlyNamed) GetServiceLimits(svc string) Limit {
	return l.known(svc, "a", l.Limiter.GetServiceLimits(svc))
}
func (l onlyNamed) GetServicePeerLimits(svc string) Limit {
	return l.known(svc, "a", l.Limiter.GetServicePeerLimits(svc))
}
func (l onlyNamed) GetProtocolLimits(p protocol.ID) Limit {
	return l.known(string(p), "/a", l.Limiter.GetProtocolLimits(p))
}
func (l onlyNamed) GetProtocolPeerLimits(p protocol.ID) Limit {
	return l.known(string(p), "/a", l.Limiter.GetProtocolPeerLimits(p))
}
func (l onlyNamed) GetStreamLimits(p peer.ID) Limit {
	return l.known(string(p), string(testPeer), l.Limiter.GetStreamLimits(p))
}

// limiterThatCalls is a Limiter that calls a function each time that it is asked about a peer.
type limiterThatCalls struct {
	Limiter
	asked func()
}

func (l limiterThatCalls) GetPeerLimits(p peer.ID) Limit {
	if p != "" {
		l.asked()
	}
	return l.Limiter.GetPeerLimits(p)
}

func TestExplainAsksAgainIfOtherLimitsComeIntoForceMeanwhile(t *testing.T) {
	streams := func(n int) Limiter { return onlyNamed{fixedOf(distinctConf(n, false))} }
	var m *Manager
	first := limiterThatCalls{streams(100), func() { require.NoError(t, m.SetLimits(streams(200))) }}
	var err error
	m, err = New(first)
	require.NoError(t, err)
	defer m.Close()
	for _, kind := range []Kind{KindStream, KindConn} {
		require.NoError(t, m.SetLimits(first))
		e, err := m.Explain(ExplainRequest{Kind: kind, Peer: testPeer})
		require.NoError(t, err)
		require.NotEmpty(t, e.Checks)
		for _, c := range e.Checks {
			if c.Name == limitNames[dimStreams] {
				require.Greater(t, c.Limit, int64(200), "%s", c.Scope)
			}
		}
	}
}

// A program's own Limiter need not know what a question does not name.
func TestExplainAsksALimiterOnlyForWhatIsNamed(t *testing.T) {
	m, err := New(onlyNamed{fixedOf(unlimitedConf())})
	require.NoError(t, err)
	defer m.Close()
	for _, q := range []ExplainRequest{
		{Kind: KindConn, Direction: network.DirInbound},
		{Kind: KindConn, Direction: network.DirInbound, Peer: "other"},
		{Kind: KindStream, Peer: testPeer, Protocol: "/a", Service: "a"},
		{Kind: KindProtocol, Protocol: "/a", Memory: 1},
		{Kind: KindService, Service: "a", Memory: 1},
		{Kind: KindSystem, Memory: 1},
	} {
		e, err := m.Explain(q)
		require.NoError(t, err, "%+v", q)
		require.True(t, e.Admitted)
	}
	_, err = m.Explain(ExplainRequest{Kind: KindStream, Peer: testPeer, Protocol: "/b"})
	require.EqualError(t, err, "protocol:/b: no limit given, the Limit is nil")
	require.Empty(t, m.Limits().ToPartialLimitConfig().Protocol)
	require.Zero(t, m.read().classes[KindProtocol], "what it does not know admits nothing")
}
