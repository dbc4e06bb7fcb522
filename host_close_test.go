package rcmgr_test

// Real hosts that are closed: together, before they have started, and in the middle of
// everything. Nothing may be held in the end, and no goroutine be left.

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

func TestHostsThatShareAManagerCloseItTogether(t *testing.T) {
	ctx := onHosts(t)
	m := newManager(t, nil)
	var handles []*rcmgr.Handle
	var hosts []host.Host
	for range 3 {
		handles = append(handles, m.NewHandle())
		hosts = append(hosts, newServer(t, handles[len(handles)-1], roads[0]))
	}
	meet := func(a, b host.Host) { work(t, ctx, a, *host.InfoFromHost(b)) }
	meet(hosts[0], hosts[1])
	meet(hosts[2], hosts[1])

	require.NoError(t, hosts[2].Close())
	requireClosed(t, handles[2])
	require.NoError(t, tryOpen(handles[0]))
	require.NoError(t, pingOnce(ctx, hosts[0], hosts[1].ID()))
	require.NoError(t, hosts[0].Network().ClosePeer(hosts[1].ID()))
	requireNothingHeld(t, m)
	meet(hosts[1], hosts[0])

	require.NoError(t, hosts[1].Close())
	requireClosed(t, handles[1])
	require.NoError(t, tryOpen(m))
	require.NoError(t, hosts[0].Close())
	requireClosed(t, m)
	requireNothingHeld(t, m)
}

func TestHostsThatFailToStartCloseTheirOwnHandleOnly(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { taken.Close() })
	takenAddr := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", taken.Addr().(*net.TCPAddr).Port)
	cases := map[string]struct {
		options []libp2p.Option
		closes  bool // go-libp2p closes the handle; where not, its owner must
	}{
		"contradictory options": {[]libp2p.Option{libp2p.EnableAutoRelayWithStaticRelays(nil), libp2p.DisableRelay()}, true},
		"an option fails":       {[]libp2p.Option{libp2p.ListenAddrStrings("nowhere")}, false},
		"the port is taken":     {[]libp2p.Option{libp2p.ListenAddrStrings(takenAddr)}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ctx := onHosts(t)
			m := newManager(t, nil)
			server := newServer(t, m.NewHandle(), roads[0])
			handle := m.NewHandle()
			_, err := libp2p.New(append(c.options, libp2p.ResourceManager(handle), libp2p.DisableMetrics())...)
			require.Error(t, err)
			if c.closes {
				requireClosed(t, handle)
			} else {
				require.NoError(t, tryOpen(handle))
			}
			require.NoError(t, handle.Close())
			requireClosed(t, handle)

			client := newHost(t, unmanaged())
			work(t, ctx, client, *host.InfoFromHost(server))
			require.NoError(t, server.Close())
			requireClosed(t, m)
			requireNothingHeld(t, m)
		})
	}
}

// silence is an address, like another one, at which no host answers until it is
// closed.
func silence(t *testing.T, r road, like multiaddr.Multiaddr) (peer.AddrInfo, io.Closer) {
	t.Helper()
	var port int
	var hangUp io.Closer
	if r.fd > 0 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		port, hangUp = l.Addr().(*net.TCPAddr).Port, l
	} else {
		l, err := net.ListenPacket("udp4", "127.0.0.1:0")
		require.NoError(t, err)
		port, hangUp = l.LocalAddr().(*net.UDPAddr).Port, l
	}
	t.Cleanup(func() { hangUp.Close() })
	return peer.AddrInfo{ID: newIdentity(t).id, Addrs: []multiaddr.Multiaddr{withPort(like, port)}}, hangUp
}

// withPort returns an address with another port.
func withPort(a multiaddr.Multiaddr, port int) multiaddr.Multiaddr {
	out := slices.Clone(a)
	for i, c := range out {
		if p := c.Protocol(); p.Code == multiaddr.P_TCP || p.Code == multiaddr.P_UDP {
			other, err := multiaddr.NewComponent(p.Name, fmt.Sprint(port))
			if err != nil {
				panic(err)
			}
			out[i] = *other
		}
	}
	return out
}

func TestHostsClosedInTheMiddleOfEverythingHoldNothing(t *testing.T) {
	overEveryRoad(t, func(t *testing.T, r road) {
		ctx := onHosts(t)
		w := newWitness(newManager(t, nil))
		victim := newServer(t, w, r)
		to := *host.InfoFromHost(victim)
		busy, stop := context.WithCancel(ctx)
		var all sync.WaitGroup
		for range 2 {
			client := newHost(t, unmanaged())
			require.NoError(t, client.Connect(ctx, to))
			all.Go(func() { // streams that are never closed
				for busy.Err() == nil {
					if _, err := openEcho(network.WithNoDial(busy, "test"), client, to.ID, echoProtocol, 1); err != nil {
						return
					}
				}
			})
			all.Go(func() { // connections of which each second one is closed at once
				for i := 0; busy.Err() == nil; i++ {
					c, err := dialRaw(busy, client, to)
					if err == nil && i%2 == 0 {
						c.Close()
					}
				}
			})
		}
		// The victim's own dials get no answer. One is cut short by its context,
		// the other by the host's end; go-libp2p's WebSocket heeds neither, and
		// waits until the far end hangs up. A host that is closed while its swarm
		// gathers addresses crashes in go-libp2p v0.51.0, so it dials raw.
		nobody, hangUp := silence(t, r, to.Addrs[0])
		short, cut := context.WithCancel(busy)
		for _, ctx := range []context.Context{short, busy} {
			all.Go(func() {
				_, err := dialRaw(ctx, victim, nobody)
				assert.Error(t, err)
			})
		}
		eventually(t, func() bool {
			return w.hasOpened(network.DirOutbound) == 2 && w.hasOpened(network.DirInbound) >= 10 &&
				w.Stat().System.NumStreamsInbound >= 10
		}, "the host does not get busy", w.Manager)

		cut()
		require.NoError(t, victim.Close())
		requireClosed(t, w)
		require.NoError(t, hangUp.Close())
		stop()
		all.Wait()
		if !within(time.Second, func() bool { return len(held(w.Manager)) == 0 }) {
			t.Logf("go-libp2p forgot %d connections", w.finishForgotten(t))
		}
		requireNothingHeld(t, w.Manager)
	})
}

func TestHostsLeaveNoGoroutineOfTheirManager(t *testing.T) {
	onHosts(t) // checks the end
	before := managersGoroutines()
	h := newServer(t, newManager(t, nil), roads[0])
	eventually(t, func() bool { return managersGoroutines() > before }, "a manager's goroutines are not seen")
	require.NoError(t, h.Close())
	eventually(t, func() bool { return managersGoroutines() == before }, "goroutines of a manager are left")
}
