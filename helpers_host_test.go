package rcmgr_test

// What the tests with real hosts use: hosts on a manager or on none, the roads
// between them, traffic, waiting, and what a manager must hold when all is over.

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	relayproto "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

const (
	// patience bounds every wait. Each ends as soon as what it waits for is so.
	patience = 20 * time.Second
	tick     = 5 * time.Millisecond
)

// road is a transport by which hosts reach each other.
type road struct {
	name   string
	listen string
	fd     int // descriptors that one connection takes, on either side
}

var roads = []road{
	{"tcp", "/ip4/127.0.0.1/tcp/0", 1},
	{"quic", "/ip4/127.0.0.1/udp/0/quic-v1", 0},
	{"websocket", "/ip4/127.0.0.1/tcp/0/ws", 1},
	{"webtransport", "/ip4/127.0.0.1/udp/0/quic-v1/webtransport", 0},
}

// overEveryRoad runs a test once for each transport.
func overEveryRoad(t *testing.T, test func(*testing.T, road)) {
	for _, r := range roads {
		t.Run(r.name, func(t *testing.T) { test(t, r) })
	}
}

// onHosts begins a test with real hosts: it is skipped when time is short, and
// fails if a goroutine of a manager is left when everything is closed.
func onHosts(t *testing.T) context.Context {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real hosts")
	}
	before := managersGoroutines()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(func() {
		cancel()
		eventually(t, func() bool { return managersGoroutines() <= before }, "goroutines of a manager are left")
	})
	return ctx
}

// managersGoroutines counts the goroutines that began in package rcmgr. Those of
// this test began in rcmgr_test, and go-libp2p's, which come to the manager with
// every connection, elsewhere. One that has not run yet may be left out.
func managersGoroutines() int {
	all := make([]byte, 1<<16)
	for {
		if n := runtime.Stack(all, true); n < len(all) {
			all = all[:n]
			break
		}
		all = make([]byte, 2*len(all))
	}
	count := 0
	for g := range strings.SplitSeq(string(all), "\n\n") {
		if strings.HasPrefix(beganWith(g), "github.com/weir-p2p/rcmgr.") {
			count++
		}
	}
	return count
}

// beganWith returns the function that a goroutine began with, by its stack.
func beganWith(stack string) (function string) {
	for line := range strings.Lines(stack) {
		switch {
		case strings.HasPrefix(line, "created by "):
			return function
		case !strings.HasPrefix(line, "\t") && !strings.HasPrefix(line, "sync.(*WaitGroup).Go."):
			function = line
		}
	}
	return function
}

// eventually waits until something is so. If it never is, it says what is wrong
// and what some managers hold.
func eventually(t *testing.T, is func() bool, otherwise string, of ...*rcmgr.Manager) {
	t.Helper()
	if within(patience, is) {
		return
	}
	for _, m := range of {
		otherwise += "\n" + strings.Join(held(m), "\n")
	}
	t.Fatal(otherwise)
}

// within waits until something is so, and reports whether it is.
func within(d time.Duration, is func() bool) bool {
	for end := time.Now().Add(d); !is(); time.Sleep(tick) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// newManager makes a manager that is closed with the test, if not before. With
// nil, its limits are the defaults.
func newManager(t *testing.T, limits rcmgr.Limiter, opts ...rcmgr.Option) *rcmgr.Manager {
	t.Helper()
	m, err := rcmgr.New(limits, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// limited returns limits of which only some are not infinite.
func limited(some rcmgr.PartialLimitConfig) rcmgr.Limiter {
	return rcmgr.NewFixedLimiter(some.Build(rcmgr.InfiniteLimits))
}

// newHost makes a host on a manager. It listens nowhere unless opts say where.
// It is closed with the test, if not before.
func newHost(t *testing.T, m network.ResourceManager, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append(opts, libp2p.ResourceManager(m), quietly)...)
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

// quietly fills in what a test did not ask for.
func quietly(c *libp2p.Config) error {
	if c.PrometheusRegisterer == nil {
		c.DisableMetrics = true
	}
	if len(c.ListenAddrs) == 0 {
		// Without the first, the second switches off the relay client.
		return c.Apply(libp2p.EnableRelay(), libp2p.NoListenAddrs)
	}
	return nil
}

// newServer makes a host that listens and echoes.
func newServer(t *testing.T, m network.ResourceManager, r road, opts ...libp2p.Option) host.Host {
	t.Helper()
	h := newHost(t, m, append(opts, libp2p.ListenAddrStrings(r.listen))...)
	serveEcho(h)
	return h
}

// identity is the key and the ID of a host.
type identity struct {
	key crypto.PrivKey
	id  peer.ID
}

func newIdentity(t *testing.T) identity {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	id, err := peer.IDFromPrivateKey(key)
	require.NoError(t, err)
	return identity{key, id}
}

// unmanaged is for hosts that are not under test.
func unmanaged() network.ResourceManager { return &network.NullResourceManager{} }

// newRelay makes a host that relays.
func newRelay(t *testing.T, m network.ResourceManager, opts ...libp2p.Option) host.Host {
	t.Helper()
	h := newHost(t, m, append(opts, libp2p.ListenAddrStrings(roads[0].listen),
		libp2p.EnableRelayService(), libp2p.ForceReachabilityPublic())...)
	eventually(t, func() bool { return slices.Contains(h.Mux().Protocols(), relayproto.ProtoIDv2Hop) },
		"the host does not become a relay")
	return h
}

// throughRelay makes h reachable through a relay, and says how.
func throughRelay(t *testing.T, ctx context.Context, relay, h host.Host) peer.AddrInfo {
	t.Helper()
	require.NoError(t, h.Connect(ctx, *host.InfoFromHost(relay)))
	_, err := circuit.Reserve(ctx, h, *host.InfoFromHost(relay))
	require.NoError(t, err)
	via := multiaddr.StringCast("/p2p/" + relay.ID().String() + "/p2p-circuit")
	var addrs []multiaddr.Multiaddr
	for _, a := range relay.Addrs() {
		addrs = append(addrs, a.Encapsulate(via))
	}
	return peer.AddrInfo{ID: h.ID(), Addrs: addrs}
}

const (
	echoProtocol protocol.ID = "/rcmgr-test/echo/1.0.0"
	echoService              = "rcmgr.test"
	echoMemory               = 64 << 10 // bytes that a stream holds while it is open
)

// serveEcho serves the echo protocol.
func serveEcho(h host.Host) { h.SetStreamHandler(echoProtocol, echo) }

// echo reserves as many bytes of memory as the first eight of a stream say,
// answers with one that says whether it got them, and holds them until the
// other side closes the stream.
func echo(s network.Stream) {
	defer s.Reset()
	if s.Scope().SetService(echoService) != nil {
		return
	}
	var size [8]byte
	if _, err := io.ReadFull(s, size[:]); err != nil {
		return
	}
	answer := byte('+')
	n := int(binary.BigEndian.Uint64(size[:]))
	if s.Scope().ReserveMemory(n, network.ReservationPriorityMedium) != nil {
		answer = '-'
	} else {
		defer s.Scope().ReleaseMemory(n)
	}
	if _, err := s.Write([]byte{answer}); err == nil {
		io.Copy(io.Discard, s)
	}
}

var errDenied = errors.New("the other side got no memory")

// openEcho opens a stream of a protocol that echo serves, with memory at the
// other side.
func openEcho(ctx context.Context, h host.Host, to peer.ID, p protocol.ID, memory int) (network.Stream, error) {
	s, err := h.NewStream(network.WithAllowLimitedConn(ctx, "test"), to, p)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	s.SetDeadline(deadline)
	var answer [1]byte
	if _, err = s.Write(binary.BigEndian.AppendUint64(nil, uint64(memory))); err == nil {
		_, err = io.ReadFull(s, answer[:])
	}
	if err == nil && answer[0] != '+' {
		err = errDenied
	}
	if err != nil {
		s.Reset()
		return nil, err
	}
	return s, nil
}

func pingOnce(ctx context.Context, h host.Host, p peer.ID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case r := <-ping.Ping(ctx, h, p):
		return r.Error
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dialRaw dials past the host's swarm, which would keep to one connection.
func dialRaw(ctx context.Context, h host.Host, to peer.AddrInfo) (io.Closer, error) {
	return h.Network().(*swarm.Swarm).TransportForDialing(to.Addrs[0]).Dial(ctx, to.Addrs[0], to.ID)
}

// held names all that a manager holds.
func held(m *rcmgr.Manager) []string {
	var names []string
	for _, s := range m.Snapshot().Scopes {
		if s.Use != (network.ScopeStat{}) {
			names = append(names, fmt.Sprintf("%s %+v", s.Name, s.Use))
		}
	}
	return names
}

// requireNothingHeld waits until no scope of the managers holds anything. No
// caller may have released more than it had.
func requireNothingHeld(t *testing.T, managers ...*rcmgr.Manager) {
	t.Helper()
	for _, m := range managers {
		within(patience, func() bool { return len(held(m)) == 0 })
		require.Empty(t, held(m), "something is still held")
		require.Zero(t, m.Snapshot().CallerBugs)
	}
}

// witness is a thin layer over a manager that knows what a host has not
// finished. go-libp2p v0.51.0 now and then forgets an inbound connection that
// its peer closes right after the handshake (Accept of the upgrader's
// listener), whichever manager it has.
type witness struct {
	*rcmgr.Manager

	mu     sync.Mutex
	open   map[interface{ Done() }]network.Direction
	opened [network.DirOutbound + 1]int // so far
}

func newWitness(m *rcmgr.Manager) *witness {
	return &witness{Manager: m, open: map[interface{ Done() }]network.Direction{}}
}

func (w *witness) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	s, err := w.Manager.OpenConnection(dir, usefd, endpoint)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[s] = dir
	w.opened[dir]++
	return &witnessedConn{s, w}, nil
}

type witnessedConn struct {
	network.ConnManagementScope
	w *witness
}

func (c *witnessedConn) Done() {
	c.ConnManagementScope.Done()
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	delete(c.w.open, c.ConnManagementScope)
}

// hasOpened returns how many connections have been opened so far.
func (w *witness) hasOpened(dir network.Direction) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.opened[dir]
}

// finishForgotten ends the inbound connections that the host has forgotten, and
// returns how many there were. A host forgets no outbound one, and the manager
// holds no connection besides.
func (w *witness) finishForgotten(t *testing.T) int {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.open)
	require.LessOrEqual(t, w.Stat().System.NumConnsInbound, n)
	for s, dir := range w.open {
		require.Equal(t, network.DirInbound, dir)
		s.Done()
	}
	clear(w.open)
	return n
}

// work connects h to another host, identifies and pings it, and opens a stream
// with it.
func work(t *testing.T, ctx context.Context, h host.Host, to peer.AddrInfo) network.Stream {
	t.Helper()
	ctx = network.WithAllowLimitedConn(ctx, "test")
	require.NoError(t, h.Connect(ctx, to))
	// What it serves since a moment ago may come with identify's push.
	eventually(t, func() bool {
		known, err := h.Peerstore().SupportsProtocols(to.ID, ping.ID, echoProtocol)
		return err == nil && len(known) == 2
	}, "the other side is not identified")
	require.NoError(t, pingOnce(ctx, h, to.ID))
	s, err := openEcho(ctx, h, to.ID, echoProtocol, echoMemory)
	require.NoError(t, err)
	return s
}

// requireClosed checks that a manager refuses everything.
func requireClosed(t *testing.T, m network.ResourceManager) {
	t.Helper()
	require.ErrorIs(t, tryOpen(m), network.ErrResourceScopeClosed)
	_, err := m.OpenStream("somebody", network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceScopeClosed)
}

// tryOpen opens a connection and closes it at once.
func tryOpen(m network.ResourceManager) error {
	c, err := m.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.1/tcp/1"))
	if err == nil {
		c.Done()
	}
	return err
}
