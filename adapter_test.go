package rcmgr

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/stretchr/testify/require"
)

// distinctLimits returns an upstream configuration in which every scope has
// numbers of its own.
func distinctLimits(p peer.ID) upstream.ConcreteLimitConfig {
	n := 0
	next := func() upstream.ResourceLimits {
		n += 10
		v := upstream.LimitVal(n)
		return upstream.ResourceLimits{
			Streams: v, StreamsInbound: v + 1, StreamsOutbound: v + 2,
			Conns: v + 3, ConnsInbound: v + 4, ConnsOutbound: v + 5,
			FD: v + 6, Memory: upstream.LimitVal64(n + 7),
		}
	}
	return upstream.PartialLimitConfig{
		System: next(), Transient: next(), AllowlistedSystem: next(), AllowlistedTransient: next(),
		ServiceDefault: next(), Service: map[string]upstream.ResourceLimits{"svc": next()},
		ServicePeerDefault: next(), ServicePeer: map[string]upstream.ResourceLimits{"svc": next()},
		ProtocolDefault: next(), Protocol: map[protocol.ID]upstream.ResourceLimits{"/p": next()},
		ProtocolPeerDefault: next(), ProtocolPeer: map[protocol.ID]upstream.ResourceLimits{"/p": next()},
		PeerDefault: next(), Peer: map[peer.ID]upstream.ResourceLimits{p: next()},
		Conn: next(), Stream: next(),
	}.Build(upstream.ConcreteLimitConfig{})
}

func TestLimiterFromAsksTheForeignLimiter(t *testing.T) {
	p := mustPeer(t, peerA)
	theirs := upstream.NewFixedLimiter(distinctLimits(p))
	ours := LimiterFrom(theirs)
	for name, pair := range map[string][2]Limit{
		"system":                {theirs.GetSystemLimits(), ours.GetSystemLimits()},
		"transient":             {theirs.GetTransientLimits(), ours.GetTransientLimits()},
		"allowlisted system":    {theirs.GetAllowlistedSystemLimits(), ours.GetAllowlistedSystemLimits()},
		"allowlisted transient": {theirs.GetAllowlistedTransientLimits(), ours.GetAllowlistedTransientLimits()},
		"service":               {theirs.GetServiceLimits("svc"), ours.GetServiceLimits("svc")},
		"service default":       {theirs.GetServiceLimits(""), ours.GetServiceLimits("")},
		"service peer":          {theirs.GetServicePeerLimits("svc"), ours.GetServicePeerLimits("svc")},
		"protocol":              {theirs.GetProtocolLimits("/p"), ours.GetProtocolLimits("/p")},
		"protocol peer":         {theirs.GetProtocolPeerLimits("/p"), ours.GetProtocolPeerLimits("/p")},
		"peer":                  {theirs.GetPeerLimits(p), ours.GetPeerLimits(p)},
		"stream":                {theirs.GetStreamLimits(p), ours.GetStreamLimits(p)},
		"conn":                  {theirs.GetConnLimits(), ours.GetConnLimits()},
	} {
		require.Equal(t, limitsOf(pair[0]), limitsOf(pair[1]), name)
	}
}

func TestAManagerRunsOnAForeignLimiter(t *testing.T) {
	p := mustPeer(t, peerA)
	limits := upstream.PartialLimitConfig{
		Peer: map[peer.ID]upstream.ResourceLimits{p: {StreamsInbound: 1}},
	}.Build(upstream.InfiniteLimits)
	m, err := New(LimiterFrom(upstream.NewFixedLimiter(limits)))
	require.NoError(t, err)
	defer m.Close()
	s, err := m.OpenStream(p, network.DirInbound)
	require.NoError(t, err)
	defer s.Done()
	_, err = m.OpenStream(p, network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
}

// nilLimits is a foreign limiter without limits.
type nilLimits[L Limit] struct{ ForeignLimiter[L] }

func (nilLimits[L]) GetSystemLimits() (none L) { return none }

func TestNilForeignLimitsAreRefusedAsNil(t *testing.T) {
	require.True(t, LimiterFrom(nilLimits[upstream.Limit]{}).GetSystemLimits() == nil)

	nilPointer := LimiterFrom(nilLimits[*BaseLimit]{}).GetSystemLimits()
	require.ErrorContains(t, checkLimit("system", nilPointer), "no limit given")

	theirs := upstream.NewFixedLimiter(upstream.InfiniteLimits)
	_, err := New(LimiterFrom(nilLimits[upstream.Limit]{theirs}))
	require.ErrorContains(t, err, "system: no limit given")
}

func TestConfigurationsCrossBothWays(t *testing.T) {
	p := mustPeer(t, peerA)
	for name, theirs := range map[string]upstream.PartialLimitConfig{
		"empty": {},
		"words": {System: upstream.ResourceLimits{Conns: upstream.Unlimited, Streams: upstream.BlockAllLimit,
			Memory: upstream.Unlimited64}},
		"everything": distinctLimits(p).ToPartialLimitConfig(),
		"infinite":   upstream.InfiniteLimits.ToPartialLimitConfig(),
	} {
		ours, err := PartialLimitConfigFrom(&theirs)
		require.NoError(t, err, name)
		built := theirs.Build(upstream.InfiniteLimits)
		require.Equal(t,
			allLimits(LimiterFrom(upstream.NewFixedLimiter(built)), p),
			allLimits(NewFixedLimiter(ours.Build(InfiniteLimits)), p), name)

		text, err := json.Marshal(ours)
		require.NoError(t, err)
		var back upstream.PartialLimitConfig
		require.NoError(t, json.Unmarshal(text, &back))
		require.Equal(t, built, back.Build(upstream.InfiniteLimits), name)
	}
}

func allLimits(l Limiter, p peer.ID) []amounts {
	var out []amounts
	for _, limit := range []Limit{
		l.GetSystemLimits(), l.GetTransientLimits(), l.GetAllowlistedSystemLimits(), l.GetAllowlistedTransientLimits(),
		l.GetServiceLimits(""), l.GetServiceLimits("svc"), l.GetServicePeerLimits(""), l.GetServicePeerLimits("svc"),
		l.GetProtocolLimits(""), l.GetProtocolLimits("/p"), l.GetProtocolPeerLimits(""), l.GetProtocolPeerLimits("/p"),
		l.GetPeerLimits(""), l.GetPeerLimits(p), l.GetStreamLimits(p), l.GetConnLimits(),
	} {
		out = append(out, limitsOf(limit))
	}
	return out
}

// badConfig is a configuration of another package that has something of its own.
type badConfig struct {
	text string
	err  error
}

func (c badConfig) MarshalJSON() ([]byte, error) { return []byte(c.text), c.err }

func TestConfigurationsThatMeanNothingHereAreErrors(t *testing.T) {
	_, err := PartialLimitConfigFrom(badConfig{text: `{"System":{"Conns":3,"Kittens":4}}`})
	require.ErrorContains(t, err, "Kittens")

	broken := errors.New("broken")
	_, err = PartialLimitConfigFrom(badConfig{err: broken})
	require.ErrorIs(t, err, broken)
}

func ExampleLimiterFrom() {
	// A library gives its limiter in the types of go-libp2p's own manager.
	theirs := upstream.NewFixedLimiter(upstream.InfiniteLimits)
	m, err := New(LimiterFrom(theirs))
	if err != nil {
		panic(err)
	}
	defer m.Close()
	fmt.Println(m.GetConnLimit() == theirs.GetSystemLimits().GetConnTotalLimit())
	// Output: true
}

func ExamplePartialLimitConfigFrom() {
	// A library gives its configuration in the types of go-libp2p's own manager.
	scaled := upstream.DefaultLimits.Scale(1<<30, 4096)
	theirs := scaled.ToPartialLimitConfig()
	theirs.System.Conns = 2000

	ours, err := PartialLimitConfigFrom(&theirs)
	if err != nil {
		panic(err)
	}
	fmt.Println(ours.System.Conns, ours.System.ConnsInbound == LimitVal(theirs.System.ConnsInbound))
	// Output: 2000 true
}
