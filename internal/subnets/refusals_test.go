package subnets

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

var one, two = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")

// enterAs enters an address, and returns the error of testConfig if it is refused.
func enterAs(s *Subnets, addr netip.Addr, way Way) (*refused, bool) {
	why, ok := s.Enter(addr, way, new(Pass))
	e, _ := why.(*refused)
	return e, ok
}

// full returns a Subnets whose subnets of 24 bits have one connection, or one token, each.
func full(t testing.TB, cfg Config, g Gate) *Subnets {
	var b Builder
	if g == Conns {
		require.NoError(t, b.LimitConns(ip.V4, 24, 1))
	} else {
		bucket, err := NewBucket(0.001, 1)
		require.NoError(t, err)
		require.NoError(t, b.LimitRate(ip.V4, 24, bucket))
	}
	s := b.New(cfg)
	_, ok := enterAs(s, one, Inbound)
	require.True(t, ok)
	return s
}

func TestARefusalNamesItsSubnetAndLimit(t *testing.T) {
	subnet, network := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")
	s := full(t, testConfig(), Conns)
	why, ok := enterAs(s, two, Outbound)
	require.False(t, ok)
	require.Equal(t, Refusal{Subnet: subnet, Gate: Conns, Way: Outbound, Rule: EverySubnet, Limit: 1}, why.Refusal)

	s = full(t, testConfig(), Rate)
	why, ok = enterAs(s, two, Inbound)
	require.False(t, ok)
	require.Equal(t, Refusal{Subnet: subnet, Gate: Rate}, why.Refusal)

	var b Builder
	require.NoError(t, b.LimitNetworkConns(ip.V4, network, 0))
	why, ok = enterAs(b.New(testConfig()), netip.MustParseAddr("10.1.2.3"), Inbound)
	require.False(t, ok)
	require.Equal(t, Refusal{Subnet: network, Rule: ThisNetwork}, why.Refusal)

	err, ok := s.RefuseRate(one, Inbound)
	require.False(t, ok)
	require.Equal(t, Refusal{Subnet: netip.PrefixFrom(one, 32), Gate: Rate, Rule: Elsewhere}, err.(*refused).Refusal)
}

func TestRepeatedRefusalsReturnTheSameError(t *testing.T) {
	s := full(t, testConfig(), Conns)
	first, _ := enterAs(s, one, Inbound)
	again, _ := enterAs(s, two, Inbound)
	require.Same(t, first, again)
	other, _ := enterAs(s, one, Outbound)
	require.NotSame(t, first, other)
}

func TestRefusalsAreCountedAndNotedOnce(t *testing.T) {
	s := full(t, testConfig(), Conns)
	for range 3 {
		enterAs(s, one, Inbound)
	}
	enterAs(s, one, Outbound)
	want := Counts{Conns: {Inbound: 3, Outbound: 1}}
	refused, would := s.Refusals()
	require.Equal(t, want, refused)
	require.Zero(t, would)

	said, _ := s.TakeNotes()
	require.Equal(t, want, said.Counts)
	note := said.Notes[Conns][Inbound]
	require.True(t, note.Told)
	require.EqualValues(t, 1, note.Limit)
	require.EqualValues(t, 3, note.Worst.Votes)
	require.Equal(t, "192.0.2.0/24", note.Worst.Name.String())
	said, _ = s.TakeNotes()
	require.Equal(t, want, said.Counts, "counts must not be reset")
	require.Zero(t, said.Notes, "notes must be handed over only once")
}

func TestAnObservedGateCountsRefusalsAndRefusesNothing(t *testing.T) {
	for _, g := range []Gate{Conns, Rate} {
		cfg := testConfig()
		cfg.Observed = func(asked Gate) bool { return asked == g }
		s := full(t, cfg, g)
		_, ok := enterAs(s, two, Inbound)
		require.True(t, ok)
		refused, would := s.Refusals()
		require.Zero(t, refused)
		require.EqualValues(t, 1, would[g][Inbound])
		_, said := s.TakeNotes()
		require.True(t, said.Notes[g][Inbound].Told)

		_, ok = s.RefuseRate(one, Inbound)
		require.Equal(t, g == Rate, ok)
	}
}

func TestWithoutAnErrorARefusalIsNotCounted(t *testing.T) {
	s := full(t, Config{}, Rate)
	why, ok := s.Enter(one, Inbound, new(Pass))
	require.False(t, ok)
	require.NoError(t, why)
	refused, would := s.Refusals()
	require.Zero(t, refused)
	require.Zero(t, would)

	s = full(t, Config{Observed: func(Gate) bool { return true }}, Rate)
	_, ok = enterAs(s, one, Inbound)
	require.True(t, ok, "what is only observed admits, and counts nothing either")
	_, would = s.Refusals()
	require.Zero(t, would)
}

func TestLookAndBusyCountNoConnectionAndTakeNoToken(t *testing.T) {
	var b Builder
	bucket, err := NewBucket(0.001, 5)
	require.NoError(t, err)
	require.NoError(t, b.LimitConns(ip.V4, 24, 3))
	require.NoError(t, b.LimitConns(ip.V4, 32, 2))
	require.NoError(t, b.LimitRate(ip.V4, 24, bucket))
	s := b.New(testConfig())
	_, ok := enterAs(s, one, Inbound)
	require.True(t, ok)
	wide, narrow := netip.MustParsePrefix("192.0.2.0/24"), netip.PrefixFrom(one, 32)
	for range 2 {
		require.Equal(t, []Share{{narrow, Conns, 1, 2}, {wide, Conns, 1, 3}, {wide, Rate, 1, 5}}, s.Look(one))
		require.Equal(t, []Share{{netip.PrefixFrom(two, 32), Conns, 0, 2}, {wide, Conns, 1, 3}, {wide, Rate, 1, 5}}, s.Look(two))
	}
	require.Empty(t, s.Look(netip.Addr{}))
	busy := map[netip.Prefix]Share{}
	s.Busy(func(conns, _ int64) bool { return conns > 0 }, func(sub Share) { busy[sub.Subnet] = sub })
	require.Equal(t, map[netip.Prefix]Share{wide: {wide, Conns, 1, 3}, narrow: {narrow, Conns, 1, 2}}, busy)
}

func TestLimitsThatFitNoFamilyAreErrors(t *testing.T) {
	var b Builder
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")
	bucket, err := NewBucket(1, 1)
	require.NoError(t, err)
	require.EqualError(t, b.LimitConns(ip.V4, 33, 1), "PrefixLength is 33, expected 0 to 32")
	require.EqualError(t, b.LimitRate(ip.V6, -1, bucket), "PrefixLength is -1, expected 0 to 128")
	require.EqualError(t, b.LimitNetworkConns(ip.V4, v6, 1), "expected an ipv4 prefix as Network, got 2001:db8::/32")
	require.EqualError(t, b.LimitNetworkRate(ip.V6, v4, bucket), "expected an ipv6 prefix as Network, got 10.0.0.0/8")
	require.Error(t, b.LimitNetworkConns(ip.V4, netip.Prefix{}, 1))
}

func TestASubnetsThatTakesOverCountsOpenConnectionsAndRefusals(t *testing.T) {
	last := full(t, testConfig(), Conns)
	var open Pass
	_, ok := last.Enter(netip.MustParseAddr("198.51.100.1"), Inbound, &open)
	require.True(t, ok)
	enterAs(last, two, Inbound)

	var b Builder
	require.NoError(t, b.LimitConns(ip.V4, 16, 1))
	next := b.New(testConfig())
	published := false
	next.TakeOver(last, func() { published = true })
	require.True(t, published)
	refused, _ := next.Refusals()
	require.Equal(t, Counts{Conns: {Inbound: 1}}, refused)
	said, _ := next.TakeNotes()
	require.True(t, said.Notes[Conns][Inbound].Told)

	why, ok := last.Enter(netip.MustParseAddr("203.0.113.1"), Inbound, new(Pass))
	require.False(t, ok, "a Subnets that another has taken over from must admit nothing")
	require.NoError(t, why)
	_, ok = enterAs(next, netip.MustParseAddr("198.51.7.7"), Inbound)
	require.False(t, ok, "the open connection must count in the new subnets")
	open.Undo()
	_, ok = enterAs(next, netip.MustParseAddr("198.51.7.7"), Inbound)
	require.True(t, ok, "a connection that leaves the old subnets must leave the new ones")
	next.Forget(time.Hour)
	require.NoError(t, next.Check())
}
