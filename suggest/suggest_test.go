package suggest_test

import (
	"bytes"
	"compress/gzip"
	"container/heap"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/replay"
	"github.com/weir-p2p/rcmgr/suggest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// soakTrace is the trace of a relay in a run of examples/soak with 8 hosts.
const soakTrace = "testdata/soak.json.gz"

var machine = suggest.Options{Memory: 2 * gib, FileDescriptors: 4096}

func propose(t *testing.T, o suggest.Options, files ...string) *suggest.Proposal {
	var seen suggest.Evidence
	for _, f := range files {
		require.NoError(t, seen.ReadFile(f))
	}
	p, err := seen.Propose(o)
	require.NoError(t, err)
	return p
}

func reasonFor(t *testing.T, p *suggest.Proposal, place string) suggest.Reason {
	i := slices.IndexFunc(p.Reasons, func(r suggest.Reason) bool { return r.Place == place })
	require.GreaterOrEqual(t, i, 0, "there is no reason for %s", place)
	return p.Reasons[i]
}

// readBack writes the proposed file, and reads it as an operator's node does.
func readBack(t *testing.T, p *suggest.Proposal) rcmgr.PartialLimitConfig {
	var file bytes.Buffer
	require.NoError(t, p.WriteLimits(&file))
	limits, err := rcmgr.ReadLimits(&file)
	require.NoError(t, err)
	return limits
}

// One peer gets no more of a service or protocol than any of these may have, so that each limit of
// the proposed file can be reached.
func TestALimitOfOnePeerIsNoMoreThanThatOfAService(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	for i := range 3 {
		s, err := rm.OpenStream(peer.ID(fmt.Sprint("peer ", i)), network.DirOutbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/p"))
		require.NoError(t, s.SetService("s"))
	}
	now := rm.Snapshot()
	now.Scopes = slices.DeleteFunc(now.Scopes, func(s rcmgr.ScopeState) bool { // they have been idle, and collected
		return s.Kind == rcmgr.KindService || s.Kind == rcmgr.KindProtocol
	})
	var seen suggest.Evidence
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	limits := readBack(t, p)
	require.NotZero(t, limits.ServicePeerDefault.StreamsInbound)
	built := limits.Build(rcmgr.InfiniteLimits)
	require.Empty(t, built.Warnings())
}

// The file that is proposed from a trace refuses nothing of that trace, whatever limits it is
// laid on.
func TestTheProposedFileRefusesNothingOfItsTrace(t *testing.T) {
	defaults := rcmgr.DefaultLimits
	rcmgr.SetDefaultServiceLimits(&defaults)
	small := defaults.Scale(128*mib, 256)
	for name, base := range map[string]*rcmgr.ConcreteLimitConfig{"a node": nil, "no limits": &rcmgr.InfiniteLimits, "default limits": &small} {
		t.Run(name, func(t *testing.T) {
			o := machine
			o.Base = base
			p := propose(t, o, soakTrace)
			require.Empty(t, p.Refused)
			if base == nil {
				node, err := rcmgr.NodeLimits{MaxMemory: machine.Memory, MaxFileDescriptors: machine.FileDescriptors}.Build()
				require.NoError(t, err)
				base = &node
			}
			answers := replayed(t, soakTrace, readBack(t, p).Build(*base))
			require.Zero(t, answers.NowRefused())
			require.Positive(t, answers.Tallies["inbound connection"].StillAdmitted)
		})
	}
}

func replayed(t *testing.T, file string, limits rcmgr.ConcreteLimitConfig) *replay.Answers {
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	story, err := replay.Read(f)
	require.NoError(t, err)
	answers, err := story.Replay(limits, 0)
	require.NoError(t, err)
	return answers
}

// flood does what the attackers of examples/flood do, all at once, and returns what they hold
// of the system scope.
func flood(t *testing.T, limits rcmgr.ConcreteLimitConfig, attackers int) network.ScopeStat {
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithRefusalLog(0), rcmgr.WithMetricsDisabled())
	require.NoError(t, err)
	defer func() { require.NoError(t, rm.Close()) }()
	connect := func(id peer.ID) {
		if c, err := rm.OpenConnection(network.DirInbound, true, nil); err == nil && id != "" && c.SetPeer(id) != nil {
			c.Done()
		}
	}
	for i := range attackers {
		for identity := range 12 { // many connections of many identities
			for range 5 {
				connect(peer.ID(fmt.Sprintf("attacker %d as %d", i, identity)))
			}
		}
		for range 40 { // connections that never shake hands
			connect("")
		}
		id := peer.ID(fmt.Sprintf("attacker %d", i))
		connect(id)
		stream := func(service string, bytes int) {
			s, err := rm.OpenStream(id, network.DirInbound)
			if err != nil {
				return
			}
			if s.ReserveMemory(256*kib, network.ReservationPriorityAlways) != nil { // yamux
				s.Done()
				return
			}
			if service != "" && (s.SetProtocol("/flood/bulk") != nil || s.SetService(service) != nil ||
				s.ReserveMemory(bytes, network.ReservationPriorityAlways) != nil) {
				s.Done()
			}
		}
		for range 64 { // streams that never say a protocol
			stream("", 0)
		}
		for range 16 { // answers that are never read
			stream("flood.bulk", mib)
		}
	}
	return rm.Snapshot().Scopes[0].Use
}

// Attackers hold less than a tenth of what they hold without limits.
func TestTheProposedFileCutsWhatAttackersHoldByNineTenths(t *testing.T) {
	const attackers = 24
	limits := readBack(t, propose(t, machine, soakTrace))
	free := flood(t, rcmgr.InfiniteLimits, attackers)
	held := flood(t, limits.Build(rcmgr.InfiniteLimits), attackers)
	t.Logf("without limits %+v, with the proposed ones %+v", free, held)
	require.Greater(t, free.NumConnsInbound, 1000)
	require.LessOrEqual(t, held.NumConnsInbound, free.NumConnsInbound/10)
	require.LessOrEqual(t, held.NumStreamsInbound, free.NumStreamsInbound/10)
	require.LessOrEqual(t, held.NumFD, free.NumFD/10)
	require.LessOrEqual(t, held.Memory, free.Memory/10)
}

// floodInTurn does what eight attackers of examples/flood do at one instant, when each is at one of
// the five attacks: those that say a protocol come first. Every other attacker comes by QUIC, which
// takes no descriptors and no windows. It returns what they hold of the system scope.
func floodInTurn(t *testing.T, limits rcmgr.ConcreteLimitConfig) network.ScopeStat {
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithRefusalLog(0), rcmgr.WithMetricsDisabled())
	require.NoError(t, err)
	defer func() { require.NoError(t, rm.Close()) }()
	const always = network.ReservationPriorityAlways
	connect := func(id peer.ID, tcp bool) network.ConnManagementScope {
		c, err := rm.OpenConnection(network.DirInbound, tcp, nil)
		if err == nil && id != "" && c.SetPeer(id) != nil {
			c.Done()
			return nil
		}
		return c
	}
	window := func(c network.ConnManagementScope, tcp bool) bool {
		return !tcp || c.ReserveMemory(256*kib, always) == nil
	}
	stream := func(c network.ConnManagementScope, id peer.ID, tcp bool, service string, bytes int) {
		s, err := rm.OpenStream(id, network.DirInbound)
		if err != nil {
			return
		}
		if !window(c, tcp) {
			s.Done()
		} else if service != "" && (s.SetProtocol(protocol.ID("/"+service)) != nil || s.SetService(service) != nil || s.ReserveMemory(bytes, always) != nil) {
			s.Done()
			if tcp {
				c.ReleaseMemory(256 * kib)
			}
		}
	}
	for i, attack := range []string{"requests", "unread", "silent", "silent", "half open", "identities", "half open", "identities"} {
		tcp := i%2 == 1
		id := peer.ID(fmt.Sprint("attacker ", i))
		switch attack {
		case "half open":
			for range 40 {
				connect("", true)
			}
			continue
		case "identities":
			tcp = i < 6
			for n := range 60 {
				id := peer.ID(fmt.Sprintf("attacker %d as %d", i, n/5))
				if c := connect(id, tcp); c != nil { // the victim asks who it is
					if s, err := rm.OpenStream(id, network.DirOutbound); err == nil && !window(c, tcp) {
						s.Done()
					}
				}
			}
			continue
		}
		c := connect(id, tcp)
		for n := range map[string]int{"silent": 64, "requests": 6, "unread": 16}[attack] {
			switch attack {
			case "silent":
				stream(c, id, tcp, "", 0)
			case "requests":
				stream(c, id, tcp, "flood.fetch", 256*kib)
			case "unread":
				stream(c, id, tcp, "flood.bulk", []int{mib, mib / 16}[n%2])
			}
		}
	}
	return rm.Snapshot().Scopes[0].Use
}

// Few attackers, too, hold less than a tenth at their peak. What they may hold of protocols that no
// peer of the node has used decides that.
func TestTheProposedFileCutsWhatFewAttackersHoldAtTheirPeakByNineTenths(t *testing.T) {
	free := floodInTurn(t, rcmgr.InfiniteLimits)
	held := floodInTurn(t, readBack(t, propose(t, machine, soakTrace)).Build(rcmgr.InfiniteLimits))
	t.Logf("without limits %+v, with the proposed ones %+v", free, held)
	require.LessOrEqual(t, held.NumConnsInbound, free.NumConnsInbound/10)
	require.LessOrEqual(t, held.NumStreamsInbound, free.NumStreamsInbound/10)
	require.LessOrEqual(t, held.NumFD, free.NumFD/10)
	require.LessOrEqual(t, held.Memory, free.Memory/10)
}

// A protocol that no peer has used gets a stream of each of four peers, and the memory of their
// windows. One that peers have used gets a stream on each connection of four peers.
func TestAProtocolThatWasNeverSeenGetsLessThanOneThatWas(t *testing.T) {
	p := propose(t, machine, soakTrace)
	for _, kind := range []string{"Service", "Protocol"} {
		r := reasonFor(t, p, kind+"Default.StreamsInbound")
		require.EqualValues(t, 4, r.Value)
		require.Equal(t, suggest.RuleFloor, r.Rule)
		require.Contains(t, r.Why, "None was seen. It is for those that no peer has used")
		require.EqualValues(t, mib, reasonFor(t, p, kind+"Default.Memory").Value)
	}
	require.EqualValues(t, 16, p.Limits.Protocol["/rcmgr-soak/fetch/1.0.0"].StreamsInbound)
	require.EqualValues(t, 4*mib, p.Limits.Protocol["/rcmgr-soak/fetch/1.0.0"].Memory)
}

// Ten runs of one node, which differ by chance alone, propose limits within 10 % of each other.
func TestTenRunsOfANodeProposeNearlyTheSame(t *testing.T) {
	if testing.Short() {
		t.Skip("simulates ten runs of a node")
	}
	values := make(map[string][]int64)
	for seed := range uint64(10) {
		file := filepath.Join(t.TempDir(), "rcmgr.json.gz")
		synctest.Test(t, func(t *testing.T) { runNode(t, file, seed) })
		p := propose(t, machine, file)
		require.Empty(t, p.Refused)
		for _, r := range p.Reasons {
			values[r.Place] = append(values[r.Place], r.Value)
		}
	}
	for _, place := range []string{"System.ConnsInbound", "System.StreamsInbound", "System.Memory", `Protocol["/p"].StreamsInbound`} {
		require.Contains(t, values, place)
	}
	above := 0
	for place, of := range values {
		require.Len(t, of, 10, place)
		least, most := slices.Min(of), slices.Max(of)
		require.LessOrEqual(t, float64(most), 1.1*float64(least), "%s: %v", place, of)
		if least != most {
			above++
		}
	}
	require.Positive(t, above, "all limits are floors: nothing was tested")
}

// runNode runs a node for ten minutes. Each of its peers comes and goes by chance, and opens a
// stream now and then.
func runNode(t *testing.T, file string, seed uint64) {
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), rcmgr.WithTrace(file), rcmgr.WithMetricsDisabled())
	require.NoError(t, err)
	defer func() { require.NoError(t, rm.Close()) }()
	r := rand.New(rand.NewPCG(seed, 1))
	var todo agenda
	after := func(mean time.Duration, do func()) time.Time {
		at := time.Now().Add(time.Duration(r.ExpFloat64() * float64(mean)))
		heap.Push(&todo, errand{at, do})
		return at
	}
	for i := range 200 {
		id := peer.ID(fmt.Sprint("peer ", i))
		var come func()
		come = func() {
			c, err := rm.OpenConnection(network.DirInbound, i%2 == 0, nil)
			require.NoError(t, err)
			require.NoError(t, c.SetPeer(id))
			leaves := after(80*time.Second, func() {
				c.Done()
				after(20*time.Second, come)
			})
			var open func()
			open = func() {
				if time.Now().After(leaves) {
					return
				}
				s, err := rm.OpenStream(id, network.DirInbound)
				require.NoError(t, err)
				require.NoError(t, s.SetProtocol("/p"))
				require.NoError(t, s.ReserveMemory(256*kib, network.ReservationPriorityAlways))
				after(20*time.Second, func() {
					s.Done()
					after(10*time.Second, open)
				})
			}
			after(10*time.Second, open)
		}
		after(20*time.Second, come)
	}
	for end := time.Now().Add(10 * time.Minute); ; {
		next := heap.Pop(&todo).(errand)
		if next.at.After(end) {
			return
		}
		time.Sleep(time.Until(next.at))
		next.do()
	}
}

type errand struct {
	at time.Time
	do func()
}

type agenda []errand

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)        { *a = append(*a, x.(errand)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

// hold opens inbound connections and streams of so many peers, one of each for each peer.
func hold(t *testing.T, rm *rcmgr.Manager, from, peers int) {
	for i := range peers {
		id := peer.ID(fmt.Sprint("peer ", from+i))
		c, err := rm.OpenConnection(network.DirInbound, true, nil)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(id))
		s, err := rm.OpenStream(id, network.DirInbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/p"))
	}
}

func newManager(t *testing.T, limits rcmgr.PartialLimitConfig, opts ...rcmgr.Option) *rcmgr.Manager {
	opts = append(opts, rcmgr.WithMetricsDisabled(), rcmgr.WithRefusalLog(0))
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rm.Close()) })
	return rm
}

// A limit is twice what was usually held at most, and one and a half times the highest value if
// that is more. Its reason says how much was seen, when, where and by how many.
func TestALimitComesFromWhatSnapshotsSaw(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: 5000}})
	var seen suggest.Evidence
	var last rcmgr.Snapshot
	for i := range 4 {
		hold(t, rm, i*100, 100)
		last = rm.Snapshot()
		require.NoError(t, seen.AddSnapshot(&last))
	}
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	r := reasonFor(t, p, "System.ConnsInbound")
	require.EqualValues(t, 700, r.Value) // twice (300 + 400) / 2, which is more than 1.5 times 400
	require.EqualValues(t, 700, readBack(t, p).System.ConnsInbound)
	require.Equal(t, suggest.RuleMargin, r.Rule)
	require.EqualValues(t, 400, r.Seen)
	require.EqualValues(t, 350, r.Usual)
	require.Equal(t, 400, r.Holders)
	require.EqualValues(t, 1, r.TopHeld)
	require.EqualValues(t, 5000, r.Was)
	require.Equal(t, 4, r.Looks)
	require.Equal(t, last.Taken, r.At)
	require.Equal(t, suggest.SureLow, r.Sure)
	require.Contains(t, r.Why, "At most 400 seen at ")
	require.Contains(t, r.Why, "held by 400 peers")
	require.Contains(t, r.Why, "usually at most 350")
	require.Contains(t, r.Why, "4 looks in 0s")

	r = reasonFor(t, p, "PeerDefault.ConnsInbound")
	require.EqualValues(t, 4, r.Value)
	require.Equal(t, suggest.RuleFloor, r.Rule)
	require.Equal(t, 400, r.Holders, "all peers have held half of the most or more")
	r = reasonFor(t, p, `Protocol["/p"].StreamsInbound`)
	require.EqualValues(t, 700, r.Value)
}

// A peak that is long past counts once. The looks after it have what was held at the time.
func TestAPeakThatIsLongPastCountsOnce(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	hold(t, rm, 0, 400)
	var seen suggest.Evidence
	for i := range 4 {
		now := rm.Snapshot()
		if i > 0 {
			now.Scopes[0].Use.NumConnsInbound = 100
		}
		require.NoError(t, seen.AddSnapshot(&now))
	}
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	r := reasonFor(t, p, "System.ConnsInbound")
	require.EqualValues(t, 250, r.Usual)
	require.EqualValues(t, 600, r.Value) // one and a half times 400, which is more than twice 250
}

func TestTheMarginIsAChoice(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	hold(t, rm, 0, 100)
	now := rm.Snapshot()
	for margin, want := range map[float64]int64{0: 200, 1: 100, 1.5: 150, 4: 400} {
		var seen suggest.Evidence
		require.NoError(t, seen.AddSnapshot(&now))
		o := machine
		o.Margin = margin
		p, err := seen.Propose(o)
		require.NoError(t, err)
		require.Equal(t, want, reasonFor(t, p, "System.ConnsInbound").Value, "margin %g", margin)
	}
}

// No limit is above what the machine has, even if more was held, and that is then what would
// have been refused.
func TestNoLimitIsAboveWhatTheMachineHas(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	hold(t, rm, 0, 100)
	require.NoError(t, rm.ViewSystem(func(s network.ResourceScope) error { return s.ReserveMemory(300*mib, 255) }))
	var seen suggest.Evidence
	now := rm.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(suggest.Options{Memory: 256 * mib, FileDescriptors: 120})
	require.NoError(t, err)
	limits := readBack(t, p)
	require.EqualValues(t, 256*mib, limits.System.Memory)
	require.EqualValues(t, 120, limits.System.FD)
	require.Equal(t, suggest.RuleMachine, reasonFor(t, p, "System.FD").Rule)
	require.Len(t, p.Refused, 1)
	require.Equal(t, "System.Memory", p.Refused[0].Place)
	require.EqualValues(t, 300*mib, p.Refused[0].Held)
	require.Contains(t, tableOf(t, p), "Memory: 300.0 MiB were held, the limit is 256.0 MiB")

	for _, r := range p.Reasons {
		if strings.HasSuffix(r.Place, ".Memory") {
			require.LessOrEqual(t, r.Value, int64(256*mib), r.Place)
		}
	}
}

// A snapshot says for what machine its limits were computed.
func TestTheSnapshotSaysWhatTheMachineHas(t *testing.T) {
	rm, err := rcmgr.NewForNode(rcmgr.NodeLimits{MaxMemory: gib, MaxFileDescriptors: 100}, rcmgr.WithMetricsDisabled())
	require.NoError(t, err)
	defer func() { require.NoError(t, rm.Close()) }()
	hold(t, rm, 0, 80)
	var seen suggest.Evidence
	now := rm.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(suggest.Options{})
	require.NoError(t, err)
	require.EqualValues(t, 100, p.Limits.System.FD)
	require.Equal(t, []string{
		"The connection manager's high water mark is not known, so that limits of connections may be below it: give ConnMgrHighWater (--high-water).",
		"The node was seen at one moment only, so the proposal is not sure: what it needs at busier times is not known.",
	}, p.Notes)
	p, err = seen.Propose(suggest.Options{FileDescriptors: 4096})
	require.NoError(t, err)
	require.EqualValues(t, 160, p.Limits.System.FD)

	free := newManager(t, rcmgr.PartialLimitConfig{})
	now = free.Snapshot()
	var unsized suggest.Evidence
	require.NoError(t, unsized.AddSnapshot(&now))
	p, err = unsized.Propose(suggest.Options{})
	require.NoError(t, err)
	require.Contains(t, p.Notes[0], "What the machine has is not known")
}

// The connection manager has to close connections before any is refused.
func TestTheLimitsAreAboveTheHighWaterMark(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	hold(t, rm, 0, 40)
	s, err := rm.OpenStream("peer 0", network.DirInbound)
	require.NoError(t, err)
	require.NoError(t, s.ReserveMemory(1, network.ReservationPriorityAlways))
	var seen suggest.Evidence
	now := rm.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	o := machine
	o.ConnMgrHighWater = 600
	p, err := seen.Propose(o)
	require.NoError(t, err)
	require.NoError(t, p.Built.CheckHighWater(600))
	r := reasonFor(t, p, "System.ConnsInbound")
	require.EqualValues(t, 1200, r.Value)
	require.Equal(t, suggest.RuleHighWater, r.Rule)
	// Each connection needs a descriptor, and memory, and has to shake hands.
	require.EqualValues(t, 1200, reasonFor(t, p, "System.FD").Value)
	require.EqualValues(t, 1200*256*kib, reasonFor(t, p, "System.Memory").Value)
	require.EqualValues(t, 300, reasonFor(t, p, "Transient.ConnsInbound").Value)
	require.EqualValues(t, 300, reasonFor(t, p, "Transient.FD").Value)
	require.NotContains(t, strings.Join(p.Notes, "\n"), "high water mark")
}

// A limit on both directions together is no more than the two, also where one of them is bounded
// by the scope around it.
func TestATotalIsNoMoreThanItsParts(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	hold(t, rm, 0, 1)
	for i := range 60 {
		dir := network.DirInbound
		if i < 20 {
			dir = network.DirOutbound
		}
		s, err := rm.OpenStream("peer 0", dir)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/p"))
	}
	var seen suggest.Evidence
	now := rm.Snapshot()
	now.Scopes[0].Use.NumStreamsInbound, now.Scopes[0].Peak.StreamsInbound = 30, 30 // system is bounded tighter than its peer
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	require.Equal(t, suggest.RuleOuter, reasonFor(t, p, "PeerDefault.StreamsInbound").Rule)
	for _, r := range p.Reasons {
		if r.Rule == suggest.RuleSum && r.Value != math.MaxInt64 && strings.HasSuffix(r.Place, ".Streams") {
			require.Equal(t, reasonFor(t, p, r.Place+"Inbound").Value+reasonFor(t, p, r.Place+"Outbound").Value, r.Value, r.Place)
		}
	}
	require.NotContains(t, strings.Join(p.Notes, "\n"), "never be reached")
}

// requireTotalsAboveParts fails if a limit on both directions together is below that of one of them.
func requireTotalsAboveParts(t *testing.T, p *suggest.Proposal) {
	limits := make(map[string]int64)
	for _, s := range p.Built.Settings() {
		limits[s.Place] = math.MaxInt64
		if n, err := strconv.ParseInt(s.Value, 10, 64); err == nil {
			limits[s.Place] = n
		}
	}
	for _, r := range p.Reasons {
		for _, direction := range []string{"Inbound", "Outbound"} {
			if total := strings.TrimSuffix(r.Place, direction); total != r.Place {
				require.Contains(t, limits, total)
				require.LessOrEqual(t, r.Value, limits[total], r.Place)
			}
		}
	}
}

// A limit that is raised because a replay was refused takes the limit on both directions with it.
func TestALimitThatIsRaisedRaisesItsTotal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rcmgr.json.gz")
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), rcmgr.WithTrace(file), rcmgr.WithMetricsDisabled())
	require.NoError(t, err)
	for i := range 60 { // the last quarter of the limit is not for this peer
		dir := network.DirInbound
		if i >= 40 {
			dir = network.DirOutbound
		}
		_, err := rm.OpenStream("peer 0", dir)
		require.NoError(t, err)
	}
	require.NoError(t, rm.Close())
	o := machine
	o.Margin = 1
	p := propose(t, o, file)
	in, out, both := reasonFor(t, p, "Transient.StreamsInbound"), reasonFor(t, p, "Transient.StreamsOutbound"), reasonFor(t, p, "Transient.Streams")
	require.Equal(t, suggest.RuleReplay, in.Rule)
	require.Greater(t, in.Value, int64(40))
	require.Equal(t, suggest.RuleSum, both.Rule)
	require.Equal(t, in.Value+out.Value, both.Value)
	requireTotalsAboveParts(t, p)
	require.Empty(t, p.Refused)

	// The total is that of the base, because the node opened no streams.
	base := rcmgr.PartialLimitConfig{Transient: rcmgr.ResourceLimits{Streams: 42}}.Build(rcmgr.InfiniteLimits)
	o.Base = &base
	requireTotalsAboveParts(t, propose(t, o, file))
	requireTotalsAboveParts(t, propose(t, machine, soakTrace))
}

// In a manager that only observes its limits, what they would have refused is held, so it is
// part of the need.
func TestAnObservingManagerShowsTheWholeNeed(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: 30}}, rcmgr.WithObserveOnly())
	hold(t, rm, 0, 100)
	var seen suggest.Evidence
	now := rm.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	r := reasonFor(t, p, "System.ConnsInbound")
	require.EqualValues(t, 200, r.Value)
	require.EqualValues(t, 70, r.WouldRefuse)
	require.Zero(t, r.Refused)
	require.EqualValues(t, 30, r.Was)
	require.Contains(t, r.Why, "was only observed; it would have refused 70 requests")
}

// A limit that refused something hides the need, so its proposal is not sure.
func TestALimitThatRefusedIsNotSure(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{System: rcmgr.ResourceLimits{ConnsInbound: 100}})
	hold(t, rm, 0, 100)
	for range 3 {
		_, err := rm.OpenConnection(network.DirInbound, true, nil)
		require.Error(t, err)
	}
	now := rm.Snapshot()
	now.Started = now.Taken.Add(-48 * time.Hour)
	var seen suggest.Evidence
	for range 20 {
		require.NoError(t, seen.AddSnapshot(&now))
		now.Taken = now.Taken.Add(time.Second)
	}
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	r := reasonFor(t, p, "System.ConnsInbound")
	require.EqualValues(t, 3, r.Refused, "the counts of one manager are not added up")
	require.Equal(t, suggest.SureLow, r.Sure)
	require.Contains(t, r.Why, "The limit of that time, 100, refused 3 requests")
	require.Contains(t, strings.Join(p.Notes, "\n"), "Of the limits that were in force, 1 refused requests while the node was seen.")
	require.Equal(t, suggest.SureHigh, reasonFor(t, p, "System.StreamsInbound").Sure)
}

// However often a snapshot or a trace is given, as a file or not, it is one look at the node.
func TestWhatIsGivenAgainCountsOnce(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	hold(t, rm, 0, 10)
	now := rm.Snapshot()
	now.Started = now.Taken.Add(-48 * time.Hour)
	text, err := json.Marshal(now)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "snapshot.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	given := func(times int) *suggest.Proposal {
		var seen suggest.Evidence
		require.NoError(t, seen.AddSnapshot(&now))
		require.NoError(t, seen.ReadFile(soakTrace))
		for range times - 1 {
			require.NoError(t, seen.AddSnapshot(&now))
			require.NoError(t, seen.ReadFile(file))
			require.NoError(t, seen.ReadFile(soakTrace))
		}
		require.Len(t, seen.Sources(), 2)
		p, err := seen.Propose(machine)
		require.NoError(t, err)
		return p
	}
	once, often := given(1), given(8)
	require.Equal(t, once.Reasons, often.Reasons)
	require.Equal(t, once.Limits, often.Limits)
	require.Equal(t, once.Refused, often.Refused)
	require.NotContains(t, strings.Join(once.Notes, "\n"), "given again")
	require.Contains(t, often.Notes, "What was given again counts once: 21 snapshots or traces, such as the snapshot of "+now.Taken.Format(time.RFC3339)+".")

	// Another manager, or another time, is another look.
	other := now
	other.Started = other.Started.Add(time.Second)
	later := now
	later.Taken = later.Taken.Add(time.Second)
	var seen suggest.Evidence
	for _, s := range []*rcmgr.Snapshot{&now, &other, &later} {
		require.NoError(t, seen.AddSnapshot(s))
	}
	require.Len(t, seen.Sources(), 3)
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	require.Equal(t, 3, reasonFor(t, p, "System.ConnsInbound").Looks)
}

// comeFrom opens n inbound connections from an address, and returns how many were admitted.
func comeFrom(t *testing.T, rm *rcmgr.Manager, address string, n int) (admitted int) {
	for range n {
		if _, err := rm.OpenConnection(network.DirInbound, false, multiaddr.StringCast("/ip4/"+address+"/udp/1/quic-v1")); err == nil {
			admitted++
		}
	}
	return admitted
}

// proposeFromLooks returns what four snapshots of a manager lead to.
func proposeFromLooks(t *testing.T, rm *rcmgr.Manager) *suggest.Proposal {
	t.Helper()
	var seen suggest.Evidence
	for range 4 {
		now := rm.Snapshot()
		require.NoError(t, seen.AddSnapshot(&now))
	}
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	return p
}

// A burst that a slow rate does not fill within a day is no limit that a manager accepts.
func TestARateThatIsTooSlowForTheProposedBurstIsRaised(t *testing.T) {
	gates := &rcmgr.GateLimits{Rate: rcmgr.RateLimits{IPv4: map[int]rcmgr.ConnRate{32: {PerSecond: 0.001, Burst: 60}}}}
	rm := newManager(t, rcmgr.PartialLimitConfig{Gates: gates}, rcmgr.WithObserveOnly(rcmgr.KindSubnet))
	comeFrom(t, rm, "203.0.113.7", 60)
	p := proposeFromLooks(t, rm)
	require.Equal(t, "0.003/s, burst 240", reasonFor(t, p, `Gates.Rate.Networks["203.0.113.7/32"]`).Text)
	newManager(t, readBack(t, p))
}

// A network that needs more connections than the gates admit gets a limit of its own, with a rate
// at which all of them may come back. All others keep what is in force.
func TestANetworkThatNeedsMoreGetsLimitsOfItsOwn(t *testing.T) {
	gates := &rcmgr.GateLimits{Rate: rcmgr.RateLimits{IPv4: map[int]rcmgr.ConnRate{32: {PerSecond: 5, Burst: 100}}}}
	rm := newManager(t, rcmgr.PartialLimitConfig{Gates: gates}, rcmgr.WithObserveOnly(rcmgr.KindSubnet))
	comeFrom(t, rm, "203.0.113.7", 60)
	comeFrom(t, rm, "203.0.113.8", 7)
	comeFrom(t, rm, "203.0.113.9", 2)
	p := proposeFromLooks(t, rm)
	r := reasonFor(t, p, `Gates.Subnets.Networks["203.0.113.7/32"]`)
	require.EqualValues(t, 120, r.Value)
	require.Equal(t, suggest.RuleMargin, r.Rule)
	require.EqualValues(t, 60, r.Seen)
	require.EqualValues(t, 8, r.Was)
	require.EqualValues(t, 52, r.WouldRefuse)
	require.Contains(t, r.Why, "At most 60 seen")
	r = reasonFor(t, p, `Gates.Rate.Networks["203.0.113.7/32"]`)
	require.Equal(t, suggest.RuleBurst, r.Rule)
	require.Equal(t, "5/s, burst 240", r.Text)
	r = reasonFor(t, p, `Gates.Subnets.Networks["203.0.113.8/32"]`)
	require.EqualValues(t, 14, r.Value)
	require.Zero(t, r.WouldRefuse, "it was not full")

	limits := readBack(t, p)
	require.Equal(t, map[netip.Prefix]rcmgr.LimitVal{netip.MustParsePrefix("203.0.113.7/32"): 120, netip.MustParsePrefix("203.0.113.8/32"): 14},
		limits.Gates.Subnets.Networks)
	require.Equal(t, map[netip.Prefix]rcmgr.ConnRate{netip.MustParsePrefix("203.0.113.7/32"): {PerSecond: 5, Burst: 240}}, limits.Gates.Rate.Networks)
	node := newManager(t, limits)
	require.Equal(t, 60, comeFrom(t, node, "203.0.113.7", 60))
	require.Equal(t, 8, comeFrom(t, node, "203.0.113.9", 20), "the default is still in force")
}

func TestANetworkThatHasARateOfItsOwnKeepsIt(t *testing.T) {
	network := netip.MustParsePrefix("203.0.113.7/32")
	gates := &rcmgr.GateLimits{Rate: rcmgr.RateLimits{IPv4: map[int]rcmgr.ConnRate{32: {PerSecond: 5, Burst: 1000}},
		Networks: map[netip.Prefix]rcmgr.ConnRate{network: {PerSecond: 7, Burst: 100}}}}
	rm := newManager(t, rcmgr.PartialLimitConfig{Gates: gates}, rcmgr.WithObserveOnly(rcmgr.KindSubnet))
	comeFrom(t, rm, "203.0.113.7", 60)
	var seen suggest.Evidence
	now := rm.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	require.Equal(t, map[netip.Prefix]rcmgr.ConnRate{network: {PerSecond: 7, Burst: 240}}, readBack(t, p).Gates.Rate.Networks)
}

// A gate that refuses hides the need, and neither a rate nor a network that has room gets a limit.
func TestGatesThatHaveRoomStayAsTheyAre(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	comeFrom(t, rm, "203.0.113.9", 3)
	var seen suggest.Evidence
	now := rm.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	require.Nil(t, p.Limits.Gates)

	require.Equal(t, 5, comeFrom(t, rm, "203.0.113.9", 20))
	now = rm.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	p, err = seen.Propose(machine)
	require.NoError(t, err)
	r := reasonFor(t, p, `Gates.Subnets.Networks["203.0.113.9/32"]`)
	require.EqualValues(t, 16, r.Value, "twice the higher half of the looks, which is 8")
	require.EqualValues(t, 15, r.Refused)
	require.Equal(t, suggest.SureLow, r.Sure)
}

// The trace of go-libp2p's own manager does as well.
func TestATraceOfUpstreamsManagerIsRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rcmgr.json.gz")
	rm, err := upstream.NewResourceManager(upstream.NewFixedLimiter(upstream.InfiniteLimits), upstream.WithTrace(file),
		upstream.WithMetricsDisabled(), upstream.WithConnRateLimiters(new(rate.Limiter)))
	require.NoError(t, err)
	for i := range 60 {
		id := peer.ID(fmt.Sprint("peer ", i))
		c, err := rm.OpenConnection(network.DirInbound, true, nil)
		require.NoError(t, err)
		require.NoError(t, c.SetPeer(id))
		s, err := rm.OpenStream(id, network.DirInbound)
		require.NoError(t, err)
		require.NoError(t, s.SetProtocol("/p"))
		require.NoError(t, s.ReserveMemory(mib, 255))
	}
	require.NoError(t, rm.Close())
	p := propose(t, machine, file)
	require.EqualValues(t, 120, p.Limits.System.ConnsInbound)
	require.EqualValues(t, 120, p.Limits.Protocol["/p"].StreamsInbound)
	require.EqualValues(t, 120*mib, p.Limits.System.Memory)
	require.Equal(t, 59, reasonFor(t, p, "System.ConnsInbound").Holders, "the last connection had no peer yet")
	require.Empty(t, p.Refused)
}

// Snapshots and traces add up to one picture.
func TestSnapshotsAndTracesTogether(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	hold(t, rm, 0, 300)
	text, err := json.Marshal(rm.Snapshot())
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "snapshot.json")
	require.NoError(t, os.WriteFile(file, slices.Concat(text, []byte("\n"), text), 0o600))
	p := propose(t, machine, file, soakTrace)
	r := reasonFor(t, p, "System.ConnsInbound")
	require.EqualValues(t, 300, r.Seen)
	require.Equal(t, file, r.In)
	require.Contains(t, p.Limits.Protocol, protocol.ID("/rcmgr-soak/fetch/1.0.0"), "that is in the trace alone")
}

// A trace that was cut off is read as far as it goes, and the proposal says so.
func TestACutTraceIsReadAsFarAsItGoes(t *testing.T) {
	whole, err := os.ReadFile(soakTrace)
	require.NoError(t, err)
	var seen suggest.Evidence
	require.NoError(t, seen.ReadTrace("half a trace", bytes.NewReader(whole[:len(whole)/2])))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	require.Contains(t, p.Notes, "half a trace: The trace ends in the middle of an event; everything before was read.")
	require.Positive(t, reasonFor(t, p, "System.ConnsInbound").Seen)
}

// Where the writer of the trace was too slow, the proposal says how much is missing.
func TestAGapInATraceIsNoted(t *testing.T) {
	trace := `{"Time":"2026-01-02T03:04:05Z","Type":"start"}
{"Time":"2026-01-02T03:04:06Z","Type":"dropped","Delta":17}
{"Time":"2026-01-02T03:04:07Z","Type":"add_conn","Scope":{"Class":"system"},"Name":"system","DeltaIn":1,"ConnsIn":90}
`
	var seen suggest.Evidence
	require.NoError(t, seen.ReadTrace("a trace", strings.NewReader(trace)))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	require.Contains(t, strings.Join(p.Notes, "\n"), "a trace: 17 events are missing")
	require.EqualValues(t, 140, p.Limits.System.ConnsInbound, "events say what is held, so a gap hides only what was shorter")
}

func TestBadInputIsAnErrorThatNamesItsSource(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	good, err := json.Marshal(rm.Snapshot())
	require.NoError(t, err)
	with := func(old, new string) string {
		require.Contains(t, string(good), old)
		return strings.Replace(string(good), old, new, 1)
	}
	line := `{"Time":"2026-01-02T03:04:05Z","Type":"start"}` + "\n"
	dir := t.TempDir()
	for text, want := range map[string]string{
		"":                              "it is empty: expected the JSON of a Snapshot",
		"hello":                         "invalid character 'h'",
		string(good[:100]):              "the JSON of a Snapshot is cut off",
		string(good) + string(good[:9]): "the JSON of a Snapshot is cut off",
		"[]":                            "expected the JSON of a Snapshot",
		`{"System": {}}`:                "which has Taken, Started and Scopes: there is no Taken",
		with(`"Kind":"system"`, `"Kind":"galaxy"`):                        "a Snapshot of another version",
		with(`"Kind":"system"`, `"Kind":"peer"`):                          "a Snapshot without the system scope",
		with(`"Taken":"2`, `"Taken":"1`):                                  "before its manager was made",
		line + "x\n" + line:                                               "line 2: expected an event of a trace",
		line + `{"Time":"2026-01-02T03:04:05Z","Type":"teleport"}` + "\n": `line 2: no such type of event: "teleport"; the trace may be of a later version`,
		"\x1f\x8bno": "unexpected EOF",
	} {
		file := filepath.Join(dir, "input")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		var seen suggest.Evidence
		err := seen.ReadFile(file)
		require.ErrorContains(t, err, "suggest: "+file+": ", "%q", text)
		require.ErrorContains(t, err, want, "%q", text)
		require.Empty(t, seen.Sources())
		_, err = seen.Propose(machine)
		require.EqualError(t, err, "suggest: nothing was seen: expected a snapshot or a trace")
	}
	var seen suggest.Evidence
	require.ErrorIs(t, seen.ReadFile(filepath.Join(dir, "missing")), os.ErrNotExist)
	require.NoError(t, seen.ReadSnapshot("a newer one", strings.NewReader(with(`{"Taken"`, `{"Telepathy":7,"Taken"`))))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	require.Contains(t, p.Notes, "a newer one was written by another version of rcmgr; this one does not know its Telepathy.")
	for want, o := range map[string]suggest.Options{
		"Margin is 0.5, expected a number from 1 to 1000": {Margin: 0.5},
		"Margin is NaN":        {Margin: math.NaN()},
		"must not be negative": {Memory: -1},
	} {
		_, err := seen.Propose(o)
		require.ErrorContains(t, err, want)
	}
}

func tableOf(t *testing.T, p *suggest.Proposal) string {
	var b bytes.Buffer
	require.NoError(t, p.WriteTable(&b))
	return b.String()
}

// The comment and the table have every limit of the file, and the JSON has all of it.
func TestEachLimitOfTheFileHasItsReason(t *testing.T) {
	p := propose(t, machine, soakTrace)
	var comment bytes.Buffer
	require.NoError(t, p.WriteComment(&comment))
	table := tableOf(t, p)
	written := 0
	for _, s := range p.Limits.Build(rcmgr.ConcreteLimitConfig{}).Settings() {
		if s.Origin == rcmgr.OriginOverride {
			written++
			require.Contains(t, comment.String(), s.Place+" = ")
			require.Contains(t, table, s.Place+" ")
			require.NotEmpty(t, reasonFor(t, p, s.Place).Why)
			require.Equal(t, s.Value, reasonFor(t, p, s.Place).Text)
		}
	}
	require.Len(t, p.Reasons, written)
	text, err := json.Marshal(p)
	require.NoError(t, err)
	var again suggest.Proposal
	require.NoError(t, json.Unmarshal(text, &again))
	require.Equal(t, p.Reasons[0].Why, again.Reasons[0].Why)
	require.Equal(t, p.Limits.System, again.Limits.System)
}

// Memory has two digits also where it is a few MiB, so that needs which differ by a tenth do not
// come to limits that differ by a sixth.
func TestAFewMebibytesAreRoundedToTwoDigits(t *testing.T) {
	for held, want := range map[float64]float64{3.2: 6.4, 3.296: 6.6, 33: 66, 330.1: 670} {
		rm := newManager(t, rcmgr.PartialLimitConfig{})
		require.NoError(t, rm.ViewSystem(func(s network.ResourceScope) error { return s.ReserveMemory(int(held*mib), 255) }))
		var seen suggest.Evidence
		now := rm.Snapshot()
		require.NoError(t, seen.AddSnapshot(&now))
		p, err := seen.Propose(machine)
		require.NoError(t, err)
		require.InDelta(t, want*mib, int64(p.Limits.System.Memory), 1)
	}
}

// Numbers that no node has do not overflow.
func TestNumbersThatAreTooLargeAreNoLimit(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	var seen suggest.Evidence
	now := rm.Snapshot()
	now.Scopes[0].Peak = rcmgr.Amounts{Streams: math.MaxInt, StreamsInbound: math.MaxInt, StreamsOutbound: math.MaxInt, Memory: math.MaxInt64}
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(suggest.Options{Base: &rcmgr.InfiniteLimits})
	require.NoError(t, err)
	for _, place := range []string{"System.Streams", "System.StreamsInbound", "System.StreamsOutbound", "System.Memory"} {
		require.Equal(t, "unlimited", reasonFor(t, p, place).Text, place)
	}
	readBack(t, p)
}

// Names of protocols are chosen by peers, and cannot hide or forge a line.
func TestNamesOfPeersCannotForgeLines(t *testing.T) {
	rm := newManager(t, rcmgr.PartialLimitConfig{})
	s, err := rm.OpenStream("a peer", network.DirInbound)
	require.NoError(t, err)
	require.NoError(t, s.SetProtocol("/evil\n\x1b[2JSystem.Conns = 1"))
	var seen suggest.Evidence
	now := rm.Snapshot()
	require.NoError(t, seen.AddSnapshot(&now))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	var comment bytes.Buffer
	require.NoError(t, p.WriteComment(&comment))
	for _, text := range []string{comment.String(), tableOf(t, p)} {
		require.NotContains(t, text, "\x1b")
		require.NotContains(t, text, "\nSystem.Conns = 1")
	}
	require.Contains(t, readBack(t, p).Protocol, protocol.ID("/evil\n\x1b[2JSystem.Conns = 1"))
}

// A trace of many hours has no more looks than one of minutes, and each of them is longer.
func TestALongTraceIsCutIntoFewLooks(t *testing.T) {
	var trace bytes.Buffer
	w := gzip.NewWriter(&trace)
	begin := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	for i := range 48 * 60 {
		held := 100
		if i%29 == 0 && i < 30*60 {
			held = 159
		}
		fmt.Fprintf(w, `{"Time":%q,"Type":"add_conn","Scope":{"Class":"system"},"Name":"system","DeltaIn":1,"ConnsIn":%d}`+"\n",
			begin.Add(time.Duration(i)*time.Minute).Format(time.RFC3339), held)
	}
	require.NoError(t, w.Close())
	var seen suggest.Evidence
	require.NoError(t, seen.ReadTrace("two days", &trace))
	p, err := seen.Propose(machine)
	require.NoError(t, err)
	r := reasonFor(t, p, "System.ConnsInbound")
	require.GreaterOrEqual(t, r.Looks, 32)
	require.LessOrEqual(t, r.Looks, 64)
	require.EqualValues(t, 159, r.Seen)
	require.EqualValues(t, 159, r.Usual, "each look is longer than half an hour, and in most of them 159 were held once")
	require.Equal(t, suggest.SureHigh, r.Sure)
	require.Equal(t, begin, r.At.UTC())
}
