package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/cputime"
	"github.com/weir-p2p/rcmgr/rcmgrhost"
)

func TestTheCommandLineIsChecked(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"TCP"}, `unexpected argument "TCP": expected nothing but flags`},
		{[]string{"-rounds", "0"}, `invalid value "0" for flag -rounds: expected a number of 1 or more`},
		{[]string{"-streams", "x"}, `invalid value "x" for flag -streams: expected a number of 1 or more`},
		{[]string{"-connections", "-1"}, `invalid value "-1" for flag -connections: expected a number of 1 or more`},
		{[]string{"-profile=maybe"}, `expected true or false`},
	} {
		_, err := settingsFrom(c.args)
		require.ErrorContains(t, err, c.want, "%q", c.args)
	}
	if cputime.Known {
		s, err := settingsFrom([]string{"-rounds", "3", "-profile=false"})
		require.NoError(t, err)
		require.Equal(t, settings{rounds: 3, streams: 1500, connections: 80}, s)
	}
}

// Each load leaves the hosts as it found them, and the manager of the second host has seen
// every stream and connection.
func TestLoadsPassTheManager(t *testing.T) {
	if testing.Short() {
		t.Skip("has hosts")
	}
	const n = 20
	for _, transport := range transports {
		p, err := newPair(t.Context(), kinds[1], transport)
		require.NoError(t, err)
		defer p.close()
		m, ok := rcmgrhost.Of(p.to)
		require.True(t, ok)
		opened := func() (streams, conns int) {
			for _, s := range m.Snapshot().Scopes {
				if s.Name == "system" {
					return s.Peak.StreamsInbound, s.Use.NumConnsInbound
				}
			}
			return 0, 0
		}
		require.NoError(t, openStreams(t.Context(), p, n))
		streams, conns := opened()
		require.Positive(t, streams, transport.name)
		require.Equal(t, 1, conns, transport.name)
		require.NoError(t, openConnections(t.Context(), p, n))
		_, conns = opened()
		require.Equal(t, 1, conns, transport.name)
		require.Len(t, p.from.Network().ConnsToPeer(p.to.ID()), 1)
	}
}

func TestAFailedStreamEndsTheLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("has hosts")
	}
	p, err := newPair(t.Context(), kinds[noManager], transports[0])
	require.NoError(t, err)
	defer p.close()
	p.to.SetStreamHandler(echo, func(s network.Stream) { s.Reset() })
	require.Error(t, openStreams(t.Context(), p, 8))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, p.from.Network().ClosePeer(p.to.ID()))
	require.Error(t, openStreams(ctx, p, 8))
}

// The whole, small: every kind of manager over every transport, with a profile.
func TestEveryManagerIsMeasured(t *testing.T) {
	if testing.Short() || !cputime.Known {
		t.Skip("has hosts, and measures")
	}
	r, err := measureAll(settings{rounds: 2, streams: 40, connections: 4, profile: true})
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, r.print(&out, settings{rounds: 2, profile: true}))
	for over := range transports {
		for k := range kinds {
			for l := range loads {
				require.Len(t, r[over][k].times[l], 2)
				for _, took := range r[over][k].times[l] {
					require.Positive(t, took)
				}
			}
			require.GreaterOrEqual(t, 1.0, r[over][k].share[0])
		}
		require.Zero(t, r[over][noManager].share[0], "no function of a manager runs")
	}
	for _, k := range kinds {
		require.Equal(t, len(loads)*len(transports), strings.Count(out.String(), "\n  "+k.name+" "), out.String())
	}
}
