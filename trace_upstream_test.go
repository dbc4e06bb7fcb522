package rcmgr

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/stretchr/testify/require"
)

// theirEvents records what upstream's manager tells.
type theirEvents []upstream.TraceEvt

func (r *theirEvents) ConsumeEvent(e upstream.TraceEvt) { *r = append(*r, e) }

// requestFor makes a request of amounts by dimension, at a priority.
func requestFor(priority uint8, items ...item) *traceDelta {
	r := &request{priority: priority}
	for _, it := range items {
		switch it.d {
		case dimMemory:
			r.memory = it.n
		case dimFD:
			r.fds = it.n
		case dimStreams, dimConns:
			r.both = it.d
		default:
			r.dir, r.count = it.d, it.n
		}
	}
	return r.delta()
}

// scopeOf names a scope that is there once.
func scopeOf(k Kind) scopeName { return scopeName{kind: k} }

func spanBelow(n scopeName, seq uint32) scopeName {
	if n.span != 0 {
		n.around = string(binary.BigEndian.AppendUint32(nil, n.span)) + n.around
	}
	n.span = seq
	return n
}

// Every operation of a manager, and the events that upstream has for it: ours,
// put together by hand as the engine does it, are the same, to the byte of
// JSON. What differs is said at the step.
func TestEventsAreThoseOfUpstreamInJSON(t *testing.T) {
	p, q := mustPeer(t, peerA), mustPeer(t, peerB)
	base := upstream.InfiniteLimits
	limits := upstream.PartialLimitConfig{
		System:       upstream.ResourceLimits{Memory: 1000},
		Transient:    upstream.ResourceLimits{Memory: 500, StreamsInbound: 1},
		Peer:         map[peer.ID]upstream.ResourceLimits{q: {ConnsInbound: upstream.BlockAllLimit}},
		Protocol:     map[protocol.ID]upstream.ResourceLimits{"/full": {Streams: upstream.BlockAllLimit}},
		ProtocolPeer: map[protocol.ID]upstream.ResourceLimits{"/p": {FD: 17}},
	}.Build(base)
	limiter := upstream.NewFixedLimiter(limits)
	ours := LimiterFrom(limiter)
	var theirs theirEvents
	rm, err := upstream.NewResourceManager(limiter, upstream.WithTraceReporter(&theirs), upstream.WithMetricsDisabled())
	require.NoError(t, err)
	defer rm.Close()

	system, transient := scopeOf(KindSystem), scopeOf(KindTransient)
	conn := scopeName{kind: KindConn, num: 1}
	conn2 := scopeName{kind: KindConn, num: 2}
	stream := scopeName{kind: KindStream, num: 1}
	stream2 := scopeName{kind: KindStream, num: 2}
	stream3 := scopeName{kind: KindStream, num: 3}
	peerP := scopeName{kind: KindPeer, peer: p}
	peerQ := scopeName{kind: KindPeer, peer: q}
	full := scopeName{kind: KindProtocol, text: "/full"}
	proto := scopeName{kind: KindProtocol, text: "/p"}
	protoPeer := scopeName{kind: KindProtocolPeer, text: "/p", peer: p}
	svc := scopeName{kind: KindService, text: "<svc>"}
	svcPeer := scopeName{kind: KindServicePeer, text: "<svc>", peer: p}
	span := spanBelow(stream, 1)
	inner := spanBelow(span, 1)

	mem := func(n int64) *traceDelta { return requestFor(255, item{dimMemory, n}) }
	in := requestFor(255, item{dimConnsIn, 1}, item{dimConns, 1}, item{dimFD, 1})
	inWith10 := requestFor(255, item{dimMemory, 10}, item{dimConnsIn, 1}, item{dimConns, 1}, item{dimFD, 1})
	out := requestFor(255, item{dimStreamsOut, 1}, item{dimStreams, 1})
	streamIn := requestFor(255, item{dimStreamsIn, 1}, item{dimStreams, 1})
	outWith20 := requestFor(255, item{dimMemory, 20}, item{dimStreamsOut, 1}, item{dimStreams, 1})
	outWith27 := requestFor(255, item{dimMemory, 27}, item{dimStreamsOut, 1}, item{dimStreams, 1})

	heldConn := amounts{dimConnsIn: 1, dimFD: 1}
	heldStream := amounts{dimStreamsOut: 1}
	with := func(a amounts, bytes int64) *amounts {
		a[dimMemory] += bytes
		return &a
	}
	both := heldConn
	both.add(&heldStream)

	endpoint := mustMA(t, "/ip4/127.0.0.1/tcp/1")
	var c network.ConnManagementScope
	var s network.StreamManagementScope
	var sp, sp2 network.ResourceScopeSpan
	for _, step := range []struct {
		op   string
		do   func() error
		want func(*tracer)
	}{
		{"New", func() error { return nil }, func(e *tracer) {
			e.push(traceEvent{typ: TraceStartEvt})
			e.created(system, limitsOf(limiter.GetSystemLimits()))
			e.created(transient, limitsOf(limiter.GetTransientLimits()))
			e.created(scopeOf(KindAllowlistedSystem), limitsOf(limiter.GetAllowlistedSystemLimits()))
			e.created(scopeOf(KindAllowlistedTransient), limitsOf(limiter.GetAllowlistedTransientLimits()))
		}},
		{"OpenConnection", func() (err error) {
			c, err = rm.OpenConnection(network.DirInbound, true, endpoint)
			return err
		}, func(e *tracer) {
			e.created(conn, limitsOf(limiter.GetConnLimits()))
			e.granted(transient, in, &heldConn)
			e.granted(system, in, &heldConn)
			e.granted(conn, in, &heldConn)
		}},
		{"ReserveMemory at a connection", func() error { return c.ReserveMemory(10, 254) }, func(e *tracer) {
			r := requestFor(254, item{dimMemory, 10})
			e.granted(transient, r, with(heldConn, 10))
			e.granted(system, r, with(heldConn, 10))
			e.granted(conn, r, with(heldConn, 10))
		}},
		{"ReserveMemory of nothing", func() error { return c.ReserveMemory(0, 255) }, func(e *tracer) {
			e.granted(conn, mem(0), with(heldConn, 10))
		}},
		{"ReserveMemory refused", func() error { return c.ReserveMemory(480, 200) }, func(e *tracer) {
			e.blocked(transient, requestFor(200, item{dimMemory, 480}), dimMemory, with(heldConn, 10))
		}},
		{"SetPeer refused", func() error { return c.SetPeer(q) }, func(e *tracer) {
			e.created(peerQ, limitsOf(limiter.GetPeerLimits(q)))
			e.blocked(peerQ, inWith10, dimConnsIn, &amounts{})
		}},
		{"SetPeer", func() error { return c.SetPeer(p) }, func(e *tracer) {
			e.created(peerP, limitsOf(limiter.GetPeerLimits(p)))
			e.granted(peerP, inWith10, with(heldConn, 10))
			e.returned(transient, inWith10, &amounts{})
		}},
		{"OpenStream", func() (err error) { s, err = rm.OpenStream(p, network.DirOutbound); return err }, func(e *tracer) {
			e.created(stream, limitsOf(limiter.GetStreamLimits(p)))
			e.granted(peerP, out, with(both, 10))
			e.granted(transient, out, &heldStream)
			e.granted(system, out, with(both, 10))
			e.granted(stream, out, &heldStream)
		}},
		{"ReserveMemory at a transient stream", func() error { return s.ReserveMemory(20, 255) }, func(e *tracer) {
			e.granted(peerP, mem(20), with(both, 30))
			e.granted(transient, mem(20), with(heldStream, 20))
			e.granted(system, mem(20), with(both, 30))
			e.granted(stream, mem(20), with(heldStream, 20))
		}},
		{"SetProtocol refused", func() error { return s.SetProtocol("/full") }, func(e *tracer) {
			e.created(full, limitsOf(limiter.GetProtocolLimits("/full")))
			e.blocked(full, outWith20, dimStreams, &amounts{})
		}},
		{"SetProtocol", func() error { return s.SetProtocol("/p") }, func(e *tracer) {
			e.created(proto, limitsOf(limiter.GetProtocolLimits("/p")))
			e.granted(proto, outWith20, with(heldStream, 20))
			e.created(protoPeer, limitsOf(limiter.GetProtocolPeerLimits("/p")))
			e.granted(protoPeer, outWith20, with(heldStream, 20))
			e.returned(transient, outWith20, &amounts{})
		}},
		{"SetService", func() error { return s.SetService("<svc>") }, func(e *tracer) {
			e.created(svc, limitsOf(limiter.GetServiceLimits("<svc>")))
			e.granted(svc, outWith20, with(heldStream, 20))
			e.created(svcPeer, limitsOf(limiter.GetServicePeerLimits("<svc>")))
			e.granted(svcPeer, outWith20, with(heldStream, 20))
		}},
		{"BeginSpan", func() (err error) { sp, err = s.BeginSpan(); return err }, func(e *tracer) {
			e.created(span, limitsOf(limiter.GetStreamLimits(p)))
		}},
		{"BeginSpan at a span", func() (err error) { sp2, err = sp.BeginSpan(); return err }, func(e *tracer) {
			e.created(inner, limitsOf(limiter.GetStreamLimits(p)))
		}},
		{"ReserveMemory at a span of a span", func() error { return sp2.ReserveMemory(9, 255) }, func(e *tracer) {
			e.granted(peerP, mem(9), with(both, 39))
			for _, n := range []scopeName{protoPeer, svcPeer, proto, svc} {
				e.granted(n, mem(9), with(heldStream, 29))
			}
			e.granted(system, mem(9), with(both, 39))
			e.granted(stream, mem(9), with(heldStream, 29))
			e.granted(span, mem(9), &amounts{dimMemory: 9})
			e.granted(inner, mem(9), &amounts{dimMemory: 9})
		}},
		{"ReleaseMemory at a span of a span", func() error { sp2.ReleaseMemory(2); return nil }, func(e *tracer) {
			e.returned(peerP, mem(2), with(both, 37))
			for _, n := range []scopeName{protoPeer, svcPeer, proto, svc} {
				e.returned(n, mem(2), with(heldStream, 27))
			}
			e.returned(system, mem(2), with(both, 37))
			e.returned(stream, mem(2), with(heldStream, 27))
			e.returned(span, mem(2), &amounts{dimMemory: 7})
			e.returned(inner, mem(2), &amounts{dimMemory: 7})
		}},
		{"Done of a stream with open spans", func() error { s.Done(); return nil }, func(e *tracer) {
			e.returned(peerP, outWith27, with(heldConn, 10))
			for _, n := range []scopeName{protoPeer, svcPeer, proto, svc} {
				e.returned(n, outWith27, &amounts{})
			}
			e.returned(system, outWith27, with(heldConn, 10))
			e.destroyed(stream)
		}},
		{"ReleaseMemory at a span whose owner is done", func() error { sp2.ReleaseMemory(3); return nil }, func(e *tracer) {
			e.returned(span, mem(3), &amounts{dimMemory: 4})
			e.returned(inner, mem(3), &amounts{dimMemory: 4})
		}},
		{"Done of a span whose owner's owner is done", func() error { sp2.Done(); return nil }, func(e *tracer) {
			e.returned(span, mem(4), &amounts{})
			e.destroyed(inner)
		}},
		{"Done of a span whose owner is done", func() error { sp.Done(); return nil }, func(e *tracer) {
			e.destroyed(span)
		}},
		{"anything at what is done", func() error {
			s.Done()
			sp.ReleaseMemory(1)
			sp.Done()
			return s.ReserveMemory(1, 255)
		}, func(*tracer) {}},
		{"OpenStream inbound", func() (err error) { s, err = rm.OpenStream(p, network.DirInbound); return err }, func(e *tracer) {
			one := amounts{dimStreamsIn: 1}
			above := amounts{dimStreamsIn: 1}
			above.add(&heldConn)
			e.created(stream2, limitsOf(limiter.GetStreamLimits(p)))
			e.granted(peerP, streamIn, with(above, 10))
			e.granted(transient, streamIn, &one)
			e.granted(system, streamIn, with(above, 10))
			e.granted(stream2, streamIn, &one)
		}},
		{"OpenStream refused", func() error { _, err := rm.OpenStream(p, network.DirInbound); return err }, func(e *tracer) {
			// Upstream has charged the peer already, and takes it back.
			above := amounts{dimStreamsIn: 2}
			above.add(&heldConn)
			after := above
			after[dimStreamsIn] = 1
			e.created(stream3, limitsOf(limiter.GetStreamLimits(p)))
			e.granted(peerP, streamIn, &above) // upstream's
			e.blocked(transient, streamIn, dimStreamsIn, &amounts{dimStreamsIn: 1})
			e.returned(peerP, streamIn, &after) // upstream's
			e.destroyed(stream3)
		}},
		{"Done of a stream in transient", func() error { s.Done(); return nil }, func(e *tracer) {
			e.returned(peerP, streamIn, &heldConn)
			e.returned(transient, streamIn, &amounts{})
			e.returned(system, streamIn, with(heldConn, 10))
			e.destroyed(stream2)
		}},
		{"Done of a connection", func() error { c.Done(); return nil }, func(e *tracer) {
			e.returned(peerP, inWith10, &amounts{})
			e.returned(system, inWith10, &amounts{})
			e.destroyed(conn)
		}},
		{"a connection without descriptor, outbound", func() (err error) {
			c, err = rm.OpenConnection(network.DirOutbound, false, endpoint)
			return err
		}, func(e *tracer) {
			r := requestFor(255, item{dimConnsOut, 1}, item{dimConns, 1})
			e.created(conn2, limitsOf(limiter.GetConnLimits()))
			for _, n := range []scopeName{transient, system, conn2} {
				e.granted(n, r, &amounts{dimConnsOut: 1})
			}
		}},
		{"memory of a service and a span of it", func() error {
			return rm.ViewService("<svc>", func(s network.ServiceScope) error {
				_ = s.ReserveMemory(2, 255)
				sp, err := s.BeginSpan()
				sp.Done()
				s.ReleaseMemory(2)
				return err
			})
		}, func(e *tracer) {
			one := amounts{dimConnsOut: 1}
			e.granted(system, mem(2), with(one, 2))
			e.granted(svc, mem(2), &amounts{dimMemory: 2})
			e.created(spanBelow(svc, 1), limitsOf(limiter.GetServiceLimits("<svc>")))
			e.destroyed(spanBelow(svc, 1))
			e.returned(system, mem(2), &one)
			e.returned(svc, mem(2), &amounts{})
		}},
	} {
		_ = step.do() // what the refused ones say is not tracing's
		hand := &tracer{limits: ours, max: 100, wake: make(chan struct{}, 1)}
		step.want(hand)
		require.Len(t, theirs, len(hand.mu.queue), step.op)
		for i, their := range theirs {
			at, err := time.Parse(time.RFC3339Nano, their.Time)
			require.NoError(t, err)
			hand.mu.queue[i].at = at.UnixNano()
			our := hand.export(&hand.mu.queue[i])
			theirText, err := json.Marshal(their)
			require.NoError(t, err)
			ourText, err := json.Marshal(our)
			require.NoError(t, err)
			want := string(theirText)
			switch {
			case our.Type == TraceStartEvt:
				// Upstream writes no limits at all.
				require.Equal(t, fmt.Sprintf(`{"Time":%q,"Type":"start","Limit":{}}`, their.Time), want)
				want = string(ourText)
			case upstream.IsSpan(their.Name):
				// Upstream takes the spans for part of the stream's number, or of
				// the service's name.
				scope, err := json.Marshal(our.Scope)
				require.NoError(t, err)
				wrong, err := json.Marshal(their.Scope)
				require.NoError(t, err)
				require.NotContains(t, string(wrong), "Span")
				want = strings.Replace(want, string(wrong), string(scope), 1)
			}
			require.Equal(t, want, string(ourText), "%s: event %d", step.op, i)
		}
		theirs = nil
	}
}
