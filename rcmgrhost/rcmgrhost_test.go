package rcmgrhost_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	logging "github.com/libp2p/go-libp2p/gologshim"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/fx"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/rcmgrhost"
	"github.com/weir-p2p/rcmgr/rcmgrtest"
)

// patience bounds every wait. Each ends as soon as what it waits for is so.
const patience = 20 * time.Second

// logged is what has been logged in this process.
var logged logText

// logText is text that may be written and read concurrently.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logText) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Len()
}

// conflictsSince returns the lines about conflicts with the connection manager that were logged
// after the first n bytes.
func (l *logText) conflictsSince(n int) (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()[n:]) {
		if strings.Contains(line, "connection manager") || strings.Contains(line, "connmgr") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestMain(m *testing.M) {
	logging.SetDefaultHandler(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
	os.Exit(m.Run())
}

// onHosts begins a test with real hosts. The test is skipped when time is short, and
// fails if a goroutine of a manager is left when everything is closed.
func onHosts(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real hosts")
	}
	before := managersGoroutines()
	t.Cleanup(func() { requireGoroutines(t, before) })
}

func requireGoroutines(t *testing.T, atMost int) {
	t.Helper()
	require.Eventually(t, func() bool { return managersGoroutines() <= atMost }, patience, 5*time.Millisecond,
		"goroutines of a manager are left")
}

// managersGoroutines counts the goroutines that managers have started, except those that
// have not run yet.
func managersGoroutines() int {
	all := make([]byte, 1<<22)
	all = all[:runtime.Stack(all, true)]
	return strings.Count(string(all), "rcmgr.(*Manager).workUntilClosed(")
}

// newHost returns a host that listens on TCP on loopback and is closed after the test.
func newHost(t *testing.T, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append(opts, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))...)
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

// managerOf returns the manager that a host has from the option of this package.
func managerOf(t *testing.T, h host.Host) *rcmgr.Manager {
	t.Helper()
	m, ok := rcmgrhost.Of(h)
	require.True(t, ok)
	require.Same(t, m, h.Network().ResourceManager(), "the host must use the manager itself, without a wrapper")
	return m
}

// managersShown returns the number of managers in the metrics on a registry, or -1 if
// the metrics are not there.
func managersShown(t *testing.T, g prometheus.Gatherer) int {
	t.Helper()
	families, err := g.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "libp2p_rcmgr_managers" {
			return int(f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	return -1
}

// limited returns limits on the connections of the system scope, and no others.
func limited(conns rcmgr.LimitVal) rcmgr.Limiter {
	return rcmgr.NewFixedLimiter(rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: conns}}.Build(rcmgr.InfiniteLimits))
}

func TestAHostCountsOnItsManagerAndClosesIt(t *testing.T) {
	onHosts(t)
	option := rcmgrhost.Manager(limited(7))
	one, two := newHost(t, option, libp2p.DisableMetrics()), newHost(t, libp2p.DisableMetrics(), option)
	m, other := managerOf(t, one), managerOf(t, two)
	require.NotSame(t, m, other, "each host has a manager of its own")
	require.Equal(t, 7, m.GetConnLimit())

	require.NoError(t, two.Connect(context.Background(), peer.AddrInfo{ID: one.ID(), Addrs: one.Addrs()}))
	require.Eventually(t, func() bool { return m.Stat().System.NumConnsInbound == 1 }, patience, 5*time.Millisecond)
	require.Equal(t, 1, other.Stat().System.NumConnsOutbound)

	require.NoError(t, one.Close())
	_, err := m.OpenConnection(network.DirInbound, false, nil)
	require.ErrorIs(t, err, network.ErrResourceScopeClosed, "the host has closed its manager")
	conn, err := other.OpenConnection(network.DirInbound, false, nil)
	require.NoError(t, err, "the other host is open, and so is its manager")
	conn.Done()
	require.NoError(t, two.Close())
	rcmgrtest.RequireEmpty(t, m, patience)
	rcmgrtest.RequireEmpty(t, other, patience)
}

func TestMetricsAreWhereTheHostHasItsOwnInAnyOrderOfOptions(t *testing.T) {
	onHosts(t)
	def := prometheus.DefaultRegisterer
	t.Cleanup(func() { prometheus.DefaultRegisterer = def })

	for _, first := range []bool{true, false} {
		ordered := func(other libp2p.Option) []libp2p.Option {
			if first {
				return []libp2p.Option{rcmgrhost.Manager(nil), other}
			}
			return []libp2p.Option{other, rcmgrhost.Manager(nil)}
		}
		defaults, own := prometheus.NewRegistry(), prometheus.NewRegistry()
		prometheus.DefaultRegisterer = defaults

		h := newHost(t, ordered(libp2p.DisableMetrics())...)
		require.Equal(t, -1, managersShown(t, defaults), "metrics are disabled")
		h.Close()

		both := libp2p.ChainOptions(libp2p.PrometheusRegisterer(own), libp2p.DisableMetrics())
		h = newHost(t, ordered(both)...)
		require.Equal(t, -1, managersShown(t, own), "metrics are disabled, though there is a registerer")
		h.Close()

		h = newHost(t, ordered(libp2p.PrometheusRegisterer(own))...)
		require.Equal(t, 1, managersShown(t, own))
		require.Equal(t, -1, managersShown(t, defaults), "they are on the host's registerer alone")
		h.Close()

		h = newHost(t, ordered(libp2p.UserAgent("any"))...)
		another := newHost(t, rcmgrhost.Manager(nil))
		require.Equal(t, 2, managersShown(t, defaults), "without a registerer they are on the default one, for all hosts")
		h.Close()
		another.Close()
		require.Equal(t, 0, managersShown(t, defaults))
	}
}

func TestLimitsBelowTheConnectionManagersMarkAreLoggedInAnyOrderOfOptions(t *testing.T) {
	onHosts(t)
	for _, first := range []bool{true, false} {
		for conns, conflicts := range map[rcmgr.LimitVal]int{10: 1, 100: 0} {
			cm, err := connmgr.NewConnManager(20, 30)
			require.NoError(t, err)
			opts := []libp2p.Option{rcmgrhost.Manager(limited(conns)), libp2p.ConnectionManager(cm)}
			if !first {
				opts[0], opts[1] = opts[1], opts[0]
			}
			before := logged.len()
			newHost(t, append(opts, libp2p.DisableMetrics())...)
			told := logged.conflictsSince(before)
			require.Len(t, told, conflicts, "with %d connections", conns)
			if conflicts > 0 {
				require.Contains(t, told[0], "System.Conns (10) is not above the connection manager's high water mark")
			}
		}
	}
}

// Limits that are put in force later are compared again, with the connection manager that the host
// has. A conflict is logged once, as long as it stays the same.
func TestLimitsThatChangeAreComparedWithTheConnectionManagerAgain(t *testing.T) {
	onHosts(t)
	cm, err := connmgr.NewConnManager(20, 30)
	require.NoError(t, err)
	h := newHost(t, rcmgrhost.Manager(limited(100)), libp2p.ConnectionManager(cm), libp2p.DisableMetrics())
	m := h.Network().ResourceManager().(*rcmgr.Manager)
	before := logged.len()
	for _, step := range []struct {
		conns rcmgr.LimitVal
		told  string
	}{{50, ""}, {10, "System.Conns (10) is not above"}, {10, ""}, {9, "System.Conns (9) is not above"}, {31, ""}, {10, "System.Conns (10) is not above"}} {
		require.NoError(t, m.SetLimits(limited(step.conns)))
		told := logged.conflictsSince(before)
		before = logged.len()
		if step.told == "" {
			require.Empty(t, told)
			continue
		}
		require.Len(t, told, 1)
		require.Contains(t, told[0], step.told)
	}
}

func TestTheManagerIsClosedIfTheHostCannotBeMade(t *testing.T) {
	onHosts(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	address := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", taken.Addr().(*net.TCPAddr).Port)
	errMeant := errors.New("meant to fail")

	for name, failing := range map[string]struct {
		option libp2p.Option
		text   string
	}{
		"a later option fails":     {func(*libp2p.Config) error { return errMeant }, errMeant.Error()},
		"the configuration is bad": {libp2p.ChainOptions(libp2p.DisableRelay(), libp2p.EnableAutoRelayWithStaticRelays(nil)), "autorelay"},
		"the swarm is not made":    {libp2p.SwarmOpts(func(*swarm.Swarm) error { return errMeant }), errMeant.Error()},
		"a transport is not made":  {libp2p.Transport(func() (*tcp.TcpTransport, error) { return nil, errMeant }), errMeant.Error()},
		"a function of fx fails":   {libp2p.WithFxOption(fx.Invoke(func() error { return errMeant })), errMeant.Error()},
		"a hook of fx fails":       {libp2p.WithFxOption(fx.Invoke(failingHook(errMeant))), errMeant.Error()},
		"the address is taken":     {libp2p.ListenAddrStrings(address), "failed to listen on any addresses"},
		"an option of ours is nil": {nil, "option 0 is nil"},
	} {
		t.Run(name, func(t *testing.T) {
			before := managersGoroutines()
			option := rcmgrhost.Manager(nil)
			if failing.option == nil {
				option = rcmgrhost.Manager(nil, nil)
			}
			h, err := libp2p.New(option, libp2p.DisableMetrics(), failing.option)
			if err == nil {
				h.Close()
			}
			require.ErrorContains(t, err, failing.text)
			requireGoroutines(t, before)
		})
	}
}

// failingHook returns a function that appends to a host's hooks one that fails to start.
func failingHook(err error) func(fx.Lifecycle) {
	return func(of fx.Lifecycle) { of.Append(fx.StartHook(func() error { return err })) }
}

func TestASecondResourceManagerIsAnError(t *testing.T) {
	onHosts(t)
	none := managersGoroutines()
	other, err := rcmgr.New(nil)
	require.NoError(t, err)
	defer other.Close()
	require.Eventually(t, func() bool { return managersGoroutines() == none+1 }, patience, time.Millisecond)
	for text, opts := range map[string][]libp2p.Option{
		"rcmgrhost: the option for a resource manager is given twice": {rcmgrhost.Manager(nil), rcmgrhost.ManagerForNode(rcmgr.NodeLimits{})},
		"rcmgrhost: the host has another resource manager already":    {libp2p.ResourceManager(other), rcmgrhost.Manager(nil)},
		"cannot configure multiple resource managers":                 {rcmgrhost.Manager(nil), libp2p.ResourceManager(other)},
	} {
		_, err := libp2p.New(append(opts, libp2p.DisableMetrics(), libp2p.NoListenAddrs)...)
		require.ErrorContains(t, err, text)
		requireGoroutines(t, none+1)
	}
}

// Each of these changes which parts of a host are constructed, and in which order.
func TestTheHostUsesTheManagerItselfWhateverItIsMadeOf(t *testing.T) {
	onHosts(t)
	for name, option := range map[string]libp2p.Option{
		"no transports":       libp2p.NoTransports,
		"QUIC of the program": libp2p.QUICReuse(quicreuse.NewConnManager),
		"AutoNAT service":     libp2p.EnableNATService(),
		"AutoNAT v2":          libp2p.EnableAutoNATv2(),
		"relay service":       libp2p.EnableRelayService(),
		"functions of fx":     libp2p.WithFxOption(fx.Invoke(func(network.ResourceManager) {})),
	} {
		t.Run(name, func(t *testing.T) {
			h, err := libp2p.New(option, rcmgrhost.Manager(nil), libp2p.NoListenAddrs, libp2p.DisableMetrics())
			require.NoError(t, err)
			managerOf(t, h)
			require.NoError(t, h.Close())
		})
	}
}

func TestOfFindsAManagerBehindWrappersAndNoOther(t *testing.T) {
	onHosts(t)
	m, err := rcmgr.New(nil)
	require.NoError(t, err)
	defer m.Close()
	behind := func(rm network.ResourceManager) (*rcmgr.Manager, bool) {
		return rcmgrhost.Of(newHost(t, libp2p.ResourceManager(rm), libp2p.DisableMetrics()))
	}
	found, ok := behind(wrapper{m.NewHandle()})
	require.True(t, ok)
	require.Same(t, m, found)
	for _, rm := range []network.ResourceManager{&network.NullResourceManager{}, wrapper{&network.NullResourceManager{}}} {
		found, ok = behind(rm)
		require.False(t, ok)
		require.Nil(t, found)
	}
}

// wrapper is a resource manager around another one.
type wrapper struct{ network.ResourceManager }

func (w wrapper) Unwrap() network.ResourceManager { return w.ResourceManager }

// Each guest finds room although the host was full before it came. The peer that the connection
// manager protects stays.
func TestAFullHostMakesRoomForEachGuest(t *testing.T) {
	onHosts(t)
	limits := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: 16}}.Build(rcmgr.InfiniteLimits)
	cm, err := connmgr.NewConnManager(100, 200)
	require.NoError(t, err)
	full := newHost(t, libp2p.ConnectionManager(cm), libp2p.DisableMetrics(),
		rcmgrhost.Manager(rcmgr.NewFixedLimiter(limits), rcmgr.WithRoom(rcmgr.RoomConfig{})))
	m := managerOf(t, full)
	require.Equal(t, 1, m.Snapshot().Room.Hosts)
	to := peer.AddrInfo{ID: full.ID(), Addrs: full.Addrs()}
	connect := func() host.Host {
		guest := newHost(t, libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
		require.NoError(t, guest.Connect(context.Background(), to))
		return guest
	}
	kept := connect()
	cm.Protect(kept.ID(), "test")
	for range 40 {
		connect()
		// The next guest comes when room has been made for it, as it will be at once.
		require.Eventually(t, func() bool { return m.Stat().System.NumConnsInbound < 16 }, patience, time.Millisecond)
	}
	require.Equal(t, network.Connected, full.Network().Connectedness(kept.ID()))
	require.Eventually(t, func() bool { return len(m.Snapshot().Room.LetGo) > 0 }, patience, time.Millisecond)
	require.Empty(t, m.Snapshot().Room.Faults)
}
