package rcmgr_test

// Real go-libp2p hosts on loopback, with the manager behind them, over every transport
// and through a relay: what they hold, and that nothing is held in the end.

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

func TestHostsHoldWhatTheyUseAndGiveItBack(t *testing.T) {
	overEveryRoad(t, func(t *testing.T, r road) {
		ctx := onHosts(t)
		serverHas, clientHas := newManager(t, nil), newManager(t, nil)
		server, client := newServer(t, serverHas, r), newHost(t, clientHas)
		work(t, ctx, client, *host.InfoFromHost(server))

		stream := network.ScopeStat{NumStreamsInbound: 1, Memory: echoMemory}
		eventually(t, func() bool {
			now := serverHas.Stat()
			of := now.Peers[client.ID()]
			return now.Services[echoService] == stream && now.Protocols[echoProtocol] == stream &&
				of.NumConnsInbound == 1 && of.NumFD == r.fd && of.Memory >= echoMemory &&
				now.System == of && now.Transient == network.ScopeStat{} &&
				of.NumStreamsInbound+of.NumStreamsOutbound == 1
		}, "the server does not account for one connection with one stream", serverHas)
		eventually(t, func() bool {
			now := clientHas.Stat()
			of := now.Peers[server.ID()]
			return now.Protocols[echoProtocol] == network.ScopeStat{NumStreamsOutbound: 1} &&
				of.NumConnsOutbound == 1 && of.NumFD == r.fd &&
				now.System == of && now.Transient == network.ScopeStat{} &&
				of.NumStreamsInbound+of.NumStreamsOutbound == 1
		}, "the client does not account for one connection with one stream", clientHas)

		require.NoError(t, client.Network().ClosePeer(server.ID()))
		requireNothingHeld(t, serverHas, clientHas)

		work(t, ctx, client, *host.InfoFromHost(server))
		require.NoError(t, server.Close())
		requireNothingHeld(t, serverHas, clientHas)
		requireClosed(t, serverHas)
		require.NoError(t, tryOpen(clientHas))
		require.NoError(t, client.Close())
		requireClosed(t, clientHas)
	})
}

func TestHostsBehindARelayHoldNoDescriptorForIt(t *testing.T) {
	ctx := onHosts(t)
	relayHas, serverHas, clientHas := newManager(t, nil), newManager(t, nil), newManager(t, nil)
	relay, server, client := newRelay(t, relayHas), newHost(t, serverHas), newHost(t, clientHas)
	serveEcho(server)
	addr := throughRelay(t, ctx, relay, server)
	require.NoError(t, client.Connect(ctx, *host.InfoFromHost(relay)))
	work(t, ctx, client, addr)

	// Each has one descriptor: for its own connection to the relay.
	eventually(t, func() bool {
		of, all := serverHas.Stat().Peers[client.ID()], serverHas.Stat().System
		return of.NumConnsInbound == 1 && of.NumFD == 0 && all.NumConnsOutbound == 1 && all.NumFD == 1
	}, "the server does not account for one relayed connection", serverHas)
	eventually(t, func() bool {
		of, all := clientHas.Stat().Peers[server.ID()], clientHas.Stat().System
		return of.NumConnsOutbound == 1 && of.NumFD == 0 && all.NumConnsOutbound == 2 && all.NumFD == 1
	}, "the client does not account for one relayed connection", clientHas)
	eventually(t, func() bool {
		now := relayHas.Stat()
		circuit := now.Services["libp2p.relay/v2"]
		return now.System.NumConnsInbound == 2 && now.System.NumFD == 2 &&
			circuit.NumStreamsInbound == 1 && circuit.NumStreamsOutbound == 1 && circuit.Memory > 0
	}, "the relay does not account for one circuit", relayHas)

	require.NoError(t, client.Network().ClosePeer(server.ID()))
	eventually(t, func() bool {
		return relayHas.Stat().Services["libp2p.relay/v2"] == network.ScopeStat{} &&
			serverHas.Stat().Peers[client.ID()] == network.ScopeStat{}
	}, "the circuit is still held", relayHas, serverHas)
	for _, h := range []host.Host{client, server, relay} {
		require.NoError(t, h.Close())
	}
	requireNothingHeld(t, relayHas, serverHas, clientHas)
	requireClosed(t, relayHas)
}
