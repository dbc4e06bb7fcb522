package rcmgr_test

// What the documents of go-libp2p's own manager promise its users, and so what
// programs written for it rely on: each item as a test from outside, by what a
// user sees. (What go-libp2p does otherwise than it promises is in
// guarantees_*_test.go; what we do otherwise on purpose, in DIFFERENCES.md.)

import (
	"encoding/json"
	"errors"
	"net"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

const (
	inbound  = network.DirInbound
	outbound = network.DirOutbound
)

// holds returns what a scope holds by its name in a snapshot, nothing if it has
// none.
func holds(m *rcmgr.Manager, name string) network.ScopeStat {
	for _, s := range m.Snapshot().Scopes {
		if s.Name == name {
			return s.Use
		}
	}
	return network.ScopeStat{}
}

func openStream(t *testing.T, m *rcmgr.Manager, p peer.ID, dir network.Direction) network.StreamManagementScope {
	t.Helper()
	s, err := m.OpenStream(p, dir)
	require.NoError(t, err)
	return s
}

// requireRefusedBy checks that an error is a refusal, by a scope with that name.
func requireRefusedBy(t *testing.T, err error, scope string) {
	t.Helper()
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	var limit *rcmgr.LimitError
	require.ErrorAs(t, err, &limit)
	require.Equal(t, scope, limit.Scope())
	require.ErrorContains(t, err, scope)
}

// A stream counts in the system, its peer and the transient scope; once it has a
// protocol, there in place of transient; with a service, there as well. All it
// holds moves along, and at its end all is given back.
func TestAStreamCountsInTheScopesItIsAttachedTo(t *testing.T) {
	id := newIdentity(t).id
	m := newManager(t, limited(rcmgr.PartialLimitConfig{}))
	s := openStream(t, m, id, inbound)
	require.NoError(t, s.ReserveMemory(1000, network.ReservationPriorityAlways))
	all := network.ScopeStat{NumStreamsInbound: 1, Memory: 1000}
	none := network.ScopeStat{}
	check := func(transient, proto, service network.ScopeStat) {
		t.Helper()
		require.Equal(t, all, holds(m, "system"))
		require.Equal(t, all, holds(m, "peer:"+id.String()))
		require.Equal(t, transient, holds(m, "transient"))
		require.Equal(t, proto, holds(m, "protocol:/p"))
		require.Equal(t, service, holds(m, "service:s"))
	}
	check(all, none, none)
	require.Error(t, s.SetService("s"), "a service comes after the protocol")
	require.NoError(t, s.SetProtocol("/p"))
	check(none, all, none)
	require.NoError(t, s.SetService("s"))
	check(none, all, all)
	s.Done()
	require.Empty(t, held(m))
}

// A connection is transient until its handshake has shown whose it is.
func TestAConnectionIsTransientUntilItHasAPeer(t *testing.T) {
	id := newIdentity(t).id
	m := newManager(t, limited(rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{ConnsInbound: 1}}))
	first, err := m.OpenConnection(inbound, true, nil)
	require.NoError(t, err)
	_, err = m.OpenConnection(inbound, true, nil)
	requireRefusedBy(t, err, "transient")
	require.NoError(t, first.SetPeer(id))
	second, err := m.OpenConnection(inbound, true, nil)
	require.NoError(t, err, "the first has left")
	one := network.ScopeStat{NumConnsInbound: 1, NumFD: 1}
	require.Equal(t, one, holds(m, "transient"))
	require.Equal(t, one, holds(m, "peer:"+id.String()))
	first.Done()
	second.Done()
	require.Empty(t, held(m))
}

// No peer takes more than its limit, and what it has does not count against
// others.
func TestOnePeersUseDoesNotCountAgainstOthers(t *testing.T) {
	greedy, other := newIdentity(t).id, newIdentity(t).id
	m := newManager(t, limited(rcmgr.PartialLimitConfig{PeerDefault: rcmgr.ResourceLimits{StreamsInbound: 2}}))
	openStream(t, m, greedy, inbound)
	openStream(t, m, greedy, inbound)
	_, err := m.OpenStream(greedy, inbound)
	requireRefusedBy(t, err, "peer:"+greedy.String())
	openStream(t, m, other, inbound)
	openStream(t, m, greedy, outbound)
}

// A noisy peer can be given other limits than everybody: here nothing inbound,
// while our own way to it stays open.
func TestOnePeerCanHaveLimitsOfItsOwn(t *testing.T) {
	noisy, other := newIdentity(t).id, newIdentity(t).id
	m := newManager(t, limited(rcmgr.PartialLimitConfig{Peer: map[peer.ID]rcmgr.ResourceLimits{
		noisy: {ConnsInbound: rcmgr.BlockAllLimit, StreamsInbound: rcmgr.BlockAllLimit},
	}}))
	for _, c := range []struct {
		p       peer.ID
		dir     network.Direction
		refused bool
	}{{noisy, inbound, true}, {noisy, outbound, false}, {other, inbound, false}} {
		conn, err := m.OpenConnection(c.dir, false, nil)
		require.NoError(t, err)
		err = conn.SetPeer(c.p)
		_, onStream := m.OpenStream(c.p, c.dir)
		if c.refused {
			requireRefusedBy(t, err, "peer:"+noisy.String())
			requireRefusedBy(t, onStream, "peer:"+noisy.String())
		} else {
			require.NoError(t, err)
			require.NoError(t, onStream)
		}
	}
}

// A service that speaks an old protocol too can grant it less.
func TestAnOldProtocolOfAServiceCanHaveLess(t *testing.T) {
	const old, current protocol.ID = "/service/1", "/service/2"
	m := newManager(t, limited(rcmgr.PartialLimitConfig{
		Protocol: map[protocol.ID]rcmgr.ResourceLimits{old: {StreamsInbound: 1}},
		Service:  map[string]rcmgr.ResourceLimits{"service": {StreamsInbound: 3}},
	}))
	serve := func(p protocol.ID) error {
		s := openStream(t, m, newIdentity(t).id, inbound)
		if err := s.SetProtocol(p); err != nil {
			return err
		}
		return s.SetService("service")
	}
	require.NoError(t, serve(old))
	requireRefusedBy(t, serve(old), "protocol:"+string(old))
	require.NoError(t, serve(current))
	require.NoError(t, serve(current))
	requireRefusedBy(t, serve(current), "service:service")
}

// A service that knows nothing of resource managers is limited by its protocol.
func TestAServiceThatIsNeverSetIsLimitedByItsProtocol(t *testing.T) {
	m := newManager(t, limited(rcmgr.PartialLimitConfig{ProtocolDefault: rcmgr.ResourceLimits{Streams: 1}}))
	require.NoError(t, openStream(t, m, newIdentity(t).id, inbound).SetProtocol("/mute"))
	err := openStream(t, m, newIdentity(t).id, inbound).SetProtocol("/mute")
	requireRefusedBy(t, err, "protocol:/mute")
}

// What a program reserves for a while in a span goes back all at once, however
// deep the spans, and whatever of it was released before.
func TestSpansGiveBackWhatTheyHold(t *testing.T) {
	m := newManager(t, limited(rcmgr.PartialLimitConfig{}))
	for _, rooted := range []func(f func(network.ResourceScope)){
		func(f func(network.ResourceScope)) {
			m.ViewService("s", func(s network.ServiceScope) error { f(s); return nil })
		},
		func(f func(network.ResourceScope)) {
			s := openStream(t, m, newIdentity(t).id, inbound)
			f(s)
			s.Done()
		},
	} {
		rooted(func(s network.ResourceScope) {
			outer, err := s.BeginSpan()
			require.NoError(t, err)
			inner, err := outer.BeginSpan()
			require.NoError(t, err)
			require.NoError(t, outer.ReserveMemory(100, network.ReservationPriorityAlways))
			require.NoError(t, inner.ReserveMemory(50, network.ReservationPriorityAlways))
			inner.ReleaseMemory(20)
			require.EqualValues(t, 130, s.Stat().Memory)
			inner.Done()
			require.EqualValues(t, 100, holds(m, "system").Memory)
			outer.Done()
			require.Zero(t, s.Stat().Memory)
		})
	}
	require.Empty(t, held(m))
}

// Priorities keep room for what matters more: by linear admission, which is
// go-libp2p's, low fills about two fifths, medium three, high four, always all.
func TestALowPriorityLeavesRoom(t *testing.T) {
	m := newManager(t, limited(rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Memory: 1000}}), rcmgr.WithAdmission(rcmgr.AdmissionLinear))
	m.ViewSystem(func(s network.ResourceScope) error {
		for _, c := range []struct {
			priority uint8
			most     int
		}{
			{network.ReservationPriorityLow, 1000 * 102 / 256}, {network.ReservationPriorityMedium, 1000 * 153 / 256},
			{network.ReservationPriorityHigh, 1000 * 204 / 256}, {network.ReservationPriorityAlways, 1000},
		} {
			requireRefusedBy(t, s.ReserveMemory(c.most+1, c.priority), "system")
			require.NoError(t, s.ReserveMemory(c.most, c.priority))
			s.ReleaseMemory(c.most)
		}
		return nil
	})
}

// Limits grow with the machine: a base, and so much more for each GiB, and a part
// of the file descriptors.
func TestLimitsScaleWithTheMachine(t *testing.T) {
	scaling := rcmgr.ScalingLimitConfig{
		SystemBaseLimit:     rcmgr.BaseLimit{Conns: 10, StreamsInbound: 100, Memory: 1 << 20, FD: 7},
		SystemLimitIncrease: rcmgr.BaseLimitIncrease{Conns: 5, StreamsInbound: 50, Memory: 1 << 19, FDFraction: .5},
	}
	system := func(memory int64, fds int) rcmgr.Limit {
		return rcmgr.NewFixedLimiter(scaling.Scale(memory, fds)).GetSystemLimits()
	}
	small, large := system(0, 0), system(4<<30, 1000)
	require.Equal(t, 10, small.GetConnTotalLimit())
	require.Equal(t, 7, small.GetFDLimit())
	require.Equal(t, 10+4*5, large.GetConnTotalLimit())
	require.Equal(t, 100+4*50, large.GetStreamLimit(inbound))
	require.EqualValues(t, 1<<20+4<<19, large.GetMemoryLimit())
	require.Equal(t, 500, large.GetFDLimit())
}

// A configuration is saved as JSON: what is default is left out, what is blocked
// or unlimited is a word, memory is text, and it is read as it was written.
func TestAConfigurationIsSavedAsJSON(t *testing.T) {
	cfg := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{StreamsOutbound: rcmgr.Unlimited, Memory: 1 << 40, Conns: rcmgr.DefaultLimit},
		Service: map[string]rcmgr.ResourceLimits{
			"s": {StreamsInbound: rcmgr.BlockAllLimit, Memory: rcmgr.Unlimited64},
		},
	}
	text, err := json.Marshal(&cfg)
	require.NoError(t, err)
	require.JSONEq(t, `{
		"System": {"StreamsOutbound": "unlimited", "Memory": "1099511627776"},
		"Service": {"s": {"StreamsInbound": "blockAll", "Memory": "unlimited"}}
	}`, string(text))
	var again rcmgr.PartialLimitConfig
	require.NoError(t, json.Unmarshal(text, &again))
	require.Equal(t, cfg, again)
}

// A refusal says what was refused and by which scope, and is a temporary
// net.Error: back off and try again.
func TestARefusalIsATemporaryError(t *testing.T) {
	m := newManager(t, limited(rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: rcmgr.BlockAllLimit}}))
	_, err := m.OpenConnection(inbound, true, nil)
	requireRefusedBy(t, err, "system")
	require.ErrorContains(t, err, "connection")
	require.ErrorContains(t, err, "resource limit exceeded")
	var asNet net.Error
	require.True(t, errors.As(err, &asNet))
	//lint:ignore SA1019 it is what is promised
	require.True(t, asNet.Temporary())
	require.False(t, asNet.Timeout())
}

// An allowlisted peer is admitted when the system is full, within limits of
// its own, and no other peer is.
func TestTheAllowlistHasRoomWhenTheSystemIsFull(t *testing.T) {
	friend, stranger := newIdentity(t).id, newIdentity(t).id
	at := multiaddr.StringCast("/ip4/192.0.2.1/tcp/4001")
	m := newManager(t, limited(rcmgr.PartialLimitConfig{
		System:            rcmgr.ResourceLimits{Conns: 1, ConnsInbound: 1},
		AllowlistedSystem: rcmgr.ResourceLimits{ConnsInbound: 2},
	}), rcmgr.WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{multiaddr.StringCast("/ip4/192.0.2.1/p2p/" + friend.String())}))
	_, err := m.OpenConnection(inbound, true, multiaddr.StringCast("/ip4/198.51.100.1/tcp/1"))
	require.NoError(t, err)
	_, err = m.OpenConnection(inbound, true, multiaddr.StringCast("/ip4/198.51.100.2/tcp/1"))
	requireRefusedBy(t, err, "system")

	c, err := m.OpenConnection(inbound, true, at)
	require.NoError(t, err)
	require.NoError(t, c.SetPeer(friend))
	c, err = m.OpenConnection(inbound, true, at)
	require.NoError(t, err, "it may be the friend")
	requireRefusedBy(t, c.SetPeer(stranger), "system")
	_, err = m.OpenConnection(inbound, true, at)
	requireRefusedBy(t, err, "allowlistedSystem")
}

// Without limits it still counts: to see what a program needs.
func TestInfiniteLimitsCountAndRefuseNothing(t *testing.T) {
	m := newManager(t, rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	at := multiaddr.StringCast("/ip4/192.0.2.1/tcp/1")
	for range 1000 {
		_, err := m.OpenConnection(inbound, true, at)
		require.NoError(t, err)
	}
	require.Equal(t, network.ScopeStat{NumConnsInbound: 1000, NumFD: 1000}, holds(m, "system"))
}
