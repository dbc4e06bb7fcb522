package rcmgr

import (
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

// What is reserved directly at a scope, and at a span of it, is charged to the scopes above
// it, and to no other.
func TestDirectReservationsAreChargedToTheScopesAbove(t *testing.T) {
	all := func(m *Manager) map[string]int64 {
		s := m.Stat()
		return map[string]int64{
			"system": s.System.Memory, "transient": s.Transient.Memory,
			"allowlistedSystem": s.AllowlistedSystem.Memory, "allowlistedTransient": s.AllowlistedTransient.Memory,
			"service": s.Services[testSvc].Memory, "protocol": s.Protocols[testProto].Memory, "peer": s.Peers[testPeers[0]].Memory,
		}
	}
	for name, c := range map[string]struct {
		view  func(m *Manager, f func(network.ResourceScope) error) error
		above string
	}{
		"system":               {(*Manager).ViewSystem, ""},
		"transient":            {(*Manager).ViewTransient, "system"},
		"allowlistedSystem":    {(*Manager).ViewAllowlistedSystem, ""},
		"allowlistedTransient": {(*Manager).ViewAllowlistedTransient, "allowlistedSystem"},
		"service": {func(m *Manager, f func(network.ResourceScope) error) error {
			return m.ViewService(testSvc, func(s network.ServiceScope) error { return f(s) })
		}, "system"},
		"protocol": {func(m *Manager, f func(network.ResourceScope) error) error {
			return m.ViewProtocol(testProto, func(s network.ProtocolScope) error { return f(s) })
		}, "system"},
		"peer": {func(m *Manager, f func(network.ResourceScope) error) error {
			return m.ViewPeer(testPeers[0], func(s network.PeerScope) error { return f(s) })
		}, "system"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, unlimitedConf())
			want := all(m)
			hold := func(n int64) {
				want[name] += n
				if c.above != "" {
					want[c.above] += n
				}
				require.Equal(t, want, all(m))
			}
			require.NoError(t, c.view(m, func(s network.ResourceScope) error {
				require.NoError(t, s.ReserveMemory(100, 255))
				hold(100)
				span, err := s.BeginSpan()
				require.NoError(t, err)
				require.NoError(t, span.ReserveMemory(23, 255))
				hold(23)
				span.Done()
				hold(-23)
				s.ReleaseMemory(100)
				hold(-100)
				return nil
			}))
		})
	}
}

// A muxer may begin a span for each stream.
func TestASpanAtAPeerTakesNothingOfTheRareThings(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) { c.System.Memory = 10 }), WithStripes(1))
	names := make(map[string]bool)
	for range 2 {
		for _, p := range testPeers[:2] {
			ps := viewPeer(t, m, p).(*peerScope)
			s, err := ps.BeginSpan()
			require.NoError(t, err)
			require.Nil(t, ps.rare)
			err = s.ReserveMemory(11, network.ReservationPriorityAlways)
			require.Error(t, err)
			name, _, _ := strings.Cut(err.Error(), ": ")
			require.Regexp(t, "^peer:"+p.String()+`\.span-[1-4]$`, name)
			require.False(t, names[name], name)
			names[name] = true
			s.Done()
		}
	}
}
