package rcmgr_test

// A real host as oracle. The same traffic runs in two worlds side by side: in
// one, all hosts run on go-libp2p's own manager, in the other on ours, with the
// same limits. Whenever the traffic rests, the managers of each host must
// account for the same, scope by scope.

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// actor is the part that a host plays.
type actor string

const (
	client   actor = "client"   // dials and opens streams
	server   actor = "server"   // serves them
	relay    actor = "relay"    // stands between them, on the last road
	stranger actor = "stranger" // is not wanted by anybody
)

// cast assigns the parts to peers. It is the same in both worlds.
type cast map[actor]identity

// accounts is what the scopes of one manager hold, without those that hold
// nothing. Peers are named by the parts that they play.
type accounts map[string]network.ScopeStat

// accountsOf reads a Stat of either make.
func (c cast) accountsOf(system, transient network.ScopeStat, services map[string]network.ScopeStat,
	protocols map[protocol.ID]network.ScopeStat, peers map[peer.ID]network.ScopeStat) accounts {
	a := accounts{"system": system, "transient": transient}
	for name, s := range services {
		a["service "+name] = s
	}
	for name, s := range protocols {
		a["protocol "+string(name)] = s
	}
	for id, s := range peers {
		a["peer "+id.String()] = s
	}
	for part, who := range c {
		a["peer "+string(part)] = peers[who.id]
		delete(a, "peer "+who.id.String())
	}
	maps.DeleteFunc(a, func(_ string, s network.ScopeStat) bool { return s == network.ScopeStat{} })
	return a
}

// kind makes managers of one make, and knows how to read what they hold.
type kind func(t *testing.T, c cast, limits string) (network.ResourceManager, func() accounts)

func upstreams(t *testing.T, c cast, limits string) (network.ResourceManager, func() accounts) {
	l, err := upstream.NewLimiterFromJSON(strings.NewReader(limits), upstream.InfiniteLimits)
	require.NoError(t, err)
	m, err := upstream.NewResourceManager(l, upstream.WithMetricsDisabled())
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m, func() accounts {
		s := m.(upstream.ResourceManagerState).Stat()
		return c.accountsOf(s.System, s.Transient, s.Services, s.Protocols, s.Peers)
	}
}

func ours(t *testing.T, c cast, limits string) (network.ResourceManager, func() accounts) {
	l, err := rcmgr.NewLimiterFromJSON(strings.NewReader(limits), rcmgr.InfiniteLimits)
	require.NoError(t, err)
	m := newManager(t, l, rcmgr.WithAdmission(rcmgr.AdmissionLinear))
	return m, func() accounts {
		s := m.Stat()
		return c.accountsOf(s.System, s.Transient, s.Services, s.Protocols, s.Peers)
	}
}

const (
	// scarceProtocol is for one inbound stream of each peer.
	scarceProtocol protocol.ID = "/rcmgr-test/scarce/1.0.0"
	// streamMemory is what one stream may take, in bytes. At the priority at
	// which the echo protocol asks, it is less.
	streamMemory = 1 << 20
	echoMost     = streamMemory * (1 + int(network.ReservationPriorityMedium)) / 256
)

// limits are those of every host, as JSON that both makes read.
func (c cast) limits() string {
	return fmt.Sprintf(`{
		"Transient":    {"ConnsInbound": 1},
		"Peer":         {%q: {"ConnsInbound": "blockAll"}},
		"ProtocolPeer": {%q: {"StreamsInbound": 1}},
		"Stream":       {"Memory": "%d"}
	}`, c[stranger].id, scarceProtocol, streamMemory)
}

// world is a set of hosts that run on managers of one make.
type world struct {
	t       *testing.T
	ctx     context.Context
	hosts   map[actor]host.Host
	holds   map[actor]func() accounts
	server  peer.AddrInfo
	pinging context.CancelFunc
	streams []network.Stream
	silent  net.Conn
}

func newWorld(t *testing.T, ctx context.Context, r road, c cast, open kind) *world {
	w := &world{t: t, ctx: network.WithAllowLimitedConn(ctx, "test"),
		hosts: map[actor]host.Host{}, holds: map[actor]func() accounts{}}
	for part, who := range c {
		m, holds := open(t, c, c.limits())
		w.holds[part] = holds
		opts := []libp2p.Option{libp2p.Identity(who.key)}
		switch {
		case part == relay:
			w.hosts[part] = newRelay(t, m, opts...)
		case part == server && r.listen != "":
			w.hosts[part] = newServer(t, m, r, opts...)
		default:
			w.hosts[part] = newHost(t, m, opts...)
		}
	}
	serveEcho(w.hosts[server])
	w.hosts[server].SetStreamHandler(scarceProtocol, echo)
	if via := w.hosts[relay]; via != nil {
		w.server = throughRelay(t, ctx, via, w.hosts[server])
		require.NoError(t, w.hosts[client].Connect(ctx, *host.InfoFromHost(via)))
	} else {
		w.server = *host.InfoFromHost(w.hosts[server])
	}
	return w
}

// What the actors do. Each says how it went, in words that must be the same in
// both worlds.

func went(err error) string {
	if err != nil {
		return "refused"
	}
	return "ok"
}

func (w *world) connect() string {
	return went(w.hosts[client].Connect(w.ctx, w.server))
}

// ping pings once and keeps the stream.
func (w *world) ping() string {
	ctx, cancel := context.WithCancel(w.ctx)
	w.pinging = cancel
	return went((<-ping.Ping(ctx, w.hosts[client], w.server.ID)).Error)
}

func (w *world) open(p protocol.ID, memory int) string {
	s, err := openEcho(w.ctx, w.hosts[client], w.server.ID, p, memory)
	if err == nil {
		w.streams = append(w.streams, s)
	}
	return went(err)
}

// openMute opens a stream that never says what it is for.
func (w *world) openMute() string {
	s, err := w.hosts[client].Network().NewStream(w.ctx, w.server.ID)
	if err == nil {
		w.streams = append(w.streams, s)
		_, err = s.Write([]byte{19}) // QUIC tells the other side now only
	}
	return went(err)
}

func (w *world) resetStreams() string {
	for _, s := range w.streams {
		s.Reset()
	}
	w.streams = nil
	return ""
}

func (w *world) closeStream() string {
	s := w.streams[0]
	w.streams = w.streams[1:]
	return went(s.Close())
}

func (w *world) stopPing() string {
	w.pinging()
	return ""
}

// takeForAnother dials the server's address for a peer that is not there.
func (w *world) takeForAnother() string {
	nobody := peer.AddrInfo{ID: newIdentity(w.t).id, Addrs: w.server.Addrs}
	c, err := dialRaw(w.ctx, w.hosts[client], nobody)
	if err == nil {
		c.Close()
	}
	return went(err)
}

// strangerComes says nothing of how it went: whether the handshake is over
// before the refusal arrives is a matter of luck.
func (w *world) strangerComes() string {
	w.hosts[stranger].Connect(w.ctx, w.server)
	return ""
}

// fallSilent opens a connection and never shakes hands. It leaves no room for
// another one.
func (w *world) fallSilent() string {
	_, addr, err := manet.DialArgs(w.server.Addrs[0])
	require.NoError(w.t, err)
	w.silent, err = net.Dial("tcp4", addr)
	require.NoError(w.t, err)
	eventually(w.t, func() bool { return w.holds[server]()["transient"].NumConnsInbound == 1 },
		"the server does not account for a connection that shakes no hands")
	c, err := dialRaw(w.ctx, w.hosts[client], w.server)
	if err == nil {
		c.Close()
	}
	return went(err)
}

func (w *world) hangUp() string { return went(w.silent.Close()) }

func (w *world) disconnect() string {
	return went(w.hosts[client].Network().ClosePeer(w.server.ID))
}

func (w *world) close(part actor) string { return went(w.hosts[part].Close()) }

// rest is what is open while the traffic rests.
type rest struct {
	linked       bool // client and server have a connection
	streams      int  // from client to server, over it
	silent       int  // connections that shake no hands
	noServer     bool // its host is closed
	noClient     bool
	viaTransient int // streams, of those above, that never said what they are for
}

// step is something that happens, how it goes, and what is open thereafter.
type step struct {
	what  string
	do    func(*world) string
	goes  string
	rest  rest
	roads string // where it applies, if not on all
}

const (
	overTCP    = "tcp"
	notRelayed = "tcp quic websocket webtransport"
)

var script = []step{
	{"nothing yet", func(*world) string { return "" }, "", rest{}, ""},
	{"dial for somebody who is not there", (*world).takeForAnother, "refused", rest{}, ""},
	{"connect", (*world).connect, "ok", rest{linked: true}, ""},
	{"ping on", (*world).ping, "ok", rest{linked: true, streams: 1}, ""},
	{"a stream with memory", func(w *world) string { return w.open(echoProtocol, echoMemory) }, "ok",
		rest{linked: true, streams: 2}, ""},
	{"a stream with the most memory", func(w *world) string { return w.open(echoProtocol, echoMost) }, "ok",
		rest{linked: true, streams: 3}, ""},
	{"a stream with one byte more", func(w *world) string { return w.open(echoProtocol, echoMost+1) }, "refused",
		rest{linked: true, streams: 3}, ""},
	{"a stream of a scarce protocol", func(w *world) string { return w.open(scarceProtocol, 1) }, "ok",
		rest{linked: true, streams: 4}, ""},
	{"another one", func(w *world) string { return w.open(scarceProtocol, 1) }, "refused",
		rest{linked: true, streams: 4}, ""},
	{"a stream of a protocol that nobody serves", func(w *world) string { return w.open("/rcmgr-test/none", 1) }, "refused",
		rest{linked: true, streams: 4}, ""},
	{"a stream that never says what it is for", (*world).openMute, "ok",
		rest{linked: true, streams: 5, viaTransient: 1}, ""},
	{"close a stream", (*world).closeStream, "ok", rest{linked: true, streams: 4, viaTransient: 1}, ""},
	{"reset all but the ping", (*world).resetStreams, "", rest{linked: true, streams: 1}, ""},
	{"ping no more", (*world).stopPing, "", rest{linked: true}, ""},
	{"the stranger comes", (*world).strangerComes, "", rest{linked: true}, notRelayed},
	{"no handshake, and no room for another", (*world).fallSilent, "refused", rest{linked: true, silent: 1}, overTCP},
	{"it hangs up", (*world).hangUp, "ok", rest{linked: true}, overTCP},
	{"disconnect", (*world).disconnect, "ok", rest{}, ""},
	{"connect again", (*world).connect, "ok", rest{linked: true}, ""},
	{"a stream that is cut", func(w *world) string { return w.open(echoProtocol, echoMemory) }, "ok",
		rest{linked: true, streams: 1}, ""},
	{"disconnect below it", (*world).disconnect, "ok", rest{}, ""},
	{"connect a third time", (*world).connect, "ok", rest{linked: true}, ""},
	{"another stream that is cut", func(w *world) string { return w.open(echoProtocol, echoMemory) }, "ok",
		rest{linked: true, streams: 1}, ""},
	{"the server closes", func(w *world) string { return w.close(server) }, "ok", rest{noServer: true}, ""},
	{"the client closes", func(w *world) string { return w.close(client) }, "ok", rest{noServer: true, noClient: true}, ""},
	{"the relay closes", func(w *world) string { return w.close(relay) }, "ok",
		rest{noServer: true, noClient: true}, "relay"},
}

// wants returns the connections and streams that each actor must have.
func (r rest) wants(relayed bool) map[actor]network.ScopeStat {
	n := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	c := network.ScopeStat{NumConnsOutbound: n(r.linked), NumStreamsOutbound: r.streams}
	s := network.ScopeStat{NumConnsInbound: n(r.linked) + r.silent, NumStreamsInbound: r.streams}
	want := map[actor]network.ScopeStat{stranger: {}}
	if relayed {
		// Both have a connection to the relay, which has one stream with each
		// of them for the connection that it relays.
		c.NumConnsOutbound += n(!r.noClient)
		s.NumConnsOutbound += n(!r.noServer)
		c.NumStreamsOutbound += n(r.linked)
		s.NumStreamsInbound += n(r.linked)
		want[relay] = network.ScopeStat{
			NumConnsInbound:    n(!r.noClient) + n(!r.noServer),
			NumStreamsInbound:  n(r.linked),
			NumStreamsOutbound: n(r.linked),
		}
	}
	want[client], want[server] = c, s
	return want
}

// settled reports whether the actors of a world hold the connections and streams that
// they should.
func (w *world) settled(r rest) bool {
	for part, want := range r.wants(w.hosts[relay] != nil) {
		now := w.holds[part]()
		all, transient := now["system"], now["transient"]
		all.Memory, all.NumFD = 0, 0
		if all != want || transient.NumStreamsInbound+transient.NumStreamsOutbound > r.viaTransient {
			return false
		}
	}
	return true
}

// excuse makes up for the known differences. A relayed connection holds no
// descriptor with ours; with upstream's, inbound ones do.
func excuse(a accounts, part actor, r rest, relayed bool) accounts {
	if relayed && r.linked && part == server {
		for _, scope := range []string{"system", "peer " + string(client)} {
			s := a[scope]
			s.NumFD++
			a[scope] = s
		}
	}
	return a
}

// atRest is how often in a row both worlds must be seen to agree.
const atRest = 3

func TestHostsHoldTheSameOnUpstreamsManager(t *testing.T) {
	relayed := road{name: "relay"}
	for _, r := range append(append([]road(nil), roads...), relayed) {
		t.Run(r.name, func(t *testing.T) {
			ctx := onHosts(t)
			c := cast{client: newIdentity(t), server: newIdentity(t), stranger: newIdentity(t)}
			if r == relayed {
				c[relay] = newIdentity(t)
			}
			theirs, own := newWorld(t, ctx, r, c, upstreams), newWorld(t, ctx, r, c, ours)
			for _, s := range script {
				if s.roads != "" && !strings.Contains(" "+s.roads+" ", " "+r.name+" ") {
					continue
				}
				require.Equal(t, s.goes, s.do(theirs), "%s: on upstream's", s.what)
				require.Equal(t, s.goes, s.do(own), "%s: on ours", s.what)
				requireAgreement(t, s, theirs, own)
			}
		})
	}
}

// requireAgreement waits until the traffic has come to rest in both worlds, and
// both account for the same.
func requireAgreement(t *testing.T, s step, theirs, own *world) {
	t.Helper()
	relayed := own.hosts[relay] != nil
	both := func(part actor) (accounts, accounts) {
		return theirs.holds[part](), excuse(own.holds[part](), part, s.rest, relayed)
	}
	agreed := 0
	within(patience, func() bool {
		agreed++
		if !theirs.settled(s.rest) || !own.settled(s.rest) {
			agreed = 0
		}
		for part := range own.holds {
			if a, b := both(part); !maps.Equal(a, b) {
				agreed = 0
			}
		}
		return agreed == atRest
	})
	if agreed == atRest {
		return
	}
	for part := range own.holds {
		a, b := both(part)
		require.Equal(t, a, b, "%s: the %s's managers", s.what, part)
	}
	t.Fatalf("%s: both agree, but not with the script, which wants %+v", s.what, s.rest.wants(relayed))
}
