package rcmgr

// Every limit at every scope and direction: exactly so much is admitted, one
// more is refused by that scope with the right numbers, and a refusal leaves
// every account as it was.

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

// kindNamesHere is how a scope of each kind is named in these tests; of a
// connection or stream, without its number.
var kindNamesHere = map[Kind]string{
	KindSystem:               "system",
	KindTransient:            "transient",
	KindAllowlistedSystem:    "allowlistedSystem",
	KindAllowlistedTransient: "allowlistedTransient",
	KindService:              "service:" + testSvc,
	KindServicePeer:          "service:" + testSvc + ".peer:" + testPeer.String(),
	KindProtocol:             "protocol:" + string(testProto),
	KindProtocolPeer:         "protocol:" + string(testProto) + ".peer:" + testPeer.String(),
	KindPeer:                 "peer:" + testPeer.String(),
	KindConn:                 "conn",
	KindStream:               "stream",
}

// way is a way to ask a scope for one unit more. ask does what may go before
// and returns the call that the scope decides.
type way struct {
	name string
	kind Kind
	d    dim
	ask  func(t *testing.T, m *Manager, i int) func() error
	// deep is how many spans stand between the request and the scope. A span
	// follows its owner's limit, so it refuses before it.
	deep int
}

// directionFor returns a direction that counts in d; both in turn if d is a total.
func directionFor(d dim, i int) network.Direction {
	switch d {
	case dimStreamsIn, dimConnsIn:
		return network.DirInbound
	case dimStreamsOut, dimConnsOut:
		return network.DirOutbound
	}
	return []network.Direction{network.DirInbound, network.DirOutbound}[i%2]
}

// countWays are the ways to ask for streams, connections and descriptors.
func countWays() (ways []way) {
	for _, d := range []dim{dimStreamsIn, dimStreamsOut, dimStreams} {
		open := func(_ *testing.T, m *Manager, i int) func() error {
			return func() error { _, err := m.OpenStream(testPeer, directionFor(d, i)); return err }
		}
		setProtocol := func(t *testing.T, m *Manager, i int) func() error {
			s := mustOpenStream(t, m, testPeer, directionFor(d, i))
			return func() error { return s.SetProtocol(testProto) }
		}
		setService := func(t *testing.T, m *Manager, i int) func() error {
			s := mustOpenStream(t, m, testPeer, directionFor(d, i))
			require.NoError(t, s.SetProtocol(testProto))
			return func() error { return s.SetService(testSvc) }
		}
		ways = append(ways,
			way{"open", KindSystem, d, open, 0}, way{"open", KindTransient, d, open, 0}, way{"open", KindPeer, d, open, 0},
			way{"set protocol", KindProtocol, d, setProtocol, 0}, way{"set protocol", KindProtocolPeer, d, setProtocol, 0},
			way{"set service", KindService, d, setService, 0}, way{"set service", KindServicePeer, d, setService, 0},
			// Beyond what the standard scopes take, for an allowlisted peer.
			way{"fall back", KindAllowlistedSystem, d, fallBack(open), 0}, way{"fall back", KindAllowlistedTransient, d, fallBack(open), 0},
		)
	}
	for _, d := range []dim{dimConnsIn, dimConnsOut, dimConns, dimFD} {
		open := func(_ *testing.T, m *Manager, i int) func() error {
			return func() error {
				_, err := m.OpenConnection(directionFor(d, i), d == dimFD, nil)
				return err
			}
		}
		openAllowed := func(_ *testing.T, m *Manager, i int) func() error {
			return func() error {
				_, err := m.OpenConnection(directionFor(d, i), d == dimFD, testFars[2].addr)
				return err
			}
		}
		setPeer := func(t *testing.T, m *Manager, i int) func() error {
			c, err := m.OpenConnection(directionFor(d, i), d == dimFD, nil)
			require.NoError(t, err)
			return func() error { return c.SetPeer(testPeer) }
		}
		ways = append(ways,
			way{"open", KindSystem, d, open, 0}, way{"open", KindTransient, d, open, 0}, way{"set peer", KindPeer, d, setPeer, 0},
			way{"fall back", KindAllowlistedSystem, d, fallBack(openAllowed), 0}, way{"fall back", KindAllowlistedTransient, d, fallBack(openAllowed), 0},
		)
	}
	return ways
}

// fallBack makes the peer an allowlisted one before the first request, and
// shuts the standard scopes.
func fallBack(ask func(*testing.T, *Manager, int) func() error) func(*testing.T, *Manager, int) func() error {
	return func(t *testing.T, m *Manager, i int) func() error {
		if m.fixed[KindSystem].limit != (amounts{}) {
			c, err := m.OpenConnection(network.DirInbound, false, testFars[2].addr)
			require.NoError(t, err)
			require.NoError(t, c.SetPeer(testPeer))
			viewSystem(t, m).(ResourceScopeLimiter).SetLimit(&BaseLimit{})
		}
		return ask(t, m, i)
	}
}

// memoryWays are the ways to ask for a byte.
func memoryWays() (ways []way) {
	add := func(name string, kind Kind, scope func(*testing.T, *Manager) network.ResourceScope) {
		deep := func(depth int) func(*testing.T, *Manager, int) func() error {
			var s network.ResourceScope
			return func(t *testing.T, m *Manager, i int) func() error {
				if i == 0 { // the first for this manager: one scope takes all
					s = scope(t, m)
					for range depth {
						s = mustBeginSpan(t, s)
					}
				}
				return func() error { return s.ReserveMemory(1, 255) }
			}
		}
		own := 0
		if name == kind.String() {
			own = 1 // the scope that decides is the one that is asked
		}
		ways = append(ways,
			way{name, kind, dimMemory, deep(0), 0},
			way{"span of " + name, kind, dimMemory, deep(1), 1 * own},
			way{"span of span of " + name, kind, dimMemory, deep(2), 2 * own})
	}
	served := func(t *testing.T, m *Manager) network.ResourceScope { return servedStream(t, m, testPeer) }
	for _, k := range []Kind{KindSystem, KindPeer, KindProtocol, KindProtocolPeer, KindService, KindServicePeer, KindStream} {
		add("stream", k, served)
	}
	conn := func(t *testing.T, m *Manager) network.ResourceScope { return mustOpenConn(t, m, network.DirInbound) }
	connOfPeer := func(t *testing.T, m *Manager) network.ResourceScope {
		c := mustOpenConn(t, m, network.DirInbound)
		require.NoError(t, c.SetPeer(testPeer))
		return c
	}
	newStream := func(t *testing.T, m *Manager) network.ResourceScope {
		return mustOpenStream(t, m, testPeer, network.DirInbound)
	}
	for _, k := range []Kind{KindSystem, KindTransient} {
		add("new connection", k, conn)
		add("new stream", k, newStream)
		add("transient", k, func(t *testing.T, m *Manager) network.ResourceScope { return viewTransient(t, m) })
	}
	add("new stream", KindPeer, newStream)
	for _, k := range []Kind{KindSystem, KindPeer, KindConn} {
		add("conn", k, connOfPeer)
	}
	add("system", KindSystem, func(t *testing.T, m *Manager) network.ResourceScope { return viewSystem(t, m) })
	for _, k := range []Kind{KindSystem, KindPeer} {
		add("peer", k, func(t *testing.T, m *Manager) network.ResourceScope { return viewPeer(t, m, testPeer) })
	}
	for _, k := range []Kind{KindSystem, KindProtocol} {
		add("protocol", k, func(t *testing.T, m *Manager) network.ResourceScope { return viewProtocol(t, m, testProto) })
	}
	for _, k := range []Kind{KindSystem, KindService} {
		add("service", k, func(t *testing.T, m *Manager) network.ResourceScope { return viewService(t, m, testSvc) })
	}
	return ways
}

func TestExactlyTheLimitIsAdmittedEverywhere(t *testing.T) {
	for _, w := range append(countWays(), memoryWays()...) {
		for _, stripes := range []int{1, 8} {
			for _, limit := range []int64{0, 1, 5, 150} { // 150: with room for batches
				if limit == 0 && w.kind == KindSystem && w.name == "fall back" {
					continue
				}
				t.Run(fmt.Sprintf("%v/dimension=%d/%s/stripes=%d/limit=%d", w.kind, w.d, w.name, stripes, limit), func(t *testing.T) {
					conf := unlimitedConf()
					eachLimit(&conf, func(k Kind, l *BaseLimit) {
						if k == w.kind {
							a := limitsOf(l)
							a[w.d] = limit
							*l = a.base()
						}
					})
					m := newManager(t, conf, append(openGates(), WithStripes(stripes), WithNewcomersQuarter(false),
						WithAllowlistedMultiaddrs(testAllowlist))...)
					for i := range int(limit) {
						require.NoError(t, w.ask(t, m, i)())
					}
					ask := w.ask(t, m, int(limit))
					before := books(m)
					requireRefused(t, ask(), w.kind, kindNamesHere[w.kind]+strings.Repeat(".span", w.deep), w.d, limit)
					require.Equal(t, before, books(m), "I3: a refusal changed something")
					checkInvariants(t, m, w.name == "fall back")
				})
			}
		}
	}
}

// requireRefused checks everything that a refusal of one more says.
func requireRefused(t *testing.T, err error, kind Kind, name string, d dim, limit int64) {
	t.Helper()
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	var e *LimitError
	require.ErrorAs(t, err, &e)
	require.Equal(t, name, numbers.ReplaceAllString(e.Scope(), "$1"))
	require.Equal(t, kind, e.Kind())
	require.Equal(t, resourceOf[d], e.Resource())
	require.Equal(t, directionOf[d], e.Direction())
	require.Equal(t, limit, e.Limit())
	require.Equal(t, limit, e.Current())
	require.EqualValues(t, 1, e.Attempted())
	require.EqualValues(t, 255, e.Priority())
	require.Equal(t, CauseLimit, e.Cause())
	var memory *ErrMemoryLimitExceeded
	var count *ErrStreamOrConnLimitExceeded
	require.Equal(t, d == dimMemory, errors.As(err, &memory))
	require.Equal(t, d != dimMemory, errors.As(err, &count))
}

// TestConnectionsAndStreamsFitTheirOwnLimits: one connection or stream is
// refused by itself where its own limit has no room for it.
func TestConnectionsAndStreamsFitTheirOwnLimits(t *testing.T) {
	for _, d := range []dim{dimStreamsIn, dimStreamsOut, dimStreams, dimConnsIn, dimConnsOut, dimConns, dimFD} {
		kind := KindConn
		if d <= dimStreams {
			kind = KindStream
		}
		for _, limit := range []int64{0, 1} {
			for _, full := range []bool{false, true} { // full scopes above do not hide it
				t.Run(fmt.Sprintf("%v/dimension=%d/limit=%d/full=%v", kind, d, limit, full), func(t *testing.T) {
					conf := unlimitedConf()
					own := limitsOf(&unlimitedBase)
					own[d] = limit
					conf.Conn, conf.Stream = own.base(), own.base()
					if full {
						conf.Transient, conf.System = BaseLimit{}, BaseLimit{}
					}
					m := newManager(t, conf, openGates()...)
					before := books(m)
					ask := func() (err error) {
						if kind == KindConn {
							_, err = m.OpenConnection(directionFor(d, 0), true, nil)
						} else {
							_, err = m.OpenStream(testPeer, directionFor(d, 0))
						}
						return err
					}
					switch {
					case limit == 0:
						requireRefused(t, ask(), kind, kind.String(), d, 0)
						require.Equal(t, before, books(m))
					case full:
						require.Error(t, ask())
						require.Equal(t, before, books(m))
					default:
						require.NoError(t, ask())
						require.NoError(t, ask(), "the limit is for one")
					}
				})
			}
		}
	}
}

// TestARefusalNamesTheFirstFullScopeOfTheChain: of many that refuse, the nearest is named.
func TestARefusalNamesTheFirstFullScopeOfTheChain(t *testing.T) {
	names := []string{"stream.span.span", "stream.span", "stream", kindNamesHere[KindPeer],
		kindNamesHere[KindProtocol], kindNamesHere[KindService], "system"}
	for _, stripes := range []int{1, 8} {
		m := newManager(t, unlimitedConf(), WithStripes(stripes))
		stream := servedStream(t, m, testPeer)
		span := mustBeginSpan(t, stream)
		inner := mustBeginSpan(t, span)
		scopes := []network.ResourceScope{inner, span, stream, viewPeer(t, m, testPeer),
			viewProtocol(t, m, testProto), viewService(t, m, testSvc), viewSystem(t, m)}
		for _, s := range scopes { // spans would follow their owner's
			s.(ResourceScopeLimiter).SetLimit(&unlimitedBase)
		}
		for i := len(scopes) - 1; i >= 0; i-- { // the nearer one takes over
			scopes[i].(ResourceScopeLimiter).SetLimit(&BaseLimit{})
			var e *LimitError
			require.ErrorAs(t, inner.ReserveMemory(1, 255), &e)
			require.Equal(t, names[i], numbers.ReplaceAllString(e.Scope(), "$1"))
			require.Equal(t, names[0], numbers.ReplaceAllString(e.Asked(), "$1"))
		}
	}
	// A move names the shared scope before the peer's part of it.
	for _, k := range []struct{ shared, pair Kind }{{KindProtocol, KindProtocolPeer}, {KindService, KindServicePeer}} {
		conf := unlimitedConf()
		eachLimit(&conf, func(kind Kind, l *BaseLimit) {
			if kind == k.shared || kind == k.pair {
				*l = BaseLimit{}
			}
		})
		m := newManager(t, conf)
		s := mustOpenStream(t, m, testPeer, network.DirInbound)
		err := s.SetProtocol(testProto)
		if k.shared == KindService {
			require.NoError(t, err)
			err = s.SetService(testSvc)
		}
		requireRefused(t, err, k.shared, kindNamesHere[k.shared], dimStreamsIn, 0)
	}
}

func TestTheErrorOfAConnectionThatItsOwnLimitRefusesNamesItOnce(t *testing.T) {
	m := newManager(t, limitedConf(func(c *perScope[BaseLimit]) {
		c.Conn.ConnsInbound, c.System.Conns = 0, 1 // a small limit is tight: the manager looks before it asks the gates
	}), WithStripes(8))
	for range 3 {
		_, err := m.OpenConnection(network.DirInbound, false, testFars[1].addr)
		var e *LimitError
		require.ErrorAs(t, err, &e)
		require.Equal(t, e.Asked(), e.Scope())
		require.Equal(t, "cannot reserve inbound connection: resource limit exceeded", errors.Unwrap(err).Error())
	}
}

// Limits that are only observed refuse nothing at a glance, neither that of a scope which
// is full nor that of the connection itself.
func TestObservedLimitsOfAFullManagerRefuseNothing(t *testing.T) {
	full := limitedConf(func(c *perScope[BaseLimit]) {
		c.Conn.ConnsInbound, c.System.Conns = 0, 1 // a small limit is tight
	})
	open := func(observed ...Kind) (err error) {
		m := newManager(t, full, WithStripes(8), WithObserveOnly(observed...))
		for range 2 {
			_, err = m.OpenConnection(network.DirInbound, false, testFars[1].addr)
		}
		return err
	}
	require.NoError(t, open(KindConn, KindSystem))
	requireRefused(t, open(KindConn), KindSystem, "system", dimConns, 1)
}

// A stream that is attached asks its protocol before the peer's part of it, but that is one
// decision, and under all stripe locks no pool is summed up twice for it.
func TestAttachingUnderAllLocksIsOneDecision(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithStripes(2))
	s := mustOpenStream(t, m, testPeer, network.DirInbound).(*streamScope)
	fresh, err := m.newPool(KindProtocol, "/a")
	require.NoError(t, err)
	st := s.peer.st
	before := m.Snapshot().Engine.Settled
	m.inOneCut(func() {
		pr := st.pair(s.peer, st.shareNamed(KindProtocol, "/a", fresh))
		v, err := s.attachLocked(st, pr, slotProtocol, allStripes)
		require.NoError(t, err)
		require.Equal(t, admitted, v)
	})
	require.Equal(t, before+1, m.Snapshot().Engine.Settled)
	s.Done()
	assertEmpty(t, m)
}
