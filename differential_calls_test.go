package rcmgr

// The calls of differential_test.go: what a question asks of both managers.

import (
	"errors"
	"math"
	"net"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
)

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

var errOfCaller = errors.New("the caller's own")

// view returns a scope that is always there, or a peer, protocol or service.
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

// refusedAtGate compares the refusals by gates, of which only ours have types.
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

// holdsNo reports whether a connection or stream has nothing of a resource.
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

// size returns a number of bytes that is telling for some limit above a scope.
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
	theirs := upstream.BaseLimit{Streams: limit.Streams, StreamsInbound: limit.StreamsInbound, StreamsOutbound: limit.StreamsOutbound,
		Conns: limit.Conns, ConnsInbound: limit.ConnsInbound, ConnsOutbound: limit.ConnsOutbound, FD: limit.FD, Memory: limit.Memory}
	tw.theirs.(upstream.ResourceScopeLimiter).SetLimit(&theirs)
	if w.rated {
		limit.Rates = freeRates
	}
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

// follows reports whether a span has the limit of the scope in question.
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
