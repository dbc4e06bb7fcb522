package rcmgr

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"unsafe"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// The text of a refusal is made when it is read. Refused again and again, in a flood
// from many subnets or below a span, a caller makes no more than the error that it gets.
func TestARefusalMakesNoText(t *testing.T) {
	refusing := func(t *testing.T, ask func() error) float64 {
		require.ErrorIs(t, ask(), network.ErrResourceLimitExceeded)
		return testing.AllocsPerRun(100, func() { ask() })
	}
	conf := unlimitedConf()
	conf.System.Memory = 10
	m := newManager(t, conf, WithStripes(1),
		// All addresses of a /8 are under one lock, and no two that follow each other are of one subnet.
		WithLimitPerSubnet([]ConnLimitPerSubnet{{PrefixLength: 8, ConnCount: 1 << 20}, {PrefixLength: 32, ConnCount: 0}}, nil))
	var far []multiaddr.Multiaddr
	for i := range 3 {
		far = append(far, mustMA(t, fmt.Sprintf("/ip4/10.0.0.%d/tcp/1", i+1)))
	}
	n := 0
	require.Equal(t, 1.0, refusing(t, func() error {
		n++
		_, err := m.OpenConnection(network.DirInbound, false, far[n%len(far)])
		return err
	}), "at a gate, from another subnet each time")

	c, s := mustOpenConn(t, m, network.DirInbound), mustOpenStream(t, m, testPeer, network.DirInbound)
	of := func(r network.ResourceScope) func() error {
		return func() error {
			n++
			return r.ReserveMemory(11+n%2, 255) // each time another refusal than the last one
		}
	}
	deep := mustBeginSpan(t, mustBeginSpan(t, mustBeginSpan(t, s)))
	for _, x := range []struct {
		what  string
		scope network.ResourceScope
		most  float64
	}{
		{"a connection", c, 1},
		{"a span", mustBeginSpan(t, c), 1},
		{"a span of spans", deep, 3}, // with the numbers of all of them
		{"a span of a peer", mustBeginSpan(t, viewPeer(t, m, testPeer)), 2},
		{"a span in a span of a service", mustBeginSpan(t, mustBeginSpan(t, viewService(t, m, testSvc))), 3},
	} {
		require.Equal(t, x.most, refusing(t, of(x.scope)), x.what)
	}
	deep.(ResourceScopeLimiter).SetLimit(&BaseLimit{Memory: 5})
	require.Equal(t, 5.0, refusing(t, of(deep)), "a span by itself: its name, too")
}

// A flood of refusals leaves as little garbage as there can be.
func TestALimitErrorIsSmall(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("sizes are those of 64 bits")
	}
	require.LessOrEqual(t, unsafe.Sizeof(LimitError{}), uintptr(64), "the allocator's next size is 80")
	require.LessOrEqual(t, unsafe.Sizeof(gateError{}), uintptr(144), "the allocator's next size is 160")
}

// The log names the scope, not one of the spans below it that were refused by turns.
func TestTheLogNamesNoSpan(t *testing.T) {
	lines := collectLog(t, slog.LevelError)
	m := newManager(t, unlimitedConf(), WithStripes(1))
	for range 3 {
		span := mustBeginSpan(t, viewPeer(t, m, testPeer))
		span.(ResourceScopeLimiter).SetLimit(&BaseLimit{})
		require.Error(t, span.ReserveMemory(1, 255))
	}
	m.logRefusals()
	said := lines.take()
	require.Len(t, said, 1)
	require.Contains(t, said[0], " worst=peer:"+testPeer.String()+" worst_times=3 ")
}

// Names are read while what they name goes on, and after it: they are of their own.
func TestNamesOfRefusalsAreReadAtAnyTime(t *testing.T) {
	conf := unlimitedConf()
	conf.System.Memory = 10
	m := newManager(t, conf, WithStripes(1))
	s := mustOpenStream(t, m, testPeer, network.DirInbound)
	outer := mustBeginSpan(t, s)
	inner := mustBeginSpan(t, mustBeginSpan(t, outer))
	ofPeer := mustBeginSpan(t, mustBeginSpan(t, viewPeer(t, m, testPeer)))
	var read sync.WaitGroup
	for scope, name := range map[network.ResourceScope]string{
		outer: "stream-1.span-1", inner: "stream-1.span-1.span-1.span-1", ofPeer: "peer:" + testPeer.String() + ".span-1.span-1",
	} {
		err := scope.ReserveMemory(11, 255)
		for range 2 {
			read.Go(func() {
				if text := err.Error(); text != name+": system: cannot reserve memory: resource limit exceeded" {
					t.Error(text)
				}
			})
		}
	}
	mustBeginSpan(t, inner).Done()
	inner.Done()
	outer.Done()
	ofPeer.Done()
	s.Done()
	mustOpenStream(t, m, "another", network.DirInbound).Done()
	read.Wait()
}

// A flood of refusals for the same reason makes no garbage: all of them are one error. What
// differs makes another one, and an error that a caller has does not change.
func TestRefusalsForTheSameReasonAreOneError(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.System.ConnsInbound, c.System.StreamsInbound, c.System.Memory = 1, 1, 10
	}), WithStripes(1))
	c, s := mustOpenConn(t, m, network.DirInbound), mustOpenStream(t, m, testPeer, network.DirInbound)
	var all []error
	var texts []string
	for what, again := range map[string]func() error{
		"a connection":           func() error { _, err := m.OpenConnection(network.DirInbound, false, nil); return err },
		"a stream":               func() error { _, err := m.OpenStream(testPeer, network.DirInbound); return err },
		"memory of a connection": func() error { return c.ReserveMemory(11, 255) },
		"memory of a stream":     func() error { return s.ReserveMemory(11, 255) },
		"more of it":             func() error { return s.ReserveMemory(12, 255) },
		"at another priority":    func() error { return s.ReserveMemory(12, 254) },
	} {
		first := again()
		require.ErrorIs(t, first, network.ErrResourceLimitExceeded, what)
		text := first.Error()
		require.Same(t, first, again(), what)
		require.Zero(t, testing.AllocsPerRun(100, func() { _ = again() }), what)
		for _, other := range all {
			require.NotSame(t, other, first, what)
		}
		all, texts = append(all, first), append(texts, text)
	}
	for i, err := range all {
		require.EqualError(t, err, texts[i])
	}
	_, err := m.OpenConnection(network.DirInbound, false, nil)
	require.EqualError(t, err, "conn: system: cannot reserve inbound connection: resource limit exceeded")
	require.Equal(t, "conn", err.(*LimitError).Asked())
}
