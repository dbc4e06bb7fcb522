package rcmgr_test

// Real hosts whose peers do not last: identities that come once and vanish, and
// dials that are given up half-way.

import (
	"context"
	"flag"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

var identitiesFlag = flag.Int("rcmgr.identities", 60, "hosts that come once and vanish")

// TestHostsThatMeetThrowAwayIdentitiesKeepNoScopeOfThem: they connect by QUIC,
// open a stream or not, and are closed in the middle of what they do.
func TestHostsThatMeetThrowAwayIdentitiesKeepNoScopeOfThem(t *testing.T) {
	onHosts(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*identitiesFlag)*time.Second+patience)
	defer cancel()
	quic := roads[1]
	w := newWitness(newManager(t, nil))
	server := newServer(t, w, quic)
	to := *host.InfoFromHost(server)
	next := make(chan int)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range next {
				client, err := libp2p.New(libp2p.ResourceManager(unmanaged()), quietly)
				if err != nil {
					t.Error(err)
					return
				}
				if err := client.Connect(ctx, to); err != nil {
					t.Error(err)
				}
				if i%3 > 0 {
					openEcho(ctx, client, to.ID, echoProtocol, echoMemory)
				}
				client.Close() // its stream is open, and it may be in the middle of identify
			}
		})
	}
	for i := range *identitiesFlag {
		next <- i
		if i%100 == 99 {
			t.Logf("%d of %d, the server knows %d peers", i+1, *identitiesFlag, len(w.ListPeers()))
		}
	}
	close(next)
	all.Wait()
	require.GreaterOrEqual(t, w.hasOpened(network.DirInbound), *identitiesFlag)
	eventually(t, func() bool { return len(server.Network().Conns()) == 0 }, "connections stay", w.Manager)
	if !within(time.Second, func() bool { return len(held(w.Manager)) == 0 }) {
		t.Logf("go-libp2p forgot %d connections", w.finishForgotten(t))
	}
	requireNothingHeld(t, w.Manager)
	w.Reap()
	require.Empty(t, w.ListPeers())
	require.Empty(t, w.ListProtocols())
	require.Empty(t, w.ListServices())
}

// TestHostsWhoseDialsAreGivenUpHoldNothing: the context of a dial ends before,
// during or after the handshake.
func TestHostsWhoseDialsAreGivenUpHoldNothing(t *testing.T) {
	overEveryRoad(t, func(t *testing.T, r road) {
		ctx := onHosts(t)
		random := rcmgr.RandomOf(t)
		serverHas, clientHas := newWitness(newManager(t, nil)), newManager(t, nil)
		server, client := newServer(t, serverHas, r), newHost(t, clientHas)
		to := *host.InfoFromHost(server)
		for range 40 {
			short, cut := context.WithTimeout(ctx, time.Duration(random.Int64N(int64(8*time.Millisecond))))
			c, err := dialRaw(short, client, to)
			cut()
			if err == nil {
				c.Close()
			}
		}
		eventually(t, func() bool { return len(held(clientHas)) == 0 }, "the one who dialled holds something", clientHas)
		if !within(time.Second, func() bool { return len(held(serverHas.Manager)) == 0 }) {
			t.Logf("go-libp2p forgot %d connections", serverHas.finishForgotten(t))
		}
		requireNothingHeld(t, serverHas.Manager, clientHas)
		// The way is as good as before.
		require.NoError(t, client.Connect(ctx, to))
	})
}
