package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

func TestMain(m *testing.M) {
	quiet()
	os.Exit(m.Run())
}

func TestTheVictimHoldsAndTheFriendIsServed(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks a real host for two seconds")
	}
	shared := choosePlaces(3)
	shared.shareOne()
	for name, where := range map[string]places{"an address each": choosePlaces(3), "one address for all": shared} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			s := settings{duration: 2 * time.Second, attackers: 3}
			result, err := flood(t.Context(), s, where, &out)
			require.NoError(t, err)
			require.Zero(t, result.exitCode(), out.String())
			require.Contains(t, out.String(), "ok    limits passed: none")
			for line := range strings.Lines(out.String()) {
				require.LessOrEqual(t, len([]rune(line)), 101, line)
			}
		})
	}
}

func TestAnInterruptEndsTheAttackEarlyWithTheReport(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks a real host for a second")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var out bytes.Buffer
	s := settings{duration: time.Hour, attackers: 2}
	result, err := flood(ctx, s, choosePlaces(2), &out)
	require.NoError(t, err)
	require.Zero(t, result.exitCode(), out.String())
}

func TestHostsDialFromTheirOwnAddressByEitherRoad(t *testing.T) {
	where := choosePlaces(1)
	limiter, err := loadLimits("", 1)
	require.NoError(t, err)
	f, err := newFriend(where.friend)
	require.NoError(t, err)
	v, err := newVictim(limiter, where, f.id)
	require.NoError(t, err)
	defer v.close()
	seen := make(chan net.IP, 1)
	v.host.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		ip, err := manet.ToIP(c.RemoteMultiaddr())
		if err == nil {
			seen <- ip
		}
	}})
	for by := range numRoads {
		key, err := newKey()
		require.NoError(t, err)
		h, err := newHost(key, where.attackers[0], by)
		require.NoError(t, err)
		require.NoError(t, h.Connect(t.Context(), v.info(by)))
		require.True(t, where.attackers[0].Equal(<-seen), "road %d", by)
		require.NoError(t, h.Close())
	}
}

func TestTheObserverNotesWhatIsRefusedToTheFriendOnly(t *testing.T) {
	none := rcmgr.BlockAllLimit
	limits := rcmgr.PartialLimitConfig{
		PeerDefault:       rcmgr.ResourceLimits{Streams: none},
		AllowlistedSystem: rcmgr.ResourceLimits{Conns: none},
		System:            rcmgr.ResourceLimits{Conns: none},
	}.Build(rcmgr.InfiniteLimits)
	where := places{friend: net.IPv4(127, 0, 0, 2)}
	f, err := newFriend(where.friend)
	require.NoError(t, err)
	m, err := newManager(rcmgr.NewFixedLimiter(limits), multiaddr.StringCast("/ip4/127.0.0.2/p2p/"+f.id.String()))
	require.NoError(t, err)
	defer m.Close()
	o := newObserver(m, where, f.id)
	stranger, err := newFriend(nil)
	require.NoError(t, err)

	_, err = o.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.1.0.1/tcp/1"))
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	_, err = o.OpenStream(stranger.id, network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	require.Empty(t, o.refusals())

	_, err = o.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.2/tcp/1"))
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	_, err = o.OpenStream(f.id, network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	require.Len(t, o.refusals(), 2)
}

func TestTheObserverNotesRefusedMemoryUnlessTheFriendCanDoWithout(t *testing.T) {
	limits := rcmgr.PartialLimitConfig{PeerDefault: rcmgr.ResourceLimits{Memory: 100}}.Build(rcmgr.InfiniteLimits)
	where := places{friend: net.IPv4(127, 0, 0, 2)}
	f, err := newFriend(where.friend)
	require.NoError(t, err)
	m, err := newManager(rcmgr.NewFixedLimiter(limits), multiaddr.StringCast("/ip4/127.0.0.2/p2p/"+f.id.String()))
	require.NoError(t, err)
	defer m.Close()
	o := newObserver(m, where, f.id)

	conn, err := o.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.0.0.2/tcp/1"))
	require.NoError(t, err)
	require.Nil(t, conn.PeerScope())
	require.NoError(t, conn.SetPeer(f.id))
	span, err := conn.PeerScope().BeginSpan()
	require.NoError(t, err)
	stream, err := o.OpenStream(f.id, network.DirInbound)
	require.NoError(t, err)

	require.Error(t, span.ReserveMemory(101, network.ReservationPriorityMedium))
	require.Empty(t, o.refusals())
	require.Error(t, span.ReserveMemory(101, network.ReservationPriorityAlways))
	require.Error(t, stream.ReserveMemory(101, network.ReservationPriorityAlways))
	require.Len(t, o.refusals(), 2)

	stream.Done()
	require.Error(t, stream.ReserveMemory(1, network.ReservationPriorityAlways))
	require.Len(t, o.refusals(), 2, "a closed scope refuses nobody")
}

func TestTheObserverClosesWhatTheHostForgot(t *testing.T) {
	m, err := newManager(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), multiaddr.StringCast("/ip4/127.0.0.2"))
	require.NoError(t, err)
	defer m.Close()
	o := newObserver(m, places{friend: net.IPv4(127, 0, 0, 2)}, "")
	for _, forget := range []bool{false, true} {
		conn, err := o.OpenConnection(network.DirInbound, true, multiaddr.StringCast("/ip4/127.1.0.1/tcp/1"))
		require.NoError(t, err)
		if !forget {
			conn.Done()
		}
	}
	require.NotEmpty(t, heldIn(m.Snapshot()))
	require.Equal(t, 1, o.closeForgotten())
	require.Empty(t, heldIn(m.Snapshot()))
}

func TestAFileOverridesTheLimitsOfTheShow(t *testing.T) {
	file := t.TempDir() + "/limits.json"
	require.NoError(t, os.WriteFile(file, []byte(`{"System": {"ConnsInbound": 10}}`), 0o600))
	limiter, err := loadLimits(file, 8)
	require.NoError(t, err)
	require.Equal(t, 10, limiter.GetSystemLimits().GetConnLimit(network.DirInbound))
	require.Equal(t, showLimits(8).ToPartialLimitConfig().System.FD.Build(0), limiter.GetSystemLimits().GetFDLimit())

	require.NoError(t, os.WriteFile(file, []byte(`{"System": [`), 0o600))
	_, err = loadLimits(file, 8)
	require.ErrorContains(t, err, file)
}
