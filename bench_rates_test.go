package rcmgr

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
)

// What rates add to opening and closing a stream of a peer that is known:
//
//	go test -run '^$' -bench Rates .
func BenchmarkRates(b *testing.B) {
	fast := Rate{PerSecond: 1_000_000, Burst: 1_000_000}
	for _, one := range []struct {
		name string
		set  func(*perScope[BaseLimit])
	}{
		{"none", func(*perScope[BaseLimit]) {}},
		{"peer", func(c *perScope[BaseLimit]) { c.PeerDefault.Rates.StreamsInbound = fast }},
		{"system", func(c *perScope[BaseLimit]) { c.System.Rates.StreamsInbound = fast }},
		{"both", func(c *perScope[BaseLimit]) {
			c.PeerDefault.Rates.StreamsInbound, c.System.Rates.StreamsInbound = fast, fast
		}},
	} {
		b.Run(one.name, func(b *testing.B) {
			m := newManager(b, limitedConf(one.set))
			mustOpenStream(b, m, testPeers[0], network.DirInbound) // the peer is known
			b.ReportAllocs()
			for range b.N {
				s, err := m.OpenStream(testPeers[0], network.DirInbound)
				if err != nil {
					b.Fatal(err)
				}
				s.Done()
			}
		})
	}
}
