package rcmgr

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	xrate "github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// The engine and the model are asked the same while limits of random kinds are only
// observed, in turns: they admit the same, hold the same, and count the same as
// what would have been refused.
func TestRandomSequencesDecideAsTheModelWhileLimitsAreObserved(t *testing.T) {
	steps := cmp.Or(*stepsFlag, 2000)
	if testing.Short() || raceDetector() {
		steps = cmp.Or(*stepsFlag, 150)
	}
	seed := testSeed(t)
	cell := uint64(0)
	for _, stripes := range []int{1, 2, 8, 64} {
		for _, g := range append(slices.Clone(regimes), mixed) {
			for _, a := range []Admission{AdmissionHalf, AdmissionLinear, AdmissionGraded} {
				cell++
				r := randomFrom(seed, cell)
				t.Run(fmt.Sprintf("stripes=%d/%s/admission=%d", stripes, g.name, a), func(t *testing.T) {
					d := newDuel(t, r, stripes, g, a, true)
					d.observing, d.lowered = true, true
					d.observe()
					d.run(steps)
				})
			}
		}
	}
}

// observe switches some kinds, or all of them, to being only observed or to being
// enforced.
func (d *duel) observe() {
	kinds := []Kind{}
	for k := range KindSubnet {
		if d.r.IntN(4) == 0 {
			kinds = append(kinds, k)
		}
	}
	said := kinds
	if len(kinds) == 0 {
		for k := range KindSubnet {
			said = append(said, k)
		}
	}
	on := d.r.IntN(2) == 0
	d.ask("observe %v: %v", said, on)
	for _, k := range said {
		d.mod.observed[k] = on
	}
	change := d.eng.Enforce
	if on {
		change = d.eng.ObserveOnly
	}
	if err := change(kinds...); err != nil {
		d.t.Fatal(err)
	}
}

// wouldRefuseNow returns what would have been refused until now.
func (m *Manager) wouldRefuseNow() map[modelWould]int {
	r := m.read()
	all := make(map[modelWould]int)
	put := func(k Kind, d dim, c Cause, n uint64) {
		if n > 0 {
			all[modelWould{k, d, c}] = int(n)
		}
	}
	for k := range numKinds {
		for d, n := range r.counts.would[k] {
			rate := r.counts.wouldRationed.rate.of(k)[d]
			put(k, dim(d), CauseRate, rate)
			n -= rate
			marked := r.counts.wouldRationed.marked.of(k)[d]
			put(k, dim(d), CauseEarmark, marked)
			n -= marked
			if crowded := r.counts.wouldRationed.crowded[d]; k == KindTransient {
				put(k, dim(d), CauseCrowding, crowded)
				n -= crowded
			}
			put(k, dim(d), CauseLimit, n)
		}
	}
	return all
}

// What each class of limits would refuse, of a connection or stream on all its way.
func TestEachClassCanBeObservedAlone(t *testing.T) {
	none := amounts{}.base()
	for k, limit := range map[Kind]func(*perScope[BaseLimit]){
		KindSystem:       func(c *perScope[BaseLimit]) { c.System = none },
		KindTransient:    func(c *perScope[BaseLimit]) { c.Transient = none },
		KindService:      func(c *perScope[BaseLimit]) { c.ServiceDefault = none },
		KindServicePeer:  func(c *perScope[BaseLimit]) { c.ServicePeerDefault = none },
		KindProtocol:     func(c *perScope[BaseLimit]) { c.ProtocolDefault = none },
		KindProtocolPeer: func(c *perScope[BaseLimit]) { c.ProtocolPeerDefault = none },
		KindPeer:         func(c *perScope[BaseLimit]) { c.PeerDefault = none },
		KindConn:         func(c *perScope[BaseLimit]) { c.Conn = none },
		KindStream:       func(c *perScope[BaseLimit]) { c.Stream = none },
	} {
		t.Run(k.String(), func(t *testing.T) {
			conf := unlimitedConf()
			limit(&conf)
			m := newManager(t, conf, append(openGates(), WithObserveOnly(k))...)
			require.Equal(t, []Kind{k}, m.Observed())
			whole := func() error {
				c, err := m.OpenConnection(network.DirInbound, true, nil)
				if err != nil {
					return err
				}
				defer c.Done()
				if err := c.SetPeer(testPeer); err != nil {
					return err
				}
				s, err := m.OpenStream(testPeer, network.DirInbound)
				if err != nil {
					return err
				}
				defer s.Done()
				if err := cmp.Or(c.ReserveMemory(1000, 255), s.ReserveMemory(100, 255), s.SetProtocol("/a"), s.SetService("x")); err != nil {
					return err
				}
				span, err := s.BeginSpan()
				if err != nil {
					return err
				}
				defer span.Done()
				if err := span.ReserveMemory(10, 255); err != nil {
					return err
				}
				stat := m.Stat().System
				require.Equal(t, network.ScopeStat{NumConnsInbound: 1, NumFD: 1, NumStreamsInbound: 1, Memory: 1110}, stat)
				return nil
			}
			require.NoError(t, whole())
			assertEmpty(t, m)
			s := m.Snapshot()
			require.Empty(t, s.Refusals)
			require.Len(t, s.WouldRefuse, 1)
			would := s.WouldRefuse[k]
			require.NotZero(t, would.Total())

			require.NoError(t, m.Enforce(k))
			require.Empty(t, m.Observed())
			require.ErrorIs(t, whole(), network.ErrResourceLimitExceeded)
			s = m.Snapshot()
			require.Equal(t, would, s.WouldRefuse[k], "what is refused is not what would have been")
			require.Len(t, s.Refusals, 1)
		})
	}
}

func TestAScopeAboveItsLimitDrainsOnceThatIsEnforced(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Memory = 1000
	m := newManager(t, conf, WithObserveOnly(), WithStripes(8))
	system := m.fixed[KindSystem]
	require.NoError(t, system.ReserveMemory(5000, 255))
	require.NoError(t, m.Enforce(KindSystem))
	require.NotContains(t, m.Observed(), KindSystem)
	require.Contains(t, m.Observed(), KindPeer, "the others stay as they are")
	for _, held := range []int{5000, 1001} {
		system.ReleaseMemory(int(system.Stat().Memory) - held)
		require.ErrorIs(t, system.ReserveMemory(1, 255), network.ErrResourceLimitExceeded, "%d are held", held)
		checkInvariants(t, m, true)
	}
	system.ReleaseMemory(2)
	require.NoError(t, system.ReserveMemory(1, 255))
	require.NoError(t, m.ObserveOnly(KindSystem))
	require.NoError(t, system.ReserveMemory(1, 255))
}

func TestSumsThatOverflowAreRefusedEvenIfLimitsAreOnlyObserved(t *testing.T) {
	if math.MaxInt < math.MaxInt64 {
		t.Skip("with 32 bits no size comes near the greatest sum")
	}
	m := newManager(t, unlimitedConf(), WithObserveOnly())
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	require.NoError(t, s.ReserveMemory(math.MaxInt, 255))
	require.ErrorIs(t, s.ReserveMemory(1, 255), network.ErrResourceLimitExceeded)
	require.ErrorIs(t, m.fixed[KindSystem].ReserveMemory(1, 255), network.ErrResourceLimitExceeded)
	require.EqualValues(t, int64(math.MaxInt), m.Stat().System.Memory)
	require.Empty(t, m.Snapshot().WouldRefuse)
}

func TestKindsThatDoNotExistCannotBeObserved(t *testing.T) {
	_, err := New(nil, WithObserveOnly(KindPeer, numKinds))
	require.EqualError(t, err, "rcmgr: WithObserveOnly: unknown kind of scope: 14, expected 0 (system) to 13 (process)")
	m := newManager(t, unlimitedConf())
	require.EqualError(t, m.ObserveOnly(KindPeer, 200), "rcmgr: ObserveOnly: unknown kind of scope: 200, expected 0 (system) to 13 (process)")
	require.EqualError(t, m.Enforce(200), "rcmgr: Enforce: unknown kind of scope: 200, expected 0 (system) to 13 (process)")
	require.Empty(t, m.Observed())
}

// Connections that a subnet has too many of are counted in it all the same, and what
// is counted goes with them, on all levels and in named networks, also after other
// gates have come into force.
func TestObservedSubnetsCountExactly(t *testing.T) {
	seed := testSeed(t)
	r := randomFrom(seed, 1)
	subnets := []ConnLimitPerSubnet{{32, 2}, {24, 5}}
	named := []NetworkPrefixLimit{{netip.MustParsePrefix("203.0.113.0/24"), 3}}
	m := newManager(t, unlimitedConf(), WithLimitPerSubnet(subnets, nil), WithNetworkPrefixLimit(named, nil),
		WithConnRateLimiters(nil), WithObserveOnly(KindSubnet))
	type open struct {
		at   netip.Addr
		conn network.ConnManagementScope
	}
	var held []open
	counted := func(p netip.Prefix) (n int64) {
		for _, o := range held {
			if p.Contains(o.at) {
				n++
			}
		}
		return n
	}
	would, enforced := uint64(0), false
	for step := range 2000 {
		switch {
		case r.IntN(200) == 0:
			if enforced = !enforced; enforced {
				require.NoError(t, m.Enforce())
			} else {
				require.NoError(t, m.ObserveOnly(KindSubnet))
			}
		case r.IntN(300) == 0:
			more := 1 + r.IntN(1000)
			limits := PartialLimitConfig{Gates: &GateLimits{Subnets: SubnetLimits{IPv6: map[int]LimitVal{64: LimitVal(more)}}}}
			require.NoError(t, m.SetLimits(NewFixedLimiter(limits.Build(InfiniteLimits))))
		case len(held) > 30 || len(held) > 0 && r.IntN(2) == 0:
			i := r.IntN(len(held))
			held[i].conn.Done()
			held = slices.Delete(held, i, i+1)
		default:
			at := netip.AddrFrom4([4]byte{198, 51, 100, byte(r.IntN(4))})
			full := counted(netip.PrefixFrom(at, 32)) >= 2 || counted(netip.PrefixFrom(at, 24)) >= 5
			if r.IntN(2) == 0 {
				at = netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(4))})
				full = counted(named[0].Network) >= 3
			}
			c, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/"+at.String()+"/tcp/1"))
			if full && enforced {
				require.ErrorIs(t, err, network.ErrResourceLimitExceeded, "step %d", step)
				continue
			}
			require.NoError(t, err)
			held = append(held, open{at, c})
			if full {
				would++
			}
		}
		s := m.Snapshot()
		require.Equal(t, would, s.WouldRefuse[KindSubnet].ConnsInbound, "step %d", step)
		for _, sub := range s.Gates.Fullest {
			require.Equal(t, counted(sub.Prefix), sub.Conns, "step %d: %v", step, sub.Prefix)
		}
	}
	for _, o := range held {
		o.conn.Done()
	}
	require.Zero(t, m.Snapshot().Gates.Subnets)
}

// A connection that comes too fast is admitted and owes no token for it, as one that is refused owes
// none: what would be refused is what an enforced gate refuses.
func TestAnObservedRateWouldRefuseWhatAnEnforcedOneRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed := testSeed(t)
		r := randomFrom(seed, 2)
		observed := newManager(t, unlimitedConf(), WithObserveOnly(KindRate))
		enforced := newManager(t, unlimitedConf())
		for range 2000 {
			time.Sleep(time.Duration(r.IntN(4)) * time.Second / 2)
			far := multiaddr.StringCast(fmt.Sprintf("/ip4/198.51.100.%d/tcp/1", r.IntN(3)))
			if c, err := enforced.OpenConnection(network.DirInbound, false, far); err == nil {
				c.Done()
			}
			c, err := observed.OpenConnection(network.DirInbound, false, far)
			require.NoError(t, err)
			c.Done()
			require.Equal(t, enforced.Snapshot().Refusals[KindRate], observed.Snapshot().WouldRefuse[KindRate])
		}
		require.NotZero(t, enforced.Snapshot().Refusals[KindRate])
	})
}

func TestObservedGatesLeaveTheOthersEnforced(t *testing.T) {
	far := multiaddr.StringCast("/ip4/198.51.100.1/tcp/1")
	once := []ConnLimitPerSubnet{{32, 1}}
	caller := &xrate.Limiter{GlobalLimit: xrate.Limit{RPS: 0.001, Burst: 2}}
	m := newManager(t, unlimitedConf(), WithLimitPerSubnet(once, nil), WithConnRateLimiters(caller), WithObserveOnly(KindSubnet))
	open := func() error {
		_, err := m.OpenConnection(network.DirInbound, false, far)
		return err
	}
	require.NoError(t, open())
	require.NoError(t, open())
	var refusal *LimitError
	require.ErrorAs(t, open(), &refusal)
	require.Equal(t, CauseRate, refusal.Cause())
	require.NoError(t, m.ObserveOnly(KindRate))
	require.NoError(t, open())
	s := m.Snapshot()
	require.Equal(t, map[Kind]Refusals{KindSubnet: {ConnsInbound: 3}, KindRate: {ConnsInbound: 1}}, s.WouldRefuse)
	require.Equal(t, map[Kind]Refusals{KindRate: {ConnsInbound: 1}}, s.Refusals)
}

func TestObservedRefusalsAreLoggedShownAndMeasured(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	conf := unlimitedConf()
	conf.System.StreamsInbound = 1
	m := newManager(t, conf, WithObserveOnly(KindSystem), WithMetricsDisabled(), WithTraceReporter(StatsTraceReporter{}))
	for range 4 {
		mustOpenStream(t, m, testPeer, network.DirInbound)
	}
	s := m.Snapshot()
	system := s.stateOf(t, "system")
	require.EqualValues(t, 3, system.WouldRefuse.StreamsInbound)
	require.EqualValues(t, 4, system.Peak.StreamsInbound)
	b, err := json.Marshal(s)
	require.NoError(t, err)
	var read Snapshot
	require.NoError(t, json.Unmarshal(b, &read))
	require.Equal(t, s.WouldRefuse, read.WouldRefuse)
	require.Equal(t, []Kind{KindSystem}, read.Observed)
	require.Equal(t, system, read.stateOf(t, "system"))
	changes := s.Since(&Snapshot{})
	require.Equal(t, s.WouldRefuse, changes.WouldRefuse)

	for format, want := range map[string][]string{
		"text": {"Limits that are only observed: system\n", "system         StreamsInbound  0        3\n"},
		"html": {"Limits that are only observed: system<", "StreamsInbound 3"},
	} {
		w := httptest.NewRecorder()
		Handler(m).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?format="+format, nil))
		for _, text := range want {
			require.Contains(t, w.Body.String(), text, format)
		}
	}

	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, m.RegisterWith(reg))
	requireValue(t, 3, reg, "would_refuse_total", "limit", "inbound", "stream", "system")
	requireValue(t, 0, reg, "refusals_total", "limit", "inbound", "stream", "system")
	requireValue(t, 1, reg, "observe_only", "system")
	requireValue(t, 0, reg, "observe_only", "peer")

	m.Close()
	require.Equal(t, []string{
		`ERROR msg="Would have protected from exceeding resource limits 3 times: \"system: cannot reserve inbound stream: resource limit exceeded\""` +
			` current=3 limit=1 holder=peer:` + testPeer.String() + ` holds=4 worst=peer:` + testPeer.String() + ` worst_times=3 raise=System.StreamsInbound`,
	}, lines.take())
}

// Many work while limits are switched between observed and enforced: accounts and
// credit stay whole.
func TestObservedLimitsUnderConcurrency(t *testing.T) {
	seed := testSeed(t)
	conf := unlimitedConf()
	conf.System.Memory, conf.Transient.StreamsInbound, conf.ProtocolDefault.Streams, conf.PeerDefault.Memory = 1<<12, 20, 300, 1<<9
	m := newManager(t, conf, WithStripes(8), WithObserveOnly())
	var workers sync.WaitGroup
	rounds := 400
	if raceDetector() {
		rounds = 100
	}
	for w := range 8 {
		workers.Go(func() {
			r := randomFrom(seed, uint64(w))
			var held []network.StreamManagementScope
			for range rounds {
				if r.IntN(16) == 0 {
					change := pick(r, []func(...Kind) error{m.Enforce, m.ObserveOnly, m.ObserveOnly})
					change(Kind(r.IntN(int(numKinds))))
					var err error
					m.inOneCut(func() { err = brokenInvariant(m, true) })
					if err != nil {
						t.Error(err)
					}
				}
				s, err := m.OpenStream(pick(r, testPeers), network.DirInbound)
				if err == nil {
					held = append(held, s)
					s.ReserveMemory(r.IntN(1<<9), 255)
					s.SetProtocol(protocol.ID(pick(r, testProtocols)))
				}
				if len(held) > 20 || err != nil && len(held) > 0 {
					held[0].Done()
					held = held[1:]
				}
			}
			for _, s := range held {
				s.Done()
			}
		})
	}
	workers.Wait()
	require.NotEmpty(t, m.Snapshot().WouldRefuse)
	assertEmpty(t, m)
}

func TestATraceHasNoBlockedEventsOfObservedLimits(t *testing.T) {
	conf := unlimitedConf()
	conf.System.StreamsInbound = 0
	var reporter eventTypes
	m := newManager(t, conf, WithObserveOnly(), WithTraceReporter(&reporter))
	mustOpenStream(t, m, testPeer, network.DirInbound)
	m.Close()
	require.Contains(t, reporter.seen, TraceAddStreamEvt)
	require.NotContains(t, reporter.seen, TraceBlockAddStreamEvt)
}

type eventTypes struct{ seen []TraceEvtTyp }

func (e *eventTypes) ConsumeEvent(evt TraceEvt) { e.seen = append(e.seen, evt.Type) }

func TestObservedKindsAsText(t *testing.T) {
	require.Equal(t, "none", (&Snapshot{}).observedText())
	require.Equal(t, "all", (&Snapshot{Observed: allKinds.list()}).observedText())
	require.Equal(t, "peer, subnet", (&Snapshot{Observed: []Kind{KindPeer, KindSubnet}}).observedText())
	require.Len(t, strings.Split((&Snapshot{Observed: (allKinds &^ 1).list()}).observedText(), ", "), int(numKinds)-1)
}

// A span of a peer or of a shared scope is of that scope's class.
func TestSpansAreObservedWithTheirOwnersClass(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithObserveOnly(KindPeer))
	require.NoError(t, m.ViewPeer(testPeer, func(s network.PeerScope) error {
		span, err := s.BeginSpan()
		require.NoError(t, err)
		defer span.Done()
		none := amounts{}.base()
		span.(ResourceScopeLimiter).SetLimit(&none)
		return span.ReserveMemory(1, 255)
	}))
	require.Equal(t, map[Kind]Refusals{KindPeer: {Memory: 1}}, m.Snapshot().WouldRefuse)
}

// Where the allowlist opens other scopes, and these refuse too, the standard ones
// are still there to be passed.
func TestAnAllowlistedConnectionPassesAnObservedSystem(t *testing.T) {
	conf := unlimitedConf()
	conf.System, conf.AllowlistedTransient = amounts{}.base(), amounts{}.base()
	m := newManager(t, conf, WithObserveOnly(KindSystem), WithAllowlistedMultiaddrs(testAllowlist))
	_, err := m.OpenConnection(network.DirInbound, false, testFars[2].addr)
	require.NoError(t, err)
	require.Equal(t, 1, m.Stat().System.NumConnsInbound)
	// What would have refused is what an error would have named.
	require.Equal(t, map[Kind]Refusals{KindAllowlistedTransient: {ConnsInbound: 1}}, m.Snapshot().WouldRefuse)
}

// A request that has to be decided under all locks after all is decided from anew.
func TestObservedRefusalsDecidedUnderAllLocksAreCountedOnce(t *testing.T) {
	conf := unlimitedConf()
	conf.Conn.ConnsInbound, conf.System.Memory, conf.Costs = 0, 1<<20, &Costs{Conn: 1<<19 + 1}
	m := newManager(t, conf, WithStripes(64), WithObserveOnly(KindConn))
	_, err := m.OpenConnection(network.DirInbound, false, nil)
	require.NoError(t, err)
	require.Equal(t, map[Kind]Refusals{KindConn: {ConnsInbound: 1}}, m.Snapshot().WouldRefuse)
	require.NotZero(t, m.Snapshot().Engine.Settled)
}

// What a service would have refused is not forgotten with a share that goes.
func TestObservedRefusalsOfAScopeOutliveItsShares(t *testing.T) {
	conf := unlimitedConf()
	conf.ProtocolDefault.Memory = 0
	m := newManager(t, conf, WithStripes(8), WithObserveOnly(KindProtocol))
	require.NoError(t, m.ViewProtocol("/a", func(s network.ProtocolScope) error {
		s.(ResourceScopeLimiter).SetLimit(&conf.ProtocolDefault) // it stays
		require.NoError(t, s.ReserveMemory(1, 255))
		s.ReleaseMemory(1)
		return nil
	}))
	m.reap()
	s := m.Snapshot()
	require.EqualValues(t, 1, s.stateOf(t, "protocol:/a").WouldRefuse.Memory)
}
