package rcmgr

// Guarantees about callers that do what they should not: they get an error or are
// counted, and others lose nothing by it.

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

func TestAReleaseTakesOnlyWhatWasReservedThere(t *testing.T) {
	// Each scope holds 100 bytes of its own; others hold 1000 below it.
	for name, make := range map[string]func(t *testing.T, m *Manager) network.ResourceScope{
		"conn": func(t *testing.T, m *Manager) network.ResourceScope {
			c := mustOpenConn(t, m, network.DirInbound)
			require.NoError(t, mustBeginSpan(t, c).ReserveMemory(1000, 255))
			return c
		},
		"stream.span": func(t *testing.T, m *Manager) network.ResourceScope {
			s := mustBeginSpan(t, servedStream(t, m, testPeer))
			require.NoError(t, mustBeginSpan(t, s).ReserveMemory(1000, 255))
			return s
		},
		kindNamesHere[KindPeer]: func(t *testing.T, m *Manager) network.ResourceScope {
			require.NoError(t, servedStream(t, m, testPeer).ReserveMemory(1000, 255))
			return viewPeer(t, m, testPeer)
		},
		kindNamesHere[KindProtocol]: func(t *testing.T, m *Manager) network.ResourceScope {
			require.NoError(t, servedStream(t, m, testPeer).ReserveMemory(1000, 255))
			return viewProtocol(t, m, testProto)
		},
		kindNamesHere[KindService]: func(t *testing.T, m *Manager) network.ResourceScope {
			require.NoError(t, servedStream(t, m, testPeer).ReserveMemory(1000, 255))
			return viewService(t, m, testSvc)
		},
		"system": func(t *testing.T, m *Manager) network.ResourceScope {
			require.NoError(t, servedStream(t, m, testPeer).ReserveMemory(1000, 255))
			return viewSystem(t, m)
		},
		"transient.span": func(t *testing.T, m *Manager) network.ResourceScope {
			s := mustBeginSpan(t, viewTransient(t, m))
			require.NoError(t, mustBeginSpan(t, s).ReserveMemory(1000, 255))
			return s
		},
	} {
		for _, tt := range []struct{ release, left int }{{300, 0}, {-300, 100}, {math.MaxInt, 0}, {math.MinInt, 100}} {
			t.Run(fmt.Sprintf("%s/%d", name, tt.release), func(t *testing.T) {
				out := captureLog(t)
				m := newManager(t, unlimitedConf(), WithStripes(1))
				s := make(t, m)
				require.NoError(t, s.ReserveMemory(100, 255))
				s.ReleaseMemory(tt.release)
				require.EqualValues(t, 1000+tt.left, s.Stat().Memory)
				require.EqualValues(t, 1000+tt.left, viewSystem(t, m).Stat().Memory)
				checkInvariants(t, m, false)
				require.EqualValues(t, 1, m.Snapshot().CallerBugs)
				require.Equal(t, 1, strings.Count(out.String(), "\n"), "one line: %s", out)
				require.Contains(t, numbers.ReplaceAllString(out.String(), "$1"), "scope="+name+" ")
				if tt.release == 300 {
					require.Contains(t, out.String(), "excess=200")
				}
				s.ReleaseMemory(1)
				s.ReleaseMemory(0) // is no bug
				require.EqualValues(t, 2-min(1, tt.left), m.Snapshot().CallerBugs)
			})
		}
	}
}

func TestANegativeReservationIsRefusedAndCounted(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(8))
	scopes := viewEach(t, m)
	scopes["conn"] = mustOpenConn(t, m, network.DirInbound)
	scopes["stream"] = servedStream(t, m, testPeer)
	scopes["span"] = mustBeginSpan(t, scopes["stream"])
	scopes["span of system"] = mustBeginSpan(t, scopes["system"])
	before, bugs := books(m), uint64(0)
	for name, s := range scopes {
		for _, n := range []int{-1, math.MinInt} {
			err := s.ReserveMemory(n, 255)
			require.ErrorContains(t, err, "negative", name)
			require.NotErrorIs(t, err, network.ErrResourceLimitExceeded)
			bugs++
		}
	}
	require.Equal(t, before, books(m))
	require.Equal(t, bugs, m.Snapshot().CallerBugs)
}

func TestNamesMustNotBeEmpty(t *testing.T) {
	m := newManager(t, unlimitedConf())
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	before := books(m)
	require.Error(t, s.SetProtocol(""))
	require.Nil(t, s.ProtocolScope())
	require.Equal(t, before, books(m))
	require.NoError(t, s.SetProtocol(testProto))
	before = books(m)
	require.Error(t, s.SetService(""))
	require.Nil(t, s.ServiceScope())
	require.Equal(t, before, books(m))
	require.Error(t, m.ViewProtocol("", nil))
	require.Error(t, m.ViewService("", nil))
	s.Done()
	assertEmpty(t, m)
}

func TestALimitThatIsNoneIsACallersBug(t *testing.T) {
	m := newManager(t, unlimitedConf())
	scopes := viewEach(t, m)
	scopes["conn"] = mustOpenConn(t, m, network.DirInbound)
	scopes["span"] = mustBeginSpan(t, scopes["conn"])
	bugs := uint64(0)
	for name, s := range scopes {
		for _, l := range []Limit{nil, (*BaseLimit)(nil), &BaseLimit{Memory: -1}, &BaseLimit{FD: math.MinInt}} {
			s.(ResourceScopeLimiter).SetLimit(l)
			bugs++
			require.Equal(t, &unlimitedBase, s.(ResourceScopeLimiter).Limit(), name)
		}
	}
	require.Equal(t, bugs, m.Snapshot().CallerBugs)
}

func TestAViewThatPanicsLeavesNoReference(t *testing.T) {
	m := newManager(t, unlimitedConf())
	boom := errors.New("boom")
	for _, view := range []func(){
		func() { m.ViewSystem(func(network.ResourceScope) error { panic(boom) }) },
		func() { m.ViewTransient(func(network.ResourceScope) error { panic(boom) }) },
		func() { m.ViewPeer(testPeer, func(network.PeerScope) error { panic(boom) }) },
		func() { m.ViewProtocol(testProto, func(network.ProtocolScope) error { panic(boom) }) },
		func() { m.ViewService(testSvc, func(network.ServiceScope) error { panic(boom) }) },
	} {
		require.PanicsWithError(t, "boom", view)
	}
	assertEmpty(t, m)
	require.Empty(t, listed(m))
	require.ErrorIs(t, m.ViewPeer(testPeer, func(network.PeerScope) error { return boom }), boom)
}
