package rcmgr_test

// What the documents show, as code that is compiled and run. docs_test.go looks up every
// snippet of theirs in the tests and the examples.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/gologshim"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/rcmgrhost"
	"github.com/weir-p2p/rcmgr/rcmgrshadow"
)

var examplePeer = func() peer.ID {
	id, err := peer.Decode("12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL")
	if err != nil {
		panic(err)
	}
	return id
}()

func ExampleNew() {
	rm, err := rcmgr.New(nil) // default limits, for what this process may use
	if err != nil {
		panic(err)
	}
	host, err := libp2p.New(libp2p.ResourceManager(rm), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		panic(err)
	}
	defer host.Close() // closes the manager, too

	visitor, err := libp2p.New(libp2p.NoListenAddrs)
	if err != nil {
		panic(err)
	}
	defer visitor.Close()
	if err := visitor.Connect(context.Background(), peer.AddrInfo{ID: host.ID(), Addrs: host.Addrs()}); err != nil {
		panic(err)
	}
	fmt.Println("inbound connections:", rm.Stat().System.NumConnsInbound)
	// Output: inbound connections: 1
}

func ExampleManager_NewHandle() {
	rm, err := rcmgr.New(nil)
	if err != nil {
		panic(err)
	}
	one, err := libp2p.New(libp2p.ResourceManager(rm.NewHandle()), libp2p.NoListenAddrs)
	if err != nil {
		panic(err)
	}
	two, err := libp2p.New(libp2p.ResourceManager(rm.NewHandle()), libp2p.NoListenAddrs)
	if err != nil {
		panic(err)
	}

	one.Close()
	conn, err := rm.OpenConnection(network.DirOutbound, false, nil)
	fmt.Println("with one host left:", err)
	conn.Done()

	two.Close()
	_, err = rm.OpenConnection(network.DirOutbound, false, nil)
	fmt.Println("with none:", err)
	// Output:
	// with one host left: <nil>
	// with none: resource manager closed: resource scope closed
}

func ExampleLimitError() {
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{ConnsInbound: 1},
	}.Build(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithStripes(1))
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	conn, err := rm.OpenConnection(network.DirInbound, true, nil)
	if err != nil {
		panic(err)
	}
	defer conn.Done()

	_, err = rm.OpenConnection(network.DirInbound, true, nil)
	fmt.Println(err)
	fmt.Println(errors.Is(err, network.ErrResourceLimitExceeded))
	var refusal *rcmgr.LimitError
	if errors.As(err, &refusal) {
		fmt.Println(refusal.Scope(), refusal.Resource(), refusal.Current(), refusal.Limit())
	}
	// Output:
	// conn: system: cannot reserve inbound connection: resource limit exceeded
	// true
	// system connection 1 1
}

func ExampleWithAllowlistedMultiaddrs() {
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{Conns: rcmgr.BlockAllLimit}, // as if it were full
	}.Build(rcmgr.InfiniteLimits)
	office := multiaddr.StringCast("/ip4/192.0.2.0/ipcidr/24")
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{office}))
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	try := func(from string) {
		conn, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast(from))
		if err != nil {
			fmt.Println(from, "is refused")
			return
		}
		fmt.Println(from, "is admitted")
		conn.Done()
	}
	try("/ip4/192.0.2.7/tcp/4001")
	try("/ip4/198.51.100.7/tcp/4001")
	if err := rcmgr.GetAllowlist(rm).Remove(office); err != nil { // it may change at any time
		panic(err)
	}
	try("/ip4/192.0.2.7/tcp/4001")
	// Output:
	// /ip4/192.0.2.7/tcp/4001 is admitted
	// /ip4/198.51.100.7/tcp/4001 is refused
	// /ip4/192.0.2.7/tcp/4001 is refused
}

func ExampleNewLimiterFromJSON() {
	defaults := rcmgr.DefaultLimits.AutoScale()
	limiter, err := rcmgr.NewLimiterFromJSON(strings.NewReader(`{
		"System": {"Conns": 2000, "Memory": "1073741824", "Streams": "unlimited"}
	}`), defaults)
	if err != nil {
		panic(err)
	}
	fmt.Println(limiter.GetSystemLimits().GetConnTotalLimit(), limiter.GetSystemLimits().GetMemoryLimit())

	// It starts a node as go-libp2p's function does. ReadLimits, or a manager that is
	// strict, refuses what that passes over.
	limiter, err = rcmgr.NewLimiterFromJSON(strings.NewReader(`{"System": {"Conns": -5}}`), defaults)
	fmt.Println(err)
	_, err = rcmgr.New(limiter, rcmgr.WithStrictConfig())
	fmt.Println(err)
	// Output:
	// 2000 1073741824
	// <nil>
	// rcmgr: limits: line 1, column 22: System.Conns: -5 is negative: write "unlimited" for no limit, "blockAll" to admit nothing
}

func ExamplePartialLimitConfig() {
	defaults := rcmgr.DefaultLimits.Scale(1<<30, 4096) // 1 GiB and 4096 descriptors for libp2p
	limits := rcmgr.PartialLimitConfig{
		System:      rcmgr.ResourceLimits{Conns: 2000, Streams: rcmgr.Unlimited},
		PeerDefault: rcmgr.ResourceLimits{ConnsInbound: 4},
	}.Build(defaults)

	all := limits.ToPartialLimitConfig()
	fmt.Println(all.System.Conns, all.System.Streams == rcmgr.Unlimited, all.PeerDefault.ConnsInbound)
	before := defaults.ToPartialLimitConfig()
	fmt.Println("the rest is as it was:", all.Transient == before.Transient)
	// Output:
	// 2000 true 4
	// the rest is as it was: true
}

func ExampleManager_Snapshot() {
	rm, err := rcmgr.New(nil)
	if err != nil {
		panic(err)
	}
	defer rm.Close()
	stream, err := rm.OpenStream(examplePeer, network.DirInbound)
	if err != nil {
		panic(err)
	}
	defer stream.Done()
	if err := stream.ReserveMemory(4096, network.ReservationPriorityAlways); err != nil {
		panic(err)
	}

	for _, s := range rm.Snapshot().Scopes {
		if s.Use.Memory > 0 {
			fmt.Println(s.Name, "holds", s.Use.Memory, "bytes, within its limit:", s.Use.Memory <= s.Limit.Memory)
		}
	}
	// Output:
	// system holds 4096 bytes, within its limit: true
	// transient holds 4096 bytes, within its limit: true
	// peer:12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL holds 4096 bytes, within its limit: true
}

// One peer gets a limit of its own while the manager runs.

func ExampleHandler() {
	rm, err := rcmgr.New(nil)
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	http.Handle("/rcmgr", rcmgr.Handler(rm))
	server := httptest.NewServer(http.DefaultServeMux)
	defer server.Close()
	got, err := http.Get(server.URL + "/rcmgr?format=json")
	if err != nil {
		panic(err)
	}
	defer got.Body.Close()
	var s rcmgr.Snapshot
	if err := json.NewDecoder(got.Body).Decode(&s); err != nil {
		panic(err)
	}
	fmt.Println(s.Scopes[0].Name, s.Scopes[0].Use.NumConnsInbound)
	// Output: system 0
}

func ExampleResourceScopeLimiter() {
	rm, err := rcmgr.New(nil)
	if err != nil {
		panic(err)
	}
	defer rm.Close()

	if err := limitPeer(rm, examplePeer, 1); err != nil {
		panic(err)
	}
	stream, err := rm.OpenStream(examplePeer, network.DirInbound)
	if err != nil {
		panic(err)
	}
	defer stream.Done()
	_, err = rm.OpenStream(examplePeer, network.DirInbound)
	fmt.Println(errors.Unwrap(err))
	// Output: peer:12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL: cannot reserve stream: resource limit exceeded
}

func limitPeer(rm *rcmgr.Manager, id peer.ID, streams int) error {
	return rm.ViewPeer(id, func(s network.PeerScope) error {
		scope := s.(rcmgr.ResourceScopeLimiter)
		limit := *scope.Limit().(*rcmgr.BaseLimit)
		limit.Streams = streams
		scope.SetLimit(&limit)
		return nil
	})
}

func ExampleWithStrictConfig() {
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: -5}}.Build(rcmgr.InfiniteLimits)
	limiter := rcmgr.NewFixedLimiter(limits)
	rm, err := rcmgr.New(limiter, rcmgr.WithStrictConfig())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rm.Close()
	// Output:
	// rcmgr: limits: System.Conns: is -5, it must not be negative
}

func ExampleWithRefusalLogger() {
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: rcmgr.BlockAllLimit}}.Build(rcmgr.InfiniteLimits)
	var opts []rcmgr.Option
	opts = append(opts, rcmgr.WithRefusalLogger(gologshim.Logger("resourcemanager"), slog.LevelWarn))

	// For this example, the lines go to the output, without the time.
	withoutTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	opts = append(opts, rcmgr.WithRefusalLogger(logger, slog.LevelWarn))
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), opts...)
	if err != nil {
		panic(err)
	}
	if _, err := rm.OpenConnection(network.DirInbound, true, nil); err == nil {
		panic("admitted")
	}
	rm.Close()
	// Output:
	// level=WARN msg="Protected from exceeding resource limits 1 time: \"system: cannot reserve inbound connection: resource limit exceeded\"" current=0 limit=0 raise=System.ConnsInbound
}

func ExamplePartialLimitConfig_IsDefault() {
	var overrides rcmgr.PartialLimitConfig
	fmt.Println(overrides.IsDefault())
	overrides.Costs = &rcmgr.Costs{Conn: 64 << 10}
	fmt.Println(overrides.IsDefault())
	// Output:
	// true
	// false
}

// The next functions are the programs of MIGRATING.md and README.md after they
// were moved over; TestCodeShownInTheDocumentsWorks runs them.

func afterMoving() error {
	limits := rcmgr.DefaultLimits
	rcmgr.SetDefaultServiceLimits(&limits)
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()))
	if err != nil {
		return err
	}
	host, err := libp2p.New(libp2p.ResourceManager(rm))
	if err != nil {
		return err
	}
	return host.Close()
}

func withDefaults() error {
	rm, err := rcmgr.New(nil)
	if err != nil {
		return err
	}
	host, err := libp2p.New(libp2p.ResourceManager(rm))
	if err != nil {
		return err
	}
	return host.Close()
}

func withOneOption() error {
	host, err := libp2p.New(rcmgrhost.Manager(nil))
	if err != nil {
		return err
	}
	return host.Close()
}

func withANodesLimits() error {
	node := rcmgr.NodeLimits{MaxMemory: 2 << 30, MaxFileDescriptors: 4096, ConnMgrHighWater: 1200}
	host, err := libp2p.New(rcmgrhost.ManagerForNode(node))
	if err != nil {
		return err
	}
	return host.Close()
}

func withoutLimits() error {
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	if err != nil {
		return err
	}
	return rm.Close()
}

func withBothManagers(theirs network.ResourceManager, limiter upstream.Limiter) error {
	rm, err := rcmgrshadow.OursBeside(theirs, limiter)
	if err != nil {
		return err
	}
	host, err := libp2p.New(libp2p.ResourceManager(rm))
	if err != nil {
		return err
	}
	return host.Close()
}

func withBothOfUpstreamsLimits() error {
	limiter := upstream.NewFixedLimiter(upstream.DefaultLimits.AutoScale())
	theirs, err := upstream.NewResourceManager(limiter, upstream.WithMetricsDisabled())
	if err != nil {
		return err
	}
	return withBothManagers(theirs, limiter)
}

func withUpstreamsAdmission() error {
	limiter := rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits)
	rm, err := rcmgr.New(limiter, rcmgr.WithAdmission(rcmgr.AdmissionLinear))
	if err != nil {
		return err
	}
	return rm.Close()
}

func withLimitsInCode() error {
	scaling := rcmgr.DefaultLimits
	rcmgr.SetDefaultServiceLimits(&scaling)
	limits := rcmgr.PartialLimitConfig{
		System:      rcmgr.ResourceLimits{Conns: 2000, ConnsInbound: 1500, ConnsOutbound: 500, Memory: 4 << 30},
		PeerDefault: rcmgr.ResourceLimits{ConnsInbound: 4},
		Protocol:    map[protocol.ID]rcmgr.ResourceLimits{"/my/protocol/1.0.0": {StreamsInbound: 64}},
	}.Build(scaling.AutoScale())
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		return err
	}
	return rm.Close()
}

func withOneManagerForTwoHosts() error {
	rm, err := rcmgr.New(nil)
	if err != nil {
		return err
	}
	one, err := libp2p.New(libp2p.ResourceManager(rm.NewHandle()))
	if err != nil {
		return err
	}
	two, err := libp2p.New(libp2p.ResourceManager(rm.NewHandle()))
	if err != nil {
		return err
	}
	return errors.Join(one.Close(), two.Close())
}

func withMetrics() error {
	rcmgr.MustRegisterWith(prometheus.DefaultRegisterer)
	http.Handle("/metrics", promhttp.Handler())
	return nil
}

func withALimiterOfAnotherPackage() error {
	theirs := upstream.NewFixedLimiter(upstream.InfiniteLimits)
	rm, err := rcmgr.New(rcmgr.LimiterFrom(theirs))
	if err != nil {
		return err
	}
	return rm.Close()
}

func withAConfigurationOfAnotherPackage() error {
	theirs := upstream.PartialLimitConfig{System: upstream.ResourceLimits{Conns: 2000}}
	defaults := rcmgr.DefaultLimits.AutoScale()
	ours, err := rcmgr.PartialLimitConfigFrom(&theirs)
	if err != nil {
		return err
	}
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(ours.Build(defaults)))
	if err != nil {
		return err
	}
	return rm.Close()
}

func TestCodeShownInTheDocumentsWorks(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real hosts")
	}
	mux := http.DefaultServeMux // takes a path once only
	http.DefaultServeMux = http.NewServeMux()
	t.Cleanup(func() { http.DefaultServeMux = mux })
	for name, program := range map[string]func() error{
		"after moving":             afterMoving,
		"defaults":                 withDefaults,
		"one option":               withOneOption,
		"a node's limits":          withANodesLimits,
		"no limits":                withoutLimits,
		"both managers":            withBothOfUpstreamsLimits,
		"upstream's admission":     withUpstreamsAdmission,
		"limits in code":           withLimitsInCode,
		"one manager, two hosts":   withOneManagerForTwoHosts,
		"metrics":                  withMetrics,
		"a foreign limiter":        withALimiterOfAnotherPackage,
		"a foreign configuration":  withAConfigurationOfAnotherPackage,
		"before moving, unchanged": beforeMoving,
	} {
		require.NoError(t, program(), name)
	}
}

// readOverrides reads a file of limits strictly, if there is one, into a value that
// can be looked at before a limiter is made of it.
func readOverrides(path string) (rcmgr.PartialLimitConfig, error) {
	overrides, err := rcmgr.ReadLimitsFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return overrides, err
}

func TestAnOverrideFileIsReadStrictlyIntoAConfiguration(t *testing.T) {
	path := t.TempDir() + "/limits.json"
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }

	limits, err := readOverrides(path)
	require.NoError(t, err, "there need be no file")
	require.Equal(t, rcmgr.PartialLimitConfig{}, limits)
	write(`{"System": {"Conns": 2000}}`)
	limits, err = readOverrides(path)
	require.NoError(t, err)
	require.Equal(t, rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: 2000}}, limits)

	write(`{"System": {"Conn": 2000}}`)
	_, err = readOverrides(path)
	require.ErrorContains(t, err, "line 1")
	require.ErrorContains(t, err, "System.Conn: unknown name")
}

// loggingManager is a wrapper in the manner of Kubo's: it counts refusals by
// the text of the unwrapped error.
type loggingManager struct {
	network.ResourceManager
	refusals map[string]int
}

func (l *loggingManager) Unwrap() network.ResourceManager { return l.ResourceManager }

func (l *loggingManager) count(err error) {
	if errors.Is(err, network.ErrResourceLimitExceeded) {
		l.refusals[errors.Unwrap(err).Error()]++
	}
}

func (l *loggingManager) OpenConnection(dir network.Direction, usefd bool, from multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	conn, err := l.ResourceManager.OpenConnection(dir, usefd, from)
	l.count(err)
	return conn, err
}

func TestAWrapperThatCountsRefusalsByUnwrappedTextStillWorks(t *testing.T) {
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{ConnsInbound: 10, ConnsOutbound: rcmgr.BlockAllLimit, Memory: 1 << 20},
	}.Build(rcmgr.InfiniteLimits)
	stats, err := rcmgr.NewStatsTraceReporter()
	require.NoError(t, err)
	inner, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits), rcmgr.WithTraceReporter(stats))
	require.NoError(t, err)
	rm := &loggingManager{inner, make(map[string]int)}
	defer rm.Close()

	for range 3 {
		_, err := rm.OpenConnection(network.DirOutbound, true, nil)
		require.Error(t, err)
	}
	for range 10 { // the subnet gate admits 8
		conn, err := rm.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/192.0.2.7/tcp/1"))
		if err == nil {
			defer conn.Done()
			rm.count(conn.ReserveMemory(math.MaxInt, network.ReservationPriorityAlways))
		}
	}
	require.Equal(t, map[string]int{
		"system: cannot reserve outbound connection: resource limit exceeded":                                                3,
		"system: cannot reserve memory: resource limit exceeded":                                                             8,
		"subnet:192.0.2.7/32: cannot reserve inbound connection: connections per ip limit exceeded: resource limit exceeded": 2,
	}, rm.refusals)
	require.NotNil(t, rcmgr.GetAllowlist(rm), "found through Unwrap")
}
