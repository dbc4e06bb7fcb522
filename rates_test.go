package rcmgr

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func perSecond(n float64) Rate { return Rate{PerSecond: n} }

func TestARateHasTheseFormsInJSON(t *testing.T) {
	for _, c := range []struct {
		text string
		rate Rate
		back string // how it is written, if not as it was read
	}{
		{`"10/s"`, Rate{PerSecond: 10}, ""},
		{`"0.5/s"`, Rate{PerSecond: 0.5}, ""},
		{`"600/min"`, Rate{PerSecond: 10}, `"10/s"`},
		{`" 3600 / h"`, Rate{PerSecond: 1}, `"1/s"`},
		{`{"PerSecond":10,"Burst":40}`, Rate{PerSecond: 10, Burst: 40}, ""},
		{`{"perSecond":10}`, Rate{PerSecond: 10}, `"10/s"`},
		{`"unlimited"`, Rate{Burst: Unlimited}, ""},
		{`{"Burst":"unlimited"}`, Rate{Burst: Unlimited}, `"unlimited"`},
		{`"default"`, Rate{}, ""},
	} {
		var r Rate
		require.NoError(t, json.Unmarshal([]byte(c.text), &r), c.text)
		require.Equal(t, c.rate, r, c.text)
		if c.back == "" {
			c.back = c.text
		}
		require.Equal(t, c.back, toJSON(t, r))
	}
	require.EqualValues(t, 10, perSecond(10).burst())
	require.EqualValues(t, 1, perSecond(0.2).burst(), "at least one")
	require.EqualValues(t, 3, perSecond(2.5).burst(), "rounded up")
	require.Equal(t, "2.5/s, burst 3", perSecond(2.5).String())
	require.Equal(t, "unlimited", Rate{Burst: Unlimited}.String())
}

func TestBadRatesAreErrorsWithTheirPlace(t *testing.T) {
	for text, want := range map[string]string{
		`"0/s"`:                          `PerSecond is 0, expected a number above 0`,
		`"-1/s"`:                         `PerSecond is -1, expected a number above 0`,
		`"NaN/s"`:                        `PerSecond is NaN, expected a number above 0`,
		`"Inf/s"`:                        `PerSecond is +Inf, expected at most 1000000`,
		`"1e999/s"`:                      `PerSecond is +Inf, expected at most 1000000`,
		`"1000001/s"`:                    `PerSecond is 1.000001e+06, expected at most 1000000`,
		`"/s"`:                           `"" is no number, expected a rate such as "10/s"`,
		`"ten/s"`:                        `"ten" is no number, expected a rate such as "10/s"`,
		`"10"`:                           errNoRate.Error(),
		`"10/d"`:                         `"d" is no unit of a rate, expected s, min or h`,
		`10`:                             errNoRate.Error(),
		`null`:                           errNoRate.Error(),
		`[]`:                             errNoRate.Error(),
		`{}`:                             errNoRate.Error(),
		`true`:                           errNoRate.Error(),
		`{"Burst":40}`:                   `PerSecond is missing: expected a number above 0, or a rate such as "10/s"`,
		`{"PerSecond":10,"Burst":0}`:     `Burst is 0, expected at least 1: to admit nothing, set the limit beside the rate to 0`,
		`{"PerSecond":10,"Burst":-3}`:    `Burst is -3, expected at least 1`,
		`{"PerSecond":10,"Burst":1.5}`:   `Burst is 1.5, expected a whole number of at least 1`,
		`{"PerSecond":0,"Burst":1}`:      `PerSecond is 0, expected a number above 0`,
		`{"PerSecond":"x"}`:              `PerSecond: expected a number above 0, found "x"`,
		`{"PerSecond":1,"Bursts":3}`:     `"Bursts": unknown name, expected PerSecond and Burst`,
		`{"PerSecond":1,"Burst":100000}`: `Burst is 100000, which takes 27h46m40s to come at 1 a second, expected at most 24h0m0s`,
	} {
		in := "{\"PeerDefault\":\n {\"Rates\": {\"StreamsInbound\": " + text + "}}}"
		_, err := ReadLimits(strings.NewReader(in))
		require.EqualError(t, err, "limits: line 2, column 31: PeerDefault.Rates.StreamsInbound: "+want, text)
		_, err = NewLimiterFromJSON(strings.NewReader(in), InfiniteLimits)
		require.ErrorContains(t, err, want, "also where go-libp2p's file reader has its name")
		r := perSecond(7)
		require.ErrorContains(t, json.Unmarshal([]byte(text), &r), map[bool]string{false: want}[text == "null"], text)
		require.Equal(t, perSecond(7), r)
	}
	_, err := ReadLimits(strings.NewReader(`{"System":{"Rates":{"FD":"1/s"}}}`))
	require.ErrorContains(t, err, "System.Rates.FD: unknown name")
	_, err = ReadLimits(strings.NewReader(`{"System":{"Rates":"1/s"}}`))
	require.ErrorContains(t, err, "System.Rates: expected an object")
}

func TestRatesOfProgramsAreCheckedLikeThoseOfFiles(t *testing.T) {
	for field, r := range map[string]Rate{
		"PerSecond": {PerSecond: math.NaN(), Burst: 1}, "Burst": {PerSecond: 1, Burst: -7},
	} {
		cfg := PartialLimitConfig{PeerDefault: ResourceLimits{Rates: Rates{Conns: r}}}
		_, err := New(NewFixedLimiter(cfg.Build(InfiniteLimits)))
		var at *ConfigError
		require.ErrorAs(t, err, &at)
		require.Equal(t, "PeerDefault.Rates.Conns."+field, at.Path)
	}
	for name, cfg := range map[string]PartialLimitConfig{
		"Conn":   {Conn: ResourceLimits{Rates: Rates{Conns: perSecond(1)}}},
		"Stream": {Stream: ResourceLimits{Rates: Rates{Streams: perSecond(1)}}},
	} {
		_, err := New(NewFixedLimiter(cfg.Build(InfiniteLimits)))
		require.ErrorContains(t, err, name+".Rates.")
		require.ErrorContains(t, err, "has no rate")
	}
}

func randomRates(rng *rand.Rand) (r Rates) {
	for _, one := range r.all() {
		switch rng.IntN(4) {
		case 0:
			*one = Rate{PerSecond: 1 + 99*rng.Float64(), Burst: LimitVal(rng.IntN(3))}
		case 1:
			*one = Rate{Burst: Unlimited}
		}
	}
	return r
}

func randomRated(rng *rand.Rand) (cfg PartialLimitConfig) {
	of := func() ResourceLimits { return ResourceLimits{Streams: LimitVal(rng.IntN(2)), Rates: randomRates(rng)} }
	cfg.System, cfg.Transient, cfg.PeerDefault, cfg.ProtocolDefault = of(), of(), of(), of()
	put(&cfg.Protocol, "/x", of())
	put(&cfg.Service, "a", of())
	return cfg
}

// firstDifference returns the place of the first scope whose limits differ.
func firstDifference(a, b ConcreteLimitConfig) (at string) {
	limits := map[string]BaseLimit{}
	a.limits.each(func(place string, l BaseLimit) { limits[place] = l })
	b.limits.each(func(place string, l BaseLimit) {
		if limits[place] != l && at == "" {
			at = place
		}
		delete(limits, place)
	})
	for place := range limits {
		at = place
	}
	return at
}

func TestRatesAreFilledInBuiltAndComparedLikeLimits(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand) {
		upper, lower := randomRated(rng), randomRated(rng).Build(InfiniteLimits)
		built := upper.Build(lower)
		diff := built.Diff(lower)
		require.Empty(t, firstDifference(built, diff.Build(lower)))

		both := upper
		both.Apply(lower.ToPartialLimitConfig())
		require.Empty(t, firstDifference(built, both.Build(lower)))

		read, err := ReadLimits(strings.NewReader(toJSON(t, upper)))
		require.NoError(t, err)
		require.Empty(t, firstDifference(built, read.Build(lower)))

		want := upper.Protocol["/x"].Rates.StreamsInbound
		if want == (Rate{}) {
			want = lower.limits.Protocol["/x"].Rates.StreamsInbound
		}
		if want.Burst == Unlimited {
			want = Rate{}
		}
		require.Equal(t, want, built.limits.Protocol["/x"].Rates.StreamsInbound)
	})
}

func TestARateThatIsUnlimitedDiffersFromNoRateInNothing(t *testing.T) {
	unlimited := ScalingLimitConfig{PeerBaseLimit: BaseLimit{Rates: Rates{Streams: Rate{Burst: Unlimited}}}}
	require.Zero(t, unlimited.Scale(0, 0).Diff((&ScalingLimitConfig{}).Scale(0, 0)).PeerDefault)
}

func TestRatesGrowWithMemory(t *testing.T) {
	cfg := ScalingLimitConfig{
		PeerBaseLimit:     BaseLimit{Rates: Rates{Streams: perSecond(10), Conns: Rate{PerSecond: 1, Burst: 5}}},
		PeerLimitIncrease: BaseLimitIncrease{Rates: Rates{Streams: perSecond(4), Conns: Rate{PerSecond: 0.5, Burst: 2}, ConnsInbound: perSecond(3)}},
	}
	require.Equal(t, Rates{Streams: perSecond(16), Conns: Rate{PerSecond: 1.75, Burst: 8}, ConnsInbound: perSecond(4.5)},
		cfg.Scale(3<<29, 0).limits.PeerDefault.Rates)
	require.Equal(t, Rates{Streams: perSecond(10), Conns: Rate{PerSecond: 1, Burst: 5}}, cfg.Scale(64<<20, 0).limits.PeerDefault.Rates)
}

func TestSettingsHaveEachRateThatIsSetWithItsOrigin(t *testing.T) {
	cfg := PartialLimitConfig{PeerDefault: ResourceLimits{Rates: Rates{StreamsInbound: perSecond(10)}}}
	var found []ConfigSetting
	for _, s := range cfg.Build(InfiniteLimits).Settings() {
		if strings.Contains(s.Place, ".Rates.") {
			found = append(found, s)
		}
	}
	require.Equal(t, []ConfigSetting{{"PeerDefault.Rates.StreamsInbound", "10/s, burst 10", OriginOverride}}, found)
}

func TestSetLimitRefusesABadRate(t *testing.T) {
	m := newManager(t, limitedConf(func(*perScope[BaseLimit]) {}))
	s := mustOpenStream(t, m, "peer", 1)
	peerScope := s.PeerScope().(ResourceScopeLimiter)
	before := peerScope.Limit()
	peerScope.SetLimit(BaseLimit{Rates: Rates{Streams: perSecond(-1)}})
	require.Equal(t, before, peerScope.Limit())
	require.EqualValues(t, 1, m.callerBugs.Load())
}
