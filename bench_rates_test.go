package rcmgr

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
)

// What rates add to opening and closing a stream of a peer that is known:
//
//	go test -run '^$' -bench Rates .
func BenchmarkRates(b *testing.B) {
	fast := Rate{PerSecond: 1_000_000, Burst: 1_000_000_000} // more than the benchmark takes
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

// What WithRoom adds to opening and closing while nothing is nearly full. It adds nothing to what
// an open does; only the first of many draws credit, which compares with another mark.
//
//	go test -run '^$' -bench Room -count 10 .
func BenchmarkRoom(b *testing.B) {
	for i, name := range []string{"off", "on"} {
		opts := []Option{WithRoom(RoomConfig{})}[:i]
		m := newManager(b, limitedConf(func(c *perScope[BaseLimit]) {
			c.System.Conns, c.System.StreamsInbound, c.Transient.ConnsInbound = 4096, 4096, 4096
		}), append(openGates(), opts...)...)
		mustOpenStream(b, m, testPeers[0], network.DirInbound) // the peer is known
		b.Run("stream/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				s, err := m.OpenStream(testPeers[0], network.DirInbound)
				if err != nil {
					b.Fatal(err)
				}
				s.Done()
			}
		})
		b.Run("conn/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				c, err := m.OpenConnection(network.DirInbound, false, nil)
				if err != nil {
					b.Fatal(err)
				}
				c.Done()
			}
		})
	}
}
