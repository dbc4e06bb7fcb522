package rcmgr

// Guarantees about Close.

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

func TestAfterCloseNothingIsAdmittedAndEverythingCanBeReleased(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("full=%v", full), func(t *testing.T) {
			m := newManager(t, unlimitedConf(), WithStripes(8))
			c, unset := mustOpenConn(t, m, network.DirInbound), mustOpenConn(t, m, network.DirInbound)
			require.NoError(t, c.SetPeer(testPeer))
			s, bare := servedStream(t, m, testPeer), mustOpenStream(t, m, testPeer, network.DirInbound)
			half := mustOpenStream(t, m, testPeer, network.DirInbound)
			require.NoError(t, half.SetProtocol(testProto))
			span := mustBeginSpan(t, c)
			scopes := viewEach(t, m)
			scopes["conn"], scopes["stream"], scopes["span"] = c, s, span
			for _, s := range scopes {
				require.NoError(t, s.ReserveMemory(10, 255))
			}
			if full { // a refusal must not hide that it is closed
				viewTransient(t, m).(ResourceScopeLimiter).SetLimit(&BaseLimit{})
			}
			require.NoError(t, m.Close())
			require.NoError(t, m.Close())
			before := books(m)
			calls := map[string]func() error{
				"OpenConnection in":  func() error { _, err := m.OpenConnection(network.DirInbound, true, testFars[1].addr); return err },
				"OpenConnection out": func() error { _, err := m.OpenConnection(network.DirOutbound, true, nil); return err },
				"OpenStream":         func() error { _, err := m.OpenStream(testPeer, network.DirInbound); return err },
				"SetPeer":            func() error { return unset.SetPeer(testPeer) },
				"SetProtocol":        func() error { return bare.SetProtocol(testProto) },
				"SetService":         func() error { return half.SetService(testSvc) },
			}
			for name, s := range scopes {
				calls[name+".ReserveMemory"] = func() error { return s.ReserveMemory(1, 255) }
				calls[name+".BeginSpan"] = func() error { _, err := s.BeginSpan(); return err }
			}
			for name, call := range calls {
				err := call()
				require.ErrorIs(t, err, network.ErrResourceScopeClosed, name)
				require.ErrorContains(t, err, "resource manager closed", name)
			}
			require.Equal(t, before, books(m))
			for name, s := range scopes {
				s.ReleaseMemory(10)
				require.NotNil(t, s.Stat(), name)
			}
			for _, d := range []interface{ Done() }{span, c, unset, s, bare, half} {
				d.Done()
			}
			if !full {
				assertEmpty(t, m)
			}
		})
	}
}

// TestAClosedManagerSaysSoBeforeItsGatesDo: a full subnet or rate does not hide
// that the manager is closed.
func TestAClosedManagerSaysSoBeforeItsGatesDo(t *testing.T) {
	m := newManager(t, unlimitedConf())
	open := func() error {
		_, err := m.OpenConnection(network.DirInbound, false, testFars[1].addr)
		return err
	}
	for range connsPerHost {
		require.NoError(t, open())
	}
	require.ErrorIs(t, open(), network.ErrResourceLimitExceeded)
	require.NoError(t, m.Close())
	require.ErrorIs(t, open(), network.ErrResourceScopeClosed)
}

// TestADoneConnectionSaysSoBeforeTheGatesDo: of a connection that was let past
// the gates for another connection.
func TestADoneConnectionSaysSoBeforeTheGatesDo(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithAllowlistedMultiaddrs(testAllowlist))
	named := testFars[3].addr
	var last network.ConnManagementScope
	for range connsPerHost + 1 {
		c, err := m.OpenConnection(network.DirInbound, false, named)
		require.NoError(t, err)
		if last != nil {
			require.NoError(t, last.SetPeer(testPeer)) // a stranger: the gates count it
		}
		last = c
	}
	require.ErrorIs(t, last.SetPeer(testPeer), network.ErrResourceLimitExceeded)
	last.Done()
	require.ErrorIs(t, last.SetPeer(testPeer), network.ErrResourceScopeClosed)
}

func TestAHandleClosesWithItsLastHandle(t *testing.T) {
	m := newManager(t, unlimitedConf())
	a, b := m.NewHandle(), m.NewHandle()
	var _ network.ResourceManager = a
	stream := func(rm network.ResourceManager) error {
		s, err := rm.OpenStream(testPeer, network.DirInbound)
		if err == nil {
			s.Done()
		}
		return err
	}
	conn := func(rm network.ResourceManager) error {
		c, err := rm.OpenConnection(network.DirInbound, false, nil)
		if err == nil {
			c.Done()
		}
		return err
	}
	require.NoError(t, stream(a))
	require.NoError(t, a.Close())
	require.NoError(t, a.Close(), "again it does nothing")
	require.ErrorIs(t, stream(a), network.ErrResourceScopeClosed)
	require.ErrorIs(t, conn(a), network.ErrResourceScopeClosed)
	require.NoError(t, stream(b), "the other host goes on")
	require.NoError(t, conn(b))
	c := m.NewHandle() // a third one, later
	require.NoError(t, b.Close())
	require.NoError(t, conn(c))
	require.NoError(t, c.Close())
	require.ErrorIs(t, stream(m), network.ErrResourceScopeClosed)
	assertEmpty(t, m)
}
