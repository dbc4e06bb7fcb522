package rcmgr

// What the gates cost, beside go-libp2p's manager with its metrics off (ours
// cannot be off). Both have their default gates but for what a workload says,
// and meet the same addresses.
//
//	go test -run '^$' -bench Gates -count 6 | tee bench.txt && benchstat -col /impl bench.txt

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/cputime"
)

// gateWorkload is what comes to the gates again and again.
type gateWorkload struct {
	name    string
	system  LimitVal // of connections
	perSub  []ConnLimitPerSubnet
	refused bool
	addrs   func() []multiaddr.Multiaddr // taken in turns
	before  int                          // connections that stay open, from the first address
	tokens  bool                         // there have to be tokens left, or the rate is what refuses
}

var gateWorkloads = []gateWorkload{
	{name: "open", addrs: distinctAddrs, tokens: true},
	{name: "full", system: 8, before: 8, refused: true, addrs: distinctAddrs, tokens: true},
	{name: "subnet", perSub: []ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 8}, {PrefixLength: 8, ConnCount: 1}},
		before: 1, refused: true, addrs: distinctAddrs, tokens: true},
	{name: "rate", refused: true, addrs: func() []multiaddr.Multiaddr { return distinctAddrs()[:1] }},
}

// distinctAddrs returns as many addresses as a busy host meets in a few seconds.
var distinctAddrs = sync.OnceValue(func() []multiaddr.Multiaddr {
	all := make([]multiaddr.Multiaddr, 1<<12)
	for i := range all {
		all[i] = multiaddr.StringCast(fmt.Sprintf("/ip4/11.%d.%d.%d/tcp/4001", i>>16, i>>8&255, i&255))
	}
	return all
})

// tokensEach is how often every address may come to a new manager: the default
// burst, less one that prepare may have used.
const tokensEach = 2*connsPerHost - 1

func (w *gateWorkload) ours() (network.ResourceManager, error) {
	limits := PartialLimitConfig{System: ResourceLimits{Conns: w.system}}
	return NewResourceManager(NewFixedLimiter(limits.Build(DefaultLimits.Scale(farMemory, farFDs))), WithLimitPerSubnet(w.perSub, nil))
}

func (w *gateWorkload) upstreams() (network.ResourceManager, error) {
	limits := upstream.PartialLimitConfig{System: upstream.ResourceLimits{Conns: upstream.LimitVal(w.system)}}
	opts := []upstream.Option{upstream.WithMetricsDisabled()}
	if w.perSub != nil {
		var perSub []upstream.ConnLimitPerSubnet
		for _, l := range w.perSub {
			perSub = append(perSub, upstream.ConnLimitPerSubnet(l))
		}
		opts = append(opts, upstream.WithLimitPerSubnet(perSub, nil))
	}
	return upstream.NewResourceManager(upstream.NewFixedLimiter(limits.Build(upstream.DefaultLimits.Scale(farMemory, farFDs))), opts...)
}

// prepare opens what stays open, and returns the i-th round. A round that is to
// be refused may be admitted now and then, when a new token has come.
func (w *gateWorkload) prepare(t require.TestingT, rm network.ResourceManager) (round func(i int) (admitted bool)) {
	addrs, peers := w.addrs(), names(512)
	for range w.before {
		_, err := rm.OpenConnection(network.DirInbound, false, addrs[0])
		require.NoError(t, err)
	}
	return func(i int) bool {
		c, err := rm.OpenConnection(network.DirInbound, true, addrs[(i+1)%len(addrs)])
		if err != nil {
			return false
		}
		err = c.SetPeer(peers[i%len(peers)])
		c.Done()
		return err == nil
	}
}

func BenchmarkGates(b *testing.B) {
	for _, w := range gateWorkloads {
		for _, r := range []struct {
			impl string
			make func() (network.ResourceManager, error)
		}{{"ours", w.ours}, {"upstream-without-metrics", w.upstreams}} {
			b.Run(fmt.Sprintf("work=%s/impl=%s", w.name, r.impl), func(b *testing.B) {
				var rm network.ResourceManager
				var round func(int) bool
				renew := func() {
					var err error
					rm, err = r.make()
					require.NoError(b, err)
					round = w.prepare(b, rm)
				}
				renew()
				b.ReportAllocs()
				rounds, unexpected, since := 0, 0, cputime.Used()
				for b.Loop() {
					if w.tokens && rounds%(tokensEach*len(w.addrs())) == 0 && rounds > 0 {
						b.StopTimer()
						stopped := cputime.Used()
						require.NoError(b, rm.Close())
						renew()
						since += cputime.Used() - stopped
						b.StartTimer()
					}
					if round(rounds) == w.refused {
						unexpected++
					}
					rounds++
				}
				reportProcessorTime(b, since)
				require.NoError(b, rm.Close())
				require.LessOrEqual(b, unexpected, 16+rounds/100)
			})
		}
	}
}

func TestGatesAllocateAtMostTwice(t *testing.T) {
	for _, w := range gateWorkloads {
		t.Run(w.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // no time passes, and so no token comes
				rm, err := w.ours()
				require.NoError(t, err)
				defer rm.Close()
				round := w.prepare(t, rm)
				i, unexpected := 0, 0
				once := func() {
					if round(i) == w.refused {
						unexpected++
					}
					i++
				}
				for range 1024 {
					once() // all peers and shares are there
				}
				require.LessOrEqual(t, testing.AllocsPerRun(4000, once), 2.0)
				if w.tokens {
					require.Zero(t, unexpected)
				} else {
					require.Equal(t, 2*connsPerHost, unexpected, "as many as there were tokens")
				}
			})
		})
	}
}
