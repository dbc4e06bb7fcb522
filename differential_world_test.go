package rcmgr

// The worlds of differential_test.go: one manager of each kind with the same limits,
// gates and allowlist, and scopes that belong together.

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/pace"
)

const (
	noGates gates = iota
	subnetGates
	rateGates
)

// gates says which gates stand before the scopes, and with it which far ends
// and which options are of use: where both kinds of manager should agree.
type gates uint8

type far struct {
	addr multiaddr.Multiaddr
	text string
}

func farsOf(texts ...string) (fars []far) {
	for _, s := range texts {
		fars = append(fars, far{multiaddr.StringCast(s), s})
	}
	return fars
}

var (
	farsOpen = farsOf("/ip4/198.51.100.1/tcp/1", "/ip6/2001:db8::1/udp/1/quic-v1", "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/2",
		"/ip6/2001:db8:1::2/tcp/1", "/dns4/example.org/tcp/1", "/memory/1", "/ip4/127.0.0.1/tcp/1")
	farsGated = farsOf("/ip4/198.51.100.1/tcp/1", "/ip4/198.51.100.2/tcp/1", "/ip4/198.51.100.3/udp/1/quic-v1", "/ip4/203.0.113.1/tcp/1",
		"/ip4/203.0.113.200/tcp/1", "/ip6/2001:db8::1/tcp/1", "/ip6/2001:db8:0:ff::1/tcp/1", "/ip6/2001:db8:0:100::1/tcp/1", "/ip6/::1/tcp/1",
		"/ip4/127.0.0.1/tcp/1")
	farsOwn     = farsOf("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1") // our own dials are gated by go-libp2p's manager only
	entriesHere = farsOf("/ip4/192.0.2.1", "/ip4/192.0.2.0/ipcidr/24/p2p/"+testPeers[0].String(),
		"/ip4/192.0.2.2/p2p/"+testPeers[1].String(), "/ip6/2001:db8:1::/ipcidr/48")
)

// subnetLimits are limits that 30 connections meet. Fresh ones for each
// manager, because go-libp2p's sorts what it is given.
func subnetLimits() (sub4, sub6 [][2]int, net4, net6 []netip.Prefix, perNetwork int) {
	return [][2]int{{32, 2}, {24, 4}}, [][2]int{{56, 2}, {48, 3}},
		[]netip.Prefix{netip.MustParsePrefix("203.0.0.0/8"), netip.MustParsePrefix("203.0.113.0/28")},
		[]netip.Prefix{netip.MustParsePrefix("2001:db8:0:100::/60")}, 3
}

func slowRates() *rate.Limiter {
	l := func(bits, burst int) rate.SubnetLimit {
		return rate.SubnetLimit{PrefixLength: bits, Limit: rate.Limit{RPS: 1e-3, Burst: burst}}
	}
	return &rate.Limiter{
		NetworkPrefixLimits: []rate.PrefixLimit{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}, {Prefix: netip.MustParsePrefix("::1/128")}},
		SubnetRateLimiter: rate.SubnetLimiter{IPv4SubnetLimits: []rate.SubnetLimit{l(32, 3), l(24, 6)},
			IPv6SubnetLimits: []rate.SubnetLimit{l(56, 3)}, GracePeriod: time.Hour},
	}
}

func (g gates) options() (ours []Option, theirs []upstream.Option) {
	rates, theirRates := (*rate.Limiter)(nil), &rate.Limiter{}
	if g == rateGates {
		rates, theirRates = slowRates(), slowRates()
	}
	// Neither list may be nil: that would be the default.
	subnets, networks := [2][]ConnLimitPerSubnet{{}, {}}, [2][]NetworkPrefixLimit{{}, {}}
	theirSubnets, theirNetworks := [2][]upstream.ConnLimitPerSubnet{{}, {}}, [2][]upstream.NetworkPrefixLimit{{}, {}}
	if g == subnetGates {
		sub4, sub6, net4, net6, n := subnetLimits()
		for i, list := range [][][2]int{sub4, sub6} {
			for _, l := range list {
				subnets[i] = append(subnets[i], ConnLimitPerSubnet{l[0], l[1]})
				theirSubnets[i] = append(theirSubnets[i], upstream.ConnLimitPerSubnet{PrefixLength: l[0], ConnCount: l[1]})
			}
		}
		add := func(i int, p netip.Prefix, n int) {
			networks[i] = append(networks[i], NetworkPrefixLimit{p, n})
			theirNetworks[i] = append(theirNetworks[i], upstream.NetworkPrefixLimit{Network: p, ConnCount: n})
		}
		for i, list := range [][]netip.Prefix{net4, net6} {
			for _, p := range list {
				add(i, p, n)
			}
		}
		add(0, netip.MustParsePrefix("127.0.0.0/8"), math.MaxInt)
		add(1, netip.MustParsePrefix("::1/128"), math.MaxInt)
	}
	return []Option{WithLimitPerSubnet(subnets[0], subnets[1]), WithNetworkPrefixLimit(networks[0], networks[1]), WithConnRateLimiters(rates)},
		[]upstream.Option{upstream.WithLimitPerSubnet(theirSubnets[0], theirSubnets[1]),
			upstream.WithNetworkPrefixLimit(theirNetworks[0], theirNetworks[1]), upstream.WithConnRateLimiters(theirRates)}
}

// twin is a scope of both managers.
type twin struct {
	theirs, own network.ResourceScope
	name        string
	shared      bool
	owner       *twin // of a span
	ownLimit    bool  // it does not follow its owner's
	reserved    int64 // at this very scope
	done        bool
	apart       bool // done, and attached in one of the managers only

	far     far // of a connection
	fd      bool
	peer    peer.ID // of a stream, or of a connection that has one
	trusted bool    // the allowlist meant its peer
}

func (tw *twin) String() string { return tw.name }

// worlds is both managers, in the same state but for the differences.
type worlds struct {
	theirs      network.ResourceManager
	theirState  upstream.ResourceManagerState
	theirList   *upstream.Allowlist
	own         *Manager
	gates       gates
	stripes     int
	regime      regime
	most        int     // scopes to hold at a time
	held, ended []*twin // the last of them
	shared      map[string]*twin
	opened      int
	systemSet   bool // its limit was set by hand
	rated       bool // every scope of ours has rates, which refuse nothing
	excused     map[excuse]int
	theirTalk   talk // what MetricsReporters hear
	ownTalk     talk
	quiet       bool // what they hear of this question is not compared
	err         error
	story       []string // what happened, if told is set
	told        bool
}

// freeRates refuse nothing in a test.
var freeRates = func() (free Rates) {
	for _, one := range free.all() {
		*one = Rate{PerSecond: pace.MostPerSecond, Burst: 2_000_000_000}
	}
	return free
}()

// rateFreely sets every rate of every scope that may have rates.
func rateFreely(conf *perScope[BaseLimit]) {
	scopes := conf.single()
	for _, l := range scopes[:len(scopes)-2] { // all but Conn and Stream
		l.Rates = freeRates
	}
	rateNamed(conf.Peer, freeRates)
	rateNamed(conf.Protocol, freeRates)
	rateNamed(conf.ServicePeer, freeRates)
}

func rateNamed[K comparable](limits map[K]BaseLimit, r Rates) {
	for name, l := range limits {
		l.Rates = r
		limits[name] = l
	}
}

func newWorlds(q question, excused map[excuse]int, told bool) (*worlds, error) {
	stripes := of(q[0], []int{1, 2, 8, 64})
	g := of(q[1], append(slices.Clone(regimes), mixed, mixed))
	w := &worlds{stripes: stripes, regime: g, gates: of(q[2], []gates{noGates, noGates, noGates, noGates, subnetGates, rateGates}),
		most: 4 + int(q[3])%60 + int(q[3])/250*300, shared: map[string]*twin{}, excused: excused, told: told}
	conf := g.conf(randomFrom(q.number(), 0), stripes)
	if w.gates == rateGates { // where a scope refuses first, ours takes no token
		for _, l := range []*BaseLimit{&conf.System, &conf.Transient} {
			l.Conns, l.ConnsInbound, l.ConnsOutbound, l.FD = math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt
		}
	}
	if w.rated = q[7]>>7 != 0; w.rated {
		rateFreely(&conf)
	}
	limits := ConcreteLimitConfig{limits: conf}
	text, err := json.Marshal(limits.ToPartialLimitConfig())
	if err != nil {
		return nil, err
	}
	var theirs upstream.PartialLimitConfig
	if err := json.Unmarshal(text, &theirs); err != nil {
		return nil, err
	}
	opts, theirOpts := w.gates.options()
	if w.own, err = New(NewFixedLimiter(limits), append(opts, WithStripes(stripes), WithAdmission(AdmissionLinear),
		WithNewcomersQuarter(false), WithMetricsDisabled(), WithMetrics(&w.ownTalk))...); err != nil {
		return nil, err
	}
	w.theirs, err = upstream.NewResourceManager(upstream.NewFixedLimiter(theirs.Build(upstream.InfiniteLimits)),
		append(theirOpts, upstream.WithMetricsDisabled(), upstream.WithMetrics(&w.theirTalk))...)
	if err != nil {
		return nil, err
	}
	w.theirState, w.theirList = w.theirs.(upstream.ResourceManagerState), upstream.GetAllowlist(w.theirs)
	if w.own.stripes[0].plain == w.rated {
		return nil, fmt.Errorf("rated: %v, but that no rate is in force: %v", w.rated, !w.rated)
	}
	w.tell("%d stripes, %s limits %s, gates %d", stripes, g.name, text, w.gates)
	w.view("system", "")
	w.view("transient", "")
	return w, nil
}

// some returns a scope: one that is held, or that is shared, or now and then one
// that has ended.
func (w *worlds) some(q *question) *twin {
	switch n := len(w.held); {
	case q[1] < 16 && len(w.ended) > 0:
		return of(q[2], w.ended)
	case q[1] < 48 || n == 0:
		return w.someShared(q)
	default:
		return of(q[2], w.held)
	}
}

func (w *worlds) someShared(q *question) *twin {
	switch q[2] % 5 {
	case 0:
		return w.view("system", "")
	case 1:
		return w.view("transient", "")
	case 2:
		return w.view("peer", string(of(q[3], testPeers)))
	case 3:
		return w.view("protocol", of(q[3], testProtocols))
	}
	return w.view("service", of(q[3], testServices))
}

func (w *worlds) add(tw *twin, kind string) *twin {
	w.opened++
	tw.name = fmt.Sprint(kind, w.opened)
	w.held = append(w.held, tw)
	return tw
}

// someOf returns a scope of type T that is held, or that has ended: one that is
// ready for the question, most of the time.
func someOf[T any](w *worlds, q *question, ready func(T) bool) (tw *twin) {
	list := w.held
	if q[1] < 24 {
		list = w.ended
	}
	for i := range list {
		x := list[(i+int(q[2]))%len(list)]
		if s, ok := x.own.(T); ok {
			if q[1] >= 240 || ready(s) {
				return x
			}
			if q[1] < 48 {
				tw = x
			}
		}
	}
	return tw
}

func is[T any](s any) bool { _, ok := s.(T); return ok }
