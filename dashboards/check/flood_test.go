package check

// A day of a host in five acts: rest, a flood that meets every limit and gate
// there is, rest again, waves that come and go while friends are served, and a manager
// that is closed. All is done to a real
// manager; only its clock is the test's.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/fakehost"
)

const scrapeInterval = 15 * time.Second

// recording is what was scraped, and when the acts ended.
type recording struct {
	*store
	start, rested, flooded, calmed, waved, closed time.Time
}

// record plays the five acts.
func record(t *testing.T) *recording {
	r := &recording{store: newStore()}
	synctest.Test(t, func(t *testing.T) {
		h := newStage(t)
		defer h.manager.Close()
		act := func(minutes int, step func()) (end time.Time) {
			for range minutes * int(time.Minute/scrapeInterval) {
				step()
				end = time.Now()
				r.scrape(t, h.metrics, end)
				time.Sleep(scrapeInterval)
			}
			return end
		}
		r.start = time.Now()
		h.befriend()
		rest := func() {}
		r.rested = act(20, rest)
		r.flooded = act(20, h.flood)
		h.endFlood()
		r.calmed = act(25, rest)
		r.waved = act(20, h.wave)
		h.leave()
		require.NoError(t, h.manager.Close())
		r.closed = act(10, rest)
	})
	return r
}

// stage is a manager and what is open on it.
type stage struct {
	t       *testing.T
	manager *rcmgr.Manager
	metrics http.Handler
	friends []network.ResourceScopeSpan // open all the time
	floods  []network.ResourceScopeSpan // open during the flood
	guests  []*fakehost.Conn
	host    *fakehost.Host // from which room is made
	inUse   atomic.Int64   // bytes, of the process
	waves   int            // that have come
}

// look is how often the manager looks at the memory in use.
const look = 100 * time.Millisecond

const (
	friends = "/ip4/192.0.2.1/tcp/4001"
	crowded = "203.0.113.2"                // from where any number may connect at once
	listed  = "/ip4/198.51.100.1/tcp/4001" // on the allowlist
)

// noResolver answers nothing.
type noResolver struct{}

func (noResolver) Resolve(context.Context, multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error) {
	return nil, errors.New("no answer")
}

func newStage(t *testing.T) *stage {
	h := &stage{t: t}
	h.inUse.Store(1 << 28)
	limits := rcmgr.PartialLimitConfig{
		System:               rcmgr.ResourceLimits{Conns: 120, ConnsInbound: 60, Streams: 400, StreamsInbound: 200, FD: 90, Memory: 64 << 20},
		Transient:            rcmgr.ResourceLimits{ConnsInbound: 40, StreamsInbound: 60, Rates: rcmgr.Rates{Streams: rcmgr.Rate{PerSecond: 100_000}}},
		AllowlistedSystem:    rcmgr.ResourceLimits{ConnsInbound: 5},
		AllowlistedTransient: rcmgr.ResourceLimits{ConnsInbound: 5},
		PeerDefault:          rcmgr.ResourceLimits{StreamsInbound: 20, ConnsInbound: 4, Memory: 16 << 20},
		ProtocolDefault:      rcmgr.ResourceLimits{StreamsInbound: 50, Rates: rcmgr.Rates{Streams: rcmgr.Rate{PerSecond: 100_000}}},
		ServiceDefault:       rcmgr.ResourceLimits{StreamsInbound: 30, Memory: 32 << 20},
		Service:              map[string]rcmgr.ResourceLimits{"friendly": {Streams: 4}}, // three are open
		Conn:                 rcmgr.ResourceLimits{Memory: 1 << 20},
		Gates: &rcmgr.GateLimits{Rate: rcmgr.RateLimits{Networks: map[netip.Prefix]rcmgr.ConnRate{
			netip.MustParsePrefix(crowded + "/32"): {Burst: rcmgr.Unlimited},
		}}},
	}.Build(rcmgr.DefaultLimits.Scale(1<<30, 1024))
	gologshim.SetDefaultHandler(slog.DiscardHandler)
	m, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithAllowlistStrings([]string{"/ip4/198.51.100.1", "/dns/friend.example"}, false),
		rcmgr.WithAllowlistResolver(noResolver{}, 0),
		rcmgr.WithObserveOnly(rcmgr.KindServicePeer), rcmgr.WithFairShare(), rcmgr.WithRoom(rcmgr.RoomConfig{}),
		rcmgr.WithMemoryPressure(rcmgr.MemoryPressureConfig{Limit: 1 << 30, Every: look, InUse: h.inUse.Load}))
	require.NoError(t, err)
	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, m.RegisterWith(reg))
	h.host = &fakehost.Host{RM: m}
	m.AttachHost(h.host)
	h.manager, h.metrics = m, promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	return h
}

// befriend opens what is open on a good day: friends in both directions, each
// with a stream of a service.
func (h *stage) befriend() {
	for i, dir := range []network.Direction{network.DirInbound, network.DirOutbound, network.DirInbound} {
		id := peer.ID(fmt.Sprint("friend ", i))
		c, err := h.manager.OpenConnection(dir, true, multiaddr.StringCast(friends))
		require.NoError(h.t, err)
		require.NoError(h.t, c.SetPeer(id))
		require.NoError(h.t, c.ReserveMemory(100<<10, network.ReservationPriorityAlways))
		s, err := h.manager.OpenStream(id, dir)
		require.NoError(h.t, err)
		require.NoError(h.t, s.SetProtocol("/friendly/1.0.0"))
		require.NoError(h.t, s.SetService("friendly"))
		require.NoError(h.t, s.ReserveMemory(1<<20, network.ReservationPriorityAlways))
		h.friends = append(h.friends, c, s)
	}
}

// flood is one wave, after the one before has gone: every limit and gate is met,
// and a program makes mistakes.
func (h *stage) flood() {
	h.endFlood()
	for i := range 8 { // they have to make room for the others
		c, err := h.host.Connect(peer.ID(fmt.Sprint("guest ", i)), network.DirInbound, multiaddr.StringCast(fmt.Sprintf("/ip4/10.1.%d.1/tcp/4001", i)))
		if err == nil {
			h.guests = append(h.guests, c)
		}
	}
	h.fillMemory()
	for range 30 { // too fast
		if c := h.connect("/ip4/203.0.113.1/tcp/4001"); c != nil {
			c.Done()
		}
	}
	for range 30 { // too many from one address
		h.hold(h.connect("/ip4/"+crowded+"/tcp/4001"), "flooder")
	}
	for i := range 100 { // too many
		h.hold(h.connect(fmt.Sprintf("/ip4/10.0.%d.1/tcp/4001", i)), peer.ID(fmt.Sprint("flooder ", i)))
	}
	h.dismissGuests()
	for i := range 100 { // too many, when no guest is left who could be let go
		h.hold(h.connect(fmt.Sprintf("/ip4/10.0.%d.2/tcp/4001", i)), peer.ID(fmt.Sprint("late flooder ", i)))
	}
	for range 10 { // even for whom the allowlist names
		h.hold(h.connect(listed), "listed")
	}
	for i := range 10 {
		h.streams(peer.ID(fmt.Sprint("flooder ", i)))
	}
	h.mistakes()
}

// wave is a flood that is over before anybody looks, but for each fourth: what is full then
// has room again, and a friend is served whenever it asks.
func (h *stage) wave() {
	h.endFlood()
	for i := range 100 {
		h.hold(h.connect(fmt.Sprintf("/ip4/10.0.%d.1/tcp/4001", i)), peer.ID(fmt.Sprint("flooder ", i)))
	}
	if h.waves++; h.waves%4 != 0 {
		h.endFlood()
		c := h.connect(friends)
		require.NotNil(h.t, c)
		c.Done()
	}
}

// fillMemory has the process use nearly all of its memory for a moment.
func (h *stage) fillMemory() {
	h.inUse.Store(1<<30 - 1)
	time.Sleep(2 * look)
	for range 10 {
		require.Nil(h.t, h.connect(friends))
	}
	h.inUse.Store(1 << 28)
	time.Sleep(2 * look)
}

// connect opens an inbound connection, or gives nil.
func (h *stage) connect(from string) network.ConnManagementScope {
	c, err := h.manager.OpenConnection(network.DirInbound, true, multiaddr.StringCast(from))
	if err != nil {
		return nil
	}
	return c
}

// hold keeps a connection until the wave ends. Beyond its peer's limit, it stays
// transient.
func (h *stage) hold(c network.ConnManagementScope, p peer.ID) {
	if c != nil {
		h.floods = append(h.floods, c)
		c.SetPeer(p)
	}
}

// streams opens more inbound streams than a peer may have, and has those that
// are admitted ask for a protocol, a service and memory.
func (h *stage) streams(p peer.ID) {
	for range 40 {
		s, err := h.manager.OpenStream(p, network.DirInbound)
		if err != nil {
			continue
		}
		h.floods = append(h.floods, s)
		if s.SetProtocol("/flooded/1.0.0") == nil && s.SetService("flooded") == nil {
			s.ReserveMemory(8<<20, network.ReservationPriorityAlways)
		}
	}
}

// mistakes are those of a program of one's own.
func (h *stage) mistakes() {
	c, err := h.manager.OpenConnection(network.DirOutbound, false, multiaddr.StringCast(friends))
	require.NoError(h.t, err)
	require.Error(h.t, c.ReserveMemory(2<<20, network.ReservationPriorityAlways), "more than a connection may have")
	c.ReleaseMemory(1) // more than was reserved
	c.Done()
	c.ReleaseMemory(1) // late
}

func (h *stage) endFlood() {
	for _, s := range h.floods {
		s.Done()
	}
	h.floods = nil
	h.dismissGuests()
}

func (h *stage) dismissGuests() {
	for _, c := range h.guests {
		c.Close()
	}
	h.guests = nil
}

func (h *stage) leave() {
	for _, s := range h.friends {
		s.Done()
	}
}
