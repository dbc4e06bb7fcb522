package rcmgr

// Ours against go-libp2p's own manager. Both are asked the same questions, one
// after another, and after each both must have given the same answer and hold
// the same. A sequence of questions is a string of bytes, so that the fuzzer
// can make them too, and so that what failed can be made shorter.
//
// Where ours differs on purpose, the comparison excuses it by name: each excuse
// is the first cell of a line of DIFFERENCES.md. Where answers that differ leave
// the managers in different states, the scope in question is ended in both.

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

var differentialFlag = flag.Int("rcmgr.differential", int(envUint("RCMGR_DIFFERENTIAL")),
	"calls to compare with go-libp2p's manager; 0 takes the default (also RCMGR_DIFFERENTIAL)")

// excuse is a purposeful difference, by its name in DIFFERENCES.md.
type excuse string

const (
	excuseMemoryText    excuse = "text of a refusal of memory"
	excuseMoveText      excuse = "text of a refusal to move"
	excuseMisuseText    excuse = "text of a misuse"
	excuseSetAfterDone  excuse = "SetPeer, SetProtocol, SetService after Done"
	excuseAfterDone     excuse = "Limit, ProtocolScope and ServiceScope after Done"
	excuseFailedMove    excuse = "an allowlisted connection that cannot be moved"
	excuseZeroMove      excuse = "what a moved scope does not hold"
	excuseStreams       excuse = "streams of an allowlisted peer"
	excuseSpanLimit     excuse = "limit of a span"
	excuseConnLimit     excuse = "GetConnLimit"
	excuseGateError     excuse = "error of a gate"
	excuseRoomFirst     excuse = "order of gates and scopes"
	excuseVerifyByLoad  excuse = "VerifySourceAddress under load"
	excuseReporter      excuse = "a MetricsReporter"
	limitExceededSuffix        = ": resource limit exceeded"
)

var allExcuses = []excuse{excuseMemoryText, excuseMoveText, excuseMisuseText, excuseSetAfterDone, excuseAfterDone, excuseFailedMove,
	excuseZeroMove, excuseStreams, excuseSpanLimit, excuseConnLimit, excuseGateError, excuseRoomFirst,
	excuseVerifyByLoad, excuseReporter}

// question is one call, in bytes: which, on what, with which arguments.
type question [8]byte

func (q *question) number() uint64 { return binary.LittleEndian.Uint64(q[:]) >> 24 }

// of takes one of n by a byte of the question.
func of[T any](b byte, list []T) T { return list[int(b)%len(list)] }

// questions reads bytes as a world and what is asked there.
func questions(data []byte) (world question, asked []question) {
	copy(world[:], data)
	for data = data[min(len(data), len(world)):]; len(data) >= len(question{}); data = data[len(question{}):] {
		asked = append(asked, question(data[:len(question{})]))
	}
	return world, asked
}

func randomQuestions(r *rand.Rand, n int) []byte {
	data := make([]byte, 0, (n+1)*len(question{}))
	for range n + 1 {
		data = binary.LittleEndian.AppendUint64(data, r.Uint64())
	}
	return data
}

// gates says which gates stand before the scopes, and with it which far ends
// and which options are of use: where both kinds of manager should agree.
type gates uint8

const (
	noGates gates = iota
	subnetGates
	rateGates
)

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
	excused     map[excuse]int
	theirTalk   talk // what MetricsReporters hear
	ownTalk     talk
	quiet       bool // what they hear of this question is not compared
	err         error
	story       []string // what happened, if told is set
	told        bool
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
	w.tell("%d stripes, %s limits %s, gates %d", stripes, g.name, text, w.gates)
	w.view("system", "")
	w.view("transient", "")
	return w, nil
}

// compareManagers asks both managers the same, and gives the first difference
// that has no excuse, or nil. With told, it also gives the whole story.
func compareManagers(data []byte, excused map[excuse]int, told bool) (story []string, asked int, err error) {
	first, list := questions(data)
	w, err := newWorlds(first, excused, told)
	if err != nil {
		return nil, 0, err
	}
	for i := 0; i < len(list) && w.err == nil; i++ {
		w.ask(&list[i])
		w.compare(i%16 == 0)
		asked++
	}
	for _, tw := range slices.Backward(w.held) {
		w.end(tw)
	}
	w.compare(true)
	for _, tw := range w.shared {
		w.release(tw, tw.reserved)
	}
	w.compare(true)
	w.own.inOneCut(func() {
		if err := brokenInvariant(w.own, true); err != nil {
			w.fail("%v", err)
		}
	})
	if s := w.own.Stat(); s.System != (network.ScopeStat{}) {
		w.fail("at the end something is left: %+v", s)
	}
	if err := errors.Join(w.theirs.Close(), w.own.Close()); err != nil { // not deferred: a panic may hold locks
		w.fail("%v", err)
	}
	return w.story, asked, w.err
}

func (w *worlds) tell(format string, args ...any) {
	if w.told {
		w.story = append(w.story, fmt.Sprintf(format, args...))
	}
}

func (w *worlds) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *worlds) excuse(e excuse) {
	w.excused[e]++
	switch e {
	case excuseMemoryText, excuseMoveText:
	default:
		w.quiet = true
	}
}

// calls are what can be asked, as often as is useful.
var calls = func() (list []func(*worlds, *question)) {
	for _, c := range []struct {
		times int
		call  func(*worlds, *question)
	}{
		{8, (*worlds).openConn}, {10, (*worlds).openStream}, {7, (*worlds).setPeer}, {9, (*worlds).setProtocol},
		{5, (*worlds).setService}, {18, (*worlds).reserve}, {9, (*worlds).releaseSome}, {8, (*worlds).beginSpan},
		{16, (*worlds).endOne}, {4, (*worlds).setLimit}, {2, (*worlds).changeAllowlist}, {2, (*worlds).look},
	} {
		for range c.times {
			list = append(list, c.call)
		}
	}
	return list
}()

func (w *worlds) ask(q *question) {
	if len(w.held) >= w.most {
		w.endOne(q)
	} else {
		of(q[0], calls)(w, q)
	}
	w.compareTalk()
}

// compareTalk compares what both managers told a MetricsReporter. Go-libp2p's
// tells of memory once for each owner of a span.
func (w *worlds) compareTalk() {
	theirs, own := w.theirTalk.said, w.ownTalk.said
	if len(theirs) > len(own) && len(own) > 0 && strings.Contains(own[0], "memory") {
		w.excused[excuseReporter]++
		theirs = slices.Compact(theirs)
	}
	if !w.quiet && !slices.Equal(theirs, own) {
		w.fail("reporters heard %q; %q", theirs, own)
	}
	w.theirTalk.said, w.ownTalk.said, w.quiet = theirs[:0], own[:0], false
}

// some gives a scope: one that is held, or that is shared, or now and then one
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

var errOfCaller = errors.New("the caller's own")

// view gives a scope that is always there, or a peer, protocol or service.
func (w *worlds) view(kind, name string) *twin {
	tw := w.shared[kind+name]
	if tw == nil {
		tw = &twin{shared: true, name: kind}
		if name != "" {
			tw.name += ":" + name
		}
		w.shared[kind+name] = tw
	}
	get := func(rm network.ResourceManager) (s network.ResourceScope, id string, err error) {
		switch kind {
		case "system":
			err = rm.ViewSystem(func(x network.ResourceScope) error { s = x; return errOfCaller })
		case "transient":
			err = rm.ViewTransient(func(x network.ResourceScope) error { s = x; return errOfCaller })
		case "peer":
			err = rm.ViewPeer(peer.ID(name), func(x network.PeerScope) error { s, id = x, string(x.Peer()); return errOfCaller })
		case "protocol":
			err = rm.ViewProtocol(protocol.ID(name), func(x network.ProtocolScope) error { s, id = x, string(x.Protocol()); return errOfCaller })
		case "service":
			err = rm.ViewService(name, func(x network.ServiceScope) error { s, id = x, x.Name(); return errOfCaller })
		}
		return s, id, err
	}
	theirs, theirID, theirErr := get(w.theirs)
	own, ownID, ownErr := get(w.own)
	if theirErr != errOfCaller || ownErr != errOfCaller || theirID != name || ownID != name {
		w.fail("view of %s %s: %q, %v; %q, %v", kind, name, theirID, theirErr, ownID, ownErr)
	}
	if tw.theirs == nil { // a handle that was kept stays as good
		tw.theirs, tw.own = theirs, own
	}
	return tw
}

func (w *worlds) add(tw *twin, kind string) *twin {
	w.opened++
	tw.name = fmt.Sprint(kind, w.opened)
	w.held = append(w.held, tw)
	return tw
}

func (w *worlds) openConn(q *question) {
	dir, fd, from := of(q[3], testDirs), q[4]&1 == 0, of(q[5], farsOpen)
	switch {
	case w.gates == noGates:
	case dir == network.DirInbound:
		from = of(q[5], farsGated)
	default:
		from = of(q[5], farsOwn)
	}
	theirs, theirErr := w.theirs.OpenConnection(dir, fd, from.addr)
	own, ownErr := w.own.OpenConnection(dir, fd, from.addr)
	w.tell("OpenConnection(%v, %v, %s)", dir, fd, from.text)
	if w.refusedAtGate(theirErr, ownErr) {
		return
	}
	if w.same(question1{asked: "conn"}, theirErr, ownErr) {
		w.add(&twin{theirs: theirs, own: own, far: from, fd: fd}, "conn")
		w.tell("  is %v", w.held[len(w.held)-1])
	}
}

// refusedAtGate compares the refusals by gates, which only ours tells by type.
func (w *worlds) refusedAtGate(theirs, own error) bool {
	var e *LimitError
	if theirs == nil || errors.Is(theirs, network.ErrResourceLimitExceeded) || !errors.As(own, &e) {
		return false
	}
	w.tell("  %v; %v", theirs, own)
	switch text := theirs.Error(); {
	case e.Cause() == CauseSubnet && strings.Contains(text, "per ip limit"), e.Cause() == CauseRate && strings.Contains(text, "rate limit"):
		w.excuse(excuseGateError)
	case e.Kind() == KindSystem || e.Kind() == KindTransient || e.Kind() == KindConn:
		w.excuse(excuseRoomFirst)
	default:
		return false
	}
	return true
}

func (w *worlds) openStream(q *question) {
	p, dir := of(q[3], testPeers), of(q[4], testDirs)
	theirs, theirErr := w.theirs.OpenStream(p, dir)
	own, ownErr := w.own.OpenStream(p, dir)
	w.tell("OpenStream(%v, %v)", p, dir)
	if e := readError(theirErr); theirErr != nil && slices.ContainsFunc(w.held, func(tw *twin) bool { return tw.trusted && tw.peer == p }) {
		// Ours falls back on the allowlisted scopes.
		o := readError(ownErr)
		switch {
		case ownErr == nil && (e.scope == "system" || e.scope == "transient"):
			w.excuse(excuseStreams)
			own.Done()
			return
		case ownErr != nil && strings.HasPrefix(o.scope, "allowlisted"):
			w.excuse(excuseStreams)
			return
		}
	}
	if w.same(question1{asked: "stream"}, theirErr, ownErr) {
		w.add(&twin{theirs: theirs, own: own, peer: p}, "stream")
		w.tell("  is %v", w.held[len(w.held)-1])
	}
}

// someOf gives a scope of type T that is held, or that has ended: one that is
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

func (w *worlds) setPeer(q *question) {
	tw := someOf(w, q, func(s network.ConnManagementScope) bool { return s.PeerScope() == nil })
	if tw == nil {
		return
	}
	p := of(q[3], testPeers)
	allowed := w.own.GetAllowlist().AllowedPeerAndMultiaddr(p, tw.far.addr)
	theirErr := tw.theirs.(network.ConnManagementScope).SetPeer(p)
	ownErr := tw.own.(network.ConnManagementScope).SetPeer(p)
	w.tell("%v.SetPeer(%v)", tw, p)
	stray := !tw.done && tw.own.(*connScope).allowlisted() && !allowed && tw.peer == "" // it has to leave the allowlisted scopes
	if w.move(tw, "peer", string(p), theirErr, ownErr) {
		tw.peer, tw.trusted = p, allowed
	}
	if stray && theirErr != nil && ownErr != nil {
		// Go-libp2p's has left the allowlisted scopes, and may never have asked
		// for the peer's.
		w.excuse(excuseFailedMove)
		w.view("peer", string(p))
		w.end(tw)
	}
}

func (w *worlds) setProtocol(q *question) {
	tw := someOf(w, q, func(s network.StreamManagementScope) bool { return s.ProtocolScope() == nil })
	if tw == nil {
		return
	}
	name := of(q[3], testProtocols)
	theirErr := tw.theirs.(network.StreamManagementScope).SetProtocol(protocol.ID(name))
	ownErr := tw.own.(network.StreamManagementScope).SetProtocol(protocol.ID(name))
	w.tell("%v.SetProtocol(%s)", tw, name)
	w.move(tw, "protocol", name, theirErr, ownErr)
}

func (w *worlds) setService(q *question) {
	tw := someOf(w, q, func(s network.StreamManagementScope) bool {
		return s.ProtocolScope() != nil && s.ServiceScope() == nil
	})
	if tw == nil {
		return
	}
	name := of(q[3], testServices)
	theirErr := tw.theirs.(network.StreamManagementScope).SetService(name)
	ownErr := tw.own.(network.StreamManagementScope).SetService(name)
	w.tell("%v.SetService(%s)", tw, name)
	w.move(tw, "service", name, theirErr, ownErr)
}

// move compares the answers to SetPeer and the like.
func (w *worlds) move(tw *twin, kind, name string, theirErr, ownErr error) bool {
	if tw.done {
		w.excuse(excuseSetAfterDone)
		if !errors.Is(ownErr, network.ErrResourceScopeClosed) {
			w.fail("%v is done, but: %v", tw, ownErr)
		}
		tw.apart = true
		w.view(kind, name) // go-libp2p's has made it
		return false
	}
	if e := readError(theirErr); e.class == "limited" && tw.holdsNo(e.what) && readError(ownErr).class != "misused" {
		w.excuse(excuseZeroMove)
		if ownErr == nil {
			tw.apart = true
			w.end(tw)
		}
		return false
	}
	admitted := w.same(question1{asked: strings.TrimRight(tw.name, "0123456789"), moves: true}, theirErr, ownErr)
	w.compareAttached(tw)
	return admitted
}

// holdsNo tells whether a connection or stream has nothing of a resource.
func (tw *twin) holdsNo(resource string) bool {
	switch resource {
	case "memory":
		return tw.own.Stat().Memory == 0
	case "stream":
		return is[network.ConnManagementScope](tw.own)
	case "connection":
		return is[network.StreamManagementScope](tw.own)
	}
	return false
}

// size gives a number of bytes that is telling for some limit above a scope.
func (w *worlds) size(tw *twin, q *question, priority uint8) int64 {
	ref := tw
	switch {
	case q[4] < 60:
		ref = w.shared["system"]
	case q[4] < 90:
		ref = w.shared["transient"]
	case q[4] < 130 && tw.peer != "":
		ref = w.view("peer", string(tw.peer))
	}
	limit, use := ref.theirs.(upstream.ResourceScopeLimiter).Limit().GetMemoryLimit(), ref.theirs.Stat().Memory
	bound := AdmissionLinear.threshold(limit, AdmissionLinear.weight(priority))
	n := int64(q[6]) % 32
	switch q[5] % 16 {
	case 0:
		n = limit
	case 1, 2:
		n = limit - use
	case 3:
		n = bound - use
	case 4:
		n = bound - use + 1
	case 5:
		n = limit / 2
	case 6, 7:
		n = limit / 256 * int64(q[6])
	case 8:
		n = limit/int64(16*w.stripes) + int64(q[6]%3)
	case 9:
		n = limit/8 + int64(q[6]%3)
	case 10:
		n = 0
	}
	if q[5] > 16 { // below zero is a misuse, and rare
		n = max(n, 0)
	}
	// Sums that overflow are tested elsewhere.
	all := int64(0)
	for _, x := range w.held {
		all += x.reserved
	}
	for _, x := range w.shared {
		all += x.reserved
	}
	return min(n, math.MaxInt64-all)
}

func (w *worlds) reserve(q *question) {
	tw, priority := w.some(q), of(q[7], testPriorities)
	if q[7]&64 != 0 {
		priority = q[6] ^ q[5]
	}
	n := int(w.size(tw, q, priority))
	theirErr, ownErr := tw.theirs.ReserveMemory(n, priority), tw.own.ReserveMemory(n, priority)
	w.tell("%v.ReserveMemory(%d, %d)", tw, n, priority)
	if w.same(question1{span: tw.owner != nil, follows: tw.followsEnded()}, theirErr, ownErr) {
		tw.reserved += int64(n)
	}
}

func (w *worlds) releaseSome(q *question) {
	tw := w.some(q)
	n := tw.reserved
	if q[4]&1 == 0 {
		n = n / 256 * int64(q[5])
	}
	if tw.done { // it does nothing
		n = int64(q[5])
	}
	w.release(tw, n)
}

func (w *worlds) release(tw *twin, n int64) {
	tw.theirs.ReleaseMemory(int(n))
	tw.own.ReleaseMemory(int(n))
	if !tw.done {
		tw.reserved -= n
	}
	w.tell("%v.ReleaseMemory(%d)", tw, n)
}

func (w *worlds) beginSpan(q *question) {
	tw := w.some(q)
	theirs, theirErr := tw.theirs.BeginSpan()
	own, ownErr := tw.own.BeginSpan()
	w.tell("%v.BeginSpan()", tw)
	if w.same(question1{span: tw.owner != nil}, theirErr, ownErr) {
		w.add(&twin{theirs: theirs, own: own, owner: tw}, "span")
		w.tell("  is %v", w.held[len(w.held)-1])
	}
}

func (w *worlds) endOne(q *question) {
	if len(w.held) > 0 {
		w.end(of(q[2], w.held))
	}
	if q[3]&15 == 0 && len(w.ended) > 0 {
		w.end(of(q[2], w.ended)) // again
	}
}

func (w *worlds) end(tw *twin) {
	tw.theirs.(network.ResourceScopeSpan).Done()
	tw.own.(network.ResourceScopeSpan).Done()
	w.tell("%v.Done()", tw)
	if tw.done {
		return
	}
	tw.done, tw.reserved = true, 0
	if i := slices.Index(w.held, tw); i >= 0 {
		w.held = slices.Delete(w.held, i, i+1)
	}
	w.ended = append(w.ended, tw)
	if len(w.ended) > 8 {
		w.ended = w.ended[1:]
	}
}

func (w *worlds) setLimit(q *question) {
	tw := w.some(q)
	if q[4]&1 == 0 {
		tw = w.someShared(q)
	}
	if w.gates == rateGates && tw.shared {
		return
	}
	r := randomFrom(q.number(), 1)
	limit := w.regime.limit(r, w.stripes)
	switch q[3] % 4 {
	case 0:
		limit = mixed.limit(r, w.stripes)
	case 1:
		limit = unlimitedBase
	}
	w.tell("%v.SetLimit(%+v)", tw, limit)
	theirs := upstream.BaseLimit(limit)
	tw.theirs.(upstream.ResourceScopeLimiter).SetLimit(&theirs)
	tw.own.(ResourceScopeLimiter).SetLimit(&limit)
	tw.ownLimit = true
	w.systemSet = w.systemSet || tw.name == "system"
	for _, x := range slices.Concat(w.held, w.ended) {
		if x.follows(tw) {
			w.excuse(excuseSpanLimit)
			x.theirs.(upstream.ResourceScopeLimiter).SetLimit(&theirs)
		}
	}
}

// follows tells whether a span has the limit of the scope in question.
func (tw *twin) follows(limited *twin) bool {
	for x := tw; x.owner != nil && !x.ownLimit; x = x.owner {
		if x.owner == limited {
			return true
		}
	}
	return false
}

func (w *worlds) changeAllowlist(q *question) {
	if w.gates != noGates {
		return
	}
	e := of(q[2], entriesHere)
	theirs, own := w.theirList.Add, w.own.GetAllowlist().Add
	if q[3]&1 == 0 {
		theirs, own = w.theirList.Remove, w.own.GetAllowlist().Remove
	}
	w.tell("allowlist: %s (%d)", e.text, q[3]&1)
	if err := errors.Join(theirs(e.addr), own(e.addr)); err != nil {
		w.fail("%s: %v", e.text, err)
	}
	for _, f := range farsOpen {
		if w.theirList.Allowed(f.addr) != w.own.GetAllowlist().Allowed(f.addr) {
			w.fail("allowed: %s", f.text)
		}
	}
}

// sources are addresses of packets, in no subnet that has a limit here.
var sources = []net.Addr{&net.UDPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 1}, &net.UnixAddr{Name: "/x"}}

func (w *worlds) look(q *question) {
	w.view("system", "")
	w.someShared(q)
	limit := w.shared["system"].own.(ResourceScopeLimiter).Limit().GetConnTotalLimit()
	if theirs := w.theirs.(interface{ GetConnLimit() int }).GetConnLimit(); w.own.GetConnLimit() != theirs {
		if !w.systemSet || w.own.GetConnLimit() != limit {
			w.fail("GetConnLimit: %d, not %d", w.own.GetConnLimit(), theirs)
		}
		w.excuse(excuseConnLimit)
	}
	if w.gates != noGates {
		return
	}
	a := of(q[4], sources)
	if theirs, own := w.theirs.VerifySourceAddress(a), w.own.VerifySourceAddress(a); theirs != own {
		transient := w.shared["transient"].own
		full := transient.(ResourceScopeLimiter).Limit().GetConnLimit(network.DirInbound)
		if theirs || transient.Stat().NumConnsInbound <= full/2 {
			w.fail("VerifySourceAddress(%v): %v, not %v", a, own, theirs)
		}
		w.excuse(excuseVerifyByLoad)
	}
}

// question1 is what is known of a call whose answers are compared.
type question1 struct {
	asked string // the scope that was asked, if it is a connection or stream
	moves bool
	span  bool // asked of a span of a span, or of what has owners
	// follows: asked of a span that follows the limit of an owner that is done, or whose
	// owners do
	follows bool
}

// read is what an error says.
type read struct {
	class string // "" for no error
	asked string
	scope string
	what  string
}

func readError(err error) read {
	switch {
	case err == nil:
		return read{}
	case errors.Is(err, network.ErrResourceLimitExceeded):
	case errors.Is(err, network.ErrResourceScopeClosed):
		parts := strings.Split(numbers.ReplaceAllString(err.Error(), "$1"), ": ")
		return read{class: "closed", asked: parts[0], scope: parts[max(0, len(parts)-2)]}
	default:
		return read{class: "misused"}
	}
	text, _ := strings.CutSuffix(numbers.ReplaceAllString(err.Error(), "$1"), limitExceededSuffix)
	parts := strings.Split(text, ": ")
	r := read{class: "limited", what: "memory"}
	if what, ok := strings.CutPrefix(parts[len(parts)-1], "cannot reserve "); ok {
		r.what, parts = what, parts[:len(parts)-1]
	}
	r.asked, r.scope = parts[0], parts[len(parts)-1]
	return r
}

// same compares two answers, and tells whether both are yes.
func (w *worlds) same(q question1, theirErr, ownErr error) bool {
	if theirErr == nil && ownErr == nil {
		return true
	}
	theirs, own := readError(theirErr), readError(ownErr)
	w.tell("  %v; %v", theirErr, ownErr)
	if q.follows && theirs.class == "limited" && own.class == "closed" {
		w.excuse(excuseSpanLimit) // of an owner that is done
		return false
	}
	if theirs.class != own.class {
		w.fail("go-libp2p's: %v; ours: %v", theirErr, ownErr)
		return false
	}
	switch theirs.class {
	case "misused":
		w.excuse(excuseMisuseText)
	case "closed":
		w.excuse(excuseReporter) // of a span whose owner is closed, go-libp2p's tells that memory is short
		if theirs != own {
			w.fail("closed: %v; %v", theirErr, ownErr)
		}
	case "limited":
		w.sameRefusal(q, theirs, own, theirErr, ownErr)
	}
	return false
}

func (w *worlds) sameRefusal(q question1, theirs, own read, theirErr, ownErr error) {
	if q.moves { // ours says also who asked
		theirs.asked = q.asked
	}
	if q.asked != "" && own.asked != q.asked || theirs != own {
		w.fail("%+v: %v; %+v: %v", theirs, theirErr, own, ownErr)
	}
	// What a host sees.
	theirText, ownText := errors.Unwrap(theirErr).Error(), errors.Unwrap(ownErr).Error()
	switch {
	case q.moves:
		w.excuse(excuseMoveText)
		theirText = theirErr.Error()
		if theirs.what == "memory" {
			ownText = strings.Replace(ownText, "cannot reserve memory: ", "", 1)
		}
	case theirs.what == "memory":
		w.excuse(excuseMemoryText)
		theirText = "cannot reserve memory" + limitExceededSuffix
		if own.scope != own.asked || strings.Contains(ownText, ": cannot") {
			theirText = own.scope + ": " + theirText
		}
	}
	if numbers.ReplaceAllString(ownText, "$1") != numbers.ReplaceAllString(theirText, "$1") {
		w.fail("unwrapped: %q; %q", theirText, ownText)
	}
	var (
		theirMemory *upstream.ErrMemoryLimitExceeded
		theirCount  *upstream.ErrStreamOrConnLimitExceeded
		memory      *ErrMemoryLimitExceeded
		count       *ErrStreamOrConnLimitExceeded
	)
	if errors.As(theirErr, &theirMemory) != errors.As(ownErr, &memory) || errors.As(theirErr, &theirCount) != errors.As(ownErr, &count) {
		w.fail("as types: %v; %v", theirErr, ownErr)
	}
}

// compare compares what every scope holds, and with all also their limits,
// what they are attached to, and the lists.
func (w *worlds) compare(all bool) {
	theirs, own := w.theirState.Stat(), w.own.Stat()
	if theirs.System != own.System || theirs.Transient != own.Transient || !maps.Equal(theirs.Peers, own.Peers) ||
		!maps.Equal(theirs.Protocols, own.Protocols) || !maps.Equal(theirs.Services, own.Services) {
		w.fail("they hold\n%+v\n%+v", theirs, own)
	}
	for _, list := range [][]*twin{w.held, w.ended} {
		for _, tw := range list {
			if theirs, own := tw.theirs.Stat(), tw.own.Stat(); theirs != own {
				w.fail("%v holds %+v; %+v", tw, theirs, own)
			}
			if all {
				w.compareLimit(tw)
				w.compareAttached(tw)
			}
		}
	}
	if !all {
		return
	}
	for _, tw := range w.shared {
		if theirs, own := tw.theirs.Stat(), tw.own.Stat(); theirs != own {
			w.fail("%v holds %+v; %+v", tw, theirs, own)
		}
		w.compareLimit(tw)
	}
	if a, b := w.theirState.ListPeers(), w.own.ListPeers(); !slices.Equal(a, b) {
		w.fail("peers %v; %v", a, b)
	}
	if a, b := w.theirState.ListProtocols(), w.own.ListProtocols(); !slices.Equal(a, b) {
		w.fail("protocols %v; %v", a, b)
	}
	if a, b := w.theirState.ListServices(), w.own.ListServices(); !slices.Equal(a, b) {
		w.fail("services %v; %v", a, b)
	}
}

func (w *worlds) compareLimit(tw *twin) {
	theirs := limitsOf(tw.theirs.(upstream.ResourceScopeLimiter).Limit())
	own := limitsOf(tw.own.(ResourceScopeLimiter).Limit())
	if tw.limitEnded() && own == (amounts{}) {
		w.excuse(excuseAfterDone)
	} else if theirs != own {
		w.fail("limits of %v: %v; %v", tw, theirs, own)
	}
}

// limitEnded tells whether what would limit a connection, stream or span is done.
func (tw *twin) limitEnded() bool {
	for x := tw; x != nil; x = x.owner {
		if x.done {
			return true
		}
		if x.ownLimit {
			return false
		}
	}
	return false
}

// followsEnded tells whether what a span asks, itself first, would be limited by an owner
// that is done.
func (tw *twin) followsEnded() bool {
	for x := tw; x != nil && !x.done; x = x.owner {
		if x.limitEnded() {
			return true
		}
	}
	return false
}

// compareAttached compares what connections and streams are attached to. What
// they are not attached to must be nil itself, not a nil pointer.
func (w *worlds) compareAttached(tw *twin) {
	if tw.apart {
		return
	}
	attached := func(s any) (peerID, proto, svc string) {
		if c, ok := s.(interface{ PeerScope() network.PeerScope }); ok && c.PeerScope() != nil {
			peerID = string(c.PeerScope().Peer())
		}
		if s, ok := s.(network.StreamManagementScope); ok {
			if s.ProtocolScope() != nil {
				proto = string(s.ProtocolScope().Protocol())
			}
			if s.ServiceScope() != nil {
				svc = s.ServiceScope().Name()
			}
		}
		return peerID, proto, svc
	}
	theirPeer, theirProto, theirSvc := attached(tw.theirs)
	if tw.done && theirProto != "" {
		theirProto, theirSvc = "", ""
		w.excuse(excuseAfterDone)
	}
	if p, proto, svc := attached(tw.own); p != theirPeer || proto != theirProto || svc != theirSvc {
		w.fail("%v is attached to %q %q %q; %q %q %q", tw, theirPeer, theirProto, theirSvc, p, proto, svc)
	}
}

// shrink leaves out questions for as long as the managers still differ.
func shrink(data []byte, patience time.Duration) []byte {
	differ := func(data []byte) bool {
		for range 2 { // which stripe serves whom is left to chance
			if _, _, err := compareManagers(data, map[excuse]int{}, false); err != nil {
				return true
			}
		}
		return false
	}
	size := len(question{})
	deadline := time.Now().Add(patience)
	for chunk := (len(data)/size - 1) / 2; chunk > 0 && time.Now().Before(deadline); {
		shorter := false
		for at := size; at < len(data) && time.Now().Before(deadline); {
			without := slices.Concat(data[:at], data[min(len(data), at+chunk*size):])
			if differ(without) {
				data, shorter = without, true
			} else {
				at += chunk * size
			}
		}
		if !shorter || chunk > 1 {
			chunk /= 2
		}
	}
	return data
}

// requireSame compares both managers, and tells the shortest story of how they
// differ.
func requireSame(t testing.TB, data []byte, excused map[excuse]int) int {
	_, asked, err := compareManagers(data, excused, false)
	if err == nil {
		return asked
	}
	short := shrink(data, 20*time.Second)
	story, _, again := compareManagers(short, map[excuse]int{}, true)
	if again == nil {
		short = data
		if story, _, again = compareManagers(data, map[excuse]int{}, true); again == nil {
			again = fmt.Errorf("%w (this time it does not fail)", err)
		}
	}
	t.Fatalf("%v\n%s\nas bytes: %x", again, strings.Join(story, "\n"), short)
	return asked
}

func TestManagersDecideTheSame(t *testing.T) {
	steps := cmp.Or(*differentialFlag, 100_000)
	if testing.Short() || raceDetector() { // it is one goroutine: there is no race to find
		steps = cmp.Or(*differentialFlag, 2000)
	}
	seed := testSeed(t)
	excused, asked := map[excuse]int{}, 0
	for world := uint64(0); asked < steps; world++ {
		r := randomFrom(seed, world)
		asked += requireSame(t, randomQuestions(r, min(steps-asked, 100+r.IntN(1500))), excused)
	}
	t.Logf("seed %d: %d calls; excused: %v", seed, asked, excused)
	if asked >= 1_000_000 {
		for _, e := range allExcuses {
			require.NotZero(t, excused[e], "%q is never needed", e)
		}
	}
}

func FuzzDifferential(f *testing.F) {
	r := randomFrom(1, 1)
	for range 24 {
		f.Add(randomQuestions(r, 40))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		requireSame(t, data[:min(len(data), 4096)], map[excuse]int{})
	})
}

func TestEveryExcuseIsAKnownDifference(t *testing.T) {
	known := map[string]bool{}
	for _, d := range readDifferences(t) {
		known[d.name] = true
	}
	for _, e := range allExcuses {
		require.True(t, known[string(e)], "DIFFERENCES.md does not know %q", e)
	}
}
