package rcmgrshadow

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/testseed"
)

var testEndpoint = multiaddr.StringCast("/ip4/198.51.100.1/tcp/1")

// like are the options with which ours decides as go-libp2p's.
var like = []rcmgr.Option{rcmgr.WithAdmission(rcmgr.AdmissionLinear), rcmgr.WithNewcomersQuarter(false)}

// limits returns go-libp2p's limits that are unlimited but for what set changes.
func limits(set func(*upstream.PartialLimitConfig)) upstream.Limiter {
	var cfg upstream.PartialLimitConfig
	if set != nil {
		set(&cfg)
	}
	return upstream.NewFixedLimiter(cfg.Build(upstream.InfiniteLimits))
}

func theirManager(t testing.TB, l upstream.Limiter, opts ...upstream.Option) network.ResourceManager {
	t.Helper()
	m, err := upstream.NewResourceManager(l, append(opts, upstream.WithMetricsDisabled())...)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// besideTheirs returns a Manager that go-libp2p's leads.
func besideTheirs(t testing.TB, l upstream.Limiter, opts ...rcmgr.Option) *Manager {
	t.Helper()
	m, err := OursBeside(theirManager(t, l), l, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// wrapped is a manager of which a test changes some answers.
type wrapped struct {
	network.ResourceManager
	openStream func(network.StreamManagementScope, error) (network.StreamManagementScope, error)
}

func (w *wrapped) Unwrap() network.ResourceManager { return w.ResourceManager }

func (w *wrapped) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	return w.openStream(w.ResourceManager.OpenStream(p, dir))
}

// withFault returns a Manager whose manager beside opens streams in a way of its own.
func withFault(t *testing.T, openStream func(network.StreamManagementScope, error) (network.StreamManagementScope, error)) *Manager {
	t.Helper()
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	require.NoError(t, err)
	m, err := New(theirManager(t, limits(nil)), &wrapped{ours, openStream})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

func mustStream(t testing.TB, m network.ResourceManager) network.StreamManagementScope {
	t.Helper()
	s, err := m.OpenStream(peers[0], network.DirInbound)
	require.NoError(t, err)
	return s
}

// only returns the one difference that has been counted.
func only(t *testing.T, m *Manager) Difference {
	t.Helper()
	r := m.Report()
	require.Len(t, r.Differences, 1, "%s", &r)
	return r.Differences[0]
}

func TestAnUnexplainedRefusalIsCountedAndLoggedOnceAsAnError(t *testing.T) {
	errOdd := fmt.Errorf("odd one: %w", network.ErrResourceLimitExceeded)
	m := withFault(t, func(s network.StreamManagementScope, _ error) (network.StreamManagementScope, error) {
		s.Done()
		return nil, errOdd
	})
	before := len(logged.about("odd one"))
	for range 3 {
		s := mustStream(t, m)
		require.NoError(t, s.ReserveMemory(10, 255), "the lead decides")
		require.NoError(t, s.SetProtocol("/a"))
		require.Equal(t, 1, m.Report().Apart)
		require.EqualValues(t, 10, s.Stat().Memory)
		s.Done()
	}
	d := only(t, m)
	require.Equal(t, KindDecision, d.Kind)
	require.False(t, d.Explained)
	require.EqualValues(t, 3, d.Count, "what follows for a stream that only the lead has is not counted")
	told := logged.about("odd one")[before:]
	require.Len(t, told, 1)
	require.Contains(t, told[0], "level=ERROR")
	require.Zero(t, m.Report().Apart)
}

// forgetful is a stream that says that it holds more than it does.
type forgetful struct{ network.StreamManagementScope }

func (f forgetful) Stat() network.ScopeStat {
	s := f.StreamManagementScope.Stat()
	s.Memory += 7
	return s
}

func TestAnAmountThatDiffersIsCountedOnceForEachScope(t *testing.T) {
	m := withFault(t, func(s network.StreamManagementScope, err error) (network.StreamManagementScope, error) {
		return forgetful{s}, err
	})
	s := mustStream(t, m)
	for range 5 {
		require.NoError(t, s.ReserveMemory(1, 255))
		s.Stat()
	}
	var kinds []Kind
	for _, d := range m.Report().Differences {
		kinds = append(kinds, d.Kind)
		require.False(t, d.Explained)
	}
	require.Contains(t, kinds, KindStat)
	require.EqualValues(t, 1, m.counts.lines[lineKey{KindStat, "OpenStream", ""}].Count)
	s.Done()
}

// A stream that is never given back beside shows in the sums of the system scope.
func TestAStreamThatIsLostBesideIsFound(t *testing.T) {
	m := withFault(t, func(s network.StreamManagementScope, err error) (network.StreamManagementScope, error) {
		return endless{s}, err
	})
	s := mustStream(t, m)
	require.Zero(t, m.Report().Unexplained)
	s.Done()
	r := m.Report()
	require.NotZero(t, r.Unexplained)
	require.Contains(t, r.String(), "NONE: unexplained")
	again := m.Report()
	require.Equal(t, r.Unexplained, again.Unexplained, "it is counted once")
}

type endless struct{ network.StreamManagementScope }

func (endless) Done() {}

func TestAManagerBesideThatPanicsIsLeftOut(t *testing.T) {
	asked := 0
	m := withFault(t, func(network.StreamManagementScope, error) (network.StreamManagementScope, error) {
		asked++
		panic("broken")
	})
	open := mustStream(t, m)
	mustStream(t, m).Done()
	open.Done()
	d := only(t, m)
	require.Equal(t, KindPanic, d.Kind)
	require.False(t, d.Explained)
	require.Contains(t, d.Example, "broken")
	require.Equal(t, 1, asked)
	r := m.Report()
	require.True(t, r.Out)
	require.Zero(t, m.Stat().System)
}

// broken is a stream whose amounts cannot be read.
type broken struct{ network.StreamManagementScope }

func (broken) Stat() network.ScopeStat { panic("broken") }

func TestAComparisonThatPanicsFailsNoCall(t *testing.T) {
	m := withFault(t, func(s network.StreamManagementScope, err error) (network.StreamManagementScope, error) {
		return broken{s}, err
	})
	s := mustStream(t, m)
	require.NoError(t, s.ReserveMemory(1, 255))
	require.NoError(t, s.SetProtocol("/a"))
	s.Done()
	require.Equal(t, KindPanic, only(t, m).Kind)
	require.Zero(t, m.Stat().System)
}

func TestGatesAreTheSameInBothManagers(t *testing.T) {
	half := rcmgr.GateLimits{Subnets: rcmgr.SubnetLimits{IPv4: map[int]rcmgr.LimitVal{32: 4}},
		Rate: rcmgr.RateLimits{IPv4: map[int]rcmgr.ConnRate{32: {PerSecond: 0.001, Burst: 40}}}}
	blocked := rcmgr.GateLimits{Rate: rcmgr.RateLimits{IPv4: map[int]rcmgr.ConnRate{32: {Burst: rcmgr.BlockAllLimit}}}}
	for admitted, cfg := range map[int]rcmgr.PartialLimitConfig{8: {}, 4: {Gates: &half}, 0: {Gates: &blocked}} {
		ours, err := rcmgr.New(rcmgr.NewFixedLimiter(cfg.Build(rcmgr.InfiniteLimits)))
		require.NoError(t, err)
		m, err := TheirsBeside(ours)
		require.NoError(t, err)
		defer m.Close()
		var open []network.ConnManagementScope
		for range 12 {
			if c, err := m.OpenConnection(network.DirInbound, false, testEndpoint); err == nil {
				open = append(open, c)
			}
		}
		require.Len(t, open, admitted)
		for range 30 {
			c, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/127.0.0.1/tcp/1"))
			require.NoError(t, err)
			open = append(open, c)
		}
		r := m.Report()
		require.Empty(t, r.Differences, "%s", &r)

		_, err = m.OpenConnection(network.DirOutbound, false, testEndpoint)
		require.NoError(t, err, "ours lets its own host dial")
		d := only(t, m)
		require.Equal(t, entryOutbound, d.Entry)
		for _, c := range open {
			c.Done()
		}
	}
}

func TestInfiniteLimitsHaveNoGatesInOurs(t *testing.T) {
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	require.NoError(t, err)
	m, err := New(theirManager(t, limits(nil)), ours)
	require.NoError(t, err)
	defer m.Close()
	for range 9 {
		m.OpenConnection(network.DirInbound, false, testEndpoint)
	}
	require.Equal(t, entryNoGates, only(t, m).Entry)
}

func TestALeadThatPanicsPanicsAsWithoutAShadow(t *testing.T) {
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	require.NoError(t, err)
	defer ours.Close()
	m, err := New(&wrapped{ours, func(network.StreamManagementScope, error) (network.StreamManagementScope, error) { panic("broken") }},
		theirManager(t, limits(nil)))
	require.NoError(t, err)
	require.PanicsWithValue(t, "broken", func() { mustStream(t, m) })
	c, err := m.OpenConnection(network.DirInbound, false, testEndpoint)
	require.NoError(t, err, "no lock is left held")
	c.Done()
}

func TestPrioritiesOfMemoryAreExplainedAndTheLeadDecides(t *testing.T) {
	l := limits(func(c *upstream.PartialLimitConfig) { c.System.Memory = 1000 })
	m := besideTheirs(t, l)
	s := mustStream(t, m)
	require.NoError(t, s.ReserveMemory(400, 128))
	require.Error(t, s.ReserveMemory(400, 128), "go-libp2p's admits half of the limit at this priority, and ours all of it")
	d := only(t, m)
	require.Equal(t, KindDecision, d.Kind)
	require.Equal(t, entryPriorities, d.Entry)
	require.EqualValues(t, 400, m.Ours().Stat().System.Memory, "what only ours has admitted is given back")

	m = besideTheirs(t, l, like...)
	s = mustStream(t, m)
	require.NoError(t, s.ReserveMemory(400, 128))
	require.Error(t, s.ReserveMemory(400, 128))
	require.Empty(t, m.Report().Differences)
	require.False(t, m.hasOwnRule())
}

func TestTheRuleOfAdmissionIsFoundUnderEveryLimit(t *testing.T) {
	for _, memory := range []int64{1, 2, 255, 1000, math.MaxInt64} {
		l := limits(func(c *upstream.PartialLimitConfig) { c.System.Memory = upstream.LimitVal64(memory) })
		require.True(t, besideTheirs(t, l).hasOwnRule(), memory)
		if memory > 1 { // of one byte, two of the rules make the same
			require.False(t, besideTheirs(t, l, like...).hasOwnRule(), memory)
			require.True(t, besideTheirs(t, l, rcmgr.WithAdmission(rcmgr.AdmissionGraded)).hasOwnRule(), memory)
		}
	}
}

func TestAReservationThatOnlyTheLeadHasIsNoDifferenceAnyMore(t *testing.T) {
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Memory: 1000}}.Build(rcmgr.InfiniteLimits)))
	require.NoError(t, err)
	m, err := TheirsBeside(ours)
	require.NoError(t, err)
	defer m.Close()
	s, other := mustStream(t, m), mustStream(t, m)
	require.NoError(t, s.ReserveMemory(800, 128), "ours admits all of a limit at this priority, and go-libp2p's half")
	d := only(t, m)
	require.Equal(t, KindDecision, d.Kind)
	require.Equal(t, entryPriorities, d.Entry)
	require.EqualValues(t, 1, d.Count)

	require.Error(t, other.ReserveMemory(300, 255), "go-libp2p's has room")
	r := m.Report()
	require.EqualValues(t, 1, r.Explained, "%s", &r)
	require.EqualValues(t, 1, r.Follows)
	require.Equal(t, 1, r.Apart)

	s.ReleaseMemory(500)
	require.NoError(t, other.ReserveMemory(300, 255))
	require.Equal(t, 300, int(s.Stat().Memory))
	s.ReleaseMemory(300)
	r = m.Report()
	require.Zero(t, r.Apart, "both hold the same again")
	require.EqualValues(t, 1, r.Follows)
	require.Zero(t, r.Unexplained)
	s.Done()
	other.Done()
	require.Zero(t, m.theirs.Stat().System)
	require.Zero(t, ours.Stat().System)
}

func TestMoreReleasedThanReservedIsExplained(t *testing.T) {
	for _, n := range []int{15, -5} {
		m := besideTheirs(t, limits(nil), like...)
		s, other := mustStream(t, m), mustStream(t, m)
		require.NoError(t, other.ReserveMemory(100, 255))
		require.NoError(t, s.ReserveMemory(10, 255))
		s.ReleaseMemory(n)
		require.NoError(t, s.ReserveMemory(1, 255))
		s.Done()
		other.Done()
		r := m.Report()
		require.Zero(t, r.Unexplained, "%s", &r)
		require.NotZero(t, r.Explained)
		require.Zero(t, m.Ours().Stat().System)
	}
}

func TestWhatCollectionForgetsIsExplained(t *testing.T) {
	for _, oursLead := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := besideTheirs(t, limits(nil), like...)
			if oursLead {
				ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), like...)
				require.NoError(t, err)
				m, err = TheirsBeside(ours)
				require.NoError(t, err)
				t.Cleanup(func() { m.Close() })
			}
			var kept network.PeerScope
			require.NoError(t, m.ViewPeer(peers[0], func(s network.PeerScope) error {
				kept = s
				return s.ReserveMemory(100, 255)
			}))
			require.NoError(t, m.ViewProtocol("/idle", func(network.ProtocolScope) error { return nil }))
			require.Empty(t, m.Report().Differences)
			time.Sleep(3 * time.Minute)
			d := m.Report().Differences
			require.NotEmpty(t, d)
			require.Equal(t, entryHeldMemory, d[0].Entry)

			kept.ReserveMemory(1, 255)
			kept.Stat()
			kept.ReleaseMemory(100)
			mustStream(t, m).Done()
			r := m.Report()
			require.Zero(t, r.Unexplained, "%s", &r)
		})
	}
}

func TestAScopeKeptFromAViewIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := besideTheirs(t, limits(nil), like...)
		var kept network.PeerScope
		m.ViewPeer(peers[0], func(s network.PeerScope) error { kept = s; return nil })
		time.Sleep(3 * time.Minute)
		s := mustStream(t, m)
		require.NoError(t, s.ReserveMemory(7, 255))
		require.Zero(t, kept.Stat(), "go-libp2p's has collected it, and made another one")
		require.Error(t, kept.ReserveMemory(1, 255))
		r := m.Report()
		require.Zero(t, r.Unexplained, "%s", &r)
		for _, d := range r.Differences {
			require.Equal(t, entryKept, d.Entry)
		}
		s.Done()
		require.Zero(t, m.Ours().Stat().System)
	})
}

func TestSumsThatOverflowAreExplained(t *testing.T) {
	m := besideTheirs(t, limits(nil), like...)
	s := mustStream(t, m)
	require.NoError(t, s.ReserveMemory(math.MaxInt, 255))
	require.NoError(t, s.ReserveMemory(1, 255), "go-libp2p's admits it")
	require.Equal(t, entryOverflow, only(t, m).Entry)
	s.Done()
	require.Zero(t, m.Ours().Stat().System)
}

func TestALimitThatIsNoneIsExplainedAndStaysOneManagersMatter(t *testing.T) {
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), like...)
	require.NoError(t, err)
	oursLead, err := TheirsBeside(ours)
	require.NoError(t, err)
	defer oursLead.Close()
	oursLead.ViewSystem(func(s network.ResourceScope) error {
		s.(rcmgr.ResourceScopeLimiter).SetLimit(nil) // go-libp2p's would fail at the next call
		return nil
	})
	theirsLead := besideTheirs(t, limits(nil), like...)
	theirsLead.ViewSystem(func(s network.ResourceScope) error {
		s.(upstream.ResourceScopeLimiter).SetLimit(&upstream.BaseLimit{Memory: -1, Streams: 9, StreamsInbound: 9})
		return nil
	})
	for _, m := range []*Manager{oursLead, theirsLead} {
		s := mustStream(t, m)
		s.ReserveMemory(1, 255)
		m.ViewSystem(func(s network.ResourceScope) error { limitOf(s); return nil })
		s.Done()
		r := m.Report()
		require.False(t, r.Out)
		require.Zero(t, r.Unexplained, "%s", &r)
		require.NotZero(t, r.Explained)
		for _, d := range r.Differences {
			require.Equal(t, entryBadLimit, d.Entry)
		}
	}
}

func TestWhatOnlyOursHasIsExplained(t *testing.T) {
	one := limits(func(c *upstream.PartialLimitConfig) {
		c.Transient.StreamsInbound, c.Transient.Streams, c.System.StreamsInbound = 8, 8, 9
	})
	for name, opts := range map[string][]rcmgr.Option{
		"fair shares": {rcmgr.WithFairShare()},
		"observing":   {rcmgr.WithObserveOnly()},
	} {
		m := besideTheirs(t, one, append(opts, like...)...)
		for range 12 {
			m.OpenStream(peers[0], network.DirInbound)
		}
		r := m.Report()
		require.Zero(t, r.Unexplained, "%s: %s", name, &r)
		require.NotEmpty(t, r.Differences, name)
		require.Equal(t, entryOptions, r.Differences[0].Entry, name)
	}

	costly, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Memory: 25},
		Costs: &rcmgr.Costs{Stream: 10}}.Build(rcmgr.InfiniteLimits)))
	require.NoError(t, err)
	m, err := TheirsBeside(costly)
	require.NoError(t, err)
	defer m.Close()
	mustStream(t, m)
	mustStream(t, m)
	_, err = m.OpenStream(peers[0], network.DirInbound)
	require.Error(t, err, "two streams have taken the memory")
	for _, d := range m.Report().Differences {
		require.Equal(t, entryOptions, d.Entry, "%s", d.Example)
	}
	require.Equal(t, KindStat, m.Report().Differences[0].Kind)
}

func TestManagersWithDifferentLimitsAreAnErrorThatNamesTheFirst(t *testing.T) {
	ours := func(cfg rcmgr.PartialLimitConfig) *rcmgr.Manager {
		m, err := rcmgr.New(rcmgr.NewFixedLimiter(cfg.Build(rcmgr.InfiniteLimits)))
		require.NoError(t, err)
		t.Cleanup(func() { m.Close() })
		return m
	}
	theirs := theirManager(t, limits(func(c *upstream.PartialLimitConfig) { c.Transient.Memory, c.Transient.FD = 5, 6 }))
	_, err := New(theirs, ours(rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{Memory: 5, FD: 7}}))
	require.EqualError(t, err, "rcmgrshadow: Transient.FD is 6 in the lead and 7 in the manager beside, expected the same limits")
	_, err = New(ours(rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Memory: 8}}), theirs)
	require.EqualError(t, err, "rcmgrshadow: System.Memory is 8 in the lead and 9223372036854775807 in the manager beside, expected the same limits")

	same := upstream.PartialLimitConfig{Protocol: map[protocol.ID]upstream.ResourceLimits{"/a": {Streams: 3}}}
	err = sameLimiters(same, rcmgr.LimiterFrom(limits(func(c *upstream.PartialLimitConfig) { *c = same })),
		rcmgr.NewFixedLimiter(rcmgr.PartialLimitConfig{}.Build(rcmgr.InfiniteLimits)))
	require.EqualError(t, err, `Protocol["/a"].Streams is 3 in go-libp2p's limits and 9223372036854775807 in rcmgr's, expected the same limits`)
}

func TestManagersThatCannotBeAPairAreErrors(t *testing.T) {
	theirs := theirManager(t, limits(nil))
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	require.NoError(t, err)
	defer ours.Close()
	for _, pair := range [][2]network.ResourceManager{{theirs, theirs}, {ours, ours}, {nil, ours}, {theirs, nil}, {&network.NullResourceManager{}, ours}} {
		_, err := New(pair[0], pair[1])
		require.ErrorContains(t, err, "expected one of rcmgr and one of go-libp2p")
	}
	_, err = TheirsBeside(theirs)
	require.ErrorContains(t, err, "expected one of rcmgr")
	_, err = OursBeside(theirs, nil)
	require.ErrorContains(t, err, "there are no limits")
	_, err = OursBeside(theirs, limits(nil), rcmgr.WithStripes(3))
	require.ErrorContains(t, err, "WithStripes")

	s := mustStream(t, theirs)
	_, err = New(theirs, ours)
	require.EqualError(t, err, "rcmgrshadow: the managers hold different amounts already")
	s.Done()
	_, err = New(theirs, ours.NewHandle())
	require.NoError(t, err)
}

func TestAScopeWhoseLimitsDifferIsCountedAndWhatFollowsIsNot(t *testing.T) {
	theirs := theirManager(t, limits(func(c *upstream.PartialLimitConfig) { c.PeerDefault.StreamsInbound = 1 }))
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	require.NoError(t, err)
	m, err := New(theirs, ours)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.ViewPeer(peers[0], func(network.PeerScope) error { return nil }))
	d := only(t, m)
	require.Equal(t, KindLimit, d.Kind)
	require.False(t, d.Explained)
	require.Contains(t, d.Example, "StreamsInbound of peer:166Phe is 1 at the lead, 9223372036854775807 beside")
	mustStream(t, m)
	_, err = m.OpenStream(peers[0], network.DirInbound)
	require.Error(t, err)
	r := m.Report()
	require.EqualValues(t, 1, r.Follows, "%s", &r)
	require.EqualValues(t, 1, r.Unexplained)
}

func TestLimitsGoFromEachPackageToTheOther(t *testing.T) {
	cfg := rcmgr.DefaultLimits.Scale(1<<30, 1000)
	theirs, err := theirsFrom(cfg)
	require.NoError(t, err)
	ours, err := oursFrom(theirs)
	require.NoError(t, err)
	require.IsType(t, rcmgr.NewFixedLimiter(cfg), ours, "limits that are fixed stay so")
	type another struct{ upstream.Limiter }
	ours, err = oursFrom(another{theirs})
	require.NoError(t, err)
	require.Equal(t, theirs.GetSystemLimits().GetMemoryLimit(), ours.GetSystemLimits().GetMemoryLimit())
}

func TestScopesHaveLimitsInTheTypesOfTheLead(t *testing.T) {
	theirs := besideTheirs(t, limits(nil))
	ourOwn, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	require.NoError(t, err)
	ours, err := TheirsBeside(ourOwn.NewHandle())
	require.NoError(t, err)
	defer ours.Close()
	for m, is := range map[*Manager]func(network.ResourceScope) bool{
		theirs: func(s network.ResourceScope) bool { _, ok := s.(upstream.ResourceScopeLimiter); return ok },
		ours:   func(s network.ResourceScope) bool { _, ok := s.(rcmgr.ResourceScopeLimiter); return ok },
	} {
		see := func(s network.ResourceScope) error { require.True(t, is(s), "%T", s); return nil }
		s := mustStream(t, m)
		require.NoError(t, s.SetProtocol("/a"))
		require.NoError(t, s.SetService("b"))
		c, err := m.OpenConnection(network.DirInbound, true, testEndpoint)
		require.NoError(t, err)
		require.Nil(t, c.PeerScope())
		require.NoError(t, c.SetPeer(peers[0]))
		span, err := c.BeginSpan()
		require.NoError(t, err)
		for _, x := range []network.ResourceScope{s, c, span, s.PeerScope(), s.ProtocolScope(), s.ServiceScope(), c.PeerScope()} {
			see(x)
		}
		require.Equal(t, peers[0], c.PeerScope().Peer())
		require.Equal(t, protocol.ID("/a"), s.ProtocolScope().Protocol())
		require.Equal(t, "b", s.ServiceScope().Name())
		require.NoError(t, errors.Join(m.ViewSystem(see), m.ViewTransient(see),
			m.ViewPeer("p", func(s network.PeerScope) error { return see(s) }),
			m.ViewProtocol("/p", func(s network.ProtocolScope) error { return see(s) }),
			m.ViewService("s", func(s network.ServiceScope) error { return see(s) })))
		setLimit(c, rcmgr.BaseLimit{})
		require.Error(t, span.ReserveMemory(1, 255))
		require.Error(t, c.ReserveMemory(1, 255))
		require.Zero(t, limitOf(c).GetMemoryLimit())
		r := m.Report()
		require.Zero(t, r.Unexplained, "%s", &r)
		require.Equal(t, math.MaxInt, m.GetConnLimit())
		require.Equal(t, []protocol.ID{"/a", "/p"}, m.ListProtocols())
		require.Equal(t, []string{"b", "s"}, m.ListServices())
		require.Len(t, m.ListPeers(), 2)
		require.Equal(t, 1, m.Stat().Protocols["/a"].NumStreamsInbound)
	}
	require.Nil(t, rcmgr.GetAllowlist(theirs))
	require.Same(t, ourOwn.GetAllowlist(), rcmgr.GetAllowlist(ours), "wrappers are looked through")
}

func TestAnErrorOfAViewersOwnIsReturned(t *testing.T) {
	m, errOwn := besideTheirs(t, limits(nil)), errors.New("own")
	require.ErrorIs(t, m.ViewPeer("p", func(network.PeerScope) error { return errOwn }), errOwn)
	require.PanicsWithValue(t, "own", func() { m.ViewSystem(func(network.ResourceScope) error { panic("own") }) })
	require.NoError(t, m.ViewSystem(func(s network.ResourceScope) error {
		// A view within a view does not wait for itself.
		return m.ViewTransient(func(network.ResourceScope) error { s.Stat(); return nil })
	}))
	require.Zero(t, m.Report().Unexplained)
}

func TestAfterCloseTheLeadAloneAnswers(t *testing.T) {
	m := besideTheirs(t, limits(nil))
	s := mustStream(t, m)
	require.NoError(t, s.ReserveMemory(5, 255))
	require.NoError(t, m.Close())
	late := mustStream(t, m) // go-libp2p's manager goes on admitting
	require.NoError(t, late.ReserveMemory(5, 255))
	late.Done()
	s.ReleaseMemory(5)
	s.Done()
	require.Empty(t, m.Report().Differences)
	require.Zero(t, m.Ours().Stat().System)
	require.NoError(t, m.Close())
}

func TestEveryEntryStandsInDifferences(t *testing.T) {
	text, err := os.ReadFile("../DIFFERENCES.md")
	require.NoError(t, err)
	known := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| ") {
			known[strings.TrimPrefix(cells[0], "| ")] = true
		}
	}
	for _, e := range entries {
		require.True(t, known[e], "DIFFERENCES.md does not know %q", e)
	}
}

func TestConcurrentCallsDifferInNothing(t *testing.T) {
	l := limits(func(c *upstream.PartialLimitConfig) {
		c.System.Memory, c.System.Streams, c.Transient.Streams, c.PeerDefault.Streams = 1000, 12, 6, 5
	})
	m := besideTheirs(t, l, like...)
	steps := 1000
	if testing.Short() {
		steps = 100
	}
	seed := testseed.Of(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := testseed.From(seed, uint64(g))
			for range steps {
				s, err := m.OpenStream(pick(r, peers), pick(r, dirs))
				if err != nil {
					continue
				}
				s.ReserveMemory(r.IntN(300), pick(r, priorities))
				s.SetProtocol(protocols[r.IntN(2)])
				span, err := s.BeginSpan()
				if err == nil {
					span.ReserveMemory(r.IntN(300), 255)
				}
				s.Stat()
				s.SetService(services[r.IntN(2)])
				if r.IntN(64) == 0 {
					m.Report()
				}
				s.Done()
				if err == nil {
					span.Done()
				}
			}
		})
	}
	wg.Wait()
	r := m.Report()
	for _, d := range r.Differences {
		require.Equal(t, entryZeroMove, d.Entry, "seed %d\n%s", seed, &r)
	}
	require.Zero(t, r.Apart)
	require.Zero(t, m.Stat().System)
	require.Zero(t, m.Ours().Stat().System)
}

func TestTheReportIsTextJSONAndMetrics(t *testing.T) {
	m := besideTheirs(t, limits(func(c *upstream.PartialLimitConfig) { c.System.Memory = 1000 }))
	ask := func(accept, query string) *httptest.ResponseRecorder {
		req := httptest.NewRequest("GET", "/any"+query, nil)
		req.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		Handler(m).ServeHTTP(w, req)
		return w
	}
	require.Contains(t, ask("", "").Body.String(), "No differences.")
	s := mustStream(t, m)
	require.Error(t, s.ReserveMemory(800, 1), "go-libp2p's refuses")
	require.NoError(t, s.ReserveMemory(1, 255))
	require.Error(t, s.ReserveMemory(300, 1))
	m.mu.Lock()
	m.count(KindDecision, "OpenStream", "", "<b>\x1b[31m odd\n")
	m.unlock()

	text := ask("*/*", "").Body.String()
	require.Contains(t, text, "1 unexplained difference, 1 explained")
	require.Less(t, strings.Index(text, "NONE: unexplained"), strings.Index(text, entryPriorities), "what is unexplained stands first")
	require.NotContains(t, text, "\x1b")
	html := ask("text/html", "")
	require.Contains(t, html.Body.String(), "none: unexplained")
	require.Contains(t, html.Body.String(), entryPriorities)
	require.NotContains(t, html.Body.String(), "<b>")
	require.Contains(t, html.Header().Get("Content-Security-Policy"), "default-src 'none'")
	var read Report
	require.NoError(t, json.Unmarshal(ask("application/json", "").Body.Bytes(), &read))
	require.EqualValues(t, 1, read.Unexplained)
	require.Equal(t, "go-libp2p", read.Lead)
	require.Len(t, read.Differences, 2)
	require.Equal(t, http.StatusBadRequest, ask("", "?format=odd").Code)

	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(m))
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	require.Empty(t, problems)
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP libp2p_rcmgr_shadow_differences_total Differences between the resource manager that decides and the one beside it, by the entry of DIFFERENCES.md that explains them.
# TYPE libp2p_rcmgr_shadow_differences_total counter
libp2p_rcmgr_shadow_differences_total{entry="",explained="false",kind="allowlist"} 0
libp2p_rcmgr_shadow_differences_total{entry="",explained="false",kind="attached"} 0
libp2p_rcmgr_shadow_differences_total{entry="",explained="false",kind="decision"} 1
libp2p_rcmgr_shadow_differences_total{entry="",explained="false",kind="limit"} 0
libp2p_rcmgr_shadow_differences_total{entry="",explained="false",kind="panic"} 0
libp2p_rcmgr_shadow_differences_total{entry="",explained="false",kind="refusal"} 0
libp2p_rcmgr_shadow_differences_total{entry="",explained="false",kind="stat"} 0
libp2p_rcmgr_shadow_differences_total{entry="priorities of memory",explained="true",kind="decision"} 1
`), "libp2p_rcmgr_shadow_differences_total"))
	told := logged.about(entryPriorities)
	require.NotEmpty(t, told)
	require.Contains(t, told[len(told)-1], "level=WARN")
}

func TestUnexplainedDifferencesStandFirstHoweverFewTheyAre(t *testing.T) {
	m := besideTheirs(t, limits(nil))
	m.mu.Lock()
	for range 3 {
		m.count(KindDecision, "OpenStream", entryPriorities, "explained")
	}
	m.count(KindDecision, "OpenStream", "", "odd")
	m.unlock()
	require.Equal(t, "odd", m.Report().Differences[0].Example)
}

// Remote peers choose names that examples quote.
func TestAnExampleIsNotLongerThanALine(t *testing.T) {
	m := besideTheirs(t, limits(nil))
	m.mu.Lock()
	m.count(KindDecision, "OpenStream", "", "a"+strings.Repeat("ö", 2*mostText))
	m.unlock()
	example := only(t, m).Example
	require.LessOrEqual(t, len(example), mostText+len("…"))
	require.True(t, strings.HasSuffix(example, "öö…"), "%q", example)
}

func TestDifferencesOfVeryManyScopesAreNotAllKept(t *testing.T) {
	m := besideTheirs(t, limits(nil))
	of := func(i int) scopeID { return scopeID{kindPeer, fmt.Sprint(i)} }
	one := network.ScopeStat{Memory: 1}
	for i := range 2 * mostOffsets {
		m.offset(of(i), one)
	}
	require.Len(t, m.offsets, mostOffsets)
	m.offset(of(0), one)
	require.EqualValues(t, 2, m.offsets[of(0)].Memory)
	m.offset(of(1), network.ScopeStat{Memory: -1})
	require.Len(t, m.offsets, mostOffsets-1)
}

func TestTheSystemIsComparedNowAndThenThoughThereIsNoReport(t *testing.T) {
	m := withFault(t, func(s network.StreamManagementScope, err error) (network.StreamManagementScope, error) {
		return endless{s}, err
	})
	for range 2 * every {
		mustStream(t, m).Done()
	}
	require.NotNil(t, m.counts.lines[lineKey{KindStat, "Stat", ""}])
}

func TestTwoRefusalsForDifferentReasonsAreNoOtherDecision(t *testing.T) {
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.PartialLimitConfig{
		PeerDefault: rcmgr.ResourceLimits{StreamsInbound: rcmgr.BlockAllLimit}}.Build(rcmgr.InfiniteLimits)))
	require.NoError(t, err)
	theirs := theirManager(t, limits(func(c *upstream.PartialLimitConfig) { c.PeerDefault.StreamsInbound = upstream.BlockAllLimit }))
	m, err := New(theirs, &wrapped{ours, func(network.StreamManagementScope, error) (network.StreamManagementScope, error) {
		return nil, network.ErrResourceScopeClosed
	}})
	require.NoError(t, err)
	defer m.Close()
	_, err = m.OpenStream(peers[0], network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	require.Equal(t, KindRefusal, only(t, m).Kind)
}

// Go-libp2p's manager takes a token for a connection that a scope refuses then.
func TestTokensOfRefusedConnectionsAreExplained(t *testing.T) {
	cfg := rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: 1}, Gates: &rcmgr.GateLimits{
		Subnets: rcmgr.SubnetLimits{IPv4: map[int]rcmgr.LimitVal{32: 100}},
		Rate:    rcmgr.RateLimits{IPv4: map[int]rcmgr.ConnRate{32: {PerSecond: 0.001, Burst: 3}}}}}
	ours, err := rcmgr.New(rcmgr.NewFixedLimiter(cfg.Build(rcmgr.InfiniteLimits)))
	require.NoError(t, err)
	m, err := TheirsBeside(ours)
	require.NoError(t, err)
	defer m.Close()
	dial := func() (network.ConnManagementScope, error) {
		return m.OpenConnection(network.DirInbound, false, testEndpoint)
	}
	c, err := dial()
	require.NoError(t, err)
	for range 2 {
		_, err = dial()
		require.Error(t, err)
	}
	c.Done()
	_, err = dial()
	require.NoError(t, err)
	require.Equal(t, entryTokens, only(t, m).Entry)
}

func TestTheManagerBesideIsClosedIfThePairCannotBeMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which ends once no goroutine is left
		theirs, err := upstream.NewResourceManager(limits(nil), upstream.WithMetricsDisabled())
		require.NoError(t, err)
		defer theirs.Close()
		defer mustStream(t, theirs).Done()
		_, err = OursBeside(theirs, limits(nil))
		require.EqualError(t, err, "rcmgrshadow: the managers hold different amounts already")
	})
}

func TestTheManagerBesideWritesNoLogOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limits(func(c *upstream.PartialLimitConfig) { c.PeerDefault.StreamsInbound = upstream.BlockAllLimit })
		theirs, err := upstream.NewResourceManager(l, upstream.WithMetricsDisabled())
		require.NoError(t, err)
		defer theirs.Close()
		refuse := func(opts ...rcmgr.Option) int {
			before := len(logged.about("from exceeding resource limits"))
			m, err := OursBeside(theirs, l, opts...)
			require.NoError(t, err)
			_, err = m.OpenStream(peers[0], network.DirInbound)
			require.Error(t, err)
			require.NoError(t, m.Ours().Close())
			return len(logged.about("from exceeding resource limits")) - before
		}
		require.Zero(t, refuse())
		require.Equal(t, 1, refuse(rcmgr.WithRefusalLog(time.Second)))
	})
}

// Most limits of a manager of go-libp2p's are its defaults, so the manager beside it does not warn
// about those that can never be reached.
func TestTheManagerBesideDoesNotWarnAboutGoLibp2psDefaults(t *testing.T) {
	limits := upstream.NewFixedLimiter(upstream.DefaultLimits.Scale(1<<30, 1024))
	theirs, err := upstream.NewResourceManager(limits, upstream.WithMetricsDisabled())
	require.NoError(t, err)
	before := len(logged.about("can never be reached"))
	m, err := OursBeside(theirs, limits)
	require.NoError(t, err)
	defer m.Close()
	require.Len(t, logged.about("can never be reached"), before)
}
