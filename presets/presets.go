// Package presets has limits for the common roles of a node. Each preset is a
// rcmgr.PartialLimitConfig on top of rcmgr.NodeLimits, sized by the number that its operator
// knows: members, circuits or connections.
//
//	node := rcmgr.NodeLimits{MaxMemory: 2 << 30, MaxFileDescriptors: 4096}
//	limits, err := presets.Relay.Limits(node, presets.Size{Members: 500, Circuits: 1000})
//	…
//	node.Overrides = limits
//	rm, err := rcmgr.NewForNode(node)
//
// A preset says how many connections and streams come in, how much of that may be transient,
// what one peer may hold, and what comes through the gates. Memory and descriptors of the
// whole node stay as NodeLimits has them, and so do outbound connections and streams except
// where a role's own are its work. Overrides of the same NodeLimits are not part of the
// result; apply them to it with PartialLimitConfig.Apply.
//
// Everything in a preset fits together. A subnet may come back with all of its connections
// at once, because the burst of its rate is at least its limit. What comes back after a
// restart fits the transient scope. No limit is above that of a scope around it.
package presets

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/weir-p2p/rcmgr"
)

// Role is what a node is for.
type Role uint8

const (
	// Relay is a node that carries circuits (circuit v2) between its members and others. It is
	// sized by Members, the peers that keep a reservation, and Circuits, the relayed
	// connections at a time. Every member may come back at the same instant, and libp2p's
	// relay service and its protocols have room for all circuits.
	Relay Role = iota
	// Validator is a node that always has to reach the other members of its network, and be
	// reached by them. It is sized by Members. A member may hold many streams, several members
	// may share an address, and strangers get the rest.
	Validator
	// Gateway is a node that fetches for others: most connections are its own. It is sized by
	// Conns, its connections at a time in both directions.
	Gateway
	// LightClient is a node that serves hardly anybody. It is sized by Conns, its connections
	// at a time in both directions.
	LightClient
	// Crawler is a node that dials very many peers for a short time each. It is sized by
	// Conns, the outbound connections at a time, most of which are transient.
	Crawler
	// Bootstrapper is a node that very many peers dial for a short time each. It is sized by
	// Conns, the inbound connections at a time. One peer may hold very little.
	Bootstrapper
	numRoles
)

// Size is the size of a node. A number that is 0 follows from memory and descriptors.
type Size struct {
	// Members is the number of peers that belong to the node: those that keep a reservation
	// on a relay, the other validators.
	Members int
	// Circuits is the number of relayed connections at a time.
	Circuits int
	// Conns is the number of connections at a time.
	Conns int
}

// role describes a Role.
type role struct {
	name, purpose string
	takes         []string
	limits        func(*plan)
}

var roles = [numRoles]role{
	Relay:        {"relay", "carries circuits between its members and others", []string{"Members", "Circuits"}, (*plan).relay},
	Validator:    {"validator", "reaches the other members of its network, and is reached by them", []string{"Members"}, (*plan).validator},
	Gateway:      {"gateway", "fetches for others: most connections are its own", []string{"Conns"}, (*plan).gateway},
	LightClient:  {"light-client", "serves hardly anybody", []string{"Conns"}, (*plan).lightClient},
	Crawler:      {"crawler", "dials very many peers for a short time each", []string{"Conns"}, (*plan).crawler},
	Bootstrapper: {"bootstrapper", "is dialed by very many peers for a short time each", []string{"Conns"}, (*plan).bootstrapper},
}

// Roles returns all roles.
func Roles() []Role {
	all := make([]Role, numRoles)
	for i := range all {
		all[i] = Role(i)
	}
	return all
}

// Parse returns the role with a name, as String returns it. An error lists the names.
func Parse(name string) (Role, error) {
	var names []string
	for r, of := range roles {
		if of.name == name {
			return Role(r), nil
		}
		names = append(names, of.name)
	}
	return 0, fmt.Errorf("presets: no such role: %q, expected one of %s", name, strings.Join(names, ", "))
}

// String returns the name of the role: "relay", "validator", "gateway", "light-client",
// "crawler" or "bootstrapper".
func (r Role) String() string {
	if r >= numRoles {
		return fmt.Sprintf("Role(%d)", uint8(r))
	}
	return roles[r].name
}

// MarshalText returns String's text, for JSON and flags.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (r *Role) UnmarshalText(text []byte) error {
	read, err := Parse(string(text))
	if err == nil {
		*r = read
	}
	return err
}

// Purpose returns what a node with this role does, as the end of a sentence: "carries
// circuits between its members and others".
func (r Role) Purpose() string {
	if r >= numRoles {
		return ""
	}
	return roles[r].purpose
}

// Takes returns the fields of Size that the role is sized by, such as "Members" and
// "Circuits".
func (r Role) Takes() []string {
	if r >= numRoles {
		return nil
	}
	return slices.Clone(roles[r].takes)
}

// Limits returns the limits of the role for a node of a size, to be used as n.Overrides or
// written to a file. Of n it reads MaxMemory, MaxFileDescriptors, ConnMgrHighWater and
// NoConnMgr. It returns an error if the role is not sized by a number of size, or if the
// node has too little memory for it.
func (r Role) Limits(n rcmgr.NodeLimits, size Size) (rcmgr.PartialLimitConfig, error) {
	if r >= numRoles {
		return rcmgr.PartialLimitConfig{}, fmt.Errorf("presets: no such role: %v", r)
	}
	fail := func(err error) (rcmgr.PartialLimitConfig, error) {
		return rcmgr.PartialLimitConfig{}, fmt.Errorf("presets: %v: %w", r, err)
	}
	if err := r.check(size); err != nil {
		return fail(err)
	}
	bare := rcmgr.NodeLimits{MaxMemory: n.MaxMemory, MaxFileDescriptors: n.MaxFileDescriptors,
		ConnMgrHighWater: n.ConnMgrHighWater, NoConnMgr: n.NoConnMgr}
	cfg, err := bare.Build()
	if err != nil {
		return fail(err)
	}
	node := cfg.ToPartialLimitConfig().System
	p := &plan{size: size, memory: node.Memory.Build(0), descriptors: node.FD.Build(0)}
	if !n.NoConnMgr {
		p.highWater = n.ConnMgrHighWater
	}
	roles[r].limits(p)
	if p.needs > p.memory {
		return fail(fmt.Errorf("%s need about %d MiB of memory, the node has %d MiB", p.why, p.needs/mib, p.memory/mib))
	}
	return p.limits(), nil
}

func (r Role) check(size Size) error {
	for _, f := range []struct {
		name string
		n    int
	}{{"Members", size.Members}, {"Circuits", size.Circuits}, {"Conns", size.Conns}} {
		place := "Size." + f.name
		switch {
		case f.n < 0:
			return fmt.Errorf("%s is %d, it must not be negative", place, f.n)
		case f.n > mostOfAnything:
			return fmt.Errorf("%s is %d, expected at most %d", place, f.n, mostOfAnything)
		case f.n > 0 && !slices.Contains(roles[r].takes, f.name):
			return fmt.Errorf("%s is %d, but the role is sized by %s", place, f.n, strings.Join(roles[r].takes, " and "))
		}
	}
	return nil
}

const (
	kib = 1 << 10
	mib = 1 << 20

	mostOfAnything = 1 << 24 // nodes are smaller; products of it fit into 64 bits
	leastConns     = 64
)

// plan are the numbers of a preset. Zero leaves a number to NodeLimits.
type plan struct {
	size        Size
	memory      int64
	descriptors int
	highWater   int

	in, out        int // connections of the whole node
	transient      int // inbound connections and streams at a time that are new
	transientOut   int
	allFDTransient bool
	streamsIn      int // of the whole node
	streamsOut     int
	peerConns      int // inbound, of one peer
	peerStreams    int // inbound, of one peer
	peerStreamsOut int
	peerMemory     int64
	address        int        // connections at a time from one address
	perSecond      float64    // connections that come from it in the long run
	carries        *relayPlan // of a relay alone
	needs          int64      // bytes of memory, roughly
	why            string
}

type relayPlan struct{ circuits, members, perPeer int }

// conns returns the number of connections that was asked for. If that is 0, it returns how many
// the node has memory and descriptors for: a connection for each MiB, as NodeLimits has it, and
// four for each descriptor, because most connections of today's nodes need none.
func (p *plan) conns(asked int) int {
	if asked > 0 {
		return asked
	}
	n := min(p.memory/mib, mostOfAnything)
	if p.descriptors < math.MaxInt/4 {
		n = min(n, 4*int64(p.descriptors))
	}
	return max(leastConns, int(n))
}

// need records what the connections and circuits of the role take at least.
func (p *plan) need(why string, conns, circuits int) {
	p.why = why
	// Yamux and QUIC take some hundred KiB for a connection that is busy. A circuit is a
	// stream on each side of the relay.
	p.needs = int64(conns)*128*kib + int64(circuits)*512*kib
}

func (p *plan) relay() {
	members := cmp.Or(p.size.Members, p.size.Circuits, p.conns(0)/2)
	circuits := cmp.Or(p.size.Circuits, members)
	if p.size == (Size{}) {
		// A circuit takes more than a connection.
		circuits = max(16, min(circuits, int(p.memory/mib/2)))
	}
	p.need(fmt.Sprintf("%d members and %d circuits", members, circuits), members+circuits, circuits)
	p.in = members + circuits // the far end of a circuit need not be a member
	p.transient = p.in
	perPeer := min(circuits, max(64, 4*circuits/members))
	p.carries = &relayPlan{circuits: circuits, members: members, perPeer: perPeer}
	p.streamsIn = circuits + 3*p.in // hop; identify, ping and a reservation
	p.streamsOut = circuits + 3*p.in
	p.peerConns, p.peerStreams, p.peerStreamsOut = 8, perPeer+32, perPeer+32
	p.peerMemory = int64(perPeer+32) * 256 * kib * 2
	p.address, p.perSecond = 32, 1
}

func (p *plan) validator() {
	members := p.size.Members
	if members == 0 {
		members = min(1000, p.conns(0)/4)
	}
	p.need(fmt.Sprintf("%d members", members), 2*members, 0)
	p.in = 2*members + leastConns // both sides dial; the rest is for strangers
	p.transient = members + leastConns/2
	p.streamsIn = 64 * p.in
	p.peerConns, p.peerStreams, p.peerMemory = 4, 256, 128*mib
	p.address, p.perSecond = 16, 1
}

func (p *plan) gateway() {
	conns := p.conns(p.size.Conns)
	p.need(fmt.Sprintf("%d connections", conns), conns, 0)
	p.in = max(leastConns, conns/2)
	p.transient = max(leastConns/2, p.in/4)
	p.streamsIn = 16 * p.in
	p.peerConns, p.peerStreams, p.peerMemory = 4, 256, 64*mib
	p.address, p.perSecond = 8, 0.2
}

func (p *plan) lightClient() {
	conns := cmp.Or(p.size.Conns, leastConns)
	p.need(fmt.Sprintf("%d connections", conns), conns, 0)
	p.in = max(16, conns/2)
	p.transient = max(8, p.in/2)
	p.streamsIn = 16 * p.in
	p.peerConns, p.peerStreams, p.peerMemory = 4, 32, 32*mib
	p.address, p.perSecond = 4, 0.2
}

func (p *plan) crawler() {
	conns := p.conns(p.size.Conns)
	p.need(fmt.Sprintf("%d connections", conns), conns, 0)
	p.in = max(32, conns/16)
	p.transient = max(16, p.in/2)
	p.out, p.transientOut, p.allFDTransient = conns, conns, true
	p.streamsIn = 8*p.in + 2*conns // identify of the peers that it has dialed
	p.peerConns, p.peerStreams, p.peerMemory = 4, 16, 16*mib
	p.address, p.perSecond = 4, 0.2
}

func (p *plan) bootstrapper() {
	conns := p.conns(p.size.Conns)
	p.need(fmt.Sprintf("%d connections", conns), conns, 0)
	p.in = conns
	p.transient = max(leastConns/2, conns/2)
	p.streamsIn = 8 * conns
	p.peerConns, p.peerStreams, p.peerMemory = 4, 16, 16*mib
	p.address, p.perSecond = 16, 1
}

// limits returns the plan as a configuration.
func (p *plan) limits() rcmgr.PartialLimitConfig {
	if p.highWater > 0 { // it has to close connections before any is refused
		p.in = max(p.in, 2*min(p.highWater, mostOfAnything))
		p.streamsIn = max(p.streamsIn, 2*p.in)
	}
	// A quarter of the streams of the transient scope is kept for new peers.
	transientStreams := min(p.streamsIn, max(16, 2*p.transient))
	cfg := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{ConnsInbound: limit(p.in), ConnsOutbound: limit(p.out),
			StreamsInbound: limit(p.streamsIn), StreamsOutbound: limit(p.streamsOut)},
		Transient: rcmgr.ResourceLimits{ConnsInbound: limit(p.transient), ConnsOutbound: limit(p.transientOut),
			StreamsInbound: limit(transientStreams)},
		PeerDefault: rcmgr.ResourceLimits{ConnsInbound: limit(p.peerConns),
			StreamsInbound: limit(min(p.peerStreams, p.streamsIn)), StreamsOutbound: limit(p.peerStreamsOut),
			Memory: rcmgr.LimitVal64(min(p.peerMemory, p.memory/4))},
		Gates: p.gates(),
	}
	if p.allFDTransient && p.descriptors < math.MaxInt {
		cfg.Transient.FD = limit(p.descriptors)
	}
	if p.carries != nil {
		p.carries.add(&cfg, p.memory)
	}
	return cfg
}

// limit returns a number as a limit; 0 leaves it to the defaults.
func limit(n int) rcmgr.LimitVal { return rcmgr.LimitVal(n) }

// gates returns the gates: what one address, an IPv6 /56 and a /48 may hold, and how fast it
// may come. The burst of each is twice its connections, so that all may come back at once while
// old ones are not closed yet.
func (p *plan) gates() *rcmgr.GateLimits {
	site := min(8*p.address, p.in)
	address := min(p.address, p.in)
	rate := func(conns int, perSecond float64) rcmgr.ConnRate {
		return rcmgr.ConnRate{PerSecond: perSecond, Burst: limit(2 * conns)}
	}
	return &rcmgr.GateLimits{
		Subnets: rcmgr.SubnetLimits{
			IPv4: map[int]rcmgr.LimitVal{32: limit(address)},
			IPv6: map[int]rcmgr.LimitVal{56: limit(address), 48: limit(site)},
		},
		Rate: rcmgr.RateLimits{
			IPv4: map[int]rcmgr.ConnRate{32: rate(address, p.perSecond)},
			IPv6: map[int]rcmgr.ConnRate{56: rate(address, p.perSecond), 48: rate(site, 8*p.perSecond)},
		},
	}
}

// The names that libp2p's relay service has.
const (
	relayService               = "libp2p.relay/v2"
	hopProtocol    protocol.ID = "/libp2p/circuit/relay/0.2.0/hop"
	stopProtocol   protocol.ID = "/libp2p/circuit/relay/0.2.0/stop"
	memoryOfStream             = 64 * kib // a message, and the buffers of a circuit
)

// add adds the limits of libp2p's relay service. A circuit is a stream of hop that came in, and
// one of stop that goes out; a reservation is a stream of hop for a short time.
func (r *relayPlan) add(cfg *rcmgr.PartialLimitConfig, memory int64) {
	in, out := r.circuits+r.members, r.circuits
	of := func(in, out int, least int64) rcmgr.ResourceLimits {
		return rcmgr.ResourceLimits{Streams: limit(in + out), StreamsInbound: limit(in), StreamsOutbound: limit(out),
			Memory: rcmgr.LimitVal64(min(memory/4, max(least, int64(in+out)*memoryOfStream)))}
	}
	peer := of(r.perPeer, r.perPeer, mib)
	cfg.Service = map[string]rcmgr.ResourceLimits{relayService: of(in, out, 16*mib)}
	cfg.ServicePeer = map[string]rcmgr.ResourceLimits{relayService: peer}
	// A relay that is itself behind another one opens hop and accepts stop.
	cfg.Protocol = map[protocol.ID]rcmgr.ResourceLimits{hopProtocol: of(in, out, 16*mib), stopProtocol: of(in, out, 16*mib)}
	cfg.ProtocolPeer = map[protocol.ID]rcmgr.ResourceLimits{hopProtocol: peer, stopProtocol: peer}
}
