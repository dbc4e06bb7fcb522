package rcmgrtest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/rcmgrtest"
)

// verdict is a TB that records whether the test fails.
type verdict struct {
	failures []string
	cleanups []func()
}

func (v *verdict) Helper() {}
func (v *verdict) Errorf(format string, args ...any) {
	v.failures = append(v.failures, fmt.Sprintf(format, args...))
}
func (v *verdict) Cleanup(f func()) { v.cleanups = append(v.cleanups, f) }
func (v *verdict) end() {
	for i := len(v.cleanups) - 1; i >= 0; i-- {
		v.cleanups[i]()
	}
}

var endpoint = multiaddr.StringCast("/ip4/192.0.2.1/tcp/4001")

func TestRequireEmptyNamesWhatIsHeld(t *testing.T) {
	m, err := rcmgr.New(nil)
	require.NoError(t, err)
	defer m.Close()
	var v verdict
	rcmgrtest.RequireEmpty(&v, m, 0)
	require.Empty(t, v.failures)

	c, err := m.OpenConnection(network.DirInbound, true, endpoint)
	require.NoError(t, err)
	require.NoError(t, c.ReserveMemory(100, 255))
	rcmgrtest.RequireEmpty(&v, m, 0)
	require.Len(t, v.failures, 1)
	require.Contains(t, v.failures[0], "system: 1 inbound connections, 1 file descriptors, 100 bytes of memory")
	require.Contains(t, v.failures[0], "transient: 1 inbound")

	// Resources that are released in time are not a failure.
	go c.Done()
	v = verdict{}
	rcmgrtest.RequireEmpty(&v, m, time.Minute)
	require.Empty(t, v.failures)
}

func TestWatchReportsWhatIsNotReleasedByWhomAndSinceWhen(t *testing.T) {
	m, err := rcmgr.New(nil)
	require.NoError(t, err)
	defer m.Close()
	var v verdict
	rm := rcmgrtest.Watch(&v, m, 0)
	c, err := rm.OpenConnection(network.DirInbound, true, endpoint)
	require.NoError(t, err)
	s, err := rm.OpenStream("somebody", network.DirOutbound)
	require.NoError(t, err)
	_, err = rm.OpenStream("somebody", network.DirOutbound)
	require.NoError(t, err)
	c.Done()
	s.Done()
	s.Done()
	v.end()
	require.Len(t, v.failures, 1)
	require.Regexp(t, `^not given back to the resource manager:\n\tOutbound stream with \w+, opened [\d.µms]+ ago at .*rcmgrtest_test\.go:\d+, holds 1 outbound streams$`, v.failures[0])

	rm.(interface {
		Unwrap() network.ResourceManager
	}).Unwrap()
	require.NotNil(t, rcmgr.GetAllowlist(rm))

	v = verdict{}
	rm = rcmgrtest.Watch(&v, &network.NullResourceManager{}, 0) // it accepts any manager
	n, err := rm.OpenConnection(network.DirInbound, true, endpoint)
	require.NoError(t, err)
	n.Done()
	v.end()
	require.Empty(t, v.failures)
}

func TestARefuserRefusesOnCommand(t *testing.T) {
	const in, out = network.DirInbound, network.DirOutbound
	conn := func(dir network.Direction, fd bool) func(*rcmgrtest.Refuser) error {
		return func(r *rcmgrtest.Refuser) error { _, err := r.OpenConnection(dir, fd, nil); return err }
	}
	stream := func(dir network.Direction) func(*rcmgrtest.Refuser) error {
		return func(r *rcmgrtest.Refuser) error { _, err := r.OpenStream("p", dir); return err }
	}
	memory := func(r *rcmgrtest.Refuser) error {
		return r.ViewTransient(func(s network.ResourceScope) error { return s.ReserveMemory(1, 255) })
	}
	asks := map[string]func(*rcmgrtest.Refuser) error{
		"in":         conn(in, false),
		"out":        conn(out, false),
		"in stream":  stream(in),
		"out stream": stream(out),
		"memory":     memory,
	}
	for _, c := range []struct {
		what     rcmgr.Resource
		dir      network.Direction
		asks     func(*rcmgrtest.Refuser) error
		otherFor string
	}{
		{rcmgr.ResourceConnection, in, asks["in"], "in"},
		{rcmgr.ResourceConnection, out, asks["out"], "out"},
		{rcmgr.ResourceStream, in, asks["in stream"], "in stream"},
		{rcmgr.ResourceStream, out, asks["out stream"], "out stream"},
		{rcmgr.ResourceMemory, in, memory, "memory"},
		{rcmgr.ResourceFD, in, conn(in, true), ""},
	} {
		r := rcmgrtest.NewRefuser(t)
		for range 3 {
			require.NoError(t, c.asks(r))
		}
		r.Leave(2, c.what, c.dir)
		require.NoError(t, c.asks(r))
		require.NoError(t, c.asks(r))
		err := c.asks(r)
		var limit *rcmgr.LimitError
		require.ErrorAs(t, err, &limit)
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
		require.Equal(t, "system", limit.Scope())
		require.Equal(t, c.what, limit.Resource())
		for name, ask := range asks {
			if name != c.otherFor {
				require.NoError(t, ask(r), "%s is refused, too", name)
			}
		}
		r.Admit()
		require.NoError(t, c.asks(r))
	}
}

func TestARefuserRefusesPeersProtocolsAndServices(t *testing.T) {
	r := rcmgrtest.NewRefuser(t)
	c, err := r.OpenConnection(network.DirInbound, true, endpoint)
	require.NoError(t, err)
	r.RefusePeer("p")
	require.ErrorIs(t, c.SetPeer("p"), network.ErrResourceLimitExceeded)
	_, err = r.OpenStream("p", network.DirInbound)
	require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	r.AdmitPeer("p")
	require.NoError(t, c.SetPeer("p"))
	s, err := r.OpenStream("p", network.DirInbound)
	require.NoError(t, err)

	r.RefuseProtocol("/x")
	require.ErrorIs(t, s.SetProtocol("/x"), network.ErrResourceLimitExceeded)
	r.AdmitProtocol("/x")
	require.NoError(t, s.SetProtocol("/x"))
	r.RefuseService("y")
	require.ErrorIs(t, s.SetService("y"), network.ErrResourceLimitExceeded)
	r.AdmitService("y")
	require.NoError(t, s.SetService("y"))

	s.Done()
	c.Done()
	rcmgrtest.RequireEmpty(t, r.Manager, 0)
}

func TestABadOptionFailsTheTest(t *testing.T) {
	var v verdict
	r := rcmgrtest.NewRefuser(&v, rcmgr.WithStripes(3))
	require.Len(t, v.failures, 1)
	require.True(t, strings.Contains(v.failures[0], "WithStripes"))
	require.NotNil(t, r.Manager)
	v.end()
}

// A test passes the watched manager to its host.
func Example() {
	t := &verdict{} // in a real test, its *testing.T
	refuser := rcmgrtest.NewRefuser(t)
	rm := rcmgrtest.Watch(t, refuser, time.Second) // for libp2p.ResourceManager

	refuser.Leave(0, rcmgr.ResourceConnection, network.DirInbound)
	_, err := rm.OpenConnection(network.DirInbound, true, nil)
	fmt.Println(err)

	refuser.Admit()
	c, err := rm.OpenConnection(network.DirInbound, true, nil)
	fmt.Println(err)
	c.Done()
	t.end()
	fmt.Println(len(t.failures), "failures")
	// Output:
	// conn: system: cannot reserve inbound connection: resource limit exceeded
	// <nil>
	// 0 failures
}
