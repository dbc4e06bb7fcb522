package replay

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// writers has the managers that write a trace: this package's, and go-libp2p's.
var writers = map[string]func(t *testing.T, trace string, limits rcmgr.PartialLimitConfig) network.ResourceManager{
	"ours": func(t *testing.T, trace string, limits rcmgr.PartialLimitConfig) network.ResourceManager {
		rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)), rcmgr.WithTrace(trace), rcmgr.WithRefusalLog(0))
		require.NoError(t, err)
		return rm
	},
	"upstream": func(t *testing.T, trace string, limits rcmgr.PartialLimitConfig) network.ResourceManager {
		text, err := limits.MarshalJSON()
		require.NoError(t, err)
		limiter, err := upstream.NewLimiterFromJSON(bytes.NewReader(text), upstream.InfiniteLimits)
		require.NoError(t, err)
		rm, err := upstream.NewResourceManager(limiter, upstream.WithTrace(trace), upstream.WithMetricsDisabled(),
			upstream.WithConnRateLimiters(new(rate.Limiter)))
		require.NoError(t, err)
		return rm
	},
}

// traced returns the story of what f does with a manager.
func traced(t *testing.T, writer string, limits rcmgr.PartialLimitConfig, f func(network.ResourceManager)) *Story {
	trace := filepath.Join(t.TempDir(), "rcmgr.json.gz")
	rm := writers[writer](t, trace, limits)
	f(rm)
	require.NoError(t, rm.Close())
	file, err := os.Open(trace)
	require.NoError(t, err)
	defer file.Close()
	s, err := Read(file)
	require.NoError(t, err)
	return s
}

func tried(t *testing.T, s *Story, limits rcmgr.PartialLimitConfig) *Answers {
	a, err := s.Replay(limits.Build(rcmgr.InfiniteLimits), rcmgr.AdmissionLinear)
	require.NoError(t, err)
	return a
}

// player does random things with a manager, and records its requests. Every move is made
// before another item of its kind is opened, so that every step can be assigned.
type player struct {
	t     *testing.T
	r     *rand.Rand
	rm    network.ResourceManager
	story Story
	open  []opened
	peers []string
}

type opened struct {
	it    *item
	scope network.ResourceScopeSpan
}

// testSeed returns the seed of a random test: RCMGR_SEED in the environment, or the time.
func testSeed(t *testing.T) uint64 {
	seed, _ := strconv.ParseUint(os.Getenv("RCMGR_SEED"), 0, 64)
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with RCMGR_SEED=%d", seed)
	return seed
}

func newPlayer(t *testing.T, seed, stream uint64) *player {
	return &player{t: t, r: rand.New(rand.NewPCG(seed, stream)), peers: peers(t, 5)}
}

// step records a request.
func (p *player) step(st step, err error) {
	if err != nil {
		p.t.Error(err)
	}
	st.at = time.Now()
	p.story.steps = append(p.story.steps, &st)
}

func (p *player) play(rm network.ResourceManager, rounds int) {
	p.rm = rm
	for range rounds {
		switch p.r.IntN(11) {
		case 0, 1:
			p.openConn()
		case 2, 3:
			p.openStream()
		case 4:
			p.openSpan()
		case 5, 6:
			if len(p.open) > 0 {
				p.hold(p.open[p.r.IntN(len(p.open))], 1+p.r.IntN(100))
			}
		default:
			if len(p.open) > 0 {
				p.done(p.r.IntN(len(p.open)))
			}
		}
	}
	for len(p.open) > 0 {
		p.done(0)
	}
}

func (p *player) hold(o opened, n int) {
	p.step(step{do: reserve, it: o.it, bytes: int64(n), priority: 255}, o.scope.ReserveMemory(n, 255))
	if p.r.IntN(2) == 0 {
		o.scope.ReleaseMemory(n)
		p.step(step{do: release, it: o.it, bytes: int64(n)}, nil)
	}
}

func (p *player) done(i int) {
	o := p.open[i]
	o.scope.Done()
	p.step(step{do: done, it: o.it}, nil)
	p.open = slices.Delete(p.open, i, i+1)
}

func (p *player) dir() network.Direction { return network.Direction(1 + p.r.IntN(2)) }

func (p *player) peer() string { return p.peers[p.r.IntN(len(p.peers))] }

func (p *player) openConn() {
	it := &item{class: "conn", dir: p.dir(), fd: p.r.IntN(2) == 0, open: true}
	c, err := p.rm.OpenConnection(it.dir, it.fd, nil)
	p.step(step{do: openConn, it: it}, err)
	p.open = append(p.open, opened{it, c})
	if p.r.IntN(4) > 0 {
		it.peer, it.attached = p.peer(), true
		p.step(step{do: setPeer, it: it, name: it.peer}, c.SetPeer(peerID(it.peer)))
	}
}

func (p *player) openStream() {
	it := &item{class: "stream", dir: p.dir(), peer: p.peer(), open: true}
	s, err := p.rm.OpenStream(peerID(it.peer), it.dir)
	p.step(step{do: openStream, it: it}, err)
	p.open = append(p.open, opened{it, s})
	if p.r.IntN(4) == 0 {
		return
	}
	it.protocol = "/p/" + strconv.Itoa(p.r.IntN(3))
	p.step(step{do: setProtocol, it: it, name: it.protocol}, s.SetProtocol(protocol.ID(it.protocol)))
	if p.r.IntN(2) == 0 {
		it.service = "s"
		p.step(step{do: setService, it: it, name: it.service}, s.SetService(it.service))
	}
}

func (p *player) openSpan() {
	it := &item{class: "span", scope: Class{Class: "peer", Peer: p.peer()}}
	err := p.rm.ViewPeer(peerID(it.scope.Peer), func(s network.PeerScope) error {
		span, err := s.BeginSpan()
		p.open = append(p.open, opened{it, span})
		return err
	})
	p.step(step{do: openSpan, it: it}, err)
}

func peers(t *testing.T, n int) (ids []string) {
	for i := range n {
		// This is the form of a key's multihash: 18 32, then 32 bytes.
		id, err := peer.IDFromBytes(append([]byte{18, 32}, bytes.Repeat([]byte{byte(i + 1)}, 32)...))
		require.NoError(t, err)
		ids = append(ids, id.String())
	}
	return ids
}

// The requests read from a trace are those that were made: other limits decide them in
// the same way.
func TestRequestsAreReadBackFromATrace(t *testing.T) {
	limits := rcmgr.PartialLimitConfig{
		System:              rcmgr.ResourceLimits{ConnsInbound: 20, Streams: 40, FD: 18, Memory: 2000},
		Transient:           rcmgr.ResourceLimits{ConnsInbound: 6, StreamsInbound: 6},
		PeerDefault:         rcmgr.ResourceLimits{Conns: 7, Streams: 8, Memory: 300},
		ProtocolDefault:     rcmgr.ResourceLimits{Streams: 12},
		ProtocolPeerDefault: rcmgr.ResourceLimits{StreamsInbound: 1},
		ServicePeerDefault:  rcmgr.ResourceLimits{Streams: 3},
	}
	for writer := range writers {
		t.Run(writer, func(t *testing.T) {
			p := newPlayer(t, testSeed(t), 0)
			told := traced(t, writer, rcmgr.PartialLimitConfig{}, func(rm network.ResourceManager) { p.play(rm, 3000) })
			require.Zero(t, told.unclear)
			require.Len(t, told.steps, len(p.story.steps))
			want, got := tried(t, &p.story, limits), tried(t, told, limits)
			require.Equal(t, want.Tallies, got.Tallies)
			require.Equal(t, want.Refusers, got.Refusers)
			for _, what := range []string{"inbound connection", "inbound stream", "connection to its peer", "stream to its protocol", "stream to its service", "memory"} {
				require.NotZero(t, got.Tallies[what].NowRefused, what)
				require.NotZero(t, got.Tallies[what].StillAdmitted, what)
			}
			require.Zero(t, got.State.Scopes[0].Use)
			for what, c := range tried(t, told, rcmgr.PartialLimitConfig{}).Tallies {
				require.Equal(t, Tally{StillAdmitted: c.StillAdmitted}, *c, what)
			}
		})
	}
}

// The events of many goroutines are interleaved. Then some steps cannot be assigned: if
// two streams of one peer move to one protocol, the event does not say which of them it
// was, and one may get a service later. There are few such steps if all events are in one
// order, as in our traces.
func TestATraceOfManyAtWorkIsRead(t *testing.T) {
	for writer := range writers {
		t.Run(writer, func(t *testing.T) {
			told := traced(t, writer, rcmgr.PartialLimitConfig{}, func(rm network.ResourceManager) {
				var players sync.WaitGroup
				seed := testSeed(t)
				for i := range uint64(4) {
					p := newPlayer(t, seed, i)
					players.Go(func() { p.play(rm, 1000) })
				}
				players.Wait()
			})
			few := map[string]int{"ours": len(told.steps) / 200, "upstream": len(told.steps) / 20}[writer]
			require.NotZero(t, few)
			require.Less(t, told.unclear, few)
			a := tried(t, told, rcmgr.PartialLimitConfig{})
			for what, c := range a.Tallies {
				require.Equal(t, Tally{StillAdmitted: c.StillAdmitted}, *c, what)
			}
			require.Zero(t, a.State.Scopes[0].Use)
		})
	}
}

var in = network.DirInbound

// A request that a trace saw refused is made again, and goes on if it is admitted now.
func TestRequestsThatATraceSawRefusedAreReplayed(t *testing.T) {
	strict := rcmgr.PartialLimitConfig{
		System:              rcmgr.ResourceLimits{ConnsInbound: 3, Memory: 100},
		Transient:           rcmgr.ResourceLimits{StreamsInbound: 1},
		PeerDefault:         rcmgr.ResourceLimits{ConnsInbound: 1, StreamsOutbound: 1},
		ProtocolPeerDefault: rcmgr.ResourceLimits{StreamsInbound: 1},
	}
	id := peers(t, 1)[0]
	refused := func(err error) { require.ErrorIs(t, err, network.ErrResourceLimitExceeded) }
	script := func(rm network.ResourceManager) {
		var conns []network.ConnManagementScope
		for range 3 {
			c, err := rm.OpenConnection(in, true, nil)
			require.NoError(t, err)
			conns = append(conns, c)
		}
		_, err := rm.OpenConnection(in, true, nil)
		refused(err)
		require.NoError(t, conns[0].SetPeer(peerID(id)))
		refused(conns[1].SetPeer(peerID(id)))
		conns[1].Done()
		refused(conns[2].ReserveMemory(101, 255))
		require.NoError(t, conns[2].ReserveMemory(100, 255))
		conns[2].ReleaseMemory(100)

		first, err := rm.OpenStream(peerID(id), in)
		require.NoError(t, err)
		_, err = rm.OpenStream(peerID(id), in)
		refused(err)
		require.NoError(t, first.SetProtocol("/p"))
		second, err := rm.OpenStream(peerID(id), in)
		require.NoError(t, err)
		refused(second.SetProtocol("/p"))
		second.Done()
		out, err := rm.OpenStream(peerID(id), network.DirOutbound)
		require.NoError(t, err)
		_, err = rm.OpenStream(peerID(id), network.DirOutbound)
		refused(err)
		for _, s := range []interface{ Done() }{out, first, conns[0], conns[2]} {
			s.Done()
		}
	}
	for writer := range writers {
		t.Run(writer, func(t *testing.T) {
			s := traced(t, writer, strict, script)
			require.Zero(t, s.unclear)
			all := func(now, out int) map[string]*Tally {
				return map[string]*Tally{
					"inbound connection":     {StillAdmitted: 3, NowAdmitted: now, StillRefused: out},
					"inbound stream":         {StillAdmitted: 2, NowAdmitted: now, StillRefused: out},
					"outbound stream":        {StillAdmitted: 1, NowAdmitted: now, StillRefused: out},
					"connection to its peer": {StillAdmitted: 1, NowAdmitted: now, StillRefused: out},
					"stream to its protocol": {StillAdmitted: 1, NowAdmitted: now, StillRefused: out},
					"memory":                 {StillAdmitted: 1, NowAdmitted: now, StillRefused: out},
				}
			}
			require.Equal(t, all(0, 1), tried(t, s, strict).Tallies, "the same limits")
			require.Equal(t, all(1, 0), tried(t, s, rcmgr.PartialLimitConfig{}).Tallies, "no limits")
			require.Equal(t, all(0, 1), tried(t, s, strict).Tallies, "the same limits, again")
		})
	}
}

// A guest waits as long as others, then gets a peer of its own, and ends.
func TestAGuestThatIsAdmittedByOtherLimitsStaysAsLongAsOthers(t *testing.T) {
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	other := &item{class: "conn", dir: in, open: true, attached: true, peer: "p", from: at(0), placed: at(2), until: at(10)}
	guest, later := &item{class: "conn", dir: in}, &item{class: "conn", dir: in}
	probe := func(seconds int) *step {
		return &step{at: at(seconds), do: openConn, it: &item{class: "conn", dir: in, end: seconds}}
	}
	s := &Story{from: at(0), until: at(40), steps: []*step{
		{at: at(0), do: openConn, it: other},
		{at: at(2), do: setPeer, it: other, name: "p"},
		{at: at(10), do: done, it: other},
		{at: at(20), do: openConn, it: guest, refused: true},
		{at: at(21), do: openConn, it: later, refused: true}, // the guest holds the transient scope's place
		probe(23), probe(29), probe(31),
	}}
	a := tried(t, s, rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{Conns: 1}})
	require.Equal(t, Tally{StillAdmitted: 2, NowAdmitted: 1, NowRefused: 2, StillRefused: 1}, *a.Tallies["inbound connection"])
	a = tried(t, s, rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: 2}})
	require.Equal(t, Tally{StillAdmitted: 2, NowAdmitted: 2, NowRefused: 2}, *a.Tallies["inbound connection"], "31 finds a place, 29 does not")
}

// A peer whose connection is refused opens no streams. A peer of which the trace has only
// streams keeps them.
func TestThePeerOfARefusedConnectionOpensNoStreams(t *testing.T) {
	ids := peers(t, 2)
	told := traced(t, "ours", rcmgr.PartialLimitConfig{}, func(rm network.ResourceManager) {
		c, err := rm.OpenConnection(in, true, nil)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(peerID(ids[0])))
		for _, id := range ids {
			s, err := rm.OpenStream(peerID(id), in)
			require.NoError(t, err)
			require.NoError(t, s.SetProtocol("/p"))
			s.Done()
		}
		c.Done()
	})
	a := tried(t, told, rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{Conns: rcmgr.BlockAllLimit}})
	require.Equal(t, map[string]*Tally{
		"inbound connection":     {NowRefused: 1},
		"connection to its peer": {NotAsked: 1},
		"inbound stream":         {StillAdmitted: 1, NotAsked: 1},
		"stream to its protocol": {StillAdmitted: 1, NotAsked: 1},
	}, a.Tallies)
}

func TestAWrongTraceIsAnErrorThatNamesItsPlace(t *testing.T) {
	line := `{"Time":"2026-01-02T03:04:05Z","Type":"start"}` + "\n"
	for text, want := range map[string]string{
		"":                          "it is empty",
		line + "x\n" + line:         "line 2: expected an event of a trace: invalid character 'x'",
		line + "{}\n":               "line 2: expected an event of a trace, which has Time and Type",
		line + `{"Type": 7}` + "\n": "line 2: expected an event of a trace",
		"\x1f\x8bno":                "unexpected EOF",
	} {
		_, err := Read(strings.NewReader(text))
		require.ErrorContains(t, err, want, "%q", text)
	}
}

// A process that is killed leaves a trace without an end.
func TestATraceThatIsCutIsReadAsFarAsItGoes(t *testing.T) {
	var whole bytes.Buffer
	w := gzip.NewWriter(&whole)
	for i := range 1000 {
		fmt.Fprintf(w, `{"Time":"2026-01-02T03:04:05.%06dZ","Type":"create_scope","Name":"conn-%d","Scope":{"Class":"conn","Conn":"%d"}}`+"\n", i, i, i)
	}
	require.NoError(t, w.Close())
	for _, cut := range []int{whole.Len() / 2, whole.Len() - 1} {
		s, err := Read(bytes.NewReader(whole.Bytes()[:cut]))
		require.NoError(t, err)
		require.True(t, s.cut)
		require.Positive(t, s.events)
	}
	s, err := Read(&whole)
	require.NoError(t, err)
	require.False(t, s.cut)
	require.Equal(t, 1000, s.events)
}

// A trace that was unpacked before it was cut off ends in the middle of its last line, and is read
// as far as it goes, like one that is still compressed. In any other line, that is an error.
func TestAnUnpackedTraceThatIsCutOffIsReadAsFarAsItGoes(t *testing.T) {
	start := `{"Time":"2026-01-02T03:04:05Z","Type":"start"}` + "\n"
	half := `{"Time":"2026-01-02T03:04:06Z","Type":"add_co`
	story, err := Read(strings.NewReader(start + half))
	require.NoError(t, err)
	require.Equal(t, []string{"The trace ends in the middle of an event; everything before was read."}, story.Gaps())
	_, err = Read(strings.NewReader(start + half + "\n" + start))
	require.ErrorContains(t, err, "line 2: expected an event of a trace")
	_, err = Read(strings.NewReader(start + "rubbish"))
	require.ErrorContains(t, err, "line 2: expected an event of a trace")
	_, err = Read(strings.NewReader(start + `{"Time":"2026-01-02T03:04:06Z","Type":"teleport"}` + "\n"))
	require.EqualError(t, err, `line 2: no such type of event: "teleport"; the trace may be of a later version`)
	_, err = Read(strings.NewReader(half))
	require.EqualError(t, err, "it is cut off before the end of its first event")
	_, err = Read(io.MultiReader(strings.NewReader(start), strings.NewReader(strings.Repeat(" ", maxLine+1))))
	require.EqualError(t, err, "line 2 has more than 64 MiB, which no event has")
}
