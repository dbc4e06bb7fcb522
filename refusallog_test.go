package rcmgr

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// protected finds how many refusals a line counts, and whose.
var protected = regexp.MustCompile(`^ERROR msg="Protected from exceeding resource limits (\d+) times?: \\"(.*) cannot reserve (.*): resource limit exceeded\\""`)

func openingRefused(t *testing.T, m *Manager, p peer.ID, times int) {
	t.Helper()
	for range times {
		_, err := m.OpenStream(p, network.DirInbound)
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	}
}

func TestRefusalsAreLoggedEveryTenSeconds(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	synctest.Test(t, func(t *testing.T) {
		conf := unlimitedConf()
		conf.System.StreamsInbound = 1
		m := newManager(t, conf, WithStripes(4))
		mustOpenStream(t, m, "first", network.DirInbound)
		pass := func(d time.Duration) []string {
			time.Sleep(d)
			synctest.Wait()
			return lines.take()
		}
		require.Empty(t, pass(10*time.Second), "nothing was refused")
		openingRefused(t, m, testPeer, 3)
		require.Empty(t, pass(9*time.Second))
		require.Equal(t, []string{
			`ERROR msg="Protected from exceeding resource limits 3 times: \"system: cannot reserve inbound stream: resource limit exceeded\""` +
				` current=1 limit=1 holder=peer:` + peer.ID("first").String() + ` holds=1` +
				` worst=peer:` + testPeer.String() + ` worst_times=3 raise=System.StreamsInbound`,
		}, pass(time.Second))
		require.Empty(t, pass(time.Minute), "nothing was refused since")
		openingRefused(t, m, testPeer, 2)
		require.Contains(t, pass(10 * time.Second)[0], "limits 2 times")

		// Close logs the rest.
		openingRefused(t, m, testPeer, 1)
		m.Close()
		require.Contains(t, lines.take()[0], "limits 1 time")
		m.Close()
		require.Empty(t, pass(time.Minute))
	})
}

func TestTheLogOfRefusalsCanBeOffOrSlow(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	synctest.Test(t, func(t *testing.T) {
		conf := unlimitedConf()
		conf.System.StreamsInbound = 0
		off := newManager(t, conf, WithRefusalLog(0), WithStripes(1))
		openingRefused(t, off, testPeer, 1)
		slow := newManager(t, conf, WithRefusalLog(time.Hour))
		openingRefused(t, slow, testPeer, 1)
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		require.Empty(t, lines.take())
		require.Nil(t, off.stripes[0].remarks[KindSystem])
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, lines.take(), 1)
		off.Close()
		require.Empty(t, lines.take())
	})
	_, err := New(nil, WithRefusalLog(-time.Second))
	require.EqualError(t, err, "rcmgr: WithRefusalLog: -1s is less than 0")
}

func TestTheLogOfRefusalsGoesToTheLoggerAndLevelOfTheProgram(t *testing.T) {
	lines, other := collectLog(t, slog.LevelDebug), new(logLines)
	theirs := slog.New(slog.NewTextHandler(other, nil)).With("logger", "resourcemanager")
	synctest.Test(t, func(t *testing.T) {
		conf := unlimitedConf()
		conf.System.StreamsInbound = 0
		m := newManager(t, conf, WithRefusalLogger(theirs, slog.LevelWarn), WithRefusalLog(time.Second))
		openingRefused(t, m, testPeer, 2)
		time.Sleep(time.Second)
		synctest.Wait()
		logged := other.take()
		require.Len(t, logged, 1)
		require.Regexp(t, `^WARN msg="Protected from exceeding resource limits 2 times: .* logger=resourcemanager current=0`, logged[0])
		text := strings.Join(lines.take(), "\n")
		require.NotContains(t, text, "Protected")
		require.Contains(t, text, "DEBUG", "each refusal")

		// Another level alone.
		m = newManager(t, conf, WithRefusalLogger(nil, slog.LevelInfo))
		openingRefused(t, m, testPeer, 1)
		lines.take()
		m.Close()
		require.Contains(t, strings.Join(lines.take(), "\n"), `INFO msg="Protected from exceeding resource limits 1 time`)
		require.Empty(t, other.take())
	})
}

// panickingHandler is the handler of a logger that fails.
type panickingHandler struct {
	slog.Handler
	calls *int
}

func (h panickingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h panickingHandler) Handle(context.Context, slog.Record) error {
	*h.calls++
	panic(errFault)
}

func TestRefusalsAreLoggedWhereTheProgramsLoggerFails(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	calls := 0
	conf := unlimitedConf()
	conf.System.StreamsInbound = 0
	m := newManager(t, conf, WithRefusalLogger(slog.New(panickingHandler{slog.DiscardHandler, &calls}), slog.LevelError))
	for range 2 {
		openingRefused(t, m, testPeer, 1)
		m.logRefusals()
	}
	require.Equal(t, 1, calls)
	text := strings.Join(lines.take(), "\n")
	require.Equal(t, 1, strings.Count(text, "a callback has failed: the logger rcmgr takes its place"), text)
	require.Equal(t, 2, strings.Count(text, "Protected from exceeding resource limits 1 time"), text)
}

// Every way to be refused is in the log, with the place to raise the limit at.
func TestTheLogMissesNoRefusal(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	conf := unlimitedConf()
	conf.System.FD = 0
	conf.Transient.ConnsOutbound = 0
	conf.Conn.Memory = 5
	conf.Stream.Memory = 50
	conf.PeerDefault.ConnsInbound = 1
	conf.Peer = map[peer.ID]BaseLimit{"special": conf.PeerDefault}
	conf.ProtocolDefault.StreamsInbound = 2
	conf.ProtocolPeerDefault.StreamsInbound = 1
	conf.ServiceDefault.Memory = 20
	conf.ServicePeerDefault.Memory = 10
	m := newManager(t, conf, WithStripes(1), WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 24, ConnCount: 1}}, nil),
		WithNetworkPrefixLimit([]NetworkPrefixLimit{{netip.MustParsePrefix("10.0.0.0/8"), 0}}, nil))
	refused := func(err error) {
		t.Helper()
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	}
	always := network.ReservationPriorityAlways
	_, err := m.OpenConnection(network.DirInbound, true, nil)
	refused(err)
	_, err = m.OpenConnection(network.DirOutbound, false, nil)
	refused(err)
	for _, p := range []peer.ID{testPeer, "special"} {
		require.NoError(t, mustOpenConn(t, m, network.DirInbound).SetPeer(p))
		c := mustOpenConn(t, m, network.DirInbound)
		refused(c.SetPeer(p))
		refused(c.ReserveMemory(6, always))
	}
	s := servedStream(t, m, testPeer)
	refused(mustBeginSpan(t, s).ReserveMemory(51, always))
	refused(s.ReserveMemory(11, always))
	refused(mustOpenStream(t, m, testPeer, network.DirInbound).SetProtocol(testProto))
	servedStream(t, m, "another")
	refused(mustOpenStream(t, m, "third", network.DirInbound).SetProtocol(testProto))
	refused(viewService(t, m, testSvc).ReserveMemory(21, always))
	for range 2 {
		_, err = m.OpenConnection(network.DirInbound, false, mustMA(t, "/ip4/192.0.2.1"))
	}
	refused(err)
	_, err = m.OpenConnection(network.DirInbound, false, mustMA(t, "/ip4/10.0.0.1"))
	refused(err)
	for err = nil; err == nil; {
		var c network.ConnManagementScope
		if c, err = m.OpenConnection(network.DirInbound, false, mustMA(t, "/ip4/198.51.100.7")); err == nil {
			c.Done()
		}
	}
	refused(err)

	m.logRefusals()
	id := testPeer.String()
	want := []string{
		`1 system: file descriptor current=0 limit=0 raise=System.FD`,
		`1 transient: outbound connection current=0 limit=0 raise=Transient.ConnsOutbound`,
		`1 service:svc: memory current=0 limit=20 worst=service:svc worst_times=1 raise="Service[\"svc\"].Memory"`,
		`1 service-peer: memory current=0 limit=10 worst=service:svc.peer:` + id + ` worst_times=1 raise="ServicePeer[\"svc\"].Memory"`,
		`1 protocol:/test/1: inbound stream current=2 limit=2 holder=peer:` + id + ` holds=1 worst=protocol:/test/1 worst_times=1 raise="Protocol[\"/test/1\"].StreamsInbound"`,
		`1 protocol-peer: inbound stream current=1 limit=1 worst=protocol:/test/1.peer:` + id + ` worst_times=1 raise="ProtocolPeer[\"/test/1\"].StreamsInbound"`,
		`2 peer: inbound connection current=1 limit=1 raise=PeerDefault.ConnsInbound`,
		`2 conn: memory current=0 limit=5 raise=Conn.Memory`,
		`1 stream: memory current=0 limit=50 worst=peer:` + id + ` worst_times=1 raise=Stream.Memory`,
		`2 subnet: inbound connection: connections per ip limit exceeded current=0 limit=0 cause=subnet raise=Gates.Subnets`,
		`1 rate: inbound connection: rate limit exceeded cause=rate worst=rate:198.51.100.7/32 worst_times=1 raise="Gates.Rate.IPv4[\"32\"]"`,
	}
	var got []string
	var total uint64
	for _, line := range lines.take() {
		found := protected.FindStringSubmatch(line)
		require.NotNil(t, found, line)
		n, err := strconv.ParseUint(found[1], 10, 64)
		require.NoError(t, err)
		total += n
		got = append(got, fmt.Sprint(n, " ", found[2], " ", found[3], line[len(found[0]):]))
	}
	require.Equal(t, want, got)
	for _, r := range m.Snapshot().Refusals {
		total -= r.Total()
	}
	require.Zero(t, total, "refusals that the log has missed")
}

// nameOfSubnet is subnetName of a prefix as text.
func nameOfSubnet(k Kind, prefix string) scopeName {
	p := netip.MustParsePrefix(prefix)
	return subnetName(k, ip.KeyOf(p.Addr()), p.Bits())
}

func TestARefusalNamesTheSettingToRaise(t *testing.T) {
	conf := unlimitedConf()
	conf.Peer = map[peer.ID]BaseLimit{testPeer: unlimitedBase}
	conf.Gates = &GateLimits{
		Subnets: SubnetLimits{Networks: map[netip.Prefix]LimitVal{netip.MustParsePrefix("10.0.0.0/8"): 5}},
		Rate:    RateLimits{Networks: map[netip.Prefix]ConnRate{netip.MustParsePrefix("10.0.0.0/8"): {1, 5}}},
	}
	m := newManager(t, conf)
	for _, c := range []struct {
		scope scopeName
		want  string
	}{
		{scopeName{kind: KindAllowlistedSystem}, "AllowlistedSystem.FD"},
		{scopeName{kind: KindAllowlistedTransient}, "AllowlistedTransient.FD"},
		{scopeName{kind: KindService}, "ServiceDefault.FD"},
		{scopeName{kind: KindServicePeer}, "ServicePeerDefault.FD"},
		{scopeName{kind: KindProtocol}, "ProtocolDefault.FD"},
		{scopeName{kind: KindProtocolPeer}, "ProtocolPeerDefault.FD"},
		{scopeName{kind: KindPeer, peer: "other"}, "PeerDefault.FD"},
		{scopeName{kind: KindPeer, peer: testPeer}, `Peer["` + testPeer.String() + `"].FD`},
		{scopeName{kind: KindSubnet}, "Gates.Subnets"},
		{nameOfSubnet(KindSubnet, "10.0.0.0/8"), `Gates.Subnets.Networks["10.0.0.0/8"]`},
		{nameOfSubnet(KindSubnet, "2001:db8::/56"), `Gates.Subnets.IPv6["56"]`},
		{nameOfSubnet(KindRate, "10.0.0.0/8"), `Gates.Rate.Networks["10.0.0.0/8"]`},
	} {
		got := limitKey(m.limits.Load(), m.gate(), c.scope.kind, dimFD, &c.scope)
		require.Equal(t, c.want, got)
		field, _, _ := strings.Cut(got, ".")
		field, _, _ = strings.Cut(field, "[")
		_, ok := reflect.TypeFor[PartialLimitConfig]().FieldByName(field)
		require.True(t, ok, "there is no %s in a configuration", field)
	}
	m = newManager(t, conf, WithConnRateLimiters(&rate.Limiter{}))
	client := nameOfSubnet(KindRate, "192.0.2.1/32")
	require.Equal(t, "WithConnRateLimiters", limitKey(m.limits.Load(), m.gate(), KindRate, dimConnsIn, &client))
}

// The gates keep one refusal and count how often it was repeated: each line of the log
// has what was refused since the last.
func TestEachLogLineCountsTheRefusalsByAGateSinceTheLast(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	// Two addresses of one /16 are under one lock.
	m := newManager(t, unlimitedConf(), WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 32}, {PrefixLength: 16, ConnCount: 9}}, nil))
	for _, c := range []struct {
		from  []string
		worst string
	}{
		{[]string{"192.0.2.1", "192.0.2.1", "192.0.2.1"}, "worst=subnet:192.0.2.1/32 worst_times=3 "},
		{[]string{"192.0.2.1", "192.0.2.1"}, "worst=subnet:192.0.2.1/32 worst_times=2 "},
		{[]string{"192.0.2.1", "192.0.2.2"}, "cause=subnet raise="}, // neither stands out
	} {
		for _, addr := range c.from {
			_, err := m.OpenConnection(network.DirInbound, false, mustMA(t, "/ip4/"+addr))
			require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		}
		m.logRefusals()
		said := lines.take()
		require.Len(t, said, 1)
		require.Contains(t, said[0], c.worst)
	}
}

func TestStrangersAreOneLineOfTheLog(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	conf := unlimitedConf()
	conf.PeerDefault.StreamsInbound = 0
	m := newManager(t, conf, WithStripes(1))
	for i := range 3001 { // an odd number, so that the last one leads by one vote
		openingRefused(t, m, peer.ID(fmt.Sprint("stranger", i)), 1)
	}
	m.logRefusals()
	got := lines.take()
	require.Len(t, got, 1)
	require.Contains(t, got[0], "limits 3001 times")
	require.NotContains(t, got[0], "worst")
	for i := range m.stripes {
		if st := &m.stripes[i]; st.woken.Load() {
			require.Nil(t, st.remarks[KindPeer], "what was told is forgotten")
		}
	}

	// One among them that asks more often than a few is named.
	for i := range 1000 {
		openingRefused(t, m, peer.ID(fmt.Sprint("stranger", i)), 1)
		openingRefused(t, m, testPeer, 2)
	}
	m.logRefusals()
	got = lines.take()
	require.Len(t, got, 1)
	require.Contains(t, got[0], "limits 3000 times")
	require.Contains(t, got[0], "worst=peer:"+testPeer.String())
}

func TestALogLineNamesAScopeOnlyIfItRefusedAllOfThem(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	conf := unlimitedConf()
	conf.ProtocolDefault.StreamsInbound = 0
	m := newManager(t, conf, WithStripes(8))
	ask := func(proto protocol.ID, peers int) {
		for i := range peers {
			s := mustOpenStream(t, m, peer.ID(fmt.Sprint(i)), network.DirInbound)
			require.Error(t, s.SetProtocol(proto))
		}
	}
	ask("/a", 30)
	m.logRefusals()
	require.Contains(t, lines.take()[0], `30 times: \"protocol:/a: cannot reserve inbound stream: resource limit exceeded\"" current=0 limit=0 worst=protocol:/a worst_times=30`)
	ask("/a", 30)
	ask("/b", 2)
	m.logRefusals()
	got := lines.take()
	require.Len(t, got, 1)
	require.Regexp(t, `32 times: ."protocol: cannot reserve inbound stream: .* worst=protocol:/a worst_times=2[68] raise="Protocol`, got[0])
}

func TestNumbersInTheLogAreThoseOfAStripeThatRefused(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	conf := unlimitedConf()
	conf.System.StreamsInbound, conf.System.StreamsOutbound = 1, 0
	m := newManager(t, conf, WithStripes(4))
	mustOpenStream(t, m, testPeer, network.DirInbound)
	openingRefused(t, m, testPeer, 1)
	for i := range 50 { // in all stripes
		_, err := m.OpenStream(peer.ID(fmt.Sprint(i)), network.DirOutbound)
		require.Error(t, err)
	}
	m.logRefusals()
	got := lines.take()
	require.Len(t, got, 2)
	require.Contains(t, got[0], `inbound stream: resource limit exceeded\"" current=1 limit=1 `)
}

// rawValues is a handler that keeps what it is given, unquoted.
type rawValues struct {
	slog.Handler
	text string
}

func (h *rawValues) Handle(_ context.Context, r slog.Record) error {
	h.text += r.Message
	r.Attrs(func(a slog.Attr) bool {
		h.text += " " + a.Value.String()
		return true
	})
	return nil
}

func TestNamesOfStrangersAreQuotedInTheLog(t *testing.T) {
	collectLog(t, slog.LevelDebug)
	raw := &rawValues{Handler: log.Handler()}
	log = slog.New(raw)
	conf := unlimitedConf()
	conf.ProtocolDefault.StreamsInbound = 0
	m := newManager(t, conf)
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	require.Error(t, s.SetProtocol(protocol.ID("/x\nERROR msg=\"forged\"\x1b[2J")))
	m.logRefusals()
	require.Contains(t, raw.text, "refused") // for debugging
	require.Contains(t, raw.text, "Protected from")
	require.NotContains(t, raw.text, "\n")
	require.NotContains(t, raw.text, "\x1b")
}

// reentrant is a handler that asks the manager while it is told something.
type reentrant struct {
	slog.Handler
	m *Manager
}

func (h *reentrant) Handle(ctx context.Context, r slog.Record) error {
	if h.m != nil {
		h.m.Stat()
	}
	return h.Handler.Handle(ctx, r)
}

func TestEachRefusalIsLoggedAtDebugLevel(t *testing.T) {
	lines := collectLog(t, slog.LevelDebug)
	h := &reentrant{Handler: log.Handler()}
	log = slog.New(h)
	conf := unlimitedConf()
	conf.PeerDefault.StreamsInbound = 1
	conf.PeerDefault.ConnsInbound = 0
	conf.System.Memory = 100
	conf.ProtocolDefault.Streams = 0
	conf.Transient.ConnsOutbound = 0
	m := newManager(t, conf, WithRefusalLog(0))
	h.m = m
	lines.take()
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	c := mustOpenConn(t, m, network.DirInbound)
	require.Error(t, s.ReserveMemory(90, network.ReservationPriorityLow))
	require.Error(t, viewSystem(t, m).ReserveMemory(101, 255))
	_, err := m.OpenStream(testPeer, network.DirInbound)
	require.Error(t, err)
	_, err = m.OpenConnection(network.DirOutbound, false, nil)
	require.Error(t, err)
	require.Error(t, c.SetPeer(testPeer))
	require.Error(t, s.SetProtocol("/x"))
	require.NoError(t, s.ReserveMemory(1, 255))
	s.Done()
	require.Error(t, s.SetProtocol("/x"), "this is no refusal")

	peerName := "peer:" + testPeer.String()
	got := lines.take()
	for i := range got {
		got[i] = regexp.MustCompile(`asked=(conn|stream)-\d+`).ReplaceAllString(got[i], "asked=$1")
	}
	require.Equal(t, []string{
		`DEBUG msg=refused asked=stream scope=system kind=system resource=memory current=0 attempted=90 limit=100 priority=101 cause=limit raise=System.Memory`,
		`DEBUG msg=refused asked=system scope=system kind=system resource=memory current=0 attempted=101 limit=100 priority=255 cause=limit raise=System.Memory`,
		`DEBUG msg=refused asked=stream scope=` + peerName + ` kind=peer resource=stream direction=Inbound current=1 attempted=1 limit=1 priority=255 cause=limit raise=PeerDefault.StreamsInbound`,
		`DEBUG msg=refused asked=conn scope=transient kind=transient resource=connection direction=Outbound current=0 attempted=1 limit=0 priority=255 cause=limit raise=Transient.ConnsOutbound`,
		`DEBUG msg=refused asked=conn scope=` + peerName + ` kind=peer resource=connection direction=Inbound current=0 attempted=1 limit=0 priority=255 cause=limit raise=PeerDefault.ConnsInbound`,
		`DEBUG msg=refused asked=stream scope=protocol:/x kind=protocol resource=stream current=0 attempted=1 limit=0 priority=255 cause=limit raise="Protocol[\"/x\"].Streams"`,
	}, got)
	h.m = nil
}

// A limit may refuse while less is held than before, for the sake of others.
func TestTheLogHasTheNumbersAtWhichMostWasHeld(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = 1000 }))
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, s.ReserveMemory(900, 255))
	require.Error(t, s.ReserveMemory(200, 255))
	s.ReleaseMemory(300)
	require.Error(t, s.ReserveMemory(200, 0))
	m.logRefusals()
	got := lines.take()
	require.Len(t, got, 1)
	require.Contains(t, got[0], "current=900 limit=1000")
}
