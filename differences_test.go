package rcmgr

// DIFFERENCES.md is the list of all purposeful differences from go-libp2p's
// manager. Each has a test; small ones that stand nowhere else are here.

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// difference is one line of DIFFERENCES.md.
type difference struct {
	name  string
	tests []string
}

var testNames = regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")

func readDifferences(t testing.TB) (list []difference) {
	t.Helper()
	text, err := os.ReadFile("DIFFERENCES.md")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|--") || strings.TrimSpace(cells[0]) == "what" {
			continue
		}
		require.Len(t, cells, 4, line)
		d := difference{name: strings.TrimSpace(cells[0])}
		for _, m := range testNames.FindAllStringSubmatch(cells[3], -1) {
			d.tests = append(d.tests, m[1])
		}
		list = append(list, d)
	}
	require.NotEmpty(t, list)
	return list
}

func TestEveryDifferenceNamesATest(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	within, err := filepath.Glob("internal/*/*_test.go")
	require.NoError(t, err)
	here := map[string]bool{}
	for _, name := range append(files, within...) {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				here[f.Name.Name] = true
			}
		}
	}
	names := map[string]bool{}
	for _, d := range readDifferences(t) {
		require.False(t, names[d.name], "%q stands twice", d.name)
		names[d.name] = true
		require.NotEmpty(t, d.tests, "%q has no test", d.name)
		for _, name := range d.tests {
			require.True(t, here[name], "%q: there is no %s", d.name, name)
		}
	}
}

// onePerAddress admits one connection from each IPv4 address.
func onePerAddress() []Option {
	return []Option{WithLimitPerSubnet([]ConnLimitPerSubnet{{32, 1}}, nil), WithConnRateLimiters(nil)}
}

func TestOurOwnDialsPassNoGate(t *testing.T) {
	opts := append(onePerAddress(), WithConnRateLimiters(&rate.Limiter{GlobalLimit: rate.Limit{RPS: 1e-3, Burst: 2}}))
	m := newManager(t, unlimitedConf(), opts...)
	far := testFars[1].addr
	dial := func() {
		for range 20 {
			_, err := m.OpenConnection(network.DirOutbound, true, far)
			require.NoError(t, err)
		}
	}
	dial()
	c, err := m.OpenConnection(network.DirInbound, true, far)
	require.NoError(t, err, "dials take no place at the gates")
	_, err = m.OpenConnection(network.DirInbound, true, far)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	dial()
	c.Done()
}

func TestRefusalsByGatesAreTypedAndCounted(t *testing.T) {
	far := testFars[1].addr
	rates := func() *rate.Limiter { return &rate.Limiter{GlobalLimit: rate.Limit{RPS: 1e-3, Burst: 1}} }
	for _, c := range []struct {
		opts  []Option
		kind  Kind
		cause Cause
		scope string
	}{
		{onePerAddress(), KindSubnet, CauseSubnet, "subnet:198.51.100.1/32"},
		{[]Option{WithConnRateLimiters(rates())}, KindRate, CauseRate, "rate:198.51.100.1/32"},
	} {
		var told []TraceEvt
		m := newManager(t, unlimitedConf(), append(c.opts, WithTraceReporter(reporterFunc(func(e TraceEvt) { told = append(told, e) })))...)
		held, err := m.OpenConnection(network.DirInbound, true, far)
		require.NoError(t, err)
		_, err = m.OpenConnection(network.DirInbound, true, far)
		var e *LimitError
		require.ErrorAs(t, err, &e)
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		require.Equal(t, c.cause, e.Cause())
		require.Equal(t, c.kind, e.Kind())
		require.Equal(t, c.scope, e.Scope())
		require.EqualValues(t, 1, m.Snapshot().Refusals[c.kind].Total())
		held.Done()
		require.Zero(t, countEntries(t, m.gate().subnets))
		require.NoError(t, m.Close())
		var blocked []string
		for _, evt := range told {
			if strings.HasPrefix(string(evt.Type), "block") {
				blocked = append(blocked, evt.Name)
			}
		}
		require.Equal(t, []string{c.scope}, blocked)
	}
}

func TestAFullManagerKeepsNoRecordOfRefusedAddresses(t *testing.T) {
	limiter := &rate.Limiter{GlobalLimit: rate.Limit{RPS: 1e-3, Burst: 2}}
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 1 }),
		append(onePerAddress(), WithConnRateLimiters(limiter))...)
	far := func(i int) multiaddr.Multiaddr {
		return multiaddr.StringCast(fmt.Sprintf("/ip4/198.51.100.%d/tcp/1", i))
	}
	c, err := m.OpenConnection(network.DirInbound, true, far(1))
	require.NoError(t, err)
	for i := 1; i < 100; i++ {
		_, err := m.OpenConnection(network.DirInbound, true, far(i))
		var e *LimitError
		require.ErrorAs(t, err, &e)
		require.Equal(t, KindSystem, e.Kind(), "the first has a full subnet, too")
	}
	require.Equal(t, 1, countEntries(t, m.gate().subnets))
	c.Done()
	_, err = m.OpenConnection(network.DirInbound, true, far(2))
	require.NoError(t, err, "the token is still there")
}

func TestSourcesAreVerifiedUnderLoad(t *testing.T) {
	for _, stripes := range []int{1, 8} {
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.Transient.ConnsInbound = 10 }),
			append(openGates(), WithStripes(stripes))...)
		next := 0
		verify := func() bool { // asked for an address that never came before
			next++
			return m.VerifySourceAddress(&net.UDPAddr{IP: net.IPv4(198, 51, 100, byte(next)), Port: 1})
		}
		var held []network.ConnManagementScope
		for i := range 10 {
			require.Equal(t, i > 5, verify(), "with %d of 10", i)
			held = append(held, mustOpenConn(t, m, network.DirInbound))
		}
		for i, c := range held {
			require.Equal(t, 10-i > 5, verify())
			require.NoError(t, c.SetPeer(testPeer)) // it is no longer transient
		}
		require.False(t, verify())
	}
}

func TestTheAllowlistIsAskedBeforeTheGates(t *testing.T) {
	friend, other := testPeers[0], testPeers[1]
	far := multiaddr.StringCast("/ip4/198.51.100.1/tcp/1")
	m := newManager(t, unlimitedConf(), onePerAddress()...)
	open := func() (network.ConnManagementScope, error) { return m.OpenConnection(network.DirInbound, true, far) }
	var held []network.ConnManagementScope
	requireOpen := func(want bool) network.ConnManagementScope {
		t.Helper()
		c, err := open()
		require.Equal(t, want, err == nil, "%v", err)
		if err == nil {
			held = append(held, c)
		}
		return c
	}
	requireOpen(true)
	requireOpen(false)
	everybody := multiaddr.StringCast("/ip4/198.51.100.0/ipcidr/24")
	require.NoError(t, m.GetAllowlist().Add(everybody))
	for range 5 {
		requireOpen(true)
	}
	require.NoError(t, m.GetAllowlist().Remove(everybody))
	requireOpen(false)

	require.NoError(t, m.GetAllowlist().Add(multiaddr.StringCast("/ip4/198.51.100.1/p2p/"+friend.String())))
	for range 3 {
		require.NoError(t, requireOpen(true).SetPeer(friend))
		c := requireOpen(true) // the peer shows later
		var e *LimitError
		require.ErrorAs(t, c.SetPeer(other), &e)
		require.Equal(t, CauseSubnet, e.Cause())
		require.Nil(t, c.PeerScope())
	}
	for _, c := range held {
		c.Done()
	}
	require.Zero(t, countEntries(t, m.gate().subnets))
	assertEmpty(t, m)
}

func TestStreamsOfAnAllowlistedPeerFallBackToTheAllowlistedScopes(t *testing.T) {
	friend, other := testPeers[0], testPeers[1]
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.Transient.Streams = 0 }),
		append(openGates(), WithAllowlistedMultiaddrs(testAllowlist))...)
	open := func(p peer.ID) bool {
		s, err := m.OpenStream(p, network.DirInbound)
		if err == nil {
			require.Equal(t, 1, m.fixed[KindAllowlistedTransient].Stat().NumStreamsInbound)
			s.Done()
		}
		return err == nil
	}
	require.False(t, open(friend))
	var held []network.ConnManagementScope
	for _, p := range []peer.ID{friend, other} {
		c, err := m.OpenConnection(network.DirInbound, true, testFars[3].addr)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(p))
		held = append(held, c)
	}
	require.True(t, open(friend))
	require.False(t, open(other))
	for _, c := range held {
		c.Done()
	}
	require.False(t, open(friend), "it has no connection any more")
	assertEmpty(t, m)
}

func TestAMoveIsRefusedOnlyForWhatItHolds(t *testing.T) {
	m := newManager(t, unlimitedConf())
	p := viewPeer(t, m, testPeer)
	mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, p.ReserveMemory(100, 255))
	connsOnly := unlimitedBase
	connsOnly.Memory, connsOnly.Streams = 0, 0
	p.(ResourceScopeLimiter).SetLimit(&connsOnly)
	c := mustOpenConn(t, m, network.DirInbound)
	require.NoError(t, c.SetPeer(testPeer))

	c = mustOpenConn(t, m, network.DirInbound)
	require.NoError(t, c.ReserveMemory(1, 255))
	require.ErrorIs(t, c.SetPeer(testPeer), network.ErrResourceLimitExceeded)
}

func TestTextsOfRefusals(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Memory, c.PeerDefault.Conns = 10, 0
		c.Stream.Memory = 5
	}), WithStripes(1))
	c, s := mustOpenConn(t, m, network.DirInbound), mustOpenStream(t, m, testPeer, network.DirInbound)
	name := "peer:" + testPeer.String()
	span := mustBeginSpan(t, mustBeginSpan(t, c))
	const no = ": resource limit exceeded"
	for _, x := range []struct {
		err             error
		text, unwrapped string
	}{
		{c.ReserveMemory(11, 255), "conn-1: system: cannot reserve memory" + no, "system: cannot reserve memory" + no},
		{span.ReserveMemory(11, 255), "conn-1.span-1.span-1: system: cannot reserve memory" + no, "system: cannot reserve memory" + no},
		{s.ReserveMemory(6, 255), "stream-2: cannot reserve memory" + no, "cannot reserve memory" + no},
		{c.SetPeer(testPeer), "conn-1: " + name + ": cannot reserve connection" + no, name + ": cannot reserve connection" + no},
		{s.SetService("x"), "stream-2: " + errNoProtocol.Error(), errNoProtocol.Error()},
	} {
		require.EqualError(t, x.err, x.text)
		require.EqualError(t, errors.Unwrap(x.err), x.unwrapped)
	}
}

// changingLimit is a Limit that counts how often it is read.
type changingLimit struct {
	*BaseLimit
	reads *atomic.Int64
}

func (l changingLimit) GetMemoryLimit() int64 {
	l.reads.Add(1)
	return l.BaseLimit.GetMemoryLimit()
}

type changingLimiter struct {
	Limiter
	limit changingLimit
}

func (l changingLimiter) GetPeerLimits(peer.ID) Limit { return l.limit }

func TestALimitIsReadWhenItsScopeIsMade(t *testing.T) {
	limit := unlimitedBase
	limit.Memory = 10
	var reads atomic.Int64
	m, err := New(changingLimiter{NewFixedLimiter(ConcreteLimitConfig{limits: unlimitedConf()}), changingLimit{&limit, &reads}})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	p := viewPeer(t, m, testPeer)
	read := reads.Load()
	require.NotZero(t, read)
	limit.Memory = 20
	require.Error(t, p.ReserveMemory(11, 255), "that of a scope is not read again")
	require.NoError(t, p.ReserveMemory(10, 255))
	require.Equal(t, read, reads.Load())
	require.NoError(t, viewPeer(t, m, "another").ReserveMemory(20, 255))
}

func TestNoLimiterMeansTheDefaults(t *testing.T) {
	m, err := New(nil)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	cfg := DefaultLimits
	SetDefaultServiceLimits(&cfg)
	want := cfg.AutoScale().limits
	require.Equal(t, &want.System, viewSystem(t, m).(ResourceScopeLimiter).Limit())
	ping := want.Protocol["/ipfs/ping/1.0.0"]
	require.NotZero(t, ping)
	require.Equal(t, &ping, viewProtocol(t, m, "/ipfs/ping/1.0.0").(ResourceScopeLimiter).Limit())
}

func TestNumbersOfConnectionsAndStreamsAreUnique(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	seen := map[int64]bool{}
	for _, p := range manyPeers(100) {
		for _, n := range []int64{
			mustOpenConn(t, m, network.DirInbound).(*connScope).h.num, mustOpenStream(t, m, p, network.DirInbound).(*streamScope).h.num,
		} {
			require.Positive(t, n)
			require.False(t, seen[n])
			seen[n] = true
		}
	}
}

func TestStatIsOneCut(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	peers := manyPeers(32)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			s, err := m.OpenStream(peers[i%len(peers)], network.DirInbound)
			if err == nil {
				err = errors.Join(s.ReserveMemory(1+i%100, 255), s.SetProtocol(testProto))
				s.Done()
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 2000 {
		stat := m.Stat()
		var sum network.ScopeStat
		for _, s := range stat.Peers {
			sum.Memory += s.Memory
			sum.NumStreamsInbound += s.NumStreamsInbound
		}
		require.Equal(t, sum, stat.System)
		require.Equal(t, sum.NumStreamsInbound, stat.Transient.NumStreamsInbound+stat.Protocols[testProto].NumStreamsInbound)
	}
	close(stop)
	<-done
}

func TestOpenConnectionNoIPIsNotThere(t *testing.T) {
	var m any = new(Manager)
	_, ok := m.(interface {
		OpenConnectionNoIP(network.Direction, bool, multiaddr.Multiaddr) (network.ConnManagementScope, error)
	})
	require.False(t, ok)
}

func TestMemoryInJSONMayPass2GiB(t *testing.T) {
	var l ResourceLimits
	require.NoError(t, json.Unmarshal([]byte(`{"Memory":8589934592}`), &l))
	require.EqualValues(t, int64(8)<<30, l.Memory)
}

func TestAReporterHearsOfEachDecisionOnce(t *testing.T) {
	r := &talk{}
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.Memory = 10
		c.Peer = map[peer.ID]BaseLimit{"full": {}}
	}), append(onePerAddress(), WithMetrics(r))...)
	expect := func(err error, refused bool, said ...string) {
		t.Helper()
		require.Equal(t, refused, err != nil, "%v", err)
		require.Equal(t, strings.Join(said, ""), strings.Join(r.said, ""))
		r.said = nil
	}
	c, err := m.OpenConnection(network.DirInbound, true, testFars[1].addr)
	expect(err, false, "conn Inbound true\n")
	_, err = m.OpenConnection(network.DirInbound, true, testFars[1].addr)
	expect(err, true, "no conn Inbound true\n") // by a gate
	span := mustBeginSpan(t, mustBeginSpan(t, c))
	expect(span.ReserveMemory(7, 255), false, "memory 7\n")
	expect(span.ReserveMemory(7, 255), true, "no memory 7\n")
	expect(c.SetPeer("full"), true, "no peer "+peer.ID("full").String()+"\n")
	expect(c.SetPeer(testPeer), false, "peer "+testPeer.String()+"\n")
	expect(c.SetPeer(testPeer), true) // a misuse

	m = newManager(t, unlimitedConf(), WithMetrics(r))
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	r.said = nil
	for range 3 { // the first draws credit, the others have it
		expect(s.ReserveMemory(1, 255), false, "memory 1\n")
	}
}

func TestATraceHasOneEventForARefusal(t *testing.T) {
	var told []TraceEvt
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = 10 }),
		WithTraceReporter(reporterFunc(func(e TraceEvt) { told = append(told, e) })))
	s := servedStream(t, m, testPeer)
	require.Error(t, mustBeginSpan(t, s).ReserveMemory(11, 200))
	require.NoError(t, m.Close())
	var about []string
	for _, e := range told {
		if e.Delta != 0 && strings.HasSuffix(string(e.Type), "memory") {
			about = append(about, fmt.Sprint(e.Type, " ", e.Name, " ", e.Delta, " of priority ", e.Priority))
		}
	}
	require.Equal(t, []string{"block_reserve_memory system 11 of priority 200"}, about)
}

// bothOf makes upstream's manager and one of ours, which have the same limits and allowlist and
// tell their events.
func bothOf(t *testing.T, limits string, list ...multiaddr.Multiaddr) (theirs network.ResourceManager, ours *Manager, theirEvts *theirEvents, ourEvts *heard) {
	t.Helper()
	theirEvts, ourEvts = &theirEvents{}, &heard{}
	var up upstream.PartialLimitConfig
	require.NoError(t, json.Unmarshal([]byte(limits), &up))
	theirs, err := upstream.NewResourceManager(upstream.NewFixedLimiter(up.Build(upstream.InfiniteLimits)),
		upstream.WithAllowlistedMultiaddrs(list), upstream.WithTraceReporter(theirEvts), upstream.WithMetricsDisabled())
	require.NoError(t, err)
	cfg, err := ReadLimits(strings.NewReader(limits))
	require.NoError(t, err)
	ours, err = New(NewFixedLimiter(cfg.Build(InfiniteLimits)), WithAllowlistedMultiaddrs(list), WithTraceReporter(ourEvts))
	require.NoError(t, err)
	t.Cleanup(func() { ours.Close() })
	return theirs, ours, theirEvts, ourEvts
}

func TestAConnectionThatTheAllowlistLetsInCountsAsBlockedNowhere(t *testing.T) {
	far := multiaddr.StringCast("/ip4/198.51.100.1/tcp/1")
	theirs, ours, theirEvts, ourEvts := bothOf(t, `{"System": {"Conns": 0, "ConnsInbound": 0}}`, multiaddr.StringCast("/ip4/198.51.100.1"))
	for _, rm := range []network.ResourceManager{theirs, ours} {
		_, err := rm.OpenConnection(network.DirInbound, true, far)
		require.NoError(t, err)
	}
	require.Zero(t, ours.Snapshot().Refusals[KindSystem].Total())
	require.NoError(t, theirs.Close())
	require.NoError(t, ours.Close())
	var blocked []string
	for _, e := range *theirEvts {
		if strings.HasPrefix(string(e.Type), "block") {
			blocked = append(blocked, fmt.Sprint(e.Type, " ", e.Name))
		}
	}
	require.Equal(t, []string{"block_add_conn system"}, blocked)
	for _, e := range ourEvts.evts {
		require.False(t, strings.HasPrefix(string(e.Type), "block"), "%+v", e)
	}
}

func TestATraceOfARefusedOpeningCreatesBlocksAndDestroys(t *testing.T) {
	for name, opts := range map[string][]Option{"system": nil, "subnet:198.51.100.1/32": onePerAddress()} {
		r := &heard{}
		m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
			if opts == nil {
				c.System.Conns = 1
			}
		}), append(opts, WithTraceReporter(r))...)
		open := func() error {
			_, err := m.OpenConnection(network.DirInbound, true, testFars[1].addr)
			return err
		}
		require.NoError(t, open())
		require.NoError(t, m.FlushTrace(t.Context()))
		before := len(r.evts)
		require.Error(t, open())
		require.NoError(t, m.Close())
		var told []string
		for _, e := range r.evts[before:] {
			told = append(told, fmt.Sprint(e.Type, " ", e.Name))
		}
		require.Equal(t, []string{"create_scope conn-2", "block_add_conn " + name, "destroy_scope conn-2"}, told)
	}
}

func TestAMoveCreatesItsScopesBeforeItChargesThem(t *testing.T) {
	theirs, ours, theirEvts, ourEvts := bothOf(t, `{}`)
	for _, rm := range []network.ResourceManager{theirs, ours} {
		s, err := rm.OpenStream(testPeer, network.DirInbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/x"))
		require.NoError(t, s.SetService("x"))
	}
	require.NoError(t, theirs.Close())
	require.NoError(t, ours.Close())
	about := func(told []string, kind, typ, name string) []string {
		if strings.HasPrefix(name, kind) {
			told = append(told, typ+" "+strings.TrimSuffix(name, testPeer.String()))
		}
		return told
	}
	for _, kind := range []string{"protocol:/x", "service:x"} {
		whole, part := kind, kind+".peer:"
		var their, our []string
		for _, e := range *theirEvts {
			their = about(their, kind, string(e.Type), e.Name)
		}
		for _, e := range ourEvts.evts {
			our = about(our, kind, string(e.Type), e.Name)
		}
		require.Equal(t, []string{"create_scope " + whole, "add_stream " + whole, "create_scope " + part, "add_stream " + part}, their)
		require.Equal(t, []string{"create_scope " + whole, "create_scope " + part, "add_stream " + part, "add_stream " + whole}, our)
	}
}

func TestTextsOfMisuse(t *testing.T) {
	theirs, ours, _, _ := bothOf(t, `{}`)
	misuse := func(rm network.ResourceManager) (texts []string) {
		c, err := rm.OpenConnection(network.DirInbound, true, testFars[1].addr)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(testPeer))
		s, err := rm.OpenStream(testPeer, network.DirInbound)
		require.NoError(t, err)
		say := func(err error) {
			require.Error(t, err)
			texts = append(texts, err.Error())
		}
		say(c.SetPeer(testPeer))
		say(s.SetService("x"))
		require.NoError(t, s.SetProtocol("/x"))
		say(s.SetProtocol("/x"))
		require.NoError(t, s.SetService("x"))
		say(s.SetService("x"))
		return texts
	}
	require.Equal(t, []string{"connection scope already attached to a peer", "stream scope not attached to a protocol",
		"stream scope already attached to a protocol", "stream scope already attached to a service"}, misuse(theirs))
	require.Equal(t, []string{"conn-1: already attached", "stream-2: " + errNoProtocol.Error(),
		"stream-2: already attached", "stream-2: already attached"}, misuse(ours))
	require.NoError(t, theirs.Close())
}

func TestTheTextOfARefusalUnwrappedTwice(t *testing.T) {
	theirs, ours, _, _ := bothOf(t, `{"System": {"Conns": 0, "ConnsInbound": 0}}`)
	twice := func(rm network.ResourceManager) string {
		_, err := rm.OpenConnection(network.DirInbound, true, testFars[1].addr)
		return errors.Unwrap(errors.Unwrap(err)).Error()
	}
	require.Equal(t, "cannot reserve inbound connection: resource limit exceeded", twice(theirs))
	require.Equal(t, "resource limit exceeded", twice(ours))
	require.NoError(t, theirs.Close())
}

func TestABaseLimitPrintedHasItsRates(t *testing.T) {
	require.Equal(t, "{Streams:1 StreamsInbound:0 StreamsOutbound:0 Conns:0 ConnsInbound:0 ConnsOutbound:0 FD:0 Memory:0}",
		fmt.Sprintf("%+v", upstream.BaseLimit{Streams: 1}))
	require.Contains(t, fmt.Sprintf("%+v", BaseLimit{Streams: 1}), "FD:0 Memory:0 Rates:{Streams:unlimited ")
}

func TestAStatsTraceReporterCountsNoEvents(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Conns = 0 }))
	reg := registryOf(t, m)
	_, err := m.OpenConnection(network.DirInbound, true, testFars[1].addr)
	require.Error(t, err)
	stats, err := NewStatsTraceReporter()
	require.NoError(t, err)
	before := seriesOf(t, reg, "blocked_resources")
	require.NotEmpty(t, before)
	stats.ConsumeEvent(TraceEvt{Type: TraceBlockAddConnEvt, Name: "system", DeltaIn: 1})
	require.Equal(t, before, seriesOf(t, reg, "blocked_resources"))
}
