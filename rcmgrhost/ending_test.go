package rcmgrhost

import (
	"context"
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"
)

// rawConn and countedScope count how often they are ended.
type (
	rawConn struct {
		manet.Conn
		closed int
	}
	countedScope struct {
		network.ConnManagementScope
		done int
	}
)

func (c *rawConn) RemoteMultiaddr() multiaddr.Multiaddr { return nil }
func (c *rawConn) Close() error                         { c.closed++; return nil }
func (s *countedScope) Done()                           { s.done++ }

func TestAHandshakeThatIsEndedClosesItsConnectionAndReleasesItsScopeOnce(t *testing.T) {
	var s shaking
	var raw rawConn
	var scope countedScope
	h := s.begin(&raw, &scope)
	require.True(t, h.End())
	require.False(t, h.End(), "it was over")
	require.Equal(t, 1, raw.closed)
	require.Equal(t, 1, scope.done)
}

// upgrades is an upgrader that returns an error, or nothing.
type upgrades struct {
	transport.Upgrader
	err error
}

func (u upgrades) Upgrade(context.Context, transport.Transport, manet.Conn, network.Direction, peer.ID, network.ConnManagementScope) (transport.CapableConn, error) {
	return nil, u.err
}

func TestAConnectionThatItsTransportUpgradesIsNoHandshakeAnyMore(t *testing.T) {
	for err, left := range map[error]int{errors.New("failed"): 1, nil: 0} {
		u := &upgrader{upgrades{err: err}, new(shaking)}
		h := u.of.begin(new(rawConn), new(countedScope))
		_, got := u.Upgrade(t.Context(), nil, h.raw, network.DirInbound, "", h)
		require.Equal(t, err, got)
		require.Equal(t, left, Shaking(u))
	}
}
