package rcmgr

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

func TestRefusalsOfTheLastMinutesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := unlimitedConf()
		conf.System.StreamsInbound = 0
		conf.Gates = &GateLimits{Subnets: SubnetLimits{IPv4: map[int]LimitVal{32: BlockAllLimit}}}
		m := newManager(t, conf)
		refuse := func(times int) {
			for i := range times {
				if i%2 == 0 {
					_, err := m.OpenStream(testPeer, network.DirInbound)
					require.Error(t, err)
				} else {
					_, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/192.0.2.1/tcp/1"))
					require.Error(t, err)
				}
			}
		}
		start := time.Now()
		time.Sleep(time.Second) // between two looks
		require.Empty(t, m.Snapshot().Recent)
		var want []RefusalsAt
		for i := range 2 * historyLength {
			refuse(i)
			time.Sleep(historyInterval)
			at := start.Add(time.Duration(i+1) * historyInterval)
			want = append(want, RefusalsAt{At: at, Refusals: uint64(i * (i + 1) / 2)})
		}
		got := m.Snapshot().Recent
		require.Len(t, got, historyLength+1, "both ends of five minutes")
		for i, w := range want[len(want)-len(got):] {
			require.True(t, w.At.Equal(got[i].At))
			require.Equal(t, w.Refusals, got[i].Refusals)
		}
		got[0].Refusals = 0
		require.NotEqual(t, got[0], m.Snapshot().Recent[0], "what is given is a copy")
	})
}

func TestRatesOfRefusals(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(second int) time.Time { return start.Add(time.Duration(second) * time.Second) }
	snapshot := func(second int, refusals uint64, recent ...RefusalsAt) *Snapshot {
		return &Snapshot{Taken: at(second), Recent: recent,
			Refusals: map[Kind]Refusals{KindSystem: {FD: refusals / 2}, KindRate: {ConnsInbound: refusals - refusals/2}}}
	}
	for name, c := range map[string]struct {
		of   *Snapshot
		want []refusalRate
	}{
		"nothing known": {snapshot(5, 7), nil},
		"one before":    {snapshot(18, 87, RefusalsAt{At: at(10), Refusals: 7}), []refusalRate{{at(18), 10}}},
		"two before": {snapshot(28, 87, RefusalsAt{At: at(10), Refusals: 7}, RefusalsAt{At: at(20), Refusals: 7}),
			[]refusalRate{{at(20), 0}, {at(28), 10}}},
		"the last one is a moment ago": {snapshot(21, 62, RefusalsAt{At: at(10), Refusals: 7}, RefusalsAt{At: at(20), Refusals: 50}),
			[]refusalRate{{at(21), 5}}},
		"since it was made": {&Snapshot{Started: at(0), Taken: at(20), Recent: []RefusalsAt{{At: at(10), Refusals: 30}},
			Refusals: map[Kind]Refusals{KindSystem: {FD: 40}}}, []refusalRate{{at(10), 3}, {at(20), 1}}},
		"at the same time": {snapshot(10, 7, RefusalsAt{At: at(10), Refusals: 7}), nil},
	} {
		require.Equal(t, c.want, c.of.refusalRates(), name)
	}
}

func TestThePlotSpansAllThatIsKnown(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := &Snapshot{Taken: start.Add(130 * time.Second), Refusals: map[Kind]Refusals{KindSystem: {FD: 300}}}
	require.Nil(t, plotOf(s))
	for i := range 13 { // 20 a second for ten seconds, and 10 at the end
		n := 0
		if i > 6 {
			n = 200
		}
		s.Recent = append(s.Recent, RefusalsAt{At: start.Add(time.Duration(i) * 10 * time.Second), Refusals: uint64(n)})
	}
	p := plotOf(s)
	require.Equal(t, []any{20.0, 10.0, 2}, []any{p.Most, p.Now, p.Minutes})
	require.Equal(t, "0.0,38.0 25.0,38.0 50.0,38.0 75.0,38.0 100.0,38.0 125.0,38.0 150.0,2.0 175.0,38.0 "+
		"200.0,38.0 225.0,38.0 250.0,38.0 275.0,38.0 300.0,20.0", p.Points)
}
