package rcmgr

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"
)

// endings are the ways in which a callback may fail to come back.
var endings = map[string]func(){"panic": func() { panic(errFault) }, "Goexit": runtime.Goexit}

// faultyConnMgr does not come back from being asked for anything.
type faultyConnMgr struct {
	connmgr.NullConnMgr
	asked atomic.Int64
	end   func()
}

func (c *faultyConnMgr) TrimOpenConns(context.Context)           { c.asked.Add(1); c.end() }
func (c *faultyConnMgr) CheckLimit(connmgr.GetConnLimiter) error { c.asked.Add(1); panic(errFault) }

// A listener or a connection manager that does not come back is logged and not called
// again, and all others go on being called.
func TestAListenerThatFailsStopsNobodyElse(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			text := captureLog(t)
			synctest.Test(t, func(t *testing.T) {
				conf := unlimitedConf()
				conf.System.Conns = 10
				calls, others := 0, 0
				bad, good := &faultyConnMgr{end: end}, &trimmer{}
				m := newManager(t, conf, append(openGates(),
					WithNearLimitFunc(func(NearLimitEvent) { calls++; end() }), WithNearLimitFunc(func(NearLimitEvent) { others++ }),
					WithTrimming(bad), WithTrimming(good))...)
				for range 10 {
					mustOpenConn(t, m, network.DirOutbound)
				}
				time.Sleep(5 * nearInterval)
				synctest.Wait()
				require.Equal(t, 1, calls)
				require.EqualValues(t, 1, bad.asked.Load())
				require.Equal(t, 2, others, "of both marks")
				require.GreaterOrEqual(t, good.times.Load(), int64(2))
				require.Equal(t, 1, strings.Count(text.String(), "WithNearLimitFunc"), text.String())
				require.Equal(t, 1, strings.Count(text.String(), "*rcmgr.faultyConnMgr"), text.String())
				m.Close() // does not wait for what is gone
			})
		})
	}
}

// Where the host's own number of bytes cannot be had any more, the runtime's counts:
// strangers are neither refused nor admitted for ever.
func TestTheRuntimesMemoryCountsWhereInUseFails(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			text := captureLog(t)
			synctest.Test(t, func(t *testing.T) {
				const plenty = 1 << 50
				for _, c := range []struct {
					limit, used int64
					refuses     bool
				}{{plenty, plenty, false}, {1 << 10, 1, true}} {
					var looks atomic.Int64
					var dead atomic.Bool
					m := newManager(t, unlimitedConf(), WithMemoryPressure(MemoryPressureConfig{Limit: c.limit, Every: time.Second, InUse: func() int64 {
						looks.Add(1)
						if dead.Load() {
							end()
						}
						return c.used
					}}))
					open := func() error {
						_, err := m.OpenStream(testPeer, network.DirInbound)
						return err
					}
					if c.refuses {
						require.NoError(t, open())
					} else {
						require.ErrorIs(t, open(), network.ErrResourceLimitExceeded)
					}
					dead.Store(true)
					looks.Store(0)
					time.Sleep(5 * time.Second)
					synctest.Wait()
					require.EqualValues(t, 1, looks.Load())
					require.Equal(t, c.refuses, open() != nil)
					require.NotEqual(t, c.used, m.Snapshot().Process.InUse)
					m.Close()
				}
			})
			require.Equal(t, 2, strings.Count(text.String(), "MemoryPressure.InUse"), text.String())
			require.Contains(t, text.String(), "Go runtime")
		})
	}
}

// faultyLimiter panics when it is asked for the limits of one kind, or returns a Limit that
// does when it is read.
type faultyLimiter struct {
	Limiter
	at    Kind
	reads bool
}

func (l *faultyLimiter) of(k Kind, limit Limit) Limit {
	switch {
	case k != l.at:
		return limit
	case l.reads:
		base := unlimitedBase
		return askedLimit{&base, func() { panic(errFault) }}
	}
	panic(errFault)
}

func (l *faultyLimiter) GetSystemLimits() Limit { return l.of(KindSystem, l.Limiter.GetSystemLimits()) }
func (l *faultyLimiter) GetTransientLimits() Limit {
	return l.of(KindTransient, l.Limiter.GetTransientLimits())
}
func (l *faultyLimiter) GetAllowlistedSystemLimits() Limit {
	return l.of(KindAllowlistedSystem, l.Limiter.GetAllowlistedSystemLimits())
}
func (l *faultyLimiter) GetAllowlistedTransientLimits() Limit {
	return l.of(KindAllowlistedTransient, l.Limiter.GetAllowlistedTransientLimits())
}
func (l *faultyLimiter) GetServiceLimits(s string) Limit {
	return l.of(KindService, l.Limiter.GetServiceLimits(s))
}
func (l *faultyLimiter) GetServicePeerLimits(s string) Limit {
	return l.of(KindServicePeer, l.Limiter.GetServicePeerLimits(s))
}
func (l *faultyLimiter) GetProtocolLimits(p protocol.ID) Limit {
	return l.of(KindProtocol, l.Limiter.GetProtocolLimits(p))
}
func (l *faultyLimiter) GetProtocolPeerLimits(p protocol.ID) Limit {
	return l.of(KindProtocolPeer, l.Limiter.GetProtocolPeerLimits(p))
}
func (l *faultyLimiter) GetPeerLimits(p peer.ID) Limit {
	return l.of(KindPeer, l.Limiter.GetPeerLimits(p))
}
func (l *faultyLimiter) GetStreamLimits(p peer.ID) Limit {
	return l.of(KindStream, l.Limiter.GetStreamLimits(p))
}
func (l *faultyLimiter) GetConnLimits() Limit         { return l.of(KindConn, l.Limiter.GetConnLimits()) }
func (l *faultyLimiter) MarshalJSON() ([]byte, error) { panic(errFault) }

// If a Limiter panics, a call that needs the limit returns an error that says so, each time, and
// is logged once. What is in force stays.
func TestALimiterThatPanicsIsAnError(t *testing.T) {
	const says = "the Limiter panicked: "
	setPeer := func(m *Manager) error { return mustOpenConn(t, m, network.DirInbound).SetPeer(testPeer) }
	openStream := func(m *Manager) error {
		_, err := m.OpenStream(testPeer, network.DirInbound)
		return err
	}
	view := func(m *Manager) error {
		return m.ViewPeer(testPeer, func(network.PeerScope) error { panic("it is not called") })
	}
	setProtocol := func(m *Manager) error {
		return mustOpenStream(t, m, testPeer, network.DirInbound).SetProtocol(testProto)
	}
	setService := func(m *Manager) error {
		s := mustOpenStream(t, m, testPeer, network.DirInbound)
		require.NoError(t, s.SetProtocol(testProto))
		return s.SetService(testSvc)
	}
	for k, needing := range map[Kind][]func(*Manager) error{
		KindSystem: nil, KindTransient: nil, KindAllowlistedSystem: nil, KindAllowlistedTransient: nil, KindConn: nil,
		KindStream: {openStream}, KindPeer: {openStream, setPeer, view},
		KindProtocol: {setProtocol}, KindProtocolPeer: {setProtocol}, KindService: {setService}, KindServicePeer: {setService},
	} {
		for _, reads := range []bool{false, true} {
			text := captureLog(t)
			bad := &faultyLimiter{noLimits(), k, reads}
			m, err := New(bad)
			if needing == nil {
				require.ErrorContains(t, err, k.String()+": "+says+errFault.Error())
			} else {
				require.NoError(t, err)
				for range 2 {
					for _, f := range needing {
						require.ErrorContains(t, f(m), says+errFault.Error())
					}
				}
				m.Close()
			}
			require.Equal(t, 1, strings.Count(text.String(), `callback="Limiter: *rcmgr.faultyLimiter"`), text.String())

			conf := unlimitedConf()
			conf.System.Conns = 7
			running := newManager(t, conf)
			require.NoError(t, openStream(running))
			err = running.SetLimits(bad)
			switch {
			case needing == nil:
				require.ErrorContains(t, err, "limits not changed: "+k.String()+": "+says)
			case k == KindPeer:
				require.ErrorContains(t, err, "limits not changed: peer:"+testPeer.String()+": "+says)
			default:
				require.NoError(t, err)
				continue
			}
			require.Equal(t, 7, running.GetConnLimit())
		}
	}
}

// A panic of a connection manager that is asked is an error for the caller.
func TestAConnectionManagerThatPanicsIsAnError(t *testing.T) {
	captureLog(t)
	conf := unlimitedConf()
	conf.System.Conns = 7
	err := newManager(t, conf).CheckConnManager(&faultyConnMgr{})
	require.ErrorContains(t, err, "*rcmgr.faultyConnMgr")
	require.ErrorContains(t, err, errFault.Error())
}

// A Limiter whose JSON cannot be had costs a trace its first line's limits, no more.
func TestATraceDoesWithoutAPanickingLimitersJSON(t *testing.T) {
	captureLog(t)
	path := filepath.Join(t.TempDir(), "trace")
	m, err := New(&faultyLimiter{noLimits(), numKinds, false}, WithTrace(path))
	require.NoError(t, err)
	mustOpenConn(t, m, network.DirInbound)
	require.NoError(t, m.Close())
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	written := lines(t, file, true)
	require.Equal(t, "cannot be written: panicked: "+errFault.Error(), written[0].Limit)
	require.Greater(t, len(written), 5)
}

// A panic in a view gives back what the view held.
func TestAViewThatPanicsGivesBackItsScope(t *testing.T) {
	m := newManager(t, unlimitedConf())
	for _, view := range []func(){
		func() { m.ViewPeer(testPeer, func(network.PeerScope) error { panic(errFault) }) },
		func() { m.ViewProtocol(testProto, func(network.ProtocolScope) error { panic(errFault) }) },
		func() { m.ViewService(testSvc, func(network.ServiceScope) error { panic(errFault) }) },
	} {
		require.True(t, survive(t, view))
	}
	m.inOneCut(func() {
		for i := range m.stripes {
			if !m.stripes[i].woken.Load() {
				continue
			}
			for ps := range m.stripes[i].allPeers {
				require.Zero(t, ps.refs)
			}
			for _, sh := range m.stripes[i].protocols {
				require.Zero(t, sh.refs)
			}
			for _, sh := range m.stripes[i].services {
				require.Zero(t, sh.refs)
			}
		}
	})
}
