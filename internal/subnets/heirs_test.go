package subnets

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

func TestTakeOverLocksAllStripesInTheOrderOfEnter(t *testing.T) {
	networks := func(ns ...string) (all [ip.Families][]networkLimit) {
		for _, n := range ns {
			all[ip.V4] = append(all[ip.V4], networkLimit{netip.MustParsePrefix(n), 5})
		}
		return all
	}
	rate := rateLimit{perSecond: 1, burst: 1}
	s := made(t, subnetConfig{networks: networks("10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8")}, rateConfig{networks: [ip.Families][]networkRate{
		ip.V4: {{netip.MustParsePrefix("10.0.0.0/8"), rate}, {netip.MustParsePrefix("10.1.0.0/16"), rate}, {netip.MustParsePrefix("12.0.0.0/8"), rate}},
	}})
	place := make(map[*Stripe]int)
	for i, st := range s.inLockOrder() {
		place[st] = i
	}
	require.Len(t, place, len(s.named)+numStripes)
	for _, n := range s.networks.All() {
		if n.conns != nil && n.tokens != nil {
			require.Less(t, place[n.conns], place[n.tokens])
		}
		for _, st := range []*Stripe{n.conns, n.tokens} {
			if st != nil {
				require.Less(t, place[st], place[&s.all()[0]])
			}
		}
	}
}
